"""Gemma 3 from the files in which it is published: support.

A folder on the model hub holds `config.json`, the weights in safetensors files, and
`tokenizer.json`; a GGUF file holds all of it. Both are read as for a Llama, by
`family_files` and `gguf_models`; here is what differs.

* `GEMMA3` is the `Family`: its settings, names and tokenizer;
* `published_gemma3_config` reads the settings, `gemma3_settings` writes them;
* `load_gemma3_from_safetensors` and `load_gemma3_folder` make the model of a folder,
  `load_gemma3_from_gguf` that of a GGUF file, one tensor at a time. There norms are
  stored as 1 + w, and queries and keys pair halves, as ours do;
* `tokenizer_of_metadata` reads the vocabulary of a GGUF file, `tokenizer_of_json` that
  of a `tokenizer.json`.

Source: the files published with the models, under Gemma's own terms of use; llama.cpp
(MIT licence) for what a GGUF file leaves to the program. Left out: images, and other
files quantised to 8 or 4 bits.

The settings published with Gemma 3 1B, those of them that matter here:

>>> from gemma3 import GEMMA3_1B
>>> settings = {
...     "model_type": "gemma3_text", "vocab_size": 262144, "hidden_size": 1152,
...     "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4,
...     "num_key_value_heads": 1, "head_dim": 256, "max_position_embeddings": 32768,
...     "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-06,
...     "query_pre_attn_scalar": 256, "rope_theta": 1000000, "rope_scaling": None,
...     "rope_local_base_freq": 10000, "sliding_window": 512,
...     "sliding_window_pattern": 6}
>>> published_gemma3_config(settings) == GEMMA3_1B
True

Nothing is guessed for what is not there:

>>> del settings["query_pre_attn_scalar"]
>>> published_gemma3_config(settings)
Traceback (most recent call last):
    ...
ValueError: The settings lack 'query_pre_attn_scalar': take config.json as it was \
published.

Shapes: D model width, H query heads, K head width, L blocks.
"""

import re
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import torch

from family_files import Family
from family_settings import (
    full_every_in,
    kinds_of_rotation,
    layer_types,
    read_setting,
    read_sizes,
    written_sizes,
)
from gemma3 import Gemma3Config, Gemma3Model, gemma3_key_map
from gemma3_tokenizer import BYTE, CONTROL, NORMAL, WHOLE, Gemma3Tokenizer
from gguf_files import metadata_entry, read_scored_vocabulary, unfit_entry
from gguf_models import gguf_sizes, load_from_gguf
from gguf_weights import dequantise
from vocabulary_files import read_json, tokenizer_beside

# --- Settings ------------------------------------------------------------------------

# What a config.json means that has the text model's settings inside it, as those of the
# 4B and larger do: they leave out what equals the format's own value.
_INSIDE: dict[str, Any] = {
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window_pattern": 6,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
}


def _text_settings(settings):
    """Those of the text model inside the settings of one that also sees."""
    if settings["model_type"] != "gemma3":
        return settings
    if not isinstance(settings.get("text_config"), Mapping):
        raise ValueError("The settings of 'gemma3' lack a 'text_config'.")
    return {**_INSIDE, **settings["text_config"]}


def _read(settings):
    """The `Gemma3Config` of checked settings."""
    base, local_base, factor = _rotations(settings)
    return Gemma3Config(
        **read_sizes({"tie_word_embeddings": True, **settings}),
        rope_base=base,
        rope_scaling=None,
        window=settings["sliding_window"],
        full_every=_full_every(settings),
        rope_factor=factor,
        local_rope_base=local_base,
        query_scale=settings["query_pre_attn_scalar"],
    )


def _rotations(settings):
    """Base of global layers, base of local ones, divisor in global ones."""
    far, near = kinds_of_rotation(settings)
    near = near or {}
    bases = far.get("rope_theta"), near.get("rope_theta")
    if None in bases:
        raise ValueError(
            "The settings lack the bases of both kinds of layers, 'rope_theta' and "
            "'rope_local_base_freq': take config.json as it was published."
        )
    kinds = [one.get("rope_type", one.get("type", "default")) for one in (far, near)]
    if kinds not in (["default", "default"], ["linear", "default"]):
        raise ValueError(
            f"The rotary scalings are of types {kinds[0]!r} in global and {kinds[1]!r} "
            "in local layers; Gemma3Model knows 'linear' and 'default' in the former."
        )
    factor = read_setting(far, "factor", Real) if kinds[0] == "linear" else 1.0
    return *bases, factor


