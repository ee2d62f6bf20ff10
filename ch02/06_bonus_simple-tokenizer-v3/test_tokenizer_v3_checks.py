"""Every exercise check takes the solution, knows the stub and names mistakes."""

import re

import pytest

from course.exercises import verify
from simple_tokenizer_v3 import split_keeping_white_space
from tokenizer_v3_checks import check_2_61, check_2_62

PIECE = r" ?(?:--|\w+(?:[-']\w+)*|[^\w\s])"


def stub(*arguments):
    return ...


def pattern(rest):
    return re.compile(f"{PIECE}|{rest}").findall


# --- 2.61 -----------------------------------------------------------------------------


def test_exercise_2_61_runs_of_white_space():
    wrong = {
        "the run takes the blank": (
            re.compile(r"\s+|--|\w+(?:[-']\w+)*|[^\w\s]").findall,
            "has lost the blank",
        ),
        "GPT-2's rule": (pattern(r"\s+(?!\S)|\s+"), "is cut before its last character"),
        "the plain run last": (pattern(r"\s+"), "has swallowed the blank"),
        "the notebook's": (split_keeping_white_space, "still a token of its own"),
        "white space dropped": (re.compile(PIECE).findall, "joined, the tokens of"),
        "words only of letters": (
            re.compile(r" ?[a-z]+|\s+(?= \S)|\s+|.").findall,
            "not the runs and words asked for",
        ),
        "a text": (lambda text: text, "should be a list of strings"),
    }
    verify(check_2_61, pattern(r"\s+(?= \S)|\s+"), stub, wrong)


def runs_joined(text):
    tokens = []
    for token in split_keeping_white_space(text):
        if tokens and (tokens[-1] + token).isspace():
            tokens[-1] += token
        else:
            tokens.append(token)
    return tokens


@pytest.mark.parametrize(
    "other",
    [
        runs_joined,
        pattern(r"\s+(?= ?\Z)|\s+(?= \S)|\s+(?!\s)"),
        lambda text: tuple(runs_joined(text)),
        lambda text: (token for token in runs_joined(text)),
    ],
)
def test_exercise_2_61_takes_other_right_answers(other, capsys):
    check_2_61(other)
    assert "correct" in capsys.readouterr().out


# --- 2.62 -----------------------------------------------------------------------------


def spell(data, known):
    pieces, start = [], 0
    while start < len(data):
        stop = len(data)
        while data[start:stop] not in known:
            stop -= 1
        pieces.append(data[start:stop])
        start = stop
    return pieces


def spell_again(data, known):
    """The same, the other way round: a tuple, and a call of itself."""
    for size in range(len(data), 0, -1):
        if data[:size] in known:
            return (data[:size], *spell_again(data[size:], known))
    return ()


def from_the_end(data, known):
    pieces = []
    while data:
        start = 0
        while data[start:] not in known:
            start += 1
        pieces.insert(0, data[start:])
        data = data[:start]
    return pieces


def first_longer(data, known):
    pieces = []
    while data:
        sizes = (n for n in range(2, len(data) + 1) if data[:n] in known)
        size = next(sizes, 1)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def at_most_four(data, known):
    pieces = []
    while data:
        size = max(n for n in range(1, min(4, len(data)) + 1) if data[:n] in known)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def fewest(data, known):
    best = [[]]
    for stop in range(1, len(data) + 1):
        ends = [i for i in range(stop) if data[i:stop] in known]
        best.append(min((best[i] + [data[i:stop]] for i in ends), key=len))
    return best[-1]


def anywhere(data, known):
    """The longest piece of the whole word first, then both sides of it."""
    if not data:
        return []
    piece = max((p for p in known if p in data), key=lambda p: (len(p), -data.find(p)))
    before, _, after = data.partition(piece)
    return [*anywhere(before, known), piece, *anywhere(after, known)]


def with_an_empty_piece(data, known):
    return [*spell(data, known), b""]


@pytest.mark.parametrize("attempt", [fewest, anywhere, at_most_four])
def test_exercise_2_62_names_no_slip_by_chance(attempt):
    """Known mistake: they agree with "from the end" in a word, and were called so."""
    with pytest.raises(AssertionError) as said:
        check_2_62(attempt)
    assert "a longer piece is known" in str(said.value)


def test_exercise_2_62_longest_piece_first():
    wrong = {
        "bytes": (
            lambda data, known: [data[i : i + 1] for i in range(len(data))],
            "falls into single bytes",
        ),
        "from the end": (from_the_end, "seen from its end"),
        "shortest": (first_longer, "at the first piece that is known"),
        "numbers": (lambda data, known: list(data), "data[i] is a number"),
        "whole": (
            lambda data, known: [data] * bool(data),
            "is b'bootlace', which is not among the known",
        ),
        "stops early": (
            lambda data, known: spell(data, known)[:2],
            "joined, the pieces",
        ),
        "empty": (with_an_empty_piece, "is b'', which is not among the known"),
        "not the longest": (at_most_four, "a longer piece is known"),
    }
    verify(check_2_62, spell, stub, wrong)


def one_by_one(data, known):
    yield from spell(data, known)


@pytest.mark.parametrize("other", [spell_again, one_by_one])
def test_exercise_2_62_takes_other_right_answers(other, capsys):
    check_2_62(other)
    assert "correct" in capsys.readouterr().out
