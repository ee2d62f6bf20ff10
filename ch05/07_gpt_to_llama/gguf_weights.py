"""Real weights from a quantised GGUF file (chapter 5).

A GGUF file holds a whole language model: settings, vocabulary, merges, chat template,
and the weights, most of them quantised, which means rounded to a few levels per block
of 32. `gguf_files` takes the file apart, `gguf_tokenizer` reads its tokens, and this
module its numbers:

* `dequantise_q4_1`, `dequantise_q8_0` and `dequantise` turn blocks back into numbers;
* `gguf_config` and `gguf_key_map` say which `LlamaModel` they belong to, and where;
* `load_llama_from_gguf` fills it.

The layout is that of the GGUF specification, version 3, and of the package `gguf`,
which the tests compare with bit for bit, and which reads three formats more. Left out:
the other formats of blocks.

A block of 32 numbers takes 20 bytes in the format Q4_1: a scale, a minimum, and a level
from 0 to 15 for each number. With scale 0.5 and minimum -1, level 3 means 0.5:

>>> block = np.zeros(1, Q4_1_BLOCK)
>>> block["scale"], block["minimum"] = 0.5, -1.0
>>> block["levels"][0, 0] = 3 + 16 * 15  # two levels in a byte: numbers 0 and 16
>>> numbers = dequantise_q4_1(block.view(np.uint8).reshape(1, 20))
>>> numbers.shape, numbers[0, [0, 1, 16]].tolist()
((1, 32), [0.5, -1.0, 6.5])
>>> 8 * block.nbytes / numbers.size  # bits per number
5.0

With a file, `model, tokenizer = load_llama_from_gguf(path)` is all that is needed.

Shapes: N blocks, D model width, G key/value heads, H query heads, K head width.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gguf_files import (
    FORMATS_BY_NAME,
    GGUFTensor,
    as_blocks,
    broken_file,
    check_rope,
    metadata_entry,
    unfit_entry,
)
from gguf_models import gguf_names, gguf_sizes, load_from_gguf
from gguf_tokenizer import GGUFTokenizer
from llama import (
    LLAMA31_8B,
    LlamaConfig,
    LlamaModel,
    llama_key_map,
    pairs_to_halves,
    rope_frequencies,
)
from llama_files import LLAMA

# --- From blocks to numbers ----------------------------------------------------------

Q4_1_BLOCK = np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("levels", "u1", 16)])
Q8_0_BLOCK = np.dtype([("scale", "<f2"), ("levels", "i1", 32)])


def dequantise_q4_1(blocks: np.ndarray) -> np.ndarray:
    """Blocks of 32 numbers in the format Q4_1: scale * level + minimum.

    Byte i of the 16 holds two levels of 4 bits: the low half belongs to number i, the
    high half to number i + 16.

    Args:
        blocks: (N, 20), uint8, each row the bytes of a `Q4_1_BLOCK`.

    Returns:
        (N, 32), float32.

    Raises:
        ValueError: rows of another length or dtype.
    """
    fields = as_blocks(blocks, Q4_1_BLOCK)
    scale = fields["scale"].astype(np.float32)[:, None]  # (N, 1)
    minimum = fields["minimum"].astype(np.float32)[:, None]
    packed = fields["levels"]  # (N, 16)
    numbers = np.empty((len(blocks), 32), np.float32)
    np.multiply(scale, packed & 15, out=numbers[:, :16])
    np.multiply(scale, packed >> 4, out=numbers[:, 16:])
    numbers += minimum
    return numbers


def dequantise_q8_0(blocks: np.ndarray) -> np.ndarray:
    """Blocks of 32 numbers in the format Q8_0: scale * level, levels -128 to 127.

    Args:
        blocks: (N, 34), uint8, each row the bytes of a `Q8_0_BLOCK`.

    Returns:
        (N, 32), float32.

    Raises:
        ValueError: rows of another length or dtype.
    """
    fields = as_blocks(blocks, Q8_0_BLOCK)
    scale = fields["scale"].astype(np.float32)[:, None]  # (N, 1)
    return scale * fields["levels"]


def _plain(dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    """How to widen numbers that are stored one by one, to (N, 1) float32."""
    return lambda rows: np.ascontiguousarray(rows).view(dtype).astype(np.float32)


def _from_bfloat16(rows: np.ndarray) -> np.ndarray:
    """The upper half of a float32, (N, 2) bytes, to (N, 1) float32."""
    bits = np.ascontiguousarray(rows).view("<u2").astype(np.uint32)
    return (bits << 16).view(np.float32)


def _by_library(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """How the package `gguf` widens blocks of a format."""

    def widen(rows):
        import gguf  # here, since most files do without

        kind = gguf.GGMLQuantizationType[name]
        return gguf.quants.dequantize(np.ascontiguousarray(rows), kind)

    return widen


_TO_FLOAT32 = {  # (N, bytes of a block) uint8 to (N, numbers in a block) float32
    "F32": _plain("<f4"),
    "F16": _plain("<f2"),
    "BF16": _from_bfloat16,
    "Q4_1": dequantise_q4_1,
    "Q8_0": dequantise_q8_0,
    **{name: _by_library(name) for name in ("Q5_0", "Q4_K", "Q6_K")},
}
_CHUNK = 1 << 18  # numbers at once: what is written last is still in the cache


def dequantise(tensor: GGUFTensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The numbers of a tensor of the file.

    Args:
        tensor: a `GGUFTensor`.
        dtype: of the result; the arithmetic is float32.

    Returns:
        A new tensor of `tensor.shape`.

    Raises:
        ValueError: the file has become shorter, or a number is not finite.
    """
    to_float32 = _TO_FLOAT32[tensor.format]
    block_size = FORMATS_BY_NAME[tensor.format].block_size
    blocks = tensor.blocks()
    numbers = torch.empty(tensor.shape, dtype=dtype)
    rows = numbers.view(len(blocks), block_size)
    step = _CHUNK // block_size
    for start in range(0, len(blocks), step):
        part = to_float32(blocks[start : start + step])
        if not np.isfinite(part).all():
            what = "some of its numbers are infinite or not a number"
            raise broken_file(tensor.path, f"tensor {tensor.name}", what)
        rows[start : start + step] = torch.from_numpy(part)
    return numbers


