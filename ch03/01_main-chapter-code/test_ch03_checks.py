"""Every exercise check takes the solution, knows the stub and names mistakes."""

import pytest
import torch
from torch import nn

import ch03_checks
from course.exercises import verify
from multihead_attention import (
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
)

PROJECTIONS = ("W_query", "W_key", "W_value")


def stub(*arguments):
    """A function of which only the docstring is there."""
    return ...


def future(T):
    return torch.ones(T, T, dtype=torch.bool).triu(1)


# --- 3.1 ------------------------------------------------------------------------------


def copy_weights(v1, v2, pairs=None, transpose=True, share=False):
    for name, source in pairs or zip(PROJECTIONS, PROJECTIONS, strict=True):
        stored = getattr(v2, source).weight.detach()
        stored = stored.T if transpose else stored
        setattr(v1, name, nn.Parameter(stored if share else stored.clone()))


def copy_by_reshaping(v1, v2):
    with torch.no_grad():
        for name in PROJECTIONS:
            weight = getattr(v1, name)
            weight.copy_(getattr(v2, name).weight.reshape(weight.shape))


def copy_swapped(v1, v2):
    copy_weights(v1, v2, pairs=zip(PROJECTIONS, ("W_key", "W_query", "W_value")))


def copy_two_of_three(v1, v2):
    copy_weights(v1, v2, pairs=[("W_query", "W_query"), ("W_key", "W_key")])


def copy_backwards(v1, v2):
    with torch.no_grad():
        for name in PROJECTIONS:
            getattr(v2, name).weight.copy_(getattr(v1, name).T)


def copy_frozen(v1, v2):
    copy_weights(v1, v2)
    v1.W_query.requires_grad_(False)


def copy_square_as_stored(v1, v2):
    copy_weights(v1, v2, transpose=v1.W_query.shape[0] != v1.W_query.shape[1])


WRONG_3_1 = {
    "not transposed": (
        lambda v1, v2: copy_weights(v1, v2, transpose=False),
        "cannot work",
    ),
    "not transposed, where the shape hides it": (
        copy_square_as_stored,
        "in the order in which nn.Linear stores them",
    ),
    "reshaped": (copy_by_reshaping, "answer differently"),
    "query and key swapped": (copy_swapped, "got the weights of v2.W_key"),
    "one forgotten": (copy_two_of_three, "W_value still has its old weights"),
    "from v1 to v2": (copy_backwards, "v2 was changed"),
    "shared": (lambda v1, v2: copy_weights(v1, v2, share=True), "share their memory"),
    "frozen": (copy_frozen, "no longer learns"),
}


# --- 3.2 ------------------------------------------------------------------------------


