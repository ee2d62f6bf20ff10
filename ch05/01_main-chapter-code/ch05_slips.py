"""What the known slips of chapter 5's exercises give: support for `ch05_checks`.

For each exercise: the inputs that tell slips apart, the right outcome of each, and the
outcomes of the slips, by the message that names them.

>>> kept_by_nucleus([0.25, 0.5, 0.25], top_p=0.75)
[1, 0]
>>> NUCLEUS_SLIPS["the likeliest comes last; it should come first"](
...     [0.25, 0.5, 0.25], 0.75)
[0, 1]
"""

import contextlib
import functools
import math
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from checkpoints import CHECKPOINT
from gpt import GPT_CONFIG_124M, GPTModel
from gpt_download import GPT2_NAMES
from gpt_train import load_checkpoint, train_model_simple
from resumable import resumable

TINY = {
    **GPT_CONFIG_124M,
    "vocab_size": 29,
    "context_length": 9,
    "emb_dim": 12,
    "n_heads": 3,
    "n_layers": 2,
    "drop_rate": 0.0,
}


# --- 5.1 How often does a rare word come? ---------------------------------------------


def rare_word_slips(
    logits: Tensor, token: int, temperatures: list[float], draws: int
) -> dict[str, list[float]]:
    """5.1: the expected numbers that each slip gives."""
    shares = logits.softmax(dim=0)
    right = [(logits / t).softmax(dim=0)[token].item() for t in temperatures]
    return {
        "the first numbers are probabilities; out of so many draws, how many?": right,
        "the logits are multiplied by the temperature, so that hot is cold": [
            draws * (logits * t).softmax(dim=0)[token].item() for t in temperatures
        ],
        "the probabilities are divided by the temperature; it belongs to the logits": [
            draws * shares[token].item() / t for t in temperatures
        ],
        "the temperature changes nothing": [
            draws * shares[token].item() for _ in temperatures
        ],
        "the expected numbers are rounded; they need not be whole": [
            float(round(draws * p)) for p in right
        ],
        "these are the numbers of the likeliest token, not of the one asked for": [
            draws * (logits / t).softmax(dim=0).max().item() for t in temperatures
        ],
    }


# --- 5.3 Whatever the seed ------------------------------------------------------------


SETTINGS = [
    # temperature, top_k, top_p, vocab_size, certain, what a wrong answer has missed
    (1.0, None, None, 50257, False, "without any setting every token may come"),
    (0.0, None, None, 50257, True, "temperature 0 takes the likeliest token"),
    (1.0, 1, None, 50257, True, "top_k=1 leaves one token"),
    (0.7, 1, None, 50257, True, "top_k=1 leaves one token, at any temperature"),
    (1.0, 2, None, 50257, False, "top_k=2 leaves two tokens, and either may come"),
    (0.01, None, None, 50257, False, "a low temperature makes the others rare, but "
     "not impossible"),
    (1e-4, None, None, 50257, False, "a temperature near 0 is not 0: two logits may "
     "lie nearer still"),
    (1e-4, 5, 0.9, 50257, False, "even so near 0 two logits may be almost equal"),
    (0.0, 5, 0.9, 50257, True, "temperature 0 does not draw, whatever else is set"),
    (1.0, None, 0.01, 50257, False, "the likeliest of 50,257 may have less than 0.01, "
     "and then top_p=0.01 keeps others, too"),
    (1.0, None, 0.5, 2, True, "of two tokens the likelier one has at least a half, and "
     "top_p=0.5 asks for no more"),
    (1.0, None, 0.51, 2, False, "top_p=0.51 may need the second token as well"),
    (1.0, 3, 0.5, 2, True, "top_k=3 of 2 tokens leaves 2, and one of them has a half"),
    (1.3, 4, 0.25, 50257, True, "of the 4 tokens that top_k leaves the likeliest has "
     "at least a quarter, and top_p looks at what is left"),
    (1.0, 4, 0.3, 50257, False, "top_p=0.3 may need two of the 4 tokens"),
    (1.0, 100, 0.25, 4, True, "top_k=100 leaves no more than the 4 tokens that there "
     "are"),
    (1.0, None, None, 1, True, "a vocabulary of one token leaves no choice"),
    (1.0, None, 1.0, 50257, False, "top_p=1 leaves all tokens in"),
    (1e-9, None, None, 50257, False, "1e-9 is not 0 either, however small it looks"),
    (1.0, None, 0.25, 4, True, "the likeliest of 4 tokens has at least a quarter, with "
     "or without top_k"),
    (0.7, 4, 0.25, 50257, True, "the likeliest of 4 has at least a quarter, below a "
     "temperature of 1 as well"),
    (1.0, None, 1e-5, 50257, True, "the likeliest of 50,257 has at least 1 / 50,257, "
     "and that is more than 1e-5"),
    (2.0, 4, 0.3, 50257, False, "top_p=0.3 may need two of the 4 tokens; temperature 2 "
     "evens them out, but never below a quarter"),
]  # fmt: skip


