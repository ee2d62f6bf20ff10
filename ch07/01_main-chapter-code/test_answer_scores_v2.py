"""Version 2 of the rule: what a reply decides, as a person would read it.

`answer_scores_v2_cases.csv` has replies with a person's verdict: those that version 1
was tried on, recorded replies of models, and others written for this table. In seven of
them the rule differs from the person, since an answer is right that no list has.
"""

import json
import random
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from answer_scores import score_answer
from answer_scores_v2 import (
    can_be_read_v2,
    choices,
    kind_of,
    score_answer_v2,
)
from answer_values import dates_in, numbers_in, unit_asked_for, value_of_words
from course.assets import fetch
from course.tables import read
from instruction_data import read_instructions, user_text

LIMIT = "refused by version 2: the answers lack it"


@pytest.fixture(scope="module")
def data():
    """The first set of instructions, and what the second has to test with."""
    first, second = (
        read_instructions(fetch(name)) for name in ("instructions", "instructions-2")
    )
    entries = first + [entry for entry in second if entry["split"] == "test"]
    entries = {user_text(e): e for e in reversed(entries) if e.get("answers")}
    assert len(entries) > 2000
    return list(entries.values())


@pytest.fixture(scope="module")
def cases(data):
    by_question = {user_text(entry): entry for entry in data}
    rows = read(Path(__file__).with_name("answer_scores_v2_cases.csv"))
    return [
        (by_question[row["question"]], json.loads(row["reply"]), row) for row in rows
    ]


def test_the_rule_decides_as_a_person_does(cases):
    other = [
        (row["question"], reply, row["right"])
        for entry, reply, row in cases
        if row["source"] != LIMIT
        and score_answer_v2(entry, reply) is not (row["right"] == "1")
    ]
    assert other == []


def test_there_are_enough_cases_of_all_kinds(cases):
    for right in "01":
        some = [(e, row) for e, _, row in cases if row["right"] == right]
        assert len(some) >= 200
        assert len({kind_of(entry) for entry, _ in some}) == 7
        tried = [row for _, row in some if row["source"] == "tried on version 1"]
        assert len(tried) >= 10
    assert len({(row["question"], reply) for _, reply, row in cases}) == len(cases)


def test_what_no_list_has_stays_refused(cases):
    limits = [(e, reply) for e, reply, row in cases if row["source"] == LIMIT]
    assert len(limits) == 7
    for entry, reply in limits:
        assert not score_answer_v2(entry, reply), reply
        assert not score_answer(entry, reply), reply


def test_version_1_decides_many_of_them_otherwise(cases):
    verdicts = np.array(
        [(score_answer(e, reply), row["right"] == "1") for e, reply, row in cases]
    )
    refused = np.sum(~verdicts[:, 0] & verdicts[:, 1])
    accepted = np.sum(verdicts[:, 0] & ~verdicts[:, 1])
    assert refused > 40
    assert accepted > 60


def test_every_entry_of_the_course_can_be_answered_and_not_by_repeating_it(data):
    for entry in data:
        for reply in (entry["output"], f"Sure:\n{entry['output']}", *entry["answers"]):
            assert score_answer_v2(entry, reply), (entry, reply)
            assert can_be_read_v2(entry, reply), (entry, reply)
        echoes = [entry["instruction"]]
        if not entry["instruction"].startswith("Why"):
            echoes += [entry["input"], user_text(entry)]
        for echo in echoes:
            assert not score_answer_v2(entry, echo), (entry, echo)


def test_scores_fail_on_answers_to_other_questions(data):
    others = [entry["output"] for entry in data]
    random.Random(0).shuffle(others)
    assert np.mean([score_answer_v2(*pair) for pair in zip(data, others)]) < 0.02


def test_an_answer_that_is_denied_is_not_said(data):
    """Sentences that begin with a negation are another thing."""
    short = [e for e in data if kind_of(e).__name__ in ("right_word", "right_number")]
    assert len(short) > 500
    for entry in short:
        for answer in entry["answers"]:
            assert not score_answer_v2(entry, f"It is not {answer}."), entry


def test_an_entry_without_answers_is_refused():
    with pytest.raises(ValueError, match="'Say hi' lists no answers"):
        score_answer_v2({"instruction": "Say hi", "input": ""}, "hi")


def test_thoughts_and_what_comes_below_a_heading_are_not_the_answer():
    entry = {"instruction": "Name the opposite.", "input": "deep"}
    entry["answers"] = ["shallow"]
    assert not score_answer_v2(entry, "<think>Shallow?</think> It is flat.")
    assert not score_answer_v2(entry, "Flat.\n\n### Response:\nShallow.")
    assert score_answer_v2(entry, "Shallow.\n\n### Input:\nwide or narrow")


NUMBER = {"instruction": "How much is it?", "input": "", "category": "arithmetic"}
WAYS = (
    "{}",
    "{}.",
    "It is {}.",
    "The answer is **{}**.",
    "3 and 4 are not it. So it is {}!",
    "= {}",
    "{}, because 5 is too small",
)


