"""Gemma 3: most layers look back only so far, and every part is normalised twice.

What differs from a Llama (chapter 5, bonus); everything else is imported as it is.

* `Gemma3Norm` is `RMSNorm` whose factors are 1 + what is learned;
* `Gemma3Attention` is `SlidingWindowAttention` of chapter 4 with normalised queries and
  keys, as in Qwen3, and a scale of its own for the queries;
* `Gemma3FeedForward` has GELU at its gate;
* `Gemma3Block` normalises what goes into each part and what comes out of it;
* `Gemma3Model` scales the embedding, and turns queries and keys faster in its local
  layers than in its global ones.

`Gemma3Config` holds the sizes, `gemma3_cache` makes a cache in which the local layers
keep one window, and `gemma3_key_map` names the weights as published.

Source: Gemma Team, "Gemma 3 Technical Report", 2025 (arXiv:2503.19786), section 2 and
table 1; Gemma Team, "Gemma 2", 2024 (arXiv:2408.00118), section 2, for the norms; the
configurations published with the models. The gate is Shazeer's GEGLU, 2020
(arXiv:2002.05202), the longer context that of Chen and others, 2023 (arXiv:2306.15595).
Left out: images, the capped scores of Gemma 2, and attention in both directions, which
no published text model uses.

>>> import torch
>>> cfg = Gemma3Config.of({**GEMMA3_270M, "vocab_size": 50, "context_length": 64,
...     "emb_dim": 12, "n_heads": 6, "n_kv_groups": 2, "head_dim": 4, "n_layers": 3,
...     "hidden_dim": 20, "window": 4, "full_every": 3})
>>> _ = torch.manual_seed(0)
>>> model = Gemma3Model(cfg).eval()
>>> idx = torch.tensor([[7, 1, 4, 1, 5, 9], [3, 3, 9, 2, 0, 2]])
>>> model(idx).shape
torch.Size([2, 6, 50])

Token by token with a cache, of which two layers of three hold four tokens at most:

>>> cache = gemma3_cache(cfg)
>>> with torch.no_grad():
...     steps = [model(part, cache=cache) for part in idx.split(1, dim=1)]
>>> torch.allclose(torch.cat(steps, dim=1), model(idx), atol=1e-5)
True
>>> [cache.layer(i).held for i in range(3)]
[4, 4, 6]

The sizes are known without a byte of memory being spent:

>>> from gpt import count_parameters
>>> with torch.device("meta"):
...     count_parameters(Gemma3Model(GEMMA3_270M))
268098176

Shapes: B batch, T new tokens, D model width (`emb_dim`), H query heads (`n_heads`), G
key/value heads (`n_kv_groups`), K head width (`head_dim`), F feed-forward width
(`hidden_dim`), W window, V vocabulary, L blocks (`n_layers`).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argument_checks import cached_tokens, check_idx
from kv_cache import KVCache
from llama import (
    LlamaConfig,
    LlamaFeedForward,
    LlamaModel,
    RMSNorm,
    apply_rope,
    rope_cos_sin,
    rope_frequencies,
)
from model_config import check_number, token_positions
from qwen3 import qwen3_key_map
from swa import SlidingWindowAttention, layer_windows

# --- The configuration ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Gemma3Config(LlamaConfig):
    """The sizes of a Gemma 3: those of a `LlamaConfig`, and its two kinds of layers.

    Args:
        window: W, how many tokens a local layer sees, the token itself included.
        full_every: every so many layers one is global and sees everything; 6 is five
            local layers to a global one.
        rope_base: the base of the rotation in global layers, above 1.
        rope_factor: by how much global layers turn more slowly than their base says: 8
            where training went on with a context eight times as long, else 1.
        local_rope_base: the base in local layers, above 1.
        query_scale: queries are divided by the square root of it; mostly K.
        rope_scaling: None; the scaling of Llama 3 is another one.
        others: as in `LlamaConfig`.

    Raises:
        ValueError: a value is out of range; the message names the field.
        TypeError: a field is unknown or missing.
    """

    window: int
    full_every: int
    rope_factor: float
    local_rope_base: float
    query_scale: int

    def __post_init__(self):
        check_number("rope_factor", self.rope_factor, above=0)
        check_number("local_rope_base", self.local_rope_base, above=1)
        super().__post_init__()
        if self.rope_scaling is not None:
            raise ValueError(
                "rope_scaling is that of Llama 3: give None, and the divisor of all "
                "frequencies as rope_factor."
            )


GEMMA3_270M = Gemma3Config(
    vocab_size=262144,
    context_length=32768,
    emb_dim=640,
    n_heads=4,
    n_kv_groups=1,
    head_dim=256,
    n_layers=18,
    hidden_dim=2048,
    rope_base=1_000_000.0,
    rope_scaling=None,
    norm_eps=1e-6,
    tie_weights=True,
    window=512,
    full_every=6,
    rope_factor=1.0,
    local_rope_base=10_000.0,
    query_scale=256,
)
GEMMA3_1B = Gemma3Config.of(
    {**GEMMA3_270M, "emb_dim": 1152, "n_layers": 26, "hidden_dim": 6912}
)
# The text part of models that also see; 64 more tokens stand for images.
GEMMA3_4B = Gemma3Config.of(
    {
        **GEMMA3_1B,
        "vocab_size": 262208,
        "context_length": 131072,
        "emb_dim": 2560,
        "n_heads": 8,
        "n_kv_groups": 4,
        "n_layers": 34,
        "hidden_dim": 10240,
        "window": 1024,
        "rope_factor": 8.0,
    }
)
GEMMA3_12B = Gemma3Config.of(
    {
        **GEMMA3_4B,
        "emb_dim": 3840,
        "n_heads": 16,
        "n_kv_groups": 8,
        "n_layers": 48,
        "hidden_dim": 15360,
    }
)
GEMMA3_27B = Gemma3Config.of(
    {
        **GEMMA3_12B,
        "emb_dim": 5376,
        "n_heads": 32,
        "n_kv_groups": 16,
        "head_dim": 128,
        "n_layers": 62,
        "hidden_dim": 21504,
        "query_scale": 168,  # D / H, which is not K
    }
)


# --- The parts that differ -----------------------------------------------------------


class Gemma3Norm(RMSNorm):
    """`RMSNorm` whose factors are 1 + `scale`; a fresh one changes no direction.

    So weight decay draws a factor to 1 instead of 0, and where it is near 1, 16 bits
    keep more of its digits.

    Args:
        emb_dim: width of a vector, D.
        eps: what is added to the mean square, under the root.
    """

    def __init__(self, emb_dim: int, eps: float):
        super().__init__(emb_dim, eps)
        self.scale = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D), of the same dtype; all in float32 (float64 stays)."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean_square = wide.square().mean(dim=-1, keepdim=True)  # (..., 1)
        normalised = wide * torch.rsqrt(mean_square + self.eps)
        return (normalised * (1 + self.scale.to(wide.dtype))).to(x.dtype)


class Gemma3Attention(SlidingWindowAttention):
    """Attention within a window, whose queries and keys are normalised.

    Args:
        cfg: a `Gemma3Config`, or a mapping with the same entries.
        window: W, or None for a global layer, whose window is the whole context.
    """

    def __init__(self, cfg: Mapping[str, Any], window: int | None):
        super().__init__(
            cfg["emb_dim"],
            window=cfg["context_length"] if window is None else window,
            num_heads=cfg["n_heads"],
            num_kv_groups=cfg["n_kv_groups"],
            head_dim=cfg["head_dim"],
        )
        self.query_norm = Gemma3Norm(cfg["head_dim"], cfg["norm_eps"])
        self.key_norm = Gemma3Norm(cfg["head_dim"], cfg["norm_eps"])
        # `attend` divides by the square root of K, the model by that of `query_scale`.
        self.query_factor = (cfg["head_dim"] / cfg["query_scale"]) ** 0.5

    def project(
        self, x: Tensor, rotate: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, (B, H, T, K), keys and values, (B, G, T, K), of new tokens.

        The first two are normalised, and turned to their positions if `rotate` is
        given.
        """
        queries, keys, values = super().project(x)
        queries = self.query_norm(queries) * self.query_factor
        keys = self.key_norm(keys)
        if rotate is not None:
            queries, keys = rotate(queries), rotate(keys)
        return queries, keys, values


