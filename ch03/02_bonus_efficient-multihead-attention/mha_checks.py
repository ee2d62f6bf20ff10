"""The checks of the exercises on ways to attend; `course.exercises` says how it works.

Masks are counted row by row, since a row with one key too many looks right at a glance.
What a known slip would give is computed and compared, so each gets its own sentence.
"""

import math

import torch
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask
from torch.overrides import TorchFunctionMode

from course.exercises import (
    call,
    check,
    describe,
    expect,
    expect_close,
    expect_no_slip,
    expect_tensor,
    random_tensor,
)


def _pair(found, names):
    """The parts of a tuple or list of as many parts as there are names."""
    expect(
        isinstance(found, (tuple, list)) and len(found) == len(names),
        f"the result is {describe(found)}, not {', '.join(names)}",
    )
    return found


# --- MHA.1 One window, four masks -----------------------------------------------------


@check("MHA.1")
def check_MHA_1(attempt):
    for T, W in ((6, 3), (5, 1), (4, 9), (1, 1), (7, 6)):
        names = ("visible", "hidden", "added", "rule")
        found = _pair(call(attempt, T, W), names)
        _expect_visible(found[0], T, W)
        wanted = _window(T, W)
        _expect_hidden(found[1], wanted)
        _expect_added(found[2], wanted)
        _expect_rule(found[3], wanted)
    return "Five windows, four forms, and every row has min(i + 1, W) keys."


def _window(T, W):
    i, j = torch.arange(T)[:, None], torch.arange(T)
    return (i - j >= 0) & (i - j < W)


def _expect_visible(found, T, W):
    expect_tensor(found, (T, T), "visible, queries by keys", torch.bool)
    wanted = _window(T, W)
    asked = f"for T={T}, W={W} "
    if torch.equal(found, wanted):
        return
    expect(
        not torch.equal(found, ~wanted),
        asked + "visible is True where a query must not look",
    )
    expect(
        not torch.equal(found, wanted.T),
        asked + "queries and keys are exchanged: the window looks ahead",
    )
    row = int((found != wanted).any(dim=1).nonzero()[0])
    ahead = found[row, row + 1 :].any()
    expect(not ahead, f"{asked}query {row} sees a key that comes after it")
    expect(
        found[row].sum() == wanted[row].sum(),
        f"{asked}query {row} sees {int(found[row].sum())} keys; count itself and those "
        "before it",
    )
    expect(False, f"{asked}query {row} sees the wrong keys")


def _expect_hidden(found, wanted):
    expect_tensor(found, tuple(wanted.shape), "hidden, queries by keys", torch.bool)
    expect(
        not torch.equal(found, wanted),
        "hidden equals visible, but nn.MultiheadAttention hides where the mask is True",
    )
    expect(torch.equal(found, ~wanted), "hidden is not the opposite of visible")


def _expect_added(found, wanted):
    expect_tensor(found, tuple(wanted.shape), "added, queries by keys")
    expect(
        found.dtype == torch.float32,
        f"added holds {found.dtype}, float32 is asked for: it is added to scores",
    )
    expect(not found.isnan().any(), "added holds nan: minus infinity times 0 is nan")
    expect(
        not found[wanted].any(),
        "added changes the score of a key that may be seen",
    )
    favoured = 100 * (~wanted)  # a hidden key that fits far better than the others
    for scores in (torch.zeros_like(found), favoured):
        weights = torch.softmax(scores + found, dim=-1)
        expect(
            not weights[~wanted].any(),
            "added leaves a hidden key some weight, if its score is 100 and that of "
            "the others 0: in a softmax only a very low score is as good as none",
        )


