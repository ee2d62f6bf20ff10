"""The benchmark runs, and its committed tables are what it writes."""

from pathlib import Path

import torch

from course.tables import read
from course.testing.experiment_scripts import other_columns

FOLDER = Path(__file__).parent


def test_tiny_run_writes_tables_like_the_committed_ones(experiments, tmp_path, capsys):
    assert experiments.main(["--tiny", "--rounds", "3", "--out", str(tmp_path)]) == 0
    assert "of transformers' time" in capsys.readouterr().out
    names = ("speed.csv", "profile.csv")
    assert other_columns(tmp_path, FOLDER / "results", names) == []
    for name in names:
        rows, committed = read(tmp_path / name), read(FOLDER / "results" / name)
        assert {row["model"] for row in rows} == {row["model"] for row in committed}
    speed = read(tmp_path / "speed.csv")
    assert len(speed) == 6
    assert all(float(row["least_seconds"]) > 0 for row in speed)
    assert all(row["rounds"] == "3" for row in speed)


def test_committed_figures_are_those_of_the_full_size():
    for row in read(FOLDER / "results" / "speed.csv"):
        assert (row["batch"], row["tokens"]) == ("2", "256")
        assert float(row["tokens_per_second"]) < 100_000  # a tiny model is faster
        if row["model"] == "gpt.py":
            assert float(row["over_transformers"]) <= 1.1, row["task"]


def test_all_three_do_the_same_work(experiments):
    """The fused one is ours to the last digit but rounding, on the same weights."""
    cfg = experiments.TINY
    models = experiments.contestants(cfg, seed=1)
    idx = torch.randint(cfg["vocab_size"], (2, 8))
    ours = models[experiments.OURS]
    fused = models[experiments.FUSED]
    assert torch.allclose(ours.logits(idx), fused.logits(idx), atol=1e-5)
    own = {id(parameter) for parameter in ours.model.parameters()}
    assert {id(parameter) for parameter in fused.model.parameters()} == own
    counts = {
        sum(p.numel() for p in contestant.model.parameters())
        for contestant in models.values()
    }
    assert len(counts) == 1
    assert models[experiments.THEIRS].logits(idx).shape == (2, 8, cfg["vocab_size"])
    assert not any(
        isinstance(module, (experiments.GELU, experiments.LayerNorm))
        for module in fused.model.modules()
    )


def test_a_training_step_learns(experiments):
    for name, contestant in experiments.contestants(experiments.TINY, seed=1).items():
        idx = torch.arange(8)[None]
        before = contestant.logits(idx)[0, :, 1:9].diagonal().mean()
        for _ in range(5):
            contestant.run("training step", idx, idx + 1)
        assert contestant.logits(idx)[0, :, 1:9].diagonal().mean() > before, name
