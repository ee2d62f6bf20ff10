"""Adapters in files, as the library `peft` lays them out: support for appendix E.

A folder holds `adapter_config.json`, which says rank, alpha and layers, and
`adapter_model.safetensors`, the two matrices of each layer. `save_adapter` writes them,
`load_adapter` puts them beside the layers of a base model, whoever wrote them. Checked
first, all of it or nothing; nothing in a file is ever run.

Their matrices are ours transposed: `lora_A` is (rank, in_dim), `lora_B` (out_dim,
rank). Layers are named as in our model, or, with `published=True`, as in that of the
`transformers` library. There GPT-2's queries, keys and values are one layer, `c_attn`,
which has one A for all three:

* reading, each of our three gets that A, and its third of B: the same numbers;
* writing, A and B of the three stand side by side in a matrix of three times the rank,
  unless their A is the same.

(That layer also keeps its weight transposed, `fan_in_fan_out`. Only whoever merges has
to know; A and B are as elsewhere.)

Sources: the documentation and code of peft 0.21 (Apache-2.0), "Checkpoint format".
Left out: layers trained whole (`modules_to_save`), biases, DoRA, embeddings, old
`.bin` files, which are pickles.

>>> from tempfile import TemporaryDirectory
>>> from torch import nn
>>> model, again = (nn.Sequential(nn.Linear(4, 3)) for _ in range(2))
>>> _ = again.load_state_dict(model.state_dict())
>>> _ = replace_linear_with_lora(model, rank=2, alpha=2)
>>> _ = nn.init.ones_(model[0].lora.B)
>>> with TemporaryDirectory() as folder:
...     save_adapter(folder, model)
...     _ = load_adapter(folder, again)
>>> x = torch.ones(1, 4)
>>> torch.equal(again(x), model(x))
True
"""

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gpt_download import gpt2_key_map
from llama import llama_key_map
from lora import (
    LinearWithLoRA,
    adapter_names,
    linear_layers,
    lora_layers,
    lora_parameters,
    replace_linear_with_lora,
)
from model_config import config_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_KEY = re.compile(re.escape(_PREFIX) + r"(.+)\.lora_([AB])\.weight")
_BASE, _SIZES = "sha256 of the base model", "ranks and alphas"
_REFUSED = {  # what changes the numbers, and is not taken over
    "use_dora": "DoRA, which trains lengths as well",
    "lora_bias": "adapters with a bias",
    "modules_to_save": "layers that were trained whole",
    "trainable_token_indices": "trained tokens",
    "layer_replication": "layers that are there several times",
}
_KNOWN = {  # taken over, or without a part in what a trained adapter computes
    *("peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "peft_version", "r", "target_modules", "exclude_modules"),
    *("lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora"),
    *("init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern"),
    *("alpha_pattern", "megatron_config", "megatron_core", "loftq_config"),
    *("eva_config", "corda_config", "lora_ga_config", "runtime_config"),
    *("qalora_group_size", "ensure_weight_tying", "velora_config"),
}
# Other starts, such as "pissa" and "olora", change the base model as well.
_STARTS = [True, False, None, "gaussian", "eva", "orthogonal"]


class _Pair(NamedTuple):
    """An adapter's matrices for one layer, (in_dim, rank) and (rank, out_dim)."""

    A: Tensor
    B: Tensor
    alpha: float


# --- Writing -------------------------------------------------------------------------


def save_adapter(
    folder: str | os.PathLike,
    model: nn.Module,
    adapter: str | None = None,
    published: bool = False,
    base: str | None = None,
) -> None:
    """Write one adapter of a model, and nothing else of it, to a folder.

    The files also hold a hash of the base model, which `load_adapter` compares.

    Args:
        folder: made if it is missing; an adapter in it is replaced.
        model: with adapters.
        adapter: its name; None takes the active one.
        published: names of the layers as in the `transformers` library, for a
            `GPTModel` or a `LlamaModel`; otherwise as in our model.
        base: what the base model is called, for `base_model_name_or_path`.

    Raises:
        ValueError: there is no such adapter or none is active, something beside
            adapters has learned, a number is infinite or NaN, or a layer has no
            published name.
    """
    layers = lora_layers(model)
    if adapter is None:
        adapter = next((one.active for one in layers.values() if one.active), None)
    if adapter is None:
        raise ValueError(f"No adapter is active: name one of {adapter_names(model)}.")
    pairs, dropout = {}, 0.0
    for name, layer in layers.items():
        if adapter in [*layer.adapters]:
            lora: Any = layer.adapters[adapter]
            pairs[name] = _Pair(lora.A.detach(), lora.B.detach(), _plain(lora.alpha))
            dropout = lora.dropout.p
    _check_to_save(model, adapter, pairs)
    if published:
        pairs = _as_published(pairs, published_names(model))
    config = _config(pairs, dropout, published, model, base)
    tensors = {}
    for name, pair in pairs.items():
        for letter, matrix in (("A", pair.A), ("B", pair.B)):
            key = f"{_PREFIX}{name}.lora_{letter}.weight"
            tensors[key] = matrix.T.contiguous().cpu()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    words = {"format": "pt", _BASE: base_hash(model), "dtype": _dtype_name(model)}
    words[_SIZES] = _sizes_of(config)
    save_file(tensors, folder / f"{WEIGHTS}.partial", words)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / f"{CONFIG}.partial").write_text(text, encoding="utf-8")
    for name in (WEIGHTS, CONFIG):
        os.replace(folder / f"{name}.partial", folder / name)


