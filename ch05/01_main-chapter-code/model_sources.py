"""A model from a file or a folder, whatever kind of weights it holds: support.

`load_pretrained` comes here with a path. Three questions are answered by what is there,
not by what it is called: in which format are the tensors (safetensors, `torch.save`,
GGUF; one file or several), by whose names (the published ones of GPT-2, or of Llama and
its kin; or those of `GPTModel`, `LlamaModel` and so on), and what are the settings
(`config.json` beside the weights, in either form; a config saved with them; both, if
they agree). Everything is compared before a model is made, and a model is given out
whole or not at all.

What no tensor tells, above all the number of heads, must stand beside the weights. Two
things alone are filled in: a setting that hardly any model changes means, where a
published `config.json` leaves it out, what the format says ("hidden_act", the biases,
the head width; for GPT-2 "n_inner" and the like), and, without a `config.json`, GPT-2's
settings go with tensors that have its published names and one of its four sizes.

>>> from tempfile import TemporaryDirectory
>>> with TemporaryDirectory() as folder:
...     file = Path(folder, "model.safetensors")
...     _ = file.write_bytes(b"<!DOCTYPE html><title>Not found</title>")
...     load_source(file, torch.float32)  # doctest: +ELLIPSIS
Traceback (most recent call last):
    ...
ValueError: .../model.safetensors is a web page; load_pretrained takes weights as \
safetensors, as a state_dict of PyTorch or as GGUF, one file, several with their \
index, or a folder with them.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tiktoken
import torch
from torch import nn

from bpe import tokenizer_from_json
from checkpoints import (
    CHECKPOINT,
    check_class,
    checkpoint_info,
    load_checkpoint,
    saved_dtype,
)
from family_files import Family, model_from_tensors
from gemma3_files import GEMMA3, load_gemma3_from_gguf
from gguf_files import read_gguf, read_vocabulary
from gguf_gpt2 import GPT2inGGUF, gpt2_gguf_settings
from gguf_tokenizer import GGUFTokenizer
from gguf_weights import load_llama_from_gguf
from gpt import GPTConfig, GPTModel
from gpt2_files import GPT2_MASKS, settings_problem
from gpt_download import GPT2_NAMES, gpt_without_memory, load_weights_into_gpt
from hub_tokenizers import folder_tokenizer, tokenizer_of
from llama_files import LLAMA
from olmo3_files import OLMO3
from qwen3_files import QWEN3
from safetensors_files import (
    SafetensorsFiles,
    assign,
    dtype_problem,
    name_problem,
    shape_problem,
    without_drawing,
)
from state_dicts import StateDictFiles
from vocabulary_files import NoTokenizer, read_json
from weight_files import kind_of_file

_TAKEN = (
    "load_pretrained takes weights as safetensors, as a state_dict of PyTorch or as "
    "GGUF, one file, several with their index, or a folder with them."
)
_OPENERS: dict[str, type[SafetensorsFiles]] = {
    "safetensors": SafetensorsFiles,
    "PyTorch": StateDictFiles,
    "pickle": StateDictFiles,
}
# Architectures that are put together as Llama is, and have names of its kind.
_KIN: dict[str, Family] = {
    "llama": LLAMA,
    "qwen3": QWEN3,
    "gemma3": GEMMA3,
    "olmo3": OLMO3,
}
# By the name of one tensor that each of them has: (family, whose names). "llama" stands
# for its kin as well: which of them it is, the settings say.
_NAMINGS = {
    "wte.weight": ("gpt2", "published"),
    "transformer.wte.weight": ("gpt2", "published"),
    "model.embed_tokens.weight": ("llama", "published"),
    "pos_emb.weight": ("gpt2", "ours"),
    "trf_blocks.0.ff.gate.weight": ("llama", "ours"),
    "trf_blocks.0.ff.router.scores.weight": ("llama", "ours"),
}


def load_source(path: Path, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """The model and the tokenizer in a file or folder.

    Args:
        path: of a file of weights, of the index of several, or of a folder with either;
            settings and tokenizer lie beside the weights.
        dtype: of the weights, a floating-point dtype, whatever the files hold.

    Returns:
        `(model, tokenizer)`: a `GPTModel`, or a model of one of Llama's kin, on the
        CPU; a tokenizer with tiktoken's methods, or a `NoTokenizer` if there is none.

    Raises:
        ValueError: it is something else, or damaged, or of parts that do not belong
            together; the message names the file and says what was found.
    """
    try:
        return _load(path, dtype)
    except OSError as problem:
        raise ValueError(
            f"{path} cannot be read: {problem.strerror or problem}."
        ) from None


def _load(path, dtype):
    folder = path if path.is_dir() else path.parent
    if path.name == CHECKPOINT or (path / CHECKPOINT).exists():
        return _own_checkpoint(folder, dtype)
    file = _weights_in(folder) if path.is_dir() else path
    kind = kind_of_file(file)
    if kind == "GGUF":  # has its settings in it, whatever lies beside it
        return _from_gguf(file, dtype)
    if kind == "JSON":
        kind = _kind_by_index(file)
    if kind not in _OPENERS:
        raise ValueError(f"{file} is {kind}; {_TAKEN}")
    _check_alone(file)
    return _from_tensors(_OPENERS[kind], file, _settings_in(folder), dtype)


# --- What is there -------------------------------------------------------------------


def _weights_in(folder):
    """The file of weights in a folder, or the index of several."""
    for kind in (SafetensorsFiles, StateDictFiles):
        for name in (kind.WHOLE, kind.INDEX):
            if (folder / name).exists():
                return folder / name
    files = sorted(path for path in folder.iterdir() if path.is_file())
    kinds = {file: kind_of_file(file) for file in files}
    found = [file for file in files if kinds[file] in (*_OPENERS, "GGUF")]
    if len(found) == 1:
        return found[0]
    if found and all(kinds[file] == "GGUF" for file in found):  # parts of one model
        return next(iter(read_gguf(folder).tensors.values())).path
    if found:
        names = ", ".join(file.name for file in found[:4])
        raise ValueError(
            f"{folder} holds {len(found)} files of weights ({names}) and no index: "
            "give the path of one."
        )
    _settings_in(folder)  # says more, if they are of another kind of model
    names = ", ".join(file.name for file in files[:4]) or "no file"
    raise ValueError(
        f"There is no checkpoint in {folder} and no file of weights, but {names}; "
        f"{_TAKEN}"
    )


def _listed(index):
    """The names of the files that an index lists, each once."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, Mapping) or not names:
        raise ValueError(
            f"{index} is JSON and not the index of a checkpoint, so it holds no "
            "weights: give the folder that it lies in."
        )
    return list(dict.fromkeys(Path(str(name)).name for name in names.values()))


