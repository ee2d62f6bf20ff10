"""Attention to the keys that an indexer picks (chapter 4, bonus: sparse attention).

Of a long text a query needs few tokens. Here a small scorer looks at all of them, and
attention only at the k best:

* `LightningIndexer` gives each earlier token a score, by a few narrow heads with one
  small key of each token;
* `pick_keys` takes the k best, `SparseAttention` attends to them;
* `indexer_loss` is what the indexer learns from: how its scores, as a distribution,
  differ from `summed_weights`, what attention gives the tokens in all its heads.

`recall` measures the picks, `sparse_cache_bytes` and `numbers_read` the cost.

Source: DeepSeek-AI, "DeepSeek-V3.2", 2025 (arXiv:2512.02556), section 2.1. There the
attention behind the indexer is latent attention; here it is grouped-query attention, so
that chapter 5's model can take it. Left out: numbers of 8 bits, and the rotation by a
Hadamard matrix that goes with them and changes no score.

>>> import torch
>>> _ = torch.manual_seed(0)
>>> attention = SparseAttention(
...     12, num_heads=3, num_kv_groups=3, head_dim=4, top_k=5, index_heads=8)
>>> x = torch.randn(2, 9, 12)  # two texts of nine tokens
>>> attention(x).shape
torch.Size([2, 9, 12])

With as many picks as tokens it is the attention it is made of:

>>> from gqa import GroupedQueryAttention
>>> dense = GroupedQueryAttention(12, num_heads=3, num_kv_groups=3, head_dim=4)
>>> _ = dense.load_state_dict(attention.state_dict(), strict=False)
>>> attention.top_k = 9
>>> torch.allclose(attention(x), dense(x), atol=1e-6)
True

Shapes: B batch, T new tokens, S all tokens (cached and new), D model width, H query
heads, G key/value heads, K head width, k picked tokens, N heads of the indexer, I their
width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argument_checks import check_attention_mask, check_input, check_sizes
from gqa import GroupedQueryAttention

__all__ = [
    "IndexedRows",
    "LightningIndexer",
    "LossBeside",
    "SparseAttention",
    "hide_others",
    "indexer_loss",
    "numbers_read",
    "pick_keys",
    "recall",
    "sparse_cache_bytes",
    "summed_weights",
]

_Rotation = Callable[[Tensor], Tensor]


# --- Scores and picks ----------------------------------------------------------------


class LightningIndexer(nn.Module):
    """A score for each earlier token, by narrow heads that share one key.

    The score of token s for the query at t is the sum over the heads of
    w(t) * ReLU(q(t) . k(s)): how well they fit, never less than nothing, times how much
    the query asks this head.

    Args:
        d_in: width of a token vector, D.
        num_heads: N. With few heads many tokens get a score of exactly 0, and which of
            them is picked depends on the length of the text: take at least 8.
        head_dim: I.
        rope_dim: how many numbers of a head are turned to their position, the first
            ones, at most I; None for all.
        query_dim: width of what the queries are made of, if that is not x.

    Raises:
        ValueError: a size below 1, or more numbers to turn than a head has.

    Source: DeepSeek-AI, 2025, section 2.1, equation 1, with the factors and the norm of
    the released code.
    """

    def __init__(
        self,
        d_in: int,
        num_heads: int,
        head_dim: int,
        rope_dim: int | None = None,
        query_dim: int | None = None,
    ):
        super().__init__()
        check_sizes(num_heads=num_heads, head_dim=head_dim)
        self.num_heads, self.head_dim = num_heads, head_dim
        self.rope_dim = head_dim if rope_dim is None else rope_dim
        if self.rope_dim > head_dim:
            raise ValueError(
                f"The indexer turns {self.rope_dim} numbers of a head, but its heads "
                f"have {head_dim}: make them at least as wide."
            )
        self.W_query = nn.Linear(query_dim or d_in, num_heads * head_dim, bias=False)
        self.W_key = nn.Linear(d_in, head_dim, bias=False)
        self.key_norm = nn.LayerNorm(head_dim, eps=1e-6)
        self.W_head = nn.Linear(d_in, num_heads, bias=False)

    def turn(self, heads: Tensor, rotate: _Rotation | None) -> Tensor:
        """Turn the first numbers of each head, (B, heads, T, I), to their position."""
        if rotate is None:
            return heads
        first = heads[..., : self.rope_dim]
        rest = heads[..., self.rope_dim :]
        return torch.cat((rotate(first), rest), dim=-1)

    def make_keys(self, x: Tensor, rotate: _Rotation | None = None) -> Tensor:
        """The small keys of new tokens, (B, 1, T, I); these are cached."""
        return self.turn(self.key_norm(self.W_key(x))[:, None], rotate)

    def forward(
        self,
        x: Tensor,
        keys: Tensor,
        rotate: _Rotation | None = None,
        query_input: Tensor | None = None,
    ) -> Tensor:
        """Scores of all tokens for the new ones.

        Args:
            x: vectors of the new tokens, (B, T, D).
            keys: small keys of all tokens, (B, 1, S, I).
            rotate: what turns heads of `rope_dim` numbers to their positions, or None.
            query_input: what the queries are made of, (B, T, Q), such as the latent of
                the queries in latent attention; x if None.

        Returns:
            (B, T, S); later tokens and padding have scores, too.
        """
        N, I = self.num_heads, self.head_dim  # noqa: E741
        queries = self.W_query(x if query_input is None else query_input)
        queries = queries.unflatten(2, (N, I)).transpose(1, 2)  # (B, N, T, I)
        queries = self.turn(queries, rotate).flatten(1, 2)  # (B, N * T, I)
        fits = F.relu(queries @ keys[:, 0].transpose(1, 2))  # (B, N * T, S)
        fits = fits.unflatten(1, (N, -1))  # (B, N, T, S)
        weights = self.W_head(x) * (N * I) ** -0.5  # (B, T, N)
        return torch.einsum("btn,bnts->bts", weights, fits)  # (B, T, S)


def pick_keys(scores: Tensor, hidden: Tensor | None, k: int) -> Tensor:
    """Places of the k tokens with the highest scores.

    Args:
        scores: (B, T, S).
        hidden: bool, (T, S) or (B, 1 or T, S), True for a token that may not be seen;
            None if all may. Hidden ones come last, but come where too few are left.
        k: how many, at most S.

    Returns:
        (B, T, k), whole numbers from 0 to S - 1.
    """
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores.topk(k, dim=-1, sorted=False).indices


def hide_others(picked: Tensor, hidden: Tensor | None, S: int) -> Tensor:
    """Which of S tokens are not picked, or hidden in any case: bool, (B, T, S)."""
    B, T, _ = picked.shape
    others = torch.ones(B, T, S, dtype=torch.bool, device=picked.device)
    others = others.scatter(-1, picked, False)
    return others if hidden is None else others | hidden


# --- What the indexer learns from ----------------------------------------------------


@torch.no_grad()
def summed_weights(queries: Tensor, keys: Tensor, hidden: Tensor | None) -> Tensor:
    """What all heads of attention together give each token, summing to 1.

    It is a target: no gradient goes through it.

    Args:
        queries: (B, H, T, K).
        keys: (B, G, S, K).
        hidden: bool, (T, S) or (B, 1 or T, S), or None.

    Returns:
        (B, T, S); a row is 0 where a query may see nothing.
    """
    (B, H, T, K), G = queries.shape, keys.shape[1]
    stacked = queries.reshape(B, G, -1, K) / K**0.5
    scores = (stacked @ keys.transpose(2, 3)).view(B, H, T, -1)  # (B, H, T, S)
    if hidden is None:
        return torch.softmax(scores, dim=-1).mean(dim=1)
    hidden = hidden if hidden.ndim == 2 else hidden[:, None]
    lowest = torch.finfo(scores.dtype).min
    weights = torch.softmax(scores.masked_fill(hidden, lowest), dim=-1)
    return weights.masked_fill(hidden, 0.0).mean(dim=1)


def indexer_loss(scores: Tensor, weights: Tensor, hidden: Tensor | None) -> Tensor:
    """How far the scores, as a distribution, are from the weights of attention.

    The Kullback-Leibler divergence of softmax(scores) from the weights, in nats, the
    mean over all queries that see anything.

    Args:
        scores: of the indexer, (B, T, S).
        weights: as `summed_weights` gives them, over the same tokens, (B, T, S).
        hidden: what neither of them may see, (T, S) or (B, 1 or T, S); None if all may
            be seen.

    Returns:
        (), 0 if they agree.
    """
    if hidden is None:
        log_found = torch.log_softmax(scores, dim=-1)
    else:
        lowest = torch.finfo(scores.dtype).min
        log_found = torch.log_softmax(scores.masked_fill(hidden, lowest), dim=-1)
        log_found = log_found.masked_fill(hidden, 0.0)  # their weight is 0
    each = torch.xlogy(weights, weights) - weights * log_found  # (B, T, S)
    seeing = (weights.sum(dim=-1) > 0).sum().clamp(min=1)
    return each.sum() / seeing


class LossBeside(torch.autograd.Function):
    """Hands a tensor on unchanged, and lets a loss learn on the way back.

    Whoever calls backward on what becomes of the tensor adds the gradient of the loss,
    whatever the gradient of the tensor is. A plain training loop need not know of it.
    One that multiplies its own loss, to add up several batches or for float16, must
    multiply this one, too; and gradients clipped by a norm over all weights couple the
    two losses.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, loss: Tensor) -> Tensor:
        ctx.save_for_backward(loss)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (loss,) = ctx.saved_tensors
        return gradients[0], torch.ones_like(loss)


