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
become others, and what a cache knows of the conversation would end there. Only the
thoughts before it go, where a model writes such: it has never read old ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt_instruction_finetuning import encode_prompt
from qwen3_tokenizer import split_thoughts


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
    questions = [*(turn.question for turn in turns), question]
    ids = _asked(questions[0], tokenizer, style)
    for turn, following in zip(turns, questions[1:]):
        ids += _said(turn.answer, tokenizer)
        if _chats(tokenizer, style):
            ids += _between(following, tokenizer)
        else:
            ids += [tokenizer.eot_token, *_asked(following, tokenizer, style)]
    return ids


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


def _asked(question, tokenizer, style):
    """A question with all that stands around it."""
    entry = {"instruction": question, "input": ""}
    return encode_prompt(entry, tokenizer, style)


def _between(question, tokenizer):
    """What a chat template puts between an answer and that of the next question."""
    empty = [{"role": role, "content": ""} for role in ("user", "assistant")]
    whole = [*empty, {"role": "user", "content": question}]
    before = len(tokenizer.render_chat(empty[:1]))
    return tokenizer.render_chat(whole)[before:]


def _said(answer, tokenizer):
    """An answer that was given, without its thoughts: a template with them says so."""
    if "</think>" not in getattr(tokenizer, "special_tokens_set", ()):
        return answer
    text = tokenizer.decode(answer)
    if "</think>" not in text:
        return answer
    return tokenizer.encode_ordinary(split_thoughts(text)[1])


def _chats(tokenizer, style):
    return style == "chatml" and hasattr(tokenizer, "render_chat")
