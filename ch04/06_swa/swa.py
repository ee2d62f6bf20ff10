"""Attention that looks back only so far (chapter 4, bonus: sliding windows).

`SlidingWindowAttention` is `GroupedQueryAttention` in which a token sees the last W
tokens, itself included, and on request the first few of the text, which are called
sinks. A rolling `KVCache` then never holds more than W tokens. Layers with a window and
layers that see everything alternate in most models; `layer_windows` makes the plan.

Sources: Beltagy et al., "Longformer", 2020 (arXiv:2004.05150, section 3.1); Jiang et
al., "Mistral 7B", 2023 (arXiv:2310.06825, section 2: all layers, rolling cache); Gemma
Team, "Gemma 3 Technical Report", 2025 (arXiv:2503.19786, section 2: five layers with a
window to one without, each kind with a rotary base of its own); Xiao et al., 2023
(arXiv:2309.17453: sinks). Left out: a window over padded batches with a cache.

>>> _ = torch.manual_seed(0)
>>> attention = SlidingWindowAttention(d_in=12, num_heads=6, num_kv_groups=2, window=3)
>>> x = torch.randn(1, 8, 12)
>>> other = x.clone()
>>> other[:, :5] += 1.0  # everything but the last three tokens
>>> torch.allclose(attention(x)[:, -1], attention(other)[:, -1])
True
>>> layer_windows(6, window=1024, full_every=3)
[1024, 1024, None, 1024, 1024, None]

Shapes: B batch, T new tokens, S all tokens, D model width, H query heads, G key/value
heads, R = H / G, K head width, W window.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from argument_checks import check_sizes, check_window
from gqa import GroupedQueryAttention
from llama import apply_rope, rope_cos_sin, rope_frequencies
from model_config import token_positions

__all__ = ["SlidingWindowAttention", "layer_windows"]


class SlidingWindowAttention(GroupedQueryAttention):
    """Causal attention in which each token sees the last W real ones, itself included.

    Args:
        d_in: width of a token vector, D.
        window: W.
        sinks: how many real tokens at the start of the text are seen by all; they count
            as part of the window.
        rope_base: base of this layer's own rotation, used in place of the one that is
            passed in; None uses that.
        sizes: num_heads, num_kv_groups and so on, as in `GroupedQueryAttention`.

    Raises:
        ValueError: as `GroupedQueryAttention`; or the sinks leave no place in the
            window.
    """

    def __init__(
        self,
        d_in: int,
        *,
        window: int,
        sinks: int = 0,
        rope_base: float | None = None,
        **sizes: Any,
    ):
        super().__init__(d_in, **sizes)
        check_sizes(window=window)
        check_window(window, sinks)
        self.window, self.sinks, self.rope_base = window, sinks, rope_base

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        cache: Any = None,
        rotate: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """As `GroupedQueryAttention.forward`, within the window.

        A cache may keep everything or roll, made with `masked=True`; the result is the
        same.
        """
        if self.rope_base is not None:
            past = 0 if cache is None else cache.seen
            positions = token_positions(x[..., 0], attention_mask, past)
            turns = rope_frequencies(self.head_dim, self.rope_base, None, x.device)
            cos, sin = rope_cos_sin(positions, turns)

            def turned(heads):
                return apply_rope(heads, cos, sin)

            rotate = turned

        return super().forward(x, attention_mask, cache, rotate)

    def hidden_keys(
        self, T: int, S: int, attention_mask: Tensor | None, device: torch.device
    ) -> Tensor | None:
        """Which keys each of the last T queries may not see; None if it sees all.

        Returns:
            bool, (T, S), or with an attention mask (B, 1, 1, T, S). Ages are counted
            over real tokens.
        """
        hidden = super().hidden_keys(T, S, attention_mask, device)
        if self.window >= S:
            return hidden
        if attention_mask is None:
            places = torch.arange(S, device=device)  # (S,)
        else:
            places = attention_mask.cumsum(dim=1)[:, None, None] - 1  # (B, 1, 1, S)
        keys, queries = places[..., None, :], places[..., S - T :, None]
        too_old = keys <= queries - (self.window - self.sinks)  # (..., T, S)
        too_old = too_old & (keys >= self.sinks)
        return too_old if hidden is None else hidden | too_old


def layer_windows(
    num_layers: int, window: int, full_every: int | None = None
) -> list[int | None]:
    """The window of each layer, None for a layer that sees everything.

    Args:
        num_layers: L.
        window: W.
        full_every: every so many layers one sees everything, the last of each round: 6
            is Gemma 3's five to one. None gives all layers a window.

    Raises:
        ValueError: one of them is below 1. A window of 0 would be taken for none.
    """
    every = 1 if full_every is None else full_every
    check_sizes(num_layers=num_layers, window=window, full_every=every)
    return [
        None if full_every and (layer + 1) % full_every == 0 else window
        for layer in range(num_layers)
    ]
