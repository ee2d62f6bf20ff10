"""The settings that Llama and its kin have in common: support.

A published `config.json` says the sizes of a model under names that all of them use.
Each is read here in one way, and refused in one sentence if it is missing or of another
kind:

* `read_sizes` and `read_setting` read numbers, `written_sizes` is the way back;
* `kinds_of_rotation` finds how queries and keys are turned, in any form of the file;
* `full_every_in` reads which blocks see everything, and `layer_types` is the way back;
* `refuse` stops what a model does not do.

A `Family` of `family_files` is built on them.

>>> settings = {"num_hidden_layers": 6, "layer_types": layer_types(6, full_every=3)}
>>> settings["layer_types"][:3]
['sliding_attention', 'sliding_attention', 'full_attention']
>>> full_every_in(settings, "MyModel")
3

Nothing is guessed for what is not there:

>>> read_setting(settings, "sliding_window", int)
Traceback (most recent call last):
    ...
ValueError: The settings lack 'sliding_window': take config.json as it was published.

Shapes: D model width, H query heads, L blocks.
"""

import json
from collections.abc import Mapping
from numbers import Real
from typing import Any

AS_PUBLISHED = "take config.json as it was published."
_SIZES = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "emb_dim": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_kv_groups": "num_key_value_heads",
    "n_layers": "num_hidden_layers",
    "hidden_dim": "intermediate_size",
}
# What files mean that are older than a setting: a value, or that of another setting.
_BEFORE: dict[str, Any] = {
    "rope_theta": 10000.0,  # Llama 1 and 2
    "num_key_value_heads": "num_attention_heads",  # Llama 1
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-06,
}
FULL, SLIDING = "full_attention", "sliding_attention"  # kinds of blocks


def read_setting(settings: Mapping[str, Any], name: str, kind: type) -> Any:
    """One setting, which must be there and of its kind.

    Args:
        settings: the content of a `config.json`, or a part of it.
        name: of the setting.
        kind: `int`, `bool`, or `Real` for any number.

    Raises:
        ValueError: it is missing or of another kind.
    """
    if name not in settings:
        if name not in _BEFORE:
            raise ValueError(f"The settings lack {name!r}: {AS_PUBLISHED}")
        meant = json.dumps(settings.get(_BEFORE[name], _BEFORE[name]))
        raise ValueError(
            f"The settings lack {name!r}: files from before there was such a setting "
            f'mean {meant}, so write "{name}": {meant} into config.json if it is as '
            "published; otherwise download it again."
        )
    value = settings[name]
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if not fits:
        words = {int: "a whole number", bool: "true or false", Real: "a number"}
        raise ValueError(f"The setting {name!r} is {value!r:.80}, not {words[kind]}.")
    return value


def read_sizes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `LlamaConfig`, without those of the rotation.

    The head width is D / H where it is missing. All else must be there.
    """
    fields = {ours: read_setting(settings, name, int) for ours, name in _SIZES.items()}
    if settings.get("head_dim") is None:
        fields["head_dim"] = fields["emb_dim"] // max(1, fields["n_heads"])
    else:
        fields["head_dim"] = read_setting(settings, "head_dim", int)
    fields["norm_eps"] = read_setting(settings, "rms_norm_eps", Real)
    fields["tie_weights"] = read_setting(settings, "tie_word_embeddings", bool)
    return fields


def written_sizes(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The published settings from which `read_sizes` makes the fields of a config."""
    return {theirs: cfg[ours] for ours, theirs in _SIZES.items()} | {
        "head_dim": cfg["head_dim"],
        "rms_norm_eps": cfg["norm_eps"],
        "tie_word_embeddings": cfg["tie_weights"],
    }


def refuse(
    settings: Mapping[str, Any], refused: Mapping[str, tuple[Any, ...]], model: str
) -> None:
    """Raise if settings ask for what a model does not do.

    Args:
        settings: the content of a `config.json`, or a part of it.
        refused: {name: the values that may be there, what a missing one means first}.
        model: the name of its class, for the message.
    """
    for name, meant in refused.items():
        if settings.get(name, meant[0]) not in meant:
            raise ValueError(
                f"The settings ask for {name}={settings[name]!r:.80}, but {model} has "
                f"only {meant[0]!r}."
            )


def mapping_in(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A setting that is a mapping, empty where it is missing or None."""
    found = settings.get(name)
    if not isinstance(found, (Mapping, type(None))):
        raise ValueError(f"The setting {name!r} is {found!r:.80}, no mapping.")
    return found or {}


def kinds_of_rotation(
    settings: Mapping[str, Any],
) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """How queries and keys are turned in the blocks that see everything, and in others.

    Today there is one mapping for each kind of block under "rope_parameters". Before,
    "rope_theta" and "rope_scaling" were for the blocks that see everything, and
    "rope_local_base_freq" was for the others, where it was not the same.

    Returns:
        `(full, local)`, each with "rope_theta" if the settings say it. The second is
        None if they hold a rotation of today's form that does not say for which blocks.

    Raises:
        ValueError: a rotation is no mapping.
    """
    today, older = (
        mapping_in(settings, name) for name in ("rope_parameters", "rope_scaling")
    )
    if not today:
        full, local = dict(older), {}
        if "rope_theta" in settings:
            full["rope_theta"] = settings["rope_theta"]
        if "rope_local_base_freq" in settings:
            local["rope_theta"] = settings["rope_local_base_freq"]
        return full, local
    if FULL not in today and SLIDING not in today:
        return today, None
    local = mapping_in(today, SLIDING)
    return mapping_in(today, FULL) or local, local


def layer_types(n_layers: int, full_every: int | None) -> list[str]:
    """What files call each block.

    Args:
        n_layers: L.
        full_every: every so many blocks one sees everything, the last of each round;
            None if none does.
    """
    return [
        FULL if full_every and (i + 1) % full_every == 0 else SLIDING
        for i in range(n_layers)
    ]


def full_every_in(settings: Mapping[str, Any], model: str) -> int | None:
    """Every how many blocks one sees everything, by "layer_types"; None if none does.

    Args:
        settings: with that list, and the number of blocks.
        model: the name of its class, for the message.

    Raises:
        ValueError: it is no such list, or has no such rhythm.
    """
    kinds = settings["layer_types"]
    n_layers = read_setting(settings, "num_hidden_layers", int)
    if not isinstance(kinds, (list, tuple)) or len(kinds) != n_layers:
        raise ValueError(
            f"The setting 'layer_types' is no list of the kinds of {n_layers} blocks: "
            f"{AS_PUBLISHED}"
        )
    every = list(kinds).index(FULL) + 1 if FULL in kinds else None
    if list(kinds) != layer_types(n_layers, every):
        raise ValueError(
            "The setting 'layer_types' mixes blocks with a window and others in "
            f"another rhythm than {model}, where every so many blocks one sees "
            "everything."
        )
    return every
