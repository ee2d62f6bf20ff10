"""The checks of the exercises in `dataloader-intuition.ipynb`; see `course.exercises`.

Expected values come from real loaders over numbers, or from counting.
"""

from course.exercises import call, check, describe, expect, expect_no_slip
from dataloader import create_dataloader_v1
from loader_audit import NumberTokenizer, count_reads, number_text

# --- 2.41 What is never learned -------------------------------------------------------


@check("2.41")
def check_2_41(attempt):
    cases = [
        (num_tokens, max_length, stride, batch_size)
        for num_tokens in (9, 17, 23, 30)
        for max_length, stride in ((4, 4), (4, 2), (3, 3), (2, 1), (1, 1))
        for batch_size in (1, 2, 3)
    ]
    cases = [case for case in cases if _starts(*case)]
    for case in cases:
        found = call(attempt, *case)
        expect(
            isinstance(found, set | frozenset | list | tuple),
            f"the result is {describe(found)}, where a set of places is asked for",
        )
        found = set(found)
        words = "for {} tokens, max_length={}, stride={}, batch_size={}".format(*case)
        slips = {
            f"{words}: these are the places that are never an input": _unread(case, 0),
            f"{words}: the windows of the incomplete last batch are dropped, too": (
                _unread((*case[:3], 1), 1)
            ),
            f"{words}: place 0 is never a target, since no window begins before it": (
                _unread(case, 1) - {0}
            ),
            f"{words}: the targets reach one place further than the inputs; the place "
            "after the last window is learned": _unread(case, 1)
            | {max(_starts(*case)) + case[1]},
            f"{words}: these are the places that are learned": set(range(case[0]))
            - _unread(case, 1),
        }
        expect_no_slip(sorted(found), sorted(_unread(case, 1)), _sorted(slips))
        expect(
            found == _unread(case, 1),
            f"{words}, {len(found)} places are given; that is not what a loader leaves "
            "out",
        )
    return f"The same places as a real loader leaves out, in {len(cases)} cases."


def _sorted(slips):
    return {message: sorted(places) for message, places in slips.items()}


def _starts(num_tokens, max_length, stride, batch_size):
    """The first places of all windows in whole batches."""
    starts = range(0, num_tokens - max_length, stride)
    return starts[: len(starts) // batch_size * batch_size]


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
            kind = isinstance(share, list | tuple)
            expect(kind, f"the result is {describe(share)}, where a list is asked for")
            shares.append(list(share))
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
        f"{words}: {ascii(twice[:3])} stand in more than one share",
    )
    expect(
        not lost,
        f"{words}: {ascii(lost[:3])} are in no share; what a division leaves over has "
        "to go somewhere",
    )
    longest, shortest = max(map(len, shares)), min(map(len, shares))
    expect(
        longest - shortest <= 1,
        f"{words}: the longest share has {longest} items and the shortest {shortest}; "
        "the others would wait",
    )
