"""Qwen3 from the files in which it is published: support.

A folder on the model hub holds `config.json`, the weights in safetensors files, and the
vocabulary. Names, shapes and sizes are checked as for a Llama, by `llama_files`; here
is what differs.

* `published_qwen3_config` reads the settings of the dense and the mixed models;
* `load_qwen3_from_safetensors` and `load_qwen3_folder` make the model, one tensor at a
  time;
* `load_qwen3_tokenizer` reads the vocabulary from any of its three forms;
* `QWEN3` is what `load_pretrained` asks of a family.

Source: the files published with the models (Apache-2.0). Left out: files quantised to 8
or 4 bits.

The settings published with Qwen3-0.6B, those of them that matter here:

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

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from bpe import byte_alphabet
from hub_tokenizers import NoTokenizer, read_json
from llama_files import (
    Family,
    block_problem,
    llama_shapes,
    load_from_safetensors,
    published_config,
    read_ranks,
)
from qwen3 import QWEN3_0_6B, Experts, Qwen3Config, Qwen3Model, qwen3_key_map
from qwen3_tokenizer import QWEN3_SPECIAL, Qwen3Encoding
from safetensors_files import fetch_model

__all__ = [
    "QWEN3",
    "QWEN3_0_6B",
    "load_qwen3_folder",
    "load_qwen3_from_safetensors",
    "published_qwen3_config",
    "qwen3_folder_tokenizer",
    "qwen3_settings",
    "qwen3_shapes",
    "load_qwen3_tokenizer",
]

# --- Settings ------------------------------------------------------------------------

_NEEDED = ("head_dim", "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings")
_NEEDED_WITH_EXPERTS = (
    "moe_intermediate_size",
    "num_experts_per_tok",
    "norm_topk_prob",  # true in every published size, false where it is missing
)
# What no published size asks for. A setting that is missing means the same.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "use_sliding_window": (False, None),
    "decoder_sparse_step": (1,),
    "mlp_only_layers": ([], None),
    "shared_expert_intermediate_size": (0, None),
    "quantization_config": (None,),
}


def published_qwen3_config(settings: Mapping[str, Any]) -> Qwen3Config:
    """The `Qwen3Config` that a published `config.json` describes.

    Args:
        settings: the content of the file, a mapping, of the model type "qwen3" or
            "qwen3_moe", in the form of any version of the `transformers` library.

    Raises:
        ValueError: a setting is missing, of another kind or out of range, or asks for
            something that `Qwen3Model` does not do; the message names it.
    """
    kind = settings.get("model_type") if isinstance(settings, Mapping) else None
    if kind not in ("qwen3", "qwen3_moe"):
        raise ValueError(
            f"The settings are of model type {kind!r}, and this is for 'qwen3' and "
            "'qwen3_moe': other architectures have parts that Qwen3Model lacks."
        )
    _check_settings(settings, _NEEDED if kind == "qwen3" else _NEEDED_WITH_EXPERTS)
    experts, width = None, {}
    if kind == "qwen3_moe":
        width = {"intermediate_size": settings["moe_intermediate_size"]}
        experts = Experts(
            num_experts=_number_of_experts(settings),
            top_k=settings["num_experts_per_tok"],
            normalise=settings["norm_topk_prob"],
        )
    sizes = published_config({**settings, "model_type": "llama", **width})
    return Qwen3Config(**sizes, experts=experts)


def qwen3_settings(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a `config.json` for a model of the course; the way back.

    Args:
        cfg: a `Qwen3Config`, or a mapping with the same entries.

    Raises:
        ValueError: the rotation is scaled, as in no published size.
    """
    if cfg["rope_scaling"] is not None:
        raise ValueError("rope_scaling has no place in these settings: take None.")
    settings: dict[str, Any] = {
        "model_type": "qwen3",
        "vocab_size": cfg["vocab_size"],
        "hidden_size": cfg["emb_dim"],
        "intermediate_size": cfg["hidden_dim"],
        "num_hidden_layers": cfg["n_layers"],
        "num_attention_heads": cfg["n_heads"],
        "num_key_value_heads": cfg["n_kv_groups"],
        "head_dim": cfg["head_dim"],
        "max_position_embeddings": cfg["context_length"],
        "rms_norm_eps": cfg["norm_eps"],
        "rope_parameters": {"rope_theta": cfg["rope_base"], "rope_type": "default"},
        "tie_word_embeddings": cfg["tie_weights"],
    }
    if cfg["experts"] is not None:
        settings |= {
            "model_type": "qwen3_moe",
            "moe_intermediate_size": cfg["hidden_dim"],
            "num_experts": cfg["experts"]["num_experts"],
            "num_experts_per_tok": cfg["experts"]["top_k"],
            "norm_topk_prob": cfg["experts"]["normalise"],
            "experts_implementation": "eager",  # of transformers, for any size
        }
    return settings


