"""Everything around the loop: rates, gradients, weights, the run, Muon.

The models are tiny. What a known mistake would give is asserted beside what must come
out, so that each of these tests can fail.
"""

import contextlib
import csv
import inspect
import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

from gpt import GPTModel
from gpt_train import (
    IGNORE_INDEX,
    calc_loss_batch,
    calc_loss_loader,
    count_targets,
    train_model_simple,
)
from resumable import BestModel, resumable
from training_log import TrainingLog
from training_loop import (
    ClipEachUpdate,
    EarlyStopping,
    Muon,
    OptimizersInOne,
    WeightAverage,
    clip_gradients,
    decay_matrices_only,
    in_bfloat16,
    in_micro_batches,
    make_scheduler,
    muon_with_adamw,
    newton_schulz,
    parameters_of,
    warmup_cosine,
    warmup_stable_decay,
)
from two_processes import CONFIG, gradient, make_model, ragged_batch, share_of

some = settings(max_examples=50, deadline=None)


class Stopped(Exception):
    """A run is killed here."""


def make(seed=0, **changes):
    torch.manual_seed(seed)
    return GPTModel({**CONFIG, **changes})


def windows(count=8, seed=0):
    ids = torch.randint(31, (count, 10), generator=torch.Generator().manual_seed(seed))
    return TensorDataset(ids[:, :-1], ids[:, 1:])


def loader(count=8, seed=0):
    order = torch.Generator().manual_seed(seed)
    return DataLoader(windows(count, seed), 2, shuffle=True, generator=order)


def adamw(model, lr=0.01):
    return torch.optim.AdamW(decay_matrices_only(model, 0.1), lr=lr)


def train(model, optimizer, loop=train_model_simple, epochs=3, **options):
    plan = {"eval_freq": 5, "eval_iter": 1, "start_context": None, "tokenizer": None}
    return loop(
        model, loader(), loader(2, 9), optimizer, "cpu", epochs, **plan, **options
    )


def rates_used(optimizer):
    """The list that gets the rate of each update, noted in the update itself."""
    rates = []
    optimizer.register_step_pre_hook(
        lambda one, *_: rates.append(one.param_groups[0]["lr"])
    )
    return rates


def norm_of(parameters):
    return torch.cat([p.grad.flatten() for p in parameters]).norm().item()


# --- the learning rate ----------------------------------------------------------------

plans = st.tuples(
    st.integers(1, 60), st.integers(0, 59), st.integers(0, 60), st.floats(0, 1)
).filter(lambda plan: plan[1] <= plan[0])


@some
@given(plans, st.integers(0, 200))
def test_the_rate_is_never_negative_and_never_above_its_peak(plan, step):
    """Also far behind the end, where a cosine or a ramp would go on."""
    num_steps, warmup, decay, lowest = plan
    shares = [
        warmup_cosine(step, num_steps, warmup, lowest),
        warmup_stable_decay(step, num_steps, warmup, decay, lowest),
    ]
    assert all(0 <= share <= 1 + 1e-12 for share in shares)
    if step >= num_steps:
        assert shares[0] == pytest.approx(lowest)
        assert decay == 0 or shares[1] == pytest.approx(lowest)
    if step == warmup - 1:
        assert shares == [1.0, 1.0], "the last update of the ramp has the peak"


