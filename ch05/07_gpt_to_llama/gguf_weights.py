"""Real weights from a GGUF file: its bytes, its numbers, its tokenizer (chapter 5).

A GGUF file holds a whole language model: settings, vocabulary, merges, chat template,
and the weights, most of them quantised, which means rounded to a few levels per block
of 32. This module reads it with NumPy alone:

* `read_gguf` takes the file apart into metadata and tensors (`GGUFFile`, `GGUFTensor`);
* `dequantise_q4_1`, `dequantise_q8_0` and `dequantise` turn blocks back into numbers;
* `GGUFTokenizer` encodes and decodes with the vocabulary and the merges of the file;
* `load_llama_from_gguf` fills `LlamaModel` with what it finds.

The layout is that of the GGUF specification, version 3, and of the package `gguf`,
which the tests compare with bit for bit; the byte alphabet is that of GPT-2 (Radford et
al., 2019, section 2.2), merging is byte pair encoding (Sennrich et al., 2016,
arXiv:1508.07909, section 3.2). Left out: writing files, the other formats of blocks,
other architectures than Llama's and other tokenizers than SmolLM2's.

A block of 32 numbers takes 20 bytes in the format Q4_1: a scale, a minimum, and a level
from 0 to 15 for each number. With scale 0.5 and minimum -1, level 3 means 0.5:

>>> block = np.zeros(1, Q4_1_BLOCK)
>>> block["scale"], block["minimum"] = 0.5, -1.0
>>> block["levels"][0, 0] = 3 + 16 * 15  # two levels in a byte: numbers 0 and 16
>>> numbers = dequantise_q4_1(block.view(np.uint8).reshape(1, 20))
>>> numbers.shape, numbers[0, [0, 1, 16]].tolist()
((1, 32), [0.5, -1.0, 6.5])
>>> 8 * block.nbytes / numbers.size  # bits per number
5.0

With a file, `model, tokenizer = load_llama_from_gguf(path)` is all that is needed.

Shapes: N blocks, D model width, G key/value heads, H query heads, K head width.
"""

import math
import re
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import regex
import tiktoken
import torch

from llama import LlamaConfig, LlamaModel, llama_key_map, pairs_to_halves
from safetensors_files import without_drawing

# --- From blocks to numbers ----------------------------------------------------------

Q4_1_BLOCK = np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("levels", "u1", 16)])
Q8_0_BLOCK = np.dtype([("scale", "<f2"), ("levels", "i1", 32)])


def dequantise_q4_1(blocks):
    """Blocks of 32 numbers in the format Q4_1: scale * level + minimum.

    Byte i of the 16 holds two levels of 4 bits: the low half belongs to number i, the
    high half to number i + 16.

    Args:
        blocks: (N, 20), uint8, each row the bytes of a `Q4_1_BLOCK`.

    Returns:
        (N, 32), float32.

    Raises:
        ValueError: rows of another length or dtype.
    """
    fields = _as_blocks(blocks, Q4_1_BLOCK)
    scale = fields["scale"].astype(np.float32)[:, None]  # (N, 1)
    minimum = fields["minimum"].astype(np.float32)[:, None]
    packed = fields["levels"]  # (N, 16)
    numbers = np.empty((len(blocks), 32), np.float32)
    np.multiply(scale, packed & 15, out=numbers[:, :16])
    np.multiply(scale, packed >> 4, out=numbers[:, 16:])
    numbers += minimum
    return numbers


def dequantise_q8_0(blocks):
    """Blocks of 32 numbers in the format Q8_0: scale * level, levels -128 to 127.

    Args:
        blocks: (N, 34), uint8, each row the bytes of a `Q8_0_BLOCK`.

    Returns:
        (N, 32), float32.

    Raises:
        ValueError: rows of another length or dtype.
    """
    fields = _as_blocks(blocks, Q8_0_BLOCK)
    scale = fields["scale"].astype(np.float32)[:, None]  # (N, 1)
    return scale * fields["levels"]


