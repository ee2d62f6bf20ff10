"""A model in pieces is the whole model, and so is its checkpoint."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fsdp_script
from several_processes import process_group

SCRIPT = Path(fsdp_script.__file__)
STEPS = 20

# The same training, each worker with a whole copy of the model.
DDP = """
import sys
import torch
from torch.nn.parallel import DistributedDataParallel
from fsdp_script import make_model, train
from several_processes import leave, process_group


def main():
    with process_group() as worker:
        model = make_model(123)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        train(DistributedDataParallel(model), optimizer, worker, range(20), 123)
        if worker.is_first:
            torch.save(model.state_dict(), sys.argv[1])
    return 0


leave(main)
"""


def run(processes, *arguments, script=SCRIPT, launcher=()):
    """What a script prints; with one process, ours runs in this one: no new start."""
    arguments = [*map(str, arguments)]
    if processes == 1 and not launcher:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert fsdp_script.main([*arguments, "--processes", "1"]) == 0
        return said.getvalue()
    done = subprocess.run(
        [sys.executable, *launcher, script, *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded(folder):
    """Weights, optimizer's state and next step of a checkpoint, in this one process."""
    model = fsdp_script.make_model(seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with process_group() as worker:
        progress = fsdp_script.load(model, optimizer, folder, worker)
    momentum = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
    return model.state_dict(), momentum, progress


def difference(one, other):
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Checkpoints after 20 steps of one and of two processes."""
    folder = tmp_path_factory.mktemp("fsdp")
    for processes in (1, 2):
        out = folder / f"{processes}"
        said = run(processes, "--steps", STEPS, "--out", out)
        assert f"{processes} process(es)" in said
    return folder


def test_two_shards_train_what_one_process_and_ddp_train(checkpoints, tmp_path):
    one, two = (loaded(checkpoints / n)[0] for n in "12")
    assert difference(one, two) < 1e-5  # measured: 6e-8
    script, file = tmp_path / "ddp.py", tmp_path / "ddp.pt"
    script.write_text(DDP, encoding="utf-8")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    run(2, file, script=script, launcher=launcher)
    assert difference(torch.load(file), two) < 1e-5  # measured: 0


@pytest.mark.parametrize("processes", [1, 3])
def test_a_checkpoint_of_two_is_loaded_exactly_by_others(
    checkpoints, tmp_path, processes
):
    out = tmp_path / "again"
    # Loading, no step, saving: nothing may change on the way.
    again = tmp_path / "again.py"
    again.write_text(
        "import fsdp_script\n"
        "from several_processes import leave\n"
        "fsdp_script.train = lambda *parts: float('nan')\n"
        "leave(fsdp_script.main)\n",
        encoding="utf-8",
    )
    launcher = ("-m", "torch.distributed.run", "--standalone")
    run(
        processes,
        *("--steps", 1, "--resume", checkpoints / "2", "--out", out),
        script=again,
        launcher=(*launcher, f"--nproc_per_node={processes}"),
    )
    weights, momentum, progress = loaded(checkpoints / "2")
    new_weights, new_momentum, new_progress = loaded(out)
    assert difference(weights, new_weights) == 0
    assert all(map(torch.equal, momentum, new_momentum))
    assert progress == {"step": STEPS, "seed": 123}
    assert new_progress == {"step": STEPS + 1, "seed": 123}
    assert momentum[0].abs().max() > 0  # it holds something


def test_going_on_is_as_if_never_stopped(checkpoints, tmp_path):
    went_on, straight = tmp_path / "went-on", tmp_path / "straight"
    # The seed belongs to the checkpoint: another one is of no effect.
    resume = ("--resume", checkpoints / "1", "--seed", 7)
    run(1, "--steps", 5, *resume, "--out", went_on)
    run(1, "--steps", STEPS + 5, "--out", straight)
    assert difference(loaded(went_on)[0], loaded(straight)[0]) == 0


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda f: (f / "__1_0.distcp").unlink(), "__1_0.distcp is missing"),
        (lambda f: (f / ".metadata").unlink(), ".metadata is missing"),
        (lambda f: (f / "__0_0.distcp").write_bytes(b"x"), "is not as it was written"),
        (lambda f: (f / fsdp_script.LIST).unlink(), "holds no whole checkpoint"),
        (lambda f: (f / fsdp_script.LIST).write_text("{"), "holds no whole checkpoint"),
        (lambda f: (f / fsdp_script.LIST).write_text("{}"), "holds no whole checkpoi"),
        (lambda f: (f / fsdp_script.LIST).write_text("[]"), "holds no whole checkpoi"),
    ],
)
def test_a_torn_checkpoint_is_refused_in_one_sentence(
    checkpoints, tmp_path, damage, sentence
):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in (checkpoints / "2").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    fsdp_script.check_whole(copy)
    damage(copy)
    with pytest.raises(ValueError, match=sentence):
        fsdp_script.check_whole(copy)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--resume", "."), "holds no whole checkpoint"),
        (("--out", "no/folder"), "cannot be written"),
        (("--processes", "5"), "choose a divisor of 48"),
    ],
)
def test_mistakes_are_told_before_any_worker_starts(arguments, sentence, capsys):
    with pytest.raises(SystemExit, match="2"):
        fsdp_script.main([*arguments])
    assert sentence in capsys.readouterr().err.splitlines()[-1]


def test_each_of_two_holds_half(checkpoints):
    files = json.loads((checkpoints / "2" / fsdp_script.LIST).read_text("utf-8"))
    sizes = [
        (checkpoints / "2" / name).stat().st_size for name in files if "_0" in name
    ]
    assert len(sizes) == 2
    assert max(sizes) < 1.1 * min(sizes)