def test_the_rate_of_every_update_of_a_run_is_the_planned_one(capsys):
    """Known mistake: the peak was never passed on, and the default rate was used."""
    model = make()
    optimizer = adamw(model, lr=0.004)
    rates = rates_used(optimizer)
    plan = {"num_steps": 12, "warmup_steps": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch warns of a scheduler that steps first
        train(
            model, optimizer, scheduler=make_scheduler(optimizer, warmup_cosine, **plan)
        )
    expected = [0.004 * warmup_cosine(step, **plan) for step in range(12)]
    assert rates == expected
    assert rates[0] == pytest.approx(0.004 / 3)
    assert max(rates) == rates[2] == 0.004
    assert 0 < 0.1 * 0.004 < rates[-1] < 0.2 * 0.004
    assert max(rates) != inspect.signature(torch.optim.AdamW).parameters["lr"].default


@pytest.mark.parametrize(
    "plan",
    [
        {"num_steps": 10, "warmup_steps": 11},
        {"num_steps": 10, "warmup_steps": 8, "decay_steps": 5},
        {"num_steps": 10, "decay_steps": -1},
    ],
)
def test_ramps_that_are_longer_than_the_run_are_refused(plan):
    """The rate would never reach its peak, jump at the end of a ramp, or be 0."""
    with pytest.raises(ValueError, match="do not fit into this run"):
        make_scheduler(adamw(make()), warmup_stable_decay, **plan)


def test_all_groups_follow_the_schedule():
    model = make()
    optimizer = muon_with_adamw(model, lr=0.02, adamw_lr=0.003)
    scheduler = make_scheduler(
        optimizer, warmup_stable_decay, num_steps=4, warmup_steps=2, decay_steps=2
    )
    for share in (0.5, 1, 1, 0.5):
        shares = [g["lr"] / g["initial_lr"] for g in optimizer.param_groups]
        assert shares == pytest.approx([share] * 3)
        optimizer.step()
        scheduler.step()
    assert [g["initial_lr"] for g in optimizer.param_groups] == [0.02, 0.003, 0.003]


def test_the_cosine_is_that_of_pytorch():
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=2.0)
    theirs = CosineAnnealingLR(optimizer, T_max=30, eta_min=0.2)
    for step in range(5, 35):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(
            2 * warmup_cosine(step, num_steps=35, warmup_steps=5, lowest=0.1)
        )
        optimizer.step()
        theirs.step()


def test_the_plateau_does_not_depend_on_the_length_of_the_run():
    short, long = (
        [
            warmup_stable_decay(step, n, warmup_steps=4, decay_steps=10)
            for step in range(n)
        ]
        for n in (40, 90)
    )
    assert short[:30] == long[:30]
    assert short[30:] == pytest.approx(long[80:])
    assert long[4:81] == [1.0] * 77
    cosines = [warmup_cosine(20, n, 4) for n in (40, 90)]
    assert cosines[0] < cosines[1] - 0.2


def test_micro_batches_are_not_counted_as_updates(capsys):
    """Known mistake: the schedule ran `rows` times too fast, below zero in the end."""
    model = make()
    optimizer = adamw(model)
    rates = rates_used(optimizer)
    scheduler = make_scheduler(optimizer, warmup_cosine, num_steps=12, warmup_steps=3)
    train(
        model,
        optimizer,
        scheduler=scheduler,
        loss=in_micro_batches(calc_loss_batch, rows=1),
    )
    assert len(rates) == 12, "two sequences in a batch, one batch an update"
    assert scheduler.last_epoch == 12
    assert rates == [0.01 * warmup_cosine(step, 12, 3) for step in range(12)]


# --- clipping -------------------------------------------------------------------------


def with_gradient(*values):
    parameters = [torch.zeros(len(v), dtype=torch.float64) for v in values]
    for parameter, value in zip(parameters, values):
        parameter.grad = torch.tensor(value, dtype=torch.float64)
    return parameters


numbers = st.floats(-100, 100)


@some
@given(
    st.lists(st.lists(numbers, min_size=1, max_size=4), min_size=1, max_size=4),
    st.floats(0.01, 1000),
)
def test_clipping_is_that_of_pytorch_and_keeps_the_direction(values, max_norm):
    ours, theirs = with_gradient(*values), with_gradient(*values)
    before = norm_of(ours)
    said = clip_gradients(ours, max_norm)
    assert said == pytest.approx(before)
    assert nn.utils.clip_grad_norm_(theirs, max_norm).item() == pytest.approx(before)
    for mine, other, value in zip(ours, theirs, values):
        assert torch.allclose(mine.grad, other.grad, atol=1e-3 * max_norm)
        if before <= max_norm:
            assert mine.grad.tolist() == value, "a short gradient stays as it is"
    assert norm_of(ours) <= max_norm * (1 + 1e-9) or norm_of(ours) <= before


def test_clipping_each_parameter_alone_would_turn_the_gradient():
    one, two = with_gradient([30.0], [4.0])
    clip_gradients([one, two], 5.0)
    assert one.grad / two.grad == pytest.approx(30 / 4)
    alone = [with_gradient([30.0])[0], with_gradient([4.0])[0]]
    for parameter in alone:
        clip_gradients([parameter], 5.0)
    assert alone[0].grad / alone[1].grad == pytest.approx(5 / 4)


