"""The exercise's check takes the solution, knows the stub and names mistakes."""

import pytest
import tiktoken
from tiktoken_ext import openai_public

import bpe_comparison_checks
from bpe_comparison_checks import check_2_21
from course.exercises import verify


def stub(*arguments):
    return ...


def merge_by_rank(data, ranks):
    pieces = [data[i : i + 1] for i in range(len(data))]
    while True:
        joined = [left + right for left, right in zip(pieces, pieces[1:])]
        possible = [piece for piece in joined if piece in ranks]
        if not possible:
            return pieces
        place = joined.index(min(possible, key=lambda piece: ranks[piece]))
        pieces[place : place + 2] = [joined[place]]


def by_places(data, ranks):
    """The same on the places of the cuts, as libraries do it."""
    cuts = list(range(len(data) + 1))

    def rank(i):
        return ranks.get(data[cuts[i] : cuts[i + 2]], len(ranks))

    while len(cuts) > 2:
        i = min(range(len(cuts) - 2), key=rank)
        if rank(i) == len(ranks):
            break
        del cuts[i + 1]
    return tuple(data[a:b] for a, b in zip(cuts, cuts[1:]))


def longest_first(data, ranks):
    pieces = []
    while data:
        size = max(n for n in range(1, len(data) + 1) if data[:n] in ranks)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def choosing(choose):
    """Merge where `choose` says, given the pairs (place, rank)."""

    def merge(data, ranks):
        pieces = [data[i : i + 1] for i in range(len(data))]
        while True:
            joined = [left + right for left, right in zip(pieces, pieces[1:])]
            pairs = [(i, ranks[p]) for i, p in enumerate(joined) if p in ranks]
            if not pairs:
                return pieces
            place, _ = choose(pairs)
            pieces[place : place + 2] = [joined[place]]

    return merge


def one_merge(data, ranks):
    return one_merge_of([data[i : i + 1] for i in range(len(data))], ranks)


def one_merge_of(pieces, ranks):
    joined = [left + right for left, right in zip(pieces, pieces[1:])]
    possible = [piece for piece in joined if piece in ranks]
    if possible:
        i = joined.index(min(possible, key=lambda piece: ranks[piece]))
        pieces[i : i + 2] = [joined[i]]
    return pieces


def test_exercise_2_21_merging_by_rank():
    wrong = {
        "longest": (longest_first, "work from the left"),
        "highest": (
            choosing(lambda pairs: max(pairs, key=lambda pair: pair[1])),
            "the highest rank comes first",
        ),
        "last of ties": (
            choosing(lambda pairs: min(pairs, key=lambda pair: (pair[1], -pair[0]))),
            "the last comes first",
        ),
        "once": (one_merge, "two of these still make a piece"),
        "all in one": (
            lambda data, ranks: [data] if data else [],
            "does not lead there",
        ),
        "numbers": (lambda data, ranks: list(data), "a list of bytes objects"),
        "an empty piece": (
            lambda data, ranks: merge_by_rank(data, ranks) or [b""],
            "an empty piece",
        ),
        "nothing": (lambda data, ranks: [], "joined, the pieces of"),
    }
    verify(check_2_21, merge_by_rank, stub, wrong)


def test_exercise_2_21_knows_the_first_pair_from_the_left():
    with pytest.raises(AssertionError, match="work from the left"):
        check_2_21(choosing(min))


@pytest.mark.parametrize("merges", [0, 2])
def test_exercise_2_21_says_that_merging_stopped_too_early(merges):
    def few(data, ranks):
        pieces = [data[i : i + 1] for i in range(len(data))]
        for _ in range(merges):
            pieces = one_merge_of(pieces, ranks)
        return pieces

    with pytest.raises(AssertionError, match="two of these still make a piece"):
        check_2_21(few)


def test_exercise_2_21_takes_other_right_answers(capsys):
    check_2_21(by_places)
    check_2_21(lambda data, ranks: map(bytes, merge_by_rank(data, ranks)))
    check_2_21(lambda data, ranks: (piece for piece in merge_by_rank(data, ranks)))
    assert "correct" in capsys.readouterr().out


@pytest.mark.parametrize("solution", [merge_by_rank, by_places])
def test_merging_by_rank_is_what_tiktoken_does(solution):
    ranks, encoding = (
        openai_public.gpt2()["mergeable_ranks"],
        tiktoken.get_encoding("gpt2"),
    )
    for word in (" bootlace", "starlings", " \u5ead\u3067", "aaaaaaaaaa", "3.14159"):
        for chunk in encoding.decode_tokens_bytes(encoding.encode_ordinary(word)):
            assert list(solution(chunk, ranks)) == [chunk]
    for word in (" bootlace", " starlings", " Quorlamp", "\u5ead", "bbbbbbbbbbb"):
        pieces = [ranks[piece] for piece in solution(word.encode(), ranks)]
        assert pieces == encoding.encode_ordinary(word)
    assert bpe_comparison_checks.RANKS[b"boot"] == len(bpe_comparison_checks.RANKS) - 1
