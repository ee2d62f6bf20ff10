"""The measurements run, and the committed tables are what they write."""

import math
import mmap
from pathlib import Path

from course.tables import read
from course.testing.experiment_scripts import other_columns
from flops import (
    Ceilings,
    Work,
    forward_work,
    matmul_flops,
    training_bytes,
    training_work,
)

FOLDER = Path(__file__).parent
NAMES = (
    "ceilings.csv",
    "roofline.csv",
    "memory.csv",
    "few_rows.csv",
)


def committed(name):
    return read(FOLDER / "results" / f"{name}.csv")


def test_tiny_run_writes_tables_like_the_committed_ones(experiments, tmp_path, capsys):
    assert experiments.main(["--tiny", "--rounds", "1", "--out", str(tmp_path)]) == 0
    assert "of the roof" in capsys.readouterr().out
    assert other_columns(tmp_path, FOLDER / "results", NAMES) == []
    rows = read(tmp_path / "roofline.csv")
    assert {row["model"] for row in rows} == set(experiments.CONFIGS)
    assert {row["task"] for row in rows} == {"prefill", "decode", "training"}
    assert all(float(row["seconds"]) > 0 for row in rows)
    for row in read(tmp_path / "memory.csv"):
        assert row["activations"] == row["measured_activations"]
    both = {(row["weights"], int(row["rows"])) for row in read(tmp_path / NAMES[3])}
    assert both == {
        (order, rows)
        for order in ("by output", "by input")
        for rows in experiments.ROWS
    }


def test_only_the_asked_table_is_measured(experiments, tmp_path, capsys):
    arguments = ["--tiny", "--rounds", "1", "--out", str(tmp_path)]
    assert experiments.main([*arguments, "--only", "few_rows"]) == 0
    assert "256 rows, weights by input" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["few_rows.csv"]


def test_committed_rows_hold_what_the_formulas_say(experiments):
    """The tables stay true when a formula or a config changes."""
    (roof,) = (row for row in committed("ceilings") if row["dtype"] == "float32")
    ceilings = Ceilings(
        1e9 * float(roof["gflops_per_second"]),
        1e9 * float(roof["gigabytes_per_second"]),
    )
    rows = committed("roofline")
    sizes = (experiments.PREFILL, experiments.DECODE, experiments.TRAINING)
    assert len(rows) == len(experiments.CONFIGS) * sum(map(len, sizes))
    for row in rows:
        cfg = experiments.CONFIGS[row["model"]]
        batch, tokens, past = (int(row[key]) for key in ("batch", "tokens", "past"))
        work = (
            training_work(cfg, batch, tokens)
            if row["task"] == "training"
            else forward_work(cfg, batch, tokens, past)
        )
        assert Work(int(row["flops"]), int(row["bytes"])) == work
        speed = 1e9 * float(row["gflops_per_second"])
        assert math.isclose(speed, work.flops / float(row["seconds"]), rel_tol=0.01)
        share = speed / ceilings.attainable(work.intensity)
        assert math.isclose(float(row["share_of_roof"]), share, abs_tol=0.01)
    for row in committed("memory"):
        cfg = experiments.CONFIGS[row["model"]]
        parts = training_bytes(cfg, int(row["batch"]), int(row["tokens"]))
        assert int(row["sum"]) == sum(parts.values())
        assert int(row["measured_activations"]) == parts["activations"]


def test_rows_of_a_layer_hold_what_the_formulas_say(experiments):
    inputs, outputs = experiments.LAYER
    for row in committed("few_rows"):
        rows, seconds = int(row["rows"]), float(row["seconds"])
        numbers = rows * inputs + inputs * outputs + rows * outputs
        work = Work(matmul_flops(rows, inputs, outputs), 4 * numbers)
        assert Work(int(row["flops"]), int(row["bytes"])) == work
        speed = 1e9 * float(row["gflops_per_second"])
        assert math.isclose(speed, work.flops / seconds, rel_tol=0.01)


def test_the_notebook_says_of_the_table_what_is_in_it():
    """The sentences below its reference picture."""
    share = {
        (row["task"], int(row["batch"]), int(row["tokens"]), row["model"][:3]): float(
            row["share_of_roof"]
        )
        for row in committed("roofline")
    }

    def of(*sizes):
        return sorted(share[(*sizes, model)] for model in ("GPT", "Smo"))

    long = [*of("prefill", 1, 64), *of("prefill", 1, 256)]
    assert [round(min(long), 2), round(max(long), 2)] == [0.52, 0.63]
    assert [round(x, 2) for x in of("training", 2, 256)] == [0.49, 0.61]
    short = [*of("prefill", 1, 16), *of("training", 1, 32)]
    assert [round(min(short), 2), round(max(short), 2)] == [0.16, 0.33]
    assert [round(x, 2) for x in of("decode", 1, 1)] == [0.39, 0.49]
    assert max(short) < min(of("decode", 1, 1)) < min(long)
    for model in ("GPT", "Smo"):
        one = share["decode", 1, 1, model]
        assert one > max(share["decode", batch, 1, model] for batch in (4, 16))
    speed = {
        (int(row["batch"]), int(row["tokens"])): float(row["gflops_per_second"])
        for row in committed("roofline")
        if row["model"] == "GPT-2 124M" and row["task"] == "training"
    }
    assert round(speed[2, 256] / speed[1, 32], 1) == 3.0
    (ceiling,) = (row for row in committed("ceilings") if row["dtype"] == "float32")
    reached = [
        float(row["gflops_per_second"]) / float(ceiling["gflops_per_second"])
        for row in committed("roofline")
    ]
    assert [round(min(reached), 2), round(max(reached), 2)] == [0.04, 0.63]  # its title


def test_decoding_leaves_the_cache_as_long_as_the_row_says(experiments):
    cfg = {**experiments.CONFIGS["SmolLM2 135M"], **experiments.TINY}
    model, cache = experiments.make(cfg, seed=1), experiments.KVCache(cfg["n_layers"])
    idx = experiments.random_ids(cfg, 2, 8)
    with experiments.torch.no_grad():
        model.eval()(idx, cache=cache)
        for _ in range(3):
            experiments.decode_step(model, idx[:, :1], cache, 8)
            assert cache.length == 8


def test_memory_is_watched(experiments):
    """Asks for pages: an array may get memory that the process still holds."""
    with experiments.PeakMemory() as process:
        kept = mmap.mmap(-1, 80_000_000)
        for place in range(0, len(kept), mmap.PAGESIZE):
            kept[place] = 1
        seen_by = experiments.time.monotonic() + 30  # by a thread that may have to wait
        while process.peak < process.start + 60_000_000:
            assert experiments.time.monotonic() < seen_by
            experiments.time.sleep(0.01)
        kept.close()
    assert process.grown > 60_000_000
