r"""Byte pair encoding from the bytes up: train, encode, decode, save, load.

Chapter 2, bonus `05_bpe-from-scratch` (`bpe-from-scratch.ipynb` explains each line). A
text is cut into chunks by GPT-2's pattern, a chunk is the list of its bytes, and what
stands side by side most often is merged into one new token, again and again. Every text
is made of bytes, so none is unknown, and decoding gives back every byte.

The pair with the highest count is merged; of several with that count, the one with the
smallest ids. In a chunk it is replaced from left to right. Merge i makes token 256 + i,
and the special tokens come last. Methods are named, and behave, as in
`tiktoken.Encoding`. Left out: texts larger than memory, more than one process.

Sources: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units"
(arXiv:1508.07909), section 3.2, for training; Radford et al., "Language Models are
Unsupervised Multitask Learners" (2019), section 2.2, for bytes and the pattern.

>>> tokenizer = train_tokenizer("low lower lowest, slow slower", vocab_size=262)
>>> [tokenizer.decode([i]) for i in tokenizer.encode("lowest slow")]
['lowe', 's', 't', ' s', 'low']
>>> tokenizer.n_vocab  # 256 bytes, 5 merges, <|endoftext|>
262
>>> tokenizer.encode("<|endoftext|>", allowed_special="all")
[261]
"""

import hashlib
import heapq
import json
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import regex

Pair = tuple[int, int]
Chunks = Mapping[tuple[int, ...], int]  # the ids of each chunk: how often it occurs

# Endings such as 's; words, numbers and signs with the space before them; white space.
GPT2_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
CACHED_CHUNKS = 100_000


# --- Chunks --------------------------------------------------------------------------


def cut_out(text: str, special_tokens: Collection[str]) -> list[str]:
    """The text in parts: plain, special, plain and so on; plain ones may be empty."""
    if not special_tokens:
        return [text]
    longest_first = sorted(special_tokens, key=len, reverse=True)
    return regex.split(f"({'|'.join(map(regex.escape, longest_first))})", text)


def count_chunks(
    text: str, special_tokens: Iterable[str] = (), pattern: str = GPT2_PATTERN
) -> dict[tuple[int, ...], int]:
    """The chunks of a text as tuples of bytes, and how often each occurs.

    Special tokens are left out, and no chunk reaches across one.
    """
    special_tokens, counts = set(special_tokens), Counter()
    for part in cut_out(text, special_tokens):
        if part not in special_tokens:
            counts.update(regex.findall(pattern, part))
    return {tuple(chunk.encode("utf-8")): times for chunk, times in counts.items()}


# --- One merge -----------------------------------------------------------------------


def pair_counts(chunks: Chunks) -> Counter[Pair]:
    """How often each pair of neighbours occurs, over all chunks.

    Places that overlap count, too, as in the package tokenizers: 7 7 7 holds (7, 7)
    twice.
    """
    counts = Counter()
    for ids, times in chunks.items():
        for pair in zip(ids, ids[1:]):
            counts[pair] += times
    return counts


def find_freq_pair(counts: Mapping[Pair, int]) -> Pair | None:
    """The pair to merge next, None if no pair occurs twice; overlaps count.

    It has the highest count, and the smallest ids of those that have it.
    """
    best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
    return best if best is not None and counts[best] > 1 else None


def replace_pair(ids: Sequence[int], pair: Pair, new_id: int) -> list[int]:
    """The ids with `new_id` in place of each `pair`, found from left to right.

    Places that overlap count once: in 7 7 7 the pair (7, 7) is found at the start only.
    """
    replaced, i = [], 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == pair:
            replaced.append(new_id)
            i += 2
        else:
            replaced.append(ids[i])
            i += 1
    return replaced


# --- Training ------------------------------------------------------------------------


def train_naive(chunks: Chunks, num_merges: int) -> list[Pair]:
    """The merges of a text, in their order, all pairs counted anew for each.

    There are `num_merges`, or fewer if no pair is left that occurs twice.
    """
    merges = []
    while len(merges) < num_merges:
        pair = find_freq_pair(pair_counts(chunks))
        if pair is None:
            break
        new_id = 256 + len(merges)
        merges.append(pair)
        chunks = {
            tuple(replace_pair(ids, pair, new_id)): times
            for ids, times in chunks.items()
        }
    return merges


