"""Reference models of other libraries, with the sizes of ours.

The libraries are imported by the functions: some take seconds.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import transformers
    from torch import nn


def with_exact_norms(theirs: nn.Module) -> nn.Module:
    """Return a reference model whose RMS norms keep float64, changed in place.

    Theirs take it down to float32, so PyTorch's own norm stands in for them.
    """
    from torch.nn import functional as F

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


def llama_config(cfg: Mapping[str, Any]) -> transformers.LlamaConfig:
    """Return the config of the transformers library with the sizes of a `LlamaConfig`.

    Args:
        cfg: a mapping with the entries of `LlamaConfig`.
    """
    import transformers

    rope = {"rope_theta": cfg["rope_base"], "rope_type": "default"}
    scaling = cfg["rope_scaling"]
    if scaling is not None:
        rope.update(
            rope_type="llama3",
            factor=scaling["factor"],
            low_freq_factor=scaling["low_freq_factor"],
            high_freq_factor=scaling["high_freq_factor"],
            original_max_position_embeddings=scaling["original_context_length"],
        )
    return transformers.LlamaConfig(
        vocab_size=cfg["vocab_size"],
        hidden_size=cfg["emb_dim"],
        intermediate_size=cfg["hidden_dim"],
        num_hidden_layers=cfg["n_layers"],
        num_attention_heads=cfg["n_heads"],
        num_key_value_heads=cfg["n_kv_groups"],
        head_dim=cfg["head_dim"],
        max_position_embeddings=cfg["context_length"],
        rms_norm_eps=cfg["norm_eps"],
        rope_parameters=rope,
        tie_word_embeddings=cfg["tie_weights"],
        bos_token_id=None,
        eos_token_id=None,
    )


def qwen3_model(
    cfg: Mapping[str, Any],
) -> transformers.Qwen3ForCausalLM | transformers.Qwen3MoeForCausalLM:
    """Return a Qwen3 of the transformers library with the sizes of a `Qwen3Config`.

    Args:
        cfg: a mapping with the entries of `Qwen3Config`; those of "experts" decide
            which of the two classes it is.
    """
    import transformers

    settings = llama_config({**cfg, "rope_scaling": None}).to_dict()
    names = (
        "vocab_size hidden_size intermediate_size num_hidden_layers head_dim "
        "num_attention_heads num_key_value_heads max_position_embeddings rms_norm_eps "
        "rope_parameters tie_word_embeddings"
    )
    settings = {name: settings[name] for name in names.split()}
    if cfg["experts"] is None:
        return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**settings))
    experts = {
        "moe_intermediate_size": cfg["hidden_dim"],
        "num_experts": cfg["experts"]["num_experts"],
        "num_experts_per_tok": cfg["experts"]["top_k"],
        "norm_topk_prob": cfg["experts"]["normalise"],
        "experts_implementation": "eager",  # the others want round sizes
    }
    return transformers.Qwen3MoeForCausalLM(
        transformers.Qwen3MoeConfig(**settings, **experts)
    )
