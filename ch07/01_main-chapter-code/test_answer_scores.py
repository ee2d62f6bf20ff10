"""The rule for right and wrong: in any wording, and never by repeating the question."""

import random

import numpy as np
import pytest

from answer_scores import (
    can_be_read,
    offered_labels,
    score_answer,
    score_by_category,
    score_interval,
)
from course.assets import fetch
from gpt_class_finetune import bootstrap_interval
from instruction_data import read_instructions, user_text

DEEP = {"instruction": "Name the opposite.", "input": "deep", "output": "Shallow."}
TWICE = {"instruction": "Say hi twice.", "input": "", "output": "hi\nhi"}
NUMBER = {"instruction": "7 + 1?", "input": "", "answers": ["8", "eight"]}
WORD = {**DEEP, "answers": ["shallow"], "category": "antonyms"}
SENTENCE = {
    "instruction": "Make it negative.",
    "input": "The key is here.",
    "answers": ["The key is not here.", "The key isn't here."],
    "category": "negation",
}
LABEL = {
    "instruction": "Is the tone formal or informal?",
    "input": "Hey you!",
    "answers": ["informal"],
    "category": "classification",
}
LIST = {
    "instruction": "Drop the last entry.",
    "input": "nose, ear, chin",
    "answers": ["nose, ear"],
    "category": "lists",
}
BRACKETS = {
    "instruction": "Put round brackets around the text.",
    "input": "see page 4",
    "answers": ["(see page 4)"],
    "category": "text_format",
}
JSON = {
    "instruction": "As JSON, please.",
    "input": "age: 30",
    "answers": ['{"age": 30}'],
    "category": "json",
}


@pytest.mark.parametrize(
    ("entry", "reply", "right"),
    [
        (NUMBER, "8", True),
        (NUMBER, "The sum of 7 and 1 is 8.", True),
        (NUMBER, "It makes Eight!", True),
        (NUMBER, "= 8, as you know", True),
        (NUMBER, "18", False),
        (NUMBER, "8.5", False),
        (NUMBER, "0.8", False),
        (NUMBER, "-8", False),
        (NUMBER, "8:30", False),
        (NUMBER, "eighty", False),
        (NUMBER, "", False),
        (WORD, "Shallow.", True),
        (WORD, 'The opposite of "deep" is\n\u201cSHALLOW\u201d.', True),
        (WORD, "shallowness", False),
        (WORD, "deep", False),
        (SENTENCE, "the key  isn\u2019t here", True),
        (SENTENCE, "Answer: The key is not here, my friend.", True),
        (SENTENCE, "The key is here.", False),
        (LABEL, "Informal.", True),
        (LABEL, "The tone of this message is informal", True),
        (LABEL, "Is the tone formal or informal? Informal.", True),
        (LABEL, "Is the tone formal or informal?", False),
        (LABEL, "Formal or informal.", False),
        (LABEL, "It is informal, not formal.", False),
        (LIST, "nose, ear", True),
        (LIST, "Without the last one: Nose, ear.", True),
        (LIST, "nose, ear, chin", False),
        (LIST, "Nose, ear, chin", False),
        (BRACKETS, "(see page 4)", True),
        (BRACKETS, "(See page 4)", False),
        (BRACKETS, "see page 4", False),
        (JSON, 'Of course!\n```json\n{"age": 30}\n```', True),
        (JSON, '{"Age": 30}', False),
        (JSON, "age: 30", False),
    ],
)
def test_an_answer_is_found_in_any_wording_and_not_in_the_question(entry, reply, right):
    assert score_answer(entry, reply) is right


