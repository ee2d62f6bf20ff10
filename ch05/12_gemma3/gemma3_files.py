"""Gemma 3 from the files in which it is published: support.

A folder on the model hub holds `config.json`, the weights in safetensors files, and
`tokenizer.json`; a GGUF file holds all of it. Names, shapes and sizes are checked as
for a Llama, by `llama_files` and `gguf_files`; here is what differs.

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

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gemma3 import (
    GEMMA3_1B,
    Gemma3Config,
    Gemma3Model,
    gemma3_key_map,
    gemma3_windows,
)
from gemma3_tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    WHOLE,
    Gemma3Tokenizer,
)
from gguf_files import metadata_entry, read_gguf, unfit_entry
from gguf_models import checked_names, gguf_sizes, model_with
from gguf_weights import dequantise
from hub_tokenizers import NoTokenizer, read_json
from llama_files import (
    Family,
    block_problem,
    check_dtype,
    llama_shapes,
    load_from_safetensors,
    published_config,
)

__all__ = [
    "GEMMA3",
    "GEMMA3_1B",
    "gemma3_folder_tokenizer",
    "gemma3_settings",
    "gemma3_shapes",
    "load_gemma3_folder",
    "load_gemma3_from_gguf",
    "load_gemma3_from_safetensors",
    "published_gemma3_config",
    "tokenizer_of_json",
    "tokenizer_of_metadata",
]

# --- Settings ------------------------------------------------------------------------

_SIZES = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "emb_dim": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_kv_groups": "num_key_value_heads",
    "head_dim": "head_dim",
    "n_layers": "num_hidden_layers",
    "hidden_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "window": "sliding_window",
    "query_scale": "query_pre_attn_scalar",
}
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
}
_BASES = {"full_attention": 1_000_000.0, "sliding_attention": 10_000.0}
# What no published text model asks for. A setting that is missing means the same.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "attention_bias": (False,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "use_bidirectional_attention": (False, None),
    "quantization_config": (None,),
}


def published_gemma3_config(settings: Mapping[str, Any]) -> Gemma3Config:
    """The `Gemma3Config` that a published `config.json` describes.

    Args:
        settings: the content of the file, a mapping, of the model type "gemma3_text",
            or "gemma3" with such settings inside as "text_config"; in the form of any
            version of the `transformers` library.

    Raises:
        ValueError: a setting is missing, of another kind or out of range, or asks for
            something that `Gemma3Model` does not do; the message names it.
    """
    kind = settings.get("model_type") if isinstance(settings, Mapping) else None
    if kind == "gemma3" and isinstance(settings.get("text_config"), Mapping):
        settings = {**_INSIDE, "rope_theta": 1_000_000.0, **settings["text_config"]}
        settings.setdefault("rope_local_base_freq", 10_000.0)
    elif kind != "gemma3_text":
        raise ValueError(
            f"The settings are of model type {kind!r}, and this is for 'gemma3_text' "
            "and for 'gemma3' with a 'text_config': other architectures have parts "
            "that Gemma3Model lacks."
        )
    for name in _SIZES.values():
        if settings.get(name) is None:
            raise ValueError(
                f"The settings lack {name!r}: take config.json as it was published."
            )
    for name, meant in _REFUSED.items():
        if settings.get(name, meant[0]) not in meant:
            raise ValueError(
                f"The settings ask for {name}={settings[name]!r:.80}, but Gemma3Model "
                f"has only {meant[0]!r}."
            )
    base, local_base, factor = _rotations(settings)
    plain = {name: settings[name] for name in _SIZES.values()}
    plain |= {"model_type": "llama", "rope_theta": base}
    plain["tie_word_embeddings"] = settings.get("tie_word_embeddings", True)
    return Gemma3Config(
        **published_config(plain),
        window=settings["sliding_window"],
        full_every=_full_every(settings),
        rope_factor=factor,
        local_rope_base=local_base,
        query_scale=settings["query_pre_attn_scalar"],
    )


def _rotations(settings):
    """Base of global layers, base of local ones, divisor in global ones."""
    today, scaling = settings.get("rope_parameters"), settings.get("rope_scaling")
    if not isinstance(scaling, (Mapping, type(None))):
        raise ValueError(f"The setting 'rope_scaling' is {scaling!r:.80}, no mapping.")
    if today is None:
        scaling = scaling or {"rope_type": "default"}
        today = {
            "full_attention": {
                "rope_theta": settings.get("rope_theta"),
                "rope_type": scaling.get("type"),  # as older files call it
                **scaling,
            },
            "sliding_attention": {"rope_theta": settings.get("rope_local_base_freq")},
        }
    try:
        far, near = today["full_attention"], today["sliding_attention"]
        bases = far.get("rope_theta"), near.get("rope_theta")
        kinds = far.get("rope_type"), near.get("rope_type", "default")
    except (KeyError, TypeError, AttributeError):
        bases, far, kinds = (None, None), {}, ("default", "default")
    if None in bases:
        raise ValueError(
            "The settings lack the bases of both kinds of layers, 'rope_theta' and "
            "'rope_local_base_freq': take config.json as it was published."
        )
    if kinds not in (("default", "default"), ("linear", "default")):
        raise ValueError(
            f"The rotary scalings are of types {kinds[0]!r} in global and {kinds[1]!r} "
            "in local layers; Gemma3Model knows 'linear' and 'default' in the former."
        )
    factor = far.get("factor") if kinds[0] == "linear" else 1.0
    if factor is None:
        raise ValueError("The linear rotary scaling lacks its 'factor'.")
    return *bases, factor


def _full_every(settings):
    """Which layers are global, from a list of types or from the number of a round."""
    types, every = settings.get("layer_types"), settings.get("sliding_window_pattern")
    if types is None:
        if every is None:
            raise ValueError(
                "The settings lack 'layer_types' or 'sliding_window_pattern': take "
                "config.json as it was published."
            )
        return every
    if not isinstance(types, (list, tuple)):
        raise ValueError(f"The setting 'layer_types' is {types!r:.80}, no list.")
    types = list(types)
    if len(types) != settings["num_hidden_layers"]:
        raise ValueError(
            f"The setting 'layer_types' names {len(types)} layers, but "
            f"'num_hidden_layers' is {settings['num_hidden_layers']!r}."
        )
    every = len(types) + 1
    if "full_attention" in types:
        every = types.index("full_attention") + 1
    if types != _layer_types(len(types), every):
        raise ValueError(
            f"The setting 'layer_types' is no plan in which every layer with a number "
            f"divisible by {every} is global, which is all that Gemma3Model can be."
        )
    return every


def _layer_types(n_layers, every):
    windows = gemma3_windows({"n_layers": n_layers, "window": 1, "full_every": every})
    return ["full_attention" if w is None else "sliding_attention" for w in windows]


def gemma3_settings(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a `config.json` for a model, as published with the 1B."""
    scaling = {"rope_type": "linear", "factor": cfg["rope_factor"]}
    return {
        "model_type": "gemma3_text",
        **{theirs: cfg[ours] for ours, theirs in _SIZES.items()},
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_theta": cfg["rope_base"],
        "rope_local_base_freq": cfg["local_rope_base"],
        "rope_scaling": None if cfg["rope_factor"] == 1 else scaling,
        "layer_types": _layer_types(cfg["n_layers"], cfg["full_every"]),
        "tie_word_embeddings": cfg["tie_weights"],
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
    start = "tokenizer.ggml."
    if metadata_entry(metadata, f"{start}model", str) != "llama":
        raise unfit_entry(f"{start}model", "only 'llama', SentencePiece's, is known")
    tokens = metadata_entry(metadata, f"{start}tokens", list, str)
    scores = metadata_entry(metadata, f"{start}scores", list, float)
    types = metadata_entry(metadata, f"{start}token_type", list, int)
    # Runs of spaces are spelt with plain ones here, and with the sign elsewhere.
    tokens = [token.replace(" ", SPACE) for token in tokens]
    whole = len(set(tokens)) == len(tokens) == len(types) == len(scores)
    if not whole or "<bos>" not in tokens or any(map(math.isnan, scores)):
        what = "tokens must differ, each with a score and a type, and <bos> be there"
        raise unfit_entry(f"{start}tokens", what)
    end = metadata_entry(metadata, f"{start}eos_token_id", int)
    if not 0 <= end < len(tokens):
        raise unfit_entry(f"{start}eos_token_id", f"{end} is not the id of a token")
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


# --- Weights in a folder -------------------------------------------------------------


def gemma3_shapes(cfg: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """{name in `Gemma3Model`: its shape}, from the config alone; no model is made."""
    part = {  # of one block: they are all alike
        name.split(".")[-2]: shape
        for name, shape in llama_shapes({**cfg, "n_layers": 1}).items()
    }
    part["query_norm"] = part["key_norm"] = (cfg["head_dim"],)
    names = gemma3_key_map(cfg).values()
    return {name: part.get(name.split(".")[-2], (cfg["emb_dim"],)) for name in names}


def load_gemma3_from_safetensors(
    folder: str | Path, dtype: torch.dtype = torch.bfloat16
) -> Gemma3Model:
    """The model in a folder of published files; as `load_llama_from_safetensors`."""
    return load_from_safetensors(folder, dtype, GEMMA3)


def load_gemma3_folder(
    folder: str | Path, dtype: torch.dtype = torch.float32
) -> tuple[Gemma3Model, Any]:
    """The model and the tokenizer in a folder of published files.

    Args:
        folder: as for `load_llama_from_safetensors`, with `tokenizer.json` in it.
        dtype: of the weights, a floating-point dtype, whatever the files hold.

    Raises:
        ValueError: as `load_gemma3_from_safetensors` and `gemma3_folder_tokenizer`.
    """
    model = load_gemma3_from_safetensors(folder, dtype)
    return model, gemma3_folder_tokenizer(Path(folder), model.cfg["vocab_size"])


def gemma3_folder_tokenizer(folder: Path, vocab_size: int) -> Any:
    """The tokenizer in a folder, or a `NoTokenizer` if there is none.

    Raises:
        ValueError: the file is damaged, or it has more tokens than the model.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        return NoTokenizer(
            f"There is no tokenizer in {folder}: put tokenizer.json beside the weights."
        )
    tokenizer = tokenizer_of_json(path)
    if tokenizer.n_vocab > vocab_size:
        raise ValueError(
            f"{path}: it has {tokenizer.n_vocab} tokens, but the model only "
            f"{vocab_size}: the files belong to different models."
        )
    return tokenizer


GEMMA3 = Family(
    name="Gemma 3",
    model_types=("gemma3_text", "gemma3"),
    config=published_gemma3_config,
    own_config=Gemma3Config,
    model=Gemma3Model,
    key_map=gemma3_key_map,
    shapes=gemma3_shapes,
    outline_problem=block_problem,
    tokenizer=gemma3_folder_tokenizer,
)


# --- A GGUF file ---------------------------------------------------------------------


def load_gemma3_from_gguf(
    path: str | Path, dtype: torch.dtype = torch.float32
) -> tuple[Gemma3Model, Gemma3Tokenizer]:
    """The model and the tokenizer in a GGUF file; as `load_llama_from_gguf`.

    Args:
        path: of a GGUF file of a Gemma 3, such as the course's gemma3-270m.
        dtype: of the weights, a floating-point dtype.
    """
    check_dtype(dtype)
    metadata, tensors = read_gguf(path)
    try:
        tokenizer = tokenizer_of_metadata(metadata)
        cfg = gemma3_gguf_config(metadata, tied="output.weight" not in tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    names = checked_names(path, tensors, cfg, GEMMA3, _GGUF_PARTS)

    def numbers(name, ours):
        if "norm" in ours:  # stored as 1 + w
            return (dequantise(tensors[name]) - 1).to(dtype)
        return dequantise(tensors[name], dtype)

    return model_with(Gemma3Model, cfg, names, numbers), tokenizer


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
