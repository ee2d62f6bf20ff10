"""Attention proved: against loops, each other, PyTorch's own, and known mistakes.

Two references: `scaled_dot_product_attention` (SDPA below) and `nn.MultiheadAttention`,
both fed with copied weights. Bounds: float32 within 1e-5, float64 within 1e-10.
"""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from course.testing.model_contract import BOUNDS, close, seeds
from multihead_attention import (
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    PlainMultiHeadAttention,
    SelfAttention_v1,
    SelfAttention_v2,
)

PROJECTIONS = ("W_query", "W_key", "W_value")
CONTEXT = 12

some = settings(max_examples=40, deadline=None)
sizes = st.integers(min_value=1, max_value=5)
dtypes = st.sampled_from(list(BOUNDS))


# --- what the tests are made of -------------------------------------------------------


@st.composite
def layers(draw, causal_length=CONTEXT, square=False):
    """A `MultiHeadAttention` of drawn sizes, in evaluation mode, and a batch for it."""
    H, K = draw(sizes), draw(sizes)
    d_in = H * K if square else draw(sizes)
    dtype, B, T = draw(dtypes), draw(sizes), draw(st.integers(1, causal_length))
    torch.manual_seed(draw(seeds))
    layer = MultiHeadAttention(d_in, H * K, causal_length, 0.0, H, draw(st.booleans()))
    return layer.to(dtype).eval(), torch.randn(B, T, d_in, dtype=dtype)


@st.composite
def padded(draw, **options):
    """A layer, a batch, and any mask: left, right, holes, only padding."""
    layer, x = draw(layers(**options))
    B, T, _ = x.shape
    row = st.lists(st.booleans(), min_size=T, max_size=T)
    return layer, x, torch.tensor(draw(st.lists(row, min_size=B, max_size=B)))


def make_layer(d_in=6, d_out=8, num_heads=4, dtype=torch.float64, seed=0, **options):
    torch.manual_seed(seed)
    dropout = options.pop("dropout", 0.0)
    layer = MultiHeadAttention(d_in, d_out, CONTEXT, dropout, num_heads, **options)
    return layer.to(dtype).eval()


