"""Multiple choice by likelihood, as evaluation harnesses ask it (chapter 7).

A language model is given a question and never says a word: what counts is how likely it
finds each choice.

* cloze scoring: the choices are not shown; `cloze_scores` adds up log p over the tokens
  of each, as it is, or divided by tokens, characters or bytes, or minus what the choice
  has without the question;
* letter scoring: the choices are shown under letters, and `letter_scores` compares
  log p of the letters, in any order of the choices (`rotations`);
* `hits`, `letter_shares` and `changed_by_order` say what came of it.

Sources: Brown and others, 2020, arXiv:2005.14165, section 2.4 (division, and the
question left out); Hendrycks and others, 2020, arXiv:2009.03300 (MMLU: letters);
Biderman and others, 2024, arXiv:2405.14782 (why two harnesses give two scores). Left
out: examples before the question, answers that are generated and searched for a letter.

>>> ask = ChoiceQuestion("animals", "What do bees make?", ("milk", "honey"), 1)
>>> cloze_prompt(ask)
'Question: What do bees make?\\nAnswer:'
>>> print(letter_prompt(ask, (1, 0)))
Question: What do bees make?
A. honey
B. milk
Answer:
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kv_cache import KVCache
from model_config import config_of

LETTERS = "ABCD"
QUESTIONS = Path(__file__).parent / "questions.csv"


# --- Questions -----------------------------------------------------------------------


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question, its choices, and which of them is right, counted from 0."""

    subject: str
    question: str
    choices: tuple[str, ...]
    answer: int


