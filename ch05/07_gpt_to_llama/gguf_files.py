"""The bytes of a GGUF file, taken apart (support for chapter 5).

`read_gguf` walks through a file: a greeting and two counts, the metadata (key, type,
value), a table of the tensors (name, shape, format, place), and the weights, which it
leaves on the disk. It trusts nothing: every length is compared with what is left of the
file before anything is read or reserved. `gguf_tokenizer` and `gguf_weights` make a
tokenizer and a model of what it returns.

The layout is that of the GGUF specification, version 3 (ggml project, MIT licence).
Left out: writing files, other formats of blocks than those in `FORMATS`.

>>> metadata_entry({"llama.block_count": 30}, "llama.block_count", int)
30
"""

import math
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class BlockFormat(NamedTuple):
    """A way to store numbers: its name, and how many bytes hold how many of them."""

    name: str
    block_bytes: int
    block_size: int


FORMATS = {  # by their number in the file
    0: BlockFormat("F32", 4, 1),
    1: BlockFormat("F16", 2, 1),
    3: BlockFormat("Q4_1", 20, 32),
    6: BlockFormat("Q5_0", 22, 32),
    8: BlockFormat("Q8_0", 34, 32),
    12: BlockFormat("Q4_K", 144, 256),
    14: BlockFormat("Q6_K", 210, 256),
    30: BlockFormat("BF16", 2, 1),
}
FORMATS_BY_NAME = {form.name: form for form in FORMATS.values()}


class GGUFTensor(NamedTuple):
    """Where a tensor lies in a file.

    Attributes:
        path: the file.
        name: its name there, such as "blk.0.attn_q.weight".
        format: "F32", "F16", "BF16", "Q4_1" or another of `FORMATS`.
        shape: in PyTorch's order, rows first (the file has it the other way round).
        start: its first byte in the file.
        nbytes: how many bytes it takes.
    """

    path: Path
    name: str
    format: str
    shape: tuple[int, ...]
    start: int
    nbytes: int

    def blocks(self) -> np.ndarray:
        """Its bytes, (N, bytes of a block), uint8, mapped from the file, read-only."""
        shape = self.nbytes // FORMATS_BY_NAME[self.format].block_bytes, -1
        if self.path.stat().st_size < self.start + self.nbytes:
            what = "the file has become shorter"
            raise broken_file(self.path, f"tensor {self.name}", what)
        raw = np.memmap(self.path, np.uint8, "r", self.start, (self.nbytes,))
        return raw.reshape(shape)


class GGUFFile(NamedTuple):
    """The contents of a file: `metadata`, by key, and `tensors`, by name."""

    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]


def read_gguf(path: str | Path) -> GGUFFile:
    """Take a GGUF file apart, without reading its weights.

    Every length in the file is compared with what is left of the file before anything
    is read or reserved, and every tensor must lie inside the file. Of a model in
    several files, NAME-00001-of-00003.gguf and so on, all are read, whichever is given.

    Args:
        path: of a file of version 2 or 3, little-endian, or of a folder with one model.

    Returns:
        A `GGUFFile`. Numbers are int, float or bool, arrays are lists.

    Raises:
        ValueError: the file is damaged, or stores something in a way that is not known
            here, or a part is missing; the message names the file and the place.
        FileNotFoundError: there is no such file.
    """
    path = _model_in(Path(path))
    found = _read_one(path)
    return found if "split.count" not in found.metadata else _all_parts(path, found)


def _read_one(path):
    """One file, which may hold a part of a model only."""
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}: check the path, or fetch the file first."
        )
    if path.stat().st_size < 24:
        raise broken_file(path, "byte 0", "it ends before its header does")
    cursor = _Cursor(path, np.memmap(path, np.uint8, "r").data)
    num_tensors, num_entries = _read_start(cursor)
    metadata = {}
    for _ in range(num_entries):
        start, key = cursor.place, cursor.string()
        if key in metadata:
            raise broken_file(path, start, f"the key {key!r:.80} occurs twice")
        metadata[key] = cursor.value(cursor.number("I"))
    entries = [_read_tensor_entry(cursor) for _ in range(num_tensors)]
    return GGUFFile(metadata, _locate(cursor, metadata, entries))


# --- A model in several files --------------------------------------------------------

_PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def _model_in(path):
    """The file of the one model in a folder, its first part; a file is itself."""
    if not path.is_dir():
        return path
    files, models = sorted(path.glob("*.gguf")), {}
    for file in files:
        part = _PART.fullmatch(file.name)
        models.setdefault(part["name"] if part else file.name, file)
    if not files:
        return path
    if len(models) > 1:
        there = ", ".join(file.name for file in models.values())
        raise ValueError(
            f"{path} must hold the GGUF file of one model, or all parts of one; there "
            f"are {there}: give the path of one."
        )
    return files[0]


def _all_parts(path, found):
    """All parts of the model of which `found` is one, as one `GGUFFile`."""
    count = metadata_entry(found.metadata, "split.count", int)
    name = _PART.fullmatch(path.name)
    if count == 1:
        return found
    if not name or int(name["count"]) != count:
        number = metadata_entry(found.metadata, "split.no", int) + 1
        raise ValueError(
            f"{path} is part {number} of {count} of a model, and its name does not say "
            "so: give all parts the names under which they were published."
        )
    metadata, tensors = {}, {}
    for number in range(1, count + 1):
        part = path.with_name(f"{name['name']}-{number:05}-of-{count:05}.gguf")
        if not part.is_file():
            raise ValueError(
                f"{path} is one of {count} parts of a model, and {part.name} is "
                "missing: download it from where the others came, into their folder."
            )
        one = found if part == path else _read_one(part)
        place = [one.metadata.get(key) for key in ("split.no", "split.count")]
        if place != [number - 1, count]:
            raise broken_file(part, "split.no", f"it is not part {number} of {count}")
        twice = tensors.keys() & one.tensors
        if twice:
            raise broken_file(part, f"tensor {min(twice)}", "another part has it, too")
        both = sorted((metadata.keys() & one.metadata.keys()) - {"split.no"})
        for key in both:
            if metadata[key] != one.metadata[key]:
                raise broken_file(part, key, "another part says otherwise: two models?")
        metadata = {**one.metadata, **metadata}  # the settings are in the first
        tensors |= one.tensors
    announced = metadata_entry(metadata, "split.tensors.count", int)
    if announced != len(tensors):
        what = f"{announced} tensors are announced, the parts have {len(tensors)}"
        raise broken_file(path, "split.tensors.count", f"{what}: of several models?")
    return GGUFFile(metadata, tensors)


# --- Byte after byte -----------------------------------------------------------------

# Value types by number, as `struct` writes them.
_SCALARS = {**dict(enumerate("BbHhIif?")), 10: "Q", 11: "q", 12: "d"}
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
            raise broken_file(self.path, self.place, what)
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
            raise broken_file(self.path, start, "a text is not valid UTF-8") from None

    def value(self, kind):
        """The next value of metadata, of the kind that the file announced."""
        if kind == _ARRAY:
            return self.array()
        if kind == _STRING:
            return self.string()
        if kind not in _SMALLEST:
            raise broken_file(self.path, self.place, f"there is no value type {kind}")
        if _SCALARS[kind] == "?":  # `struct` would take any byte
            flag = self.number("B")
            if flag > 1:
                what = f"{flag} is neither true nor false"
                raise broken_file(self.path, self.place, what)
            return bool(flag)
        return self.number(_SCALARS[kind])

    def array(self):
        """A list of values of one kind; lists of lists are in no file that we read."""
        start, kind, length = self.place, self.number("I"), self.number("Q")
        if kind not in _SMALLEST:
            raise broken_file(
                self.path, start, f"there is no array of value type {kind}"
            )
        if length * _SMALLEST[kind] > len(self.data) - self.position:
            what = f"an array of {length:,} values is announced, more than fit"
            raise broken_file(self.path, start, what)
        if kind == _STRING or _SCALARS[kind] == "?":
            return [self.value(kind) for _ in range(length)]
        code = f"<{length}{_SCALARS[kind]}"
        return list(struct.unpack(code, self.take(struct.calcsize(code), "an array")))


