"""How Qwen3 splits a text, and the form of its conversations (chapter 5, bonus).

* `QWEN3_PATTERN` cuts a text into pieces as Llama 3 does, but digit by digit;
* `Qwen3Encoding` is tiktoken's `Encoding` that first puts the text into the normal form
  NFC, in which an accent and its letter are one character;
* `render_qwen3_chat` writes a conversation as token ids, to be answered with thoughts
  or without.

Source: the tokenizer and the chat template published with the models (Apache-2.0), and
Yang and others, 2025 (arXiv:2505.09388), sections 2 and 4.3 for the two modes. Left
out: tools.

A vocabulary of the 256 bytes and two merges; Qwen3's own is read by `qwen3_files`:

>>> ranks = {bytes([byte]): byte for byte in range(256)}
>>> tokenizer = Qwen3Encoding(ranks | {"\u00e9".encode(): 256, b"hi": 257})
>>> tokenizer.encode("e\u0301"), tokenizer.encode("\u00e9")  # two spellings, one token
([256], [256])
>>> ids = tokenizer.render_chat([{"role": "user", "content": "hi"}], thinking=False)
>>> print(tokenizer.decode(ids))
<|im_start|>user
hi<|im_end|>
<|im_start|>assistant
<think>
<BLANKLINE>
</think>
<BLANKLINE>
<BLANKLINE>
"""

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import tiktoken

from argument_checks import check_messages
from llama_files import LLAMA3_PATTERN

QWEN3_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
# In the order of their ids, right behind the ordinary tokens.
QWEN3_SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
]


class Qwen3Encoding(tiktoken.Encoding):
    """tiktoken's `Encoding` over a text in normal form, with the form of a chat.

    Args:
        ranks: {bytes of a token: its id}, from 0 up; the special tokens follow.
    """

    def __init__(self, ranks: Mapping[bytes, int]):
        super().__init__(
            name="qwen3",
            pat_str=QWEN3_PATTERN,
            mergeable_ranks=dict(ranks),
            special_tokens={
                name: id for id, name in enumerate(QWEN3_SPECIAL, len(ranks))
            },
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and other processes: made anew of its ranks."""
        return Qwen3Encoding, (self._mergeable_ranks,)

    @property
    def eot_token(self) -> int:
        """The id with which the model ends its answer, that of `<|im_end|>`."""
        return self.encode_single_token("<|im_end|>")

    def encode(
        self,
        text: str,
        *,
        allowed_special: Literal["all"] | Collection[str] = (),
        disallowed_special: Literal["all"] | Collection[str] = "all",
    ) -> list[int]:
        """As tiktoken's, of the text in normal form; special tokens stay as they are.

        So what lies between them is normalised piece by piece: `>` and an accent after
        it would become one character, and the special token would be gone.
        """
        everything = allowed_special == "all"
        chosen = self.special_tokens_set if everything else allowed_special
        pieces = [text]
        if chosen:
            longest = sorted(chosen, key=len, reverse=True)
            pattern = f"({'|'.join(map(re.escape, longest))})"
            pieces = re.split(pattern, text)
        text = "".join(unicodedata.normalize("NFC", p) for p in pieces)
        allowed, refused = set(chosen), disallowed_special
        return super().encode(text, allowed_special=allowed, disallowed_special=refused)

    def encode_ordinary(self, text: str) -> list[int]:
        """As tiktoken's, of the text in normal form."""
        return super().encode_ordinary(unicodedata.normalize("NFC", text))

    def render_chat(
        self, messages: Sequence[Mapping[str, str]], thinking: bool = True
    ) -> list[int]:
        """As `render_qwen3_chat`."""
        return render_qwen3_chat(messages, self, thinking)


def split_thoughts(answer: str) -> tuple[str, str]:
    """What stands between `<think>` and `</think>`, and the answer after it.

    Args:
        answer: what a model wrote, special tokens as text; without thoughts the first
            part is empty.
    """
    if "</think>" not in answer:
        return "", answer
    before = answer.split("</think>")[0]
    after = answer.split("</think>")[-1]
    thoughts = before.rstrip("\n").split("<think>")[-1].strip("\n")
    return thoughts, after.lstrip("\n")


def render_qwen3_chat(
    messages: Sequence[Mapping[str, str]],
    tokenizer: Qwen3Encoding,
    thinking: bool = True,
) -> list[int]:
    """A conversation as token ids, up to where the model's next answer begins.

    Of an earlier answer only what came after the thoughts is kept. What people wrote is
    text: characters that look like a special token do not become one.

    Args:
        messages: a list of `{"role": "system" or "user" or "assistant", "content":
            text}`.
        tokenizer: as from `qwen3_files.load_qwen3_tokenizer`.
        thinking: whether the model may think first. If not, the answer begins with
            thoughts that are empty, as if they were over.

    Returns:
        A list of ids.

    Raises:
        ValueError: the messages are not of that form.
    """
    check_messages(messages)
    special, text = tokenizer.encode_single_token, tokenizer.encode_ordinary
    users = [i for i, m in enumerate(messages) if m["role"] == "user"]
    last_question = users[-1] if users else len(messages) - 1

    def thoughts(found):
        return [special("<think>"), *text(f"\n{found}\n"), special("</think>")]

    ids = []
    for i, message in enumerate(messages):
        role, content = message["role"], message["content"]
        before, answer = "", content
        if role == "assistant":
            before, answer = split_thoughts(content)
        ids.append(special("<|im_start|>"))
        recent = role == "assistant" and i > last_question
        if recent and (before or i == len(messages) - 1):
            ids += [*text(f"{role}\n"), *thoughts(before)]
            ids += text("\n\n" + answer.lstrip("\n"))
        else:
            ids += text(f"{role}\n{answer}")
        ids += [special("<|im_end|>"), *text("\n")]
    ids += [special("<|im_start|>"), *text("assistant\n")]
    return ids if thinking else [*ids, *thoughts(""), *text("\n\n")]