def read_choice_questions(path: Path | str = QUESTIONS) -> list[ChoiceQuestion]:
    """Questions from a CSV file with the columns subject, question, A to D, answer."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        return [
            ChoiceQuestion(
                row["subject"],
                row["question"],
                tuple(row[letter] for letter in LETTERS),
                LETTERS.index(row["answer"]),
            )
            for row in csv.DictReader(file)
        ]


# --- Log-probabilities ---------------------------------------------------------------


def encode_pair(
    tokenizer: Any, context: str, continuation: str
) -> tuple[list[int], list[int]]:
    """The ids of a context and of what follows it, the text being encoded as one.

    A blank at the end of the context goes to the continuation: tokenizers of this kind
    join a blank with the word behind it.
    """
    stripped = context.rstrip(" ")
    continuation = context[len(stripped) :] + continuation
    ids = tokenizer.encode(stripped)
    return ids, tokenizer.encode(stripped + continuation)[len(ids) :]


@torch.no_grad()
def continuation_logprobs(
    model: Any, context: Sequence[int], continuations: Sequence[Sequence[int]]
) -> Tensor:
    """log p of each continuation behind the same context, summed over its tokens.

    The context is read once, and the continuations as one batch behind it.

    Args:
        model: a language model that takes an attention mask and a cache.
        context: at least one id.
        continuations: B lists of ids, none empty.

    Returns:
        (B,) sums in nats, float32.
    """
    device = model.tok_emb.weight.device
    ids = [torch.tensor(one, device=device) for one in continuations]
    cache = KVCache(config_of(model)["n_layers"])
    logits = model(torch.tensor([context], device=device), cache=cache)[0, -1]  # (V,)
    first = torch.stack([one[0] for one in ids])
    sums = logits.float().log_softmax(dim=-1)[first]  # (B,)
    if max(map(len, ids)) == 1:
        return sums
    idx = pad_sequence([one[:-1] for one in ids], batch_first=True)  # (B, T)
    targets = pad_sequence([one[1:] for one in ids], batch_first=True, padding_value=-1)
    counts = targets >= 0
    read = counts.new_ones(len(ids), len(context))
    later = model(
        idx,
        attention_mask=torch.cat((read, counts), dim=1),
        cache=cache.select([0] * len(ids)),
    )  # (B, T, V)
    logprobs = later.float().log_softmax(dim=-1)
    logprobs = logprobs.gather(-1, targets.clamp(min=0)[..., None])[..., 0]  # (B, T)
    return sums + torch.where(counts, logprobs, 0.0).sum(dim=-1)


# --- Cloze: the choices are not shown ------------------------------------------------


def cloze_prompt(question: ChoiceQuestion) -> str:
    """What stands before a choice."""
    return f"Question: {question.question}\nAnswer:"


def cloze_scores(
    model: Any, tokenizer: Any, question: ChoiceQuestion
) -> dict[str, NDArray[np.float64]]:
    """A score for each choice, in five ways; the model takes the highest.

    Returns:
        By way, (4,) scores: "sum" is log p of the choice; "tokens", "characters" and
        "bytes" divide it by the length of the choice, its first blank left out;
        "question" subtracts log p of the same choice behind "Answer:" alone.
    """
    texts = [" " + choice for choice in question.choices]

    def sums(context):
        pairs = [encode_pair(tokenizer, context, text) for text in texts]
        ids = [behind for _, behind in pairs]
        found = continuation_logprobs(model, pairs[0][0], ids)
        return found.double().cpu().numpy(), np.array([len(one) for one in ids])

    asked, tokens = sums(cloze_prompt(question))
    alone, _ = sums("Answer:")
    return {
        "sum": asked,
        "tokens": asked / tokens,
        "characters": asked / [len(choice) for choice in question.choices],
        "bytes": asked / [len(choice.encode()) for choice in question.choices],
        "question": asked - alone,
    }


# --- Letters: the choices are shown --------------------------------------------------


def letter_prompt(question: ChoiceQuestion, order: Sequence[int] | None = None) -> str:
    """The question with its choices under letters, in an order of the choices."""
    order = range(len(question.choices)) if order is None else order
    lines = [f"{x}. {question.choices[i]}" for x, i in zip(LETTERS, order)]
    return "\n".join([f"Question: {question.question}", *lines, "Answer:"])


def letter_scores(
    model: Any,
    tokenizer: Any,
    question: ChoiceQuestion,
    order: Sequence[int] | None = None,
) -> NDArray[np.float64]:
    """log p of the letter of each choice, (4,), wherever the choice was shown."""
    number = len(question.choices)
    order = list(range(number)) if order is None else list(order)
    context = letter_prompt(question, order)
    pairs = [encode_pair(tokenizer, context, f" {x}") for x in LETTERS[:number]]
    found = continuation_logprobs(model, pairs[0][0], [ids for _, ids in pairs])
    scores = np.empty(number)
    scores[order] = found.double().cpu().numpy()
    return scores


def rotations(number: int = 4) -> list[tuple[int, ...]]:
    """Orders in which each choice stands once under each letter."""
    return [tuple((i + turn) % number for i in range(number)) for turn in range(number)]


# --- What came of it -----------------------------------------------------------------


def hits(scores: ArrayLike, answers: ArrayLike) -> NDArray[np.float64]:
    """1 where the right choice has the highest score, a share of it for a tie.

    Args:
        scores: (N, 4).
        answers: (N,) the right choices.
    """
    scores = np.asarray(scores, dtype=float)
    best = scores == scores.max(axis=1, keepdims=True)  # (N, 4)
    right = best[np.arange(len(scores)), np.asarray(answers)]
    return right / best.sum(axis=1)


def letter_shares(scores: ArrayLike, orders: ArrayLike) -> NDArray[np.float64]:
    """How often each letter was chosen, (4,).

    Args:
        scores: (O, N, 4) of the choices, for each order.
        orders: (O, 4) which choice stood under each letter.
    """
    chosen = np.asarray(scores).argmax(axis=2)  # (O, N)
    places = np.argsort(np.asarray(orders), axis=1)  # (O, 4) letter of each choice
    letters = np.take_along_axis(places, chosen, axis=1)
    counts = np.bincount(letters.ravel(), minlength=places.shape[1])
    return counts / letters.size


def changed_by_order(scores: ArrayLike) -> float:
    """Share of the questions whose chosen choice is not the same in every order.

    Args:
        scores: (O, N, 4) of the choices, for each order.
    """
    chosen = np.asarray(scores).argmax(axis=2)  # (O, N)
    return float((chosen != chosen[0]).any(axis=0).mean())
