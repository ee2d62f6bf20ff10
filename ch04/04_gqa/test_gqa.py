"""Grouped-query attention proved: against MultiHeadAttention, PyTorch, transformers.

Bounds: float32 within 1e-5, float64 within 1e-10.
"""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from course.testing.model_contract import BOUNDS, close, seeds
from gqa import GroupedQueryAttention, pool_groups
from kv_cache import KVCache
from llama import LLAMA31_8B, SMOLLM2_135M
from multihead_attention import MultiHeadAttention

PROJECTIONS = ("W_query", "W_key", "W_value")

some = settings(max_examples=30, deadline=None)
sizes = st.integers(min_value=1, max_value=4)
dtypes = st.sampled_from(list(BOUNDS))


# --- what the tests are made of -------------------------------------------------------


def make_layer(d_in, num_heads, num_kv_groups, head_dim=None, **options):
    return GroupedQueryAttention(
        d_in,
        num_heads=num_heads,
        num_kv_groups=num_kv_groups,
        head_dim=head_dim,
        **options,
    )


@st.composite
def layers(draw):
    """A layer of drawn sizes, its head width any, and a batch for it."""
    G, R, K, d_in = (draw(sizes) for _ in range(4))
    dtype, B, T = draw(dtypes), draw(sizes), draw(st.integers(1, 9))
    torch.manual_seed(draw(seeds))
    bias = draw(st.booleans())
    layer = make_layer(d_in, G * R, G, K, qkv_bias=bias)
    return layer.to(dtype).eval(), torch.randn(B, T, d_in, dtype=dtype)


@st.composite
def padded(draw):
    """A layer, a batch, and any mask: left, right, holes, only padding."""
    layer, x = draw(layers())
    B, T, _ = x.shape
    row = st.lists(st.booleans(), min_size=T, max_size=T)
    return layer, x, torch.tensor(draw(st.lists(row, min_size=B, max_size=B)))


def make(d_in=6, num_heads=4, num_kv_groups=2, head_dim=3, seed=0, **options):
    torch.manual_seed(seed)
    layer = make_layer(d_in, num_heads, num_kv_groups, head_dim, **options)
    return layer.double().eval()


def random(*shape, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def heads_of(layer, x):
    """Queries, keys and values as PyTorch's attention takes them."""
    projected = (getattr(layer, name)(x) for name in PROJECTIONS)
    return [p.unflatten(-1, (-1, layer.head_dim)).transpose(1, 2) for p in projected]


def reference(layer, x, real=None):
    """The layer's answer by way of repeated keys and PyTorch's own attention."""
    queries, keys, values = heads_of(layer, x)
    R = layer.num_heads // layer.num_kv_groups
    keys, values = (part.repeat_interleave(R, dim=1) for part in (keys, values))
    visible = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    if real is not None:
        visible = visible & real[:, None, None, :]
    context = F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible)
    return layer.out_proj(context.transpose(1, 2).flatten(2))


# --- against what is known ------------------------------------------------------------


@some
@given(layers())
def test_equals_attention_over_repeated_keys(case):
    """Known mistakes: groups in another order; softmax over the wrong axis; scaling by
    the model's width instead of the head's.
    """
    layer, x = case
    assert close(layer(x), reference(layer, x))


@some
@given(padded())
def test_equals_it_with_any_padding_too(case):
    layer, x, real = case
    assert close(layer(x, real), reference(layer, x, real))


@some
@given(layers())
def test_equals_the_fused_kernel_of_pytorch(case):
    layer, x = case
    context = F.scaled_dot_product_attention(
        *heads_of(layer, x), is_causal=True, enable_gqa=True
    )
    assert close(layer(x), layer.out_proj(context.transpose(1, 2).flatten(2)))


@some
@given(sizes, sizes, dtypes, st.booleans(), seeds, st.booleans())
def test_as_many_groups_as_heads_is_multi_head_attention(H, K, dtype, bias, seed, mask):
    torch.manual_seed(seed)
    D = H * K
    many = MultiHeadAttention(D, D, 9, 0.0, H, bias).to(dtype).eval()
    nn.init.zeros_(many.out_proj.bias)
    grouped = make_layer(D, H, H, qkv_bias=bias).to(dtype)
    state = {k: v for k, v in many.state_dict().items() if k != "out_proj.bias"}
    grouped.load_state_dict(state)
    x, real = torch.randn(2, 9, D, dtype=dtype), None
    if mask:
        real = torch.rand(2, 9) < 0.7
    assert close(grouped(x, real), many(x, real))
    with torch.no_grad():
        pair = [(layer, KVCache(1).layer(0)) for layer in (grouped, many)]
        for start, end in ((0, 4), (4, 5), (5, 9)):
            seen = None if real is None else real[:, :end]
            ours, theirs = (layer(x[:, start:end], seen, c) for layer, c in pair)
            assert close(ours, theirs)


