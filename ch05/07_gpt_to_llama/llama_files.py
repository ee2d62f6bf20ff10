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

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import tiktoken
import torch
from torch import nn

from argument_checks import check_messages
from llama import LlamaConfig, LlamaModel, llama_key_map
from model_config import ModelConfig
from safetensors_files import (
    SafetensorsFiles,
    assign,
    dtype_problem,
    shape_problem,
    some_names,
    without_drawing,
)
from text_files import read_text_file

# --- Settings ------------------------------------------------------------------------

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
_SCALING = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_context_length": "original_max_position_embeddings",
}


def published_config(settings: Mapping[str, Any]) -> LlamaConfig:
    """The `LlamaConfig` that a published `config.json` describes.

    What hardly any model changes may be missing, and means what the format says: the
    head width is then D / H, the activation SiLU, and there are no biases. Everything
    else must be there, also where the format has a value: models differ in it.

    Args:
        settings: the content of the file, a mapping, in the form of any version of the
            `transformers` library: rotary settings under "rope_parameters", or as
            "rope_theta" and "rope_scaling".

    Raises:
        ValueError: a setting is missing, of another kind or out of range, or asks for
            something that `LlamaModel` does not do; the message names it.
    """
    _check_kind_of_model(settings)
    fields = {ours: _setting(settings, name, int) for ours, name in _SIZES.items()}
    if settings.get("head_dim") is None:
        fields["head_dim"] = fields["emb_dim"] // max(1, fields["n_heads"])
    else:
        fields["head_dim"] = _setting(settings, "head_dim", int)
    rope = settings.get("rope_parameters") or settings
    return LlamaConfig(
        **fields,
        rope_base=_setting(rope, "rope_theta", Real),
        rope_scaling=_scaling_of(settings),
        norm_eps=_setting(settings, "rms_norm_eps", Real),
        tie_weights=_setting(settings, "tie_word_embeddings", bool),
    )


def _scaling_of(settings: Mapping[str, Any]) -> Any:
    """The one scaling, which may stand in the form of today and in the older one."""
    today, older = settings.get("rope_parameters"), settings.get("rope_scaling")
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
    return found


def _published_scaling(scaling: Mapping[str, Any] | None) -> Any:
    """The scaling as `LlamaConfig` takes it: a dictionary, or None for none."""
    if scaling is None:
        return None
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(
            f"The rotary scaling is of type {kind!r}; LlamaModel knows 'llama3', and "
            "'default' for none."
        )
    return {ours: _setting(scaling, name, Real) for ours, name in _SCALING.items()}


def _setting(settings: Mapping[str, Any], name: str, kind: type) -> Any:
    """One setting, which must be there and of its kind."""
    if name not in settings:
        if name not in _BEFORE:
            raise ValueError(
                f"The settings lack {name!r}: take config.json as it was published."
            )
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
        raise ValueError(f"The setting {name!r} is {value!r}, not {words[kind]}.")
    return value


def _check_kind_of_model(settings):
    """Raise unless the settings are those of a Llama that `LlamaModel` can be."""
    if not isinstance(settings, Mapping):
        raise ValueError(
            f"The settings are {type(settings).__name__}: give the content of "
            "config.json, a mapping."
        )
    if settings.get("model_type") != "llama":
        raise ValueError(
            f"The settings are of model type {settings.get('model_type')!r}, and this "
            "is for 'llama': other architectures have parts that LlamaModel lacks."
        )
    wanted = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    for name, value in wanted.items():
        if settings.get(name, value) != value:
            raise ValueError(
                f"The settings ask for {name}={settings[name]!r}, but LlamaModel has "
                f"only {value!r}."
            )
    for name in ("rope_scaling", "rope_parameters"):
        if not isinstance(settings.get(name), (Mapping, type(None))):
            raise ValueError(f"The setting {name!r} is {settings[name]!r}, no mapping.")


# --- Weights -------------------------------------------------------------------------


