"""Each check of chapter 1 takes its solution and its stub, and names planted mistakes.

The solutions here are the ones of `exercise-solutions.ipynb`. An exercise whose check
accepts a wrong answer, or refuses a right one, is worse than none.
"""

import difflib
import itertools
import math
from collections import Counter

import numpy as np
import pytest

import ch01_checks
from course.exercises import answer, verify


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


def shares_in_percent(words, before):
    return {w: 100 * p for w, p in next_word_shares(words, before).items()}


def shares_rounded(words, before):
    return {w: round(p, 2) for w, p in next_word_shares(words, before).items()}


def shares_of_one_more(words, before):
    counts = counts_only(words, before)
    return {w: n / (sum(counts.values()) + 1) for w, n in counts.items()}


def shares_both_sides(words, before):
    after = Counter(words[i + 1] for i, w in enumerate(words[:-1]) if w == before)
    after.update(words[i - 1] for i, w in enumerate(words) if w == before and i)
    return {w: n / after.total() for w, n in after.items()}


def never_empty(words, before):
    return next_word_shares(words, before) or None


def test_exercise_1_1_a_model_in_five_lines():
    wrong = {
        "counts": (counts_only, "the values are counts"),
        "backwards": (words_in_front, "come before the word"),
        "length of the text": (shares_of_the_text, "not the length of the text"),
        "last word counted": (shares_with_the_end, "nothing follows the last one"),
        "no frequencies": (each_word_once, "got the same share"),
        "None for nothing": (never_empty, "None"),
        "percents": (shares_in_percent, "these are percents"),
        "rounded": (shares_rounded, "do not round"),
        "not scaled": (shares_of_one_more, "the shares add up to 0.8"),
        "with itself": (shares_both_sides, "are not the keys"),
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


def bits_of_the_product(probabilities):
    product = math.prod(probabilities)
    return -math.log2(product) / len(probabilities) if product else math.inf


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
        "zero": (bits_unguarded, "sum(-math.log2(p) for p in probabilities)"),
        "zero skipped": (
            lambda ps: bits_unguarded([p for p in ps if p]),
            "should make the loss infinite",
        ),
        "list": (lambda ps: [-math.log2(p) for p in ps], "not a number"),
        "product first": (bits_of_the_product, "the product of so many"),
        "product, unguarded": (
            lambda ps: -math.log2(math.prod(ps)) / len(ps),
            "math.prod(ps)",
        ),
        "median": (
            lambda ps: mean_bits([sorted(ps)[len(ps) // 2]]),
            "the surprise in the middle",
        ),
        "base 10": (
            lambda ps: mean_bits(ps) * math.log10(2),
            "of 1/2, 1/8 and 1/32 is not right",
        ),
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


def temperature_gives_up(shares, temperature):
    raised = temperature_unscaled(shares, temperature)
    total = sum(raised.values())
    return {w: v / total for w, v in raised.items()} if total else dict(shares)


def temperature_of_the_winner(shares, temperature):
    if temperature >= 1:
        return with_temperature(shares, temperature)
    best = max(shares, key=shares.get)
    return {word: float(word == best) for word in shares}


def temperature_multiplies(shares, temperature):
    raised = {w: math.exp(p / temperature) for w, p in shares.items()}
    return {w: v / sum(raised.values()) for w, v in raised.items()}


def test_exercise_1_3_temperature():
    wrong = {
        "underflow": (temperature_underflows, "ZeroDivisionError"),
        "upside down": (temperature_upside_down, "more alike"),
        "only divided": (temperature_divides, "dividing by the temperature"),
        "not scaled": (temperature_unscaled, "add up to 0.46 and not to 1"),
        "in place": (temperature_in_place, "has been changed"),
        "words lost": (temperature_of_the_best, "not the ones passed in"),
        "gives up": (temperature_gives_up, "takes nearly all"),
        "winner only": (temperature_of_the_winner, "has vanished"),
        "times": (temperature_multiplies, "temperature 0.5 are not right"),
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
        "one longer": (
            lambda written, learned: longest_copied_run(written, learned) + 1,
            "result is 7",
        ),
    }
    verify(ch01_checks.check_1_4, longest_copied_run, stub, wrong)


# --- right answers, written otherwise -------------------------------------------------


def shares_by_loops(words, before):
    after = []
    for place in range(len(words) - 1):
        if words[place] == before:
            after.append(words[place + 1])
    return {word: after.count(word) / len(after) for word in after}


def shares_in_numpy(words, before):
    after = [b for a, b in itertools.pairwise(words) if a == before]
    names, counts = np.unique(np.array(after, dtype=str), return_counts=True)
    return dict(zip(names.tolist(), counts.astype(np.float32) / max(counts.sum(), 1)))


def bits_in_numpy(probabilities):
    with np.errstate(divide="ignore"):
        return -np.log2(np.array(probabilities, dtype=np.float32)).mean()


def bits_by_natural_logarithms(probabilities):
    bits = 0
    for p in probabilities:
        if p == 0:
            return float("inf")
        bits += math.log(1 / p) / math.log(2)
    return bits / len(probabilities)


def temperature_by_logarithms(shares, temperature):
    logits = np.log(np.array(list(shares.values()))) / temperature
    powers = np.exp(logits - logits.max())
    return dict(zip(shares, powers / powers.sum()))


def temperature_by_ratios(shares, temperature):
    """1 over the sum of the ratios of all to it, each value with how often it is."""
    power, often = 1 / temperature, Counter(shares.values())
    return {
        word: 1 / sum(n * (other / p) ** power for other, n in often.items())
        for word, p in shares.items()
    }


def run_by_three_loops(written, learned):
    longest = 0
    for i in range(len(written)):
        for j in range(len(learned)):
            n = 0
            while (
                i + n < len(written)
                and j + n < len(learned)
                and written[i + n] == learned[j + n]
            ):
                n += 1
            longest = max(longest, n)
    return longest


def run_by_sets(written, learned):
    for n in range(len(written), 0, -1):
        runs = {tuple(learned[j : j + n]) for j in range(len(learned) - n + 1)}
        if any(tuple(written[i : i + n]) in runs for i in range(len(written) - n + 1)):
            return n
    return 0


def run_by_table(written, learned):
    table = np.zeros((len(written) + 1, len(learned) + 1), dtype=np.int64)
    for i, word in enumerate(written):
        for j, other in enumerate(learned):
            table[i + 1, j + 1] = table[i, j] + 1 if word == other else 0
    return table.max()


def run_by_library(written, learned):
    matcher = difflib.SequenceMatcher(None, written, learned, autojunk=False)
    return matcher.find_longest_match().size


@pytest.mark.parametrize(
    ("number", "other"),
    [
        ("1_1", shares_by_loops),
        ("1_1", shares_in_numpy),
        ("1_2", bits_in_numpy),
        ("1_2", bits_by_natural_logarithms),
        ("1_3", temperature_by_logarithms),
        ("1_3", temperature_by_ratios),
        ("1_4", run_by_three_loops),
        ("1_4", run_by_sets),
        ("1_4", run_by_table),
        ("1_4", run_by_library),
    ],
)
def test_other_right_answers_pass_too(number, other):
    check = getattr(ch01_checks, f"check_{number}")
    assert "correct" in answer(check, other)
