"""Olmo 3 and Olmo 2 from the files in which they are published: support.

A folder on the model hub holds `config.json`, the weights in safetensors files, and
`tokenizer.json`. Names, shapes and sizes are checked as for a Llama, by `llama_files`;
here is what differs.

* `published_olmo3_config` reads the settings of both families, and `olmo3_settings`
  writes them;
* `load_olmo3_from_safetensors` and `load_olmo3_folder` make the model, one tensor at a
  time;
* `OLMO3` is what `load_pretrained` asks of a family.

Source: the files published with the models (Apache-2.0). Left out: quantised files.

The settings published with Olmo 3 7B, those of them that matter here:

>>> settings = {
...     "model_type": "olmo3", "vocab_size": 100278, "max_position_embeddings": 65536,
...     "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
...     "num_attention_heads": 32, "num_key_value_heads": 32, "rms_norm_eps": 1e-06,
...     "rope_theta": 500000, "rope_scaling": {"rope_type": "yarn", "factor": 8.0,
...         "beta_fast": 32, "beta_slow": 1, "attention_factor": 1.2079441541679836,
...         "original_max_position_embeddings": 8192},
...     "sliding_window": 4096, "hidden_act": "silu", "tie_word_embeddings": False}
>>> published_olmo3_config(settings) == OLMO3_7B
True

It stretches the rotation of the blocks that see everything. Files in which some version
of a library wrote it down for no block in particular are refused, as they may mean all:

>>> flat = settings.pop("rope_scaling") | {"rope_theta": settings.pop("rope_theta")}
>>> published_olmo3_config({**settings, "rope_parameters": flat})
Traceback (most recent call last):
    ...
ValueError: The setting 'rope_parameters' does not say which blocks YaRN is for: take \
config.json as it was published.
"""

import math
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import torch

from hub_tokenizers import folder_tokenizer
from llama_files import (
    Family,
    block_problem,
    llama_shapes,
    load_from_safetensors,
    published_config,
)
from olmo3 import OLMO3_7B, Olmo3Config, Olmo3Model, olmo3_key_map, olmo3_windows
from olmo3_tokenizer import Olmo3Encoding

__all__ = [
    "OLMO3",
    "OLMO3_7B",
    "load_olmo3_folder",
    "load_olmo3_from_safetensors",
    "olmo3_folder_tokenizer",
    "olmo3_settings",
    "olmo3_shapes",
    "published_olmo3_config",
]

# --- Settings ------------------------------------------------------------------------

_NAMES = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context_length",
    "hidden_size": "emb_dim",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_groups",
    "head_dim": "head_dim",
    "num_hidden_layers": "n_layers",
    "intermediate_size": "hidden_dim",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_weights",
}
_KINDS = ("sliding_attention", "full_attention")
# What no published model asks for. A setting that is missing means the same.
_REFUSED: dict[str, Any] = {
    "quantization_config": None,
    "hidden_act": "silu",
    "attention_bias": False,
    "partial_rotary_factor": 1.0,
}
_REFUSED_OF_ROTATION: dict[str, Any] = {
    "partial_rotary_factor": 1.0,
    "truncate": True,
    "mscale": None,
    "mscale_all_dim": None,
}
_YARN = {  # theirs: ours, and what it means where it is missing
    "factor": ("factor", None),
    "original_max_position_embeddings": ("original_context_length", None),
    "beta_slow": ("low_freq_factor", 1.0),
    "beta_fast": ("high_freq_factor", 32.0),
    "attention_factor": ("attention_factor", None),
}


