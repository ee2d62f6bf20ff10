"""Keys and values that a model has already computed (chapter 4, bonus: KV cache).

A past token's keys and values never change in a causal model. `KVCache` keeps
them, so that generating a token costs one pass over one token instead of one pass over
the whole text. The idea is as old as incremental decoding; Shazeer, "Fast Transformer
Decoding", 2019 (arXiv:1911.02150, section 2.4) describes it and counts its memory,
which is `kv_cache_bytes` here.

* `LayerCache` and `KVCache`: keys and values of one layer, and of a whole model;
* `read_in_chunks`: a long prompt in pieces;
* `PromptCache`: a model with a cache that knows which text it has read.

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

One text may go on in three ways, or be cut back:

>>> beams = cache.select([0, 0, 0])
>>> beams.layer(0).keys.shape, cache.layer(0).keys.shape
(torch.Size([3, 4, 4, 16]), torch.Size([1, 4, 4, 16]))
>>> cache.truncate(3)
>>> cache.length
3

In a model, `cache.length` is asked once, before the first layer runs (it gives the
position of the first new token), and layer i gets `cache.layer(i)`. Left out: pages
that several texts share (Kwon et al., 2023, arXiv:2309.06180), and a rolling window
over prompts of different lengths.

Shapes: B batch, G key/value heads, T new tokens, S all tokens, K head width, L layers,
W window, V vocabulary.
"""

import copy
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from argument_checks import (
    check_batch,
    check_continues,
    check_cut,
    check_in_step,
    check_keys_and_values,
    check_one_for_each_layer,
    check_room,
    check_single_text,
    check_sizes,
    check_whole_number,
    check_window,
    check_window_chunk,
    row_numbers,
)

__all__ = [
    "KVCache",
    "LayerCache",
    "PromptCache",
    "kv_cache_bytes",
    "read_in_chunks",
    "shared_start",
]

SMALLEST_ROOM = 64  # tokens; below this, growing often would cost more than it saves


def kv_cache_bytes(
    num_layers: int,
    batch_size: int,
    num_kv_groups: int,
    tokens: int,
    head_dim: int,
    dtype: torch.dtype = torch.float32,
) -> int:
    """Bytes of the keys and values of a batch: 2 * L * B * G * S * K numbers.

    Args:
        num_layers: L.
        batch_size: B, texts at once.
        num_kv_groups: G, heads of keys and values: all heads of a GPT, fewer in models
            with grouped queries.
        tokens: S, for which there is room; with a rolling window at most the window.
        head_dim: K.
        dtype: what a number is kept as.
    """
    numbers = 2 * num_layers * batch_size * num_kv_groups * tokens * head_dim
    return numbers * dtype.itemsize


class KVCache:
    """The cached keys and values of all layers of one model, for one batch.

    Args:
        num_layers: how many layers the model has.
        max_length: the most tokens that may be read, padding included; None for no
            limit but memory.
        room: for how many tokens to make room at once, at the first token; None grows
            by doubling.
        window: how many tokens each token sees, itself included; older ones are
            overwritten, so the memory stays the same however long the text. One number
            for all layers, or one for each, None for a layer that keeps everything.
        sinks: how many tokens at the start of the text stay in the window for good.
        masked: whether the model itself hides from each token what lies before its
            window. Only then can several tokens be read at once beyond the window.

    Attributes:
        window: the smallest window of any layer, None if all keep everything. Models
            refuse an attention mask beside it.
    """

    def __init__(
        self,
        num_layers: int,
        max_length: int | None = None,
        *,
        room: int | None = None,
        window: int | Sequence[int | None] | None = None,
        sinks: int = 0,
        masked: bool = False,
    ):
        check_whole_number("num_layers", num_layers)
        self.num_layers = num_layers
        self.max_length = max_length
        mixed = isinstance(window, Sequence)
        windows = window if mixed else [window] * num_layers
        rolling = [one for one in windows if one is not None]
        self.window = min(rolling, default=None)  # the smallest of any layer
        self.masked = masked
        check_one_for_each_layer("window", windows, num_layers)
        self._layers = [
            LayerCache(
                max_length,
                room=room,
                window=one,
                sinks=0 if mixed and one is None else sinks,
                masked=masked,
            )
            for _, one in zip(range(num_layers), windows, strict=True)
        ]

    def layer(self, index: int) -> "LayerCache":
        """The part of layer `index`, counted from 0; what is appended to it stays."""
        return self._layers[index]

    @property
    def length(self) -> int:
        """How many tokens have been read, padding included.

        With a window not all of them are still held; the next one has this position.

        Raises:
            RuntimeError: the layers hold different numbers of tokens, as in the middle
                of a forward pass, or after one that was interrupted.
        """
        lengths = {layer.seen for layer in self._layers}
        check_in_step(lengths)
        return lengths.pop()

    @property
    def nbytes(self) -> int:
        """Bytes of memory taken, the room for tokens to come included."""
        return sum(layer.nbytes for layer in self._layers)

    def reset(self) -> None:
        """Forget all tokens and free the memory; another batch size may follow."""
        for layer in self._layers:
            layer.reset()

    def truncate(self, length: int) -> None:
        """Forget all tokens but the first `length`; the memory stays.

        Layers that an interrupted pass left out of step are in step again.

        Raises:
            ValueError: fewer have been read, or a window has overwritten older ones
                that the next token would have to see. The cache is unchanged.
        """
        for layer in self._layers:
            layer.check_truncate(length)
        for layer in self._layers:
            layer.truncate(length)

    def select(self, rows: Sequence[int] | Tensor) -> "KVCache":
        """A cache of its own with some rows of the batch, in the order given.

        A row may come twice: `[0] * 8` makes eight texts of one prefix, `[2, 0, 0]`
        follows the survivors of a beam search, which keeps several texts and goes on
        with the best, and `[1, 3]` drops texts that have ended.
        """
        chosen = copy.copy(self)
        chosen._layers = [layer.select(rows) for layer in self._layers]
        return chosen

    def __repr__(self) -> str:
        lengths = [layer.seen for layer in self._layers]
        return (
            f"KVCache(num_layers={self.num_layers}, max_length={self.max_length}), "
            f"tokens per layer: {min(lengths)} to {max(lengths)}"
        )


