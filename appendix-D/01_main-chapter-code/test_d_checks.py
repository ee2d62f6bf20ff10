"""Every exercise check takes the solution, knows the stub and names mistakes."""

import math

import numpy as np
import pytest
import torch

from course.exercises import verify
from d_checks import check_d_1, check_d_2, check_d_3, check_d_4, check_d_5
from gpt_train import count_targets


def stub(*arguments):
    """A function of which only the docstring is there."""
    return ...


# --- D.1 -----------------------------------------------------------------------------


def rate_of(micro_batch, parts, num_updates, warmup, peak):
    update = micro_batch // parts
    if update < warmup:
        return peak * (update + 1) / warmup
    return peak * max(0, num_updates - update) / (num_updates - warmup)


def by_interpolation(micro_batch, parts, num_updates, warmup, peak):
    x = [-1, warmup - 1, warmup, num_updates]
    return np.interp(micro_batch // parts, x, [0, peak, peak, 0])


def negative(micro_batch, parts, num_updates, warmup, peak):
    update = micro_batch // parts
    if update < warmup:
        return peak * (update + 1) / warmup
    return peak * (num_updates - update) / (num_updates - warmup)


def from_zero(micro_batch, parts, num_updates, warmup, peak):
    update = micro_batch // parts
    if update < warmup:
        return peak * update / warmup
    return rate_of(micro_batch, parts, num_updates, warmup, peak)


def held(micro_batch, parts, num_updates, *rest):
    last = min(micro_batch, parts * num_updates - 1)
    return rate_of(last, parts, num_updates, *rest)


def whole_run(micro_batch, parts, num_updates, warmup, peak):
    update = micro_batch // parts
    if update < warmup:
        return peak * (update + 1) / warmup
    return peak * max(0, num_updates - update) / num_updates


def test_D_1():
    wrong = {
        "micro-batches": (
            lambda i, parts, *rest: rate_of(i, 1, *rest),
            "micro-batches are counted",
        ),
        "micro-batches, unbounded": (
            lambda i, parts, *rest: negative(i, 1, *rest),
            "the rate goes on below zero",
        ),
        "negative": (negative, "behind the end the rate is negative"),
        "sign": (lambda *a: -rate_of(*a), "the rate of micro-batch 0 is negative"),
        "NaN": (lambda *a: math.nan, "the rate of micro-batch 0 is nan"),
        "from zero": (from_zero, "learns nothing"),
        "held": (held, "where the last update had it"),
        "whole run": (whole_run, "warm-up included"),
        "constant": (lambda *a: a[-1], "micro-batch 0 should not have this rate"),
        "early": (
            lambda i, parts, n, w, peak: rate_of(i, parts, n - 1, w, peak),
            "0 one update too early",
        ),
        "not held": (
            lambda i, parts, n, w, peak: (
                peak * min((i // parts + 1) / w, max(0, n - i // parts) / (n - w + 1))
            ),
            "two updates have the peak",
        ),
        "text": (lambda *a: "0.5", "not a number"),
    }
    verify(check_d_1, rate_of, stub, wrong)


def test_D_1_takes_another_way(capsys):
    for kind in (np.float64, np.float32, torch.tensor):
        check_d_1(lambda *a, kind=kind: kind(by_interpolation(*a)))
        assert "correct" in capsys.readouterr().out


# --- D.2 -----------------------------------------------------------------------------


def clipped_step(weights, gradients, lr, max_norm):
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    scale = max_norm / norm if norm > max_norm else 1.0
    return [w - lr * scale * g for w, g in zip(weights, gradients)]


def by_pytorch(weights, gradients, lr, max_norm):
    parameters = [torch.nn.Parameter(w.clone()) for w in weights]
    for parameter, gradient in zip(parameters, gradients):
        parameter.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    torch.optim.SGD(parameters, lr=lr).step()
    return tuple(p.detach() for p in parameters)


def too_late(weights, gradients, lr, max_norm):
    return [w - lr * g for w, g in zip(weights, gradients)]


def each_alone(weights, gradients, lr, max_norm):
    return [
        w - lr * g * min(1, max_norm / g.norm()) for w, g in zip(weights, gradients)
    ]


def by_value(weights, gradients, lr, max_norm):
    return [w - lr * g.clamp(-max_norm, max_norm) for w, g in zip(weights, gradients)]


def always(weights, gradients, lr, max_norm):
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    return [w - lr * g * max_norm / norm for w, g in zip(weights, gradients)]


def clips_the_move(weights, gradients, lr, max_norm):
    moves = [lr * g for g in gradients]
    return clipped_step(weights, moves, 1.0, max_norm)


def sums_lengths(weights, gradients, lr, max_norm):
    scale = min(1, max_norm / sum(g.norm() for g in gradients))
    return [w - lr * scale * g for w, g in zip(weights, gradients)]


def by_longest(weights, gradients, lr, max_norm):
    scale = min(1, max_norm / max(g.norm() for g in gradients))
    return [w - lr * scale * g for w, g in zip(weights, gradients)]


def no_root(weights, gradients, lr, max_norm):
    squares = sum((g**2).sum() for g in gradients)
    return [w - lr * min(1, max_norm / squares) * g for w, g in zip(weights, gradients)]


def in_place(weights, gradients, lr, max_norm):
    found = clipped_step(weights, gradients, lr, max_norm)
    for weight, new in zip(weights, found):
        weight.copy_(new)
    return weights


def zero_by_zero(weights, gradients, lr, max_norm):
    norm = math.sqrt(sum((g**2).sum().item() for g in gradients))
    return [w - lr * min(1.0, max_norm / norm) * g for w, g in zip(weights, gradients)]


def test_D_2():
    wrong = {
        "too late": (too_late, "clipping comes too late"),
        "each": (each_alone, "by its own length"),
        "value": (by_value, "cut off by itself"),
        "always": (always, "is made longer"),
        "move": (clips_the_move, "learning rate included"),
        "sum": (sums_lengths, "root of summed squares"),
        "longest": (by_longest, "the longest tensor alone"),
        "in place": (in_place, "what you were given has changed"),
        "no root": (no_root, "no root is taken"),
        "uphill": (
            lambda w, g, lr, m: clipped_step(w, g, -lr, m),
            "where the loss rises",
        ),
        "no rate": (
            lambda w, g, lr, m: clipped_step(w, g, 1.0, m),
            "the learning rate is missing",
        ),
        "zero": (zero_by_zero, "ZeroDivisionError"),
        "number": (lambda *_: 1.0, "no list of new weights"),
        "one": (lambda *a: clipped_step(*a)[:1], "3 new weights are asked for; 1"),
        "other": (
            lambda w, g, lr, m: clipped_step(w, g, 2 * lr, m),
            "not one clipped step away",
        ),
    }
    verify(check_d_2, clipped_step, stub, wrong)


def test_D_2_takes_pytorchs_own_way(capsys):
    check_d_2(by_pytorch)
    assert "correct" in capsys.readouterr().out


# --- D.3 -----------------------------------------------------------------------------


def update_in_parts(model, optimizer, batch, rows, loss):
    optimizer.zero_grad()
    total = count_targets(batch)
    for part in zip(*(tensor.split(rows) for tensor in batch)):
        if count_targets(part):
            share = count_targets(part) / total
            (loss(*part, model, "cpu") * share).backward()
    optimizer.step()


def planted(weight, each=False, forget=False, step_each=False):
    def attempt(model, optimizer, batch, rows, loss):
        if not forget:
            optimizer.zero_grad()
        parts = list(zip(*(tensor.split(rows) for tensor in batch)))
        for part in parts:
            if each:
                optimizer.zero_grad()
            (loss(*part, model, "cpu") * weight(part, batch, parts)).backward()
            if step_each:
                optimizer.step()
        if not step_each:
            optimizer.step()

    return attempt


def by_targets(part, batch, parts):
    return count_targets(part) / count_targets(batch)


def whole_batch(model, optimizer, batch, rows, loss):
    optimizer.zero_grad()
    loss(*batch, model, "cpu").backward()
    optimizer.step()


def at_once(model, optimizer, batch, rows, loss):
    """One backward for all parts, so that no memory is saved."""
    optimizer.zero_grad()
    parts = zip(*(tensor.split(rows) for tensor in batch))
    parts = [p for p in parts if count_targets(p)]
    sums = [loss(*p, model, "cpu") * count_targets(p) for p in parts]
    (sum(sums) / count_targets(batch)).backward()
    optimizer.step()


def by_chunks(model, optimizer, batch, rows, loss):
    """`rows` parts, not parts of `rows`."""
    update_in_parts(model, optimizer, batch, -(-len(batch[0]) // rows), loss)


def never_backward(model, optimizer, batch, rows, loss):
    for part in zip(*(tensor.split(rows) for tensor in batch)):
        if count_targets(part):
            loss(*part, model, "cpu")
    optimizer.step()


def drops_the_last(model, optimizer, batch, rows, loss):
    optimizer.zero_grad()
    for part in list(zip(*(tensor.split(rows) for tensor in batch)))[:-1]:
        (loss(*part, model, "cpu") * by_targets(part, batch, ())).backward()
    optimizer.step()


def logs_without_gradients(model, optimizer, batch, rows, loss):
    """The whole batch before and after: nothing of it waits for `backward`."""
    with torch.no_grad():
        before = loss(*batch, model, "cpu")
    update_in_parts(model, optimizer, batch, rows, loss)
    with torch.no_grad():
        assert loss(*batch, model, "cpu") != before


def test_D_3_takes_a_log_without_gradients(capsys):
    check_d_3(logs_without_gradients)
    assert "correct" in capsys.readouterr().out


def test_D_3():
    wrong = {
        "means": (
            planted(lambda part, batch, parts: 1 / len(parts)),
            "each part has the same weight",
        ),
        "sequences": (
            planted(lambda part, batch, parts: len(part[0]) / len(batch[0])),
            "weighed by their sequences",
        ),
        "rows": (
            planted(lambda part, batch, parts: 1 / len(parts[0][0])),
            "divided by `rows`",
        ),
        "all targets": (
            planted(lambda part, batch, _: count_targets(part) / batch[1].numel()),
            "also those that do not count",
        ),
        "sum": (planted(lambda *_: 1.0), "as if each were the whole batch"),
        "each": (planted(by_targets, each=True), "forgotten before each part"),
        "forget": (planted(by_targets, forget=True), "of the update before"),
        "steps": (planted(by_targets, step_each=True), "steps after each part"),
        "batch": (
            planted(lambda part, batch, _: 1 / len(batch[0])),
            "by the sequences of the batch",
        ),
        "twice": (planted(lambda *a: by_targets(*a) ** 2), "weighed twice"),
        "dropped": (drops_the_last, "the last part is left out"),
        "no backward": (never_backward, "`backward` is never called"),
        "no step": (lambda *_: [], "made 0 steps"),
        "whole": (whole_batch, "a part has more than `rows` sequences"),
        "at once": (at_once, "two parts wait for `backward`"),
        "empty": (planted(by_targets), "its loss has no mean"),
    }
    verify(check_d_3, update_in_parts, stub, wrong)
    with pytest.raises(AssertionError, match="more than `rows` sequences"):
        check_d_3(by_chunks)


# --- D.4 -----------------------------------------------------------------------------


def averages(weights, decay):
    found = []
    for n in range(1, len(weights) + 1):
        shares = [decay ** (n - k) for k in range(1, n + 1)]
        found.append(sum(s * w for s, w in zip(shares, weights)) / sum(shares))
    return found


def running(weights, decay, start=None):
    average, found = weights[0] if start is None else start, []
    for weight in weights:
        average = decay * average + (1 - decay) * weight
        found.append(average)
    return found


def reversed_powers(weights, decay):
    found = []
    for n in range(1, len(weights) + 1):
        shares = [decay ** (k - 1) for k in range(1, n + 1)]
        found.append(sum(s * w for s, w in zip(shares, weights)) / sum(shares))
    return found


def fed_back(weights, decay):
    average, found = 0.0, []
    for n, weight in enumerate(weights, start=1):
        average = (decay * average + (1 - decay) * weight) / (1 - decay**n)
        found.append(average)
    return found


def test_D_4():
    wrong = {
        "reversed": (reversed_powers, "the oldest value counts most"),
        "fed back": (fed_back, "the corrected average goes into the next"),
        "nothing": (lambda w, d: [None] * len(w), "None, not a number"),
        "none": (lambda w, d: w.sort(), "no list of averages"),
        "zero": (lambda w, d: running(w, d, 0.0), "still drawn to it"),
        "first": (running, "more than their share"),
        "swapped": (lambda w, d: averages(w, 1 - d), "the share of the old ones"),
        "mean": (lambda w, d: averages(w, 1.0), "nothing is forgotten"),
        "last": (lambda w, d: averages(w, d)[-1:], "only the last average"),
        "other": (
            lambda w, d: [0.0] * len(w),
            "average number 1 is not the mean asked for",
        ),
        "sum": (
            lambda w, d: [a / (1 - d) for a in running(w, d, 0.0)],
            "not divided by their sum",
        ),
        "by n": (
            lambda w, d: [
                a / (1 - d) / n for n, a in enumerate(running(w, d, 0.0), start=1)
            ],
            "divided by n",
        ),
    }
    verify(check_d_4, averages, stub, wrong)


def test_D_4_takes_the_short_way(capsys):
    def by_lerp(weights, decay):
        average, found = torch.tensor(0.0, dtype=torch.float64), []
        for n, weight in enumerate(weights, start=1):
            average = average + (weight - average) * (1 - decay) / (1 - decay**n)
            found.append(average)
        return torch.stack(found)

    check_d_4(by_lerp)
    assert "correct" in capsys.readouterr().out


# --- D.5 -----------------------------------------------------------------------------


def adamw(weight, gradients, lr, decay, l2=False, times_lr=True, correct=True):
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        if l2:
            g += decay * weight
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        first, second = (m / (1 - 0.9**t), v / (1 - 0.999**t)) if correct else (m, v)
        if not l2 and times_lr:
            weight -= lr * decay * weight
        weight -= lr * first / (math.sqrt(second) + 1e-8)
        if not times_lr:
            weight -= decay * weight
    return weight


def shrinks_afterwards(weight, gradients, lr, decay):
    first = second = 0.0
    for t, g in enumerate(gradients, start=1):
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
        size = math.sqrt(second / (1 - 0.999**t)) + 1e-8
        weight -= lr * first / (1 - 0.9**t) / size
        weight *= 1 - lr * decay
    return weight


def by_rule(weight, gradients, lr, decay, rule):
    """`rule` makes the move of both corrected averages and the update's number."""
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        move = rule(m / (1 - 0.9**t), v / (1 - 0.999**t), t)
        weight = weight * (1 - lr * decay) - lr * move
    return weight


def swapped_memories(weight, gradients, lr, decay):
    first = second = 0.0
    for t, g in enumerate(gradients, start=1):
        first, second = 0.999 * first + 0.001 * g, 0.9 * second + 0.1 * g * g
        size = math.sqrt(second / (1 - 0.9**t)) + 1e-8
        weight = weight * (1 - lr * decay) - lr * first / (1 - 0.999**t) / size
    return weight


def by_torch(weight, gradients, lr, decay):
    """In float32, as PyTorch computes by default."""
    parameter = torch.nn.Parameter(torch.tensor(weight))
    optimizer = torch.optim.AdamW([parameter], lr=lr, weight_decay=decay)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    return parameter.detach()


def test_D_5():
    wrong = {
        "memories": (swapped_memories, "the memory of the other"),
        "L2": (lambda *a: adamw(*a, l2=True), "Adam with L2"),
        "no rate": (lambda *a: adamw(*a, times_lr=False), "not multiplied by"),
        "start": (lambda *a: adamw(*a, correct=False), "not corrected for it"),
        "after": (shrinks_afterwards, "shrinks afterwards"),
        "none": (lambda w, g, lr, decay: adamw(w, g, lr, 0.0), "there is no decay"),
        "along": (
            lambda w, g, lr, d: adamw(w, [-x for x in g], lr, d),
            "moves along the gradient",
        ),
        "other": (lambda w, *_: w, "not where AdamW ends"),
        "no root": (
            lambda *a: by_rule(*a, lambda m, v, t: m / (v + 1e-8)),
            "its root is missing",
        ),
        "inside": (
            lambda *a: by_rule(*a, lambda m, v, t: m / math.sqrt(v + 1e-8)),
            "inside of the root",
        ),
        "first": (
            lambda *a: by_rule(
                *a, lambda m, v, t: m / (math.sqrt(v * (1 - 0.999**t)) + 1e-8)
            ),
            "only the average of the gradients",
        ),
        "second": (
            lambda *a: by_rule(
                *a, lambda m, v, t: m * (1 - 0.9**t) / (math.sqrt(v) + 1e-8)
            ),
            "only the average of the squares",
        ),
        "pair": (lambda w, *_: (w, 0.0), "not a number"),
    }
    verify(check_d_5, adamw, stub, wrong)


def test_D_5_takes_numpy_and_tensors(capsys):
    for kind in (np.float64, np.float32, torch.tensor):
        check_d_5(lambda *a, kind=kind: kind(adamw(*a)))
        assert "correct" in capsys.readouterr().out
    check_d_5(by_torch)
    assert "correct" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="not where AdamW ends"):
        check_d_5(lambda w, g, lr, d: adamw(w, g, 2 * lr, d))