def make_wrapper(d_in, width, num_heads):
    return MultiHeadAttentionWrapper(d_in, width // num_heads, 16, 0.0, num_heads)


WRONG_3_2 = {
    "each head as wide as the output": (
        lambda d, w, h: MultiHeadAttentionWrapper(d, w, 16, 0.0, h),
        "stand side by side",
    ),
    "always heads one wide": (
        lambda d, w, h: MultiHeadAttentionWrapper(d, 1, 16, 0.0, h),
        "from heads that are 1 wide",
    ),
    "a single wide head": (
        lambda d, w, h: MultiHeadAttentionWrapper(d, w, 16, 0.0, 1),
        "has 1 head(s)",
    ),
    "true division": (
        lambda d, w, h: MultiHeadAttentionWrapper(d, w / h, 16, 0.0, h),
        "give a whole number",
    ),
    "context too short": (
        lambda d, w, h: MultiHeadAttentionWrapper(d, w // h, 6, 0.0, h),
        "takes 6 tokens at most",
    ),
    "dropout": (
        lambda d, w, h: MultiHeadAttentionWrapper(d, w // h, 16, 0.1, h),
        "not repeatable",
    ),
    "the other class": (
        lambda d, w, h: MultiHeadAttention(d, w, 16, 0.0, h),
        "not a MultiHeadAttentionWrapper",
    ),
}


# --- 3.3 ------------------------------------------------------------------------------


def gpt2_attention(
    d_in=768, context_length=1024, dropout=0.1, num_heads=12, qkv_bias=False, count=None
):
    layer = MultiHeadAttention(d_in, 768, context_length, dropout, num_heads, qkv_bias)
    total = sum(p.numel() for p in layer.parameters())
    return layer, total if count is None else count


WRONG_3_3 = {
    "count alone": (lambda: 2_360_064, "not the two things"),
    "eight heads": (lambda: gpt2_attention(num_heads=8), "num_heads=8"),
    "short context": (lambda: gpt2_attention(context_length=256), "up to 256 tokens"),
    "biases": (lambda: gpt2_attention(qkv_bias=True), "have biases"),
    "narrow input": (lambda: gpt2_attention(d_in=64), "vectors 64 wide"),
    "no dropout": (lambda: gpt2_attention(dropout=0.0), "dropout is 0.0"),
    "mask counted": (
        lambda: gpt2_attention(count=2_360_064 + 1024 * 1024),
        "includes the causal mask",
    ),
    "bias not counted": (
        lambda: gpt2_attention(count=2_360_064 - 768),
        "leaves out the bias",
    ),
    "projection not counted": (
        lambda: gpt2_attention(count=3 * 768 * 768),
        "leaves out out_proj altogether",
    ),
    "count of another model": (
        lambda: gpt2_attention(count=163_009_536),
        "not that of the layer's parameters",
    ),
}


# --- 3.4 ------------------------------------------------------------------------------


def causal_attention(
    queries,
    keys,
    values,
    divide=lambda queries: queries.shape[1] ** 0.5,
    hide=lambda scores: scores.masked_fill(future(len(scores)), -torch.inf),
    dim=-1,
):
    scores = hide(queries @ keys.T / divide(queries))
    return torch.softmax(scores, dim=dim) @ values


def planted_3_4(**mistake):
    return lambda q, k, v: causal_attention(q, k, v, **mistake)


def hidden_after_softmax(queries, keys, values):
    scores = queries @ keys.T / keys.shape[1] ** 0.5
    return torch.softmax(scores, dim=-1).masked_fill(future(len(keys)), 0.0) @ values


def filled(where):
    return lambda s: s.masked_fill(where(torch.ones_like(s, dtype=torch.bool)), -1e9)


WRONG_3_4 = {
    "scale missing": (planted_3_4(divide=lambda q: 1.0), "not scaled"),
    "scale without root": (planted_3_4(divide=lambda q: q.shape[1]), "by K itself"),
    "multiplied": (planted_3_4(divide=lambda q: q.shape[1] ** -0.5), "should shrink"),
    "scaled by tokens": (
        planted_3_4(divide=lambda q: q.shape[0] ** 0.5),
        "the root of T",
    ),
    "softmax over queries": (planted_3_4(dim=0), "runs over the wrong axis"),
    "diagonal hidden": (
        planted_3_4(hide=filled(lambda ones: ones.triu(0))),
        "no token attends to itself",
    ),
    "one too many seen": (
        planted_3_4(hide=filled(lambda ones: ones.triu(2))),
        "off by one",
    ),
    "mask added as 0 and 1": (
        planted_3_4(hide=lambda s: s + torch.ones_like(s).tril()),
        "ones and zeros",
    ),
    "nothing hidden": (planted_3_4(hide=lambda s: s), "nothing is hidden"),
    "past hidden": (
        planted_3_4(hide=filled(lambda ones: ones.tril(-1))),
        "wrong way round",
    ),
    "hidden after softmax": (hidden_after_softmax, "took their share"),
    "values forgotten": (
        lambda q, k, v: causal_attention(q, k, v)[:, 0],
        "which is that of the values",
    ),
    "scaled after softmax": (
        lambda q, k, v: (
            causal_attention(q, k, v, divide=lambda _: 1.0) / k.shape[1] ** 0.5
        ),
        "a query's sum to",
    ),
}


def test_other_ways_to_add_a_mask_of_zeros_and_ones_are_named_too():
    """PITFALLS: mask added as 0/1 instead of minus infinity."""
    ways = (
        lambda s: s + torch.ones_like(s).triu(1),
        lambda s: s - torch.ones_like(s).triu(1),
        lambda s: s * torch.ones_like(s).tril(),
    )
    for way in ways:
        with pytest.raises(AssertionError, match="ones and zeros"):
            ch03_checks.check_3_4(planted_3_4(hide=way))


def test_a_diagonal_hidden_with_minus_infinity_is_named_though_it_gives_nan():
    strict = planted_3_4(
        hide=lambda s: s.masked_fill(torch.ones_like(s).triu(0).bool(), -torch.inf)
    )
    with pytest.raises(AssertionError, match="no token attends to itself"):
        ch03_checks.check_3_4(strict)


# --- 3.5 ------------------------------------------------------------------------------


def head_slice(layer, head):
    return slice(head * layer.head_dim, (head + 1) * layer.head_dim)


def extract_head(layer, head, rows=head_slice, names=PROJECTIONS, bias=True):
    found = CausalAttention(
        layer.d_in,
        layer.head_dim,
        layer.mask.shape[0],
        0.0,
        qkv_bias=layer.W_query.bias is not None and bias,
    )
    with torch.no_grad():
        for name in names:
            wide, part = getattr(layer, name), getattr(found, name)
            part.weight.copy_(wide.weight[rows(layer, head)])
            if part.bias is not None:
                part.bias.copy_(wide.bias[rows(layer, head)])
    return found


def extract_columns(layer, head):
    found = extract_head(layer, head)
    columns = layer.W_query.weight[:, : layer.head_dim]
    found.W_query.weight = nn.Parameter(columns.detach().clone())
    return found


def extract_whole_layer(layer, head):
    return CausalAttention(layer.d_in, layer.d_out, layer.mask.shape[0], 0.0)


def extract_and_spoil(layer, head):
    found = extract_head(layer, head)
    with torch.no_grad():
        layer.W_key.weight.zero_()
    return found


WRONG_3_5 = {
    "every fourth row": (
        lambda layer, head: extract_head(
            layer, head, rows=lambda y, h: slice(h, None, y.num_heads)
        ),
        "takes every 4th row",
    ),
    "always the first head": (
        lambda layer, head: extract_head(layer, 0),
        "belongs to head 0",
    ),
    "columns": (extract_columns, "one row for each output"),
    "values forgotten": (
        lambda layer, head: extract_head(layer, head, names=("W_query", "W_key")),
        "W_value.weight of the head is no part",
    ),
    "biases forgotten": (
        lambda layer, head: extract_head(layer, head, bias=False),
        "has a bias",
    ),
    "whole width": (extract_whole_layer, "the head is 8 wide"),
    "layer spoiled": (extract_and_spoil, "layer itself was changed"),
    "not a head": (lambda layer, head: layer, "not a CausalAttention"),
}


# --- 3.6 ------------------------------------------------------------------------------


def hidden_keys(attention_mask):
    return future(attention_mask.shape[1]) | ~attention_mask[:, None, :]


WRONG_3_6 = {
    "visible": (lambda m: ~hidden_keys(m), "True marks what may be seen"),
    "queries": (
        lambda m: future(m.shape[1]) | ~m[:, :, None],
        "whole rows are hidden",
    ),
    "both": (lambda m: hidden_keys(m) | ~m[:, :, None], "padded queries lose"),
    "padding only": (
        lambda m: ~m[:, None, :].expand(-1, m.shape[1], -1),
        "the future is not",
    ),
    "future only": (
        lambda m: future(m.shape[1]).expand(len(m), -1, -1),
        "but padding is not",
    ),
    "and": (lambda m: future(m.shape[1]) & ~m[:, None, :], "one reason is enough"),
    "diagonal": (
        lambda m: torch.ones(4, 4, dtype=torch.bool).triu(0) | ~m[:, None, :],
        "do not see themselves",
    ),
    "past": (lambda m: future(m.shape[1]).T | ~m[:, None, :], "instead of the future"),
    "numbers": (lambda m: hidden_keys(m).float(), "not truth values"),
    "one mask for all": (lambda m: future(m.shape[1]), "for each sequence"),
}


# --- 3.7 ------------------------------------------------------------------------------


def chunk_mask(past, new):
    return future(past + new)[past:]


def ones(past, new):
    return torch.ones(new, past + new, dtype=torch.bool)


WRONG_3_7 = {
    "triangle from the top left": (
        lambda past, new: ones(past, new).triu(1),
        "in the wrong corner",
    ),
    "square": (lambda past, new: future(new), "new tokens by all tokens"),
    "visible": (lambda past, new: ~chunk_mask(past, new), "True marks what may"),
    "early": (lambda past, new: ones(past, new).triu(past), "starts one place early"),
    "late": (lambda past, new: ones(past, new).triu(past + 2), "one place late"),
    "nothing": (lambda past, new: ~ones(past, new), "nothing is hidden"),
    "past hidden": (
        lambda past, new: torch.cat((ones(past, new)[:, :past], future(new)), 1),
        "the cache is of no use",
    ),
    "numbers": (lambda past, new: chunk_mask(past, new).int(), "not truth values"),
    "first chunk only": (
        lambda past, new: chunk_mask(past, new) if past == 3 else ones(past, new),
        "hides the wrong keys",
    ),
}


# --- 3.8 ------------------------------------------------------------------------------


def split(x, num_heads):
    B, T, D = x.shape
    return x.view(B, T, num_heads, D // num_heads).transpose(1, 2)


def split_by_view(x, num_heads):
    B, T, D = x.shape
    return x.reshape(B, num_heads, T, D // num_heads)


def merge(heads):
    return heads.transpose(1, 2).flatten(2)


def fused_attention(x, qkv, out_proj, num_heads, split=split, merge=merge, **options):
    queries, keys, values = (split(part, num_heads) for part in qkv(x).chunk(3, dim=-1))
    order = options.get("order", lambda q, k, v: (q, k, v))
    queries, keys, values = order(queries, keys, values)
    scale = options.get("scale", queries.shape[-1] ** 0.5)
    scores = queries @ keys.transpose(2, 3) / scale
    if options.get("causal", True):
        scores = scores.masked_fill(future(x.shape[1]), -torch.inf)
    weights = torch.softmax(scores, dim=options.get("dim", -1))
    return out_proj(merge(weights @ values))


def planted_3_8(**mistake):
    return lambda x, qkv, out_proj, num_heads: fused_attention(
        x, qkv, out_proj, num_heads, **mistake
    )


def no_output_projection(x, qkv, out_proj, num_heads):
    return fused_attention(x, qkv, nn.Identity(), num_heads)


def parts_kept_per_head(x, qkv, out_proj, num_heads):
    B, T, D = x.shape
    parts = qkv(x).view(B, T, num_heads, 3, D // num_heads).permute(3, 0, 1, 2, 4)
    regrouped = parts.flatten(3).permute(1, 2, 0, 3).flatten(2)
    return fused_attention(regrouped, nn.Identity(), out_proj, num_heads)


def view_back(heads):
    B, H, T, K = heads.shape
    return heads.reshape(B, T, H * K)


WRONG_3_8 = {
    "output projection forgotten": (no_output_projection, "never applied"),
    "split without transpose": (planted_3_8(split=split_by_view), "a new shape alone"),
    "merged without transpose": (planted_3_8(merge=view_back), "tokens get mixed"),
    "neither": (
        planted_3_8(split=split_by_view, merge=view_back),
        "without ever moving an axis",
    ),
    "scale missing": (planted_3_8(scale=1.0), "are not scaled"),
    "scale of the whole width": (planted_3_8(scale=12**0.5), "by the whole width"),
    "not causal": (planted_3_8(causal=False), "sees the later ones"),
    "softmax over queries": (planted_3_8(dim=-2), "instead of over the keys"),
    "keys and values swapped": (
        planted_3_8(order=lambda q, k, v: (q, v, k)),
        "wrong thirds",
    ),
    "parts kept per head": (parts_kept_per_head, "its own three parts together"),
    "every third column": (
        planted_3_8(
            split=lambda x, h: x.view(*x.shape[:2], x.shape[2] // h, h).permute(
                0, 3, 1, 2
            )
        ),
        "every third column",
    ),
    "flat": (
        lambda x, qkv, out_proj, num_heads: fused_attention(
            x, qkv, out_proj, num_heads
        ).flatten(1),
        "for x of shape",
    ),
    "never causal for many heads": (
        lambda x, qkv, out_proj, num_heads: fused_attention(
            x, qkv, out_proj, num_heads, causal=num_heads == 3
        ),
        "same weights",
    ),
}


@pytest.mark.parametrize(
    ("check", "solution", "wrong"),
    [
        (ch03_checks.check_3_1, copy_weights, WRONG_3_1),
        (ch03_checks.check_3_2, make_wrapper, WRONG_3_2),
        (ch03_checks.check_3_3, gpt2_attention, WRONG_3_3),
        (ch03_checks.check_3_4, causal_attention, WRONG_3_4),
        (ch03_checks.check_3_5, extract_head, WRONG_3_5),
        (ch03_checks.check_3_6, hidden_keys, WRONG_3_6),
        (ch03_checks.check_3_7, chunk_mask, WRONG_3_7),
        (ch03_checks.check_3_8, fused_attention, WRONG_3_8),
    ],
    ids=[f"exercise 3.{i}" for i in range(1, 9)],
)
def test_check_takes_the_solution_and_names_each_mistake(check, solution, wrong):
    verify(check, solution, stub, wrong)


def test_gpt2_attention_has_the_known_number_of_parameters():
    assert gpt2_attention()[1] == 2_360_064


def test_a_copy_that_also_returns_v1_is_right():
    def copy_and_return(v1, v2):
        copy_weights(v1, v2)
        return v1

    ch03_checks.check_3_1(copy_and_return)
    with pytest.raises(AssertionError, match="still has its old weights"):
        ch03_checks.check_3_1(lambda v1, v2: v1)
