"""The checks of the exercises in `create-passive-voice-entries.ipynb`.

See `course.exercises`. Expected values come from plain loops over words and rows.
"""

from course.exercises import as_list, call, check, expect, expect_equal

# --- 7.21 A check for negations -------------------------------------------------------

FIRST = (
    *("am", "is", "are", "was", "were", "has", "have", "had", "will", "would"),
    *("can", "could", "may", "might", "must", "shall", "should"),
)
CASES = [
    ("The key is on the table.", "The key is not on the table."),
    ("You can swim.", "You cannot swim."),
    ("You can swim.", "You can not swim."),
    ("The boys have been told.", "The boys have not been told."),
    ("The knots are tight.", "The knots are not tight."),
    ("He must go now.", "He must not go now."),
    ("The key is on the table.", "The key is on the table."),
    ("The key is on the table.", "The key is on not the table."),
    ("The key is on the table.", "The key is not on the chair."),
    ("The key is on the table.", "The key was not on the table."),
    ("She will sell the house.", "She will not not sell the house."),
    ("She will sell the house.", "Not she will sell the house."),
    ("The boys have been told.", "The boys have been not told."),
    ("The knots are tight.", "The knots are tight."),
    ("He must go now.", "He must not go now"),
    ("It is not far.", "It is far."),
]


def _right(sentence, negated):
    words = sentence.split()
    place = next(i for i, word in enumerate(words) if word in FIRST)
    right = [" ".join([*words[: place + 1], "not", *words[place + 1 :]])]
    if words[place] == "can":
        right.append(sentence.replace("can ", "cannot ", 1))
    return negated in right


def _without(word, text):
    words = text.replace("cannot", "can not").split()
    if word in words:
        words.remove(word)
    return " ".join(words)


def _slips(sentence, negated):
    """What plausible mistakes answer, by the sentence about each."""
    plain = negated.replace("cannot", "can not")
    return {
        "it looks for the letters not, which stand in other words, too": "not"
        in negated,
        "it looks whether there is the word not, wherever it stands and whatever else "
        "has changed": "not" in plain.split(),
        "it takes not at any place: its place is right behind the first auxiliary": (
            plain != sentence and _without("not", plain) == sentence
        ),
        "it refuses cannot, which is how can and not are written together": (
            _right(sentence, negated) and "cannot" not in negated
        ),
        "it puts not behind the last auxiliary, and it belongs behind the first": (
            plain == _behind_last(sentence)
        ),
        "the full stop at the end does not count for it": _right(
            sentence, negated.rstrip(".") + "."
        ),
        "the two answers are the wrong way round": not _right(sentence, negated),
    }


def _behind_last(sentence):
    words = sentence.split()
    places = [i for i, w in enumerate(words) if w in (*FIRST, "be", "been", "being")]
    words.insert(places[-1] + 1, "not")
    return " ".join(words)


@check("7.21")
def check_7_21(attempt):
    answers = []
    for sentence, negated in CASES:
        found = call(attempt, sentence, negated)
        found = found.item() if hasattr(found, "item") else found  # NumPy's, PyTorch's
        expect(
            isinstance(found, bool),
            f"the result is {found!r:.40}, neither True nor False",
        )
        answers.append(bool(found))
    right = [_right(*case) for case in CASES]
    if answers != right:
        made = [_slips(*case) for case in CASES]
        for message in made[0]:
            expect(answers != [slips[message] for slips in made], message)
        place = next(
            i for i, pair in enumerate(zip(answers, right)) if len({*pair}) > 1
        )
        word = "taken" if answers[place] else "refused"
        sentence, negated = CASES[place]
        expect(False, f"for {sentence!r} the answer {negated!r} is {word}")
    return f"{sum(right)} right answers and {len(right) - sum(right)} wrong ones."


# --- 7.22 Keep one of those alike -----------------------------------------------------

TABLES = [
    [[1.0, 0.9, 0.4], [0.9, 1.0, 0.9], [0.4, 0.9, 1.0]],
    [[1.0, 0.8], [0.8, 1.0]],
    [[1.0]],
    [],
    [
        [1.0, 0.1, 0.2, 0.95, 0.3],
        [0.1, 1.0, 0.85, 0.2, 0.81],
        [0.2, 0.85, 1.0, 0.9, 0.79],
        [0.95, 0.2, 0.9, 1.0, 0.1],
        [0.3, 0.81, 0.79, 0.1, 1.0],
    ],
]
THRESHOLD = 0.8


def _keep(table, threshold, earlier_counts=None, close=None):
    close = close or (lambda score: score >= threshold)
    kept = []
    for row, scores in enumerate(table):
        others = range(row) if earlier_counts else kept
        if not any(close(scores[other]) for other in others):
            kept.append(row)
    return kept


def _apart(table, threshold):
    """Only rows that are like no other at all."""
    return [
        row
        for row, scores in enumerate(table)
        if not any(s >= threshold for i, s in enumerate(scores) if i != row)
    ]


@check("7.22")
def check_7_22(attempt):
    slips = {
        "a row is compared with all rows before it, also with those that are not kept; "
        "so one is lost that is like no kept one": lambda t: _keep(t, THRESHOLD, True),
        "two rows that are exactly as similar as the threshold are both kept": (
            lambda t: _keep(t, THRESHOLD, close=lambda score: score > THRESHOLD)
        ),
        "of rows that are alike none is kept; one of them should be": (
            lambda t: _apart(t, THRESHOLD)
        ),
        "the rows are counted from 1; here the first one is 0": (
            lambda t: [row + 1 for row in _keep(t, THRESHOLD)]
        ),
        "it returns the rows that are left out": (
            lambda t: [r for r in range(len(t)) if r not in _keep(t, THRESHOLD)]
        ),
        "the last one of those alike is kept, and it should be the first": (
            lambda t: sorted(
                len(t) - 1 - row
                for row in _keep([scores[::-1] for scores in t[::-1]], THRESHOLD)
            )
        ),
    }
    answers = []
    for table in TABLES:
        given = [list(scores) for scores in table]
        found = as_list(call(attempt, given, THRESHOLD))
        found = found.tolist() if hasattr(found, "tolist") else found
        expect(
            isinstance(found, (list, tuple)),
            f"the result is {type(found).__name__}, where a list of rows is asked for",
        )
        expect(given == table, "the table that was passed in has changed")
        answers.append(list(found))
    right = [_keep(table, THRESHOLD) for table in TABLES]
    if answers != right:
        for message, slip in slips.items():
            expect(answers != [slip(table) for table in TABLES], message)
    for table, found, wanted in zip(TABLES, answers, right):
        expect_equal(found, wanted, f"of {len(table)} rows the wrong ones are kept")
    return f"{len(TABLES)} tables, one of them with a chain, one empty."
