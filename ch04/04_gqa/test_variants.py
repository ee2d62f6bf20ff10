"""The common skeleton of chapter 4's bonus folders: parts, weights, data, turns."""

import json
import time

import pytest
import torch
from torch import nn

from course.assets import fetch
from gpt import generate_text_simple
from gpt_train import calc_loss_loader, train_model_simple
from gqa import GroupedQueryAttention
from kv_cache import KVCache, kv_cache_bytes
from llama import LlamaConfig, LlamaModel
from variants import (
    BATCH_SIZE,
    SMALL,
    WIDE,
    WINDOW,
    decoding_seconds,
    draw_weights,
    fill,
    small_task,
    take_turns,
    times_as_fast,
    with_parts,
)

TINY = {**SMALL, "emb_dim": 16, "n_heads": 4, "n_kv_groups": 4, "head_dim": 4}
TINY |= {"hidden_dim": 20, "n_layers": 2}


@pytest.fixture(scope="module")
def entries():
    return json.loads(fetch("instructions").read_text(encoding="utf-8"))


class Zeros(nn.Module):
    """A part that adds nothing."""

    def forward(self, x, *_):
        return torch.zeros_like(x)


# --- parts and weights ----------------------------------------------------------------


@pytest.mark.parametrize("sizes", [SMALL, WIDE])
def test_sizes_are_those_of_a_model(sizes):
    assert LlamaConfig.of(sizes)["emb_dim"] == sizes["n_heads"] * sizes["head_dim"]


def test_every_block_gets_its_own_part():
    model = LlamaModel(TINY)
    kept = [block.ff for block in model.trf_blocks]
    made = []

    def attention(layer):
        made.append(layer)
        return GroupedQueryAttention(16, num_heads=4, num_kv_groups=2)

    assert with_parts(model, attention=attention) is model
    assert made == [0, 1]
    first, second = (block.att for block in model.trf_blocks)
    assert first is not second
    assert first.num_kv_groups == second.num_kv_groups == 2
    assert [block.ff for block in model.trf_blocks] == kept


def test_a_part_may_stay_as_it_is():
    model = LlamaModel(TINY)
    kept = model.trf_blocks[0].ff
    with_parts(model, feed_forward=lambda layer: Zeros() if layer == 1 else None)
    assert model.trf_blocks[0].ff is kept
    assert isinstance(model.trf_blocks[1].ff, Zeros)


@torch.no_grad()
def test_the_parts_are_used():
    """With parts that add nothing the model sees each token alone."""
    model = LlamaModel(TINY).eval()
    with_parts(model, lambda _: Zeros(), lambda _: Zeros())
    idx = torch.tensor([[3, 1, 4, 1]])
    expected = model.out_head(model.final_norm(model.tok_emb(idx)))
    assert torch.equal(model(idx), expected)


def test_exchanged_for_its_like_the_model_stays_the_same():
    torch.manual_seed(0)
    plain = LlamaModel(TINY)
    other = with_parts(
        LlamaModel(TINY),
        lambda _: GroupedQueryAttention(16, num_heads=4, num_kv_groups=4),
    )
    idx = torch.randint(256, (2, 9))
    with torch.no_grad():
        assert not torch.allclose(plain(idx), other(idx))
        draw_weights(plain, 5), draw_weights(other, 5)
        assert torch.equal(plain(idx), other(idx))
        cached = generate_text_simple(other, idx, 4, 64, cache=KVCache(2))
        assert torch.equal(cached, generate_text_simple(plain, idx, 4, 64))


def test_weights_depend_on_seed_and_name_alone():
    plain, grouped = LlamaModel(TINY), LlamaModel({**TINY, "n_kv_groups": 2})
    for model in (plain, grouped):
        torch.randn(3)
        assert draw_weights(model, 1) is model
    shared = {
        name: weight
        for name, weight in plain.named_parameters()
        if "W_key" not in name and "W_value" not in name
    }
    theirs = dict(grouped.named_parameters())
    assert all(torch.equal(theirs[name], weight) for name, weight in shared.items())
    first, second = (block.att.W_key.weight for block in plain.trf_blocks)
    assert not torch.equal(first, second)
    before = first.clone()
    draw_weights(plain, 2)
    assert not torch.equal(first, before)
    assert 0.015 < plain.tok_emb.weight.std() < 0.025


# --- the small training ---------------------------------------------------------------