# --- The model -----------------------------------------------------------------------


def load_llama_from_gguf(
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    read_tokenizer: Callable[[Mapping[str, Any]], Any] = GGUFTokenizer,
) -> tuple[LlamaModel, Any]:
    """The model and the tokenizer in a GGUF file.

    The model is built without memory and then given its tensors, one at a time, so that
    it never exists twice. Everything that can be checked is checked before the first
    one is read.

    Args:
        path: of a GGUF file of a Llama model, such as SmolLM2's.
        dtype: of the weights, a floating-point dtype.
        read_tokenizer: makes a tokenizer of the metadata.

    Returns:
        `(model, tokenizer)`: a `LlamaModel` in evaluation mode, and the tokenizer.

    Raises:
        ValueError: the file is damaged, or holds a model of another kind; the message
            names the file and the place.
        FileNotFoundError: there is no such file.
    """

    def read_config(metadata, tensors):
        cfg = gguf_config(metadata, tied="output.weight" not in tensors)
        divisors = tensors.pop("rope_freqs.weight", None)
        if divisors is None:
            return cfg
        return _with_scaling(cfg, dequantise(divisors, torch.float32))

    def numbers(tensor, ours, cfg):
        heads = {"W_query": cfg["n_heads"], "W_key": cfg["n_kv_groups"]}
        weight, layer = dequantise(tensor, dtype), ours.split(".")[-2]
        # llama.cpp rotates neighbours, we rotate halves
        return pairs_to_halves(weight, heads[layer]) if layer in heads else weight

    return load_from_gguf(
        path,
        dtype,
        LLAMA,
        read_config=read_config,
        read_tokenizer=read_tokenizer,
        numbers=numbers,
    )


def gguf_config(metadata: Mapping[str, Any], tied: bool) -> LlamaConfig:
    """The `LlamaConfig` in the metadata of a file.

    Args:
        metadata: as `read_gguf` returns it.
        tied: whether the output head is the embedding: whether the file lacks one.

    Raises:
        ValueError: an entry is missing, of another kind or out of range, or asks for
            something that `LlamaModel` does not do.
    """
    fields = gguf_sizes(metadata, "llama")
    fields["vocab_size"] = metadata_entry(metadata, "llama.vocab_size", int)
    fields["head_dim"] = metadata_entry(metadata, "llama.rope.dimension_count", int)
    cfg = LlamaConfig(**fields, rope_scaling=None, tie_weights=tied)
    check_rope(metadata, cfg)
    return cfg


def _with_scaling(cfg, divisors):
    """The config with the scaling from which llama.cpp made its divisors.

    It writes Llama 3's scaling as a number for each pair by which the frequency is
    divided; the slowest pair is divided by the factor itself.
    """
    factor = max(1.0, round(float(divisors.max()), 3))
    scaling = {**LLAMA31_8B["rope_scaling"], "factor": factor}
    scaled = LlamaConfig.of({**cfg, "rope_scaling": scaling})
    head_dim, base = cfg["head_dim"], cfg["rope_base"]
    wanted = rope_frequencies(head_dim, base, None)
    found = rope_frequencies(head_dim, base, scaled["rope_scaling"])
    fits = divisors.shape == wanted.shape
    if not fits or not torch.allclose(wanted / divisors, found, rtol=1e-4, atol=0):
        raise unfit_entry("rope_freqs.weight", "its scaling is not that of Llama 3")
    return scaled


def gguf_key_map(cfg: Mapping[str, Any]) -> dict[str, str]:
    """Where the tensors of a file belong: {name in the file: name in `LlamaModel`}.

    Args:
        cfg: a `LlamaConfig`, or a mapping with the same entries.
    """
    return gguf_names(llama_key_map(cfg))