# --- 5.4 One more epoch ---------------------------------------------------------------


def random_loader(seed: int) -> DataLoader:
    """5.4: ten short texts of random tokens, shuffled in an order of its own."""
    ids = torch.randint(29, (10, 7), generator=torch.Generator().manual_seed(seed))
    data = TensorDataset(ids[:, :-1], ids[:, 1:])
    return DataLoader(
        data, batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(seed)
    )


def after_epochs(
    folder: Path | str | None, count: int
) -> tuple[GPTModel, DataLoader, torch.optim.Optimizer]:
    """A model that was trained for so many epochs, with its loader and optimizer."""
    torch.manual_seed(5)
    model, loader = GPTModel(TINY), random_loader(seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    if count:
        train_epochs(model, loader, optimizer, count, folder)
    return model, loader, optimizer


def train_epochs(
    model: GPTModel,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    folder: Path | str | None = None,
    resume: bool = False,
) -> None:
    """5.4: train, and leave a checkpoint in a folder if one is given."""
    loop = train_model_simple
    if folder is not None:
        loop = resumable(loop, folder, resume=resume)
    plan = (torch.device("cpu"), epochs, 10**6, 1, None, None)
    loop(model, loader, random_loader(seed=1), optimizer, *plan)


def flat_weights(model: nn.Module) -> Tensor:
    """All weights of a model in a row."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@functools.cache
def checkpoint_after(epochs: int) -> bytes:
    """5.4: the checkpoint that a run of so many epochs leaves."""
    with tempfile.TemporaryDirectory() as folder:
        after_epochs(folder, epochs)
        return Path(folder, CHECKPOINT).read_bytes()


@functools.cache
def weights_after(epochs: int) -> Tensor:
    """5.4: the weights after so many epochs in one go."""
    return flat_weights(after_epochs(None, epochs)[0])


def weights_gone_on(folder: Path, epochs: int) -> tuple[Tensor, Tensor]:
    """5.4: the weights in a checkpoint, and where going on to so many epochs leads.

    `ValueError` if the checkpoint is not one to go on from.
    """
    model, loader, optimizer = after_epochs(None, 0)
    load_checkpoint(folder, model)
    saved = flat_weights(model)
    train_epochs(model, loader, optimizer, epochs, folder, resume=True)
    return saved, flat_weights(model)


@functools.cache
def one_more_slips(epochs: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The right weights after one more epoch, and those of the known slips."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, CHECKPOINT).write_bytes(checkpoint_after(epochs))
        saved, _, _ = after_epochs(None, 0)
        load_checkpoint(folder, saved)
        stale, loader, fresh = after_epochs(None, 0)
        load_checkpoint(folder, stale)
        train_epochs(stale, loader, fresh, 1)
        order, loader, optimizer = after_epochs(None, 0)
        load_checkpoint(folder, order, optimizer)
        train_epochs(order, loader, optimizer, 1)
    return weights_after(epochs + 1), {
        "nothing was trained; num_epochs counts those before the checkpoint, too": (
            flat_weights(saved)
        ),
        "training began from the start, not from the checkpoint; these are the weights "
        "after one epoch": weights_after(1),
        "the optimizer began anew; the checkpoint has its running means as well": (
            flat_weights(stale)
        ),
        "weights and optimizer are those of the checkpoint, but the batches come in "
        "the order of the first epoch again; the checkpoint has their generator, too": (
            flat_weights(order)
        ),
        "more than one epoch was added": weights_after(2 * epochs),
        "more than one epoch was added, the checkpoint's number and one": (
            weights_after(2 * epochs + 1)
        ),
    }


# --- 5.5 What a text costs a model ----------------------------------------------------


def window_losses(
    model: GPTModel,
    ids: list[int],
    window: int,
    shift: int = 1,
    step: int | None = None,
    length: int | None = None,
) -> list[Tensor]:
    """The loss of each target, a tensor for each window; the options plant slips."""
    losses = []
    for start in range(0, len(ids) - 1, step or window):
        targets = ids[start + shift : start + shift + (length or window)]
        inputs = ids[start : start + len(targets)]
        if targets:
            shares = model(torch.tensor([inputs]))[0].log_softmax(dim=-1)
            losses.append(-shares[range(len(targets)), targets])
    return losses


def text_loss_slips(
    model: GPTModel, ids: list[int], window: int, losses: list[Tensor]
) -> dict[str, float]:
    """5.5: the loss that each slip gives; `losses` are the right ones by window."""
    whole = [part for part in losses if len(part) == window] or losses
    seams = window_losses(model, ids, window, length=max(window - 1, 1))
    context = model.cfg["context_length"]
    at_once = window_losses(model, ids, min(context, len(ids)))
    all_of_them = torch.cat(losses)
    return {
        "the mean is one of window means, so a short last window counts too much": (
            torch.stack([part.mean() for part in losses]).mean().item()
        ),
        "the short window at the end is left out": torch.cat(whole).mean().item(),
        "the first token of each window is never predicted; the last input of a window "
        "has a target, too, the first token of the next": (
            torch.cat(seams).mean().item()
        ),
        "each input is its own target; a model predicts the token after it": (
            torch.cat(window_losses(model, ids, window, shift=0)).mean().item()
        ),
        "the windows are those of the model's context, not those asked for": (
            torch.cat(at_once).mean().item()
        ),
        "only the first window is read": losses[0].mean().item(),
        "only the last token of each window is predicted": (
            torch.stack([part[-1] for part in losses]).mean().item()
        ),
        "this is minus the loss": -all_of_them.mean().item(),
        "this is the sum, not the mean": all_of_them.sum().item(),
        "the sum is divided by the number of tokens, but the first of them is not "
        "predicted": all_of_them.sum().item() / len(ids),
        "this is the perplexity; the loss is its logarithm": (
            all_of_them.mean().exp().item()
        ),
        "the logarithm is to base 2; a loss is to base e": (
            all_of_them.mean().item() / math.log(2)
        ),
    }


# --- 5.6 The largest that fits --------------------------------------------------------


def bytes_needed(
    cfg: Mapping[str, Any],
    tokens: int,
    size: int,
    tied: bool = True,
    cache: float = 2.0,
    layers: bool = True,
) -> int:
    """Bytes of the weights and of keys and values; the options plant slips."""
    V, T, D, L = (
        cfg[n] for n in ("vocab_size", "context_length", "emb_dim", "n_layers")
    )
    weights = (V + T) * D + L * (12 * D * D + 13 * D) + 2 * D + (0 if tied else V * D)
    return int(size * (weights + cache * (L if layers else 1) * D * tokens))


def largest_model(
    memory: float, tokens: int, size: int, fixed: int | None = None, **slip: Any
) -> str | None:
    """5.6: the largest that fits; the options plant slips."""
    chosen, spared = None, slip.pop("spared", 0)
    for name, cfg in GPT2_NAMES.items():
        if bytes_needed(cfg, tokens, fixed or size, **slip) <= memory - spared:
            chosen = name
    return chosen


def smallest_model(memory: float, tokens: int, size: int) -> str | None:
    """5.6: the smallest that fits, which is a slip."""
    for name, cfg in GPT2_NAMES.items():
        if bytes_needed(cfg, tokens, size) <= memory:
            return name
    return None


def memory_cases() -> list[tuple[int, int, int]]:
    """5.6: memory, tokens and bytes a number, many of them at a border."""
    small, medium, _, xl = GPT2_NAMES.values()
    one_block = bytes_needed(xl, 1024, 2, layers=False)
    return [
        (bytes_needed(medium, 1024, 4), 1024, 4),
        (bytes_needed(medium, 1024, 4) - 1, 1024, 4),
        (bytes_needed(xl, 10, 2), 10, 2),
        # Too little for the largest, but enough for one of the slips.
        (bytes_needed(xl, 1024, 2, cache=1.0), 1024, 2),
        (one_block, 1024, 2),
        (one_block - 1, 1024, 2),
        (bytes_needed(small, 1, 4) - 1, 1, 4),
        (bytes_needed(small, 0, 1) + 1000, 0, 1),
    ]


MEMORY_SLIPS = {
    "the output head is counted beside the embedding, but these models are tied": (
        {"tied": False}
    ),
    "the cache is left out": {"cache": 0.0},
    "the cache holds keys and values, which is two numbers, not one": {"cache": 1.0},
    "the cache is that of one block; every block has its own": {"layers": False},
    "every number is taken for 4 bytes, whatever the third argument says": {"fixed": 4},
    "a memory that is just enough is refused; at most means that it fits": {
        "spared": 1
    },
}


# --- 5.8 The nucleus by hand ----------------------------------------------------------


NUCLEI = [
    # Eighths and sixteenths, whose sums are exact.
    ([0.125, 0.5, 0.0625, 0.25, 0.0625], 0.7),
    ([0.125, 0.5, 0.0625, 0.25, 0.0625], 0.75),
    ([0.125, 0.5, 0.0625, 0.25, 0.0625], 0.3),
    ([0.25, 0.0, 0.625, 0.125], 1.0),
    ([1.0], 0.5),
    # Two are as likely as each other, and one of them is enough.
    ([0.125, 0.5, 0.25, 0.125], 0.8),
    # Ten tenths make a little less than 1 in floating point.
    ([0.1] * 10, 1.0),
]


def by_share(shares: list[float]) -> list[int]:
    """5.8: ids, the likeliest first, of equal ones the lower."""
    return sorted(range(len(shares)), key=lambda token: -shares[token])


def kept_by_nucleus(shares: list[float], top_p: float) -> list[int]:
    """5.8: the right answer."""
    kept, total = [], 0.0
    for token in by_share(shares):
        if total >= top_p:
            break
        kept.append(token)
        total += shares[token]
    return kept


def in_order_of_ids(kept: list, shares: list[float]) -> list:
    """5.8: equally likely tokens by their ids, since they may come in any order.

    >>> in_order_of_ids([1, 3, 2], [0.25, 0.5, 0.125, 0.125])
    [1, 2, 3]
    """
    free, ordered = by_share(shares), []
    if not all(token in free for token in kept) or len(set(kept)) < len(kept):
        return kept  # not a choice of tokens
    for token in kept:
        ordered.append(next(t for t in free if shares[t] == shares[token]))
        free.remove(ordered[-1])
    return ordered


def without_crossing(shares: list[float], top_p: float) -> list[int]:
    """5.8: a slip, the token that crosses the bound is left out."""
    kept, total = [], 0.0
    for token in by_share(shares):
        total += shares[token]
        if total > top_p:
            break
        kept.append(token)
    return kept


def one_too_many(shares: list[float], top_p: float) -> list[int]:
    """5.8: a slip, a bound that is met exactly is not enough."""
    kept, total = [], 0.0
    for token in by_share(shares):
        if total > top_p:
            break
        kept.append(token)
        total += shares[token]
    return kept


def by_id_alone(shares: list[float], top_p: float) -> list[int]:
    """5.8: a slip, nothing is sorted."""
    kept, total = [], 0.0
    for token, share in enumerate(shares):
        if total >= top_p:
            break
        kept.append(token)
        total += share
    return kept


NUCLEUS_SLIPS = {
    "the token that crosses the bound is left out": without_crossing,
    "where the bound is met exactly one token too many is kept": one_too_many,
    "tokens are taken in the order of their ids, not the likeliest first": by_id_alone,
    "the right tokens, but in the order of their ids; the likeliest comes first": (
        lambda shares, top_p: sorted(kept_by_nucleus(shares, top_p))
    ),
    "these are probabilities; their token ids are asked for": (
        lambda shares, top_p: [
            shares[token] for token in kept_by_nucleus(shares, top_p)
        ]
    ),
    "the likeliest comes last; it should come first": (
        lambda shares, top_p: kept_by_nucleus(shares, top_p)[::-1]
    ),
    "the least likely tokens are kept": (
        lambda shares, top_p: [
            t for t in by_share(shares)[::-1] if t not in kept_by_nucleus(shares, top_p)
        ]
    ),
    "tokens as likely as the last one are kept, too; the fewest are asked for": (
        lambda shares, top_p: [
            t
            for t in by_share(shares)
            if shares[t] >= shares[kept_by_nucleus(shares, top_p)[-1]]
        ]
    ),
    "each token is compared with top_p by itself; it is their sum that counts": (
        lambda shares, top_p: [t for t in by_share(shares) if shares[t] >= top_p]
    ),
}


# --- 5.9 A penalty for repetition -----------------------------------------------------


def penalised(logits: Tensor, tokens: Iterable[int], penalty: float) -> Tensor:
    """5.9: each of the tokens punished as often as it comes."""
    result = logits.clone()
    for token in tokens:
        value = result[token]
        result[token] = value / penalty if value > 0 else value * penalty
    return result


def penalty_slips(
    logits: Tensor, written: list[int], penalty: float
) -> dict[str, Tensor]:
    """5.9: the logits that each slip gives."""
    at = sorted(set(written))
    divided, multiplied, lowered = logits.clone(), logits.clone(), logits.clone()
    forbidden = logits.clone()
    positive = [token for token in at if logits[token] > 0]
    forbidden[at] = -math.inf
    divided[at] /= penalty
    multiplied[at] *= penalty
    lowered[at] -= penalty
    return {
        "a negative logit is divided, which makes its token likelier": divided,
        "every logit is multiplied, which makes the positive ones likelier": multiplied,
        "the penalty is subtracted; it divides or multiplies": lowered,
        "only tokens with a positive logit are punished; the others are written as "
        "well": penalised(logits, positive, penalty),
        "only tokens with a negative logit are punished; the others are written as "
        "well": penalised(logits, set(at) - set(positive), penalty),
        "the tokens are forbidden; they should only become less likely": forbidden,
        "these are probabilities; logits are asked for": (
            penalised(logits, at, penalty).softmax(dim=0)
        ),
        "the token that came last is punished, and not the earlier ones": (
            penalised(logits, written[-1:], penalty)
        ),
        "a token that came several times is punished several times": (
            penalised(logits, written, penalty)
        ),
        "all tokens are punished, not just those of the text": (
            penalised(logits, range(len(logits)), penalty)
        ),
        "the two cases are exchanged: the tokens of the text become likelier": (
            penalised(logits, at, 1 / penalty)
        ),
    }


# --- 5.10 Whole characters only -------------------------------------------------------


TEXTS = ["lamp", "na\u00efve", "\u65e5\u672c", "a\U0001f680b", "\U0001f600\U0001f600"]


def whole_text(data: bytes, most: int = 3) -> tuple[str, bytes]:
    """The text of the whole characters, and the bytes of one that is unfinished."""
    for cut in range(most + 1):
        with contextlib.suppress(UnicodeDecodeError):
            return data[: len(data) - cut].decode("utf-8"), data[len(data) - cut :]
    return data.decode("utf-8", errors="replace"), b""


CHARACTER_SLIPS = {
    "the unfinished bytes are thrown away; they belong into the rest": (
        lambda data: (data.decode("utf-8", errors="ignore"), b"")
    ),
    "an unfinished character is shown as a replacement character": (
        lambda data: (data.decode("utf-8", errors="replace"), b"")
    ),
    "when the last character is unfinished, the whole ones before it wait, too": (
        lambda data: whole_text(data) if not whole_text(data)[1] else ("", data)
    ),
    "characters of 4 bytes, such as emoji, are not whole yet when 3 have come": (
        lambda data: whole_text(data, most=2)
    ),
    "the rest repeats the whole characters that the text shows already": (
        lambda data: (whole_text(data)[0], data if whole_text(data)[1] else b"")
    ),
    "a character of several bytes waits even when it is whole": (
        lambda data: (
            (whole_text(data)[0][:-1], data[len(whole_text(data)[0][:-1].encode()) :])
            if data and data[-1] >= 128
            else whole_text(data)
        )
    ),
    "the last character always waits, even when it is whole": (
        lambda data: (
            (
                whole_text(data)[0][:-1],
                whole_text(data)[0][-1:].encode() + whole_text(data)[1],
            )
        )
    ),
}
