"""GPT-2's published weights in the model of chapter 4 (chapter 5, section 5.6).

* `GPT2_NAMES`: the four published sizes and their configs;
* `gpt2_key_map`: which of our weights is which of theirs, as a plain table;
* `load_gpt2_params`: a checkpoint in the safetensors format, read tensor by tensor;
* `assign` and `load_weights_into_gpt`: from one to the other, after every check;
* `download_and_load_gpt2`: the files of one size.

The weights are those of Radford et al., "Language Models are Unsupervised Multitask
Learners", 2019, in the files that the `transformers` library wrote and that the model
hub keeps as `openai-community/gpt2`, `gpt2-medium`, `gpt2-large` and `gpt2-xl`: one
file or several with an index, with names that begin with `transformer.` or do not, of
float32, float16, bfloat16 or float64 numbers. Left out: OpenAI's own TensorFlow files
and PyTorch's `.bin` files, which are pickles and would run code when they are read.

Two lines of the table, for a model of one block:

>>> from gpt import GPTModel
>>> tiny = GPTConfig.of({**GPT2_NAMES["gpt2-small-124M"], "vocab_size": 50,
...                      "context_length": 8, "emb_dim": 12, "n_heads": 3,
...                      "n_layers": 1})
>>> gpt2_key_map(tiny)["trf_blocks.0.att.W_key.weight"]
('h.0.attn.c_attn.weight', True, 1)
>>> gpt2_key_map(tiny)["trf_blocks.0.norm1.scale"]
('h.0.ln_1.weight', False, None)

Shapes: D model width, V vocabulary, L blocks.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt import (
    GPT_CONFIG_124M,
    GPT_CONFIG_355M,
    GPT_CONFIG_774M,
    GPT_CONFIG_1558M,
    GPTConfig,
    GPTModel,
)
from gpt2_files import GPT2_MASKS, beside_problem
from model_config import config_of
from multihead_attention import MultiHeadAttention
from safetensors_files import (
    SafetensorsFiles,
    assign,
    check_holds_tensors,
    dtype_problem,
    fetch_model,
    name_problem,
    outline_of,
    put_weights,
    shape_problem,
    source_of,
    without_drawing,
)

# --- The four sizes ------------------------------------------------------------------

# The published models add biases to queries, keys and values, and read the token
# embedding a second time as output head. Dropout is for whoever trains on: 0 here.
GPT2_NAMES = {
    name: GPTConfig.of({**cfg, "qkv_bias": True, "tie_weights": True, "drop_rate": 0.0})
    for name, cfg in {
        "gpt2-small-124M": GPT_CONFIG_124M,
        "gpt2-medium-355M": GPT_CONFIG_355M,
        "gpt2-large-774M": GPT_CONFIG_774M,
        "gpt2-xl-1558M": GPT_CONFIG_1558M,
    }.items()
}


# --- Names and shapes ----------------------------------------------------------------


def gpt2_key_map(cfg: Mapping[str, Any]) -> dict[str, tuple[str, bool, int | None]]:
    """Where each weight of a `GPTModel` is found in GPT-2's files.

    Their layers multiply from the other side (`x @ weight`, not `x @ weight.T`), so
    the matrices of all linear layers are transposed; and the projections to queries,
    keys and values are one layer, `c_attn`, with three times the columns.

    Args:
        cfg: a `GPTConfig`, or a mapping that has "n_layers", "qkv_bias" and
            "tie_weights".

    Returns:
        A dictionary: our name -> (their name, whether it is transposed, which third of
        its last dimension is meant: 0, 1, 2, or None for all of it).
    """
    table: dict[str, tuple[str, bool, int | None]] = {
        "tok_emb.weight": ("wte.weight", False, None),
        "pos_emb.weight": ("wpe.weight", False, None),
        "final_norm.scale": ("ln_f.weight", False, None),
        "final_norm.shift": ("ln_f.bias", False, None),
    }
    if not cfg.get("tie_weights"):  # a second copy of the same numbers
        table["out_head.weight"] = ("wte.weight", False, None)
    linear = {
        "att.out_proj": "attn.c_proj",
        "ff.layers.0": "mlp.c_fc",
        "ff.layers.2": "mlp.c_proj",
    }
    for layer in range(cfg["n_layers"]):
        ours, theirs = f"trf_blocks.{layer}.", f"h.{layer}."
        for part, name in enumerate(("W_query", "W_key", "W_value")):
            fused = theirs + "attn.c_attn."
            table[f"{ours}att.{name}.weight"] = (fused + "weight", True, part)
            if cfg["qkv_bias"]:
                table[f"{ours}att.{name}.bias"] = (fused + "bias", False, part)
        for name, their_name in linear.items():
            here, there = ours + name, theirs + their_name
            table[here + ".weight"] = (there + ".weight", True, None)
            table[here + ".bias"] = (there + ".bias", False, None)
        for name, their_name in (("norm1", "ln_1"), ("norm2", "ln_2")):
            here, there = ours + name, theirs + their_name
            table[here + ".scale"] = (there + ".weight", False, None)
            table[here + ".shift"] = (there + ".bias", False, None)
    return table


# --- Reading and loading -------------------------------------------------------------


def load_gpt2_params(path: str | Path) -> SafetensorsFiles:
    """GPT-2's weights by their names in the file, without the prefix `transformer.`

    Each tensor is read from the file when it is asked for, so the whole checkpoint is
    never in memory beside the model. The causal masks that old files hold are left
    out, and so is `lm_head.weight`, which must equal `wte.weight`.

    Args:
        path: a `.safetensors` file, the `.safetensors.index.json` of a checkpoint in
            several files, or a folder with `model.safetensors` or with such an index.

    Returns:
        A mapping: name -> tensor, for `load_weights_into_gpt`.

    Raises:
        ValueError: there is no such file, or it is damaged, or no GPT-2 checkpoint;
            the message names it, and the key where one is wrong.
    """
    params = SafetensorsFiles(path, prefix="transformer.", leave_out=GPT2_MASKS)
    params.drop_copy("lm_head.weight", of="wte.weight")
    return params


def load_weights_into_gpt(gpt: GPTModel, params: Mapping[str, Tensor]) -> GPTModel:
    """Put GPT-2's weights into a model of chapter 4.

    Everything is checked, and all new weights are made, before the model changes. Its
    parameters are replaced: make an optimizer afterwards. They have the dtype that the
    model's had, whatever the file holds.

    Args:
        gpt: a `GPTModel` of the same sizes, with `qkv_bias`; it may be on the meta
            device. A model of your own needs the names of its parts.
        params: names and tensors, from `load_gpt2_params`.

    Returns:
        The model.

    Raises:
        ValueError: a tensor is missing, unknown, of another shape than the model needs
            or of a dtype that is not floating point; a number is infinite or NaN; or
            `config.json` beside the file is that of another model.
            The message names the file and the key. The model is unchanged.
    """
    table = gpt2_key_map(config_of(gpt))
    check_gpt2_params(params, table, gpt)
    weights = {}
    for name, (theirs, transposed, part) in table.items():
        weight = params[theirs]
        if part is not None:
            weight = weight.chunk(3, dim=-1)[part]  # (D, 3 D) to (D, D)
        if transposed:
            weight = weight.T
        try:
            weights[name] = assign(gpt.get_parameter(name), weight)
        except ValueError as problem:
            raise ValueError(f"{source_of(params)}: {theirs!r}: {problem}") from None
    put_weights(gpt, weights)
    return gpt


def download_and_load_gpt2(
    model_size: str, models_dir: str | Path | None = None
) -> tuple[GPTConfig, SafetensorsFiles]:
    """The config and the weights of one of the published models.

    Args:
        model_size: a name in `GPT2_NAMES`, or its last part: "124M", "355M", "774M",
            "1558M".
        models_dir: a folder that holds the file, `model.safetensors`, itself or in a
            folder called like the model; or the file. None fetches it, which the
            course does for 124M (548 MB, once).

    Returns:
        (config, params), for `GPTModel` and `load_weights_into_gpt`.

    Raises:
        ValueError: the model is unknown, or its file is not there or damaged.
        course.CourseError: the download failed; the message says why.
    """
    name = _full_name(model_size)
    if models_dir is None:
        path = _fetch(name)
    else:
        path = Path(models_dir)
        if (path / name).exists():
            path = path / name
        check_holds_tensors(path)
    return GPT2_NAMES[name], load_gpt2_params(path)


# --- Files ---------------------------------------------------------------------------

# Where the model hub keeps each size, and the gigabytes of its `model.safetensors`.
_HUB = {
    "gpt2-small-124M": ("openai-community/gpt2", 0.55),
    "gpt2-medium-355M": ("openai-community/gpt2-medium", 1.5),
    "gpt2-large-774M": ("openai-community/gpt2-large", 3.2),
    "gpt2-xl-1558M": ("openai-community/gpt2-xl", 6.4),
}


def _full_name(model_size):
    """The name in `GPT2_NAMES` for itself or for its last part."""
    for name in GPT2_NAMES:
        if model_size in (name, name.rpartition("-")[2]):
            return name
    raise ValueError(
        f"There is no GPT-2 called {model_size!r}: choose {', '.join(GPT2_NAMES)}."
    )


def _fetch(name):
    """The file of one size, by way of the course."""
    folder, size = _HUB[name]
    by_hand = (
        f"download model.safetensors of {folder} ({size} GB) from huggingface.co, and "
        "give the folder that it lies in: "
        f"download_and_load_gpt2({name!r}, models_dir=FOLDER), or "
        f"load_pretrained({name!r}, path=FOLDER)."
    )
    return fetch_model(name, by_hand)


def gpt_without_memory(
    cfg: Mapping[str, Any], dtype: torch.dtype = torch.float32
) -> GPTModel:
    """A `GPTModel` on the meta device, to load weights into: only its mask is real."""
    with without_drawing():
        gpt = GPTModel(cfg).to(dtype)
    mask = MultiHeadAttention(1, 1, gpt.cfg["context_length"], 0.0, 1).mask
    for block in gpt.trf_blocks:
        block.get_submodule("att").mask = mask  # one for all: it never changes
    return gpt


# --- What may be wrong with a checkpoint ---------------------------------------------


def check_gpt2_params(
    params: Mapping[str, Tensor], table: Mapping[str, tuple], gpt: GPTModel
) -> None:
    """Raise unless exactly the tensors of the table are there, as the model needs."""
    outline, cfg = outline_of(params), config_of(gpt)
    expected = _gpt2_shapes(table, gpt)
    problem = (
        shape_problem(outline, expected)
        or _bias_problem(outline, cfg)
        or name_problem(outline, expected)
        or dtype_problem(outline)
    )
    source = source_of(params)
    if not problem and isinstance(source, Path):
        problem = beside_problem(source, cfg)
    if problem:
        raise ValueError(f"{source}: {problem}{_other_size(outline, cfg)}")


def _gpt2_shapes(table, gpt):
    """Their name -> the shape that fits the model."""
    shapes = {}
    for name, (theirs, transposed, part) in table.items():
        shape = tuple(gpt.get_parameter(name).shape)
        if transposed:
            shape = shape[::-1]
        if part is not None:
            shape = (*shape[:-1], 3 * shape[-1])
        shapes[theirs] = shape
    return shapes


def _bias_problem(outline, cfg):
    biases = [key for key in outline if key.endswith("c_attn.bias")]
    if cfg["qkv_bias"] or not biases:
        return ""
    return f"{biases[0]!r} has no place in a model with qkv_bias=False: set it to True."


def _other_size(outline, cfg):
    """A hint if the checkpoint is another of the published models."""
    width = outline.get("wte.weight", ((),))[0]
    layers = sum(key.endswith(".ln_1.weight") for key in outline)
    for name, other in GPT2_NAMES.items():
        sizes = (other["vocab_size"], other["emb_dim"]), other["n_layers"]
        if sizes == (width, layers) and sizes != (
            (cfg["vocab_size"], cfg["emb_dim"]),
            cfg["n_layers"],
        ):
            return f" The file is {name}."
    return ""
