"""The committed tables are whole, belong together, and say what the page says."""

import json
from pathlib import Path

from course.tables import read
from judged_replies import read_judged_replies, sample_of_replies
from multiple_choice import (
    hits,
    letter_shares,
    read_choice_questions,
    rotations,
)
from ollama_evaluate import read_score

RESULTS = Path(__file__).parent / "results"
REPLIES = read_judged_replies()


def test_every_reply_has_a_verdict_and_every_question_its_scores():
    verdicts = {row["reply_id"] for row in read(RESULTS / "verdicts.csv")}
    assert verdicts == {one.id for one in REPLIES}
    asked = {one.question for one in read_choice_questions()}
    assert {row["question"] for row in read(RESULTS / "cloze.csv")} == asked
    letters = [(row["question"], row["order"]) for row in read(RESULTS / "letters.csv")]
    orders = [" ".join(map(str, order)) for order in rotations()]
    assert sorted(letters) == sorted((one, order) for one in asked for order in orders)


def test_grades_are_those_that_can_be_read_in_what_was_said():
    rows = read(RESULTS / "grades.csv")
    for row in rows:
        grade, kind = read_score(json.loads(row["said"]))
        assert kind == row["kind"]
        assert row["grade"] == ("" if grade is None else str(grade))
    assert len({row["question"] for row in rows}) == 30


def test_pairs_hold_what_they_are_called():
    by_hand = {one.id: one.by_hand for one in REPLIES}
    replies = {one.id: one for one in REPLIES}
    for row in read(RESULTS / "pairs.csv"):
        one, other = replies[row["one"]], replies[row["other"]]
        assert one.question == other.question == row["question"]
        assert by_hand[row["one"]] == (row["kind"] == "right")
        assert not by_hand[row["other"]]
        if row["kind"] == "wrong":
            assert len(one.reply) > len(other.reply)


def test_padding_was_added_to_replies_as_they_were_judged():
    by_hand = {one.id: one.by_hand for one in REPLIES}
    for row in read(RESULTS / "padding.csv"):
        assert int(row["by_hand"]) == by_hand[row["reply_id"]]


def test_the_table_of_costs_counts_the_rows():
    for row in read(RESULTS / "judging.csv"):
        assert int(row["judgements"]) == len(read(RESULTS / row["table"]))


def test_the_page_says_what_the_tables_say():
    pairs = [row for row in read(RESULTS / "pairs.csv") if row["kind"] == "right"]
    always = all(
        float(row["one_first"]) > 0 and float(row["other_first"]) > 0 for row in pairs
    )
    page = (RESULTS.parent / "README.md").read_text(encoding="utf-8")
    assert always
    assert f"the letter A in all {len(pairs)} pairs" in " ".join(page.split())


def test_the_page_says_what_multiple_choice_has_right():
    questions = read_choice_questions()
    answers = [one.answer for one in questions]
    cloze = {row["question"]: row["sums"] for row in read(RESULTS / "cloze.csv")}
    sums = [list(map(float, cloze[one.question].split())) for one in questions]
    letters = {
        (row["question"], row["order"]): row["scores"]
        for row in read(RESULTS / "letters.csv")
    }
    scores = [
        [
            list(map(float, letters[one.question, " ".join(map(str, order))].split()))
            for one in questions
        ]
        for order in rotations()
    ]
    assert letter_shares(scores, rotations()).tolist() == [1, 0, 0, 0]
    page = " ".join((RESULTS.parent / "README.md").read_text("utf-8").split())
    by_sum, by_letters = (hits(one, answers).mean() for one in (sums, scores[0]))
    said = f"{by_sum:.1%} right by the log-probability of each choice"
    assert said.replace("%", " %") in page
    assert f"{by_letters:.1%} by letters".replace("%", " %") in page


def test_a_sample_is_half_right_and_repeats_with_its_seed():
    sample = sample_of_replies(REPLIES, 24, seed=1)
    assert sum(one.by_hand for one in sample) == 12
    assert len({one.id for one in sample}) == 24
    assert sample == sample_of_replies(REPLIES, 24, seed=1)
    assert sample != sample_of_replies(REPLIES, 24, seed=2)
    everything = sample_of_replies(REPLIES, 5000, seed=1)
    assert {one.id for one in everything} == {one.id for one in REPLIES}