def _plain(number):
    """The same number as Python's own: JSON knows no others."""
    return int(number) if float(number).is_integer() else float(number)


def _check_to_save(model, adapter, pairs):
    """Raise unless there is an adapter, and it is all that was learned."""
    if not pairs:
        raise ValueError(f"There is no adapter {adapter!r} to save.")
    known = {id(p) for p in lora_parameters(model)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in known:
            raise ValueError(
                f"{name} learns as well, and would not be saved: give its layer an "
                "adapter, or freeze it."
            )
    for name, pair in pairs.items():
        _check_finite(name, pair)


def _check_finite(name, pair):
    if not (pair.A.isfinite().all() and pair.B.isfinite().all()):
        raise ValueError(f"The adapter of {name} holds numbers that are not finite.")


def _config(pairs, dropout, published, model, base):
    """What adapter_config.json says; ranks and alphas that differ are patterns."""
    sizes = Counter((pair.A.shape[1], pair.alpha) for pair in pairs.values())
    [((rank, alpha), _)] = sizes.most_common(1)
    transposed = published and "n_kv_groups" not in config_of(model)
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": list(pairs),
        "rank_pattern": {
            name: p.A.shape[1] for name, p in pairs.items() if p.A.shape[1] != rank
        },
        "alpha_pattern": {n: p.alpha for n, p in pairs.items() if p.alpha != alpha},
        "fan_in_fan_out": transposed,
        "bias": "none",
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
    }


def _sizes_of(config):
    """What both files of an adapter say, so that they cannot be mixed up."""
    names = "r", "lora_alpha", "rank_pattern", "alpha_pattern"
    return json.dumps([config.get(name) for name in names], sort_keys=True)


# --- Reading -------------------------------------------------------------------------


def load_adapter(
    folder: str | os.PathLike, model: nn.Module, adapter: str = "default"
) -> nn.Module:
    """Put an adapter from a folder beside the layers of its base model; return it.

    Args:
        folder: that `save_adapter`, or `save_pretrained` of the library peft, wrote.
        model: the base model, with other adapters or none; it changes.
        adapter: what it is called here; it becomes the active one.

    Raises:
        ValueError: the files are missing, damaged, of another base model, or use what
            is left out here; one sentence says which. The model is unchanged.
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG)
    matrices, words = _read_matrices(folder / WEIGHTS)
    if words.get(_SIZES, _sizes_of(config)) != _sizes_of(config):
        raise ValueError(f"{folder}: {CONFIG} and {WEIGHTS} are of different adapters.")
    layers = linear_layers(model)
    pairs = {name: _pair(folder, name, both, config) for name, both in matrices.items()}
    if not set(pairs) <= set(layers):
        pairs = _as_ours(folder, pairs, model)
    for name, pair in pairs.items():
        _check_fits(folder, name, pair, layers[name], adapter)
    dtype = getattr(torch, words.get("dtype", ""), None)
    if _BASE in words and words[_BASE] != base_hash(model, dtype):
        raise ValueError(
            f"{folder}: this adapter was trained on another base model of the same "
            "sizes: with other weights, or another head."
        )
    more = {"dropout": config.get("lora_dropout", 0.0), "generator": torch.Generator()}
    for size in {(pair.A.shape[1], pair.alpha) for pair in pairs.values()}:
        alike = {n for n, p in pairs.items() if (p.A.shape[1], p.alpha) == size}
        replace_linear_with_lora(model, *size, alike.__contains__, adapter, **more)
    found = lora_layers(model)
    with torch.no_grad():
        for name, pair in pairs.items():
            lora: Any = found[name].adapters[adapter]
            lora.A.copy_(pair.A)
            lora.B.copy_(pair.B)
    return model


def _read_config(path):
    """The config of an adapter that can be taken over; `ValueError` for others."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind = config["peft_type"]
    except FileNotFoundError:
        raise ValueError(f"There is no {CONFIG} in {path.parent}.") from None
    except (OSError, ValueError, TypeError, KeyError) as problem:
        raise ValueError(f"{path} cannot be read ({problem}).") from None
    if kind != "LORA":
        raise ValueError(f"{path}: this is an adapter of the kind {kind}, not LoRA.")
    for name, words in _REFUSED.items():
        if config.get(name):
            raise ValueError(f"{path}: {name} is set: {words} are not taken over.")
    if config.get("bias", "none") != "none":
        raise ValueError(f"{path}: trained biases are not taken over.")
    start = config.get("init_lora_weights")
    if start not in _STARTS:
        raise ValueError(
            f"{path}: init_lora_weights is {start!r}, a start that may change the base "
            "model as well: let peft convert the adapter to plain LoRA."
        )
    for name in config.keys() - _KNOWN:
        if config[name]:
            raise ValueError(f"{path}: {name} is set, which is not known here.")
    _check_numbers(path, config)
    return config


