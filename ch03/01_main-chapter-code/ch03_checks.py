"""The checks of chapter 3's exercises; `course.exercises` says how a check answers.

Most mistakes with attention return the right shape and plausible numbers. So a check
makes the attention weights visible and asks what is wrong with them; and where a slip
leads to numbers of its own, the check computes those and compares.
"""

import itertools

import torch
from torch import nn
from torch.nn import functional as F

from course.exercises import (
    call,
    check,
    describe,
    expect,
    expect_close,
    expect_equal,
    expect_tensor,
    random_tensor,
)
from fused_slips import fused_heads, fused_mistakes, merge_heads
from multihead_attention import (
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    SelfAttention_v1,
    SelfAttention_v2,
)

PROJECTIONS = ("W_query", "W_key", "W_value")


ROUNDING = 1e-5  # float32, for numbers of a few units


def _same(actual, expected, atol=ROUNDING):
    """Whether two tensors agree in shape and, but for rounding, in their numbers."""
    if actual.shape != expected.shape:
        return False
    return torch.allclose(actual.double(), expected.double(), rtol=0, atol=atol)


def _recognise(actual, mistakes):
    """Raise with the message of the first mistake that gives the same numbers."""
    for message, outcome in mistakes.items():
        expect(not _same(actual, outcome), message)


# --- 3.1 Same weights, same answers ---------------------------------------------------


@check("3.1")
def check_3_1(attempt):
    for d_in, d_out in ((3, 2), (4, 4)):
        torch.manual_seed(31)
        v1, v2 = SelfAttention_v1(d_in, d_out), SelfAttention_v2(d_in, d_out)
        v1_before, v2_before = _state(v1), _state(v2)
        call(attempt, v1, v2)
        expect(
            _unchanged(v2, v2_before), "v2 was changed; the weights go from v2 to v1"
        )
        for name in PROJECTIONS:
            _expect_copied(name, v1, v2, v1_before[name], (d_in, d_out))
        x = torch.randn(5, d_in)
        expect_close(v1(x), v2(x), "v1 and v2 answer differently", atol=1e-6)
        _expect_independent(v1, v2)
    return "v1 and v2 agree on random tokens, and stay independent."


def _state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def _unchanged(module, before):
    return all(_same(value, before[name]) for name, value in _state(module).items())


def _expect_copied(name, v1, v2, before, shape):
    weight = getattr(v1, name)
    expect(
        tuple(weight.shape) == shape,
        f"v1.{name} now has shape {tuple(weight.shape)}, so x @ {name} cannot work; "
        "compare how nn.Linear stores its matrix",
    )
    expect(not torch.equal(weight, before), f"v1.{name} still has its old weights")
    stored = getattr(v2, name).weight
    expect(
        not _same(weight, stored),
        f"v1.{name} holds the numbers of v2.{name}.weight in the order in which "
        "nn.Linear stores them, and that is not the order that x @ W needs",
    )
    for other in PROJECTIONS:
        expect(
            other == name or not _same(weight, getattr(v2, other).weight.T),
            f"v1.{name} got the weights of v2.{other}",
        )
    expect(
        weight.requires_grad, f"v1.{name} no longer learns: its requires_grad is False"
    )


def _expect_independent(v1, v2):
    before = _state(v1)
    with torch.no_grad():
        for name in PROJECTIONS:
            getattr(v2, name).weight.add_(1.0)
    expect(
        _unchanged(v1, before),
        "changing v2 afterwards also changes v1, so both still share their memory",
    )


# --- 3.2 How wide is a head? ----------------------------------------------------------


@check("3.2")
def check_3_2(attempt):
    for d_in, width, num_heads in ((3, 2, 2), (6, 12, 3), (5, 8, 1)):
        wrapper = call(attempt, d_in, width, num_heads)
        asked = f"for d_in={d_in}, width={width}, num_heads={num_heads}"
        expect(
            isinstance(wrapper, MultiHeadAttentionWrapper),
            f"the result is {describe(wrapper)}, not a MultiHeadAttentionWrapper",
        )
        heads = list(wrapper.heads)
        expect(len(heads) == num_heads, f"{asked} the wrapper has {len(heads)} head(s)")
        expect(
            all(head.mask.shape[0] >= 16 for head in heads),
            f"the wrapper takes {heads[0].mask.shape[0]} tokens at most, not 16",
        )
        expect(
            all(head.dropout.p == 0 for head in heads),
            "the wrapper uses dropout, so in training its answers are not repeatable",
        )
        _expect_width(wrapper, heads, d_in, width, asked)
    return "Wrappers of one, two and three heads return vectors of the width asked for."


