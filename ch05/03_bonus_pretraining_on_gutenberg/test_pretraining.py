"""A run in one process or in several, killed and gone on with, is the same run."""

import contextlib
import io
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import prepare_dataset
import pretraining
import pretraining_options
import process_memory
import script_tools
import shelf
from course import tables
from course.testing.programs import variables
from gpt import GPTConfig
from several_processes import process_group
from token_shards import IGNORED

SCRIPT = Path(pretraining.__file__)
SIZES = ["emb_dim=16", "n_heads=2", "n_layers=1"]
SIZES = list(itertools.chain(*(["--set", size] for size in SIZES)))
PLAN = [*SIZES, "--window", "16", "--batch-size", "6", "--rows", "2"]
PLAN += ["--eval-every", "5", "--eval-windows", "4", "--save-every", "4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small data set; its training split does not divide by anything."""
    folder = tmp_path_factory.mktemp("books") / "shelf"
    folder.mkdir()
    for i in range(6):
        (folder / f"book{i}.txt").write_text(shelf.story(i, 500), encoding="utf-8")
    out = folder.with_name("shards")
    parser = prepare_dataset.make_parser()
    words = ["--books", str(folder), "--out", str(out), "--vocab", "300"]
    words += ["--validation", "book5.txt", "--tokens-per-shard", "3000"]
    prepare_dataset.prepare(folder, out, script_tools.parse(parser, words))
    return out


def run(data, out, *more, main=pretraining.main):
    """Train in this process; return the result."""
    words = ["--data", str(data), "--out", str(out), *PLAN, *map(str, more)]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(words) == 0, said.getvalue()
    return json.loads((out / "result.json").read_text())


def start(processes, data, out, *more, program=(str(SCRIPT),)):
    """The same in several processes, by PyTorch's launcher."""
    launcher = ["-m", "torch.distributed.run", "--standalone"]
    launcher += [f"--nproc_per_node={processes}"]
    words = [*program, "--data", data, "--out", out, *PLAN, *more]
    return subprocess.run(
        [sys.executable, *launcher, *map(str, words)],
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        env={**variables(), "OMP_NUM_THREADS": "1"},
    )


def weights(out):
    saved = torch.load(out / "model" / "checkpoint.pt", weights_only=True)
    return saved["weights"]


def difference(one, other):
    return max((one[name] - other[name]).abs().max().item() for name in one)


def log(out):
    return tables.read(out / "log.csv")


STEPS = 12


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run of 12 steps that nothing disturbed, and its result."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, run(data, out, "--steps", STEPS)


# --- What a step is ------------------------------------------------------------------


def test_the_first_loss_is_that_of_a_guess_and_the_last_is_lower(whole):
    out, result = whole
    rows = log(out)
    assert [int(row["step"]) for row in rows] == list(range(STEPS))
    seen = [row for row in rows if row["val_loss"]]
    assert [int(row["step"]) for row in seen] == [4, 9, 11]
    assert float(seen[0]["train_loss"]) == pytest.approx(math.log(300), abs=0.3)
    assert result["val_loss"] < float(seen[0]["val_loss"]) - 0.05


def test_rates_and_clipping_are_as_planned_from_the_first_step_on(whole):
    out, _ = whole
    share = pretraining.plan_of("cosine", STEPS, 0.02, 0.2)
    rates = [float(row["rate"]) for row in log(out)]
    planned = [2e-3 * share(s) for s in range(STEPS)]
    assert rates == pytest.approx(planned, rel=1e-6)
    assert max(rates) == pytest.approx(2e-3)
    assert min(rates) > 0
    assert all(float(row["norm"]) > 0 for row in log(out))


def test_every_update_is_clipped(data, tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "MAX_NORM", 1e-3)
    lengths = []
    real = torch.optim.AdamW.step

    def spy(optimizer, *rest):
        # The hooks of the optimizer run before; this is what the update sees.
        result = real(optimizer, *rest)
        gradients = [p.grad.norm() for p in pretraining.parameters_of(optimizer)]
        lengths.append(torch.stack(gradients).norm().item())
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    run(data, tmp_path / "out", "--steps", 6, "--warmup", 0.5)
    assert len(lengths) == 6  # updates, not parts of a batch
    assert max(lengths) < 1.01e-3


def test_fused_calls_train_the_same_model(data, whole, tmp_path):
    result = run(data, tmp_path / "out", "--steps", STEPS, "--fused")
    assert result["val_loss"] == pytest.approx(whole[1]["val_loss"], abs=1e-4)
    assert result["val_loss"] != whole[1]["val_loss"]  # rounded in another order
    # The names of chapter 4's model, which read it.
    assert difference(weights(tmp_path / "out"), weights(whole[0])) < 1e-3
    words = ["--data", str(data), "--out", str(tmp_path / "out"), *PLAN]
    assert pretraining.main([*words, "--steps", str(STEPS), "--resume"]) == 2


def alone(data, *more):
    """A run before its first step."""
    words = ["--data", str(data), "--out", "nowhere", *PLAN, *map(str, more)]
    options = pretraining_options.read_options(words)
    options.cfg = GPTConfig.of({**options.cfg, "vocab_size": 300})
    with process_group() as worker:
        return pretraining.Pretraining(options, data, worker)


def gradient(training, rows):
    places = list(training.order.places(len(training.order) - 1))  # the ragged batch
    training.model.zero_grad()
    loss = pretraining.batch_gradient(
        training.model, training.train_split, places, training.worker, rows
    )
    parts = [p.grad.flatten() for p in training.model.parameters()]
    return loss, torch.cat(parts)


def test_a_batch_in_parts_has_the_gradient_of_the_whole_batch(data):
    training = alone(data)
    # Not all windows are full, so that a mean of means would be wrong.
    places = list(training.order.places(0)) + [len(training.train_split.windows) - 1]
    assert training.train_split.num_targets(places) % 16
    wanted = [gradient(training, rows) for rows in (1, 2, 99)]
    for loss, parts in wanted[:-1]:
        assert loss == pytest.approx(wanted[-1][0], abs=1e-6)
        assert (parts - wanted[-1][1]).abs().max() < 1e-6


def test_a_loss_is_the_same_in_any_size_of_batch_and_in_bits(data):
    training = alone(data)
    split = training.val_split
    losses = [
        pretraining.evaluate(training.model, split, training.worker, rows)
        for rows in (1, 3, 1000)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    total = losses[0] * split.windows.num_targets
    assert split.bits_per_byte(losses[0]) == pytest.approx(
        total / math.log(2) / split.bytes
    )
    assert split.bytes == (data.with_name("shelf") / "book5.txt").stat().st_size


def test_counting_targets_by_rule_is_counting_them(data):
    split = pretraining.Split(data, "train", 16)
    last = len(split.windows) - 1
    for places in ([0, 1], [last], [3, last, 0], []):
        _, targets = split.batch(places)
        assert split.num_targets(places) == int((targets != IGNORED).sum())


def test_a_loss_that_is_not_a_number_stops_the_run(data, tmp_path, capsys, monkeypatch):
    real = pretraining.summed_loss
    calls = itertools.count()

    def broken(*arguments):
        return real(*arguments) * (math.nan if next(calls) > 24 else 1)

    monkeypatch.setattr(pretraining, "summed_loss", broken)
    words = ["--data", str(data), "--out", str(tmp_path / "out"), *PLAN]
    assert pretraining.main([*words, "--steps", "12"]) == 2
    assert "the last checkpoint is good" in capsys.readouterr().err
    assert pretraining.checkpoints_in(tmp_path / "out")


# --- Killed --------------------------------------------------------------------------


def killed(data, out, step, *more):
    """Train in a child process that kills itself in this step; how it ended."""
    child = os.fork()
    if child == 0:
        real, moment = pretraining.batch_gradient, itertools.count()

        def mortal(*arguments):
            if next(moment) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)

        pretraining.batch_gradient = mortal
        run(data, out, *more)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a child is made by a fork")
def test_killed_at_three_random_steps_it_ends_with_the_same_bits(data, whole, tmp_path):
    draw = random.Random(3)
    for attempt in range(3):
        out = tmp_path / f"killed-{attempt}"
        step = draw.randrange(1, STEPS)
        assert killed(data, out, step, "--steps", STEPS) == -signal.SIGKILL
        if attempt == 0:  # and once more, after it has gone on
            more = ("--steps", STEPS, "--resume")
            assert killed(data, out, 1, *more) == -signal.SIGKILL
        result = run(data, out, "--steps", STEPS, "--resume")
        assert result["val_loss"] == whole[1]["val_loss"]
        assert difference(weights(out), weights(whole[0])) == 0
        kept = ("step", "tokens", "rate", "norm", "train_loss", "val_loss")
        rows = [[row[name] for name in kept] for row in log(out)]
        wanted = [[row[name] for name in kept] for row in log(whole[0])]
        # The mean over the updates since the last look begins anew with the run.
        for row, other in zip(rows, wanted, strict=True):
            assert row[:4] + row[5:] == other[:4] + other[5:]


def test_a_torn_checkpoint_is_named_and_the_one_before_is_taken(data, tmp_path, capsys):
    out = tmp_path / "out"
    run(data, out, "--steps", STEPS)
    wanted = weights(out)
    names = [folder.name for folder in pretraining.checkpoints_in(out)]
    assert names == ["step-00000008", "step-00000012"]  # two are kept
    torn = out / "checkpoints" / names[-1] / "__0_0.distcp"
    torn.write_bytes(torn.read_bytes()[:-10])
    result = run(data, out, "--steps", STEPS, "--resume")
    assert "torn" in capsys.readouterr().err
    assert result["steps_in_this_run"] == 4
    assert difference(weights(out), wanted) == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a disk that is full")
def test_after_a_full_disk_it_goes_on(data, whole, tmp_path, capsys, monkeypatch):
    out, real = tmp_path / "out", pretraining.Pretraining.save

    def on_a_full_disk(training):
        if training.step == 8:
            name = f"step-{training.step:08}.{os.getpid()}.part"
            (out / "checkpoints" / name).mkdir()
            (out / "checkpoints" / name / "__0_0.distcp").symlink_to("/dev/full")
        real(training)

    words = ["--data", str(data), "--out", str(out), *PLAN, "--steps", str(STEPS)]
    with monkeypatch.context() as patch:
        patch.setattr(pretraining.Pretraining, "save", on_a_full_disk)
        assert pretraining.main(words) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "No space left for" in said
    assert "--resume" in said
    result = run(data, out, "--steps", STEPS, "--resume")
    assert result["steps_in_this_run"] == STEPS - 4
    assert difference(weights(out), weights(whole[0])) == 0


def test_a_run_goes_on_with_its_own_settings_only(data, whole, capsys):
    words = ["--data", str(data), "--out", str(whole[0]), *PLAN]
    assert pretraining.main([*words, "--steps", "12"]) == 2
    assert "--resume goes on with it" in capsys.readouterr().err
    assert pretraining.main([*words, "--steps", "13", "--resume"]) == 2
    assert "steps (12 there, 13 here)" in capsys.readouterr().err
    assert pretraining.main([*words, "--window", "17"]) == 2


def test_the_log_can_be_read_while_the_run_goes_on(data, tmp_path, monkeypatch):
    lengths = []
    real = pretraining.Pretraining.update

    def looking(training):
        path = tmp_path / "out" / "log.csv"
        lengths.append(len(tables.read(path)) if path.exists() else 0)
        return real(training)

    monkeypatch.setattr(pretraining.Pretraining, "update", looking)
    run(data, tmp_path / "out", "--steps", 6)
    assert lengths == list(range(6))


def test_a_model_is_read_by_chapter_5(data, whole):
    from pretrained import load_pretrained

    loaded = load_pretrained(whole[0] / "model")
    assert loaded.tokenizer.n_vocab == 300
    with process_group() as worker:
        split = pretraining.Split(data, "validation", 16)
        loss = pretraining.evaluate(loaded.model, split, worker, 8)
    assert loss == pytest.approx(whole[1]["val_loss"], rel=1e-6)


def test_data_that_are_missing_or_not_finished_are_named(tmp_path, capsys):
    words = ["--out", str(tmp_path / "out"), "--data"]
    assert pretraining.main([*words, str(tmp_path / "missing")]) == 2
    assert "prepare_dataset.py first" in capsys.readouterr().err
    half = tmp_path / "half"
    (half / "clean").mkdir(parents=True)
    (half / "clean" / "0000000.txt").write_text(shelf.story(1))
    (half / prepare_dataset.STATE).touch()
    assert pretraining.main([*words, str(half)]) == 2
    assert "not finished" in capsys.readouterr().err
    assert not (tmp_path / "out-shards").exists()


def test_a_folder_of_texts_is_prepared_first(data, tmp_path, capsys):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.txt").write_text(shelf.story(i, 600), encoding="utf-8")
    parser = prepare_dataset.make_parser
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_dataset, "make_parser", lambda: smaller(parser()))
        result = run(folder, tmp_path / "out", "--steps", 2)
        shards = tmp_path / "out-shards"
        before = (shards / "manifest.json").read_bytes()
        # Other texts: nothing is lost unasked; started over, all of it is made anew.
        (folder / "new.txt").write_text(shelf.story(77, 600), encoding="utf-8")
        (shards / "mine.txt").write_text("mine")
        words = ["--data", str(folder), "--out", str(tmp_path / "out"), *PLAN]
        assert pretraining.main([*words, "--steps", "2"]) == 2
        assert "--overwrite starts over" in capsys.readouterr().err
        assert (shards / "manifest.json").read_bytes() == before
        mine = tmp_path / "out" / "model" / "mine.txt"
        mine.write_text("mine")
        run(folder, tmp_path / "out", "--steps", 2, "--overwrite")
        assert mine.read_text() == "mine"
    assert result["steps"] == 2
    assert (shards / "manifest.json").read_bytes() != before
    assert "new.txt" in (shards / "books.csv").read_text(encoding="utf-8")
    assert (shards / "mine.txt").read_text() == "mine"


