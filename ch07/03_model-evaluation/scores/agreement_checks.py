"""The check of the exercise in `correlation-analysis.ipynb`; see `course.exercises`."""

import itertools

from course.exercises import as_list, call, check, expect

# --- 7.31 Both orders -----------------------------------------------------------------

VERDICTS = ("one", "other", "tie")
LETTER_PAIRS = list(itertools.product("AB", repeat=2))


def _verdict(first, second):
    """What a judge said of the one and the other, shown as A and B, then as B and A."""
    if (first, second) == ("A", "B"):
        return "one"
    return "other" if (first, second) == ("B", "A") else "tie"


_ORDER_SLIPS = {
    "the letters are compared as they are; in the second order the one reply is B": {
        ("A", "A"): "one",
        ("B", "B"): "other",
        ("A", "B"): "tie",
        ("B", "A"): "tie",
    },
    "the second order is never looked at": {
        ("A", "A"): "one",
        ("A", "B"): "one",
        ("B", "A"): "other",
        ("B", "B"): "other",
    },
    "the first order is never looked at": {
        ("A", "A"): "other",
        ("A", "B"): "one",
        ("B", "A"): "other",
        ("B", "B"): "one",
    },
    "the one and the other are exchanged": {
        ("A", "A"): "tie",
        ("A", "B"): "other",
        ("B", "A"): "one",
        ("B", "B"): "tie",
    },
}


@check("7.31")
def check_7_31(attempt):
    turned = LETTER_PAIRS[1:] + LETTER_PAIRS[:1]
    draws = [LETTER_PAIRS, turned, LETTER_PAIRS[:1] * 3, []]
    seen = {}
    for pairs in draws:
        first, second = [a for a, _ in pairs], [b for _, b in pairs]
        found = as_list(call(attempt, list(first), list(second)))
        expect(
            len(found) == len(pairs),
            f"for {len(pairs)} pairs there are {len(found)} verdicts",
        )
        for pair, verdict in zip(pairs, found):
            expect(
                str(verdict) in VERDICTS,
                f"{verdict!r:.40} is none of {', '.join(VERDICTS)}",
            )
            seen.setdefault(pair, str(verdict))
            expect(
                seen[pair] == str(verdict),
                "the same two letters get another verdict at another place in the list",
            )
    for message, slip in _ORDER_SLIPS.items():
        expect(seen != slip, message)
    for (first, second), verdict in seen.items():
        expect(
            verdict == _verdict(first, second),
            f"the judge chose {first} and then, places exchanged, {second}: that is "
            f"not {verdict!r}",
        )
    return "Both consistent verdicts, and both contradictions as ties."
