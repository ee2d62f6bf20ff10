"""Every exercise check takes the solution, knows the stub and names mistakes."""

import numpy
import pytest
import torch
from evaluation_checks import check_7_31, check_7_32

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


# --- 7.32 -----------------------------------------------------------------------------


def best_by_bytes(logprobs, choices):
    scores = [p / len(text.encode()) for p, text in zip(logprobs, choices)]
    return scores.index(max(scores))


def with_torch(logprobs, choices):
    sizes = torch.tensor([len(text.encode("utf-8")) for text in choices])
    return (torch.tensor(logprobs) / sizes).argmax()


def with_numpy(logprobs, choices):
    return numpy.argmax(
        numpy.divide(logprobs, [len(bytes(x, "utf8")) for x in choices])
    )


def best(way):
    def attempt(logprobs, choices):
        scores = [way(p, text) for p, text in zip(logprobs, choices)]
        return scores.index(max(scores))

    return attempt


def test_exercise_7_32_the_likeliest_for_each_byte():
    wrong = {
        "sums": (best(lambda p, t: p), "compared as they are"),
        "characters": (best(lambda p, t: p / len(t)), "number of characters"),
        "words": (best(lambda p, t: p / len(t.split())), "number of words"),
        "blank": (best(lambda p, t: p / (len(t.encode()) + 1)), "blank before"),
        "least": (best(lambda p, t: -p / len(t.encode())), "least likely"),
        "times": (best(lambda p, t: p * len(t.encode())), "multiplied"),
        "longest": (best(lambda p, t: len(t)), "longest choice"),
        "the choice": (lambda p, c: c[best_by_bytes(p, c)], "not a number"),
        "the score": (
            lambda p, c: max(x / len(t.encode()) for x, t in zip(p, c)),
            "not the place",
        ),
        "the first": (lambda p, c: 0, "not the likeliest"),
    }
    verify(check_7_32, best_by_bytes, stub, wrong)


@pytest.mark.parametrize("other", [with_torch, with_numpy])
def test_exercise_7_32_takes_other_right_answers(other, capsys):
    check_7_32(other)
    assert "correct" in capsys.readouterr().out
