"""Right and wrong answers as readers write them: what the checks of chapter 2 say.

`test_ch02_checks.py` plants one mistake for each message. Here is what came back from
asking for many answers: right ones written in other ways, which a check must take, and
plausible wrong ones, each with what it must say.
"""

import codecs
import itertools
import math
import re

import numpy as np
import pytest
import tiktoken
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import ch02_checks
from course.exercises import answer
from dataloader import GPTDatasetV1, create_dataloader_v1

GPT2 = tiktoken.get_encoding("gpt2")


# --- 2.1 ------------------------------------------------------------------------------


def pieces(text, tokenizer):
    return [(i, tokenizer.decode_single_token_bytes(i)) for i in tokenizer.encode(text)]


def pieces_by_loop(text, tokenizer):
    found = []
    for token in tokenizer.encode(text):
        found.append((token, tokenizer.decode_bytes([token])))
    return found


def pieces_at_ends(text, tokenizer):
    """Cut the bytes where each token ends."""
    data, ids = text.encode(), tokenizer.encode(text)
    ends = list(itertools.accumulate(len(tokenizer.decode_bytes([i])) for i in ids))
    return [(i, data[a:b]) for i, a, b in zip(ids, [0, *ends], ends)]


RIGHT_2_1 = {
    "loop": pieces_by_loop,
    "library": lambda text, tok: list(
        zip(tok.encode(text), tok.decode_tokens_bytes(tok.encode(text)))
    ),
    "lists as pairs": lambda text, tok: [list(pair) for pair in pieces(text, tok)],
    "a tuple of pairs": lambda text, tok: tuple(pieces(text, tok)),
    "numbers of numpy": lambda text, tok: [
        (np.int64(i), p) for i, p in pieces(text, tok)
    ],
    "an array of ids": lambda text, tok: [
        (i, tok.decode_single_token_bytes(int(i)))
        for i in np.array(tok.encode(text), dtype=np.int32)
    ],
    "cut at ends": pieces_at_ends,
    "ordinary": lambda text, tok: [
        (i, tok.decode_single_token_bytes(i)) for i in tok.encode_ordinary(text)
    ],
    "from the table": lambda text, tok: [
        (tok.encode_single_token(p), p)
        for p in tok.decode_tokens_bytes(tok.encode(text))
    ],
    "tensor of ids": lambda text, tok: [
        (i, tok.decode_single_token_bytes(i))
        for i in torch.tensor(tok.encode(text), dtype=torch.long).tolist()
    ],
    "ids that are tensors": lambda text, tok: [
        (torch.tensor(i), p) for i, p in pieces(text, tok)
    ],
    "bytearrays": lambda text, tok: [(i, bytearray(p)) for i, p in pieces(text, tok)],
}
WRONG_2_1 = {
    "piece first": (
        lambda text, tok: [(p, i) for i, p in pieces(text, tok)],
        "the id comes first",
    ),
    "bytearray first": (
        lambda text, tok: [(bytearray(p), i) for i, p in pieces(text, tok)],
        "the id comes first",
    ),
    "a dictionary": (lambda text, tok: dict(pieces(text, tok)), "not a list of pairs"),
    "lists of numbers": (
        lambda text, tok: [(i, list(p)) for i, p in pieces(text, tok)],
        "a list of 2; it should hold a whole number and bytes",
    ),
    "single bytes": (
        lambda text, tok: [
            (tok.encode_single_token(bytes([b])), bytes([b])) for b in text.encode()
        ],
        "fewer and longer ones",
    ),
    "a generator": (
        lambda text, tok: (pair for pair in pieces(text, tok)),
        "not a list of pairs",
    ),
    "no spaces": (
        lambda text, tok: [(i, p.strip()) for i, p in pieces(text, tok)],
        "lost its spaces",
    ),
    "bytes read as Latin-1": (
        lambda text, tok: [(i, p.decode("latin-1")) for i, p in pieces(text, tok)],
        "a piece is a string",
    ),
    "halves ignored": (
        lambda text, tok: [
            (i, tok.decode([i], errors="ignore").encode()) for i in tok.encode(text)
        ],
        "are not the bytes of",
    ),
    "backwards": (lambda text, tok: pieces(text, tok)[::-1], "are not the bytes of"),
    "lower case": (lambda text, tok: pieces(text.lower(), tok), "are not the bytes of"),
}


