"""The checks of the exercises in `extend-tiktoken.ipynb`; see `course.exercises`.

Expected values come from plain loops over Python's own floats.
"""

import math

import torch

from course.exercises import (
    call,
    check,
    expect,
    expect_close,
    expect_no_slip,
    expect_number,
    expect_tensor,
    random_tensor,
    seeded,
)

# --- 5.91 The loss of old text after new tokens ---------------------------------------


UNLIKELY = 40  # so far below the others a target lies once: its probability is 1e-18


@check("5.91")
def check_5_91(attempt):
    cases = [(6, 9, 2, 0.0), (1, 5, 1, 0.0), (4, 7, 0, 0.0), (5, 3, 6, 0.0)]
    cases += [(5, 8, 2, -130.0), (5, 8, 3, 130.0)]
    cases += [(5, 8, 2, -1000.0), (5, 8, 3, 1000.0)]  # out of float64's range, too
    for seed, (T, V, N, level) in enumerate(cases):
        logits = (3 * random_tensor(T, V, seed=seed) + level).float()
        new_logits = (3 * random_tensor(T, N, seed=99 + seed) + level + 1).float()
        targets = torch.randint(V, (T,), generator=seeded(seed))
        targets[0] = 0  # id 0 is a token like the others
        if seed == 3:
            logits[1, targets[1]] -= UNLIKELY
        given = logits.clone(), targets.clone(), new_logits.clone()
        found = expect_number(call(attempt, *given))
        _judge_loss(found, logits, targets, new_logits)
    return f"{len(cases)} texts, logits far below and far above 0 among them."


def _mean_loss(logits, targets):
    """By Python's floats, the largest logit taken out first."""
    total = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        most = max(row)
        total += most + math.log(sum(math.exp(x - most) for x in row)) - row[target]
    return total / len(targets)


def _judge_loss(found, logits, targets, new_logits):
    (T, V), N = logits.shape, new_logits.shape[1]
    right = _mean_loss(torch.cat((logits, new_logits), dim=1), targets)
    expect(
        math.isfinite(found),
        f"the loss is {found} for logits near {logits.mean():.0f}: exp leaves the "
        "range of the numbers there; take the largest logit out first, or logsumexp",
    )
    old = _mean_loss(logits, targets)
    first = _mean_loss(torch.cat((logits, new_logits[:, :1]), dim=1), targets)
    without_z = old + new_logits.double().exp().sum(dim=1).log1p().mean().item()
    slips = {
        "this is the loss before: each new token takes some of the probability": old,
        "this is the largest loss that mean rows can bring; the new logits say what it "
        "is": old + math.log1p(N / V),
        "only the first new token is counted": first,
        "the new tokens' exp(logit) is added to 1: their share is measured against the "
        "sum over the old ones": without_z,
        f"the sum over {T} targets is no mean": right * T,
        "the loss is in bits; natural logarithms give nats": right / math.log(2),
    }
    atol = 1e-4 if logits.abs().max() < 50 else 1e-3
    expect_no_slip(found, right, slips, atol)
    unlikely = logits.max() - logits.min() > UNLIKELY - 10
    expect(
        not (unlikely and 1 < right - found < UNLIKELY),
        "a target that is next to impossible costs too little: add nothing to a "
        "probability before its logarithm",
    )
    message = "the loss is not the one that the enlarged model has"
    expect_close(found, right, message, atol)


# --- 5.92 New rows as a parameter of their own ----------------------------------------

HUGE = 2**40  # rows that take no memory: all are the same one


@check("5.92")
def check_5_92(attempt):
    # The first has all new ids, so that "one too late" and "always the first" differ.
    cases = [[5, 8, 7, 9, 6], [[0, 8, 1], [8, 2, 8]], [6, 3, 0, 0], [7, 8, 9], [9]]
    for seed, ids in enumerate(cases):
        ids = torch.tensor(ids)
        old, new = random_tensor(7, 4, seed=seed), random_tensor(3, 4, seed=9 + seed)
        new.requires_grad_(True)
        given = ids.clone()
        found = call(attempt, given, old.clone(), new)
        expect(
            torch.equal(given, ids),
            "the ids that were passed in have changed: they are the caller's batch; "
            "count from V in a new tensor",
        )
        expect_tensor(
            found,
            (*ids.shape, 4),
            "one vector for each id, in the number format of the tables",
            torch.float64,
        )
        _judge_vectors(found, ids, old, new)
    _judge_memory(attempt)
    return f"{len(cases)} batches, and an old table too large to be copied."


def _judge_vectors(found, ids, old, new):
    both = [*old.tolist(), *new.tolist()]
    off = [*old.tolist(), new[0].tolist(), *new.tolist()]

    def rows(table):
        vectors = torch.tensor([table[i] for i in ids.flatten().tolist()])
        return vectors.view(*ids.shape, -1).double()

    right = torch.tensor(
        [both[i] for i in ids.flatten().tolist()], dtype=torch.float64
    ).view(*ids.shape, -1)
    slips = {
        "id 7, the first new one, gets no new row: with 7 old rows their ids end at "
        "6": rows(_shifted(old, new)),
        "the new rows come one id too late": rows(off),
        "every new id gets the first new row": rows(
            [*old.tolist(), *[new[0].tolist()] * 3]
        ),
    }
    expect_no_slip(found.detach(), right, slips, 1e-5)
    message = "some id gets another vector than its row"
    expect_close(found.detach(), right, message, 1e-9)
    times = [ids.eq(7 + i).sum().item() for i in range(3)]
    if not any(times):
        return
    expect(
        found.requires_grad,
        "no gradient reaches the new rows: the result was detached, or copied by way "
        "of numbers",
    )
    weights = torch.arange(1.0, 5.0, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((found * weights).sum(), new, allow_unused=True)
    expect(gradient is not None, "no gradient reaches the new rows")
    expected = torch.tensor(times, dtype=torch.float64)[:, None] * weights
    message = "the gradient of a new row is not the sum over the places of its id"
    expect_close(gradient.to_dense(), expected, message, 1e-9)


def _shifted(old, new):
    """Rows if the last old one is still taken where the first new one belongs."""
    return [*old.tolist(), old[-1].tolist(), *new[1:].tolist()]


def _judge_memory(attempt):
    old = torch.tensor([[1.0, 2.0]]).expand(HUGE, 2)
    new = torch.tensor([[3.0, 4.0]], requires_grad=True)
    try:
        # By way of a lambda: an error message would write the arguments out.
        found = call(lambda: attempt(torch.tensor([HUGE - 1, HUGE, 0]), old, new))
    except AssertionError as error:
        expect(
            "memory" not in str(error),
            "with a very large old table memory runs out: look up in each table by "
            "itself and join the vectors, not the tables",
        )
        raise
    about = "one vector for each id, in the number format of the tables"
    expect_tensor(found, (3, 2), about, torch.float32)
    expected = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])
    message = "with a very large old table some id gets another vector"
    expect_close(found.detach(), expected, message)