class LayerCache:
    """The keys and values of one layer, (B, G, S, K) each.

    They lie in tensors with room to spare. When the room is used up it doubles, so on
    average each token is moved fewer than two times, however long the text;
    concatenating at every step would move all tokens every time. With a window the room
    ends at W tokens, and a new token takes the place of the oldest (the rolling buffer
    of Jiang et al., 2023, arXiv:2310.06825, section 2); `sinks` tokens at the
    start keep theirs (Xiao et al., 2023, arXiv:2309.17453, section 3.2, with the
    positions of the text).

    Args:
        max_length, room, window, sinks, masked: as in `KVCache`, `window` for this
            layer.

    Attributes:
        seen: how many tokens have been appended.
        length: how many of them the next token sees.
    """

    def __init__(
        self,
        max_length: int | None = None,
        *,
        room: int | None = None,
        window: int | None = None,
        sinks: int = 0,
        masked: bool = False,
    ):
        given = {"max_length": max_length, "room": room, "window": window}
        check_sizes(**{name: n for name, n in given.items() if n is not None})
        check_window(window, sinks)
        self.max_length, self.room = max_length, room
        self.window, self.sinks, self.masked = window, sinks, masked
        self.reset()

    def reset(self) -> None:
        """Forget all tokens and free the memory."""
        self.seen = 0
        self._keys = None  # (B, G, room, K)
        self._values = None

    @property
    def length(self) -> int:
        """How many tokens the next one sees, itself not counted."""
        return self.seen if self.window is None else min(self.seen, self.window - 1)

    @property
    def held(self) -> int:
        """How many tokens are held."""
        return self.seen if self.window is None else min(self.seen, self.window)

    @property
    def keys(self) -> Tensor | None:
        """All keys held, (B, G, S, K), or None before the first token.

        In the order of the text until a window is full; then they go round in it.
        """
        return None if self._keys is None else self._keys[:, :, : self.held]

    @property
    def values(self) -> Tensor | None:
        """All values held, in the same order, (B, G, S, K), or None."""
        return None if self._values is None else self._values[:, :, : self.held]

    @property
    def nbytes(self) -> int:
        """Bytes of memory taken, the room for tokens to come included."""
        parts = (self._keys, self._values)
        return sum(
            part.untyped_storage().nbytes() for part in parts if part is not None
        )

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of T new tokens.

        Args:
            keys: (B, G, T, K). B, G, K, dtype and device stay the same from one
                call to the next, until `reset`.
            values: the same shape; only K may differ from that of the keys.

        Returns:
            `(keys, values)` of the `length` tokens that the first new one sees, and of
            the T new ones, (B, G, length + T, K) each. They may be views of the cache,
            valid until the next call: read them, do not write into them.

        Raises:
            ValueError: a shape, dtype or device does not fit; there would be more
                tokens than `max_length`; several tokens reach beyond a window that the
                model does not mask; or gradients would be needed. The cache is
                unchanged.
        """
        check_keys_and_values(keys, values)
        start, end = self.seen, self.seen + keys.shape[2]
        if self._keys is not None and self._values is not None:
            check_continues("keys", keys, self._keys)
            check_continues("values", values, self._values)
        check_room(start, end, self.max_length)
        check_window_chunk(start, end, self.window, self.masked)
        self._make_room(keys, values, end)
        if self.window is not None and end > self.window:
            return self._roll(keys, values, self.window)
        self._keys[:, :, start:end] = keys
        self._values[:, :, start:end] = values
        self.seen = end
        return self._keys[:, :, :end], self._values[:, :, :end]  # (B, G, S, K) each

    def _make_room(self, keys, values, end):
        """Have tensors that `end` tokens fit into, or all that are ever held."""
        bounds = [n for n in (self.max_length, self.window) if n is not None]
        needed = min([end, *bounds])
        if self._keys is not None and needed <= self._keys.shape[2]:
            return
        doubled = max(SMALLEST_ROOM, 2 * needed)
        room = doubled if self.room is None or self.room < needed else self.room
        room = min([room, *bounds])
        self._keys = _with_room(self.keys, keys, room)
        self._values = _with_room(self.values, values, room)

    def _roll(self, keys, values, window):
        """Add tokens beyond the window: each takes the place of an old one."""
        start, end = self.seen, self.seen + keys.shape[2]
        turn = window - self.sinks  # places that tokens take in turn

        def places(tokens):
            return [
                t if t < self.sinks else self.sinks + (t - self.sinks) % turn
                for t in tokens
            ]

        sinks = min(self.sinks, start)
        seen = [*range(sinks), *range(max(sinks, start - turn + 1), start)]
        stay = [t for t in range(start, end) if t < self.sinks or t >= end - turn]
        parts = []
        for held, new in ((self._keys, keys), (self._values, values)):
            old = held[:, :, places(seen)] if end - start > 1 else None
            held[:, :, places(stay)] = new[:, :, [t - start for t in stay]]
            # A single token sees all that is left, in whatever order. For several the
            # order is that of the text, so that the model can mask them.
            parts.append(held if old is None else torch.cat((old, new), dim=2))
        self.seen = end
        return tuple(parts)

    def check_truncate(self, length: int) -> None:
        """Raise `ValueError` if the cache cannot go back to `length` tokens."""
        check_cut(length, self.seen, self.window)

    def truncate(self, length: int) -> None:
        """Forget all tokens but the first `length`; see `KVCache.truncate`."""
        self.check_truncate(length)
        self.seen = length

    def select(self, rows: Sequence[int] | Tensor) -> Self:
        """A part of its own with some rows of the batch; see `KVCache.select`."""
        chosen = copy.copy(self)
        if self._keys is not None and self._values is not None:
            with torch.inference_mode(False):  # as in _with_room
                index = row_numbers(rows, self._keys.device)
                chosen._keys, chosen._values = self._keys[index], self._values[index]
        return chosen


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


# --- Reading with a cache -------------------------------------------------------------


@torch.no_grad()
def read_in_chunks(
    model: nn.Module,
    idx: Tensor,
    cache: KVCache,
    chunk_size: int,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Read prompts piece by piece into a cache (chunked prefill).

    What is made on the way, logits and scores above all, is as large as a piece and not
    as large as the prompt. Beyond a rolling window that the model does not mask, pieces
    of 1 token are the only ones.

    Args:
        model: a model with the interface of `GPTModel.forward`.
        idx: token ids, (B, T), T >= 1.
        cache: a cache for this model; what it holds comes before idx. It changes.
        chunk_size: the most tokens to read at once.
        attention_mask: (B, S), True for a real token, cached ones included.

    Returns:
        The logits of the last token of each row, (B, V).

    Raises:
        ValueError: as the model. What was read before stays in the cache.
    """
    check_whole_number("chunk_size", chunk_size)
    check_batch(idx)
    past = cache.length
    for start in range(0, idx.shape[1], chunk_size):
        part = idx[:, start : start + chunk_size]  # (B, T')
        read = past + start + part.shape[1]
        real = None if attention_mask is None else attention_mask[:, :read]
        logits = model(part, attention_mask=real, cache=cache)
    return logits[:, -1]


