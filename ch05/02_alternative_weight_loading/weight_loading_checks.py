"""The checks of the exercises on files of weights.

The files are written here, into a temporary folder, and what a reader's function gives
is compared with the tensors that went into them.
"""

import json
import re
import tempfile
import tracemalloc
from pathlib import Path

import torch
from safetensors.torch import save_file

from course.exercises import (
    call,
    check,
    describe,
    expect,
    expect_no_slip,
    expect_tensor,
    random_tensor,
)
from weight_files import DTYPES

# --- WL.1 Some rows of a matrix -------------------------------------------------------

_SLICES = ((3, 5), (0, 2), (4, 7), (2, 3))


@check("WL.1")
def check_WL_1(attempt):
    for dtype in (torch.float32, torch.bfloat16, *DTYPES.values()):
        tensors = {
            "bias": random_tensor(3, seed=1),
            "weight": random_tensor(7, 5, seed=2),
            "second": random_tensor(7, 2, 3, seed=3),
        }
        tensors = {name: _as(dtype, tensor) for name, tensor in tensors.items()}
        # Of one file the header is longer than two bytes can say.
        note = {"note": f"{[*range(14_000)]}"} if dtype == torch.int64 else None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.safetensors")
            save_file(tensors, path, note)
            for name in ("second", "weight"):
                for first, end in _SLICES:
                    found = call(attempt, path, name, first, end)
                    misplaced = _misplaced(path, tensors[name], name, first, end)
                    _expect_rows(found, tensors[name], name, first, end, misplaced)
    _expect_little_is_read(attempt)
    return "It reads rows of every dtype, wherever they lie, and not the whole tensor."


def _as(dtype, tensor):
    """Numbers that differ in any dtype; whole ones up to 60, or true and false."""
    if dtype.is_floating_point:
        return tensor.to(dtype)
    return tensor > 0 if dtype == torch.bool else (20 * tensor.abs()).to(dtype)


def _expect_rows(found, tensor, name, first, end, misplaced):
    wanted = tensor[first:end]
    slips = {
        "the rows begin one place too early: the first one has number 0": tensor[
            max(0, first - 1) : end - 1
        ],
        "the rows begin one place too late": tensor[first + 1 : end + 1],
        "the rows are taken from the start of the tensor": tensor[: end - first],
        "the last row is there too: end is the row after the last": tensor[
            first : end + 1
        ],
        "the whole tensor comes back": tensor,
        "the rows come back in the opposite order": wanted.flip(0),
        "the result is one row of numbers: give it the shape of the rows": (
            wanted.flatten()
        ),
        **misplaced,
    }
    expect(
        isinstance(found, torch.Tensor),
        f"the result is {describe(found)} where a tensor is asked for",
    )
    if found.dtype == wanted.dtype:
        doubled = {message: rows.double() for message, rows in slips.items()}
        expect_no_slip(found.double(), wanted.double(), doubled)
    expect_tensor(found, tuple(wanted.shape), "rows first, the rest as in the file")
    expect(
        found.dtype == wanted.dtype,
        f"the result holds {found.dtype}, where the file says {wanted.dtype}",
    )
    expect(
        torch.equal(found, wanted),
        f"rows {first} to {end - 1} of {name!r} have other numbers than the file",
    )