def smaller(parser):
    parser.set_defaults(vocab="300", share=0.3)
    return parser


# --- Several processes ---------------------------------------------------------------


RECORDER = """
import os, sys
sys.path.insert(0, {folder!r})
import pretraining
from several_processes import leave

real = pretraining.Split.batch

def recording(split, places):
    inputs, targets = real(split, places)
    if split.windows.paths[0].parent.name == "train":
        name = f"{{os.environ.get('RECORD')}}-{{os.environ.get('RANK', 0)}}.txt"
        with open(name, "a") as file:
            print(*places, sep=",", file=file)
    return inputs, targets

pretraining.Split.batch = recording
leave(lambda: pretraining.main(sys.argv[1:]))
"""


def seen(prefix):
    """The windows that all processes of a run have read."""
    files = sorted(prefix.parent.glob(f"{prefix.name}-*.txt"))
    parts = ",".join(path.read_text().replace("\n", ",") for path in files)
    return [int(place) for place in parts.split(",") if place]


@pytest.fixture(scope="module")
def recorder(tmp_path_factory):
    path = tmp_path_factory.mktemp("recorder") / "recorder.py"
    path.write_text(RECORDER.format(folder=str(SCRIPT.parent)), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_read_every_window_once_and_train_what_one_trains(
    data, whole, tmp_path, recorder, processes, monkeypatch
):
    monkeypatch.setenv("RECORD", str(tmp_path / "seen"))
    out = tmp_path / "out"
    more = ("--fsdp",) if processes == 2 else ("--rows", 1)  # DDP, two parts
    done = start(processes, data, out, *more, program=(recorder,))
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "result.json").read_text())
    split = pretraining.Split(data, "train", 16)
    assert sorted(seen(tmp_path / "seen")) == list(range(len(split.windows)))
    assert result["tokens"] == split.windows.num_targets
    alone_out = tmp_path / "alone"
    one = run(data, alone_out)
    assert one["tokens"] == result["tokens"]
    assert result["val_loss"] == pytest.approx(one["val_loss"], abs=2e-4)
    assert difference(weights(out), weights(alone_out)) < 2e-3


