"""Every exercise check takes the solution, knows the stub and names mistakes."""

import numpy as np
import pytest
import torch

from bpe_checks import check_T_1, check_T_2
from course.exercises import verify


def stub(*arguments):
    """A function of which only the docstring is there."""
    return ...


# --- T.1 -----------------------------------------------------------------------------


def stepping_stones(tokenizer, text):
    return set(tokenizer.new_ids.values()) - set(tokenizer.encode(text))


def with_bytes(tokenizer, text):
    plain = set(tokenizer.token_bytes) - set(tokenizer.special_tokens.values())
    return plain - set(tokenizer.encode(text))


def with_special(tokenizer, text):
    special = set(tokenizer.special_tokens.values())
    return stepping_stones(tokenizer, text) | special


def with_both(tokenizer, text):
    return set(tokenizer.token_bytes) - set(tokenizer.encode(text))


def that_occur(tokenizer, text):
    return set(tokenizer.new_ids.values()) & set(tokenizer.encode(text))


def by_letters(tokenizer, text):
    tokens = tokenizer.token_bytes
    return {i for i in tokenizer.new_ids.values() if tokens[i] not in text.encode()}


def as_bytes(tokenizer, text):
    return {tokenizer.token_bytes[i] for i in stepping_stones(tokenizer, text)}


WRONG_T_1 = {
    "bytes": (with_bytes, "single bytes are counted"),
    "special": (with_special, "the special token is counted"),
    "both": (with_both, "bytes and special tokens"),
    "occur": (that_occur, "that do occur"),
    "letters": (by_letters, "without its id being there"),
    "as bytes": (as_bytes, "not their ids"),
    "a number": (lambda *_: 3, "the number 3, not a set"),
    "a dictionary": (
        lambda *given: dict.fromkeys(stepping_stones(*given)),
        "a dict of",
    ),
    "pairs": (lambda tokenizer, text: list(tokenizer.new_ids), "holds pairs or lists"),
    "one missing": (
        lambda *given: sorted(stepping_stones(*given))[1:],
        "are missing",
    ),
}


def test_T_1():
    verify(check_T_1, stepping_stones, stub, WRONG_T_1)


def spoils(tokenizer, text):
    """Right: the ids are kept before the merges are thrown away."""
    found = stepping_stones(tokenizer, text)
    tokenizer.new_ids.clear()
    tokenizer.token_bytes.clear()
    return found


def with_numpy(tokenizer, text):
    return np.setdiff1d(list(tokenizer.new_ids.values()), tokenizer.encode(text))


def with_torch(tokenizer, text):
    return torch.tensor(sorted(stepping_stones(tokenizer, text)), dtype=torch.int64)


@pytest.mark.parametrize(
    "right",
    [
        lambda *given: list(stepping_stones(*given)),
        lambda *given: frozenset(stepping_stones(*given)),
        lambda *given: dict.fromkeys(stepping_stones(*given)).keys(),
        lambda *given: (i for i in stepping_stones(*given)),
        lambda *given: filter(None, stepping_stones(*given)),
        with_numpy,
        with_torch,
        spoils,
    ],
)
def test_T_1_takes_any_collection(right):
    check_T_1(right)


def test_T_1_asks_for_the_first_learned_id():
    with pytest.raises(AssertionError, match="some ids are missing, or are there"):
        check_T_1(lambda *given: {i for i in stepping_stones(*given) if i > 256})


def test_T_1_asks_the_same_after_an_answer_that_changed_its_tokenizer():
    check_T_1(spoils)
    check_T_1(stepping_stones)
    with pytest.raises(AssertionError, match="some ids are missing, or are there"):
        check_T_1(lambda tokenizer, text: set(tokenizer.new_ids.values()))


# --- T.2 -----------------------------------------------------------------------------


def join_lowest(token, ranks, most):
    """Single bytes, joined while a joint rank is lower than `most`."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 1:
        joint = [ranks.get(a + b, most) for a, b in zip(parts, parts[1:])]
        if min(joint) >= most:
            break
        place = joint.index(min(joint))
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts


def find_merge(token, ranks):
    return join_lowest(token, ranks, ranks[token])


def until_two_are_left(token, ranks):
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        places = range(len(parts) - 1)
        joint = [ranks.get(parts[i] + parts[i + 1], len(ranks)) for i in places]
        i = min(places, key=joint.__getitem__)
        parts = [*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :]]
    return tuple(parts)


def cuts(token, ranks):
    ways = [(token[:i], token[i:]) for i in range(1, len(token))]
    return [way for way in ways if way[0] in ranks and way[1] in ranks]


def lowest(token, ranks):
    return min(cuts(token, ranks), key=lambda way: ranks[way[0]] + ranks[way[1]])


WRONG_T_2 = {
    "no limit": (lambda t, r: join_lowest(t, r, len(r)), "in one piece"),
    "longest": (lambda t, r: cuts(t, r)[-1], "every cut is the one with the longest"),
    "shortest": (lambda t, r: cuts(t, r)[0], "every cut is the one with the shortest"),
    "lowest": (lowest, "that of the lowest ranks"),
    "all ways": (cuts, "holds whole cuts"),
    "one part": (lambda t, r: [t[:-1]], "has one part, not two"),
    "a set": (lambda t, r: set(find_merge(t, r)), "a set of 2"),
    "turned": (lambda t, r: find_merge(t, r)[::-1], "the wrong way round"),
    "ranks": (lambda t, r: [r[part] for part in find_merge(t, r)], "holds numbers"),
    "lists": (lambda t, r: [list(part) for part in find_merge(t, r)], "are lists of"),
    "bytes": (lambda t, r: [t[i : i + 1] for i in range(len(t))], "parts, not two"),
    "text": (lambda t, r: "ab", "text 'ab', not a pair"),
}


def test_T_2():
    verify(check_T_2, find_merge, stub, WRONG_T_2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda t, r: list(t), "the result holds numbers"),
        (
            lambda t, r: tuple(map(tuple, find_merge(t, r))),
            "parts are lists of numbers",
        ),
    ],
)
def test_T_2_takes_bytes_as_numbers_for_what_they_are(wrong, message):
    """A token of two bytes gives two numbers; they are no ranks and no cuts."""
    with pytest.raises(AssertionError, match=message):
        check_T_2(wrong)


def pops_its_own(token, ranks):
    """All merges of a lower rank and no others: the token's own is taken out."""
    return tuple(join_lowest(token, ranks, ranks.pop(token)))


@pytest.mark.parametrize(
    "right",
    [
        until_two_are_left,
        pops_its_own,
        lambda t, r: list(map(bytearray, find_merge(t, r))),
        lambda t, r: tuple(map(memoryview, find_merge(t, r))),
        lambda t, r: (part for part in find_merge(t, r)),
    ],
)
def test_T_2_takes_another_way(right):
    check_T_2(right)


def test_T_2_names_what_it_saw_and_not_how_it_came_about():
    """The right part of the lowest rank: single bytes have the lowest."""
    with pytest.raises(AssertionError, match="every cut is the one with the longest"):
        check_T_2(lambda t, r: min(cuts(t, r), key=lambda way: r[way[1]]))


def test_T_2_asks_the_same_after_an_answer_that_changed_its_ranks():
    check_T_2(pops_its_own)
    check_T_2(find_merge)
