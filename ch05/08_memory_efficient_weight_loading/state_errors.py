"""What is wrong with a file of weights, in one sentence: support for chapter 5.

What is not the file's fault keeps its own error, a lack of memory above all.

>>> with reading("weights.pth"):
...     raise EOFError("Ran out of input")
Traceback (most recent call last):
    ...
ValueError: weights.pth is damaged, or would run code when it is read: get it again.
>>> check_state("weights.pth", {"model_state_dict": {}, "epoch": 3})
Traceback (most recent call last):
    ...
ValueError: weights.pth: 'model_state_dict' holds a dict, and tensors by name are \
expected: perhaps one of the entries is the state dict.
"""

import contextlib
import textwrap
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from safetensors_files import SafetensorsFiles

MOST = 300  # characters: a large model has hundreds of names
# Another OSError may come of a file that was cut.
_NOT_OF_THE_FILE = (
    MemoryError,
    torch.OutOfMemoryError,
    FileNotFoundError,
    IsADirectoryError,
    PermissionError,
)


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Put errors of `torch.load` inside into one sentence that names the file.

    Raises:
        ValueError: the file is damaged, would run code, or cannot be read in this way;
            or its name ends in .safetensors: PyTorch would map it, asked or not.
        MemoryError, torch.OutOfMemoryError, RuntimeError: memory is too short.
        FileNotFoundError, IsADirectoryError, PermissionError: as they come.
    """
    if Path(path).suffix == ".safetensors":
        raise ValueError(
            f"{path}: a state dict of torch.save is expected, .pth or .pt."
        )
    try:
        yield
    except _NOT_OF_THE_FILE:
        raise
    except Exception as problem:  # whatever PyTorch's reader makes of it
        first_line = str(problem).partition("\n")[0]
        if "allocate memory" in first_line:
            raise
        broken = isinstance(problem, (UnpicklingError, EOFError))
        if broken or "PytorchStreamReader" in first_line:
            raise ValueError(
                f"{path} is damaged, or would run code when it is read: get it again."
            ) from problem
        raise ValueError(
            f"{path} cannot be read ({type(problem).__name__}: {first_line})"
        ) from problem


@contextlib.contextmanager
def naming_file(path: str | Path) -> Iterator[None]:
    """Put what a model says about a file's tensors into one sentence with its name.

    Raises:
        ValueError: a ValueError inside; or names or shapes differ, as
            `load_state_dict` says in several lines. Other errors keep their own.
    """
    try:
        yield
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from problem
    except RuntimeError as problem:
        first, *rest = str(problem).splitlines() or [""]
        if not first.startswith("Error(s) in loading state_dict"):
            raise
        said = textwrap.shorten(" ".join(rest), MOST, placeholder=" ...")
        raise ValueError(f"{path}: {said}") from problem


def check_state(path: str | Path, state: object) -> None:
    """Raise `ValueError` unless what a file held is a dictionary of tensors by name."""
    if not isinstance(state, dict):
        raise ValueError(
            f"{path} holds a {type(state).__name__}, and a state dict is expected."
        )
    for name, value in state.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise ValueError(
                f"{path}: {name!r} holds a {type(value).__name__}, and tensors by name "
                "are expected: perhaps one of the entries is the state dict."
            )


def check_equal(names: list[str], tensors: list[Tensor]) -> None:
    """Raise `ValueError` unless what a file has under names of one parameter is equal.

    Args:
        names: all of the parameter, for the message.
        tensors: one or several; memory that they share is not read.
    """
    for other in tensors[1:]:
        shared = other.data_ptr() == tensors[0].data_ptr()
        if not (shared or torch.equal(tensors[0], other)):
            raise ValueError(f"{names} are one parameter, and differ in the file.")


def drop_copies(tensors: SafetensorsFiles, groups: list[list[str]]) -> None:
    """Leave only one tensor of each group of names, whose tensors must be equal.

    Raises:
        ValueError: they differ; the message names the files and both names.
    """
    for group in groups:
        there = [name for name in group if name in tensors]
        for name in there[1:]:
            tensors.drop_copy(name, there[0])
