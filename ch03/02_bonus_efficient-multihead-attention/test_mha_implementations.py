"""Eleven ways to attend: one function, forward and backward, and its known mistakes.

The source is `MultiHeadAttention`, which chapter 3's tests compare with PyTorch's own.
Bounds: float32 within 1e-5, float64 within 1e-10. FlexAttention compiles something for
each new size, so it is tried at a few sizes, and backward on a graphics card only.
"""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from attention_costs import (
    FLEX,
    SOURCE,
    WAYS,
    differences,
    gradients,
    kept_bytes,
    make_layers,
    peak_bytes,
)
from course.testing.model_contract import BOUNDS, seeds
from mha_implementations import (
    MHAEinsum,
    MHAPyTorchClass,
    MHAPyTorchFlexAttention,
    MHAPyTorchScaledDotProduct,
    MHATiled,
    MHAVariant,
    TiledAttention,
    add_tile,
    causal_blocks,
    give_weights,
    hide_future,
    tiled_forward,
    tiles,
    translated,
)
from multihead_attention import MultiHeadAttention

OTHERS = [name for name in WAYS if name not in (SOURCE, FLEX)]
ONE_WIDTH = [name for name in OTHERS if name.startswith("nn.")]
CPU = torch.device("cpu")

some = settings(max_examples=25, deadline=None)
sizes = st.integers(1, 4)


def random(*shape, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def pair(name, d_in, d_out, heads, bias=False, dropout=0.0, dtype=torch.float64):
    """A source and the way of this name with its weights."""
    torch.manual_seed(0)
    arguments = (d_in, d_out, 20, dropout, heads, bias)
    source = MultiHeadAttention(*arguments).to(dtype)
    layer = WAYS[name](*arguments).to(dtype)
    give_weights(source, layer)
    return source, layer


@pytest.fixture(autouse=True)
def _flex_is_not_compiled():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without")
        yield


# --- one function ---------------------------------------------------------------------


@pytest.mark.parametrize("name", OTHERS)
@settings(max_examples=12, deadline=None)
@given(sizes, sizes, sizes, st.integers(1, 20), st.booleans(), seeds)
def test_every_way_equals_the_source_forward_and_backward(name, B, H, K, T, bias, seed):
    """Known mistakes: rows of weights mixed up, softmax over the wrong axis, a mask
    that is turned round or off by one, a scale by the width of all heads.
    """
    for dtype, bound in BOUNDS.items():
        source, layer = pair(name, H * K, H * K, H, bias, dtype=dtype)
        if isinstance(layer, MHATiled):
            layer.tile = 1 + seed % 7
        x = random(B, T, H * K, seed=seed, dtype=dtype)
        assert torch.allclose(layer(x), source(x), rtol=0, atol=bound)
        ours, expected = gradients(layer, x), gradients(source, x)
        assert torch.allclose(ours.pop("x"), expected.pop("x"), rtol=0, atol=10 * bound)
        expected = translated(expected, layer)
        assert set(ours) <= set(expected)
        for weight, gradient in ours.items():
            gap = (gradient - expected[weight]).abs().max()
            assert gap <= 10 * bound, weight


@pytest.mark.parametrize("name", [name for name in OTHERS if name not in ONE_WIDTH])
@pytest.mark.parametrize(("d_in", "d_out"), [(12, 24), (16, 8)])
def test_output_may_have_another_width(name, d_in, d_out):
    source, layer = pair(name, d_in, d_out, 4, bias=True)
    forward, backward = differences(layer, source, random(2, 9, d_in))
    assert forward < 1e-10
    assert backward is not None
    assert backward < 1e-10


@pytest.mark.parametrize(("d_in", "d_out"), [(768, 768), (768, 1536), (1024, 512)])
def test_einsum_at_real_widths(d_in, d_out):
    torch.manual_seed(123)
    source = MultiHeadAttention(d_in, d_out, 64, 0.0, 8)
    layer = MHAEinsum(d_in, d_out, 64, 0.0, 8)
    give_weights(source, layer)
    x = random(2, 64, d_in, dtype=torch.float32)
    with torch.no_grad():
        assert torch.allclose(layer(x), source(x), atol=1e-5)


@pytest.mark.parametrize("T", [1, 129])
def test_flex_attention_equals_the_source_forward(T):
    torch.manual_seed(0)
    source = MultiHeadAttention(8, 8, 200, 0.0, 2)
    layer = MHAPyTorchFlexAttention(8, 8, 200, 0.0, 2)
    give_weights(source, layer)
    x = random(2, T, 8, dtype=torch.float32)
    with torch.no_grad():
        assert torch.allclose(layer(x), source(x), atol=1e-5)


@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="FlexAttention has a backward pass on a graphics card only; none is here",
)
def test_flex_attention_equals_the_source_backward():
    layers = make_layers(width=64, context_length=256, num_heads=4, seed=0)
    x = random(2, 256, 64, dtype=torch.float32).cuda()
    source, flex = (layers[name].cuda() for name in (SOURCE, FLEX))
    forward, backward = differences(flex, source, x)
    assert forward < 1e-3  # the card rounds products in its own way
    assert backward is not None
    assert backward < 1e-2


