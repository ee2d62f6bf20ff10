"""Checkpoints: whole or not at all, whatever is killed, broken or different.

A run that is killed and goes on must end with the weights of one that was not, to the
last bit; so `torch.equal` here, never a tolerance.
"""

import contextlib
import copy
import hashlib
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiktoken
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

import checkpoints
import resumable as around
from bpe import BPETokenizer, tokenizer_from_json
from checkpoints import (
    checkpoint_info,
    load_checkpoint,
    put_learned,
    read_learned,
    save_checkpoint,
    save_learned,
)
from dataloader import SimpleTokenizerV2
from gpt import GPTConfig, GPTModel
from gpt_train import calc_loss_batch, train_model_simple
from resumable import keep_random_states, resumable

TINY = GPTConfig(
    vocab_size=23,
    context_length=10,
    emb_dim=12,
    n_heads=3,
    n_layers=2,
    drop_rate=0.2,
    qkv_bias=True,
)
VOCABULARY = {"<|unk|>": 0, **{str(i): i for i in range(1, 23)}}
WORDS = SimpleTokenizerV2(VOCABULARY)
STEPS = 21  # three epochs of seven


# --- what the tests are made of -------------------------------------------------------


def make(seed=0, **changes):
    torch.manual_seed(seed)
    return GPTModel({**TINY, **changes})


def windows(count=14):
    ids = torch.randint(23, (count, 7), generator=torch.Generator().manual_seed(1))
    return TensorDataset(ids[:, :-1], ids[:, 1:])


def loader(kind="seeded"):
    """The same seven batches in an order that depends on a random generator."""
    own = torch.Generator().manual_seed(3) if kind.startswith("seeded") else None
    if kind == "sampler":
        own = torch.Generator().manual_seed(4)
        sampler = torch.utils.data.RandomSampler(windows(), generator=own)
        return DataLoader(windows(), 2, sampler=sampler)
    if kind == "list":
        return list(DataLoader(windows(), 2))
    workers = 2 if "workers" in kind else 0
    return DataLoader(windows(), 2, shuffle=True, generator=own, num_workers=workers)


def parts(seed=0, kind="seeded", **changes):
    """Model, loader, optimizer and scheduler, as a program makes them at start."""
    model = make(seed, **changes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=50)
    return model, loader(kind), optimizer, scheduler


def train(model, batches, optimizer, scheduler=None, folder=None, **options):
    plan = {"eval_freq": 2, "eval_iter": 2, "start_context": None, "tokenizer": None}
    plan |= {"scheduler": scheduler, "num_epochs": 3, **options}
    how = {"every": plan.pop("every", 2), "resume": plan.pop("resume", False)}
    loop = train_model_simple
    loop = loop if folder is None else resumable(loop, folder, **how)
    held = DataLoader(windows(3), 2)
    with contextlib.redirect_stdout(None):
        return loop(model, batches, held, optimizer, device="cpu", **plan)


def step_once(model, optimizer):
    calc_loss_batch(*windows(2)[:], model, "cpu").backward()
    optimizer.step()
    optimizer.zero_grad()


def same(first, second):
    """Whether two states (dictionaries, lists, tensors, numbers) are equal."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        pairs = first.keys() == second.keys()
        return pairs and all(same(first[name], second[name]) for name in first)
    if isinstance(first, (list, tuple)):
        alike = type(first) is type(second) and len(first) == len(second)
        return alike and all(map(same, first, second))
    return first == second


def copied(state):
    """A state that later steps do not change."""
    if isinstance(state, torch.Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {name: copied(value) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(map(copied, state))
    return state


def everything(*stateful):
    """All states; an optimizer that has none yet may have empty ones."""
    states = [part.state_dict() for part in stateful if part is not None]
    for state in states:
        if "param_groups" in state:
            state["state"] = {i: x for i, x in state["state"].items() if x}
    return copied([*states, torch.get_rng_state()])


# --- killed and gone on ---------------------------------------------------------------

RUN = """
import sys, time, torch
sys.path[:0] = sys.argv[1:2]
import test_checkpoints as here
from gpt_train import calc_loss_batch

def loss(*batch):
    if torch.is_grad_enabled():
        print("step", file=sys.stderr, flush=True)
        time.sleep(0.03)  # or a slow parent would come too late
    return calc_loss_batch(*batch)

