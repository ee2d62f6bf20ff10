"""What readers may well write: right answers are taken, wrong ones get a fitting word.

`test_ch01_checks.py` plants mistakes and wants a message of its own for each. Here
stand right answers written in other ways, and further wrong ones; several of those may
share a message.
"""

import decimal
import difflib
import itertools
import math
import statistics
from collections import Counter, defaultdict
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch

import ch01_checks
from course.exercises import answer

RIGHT, WRONG = {}, {}


# --- 1.1 ------------------------------------------------------------------------------


def followers(words, before):
    return [b for a, b in itertools.pairwise(words) if a == before]


def shares(words, before):
    after = Counter(followers(words, before))
    return {word: count / after.total() for word, count in after.items()}


def shares_by_table(words, before):
    table = defaultdict(Counter)
    for a, b in zip(words, words[1:]):
        table[a][b] += 1
    total = sum(table[before].values())
    return {word: count / total for word, count in table[before].items()}


def shares_by_adding(words, before):
    after, found = followers(words, before), {}
    for word in after:
        found[word] = found.get(word, 0) + 1 / len(after)
    return found


def shares_by_index(words, before):
    places = [i for i in range(len(words) - 1) if words[i] == before]
    found = defaultdict(float)
    for i in places:
        found[words[i + 1]] += 1 / len(places)
    return found


def shares_by_frame(words, before):
    frame = pd.DataFrame({"a": words[:-1], "b": words[1:]})
    return frame.b[frame.a == before].value_counts(normalize=True).to_dict()


def shares_by_sorting(words, before):
    after = sorted(followers(words, before))
    runs = {word: len(list(run)) for word, run in itertools.groupby(after)}
    return {word: run / len(after) for word, run in runs.items()}


def shares_in_torch(words, before):
    names = sorted(set(words))
    counts = torch.zeros(len(names))
    for word in followers(words, before):
        counts[names.index(word)] += 1
    found = zip(names, counts / counts.sum().clamp(min=1))
    return {word: share for word, share in found if share > 0}


RIGHT["1_1"] = {
    "table": shares_by_table,
    "adding": shares_by_adding,
    "index": shares_by_index,
    "pandas": shares_by_frame,
    "sorting": shares_by_sorting,
    "torch": shares_in_torch,
    "a Counter": lambda *given: Counter(shares(*given)),
    "float32": lambda *given: {w: np.float32(p) for w, p in shares(*given).items()},
    "fractions": lambda *given: {
        word: Fraction(n, len(followers(*given)))
        for word, n in Counter(followers(*given)).items()
    },
    "by size": lambda *given: dict(Counter(shares(*given)).most_common()),
    "a list with an end": lambda words, before: shares([*words, None][:-1], before),
}


def shares_by_the_first(words, before):
    """Looks at the first place alone."""
    place = words.index(before) + 1 if before in words else len(words)
    return dict.fromkeys(words[place : place + 1], 1.0)


def shares_of_each_word(words, before):
    after = Counter(followers(words, before))
    return {word: count / words.count(word) for word, count in after.items()}


def shares_over_kinds(words, before):
    after = Counter(followers(words, before))
    return {word: count / len(after) for word, count in after.items()}


def shares_over_the_largest(words, before):
    after = Counter(followers(words, before))
    largest = max(after.values(), default=1)
    return {word: count / largest for word, count in after.items()}


def shares_with_zeros(words, before):
    return {word: shares(words, before).get(word, 0.0) for word in set(words)}


def shares_going_round(words, before):
    return shares([*words, *words[:1]], before)


def shares_smoothed(words, before):
    after = Counter(followers(words, before))
    total = after.total() + len(after)
    return {word: (count + 1) / total for word, count in after.items()}