def _kind_by_index(file):
    """The kind of the files that an index lists; the first that is there tells."""
    for name in _listed(file):
        if (file.parent / name).is_file():
            return kind_of_file(file.parent / name)
    return "safetensors"  # whose reader says which files are missing


def _check_alone(file):
    """Raise if an index beside a file lists it as one of several."""
    for kind in (SafetensorsFiles, StateDictFiles):
        index = file.with_name(kind.INDEX)
        if index == file or not index.exists():
            continue
        listed = []
        with contextlib.suppress(ValueError):  # nobody asked for this index
            listed = _listed(index)
        if file.name in listed and len(listed) > 1:
            raise ValueError(
                f"{file} is one of {len(listed)} files of a model: give their index, "
                f"{index.name}, or the folder."
            )


def _settings_in(folder):
    """`(family, config)` from a folder's `config.json`, None if there is none."""
    file = folder / "config.json"
    if not file.exists():
        return None
    settings = read_json(file)
    try:
        return _config_of(settings)
    except (ValueError, TypeError, OverflowError) as problem:
        raise ValueError(f"{file}: {problem}") from None


def _config_of(settings):
    """`(family, config)` of settings in the published form or in ours."""
    kind = settings.get("model_type")
    for name, family in _KIN.items():
        if kind in family.model_types:
            return name, family.config(settings)
    if kind == "gpt2":
        return "gpt2", published_gpt2_config(settings)
    if "rope_base" in settings:
        name = min(_KIN, key=lambda name: len(_fields(_KIN[name]) ^ settings.keys()))
        return name, _KIN[name].own_config.of(settings)
    if "emb_dim" in settings:
        return "gpt2", GPTConfig.of(settings)
    *names, last = map(repr, ("gpt2", *_KIN))
    raise ValueError(
        f"it describes a model of type {kind!r}; load_pretrained takes those of the "
        f"families {', '.join(names)} and {last}."
    )


