"""Every exercise check takes the solution, knows the stub and names mistakes."""

import math

import numpy as np
import pytest

from course.exercises import answer, verify
from more_experiments_checks import (
    by_rank,
    check_6_21,
    check_6_22,
    from_zero,
    holm_again,
    upwards,
)


def stub(*arguments):
    return ...


# --- 6.21 -----------------------------------------------------------------------------


def loss_of_parts(losses, counts):
    pairs = [(loss, count) for loss, count in zip(losses, counts) if count]
    return sum(loss * count for loss, count in pairs) / sum(counts)


def by_numpy(losses, counts):
    return np.average(np.nan_to_num(losses), weights=counts)


def by_message(losses, counts):
    every = [x for x, n in zip(losses, counts) for _ in range(n)]
    return np.float32(np.mean(every))


@pytest.mark.parametrize("right", [by_numpy, by_message])
def test_other_right_ways_pass(right):
    assert "correct" in answer(check_6_21, right)


def test_exercise_6_21_the_loss_of_a_batch_from_its_parts():
    def counted(losses, counts):
        return [(x, n) for x, n in zip(losses, counts) if n]

    def inverse(losses, counts):
        whole = sum(counts)
        some = counted(losses, counts)
        return sum(x * (whole - n) for x, n in some) / max(
            1, sum(whole - n for _, n in some)
        )

    wrong = {
        "mean of means": (lambda a, b: sum(a) / len(a), "mean of the parts' means"),
        "sum of means": (lambda a, b: float(np.nansum(a)), "without weights"),
        "sum": (
            lambda a, b: sum(x * n for x, n in counted(a, b)),
            "grows with the batch",
        ),
        "by parts": (
            lambda a, b: sum(x * n for x, n in counted(a, b)) / len(counted(a, b)),
            "and not of messages",
        ),
        "inverse": (inverse, "larger part weighs less"),
        "zero times NaN": (
            lambda a, b: sum(x * n for x, n in zip(a, b)) / sum(b),
            "zero times NaN is NaN",
        ),
        "rounded": (
            lambda a, b: round(loss_of_parts(a, b), 1),
            "parts with the losses",
        ),
    }
    verify(check_6_21, loss_of_parts, stub, wrong)
    said = answer(check_6_21, lambda a, b: np.mean([x for x, _ in counted(a, b)]))
    assert "mean of the parts' means" in said
    assert math.isclose(loss_of_parts([0.2, 1.4], [6, 2]), 0.5)


# --- 6.22 -----------------------------------------------------------------------------


def share_corrected(p_values):
    n = len(p_values)
    order = sorted(range(n), key=lambda place: p_values[place])
    found, lowest = [0.0] * n, 1.0
    for rank in range(n, 0, -1):
        place = order[rank - 1]
        lowest = min(lowest, p_values[place] * n / rank)
        found[place] = lowest
    return found


def with_numpy(p_values):
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)[::-1]
    steps = p[order] * len(p) / np.arange(len(p), 0, -1)
    found = np.empty_like(p)
    found[order] = np.minimum(1, np.minimum.accumulate(steps))
    return found


def by_definition(p_values):
    """For each value the smallest n q / (number of p-values up to q), over q >= p."""
    n = len(p_values)
    return tuple(
        min(n * q / sum(r <= q for r in p_values) for q in p_values if q >= p)
        for p in p_values
    )


@pytest.mark.parametrize("right", [with_numpy, by_definition])
def test_other_right_corrections_pass(right):
    assert "correct" in answer(check_6_22, right)


def test_exercise_6_22_of_what_is_reported_how_much_is_false():
    def changing(p_values):
        found = share_corrected(p_values)
        p_values.sort()
        return found

    wrong = {
        "Holm": (holm_again, "Holm's correction"),
        "Bonferroni": (lambda p: [min(1, len(p) * x) for x in p], "Bonferroni's"),
        "by rank alone": (by_rank, "no value may be above the one before"),
        "upwards": (upwards, "from the smallest p upwards"),
        "from zero": (from_zero, "rank 1, not 0"),
        "sorted": (lambda p: sorted(share_corrected(p)), "in the order of the sorted"),
        "nothing": (lambda p: [*p], "as they were"),
        "changing": (changing, "has changed"),
        "one": (lambda p: min(p, default=0), "as many values"),
        "above one": (lambda p: [x * 1.5 for x in share_corrected(p)], "1 at most"),
        "rounded": (
            lambda p: [round(x, 2) for x in share_corrected(p)],
            "the p-values",
        ),
    }
    verify(check_6_22, share_corrected, stub, wrong)


def test_the_correction_is_scipys():
    scipy_stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(0)
    for n in (1, 2, 7, 30):
        p = draw.uniform(size=n)
        assert np.allclose(
            share_corrected(p.tolist()), scipy_stats.false_discovery_control(p)
        )
