"""The benchmark runs, and its committed tables say what the lesson says."""

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


def test_committed_rules_differ_where_a_key_was_overwritten():
    """The delta rule recalls in every seed; a sum fails in every seed."""
    rows = read(RESULTS / "recall.csv")
    right = {
        (row["rule"], row["seed"], int(row["before"])): float(row["right"])
        for row in rows
    }
    seeds = {seed for _, seed, _ in right}
    assert len(seeds) == 3
    for seed in seeds:
        for before in range(1, 6):
            for rule in ("delta rule", "gated delta rule"):
                assert right[rule, seed, before] > 0.95
            if before > 1:
                assert right["linear attention", seed, before] < 0.7


def test_committed_states_weigh_the_same_and_take_the_same_time_at_any_length():
    rows = read(RESULTS / "decoding.csv")
    delta = [row for row in rows if row["contestant"] == "gated delta rule"]
    assert len({row["cache_bytes"] for row in delta}) == 1
    assert all(row["cache_bytes"] == row["bytes_by_formula"] for row in rows)
    for row in delta:
        if int(row["tokens"]) >= 4096:
            assert float(row["over_plain"]) > 1


def test_committed_parts_say_what_the_gate_costs():
    """Its matrix is a fifth one to read, a part of what the layer takes longer."""
    rows = {row["part"]: row for row in read(RESULTS / "parts.csv")}
    spent = {name: float(row["milliseconds"]) for name, row in rows.items()}
    weights = {name: int(row["weights"]) for name, row in rows.items()}
    assert weights["five matrices"] - weights["four matrices"] == 1024 * 1024
    assert 1.2 < weights["gated delta rule"] / weights["full: 16 heads"] < 1.3
    gate = spent["five matrices"] - spent["four matrices"]
    more = spent["gated delta rule"] - spent["full: 16 heads"]
    assert 0.2 * more < gate < 0.9 * more
    assert spent["the rule alone"] < spent["four matrices"]
