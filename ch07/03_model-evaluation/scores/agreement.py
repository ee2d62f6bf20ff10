"""How far two judges agree, and what else a judge's verdict follows (chapter 7).

* `pearson`, `spearman`, `kendall`: correlations of two lists of grades;
* `cohen_kappa`: agreement of two lists of labels beyond chance;
* `win_rate`: how often a right reply has a better grade than a wrong one;
* `agreement_interval`: an interval for any of them, drawn by question;
* `word_overlap`: a judge that only counts words, as an opponent;
* `content_and_place`, `flip_rate`: a comparison in both orders, taken apart into what
  the replies decide and what their places do;
* `slope_within`: how a grade changes with length among replies of the same question.

Sources: Kendall, "The Treatment of Ties in Ranking Problems", 1945 (tau-b); Cohen, "A
Coefficient of Agreement for Nominal Scales", 1960; Zheng and others, 2023,
arXiv:2306.05685, and Wang and others, 2023, arXiv:2305.17926, on places. Left
out: weights for labels with an order, more than two judges, p-values.

>>> grades, right = [10, 80, 90, 20], [0, 1, 1, 0]
>>> round(pearson(grades, right), 3), win_rate(grades, right)
(0.99, 1.0)
>>> cohen_kappa([1, 1, 0, 0], [1, 0, 0, 0])
0.5
"""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# --- Agreement -----------------------------------------------------------------------


def pearson(first: ArrayLike, second: ArrayLike) -> float:
    """How nearly the points lie on a straight line: -1 to 1, nan if a list is constant.

    Args:
        first, second: (N,) grades of the same replies by two judges.
    """
    x, y = (np.asarray(grades, dtype=float) for grades in (first, second))
    x, y = x - x.mean(), y - y.mean()
    size = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / size) if size > 0 else float("nan")


def average_ranks(grades: ArrayLike) -> NDArray[np.float64]:
    """The place of each grade, from 1; equal grades share the mean of their places."""
    _, which, count = np.unique(
        np.asarray(grades), return_inverse=True, return_counts=True
    )
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[which]


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Pearson's correlation of the ranks: 1 if both put the replies in one order."""
    return pearson(average_ranks(first), average_ranks(second))


def kendall(first: ArrayLike, second: ArrayLike) -> float:
    """Kendall's tau-b: pairs in the same order minus pairs in opposite order.

    Divided by the geometric mean of the pairs that each list puts in an order at all;
    nan if one of them puts none.
    """
    x, which_x = np.unique(np.asarray(first), return_inverse=True)
    y, which_y = np.unique(np.asarray(second), return_inverse=True)
    table = np.zeros((len(x), len(y)))  # how often each two grades meet
    np.add.at(table, (which_x, which_y), 1)
    below = np.zeros_like(table)  # how many replies both grade lower
    below[1:, 1:] = table.cumsum(0).cumsum(1)[:-1, :-1]
    above = np.zeros_like(table)  # lower in the first, higher in the second
    above[1:, :-1] = table.cumsum(0)[:-1, ::-1].cumsum(1)[:, ::-1][:, 1:]
    same, opposite = (table * below).sum(), (table * above).sum()

    def ordered(counts):
        return (counts.sum() ** 2 - (counts**2).sum()) / 2

    size = np.sqrt(ordered(table.sum(1)) * ordered(table.sum(0)))
    return float((same - opposite) / size) if size > 0 else float("nan")


def cohen_kappa(first: ArrayLike, second: ArrayLike) -> float:
    """Agreement on labels beyond chance: 1 for all alike, 0 for what chance would give.

    Chance is two judges who give their own shares of each label, but blindly. The
    result is nan if both give one and the same label to everything.
    """
    a, b = np.asarray(first), np.asarray(second)
    agreed = (a == b).mean()
    by_chance = sum((a == label).mean() * (b == label).mean() for label in np.unique(a))
    return float((agreed - by_chance) / (1 - by_chance)) if by_chance < 1 else np.nan