model, batches, optimizer, scheduler = here.parts()
here.train(
    model, batches, optimizer, scheduler, sys.argv[2], resume=True, every=1,
    eval_freq=1000, loss=loss,
)
"""


def process(folder):
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(Path(__file__).parent), str(folder)],
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


@pytest.mark.parametrize("seed", [1, 3])
def test_a_run_killed_at_a_random_step_ends_with_the_same_weights(seed, tmp_path):
    """SIGKILL, which no program can catch: dropout, shuffling, AdamW and a schedule."""
    step = random.Random(seed).randint(5 * seed - 4, 5 * seed)
    killed = process(tmp_path)
    lines = (line for line in killed.stderr if line == "step\n")
    for _ in zip(range(step), lines):
        pass
    time.sleep(random.Random(seed).random() / 100)
    killed.kill()
    killed.wait()
    assert killed.returncode == -signal.SIGKILL, "it ended before it could be killed"
    done = 0
    if (tmp_path / "checkpoint.pt").exists():
        done = checkpoint_info(tmp_path)["progress"]["step"]

    resumed = process(tmp_path)
    _, output = resumed.communicate(timeout=120)
    assert resumed.returncode == 0
    assert step - 2 <= done < STEPS
    assert output.count("step\n") == STEPS - done, "it did steps again"

    model, batches, optimizer, scheduler = parts()
    expected = parts()
    train(*expected, eval_freq=1000)
    load_checkpoint(tmp_path, model, optimizer, scheduler)
    assert same(model.state_dict(), expected[0].state_dict())
    assert same(optimizer.state_dict(), expected[2].state_dict())
    assert same(scheduler.state_dict(), expected[3].state_dict())


class Stopped(Exception):
    """Stands for a kill inside one process."""


def stop_at(step):
    count = iter(range(step))

    def loss(*batch):
        if torch.is_grad_enabled() and next(count, None) is None:
            raise Stopped
        return calc_loss_batch(*batch)

    return loss


@pytest.mark.parametrize(
    ("kind", "freq"),
    [("seeded", 1), ("seeded", 3), ("unseeded", 3), ("sampler", 7), ("list", 3)],
)
def test_stopped_anywhere_in_an_epoch_and_gone_on(kind, freq, tmp_path):
    """At its first and last batch and between; saved at its end and within it."""
    whole = parts(kind=kind)
    curves = train(*whole, eval_freq=3)
    for step in (0, 1, 6, 7, 8, 14, 20):
        folder = tmp_path / str(step)
        options = {"folder": folder, "every": freq, "eval_freq": 3}
        with pytest.raises(Stopped):
            train(*parts(kind=kind), **options, loss=stop_at(step))
        torch.manual_seed(99)  # whatever happened since
        again = parts(kind=kind)
        if step < freq:  # nothing is saved yet: the run starts as it did
            assert not any(folder.iterdir())
        assert train(*again, **options, resume=True) == curves
        for ours, theirs in zip(again, whole):
            if hasattr(ours, "state_dict"):
                assert same(ours.state_dict(), theirs.state_dict()), step


def test_the_random_state_matters(tmp_path):
    """Planted: without the saved state of dropout the weights would differ."""
    whole = parts()
    train(*whole)
    with pytest.raises(Stopped):
        train(*parts(), folder=tmp_path, loss=stop_at(9))
    again = parts()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "_set_random_states", lambda *_: None)
        patch.setattr(around, "_set_states", lambda *_: None)
        train(*again, folder=tmp_path, resume=True)
    assert not same(again[0].state_dict(), whole[0].state_dict())


def test_loading_workers_are_resumed_too(tmp_path):
    whole = parts(kind="seeded workers")
    train(*whole, num_epochs=2)
    with pytest.raises(Stopped):
        train(*parts(kind="seeded workers"), folder=tmp_path, loss=stop_at(10))
    again = parts(kind="seeded workers")
    train(*again, folder=tmp_path, resume=True, num_epochs=2)
    assert same(again[0].state_dict(), whole[0].state_dict())


def test_stopped_twice_and_longer_than_planned(tmp_path):
    whole = parts()
    train(*whole, num_epochs=5)
    for step in (4, 6):
        with pytest.raises(Stopped):
            train(*parts(), folder=tmp_path, resume=True, loss=stop_at(step))
    train(*parts(), folder=tmp_path, resume=True)
    again = parts()
    train(*again, folder=tmp_path, resume=True, num_epochs=5)
    assert same(again[0].state_dict(), whole[0].state_dict())
    # And a finished run that is asked again does nothing.
    before = everything(again[0], again[2])
    train(*again, folder=tmp_path, resume=True, num_epochs=5)
    assert same(everything(again[0], again[2]), before)


def test_what_must_be_as_before_to_go_on(tmp_path):
    train(*parts(), folder=tmp_path, num_epochs=1)
    model, _, optimizer, scheduler = parts(seed=5)
    before = everything(model, optimizer, scheduler)
    fewer = DataLoader(windows(4), 2, shuffle=True, generator=torch.Generator())
    for batches, message in [
        (fewer, "written with 7 batches in an epoch, but train_loader has 2: give the"),
        (loader("unseeded"), "a train_loader that shuffles in another way"),
    ]:
        with pytest.raises(ValueError, match=message):
            train(model, batches, optimizer, scheduler, tmp_path, resume=True)
        assert same(everything(model, optimizer, scheduler), before)
    save_checkpoint(tmp_path, model, optimizer, scheduler)
    with pytest.raises(ValueError, match="not written by a training run"):
        train(model, loader(), optimizer, scheduler, tmp_path, resume=True)


def test_the_hook_of_the_caller_is_called_with_the_whole_run(tmp_path):
    train(*parts(), folder=tmp_path, num_epochs=1, eval_freq=3)
    seen = []
    options = {"num_epochs": 2, "eval_freq": 3, "resume": True}
    train(*parts(), folder=tmp_path, after_step=lambda *x: seen.append(x), **options)
    assert [step for step, *_ in seen] == list(range(8, 15))
    assert seen[-1][1] == 14 * 12
    assert [len(losses[0]) for *_, losses in seen] == [3, 3, 4, 4, 4, 5, 5]


def test_what_happens_inside_changes_no_draw_that_comes_after():
    batches = loader()
    states = torch.get_rng_state(), batches.generator.get_state()

    def look():
        with keep_random_states(batches):
            torch.rand(3)
            list(batches)
            raise Stopped

    with pytest.raises(Stopped):
        look()
    assert same(states, (torch.get_rng_state(), batches.generator.get_state()))


# --- killed while saving --------------------------------------------------------------


def numbered(number):
    """A model and optimizer that both say which saving they belong to."""
    model = make(n_layers=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    step_once(model, optimizer)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(number)
            optimizer.state[p]["exp_avg"].fill_(number)
    return model, optimizer


def saved_number(folder):
    """Load what is there; raise unless all of it belongs to one saving."""
    model, optimizer = numbered(-1)
    progress = load_checkpoint(folder, model, optimizer)
    weights = [p.detach() for p in model.parameters()]
    numbers = {float(x) for p in weights for x in (p.min(), p.max())}
    numbers |= {float(s["exp_avg"].min()) for s in optimizer.state.values()}
    assert numbers == {progress["number"]}
    return progress["number"]


def save_number(folder, number):
    save_checkpoint(folder, *numbered(number), progress={"number": number})


WATCHED = ("open", "os.rename", "os.remove", "os.mkdir", "os.listdir", "os.scandir")


class Fault:
    """Raises at the n-th operation on a file below a folder, as a full disk would."""

    def __init__(self):
        self.left, self.folder = None, None
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if self.left is None or event not in WATCHED:
            return
        if str(self.folder) in str(arguments[0]):
            self.left -= 1
            if self.left < 0:
                self.left = None
                raise OSError("planted")


FAULT = Fault()


def test_a_fault_at_each_operation_leaves_a_whole_checkpoint(tmp_path):
    """Each opening, renaming and deleting fails once, in the middle of a saving."""
    FAULT.folder = tmp_path
    save_number(tmp_path, 0)
    outcomes, told = [], []
    for place in range(100):
        before = saved_number(tmp_path)
        FAULT.left = place
        try:
            save_number(tmp_path, before + 1)
        except OSError as problem:
            told.append(str(problem))
            outcomes.append(saved_number(tmp_path) - before)
        finally:
            untouched, FAULT.left = FAULT.left, None
        if untouched:  # the saving has fewer operations than this
            break
    assert outcomes == sorted(outcomes), "first the old one holds, then the new one"
    assert outcomes.count(0) >= 3
    assert all("cannot be written" in message for message in told)
    assert set(outcomes) <= {0, 1}
    save_number(tmp_path, 77)
    assert saved_number(tmp_path) == 77
    assert len(list(tmp_path.iterdir())) == 1, "what failed savings left is cleared"


def test_a_fault_while_the_tensors_are_written(tmp_path, monkeypatch):
    """The format's own writer, which works outside Python, fails half-way."""
    save_number(tmp_path, 0)

    def half(content, path):
        Path(path).write_bytes(b"\x00" * 100)
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match=r"No space left.*free some space, or choose"):
        save_number(tmp_path, 1)
    monkeypatch.undo()
    assert saved_number(tmp_path) == 0
    save_number(tmp_path, 2)
    assert saved_number(tmp_path) == 2
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_instant_leaves_a_whole_checkpoint(tmp_path):
    """A child that does nothing but save is killed at 15 moments."""
    save_number(tmp_path, 0)
    numbers = [0]
    for turn in range(15):
        done, told = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                save_for_ever(tmp_path, numbers[-1] + 1, told)
            finally:
                os._exit(1)
        os.read(done, 1)  # it has begun
        time.sleep(0.0011 * turn)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(done)
        os.close(told)
        assert os.WTERMSIG(status) == signal.SIGKILL
        numbers.append(saved_number(tmp_path))
    assert numbers == sorted(set(numbers)), "each child saved at least once"


