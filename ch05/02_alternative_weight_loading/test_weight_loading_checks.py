"""Every exercise check on files of weights takes the solution and names mistakes."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from course.exercises import answer, verify
from weight_files import DTYPES, read_safetensors_header, read_safetensors_tensor
from weight_loading_checks import check_WL_1, check_WL_2

# --- WL.1 -----------------------------------------------------------------------------


def read_rows(path, name, first, end, shift=0, more=0, start=0, **changes):
    """Right as it stands; `changes` are what somebody takes a size or a place for."""
    about = read_safetensors_header(path)[name]
    begin = changes.get("begin", about["data_offsets"][0])
    row = torch.empty(about["shape"][1:], dtype=DTYPES[about["dtype"]])
    size = changes.get("number", row.element_size()) * row.numel()
    step = changes.get("step", lambda row: size)(row)
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        file.seek(
            changes.get("origin", 8 + length) + begin + (first + shift) * step - start
        )
        raw = bytearray(file.read((end - first + more) * size))
    return torch.frombuffer(raw, dtype=row.dtype).view(-1, *row.shape)


def short_length(path, name, first, end):
    """The header's length from two of its 8 bytes, as for a header that is short."""
    content = Path(path).read_bytes()
    length = content[0] + 256 * content[1]
    about = read_safetensors_header(path)[name]
    dtype, shape = DTYPES[about["dtype"]], about["shape"]
    row = torch.empty(shape[1:], dtype=dtype).nbytes
    begin = 8 + length + about["data_offsets"][0]
    raw = bytearray(content[begin + first * row : begin + end * row])
    return torch.frombuffer(raw, dtype=dtype).view(-1, *shape[1:])


def cut_to_a_short_length(path, name, first, end):
    content = Path(path).read_bytes()
    header = json.loads(content[8 : 8 + content[0] + 256 * content[1]])
    return short_length(path, name, first, end) if header else None


def of_dtypes(*known):
    def attempt(path, name, first, end):
        if read_safetensors_header(path)[name]["dtype"] not in known:
            return torch.zeros(2, 2)
        return read_rows(path, name, first, end)

    return attempt


def with_a_slice(path, name, first, end):
    return read_safetensors_tensor(path, name)[first:end]


def test_the_check_of_rows():
    def flat(*arguments):
        return read_rows(*arguments).flatten()

    def from_the_start(path, name, first, end):
        return read_rows(path, name, 0, end - first)

    def with_the_last(path, name, first, end):
        return read_safetensors_tensor(path, name)[first : end + 1]

    def wrong(**changes):
        return lambda *arguments: read_rows(*arguments, **changes)

    def wide(*arguments):
        return read_rows(*arguments).double()

    verify(
        check_WL_1,
        read_rows,
        lambda path, name, first, end: ...,
        {
            "everything is read": (with_a_slice, "reads more than these rows"),
            "flat": (flat, "is one row of numbers"),
            "from the start": (from_the_start, "from the start of the tensor"),
            "one row more": (with_the_last, "end is the row after the last"),
            "eight bytes early": (wrong(start=8), "8 bytes in front of the header"),
            "from the file's start": (wrong(origin=0), "counted from the start of the"),
            "another tensor": (wrong(begin=0), "data_offsets is forgotten"),
            "from row 1": (wrong(shift=-1), "one place too early"),
            "too late": (wrong(shift=1), "one place too late"),
            "numbers for bytes": (
                wrong(step=torch.Tensor.numel),
                "in numbers, where bytes are needed",
            ),
            "two bytes": (short_length, "in all of its 8 bytes, not only in two"),
            "a header that is cut": (cut_to_a_short_length, "JSONDecodeError"),
            "one dimension": (
                wrong(step=lambda row: row.shape[0] * row.element_size()),
                "a row of three dimensions is",
            ),
            "4 bytes": (wrong(number=4), "as its dtype says, not always 4"),
            "turned": (lambda *a: read_rows(*a).flip(0), "in the opposite order"),
            "others": (
                lambda *a: read_rows(*a) + 1,
                "have other numbers than the file",
            ),
            "another dtype": (wide, "where the file says"),
            "all": (
                lambda path, name, first, end: read_safetensors_tensor(path, name),
                "the whole tensor comes back",
            ),
            "a list": (
                lambda *arguments: read_rows(*arguments).tolist(),
                "where a tensor is asked for",
            ),
        },
    )


def test_every_dtype_is_asked_for():
    for missing in DTYPES:
        attempt = of_dtypes(*(DTYPES.keys() - {missing}))
        assert "has shape (2, 2)" in answer(check_WL_1, attempt), missing


def test_reading_far_more_than_the_rows_is_seen():
    def whole_file(path, name, first, end):
        Path(path).read_bytes()
        return read_rows(path, name, first, end)

    def up_to_the_rows(path, name, first, end):
        return read_rows(path, name, 0, end)[first:]

    for attempt in (whole_file, up_to_the_rows):
        assert "it reads more than these rows" in answer(check_WL_1, attempt)


def test_rows_read_with_the_library_are_right_too(tmp_path):
    """Another way: NumPy's memmap reads what is used, and no more."""
    import numpy as np

    def mapped(path, name, first, end):
        about = read_safetensors_header(path)[name]
        content = np.memmap(path, np.uint8, "r")
        start = 8 + int.from_bytes(content[:8].tobytes(), "little")
        dtype, width = DTYPES[about["dtype"]], 1
        for size in about["shape"][1:]:
            width *= size
        size = width * torch.empty(0, dtype=dtype).element_size()
        begin = start + about["data_offsets"][0]
        raw = bytearray(content[begin + first * size : begin + end * size])
        return torch.frombuffer(raw, dtype=dtype).view(-1, *about["shape"][1:])

    def sliced(path, name, first, end):
        with safe_open(path, "pt") as file:
            return file.get_slice(name)[first:end]

    def cut(path, name, first, end):
        """The library's tensors are maps of the file, of which a cut reads a part."""
        with safe_open(path, "pt") as file:
            return file.get_tensor(name)[first:end]

    def cut_of_all(path, name, first, end):
        return load_file(path)[name][first:end]

    for attempt in (mapped, sliced, cut, cut_of_all):
        assert "correct" in answer(check_WL_1, attempt)


