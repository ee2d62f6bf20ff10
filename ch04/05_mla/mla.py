"""Attention whose cache holds one short vector of each token (chapter 4, bonus: MLA).

Multi-head attention caches H keys and H values of each token. All of them are made from
one token vector, so multi-head latent attention makes them from something shorter: a
*latent* of C numbers. It is cached in their place, beside one key of P numbers, shared
by all heads, that carries the position. What comes out of the cache can be read in two
ways, which give the same numbers:

* `expanded_context` makes the keys and values of all heads from the latents;
* `absorbed_context` moves the query into the latent space instead, and the result out
  of it again, so that no key and no value of a head is ever made.

`LatentWeights` holds the weights, `LatentProjections` says what they make, and
`MultiHeadLatentAttention` attends by the way that multiplies less:
`absorbing_is_cheaper`. `latent_cache_bytes` counts the memory, `deepseek_weights`
translates published weights.

Source: DeepSeek-AI, "DeepSeek-V2", 2024 (arXiv:2405.04434), section 2.1 and appendix C;
the same layer stands in DeepSeek-V3, 2024 (arXiv:2412.19437, section 2.1.1). What
DeepSeek publishes is stretched by YaRN to longer contexts: that gives `rotate` other
angles and `softmax_scale` a factor, at every length. Both come from the caller. Left
out: dropout; biases; and values of another width than the keys, as GLM-5 and Mistral
Small 4 have.

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

from argument_checks import (
    check_attention_mask,
    check_divisible,
    check_input,
    check_sizes,
    check_weight_shapes,
)
from gqa import GroupedQueryAttention
from llama import RMSNorm, pairs_to_halves

__all__ = [
    "LatentProjections",
    "LatentWeights",
    "MultiHeadLatentAttention",
    "absorbed_context",
    "absorbing_is_cheaper",
    "deepseek_shapes",
    "deepseek_weights",
    "expanded_context",
    "latent_cache_bytes",
    "linear",
    "masked_softmax",
    "query_rows_to_halves",
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
        queries: content and rotary part, scaled already, (B, H, T, K + P).
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


def linear(width_in: int, width_out: int) -> nn.Linear:
    """A matrix from one width to another, without a bias."""
    return nn.Linear(width_in, width_out, bias=False)


class LatentWeights(nn.Module):
    """The weights of multi-head latent attention.

    Args:
        d_in: width of a token vector, D, and of the output.
        num_heads: H.
        latent_dim: width of the latent, C.
        head_dim: width of a head's values, and of its queries and keys without their
            rotary part, K.
        rope_dim: width of the rotary part, P, an even number.
        query_latent_dim: width of a latent of their own from which the queries are
            made, Q; it saves parameters, not cache. None makes them from x.
        softmax_scale: what scores are multiplied by, 1 / sqrt(K + P) if None. YaRN
            with a factor s multiplies that by (0.1 m ln s + 1) ** 2, where m is
            "mscale_all_dim" of the configuration.
        norm_eps: what the norms of the latents add under the root.

    Raises:
        ValueError: a size is no positive integer, or rope_dim is odd.
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
        softmax_scale: float | None = None,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        Q, queries = query_latent_dim, num_heads * (head_dim + rope_dim)
        check_sizes(d_in=d_in, num_heads=num_heads, latent_dim=latent_dim)
        check_sizes(head_dim=head_dim, rope_dim=rope_dim)
        check_sizes(query_latent_dim=1 if Q is None else Q)
        check_divisible(rope_dim=rope_dim, pairs_of=2)
        self.d_in, self.num_heads, self.latent_dim = d_in, num_heads, latent_dim
        self.head_dim, self.rope_dim = head_dim, rope_dim
        self.query_latent_dim = Q
        usual = (head_dim + rope_dim) ** -0.5
        self.softmax_scale = usual if softmax_scale is None else softmax_scale

        if Q is None:
            self.W_query = linear(d_in, queries)
        else:
            norm = RMSNorm(Q, norm_eps)
            self.W_query = nn.Sequential(linear(d_in, Q), norm, linear(Q, queries))
        self.W_latent = linear(d_in, latent_dim)
        self.latent_norm = RMSNorm(latent_dim, norm_eps)
        self.W_rope_key = linear(d_in, rope_dim)
        self.W_key = linear(latent_dim, num_heads * head_dim)
        self.W_value = linear(latent_dim, num_heads * head_dim)
        self.out_proj = linear(num_heads * head_dim, d_in)


