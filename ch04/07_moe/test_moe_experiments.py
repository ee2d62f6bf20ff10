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
        experiments.used_only(layer, rows),
        experiments.grouped(layer, experiments.stacked(layer), rows),
    ):
        assert torch.allclose(found, expected, atol=1e-5)


def times_of_dense(layer, what, tokens=1024):
    return {
        row["way"]: float(row["times_of_dense"])
        for row in read(RESULTS / "speed.csv")
        if (row["layer"], row["what"]) == (layer, what) and row["tokens"] == str(tokens)
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


def test_committed_way_is_as_fast_as_the_other_sorted_ones_with_many_experts():
    """Within a tenth: two measurements of the same work lie so far apart."""
    times = times_of_dense(MANY, "forward")
    others = times["sorted, added at the end"], times["one grouped product"]
    assert times["sorted by expert"] < 1.1 * min(others)


def test_committed_calls_of_empty_experts_cost_time_when_one_token_is_read():
    times = times_of_dense(MANY, "forward", tokens=1)
    assert times["sorted, without empty calls"] < times["sorted by expert"]


def test_committed_profile_puts_the_products_first():
    first = [row for row in read(RESULTS / "profile.csv") if row["place"] == "1"]
    assert len(first) == 4
    assert {row["operation"] for row in first} == {"aten::mm"}
    assert all(float(row["share"]) > 0.7 for row in first)


def test_committed_trainings_lose_their_balance_or_keep_it():
    """In every one of three seeds; a sigmoid router without its bias loses it, too."""
    worst = {"nothing": [], "nothing (sigmoid)": [], "loss": [], "bias": []}
    for row in read(RESULTS / "training.csv"):
        if row["method"] in worst:
            worst[row["method"]].append(float(row["max_violation"]))
    assert [len(found) for found in worst.values()] == [3, 3, 3, 3]
    lost = worst["nothing"] + worst["nothing (sigmoid)"]
    assert min(lost) > 2 * max(worst["loss"] + worst["bias"])
