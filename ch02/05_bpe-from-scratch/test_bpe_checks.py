"""Every exercise check takes the solution, knows the stub and names mistakes."""

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
    "a number": (lambda *_: 3, "not a set of ids"),
    "one missing": (
        lambda *given: sorted(stepping_stones(*given))[1:],
        "are missing",
    ),
}


def test_T_1():
    verify(check_T_1, stepping_stones, stub, WRONG_T_1)


def test_T_1_takes_any_collection():
    check_T_1(lambda *given: list(stepping_stones(*given)))
    check_T_1(lambda *given: frozenset(stepping_stones(*given)))


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
    "longest": (lambda t, r: cuts(t, r)[-1], "the longest first part"),
    "shortest": (lambda t, r: cuts(t, r)[0], "the shortest first part"),
    "lowest": (lowest, "that of the lowest ranks"),
    "turned": (lambda t, r: find_merge(t, r)[::-1], "the wrong way round"),
    "ranks": (lambda t, r: [r[part] for part in find_merge(t, r)], "holds ranks"),
    "bytes": (lambda t, r: [t[i : i + 1] for i in range(len(t))], "parts, not two"),
    "text": (lambda t, r: "ab", "not a pair of bytes"),
}


def test_T_2():
    verify(check_T_2, find_merge, stub, WRONG_T_2)


def test_T_2_takes_another_way():
    check_T_2(until_two_are_left)