def _full_every(settings):
    """Which layers are global, from a list of kinds or from the number of a round."""
    kinds, every = settings.get("layer_types"), settings.get("sliding_window_pattern")
    if kinds is not None:
        return full_every_in(settings, "Gemma3Model") or len(kinds) + 1
    if every is None:
        raise ValueError(
            "The settings lack 'layer_types' or 'sliding_window_pattern': take "
            "config.json as it was published."
        )
    return every


def gemma3_settings(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a `config.json` for a model, as published with the 1B."""
    scaling = {"rope_type": "linear", "factor": cfg["rope_factor"]}
    return {
        "model_type": "gemma3_text",
        **written_sizes(cfg),
        "sliding_window": cfg["window"],
        "query_pre_attn_scalar": cfg["query_scale"],
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_theta": cfg["rope_base"],
        "rope_local_base_freq": cfg["local_rope_base"],
        "rope_scaling": None if cfg["rope_factor"] == 1 else scaling,
        "layer_types": layer_types(cfg["n_layers"], cfg["full_every"]),
    }


# --- Vocabularies ---------------------------------------------------------------------


def tokenizer_of_metadata(metadata: Mapping[str, Any]) -> Gemma3Tokenizer:
    """The tokenizer in the metadata of a GGUF file.

    Args:
        metadata: as `read_gguf` returns it.

    Raises:
        ValueError: an entry is missing or of another kind, or it belongs to a tokenizer
            that works in another way.
    """
    tokens, scores, types, end = read_scored_vocabulary(metadata)
    if "<bos>" not in tokens:
        raise unfit_entry("tokenizer.ggml.tokens", "<bos> must be there")
    template = metadata.get("tokenizer.chat_template")
    end = _end_of_answer(tokens, template, end)
    return Gemma3Tokenizer(tokens, scores, types, end, template)


def _end_of_answer(tokens, template, end):
    """The id that ends an answer; files name that of the whole text, also to chat."""
    chats = template is not None and "<end_of_turn>" in tokens
    return tokens.index("<end_of_turn>") if chats else end


def tokenizer_of_json(path: str | Path) -> Gemma3Tokenizer:
    """The tokenizer in a published `tokenizer.json`.

    Args:
        path: of the file; the chat template and the token that ends an answer are read
            from `chat_template.jinja` and `tokenizer_config.json` beside it, if they
            are there.

    Raises:
        ValueError: the file is not there, damaged or of another kind.
    """
    path = Path(path)
    content, beside = read_json(path), path.with_name("tokenizer_config.json")
    notes = read_json(beside) if beside.exists() else {}
    try:
        ids = content["model"]["vocab"]
        tokens = sorted(ids, key=ids.__getitem__)
        fits = [ids[token] for token in tokens] == list(range(len(tokens)))
        fits = fits and content["model"]["byte_fallback"] and "<bos>" in ids
        merges = [
            pair.replace(" ", "", 1) if isinstance(pair, str) else "".join(pair)
            for pair in content["model"]["merges"]
        ]
        added = {
            token["content"]: token["special"] for token in content["added_tokens"]
        }
        end = notes.get("eos_token", "<eos>")
        end = end["content"] if isinstance(end, Mapping) else end
    except (KeyError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise ValueError(
            f"{path}: it is not the vocabulary of Gemma 3, whose ids run from 0 up and "
            "which falls back to bytes: download it again."
        )
    if end not in ids:
        raise ValueError(f"{beside}: its eos_token {end!r:.40} is no token.")
    # Every way to cut a token is listed; the first says how early it is made.
    ranks = dict(zip(reversed(merges), range(-len(merges), 0), strict=True))
    scores = [float(ranks.get(token, 0)) for token in tokens]
    types = [_kind(token, added.get(token)) for token in tokens]
    alone = path.with_name("chat_template.jinja")  # where newer folders have it
    template = (
        alone.read_text("utf-8") if alone.exists() else notes.get("chat_template")
    )
    end = _end_of_answer(tokens, template, ids[end])
    return Gemma3Tokenizer(tokens, scores, types, end, template)


def _kind(token, special):
    """The kind of a token; `special` is None for one that was not added by hand."""
    if special is None:
        return BYTE if re.fullmatch("<0x[0-9A-F]{2}>", token) else NORMAL
    unused = re.fullmatch(r"<unused\d+>|<mask>", token)
    return CONTROL if special or unused else WHOLE


# --- A folder ------------------------------------------------------------------------

GEMMA3 = Family(
    name="Gemma 3",
    model_types=("gemma3_text", "gemma3"),
    own_config=Gemma3Config,
    model=Gemma3Model,
    key_map=gemma3_key_map,
    read=_read,
    unwrap=_text_settings,
    needed=(
        "head_dim",
        "num_key_value_heads",
        "query_pre_attn_scalar",
        "rms_norm_eps",
        "sliding_window",
    ),
    refused={  # what no published text model asks for
        "hidden_activation": ("gelu_pytorch_tanh",),
        "attention_bias": (False,),
        "attn_logit_softcapping": (None,),
        "final_logit_softcapping": (None,),
        "use_bidirectional_attention": (False, None),
        "quantization_config": (None,),
    },
    tokenizer=tokenizer_beside(["tokenizer.json"], tokenizer_of_json),
)
published_gemma3_config = GEMMA3.config
load_gemma3_from_safetensors = GEMMA3.load_model
load_gemma3_folder = GEMMA3.load


# --- A GGUF file ---------------------------------------------------------------------


def load_gemma3_from_gguf(
    path: str | Path, dtype: torch.dtype = torch.float32
) -> tuple[Gemma3Model, Gemma3Tokenizer]:
    """The model and the tokenizer in a GGUF file; as `load_llama_from_gguf`.

    Args:
        path: of a GGUF file of a Gemma 3, such as the course's gemma3-270m.
        dtype: of the weights, a floating-point dtype.
    """

    def read_config(metadata, tensors):
        return gemma3_gguf_config(metadata, tied="output.weight" not in tensors)

    def numbers(tensor, ours, cfg):
        if "norm" in ours:  # stored as 1 + w
            return (dequantise(tensor) - 1).to(dtype)
        return dequantise(tensor, dtype)

    return load_from_gguf(
        path,
        dtype,
        GEMMA3,
        read_config=read_config,
        read_tokenizer=tokenizer_of_metadata,
        numbers=numbers,
        others=_GGUF_PARTS,
    )


# What differs from the names of a Llama.
_GGUF_PARTS = {
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def gemma3_gguf_config(metadata: Mapping[str, Any], tied: bool) -> Gemma3Config:
    """The `Gemma3Config` in the metadata of a file.

    What is in no file is what llama.cpp takes: every sixth layer is global, local ones
    have the base 10,000, and the queries of the 27B, the one model of 62 layers, are
    scaled by D / H in place of K.

    Args:
        metadata: as `read_gguf` returns it.
        tied: whether the output head is the embedding: whether the file lacks one.

    Raises:
        ValueError: an entry is missing, of another kind or out of range, or asks for
            something that `Gemma3Model` does not do.
    """
    sizes = gguf_sizes(metadata, "gemma3")
    tokens = metadata_entry(metadata, "tokenizer.ggml.tokens", list, str)
    head_dim = metadata_entry(metadata, "gemma3.attention.key_length", int)
    window = metadata_entry(metadata, "gemma3.attention.sliding_window", int)
    width = metadata.get("gemma3.attention.value_length", head_dim)
    if width != head_dim:
        what = f"values are {width} wide, but keys {head_dim}"
        raise unfit_entry("gemma3.attention.value_length", what)
    kind = metadata.get("gemma3.rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        what = f"{kind!r} is a scaling that is not known here"
        raise unfit_entry("gemma3.rope.scaling.type", what)
    factor = 1.0
    if kind == "linear":
        factor = metadata_entry(metadata, "gemma3.rope.scaling.factor", float)
    is_27b = sizes["n_layers"] == 62
    return Gemma3Config(
        **sizes,
        vocab_size=len(tokens),
        head_dim=head_dim,
        rope_scaling=None,
        tie_weights=tied,
        window=window,
        full_every=metadata.get("gemma3.attention.sliding_window_pattern", 6),
        rope_factor=factor,
        local_rope_base=metadata.get("gemma3.rope.freq_base_swa", 10_000.0),
        query_scale=sizes["emb_dim"] // sizes["n_heads"] if is_27b else head_dim,
    )
