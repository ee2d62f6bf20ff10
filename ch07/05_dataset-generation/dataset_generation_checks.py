"""The checks of the exercises in `llama3-ollama.ipynb`; see `course.exercises`.

Expected values come from plain loops over words and over Python's own numbers.
"""

import re

from course.exercises import (
    call,
    check,
    expect,
    expect_close,
    expect_no_slip,
    expect_number,
)

# --- 7.51 ROUGE-L ---------------------------------------------------------------------

PAIRS = [
    ("the cat sat on the mat", "the cat lay on a mat"),
    ("a b c d", "d c b a"),
    ("Name the capital of France.", "name the Capital of Italy"),
    ("one two three four five six", "one three five"),
    ("yes", "no"),
    ("to be or not to be", "be to or be not to"),
    ("snow", "snow"),
    ("a b a b a b", "b a b a"),
    ("What is 3 + 4?", "What is 3 + 5?"),
    ("cats and dogs", "cat and dog"),
    ("rain, rain and rain", "rain"),
    ("one five", "one two three four five"),
]


def _words(text):
    return re.findall(r"\w+", text.lower())


def _common(one, other):
    """The length of the longest common subsequence of two sequences."""
    row = [0] * (len(other) + 1)
    for a in one:
        above = row[:]
        for j, b in enumerate(other):
            row[j + 1] = above[j] + 1 if a == b else max(above[j + 1], row[j])
    return row[-1]


def _in_one_piece(one, other):
    best = 0
    for i in range(len(one)):
        for j in range(len(other)):
            n = 0
            while one[i + n : i + n + 1] == other[j + n : j + n + 1] != []:
                n += 1
            best = max(best, n)
    return best


def _mean(common, one, other):
    """The harmonic mean of the shares of both lengths."""
    return 2 * common / (len(one) + len(other))


def _slips_of_pair(one, other):
    """What plausible mistakes give for two texts, by the sentence about each."""
    a, b = _words(one), _words(other)
    common = _common(a, b)
    raw = re.findall(r"\w+", one), re.findall(r"\w+", other)
    split = one.lower().split(), other.lower().split()
    bag = sum(min(a.count(word), b.count(word)) for word in set(a))
    return {
        "the common words must stand in one piece in both texts; gaps are allowed": (
            _mean(_in_one_piece(a, b), a, b)
        ),
        "the order of the words does not count, but a subsequence keeps it": (
            _mean(bag, a, b)
        ),
        "it compares sets of words: a word that comes twice counts once": (
            len(set(a) & set(b)) * 2 / max(len(set(a)) + len(set(b)), 1)
        ),
        "only the length of the first text is divided by": common / max(len(a), 1),
        "only the length of the second text is divided by": common / max(len(b), 1),
        "the longer text alone is divided by": common / max(len(a), len(b), 1),
        "the shorter text alone is divided by, so a part of a text counts as all of "
        "it": common / max(min(len(a), len(b)), 1),
        "it is the plain mean of the two shares, not the harmonic one": (
            (common / max(len(a), 1) + common / max(len(b), 1)) / 2
        ),
        "it counts the common part against the words of both together once, as "
        "Jaccard does": common / max(len(a) + len(b) - common, 1),
        "the common words are counted, not their share": float(common),
        "capitals make two words differ": _mean(_common(*raw), *raw),
        "signs are taken for a part of the word before them": (
            _mean(_common(*split), *split)
        ),
        "letters are compared, not words": _mean(_common(one, other), one, other),
    }


@check("7.51")
def check_7_51(attempt):
    """The reader's function for the overlap of two texts."""
    answers = [expect_number(call(attempt, *pair)) for pair in PAIRS]
    right = [_mean(_common(*words), *words) for words in _word_pairs()]
    slips = [_slips_of_pair(*pair) for pair in PAIRS]
    for message in slips[0]:
        expect_no_slip(answers, right, {message: [slip[message] for slip in slips]})
    for pair, found, expected in zip(PAIRS, answers, right):
        expect_close(
            found, expected, f"{pair[0]!r} and {pair[1]!r} have another overlap"
        )
    for empty in (("", "a b"), ("a b", ""), ("", "?!")):
        found = expect_number(call(attempt, *empty))
        expect(
            found == 0,
            f"{empty[0]!r} and {empty[1]!r} share no word, yet give {found}",
        )
    return f"{len(PAIRS)} pairs, with gaps, capitals, another order, and empty texts."


def _word_pairs():
    return [(_words(one), _words(other)) for one, other in PAIRS]


# --- 7.52 The recall of a filter ------------------------------------------------------

GROUPS = [  # kept, removed, of these read and good: (kept, removed, read, good, ...)
    (100, 300, (50, 20), (60, 3)),
    (64, 192, (40, 22), (80, 4)),
    (10, 990, (10, 9), (90, 1)),
    (500, 20, (25, 5), (20, 10)),
    (80, 40, (40, 0), (40, 8)),
]


def _slips_of_groups(kept, removed, kept_read, removed_read):
    (n_kept, good_kept), (n_removed, good_removed) = kept_read, removed_read
    share_kept, share_removed = good_kept / n_kept, good_removed / n_removed
    there = kept * share_kept + removed * share_removed
    return {
        "the pairs that were read are counted as they are, but of the two groups not "
        "the same part was read": good_kept / max(good_kept + good_removed, 1),
        "it is the precision: how many of the kept pairs are good": share_kept,
        "the two shares are compared as if the groups had the same size": (
            share_kept / max(share_kept + share_removed, 1e-9)
        ),
        "it is the share of all pairs that are good": there / (kept + removed),
        "it is the share of all pairs that are kept": kept / (kept + removed),
        "it is the share of the good pairs that are lost": 1
        - kept * share_kept / max(there, 1e-9),
    }


@check("7.52")
def check_7_52(attempt):
    """The reader's function for the recall, from a sample of both groups."""
    answers = [expect_number(call(attempt, *group)) for group in GROUPS]
    right = []
    for kept, removed, (n_kept, good_kept), (n_removed, good_removed) in GROUPS:
        good = kept * good_kept / n_kept, removed * good_removed / n_removed
        right.append(good[0] / sum(good))
    slips = [_slips_of_groups(*group) for group in GROUPS]
    for message in slips[0]:
        expect_no_slip(answers, right, {message: [slip[message] for slip in slips]})
    for group, found, expected in zip(GROUPS, answers, right):
        expect_close(found, expected, f"the recall is another one for {group}")
    nothing = (10, 20, (5, 0), (10, 0))
    found = expect_number(call(attempt, *nothing))
    expect(found == 0, "where nothing good was found, the recall shall be 0")
    return f"{len(GROUPS)} samples, and one without anything good."
