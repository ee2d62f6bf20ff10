"""The delta rule proved: chunked = recurrent, cached = uncached, Qwen3-Next's layer.

Bounds: float32 within 1e-5, float64 within 1e-10.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen3_next import modeling_qwen3_next as qwen

from course.testing.model_contract import BOUNDS, close, seeds
from deltanet import (
    GatedDeltaNet,
    chunked_delta_rule,
    decay_between,
    delta_corrections,
    delta_rule,
    l2_normalise,
    linear_attention,
    qwen3_next_shapes,
    qwen3_next_weights,
    recurrent_delta_rule,
    short_convolution,
)
from hybrid_cache import HybridCache

some = settings(max_examples=30, deadline=None)
sizes = st.integers(min_value=1, max_value=4)
dtypes = st.sampled_from(list(BOUNDS))


# --- what the tests are made of -------------------------------------------------------


@st.composite
def memories(draw, given_state=True):
    """Arguments of a rule: queries, keys, values, log_decay, beta, state or None."""
    B, H, K, M = (draw(sizes) for _ in range(4))
    T, dtype = draw(st.integers(1, 9)), draw(dtypes)
    generator = torch.Generator().manual_seed(draw(seeds))
    state = given_state and draw(st.booleans())
    shapes = [(B, H, T, K)] * 2 + [(B, H, T, M), (B, H, T), (B, H, T), (B, H, K, M)]
    q, k, v, g, b, s = (
        torch.randn(*shape, generator=generator, dtype=dtype) for shape in shapes
    )
    arguments = q, l2_normalise(k), v, -g.square(), b.sigmoid()
    return [*arguments, s if state else None]


@st.composite
def layers(draw):
    """A layer of drawn sizes and a batch for it; a norm that does something."""
    D, G, R, K, M = (draw(sizes) for _ in range(5))
    dtype, B, T = draw(dtypes), draw(sizes), draw(st.integers(1, 9))
    torch.manual_seed(draw(seeds))
    widths = {"num_heads": G * R, "num_key_heads": G, "key_dim": K, "value_dim": M}
    layer = GatedDeltaNet(D, **widths, conv_width=draw(sizes))
    torch.nn.init.uniform_(layer.norm.scale, 0.5, 2.0)
    torch.nn.init.uniform_(layer.A_log, -1.0, 1.0)
    return layer.to(dtype).eval(), torch.randn(B, T, D, dtype=dtype)


def make(seed=0, **changes):
    torch.manual_seed(seed)
    widths = {"num_heads": 4, "num_key_heads": 2, "key_dim": 3, "value_dim": 5}
    return GatedDeltaNet(6, **(widths | changes)).double().eval()


def random(*shape, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def both_close(actual, expected):
    return all(map(close, actual, expected))


def by_matrices(queries, keys, values, log_decay, beta, state):
    """The rule as the paper prints it, S' = a (I - b k k^T) S + b k v^T, head by head.

    Two things are as plain as they can be: one matrix at a time, no product shared.
    """
    B, H, T, K = keys.shape
    M = values.shape[3]
    outputs = torch.zeros(B, H, T, M, dtype=keys.dtype)
    states = torch.zeros(B, H, K, M, dtype=keys.dtype) if state is None else state
    states = states.clone()
    for b in range(B):
        for h in range(H):
            S = states[b, h]
            for t in range(T):
                k, a, strength = keys[b, h, t], log_decay[b, h, t].exp(), beta[b, h, t]
                erase = torch.eye(K, dtype=k.dtype) - strength * torch.outer(k, k)
                S = a * erase @ S + strength * torch.outer(k, values[b, h, t])
                outputs[b, h, t] = S.T @ queries[b, h, t]
            states[b, h] = S
    return outputs, states


# --- the rules ------------------------------------------------------------------------


@some
@given(memories())
def test_recurrent_rule_is_the_one_of_the_paper(arguments):
    """Known mistakes: read before the decay; erased without beta; written, then read
    at the wrong side; a token that reads before it has written.
    """
    assert both_close(recurrent_delta_rule(*arguments), by_matrices(*arguments))


@some
@given(memories(), st.integers(1, 10))
def test_chunked_equals_recurrent_at_every_chunk_size(arguments, chunk_size):
    """Chunks of 1, of T, longer than T, and such that T is no multiple of them.

    Known mistakes: decay counted from the text's start; the last chunk padded with
    tokens that decay; beta on the columns of the system.
    """
    found = chunked_delta_rule(*arguments, chunk_size=chunk_size)
    assert both_close(found, recurrent_delta_rule(*arguments))


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7, 16, 64, 100, 130, 200])
def test_chunked_equals_recurrent_in_a_long_text(chunk_size):
    q, k, v = (random(1, 2, 130, 8, seed=n) for n in range(3))
    arguments = q, l2_normalise(k), v, -random(1, 2, 130).square() / 10
    beta, state = random(1, 2, 130, seed=4).sigmoid(), random(1, 2, 8, 8, seed=5)
    found = chunked_delta_rule(*arguments, beta, state, chunk_size)
    assert both_close(found, recurrent_delta_rule(*arguments, beta, state))


@some
@given(memories(), st.integers(1, 10))
def test_gradients_of_both_forms_are_equal(arguments, chunk_size):
    """Known mistake: not-a-number from the exponential of what a mask hides."""
    found = []
    for rule, extra in (
        (recurrent_delta_rule, {}),
        (chunked_delta_rule, {"chunk_size": chunk_size}),
    ):
        leaves = [
            None if part is None else part.double().requires_grad_()
            for part in arguments
        ]
        out, state = rule(*leaves, **extra)
        (out.sin().sum() + state.cos().sum()).backward()
        found.append([leaf.grad for leaf in leaves if leaf is not None])
    assert both_close(*found)


def test_strong_decay_gives_no_infinity():
    """Known mistake: a ratio of two exponentials instead of that of the difference."""
    arguments = [random(1, 1, 90, 4, seed=n).float() for n in range(3)]
    arguments[1] = l2_normalise(arguments[1])
    log_decay, beta = torch.full((1, 1, 90), -30.0), torch.full((1, 1, 90), 0.5)
    log_decay.requires_grad_()
    out, _ = chunked_delta_rule(*arguments, log_decay, beta)
    out.sum().backward()
    expected, _ = recurrent_delta_rule(*arguments, log_decay, beta)
    assert close(out, expected)
    assert log_decay.grad.isfinite().all()


@some
@given(memories())
def test_a_text_may_be_read_in_two_parts(arguments):
    *parts, state = arguments
    cut = parts[0].shape[2] // 2
    if cut == 0:
        return
    first, second = (
        [part[:, :, piece] for part in parts]
        for piece in (slice(cut), slice(cut, None))
    )
    for rule in (recurrent_delta_rule, chunked_delta_rule, delta_rule):
        out, middle = rule(*first, state)
        more, end = rule(*second, middle)
        whole = rule(*parts, state)
        assert both_close((torch.cat((out, more), dim=2), end), whole)


@some
@given(memories())
def test_linear_attention_is_attention_without_softmax(arguments):
    q, k, v, g, _, _ = arguments
    found, state = linear_attention(q, k, v, 0 * g)
    scores = (q @ k.transpose(2, 3)).tril()
    assert close(found, scores @ v)
    outer = [
        k[:, :, t, :, None] * v[:, :, t, None, :]  # what token t adds
        for t in range(k.shape[2])
    ]
    assert close(state, torch.stack(outer).sum(dim=0))


@some
@given(memories())
def test_linear_attention_fades_token_by_token(arguments):
    q, k, v, g, _, state = arguments
    found = linear_attention(q, k, v, g, state)
    B, H, _, K = k.shape
    S = torch.zeros(B, H, K, v.shape[3], dtype=v.dtype) if state is None else state
    outputs = []
    for t in range(k.shape[2]):
        S = g[:, :, t, None, None].exp() * S
        S = S + k[:, :, t, :, None] * v[:, :, t, None, :]
        outputs.append((q[:, :, t, :, None] * S).sum(dim=2))
    assert both_close(found, (torch.stack(outputs, dim=2), S))


@some
@given(memories())
def test_the_delta_rule_is_linear_attention_of_corrections(arguments):
    q, k, v, g, beta, state = arguments
    written = delta_corrections(k, v, g, beta, state)
    found = linear_attention(q, k, written, g, state)
    assert both_close(found, recurrent_delta_rule(*arguments))


@some
@given(memories())
def test_a_write_is_a_step_of_gradient_descent(arguments):
    """On half the squared error of reading the key, with beta as the rate."""
    q, k, v, g, beta, _ = (x if x is None else x[:, :, :1] for x in arguments)
    B, H, _, K = k.shape
    state = random(B, H, K, v.shape[3], dtype=v.dtype).requires_grad_()
    error = k @ state - v
    (error.square().sum() / 2).backward()
    expected = state.detach() - beta[..., None] * state.grad
    _, found = recurrent_delta_rule(q, k, v, 0 * g, beta, state.detach())
    assert close(found, expected)


@some
@given(memories(given_state=False))
def test_a_key_written_with_all_strength_reads_its_value(arguments):
    q, k, v, g, beta, _ = arguments
    k = k / k.norm(dim=-1, keepdim=True)  # exactly 1, without the 1e-6
    out, _ = delta_rule(k, k, v, g, torch.ones_like(beta))
    assert close(out, v)
    first = k[:, :, :1], v[:, :, :1]  # one key, two values
    keys, values = torch.cat([first[0]] * 2, 2), torch.cat((first[1], 3 * first[1]), 2)
    fade = torch.zeros(values.shape[:3], dtype=v.dtype)
    assert close(delta_rule(keys, keys, values, fade, fade + 1)[0], values)
    added, _ = linear_attention(keys, keys, values, fade)
    assert close(added[:, :, 1], 4 * first[1][:, :, 0])


def test_decay_between():
    past, between = decay_between(torch.tensor([-1.0, -2.0, -4.0]))
    assert close(past, torch.tensor([-1.0, -3.0, -7.0]).exp())
    expected = torch.tensor([[0.0, 9, 9], [-2, 0, 9], [-6, -4, 0]]).exp().tril()
    assert close(between, expected)


# --- against transformers -------------------------------------------------------------


class Wide:
    """`torch`, whose float32 is float64: their code casts to it whatever comes."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.mark.parametrize("given_state", [True, False])
