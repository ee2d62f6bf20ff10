"""Questions and answers between marks: support for the lesson on new tokens.

A conversation of one turn is written with three special tokens: `<|ask|>` question
`<|reply|>` answer `<|done|>`. The marks are ids that the program puts in place; the
text between them is read with nothing special in it.

>>> class Letters:
...     new_tokens = dict(zip(MARKS, (256, 257, 258)))
...     def encode_ordinary(self, text): return list(text.encode())
>>> entry = {"instruction": "2?", "input": "", "output": "<|done|>"}
>>> example = marked(entry, Letters())
>>> example.ids[:4], example.ids[-1], example.start
([256, 50, 63, 257], 258, 4)
>>> inputs, targets = batch_of([example])
>>> targets[0, :5].tolist()
[-100, -100, -100, 60, 124]
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt_generate import generate, pad_left
from gpt_train import IGNORE_INDEX
from instruction_data import course_instructions, read_instructions, user_text
from kv_cache import KVCache

MARKS = ("<|ask|>", "<|reply|>", "<|done|>")


class Example(NamedTuple):
    """The ids of a conversation, and where in them the answer begins."""

    ids: list[int]
    start: int


def short_entries(
    split: str, count: int, characters: int = 90, path: Path | None = None
) -> list[dict[str, Any]]:
    """The first entries of a part of the course's instructions that are short.

    Args:
        split: "train", "validation" or "test".
        count: how many at most.
        characters: the most that question and answer have together.
        path: another file of instructions that are divided in this way.
    """
    entries = read_instructions(path or course_instructions("instructions"))
    return [
        entry
        for entry in entries
        if entry["split"] == split
        and len(user_text(entry)) + len(entry["output"]) <= characters
    ][:count]


def marked(entry: dict[str, Any], tokenizer: Any) -> Example:
    """An entry between the three marks, which are `tokenizer.new_tokens`."""
    ask, reply, done = (tokenizer.new_tokens[mark] for mark in MARKS)
    prompt = [ask, *tokenizer.encode_ordinary(user_text(entry)), reply]
    answer = tokenizer.encode_ordinary(entry["output"])
    return Example([*prompt, *answer, done], len(prompt))


def chatml(entry: dict[str, Any], tokenizer: Any) -> Example:
    """The same entry in the form that SmolLM2 was tuned on."""
    message = {"role": "user", "content": user_text(entry)}
    prompt = tokenizer.render_chat([message])
    answer = tokenizer.encode_ordinary(entry["output"])
    return Example(
        [*prompt, *answer, tokenizer.special_tokens["<|im_end|>"]], len(prompt)
    )


def as_text(entry: dict[str, Any], tokenizer: Any) -> Example:
    """The same entry in ordinary text alone; a new line ends the answer."""
    prompt = tokenizer.encode_ordinary(f"Question: {user_text(entry)}\nAnswer:")
    answer = tokenizer.encode_ordinary(f" {entry['output']}")
    return Example([*prompt, *answer, *tokenizer.encode_ordinary("\n")], len(prompt))


def batch_of(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Inputs and targets, (B, T); only the tokens of answers and their ends count."""
    T = max(len(example.ids) for example in examples) - 1
    inputs = torch.zeros(len(examples), T, dtype=torch.long)
    targets = torch.full((len(examples), T), IGNORE_INDEX)
    for row, (ids, start) in enumerate(examples):
        inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        targets[row, start - 1 : len(ids) - 1] = torch.tensor(ids[start:])
    return inputs, targets


def shuffled_batches(
    examples: Sequence[Example], batch_size: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end, in another order in each round."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(examples), generator=generator).tolist()
        for i in range(0, len(order) - batch_size + 1, batch_size):
            yield batch_of([examples[j] for j in order[i : i + batch_size]])


@torch.no_grad()
def answer_losses(
    model: nn.Module, examples: Sequence[Example], batch_size: int = 8
) -> tuple[float, float]:
    """Mean loss in nats of the answers' own tokens, and of the ends of answers."""
    words, ends = [], []
    for i in range(0, len(examples), batch_size):
        inputs, targets = batch_of(examples[i : i + batch_size])
        logits = model(inputs).float()  # (B, T, V)
        losses = F.cross_entropy(logits.mT, targets, reduction="none")  # (B, T)
        counts = targets != IGNORE_INDEX
        is_end = counts & (counts.flip(1).cumsum(dim=1).flip(1) == 1)
        words.append(losses[counts & ~is_end])
        ends.append(losses[is_end])
    return torch.cat(words).mean().item(), torch.cat(ends).mean().item()


@torch.no_grad()
def text_losses(
    model: nn.Module, texts: Sequence[list[int]], n_old: int, batch_size: int = 6
) -> tuple[float, float]:
    """Mean loss in nats of all tokens but the first of each text, in two ways.

    The first figure is what the model says; for the second it may choose among the old
    tokens only, which have the ids below `n_old`.
    """
    every, among_old = [], []
    for i in range(0, len(texts), batch_size):
        inputs, targets = batch_of(
            [Example(ids, 1) for ids in texts[i : i + batch_size]]
        )
        logits, counts = model(inputs).float(), targets != IGNORE_INDEX  # (B, T, V + N)
        for losses, choices in ((every, logits), (among_old, logits[..., :n_old])):
            loss = F.cross_entropy(choices[counts], targets[counts], reduction="none")
            losses.append(loss)
    return torch.cat(every).mean().item(), torch.cat(among_old).mean().item()


class Written(NamedTuple):
    """What a model has written, and whether it ended it."""

    text: str
    ended: bool


@torch.no_grad()
def write_answers(
    model: nn.Module, examples: Sequence[Example], tokenizer: Any, most: int = 24
) -> list[Written]:
    """The likeliest continuation of each prompt, up to the last id of its example.

    Args:
        examples: all end with the same id, which ends an answer.
        most: after so many tokens an answer is cut off.
    """
    end = examples[0].ids[-1]
    idx, real = pad_left([example.ids[: example.start] for example in examples], 0)
    cache = KVCache(model.cfg["n_layers"])
    size = model.cfg["context_length"]
    options = {"eos_id": end, "attention_mask": real, "cache": cache}
    found = generate(model, idx, most, size, **options)[:, idx.shape[1] :]
    answers = []
    for ids in found.tolist():  # generate leaves out the end that comes last
        ended = end in ids or len(ids) < most
        text = tokenizer.decode(ids[: ids.index(end)] if end in ids else ids)
        answers.append(Written(text, ended))
    return answers