WRONG["1_1"] = {
    "the first": (shares_by_the_first, "are not the keys"),
    "over its own count": (shares_of_each_word, "got the same share"),
    "over the kinds": (shares_over_kinds, "the shares add up to 1.33"),
    "over the largest": (shares_over_the_largest, "the shares add up to 2"),
    "zeros for the rest": (shares_with_zeros, "are not the keys"),
    "going round": (shares_going_round, "that nothing follows should get"),
    "one more of each": (shares_smoothed, "the shares are not right"),
    "pairs": (lambda *given: list(shares(*given).items()), "return a dictionary"),
    "the likeliest": (
        lambda *given: max(shares(*given), key=shares(*given).get, default=None),
        "return a dictionary",
    ),
    "texts": (
        lambda *given: {word: f"{p:.0%}" for word, p in shares(*given).items()},
        "of 'cat' is the text",
    ),
    "error for nothing": (
        lambda words, before: {
            word: followers(words, before).count(word) / words[:-1].count(before)
            for word in (followers(words, before) or [None])
        },
        "ZeroDivisionError",
    ),
}


# --- 1.2 ------------------------------------------------------------------------------


def guarded(mean):
    """A mean of probabilities that are all above zero, made safe."""
    return lambda ps: math.inf if 0 in ps else mean(ps)


def bits_in_a_loop(ps):
    total = 0.0
    for p in ps:
        if p <= 0:
            return math.inf
        total += math.log2(1 / p)
    return total / len(ps)


def bits_by_trying(ps):
    try:
        return -sum(map(math.log2, ps)) / len(ps)
    except ValueError:
        return math.inf


def bits_in_numpy(ps):
    with np.errstate(divide="ignore"):
        return -np.log2(ps).mean()


def bits_in_torch(ps):
    return -torch.tensor(ps).log2().mean()


RIGHT["1_2"] = {
    "loop": bits_in_a_loop,
    "trying": bits_by_trying,
    "numpy": bits_in_numpy,
    "a torch scalar": bits_in_torch,
    "a torch number": lambda ps: bits_in_torch(ps).item(),
    "torch, float64": lambda ps: -torch.tensor(ps).double().log2().mean(),
    "an array of one": lambda ps: np.array(bits_in_a_loop(ps)),
    "statistics": guarded(lambda ps: statistics.fmean(-math.log2(p) for p in ps)),
    "exact sum": guarded(lambda ps: -math.fsum(map(math.log2, ps)) / len(ps)),
    "natural": guarded(lambda ps: -sum(map(math.log, ps)) / math.log(2) / len(ps)),
    "infinity in the sum": lambda ps: (
        sum(math.log2(1 / p) if p else math.inf for p in ps) / len(ps)
    ),
    "geometric mean": guarded(lambda ps: -math.log2(statistics.geometric_mean(ps))),
}
WRONG["1_2"] = {
    "entropy": (
        lambda ps: -sum(p * math.log2(p) for p in ps if p),
        "of 1/2, 1/8 and 1/32 is not right",
    ),
    "mean of the probabilities": (
        lambda ps: sum(ps) / len(ps),
        "of 1/2, 1/8 and 1/32 is not right",
    ),
    "one fewer": (
        guarded(lambda ps: -sum(map(math.log2, ps)) / (len(ps) - 1)),
        "of 1/2, 1/8 and 1/32 is not right",
    ),
    "zeros left out": (
        lambda ps: bits_in_a_loop([p for p in ps if p > 0]),
        "should make the loss infinite",
    ),
    "a large number": (
        lambda ps: min(bits_in_a_loop(ps), 1e9),
        "should make the loss infinite",
    ),
    "a small number added": (
        lambda ps: -sum(math.log2(p + 1e-12) for p in ps) / len(ps),
        "should make the loss infinite",
    ),
    "no sign": (
        guarded(lambda ps: sum(map(math.log2, ps)) / len(ps)),
        "there is a sign missing",
    ),
    "the worst": (lambda ps: max(map(bits_in_a_loop, ([p] for p in ps))), "not right"),
    "rounded": (
        lambda ps: round(bits_in_a_loop(ps)) if all(ps) and len(ps) > 2 else -1,
        "has no surprise",
    ),
    "a text": (lambda ps: f"{bits_in_a_loop(ps):.2f}", "not a number"),
    "each surprise": (
        lambda ps: torch.tensor(ps).log2().neg(),
        "not a number",
    ),
    "the mean of two": (
        lambda ps: (bits_in_a_loop(ps[:1]) + bits_in_a_loop(ps[-1:])) / 2,
        "of 1/2, 1/2 and 1/16 is not right",
    ),
}


