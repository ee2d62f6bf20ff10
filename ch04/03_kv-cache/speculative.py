"""A small model guesses, the large one checks: speculative decoding (chapter 4, bonus).

A large model reads a few tokens in little more time than one, because both times it
must fetch all of its weights. So a cheap *draft* guesses the next tokens one by one.
The large model then reads them all at once and keeps those that it would have written.
What comes out is the large model's text: the same tokens where the likeliest is taken
(but for ties within rounding: several tokens at once and one by one differ by about
1e-6), the same distribution where tokens are drawn.

* `keep_or_replace`: the rule that decides how many guesses stay;
* `generate_speculatively`: the loop, and `SpeculativeCounts`, what it cost;
* `ModelDraft`: another model that guesses; `PromptLookup`: a look back into the text.

Sources: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding",
2023 (arXiv:2211.17192, algorithm 1), and, found at the same time, Chen et al.,
"Accelerating Large Language Model Decoding with Speculative Sampling", 2023
(arXiv:2302.01318, algorithm 2). Left out: several texts at once, trees of guesses.

The end of the text, 7 1, stood in it before, and 4 5 came next:

>>> ids = torch.tensor([7, 1, 4, 5, 7, 1])
>>> guesses, _ = PromptLookup(vocab_size=10).propose(ids, 2)
>>> guesses.tolist()
[4, 5]

Shapes: S tokens of the text, T guesses, V vocabulary. One text at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argument_checks import (
    check_prompt,
    check_same_vocabulary,
    check_single_row,
    check_whole_number,
)
from kv_cache import PromptCache

__all__ = [
    "ModelDraft",
    "PromptLookup",
    "SpeculativeCounts",
    "generate_speculatively",
    "keep_or_replace",
    "likeliest",
]

Probabilities = Callable[[Tensor], Tensor]


def likeliest(logits: Tensor) -> Tensor:
    """Probability 1 for the likeliest token, of equal ones the lowest id.

    Args:
        logits: (..., V).

    Returns:
        The same shape, float32: greedy decoding as a distribution.
    """
    return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float()


def keep_or_replace(
    drafted: Tensor,
    draft_probabilities: Tensor,
    probabilities: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The guesses that stay, and one token of the large model's own after them.

    A guess x stays with probability min(1, p(x) / q(x)). At the first that goes, the
    token is drawn from max(0, p - q), scaled to the sum 1: what the draft proposes too
    seldom. Both together give each token exactly the probability p.

    Args:
        drafted: token ids, (T,), each drawn from its row of q; T may be 0.
        draft_probabilities: q, (T, V).
        probabilities: p of the large model, (T + 1, V); its last row comes after all
            guesses.
        generator: what to draw from; None takes torch's own.

    Returns:
        Token ids, (n + 1,), 0 <= n <= T of them guesses.
    """
    for i, token in enumerate(drafted):
        p, q = probabilities[i], draft_probabilities[i]  # (V,) each
        chance = torch.rand((), generator=generator, device=p.device)
        if chance < p[token] / q[token]:
            continue
        missing = (p - q).clamp(min=0.0)
        # p and q may be equal but for rounding.
        weights = missing if missing.any() else p
        chosen = torch.multinomial(weights, 1, generator=generator)
        return torch.cat((drafted[:i], chosen))
    chosen = torch.multinomial(probabilities[-1], 1, generator=generator)
    return torch.cat((drafted, chosen))


