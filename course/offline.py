"""What `COURSE_OFFLINE` forbids beside the course's own door, `course.assets.fetch`.

`tiktoken` fetches a vocabulary by itself when its folder does not hold it; without a
network that ends in a page of the network library's inner life. Standard library only:
`course.startup` calls this where the reader has set the variable.
"""

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

MODULE = "tiktoken.load"


def _refusing(read: Any) -> Any:
    """Return a function that reads files as `read` does, and no addresses."""

    def read_file(place: str) -> bytes:
        if "://" not in place:
            return read(place)
        from course import CourseError

        raise CourseError(
            f"tiktoken wants to fetch {place}, and COURSE_OFFLINE forbids the network. "
            "Unset it and run `python3 -m course setup` once, which puts the files of "
            "GPT-2's tokenizer where tiktoken looks. Files of other tokenizers are not "
            "among them: they need a network."
        )

    return read_file


class _Closing(MetaPathFinder):
    """Changes one function of one module when that is imported, if it ever is."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Find the module as always, and close its door once it has run."""
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            _close_after(spec)
        return spec


def _close_after(spec: ModuleSpec) -> None:
    loader: Any = spec.loader
    execute = loader.exec_module

    def exec_module(module: Any) -> None:
        execute(module)
        module.read_file = _refusing(module.read_file)

    loader.exec_module = exec_module


def install() -> None:
    """Let tiktoken of this process read what is here and fetch nothing."""
    if MODULE not in sys.modules:
        sys.meta_path.insert(0, _Closing())
