"""The experiments run, and their committed tables say what the lesson says."""

from pathlib import Path

from course.tables import read
from course.testing.experiment_scripts import other_columns

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"


def test_tiny_run_writes_tables_like_the_committed_ones(experiments, tmp_path, capsys):
    assert experiments.main(["--tiny", "--out", str(tmp_path)]) == 0
    assert "s in all" in capsys.readouterr().out
    names = [f"{name}.csv" for name in experiments.TABLES]
    assert other_columns(tmp_path, RESULTS, names) == []
    assert sorted(names) == sorted(path.name for path in RESULTS.glob("*.csv"))
    for row in read(tmp_path / "decoding.csv"):
        assert row["cache_bytes"] == row["bytes_by_formula"]


def test_committed_caches_are_half_as_large_and_not_slower():
    rows = read(RESULTS / "decoding.csv")
    at = {(row["sources"], row["tokens"]): row for row in rows}
    assert {"4096", "8192"} <= {row["tokens"] for row in rows}
    for (name, tokens), row in at.items():
        assert row["cache_bytes"] == row["bytes_by_formula"]
        if name != "each its own" and int(tokens) >= 4096:
            plain = at["each its own", tokens]
            assert 2 * int(row["cache_bytes"]) == int(plain["cache_bytes"])
            assert 1 < float(row["over_plain"]) < 1.2  # and hardly faster


def test_committed_prompts_are_read_faster_where_tokens_leave_early():
    """Behind the last owner lie half of the layers, one, or none."""
    rows = read(RESULTS / "prompt.csv")
    early = {
        (row["sources"], row["prompt"]): float(row["over_plain"])
        for row in rows
        if row["way"] == "leaves early"
    }
    for _, prompt in early:
        ours = [early[name, prompt] for name in ("each its own", "pairs")]
        assert early["last half reads", prompt] > 1.5
        assert early["last half reads", prompt] > max(ours)
