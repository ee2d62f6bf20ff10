"""A conversation as the model reads it (chapter 7, user interface).

A model is asked in the layout in which it was trained, token for token: that is
`encode_prompt` for the first question. A second question follows the first one's
answer, with the token that ended it, as one row of training follows the other:

>>> import tiktoken
>>> tokenizer = tiktoken.get_encoding("gpt2")
>>> turns = [Turn("Name a colour.", tokenizer.encode("Blue."))]
>>> ids = conversation_ids(turns, "And a bird.", tokenizer, "phi3")
>>> print(tokenizer.decode(ids))
<|user|>
Name a colour.<|end|>
<|assistant|>
Blue.<|endoftext|><|user|>
And a bird.<|end|>
<|assistant|>
<BLANKLINE>

An answer is put back as the tokens that the model chose. Encoded anew, its text could
become others, and what a cache knows of the conversation would end there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt_instruction_finetuning import encode_prompt


@dataclass(frozen=True)
class Turn:
    """A question, and the token ids of its answer without the one that ended it."""

    question: str
    answer: Sequence[int]


def conversation_ids(
    turns: Sequence[Turn], question: str, tokenizer: Any, style: str
) -> list[int]:
    """The ids of all that was said and of a new question, up to its answer.

    Args:
        turns: what was said before, the oldest first.
        question: the new one.
        tokenizer: the model's.
        style: the layout it was trained in, one of chapter 7's `FORMATS`.
    """
    ids: list[int] = []
    for turn in turns:
        ids += _opened(turn.question, tokenizer, style, first=not ids)
        ids += [*turn.answer, tokenizer.eot_token]
        ids += _behind_an_end(tokenizer, style)
    return ids + _opened(question, tokenizer, style, first=not ids)


def fitting(
    turns: Sequence[Turn], question: str, tokenizer: Any, style: str, most: int
) -> tuple[list[int], int]:
    """`conversation_ids` of the last turns that fit, and how many were left out.

    The question itself is never cut: alone it may have more than `most` tokens.
    """
    for left_out in range(len(turns) + 1):
        ids = conversation_ids(turns[left_out:], question, tokenizer, style)
        if len(ids) <= most:
            break
    return ids, left_out


def rendered(
    messages: Sequence[Mapping[str, str]], tokenizer: Any, style: str
) -> list[int]:
    """The ids of a conversation whose answers are texts, as other programs send it.

    Where the layout knows no system message, it comes before the first question.

    Raises:
        ValueError: questions and answers do not take turns, with a question last.
    """
    if _chats(tokenizer, style):
        return tokenizer.render_chat(messages)
    system = [m["content"] for m in messages if m["role"] == "system"]
    said = [m for m in messages if m["role"] != "system"]
    if [m["role"] for m in said] != (["user", "assistant"] * len(said))[
        : len(said)
    ] or (len(said) % 2 == 0):
        raise ValueError(
            "This model knows questions and answers in turn: send user, assistant, "
            "user, and so on, with a question last."
        )
    texts = [m["content"] for m in said]
    texts[0] = "\n".join([*system, texts[0]])
    turns = [
        Turn(question, tokenizer.encode_ordinary(answer))
        for question, answer in zip(texts[::2], texts[1::2])
    ]
    return conversation_ids(turns, texts[-1], tokenizer, style)


def _opened(question, tokenizer, style, first):
    """A question with all that stands around it, its system message only in front."""
    entry = {"instruction": question, "input": ""}
    ids = encode_prompt(entry, tokenizer, style)
    if first or not _chats(tokenizer, style):
        return ids
    start = tokenizer.special_tokens["<|im_start|>"]
    before = [place for place, token in enumerate(ids) if token == start]
    return ids[before[-2] :]  # that of the user; the last is that of the answer


def _behind_an_end(tokenizer, style):
    """In a chat template a line break follows the end of each message."""
    return tokenizer.encode_ordinary("\n") if _chats(tokenizer, style) else []


def _chats(tokenizer, style):
    return style == "chatml" and hasattr(tokenizer, "render_chat")
