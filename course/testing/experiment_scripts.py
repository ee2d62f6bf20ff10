"""A chapter's experiments in its tests: the script, found by its place."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from course.tables import read


def script_in(folder: Path) -> ModuleType:
    """Return the folder's ``experiments.py`` as a module.

    Every chapter has a script of that name, so it is found by its place.
    """
    name = f"{folder.parent.name}_{folder.name}_experiments".replace("-", "_")
    spec = importlib.util.spec_from_file_location(name, folder / "experiments.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder / 'experiments.py'}: Python cannot import it.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def other_columns(made: Path, committed: Path, names: Iterable[str]) -> list[str]:
    """Return the tables whose columns a run has made other than the committed ones."""
    return [
        name
        for name in names
        if list(read(made / name)[0]) != list(read(committed / name)[0])
    ]