def _fields(family):
    """The names in its own config: one that is missing changes no more than that."""
    return {field.name for field in dataclasses.fields(family.own_config)}


def published_gpt2_config(settings: Mapping[str, Any]) -> GPTConfig:
    """The `GPTConfig` that a published `config.json` of the type "gpt2" describes.

    Raises:
        ValueError: a size is missing or of another kind, or `GPTModel` computes
            something else than the settings ask for; the message names the setting.
    """
    names = {
        "vocab_size": "vocab_size",
        "context_length": "n_positions",
        "emb_dim": "n_embd",
        "n_heads": "n_head",
        "n_layers": "n_layer",
    }
    for name in names.values():
        if name not in settings:
            raise ValueError(
                f"The settings lack {name!r}: take config.json as it was published."
            )
    cfg = GPTConfig(
        **{ours: settings[theirs] for ours, theirs in names.items()},
        drop_rate=0.0,
        qkv_bias=True,
        tie_weights=settings.get("tie_word_embeddings", True),
    )
    inner = settings.get("n_inner")
    problem = settings_problem(settings, cfg)
    if inner not in (None, 4 * cfg["emb_dim"]):
        problem = f"The settings ask for n_inner={inner!r}; GPTModel has 4 * n_embd."
    if problem:
        raise ValueError(problem)
    return cfg


# --- From tensors to a model ---------------------------------------------------------


def _from_tensors(opener, file, settings, dtype):
    """The model and the tokenizer of files that hold tensors by name."""
    tensors = opener(file)
    naming = [kind for name, kind in _NAMINGS.items() if name in tensors]
    if not naming:
        shown = ", ".join(list(tensors)[:3]) or "nothing"
        raise ValueError(
            f"{file}: its tensors ({shown} ...) are not those of a whole GPT-2 or "
            "Llama, which have an embedding 'transformer.wte.weight', 'wte.weight' or "
            "'model.embed_tokens.weight', or 'tok_emb.weight' in this course."
        )
    family, names = naming[0]
    saved = getattr(tensors, "config", None)
    if saved is not None:
        settings = _agreed(file, saved, settings)
    if settings is not None and family in _KIN and settings[0] in _KIN:
        family = settings[0]
    if settings is not None and settings[0] != family:
        raise ValueError(
            f"{file}: the tensors are those of a model of the family {family!r}, but "
            f"its settings are for {settings[0]!r}: keep each model in its own folder."
        )
    if settings is not None:
        cfg = settings[1]
    elif (family, names) == ("gpt2", "published"):
        cfg = _known_gpt2(file, tensors)
    else:  # of one's own model the sizes would fit any number of heads
        raise ValueError(_no_settings(file))
    if names == "ours":
        ours = opener(file, "", (".att.mask",))
        model = _with_our_names(ours, cfg, dtype, _KIN.get(family))
    elif family in _KIN:
        model = model_from_tensors(file, cfg, tensors, dtype, _KIN[family])
    else:
        prefix = "transformer." if "transformer.wte.weight" in tensors else ""
        model = _published_gpt2(opener(file, prefix, GPT2_MASKS), cfg, dtype)
    return model, _tokenizer_beside(file.parent, cfg, family)


