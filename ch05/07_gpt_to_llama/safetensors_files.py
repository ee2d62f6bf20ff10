"""Tensors in safetensors files, one file or several with an index: support.

`SafetensorsFiles` reads a published checkpoint tensor by tensor, after it has read what
the files say of themselves; the model is made by the chapter that loads it, inside
`without_drawing`, and gets its parameters from `assign`. What can be wrong with files
and tensors is put into one sentence that names them. Pickles are not opened.

The format: https://github.com/huggingface/safetensors (Apache-2.0).

>>> outline = {"wte.weight": ((50, 12), "F32"), "ln_f.weight": ((12,), "I64")}
>>> shape_problem(outline, {"wte.weight": (60, 12)})
"'wte.weight' has shape (50, 12), expected is (60, 12)."
>>> dtype_problem(outline)
"'ln_f.weight' holds I64, expected is one of F32, F16, BF16, F64."
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.overrides import TorchFunctionMode

_NAMES_OF_FLOATS = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
}
FLOATS = tuple(_NAMES_OF_FLOATS.values())  # as safetensors calls them


class SafetensorsFiles(Mapping):
    """The tensors of one checkpoint by name, each read from its file when asked for.

    So the whole checkpoint is never in memory beside the model. `outline` says what the
    files hold without reading a tensor: {name: (shape, dtype as safetensors calls it)}.

    A class for files of another format overrides `WHOLE`, `INDEX`,
    `notes_of_file`, `outline_of_file` and `read`.

    Args:
        path: a `.safetensors` file, the `.safetensors.index.json` of a checkpoint in
            several files, or a folder with `model.safetensors` or with such an index.
        prefix: is taken off the names that begin with it, after those that
            `torch.compile` and `DistributedDataParallel` put before them.
        leave_out: endings of names that are passed over.

    Raises:
        ValueError: a file is missing, damaged or of another kind, or holds a name
            twice; the message names it.
    """

    WHOLE = "model.safetensors"  # the names of the files in a folder
    INDEX = "model.safetensors.index.json"

    def __init__(
        self, path: str | Path, prefix: str = "", leave_out: tuple[str, ...] = ()
    ):
        self.path = Path(path)
        self.outline: dict[str, tuple[tuple[int, ...], str]] = {}
        self._place: dict[str, tuple[Path, str]] = {}  # name -> (file, name in there)
        files = _files(self.path, self.WHOLE, self.INDEX)
        if len(files) > 1:
            _check_written_together({file: self.notes_of_file(file) for file in files})
        for file, indexed in files.items():
            found = self.outline_of_file(file)
            _check_index(file, found, indexed)
            for key, outline in found.items():
                name = without_wrappers(key).removeprefix(prefix)
                if name in self._place:
                    raise ValueError(
                        f"{file}: {name!r:.80} is there twice, also as {key!r:.80}."
                    )
                if not name.endswith(leave_out):
                    self._place[name], self.outline[name] = (file, key), outline

    @property
    def files(self) -> list[Path]:
        """The files, each once, in the order of the index."""
        return list(dict.fromkeys(file for file, _ in self._place.values()))

    def drop_copy(self, name: str, of: str) -> None:
        """Leave out a tensor, if it is there, that must equal another one."""
        if name not in self or of not in self:
            return
        same = self.outline[name] == self.outline[of]
        if same and self.outline[of][1] in FLOATS:  # else the dtype will be refused
            same = torch.equal(self[name], self[of])
        if not same:
            raise ValueError(
                f"{self.path}: {name!r:.80} differs from {of!r}, but the model uses "
                "one tensor for both: this is another model."
            )
        del self._place[name], self.outline[name]

    def take_out(self, name: str) -> torch.Tensor:
        """A tensor, which is left out from now on; `ValueError` if there is none."""
        if name not in self:
            raise ValueError(f"{self.path}: {name!r:.80} is missing.")
        tensor = self[name]
        del self._place[name], self.outline[name]
        return tensor

    def notes_of_file(self, file: Path) -> Mapping[str, str]:
        """What a file says of itself beside its tensors."""
        with _reading(file), safe_open(file, framework="pt") as content:
            return content.metadata() or {}

    def outline_of_file(self, file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
        """name -> (shape, dtype) of what a file says it holds; no tensor is read."""
        with _reading(file), safe_open(file, framework="pt") as content:
            parts = {key: content.get_slice(key) for key in content.keys()}  # noqa: SIM118
            return {
                key: (tuple(part.get_shape()), part.get_dtype())
                for key, part in parts.items()
            }

    def read(self, file: Path, key: str) -> torch.Tensor:
        """One tensor of a file, by its name there."""
        # Opened for each tensor: what has been read would stay in memory otherwise.
        with _reading(file), safe_open(file, framework="pt") as content:
            return content.get_tensor(key)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.read(*self._place[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)


def _check_written_together(notes):
    """Raise if the files of a checkpoint say different things of themselves.

    Whoever writes a checkpoint in several files gives all of them the same notes, and
    some a fingerprint. Nothing else tells equal shapes of two models apart.
    """
    for file, found in notes.items():
        first, expected = next(iter(notes.items()))
        for name in sorted(found.keys() | expected.keys()):
            if found.get(name) != expected.get(name):
                raise ValueError(
                    f"{file}: it notes {name}={found.get(name)!s:.40} of itself, but "
                    f"{first.name} {expected.get(name)!s:.40}: take all files from one "
                    "place, since these were not written together."
                )


def _check_index(file, found, indexed):
    """Raise unless a file holds just what the index says; None without an index."""
    if indexed is None or found.keys() == indexed:
        return
    key = min(found.keys() ^ indexed)
    where = "this file only" if key in found else "the index only"
    raise ValueError(
        f"{file}: the index of the checkpoint does not fit it: {key!r:.80} is in "
        f"{where}; take all files from one place."
    )


@contextlib.contextmanager
def _reading(file):
    """Put what goes wrong with a file into one sentence that names it."""
    try:
        yield
    except (SafetensorError, OSError) as problem:
        raise ValueError(f"{file}: {reason(file, problem)}") from problem


def reason(file: Path, problem: Exception) -> str:
    """What to say about a file that cannot be read."""
    if isinstance(problem, FileNotFoundError):
        return (
            "there is no such file; all files of the model must lie in one folder, "
            "under the names of the place that they come from."
        )
    if isinstance(problem, OSError):
        return f"it cannot be read: {problem.strerror or problem}."
    with file.open("rb") as opened:
        start = opened.read(64).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "this is only a pointer to the file: download the file itself."
    if start.startswith((b"<!doctype", b"<html")):
        return "this is a web page and not the file: download it again."
    if start.startswith((b"pk\x03\x04", b"\x80\x02", b"\x80\x04")):
        return "this is a pickle, which the course does not open: take the safetensors."
    return (
        "it is cut short, damaged or no safetensors file, so download it again "
        f"(safetensors says: {problem})."
    )


def _files(path, whole, index):
    """The files of a checkpoint, each with its keys by the index, None without one."""
    if path.is_dir():
        if not ((path / whole).exists() or (path / index).exists()):
            raise ValueError(f"{path}: this folder holds neither {whole} nor {index}.")
        path = path / whole if (path / whole).exists() else path / index
    if path.suffix != ".json":
        return {path: None}
    files = {}
    for key, name in _weight_map(path).items():
        files.setdefault(path.with_name(name), set()).add(key)
    return files


def without_wrappers(name: str) -> str:
    """A name without what `torch.compile` and `DistributedDataParallel` put before."""
    for prefix in 2 * ("_orig_mod.", "module."):  # both, in either order
        name = name.removeprefix(prefix)
    return name


def check_holds_tensors(path: Path) -> None:
    """Raise unless a path is a file, or a folder with a checkpoint in it."""
    names = (SafetensorsFiles.WHOLE, SafetensorsFiles.INDEX)
    if not path.is_file() and not any((path / name).exists() for name in names):
        raise ValueError(
            f"There is no model.safetensors in {path}: give the folder that holds it, "
            "or leave the folder out, and the file is fetched. (The TensorFlow files "
            "that the book takes are not read.)"
        )


def _weight_map(path):
    """Which key lies in which file, from the index of a checkpoint in several files."""
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if files and all(_is_plain(name) for name in files.values()):
            return files
    except OSError as problem:
        raise ValueError(f"{path}: {reason(path, problem)}") from problem
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise ValueError(
        f"{path}: it is not an index of a checkpoint, which is JSON with a "
        "'weight_map' from names to files of the same folder."
    )


def _is_plain(name):
    """Whether it names a file of the same folder, and nothing elsewhere."""
    return isinstance(name, str) and name == Path(name).name != "" and "\\" not in name


def fetch_model(name: str, by_hand: str) -> Path:
    """A model's file, by way of the course; `by_hand` says what to do without it."""
    try:
        from course.assets import fetch, manifest
    except ModuleNotFoundError:
        raise ValueError(f"Without the course nothing is fetched: {by_hand}") from None
    if name not in manifest():
        raise ValueError(
            f"The course does not fetch {name} by itself, as it holds no checksum of "
            f"that file: {by_hand}"
        )
    return fetch(name)