def _read_start(cursor):
    """Check the first bytes; return how many tensors and metadata entries follow."""
    magic = bytes(cursor.take(4, "a file type"))
    if magic != b"GGUF":
        raise broken_file(
            cursor.path, "byte 0", f"it starts with {magic!r} where b'GGUF' must stand"
        )
    version = cursor.number("I")
    if version not in (2, 3):
        turned = version and version & 0xFFFF == 0
        what = "it is big-endian" if turned else f"its version is {version}"
        raise broken_file(
            cursor.path, "byte 4", f"{what}, and only little-endian 2 and 3 are known"
        )
    return cursor.number("Q"), cursor.number("Q")


def _read_tensor_entry(cursor):
    """One line of the table of tensors: name, format, shape and place in the data."""
    path, start, name = cursor.path, cursor.place, cursor.string()
    num_dims = cursor.number("I")
    if not 1 <= num_dims <= 4:
        raise broken_file(
            path, start, f"tensor {name!r:.80} has {num_dims} dimensions, not 1 to 4"
        )
    shape = tuple(cursor.number("Q") for _ in range(num_dims))[::-1]
    kind, offset = cursor.number("I"), cursor.number("Q")
    if kind not in FORMATS:
        known = ", ".join(FORMATS_BY_NAME)
        what = f"tensor {name!r:.80} has format {kind}; known are {known}"
        raise broken_file(path, start, what)
    form = FORMATS[kind]
    if 0 in shape or shape[-1] % form.block_size:
        what = f"tensor {name!r:.80} has shape {shape}, which {form.name} cannot hold"
        raise broken_file(path, start, what)
    nbytes = math.prod(shape) // form.block_size * form.block_bytes
    return GGUFTensor(path, name, form.name, shape, offset, nbytes)