@given(
    st.integers(-(10**7), 10**7), st.integers(0, 3), st.sampled_from(WAYS), st.data()
)
def test_a_number_is_right_in_every_way_to_write_it(digits, places, way, draw):
    value = Decimal(digits).scaleb(-places)
    entry = {**NUMBER, "answers": [f"{value:.{places}f}".rstrip("0").rstrip(".")]}
    if places == 0:
        entry["answers"] = [str(digits)]
    written = f"{value:,.{places}f}"
    forms = [written, written.replace(",", " ") if value > 0 else written]
    if places:
        forms.append(f"{value:.{places}f}0")
    if places and abs(value) < 1000 and places < 3:
        forms.append(f"{value:.{places}f}".replace(".", ","))
    form = draw.draw(st.sampled_from(forms))
    assert score_answer_v2(entry, way.format(form)), (entry, way.format(form))
    other = f"{value + 1:.{places}f}"
    assert not score_answer_v2(entry, way.format(other)), (entry, other)


@given(st.permutations(["oak", "ash", "elm", "yew"]), st.sampled_from([", ", "\n- "]))
def test_a_list_is_right_in_one_order(order, joint):
    entry = {"instruction": "Sort.", "input": "oak, elm, yew, ash", "category": "lists"}
    entry["answers"] = ["ash, elm, oak, yew"]
    right = order == ["ash", "elm", "oak", "yew"]
    assert score_answer_v2(entry, f"Here it is: {joint.join(order)}.") is right


JSON = st.dictionaries(
    st.text(st.characters(codec="ascii", exclude_characters='"'), max_size=4),
    st.one_of(st.integers(), st.booleans(), st.text(max_size=4), st.none()),
    min_size=1,
    max_size=3,
)


@given(JSON, JSON, st.integers(0, 4), st.randoms())
def test_json_is_compared_as_data(data, other, indent, chance):
    entry = {"instruction": "As JSON.", "input": "", "category": "json"}
    entry["answers"] = [json.dumps(data)]
    pairs = list(data.items())
    chance.shuffle(pairs)
    written = json.dumps(dict(pairs), indent=indent or None)
    assert score_answer_v2(entry, f"Of course!\n```json\n{written}\n```")
    as_text = json.dumps(data, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert score_answer_v2(entry, json.dumps(other)) is as_text


@given(st.text(max_size=200), st.integers(0, 2000))
def test_any_text_is_read(text, number):
    entries = test_any_text_is_read.entries
    assert score_answer_v2(entries[number % len(entries)], text) in (True, False)


test_any_text_is_read.entries = [
    e for e in read_instructions(fetch("instructions")) if e.get("answers")
]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("2 000 and 2,000,000", ["2000", "2000000"]),
        ("0,25 l or 1.50 l", ["1/4", "3/2"]),
        ("7 1/2, 6/3", ["15/2"]),
        ("twenty-one, one hundred and five", ["21", "105"]),
        ("two and a half", ["5/2"]),
        ("8500g at 9:40", ["8500"]),
        ("v2 of 63/9", []),
    ],
)
def test_numbers_are_read_as_values(text, values):
    assert [str(value) for _, value in numbers_in(text)] == values


def test_words_name_numbers():
    assert value_of_words("three million two hundred thousand and six") == 3_200_006
    assert value_of_words("zero point zero five") == Fraction(1, 20)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10th of January 2026", (2026, 1, 10)),
        ("January 10th, 2026", (2026, 1, 10)),
        ("1st May 2023", (2023, 5, 1)),
        ("2023-05-01", (2023, 5, 1)),
        ("May 1st", (0, 5, 1)),
        ("at 9.40", (9, 40)),
        ("5 p.m.", (17, 0)),
        ("12:10 am", (0, 10)),
    ],
)
def test_dates_and_times_are_read_as_values(text, value):
    assert [found for _, found in dates_in(text)] == [value]
    assert dates_in("10 and 2026, 3.5 or 1.2.3") == []


def test_the_unit_asked_for_is_known():
    assert unit_asked_for("Change 80 cm into metres.", "0.8") == "m"
    assert unit_asked_for("How many litres are 2 cubic metres?", "2000") == "l"
    assert unit_asked_for("Extract the total.", "214 euros") == "euro"
    assert unit_asked_for("What is 2 + 2?", "4") is None


def test_what_is_offered_is_known():
    entry = {"instruction": "Odd one out?", "input": "bee, ant, fly, whale"}
    assert choices({**entry, "answers": ["Whale"]}) == {"bee", "ant", "fly", "whale"}
    assert choices({**entry, "answers": ["dog"]}) == set()
    day = {"instruction": "Today is Monday. And tomorrow?", "input": ""}
    assert len(choices({**day, "answers": ["Tuesday"]})) == 6
