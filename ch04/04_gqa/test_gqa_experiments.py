"""The experiments run, and their committed tables say what the lesson says."""

import re
from pathlib import Path

from course.tables import read
from course.testing.experiment_scripts import other_columns
from kv_cache import kv_cache_bytes

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"


def test_tiny_run_writes_tables_like_the_committed_ones(experiments, tmp_path, capsys):
    assert experiments.main(["--tiny", "--rounds", "2", "--out", str(tmp_path)]) == 0
    assert "wrote" in capsys.readouterr().out
    names = [f"{name}.csv" for name in experiments.TABLES]
    assert other_columns(tmp_path, RESULTS, names) == []
    assert sorted(names) == sorted(path.name for path in RESULTS.glob("*.csv"))
    assert all(float(row["within"]) < 1e-5 for row in read(tmp_path / "ways.csv"))


def test_committed_caches_have_the_size_of_the_formula(experiments):
    for row in read(RESULTS / "groups.csv"):
        by_formula = kv_cache_bytes(
            experiments.WIDE["n_layers"],
            int(row["batch_size"]),
            int(row["groups"]),
            int(row["length"]),
            experiments.WIDE["head_dim"],
        )
        assert int(row["cache_bytes"]) == by_formula


def test_committed_models_with_groups_are_not_slower():
    """The promise of the folder: at 4,096 tokens and more, in one run."""
    rows = [row for row in read(RESULTS / "groups.csv") if int(row["length"]) >= 4096]
    assert {row["groups"] for row in rows} == {"16", "8", "4", "2", "1"}
    assert all(float(row["times_as_fast"]) >= 1 for row in rows)


def test_committed_figure_is_that_of_the_pages():
    """What title, summary and README promise of 1 group at 4,096 tokens."""
    (one,) = (
        row
        for row in read(RESULTS / "groups.csv")
        if (row["groups"], row["batch_size"], row["length"]) == ("1", "1", "4096")
    )
    for name in ("README.md", "gqa.ipynb"):
        page = (FOLDER / name).read_text(encoding="utf-8")
        said = re.findall(r"(\d\.\d+) times (?:as (?:fast|soon) )?after 4,096", page)
        assert said
        assert set(said) == {f"{float(one['times_as_fast']):.1f}"}


def test_committed_ways_agree():
    assert all(float(row["within"]) < 1e-5 for row in read(RESULTS / "ways.csv"))