def save_for_ever(folder, number, told):
    """Save one number after the other; write a byte after each."""
    model, optimizer = numbered(number)
    while True:
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(number)
                optimizer.state[p]["exp_avg"].fill_(number)
        save_checkpoint(folder, model, optimizer, progress={"number": number})
        os.write(told, b".")
        number += 1


def test_other_files_in_the_folder_stay(tmp_path):
    for name in ("losses.csv", "checkpoint.pt.bak"):
        (tmp_path / name).write_text("mine", encoding="utf-8")
    save_number(tmp_path, 0)
    save_number(tmp_path, 1)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"losses.csv", "checkpoint.pt.bak", "checkpoint.pt"}


def test_saving_changes_nothing(tmp_path):
    """Least of all an optimizer that has not made a step: the engine would make one."""
    for kind in (torch.optim.AdamW, lambda p: torch.optim.SGD(p, lr=0.1)):
        model = make()
        optimizer, steps = kind(model.parameters()), []
        optimizer.register_step_post_hook(lambda *_: steps.append(1))  # noqa: B023
        before = everything(model, optimizer)
        save_checkpoint(tmp_path, model, optimizer)
        load_checkpoint(tmp_path, model, optimizer)
        assert same(everything(model, optimizer), before)
        assert not steps


# --- compiled, distributed, tied ------------------------------------------------------


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    store = tmp_path_factory.mktemp("store") / "file"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def wrapped(model, how):
    """As `torch.compile` and DDP give it back; nothing is compiled before a call."""
    if how == "compiled":
        return torch.compile(model)
    if how == "DDP":
        return nn.parallel.DistributedDataParallel(model)
    if how == "compiled DDP":
        return torch.compile(nn.parallel.DistributedDataParallel(model))
    if how == "compiled parts":
        for i, block in enumerate(model.trf_blocks):
            model.trf_blocks[i] = torch.compile(block)
    return model


