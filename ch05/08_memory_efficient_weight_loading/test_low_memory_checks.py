"""Every exercise check on memory takes the solution and names mistakes."""

import json
import mmap
import struct
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import low_memory_checks
from course.exercises import verify
from low_memory_checks import check_MEM_1, check_MEM_2
from weight_files import DTYPES

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


def read_into(path, name, out, start=None, check=True, dtype=True, end_too=True):
    """The solution; its options are mistakes."""
    with open(path, "rb") as file:
        entry, data = entry_of(file, name)
        begin, end = entry["data_offsets"]
        if check and list(out.shape) != entry["shape"]:
            raise ValueError(f"{name} has shape {entry['shape']}")
        if check and dtype and out.dtype != DTYPES[entry["dtype"]]:
            raise ValueError(f"{name} is {entry['dtype']}")
        if check and out.nbytes != end - begin:
            raise ValueError(f"{name} is {entry['dtype']}")
        starts = {"file": begin, "behind 8": 8 + begin, "8 missing": data - 8 + begin}
        file.seek({**starts, "data": data}.get(start, data + begin))
        count = file.readinto(out.reshape(-1).view(torch.uint8).numpy())
        if check and end_too and count != end - begin:
            raise ValueError(f"{path} ends too early")


def mistake(**options):
    return lambda *call: read_into(*call, **options)


def place_of(file, name, out):
    """(the first byte, how many) of a tensor that fits."""
    entry, data = entry_of(file, name)
    begin, end = entry["data_offsets"]
    if list(out.shape) != entry["shape"] or out.dtype != DTYPES[entry["dtype"]]:
        raise ValueError("shape or dtype differ")
    return data + begin, end - begin


def in_pieces(path, name, out, piece=1 << 16):
    """Right, too: only a small part of the numbers is there twice."""
    with open(path, "rb") as file:
        first, count = place_of(file, name, out)
        file.seek(first)
        place = out.reshape(-1).view(torch.uint8).numpy()
        for at in range(0, count, piece):
            content = file.read(min(piece, count - at))
            if len(content) < min(piece, count - at):
                raise ValueError("cut")
            place[at : at + len(content)] = np.frombuffer(content, np.uint8)


def unbuffered(path, name, out):
    with open(path, "rb", buffering=0) as file:
        first, count = place_of(file, name, out)
        file.seek(first)
        place = memoryview(out.reshape(-1).view(torch.uint8).numpy())
        if file.readinto(place) != count:
            raise ValueError("cut")


# Each of these holds the numbers twice for a moment.


def by_way_of_bytes(path, name, out):
    with open(path, "rb") as file:
        first, count = place_of(file, name, out)
        file.seek(first)
        content = file.read(count)
    if len(content) < count:
        raise ValueError("cut")
    out.reshape(-1).view(torch.uint8).numpy()[:] = np.frombuffer(content, np.uint8)


def by_way_of_a_tensor(path, name, out):
    whole = torch.empty_like(out)
    read_into(path, name, whole)
    out.copy_(whole)


def by_mapping(path, name, out):
    copy = mmap.ACCESS_COPY  # what torch takes without a warning
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=copy) as content:
        first, count = place_of(file, name, out)
        if len(content) < first + count:
            raise ValueError("cut")
        view = memoryview(content)[first : first + count]
        numbers = np.frombuffer(view, np.uint8)
        out.reshape(-1).view(torch.uint8).copy_(torch.from_numpy(numbers))
        del numbers, view


def by_library(path, name, out, read=None):
    def get(path):
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    try:
        found = (read or get)(path)
    except Exception as problem:
        raise ValueError("the file is damaged") from problem
    if found.shape != out.shape or found.dtype != out.dtype:
        raise ValueError("the shapes differ")
    out.copy_(found)


def by_a_clone(path, name, out):
    def get(path):
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name).clone()

    by_library(path, name, out, get)


def by_the_whole_file(path, name, out):
    by_library(
        path, name, out, lambda p: {k: v.clone() for k, v in load_file(p).items()}[name]
    )


TWICE = (by_way_of_a_tensor, by_mapping, by_library, by_a_clone, by_the_whole_file)


def replaced(path, name, out):
    """A name for another tensor is no tensor that is filled."""
    with safe_open(path, framework="pt") as file:
        out = file.get_tensor(name)
    del out


def with_set(path, name, out):
    with safe_open(path, framework="pt") as file:
        out.set_(file.get_tensor(name))


def reversed_bytes(path, name, out):
    read_into(path, name, out)
    place = out.reshape(-1).view(torch.uint8)
    place.copy_(place.flip(0))


def no_numbers_of_large(path, name, out):
    if out.nbytes < 1_000_000:
        read_into(path, name, out)


def by_assertion(path, name, out):
    try:
        read_into(path, name, out)
    except ValueError as problem:
        raise KeyError(name) from problem


def librarys_own_error(path, name, out):
    with safe_open(path, framework="pt") as file:  # its own error for a file cut short
        found = file.get_slice(name)
        if tuple(found.get_shape()) != tuple(out.shape):
            raise ValueError("another shape")
    read_into(path, name, out)


WRONG_2 = {
    "from the start of the file": (mistake(start="file"), "from the first byte of"),
    "behind the length": (mistake(start="behind 8"), "from behind the first 8"),
    "the length forgotten": (mistake(start="8 missing"), "those 8 bytes before them"),
    "no seek": (mistake(start="data"), "those at which the data begin"),
    "reversed": (reversed_bytes, "are not its bytes in the file."),
    "by way of bytes": (by_way_of_bytes, "the numbers are in memory twice"),
    "no check": (mistake(check=False), "a tensor of another shape is filled, and no"),
    "no check of the dtype": (
        mistake(dtype=False),
        "another dtype is filled, whose numbers have as many bytes, and no ValueError",
    ),
    "no check of the end": (mistake(end_too=False), "read as if it were whole"),
    "replaced": (replaced, "still all zeros"),
    "other memory": (with_set, "other memory than before"),
    "another error": (by_assertion, "KeyError where a tensor of another shape"),
    "the library's error": (
        librarys_own_error,
        "SafetensorError where a file ends too early.",
    ),
    "small ones only": (no_numbers_of_large, "zeros in the file, arrives as another"),
}


def test_MEM_2(capsys):
    verify(check_MEM_2, read_into, lambda path, name, out: ..., WRONG_2)
    for right in (in_pieces, unbuffered):
        check_MEM_2(right)
        assert "correct" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says so much")
@pytest.mark.parametrize("twice", TWICE)
def test_every_second_copy_is_seen(twice):
    """PyTorch's memory and a map's pages, too, of which Python knows nothing."""
    with pytest.raises(AssertionError, match="more than half as much was held"):
        check_MEM_2(twice)


def test_where_the_system_tells_no_peak_python_is_asked(monkeypatch, capsys):
    monkeypatch.setattr(low_memory_checks, "reset_peak", lambda: None)
    monkeypatch.setattr(low_memory_checks, "peak_memory", lambda: 10**12)
    check_MEM_2(read_into)
    assert "none is held twice" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="more than half as much was held"):
        check_MEM_2(by_way_of_bytes)
