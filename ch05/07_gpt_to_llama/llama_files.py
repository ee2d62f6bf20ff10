"""Published Llama models from the files in which they come (chapter 5, bonus).

A folder on the model hub holds three things that a model needs, and this module reads
each of them into what `llama.py` and chapter 5's `gpt_generate.py` work with:

* `config.json`, the settings: `published_config`;
* `model.safetensors`, or several such files and an index, the weights:
  `load_llama_from_safetensors`;
* `original/tokenizer.model`, the vocabulary of Llama 3 and later: `llama_tokenizer`;
  and `render_llama_chat` writes a conversation in the form these models were tuned on;
* all of it in one call: `load_llama_folder`.

Source: Grattafiori et al., "The Llama 3 Herd of Models", 2024 (arXiv:2407.21783), and
the code and prompt format published with the models; `LLAMA3_PATTERN` is that code's,
as in tiktoken's own `cl100k_base` (MIT licence). Left out: the `consolidated.*.pth`
files, which are pickles and would run code when they are read; Llama 2's vocabulary,
which is of another kind (SentencePiece); tools and dates in a conversation; the weights
themselves, which are Meta's and come under its licence.

The settings that Meta published with Llama 3.2 1B, those of them that matter here:

>>> from llama import LLAMA32_1B
>>> settings = {
...     "model_type": "llama", "vocab_size": 128256, "max_position_embeddings": 131072,
...     "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
...     "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
...     "rms_norm_eps": 1e-05, "tie_word_embeddings": True, "rope_theta": 500000.0,
...     "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
...         "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}
>>> published_config(settings) == LLAMA32_1B
True

Nothing is guessed for what is not there:

>>> del settings["rope_theta"]
>>> published_config(settings)
Traceback (most recent call last):
    ...
ValueError: The settings lack 'rope_theta': files from before there was such a \
setting mean 10000.0, so write "rope_theta": 10000.0 into config.json if it is as \
published; otherwise download it again.

Shapes: D model width, H query heads, G key/value heads, K head width, F feed-forward
width, V vocabulary, L blocks.
"""

from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import tiktoken
import torch

from argument_checks import check_messages
from family_files import Family, read_config
from family_settings import mapping_in, read_setting, read_sizes
from llama import LlamaConfig, LlamaModel, llama_key_map
from vocabulary_files import read_ranks

# --- Settings ------------------------------------------------------------------------

_SCALING = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_context_length": "original_max_position_embeddings",
}


