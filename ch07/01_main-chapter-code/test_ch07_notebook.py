"""Notebook and script of the chapter run on a reader's own questions.

For the notebook `DATA` is all that changes, and the model is a tiny one.
"""

import json
from pathlib import Path

import pytest

from course.testing.own_data import printed_on
from instruction_data import REWRITES, SIZES, load_parts

NOTEBOOK = Path(__file__).with_name("ch07.ipynb")


def bare(number):
    """Nothing but a question and its answer."""
    return {"instruction": f"Say {number}.", "output": f"I say {number}."}


def sorted_into_parts(number):
    """All fields, with a split, and answers for some of the entries only."""
    entry = {**bare(number), "input": "now " * (number % 3), "category": "echo"}
    entry["split"] = ("train", "train", "validation", "test")[number % 4]
    return entry | ({"answers": [str(number)]} if number % 8 < 6 else {})


@pytest.mark.parametrize("make", [bare, sorted_into_parts])
def test_the_notebook_runs_on_other_questions(tmp_path, make):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([make(i) for i in range(64)]), encoding="utf-8")
    printed = printed_on(NOTEBOOK, path)
    assert "64 entries" in printed["load"]
    assert "tuned, alpaca: " in printed["after"]
    assert "same answers after loading: True" in printed["save-run"]


def test_quick_takes_rewrites_of_the_courses_questions_and_everything_of_others(
    tmp_path,
):
    parts = load_parts(None, None, SIZES["quick"])
    assert [len(part) for part in parts] == [152, 23, 60]
    for part in parts:
        assert {entry["category"] for entry in part} == {*REWRITES}
        assert all(entry["answers"] for entry in part)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([sorted_into_parts(i) for i in range(64)]))
    own = load_parts(path, None, SIZES["quick"])
    assert [len(part) for part in own] == [32, 16, 16]