def _misplaced(path, tensor, name, first, end):
    """{what went wrong: the rows that would be read}, of places that are not right."""
    content = path.read_bytes()
    data = 8 + int.from_bytes(content[:8], "little")
    place, _ = json.loads(content[8:data])[name]["data_offsets"]
    row, size = tensor[0].numel(), tensor.element_size()
    way, count = first * row * size, (end - first) * row * size

    def rows(at, count=count):
        raw = bytearray(content[at : at + count])
        raw = raw[: len(raw) // (row * size) * row * size]
        if not raw:  # behind the end of the file
            return torch.empty(0)
        return torch.frombuffer(raw, dtype=tensor.dtype).view(-1, *tensor.shape[1:])

    places = {
        "the place in data_offsets is forgotten: another tensor is read": rows(
            data + way
        ),
        "the place is counted from the start of the file, not from the header's end": (
            rows(place + way)
        ),
        "the 8 bytes in front of the header are forgotten": rows(
            data - 8 + place + way
        ),
        "the length of the header is in all of its 8 bytes, not only in two": rows(
            8 + (data - 8) % 2**16 + place + way
        ),
        "the way to the first row is counted in numbers, where bytes are needed": rows(
            data + place + first * row
        ),
        "a row of three dimensions is all numbers behind the first of them": rows(
            data + place + first * tensor.shape[1] * size
        ),
        "a number takes as many bytes as its dtype says, not always 4": rows(
            data + place + first * row * 4, (end - first) * row * 4
        ),
    }
    return {message: found for message, found in places.items() if len(found)}


def _expect_little_is_read(attempt):
    """Rows near the end of 32 MB of zeros take little memory, if only they are read."""
    count, width = 2**20, 8
    rows = random_tensor(3, width, seed=4).float()
    size = 4 * count * width
    about = {"dtype": "F32", "shape": [count, width], "data_offsets": [0, size]}
    header = json.dumps({"weight": about}).encode()
    start = 8 + len(header)
    first = count - 5
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(start + size)  # a hole: it reads as zeros
            file.seek(start + 4 * first * width)
            file.write(rows.numpy().tobytes())
        found, peak = _peak(attempt, path, "weight", first, first + 3)
    expect(
        isinstance(found, torch.Tensor) and torch.equal(found, rows),
        "rows near the end of a tensor of 32 MB have other numbers",
    )
    expect(
        peak < 2**20,
        f"for 96 bytes of a tensor of 32 MB it takes {peak / 2**20:.0f} MB of memory: "
        "it reads more than these rows",
    )


def _peak(attempt, *arguments):
    """What a call gives, and the most bytes that Python took for it."""
    traced = tracemalloc.is_tracing()
    if not traced:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        found = call(attempt, *arguments)
        return found, tracemalloc.get_traced_memory()[1] - before
    finally:
        if not traced:
            tracemalloc.stop()


# --- WL.2 A plan for shards -----------------------------------------------------------


@check("WL.2")
def check_WL_2(attempt):
    _expect_plan(attempt, {"a": 3, "b": 4, "c": 2, "d": 5, "e": 5}, 7, [2, 2, 1])
    _expect_plan(attempt, {"a": 3, "b": 4, "c": 3}, 10, [3])
    _expect_plan(attempt, {"small": 1, "huge": 50, "tiny": 2}, 10, [1, 1, 1])
    _expect_plan(attempt, {"small": 1, "huge": 50}, 10, [1, 1])
    _expect_plan(attempt, {"huge": 50, "tiny": 2, "last": 8}, 10, [1, 2])
    _expect_plan(attempt, {str(i): 4 for i in range(12)}, 4, [1] * 12)
    return "Every shard is within the limit, in order, and named with the count."


def _expect_plan(attempt, sizes, limit, lengths):
    given = dict(sizes)
    found = call(attempt, sizes, limit)
    expect(sizes == given, "the dictionary of sizes is changed by the call")
    expect(
        isinstance(found, dict),
        f"the result is {describe(found)} where a dictionary is asked for",
    )
    missing = [name for name in sizes if name not in found]
    more = [name for name in found if name not in sizes]
    expect(
        not (more and len(missing) == len(sizes)),
        f"the keys are to be names of tensors, and one of them is {more[:1]}",
    )
    expect(not missing, f"{missing[:1]} is in no shard")
    expect(not more, f"{more[:1]} is in the plan, and no tensor has this name")
    files = [found[name] for name in sizes]
    expect(
        all(isinstance(file, str) for file in files),
        "the values are to be the names of files",
    )
    in_order = list(dict.fromkeys(files))
    form = "model-([0-9]{5})-of-([0-9]{5})[.]safetensors"
    parts = {file: re.fullmatch(form, file) for file in in_order}
    other = [file for file in in_order if not parts[file]]
    expect(
        not other,
        f"a shard is called {other[:1]}: the form is "
        "model-NUMBER-of-COUNT.safetensors, with five digits each",
    )
    numbers = [int(parts[file][1]) for file in in_order]
    for file in in_order:
        part = [sizes[name] for name in sizes if found[name] == file]
        expect(
            sum(part) <= limit or len(part) == 1,
            f"{file} holds {sum(part)} bytes where {limit} are allowed",
        )
    runs = 1 + sum(a != b for a, b in zip(files, files[1:]))
    expect(runs == len(in_order), "the tensors of a shard do not follow one another")
    expect(
        numbers == sorted(numbers),
        "the shards are not in the order of the tensors: go through them as they come",
    )
    count = len(lengths)
    expect(
        len(in_order) == count,
        f"there are {len(in_order)} shards for {list(sizes.values())} with a limit of "
        f"{limit}: a shard is closed only when the next tensor does not fit"
        + (", and none may be empty" if len(in_order) < count else ""),
    )
    expect(
        numbers[0] != 0,
        "the shards are counted from 0, and published files from 1",
    )
    expect(
        numbers[0] != 2 or sizes[next(iter(sizes))] <= limit,
        "the first shard that holds a tensor has number 2: before a tensor that is "
        "larger than the limit an empty shard was closed",
    )
    expect(
        numbers == list(range(1, count + 1)),
        f"the shards that hold a tensor have the numbers {numbers}: they are to be "
        "counted from 1, and none may be empty",
    )
    said = {int(parts[file][2]) for file in in_order}
    expect(
        max(said) <= count,
        f"the count says {max(said)}, and {count} files hold a tensor: an empty shard "
        f"is counted, for {list(sizes.values())} with a limit of {limit}",
    )
    expect(
        said == {count},
        f"the count says {min(said)}, and {count} files hold a tensor: it is that of "
        "all shards, in every name",
    )
    expect(
        [files.count(file) for file in in_order] == lengths,
        "a tensor went into the next shard although it fitted into the one before",
    )
