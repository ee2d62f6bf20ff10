"""The checks of the exercises in `hparam-tuning.ipynb`; see `course.exercises`.

Expected values come from plain loops over Python's own floats.
"""

import math

from course.exercises import call, check, expect, expect_number

# --- 5.51 The median rule -------------------------------------------------------------

FINISHED = [
    [5.0, 4.8, 4.1],
    [4.9, 4.4, 4.3],
    [5.3, 4.6],
    [4.7, 4.5, 4.2],
    [5.1],
]
# A running trial's losses, and whether the rule stops it.
CASES = [
    ([5.2], True),  # behind the median of five, 5.0
    ([4.9], False),
    ([5.0], False),  # level with it
    ([4.5, 4.9], False),  # was better before: its best counts
    ([4.9, 4.7], True),
    ([5.6, 4.54], False),  # median of four: between 4.5 and 4.6
    ([5.6, 4.56], True),
    ([5.4, 4.6, 4.15], False),
    ([5.4, 4.6, 4.25], True),
    ([5.4, 4.6, 4.25, 4.3], False),  # no other came so far
    ([4.8], False),
]


def _median(values):
    values = sorted(values)
    middle = len(values) // 2
    if len(values) % 2:
        return values[middle]
    return (values[middle - 1] + values[middle]) / 2


def _slips(finished, curve):
    """What plausible mistakes answer, by the sentence about each."""
    at = len(curve) - 1
    here = [other[at] for other in finished if len(other) > at]
    if not here:
        return {}
    best, last = min(curve), curve[-1]
    return {
        "the other way round: a loss above the median is the worse one": best
        < _median(here),
        "it stops whoever is behind the best; half of the trials may be worse than the "
        "median, and only these are stopped": best > min(here),
        "it compares with the losses at the end of the other trials, which had more "
        "updates": best > _median([other[-1] for other in finished]),
        "it looks at the last loss alone: a trial is judged by its best so far": last
        > _median(here),
        "it counts trials that did not come so far, each with its last loss": best
        > _median([other[: at + 1][-1] for other in finished]),
        "it compares with the best that the others had so far, not with their losses "
        "at this measurement": best
        > _median([min(other[: at + 1]) for other in finished]),
        "it compares with the mean: one bad trial moves it": best
        > sum(here) / len(here),
        "it stops a trial that is level with the median": best >= _median(here),
    }


@check("5.51")
def check_5_51(attempt):
    # Here the mean is far from the median, and one loss rises.
    finished = [[9.0], *FINISHED[1:], [4.3, 4.9, 4.5]]
    answers = []
    for others in (FINISHED, finished):
        for curve, _ in CASES:
            given = [list(other) for other in others], list(curve)
            found = call(attempt, *given)
            expect(
                isinstance(found, bool) or type(found).__name__ in ("bool", "bool_"),
                f"the result is {found!r:.40}, neither True nor False",
            )
            expect(
                given == ([list(other) for other in others], list(curve)),
                "the lists that were passed in have changed: they are the study's",
            )
            answers.append((others, curve, bool(found)))
    _judge_rule(answers)
    return f"{len(answers)} trials, some of them level, better before, or alone."


def _right(finished, curve):
    at = len(curve) - 1
    here = [other[at] for other in finished if len(other) > at]
    return bool(here) and min(curve) > _median(here)


def _judge_rule(answers):
    wrong = [
        (others, curve, found)
        for others, curve, found in answers
        if found != _right(others, curve)
    ]
    if not wrong:
        return
    for message in _slips(*answers[0][:2]):
        alike = all(
            found == _slips(others, curve).get(message, False)
            for others, curve, found in answers
        )
        expect(not alike, message)
    others, curve, found = wrong[0]
    word = "is stopped" if found else "goes on"
    lengths = [len(other) for other in others]
    expect(
        False,
        f"a trial with the losses {curve} {word}, where the others have so many "
        f"losses: {lengths}",
    )


# --- 5.52 How many seeds --------------------------------------------------------------


@check("5.52")
def check_5_52(attempt):
    cases = [(0.03, 0.019), (0.03, 0.0052), (0.5, 0.11), (0.027, 0.3), (2.0, 1.5)]
    answers = []
    for spread, gain in cases:
        found = expect_number(call(attempt, spread, gain))
        expect(
            found % 1 == 0 and found > 0,
            f"{found} is no number of runs: only whole ones can be made",
        )
        answers.append(int(found))
    _judge_seeds(answers, cases)
    return f"{len(cases)} pairs of a spread and a gain."


def _judge_seeds(answers, cases):
    exact = [8 * (spread / gain) ** 2 for spread, gain in cases]
    right = [max(2, math.ceil(n)) for n in exact]
    if answers == right:
        return

    def with_factor(factor):
        return [
            max(2, math.ceil(factor * (spread / gain) ** 2)) for spread, gain in cases
        ]

    slips = {
        "the noise of one of the two means is missing: both settings are measured": [
            with_factor(4)
        ],
        "one standard error is asked for where it should be two": [with_factor(2)],
        "the result is rounded down, so that the error is still too large": [
            [max(2, math.floor(n)) for n in exact]
        ],
        "the result is rounded to the nearest number, which may be too few": [
            [max(2, round(n)) for n in exact]
        ],
        "the error falls with the root of the number of seeds, so that number grows "
        "with the square": [
            [max(2, math.ceil(factor * s / g)) for s, g in cases]
            for factor in (2, 8, 4, 8**0.5)
        ],
        "the errors of the two means are added; they are independent, so their squares "
        "are": [with_factor(16)],
        "from a single run no spread can be measured: at least two seeds": [
            [max(1, math.ceil(n)) for n in exact]
        ],
        "one more than needed": [[n + 1 for n in right]],
    }
    for message, outcomes in slips.items():
        expect(answers not in outcomes, message)
    number = next(i for i, pair in enumerate(zip(answers, right)) if pair[0] != pair[1])
    (spread, gain), found = cases[number], answers[number]
    error = 2 * math.sqrt(2) * spread / math.sqrt(max(found, 1))
    more = ": fewer seeds are enough" if found > right[number] else ""
    expect(
        False,
        f"with {found} seeds for each of two settings with the spread {spread}, two "
        f"standard errors of the difference are {error:.4f}, and the gain is {gain}"
        f"{more}",
    )
