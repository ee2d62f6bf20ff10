"""The checks of the exercises in `bpe-from-scratch.ipynb`; see `course.exercises`."""

import copy
import functools

from bpe import (
    BPETokenizer,
    byte_alphabet,
    load_vocab_and_merges_from_openai,
    train_tokenizer,
)
from course.assets import fetch
from course.exercises import call, check, describe, expect, expect_equal

LEFT_OVER = "the the then thin bath baths "


# --- T.1 Stepping stones -------------------------------------------------------------


def _entries(found, kinds, wanted):
    """What is in an answer: a tuple of all that a collection or an iterator gives."""
    iterable = hasattr(found, "__iter__") and not isinstance(found, kinds)
    expect(iterable, f"the result is {describe(found)}, not {wanted}")
    return tuple(found)


def _ids(found):
    """The answer as a set of whole numbers; any collection of them will do."""
    entries = _entries(found, (dict, str, bytes), "a set of ids")
    texts = any(isinstance(entry, (bytes, str)) for entry in entries)
    expect(not texts, "the result holds texts or bytes of tokens, not their ids")
    pairs = any(  # a number of torch has a length, too, but no shape
        hasattr(entry, "__len__") and getattr(entry, "shape", None) != ()
        for entry in entries
    )
    expect(not pairs, "the result holds pairs or lists; single ids are asked for")
    return {int(entry) for entry in entries}


@functools.cache
def _cases():
    """Tokenizers and texts, one of them without merges."""
    story = fetch("short-story").read_text(encoding="utf-8")
    return [
        (train_tokenizer(10 * LEFT_OVER, 300), LEFT_OVER),
        (train_tokenizer(story[:5000], 400), story[:5000]),
        (train_tokenizer(story[:5000], 300), "lamp"),  # without 256, the first one
        (train_tokenizer("", 257), story[:500]),
    ]


@check("T.1")
def check_T_1(attempt):
    found = [_ids(call(attempt, *copy.deepcopy(case))) for case in _cases()]
    right, slips = [], {}
    for tokenizer, text in _cases():
        learned, used = set(tokenizer.new_ids.values()), set(tokenizer.encode(text))
        special, every = {tokenizer.eot_token}, set(tokenizer.token_bytes)
        data, tokens = text.encode("utf-8"), tokenizer.token_bytes
        right.append(learned - used)
        outcomes = {
            "single bytes are counted, too; they were not learned": (
                every - special - used
            ),
            "the special token is counted, too; it was not learned": (
                (learned | special) - used
            ),
            "bytes and special tokens are counted, too; they were not learned": (
                every - used
            ),
            "these are the learned tokens that do occur; the others are asked for": (
                learned & used
            ),
            "a token's letters may stand in the text without its id being there": (
                {i for i in learned if tokens[i] not in data}
            ),
        }
        for message, outcome in outcomes.items():
            slips.setdefault(message, []).append(outcome)
    for message, outcome in slips.items():
        expect(found != outcome, message)
    for ids, expected in zip(found, right):
        wrong = "some ids are missing, or are there that should not be"
        expect_equal(sorted(ids), sorted(expected), wrong)
    return "Four tokenizers, one of them without merges; letters are not tokens."


# --- T.2 The merges behind the ranks -------------------------------------------------


@functools.cache
def _vocabularies():
    """A small one, in which most slips show, and the first 1,056 tokens of GPT-2."""
    small = BPETokenizer([(98, 99), (97, 98), (256, 100), (97, 258)], [])
    files = fetch("gpt2-encoder.json"), fetch("gpt2-vocab.bpe")
    merges = list(load_vocab_and_merges_from_openai(*files).new_ids)
    gpt2 = BPETokenizer(merges[:800], first_bytes=byte_alphabet().values())
    cases = []
    for tokenizer, ids in ((small, range(256, 260)), (gpt2, range(256, 1056, 7))):
        ranks = {token: i for i, token in tokenizer.token_bytes.items()}
        merges = list(tokenizer.new_ids)
        for i in ids:
            pair = tuple(tokenizer.token_bytes[part] for part in merges[i - 256])
            cases.append((tokenizer.token_bytes[i], ranks, pair))
    return cases


def _cuts(token, ranks):
    """All ways to cut a token into two tokens, the shortest first part first."""
    ways = [(token[:i], token[i:]) for i in range(1, len(token))]
    return [way for way in ways if all(part in ranks for part in way)]


def _pair(found, token):
    kinds = dict, set, frozenset, str, bytes, bytearray
    parts = _entries(found, kinds, "a pair of bytes")
    lists = [part for part in parts if isinstance(part, (tuple, list))]
    listed = any(hasattr(one, "__index__") for part in lists for one in part)
    expect(not listed, "the parts are lists of numbers, but bytes are asked for")
    expect(not lists, "the result holds whole cuts; one cut, left and right, is wanted")
    whole = "the token itself is left in one piece: its own merge came later"
    expect(parts != (token,), whole)
    several = "one part" if len(parts) == 1 else f"{len(parts)} parts"
    expect(len(parts) == 2, f"the result has {several}, not two")
    as_ids = all(hasattr(part, "__index__") for part in parts)
    expect(not as_ids, "the result holds numbers, but bytes are asked for")
    views = bytearray, memoryview
    return tuple(bytes(part) if isinstance(part, views) else part for part in parts)


@check("T.2")
def check_T_2(attempt):
    cases = _vocabularies()
    found = [  # each call has ranks of its own to work on
        _pair(call(attempt, token, dict(ranks)), token) for token, ranks, _ in cases
    ]
    cuts = [_cuts(token, ranks) for token, ranks, _ in cases]
    lowest = [
        min(ways, key=lambda way: ranks[way[0]] + ranks[way[1]])
        for ways, (_, ranks, _) in zip(cuts, cases)
    ]
    slips = {
        "every cut is the one with the longest first part; merging went otherwise": (
            [ways[-1] for ways in cuts]
        ),
        "every cut is the one with the shortest first part; merging went otherwise": (
            [ways[0] for ways in cuts]
        ),
        "every cut is that of the lowest ranks in sum; merging went otherwise": lowest,
        "left and right are the wrong way round": [pair[::-1] for _, _, pair in cases],
    }
    for message, outcome in slips.items():
        expect(found != outcome, message)
    for parts, (token, _, pair) in zip(found, cases):
        expect_equal(parts, pair, f"{token!r} was not made of these two parts")
    return f"{len(cases)} tokens, from two bytes to frequent words of GPT-2."
