"""Every exercise check takes the solution, knows the stub and names mistakes."""

import numpy as np
import torch

from course.exercises import verify
from kv_sharing_checks import check_KVS_1, check_KVS_2, check_KVS_3


def stub(*arguments, **keywords):
    return ...


# --- KVS.1 ---------------------------------------------------------------------------


def most_owners(budget, num_layers, num_kv_groups, tokens, head_dim):
    one = 2 * num_kv_groups * tokens * head_dim * 4
    return min(num_layers, budget // one)


WRONG_KVS_1 = {
    "numbers, not bytes": (
        lambda b, L, G, S, K: min(L, b // (2 * G * S * K)),
        "4 bytes in float32",
    ),
    "no values": (lambda b, L, G, S, K: min(L, b // (G * S * K * 4)), "counted half"),
    "at least one": (
        lambda b, L, G, S, K: max(1, min(L, b // (8 * G * S * K))),
        "not even one owner fits",
    ),
    "too many": (lambda b, L, G, S, K: b // (8 * G * S * K), "no more owners than"),
    "rounded up": (
        lambda b, L, G, S, K: min(L, -(-b // (8 * G * S * K))),
        "round down",
    ),
    "readers": (
        lambda b, L, G, S, K: L - min(L, b // (8 * G * S * K)),
        "must read, not own",
    ),
    "less": (
        lambda b, L, G, S, K: min(L, (b - 1) // (8 * G * S * K)),
        "which is allowed",
    ),
    "part": (lambda b, L, G, S, K: min(L, b / (8 * G * S * K)), "part of a layer"),
    "one": (lambda b, L, G, S, K: 1, "not right for"),
}


def test_KVS_1():
    verify(check_KVS_1, most_owners, stub, WRONG_KVS_1)
    check_KVS_1(lambda *of: np.int64(most_owners(*of)))
    check_KVS_1(lambda *of: float(most_owners(*of)))


# --- KVS.2 ---------------------------------------------------------------------------


def prompt_work(sources, tokens):
    last_owner = max(sources)
    return tokens * (last_owner + 1) + len(sources) - last_owner - 1


def by_steps(sources, tokens):
    work = 0
    for layer in range(len(sources)):
        makes_keys_later = any(s == i for i, s in enumerate(sources) if i >= layer)
        work += tokens if makes_keys_later else 1
    return work


def owners(sources):
    return sum(source == layer for layer, source in enumerate(sources))


WRONG_KVS_2 = {
    "all": (lambda s, T: T * len(s), "one token is enough"),
    "owners": (lambda s, T: T * owners(s) + len(s) - owners(s), "between two owners"),
    "no last token": (lambda s, T: T * (max(s) + 1), "the last token has to go"),
    "before the owner": (
        lambda s, T: T * max(s) + len(s) - max(s),
        "so all of them must reach it",
    ),
    "twice": (lambda s, T: T * (max(s) + 1) + len(s), "once too often"),
    "T - 1": (
        lambda s, T: (T - 1) * (max(s) + 1) + len(s) - max(s) - 1,
        "goes through the layers up to the last owner, too",
    ),
    "nothing": (lambda s, T: 0, "not right for sources="),
}


def test_KVS_2():
    verify(check_KVS_2, prompt_work, stub, WRONG_KVS_2)
    check_KVS_2(by_steps)


# --- KVS.3 ---------------------------------------------------------------------------


def shared_weights(weights, sources):
    result = {}
    for name, part in weights.items():
        if "W_key" not in name and "W_value" not in name:
            result[name] = part
            continue
        layer = int(name.split(".")[1])
        if sources[layer] == layer:
            readers = [i for i, source in enumerate(sources) if source == layer]
            parts = [weights[name.replace(f".{layer}.", f".{i}.", 1)] for i in readers]
            result[name] = torch.stack(parts).mean(dim=0)
    return result


def by_sums(weights, sources):
    """Another way: add each reader's share to its owner."""
    result = {}
    for name, part in weights.items():
        head, layer, rest = (name.split(".", 2) + ["", ""])[:3]
        if rest.startswith(("att.W_key", "att.W_value")):
            owner = sources[int(layer)]
            name, part = f"{head}.{owner}.{rest}", part / sources.count(owner)
            result[name] = result.get(name, 0) + part
        else:
            result[name] = part
    return result


def changed(change):
    """A wrong answer: the right dictionary after a change."""

    def attempt(weights, sources):
        return change(dict(shared_weights(weights, sources)), weights, sources)

    return attempt


def shared_parts(change):
    """A wrong answer: other numbers for what is shared, made of a stack of readers'."""

    def attempt(weights, sources):
        result = shared_weights(weights, sources)
        for name in result:
            if "W_key" in name or "W_value" in name:
                layer = int(name.split(".")[1])
                readers = [i for i, source in enumerate(sources) if source == layer]
                parts = [
                    weights[name.replace(f".{layer}.", f".{i}.", 1)] for i in readers
                ]
                result[name] = change(torch.stack(parts))
        return result

    return attempt


def in_place(weights, sources):
    answer = shared_weights(weights, sources)
    weights["tok_emb.weight"] *= 2
    return answer


def of_all(weights, sources):
    result = shared_weights(weights, sources)
    for name in result:
        if "W_key" in name or "W_value" in name:
            ends = name.split(".", 2)[2]
            alike = [part for other, part in weights.items() if other.endswith(ends)]
            result[name] = torch.stack(alike).mean(dim=0)
    return result


def exchange(result, weights, sources):
    def other(name):
        turned = name.replace("W_key", "?").replace("W_value", "W_key")
        return turned.replace("?", "W_value")

    return {name: result[other(name)] for name in result}


def one_digit(weights, sources):
    """A wrong answer: of a layer's number the first digit is read."""
    result = {}
    for name, part in weights.items():
        layer = int(name[len("trf_blocks.")]) if "att.W_" in name else 0
        if "W_key" not in name and "W_value" not in name:
            result[name] = part
        elif sources[layer] == layer:
            result[name] = shared_weights(weights, sources).get(name, part)
    return result


def keys_alone(weights, sources):
    result = shared_weights(weights, sources)
    return {n: weights[n] if "W_value" in n else part for n, part in result.items()}


WRONG_KVS_3 = {
    "one digit": (one_digit, "trf_blocks.10.att.W_key.weight is still there"),
    "keys alone": (keys_alone, "W_value.weight: the owner keeps"),
    "own weights": (shared_parts(lambda s: s[0]), "W_key.weight: the owner keeps"),
    "sum": (shared_parts(lambda s: s.sum(0)), "are added up"),
    "without the owner": (
        shared_parts(lambda s: s[1:].mean(0) if len(s) > 1 else s[0]),
        "the owner itself is left out",
    ),
    "all layers": (of_all, "over all layers"),
    "last": (shared_parts(lambda s: s[-1]), "of the last reader"),
    "exchanged": (changed(exchange), "in one another's place"),
    "nothing dropped": (
        lambda w, s: {**w, **shared_weights(w, s)},
        "trf_blocks.1.att.W_key",
    ),
    "an owner dropped": (
        changed(lambda r, w, s: {n: p for n, p in r.items() if "W_value" not in n}),
        "although its layer owns",
    ),
    "queries dropped": (
        changed(lambda r, w, s: {n: p for n, p in r.items() if "W_query" not in n}),
        "only keys and values are dropped",
    ),
    "more": (
        changed(lambda r, w, s: {**r, "extra": r["tok_emb.weight"]}),
        "no name of",
    ),
    "queries changed": (
        changed(
            lambda r, w, s: {n: 2 * p if "W_query" in n else p for n, p in r.items()}
        ),
        "is changed; it stays",
    ),
    "in place": (in_place, "have changed"),
    "scaled": (shared_parts(lambda s: 3 * s.mean(0) + 1), "is not the mean"),
    "words": (lambda w, s: "weights", "not a dictionary"),
}


def test_KVS_3():
    verify(check_KVS_3, shared_weights, stub, WRONG_KVS_3)
    check_KVS_3(by_sums)
    check_KVS_3(lambda w, s: {n: p.float() for n, p in shared_weights(w, s).items()})
    check_KVS_3(lambda w, s: {n: p.numpy() for n, p in shared_weights(w, s).items()})