def _as_blocks(blocks, layout):
    """Rows of bytes seen as records of a layout, (N,), without a copy if possible."""
    size = layout.itemsize
    if blocks.dtype != np.uint8 or blocks.ndim != 2 or blocks.shape[1] != size:
        raise ValueError(
            f"The blocks are {blocks.dtype} of shape {blocks.shape}: give uint8 of "
            f"shape (blocks, {size}), the bytes of one block in each row."
        )
    return np.ascontiguousarray(blocks).view(layout)[:, 0]


def _plain(dtype):
    """How to widen numbers that are stored one by one, to (N, 1) float32."""
    return lambda rows: np.ascontiguousarray(rows).view(dtype).astype(np.float32)


def _from_bfloat16(rows):
    """The upper half of a float32, (N, 2) bytes, to (N, 1) float32."""
    bits = np.ascontiguousarray(rows).view("<u2").astype(np.uint32)
    return (bits << 16).view(np.float32)


class _Format(NamedTuple):
    """A way to store numbers: its name, and how many bytes hold how many of them."""

    name: str
    block_bytes: int
    block_size: int
    to_float32: object  # (N, block_bytes) uint8 to (N, block_size) float32


_FORMATS = {  # by their number in the file
    0: _Format("F32", 4, 1, _plain("<f4")),
    1: _Format("F16", 2, 1, _plain("<f2")),
    3: _Format("Q4_1", Q4_1_BLOCK.itemsize, 32, dequantise_q4_1),
    8: _Format("Q8_0", Q8_0_BLOCK.itemsize, 32, dequantise_q8_0),
    30: _Format("BF16", 2, 1, _from_bfloat16),
}
_BY_NAME = {form.name: form for form in _FORMATS.values()}
_CHUNK = 1 << 18  # numbers at once: what is written last is still in the cache


class GGUFTensor(NamedTuple):
    """Where a tensor lies in a file.

    Attributes:
        path: the file.
        name: its name there, such as "blk.0.attn_q.weight".
        format: "F32", "F16", "BF16", "Q8_0" or "Q4_1".
        shape: in PyTorch's order, rows first (the file has it the other way round).
        start: its first byte in the file.
        nbytes: how many bytes it takes.
    """

    path: Path
    name: str
    format: str
    shape: tuple
    start: int
    nbytes: int

    def blocks(self):
        """Its bytes, (N, bytes of a block), uint8, mapped from the file, read-only."""
        shape = self.nbytes // _BY_NAME[self.format].block_bytes, -1
        if self.path.stat().st_size < self.start + self.nbytes:
            what = "the file has become shorter"
            raise _broken(self.path, f"tensor {self.name}", what)
        raw = np.memmap(self.path, np.uint8, "r", self.start, (self.nbytes,))
        return raw.reshape(shape)


def dequantise(tensor, dtype=torch.float32):
    """The numbers of a tensor of the file.

    Args:
        tensor: a `GGUFTensor`.
        dtype: of the result; the arithmetic is float32.

    Returns:
        A new tensor of `tensor.shape`.

    Raises:
        ValueError: the file has become shorter, or a number is not finite.
    """
    form = _BY_NAME[tensor.format]
    blocks = tensor.blocks()
    numbers = torch.empty(tensor.shape, dtype=dtype)
    rows = numbers.view(len(blocks), form.block_size)
    step = _CHUNK // form.block_size
    for start in range(0, len(blocks), step):
        part = form.to_float32(blocks[start : start + step])
        if not np.isfinite(part).all():
            raise _broken(
                tensor.path,
                f"tensor {tensor.name}",
                "some of its numbers are infinite or not a number",
            )
        rows[start : start + step] = torch.from_numpy(part)
    return numbers


# --- The file ------------------------------------------------------------------------


class GGUFFile(NamedTuple):
    """The contents of a file: `metadata`, by key, and `tensors`, by name."""

    metadata: dict
    tensors: dict


