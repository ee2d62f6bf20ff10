"""Replies are read without their methods, and errors are counted by group."""

import json
from pathlib import Path

import pytest

from course.tables import read, write
from read_by_hand import (
    errors_of,
    gains_of,
    groups_of,
    main,
    reply_id,
    sheet_of,
    verdicts_of,
)

RESULTS = Path(__file__).parent / "results"
LONG = "It is " + "very " * 12 + "high."


def row(method, question, reply, right="0", right_v2="0"):
    told = {"method": method, "question": question, "reply": json.dumps(reply)}
    return {**told, "seed": "", "right": right, "right_v2": right_v2}


ROWS = [
    row("untuned, Alpaca layout", "Opposite of low?", LONG, "1", "1"),
    row("untuned, Alpaca layout", "2 + 2?", "5, or 4", "1", "0"),
    row("12 blocks", "Opposite of low?", "High.", "1", "1"),
    row("4 blocks", "Opposite of low?", "High.", "1", "1"),
    row("12 blocks", "2 + 2?", "Quatre.", "0", "0"),
    row("4 blocks", "2 + 2?", "5", "0", "0"),
]


def test_a_sheet_has_each_reply_once_and_hides_whose_it_is():
    sheet = sheet_of(ROWS, set(), 99, 0)
    assert len(sheet) == 5
    assert {tuple(line) for line in sheet} == {("id", "question", "reply", "verdict")}
    assert {line["verdict"] for line in sheet} == {""}
    high = reply_id("Opposite of low?", "High.")
    assert high not in {line["id"] for line in sheet_of(ROWS, {high}, 99, 0)}
    for seed in range(4):  # every reply to one question, by whichever method
        replies = {line["reply"] for line in sheet_of(ROWS, set(), 1, seed)}
        assert replies in ({LONG, "High."}, {"5, or 4", "Quatre.", "5"})
    many = [row("12 blocks", f"{i}?", "No.") for i in range(40)]
    first, second = (
        [line["question"] for line in sheet_of(many, set(), 40, seed)]
        for seed in (0, 1)
    )
    assert first != second
    assert sorted(first) == sorted(second) == sorted(one["question"] for one in many)


def test_a_reply_is_long_winded_by_its_words():
    assert groups_of(ROWS[0]) == ["untuned", "long-winded"]
    assert groups_of(ROWS[2]) == ["tuned"]


def test_errors_are_counted_by_group_and_rule():
    right = {LONG: "1", "High.": "1", "Quatre.": "1", "5, or 4": "0"}
    sheet = [line for line in sheet_of(ROWS, set(), 9, 0) if line["reply"] in right]
    by_hand = verdicts_of([{**s, "verdict": right[s["reply"]]} for s in sheet], "me")
    found = {(line["group"], line["rule"]): line for line in errors_of(ROWS, by_hand)}
    lenient, strict = found["untuned", "1"], found["untuned", "2"]
    assert (lenient["accepted"], lenient["accepted_wrong"]) == ("2", "1")
    assert (strict["accepted"], strict["accepted_wrong"]) == ("1", "0")
    assert (lenient["by_hand"], lenient["by_rule"]) == ("50.0", "100.0")
    assert found["12 blocks", "2"]["replies"] == "2"
    assert found["12 blocks", "2"]["by_hand"] == "100.0"
    # "High." was said twice and counts twice; "5" was not read.
    tuned = found["tuned", "2"]
    assert (tuned["replies"], tuned["right"], tuned["refused_right"]) == ("3", "3", "1")
    assert found["long-winded", "1"]["replies"] == "1"


def test_a_gain_is_that_of_the_questions_that_were_read():
    rows = [
        row("untuned, Alpaca layout", one, "No.", right_v2="1")
        for one in ("a", "b", "c")
    ]
    for seed, replies in (("1", ("Yes.", "No.", "Yes.")), ("2", ("Yes.",) * 3)):
        for one, reply in zip("abc", replies):
            rows.append({**row("12 blocks", one, reply), "seed": seed})
    sheet = [line for line in sheet_of(rows, set(), 9, 0) if line["question"] != "c"]
    read_ones = [{**s, "verdict": str(int(s["reply"] == "Yes."))} for s in sheet]
    (found,) = gains_of(rows, verdicts_of(read_ones, "me"))
    assert (found["method"], found["questions"]) == ("12 blocks", "2")
    # By hand 0 of 2 before, 1 and 2 of 2 after; by the rule 2 of 2 before, none after.
    assert (found["by_hand"], found["by_rule_v2"]) == ("75.0", "-100.0")
    assert float(found["by_hand_low"]) < 75 < float(found["by_hand_high"])


def test_a_sheet_goes_out_and_comes_back(tmp_path, capsys):
    write(tmp_path / "replies.csv", ROWS)
    sheet = tmp_path / "sheet.csv"
    options = ["--results", str(tmp_path)]
    assert main([*options, "export", str(sheet), "--questions", "1"]) == 0
    with pytest.raises(ValueError, match="Line 1 of the sheet has the verdict ''"):
        main([*options, "import", str(sheet), "me"])
    lines = [{**line, "verdict": "1"} for line in read(sheet)]
    write(sheet, lines)
    for reader in ("me", "me", "you"):
        assert main([*options, "import", str(sheet), reader]) == 0
    rows = read(tmp_path / "by_hand.csv")
    count = len(lines)
    assert [one["reader"] for one in rows] == ["me"] * count + ["you"] * count
    assert main([*options, "errors"]) == 0
    assert "untuned, version 1" in capsys.readouterr().out
    assert len(read(tmp_path / "by_hand_errors.csv")) == 6 + 2 * 3
    assert main([*options, "export", str(sheet)]) == 0
    assert len(read(sheet)) == 5 - len(lines)
    write(sheet, [{**line, "verdict": "1", "reply": "Other."} for line in lines])
    with pytest.raises(ValueError, match="is not what was exported"):
        main([*options, "import", str(sheet), "me"])


def test_the_committed_errors_follow_from_the_committed_verdicts():
    rows, by_hand = (read(RESULTS / f"{one}.csv") for one in ("replies", "by_hand"))
    assert list(by_hand[0]) == ["question", "reply_id", "verdict", "reader"]
    assert len({one["reply_id"] for one in by_hand}) >= 300
    assert errors_of(rows, by_hand) == read(RESULTS / "by_hand_errors.csv")
    assert gains_of(rows, by_hand) == read(RESULTS / "by_hand_gains.csv")


def test_a_lenient_rule_rewards_whoever_talks_more():
    """What section 7.6 says of both rules, and of whom they are kind to."""
    found = {
        (line["group"], line["rule"]): int(line["accepted_wrong"])
        / int(line["accepted"])
        for line in read(RESULTS / "by_hand_errors.csv")
    }
    assert found["long-winded", "1"] > 0.4
    assert found["untuned", "1"] > found["untuned", "2"] > 0.2
    assert max(found["tuned", "1"], found["tuned", "2"]) < 0.1
