"""Checks of arguments that several chapters share.

Support: nothing here is taught. A check is here because the mistake that it catches
would give wrong numbers without an error, or an error that points somewhere else. What
PyTorch itself says clearly (a matrix of the wrong dtype, a list where a tensor belongs)
is left to PyTorch. A function called `check_...` returns nothing. It
raises an error, nearly always `ValueError`, with a sentence that names the argument and
the fix; for tokens that would be skipped it only warns:

>>> check_sizes(num_heads=4, d_in=32)
>>> check_sizes(num_heads=0)
Traceback (most recent call last):
    ...
ValueError: num_heads is 0: give a whole number from 1 up.

Shapes: B batch, T new tokens, S all tokens (cached and new), V vocabulary.
"""

import inspect
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

# --- Numbers -------------------------------------------------------------------------


def check_whole_number(name: str, value: Any, least: int = 1) -> None:
    """Raise unless `value` is a whole number from `least` up; NumPy's count, too."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(f"{name} is {value!r}: give a whole number from {least} up.")


def check_sizes(**sizes: Any) -> None:
    """Raise unless every size is a whole number from 1 up."""
    for name, size in sizes.items():
        check_whole_number(name, size)


def check_divisible(**sizes: int) -> None:
    """Raise unless the first of two sizes is a multiple of the second.

    >>> check_divisible(d_out=8, num_heads=3)
    Traceback (most recent call last):
        ...
    ValueError: d_out=8 cannot be shared by num_heads=3 evenly: choose a multiple of it.
    """
    (name, size), (among, count) = sizes.items()
    if size % count:
        raise ValueError(
            f"{name}={size} cannot be shared by {among}={count} evenly: choose a "
            "multiple of it."
        )


# --- Texts, windows and batches ------------------------------------------------------


def check_tokens(*lists: Any) -> None:
    """Raise for a text instead of tokens: it would count as a list of characters."""
    if any(isinstance(tokens, str) for tokens in lists):
        raise TypeError(
            "Tokens must be a list of strings, not one string; "
            "call split_into_tokens(text) first, and put special tokens into a list."
        )


def check_runs(text: str, where: str = "The text") -> None:
    """Raise for a run of white space that the tokenizers' patterns cannot read.

    Whatever follows it, they look for its end step by step, and each step takes memory
    that has a bound; what they say then names neither the place nor the fix.
    """
    for run in re.finditer(r"\s{1000,}", text) if len(text) > LONGEST_RUN else ():
        start, end = run.span()
        if end - start > LONGEST_RUN:
            line = text.count("\n", 0, start) + 1
            raise ValueError(
                f"{where} has {end - start:,} white-space characters in a row, from "
                f"character {start:,} in line {line:,} on, and tokenizers read at most "
                f"{LONGEST_RUN:,}: shorten them."
            )


def check_known(tokens: Sequence[str], vocab: Mapping[str, int]) -> None:
    """Raise `KeyError` for a token outside the vocabulary, which other cuts can be."""
    for token in tokens:
        if token not in vocab:
            raise KeyError(
                f"{token!r} is not in the vocabulary: make it with split_into_tokens, "
                "which keeps words such as it's whole, from a text that has this word, "
                "or use SimpleTokenizerV2, which writes <|unk|> instead."
            )


LONGEST_RUN = 900_000  # of 998,547 GPT-2's pattern is no longer sure


def check_vocabulary(vocab: Mapping[str, int]) -> None:
    """Raise if two tokens share an id, of which decoding would know one only."""
    if len(set(vocab.values())) < len(vocab):
        raise ValueError(
            "Two tokens of the vocabulary share an id; give each its own, "
            "as build_vocabulary does."
        )


def check_windows(max_length: int, stride: int) -> None:
    """Raise unless windows can be cut; warn the caller's caller of skipped tokens."""
    check_sizes(max_length=max_length, stride=stride)
    if stride > max_length:
        warnings.warn(
            f"stride={stride} is larger than max_length={max_length}, so of every "
            f"{stride} tokens {stride - max_length} are never an input; use a stride "
            f"of at most {max_length} to read all of them.",
            stacklevel=3,
        )


def check_window_fits(num_tokens: int, max_length: int) -> None:
    """Raise if a text is too short for one window and its target."""
    if num_tokens <= max_length:
        raise ValueError(
            f"The text is too short: it has {num_tokens} tokens, but one window of "
            f"max_length={max_length} with its target needs {max_length + 1}; use a "
            "longer text or a smaller max_length."
        )