def _expect_width(wrapper, heads, d_in, width, asked):
    found = wrapper(torch.zeros(2, 16, d_in)).shape[-1]
    expect(
        len(heads) == 1 or found != width * len(heads),
        f"{asked} the output is {found} wide: each head is as wide as the whole output "
        "should be, and the heads stand side by side",
    )
    expect(
        found == width,
        f"{asked} the output is {found} wide, from heads that are "
        f"{found // len(heads)} wide",
    )


# --- 3.3 Attention at the size of GPT-2 -----------------------------------------------


@check("3.3")
def check_3_3(attempt):
    result = call(attempt)
    expect(
        isinstance(result, tuple | list) and len(result) == 2,
        f"the result is {describe(result)}, not the two things (layer, count)",
    )
    layer, count = result
    if isinstance(count, torch.Tensor) and count.dim() == 0:
        count = count.item()
    expect(
        isinstance(layer, MultiHeadAttention),
        f"the layer is {describe(layer)}, not a MultiHeadAttention",
    )
    _expect_gpt2_sizes(layer)
    total = sum(p.numel() for p in layer.parameters())
    expect(
        count != total + layer.mask.numel(),
        "the count includes the causal mask, which is a buffer and never learned",
    )
    expect(
        count != total - layer.out_proj.bias.numel(),
        "the count leaves out the bias of out_proj",
    )
    expect(
        count != total - sum(p.numel() for p in layer.out_proj.parameters()),
        "the count leaves out out_proj altogether",
    )
    expect_equal(count, total, "the count is not that of the layer's parameters")
    return f"12 heads, {total:,} parameters."


def _expect_gpt2_sizes(layer):
    expect(
        layer.d_in == layer.d_out == 768,
        f"the layer turns vectors {layer.d_in} wide into vectors {layer.d_out} wide",
    )
    expect(
        layer.num_heads == 12,
        f"the layer has num_heads={layer.num_heads}; no count of parameters shows that",
    )
    tokens = layer.mask.shape[0]
    expect(tokens == 1024, f"the layer reads up to {tokens} tokens")
    expect(
        layer.W_query.bias is None,
        "the query, key and value projections have biases, which were to be left out",
    )
    expect(
        layer.dropout.p == 0.1, f"the layer's dropout is {layer.dropout.p} in training"
    )


# --- 3.4 Causal attention in five lines -----------------------------------------------


@check("3.4")
def check_3_4(attempt):
    # With the unit matrix as values, the output is the matrix of weights itself.
    T = 6
    queries, keys = 2 * _floats(T, T, seed=1), _floats(T, T, seed=2)
    unit = torch.eye(T)
    weights = call(attempt, queries, keys, unit)
    expect_tensor(weights, (T, T), "which is that of the values")
    scores = queries @ keys.T
    _expect_values(weights, scores, keys, queries)
    _expect_sees_itself(weights)
    _expect_rows_sum_to_1(weights)
    _expect_no_future(weights, scores)
    _expect_scaled(weights, scores)
    # Scores of some hundreds, of either sign, as a layer in training may have.
    for factor in (100, -100):
        steep = call(attempt, factor * queries, keys, unit)
        expect(
            _same(steep.triu(1), torch.zeros(T, T)),
            "with scores of some hundreds, future tokens get weight: what hides them "
            "is not low enough",
        )
    for T, K in ((1, 3), (2, 5), (7, 3)):
        inputs = [_floats(T, K, seed=10 * T + i) for i in range(3)]
        _expect_context(call(attempt, *inputs), *inputs)
    return "Weights are scaled, causal and sum to 1; equal to PyTorch's own attention."


def _floats(*shape, seed):
    return random_tensor(*shape, seed=seed, dtype=torch.float32)


def _weights(scores, divisor):
    hidden = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return torch.softmax((scores / divisor).masked_fill(hidden, -torch.inf), dim=1)


def _expect_values(found, scores, keys, queries):
    weights = _weights(scores, scores.shape[1] ** 0.5)
    mistakes = {
        "the weights are right, and average the keys instead of the values": (
            weights @ keys
        ),
        "the weights are right, and average the queries instead of the values": (
            weights @ queries
        ),
    }
    _recognise(found, mistakes)


