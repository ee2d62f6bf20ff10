"""Several processes train what one would have trained, and fail in one sentence."""

import contextlib
import importlib.util
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.data.distributed import DistributedSampler

from neural_network import NeuralNetwork
from several_processes import (
    EveryExampleOnce,
    Worker,
    process_group,
    share_of_the_mean,
)

SCRIPT = Path(__file__).with_name("DDP-script.py")
PATIENCE = 240  # seconds; only a hang takes so long

specification = importlib.util.spec_from_file_location("ddp_script", SCRIPT)
ddp_script = importlib.util.module_from_spec(specification)
specification.loader.exec_module(ddp_script)


def run(processes, *arguments, launcher=()):
    """What the script prints; with one process, in this one: that saves a start."""
    arguments = ["--epochs", "2", *map(str, arguments)]
    if processes == 1:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert ddp_script.main([*arguments, "--processes", "1"]) == 0
        return said.getvalue()
    done = subprocess.run(
        [sys.executable, *launcher, SCRIPT, *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def difference(one, other):
    one, other = torch.load(one), torch.load(other)
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """{(processes, dtype): (file of the weights, what was printed)}, 26 steps each."""
    folder = tmp_path_factory.mktemp("ddp")
    found = {}
    for processes, dtype in ((1, "float64"), (2, "float64"), (1, "float32")):
        file = folder / f"{processes}-{dtype}.pt"
        said = run(processes, "--dtype", dtype, "--out", file)
        found[processes, dtype] = file, said
    return found


def test_two_processes_train_what_one_trains(trained):
    gap = difference(trained[1, "float64"][0], trained[2, "float64"][0])
    assert 0 < gap < 1e-12  # other sums, so not equal; measured: 3e-16


def test_torchrun_starts_it_too_and_float32_is_close(trained, tmp_path):
    file = tmp_path / "torchrun.pt"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    run(2, "--out", file, launcher=launcher)
    assert difference(trained[1, "float32"][0], file) < 1e-5  # measured: 1e-7


def test_every_example_is_counted_once_and_losses_agree(trained):
    one, two = (trained[n, "float64"][1].splitlines()[:2] for n in (1, 2))
    assert one == two
    assert all(line.endswith("603 examples") for line in one)


def test_a_worker_with_an_empty_share_takes_part(tmp_path):
    # 603 examples: the second batch has one, so that the second worker has none.
    files = tmp_path / "one.pt", tmp_path / "two.pt"
    for processes, file in zip((1, 2), files):
        run(processes, "--batch-size", 602, "--dtype", "float64", "--out", file)
    assert difference(*files) < 1e-12


@pytest.fixture
def job():
    """The script, at work in two processes that would go on for hours."""
    started = subprocess.Popen(
        [sys.executable, SCRIPT, "--epochs", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    assert started.stdout.readline().startswith("epoch 1:")
    yield started
    started.kill()


def test_a_killed_worker_ends_the_job_and_is_named(job):
    workers = psutil.Process(job.pid).children(recursive=True)
    second = next(w for w in workers if w.environ().get("RANK") == "1")
    second.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    _, said = job.communicate(timeout=PATIENCE)
    assert time.monotonic() - killed < 30
    assert job.returncode == 1
    assert "worker 1" in said.splitlines()[-1]
    assert "was killed by SIGKILL" in said.splitlines()[-1]


def test_ctrl_c_stops_all_workers_and_is_one_sentence(job):
    job.send_signal(signal.SIGINT)
    _, said = job.communicate(timeout=PATIENCE)
    assert job.returncode == 130
    assert said.splitlines()[-1].endswith("interrupted; all workers were stopped.")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--processes", 0), "--processes must be 1 or more"),
        (("--epochs", -1), "--epochs must be 1 or more"),
        (("--batch-size", 47), "choose a multiple of 2"),
        (("--out", "no/such/folder/x.pt"), "cannot be written"),
        (("--seed", 2**70), "has too many digits"),
        (("--device", "cuda"), "finds no GPU here"),
        (("--out", SCRIPT), "exists already"),
    ],
)
def test_mistakes_are_told_before_any_worker_starts(arguments, sentence, capsys):
    with pytest.raises(SystemExit, match="2"):
        ddp_script.main([*map(str, arguments)])
    assert sentence in capsys.readouterr().err.splitlines()[-1]


def test_a_worker_whose_work_is_done_ends_without_an_accident():
    # What other threads do while Python takes itself down cannot be planted at will;
    # that it is not taken down can be seen: `atexit` is a part of it.
    ending = (
        "import atexit, os, several_processes as parts\n"
        "atexit.register(os.abort)\n"
        "def main():\n"
        "    print('all of it')\n"
        "    return {}\n"
        "parts.leave(main)\n"
    )
    environment = {**os.environ, "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    for result, code in (("0", 0), ("3", 3), ("1 / 0", 1)):
        done = subprocess.run(
            [sys.executable, "-c", ending.format(result)],
            capture_output=True,
            encoding="utf-8",
            env=environment,
        )
        assert done.returncode == code
        assert done.stdout == "all of it\n"
        assert ("ZeroDivisionError" in done.stderr) == (code == 1)


def test_a_loss_that_is_not_finite_stops_the_run():
    counts = torch.tensor([float("nan"), 1.0, 2.0])
    worker = Worker(0, 1, torch.device("cpu"))
    with pytest.raises(ArithmeticError, match="In epoch 3 the loss is nan"):
        ddp_script.report(worker, 2, counts)


def test_an_interrupted_save_leaves_no_weights(tmp_path, monkeypatch):
    def torn(state, file):
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(KeyboardInterrupt):
        ddp_script.save(NeuralNetwork(2, 3), tmp_path / "weights.pt")
    assert not (tmp_path / "weights.pt").exists()


# --- Dealing and averaging ------------------------------------------------------------


@given(
    N=st.integers(1, 60),
    world_size=st.integers(1, 5),
    share=st.integers(1, 6),
    epoch=st.integers(0, 3),
)
def test_all_workers_together_have_the_batches_of_one(N, world_size, share, epoch):
    batch_size, data = world_size * share, range(N)
    single = EveryExampleOnce(data, batch_size, 0, 1, seed=5)
    single.set_epoch(epoch)
    hands = []
    for rank in range(world_size):
        dealer = EveryExampleOnce(data, batch_size, rank, world_size, seed=5)
        dealer.set_epoch(epoch)
        hands.append(list(dealer))
        assert len(hands[-1]) == len(dealer) == len(single)
    for number, (whole, *shares) in enumerate(zip(single, *hands)):
        assert sorted(sum(shares, [])) == sorted(whole)
        assert len(whole) == single.global_size(number)
    assert sorted(sum(single, [])) == list(data)


def test_pytorchs_own_sampler_repeats_the_first_example():
    hands = [
        list(DistributedSampler(range(11), 2, rank, shuffle=False)) for rank in (0, 1)
    ]
    assert sorted(sum(hands, [])) == [0, *range(11)]


def test_a_batch_that_cannot_be_dealt_out_is_refused():
    for batch_size in (4, 0):
        with pytest.raises(ValueError, match="choose a multiple of 3 above 0"):
            EveryExampleOnce(range(10), batch_size, rank=0, world_size=3)


@pytest.mark.parametrize("sizes", [(3, 3), (4, 2), (6, 0)])
def test_the_average_of_shares_is_the_mean(sizes):
    torch.manual_seed(0)
    logits = torch.randn(6, 3, dtype=torch.float64)
    labels = torch.arange(6) % 3
    parts = zip(logits.split(sizes), labels.split(sizes))
    shares = [share_of_the_mean(x, y, 6, world_size=2) for x, y in parts]
    assert torch.isclose(sum(shares) / 2, F.cross_entropy(logits, labels))


def test_a_worker_without_a_gpu_of_its_own_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="use --device cpu"), process_group("cuda"):
        pass
