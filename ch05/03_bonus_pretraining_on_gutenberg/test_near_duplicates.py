"""Signatures estimate what counting finds, and bands meet as often as they promise."""

import random

import numpy as np
import pytest

from near_duplicates import (
    BANDS,
    band_keys,
    chance_to_meet,
    jaccard,
    minhash,
    shingles,
    similarity,
)

WORDS = [f"word{i}" for i in range(3000)]


def text_of(seed, length=3000):
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def edited(text, share, seed):
    """The text with some of its words replaced."""
    draw = random.Random(seed)
    words = [w if draw.random() > share else "other" for w in text.split()]
    return " ".join(words)


def slow_shingles(text, n=5):
    words = text.lower().split()
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
def test_shingles_as_numbers_are_shingles(share):
    one = text_of(1)
    other = edited(one, share, 2)
    slow = slow_shingles(one), slow_shingles(other)
    assert len(shingles(one)) == len(slow[0])
    exact = len(slow[0] & slow[1]) / len(slow[0] | slow[1])
    assert jaccard(shingles(one), shingles(other)) == pytest.approx(exact)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
def test_the_estimate_is_as_near_as_128_numbers_allow(share):
    errors = []
    for seed in range(8):
        one = text_of(seed)
        other = edited(one, share, seed + 100)
        a, b = shingles(one), shingles(other)
        exact = jaccard(a, b)
        errors.append(similarity(minhash(a), minhash(b)) - exact)
        deviation = (exact * (1 - exact) / 128) ** 0.5
        assert abs(errors[-1]) < 4 * deviation
    assert abs(np.mean(errors)) < 4 * deviation / 8**0.5  # and not to one side


def test_unlike_texts_have_unlike_signatures():
    assert similarity(minhash(shingles(text_of(1))), minhash(shingles(text_of(2)))) == 0


def test_case_marks_and_line_breaks_make_no_difference():
    text = text_of(3, 200)
    other = text.upper().replace(" ", ",\n")
    assert np.array_equal(shingles(text), shingles(other))


def test_short_and_empty_texts_have_signatures_too():
    assert len(shingles("a lamp")) == 1
    assert np.array_equal(shingles("a lamp"), shingles("A lamp!"))
    assert len(shingles(" ... ")) == 0
    assert minhash(shingles("")).shape == (128,)


def test_bands_meet_as_often_as_the_formula_says():
    draw = np.random.default_rng(1)
    for s in (0.3, 0.5, 0.7):
        met = 0
        for _ in range(600):
            one = draw.integers(1 << 32, size=128, dtype=np.uint32)
            same = draw.random(128) < s
            other = np.where(same, one, one + np.uint32(1))
            met += bool(set(band_keys(one)) & set(band_keys(other)))
        expected = chance_to_meet(s)
        deviation = (expected * (1 - expected) / 600) ** 0.5
        assert abs(met / 600 - expected) < 4 * deviation + 0.002
    assert len(band_keys(one)) == BANDS
