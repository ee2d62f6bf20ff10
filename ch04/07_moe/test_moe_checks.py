"""Every exercise check takes the solution, knows the stub and names mistakes."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from course.exercises import WrongAnswer, verify
from moe_checks import check_MOE_1, check_MOE_2, check_MOE_3, check_MOE_4, check_MOE_5

NUMBER_TYPES = (torch.float32, torch.float16, torch.bfloat16)


def stub(*arguments, **keywords):
    return ...


# --- MOE.1 ---------------------------------------------------------------------------


def times_as_many(num_experts, top_k, shared):
    return (num_experts + shared) / (top_k + shared)


WRONG_MOE_1 = {
    "no shared": (lambda E, A, S: E / A, "exist and work, too"),
    "shared above": (lambda E, A, S: (E + S) / A, "meets the shared experts as well"),
    "shared below": (lambda E, A, S: E / (A + S), "are among those that exist"),
    "other way": (lambda E, A, S: (A + S) / (E + S), "one over the answer"),
    "idle": (lambda E, A, S: (E - A) / (A + S), "does not meet"),
    "not divided": (lambda E, A, S: E + S, "divide by how many a token meets"),
    "one shared": (lambda E, A, S: (E + 1) / (A + 1), "this counts one"),
    "no brackets": (lambda E, A, S: E + S / A + S, "put both sums in brackets"),
    "half brackets": (lambda E, A, S: (E + S) / A + S, "divided by A alone"),
    "whole": (lambda E, A, S: (E + S) // (A + S), "made whole"),
    "too much": (lambda E, A, S: (E + S) / (A + S) + 0.1, "not right for"),
    "words": (lambda E, A, S: "four", "not a number"),
}


def test_MOE_1():
    verify(check_MOE_1, times_as_many, stub, WRONG_MOE_1)
    check_MOE_1(lambda E, A, S: torch.tensor((E + S) / (A + S)))
    check_MOE_1(lambda E, A, S: np.float32(E + S) / np.float32(A + S))


# --- MOE.2 ---------------------------------------------------------------------------


def weight_matrix(logits, top_k):
    top, chosen = logits.topk(top_k, dim=1)
    return torch.zeros_like(logits).scatter(1, chosen, torch.softmax(top, dim=1))


def by_infinity(logits, top_k):
    least = logits.topk(top_k, dim=1).values[:, -1:]
    return torch.softmax(logits.masked_fill(logits < least, -torch.inf), dim=1)


def spread(weights, chosen, logits):
    return torch.zeros_like(logits).scatter(1, chosen, weights)


def zeros_first(logits, top_k):
    return torch.softmax(spread(*logits.topk(top_k, dim=1), logits), dim=1)


def not_divided(logits, top_k):
    return spread(*torch.softmax(logits, dim=1).topk(top_k, dim=1), logits)


def over_tokens(logits, top_k):
    chosen = logits.topk(min(top_k, len(logits)), dim=0).indices
    kept = torch.full_like(logits, -torch.inf).scatter(
        0, chosen, logits.gather(0, chosen)
    )
    return torch.softmax(kept, dim=1).nan_to_num()


def all_the_same(logits, top_k):
    top, chosen = logits.topk(top_k, dim=1)
    return spread(torch.full_like(top, 1 / top_k), chosen, logits)


def ones(logits, top_k):
    top, chosen = logits.topk(top_k, dim=1)
    return spread(torch.ones_like(top), chosen, logits)


def smallest(logits, top_k):
    top, chosen = logits.topk(top_k, dim=1, largest=False)
    return spread(torch.softmax(top, dim=1), chosen, logits)


def in_place(logits, top_k):
    answer = weight_matrix(logits, top_k)
    logits.zero_()
    return answer


WRONG_MOE_2 = {
    "not divided": (not_divided, "divide by the sum of the chosen"),
    "all": (lambda x, A: torch.softmax(x, dim=1), "gets a share as well"),
    "zeros": (zeros_first, "0 is a logit like any other"),
    "over tokens": (over_tokens, "best tokens of each expert"),
    "equal": (all_the_same, "count the same"),
    "logits": (lambda x, A: spread(*x.topk(A, dim=1), x), "logits themselves"),
    "ones": (ones, "has the weight 1"),
    "smallest": (smallest, "smallest logits are chosen"),
    "narrow": (lambda x, A: torch.softmax(x.topk(A).values, 1), "the weights alone"),
    "changed": (in_place, "have changed"),
    "words": (lambda x, A: "three", "where a tensor is asked for"),
    "turned": (lambda x, A: weight_matrix(x, A).flip(0), "not right for"),
}


def test_MOE_2():
    verify(check_MOE_2, weight_matrix, stub, WRONG_MOE_2)
    check_MOE_2(by_infinity)
    check_MOE_2(lambda x, A: weight_matrix(x, A).numpy())
    for dtype in NUMBER_TYPES:
        check_MOE_2(lambda x, A, t=dtype: weight_matrix(x, A).to(t))
        check_MOE_2(lambda x, A, t=dtype: weight_matrix(x.to(t), A))


# --- MOE.3 ---------------------------------------------------------------------------


def gather_back(outs, order, top_k):
    by_token = torch.empty_like(outs)
    by_token[order] = outs
    return by_token.view(-1, top_k, outs.shape[1]).sum(dim=1)


def by_adding(outs, order, top_k):
    out = outs.new_zeros(len(outs) // top_k, outs.shape[1])
    return out.index_add(0, order // top_k, outs)


def undone(outs, order, top_k):
    return outs[order.argsort()].view(-1, top_k, outs.shape[1])


def written_over(outs, order, top_k):
    return undone(outs, order, top_k)[:, -1]


WRONG_MOE_3 = {
    "twice": (
        lambda outs, order, A: outs[order].view(-1, A, outs.shape[1]).sum(1),
        "applied a second time",
    ),
    "as it is": (
        lambda outs, order, A: outs.view(-1, A, outs.shape[1]).sum(1),
        "still in the order of the experts",
    ),
    "axes": (
        lambda outs, order, A: outs[order.argsort()].view(A, -1, outs.shape[1]).sum(0),
        "first axis is that of the tokens",
    ),
    "mean": (lambda *given: undone(*given).mean(1), "this is the mean"),
    "over": (written_over, "written over"),
    "first": (lambda *given: undone(*given)[:, 0], "taken alone"),
    "pairs": (
        lambda outs, order, A: outs[order.argsort()],
        "now add up those of each token",
    ),
    "beside": (lambda *given: undone(*given), "stand beside each other"),
    "words": (lambda *given: "three", "where a tensor is asked for"),
    "more": (lambda *given: gather_back(*given) + 1, "not right for"),
}


def test_MOE_3():
    verify(check_MOE_3, gather_back, stub, WRONG_MOE_3)
    check_MOE_3(by_adding)
    for dtype in NUMBER_TYPES:
        for way in (gather_back, by_adding):
            check_MOE_3(lambda outs, *of, t=dtype, w=way: w(outs.to(t), *of))
    with pytest.raises(WrongAnswer, match="have? changed|has changed"):
        check_MOE_3(lambda outs, order, A: by_adding(outs.mul_(2), order, A) / 2)


# --- MOE.4 ---------------------------------------------------------------------------


def kept_in_order(chosen, capacity):
    pairs = chosen.flatten()
    ones_ = F.one_hot(pairs)
    place = ones_.cumsum(dim=0).gather(1, pairs[:, None])[:, 0]  # from 1
    return (place <= capacity).view_as(chosen)


def one_by_one(chosen, capacity):
    seen, rows = {}, []
    for row in chosen.tolist():
        kept = []
        for expert in row:
            kept.append(seen.get(expert, 0) < capacity)
            seen[expert] = seen.get(expert, 0) + 1
        rows.append(kept)
    return torch.tensor(rows)


def last_stay(chosen, capacity):
    return kept_in_order(chosen.flip(0), capacity).flip(0)


def each_place(chosen, capacity):
    columns = [kept_in_order(column[:, None], capacity) for column in chosen.T]
    return torch.cat(columns, dim=1)


def full_loses_all(chosen, capacity):
    counts = chosen.flatten().bincount()
    return counts[chosen] <= capacity


def one_for_all(chosen, capacity):
    return (torch.arange(chosen.numel()) < capacity).view_as(chosen)


WRONG_MOE_4 = {
    "dropped": (lambda c, n: ~kept_in_order(c, n), "have changed places"),
    "one more": (lambda c, n: kept_in_order(c, n + 1), "one more than the capacity"),
    "one less": (lambda c, n: kept_in_order(c, n - 1), "one less than the capacity"),
    "last": (last_stay, "the last tokens are kept"),
    "each place": (each_place, "counted for itself"),
    "firsts first": (
        lambda c, n: kept_in_order(c.T.contiguous(), n).T,
        "all first choices come",
    ),
    "whole token": (
        lambda c, n: kept_in_order(c, n).all(1, keepdim=True).expand_as(c),
        "loses all",
    ),
    "whole expert": (full_loses_all, "an expert that is full"),
    "one for all": (one_for_all, "that of all experts together"),
    "everyone": (lambda c, n: torch.ones_like(c).bool(), "not right for"),
    "flat": (lambda c, n: kept_in_order(c, n).flatten(), "has shape"),
}


def test_MOE_4():
    verify(check_MOE_4, kept_in_order, stub, WRONG_MOE_4)
    check_MOE_4(one_by_one)
    check_MOE_4(lambda c, n: one_by_one(c, n).long())
    check_MOE_4(lambda c, n: one_by_one(c, n).numpy())


# --- MOE.5 ---------------------------------------------------------------------------


def cut_into_experts(gate, up, down, num_experts):
    E = num_experts
    return list(zip(gate.chunk(E), up.chunk(E), (E * down).chunk(E, 1), strict=True))


def in_turn(gate, up, down, E):
    return [(gate[e::E], E * up[e::E], down[:, e::E]) for e in range(E)]


def scaled(of_gate=None, of_up=None, of_down=None):
    def attempt(gate, up, down, E):
        one = 1.0
        factors = [one if f is None else f(E) for f in (of_gate, of_up, of_down)]
        parts = gate.chunk(E), up.chunk(E), down.chunk(E, dim=1)
        return [
            tuple(f * part for f, part in zip(factors, expert, strict=True))
            for expert in zip(*parts, strict=True)
        ]

    return attempt


def same(E):
    return float(E)


def root(E):
    return E**0.5


def first_only(gate, up, down, E):
    return cut_into_experts(gate, up, down, E)[:1] * E


def backwards(gate, up, down, E):
    downs = (E * down).chunk(E, 1)[::-1]
    return list(zip(gate.chunk(E), up.chunk(E), downs, strict=True))


WRONG_MOE_5 = {
    "an E-th": (scaled(), "an E-th of the dense layer"),
    "twice": (scaled(of_up=same, of_down=same), "the factor E is in two matrices"),
    "gate": (scaled(of_gate=same), "not proportional to it"),
    "same part": (first_only, "all experts are the same part"),
    "backwards": (backwards, "columns of down do not belong"),
    "root": (scaled(of_down=root), "the factor is the root of E"),
    "uncut": (lambda g, u, d, E: [(g, u, d)] * E, "has shape"),
    "more": (
        lambda g, u, d, E: [(a, b, c + 1) for a, b, c in cut_into_experts(g, u, d, E)],
        "not right for",
    ),
    "words": (lambda g, u, d, E: "experts", "not a list of"),
}


def test_MOE_5():
    verify(check_MOE_5, cut_into_experts, stub, WRONG_MOE_5)
    check_MOE_5(in_turn)
    check_MOE_5(lambda *given: tuple(cut_into_experts(*given)))
    check_MOE_5(
        lambda *given: [
            [matrix.numpy() for matrix in expert] for expert in cut_into_experts(*given)
        ]
    )
    for dtype in NUMBER_TYPES:
        check_MOE_5(
            lambda *given, t=dtype: [
                [matrix.to(t) for matrix in expert]
                for expert in cut_into_experts(*given)
            ]
        )
    check_MOE_5(lambda *given: zip(*zip(*cut_into_experts(*given))))
    check_MOE_5(lambda *given: (map(torch.clone, e) for e in cut_into_experts(*given)))
    with pytest.raises(WrongAnswer, match="not three matrices"):
        check_MOE_5(lambda g, u, d, E: [g] * E)
