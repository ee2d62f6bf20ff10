"""Every exercise check on ways to attend takes the solution and names mistakes."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from course.exercises import verify
from mha_checks import check_MHA_1, check_MHA_2, check_MHA_3


def stub(*arguments):
    return ...


# --- MHA.1 ----------------------------------------------------------------------------


def make_masks(allowed):
    """A solution from a rule (i, j, W) -> seen; wrong ones change a part of it."""

    def window_masks(T, W):
        i, j = torch.arange(T)[:, None], torch.arange(T)
        visible = allowed(i, j, W)
        added = torch.zeros(T, T).masked_fill(~visible, -torch.inf)
        return visible, ~visible, added, lambda b, h, q, k: allowed(q, k, W)

    return window_masks


def right(i, j, W):
    return (j <= i) & (j > i - W)


window_masks = make_masks(right)


def by_loops(T, W):
    rows = [[0 <= i - j < W for j in range(T)] for i in range(T)]
    visible = torch.from_numpy(np.array(rows))
    added = torch.where(visible, 0.0, torch.finfo(torch.float32).min)
    return [visible, ~visible, added, lambda b, h, q, k: visible[q, k]]


def changed(**parts):
    def window_masks_changed(T, W):
        names = ("visible", "hidden", "added", "rule")
        found = dict(zip(names, window_masks(T, W), strict=True))
        for name, change in parts.items():
            found[name] = change(found)
        return tuple(found.values())

    return window_masks_changed


WRONG_1 = {
    "one key too many": (make_masks(lambda i, j, W: (j <= i) & (j >= i - W)), "count"),
    "future seen": (make_masks(lambda i, j, W: (i - j).abs() < W), "comes after it"),
    "ahead": (make_masks(lambda i, j, W: right(j, i, W)), "the window looks ahead"),
    "turned round": (
        changed(visible=lambda f: f["hidden"]),
        "visible is True where a query must not look",
    ),
    "hidden as visible": (changed(hidden=lambda f: f["visible"]), "hidden equals"),
    "ones added": (changed(added=lambda f: -f["hidden"].float()), "some weight"),
    "visible ones added": (
        changed(added=lambda f: f["visible"].float()),
        "changes the score",
    ),
    "booleans added": (changed(added=lambda f: f["hidden"]), "truth values"),
    "rule with and": (
        changed(rule=lambda f: lambda b, h, q, k: bool(q >= k) and True),
        "instead of and",
    ),
    "rule turned round": (
        changed(rule=lambda f: lambda b, h, q, k: f["hidden"][q, k]),
        "FlexAttention keeps",
    ),
    "rule without window": (
        changed(rule=lambda f: lambda b, h, q, k: q >= k),
        "are not the same mask",
    ),
    "one mask alone": (lambda T, W: window_masks(T, W)[0], "not visible, hidden"),
}


def test_MHA_1(capsys):
    verify(check_MHA_1, window_masks, stub, WRONG_1)
    check_MHA_1(by_loops)
    assert "correct" in capsys.readouterr().out


def test_minus_infinity_times_zero_is_refused():
    with pytest.raises(AssertionError, match="changes the score of a key"):
        check_MHA_1(changed(added=lambda f: f["hidden"].float() * -torch.inf))


# --- MHA.2 ----------------------------------------------------------------------------


def attend(queries, keys, values, visible, fill, scale=True):
    scores = queries @ keys.T
    scores = scores / math.sqrt(keys.shape[1]) if scale else scores
    return torch.softmax(scores.masked_fill(~visible, fill), dim=-1), values


LOWEST = torch.finfo(torch.float64).min


def attend_safely(queries, keys, values, visible):
    weights, values = attend(queries, keys, values, visible, LOWEST)
    return weights.masked_fill(~visible, 0.0) @ values


def by_rows(queries, keys, values, visible):
    """One query after the other; none that sees nothing is ever computed."""
    rows = []
    for query, row in zip(queries, visible):
        scores = keys[row] @ query / math.sqrt(len(query))
        rows.append(torch.softmax(scores, dim=0) @ values[row])
    return torch.stack(rows)


def with_multiplied_output(queries, keys, values, visible):
    weights, values = attend(queries, keys, values, visible, LOWEST)
    return (weights @ values) * visible.any(dim=1, keepdim=True)


def minus_infinity(queries, keys, values, visible):
    weights, values = attend(queries, keys, values, visible, -torch.inf)
    return weights @ values


def lowest_alone(queries, keys, values, visible):
    weights, values = attend(queries, keys, values, visible, LOWEST)
    return weights @ values


def covered(queries, keys, values, visible):
    return minus_infinity(queries, keys, values, visible).nan_to_num()


def zeroed_without_hiding(queries, keys, values, visible):
    weights, values = attend(queries, keys, values, visible | True, LOWEST)
    return (weights @ values) * visible.any(dim=1, keepdim=True)


def unscaled(queries, keys, values, visible):
    weights, values = attend(queries, keys, values, visible, LOWEST, scale=False)
    return weights.masked_fill(~visible, 0.0) @ values


def without_gradient(*parts):
    with torch.no_grad():
        return attend_safely(*parts)


def weights_only(queries, keys, values, visible):
    return attend(queries, keys, values, visible, LOWEST)[0]


WRONG_2 = {
    "minus infinity": (minus_infinity, "sees nothing is nan"),
    "the lowest number alone": (lowest_alone, "is not zero"),
    "covered": (covered, "the nan was covered, not avoided"),
    "nothing hidden": (zeroed_without_hiding, "nothing is hidden"),
    "unscaled": (unscaled, "the root of K"),
    "no gradient": (without_gradient, "the result has no gradient"),
    "weights": (weights_only, "the result has shape"),
}


def test_MHA_2(capsys):
    verify(check_MHA_2, attend_safely, stub, WRONG_2)
    for other in (by_rows, with_multiplied_output):
        check_MHA_2(other)
        assert "correct" in capsys.readouterr().out


def test_the_fused_function_would_pass_too(capsys):
    """The statement forbids it, the check does not look for names."""

    def fused(queries, keys, values, visible):
        parts = (part[None] for part in (queries, keys, values))
        return F.scaled_dot_product_attention(*parts, attn_mask=visible)[0]

    check_MHA_2(fused)
    assert "correct" in capsys.readouterr().out


# --- MHA.3 ----------------------------------------------------------------------------


def merge(first, second):
    log_total = torch.logaddexp(first[1], second[1])
    parts = (torch.exp(t - log_total)[:, None] * c for c, t in (first, second))
    return sum(parts), log_total


def by_softmax(first, second):
    both = torch.stack([first[1], second[1]])  # (2, T)
    shares = torch.softmax(both, dim=0)[..., None]
    context = (shares * torch.stack([first[0], second[0]])).sum(dim=0)
    return [context, torch.logsumexp(both, dim=0)]


def by_largest(first, second):
    largest = torch.maximum(first[1], second[1])
    powers = [torch.exp(part[1] - largest) for part in (first, second)]
    total = powers[0] + powers[1]
    summed = powers[0][:, None] * first[0] + powers[1][:, None] * second[0]
    return summed / total[:, None], largest + torch.log(total)


def careless(first, second):
    powers = [torch.exp(part[1]) for part in (first, second)]
    total = powers[0] + powers[1]
    summed = powers[0][:, None] * first[0] + powers[1][:, None] * second[0]
    return summed / total[:, None], torch.log(total)


def other_total(change):
    return lambda first, second: (merge(first, second)[0], change(first[1], second[1]))


def other_context(change):
    return lambda first, second: (change(first, second), merge(first, second)[1])


WRONG_3 = {
    "without care": (careless, "keep exp away from large numbers"),
    "averaged": (other_context(lambda a, b: (a[0] + b[0]) / 2), "the same weight"),
    "added": (other_context(lambda a, b: a[0] + b[0]), "finished already"),
    "without exp": (
        other_context(
            lambda a, b: (
                (a[1][:, None] * a[0] + b[1][:, None] * b[0]) / (a[1] + b[1])[:, None]
            )
        ),
        "without exp",
    ),
    "the larger total": (other_total(torch.maximum), "the larger of the two"),
    "logarithms added": (other_total(torch.add), "the logarithms are added"),
    "only the context": (lambda a, b: merge(a, b)[0], "not context, log_total"),
    "another total": (other_total(lambda a, b: a - b), "log_total is wrong"),
}


def test_MHA_3(capsys):
    verify(check_MHA_3, merge, stub, WRONG_3)
    for other in (by_softmax, by_largest):
        check_MHA_3(other)
        assert "correct" in capsys.readouterr().out
