"""Every exercise check takes right answers, knows the stub and names mistakes."""

import math

import numpy as np
import pytest
import torch

from course.exercises import verify
from review_checks import check_6_31, check_6_32


def labels_needed(counts, accuracies, goal):
    if accuracies[0] >= goal:
        return counts[0]
    for i in range(1, len(counts)):
        if accuracies[i] >= goal > accuracies[i - 1]:
            share = (goal - accuracies[i - 1]) / (accuracies[i] - accuracies[i - 1])
            return counts[i - 1] * (counts[i] / counts[i - 1]) ** share
    return None


def with_a_fine_grid(counts, accuracies, goal):
    grid = np.linspace(np.log(counts[0]), np.log(counts[-1]), 1_000_001)
    curve = np.interp(grid, np.log(counts), accuracies)
    reached = np.flatnonzero(curve >= goal - 1e-9)
    return np.float32(np.exp(grid[reached[0]])) if len(reached) else None


def with_torch(counts, accuracies, goal):
    best = torch.tensor(accuracies, dtype=torch.float64).cummax(0).values
    if best[-1] < goal:
        return None
    i = int(torch.searchsorted(best, torch.tensor(goal, dtype=torch.float64)))
    if i == 0:
        return torch.tensor(float(counts[0]))
    share = (goal - accuracies[i - 1]) / (accuracies[i] - accuracies[i - 1])
    low, high = math.log2(counts[i - 1]), math.log2(counts[i])
    return torch.tensor(2 ** (low + share * (high - low)), dtype=torch.float64)


@pytest.mark.parametrize("right", [with_a_fine_grid, with_torch])
def test_exercise_6_31_takes_right_answers(right, capsys):
    check_6_31(right)
    assert "The first crossing" in capsys.readouterr().out


def linear(counts, accuracies, goal):
    if accuracies[0] >= goal:
        return counts[0]
    for i in range(1, len(counts)):
        if accuracies[i] >= goal > accuracies[i - 1]:
            share = (goal - accuracies[i - 1]) / (accuracies[i] - accuracies[i - 1])
            return counts[i - 1] + share * (counts[i] - counts[i - 1])
    return None


def next_point(counts, accuracies, goal):
    return next((n for n, a in zip(counts, accuracies) if a >= goal), None)


def last_crossing(counts, accuracies, goal):
    backwards = [(n, a) for n, a in zip(counts, accuracies)][::-1]
    for (high, above), (low, below) in zip(backwards, backwards[1:]):
        if above >= goal > below:
            return low * (high / low) ** ((goal - below) / (above - below))
    return counts[0] if accuracies[0] >= goal else None


def extrapolated(counts, accuracies, goal):
    return labels_needed(counts, accuracies, goal) or counts[-1]


def test_exercise_6_31():
    wrong = {
        "linear": (linear, "logarithmic"),
        "next": (next_point, "first point at or above"),
        "last": (last_crossing, "for the last time"),
        "never": (extrapolated, "never reaches the goal"),
        "none": (lambda c, a, g: dict(zip(c, a)).get(g + 99), "the result is None"),
        "below": (lambda c, a, g: c[0], "a point below the goal"),
        "constant": (lambda c, a, g: 777.0, "for the first time"),
    }
    verify(check_6_31, labels_needed, lambda *parts: ..., wrong)


def worth_having(seconds, accuracies):
    models = list(zip(seconds, accuracies))
    return [
        i
        for i, (time, accuracy) in enumerate(models)
        if not any(
            t <= time and a >= accuracy and (t, a) != (time, accuracy)
            for t, a in models
        )
    ]


def sorted_by_time(seconds, accuracies):
    order = sorted(range(len(seconds)), key=lambda i: (seconds[i], -accuracies[i]))
    best, kept = None, []
    for i in order:
        now = seconds[i], accuracies[i]
        if best is None or now[1] > best[1] or now == best:
            kept.append(i)
            best = now
    return kept


def with_arrays(seconds, accuracies):
    time, right = np.array(seconds), np.array(accuracies)
    as_good = (time[:, None] <= time) & (right[:, None] >= right)
    better = (time[:, None] < time) | (right[:, None] > right)
    return np.flatnonzero(~(as_good & better).any(axis=0))


@pytest.mark.parametrize("right", [sorted_by_time, with_arrays])
def test_exercise_6_32_takes_right_answers(right, capsys):
    check_6_32(right)
    assert "that none beats in both" in capsys.readouterr().out


def test_exercise_6_32():
    def strict(seconds, accuracies):
        models = list(zip(seconds, accuracies))
        return [
            i
            for i, (time, accuracy) in enumerate(models)
            if not any(t < time and a > accuracy for t, a in models)
        ]

    def twins_gone(seconds, accuracies):
        models = list(zip(seconds, accuracies))
        return [
            i
            for i, (time, accuracy) in enumerate(models)
            if not any(
                j != i and t <= time and a >= accuracy
                for j, (t, a) in enumerate(models)
            )
        ]

    def running_best(seconds, accuracies):
        return [
            i for i, a in enumerate(accuracies) if i == 0 or a > max(accuracies[:i])
        ]

    wrong = {
        "strict": (strict, "need not be better in both"),
        "twins": (twins_gone, "neither is left"),
        "best": (lambda s, a: [int(np.argmax(a))], "only the one"),
        "order": (running_best, "not sorted by time"),
        "all": (lambda s, a: list(range(len(s))), "which are not all"),
        "names": (lambda s, a: ["words"], "a list of places"),
    }
    verify(check_6_32, worth_having, lambda *parts: ..., wrong)