def test_a_run_of_two_goes_on_as_one_with_the_same_batches(
    data, tmp_path, recorder, monkeypatch
):
    out, alone_out = tmp_path / "out", tmp_path / "alone"
    monkeypatch.setenv("RECORD", str(tmp_path / "two"))
    # Both processes end after four steps, as if the machine had failed then.
    stop = Path(recorder).with_name("stop.py")
    text = (
        Path(recorder)
        .read_text(encoding="utf-8")
        .replace(
            "leave(",
            "save = pretraining.Pretraining.save\n"
            "def last(training):\n    save(training)\n    os._exit(9)\n"
            "pretraining.Pretraining.save = last\nleave(",
        )
    )
    stop.write_text(text, encoding="utf-8")
    done = start(2, data, out, "--steps", STEPS, program=(str(stop),))
    assert done.returncode != 0
    names = [folder.name for folder in pretraining.checkpoints_in(out)]
    assert names == ["step-00000004"]
    result = run(data, out, "--steps", STEPS, "--resume")
    assert result["steps_in_this_run"] == STEPS - 4
    training = alone(data, "--steps", STEPS)
    wanted = [set(training.order.places(step)) for step in range(STEPS)]
    assert set(seen(tmp_path / "two")) == set().union(*wanted[:4])
    run(data, alone_out, "--steps", STEPS)
    # Rounding aside (two processes add in another order) it is the run of one.
    assert difference(weights(out), weights(alone_out)) < 1e-3


