"""What must be true before a token is chosen: support.

`gpt_generate` asks it; what would otherwise end in NaN, in a silent wrong choice or in
half a batch becomes one sentence:

>>> check_choice(temperature=0.8, top_k=50, top_p=None)
>>> check_choice(temperature=0.8, top_k=0, top_p=None)
Traceback (most recent call last):
    ...
ValueError: top_k is 0: give a whole number from 1 up, or leave it out to keep all.
"""

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor


def check_choice(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise unless the three settings are None or in their ranges."""
    if not _is_number(temperature) or not 0 <= temperature < math.inf:
        raise ValueError(
            f"temperature is {temperature!r}: give a number from 0 up; 0 takes the "
            "likeliest token, 1 the model's own probabilities."
        )
    whole = isinstance(top_k, Integral) and not isinstance(top_k, bool)
    if top_k is not None and (not whole or top_k < 1):
        raise ValueError(
            f"top_k is {top_k!r}: give a whole number from 1 up, or leave it out to "
            "keep all."
        )
    if top_p is not None and (not _is_number(top_p) or not 0 < top_p <= 1):
        raise ValueError(
            f"top_p is {top_p!r}: give a number above 0 and at most 1, which keeps all "
            "tokens; temperature 0 takes the likeliest alone."
        )


def _is_number(value):
    return isinstance(value, Real) and not isinstance(value, bool)


def finite_logits(logits: Tensor) -> Tensor:
    """The logits in float32 at least, if every row has something to choose from."""
    if not isinstance(logits, torch.Tensor) or not logits.is_floating_point():
        found = getattr(logits, "dtype", type(logits).__name__)
        raise ValueError(
            f"The logits are {found}: give what the model returns for one place, a "
            "tensor of floating-point numbers, (batch, vocabulary)."
        )
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(
            f"The logits have shape {tuple(logits.shape)}: give (batch, vocabulary)."
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # The largest of a row is NaN if one of them is.
    if not logits.amax(dim=-1).isfinite().all():
        raise ValueError(
            "A row of logits has NaN or infinity as its largest number, so no token "
            "can be chosen: the model has diverged, or every token is forbidden."
        )
    return logits


def one_prompt(ids: Any, device: torch.device) -> Tensor:
    """The ids of one prompt as a batch of one, (1, T)."""
    idx = torch.as_tensor(ids, device=device)
    idx = idx.unsqueeze(0) if idx.ndim == 1 else idx
    if idx.ndim != 2 or len(idx) != 1:
        raise ValueError(
            f"ids has shape {tuple(idx.shape)}: a stream continues one prompt, so give "
            "a list of token ids, or (1, tokens); generate() takes a batch."
        )
    return idx
