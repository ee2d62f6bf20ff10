"""The checks of the exercises in `appendix-D.ipynb`; see `course.exercises`.

What is right comes from PyTorch: its AdamW, its clipping, its gradient of a whole
batch. What the known slips would give is computed beside it.
"""

import copy
import math

import torch
from torch import nn

from course.exercises import (
    call,
    check,
    describe,
    expect,
    expect_close,
    expect_no_slip,
    expect_number,
    expect_tensor,
    random_tensor,
    seeded,
)
from gpt_train import IGNORE_INDEX, count_targets


def _expect_list(found, length, of):
    """Raise `AssertionError` unless `found` can be read as so many results."""
    expect(
        hasattr(found, "__len__"), f"the result is {describe(found)}, no list of {of}"
    )
    expect(len(found) == length, f"{length} {of} are asked for; {len(found)} came")


# --- D.1 A rate for each micro-batch --------------------------------------------------


def _rate(update, num_updates, warmup, peak):
    """Up to the peak in `warmup` updates, then straight down, 0 behind the end."""
    if update < warmup:
        return peak * (update + 1) / warmup
    return peak * max(0, num_updates - update) / (num_updates - warmup)


def _from_zero(update, num_updates, warmup, peak):
    if update < warmup:
        return peak * update / warmup
    return _rate(update, num_updates, warmup, peak)


def _held(update, num_updates, warmup, peak):
    return _rate(min(update, num_updates - 1), num_updates, warmup, peak)


def _over_all(update, num_updates, warmup, peak):
    if update < warmup:
        return _rate(update, num_updates, warmup, peak)
    return peak * max(0, num_updates - update) / num_updates


def _unbounded(update, num_updates, warmup, peak):
    if update < warmup:
        return peak * (update + 1) / warmup
    return peak * (num_updates - update) / (num_updates - warmup)


def _one_early(update, num_updates, warmup, peak):
    return _rate(update, num_updates - 1, warmup, peak)


def _not_held(update, num_updates, warmup, peak):
    if update < warmup:
        return _rate(update, num_updates, warmup, peak)
    return _rate(update, num_updates, warmup - 1, peak)


_RATE_SLIPS = {
    "the first update has a rate of 0 and learns nothing": _from_zero,
    "behind the end the rate stays where the last update had it": _held,
    "the way down takes the whole run, warm-up included": _over_all,
    "the rate is 0 one update too early, in the last update": _one_early,
    "the way down begins one update too early: two updates have the peak": _not_held,
}


