"""Every exercise check takes right answers, knows the stub and names mistakes."""

import math

import numpy as np
import pytest
import torch

from course.exercises import verify
from near_duplicates import jaccard
from pretraining_checks import check_5_31, check_5_32


def containment(one, other):
    smaller = min(len(one), len(other))
    both = len(np.intersect1d(one, other))
    return both / smaller if smaller else 0


def with_sets(one, other):
    one, other = set(one.tolist()), set(other.tolist())
    return len(one & other) / max(min(len(one), len(other)), 1)


def with_isin(one, other):
    small, large = sorted((one, other), key=len)
    return np.float32(np.isin(small, large).mean()) if len(small) else np.float32(0)


def from_jaccard(one, other):
    j = jaccard(one, other)
    both = j * (len(one) + len(other)) / (1 + j)
    return torch.tensor(both / max(min(len(one), len(other)), 1))


@pytest.mark.parametrize("right", [with_sets, with_isin, from_jaccard])
def test_exercise_5_31_takes_right_answers(right, capsys):
    check_5_31(right)
    assert "The share of the smaller set" in capsys.readouterr().out


def test_exercise_5_31():
    wrong = {
        "jaccard": (jaccard, "Jaccard"),
        "first": (lambda a, b: np.isin(a, b).mean() if len(a) else 0, "of the first"),
        "larger": (
            lambda a, b: len(np.intersect1d(a, b)) / max(len(a), len(b)),
            "of the larger",
        ),
        "count": (lambda a, b: len(np.intersect1d(a, b)), "how many"),
        "constant": (lambda a, b: 0.123, "is not that share"),
        "empty": (
            lambda a, b: containment(a, b) if len(b) else 1,
            "as of an empty set",
        ),
    }
    verify(check_5_31, containment, lambda *sets: ..., wrong)


def bits_per_byte(nats_per_token, num_tokens, text):
    return nats_per_token * num_tokens / math.log(2) / len(text.encode("utf-8"))


def with_torch(nats_per_token, num_tokens, text):
    total = torch.tensor(nats_per_token) * num_tokens
    return total * torch.tensor(math.e).log2() / len(bytes(text, "utf-8"))


def test_exercise_5_32_takes_right_answers(capsys):
    check_5_32(with_torch)
    assert "Bits for each byte" in capsys.readouterr().out


def test_exercise_5_32():
    wrong = {
        "characters": (lambda n, c, t: n * c / math.log(2) / len(t), "each character"),
        "nats": (lambda n, c, t: n * c / len(t.encode()), "nats for each byte"),
        "token": (lambda n, c, t: n / math.log(2), "each token"),
        "times": (lambda n, c, t: n * c * math.log(2) / len(t.encode()), "multiplied"),
        "total": (lambda n, c, t: n * c / math.log(2), "whole text"),
        "one": (lambda n, c, t: n / math.log(2) / len(t.encode()), "single token"),
        "none": (lambda n, c, t: 1.0, "not bits for each byte"),
    }
    verify(check_5_32, bits_per_byte, lambda *parts: ..., wrong)