# --- 2.2 ------------------------------------------------------------------------------


def loader(text, max_length, stride, **changes):
    settings = {"batch_size": 4, "shuffle": False, "drop_last": False} | changes
    return create_dataloader_v1(text, max_length=max_length, stride=stride, **settings)


def windows(text, max_length, stride):
    ids = GPT2.encode(text)
    starts = range(0, len(ids) - max_length, stride)
    return [(ids[s : s + max_length], ids[s + 1 : s + max_length + 1]) for s in starts]


def tensors(text, max_length, stride):
    inputs, targets = zip(*windows(text, max_length, stride))
    return torch.tensor(inputs), torch.tensor(targets)


def own_generator(text, max_length, stride):
    rows = windows(text, max_length, stride)
    for start in range(0, len(rows), 4):
        inputs, targets = zip(*rows[start : start + 4])
        yield torch.tensor(inputs), torch.tensor(targets)


def own_loader(text, max_length, stride, wrong=lambda x, y: (x, y)):
    dataset = TensorDataset(*wrong(*tensors(text, max_length, stride)))
    return DataLoader(dataset, batch_size=4)


RIGHT_2_2 = {
    "keywords": loader,
    "places": lambda text, size, stride: create_dataloader_v1(
        text, 4, size, stride, False, False
    ),
    "own data set": lambda text, size, stride: DataLoader(
        GPTDatasetV1(text, GPT2, size, stride), batch_size=4
    ),
    "sampler": lambda text, size, stride: DataLoader(
        GPTDatasetV1(text, GPT2, size, stride),
        batch_size=4,
        sampler=range(len(GPTDatasetV1(text, GPT2, size, stride))),
    ),
    "tensors": own_loader,
    "generator": own_generator,
    "list of batches": lambda *case: list(own_generator(*case)),
    "lists as batches": lambda *case: [
        [x.tolist(), y.tolist()] for x, y in own_generator(*case)
    ],
    "arrays": lambda *case: [(x.numpy(), y.numpy()) for x, y in own_generator(*case)],
    "own tokenizer": lambda *case: loader(*case, tokenizer=GPT2),
    "iterator": lambda *case: iter(loader(*case)),
    "split": lambda *case: zip(*(t.split(4) for t in tensors(*case))),
}
WRONG_2_2 = {
    "targets are inputs": (
        lambda *case: own_loader(*case, wrong=lambda x, y: (x, x)),
        "the targets are the inputs themselves",
    ),
    "targets two further": (
        lambda *case: own_loader(*case, wrong=lambda x, y: (x, y + 1)),
        "not the tokens that come next",
    ),
    "last target missing": (
        lambda *case: own_loader(*case, wrong=lambda x, y: (x, y.roll(1, 1))),
        "not the tokens that come next",
    ),
    "inputs alone": (
        lambda *case: [x for x, _ in own_generator(*case)],
        "should yield pairs (inputs, targets)",
    ),
    "one batch": (lambda *case: [next(own_generator(*case))], "last windows"),
    "backwards": (
        lambda *case: own_loader(*case, wrong=lambda x, y: (x.flip(0), y.flip(0))),
        "in random order",
    ),
    "single windows": (lambda *case: loader(*case, batch_size=1), "holds 1 windows"),
    "first window missing": (
        lambda *case: own_loader(*case, wrong=lambda x, y: (x[1:], y[1:])),
        "last windows",
    ),
    "one more window": (
        lambda text, size, stride: own_loader(text + " dust dust", size, stride),
        "do not lie over the text",
    ),
    "every other batch of 3": (
        lambda *case: [
            (x[a:b], y[a:b])
            for x, y in [tensors(*case)]
            for a, b in itertools.pairwise([0, 4, *range(7, len(x), 4), len(x)])
        ],
        "in the middle does not hold 4",
    ),
    "the data set": (
        lambda text, size, stride: GPTDatasetV1(text, GPT2, size, stride),
        "should be a data loader",
    ),
}


# --- 2.3 ------------------------------------------------------------------------------


def count(n, size, stride):
    if n <= size:
        return 0, n
    number = (n - size - 1) // stride + 1
    return number, n - size - (number - 1) * min(stride, size)


