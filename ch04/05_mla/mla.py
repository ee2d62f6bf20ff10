"""Attention whose cache holds one short vector of each token (chapter 4, bonus: MLA).

Multi-head attention caches H keys and H values of each token. All of them are made from
one token vector, so multi-head latent attention makes them from something shorter: a
*latent* of C numbers. It is cached in their place, beside one key of P numbers, shared
by all heads, that carries the position. What comes out of the cache can be read in two
ways, which give the same numbers:

* `expanded_context` makes the keys and values of all heads from the latents;
* `absorbed_context` moves the query into the latent space instead, and the result out
  of it again, so that no key and no value of a head is ever made.

`LatentProjections` holds the weights, and `MultiHeadLatentAttention` attends with them,
by the way that multiplies less: `absorbing_is_cheaper`. `latent_cache_bytes` counts the
memory, `deepseek_weights` translates published weights.

Source: DeepSeek-AI, "DeepSeek-V2", 2024 (arXiv:2405.04434), section 2.1 and appendix C;
the same layer stands in DeepSeek-V3, 2024 (arXiv:2412.19437, section 2.1.1). Left out:
dropout; biases; values of another width than the keys, as GLM-5 has; and YaRN's factors
for contexts longer than those of training.

>>> import torch
>>> from kv_cache import KVCache
>>> _ = torch.manual_seed(0)
>>> attention = MultiHeadLatentAttention(
...     d_in=12, num_heads=6, latent_dim=5, head_dim=4, rope_dim=2)
>>> x = torch.randn(3, 7, 12)  # three sequences of seven tokens
>>> attention(x).shape
torch.Size([3, 7, 12])

A cache keeps 5 + 2 numbers of each token, where six heads of keys and values, 4 wide,
would take 48:

>>> cache = KVCache(num_layers=1, room=7)
>>> with torch.no_grad():
...     out = attention(x, cache=cache.layer(0))
>>> cache.nbytes == latent_cache_bytes(
...     num_layers=1, batch_size=3, tokens=7, latent_dim=5, rope_dim=2)
True

Shapes: B batch, T new tokens, S all tokens (cached and new), D model width (`d_in`), H
heads, K head width without the rotary part, C latent width, P width of the rotary part,
Q width of the queries' own latent.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argument_checks import check_attention_mask, check_input, check_sizes
from gqa import GroupedQueryAttention
from llama import RMSNorm, pairs_to_halves

__all__ = [
    "LatentProjections",
    "MultiHeadLatentAttention",
    "absorbed_context",
    "absorbing_is_cheaper",
    "deepseek_weights",
    "expanded_context",
    "latent_cache_bytes",
    "masked_softmax",
    "shared_attention",
]

_Rotation = Callable[[Tensor], Tensor]


def latent_cache_bytes(
    num_layers: int,
    batch_size: int,
    tokens: int,
    latent_dim: int,
    rope_dim: int,
    dtype: torch.dtype = torch.float32,
) -> int:
    """Bytes of the cached latents and rotary keys: L * B * S * (C + P) numbers.

    No factor 2 and no number of heads: one latent serves keys and values of all heads.

    Args:
        num_layers: L.
        batch_size: B, texts at once.
        tokens: S, for which there is room.
        latent_dim: C.
        rope_dim: P.
        dtype: what a number is kept as.
    """
    numbers = num_layers * batch_size * tokens * (latent_dim + rope_dim)
    return numbers * dtype.itemsize


# --- Two ways to read latents --------------------------------------------------------


def masked_softmax(scores: Tensor, hidden: Tensor | None) -> Tensor:
    """Attention weights: softmax over the keys that are not hidden.

    Args:
        scores: (B, H, T, S).
        hidden: bool, (T, S) or (B, 1, T, S), True where a query may not see a key; None
            if it may see all.

    Returns:
        (B, H, T, S); each row sums to 1, or is 0 where padding hides every key.
    """
    if hidden is None:
        return torch.softmax(scores, dim=-1)
    lowest = torch.finfo(scores.dtype).min  # minus infinity would make NaN of no key
    weights = torch.softmax(scores.masked_fill(hidden, lowest), dim=-1)
    return weights.masked_fill(hidden, 0.0)


def shared_attention(queries: Tensor, entries: Tensor, hidden: Tensor | None) -> Tensor:
    """Attention of all heads to one head, whose values are its keys.

    The queries of all heads stand one below the other, so that nothing is copied for
    each head. Where nothing is hidden, PyTorch's fused kernel reads each entry once;
    two products, for the scores and for the mixture, would read it twice.

    Args:
        queries: (B, H, T, N), scaled already.
        entries: (B, S, N).
        hidden: as in `masked_softmax`.

    Returns:
        Mixtures of entries, (B, H, T, N).
    """
    H, T = queries.shape[1:3]
    stacked = queries.flatten(1, 2)  # (B, H * T, N)
    if hidden is None:
        keys = entries[:, None]  # (B, 1, S, N)
        mixtures = F.scaled_dot_product_attention(stacked[:, None], keys, keys, scale=1)
        return mixtures[:, 0].unflatten(1, (H, T))
    scores = (stacked @ entries.transpose(1, 2)).unflatten(1, (H, T))  # (B, H, T, S)
    weights = masked_softmax(scores, hidden).flatten(1, 2)  # (B, H * T, S)
    return (weights @ entries).unflatten(1, (H, T))  # (B, H, T, N)


def expanded_context(
    queries: Tensor,
    entries: Tensor,
    key_maps: Tensor,
    value_maps: Tensor,
    hidden: Tensor | None,
) -> Tensor:
    """Make the keys and values of each head from the latents, and attend to them.

    Args:
        queries: content and rotary part, divided by sqrt(K + P), (B, H, T, K + P).
        entries: latent and rotary key of each token, (B, S, C + P).
        key_maps: what takes a latent to a head's key, (H, K, C).
        value_maps: the same for its value, (H, K, C).
        hidden: as in `masked_softmax`.

    Returns:
        (B, H, T, K).
    """
    H, _, C = key_maps.shape
    latents, rope_keys = entries[..., :C], entries[:, None, :, C:]
    keys = torch.einsum("bsc,hkc->bhsk", latents, key_maps)  # (B, H, S, K)
    keys = torch.cat((keys, rope_keys.expand(-1, H, -1, -1)), dim=-1)
    values = torch.einsum("bsc,hkc->bhsk", latents, value_maps)  # (B, H, S, K)
    scores = queries @ keys.transpose(2, 3)  # (B, H, T, S)
    return masked_softmax(scores, hidden) @ values  # (B, H, T, K)


def absorbed_context(
    queries: Tensor,
    entries: Tensor,
    key_maps: Tensor,
    value_maps: Tensor,
    hidden: Tensor | None,
) -> Tensor:
    """The same as `expanded_context`, without making a key or a value of any head.

    A score is q . (U c) = (U^T q) . c, so the map of the keys can be applied to the
    query; and a weighted sum of values V c is V times the weighted sum of the latents.
    """
    _, K, C = key_maps.shape
    asked = torch.einsum("bhtk,hkc->bhtc", queries[..., :K], key_maps)
    asked = torch.cat((asked, queries[..., K:]), dim=-1)  # (B, H, T, C + P)
    found = shared_attention(asked, entries, hidden)[..., :C]  # (B, H, T, C)
    return torch.einsum("bhtc,hkc->bhtk", found, value_maps)  # (B, H, T, K)


def absorbing_is_cheaper(
    new_tokens: int, all_tokens: int, head_dim: int, latent_dim: int
) -> bool:
    """Whether `absorbed_context` multiplies fewer numbers than `expanded_context`.

    Counted for the keys of one head; for its values the counts are the same, and the
    rotary part is in both. A single new token absorbs, a prompt expands.

    Args:
        new_tokens: T.
        all_tokens: S, cached and new.
        head_dim: K.
        latent_dim: C.
    """
    T, S, K, C = new_tokens, all_tokens, head_dim, latent_dim
    expanded = S * C * K + T * S * K  # make S keys, then compare T queries with them
    absorbed = T * K * C + T * S * C  # move T queries, then compare them with S latents
    return absorbed < expanded


# --- The layer -----------------------------------------------------------------------


class LatentProjections(nn.Module):
    """The weights of multi-head latent attention, and what they make of new tokens.

    Args:
        d_in: width of a token vector, D, and of the output.
        num_heads: H.
        latent_dim: width of the latent, C.
        head_dim: width of a head's values, and of its queries and keys without their
            rotary part, K.
        rope_dim: width of the rotary part, P, an even number.
        query_latent_dim: width of a latent of their own from which the queries are
            made, Q; it saves parameters, not cache. None makes them from x.
        norm_eps: what the norms of the latents add under the root.

    Raises:
        ValueError: a size is no positive integer.
    """

    def __init__(
        self,
        d_in: int,
        *,
        num_heads: int,
        latent_dim: int,
        head_dim: int,
        rope_dim: int,
        query_latent_dim: int | None = None,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        check_sizes(d_in=d_in, num_heads=num_heads, latent_dim=latent_dim)
        check_sizes(head_dim=head_dim, rope_dim=rope_dim)
        self.d_in, self.num_heads, self.latent_dim = d_in, num_heads, latent_dim
        self.head_dim, self.rope_dim = head_dim, rope_dim

        def linear(width_in, width_out):
            return nn.Linear(width_in, width_out, bias=False)

        queries = num_heads * (head_dim + rope_dim)
        if query_latent_dim is None:
            self.W_query = linear(d_in, queries)
        else:
            self.W_query = nn.Sequential(
                linear(d_in, query_latent_dim),
                RMSNorm(query_latent_dim, norm_eps),
                linear(query_latent_dim, queries),
            )
        self.W_latent = linear(d_in, latent_dim)
        self.latent_norm = RMSNorm(latent_dim, norm_eps)
        self.W_rope_key = linear(d_in, rope_dim)
        self.W_key = linear(latent_dim, num_heads * head_dim)
        self.W_value = linear(latent_dim, num_heads * head_dim)
        self.out_proj = linear(num_heads * head_dim, d_in)

    def project_queries(self, x: Tensor, rotate: _Rotation) -> Tensor:
        """Queries of new tokens, content and rotary part: (B, H, T, K + P)."""
        heads = self.W_query(x).unflatten(2, (self.num_heads, -1))
        heads = heads.transpose(1, 2)  # (B, H, T, K + P)
        content, rotary = heads.split([self.head_dim, self.rope_dim], dim=-1)
        return torch.cat((content, rotate(rotary)), dim=-1)

    def compress(self, x: Tensor, rotate: _Rotation) -> Tensor:
        """What is cached of new tokens: latent and rotary key, (B, 1, T, C + P).

        The 1 is the number of heads: a cache made for keys takes it.
        """
        latents = self.latent_norm(self.W_latent(x))[:, None]  # (B, 1, T, C)
        rope_keys = rotate(self.W_rope_key(x)[:, None])  # (B, 1, T, P)
        return torch.cat((latents, rope_keys), dim=-1)


class MultiHeadLatentAttention(LatentProjections):
    """Causal attention in which the keys and values of all heads share one latent.

    It is made with the arguments of `LatentProjections`. What a cache holds does not
    depend on how it is read, so a prompt may be expanded and the next token absorbed.
    """

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        cache: Any = None,
        rotate: _Rotation | None = None,
        absorb: bool | None = None,
    ) -> Tensor:
        """Context vectors, each made from its own token and earlier ones.

        Args:
            x: vectors of the T new tokens, (B, T, D), floating point.
            attention_mask: (B, S), bool or 0/1 integers, True for a real token, False
                for padding on either side; it covers the cached tokens as well as the
                new ones. Without it all tokens are real.
            cache: this layer's part of a cache, such as `KVCache(num_layers).layer(0)`.
                Latents and rotary keys lie in it in the place of keys, as one head;
                there are no values. It changes.
            rotate: a function that gives heads their positions, (B, heads, T, P) to the
                same shape. It turns the rotary parts only: those of the queries, and
                the new rotary keys before they are cached. None leaves them.
            absorb: True reads the latents by `absorbed_context`, False by
                `expanded_context`, None by the one that multiplies less.

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

        rotate = rotate or nn.Identity()
        queries = self.project_queries(x, rotate)
        entries = self.compress(x, rotate)
        if cache is not None:  # there are no values beside the keys: 0 numbers
            entries, _ = cache.append(entries, entries[..., :0])
        entries = entries[:, 0]  # (B, S, C + P)

        H, K, C = self.num_heads, self.head_dim, self.latent_dim
        S = entries.shape[1]
        hidden = GroupedQueryAttention.hidden_keys(T, S, attention_mask, x.device)
        if attention_mask is not None:
            hidden = hidden[:, 0]  # (B, 1, T, S)
        if absorb is None:
            absorb = absorbing_is_cheaper(T, S, K, C)
        attend = absorbed_context if absorb else expanded_context
        queries = queries * (K + self.rope_dim) ** -0.5
        key_maps = self.W_key.weight.view(H, K, C)
        value_maps = self.W_value.weight.view(H, K, C)
        context = attend(queries, entries, key_maps, value_maps, hidden)
        return self.out_proj(context.transpose(1, 2).flatten(2))  # (B, T, D)


