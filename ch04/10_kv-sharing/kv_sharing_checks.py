"""The checks of the exercises in `kv-sharing.ipynb`; see `course.exercises`."""

import numpy as np
import torch

from course.exercises import (
    call,
    check,
    describe,
    expect,
    expect_close,
    expect_no_slip,
    expect_number,
    random_tensor,
)

# --- KVS.1 How many layers may own? ---------------------------------------------------


@check("KVS.1")
def check_KVS_1(attempt):
    cases = (
        (22_000, 20, 3, 50, 4),
        (100_000, 4, 2, 50, 4),  # room for all of them and more
        (9_600, 6, 3, 50, 4),  # two layers to the byte
        (4_799, 6, 3, 50, 4),  # not even one
        (1_000_000, 35, 1, 1000, 8),
    )
    for budget, L, G, S, K in cases:
        found = expect_number(call(attempt, budget, L, G, S, K))
        one = 2 * G * S * K * 4
        right = min(L, budget // one)
        slips = {
            "not even one owner fits here, so that the answer is below 1": max(
                1, right
            ),
            "a number takes 4 bytes in float32": min(L, budget // (one // 4)),
            "the bytes of an owner are counted half; it keeps keys and values, of 4 "
            "bytes a number": min(L, budget // (one // 2)),
            "a model has no more owners than layers": budget // one,
            "the last one does not fit any more; round down": min(L, -(-budget // one)),
            "this is how many layers must read, not own": L - right,
            "that many bytes fit exactly, which is allowed": min(
                L, (budget - 1) // one
            ),
        }
        expect_no_slip(found, right, slips)
        expect(found == int(found), "part of a layer cannot own; give a whole number")
        expect_close(found, right, f"not right for {(budget, L, G, S, K)}")
    return "It is right for small and large budgets, and for one met to the byte."


# --- KVS.2 The work of a prompt -------------------------------------------------------


@check("KVS.2")
def check_KVS_2(attempt):
    cases = (
        ((0, 1, 2, 2, 2), 10),
        ((0, 0, 2, 2), 7),
        ((0, 1, 1, 0, 4, 4, 1), 5),  # reads from further back than the last owner
        ((0, 1, 2, 3), 9),  # nobody reads
        ((0, 0, 0), 1),
    )
    for sources, T in cases:
        L, last = len(sources), max(sources)
        owners = [layer for layer, source in enumerate(sources) if source == layer]
        found = expect_number(call(attempt, sources, T))
        right = T * (last + 1) + (L - last - 1)
        slips = {
            "every token goes through every layer in this count; behind the last owner "
            "one token is enough": T * L,
            "only owners are counted; a reader between two owners must be passed by "
            "all tokens, too": T * len(owners) + (L - len(owners)),
            "the last token goes through the layers up to the last owner, too": (
                (T - 1) * (last + 1) + (L - last - 1)
            ),
            "the last token has to go through the layers behind the last owner": (
                T * (last + 1)
            ),
            "the last owner makes keys of all tokens, so all of them must reach it": (
                T * last + (L - last)
            ),
            "the last token is counted once too often, or its way twice": (
                T * (last + 1) + L
            ),
        }
        expect_no_slip(found, right, slips)
        expect_close(found, right, f"not right for sources={sources} and {T} tokens")
    return "It is right with readers at the end, in between, and without any."


# --- KVS.3 A trained model that shares ------------------------------------------------


@check("KVS.3")
def check_KVS_3(attempt):
    long = (*range(10), 9, 11)  # a layer's number may have two digits
    for sources in ((0, 0, 0), (0, 0, 2, 2), (0, 1, 1, 0), (0, 1, 2), long):
        weights = _weights(len(sources))
        given = {name: part.clone() for name, part in weights.items()}
        found = call(attempt, given, sources)
        expect(
            list(given) == list(weights)
            and all(torch.equal(given[name], weights[name]) for name in weights),
            "the weights that were given have changed; work on a new dictionary",
        )
        expect(
            isinstance(found, dict),
            f"the result is {describe(found)}, not a dictionary",
        )
        found = {
            name: torch.as_tensor(part) if isinstance(part, np.ndarray) else part
            for name, part in found.items()
        }
        _expect_names(found, weights, sources)
        for name, part in weights.items():
            if name in found and not _is_shared(name):
                expect_close(found[name], part, f"{name} is changed; it stays")
        _expect_means(found, weights, sources)
    return "Owners have the mean of those that read them, and nothing else changed."


def _weights(num_layers):
    parts = ("att.W_query", "att.W_key", "att.W_value", "att.out_proj", "ff.up")
    names = [
        f"trf_blocks.{i}.{part}.weight" for i in range(num_layers) for part in parts
    ]
    names = ["tok_emb.weight", *names, "final_norm.scale"]
    return {name: random_tensor(3, 2, seed=n) for n, name in enumerate(names)}


def _is_shared(name):
    return "W_key" in name or "W_value" in name


def _layer(name):
    return int(name.split(".")[1])


def _expect_names(found, weights, sources):
    right = {
        name
        for name in weights
        if not _is_shared(name) or sources[_layer(name)] == _layer(name)
    }
    missing, more = sorted(right - set(found)), sorted(set(found) - right)
    if any(_is_shared(name) for name in more):
        expect(False, f"{more[0]} is still there, but its layer reads from another one")
    expect(not more, f"{more[:1]} is no name of the model")
    if any(_is_shared(name) for name in missing):
        expect(False, f"{missing[0]} is missing, although its layer owns")
    expect(not missing, f"{missing[:1]} is missing; only keys and values are dropped")


def _expect_means(found, weights, sources):
    for name in found:
        if not _is_shared(name):
            continue
        owner = _layer(name)
        readers = [layer for layer, source in enumerate(sources) if source == owner]
        parts = [weights[name.replace(f".{owner}.", f".{i}.", 1)] for i in readers]
        stacked = torch.stack(parts)
        right = stacked.mean(dim=0)
        other = "W_value" if "W_key" in name else "W_key"
        slips = {
            "the owner keeps its own weights; take the mean over the layers that will "
            "read them": stacked[0],
            "the weights are added up; take the mean": stacked.sum(dim=0),
            "the owner itself is left out of the mean": (
                stacked[1:].mean(dim=0) if len(parts) > 1 else right
            ),
            "the mean is taken over all layers, whoever they read from": torch.stack(
                [part for n, part in weights.items() if name.split(".", 2)[2] in n]
            ).mean(dim=0),
            "the weights of the last reader are taken; take the mean": stacked[-1],
            "keys and values stand in one another's place": torch.stack(
                [
                    weights[
                        name.replace(f".{owner}.", f".{i}.", 1).replace(
                            "W_key" if "W_key" in name else "W_value", other
                        )
                    ]
                    for i in readers
                ]
            ).mean(dim=0),
        }
        slips = {f"{name}: {message}": outcome for message, outcome in slips.items()}
        expect_no_slip(found[name], right, slips)
        expect_close(found[name], right, f"{name} is not the mean")
