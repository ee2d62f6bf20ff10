"""The check of the exercise in `compare-bpe-tiktoken.ipynb`; see `course.exercises`.

Expected pieces come from the plainest loop, and the loop's from tiktoken in the tests.
"""

import random
from collections.abc import Iterable

from course.exercises import call, check, describe, expect, expect_no_slip

# A vocabulary made for this check: the rank of a piece is its place.
_LEARNED = (b"oo", b"ot", b"bo", b"oot", b"at", b"boo", b"tb", b"aa", b"aaa", b"boot")
RANKS = {bytes([value]): value for value in range(256)}
RANKS |= {piece: 256 + place for place, piece in enumerate(_LEARNED)}


@check("2.21")
def check_2_21(attempt):
    words = [
        b"boot",
        b"bootboot",
        b"oobot",
        b"tboot",
        b"aaaaa",
        b"",
        b"x",
        b"boat",
        "\u00e9\u5ead".encode(),
    ]
    draw = random.Random(221)
    words += [bytes(draw.choices(b"abot", k=draw.randrange(2, 14))) for _ in range(150)]
    for data in words:
        pieces = call(attempt, data, dict(RANKS))
        several = isinstance(pieces, Iterable)
        kind = several and not isinstance(pieces, (str, bytes, dict, set, frozenset))
        expect(
            kind,
            f"for {data} the result is {describe(pieces)}, not a list of bytes objects",
        )
        pieces = list(pieces)
        expect(
            all(isinstance(piece, bytes) for piece in pieces),
            f"for {data} the result is {pieces!r:.80}, not a list of bytes objects",
        )
        expect(
            b"".join(pieces) == data,
            f"joined, the pieces of {data} are {b''.join(pieces)}",
        )
        expect(
            b"" not in pieces, f"{data} ends as {pieces}: an empty piece is no piece"
        )
        ends = f"{data} ends as {pieces}: "
        from_the_left = (
            f"{ends}that is what work from the left gives; "
            "the lowest rank comes first, "
        )
        slips = {
            f"{ends}of several places with the lowest rank the last comes first here, "
            "where the first should": _merged(data, _last_of_lowest),
            f"{from_the_left}wherever it stands": _merged(data, min),
            f"{from_the_left}not the longest piece": _longest(data),
            f"{ends}the highest rank comes first, where the lowest should": (
                _merged(data, _highest)
            ),
        }
        right = _merged(data, _lowest)
        expect_no_slip(pieces, right, slips)
        joined = [left + right for left, right in zip(pieces, pieces[1:])]
        expect(
            not any(piece in RANKS for piece in joined),
            f"{ends}two of these still make a piece; merge until none do",
        )
        expect(
            pieces == right,
            f"{ends}taking the lowest rank does not lead there",
        )
    return f"{len(words)} words fall into the pieces that the lowest rank gives."


def _lowest(pairs):
    return min(pairs, key=lambda pair: pair[1])  # of equal ranks the first


def _last_of_lowest(pairs):
    return min(pairs, key=lambda pair: (pair[1], -pair[0]))


def _highest(pairs):
    return max(pairs, key=lambda pair: pair[1])


def _merged(data, choose):
    """The pieces of data when `choose` picks the next of the pairs (place, rank)."""
    pieces = [data[i : i + 1] for i in range(len(data))]
    while True:
        joined = [left + right for left, right in zip(pieces, pieces[1:])]
        pairs = [(i, RANKS[piece]) for i, piece in enumerate(joined) if piece in RANKS]
        if not pairs:
            return pieces
        place, _ = choose(pairs)
        pieces[place : place + 2] = [joined[place]]


def _longest(data):
    pieces = []
    while data:
        size = max(n for n in range(1, len(data) + 1) if data[:n] in RANKS)
        pieces.append(data[:size])
        data = data[size:]
    return pieces