# --- 1.3 ------------------------------------------------------------------------------


def scaled(raised):
    total = sum(raised.values())
    return {word: value / total for word, value in raised.items()}


def warmed(words, temperature):
    largest = max(words.values())
    return scaled({w: (p / largest) ** (1 / temperature) for w, p in words.items()})


def warmed_in_numpy(words, temperature):
    values = np.array(list(words.values()))
    raised = (values / values.max()) ** (1 / temperature)
    return dict(zip(words, (raised / raised.sum()).tolist()))


def warmed_by_softmax(words, temperature):
    logits = torch.tensor(list(words.values()), dtype=torch.float64).log()
    return dict(zip(words, torch.softmax(logits / temperature, dim=0).tolist()))


def warmed_in_decimals(words, temperature):
    power = 1 / decimal.Decimal(temperature)
    found = scaled({w: decimal.Decimal(p) ** power for w, p in words.items()})
    return {word: float(value) for word, value in found.items()}


def warmed_by_logs(words, temperature):
    logs = {word: math.log(p) / temperature for word, p in words.items()}
    highest = max(logs.values())
    return scaled({word: math.exp(log - highest) for word, log in logs.items()})


def warmed_by_log_sum(words, temperature):
    logs = np.log(list(words.values())) / temperature
    return dict(zip(words, np.exp(logs - np.logaddexp.reduce(logs))))


def warmed_in_a_loop(words, temperature):
    best, found, total = max(words.values()), {}, 0.0
    for word in words:
        found[word] = math.pow(words[word] / best, 1 / temperature)
        total += found[word]
    for word in found:
        found[word] /= total
    return found


RIGHT["1_3"] = {
    "numpy": warmed_in_numpy,
    "softmax": warmed_by_softmax,
    "decimals": warmed_in_decimals,
    "logs": warmed_by_logs,
    "log of the sum": warmed_by_log_sum,
    "loop": warmed_in_a_loop,
    "torch scalars": lambda words, t: {
        word: torch.tensor(p) for word, p in warmed(words, t).items()
    },
    "float32": lambda words, t: {w: np.float32(p) for w, p in warmed(words, t).items()},
    "a Counter": lambda words, t: Counter(warmed(words, t)),
    "sorted": lambda words, t: dict(
        sorted(warmed(words, t).items(), key=lambda item: -item[1])
    ),
    "pandas": lambda words, t: (
        (pd.Series(words) / max(words.values()))
        .pow(1 / t)
        .pipe(lambda raised: raised / raised.sum())
        .to_dict()
    ),
}


def warmed_with_a_fallback(words, temperature):
    """When all powers are 0, the best word takes everything."""
    raised = {word: p ** (1 / temperature) for word, p in words.items()}
    if sum(raised.values()) == 0:
        best = max(words, key=words.get)
        return {word: float(word == best) for word in words}
    return scaled(raised)


def warmed_not_below_a_tenth(words, temperature):
    return warmed(words, max(temperature, 0.5))


def warmed_by_a_sum(words, temperature):
    return scaled({word: p + temperature for word, p in words.items()})


