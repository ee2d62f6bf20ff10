"""The experiment runs, and its committed tables hold what the page promises."""

import json
from pathlib import Path

import pytest

from course.assets import fetch
from course.tables import read
from course.testing.experiment_scripts import other_columns, script_in
from find_near_duplicates import THRESHOLDS
from passive_makers import gold_pairs
from passive_voice import to_passive

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
TABLES = ["planted.csv", "kinds.csv", "thresholds.csv", "course.csv", "makers.csv"]


@pytest.fixture(scope="module")
def experiments():
    return script_in(FOLDER)


def test_a_tiny_run_writes_tables_like_the_committed_ones(experiments, tmp_path):
    assert experiments.main(["--tiny", "--out", str(tmp_path)]) == 0
    assert other_columns(tmp_path, RESULTS, TABLES) == []
    for row in read(tmp_path / "planted.csv"):
        assert float(row["recall"]) > (
            0.35 if row["method"] == "letters alone" else 0.5
        )
        assert float(row["precision"]) > 0.9


def test_plants_are_where_they_are_said_to_be(experiments):
    entries, planted = experiments.make_entries(600, 10, seed=5)
    assert len(entries) == 600
    assert len(planted) == 10 * len((*experiments.COPIES, *experiments.LOOKALIKES))
    for kind, row, first in planted:
        copy, original = entries[row - 1], entries[first - 1]
        assert first < row
        assert (copy["input"] == original["input"]) == (
            kind in ("same", "marks", "reworded")
        )
        assert (copy["instruction"] != original["instruction"]) == (
            kind in ("marks", "reworded")
        )


def test_hits_are_counted_by_the_text_that_they_come_from(experiments):
    planted = [("same", 5, 2), ("word", 9, 5), ("number", 7, 1)]
    hits = experiments.judge(planted, [(5, 2), (9, 2), (7, 1), (8, 2), (6, 5)])
    assert hits == {"same": 1, "word": 1, "number": 1, "none": 2}


def test_the_simplest_opponent_sees_letters_and_digits_alone(experiments):
    rows = [
        ("Name it.", "A, b 1."),
        ("", "x"),
        ("NAME IT!", "a b 1"),
        ("name it", "ab2"),
    ]
    entries = [{"instruction": a, "input": b} for a, b in rows]
    assert list(experiments.same_letters(entries)) == [(3, 1)]


def test_fifty_thousand_entries_take_two_minutes_and_a_gigabyte_at_most():
    rows = {row["run"]: row for row in read(RESULTS / "planted.csv")}
    for run in ("tfidf", "minhash", "meaning, candidates"):
        row = rows[run]
        assert int(row["entries"]) == 50_000
        assert row["threads"] == "1"
        assert float(row["seconds"]) < 120
        assert float(row["peak_mb"]) < 1000
        assert float(row["precision"]) > 0.9
        assert float(row["recall"]) > 0.8 > float(rows["letters alone"]["recall"])
        assert float(row["threshold"]) == THRESHOLDS[row["method"]]
    for row in read(RESULTS / "kinds.csv"):
        if row["kind"] == "same":
            assert row["found"] == row["planted"]
        if row["kind"] == "number":
            assert row["found"] == "0"


def test_each_threshold_is_the_lowest_with_less_than_four_per_cent_wrong():
    table = read(RESULTS / "thresholds.csv")
    for method, threshold in THRESHOLDS.items():
        mine = {float(r["threshold"]): r for r in table if r["method"] == method}
        good = [t for t, row in mine.items() if float(row["precision"]) > 0.96]
        assert min(good) == threshold
        assert min(mine) < threshold < max(mine)
    planted = {row["seed"] for row in read(RESULTS / "planted.csv")}
    assert planted.isdisjoint({row["seed"] for row in table})


def test_the_tables_of_kinds_and_runs_agree():
    runs = {row["run"]: row for row in read(RESULTS / "planted.csv")}
    for name, run in runs.items():
        kinds = [row for row in read(RESULTS / "kinds.csv") if row["run"] == name]
        copies = [row for row in kinds if row["copy"] == "yes"]
        assert sum(int(row["found"]) for row in copies) == int(run["found"])
        assert sum(int(row["planted"]) for row in copies) == int(run["planted"])
        assert run["recall"] == f"{int(run['found']) / int(run['planted']):.3f}"


def test_the_rules_row_is_what_the_rule_makes():
    pairs = gold_pairs(json.loads(fetch("instructions-2").read_text("utf-8")))
    (row,) = (r for r in read(RESULTS / "makers.csv") if r["maker"] == "the rule")
    assert int(row["sentences"]) == len(pairs)
    assert int(row["made"]) == sum(
        to_passive(active) is not None for active, *_ in pairs
    )
    for row in read(RESULTS / "makers.csv"):
        taken, right = int(row["taken"]), int(row["right"])
        assert int(row["taken_and_right"]) <= min(taken, right)
        assert max(taken, right) <= int(row["made"]) <= int(row["sentences"])
