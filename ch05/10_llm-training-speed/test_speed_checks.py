"""The check takes right answers however they are written, and names the wrong ones."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from course.exercises import answer, verify
from speed_checks import check_5_101


def stub(*_arguments):
    return ...


def right(logits, targets):
    counts = targets != -100
    log_probabilities = torch.log_softmax(logits, dim=-1)
    excess = log_probabilities.exp()
    rows = torch.nonzero(counts).flatten()
    total = -log_probabilities[rows, targets[rows]].sum()
    excess[rows, targets[rows]] -= 1
    return total, excess * counts[:, None]


def by_autograd(logits, targets):
    logits = logits.requires_grad_()
    total = F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
    return total.item(), torch.autograd.grad(total, logits)[0]


def by_loops(logits, targets):
    total, gradient = 0.0, np.zeros(tuple(logits.shape))
    for i, (row, target) in enumerate(zip(logits.double().numpy(), targets.tolist())):
        if target == -100:
            continue
        shifted = np.exp(row - row.max())
        gradient[i] = shifted / shifted.sum()
        total -= np.log(gradient[i][target])
        gradient[i][target] -= 1
    return np.float64(total), gradient


def mean(logits, targets):
    total, gradient = right(logits, targets)
    return total / max(1, int((targets != -100).sum())), gradient


def without_one(logits, targets):
    counts = (targets != -100)[:, None]
    return right(logits, targets)[0], torch.softmax(logits, -1) * counts


def wrapped(logits, targets):
    log_probabilities = torch.log_softmax(logits, dim=-1)
    excess = log_probabilities.exp()
    rows, columns = torch.arange(len(targets)), targets % logits.shape[1]
    total = -log_probabilities[rows, columns].sum()
    excess[rows, columns] -= 1
    return total, excess


def not_zeroed(logits, targets):
    total, _ = right(logits, targets)
    _, gradient = wrapped(logits, targets)
    return total, gradient


def negative(logits, targets):
    total, gradient = right(logits, targets)
    return total, -gradient


def of_the_mean(logits, targets):
    total, gradient = right(logits, targets)
    return total, gradient / max(1, int((targets != -100).sum()))


def by_exp(logits, targets):
    counts = targets != -100
    grown = logits.exp()
    probabilities = grown / grown.sum(dim=-1, keepdim=True)
    rows = torch.nonzero(counts).flatten()
    total = -probabilities[rows, targets[rows]].log().sum()
    probabilities[rows, targets[rows]] -= 1
    return total, probabilities * counts[:, None]


def multiplied(logits, targets):
    """A table of ones and zeros times log-probabilities: 0 times minus infinity."""
    counts = targets != -100
    ones = F.one_hot(targets.clamp(min=0), logits.shape[1]) * counts[:, None]
    total = -(ones * torch.log_softmax(logits, -1)).sum()
    return total, right(logits, targets)[1]


def test_5_101():
    wrong = {
        "the mean": (mean, "the mean of the loss"),
        "no one subtracted": (without_one, "this is the softmax"),
        "-100 as an index": (wrapped, "counts from the end"),
        "rows that do not count": (not_zeroed, "make it zeros"),
        "the sign": (negative, "positive slope"),
        "gradient of the mean": (of_the_mean, "gradient of the mean"),
        "exp without care": (by_exp, "leaves the range"),
        "a number alone": (lambda *given: right(*given)[0], "not a pair"),
    }
    verify(check_5_101, right, stub, wrong)


@pytest.mark.parametrize("attempt", [by_autograd, by_loops])
def test_other_right_answers_pass(attempt):
    assert "correct" in answer(check_5_101, attempt)


def test_zero_times_infinity_is_refused():
    assert "multiplied by 0" in answer(check_5_101, multiplied)
