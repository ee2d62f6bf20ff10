"""The checks of the exercises in `additional-experiments.ipynb`: `course.exercises`.

Expected values come from plain loops over Python's own floats.
"""

import math

from course.exercises import as_list, call, check, describe, expect, expect_number

# --- 6.21 The loss of a batch from its parts -----------------------------------------

# Mean losses of parts, and how many messages count in each.
PARTS = [
    ([0.7, 0.5], [4, 4]),
    ([0.2, 1.4], [6, 2]),
    ([0.9, 0.3, 0.6], [1, 5, 3]),
    ([1.25], [7]),
    ([0.4, math.nan, 0.8], [3, 0, 1]),  # the mean over no message
    ([0.1, 2.0, math.nan, 0.7], [16, 1, 0, 9]),
]


def _over_messages(losses, counts):
    total, number = 0.0, 0
    for loss, count in zip(losses, counts, strict=True):
        if count:
            total, number = total + loss * count, number + count
    return total / number


def _slips_of_parts(losses, counts):
    """What plausible mistakes answer, by the sentence about each."""
    counting = [(x, n) for x, n in zip(losses, counts) if n]
    total = sum(x * n for x, n in counting)
    messages = sum(n for _, n in counting)
    return {
        "it is the mean of the parts' means: a part of one message then weighs as much "
        "as one of sixteen": sum(x for x, _ in counting) / len(counting),
        "the means are added up without weights": sum(x for x, _ in counting),
        "it is the sum over the messages: it grows with the batch, and so would the "
        "step": total,
        "the sum is divided by the number of parts, and not of messages": total
        / len(counting),
        "the larger part weighs less": sum(x * (messages - n) for x, n in counting)
        / max(1, sum(messages - n for _, n in counting)),
    }


@check("6.21")
def check_6_21(attempt):
    found = []
    for losses, counts in PARTS:
        given = [*losses], [*counts]
        found.append(expect_number(call(attempt, *given)))
        expect(
            given[1] == counts and len(given[0]) == len(losses),
            "the lists that were passed in have changed",
        )
    right = [_over_messages(*part) for part in PARTS]
    if not all(math.isclose(a, b, abs_tol=1e-5) for a, b in zip(found, right)):
        _judge_parts(found, right)
    return f"{len(PARTS)} batches, with parts of unequal size and empty ones."


def _judge_parts(found, right):
    for message in _slips_of_parts(*PARTS[0]):
        slips = [_slips_of_parts(*part)[message] for part in PARTS]
        pairs = [
            (a, b) for a, b in zip(found, slips) if not math.isnan(a)
        ]  # whoever makes it may stumble over the empty part as well
        alike = all(math.isclose(a, b, abs_tol=1e-5) for a, b in pairs)
        expect(not (pairs and alike), message)
    expect(
        not any(map(math.isnan, found)),
        "the result is NaN where a part has no message that counts: its loss is the "
        "mean over nothing, and zero times NaN is NaN, so leave such a part out",
    )
    place = next(
        i
        for i, (a, b) in enumerate(zip(found, right))
        if not math.isclose(a, b, abs_tol=1e-5)
    )
    losses, counts = PARTS[place]
    expect(
        False,
        f"parts with the losses {losses} and {counts} messages give {found[place]:.4f}",
    )


# --- 6.22 Of what is reported, how much is false -------------------------------------

TABLES = [
    [0.01, 0.02, 0.03, 0.04],
    [0.04, 0.01, 0.03, 0.005, 0.9],
    [0.2],
    [0.03, 0.031, 0.032, 0.5, 0.001, 0.9],
    [0.6, 0.7, 0.8],
    [0.011, 0.02, 0.02, 0.2, 0.047, 0.048],
    [],
]


def stepping_up(p_values):
    n = len(p_values)
    order = sorted(range(n), key=lambda place: p_values[place], reverse=True)
    found, lowest = [0.0] * n, 1.0
    for step, place in enumerate(order):
        lowest = min(lowest, p_values[place] * n / (n - step))
        found[place] = lowest
    return found


def holm_again(p_values):
    n = len(p_values)
    found, highest = [0.0] * n, 0.0
    order = sorted(range(n), key=lambda place: p_values[place])
    for rank, place in enumerate(order):
        highest = max(highest, (n - rank) * p_values[place])
        found[place] = min(1.0, highest)
    return found


def by_rank(p_values):
    """p n / rank alone: a larger p may get a smaller value."""
    n, rank = len(p_values), {}
    order = sorted(range(n), key=lambda place: p_values[place])
    for number, place in enumerate(order, start=1):
        rank[place] = number
    return [min(1.0, p_values[i] * n / rank[i]) for i in range(n)]


def upwards(p_values):
    """The highest so far from the smallest p upwards, as Holm does it."""
    values = by_rank(p_values)
    found, highest = [0.0] * len(values), 0.0
    for place in sorted(range(len(values)), key=lambda i: p_values[i]):
        highest = max(highest, values[place])
        found[place] = highest
    return found


def from_zero(p_values):
    """Ranks that begin at 0, with one added to nothing but the divisor's end."""
    n = len(p_values)
    order = sorted(range(n), key=lambda place: p_values[place])
    found, lowest = [0.0] * n, 1.0
    for rank in reversed(range(n)):
        lowest = min(lowest, p_values[order[rank]] * n / max(rank, 1))
        found[order[rank]] = lowest
    return found


SLIPS = {
    "this is Holm's correction, for the chance of any false find; here their share is "
    "asked for": holm_again,
    "every value is multiplied by their number, which is Bonferroni's correction": (
        lambda p: [min(1.0, len(p) * one) for one in p]
    ),
    "a larger p gets a smaller value than a smaller one: from the largest down, no "
    "value may be above the one before": by_rank,
    "the values are made to rise from the smallest p upwards; the step goes from the "
    "largest down, with the lowest so far": upwards,
    "the smallest p has rank 1, not 0": from_zero,
    "the values stand in the order of the sorted p-values, not of those given": (
        lambda p: sorted(stepping_up(p))
    ),
    "the values are as they were": lambda p: [*p],
}


def _alike(ours, theirs):
    return all(math.isclose(a, b, abs_tol=1e-9) for a, b in zip(ours, theirs))


@check("6.22")
def check_6_22(attempt):
    answers = []
    for table in TABLES:
        given = [*table]
        found = as_list(call(attempt, given))
        found = found.tolist() if hasattr(found, "tolist") else found
        kind = isinstance(found, (list, tuple)) and len(found) == len(table)
        expect(
            kind,
            f"for {len(table)} p-values the result is {describe(found)}: as many "
            "values are asked for",
        )
        expect(given == table, "the list that was passed in has changed")
        answers.append([expect_number(one) for one in found])
    right = [stepping_up(table) for table in TABLES]
    if not all(map(_alike, answers, right)):
        _judge_tables(answers, right)
    return f"{len(TABLES)} tables, unsorted, with ties, and an empty one."


def _judge_tables(answers, right):
    for message, slip in SLIPS.items():
        expect(not all(map(_alike, answers, map(slip, TABLES))), message)
    above = max((max(one, default=0) for one in answers), default=0)
    expect(above <= 1, f"a value is {above:.3g}: a share is 1 at most")
    place = next(i for i, pair in enumerate(zip(answers, right)) if not _alike(*pair))
    expect(
        False,
        f"the p-values {TABLES[place]} give {[round(x, 4) for x in answers[place]]}",
    )
