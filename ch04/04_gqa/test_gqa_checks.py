"""Every exercise check takes the solution, knows the stub and names mistakes."""

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


def test_G_1_takes_tensors():
    assert "correct" in answer(check_G_1, by_sets)


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
            "copied": (copied, "as large as keys that"),
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


@pytest.mark.parametrize("attempt", [by_einsum, in_loops])
def test_G_2_takes_other_ways(attempt):
    assert "correct" in answer(check_G_2, attempt)


def test_G_2_finds_the_copy_inside_a_product():
    assert "as large as keys that" in answer(check_G_2, expanded)