def _expect_sees_itself(weights):
    diagonal = weights.diagonal()[1:]  # a first row that sees nothing may be anything
    expect(
        diagonal.isnan().any() or not (diagonal == 0).all(),
        "no token attends to itself: the mask hides the diagonal too, and the first "
        "token sees nothing at all",
    )
    expect(not weights.isnan().any(), "the weights contain NaN")


def _expect_rows_sum_to_1(weights):
    one = torch.ones(len(weights), dtype=weights.dtype)
    if _same(weights.sum(dim=1), one):
        return
    expect(
        not _same(weights.sum(dim=0), one),
        "the weights sum to 1 for each key instead of for each query: softmax runs "
        "over the wrong axis",
    )
    expect(
        weights.triu(1).any() or not _same(weights[-1:].sum(dim=1), one[-1:]),
        "the future is hidden, but a row of weights sums to less than 1: hidden keys "
        "took their share of the softmax before they were removed",
    )
    sums = ", ".join(f"{total:.2f}" for total in weights.sum(dim=1).tolist())
    expect(False, f"with values that show the weights, a query's sum to {sums}, not 1")


def _expect_no_future(weights, scores):
    if _same(weights.triu(1), torch.zeros_like(weights)):
        return
    expect(
        not _same(weights.tril(-1), torch.zeros_like(weights)),
        "tokens see the future and not the past: the triangle is the wrong way round",
    )
    expect(
        not _same(weights.triu(2), torch.zeros_like(weights)),
        "each token also sees the one right after it: the mask is off by one",
    )
    # Nothing hidden: in a row, the logarithms of the weights follow the scores.
    logs, plain = (_centred(t) for t in (weights.log(), scores))
    slope = (logs * plain).sum() / (plain * plain).sum()
    rounding = 1e-3  # of logarithms of small numbers
    expect(
        not _same(logs, slope * plain, rounding),
        "every token sees all others: nothing is hidden",
    )
    expect(
        not any(_same(weights, outcome) for outcome in _ones_and_zeros(scores)),
        "future tokens count a little less but they count: the mask enters the scores "
        "as ones and zeros, and softmax turns a score of 0 into exp(0) = 1",
    )
    largest = weights.triu(1).max().item()
    expect(False, f"future tokens are not hidden: one gets the weight {largest:.2f}")


def _centred(rows):
    return rows - rows.mean(dim=1, keepdim=True)


def _ones_and_zeros(scores):
    ones = torch.ones_like(scores)
    for divisor in (scores.shape[1] ** 0.5, 1.0):
        scaled = scores / divisor
        for changed in (
            scaled + ones.tril(),
            scaled - ones.triu(1),
            scaled + ones.triu(1),
            scaled * ones.tril(),
            (scores + ones.tril()) / divisor,
            (scores + ones.triu(1)) / divisor,
        ):
            yield torch.softmax(changed, dim=1)


def _expect_scaled(weights, scores):
    K = scores.shape[1]
    mistakes = {
        "the scores are not scaled, so the softmax is too sharp": _weights(scores, 1.0),
        "the scores are divided by K itself, so the softmax is too flat": (
            _weights(scores, K)
        ),
        "the scores are multiplied where they should shrink": (
            _weights(scores, K**-0.5)
        ),
        "queries and keys have changed places: row i belongs to query i": (
            _weights(scores.T, K**0.5)
        ),
    }
    _recognise(weights, mistakes)
    expect_close(
        weights,
        _weights(scores, K**0.5),
        "the weights are not those of attention",
        ROUNDING,
    )


def _expect_context(found, queries, keys, values):
    (T, K), scores = keys.shape, queries @ keys.T
    about = f"for T={T} and K={K}"
    if isinstance(found, torch.Tensor) and found.shape == (T, T):
        weights = _weights(scores, K**0.5)
        expect(
            not _same(found, weights),
            f"{about} the result is the table of weights; nothing is averaged with it",
        )
    expect_tensor(found, (T, K), f"{about}: a context vector for each query")
    by_tokens = "the scores are divided by the root of T, the number of tokens"
    rows = (part[None] for part in (queries, keys, values))
    expected = F.scaled_dot_product_attention(*rows, is_causal=True)[0]
    wrong = _weights(scores, T**0.5) @ values
    if T > 1:  # alone, a token gets the weight 1 whatever its score
        _recognise(found, {by_tokens: wrong})
    expect_close(found, expected, f"{about} the result is not right", ROUNDING)