def check_any_batch(num_windows: int, batch_size: int) -> None:
    """Raise if dropping the incomplete last batch would leave none."""
    if num_windows < batch_size:
        raise ValueError(
            f"The text has too few windows, {num_windows} for batch_size={batch_size}, "
            "and drop_last=True would leave no batch at all; use a smaller batch_size, "
            "drop_last=False or a longer text."
        )


# --- Training ------------------------------------------------------------------------


def check_training(train_loader: Any, val_loader: Any, scheduler: Any = None) -> None:
    """Raise unless loaders can be gone through again, also while they are.

    The training loop looks at its losses in the middle of an epoch. A loader that is
    one iterator would then begin anew, or go on where it was.
    """
    for name, loader in (("train_loader", train_loader), ("val_loader", val_loader)):
        inner = getattr(loader, "loader", loader)
        if hasattr(inner, "__next__"):
            raise ValueError(
                f"{name} is an iterator, which can be gone through once: give a "
                "DataLoader, or a list of its batches."
            )
        if getattr(inner, "persistent_workers", False):
            raise ValueError(
                f"{name} keeps its workers and has one iterator only, which an "
                "evaluation in the middle of an epoch would start anew: make it with "
                "persistent_workers=False."
            )
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise ValueError(
            "ReduceLROnPlateau needs a loss at each step, and the loop gives none: "
            "take another scheduler, or call its step(loss) in after_step yourself."
        )


def check_loss_fits(batch: Sequence[Tensor], loss: Any) -> None:
    """Raise unless a loss takes the parts of a batch, a model and a device."""
    try:
        inspect.signature(loss).bind(*batch, None, None)
    except TypeError:
        raise ValueError(
            f"A batch of this loader has {len(batch)} parts, which the loss does not "
            "take: give the one that belongs to it; for message_loader that is "
            "loss=calc_loss_batch, imported from gpt_class_finetune."
        ) from None


def check_finite_loss(loss: Tensor, step: int) -> None:
    """Raise before an update by a loss that is NaN or infinite and spoils all."""
    if not loss.isfinite().all():
        raise ValueError(
            f"The loss of step {step} is {loss.item()}: the model has diverged, and "
            "this update was left out. Train again with a lower learning rate; the "
            "last checkpoint, if there is one, is as it was."
        )


# --- Token vectors and masks ---------------------------------------------------------


def check_input(x: Tensor, d_in: int) -> None:
    """Raise unless x is (B, T, d_in), with at least one token."""
    shape = tuple(x.shape)
    if x.ndim != 3:
        hint = " (x.unsqueeze(0) adds a batch of one)" if x.ndim == 2 else ""
        raise ValueError(
            f"x has shape {shape}, which is {x.ndim} dimensions: give (batch, tokens, "
            f"width){hint}."
        )
    if x.shape[-1] != d_in:
        raise ValueError(
            f"x has shape {shape}, so its tokens are {x.shape[-1]} wide, "
            f"but this layer was made for d_in={d_in}."
        )
    if x.shape[-2] == 0:
        raise ValueError(f"x has shape {shape}, no token at all: give at least one.")


def check_length(total: int, context_length: int, past: int = 0) -> None:
    """Raise if cached and new tokens together exceed the context."""
    if total > context_length:
        cached = f" ({past} of them in the cache)" if past else ""
        raise ValueError(
            f"The sequence has {total} tokens{cached}, but context_length is "
            f"{context_length}: shorten it, or make the layer with a longer context."
        )


def check_attention_mask(attention_mask: Tensor, B: int, S: int, past: int) -> None:
    """Raise unless the mask is (B, S) and holds truth values."""
    shape = tuple(attention_mask.shape)
    if shape != (B, S):
        raise ValueError(
            f"attention_mask has shape {shape}, but must be ({B}, {S}): one row for "
            f"each sequence, one column for each of {past} cached and {S - past} new "
            "tokens."
        )
    if attention_mask.dtype == torch.bool:
        return
    if attention_mask.is_floating_point():
        raise ValueError(
            f"attention_mask holds {attention_mask.dtype}: give bool, or integers "
            "that are 1 for a real token and 0 for padding."
        )
    if not ((attention_mask == 0) | (attention_mask == 1)).all():
        raise ValueError(
            "attention_mask holds integers other than 0 and 1: it says which tokens "
            "are real, it does not hold token ids."
        )


