"""The training loop grown up: what is added around chapter 5's loop (appendix D).

There is no second loop here. `train_model_simple` takes a scheduler, a loss and two
hooks; PyTorch's optimizers call hooks before and after each update. That is enough for

* the learning rate: `warmup_cosine`, `warmup_stable_decay`, `make_scheduler`;
* the gradient: `clip_gradients`, `ClipEachUpdate`, `in_micro_batches`, `in_bfloat16`;
* the weights: `decay_matrices_only`, `WeightAverage`;
* the run: `EarlyStopping` (its log is `training_log`);
* another optimizer: `newton_schulz`, `Muon`, `OptimizersInOne`, `muon_with_adamw`.

An *update* is one call of `optimizer.step()`. Schedules count updates from 0:

>>> [round(warmup_cosine(step, num_steps=8, warmup_steps=3), 2) for step in range(8)]
[0.33, 0.67, 1.0, 1.0, 0.91, 0.69, 0.41, 0.19]

All of it around the loop, for a tiny model:

>>> import torch
>>> from gpt import GPT_CONFIG_124M, GPTModel
>>> from gpt_train import calc_loss_batch, calc_loss_loader, train_model_simple
>>> cfg = {**GPT_CONFIG_124M, "vocab_size": 50, "context_length": 8, "emb_dim": 32,
...        "n_heads": 2, "n_layers": 1, "drop_rate": 0.0}
>>> _ = torch.manual_seed(0)
>>> model, ids = GPTModel(cfg), torch.arange(36).view(4, 9)
>>> batches = [(ids[:2, :-1], ids[:2, 1:]), (ids[2:, :-1], ids[2:, 1:])]
>>> optimizer = torch.optim.AdamW(decay_matrices_only(model, 0.1), lr=0.01)
>>> clip, average = ClipEachUpdate(optimizer, 1.0), WeightAverage(optimizer, 0.9)
>>> plan = make_scheduler(optimizer, warmup_cosine, num_steps=20, warmup_steps=4)
>>> _ = train_model_simple(model, batches, batches, optimizer, "cpu", num_epochs=10,
...     eval_freq=99, eval_iter=1, start_context=None, tokenizer=None,
...     loss=in_micro_batches(in_bfloat16(calc_loss_batch), rows=1), scheduler=plan
...     )  # doctest: +ELLIPSIS
epoch 1, step 0: train 4..., validation 4...
>>> with average.swapped_in():
...     evaluate = calc_loss_loader(batches, model, "cpu")
>>> len(clip.norms), evaluate < 2.5
(20, True)

Left out: loss scaling, which float16 needs and bfloat16 does not; sharded models.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from gpt_train import count_targets
from resumable import BestModel

_Loss = Callable[..., Tensor]


# --- The learning rate ---------------------------------------------------------------


def warmup_cosine(
    step: int, num_steps: int, warmup_steps: int = 0, lowest: float = 0.1
) -> float:
    """The share of the peak rate that update `step` has: up a ramp, down a cosine.

    Args:
        step: the update, from 0. After the last one the rate stays at `lowest`.
        num_steps: updates of the whole run, not micro-batches.
        warmup_steps: updates that the way up takes, at most `num_steps`; the last of
            them has the peak.
        lowest: the share of the peak at the end.

    Sources: Goyal and others, 2017 (arXiv:1706.02677, section 2.2) for the ramp;
    Loshchilov and Hutter, 2016 (arXiv:1608.03983, equation 5) for half a cosine.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if step >= num_steps:
        return lowest
    progress = (step - warmup_steps) / (num_steps - warmup_steps)
    return lowest + (1 - lowest) * (1 + math.cos(math.pi * progress)) / 2