def test_flex_attention_says_that_it_has_no_backward_on_a_cpu():
    layer = MHAPyTorchFlexAttention(8, 8, 20, 0.0, 2)
    with pytest.raises(NotImplementedError, match="does not support backward on CPU"):
        layer(random(1, 5, 8, dtype=torch.float32))


def test_blocks_are_made_once_for_each_length():
    assert causal_blocks(256, CPU) is causal_blocks(256, CPU)
    assert causal_blocks(256, CPU) is not causal_blocks(128, CPU)


@pytest.mark.parametrize("name", OTHERS)
def test_future_token_never_changes_a_past_output(name):
    """Known mistake: a mask of ones and zeros that is added to the scores."""
    _, layer = pair(name, 8, 8, 2)
    x = random(2, 9, 8)
    for t in (1, 5, 8):
        later = x.clone()
        later[:, t:] += 3.0
        kept = (layer(later) - layer(x))[:, :t].abs().max()
        assert kept < 1e-12
        assert (layer(later) - layer(x))[:, t].abs().max() > 1e-3


def test_a_planted_mistake_is_found():
    """Outputs alone miss the last one."""
    torch.manual_seed(0)
    source, x = MultiHeadAttention(8, 8, 20, 0.0, 2), random(2, 9, 8).float()

    class OffByOne(MHAVariant):
        def attend(self, queries, keys, values):
            visible = torch.ones(9, 9, dtype=torch.bool).tril(1)
            return F.scaled_dot_product_attention(queries, keys, values, visible)

    class Unscaled(MHAVariant):
        def attend(self, queries, keys, values):
            return F.scaled_dot_product_attention(
                queries, keys, values, is_causal=True, scale=1.0
            )

    class HalfGradients(MHAPyTorchScaledDotProduct):
        def attend(self, queries, keys, values):
            output = super().attend(queries, keys, values)
            return output.detach() + (output - output.detach()) / 2

    for kind, output_differs in (
        (OffByOne, True),
        (Unscaled, True),
        (HalfGradients, False),
    ):
        layer = kind(8, 8, 20, 0.0, 2)
        give_weights(source, layer)
        forward, backward = differences(layer, source, x)
        assert (forward > 1e-3) == output_differs
        assert backward is not None
        assert backward > 1e-2


@pytest.mark.parametrize("name", [*OTHERS, FLEX])
def test_too_long_and_too_wide_inputs_are_refused_by_all(name):
    layer = WAYS[name](8, 8, 6, 0.0, 2)
    with pytest.raises(ValueError, match="7 tokens, but context_length is 6"):
        layer(torch.zeros(1, 7, 8))
    with pytest.raises(ValueError, match="9 wide"):
        layer(torch.zeros(1, 5, 9))
    with pytest.raises(ValueError, match="no token at all"):
        layer(torch.zeros(1, 0, 8))


@pytest.mark.parametrize("name", [*OTHERS, FLEX])
@pytest.mark.parametrize("bias", [True, False])
def test_weights_of_a_source_with_other_biases_are_refused(name, bias):
    source = MultiHeadAttention(8, 8, 6, 0.0, 2, bias)
    layer = WAYS[name](8, 8, 6, 0.0, 2, not bias)
    with pytest.raises(RuntimeError):
        give_weights(source, layer)


def test_pytorchs_layer_has_one_width():
    with pytest.raises(ValueError, match="this layer has one width"):
        MHAPyTorchClass(8, 16, 20, 0.0, 2)


def test_a_function_with_dropout_drops_after_eval():
    """Known mistake: SDPA is given the dropout of a layer that evaluates."""

    class Forgetful(MHAVariant):
        def attend(self, queries, keys, values):
            p = self.dropout.p
            return F.scaled_dot_product_attention(queries, keys, values, None, p)

    layer, x = Forgetful(8, 8, 20, 0.5, 2).eval(), random(2, 9, 8).float()
    assert not torch.allclose(layer(x), layer(x))


# --- dropout --------------------------------------------------------------------------

WITH_DROPOUT = [name for name in OTHERS if name != "tiles"]