@pytest.mark.parametrize("length", [1, 5, 64, 70])
@pytest.mark.parametrize("dtype", list(BOUNDS))
def test_rules_equal_those_of_transformers(dtype, length, given_state, monkeypatch):
    """Both of theirs against both of ours, states included."""
    if dtype == torch.float64:
        monkeypatch.setattr(qwen, "torch", Wide())
    B, H, K, M = 2, 3, 4, 5
    q, k, v = (
        random(B, length, H, width, seed=n, dtype=dtype)
        for n, width in enumerate((K, K, M))
    )
    g = -random(B, length, H, seed=8, dtype=dtype).square() / 4
    beta = random(B, length, H, seed=9, dtype=dtype).sigmoid()
    state = random(B, H, K, M, seed=10, dtype=dtype) if given_state else None
    ours = [part.transpose(1, 2) for part in (q, k, v, g, beta)]
    ours[0], ours[1] = l2_normalise(ours[0]) * K**-0.5, l2_normalise(ours[1])
    extras = {"output_final_state": True, "use_qk_l2norm_in_kernel": True}
    for theirs in (
        qwen.torch_recurrent_gated_delta_rule,
        qwen.torch_chunk_gated_delta_rule,
    ):
        out, end = theirs(q, k, v, g=g, beta=beta, initial_state=state, **extras)
        for rule in (recurrent_delta_rule, chunked_delta_rule):
            assert both_close(rule(*ours, state), (out.transpose(1, 2), end))