def win_rate(grades: ArrayLike, right: ArrayLike) -> float:
    """How often a right reply has a better grade than a wrong one; a tie is a half.

    The area under the ROC curve, by the ranks (Mann and Whitney, 1947): 1 for a perfect
    judge, 0.5 for one who knows nothing, nan if all replies are right, or none is.
    """
    right = np.asarray(right, dtype=bool)
    number, others = right.sum(), (~right).sum()
    if number == 0 or others == 0:
        return float("nan")
    wins = average_ranks(grades)[right].sum() - number * (number + 1) / 2
    return float(wins / (number * others))


def agreement_interval(
    statistic: Callable[..., float],
    *columns: ArrayLike,
    questions: ArrayLike,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Between which bounds a statistic may well lie: a bootstrap interval.

    Questions are drawn, each with all replies to it: replies to one question have much
    in common, and an interval that draws replies would be too narrow.

    Args:
        statistic: a function of the columns, such as `spearman`.
        columns: lists of the same length, one entry for each reply.
        questions: the question of each reply.
        confidence: share of the draws in the interval.
        resamples, seed: how many draws, and where they start.

    Returns:
        `(low, high)`; draws in which the statistic is nan are left out.
    """
    arrays = [np.asarray(column) for column in columns]
    _, which = np.unique(np.asarray(questions), return_inverse=True)
    order, count = np.argsort(which, kind="stable"), np.bincount(which)
    groups = np.split(order, np.cumsum(count)[:-1])
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        chosen = draw.integers(len(groups), size=len(groups))
        rows = np.concatenate([groups[i] for i in chosen])
        found.append(statistic(*[array[rows] for array in arrays]))
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(found, [tail, 1 - tail])
    return float(low), float(high)


# --- A judge that only counts words --------------------------------------------------


def word_overlap(reply: str, answer: str) -> float:
    """How much of reply and right answer is the same words: 0 to 1, the F1 of words."""
    said, wanted = (re.findall(r"\w+", text.lower()) for text in (reply, answer))
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted)) if shared else 0.0


# --- What else a verdict follows -----------------------------------------------------


def content_and_place(
    one_first: ArrayLike, other_first: ArrayLike
) -> tuple[NDArray[Any], NDArray[Any]]:
    """What the replies of each pair decide, and what being first does.

    A margin is how much more the judge likes the reply that is shown first than the
    second, for instance log p(A) - log p(B). Changing places changes the sign of what
    the replies decide, and leaves what the place does.

    Args:
        one_first, other_first: (N,) margins of the same pairs in both orders.

    Returns:
        `(content, place)`, each (N,): positive content is for the one, positive place
        is for whatever stands first. Their sum and difference are the margins.
    """
    a, b = np.asarray(one_first, dtype=float), np.asarray(other_first, dtype=float)
    return (a - b) / 2, (a + b) / 2


def flip_rate(one_first: ArrayLike, other_first: ArrayLike) -> float:
    """Share of the pairs in which the judge chooses the same place in both orders."""
    content, place = content_and_place(one_first, other_first)
    return float((np.abs(place) > np.abs(content)).mean())


def slope_within(lengths: ArrayLike, grades: ArrayLike, questions: ArrayLike) -> float:
    """By how much a grade rises for a length one unit longer, within each question.

    Least squares on the deviations from each question's means, so that questions that
    ask for long replies, and are graded otherwise, make no slope.

    Args:
        lengths, grades: (N,) of replies, best of those with the same verdict by hand.
        questions: (N,) what each reply answers.
    """
    x, y = np.asarray(lengths, dtype=float), np.asarray(grades, dtype=float)
    _, which = np.unique(np.asarray(questions), return_inverse=True)
    count = np.bincount(which)
    x = x - (np.bincount(which, x) / count)[which]
    y = y - (np.bincount(which, y) / count)[which]
    return float(x @ y / (x @ x)) if x @ x > 0 else float("nan")