class Draft(Protocol):
    """Whatever can guess how a text goes on."""

    def propose(self, ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Guess at most `count` tokens after `ids`, (S,).

        Returns:
            `(drafted, draft_probabilities)`, (T,) and (T, V), T <= count; of more,
            the first `count` are read.
        """
        ...


class ModelDraft:
    """A model that guesses, with a cache of its own.

    Args:
        model: with the interface of `GPTModel` and the large model's vocabulary.
        probabilities: logits to probabilities, as for the large model.
        generator: what to draw from; None takes torch's own.
    """

    def __init__(
        self,
        model: nn.Module,
        probabilities: Probabilities = likeliest,
        generator: torch.Generator | None = None,
    ):
        self.reader = PromptCache(model)
        self.probabilities, self.generator = probabilities, generator

    def propose(self, ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Guess exactly `count` tokens; see `Draft`."""
        rows = []
        for _ in range(count):
            logits = self.reader.read(ids)[-1:]  # (1, V)
            rows.append(self.probabilities(logits))
            chosen = torch.multinomial(rows[-1][0], 1, generator=self.generator)
            ids = torch.cat((ids, chosen))
        none = ids.new_empty(0, self.reader.model.cfg["vocab_size"]).float()
        return ids[len(ids) - count :], torch.cat((none, *rows))


class PromptLookup:
    """A draft without a model: what followed the last few tokens before.

    It looks for the latest earlier place of the last `longest` tokens, then of fewer,
    and guesses that the text goes on as it did there (Saxena, "Prompt Lookup Decoding",
    2023). It helps where a text repeats itself or its prompt.

    Args:
        vocab_size: V of the large model.
        longest: how many tokens to look for first.
    """

    def __init__(self, vocab_size: int, longest: int = 3):
        self.vocab_size, self.longest = vocab_size, longest

    def propose(self, ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Guess the tokens after the place found, or none; see `Draft`."""
        drafted = ids[:0]
        for size in range(min(self.longest, len(ids) - 1), 0, -1):
            windows = ids[:-1].unfold(0, size, 1)  # (S - size, size)
            places = (windows == ids[-size:]).all(dim=1).nonzero()
            if len(places):
                start = int(places[-1]) + size
                drafted = ids[start : start + count]
                break
        return drafted, F.one_hot(drafted, self.vocab_size).float()


@dataclass
class SpeculativeCounts:
    """What a text has cost.

    Attributes:
        passes: how often the large model was called.
        drafted: how many tokens were guessed.
        accepted: how many of them stayed.
    """

    passes: int = 0
    drafted: int = 0
    accepted: int = 0


@torch.no_grad()
def generate_speculatively(
    model: nn.Module,
    draft: Draft,
    idx: Tensor,
    max_new_tokens: int,
    num_drafted: int = 4,
    probabilities: Probabilities = likeliest,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, SpeculativeCounts]:
    """Continue a prompt as the model would, with fewer calls of it.

    Args:
        model: a model with the interface of `GPTModel`, in evaluation mode.
        draft: what guesses; with its own `probabilities`, best the same.
        idx: a prompt's token ids, (1, S).
        max_new_tokens: how many tokens to add, at least 0.
        num_drafted: how many to guess at a time.
        probabilities: logits, (T, V), to probabilities; by default all on the
            likeliest, so that the text is that of `generate_text_simple`.
        generator: what to draw from; None takes torch's own.

    Returns:
        `(text, counts)`, the ids, (1, S + max_new_tokens), and what they cost.

    Raises:
        ValueError: as `generate_text_simple`; there is more than one prompt; the text
            would exceed the model's context.
    """
    check_prompt(model, idx, max_new_tokens, model.cfg["context_length"])
    check_single_row(idx)
    check_whole_number("num_drafted", num_drafted, least=0)
    reader, counts = PromptCache(model), SpeculativeCounts()
    ids, end = idx[0], idx.shape[1] + max_new_tokens
    while len(ids) < end:
        count = min(num_drafted, end - len(ids) - 1)
        drafted, q = (part[:count] for part in draft.propose(ids, count))
        check_same_vocabulary(q.shape[1], model.cfg["vocab_size"])
        logits = reader.read(torch.cat((ids, drafted)))[-len(drafted) - 1 :]
        new = keep_or_replace(drafted, q, probabilities(logits), generator)
        ids = torch.cat((ids, new))
        counts.passes += 1
        counts.drafted += len(drafted)
        counts.accepted += len(new) - 1
    return ids[None], counts
