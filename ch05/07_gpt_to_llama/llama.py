"""The Llama model: what later models changed in GPT's design (chapter 5).

Four parts differ from `GPTModel` of chapter 4; everything else is as it was there.

* `RMSNorm` scales a token vector without centring it (Zhang and Sennrich, 2019,
  arXiv:1910.07467, equation 4);
* rotary positions turn queries and keys instead of adding a table to the embeddings
  (Su et al., 2021, arXiv:2104.09864, section 3.2.2): `rope_frequencies`,
  `rope_cos_sin`, `apply_rope`, and `pairs_to_halves` for weights of the other pairing;
* `LlamaFeedForward` has a gate, SwiGLU (Shazeer, 2020, arXiv:2002.05202, equation 6);
* attention is `GroupedQueryAttention` of chapter 4.

`LlamaConfig`, `LlamaBlock` and `LlamaModel` put them together, for Llama 2 (Touvron et
al., 2023, arXiv:2307.09288), Llama 3 to 3.2 (Grattafiori et al., 2024,
arXiv:2407.21783; the scaling of the frequencies, `RopeScaling`, is that of the code
released with 3.1), and SmolLM2 (Allal et al., 2025, arXiv:2502.02737), which has the
same architecture. `llama_key_map` names the weights as published. Left out: dropout,
biases, initialisation for training from nothing; `fast_copies` makes it write faster.

>>> import torch
>>> cfg = LlamaConfig.of({**SMOLLM2_135M, "vocab_size": 50, "context_length": 64,
...     "emb_dim": 12, "n_heads": 6, "n_kv_groups": 2, "head_dim": 4, "n_layers": 2,
...     "hidden_dim": 20})
>>> _ = torch.manual_seed(0)
>>> model = LlamaModel(cfg).eval()
>>> idx = torch.tensor([[7, 1, 4], [3, 3, 9]])  # two prompts of three tokens
>>> model(idx).shape
torch.Size([2, 3, 50])

It has the interface of `GPTModel`, so what generated with that generates with this:

>>> from gpt import count_parameters, generate_text_simple
>>> from kv_cache import KVCache
>>> text = generate_text_simple(model, idx, max_new_tokens=4, context_size=64)
>>> cached = generate_text_simple(
...     model, idx, max_new_tokens=4, context_size=64, cache=KVCache(num_layers=2))
>>> torch.equal(cached, text)
True

The sizes are known without a byte of memory being spent:

>>> with torch.device("meta"):
...     count_parameters(LlamaModel(LLAMA32_1B))
1235814400

Shapes: B batch, T new tokens, S all tokens, D model width (`emb_dim`), H query heads
(`n_heads`), G key/value heads (`n_kv_groups`), K head width (`head_dim`), F
feed-forward width (`hidden_dim`), V vocabulary, L blocks (`n_layers`).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argument_checks import cached_tokens, check_idx
from gpt import TiedHead
from gqa import GroupedQueryAttention
from model_config import ModelConfig, check_number, token_positions

# --- The configuration ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class RopeScaling(ModelConfig):
    """How Llama 3.1 and later slow down the rotary frequencies for a longer context.

    Frequencies that turn more than `high_freq_factor` times within the original context
    stay; those that turn less than `low_freq_factor` times are divided by `factor`;
    between the two the division sets in gradually.

    Args:
        factor: divisor of the slow frequencies, at least 1: 8 in Llama 3.1, 32 in 3.2.
        low_freq_factor: turns below which a frequency is slow, above 0.
        high_freq_factor: turns above which it is fast, above `low_freq_factor`.
        original_context_length: tokens in a text when the frequencies were chosen.

    Raises:
        ValueError: a value is out of range; the message names the field.
        TypeError: a field is unknown or missing.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context_length: int

    def __post_init__(self):
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            check_number(name, self[name], above=0)
        super().__post_init__()
        if self.factor < 1:
            raise ValueError(
                f"factor is {self.factor}: it divides the slow frequencies, so give 1 "
                "or more; 8 makes the context eight times as long."
            )
        low, high = self.low_freq_factor, self.high_freq_factor
        if low >= high:
            raise ValueError(
                f"low_freq_factor={low} must lie below high_freq_factor={high}: the "
                "scaling sets in between them."
            )


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LlamaConfig(ModelConfig):
    """The sizes of a Llama, checked when it is made, and readable like a dictionary.

    As with `GPTConfig`, `cfg["emb_dim"]` and `cfg.emb_dim` are the same, and
    `{**cfg, "context_length": 256}` is a dictionary with one entry changed. No field
    has a default: a rotary base or scaling that is guessed gives a model that writes
    nonsense, some only after thousands of tokens.

    Args:
        vocab_size: how many different tokens there are, V.
        context_length: the most tokens that the model can read at once. Changing it
            changes no number, so it may be lowered freely.
        emb_dim: width of a token vector, D.
        n_heads: query heads in a block, H.
        n_kv_groups: key/value heads, G, a divisor of `n_heads`.
        head_dim: width of a head, K, an even number; often but not always D / H.
        n_layers: blocks, L.
        hidden_dim: width of the feed-forward part, F.
        rope_base: the base of the rotary frequencies, above 1.
        rope_scaling: a `RopeScaling`, a mapping with its fields, or None.
        norm_eps: what `RMSNorm` adds under the root, above 0.
        tie_weights: whether the output head is the token embedding.

    Raises:
        ValueError: a value is out of range; the message names the field.
        TypeError: a field is unknown or missing.
    """

    vocab_size: int
    context_length: int
    emb_dim: int
    n_heads: int
    n_kv_groups: int
    head_dim: int
    n_layers: int
    hidden_dim: int
    rope_base: float
    rope_scaling: RopeScaling | None
    norm_eps: float
    tie_weights: bool

    def __post_init__(self):
        check_number("rope_base", self.rope_base, above=1)
        check_number("norm_eps", self.norm_eps, above=0)
        super().__post_init__()
        if self.n_heads % self.n_kv_groups:
            raise ValueError(
                f"n_heads={self.n_heads} cannot share n_kv_groups={self.n_kv_groups} "
                "groups evenly: choose a number of groups that divides the number of "
                "heads."
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim={self.head_dim} is odd, but rotary positions turn pairs of "
                "numbers: choose an even width."
            )
        if self.rope_scaling is not None:
            object.__setattr__(self, "rope_scaling", RopeScaling.of(self.rope_scaling))