# --- WL.2 -----------------------------------------------------------------------------


pattern = "model-{:05}-of-{:05}.safetensors"


def plan_shards(sizes, limit, first=1, pattern=pattern):
    shards, room = [], 0
    for name, size in sizes.items():
        if size > room or not shards:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    return {
        name: pattern.format(i, len(shards))
        for i, shard in enumerate(shards, start=first)
        for name in shard
    }


def greedy_fill(sizes, limit):
    """The largest first: fewer shards perhaps, but not in order."""
    by_size = dict(sorted(sizes.items(), key=lambda item: -item[1]))
    return plan_shards(by_size, limit)


def test_the_check_of_shards():
    def too_full(sizes, limit):
        return plan_shards(sizes, 2 * limit)

    def one_each(sizes, limit):
        return plan_shards(sizes, 0)

    def without_the_last(sizes, limit):
        plan = plan_shards(sizes, limit)
        plan.pop(list(sizes)[-1])
        return plan

    def emptied(sizes, limit):
        plan = plan_shards(sizes, limit)
        sizes.clear()
        return plan

    def of_itself(sizes, limit):
        plan = plan_shards(sizes, limit)
        return {
            n: f.partition("-of")[0] + "-of-00000.safetensors" for n, f in plan.items()
        }

    def with_a_note(sizes, limit):
        return {**plan_shards(sizes, limit), "__metadata__": "x"}

    def inverted(sizes, limit):
        return {file: name for name, file in plan_shards(sizes, limit).items()}

    def empty_first(sizes, limit):
        plan = plan_shards(sizes, limit)
        if next(iter(sizes.values())) <= limit:
            return plan
        count = 1 + len(set(plan.values()))
        return {
            name: f"model-{int(file[6:11]) + 1:05}-of-{count:05}.safetensors"
            for name, file in plan.items()
        }

    def empty_behind_huge(sizes, limit):
        """What is too large closes its shard at once, also as the last tensor."""
        plan = plan_shards(sizes, limit)
        count = len(set(plan.values())) + (list(sizes.values())[-1] > limit)
        return {
            name: f"{file.partition('-of')[0]}-of-{count:05}.safetensors"
            for name, file in plan.items()
        }

    def a_gap(sizes, limit):
        plan = plan_shards(sizes, limit)
        numbers = {file: int(file[6:11]) for file in plan.values()}
        count = len(numbers)
        return {
            name: pattern.format(numbers[file] + (numbers[file] == count > 1), count)
            for name, file in plan.items()
        }

    def four_zeros(sizes, limit):
        return plan_shards(sizes, limit, 1, "model-0000{}-of-0000{}.safetensors")

    def count_less_one(sizes, limit):
        plan = plan_shards(sizes, limit, 0)
        count = len(set(plan.values())) - 1
        return {
            name: f"{file.partition('-of')[0]}-of-{count:05}.safetensors"
            for name, file in plan.items()
        }

    def no_ending(sizes, limit):
        return plan_shards(sizes, limit, 1, "model-{:05}-of-{:05}")

    def capital(sizes, limit):
        return plan_shards(sizes, limit, 1, "Model-{:05}-of-{:05}.safetensors")

    def from_two(sizes, limit):
        return plan_shards(sizes, limit, 2)

    verify(
        check_WL_2,
        plan_shards,
        lambda sizes, limit: ...,
        {
            "from 0": (lambda s, n: plan_shards(s, n, 0), "are counted from 0"),
            "a key too many": (with_a_note, "no tensor has this name"),
            "files to names": (inverted, "the keys are to be names of tensors"),
            "an empty first one": (empty_first, "an empty shard was closed"),
            "too full": (too_full, "bytes where 7 are allowed"),
            "a shard each": (one_each, "closed only when the next tensor does not fit"),
            "one is lost": (without_the_last, "is in no shard"),
            "emptied": (emptied, "is changed by the call"),
            "an empty last one": (
                empty_behind_huge,
                "the count says 3, and 2 files hold a tensor: an empty shard",
            ),
            "a gap": (a_gap, "have the numbers [1, 2, 4]"),
            "from 2": (from_two, "have the numbers [2, 3, 4]"),
            "zeros by hand": (
                four_zeros,
                "['model-00001-of-000012.safetensors']: the form is",
            ),
            "no ending": (no_ending, "['model-00001-of-00003']: the form"),
            "a capital": (capital, "['Model-00001-of-00003.safetensors']: the form"),
            "no count": (of_itself, "the count says 0, and 3 files hold a tensor"),
            "largest first": (greedy_fill, "go through them as they come"),
            "a list": (lambda s, n: list(plan_shards(s, n)), "a dictionary is asked"),
            "numbers": (
                lambda s, n: dict.fromkeys(s, 1),
                "are to be the names of files",
            ),
        },
    )

    assert "are counted from 0" in answer(check_WL_2, count_less_one)


def test_a_plan_is_json():
    assert json.loads(json.dumps(plan_shards({"a": 1}, 1))) == {
        "a": "model-00001-of-00001.safetensors"
    }
