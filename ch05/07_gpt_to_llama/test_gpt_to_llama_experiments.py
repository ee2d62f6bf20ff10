"""The speed experiments run, and their committed tables are what they write."""

from pathlib import Path

import pytest
import torch

from course import settings
from course.assets import fetch
from course.tables import read
from gguf_files import read_gguf
from gguf_weights import dequantise
from kv_cache import KVCache

FOLDER = Path(__file__).parent
TABLES = ("speed", "profile", "remedies", "loss")


@pytest.fixture(scope="module")
def model(experiments):
    torch.manual_seed(0)
    return experiments.LlamaModel(experiments.TINY).eval()


def committed(name):
    return read(FOLDER / "results" / f"{name}.csv")


def test_tiny_run_writes_tables_like_the_committed_ones(experiments, tmp_path, capsys):
    arguments = ["--tiny", "--rounds", "2", "--out", str(tmp_path)]
    assert experiments.main(arguments) == 0
    assert "s in all" in capsys.readouterr().out
    for name in TABLES:
        rows, stored = read(tmp_path / f"{name}.csv"), committed(name)
        assert list(rows[0]) == list(stored[0])
        first = list(rows[0])[0]
        without_file = {experiments.CPP}
        assert {row[first] for row in rows} == {r[first] for r in stored} - without_file
    assert all(row["rounds"] == "2" for row in read(tmp_path / "speed.csv"))


@pytest.mark.parametrize("threads", ["1", "2"])
def test_committed_figures_meet_the_goals(experiments, threads):
    """Those of the full size: 128 new tokens, all in one run on as many threads.

    An arranged model needs two threads to be 1.5 times as fast as transformers, and
    8 bits are half as fast as llama.cpp in one thread only.
    """
    rows = [row for row in committed("speed") if row["threads"] == threads]
    speed = {row["contestant"]: row for row in rows}
    assert len(rows) == len(speed) == 7
    whole = [row for row in speed.values() if row["task"] == "whole text"]
    assert len(whole) == 5
    assert {row["tokens"] for row in whole} == {"128"}
    ours, arranged = speed[experiments.OURS], speed[experiments.COLUMNS]
    assert {ours["compared_with"], arranged["compared_with"]} == {experiments.THEIRS}
    assert float(ours["times_as_fast"]) > 0.9  # both read 538 MB for a token
    assert float(arranged["times_as_fast"]) >= {"1": 1.4, "2": 1.5}[threads]
    assert speed[experiments.INT8]["compared_with"] == experiments.CPP
    assert (
        float(speed[experiments.INT8]["times_as_fast"]) >= {"1": 0.5, "2": 0.4}[threads]
    )
    assert float(speed[experiments.CACHED]["times_as_fast"]) > 10
    assert speed[experiments.CACHED]["task"] == "step at 512 tokens"


def test_committed_rows_are_from_one_run(experiments):
    rows = committed("speed")
    assert len({(row["machine"], row["torch"], row["rounds"]) for row in rows}) == 1


def test_committed_loading_is_quick_and_small(experiments):
    (ours,) = committed("loading")
    assert ours["loader"] == experiments.OURS
    assert float(ours["seconds"]) <= 5
    assert float(ours["peak_over_model"]) <= 1.2
    assert ours["model_megabytes"] == "538"


def test_committed_losses_are_close(experiments):
    losses = {row["weights"]: float(row["loss"]) for row in committed("loss")}
    exact, int8, twice = losses.values()
    assert 2 < exact < 5
    assert abs(int8 - exact) < 0.05
    assert abs(twice - exact) < 0.5


@torch.no_grad()
def test_all_do_the_same_work(experiments, model):
    """The reference has our weights, and every remedy gives int8's answers."""
    idx = torch.randint(256, (1, 9))
    exact = model(idx)
    assert torch.allclose(experiments.reference(model)(idx).logits, exact, atol=1e-4)
    expected = experiments.quantise_int8(model)(idx)
    for change in (experiments.product_by_product, experiments.written_out):
        found = change(model)(idx, cache=KVCache(2))
        assert (found - expected).abs().max() < 0.05 * expected.std()
    kinds = {type(m).__name__ for m in experiments.written_out(model).modules()}
    assert "RMSNorm" in kinds
    assert "FusedNorm" not in kinds
    for continue_ in (
        experiments.by_ours(model),
        experiments.by_transformers(experiments.reference(model)),
    ):
        assert continue_(idx, 5).shape == (1, 14)


def test_second_rounding_uses_the_grid_of_the_file(experiments):
    """Unshifted it leaves the file's weights where they are; shifted it does not."""
    tensors = read_gguf(fetch("smollm2-135m")).tensors
    weight = dequantise(tensors["blk.0.attn_q.weight"])
    assert tensors["blk.0.attn_q.weight"].format == "Q4_1"
    again = experiments.q4_1_again(weight, shift=0)
    shifted = experiments.q4_1_again(weight, shift=16)
    moved = (again - weight).abs().mean()
    assert moved < 0.1 * (shifted - weight).abs().mean()
    assert shifted.shape == weight.shape


def test_loss_of_a_text_is_that_of_its_tokens(experiments, model):
    """Each token but the first counts once, whatever the windows."""
    ids = torch.randint(256, (41,))
    logits = model(ids[None, :-1])[0]
    whole = torch.nn.functional.cross_entropy(logits, ids[1:]).item()
    assert experiments.story_loss(model, ids, 40) == pytest.approx(whole, rel=1e-5)
    parts = experiments.story_loss(model, ids, 20)
    halves = [experiments.story_loss(model, part, 20) for part in (ids[:21], ids[20:])]
    assert parts == pytest.approx(sum(halves) / 2, rel=1e-5)


def test_a_loader_is_measured_in_its_own_process(experiments):
    path = fetch("smollm2-135m")
    (row,) = experiments.loading_rows(path, {"seed": 1})
    assert float(row["seconds"]) > 0
    assert row["model_megabytes"] == "538"
    assert 0.9 < float(row["peak_over_model"]) < 1.3


def test_the_speed_of_writing_is_that_of_both_copies(experiments, capsys):
    assert experiments.main(["--tiny", "--write", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["measured", "measured"]
    assert all(float(line.split()[1]) > 0 for line in lines)


def test_lab_and_run_let_threads_wait_as_the_table_of_a_busy_machine_says(experiments):
    """Alone at least 95 %, beside a busy process twice as many tokens, in float32."""
    rows = {(row["waiting"], row["beside"]): row for row in committed("busy")}
    assert {name for name, _ in rows} == set(experiments.BUSY_SETTINGS)
    _, chosen = experiments.BUSY_SETTINGS["5,000 looks"]
    assert chosen.items() <= settings.UNLESS_SET.items()

    def over_own(beside, column, name="5,000 looks"):
        own = float(rows["PyTorch's own", beside][f"{column}_tokens_per_second"])
        return float(rows[name, beside][f"{column}_tokens_per_second"]) / own

    assert over_own("nothing", "float32") > 0.9
    assert over_own("nothing", "int8") > 0.9
    assert over_own("a busy process", "float32") > 1.7
    assert over_own("nothing", "int8", "no look") < 0.7
    for column in ("float32", "int8"):
        assert over_own("a busy process", column, "one thread") > 2.5