class Family(NamedTuple):
    """What loading must know of an architecture that is put together as Llama is."""

    name: str  # for messages
    model_types: tuple[str, ...]  # what a published config.json calls it
    config: Callable[[Mapping[str, Any]], Any]  # from a published config.json
    own_config: type[ModelConfig]
    model: Callable[[Any], nn.Module]
    key_map: Callable[[Mapping[str, Any]], dict[str, str]]
    shapes: Callable[[Mapping[str, Any]], dict[str, tuple[int, ...]]]  # under our names
    # What is asked of the names before the map is made, which a false config could
    # make endless: a sentence about what is wrong, or none.
    outline_problem: Callable[[Iterable[str], Mapping[str, Any]], str]
    # From a folder and the model's number of tokens; None where it is read as Llama's.
    tokenizer: Callable[[Path, int], Any] | None = None


def load_llama_from_safetensors(
    folder: str | Path, dtype: torch.dtype = torch.bfloat16
) -> LlamaModel:
    """The model in a folder of published files.

    It is built without memory and then given its tensors, one at a time, file after
    file, so that it never exists twice. Everything that can be checked without reading
    a tensor is checked first: names, shapes, number types, sizes of files.

    Args:
        folder: holds `config.json` and `model.safetensors`, or `config.json`, several
            safetensors files, and `model.safetensors.index.json`.
        dtype: of the weights, a floating-point dtype, whatever the files hold.

    Returns:
        A `LlamaModel` in evaluation mode, on the CPU.

    Raises:
        ValueError: a file is missing or damaged, or the tensors are not those of the
            model in `config.json`; the message names the folder and the tensor.
    """
    return load_from_safetensors(folder, dtype, LLAMA)


def load_from_safetensors(
    folder: str | Path, dtype: torch.dtype, family: Family
) -> Any:
    """As `load_llama_from_safetensors`, for an architecture of that kind."""
    check_dtype(dtype)
    folder = Path(folder)
    cfg = read_config(folder, family)
    return model_from_tensors(folder, cfg, SafetensorsFiles(folder), dtype, family)


def llama_from_tensors(
    source: str | Path, cfg: LlamaConfig, tensors: SafetensorsFiles, dtype: torch.dtype
) -> LlamaModel:
    """As `model_from_tensors`, for a Llama."""
    return model_from_tensors(source, cfg, tensors, dtype, LLAMA)


def model_from_tensors(
    source: str | Path,
    cfg: Any,
    tensors: SafetensorsFiles,
    dtype: torch.dtype,
    family: Family,
) -> Any:
    """The model of a config, made of tensors under their published names.

    Args:
        source: where they come from, for messages.
        cfg: as from the family's `config`.
        tensors: a `SafetensorsFiles` or one of its kin.
        dtype: of the weights, a floating-point dtype.
        family: the architecture.

    Raises:
        ValueError: the tensors are not those of this model; the message names one.
    """
    _check_tensors(source, tensors, cfg, family)
    with without_drawing():
        model = family.model(cfg).to(dtype)
    weights = {}
    for theirs, ours in family.key_map(cfg).items():
        try:
            weights[ours] = assign(model.get_parameter(ours), tensors[theirs])
        except ValueError as problem:
            raise ValueError(f"{source}: {theirs!r}: {problem}") from None
    model.load_state_dict(weights, assign=True)
    return model.eval()


def check_dtype(dtype: torch.dtype) -> None:
    """Raise unless weights can have this dtype."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(
            f"dtype is {dtype!r}: give a floating one, such as torch.bfloat16 or "
            "torch.float32."
        )


def read_config(folder: str | Path, family: Family) -> Any:
    """The config in a folder's `config.json`; `ValueError` that names the file."""
    path = Path(folder) / "config.json"
    try:
        settings = json.loads(
            read_text_file(
                path,
                "give the folder into which config.json and the safetensors files were "
                "downloaded",
            )
        )
    except (json.JSONDecodeError, RecursionError):
        raise ValueError(f"{path}: it is not JSON; download it again.") from None
    try:
        return family.config(settings)
    except (ValueError, OverflowError) as problem:
        raise ValueError(f"{path}: {problem}") from None


def _check_tensors(source, tensors, cfg, family):
    """Raise unless the files hold just the tensors of this model."""
    problem = family.outline_problem(tensors, cfg)
    if not problem:
        names, shapes = family.key_map(cfg), family.shapes(cfg)
        problem = (
            _name_problem(tensors, cfg, names, family.name)
            or shape_problem(
                tensors.outline, {their: shapes[our] for their, our in names.items()}
            )
            or dtype_problem(tensors.outline)
            or _head_problem(tensors, cfg)
        )
    if problem:
        raise ValueError(f"{source}: {problem}")