# --- 3.5 One head out of many ---------------------------------------------------------


@check("3.5")
def check_3_5(attempt):
    for qkv_bias, head in ((False, 0), (False, 2), (True, 1)):
        torch.manual_seed(35)
        layer = MultiHeadAttention(6, 8, 7, 0.1, num_heads=4, qkv_bias=qkv_bias).eval()
        before = _state(layer)
        found = call(attempt, layer, head)
        expect(
            isinstance(found, CausalAttention),
            f"the result is {describe(found)}, not a CausalAttention",
        )
        expect(_unchanged(layer, before), "the layer itself was changed")
        _expect_head_sizes(found, layer)
        for name in PROJECTIONS:
            _expect_slice(name, found, layer, head)
        x = torch.randn(2, 7, 6)
        expect_close(
            found(x),
            _before_projection(layer, x)[..., 2 * head : 2 * head + 2],
            f"head {head} of {layer.num_heads} answers differently inside the layer",
            atol=ROUNDING,
        )
        _expect_own_weights(found, layer, before)
    return "Three heads, with and without biases, answer alone as in their layer."


def _expect_own_weights(found, layer, before):
    with torch.no_grad():
        for part in found.parameters():
            part.add_(1.0)
    expect(
        _unchanged(layer, before),
        "changing the head afterwards changes the layer: both share their memory; copy "
        "the numbers",
    )


def _expect_head_sizes(found, layer):
    expect(
        found.d_out == layer.head_dim,
        f"the head is {found.d_out} wide, but one of this layer's is "
        f"{layer.head_dim} wide",
    )
    tokens = found.mask.shape[0]
    expect(
        tokens == layer.mask.shape[0],
        f"the head takes {tokens} tokens, another number than the layer",
    )
    expect(found.dropout.p == 0, "the head uses dropout, which was to be left out")


def _expect_slice(name, found, layer, head):
    wide, H, K = getattr(layer, name), layer.num_heads, layer.head_dim
    part = getattr(found, name)
    expect(
        tuple(part.weight.shape) == (K, layer.d_in),
        f"{name}.weight of the head has shape {tuple(part.weight.shape)}; nn.Linear "
        "stores one row for each output and one column for each input",
    )
    expect(
        not _same(part.weight, wide.weight[head::H]),
        f"{name} of the head takes every {H}th row, but a head owns neighbouring rows",
    )
    for other in range(H):
        expect(
            other == head or not _same(part.weight, wide.weight[other * K :][:K]),
            f"{name} belongs to head {other}, but head {head} was asked for",
        )
    expect(
        _same(part.weight, wide.weight[head * K :][:K]),
        f"{name}.weight of the head is no part of the layer's {name}",
    )
    if wide.bias is not None:
        bias = torch.zeros(K) if part.bias is None else part.bias
        expect(
            _same(bias, wide.bias[head * K :][:K]),
            f"the layer's {name} has a bias, and the head's part of it is not copied",
        )


def _before_projection(layer, x):
    """What the heads return, side by side, before `out_proj` mixes it."""
    seen = []
    hook = layer.out_proj.register_forward_pre_hook(lambda _, args: seen.append(args))
    layer(x)
    hook.remove()
    return seen[0][0]


# --- 3.6 Who may see whom in a padded batch? ------------------------------------------


@check("3.6")
def check_3_6(attempt):
    # First a mask in which every slip shows, then others whose two sides differ.
    square = [[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]]
    for rows in (square, [[0, 1, 1, 1, 1], [1, 1, 1, 0, 0]], [[1], [0], [1]], [[0, 1]]):
        real = torch.tensor(rows, dtype=torch.bool)
        B, T = real.shape
        found = call(attempt, real)
        expect_tensor(found, (B, T, T), "one (T, T) mask for each sequence")
        expect(
            found.dtype == torch.bool, f"the mask holds {found.dtype}, not truth values"
        )
        future = torch.ones(T, T, dtype=torch.bool).triu(1)
        _recognise(found, _padding_mistakes(real, future) if rows is square else {})
        expected = torch.stack([future | ~row for row in real])
        asked = f"for an attention_mask of shape {(B, T)}"
        expect_equal(found, expected, f"{asked} the mask hides the wrong keys")
    return "Padding on either side, none, and nothing but padding: all masks right."


