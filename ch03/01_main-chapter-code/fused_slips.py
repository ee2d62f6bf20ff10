"""What slips in exercise 3.8 compute: attention from one fused projection, done wrong.

>>> _ = torch.manual_seed(0)
>>> x, qkv = torch.randn(1, 4, 6), nn.Linear(6, 18)
>>> right = fused_heads(x, qkv, 2)  # before the output projection
>>> torch.equal(right, fused_heads(x, qkv, 2, order=(1, 0, 2)))
False

Shapes: B batch, T tokens, D width, H heads, K width of a head.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def _split_heads(x, H):
    B, T, D = x.shape
    return x.view(B, T, H, D // H).transpose(1, 2)


def _split_without_transpose(x, H):
    B, T, D = x.shape
    return x.reshape(B, H, T, D // H)


def _split_interleaved(x, H):
    B, T, D = x.shape
    return x.view(B, T, D // H, H).permute(0, 3, 1, 2)


def merge_heads(heads: Tensor) -> Tensor:
    """Put the heads side by side: (B, H, T, K) -> (B, T, H * K)."""
    B, H, T, K = heads.shape
    return heads.transpose(1, 2).reshape(B, T, H * K)


def fused_heads(
    x: Tensor,
    qkv: nn.Module,
    H: int,
    order: tuple[int, int, int] = (0, 1, 2),
    split: Callable[[Tensor, int], Tensor] = _split_heads,
    scale: float | None = None,
    **softmax: Any,
) -> Tensor:
    """Outputs of the heads, (B, H, T, K); the options each plant one mistake."""
    thirds = qkv(x).chunk(3, dim=-1)
    queries, keys, values = (split(thirds[i], H) for i in order)
    K = queries.shape[-1]
    scores = queries @ keys.transpose(-2, -1) / (scale or K**0.5)
    return _masked_weights(scores, **softmax) @ values


def _masked_weights(scores, hide="future", dim=-1):
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    if hide:
        hidden = hidden if hide == "future" else hidden.T
        scores = scores.masked_fill(hidden, -torch.inf)
    return torch.softmax(scores, dim=dim)


def fused_mistakes(
    x: Tensor, qkv: nn.Module, out_proj: nn.Module, H: int
) -> dict[str, Tensor]:
    """Return what each mistake computes, under the sentence that names it."""
    B, T, D = x.shape

    def outcome(**mistake):
        return out_proj(merge_heads(fused_heads(x, qkv, H, **mistake)))

    right = fused_heads(x, qkv, H)
    unsplit = _split_without_transpose
    by_head = qkv(x).view(B, T, H, 3, D // H).permute(3, 0, 2, 1, 4)
    by_head = torch.cat([merge_heads(part) for part in by_head], dim=-1)
    mistakes = {
        "the heads are right, but out_proj is never applied": merge_heads(right),
        "a new shape alone cuts the heads across tokens; an axis has to move": out_proj(
            merge_heads(fused_heads(x, qkv, H, split=unsplit))
        ),
        "each head gets every third column instead of neighbouring ones": outcome(
            split=_split_interleaved
        ),
        "the heads are joined without moving their axis back, so tokens get mixed": (
            out_proj(right.reshape(B, T, D))
        ),
        "the heads are cut and joined without ever moving an axis": out_proj(
            fused_heads(x, qkv, H, split=unsplit).reshape(B, T, D)
        ),
        "the output of qkv is read as if each head kept its own three parts together": (
            out_proj(merge_heads(fused_heads(by_head, nn.Identity(), H)))
        ),
        "the scores are scaled by the whole width, not by that of a head": outcome(
            scale=D**0.5
        ),
        "the scores are not scaled": outcome(scale=1.0),
        "every token sees the later ones": outcome(hide=""),
        "the past is hidden instead of the future": outcome(hide="past"),
        "softmax runs over the queries instead of over the keys": outcome(dim=-2),
    }
    return mistakes
