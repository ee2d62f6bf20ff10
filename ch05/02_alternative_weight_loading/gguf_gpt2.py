"""GPT-2 in a GGUF file: support.

llama.cpp writes GPT-2 under names of its own, its matrices turned round against the
published files. `GPT2inGGUF` gives the tensors as those files have them, so that
`load_weights_into_gpt` can take them; `gpt2_gguf_settings` gives what stands in the
metadata, in the words of a published `config.json`.

>>> settings = gpt2_gguf_settings({
...     "gpt2.context_length": 16, "gpt2.embedding_length": 12, "gpt2.block_count": 2,
...     "gpt2.attention.head_count": 3, "gpt2.attention.layer_norm_epsilon": 1e-5})
>>> settings["n_embd"], settings["n_head"]
(12, 3)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gguf_files import metadata_entry, read_gguf
from gguf_weights import dequantise
from safetensors_files import SafetensorsFiles

# llama.cpp's names, without "blk.", for the published ones; True: turned round.
_NAMES = {
    "token_embd": ("wte", False),
    "position_embd": ("wpe", False),
    "output_norm": ("ln_f", False),
    "output": ("lm_head", False),
    "attn_norm": ("ln_1", False),
    "attn_qkv": ("attn.c_attn", True),
    "attn_output": ("attn.c_proj", True),
    "ffn_norm": ("ln_2", False),
    "ffn_up": ("mlp.c_fc", True),
    "ffn_down": ("mlp.c_proj", True),
}


class GPT2inGGUF(SafetensorsFiles):
    """The tensors of a GPT-2 in a GGUF file, by the names of the published files.

    Args:
        path: of the file, or of one part of several.

    Raises:
        ValueError: the file is damaged, or stores numbers in a way that is not known.
    """

    def outline_of_file(self, file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
        """name -> (shape, dtype), where every format counts as the F32 it becomes."""
        self._found, outline = {}, {}
        for tensor in read_gguf(file).tensors.values():
            name, turned = _published(tensor.name)
            self._found[name] = tensor, turned
            outline[name] = tensor.shape[::-1] if turned else tensor.shape, "F32"
        return outline

    def read(self, file: Path, key: str) -> torch.Tensor:
        """One tensor of a file, by its published name."""
        tensor, turned = self._found[key]
        return dequantise(tensor).T if turned else dequantise(tensor)


def _published(name):
    """The published name of a tensor, and whether its matrix is turned round."""
    stem, _, kind = name.rpartition(".")
    start = ""
    if stem.startswith("blk."):
        _, layer, stem = stem.split(".", 2) if stem.count(".") > 1 else ("", "", stem)
        start = f"h.{layer}."
    theirs, turned = _NAMES.get(stem, (stem, False))
    return f"{start}{theirs}.{kind}", turned and kind == "weight"


def gpt2_gguf_settings(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in the metadata of a file, as a published `config.json` has them.

    Raises:
        ValueError: an entry is missing or of another kind.
    """
    names = {
        "n_positions": "context_length",
        "n_embd": "embedding_length",
        "n_head": "attention.head_count",
        "n_layer": "block_count",
    }
    settings: dict[str, Any] = {
        ours: metadata_entry(metadata, f"gpt2.{theirs}", int)
        for ours, theirs in names.items()
    }
    key = "gpt2.attention.layer_norm_epsilon"
    # The file has float32, whose nearest neighbour of 0.00001 is 9.99999974e-06.
    epsilon = float(f"{metadata_entry(metadata, key, float):.7g}")
    return {"model_type": "gpt2", "layer_norm_epsilon": epsilon, **settings}
