"""Attention, from one head to many (chapter 3).

Six classes, each a step up from the one before:

* `SelfAttention_v1`: queries, keys and values from bare weight matrices
  (section 3.4);
* `SelfAttention_v2`: the same with `nn.Linear` (3.4);
* `CausalAttention`: batches, a causal mask and dropout (3.5);
* `MultiHeadAttentionWrapper`: several such heads side by side (3.6);
* `PlainMultiHeadAttention`: all heads in one matrix product (3.6);
* `MultiHeadAttention`: the same with padding and a cache of past keys and values
  (3.7). This is the one that the GPT model uses.

Scaled dot-product and multi-head attention are equation (1) and section 3.2.2 of
Vaswani et al., "Attention Is All You Need", 2017 (arXiv:1706.03762); the split
of one wide projection into heads follows GPT-2 (Radford et al., 2019).

Left out on purpose: fused kernels. Every product is written down, because it is
the lesson; `torch.nn.functional.scaled_dot_product_attention` computes the same
numbers without keeping the matrix of weights. Left to later chapters: rotary
positions, fewer key heads than query heads, sliding windows.

Two kinds of mask meet here. `mask`, the causal one, is True where a key is
*hidden* from a query. `attention_mask`, the caller's, is True where a token is
*real*, which is how the tokenizers and models of other libraries mean it.

>>> import torch
>>> torch.manual_seed(0)  # doctest: +ELLIPSIS
<torch._C.Generator object at ...>
>>> attention = MultiHeadAttention(
...     d_in=8, d_out=8, context_length=6, dropout=0.0, num_heads=2)
>>> x = torch.randn(3, 5, 8)  # three sequences of five tokens
>>> attention(x).shape
torch.Size([3, 5, 8])

A token never sees what comes after it:

>>> changed = x.clone()
>>> changed[:, 4] = 0.0
>>> torch.equal(attention(x)[:, :4], attention(changed)[:, :4])
True

Shapes: B batch, T new tokens, S all tokens (cached and new), D model width
(`d_in`), H heads, K head width (`d_out / H`).
"""

from typing import Any

import torch
from torch import Tensor, nn

from argument_checks import (
    check_attention_mask,
    check_divisible,
    check_input,
    check_length,
    check_sizes,
    drop_saved_mask,
)

__all__ = [
    "CausalAttention",
    "MultiHeadAttention",
    "MultiHeadAttentionWrapper",
    "PlainMultiHeadAttention",
    "SelfAttention_v1",
    "SelfAttention_v2",
]


class SelfAttention_v1(nn.Module):
    """Self-attention of one head, with three bare weight matrices.

    Every token looks at every token, also at later ones. The weights start
    uniform in [0, 1), which is fine for seeing what happens and poor for training.

    Args:
        d_in: width of a token vector.
        d_out: width of a query, key and value, hence of the output.
    """

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.W_query = nn.Parameter(torch.rand(d_in, d_out))
        self.W_key = nn.Parameter(torch.rand(d_in, d_out))
        self.W_value = nn.Parameter(torch.rand(d_in, d_out))

    def forward(self, x: Tensor) -> Tensor:
        """Context vectors of all tokens.

        Args:
            x: token vectors, (T, d_in) or (B, T, d_in), floating point.

        Returns:
            (T, d_out) or (B, T, d_out): for each token a weighted mean of the
            values of all tokens.
        """
        queries = x @ self.W_query  # (..., T, d_out)
        keys = x @ self.W_key
        values = x @ self.W_value

        attention_scores = queries @ keys.transpose(-2, -1)  # (..., T, T)
        attention_scores = attention_scores / keys.shape[-1] ** 0.5
        attention_weights = torch.softmax(attention_scores, dim=-1)
        return attention_weights @ values  # (..., T, d_out)


