"""Two classifiers compared on the same messages, by family (chapter 6, section 6.8).

Support: nothing here is taught beyond what section 6.8 says. `bootstrap_interval` of
`gpt_class_finetune` is for one classifier, or for differences of runs that belong
together; here are the interval of a difference whose runs are drawn on either side,
and a p-value for which whole families change sides.

>>> ours, theirs = [[1, 1, 1, 0]], [[1, 0, 0, 0]]  # one run each, four messages
>>> families = ["a", "a", "b", "b"]
>>> paired_interval(ours, theirs, families)
(0.5, 0.5)
>>> round(p_value(np.subtract(ours, theirs), families), 1)
0.5

Shapes: N messages, S and R runs of two classifiers, F families.
"""

from typing import Any

import numpy as np

Runs = Any  # what numpy can read: (N,), or one row for each run, (S, N)


def sums_of(runs: Runs, families: Any) -> tuple[np.ndarray, np.ndarray]:
    """Sums over the messages of each family, (S, F), and their sizes (F,)."""
    _, family = np.unique(np.asarray(families), return_inverse=True)
    sums = [np.bincount(family, weights=row) for row in np.atleast_2d(runs)]
    return np.array(sums), np.bincount(family)


def paired_interval(
    ours: Runs, theirs: Runs, families: Any, resamples: int = 2000
) -> tuple[float, float]:
    """`bootstrap_interval` of a difference for which the runs of both are drawn.

    Args:
        ours, theirs: which messages are right, (S, N) and (R, N), the same messages.
        families: (N,) names.
        resamples: how many draws.

    Returns:
        `(low, high)`: the middle 95 % of the differences of both means.
    """
    sides = [sums_of(runs, families)[0] for runs in (ours, theirs)]
    size = sums_of(ours, families)[1]
    draw, found = np.random.default_rng(0), []
    for _ in range(resamples):
        drawn = draw.integers(len(size), size=len(size))
        runs = [draw.integers(len(sums), size=len(sums)) for sums in sides]
        means = [sums[rows].mean(axis=0)[drawn] for sums, rows in zip(sides, runs)]
        found.append((means[0] - means[1]).sum() / size[drawn].sum())
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def p_value(paired: Runs, families: Any, flips: int = 20000) -> float:
    """How often chance alone makes so large a mean difference, either way.

    If two methods were alike, each family might as well have favoured the other one:
    its sign is flipped by a coin, for a whole family at once, because relatives are
    right or wrong together.

    Args:
        paired: differences of two classifiers on each message, (N,).
        families: (N,) names.
        flips: how many rounds of coins.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 15.
    """
    sums = sums_of(paired, families)[0][0]  # (F,)
    signs = np.random.default_rng(0).choice([-1, 1], size=(flips, len(sums)))
    as_far = np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9
    return float((1 + as_far.sum()) / (1 + flips))  # the signs as they are count as one
