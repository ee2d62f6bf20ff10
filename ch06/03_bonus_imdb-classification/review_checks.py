"""The checks of the exercises in `film-reviews.ipynb`; see `course.exercises`.

Expected values follow from the definitions, by plain loops.
"""

import math

from course.exercises import as_list, call, check, expect, expect_number

# --- 6.31 How many labels for a goal --------------------------------------------------

_CURVES = (
    ((125, 500, 2000), (60.0, 70.0, 74.0), 65.0),
    ((125, 250, 500, 1000), (61.0, 66.0, 64.0, 70.0), 65.0),
    ((100, 200, 400, 800), (50.0, 58.5, 57.0, 58.0), 58.2),
    ((100, 1000), (70.0, 80.0), 70.0),
    ((100, 1000), (70.0, 80.0), 61.5),
    ((100, 1000), (70.0, 80.0), 80.5),
    ((64, 256, 1024), (55.0, 55.0, 65.0), 60.0),
)


@check("6.31")
def check_6_31(attempt):
    for counts, accuracies, goal in _CURVES:
        found = call(attempt, list(counts), list(accuracies), goal)
        wanted = _needed(counts, accuracies, goal)
        words = f"for counts {list(counts)}, accuracies {list(accuracies)}, goal {goal}"
        if wanted is None:
            expect(
                found is None,
                f"{words}: the curve never reaches the goal, so nobody knows how many "
                "labels it takes; return None",
            )
            continue
        expect(
            found is not None,
            f"{words}: the result is None, and the curve reaches the goal",
        )
        number = expect_number(found)
        if math.isclose(number, wanted, rel_tol=1e-4):
            continue
        for message, slip in NEEDED_SLIPS.items():
            other = slip(counts, accuracies, goal)
            expect(
                other is None or not math.isclose(number, other, rel_tol=1e-4),
                f"{words}: {message}",
            )
        expect(
            False,
            f"{words} the result is {number:.1f}, at which the curve is not "
            "at the goal for the first time",
        )
    return f"The first crossing on a logarithmic axis, on {len(_CURVES)} curves."


def _between(low, high, share, logarithmic=True):
    if not logarithmic:
        return low + share * (high - low)
    return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))


def _crossings(counts, accuracies, goal, logarithmic=True):
    """Where the curve comes up to the goal, each time."""
    found = [float(counts[0])] if accuracies[0] >= goal else []
    points = list(zip(counts, accuracies))
    for (low, below), (high, above) in zip(points, points[1:]):
        if below < goal <= above:
            share = (goal - below) / (above - below)
            found.append(_between(low, high, share, logarithmic))
    return found


def _needed(counts, accuracies, goal):
    return next(iter(_crossings(counts, accuracies, goal)), None)


def _linear(counts, accuracies, goal):
    return next(iter(_crossings(counts, accuracies, goal, False)), None)


def _last(counts, accuracies, goal):
    return next(reversed(_crossings(counts, accuracies, goal)), None)


def _next_point(counts, accuracies, goal):
    return next((n for n, a in zip(counts, accuracies) if a >= goal), None)


def _point_before(counts, accuracies, goal):
    reached = [n for n, a in zip(counts, accuracies) if a < goal]
    return reached[0] if reached else None


NEEDED_SLIPS = {
    "between two points this goes in a straight line over the number of labels; the "
    "axis of the curve is logarithmic": _linear,
    "this is the first point at or above the goal; the curve crosses it earlier, "
    "between two points": _next_point,
    "this is where the curve reaches the goal for the last time, and fewer labels were "
    "enough before": _last,
    "this is a point below the goal": _point_before,
}

# --- 6.32 What is worth its seconds ---------------------------------------------------

_MODELS = (
    ((1.0, 5.0, 20.0, 60.0), (70.0, 68.0, 75.0, 74.0)),
    ((3.0, 1.0, 2.0), (72.5, 70.0, 75.0)),
    ((2.0, 2.0, 1.0), (70.0, 72.0, 60.0)),
    ((1.0, 2.0, 3.0), (70.0, 70.0, 70.0)),
    ((4.0, 4.0, 9.0), (71.0, 71.0, 70.0)),
    ((7.0,), (51.0,)),
    ((0.0, 8.0, 3.0, 5.0), (58.0, 81.0, 79.0, 79.0)),
)


@check("6.32")
def check_6_32(attempt):
    for seconds, accuracies in _MODELS:
        found = as_list(call(attempt, list(seconds), list(accuracies)))
        words = f"for seconds {list(seconds)} and accuracies {list(accuracies)}"
        try:
            places = [int(place) for place in found]
        except (TypeError, ValueError):
            raise AssertionError(
                f"{words}: the result is {found!r} where a list of places is asked for"
            ) from None
        wanted = _front(seconds, accuracies)
        if sorted(places) == wanted:
            continue
        for message, slip in FRONT_SLIPS.items():
            expect(sorted(places) != slip(seconds, accuracies), f"{words}: {message}")
        expect(
            False,
            f"{words} the places are {places}, which are not all those that no "
            "other model beats, and only those",
        )
    return f"The models that none beats in both, in {len(_MODELS)} cases, ties too."


def _beaten(seconds, accuracies, place, strict=False):
    """Whether another model is at least as good in both, and better in one or both."""
    mine = seconds[place], accuracies[place]
    for time, accuracy in zip(seconds, accuracies):
        as_good = time <= mine[0] and accuracy >= mine[1]
        better = (time < mine[0]) + (accuracy > mine[1])
        if as_good and better >= (2 if strict else 1):
            return True
    return False


def _front(seconds, accuracies, strict=False):
    places = range(len(seconds))
    return [
        place for place in places if not _beaten(seconds, accuracies, place, strict)
    ]


def _strict(seconds, accuracies):
    return _front(seconds, accuracies, strict=True)


def _without_ties(seconds, accuracies):
    """As with `<=` and `>=` alone, by which equal models beat each other."""
    pairs = list(zip(seconds, accuracies))
    return [
        i
        for i, (time, accuracy) in enumerate(pairs)
        if not any(
            j != i and t <= time and a >= accuracy for j, (t, a) in enumerate(pairs)
        )
    ]


def _best_alone(seconds, accuracies):
    return [max(range(len(seconds)), key=lambda i: accuracies[i])]


def _rising_in_order(seconds, accuracies):
    """Those better than all before them, in the order in which they are given."""
    found = []
    for place, accuracy in enumerate(accuracies):
        if all(accuracy > accuracies[before] for before in range(place)):
            found.append(place)
    return found


FRONT_SLIPS = {
    "a model stays though another is as fast and more often right, or faster and as "
    "often right: it need not be better in both": _strict,
    "two equal models beat each other here, and then neither is left": _without_ties,
    "this is only the one that is right most often; a faster one may still be worth "
    "having": _best_alone,
    "each model is compared with those that stand before it in the list; they are not "
    "sorted by time": _rising_in_order,
}
