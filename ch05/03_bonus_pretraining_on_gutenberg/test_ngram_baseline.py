"""Tables of numbers give what dictionaries give; all probabilities add up."""

import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from gpt_train import bigram_loss
from ngram_baseline import KneserNey, mean_nats


def slow(ids, vocab_size, order):
    """The same model by the book, with dictionaries and without numpy."""
    counts = [None] * (order + 1)
    runs = zip(*(ids[k:] for k in range(order)))
    counts[order] = Counter(runs)
    for n in range(order - 1, 0, -1):
        counts[n] = Counter(run[1:] for run in counts[n + 1])

    def discounts(n):
        number = [max(sum(c == k for c in counts[n].values()), 1) for k in (1, 2, 3, 4)]
        y = number[0] / (number[0] + 2 * number[1])
        plain = [k - (k + 1) * y * number[k] / number[k - 1] for k in (1, 2, 3)]
        return [0, *(min(max(d, 0.1), k) for k, d in enumerate(plain, 1))]

    given = [None, *map(discounts, range(1, order + 1))]
    following = [defaultdict(list) for _ in range(order + 1)]
    for n in range(1, order + 1):
        for run, count in counts[n].items():
            following[n][run[:-1]].append(count)

    def probability(token, before):
        n = len(before) + 1
        lower = probability(token, before[1:]) if n > 1 else 1 / vocab_size
        seen = following[n].get(tuple(before))
        if not seen:
            return lower
        count = counts[n].get((*before, token), 0)
        left = count - given[n][min(count, 3)]
        freed = sum(given[n][min(c, 3)] for c in seen)
        return (left + freed * lower) / sum(seen)

    return probability


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_it_is_the_model_of_the_book(order):
    draw = random.Random(order)
    ids = draw.choices(range(6), weights=[9, 5, 3, 2, 1, 1], k=300)
    new = draw.choices(range(7), k=40)
    by_hand = slow(ids, 7, order)
    found = KneserNey(ids, 7, order).probability(new)
    for i in range(1, len(new)):
        before = tuple(new[max(i - order + 1, 0) : i])
        # At the start there are fewer tokens before it.
        assert found[i - 1] == pytest.approx(by_hand(new[i], before))


def test_probabilities_add_up_after_any_tokens():
    ids = np.random.default_rng(1).integers(5, size=400)
    model = KneserNey(ids, vocab_size=6, order=3)
    for before in ([0, 1], [5, 5], [4, 5]):  # 5 never occurs
        chances = [model.probability([*before, k])[-1] for k in range(6)]
        assert sum(chances) == pytest.approx(1)
        assert min(chances) > 0


def test_a_token_that_follows_one_other_only_is_a_bad_guess_elsewhere():
    """Lower orders count different predecessors: with raw counts it would be the best.

    "San Francisco" six times (1, 2); 3 only three times, each after another token.
    """
    ids = [1, 2] * 6 + [4, 3, 5, 3, 6, 3, 0]
    model = KneserNey(ids, vocab_size=8, order=2)
    francisco, house = (model.probability([7, token])[0] for token in (2, 3))
    assert house > 1.5 * francisco
    assert model.probability([1, 2])[0] > 0.5  # and after San it is the best guess


def test_of_pairs_it_knows_about_as_much_as_chapter_5s_bigram_model():
    draw, ids = random.Random(2), [0]
    for _ in range(6000):
        ids.append((ids[-1] * 3 + draw.choice([0, 0, 0, 1, 2])) % 23)
    model = KneserNey(ids[:5000], vocab_size=23, order=2)
    loss = mean_nats(model.probability(ids[5000:]))
    # Its discounts come from the counts, so it is a little better.
    assert 0 < bigram_loss(ids[:5000], ids[5000:], 23) - loss < 0.1
    assert loss < math.log(23) - 1.5


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="do not fit in 62 bits"):
        KneserNey([1, 2, 3], vocab_size=50257, order=5)