def published_olmo3_config(settings: Mapping[str, Any]) -> Olmo3Config:
    """The `Olmo3Config` that a published `config.json` describes.

    Whether there are windows, the model type alone decides: no tensor shows them.

    Args:
        settings: the content of the file, a mapping, of the model type "olmo3" or
            "olmo2", in the form of any version of the `transformers` library.

    Raises:
        ValueError: a setting is missing, of another kind or out of range, or asks for
            something that `Olmo3Model` does not do; the message names it.
    """
    kind = settings.get("model_type") if isinstance(settings, Mapping) else None
    if kind not in ("olmo2", "olmo3"):
        raise ValueError(
            f"The settings are of model type {kind!r}, and this is for 'olmo3' and "
            "'olmo2': other architectures have parts that Olmo3Model lacks."
        )
    for name, meant in _REFUSED.items():
        if settings.get(name) not in (None, meant):
            raise ValueError(
                f"The settings ask for {name}={settings[name]!r:.80}, but Olmo3Model "
                f"has only {meant!r}."
            )
    base, yarn = _rotation(settings, kind)
    alone = {"rope_parameters": None, "rope_scaling": None, **base}
    sizes = published_config({**settings, "model_type": "llama", **alone})
    window, full_every = _windows(settings, sizes["n_layers"], kind)
    return Olmo3Config.of(
        {**sizes, "rope_scaling": yarn, "window": window, "full_every": full_every}
    )