WRONG["1_3"] = {
    "fallback": (warmed_with_a_fallback, "did not stay equal"),
    "not so cold": (warmed_not_below_a_tenth, "takes nearly all"),
    "added": (warmed_by_a_sum, "at temperature 0.5 are not right"),
    "powers of t": (
        lambda words, t: scaled({w: p**t for w, p in words.items()}),
        "made the words more alike",
    ),
    "exponential": (
        lambda words, t: scaled({w: math.exp(p / t) for w, p in words.items()}),
        "at temperature 0.5 are not right",
    ),
    "by the largest": (
        lambda words, t: {
            w: (p / max(words.values())) ** (1 / t) for w, p in words.items()
        },
        "add up to 1.28 and not to 1",
    ),
    "unchanged": (lambda words, t: dict(words), "stand to each other as before"),
    "a small number below": (
        lambda words, t: (
            {
                w: p ** (1 / t) / (sum(q ** (1 / t) for q in words.values()) + 1e-12)
                for w, p in list(words.items())[:40]
            }
            if len(words) > 40
            else warmed(words, t)
        ),
        "did not stay equal",
    ),
    "an array": (
        lambda words, t: np.array(list(warmed(words, t).values())),
        "return a dictionary",
    ),
    "whole powers": (
        lambda words, t: scaled(
            {w: (p / max(words.values())) ** (1 // t) for w, p in words.items()}
        ),
        "temperature 4 is not right",
    ),
    "rounded": (
        lambda words, t: {w: round(p, 2) for w, p in warmed(words, t).items()},
        "at temperature 0.5 are not right",
    ),
}


# --- 1.4 ------------------------------------------------------------------------------


def run_lengths(written, learned):
    for i in range(len(written)):
        for j in range(len(learned)):
            pairs = zip(written[i:], learned[j:])
            yield sum(1 for _ in itertools.takewhile(lambda p: p[0] == p[1], pairs))


def longest_run(written, learned):
    return max(run_lengths(written, learned), default=0)


def run_by_growing(written, learned):
    n = 0
    while any(
        written[i : i + n + 1] == learned[j : j + n + 1]
        for i in range(len(written) - n)
        for j in range(len(learned) - n)
    ):
        n += 1
    return n


def run_by_marked_strings(written, learned):
    text = "|" + "|".join(learned) + "|"
    places = range(len(written) + 1)
    pieces = (written[i:j] for i in places for j in places[i + 1 :])
    return max(
        (len(piece) for piece in pieces if "|" + "|".join(piece) + "|" in text),
        default=0,
    )


def run_by_memory(written, learned):
    ends = {}

    def ending_at(i, j):
        if i < 0 or j < 0 or written[i] != learned[j]:
            return 0
        if (i, j) not in ends:
            ends[i, j] = 1 + ending_at(i - 1, j - 1)
        return ends[i, j]

    pairs = itertools.product(range(len(written)), range(len(learned)))
    return max((ending_at(i, j) for i, j in pairs), default=0)


def run_by_halving(written, learned):
    """If a run of n words is copied, so is each shorter one."""

    def copied(n):
        runs = {tuple(learned[j : j + n]) for j in range(len(learned) - n + 1)}
        starts = range(len(written) - n + 1)
        return any(tuple(written[i : i + n]) in runs for i in starts)

    low, high = 0, min(len(written), len(learned))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if copied(middle) else (low, middle - 1)
    return low


def run_by_diagonals(written, learned):
    same = np.array([[a == b for b in learned] for a in written], dtype=bool)
    longest = 0
    if same.size:
        for k in range(-len(written) + 1, len(learned)):
            diagonal = "".join("x" if s else " " for s in np.diagonal(same, k))
            longest = max([longest, *map(len, diagonal.split())])
    return longest


def run_by_places(written, learned):
    where = defaultdict(list)
    for place, word in enumerate(learned):
        where[word].append(place)
    longest, running = 0, {}
    for word in written:
        running = {j: running.get(j - 1, 0) + 1 for j in where[word]}
        longest = max([longest, *running.values()])
    return longest


RIGHT["1_4"] = {
    "three loops": longest_run,
    "growing": run_by_growing,
    "marked strings": run_by_marked_strings,
    "memory": run_by_memory,
    "halving": run_by_halving,
    "diagonals": run_by_diagonals,
    "places": run_by_places,
    "numpy number": lambda *given: np.int64(longest_run(*given)),
    "difflib": lambda written, learned: max(
        block.size
        for block in difflib.SequenceMatcher(
            None, written, learned, autojunk=False
        ).get_matching_blocks()
    ),
    "tuples": lambda written, learned: run_by_growing(tuple(written), tuple(learned)),
    "exchanged": lambda written, learned: longest_run(learned, written),
}


def run_of_known_words(written, learned):
    longest = length = 0
    for word in written:
        length = length + 1 if word in learned else 0
        longest = max(longest, length)
    return longest


def run_at_the_same_place(written, learned):
    longest = length = 0
    for one, two in zip(written, learned):
        length = length + 1 if one == two else 0
        longest = max(longest, length)
    return longest


def run_of_the_first_word(written, learned):
    return max(run_lengths(written[:1] and written, learned), default=0) and max(
        sum(1 for _ in itertools.takewhile(lambda p: p[0] == p[1], pairs))
        for j in range(len(learned))
        for pairs in [list(zip(written, learned[j:]))]
    )


def run_inside(written, learned):
    """Forgets the last word of both lists."""
    return longest_run(written[:-1], learned[:-1])


def run_without_reuse(written, learned):
    """Goes on in the learned text after a run, never back."""
    longest = length = place = 0
    for word in written:
        if place < len(learned) and learned[place] == word:
            length, place = length + 1, place + 1
        elif word in learned:
            length, place = 1, learned.index(word) + 1
        else:
            length = 0
        longest = max(longest, length)
    return longest


WRONG["1_4"] = {
    "known words": (run_of_known_words, "neighbours in both lists"),
    "the same place": (run_at_the_same_place, "or ends a list"),
    "the first word": (run_of_the_first_word, "the longest run is not found"),
    "two at least": (
        lambda written, learned: longest_run(written, learned) // 2 * 2,
        "or ends a list",
    ),
    "inside": (run_inside, "or ends a list"),
    "without reuse": (run_without_reuse, "begins later in the learned text"),
    "letters": (
        lambda written, learned: max(
            (
                j - i
                for i in range(len(written))
                for j in range(i + 1, len(written) + 1)
                if " ".join(written[i:j]) in " ".join(learned)
            ),
            default=0,
        ),
        "parts of words were compared",
    ),
    "distinct words": (
        lambda written, learned: len(set(written) & set(learned)),
        "the longest run is not found",
    ),
    "the run itself": (
        lambda written, learned: written[: longest_run(written, learned)],
        "return one whole number",
    ),
    "a share": (
        lambda written, learned: longest_run(written, learned) / len(written),
        "return one whole number",
    ),
    "error for nothing": (
        lambda written, learned: max(run_lengths(written, learned)),
        "raises ValueError",
    ),
    "a float": (
        lambda *given: float(longest_run(*given)),
        "return one whole number",
    ),
}


# --- the table ------------------------------------------------------------------------


def each(table):
    return [(number, name) for number, rows in table.items() for name in rows]


@pytest.mark.parametrize(("number", "name"), each(RIGHT))
def test_a_right_answer_is_taken(number, name):
    said = answer(getattr(ch01_checks, f"check_{number}"), RIGHT[number][name])
    assert ": correct. " in said, said


@pytest.mark.parametrize(("number", "name"), each(WRONG))
def test_a_wrong_answer_is_refused_for_its_reason(number, name):
    attempt, fragment = WRONG[number][name]
    said = answer(getattr(ch01_checks, f"check_{number}"), attempt)
    assert ": correct" not in said
    assert fragment in said, said


def test_ten_of_each():
    for table in (RIGHT, WRONG):
        assert [number for number, rows in table.items() if len(rows) < 10] == []
        assert len(table) == 4
