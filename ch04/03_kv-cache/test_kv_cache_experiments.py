"""The benchmark runs, and its committed tables say what the lesson says."""

from pathlib import Path

import torch

from course.tables import read
from course.testing.experiment_scripts import other_columns

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"


def test_tiny_run_writes_tables_like_the_committed_ones(experiments, tmp_path, capsys):
    assert experiments.main(["--tiny", "--rounds", "2", "--out", str(tmp_path)]) == 0
    assert "s in all" in capsys.readouterr().out
    names = [f"{name}.csv" for name in experiments.TABLES]
    assert other_columns(tmp_path, RESULTS, names) == []
    assert sorted(names) == sorted(path.name for path in RESULTS.glob("*.csv"))
    speed = read(tmp_path / "speed.csv")
    assert {row["same_ids"] for row in speed} == {"True"}
    for row in read(tmp_path / "guesses.csv") + read(tmp_path / "ahead.csv"):
        assert row["same_text"] == row["prompts"]
    assert all(
        float(row["logits_within"]) < 1e-4 for row in read(tmp_path / "chunks.csv")
    )


def test_the_reference_has_our_weights(experiments):
    """Otherwise its ids and its time would be those of another model."""
    torch.manual_seed(1)
    ours = experiments.GPTModel(experiments.TINY).eval()
    theirs = experiments.reference(ours)
    idx = torch.randint(128, (2, 9))
    with torch.no_grad():
        assert torch.allclose(theirs(idx).logits, ours(idx), atol=1e-4)


def test_a_model_with_fewer_layers_shares_its_weights(experiments):
    torch.manual_seed(1)
    model = experiments.LlamaModel(experiments.TINY_LLAMA).eval()
    smaller = experiments.with_layers(model, [0, 2])
    idx = torch.randint(128, (1, 5))
    assert smaller.trf_blocks[1] is model.trf_blocks[2]
    assert len(model.trf_blocks) == 3
    assert smaller.cfg["n_layers"] == 2
    with torch.no_grad():
        assert not torch.allclose(smaller(idx), model(idx))
        assert torch.equal(experiments.with_layers(model, range(3))(idx), model(idx))


def test_committed_speed_keeps_what_the_course_promises():
    rows = {row["contestant"]: row for row in read(RESULTS / "speed.csv")}
    assert {row["new_tokens"] for row in rows.values()} == {"200"}
    assert {row["same_ids"] for row in rows.values()} == {"True"}
    fast = rows["ours, a fast copy, cache"]
    assert float(fast["over_no_cache"]) >= 12
    assert float(fast["over_transformers"]) >= 1.2


def test_committed_prefix_reads_a_whole_question_after_what_is_kept():
    """Known mistake: the text before was the text itself, with one token to read."""
    assert all(int(row["read_now"]) > 1 for row in read(RESULTS / "prefix.csv"))


def test_committed_guesses_leave_every_text_as_it_was():
    rows = read(RESULTS / "guesses.csv")
    every = [row for row in rows if row["kind"] == "all"]
    assert len(every) == 5
    assert all(row["same_text"] == row["prompts"] == "50" for row in every)


def test_committed_curve_reaches_the_full_context():
    for name in ("GPT 124M", "SmolLM2-135M"):
        rows = [row for row in read(RESULTS / "curve.csv") if row["model"] == name]
        assert rows[-1]["length"] == "1024"
        assert float(rows[-1]["times_as_fast"]) > 50
