"""The experiments run, and their committed tables say what the pages say."""

import re
from pathlib import Path

import pytest

from course.tables import read
from course.testing.experiment_scripts import other_columns, script_in

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
EXPERIMENTS = script_in(FOLDER)
NAMES = [f"{name}.csv" for name in EXPERIMENTS.TABLES]


def test_a_tiny_run_writes_tables_like_the_committed_ones(tmp_path, capsys):
    assert EXPERIMENTS.main(["--tiny", "--out", str(tmp_path)]) == 0
    assert "s in all" in capsys.readouterr().out
    assert other_columns(tmp_path, RESULTS, NAMES) == []
    for name in ("training.csv", "encoding.csv"):
        made, stored = read(tmp_path / name), read(RESULTS / name)
        assert [row["contestant"] for row in made] == [r["contestant"] for r in stored]
        assert [row["text"] for row in made] == [row["text"] for row in stored]


def by_contestant(name, text):
    rows = read(RESULTS / f"{name}.csv")
    return {row["contestant"]: row for row in rows if row["text"] == text}


def test_the_fast_trainer_is_fast():
    """At full size, 5 MB and 4,096 entries, 50 times as fast as the naive one.

    It is also if all merges of the naive one took only as long as its last ones.
    """
    rows = by_contestant("training", EXPERIMENTS.LARGE)
    assert {row["threads"] for row in rows.values()} == {"1"}
    ours = rows[EXPERIMENTS.INCREMENTAL]
    assert int(ours["characters"]) > 5_000_000
    assert ours["merges"] == "3839"
    seconds = {name: float(row["seconds"]) for name, row in rows.items()}
    mine = seconds[EXPERIMENTS.INCREMENTAL]
    assert seconds[EXPERIMENTS.ALL] > 50 * mine
    assert 3839 / 20 * seconds[EXPERIMENTS.LAST] > 50 * mine
    assert mine < 10 * seconds[EXPERIMENTS.RUST]
    first = rows[EXPERIMENTS.FIRST]
    assert first["merges"] == "200"
    extrapolated = float(first["seconds"]) / 200 * 3839
    assert seconds[EXPERIMENTS.ALL] == pytest.approx(extrapolated, rel=1e-2)


def test_the_page_shows_the_seconds_of_the_table():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = by_contestant("training", EXPERIMENTS.LARGE)
    shown = re.findall(r"^\| .* \| ([\d.]+) \|$", page, re.MULTILINE)
    names = (EXPERIMENTS.ALL, EXPERIMENTS.INCREMENTAL, EXPERIMENTS.RUST)
    assert shown == [rows[name]["seconds"] for name in names]


def test_the_small_text_has_the_size_of_a_well_known_one():
    """742 merges on 20 kB, as others have measured it."""
    rows = by_contestant("training", EXPERIMENTS.SMALL)
    assert {row["merges"] for row in rows.values()} == {"742"}
    assert {row["characters"] for row in rows.values()} == {"20479"}
    assert float(rows[EXPERIMENTS.INCREMENTAL]["seconds"]) < 0.5


def test_many_random_strings_have_the_ids_of_tiktoken():
    (row,) = read(RESULTS / "parity.csv")
    assert int(row["strings"]) >= 100_000
    assert row["different"] == row["not_given_back"] == "0"


def test_a_larger_vocabulary_needs_fewer_tokens():
    rows = read(RESULTS / "growth.csv")
    sizes = [int(row["vocabulary"]) for row in rows]
    costs = [float(row["tokens_per_character"]) for row in rows]
    assert sizes == sorted(sizes)
    assert sizes[0] == 256
    assert sizes[-1] == 2**14
    assert costs == sorted(costs, reverse=True)
    assert costs[0] >= 1.0
