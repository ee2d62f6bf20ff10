"""The form of Olmo 3's conversations (chapter 5, bonus).

The tokenizer is that of the folder, byte pairs split as Llama 3 splits a text, with 22
added tokens; `Olmo3Encoding` gives it the form of a chat, `render_olmo3_chat`.

Source: the tokenizer and the chat template published with Olmo 3 7B Instruct
(Apache-2.0). Left out: tools; the templates of the other models, which differ in what
they say when nobody gives a system message, and, in the models that think, begin the
answer with `<think>`.

A vocabulary of the 256 bytes, with some of the added tokens:

>>> names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
>>> tokenizer = Olmo3Encoding(
...     name="bytes", pat_str=LLAMA3_PATTERN,
...     mergeable_ranks={bytes([byte]): byte for byte in range(256)},
...     special_tokens={name: 256 + i for i, name in enumerate(names)})
>>> messages = [{"role": "system", "content": "Be brief."},
...     {"role": "user", "content": "Hi"}]
>>> print(tokenizer.decode(tokenizer.render_chat(messages)))
<|im_start|>system
Be brief.<|im_end|>
<|im_start|>user
Hi<|im_end|>
<|im_start|>assistant
<BLANKLINE>
"""

from collections.abc import Mapping, Sequence

import tiktoken

from argument_checks import check_messages
from hub_tokenizers import HubEncoding
from llama_files import LLAMA3_PATTERN

__all__ = ["LLAMA3_PATTERN", "Olmo3Encoding", "render_olmo3_chat"]

# What the model was tuned to read where nobody gives a system message.
_SYSTEM = (
    "You are a helpful function-calling AI assistant. You do not currently have access "
    "to any functions. <functions></functions>"
)


class Olmo3Encoding(HubEncoding):
    """tiktoken's `Encoding` with the end that files name, and the form of a chat."""

    @property
    def eot_token(self) -> int:
        """The id that ends an answer: what the files say, else `<|endoftext|>`.

        The last answer of a conversation ends with it, as in `render_olmo3_chat`. An
        earlier one ended with `<|im_end|>`, which the published generation settings
        take for an end as well: `end_tokens` of `model_config` gives both.
        """
        return self.end or self.encode_single_token("<|endoftext|>")

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """As `render_olmo3_chat`."""
        return render_olmo3_chat(messages, self)


def render_olmo3_chat(
    messages: Sequence[Mapping[str, str]], tokenizer: tiktoken.Encoding
) -> list[int]:
    """A conversation as token ids, up to where the model's next answer begins.

    Without a system message the one is added with which the model was tuned. What
    people wrote is text: characters that look like a special token do not become one.

    Args:
        messages: a list of `{"role": "system" or "user" or "assistant", "content":
            text}`. An answer that stands last is over: another one follows.
        tokenizer: with `<|im_start|>`, `<|im_end|>` and `<|endoftext|>`; the tokens of
            the tools are used if it has them.

    Returns:
        A list of ids.

    Raises:
        ValueError: the messages are not of that form.
    """
    check_messages(messages)
    special, text = tokenizer.encode_single_token, tokenizer.encode_ordinary
    start, end = special("<|im_start|>"), [special("<|im_end|>"), *text("\n")]
    ids = []
    if all(message["role"] != "system" for message in messages):
        tools = {"<functions>", "</functions>"} & tokenizer.special_tokens_set
        ids += [start, *tokenizer.encode(f"system\n{_SYSTEM}", allowed_special=tools)]
        ids += end
    for message in messages:
        ids += [start, *text(f"{message['role']}\n{message['content']}"), *end]
    if messages[-1]["role"] == "assistant":
        ids[-len(end) :] = [special("<|endoftext|>")]
    return [*ids, start, *text("assistant\n")]