LLAMA2_7B = LlamaConfig(
    vocab_size=32000,
    context_length=4096,
    emb_dim=4096,
    n_heads=32,
    n_kv_groups=32,
    head_dim=128,
    n_layers=32,
    hidden_dim=11008,
    rope_base=10_000.0,
    rope_scaling=None,
    norm_eps=1e-5,
    tie_weights=False,
)
LLAMA3_8B = LlamaConfig.of(
    {
        **LLAMA2_7B,
        "vocab_size": 128256,
        "context_length": 8192,
        "n_kv_groups": 8,
        "hidden_dim": 14336,
        "rope_base": 500_000.0,
    }
)
LLAMA31_8B = LlamaConfig.of(
    {
        **LLAMA3_8B,
        "context_length": 131072,
        "rope_scaling": RopeScaling(
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_context_length=8192,
        ),
    }
)
LLAMA32_3B = LlamaConfig.of(
    {
        **LLAMA31_8B,
        "emb_dim": 3072,
        "n_heads": 24,
        "n_layers": 28,
        "hidden_dim": 8192,
        "rope_scaling": {**LLAMA31_8B["rope_scaling"], "factor": 32.0},
        "tie_weights": True,
    }
)
LLAMA32_1B = LlamaConfig.of(
    {**LLAMA32_3B, "emb_dim": 2048, "n_heads": 32, "head_dim": 64, "n_layers": 16}
)
SMOLLM2_135M = LlamaConfig(
    vocab_size=49152,
    context_length=8192,
    emb_dim=576,
    n_heads=9,
    n_kv_groups=3,
    head_dim=64,
    n_layers=30,
    hidden_dim=1536,
    rope_base=100_000.0,
    rope_scaling=None,
    norm_eps=1e-5,
    tie_weights=True,
)


# --- The four changes ----------------------------------------------------------------