def warmup_stable_decay(
    step: int,
    num_steps: int,
    warmup_steps: int = 0,
    decay_steps: int = 0,
    lowest: float = 0.0,
) -> float:
    """The share of the peak rate that update `step` has: ramp, plateau, ramp.

    Until the way down begins, nothing depends on `num_steps`: a run can be made longer.
    Without `decay_steps` the rate stays at its peak.

    Args:
        step, num_steps, warmup_steps: as in `warmup_cosine`.
        decay_steps: updates that the way down takes, the last of the run; with those
            of the warm-up at most `num_steps`, or the rate jumps between the two.
        lowest: the share that the last update stays above.

    Source: Hu and others, "MiniCPM", 2024 (arXiv:2404.06395, section 4), with a
    straight way down.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if decay_steps == 0:
        return 1.0
    left = min(max((num_steps - step) / decay_steps, 0), 1)
    return lowest + (1 - lowest) * left


def make_scheduler(
    optimizer: Optimizer, share: Callable[..., float], **plan: Any
) -> LambdaLR:
    """A scheduler for the loop: each update has `share(step, **plan)` of the peak.

    The peak is the rate with which each group of the optimizer was made. `ValueError`
    for ramps longer than the run, or not whole: the rate would miss its peak, or jump.
    """
    ramps = [plan.get(name, 0) for name in ("warmup_steps", "decay_steps")]
    if any(ramp % 1 for ramp in ramps):
        raise ValueError(f"Ramps of {ramps} updates: whole numbers are counted")
    if min(ramps) < 0 or sum(ramps) > plan.get("num_steps", math.inf):
        raise ValueError(f"Ramps of {ramps} updates do not fit into this run: {plan}")
    return LambdaLR(optimizer, functools.partial(share, **plan))


# --- The gradient --------------------------------------------------------------------


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Shorten the gradient of all parameters together to `max_norm` at most.

    Returns:
        The length that it had before; `ValueError` if that is infinite or NaN.

    Source: Pascanu, Mikolov and Bengio, 2012 (arXiv:1211.5063, algorithm 1).
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm is {max_norm}: a length is above 0")
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        raise ValueError("no parameter has a gradient: `backward` comes first")
    lengths = torch.stack([gradient.norm() for gradient in gradients])
    norm = lengths.norm().item()
    if not math.isfinite(norm):
        raise ValueError(
            f"The gradient has the length {norm}: go back to the last checkpoint, and "
            "take a lower learning rate."
        )
    if norm > max_norm:
        for gradient in gradients:
            gradient.mul_(max_norm / norm)
    return norm


class ClipEachUpdate:
    """Clips before each update of an optimizer; `norms` has the lengths before.

    Args:
        optimizer, max_norm: gets this as a hook, once; no gradient is longer.
    """

    def __init__(self, optimizer: Optimizer, max_norm: float):
        self.max_norm = max_norm
        self.norms: list[float] = []
        optimizer.register_step_pre_hook(self)

    def __call__(self, optimizer: Optimizer, *_: Any) -> None:
        parameters = parameters_of(optimizer)
        self.norms.append(clip_gradients(parameters, self.max_norm))


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """All parameters of all groups of an optimizer."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def in_micro_batches(loss: _Loss, rows: int) -> _Loss:
    """The same loss with the same gradient, from at most `rows` sequences at a time.

    The batch is one update, however many parts it is computed in: rate, clipping and
    the number of targets seen are those of the whole batch. Each part weighs as many
    targets as it has. With several processes (DDP) a target weighs the same in all of
    them, and gradients are sent once, with the last part.

    Args:
        loss: as for the loop; the mean over the targets that count. `in_bfloat16` goes
            inside, `in_micro_batches(in_bfloat16(loss), rows)`: otherwise `backward`
            would run inside of autocast.
        rows: sequences in a part. In each process some target has to count.

    Returns:
        A loss for the loop. It computes the gradients itself, part by part, so that the
        activations of one part are in memory; the number that it returns has none left
        to give.

    Sources: Goyal and others, 2017 (arXiv:1706.02677, section 3); for `no_sync`, Li and
    others, 2020 (arXiv:2006.15704, section 3.2.4).
    """

    if rows < 1:
        raise ValueError(f"rows is {rows}: a part has 1 or more")

    def loss_in_parts(*arguments):
        *batch, model, device = arguments
        if not torch.is_grad_enabled():
            return loss(*arguments)
        parts = zip(*(tensor.split(rows) for tensor in batch))
        parts = [part for part in parts if count_targets(part)] or [batch]
        mean_count = mean_targets(batch, device)  # several processes
        total = 0.0
        for part in parts:
            # Several processes: DDP decides in the forward pass already.
            waits = part is not parts[-1] and hasattr(model, "no_sync")
            with model.no_sync() if waits else contextlib.nullcontext():
                part_loss = loss(*part, model, device)
                share = part_loss * count_targets(part) / mean_count
                share.backward()
            total = total + share.detach()
        return total.requires_grad_()

    return loss_in_parts