class LatentProjections(LatentWeights):
    """What the weights make of new tokens, and how the queries read the cache.

    It is made with the arguments of `LatentWeights`.
    """

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

    def read(
        self,
        queries: Tensor,
        entries: Tensor,
        hidden: Tensor | None,
        absorb: bool | None = None,
    ) -> Tensor:
        """Contexts of all heads, side by side: (B, T, H * K).

        Args:
            queries: (B, H, T, K + P).
            entries: latents and rotary keys of all tokens, (B, S, C + P).
            hidden: as in `masked_softmax`.
            absorb: True takes `absorbed_context`, False `expanded_context`, None the
                one that multiplies less.
        """
        H, K, C = self.num_heads, self.head_dim, self.latent_dim
        if absorb is None:
            absorb = absorbing_is_cheaper(queries.shape[2], entries.shape[1], K, C)
        attend = absorbed_context if absorb else expanded_context
        context = attend(
            queries * self.softmax_scale,
            entries,
            key_maps=self.W_key.weight.view(H, K, C),
            value_maps=self.W_value.weight.view(H, K, C),
            hidden=hidden,
        )
        return context.transpose(1, 2).flatten(2)  # (B, T, H * K)


class MultiHeadLatentAttention(LatentProjections):
    """Causal attention in which the keys and values of all heads share one latent.

    It is made with the arguments of `LatentWeights`. What a cache holds does not
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

        S = entries.shape[1]
        hidden = GroupedQueryAttention.hidden_keys(T, S, attention_mask, x.device)
        if attention_mask is not None:
            hidden = hidden[:, 0]  # (B, 1, T, S)
        return self.out_proj(self.read(queries, entries, hidden, absorb))  # (B, T, D)


# --- Other people's weights ----------------------------------------------------------


def deepseek_shapes(layer: LatentWeights) -> dict[str, tuple[int, ...]]:
    """Shapes of DeepSeek's weights for a layer of these sizes, by their names.

    "Theirs" are the names of DeepSeek's files and of the `transformers` library, after
    "self_attn.".
    """
    D, H, Q = layer.d_in, layer.num_heads, layer.query_latent_dim
    K, C, P = layer.head_dim, layer.latent_dim, layer.rope_dim
    if Q is None:
        shapes = {"q_proj": (H * (K + P), D)}
    else:
        shapes = {"q_a_proj": (Q, D), "q_a_layernorm": (Q,)}
        shapes |= {"q_b_proj": (H * (K + P), Q)}
    shapes |= {"kv_a_proj_with_mqa": (C + P, D), "kv_a_layernorm": (C,)}
    shapes |= {"kv_b_proj": (H * 2 * K, C), "o_proj": (D, H * K)}
    return {f"{name}.weight": shape for name, shape in shapes.items()}


def query_rows_to_halves(
    rows: Tensor, heads: int, head_dim: int, rope_dim: int
) -> Tensor:
    """Rows of a matrix that makes queries, their rotary parts in halves.

    Args:
        rows: (H * (K + P), N), head by head, whose rotary parts pair neighbours.
        heads: H.
        head_dim: K.
        rope_dim: P.
    """
    H, K, P = heads, head_dim, rope_dim
    content, rotary = rows.unflatten(0, (H, K + P)).split([K, P], dim=1)
    rotary = pairs_to_halves(rotary.flatten(0, 1), H).unflatten(0, (H, P))
    return torch.cat((content, rotary), dim=1).flatten(0, 1)


def deepseek_weights(
    layer: LatentWeights, weights: Mapping[str, Tensor], interleaved: bool = True
) -> dict[str, Tensor]:
    """Published weights of one layer under our names, for `layer.load_state_dict`.

    In theirs one matrix makes latent and rotary key, another one keys and values, head
    by head, and the rotary parts pair neighbours where `apply_rope` pairs halves. Rows
    in the wrong order fit all the same, and give other numbers; so does a layer without
    the `softmax_scale` of their configuration, which is no weight.

    Args:
        layer: a layer of the same sizes.
        weights: {their name: tensor}, with the names and shapes of `deepseek_shapes`.
        interleaved: whether their rotary parts pair neighbours, as DeepSeek's do.

    Returns:
        {our name: tensor}.

    Raises:
        ValueError: a weight is missing, has another shape, or has no place here, such
            as a bias.
    """
    check_weight_shapes(weights, deepseek_shapes(layer))
    H, K, P = layer.num_heads, layer.head_dim, layer.rope_dim
    theirs = {name.removesuffix(".weight"): part for name, part in weights.items()}
    latent, rope_key = theirs["kv_a_proj_with_mqa"].split([layer.latent_dim, P])
    keys, values = theirs["kv_b_proj"].unflatten(0, (H, 2, K)).unbind(dim=1)
    queries = theirs["q_proj" if layer.query_latent_dim is None else "q_b_proj"]
    if interleaved:
        rope_key = pairs_to_halves(rope_key, 1)
        queries = query_rows_to_halves(queries, H, K, P)
    ours = {
        "W_latent.weight": latent,
        "latent_norm.scale": theirs["kv_a_layernorm"],
        "W_rope_key.weight": rope_key,
        "W_key.weight": keys.flatten(0, 1),
        "W_value.weight": values.flatten(0, 1),
        "out_proj.weight": theirs["o_proj"],
    }
    if layer.query_latent_dim is None:
        return ours | {"W_query.weight": queries}
    first = {"W_query.0.weight": theirs["q_a_proj"]}
    norm = {"W_query.1.scale": theirs["q_a_layernorm"]}
    return ours | first | norm | {"W_query.2.weight": queries}
