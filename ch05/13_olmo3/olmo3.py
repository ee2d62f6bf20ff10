"""Olmo 3: a Llama with norms behind its layers, windows, and a stretched rotation.

Three parts of a Llama change (chapter 5, bonus); everything else is imported as it is.

* `Olmo3Block` normalises what attention and feed-forward layer put out, not what they
  read;
* `Olmo3Attention` is `SlidingWindowAttention` with a norm over all queries of a token
  at once and one over all its keys; in three blocks of four it sees a window only;
* `yarn_frequencies` slows down the rotation of the blocks that see everything, and of
  no others, so that a model trained on short texts can be trained on for long ones.

`Olmo3Config` and `Olmo3Model` put them together, also as an Olmo 2, which has neither
windows nor a stretched rotation; `olmo3_key_map` names the weights as published.

Source: Team Olmo, "Olmo 3", 2025 (arXiv:2512.13961); Team OLMo, "2 OLMo 2 Furious",
2024 (arXiv:2501.00656), for norms behind the layers; Peng and others, 2023
(arXiv:2309.00071), for the rotation, as the `transformers` library computes it. Left
out: dropout, initialisation for training from nothing.

>>> import torch
>>> cfg = Olmo3Config.of({**OLMO3_7B, "vocab_size": 50, "context_length": 64,
...     "emb_dim": 12, "n_heads": 6, "n_kv_groups": 2, "head_dim": 2, "n_layers": 4,
...     "hidden_dim": 20, "window": 3})
>>> _ = torch.manual_seed(0)
>>> model = Olmo3Model(cfg).eval()
>>> idx = torch.tensor([[7, 1, 4, 9, 2], [3, 3, 9, 0, 1]])
>>> model(idx).shape
torch.Size([2, 5, 50])

A cache needs no more of a block than its window:

>>> from kv_cache import KVCache
>>> olmo3_windows(cfg)
[3, 3, 3, None]
>>> cache = KVCache(4, window=olmo3_windows(cfg), masked=True)
>>> with torch.no_grad():
...     torch.allclose(model(idx, cache=cache), model(idx), atol=1e-5)
True
>>> [cache.layer(i).keys.shape[2] for i in range(4)]
[3, 3, 3, 5]

The sizes are known without a byte of memory being spent:

>>> from gpt import count_parameters
>>> with torch.device("meta"):
...     count_parameters(Olmo3Model(OLMO3_7B))
7298011136

Shapes: B batch, T new tokens, S all tokens, D model width (`emb_dim`), H query heads
(`n_heads`), G key/value heads (`n_kv_groups`), K head width (`head_dim`), V vocabulary,
W window, L blocks (`n_layers`).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from argument_checks import cached_tokens, check_idx
from llama import (
    LlamaBlock,
    LlamaConfig,
    LlamaModel,
    RMSNorm,
    RopeScaling,
    apply_rope,
    llama_key_map,
    rope_cos_sin,
    rope_frequencies,
)
from model_config import check_number, token_positions
from swa import SlidingWindowAttention, layer_windows

# --- The configuration ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class YarnScaling(RopeScaling):
    """How YaRN slows down the rotation: Llama 3.1's four numbers, and a fifth.

    Frequencies that turn more than `high_freq_factor` times within the original context
    stay; those that turn less than `low_freq_factor` times are divided by `factor`;
    between the two the factor on the frequency falls in even steps from pair to pair.

    Args:
        factor: divisor of the slow frequencies, at least 1.
        low_freq_factor: turns below which a frequency is slow, above 0; "beta_slow".
        high_freq_factor: turns above which it is fast, above that; "beta_fast".
        original_context_length: tokens in a text when the frequencies were chosen.
        attention_factor: by which queries and keys are multiplied, above 0. The paper
            advises 0.1 ln(factor) + 1.

    Raises:
        ValueError: a value is out of range; the message names the field.
        TypeError: a field is unknown or missing.
    """

    attention_factor: float

    def __post_init__(self):
        check_number("attention_factor", self.attention_factor, above=0)
        super().__post_init__()


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Olmo3Config(LlamaConfig):
    """The sizes of an Olmo 3 or Olmo 2: those of a `LlamaConfig`, and its windows.

    Args:
        rope_scaling: a `YarnScaling`, a mapping with its fields, or None; for the
            blocks that see everything. Blocks with a window are never stretched.
        window: how many tokens, the token itself included, a block with a window sees,
            W; None if there is no such block, as in Olmo 2.
        full_every: every so many blocks one sees everything, the last of each round: 4
            in Olmo 3. None gives all blocks the window, if there is one.
        others: as in `LlamaConfig`.

    Raises:
        ValueError: a value is out of range; the message names the field.
        TypeError: a field is unknown or missing.
    """

    rope_scaling: YarnScaling | None
    window: int | None
    full_every: int | None

    def __post_init__(self):
        if self.rope_scaling is not None:
            object.__setattr__(self, "rope_scaling", YarnScaling.of(self.rope_scaling))
        super().__post_init__()
        olmo3_windows({**self, "n_layers": 1})  # raises if one is out of range


def olmo3_windows(cfg: Mapping[str, Any]) -> list[int | None]:
    """The window of each block, None for a block that sees everything.

    `KVCache(L, window=olmo3_windows(cfg), masked=True)` keeps no more than that.

    Args:
        cfg: an `Olmo3Config`, or a mapping with the same entries.
    """
    if cfg["window"] is None:
        return [None] * cfg["n_layers"]
    return layer_windows(cfg["n_layers"], cfg["window"], cfg["full_every"])


OLMO3_7B = Olmo3Config(
    vocab_size=100278,
    context_length=65536,
    emb_dim=4096,
    n_heads=32,
    n_kv_groups=32,
    head_dim=128,
    n_layers=32,
    hidden_dim=11008,
    rope_base=500_000.0,
    rope_scaling=YarnScaling(
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=32.0,
        original_context_length=8192,
        attention_factor=0.1 * math.log(8) + 1,
    ),
    norm_eps=1e-6,
    tie_weights=False,
    window=4096,
    full_every=4,
)
OLMO3_32B = Olmo3Config.of(
    {
        **OLMO3_7B,
        "emb_dim": 5120,
        "n_heads": 40,
        "n_kv_groups": 8,
        "n_layers": 64,
        "hidden_dim": 27648,
    }
)
OLMO2_7B = Olmo3Config.of(
    {
        **OLMO3_7B,
        "vocab_size": 100352,
        "context_length": 4096,
        "rope_scaling": None,
        "window": None,
        "full_every": None,
    }
)
OLMO2_1B = Olmo3Config.of(
    {
        **OLMO2_7B,
        "emb_dim": 2048,
        "n_heads": 16,
        "n_kv_groups": 16,
        "n_layers": 16,
        "hidden_dim": 8192,
    }
)
OLMO2_13B = Olmo3Config.of(
    {
        **OLMO2_7B,
        "emb_dim": 5120,
        "n_heads": 40,
        "n_kv_groups": 40,
        "n_layers": 40,
        "hidden_dim": 13824,
    }
)
OLMO2_32B = Olmo3Config.of(
    {**OLMO2_13B, "n_kv_groups": 8, "n_layers": 64, "hidden_dim": 27648}
)


# --- The three changes ---------------------------------------------------------------


def yarn_frequencies(
    head_dim: int,
    base: float,
    scaling: Mapping[str, Any],
    device: torch.device | None = None,
) -> Tensor:
    """As `rope_frequencies`, slowed down by YaRN.

    The first pair that is slowed at all is the one that turns `high_freq_factor` times
    within the original context, rounded down; the first that is divided by the whole
    factor is the one that turns `low_freq_factor` times, rounded up.

    Args:
        head_dim: width of a head, K, even.
        base: the base, such as 500,000.
        scaling: a `YarnScaling`, or a mapping with the same entries.
        device: where to put them.

    Returns:
        (K / 2,), float32.

    Source: Peng and others, 2023, section 3.2, with the pairs counted instead of the
    turns, as in the code released with it.
    """
    frequencies = rope_frequencies(head_dim, base, None, device)  # (K / 2,)
    context = scaling["original_context_length"]

    def pair_with(turns):  # which turns so often; not a whole number
        ratio = math.log(context / (turns * 2 * math.pi)) / math.log(base)
        return head_dim * ratio / 2

    first = max(math.floor(pair_with(scaling["high_freq_factor"])), 0)
    last = min(math.ceil(pair_with(scaling["low_freq_factor"])), head_dim - 1)
    pairs = torch.arange(head_dim // 2, device=device).float()
    kept = 1 - ((pairs - first) / max(last - first, 0.001)).clamp(0, 1)
    return frequencies / scaling["factor"] * (1 - kept) + frequencies * kept


class Olmo3Attention(SlidingWindowAttention):
    """Attention within a window, whose queries and keys are normalised.

    All queries of a token, H K numbers, are scaled to a mean square of 1 together, and
    then by H K learned factors; so are its G K keys. It happens before the rotation.

    Args:
        cfg: an `Olmo3Config`, or a mapping with the same entries.
        window: W; None for a block that sees everything.
    """

    def __init__(self, cfg: Mapping[str, Any], window: int | None):
        super().__init__(
            d_in=cfg["emb_dim"],
            window=cfg["context_length"] if window is None else window,
            num_heads=cfg["n_heads"],
            num_kv_groups=cfg["n_kv_groups"],
            head_dim=cfg["head_dim"],
        )
        K = cfg["head_dim"]
        self.query_norm = RMSNorm(cfg["n_heads"] * K, cfg["norm_eps"])
        self.key_norm = RMSNorm(cfg["n_kv_groups"] * K, cfg["norm_eps"])

    def project(
        self, x: Tensor, rotate: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, (B, H, T, K), keys and values, (B, G, T, K), of new tokens.

        The first two are normalised, and turned to their positions if `rotate` is
        given. A cache keeps the keys as they are then.
        """
        queries = self.split_heads(self.query_norm(self.W_query(x)))
        keys = self.split_heads(self.key_norm(self.W_key(x)))
        values = self.split_heads(self.W_value(x))
        if rotate is not None:
            queries, keys = rotate(queries), rotate(keys)
        return queries, keys, values