def train_incremental(chunks: Chunks, num_merges: int) -> list[Pair]:
    """The same merges as `train_naive`, faster: only counts that change are changed.

    `where` says in which chunks a pair occurs. The heap holds each pair with its count
    when it was put there. A count only falls afterwards, so a pair that comes up with
    too high a count goes back with the present one ("lazy deletion").
    """
    words, times = [list(ids) for ids in chunks], list(chunks.values())
    counts, where = pair_counts(chunks), defaultdict(set)
    for place, ids in enumerate(words):
        for pair in zip(ids, ids[1:]):
            where[pair].add(place)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)

    merges = []
    while heap and len(merges) < num_merges:
        negative, pair = heapq.heappop(heap)
        if -negative > counts[pair]:
            heapq.heappush(heap, (-counts[pair], pair))
            continue
        if counts[pair] < 2:
            break
        new_id, new_pairs = 256 + len(merges), set()
        merges.append(pair)
        for place in where.pop(pair):
            before = words[place]
            after = words[place] = replace_pair(before, pair, new_id)
            for old in zip(before, before[1:]):
                counts[old] -= times[place]
            for new in zip(after, after[1:]):
                counts[new] += times[place]
                if new_id in new:
                    new_pairs.add(new)
                    where[new].add(place)
        for new in new_pairs:
            heapq.heappush(heap, (-counts[new], new))
    return merges


# --- Encoding ------------------------------------------------------------------------


def merge_chunk(ids: Sequence[int], new_ids: Mapping[Pair, int]) -> list[int]:
    """The ids of a chunk, given as those of its bytes, after all possible merges.

    `new_ids` holds the id that each merge makes. The earliest merge, which makes the
    smallest id, comes first.
    """
    while possible := [pair for pair in zip(ids, ids[1:]) if pair in new_ids]:
        earliest = min(possible, key=lambda pair: new_ids[pair])
        ids = replace_pair(ids, earliest, new_ids[earliest])
    return list(ids)


# --- The tokenizer -------------------------------------------------------------------


class BPETokenizerSimple:
    """Merges put to use: text to ids and back. Nothing in a text is special.

    Args:
        merges: pairs of ids, in the order in which they were learned.
        pattern: what cuts a text into chunks; joined they must be the text.
        first_bytes: the byte of each id from 0 to 255.

    Attributes: `new_ids`, {pair: id} of the merges; `token_bytes`, {id: bytes}.
    Raises `ValueError` if two merges make the same bytes.
    """

    def __init__(
        self,
        merges: Iterable[Sequence[int]] = (),
        pattern: str = GPT2_PATTERN,
        first_bytes: Iterable[int] = range(256),
    ):
        merges = [(left, right) for left, right in merges]
        self.pattern, self.first_bytes = pattern, bytes(first_bytes)
        self.id_of_byte = bytes(self.first_bytes.index(b) for b in range(256))
        self.token_bytes = {i: bytes([b]) for i, b in enumerate(self.first_bytes)}
        self.new_ids = {pair: 256 + i for i, pair in enumerate(merges)}
        for (left, right), i in self.new_ids.items():
            self.token_bytes[i] = self.token_bytes[left] + self.token_bytes[right]
        if len(set(self.token_bytes.values())) < 256 + len(merges):
            raise ValueError("Two merges make the same token: leave one out.")
        self.cache = {}

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of a text in which nothing is special."""
        # Half of a surrogate pair is no character and becomes U+FFFD, as in tiktoken.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids = []
        for chunk in regex.findall(self.pattern, text):
            if chunk not in self.cache:
                if len(self.cache) == CACHED_CHUNKS:
                    self.cache.clear()
                byte_ids = chunk.encode("utf-8").translate(self.id_of_byte)
                self.cache[chunk] = merge_chunk(byte_ids, self.new_ids)
            ids += self.cache[chunk]
        return ids

    def decode_single_token_bytes(self, token: int) -> bytes:
        """The bytes of one token, maybe part of a character; `KeyError` without one."""
        return self.token_bytes[token]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of some ids; `KeyError` names an id without a token."""
        return b"".join(self.token_bytes[i] for i in ids)

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text of some ids; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors)


