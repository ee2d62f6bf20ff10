"""The check of the exercise in `training-speed.ipynb`; see `course.exercises`.

Expected values come from autograd, in float64.
"""

import math

import torch
from torch.nn import functional as F

from course.exercises import (
    as_tensor,
    call,
    check,
    expect,
    expect_close,
    expect_no_slip,
    expect_number,
    expect_tensor,
    random_tensor,
    seeded,
    tolerance,
)

IGNORED = -100


@check("5.101")
def check_5_101(attempt):
    cases = [(5, 7, 0, 0), (1, 4, 0, 0), (6, 120, 2, 0), (4, 9, 1, 3), (3, 5, 3, 0)]
    for seed, (n, V, ignored, padding) in enumerate(cases):
        logits = 3 * random_tensor(n, V, seed=seed) + (200 if seed == 1 else 0)
        targets = torch.randint(V - padding, (n,), generator=seeded(seed))
        targets[0] = 0  # a token like the others
        if padding:
            logits[:, -padding:] = -torch.inf
        targets[n - ignored :] = IGNORED
        for dtype in (torch.float64, torch.float32):
            _judge(attempt, logits.to(dtype), targets)
    return f"{len(cases)} chunks, with padding, with rows that do not count, and large."


def _judge(attempt, logits, targets):
    before = logits.clone(), targets.clone()
    found = call(attempt, logits.clone(), targets.clone())
    expect(
        isinstance(found, (tuple, list)) and len(found) == 2,
        "the result is not a pair: give the sum of the loss, and the gradient",
    )
    total, gradient = expect_number(found[0]), as_tensor(found[1])
    expect_tensor(gradient, tuple(logits.shape), "a gradient for each logit")
    logits, targets = before[0].double().requires_grad_(), before[1]
    right = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    (slope,) = torch.autograd.grad(right, logits)
    counts = targets != IGNORED
    _judge_total(total, right.item(), logits.detach(), targets, counts)
    _judge_gradient(gradient.detach().double(), slope, targets, counts, found[1])


def _judge_total(total, right, logits, targets, counts):
    number = max(1, int(counts.sum()))
    expect(
        math.isfinite(total),
        f"the loss is {total}: `exp` of a large logit leaves the range of the numbers, "
        "or minus infinity was multiplied by 0; a log-softmax does neither",
    )
    wrapped = F.cross_entropy(logits, targets % logits.shape[1], reduction="sum")
    slips = {
        "this is the mean of the loss; chunks of other lengths need its sum": right
        / number,
        "rows whose target is -100 are in the sum: -100 counts from the end of a "
        "long row": wrapped.item(),
        "the loss has the wrong sign: it is minus the log of a probability": -right,
    }
    expect_no_slip(total, right, slips, 1e-4)
    expect_close(total, right, "the sum of the loss is another", atol=1e-3)


def _judge_gradient(gradient, slope, targets, counts, given):
    atol = 10 * tolerance(torch.as_tensor(given))
    atol = min(atol, 1e-3)
    expect(
        not gradient.isnan().any(),
        "the gradient holds NaN: a row of logits with minus infinity has probabilities "
        "of exactly 0 there",
    )
    expect(
        not gradient[~counts].any(),
        "a row that does not count has a gradient: make it zeros, whatever its logits",
    )
    softmax = slope.clone()
    rows = torch.nonzero(counts).flatten()
    softmax[rows, targets[rows]] += 1
    slips = {
        "this is the softmax; 1 has to be subtracted in the target's column": softmax,
        "the gradient has the wrong sign: a probability that is too high is a "
        "positive slope": -slope,
        "this is the gradient of the mean; the sum was asked for": slope
        / max(1, int(counts.sum())),
    }
    expect_no_slip(gradient, slope, slips, 1e-6)
    expect_close(gradient, slope, "the gradient is another", atol)
