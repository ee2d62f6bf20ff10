"""The tensors in PyTorch's own files, read without running anything: support.

`StateDictFiles` is to files of `torch.save` what `SafetensorsFiles` is to safetensors:
one file, or several with an index, tensor by tensor. Every file is opened with
`weights_only=True`, which builds tensors, numbers and containers and calls nothing
else. Accepted is a dictionary of tensors by name, and one inside a larger dictionary,
under "model_state_dict", "state_dict", "weights" or "model"; of the names the prefixes
fall away that `torch.compile` and `DistributedDataParallel` add. A file is an archive
with a checksum for each part, so a changed byte is found; files of before 2020 have no
checksums, and there a number may have changed.

>>> from tempfile import TemporaryDirectory
>>> with TemporaryDirectory() as folder:
...     path = Path(folder, "model.pth")
...     torch.save({"_orig_mod.bias": torch.tensor([1.0, 2.0])}, path)
...     files = StateDictFiles(path)
...     files.outline, files["bias"]
({'bias': ((2,), 'F32')}, tensor([1., 2.]))
"""

import contextlib
import io
import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from safetensors_files import SafetensorsFiles, outline_of, reason, without_wrappers
from weight_files import names_a_pickle_imports

_INSIDE = ("model_state_dict", "state_dict", "weights", "model")
_LONGEST_PICKLE = 1 << 26  # bytes that are looked through for a message


class Saved(NamedTuple):
    """What a file of `torch.save` holds: tensors by name, and the config, if any."""

    tensors: dict[str, Tensor]
    config: Mapping[str, Any] | None