def random(*shape, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def weights_of(layer, x, **arguments):
    """The attention weights: what the layer hands to its dropout."""
    seen = []
    hook = layer.dropout.register_forward_hook(lambda _, args, out: seen.append(args))
    layer(x, **arguments)
    hook.remove()
    return seen[0][0]


def split(x, num_heads):
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def causal(T, S=None):
    """True where a query may look: SDPA's sense of a mask, square or bottom right."""
    S = S or T
    return torch.ones(T, S, dtype=torch.bool).tril(diagonal=S - T)


def reference(layer, x, real=None):
    """The layer's answer by way of SDPA."""
    parts = (split(getattr(layer, name)(x), layer.num_heads) for name in PROJECTIONS)
    visible = causal(x.shape[1])
    if real is not None:
        visible = visible & real[:, None, None, :]
    context = F.scaled_dot_product_attention(*parts, attn_mask=visible)
    return layer.out_proj(context.transpose(1, 2).flatten(2))


def copy_head(source, head, rows=slice(None)):
    with torch.no_grad():
        for name in PROJECTIONS:
            wide, part = getattr(source, name), getattr(head, name)
            part.weight.copy_(wide.weight[rows])
            if part.bias is not None:
                part.bias.copy_(wide.bias[rows])


class ConcatenatingCache:
    """The plainest thing that a layer takes as its cache."""

    def __init__(self):
        self.length, self.keys, self.values = 0, [], []

    def append(self, keys, values):
        self.keys.append(keys)
        self.values.append(values)
        self.length += keys.shape[2]
        return torch.cat(self.keys, dim=2), torch.cat(self.values, dim=2)


# --- each class equals the one before it, and PyTorch's own ---------------------------


def test_v1_equals_attention_written_with_loops():
    torch.manual_seed(0)
    attention, x = SelfAttention_v1(3, 2).double(), random(4, 3)
    rows = []
    for i in range(4):
        query = x[i] @ attention.W_query
        scores = [(query @ (x[j] @ attention.W_key)).item() for j in range(4)]
        exponentials = [math.exp(score / math.sqrt(2)) for score in scores]
        rows.append(
            sum(
                e / sum(exponentials) * (x[j] @ attention.W_value)
                for j, e in enumerate(exponentials)
            )
        )
    assert close(attention(x), torch.stack(rows))


@some
@given(sizes, sizes, sizes, sizes, dtypes, seeds)
def test_v2_equals_v1_with_transposed_weights(B, T, d_in, d_out, dtype, seed):
    torch.manual_seed(seed)
    v1 = SelfAttention_v1(d_in, d_out).to(dtype)
    v2 = SelfAttention_v2(d_in, d_out).to(dtype)
    with torch.no_grad():
        for name in PROJECTIONS:
            getattr(v1, name).copy_(getattr(v2, name).weight.T)
    x = torch.randn(B, T, d_in, dtype=dtype)
    assert close(v1(x), v2(x))
    assert close(v1(x)[0], v1(x[0]))  # one sequence may come without a batch
    assert close(v2(x)[0], v2(x[0]))


@some
@given(sizes, sizes, sizes, sizes, st.booleans(), dtypes, seeds)
def test_v2_equals_sdpa(B, T, d_in, d_out, qkv_bias, dtype, seed):
    torch.manual_seed(seed)
    attention = SelfAttention_v2(d_in, d_out, qkv_bias).to(dtype)
    x = torch.randn(B, T, d_in, dtype=dtype)
    parts = (getattr(attention, name)(x) for name in PROJECTIONS)
    assert close(attention(x), F.scaled_dot_product_attention(*parts))


@pytest.mark.parametrize("kind", [SelfAttention_v1, SelfAttention_v2])
def test_without_mask_and_positions_the_order_of_tokens_does_not_matter(kind):
    torch.manual_seed(0)
    attention, x = kind(3, 2).double(), random(6, 3)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert close(attention(x[order]), attention(x)[order])


@some
@given(sizes, sizes, sizes, sizes, st.booleans(), dtypes, seeds)
def test_causal_attention_equals_v2_on_every_prefix(B, T, d_in, d_out, bias, dtype, s):
    """What token t returns is what v2 returns for the text that ends with it."""
    torch.manual_seed(s)
    plain = SelfAttention_v2(d_in, d_out, bias).to(dtype)
    attention = CausalAttention(d_in, d_out, CONTEXT, 0.0, bias).to(dtype)
    copy_head(plain, attention)
    x = torch.randn(B, T, d_in, dtype=dtype)
    prefixes = [plain(x[:, : t + 1])[:, -1] for t in range(T)]
    assert close(attention(x), torch.stack(prefixes, dim=1))


@some
@given(sizes, st.integers(1, CONTEXT), sizes, sizes, dtypes, seeds)
def test_causal_attention_equals_sdpa(B, T, d_in, d_out, dtype, seed):
    torch.manual_seed(seed)
    attention = CausalAttention(d_in, d_out, CONTEXT, 0.0).to(dtype)
    x = torch.randn(B, T, d_in, dtype=dtype)
    parts = (getattr(attention, name)(x) for name in PROJECTIONS)
    expected = F.scaled_dot_product_attention(*parts, is_causal=True)
    assert close(attention(x), expected)


def test_wrapper_with_one_head_is_causal_attention():
    torch.manual_seed(0)
    wrapper = MultiHeadAttentionWrapper(3, 2, CONTEXT, 0.0, num_heads=1).double()
    x = random(2, 5, 3)
    assert torch.equal(wrapper(x), wrapper.heads[0](x))


def test_wrapper_heads_keep_their_place_and_their_own_weights():
    torch.manual_seed(0)
    wrapper = MultiHeadAttentionWrapper(3, 2, CONTEXT, 0.0, num_heads=3).double()
    x = random(2, 5, 3)
    out = wrapper(x)
    assert out.shape == (2, 5, 6)
    for i, head in enumerate(wrapper.heads):
        assert torch.equal(out[..., 2 * i : 2 * i + 2], head(x))
    assert not close(wrapper.heads[0](x), wrapper.heads[1](x))


@some
@given(layers())
def test_multi_head_attention_equals_the_wrapper(case):
    """The wide matrices hold the heads one below the other."""
    layer, x = case
    H, K = layer.num_heads, layer.head_dim
    bias = layer.W_query.bias is not None
    wrapper = MultiHeadAttentionWrapper(layer.d_in, K, CONTEXT, 0.0, H, bias)
    wrapper = wrapper.to(x.dtype).eval()
    for i, head in enumerate(wrapper.heads):
        copy_head(layer, head, slice(i * K, (i + 1) * K))
    assert close(layer(x), layer.out_proj(wrapper(x)))


@some
@given(layers())
def test_the_plain_class_is_the_whole_one_without_padding_and_cache(case):
    layer, x = case
    sizes = (layer.d_in, layer.d_out, len(layer.mask), 0.0, layer.num_heads)
    plain = PlainMultiHeadAttention(*sizes, layer.W_query.bias is not None)
    plain.load_state_dict(layer.state_dict())
    assert close(plain.to(x.dtype)(x), layer(x))


def test_the_plain_class_starts_with_the_same_weights():
    torch.manual_seed(3)
    plain = PlainMultiHeadAttention(6, 8, CONTEXT, 0.0, 4).state_dict()
    torch.manual_seed(3)
    whole = MultiHeadAttention(6, 8, CONTEXT, 0.0, 4).state_dict()
    assert list(plain) == list(whole)
    assert all(torch.equal(plain[name], whole[name]) for name in plain)


@some
@given(layers())
def test_multi_head_attention_equals_sdpa(case):
    layer, x = case
    assert close(layer(x), reference(layer, x))


@some
@given(padded())
def test_multi_head_attention_with_any_padding_equals_sdpa(case):
    """Rows that see nothing included: SDPA gives them zeros, too."""
    layer, x, real = case
    assert close(layer(x, attention_mask=real), reference(layer, x, real))
    assert torch.equal(layer(x, real.long()), layer(x, real))  # as tokenizers give it


@some
@given(padded(square=True))
def test_multi_head_attention_equals_nn_multihead_attention(case):
    """Outputs and each head's weights; the reference gives NaN where all is hidden."""
    layer, x, real = case
    theirs = nn.MultiheadAttention(
        layer.d_out, layer.num_heads, batch_first=True, dtype=x.dtype
    ).eval()
    with torch.no_grad():
        ours = [getattr(layer, name) for name in PROJECTIONS]
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in ours]))
        theirs.in_proj_bias.zero_()
        if ours[0].bias is not None:
            theirs.in_proj_bias.copy_(torch.cat([part.bias for part in ours]))
        theirs.out_proj.load_state_dict(layer.out_proj.state_dict())
    expected, weights = theirs(
        x,
        x,
        x,
        key_padding_mask=~real,
        attn_mask=~causal(x.shape[1]),
        average_attn_weights=False,
    )
    sees = (causal(x.shape[1]) & real[:, None, :]).any(dim=-1)  # (B, T)
    assert close(layer(x, real)[sees], expected[sees])
    found = weights_of(layer, x, attention_mask=real).transpose(1, 2)
    assert close(found[sees], weights.transpose(1, 2)[sees])