def read_gguf(path):
    """Take a GGUF file apart, without reading its weights.

    Every length in the file is compared with what is left of the file before anything
    is read or reserved, and every tensor must lie inside the file.

    Args:
        path: of a file of version 2 or 3, little-endian.

    Returns:
        A `GGUFFile`. Numbers are int, float or bool, arrays are lists.

    Raises:
        ValueError: the file is damaged, or stores something in a way that is not known
            here; the message names the file and the place.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}: check the path, or fetch the file first."
        )
    if path.stat().st_size < 24:
        raise _broken(path, "byte 0", "it ends before its header does")
    cursor = _Cursor(path, memoryview(np.memmap(path, np.uint8, "r")))
    num_tensors, num_entries = _read_start(cursor)
    metadata = {}
    for _ in range(num_entries):
        start, key = cursor.place, cursor.string()
        if key in metadata:
            raise _broken(path, start, f"the key {key!r} occurs twice")
        metadata[key] = cursor.value(cursor.number("I"))
    entries = [_read_tensor_entry(cursor) for _ in range(num_tensors)]
    return GGUFFile(metadata, _locate(cursor, metadata, entries))


_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q"}
_SCALARS |= {11: "q", 12: "d"}  # value types by number, as `struct` writes them
_STRING, _ARRAY = 8, 9
_SMALLEST = {kind: struct.calcsize(code) for kind, code in _SCALARS.items()}
_SMALLEST[_STRING] = 8  # bytes: the length of an empty one


class _Cursor:
    """A place in the file, and how to read what comes next there."""

    def __init__(self, path, data):
        self.path, self.data, self.position = path, data, 0

    @property
    def place(self):
        return f"byte {self.position}"

    def take(self, size, what):
        """The next bytes; the size comes from the file and may be anything."""
        start, left = self.position, len(self.data) - self.position
        if size > left:
            what = f"{what} of {size:,} bytes is announced, but {left:,} are left"
            raise _broken(self.path, self.place, what)
        self.position += size
        return self.data[start : start + size]

    def number(self, code):
        """The next number, written as `struct` names it, always little-endian."""
        code = "<" + code
        return struct.unpack(code, self.take(struct.calcsize(code), "a number"))[0]

    def string(self):
        start = self.place
        raw = self.take(self.number("Q"), "a text")
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError:
            raise _broken(self.path, start, "a text is no valid UTF-8") from None

    def value(self, kind):
        """The next value of metadata, of the kind that the file announced."""
        if kind == _ARRAY:
            return self.array()
        if kind == _STRING:
            return self.string()
        if kind not in _SMALLEST:
            raise _broken(self.path, self.place, f"there is no value type {kind}")
        if _SCALARS[kind] == "?":  # `struct` would take any byte
            flag = self.number("B")
            if flag > 1:
                what = f"{flag} is neither true nor false"
                raise _broken(self.path, self.place, what)
            return bool(flag)
        return self.number(_SCALARS[kind])

    def array(self):
        """A list of values of one kind; lists of lists are in no file that we read."""
        start, kind, length = self.place, self.number("I"), self.number("Q")
        if kind not in _SMALLEST:
            raise _broken(self.path, start, f"there is no array of value type {kind}")
        if length * _SMALLEST[kind] > len(self.data) - self.position:
            what = f"an array of {length:,} values is announced, more than fit"
            raise _broken(self.path, start, what)
        if kind == _STRING or _SCALARS[kind] == "?":
            return [self.value(kind) for _ in range(length)]
        code = f"<{length}{_SCALARS[kind]}"
        return list(struct.unpack(code, self.take(struct.calcsize(code), "an array")))


def _read_start(cursor):
    """Check the first bytes; return how many tensors and metadata entries follow."""
    magic = bytes(cursor.take(4, "a file type"))
    if magic != b"GGUF":
        raise _broken(
            cursor.path, "byte 0", f"it starts with {magic!r} where b'GGUF' must stand"
        )
    version = cursor.number("I")
    if version not in (2, 3):
        turned = version and version & 0xFFFF == 0
        what = "it is big-endian" if turned else f"its version is {version}"
        raise _broken(
            cursor.path, "byte 4", f"{what}, and only little-endian 2 and 3 are known"
        )
    return cursor.number("Q"), cursor.number("Q")


def _read_tensor_entry(cursor):
    """One line of the table of tensors: name, format, shape and place in the data."""
    path, start, name = cursor.path, cursor.place, cursor.string()
    num_dims = cursor.number("I")
    if not 1 <= num_dims <= 4:
        raise _broken(
            path, start, f"tensor {name!r} has {num_dims} dimensions, not 1 to 4"
        )
    shape = tuple(cursor.number("Q") for _ in range(num_dims))[::-1]
    kind, offset = cursor.number("I"), cursor.number("Q")
    if kind not in _FORMATS:
        what = f"tensor {name!r} has format {kind}; known are {', '.join(_BY_NAME)}"
        raise _broken(path, start, what)
    form = _FORMATS[kind]
    if 0 in shape or shape[-1] % form.block_size:
        what = f"tensor {name!r} has shape {shape}, which {form.name} cannot hold"
        raise _broken(path, start, what)
    nbytes = math.prod(shape) // form.block_size * form.block_bytes
    return GGUFTensor(path, name, form.name, shape, offset, nbytes)


def _locate(cursor, metadata, entries):
    """Add where the data starts; check that the tensors fit and do not overlap."""
    path = cursor.path
    alignment = metadata.get("general.alignment", 32)
    whole = type(alignment) is int and alignment > 0
    if not whole or alignment % 8 or alignment > 1 << 20:
        raise _broken(path, "general.alignment", f"{alignment!r} is no alignment")
    data_start = -(-cursor.position // alignment) * alignment
    tensors, end = {}, data_start
    for entry in sorted(entries, key=lambda entry: entry.start):
        place, start = f"tensor {entry.name}", data_start + entry.start
        if entry.name in tensors:
            raise _broken(path, place, "it occurs twice")
        if entry.start % alignment or start < end:
            raise _broken(path, place, f"it cannot start at byte {start:,}")
        end = start + entry.nbytes
        if end > len(cursor.data):
            what = f"it ends at byte {end:,} of {len(cursor.data):,}"
            raise _broken(path, place, what)
        tensors[entry.name] = entry._replace(start=start)
    return {entry.name: tensors[entry.name] for entry in entries}


def _broken(path, place, what):
    """The error for a file that is not as it should be."""
    return ValueError(
        f"{path} cannot be used, {place}: {what}. The file is damaged or of another "
        "kind: fetch it again, or give a GGUF file of a Llama model."
    )


# --- The tokenizer -------------------------------------------------------------------

# Words, with the space before them; single digits; runs of signs; white space.
SPLIT_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+"
    r"|\s+(?![^\s\p{N}])|\s+"
)


def byte_alphabet():
    """The characters that stand for bytes in vocabularies made after GPT-2's.

    Bytes that print stand for themselves; the 68 others, from the NUL byte to the soft
    hyphen, take the characters from number 256 on. So a space is written as character
    288, a G with a dot.

    Returns:
        {character: byte}, 256 entries.
    """
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    alphabet = {chr(byte): byte for byte in printed}
    return alphabet | {chr(256 + i): byte for i, byte in enumerate(others)}


class GGUFTokenizer:
    """Byte pair encoding with the vocabulary of a GGUF file, with tiktoken's methods.

    A text is split by `SPLIT_PATTERN`, and `tiktoken` merges the bytes of each piece.
    Bytes that the vocabulary lacks are dropped, as the tokenizer that the model was
    trained with does; `tiktoken` alone would crash on them.

    Args:
        metadata: as `read_gguf` returns it.

    Attributes:
        n_vocab: how many ids there are.
        special_tokens: {text: id} of the tokens that no ordinary text encodes to.
        eot_token: the id with which the model ends its answer.
        name: what the file calls the way of splitting.

    Raises:
        ValueError: an entry is missing or of another kind, or it belongs to a tokenizer
            that works in another way.
    """

    def __init__(self, metadata):
        tokens, types, merges = _read_vocabulary(metadata)
        self.name = metadata["tokenizer.ggml.pre"]
        self.n_vocab = len(tokens)
        special = {i for i, kind in enumerate(types) if kind in _SPECIAL_TYPES}
        self.special_tokens = {tokens[i]: i for i in sorted(special)}
        self.eot_token = _entry(metadata, "tokenizer.ggml.eos_token_id", int)
        if not 0 <= self.eot_token < self.n_vocab:
            raise _unfit("tokenizer.ggml.eos_token_id", f"{self.eot_token} is no token")
        self._chat_template = metadata.get("tokenizer.chat_template")
        ranks = _ranks(tokens, special, merges)
        self._unknown = bytes(b for b in range(256) if bytes([b]) not in ranks)
        self._encoding = tiktoken.Encoding(
            self.name,
            pat_str=SPLIT_PATTERN,
            mergeable_ranks=ranks,
            special_tokens=self.special_tokens,
        )

    @property
    def special_tokens_set(self):
        """The texts of the special tokens."""
        return set(self.special_tokens)

    def encode_ordinary(self, text):
        """The ids of a text in which nothing is special.

        Args:
            text: str. Half of a surrogate pair counts as a replacement character.

        Returns:
            A list of ids.
        """
        _check_text(text)
        ids = []
        for piece in regex.findall(SPLIT_PATTERN, _without_surrogates(text)):
            known = piece.encode("utf-8").translate(None, self._unknown)
            if known:
                ids += self._encoding._encode_single_piece(known)
        return ids

    def encode(self, text, *, allowed_special=frozenset(), disallowed_special=()):
        """The ids of a text.

        Args:
            text: str.
            allowed_special: special tokens that become one id where the text has them,
                a set, or "all". What is not in it is text like any other.
            disallowed_special: special tokens that must not occur, a collection, or
                "all" for those that are not allowed.

        Returns:
            A list of ids.

        Raises:
            ValueError: the text holds a special token that is disallowed.
        """
        _check_text(text)
        allowed = self._chosen(allowed_special)
        disallowed = self._chosen(disallowed_special) - (
            allowed if disallowed_special == "all" else set()
        )
        for token in sorted(disallowed):
            if token in text:
                raise ValueError(
                    f"The text contains the special token {token!r}: allow it with "
                    f"allowed_special={{{token!r}}}, or encode it as ordinary text "
                    "with disallowed_special=()."
                )
        if not allowed:
            return self.encode_ordinary(text)
        longest_first = sorted(allowed, key=len, reverse=True)
        ids = []
        for part in re.split(f"({'|'.join(map(re.escape, longest_first))})", text):
            special = self.special_tokens[part] if part in allowed else None
            ids += self.encode_ordinary(part) if special is None else [special]
        return ids

    def _chosen(self, special):
        """The special tokens that a caller named."""
        if isinstance(special, str) and special != "all":
            raise ValueError(f"{special!r} is a text: give a set of texts, or 'all'.")
        chosen = self.special_tokens_set if special == "all" else set(special)
        unknown = chosen - self.special_tokens_set
        if unknown:
            raise ValueError(
                f"{min(unknown)!r} is no special token of this vocabulary: choose from "
                f"{', '.join(self.special_tokens)}."
            )
        return chosen

    def decode_bytes(self, ids):
        """The bytes of some ids, special tokens as they are written."""
        return b"".join(self.decode_single_token_bytes(i) for i in ids)

    def decode(self, ids, errors="replace"):
        """The text of some ids.

        Args:
            ids: whole numbers from 0 to n_vocab - 1.
            errors: what to do with half a character, as for `bytes.decode`.

        Returns:
            str.

        Raises:
            ValueError: there is no such id.
        """
        return self.decode_bytes(ids).decode("utf-8", errors=errors)

    def decode_single_token_bytes(self, token):
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

    def render_chat(self, messages):
        """The ids of a conversation, up to where the model's next answer begins.

        They are those of the chat template in the file, ChatML, with one difference:
        what users write is always text, whatever it looks like.

        Args:
            messages: a list of {"role": "user", "content": "Hello"}. If the first one
                is no "system" message, the template's own comes before it.

        Returns:
            A list of ids.

        Raises:
            ValueError: no messages, a message of another form, or a template that is
                not known here.
        """
        _check_messages(messages)
        start, end = "<|im_start|>", "<|im_end|>"
        if messages[0]["role"] != "system":
            first = {"role": "system", "content": self._default_system_message()}
            messages = [first, *messages]
        ids = []
        for message in messages:
            ids.append(self.special_tokens[start])
            ids += self.encode_ordinary(f"{message['role']}\n{message['content']}")
            ids += [self.special_tokens[end], *self.encode_ordinary("\n")]
        return [*ids, self.special_tokens[start], *self.encode_ordinary("assistant\n")]

    def _default_system_message(self):
        """What the template puts first when the conversation does not."""
        template = self._chat_template
        known = isinstance(template, str) and _CHATML.fullmatch(template)
        if not known or not {"<|im_start|>", "<|im_end|>"} <= self.special_tokens_set:
            raise ValueError(
                "The chat template of this file is not the one of SmolLM2: render the "
                "conversation yourself, and encode it with allowed_special."
            )
        return known["system"]


_SPECIAL_TYPES = (3, 4)  # control tokens, and those that a user added
_CHATML = re.compile(
    re.escape(
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != "
        "'system' %}{{ '<|im_start|>system\n"
    )
    + "(?P<system>[^'<|]*)"
    + re.escape(
        "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
        "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if "
        "add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
)


def _read_vocabulary(metadata):
    """Tokens, their types and the merges, checked for kind and length."""
    model = _entry(metadata, "tokenizer.ggml.model", str)
    split = _entry(metadata, "tokenizer.ggml.pre", str)
    if (model, split) != ("gpt2", "smollm"):
        raise _unfit(
            "tokenizer.ggml.pre", f"only 'smollm' of 'gpt2' is known, not {split!r}"
        )
    tokens = _entry(metadata, "tokenizer.ggml.tokens", list, str)
    types = _entry(metadata, "tokenizer.ggml.token_type", list, int)
    merges = _entry(metadata, "tokenizer.ggml.merges", list, str)
    if len(set(tokens)) != len(tokens) or len(types) != len(tokens):
        what = "tokens must differ, and each must have a type"
        raise _unfit("tokenizer.ggml.tokens", what)
    return tokens, types, merges


def _ranks(tokens, special, merges):
    """{bytes: id} of the ordinary tokens; merging the lowest id first is the rule.

    That is the order of the merges only if the ids follow it, which is checked.
    """
    alphabet = byte_alphabet()
    ids = {token: i for i, token in enumerate(tokens) if i not in special}
    order = [ids.get(merge.replace(" ", "", 1), -1) for merge in merges]
    singles = [i for token, i in ids.items() if len(token) == 1]
    if order != sorted(order) or -1 in order or singles and order[:1] < [max(singles)]:
        what = "the ids of merged tokens do not follow the order of the merges"
        raise _unfit("tokenizer.ggml.merges", what)
    if len(set(order)) + len(singles) != len(ids):
        raise _unfit("tokenizer.ggml.merges", "some tokens are made by no merge")
    try:
        return {bytes(alphabet[c] for c in token): i for token, i in ids.items()}
    except KeyError as error:
        what = f"{error.args[0]!r} stands for no byte"
        raise _unfit("tokenizer.ggml.tokens", what) from None


def _without_surrogates(text):
    """The text, with pairs of surrogates joined and single ones replaced."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _check_text(text):
    """Raise unless it is a str."""
    if not isinstance(text, str):
        raise ValueError(f"The text is {type(text).__name__}: give a str.")


