"""A Llama with other parts, a small training for it, and how fast it writes.

Support: nothing here is taught. The bonus folders of chapter 4 exchange one part of
every block of chapter 5's `LlamaModel`, its attention or its feed-forward, and leave
the rest as it is. What they need for that, and for comparing the results, is here:

* `with_parts`: the model with another attention or feed-forward in each block;
* `draw_weights`: random weights from a seed, equal in all parts that two models share;
* `SMALL` and `small_task`: a model and data with which all of them are trained;
* `WIDE`, `fill`, `decoding_seconds`, `take_turns` and `times_as_fast`: the time of a
  token after a text of some length, in one run.

An attention is called as `GroupedQueryAttention` is, with `(x, attention_mask, cache,
rotate)`, a feed-forward with `(x)`; both give (B, T, D) back. The same seed draws the
same numbers for what two models have in common:

>>> short = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
>>> long = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
>>> for layers in (short, long):
...     _ = draw_weights(layers, seed=1)
>>> torch.equal(short[0].weight, long[0].weight)
True

Shapes: B batch, T tokens, D model width, V vocabulary.
"""

import functools
import statistics
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from argument_checks import check_window_fits
from kv_cache import KVCache, LayerCache, read_in_chunks

#: A model that learns in a minute on one core; a token is a byte.
SMALL = {
    "vocab_size": 256,
    "context_length": 4096,
    "emb_dim": 128,
    "n_heads": 8,
    "n_kv_groups": 8,
    "head_dim": 16,
    "n_layers": 4,
    "hidden_dim": 344,
    "rope_base": 10_000.0,
    "rope_scaling": None,
    "norm_eps": 1e-5,
    "tie_weights": False,
}
#: A model whose cache outweighs its weights after some thousand tokens.
WIDE = {
    **SMALL,
    "context_length": 32_768,
    "emb_dim": 1024,
    "n_heads": 16,
    "n_kv_groups": 16,
    "head_dim": 64,
    "n_layers": 4,
    "hidden_dim": 2816,
}
WINDOW, BATCH_SIZE = 128, 8  # of the small training
UPDATES, RATE = 300, 0.003

_Part = Callable[[int], nn.Module | None]
_Batch = tuple[Tensor, Tensor]


# --- A model with other parts ---------------------------------------------------------


def with_parts(
    model: Any,
    attention: _Part | None = None,
    feed_forward: _Part | None = None,
) -> Any:
    """Exchange parts of each block, in place; return the model.

    Args:
        model: a `LlamaModel`, or another with `trf_blocks` that have `att` and `ff`.
        attention: what makes the attention of layer i, counted from 0; None as its
            result, or in its place, leaves the attention as it is.
        feed_forward: the same for the feed-forward part.
    """
    for layer, block in enumerate(model.trf_blocks):
        for name, make in (("att", attention), ("ff", feed_forward)):
            part = None if make is None else make(layer)
            if part is not None:
                setattr(block, name, part)
    return model


@torch.no_grad()
def draw_weights(model: nn.Module, seed: int, std: float = 0.02) -> nn.Module:
    """Draw the weights of linear layers and embeddings anew; return the model.

    Normal numbers, zeros for biases. They depend on the seed and on the name of the
    layer, so that layers of the same name and shape start equal in all models. Other
    parameters stay as their layer has made them.

    Args:
        model: on the CPU.
        seed: any whole number.
        std: their standard deviation.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Linear, nn.Embedding)):
            number = zlib.crc32(f"{seed} {name}".encode())
            generator = torch.Generator().manual_seed(number)
            nn.init.normal_(layer.weight, std=std, generator=generator)
            if getattr(layer, "bias", None) is not None:
                nn.init.zeros_(layer.bias)
    return model


# --- A small training -----------------------------------------------------------------


def small_task(
    entries: Iterable[Mapping[str, str]], seed: int, updates: int = UPDATES
) -> tuple[list[_Batch], list[_Batch]]:
    """Batches of the course's instructions, as bytes: `(train, validation)`.

    They go into `train_model_simple` as they are. The first has `updates` batches in an
    order that depends on the seed; after the last window it begins again. The second is
    the same for all seeds: all whole windows of the validation part.

    Args:
        entries: those of `data/instructions.json`, each with "instruction", "input",
            "output" and "split".
        seed: for the order.
        updates: how many batches.

    Returns:
        Lists of `(inputs, targets)`, (B, T) each, B at most `BATCH_SIZE`, T = `WINDOW`.

    Raises:
        ValueError: a part is shorter than one window.
    """
    parts = {"train": "", "validation": "", "test": ""}
    for entry in entries:
        lines = (entry["instruction"], entry["input"], entry["output"])
        parts[entry["split"]] += "\n".join(filter(None, lines)) + "\n\n"
    for name in ("train", "validation"):
        check_window_fits(len(parts[name].encode("utf-8")), WINDOW)
    train, validation = (_windows(parts[name]) for name in ("train", "validation"))
    generator = torch.Generator().manual_seed(seed)
    needed, order = updates * BATCH_SIZE, torch.empty(0, dtype=torch.long)
    while len(order) < needed:
        order = torch.cat((order, torch.randperm(len(train), generator=generator)))
    return _batches(train[order[:needed]]), _batches(validation)


def _windows(text):
    """A text's bytes in pieces of T + 1 that overlap by one, (N, T + 1)."""
    ids = torch.tensor(list(text.encode("utf-8")))
    return ids.unfold(0, WINDOW + 1, WINDOW)