class RMSNorm(nn.Module):
    """Each token vector scaled to a mean square of 1, then by learned factors.

    Unlike `LayerNorm` it neither subtracts the mean nor adds a shift.

    Args:
        emb_dim: width of a token vector, D.
        eps: what is added to the mean square, under the root.
    """

    def __init__(self, emb_dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(emb_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension: (..., D) to (..., D), of the same dtype.

        The mean is taken in float32 (float64 stays), as in `LayerNorm`.
        """
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean_square = wide.square().mean(dim=-1, keepdim=True)  # (..., 1)
        normalised = wide * torch.rsqrt(mean_square + self.eps)
        return (self.scale * normalised).to(x.dtype)


def rope_frequencies(
    head_dim: int,
    base: float,
    scaling: Mapping[str, Any] | None,
    device: torch.device | None = None,
) -> Tensor:
    """How far each pair of numbers turns from one token to the next, in radians.

    Pair i turns by base ** (-2 i / K): the first by 1 radian, the last by little more
    than 1 / base. `scaling` then slows down those that barely turn within the context
    of training, so that a longer one brings no angle that is new.

    Args:
        head_dim: width of a head, K, even.
        base: the base, such as 10,000 (Su et al., 2021, section 3.2.2).
        scaling: a `RopeScaling`, or None.
        device: where to put them.

    Returns:
        (K / 2,), float32.
    """
    exponents = torch.arange(0, head_dim, 2, device=device).float() / head_dim
    frequencies = 1.0 / base**exponents  # (K / 2,)
    if scaling is None:
        return frequencies
    wavelengths = 2 * math.pi / frequencies  # tokens for a whole turn
    turns = scaling["original_context_length"] / wavelengths
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)  # 0 if slow, 1 if fast
    return (1 - kept) * frequencies / scaling["factor"] + kept * frequencies


def rope_cos_sin(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle by which each pair is turned at each position.

    There is no table that could end: angles come from the positions themselves.

    Args:
        positions: whole numbers from 0, (T,) or (B, T).
        frequencies: (K / 2,), as from `rope_frequencies`.

    Returns:
        `(cos, sin)`, float32, (T, K) or (B, 1, T, K): the same for all heads, and the
        second half the same as the first, since entry i pairs with entry i + K / 2.
    """
    angles = positions[..., None].float() * frequencies  # (..., T, K / 2)
    angles = torch.cat((angles, angles), dim=-1)  # (..., T, K)
    if angles.ndim > 2:
        angles = angles[:, None]  # (B, 1, T, K)
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + K / 2) of every head by their angles.

    A vector turned by an angle is cos times itself plus sin times what a quarter turn
    makes of it, and a quarter turn takes (a, b) to (-b, a).

    Args:
        x: queries or keys, (B, heads, T, K), floating point.
        cos: (T, K) or (B, 1, T, K), as from `rope_cos_sin`.
        sin: the same.

    Returns:
        The shape and dtype of x; computed in float32 at least.
    """
    first, second = x.chunk(2, dim=-1)
    quarter_turned = torch.cat((-second, first), dim=-1)  # (B, heads, T, K)
    return (x * cos + quarter_turned * sin).to(x.dtype)


def pairs_to_halves(weight: Tensor, num_heads: int) -> Tensor:
    """Reorder a query or key projection made for rotating neighbours (2i, 2i + 1).

    The paper, the code released with the models and GGUF files pair neighbours;
    `apply_rope`, like the `transformers` library, pairs i with i + K / 2. These are the
    same vectors in another order: even entries go to the first half of their head, odd
    ones to the second. Queries and keys are reordered alike, so their products stay.

    Args:
        weight: (heads * K, D) or a bias, (heads * K,).
        num_heads: how many heads it holds: H for queries, G for keys.

    Returns:
        The same shape.
    """
    heads = weight.unflatten(0, (num_heads, -1, 2))  # (heads, K / 2, 2, ...)
    return heads.transpose(1, 2).flatten(0, 2)


def halves_to_pairs(weight: Tensor, num_heads: int) -> Tensor:
    """Undo `pairs_to_halves`: the same arguments, the opposite order."""
    heads = weight.unflatten(0, (num_heads, 2, -1))  # (heads, 2, K / 2, ...)
    return heads.transpose(1, 2).flatten(0, 2)


class LlamaFeedForward(nn.Module):
    """Three linear layers: a gate decides how much of each hidden number passes.

    Args:
        cfg: a `LlamaConfig`, or a mapping that has "emb_dim" and "hidden_dim".
    """

    def __init__(self, cfg: Mapping[str, Any]):
        super().__init__()
        D, hidden_dim = cfg["emb_dim"], cfg["hidden_dim"]
        self.gate = nn.Linear(D, hidden_dim, bias=False)
        self.up = nn.Linear(D, hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D), by way of (B, T, F)."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


# --- The model -----------------------------------------------------------------------


class LlamaBlock(nn.Module):
    """Attention, then feed-forward, each normalised first and added to its input.

    Args:
        cfg: a `LlamaConfig`, or a mapping with the same entries.
    """

    def __init__(self, cfg: Mapping[str, Any]):
        super().__init__()
        self.att = GroupedQueryAttention(
            d_in=cfg["emb_dim"],
            num_heads=cfg["n_heads"],
            num_kv_groups=cfg["n_kv_groups"],
            head_dim=cfg["head_dim"],
        )
        self.ff = LlamaFeedForward(cfg)
        self.norm1 = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])
        self.norm2 = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        cache: Any = None,
        rotate: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Token vectors of the next block.

        Args:
            x: vectors of the T new tokens, (B, T, D).
            attention_mask: (B, S), True for a real token; None if all are.
            cache: this block's part of a cache, such as `KVCache(L).layer(0)`.
            rotate: what gives queries and keys their positions; see
                `GroupedQueryAttention.forward`.

        Returns:
            (B, T, D).

        Raises:
            ValueError: as `GroupedQueryAttention`.
        """
        x = x + self.att(self.norm1(x), attention_mask, cache, rotate)
        return x + self.ff(self.norm2(x))


class LlamaModel(nn.Module):
    """Token ids in, logits for the next token out.

    Args:
        cfg: a `LlamaConfig`, or a mapping with the same entries; kept as `self.cfg`.

    Raises:
        ValueError: a field of the config is unknown, missing or out of range.
    """

    def __init__(self, cfg: Mapping[str, Any]):
        super().__init__()
        cfg = LlamaConfig.of(cfg)
        self.cfg = cfg
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.trf_blocks = nn.ModuleList(LlamaBlock(cfg) for _ in range(cfg["n_layers"]))
        self.final_norm = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])
        if cfg["tie_weights"]:
            self.out_head = TiedHead(self.tok_emb)
        else:
            self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(
        self, idx: Tensor, attention_mask: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        """Logits for the token that follows each of the new ones.

        Args:
            idx: ids of the T new tokens, (B, T), integers from 0 to V - 1.
            attention_mask: (B, S), bool or 0/1 integers, True for a real token, False
                for padding on either side; it covers the cached tokens as well as the
                new ones, in every call. Without it all tokens are real. Positions are
                counted over real tokens only, so padding changes no answer.
            cache: a `KVCache(n_layers)` with the tokens before idx. It changes.

        Returns:
            (B, T, V), floating point. Those at padding mean nothing.

        Raises:
            ValueError, TypeError: as `GPTModel.forward`; the cache is unchanged.
        """
        past = cached_tokens(cache, self.cfg, attention_mask)
        check_idx(idx, self.cfg, past)
        positions = token_positions(idx, attention_mask, past)  # (T,) or (B, T)
        frequencies = rope_frequencies(
            self.cfg["head_dim"],
            self.cfg["rope_base"],
            self.cfg["rope_scaling"],
            idx.device,
        )
        cos, sin = rope_cos_sin(positions, frequencies)

        def rotate(heads):
            return apply_rope(heads, cos, sin)

        x = self.tok_emb(idx)  # (B, T, D)
        for i, block in enumerate(self.trf_blocks):
            part = None if cache is None else cache.layer(i)
            x = block(x, attention_mask, part, rotate)
        return self.out_head(self.final_norm(x))  # (B, T, V)


def llama_key_map(cfg: Mapping[str, Any]) -> dict[str, str]:
    """Where published weights belong: {their name: our name}, shapes alike.

    "Their" names are those of the `transformers` library and of the safetensors files
    in its format, whose queries and keys pair halves as ours do.

    Args:
        cfg: a `LlamaConfig`, or a mapping with the same entries. With tied weights no
            entry is made for the output head.
    """
    names = {"model.embed_tokens": "tok_emb", "model.norm": "final_norm"}
    if not cfg["tie_weights"]:
        names["lm_head"] = "out_head"
    parts = {
        "self_attn.q_proj": "att.W_query",
        "self_attn.k_proj": "att.W_key",
        "self_attn.v_proj": "att.W_value",
        "self_attn.o_proj": "att.out_proj",
        "mlp.gate_proj": "ff.gate",
        "mlp.up_proj": "ff.up",
        "mlp.down_proj": "ff.down",
        "input_layernorm": "norm1",
        "post_attention_layernorm": "norm2",
    }
    for i in range(cfg["n_layers"]):
        for theirs, ours in parts.items():
            names[f"model.layers.{i}.{theirs}"] = f"trf_blocks.{i}.{ours}"
    return {
        f"{theirs}.weight": f"{ours}.{'scale' if 'norm' in ours else 'weight'}"
        for theirs, ours in names.items()
    }