class SelfAttention_v2(nn.Module):
    """`SelfAttention_v1` with `nn.Linear` in place of the bare matrices.

    A linear layer starts from weights that suit training and stores its matrix
    transposed, (d_out, d_in).

    Args:
        d_in: width of a token vector.
        d_out: width of a query, key and value, hence of the output.
        qkv_bias: whether the three projections also add a bias.
    """

    def __init__(self, d_in: int, d_out: int, qkv_bias: bool = False):
        super().__init__()
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Context vectors of all tokens: as in `SelfAttention_v1`.

        Args:
            x: token vectors, (T, d_in) or (B, T, d_in), floating point.

        Returns:
            (T, d_out) or (B, T, d_out).
        """
        queries = self.W_query(x)  # (..., T, d_out)
        keys = self.W_key(x)
        values = self.W_value(x)

        attention_scores = queries @ keys.transpose(-2, -1)  # (..., T, T)
        attention_scores = attention_scores / keys.shape[-1] ** 0.5
        attention_weights = torch.softmax(attention_scores, dim=-1)
        return attention_weights @ values  # (..., T, d_out)


class CausalAttention(nn.Module):
    """One head in which no token sees a later one, with dropout on the weights.

    Args:
        d_in: width of a token vector.
        d_out: width of a query, key and value, hence of the output.
        context_length: the most tokens that a sequence may have.
        dropout: share of attention weights set to 0 in training, 0 to 1; the
            others grow by 1 / (1 - dropout), so a row sums to 1 only on average.
        qkv_bias: whether the three projections also add a bias.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        context_length: int,
        dropout: float,
        qkv_bias: bool = False,
    ):
        super().__init__()
        check_sizes(d_in=d_in, d_out=d_out, context_length=context_length)
        self.d_in = d_in
        self.d_out = d_out
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.dropout = nn.Dropout(dropout)
        # Computed, not learned: it moves with the layer but is not saved.
        hidden = torch.ones(context_length, context_length, dtype=torch.bool)
        self.register_buffer("mask", hidden.triu(diagonal=1), persistent=False)
        self.register_load_state_dict_pre_hook(drop_saved_mask)

    def forward(self, x: Tensor) -> Tensor:
        """Context vectors, each made from its own token and earlier ones.

        Args:
            x: token vectors, (B, T, d_in), floating point, T <= context_length.

        Returns:
            (B, T, d_out).

        Raises:
            ValueError: x has another rank or width than the layer, or is longer
                than the context.
        """
        check_input(x, self.d_in)
        T = x.shape[1]
        check_length(T, self.mask.shape[0])
        queries = self.W_query(x)  # (B, T, d_out)
        keys = self.W_key(x)
        values = self.W_value(x)

        attention_scores = queries @ keys.transpose(1, 2)  # (B, T, T)
        attention_scores = attention_scores / keys.shape[-1] ** 0.5
        hidden = self.mask[:T, :T]
        attention_scores = attention_scores.masked_fill(hidden, -torch.inf)
        attention_weights = torch.softmax(attention_scores, dim=-1)
        return self.dropout(attention_weights) @ values  # (B, T, d_out)


class MultiHeadAttentionWrapper(nn.Module):
    """Several causal heads, one after the other, their outputs side by side.

    Here `d_out` is the width of **one** head; in `MultiHeadAttention` it is the
    width of all heads together.

    Args:
        d_in: width of a token vector.
        d_out: width of one head.
        context_length: the most tokens that a sequence may have.
        dropout: share of attention weights set to 0 in training, 0 to 1.
        num_heads: how many heads.
        qkv_bias: whether the projections of the heads also add a bias.
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
        check_sizes(num_heads=num_heads)
        self.heads = nn.ModuleList(
            CausalAttention(d_in, d_out, context_length, dropout, qkv_bias)
            for _ in range(num_heads)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Context vectors of all heads, concatenated.

        Args:
            x: token vectors, (B, T, d_in), floating point, T <= context_length.

        Returns:
            (B, T, num_heads * d_out), the first head in the first columns.

        Raises:
            ValueError: as `CausalAttention`.
        """
        return torch.cat([head(x) for head in self.heads], dim=-1)


