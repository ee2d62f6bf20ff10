"""Each filter finds its fault, and leaves alone what only looks like one."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pair_filters as filters
from course.assets import fetch
from instruction_data import read_instructions, user_text
from near_duplicates import jaccard, shingles
from pair_filters import PairFilter, SeenQuestions, has_wrong_sum, value_of_sum

# What each filter must find, and what it must not.
CASES = {
    "is_cut": (
        ["It is the", "First, boil the water,", 'He said "no', "(see", "```\nx = 1"],
        ["It is.", "boil the water", 'He said "no".', "f(x)", "```\nx = 1\n```", "Yes"],
    ),
    "repeats_itself": (
        [
            "The sea is deep and the sea is deep and the sea is deep and blue.",
            "A good day. A good day. A good day. A good day. A good day.",
            "1 2 3 4 1 2 3 4 1 2 3 4 1 2 3 4",
        ],
        [
            "No no no no no.",
            "The cat sat on the mat, and the dog lay down on the mat beside it.",
            "Add 3 and 4, then add 5 to it, and write the sum down below the line.",
        ],
    ),
    "has_foreign_letters": (
        [
            "\u4f60\u597d",
            "What is \u041c\u043e\u0441\u043a\u0432\u0430?",
            "br\ufffdken",
            "a\x07b",
            "123",
        ],
        [
            "What is \u03c0 in mathematics?",
            "G\u00f6del, \u0141\u00f3d\u017a",
            "2 + 2 = four",
            "caf\u00e9\n\tau lait",
        ],
    ),
    "holds_marks": (
        [
            "What?<|im_end|>",
            "<end_of_turn>",
            "Hi\nUser: and now?",
            "**Answer:** 5",
            "### Response\nYes",
            "[INST] Hi",
        ],
        [
            "a < b and b > c",
            "Who is the user of it?",
            "Tag it <b>bold</b>, #1",
            "My answer: no",
        ],
    ),
    "asks_nothing": (
        ["I like trains.", "The sea is deep.", "Hello there", "Detailed plans"],
        [
            "Why?",
            "Name two fish.",
            "I like trains. Please list three.",
            "Sea and land: compare both.",
            "I need help with my garden",
            "Then write it down",
        ],
    ),
    "lacks_its_input": (
        [
            "Summarize the following text.",
            "Translate this sentence into French",
            "Fix the code below:",
            "What is the mean of the given numbers?",
            "Write to [name] about it.",
            "Greet ____ in a letter.",
            "Describe the attached image, please: now",
        ],
        [
            "Summarize the following text: The sea is deep and blue.",
            'Translate this sentence: "I am here".',
            "Sort this list:\n3\n1\n2\nand print it",
            "Write a letter to a friend.",
            "What follows in the list [1, 2]?",
            "What is given to a winner?",
        ],
    ),
    "refuses": (
        [
            "I'm sorry, but I can't do that.",
            "As an AI language model, I have no body.",
            "Unfortunately, no.",
            "I don't have access to that.",
        ],
        [
            "Sorrow is a feeling.",
            "He said that " + "and " * 20 + "I cannot go.",
            "Say that you are busy.",
        ],
    ),
    "asks_back": (
        ["What do you like?", "Sure, I'm happy to help you with that.", 'Who?"'],
        ["Ask him: who is there? Then wait.", "I am happy.", "42."],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_filter_finds_its_fault_and_nothing_else(name):
    rule = getattr(filters, name)
    faulty, sound = CASES[name]
    assert [text for text in faulty if not rule(text)] == []
    assert [text for text in sound if rule(text)] == []


def test_a_text_that_was_cut_at_the_limit_is_unfinished_whatever_its_last_sign():
    assert filters.is_cut("It is so.", ended=False)
    assert not filters.is_cut("It is so.", ended=True)


def test_a_short_answer_may_pick_from_the_question():
    asked = "Which is larger: an elephant, or a mouse that sits on an elephant?"
    assert filters.says_the_question(asked, "A mouse that sits on an elephant.")
    assert not filters.says_the_question(asked, "An elephant.")
    assert not filters.says_the_question(asked, "The elephant weighs far more.")


@pytest.mark.parametrize(
    ("question", "answer", "wrong"),
    [
        ("What is 7 times 8?", "7 x 8 = 54", True),
        ("What is 7 times 8?", "7 x 8 = 56", False),
        ("What is 7 times 8?", "It is 54.", True),
        ("What is 7 times 8?", "Fifty-six.", False),
        ("What is 7 times 8?", "7 times 8 is 56.", False),
        ("What is 12 / 5?", "About 2.4", False),
        ("How much?", "2 + 3 * 4 = 14, and 2 * 3 + 4 = 10.", False),
        ("How much?", "2 + 3 * 4 = 20.", True),
        ("How much?", "1,250 + 750 = 2,000", False),
        ("How much?", "10 / 3 = 3.33", False),
        ("How much?", "10 / 3 = 3.34", True),
        ("How much?", "$12.50 + $7.50 = $20", False),
        ("How much?", "\u22125 is cold, 3 \u00d7 4 = 13", True),
        ("How much?", "8 - 3 = 5 - 0 and 2^3 = 8", False),
        ("How much?", "5 / 0 = 0", True),
        ("When was it?", "From 1914 - 1918, in 12/5 and 3-4 people.", False),
        ("What is 5 + 5 and 6 + 6?", "Ten.", False),
        ("What is x + 5 = 7?", "x = 2", False),
        ("Is 3 + 4 = 7?", "Yes.", False),
        ("Add 5.", "20% of 50 = 10", False),
    ],
)
def test_sums_are_worked_out_again(question, answer, wrong):
    assert has_wrong_sum(question, answer) == wrong


@given(st.lists(st.integers(0, 999), min_size=2, max_size=5), st.data())
def test_the_value_of_a_sum_is_pythons(numbers, data):
    signs = data.draw(st.lists(st.sampled_from("+-*"), min_size=4, max_size=4))
    text = "".join(f"{n} {s} " for n, s in zip(numbers, signs)) + "1"
    assert value_of_sum(text) == Fraction(eval(text))


@given(st.text(max_size=80), st.text(max_size=80))
def test_no_text_makes_a_filter_stumble(question, answer):
    judge = PairFilter()
    assert set(judge.question_faults(question)) <= set(_names(judge, "a b c", "a"))
    assert isinstance(judge.answer_faults(question, answer), list)


def _names(judge, question, answer):
    names = ["unfinished", "length", "repetition", "other script", "chat marks"]
    return [*names, "no request", "no input", "seen before"]


def test_nearly_the_same_questions_are_found_as_by_comparing_all():
    entries = read_instructions(fetch("instructions"))[:300]
    known = [user_text(entry) for entry in entries]
    seen = SeenQuestions(known)
    sets = [shingles(text, 2) for text in known]
    for text in ("What is the capital of Italy?", "Add 3 and 5.", "Zzz qqq"):
        mine = shingles(text, 2)
        best = max(jaccard(mine, one) for one in sets)
        assert seen.nearest(text)[0] == pytest.approx(best)
    assert all(seen.has(text) for text in known)


def test_a_question_with_a_fault_is_not_remembered_and_one_without_is():
    judge = PairFilter(longest=8)
    long = "Name ten kinds of bread that people in Europe like to eat at noon."
    assert judge.question_faults(long) == ["length"]
    assert judge.seen.questions == []
    assert judge.question_faults("Name ten kinds of bread.") == []
    assert judge.question_faults("Please name ten kinds of bread.") == ["seen before"]


def test_most_pairs_of_the_course_itself_pass():
    """WrittenText by people: what the filters take away of them are false alarms."""
    entries = [e for e in read_instructions(fetch("instructions-2")) if not e["input"]]
    judge, taken = PairFilter(limit=2.0), {}
    for entry in entries:
        asked, answer = user_text(entry), entry["output"]
        faults = judge.question_faults(asked) + judge.answer_faults(asked, answer)
        for fault in faults:
            taken.setdefault(fault, []).append((asked, answer))
    assert {name: len(pairs) for name, pairs in taken.items()} == {
        "no request": 47,  # gaps to fill, and statements to judge
        "asks back": 18,  # a question was asked for
        "says the question": 5,
        "no input": 2,
        "refusal": 1,
    }
    assert len(entries) == 975
