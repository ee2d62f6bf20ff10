"""Multi-head attention, computed in ten more ways (chapter 3, bonus).

`MultiHeadAttention` of chapter 3 is the source: every layer here takes its weights
(`give_weights`) and gives its numbers, forward and backward. From slow to fast, and
from written out to handed over:

* `MHALoops`: one query after the other, as section 3.3 began;
* `MHAListOfHeads`: the heads as layers of their own, then a projection;
* `MultiHeadAttentionCombinedQKV`: one matrix for queries, keys and values;
* `MHAEinsum`: products that name their axes, without a single reshaping;
* `MHAPyTorchScaledDotProduct` and `MHAPyTorchSDPAWithoutFlash`: PyTorch's fused
  function, told to be causal or given the mask;
* `MHAPyTorchClass`: `nn.MultiheadAttention`, with or without the weights returned;
* `MHAPyTorchFlexAttention`: the mask as a function;
* `MHATiled`: attention in tiles with an online softmax, forward and backward, which
  holds no more scores at a time than one tile has.

Sources: Vaswani et al., "Attention Is All You Need", 2017 (arXiv:1706.03762); Milakov
and Gimelshein, "Online normalizer calculation for softmax", 2018 (arXiv:1805.02867),
algorithm 3; Dao et al., "FlashAttention", 2022 (arXiv:2205.14135), section 3.1 and
appendix B; Dong et al., "Flex Attention", 2024 (arXiv:2412.05496).

Left out: padding and a cache, which `MultiHeadAttention` keeps to itself. Every layer
is causal and takes whole sequences of at most `context_length` tokens.

>>> _ = torch.manual_seed(0)
>>> source = MultiHeadAttention(8, 8, context_length=6, dropout=0.0, num_heads=2)
>>> tiled = MHATiled(8, 8, context_length=6, dropout=0.0, num_heads=2, tile=4)
>>> give_weights(source, tiled)
>>> x = torch.randn(3, 5, 8)
>>> torch.allclose(tiled(x), source(x), atol=1e-6)
True

Shapes: B batch, T tokens, D model width (`d_in`), H heads, K head width (`d_out / H`);
q and s count the queries and keys of a tile.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.attention.flex_attention import (
    BlockMask,
    create_block_mask,
    flex_attention,
)

from argument_checks import check_divisible, check_input, check_length, check_sizes
from multihead_attention import MultiHeadAttention, MultiHeadAttentionWrapper

__all__ = [
    "MHAEinsum",
    "MHAListOfHeads",
    "MHALoops",
    "MHAPyTorchClass",
    "MHAPyTorchFlexAttention",
    "MHAPyTorchSDPAWithoutFlash",
    "MHAPyTorchScaledDotProduct",
    "MHATiled",
    "MHAVariant",
    "MultiHeadAttentionCombinedQKV",
    "TiledAttention",
    "add_tile",
    "causal_blocks",
    "give_weights",
    "hide_future",
    "tiled_backward",
    "tiled_forward",
    "tiles",
    "translated",
]

State = dict[str, Tensor]


def translated(state: State, layer: nn.Module) -> State:
    """A state of `MultiHeadAttention` under the names of another layer.

    It also translates gradients, since it only cuts, joins and renames.

    Args:
        state: names such as "W_query.weight" and what belongs to them.
        layer: any layer of this module; one without a method `translate` has the
            names of `MultiHeadAttention` itself.
    """
    translate = getattr(layer, "translate", dict)
    return translate(state)


def give_weights(source: MultiHeadAttention, layer: nn.Module) -> None:
    """Give a layer of this module the weights of a `MultiHeadAttention`.

    Raises:
        RuntimeError: the two have other sizes, or only one has biases.
    """
    layer.load_state_dict(translated(source.state_dict(), layer))


class MHAVariant(MultiHeadAttention):
    """The projections of chapter 3 around another way to attend.

    A subclass says how in `attend`; arguments as in `MultiHeadAttention`.
    """

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Context vectors, (B, T, D) to (B, T, d_out)."""
        check_input(x, self.d_in)
        B, T, _ = x.shape
        check_length(T, self.mask.shape[0])
        queries = self.split_heads(self.W_query(x))  # (B, H, T, K)
        keys = self.split_heads(self.W_key(x))
        values = self.split_heads(self.W_value(x))
        context = self.attend(queries, keys, values)  # (B, H, T, K)
        context = context.transpose(1, 2).reshape(B, T, self.d_out)
        return self.out_proj(context)  # (B, T, d_out)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Causal attention of each head, three times (B, H, T, K) to one."""
        raise NotImplementedError


