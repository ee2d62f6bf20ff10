"""Every exercise check takes the solution, knows the stub and names mistakes."""

import math

import numpy
import pytest
import torch

from course.exercises import verify
from dpo_checks import check_7_41, check_7_42


def stub(*arguments):
    return ...


# --- 7.41 -----------------------------------------------------------------------------


def answer_logprob(log_probs, ids, start, stop):
    places = range(start, stop)
    return sum(log_probs[place - 1, ids[place]].item() for place in places)


def by_gather(log_probs, ids, start, stop):
    rows = log_probs[start - 1 : stop - 1]
    return rows.gather(1, ids[start:stop, None]).sum()


def by_numpy(log_probs, ids, start, stop):
    table = log_probs.numpy().astype("float32")
    return table[numpy.arange(start - 1, stop - 1), ids.numpy()[start:stop]].sum()


def by_cross_entropy(log_probs, ids, start, stop):
    rows, answer = log_probs[start - 1 : stop - 1], ids[start:stop]
    return -torch.nn.functional.cross_entropy(rows, answer, reduction="sum")


def test_exercise_7_41_the_answer_alone():
    def summed(places, shift=-1):
        return lambda p, ids, *ends: sum(
            p[t + shift, ids[t]].item() for t in places(*ends)
        )

    def mean(p, ids, start, stop):
        return answer_logprob(p, ids, start, stop) / (stop - start)

    def probability(*given):
        return math.exp(answer_logprob(*given))

    wrong = {
        "own row": (summed(range, 0), "speaks of the next one"),
        "late": (summed(lambda a, b: range(a + 1, b)), "first token of the answer"),
        "no end": (summed(lambda a, b: range(a, b - 1)), "the end token is missing"),
        "one more": (summed(lambda a, b: range(a, min(b + 1, 9))), "of the padding"),
        "question": (summed(lambda a, b: range(1, b)), "question counts, too"),
        "padding": (summed(lambda a, b: range(a, 9)), "padding counts, too"),
        "mean": (mean, "it is the mean"),
        "sign": (lambda *given: -answer_logprob(*given), "minus the log"),
        "exp": (probability, "a probability, not its logarithm"),
        "other": (lambda *given: -1.0, "not the sum over the answer's 3 tokens"),
    }
    verify(check_7_41, answer_logprob, stub, wrong)


@pytest.mark.parametrize("other", [by_gather, by_numpy, by_cross_entropy])
def test_exercise_7_41_takes_other_right_answers(other, capsys):
    check_7_41(other)
    assert "correct" in capsys.readouterr().out


# --- 7.42 -----------------------------------------------------------------------------


def best_policy(reference, points, beta):
    logs = [math.log(p) + r / beta for p, r in zip(reference, points, strict=True)]
    weights = [math.exp(value - max(logs)) for value in logs]
    return [weight / sum(weights) for weight in weights]


def by_torch(reference, points, beta):
    return (torch.tensor(reference).log() + torch.tensor(points) / beta).softmax(0)


def by_logaddexp(reference, points, beta):
    logs = numpy.log(reference) + numpy.array(points) / beta
    return tuple(numpy.exp(logs - numpy.logaddexp.reduce(logs)))


def test_exercise_7_42_the_best_policy():
    def mixed(combine):
        def policy(reference, points, beta):
            logs = [combine(p, r, beta) for p, r in zip(reference, points, strict=True)]
            weights = [math.exp(value - max(logs)) for value in logs]
            return [weight / sum(weights) for weight in weights]

        return policy

    def unscaled(reference, points, beta):
        pairs = zip(reference, points, strict=True)
        return [p * math.exp(min(r / beta, 700)) for p, r in pairs]

    def naive(reference, points, beta):
        pairs = zip(reference, points, strict=True)
        weights = [p * math.exp(r / beta) for p, r in pairs]
        return [weight / sum(weights) for weight in weights]

    def nan(reference, points, beta):
        weights = torch.tensor(reference) * (torch.tensor(points) / beta).exp()
        return (weights / weights.sum()).tolist()

    def changing(reference, points, beta):
        found = best_policy(reference, points, beta)
        reference[:] = found
        return found

    wrong = {
        "times": (mixed(lambda p, r, b: math.log(p) + r * b), "multiplied by beta"),
        "no reference": (mixed(lambda p, r, b: r / b), "reference is missing"),
        "no beta": (mixed(lambda p, r, b: math.log(p) + r), "beta is missing"),
        "sign": (mixed(lambda p, r, b: math.log(p) - r / b), "sign of the points"),
        "no log": (mixed(lambda p, r, b: p + r / b), "where its logarithm belongs"),
        "no Z": (unscaled, "divide by their sum"),
        "overflow": (naive, "OverflowError"),
        "nan": (nan, "takes all"),
        "changed": (changing, "have changed"),
        "short": (lambda a, b, c: best_policy(a, b, c)[1:], "but 2 probabilities"),
        "uniform": (lambda a, b, c: [1 / len(a)] * len(a), "the result is"),
    }
    verify(check_7_42, best_policy, stub, wrong)


@pytest.mark.parametrize("other", [by_torch, by_logaddexp])
def test_exercise_7_42_takes_other_right_answers(other, capsys):
    check_7_42(other)
    assert "correct" in capsys.readouterr().out