def count_ceiling(n, size, stride):
    number = max(0, math.ceil((n - size) / stride))
    return number, n - (size + (number - 1) * min(size, stride) if number else 0)


def count_by_sets(n, size, stride):
    starts = range(0, n - size, stride)
    return len(starts), n - len({s + i for s in starts for i in range(size)})


def count_by_loop(n, size, stride):
    number = start = used = end = 0
    while start + size < n:
        number += 1
        used += size - max(0, end - start)
        end = start + size
        start += stride
    return number, n - used


RIGHT_2_3 = {
    "formula": count,
    "ceiling": count_ceiling,
    "range and set": count_by_sets,
    "loop": count_by_loop,
    "list": lambda *case: list(count(*case)),
    "numpy": lambda *case: tuple(np.array(count(*case))),
    "one array": lambda *case: np.array(count(*case)),
    "one tensor": lambda *case: torch.tensor(count(*case)),
    "two tensors": lambda *case: [torch.tensor(number) for number in count(*case)],
    "np.maximum": lambda n, size, stride: (
        np.maximum(0, -(-(n - size) // stride)),
        np.int32(count(n, size, stride)[1]),
    ),
    "len of range": lambda n, size, stride: (
        len(range(0, n - size, stride)),
        count(n, size, stride)[1],
    ),
    "divmod": lambda n, size, stride: (
        (divmod(n - size - 1, stride)[0] + 1 if n > size else 0),
        count(n, size, stride)[1],
    ),
    "mask": lambda n, size, stride: (
        count(n, size, stride)[0],
        n
        - int(
            sum(
                any(s <= i < s + size for s in range(0, n - size, stride))
                for i in range(n)
            )
        ),
    ),
    "int()": lambda n, size, stride: (
        int((n - size - 1) / stride) + 1 if n > size else 0,
        count(n, size, stride)[1],
    ),
}
WRONG_2_3 = {
    "floats": (lambda *case: tuple(map(float, count(*case))), "is a float"),
    "an array of floats": (lambda *case: np.array(count(*case)) / 1, "is a float"),
    "an array of three": (lambda *case: np.array([*count(*case), 0]), "two numbers"),
    "one number": (lambda *case: count(*case)[0], "should be two numbers"),
    "swapped": (lambda *case: count(*case)[::-1], "is too low"),
    "twice as many": (lambda *case: (2 * count(*case)[0], 0), "more than there are"),
    "rounded up": (
        lambda n, size, stride: (n // stride + 2, 0),
        "more than there are",
    ),
    "text": (lambda *case: tuple(map(str, count(*case))), "is the text"),
    "rest only": (
        lambda n, size, stride: (count(n, size, stride)[0], (n - size) % stride),
        "is not the number of unused tokens",
    ),
    "targets used": (
        lambda *case: (count(*case)[0], max(count(*case)[1] - 1, 0)),
        "is not the number of unused tokens",
    ),
    "one for short texts": (
        lambda n, size, stride: (
            max(1, count(n, size, stride)[0]),
            count(n, size, stride)[1],
        ),
        "too short for a window",
    ),
    "stride for size": (
        lambda n, size, stride: count(n, stride, size),
        "is too",
    ),
}


# --- 2.4 ------------------------------------------------------------------------------


def groups(text):
    kind = lambda c: "word" if re.match(r"\w", c) else "space" if c.isspace() else c  # noqa: E731
    found = []
    for name, characters in itertools.groupby(text, kind):
        characters = list(characters)
        whole = name in ("word", "space")
        found += ["".join(characters)] if whole else characters
    return found


def by_state(text):
    found, word = [], ""
    for character in text:
        if character.isalnum() or character == "_":
            word += character
            continue
        if word:
            found.append(word)
            word = ""
        found.append(character)
    return found + [word] * bool(word)


RIGHT_2_4 = {
    "groupby": groups,
    "by hand": by_state,
    "split with a group": lambda text: [t for t in re.split(r"(\W)", text) if t],
    "finditer": lambda text: [m.group() for m in re.finditer(r"\w+|\W", text)],
    "a tuple": lambda text: tuple(re.findall(r"\w+|\s+|[^\w\s]", text)),
    "scanner": lambda text: re.compile(r"\s*\w+|\s*[^\w\s]|\s+").findall(text),
    "inner marks": re.compile(r" ?\w+(?:['\-]\w+)*| ?[^\w\s]|\s").findall,
    "typographic apostrophe": re.compile("\\w+(?:[\u2019']\\w+)*|\\W").findall,
    "marks in a row": re.compile(r"\w+|\s+|[^\w\s]+").findall,
    "like GPT-2": re.compile(
        r"'(?:s|t|re|ve|m|ll|d)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+"
    ).findall,
    "dashes": re.compile(r"--|\w+|\s+|[^\w\s]").findall,
}
WRONG_2_4 = {
    "three marks only": (
        re.compile(r"\s+|[.,?]|[^\s.,?]+").findall,
        "'a--b' holds more than one word",
    ),
    "hyphens in a row": (
        re.compile(r"\w+(?:-+\w+)*|\W").findall,
        "'a--b' holds more than one word",
    ),
    "quotation marks": (
        re.compile(r"\w+(?:['\"(-]\w+)*|\W").findall,
        "holds more than one word",
    ),
    "two words": (re.compile(r"\w+ \w+|\w+|\W").findall, "holds more than one word"),
    "split": (str.split, "is lost or changed"),
    "spaces joined": (
        lambda text: [t + " " for t in text.split()],
        "is lost or changed",
    ),
    "lines": (lambda text: text.splitlines(keepends=True), "more than one word"),
    "digits cut": (
        re.compile(r"[^\W\d_]|\d+|_|\W").findall,
        "a word is cut between",
    ),
    "marks at the end": (
        re.compile(r"\w+[.,?]?|\W").findall,
        "together with a punctuation mark",
    ),
    "joined text": (lambda text: [text.lower()] * bool(text), "is in no token"),
    "bytes": (lambda text: [text.encode()], "a list of strings"),
}


# --- 2.5 ------------------------------------------------------------------------------


def cost(text, tokenizer):
    n = len(tokenizer.encode(text))
    return n / len(text), n / len(text.encode())


RIGHT_2_5 = {
    "plain": cost,
    "list": lambda *a: list(cost(*a)),
    "numpy": lambda *a: tuple(map(np.float64, cost(*a))),
    "an array": lambda *a: tuple(np.array(cost(*a), dtype=np.float64)),
    "one array": lambda *a: np.array(cost(*a)),
    "one tensor": lambda *a: torch.tensor(cost(*a)),
    "two tensors": lambda *a: tuple(torch.tensor(price) for price in cost(*a)),
    "bytes()": lambda text, tok: (
        len(tok.encode(text)) / len(text),
        len(tok.encode(text)) / len(bytes(text, "utf-8")),
    ),
    "bytearray": lambda text, tok: (
        cost(text, tok)[0],
        len(tok.encode(text)) / len(bytearray(text, "utf8")),
    ),
    "sum of ones": lambda text, tok: (
        sum(1 for _ in tok.encode(text)) / sum(1 for _ in text),
        sum(1 for _ in tok.encode(text)) / sum(len(c.encode()) for c in text),
    ),
    "via the other": lambda text, tok: (
        cost(text, tok)[1] * len(text.encode()) / len(text),
        cost(text, tok)[1],
    ),
    "divided twice": lambda text, tok: tuple(
        len(tok.encode(text)) / size for size in (len(text), len(text.encode()))
    ),
    "codecs": lambda text, tok: (
        cost(text, tok)[0],
        len(tok.encode(text)) / len(codecs.encode(text, "utf-8")),
    ),
}
WRONG_2_5 = {
    "rounded": (lambda *a: tuple(round(c, 2) for c in cost(*a)), "is not the price"),
    "UTF-16": (
        lambda text, tok: (
            cost(text, tok)[0],
            len(tok.encode(text)) / len(text.encode("utf-16-le")),
        ),
        "is not the price",
    ),
    "different tokens": (
        lambda text, tok: tuple(
            len(set(tok.encode(text))) / n for n in (len(text), len(text.encode()))
        ),
        "is not the price",
    ),
    "percents": (lambda *a: tuple(100 * c for c in cost(*a)), "is not the price"),
    "bytes for both": (lambda *a: (cost(*a)[1],) * 2, "is not the price"),
    "whole division": (
        lambda text, tok: (len(tok.encode(text)) // len(text), 0),
        "is not the price",
    ),
    "without spaces": (
        lambda text, tok: cost(text.replace(" ", ""), tok),
        "is not the price",
    ),
    "three numbers": (lambda *a: (*cost(*a), 0), "should be two numbers"),
    "an array in the wrong order": (
        lambda *a: np.array(cost(*a)[::-1]),
        "stand in each other's place",
    ),
    "a dictionary": (
        lambda *a: dict(zip(("character", "byte"), cost(*a))),
        "should be two numbers",
    ),
    "letters only": (
        lambda text, tok: (
            len(tok.encode(text)) / max(1, sum(map(str.isalpha, text))),
            cost(text, tok)[1],
        ),
        "is not the price",
    ),
}


# --- 2.6 ------------------------------------------------------------------------------


def stream(ids, tokenizer, errors="replace"):
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    for i in ids:
        yield decoder.decode(tokenizer.decode_single_token_bytes(i))
    yield decoder.decode(b"", True)


def stream_of_text(ids, tokenizer):
    for piece in stream(ids, tokenizer):
        if piece:
            yield piece


def stream_by_growth(ids, tokenizer):
    """Show what a decoder that is asked anew each time has more than before."""
    data, shown = b"", ""
    for i in ids:
        data += tokenizer.decode_single_token_bytes(i)
        text = codecs.getincrementaldecoder("utf-8")("replace").decode(data)
        yield text[len(shown) :]
        shown = text
    yield data.decode("utf-8", "replace")[len(shown) :]


def stream_with_start_and_end(ids, tokenizer):
    """By the error itself: what Python says is unexpectedly at its end may go on."""
    waiting = b""
    for i in ids:
        waiting += tokenizer.decode_single_token_bytes(i)
        text = ""
        while waiting:
            try:
                text, waiting = text + waiting.decode(), b""
            except UnicodeDecodeError as error:
                text += waiting[: error.start].decode()
                if error.reason == "unexpected end of data":
                    waiting = waiting[error.start :]
                    break
                text += "\ufffd"
                waiting = waiting[error.end :]
        yield text
    yield waiting.decode(errors="replace")


def stream_characters(ids, tokenizer):
    for piece in stream(ids, tokenizer):
        yield from piece


def stream_decoder_object(ids, tokenizer):
    decoder = codecs.lookup("utf-8").incrementaldecoder(errors="replace")
    yield ""
    for i in ids:
        yield decoder.decode(tokenizer.decode_bytes([i]), final=False)
    yield decoder.decode(b"", final=True)


def stream_three_back(ids, tokenizer):
    """A character has at most four bytes, so only the last three may have to wait."""
    waiting = b""
    for i in ids:
        waiting += tokenizer.decode_single_token_bytes(i)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(waiting)
        waiting = decoder.getstate()[0]
        yield text
    yield waiting.decode("utf-8", "replace")


class Stream:
    """An iterator of its own, not a generator."""

    def __init__(self, ids, tokenizer):
        self.pieces = stream(ids, tokenizer)

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.pieces)


RIGHT_2_6 = {
    "incremental decoder": stream,
    "no empty pieces": stream_of_text,
    "growth": stream_by_growth,
    "from the error": stream_with_start_and_end,
    "character by character": stream_characters,
    "looked up": stream_decoder_object,
    "state": stream_three_back,
    "an iterator": Stream,
    "map": lambda ids, tok: map(str, stream(ids, tok)),
    "generator expression": lambda ids, tok: (piece for piece in stream(ids, tok)),
    "iterdecode": lambda ids, tok: codecs.iterdecode(
        (tok.decode_single_token_bytes(i) for i in ids), "utf-8", errors="replace"
    ),
}


def stream_longest_valid(ids, tokenizer):
    """Keep bytes, show the longest start that is valid, keep the rest."""
    waiting = b""
    for i in ids:
        waiting += tokenizer.decode_single_token_bytes(i)
        for end in range(len(waiting), -1, -1):
            try:
                text = waiting[:end].decode()
            except UnicodeDecodeError:
                continue
            yield text
            waiting = waiting[end:]
            break
    yield waiting.decode(errors="replace")


def stream_lines(ids, tokenizer):
    line = ""
    for piece in stream(ids, tokenizer):
        line += piece
        if line.endswith((".", "\n")):
            yield line
            line = ""
    yield line


def stream_in_pairs(ids, tokenizer):
    for pair in (
        itertools.batched(ids, 2) if hasattr(itertools, "batched") else zip(ids)
    ):
        yield tokenizer.decode(list(pair))


def stream_twice(ids, tokenizer):
    for piece in stream(ids, tokenizer):
        yield piece
        yield piece


def stream_all_so_far(ids, tokenizer):
    text = ""
    for piece in stream(ids, tokenizer):
        text += piece
        yield text


def stream_bytes(ids, tokenizer):
    for i in ids:
        yield tokenizer.decode_single_token_bytes(i)


WRONG_2_6 = {
    "held back for ever": (stream_longest_valid, "but is held back"),
    "lines": (stream_lines, "but is held back"),
    "twice": (stream_twice, "may be dropped or shown twice"),
    "all so far": (stream_all_so_far, "may be dropped or shown twice"),
    "bytes": (stream_bytes, "each piece should be text"),
    "strict": (
        lambda ids, tok: stream(ids, tok, "strict"),
        "raises UnicodeDecodeError",
    ),
    "ignored": (lambda ids, tok: stream(ids, tok, "ignore"), "ids"),
    "a list": (lambda ids, tok: list(stream(ids, tok)), "yield the text bit by bit"),
    "joined": (lambda ids, tok: "".join(stream(ids, tok)), "yield the text bit by bit"),
    "taken first": (
        lambda ids, tok: stream(iter(list(ids)), tok),
        "before the last id is taken",
    ),
    "Latin-1": (
        lambda ids, tok: (tok.decode_bytes([i]).decode("latin-1") for i in ids),
        "may be dropped",
    ),
}


# --- 2.7 ------------------------------------------------------------------------------


def refuse(ids, positions):
    length, most = ids.shape[-1], positions.num_embeddings
    if length > most:
        raise ValueError(f"{length} tokens, but only {most} positions")
    return length


def embed(ids, tokens, positions):
    T = refuse(ids, positions)
    return tokens(ids) + positions(torch.arange(T))


def embed_by_loops(ids, tokens, positions):
    T = refuse(ids, positions)
    rows = [tokens(ids[..., t]) + positions(torch.tensor(t)) for t in range(T)]
    return torch.stack(rows, dim=-2)


def embed_in_place(ids, tokens, positions):
    found = tokens(ids)
    found += positions.weight[: refuse(ids, positions)]
    return found


def embed_one_hot(ids, tokens, positions):
    T = refuse(ids, positions)
    rows = F.one_hot(ids, tokens.num_embeddings).float()
    return rows @ tokens.weight + positions.weight[:T]


RIGHT_2_7 = {
    "layers": embed,
    "loops": embed_by_loops,
    "in place": embed_in_place,
    "one-hot": embed_one_hot,
    "functional": lambda ids, tokens, positions: (
        F.embedding(ids, tokens.weight)
        + F.embedding(torch.arange(refuse(ids, positions)), positions.weight)
    ),
    "indices": lambda ids, tokens, positions: (
        tokens.weight[ids] + positions.weight[torch.arange(refuse(ids, positions))]
    ),
    "positions for each row": lambda ids, tokens, positions: (
        tokens(ids) + positions(torch.arange(refuse(ids, positions)).expand_as(ids))
    ),
    "a batch axis": lambda ids, tokens, positions: (
        tokens(ids)
        + positions(torch.arange(refuse(ids, positions)).view(-1))[
            (None,) * (ids.dim() - 1)
        ]
    ),
    "torch.add": lambda ids, tokens, positions: torch.add(
        positions(torch.arange(refuse(ids, positions))), tokens(ids)
    ),
    "cumulative": lambda ids, tokens, positions: (
        tokens(ids)
        + positions(torch.ones(refuse(ids, positions), dtype=torch.long).cumsum(0) - 1)
    ),
}


def embed_with(positions_of, refuses=True):
    def attempt(ids, tokens, positions):
        if refuses:
            refuse(ids, positions)
        return tokens(ids) + positions_of(ids, positions)

    return attempt


def embed_asserting(ids, tokens, positions):
    assert ids.shape[-1] <= positions.num_embeddings
    return embed(ids, tokens, positions)


def embed_cut_off(ids, tokens, positions):
    ids = ids[..., : positions.num_embeddings]
    return embed(ids, tokens, positions)


def embed_up_to(limit, most_axes=2):
    """Refuse windows beyond a limit of its own, and use positions twice below it."""

    def attempt(ids, tokens, positions):
        length, most = ids.shape[-1], positions.num_embeddings
        if length > limit(most) or (length > most and ids.dim() > most_axes):
            raise ValueError(f"{length} tokens, but only {most} positions")
        return tokens(ids) + positions(torch.arange(length) % most)

    return attempt


def embed_one_too_far(ids, tokens, positions):
    if ids.shape[-1] > positions.num_embeddings + 1:
        refuse(ids, positions)
    return tokens(ids) + positions(torch.arange(ids.shape[-1]))


WRONG_2_7 = {
    "one too far": (
        embed_up_to(lambda most: most + 1),
        "6 tokens with 5 positions get a result",
    ),
    "one too far, then IndexError": (
        embed_one_too_far,
        "6 tokens with 5 positions end in IndexError",
    ),
    "twice as far": (
        embed_up_to(lambda most: 2 * most),
        "6 tokens with 5 positions get a result",
    ),
    "batches alone": (
        embed_up_to(lambda most: math.inf, most_axes=1),
        "6 tokens with 5 positions get a result",
    ),
    "positions from ids": (
        lambda ids, tokens, positions: (
            tokens(ids) + positions(ids % refuse(ids, positions))
        ),
        "the sum of the vectors is another one",
    ),
    "counted backwards": (
        embed_with(lambda ids, p: p(torch.arange(ids.shape[-1]).flip(0))),
        "the sum of the vectors is another one",
    ),
    "always the first": (
        embed_with(lambda ids, p: p(torch.tensor(0))),
        "the sum of the vectors is another one",
    ),
    "twice": (
        embed_with(lambda ids, p: 2 * p(torch.arange(ids.shape[-1]))),
        "the sum of the vectors is another one",
    ),
    "assert": (embed_asserting, "end in AssertionError"),
    "cut off": (embed_cut_off, "get a result"),
    "mean": (
        lambda ids, tokens, positions: embed(ids, tokens, positions) / 2,
        "the sum of the vectors is another one",
    ),
    "detached": (
        lambda ids, tokens, positions: embed(ids, tokens, positions).detach(),
        "no gradient can flow",
    ),
    "a list": (
        lambda ids, tokens, positions: embed(ids, tokens, positions).tolist(),
        "should be a tensor",
    ),
    "one row": (
        lambda ids, tokens, positions: embed(ids, tokens, positions).flatten(0, -2)[:1],
        "the result has the shape",
    ),
}


ATTEMPTS = {
    "2.1": (RIGHT_2_1, WRONG_2_1),
    "2.2": (RIGHT_2_2, WRONG_2_2),
    "2.3": (RIGHT_2_3, WRONG_2_3),
    "2.4": (RIGHT_2_4, WRONG_2_4),
    "2.5": (RIGHT_2_5, WRONG_2_5),
    "2.6": (RIGHT_2_6, WRONG_2_6),
    "2.7": (RIGHT_2_7, WRONG_2_7),
}


def check_of(number):
    return getattr(ch02_checks, f"check_{number.replace('.', '_')}")


@pytest.mark.parametrize("number", ATTEMPTS)
def test_each_exercise_has_ten_attempts_of_each_kind(number):
    assert min(map(len, ATTEMPTS[number])) >= 10


@pytest.mark.filterwarnings("ignore:stride=")
@pytest.mark.parametrize(
    ("number", "name"),
    [(n, name) for n, (right, _) in ATTEMPTS.items() for name in right],
)
def test_a_right_answer_passes_however_it_is_written(number, name):
    said = answer(check_of(number), ATTEMPTS[number][0][name])
    assert said.startswith(f"Exercise {number}: correct."), said


@pytest.mark.filterwarnings("ignore:stride=")
@pytest.mark.parametrize(
    ("number", "name"),
    [(n, name) for n, (_, wrong) in ATTEMPTS.items() for name in wrong],
)
def test_a_wrong_answer_is_told_what_is_wrong(number, name):
    attempt, fragment = ATTEMPTS[number][1][name]
    said = answer(check_of(number), attempt)
    assert said.startswith(f"Exercise {number}: "), said
    assert "correct." not in said
    assert fragment in said
