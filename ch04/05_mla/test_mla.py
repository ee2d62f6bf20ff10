"""Latent attention proved: expanded = absorbed, cached = uncached, DeepSeek's layer.

Bounds: float32 within 1e-5, float64 within 1e-10.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course.testing.model_contract import (
    BOUNDS,
    ModelContract,
    close,
    seeds,
)
from gpt import generate_text_simple
from kv_cache import KVCache
from llama import LlamaModel, RMSNorm, apply_rope, halves_to_pairs
from mla import (
    MultiHeadLatentAttention,
    absorbing_is_cheaper,
    deepseek_shapes,
    deepseek_weights,
    latent_cache_bytes,
    masked_softmax,
)
from small_models import TINY_LLAMA
from variants import with_parts

some = settings(max_examples=30, deadline=None)
sizes = st.integers(min_value=1, max_value=4)
dtypes = st.sampled_from(list(BOUNDS))


# --- what the tests are made of -------------------------------------------------------


@st.composite
def layers(draw):
    """A layer of drawn sizes and a batch for it; norms that do something."""
    D, H, C, K = (draw(sizes) for _ in range(4))
    dtype, B, T = draw(dtypes), draw(sizes), draw(st.integers(1, 9))
    queries = draw(st.none() | sizes)
    torch.manual_seed(draw(seeds))
    layer = MultiHeadLatentAttention(
        D,
        num_heads=H,
        latent_dim=C,
        head_dim=K,
        rope_dim=2 * draw(st.integers(1, 2)),
        query_latent_dim=queries,
    )
    for module in layer.modules():
        if isinstance(module, RMSNorm):
            torch.nn.init.uniform_(module.scale, 0.5, 2.0)
    return layer.to(dtype).eval(), torch.randn(B, T, D, dtype=dtype)


@st.composite
def padded(draw):
    """A layer, a batch, and any mask: left, right, holes, only padding."""
    layer, x = draw(layers())
    B, T, _ = x.shape
    row = st.lists(st.booleans(), min_size=T, max_size=T)
    return layer, x, torch.tensor(draw(st.lists(row, min_size=B, max_size=B)))


def make(seed=0, **changes):
    torch.manual_seed(seed)
    widths = {"num_heads": 3, "latent_dim": 7, "head_dim": 5, "rope_dim": 4}
    return MultiHeadLatentAttention(6, **(widths | changes)).double().eval()


def random(*shape, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def rotation(start, end, width, dtype=torch.float64):
    """A rotation for positions from `start` on, any angles."""
    speeds = torch.linspace(0.3, 1.1, width // 2, dtype=torch.float64)
    angles = torch.arange(start, end)[:, None] * speeds
    angles = torch.cat((angles, angles), dim=-1)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return lambda heads: apply_rope(heads, cos, sin)


def reference(layer, x, real=None):
    """The layer's answer head by head and query by query, as plainly as it can be."""
    H, K, P = layer.num_heads, layer.head_dim, layer.rope_dim
    B, T, _ = x.shape
    turn = rotation(0, T, P, x.dtype)
    latents = layer.latent_norm(layer.W_latent(x))
    rope_keys = turn(layer.W_rope_key(x)[:, None])[:, 0]
    out = torch.zeros(B, T, H * K, dtype=x.dtype)
    for h in range(H):
        own = slice(h * K, (h + 1) * K)
        keys = latents @ layer.W_key.weight[own].T
        keys = torch.cat((keys, rope_keys), dim=-1)
        values = latents @ layer.W_value.weight[own].T
        both = layer.W_query(x)[..., h * (K + P) : (h + 1) * (K + P)]
        rotated = turn(both[:, None, :, K:])[:, 0]
        queries = torch.cat((both[..., :K], rotated), dim=-1)
        for b in range(B):
            for t in range(T):
                seen = [s for s in range(t + 1) if real is None or real[b, s]]
                if seen:
                    scores = keys[b, seen] @ queries[b, t] / (K + P) ** 0.5
                    out[b, t, own] = torch.softmax(scores, dim=0) @ values[b, seen]
    return layer.out_proj(out)


