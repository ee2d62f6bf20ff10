"""Olmo 3 and Olmo 2 from the files in which they are published: support.

A folder on the model hub holds `config.json`, the weights in safetensors files, and
`tokenizer.json`. All of it is read as for a Llama, by `family_files`; here is what
differs.

* `OLMO3` is the `Family`: its settings, names and tokenizer. Whether there are windows,
  the model type alone decides: no tensor shows them;
* `published_olmo3_config` reads the settings of both families, and `olmo3_settings`
  writes them;
* `load_olmo3_from_safetensors` and `load_olmo3_folder` make the model, one tensor at a
  time.

Source: the files published with the models (Apache-2.0). Left out: quantised files.

The settings published with Olmo 3 7B, those of them that matter here:

>>> from olmo3 import OLMO3_7B
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

import functools
import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from family_files import Family
from family_settings import (
    FULL,
    SLIDING,
    full_every_in,
    kinds_of_rotation,
    layer_types,
    mapping_in,
    read_setting,
    read_sizes,
    refuse,
    written_sizes,
)
from hub_tokenizers import folder_tokenizer
from llama_files import LLAMA
from olmo3 import Olmo3Config, Olmo3Model, olmo3_key_map
from olmo3_tokenizer import Olmo3Encoding

# --- Settings ------------------------------------------------------------------------

_YARN = {  # theirs: ours
    "factor": "factor",
    "original_max_position_embeddings": "original_context_length",
    "beta_slow": "low_freq_factor",
    "beta_fast": "high_freq_factor",
    "attention_factor": "attention_factor",
}
# What no published rotation asks for.
_REFUSED_OF_ROTATION = {
    "partial_rotary_factor": (1.0, None),
    "truncate": (True, None),
    "mscale": (None,),
    "mscale_all_dim": (None,),
}


def _read(settings):
    """The `Olmo3Config` of checked settings."""
    base, yarn = _rotation(settings)
    window, full_every = _windows(settings)
    return Olmo3Config(
        **read_sizes(settings),
        rope_base=base,
        rope_scaling=yarn,
        window=window,
        full_every=full_every,
    )


def _rotation(settings):
    """`(base, yarn)`: the second as in `Olmo3Config`, or None."""
    full, local = kinds_of_rotation(settings)
    if local is None and _yarn_of(full):
        raise ValueError(
            "The setting 'rope_parameters' does not say which blocks YaRN is for: take "
            "config.json as it was published."
        )
    if local and _yarn_of(local):
        raise ValueError(
            "The settings stretch the rotation of the blocks with a window, but "
            "Olmo3Model only that of the others."
        )
    yarn, theta = _yarn_of(full), settings.get("rope_theta")
    bases = [one["rope_theta"] for one in (full, local) if one and "rope_theta" in one]
    if len(set(bases)) > 1:
        raise ValueError(
            "The settings give a 'rope_theta' for each kind of block, but Olmo3Model "
            "has one for both."
        )
    older = mapping_in(settings, "rope_scaling")
    if (older and _yarn_of(older) != yarn) or theta not in (None, *bases):
        raise ValueError(
            "'rope_parameters' and the older 'rope_scaling' and 'rope_theta' ask for "
            "different rotations: take config.json as it was published."
        )
    if yarn and settings["model_type"] == "olmo2":
        raise ValueError("The settings stretch the rotation of an Olmo 2.")
    found = full if "rope_theta" in full else settings
    return read_setting(found, "rope_theta", Real), yarn


def _yarn_of(rotation):
    """The scaling as `Olmo3Config` takes it: a dictionary, or None for none."""
    refuse(rotation, _REFUSED_OF_ROTATION, "Olmo3Model")
    kind = rotation.get("rope_type", rotation.get("type", "default"))
    if kind == "default":
        return None
    if kind != "yarn":
        raise ValueError(
            f"The rotary scaling is of type {kind!r}; Olmo3Model knows 'yarn', and "
            "'default' for none."
        )
    given = {name: value for name, value in rotation.items() if value is not None}
    factor = read_setting(given, "factor", Real)
    meant = {"beta_slow": 1.0, "beta_fast": 32.0}
    meant["attention_factor"] = 0.1 * math.log(max(1, factor)) + 1  # as in the paper
    return {
        ours: read_setting({**meant, **given}, theirs, Real)
        for theirs, ours in _YARN.items()
    }


def _windows(settings):
    """`(window, full_every)` by the list of kinds, which must have such a rhythm."""
    if settings["model_type"] == "olmo2":
        return None, None
    window = read_setting(settings, "sliding_window", int)
    if settings.get("layer_types") is None:
        return window, 4
    every = full_every_in(settings, "Olmo3Model")
    if every == 1:
        return None, None
    fewer = every is None and settings["num_hidden_layers"] < 4
    return window, 4 if fewer else every


def olmo3_settings(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a `config.json` for a model of the course; the way back.

    Args:
        cfg: an `Olmo3Config`, or a mapping with the same entries. Without windows and
            YaRN it is an Olmo 2.
    """
    settings, scaling = written_sizes(cfg), cfg["rope_scaling"]
    plain = {"rope_type": "default", "rope_theta": cfg["rope_base"]}
    if cfg["window"] is None and scaling is None:
        return {"model_type": "olmo2", **settings, "rope_parameters": plain}
    stretched = plain
    if scaling is not None:
        stretched = {theirs: scaling[ours] for theirs, ours in _YARN.items()}
        stretched |= {**plain, "rope_type": "yarn"}
    every = 1 if cfg["window"] is None else cfg["full_every"]
    return {
        "model_type": "olmo3",
        **settings,
        "sliding_window": cfg["window"] or cfg["context_length"],
        "layer_types": layer_types(cfg["n_layers"], every),
        "rope_parameters": {SLIDING: plain, FULL: stretched},
    }


# --- All of it -----------------------------------------------------------------------

OLMO3 = Family(
    name="Olmo 3",
    model_types=("olmo3", "olmo2"),
    own_config=Olmo3Config,
    model=Olmo3Model,
    key_map=olmo3_key_map,
    read=_read,
    refused={  # what no published model asks for
        **LLAMA.refused,
        "quantization_config": (None,),
        "partial_rotary_factor": (1.0, None),
    },
    tokenizer=functools.partial(folder_tokenizer, family="olmo3", kind=Olmo3Encoding),
)
published_olmo3_config = OLMO3.config
load_olmo3_from_safetensors = OLMO3.load_model
load_olmo3_folder = OLMO3.load