class BPETokenizer(BPETokenizerSimple):
    """The same with special tokens, which come after the merges, and a way to disk.

    Attributes: `special_tokens`, {text: id}; `n_vocab`, how many tokens there are, with
    ids from 0 to n_vocab - 1; `eot_token`, the id of `<|endoftext|>` or None.
    Raises `ValueError` if a special token is empty or given twice.
    """

    def __init__(
        self,
        merges: Iterable[Sequence[int]] = (),
        special_tokens: Iterable[str] = ("<|endoftext|>",),
        pattern: str = GPT2_PATTERN,
        first_bytes: Iterable[int] = range(256),
    ):
        special_tokens = list(special_tokens)
        distinct = set(special_tokens) - {""}
        if len(distinct) < len(special_tokens):
            raise ValueError("special_tokens: each once, and none empty.")
        super().__init__(merges, pattern, first_bytes)
        first = len(self.token_bytes)
        self.special_tokens = {t: first + i for i, t in enumerate(special_tokens)}
        for token, i in self.special_tokens.items():
            self.token_bytes[i] = token.encode("utf-8")
        self.n_vocab = len(self.token_bytes)
        self.eot_token = self.special_tokens.get("<|endoftext|>")

    def encode(
        self,
        text: str,
        *,
        allowed_special: Collection[str] = frozenset(),
        disallowed_special: Collection[str] = "all",
    ) -> list[int]:
        """The ids of a text.

        Args:
            allowed_special: the special tokens that become one id each, or "all".
            disallowed_special: texts that raise `ValueError`; "all" stands for the
                special tokens that are not allowed. With () they are plain text.
        """
        allowed = set(self.special_tokens)
        if allowed_special != "all":
            allowed &= set(allowed_special)
        if disallowed_special == "all":
            disallowed_special = self.special_tokens.keys() - allowed
        for token in disallowed_special:
            if token in text:
                raise ValueError(
                    f"The text holds the special token {token!r}: name it "
                    "in allowed_special, or read it as text with "
                    "disallowed_special=()."
                )
        ids = []
        for part in cut_out(text, allowed):
            if part in allowed:
                ids.append(self.special_tokens[part])
            else:
                ids += self.encode_ordinary(part)
        return ids

    def to_json(self) -> str:
        """The tokenizer as a text, with its SHA-256, for `tokenizer_from_json`."""
        parts = {
            "merges": list(self.new_ids),
            "special_tokens": list(self.special_tokens),
            "pattern": self.pattern,
            "first_bytes": list(self.first_bytes),
        }
        text = json.dumps(parts)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return f'{{"sha256": "{digest}", "tokenizer": {text}}}\n'


def train_tokenizer(
    text: str,
    vocab_size: int,
    special_tokens: Iterable[str] = ("<|endoftext|>",),
    pattern: str = GPT2_PATTERN,
) -> BPETokenizer:
    """A tokenizer trained on a text, from which special tokens are cut out first.

    `vocab_size` counts bytes, merges and special tokens. It is not reached if no pair
    is left that occurs twice.
    """
    special_tokens = list(special_tokens)
    fixed = BPETokenizer((), special_tokens, pattern).n_vocab
    if vocab_size < fixed:
        raise ValueError(
            f"vocab_size is {vocab_size}, but bytes and special tokens alone "
            f"are {fixed}."
        )
    chunks = count_chunks(text, special_tokens, pattern)
    merges = train_incremental(chunks, vocab_size - fixed)
    return BPETokenizer(merges, special_tokens, pattern)


# --- Files ---------------------------------------------------------------------------


def tokenizer_from_json(
    text: str | bytes, name: str | os.PathLike = "The text"
) -> BPETokenizer:
    """The tokenizer that `to_json` wrote; `ValueError` if the text is anything else."""
    try:
        saved = json.loads(text)
        parts = saved["tokenizer"]
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        if digest == saved["sha256"]:
            return BPETokenizer(**parts)
        problem = "it is not as it was written"
    except Exception as error:  # whatever is missing or of another kind
        problem = type(error).__name__
    raise ValueError(f"{name} is not a whole tokenizer of this module ({problem}).")


def save_tokenizer(tokenizer: BPETokenizer, path: str | os.PathLike) -> None:
    """Write a tokenizer to a file."""
    Path(path).write_text(tokenizer.to_json(), encoding="utf-8", newline="\n")


def load_tokenizer(path: str | os.PathLike) -> BPETokenizer:
    """Read a tokenizer from a file; `ValueError` if it is damaged or another file."""
    return tokenizer_from_json(Path(path).read_bytes(), path)


def byte_alphabet() -> dict[str, int]:
    """The characters that stand for bytes in vocabularies made after GPT-2's.

    Bytes that print stand for themselves; the 68 others take the characters from number
    256 on, a space number 288, a G with a dot. Returns {character: byte}, 256 entries,
    in the order of GPT-2's first 256 ids.
    """
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    alphabet = {chr(byte): byte for byte in printed}
    return alphabet | {chr(256 + i): byte for i, byte in enumerate(others)}


def load_vocab_and_merges_from_openai(
    vocab_path: str | os.PathLike, bpe_merges_path: str | os.PathLike
) -> BPETokenizer:
    """GPT-2's tokenizer from its two files; `ValueError` if they are damaged."""
    alphabet = byte_alphabet()
    try:
        vocab = json.loads(Path(vocab_path).read_text(encoding="utf-8"))
        lines = Path(bpe_merges_path).read_text(encoding="utf-8").splitlines()[1:]
        merges = [[vocab[token] for token in line.split(" ")] for line in lines]
        tokenizer = BPETokenizer(merges, first_bytes=alphabet.values())
        del vocab["<|endoftext|>"]
        learned = {i: bytes(alphabet[c] for c in token) for token, i in vocab.items()}
        if tokenizer.token_bytes == learned | {len(learned): b"<|endoftext|>"}:
            return tokenizer
        problem = "the merges do not make the tokens"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = type(error).__name__
    raise ValueError(
        f"{bpe_merges_path} and {vocab_path} are not merges and vocabulary "
        f"of one tokenizer ({problem}): fetch both again."
    )