# --- against what is known ------------------------------------------------------------


@some
@given(padded(), st.booleans(), st.booleans())
def test_both_ways_equal_attention_head_by_head(case, masked, absorb):
    """Known mistakes: divided by the root of K, or of C, instead of K + P; the rotary
    key not shared; keys and values of the heads mixed up; the norm behind the cache.
    """
    layer, x, real = case
    real = real if masked else None
    rotate = rotation(0, x.shape[1], layer.rope_dim, x.dtype)
    found = layer(x, real, rotate=rotate, absorb=absorb)
    assert close(found, reference(layer, x, real))


def test_with_a_latent_as_wide_as_the_input_it_is_plain_attention():
    """Nothing is lost by a latent from which the input could be made again."""
    from gqa import GroupedQueryAttention

    layer = make(latent_dim=6, rope_dim=2, num_heads=2, head_dim=3)
    layer.latent_norm = torch.nn.Identity()
    plain = GroupedQueryAttention(6, num_heads=2, num_kv_groups=2).double()
    torch.nn.init.eye_(layer.W_latent.weight)
    torch.nn.init.zeros_(layer.W_rope_key.weight)
    scale = (5 / 3) ** 0.5  # ours divides by the root of 3 + 2
    with torch.no_grad():
        layer.W_query.weight.view(2, 5, 6)[:, :3] = scale * plain.W_query.weight.view(
            2, 3, 6
        )
        layer.W_key.weight.copy_(plain.W_key.weight)
        layer.W_value.weight.copy_(plain.W_value.weight)
        layer.out_proj.weight.copy_(plain.out_proj.weight)
    x = random(2, 5, 6)
    for absorb in (True, False):
        assert close(layer(x, absorb=absorb), plain(x))


DEFAULT = {"rope_type": "default", "rope_theta": 10_000.0}
YARN = {  # as DeepSeek-V3 and R1 are published
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 40.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
}
V3_FACTOR = (0.1 * math.log(40) + 1) ** 2


def deepseek(dtype, query_latent_dim, interleaved, rope=DEFAULT, **more):
    """Their layer beside ours: `(their weights, their output, ours, x, rotate)`."""
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

    D, H, C, K, P, T = 24, 6, 10, 8, 4, 7
    config = v3.DeepseekV3Config(
        hidden_size=D,
        num_attention_heads=H,
        kv_lora_rank=C,
        q_lora_rank=query_latent_dim,
        qk_nope_head_dim=K,
        qk_rope_head_dim=P,
        v_head_dim=K,
        rope_interleave=interleaved,
        rms_norm_eps=0.25,  # of the blocks; the norms of the latents have their own
        rope_parameters=dict(rope),
    )
    config._attn_implementation = "sdpa"  # the other takes softmax in float32
    torch.manual_seed(0)
    theirs = v3.DeepseekV3Attention(config, layer_idx=0).to(dtype).eval()
    widths = {"num_heads": H, "latent_dim": C, "head_dim": K, "rope_dim": P}
    ours = MultiHeadLatentAttention(
        D, **widths, query_latent_dim=query_latent_dim, **more
    )
    ours = ours.to(dtype).eval()
    for name in ("q_a_layernorm", "kv_a_layernorm"):
        norm = getattr(theirs, name)
        if norm is not None:
            torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    weights = theirs.state_dict()
    ours.load_state_dict(deepseek_weights(ours, weights, interleaved))
    if dtype == torch.float64:  # their norms compute in float32, whatever comes
        for name in ("q_a_layernorm", "kv_a_layernorm"):
            norm = getattr(theirs, name)
            if norm is not None:
                wide = RMSNorm(len(norm.weight), 1e-6).double()
                wide.scale.data = norm.weight.data
                setattr(theirs, name, wide)
    x = random(2, T, D, dtype=dtype)
    cos, sin = v3.DeepseekV3RotaryEmbedding(config)(x, torch.arange(T)[None])
    hidden = torch.full((T, T), -torch.inf, dtype=dtype).triu(1)[None, None]
    expected, _ = theirs(x, (cos, sin), attention_mask=hidden)

    def rotate(heads):
        return apply_rope(heads, cos[0], sin[0])

    return weights, expected, ours, x, rotate


