"""The checks of chapter 1's exercises; `course.exercises` says how a check answers.

A check tries a function on inputs that no cell of the notebook shows. It names the
likely mistake, never the answer. Expected values come from the plainest way to get
them.
"""

import math
from numbers import Integral, Real

from course.exercises import (
    call,
    check,
    describe,
    expect,
    expect_close,
    expect_equal,
    expect_no_slip,
    expect_number,
)


def _words(text):
    return text.split()


# A small text whose counts can be checked by eye.
RHYME = _words("the cat saw the dog and the cat ran to the barn")


def _shares(found):
    """A dictionary whose values are numbers of any library, as plain numbers."""
    expect(isinstance(found, dict), f"return a dictionary, not {describe(found)}")
    numbers = {}
    for word, share in found.items():
        scalar = describe(share).endswith(" of shape ()")
        is_number = scalar or isinstance(share, Real)
        expect(is_number, f"the share of {word!r} is {describe(share)}, not a number")
        numbers[word] = share if isinstance(share, Integral) else float(share)
    return numbers


# --- 1.1 A model in five lines --------------------------------------------------------


@check("1.1")
def check_1_1(attempt):
    found = _shares(call(attempt, list(RHYME), "the"))
    expect(
        set(found) != {"and", "saw", "to"},
        "these are the words that come before the word, not after it",
    )
    expect(
        set(found) == {"cat", "dog", "barn"},
        f"the words after 'the' in {' '.join(RHYME)!r} are not the keys of the result",
    )
    expect(
        not all(isinstance(share, Integral) for share in found.values()),
        "the values are counts; a share is a part of the whole",
    )
    expect(
        len(set(found.values())) > 1,
        "every word got the same share, though one of them follows twice",
    )
    shares = {"cat": 0.5, "dog": 0.25, "barn": 0.25}
    of_the_text = {word: 4 * share / len(RHYME) for word, share in shares.items()}
    slips = {
        "the number of words that follow is the whole, not the length of the text": (
            of_the_text
        ),
        "these are percents; the shares of all words add up to 1": {
            word: 100 * share for word, share in shares.items()
        },
    }
    expect_no_slip(found, shares, slips)
    total = float(sum(found.values()))
    expect(math.isclose(total, 1, abs_tol=1e-6), f"the shares add up to {total:.3g}")
    expect_close(found, shares, "the shares are not right")
    thirds = _shares(call(attempt, _words("a cat a dog a barn"), "a"))
    expect_close(
        thirds, dict.fromkeys(shares, 1 / 3), "three words share evenly; do not round"
    )
    ending = _shares(call(attempt, _words("no no no"), "no"))
    expect_close(
        ending,
        {"no": 1.0},
        "a word that also ends the text gets shares that do not add up to 1; nothing "
        "follows the last one, so it does not count",
    )
    for words, before in ((RHYME, "barn"), (RHYME, "pig"), ([], "the")):
        expect_equal(
            call(attempt, list(words), before),
            {},
            "a word that nothing follows should get an empty dictionary",
        )
    return "Shares add up to 1, also for a word that ends the text."


# --- 1.2 The loss, by itself ----------------------------------------------------------


@check("1.2")
def check_1_2(attempt):
    found = call(attempt, [1 / 2, 1 / 8, 1 / 32])  # 1, 3 and 5 bits
    found = expect_number(found)
    expect(found >= 0, "a surprise is never negative; there is a sign missing")
    slips = {
        "this is in natural units; a bit belongs to the logarithm with base 2": (
            math.log(8)
        ),
        "the surprises were added up; the loss is their mean": 9,
        "the probabilities were averaged before the logarithm; average the surprises": (
            -math.log2((1 / 2 + 1 / 8 + 1 / 32) / 3)
        ),
        "this is the perplexity; the loss is the power to which 2 is raised": 8,
    }
    expect_no_slip(found, 3, slips)
    expect_close(found, 3.0, "the mean surprise of 1/2, 1/8 and 1/32 is not right")
    uneven = expect_number(call(attempt, [1 / 2, 1 / 2, 1 / 16]))  # 1, 1 and 4 bits
    slips = {"this is the surprise in the middle; the mean counts all of them": 1}
    expect_no_slip(uneven, 2, slips)
    expect_close(uneven, 2.0, "the mean surprise of 1/2, 1/2 and 1/16 is not right")
    long = expect_number(call(attempt, [1 / 2] * 5000))
    expect_close(
        long,
        1.0,
        "5,000 coins have a mean surprise of one bit; the product of so many "
        "probabilities is 0 in a computer, the sum of their surprises is a number",
    )
    sure = expect_number(call(attempt, [1.0, 1.0]))
    expect_close(sure, 0.0, "a model that was always sure has no surprise")
    seven = expect_number(call(attempt, [0.25] * 7))
    expect_close(seven, 2.0, "seven equal surprises have that mean")
    expect(
        expect_number(call(attempt, [0.5, 0.0])) == math.inf,
        "a word with probability zero should make the loss infinite",
    )
    return "The mean surprise in bits, infinite for the impossible."