# --- The layer -----------------------------------------------------------------------


class IndexedRows(GroupedQueryAttention):
    """What sparse attention is made of: an indexer, and one row for each token.

    Args:
        d_in: width of a token vector, D, and of the output.
        top_k: k. It may be changed later.
        index_heads: N, at least 8.
        index_dim: I, at least `head_dim`, of which the first `head_dim` numbers are
            turned; `head_dim` if None.
        **sizes: as for `GroupedQueryAttention`.
    """

    def __init__(
        self,
        d_in: int,
        *,
        top_k: int,
        index_heads: int = 8,
        index_dim: int | None = None,
        **sizes: Any,
    ):
        super().__init__(d_in, **sizes)
        check_sizes(top_k=top_k)
        self.top_k = top_k
        K = self.head_dim
        width = K if index_dim is None else index_dim
        self.indexer = LightningIndexer(d_in, index_heads, width, rope_dim=K)

    def join(self, keys: Tensor, values: Tensor) -> Tensor:
        """Keys and values, (B, G, T, K) each, in one row a token: (B, 1, T, 2 G K)."""
        both = torch.cat((keys, values), dim=1)  # (B, 2 G, T, K)
        return both.transpose(1, 2).flatten(2)[:, None]

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Undo `join`."""
        G, K = self.num_kv_groups, self.head_dim
        both = rows[:, 0].unflatten(2, (2, G, K)).transpose(1, 3)  # (B, G, 2, T, K)
        return both[:, :, 0], both[:, :, 1]

    def choose(
        self, scores: Tensor, rows: Tensor, hidden: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Rows to read, and which of them are hidden from whom.

        Args:
            scores: of the indexer, (B, T, S).
            rows: (B, 1, S, 2 G K).
            hidden: (T, S) or (B, 1 or T, S), or None.

        Returns:
            For a single new token the k picked rows alone; for several, which pick
            different ones, all rows, and the others of each hidden from it.
        """
        S = rows.shape[2]
        if self.top_k >= S:
            return rows, hidden
        picked = pick_keys(scores, hidden, self.top_k)  # (B, T, k)
        if picked.shape[1] > 1:
            return rows, hide_others(picked, hidden, S)
        picked = picked[:, 0]
        texts = torch.arange(len(rows), device=rows.device)
        if hidden is not None:
            hidden = hidden[:, 0].gather(1, picked)[:, None]  # (B, 1, k)
        return rows[texts[:, None], 0, picked][:, None], hidden  # (B, 1, k, 2 G K)


