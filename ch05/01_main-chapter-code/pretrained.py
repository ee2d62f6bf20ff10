"""Pretrained models by name, ready to use (chapter 5, section 5.6).

`load_pretrained(name)` gives the model, its tokenizer and its config. The names:

===================  =================================================================
``smollm2-135m``     SmolLM2-135M-Instruct, a model of the Llama family from a
                     quantised file (Ben Allal et al., 2025, arXiv:2502.02737); in the
                     cache since the set-up, so no network is needed
``gpt2-small-124M``  GPT-2, the smallest of four sizes (Radford et al., 2019), fetched
                     when first asked for: 548 MB
``gpt2-medium-355M`` and ``gpt2-large-774M``, ``gpt2-xl-1558M``: its larger sisters,
                     from a file that you give with `path`
``gemma3-270m``      Gemma 3, the smallest, not tuned to chat (Gemma Team, 2025,
                     arXiv:2503.19786): 253 MB, fetched once its terms of use are
                     accepted, `python3 -m course.assets fetch gemma3-270m`
===================  =================================================================

A path is a name, too: of a checkpoint of `gpt_train.py`, the reader's own GPT, of a
folder as the model hub lays it out, of a file of weights, or of the index of several:
safetensors, PyTorch's `state_dict` or GGUF, of a GPT-2 or a Llama. `model_sources` says
by its content what it is; the bonus folder `02_alternative_weight_loading` explains the
formats.

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

from family_files import check_dtype
from gemma3_files import load_gemma3_from_gguf
from gguf_weights import load_llama_from_gguf
from gpt2_files import check_vocabulary_beside
from gpt_download import (
    GPT2_NAMES,
    download_and_load_gpt2,
    gpt_without_memory,
    load_weights_into_gpt,
)
from model_sources import load_source
from safetensors_files import fetch_model


class Pretrained(NamedTuple):
    """A model with what belongs to it: `model, tokenizer, config = ...` unpacks it.

    * `model`: in evaluation mode, on the CPU;
    * `tokenizer`: with the methods of tiktoken's `Encoding` (`encode`, `decode`,
      `decode_single_token_bytes`) and its `n_vocab` and `eot_token`; where no tokenizer
      lies beside the weights, an object that says so when it is used;
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
        name: "smollm2-135m", one of `GPT2_NAMES`, "gemma3-270m", or the path of a file
            of weights, of the index of several, or of a folder with either.
        dtype: the floating dtype of the weights, whatever the file holds.
        path: the file to read for a name, or for GPT-2 also a folder with it; None
            fetches it.

    Returns:
        `Pretrained(model, tokenizer, config)`, the model in evaluation mode.

    Raises:
        ValueError: the name is unknown, `dtype` is not floating point, or the file is
            damaged, of another model or of another kind; the message says which and
            why. Nothing in a file is ever run.
        FileNotFoundError or ValueError: there is no file at `path`.
        course.CourseError: the download failed; the message says why.
    """
    check_dtype(dtype)
    if name in _BY_NAME:
        model, tokenizer = _BY_NAME[name](name, dtype, path)
    else:
        model, tokenizer = load_source(_existing(name), dtype)
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
    load = load_gemma3_from_gguf if name == "gemma3-270m" else load_llama_from_gguf
    return load(path or fetch_model(name, by_hand), dtype)


_BY_NAME: dict[Any, Callable] = {
    "smollm2-135m": _gguf,
    **dict.fromkeys(GPT2_NAMES, _gpt2),
    "gemma3-270m": _gguf,
}


def _existing(name):
    """The path that a name is; `ValueError` if there is nothing."""
    if isinstance(name, (str, Path)):
        path = Path(name)
        if path.exists():
            return path
        if isinstance(name, Path) or path.suffix or len(path.parts) > 1:
            raise ValueError(f"There is no file or folder {str(name)!r}; {_known()}")
    raise ValueError(f"There is no pretrained model {name!r}; {_hint(name)}")


def _hint(name):
    """What to say to a name that is not known."""
    close = difflib.get_close_matches(str(name), _BY_NAME, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return _known()


def _known():
    return f"known are {', '.join(_BY_NAME)}, and files and folders of weights."
