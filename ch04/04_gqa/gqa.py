"""Attention with fewer keys than queries (chapter 4, bonus: grouped-query attention).

`GroupedQueryAttention` is `MultiHeadAttention` of chapter 3 with one change: several
query heads share the keys and values of one group. What a cache must keep, and what
each new token must read of it, shrinks from H heads to G groups. With G = H it is
multi-head attention, with G = 1 the multi-query attention of Shazeer, 2019
(arXiv:1911.02150).

Source: Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models from
Multi-Head Checkpoints", 2023 (arXiv:2305.13245), section 2.2 and figure 2. Its section
2.1 makes such a layer from one with more keys, which is `pool_groups` here. Left out:
dropout, which the models that use it do without, and a bias after the heads.

>>> import torch
>>> _ = torch.manual_seed(0)
>>> attention = GroupedQueryAttention(d_in=12, num_heads=6, num_kv_groups=2)
>>> x = torch.randn(3, 5, 12)  # three sequences of five tokens
>>> attention(x).shape
torch.Size([3, 5, 12])

Six heads ask, but only two answer, so a cache keeps a third of the numbers:

>>> attention.split_heads(attention.W_query(x)).shape  # (B, H, T, K)
torch.Size([3, 6, 5, 2])
>>> attention.split_heads(attention.W_key(x)).shape  # (B, G, T, K)
torch.Size([3, 2, 5, 2])

Shapes: B batch, T new tokens, S all tokens (cached and new), D model width (`d_in`),
H query heads, G key/value heads, R = H / G query heads in a group, K head width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from argument_checks import (
    check_attention_mask,
    check_divisible,
    check_input,
    check_sizes,
)

__all__ = ["GroupedQueryAttention", "pool_groups"]


class GroupedQueryAttention(nn.Module):
    """Causal attention in which H query heads share G heads of keys and values.

    Query heads 0 to R - 1 belong to group 0, the next R to group 1, and so on. The keys
    are never repeated: the R queries of a group stand one below the other and meet
    their keys in one product. In float32 and float64 none is copied; in bfloat16 and
    float16 PyTorch's product on the CPU copies, once, a cache that has room behind its
    last token. No mask is stored, so no context is too long.

    All sizes but the first are given by name: other implementations take them in other
    orders, and a wrong order makes a layer that works, with other heads.

    Args:
        d_in: width of a token vector, D, and of the output.
        num_heads: query heads, H.
        num_kv_groups: heads of keys and values, G, a divisor of H.
        head_dim: width of a head, K; None for d_in / num_heads.
        qkv_bias: whether the query, key and value projections add a bias (`out_proj`
            never does).

    Raises:
        ValueError: a size is no positive integer, or does not divide another.
    """

    def __init__(
        self,
        d_in: int,
        *,
        num_heads: int,
        num_kv_groups: int,
        head_dim: int | None = None,
        qkv_bias: bool = False,
    ):
        super().__init__()
        check_sizes(d_in=d_in, num_heads=num_heads, num_kv_groups=num_kv_groups)
        check_divisible(num_heads=num_heads, num_kv_groups=num_kv_groups)
        if head_dim is None:
            check_divisible(d_in=d_in, num_heads=num_heads)
            head_dim = d_in // num_heads
        check_sizes(head_dim=head_dim)
        self.d_in = d_in
        self.num_heads = num_heads
        self.num_kv_groups = num_kv_groups
        self.head_dim = head_dim
        self.W_query = nn.Linear(d_in, num_heads * head_dim, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, num_kv_groups * head_dim, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, num_kv_groups * head_dim, bias=qkv_bias)
        self.out_proj = nn.Linear(num_heads * head_dim, d_in, bias=False)

    def split_heads(self, x: Tensor) -> Tensor:
        """Give every head its own columns: (B, T, heads * K) -> (B, heads, T, K)."""
        B, T, _ = x.shape
        return x.view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, heads, T, K)

    def project(
        self, x: Tensor, rotate: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, (B, H, T, K), keys and values, (B, G, T, K), of new tokens.

        The first two are turned to their positions, if `rotate` is given.
        """
        queries = self.split_heads(self.W_query(x))
        keys = self.split_heads(self.W_key(x))
        values = self.split_heads(self.W_value(x))
        if rotate is not None:
            queries, keys = rotate(queries), rotate(keys)
        return queries, keys, values

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        cache: Any = None,
        rotate: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Context vectors, each made from its own token and earlier ones.

        Args:
            x: vectors of the T new tokens, (B, T, D), floating point.
            attention_mask: (B, S), bool or 0/1 integers, True for a real token, False
                for padding on either side; it covers the cached tokens as well as the
                new ones. Without it all tokens are real.
            cache: this layer's keys and values of the tokens before x, such as
                `KVCache(num_layers).layer(0)`. It holds G heads. It changes.
            rotate: a function that gives heads their positions, (B, heads, T, K) to the
                same shape. It is applied to the queries and to the new keys, before
                these go into the cache. None leaves them as they are.

        Returns:
            (B, T, D). A query that may see no real token, as at padding on the left,
            gets zeros.

        Raises:
            ValueError: x has another rank or width than the layer; the attention mask
                does not cover the tokens. The cache is unchanged.
        """
        check_input(x, self.d_in)
        past = 0 if cache is None else cache.length
        B, T, _ = x.shape
        if attention_mask is not None:
            check_attention_mask(attention_mask, B, past + T, past)

        queries, keys, values = self.project(x, rotate)
        if cache is not None:
            keys, values = cache.append(keys, values)  # (B, G, S, K)

        hidden = self.hidden_keys(T, keys.shape[2], attention_mask, x.device)
        context = self.attend(queries, keys, values, hidden)  # (B, H, T, K)
        return self.out_proj(context.transpose(1, 2).flatten(2))  # (B, T, D)

    @staticmethod
    def hidden_keys(
        T: int, S: int, attention_mask: Tensor | None, device: torch.device
    ) -> Tensor | None:
        """Which keys each of the last T queries may not see; None if it sees all.

        Returns:
            bool, (T, S), or with an attention mask (B, 1, 1, T, S): True where the key
            comes after the query or is padding. It is worked out from positions.
        """
        hidden = None
        if T > 1:  # a single new token comes after all others
            positions = torch.arange(S, device=device)
            hidden = positions > positions[S - T :, None]  # (T, S)
        if attention_mask is not None:
            padding = ~attention_mask.bool()[:, None, None, None, :]  # (B, 1, 1, 1, S)
            hidden = padding if hidden is None else hidden | padding
        return hidden

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None
    ) -> Tensor:
        """Mix the values by how well queries and keys of a group fit.

        Args:
            queries: (B, H, T, K).
            keys: (B, G, S, K).
            values: (B, G, S, K).
            hidden: as `hidden_keys` returns it.

        Returns:
            (B, H, T, K).
        """
        B, H, T, K = queries.shape
        G, S = keys.shape[1:3]
        R = H // G
        stacked = queries.reshape(B, G, R * T, K) / K**0.5  # (B, G, R * T, K)
        attention_scores = stacked @ keys.transpose(2, 3)  # (B, G, R * T, S)
        attention_scores = attention_scores.view(B, G, R, T, S)  # (B, G, R, T, S)
        if hidden is not None:
            lowest = torch.finfo(attention_scores.dtype).min
            attention_scores = attention_scores.masked_fill(hidden, lowest)
        attention_weights = torch.softmax(attention_scores, dim=-1)
        if hidden is not None and hidden.ndim > 2:  # only padding hides a whole row
            attention_weights = attention_weights.masked_fill(hidden, 0.0)
        context = attention_weights.view(B, G, R * T, S) @ values  # (B, G, R * T, K)
        return context.view(B, H, T, K)  # (B, H, T, K)


@torch.no_grad()
def pool_groups(
    attention: GroupedQueryAttention, num_kv_groups: int
) -> GroupedQueryAttention:
    """Make a layer with fewer groups: the keys and values of neighbours, averaged.

    The new layer has the same queries and output. What it computes is not the same, so
    the model is trained on for a while ("uptraining").

    Args:
        attention: the layer, with G groups. It stays as it is.
        num_kv_groups: groups of the new one, a divisor of G.

    Returns:
        A new layer, of the same dtype and on the same device.

    Raises:
        ValueError: the groups cannot be merged evenly.

    Source: Ainslie et al., 2023, section 2.1 and figure 1.
    """
    check_sizes(num_kv_groups=num_kv_groups)
    check_divisible(groups_of_the_layer=attention.num_kv_groups, groups=num_kv_groups)
    K = attention.head_dim
    pooled = GroupedQueryAttention(
        attention.d_in,
        num_heads=attention.num_heads,
        num_kv_groups=num_kv_groups,
        head_dim=K,
        qkv_bias=attention.W_key.bias is not None,
    )
    weights = attention.state_dict()
    for name in weights:
        if name.startswith(("W_key", "W_value")):
            merging = weights[name].unflatten(0, (num_kv_groups, -1, K))
            weights[name] = merging.mean(dim=1).flatten(0, 1)  # (G * K, D) or (G * K,)
    pooled.to(attention.out_proj.weight)  # dtype and device
    pooled.load_state_dict(weights)
    return pooled
