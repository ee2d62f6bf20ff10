"""Every exercise check takes the solution, knows the stub and names mistakes."""

import math

import pytest
import torch
from torch.nn import functional as F

from course.exercises import verify
from resize_checks import check_5_91, check_5_92


def stub(*arguments):
    return ...


# --- 5.91 -----------------------------------------------------------------------------


def loss_after(logits, targets, new_logits):
    logits = torch.cat((logits, new_logits), dim=1)
    return F.cross_entropy(logits, targets)


def by_shares(logits, targets, new_logits):
    """The old loss, and what the new tokens take: ln(1 + their sum over the old)."""
    old = logits.double().logsumexp(dim=1)
    rise = torch.nn.functional.softplus(new_logits.double().logsumexp(dim=1) - old)
    return float((old + rise - logits.gather(1, targets[:, None])[:, 0]).mean())


def naive(logits, targets, new_logits):
    z = logits.exp().sum(dim=1) + new_logits.exp().sum(dim=1)
    return -(logits.exp().gather(1, targets[:, None])[:, 0] / z).log().mean()


def with_floor(logits, targets, new_logits):
    shares = torch.cat((logits, new_logits), dim=1).softmax(dim=1)
    return -(shares.gather(1, targets[:, None]) + 1e-9).log().mean()


def one_by_one_text(logits, targets, new_logits):
    """By `math` alone, the largest logit taken out."""
    losses = []
    for row, target in zip(
        torch.cat((logits, new_logits), 1).tolist(), targets.tolist(), strict=True
    ):
        z = math.fsum(math.exp(x - max(row)) for x in row)
        losses.append(max(row) + math.log(z) - row[target])
    return math.fsum(losses) / len(losses)


def by_logsumexp(logits, targets, new_logits):
    z = torch.cat((logits, new_logits), dim=1).logsumexp(dim=1)
    return (z - logits.gather(1, targets[:, None])[:, 0]).mean()


def by_softmax(logits, targets, new_logits):
    shares = torch.cat((logits, new_logits), dim=1).softmax(dim=1)
    return -shares.gather(1, targets[:, None]).log().mean()


def test_exercise_5_91_the_loss_of_old_text():
    def old(logits, targets, new_logits):
        return F.cross_entropy(logits, targets)

    def bound(logits, targets, new_logits):
        return old(logits, targets, 0) + math.log1p(
            new_logits.shape[1] / logits.shape[1]
        )

    def first(logits, targets, new_logits):
        return loss_after(logits, targets, new_logits[:, :1])

    def without_z(logits, targets, new_logits):
        rise = new_logits.double().exp().sum(dim=1).log1p().mean()
        return old(logits, targets, 0) + rise

    wrong = {
        "nothing changes": (old, "this is the loss before"),
        "the bound": (bound, "the largest loss that mean rows can bring"),
        "one token": (first, "only the first new token"),
        "not against Z": (without_z, "is added to 1"),
        "sum": (lambda *a: loss_after(*a) * len(a[1]), "is no mean"),
        "bits": (lambda *a: loss_after(*a) / math.log(2), "in bits"),
        "underflow": (naive, "near -130: exp leaves the range"),
        "underflow of float64": (
            lambda a, b, c: naive(a.double(), b, c.double()),
            "near -1000: exp leaves the range",
        ),
        "a floor": (with_floor, "next to impossible costs too little"),
        "a vector": (
            lambda a, b, c: F.cross_entropy(torch.cat((a, c), 1), b, reduction="none"),
            "not a number",
        ),
        "another number": (lambda *a: loss_after(*a) + 1, "the enlarged model has"),
    }
    verify(check_5_91, loss_after, stub, wrong)


@pytest.mark.parametrize(
    "other",
    [
        by_shares,
        lambda *a: loss_after(*a).numpy(),
        one_by_one_text,
        by_logsumexp,
        by_softmax,
    ],
)
def test_exercise_5_91_takes_other_right_answers(other, capsys):
    check_5_91(other)
    assert "correct" in capsys.readouterr().out


# --- 5.92 -----------------------------------------------------------------------------


def look_up(ids, old, new):
    is_new = ids >= len(old)
    vectors = old[ids.clamp(max=len(old) - 1)]
    vectors[is_new] = new[ids[is_new] - len(old)]
    return vectors


def by_where(ids, old, new):
    V = old.shape[0]
    from_old = F.embedding(ids.clamp(max=V - 1), old)
    from_new = F.embedding((ids - V).clamp(min=0), new)
    return torch.where((ids < V)[..., None], from_old, from_new)


def one_by_one(ids, old, new):
    rows = [
        new[i - len(old)] if i >= len(old) else old[i] for i in ids.flatten().tolist()
    ]
    return torch.stack(rows).view(*ids.shape, -1)


def test_exercise_5_92_new_rows_by_themselves():
    def joined(ids, old, new):
        return torch.cat((old, new))[ids]

    def off_by_one(ids, old, new):
        is_new = (ids > len(old))[..., None]
        from_new = new[(ids - len(old)).clamp(min=0)]
        return torch.where(is_new, from_new, old[ids.clamp(max=len(old) - 1)])

    def late(ids, old, new):
        is_new = (ids >= len(old))[..., None]
        from_new = new[(ids - len(old) - 1).clamp(min=0)]
        return torch.where(is_new, from_new, old[ids.clamp(max=len(old) - 1)])

    def first_only(ids, old, new):
        return look_up(ids.clamp(max=len(old)), old, new)

    def in_place(ids, old, new):
        found = look_up(ids, old, new)
        ids -= len(old)
        return found

    wrong = {
        "first row": (first_only, "every new id gets the first new row"),
        "ids changed": (in_place, "the ids that were passed in have changed"),
        "joined": (joined, "memory runs out"),
        "off by one": (off_by_one, "the first new one, gets no new row"),
        "late": (late, "one id too late"),
        "detached": (lambda *a: look_up(*a).detach(), "the result was detached"),
        "gradient halved": (
            lambda ids, old, new: look_up(ids, old, (new + new.detach()) / 2),
            "the sum over the places",
        ),
        "a list": (lambda *a: look_up(*a).tolist(), "where a tensor is asked for"),
        "another number type": (lambda *a: look_up(*a).float(), "holds torch.float32"),
        "always float64": (lambda *a: look_up(*a).double(), "torch.float64, where"),
        "flat": (lambda *a: look_up(*a).flatten(0, -2)[:1], "one vector for each id"),
        "old rows only": (
            lambda ids, old, new: old[ids.clamp(max=6)] + 0 * new.sum(),
            "some id gets another vector than its row",
        ),
    }
    verify(check_5_92, look_up, stub, wrong)


@pytest.mark.parametrize("other", [by_where, one_by_one])
def test_exercise_5_92_takes_other_right_answers(other, capsys):
    check_5_92(other)
    assert "correct" in capsys.readouterr().out
