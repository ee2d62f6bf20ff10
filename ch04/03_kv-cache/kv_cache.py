"""Keys and values that a model has already computed (chapter 4, bonus: KV cache).

A causal model never changes its mind about a past token: its keys and values stay
what they were. `KVCache` keeps them, so that generating a token costs one pass over
one token instead of one pass over the whole text. The idea is as old as incremental
decoding; Shazeer, "Fast Transformer Decoding", 2019 (arXiv:1911.02150, section 2.4)
describes it and counts its memory: 2 * L * B * G * S * K numbers.

The cache is an object that the caller makes, passes and throws away. No module holds
a state between calls, so nothing can leak from one prompt into the next:

>>> import torch
>>> cache = KVCache(num_layers=2, max_length=8)
>>> keys = torch.randn(1, 4, 3, 16)  # three tokens: (B, G, T, K)
>>> values = torch.randn(1, 4, 3, 16)
>>> for i in range(2):
...     all_keys, all_values = cache.layer(i).append(keys, values)
>>> cache.length
3

The next token finds the three before it:

>>> for i in range(2):
...     all_keys, _ = cache.layer(i).append(keys[:, :, :1], values[:, :, :1])
>>> all_keys.shape, cache.length
(torch.Size([1, 4, 4, 16]), 4)
>>> torch.equal(all_keys[:, :, :3], keys)
True
>>> cache.reset()
>>> cache.length
0

In a model, `cache.length` is asked once, before the first layer runs (it gives the
position of the first new token), and layer i gets `cache.layer(i)`.

Shapes: B batch, G key/value heads, T new tokens, S all tokens, K head width, L layers.
"""

import torch
from torch import Tensor

from argument_checks import (
    check_continues,
    check_in_step,
    check_keys_and_values,
    check_room,
    check_whole_number,
)

__all__ = ["KVCache", "LayerCache"]

SMALLEST_ROOM = 64  # tokens; below this, growing often would cost more than it saves


class KVCache:
    """The cached keys and values of all layers of one model, for one batch.

    Args:
        num_layers: how many layers the model has.
        max_length: the most tokens that the cache may hold, padding included;
            None for no limit but memory.
    """

    def __init__(self, num_layers: int, max_length: int | None = None):
        check_whole_number("num_layers", num_layers)
        if max_length is not None:
            check_whole_number("max_length", max_length)
        self.num_layers = num_layers
        self.max_length = max_length
        self._layers = [LayerCache(max_length) for _ in range(num_layers)]

    def layer(self, index: int) -> "LayerCache":
        """The part of layer `index`, counted from 0; what is appended to it stays."""
        return self._layers[index]

    @property
    def length(self) -> int:
        """How many tokens the cache holds, padding included.

        Raises:
            RuntimeError: the layers hold different numbers of tokens, as in the middle
                of a forward pass, or after one that was interrupted.
        """
        lengths = {layer.length for layer in self._layers}
        check_in_step(lengths)
        return lengths.pop()

    def reset(self) -> None:
        """Forget all tokens and free the memory; another batch size may follow."""
        for layer in self._layers:
            layer.reset()

    def __repr__(self) -> str:
        lengths = [layer.length for layer in self._layers]
        return (
            f"KVCache(num_layers={self.num_layers}, max_length={self.max_length}), "
            f"tokens per layer: {min(lengths)} to {max(lengths)}"
        )


class LayerCache:
    """The keys and values of one layer, (B, G, S, K) each.

    They lie in tensors with room to spare. When the room is used up it doubles, so
    over a whole text each token is moved about once; concatenating at every step
    would move all tokens every time.

    Args:
        max_length: the most tokens that it may hold; None for no limit.

    Attributes:
        length: how many tokens it holds.
    """

    def __init__(self, max_length: int | None = None):
        self.max_length = max_length
        self.reset()

    def reset(self) -> None:
        """Forget all tokens and free the memory."""
        self.length = 0
        self._keys = None  # (B, G, room, K)
        self._values = None

    @property
    def keys(self) -> Tensor | None:
        """All keys so far, (B, G, S, K), or None before the first token."""
        return None if self._keys is None else self._keys[:, :, : self.length]

    @property
    def values(self) -> Tensor | None:
        """All values so far, (B, G, S, K), or None before the first token."""
        return None if self._values is None else self._values[:, :, : self.length]

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of T new tokens.

        Args:
            keys: (B, G, T, K). B, G, K, dtype and device stay the same from one
                call to the next, until `reset`.
            values: the same shape; only K may differ from that of the keys.

        Returns:
            `(keys, values)` of all S tokens so far, (B, G, S, K) each. They are
            views of the cache: read them, do not write into them.

        Raises:
            ValueError: a shape, dtype or device does not fit; there would be more
                tokens than `max_length`; or gradients would be needed. The cache is
                unchanged.
        """
        check_keys_and_values(keys, values)
        start, end = self.length, self.length + keys.shape[2]
        if self._keys is not None and self._values is not None:
            check_continues("keys", keys, self._keys)
            check_continues("values", values, self._values)
        check_room(start, end, self.max_length)
        if self._keys is None or self._values is None or end > self._keys.shape[2]:
            room = self._next_room(end)
            self._keys = _with_room(self.keys, keys, room)
            self._values = _with_room(self.values, values, room)
        self._keys[:, :, start:end] = keys
        self._values[:, :, start:end] = values
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]  # (B, G, S, K) each

    def _next_room(self, needed):
        """For how many tokens to make room when `needed` do not fit."""
        room = max(SMALLEST_ROOM, 2 * needed)
        return room if self.max_length is None else min(room, self.max_length)


def _with_room(old, like, room):
    """A tensor for `room` tokens that starts with the old ones, if there are any."""
    B, G, _, K = like.shape
    # An ordinary tensor, even inside torch.inference_mode(): one made there could not
    # be written to after leaving it.
    with torch.inference_mode(False):
        grown = torch.empty(B, G, room, K, dtype=like.dtype, device=like.device)
    if old is not None:
        grown[:, :, : old.shape[2]] = old
    return grown