class SparseAttention(IndexedRows):
    """Grouped-query attention to the `top_k` tokens that an indexer picks.

    It is made with the arguments of `IndexedRows`. Where gradients are recorded, the
    indexer learns beside whatever loss the model has: from `indexer_loss` over the
    tokens that attention has seen, the picked ones, or all of them if top_k is that
    large. It takes nothing from the model's loss and gives nothing to the rest of the
    model. That is so in evaluation mode, too, and takes (B, T, S) numbers; under
    `torch.no_grad()` there is no such loss.

    Attributes:
        loss_scale: what the indexer's gradients are multiplied by. A loop that divides
            its loss among n batches sets 1 / n; one that scales it does the same here.
        last_loss: the indexer's loss in the last pass with gradients, detached.
    """

    last_loss, loss_scale = None, 1.0

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        cache: Any = None,
        rotate: _Rotation | None = None,
    ) -> Tensor:
        """Context vectors, each made from at most `top_k` tokens.

        Args:
            x: vectors of the T new tokens, (B, T, D), floating point.
            attention_mask: as for `GroupedQueryAttention`.
            cache: this layer's part of a cache. In the place of keys lie the rows, so
                that a picked token is one piece of memory; in the place of values the
                indexer's keys.
            rotate: a function that gives heads, (B, heads, T, K), their positions.

        Returns:
            (B, T, D).

        Raises:
            ValueError: as `GroupedQueryAttention`. The cache is unchanged.
        """
        check_input(x, self.d_in)
        past = 0 if cache is None else cache.length
        B, T, _ = x.shape
        if attention_mask is not None:
            check_attention_mask(attention_mask, B, past + T, past)

        queries, keys, values = self.project(x, rotate)
        rows, own = self.join(keys, values), x.detach()  # nothing comes back from own
        index_keys = self.indexer.make_keys(own, rotate)  # (B, 1, T, I)
        if cache is not None:
            rows, index_keys = cache.append(rows, index_keys)
        hidden = self.hidden_keys(T, rows.shape[2], attention_mask, x.device)
        if hidden is not None and hidden.ndim > 2:
            hidden = hidden[:, 0, 0]  # (B, 1 or T, S)

        scores, learns = None, torch.is_grad_enabled() and cache is None
        if learns or rows.shape[2] > self.top_k:
            scores = self.indexer(own, index_keys, rotate)  # (B, T, S)
            rows, hidden = self.choose(scores, rows, hidden)
        by_text = hidden is not None and hidden.ndim > 2
        unseen = hidden[:, None, None] if by_text else hidden
        context = self.attend(queries, *self.split(rows), unseen)  # (B, H, T, K)
        if learns:
            target = summed_weights(queries, keys, hidden)  # (B, T, S)
            loss = indexer_loss(scores, target, hidden)
            self.last_loss = loss.detach()
            context = LossBeside.apply(context, self.loss_scale * loss)
        return self.out_proj(context.transpose(1, 2).flatten(2))  # (B, T, D)


