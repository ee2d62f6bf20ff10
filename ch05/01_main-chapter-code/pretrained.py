"""Pretrained models by name, ready to use (chapter 5, sections 5.5 and 5.6).

`load_pretrained(name)` gives the model, its tokenizer and its config. The names:

===================  =================================================================
``smollm2-135m``     SmolLM2-135M-Instruct, a model of the Llama family from a
                     quantised file (Ben Allal et al., 2025, arXiv:2502.02737); in the
                     cache since the set-up, so no network is needed
``gpt2-small-124M``  GPT-2, the smallest of four sizes (Radford et al., 2019), fetched
                     when first asked for: 548 MB
``gpt2-medium-355M`` and ``gpt2-large-774M``, ``gpt2-xl-1558M``: its larger sisters,
                     from a file that you give with `path`
===================  =================================================================

A folder is a name, too: of a checkpoint of `gpt_train.py`, the reader's own GPT,
or of a published Llama as it was downloaded. Two tables below say what a name or the
content of a folder is loaded by; a new family of models is a line there.

All models share one interface, `model(idx, attention_mask=None, cache=None)`, and all
tokenizers that of tiktoken's `Encoding`. Which one the notebooks use is the reader's
choice: the environment variable ``COURSE_MODEL``.

An unknown name gets the closest one that is known:

>>> load_pretrained("gpt2-small")
Traceback (most recent call last):
    ...
ValueError: There is no pretrained model 'gpt2-small'; did you mean 'gpt2-small-124M'?
"""

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

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
from gguf_weights import load_llama_from_gguf
from gpt import GPTModel
from gpt2_files import check_vocabulary_beside
from gpt_download import (
    GPT2_NAMES,
    download_and_load_gpt2,
    gpt_without_memory,
    load_weights_into_gpt,
)
from llama_files import check_dtype, is_llama_folder, load_llama_folder
from safetensors_files import fetch_model


class Pretrained(NamedTuple):
    """A model with what belongs to it: `model, tokenizer, config = ...` unpacks it.

    * `model`: in evaluation mode, on the CPU;
    * `tokenizer`: with the methods of tiktoken's `Encoding` (`encode`, `decode`,
      `decode_single_token_bytes`) and its `n_vocab` and `eot_token`;
    * `config`: a mapping with "vocab_size", "context_length", "emb_dim", "n_layers" and
      whatever else the model's class needs.
    """

    model: nn.Module
    tokenizer: Any
    config: Mapping[str, Any]


def load_pretrained(
    name: str | Path, dtype: torch.dtype = torch.float32, path: str | Path | None = None
) -> Pretrained:
    """A pretrained model, its tokenizer and its config.

    Args:
        name: "smollm2-135m", one of `GPT2_NAMES`, or a folder.
        dtype: the floating dtype of the weights, whatever the file holds.
        path: the file to read, or for GPT-2 also a folder with it; None fetches it.
            A folder needs none.

    Returns:
        `Pretrained(model, tokenizer, config)`, the model in evaluation mode.

    Raises:
        ValueError: the name is unknown, `dtype` is not floating point, or the file is
            damaged or of another model; the message says which and why.
        FileNotFoundError or ValueError: there is no file at `path`.
        course.CourseError: the download failed; the message says why.
    """
    check_dtype(dtype)
    if name in _BY_NAME:
        model, tokenizer = _BY_NAME[name](name, dtype, path)
    else:
        model, tokenizer = _loader_of_folder(name)(Path(name), dtype)
    return Pretrained(model.eval(), tokenizer, model.cfg)


# --- By name -------------------------------------------------------------------------


def _gpt2(name, dtype, path):
    config, params = download_and_load_gpt2(name, path)
    model = load_weights_into_gpt(gpt_without_memory(config, dtype), params)
    tokenizer = tiktoken.get_encoding("gpt2")
    check_vocabulary_beside(params.path, tokenizer)
    return model, tokenizer


def _gguf(name, dtype, path):
    by_hand = f"give its file yourself, load_pretrained({name!r}, path=FILE)."
    return load_llama_from_gguf(path or fetch_model(name, by_hand), dtype)


_BY_NAME: dict[Any, Callable] = {
    "smollm2-135m": _gguf,
    **dict.fromkeys(GPT2_NAMES, _gpt2),
}


# --- By what a folder holds ----------------------------------------------------------


def _is_checkpoint(folder):
    return (folder / CHECKPOINT).exists()


def _own_gpt(folder, dtype):
    """The GPT that `gpt_train.py` saved in a folder, and its tokenizer."""
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


_BY_CONTENT: tuple[tuple[Callable, Callable], ...] = (
    (_is_checkpoint, _own_gpt),
    (is_llama_folder, load_llama_folder),
)


def _loader_of_folder(name):
    """The loader for what a folder holds; `ValueError` if there is none."""
    if not isinstance(name, (str, Path)) or not Path(name).is_dir():
        raise ValueError(f"There is no pretrained model {name!r}; {_hint(name)}")
    for holds, loader in _BY_CONTENT:
        if holds(Path(name)):
            return loader
    raise ValueError(
        f"There is no checkpoint in {name}, and no published Llama (config.json, "
        "safetensors files and tokenizer.model)."
    )


def _hint(name):
    """What to say to a name that is not known."""
    close = difflib.get_close_matches(str(name), _BY_NAME, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known are {', '.join(_BY_NAME)}, and the folders of checkpoints."
