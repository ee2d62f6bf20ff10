"""A cache for models in which only some layers keep keys and values (chapter 4, bonus).

A layer such as `GatedDeltaNet` keeps a state of fixed size instead of every token:
`LayerState`. `HybridCache` holds one for each such layer, and a `LayerCache` for the
others; `full_layers` says which these are. `state_cache_bytes` counts the states.
Source: the layers of Yang, Kautz and Hatamizadeh, 2024 (arXiv:2412.06464, section 3.4).
Left out: choosing rows of a batch, and going back in a text: no token can be taken out
of a sum.

>>> cache = HybridCache(num_layers=4, full=[3])  # 3 layers with a state, 1 without
>>> [type(cache.layer(i)).__name__ for i in range(4)]
['LayerState', 'LayerState', 'LayerState', 'LayerCache']
>>> cache.length, cache.nbytes
(0, 0)

Shapes: B batch, L layers, H memories (heads of values), G heads of queries and keys, K
width of a key, M width of a value, W tokens that the convolution sees, N = 2 G K + H M
the channels it runs over.
"""

from collections.abc import Collection

import torch
from torch import Tensor

from argument_checks import check_in_step, check_sizes
from kv_cache import LayerCache

__all__ = ["HybridCache", "LayerState", "full_layers", "state_cache_bytes"]


def full_layers(num_layers: int, every: int = 4) -> list[int]:
    """The layers that stay full attention: the last of every four, counted from 0.

    That makes three with a state for one with keys and values.

    >>> full_layers(12)
    [3, 7, 11]

    Raises:
        ValueError: one of them is below 1.
    """
    check_sizes(num_layers=num_layers, every=every)
    return list(range(every - 1, num_layers, every))


class LayerState:
    """What a `GatedDeltaNet` keeps of a text: its memories, and the last W - 1 tokens.

    Attributes:
        state: (B, H, K, M), or None before the first token.
        tail: (B, W - 1, N), or None.
        length: how many tokens have been read.
    """

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Forget the text; another batch size may follow."""
        self.state: Tensor | None = None
        self.tail: Tensor | None = None
        self.length = 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory taken."""
        parts = [part for part in (self.state, self.tail) if part is not None]
        return sum(part.untyped_storage().nbytes() for part in parts)

    def keep(self, state: Tensor, tail: Tensor, new_tokens: int) -> None:
        """Keep what is left after some more tokens, in place of what was there.

        Raises:
            ValueError: it carries a graph. Nothing is changed.
        """
        if state.requires_grad:
            raise ValueError(
                "The cache is for generating, not for training, and would keep the "
                "graph of every step alive: call the model inside torch.no_grad()."
            )
        self.state, self.tail = state, tail
        self.length += new_tokens


class HybridCache:
    """A cache for models in which only some layers keep keys and values.

    Args:
        num_layers: how many layers the model has.
        full: those with keys and values, counted from 0; the others keep a state.
        max_length: the most tokens that may be read; None for no limit but memory.
        room: for how many tokens the full layers make room at once.
    """

    def __init__(
        self,
        num_layers: int,
        full: Collection[int] = (),
        *,
        max_length: int | None = None,
        room: int | None = None,
    ):
        check_sizes(num_layers=num_layers)
        self.num_layers = num_layers
        self._layers = [
            LayerCache(max_length, room=room) if i in full else LayerState()
            for i in range(num_layers)
        ]

    def layer(self, index: int) -> LayerCache | LayerState:
        """The part of layer `index`, counted from 0."""
        return self._layers[index]

    @property
    def length(self) -> int:
        """How many tokens have been read, padding included.

        Raises:
            RuntimeError: a pass was interrupted between two layers.
        """
        lengths = {layer.length for layer in self._layers}
        check_in_step(lengths)
        return lengths.pop()

    @property
    def nbytes(self) -> int:
        """Bytes of memory taken by all layers."""
        return sum(layer.nbytes for layer in self._layers)

    def reset(self) -> None:
        """Forget all tokens and free the memory."""
        for layer in self._layers:
            layer.reset()


def state_cache_bytes(
    num_layers: int,
    batch_size: int,
    num_heads: int,
    key_dim: int,
    value_dim: int,
    num_key_heads: int,
    conv_width: int = 4,
    dtype: torch.dtype = torch.float32,
) -> int:
    """Bytes of the states of a batch: L * B * (H * K * M + (W - 1) * N) numbers.

    No number of tokens: it is the same at every length.

    Args:
        num_layers: L, those with a state.
        batch_size: B.
        num_heads: H.
        key_dim: K.
        value_dim: M.
        num_key_heads: G, in N = 2 * G * K + H * M.
        conv_width: W.
        dtype: of the model. The memories are float32 at least.
    """
    channels = 2 * num_key_heads * key_dim + num_heads * value_dim
    memory = num_heads * key_dim * value_dim
    memory *= torch.promote_types(dtype, torch.float32).itemsize
    tail = (conv_width - 1) * channels * dtype.itemsize
    return num_layers * batch_size * (memory + tail)