def block_problem(tensors: Iterable[str], cfg: Mapping[str, Any]) -> str:
    """What is wrong with the number of blocks, or nothing, by the published names."""
    start = "model.layers."
    blocks = {name.split(".")[2] for name in tensors if name.startswith(start)}
    if len(blocks) != cfg["n_layers"]:
        return (
            f"the files hold {len(blocks)} blocks, but config.json asks for "
            f"{cfg['n_layers']}: take all files of one model."
        )
    return ""


def _name_problem(tensors, cfg, expected, family):
    missing = [name for name in expected if name not in tensors]
    if missing:
        return f"{some_names(missing)} missing, expected are {len(expected)} tensors."
    extra = [n for n in tensors if n not in expected and not _is_spare(n, cfg)]
    if extra:
        return (
            f"{some_names(extra)} unknown: {'an' if family[0] in 'AEIO' else 'a'} "
            f"{family} of this config has no such tensor."
        )
    return ""


def _is_spare(name, cfg):
    """Whether some files hold it although the model has it already.

    Old ones keep the rotary frequencies; some keep the tied head a second time.
    """
    second_head = cfg["tie_weights"] and name == "lm_head.weight"
    return second_head or name.endswith(".rotary_emb.inv_freq")


def _head_problem(tensors, cfg):
    head = tensors.outline.get("lm_head.weight")
    if not cfg["tie_weights"] or head is None:
        return ""
    same = head == tensors.outline["model.embed_tokens.weight"] and torch.equal(
        tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]
    )
    if same:
        return ""
    return (
        "'lm_head.weight' differs from 'model.embed_tokens.weight', but config.json "
        "says that they are tied: the files belong to different models."
    )


def llama_shapes(cfg: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """{name in `LlamaModel`: its shape}, from the config alone.

    No model is made, whose sizes a damaged file could make endless.
    """
    D, hidden_dim, V = cfg["emb_dim"], cfg["hidden_dim"], cfg["vocab_size"]
    queries = cfg["n_heads"] * cfg["head_dim"]
    keys = cfg["n_kv_groups"] * cfg["head_dim"]
    shapes = {
        "tok_emb": (V, D),
        "out_head": (V, D),
        "W_query": (queries, D),
        "W_key": (keys, D),
        "W_value": (keys, D),
        "out_proj": (D, queries),
        "gate": (hidden_dim, D),
        "up": (hidden_dim, D),
        "down": (D, hidden_dim),
    }  # and the norms, (D,)
    names = llama_key_map(cfg).values()
    return {name: shapes.get(name.split(".")[-2], (D,)) for name in names}


LLAMA = Family(
    name="Llama",
    model_types=("llama",),
    config=published_config,
    own_config=LlamaConfig,
    model=LlamaModel,
    key_map=llama_key_map,
    shapes=llama_shapes,
    outline_problem=block_problem,
)


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


def read_ranks(path: str | Path, fix: str) -> dict[bytes, int]:
    """{bytes of a token: its rank} of a file that lists them; tiktoken would crash on
    half of one.

    Args:
        path: of a text file with a token in base64 and its rank in each line.
        fix: what to do if it is another file, for the message.

    Raises:
        ValueError: the file is not there, damaged or of another kind.
    """
    path = Path(path)
    try:
        lines = [line.split() for line in path.read_bytes().splitlines()]
        ranks = {base64.b64decode(t, validate=True): int(r) for t, r in lines}
    except OSError as problem:
        raise ValueError(f"{path} cannot be read: {problem.strerror}.") from None
    except ValueError:
        raise ValueError(
            f"{path}: it is not a list of tokens in base64 with their ranks: {fix}."
        ) from None
    in_order = sorted(ranks.values()) == list(range(len(lines)))
    if not in_order or any(bytes([byte]) not in ranks for byte in range(256)):
        raise ValueError(
            f"{path}: the ranks do not run from 0 up without a gap, or a byte has no "
            "token: the file is damaged, download it again."
        )
    return ranks


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