@pytest.mark.parametrize("absorb", [True, False])
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("query_latent_dim", [None, 12])
@pytest.mark.parametrize("dtype", list(BOUNDS))
def test_equals_the_layer_of_transformers(dtype, query_latent_dim, interleaved, absorb):
    """Known mistake: the epsilon of the config taken for the norms of the latents."""
    _, expected, ours, x, rotate = deepseek(dtype, query_latent_dim, interleaved)
    assert close(ours(x, rotate=rotate, absorb=absorb), expected)


@pytest.mark.parametrize("absorb", [True, False])
@pytest.mark.parametrize("dtype", list(BOUNDS))
def test_equals_the_layer_as_it_is_published(dtype, absorb):
    """Known mistake: YaRN's factor left out, since it changes no weight."""
    scale = V3_FACTOR * (8 + 4) ** -0.5
    _, expected, ours, x, rotate = deepseek(dtype, 12, True, YARN, softmax_scale=scale)
    assert close(ours(x, rotate=rotate, absorb=absorb), expected)
    assert round(V3_FACTOR, 2) == 1.87
    _, expected, ours, x, rotate = deepseek(dtype, 12, True, YARN)
    assert (ours(x, rotate=rotate, absorb=absorb) - expected).abs().max() > 1e-3


def test_rows_in_the_order_of_neighbours_fit_and_are_wrong():
    """Known mistake: interleaved rotary weights in a layer that turns halves."""
    weights, expected, ours, x, rotate = deepseek(torch.float64, 12, interleaved=True)
    ours.load_state_dict(deepseek_weights(ours, weights, interleaved=False))
    assert (ours(x, rotate=rotate) - expected).abs().max() > 1e-3


def test_their_names_and_back():
    """Each of our weights is made of theirs, none is left out, no row is lost."""
    weights, _, ours, _, _ = deepseek(torch.float64, None, interleaved=True)
    state, H, K, P = ours.state_dict(), 6, 8, 4
    heads = state["W_query.weight"].unflatten(0, (H, K + P))
    turned = halves_to_pairs(heads[:, K:].flatten(0, 1), H).unflatten(0, (H, P))
    back = torch.cat((heads[:, :K], turned), dim=1).flatten(0, 1)
    assert torch.equal(back, weights["q_proj.weight"])
    numbers = sum(part.numel() for part in weights.values())
    assert sum(part.numel() for part in ours.parameters()) == numbers


@pytest.mark.parametrize("query_latent_dim", [None, 12])
def test_weights_that_are_not_of_this_layer_are_refused(query_latent_dim):
    """Known mistakes: biases dropped without a word; values of another width, whose
    rows are mixed with those of keys where both are 2 K together.
    """
    weights, _, ours, _, _ = deepseek(torch.float64, query_latent_dim, True)
    assert deepseek_shapes(ours) == {n: tuple(p.shape) for n, p in weights.items()}
    bias = {**weights, "o_proj.bias": torch.zeros(24)}
    with pytest.raises(ValueError, match=r"have \['o_proj.bias'\] besides"):
        deepseek_weights(ours, bias)
    longer = {f"self_attn.{name}": part for name, part in weights.items()}
    with pytest.raises(ValueError, match="lack .*kv_a_proj"):
        deepseek_weights(ours, longer)
    narrow = {**weights, "o_proj.weight": torch.zeros(24, 6 * 5)}
    with pytest.raises(ValueError, match=r"o_proj.weight has shape \(24, 30\)"):
        deepseek_weights(ours, narrow)