HOWS = ["plain", "compiled", "DDP", "compiled DDP", "compiled parts"]


def shared_by_hand(model):
    """Tied in the way of other libraries: one parameter under two names."""
    model.out_head.weight = model.tok_emb.weight
    return model


@pytest.mark.parametrize(
    ("how", "dtype"),
    [*((how, torch.float32) for how in HOWS), ("plain", torch.bfloat16)],
)
@pytest.mark.parametrize("tied", ["untied", "tied", "by hand"])
def test_round_trip_of_every_wrapping(how, dtype, tied, tmp_path, process_group):
    def fresh(seed):
        model = make(seed, tie_weights=tied == "tied", drop_rate=0.0).to(dtype)
        return shared_by_hand(model) if tied == "by hand" else model

    bare = fresh(0)
    assert any("_orig_mod." in k for k in wrapped(fresh(0), how).state_dict()) == (
        "compiled" in how
    )
    optimizer = torch.optim.AdamW(bare.parameters(), lr=0.01)
    step_once(bare, optimizer)
    expected = everything(bare, optimizer)
    save_checkpoint(tmp_path, wrapped(bare, how), optimizer, tokenizer=WORDS)

    info = checkpoint_info(tmp_path)
    assert info["config"] == bare.cfg
    assert info["model"] == "GPTModel"
    assert info["torch"] == torch.__version__
    assert not any("_orig_mod" in n or "module." in n for n in info["parts"]["model"])
    kind = info["parts"]["model"]["pos_emb.weight"]
    assert kind == f"{str(dtype).removeprefix('torch.')} (10, 12)"

    for other in ("plain", how):  # into a bare model, and into one wrapped likewise
        model = fresh(1)
        second = torch.optim.AdamW(model.parameters(), lr=0.5)
        load_checkpoint(tmp_path, wrapped(model, other), second, tokenizer=WORDS)
        plain = {k.replace("_orig_mod.", ""): v for k, v in model.state_dict().items()}
        assert same(
            plain, {k.replace("_orig_mod.", ""): v for k, v in expected[0].items()}
        )
        assert same(second.state_dict(), expected[1])
        head = model.out_head.weight
        assert (head is model.tok_emb.weight) == (tied != "untied")


