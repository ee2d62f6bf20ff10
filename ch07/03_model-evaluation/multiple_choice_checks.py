"""The check of the exercise in `multiple-choice.ipynb`; see `course.exercises`.

Expected values come from plain loops over Python's own floats and texts.
"""

from course.exercises import call, check, expect, expect_number

# --- 7.32 The likeliest choice for each byte ------------------------------------------

CASES = [  # (log p of each choice, the choices)
    ([-6.0, -2.0, -9.0, -8.0], ["in the north", "up", "in the deep south", "down"]),
    (
        [-7.0, -4.8, -6.0, -9.0],
        ["na\u00efvet\u00e9", "gloves", "\u65e5\u672c\u8a9e", "hats"],
    ),
    ([-3.0, -3.0, -3.0, -3.0], ["a", "abc", "ab", "abcd"]),
    ([-5.0, -4.0], ["ice", "a"]),
    ([-10.0, -5.6, -7.0], ["a b c d e", "abcd", "\u00fc \u00e9"]),
    ([-1.0], ["only"]),
    ([-2.0, -2.5], ["in the deep", "up"]),
    ([-1.0, -3.6], ["a", "abcd"]),  # the blank before them would decide
    ([-10.0, -10.5], ["nine signs", "ten signs x"]),
]


def _best(scores):
    return max(range(len(scores)), key=lambda i: scores[i])


_WAYS = {
    "the sums are compared as they are: a long choice pays for each of its bytes": (
        lambda p, t: p
    ),
    "it divides by the number of characters; some of them have several bytes": (
        lambda p, t: p / len(t)
    ),
    "it divides by the number of words": lambda p, t: p / len(t.split()),
    "the blank before a choice is counted as one of its bytes": (
        lambda p, t: p / (len(t.encode()) + 1)
    ),
    "it takes the least likely choice": lambda p, t: -p / len(t.encode()),
    "log p is multiplied by the length and not divided": (
        lambda p, t: p * len(t.encode())
    ),
    "the longest choice is taken, whatever its probability": lambda p, t: len(t),
}


@check("7.32")
def check_7_32(attempt):
    answers = []
    for logprobs, choices in CASES:
        found = expect_number(call(attempt, list(logprobs), list(choices)))
        expect(
            found % 1 == 0 and 0 <= found < len(choices),
            f"{found} is not the place of one of {len(choices)} choices, from 0",
        )
        answers.append(int(found))

    def by(way):
        return [
            _best([way(p, text) for p, text in zip(logprobs, choices)])
            for logprobs, choices in CASES
        ]

    right = by(lambda p, t: p / len(t.encode()))
    if answers != right:
        for message, way in _WAYS.items():
            expect(answers != by(way), message)
    for found, wanted, (logprobs, choices) in zip(answers, right, CASES):
        expect(
            found == wanted,
            f"of {choices} with log p {logprobs} it takes {choices[found]!r}, which is "
            "not the likeliest for each byte",
        )
    return f"{len(CASES)} questions, some with letters of several bytes."
