"""Each way finds what comparing all pairs finds, and keeps one of those alike."""

import random

import numpy as np
import pytest

import similar_texts
from near_duplicates import jaccard, minhash, shingles
from similar_texts import (
    RUN,
    LetterSets,
    LetterWeights,
    Meanings,
    digits_of,
    nearest_before,
    signatures,
    with_neighbours,
)

WORDS = [
    "".join(random.Random(i).choices("abcdefghijklmno", k=3 + i % 5)) for i in range(99)
]


def texts_of(count=160, seed=0):
    """Texts of which many are changed copies of others, some with only few letters."""
    draw = random.Random(seed)
    texts = ["a", "b.", "", "  !"]
    while len(texts) < count:
        if draw.random() < 0.5:
            words = draw.choice(texts).split()
            for _ in range(draw.randint(1, 3)):
                words.insert(draw.randint(0, len(words)), draw.choice(WORDS))
        else:
            words = draw.choices(WORDS, k=draw.randint(2, 12))
        texts.append(" ".join(words))
    return texts


def hand_made(texts):
    """A stand-in for an embedder: how often each letter stands in a text."""
    counts = np.array([[text.count(c) for c in "abcdefghijklmno"] for text in texts])
    lengths = np.linalg.norm(counts, axis=1, keepdims=True)
    return (counts / np.maximum(lengths, 1)).astype(np.float32)


def all_cosines(vectors):
    vectors = vectors.astype(np.float64)
    scores = vectors @ vectors.T
    return scores.toarray() if hasattr(scores, "toarray") else scores


def all_jaccards(texts):
    sets = [shingles(" ".join(text), RUN) for text in texts]
    return np.array([[jaccard(a, b) for b in sets] for a in sets])


def greedy(scores, threshold):
    """The definition: kept unless one kept before is as similar."""
    kept, found = [], {}
    for row in range(len(scores)):
        near = [other for other in kept if scores[row, other] >= threshold]
        if near:
            found[row] = max(near, key=lambda other: scores[row, other])
        else:
            kept.append(row)
    return found


@pytest.mark.parametrize("block", [7, 500])
@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8, 0.95])
def test_tfidf_loses_no_pair_that_comparing_all_finds(monkeypatch, block, threshold):
    monkeypatch.setattr(similar_texts, "BLOCK", block)
    monkeypatch.setattr(similar_texts, "_PAIRS", 11)
    finder = LetterWeights(iter(texts_of()), threshold)
    scores = all_cosines(finder.vectors)
    assert not (np.abs(scores - threshold) < 1e-5).any()  # nothing hangs on rounding
    late, early, score = nearest_before(finder, threshold)
    assert dict(zip(late, early)) == greedy(scores, threshold)
    assert len(late) > 10
    assert np.allclose(score, scores[late, early], atol=1e-5)


def test_the_bound_spares_most_of_the_work():
    texts = texts_of(800, seed=3)
    finder = LetterWeights(texts, 0.8)
    late, _, score = similar_texts._sharing(finder.keys, 0, 800, np.array([], int))
    assert finder.keys.nnz < 0.7 * finder.vectors.nnz
    assert (finder.rest < 0.8 * 0.8).all()
    assert len(late) < 800 * 799 / 2
    assert score.max() <= 1.001


@pytest.mark.parametrize("block", [7, 500])
def test_minhash_finds_nearly_all_and_nothing_else(monkeypatch, block):
    monkeypatch.setattr(similar_texts, "BLOCK", block)
    texts = texts_of(300, seed=1)
    late, early, score = nearest_before(LetterSets(iter(texts)), 0.6)
    scores = all_jaccards(texts)
    assert np.allclose(score, scores[late, early], atol=1e-6)
    assert min(score) >= 0.6
    right = greedy(scores, 0.6)
    assert len(right) > 20
    assert len(set(late) & set(right)) >= 0.95 * len(right)


