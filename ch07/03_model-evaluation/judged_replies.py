"""Replies with a verdict by hand, and a judge that is read from its logits: support.

The replies are those of chapter 7's `results/replies.csv` that eight readers judged
without knowing whose they are. `margins` asks a model for one word and takes no word
for the answer, but how much likelier it finds the one than the other: a grade that is
never malformed.

>>> verdict_prompt({"instruction": "2 + 2?", "input": "", "output": "4"}, "Four.")[-41:]
'Is the reply right? Answer with Yes or No'
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fast_answers import read_questions
from gpt_instruction_finetuning import encode_prompt
from instruction_data import (
    Entry,
    course_instructions,
    read_instructions,
    user_text,
)
from read_by_hand import RESULTS, reply_id, verdict_by_reply

BATCH = 32


@dataclass(frozen=True)
class JudgedReply:
    """A reply, the question that it answers, and three verdicts: 1 right, 0 wrong."""

    id: str
    entry: Entry  # with instruction, input and output
    reply: str
    by_hand: int
    rule: int
    rule_v2: int

    @property
    def question(self) -> str:
        """What a person would have typed."""
        return user_text(self.entry)


def read_judged_replies(results: Path = RESULTS) -> list[JudgedReply]:
    """The replies that were read by hand, each once, question by question."""
    from course import tables

    verdicts = verdict_by_reply(tables.read(results / "by_hand.csv"))
    entries = {user_text(e): e for e in read_instructions(course_instructions())}
    found = {}
    for row in tables.read(results / "replies.csv"):
        reply = json.loads(row["reply"])
        name = reply_id(row["question"], reply)
        if name in verdicts:
            entry = entries[row["question"]]
            found[name] = JudgedReply(
                name,
                entry,
                reply,
                int(verdicts[name] >= 0.5),
                int(row["right"]),
                int(row["right_v2"]),
            )
    return sorted(found.values(), key=lambda one: (one.question, one.id))


def sample_of_replies(
    replies: Sequence[JudgedReply], number: int, seed: int
) -> list[JudgedReply]:
    """Some replies, in a random order, half of them right as far as there are enough.

    Args:
        replies: as from `read_judged_replies`.
        number: how many; all of them if there are not as many.
        seed: of the draw.
    """
    draw = random.Random(seed)
    by_verdict = {v: [one for one in replies if one.by_hand == v] for v in (1, 0)}
    right = draw.sample(by_verdict[1], min(number // 2, len(by_verdict[1])))
    rest = min(number - len(right), len(by_verdict[0]))
    found = [*right, *draw.sample(by_verdict[0], rest)]
    draw.shuffle(found)
    return found


def verdict_prompt(entry: Entry, reply: str) -> str:
    """The request for a verdict: question, right answer, and the reply."""
    return (
        "You check the reply of an assistant.\n\n"
        f"Question:\n{user_text(entry)}\n\n"
        f"A right answer:\n{entry['output']}\n\n"
        f"Reply to check:\n{reply}\n\n"
        "Is the reply right? Answer with Yes or No"
    )


def margins(
    model: Any, tokenizer: Any, prompts: Sequence[str], one: str, other: str
) -> list[float]:
    """log p(one) - log p(other) as the first token of a model's answer to each prompt.

    Args:
        model, tokenizer: a chat model, asked in its own chat template.
        prompts: what all of them begin with is read once.
        one, other: two words; only the first token of each counts.
    """
    first, second = (tokenizer.encode(word)[0] for word in (one, other))
    found = []
    for start in range(0, len(prompts), BATCH):
        ids = [
            encode_prompt({"instruction": text, "input": ""}, tokenizer, "chatml")
            for text in prompts[start : start + BATCH]
        ]
        device = model.tok_emb.weight.device
        with torch.no_grad():
            read = read_questions(model, ids, max(map(len, ids)), device)
        logits = read.logits.float()  # (B, V)
        found += (logits[:, first] - logits[:, second]).tolist()
    return found