class Olmo3Block(LlamaBlock):
    """A block that normalises what its two layers put out.

    So each adds a vector of a size that is learned, whatever the size of what it read:
    the sum grows by no more than that from block to block.

    Args:
        cfg: an `Olmo3Config`, or a mapping with the same entries.
        window: as in `Olmo3Attention`.
    """

    def __init__(self, cfg: Mapping[str, Any], window: int | None):
        super().__init__(cfg)
        self.att = Olmo3Attention(cfg, window)

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        cache: Any = None,
        rotate: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """As `LlamaBlock.forward`."""
        x = x + self.norm1(self.att(x, attention_mask, cache, rotate))
        return x + self.norm2(self.ff(x))


# --- The model -----------------------------------------------------------------------


class Olmo3Model(LlamaModel):
    """Token ids in, logits for the next token out; called as `LlamaModel` is.

    Args:
        cfg: an `Olmo3Config`, or a mapping with the same entries; kept as `self.cfg`.

    Raises:
        ValueError: a field of the config is unknown, missing or out of range.
    """

    def __init__(self, cfg: Mapping[str, Any]):
        cfg = Olmo3Config.of(cfg)
        super().__init__(cfg)
        self.windows = olmo3_windows(cfg)
        self.trf_blocks = nn.ModuleList(Olmo3Block(cfg, one) for one in self.windows)

    def rotation(
        self, positions: Tensor, window: int | None
    ) -> Callable[[Tensor], Tensor]:
        """What turns queries and keys, (B, heads, T, K), of a block to their positions.

        Args:
            positions: whole numbers from 0, (T,) or (B, T).
            window: of the block; with one it is not stretched.
        """
        K, base, scaling = (
            self.cfg[name] for name in ("head_dim", "rope_base", "rope_scaling")
        )
        if window is None and scaling is not None:
            frequencies = yarn_frequencies(K, base, scaling, positions.device)
            factor = scaling["attention_factor"]
        else:
            frequencies = rope_frequencies(K, base, None, positions.device)
            factor = 1.0
        cos, sin = (factor * part for part in rope_cos_sin(positions, frequencies))
        return lambda heads: apply_rope(heads, cos, sin)

    def forward(
        self, idx: Tensor, attention_mask: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        """Logits for the token that follows each of the new ones.

        Args:
            idx, attention_mask: as in `LlamaModel.forward`. A window is counted over
                real tokens, too; `transformers` counts places, so that padding within a
                text takes room in it there.
            cache: a `KVCache(n_layers)`, or `KVCache(n_layers,
                window=olmo3_windows(cfg), masked=True)`, with the tokens before idx. It
                changes.

        Returns:
            (B, T, V), floating point. Those at padding mean nothing.

        Raises:
            ValueError, TypeError: as `LlamaModel.forward`; the cache is unchanged.
        """
        past = cached_tokens(cache, self.cfg, attention_mask)
        check_idx(idx, self.cfg, past)
        positions = token_positions(idx, attention_mask, past)  # (T,) or (B, T)
        rotations = {
            window: self.rotation(positions, window) for window in set(self.windows)
        }
        x = self.tok_emb(idx)  # (B, T, D)
        for i, block in enumerate(self.trf_blocks):
            part = None if cache is None else cache.layer(i)
            x = block(x, attention_mask, part, rotations[self.windows[i]])
        return self.out_head(self.final_norm(x))  # (B, T, V)


def olmo3_key_map(cfg: Mapping[str, Any]) -> dict[str, str]:
    """Where published weights belong: {their name: our name}, shapes alike.

    One name stands for different things: "post_attention_layernorm" is in a Llama the
    norm of what the feed-forward layer reads, here of what attention puts out.

    Args:
        cfg: an `Olmo3Config`, or a mapping with the same entries. With tied weights no
            entry is made for the output head.
    """
    names = {}
    for theirs, ours in llama_key_map(cfg).items():
        theirs = theirs.replace("post_attention_layer", "post_feedforward_layer")
        names[theirs.replace("input_layer", "post_attention_layer")] = ours
    for i in range(cfg["n_layers"]):
        for short, part in {"q": "query", "k": "key"}.items():
            theirs = f"model.layers.{i}.self_attn.{short}_norm.weight"
            names[theirs] = f"trf_blocks.{i}.att.{part}_norm.scale"
    return names