class Undrawn(TorchFunctionMode):
    """Leaves out what would only fill weights and masks that have no memory yet."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            if kwargs["tensor"].is_meta:
                return kwargs["tensor"]
        elif func is torch.Tensor.triu and args[0].is_meta:
            return args[0]
        return func(*args, **kwargs)


@contextlib.contextmanager
def without_drawing() -> Iterator[None]:
    """Models made inside are on the meta device: shapes and names, but no numbers.

    They take no time and no memory, to be loaded with `assign`. Drawing numbers and
    `triu` are left out: on the meta device they would import a compiler, 2 s and 80 MB.
    """
    with torch.device("meta"), Undrawn():
        yield


def assign(left: torch.Tensor, right: torch.Tensor) -> nn.Parameter:
    """A parameter like `left` with the numbers of `right`.

    Args:
        left: the parameter to replace; it gives shape, dtype and device. One on the
            meta device, which has no numbers yet, gets them on the CPU.
        right: the new numbers, a tensor of the same shape and any floating dtype, or
            an array.

    Raises:
        ValueError: the shapes differ, or a number is infinite or none (NaN).
    """
    if left.shape != right.shape:
        raise ValueError(
            f"the shapes differ: {tuple(left.shape)} is needed, "
            f"{tuple(right.shape)} is there."
        )
    device = "cpu" if left.is_meta else left.device
    numbers = torch.empty(left.shape, dtype=left.dtype, device=device)
    numbers.copy_(
        torch.as_tensor(right).detach()
    )  # converts the dtype, and puts a transposed in order
    # The extremes show it without a second tensor of that size.
    if not torch.stack(numbers.aminmax()).isfinite().all():
        raise ValueError(f"it holds numbers that are infinite or NaN as {left.dtype}.")
    return nn.Parameter(numbers)


def put_weights(model: nn.Module, weights: Mapping[str, nn.Parameter]) -> None:
    """Give a model parameters in place of its own, by name.

    Buffers stay: a causal mask, which a model of the reader's own may save. So do
    names for one and the same tensor.

    Raises:
        ValueError: the model has a parameter that is not among the weights.
    """
    names: dict[int, list[str]] = {}
    for name, old in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(old), []).append(name)
    more = [first for first, *_ in names.values() if first not in weights]
    if more:
        raise ValueError(f"{some_names(more)} in the model only: it is another one.")
    model.load_state_dict(weights, strict=False, assign=True)
    for first, *others in names.values():
        for name in others:
            module, _, last = name.rpartition(".")
            setattr(model.get_submodule(module), last, model.get_parameter(first))


def source_of(params: Mapping) -> str | Path:
    """Where the tensors come from, for messages."""
    return getattr(params, "path", "The checkpoint")


def outline_of(params: Mapping) -> dict[str, tuple]:
    """name -> (shape, dtype), and no tensor is read for it."""
    if isinstance(params, SafetensorsFiles):
        return params.outline
    if not isinstance(params, Mapping):
        raise TypeError(
            f"params is {type(params).__name__}: give what load_gpt2_params returns."
        )
    for key, tensor in params.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"params[{key!r}] is {type(tensor).__name__}, no tensor, as in the "
                "params that the book makes of TensorFlow files: give what "
                "load_gpt2_params or download_and_load_gpt2 of this course returns."
            )
    return {
        key: (tuple(tensor.shape), _NAMES_OF_FLOATS.get(tensor.dtype, tensor.dtype))
        for key, tensor in params.items()
    }


def shape_problem(outline: Mapping, expected: Mapping) -> str:
    """What to say if a tensor has another shape than is expected of its name."""
    for key, shape in expected.items():
        if key in outline and outline[key][0] != shape:
            return f"{key!r:.80} has shape {outline[key][0]}, expected is {shape}."
    return ""


def some_names(keys: list[str]) -> str:
    """The first of some names, and how many more there are, with the verb."""
    more = f" and {len(keys) - 1} more are" if len(keys) > 1 else " is"
    return f"{keys[0]!r}{more}"


def name_problem(outline: Mapping, expected: Mapping) -> str:
    """What to say if tensors are missing, or are there that nobody asks for."""
    missing = [key for key in expected if key not in outline]
    if missing:
        return f"{some_names(missing)} missing, expected are {len(expected)} tensors."
    extra = [key for key in outline if key not in expected]
    return (
        f"{some_names(extra)} unknown: the model has no such tensor." if extra else ""
    )


def dtype_problem(outline: Mapping) -> str:
    """What to say if a tensor holds anything but floating-point numbers."""
    for key, (_, dtype) in outline.items():
        if dtype not in FLOATS:
            return f"{key!r:.80} holds {dtype}, expected is one of {', '.join(FLOATS)}."
    return ""