# --- 1.3 Between the parrot and the dice ----------------------------------------------


@check("1.3")
def check_1_3(attempt):
    shares = {"edwin": 0.6, "ralph": 0.3, "it": 0.1}
    given = dict(shares)
    halved = _shares(call(attempt, given, 0.5))
    expect(given == shares, "the dictionary that was passed in has been changed")
    expect_equal(sorted(halved), sorted(shares), "the words are not the ones passed in")
    expect(
        min(halved.values()) > 0,
        "an unlikely word has vanished; at temperature 0.5 each word keeps a share",
    )
    expect(
        not math.isclose(halved["edwin"] / halved["ralph"], 2**0.5),
        "a low temperature made the words more alike; look at the power again",
    )
    expect(
        not math.isclose(halved["edwin"] / halved["ralph"], 2),
        "the words stand to each other as before; dividing by the temperature does "
        "nothing once they are scaled to 1",
    )
    total = float(sum(halved.values()))
    expect(
        math.isclose(total, 1, abs_tol=1e-6),
        f"the results add up to {total:.3g} and not to 1",
    )
    expect_close(
        halved,
        _by_powers(shares, 2),
        "the probabilities at temperature 0.5 are not right",
    )
    same, warm = _shares(call(attempt, shares, 1)), _shares(call(attempt, shares, 4))
    expect_close(same, shares, "temperature 1 changes something")
    expect_close(warm, _by_powers(shares, 0.25), "temperature 4 is not right")
    flat = {f"word{i}": 0.0001 for i in range(10_000)}
    cold = _shares(call(attempt, flat, 0.01))
    expect_close(
        cold, flat, "ten thousand equal words did not stay equal at temperature 0.01"
    )
    one_ahead = {**flat, "word0": 0.0002}  # on the way to 1 with all the others
    best = _shares(call(attempt, one_ahead, 0.01))["word0"]
    expect(
        best > 0.999,
        f"at temperature 0.01 a word twice as likely as each other takes nearly all; "
        f"here it gets {best:.3g}",
    )
    return "Cold favours the likely, warm evens out, and 0.01 does not break it."


def _by_powers(shares, power):
    raised = {word: share**power for word, share in shares.items()}
    return {word: value / sum(raised.values()) for word, value in raised.items()}


# --- 1.4 Caught copying ---------------------------------------------------------------


@check("1.4")
def check_1_4(attempt):
    learned = _words("who is at the foot of the old tree he asked and she sang out")
    written = _words("she asked at the foot of the old ladder and he sang")
    found = call(attempt, list(written), list(learned))
    whole = isinstance(found, Integral) and not isinstance(found, bool)
    expect(whole, f"return one whole number, not {describe(found)}")
    expect(
        found != 11,
        "words count here wherever they stand; a run has neighbours in the same order",
    )
    expect(
        found != 8,  # with "and" or "he" and "sang" behind the run
        "the run has gaps; copied words must be neighbours in both lists",
    )
    expect(
        found != 5,
        "one word of the run is missing; count words, not the steps between them",
    )
    expect_equal(found, 6, "the longest run is not found")
    expect_equal(
        call(attempt, _words("he ran"), _words("the ranger")),
        0,
        "parts of words were compared; 'he' is no word of 'the ranger'",
    )
    expect_equal(
        call(attempt, _words("q a b c"), _words("a b c")),
        3,
        "a run is missed that begins after the first written word, or ends a list",
    )
    expect_equal(
        call(attempt, _words("a b c"), _words("x a b y a b c")),
        3,
        "a longer run that begins later in the learned text is missed",
    )
    expect_equal(
        call(attempt, _words("no no no no"), _words("no no")),
        2,
        "a run cannot be longer than what was learned",
    )
    for pair in (([], learned), (written, []), (_words("a b"), _words("c d"))):
        expect_equal(call(attempt, *pair), 0, "without a common word the run is 0")
    return "Whole words, in order, without gaps, wherever the run stands."