class MHALoops(MHAVariant):
    """Loops over heads and queries; a query meets the keys up to its own."""

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As in `MHAVariant`; no mask, since later keys are never touched."""
        heads = zip(*(part.flatten(0, 1) for part in (queries, keys, values)))
        contexts = []
        for q, k, v in heads:  # B * H times, each (T, K)
            for t in range(len(q)):
                scores = k[: t + 1] @ q[t] / self.head_dim**0.5  # (t + 1,)
                weights = self.dropout(torch.softmax(scores, dim=0))
                contexts.append(weights @ v[: t + 1])  # (K,)
        return torch.stack(contexts).view(queries.shape)  # (B, H, T, K)


class MHAListOfHeads(nn.Module):
    """The heads as separate layers, one after the other, then `out_proj`.

    Args: as in `MultiHeadAttention`; `d_out` is the width of all heads together.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        context_length: int,
        dropout: float,
        num_heads: int,
        qkv_bias: bool = False,
    ):
        super().__init__()
        check_divisible(d_out=d_out, num_heads=num_heads)
        sizes = (d_in, d_out // num_heads, context_length, dropout, num_heads)
        self.heads = MultiHeadAttentionWrapper(*sizes, qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)

    def forward(self, x: Tensor) -> Tensor:
        """Context vectors, (B, T, D) to (B, T, d_out)."""
        return self.out_proj(self.heads(x))

    def translate(self, state: State) -> State:
        """Each head gets its own rows of every wide matrix and bias."""
        heads = self.heads.heads
        result = {k: v for k, v in state.items() if k.startswith("out_proj")}
        for name in state.keys() - result.keys():
            for head, rows in enumerate(state[name].chunk(len(heads))):
                result[f"heads.heads.{head}.{name}"] = rows
        return result


class MultiHeadAttentionCombinedQKV(MHAVariant):
    """One product makes queries, keys and values; arguments as ever."""

    def __init__(
        self,
        d_in: int,
        d_out: int,
        context_length: int,
        dropout: float,
        num_heads: int,
        qkv_bias: bool = False,
    ):
        super().__init__(d_in, d_out, context_length, dropout, num_heads)
        del self.W_query, self.W_key, self.W_value
        self.qkv = nn.Linear(d_in, 3 * d_out, bias=qkv_bias)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Context vectors, (B, T, D) to (B, T, d_out)."""
        check_input(x, self.d_in)
        B, T, _ = x.shape
        check_length(T, self.mask.shape[0])
        qkv = self.qkv(x).view(B, T, 3, self.num_heads, self.head_dim)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, K)
        scores = queries @ keys.transpose(2, 3) / self.head_dim**0.5
        scores = scores.masked_fill(self.mask[:T, :T], -torch.inf)  # (B, H, T, T)
        context = self.dropout(torch.softmax(scores, dim=-1)) @ values
        return self.out_proj(context.transpose(1, 2).reshape(B, T, self.d_out))

    def translate(self, state: State) -> State:
        """Queries, keys and values below one another, in this order."""
        result = {k: v for k, v in state.items() if k.startswith("out_proj")}
        for kind in {name.partition(".")[2] for name in state.keys() - result.keys()}:
            three = [state[f"W_{part}.{kind}"] for part in ("query", "key", "value")]
            result[f"qkv.{kind}"] = torch.cat(three)
        return result


class MHAEinsum(MHAVariant):
    """Sums of products that name their axes: nothing is cut or turned."""

    def project(self, x: Tensor, linear: nn.Linear) -> Tensor:
        """What a projection gives to each head, (B, T, D) to (B, H, T, K)."""
        by_head = (self.num_heads, self.head_dim)
        weight = linear.weight.unflatten(0, by_head)  # (H, K, D)
        projected = torch.einsum("btd,hkd->bhtk", x, weight)
        if linear.bias is None:
            return projected
        return projected + linear.bias.view(self.num_heads, 1, self.head_dim)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Context vectors, (B, T, D) to (B, T, d_out)."""
        check_input(x, self.d_in)
        T = x.shape[1]
        check_length(T, self.mask.shape[0])
        queries = self.project(x, self.W_query)  # (B, H, T, K)
        keys = self.project(x, self.W_key)
        values = self.project(x, self.W_value)
        scores = torch.einsum("bhqk,bhsk->bhqs", queries, keys)
        scores = scores / self.head_dim**0.5
        scores = scores.masked_fill(self.mask[:T, :T], -torch.inf)
        weights = self.dropout(torch.softmax(scores, dim=-1))  # (B, H, T, T)
        context = torch.einsum("bhqs,bhsk->bhqk", weights, values)
        out = self.out_proj.weight.unflatten(1, (self.num_heads, self.head_dim))
        return torch.einsum("bhqk,ohk->bqo", context, out) + self.out_proj.bias


class MHAPyTorchScaledDotProduct(MHAVariant):
    """PyTorch's fused attention, told that it is causal."""

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As in `MHAVariant`; the function does not know about `eval`."""
        dropout = self.dropout.p if self.training else 0.0
        return F.scaled_dot_product_attention(
            queries, keys, values, dropout_p=dropout, is_causal=True
        )


class MHAPyTorchSDPAWithoutFlash(MHAVariant):
    """PyTorch's fused attention, given a mask: True where it may look."""

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As in `MHAVariant`; in this mask, True is what may be seen."""
        T = queries.shape[2]
        dropout = self.dropout.p if self.training else 0.0
        visible = ~self.mask[:T, :T]
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=visible, dropout_p=dropout
        )


class MHAPyTorchClass(nn.Module):
    """`nn.MultiheadAttention`; True in its mask hides, as in ours.

    Args: as in `MultiHeadAttention`, `d_in` equal to `d_out`; and
        need_weights: whether the layer also makes the weights, averaged over the heads.
            Without them it may use the fused function.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        context_length: int,
        dropout: float,
        num_heads: int,
        qkv_bias: bool = False,
        need_weights: bool = True,
    ):
        super().__init__()
        if d_in != d_out:
            raise ValueError(f"d_in={d_in}, d_out={d_out}: this layer has one width")
        self.need_weights, self.qkv_bias = need_weights, qkv_bias
        self.attention = nn.MultiheadAttention(
            d_out, num_heads, dropout=dropout, batch_first=True
        )
        # It has all four biases or none; where ours has one, three stay at 0.
        self.attention.in_proj_bias.requires_grad_(qkv_bias)
        hidden = torch.ones(context_length, context_length, dtype=torch.bool)
        self.register_buffer("mask", hidden.triu(diagonal=1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Context vectors, (B, T, D) to (B, T, d_out)."""
        check_input(x, self.attention.embed_dim)
        T, show = x.shape[1], self.need_weights
        check_length(T, self.mask.shape[0])
        hidden = self.mask[:T, :T]
        return self.attention(
            x, x, x, attn_mask=hidden, is_causal=True, need_weights=show
        )[0]

    def translate(self, state: State) -> State:
        """Three matrices below one another; biases of 0 if there are none."""
        if ("W_query.bias" in state) != self.qkv_bias:
            raise RuntimeError("qkv_bias of source and layer differ: make them equal")
        result = {}
        for kind in ("weight", "bias"):
            result[f"attention.out_proj.{kind}"] = state[f"out_proj.{kind}"]
            names = [f"W_{part}.{kind}" for part in ("query", "key", "value")]
            if names[0] in state:
                joined = torch.cat([state[name] for name in names])
            else:
                joined = state["out_proj.bias"].new_zeros(
                    3 * len(state["W_key.weight"])
                )
            result[f"attention.in_proj_{kind}"] = joined
        return result


@torch.compiler.disable  # or it would be traced anew instead of remembered
@lru_cache(maxsize=8)
def causal_blocks(T: int, device: torch.device) -> BlockMask:
    """Which blocks of 128 x 128 scores a causal mask leaves.

    Args:
        T: tokens.
        device: where the mask is needed.
    """

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query >= key

    return create_block_mask(visible, None, None, T, T, device=str(device))


class MHAPyTorchFlexAttention(MHAVariant):
    """FlexAttention: the mask is a function, empty blocks are skipped.

    It has no dropout. On a CPU it has no backward pass; use it under `torch.no_grad()`.
    """

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As in `MHAVariant`.

        Raises:
            NotImplementedError: on a CPU, when a gradient is asked for (PyTorch's).
        """
        if self.training and self.dropout.p > 0:
            raise ValueError("FlexAttention has no dropout: set it to 0.0")
        T, device = queries.shape[2], queries.device
        blocks = causal_blocks(T, device)  # pyright: ignore[reportCallIssue]
        context: Any = flex_attention(queries, keys, values, block_mask=blocks)
        return context


# --- attention in tiles ---------------------------------------------------------------

Running = tuple[Tensor, Tensor, Tensor]


def tiles(T: int, size: int) -> Iterator[tuple[slice, list[slice]]]:
    """The rows of tiles of a causal table: queries, and the key tiles seen.

    >>> for queries, keys in tiles(5, 2):
    ...     print(queries.start, queries.stop, [(k.start, k.stop) for k in keys])
    0 2 [(0, 2)]
    2 4 [(0, 2), (2, 4)]
    4 5 [(0, 2), (2, 4), (4, 5)]
    """
    check_sizes(size=size)
    cuts = [slice(start, min(start + size, T)) for start in range(0, T, size)]
    for row, queries in enumerate(cuts):
        yield queries, cuts[: row + 1]


def hide_future(scores: Tensor, queries: slice, keys: slice) -> Tensor:
    """Set the scores of a tile, (..., q, s), to -inf where the key is later."""
    if keys.stop <= queries.start:
        return scores  # all keys are earlier
    places = torch.arange(queries.start, queries.stop, device=scores.device)
    others = torch.arange(keys.start, keys.stop, device=scores.device)
    return scores.masked_fill(others > places[:, None], -torch.inf)


def add_tile(running: Running, scores: Tensor, values: Tensor) -> Running:
    """Take one more tile into a running softmax (the online softmax).

    Args:
        running: for each query the largest score so far (..., q), the sum of
            exp(score - largest) (..., q), and the sum of these powers times the values,
            (..., q, K). A start: lowest finite number, 0, 0.
        scores: of the new tile, (..., q, s).
        values: of its keys, (..., s, K).

    Returns:
        The same three, the new tile included.
    """
    largest, total, context = running
    new_largest = torch.maximum(largest, scores.amax(dim=-1))  # (..., q)
    shrink = torch.exp(largest - new_largest)  # 1 where the largest has stayed
    powers = torch.exp(scores - new_largest[..., None])  # (..., q, s)
    total = shrink * total + powers.sum(dim=-1)
    context = shrink[..., None] * context + powers @ values  # (..., q, K)
    return new_largest, total, context


def tiled_forward(
    queries: Tensor, keys: Tensor, values: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Causal attention, tile by tile.

    Args:
        queries: (..., T, K).
        keys: (..., T, K).
        values: (..., T, K).
        size: queries and keys in a tile, at least 1.

    Returns:
        The context, (..., T, K), and for each query the logarithm of the sum of
        exp(score), (..., T), from which the backward pass makes the weights again.
    """
    T, K = queries.shape[-2:]
    context = torch.empty_like(queries)
    log_total = queries.new_empty(queries.shape[:-1])
    for rows, columns in tiles(T, size):
        q = queries[..., rows, :] / K**0.5  # (..., q, K)
        lowest = torch.finfo(q.dtype).min
        running = (
            q.new_full(q.shape[:-1], lowest),
            q.new_zeros(q.shape[:-1]),
            torch.zeros_like(q),
        )
        for part in columns:
            scores = q @ keys[..., part, :].transpose(-2, -1)  # (..., q, s)
            scores = hide_future(scores, rows, part)
            running = add_tile(running, scores, values[..., part, :])
        largest, total, summed = running
        context[..., rows, :] = summed / total[..., None]
        log_total[..., rows] = largest + total.log()
    return context, log_total


def tiled_backward(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    context: Tensor,
    log_total: Tensor,
    size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `tiled_forward`; each tile's weights are computed again.

    Args:
        grad: gradient of the context, (..., T, K).
        queries, keys, values, size: as given to `tiled_forward`.
        context, log_total: as it returned them.

    Returns:
        Gradients of queries, keys and values, each (..., T, K).
    """
    T, K = queries.shape[-2:]
    grads = tuple(torch.zeros_like(part) for part in (queries, keys, values))
    grad_queries, grad_keys, grad_values = grads
    along = (grad * context).sum(dim=-1, keepdim=True)  # (..., T, 1)
    for rows, columns in tiles(T, size):
        q, g = queries[..., rows, :] / K**0.5, grad[..., rows, :]
        for part in columns:
            k, v = keys[..., part, :], values[..., part, :]
            scores = hide_future(q @ k.transpose(-2, -1), rows, part)
            weights = torch.exp(scores - log_total[..., rows, None])  # (..., q, s)
            grad_weights = g @ v.transpose(-2, -1)
            grad_scores = weights * (grad_weights - along[..., rows, :])
            grad_values[..., part, :] += weights.transpose(-2, -1) @ g
            grad_keys[..., part, :] += grad_scores.transpose(-2, -1) @ q
            grad_queries[..., rows, :] += grad_scores @ k / K**0.5
    return grad_queries, grad_keys, grad_values


class TiledAttention(torch.autograd.Function):
    """`tiled_forward` with `tiled_backward` as its gradient.

    What is kept between the two grows with T, not with T times T. A gradient of the
    gradient would miss a part, so PyTorch is told to refuse it.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, size: int
    ) -> Tensor:
        """As `tiled_forward`, the context alone."""
        context, log_total = tiled_forward(queries, keys, values, size)
        ctx.save_for_backward(queries, keys, values, context, log_total)
        ctx.size = size
        return context

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the three tensors; none for the size."""
        queries, keys, values, context, log_total = ctx.saved_tensors
        given = (queries, keys, values, context, log_total)
        return *tiled_backward(grad_outputs[0], *given, ctx.size), None


class MHATiled(MHAVariant):
    """Attention in tiles; without dropout.

    Args: as in `MultiHeadAttention`, and
        tile: queries and keys in a tile, at least 1.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        context_length: int,
        dropout: float,
        num_heads: int,
        qkv_bias: bool = False,
        tile: int = 128,
    ):
        super().__init__(d_in, d_out, context_length, dropout, num_heads, qkv_bias)
        check_sizes(tile=tile)
        self.tile = tile

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As in `MHAVariant`."""
        if self.training and self.dropout.p > 0:
            raise ValueError("there is no dropout in tiles: set it to 0.0")
        return TiledAttention.apply(queries, keys, values, self.tile)
