"""The exercise's check takes the solution, knows the stub and names mistakes."""

import numpy
import pytest
from agreement_checks import check_7_31

from course.exercises import verify


def stub(*arguments):
    return ...


# --- 7.31 -----------------------------------------------------------------------------


def both_orders(one_first, other_first):
    found = []
    for first, second in zip(one_first, other_first):
        if first == second:
            found.append("tie")
        else:
            found.append("one" if first == "A" else "other")
    return found


def by_table(one_first, other_first):
    names = {"AB": "one", "BA": "other"}
    return (names.get(a + b, "tie") for a, b in zip(one_first, other_first))


def by_numpy(one_first, other_first):
    first, second = numpy.array(one_first, str), numpy.array(other_first, str)
    chosen = numpy.where(first == "A", "one", "other")
    return numpy.where(first == second, "tie", chosen)


def test_exercise_7_31_both_orders():
    wrong = {
        "letters": (
            lambda a, b: [
                "tie" if x != y else "one" if x == "A" else "other"
                for x, y in zip(a, b)
            ],
            "compared as they are",
        ),
        "first only": (
            lambda a, b: ["one" if x == "A" else "other" for x in a],
            "second order is never",
        ),
        "second only": (
            lambda a, b: ["one" if y == "B" else "other" for y in b],
            "first order is never",
        ),
        "exchanged": (
            lambda a, b: [
                {"one": "other", "other": "one"}.get(v, v) for v in both_orders(a, b)
            ],
            "the other are exchanged",
        ),
        "always a tie": (lambda a, b: ["tie"] * len(a), "not 'tie'"),
        "letters back": (lambda a, b: list(a), "is none of one"),
        "one missing": (lambda a, b: both_orders(a, b)[1:], "pairs there are"),
        "by place": (
            lambda a, b: [v if i else "tie" for i, v in enumerate(both_orders(a, b))],
            "another place in the list",
        ),
    }
    verify(check_7_31, both_orders, stub, wrong)


@pytest.mark.parametrize("other", [by_table, by_numpy])
def test_exercise_7_31_takes_other_right_answers(other, capsys):
    check_7_31(other)
    assert "correct" in capsys.readouterr().out
