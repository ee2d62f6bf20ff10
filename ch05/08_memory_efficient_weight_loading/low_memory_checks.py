"""The checks of the exercises on memory; see `course.exercises` for their answers."""

import contextlib
import ctypes
import itertools
import json
import sys
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

from course.exercises import call, check, describe, expect, random_tensor
from process_memory import memory_now, peak_memory, reset_peak
from weight_files import DTYPES

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

# float32, 42 MB: memory of this size comes from the system and goes back to it at once,
# so that the peak shows it (glibc keeps what is smaller than 34 MB).
LARGE = (2560, 4096)


@check("MEM.2")
def check_MEM_2(attempt):
    tensors = {
        "first": random_tensor(3, 5, dtype=torch.float32),
        "half": random_tensor(2, 7, seed=1).to(torch.bfloat16),
        "one number": torch.tensor(2.5),
        "wide": random_tensor(4, seed=3),
    }
    with TemporaryDirectory() as folder:
        for name, metadata in (("a", None), ("b", {"format": "pt", "made": "here"})):
            path = Path(folder, f"{name}.safetensors")
            save_file(tensors, path, metadata)
            for key, tensor in tensors.items():
                _expect_read(attempt, path, key, tensor)
        _expect_refusals(attempt, path)
        _expect_no_copy(attempt, Path(folder, "large.safetensors"))
    return "Each tensor arrives, none is held twice, and what does not fit is refused."


def _expect_read(attempt, path, key, tensor):
    out = torch.zeros_like(tensor)
    address = out.data_ptr()
    call(attempt, path, key, out)
    expect(out.data_ptr() == address, "out lies in other memory than before")
    if torch.equal(out, tensor):
        return
    expect(out.any(), f"out is still all zeros after {key!r} was read")
    found = f"what arrives for {key!r} are not its bytes in the file"
    came = out.reshape(-1).view(torch.uint8).numpy().tobytes()
    content = path.read_bytes()
    header, entries = _header(content)
    begin = entries[key]["data_offsets"][0]
    for start, seen in {
        begin: "those at its offset, counted from the first byte of the file",
        8 + begin: "those at its offset, counted from behind the first 8 bytes",
        header + begin: "those 8 bytes before them, as if the first 8 were not there",
        8 + header: "those at which the data begin, whatever its offset",
    }.items():
        expect(content[start : start + len(came)] != came, f"{found}, but {seen}")
    expect(False, found)


def _header(content):
    """The length of a file's header, and its entries."""
    length = int.from_bytes(content[:8], "little")
    return length, json.loads(content[8 : 8 + length])


def _expect_refusals(attempt, path):
    content = path.read_bytes()
    _, entries = _header(content)
    cut, last = path.with_name("cut.safetensors"), 0
    for key, entry in entries.items():
        if entry.get("data_offsets", [0, 0])[1] > last:  # the notes have none
            last, name = entry["data_offsets"][1], key
    cut.write_bytes(content[:-1])
    whole = torch.zeros(entries[name]["shape"], dtype=DTYPES[entries[name]["dtype"]])
    of_dtype = "a tensor of another dtype is filled"
    same_width = f"{of_dtype}, whose numbers have as many bytes"
    for place, key, out, message in (
        (path, "first", torch.zeros(5, 3), "a tensor of another shape is filled"),
        (path, "first", torch.zeros(3, 5, dtype=torch.float64), of_dtype),
        (path, "half", torch.zeros(2, 7, dtype=torch.float16), same_width),
        (path, "first", torch.zeros(3, 5, dtype=torch.int32), same_width),
        (cut, name, whole, "a file that ends too early is read as if it were whole"),
    ):
        where = "a file ends too early" if place == cut else message
        try:
            attempt(place, key, out)
        except ValueError:
            continue
        except Exception as problem:
            expect(
                False,
                f"asked for is a ValueError, and there was {type(problem).__name__} "
                f"where {where}",
            )
        expect(False, f"{message}, and no ValueError is raised")


def _expect_no_copy(attempt, path):
    """Refuse a second copy of the numbers, or of half of them."""
    out = torch.ones(LARGE)  # written to, so its own pages are there already
    entry = {"dtype": "F32", "shape": LARGE, "data_offsets": [0, out.nbytes]}
    header = json.dumps({"large": entry}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + out.nbytes)  # a hole, which reads as zeros
    if _peak_can_be_asked():
        base = memory_now().total
        attempt(path, "large", out)  # `call` would first print out
        more = peak_memory() - base
    else:
        more = _traced(attempt, path, "large", out)
    expect(not out.any(), "a tensor of 42 MB, zeros in the file, arrives as another")
    expect(
        more < out.nbytes / 2,
        f"while {out.nbytes / 1e6:.0f} MB were read into out, more than half as much "
        "was held besides: the numbers are in memory twice",
    )


def _peak_can_be_asked():
    """Let the peak begin anew; whether the system does so, as Linux can.

    What was freed is given back before: a copy in memory that the process still holds
    would raise no peak.
    """
    with contextlib.suppress(AttributeError, OSError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)
    reset_peak()
    return sys.platform == "linux" and peak_memory() < memory_now().total + 4_000_000


def _traced(attempt, *arguments):
    """The most bytes that Python and NumPy take for a call; PyTorch's are not seen."""
    tracemalloc.start()
    try:
        attempt(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
