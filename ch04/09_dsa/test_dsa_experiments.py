"""The experiments run, and their committed tables say what the lesson says."""

import statistics
from pathlib import Path

import torch

from course.tables import read
from course.testing.experiment_scripts import other_columns
from gqa import GroupedQueryAttention

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


@torch.no_grad()
def test_the_oracle_copies_the_attention(experiments):
    """Its picks are the heaviest tokens, for a prompt and for one token more."""
    torch.manual_seed(0)
    attention = GroupedQueryAttention(12, num_heads=8, num_kv_groups=2, head_dim=4)
    x = torch.randn(1, 9, 12)
    queries, keys, _ = attention.project(x)
    weights = experiments.summed_weights(queries, keys, experiments.causal(9))
    oracle = experiments.OracleIndexer(attention)
    cached = oracle.make_keys(x, None)
    assert torch.allclose(oracle(x, cached, None), weights, atol=1e-6)
    assert torch.allclose(oracle(x[:, -1:], cached, None), weights[:, -1:], atol=1e-6)
    for first, expected in ((False, [3, 4, 5]), (True, [0, 4, 5])):
        newest = experiments.NewestIndexer(first)
        scores = newest(x, newest.make_keys(x, None), None)
        picked = experiments.pick_keys(scores, experiments.causal(9), 3)[0, 5]
        assert sorted(picked.tolist()) == expected


def test_committed_weight_lies_on_few_tokens():
    """In all layers but the first, and rarely on the newest; with the first token among
    them in many later layers, but not in layers 3 to 8.
    """
    rows = [row for row in read(RESULTS / "share.csv") if row["k"] == "64"]
    assert [int(row["layer"]) for row in rows] == list(range(30))
    assert float(rows[0]["heaviest"]) < 0.5
    assert min(float(row["heaviest"]) for row in rows[1:]) > 0.7
    newest = statistics.mean(float(row["newest"]) for row in rows)
    assert newest < 0.5
    for row in rows:
        layer, on = int(row["layer"]), {key: float(row[key]) for key in list(row)[3:7]}
        assert on["newest"] - 0.01 < on["first_and_newest"] < on["heaviest"]
        assert on["first_and_newest"] < on["newest"] + on["first"] + 1e-3
        assert (on["first"] > 0.2) == (layer >= 12)
        if 3 <= layer <= 8:
            assert on["first_and_newest"] < on["heaviest"] - 0.4


def test_committed_recall_rises_with_the_warm_up():
    found = {}
    for row in read(RESULTS / "recall.csv"):
        key = row["picked_by"], row["k"]
        found.setdefault(key, []).append(float(row["recall"]))
    for k in {k for _, k in found}:
        before, after = found["indexer before", k], found["indexer after warm-up", k]
        assert statistics.mean(after) > statistics.mean(before) + 0.15
        assert all(
            learned > drawn for learned, drawn in zip(after, before, strict=True)
        )
        assert statistics.mean(after) > statistics.mean(found["first and newest", k])


def test_committed_losses_stand_in_this_order():
    rows = read(RESULTS / "loss.csv")
    loss = {(row["picked_by"], row["k"]): float(row["loss"]) for row in rows}
    dense = next(value for (way, _), value in loss.items() if way == "all seen")
    for k in ("64", "128"):
        ways = ("oracle", "indexer after warm-up", "first and newest", "newest")
        found = [loss[way, k] for way in ways]
        assert found[0] < found[1] < found[2] < found[3] - 0.5
        assert found[2] < loss["indexer before", k] - 0.5
        assert found[0] < dense + 0.1


def test_committed_steps_are_faster_in_long_texts():
    """With few picks from 4,096 tokens on; with many not before they are few, too.

    Known mistake: a disturbed measurement, in which a longer text takes less time.
    """
    rows = read(RESULTS / "decoding.csv")
    at = {(row["contestant"], int(row["tokens"])): row for row in rows}
    ratio = {key: float(row["over_plain"]) for key, row in at.items()}
    assert ratio["256 picked", 1024] < 1
    assert 0.9 < ratio["256 picked", 4096] < 1.2
    assert ratio["256 picked", 16_384] > 1.4
    assert ratio["1,024 picked", 4096] < 1 < ratio["1,024 picked", 16_384]
    for name in {name for name, _ in at}:
        lengths = (1024, 4096, 16_384)
        took = [float(at[name, length]["milliseconds"]) for length in lengths]
        assert took[0] < 1.03 * took[1] < 1.06 * took[2]
        for length in lengths:
            row = at[name, length]
            assert float(row["fastest"]) <= float(row["milliseconds"])
            assert float(row["milliseconds"]) <= float(row["slowest"])
    for (name, tokens), row in at.items():
        assert row["cache_bytes"] == row["bytes_by_formula"]
        if name != "all tokens":
            plain = at["all tokens", tokens]
            assert int(row["cache_bytes"]) > int(plain["cache_bytes"])
