"""Many answers in little time: `generate_answers` and its loss (chapter 7): support.

`generate_answers` computes for every text of a batch until the last of them ends, reads
each question from its first word on, and makes logits for all of its tokens. Here

* the words that all questions of a batch begin with, such as Alpaca's first sentence,
  are read once;
* logits are made where somebody looks at them;
* texts that have ended are taken out of the batch;
* the loss on the right answers goes on from the questions that were read anyway.

The texts are the same, and a test says so. Replies of an untuned model, about twenty
words long, and their loss take two fifths of the time.

>>> shared_prefix([[5, 1, 2, 7], [5, 1, 2]])
2
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from gpt_generate import pad_left
from gpt_instruction_finetuning import encode_prompt
from gpt_train import IGNORE_INDEX
from instruction_data import Entry
from kv_cache import KVCache
from model_config import config_of


class Questions(NamedTuple):
    """Questions that were read: what comes next, what is real, and the cache."""

    logits: Tensor  # (B, V)
    real: Tensor  # (B, S), bool
    cache: KVCache


@torch.no_grad()
def answers_and_loss(
    entries: Sequence[Entry],
    model: Any,
    tokenizer: Any,
    *,
    style: str = "alpaca",
    max_new_tokens: int = 64,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> tuple[list[str], float]:
    """What `generate_answers` returns, and the mean loss on the entries' own answers.

    Args:
        entries, tokenizer, style, max_new_tokens, device: as in `generate_answers`.
        model: a language model that takes an attention mask and a cache.
        batch_size: questions at once; the more, the better weights are used.

    Returns:
        The texts in the order of the entries, and nats for each token of an answer or
        its end, the mean over all such tokens.

    Raises:
        ValueError: a question and its answer are longer than the model's context.
    """
    prompts = [encode_prompt(entry, tokenizer, style) for entry in entries]
    end = tokenizer.eot_token
    answers = [
        [*tokenizer.encode(entry["output"], disallowed_special=()), end]
        for entry in entries
    ]
    room = max(max_new_tokens, *map(len, answers)) + max(map(len, prompts))
    if room > config_of(model)["context_length"]:
        raise ValueError(
            f"A question and its answer need {room} tokens, more than the context of "
            "the model: use generate_answers, which leaves out the beginning."
        )
    replies, nats = [""] * len(entries), 0.0
    order = sorted(
        range(len(entries)), key=lambda i: (bool(entries[i]["input"]), len(prompts[i]))
    )
    was_training = model.training
    model.eval()
    for start in tqdm(range(0, len(order), batch_size), "answers", disable=None):
        chosen = order[start : start + batch_size]
        read = read_questions(model, [prompts[i] for i in chosen], room, device)
        nats += answer_nats(model, read, [answers[i] for i in chosen])
        for i, ids in zip(chosen, write_answers(model, read, end, max_new_tokens)):
            replies[i] = tokenizer.decode(ids).strip()
    model.train(was_training)
    return replies, nats / sum(map(len, answers))


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """With how many ids all prompts begin, at least one of each being left."""
    most = min(map(len, prompts)) - 1
    for place in range(most):
        if len({prompt[place] for prompt in prompts}) > 1:
            return place
    return most


@contextmanager
def logits_at(model: Any, places: Any) -> Iterator[None]:
    """Let a model make logits only at some places of (B, T), in this block."""
    handle = model.out_head.register_forward_pre_hook(lambda _, x: x[0][places])
    try:
        yield
    finally:
        handle.remove()


_LAST = (slice(None), slice(-1, None))


def read_questions(
    model: Any, prompts: Sequence[list[int]], room: int, device: Any
) -> Questions:
    """Read prompts of different lengths, the beginning that they share only once."""
    B, shared = len(prompts), shared_prefix(prompts)
    cache = KVCache(config_of(model)["n_layers"], room=room)
    idx, real = pad_left([prompt[shared:] for prompt in prompts], 0)
    idx, real = idx.to(device), real.to(device)
    with logits_at(model, _LAST):
        if shared:
            model(torch.tensor([prompts[0][:shared]], device=device), cache=cache)
            cache = cache.select([0] * B)
            real = torch.cat((real.new_ones(B, shared), real), dim=1)  # (B, S)
        logits = model(idx, attention_mask=real, cache=cache)[:, -1]  # (B, V)
    return Questions(logits, real, cache)


def answer_nats(model: Any, read: Questions, answers: Sequence[list[int]]) -> float:
    """The sum of -log p over the ids of right answers; the cache is left as it was."""
    logits, question, cache = read
    device, before = logits.device, cache.length
    ids = [torch.tensor(answer, device=device) for answer in answers]
    first = torch.stack([answer[0] for answer in ids])
    nats = F.cross_entropy(logits.float(), first, reduction="sum")
    if max(map(len, ids)) == 1:
        return nats.item()
    idx = pad_sequence([answer[:-1] for answer in ids], batch_first=True)  # (B, T)
    targets = pad_sequence(
        [answer[1:] for answer in ids], batch_first=True, padding_value=IGNORE_INDEX
    )
    counts = targets != IGNORE_INDEX
    with logits_at(model, counts):
        real = torch.cat((question, counts), dim=1)
        later = model(idx, attention_mask=real, cache=cache)  # (N, V)
    cache.truncate(before)
    later_nats = F.cross_entropy(later.float(), targets[counts], reduction="sum")
    return (nats + later_nats).item()


def likeliest(logits: Tensor) -> Tensor:
    """The token with the largest logit in each row, (B,)."""
    return logits.argmax(dim=-1)


def write_answers(
    model: Any,
    read: Questions,
    end: int,
    most: int,
    choose: Callable[[Tensor], Tensor] = likeliest,
) -> list[list[int]]:
    """Tokens after each question, up to the end token or `most`.

    Args:
        model: a language model that takes an attention mask and a cache.
        read: questions that it has read.
        end: the token that ends a text; it is left out.
        most: how many tokens are written at most; a text of that length was cut.
        choose: the next token of each row, (B,), from the logits (B, V) of the texts
            that have not ended; the likeliest by default.
    """
    logits, real, cache = read
    written = [[] for _ in logits]
    rows = list(range(len(logits)))  # which text each row of the batch writes
    ended = [False] * len(rows)
    for step in range(most):
        chosen = choose(logits)  # (B,)
        for row, token in zip(rows, chosen.tolist()):
            ended[row] = ended[row] or token == end
            if not ended[row]:
                written[row].append(token)
        going = [place for place, row in enumerate(rows) if not ended[row]]
        if not going or step == most - 1:
            break
        if len(going) <= 0.75 * len(rows):  # less often, since it copies the cache
            rows = [rows[place] for place in going]
            chosen, real, cache = chosen[going], real[going], cache.select(going)
        real = torch.cat((real, real.new_ones(len(rows), 1)), dim=1)
        logits = model(chosen[:, None], attention_mask=real, cache=cache)[:, -1]
    return written
