"""The checks of the exercises in `gqa.ipynb`; see `course.exercises`."""

from collections.abc import Iterable

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from course.exercises import (
    call,
    check,
    describe,
    expect,
    expect_close,
    expect_equal,
    expect_no_slip,
    expect_tensor,
    random_tensor,
)

# --- G.1 Eight machines --------------------------------------------------------------


def _slips(H, G, devices):
    """What typical mistakes would give, by what is to be said about each."""
    R, share, all_devices = H // G, H // devices, range(devices)
    neighbours = [list(range(d * share, (d + 1) * share)) for d in all_devices]

    def met(heads_of, group_of):
        return [sorted({group_of(head) for head in heads}) for heads in heads_of]

    return {
        "a group stands in the list once for each query head that meets it, but its "
        "keys are kept once": [[head // R for head in heads] for heads in neighbours],
        "each device holds all groups; it needs only those that its query heads meet": (
            [list(range(G)) for _ in all_devices]
        ),
        "query heads are dealt out like cards; neighbours go to one device": met(
            [range(d, H, devices) for d in all_devices], lambda head: head // R
        ),
        "a head's group is taken as head % G; neighbours form a group": met(
            neighbours, lambda head: head % G
        ),
        "a head's group is taken as head // G; a group has H / G heads": met(
            neighbours, lambda head: head // G
        ),
        "the groups are dealt out to the devices; look at the query heads of each, "
        "which may need a group that another device holds as well": [
            list(range(d * G // devices, (d + 1) * G // devices)) for d in all_devices
        ],
        "these are the query heads, not their groups": neighbours,
    }


@check("G.1")
def check_G_1(attempt):
    cases = ((12, 4, 6), (8, 2, 4), (12, 4, 3), (16, 8, 8), (6, 1, 3), (6, 6, 2))
    for H, G, devices in (*cases, (8, 4, 1), (12, 6, 4)):
        asked = f"num_heads={H}, num_kv_groups={G}, devices={devices}"
        found = _lists(call(attempt, H, G, devices), asked)
        expect(
            len(found) == devices,
            f"there are {len(found)} entries for {devices} devices: give each its list",
        )
        share, R = H // devices, H // G
        right = [
            list(range(d * share // R, ((d + 1) * share - 1) // R + 1))
            for d in range(devices)
        ]
        expect_no_slip(found, right, _slips(H, G, devices))
        expect_equal(found, right, f"not what each device needs for {asked}")
    return "It is right where devices share a group, and where they hold several."


def _lists(found, asked):
    """What came back as a list of lists of whole numbers."""
    expect(
        _is_row(found),
        f"for {asked} the result is {describe(found)}; give a list with a list of "
        "groups for each device",
    )
    rows = []
    for row in found.tolist() if hasattr(found, "tolist") else found:
        expect(
            _is_row(row),
            f"for {asked} one of its entries is {describe(row)}; each device has a "
            "list of its own",
        )
        rows.append([_group(group, asked) for group in row])
    return rows


def _group(found, asked):
    value = found.item() if hasattr(found, "item") else found
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    expect(
        number and value == round(value),
        f"for {asked} a device's list holds {describe(value)}; a group has a whole "
        "number",
    )
    return int(value)


def _is_row(found):
    no_order = isinstance(found, (str, dict, set, frozenset))
    return isinstance(found, Iterable) and not no_order


# --- G.2 Scores without copies -------------------------------------------------------


@check("G.2")
def check_G_2(attempt):
    sizes = ((2, 6, 2, 3, 11, 8), (1, 4, 4, 1, 7, 4), (2, 6, 3, 3, 9, 4))
    for B, H, G, T, S, K in (*sizes, LONG):
        queries, keys = _given(B, H, G, T, S, K)
        found = call(attempt, queries, keys)
        if isinstance(found, np.ndarray):
            found = torch.from_numpy(found)
        expect_tensor(found, (B, H, T, S), "batch, heads, new tokens, all tokens")
        by_group = queries.view(B, G, H // G, T, K)
        plain = torch.einsum("bgrtk,bgsk->bgrts", by_group, keys).reshape(B, H, T, S)
        right = plain / K**0.5
        dealt = torch.einsum(
            "brgtk,bgsk->brgts", queries.view(B, H // G, G, T, K), keys
        )
        slips = {
            "the products are not divided by the root of K": plain,
            "they are divided by K, not by its root": plain / K,
            "they are divided by the root of the whole width, H K": (
                plain / (H * K) ** 0.5
            ),
            "the heads of a group are taken like cards that are dealt; neighbours form "
            "a group": dealt.reshape(B, H, T, S) / K**0.5,
            "heads and tokens have changed places in the stack: the rows of a group "
            "come head by head": _shuffled(queries, keys),
        }
        expect_no_slip(found, right, slips)
        expect_close(found, right, "the scores are not right")
    _expect_no_copy(attempt)
    return "They are right, also for keys in a cache with room; PyTorch copied no key."


#: One new token and wide keys: a copy is much larger than all the rest.
LONG = (2, 6, 2, 1, 40, 64)


def _given(B, H, G, T, S, K):
    """Queries, and keys as from a cache with room to spare."""
    room = random_tensor(B, G, S + 3, K, seed=2)
    return random_tensor(B, H, T, K, seed=1), room[:, :, :S]


def _shuffled(queries, keys):
    """The queries of a group stacked token by token, the result read head by head."""
    B, H, T, K = queries.shape
    G, S = keys.shape[1:3]
    stacked = queries.view(B, G, H // G, T, K).transpose(2, 3).reshape(B, G, -1, K)
    return (stacked @ keys.transpose(2, 3)).reshape(B, H, T, S) / K**0.5


def _expect_no_copy(attempt):
    """All steps together take less memory than a quarter of the keys."""
    B, _, G, _, S, K = LONG
    queries, keys = _given(*LONG)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call(attempt, queries, keys)
    taken = (getattr(event, "self_cpu_memory_usage", 0) for event in record.events())
    copies = sum(max(0, size) for size in taken) / torch.float64.itemsize
    copies /= B * G * S * K
    expect(
        copies < 1.4,
        f"on the way as much is written as {copies:.1f} times all keys, as if they "
        "were copied for each query head: stack the queries instead (a product with "
        "expanded keys copies them, too)",
    )
    expect(
        copies < 0.25,
        "on the way all keys are written once more, in another order, scale or number "
        "type: leave them where they lie, and scale the queries or the scores",
    )