# --- the cache ------------------------------------------------------------------------


@some
@given(padded(), st.booleans(), st.sampled_from([True, False, None]), st.data())
def test_cached_equals_uncached_for_any_chunks(case, masked, absorb, data):
    """Known mistakes: a cached step with a 1 x 1 mask; a square mask for a continued
    text; rotary keys turned again at each step; the latent normalised twice.
    """
    layer, x, real = case
    T, P = x.shape[1], layer.rope_dim
    cuts = data.draw(st.sets(st.integers(1, T - 1))) if T > 1 else set()
    cache, parts, start = KVCache(1).layer(0), [], 0
    with torch.no_grad():
        for end in [*sorted(cuts), T]:
            seen = real[:, :end] if masked else None
            rotate = rotation(start, end, P, x.dtype)
            parts.append(layer(x[:, start:end], seen, cache, rotate, absorb))
            start = end
        whole = layer(x, real if masked else None, rotate=rotation(0, T, P, x.dtype))
    assert close(torch.cat(parts, dim=1), whole)


@some
@given(sizes, sizes, sizes, sizes, dtypes)
def test_the_formula_gives_the_bytes_of_the_cache(L, B, S, C, dtype):
    """Known mistakes: a factor 2; a cache sized with the number of heads."""
    layer = make(latent_dim=C, rope_dim=2).to(dtype)
    cache = KVCache(L, room=S)
    with torch.no_grad():
        for i in range(L):
            layer(random(B, S, 6, dtype=dtype), cache=cache.layer(i))
    assert cache.nbytes == latent_cache_bytes(L, B, S, C, 2, dtype)


@torch.no_grad()
def test_no_key_of_a_head_is_made_when_one_token_is_read():
    """Known mistake: all latents expanded anew for each token."""
    layer, cache = make(head_dim=16), KVCache(1, room=64).layer(0)
    layer(random(1, 63, 6), cache=cache)
    with torch.profiler.profile(profile_memory=True) as seen:
        layer(random(1, 1, 6), cache=cache)
    largest = max(event.self_cpu_memory_usage for event in seen.key_averages())
    assert largest < 64 * 3 * 16 * 8  # the bytes of all heads' keys


@some
@given(st.integers(1, 300), st.integers(0, 3000), sizes, sizes)
def test_the_cheaper_way_is_chosen_by_count(T, past, K, factor):
    """Counted here as sizes of products: rows times columns times what is summed."""
    S, C = past + T, K * factor

    def product(rows, summed, columns):
        return rows * summed * columns

    expanded = product(S, C, K) + product(T, K, S)
    absorbed = product(T, K, C) + product(T, C, S)
    assert absorbing_is_cheaper(T, S, K, C) == (absorbed < expanded)


def test_a_token_absorbs_and_a_prompt_expands():
    assert absorbing_is_cheaper(1, 4096, head_dim=128, latent_dim=512)
    assert not absorbing_is_cheaper(4096, 4096, head_dim=128, latent_dim=512)


# --- what must hold whatever the weights ----------------------------------------------


@some
@given(layers(), st.booleans(), st.data())
def test_future_token_never_changes_a_past_output(case, absorb, data):
    """Known mistake: mask added as 0/1 instead of hiding."""
    layer, x = case
    t = data.draw(st.integers(0, x.shape[1] - 1))
    changed = x.clone()
    changed[:, t:] += 3.0
    assert close(layer(changed, absorb=absorb)[:, :t], layer(x, absorb=absorb)[:, :t])


@some
@given(padded(), st.booleans())
def test_padding_never_changes_an_answer(case, absorb):
    layer, x, real = case
    changed = torch.where(real[..., None], x, 7 * torch.randn_like(x))
    found = layer(changed, real, absorb=absorb)[real]
    assert close(found, layer(x, real, absorb=absorb)[real])


