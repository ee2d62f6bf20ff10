"""The benchmark runs, and its committed tables say what the lesson says."""

from pathlib import Path

import pytest
import torch

from course.tables import read
from course.testing.experiment_scripts import other_columns

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
FEW, MANY = "8 experts, 2 of a token", "64 experts, 8 of a token"


class Options:
    tiny, rounds = True, 2


def test_tiny_run_writes_tables_like_the_committed_ones(experiments, tmp_path, capsys):
    assert experiments.main(["--tiny", "--rounds", "2", "--out", str(tmp_path)]) == 0
    assert "s in all" in capsys.readouterr().out
    names = [f"{name}.csv" for name in (*experiments.TABLES, "loads")]
    assert other_columns(tmp_path, RESULTS, names) == []
    assert sorted(names) == sorted(path.name for path in RESULTS.glob("*.csv"))


@torch.no_grad()
@pytest.mark.parametrize("name", [FEW, MANY])
def test_all_ways_give_the_same(experiments, name):
    """Otherwise their times would be those of different work."""
    layer = experiments.MoEBench(Options).layer(name)
    rows = torch.randn(7, 16, generator=torch.Generator().manual_seed(0))
    expected = layer(rows[None])[0]
    for found in (
        experiments.by_token(layer, rows),
        experiments.every_expert(layer, rows),
        experiments.collected(layer, rows),
        experiments.grouped(layer, experiments.stacked(layer), rows),
    ):
        assert torch.allclose(found, expected, atol=1e-5)


def times_of_dense(layer, what):
    return {
        row["way"]: float(row["times_of_dense"])
        for row in read(RESULTS / "speed.csv")
        if (row["layer"], row["what"], row["tokens"]) == (layer, what, "1024")
    }


@pytest.mark.parametrize("what", ["forward", "forward and backward"])
@pytest.mark.parametrize("layer", [FEW, MANY])
def test_committed_dispatch_takes_at_most_one_and_a_half_times(layer, what):
    """Of a dense layer with the same active weights, for 1,024 tokens, in one run."""
    times = times_of_dense(layer, what)
    assert times["sorted by expert"] <= 1.5
    if (layer, what) == (FEW, "forward"):
        assert times["every expert on every token"] > 2
        assert times["token by token"] > 2


def test_committed_way_beats_adding_at_the_end_with_many_experts():
    times = times_of_dense(MANY, "forward")
    assert times["sorted by expert"] < times["sorted, added at the end"]
    assert times["sorted by expert"] <= times["one grouped product"]


def test_committed_profile_puts_the_products_first():
    first = [row for row in read(RESULTS / "profile.csv") if row["place"] == "1"]
    assert len(first) == 4
    assert {row["operation"] for row in first} == {"aten::mm"}
    assert all(float(row["share"]) > 0.7 for row in first)


def test_committed_trainings_lose_their_balance_or_keep_it():
    """In every one of three seeds."""
    worst = {"nothing": [], "loss": [], "bias": []}
    for row in read(RESULTS / "training.csv"):
        if row["method"] in worst:
            worst[row["method"]].append(float(row["max_violation"]))
    assert [len(found) for found in worst.values()] == [3, 3, 3]
    assert min(worst["nothing"]) > 2 * max(worst["loss"] + worst["bias"])
