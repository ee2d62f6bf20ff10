"""Reference models of other libraries, with the sizes of ours.

The libraries are imported by the functions: some take seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import transformers


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


def gpt2_config(cfg: Mapping[str, Any]) -> transformers.GPT2Config:
    """Return the config of the transformers library with the sizes of a `GPTConfig`.

    Nothing is dropped out, whatever `cfg` says.
    """
    import transformers

    return transformers.GPT2Config(
        vocab_size=cfg["vocab_size"],
        n_positions=cfg["context_length"],
        n_embd=cfg["emb_dim"],
        n_layer=cfg["n_layers"],
        n_head=cfg["n_heads"],
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