class PlainMultiHeadAttention(nn.Module):
    """All heads at once: causal, with dropout.

    Each projection is one wide matrix whose columns belong to the heads in turn,
    so that one batched product does what `MultiHeadAttentionWrapper` does head by
    head; `out_proj` then mixes what the heads found.

    Args:
        d_in: width of a token vector.
        d_out: width of all heads together, divisible by `num_heads`.
        context_length: the most tokens that a sequence may have, padding and
            cached tokens included.
        dropout: share of attention weights set to 0 in training, 0 to 1.
        num_heads: how many heads.
        qkv_bias: whether the query, key and value projections add a bias
            (`out_proj` always does).
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
        check_sizes(d_in=d_in, d_out=d_out, context_length=context_length)
        check_sizes(num_heads=num_heads)
        check_divisible(d_out=d_out, num_heads=num_heads)
        self.d_in, self.d_out = d_in, d_out
        self.num_heads, self.head_dim = num_heads, d_out // num_heads
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)
        hidden = torch.ones(context_length, context_length, dtype=torch.bool)
        self.register_buffer("mask", hidden.triu(diagonal=1), persistent=False)
        self.register_load_state_dict_pre_hook(drop_saved_mask)

    def split_heads(self, x: Tensor) -> Tensor:
        """Give every head its own columns: (B, T, d_out) -> (B, H, T, K)."""
        B, T, _ = x.shape
        x = x.view(B, T, self.num_heads, self.head_dim)  # (B, T, H, K)
        return x.transpose(1, 2)  # (B, H, T, K)

    def forward(self, x: Tensor) -> Tensor:
        """Context vectors, each made from its own token and earlier ones.

        Args:
            x: token vectors, (B, T, d_in), floating point, T <= context_length.

        Returns:
            (B, T, d_out).

        Raises:
            ValueError: as `CausalAttention`.
        """
        check_input(x, self.d_in)
        B, T, _ = x.shape
        check_length(T, self.mask.shape[0])
        queries = self.split_heads(self.W_query(x))  # (B, H, T, K)
        keys = self.split_heads(self.W_key(x))
        values = self.split_heads(self.W_value(x))

        attention_scores = queries @ keys.transpose(2, 3)  # (B, H, T, T)
        attention_scores = attention_scores / self.head_dim**0.5
        hidden = self.mask[:T, :T]
        attention_scores = attention_scores.masked_fill(hidden, -torch.inf)
        attention_weights = torch.softmax(attention_scores, dim=-1)

        context = self.dropout(attention_weights) @ values  # (B, H, T, K)
        context = context.transpose(1, 2).reshape(B, T, self.d_out)
        return self.out_proj(context)  # (B, T, d_out)


class MultiHeadAttention(PlainMultiHeadAttention):
    """`PlainMultiHeadAttention` with padding and a cache of keys and values.

    Args: as in `PlainMultiHeadAttention`; cached tokens count as well.
    """

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        """Context vectors, each made from its own token and earlier ones.

        Args:
            x: vectors of the T new tokens, (B, T, d_in), floating point.
            attention_mask: (B, S), bool or 0/1 integers, True for a real token,
                False for padding on either side; it covers the cached tokens as
                well as the new ones. Without it all tokens are real.
            cache: this layer's keys and values of the tokens before x: an object
                with `length` (how many tokens it holds) and `append(keys, values)`
                (adds those of x, returns all, both (B, H, S, K)), such as
                `KVCache(num_layers).layer(0)` of chapter 4. It changes.

        Returns:
            (B, T, d_out). A query that may see no real token, as at padding on the
            left, gets the bias of `out_proj`: finite, and the same for all.

        Raises:
            ValueError: x has another rank or width than the layer; cached and new
                tokens exceed the context; the attention mask does not cover them.
                The cache is unchanged.
        """
        check_input(x, self.d_in)
        past = 0 if cache is None else cache.length
        B, T, _ = x.shape
        S = past + T
        check_length(S, self.mask.shape[0], past)
        hidden = self.mask[past:S, :S]  # (T, S)
        if attention_mask is not None:
            check_attention_mask(attention_mask, B, S, past)
            padding = ~attention_mask.bool()
            hidden = hidden | padding[:, None, None, :]  # (B, 1, T, S)

        queries = self.split_heads(self.W_query(x))  # (B, H, T, K)
        keys = self.split_heads(self.W_key(x))
        values = self.split_heads(self.W_value(x))
        if cache is not None:
            keys, values = cache.append(keys, values)  # (B, H, S, K)

        attention_scores = queries @ keys.transpose(2, 3)  # (B, H, T, S)
        attention_scores = attention_scores / self.head_dim**0.5
        # The lowest finite number, not minus infinity: a softmax over nothing
        # but minus infinity is NaN.
        lowest = torch.finfo(attention_scores.dtype).min
        attention_scores = attention_scores.masked_fill(hidden, lowest)
        attention_weights = torch.softmax(attention_scores, dim=-1)
        if attention_mask is not None:  # only padding can hide a whole row
            attention_weights = attention_weights.masked_fill(hidden, 0.0)

        context = self.dropout(attention_weights) @ values  # (B, H, T, K)
        context = context.transpose(1, 2).reshape(B, T, self.d_out)  # (B, T, d_out)
        return self.out_proj(context)  # (B, T, d_out)