def _agreed(file, saved, settings):
    """`(family, config)` saved in a file; those of config.json must say the same."""
    try:
        inside = _config_of(saved)
    except (ValueError, TypeError, OverflowError) as problem:
        if settings and not {"model_type", "emb_dim"} & saved.keys():
            return settings  # of something else, such as the training
        raise ValueError(f"{file}: its config: {problem}") from None
    if settings is None:
        return inside
    ours, theirs = ({"family": family, **cfg} for family, cfg in (inside, settings))
    for name, value in ours.items():
        if name != "drop_rate" and value != theirs.get(name, ...):  # of training only
            raise ValueError(
                f"{file}: its own config says {name}={value!r}, but config.json beside "
                f"it {theirs.get(name)!r}: keep the one that it was trained with."
            )
    return settings


def _known_gpt2(file, tensors):
    """The config of one of GPT-2's four sizes, by the shapes under published names."""
    outline = {
        name.removeprefix("transformer."): shape
        for name, (shape, _) in tensors.outline.items()
    }
    sizes = outline["wte.weight"], outline.get("wpe.weight"), _blocks(outline)
    for cfg in GPT2_NAMES.values():
        words = cfg["vocab_size"], cfg["emb_dim"]
        places = cfg["context_length"], cfg["emb_dim"]
        if sizes == (words, places, cfg["n_layers"]):
            return cfg
    raise ValueError(_no_settings(file))


def _no_settings(file):
    return (
        f"{file}: there is no config.json beside it, and the number of heads and other "
        "settings stand in no tensor: put the model's config.json into its folder, for "
        "a model of this course json.dumps(dict(model.cfg), default=dict)."
    )


def _blocks(names):
    """How many blocks the names are of, whoever's names they are."""
    starts = ("h.", "trf_blocks.")
    return len({name.split(".")[1] for name in names if name.startswith(starts)})


def _published_gpt2(tensors, cfg, dtype):
    """A `GPTModel` of GPT-2's published tensors, with a head of its own if need be."""
    head = None
    if cfg["tie_weights"]:
        tensors.drop_copy("lm_head.weight", of="wte.weight")
    else:
        head = tensors.take_out("lm_head.weight")
    _check_sizes(tensors, cfg, "wte.weight", "wpe.weight")
    model = load_weights_into_gpt(_empty(gpt_without_memory, cfg, dtype), tensors)
    if head is not None:
        try:
            old = model.get_parameter("out_head.weight")
            model.out_head.register_parameter("weight", assign(old, head))
        except ValueError as problem:
            raise ValueError(f"{tensors.path}: 'lm_head.weight': {problem}") from None
    return model


def _with_our_names(tensors, cfg, dtype, kin):
    """A model of this course from its own `state_dict`; kin is None for a GPT."""
    if cfg["tie_weights"]:
        tensors.drop_copy("out_head.weight", of="tok_emb.weight")
    if kin is not None:
        _check_sizes(tensors, cfg, "tok_emb.weight")
        problem = shape_problem(tensors.outline, kin.shapes(cfg))
        if problem:
            raise ValueError(f"{tensors.path}: {problem}")
        model = _empty(functools.partial(_without_memory, kin), cfg, dtype)
    else:
        _check_sizes(tensors, cfg, "tok_emb.weight", "pos_emb.weight")
        model = _empty(gpt_without_memory, cfg, dtype)
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    problem = shape_problem(tensors.outline, expected) or name_problem(
        tensors.outline, expected
    )
    if problem:
        raise ValueError(f"{tensors.path}: {problem}")
    weights = {}
    for name in expected:
        try:
            weights[name] = assign(model.get_parameter(name), tensors[name])
        except ValueError as problem:
            raise ValueError(f"{tensors.path}: {name!r}: {problem}") from None
    model.load_state_dict(weights, assign=True)
    return model


