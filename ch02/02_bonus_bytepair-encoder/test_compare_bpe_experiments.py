"""The benchmark runs, and its committed tables are what it writes, at full size."""

from pathlib import Path

import pytest

from course.tables import read
from course.testing.experiment_scripts import other_columns

FOLDER = Path(__file__).parent
TABLES = ("speed.csv", "growth.csv", "agreement.csv")


def test_tiny_run_writes_tables_like_the_committed_ones(experiments, tmp_path, capsys):
    assert experiments.main(["--tiny", "--rounds", "1", "--out", str(tmp_path)]) == 0
    assert "times tiktoken's" in capsys.readouterr().out
    assert other_columns(tmp_path, FOLDER / "results", TABLES) == []
    for name in TABLES:
        rows, committed = read(tmp_path / name), read(FOLDER / "results" / name)
        for key in {"implementation", "task"} & set(rows[0]):
            assert {row[key] for row in rows} == {row[key] for row in committed}
    assert all(float(row["seconds"]) > 0 for row in read(tmp_path / "speed.csv"))
    newest = {
        row["implementation"]
        for row in read(tmp_path / "agreement.csv")
        if row["differing"] != "0"
    }
    assert newest == {"ours", "transformers, in Python"}


def test_committed_tables_are_of_the_full_size(experiments):
    results = FOLDER / "results"
    sizes = {int(row["characters"]) for row in read(results / "speed.csv")}
    assert sizes == {0, len(experiments.SENTENCE), 23_357, 300_000}
    letters = {int(row["letters"]) for row in read(results / "growth.csv")}
    assert letters == set(experiments.LETTERS)
    for row in read(results / "agreement.csv"):
        assert row["characters"] == str(0x110000 - 0x800)
        assert row["differing_and_known"] == "0", row["implementation"]
        in_python = row["implementation"] in ("ours", "transformers, in Python")
        assert (int(row["differing"]) > 0) == in_python


def test_other_ids_stop_the_run(experiments, monkeypatch):
    """A fast tokenizer that is wrong must not get into the table."""
    load, _ = experiments.ENCODERS["tiktoken"]
    wrong = {"wrong": (load, lambda one, text: one.encode_ordinary(text)[:-1])}
    timed = {"tiktoken": experiments.ENCODERS["tiktoken"], **wrong}
    monkeypatch.setattr(experiments, "TIMED", timed)
    with pytest.raises(RuntimeError, match="wrong gives other ids"):
        list(experiments.speed_rows({"story": "Half a ladder"}, 1, {}))