@pytest.mark.parametrize("muon", [False, True])
def test_clipping_holds_at_every_update_also_at_the_end_of_the_warmup(muon, capsys):
    """Known mistake: no clipping at exactly step == warm-up."""
    model = make()
    optimizer = muon_with_adamw(model, 0.02, 0.01) if muon else adamw(model)
    clip = ClipEachUpdate(optimizer, max_norm=0.3)
    seen = []
    optimizer.register_step_post_hook(  # zero_grad comes later
        lambda one, *_: seen.append(norm_of(parameters_of(one)))
    )
    plan = make_scheduler(optimizer, warmup_cosine, num_steps=12, warmup_steps=4)
    train(model, optimizer, scheduler=plan)
    assert len(seen) == len(clip.norms) == 12
    assert max(seen) <= 0.3 + 1e-6
    assert min(clip.norms) > 0.3, "otherwise nothing was clipped, and nothing is shown"


def test_a_gradient_that_is_infinite_stops_before_the_weights_are_spoiled():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    ClipEachUpdate(optimizer, 1.0)
    for number in (math.inf, math.nan):
        parameter.grad = torch.tensor([number, 1.0])
        with pytest.raises(ValueError, match="take a lower learning rate"):
            optimizer.step()
    assert parameter.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_a_limit_that_is_no_length_is_refused(limit):
    """NaN would clip nothing, and -1 turn the gradient round."""
    (parameter,) = with_gradient([3.0, 4.0])
    with pytest.raises(ValueError, match="a length is above 0"):
        clip_gradients([parameter], limit)
    assert parameter.grad.tolist() == [3.0, 4.0]


def test_clipping_without_gradients_names_the_missing_backward():
    with pytest.raises(ValueError, match="`backward` comes first"):
        clip_gradients([nn.Parameter(torch.ones(2))], 1.0)


@pytest.mark.parametrize("rows", [0, -1])
def test_parts_without_sequences_are_refused(rows):
    with pytest.raises(ValueError, match="a part has 1 or more"):
        in_micro_batches(calc_loss_batch, rows)


def test_a_ramp_of_half_an_update_is_refused():
    """Its second update would have 1.2 times the peak."""
    plan = {"num_steps": 8, "warmup_steps": 2.5}
    assert warmup_cosine(2, **plan) == pytest.approx(1.2)
    with pytest.raises(ValueError, match="whole numbers"):
        make_scheduler(adamw(make()), warmup_cosine, **plan)


# --- accumulation ---------------------------------------------------------------------


def mean_of_means(loss, rows):
    """The known mistake: each micro-batch has the same weight."""

    def slip(*arguments):
        *batch, model, device = arguments
        parts = list(zip(*(tensor.split(rows) for tensor in batch)))
        return sum(loss(*part, model, device) for part in parts) / len(parts)

    return slip


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 50])
def test_accumulated_gradients_are_those_of_the_big_batch(rows):
    """With unequal numbers of targets, where a mean of means is off."""
    batch = ragged_batch()
    assert len({count_targets((row,)) for row in batch[1]}) > 3
    model = make_model()
    expected = gradient(model, batch, calc_loss_batch)
    found = gradient(model, batch, in_micro_batches(calc_loss_batch, rows))
    assert torch.allclose(found, expected, atol=1e-12)
    single = make_model().float()
    expected = gradient(single, batch, calc_loss_batch)
    found = gradient(single, batch, in_micro_batches(calc_loss_batch, rows))
    assert torch.allclose(found, expected, atol=1e-6)
    slip = gradient(model, batch, mean_of_means(calc_loss_batch, rows))
    assert rows >= 7 or (slip - expected).abs().max() > 1e-3


