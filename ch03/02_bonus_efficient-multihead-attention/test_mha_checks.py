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
    "booleans added": (changed(added=lambda f: f["hidden"]), "float32 is asked for"),
    "rule returns a bool": (
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


def with_if(W):
    def rule(b, h, q, k):
        if q < k:
            return torch.tensor(False)
        return q - k < W

    return rule


@pytest.mark.parametrize(
    "rule",
    [
        lambda W: lambda b, h, q, k: (q >= k) and (q - k < W),
        lambda W: lambda b, h, q, k: 0 <= q - k < W,
        lambda W: lambda b, h, q, k: torch.tensor(0 <= (q - k).item() < W),
        with_if,
    ],
)
def test_a_rule_that_flex_attention_refuses_is_refused(rule):
    """Right for single positions, which is how a learner tries it."""

    def window_masks_with(T, W):
        return *window_masks(T, W)[:3], rule(W)

    with pytest.raises(AssertionError, match="with & instead of and"):
        check_MHA_1(window_masks_with)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            lambda f: lambda b, h, q, k: torch.tensor(f["visible"].numpy()[q, k]),
            "create_block_mask cannot use rule: Cannot access data pointer",
        ),
        (
            lambda f: lambda b, h, q, k: f["visible"][q, k].int(),
            "rule returns .* where FlexAttention needs a boolean",
        ),
    ],
)
def test_other_refusals_of_flex_attention_name_the_rule(rule, message):
    with pytest.raises(AssertionError, match=message):
        check_MHA_1(changed(rule=rule))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f["added"].half(), "added holds torch.float16"),
        (lambda f: f["hidden"].float() * -100, "leaves a hidden key some weight"),
    ],
)
def test_other_numbers_to_add_are_refused(change, message):
    with pytest.raises(AssertionError, match=message):
        check_MHA_1(changed(added=change))


def test_the_mask_of_the_first_transformer_is_right(capsys):
    check_MHA_1(changed(added=lambda f: f["hidden"].float() * -1e9))
    assert "correct" in capsys.readouterr().out


def test_minus_infinity_times_zero_is_refused():
    with pytest.raises(AssertionError, match="added holds nan"):
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


def fused(queries, keys, values, visible):
    parts = (part[None] for part in (queries, keys, values))
    return F.scaled_dot_product_attention(*parts, attn_mask=visible)[0]


def zero_where_a_query_does_not_see_itself(queries, keys, values, visible):
    output = attend_safely(queries, keys, values, visible)
    return output * visible.diagonal()[:, None]


def first_empty_row_only(queries, keys, values, visible):
    output = lowest_alone(queries, keys, values, visible)
    empty = (~visible.any(dim=1)).nonzero()[:1]
    kept = torch.ones(len(queries), 1, dtype=output.dtype)
    kept[empty] = 0
    return output * kept


def minus_fifty(queries, keys, values, visible):
    weights, values = attend(queries, keys, values, visible, -50.0)
    return (weights @ values) * visible.any(dim=1, keepdim=True)


def from_zeros(queries, keys, values, visible):
    """A loop that writes into zeros: with no key at all it makes them from nothing."""
    context = torch.zeros_like(queries)
    for i, row in enumerate(visible):
        if row.any():
            scores = keys[row] @ queries[i] / math.sqrt(len(queries[i]))
            context[i] = torch.softmax(scores, dim=0) @ values[row]
    return context


def opened_in_place(queries, keys, values, visible):
    """Changes the mask it was given, and gives the empty rows their zeros."""
    empty = ~visible.any(dim=1)
    visible[empty] = True
    weights, values = attend(queries, keys, values, visible, -torch.inf)
    return (weights @ values).masked_fill(empty[:, None], 0.0)


def everything_opened(queries, keys, values, visible):
    visible |= True
    return minus_infinity(queries, keys, values, visible)


def averaged_in_place(queries, keys, values, visible):
    visible[~visible.any(dim=1)] = True
    return minus_infinity(queries, keys, values, visible)


def turned_in_place(queries, keys, values, visible):
    visible.logical_not_()
    return attend_safely(queries, keys, values, visible)


def without_keys(queries, keys, values, visible):
    return attend_safely(queries, keys.detach(), values, visible)


WRONG_2 = {
    "minus infinity": (minus_infinity, "sees nothing is nan"),
    "the lowest number alone": (lowest_alone, "is not zero"),
    "covered": (covered, "the nan was covered, not avoided"),
    "nothing hidden": (zeroed_without_hiding, "nothing is hidden"),
    "unscaled": (unscaled, "the root of K"),
    "no gradient": (without_gradient, "the result has no gradient"),
    "weights": (weights_only, "the result has shape"),
    "the fused function": (fused, "SDPA is called"),
}


def test_MHA_2(capsys):
    verify(check_MHA_2, attend_safely, stub, WRONG_2)
    for other in (by_rows, from_zeros, opened_in_place, with_multiplied_output):
        check_MHA_2(other)
        assert "correct" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (zero_where_a_query_does_not_see_itself, "is not what SDPA gives"),
        (first_empty_row_only, "is not zero"),
        (minus_fifty, "is not what SDPA gives"),
        (everything_opened, "is not zero"),
        (averaged_in_place, "is not zero"),
        (turned_in_place, "is not zero|the wrong way round"),
        (without_keys, "does not depend on the keys"),
    ],
)
def test_other_answers_to_MHA_2_are_refused(attempt, message):
    with pytest.raises(AssertionError, match=message):
        check_MHA_2(attempt)


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


def careless(first, second):
    powers = [torch.exp(part[1]) for part in (first, second)]
    total = powers[0] + powers[1]
    summed = powers[0][:, None] * first[0] + powers[1][:, None] * second[0]
    return summed / total[:, None], torch.log(total)


def merge_with(reference):
    """Both totals as powers of their distance from a reference."""

    def merge_so(first, second):
        largest = reference(first[1], second[1])
        powers = [torch.exp(part[1] - largest) for part in (first, second)]
        total = powers[0] + powers[1]
        summed = powers[0][:, None] * first[0] + powers[1][:, None] * second[0]
        return summed / total[:, None], largest + torch.log(total)

    return merge_so


def in_place(first, second):
    log_total = torch.logaddexp(first[1], second[1])
    first[0].mul_(torch.exp(first[1] - log_total)[:, None])
    return first[0] + torch.exp(second[1] - log_total)[:, None] * second[0], log_total


def by_difference(first, second):
    share = 1 / (1 + torch.exp(second[1] - first[1]))[:, None]
    extra = torch.exp(second[1] - first[1])
    context = share * (first[0] + extra[:, None] * second[0])
    return context, torch.logaddexp(first[1], second[1])


def other_total(change):
    return lambda first, second: (merge(first, second)[0], change(first[1], second[1]))


def other_context(change):
    return lambda first, second: (change(first, second), merge(first, second)[1])


by_largest = merge_with(torch.maximum)
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


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (merge_with(lambda a, b: torch.maximum(a.max(), b.max())), "scores are far"),
        (merge_with(lambda a, b: a), "parts whose scores are far apart"),
        (by_difference, "parts whose scores are far apart|difference .* infinite"),
        (in_place, "changes what a worker has handed over"),
    ],
)
def test_other_merges_are_refused(attempt, message):
    with pytest.raises(AssertionError, match=message):
        check_MHA_3(attempt)
