"""The exercise's check takes the solution, knows the stub and names mistakes."""

import numpy
import pytest
import torch

from course.exercises import verify
from multiple_choice_checks import check_7_32


def stub(*arguments):
    return ...


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
