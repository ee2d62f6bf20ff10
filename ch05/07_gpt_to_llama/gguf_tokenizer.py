"""The tokenizer in a GGUF file: byte pair encoding with its vocabulary (chapter 5).

A model can only be used with the vocabulary of its training, and the file has it: the
tokens, the list of merges that made them, and the chat template.

* `SPLIT_PATTERN` splits a text into pieces, and no merge crosses from one to the next;
* `GGUFTokenizer` encodes, decodes and renders a conversation.

The vocabulary is written in the byte alphabet of GPT-2 (`bpe.byte_alphabet`). Merging
is byte pair encoding (Sennrich et al., 2016, arXiv:1508.07909, section 3.2), done by
`tiktoken`. The tests compare with the package `tokenizers`. Left out: training, and
other tokenizers than SmolLM2's.

A vocabulary of the 256 bytes, three special tokens and four merges:

>>> merges = ["h e", "l l", "he ll", "hell o"]
>>> tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_alphabet()]
>>> tokens += [merge.replace(" ", "") for merge in merges]
>>> tokenizer = GGUFTokenizer({
...     "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
...     "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": merges,
...     "tokenizer.ggml.token_type": [3] * 3 + [1] * 260,
...     "tokenizer.ggml.eos_token_id": 2})
>>> ids = tokenizer.encode("hello hells")
>>> [tokenizer.decode([i]) for i in ids]
['hello', ' ', 'hell', 's']
>>> tokenizer.encode("<|im_end|>", allowed_special="all")
[2]
>>> len(tokenizer.encode("<|im_end|>"))  # as text it is ten bytes
10
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import regex
import tiktoken

from argument_checks import check_messages
from bpe import byte_alphabet
from gguf_files import (
    check_absent,
    check_merges,
    read_vocabulary,
    system_message,
    without_surrogates,
)

# Words, with the space before them; single digits; runs of signs; white space.
SPLIT_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+"
    r"|\s+(?![^\s\p{N}])|\s+"
)


class GGUFTokenizer:
    """Byte pair encoding with the vocabulary of a GGUF file, with tiktoken's methods.

    A text is split by `SPLIT_PATTERN`, and `tiktoken` merges the bytes of each piece:
    of two neighbours that make a token together, those with the lowest id first. Bytes
    that the vocabulary lacks are dropped, as the tokenizer that the model was trained
    with does; `tiktoken` alone would crash on them.

    Args:
        metadata: as `read_gguf` returns it.

    Attributes:
        n_vocab: how many ids there are.
        special_tokens: {text: id} of the tokens that no ordinary text encodes to.
        eot_token: the id with which the model ends its answer.
        missing_bytes: the bytes that are in no token.
        chat_template: the template in the file, or None.
        name: what the file calls the way of splitting.

    Raises:
        ValueError: an entry is missing or of another kind, or it belongs to a tokenizer
            that works in another way.
    """

    def __init__(self, metadata: Mapping[str, Any]):
        vocabulary = read_vocabulary(metadata)
        self.name = vocabulary.name
        self.n_vocab = len(vocabulary.tokens)
        self.eot_token = vocabulary.eot_token
        self.special_tokens = vocabulary.special_ids()
        self.chat_template = metadata.get("tokenizer.chat_template")
        alphabet, ids = byte_alphabet(), vocabulary.ordinary_ids()
        check_merges(ids, vocabulary.merges, alphabet)
        ranks = {bytes(alphabet[c] for c in token): i for token, i in ids.items()}
        self.missing_bytes = bytes(b for b in range(256) if bytes([b]) not in ranks)
        self._encoding = tiktoken.Encoding(
            self.name,
            pat_str=SPLIT_PATTERN,
            mergeable_ranks=ranks,
            special_tokens=self.special_tokens,
        )

    @property
    def special_tokens_set(self) -> set[str]:
        """The texts of the special tokens."""
        return set(self.special_tokens)

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of a text in which nothing is special.

        Half of a surrogate pair counts as a replacement character.
        """
        ids = []
        for piece in regex.findall(SPLIT_PATTERN, without_surrogates(text)):
            known = piece.encode("utf-8").translate(None, self.missing_bytes)
            if known:
                ids += self._encoding._encode_single_piece(known)
        return ids

    def encode(
        self,
        text: str,
        *,
        allowed_special: Collection[str] = frozenset(),
        disallowed_special: Collection[str] = (),
    ) -> list[int]:
        """The ids of a text.

        Args:
            text: str.
            allowed_special: special tokens that become one id where the text has them,
                a set, or "all". What is not in it is text like any other.
            disallowed_special: special tokens that must not occur, a collection, or
                "all" for those that are not allowed.

        Raises:
            ValueError: the text holds a special token that is disallowed.
        """
        allowed = self._chosen(allowed_special)
        disallowed = self._chosen(disallowed_special)
        if disallowed_special == "all":
            disallowed -= allowed
        check_absent(text, disallowed)
        if not allowed:
            return self.encode_ordinary(text)
        longest_first = sorted(allowed, key=len, reverse=True)
        ids = []
        for part in re.split(f"({'|'.join(map(re.escape, longest_first))})", text):
            if part in allowed:
                ids.append(self.special_tokens[part])
            else:
                ids += self.encode_ordinary(part)
        return ids

    def _chosen(self, special: Collection[str]) -> set[str]:
        """The special tokens that a caller named."""
        chosen = self.special_tokens_set if special == "all" else set(special)
        unknown = chosen - self.special_tokens_set
        if unknown:
            raise ValueError(
                f"{min(unknown)!r} is not a special token of this vocabulary: give a "
                f"set of some, or 'all', of {', '.join(self.special_tokens)}."
            )
        return chosen

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text of some ids.

        Args:
            ids: whole numbers from 0 to n_vocab - 1.
            errors: what to do with half a character, as for `bytes.decode`.

        Raises:
            ValueError: there is no such id.
        """
        return self.decode_bytes(ids).decode("utf-8", errors=errors)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of some ids, special tokens as they are written."""
        return b"".join(self.decode_single_token_bytes(i) for i in ids)

    def decode_single_token_bytes(self, token: int) -> bytes:
        """The bytes of one id; they may be part of a character.

        Raises:
            ValueError: there is no such id.
        """
        try:
            return self._encoding.decode_single_token_bytes(int(token))
        except (KeyError, OverflowError):
            raise ValueError(
                f"There is no token {token}: ids go from 0 to {self.n_vocab - 1}. Was "
                "the text generated by a model with another vocabulary?"
            ) from None

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The ids of a conversation, up to where the model's next answer begins.

        They are those of the chat template in the file, ChatML, with one difference:
        what users write is always text, whatever it looks like.

        Args:
            messages: a list of {"role": "user", "content": "Hello"}. If the first one
                is no "system" message, the template's own comes before it.

        Raises:
            ValueError: no messages, a message of another form, or a template that is
                not known here.
        """
        check_messages(messages)
        if messages[0]["role"] != "system":
            first = system_message(self.chat_template, self.special_tokens)
            messages = [{"role": "system", "content": first}, *messages]
        start = self.special_tokens["<|im_start|>"]
        end = self.special_tokens["<|im_end|>"]
        ids = []
        for message in messages:
            text = self.encode_ordinary(f"{message['role']}\n{message['content']}")
            ids += [start, *text, end, *self.encode_ordinary("\n")]
        return [*ids, start, *self.encode_ordinary("assistant\n")]
