"""Every exercise check takes the solution, knows the stub and names mistakes."""

import itertools

import numpy
import pytest
import torch

from course.exercises import verify
from loader_audit_checks import check_2_41, check_2_42


def stub(*arguments):
    return ...


# --- 2.41 -----------------------------------------------------------------------------


def never_targets(num_tokens, max_length, stride, batch_size):
    starts = range(0, num_tokens - max_length, stride)
    starts = starts[: len(starts) // batch_size * batch_size]
    learned = {start + 1 + i for start in starts for i in range(max_length)}
    return set(range(num_tokens)) - learned


def as_a_range(num_tokens, max_length, stride, batch_size):
    """Right for strides up to the window, which is all that is asked."""
    windows = (num_tokens - max_length - 1) // stride + 1
    windows -= windows % batch_size
    end = (windows - 1) * stride + max_length
    return [0, *range(end + 1, num_tokens)]


def never_inputs(num_tokens, max_length, stride, batch_size):
    starts = range(0, num_tokens - max_length, stride)
    starts = starts[: len(starts) // batch_size * batch_size]
    read = {start + i for start in starts for i in range(max_length)}
    return set(range(num_tokens)) - read


def one_too_many(*case):
    places = never_targets(*case)
    after = min(places - {0}, default=case[0])
    return places | {after - 1}


def without_stride(num_tokens, max_length, stride, batch_size):
    return never_targets(num_tokens, max_length, max_length, batch_size)


@pytest.mark.parametrize("attempt", [lambda *case: {0, case[0] - 1}, without_stride])
def test_exercise_2_41_names_no_slip_by_chance(attempt):
    """Known mistake: a small case agreed with a slip that nobody had made."""
    with pytest.raises(AssertionError) as said:
        check_2_41(attempt)
    assert "for 30 tokens, max_length=4, stride=2, batch_size=3, " in str(said.value)
    assert "is not what a loader leaves out" in str(said.value)


def test_exercise_2_41_counts_one_place():
    with pytest.raises(AssertionError, match="3, 1 place is given"):
        check_2_41(lambda *case: {case[0] - 1})


def test_exercise_2_41_never_learned():
    wrong = {
        "inputs": (never_inputs, "that are never an input"),
        "last batch": (
            lambda n, size, stride, batch: never_targets(n, size, stride, 1),
            "of the incomplete last batch are dropped",
        ),
        "place 0": (lambda *case: never_targets(*case) - {0}, "place 0 is never"),
        "one further": (one_too_many, "one place further than the inputs"),
        "learned": (
            lambda *case: set(range(case[0])) - never_targets(*case),
            "these are the places that are learned",
        ),
        "a count": (lambda *case: len(never_targets(*case)), "a set of places"),
        "a guess": (lambda *case: {0, 1}, "is not what a loader leaves out"),
    }
    verify(check_2_41, never_targets, stub, wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda place: place + 0.5, "0.5 is no place in the text"),
        (lambda place: place + float("nan"), "nan is no place in the text"),
        (str, "not a number"),
        (lambda place: (place, 0), "not a number"),
    ],
)
def test_exercise_2_41_refuses_what_is_no_place(change, message):
    """Known mistake: halves were cut down to places, and so were strings."""
    with pytest.raises(AssertionError) as said:
        check_2_41(lambda *case: {change(place) for place in never_targets(*case)})
    assert message in str(said.value)


def as_a_tensor(*case):
    return torch.tensor(sorted(never_targets(*case)))


def as_an_array(*case):
    return numpy.array(as_a_range(*case))


def one_by_one(*case):
    yield from never_targets(*case)


@pytest.mark.parametrize(
    "other",
    [
        as_a_range,
        as_a_tensor,
        as_an_array,
        one_by_one,
        lambda *case: set(as_a_tensor(*case)),
    ],
)
def test_exercise_2_41_takes_other_right_answers(other, capsys):
    check_2_41(other)
    assert "correct" in capsys.readouterr().out


# --- 2.42 -----------------------------------------------------------------------------


def share(items, rank, ranks):
    return items[rank::ranks]


def blocks(items, rank, ranks):
    return items[len(items) * rank // ranks : len(items) * (rank + 1) // ranks]


def by_remainder(items, rank, ranks):
    return tuple(item for i, item in enumerate(items) if i % ranks == rank)


def whole_blocks(items, rank, ranks):
    size = len(items) // ranks
    return items[rank * size : (rank + 1) * size]


def long_blocks(items, rank, ranks):
    size = -(-len(items) // ranks)
    return items[rank * size : (rank + 1) * size]


def overlapping(items, rank, ranks):
    size = -(-len(items) // ranks)
    start = min(rank * size, max(len(items) - size, 0))
    return items[start : start + size]


@pytest.mark.parametrize(
    "attempt",
    [
        lambda items, rank, ranks: items[rank + 1 :: ranks],
        lambda items, rank, ranks: items[rank :: ranks + 1],
        lambda items, rank, ranks: items[rank : rank + 1],
        lambda items, rank, ranks: items[rank * ranks : (rank + 1) * ranks],
    ],
)
def test_exercise_2_42_blames_a_division_only_for_what_is_left_over(attempt):
    """Known mistake: it was blamed for every loss."""
    with pytest.raises(AssertionError) as said:
        check_2_42(attempt)
    assert "in no share" in str(said.value)
    assert "division" not in str(said.value)


def test_exercise_2_42_sharing():
    wrong = {
        "all": (lambda items, rank, ranks: items, "every share holds all, so"),
        "rest lost": (whole_blocks, "what a division leaves over"),
        "last too short": (long_blocks, "the others would wait"),
        "overlap": (overlapping, "in the shares more than once"),
        "a list in a list": (
            lambda items, rank, ranks: [items[rank::ranks]],
            "hold the items themselves",
        ),
        "places": (
            lambda items, rank, ranks: list(range(rank, len(items), ranks)),
            "which is no item",
        ),
        "a number": (lambda *case: len(share(*case)), "where a list is asked for"),
    }
    verify(check_2_42, share, stub, wrong)


def by_numpy(items, rank, ranks):
    return numpy.array_split(items, ranks)[rank]


def by_islice(items, rank, ranks):
    return itertools.islice(items, rank, None, ranks)


def by_generator(items, rank, ranks):
    yield from items[rank::ranks]


@pytest.mark.parametrize(
    "other", [blocks, by_remainder, by_numpy, by_islice, by_generator]
)
def test_exercise_2_42_takes_other_right_answers(other, capsys):
    check_2_42(other)
    assert "correct" in capsys.readouterr().out