def test_the_loss_of_parts_is_the_loss_of_the_batch():
    batch, model = ragged_batch(), make_model()
    whole = calc_loss_batch(*batch, model, "cpu")
    loss = in_micro_batches(calc_loss_batch, rows=2)
    assert loss(*batch, model, "cpu").item() == pytest.approx(whole.item(), abs=1e-12)
    model.zero_grad()
    with torch.no_grad():
        assert loss(*batch, model, "cpu") == whole
    assert all(p.grad is None for p in model.parameters())
    nothing = batch[0], torch.full_like(batch[1], IGNORE_INDEX)
    with pytest.raises(ValueError, match="No target of this batch counts"):
        loss(*nothing, model, "cpu")


def test_parts_without_targets_are_left_out():
    inputs, targets = ragged_batch(4)
    targets[1:3] = IGNORE_INDEX
    model = make_model()
    expected = gradient(model, (inputs, targets), calc_loss_batch)
    found = gradient(model, (inputs, targets), in_micro_batches(calc_loss_batch, 1))
    assert torch.allclose(found, expected, atol=1e-12)


def test_a_run_in_micro_batches_ends_with_the_weights_of_the_plain_run(capsys):
    plain, parts = make().double(), make().double()
    losses = train(plain, adamw(plain))
    in_parts = train(parts, adamw(parts), loss=in_micro_batches(calc_loss_batch, 1))
    for ours, theirs in zip(parts.parameters(), plain.parameters()):
        assert torch.allclose(ours, theirs, atol=1e-9)
    assert in_parts[2] == losses[2], "tokens seen"
    assert in_parts[1] == pytest.approx(losses[1], abs=1e-9)


def test_nobody_inherits_a_number_of_micro_batches():
    """Known mistake: a preset made for eight GPUs, used on one."""
    rows = inspect.signature(in_micro_batches).parameters["rows"]
    assert rows.default is inspect.Parameter.empty


def each_process_alone(loss, rows):
    """The known mistake: each process divides by its own number of targets."""

    def slip(*arguments):
        *batch, model, device = arguments
        parts = list(zip(*(tensor.split(rows) for tensor in batch)))
        total = count_targets(batch)
        for part in parts:
            last = part is parts[-1]
            with contextlib.nullcontext() if last else model.no_sync():
                (loss(*part, model, device) * count_targets(part) / total).backward()
        return torch.zeros((), requires_grad=True)

    return slip


def switched_too_late(loss, rows):
    """The known mistake: DDP is told after the forward pass, where it has decided."""

    def slip(*arguments):
        *batch, model, device = arguments
        parts = list(zip(*(tensor.split(rows) for tensor in batch)))
        counts = torch.tensor(float(count_targets(batch)))
        torch.distributed.all_reduce(counts)
        total = counts.item() / torch.distributed.get_world_size()
        for part in parts:
            share = loss(*part, model, device) * count_targets(part) / total
            model.require_backward_grad_sync = part is parts[-1]
            share.backward()
        return torch.zeros((), requires_grad=True)

    return slip


LOSSES = (in_micro_batches, each_process_alone, switched_too_late)