class Gemma3FeedForward(LlamaFeedForward):
    """A feed-forward layer whose gate is GELU in place of SiLU.

    Args:
        cfg: a `Gemma3Config`, or a mapping that has "emb_dim" and "hidden_dim".
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D), by way of (B, T, F); GELU in its tanh form."""
        gate = F.gelu(self.gate(x), approximate="tanh")
        return self.down(gate * self.up(x))


class Gemma3Block(nn.Module):
    """Attention, then feed-forward, each normalised before and after.

    Args:
        cfg: a `Gemma3Config`, or a mapping with the same entries.
        window: W of a local block, None for a global one.
    """

    def __init__(self, cfg: Mapping[str, Any], window: int | None):
        super().__init__()
        self.is_local = window is not None
        self.att = Gemma3Attention(cfg, window)
        self.ff = Gemma3FeedForward(cfg)
        self.norm1 = Gemma3Norm(cfg["emb_dim"], cfg["norm_eps"])
        self.norm1_after = Gemma3Norm(cfg["emb_dim"], cfg["norm_eps"])
        self.norm2 = Gemma3Norm(cfg["emb_dim"], cfg["norm_eps"])
        self.norm2_after = Gemma3Norm(cfg["emb_dim"], cfg["norm_eps"])

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        cache: Any = None,
        rotate: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Token vectors of the next block, (B, T, D); called as `LlamaBlock` is."""
        context = self.att(self.norm1(x), attention_mask, cache, rotate)
        x = x + self.norm1_after(context)
        return x + self.norm2_after(self.ff(self.norm2(x)))


# --- The model -----------------------------------------------------------------------


class Gemma3Model(LlamaModel):
    """Token ids in, logits for the next token out; called as `LlamaModel` is.

    It is made as a Llama, and then gets its own blocks and its own last norm. A
    `KVCache(n_layers)` keeps everything, one from `gemma3_cache` what is seen again.

    Args:
        cfg: a `Gemma3Config`, or a mapping with the same entries; kept as `self.cfg`.

    Raises:
        ValueError: a field of the config is unknown, missing or out of range.
    """

    def __init__(self, cfg: Mapping[str, Any]):
        cfg = Gemma3Config.of(cfg)
        super().__init__(cfg)
        self.trf_blocks = nn.ModuleList(
            Gemma3Block(cfg, window) for window in gemma3_windows(cfg)
        )
        self.final_norm = Gemma3Norm(cfg["emb_dim"], cfg["norm_eps"])

    def forward(
        self, idx: Tensor, attention_mask: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        """Logits for the token that follows each of the new ones, (B, T, V).

        Args, errors: as `LlamaModel.forward`. A cache of `gemma3_cache` takes no
            attention mask.
        """
        past = cached_tokens(cache, self.cfg, attention_mask)
        check_idx(idx, self.cfg, past)
        positions = token_positions(idx, attention_mask, past)  # (T,) or (B, T)

        def rotation(base, factor):
            turns = rope_frequencies(self.cfg["head_dim"], base, None, idx.device)
            cos, sin = rope_cos_sin(positions, turns / factor)
            return lambda heads: apply_rope(heads, cos, sin)

        near = rotation(self.cfg["local_rope_base"], 1.0)
        far = rotation(self.cfg["rope_base"], self.cfg["rope_factor"])
        x = self.tok_emb(idx)  # (B, T, D)
        # The factor is a number of the weights' dtype: in bfloat16 it is rounded first.
        root = self.cfg["emb_dim"] ** 0.5
        x = x * torch.full((), root, dtype=x.dtype, device=x.device)
        for i, block in enumerate(self.trf_blocks):
            part = None if cache is None else cache.layer(i)
            x = block(x, attention_mask, part, near if block.is_local else far)
        return self.out_head(self.final_norm(x))  # (B, T, V)


def gemma3_windows(cfg: Mapping[str, Any]) -> list[int | None]:
    """The window of each layer, None for a global one."""
    return layer_windows(cfg["n_layers"], cfg["window"], cfg["full_every"])


def gemma3_cache(cfg: Mapping[str, Any]) -> KVCache:
    """An empty cache for one text, in which a local layer holds W tokens at most.

    Args:
        cfg: a `Gemma3Config`, or a mapping with the same entries.
    """
    return KVCache(cfg["n_layers"], window=gemma3_windows(cfg), masked=True)


def gemma3_key_map(cfg: Mapping[str, Any]) -> dict[str, str]:
    """Where published weights belong: {their name: our name}, shapes alike.

    `post_attention_layernorm` stands after the attention here; in files of a Llama the
    same name means the norm before the feed-forward part.

    Args:
        cfg: a `Gemma3Config`, or a mapping with the same entries. With tied weights no
            entry is made for the output head.
    """
    names = qwen3_key_map({**cfg, "experts": None})
    parts = {
        "post_attention_layernorm": "norm1_after",
        "pre_feedforward_layernorm": "norm2",
        "post_feedforward_layernorm": "norm2_after",
    }
    for i in range(cfg["n_layers"]):
        for theirs, ours in parts.items():
            names[f"model.layers.{i}.{theirs}.weight"] = f"trf_blocks.{i}.{ours}.scale"
    return names
