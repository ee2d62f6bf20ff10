"""The checks of the exercises on memory; see `course.exercises` for their answers."""

import itertools
import json
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

from course.exercises import call, check, describe, expect, random_tensor

# --- MEM.1 In which order? ------------------------------------------------------------


def peak(sizes):
    """The most bytes at once, if each tensor is read, copied, and then released."""
    held = list(itertools.accumulate(sizes))  # the copies, the newest one included
    return max((all_ + one for all_, one in zip(held, sizes, strict=True)), default=0)


@check("MEM.1")
def check_MEM_1(attempt):
    for sizes in (
        [2, 3, 9, 4],
        [5, 1, 1],
        [7],
        [],
        [3, 1, 2],
        [4, 4, 4],
        [1, 2, 3, 4, 5],
        [113, 1, 3, 3, 1],
    ):
        given = list(sizes)
        found = _positions(call(attempt, sizes), given)
        expect(sizes == given, "the list that was passed in has been changed")
        _expect_least(found, given)
    return "Whatever the sizes, no other order has a lower peak."


def _positions(found, sizes):
    try:
        found = [int(position) for position in found]
    except (TypeError, ValueError):
        expect(False, f"the result is {describe(found)}, not positions in the list")
    expect(
        len(found) == len(sizes),
        f"{len(sizes)} tensors are to be read, the result has {len(found)} entries",
    )
    expect(
        sorted(found) != sorted(sizes) or sorted(found) == list(range(len(sizes))),
        "the result holds the sizes; asked for are the positions, counted from 0",
    )
    expect(
        sorted(found) == list(range(len(sizes))),
        f"for {len(sizes)} tensors the positions run from 0 to {len(sizes) - 1}, each "
        f"once, and the result is {found}",
    )
    return found


def _expect_least(found, sizes):
    ordered = [sizes[position] for position in found]
    here, least = peak(ordered), min(map(peak, itertools.permutations(sizes)))
    if here == least:
        return
    if found == list(range(len(sizes))):
        why = "the order of the list is kept"
    elif ordered == sorted(sizes):
        why = "the largest comes last, when all others are held as well"
    elif ordered[0] == max(sizes):
        why = "the largest comes first, but there is more to gain behind it"
    else:
        why = "another order holds less at its peak"
    expect(False, f"for the sizes {sizes} {why}: at most {here} bytes at once")


# --- MEM.2 Straight into place --------------------------------------------------------

LARGE = (1024, 1024)  # float32: 4 MB, which tracemalloc sees easily
SPARE = 500_000  # bytes that reading may take beside the tensor


@check("MEM.2")
def check_MEM_2(attempt):
    tensors = {
        "first": random_tensor(3, 5, dtype=torch.float32),
        "half": random_tensor(2, 7, seed=1).to(torch.bfloat16),
        "one number": torch.tensor(2.5),
        "large": random_tensor(*LARGE, seed=2, dtype=torch.float32),
        "wide": random_tensor(4, seed=3),
    }
    with TemporaryDirectory() as folder:
        for name, metadata in (("a", None), ("b", {"format": "pt", "made": "here"})):
            path = Path(folder, f"{name}.safetensors")
            save_file(tensors, path, metadata)
            for key, tensor in tensors.items():
                _expect_read(attempt, path, key, tensor)
            _expect_no_copy(attempt, path)
        _expect_refusals(attempt, path)
    return (
        "Each tensor arrives, without a second one, and what does not fit is refused."
    )


def _expect_read(attempt, path, key, tensor):
    out = torch.zeros_like(tensor)
    address = out.data_ptr()
    call(attempt, path, key, out)
    expect(out.data_ptr() == address, "out lies in other memory than before")
    if torch.equal(out, tensor):
        return
    expect(out.any(), f"out is still all zeros after {key!r} was read")
    expect(
        key == "first",
        f"{key!r}, of dtype {tensor.dtype} and shape {tuple(tensor.shape)}, arrives "
        "with other numbers than in the file: from where do its offsets count?",
    )
    expect(False, "already the numbers of the first tensor differ from the file's")


def _expect_no_copy(attempt, path):
    out = torch.empty(LARGE)
    tracemalloc.start()
    try:
        attempt(path, "large", out)  # `call` would first print out
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    expect(
        most < SPARE,
        f"while {out.nbytes} bytes were read, Python held {most} more: the numbers "
        "exist twice for a moment",
    )


def _expect_refusals(attempt, path):
    content = path.read_bytes()
    cut = path.with_name("cut.safetensors")
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    last = max(header.values(), key=lambda entry: entry.get("data_offsets", [0, 0])[1])
    name = next(name for name, entry in header.items() if entry is last)
    cut.write_bytes(content[:-3])
    shape, kind = tuple(last["shape"]), {"F32": torch.float32, "F64": torch.float64}
    whole = torch.zeros(shape, dtype=kind.get(last["dtype"], torch.bfloat16))
    for place, key, out, message in (
        (path, "first", torch.zeros(5, 3), "a tensor of another shape is filled"),
        (
            path,
            "first",
            torch.zeros(3, 5, dtype=torch.float64),
            "a tensor of another dtype is filled",
        ),
        (cut, name, whole, "a file that ends too early is read as if it were whole"),
    ):
        try:
            attempt(place, key, out)
        except ValueError:
            continue
        except Exception as problem:
            expect(
                False,
                f"asked for is a ValueError, and there was {type(problem).__name__} "
                f"where {message}",
            )
        expect(False, f"{message}, and no ValueError is raised")