def _check_messages(messages):
    """Raise unless they are a conversation."""
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ValueError(
            'Give a list of at least one message, such as {"role": "user", "content": '
            '"Hello"}.'
        )
    for number, message in enumerate(messages, start=1):
        texts = isinstance(message, dict) and set(message) == {"role", "content"}
        if not texts or not all(isinstance(text, str) for text in message.values()):
            raise ValueError(
                f'Message {number} is {message!r}: give {{"role": "user", "content": '
                '"..."}, both texts.'
            )
        if message["role"] not in ("system", "user", "assistant"):
            raise ValueError(
                f"The role of message {number} is {message['role']!r}: give system, "
                "user or assistant."
            )


def _entry(metadata, key, kind, kind_of_items=None):
    """An entry of the metadata; nothing is ever guessed in its place."""
    if key not in metadata:
        raise _unfit(key, "it is missing, and a guess would give a wrong model")
    value = metadata[key]
    fits = type(value) is kind or (kind is float and type(value) is int)
    if fits and kind is list:
        fits = value != [] and all(type(item) is kind_of_items for item in value)
    if not fits:
        wanted = kind.__name__
        wanted += f" of {kind_of_items.__name__}" if kind is list else ""
        raise _unfit(key, f"{str(value)[:40]!r} is not of the type {wanted}")
    return value