def test_a_model_with_another_head(tmp_path):
    """As chapter 6 makes it: the head of two classes is found, the old one told."""
    model = make()
    model.out_head = nn.Linear(12, 2)
    save_checkpoint(tmp_path, model)
    again = make(1)
    message = refused(tmp_path, again)
    assert "out_head.bias (float32 (2,) there, nothing here)" in message
    assert "out_head.weight (float32 (2, 12) there, float32 (23, 12) here)" in message
    again.out_head = nn.Linear(12, 2)
    load_checkpoint(tmp_path, again)
    assert same(again.state_dict(), model.state_dict())


def test_frozen_parameters_and_groups(tmp_path):
    def grouped(seed, order=(0, 1)):
        model = make(seed)
        model.tok_emb.requires_grad_(False)
        groups = [
            {"params": model.trf_blocks.parameters(), "lr": 0.01},
            {"params": model.out_head.parameters(), "weight_decay": 0.0},
        ]
        return model, torch.optim.AdamW([groups[i] for i in order], lr=0.02)

    model, optimizer = grouped(0)
    step_once(model, optimizer)
    save_checkpoint(tmp_path, model, optimizer)
    again, second = grouped(1)
    load_checkpoint(tmp_path, again, second)
    assert same(second.state_dict(), optimizer.state_dict())
    again, swapped = grouped(1, order=(1, 0))
    message = refused(tmp_path, again, swapped)
    assert "has another optimizer: " in message
    assert "weight (group 1, place 0 there, group 0, place 0 here)" in message


OPTIMIZERS = [
    lambda p: torch.optim.SGD(p, lr=0.1),
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    lambda p: torch.optim.Adam(p, amsgrad=True),
    lambda p: torch.optim.AdamW(p, fused=True),
    torch.optim.Adafactor,
    torch.optim.RMSprop,
]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_other_optimizers_go_on_alike(kind, tmp_path):
    model = make(drop_rate=0.0)
    optimizer = kind(model.parameters())
    step_once(model, optimizer)
    save_checkpoint(tmp_path, model, optimizer)
    again = make(1, drop_rate=0.0)
    second = kind(again.parameters())
    load_checkpoint(tmp_path, again, second)
    assert same(second.state_dict(), optimizer.state_dict())
    for pair in ((model, optimizer), (again, second)):
        step_once(*pair)
    assert same(again.state_dict(), model.state_dict())


SCHEDULERS = [
    lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    lambda o: lr_scheduler.MultiStepLR(o, [2, 4, 4]),
    lambda o: lr_scheduler.SequentialLR(
        o,
        [
            lr_scheduler.LinearLR(o, 0.1, total_iters=4),
            lr_scheduler.ExponentialLR(o, 0.9),
        ],
        milestones=[4],
    ),
    lambda o: lr_scheduler.ReduceLROnPlateau(o),
]


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_schedulers_go_on_alike(kind, tmp_path):
    def rates(optimizer, scheduler, count):
        shown = []
        for _ in range(count):
            optimizer.step()
            plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
            scheduler.step(*[1.0] * plateau)
            shown.append(optimizer.param_groups[0]["lr"])
        return shown

    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = kind(optimizer)
    rates(optimizer, scheduler, 3)
    save_checkpoint(tmp_path, model, optimizer, scheduler)
    second = torch.optim.SGD(model.parameters(), lr=0.1)
    again = kind(second)
    load_checkpoint(tmp_path, model, second, again)
    assert rates(second, again, 12) == rates(optimizer, scheduler, 12)


def test_progress_comes_back_as_it_was(tmp_path):
    progress = {
        "epoch": 3,
        "loss": 0.1 + 0.2,
        "bad": float("inf"),
        "name": "a \u4e2d \U0001f600",
        "nothing": None,
        "yes": True,
        "pair": (1, (2.5,)),
        "by step": {10: "a", 20: [1, {"x": ()}]},
        "state": torch.arange(5, dtype=torch.uint8),
        "half": torch.ones(2, 3, dtype=torch.bfloat16).T,
    }
    model, _, optimizer, _ = parts()
    for with_optimizer in ([], [optimizer]):
        save_checkpoint(tmp_path, model, *with_optimizer, progress=progress)
        assert same(load_checkpoint(tmp_path, model), progress)
        assert same(checkpoint_info(tmp_path)["progress"], progress)
    save_checkpoint(tmp_path, model)
    assert load_checkpoint(tmp_path, model) == {}