@some
@given(padded())
def test_gradients_equal_those_of_sdpa(case):
    layer, x, real = case
    x.requires_grad_()
    wanted = [x, *layer.parameters()]
    direction = torch.randn_like(layer(x))

    def gradients(out):
        return torch.autograd.grad((out * direction).sum(), wanted, allow_unused=True)

    ours = gradients(layer(x, real))
    for found, expected in zip(ours, gradients(reference(layer, x, real)), strict=True):
        scale = max(1.0, expected.abs().max().item())
        assert close(found / scale, expected / scale)


def test_one_head_as_wide_as_the_layer_is_causal_attention_and_a_projection():
    layer = make_layer(num_heads=1)
    single = CausalAttention(6, 8, CONTEXT, 0.0).double()
    copy_head(layer, single)
    x = random(2, 7, 6)
    assert close(layer(x), layer.out_proj(single(x)))


# --- what must hold whatever the weights ----------------------------------------------


def causal_layers():
    torch.manual_seed(0)
    return [
        CausalAttention(6, 8, CONTEXT, 0.0).double(),
        MultiHeadAttentionWrapper(6, 2, CONTEXT, 0.0, 4).double(),
        make_layer(),
    ]


@pytest.mark.parametrize("layer", causal_layers(), ids=lambda x: type(x).__name__)
def test_future_token_never_changes_a_past_output(layer):
    """Known mistakes: mask added as 0/1, not minus infinity; mask off by one."""
    x = random(2, CONTEXT, 6)
    before = layer(x)
    for t in range(1, CONTEXT):
        changed = x.clone()
        changed[:, t:] = 1e3 * random(2, CONTEXT - t, 6, seed=t)
        after = layer(changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert not close(after[:, t], before[:, t])  # a token does see itself


@some
@given(padded(), st.data())
def test_future_token_never_changes_a_past_output_of_a_padded_batch(case, data):
    """Not even that of a query which sees nothing: it must not average the future."""
    layer, x, real = case
    t = data.draw(st.integers(0, x.shape[1] - 1))
    changed = x.clone()
    changed[:, t:] += 1.0
    assert torch.equal(layer(changed, real)[:, :t], layer(x, real)[:, :t])


@some
@given(padded())
def test_what_stands_in_a_padded_place_never_changes_a_real_output(case):
    layer, x, real = case
    changed = torch.where(real[..., None], x, 1e3 * torch.ones_like(x))
    assert torch.equal(layer(changed, real)[real], layer(x, real)[real])


@some
@given(padded())
def test_batch_rows_do_not_see_each_other(case):
    layer, x, real = case
    together = layer(x, real)
    for b in range(len(x)):
        assert close(layer(x[b : b + 1], real[b : b + 1]), together[b : b + 1])
    changed = x.clone()
    changed[1:] = 7.0
    assert torch.equal(layer(changed, real)[0], together[0])


@some
@given(padded())
def test_rows_of_weights_sum_to_1_and_hidden_keys_get_none(case):
    """Known mistake: softmax over the wrong axis."""
    layer, x, real = case
    T = x.shape[1]
    weights = weights_of(layer, x, attention_mask=real)  # (B, H, T, T)
    visible = (causal(T) & real[:, None, None, :]).expand_as(weights)
    assert (weights[~visible] == 0).all()
    assert (weights >= 0).all()
    expected = visible.any(dim=-1).to(x.dtype)  # 0 for a query that sees nothing
    assert close(weights.sum(dim=-1), expected)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_padded_tokens_never_give_nan(dtype):
    """Known mistake: NaN from fully masked rows, here also in the gradients."""
    layer, x = make_layer(dtype=dtype, seed=3), random(4, 5, 6, dtype=dtype)
    x = (30 * x).requires_grad_()
    real = torch.tensor(
        [[0, 0, 0, 0, 0], [0, 0, 0, 0, 1], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]
    )
    with torch.autograd.set_detect_anomaly(True):  # raises for NaN on the way, too
        out = layer(x, attention_mask=real)
        out.float().square().sum().backward()
    assert out.dtype == dtype
    assert out.isfinite().all()
    assert torch.equal(out[0], layer.out_proj.bias.expand(5, -1))
    for tensor in (x, *layer.parameters()):
        assert tensor.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_half_and_near_float32(dtype):
    layer, x = make_layer(dtype=torch.float32), random(2, 9, 6, dtype=torch.float32)
    half = copy.deepcopy(layer).to(dtype)(x.to(dtype))
    assert half.dtype == dtype
    assert (half.float() - layer(x)).abs().max() < 0.02


def test_a_mask_of_ones_changes_nothing():
    layer, x = make_layer(), random(3, 7, 6)
    assert torch.equal(layer(x, torch.ones(3, 7, dtype=torch.bool)), layer(x))


# --- dropout --------------------------------------------------------------------------


def layers_with_dropout(dropout):
    torch.manual_seed(0)
    return [
        CausalAttention(6, 8, CONTEXT, dropout).double(),
        MultiHeadAttentionWrapper(6, 2, CONTEXT, dropout, 4).double(),
        make_layer(dropout=dropout),
    ]


@pytest.mark.parametrize("i", range(3))
def test_evaluation_is_deterministic_and_training_is_not(i):
    """Known mistake: dropout left on in evaluation."""
    layer, without = layers_with_dropout(0.5)[i], layers_with_dropout(0.0)[i]
    x = random(2, 9, 6)
    layer.eval()
    first, second = layer(x), layer(x)
    assert torch.equal(first, second)
    assert torch.equal(first, without.eval()(x))
    layer.train()
    first, second = layer(x), layer(x)
    assert not close(first, second)


def test_dropout_removes_single_weights_and_lets_the_others_grow():
    layer, x = make_layer(dropout=0.25), random(8, CONTEXT, 6)
    weights = weights_of(layer, x)
    seen = []
    hook = layer.dropout.register_forward_hook(lambda *call: seen.append(call[2]))
    torch.manual_seed(0)
    layer.train()(x)
    hook.remove()
    visible, kept = weights > 0, seen[0] != 0
    assert close(seen[0][kept], (weights / 0.75)[kept])
    assert abs(kept[visible].double().mean() - 0.75) < 0.03
    assert not close(seen[0].sum(dim=-1), torch.ones_like(seen[0][..., 0]))
    assert abs(seen[0].sum(dim=-1).mean() - 1.0) < 0.03  # right on average


# --- parameters, buffers and state ----------------------------------------------------


def test_gpt2_small_attention_has_2360064_parameters():
    layer = MultiHeadAttention(768, 768, 1024, 0.1, num_heads=12)
    assert sum(p.numel() for p in layer.parameters()) == 2_360_064


def test_the_number_of_heads_costs_no_parameters():
    counts = {
        sum(p.numel() for p in MultiHeadAttention(6, 12, 4, 0.0, H).parameters())
        for H in (1, 2, 3, 4, 6, 12)
    }
    assert counts == {3 * 6 * 12 + 12 * 12 + 12}


@pytest.mark.parametrize("layer", causal_layers(), ids=lambda x: type(x).__name__)
def test_masks_are_boolean_and_not_saved(layer):
    masks = dict(layer.named_buffers())
    assert masks
    for mask in masks.values():
        assert mask.dtype == torch.bool
        assert torch.equal(mask, ~causal(CONTEXT))
    assert not [name for name in layer.state_dict() if "mask" in name]
    half = copy.deepcopy(layer).to(torch.bfloat16)
    assert all(mask.dtype == torch.bool for mask in half.buffers())


def test_weights_fit_a_layer_with_another_context_length():
    short, x = make_layer(), random(1, CONTEXT, 6)
    longer = MultiHeadAttention(6, 8, 3 * CONTEXT, 0.0, num_heads=4).double().eval()
    longer.load_state_dict(short.state_dict())
    assert close(longer(x), short(x))
    assert longer(random(1, 3 * CONTEXT, 6)).shape == (1, 3 * CONTEXT, 8)


def test_no_state_between_calls():
    """Known mistake: a cache that leaks between calls, here: nothing is kept at all."""
    layer, x = make_layer(), random(2, 5, 6)
    attributes = set(vars(layer))
    fresh = layer(x)
    weights = copy.deepcopy(layer.state_dict())
    layer(random(3, 9, 6, seed=2), attention_mask=torch.zeros(3, 9, dtype=torch.bool))
    layer(random(2, 4, 6, seed=3), cache=ConcatenatingCache())
    assert torch.equal(layer(x), fresh)
    assert set(vars(layer)) == attributes
    assert all(torch.equal(weights[k], v) for k, v in layer.state_dict().items())


def test_arguments_are_left_as_they_were():
    layer, x = make_layer(), random(2, 5, 6)
    real = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    x_before, real_before = x.clone(), real.clone()
    layer(x, real)
    assert torch.equal(x, x_before)
    assert torch.equal(real, real_before)


def test_layers_can_be_made_and_run_without_memory():
    """On the meta device only shapes are computed, here of GPT-2 XL."""
    with torch.device("meta"):
        layer = MultiHeadAttention(1600, 1600, 1024, 0.0, num_heads=25)
        real = torch.ones(2, 1024, dtype=torch.bool)
        assert layer(torch.empty(2, 1024, 1600), real).shape == (2, 1024, 1600)


def test_projections_may_be_wrapped_or_replaced():
    """A low-rank adapter or an int8 layer has no weight tensor of its own."""

    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    layer, x = make_layer(), random(2, 5, 6)
    expected = layer(x)
    for name in (*PROJECTIONS, "out_proj"):
        setattr(layer, name, Wrapped(getattr(layer, name)))
    assert torch.equal(layer(x), expected)


def test_autocast_converts_by_itself():
    layer = make_layer(dtype=torch.float32)
    x = random(2, 5, 6, dtype=torch.float32)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        from_float, from_half = layer(x), layer(x.bfloat16())
    assert from_float.dtype == from_half.dtype == torch.bfloat16
    assert (from_float.float() - expected).abs().max() < 0.02
    assert (from_half.float() - expected).abs().max() < 0.02


# --- cache ----------------------------------------------------------------------------


def chunkings(T):
    """All ways to cut T tokens into chunks: 2 ** (T - 1) of them."""
    for cuts in itertools.product((False, True), repeat=T - 1):
        ends = [t + 1 for t, cut in enumerate(cuts) if cut] + [T]
        yield list(zip([0, *ends[:-1]], ends, strict=True))


def in_chunks(layer, x, chunks, real=None):
    cache, outputs = ConcatenatingCache(), []
    for start, end in chunks:
        mask = None if real is None else real[:, :end]
        outputs.append(layer(x[:, start:end], mask, cache))
        assert cache.length == end
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("dtype", list(BOUNDS))
def test_cached_equals_uncached_for_every_chunking(dtype):
    """Known mistakes: a cached step with a 1 x 1 mask instead of query times all keys;
    causal mask aligned to the top left when queries are fewer than keys; square mask
    misapplied to a chunked continuation.
    """
    layer, x = make_layer(dtype=dtype), random(2, 7, 6, dtype=dtype)
    expected = layer(x)
    for chunks in chunkings(7):
        assert close(in_chunks(layer, x, chunks), expected), chunks


@some
@given(padded(causal_length=6), st.data())
def test_cached_equals_uncached_with_any_padding(case, data):
    layer, x, real = case
    chunks = data.draw(st.sampled_from(list(chunkings(x.shape[1]))))
    assert close(in_chunks(layer, x, chunks, real), layer(x, real))


@pytest.mark.parametrize("side", ["left", "right"])
def test_ragged_batch_equals_each_sequence_alone(side):
    """Known mistake: batched ragged prompts, padded without mask or with a wrong one.

    One chunk for the prompts, then token by token.
    """
    layer, lengths, later = make_layer(), [2, 5, 3], 3
    prompts = [random(1, n, 6, seed=n) for n in lengths]
    news = random(3, later, 6, seed=99)
    x, real = torch.full((3, 5, 6), 50.0).double(), torch.zeros(3, 5 + later)
    places = [slice(5 - n, 5) if side == "left" else slice(n) for n in lengths]
    real[:, 5:] = 1
    for b, place in enumerate(places):
        x[b, place], real[b, place] = prompts[b][0], 1
    real = real.bool()

    cache = ConcatenatingCache()
    outputs = [layer(x, real[:, :5], cache)]
    for t in range(later):
        outputs.append(layer(news[:, t : t + 1], real[:, : 6 + t], cache))
    together = torch.cat(outputs, dim=1)
    for b, prompt in enumerate(prompts):
        alone = layer(torch.cat((prompt, news[b : b + 1]), dim=1))
        assert close(together[b][real[b]], alone[0])


def test_cache_holds_keys_and_values_by_head():
    layer, cache = make_layer(), ConcatenatingCache()
    layer(random(2, 5, 6), cache=cache)
    assert cache.keys[0].shape == cache.values[0].shape == (2, 4, 5, 2)


def test_cached_step_reads_the_cache():
    """Known mistake: a demonstration "with cache" that does not use the cache."""
    layer, x = make_layer(), random(1, 6, 6)
    empty, filled = ConcatenatingCache(), ConcatenatingCache()
    layer(x[:, :5], cache=filled)
    last = layer(x[:, 5:], cache=filled)
    assert close(last, layer(x)[:, 5:])
    assert not close(layer(x[:, 5:], cache=empty), last)


# --- bad input: one clear sentence ----------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: MultiHeadAttention(6, 8, 4, 0.0, num_heads=3),
            "d_out=8 cannot be shared by num_heads=3 evenly",
        ),
        (lambda: MultiHeadAttention(6, 8, 4, 0.0, num_heads=0), "num_heads is 0"),
        (lambda: MultiHeadAttention(6, 8, 0, 0.0, num_heads=2), "context_length is 0"),
        (lambda: MultiHeadAttention(6.0, 8, 4, 0.0, num_heads=2), "d_in is 6.0"),
        (lambda: MultiHeadAttention(6, -8, 4, 0.0, num_heads=2), "d_out is -8"),
        (lambda: MultiHeadAttention(6, 8, 4, 1.5, num_heads=2), "between 0 and 1"),
        (lambda: MultiHeadAttentionWrapper(6, 8, 4, 0.0, 0), "num_heads is 0"),
        (lambda: CausalAttention(6, 8, True, 0.0), "context_length is True"),
    ],
)
def test_impossible_sizes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("layer", causal_layers(), ids=lambda x: type(x).__name__)
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (random(5, 6), r"shape \(5, 6\), which is 2 dimensions.*unsqueeze"),
        (random(1, 2, 5, 6), r"4 dimensions: give \(batch, tokens, width\)\."),
        (random(2, 5, 8), "tokens are 8 wide, but this layer was made for d_in=6"),
        (random(2, 0, 6), "no token at all"),
        (random(1, CONTEXT + 1, 6), "has 13 tokens, but context_length is 12"),
    ],
)
def test_wrong_input_is_refused(layer, x, message):
    with pytest.raises(ValueError, match=message):
        layer(x)