def _unfit(key, what):
    """The error for an entry of the metadata that cannot be used."""
    return ValueError(
        f"The entry {key} cannot be used: {what}. Give a GGUF file of a Llama model "
        "with SmolLM2's tokenizer, or fetch the file again if it is damaged."
    )


# --- The model -----------------------------------------------------------------------


def load_llama_from_gguf(path, dtype=torch.float32):
    """The model and the tokenizer in a GGUF file.

    The model is built without memory and then given its tensors, one at a time, so that
    it never exists twice. Everything that can be checked is checked before the first
    one is read.

    Args:
        path: of a GGUF file of a Llama model, such as SmolLM2's.
        dtype: of the weights, a floating-point dtype.

    Returns:
        `(model, tokenizer)`: a `LlamaModel` in evaluation mode, and a `GGUFTokenizer`.

    Raises:
        ValueError: the file is damaged, or holds a model of another kind; the message
            names the file and the place.
        FileNotFoundError: there is no such file.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}: give one such as torch.float32.")
    metadata, tensors = read_gguf(path)
    try:
        tokenizer = GGUFTokenizer(metadata)
        cfg = gguf_config(metadata, tied="output.weight" not in tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    _check_tensors(path, cfg, tokenizer, tensors)
    with without_drawing():
        model = LlamaModel(cfg)
    heads = {"W_query": cfg["n_heads"], "W_key": cfg["n_kv_groups"]}
    weights = {}
    for theirs, ours in gguf_key_map(cfg).items():
        weights[ours] = dequantise(tensors[theirs], dtype)
        layer = ours.split(".")[-2]
        if layer in heads:  # llama.cpp rotates neighbours, we rotate halves
            weights[ours] = pairs_to_halves(weights[ours], heads[layer])
    model.load_state_dict(weights, assign=True)
    return model.eval(), tokenizer


def gguf_config(metadata, tied):
    """The `LlamaConfig` in the metadata of a file.

    Args:
        metadata: as `read_gguf` returns it.
        tied: whether the output head is the embedding: whether the file lacks one.

    Raises:
        ValueError: an entry is missing, of another kind or out of range, or asks for
            something that `LlamaModel` does not do.
    """
    if _entry(metadata, "general.architecture", str) != "llama":
        raise _unfit("general.architecture", "it is not 'llama'")
    names = {
        "vocab_size": ("vocab_size", int),
        "context_length": ("context_length", int),
        "emb_dim": ("embedding_length", int),
        "n_heads": ("attention.head_count", int),
        "n_kv_groups": ("attention.head_count_kv", int),
        "head_dim": ("rope.dimension_count", int),
        "n_layers": ("block_count", int),
        "hidden_dim": ("feed_forward_length", int),
        "rope_base": ("rope.freq_base", float),
        "norm_eps": ("attention.layer_norm_rms_epsilon", float),
    }
    fields = {
        ours: _entry(metadata, f"llama.{theirs}", kind)
        for ours, (theirs, kind) in names.items()
    }
    # The file has float32, whose nearest neighbour of 0.00001 is 9.99999974e-06.
    fields["norm_eps"] = float(f"{fields['norm_eps']:.7g}")
    cfg = LlamaConfig(**fields, rope_scaling=None, tie_weights=tied)
    _check_rope(metadata, cfg)
    return cfg


def gguf_key_map(cfg):
    """Where the tensors of a file belong: {name in the file: name in `LlamaModel`}.

    Args:
        cfg: a `LlamaConfig`, or a mapping with the same entries.
    """
    parts = {
        "embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers": "blk",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    names = {}
    for published, ours in llama_key_map(cfg).items():
        for long, short in parts.items():
            published = published.replace(long, short)
        names[published.removeprefix("model.")] = ours
    return names


def _check_rope(metadata, cfg):
    """Raise if the file rotates in a way that `LlamaModel` would not."""
    for key, value in metadata.items():
        if key.startswith("llama.rope.scaling.") and value != "none":
            raise _unfit(key, f"{value!r} is a scaling that is not known here")
    for name in ("key_length", "value_length"):
        width = metadata.get(f"llama.attention.{name}", cfg["head_dim"])
        if width != cfg["head_dim"]:
            what = f"heads are {width} wide, but {cfg['head_dim']} are rotated"
            raise _unfit(f"llama.attention.{name}", what)
    whole = cfg["head_dim"] * cfg["n_heads"] == cfg["emb_dim"]
    if not whole and "llama.attention.key_length" not in metadata:
        what = "the rotated part is not the whole head"
        raise _unfit("llama.rope.dimension_count", what)


def _check_tensors(path, cfg, tokenizer, tensors):
    """Raise unless the file has just the tensors of the model, in its shapes."""
    num_blocks = len({name.split(".")[1] for name in tensors if name[:4] == "blk."})
    if num_blocks != cfg["n_layers"]:  # before a list is made for a false number
        what = f"there are {num_blocks} blocks, the settings ask for {cfg['n_layers']}"
        raise _broken(path, "table of tensors", what)
    names = gguf_key_map(cfg)
    missing, extra = sorted(names.keys() - tensors), sorted(tensors.keys() - names)
    if missing or extra:
        what = f"{missing[0]} is missing" if missing else f"{extra[0]} is not known"
        raise _broken(path, "table of tensors", what)
    for name in names:
        shape = _expected_shape(name, cfg)
        if tensors[name].shape != shape:
            what = f"its shape is {tensors[name].shape}, the settings ask for {shape}"
            raise _broken(path, f"tensor {name}", what)
    if tokenizer.n_vocab != cfg["vocab_size"]:
        what = f"there are {tokenizer.n_vocab} tokens, not {cfg['vocab_size']}"
        raise _broken(path, "tokenizer.ggml.tokens", what)


def _expected_shape(name, cfg):
    """The shape that a tensor of the file must have, from the settings alone."""
    D, hidden_dim, K = cfg["emb_dim"], cfg["hidden_dim"], cfg["head_dim"]
    queries, keys = cfg["n_heads"] * K, cfg["n_kv_groups"] * K
    shapes = {
        "attn_q": (queries, D),
        "attn_k": (keys, D),
        "attn_v": (keys, D),
        "attn_output": (D, queries),
        "ffn_gate": (hidden_dim, D),
        "ffn_up": (hidden_dim, D),
        "ffn_down": (D, hidden_dim),
        "token_embd": (cfg["vocab_size"], D),
        "output": (cfg["vocab_size"], D),
    }
    return shapes.get(name.split(".")[-2], (D,))
