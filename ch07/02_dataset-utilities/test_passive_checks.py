"""Every exercise check takes the solution, knows the stub and names mistakes."""

import numpy
import pytest
import torch

from course.exercises import verify
from passive_checks import CASES, FIRST, check_7_21, check_7_22


def stub(*arguments):
    return ...


# --- 7.21 -----------------------------------------------------------------------------


def is_negation(sentence, negated):
    words = sentence.split()
    place = next(i for i, word in enumerate(words) if word in FIRST)
    words.insert(place + 1, "not")
    right = " ".join(words)
    return negated in (right, right.replace("can not", "cannot"))


def by_taking_away(sentence, negated):
    words = negated.replace("cannot", "can not").split(" ")
    for i, word in enumerate(words):
        if word in FIRST:
            rest = words[: i + 1] + words[i + 2 :]
            return words[i + 1 : i + 2] == ["not"] and " ".join(rest) == sentence
    return False


def test_exercise_7_21_a_check_for_negations():
    def anywhere(a, b):
        words = b.replace("cannot", "can not").split()
        had = "not" in words
        if had:
            words.remove("not")
        return had and " ".join(words) == a

    def behind_last(a, b):
        words = a.split()
        named = (*FIRST, "be", "been", "being")
        words.insert(max(i for i, w in enumerate(words) if w in named) + 1, "not")
        return b.replace("cannot", "can not") == " ".join(words)

    wrong = {
        "letters": (lambda a, b: "not" in b, "the letters not"),
        "word": (
            lambda a, b: "not" in b.replace("cannot", "can not").split(),
            "wherever it stands",
        ),
        "anywhere": (anywhere, "not at any place"),
        "cannot": (
            lambda a, b: is_negation(a, b) and "cannot" not in b,
            "refuses cannot",
        ),
        "last": (behind_last, "the last auxiliary"),
        "stop": (lambda a, b: is_negation(a, b.rstrip(".") + "."), "full stop"),
        "reversed": (lambda a, b: not is_negation(a, b), "wrong way round"),
        "text": (lambda a, b: "yes", "neither True nor False"),
        "all": (lambda a, b: True, "on the table.' is taken"),
        "none": (lambda a, b: False, "on the table.' is refused"),
    }
    verify(check_7_21, is_negation, stub, wrong)


@pytest.mark.parametrize(
    "other",
    [
        by_taking_away,
        lambda a, b: numpy.bool_(is_negation(a, b)),
        lambda a, b: torch.tensor(is_negation(a, b)),
    ],
)
def test_exercise_7_21_takes_other_right_answers(other, capsys):
    check_7_21(other)
    assert "6 right answers and 10 wrong ones" in capsys.readouterr().out
    assert sum(is_negation(*case) for case in CASES) == 6


# --- 7.22 -----------------------------------------------------------------------------


def keep_first(table, threshold):
    kept = []
    for row in range(len(table)):
        if all(table[row][other] < threshold for other in kept):
            kept.append(row)
    return kept


def by_numpy(table, threshold):
    table = numpy.array(table).reshape(len(table), len(table))
    kept = numpy.zeros(len(table), dtype=bool)
    for row in range(len(table)):
        kept[row] = not (table[row, kept] >= threshold).any()
    return numpy.flatnonzero(kept)


def with_yield(table, threshold):
    kept = []
    for row, scores in enumerate(table):
        if max((scores[other] for other in kept), default=0) < threshold:
            kept.append(row)
            yield row


def test_exercise_7_22_keep_one_of_those_alike():
    def chain(table, threshold):
        rows = range(len(table))
        return [row for row in rows if all(s < threshold for s in table[row][:row])]

    def last(table, threshold):
        turned = [row[::-1] for row in table[::-1]]
        return sorted(len(table) - 1 - row for row in keep_first(turned, threshold))

    def changing(table, threshold):
        kept = keep_first(table, threshold)
        table.append([])
        return kept

    wrong = {
        "chain": (chain, "all rows before it"),
        "above": (lambda t, s: keep_first(t, s + 1e-9), "exactly as similar"),
        "none": (
            lambda t, s: [r for r in range(len(t)) if sum(x >= s for x in t[r]) == 1],
            "none is kept",
        ),
        "from one": (lambda t, s: [r + 1 for r in keep_first(t, s)], "counted from 1"),
        "left out": (
            lambda t, s: [r for r in range(len(t)) if r not in keep_first(t, s)],
            "that are left out",
        ),
        "last": (last, "should be the first"),
        "all": (lambda t, s: list(range(len(t))), "the wrong ones are kept"),
        "a count": (lambda t, s: len(keep_first(t, s)), "where a list of rows"),
        "changed": (changing, "has changed"),
    }
    verify(check_7_22, keep_first, stub, wrong)


@pytest.mark.parametrize(
    "other", [by_numpy, with_yield, lambda t, s: tuple(keep_first(t, s))]
)
def test_exercise_7_22_takes_other_right_answers(other, capsys):
    check_7_22(other)
    assert "correct" in capsys.readouterr().out