def olmo3_settings(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a `config.json` for a model of the course; the way back.

    Args:
        cfg: an `Olmo3Config`, or a mapping with the same entries. Without windows and
            YaRN it is an Olmo 2.
    """
    settings = {theirs: cfg[ours] for theirs, ours in _NAMES.items()}
    plain = {"rope_type": "default", "rope_theta": cfg["rope_base"]}
    if cfg["window"] is None and cfg["rope_scaling"] is None:
        return {"model_type": "olmo2", **settings, "rope_parameters": plain}
    scaling, yarn = cfg["rope_scaling"], {}
    if scaling is not None:
        yarn = {theirs: scaling[ours] for theirs, (ours, _) in _YARN.items()}
        yarn["rope_type"] = "yarn"
    rotations = {"sliding_attention": plain, "full_attention": {**plain, **yarn}}
    return {
        "model_type": "olmo3",
        **settings,
        "sliding_window": cfg["window"] or cfg["context_length"],
        "layer_types": _kinds(cfg),
        "rope_parameters": rotations,
    }


def _kinds(cfg):
    """What the files call each block."""
    return [
        "full_attention" if window is None else "sliding_attention"
        for window in olmo3_windows(cfg)
    ]


def _rotation(settings, kind):
    """`(base, yarn)`: the first as a published setting, the second as ours or None."""
    today, older = settings.get("rope_parameters"), settings.get("rope_scaling")
    theta = settings.get("rope_theta")
    for rotation in (today, older):
        _check_rotation({} if rotation is None else rotation)
    full = {"rope_theta": theta, **(older or {})}
    if today and any(name in today for name in _KINDS):  # one for each kind of block
        window, full = (today.get(name) or {} for name in _KINDS)
        _check_rotation(window)
        _check_rotation(full)
        full = full or window
        if window and _yarn_of(window):
            raise ValueError(
                "The settings stretch the rotation of the blocks with a window, but "
                "Olmo3Model only that of the others."
            )
        bases = {window.get("rope_theta", theta), full.get("rope_theta", theta)}
        if len(bases) > 1 and window:
            raise ValueError(
                "The settings give a 'rope_theta' for each kind of block, but "
                "Olmo3Model has one for both."
            )
    elif today:
        full = today
        if _yarn_of(full):
            raise ValueError(
                "The setting 'rope_parameters' does not say which blocks YaRN is for: "
                "take config.json as it was published."
            )
    yarn, base = _yarn_of(full), full.get("rope_theta", theta)
    if (today and older and _yarn_of(older) != yarn) or theta not in (None, base):
        raise ValueError(
            "'rope_parameters' and the older 'rope_scaling' and 'rope_theta' ask for "
            "different rotations: take config.json as it was published."
        )
    if yarn and kind == "olmo2":
        raise ValueError("The settings stretch the rotation of an Olmo 2.")
    return {} if base is None else {"rope_theta": base}, yarn


def _check_rotation(rotation):
    """Raise unless it is a mapping that asks for nothing but YaRN."""
    if not isinstance(rotation, Mapping):
        raise ValueError(f"The rotation is {rotation!r:.80}, no mapping.")
    for name, meant in _REFUSED_OF_ROTATION.items():
        if rotation.get(name) not in (None, meant):
            raise ValueError(
                f"The rotation has {name}={rotation[name]!r:.80}, not known here."
            )


def _yarn_of(rotation):
    """The scaling as `Olmo3Config` takes it: a dictionary, or None for none."""
    kind = rotation.get("rope_type", rotation.get("type", "default"))
    if kind == "default":
        return None
    if kind != "yarn":
        raise ValueError(
            f"The rotary scaling is of type {kind!r}; Olmo3Model knows 'yarn', and "
            "'default' for none."
        )
    found = {}
    for theirs, (ours, meant) in _YARN.items():
        value = rotation.get(theirs)
        value = meant if value is None else value
        if value is None and theirs == "attention_factor":  # as the paper has it
            value = 0.1 * math.log(max(1, found["factor"])) + 1
        if value is None:
            raise ValueError(
                f"The settings lack {theirs!r} of the rotary scaling: take config.json "
                "as it was published."
            )
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ValueError(f"The setting {theirs!r} is {value!r:.80}, not a number.")
        found[ours] = value
    return found


def _windows(settings, n_layers, kind):
    """`(window, full_every)` by the list of kinds, which must have such a rhythm."""
    if kind == "olmo2":
        return None, None
    window, kinds = settings.get("sliding_window"), settings.get("layer_types")
    if window is None:
        raise ValueError(
            "The settings lack 'sliding_window': take config.json as it was published."
        )
    if kinds is None:
        return window, 4
    if not isinstance(kinds, list) or len(kinds) != n_layers:
        raise ValueError(
            f"'layer_types' is no list of the kinds of {n_layers} blocks: take "
            "config.json as it was published."
        )
    if set(kinds) == {"full_attention"}:
        return None, None
    for every in (4, None, *range(2, n_layers + 1)):
        cfg = {"n_layers": n_layers, "window": window, "full_every": every}
        if kinds == _kinds(cfg):
            return window, every
    raise ValueError(
        "'layer_types' mixes blocks with a window and others in another rhythm than "
        "Olmo3Model, where every so many blocks one sees everything."
    )


# --- Weights -------------------------------------------------------------------------


def olmo3_shapes(cfg: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """{name in `Olmo3Model`: its shape}, from the config alone; no model is made."""
    K = cfg["head_dim"]
    norms = {"query_norm": (cfg["n_heads"] * K,), "key_norm": (cfg["n_kv_groups"] * K,)}
    shapes = llama_shapes(cfg)
    return {
        name: norms.get(name.split(".")[-2]) or shapes[name]
        for name in olmo3_key_map(cfg).values()
    }


def load_olmo3_from_safetensors(
    folder: str | Path, dtype: torch.dtype = torch.bfloat16
) -> Olmo3Model:
    """The model in a folder of published files; as `load_llama_from_safetensors`."""
    return load_from_safetensors(folder, dtype, OLMO3)


def load_olmo3_folder(
    folder: str | Path, dtype: torch.dtype = torch.float32
) -> tuple[Olmo3Model, Any]:
    """The model and the tokenizer in a folder of published files.

    Args:
        folder: as for `load_llama_from_safetensors`, with `tokenizer.json` in it.
        dtype: of the weights, a floating-point dtype, whatever the files hold.

    Raises:
        ValueError: as `load_olmo3_from_safetensors` and `olmo3_folder_tokenizer`.
    """
    model = load_olmo3_from_safetensors(folder, dtype)
    return model, olmo3_folder_tokenizer(Path(folder), model.cfg["vocab_size"])


def olmo3_folder_tokenizer(folder: Path, vocab_size: int) -> Any:
    """The tokenizer in a folder, an `Olmo3Encoding`; a `NoTokenizer` if there is none.

    Raises:
        ValueError: as `folder_tokenizer`.
    """
    return folder_tokenizer(folder, vocab_size, "olmo3", Olmo3Encoding)


# --- All of it, for `load_pretrained` ------------------------------------------------

OLMO3 = Family(
    name="Olmo 3",
    model_types=("olmo3", "olmo2"),
    config=published_olmo3_config,
    own_config=Olmo3Config,
    model=Olmo3Model,
    key_map=olmo3_key_map,
    shapes=olmo3_shapes,
    outline_problem=block_problem,
    tokenizer=olmo3_folder_tokenizer,
)