def test_loading_a_model_leaves_the_random_state_alone(tmp_path):
    model, _, optimizer, _ = parts()
    save_checkpoint(tmp_path, model, optimizer)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    load_checkpoint(tmp_path, model)
    assert torch.equal(torch.get_rng_state(), state)
    load_checkpoint(tmp_path, model, optimizer)
    assert not torch.equal(torch.get_rng_state(), state)


class Bomb:
    """Its pickle would write a file when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_code_is_run_from_a_file(tmp_path):
    """Neither from one of ours nor from one that was made to do harm."""
    model, _, optimizer, scheduler = parts()
    save_checkpoint(tmp_path, model, optimizer, scheduler, progress={"epoch": 1})
    fuse, path = tmp_path / "fuse", tmp_path / "checkpoint.pt"
    for value in (object(), print, [Bomb(fuse)]):
        with pytest.raises(ValueError, match="not what is read by running code: "):
            save_checkpoint(tmp_path, model, optimizer, progress={"x": value})
    assert load_checkpoint(tmp_path, model) == {"epoch": 1}
    for write in (torch.save, lambda x, to: Path(to).write_bytes(pickle.dumps(x))):
        write(Bomb(fuse), path)
        path.write_bytes(signed(path.read_bytes()))
        message = refused(tmp_path, model, optimizer, scheduler)
        assert "cannot be read, or not without running code (Unpickling" in message
    assert not fuse.exists()


def signed(data):
    """A file's content with the hash that `save_checkpoint` would write behind it."""
    return data + hashlib.sha256(data).hexdigest().encode()


# --- what does not fit ----------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """A checkpoint, and other parts of the same kind to load it into."""
    model, _, optimizer, scheduler = parts()
    step_once(model, optimizer)
    folder = tmp_path / "saved"
    save_checkpoint(
        folder, model, optimizer, scheduler, tokenizer=WORDS, progress={"epoch": 1}
    )
    model, _, optimizer, scheduler = parts(seed=1)
    step_once(model, optimizer)
    return folder, model, optimizer, scheduler


def refused(folder, model, optimizer=None, scheduler=None, **options):
    """The message; nothing may have changed."""
    before = everything(model, optimizer, scheduler)
    with pytest.raises(ValueError, match=r"^\S[^\n]*\.$") as caught:
        load_checkpoint(folder, model, optimizer, scheduler, **options)
    assert same(everything(model, optimizer, scheduler), before)
    return str(caught.value)


def test_another_config_is_told(saved):
    folder = saved[0]
    for changes, words in [
        (
            {"n_layers": 3},
            "has another config: n_layers (2 there, 3 here); make the model from "
            "checkpoint_info(folder)['config'].",
        ),
        ({"drop_rate": 0.0}, "drop_rate (0.2 there, 0.0 here)"),
        ({"tie_weights": True}, "tie_weights (False there, True here)"),
    ]:
        assert words in refused(folder, make(**changes)), changes
    model = make()
    model.cfg = {**TINY, "rope_base": 10_000}
    assert "rope_base (nothing there, 10000 here)" in refused(folder, model)
    del model.cfg  # a model without a config is judged by its tensors
    load_checkpoint(folder, model)
    model.pos_emb = nn.Embedding(11, 12)
    model.final_norm.half()
    message = refused(folder, model)
    assert "another model: pos_emb.weight (float32 (10, 12) there, float32 (11" in (
        message
    )
    assert "final_norm.scale (float32 (12,) there, float16 (12,) here)" in message
    message = refused(folder, nn.Linear(2, 1))
    assert "weight (nothing there, float32 (1, 2) here)" in message
    assert " and 36 more; make" in message


def test_another_tokenizer_is_told(saved):
    folder, model, *_ = saved
    renamed = {**{str(i): i for i in range(1, 23)}, "<|unk|>": 0, "7": 8, "8": 7}
    for other in (SimpleTokenizerV2(renamed), tiktoken.get_encoding("gpt2")):
        message = refused(folder, model, tokenizer=other)
        assert "has another tokenizer: the hash of all tokens" in message
        assert message.endswith("; use the tokenizer that the model was trained with.")
    load_checkpoint(folder, model, tokenizer=SimpleTokenizerV2(VOCABULARY))
    gpt2 = tiktoken.get_encoding("gpt2")
    save_checkpoint(folder, model, tokenizer=gpt2)
    load_checkpoint(folder, model, tokenizer=tiktoken.get_encoding("gpt2"))