@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_evaluation_is_deterministic_and_training_is_not(name):
    """Known mistake: SDPA is a function and keeps dropping in evaluation."""
    source, layer = pair(name, 8, 8, 2, dropout=0.5)
    x = random(2, 9, 8)
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    assert torch.allclose(layer(x), source.eval()(x), rtol=0, atol=1e-10)
    layer.train()
    assert not torch.allclose(layer(x), layer(x))


@pytest.mark.parametrize("kind", [MHATiled, MHAPyTorchFlexAttention])
def test_ways_without_dropout_refuse_it_in_training(kind):
    layer = kind(8, 8, 20, 0.5, 2)
    with pytest.raises(ValueError, match="dropout"):
        layer(random(1, 5, 8).float())


# --- PyTorch's own functions ----------------------------------------------------------


def test_is_causal_puts_the_triangle_into_the_top_left_corner():
    """Known mistake: a causal flag where there are fewer queries than keys."""
    queries, keys = random(1, 2, 4), random(1, 5, 4)
    weights = F.scaled_dot_product_attention(
        queries, keys, torch.eye(5)[None].double(), is_causal=True
    )
    assert ((weights > 0).sum(dim=-1) == torch.tensor([[1, 2]])).all()
    visible = torch.ones(2, 5, dtype=torch.bool).tril(diagonal=3)
    weights = F.scaled_dot_product_attention(
        queries, keys, torch.eye(5)[None].double(), attn_mask=visible
    )
    assert ((weights > 0).sum(dim=-1) == torch.tensor([[4, 5]])).all()


def test_a_row_without_a_key_is_zero_in_sdpa_and_nan_in_the_layer_with_weights():
    """Known mistake: fully masked rows; the answers of section 10."""
    visible = torch.ones(4, 4, dtype=torch.bool).tril()
    visible[1] = False
    x = random(1, 4, 8).float()
    assert not F.scaled_dot_product_attention(x, x, x, attn_mask=visible)[0, 1].any()
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    with_weights, _ = layer(x, x, x, attn_mask=~visible)
    without, _ = layer(x, x, x, attn_mask=~visible, need_weights=False)
    assert with_weights[0, 1].isnan().all()
    assert torch.equal(without[0, 1], layer.out_proj.bias)


@pytest.mark.parametrize(("T", "W"), [(5, 3), (3, 3), (4, 9), (1, 1)])
def test_a_window_row_has_the_smaller_of_its_place_and_the_width(T, W):
    """Known mistake: a sliding window off by one, W + 1 keys in place of W."""
    places = torch.arange(T)
    distance = places[:, None] - places
    visible = (distance >= 0) & (distance < W)
    assert visible.sum(dim=1).tolist() == [min(i + 1, W) for i in range(T)]
    weights = F.scaled_dot_product_attention(
        random(1, T, 4), random(1, T, 4, seed=2), torch.eye(T)[None].double(), visible
    )
    assert torch.equal(weights[0] > 0, visible)
    if W >= T:
        everything = F.scaled_dot_product_attention(
            random(1, T, 4),
            random(1, T, 4, seed=2),
            torch.eye(T)[None].double(),
            is_causal=True,
        )
        assert torch.allclose(weights, everything, rtol=0, atol=1e-12)


def test_a_window_in_flex_attention_is_that_of_sdpa():
    T, W = 40, 7
    q, k, v = (random(1, 2, T, 8, seed=n, dtype=torch.float32) for n in range(3))

    def rule(batch, head, query, key):
        return (query >= key) & (query - key < W)

    blocks = create_block_mask(rule, None, None, T, T, device="cpu")
    places = torch.arange(T)
    visible = rule(None, None, places[:, None], places)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    found = flex_attention(q, k, v, block_mask=blocks)
    assert torch.allclose(found, expected, atol=1e-5)


def test_three_biases_of_pytorchs_layer_stay_at_zero():
    source, layer = pair("nn.MultiheadAttention", 8, 8, 2)
    assert not translated(source.state_dict(), layer)["attention.in_proj_bias"].any()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer(random(2, 5, 8)).sum().backward()
    optimizer.step()
    assert not layer.attention.in_proj_bias.any()
    assert MHAPyTorchClass(8, 8, 20, 0.0, 2, True).attention.in_proj_bias.requires_grad


# --- tiles ----------------------------------------------------------------------------


