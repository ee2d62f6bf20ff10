"""Qwen3 as the transformers library has it, to compare with: support.

The library is imported by the function: that takes seconds, and needs the packages that
the tests add.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import transformers


def qwen3_model(
    cfg: Mapping[str, Any],
) -> transformers.Qwen3ForCausalLM | transformers.Qwen3MoeForCausalLM:
    """A random Qwen3 of the transformers library with the sizes of a `Qwen3Config`.

    Args:
        cfg: a mapping with the entries of `Qwen3Config`; those of "experts" decide
            which of the two classes it is.
    """
    import transformers

    settings: dict[str, Any] = {
        "vocab_size": cfg["vocab_size"],
        "hidden_size": cfg["emb_dim"],
        "intermediate_size": cfg["hidden_dim"],
        "num_hidden_layers": cfg["n_layers"],
        "num_attention_heads": cfg["n_heads"],
        "num_key_value_heads": cfg["n_kv_groups"],
        "head_dim": cfg["head_dim"],
        "max_position_embeddings": cfg["context_length"],
        "rms_norm_eps": cfg["norm_eps"],
        "rope_parameters": {"rope_theta": cfg["rope_base"], "rope_type": "default"},
        "tie_word_embeddings": cfg["tie_weights"],
    }
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
