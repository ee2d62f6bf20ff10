"""Every exercise check takes the solution, knows the stub and names mistakes."""

import math
import statistics

import numpy
import optuna
import pytest

from course.exercises import verify
from hparam_checks import CASES, FINISHED, check_5_51, check_5_52


def stub(*arguments):
    return ...


# --- 5.51 -----------------------------------------------------------------------------


def median_rule(finished, curve):
    place = len(curve) - 1
    others = [other[place] for other in finished if len(other) > place]
    return bool(others) and min(curve) > statistics.median(others)


def by_numpy(finished, curve):
    table = numpy.full((len(finished), max(map(len, finished))), numpy.nan)
    for row, other in zip(table, finished, strict=True):
        row[: len(other)] = other
    if len(curve) > table.shape[1]:
        return False
    return numpy.min(curve) > numpy.nanmedian(table[:, len(curve) - 1])


def by_counting(finished, curve):
    """Without a median: more than half of the others are better, or as good."""
    others = sorted(c[len(curve) - 1] for c in finished if len(c) >= len(curve))
    if not others:
        return False
    low, high = others[(len(others) - 1) // 2], others[len(others) // 2]
    return 2 * min(curve) > low + high


def here(finished, curve):
    return [c[len(curve) - 1] for c in finished if len(c) >= len(curve)]


def guarded(rule):
    """A rule that is asked only where somebody came so far."""
    return lambda a, b: bool(here(a, b)) and rule(a, b)


def test_exercise_5_51_the_median_rule():
    median = statistics.median

    def ends(finished, curve):
        return min(curve) > median(other[-1] for other in finished)

    def bests(finished, curve):
        return min(curve) > median(min(c[: len(curve)]) for c in finished)

    def shorter_too(finished, curve):
        others = [other[: len(curve)][-1] for other in finished]
        return bool(here(finished, curve)) and min(curve) > median(others)

    def sorting(finished, curve):
        found = median_rule(finished, curve)
        curve.sort()
        return found

    wrong = {
        "reversed": (
            guarded(lambda a, b: min(b) < median(here(a, b))),
            "other way round",
        ),
        "the best": (
            guarded(lambda a, b: min(b) > min(here(a, b))),
            "behind the best",
        ),
        "ends": (guarded(ends), "at the end of the other trials"),
        "last": (guarded(lambda a, b: b[-1] > median(here(a, b))), "last loss alone"),
        "bests": (guarded(bests), "the best that the others had"),
        "mean": (
            guarded(lambda a, b: min(b) > statistics.mean(here(a, b))),
            "the mean: one bad",
        ),
        "level": (guarded(lambda a, b: min(b) >= median(here(a, b))), "is level with"),
        "nobody so far": (
            lambda a, b: min(b) > (median(here(a, b)) if here(a, b) else 0),
            "4.25, 4.3] is stopped",
        ),
        "never": (lambda a, b: False, "[5.2] goes on"),
        "shorter ones too": (shorter_too, "did not come so far"),
        "a number": (lambda a, b: 1, "neither True nor False"),
        "changed": (sorting, "have changed"),
    }
    verify(check_5_51, median_rule, stub, wrong)


@pytest.mark.parametrize("other", [by_numpy, by_counting])
def test_exercise_5_51_takes_other_right_answers(other, capsys):
    check_5_51(other)
    assert "correct" in capsys.readouterr().out


@pytest.mark.parametrize(("curve", "stops"), CASES)
def test_the_rule_of_the_exercise_is_optunas(curve, stops):
    study = optuna.create_study(pruner=optuna.pruners.MedianPruner(n_startup_trials=1))
    for other in FINISHED:
        values = dict(enumerate(other, start=1))
        study.add_trial(
            optuna.trial.create_trial(value=other[-1], intermediate_values=values)
        )
    trial = study.ask()
    for n, loss in enumerate(curve, start=1):
        trial.report(loss, n)
    assert trial.should_prune() == stops == median_rule(FINISHED, curve)


# --- 5.52 -----------------------------------------------------------------------------


def seeds_needed(spread, gain):
    return max(2, math.ceil(8 * (spread / gain) ** 2))


def by_trying(spread, gain):
    n = 2
    while 2 * math.hypot(spread / n**0.5, spread / n**0.5) > gain:
        n += 1
    return n


def test_exercise_5_52_how_many_seeds():
    wrong = {
        "one mean": (
            lambda s, g: max(2, math.ceil(4 * (s / g) ** 2)),
            "noise of one of the two",
        ),
        "one error": (
            lambda s, g: max(2, math.ceil(2 * (s / g) ** 2)),
            "one standard error",
        ),
        "down": (lambda s, g: max(2, int(8 * (s / g) ** 2)), "rounded down"),
        "nearest": (lambda s, g: max(2, round(8 * (s / g) ** 2)), "nearest number"),
        "no square": (lambda s, g: max(2, math.ceil(8 * s / g)), "with the square"),
        "added": (
            lambda s, g: max(2, math.ceil(16 * (s / g) ** 2)),
            "errors of the two means are added",
        ),
        "one run": (lambda s, g: math.ceil(8 * (s / g) ** 2), "from a single run"),
        "one more": (lambda s, g: seeds_needed(s, g) + 1, "one more than needed"),
        "a fraction": (lambda s, g: 8 * (s / g) ** 2, "19.9"),
        "always ten": (lambda s, g: 10, "with 10 seeds for each"),
        "far too many": (lambda s, g: 4 * seeds_needed(s, g), "fewer seeds are enough"),
        "none": (lambda s, g: 0, "0.0 is no number"),
        "endless": (lambda s, g: math.inf, "inf is no number"),
    }
    verify(check_5_52, seeds_needed, stub, wrong)


@pytest.mark.parametrize(
    "other", [by_trying, lambda s, g: numpy.maximum(2, numpy.ceil(8 * s**2 / g**2))]
)
def test_exercise_5_52_takes_other_right_answers(other, capsys):
    check_5_52(other)
    assert "correct" in capsys.readouterr().out
