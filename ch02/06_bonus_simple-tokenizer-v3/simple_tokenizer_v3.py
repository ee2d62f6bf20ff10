r"""A tokenizer by rule from which every text comes back: words, blanks, bytes.

Chapter 2's tokenizers lose white space and the words that they do not know. This one
keeps both: a blank belongs to the token that follows it, as in GPT-2, and a piece that
is not in the vocabulary is spelled in the bytes of its UTF-8, as in Llama's vocabulary
(`simple-tokenizer-v3.ipynb` explains each line). Left out: pieces between a word and a
byte, which byte pair encoding learns, and decoding while ids arrive (exercise 2.6).

>>> from dataloader import build_vocabulary
>>> vocab = build_vocabulary(split_keeping_white_space("The lamp\n was lit."))
>>> tokenizer = SimpleTokenizerV3(vocab)
>>> tokenizer.encode("The lamp  was.")  # a blank alone is byte 32, and 6 + 32 = 38
[5, 1, 38, 3, 4]
>>> ids = tokenizer.encode("The lamp\twas blue,\r\n or lit.")
>>> tokenizer.decode(ids)
'The lamp\twas blue,\r\n or lit.'
"""

import re
from collections.abc import Collection, Mapping, Sequence

from dataloader import SimpleTokenizerV1

__all__ = ["SimpleTokenizerV3", "split_keeping_white_space"]


def split_keeping_white_space(text: str) -> list[str]:
    """Cut a text into tokens that join to the text again, whatever it holds.

    A word, dash or mark takes one blank in front of it along; of other white space each
    character is a token. No special token is known: `<|endoftext|>` falls into pieces
    like other text.
    """
    dash, word, mark = r"--", r"\w+(?:[-']\w+)*", r"[^\w\s]"
    return re.findall(rf" ?(?:{dash}|{word}|{mark})|\s", text)


class SimpleTokenizerV3(SimpleTokenizerV1):
    """Text to ids and back without any loss; no word is unknown.

    `vocab` maps special tokens and pieces, best of `split_keeping_white_space`, to
    ids. The 256 ids after the largest one stand for bytes, so that `n_vocab` ids are in
    use. For every text that UTF-8 can write, `decode(encode(text)) == text`.
    """

    def __init__(self, vocab: Mapping[str, int]):
        super().__init__(vocab)
        self.first_byte = max(vocab.values(), default=-1) + 1
        self.n_vocab = self.first_byte + 256

    def encode(self, text: str, allowed_special: Collection[str] = ()) -> list[int]:
        """Return the ids of a text; special tokens count only where they are allowed.

        This holds for tokens that `split_keeping_white_space` cuts, as `<|endoftext|>`:
        one that it leaves whole, such as `EOS`, is a piece that any text may hold. An
        allowed token that the vocabulary lacks is read like other text.

        Raises `TypeError` for a string in place of a set of tokens, and
        `UnicodeEncodeError` for half a surrogate pair, which is no character.
        """
        if isinstance(allowed_special, str):
            raise TypeError("allowed_special is a set of tokens, not one string.")
        known = [mark for mark in allowed_special if mark in self.str_to_int]
        known.sort(key=len, reverse=True)
        marks = "|".join(re.escape(mark) for mark in known)
        pieces = []
        for part in re.split(f"({marks})", text) if marks else [text]:
            whole = part in known
            pieces += [part] if whole else split_keeping_white_space(part)

        ids = []
        for piece in pieces:
            if piece in self.str_to_int:
                ids.append(self.str_to_int[piece])
            else:
                ids.extend(self.first_byte + byte for byte in piece.encode())
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of a list of ids, with U+FFFD for bytes that are no text.

        `KeyError` or `ValueError` tell of an id that does not exist.
        """
        data = b"".join(
            self.int_to_str[i].encode()
            if i < self.first_byte
            else bytes([i - self.first_byte])
            for i in ids
        )
        return data.decode("utf-8", errors="replace")
