"""How Gemma 3 splits a text, and the form of its conversations (chapter 5, bonus).

The vocabulary is of SentencePiece's kind: a space is an ordinary character, written
`\u2581`, and a text is merged as a whole, not word by word. Every token has a score,
and of two neighbours that make a token together, those with the highest score are
merged first. A character that is in no token falls back to its bytes.

* `merge_by_score` merges a text;
* `Gemma3Tokenizer` encodes and decodes;
* `render_gemma3_chat` writes a conversation as token ids.

The vocabularies in files are read by `gemma3_files`.

Source: Kudo and Richardson, "SentencePiece", 2018 (arXiv:1808.06226), section 3; the
tokenizer and the chat template published with the models. Left out: images.

>>> scores = {"hi": -1.0, "\u2581h": -2.0, "\u2581hi": -3.0}
>>> merge_by_score("\u2581hi\u2581h", scores)
['\u2581hi', '\u2581h']
"""

import heapq
import re
from collections.abc import Mapping, Sequence
from typing import Any

from argument_checks import check_messages
from gguf_files import check_chats, check_turns, without_surrogates
from gguf_tokenizer import GGUFTokenizer

SPACE = "\u2581"  # how a space is written in the vocabulary
NORMAL, CONTROL, WHOLE, BYTE = 1, 3, 4, 6  # kinds of tokens, by their number in files


def merge_by_score(text: str, scores: Mapping[str, float]) -> list[str]:
    """The pieces that a text ends as when the best pair is always merged next.

    Of several best pairs the leftmost comes first. All pairs wait in a heap, whose
    smallest entry, that with the highest score, is found without looking at all. A
    piece that was swallowed by its left neighbour is left as an empty text; `before`
    and `after` are the places of the next pieces that are not. An entry whose two
    pieces no longer make its token is passed over.

    Args:
        text: spaces as `SPACE`.
        scores: {token: its score}, the higher, the earlier it is made.
    """
    pieces, heap = list(text), []
    before, after = list(range(-1, len(text) - 1)), list(range(1, len(text) + 1))

    def offer(left):
        if left >= 0 and after[left] < len(pieces):
            token = pieces[left] + pieces[after[left]]
            if token in scores:
                heapq.heappush(heap, (-scores[token], left, token))

    for i in range(len(text)):
        offer(i)
    while heap:
        _, left, token = heapq.heappop(heap)
        right = after[left]
        if not pieces[left] or right == len(pieces):
            continue
        if pieces[left] + pieces[right] == token:
            pieces[left], pieces[right] = token, ""
            after[left] = after[right]
            if after[right] < len(pieces):
                before[after[right]] = left
            offer(before[left])
            offer(left)
    return [piece for piece in pieces if piece]


class _TokenBytes(dict[int, bytes]):
    """The bytes of each id, called as tiktoken's `Encoding` is."""

    decode_single_token_bytes = dict.__getitem__


class Gemma3Tokenizer(GGUFTokenizer):
    """A SentencePiece vocabulary with the methods of tiktoken's `Encoding`.

    Args:
        tokens: the text of each id, spaces as `SPACE`.
        scores: one for each; only those of `NORMAL` tokens count.
        types: the kind of each id: `CONTROL` tokens are in no ordinary text, `WHOLE`
            ones are cut out before anything is merged, long ones first, `BYTE` ones
            stand for a byte.
        eot_token: the id with which the model ends its answer.
        chat_template: that of the files; None for a model that cannot chat.

    Attributes:
        bos_token: the id with which every text begins that the model reads; without it
            Gemma soon repeats itself. `encode` does not add it.
        others: as in `GGUFTokenizer`.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        scores: Sequence[float],
        types: Sequence[int],
        eot_token: int,
        chat_template: str | None = None,
    ):
        self.name, self.n_vocab, self.missing_bytes = "gemma3", len(tokens), b""
        self.eot_token, self.chat_template = eot_token, chat_template
        self._ids = {token: i for i, token in enumerate(tokens)}
        self.bos_token = self._ids["<bos>"]
        of_kind = {kind: [] for kind in (NORMAL, CONTROL, WHOLE, BYTE)}
        for i, kind in enumerate(types):
            of_kind.setdefault(kind, []).append(i)
        self.special_tokens = {tokens[i]: i for i in of_kind[CONTROL]}
        self._scores = {tokens[i]: scores[i] for i in of_kind[NORMAL]}
        self._byte_ids = {int(tokens[i][3:5], 16): i for i in of_kind[BYTE]}
        whole = sorted((tokens[i] for i in of_kind[WHOLE]), key=len, reverse=True)
        self._whole = re.compile(f"({'|'.join(re.escape(token) for token in whole)})")
        self._encoding: Any = _TokenBytes(
            (i, token.replace(SPACE, " ").encode()) for i, token in enumerate(tokens)
        )
        self._encoding.update((i, bytes([b])) for b, i in self._byte_ids.items())

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of a text in which nothing is special.

        `WHOLE` tokens are cut out of the text as it stands, and again where spaces have
        become `SPACE`: a run of spaces beside that sign is a run of its own.
        """
        ids = []
        for is_whole, part in self._cut(without_surrogates(text)):
            spaced = part.replace(" ", SPACE)
            for whole, piece in [(True, part)] if is_whole else self._cut(spaced):
                ids += [self._ids[piece]] if whole else self._merged(piece)
        return ids

    def _cut(self, text):
        """`(whether it is a WHOLE token, part)` for each part of a text."""
        parts = self._whole.split(text)
        return [(place % 2 == 1, part) for place, part in enumerate(parts)]

    def _merged(self, text):
        """The ids of a text without WHOLE tokens."""
        ids = []
        for piece in merge_by_score(text, self._scores):
            if piece in self._scores:
                ids.append(self._ids[piece])
            else:
                ids += [self._byte_ids[byte] for byte in piece.encode()]
        return ids

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """As `render_gemma3_chat`; `ValueError` for a model that cannot chat."""
        check_chats(self.chat_template)
        return render_gemma3_chat(messages, self)


def render_gemma3_chat(
    messages: Sequence[Mapping[str, str]], tokenizer: Gemma3Tokenizer
) -> list[int]:
    """A conversation as token ids, up to where the model's next answer begins.

    There is no turn for the system: what it says stands before the first question. The
    model's own turns are called "model". What people wrote is text: characters that
    look like a special token do not become one.

    Args:
        messages: a list of `{"role": "system" or "user" or "assistant", "content":
            text}`; the first may be the system's, then user and assistant take turns.
        tokenizer: as from `gemma3_files`.

    Raises:
        ValueError: the messages are not of that form.
    """
    check_messages(messages)
    said = list(messages)
    before = said.pop(0)["content"] + "\n\n" if said[0]["role"] == "system" else ""
    check_turns([message["role"] for message in said])
    special, text = tokenizer.special_tokens, tokenizer.encode_ordinary
    start, end = special["<start_of_turn>"], special["<end_of_turn>"]
    ids = [special["<bos>"]]
    for i, message in enumerate(said):
        speaker = "model" if message["role"] == "assistant" else "user"
        content = (before if i == 0 else "") + message["content"].strip()
        ids += [start, *text(f"{speaker}\n{content}"), end, *text("\n")]
    return [*ids, start, *text("model\n")]