@pytest.mark.parametrize("absorb", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_row_of_padding_alone_gives_zeros(dtype, absorb):
    """Known mistake: NaN from fully masked rows, here also in the gradients."""
    layer, real = make().to(dtype), torch.ones(2, 3, dtype=torch.bool)
    real[0] = False
    x = random(2, 3, 6).to(dtype).requires_grad_()
    out = layer(x, real, absorb=absorb)
    out.sum().backward()
    assert not out[0].any()
    assert out[1].all()
    assert out.dtype == dtype
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_rows_of_weights_sum_to_one():
    """Known mistake: softmax over the wrong axis."""
    hidden = torch.ones(4, 7, dtype=torch.bool).triu(4)
    weights = masked_softmax(random(2, 3, 4, 7), hidden)
    assert close(weights.sum(dim=-1), torch.ones(2, 3, 4).double())
    assert not weights[..., hidden].any()


def test_only_the_rotary_part_knows_its_position():
    """Known mistake: the content part rotated as well, which cannot be absorbed."""
    layer, shapes = make(), []

    def rotate(heads):
        shapes.append(tuple(heads.shape))
        return 0 * heads

    x = random(1, 4, 6)
    shuffled = x[:, [2, 0, 1, 3]]
    last = layer(x, rotate=rotate)[:, -1]
    assert shapes == [(1, 3, 4, 4), (1, 1, 4, 4)]
    assert close(layer(shuffled, rotate=rotate)[:, -1], last)
    turn = rotation(0, 4, 4)
    assert not close(layer(shuffled, rotate=turn)[:, -1], layer(x, rotate=turn)[:, -1])


@torch.no_grad()
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": random(3, 6)}, r"2 dimensions: give \(batch, tokens, width\)"),
        ({"x": random(1, 3, 5)}, "5 wide, but this layer was made for d_in=6"),
        ({"attention_mask": torch.ones(1, 3).bool()}, r"must be \(1, 5\)"),
    ],
)
def test_wrong_input_is_refused_and_the_cache_stays(arguments, message):
    layer, cache = make(), KVCache(1).layer(0)
    layer(random(1, 2, 6), cache=cache)
    call = {"x": random(1, 3, 6), "cache": cache, **arguments}
    with pytest.raises(ValueError, match=message):
        layer(**call)
    assert cache.length == 2


def test_impossible_sizes_are_refused():
    """Known mistake: queries of zeros, from a latent of no numbers."""
    names = ("num_heads", "latent_dim", "head_dim", "rope_dim", "query_latent_dim")
    for name in names:
        for size in (0, -1, 2.5):
            with pytest.raises(ValueError, match=f"{name} is {size}: give a whole"):
                make(**{name: size})
    with pytest.raises(ValueError, match="rope_dim=3 cannot be shared"):
        make(rope_dim=3)


# --- in a model -----------------------------------------------------------------------


class LatentModel(LlamaModel):
    """A Llama whose attention keeps latents, twice as wide as its rotary part."""

    def __init__(self, cfg):
        super().__init__(cfg)
        with_parts(
            self,
            attention=lambda layer: MultiHeadLatentAttention(
                self.cfg["emb_dim"],
                num_heads=self.cfg["n_heads"],
                latent_dim=2 * self.cfg["head_dim"],
                head_dim=3,
                rope_dim=self.cfg["head_dim"],
                query_latent_dim=None if layer else 5,
            ),
        )


def configs():
    return st.builds(
        lambda H, P, D, L, tied: {
            **TINY_LLAMA,
            "n_heads": H,
            "head_dim": 2 * P,
            "emb_dim": D,
            "n_layers": L,
            "tie_weights": tied,
        },
        sizes,
        st.integers(1, 2),
        st.integers(2, 9),
        st.integers(1, 2),
        st.booleans(),
    )


class TestLatentModel(ModelContract):
    tiny = TINY_LLAMA
    configs = staticmethod(configs)
    make_model = LatentModel
    make_cache = staticmethod(lambda cfg: KVCache(cfg["n_layers"]))
    generate = staticmethod(generate_text_simple)
