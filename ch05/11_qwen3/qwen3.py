"""Qwen3: a Llama whose queries and keys are normalised, and one with experts.

Two parts of a `LlamaBlock` are exchanged (chapter 5, bonus); everything else is
imported as it is.

* `Qwen3Attention` is `GroupedQueryAttention` with a norm over each query and each key,
  head by head, before the rotation; as in Llama the width of a head is a size of its
  own, and there are no biases;
* in the models with experts `MixtureOfExperts` of chapter 4 takes the place of the
  feed-forward layer, in every block, without a shared expert.

`Qwen3Config` and `Qwen3Model` put them together; `qwen3_key_map` names the weights as
published, and `qwen3_parameters` counts them, all and those that one token meets.

Source: Yang and others, "Qwen3 Technical Report", 2025 (arXiv:2505.09388), section 2
and tables 1 and 2. Normalised queries and keys: Henry and others, 2020
(arXiv:2010.04245), and Dehghani and others, 2023 (arXiv:2302.05442), section 2. Left
out: dropout, the sliding windows and the YaRN scaling that the published settings
switch off, and experts in some blocks only, which no published size has.

>>> import torch
>>> cfg = Qwen3Config.of({**QWEN3_0_6B, "vocab_size": 50, "context_length": 64,
...     "emb_dim": 12, "n_heads": 6, "n_kv_groups": 2, "head_dim": 4, "n_layers": 2,
...     "hidden_dim": 20})
>>> _ = torch.manual_seed(0)
>>> model = Qwen3Model(cfg).eval()
>>> idx = torch.tensor([[7, 1, 4], [3, 3, 9]])  # two prompts of three tokens
>>> model(idx).shape
torch.Size([2, 3, 50])

The same with four small experts in each block, of which a token uses two:

>>> experts = Experts(num_experts=4, top_k=2, normalise=True)
>>> Qwen3Model({**cfg, "hidden_dim": 8, "experts": experts})(idx).shape
torch.Size([2, 3, 50])

The sizes are known without a byte of memory being spent:

>>> from gpt import count_parameters
>>> with torch.device("meta"):
...     count_parameters(Qwen3Model(QWEN3_0_6B))
596049920
>>> qwen3_parameters(QWEN3_30B_A3B)
(30532122624, 3353032704)

Shapes: B batch, T new tokens, D model width (`emb_dim`), H query heads (`n_heads`), G
key/value heads (`n_kv_groups`), K head width (`head_dim`), F feed-forward width or that
of one expert (`hidden_dim`), E experts, A experts of a token (`top_k`), V vocabulary, L
blocks (`n_layers`).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from gqa import GroupedQueryAttention
from llama import LlamaConfig, LlamaModel, RMSNorm, llama_key_map
from model_config import ModelConfig
from moe import MixtureOfExperts, SoftmaxRouter, moe_parameters

# --- The configuration ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Experts(ModelConfig):
    """How many experts a block has, and how many of them a token uses.

    Args:
        num_experts: E.
        top_k: A, at most E.
        normalise: whether the weights of a token's experts add up to 1, as in all
            published sizes.

    Raises:
        ValueError: a value is out of range; the message names the field.
        TypeError: a field is unknown or missing.
    """

    num_experts: int
    top_k: int
    normalise: bool

    def __post_init__(self):
        super().__post_init__()
        if self.top_k > self.num_experts:
            raise ValueError(
                f"top_k={self.top_k} of num_experts={self.num_experts}: pick fewer."
            )


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Qwen3Config(LlamaConfig):
    """The sizes of a Qwen3: those of a `LlamaConfig`, and its experts.

    Args:
        hidden_dim: width of the feed-forward part, F; with experts, of one expert.
        experts: an `Experts`, a mapping with its fields, or None for a dense model.
        others: as in `LlamaConfig`.

    Raises:
        ValueError: a value is out of range; the message names the field.
        TypeError: a field is unknown or missing.
    """

    experts: Experts | None

    def __post_init__(self):
        super().__post_init__()
        if self.experts is not None:
            object.__setattr__(self, "experts", Experts.of(self.experts))


QWEN3_0_6B = Qwen3Config(
    vocab_size=151936,
    context_length=40960,
    emb_dim=1024,
    n_heads=16,
    n_kv_groups=8,
    head_dim=128,
    n_layers=28,
    hidden_dim=3072,
    rope_base=1_000_000.0,
    rope_scaling=None,
    norm_eps=1e-6,
    tie_weights=True,
    experts=None,
)
QWEN3_1_7B = Qwen3Config.of({**QWEN3_0_6B, "emb_dim": 2048, "hidden_dim": 6144})
QWEN3_4B = Qwen3Config.of(
    {**QWEN3_0_6B, "emb_dim": 2560, "n_heads": 32, "n_layers": 36, "hidden_dim": 9728}
)
QWEN3_8B = Qwen3Config.of(
    {**QWEN3_4B, "emb_dim": 4096, "hidden_dim": 12288, "tie_weights": False}
)
QWEN3_14B = Qwen3Config.of(
    {**QWEN3_8B, "emb_dim": 5120, "n_heads": 40, "n_layers": 40, "hidden_dim": 17408}
)
QWEN3_32B = Qwen3Config.of(
    {**QWEN3_14B, "n_heads": 64, "n_layers": 64, "hidden_dim": 25600}
)
QWEN3_30B_A3B = Qwen3Config.of(
    {
        **QWEN3_8B,
        "emb_dim": 2048,
        "n_kv_groups": 4,
        "n_layers": 48,
        "hidden_dim": 768,
        "experts": Experts(num_experts=128, top_k=8, normalise=True),
    }
)
QWEN3_235B_A22B = Qwen3Config.of(
    {
        **QWEN3_30B_A3B,
        "emb_dim": 4096,
        "n_heads": 64,
        "n_layers": 94,
        "hidden_dim": 1536,
    }
)


# --- The two parts that differ -------------------------------------------------------


class Qwen3Attention(GroupedQueryAttention):
    """Grouped-query attention whose queries and keys are normalised, head by head.

    Each query and each key, K numbers of one head, is scaled to a mean square of 1 and
    then by K learned factors, the same for all heads. So no score can grow with the
    size of the projections. It happens before the rotation, which keeps lengths.

    Args:
        cfg: a `Qwen3Config`, or a mapping with the same entries.
    """

    def __init__(self, cfg: Mapping[str, Any]):
        super().__init__(
            d_in=cfg["emb_dim"],
            num_heads=cfg["n_heads"],
            num_kv_groups=cfg["n_kv_groups"],
            head_dim=cfg["head_dim"],
        )
        self.query_norm = RMSNorm(cfg["head_dim"], cfg["norm_eps"])
        self.key_norm = RMSNorm(cfg["head_dim"], cfg["norm_eps"])

    def project(
        self, x: Tensor, rotate: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, (B, H, T, K), keys and values, (B, G, T, K), of new tokens.

        The first two are normalised, and turned to their positions if `rotate` is
        given. A cache keeps the keys as they are then.
        """
        queries, keys, values = super().project(x)
        queries, keys = self.query_norm(queries), self.key_norm(keys)
        if rotate is not None:
            queries, keys = rotate(queries), rotate(keys)
        return queries, keys, values