def test_the_same_tokens_from_other_merges_are_another_tokenizer(tmp_path):
    """Known mistake: a hash of the tokens alone. The ids of "abc" differ."""
    one = BPETokenizer([(98, 99), (97, 98), (97, 256)])
    two = BPETokenizer([(98, 99), (97, 98), (257, 99)])
    assert one.token_bytes == two.token_bytes
    assert one.encode("abc") != two.encode("abc")
    model = make()
    save_checkpoint(tmp_path, model, tokenizer=one)
    message = refused(tmp_path, model, tokenizer=two)
    assert "has another tokenizer: the hash of all of it" in message
    load_checkpoint(tmp_path, model, tokenizer=tokenizer_from_json(one.to_json()))


def test_another_optimizer_or_scheduler_is_told(saved, tmp_path):
    folder, model, optimizer, scheduler = saved
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    message = refused(folder, model, sgd)
    assert "another optimizer: its kind (AdamW there, SGD here)" in message
    fewer = torch.optim.AdamW(model.out_head.parameters())
    assert "tok_emb.weight (group 0, place 0 there, nothing here)" in refused(
        folder, model, fewer
    )
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, 5)
    message = refused(folder, model, optimizer, cosine)
    assert "its kind (OneCycleLR there, CosineAnnealingLR here)" in message

    save_checkpoint(tmp_path / "alone", model)
    message = refused(tmp_path / "alone", model, optimizer)
    assert "holds no optimizer, so training cannot go on" in message
    save_checkpoint(tmp_path / "two", model, optimizer)
    message = refused(tmp_path / "two", model, optimizer, scheduler)
    assert "holds no scheduler, so training cannot go on" in message

    one, two = (
        lr_scheduler.SequentialLR(
            optimizer,
            [lr_scheduler.ConstantLR(optimizer) for _ in range(n)],
            milestones=list(range(1, n)),
        )
        for n in (2, 3)
    )
    save_checkpoint(tmp_path / "one", model, optimizer, one)
    message = refused(tmp_path / "one", model, optimizer, two)
    assert "has another scheduler: _milestones (['a value'] there, " in message


def test_saving_refuses_what_it_cannot_keep(tmp_path):
    with torch.device("meta"):
        empty = GPTModel(TINY)
    with pytest.raises(ValueError, match="is not a tensor with data"):
        save_checkpoint(tmp_path / "x", empty)

    class Packed(nn.Module):
        def get_extra_state(self):
            return b"as quantised layers keep their weights"

    with pytest.raises(ValueError, match="_extra_state is not a tensor with data"):
        save_checkpoint(tmp_path / "x", Packed())
    assert not (tmp_path / "x").exists()


# --- damaged files --------------------------------------------------------------------


def test_what_is_missing_is_named(saved, tmp_path):
    folder, *rest = saved
    assert "There is no checkpoint in" in refused(tmp_path / "none", *rest)
    path = folder / "checkpoint.pt"
    path.unlink()
    assert "checkpoint.pt is missing; give the folder" in refused(folder, *rest)
    path.mkdir()
    assert "cannot be read, or not without running code (IsADir" in refused(
        folder, *rest
    )


def test_a_checkpoint_of_a_later_version_is_told(saved):
    folder, *rest = saved
    path = folder / "checkpoint.pt"
    torch.save({**torch.load(path, weights_only=True), "format": 3}, path)
    path.write_bytes(signed(path.read_bytes()))
    assert "format 3, but this version of the course reads format 2" in refused(
        folder, *rest
    )


@st.composite
def damage(draw):
    """How to break a file: cut, changed, lengthened, filled with noise or emptied."""
    where = st.floats(0, 1, exclude_max=True)
    return draw(
        st.one_of(
            st.tuples(st.just("cut"), where),
            st.tuples(st.just("change"), where, st.integers(1, 255)),
            st.tuples(st.just("add"), st.binary(min_size=1, max_size=20)),
            st.tuples(st.just("noise"), st.binary(max_size=60)),
            st.tuples(st.just("insert"), where, st.binary(min_size=1, max_size=4)),
        )
    )


def broken(content, kind, *how):
    if kind in ("add", "noise"):
        return content + how[0] if kind == "add" else how[0]
    place = int(how[0] * len(content))
    if kind == "cut":
        return content[:place]
    if kind == "insert":
        return content[:place] + how[1] + content[place:]
    return content[:place] + bytes([content[place] ^ how[1]]) + content[place + 1 :]


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(damage())
def test_a_damaged_file_gets_one_sentence_and_changes_nothing(saved, how):
    folder, *rest = saved
    path = folder / "checkpoint.pt"
    content = path.read_bytes()
    path.write_bytes(broken(content, *how))
    try:
        message = refused(folder, *rest)
        assert "is damaged: checkpoint.pt is not what was written; use" in message
    finally:
        path.write_bytes(content)