def their_layer(num_key_heads=2, num_heads=4, seed=0):
    config = qwen.Qwen3NextConfig(
        hidden_size=24,
        linear_num_key_heads=num_key_heads,
        linear_num_value_heads=num_heads,
        linear_key_head_dim=8,
        linear_value_head_dim=6,
        linear_conv_kernel_dim=4,
        rms_norm_eps=1e-6,
        num_hidden_layers=4,
    )
    torch.manual_seed(seed)
    layer = qwen.Qwen3NextGatedDeltaNet(config, layer_idx=0).eval()
    torch.nn.init.uniform_(layer.norm.weight, 0.5, 2.0)
    torch.nn.init.uniform_(layer.dt_bias, -3.0, 1.0)
    return config, layer


def our_layer(theirs):
    widths = {"num_heads": theirs.num_v_heads, "num_key_heads": theirs.num_k_heads}
    widths |= {"key_dim": theirs.head_k_dim, "value_dim": theirs.head_v_dim}
    ours = GatedDeltaNet(24, **widths).eval()
    ours.load_state_dict(qwen3_next_weights(ours, theirs.state_dict()))
    return ours


@torch.no_grad()
@pytest.mark.parametrize("heads", [(1, 1), (2, 2), (2, 4), (1, 3)])
def test_layer_equals_that_of_qwen3_next(heads):
    """Known mistakes: rows dealt to q, k, v and gates as blocks, not group by group;
    the gate inside the norm; queries not scaled.
    """
    _, theirs = their_layer(*heads)
    x = random(2, 70, 24, dtype=torch.float32)
    assert close(our_layer(theirs)(x), theirs(x))


