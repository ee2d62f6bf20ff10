"""The checks of the exercises in `simple-tokenizer-v3.ipynb`; see `course.exercises`.

Expected lists come from the plainest way to get them, character by character.
"""

import random
import re
from collections.abc import Iterator

from course.exercises import call, check, expect, expect_no_slip
from simple_tokenizer_v3 import split_keeping_white_space

PIECE = r" ?(?:--|\w+(?:[-']\w+)*|[^\w\s])"


def _listed(found):
    """A tuple, or what comes one by one, as a list; anything else as it is."""
    return list(found) if isinstance(found, tuple | Iterator) else found


# --- 2.61 A run of white space in one token -------------------------------------------


@check("2.61")
def check_2_61(attempt):
    texts = [
        "if x:\n    y = 1\n",
        "a  b",
        "\n\nNo.",
        "\t\t-- yes",
        " so",
        "end \n ",
        "",
    ]
    texts += ["x \t y", "one\u00a0\u00a0two", "  \n   three"]
    draw = random.Random(61)
    texts += ["".join(draw.choices("ab.  \n\t-", k=20)) for _ in range(200)]
    for text in texts:
        tokens = _listed(call(attempt, text))
        kinds = isinstance(tokens, list) and all(isinstance(t, str) for t in tokens)
        expect(kinds, "the result should be a list of strings")
        expect(
            "".join(tokens) == text,
            f"joined, the tokens of {ascii(text)} are {ascii(''.join(tokens))}",
        )
        slips = {
            f"in {ascii(text)} a word or mark has lost the blank in front of it to the "
            "run": _runs_take_all(text),
            f"in {ascii(text)} a run has swallowed the blank of the word or mark after "
            "it; before the plain run, try one that stops where a blank and a word "
            "follow": re.findall(rf"{PIECE}|\s+", text),
            f"in {ascii(text)} a run that ends at a line break or tab is cut before "
            "its last character, though no blank is needed by the word": _cut_short(
                text
            ),
            f"in {ascii(text)} each white space is still a token of its own": (
                split_keeping_white_space(text)
            ),
        }
        expect_no_slip(tokens, _with_runs(text), slips)
        expect(
            tokens == _with_runs(text),
            f"the tokens of {ascii(text)} are {ascii(tokens)}, which are not the runs "
            "and words asked for",
        )
    return f"{len(texts)} texts: runs are one token, and words keep their blank."


def _with_runs(text):
    """Join neighbouring tokens of white space; a blank of a word is not among them."""
    tokens = []
    for token in split_keeping_white_space(text):
        if tokens and token.isspace() and tokens[-1].isspace():
            tokens[-1] += token
        else:
            tokens.append(token)
    return tokens


def _runs_take_all(text):
    tokens = []
    for token in _with_runs(text):
        if token[0] == " " and not token.isspace() and tokens and tokens[-1].isspace():
            tokens[-1] += " "
            token = token[1:]
        elif token[0] == " " and not token.isspace():
            tokens.append(" ")
            token = token[1:]
        tokens.append(token)
    return tokens


def _cut_short(text):
    tokens = []
    runs = _with_runs(text)
    for token, after in zip(runs, [*runs[1:], " "]):
        if token.isspace() and len(token) > 1 and after[0] != " ":
            tokens += [token[:-1], token[-1]]
        else:
            tokens.append(token)
    return tokens


# --- 2.62 The longest piece first -----------------------------------------------------


@check("2.62")
def check_2_62(attempt):
    known = {bytes([value]) for value in range(256)}
    known |= {b"boot", b"bo", b"otl", b"lace", b"ace", b"ootlace", "\u00e9".encode()}
    known |= {b" foot", b" fo", b"foot", b"aa", b"aaaa"}
    words = ["boot", "bootlace", " footboot", "caf\u00e9", "\u5ead", "", "aaaaaaa"]
    words += ["bootboots", "ootlaces", " footlace"]
    draw = random.Random(62)
    words += ["".join(draw.choices(" abcefloot", k=12)) for _ in range(100)]
    found = {}
    for word in words:
        data = word.encode()
        pieces = _listed(call(attempt, data, set(known)))
        expect(
            isinstance(pieces, list)
            and all(isinstance(piece, bytes) for piece in pieces),
            "the result should be a list of bytes objects; data[i] is a number, "
            "data[i : i + 1] is bytes",
        )
        expect(
            b"".join(pieces) == data,
            f"joined, the pieces of {data} are {b''.join(pieces)}",
        )
        unknown = [piece for piece in pieces if piece not in known]
        expect(
            not unknown,
            f"a piece of {data} is {unknown and unknown[0]}, which is not among the "
            "known",
        )
        found[data] = pieces
    _judge_pieces(found, known)
    return f"{len(words)} words are spelled, each place with its longest piece."


def _judge_pieces(found, known):
    """Name a slip only if it explains every word; else show the first wrong piece."""
    wrong = [data for data in found if found[data] != _cut(data, known)]
    if not wrong:
        return
    data = wrong[0]
    single = {piece for piece in known if len(piece) == 1}
    for message, spell in {
        f"{data} falls into single bytes, though longer pieces are known": (
            lambda word: _cut(word, single)
        ),
        f"the pieces of {data} are the longest seen from its end; begin at its first "
        "byte": lambda word: _from_the_end(word, known),
        f"{data} is cut at the first piece that is known, not at the longest": (
            lambda word: _shortest(word, known)
        ),
    }.items():
        expect(any(found[word] != spell(word) for word in found), message)
    pairs = zip(found[data], _cut(data, known), strict=False)
    piece = next(piece for piece, longest in pairs if piece != longest)
    expect(
        False,
        f"{data} becomes {found[data]}; where it has {piece} a longer piece is known",
    )


def _cut(data, known):
    pieces = []
    while data:
        size = max(n for n in range(1, len(data) + 1) if data[:n] in known)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def _from_the_end(data, known):
    pieces = []
    while data:
        size = max(n for n in range(1, len(data) + 1) if data[-n:] in known)
        pieces.insert(0, data[-size:])
        data = data[:-size]
    return pieces


def _shortest(data, known):
    """The first of two or more bytes that is known, else one byte."""
    pieces = []
    while data:
        longer = (n for n in range(2, len(data) + 1) if data[:n] in known)
        size = next(longer, 1)
        pieces.append(data[:size])
        data = data[size:]
    return pieces