# --- Memory --------------------------------------------------------------------------


def train_quietly(data, out, steps):
    """For `process_memory.measure`: in a process of its own."""
    run(data, out, "--steps", steps, "--eval-every", 10_000, "--save-every", 10_000)
    yield "trained"


def large_data(folder, tokens):
    """A data set of random ids."""
    ids = np.random.default_rng(1).integers(300, size=tokens, dtype=np.uint16)
    manifest = {"dtype": "uint16", "tokenizer": "gpt2", "n_vocab": 300, "splits": {}}
    for split, part in (("train", ids), ("validation", ids[:200])):
        (folder / split).mkdir(parents=True)
        part.tofile(folder / split / "00000.bin")
        shards = [{"file": "00000.bin", "tokens": len(part), "sha256": ""}]
        content = {"bytes": 4 * len(part), "tokens": len(part), "shards": shards}
        manifest["splits"][split] = content
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.skipif(not process_memory.memory_now().file, reason="only Linux tells")
def test_memory_in_training_does_not_depend_on_the_size_of_the_data(tmp_path):
    peaks = []
    for name, tokens in (("small", 400_000), ("large", 20_000_000)):
        data = large_data(tmp_path / name, tokens)
        taken = process_memory.measure(
            train_quietly, data, tmp_path / f"{name}-out", 60
        )
        peaks.append(taken.peak)
    assert peaks[1] < 1.1 * peaks[0]