def _check_numbers(path, config):
    """Raise unless rank, alpha, dropout and both tables of patterns can be used."""
    for key, patterns, fits in (
        ("r", "rank_pattern", lambda n: type(n) is int and 1 <= n < 1e9),
        ("lora_alpha", "alpha_pattern", lambda n: abs(n) < 1e30),  # nor is it NaN
        ("lora_dropout", None, lambda n: 0 <= n < 1),
    ):
        table = config.get(patterns) or {}
        try:
            found = [*table.values(), *([config[key]] if key in config else [])]
            [re.compile(pattern) for pattern in table]
            fine = all(type(n) in (int, float) and fits(n) for n in found)
        except (AttributeError, re.error):
            fine = False
        if not fine:
            raise ValueError(f"{path}: {key} or its patterns cannot be used.")


def _read_matrices(path):
    """{layer: {"A": tensor, "B": tensor}}, and the notes of the file."""
    found: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            words = file.metadata() or {}
            for key in file.keys():  # noqa: SIM118 - not a mapping
                match = _KEY.fullmatch(key)
                if match is None:
                    raise ValueError(f"{path}: {key!r} is no matrix of an adapter.")
                found.setdefault(match[1], {})[match[2]] = file.get_tensor(key)
    except (SafetensorError, OSError) as problem:
        raise ValueError(f"{path} is missing or damaged ({problem}).") from None
    for name, both in found.items():
        if len(both) < 2:
            raise ValueError(f"{path}: of {name} only lora_{min(both)} is there.")
    if not found:
        raise ValueError(f"{path} holds no adapter.")
    return found, words


def _pair(folder, name, both, config):
    """The matrices of a layer as ours, with the alpha that gives the same scale."""
    pair = _Pair(both["A"].T, both["B"].T, 0.0)
    rank = _by_pattern(name, config.get("rank_pattern"), config.get("r", 8))
    alpha = _by_pattern(name, config.get("alpha_pattern"), config.get("lora_alpha", 8))
    if pair.A.shape[1:] != pair.B.shape[:1] or pair.A.shape[1:] != (rank,):
        raise ValueError(
            f"{folder}: the matrices of {name} are {tuple(both['A'].shape)} and "
            f"{tuple(both['B'].shape)}, which is not the rank {rank} of its config."
        )
    _check_finite(name, pair)
    if config.get("use_rslora"):  # alpha / sqrt(rank) there, alpha / rank here
        alpha = alpha * math.sqrt(rank)
    return pair._replace(alpha=alpha)