@torch.no_grad()
def test_layer_equals_theirs_token_by_token_and_with_padding():
    from transformers import DynamicCache

    config, theirs = their_layer()
    ours, x = our_layer(theirs), random(2, 9, 24, dtype=torch.float32)
    their_cache, cache = DynamicCache(config=config), HybridCache(1).layer(0)
    for piece in (slice(3), slice(3, 4), slice(4, 5), slice(5, 9)):
        expected = theirs(x[:, piece], cache_params=their_cache)
        assert close(ours(x[:, piece], cache=cache), expected)
    real = torch.ones(2, 9, dtype=torch.bool)
    real[0, :4] = False
    expected = theirs(x, attention_mask=real.float())
    assert close(ours(x, real)[real], expected[real])


def test_every_weight_of_theirs_has_one_place_in_ours():
    _, theirs = their_layer()
    ours, weights = our_layer(theirs), theirs.state_dict()
    assert qwen3_next_shapes(ours) == {n: tuple(p.shape) for n, p in weights.items()}
    numbers = sorted(torch.cat([p.flatten() for p in weights.values()]).tolist())
    found = [part.detach().flatten() for part in ours.parameters()]
    assert sorted(torch.cat(found).tolist()) == numbers


def test_weights_that_are_not_of_this_layer_are_refused():
    _, theirs = their_layer()
    ours, weights = our_layer(theirs), theirs.state_dict()
    with pytest.raises(ValueError, match=r"have \['conv1d.bias'\] besides"):
        qwen3_next_weights(ours, {**weights, "conv1d.bias": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"dt_bias has shape \(5,\)"):
        qwen3_next_weights(ours, {**weights, "dt_bias": torch.zeros(5)})


# --- the convolution ------------------------------------------------------------------


@some
@given(sizes, st.integers(1, 9), sizes, st.integers(1, 5), seeds)
def test_convolution_equals_that_of_pytorch(B, T, N, W, seed):
    x, weight = random(B, T, N, seed=seed), random(N, W, seed=seed + 1)
    found, tail = short_convolution(x, weight)
    padded = torch.nn.functional.pad(x.transpose(1, 2), (W - 1, 0))
    expected = torch.nn.functional.conv1d(padded, weight[:, None], groups=N)
    assert close(found, expected.transpose(1, 2))
    assert tail.shape == (B, W - 1, N)


@some
@given(st.integers(1, 9), st.integers(1, 5), st.data())
def test_convolution_in_pieces_equals_the_whole(T, W, data):
    """Known mistakes: a piece shorter than W - 1 that forgets what came before it; a
    tail of what was mixed, not of what came in.
    """
    x, weight = random(2, T, 3), random(3, W, seed=2)
    cuts = data.draw(st.sets(st.integers(1, T - 1))) if T > 1 else set()
    tail, parts, start = None, [], 0
    for end in [*sorted(cuts), T]:
        out, tail = short_convolution(x[:, start:end], weight, tail)
        parts.append(out)
        start = end
    assert close(torch.cat(parts, dim=1), short_convolution(x, weight)[0])


# --- the layer ------------------------------------------------------------------------


def layer_by_hand(layer, x):
    """The layer's answer, memory by memory and token by token."""
    H, R = layer.num_heads, layer.num_heads // layer.num_key_heads
    K, M, W = layer.key_dim, layer.value_dim, layer.conv.shape[1]
    B, T, _ = x.shape
    made = torch.cat((layer.W_query(x), layer.W_key(x), layer.W_value(x)), dim=-1)
    mixed = torch.zeros_like(made)
    for t in range(T):
        for back in range(min(W, t + 1)):
            mixed[:, t] += layer.conv[:, W - 1 - back] * made[:, t - back]
    mixed = mixed * mixed.sigmoid()
    queries, keys, values = mixed.split([H // R * K, H // R * K, H * M], dim=-1)
    out = torch.zeros(B, T, H * M, dtype=x.dtype)
    for b in range(B):
        for h in range(H):
            S = torch.zeros(K, M, dtype=x.dtype)
            head, own = slice(h // R * K, (h // R + 1) * K), slice(h * M, (h + 1) * M)
            for t in range(T):
                q, k = queries[b, t, head], keys[b, t, head]
                q = q / (q.square().sum() + 1e-6).sqrt() / K**0.5
                k = k / (k.square().sum() + 1e-6).sqrt()
                step = layer.W_decay(x)[b, t, h] + layer.dt_bias[h]
                S = S * (-layer.A_log[h].exp() * torch.log1p(step.exp())).exp()
                strength = layer.W_beta(x)[b, t, h].sigmoid()
                S = S + strength * torch.outer(k, values[b, t, own] - k @ S)
                read = q @ S
                read = read / (read.square().mean() + 1e-6).sqrt() * layer.norm.scale
                gate = layer.W_gate(x)[b, t, own]
                out[b, t, own] = read * gate * gate.sigmoid()
    return layer.out_proj(out)


@settings(some, max_examples=12)
@given(layers())
@torch.no_grad()
def test_layer_equals_the_layer_by_hand(case):
    layer, x = case
    layer, x = layer.double(), x.double()
    assert close(layer(x), layer_by_hand(layer, x))


@some
@given(layers(), st.data())
@torch.no_grad()
def test_future_token_never_changes_a_past_output(case, data):
    layer, x = case
    t = data.draw(st.integers(0, x.shape[1] - 1))
    changed = x.clone()
    changed[:, t:] += 3.0
    assert close(layer(changed)[:, :t], layer(x)[:, :t])


@some
@given(layers(), st.data())
@torch.no_grad()
def test_cached_equals_uncached_token_by_token_and_in_parts(case, data):
    """Known mistakes: the state kept and the tail of the convolution not; a tail of
    fewer tokens after a short piece.
    """
    layer, x = case
    T = x.shape[1]
    cuts = data.draw(st.sets(st.integers(1, T - 1))) if T > 1 else set()
    whole = layer(x)
    for ends in ([*sorted(cuts), T], range(1, T + 1)):
        cache, parts, start = HybridCache(1), [], 0
        for end in ends:
            parts.append(layer(x[:, start:end], cache=cache.layer(0)))
            assert cache.length == end
            start = end
        assert close(torch.cat(parts, dim=1), whole)


@some
@given(layers(), st.sampled_from(["left", "right"]), st.data())
@torch.no_grad()
def test_padding_changes_no_answer(case, side, data):
    """Known mistakes: padding that fades the memory, writes, or is seen by the
    convolution.
    """
    layer, x = case
    B, T, _ = x.shape
    lengths = [data.draw(st.integers(1, T)) for _ in range(B)]
    real = torch.arange(T) < torch.tensor(lengths)[:, None]  # (B, T)
    real = real.flip(1) if side == "left" else real
    together = layer(x, real)
    for b, n in enumerate(lengths):
        alone = layer(x[b : b + 1, real[b]])
        assert alone.shape[1] == n
        assert close(together[b : b + 1, real[b]], alone)


def test_padding_within_a_text_is_refused_and_the_cache_stays():
    layer, cache = make(), HybridCache(1).layer(0)
    with torch.no_grad():
        layer(random(1, 2, 6), cache=cache)
        before = cache.state.clone()
        for hole in ([1, 0, 1], [1, 1, 0, 1], [0, 1, 0, 0, 1]):
            mask = torch.tensor([hole]).bool()
            with pytest.raises(ValueError, match="padding between real tokens"):
                layer(random(1, len(hole), 6), mask)
        with pytest.raises(ValueError, match="padding between real tokens"):
            layer(random(1, 1, 6), torch.tensor([[1, 0, 1]]), cache)
    assert cache.length == 2
    assert torch.equal(cache.state, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_row_of_padding_alone_gives_finite_numbers(dtype):
    layer, real = make().to(dtype), torch.ones(2, 3, dtype=torch.bool)
    real[0] = False
    x = random(2, 3, 6).to(dtype).requires_grad_()
    out = layer(x, real)
    out.float().square().sum().backward()
    assert not out[0].any()
    assert out[1].all()
    assert out.dtype == dtype
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_a_memory_starts_out_to_fade_at_many_speeds():
    """Half of what is written is gone after 1.4 tokens in one head, 693 in another."""
    layer = make(num_heads=8)
    layer.W_decay.weight.data.zero_()
    log_decay, _ = layer.gates(random(1, 1, 6), None)
    halves = torch.log(torch.tensor(0.5)) / log_decay[0, :, 0]
    assert [round(n, 1) for n in halves[[0, -1]].tolist()] == [693.1, 1.4]
    assert (halves.diff() < 0).all()


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
    layer, cache = make(), HybridCache(1).layer(0)
    layer(random(1, 2, 6), cache=cache)
    call = {"x": random(1, 3, 6), "cache": cache, **arguments}
    with pytest.raises(ValueError, match=message):
        layer(**call)
    assert cache.length == 2


def test_impossible_sizes_are_refused():
    for name in ("num_heads", "num_key_heads", "key_dim", "value_dim", "conv_width"):
        for size in (0, -1, 2.5):
            with pytest.raises(ValueError, match=f"{name} is {size}: give a whole"):
                make(**{name: size})
    with pytest.raises(ValueError, match="num_heads=4 cannot be shared"):
        make(num_key_heads=3)