@pytest.mark.parametrize("kind", [SelfAttention_v1, SelfAttention_v2])
def test_a_single_head_takes_no_vectors_of_another_kind(kind):
    """PyTorch says so itself."""
    for wrong in (torch.zeros(5, 2), torch.zeros(5, 3, dtype=torch.float64)):
        with pytest.raises(RuntimeError, match="shapes cannot be|same dtype"):
            kind(3, 2)(wrong)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            torch.ones(2, 4),
            r"shape \(2, 4\), but must be \(2, 5\).* 0 cached and 5 new",
        ),
        (torch.ones(1, 5), r"must be \(2, 5\)"),
        (torch.ones(2, 1, 1, 5), r"must be \(2, 5\)"),
        (torch.ones(2, 5), "torch.float32: give bool, or integers"),
        (torch.full((2, 5), 50256), "does not hold token ids"),
        (torch.full((2, 5), -1), "integers other than 0 and 1"),
    ],
)
def test_wrong_attention_mask_is_refused_and_the_cache_stays(mask, message):
    """Known mistake: something else, such as token ids, passed as attention mask."""
    cache = ConcatenatingCache()
    with pytest.raises(ValueError, match=message):
        make_layer()(random(2, 5, 6), mask, cache)
    assert cache.length == 0


def test_attention_mask_must_cover_the_cached_tokens_too():
    layer, cache = make_layer(), ConcatenatingCache()
    layer(random(2, 5, 6), cache=cache)
    with pytest.raises(ValueError, match=r"must be \(2, 6\).* 5 cached and 1 new"):
        layer(random(2, 1, 6), torch.ones(2, 1, dtype=torch.bool), cache)
    assert cache.length == 5


def test_cached_and_new_tokens_together_must_fit_the_context():
    """Known mistake: a bound checked on the chunk instead of on offset plus chunk."""
    layer, cache = make_layer(), ConcatenatingCache()
    layer(random(1, CONTEXT - 1, 6), cache=cache)
    layer(random(1, 1, 6), cache=cache)
    with pytest.raises(ValueError, match=r"13 tokens \(12 of them in the cache\)"):
        layer(random(1, 1, 6), cache=cache)
    assert cache.length == CONTEXT