def _by_pattern(name, patterns, usual):
    """The entry whose pattern, or whose end of a name, fits; as peft looks it up."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return usual


def _check_fits(folder, name, pair, layer, adapter):
    """Raise unless a pair has the sizes of its layer, and its name is free there."""
    linear = layer.linear if isinstance(layer, LinearWithLoRA) else layer
    there = pair.A.shape[0], pair.B.shape[1]
    if there != (linear.in_features, linear.out_features):
        raise ValueError(
            f"{folder}: the adapter of {name} is for a layer from {there[0]} to "
            f"{there[1]} numbers, but this model's is from {linear.in_features} to "
            f"{linear.out_features}: use the base model that it was trained with."
        )
    if isinstance(layer, LinearWithLoRA) and adapter in layer.adapters:
        raise ValueError(
            f"{name} has an adapter {adapter!r} already: load this one under another "
            "name."
        )


# --- Names of the transformers library -----------------------------------------------


def published_names(model: nn.Module) -> dict[str, tuple[str, int | None]]:
    """What the `transformers` library calls the linear layers of a model.

    Returns:
        {our name: (their name, which third of it is meant, or None for all of it)}.
    """
    cfg = config_of(model)
    if "n_kv_groups" in cfg:
        named = llama_key_map(cfg).items()
        table = {ours: (theirs, None) for theirs, ours in named}
    else:
        table = {
            ours: (f"transformer.{theirs}", part)
            for ours, (theirs, transposed, part) in gpt2_key_map(cfg).items()
            if transposed
        }
        table["out_head.weight"] = ("lm_head.weight", None)
    end = ".weight"
    return {
        ours.removesuffix(end): (theirs.removesuffix(end), part)
        for ours, (theirs, part) in table.items()
    }


def _as_published(pairs, names):
    """The pairs under their published names, three in one where that is one layer."""
    together: dict[str, dict[int | None, _Pair]] = {}
    for ours, pair in pairs.items():
        if ours not in names:
            raise ValueError(
                f"{ours} has no published name: save this adapter with our own names."
            )
        theirs, part = names[ours]
        together.setdefault(theirs, {})[part] = pair
    return {
        theirs: parts[None] if None in parts else _side_by_side(parts)
        for theirs, parts in together.items()
    }


def _side_by_side(parts: Mapping[Any, _Pair]) -> _Pair:
    """One pair for a layer whose output is that of three, some of them unchanged."""
    pairs = list(parts.values())
    first, width = pairs[0], pairs[0].B.shape[1]
    one_A = all(
        torch.equal(pair.A, first.A) and pair.alpha == first.alpha for pair in pairs
    )
    ranks = [first.A.shape[1]] if one_A else [pair.A.shape[1] for pair in pairs]
    B = first.B.new_zeros(sum(ranks), 3 * width)
    row = 0
    for part, pair in parts.items():
        rank = pair.A.shape[1]
        scale = (pair.alpha / rank) / (first.alpha / ranks[0])
        B[row : row + rank, part * width : (part + 1) * width] = scale * pair.B
        row += 0 if one_A else rank
    A = first.A if one_A else torch.cat([pair.A for pair in pairs], dim=1)
    return _Pair(A, B, first.alpha / ranks[0] * sum(ranks))


def _as_ours(folder, pairs, model):
    """Pairs with published names under ours; `ValueError` where a layer is missing."""
    try:
        names = published_names(model)
    except (ValueError, KeyError):
        names = {}
    ours_of: dict[str, list[tuple[str, int | None]]] = {}
    for ours, (theirs, part) in names.items():
        ours_of.setdefault(_without_prefix(theirs), []).append((ours, part))
    layers, found = linear_layers(model), {}
    for theirs, pair in pairs.items():
        published = ours_of.get(_without_prefix(theirs), [])
        targets = [(theirs, None)] if theirs in layers else published
        if not targets or any(ours not in layers for ours, _ in targets):
            raise ValueError(
                f"{folder}: the adapter has a layer {theirs}, and the model has none "
                "that could be it: use the base model that it was trained with."
            )
        for ours, part in targets:
            B = pair.B if part is None else pair.B.chunk(3, dim=1)[part]
            found[ours] = pair._replace(B=B)
    return found


def _without_prefix(name):
    """A published name without what stands before the body of a model with a head."""
    return re.sub(r"^(transformer|model)\.", "", name)


# --- Which base model ----------------------------------------------------------------


def base_hash(model: nn.Module, dtype: torch.dtype | None = None) -> str:
    """A hash of the base model's parameters, whatever adapters stand beside them.

    In bfloat16, so that it does not depend on the dtype in which the base was loaded;
    rounded to `dtype` first, in which it was when an adapter was saved.
    """
    layers = lora_layers(model)
    hashes = {}
    for name, parameter in model.named_parameters():
        owner = next((one for one in layers if name.startswith(f"{one}.")), None)
        if owner is not None:
            if not name.startswith(f"{owner}.linear."):
                continue
            name = name.replace(f"{owner}.linear.", f"{owner}.", 1)
        numbers = parameter.detach().to("cpu", dtype or parameter.dtype)
        numbers = numbers.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
        hashes[name] = hashlib.sha256(numbers.data).hexdigest()
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _dtype_name(model):
    return str(next(model.parameters()).dtype).removeprefix("torch.")