def qwen3_experts(cfg: Mapping[str, Any]) -> MixtureOfExperts:
    """The layer of experts of one block.

    Args:
        cfg: a `Qwen3Config` with experts, or a mapping with the same entries.
    """
    router = SoftmaxRouter(cfg["emb_dim"], **cfg["experts"])
    return MixtureOfExperts(cfg["emb_dim"], cfg["hidden_dim"], router)


# --- The model -----------------------------------------------------------------------


class Qwen3Model(LlamaModel):
    """Token ids in, logits for the next token out; called as `LlamaModel` is.

    It is made as a Llama, and then each block gets its own attention, and experts if
    there are any.

    Args:
        cfg: a `Qwen3Config`, or a mapping with the same entries; kept as `self.cfg`.

    Raises:
        ValueError: a field of the config is unknown, missing or out of range.
    """

    def __init__(self, cfg: Mapping[str, Any]):
        cfg = Qwen3Config.of(cfg)
        super().__init__(cfg)
        for block in self.trf_blocks:
            block.att = Qwen3Attention(cfg)
            if cfg["experts"] is not None:
                block.ff = qwen3_experts(cfg)


def qwen3_key_map(cfg: Mapping[str, Any]) -> dict[str, str]:
    """Where published weights belong: {their name: our name}, shapes alike.

    Args:
        cfg: a `Qwen3Config`, or a mapping with the same entries. With tied weights no
            entry is made for the output head.
    """
    names = llama_key_map(cfg)
    for i in range(cfg["n_layers"]):
        theirs, ours = f"model.layers.{i}.", f"trf_blocks.{i}."
        for short, part in {"q": "query", "k": "key"}.items():
            names[f"{theirs}self_attn.{short}_norm.weight"] = (
                f"{ours}att.{part}_norm.scale"
            )
        if cfg["experts"] is None:
            continue
        names[f"{theirs}mlp.gate.weight"] = f"{ours}ff.router.scores.weight"
        for part in ("gate", "up", "down"):
            del names[f"{theirs}mlp.{part}_proj.weight"]
            for e in range(cfg["experts"]["num_experts"]):
                names[f"{theirs}mlp.experts.{e}.{part}_proj.weight"] = (
                    f"{ours}ff.experts.{e}.{part}.weight"
                )
    return names


def qwen3_parameters(cfg: Mapping[str, Any]) -> tuple[int, int]:
    """Parameters of a model, `(all, active)`: those that exist, and those in use.

    Not in use are the experts that a token is not sent to. The embedding counts whole,
    although a token reads one row of it.

    Args:
        cfg: a `Qwen3Config`, or a mapping with the same entries.
    """
    D, K, V = cfg["emb_dim"], cfg["head_dim"], cfg["vocab_size"]
    heads = 2 * cfg["n_heads"] + 2 * cfg["n_kv_groups"]  # two matrices for each kind
    feed_forward = (3 * D * cfg["hidden_dim"],) * 2  # all, active
    if cfg["experts"] is not None:
        experts = cfg["experts"]
        num_experts, top_k = experts["num_experts"], experts["top_k"]
        feed_forward = moe_parameters(D, cfg["hidden_dim"], num_experts, top_k)
    embeddings = V * D if cfg["tie_weights"] else 2 * V * D
    everything, active = (
        cfg["n_layers"] * (heads * K * D + 2 * K + 2 * D + part) + D + embeddings
        for part in feed_forward
    )
    return everything, active