def test_meaning_compares_all_vectors(monkeypatch):
    monkeypatch.setattr(similar_texts, "BLOCK", 9)
    texts = texts_of(120, seed=2)
    finder = Meanings(iter(texts), hand_made)
    late, early, _ = nearest_before(finder, 0.9)
    scores = all_cosines(finder.vectors)
    assert dict(zip(late, early)).keys() == greedy(scores, 0.9).keys()
    assert len(late) > 10
    assert all(a < b for a, b in zip(early, late))


def test_two_that_are_kept_are_never_alike_and_the_others_are_like_one():
    """No chain: the third is like the second, which is not kept, and so is kept."""
    vectors = np.array([[1, 0], [0.9, 0.436], [0.62, 0.785]], dtype=np.float32)
    finder = Meanings(["one", "two", "three"], lambda texts: vectors)
    assert vectors[1] @ vectors[2] > 0.85
    assert vectors[0] @ vectors[2] < 0.7
    assert nearest_before(finder, 0.85)[:2] == ([1], [0])


@pytest.mark.parametrize("block", [7, 500])
def test_every_text_that_is_like_another_has_a_neighbour(monkeypatch, block):
    monkeypatch.setattr(similar_texts, "BLOCK", block)
    finder = LetterWeights(texts_of(), 0.6)
    scores = all_cosines(finder.vectors) - np.eye(finder.count)
    alike = np.flatnonzero((scores >= 0.6).any(axis=1))
    assert with_neighbours(finder, 0.6).tolist() == alike.tolist()
    assert 20 < len(alike) < finder.count


def test_the_copy_of_a_text_that_is_not_kept_has_a_neighbour():
    vectors = np.array([[1, 0], [0.62, 0.785], [0.5, 0.866]], dtype=np.float32)
    finder = Meanings(["one", "two", "two !"], lambda texts: vectors)
    late, early, _ = nearest_before(finder, 0.6)
    assert (late, early) == ([1], [0])  # which says nothing of the third
    assert with_neighbours(finder, 0.6).tolist() == [0, 1, 2]
    numbered = Meanings(["1", "2", "2 !"], lambda texts: vectors)
    assert with_neighbours(numbered, 0.6).tolist() == [1, 2]
    assert with_neighbours(numbered, 0.6, any_numbers=True).tolist() == [0, 1, 2]
    assert with_neighbours(Meanings([], lambda texts: vectors), 0.6).tolist() == []


def test_other_numbers_are_another_question():
    texts = ["Add 17 and 25 to it.", "Add 17 and 26 to it.", "Add 25 and 17 to it."]
    finder = LetterWeights(texts, 0.4)
    assert nearest_before(finder, 0.4)[:2] == ([2], [0])
    assert nearest_before(finder, 0.4, any_numbers=True)[0] == [1, 2]
    assert digits_of("none") == 0 != digits_of("0")
    assert digits_of("1 23") != digits_of("12 3")


def test_signatures_of_many_are_those_of_each():
    sets = [shingles(text) for text in ("", "one", "a b c d e f", "", "x " * 9, "")]
    made = signatures(sets)
    assert (made == np.stack([minhash(one) for one in sets])).all()
    assert signatures([]).shape == (0, 128)
    assert (signatures([sets[0]]) == minhash(sets[0])).all()


@pytest.mark.parametrize("kind", ["weights", "sets", "meanings"])
@pytest.mark.parametrize("texts", [[], ["one"], ["", ""], ["!", "?"], ["a", "b"]])
def test_few_texts_or_none_with_letters(kind, texts):
    make = {
        "weights": lambda: LetterWeights(iter(texts), 0.8),
        "sets": lambda: LetterSets(iter(texts)),
        "meanings": lambda: Meanings(iter(texts), hand_made),
    }
    finder = make[kind]()
    assert finder.count == len(texts)
    found = nearest_before(finder, 0.8)[0]
    assert found == []


def test_progress_is_told():
    told = []
    nearest_before(LetterWeights(texts_of(40), 0.8), 0.8, progress=told.append)
    assert told == [40]
