"""What a model of Llama's kind needs of a GGUF file: support.

Sizes, names and shapes, and a model that is given its tensors. `gguf_weights` makes a
Llama with it, and the bonus folder `12_gemma3` a Gemma 3.

>>> gguf_names({"model.layers.0.mlp.up_proj.weight": "trf_blocks.0.ff.up.weight"})
{'blk.0.ffn_up.weight': 'trf_blocks.0.ff.up.weight'}
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from family_files import Family, check_dtype
from gguf_files import (
    GGUFTensor,
    broken_file,
    metadata_entry,
    read_gguf,
    unfit_entry,
)
from safetensors_files import without_drawing


def gguf_sizes(metadata: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """The fields of a config that files of Llama and its kin name alike.

    Args:
        metadata: as `read_gguf` returns it.
        architecture: what the file must be of; the names of its entries begin with it.

    Raises:
        ValueError: an entry is missing or of another kind, or it is another
            architecture.
    """
    if metadata_entry(metadata, "general.architecture", str) != architecture:
        raise unfit_entry("general.architecture", f"it is not {architecture!r}")
    names = {
        "context_length": ("context_length", int),
        "emb_dim": ("embedding_length", int),
        "n_heads": ("attention.head_count", int),
        "n_kv_groups": ("attention.head_count_kv", int),
        "n_layers": ("block_count", int),
        "hidden_dim": ("feed_forward_length", int),
        "rope_base": ("rope.freq_base", float),
        "norm_eps": ("attention.layer_norm_rms_epsilon", float),
    }
    fields = {
        ours: metadata_entry(metadata, f"{architecture}.{theirs}", kind)
        for ours, (theirs, kind) in names.items()
    }
    # The file has float32, whose nearest neighbour of 0.00001 is 9.99999974e-06.
    fields["norm_eps"] = float(f"{fields['norm_eps']:.7g}")
    return fields


def gguf_names(
    published: Mapping[str, str], others: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The names of a GGUF file in place of the published ones.

    Args:
        published: {published name: our name}, as from `llama_key_map`.
        others: {part of a published name: what a GGUF file has for it}, where an
            architecture differs from Llama.
    """
    others = dict(others or {})
    parts = {
        "embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers": "blk",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    names, parts = {}, others | parts | others  # in this order, and theirs counts
    for name, ours in published.items():
        for long, short in parts.items():
            name = name.replace(long, short)
        names[name.removeprefix("model.")] = ours
    return names


def checked_names(
    path: str | Path,
    tensors: Mapping[str, GGUFTensor],
    cfg: Mapping[str, Any],
    family: Family,
    others: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """{name in the file: name in the model}, once the tensors are those of the model.

    Args:
        path: of the file, for messages.
        tensors: as `read_gguf` returns them.
        cfg: the family's config.
        family: the architecture.
        others: as in `gguf_names`.

    Raises:
        ValueError: the tensors are not those of this model; the message names one.
    """
    check_blocks(path, tensors, cfg["n_layers"])
    names, shapes = gguf_names(family.key_map(cfg), others), family.shapes(cfg)
    check_tensors(path, tensors, {name: shapes[names[name]] for name in names})
    return names


def load_from_gguf(
    path: str | Path,
    dtype: torch.dtype,
    family: Family,
    *,
    read_config: Callable[[Mapping[str, Any], dict[str, GGUFTensor]], Any],
    read_tokenizer: Callable[[Mapping[str, Any]], Any],
    numbers: Callable[[GGUFTensor, str, Any], torch.Tensor],
    others: Mapping[str, str] | None = None,
) -> tuple[Any, Any]:
    """The model and the tokenizer in a GGUF file.

    The model is built without memory and then given its tensors, one at a time, so that
    it never exists twice. Everything that can be checked is checked before the first
    one is read.

    Args:
        path: of the file.
        dtype: of the weights, a floating-point dtype.
        family: the architecture.
        read_config: the config of the metadata and of the tensors, from which it takes
            out those that are settings.
        read_tokenizer: the tokenizer of the metadata.
        numbers: of a tensor of the file, its name in the model, and the config.
        others: as in `gguf_names`.

    Raises:
        ValueError: the file is damaged, or holds a model of another kind; the message
            names the file and the place.
    """
    check_dtype(dtype)
    metadata, tensors = read_gguf(path)
    try:
        tokenizer = read_tokenizer(metadata)
        cfg = read_config(metadata, tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    names = checked_names(path, tensors, cfg, family, others)
    if tokenizer.n_vocab != cfg["vocab_size"]:
        what = f"there are {tokenizer.n_vocab} tokens, not {cfg['vocab_size']}"
        raise broken_file(Path(path), "tokenizer.ggml.tokens", what)

    def tensor(name, ours):
        return numbers(tensors[name], ours, cfg)

    return model_with(family.model, cfg, names, tensor), tokenizer


def model_with(
    make: Callable[[Any], nn.Module],
    cfg: Any,
    names: Mapping[str, str],
    numbers: Callable[[str, str], torch.Tensor],
) -> Any:
    """A model in evaluation mode, made without memory and given one tensor at a time.

    Args:
        make: its class.
        cfg: its config.
        names: as from `checked_names`.
        numbers: the tensor for a name in the file and its name in the model.
    """
    with without_drawing():
        model = make(cfg)
    weights = {ours: numbers(name, ours) for name, ours in names.items()}
    model.load_state_dict(weights, assign=True)
    return model.eval()


def check_blocks(
    path: str | Path, tensors: Mapping[str, GGUFTensor], n_layers: int
) -> None:
    """Raise unless the file has that many blocks; before a list of names is made."""
    found = len({name.split(".")[1] for name in tensors if name.startswith("blk.")})
    if found != n_layers:
        what = f"there are {found} blocks, the settings ask for {n_layers}"
        raise broken_file(Path(path), "table of tensors", what)


def check_tensors(
    path: str | Path,
    tensors: Mapping[str, GGUFTensor],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Raise unless the file has just the tensors of the model, in its shapes.

    Args:
        path: of the file.
        tensors: as `read_gguf` returns them.
        shapes: {name in the file: the shape that the settings ask for}.
    """
    path = Path(path)
    missing, extra = sorted(shapes.keys() - tensors), sorted(tensors.keys() - shapes)
    if missing or extra:
        what = f"{missing[0]} is missing" if missing else f"{extra[0]} is not known"
        raise broken_file(path, "table of tensors", what)
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            what = f"its shape is {tensors[name].shape}, the settings ask for {shape}"
            raise broken_file(path, f"tensor {name}", what)