def llama_rotation(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `LlamaConfig` that say how queries and keys are turned.

    Args:
        settings: the content of a published `config.json`: rotary settings under
            "rope_parameters", or as "rope_theta" and "rope_scaling".

    Raises:
        ValueError: they are missing, contradict each other, or scale in another way
            than Llama 3.
    """
    today, older = (
        mapping_in(settings, name) for name in ("rope_parameters", "rope_scaling")
    )
    found = _published_scaling(today or older)
    if today and older and _published_scaling(older) != found:
        raise ValueError(
            "'rope_parameters' and 'rope_scaling' ask for different rotary scalings: "
            "take config.json as it was published."
        )
    name = _SCALING["original_context_length"]
    alone, within = settings.get(name), found and found["original_context_length"]
    if within and alone not in (None, within):
        raise ValueError(
            f"The setting {name!r} is {alone!r}, and {within!r} in the rotary "
            "scaling: take config.json as it was published."
        )
    base = read_setting(today or settings, "rope_theta", Real)
    return {"rope_base": base, "rope_scaling": found}


def _published_scaling(scaling):
    """The scaling as `LlamaConfig` takes it: a dictionary, or None for none."""
    kind = scaling.get("rope_type", scaling.get("type"))
    if not scaling or kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(
            f"The rotary scaling is of type {kind!r}; LlamaModel knows 'llama3', and "
            "'default' for none."
        )
    return {ours: read_setting(scaling, name, Real) for ours, name in _SCALING.items()}


def _read(settings):
    return LlamaConfig(**read_sizes(settings), **llama_rotation(settings))


# --- Weights -------------------------------------------------------------------------

LLAMA = Family(
    name="Llama",
    model_types=("llama",),
    own_config=LlamaConfig,
    model=LlamaModel,
    key_map=llama_key_map,
    read=_read,
    refused={
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
    },
)
published_config = LLAMA.config
load_llama_from_safetensors = LLAMA.load_model


def load_llama_folder(
    folder: str | Path, dtype: torch.dtype = torch.float32
) -> tuple[LlamaModel, "Llama3Encoding"]:
    """The model and the tokenizer in a folder of published files.

    Args:
        folder: as for `load_llama_from_safetensors`, with `tokenizer.model` in it or in
            `original` below it.
        dtype: of the weights, a floating-point dtype, whatever the files hold.

    Returns:
        `(model, tokenizer)`: a `LlamaModel` in evaluation mode, and what
        `llama_tokenizer` returns.

    Raises:
        ValueError: as `load_llama_from_safetensors` and `llama_tokenizer`, or the
            vocabulary is another model's.
    """
    folder = Path(folder)
    cfg = read_config(folder, LLAMA)
    places = folder / "tokenizer.model", folder / "original" / "tokenizer.model"
    tokenizer = llama_tokenizer(places[0] if places[0].exists() else places[1])
    if tokenizer.n_vocab != cfg["vocab_size"]:
        raise ValueError(
            f"{folder}: the vocabulary has {tokenizer.n_vocab} tokens, but config.json "
            f"asks for {cfg['vocab_size']}: the files belong to different models."
        )
    return load_llama_from_safetensors(folder, dtype), tokenizer


# --- Vocabulary and conversation -----------------------------------------------------

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Their places behind the ordinary tokens. There are 256; the others are reserved, or
# for tools, and get a name that only says their place.
LLAMA3_SPECIAL = {
    "<|begin_of_text|>": 0,
    "<|end_of_text|>": 1,
    "<|start_header_id|>": 6,
    "<|end_header_id|>": 7,
    "<|eot_id|>": 9,
}


class Llama3Encoding(tiktoken.Encoding):
    """tiktoken's `Encoding` with the end of an answer and the form of a chat."""

    @property
    def eot_token(self) -> int:
        """The id with which the model ends its answer, that of `<|eot_id|>`."""
        return self.encode_single_token("<|eot_id|>")

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """As `render_llama_chat`."""
        return render_llama_chat(messages, self)


def llama_tokenizer(path: str | Path) -> Llama3Encoding:
    """The tokenizer of Llama 3 and later from its `tokenizer.model`.

    Args:
        path: of a text file with a line for each token: its bytes in base64, a space,
            and its rank, which is its id and says how early its pieces merge.

    Returns:
        A tiktoken `Encoding` with as many tokens as the models have: the ranks, and 256
        special ones; and with `render_chat`.

    Raises:
        ValueError: the file is not there, damaged or of another kind.
    """
    ranks = read_ranks(
        path,
        "take original/tokenizer.model of Llama 3 or later (Llama 2's is of another "
        "kind)",
    )
    special = {f"<|special_{place}|>": place for place in range(256)}
    for name, place in LLAMA3_SPECIAL.items():
        del special[f"<|special_{place}|>"]
        special[name] = place
    return Llama3Encoding(
        name="llama3",
        pat_str=LLAMA3_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={name: len(ranks) + i for name, i in special.items()},
    )


def render_llama_chat(
    messages: Sequence[Mapping[str, str]], tokenizer: tiktoken.Encoding
) -> list[int]:
    """A conversation as token ids, up to where the model's next answer begins.

    Each message has a header with the name of its speaker, and an end. What people
    wrote is text: characters that look like a special token do not become one. White
    space around a message is dropped, as in the code published with the models.

    Args:
        messages: a list of `{"role": "system" or "user" or "assistant", "content":
            text}`.
        tokenizer: as from `llama_tokenizer`.

    Returns:
        A list of ids.

    Raises:
        ValueError: the messages are not of that form.
    """
    check_messages(messages)
    special, text = tokenizer.encode_single_token, tokenizer.encode_ordinary

    def header(role):
        name = [special("<|start_header_id|>"), *text(role)]
        return [*name, special("<|end_header_id|>"), *text("\n\n")]

    ids = [special("<|begin_of_text|>")]
    for message in messages:
        ids += header(message["role"]) + text(message["content"].strip())
        ids.append(special("<|eot_id|>"))
    return ids + header("assistant")
