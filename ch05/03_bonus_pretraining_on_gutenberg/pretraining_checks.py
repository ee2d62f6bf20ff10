"""The checks of the exercises in `pretraining.ipynb`; see `course.exercises`.

Expected values are counted with Python's own sets, or come from the definition.
"""

import math
import random

import numpy as np

from course.exercises import call, check, expect, expect_number

# --- 5.31 A text inside another -------------------------------------------------------


@check("5.31")
def check_5_31(attempt):
    draw = random.Random(5)
    cases = [_sets(draw, *sizes) for sizes in _SIZES]
    for one, other in cases:
        found = expect_number(call(attempt, one.copy(), other.copy()))
        wanted = _contained(one, other)
        if math.isclose(found, wanted, abs_tol=1e-6):
            continue
        words = f"for sets of {len(one)} and {len(other)} shingles"
        for message, slip in CONTAINMENT_SLIPS.items():
            same = math.isclose(found, slip(one, other), abs_tol=1e-6)
            expect(not same, f"{words}: {message}")
        words += f" the result is {found:.4f}, which is not "
        some = min(len(one), len(other)) > 0
        expect(False, words + ("that share" if some else "0, as of an empty set"))
    return f"The share of the smaller set, in {len(cases)} cases, either way round."


_SIZES = (
    (40, 200, 30),
    (200, 40, 30),
    (90, 90, 90),
    (50, 70, 0),
    (7, 900, 7),
    (9, 0, 0),
)


def _sets(draw, size, other_size, both):
    numbers = draw.sample(range(1, 2**63), size + other_size - both)
    one = numbers[:size]
    other = numbers[size - both :]
    return tuple(np.unique(np.array(part, dtype=np.uint64)) for part in (one, other))


def _both(one, other):
    return len(set(one.tolist()) & set(other.tolist()))


def _contained(one, other):
    smaller = min(len(one), len(other))
    return _both(one, other) / smaller if smaller else 0.0


CONTAINMENT_SLIPS = {
    "this is the Jaccard similarity, in which the longer text counts as well": (
        lambda one, other: _both(one, other) / max(len({*one, *other}), 1)
    ),
    "this is the share of the first set; the second may be the smaller one": (
        lambda one, other: _both(one, other) / max(len(one), 1)
    ),
    "this is the share of the larger set": (
        lambda one, other: _both(one, other) / max(len(one), len(other), 1)
    ),
    "this is how many they share, not the share": _both,
}


# --- 5.32 Bits for each byte ----------------------------------------------------------


@check("5.32")
def check_5_32(attempt):
    texts = (
        "The lamp.",
        "Caf\xe9, d\xe9j\xe0 vu",
        "\u201cO\xf9?\u201d",
        "\u6d77\u8fba\u306e\u706f\u53f0",
    )
    cases = [
        (loss, count, text) for text in texts for loss, count in ((4.2, 7), (0.5, 3))
    ]
    for loss, count, text in cases:
        found = expect_number(call(attempt, loss, count, text))
        total = loss * count
        if math.isclose(found, total / math.log(2) / len(text.encode()), rel_tol=1e-5):
            continue
        words = f"for {count} tokens at {loss} nats and the text {ascii(text)}"
        slips = {
            "these are bits for each character, and a character may be several "
            "bytes": total / math.log(2) / len(text),
            "these are nats for each byte": total / len(text.encode()),
            "these are bits for each token": loss / math.log(2),
            "these are the bits of the whole text": total / math.log(2),
            "this is the loss of a single token, not of all of them, for each byte": (
                loss / math.log(2) / len(text.encode())
            ),
            "nats were multiplied by ln 2 to get bits; one bit is ln 2 nats": (
                total * math.log(2) / len(text.encode())
            ),
        }
        for message, slip in slips.items():
            expect(not math.isclose(found, slip, rel_tol=1e-5), f"{words}: {message}")
        expect(
            False, f"{words} the result is {found:.4f}, which is not bits for each byte"
        )
    return f"Bits for each byte, in {len(cases)} cases, in other alphabets too."