@some
@given(st.integers(1, 30), st.integers(1, 40))
def test_tiles_meet_every_visible_pair_once(T, size):
    met = torch.zeros(T, T, dtype=torch.int64)
    for queries, parts in tiles(T, size):
        for keys in parts:
            scores = torch.zeros(queries.stop - queries.start, keys.stop - keys.start)
            met[queries, keys] += hide_future(scores, queries, keys) == 0
    assert torch.equal(met, torch.ones(T, T, dtype=torch.int64).tril())


@some
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), seeds)
def test_online_softmax_is_the_softmax_however_it_is_cut(widths, seed):
    scores = 5 * random(3, sum(widths), seed=seed)
    values = random(sum(widths), 2, seed=seed + 1)
    running = (scores.new_full((3,), torch.finfo(scores.dtype).min),)
    running += (scores.new_zeros(3), scores.new_zeros(3, 2))
    cuts = zip(scores.split(widths, dim=1), values.split(widths), strict=True)
    for part, some_values in cuts:
        running = add_tile(running, part, some_values)
    largest, total, summed = running
    expected = torch.softmax(scores, dim=-1) @ values
    assert torch.allclose(summed / total[:, None], expected, rtol=0, atol=1e-12)
    assert torch.allclose(largest + total.log(), scores.logsumexp(dim=-1))


def test_a_first_tile_that_hides_everything_leaves_no_nan():
    scores = torch.tensor([[-torch.inf, -torch.inf]])
    start = torch.full((1,), torch.finfo(torch.float32).min)
    running = (start, torch.zeros(1), torch.zeros(1, 1))
    running = add_tile(running, scores, torch.ones(2, 1))
    assert running[1].item() == 0
    _, total, summed = add_tile(running, torch.tensor([[3.0]]), torch.tensor([[7.0]]))
    assert (summed / total).item() == 7


@pytest.mark.parametrize("dtype", list(BOUNDS))
def test_large_scores_neither_overflow_nor_vanish(dtype):
    q, k, v = (30 * random(2, 11, 4, seed=n, dtype=dtype) for n in range(3))
    context, log_total = tiled_forward(q, k, v, size=4)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert log_total.isfinite().all()
    assert torch.allclose(context, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_gradients_of_tiles_are_the_slopes(size):
    parts = [random(1, 2, 5, 3, seed=n).requires_grad_() for n in range(3)]
    assert torch.autograd.gradcheck(
        lambda q, k, v: TiledAttention.apply(q, k, v, size), parts
    )


def test_half_precision_stays_half_and_near():
    source, layer = pair("tiles", 16, 16, 2, dtype=torch.float32)
    x = random(2, 20, 16, dtype=torch.float32)
    half = layer.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - source(x)).abs().max() < 0.02


def test_a_second_derivative_is_refused_and_not_wrong():
    q, k, v = (random(1, 1, 4, 2, seed=n).requires_grad_() for n in range(3))
    context = TiledAttention.apply(q, k, v, 2)
    (grad,) = torch.autograd.grad(context.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.square().sum().backward()


@pytest.mark.parametrize("size", [-1, 0, 2.5])
def test_a_tile_without_a_size_is_refused(size):
    """Known mistake: no tile at all, and the answer is whatever memory held before."""
    with pytest.raises(ValueError, match="from 1 up"):
        MHATiled(8, 8, 20, 0.0, 2, tile=size)
    q = random(1, 5, 4)
    with pytest.raises(ValueError, match="from 1 up"):
        tiled_forward(q, q, q, size)


# --- memory ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_layers():
    return make_layers(width=32, context_length=512, num_heads=2, seed=0, tile=32)


def test_kept_memory_of_tiles_grows_like_T_and_that_of_the_source_like_T_squared(
    long_layers,
):
    kept = {
        name: [kept_bytes(long_layers[name], torch.zeros(1, T, 32)) for T in (128, 512)]
        for name in (SOURCE, "SDPA, causal", "tiles")
    }
    assert kept["tiles"][1] == 4 * kept["tiles"][0]
    assert kept["tiles"] == kept["SDPA, causal"]
    assert kept[SOURCE][1] >= 12 * kept[SOURCE][0]


def test_memory_at_the_peak_of_tiles_grows_like_T_too(long_layers):
    def peak(name, T):
        x = torch.zeros(1, T, 32, requires_grad=True)
        return peak_bytes(lambda: long_layers[name](x).sum().backward(), CPU)

    assert peak("tiles", 512) < 5 * peak("tiles", 128)
    assert peak(SOURCE, 512) > 10 * peak(SOURCE, 128)


def test_peak_counts_what_is_held_at_once():
    def hold():
        first = torch.zeros(1000)
        del first
        second, third = torch.zeros(1000), torch.zeros(500)
        return second, third

    assert 6000 <= peak_bytes(hold, CPU) < 6400
