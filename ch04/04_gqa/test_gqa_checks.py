"""Every exercise check takes the solution, knows the stub and names mistakes."""

import numpy as np
import pytest
import torch

from course.exercises import answer, verify
from gqa_checks import check_G_1, check_G_2


def stub(*arguments, **keywords):
    return ...


# --- G.1 -----------------------------------------------------------------------------


def held_groups(num_heads, num_kv_groups, devices):
    share, in_group = num_heads // devices, num_heads // num_kv_groups
    held = []
    for first in range(0, num_heads, share):
        last = first + share - 1
        held.append(list(range(first // in_group, last // in_group + 1)))
    return held


def by_sets(num_heads, num_kv_groups, devices):
    """Another way, as tuples of tensors."""
    heads = torch.arange(num_heads).view(devices, -1)
    groups = heads // (num_heads // num_kv_groups)
    return tuple(torch.unique(row) for row in groups)


def with_groups(group_of):
    def attempt(H, G, devices):
        heads = torch.arange(H).view(devices, -1)
        return [sorted({group_of(h, H, G) for h in row}) for row in heads.tolist()]

    return attempt


def every_head(H, G, devices):
    return (torch.arange(H).view(devices, -1) // (H // G)).tolist()


def all_of_them(H, G, devices):
    return [list(range(G))] * devices


def dealt(H, G, devices):
    heads = torch.arange(H).view(-1, devices).T
    return [sorted(set(row)) for row in (heads // (H // G)).tolist()]


def groups_dealt_out(H, G, devices):
    return [
        list(range(d * G // devices, (d + 1) * G // devices)) for d in range(devices)
    ]


def the_heads(H, G, devices):
    return torch.arange(H).view(devices, -1).tolist()


def one_list(H, G, devices):
    return [group for groups in held_groups(H, G, devices) for group in groups]


def without_the_last(H, G, devices):
    return held_groups(H, G, devices)[:-1]


def backwards(H, G, devices):
    return [groups[::-1] for groups in held_groups(H, G, devices)]


def test_G_1():
    verify(
        check_G_1,
        held_groups,
        stub,
        {
            "every head": (every_head, "once for each query head"),
            "all": (all_of_them, "holds all groups"),
            "cards": (dealt, "dealt out like cards"),
            "modulo": (with_groups(lambda h, H, G: h % G), "as head % G"),
            "wrong divisor": (with_groups(lambda h, H, G: h // G), "as head // G"),
            "groups dealt out": (groups_dealt_out, "groups are dealt out to"),
            "heads": (the_heads, "these are the query heads"),
            "one list": (one_list, "one of its entries is"),
            "one missing": (without_the_last, "entries for 6 devices"),
            "backwards": (backwards, "not what each device needs"),
        },
    )


def divided(H, G, devices):
    """True division, which makes fractions of groups."""
    return [[h / (H // G) for h in row] for row in the_heads(H, G, devices)]


@pytest.mark.parametrize("kind", [tuple, np.array, lambda row: np.array(row, float)])
def test_G_1_takes_other_kinds(kind):
    assert "correct" in answer(check_G_1, by_sets)
    attempt = answer(
        check_G_1, lambda *sizes: [kind(row) for row in held_groups(*sizes)]
    )
    assert "correct" in attempt


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (divided, "list holds the number 0.3333"),
        (lambda *sizes: [["k0"]] * 6, "list holds the text 'k0'"),
        (lambda *sizes: [[[0]]] * 6, "list holds a list of 1"),
        (lambda *sizes: 3, "give a list with a list of groups"),
        (lambda *sizes: {0: [1]}, "give a list with a list of groups"),
    ],
)
def test_G_1_says_what_is_no_group(attempt, message):
    assert message in answer(check_G_1, attempt)


# --- G.2 -----------------------------------------------------------------------------


def grouped_scores(queries, keys):
    B, H, T, K = queries.shape
    G, S = keys.shape[1:3]
    stacked = queries.reshape(B, G, -1, K) / K**0.5
    return (stacked @ keys.transpose(2, 3)).view(B, H, T, S)


def by_einsum(queries, keys):
    G = keys.shape[1]
    groups = queries.unflatten(1, (G, -1))
    scores = torch.einsum("bgrtk,bgsk->bgrts", groups, keys)
    return scores.flatten(1, 2) / queries.shape[-1] ** 0.5


def in_loops(queries, keys):
    R = queries.shape[1] // keys.shape[1]
    heads = [
        queries[:, h] @ keys[:, h // R].transpose(1, 2) for h in range(queries.shape[1])
    ]
    return torch.stack(heads, dim=1) / queries.shape[-1] ** 0.5


def plain(queries, keys, R=1):
    scores = queries @ keys.repeat_interleave(R, dim=1).transpose(2, 3)
    return scores / queries.shape[-1] ** 0.5


def copied(queries, keys):
    return plain(queries, keys, queries.shape[1] // keys.shape[1])


def expanded(queries, keys):
    """`expand` copies nothing; the product with it does."""
    groups = queries.unflatten(1, (keys.shape[1], -1))
    wide = keys[:, :, None].expand(-1, -1, groups.shape[2], -1, -1)
    return (groups @ wide.transpose(3, 4)).flatten(1, 2) / queries.shape[-1] ** 0.5


def repeated(queries, keys):
    R = queries.shape[1] // keys.shape[1]
    scores = queries @ keys.repeat(1, R, 1, 1).transpose(2, 3)
    return scores / queries.shape[-1] ** 0.5


def scaled_keys(queries, keys):
    return grouped_scores(queries, keys / queries.shape[-1] ** 0.5) * (
        queries.shape[-1] ** 0.5
    )


def cloned(queries, keys):
    """Each head's keys are copied, but only one head's at a time."""
    R = queries.shape[1] // keys.shape[1]
    heads = [
        queries[:, h] @ keys[:, h // R].clone().transpose(1, 2)
        for h in range(queries.shape[1])
    ]
    return torch.stack(heads, dim=1) / queries.shape[-1] ** 0.5


def broadcast(queries, keys):
    """Group by group; the product expands one head of keys, and copies."""
    R = queries.shape[1] // keys.shape[1]
    groups = [
        queries[:, g * R : (g + 1) * R] @ keys[:, g : g + 1].transpose(2, 3)
        for g in range(keys.shape[1])
    ]
    return torch.cat(groups, dim=1) / queries.shape[-1] ** 0.5


def made_contiguous(queries, keys):
    return grouped_scores(queries, keys.contiguous())


def in_single_precision(queries, keys):
    """Copies as another number type; the scores are right to six places or so."""
    scores = grouped_scores(queries, keys)
    return scores + 0 * keys.float().sum()


def unscaled(queries, keys):
    return grouped_scores(queries, keys) * queries.shape[-1] ** 0.5


def by_the_width(queries, keys):
    return grouped_scores(queries, keys) / queries.shape[-1] ** 0.5


def by_the_whole_width(queries, keys):
    return grouped_scores(queries, keys) / queries.shape[1] ** 0.5


def token_by_token(queries, keys):
    B, H, T, K = queries.shape
    G, S = keys.shape[1:3]
    stacked = queries.view(B, G, -1, T, K).transpose(2, 3).reshape(B, G, -1, K)
    return (stacked @ keys.transpose(2, 3)).view(B, H, T, S) / K**0.5


def in_five_dimensions(queries, keys):
    return grouped_scores(queries, keys).unflatten(1, (keys.shape[1], -1))


def shifted(queries, keys):
    return grouped_scores(queries, keys) + 1.0


def test_G_2():
    verify(
        check_G_2,
        grouped_scores,
        stub,
        {
            "copied": (copied, "copied for each query head"),
            "keys scaled": (scaled_keys, "all keys are written once more"),
            "dealt": (repeated, "like cards"),
            "unscaled": (unscaled, "not divided by the root of K"),
            "by K": (by_the_width, "divided by K, not"),
            "by H K": (by_the_whole_width, "the whole width"),
            "shuffled": (token_by_token, "changed places in the stack"),
            "five dimensions": (in_five_dimensions, "has shape"),
            "shifted": (shifted, "the scores are not right"),
        },
    )


def as_an_array(queries, keys):
    return grouped_scores(queries, keys).numpy()


@pytest.mark.parametrize("attempt", [by_einsum, in_loops, as_an_array])
def test_G_2_takes_other_ways(attempt):
    assert "correct" in answer(check_G_2, attempt)


@pytest.mark.parametrize("attempt", [expanded, cloned, broadcast])
def test_G_2_finds_copies_for_each_head(attempt):
    """Also inside a product, or of one head at a time."""
    assert "copied for each query head" in answer(check_G_2, attempt)


@pytest.mark.parametrize("attempt", [made_contiguous, in_single_precision])
def test_G_2_finds_one_copy_of_all_keys(attempt):
    assert "all keys are written once more" in answer(check_G_2, attempt)