def _check_sizes(tensors, cfg, words, places=None):
    """Raise if settings differ from the tensors; before a model of any size is made."""
    outline = tensors.outline
    expected = {words: (cfg["vocab_size"], cfg["emb_dim"])}
    if places:
        expected[places] = cfg["context_length"], cfg["emb_dim"]
    problem = shape_problem(outline, expected)
    layers = _blocks(outline)
    if not problem and layers != cfg["n_layers"]:
        problem = f"it has {layers} blocks, the settings ask for {cfg['n_layers']}."
    if not problem:
        problem = dtype_problem(outline)
    if problem:
        raise ValueError(f"{tensors.path}: {problem}")


def _empty(make, cfg, dtype):
    """A model without numbers; the mask of a GPT takes memory all the same."""
    try:
        return make(cfg, dtype)
    except (RuntimeError, MemoryError, OverflowError):
        raise ValueError(
            f"A model with these settings does not fit into memory: {dict(cfg)}."
        ) from None


def _without_memory(kin, cfg, dtype):
    with without_drawing():
        return kin.model(cfg).to(dtype)


def _tokenizer_beside(folder, cfg, family):
    """The tokenizer in a folder; GPT-2's own where it has GPT-2's size and no file."""
    kin = _KIN.get(family)
    if kin is not None and kin.tokenizer is not None:
        return kin.tokenizer(folder, cfg["vocab_size"])
    found = folder_tokenizer(folder, cfg["vocab_size"], family)
    gpt2 = tiktoken.get_encoding("gpt2")
    if (
        isinstance(found, NoTokenizer)
        and family == "gpt2"
        and cfg["vocab_size"] == gpt2.n_vocab
    ):
        return gpt2
    return found


# --- GGUF ----------------------------------------------------------------------------


def _from_gguf(file, dtype):
    """The model and the tokenizer of a GGUF file, by what it says of itself."""
    metadata, tensors = read_gguf(file)
    if metadata.get("general.architecture") == "gemma3":
        return load_gemma3_from_gguf(file, dtype)
    if metadata.get("general.architecture") != "gpt2":
        llama3 = metadata.get("tokenizer.ggml.pre") == "llama-bpe"
        reader = _llama3_tokenizer if llama3 else GGUFTokenizer
        return load_llama_from_gguf(file, dtype, reader)
    if "token_embd.weight" not in tensors:
        raise ValueError(f"{file}: 'token_embd.weight' is missing.")
    try:
        cfg = published_gpt2_config(
            {
                **gpt2_gguf_settings(metadata),
                "vocab_size": tensors["token_embd.weight"].shape[0],
                "tie_word_embeddings": "output.weight" not in tensors,
            }
        )
        tokenizer = tokenizer_of(read_vocabulary(metadata, "gpt-2"), str(file))
    except ValueError as problem:
        raise ValueError(f"{file}: {problem}") from None
    return _published_gpt2(GPT2inGGUF(file), cfg, dtype), tokenizer


def _llama3_tokenizer(metadata):
    vocabulary = read_vocabulary(metadata, "llama-bpe")
    return tokenizer_of(vocabulary, "the vocabulary of the file")


# --- What `gpt_train.py` saved -------------------------------------------------------


def _own_checkpoint(folder, dtype):
    """The model that a training run of this course saved, and its tokenizer."""
    info = checkpoint_info(folder)
    check_class(folder, info, GPTModel)
    model = GPTModel(info["config"]).to(saved_dtype(info))
    saved = info.get("tokenizer")
    if saved is None:
        tokenizer = tiktoken.get_encoding("gpt2")
    else:
        tokenizer = tokenizer_from_json(saved, folder)
    load_checkpoint(folder, model, tokenizer=tokenizer)
    return model.to(dtype), tokenizer