# --- Other people's weights ----------------------------------------------------------


def deepseek_weights(
    layer: MultiHeadLatentAttention,
    weights: Mapping[str, Tensor],
    interleaved: bool = True,
) -> dict[str, Tensor]:
    """Published weights of one layer under our names, for `layer.load_state_dict`.

    "Theirs" are the names of DeepSeek's files and of the `transformers` library, after
    "self_attn.". There one matrix makes latent and rotary key, another one keys and
    values, head by head, and the rotary parts pair neighbours where `apply_rope` pairs
    halves. Weights in the wrong order fit all the same, and give other numbers.

    Args:
        layer: a layer of the same sizes.
        weights: {their name: tensor}, with "q_proj.weight", or with "q_a_proj.weight",
            "q_a_layernorm.weight" and "q_b_proj.weight" if queries have a latent.
        interleaved: whether their rotary parts pair neighbours, as DeepSeek's do.

    Returns:
        {our name: tensor}.
    """
    H, K = layer.num_heads, layer.head_dim
    C, P = layer.latent_dim, layer.rope_dim

    def halves(rows, heads):
        return pairs_to_halves(rows, heads) if interleaved else rows

    def their(name):
        return weights[f"{name}.weight"]

    has_latent = "q_proj.weight" not in weights
    heads = their("q_b_proj" if has_latent else "q_proj")
    heads = heads.unflatten(0, (H, K + P))
    turned = halves(heads[:, K:].flatten(0, 1), H).unflatten(0, (H, P))
    queries = torch.cat((heads[:, :K], turned), dim=1).flatten(0, 1)
    latent, rope_key = their("kv_a_proj_with_mqa").split([C, P])
    keys, values = their("kv_b_proj").unflatten(0, (H, 2, K)).unbind(dim=1)
    ours = {
        "W_latent.weight": latent,
        "latent_norm.scale": their("kv_a_layernorm"),
        "W_rope_key.weight": halves(rope_key, 1),
        "W_key.weight": keys.flatten(0, 1),
        "W_value.weight": values.flatten(0, 1),
        "out_proj.weight": their("o_proj"),
    }
    if not has_latent:
        return ours | {"W_query.weight": queries}
    return ours | {
        "W_query.0.weight": their("q_a_proj"),
        "W_query.1.scale": their("q_a_layernorm"),
        "W_query.2.weight": queries,
    }