def _check_settings(settings, needed):
    for name in (*_NEEDED, *needed):
        if settings.get(name) is None:
            raise ValueError(
                f"The settings lack {name!r}: take config.json as it was published."
            )
    for name, meant in _REFUSED.items():
        if settings.get(name, meant[0]) not in meant:
            raise ValueError(
                f"The settings ask for {name}={settings[name]!r:.80}, but Qwen3Model "
                f"has only {meant[0]!r}."
            )
    kinds = settings.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise ValueError(
            f"The settings ask for layer_types={kinds!r:.80}, but Qwen3Model has only "
            "layers of the type 'full_attention'."
        )


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


# --- Weights -------------------------------------------------------------------------


def qwen3_shapes(cfg: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """{name in `Qwen3Model`: its shape}, from the config alone; no model is made."""
    part = {  # of one block: they are all alike
        name.split(".")[-2]: shape
        for name, shape in llama_shapes({**cfg, "n_layers": 1}).items()
    }
    part["query_norm"] = part["key_norm"] = (cfg["head_dim"],)
    if cfg["experts"] is not None:
        part["scores"] = (cfg["experts"]["num_experts"], cfg["emb_dim"])
    return {name: part[name.split(".")[-2]] for name in qwen3_key_map(cfg).values()}


def _outline_problem(tensors: Iterable[str], cfg: Mapping[str, Any]) -> str:
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


def load_qwen3_from_safetensors(
    folder: str | Path, dtype: torch.dtype = torch.bfloat16
) -> Qwen3Model:
    """The model in a folder of published files; as `load_llama_from_safetensors`."""
    return load_from_safetensors(folder, dtype, QWEN3)


def load_qwen3_folder(
    folder: str | Path, dtype: torch.dtype = torch.float32
) -> tuple[Qwen3Model, Any]:
    """The model and the tokenizer in a folder of published files.

    Args:
        folder: as for `load_llama_from_safetensors`, with `tokenizer.json`,
            `vocab.json` or `qwen.tiktoken` in it.
        dtype: of the weights, a floating-point dtype, whatever the files hold.

    Raises:
        ValueError: as `load_qwen3_from_safetensors` and `qwen3_folder_tokenizer`.
    """
    model = load_qwen3_from_safetensors(folder, dtype)
    return model, qwen3_folder_tokenizer(Path(folder), model.cfg["vocab_size"])


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
        return Qwen3Encoding(_ranks_of_json(path))
    return Qwen3Encoding(read_ranks(path, "take the vocabulary published with Qwen3"))


def qwen3_folder_tokenizer(folder: Path, vocab_size: int) -> Any:
    """The tokenizer in a folder, or a `NoTokenizer` if there is none.

    Raises:
        ValueError: as `load_qwen3_tokenizer`, or it has more tokens than the model.
    """
    names = ("tokenizer.json", "vocab.json", "qwen.tiktoken")
    there = [folder / name for name in names if (folder / name).exists()]
    if not there:
        return NoTokenizer(
            f"There is no tokenizer in {folder}: put tokenizer.json beside the weights."
        )
    tokenizer = load_qwen3_tokenizer(there[0])
    if tokenizer.n_vocab > vocab_size:
        raise ValueError(
            f"{there[0]}: it has {tokenizer.n_vocab} tokens, but the model only "
            f"{vocab_size}: the files belong to different models."
        )
    return tokenizer


def _ranks_of_json(path):
    """{bytes of a token: its id} of a `tokenizer.json` or a `vocab.json`."""
    content, alphabet = read_json(path), byte_alphabet()
    try:
        added = {token["content"]: token["id"] for token in content["added_tokens"]}
        vocabulary = content["model"]["vocab"]
    except (KeyError, TypeError):
        added, vocabulary = None, content
    try:
        ranks = {
            bytes(alphabet[character] for character in token): id
            for token, id in vocabulary.items()
        }
        gapless = sorted(ranks.values()) == list(range(len(vocabulary)))
    except (KeyError, TypeError, AttributeError):
        ranks, gapless = {}, False
    whole = gapless and all(bytes([byte]) in ranks for byte in range(256))
    special = {name: len(ranks) + i for i, name in enumerate(QWEN3_SPECIAL)}
    more = sorted(map(str, set(added or ()) - set(special)))
    if whole and more:
        raise ValueError(
            f"{path}: it has {len(more)} special tokens more than Qwen3, such as "
            f"{more[0]!r}, which Qwen3Encoding lacks."
        )
    if not whole or added not in (None, special):
        raise ValueError(
            f"{path}: it is not the vocabulary of Qwen3, whose ids run from 0 up and "
            f"end with {len(QWEN3_SPECIAL)} special tokens: download it again."
        )
    return ranks


# --- All of it, for `load_pretrained` ------------------------------------------------

QWEN3 = Family(
    name="Qwen3",
    model_types=("qwen3", "qwen3_moe"),
    config=published_qwen3_config,
    own_config=Qwen3Config,
    model=Qwen3Model,
    key_map=qwen3_key_map,
    shapes=qwen3_shapes,
    outline_problem=_outline_problem,
    tokenizer=qwen3_folder_tokenizer,
)
