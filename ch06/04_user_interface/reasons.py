"""What a classifier says, and which words moved it (chapter 6, user interface).

`Reasons` puts a message to the model, then once more without each of its words. If a
word is left out and spam becomes less likely, the word spoke for spam. That asks the
model itself, and needs no look inside; but two words of which either is enough each
count for nothing (Zeiler and Fergus, "Visualizing and Understanding Convolutional
Networks", 2014, arXiv:1311.2901, section 4.2, hide parts of pictures in this way). In a
message that is cut, leaving a word out also lets tokens in that had been cut off.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from argument_checks import check_runs
from gpt_class_finetune import encode_message, last_token_logits
from writer import End

BATCH = 8  # messages that are read at once; between them one can stop
MOST_WORDS = 120  # that are left out, one after the other


@dataclass(frozen=True)
class Decision:
    """What the model says of a message.

    Attributes:
        labels: the classes.
        shares: their probabilities, in the same order.
        read: tokens that the model read.
        tokens: tokens that the message has.
        parts: the message, cut into what is between words and words, in turn.
    """

    labels: tuple[str, ...]
    shares: tuple[float, ...]
    read: int
    tokens: int
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Words:
    """Words of the message, and the probabilities without each of them.

    Attributes:
        start: the number of the first one, from 0.
        shares: for each word, those of the classes.
    """

    start: int
    shares: tuple[tuple[float, ...], ...]


def words_of(text: str) -> list[tuple[int, int]]:
    """Where the words of a text begin and end.

    >>> words_of("Pay 2.50, now!")
    [(0, 3), (4, 9), (10, 14)]
    """
    return [found.span() for found in re.finditer(r"\S+", text)]


def without(text: str, start: int, end: int) -> str:
    """A text without a word, and without the blank behind it, or else before it.

    >>> without("Pay 2.50, now!", 4, 9)
    'Pay now!'
    >>> without("Pay 2.50, now!", 10, 14)
    'Pay 2.50,'
    """
    if end < len(text):
        return text[:start] + text[end:].lstrip()
    return text[:start].rstrip()


class Reasons:
    """A classifier that says why.

    Args:
        model: with a head for classes, in evaluation mode.
        tokenizer: the model's.
        max_length: tokens above which a message is cut, as in training; None for none.
        labels: the classes, in the order of the model's outputs.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        max_length: int | None,
        labels: Sequence[str],
    ):
        self.model, self.tokenizer = model, tokenizer
        self.max_length, self.labels = max_length, tuple(labels)

    def shares(self, texts: Sequence[str]) -> torch.Tensor:
        """The probabilities of the classes for each text, (B, C)."""
        rows = [encode_message(text, self.tokenizer, self.max_length) for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        real = torch.tensor([[n < len(row) for n in range(longest)] for row in rows])
        device = next(self.model.parameters()).device
        ids, real = ids.to(device), real.to(device)
        with torch.no_grad():
            logits = last_token_logits(self.model(ids, attention_mask=real), real)
        return torch.softmax(logits.float(), dim=-1).cpu()

    def start(self, text: str) -> Iterator[Decision | Words | End]:
        """The decision, then what it would be without each word.

        Raises:
            ValueError: the text has no token that the model can read.
        """
        check_runs(text)
        read = encode_message(text, self.tokenizer, self.max_length)
        tokens = encode_message(text, self.tokenizer, None)
        return self._steps(text, len(read), len(tokens))

    def _steps(self, text, read, tokens):
        whole = self.shares([text])[0].tolist()
        parts = re.split(r"(\S+)", text)
        yield Decision(self.labels, tuple(whole), read, tokens, tuple(parts))
        words = words_of(text)[:MOST_WORDS]
        if len(words) > 1:
            for start in range(0, len(words), BATCH):
                texts = [
                    without(text, *place) for place in words[start : start + BATCH]
                ]
                shares = self.shares(texts).tolist()
                yield Words(start, tuple(map(tuple, shares)))
        yield End("", "end", known=0, read=read, written=0)
