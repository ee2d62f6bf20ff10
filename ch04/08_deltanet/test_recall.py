"""The recall task says what it claims, and what cannot solve it cannot."""

import pytest
import torch

from deltanet import delta_rule, l2_normalise
from recall import (
    KEYS,
    RULES,
    UNSEEN,
    VALUES,
    RecallModel,
    additive_rule,
    best_guesses,
    recall_accuracy,
    recall_batch,
    train_recall,
)


def random(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_targets_are_the_last_values():
    """Known mistakes: the first value; the one that is about to be written."""
    ids, targets, before = recall_batch(torch.Generator().manual_seed(3), 20, 15)
    assert (ids[:, ::2] < KEYS).all()
    assert ((ids[:, 1::2] >= KEYS) & (ids[:, 1::2] < KEYS + VALUES)).all()
    for row, expected, counts in zip(ids.tolist(), targets, before, strict=True):
        held, times = {}, dict.fromkeys(range(KEYS), 0)
        for p in range(15):
            key, value = row[2 * p], row[2 * p + 1] - KEYS
            assert expected[p] == held.get(key, UNSEEN)
            assert counts[p] == times[key]
            held[key], times[key] = value, times[key] + 1


@pytest.mark.parametrize("name", RULES)
def test_a_sum_does_not_know_which_value_came_last(name):
    """Two writes under one key, in both orders: only what erases or fades differs."""
    key = l2_normalise(random(1, 1, 1, 4)).expand(1, 1, 2, 4)
    values, beta = random(1, 1, 2, 3, seed=2), torch.full((1, 1, 2), 0.8).double()
    log_decay = torch.full((1, 1, 2), -0.3).double()
    ends = [
        RULES[name](key, key, v, log_decay, beta)[0][:, :, -1]
        for v in (values, values.flip(2))
    ]
    blind = torch.allclose(*ends, rtol=0, atol=1e-12)
    assert blind == (name == "linear attention")


def test_additive_rule_erases_nothing():
    arguments = random(1, 1, 1, 4), l2_normalise(random(1, 1, 1, 4, seed=3))
    value, beta = random(1, 1, 1, 5, seed=4), torch.full((1, 1, 1), 0.5).double()
    state = random(1, 1, 4, 5, seed=6)
    _, added = additive_rule(*arguments, value, 0 * beta, beta, state)
    _, corrected = delta_rule(*arguments, value, 0 * beta, beta, state)
    key = arguments[1][0, 0, 0]
    erased = 0.5 * torch.outer(key, key @ state[0, 0])
    assert torch.allclose((added - corrected)[0, 0], erased, atol=1e-12)


def test_training_learns_from_new_texts_and_repeats_itself():
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        model = RecallModel(delta_rule, emb_dim=16, head_dim=8)
        first = train_recall(model, updates=1, writes=12, seed=1, batch_size=8)
        losses.append((first, train_recall(model, 25, 12, seed=2, batch_size=8)))
    assert losses[0] == losses[1]
    assert losses[0][1] < losses[0][0]
    shares = recall_accuracy(model, writes=12, seed=3, texts=64, most=3)
    assert list(shares) == [1, 2, 3]
    assert all(0 <= share <= 1 for share in shares.values())
    assert shares == recall_accuracy(model, writes=12, seed=3, texts=64, most=3)


def test_best_guesses_are_those_of_chance():
    """Known mistake: one value in two taken for one guess in two, though two values are
    equal once in 16 times.
    """
    shares = best_guesses(writes=32, seed=0, texts=2000)
    alone, one_back = shares["no order"], shares["one pair back"]
    assert alone[0] == 1  # one value: nothing to choose from
    assert abs(alone[1] - (1 / VALUES + (1 - 1 / VALUES) / 2)) < 0.01
    # Three values: all equal; two equal, the last among them in 2 of 3; none equal.
    equal, none = 1 / VALUES**2, (1 - 1 / VALUES) * (1 - 2 / VALUES)
    pairs = 1 - equal - none
    assert abs(alone[2] - (equal + pairs * 2 / 3 + none / 3)) < 0.01
    assert alone == sorted(alone, reverse=True)
    assert all(more > less for more, less in zip(one_back[1:], alone[1:], strict=True))


def test_best_guesses_in_a_text_by_hand(monkeypatch):
    """Key 0 has had 5, 5, 7 and asks; then key 1, which has had 7, right after a 7."""
    pairs = [(0, 5), (0, 5), (1, 7), (0, 7), (1, 3), (0, 2)]
    ids = torch.tensor([[n for k, v in pairs for n in (k, v + KEYS)]])
    targets = torch.tensor([[UNSEEN, 5, UNSEEN, 5, 7, 7]])
    before = torch.tensor([[0, 1, 0, 2, 1, 3]])
    monkeypatch.setattr("recall.recall_batch", lambda *of: (ids, targets, before))
    shares = best_guesses(writes=6, seed=0, texts=1, most=3)
    assert shares["no order"] == [1, 1, 0]  # after 5, 5, 7 it says 5
    assert shares["one pair back"] == [1, 1, 0]  # a 3 is not among key 0's values
