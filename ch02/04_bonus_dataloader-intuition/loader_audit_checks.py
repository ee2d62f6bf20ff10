"""The checks of the exercises in `dataloader-intuition.ipynb`; see `course.exercises`.

Expected values come from real loaders over numbers, or from counting.
"""

import functools
import math
from collections.abc import Iterable

from course.exercises import call, check, describe, expect, expect_number
from dataloader import create_dataloader_v1
from loader_audit import NumberTokenizer, count_reads, number_text

# --- 2.41 What is never learned -------------------------------------------------------


@check("2.41")
def check_2_41(attempt):
    cases = [
        (num_tokens, max_length, stride, batch_size)
        for num_tokens in (30, 23, 17, 9)
        for max_length, stride in ((4, 2), (4, 4), (3, 3), (2, 1), (1, 1))
        for batch_size in (3, 2, 1)
    ]
    cases = [case for case in cases if _starts(*case)]
    found = {case: _places(call(attempt, *case)) for case in cases}
    wrong = [case for case in cases if found[case] != _unread(case, 1)]
    if wrong:
        case = wrong[0]
        words = "for {} tokens, max_length={}, stride={}, batch_size={}".format(*case)
        for message, slip in SLIPS.items():
            everywhere = all(found[case] == slip(case) for case in cases)
            expect(not everywhere, f"{words}: {message}")
        given = len(found[case])
        count = "1 place is" if given == 1 else f"{given} places are"
        expect(False, f"{words}, {count} given; that is not what a loader leaves out")
    return f"The same places as a real loader leaves out, in {len(cases)} cases."


def _places(found):
    """The places as plain numbers, whatever holds them."""
    expect(
        isinstance(found, Iterable) and not isinstance(found, str),
        f"the result is {describe(found)}, where a set of places is asked for",
    )
    places = set()
    for place in found:
        number = expect_number(place)
        whole = math.isfinite(number) and number == int(number)
        expect(whole, f"{ascii(place)} is no place in the text")
        places.add(int(number))
    return places


def _starts(num_tokens, max_length, stride, batch_size):
    """The first places of all windows in whole batches."""
    starts = range(0, num_tokens - max_length, stride)
    return starts[: len(starts) // batch_size * batch_size]


@functools.cache
def _unread(case, which):
    num_tokens, max_length, stride, batch_size = case
    loader = create_dataloader_v1(
        number_text(num_tokens),
        batch_size=batch_size,
        max_length=max_length,
        stride=stride,
        shuffle=False,
        tokenizer=NumberTokenizer(),
    )
    counts = count_reads(loader, num_tokens)[which]
    return set((counts == 0).nonzero().flatten().tolist())


# A slip is named if it explains the answers to all cases; small ones agree by chance.
SLIPS = {
    "these are the places that are never an input": lambda case: _unread(case, 0),
    "the windows of the incomplete last batch are dropped, too": (
        lambda case: _unread((*case[:3], 1), 1)
    ),
    "place 0 is never a target, since no window begins before it": (
        lambda case: _unread(case, 1) - {0}
    ),
    "the targets reach one place further than the inputs; the place after the last "
    "window is learned": lambda case: (
        _unread(case, 1) | {max(_starts(*case)) + case[1]}
    ),
    "these are the places that are learned": (
        lambda case: set(range(case[0])) - _unread(case, 1)
    ),
}


# --- 2.42 Sharing without loss --------------------------------------------------------


@check("2.42")
def check_2_42(attempt):
    sizes = [
        (windows, ranks) for windows in (12, 23, 8, 5, 1, 0) for ranks in range(1, 9)
    ]
    for windows, ranks in sizes:
        items = [f"w{number}" for number in range(windows)]
        shares = []
        for rank in range(ranks):
            share = call(attempt, list(items), rank, ranks)
            expect(
                isinstance(share, Iterable) and not isinstance(share, str),
                f"the result is {describe(share)}, where a list is asked for",
            )
            shares.append(list(share))
            for item in shares[-1]:
                expect(
                    not isinstance(item, list | tuple),
                    f"a share holds {describe(item)}, where it should hold the items "
                    "themselves",
                )
        _judge_shares(shares, items)
    return f"{len(sizes)} lists are shared, each item once, nearly evenly."


def _judge_shares(shares, items):
    words = f"{len(items)} items among {len(shares)}"
    together = [item for share in shares for item in share]
    foreign = set(together) - set(items)
    expect(not foreign, f"{words}: a share holds {ascii(foreign)}, which is no item")
    expect(
        len(shares) == 1 or not items or any(len(s) < len(items) for s in shares),
        f"{words}: every share holds all, so each item is read {len(shares)} times",
    )
    lost = [item for item in items if item not in together]
    twice = [item for item in items if together.count(item) > 1]
    expect(
        not twice,
        f"{words}: {ascii(twice[:3])} {'is' if len(twice) == 1 else 'are'} in the "
        "shares more than once",
    )
    over = len(items) % len(shares)
    rest = over and lost == items[-over:]
    expect(
        not lost,
        f"{words}: {ascii(lost[:3])} {'is' if len(lost) == 1 else 'are'} in no share"
        + ("; what a division leaves over has to go somewhere" if rest else ""),
    )
    longest, shortest = max(map(len, shares)), min(map(len, shares))
    expect(
        longest - shortest <= 1,
        f"{words}: the longest share has {longest} items and the shortest {shortest}; "
        "the others would wait",
    )