def _locate(cursor, metadata, entries):
    """Add where the data starts; check that the tensors fit and do not overlap."""
    path = cursor.path
    alignment = metadata.get("general.alignment", 32)
    whole = type(alignment) is int and alignment > 0
    if not whole or alignment % 8 or alignment > 1 << 20:
        raise broken_file(
            path, "general.alignment", f"{alignment!r} is not an alignment"
        )
    data_start = -(-cursor.position // alignment) * alignment
    tensors, end = {}, data_start
    for entry in sorted(entries, key=lambda entry: entry.start):
        place, start = f"tensor {entry.name}", data_start + entry.start
        if entry.name in tensors:
            raise broken_file(path, place, "it occurs twice")
        if entry.start % alignment or start < end:
            raise broken_file(path, place, f"it cannot start at byte {start:,}")
        end = start + entry.nbytes
        if end > len(cursor.data):
            what = f"it ends at byte {end:,} of {len(cursor.data):,}"
            raise broken_file(path, place, what)
        tensors[entry.name] = entry._replace(start=start)
    padded = -(-end // alignment) * alignment
    if tensors and len(cursor.data) not in (end, padded):  # one byte more shifts all
        what = f"the file has {len(cursor.data):,} bytes, its tensors end at {end:,}"
        raise broken_file(path, f"byte {end}", what)
    return {entry.name: tensors[entry.name] for entry in entries}


def broken_file(path: Path, place: str, what: str) -> ValueError:
    """The error for a file that is not as it should be."""
    return ValueError(
        f"{path} cannot be used, {place}: {what}. The file is damaged or of another "
        "kind: fetch it again, or give a GGUF file of a Llama model."
    )


# --- What is checked of the contents -------------------------------------------------


def as_blocks(blocks: np.ndarray, layout: np.dtype) -> np.ndarray:
    """Rows of bytes seen as records of a layout, (N,), without a copy if possible.

    Args:
        blocks: (N, bytes of a block), uint8.
        layout: how the bytes of one block are to be read.

    Raises:
        ValueError: rows of another length or dtype.
    """
    size = layout.itemsize
    if blocks.dtype != np.uint8 or blocks.ndim != 2 or blocks.shape[1] != size:
        raise ValueError(
            f"The blocks are {blocks.dtype} of shape {blocks.shape}: give uint8 of "
            f"shape (blocks, {size}), the bytes of one block in each row."
        )
    return np.ascontiguousarray(blocks).view(layout)[:, 0]


def metadata_entry(
    metadata: Mapping[str, Any], key: str, kind: type, kind_of_items: type | None = None
) -> Any:
    """An entry of the metadata; nothing is ever guessed in its place.

    Args:
        metadata: as `read_gguf` returns it.
        key: the name of the entry.
        kind: of which type it must be; an int will do for a float.
        kind_of_items: for a list, of which type all its items must be.

    Raises:
        ValueError: it is missing or of another kind.
    """
    if key not in metadata:
        raise unfit_entry(key, "it is missing, and a guess would give a wrong model")
    value = metadata[key]
    fits = type(value) is kind or (kind is float and type(value) is int)
    if isinstance(value, list):
        fits = fits and all(type(item) is kind_of_items for item in value)
        fits = fits and len(value) > 0
    if not fits:
        wanted = kind.__name__
        wanted += f" of {kind_of_items.__name__}" if kind_of_items else ""
        raise unfit_entry(key, f"{str(value)[:40]!r} is not of the type {wanted}")
    return value


def unfit_entry(key: str, what: str) -> ValueError:
    """The error for an entry of the metadata that cannot be used."""
    return ValueError(
        f"The entry {key} cannot be used: {what}. Give a GGUF file of a Llama model "
        "with SmolLM2's tokenizer, or fetch the file again if it is damaged."
    )


class Vocabulary(NamedTuple):
    """The vocabulary in the metadata of a file.

    Attributes:
        name: what the file calls the way of splitting.
        tokens: the text of each id, in the byte alphabet if it is an ordinary one.
        types: the kind of each id.
        merges: pairs of tokens with a space between, first to last.
        eot_token: the id that ends an answer.
    """

    name: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    eot_token: int

    def special_ids(self) -> dict[str, int]:
        """{text: id} of control tokens and those that a user added."""
        kinds = enumerate(self.types)
        return {self.tokens[i]: i for i, kind in kinds if kind in (3, 4)}

    def ordinary_ids(self) -> dict[str, int]:
        """{text: id} of all others."""
        kinds = enumerate(self.types)
        return {self.tokens[i]: i for i, kind in kinds if kind not in (3, 4)}


def read_vocabulary(metadata: Mapping[str, Any], known: str = "smollm") -> Vocabulary:
    """The vocabulary in the metadata, checked for kind and length.

    Args:
        metadata: as `read_gguf` returns it.
        known: the way of splitting that the caller can do.

    Raises:
        ValueError: an entry is missing or of another kind, or it belongs to a tokenizer
            that works in another way.
    """
    model = metadata_entry(metadata, "tokenizer.ggml.model", str)
    split = metadata_entry(metadata, "tokenizer.ggml.pre", str)
    if (model, split) != ("gpt2", known):
        what = f"only {known!r} of 'gpt2' is known, not {split!r}"
        raise unfit_entry("tokenizer.ggml.pre", what)
    tokens = metadata_entry(metadata, "tokenizer.ggml.tokens", list, str)
    types = metadata_entry(metadata, "tokenizer.ggml.token_type", list, int)
    merges = metadata_entry(metadata, "tokenizer.ggml.merges", list, str)
    if len(set(tokens)) != len(tokens) or len(types) != len(tokens):
        what = "tokens must differ, and each must have a type"
        raise unfit_entry("tokenizer.ggml.tokens", what)
    return Vocabulary(split, tokens, types, merges, _end_of_text(metadata, len(tokens)))


def read_scored_vocabulary(
    metadata: Mapping[str, Any],
) -> tuple[list[str], list[float], list[int], int]:
    """`(tokens, scores, types, end)` of a vocabulary of SentencePiece's kind.

    There is a score in place of merges. Runs of spaces are spelt with plain ones in
    such files; here a space is `\u2581` everywhere. Args, errors: as `read_vocabulary`.
    """
    if metadata_entry(metadata, "tokenizer.ggml.model", str) != "llama":
        what = "only 'llama', SentencePiece's, is known"
        raise unfit_entry("tokenizer.ggml.model", what)
    tokens = metadata_entry(metadata, "tokenizer.ggml.tokens", list, str)
    scores = metadata_entry(metadata, "tokenizer.ggml.scores", list, float)
    types = metadata_entry(metadata, "tokenizer.ggml.token_type", list, int)
    tokens = [token.replace(" ", "\u2581") for token in tokens]
    whole = len(set(tokens)) == len(tokens) == len(types) == len(scores)
    if not whole or any(map(math.isnan, scores)):
        what = "tokens must differ, each with a score and a type"
        raise unfit_entry("tokenizer.ggml.tokens", what)
    return tokens, scores, types, _end_of_text(metadata, len(tokens))


def _end_of_text(metadata, n_vocab):
    end = metadata_entry(metadata, "tokenizer.ggml.eos_token_id", int)
    if not 0 <= end < n_vocab:
        what = f"{end} is not the id of a token"
        raise unfit_entry("tokenizer.ggml.eos_token_id", what)
    return end


def check_merges(
    ids: Mapping[str, int], merges: Sequence[str], alphabet: Mapping[str, int]
) -> None:
    """Raise unless merging the lowest id first is merging in the order of the list.

    Args:
        ids: {ordinary token: id}.
        merges: pairs of tokens with a space between, first to last.
        alphabet: {character: byte}.
    """
    order = [ids.get(merge.replace(" ", "", 1), -1) for merge in merges]
    singles = [i for token, i in ids.items() if len(token) == 1]
    if order != sorted(order) or -1 in order or singles and order[:1] < [max(singles)]:
        what = "the ids of merged tokens do not follow the order of the merges"
        raise unfit_entry("tokenizer.ggml.merges", what)
    if len(set(order)) + len(singles) != len(ids):
        raise unfit_entry("tokenizer.ggml.merges", "some tokens are made by no merge")
    strange = {character for token in ids for character in token} - alphabet.keys()
    if strange:
        what = f"{min(strange)!r} stands for no byte"
        raise unfit_entry("tokenizer.ggml.tokens", what)


def check_absent(text: str, special_tokens: Iterable[str]) -> None:
    """Raise if the text contains a special token that it must not contain."""
    for token in sorted(special_tokens):
        if token in text:
            raise ValueError(
                f"The text contains the special token {token!r}: allow it with "
                f"allowed_special={{{token!r}}}, or encode it as ordinary text with "
                "disallowed_special=()."
            )


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


def system_message(template: Any, special_tokens: Mapping[str, int]) -> str:
    """What a chat template puts first when the conversation has no system message.

    Args:
        template: that of the file, whatever it is.
        special_tokens: {text: id} of the vocabulary.

    Raises:
        ValueError: it is not ChatML as SmolLM2's file has it.
    """
    known = _CHATML.fullmatch(template) if isinstance(template, str) else None
    if known is None or not {"<|im_start|>", "<|im_end|>"} <= special_tokens.keys():
        raise ValueError(
            "The chat template of this file is not the one of SmolLM2: render the "
            "conversation yourself, and encode it with allowed_special."
        )
    return known["system"]


def check_rope(metadata: Mapping[str, Any], cfg: Mapping[str, Any]) -> None:
    """Raise if the file rotates in a way that `LlamaModel` would not.

    Args:
        metadata: as `read_gguf` returns it.
        cfg: a `LlamaConfig`, or a mapping with the same entries.
    """
    for key, value in metadata.items():
        none = 1 if key == "llama.rope.scale_linear" else "none"
        if key.startswith("llama.rope.scal") and value != none:
            raise unfit_entry(key, f"{value!r} is a scaling that is not known here")
    for name in ("key_length", "value_length"):
        width = metadata.get(f"llama.attention.{name}", cfg["head_dim"])
        if width != cfg["head_dim"]:
            what = f"heads are {width} wide, but {cfg['head_dim']} are rotated"
            raise unfit_entry(f"llama.attention.{name}", what)
    whole = cfg["head_dim"] * cfg["n_heads"] == cfg["emb_dim"]
    if not whole and "llama.attention.key_length" not in metadata:
        what = "the rotated part is not the whole head"
        raise unfit_entry("llama.rope.dimension_count", what)


def without_surrogates(text: str) -> str:
    """The text, with pairs of surrogates joined and single ones replaced."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def check_turns(roles: Sequence[str]) -> None:
    """Raise unless user and assistant take turns, and the user begins."""
    if not roles or any(
        role != ("user", "assistant")[i % 2] for i, role in enumerate(roles)
    ):
        raise ValueError(
            f"The roles are {', '.join(roles) or 'missing'}: after a system message, "
            "if there is one, user and assistant take turns."
        )


def check_chats(template: Any) -> None:
    """Raise unless there is a chat template."""
    if template is None:
        raise ValueError(
            "There is no chat template beside this vocabulary: the model continues "
            "texts and was not trained to chat."
        )