def _expect_rule(found, wanted):
    expect(callable(found), f"rule is {describe(found)}, not a function")
    T = len(wanted)
    # Once is enough, and takes its time.
    refusal = _expect_traceable(found, T) if T == 6 else ""
    zero = torch.tensor(0)
    places = torch.arange(T)
    answers = torch.empty(T, T, dtype=torch.bool)
    for i in range(T):
        for j in range(T):
            answer = call(found, zero, zero, places[i], places[j])
            expect(
                isinstance(answer, torch.Tensor) and answer.dtype == torch.bool,
                f"rule returns {describe(answer)} where FlexAttention needs a boolean "
                "tensor",
            )
            answers[i, j] = answer
    expect(
        not torch.equal(answers, ~wanted) or torch.equal(answers, wanted),
        "rule is True where a key is hidden; FlexAttention keeps where it is True",
    )
    expect(torch.equal(answers, wanted), "rule and visible are not the same mask")
    expect(not refusal, f"create_block_mask cannot use rule: {refusal}")


def _expect_traceable(rule, T):
    """FlexAttention asks for all positions at once, where nothing can branch."""
    call(rule, *(torch.tensor(0) for _ in range(4)))  # its own errors first
    try:
        create_block_mask(rule, None, None, T, T, device="cpu")
    except (
        AssertionError,
        RuntimeError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:
        told = str(error).partition("\n")[0]
        expect(
            "vmap" not in told,
            "FlexAttention calls rule for all positions at once, and then no single "
            "True or False can be taken from a tensor: join conditions with & instead "
            "of and, and leave out if, item() and bool()",
        )
        return told
    return ""


# --- MHA.2 Zeros for those who see nothing --------------------------------------------


@check("MHA.2")
def check_MHA_2(attempt):
    for seed, (T, K) in enumerate(((5, 4), (1, 3), (6, 2))):
        parts = [random_tensor(T, K, seed=10 * seed + n) for n in range(3)]
        for mask in _masks(T):
            _expect_attended(attempt, parts, mask)
    parts[0] *= 400  # scores so far apart that a hidden key may win against -50
    for mask in _masks(T):
        _expect_attended(attempt, parts, mask)
    return "Rows with keys are SDPA's, rows without are zero, all gradients finite."


def _masks(T):
    """A causal mask with an empty row, a window that ends before it begins, all."""
    everything = torch.ones(T, T, dtype=torch.bool)
    causal = everything.tril()
    causal[T // 2] = False
    i, j = torch.arange(T)[:, None], torch.arange(T)
    before = (i - j >= 2) & (i - j < 4)  # nobody sees itself, the last keys, at first
    return causal, before, everything


class _UsesOfSDPA(TorchFunctionMode):
    """Counts calls of SDPA, under whatever name it was imported."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func is F.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


def _reference(parts, visible):
    return F.scaled_dot_product_attention(*(p[None] for p in parts), attn_mask=visible)[
        0
    ]


def _expect_attended(attempt, parts, visible):
    parts = [part.clone().requires_grad_() for part in parts]
    with _UsesOfSDPA() as uses:
        found = call(attempt, *parts, visible.clone())
    expect(not uses.count, "SDPA is called, and the exercise is to do without it")
    expect_tensor(found, tuple(parts[0].shape), "as the queries have it")
    empty = ~visible.any(dim=1)
    plain = found.detach()
    expect(
        not plain[empty].isnan().any(),
        "the row of a query that sees nothing is nan",
    )
    expect(
        not plain[empty].any(),
        "the row of a query that sees nothing is not zero: does it average keys that "
        "are hidden from it?",
    )
    expected, detached = _reference(parts, visible), [p.detach() for p in parts]
    if (~empty).any():
        unscaled = [detached[0] * math.sqrt(parts[0].shape[1]), *detached[1:]]
        expect_no_slip(
            plain[~empty],
            expected[~empty].detach(),
            {
                "visible is read the wrong way round": _reference(detached, ~visible)[
                    ~empty
                ],
                "the scores are not divided by the root of K": _reference(
                    unscaled, visible
                )[~empty],
                "nothing is hidden": _reference(detached, torch.ones_like(visible))[
                    ~empty
                ],
            },
        )
    expect_close(plain, expected.detach(), "a row with keys is not what SDPA gives")
    if empty.all() and not found.requires_grad:
        return  # zeros that were made from nothing are right, too
    expect(found.requires_grad, "the result has no gradient")
    pull = random_tensor(*found.shape, seed=7)
    grads = torch.autograd.grad(found, parts, pull, allow_unused=True)
    wanted = torch.autograd.grad(expected, parts, pull)
    for name, grad, other in zip(("queries", "keys", "values"), grads, wanted):
        if grad is None and not other.any():
            continue  # it need not depend on what does not count
        expect(grad is not None, f"the result does not depend on the {name}")
        expect(
            grad.isfinite().all(),
            f"the outputs are right, but the gradient of the {name} is not finite: the "
            "nan was covered, not avoided",
        )
        expect_close(grad, other, f"the gradient of the {name} is not SDPA's")


# --- MHA.3 Two finished parts ---------------------------------------------------------


HIDDEN = "one log_total minus infinity"


@check("MHA.3")
def check_MHA_3(attempt):
    for seed, size, shift in ((1, 3, 0.0), (2, 1, 0.0), (3, 4, 900.0), (4, 2, -900.0)):
        scores = 2 * random_tensor(5, 2 * size, seed=seed) + shift
        if shift:
            scores[:, size:] -= shift / 300  # parts of unequal weight, far from zero
        values = random_tensor(2 * size, 3, seed=seed + 50)
        _expect_merged(attempt, scores, values, size, f"scores around {shift:g}")
    far = torch.tensor([900.0, -900.0, 0.0, 900.0, -900.0], dtype=torch.float64)
    scores, values = random_tensor(5, 6, seed=6), random_tensor(6, 3, seed=56)
    about = "queries whose scores are far apart"
    _expect_merged(attempt, scores + far[:, None], values, 3, about)
    scores[:, :3] -= 900.0
    scores[:, 3:] += 900.0
    _expect_merged(attempt, scores, values, 3, "parts whose scores are far apart")
    scores = random_tensor(4, 6, seed=8)
    scores[0, :3] = scores[1, 3:] = -torch.inf
    _expect_merged(attempt, scores, random_tensor(6, 3, seed=9), 3, HIDDEN)
    return "Parts of any weight, large scores and a part without keys are merged."


def _finished(scores, values):
    log_total = torch.logsumexp(scores, dim=1)
    weights = torch.softmax(scores, dim=1)
    empty = log_total == -torch.inf
    return weights.masked_fill(empty[:, None], 0.0) @ values, log_total


def _expect_merged(attempt, scores, values, size, about):
    first = _finished(scores[:, :size], values[:size])
    second = _finished(scores[:, size:], values[size:])
    expected = _finished(scores, values)
    given = [part.clone() for part in (*first, *second)]
    found = _pair(call(attempt, first, second), ("context", "log_total"))
    expect(
        all(map(torch.equal, given, (*first, *second))),
        "merge changes what a worker has handed over: make new tensors",
    )
    context, log_total = found
    expect_tensor(context, tuple(expected[0].shape), "context as the parts have it")
    expect_tensor(log_total, tuple(expected[1].shape), "one log_total for each query")
    by_log = torch.stack([first[1], second[1]])
    expect(
        context.isfinite().all(),
        f"with {about} the context is not finite: "
        + (
            "the difference of the two is infinite"
            if about == HIDDEN
            else "keep exp away from large numbers"
        ),
    )
    expect_no_slip(
        context,
        expected[0],
        {
            "the parts are averaged as if both had seen the same weight": (
                first[0] + second[0]
            )
            / 2,
            "the contexts are added, although each is finished already": first[0]
            + second[0],
            "the contexts are weighted by log_total itself, without exp": (
                by_log[:, :, None] * torch.stack([first[0], second[0]])
            ).sum(0)
            / by_log.sum(0)[:, None],
        },
    )
    expect_close(
        context, expected[0], f"with {about} the context is not that of all keys"
    )
    expect_no_slip(
        log_total,
        expected[1],
        {
            "log_total is the larger of the two; both sums count": by_log.amax(0),
            "the logarithms are added; the sums of powers must be": by_log.sum(0),
        },
    )
    expect_close(log_total, expected[1], f"with {about} log_total is wrong")