@check("D.1")
def check_d_1(attempt):
    for parts, num_updates, warmup, peak in ((4, 9, 3, 0.2), (1, 8, 2, 0.5)):
        plan = num_updates, warmup, peak
        micro_batches = range(parts * (num_updates + 2))
        found = [expect_number(call(attempt, i, parts, *plan)) for i in micro_batches]
        for i, rate in enumerate(found):
            expect(math.isfinite(rate), f"the rate of micro-batch {i} is {rate}")
        updates = [i // parts for i in micro_batches]
        right = [_rate(update, *plan) for update in updates]
        slips = {
            message: [slip(update, *plan) for update in updates]
            for message, slip in _RATE_SLIPS.items()
        }
        slips["micro-batches are counted where the plan counts updates"] = [
            _rate(i, *plan) for i in micro_batches
        ]
        expect_no_slip(found, right, slips)
        if parts > 1:
            slip = "counting micro-batches ends early, and the rate goes on below zero"
            counted = [_unbounded(i, *plan) for i in micro_batches]
            expect_no_slip(found, right, {slip: counted})
        for i, rate in enumerate(found[: parts * num_updates]):
            expect(rate >= 0, f"the rate of micro-batch {i} is negative")
        expect(
            min(found) >= 0,
            "behind the end the rate is negative, which would undo what was learned",
        )
        for i, (rate, planned) in enumerate(zip(found, right)):
            expect_close(rate, planned, f"micro-batch {i} should not have this rate")
    return "One and four micro-batches in an update, and none after the end."


# --- D.2 Clip, then step --------------------------------------------------------------


def _step(weights, gradients, lr, scales):
    return [w - lr * s * g for w, g, s in zip(weights, gradients, scales)]


@check("D.2")
def check_d_2(attempt):
    shapes = [(3,), (2, 2), (1,)]
    weights = [random_tensor(*s, seed=i) for i, s in enumerate(shapes)]
    long = [3 * random_tensor(*s, seed=9 + i) for i, s in enumerate(shapes)]
    short = [gradient / 100 for gradient in long]
    none = [torch.zeros_like(gradient) for gradient in long]
    cases = ((short, 0.1), (long, 7.0), (long, 0.1), (none, 0.1))
    for gradients, lr in cases:
        kept = copy.deepcopy((weights, gradients))
        found = call(attempt, weights, gradients, lr, 1.5)
        _expect_list(found, len(weights), "new weights")
        found = list(found)
        for ours, theirs in zip((*weights, *gradients), (*kept[0], *kept[1])):
            expect(
                torch.equal(ours, theirs),
                "what you were given has changed; return new tensors",
            )
        for tensor, shape in zip(found, shapes):
            expect_tensor(tensor, shape)
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        scale = min(1.0, (1.5 / norm).item())
        each = [min(1.0, (1.5 / g.norm()).item()) for g in gradients]
        cut = [g.clamp(-1.5, 1.5) for g in gradients]
        move = min(1.0, (1.5 / (lr * norm)).item())
        no_root = min(1.0, (1.5 / norm**2).item())
        total = sum(g.norm().item() for g in gradients)
        by_sum = 1.5 / max(1.5, total)
        longest = max(g.norm().item() for g in gradients)
        by_longest = 1.5 / max(1.5, longest)
        slips = {
            "the step is taken with the gradient as it was: clipping comes too late": (
                _step(weights, gradients, lr, [1, 1, 1])
            ),
            "each tensor is clipped by its own length, which turns the gradient": (
                _step(weights, gradients, lr, each)
            ),
            "each number is cut off by itself, which turns the gradient": (
                _step(weights, cut, lr, [1, 1, 1])
            ),
            "a gradient that is short enough is made longer": (
                _step(weights, gradients, lr, [(1.5 / norm).item()] * 3)
            ),
            "the step is clipped, learning rate included, not the gradient": (
                _step(weights, gradients, lr, [move] * 3)
            ),
            "lengths are added; the length of all is the root of summed squares": (
                _step(weights, gradients, lr, [by_sum] * 3)
            ),
            "the longest tensor alone is measured; the length is that of all": (
                _step(weights, gradients, lr, [by_longest] * 3)
            ),
            "the squares are summed, and no root is taken": (
                _step(weights, gradients, lr, [no_root] * 3)
            ),
            "the step goes along the gradient, where the loss rises": (
                _step(weights, gradients, -lr, [scale] * 3)
            ),
        }
        if gradients is short:  # a clipped one has the length of a clipped move
            slips["the learning rate is missing from the step"] = _step(
                weights, gradients, 1.0, [scale] * 3
            )
        right = _step(weights, gradients, lr, [scale] * 3)
        expect_no_slip(found, right, slips)
        expect_close(found, right, "these weights are not one clipped step away")
    return "Long gradients and short ones, three tensors with one length."


# --- D.3 One update in parts ----------------------------------------------------------


class _Words(nn.Module):
    """The smallest language model: a table of logits."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(random_tensor(5, 5, seed=3))

    def forward(self, idx):
        return self.table[idx]


def _loss(inputs, targets, model, device):
    if not count_targets((targets,)):
        raise ValueError("no target of this part counts, so its loss has no mean")
    logits = model(inputs).flatten(0, 1)
    return nn.functional.cross_entropy(
        logits, targets.flatten(), ignore_index=IGNORE_INDEX
    )


def _batch(seed, ignored):
    ids = torch.randint(5, (5, 7), generator=seeded(seed))
    targets = ids[:, 1:].clone()
    for row, count in zip(targets, ignored):
        row[:count] = IGNORE_INDEX
    return ids[:, :-1], targets


class _WatchedLoss:
    """The loss, and whether parts were too large or waited for each other.

    What is computed without gradients, as for a log, keeps nothing in memory.
    """

    def __init__(self, rows):
        self.rows, self.waiting = rows, 0
        self.too_large = self.together = self.given = False

    def __call__(self, inputs, targets, model, device):
        value = _loss(inputs, targets, model, device)
        if not value.requires_grad:
            return value
        self.too_large |= len(inputs) > self.rows
        self.together |= self.waiting > 0
        self.waiting += 1
        value.register_hook(self._gone)
        return value

    def _gone(self, _):
        self.waiting -= 1
        self.given = True


def _updates(way, batches, rows):
    model = _Words()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.7)
    steps = []
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    for batch in batches:
        way(model, optimizer, batch, rows)
    return model.table.detach().clone(), len(steps)


def _slip(kind="", each=False, forget=False, short=False):
    """One update in parts, with one mistake: what a part weighs, or what is kept."""

    def update(model, optimizer, batch, rows):
        if not forget:
            optimizer.zero_grad()
        parts = list(zip(*(tensor.split(rows) for tensor in batch)))
        for part in parts[:-1] if short else parts:
            if count_targets(part) == 0:
                continue
            share = {
                "": count_targets(part) / count_targets(batch),
                "mean": 1 / len(parts),
                "rows": 1 / rows,
                "sequences": len(part[0]) / len(batch[0]),
                "all": count_targets(part) / batch[1].numel(),
                "batch": 1 / len(batch[0]),
                "twice": (count_targets(part) / count_targets(batch)) ** 2,
                "total": 1.0,
            }[kind]
            if each:
                optimizer.zero_grad()
            (_loss(*part, model, "cpu") * share).backward()
        optimizer.step()

    return update


@check("D.3")
def check_d_3(attempt):
    full = [_batch(1, (0, 5, 4, 1, 3)), _batch(2, (2, 0, 5, 5, 1))]
    with_empty = [_batch(1, (0, 6, 4, 1, 3)), _batch(2, (6, 0, 5, 6, 1))]
    for rows, batches in ((2, full), (1, with_empty), (5, full)):
        right, _ = _updates(_slip(), batches, rows)
        watched = _WatchedLoss(rows)
        found, steps = _updates(
            lambda *given, loss=watched: call(attempt, *given, loss), batches, rows
        )
        expect(
            not watched.too_large,
            f"a part has more than `rows` sequences, which are {rows} here",
        )
        expect(
            watched.given or not watched.waiting,
            "`backward` is never called, so there is no gradient",
        )
        expect(
            not watched.together,
            "two parts wait for `backward` at once, so memory holds both: call it for "
            "each part",
        )
        expect(
            steps != len(batches) * -(-5 // rows) or rows == 5,
            "the optimizer steps after each part; one update is one step",
        )
        expect(
            steps == len(batches), f"two updates made {steps} steps of the optimizer"
        )
        kinds = {
            "each part has the same weight, however few of its targets count": "mean",
            "parts are divided by `rows`, not weighed by their targets": "rows",
            "parts are weighed by their sequences, not by the targets that count": (
                "sequences"
            ),
            "the divisor counts all targets, also those that do not count": "all",
            "parts are divided by the sequences of the batch, not weighed": "batch",
            "each part is weighed twice": "twice",
            "the parts are added up as if each were the whole batch": "total",
        }
        slips = {
            message: _updates(_slip(kind), batches, rows)[0]
            for message, kind in kinds.items()
        }
        slips |= {
            "gradients are forgotten before each part, so only the last one counts": (
                _updates(_slip(each=True), batches, rows)[0]
            ),
            "the last part is left out": _updates(_slip(short=True), batches, rows)[0],
            "the gradient of the update before is still there": (
                _updates(_slip(forget=True), batches, rows)[0]
            ),
        }
        expect_no_slip(found, right, slips)
        expect_close(found, right, "the weights are not those of the whole batch")
    return "Two updates in parts of 1, 2 and 5 sequences, some without a target."


# --- D.4 A running average with a short memory ----------------------------------------


def _averages(weights, decay, start=0.0, correct=False, feed_back=False):
    average, found = start, []
    for n, weight in enumerate(weights, start=1):
        average = decay * average + (1 - decay) * weight
        found.append(average / (1 - decay**n) if correct else average)
        if feed_back:
            average = found[-1]
    return found


def _oldest_first(weights, decay):
    found = []
    for n in range(1, len(weights) + 1):
        shares = [decay**k for k in range(n)]
        found.append(sum(map(math.prod, zip(shares, weights))) / sum(shares))
    return found


@check("D.4")
def check_d_4(attempt):
    for weights, decay in (([4.0, 8.0, 6.0, 7.0], 0.75), ([-2.0], 0.9)):
        found = call(attempt, list(weights), decay)
        expect(
            hasattr(found, "__len__"),
            f"the result is {describe(found)}, no list of averages",
        )
        found = [expect_number(value) for value in found]
        right = _averages(weights, decay, correct=True)
        slips = {
            "the average starts at zero and is still drawn to it": (
                _averages(weights, decay)
            ),
            "the first weights stay in with more than their share": (
                _averages(weights, decay, start=weights[0])
            ),
            "the newest weights get the share of the old ones": (
                _averages(weights, 1 - decay, correct=True)
            ),
            "all weights count alike, so nothing is forgotten": [
                sum(weights[:n]) / n for n in range(1, len(weights) + 1)
            ],
            "the oldest value counts most; it has to be the newest": (
                _oldest_first(weights, decay)
            ),
            "the corrected average goes into the next one; go on with the other": (
                _averages(weights, decay, correct=True, feed_back=True)
            ),
            "the shares are not divided by their sum, so that this is no mean": [
                average / (1 - decay) for average in _averages(weights, decay)
            ],
            "the sum is divided by n, not by the sum of the shares": [
                average / (1 - decay) / n
                for n, average in enumerate(_averages(weights, decay), start=1)
            ],
            "only the last average is returned": right[-1:],
        }
        expect_no_slip(found, right, slips)
        expect(
            len(found) == len(weights),
            f"{len(weights)} updates have {len(found)} averages",
        )
        for n, (average, mean) in enumerate(zip(found, right), start=1):
            expect_close(average, mean, f"average number {n} is not the mean asked for")
    return "Each is a mean whose shares sum to one, from the first update on."


# --- D.5 AdamW by hand ----------------------------------------------------------------


def _adam(
    w,
    gradients,
    lr,
    decay,
    l2=False,
    late=False,
    after=False,
    correct=(True, True),
    betas=(0.9, 0.999),
    size=lambda v, eps: math.sqrt(v) + eps,
):
    (beta1, beta2), eps = betas, 1e-8
    m, v = 0.0, 0.0
    for step, g in enumerate(gradients, start=1):
        if l2:
            g = g + decay * w
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat = m / (1 - beta1**step) if correct[0] else m
        v_hat = v / (1 - beta2**step) if correct[1] else v
        move = lr * m_hat / size(v_hat, eps)
        if l2 or late or after:
            w = w - move
            w = w - decay * w if late else w
            w = w * (1 - lr * decay) if after else w
        else:
            w = w * (1 - lr * decay) - move
    return w


@check("D.5")
def check_d_5(attempt):
    for start, gradients, lr, decay in (
        (2.0, [0.3, -0.1, 0.5], 0.1, 0.4),
        (-1.5, [2.0], 0.05, 1.0),
        (1.0, [1e-3, 1e-3], 0.1, 0.0),
    ):
        found = expect_number(call(attempt, start, list(gradients), lr, decay))
        weight = nn.Parameter(torch.tensor(start, dtype=torch.float64))
        optimizer = torch.optim.AdamW([weight], lr=lr, weight_decay=decay)
        for gradient in gradients:
            weight.grad = torch.tensor(gradient, dtype=torch.float64)
            optimizer.step()
        slips = {
            "the decay is in the gradient, and divided by its size: Adam with L2": (
                _adam(start, gradients, lr, decay, l2=True)
            ),
            "the decay is not multiplied by the learning rate": _adam(
                start, gradients, lr, decay, late=True
            ),
            "the averages start at zero and are not corrected for it": _adam(
                start, gradients, lr, decay, correct=(False, False)
            ),
            "the weight moves first and shrinks afterwards, the move included": _adam(
                start, gradients, lr, decay, after=True
            ),
            "only the average of the gradients is corrected": _adam(
                start, gradients, lr, decay, correct=(True, False)
            ),
            "only the average of the squares is corrected": _adam(
                start, gradients, lr, decay, correct=(False, True)
            ),
            "the move is divided by the mean square; its root is missing": _adam(
                start, gradients, lr, decay, size=lambda v, eps: v + eps
            ),
            "the small number stands inside of the root": _adam(
                start, gradients, lr, decay, size=lambda v, eps: math.sqrt(v + eps)
            ),
            "each average has the memory of the other": _adam(
                start, gradients, lr, decay, betas=(0.999, 0.9)
            ),
            "there is no decay": _adam(start, gradients, lr, 0.0),
            "the weight moves along the gradient, not against it": _adam(
                start, [-g for g in gradients], lr, decay
            ),
        }
        expect_no_slip(found, weight.item(), slips)
        expect_close(found, weight.item(), "this is not where AdamW ends")
    return "The same weights as torch.optim.AdamW's, with decay and without."
