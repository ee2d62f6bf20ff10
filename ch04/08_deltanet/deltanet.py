"""Attention with a memory of fixed size (chapter 4, bonus: DeltaNet).

Without its softmax, attention is a sum of outer products of keys and values, and the
sum is all that has to be kept: a matrix S, (K, M), that answers a query q with q^T S.
What is written over it decides what it remembers.

* `linear_attention` adds each value to what its key held before;
* `recurrent_delta_rule` first reads what the key holds, and writes the difference; a
  gate lets everything fade;
* `chunked_delta_rule` gives the same numbers for many tokens at once, by one triangular
  system for each chunk: `delta_corrections`. `delta_rule` takes the form that fits.

`GatedDeltaNet` is the layer around it, with `short_convolution`, keys of length 1
(`l2_normalise`) and a gate at its output; `qwen3_next_weights` translates published
weights. What it keeps of a text lies in a `HybridCache`, module `hybrid_cache`.

Source: Katharopoulos et al., 2020 (arXiv:2006.16236, section 3.4) for linear attention;
Schlag et al., 2021 (arXiv:2102.11174, section 4.2) for the delta rule; Yang et al.,
2024 (arXiv:2406.06484, section 3) for chunks; Yang, Kautz and Hatamizadeh, 2024
(arXiv:2412.06464, section 3) for the gated rule and the layer. Their S is ours
transposed. Left out: dropout, biases, a kernel for graphics cards, texts packed into
one row, and going back in a text, which a state does not allow.

>>> _ = torch.manual_seed(0)
>>> layer = GatedDeltaNet(d_in=12, num_heads=3, key_dim=4, value_dim=5)
>>> x = torch.randn(2, 7, 12)  # two sequences of seven tokens
>>> layer(x).shape
torch.Size([2, 7, 12])

Shapes: B batch, T new tokens, S all tokens, D model width (`d_in`), H memories (heads
of values), G heads of queries and keys, K width of a key, M width of a value, C tokens
in a chunk, W tokens that the convolution sees, N = 2 G K + H M its channels.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argument_checks import (
    check_attention_mask,
    check_divisible,
    check_input,
    check_no_hole,
    check_sizes,
    check_weight_shapes,
)
from llama import RMSNorm

__all__ = [
    "DeltaProjections",
    "DeltaWeights",
    "GatedDeltaNet",
    "chunked_delta_rule",
    "decay_between",
    "delta_corrections",
    "delta_rule",
    "empty_state",
    "l2_normalise",
    "linear_attention",
    "qwen3_next_shapes",
    "qwen3_next_weights",
    "recurrent_delta_rule",
    "short_convolution",
    "widened",
]

CHUNK_SIZE = 64  # tokens


# --- The memory -----------------------------------------------------------------------


def decay_between(log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """How much of the past, and of each token, is left at each later token.

    Args:
        log_decay: logarithm of the share that each token leaves of the past, (..., C),
            at most 0.

    Returns:
        `(past, between)`, (..., C) and (..., C, C): the share left at token i of what
        was there before the first, and of what token j wrote, 0 where j comes after i.
    """
    total = log_decay.cumsum(dim=-1)  # (..., C)
    C = total.shape[-1]
    later = torch.ones(C, C, dtype=torch.bool, device=total.device).triu(1)
    between = total[..., :, None] - total[..., None, :]  # (..., C, C)
    return total.exp(), between.masked_fill(later, -math.inf).exp()


def empty_state(keys: Tensor, values: Tensor) -> Tensor:
    """A memory in which nothing stands, (B, H, K, M), for such keys and values."""
    B, H, _, K = keys.shape
    return keys.new_zeros(B, H, K, values.shape[3])


def linear_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_decay: Tensor,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Write every value under its key, and read at each token what stands there then.

    Args:
        queries: (B, H, T, K), scaled already.
        keys: (B, H, T, K).
        values: (B, H, T, M).
        log_decay: as in `decay_between`, (B, H, T); zeros forget nothing.
        state: the memory before the first token, (B, H, K, M); None for an empty one.

    Returns:
        `(outputs, state)`, (B, H, T, M) and (B, H, K, M). A token reads after it has
        written.
    """
    past, between = decay_between(log_decay)  # (B, H, T), (B, H, T, T)
    outputs = (queries @ keys.transpose(2, 3) * between) @ values  # (B, H, T, M)
    fading = keys * between[:, :, -1, :, None]  # what is left at the end, (B, H, T, K)
    written = fading.transpose(2, 3) @ values  # (B, H, K, M)
    if state is None:
        return outputs, written
    outputs = outputs + past[..., None] * (queries @ state)
    return outputs, past[:, :, -1, None, None] * state + written