def _batches(windows):
    return [(part[:, :-1], part[:, 1:]) for part in windows.split(BATCH_SIZE)]


# --- How fast it writes ---------------------------------------------------------------


def take_turns(
    runs: Mapping[Any, Callable[[], Any]], rounds: int, about: str = ""
) -> dict[Any, list[float]]:
    """Seconds of the processor in every round, by name; each goes first in turn.

    Meant for one thread: those of several threads are added up. Other work on the
    machine does not count, but what competes for memory lengthens such seconds, and
    most where a contestant reads most. `about` stands beside the bar that shows the
    progress, on a terminal.
    """
    seconds, names = {name: [] for name in runs}, list(runs)
    for turn in tqdm(range(rounds), desc=about, unit="round", disable=None):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.process_time()
            runs[name]()
            seconds[name].append(time.process_time() - start)
    return seconds


def times_as_fast(seconds: Mapping[Any, list[float]], name: Any, other: Any) -> float:
    """How many times as fast `name` was as `other`: the median over the rounds."""
    pairs = zip(seconds[other], seconds[name], strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)


@torch.no_grad()
def fill(model: Any, cache: KVCache, length: int, batch_size: int = 1) -> Tensor:
    """Bring a cache to `length` tokens; return a token to go on with, (B, 1).

    The model reads one token. After that each layer of the cache gets random keys and
    values of the same shape, since a time does not depend on them. A cache of another
    kind is filled by reading.

    Args:
        model: with the interface of `LlamaModel`.
        cache: an empty cache for it. It changes.
        length: how many tokens, at least 1.
        batch_size: B.
    """
    generator = torch.Generator().manual_seed(length)
    shape = batch_size, length + 1
    idx = torch.randint(model.cfg["vocab_size"], shape, generator=generator)
    model(idx[:, :1], cache=cache)
    layers = [cache.layer(i) for i in range(cache.num_layers)]
    if not all(isinstance(layer, LayerCache) for layer in layers):
        read_in_chunks(model, idx[:, 1:-1], cache, chunk_size=256)
        return idx[:, -1:]
    for layer in layers:
        keys, values = layer.keys, layer.values
        assert keys is not None  # the first token has been read
        assert values is not None
        layer.append(
            *(
                torch.randn(*part.shape[:2], length - 1, part.shape[3]).to(part)
                for part in (keys, values)
            )
        )
    return idx[:, -1:]


@torch.no_grad()
def decoding_seconds(
    contestants: Mapping[Any, tuple[nn.Module, KVCache]],
    length: int,
    steps: int,
    rounds: int,
    batch_size: int = 1,
) -> dict[Any, list[float]]:
    """Processor seconds of one decoding step in a long text, in every round.

    Set one thread before: `take_turns` adds up those of several. The caches are filled
    first. Then the models take turns, `steps` tokens each, one after the other, and
    after the last round the texts have `length` tokens.

    Args:
        contestants: `{name: (model, cache)}`. The caches, empty before, change.
        length: tokens in the text at the end, more than steps * (rounds + 1): one round
            warms up.
        steps: tokens in a turn.
        rounds: how often each has its turn.
        batch_size: texts that are written at once.

    Returns:
        `{name: [seconds]}`, one number for each round.

    Raises:
        ValueError: the text is too short for all rounds.
    """
    least = steps * (rounds + 1) + 1
    if length < least:
        raise ValueError(
            f"length is {length}, but {rounds} rounds of {steps} tokens and one to "
            f"warm up need at least {least}: give that, or fewer rounds."
        )

    def write(model, cache, token):
        for _ in range(steps):
            model(token, cache=cache)

    runs = {}
    for name, (model, cache) in contestants.items():
        token = fill(model, cache, length - steps * (rounds + 1), batch_size)
        write(model, cache, token)  # warm up
        runs[name] = functools.partial(write, model, cache, token)
    seconds = take_turns(runs, rounds)
    return {name: [one / steps for one in spent] for name, spent in seconds.items()}
