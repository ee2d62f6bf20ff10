"""Every exercise check on memory takes the solution and names mistakes."""

import json
import mmap
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from course.exercises import verify
from low_memory_checks import check_MEM_1, check_MEM_2

# --- MEM.1 ----------------------------------------------------------------------------


def best_order(sizes):
    return sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)


def only_the_largest_first(sizes):
    if not sizes:
        return []
    first = sizes.index(max(sizes))
    return [first, *(place for place in range(len(sizes)) if place != first)]


def in_place(sizes):
    order = best_order(sizes)
    sizes.sort()
    return order


WRONG_1 = {
    "as they come": (lambda sizes: range(len(sizes)), "the order of the list is kept"),
    "smallest first": (
        lambda sizes: best_order(sizes)[::-1],
        "the largest comes last",
    ),
    "only the largest": (only_the_largest_first, "more to gain behind it"),
    "the sizes": (lambda sizes: sorted(sizes, reverse=True), "holds the sizes"),
    "one missing": (lambda sizes: best_order(sizes)[1:], "tensors are to be read"),
    "from 1": (lambda sizes: [1 + p for p in best_order(sizes)], "run from 0 to"),
    "rotated": (
        lambda sizes: best_order(sizes)[1:] + best_order(sizes)[:1],
        "another order holds less",
    ),
    "changed": (in_place, "has been changed"),
    "a number": (lambda sizes: 3, "not positions in the list"),
}


def test_MEM_1(capsys):
    verify(check_MEM_1, best_order, lambda sizes: ..., WRONG_1)
    for right in (
        lambda sizes: np.argsort(-np.array(sizes, dtype=float)),
        lambda sizes: torch.tensor(sizes, dtype=torch.float64).argsort(descending=True),
        lambda sizes: tuple(best_order(sizes)),
    ):
        check_MEM_1(right)
        assert "correct" in capsys.readouterr().out


# --- MEM.2 ----------------------------------------------------------------------------


def entry_of(file, name):
    (length,) = struct.unpack("<Q", file.read(8))
    return json.loads(file.read(length))[name], 8 + length


def read_into(path, name, out, from_start=False, check=True, whole=False):
    """The solution; its options are mistakes."""
    with open(path, "rb") as file:
        entry, data = entry_of(file, name)
        begin, end = entry["data_offsets"]
        if check and (list(out.shape) != entry["shape"] or out.nbytes != end - begin):
            raise ValueError(f"{name} has shape {entry['shape']}")
        file.seek(begin if from_start else data + begin)
        into = out.reshape(-1).view(torch.uint8).numpy()
        if whole:
            content = file.read(end - begin)
            count = len(content)
            into[:count] = np.frombuffer(content, np.uint8)[: len(into)]
        else:
            count = file.readinto(into)
        if check and count != end - begin:
            raise ValueError(f"{path} ends too early")


def by_mapping(path, name, out):
    copy = mmap.ACCESS_COPY  # what torch takes without a warning
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=copy) as content:
        entry, data = entry_of(file, name)
        begin, end = entry["data_offsets"]
        if list(out.shape) != entry["shape"] or out.nbytes != end - begin:
            raise ValueError("the shapes differ")
        if len(content) < data + end:
            raise ValueError("cut")
        view = memoryview(content)[data + begin : data + end]
        numbers = np.frombuffer(view, np.uint8)
        out.reshape(-1).view(torch.uint8).copy_(torch.from_numpy(numbers))
        del numbers, view


def by_library(path, name, out):
    try:
        with safe_open(path, framework="pt") as file:
            found = file.get_tensor(name)
    except Exception as problem:
        raise ValueError("the file is damaged") from problem
    if found.shape != out.shape or found.dtype != out.dtype:
        raise ValueError("the shapes differ")
    out.copy_(found)


def without_size(path, name, out):
    """The number of bytes that arrived is not looked at."""
    with open(path, "rb") as file:
        entry, data = entry_of(file, name)
        begin, end = entry["data_offsets"]
        if list(out.shape) != entry["shape"] or out.nbytes != end - begin:
            raise ValueError("the shapes differ")
        file.seek(data + begin)
        file.readinto(out.reshape(-1).view(torch.uint8).numpy())


def of_the_shape(path, name, out):
    """The dtype is not looked at."""
    with open(path, "rb") as file:
        entry, data = entry_of(file, name)
        if list(out.shape) != entry["shape"]:
            raise ValueError("the shapes differ")
        file.seek(data + entry["data_offsets"][0])
        file.readinto(out.reshape(-1).view(torch.uint8).numpy())


def replaced(path, name, out):
    """A name for another tensor is no tensor that is filled."""
    with safe_open(path, framework="pt") as file:
        out = file.get_tensor(name)
    del out


def with_set(path, name, out):
    with safe_open(path, framework="pt") as file:
        out.set_(file.get_tensor(name))


def by_assertion(path, name, out):
    try:
        read_into(path, name, out)
    except ValueError as problem:
        raise KeyError(name) from problem


WRONG_2 = {
    "from the start of the file": (
        lambda *call: read_into(*call, from_start=True),
        "already the numbers of the first",
    ),
    "by way of bytes": (lambda *call: read_into(*call, whole=True), "exist twice"),
    "no check": (
        lambda *call: read_into(*call, check=False),
        "a tensor of another shape is filled, and no",
    ),
    "no check of the dtype": (of_the_shape, "a tensor of another dtype is filled"),
    "no check of the end": (without_size, "read as if it were whole"),
    "replaced": (replaced, "still all zeros"),
    "other memory": (with_set, "other memory than before"),
    "another error": (by_assertion, "there was KeyError"),
}


def test_MEM_2(capsys):
    verify(check_MEM_2, read_into, lambda path, name, out: ..., WRONG_2)
    for right in (by_mapping, by_library):
        check_MEM_2(right)
        assert "correct" in capsys.readouterr().out


def test_offsets_that_count_from_another_place_are_named():
    """Right for the first tensor of the file, and for no other."""

    def wrong(path, name, out):
        with Path(path).open("rb") as file:
            entry, data = entry_of(file, name)
            if out.nbytes != entry["data_offsets"][1] - entry["data_offsets"][0]:
                raise ValueError
            first = "first" if name == "first" else "half"
            file.seek(0)
            start, _ = entry_of(file, first)
            file.seek(data + start["data_offsets"][0])
            file.readinto(out.reshape(-1).view(torch.uint8).numpy())

    with pytest.raises(AssertionError, match="from where do its offsets count"):
        check_MEM_2(wrong)