def worker(rank, store, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    mine = share_of(ragged_batch(), rank, 2)
    found = []
    for wrap in LOSSES:
        model = DistributedDataParallel(make_model())
        found.append(gradient(model, mine, wrap(calc_loss_batch, 2)))
    torch.save(found, f"{results}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_accumulation_on_two_processes_is_that_of_one(tmp_path):
    """Shares with unequal numbers of targets, in parts, gradients sent once."""
    multiprocessing.start_processes(
        worker, (tmp_path / "store", tmp_path), nprocs=2, start_method="spawn"
    )
    expected = gradient(make_model(), ragged_batch(), calc_loss_batch)
    counts = [count_targets(share_of(ragged_batch(), r, 2)) for r in range(2)]
    assert counts[0] != counts[1]
    for rank in range(2):
        right, alone, late = torch.load(tmp_path / f"{rank}.pt")
        assert torch.allclose(right, expected, atol=1e-12)
        assert (alone - expected).abs().max() > 1e-3
        assert (late - expected).abs().max() > 1e-3


# --- mixed precision ------------------------------------------------------------------


def test_products_are_bfloat16_and_all_else_stays():
    model, batch = make(emb_dim=64), ragged_batch()
    kinds = []
    model.out_head.register_forward_hook(lambda *a: kinds.append(a[2].dtype))
    plain = gradient(model, batch, calc_loss_batch)
    mixed = gradient(model, batch, in_bfloat16(calc_loss_batch))
    assert kinds == [torch.float32, torch.bfloat16]
    assert mixed.dtype == torch.float32
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    relative = (mixed - plain).norm() / plain.norm()
    assert 1e-5 < relative < 0.05
    assert in_bfloat16(calc_loss_batch)(*batch, model, "cpu").dtype == torch.float32
    held = [batch]
    loss = in_bfloat16(calc_loss_batch)
    exact = calc_loss_loader(held, model, "cpu")
    assert calc_loss_loader(held, model, "cpu", loss=loss) == exact


# --- weights --------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_only_matrices_decay_and_each_once(tied):
    model = make(tie_weights=tied, qkv_bias=True)
    matrices, vectors = decay_matrices_only(model, 0.2)
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.2, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = {names[id(p)] for p in matrices["params"]}
    kept = {names[id(p)] for p in vectors["params"]}
    assert decayed | kept == set(names.values())
    assert len(matrices["params"]) + len(vectors["params"]) == len(names)
    assert not any(n.endswith(("bias", "scale", "shift")) for n in decayed)
    assert all(n.endswith(("bias", "scale", "shift")) for n in kept)
    assert "tok_emb.weight" in decayed


@pytest.mark.parametrize("muon", [False, True])
def test_decay_without_a_gradient_is_a_power_and_spares_vectors(muon):
    model = make()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(2.0)
            p.grad = torch.zeros_like(p)
    optimizer = muon_with_adamw(model, 0.05, 0.05) if muon else adamw(model, 0.05)
    for _ in range(7):
        optimizer.step()
    for name, p in model.named_parameters():
        expected = 2 * (1 - 0.05 * 0.1) ** 7 if p.ndim > 1 else 2.0
        assert torch.allclose(p, torch.full_like(p, expected), atol=1e-5), name


@some
@given(
    st.floats(0.01, 0.999),
    st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1, max_size=12),
)
def test_the_running_average_is_its_closed_form(decay, path):
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    average = WeightAverage(optimizer, decay)
    for weights in path:
        target = torch.tensor(weights, dtype=torch.float64)
        parameter.grad = parameter.detach() - target  # so that SGD arrives there
        optimizer.step()
    n = len(path)
    shares = torch.tensor([decay ** (n - k) for k in range(1, n + 1)]).double()
    path = torch.tensor(path, dtype=torch.float64)
    closed = (shares[:, None] * path).sum(dim=0) / shares.sum()
    with average.swapped_in():
        assert torch.allclose(parameter, closed, atol=1e-5, rtol=1e-6)
    assert torch.allclose(parameter, path[-1], atol=1e-9)


def test_the_first_average_is_the_first_weights_not_the_start():
    """Known mistake: the untrained weights stay in the average for a long time."""
    parameter = nn.Parameter(torch.tensor([1000.0]))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    average = WeightAverage(optimizer, 0.999)
    parameter.grad = torch.tensor([998.0])
    optimizer.step()
    with average.swapped_in():
        assert parameter.item() == pytest.approx(2.0, rel=1e-4)


def test_own_weights_come_back_bit_for_bit_whatever_happens(capsys):
    model = make()
    optimizer = adamw(model)
    average = WeightAverage(optimizer, 0.8)
    model.pos_emb.weight.requires_grad_(False)
    train(model, optimizer)
    own = [p.clone() for p in model.parameters()]
    inside = []
    with contextlib.suppress(Stopped), average.swapped_in():
        inside += [p.clone() for p in model.parameters()]
        raise Stopped
    assert all(map(torch.equal, model.parameters(), own))
    assert [torch.equal(*pair) for pair in zip(inside, own)].count(True) == 1
    with average.swapped_in():
        assert all(map(torch.equal, model.parameters(), inside))


def test_an_average_changes_nothing_in_training(capsys):
    plain, watched = make(), make()
    train(plain, adamw(plain))
    optimizer = adamw(watched)
    WeightAverage(optimizer, 0.9)
    train(watched, optimizer)
    assert all(map(torch.equal, plain.parameters(), watched.parameters()))


@pytest.mark.parametrize("decay", [1.0, 1.5, -0.1, math.nan])
def test_a_decay_that_forgets_nothing_is_refused(decay):
    """Above 1 the oldest weights would count most."""
    with pytest.raises(ValueError, match="from 0 to below 1"):
        WeightAverage(adamw(make()), decay)


# --- the run --------------------------------------------------------------------------


def asked(losses, patience, tmp_path):
    """After how many epochs training ends, if these are their losses."""
    values = iter(losses)
    best = BestModel(lambda: next(values), lambda folder: None, tmp_path)
    hook = EarlyStopping(best, patience)
    return next(n for n in itertools.count(1) if hook())


def test_patience_counts_epochs_without_a_better_one(tmp_path, capsys):
    assert asked([3, 2, 2.5, 2.4, 1.0, 1.1], 2, tmp_path) == 4
    assert asked([3, 2, 2.5, 1.9, 2.0, 1.95, 1], 2, tmp_path) == 6
    assert asked([3, 3, 3, 3], 2, tmp_path) == 3, "as good is not better"
    with pytest.raises(ValueError, match="from 1 on"):  # it would have ended already
        asked([3, 2], 0, tmp_path)
    assert asked([5, 6], 1, tmp_path) == 2
    assert asked([5, math.nan, 4, 4.5, 4.5], 2, tmp_path) == 5, "NaN is not better"


def test_a_run_is_ended_and_its_best_model_kept(tmp_path, capsys):
    kept, losses = [], iter([3.0, 2.0, 4.0, 4.0, 1.0])
    model = make()
    best = BestModel(
        lambda: next(losses), lambda _: kept.append(len(best.losses)), tmp_path
    )
    train(model, adamw(model), epochs=9, after_epoch=EarlyStopping(best, 2))
    assert len(best.losses) == 4
    assert kept == [1, 2]
    assert best.lowest == 2.0


class StoppingRun:
    """A run of four updates an epoch, whose epochs have the losses given here.

    `updates` are all that were made, `measured` the epochs whose end was reached.
    """

    losses = (5.0, 4.0, 4.5, 4.6, 4.7, 4.8, 3.0, 3.0)

    def __init__(self, folder):
        self.folder, self.updates, self.measured = folder, 0, []

    def go(self, stop=None, resume=False, wrap=lambda hook: hook):
        model = make()
        optimizer = adamw(model)

        def measure():
            done = next(iter(optimizer.state.values()))["step"].item()
            self.measured.append(int(done) // 4)
            return self.losses[self.measured[-1] - 1]

        def after_step(step, *_):
            self.updates += 1
            if step == stop:
                raise Stopped

        best = BestModel(measure, lambda _: None, self.folder / "best", resume)
        best.folder.mkdir(parents=True, exist_ok=True)
        hook = EarlyStopping(best, patience=3)
        loop = resumable(train_model_simple, self.folder, every=3, resume=resume)
        with contextlib.suppress(Stopped):
            train(
                model,
                optimizer,
                loop,
                epochs=8,
                after_step=after_step,
                after_epoch=wrap(hook),
            )
        return hook


@pytest.mark.parametrize("stop", [1, 3, 4, 8, 9, 12, 16, 17, 18, 20])
def test_patience_goes_on_where_it_was(stop, tmp_path, capsys):
    """A run that was killed anywhere ends with the epoch of one that never was."""
    run = StoppingRun(tmp_path)
    run.go(stop)
    hook = run.go(resume=True)
    assert run.measured[-1] == 5
    assert (hook.lowest, hook.waited) == (4.0, 3)
    made = run.updates
    assert run.go(resume=True).ended
    assert run.updates == made, "a run that has ended by itself makes no update more"


def test_a_hook_that_remembers_nothing_waits_anew(tmp_path, capsys):
    """Known mistake: the patience began at 0 after each resume."""
    run = StoppingRun(tmp_path)
    run.go(stop=17, wrap=lambda hook: lambda: hook())
    run.go(resume=True, wrap=lambda hook: lambda: hook())
    assert run.measured[-1] > 5


def read_log(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_log_has_a_line_for_each_update_with_the_rate_it_had(tmp_path, capsys):
    model = make()
    optimizer = adamw(model, lr=0.004)
    rates = rates_used(optimizer)
    clip = ClipEachUpdate(optimizer, 1.0)
    log = TrainingLog(tmp_path / "log.csv", optimizer, clip)
    plan = make_scheduler(optimizer, warmup_cosine, num_steps=12, warmup_steps=4)
    losses = train(model, optimizer, scheduler=plan, after_step=log)
    rows = read_log(tmp_path / "log.csv")
    assert tuple(rows[0]) == TrainingLog.columns
    assert [int(row["step"]) for row in rows] == list(range(12))
    assert [int(row["tokens"]) for row in rows] == [18 * n for n in range(1, 13)]
    assert [float(row["rate"]) for row in rows] == pytest.approx(rates)
    assert [float(row["norm"]) for row in rows] == pytest.approx(clip.norms, rel=1e-5)
    evaluated = [row for row in rows if row["val_loss"]]
    assert [row["step"] for row in evaluated] == ["0", "5", "10"]
    assert [float(r["val_loss"]) for r in evaluated] == pytest.approx(
        losses[1], abs=1e-4
    )
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds)


def test_the_log_overwrites_nothing_unasked_and_makes_its_folder(tmp_path):
    log = tmp_path / "log.csv"
    TrainingLog(log, adamw(make()))(1, 18, ([], [], []))
    for path, resume, text in [
        (tmp_path / "results.csv", True, "seed,loss\n1,2.5\n"),
        (log, False, log.read_text(encoding="utf-8")),
    ]:
        path.write_text(text, encoding="utf-8")
        with pytest.raises(FileExistsError, match="move it away"):
            TrainingLog(path, adamw(make()), resume=resume)
        assert path.read_text(encoding="utf-8") == text
    TrainingLog(tmp_path / "new" / "log.csv", adamw(make()))
    assert (tmp_path / "new").is_dir()


def test_the_log_drops_lines_that_a_crash_left_behind(tmp_path):
    """An empty one, and one that was cut off: "1" is not step 1, it was 10."""
    path = tmp_path / "log.csv"
    line = "0,18,0.001,,,,0.10"
    head = ",".join(TrainingLog.columns)
    path.write_text(f"{head}\n{line}\n\n1", encoding="utf-8")
    TrainingLog(path, adamw(make()), resume=True)(3, 54, ([], [], []))
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[:2] == [head, line]
    assert [text.split(",")[0] for text in lines[2:]] == ["2"]


@pytest.mark.parametrize("muon", [False, True])
@pytest.mark.parametrize("stop_after", [2, 7])
def test_resumed_in_the_middle_of_the_warmup_is_never_stopped(
    muon, stop_after, tmp_path, capsys
):
    """Weights, averages, rates and the log, to the last bit."""

    def start(folder, stop=None, resume=False):
        model = make()
        optimizer = muon_with_adamw(model, 0.02, 0.01) if muon else adamw(model)
        clip = ClipEachUpdate(optimizer, 0.5)
        average = WeightAverage(optimizer, 0.9)
        plan = make_scheduler(optimizer, warmup_cosine, num_steps=12, warmup_steps=5)
        path = tmp_path / folder / "log.csv"
        log = TrainingLog(path, optimizer, clip, resume)

        def after_step(step, *rest):
            log(step, *rest)
            if step == stop:
                raise Stopped

        loop = resumable(train_model_simple, tmp_path / folder, every=1, resume=resume)
        loss = in_micro_batches(calc_loss_batch, rows=1)
        with contextlib.suppress(Stopped):
            train(
                model,
                optimizer,
                loop,
                scheduler=plan,
                loss=loss,
                after_step=after_step,
            )
        own = [p.clone() for p in model.parameters()]
        with average.swapped_in():
            return own, [p.clone() for p in model.parameters()]

    whole = start("whole")
    start("parts", stop=stop_after)
    parts = start("parts", resume=True)
    for ours, theirs in zip(parts, whole):
        assert all(map(torch.equal, ours, theirs))
    logs = [read_log(tmp_path / folder / "log.csv") for folder in ("whole", "parts")]
    for row in itertools.chain(*logs):
        del row["seconds"]
    assert logs[0] == logs[1]
    assert float(logs[0][stop_after]["rate"]) > 0


# --- Muon -----------------------------------------------------------------------------


def polynomial(s, steps=5):
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return s


@pytest.mark.parametrize("shape", [(4, 4), (3, 8), (8, 3), (1, 5), (5, 1)])
def test_the_iteration_applies_its_polynomial_to_each_singular_value(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    expected = u * polynomial(s / s.norm()) @ v
    found = newton_schulz(matrix, dtype=torch.float64)
    assert torch.allclose(found, expected, atol=1e-10)


@some
@given(st.floats(0.01, 1.0))
def test_singular_values_end_near_one(s):
    assert 0.65 < polynomial(s) < 1.25


def test_nothing_comes_of_nothing():
    assert not newton_schulz(torch.zeros(3, 4)).any()


def test_muon_is_that_of_pytorch():
    """Wide, square and tall matrices, another rate at each update, bit for bit."""
    shapes = [(6, 6), (4, 9), (9, 4)]
    ours, theirs = (
        [
            nn.Parameter(torch.randn(s, generator=torch.Generator().manual_seed(2)))
            for s in shapes
        ]
        for _ in range(2)
    )
    mine = Muon(ours, lr=0.03, weight_decay=0.1)
    other = torch.optim.Muon(theirs, lr=0.03, weight_decay=0.1)
    generator = torch.Generator().manual_seed(3)
    for update in range(8):
        for a, b in zip(ours, theirs):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        for optimizer in (mine, other):
            optimizer.param_groups[0]["lr"] = 0.03 / (1 + update)
            optimizer.step()
        assert all(map(torch.equal, ours, theirs)), update


@pytest.mark.parametrize(
    ("shape", "lr"), [((3,), 0.02), ((2, 2, 2), 0.02), ((2, 2), -1.0)]
)
def test_muon_refuses_what_is_no_matrix_and_a_rate_below_zero(shape, lr):
    with pytest.raises(ValueError, match="matrices only, and a rate from 0 on"):
        Muon([nn.Parameter(torch.ones(shape))], lr=lr)
    matrix = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(TypeError):  # a closure would not be called
        Muon([matrix]).step(lambda: 0.0)
    optimizer = Muon([matrix])
    late = {"params": [nn.Parameter(torch.ones(shape))], "lr": lr}
    with pytest.raises(ValueError, match="matrices only, and a rate from 0 on"):
        optimizer.add_param_group(late)
    assert len(optimizer.param_groups) == 1


def test_muon_takes_hidden_matrices_and_adamw_the_rest():
    model = make()
    optimizer = muon_with_adamw(model, 0.02, 0.01, weight_decay=0.3)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [[names[id(p)] for p in g["params"]] for g in optimizer.param_groups]
    assert sorted(sum(groups, [])) == sorted(names.values())
    assert all(n.startswith("trf_blocks.") for n in groups[0])
    assert len(groups[0]) == 2 * 6, "four of attention, two of feed-forward a block"
    assert set(groups[1]) == {"tok_emb.weight", "pos_emb.weight", "out_head.weight"}
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    assert decays == [0.3, 0.3, 0.0]


def test_optimizers_in_one_are_the_same_as_two(capsys):
    together, apart = make(), make()
    train(together, muon_with_adamw(together, 0.02, 0.01), epochs=1)
    hidden = [p for p in apart.trf_blocks.parameters() if p.ndim == 2]
    rest = [p for p in apart.parameters() if all(p is not q for q in hidden)]
    two = (
        torch.optim.Muon(hidden, lr=0.02, weight_decay=0.1),
        torch.optim.AdamW(
            [
                {"params": [p for p in rest if p.ndim > 1], "weight_decay": 0.1},
                {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=0.01,
        ),
    )
    for batch in loader():
        for one in two:
            one.zero_grad()
        calc_loss_batch(*batch, apart, "cpu").backward()
        for one in two:
            one.step()
    for name, weight in together.state_dict().items():
        assert torch.equal(weight, apart.state_dict()[name]), name


def test_an_optimizer_alone_goes_through_the_bundle_unchanged(capsys):
    plain, bundled = make(), make()
    train(plain, adamw(plain))
    train(bundled, OptimizersInOne(adamw(bundled)))
    assert all(map(torch.equal, plain.parameters(), bundled.parameters()))