class PromptCache:
    """A model with a cache that knows which text it has read (prompt caching).

    The start that a new text shares with the one before is not read again: a long
    instruction in front of many questions, a conversation that goes on, a guess that
    was taken back. Gim et al., 2023 (arXiv:2311.04934) keep whole modules of prompts.

    Args:
        model: a model with the interface of `GPTModel`, in evaluation mode.

    Attributes:
        cache: its `KVCache`, of one row; `cache.select` makes more of it.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.cache = KVCache(model.cfg["n_layers"])
        self._read = torch.empty(0, dtype=torch.long)

    @torch.no_grad()
    def read(self, ids: Tensor) -> Tensor:
        """Read a text, from the first token on that is new.

        Args:
            ids: all its token ids, (S,), S >= 1.

        Returns:
            Logits at the tokens that were read now, (T, V): those that are new, at
            least the last one.

        Raises:
            ValueError: as the model.
        """
        check_single_text(ids)
        known = min(shared_start(self._read.to(ids.device), ids), len(ids) - 1)
        self.cache.truncate(known)
        self._read = ids[:known].clone()  # if the model fails, this is certain
        logits = self.model(ids[None, known:], cache=self.cache)[0]  # (T, V)
        self._read = ids.clone()
        return logits


def shared_start(first: Tensor, second: Tensor) -> int:
    """How many tokens two texts, (S,) and (S',), have in common from the start on."""
    length = min(len(first), len(second))
    equal = first[:length] == second[:length]
    return int(equal.long().cumprod(dim=0).sum())