def recurrent_delta_rule(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Token by token: fade, read what the key holds, write what it lacks.

    Args:
        queries, keys, values, log_decay, state: as in `linear_attention`; the keys have
            length 1.
        beta: how much of the difference is written, (B, H, T), 0 to 1 (2 at most).

    Returns:
        `(outputs, state)`, as `linear_attention`.

    Source: Yang, Kautz and Hatamizadeh, 2024, section 3.1.
    """
    if state is None:
        state = empty_state(keys, values)
    outputs = []
    for t in range(keys.shape[2]):
        query, key = queries[:, :, t, None], keys[:, :, t, None]  # (B, H, 1, K)
        state = log_decay[:, :, t, None, None].exp() * state
        missing = values[:, :, t, None] - key @ state  # (B, H, 1, M)
        weighted = beta[:, :, t, None, None] * missing
        state = state + key.transpose(2, 3) @ weighted  # (B, H, K, M)
        outputs.append(query @ state)
    return torch.cat(outputs, dim=2), state


def delta_corrections(
    keys: Tensor,
    values: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor | None = None,
) -> Tensor:
    """What the delta rule writes for each token of a chunk, all found at once.

    Token i writes u_i = beta_i (v_i - what its key holds by then), and that is what is
    left of the memory before the chunk, and of each earlier u_j by how alike the keys
    are: a triangular system of C equations for the C rows u.

    Args:
        keys, values, log_decay, beta, state: as in `recurrent_delta_rule`.

    Returns:
        (B, H, C, M). With them the delta rule is `linear_attention`.

    Source: Yang et al., 2024, section 3.2.
    """
    past, between = decay_between(log_decay)
    system = beta[..., None] * (keys @ keys.transpose(2, 3)) * between  # (B, H, C, C)
    if state is not None:
        values = values - past[..., None] * (keys @ state)
    return torch.linalg.solve_triangular(  # it takes ones for the diagonal
        system, beta[..., None] * values, upper=False, unitriangular=True
    )


def chunked_delta_rule(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> tuple[Tensor, Tensor]:
    """The numbers of `recurrent_delta_rule`, C tokens at a time.

    Args:
        queries, keys, values, log_decay, beta, state: as there.
        chunk_size: C. The last chunk may be shorter.
    """
    state = empty_state(keys, values) if state is None else state
    outputs = []
    for start in range(0, keys.shape[2], chunk_size):
        part = slice(start, start + chunk_size)
        query, key, value = (x[:, :, part] for x in (queries, keys, values))
        decay = log_decay[:, :, part]
        written = delta_corrections(key, value, decay, beta[:, :, part], state)
        out, state = linear_attention(query, key, written, decay, state)
        outputs.append(out)
    return torch.cat(outputs, dim=2), state


def delta_rule(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One token by `recurrent_delta_rule`, several by `chunked_delta_rule`."""
    form = recurrent_delta_rule if keys.shape[2] == 1 else chunked_delta_rule
    return form(queries, keys, values, log_decay, beta, state)


# --- Parts of the layer ---------------------------------------------------------------


def widened(x: Tensor) -> Tensor:
    """The same numbers in float32 at least: a memory adds up many tokens."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def l2_normalise(x: Tensor) -> Tensor:
    """Vectors of length 1: the last dimension over the root of its sum of squares.

    A small number under the root, 1e-6, leaves zeros as they are.
    """
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + 1e-6)


def short_convolution(
    x: Tensor, weight: Tensor, tail: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mix each channel with its own last few tokens: a causal depthwise convolution.

    Args:
        x: new tokens, (B, T, N).
        weight: (N, W), the newest token's weight last.
        tail: what came before, (B, W - 1, N); None for the start of a text.

    Returns:
        `(mixed, tail)`, (B, T, N) and (B, W - 1, N), the tail for the next call.
    """
    T, W = x.shape[1], weight.shape[1]
    if tail is None:
        tail = x.new_zeros(x.shape[0], W - 1, x.shape[2])
    seen = torch.cat((tail, x), dim=1)  # (B, W - 1 + T, N)
    shifted = [seen[:, w : w + T] * weight[:, w] for w in range(W)]
    return torch.stack(shifted).sum(dim=0), seen[:, T:].clone()


# --- The layer ------------------------------------------------------------------------


class DeltaWeights(nn.Module):
    """The weights of a `GatedDeltaNet`.

    Args:
        d_in: width of a token vector, D, and of the output.
        num_heads: memories, H.
        key_dim: width of a key, K.
        value_dim: width of a value, M.
        num_key_heads: heads of queries and keys, G, a divisor of H; H if None.
        conv_width: how many tokens the convolution sees, W, its own included.
        norm_eps: what the norm of the output adds under the root.
        rule: what writes and reads, called as `delta_rule`.

    Raises:
        ValueError: a size is no positive integer; H is no multiple of G.
    """

    def __init__(
        self,
        d_in: int,
        *,
        num_heads: int,
        key_dim: int,
        value_dim: int,
        num_key_heads: int | None = None,
        conv_width: int = 4,
        norm_eps: float = 1e-6,
        rule: Callable[..., tuple[Tensor, Tensor]] = delta_rule,
    ):
        super().__init__()
        G = num_heads if num_key_heads is None else num_key_heads
        H, K, M, W = num_heads, key_dim, value_dim, conv_width
        check_sizes(d_in=d_in, num_heads=H, num_key_heads=G, conv_width=W)
        check_sizes(key_dim=K, value_dim=M)
        check_divisible(num_heads=H, num_key_heads=G)
        self.d_in, self.num_heads, self.num_key_heads = d_in, H, G
        self.key_dim, self.value_dim, self.rule = K, M, rule

        self.W_query = nn.Linear(d_in, G * K, bias=False)
        self.W_key = nn.Linear(d_in, G * K, bias=False)
        self.W_value = nn.Linear(d_in, H * M, bias=False)
        self.W_gate = nn.Linear(d_in, H * M, bias=False)
        self.W_beta = nn.Linear(d_in, H, bias=False)
        self.W_decay = nn.Linear(d_in, H, bias=False)
        self.conv = nn.Parameter(torch.empty(2 * G * K + H * M, W))
        nn.init.uniform_(self.conv, -(W**-0.5), W**-0.5)
        # Head by head, at first, a token takes 0.001 to 0.5 off the logarithm.
        steps = torch.logspace(-3, math.log10(0.5), H)
        self.dt_bias = nn.Parameter(steps.expm1().log())  # softplus gives the steps
        self.A_log = nn.Parameter(torch.zeros(H))
        self.norm = RMSNorm(M, norm_eps)
        self.out_proj = nn.Linear(H * M, d_in, bias=False)


class DeltaProjections(DeltaWeights):
    """What the weights make of new tokens. It is made with their arguments."""

    def project(
        self, x: Tensor, tail: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries and keys, (B, H, T, K), values, (B, H, T, M), and the new tail."""
        G, H, K = self.num_key_heads, self.num_heads, self.key_dim
        made = torch.cat((self.W_query(x), self.W_key(x), self.W_value(x)), dim=-1)
        mixed, tail = short_convolution(made, self.conv, tail)
        mixed = widened(F.silu(mixed))  # (B, T, N)
        queries, keys, values = mixed.split([G * K, G * K, H * self.value_dim], dim=-1)
        queries, keys = (
            l2_normalise(part.unflatten(2, (G, K)))
            .transpose(1, 2)
            .repeat_interleave(H // G, dim=1)  # (B, H, T, K)
            for part in (queries, keys)
        )
        values = values.unflatten(2, (H, -1)).transpose(1, 2)  # (B, H, T, M)
        return queries * K**-0.5, keys, values, tail

    def gates(self, x: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logarithm of the decay, and strength of writing, (B, H, T) each.

        Padding, where `real` (B, T) is False, neither fades nor writes.
        """
        steps = F.softplus(widened(self.W_decay(x)) + self.dt_bias)
        log_decay = -self.A_log.exp() * steps  # (B, T, H), below 0
        beta = widened(self.W_beta(x)).sigmoid()
        if real is not None:
            log_decay, beta = log_decay * real[..., None], beta * real[..., None]
        return log_decay.transpose(1, 2), beta.transpose(1, 2)


class GatedDeltaNet(DeltaProjections):
    """A layer in the place of attention that keeps H matrices instead of all tokens.

    It is made with the arguments of `DeltaWeights`.
    """

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        cache: Any = None,
        rotate: Any = None,
    ) -> Tensor:
        """Each token with what the memories answer it.

        Args:
            x: vectors of the T new tokens, (B, T, D), floating point.
            attention_mask: (B, S), bool or 0/1 integers, True for a real token, False
                for padding before or after a text, not within it; it covers the tokens
                read before as well as the new ones.
            cache: this layer's part of a cache, `HybridCache(L).layer(i)`. It changes.
            rotate: not used. The order of the tokens is in the memory already.

        Returns:
            (B, T, D). What stands at padding means nothing.

        Raises:
            ValueError: x has another rank or width than the layer; the attention mask
                does not cover the tokens, or has padding within a text. The cache is
                unchanged.
        """
        check_input(x, self.d_in)
        past = 0 if cache is None else cache.length
        B, T, _ = x.shape
        real = None
        if attention_mask is not None:
            check_attention_mask(attention_mask, B, past + T, past)
            check_no_hole(attention_mask)
            real = attention_mask[:, past:].bool()
            x = x.masked_fill(~real[..., None], 0.0)  # nor does the convolution see it

        tail, state = (None, None) if cache is None else (cache.tail, cache.state)
        queries, keys, values, tail = self.project(x, tail)
        log_decay, beta = self.gates(x, real)
        with torch.autocast(x.device.type, enabled=False):  # or sums would be bfloat16
            out, state = self.rule(queries, keys, values, log_decay, beta, state)
        if cache is not None:
            cache.keep(state, tail, T)

        gate = self.W_gate(x).unflatten(2, (self.num_heads, -1))  # (B, T, H, M)
        out = self.norm(out.transpose(1, 2)) * F.silu(gate)
        return self.out_proj(out.flatten(2).to(x.dtype))  # (B, T, D)


# --- Other people's weights -----------------------------------------------------------


def qwen3_next_shapes(layer: GatedDeltaNet) -> dict[str, tuple[int, ...]]:
    """Shapes of Qwen3-Next's weights for a layer of these sizes, by their names.

    The names are those of the `transformers` library, after "linear_attn.".
    """
    D, H, G = layer.d_in, layer.num_heads, layer.num_key_heads
    K, M, (N, W) = layer.key_dim, layer.value_dim, layer.conv.shape
    return {
        "conv1d.weight": (N, 1, W),
        "in_proj_qkvz.weight": (2 * G * K + 2 * H * M, D),
        "in_proj_ba.weight": (2 * H, D),
        "dt_bias": (H,),
        "A_log": (H,),
        "norm.weight": (M,),
        "out_proj.weight": (D, H * M),
    }


def qwen3_next_weights(
    layer: GatedDeltaNet, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Published weights of one layer under our names, for `layer.load_state_dict`.

    In theirs one matrix makes queries, keys, values and gates, group by group: the rows
    of a head of keys, then those of the memories that it serves.

    Args:
        layer: a layer of the same sizes.
        weights: {their name: tensor}, with the names and shapes of `qwen3_next_shapes`.

    Returns:
        {our name: tensor}.

    Raises:
        ValueError: a weight is missing, has another shape, or has no place here.
    """
    check_weight_shapes(weights, qwen3_next_shapes(layer))
    G, K, R = layer.num_key_heads, layer.key_dim, layer.num_heads // layer.num_key_heads
    own = R * layer.value_dim  # rows of the values that one head of keys serves
    groups = weights["in_proj_qkvz.weight"].unflatten(0, (G, -1))
    queries, keys, values, gates = groups.split([K, K, own, own], dim=1)
    beta, decay = weights["in_proj_ba.weight"].unflatten(0, (G, -1)).split(R, dim=1)
    return {
        "W_query.weight": queries.flatten(0, 1),
        "W_key.weight": keys.flatten(0, 1),
        "W_value.weight": values.flatten(0, 1),
        "W_gate.weight": gates.flatten(0, 1),
        "W_beta.weight": beta.flatten(0, 1),
        "W_decay.weight": decay.flatten(0, 1),
        "conv": weights["conv1d.weight"][:, 0],
        "dt_bias": weights["dt_bias"],
        "A_log": weights["A_log"],
        "norm.scale": weights["norm.weight"],
        "out_proj.weight": weights["out_proj.weight"],
    }
