"""A small GPT and a small Llama in float64, on which what both must hold is proved.

And `with_exact_norms`, for references in float64. Support: nothing here is taught.

>>> gpt, llama = small_configs(context_length=8, vocab_size=5).values()
>>> small_model(llama)(torch.tensor([[1, 2, 3]])).shape
torch.Size([1, 3, 5])
"""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from gpt import GPT_CONFIG_124M, GPTModel
from llama import SMOLLM2_135M, LlamaModel

# Settings of a small Llama, as `transformers` and published folders call them; odd on
# purpose: the head width is not D / H, and one width is prime. The size of the
# vocabulary is the test's.
LLAMA3_SCALING: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
SMALL_LLAMA: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 37,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 500.0, **LLAMA3_SCALING},
}

# Settings of a smaller one, as `LlamaModel` calls them.
TINY_LLAMA: dict[str, Any] = {
    **SMOLLM2_135M,
    "vocab_size": 13,
    "context_length": 10,
    "emb_dim": 12,
    "n_heads": 2,
    "n_kv_groups": 1,
    "head_dim": 4,
    "n_layers": 2,
    "hidden_dim": 9,
}


def small_configs(context_length: int, vocab_size: int) -> dict[str, dict[str, Any]]:
    """The sizes of a GPT and of a Llama of two blocks, by the name of their kind."""
    sizes = {"context_length": context_length, "vocab_size": vocab_size, "n_layers": 2}
    gpt = {"emb_dim": 12, "n_heads": 3, "drop_rate": 0.0}
    llama = {"emb_dim": 16, "n_heads": 4, "head_dim": 4, "hidden_dim": 20}
    return {
        "GPT": GPT_CONFIG_124M | sizes | gpt,
        "Llama": SMOLLM2_135M | sizes | llama | {"n_kv_groups": 2},
    }


def small_model(cfg: Mapping[str, Any], seed: int = 0) -> GPTModel | LlamaModel:
    """A model with random weights from a seed, in float64 and evaluation mode."""
    torch.manual_seed(seed)
    model = GPTModel(cfg) if "drop_rate" in cfg else LlamaModel(cfg)
    return model.double().eval()


def with_exact_norms(theirs: nn.Module) -> nn.Module:
    """A model of the transformers library whose RMS norms keep float64; it is changed.

    Theirs take it down to float32, so PyTorch's own norm stands in for them.
    """
    for module in theirs.modules():
        if type(module).__name__.endswith("RMSNorm"):
            norm: Any = module
            norm.forward = functools.partial(
                F.rms_norm,
                normalized_shape=norm.weight.shape,
                weight=norm.weight,
                eps=norm.variance_epsilon,
            )
    return theirs
