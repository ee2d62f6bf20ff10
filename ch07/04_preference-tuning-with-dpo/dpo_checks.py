"""The checks of the exercises in `dpo-from-scratch.ipynb`; see `course.exercises`.

Expected values come from plain loops over Python's own floats.
"""

import math
import random

import torch

from course.exercises import as_list, call, check, expect, expect_number

# --- 7.41 The answer alone ------------------------------------------------------------

T, V = 9, 12
# Where the answer begins and ends; the last one has no padding, one has a single token.
PLACES = [(3, 6), (1, 4), (5, 9), (4, 5)]


def _table(seed):
    """Log-probabilities, (T, V), and ids among which the same id stands often."""
    draw = random.Random(seed)
    rows = []
    for _ in range(T):
        weights = [math.exp(draw.gauss(0, 2)) for _ in range(V)]
        rows.append([math.log(weight / sum(weights)) for weight in weights])
    return rows, [draw.randrange(4) for _ in range(T)]


def _total(rows, ids, places, shift=-1):
    return sum(rows[place + shift][ids[place]] for place in places)


def _slips_of_sums(rows, ids, start, stop):
    """What plausible mistakes answer, by the sentence about each."""
    right = _total(rows, ids, range(start, stop))
    return {
        "a token is looked up in its own row, which speaks of the next one": _total(
            rows, ids, range(start, stop), 0
        ),
        "the first token of the answer is missing": _total(
            rows, ids, range(start + 1, stop)
        ),
        "the end token is missing": _total(rows, ids, range(start, stop - 1)),
        "one token of the padding, or the last of the row, counts too": _total(
            rows, ids, range(start, min(stop + 1, T))
        ),
        "the question counts, too": _total(rows, ids, range(1, stop)),
        "the padding counts, too": _total(rows, ids, range(start, T)),
        "it is the mean over the answer's tokens, not their sum": right
        / (stop - start),
        "it is minus the log-probability": -right,
        "it is a probability, not its logarithm": math.exp(right),
    }


@check("7.41")
def check_7_41(attempt):
    tried = []
    for seed, (start, stop) in enumerate(PLACES):
        rows, ids = _table(seed)
        given = torch.tensor(rows).double(), torch.tensor(ids), start, stop
        found = expect_number(call(attempt, *given))
        tried.append((found, (rows, ids, start, stop)))

    def fits(found, expected):
        return math.isclose(found, expected, rel_tol=1e-5, abs_tol=1e-5)

    wrong = [
        (found, case)
        for found, case in tried
        if not fits(found, _total(*case[:2], range(*case[2:])))
    ]
    for message in _slips_of_sums(*tried[0][1]) if wrong else ():
        alike = all(fits(x, _slips_of_sums(*case)[message]) for x, case in tried)
        expect(not alike, message)
    if wrong:
        found, (rows, ids, start, stop) = wrong[0]
        expect(
            False,
            f"for start={start} and stop={stop} of {T} tokens the result is "
            f"{found:.4f}, not the sum over the answer's {stop - start} tokens",
        )
    return f"{len(PLACES)} texts, one without padding, one with a single token."


# --- 7.42 The best policy -------------------------------------------------------------

CASES = [
    ([0.5, 0.3, 0.2], [0.0, 1.0, 2.0], 1.0),
    ([0.1, 0.9], [1.0, -1.0], 0.5),
    ([0.7, 0.1, 0.1, 0.1], [-2.0, 0.0, 0.0, 1.0], 3.0),
    ([0.25, 0.25, 0.5], [3.0, 3.0, 3.0], 0.1),
]
EXTREME = ([0.2, 0.5, 0.3], [2.0, 1.0, -40.0], 0.001)


def _softmax(logarithms):
    top = max(logarithms)
    weights = [math.exp(value - top) for value in logarithms]
    return [weight / sum(weights) for weight in weights]


def _slips_of_policies(reference, points, beta):
    log = [math.log(p) for p in reference]
    return {
        "the points are multiplied by beta; a large beta must keep the policy near the "
        "reference": _softmax([a + beta * r for a, r in zip(log, points)]),
        "the reference is missing": _softmax([r / beta for r in points]),
        "beta is missing": _softmax([a + r for a, r in zip(log, points)]),
        "answers with many points become unlikely: the sign of the points is turned": (
            _softmax([a - r / beta for a, r in zip(log, points)])
        ),
        "the reference's probability is used where its logarithm belongs": _softmax(
            [p + r / beta for p, r in zip(reference, points)]
        ),
    }


@check("7.42")
def check_7_42(attempt):
    tried = []
    for reference, points, beta in CASES:
        given = list(reference), list(points), beta
        found = [float(p) for p in as_list(call(attempt, *given))]
        expect(
            given == (reference, points, beta),
            "the lists that were passed in have changed",
        )
        expect(
            len(found) == len(reference),
            f"{len(reference)} answers, but {len(found)} probabilities",
        )
        tried.append((found, (reference, points, beta)))

    def fits(found, expected):
        return all(
            math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-6)
            for a, b in zip(found, expected)
        )

    def right(reference, points, beta):
        log = [math.log(p) for p in reference]
        return _softmax([a + r / beta for a, r in zip(log, points)])

    wrong = [(found, case) for found, case in tried if not fits(found, right(*case))]
    if wrong:
        for message in _slips_of_policies(*CASES[0]):
            alike = all(
                fits(x, _slips_of_policies(*case)[message]) for x, case in tried
            )
            expect(not alike, message)
        found, case = wrong[0]
        expect(
            math.isclose(sum(found), 1, rel_tol=1e-4),
            f"the probabilities add up to {sum(found):.4f}: divide by their sum",
        )
        expect(False, f"for {case} the result is {[round(p, 4) for p in found]}")
    found = [float(p) for p in as_list(call(attempt, *map(_copied, EXTREME)))]
    expect(
        fits(found, [1.0, 0.0, 0.0]),
        f"for a beta of {EXTREME[2]} it gives {found}, where the answer with the most "
        "points takes all",
    )
    return f"{len(CASES) + 1} cases, one with equal points, one with a tiny beta."


def _copied(value):
    return list(value) if isinstance(value, list) else value