@pytest.mark.parametrize(
    ("entry", "reply", "readable"),
    [
        (NUMBER, "9", True),
        (NUMBER, "I think fifteen.", True),
        (NUMBER, "I cannot say.", False),
        (NUMBER, "7 + 1?", False),
        (WORD, "Wide.", True),
        (WORD, "  ", False),
        (WORD, "deep", False),
        (LABEL, "Formal.", True),
        (LABEL, "formal and informal", False),
        (LABEL, "Happy.", False),
        (BRACKETS, "[see page 4]", True),
        (BRACKETS, "see page 4", False),
        (JSON, 'Here: {"years": 30}', True),
        (JSON, "{age: 30}", False),
        (JSON, "[" * 100_000, False),
    ],
)
def test_a_wrong_answer_can_be_read_and_no_answer_cannot(entry, reply, readable):
    assert can_be_read(entry, reply) is readable


@pytest.fixture(scope="module")
def data():
    return read_instructions(fetch("instructions"))


def test_every_entry_of_the_course_can_be_answered_and_not_by_repeating_it(data):
    scored = [entry for entry in data if entry.get("answers")]
    assert len(scored) == 1584
    for entry in scored:
        for reply in (entry["output"], f"Sure: {entry['output']}", *entry["answers"]):
            assert score_answer(entry, reply), (entry, reply)
            assert can_be_read(entry, reply), (entry, reply)
        for echo in (entry["instruction"], entry["input"], user_text(entry)):
            assert not score_answer(entry, echo), (entry, echo)
            assert not can_be_read(entry, echo), (entry, echo)


def test_scores_fail_on_answers_to_other_questions(data):
    """A score that compared answers with themselves would stay at 100 per cent."""
    scored = [entry for entry in data if entry.get("answers")]
    others = [entry["output"] for entry in scored]
    random.Random(0).shuffle(others)
    assert np.mean([score_answer(e, o) for e, o in zip(scored, others)]) < 0.03


def test_the_labels_of_every_question_are_known(data):
    groups = {
        frozenset(offered_labels(entry))
        for entry in data
        if entry["category"] == "classification"
    }
    assert len(groups) == 10
    assert {"even", "odd"} in groups
    assert {"statement", "question", "command", "exclamation"} in groups
    assert sum(map(len, groups)) == len(set().union(*groups)), "a group too many"


def test_an_entry_without_answers_is_refused():
    with pytest.raises(ValueError, match="'Say hi twice.' lists no answers"):
        score_answer(TWICE, "hi hi")


def test_the_interval_draws_families_not_entries():
    draw = np.random.default_rng(0)
    right = draw.random(200) < 0.7
    low, high = score_interval(right, range(200))
    assert low < right.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * (0.21 / 200) ** 0.5, rel=0.15)
    # Ten copies of each answer in one family say no more than one.
    many = score_interval(np.repeat(right, 10), np.repeat(np.arange(200), 10))
    assert many == pytest.approx((low, high), abs=1e-9)
    apart = score_interval(np.repeat(right, 10), range(2000))
    assert apart[1] - apart[0] < 0.5 * (high - low)
    assert score_interval([True, True, True], ["a", "a", "a"]) == (0.0, 1.0)
    assert (low, high) == bootstrap_interval(right, range(200))


def test_scores_by_category_add_up():
    asked = [
        {**TWICE, "category": category, "family": family}
        for category, family in ["ax", "ay", "bz", "bz", "bz", "bw"]
    ]
    table = score_by_category(asked, [1, 0, 1, 1, 0.5, 0])
    assert table["category"].tolist() == ["a", "b", "all"]
    assert table["entries"].tolist() == [2, 4, 6]
    assert table["families"].tolist() == [2, 2, 4]
    assert table["share"].tolist() == pytest.approx([0.5, 2.5 / 4, 3.5 / 6])
    assert (table["low"] <= table["share"]).all()
    assert (table["share"] <= table["high"]).all()


def test_thoughts_before_a_reply_hold_no_answer():
    entry = {"instruction": "Name the opposite.", "input": "deep"}
    entry["answers"] = ["shallow"]
    thoughts = "<think>It may be shallow, or flat.</think> "
    assert not score_answer(entry, thoughts + "It is flat.")
    assert score_answer(entry, "<think>Flat?</think> It is shallow.")
    assert not can_be_read(entry, "<think>It is shallow, because")