class StateDictFiles(SafetensorsFiles):
    """The tensors of one checkpoint in PyTorch's format, by name.

    Args:
        path: a file of `torch.save`, the `.index.json` of a checkpoint in several
            files, or a folder with `pytorch_model.bin` or with such an index.
        prefix: is taken off the names that begin with it.
        leave_out: endings of names that are passed over.

    Raises:
        ValueError: a file is missing or damaged, would run code, or holds something
            else than tensors by name; the message names it.
    """

    WHOLE = "pytorch_model.bin"
    INDEX = "pytorch_model.bin.index.json"

    def __init__(
        self, path: str | Path, prefix: str = "", leave_out: tuple[str, ...] = ()
    ):
        self.config: Mapping[str, Any] | None = None
        self._last: tuple[Path, dict[str, Tensor]] | None = None
        super().__init__(path, prefix, leave_out)

    def notes_of_file(self, file: Path) -> Mapping[str, str]:
        """Nothing: such a file has no notes."""
        return {}

    def outline_of_file(self, file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
        """name -> (shape, dtype) of the tensors in a file."""
        return outline_of(self._tensors(file))

    def read(self, file: Path, key: str) -> Tensor:
        """One tensor of a file, by its name there."""
        return self._tensors(file)[key]

    def _tensors(self, file):
        """Those of one file, mapped into memory; of several files one at a time."""
        if self._last is None or self._last[0] != file:
            self._last = None
            saved = read_state_dict(file)
            self.config = self.config or saved.config
            self._last = file, saved.tensors
        return self._last[1]


def read_state_dict(path: str | os.PathLike) -> Saved:
    """The tensors by name in a file of `torch.save`, and its config, if it has one.

    Args:
        path: of the file. Large tensors stay on the disk until they are used.

    Raises:
        ValueError: the file is missing or damaged, would run code, or holds something
            else than tensors by name; the message names it.
    """
    path = Path(path)
    loaded = _load(path)
    found = _inside(path, loaded)
    if not isinstance(found, dict) or not found:
        raise ValueError(
            f"{path}: it holds {_what(found)}, where a dictionary of tensors by name "
            "is wanted: save model.state_dict()."
        )
    tensors = {}
    for key, value in found.items():
        problem = _problem(key, value)
        if problem:
            raise ValueError(f"{path}: {problem}")
        name = without_wrappers(key)
        if name in tensors:
            raise ValueError(
                f"{path}: {name!r:.80} is there twice, also as {key!r:.80}."
            )
        tensors[name] = value
    config = loaded.get("config")
    return Saved(tensors, config if isinstance(config, dict) else None)


def _inside(path, loaded):
    """The tensors by name: what was saved, or one dictionary in it."""
    if not isinstance(loaded, dict):
        return loaded
    inside = [name for name in _INSIDE if isinstance(loaded.get(name), dict)]
    full = [
        name
        for name in inside
        if any(isinstance(value, Tensor) for value in loaded[name].values())
    ]
    if len(full) > 1:
        raise ValueError(
            f"{path}: it holds tensors under {full[0]!r} and under {full[1]!r}: save "
            "those alone that are meant."
        )
    return loaded[(full or inside)[0]] if inside else loaded


def _load(path):
    """The object in a file, if it can be built without calling anything."""
    try:
        in_zip = zipfile.is_zipfile(path)
        if in_zip:
            _check_archive(path)
        with warnings.catch_warnings(action="ignore"), path.open("rb") as file:
            # To be mapped it must be given by name, and PyTorch goes by this one.
            named = in_zip and path.suffix != ".safetensors"
            source = path if named else file
            loaded = torch.load(source, "cpu", weights_only=True, mmap=named)
            if not in_zip and file.read(1):  # then numbers are not where it says
                raise ValueError("there is more than it holds")
            return loaded
    except OSError as problem:
        raise ValueError(f"{path}: {reason(path, problem)}") from None
    except Exception as problem:  # whatever PyTorch's reader makes of it
        calls = _not_allowed(path)
        if calls:
            raise ValueError(
                f"{path}: reading it would call {', '.join(calls[:3])}, so it is not "
                "opened: get the weights as safetensors, or save a state_dict."
            ) from None
        raise ValueError(
            f"{path}: it is cut short, damaged or not a file of torch.save "
            f"({type(problem).__name__}): download it again, or save it again."
        ) from None


def _check_archive(path):
    """Raise if parts are packed, or are not what their checksums say.

    What is packed could be endless, and `torch.save` packs nothing. It does write
    checksums, unless it is told not to, and `torch.load` does not compare them.
    """
    with zipfile.ZipFile(path) as archive:
        if any(part.compress_type for part in archive.infolist()):
            raise ValueError("packed")
        for part in archive.infolist():
            if part.CRC:  # 0: it was told not to
                with archive.open(part) as content:
                    while content.read(1 << 20):  # raises at the end
                        pass


def _not_allowed(path):
    """The names that a file would import and that `weights_only` does not know."""
    names = []
    with contextlib.suppress(Exception):  # no pickle, or its end
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                (part,) = (
                    part
                    for part in archive.infolist()
                    if part.filename.endswith("data.pkl")
                )
                data = archive.read(part) if part.file_size < _LONGEST_PICKLE else b""
        else:
            data = path.read_bytes()
        stream = io.BytesIO(data)
        for _ in range(4):  # files of before 2020 are several, the fourth with names
            names += names_a_pickle_imports(stream)
    return [name for name in names if not _is_of_tensors(name)]


def _is_of_tensors(name):
    """Whether it is a part of what tensors and their containers are made of."""
    module, _, last = name.rpartition(".")
    return (
        (module, last) == ("collections", "OrderedDict")
        or module in ("torch._utils", "torch._tensor", "torch.storage")
        or (module == "torch" and hasattr(torch, last))
    )


def _what(found):
    """An object in words."""
    if found == {}:
        return "nothing"
    name = type(found).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _problem(key, value):
    """What to say of an entry that is no tensor by name, "" if it is one."""
    if not isinstance(key, str):
        return f"it holds a value under {key!r:.80}, where names are wanted."
    if not isinstance(value, Tensor):
        alone = ": save that part alone" if isinstance(value, dict) else ""
        where = f"under {key!r:.80}, where a tensor is wanted{alone}"
        return f"it holds {_what(value)} {where}."
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        return f"{key!r:.80} is a tensor that is sparse, quantised or without numbers."
    if _overlaps(value):
        return f"{key!r:.80} has numbers that share a place: the file is damaged."
    return ""


def _overlaps(tensor):
    """Whether two of its numbers lie in one place, as with a damaged stride."""
    reach = 0  # from the first number to the last, in the dimensions gone through
    for stride, size in sorted(zip(tensor.stride(), tensor.shape)):
        if size > 1 and stride <= reach:
            return True
        reach += stride * (size - 1)
    return False
