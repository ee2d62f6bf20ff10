"""A cache of states and keys: bytes by formula, and the contract of models."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course.testing.model_contract import ModelContract
from deltanet import GatedDeltaNet
from gpt import generate_text_simple
from hybrid_cache import HybridCache, full_layers, state_cache_bytes
from kv_cache import kv_cache_bytes
from llama import LlamaModel
from small_models import TINY_LLAMA
from variants import with_parts

sizes = st.integers(min_value=1, max_value=4)


def random(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


@settings(max_examples=30, deadline=None)
@given(sizes, sizes, sizes, sizes, sizes, sizes, st.integers(1, 5), st.booleans())
def test_the_formula_gives_the_bytes_at_any_length(L, B, G, R, K, M, W, half):
    """Known mistakes: a view that keeps the whole text's memory; a number of tokens."""
    dtype = torch.bfloat16 if half else torch.float32
    widths = {"num_heads": G * R, "num_key_heads": G, "key_dim": K, "value_dim": M}
    layer, cache = GatedDeltaNet(6, **widths, conv_width=W).to(dtype), HybridCache(L)
    expected = state_cache_bytes(L, B, G * R, K, M, G, W, dtype)
    with torch.no_grad():
        for tokens in (1, 7, 1, 30):
            for i in range(L):
                layer(random(B, tokens, 6).to(dtype), cache=cache.layer(i))
            assert cache.nbytes == expected
    assert cache.length == 39


def test_a_hybrid_adds_keys_and_values_of_its_full_layers():
    model, cache = (
        HybridModel({**TINY_LLAMA, "n_layers": 8}),
        HybridCache(8, [3, 7], room=9),
    )
    with torch.no_grad():
        model(torch.zeros(3, 9, dtype=torch.long), cache=cache)
    states = state_cache_bytes(6, 3, 2, 4, 5, 1)
    assert cache.nbytes == states + kv_cache_bytes(2, 3, 1, 9, 4)
    cache.reset()
    assert (cache.length, cache.nbytes) == (0, 0)


def test_three_of_four_layers_keep_a_state():
    assert full_layers(8) == [3, 7]
    assert full_layers(6, every=2) == [1, 3, 5]
    assert full_layers(3) == []
    for sizes_of_a_plan, message in (((8, 0), "every is 0"), ((8, -1), "every is -1")):
        with pytest.raises(ValueError, match=message):
            full_layers(*sizes_of_a_plan)


def test_what_does_not_belong_into_the_cache_is_refused():
    """Known mistake: one text's state spread over a batch of three."""
    layer = GatedDeltaNet(6, num_heads=2, key_dim=3, value_dim=3)
    cache = HybridCache(2)
    with pytest.raises(ValueError, match=r"torch\.no_grad\(\)"):
        layer(random(1, 2, 6), cache=cache.layer(0))
    with torch.no_grad():
        layer(random(1, 2, 6), cache=cache.layer(0))
        with pytest.raises(RuntimeError, match="between 0 and 2 tokens"):
            _ = cache.length
        layer(random(1, 2, 6), cache=cache.layer(1))
        assert cache.length == 2
        state = cache.layer(0).state
        with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
            layer(random(3, 1, 6), cache=cache.layer(0))
    assert cache.layer(0).state is state
    assert cache.length == 2
    with pytest.raises(ValueError, match="num_layers is 0"):
        HybridCache(0)


# --- in a model -----------------------------------------------------------------------


def full(cfg):
    """Full layers: one of four, and the last where there are fewer."""
    return full_layers(cfg["n_layers"]) or [cfg["n_layers"] - 1]


class HybridModel(LlamaModel):
    """A Llama with states in three of four layers."""

    def __init__(self, cfg):
        super().__init__(cfg)
        D, H, K = (self.cfg[name] for name in ("emb_dim", "n_heads", "head_dim"))
        widths = {"num_heads": H, "num_key_heads": 1, "key_dim": K, "value_dim": K + 1}
        with_parts(
            self,
            attention=lambda layer: (
                None if layer in full(self.cfg) else GatedDeltaNet(D, **widths)
            ),
        )


class DeltaModel(LlamaModel):
    """A Llama without any full layer, so without rotary positions."""

    def __init__(self, cfg):
        super().__init__(cfg)
        D, K = self.cfg["emb_dim"], self.cfg["head_dim"]
        widths = {"num_heads": 2, "key_dim": K, "value_dim": K}
        with_parts(self, attention=lambda layer: GatedDeltaNet(D, **widths))


def configs():
    return st.builds(
        lambda H, K, D, L, tied: {
            **TINY_LLAMA,
            "n_heads": H,
            "head_dim": 2 * K,
            "emb_dim": D,
            "n_layers": L,
            "tie_weights": tied,
        },
        sizes,
        st.integers(1, 2),
        st.integers(2, 9),
        st.integers(1, 4),
        st.booleans(),
    )


class TestHybridModel(ModelContract):
    tiny = TINY_LLAMA
    configs = staticmethod(configs)
    make_model = HybridModel
    make_cache = staticmethod(lambda cfg: HybridCache(cfg["n_layers"], full(cfg)))
    generate = staticmethod(generate_text_simple)


class TestDeltaModel(ModelContract):
    tiny = TINY_LLAMA
    configs = staticmethod(configs)
    make_model = DeltaModel
    make_cache = staticmethod(lambda cfg: HybridCache(cfg["n_layers"]))
    generate = staticmethod(generate_text_simple)
