"""Qwen3 from the files in which it is published: support.

A folder on the model hub holds `config.json`, the weights in safetensors files, and the
vocabulary. All of it is read as for a Llama, by `family_files`; here is what differs.

* `QWEN3` is the `Family`: its settings, dense or with experts, names and tokenizer;
* `published_qwen3_config` reads settings, and `qwen3_settings` writes them;
* `load_qwen3_from_safetensors` and `load_qwen3_folder` make the model, one tensor at a
  time;
* `load_qwen3_tokenizer` reads the vocabulary from any of its three forms.

Source: the files published with the models (Apache-2.0). Left out: files quantised to 8
or 4 bits.

The settings published with Qwen3-0.6B, those of them that matter here:

>>> from qwen3 import QWEN3_0_6B
>>> settings = {
...     "model_type": "qwen3", "vocab_size": 151936, "max_position_embeddings": 40960,
...     "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
...     "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
...     "hidden_act": "silu", "rms_norm_eps": 1e-06, "rope_theta": 1000000,
...     "rope_scaling": None, "tie_word_embeddings": True, "use_sliding_window": False}
>>> published_qwen3_config(settings) == QWEN3_0_6B
True

Nothing is guessed for what is not there: `head_dim` is not D / H.

>>> del settings["head_dim"]
>>> published_qwen3_config(settings)
Traceback (most recent call last):
    ...
ValueError: The settings lack 'head_dim': take config.json as it was published.

Shapes: D model width, K head width, E experts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from family_files import Family, block_problem
from family_settings import FULL, read_setting, read_sizes, written_sizes
from llama_files import LLAMA, llama_rotation
from qwen3 import Experts, Qwen3Config, Qwen3Model, qwen3_key_map
from qwen3_tokenizer import QWEN3_SPECIAL, Qwen3Encoding
from safetensors_files import fetch_model
from vocabulary_files import read_json_ranks, read_ranks, tokenizer_beside

# --- Settings ------------------------------------------------------------------------


def _read(settings):
    """The `Qwen3Config` of checked settings."""
    kinds = settings.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != FULL for kind in kinds):
        raise ValueError(
            f"The settings ask for layer_types={kinds!r:.80}, but Qwen3Model has only "
            f"layers of the type {FULL!r}."
        )
    experts = None
    if settings["model_type"] == "qwen3_moe":
        width = read_setting(settings, "moe_intermediate_size", int)
        settings = {**settings, "intermediate_size": width}
        experts = Experts(
            num_experts=_number_of_experts(settings),
            top_k=read_setting(settings, "num_experts_per_tok", int),
            # True in every published size, false where it is missing.
            normalise=read_setting(settings, "norm_topk_prob", bool),
        )
    rotation = llama_rotation(settings)
    return Qwen3Config(**read_sizes(settings), **rotation, experts=experts)


def _number_of_experts(settings):
    """Under its name of today or the older one; both must say the same."""
    names = ("num_experts", "num_local_experts")
    found = [settings[name] for name in names if name in settings]
    if not found or found[0] != found[-1]:
        raise ValueError(
            f"The settings give {found or 'no'} numbers of experts in 'num_experts' "
            "and 'num_local_experts': take config.json as it was published."
        )
    return found[0]


def qwen3_settings(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a `config.json` for a model of the course; the way back.

    Args:
        cfg: a `Qwen3Config`, or a mapping with the same entries.

    Raises:
        ValueError: the rotation is scaled, as in no published size.
    """
    if cfg["rope_scaling"] is not None:
        raise ValueError("rope_scaling has no place in these settings: take None.")
    rotation = {"rope_theta": cfg["rope_base"], "rope_type": "default"}
    settings = {**written_sizes(cfg), "rope_parameters": rotation}
    if cfg["experts"] is None:
        return {"model_type": "qwen3", **settings}
    return {
        "model_type": "qwen3_moe",
        **settings,
        "moe_intermediate_size": cfg["hidden_dim"],
        "num_experts": cfg["experts"]["num_experts"],
        "num_experts_per_tok": cfg["experts"]["top_k"],
        "norm_topk_prob": cfg["experts"]["normalise"],
        "experts_implementation": "eager",  # of transformers, for any size
    }


# --- Weights -------------------------------------------------------------------------


def _outline_problem(tensors, cfg):
    """As `block_problem`, and what is wrong with the number of experts."""
    problem = block_problem(tensors, cfg)
    if problem or cfg["experts"] is None:
        return problem
    found = {name.split(".")[5] for name in tensors if ".mlp.experts." in name}
    if not all(map(str.isdecimal, found)):
        return (
            "the experts of a block are joined in one tensor: take the published "
            "files, in which each has three of its own."
        )
    wanted = cfg["experts"]["num_experts"]
    if len(found) == wanted:
        return ""
    return (
        f"the files hold {len(found)} experts in a block, but config.json asks for "
        f"{wanted}: take all files of one model."
    )


# --- Vocabulary ----------------------------------------------------------------------


def load_qwen3_tokenizer(path: str | Path | None = None) -> Qwen3Encoding:
    """The tokenizer of all Qwen3 models.

    The published vocabulary needs no list of merges: a token's id says how early it is
    merged.

    Args:
        path: `tokenizer.json` or `vocab.json` as published, or a list of tokens in
            base64 with their ranks, such as `qwen.tiktoken`; None fetches the last.

    Raises:
        ValueError: the file is not there, damaged or of another kind.
    """
    if path is None:
        path = fetch_model("qwen3-vocabulary", "give the path of qwen.tiktoken.")
    path = Path(path)
    if path.suffix == ".json":
        return Qwen3Encoding(read_json_ranks(path, QWEN3_SPECIAL, "Qwen3"))
    return Qwen3Encoding(read_ranks(path, "take the vocabulary published with Qwen3"))


# --- All of it -----------------------------------------------------------------------

QWEN3 = Family(
    name="Qwen3",
    model_types=("qwen3", "qwen3_moe"),
    own_config=Qwen3Config,
    model=Qwen3Model,
    key_map=qwen3_key_map,
    read=_read,
    needed=(
        "head_dim",  # which is not D / H
        "num_key_value_heads",
        "rms_norm_eps",
        "tie_word_embeddings",
    ),
    refused={  # what no published size asks for
        **LLAMA.refused,
        "use_sliding_window": (False, None),
        "decoder_sparse_step": (1,),
        "mlp_only_layers": ([], None),
        "shared_expert_intermediate_size": (0, None),
        "quantization_config": (None,),
    },
    outline_problem=_outline_problem,
    tokenizer=tokenizer_beside(
        ["tokenizer.json", "vocab.json", "qwen.tiktoken"], load_qwen3_tokenizer
    ),
)
published_qwen3_config = QWEN3.config
load_qwen3_from_safetensors = QWEN3.load_model
load_qwen3_folder = QWEN3.load