def _padding_mistakes(real, future):
    B, T = real.shape
    of_keys = ~real[:, None, :].expand(B, T, T)
    of_queries = ~real[:, :, None].expand(B, T, T)
    itself = torch.ones(T, T, dtype=torch.bool).triu(0)
    return {
        "True marks what may be seen; here it must mark what is hidden": (
            ~(future | of_keys)
        ),
        "whole rows are hidden: padding was applied to the queries, not to the keys": (
            future | of_queries
        ),
        "padded queries lose the real keys they could see; hide keys only": (
            future | of_keys | of_queries
        ),
        "padding is hidden, but the future is not": of_keys,
        "the future is hidden, but padding is not": future.expand(B, T, T),
        "a key is hidden only if it is both later and padding; one reason is enough": (
            future & of_keys
        ),
        "tokens do not see themselves: the triangle starts too early": itself | of_keys,
        "the past is hidden instead of the future": future.T | of_keys,
    }


# --- 3.7 The mask of a continued sequence ---------------------------------------------


@check("3.7")
def check_3_7(attempt):
    # First a case in which every slip shows, then the edges.
    for past, new in ((3, 4), (0, 4), (5, 1), (1, 6), (7, 2)):
        found = call(attempt, past, new)
        asked = f"for past={past} and new={new}"
        expect_tensor(found, (new, past + new), f"{asked}: new tokens by all tokens")
        expect(
            found.dtype == torch.bool, f"the mask holds {found.dtype}, not truth values"
        )
        _recognise(found, _chunk_mistakes(past, new) if (past, new) == (3, 4) else {})
        whole = torch.ones(past + new, past + new, dtype=torch.bool).triu(1)
        expect_equal(found, whole[past:], f"{asked} the mask hides the wrong keys")
    return "Five chunks see exactly their own token and those before it."


def _chunk_mistakes(past, new):
    everything = torch.ones(new, past + new, dtype=torch.bool)
    return {
        "the first new token is treated as number 0 of the sequence, so new tokens "
        "miss part of the past: the triangle is in the wrong corner": everything.triu(
            1
        ),
        "True marks what may be seen; here it must mark what is hidden": (
            ~everything.triu(past + 1)
        ),
        "a new token does not see itself: the triangle starts one place early": (
            everything.triu(past)
        ),
        "a new token sees the one after it: the triangle starts one place late": (
            everything.triu(past + 2)
        ),
        "new tokens see each other's future: nothing is hidden": ~everything,
        "the whole past is hidden, so the cache is of no use": torch.cat(
            (everything[:, :past], everything[:, :new].triu(1)), dim=1
        ),
    }


# --- 3.8 Three projections in one -----------------------------------------------------


@check("3.8")
def check_3_8(attempt):
    for B, T, D, H in ((2, 5, 12, 3), (1, 4, 8, 4), (3, 1, 6, 1)):
        torch.manual_seed(38)
        qkv, out_proj = nn.Linear(D, 3 * D), nn.Linear(D, D)
        x = 3 * _floats(B, T, D, seed=D)
        found = call(attempt, x, qkv, out_proj, H)
        expect_tensor(found, (B, T, D), f"for x of shape {(B, T, D)} and {H} heads")
        with torch.no_grad():
            if H == 3:
                _recognise(found, fused_mistakes(x, qkv, out_proj, H))
                _expect_order(found, x, qkv, out_proj, H)
            expected = out_proj(merge_heads(fused_heads(x, qkv, H)))
        expect_close(
            found,
            expected,
            f"for B={B}, T={T}, D={D} and {H} heads, the numbers are not those of "
            "MultiHeadAttention with the same weights",
            ROUNDING,
        )
    return "Equal to MultiHeadAttention with the same weights, for 1, 3 and 4 heads."


def _expect_order(found, x, qkv, out_proj, H):
    exchanged = out_proj(merge_heads(fused_heads(x, qkv, H, order=(1, 0, 2))))
    message = "queries and keys have changed places: row i of the scores is query i"
    _recognise(found, {message: exchanged})
    for order in itertools.permutations(range(3)):
        outcome = out_proj(merge_heads(fused_heads(x, qkv, H, order=order)))
        expect(
            order == (0, 1, 2) or not _same(found, outcome),
            "queries, keys and values are taken from the wrong thirds of qkv's output",
        )