# --- Numbers and bases that cannot be right -------------------------------------------


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_model_that_has_diverged_does_not_replace_a_good_one(tmp_path, number):
    """Known mistake: the last good checkpoint is lost to one without a number."""
    model = nn.Linear(3, 2)
    save_checkpoint(tmp_path, model)
    good = copy.deepcopy(model)
    with torch.no_grad():
        model.bias[1] = number
    with pytest.raises(ValueError, match="bias holds numbers that are infinite or NaN"):
        save_checkpoint(tmp_path, model)
    with pytest.raises(ValueError, match="lower learning rate"):
        save_learned(tmp_path / "learned.safetensors", model, "toy", {})
    load_checkpoint(tmp_path, model)
    assert torch.equal(model.bias, good.bias)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def upper_half(seed=0):
    """Two layers, the lower one frozen."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    return model


def test_what_was_learned_knows_its_base(tmp_path):
    """Known mistake: a base of the same sizes, trained again meanwhile, is taken."""
    model, path = upper_half(), tmp_path / "learned.safetensors"
    save_learned(path, model, "toy", {"base": "here"})
    learned, notes = read_learned(path, "toy")
    assert notes == {"base": "here"}
    put_learned(path, learned, upper_half())
    put_learned(path, learned, upper_half().bfloat16())
    other = upper_half()
    with torch.no_grad():
        other[0].weight[1, 2] += 0.1
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match="trained on another base model of the same"):
        put_learned(path, learned, other)
    assert all(torch.equal(before[k], v) for k, v in other.state_dict().items())


def test_a_base_in_another_dtype_is_known(tmp_path):
    """Known mistake: rounded to float16 first, a number ends elsewhere in bfloat16."""
    base, path = upper_half(), tmp_path / "learned.safetensors"
    with torch.no_grad():
        base[0].weight[0, 0] = 1 + 2**-8 + 2**-13
    half = copy.deepcopy(base).half()
    assert half[0].weight.bfloat16()[0, 0] != base[0].weight.bfloat16()[0, 0]
    save_learned(path, half, "toy", {})
    learned, _ = read_learned(path, "toy")
    put_learned(path, learned, base)
    put_learned(path, learned, half)


def test_a_run_that_diverges_keeps_the_last_good_checkpoint(tmp_path):
    """Known mistake: the good checkpoint is replaced, and the run ends as if all were
    well. Going on with other data or another batch size is refused as well."""
    model, batches, optimizer, _ = parts(kind="seeded")

    def spoil(step, *_):
        for group in optimizer.param_groups:
            group["lr"] = 1e20 if step > 4 else group["lr"]

    options = {"num_epochs": 3, "every": 2, "after_step": spoil}
    with pytest.raises(ValueError, match=r"diverged|infinite or NaN"):
        train(model, batches, optimizer, None, tmp_path, **options)
    fresh = parts()[0]
    progress = load_checkpoint(tmp_path, fresh)
    assert progress["step"] >= 4
    assert all(p.isfinite().all() for p in fresh.parameters())
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_other_data_of_the_same_length_are_refused(tmp_path):
    train(*parts(), folder=tmp_path, num_epochs=1)
    same_size = loader()
    inputs, targets = (tensor.clone() for tensor in same_size.dataset.tensors)
    inputs[3, 1] += 1
    other = DataLoader(
        TensorDataset(inputs, targets),
        same_size.batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
    )
    model, _, optimizer, scheduler = parts()
    with pytest.raises(ValueError, match=r"the training data \(\w+ there, \w+ here"):
        train(model, other, optimizer, scheduler, tmp_path, resume=True)


def test_data_that_are_drawn_anew_at_each_look_are_not_compared(tmp_path):
    assert set(around._contents([torch.rand(3)])) == {"the training data"}

    class Drawn(list):
        def __getitem__(self, index):
            return torch.rand(3)

    assert around._contents(Drawn([1, 2])) == {}
    before = torch.get_rng_state()
    around._contents(Drawn([1, 2]))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be_saved_is_found_before_the_first_step(tmp_path):
    model, batches, _, _ = parts()
    steps = []
    odd = torch.optim.SGD(model.parameters(), lr=0.01)
    odd.param_groups[0]["note"] = Stopped  # a class: read again by running code
    with pytest.raises(ValueError, match="not what is read by running code"):
        train(model, batches, odd, None, tmp_path, after_step=steps.append)
    assert not steps
    file = tmp_path / "file"
    file.touch()
    good = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.raises(OSError, match="cannot be written"):
        train(model, batches, good, None, file, after_step=steps.append)
    assert not steps
