"""Each check of chapter 1 takes its solution and its stub, and names planted mistakes.

The solutions here are the ones of `exercise-solutions.ipynb`. An exercise whose check
accepts a wrong answer, or refuses a right one, is worse than none.
"""

import itertools
import math
from collections import Counter

import ch01_checks
from course.exercises import verify


def stub(*arguments):
    return ...


# --- 1.1 ------------------------------------------------------------------------------


def next_word_shares(words, before):
    after = Counter(b for a, b in zip(words, words[1:]) if a == before)
    return {word: count / after.total() for word, count in after.items()}


def counts_only(words, before):
    return dict(Counter(b for a, b in zip(words, words[1:]) if a == before))


def words_in_front(words, before):
    return next_word_shares(words[::-1], before)


def shares_of_the_text(words, before):
    return {w: n / len(words) for w, n in counts_only(words, before).items()}


def shares_with_the_end(words, before):
    counts = counts_only(words, before)
    return {word: count / words.count(before) for word, count in counts.items()}


def each_word_once(words, before):
    after = counts_only(words, before)
    return {word: 1 / len(after) for word in after}


def never_empty(words, before):
    return next_word_shares(words, before) or None


def test_exercise_1_1_a_model_in_five_lines():
    wrong = {
        "counts": (counts_only, "the values are counts"),
        "backwards": (words_in_front, "come before the word"),
        "length of the text": (shares_of_the_text, "the length of the text"),
        "last word counted": (shares_with_the_end, "nothing follows the last one"),
        "no frequencies": (each_word_once, "got the same share"),
        "None for nothing": (never_empty, "None"),
        "a list": (lambda words, before: words, "return a dictionary"),
    }
    verify(ch01_checks.check_1_1, next_word_shares, stub, wrong)


# --- 1.2 ------------------------------------------------------------------------------


def mean_bits(probabilities):
    if 0 in probabilities:
        return math.inf
    return sum(-math.log2(p) for p in probabilities) / len(probabilities)


def bits_unguarded(probabilities):
    return sum(-math.log2(p) for p in probabilities) / len(probabilities)


def test_exercise_1_2_the_loss():
    wrong = {
        "natural": (
            lambda ps: sum(-math.log(p) for p in ps) / len(ps),
            "natural units",
        ),
        "sum": (lambda ps: sum(-math.log2(p) for p in ps), "were added up"),
        "sign": (lambda ps: -mean_bits(ps), "never negative"),
        "mean first": (
            lambda ps: -math.log2(sum(ps) / len(ps)),
            "averaged before the logarithm",
        ),
        "perplexity": (lambda ps: 2 ** mean_bits(ps), "this is the perplexity"),
        "zero": (bits_unguarded, "math domain error"),
        "zero skipped": (
            lambda ps: bits_unguarded([p for p in ps if p]),
            "should make the loss infinite",
        ),
        "list": (lambda ps: [-math.log2(p) for p in ps], "return one number"),
    }
    verify(ch01_checks.check_1_2, mean_bits, stub, wrong)


# --- 1.3 ------------------------------------------------------------------------------


def with_temperature(shares, temperature):
    largest = max(shares.values())
    raised = {w: (p / largest) ** (1 / temperature) for w, p in shares.items()}
    total = sum(raised.values())
    return {word: value / total for word, value in raised.items()}


def temperature_underflows(shares, temperature):
    raised = {w: p ** (1 / temperature) for w, p in shares.items()}
    total = sum(raised.values())
    return {word: value / total for word, value in raised.items()}


def temperature_upside_down(shares, temperature):
    return with_temperature(shares, 1 / temperature)


def temperature_divides(shares, temperature):
    total = sum(p / temperature for p in shares.values())
    return {w: p / temperature / total for w, p in shares.items()}


def temperature_unscaled(shares, temperature):
    return {w: p ** (1 / temperature) for w, p in shares.items()}


def temperature_in_place(shares, temperature):
    shares.update(with_temperature(shares, temperature))
    return shares


def temperature_of_the_best(shares, temperature):
    best = sorted(shares, key=shares.get)[-2:]
    return with_temperature({word: shares[word] for word in best}, temperature)


def test_exercise_1_3_temperature():
    wrong = {
        "underflow": (temperature_underflows, "ZeroDivisionError"),
        "upside down": (temperature_upside_down, "more alike"),
        "only divided": (temperature_divides, "dividing by the temperature"),
        "not scaled": (temperature_unscaled, "do not add up to 1"),
        "in place": (temperature_in_place, "has been changed"),
        "words lost": (temperature_of_the_best, "not the ones passed in"),
        "a list": (
            lambda shares, temperature: list(shares.values()),
            "return a dictionary",
        ),
    }
    verify(ch01_checks.check_1_3, with_temperature, stub, wrong)


# --- 1.4 ------------------------------------------------------------------------------


def longest_copied_run(written, learned):
    longest, before = 0, [0] * (len(learned) + 1)
    for word in written:
        now = [0] * (len(learned) + 1)
        for place, other in enumerate(learned):
            if word == other:
                now[place + 1] = before[place] + 1
        longest, before = max(longest, *now), now
    return longest


def run_of_common_words(written, learned):
    return sum(word in learned for word in written)


def run_with_gaps(written, learned):
    best = [0] * (len(learned) + 1)
    for word in written:
        corner = 0
        for place, other in enumerate(learned, start=1):
            above = best[place]
            if word == other:
                best[place] = corner + 1
            else:
                best[place] = max(best[place], best[place - 1])
            corner = above
    return max(best)


def run_of_letters(written, learned):
    text = " ".join(learned)
    pieces = (
        written[i:j]
        for i in range(len(written))
        for j in range(i, len(written) + 1)
        if " ".join(written[i:j]) in text
    )
    return max((len(piece) for piece in pieces), default=0)


def run_of_steps(written, learned):
    return max(longest_copied_run(written, learned) - 1, 0)


def run_at_first_place(written, learned):
    longest = 0
    for start, word in enumerate(written):
        place = learned.index(word) if word in learned else len(learned)
        pairs = zip(written[start:], learned[place:])
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
        longest = max(longest, len(list(same)))
    return longest


def run_going_round(written, learned):
    longest = length = 0
    for one, two in zip(written, written[1:]):
        pairs = set(zip(learned, learned[1:]))
        length = length + 1 if (one, two) in pairs else 0
        longest = max(longest, length + 1 if length else 0)
    return longest or int(any(word in learned for word in written))


def test_exercise_1_4_caught_copying():
    wrong = {
        "common words": (run_of_common_words, "wherever they stand"),
        "gaps": (run_with_gaps, "the run has gaps"),
        "letters": (run_of_letters, "parts of words"),
        "steps": (run_of_steps, "one word of the run is missing"),
        "first place only": (run_at_first_place, "begins later in the learned text"),
        "pairs": (run_going_round, "longer than what was learned"),
        "a list": (lambda written, learned: written, "one whole number"),
    }
    verify(ch01_checks.check_1_4, longest_copied_run, stub, wrong)
