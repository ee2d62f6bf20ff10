"""Every exercise check takes the solution, knows the stub and names mistakes."""

import difflib
import re
from collections import Counter
from fractions import Fraction

import numpy
import pytest

from course.exercises import verify
from dataset_generation_checks import PAIRS, check_7_51, check_7_52


def stub(*arguments):
    return ...


def words_of(text):
    return re.findall(r"\w+", text.lower())


# --- 7.51 -----------------------------------------------------------------------------


def common(one, other):
    """Of two lists, the length of the longest common subsequence, by recursion."""
    if not one or not other:
        return 0
    if one[-1] == other[-1]:
        return common(one[:-1], other[:-1]) + 1
    return max(common(one[:-1], other), common(one, other[:-1]))


def rouge_l(one, other):
    a, b = words_of(one), words_of(other)
    return 2 * common(a, b) / (len(a) + len(b)) if a and b else 0.0


def by_table(one, other):
    a, b = words_of(one), words_of(other)
    table = numpy.zeros((len(a) + 1, len(b) + 1))
    for i in range(len(a)):
        for j in range(len(b)):
            if a[i] == b[j]:
                table[i + 1, j + 1] = table[i, j] + 1
            else:
                table[i + 1, j + 1] = max(table[i, j + 1], table[i + 1, j])
    if not table[-1, -1]:
        return numpy.float32(0)
    shares = table[-1, -1] / len(a), table[-1, -1] / len(b)
    return numpy.float32(2 * shares[0] * shares[1] / sum(shares))


def as_fraction(one, other):
    a, b = words_of(one), words_of(other)
    return Fraction(2 * common(a, b), max(len(a) + len(b), 1))


def of_words(rule):
    return lambda one, other: rule(words_of(one), words_of(other))


def test_exercise_7_51_rouge_l():
    def piece(a, b):
        match = difflib.SequenceMatcher(None, a, b, False).find_longest_match()
        return 2 * match.size / max(len(a) + len(b), 1)

    def bag(a, b):
        return 2 * (Counter(a) & Counter(b)).total() / max(len(a) + len(b), 1)

    def sets(a, b):
        return 2 * len(set(a) & set(b)) / max(len(set(a)) + len(set(b)), 1)

    def over(size):
        return of_words(lambda a, b: common(a, b) / max(size(a, b), 1))

    def capitals(one, other):
        a, b = re.findall(r"\w+", one), re.findall(r"\w+", other)
        return 2 * common(a, b) / max(len(a) + len(b), 1)

    def with_signs(one, other):
        a, b = one.lower().split(), other.lower().split()
        return 2 * common(a, b) / max(len(a) + len(b), 1)

    def unguarded(one, other):
        a, b = words_of(one), words_of(other)
        shares = common(a, b) / len(a), common(a, b) / len(b)
        return 2 * shares[0] * shares[1] / (sum(shares) or 1)

    wrong = {
        "one piece": (of_words(piece), "stand in one piece"),
        "a bag": (of_words(bag), "the order of the words"),
        "sets": (of_words(sets), "sets of words"),
        "first": (over(lambda a, b: len(a)), "length of the first"),
        "second": (over(lambda a, b: len(b)), "length of the second"),
        "longer": (over(lambda a, b: max(len(a), len(b))), "longer text alone"),
        "shorter": (over(lambda a, b: min(len(a), len(b))), "shorter text alone"),
        "jaccard": (
            over(lambda a, b: len(a) + len(b) - common(a, b)),
            "as Jaccard does",
        ),
        "mean": (
            of_words(
                lambda a, b: (
                    (common(a, b) / max(len(a), 1) + common(a, b) / max(len(b), 1)) / 2
                )
            ),
            "not the harmonic one",
        ),
        "count": (of_words(common), "not their share"),
        "capitals": (capitals, "capitals make two words"),
        "signs": (with_signs, "signs are taken"),
        "empty": (unguarded, "ZeroDivisionError"),
        "always 1": (lambda one, other: 1.0, "have another overlap"),
        "a list": (lambda one, other: [0.5], "not a number"),
    }
    verify(check_7_51, rouge_l, stub, wrong)


@pytest.mark.parametrize("other", [by_table, as_fraction])
def test_exercise_7_51_takes_other_right_answers(other, capsys):
    check_7_51(other)
    assert "correct" in capsys.readouterr().out


def test_the_pairs_of_the_exercise_have_every_awkward_case():
    overlaps = [rouge_l(*pair) for pair in PAIRS]
    assert {0.0, 1.0} < set(overlaps)
    assert any(one.lower() != one for one, _ in PAIRS)


# --- 7.52 -----------------------------------------------------------------------------


def recall(kept, removed, kept_read, removed_read):
    good_kept = kept * kept_read[1] / kept_read[0]
    good_removed = removed * removed_read[1] / removed_read[0]
    there = good_kept + good_removed
    return good_kept / there if there else 0.0


def in_numpy(kept, removed, kept_read, removed_read):
    sizes = numpy.array([kept, removed])
    read = numpy.array([kept_read, removed_read], dtype=float)
    good = sizes * read[:, 1] / read[:, 0]
    return numpy.nan_to_num(good[0] / max(good.sum(), 1e-12))


def test_exercise_7_52_recall_from_a_sample():
    wrong = {
        "as read": (
            lambda k, r, a, b: a[1] / max(a[1] + b[1], 1),
            "not the same part was read",
        ),
        "precision": (lambda k, r, a, b: a[1] / a[0], "it is the precision"),
        "no sizes": (
            lambda k, r, a, b: a[1] / a[0] / max(a[1] / a[0] + b[1] / b[0], 1e-9),
            "the same size",
        ),
        "all good": (
            lambda k, r, a, b: (k * a[1] / a[0] + r * b[1] / b[0]) / (k + r),
            "share of all pairs that are good",
        ),
        "kept": (lambda k, r, a, b: k / (k + r), "that are kept"),
        "lost": (lambda *g: 1 - recall(*g), "that are lost"),
        "nothing good": (
            lambda k, r, a, b: (k * a[1] / a[0]) / (k * a[1] / a[0] + r * b[1] / b[0]),
            "ZeroDivisionError",
        ),
        "one": (lambda *g: 1.0, "the recall is another one"),
        "a text": (lambda *g: "0.5", "not a number"),
    }
    verify(check_7_52, recall, stub, wrong)


@pytest.mark.parametrize(
    "other",
    [in_numpy, lambda *g: Fraction(recall(*g)), lambda *g: numpy.float32(recall(*g))],
)
def test_exercise_7_52_takes_other_right_answers(other, capsys):
    check_7_52(other)
    assert "correct" in capsys.readouterr().out