# --- What it is worth, and what it costs ---------------------------------------------


def recall(picked: Tensor, weights: Tensor) -> Tensor:
    """Which part of the k heaviest tokens are among the k picked ones.

    Args:
        picked: (..., k), places as from `pick_keys`.
        weights: what attention gives each token, (..., S).

    Returns:
        (...), from 0 to 1.
    """
    k = picked.shape[-1]
    true = weights.topk(k, dim=-1).indices  # (..., k)
    found = torch.zeros_like(weights).scatter(-1, picked, 1.0)
    return found.gather(-1, true).mean(dim=-1)


def sparse_cache_bytes(
    num_layers: int,
    batch_size: int,
    num_kv_groups: int,
    tokens: int,
    head_dim: int,
    index_dim: int,
    dtype: torch.dtype = torch.float32,
) -> int:
    """Bytes of keys, values and indexer keys: L * B * S * (2 * G * K + I) numbers.

    More than without an indexer: nothing is forgotten, only less is read.

    Args:
        num_layers: L.
        batch_size: B.
        num_kv_groups: G.
        tokens: S, for which there is room.
        head_dim: K.
        index_dim: I.
        dtype: what a number is kept as.
    """
    row = 2 * num_kv_groups * head_dim + index_dim
    return num_layers * batch_size * tokens * row * dtype.itemsize


def numbers_read(tokens: int, top_k: int, row: int, index_dim: int) -> int:
    """How many cached numbers one new token makes a layer read.

    Args:
        tokens: S.
        top_k: k.
        row: numbers that attention needs of a token: 2 G K, or C + P of a latent.
        index_dim: I.
    """
    if tokens <= top_k:  # all are read, and nobody needs a score
        return tokens * row
    return tokens * index_dim + top_k * row
