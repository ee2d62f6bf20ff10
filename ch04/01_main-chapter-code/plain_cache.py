"""A cache of keys and values in thirty lines (chapter 4, section 4.7).

`PlainCache` holds a `PlainLayer` for each block of a model. A block's attention gives
its new keys and values to `append` and works with all that come back; the model asks
`length` for the position of the first new token. Any object that does this is a cache:

>>> cache = PlainCache(num_layers=2)
>>> three = torch.randn(1, 4, 3, 16)  # keys of three tokens, (B, H, T, K)
>>> for index in range(2):
...     keys, values = cache.layer(index).append(three, three)
>>> keys, values = cache.layer(0).append(three[:, :, :1], three[:, :, :1])
>>> keys.shape, cache.length
(torch.Size([1, 4, 4, 16]), 4)
>>> cache.reset()
>>> cache.length
0

Left out: room to spare, so that not all keys are moved at each new token, windows, and
checks of what is appended. `KVCache`, chapter 4's bonus, has them and takes its place
anywhere.

Shapes: B batch, H heads of keys, T new tokens, S all tokens (cached and new), K head
width.
"""

import torch
from torch import Tensor

__all__ = ["PlainCache", "PlainLayer"]


class PlainLayer:
    """The keys and values of one block, (B, H, S, K) each; `length` is S."""

    def __init__(self):
        self.length, self.keys, self.values = 0, None, None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of T new tokens, (B, H, T, K) each, and return all.

        Returns:
            `(keys, values)` of all tokens so far, (B, H, S, K) each.
        """
        if self.length > 0:
            keys = torch.cat((self.keys, keys), dim=2)  # (B, H, S, K)
            values = torch.cat((self.values, values), dim=2)
        self.length, self.keys, self.values = keys.shape[2], keys, values
        return keys, values


class PlainCache:
    """The keys and values of a model: a `PlainLayer` for each block.

    Args:
        num_layers: how many blocks the model has.
    """

    def __init__(self, num_layers: int):
        self.num_layers = num_layers
        self.reset()

    def reset(self) -> None:
        """Forget all tokens; another batch may follow."""
        self.layers = [PlainLayer() for _ in range(self.num_layers)]

    def layer(self, index: int) -> PlainLayer:
        """The part of block `index`, counted from 0; what is appended to it stays."""
        return self.layers[index]

    @property
    def length(self) -> int:
        """How many tokens have been read."""
        return self.layers[0].length
