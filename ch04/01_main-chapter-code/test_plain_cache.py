"""The small cache of chapter 4 gives what the whole text gives, and `KVCache`."""

import pytest
import torch

from gpt import GPT_CONFIG_124M, GPTModel, generate_text_simple
from kv_cache import KVCache
from plain_cache import PlainCache

SIZES = dict(vocab_size=31, context_length=12, emb_dim=12, n_heads=3, n_layers=2)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GPTModel({**GPT_CONFIG_124M, **SIZES, "drop_rate": 0.0}).double().eval()


@torch.no_grad()
@pytest.mark.parametrize("pieces", [[9], [1] * 9, [4, 1, 3, 1]])
def test_read_in_pieces_the_logits_are_those_of_the_whole(model, pieces):
    idx = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(1))
    for make in (PlainCache, KVCache):
        cache = make(num_layers=2)
        parts = [model(part, cache=cache) for part in idx.split(pieces, dim=1)]
        assert torch.allclose(torch.cat(parts, dim=1), model(idx), atol=1e-12)
        assert cache.length == 9


@pytest.mark.parametrize("new", [0, 1, 5, 15])
def test_a_text_is_the_same_also_beyond_the_context(model, new):
    """Beyond it every token has another position: the loop empties the cache."""
    idx = torch.tensor([[3, 0, 7], [1, 1, 30]])
    cache = PlainCache(2)
    cached = generate_text_simple(model, idx, new, 12, cache=cache)
    assert torch.equal(cached, generate_text_simple(model, idx, new, 12))


def test_padding_is_masked_in_the_cache_too(model):
    idx = torch.tensor([[0, 0, 5, 2], [4, 0, 5, 2]])
    real = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    cached = generate_text_simple(model, idx, 6, 12, real, PlainCache(2))
    alone = generate_text_simple(model, idx[:1, 2:], 6, 12)
    assert torch.equal(cached[:1, 2:], alone)


def test_a_cache_of_another_model_is_refused(model):
    with pytest.raises(ValueError, match="made for 3 layers"):
        model(torch.tensor([[1]]), cache=PlainCache(3))


def test_reset_forgets(model):
    cache = PlainCache(2)
    model(torch.tensor([[1, 2]]), cache=cache)
    cache.reset()
    assert cache.length == 0
    assert model(torch.tensor([[1], [2], [3]]), cache=cache).shape == (3, 1, 31)