def test_batches_are_windows_of_the_text(entries):
    train, validation = small_task(entries, seed=1, updates=5)
    assert len(train) == 5
    for inputs, targets in train:
        assert inputs.shape == targets.shape == (BATCH_SIZE, WINDOW)
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
    text = b"".join(bytes(row) for inputs, _ in validation for row in inputs.tolist())
    first = next(entry for entry in entries if entry["split"] == "validation")
    assert text.decode(errors="ignore").startswith(first["instruction"])
    assert len(text) > 10_000


def test_order_depends_on_the_seed_and_comes_round(entries):
    few = [entry for entry in entries if entry["split"] == "validation"]
    some = [{**entry, "split": "train"} for entry in few[:40]] + few[:9]
    first, second, other = (small_task(some, seed, 12)[0] for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    assert not torch.equal(first[0][0], other[0][0])
    assert len(first) == 12  # more than one time round


def test_a_small_model_begins_to_learn(entries, capsys):
    train, validation = small_task(entries, seed=1, updates=8)
    model = draw_weights(LlamaModel(TINY), 1)
    before = calc_loss_loader(validation, model, "cpu", 4)
    assert abs(before - torch.tensor(256.0).log()) < 0.05
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train_model_simple(model, train, validation, optimizer, "cpu", 1, 8, 1, None, None)
    assert calc_loss_loader(validation, model, "cpu", 4) < before - 1
    assert "step 0" in capsys.readouterr().out


def test_a_task_without_a_window_is_refused():
    for entries in ([], [dict.fromkeys(("instruction", "input", "output"), "x")]):
        with pytest.raises(ValueError, match="too short"):
            small_task([{**entry, "split": "train"} for entry in entries], seed=1)


# --- speed ----------------------------------------------------------------------------


def test_each_goes_first_in_turn():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = take_turns(runs, 4)
    assert "".join(order) == "abcbcacababc"
    assert [len(spent) for spent in seconds.values()] == [4, 4, 4]


def test_the_slower_one_takes_longer():
    def work(units):
        end = time.process_time() + 0.002 * units
        while time.process_time() < end:
            pass

    seconds = take_turns({"one": lambda: work(1), "five": lambda: work(5)}, 3)
    assert times_as_fast(seconds, "one", "five") > 2
    assert times_as_fast({"a": [1, 2, 9], "b": [2, 4, 9]}, "a", "b") == 2


@torch.no_grad()
def test_fill_brings_a_cache_to_the_length():
    model, cache = LlamaModel(TINY).eval(), KVCache(2, room=9)
    token = fill(model, cache, 9, batch_size=3)
    assert token.shape == (3, 1)
    assert cache.length == 9
    assert cache.nbytes == kv_cache_bytes(2, 3, 4, 9, 4)
    rolling = KVCache(2, window=4, masked=True)
    fill(model, rolling, 9)
    assert rolling.length == 9
    assert rolling.nbytes == kv_cache_bytes(2, 1, 4, 4, 4)


@torch.no_grad()
def test_fill_reads_into_caches_of_other_kinds():
    class Other:
        """A cache whose layers are no `LayerCache`."""

        num_layers = 2

        def __init__(self):
            self.inner = KVCache(2)

        length = property(lambda self: self.inner.length)

        def layer(self, index):
            inner = self.inner.layer(index)

            class Layer:
                length = property(lambda _: inner.length)
                append = staticmethod(inner.append)

            return Layer()

    cache = Other()
    fill(LlamaModel(TINY).eval(), cache, 9)
    assert cache.length == 9


def test_decoding_ends_at_the_length():
    model, cache = LlamaModel(TINY).eval(), KVCache(2, room=20)
    seconds = decoding_seconds({"it": (model, cache)}, 20, 2, rounds=3, batch_size=2)
    assert len(seconds["it"]) == 3
    assert min(seconds["it"]) > 0
    assert cache.length == 20
    assert cache.layer(0).keys.shape[0] == 2
    assert cache.nbytes == kv_cache_bytes(2, 2, 4, 20, 4)


def test_a_text_too_short_for_all_rounds_is_refused():
    model, cache = LlamaModel(TINY).eval(), KVCache(2)
    with pytest.raises(ValueError, match="length is 8, but 3 rounds .* at least 9"):
        decoding_seconds({"it": (model, cache)}, 8, 2, rounds=3)