def check_no_hole(attention_mask: Tensor) -> None:
    """Raise if a text goes on after padding, for layers that would mix that in."""
    real = attention_mask.bool()
    starts = real[:, 0].long() + (real[:, 1:] & ~real[:, :-1]).sum(dim=1)
    if (starts > 1).any():
        raise ValueError(
            "attention_mask has padding between real tokens: give it on the left or on "
            "the right of a text only."
        )


def drop_saved_mask(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    """A hook for loading: leave out a causal mask that was saved with the weights.

    It is computed. Code that saves it, as the book's does, so gives weights that fit.
    """
    state_dict.pop(f"{prefix}mask", None)


# --- Caches --------------------------------------------------------------------------


def cached_tokens(
    cache: Any, cfg: Mapping[str, Any], attention_mask: Tensor | None = None
) -> int:
    """How many tokens a model's cache holds, 0 without one.

    Args:
        cache: a whole cache, such as `KVCache(n_layers)`, or None.
        cfg: the model's config; has "n_layers".
        attention_mask: which tokens are real, if any are not.

    Raises:
        ValueError: `cache` is one layer's part, was made for another model, or rolls
            while there is a mask, which would have to roll with it.
    """
    if cache is None:
        return 0
    n_layers = cfg["n_layers"]
    if not (hasattr(cache, "layer") and hasattr(cache, "length")):
        raise ValueError(
            f"cache is {type(cache).__name__}, which lacks layer(index) or length: "
            f"give a whole cache, such as KVCache(num_layers={n_layers})."
        )
    layers = getattr(cache, "num_layers", n_layers)
    if layers != n_layers:
        raise ValueError(
            f"The cache was made for {layers} layers, but this model has "
            f"{n_layers}: make it with num_layers={n_layers}."
        )
    if attention_mask is not None and getattr(cache, "window", None) is not None:
        raise ValueError(
            "A rolling window and an attention_mask do not go together, since the "
            "columns of the mask do not roll: give one text at a time, without "
            "padding and mask, or a cache without a window."
        )
    return cache.length


def check_keys_and_values(keys: Tensor, values: Tensor) -> None:
    """Raise unless keys and values belong to the same tokens and carry no graph."""
    shapes = tuple(keys.shape), tuple(values.shape)
    if keys.ndim != 4 or values.ndim != 4 or shapes[0][:3] != shapes[1][:3]:
        raise ValueError(
            f"keys {shapes[0]} and values {shapes[1]} do not belong together: both "
            "must be (batch, key/value heads, tokens, head width), the first three "
            "the same."
        )
    if keys.requires_grad or values.requires_grad:
        raise ValueError(
            "The cache is for generating, not for training, and would keep the graph "
            "of every step alive: call the model inside torch.no_grad()."
        )


def check_continues(name: str, new: Tensor, held: Tensor) -> None:
    """Raise unless new keys or values fit those that the cache holds."""
    same_shape = new.shape[:2] == held.shape[:2] and new.shape[3] == held.shape[3]
    if not same_shape:
        kept = (held.shape[0], held.shape[1], "T", held.shape[3])
        raise ValueError(
            f"New {name} have shape {tuple(new.shape)}, but this cache holds "
            f"({', '.join(map(str, kept))}): call reset() before another batch."
        )
    if new.dtype != held.dtype or new.device != held.device:
        raise ValueError(
            f"New {name} are {new.dtype} on {new.device}, but this cache holds "
            f"{held.dtype} on {held.device}: call reset() after moving the model."
        )


def check_in_step(lengths: Collection[int]) -> None:
    """Raise `RuntimeError` if layers of a cache hold different numbers of tokens."""
    if len(lengths) > 1:
        raise RuntimeError(
            f"The layers of this cache hold between {min(lengths)} and {max(lengths)} "
            "tokens: a forward pass stopped halfway, or it is still running. Call "
            "reset() and start again from the prompt."
        )


def check_room(held: int, needed: int, max_length: int | None) -> None:
    """Raise if the cache would hold more tokens than it may."""
    if max_length is not None and needed > max_length:
        raise ValueError(
            f"The cache holds {held} tokens and {needed - held} more would exceed "
            f"its max_length of {max_length}: generate fewer tokens, or make "
            "the cache longer if the model allows it."
        )


def check_window(window: int | None, sinks: int) -> None:
    """Raise unless a window has room for its sinks and a token that goes round."""
    check_whole_number("sinks", sinks, least=0)
    if sinks and (window is None or sinks >= window):
        raise ValueError(
            f"sinks={sinks} tokens cannot stay for good in a window of {window}: give "
            "a window that is larger."
        )


def check_window_chunk(start: int, end: int, window: int | None, masked: bool) -> None:
    """Raise if several tokens would reach beyond a window that nobody masks."""
    if window is not None and end > window and end - start > 1 and not masked:
        raise ValueError(
            f"{end - start} tokens at once reach beyond the window of {window}, and "
            "the later of them would see more than that: read up to the end of the "
            "window, then one token at a time, or make the cache with masked=True for "
            "a model that hides older tokens itself."
        )


def check_one_for_each_layer(name: str, given: Collection, num_layers: int) -> None:
    """Raise unless a list has one entry for each layer."""
    if len(given) != num_layers:
        raise ValueError(
            f"{name} has {len(given)} entries, but there are {num_layers} layers: give "
            "one for each, or one number for all."
        )


def row_numbers(rows: Any, device: torch.device) -> Tensor:
    """Numbers of rows, (N,), from a list, tuple or tensor, or a mask of the rows.

    A tuple would be an index of several dimensions to PyTorch, and a single number
    would take the batch dimension away, both without an error.
    """
    index = torch.as_tensor(rows, device=device)
    if index.ndim != 1:
        raise ValueError(f"rows is {rows!r}: give a list of row numbers, as [0, 0, 2].")
    return index.nonzero()[:, 0] if index.dtype == torch.bool else index.long()


def check_weight_shapes(
    weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise unless weights have these names and shapes, none missing, none left over.

    A weight that nobody asks for, such as a bias, would be dropped without a word.
    """
    missing, more = sorted(shapes.keys() - weights), sorted(weights.keys() - shapes)
    if missing or more:
        raise ValueError(
            f"These weights lack {missing} and have {more} besides: give those of one "
            f"layer, named {', '.join(shapes)}."
        )
    for name, shape in shapes.items():
        if tuple(weights[name].shape) != shape:
            raise ValueError(
                f"{name} has shape {tuple(weights[name].shape)}, where this layer "
                f"needs {shape}: make the layer with the sizes of the configuration."
            )


def check_cut(length: int, seen: int, window: int | None) -> None:
    """Raise unless a cache that has seen some tokens can go back to `length`."""
    check_whole_number("length", length, least=0)
    if length > seen:
        raise ValueError(
            f"The cache has read {seen} tokens and cannot be cut to {length}: give at "
            f"most {seen}."
        )
    if window is not None and seen > window and length < seen:
        raise ValueError(
            f"The cache has read {seen} tokens through a window of {window}, and those "
            f"that the first {length} need are overwritten: call reset() and read "
            "the text again."
        )


# --- Token ids and prompts -----------------------------------------------------------


def check_ids(idx: Tensor, vocab_size: int) -> None:
    """Raise unless all ids belong to the vocabulary."""
    low, high = (int(bound) for bound in idx.aminmax())
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"idx holds the token id {low if low < 0 else high}, but this model knows "
            f"the ids 0 to {vocab_size - 1}: encode the text with the tokenizer that "
            "the model was made for."
        )


def check_idx(idx: Tensor, cfg: Mapping[str, Any], past: int = 0) -> None:
    """Raise unless idx is (B, T) token ids that the model knows and has room for.

    Ids are looked through on the CPU only: elsewhere the question would stop the device
    at each step.

    Args:
        idx: what the caller passed.
        cfg: has "vocab_size" and "context_length".
        past: how many tokens the cache holds.
    """
    check_batch(idx)
    total, most = past + idx.shape[1], cfg["context_length"]
    if total > most:
        cached = f" ({past} of them in the cache)" if past else ""
        raise ValueError(
            f"The sequence has {total} tokens{cached}, but the model reads at most "
            f"context_length={most}: shorten it, or make a model with a longer context."
        )
    if idx.device.type == "cpu" and not torch.compiler.is_compiling():
        check_ids(idx, cfg["vocab_size"])


def check_prompt(
    model: nn.Module,
    idx: Tensor,
    max_new_tokens: int,
    context_size: int,
    cache: Any = None,
) -> None:
    """Raise unless there is something to continue, and a plan for how far."""
    check_batch(idx)
    check_sizes(context_size=context_size)
    check_whole_number("max_new_tokens", max_new_tokens, least=0)
    most = (getattr(model, "cfg", None) or {}).get("context_length")
    most = most or getattr(getattr(model, "pos_emb", None), "num_embeddings", None)
    longest = min(context_size, idx.shape[1] + max_new_tokens - 1)
    if most is not None and max_new_tokens > 0 and longest > most:
        raise ValueError(
            f"With context_size={context_size} the model would have to read {longest} "
            f"tokens, but it reads at most context_length={most}: give that."
        )
    # Past context_size a cache is filled anew at each step, with all that is read.
    window = None if getattr(cache, "masked", False) else getattr(cache, "window", None)
    room = context_size + 1 - idx.shape[1]
    if window is not None and window < context_size and max_new_tokens > max(room, 0):
        raise ValueError(
            f"A prompt of {idx.shape[1]} tokens and {max_new_tokens} new ones go past "
            f"context_size={context_size}, where all that the model reads is read "
            f"again at each step, and a rolling window of {window} cannot take that "
            "at once: write fewer tokens, or without a window."
        )
    dropouts = (m for m in model.modules() if isinstance(m, nn.Dropout))
    if any(dropout.training and dropout.p > 0 for dropout in dropouts):
        raise ValueError(
            "Dropout is on, so the text would be a matter of chance: call model.eval() "
            "before generating."
        )


def check_start(idx: Tensor, attention_mask: Tensor | None, cache: Any) -> None:
    """Raise unless the last column of prompts is real, and the cache empty."""
    if attention_mask is not None:
        check_attention_mask(attention_mask, *idx.shape, past=0)
        if not attention_mask[:, -1].bool().all():
            raise ValueError(
                "A prompt ends with padding, and its next token would follow that: pad "
                "prompts of different lengths on the left."
            )
    if cache is not None and cache.length > 0:
        raise ValueError(
            f"The cache holds {cache.length} tokens already: call cache.reset(), or "
            "make one for each text."
        )


def check_single_text(ids: Tensor) -> None:
    """Raise unless ids are one text, (S,), of at least one token."""
    if ids.ndim != 1 or not len(ids):
        raise ValueError(
            f"ids has shape {tuple(ids.shape)}: give the token ids of one text, (S,), "
            "at least one."
        )


def check_same_vocabulary(draft_size: int, vocab_size: int) -> None:
    """Raise unless a draft guesses among the tokens that the model knows."""
    if draft_size != vocab_size:
        raise ValueError(
            f"The draft knows {draft_size} tokens and the model {vocab_size}: both "
            "need one vocabulary."
        )


def check_batch(idx: Tensor) -> None:
    """Raise unless idx is (B, T) with at least one token in each row."""
    shape = tuple(idx.shape)
    if idx.ndim != 2:
        hint = " (idx.unsqueeze(0) adds a batch of one)" if idx.ndim == 1 else ""
        raise ValueError(f"idx has shape {shape}: give (batch, tokens){hint}.")
    if 0 in shape:
        raise ValueError(
            f"idx has shape {shape}, no token at all: give at least one; an empty text "
            "can start from <|endoftext|>."
        )


def check_single_row(idx: Tensor) -> None:
    """Raise unless there is one prompt: in a batch each would keep another number."""
    if len(idx) != 1:
        raise ValueError(
            f"idx has {len(idx)} rows: give one prompt at a time, since a different "
            "number of guesses would stay in each."
        )


def check_messages(messages: Sequence[Mapping[str, str]]) -> None:
    """Raise unless they are a conversation, of at least one message.

    Args:
        messages: a list of `{"role": "system" or "user" or "assistant", "content":
            text}`.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ValueError(
            'Give a list of at least one message, such as {"role": "user", "content": '
            '"Hello"}.'
        )
    for number, message in enumerate(messages, start=1):
        texts = isinstance(message, dict) and set(message) == {"role", "content"}
        if not texts or not all(isinstance(text, str) for text in message.values()):
            raise ValueError(
                f'Message {number} is {message!r}: give {{"role": "user", "content": '
                '"..."}, both texts.'
            )
        if message["role"] not in ("system", "user", "assistant"):
            raise ValueError(
                f"The role of message {number} is {message['role']!r}: give system, "
                "user or assistant."
            )
        check_runs(message["content"], f"Message {number}")