def test_each_group_serves_its_own_heads_in_order():
    """Known mistake: `repeat` (groups 0 1 0 1) in place of `repeat_interleave`."""
    layer, x = make(num_heads=6, num_kv_groups=2, head_dim=3), random(1, 5, 6)
    nn.init.zeros_(layer.out_proj.weight)
    layer.out_proj.weight.data[:, :6] = torch.eye(6).double()  # shows heads 0 and 1
    before = layer(x)
    layer.W_value.weight.data[3:] += 1.0  # group 1, which serves heads 3 to 5
    assert torch.equal(layer(x), before)
    layer.W_value.weight.data[:3] += 1.0
    assert not close(layer(x), before)


def llama_attention(D, H, G, K):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaAttention

    return LlamaAttention, LlamaConfig(
        hidden_size=D, num_attention_heads=H, num_key_value_heads=G, head_dim=K
    )


def qwen2_attention(D, H, G, K):
    """The same with a bias on queries, keys and values."""
    from transformers import Qwen2Config
    from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

    return Qwen2Attention, Qwen2Config(
        hidden_size=D, num_attention_heads=H, num_key_value_heads=G, head_dim=K
    )


@pytest.mark.parametrize("reference_of", [llama_attention, qwen2_attention])
@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize(("H", "G", "K"), [(6, 2, 4), (4, 1, 6), (3, 3, 2), (8, 4, 10)])
def test_equals_the_attention_of_transformers(reference_of, H, G, K, dtype):
    """With rotary positions, which theirs applies itself and ours by its hook."""
    D, T = 24, 7
    kind, cfg = reference_of(D, H, G, K)
    cfg._attn_implementation = "sdpa"  # the other takes softmax in float32
    torch.manual_seed(0)
    theirs = kind(cfg, layer_idx=0).to(dtype).eval()
    bias = theirs.q_proj.bias is not None
    assert bias == (reference_of is qwen2_attention)
    ours = make_layer(D, H, G, K, qkv_bias=bias).to(dtype).eval()
    names = dict(zip((*PROJECTIONS, "out_proj"), "qkvo", strict=True))
    for our, letter in names.items():
        state = getattr(theirs, f"{letter}_proj").state_dict()
        getattr(ours, our).load_state_dict(state)
    angles = random(1, T, K // 2, dtype=dtype).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()

    def rotate(heads):
        first, second = heads.chunk(2, dim=-1)
        return heads * cos + torch.cat((-second, first), dim=-1) * sin

    hidden = torch.full((T, T), -torch.inf, dtype=dtype).triu(1)[None, None]
    x = random(2, T, D, dtype=dtype)
    expected, _ = theirs(x, position_embeddings=(cos, sin), attention_mask=hidden)
    assert close(ours(x, rotate=rotate), expected)


def test_heads_of_real_models_are_as_the_notebook_says():
    """Its table against released configurations, where transformers has them.

    The other rows are from reports and model cards, which the notebook names.
    """
    import transformers

    text = (Path(__file__).parent / "gqa.ipynb").read_text(encoding="utf-8")
    found = re.findall(r"\| ([^|]+) \| 20\d\d \| (\d+) \| (\d+) \| (\d+) \|", text)
    table = {name: (int(H), int(G)) for name, H, G, _ in found}
    assert len(table) >= 15
    assert all(int(H) == int(G) * int(R) for _, H, G, R in found)
    released = {
        "Falcon 7B": transformers.FalconConfig(),
        "Llama 2, 7B": transformers.LlamaConfig(),
        "Mistral 7B": transformers.MistralConfig(),
        "SmolLM3-3B": transformers.SmolLM3Config(),
        "gpt-oss-20b": transformers.GptOssConfig(),
        "GLM-4.5": transformers.Glm4MoeConfig(),
        "Olmo 3, 7B": transformers.Olmo3Config(),
        "Ministral 3, 8B": transformers.Ministral3Config(),
        "GPT-2, 124M": transformers.GPT2Config(),
    }
    for name, cfg in released.items():
        heads = cfg.num_attention_heads
        groups = 1 if getattr(cfg, "multi_query", False) else heads
        assert table[name] == (
            heads,
            getattr(cfg, "num_key_value_heads", None) or groups,
        )
    for name, cfg in {
        "Llama 3.1, 8B": LLAMA31_8B,
        "SmolLM2-135M": SMOLLM2_135M,
    }.items():
        assert table[name] == (cfg.n_heads, cfg.n_kv_groups)


# --- fewer groups ---------------------------------------------------------------------


@some
@given(layers())
def test_pooling_copies_gives_the_layer_back(case):
    """Known mistakes: the wrong heads are merged; a sum in place of a mean."""
    layer, x = case
    H, K = layer.num_heads, layer.head_dim
    bias = layer.W_key.bias is not None
    copied = make_layer(layer.d_in, H, H, K, qkv_bias=bias).to(x.dtype)
    weights = layer.state_dict()
    for name in weights:
        if name.startswith(("W_key", "W_value")):
            heads = weights[name].unflatten(0, (-1, K))
            copies = heads.repeat_interleave(H // layer.num_kv_groups, dim=0)
            weights[name] = copies.flatten(0, 1)
    copied.load_state_dict(weights)
    assert close(copied(x), layer(x))
    assert close(pool_groups(copied, layer.num_kv_groups)(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_pooled_keys_are_means_of_neighbours(dtype):
    layer = make(num_heads=8, num_kv_groups=4, qkv_bias=True).to(dtype)
    pooled = pool_groups(layer, 2)
    assert pooled.num_kv_groups == 2
    for name in ("W_key", "W_value"):
        before, after = getattr(layer, name), getattr(pooled, name)
        expected = (before.weight[:3] + before.weight[3:6]) / 2
        assert torch.equal(after.weight[:3], expected)
        assert torch.equal(after.bias[3:], (before.bias[6:9] + before.bias[9:]) / 2)
    for name in ("W_query", "out_proj"):
        assert torch.equal(getattr(pooled, name).weight, getattr(layer, name).weight)
    assert layer.num_kv_groups == 4
    pooled.W_query.weight.data.zero_()
    assert layer.W_query.weight.any()


@some
@given(layers())
def test_pooling_to_as_many_changes_nothing(case):
    layer, x = case
    assert close(pool_groups(layer, layer.num_kv_groups)(x), layer(x))


@pytest.mark.parametrize("groups", [3, 8, 0])
def test_groups_that_do_not_merge_evenly_are_refused(groups):
    with pytest.raises(ValueError, match="groups"):
        pool_groups(make(num_heads=4, num_kv_groups=4), groups)


# --- the cache ------------------------------------------------------------------------


@some
@given(padded(), st.booleans(), st.data())
def test_cached_equals_uncached_for_any_chunks(case, masked, data):
    """Known mistakes: a cached step with a 1 x 1 mask; causal mask aligned to the top
    left when queries are fewer than keys; a square mask for a chunked continuation.
    """
    layer, x, real = case
    T = x.shape[1]
    cuts = data.draw(st.sets(st.integers(1, T - 1))) if T > 1 else set()
    cache, parts, start = KVCache(1).layer(0), [], 0
    with torch.no_grad():
        for end in [*sorted(cuts), T]:
            seen = real[:, :end] if masked else None
            parts.append(layer(x[:, start:end], seen, cache))
            start = end
        assert close(torch.cat(parts, dim=1), layer(x, real if masked else None))


@torch.no_grad()
def test_cache_holds_groups_not_heads():
    """Known mistake: a cache sized with query heads."""
    layer, cache = make(num_heads=6, num_kv_groups=2, head_dim=5), KVCache(1)
    layer(random(3, 4, 6), cache=cache.layer(0))
    layer(random(3, 1, 6), cache=cache.layer(0))
    assert cache.layer(0).keys.shape == cache.layer(0).values.shape == (3, 2, 5, 5)


@torch.no_grad()
def test_keys_are_rotated_once_before_they_are_cached():
    """Known mistake: all keys rotated again at every step; values rotated, too."""
    layer, cache, shapes = make(head_dim=2), KVCache(1).layer(0), []

    def rotate(heads):
        shapes.append(tuple(heads.shape))
        return 2 * heads

    x = random(1, 4, 6)
    plain = heads_of(layer, x)
    layer(x[:, :3], cache=cache, rotate=rotate)
    layer(x[:, 3:], cache=cache, rotate=rotate)
    assert shapes == [(1, 4, 3, 2), (1, 2, 3, 2), (1, 4, 1, 2), (1, 2, 1, 2)]
    assert close(cache.keys, 2 * plain[1])
    assert close(cache.values, plain[2])


@torch.no_grad()
@pytest.mark.parametrize(
    ("dtype", "most"),
    [(torch.float64, 0.5), (torch.float32, 0.5), (torch.bfloat16, 2.5)],
)
def test_keys_are_never_repeated_in_memory(dtype, most):
    """Known mistake: keys copied for each head, which nothing but memory shows.

    Six heads in two groups read a cache with room. Of its keys and values none is
    copied; in bfloat16 at most each once, where repeating would make three of each.
    """
    layer = make(num_heads=6, num_kv_groups=2, head_dim=64).to(dtype)
    queries, room = random(2, 6, 1, 64).to(dtype), random(2, 2, 2, 43, 64).to(dtype)
    keys, values = room[:, :, :, :40]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        layer.attend(queries, keys, values, None)
    taken = (getattr(event, "self_cpu_memory_usage", 0) for event in record.events())
    one_copy = keys.numel() * dtype.itemsize
    assert sum(max(0, size) for size in taken) < most * one_copy


# --- what must hold whatever the weights ----------------------------------------------


@some
@given(layers(), st.data())
def test_future_token_never_changes_a_past_output(case, data):
    """Known mistake: mask added as 0/1 instead of hiding."""
    layer, x = case
    t = data.draw(st.integers(0, x.shape[1] - 1))
    changed = x.clone()
    changed[:, t:] += 3.0
    assert close(layer(changed)[:, :t], layer(x)[:, :t])


@some
@given(padded())
def test_padding_never_changes_an_answer(case):
    layer, x, real = case
    changed = torch.where(real[..., None], x, 7 * torch.randn_like(x))
    assert close(layer(changed, real)[real], layer(x, real)[real])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_row_of_padding_alone_gives_zeros(dtype):
    """Known mistake: NaN from fully masked rows, here also in the gradients."""
    layer, real = make().to(dtype), torch.ones(2, 3, dtype=torch.bool)
    real[0] = False
    x = random(2, 3, 6).to(dtype).requires_grad_()
    out = layer(x, real)
    out.sum().backward()
    assert not out[0].any()
    assert out[1].all()
    assert out.dtype == dtype
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("kind", [torch.int64, torch.uint8])
def test_mask_may_be_integers(kind):
    layer, x, real = make(), random(2, 3, 6), torch.tensor([[0, 1, 1], [1, 1, 0]])
    assert torch.equal(layer(x, real.to(kind)), layer(x, real.bool()))


def test_no_context_is_too_long():
    """Nothing is stored but weights: a mask for 131,072 tokens would take 17 GB."""
    layer = make()
    assert list(layer.state_dict()) == [name for name, _ in layer.named_parameters()]
    assert not list(layer.buffers())
    with torch.no_grad(), torch.device("meta"):
        wide = GroupedQueryAttention(d_in=64, num_heads=4, num_kv_groups=2)
        cache = KVCache(1, max_length=131_072).layer(0)
        wide(torch.zeros(1, 131_071, 64), cache=cache)
        assert wide(torch.zeros(1, 1, 64), cache=cache).shape == (1, 1, 64)


def test_one_token_alone_gets_its_own_value():
    layer, x = make(num_heads=4, num_kv_groups=4), random(2, 1, 6)
    assert close(layer(x), layer.out_proj(layer.W_value(x)))


# --- bad input: one clear sentence ----------------------------------------------------


def test_sizes_in_the_order_of_other_implementations_are_refused():
    """Known mistake: (d_in, d_out, heads, groups) made 32 heads of width 2."""
    with pytest.raises(TypeError, match="positional arguments"):
        GroupedQueryAttention(32, 32, 4, 2)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((6, 4, 3), "num_heads=4 cannot be shared by num_kv_groups=3 evenly"),
        ((6, 2, 4), "num_heads=2 cannot be shared by num_kv_groups=4"),
        ((7, 4, 2), "d_in=7 cannot be shared by num_heads=4 evenly"),
        ((6, 4, 0), "num_kv_groups is 0: give a whole number"),
        ((6, 4.0, 2), "num_heads is 4.0"),
        ((0, 4, 2), "d_in is 0"),
        ((6, 4, 2, -1), "head_dim is -1"),
        ((6, 4, 2, True), "head_dim is True"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_layer(*sizes)


@torch.no_grad()
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": random(3, 6)}, r"2 dimensions: give \(batch, tokens, width\)"),
        ({"x": random(1, 3, 5)}, "5 wide, but this layer was made for d_in=6"),
        ({"x": random(1, 0, 6)}, "no token at all"),
        ({"attention_mask": torch.ones(1, 3).bool()}, r"must be \(1, 5\)"),
        ({"attention_mask": torch.ones(1, 5)}, "give bool, or integers"),
    ],
)
def test_wrong_input_is_refused_and_the_cache_stays(arguments, message):
    layer, cache = make(), KVCache(1).layer(0)
    layer(random(1, 2, 6), cache=cache)
    call = {"x": random(1, 3, 6), "cache": cache, **arguments}
    with pytest.raises(ValueError, match=message):
        layer(**call)
    assert cache.length == 2