def mean_targets(batch: Sequence[Tensor], device: torch.device | str) -> float:
    """How many targets of a batch count, the mean over all processes."""
    count = torch.tensor(float(count_targets(batch)), device=device)
    if not (dist.is_available() and dist.is_initialized()):
        return count.item()
    dist.all_reduce(count)
    return count.item() / dist.get_world_size()


def in_bfloat16(loss: _Loss) -> _Loss:
    """The same loss with matrix products in bfloat16 while training.

    Weights, gradients, sums and the optimizer stay as they are. Where no gradients are
    taken, as in an evaluation, nothing changes.

    Source: Micikevicius and others, 2017 (arXiv:1710.03740), for the principle;
    Kalamkar and others, 2019 (arXiv:1905.12322), for bfloat16 without loss scaling.
    """

    def mixed_loss(*arguments):
        kind = torch.device(arguments[-1]).type
        with torch.autocast(kind, torch.bfloat16, enabled=torch.is_grad_enabled()):
            return loss(*arguments)

    return mixed_loss


# --- The weights ---------------------------------------------------------------------


def decay_matrices_only(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimizer: matrices with weight decay, all else without.

    Biases, and the scales and shifts of normalisation, are vectors. Pulling them to
    zero would not make the model simpler; a scale of zero silences its layer.

    Source: Loshchilov and Hutter, 2017 (arXiv:1711.05101), for the decay itself.
    """
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


@torch.no_grad()
def add_to_average(state: dict[str, Any], parameter: Tensor, decay: float) -> None:
    """Move the average in a parameter's state towards the parameter as it is now.

    Args:
        state: that of an optimizer for this parameter; "average" has its shape and
            number type, "averaged" counts the updates. Both are made if missing.
        parameter: just updated.
        decay: as in `WeightAverage`.
    """
    if "average" not in state:
        state["average"] = torch.zeros_like(parameter)
        state["averaged"] = torch.tensor(0.0)
    state["averaged"] += 1
    newest = (1 - decay) / (1 - decay ** state["averaged"].item())
    state["average"].lerp_(parameter, newest)


@torch.no_grad()
def swap_averages(optimizer: Optimizer) -> None:
    """Exchange each parameter with its average, if it has one: twice is as before."""
    for parameter in parameters_of(optimizer):
        state = optimizer.state[parameter]
        if "average" in state:
            own = parameter.clone()
            parameter.copy_(state["average"])
            state["average"].copy_(own)


class WeightAverage:
    """A running average of the weights, taken after each update of an optimizer.

    After n updates with the weights w_1 ... w_n it is the mean of all of them, where
    w_k has the weight decay ** (n - k). It lies in the optimizer's state beside AdamW's
    own two averages, so that a checkpoint keeps it.

    Args:
        optimizer: gets this object as a hook, once.
        decay: from 0 to below 1. About 1 / (1 - decay) updates matter.

    The average has the weights' number type: in bfloat16 it soon stands still.
    Source: Morales-Brotons and others, 2024 (arXiv:2411.18704); the correction for the
    beginning is that of Kingma and Ba, 2014 (arXiv:1412.6980, section 3).
    """

    def __init__(self, optimizer: Optimizer, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}: from 0 to below 1")
        self.optimizer, self.decay = optimizer, decay
        optimizer.register_step_post_hook(self)

    def __call__(self, optimizer: Optimizer, *_: Any) -> None:
        for parameter in parameters_of(optimizer):
            if parameter.grad is not None:
                state = optimizer.state[parameter]
                add_to_average(state, parameter, self.decay)

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside the block the model has the averages; afterwards its own weights."""
        swap_averages(self.optimizer)
        try:
            yield
        finally:
            swap_averages(self.optimizer)


# --- The run -------------------------------------------------------------------------


class EarlyStopping:
    """For `after_epoch`: keep the best model; end after so many epochs without one.

    `resumable` keeps what this object remembers in its checkpoints, so that a run that
    goes on ends where one that was never stopped ends.

    Args:
        best: measures the model and saves the best; its last loss is looked at.
        patience: epochs in a row, at least 1, that bring nothing better.
    """

    def __init__(self, best: BestModel, patience: int):
        if patience < 1:
            raise ValueError(f"patience is {patience}: from 1 on")
        self.best, self.patience = best, patience
        self.lowest, self.waited = math.inf, 0

    def __call__(self) -> bool:
        self.best()
        loss = self.best.losses[-1]
        if loss < self.lowest:
            self.lowest, self.waited = loss, 0
        else:
            self.waited += 1
        return self.ended

    @property
    def ended(self) -> bool:
        """Whether it is enough."""
        return self.waited >= self.patience

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint has to keep."""
        return {"lowest": self.lowest, "waited": self.waited}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from what a checkpoint has kept."""
        self.lowest, self.waited = state["lowest"], int(state["waited"])


# --- Muon ----------------------------------------------------------------------------


def newton_schulz(
    matrix: Tensor, steps: int = 5, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Nearly the nearest matrix with orthogonal rows or columns, by products alone.

    In each step every singular value s becomes 3.4445 s - 4.7750 s^3 + 2.0315 s^5: from
    anywhere in (0, 1] to between about 0.7 and 1.2 in five steps, unless it is tiny.

    Args:
        matrix: (N, M).
        steps: of the iteration.
        dtype: of the products and of the result, which is (N, M) too.

    Source: Jordan and others, "Muon", 2024 (kellerjordan.github.io/posts/muon).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(dtype)  # the shorter side first
    x = x / x.norm().clamp(min=1e-7)  # no singular value above 1
    for _ in range(steps):
        gram = x @ x.T
        # b A + c A A, and then a X + (b A + c A A) X
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.addmm(x, polynomial, x, beta=a)
    return x.T if tall else x


class Muon(Optimizer):
    """Momentum, made orthogonal: for the matrices inside a network.

    Args:
        params: matrices, (N, M), or groups of them.
        lr: the length of a step; each of its singular values is about `lr`.
        weight_decay, momentum: decoupled, as AdamW's; the share that is kept.

    Source: Jordan and others, 2024, as `torch.optim.Muon` has it.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
    ):
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take a group, as the constructor does with its own."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["lr"] < 0 or any(p.ndim != 2 for p in group["params"]):
            self.param_groups.pop()
            raise ValueError("Muon takes matrices only, and a rate from 0 on")

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update all matrices that have a gradient."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(matrix)
                state["momentum"].lerp_(matrix.grad, 1 - momentum)
                # Nesterov: one step of the average further than it is.
                ahead = matrix.grad.lerp(state["momentum"], momentum)
                tall = math.sqrt(max(1, matrix.shape[0] / matrix.shape[1]))
                matrix.mul_(1 - lr * group["weight_decay"])
                matrix.add_(newton_schulz(ahead), alpha=-lr * tall)


class OptimizersInOne(Optimizer):
    """Several optimizers that a loop, a scheduler and a checkpoint take for one.

    Args:
        optimizers: over different parameters. Their groups, and the rates in them, are
            this one's groups, in order.
    """

    def __init__(self, *optimizers: Optimizer):
        self.optimizers = optimizers
        super().__init__([g for one in optimizers for g in one.param_groups], {})

    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of each."""
        groups = iter(self.param_groups)
        for one in self.optimizers:
            # Loading a checkpoint makes new groups and states: hand them on.
            one.param_groups = [next(groups) for _ in one.param_groups]
            one.state = self.state
            one.step()


def muon_with_adamw(
    model: nn.Module, lr: float, adamw_lr: float, weight_decay: float = 0.1
) -> OptimizersInOne:
    """Muon for the matrices in the blocks, AdamW for embeddings, head and vectors.

    Args:
        model: has `trf_blocks`, as every model of this course.
        lr, adamw_lr, weight_decay: peak rates of the two; the decay of all matrices.
    """
    hidden = [p for p in model.trf_blocks.parameters() if p.ndim == 2]
    inside = set(hidden)
    groups = decay_matrices_only(model, weight_decay)
    for group in groups:
        group["params"] = [p for p in group["params"] if p not in inside]
    return OptimizersInOne(Muon(hidden, lr, weight_decay), AdamW(groups, lr=adamw_lr))
