"""The checks of the exercises in `moe.ipynb`; see `course.exercises`."""

import torch
from torch.nn import functional as F

from course.exercises import (
    as_list,
    as_tensor,
    call,
    check,
    describe,
    expect,
    expect_close,
    expect_no_slip,
    expect_number,
    expect_result,
    expect_tensor,
    random_tensor,
    seeded,
    tolerance,
)

# --- MOE.1 How many times as many weights? -------------------------------------------


@check("MOE.1")
def check_MOE_1(attempt):
    # The first is one where no two slips come out alike.
    for E, A, S in ((7, 3, 2), (8, 2, 0), (256, 8, 1), (6, 6, 2), (512, 10, 1)):
        found = expect_number(call(attempt, E, A, S))
        right = (E + S) / (A + S)
        slips = {
            "shared experts exist and work, too; count them above and below": E / A,
            "every token meets the shared experts as well": (E + S) / A,
            "the shared experts are among those that exist": E / (A + S),
            "this is one over the answer": (A + S) / (E + S),
            "this counts the experts that a token does not meet; divide all by those "
            "that it meets": (E - A) / (A + S),
            "this is how many experts exist; divide by how many a token meets": E + S,
            "a token meets its shared experts beside its top_k, not among them": (
                (E + S) / max(A, S)
            ),
            "there may be several shared experts, or none; this counts one": (
                (E + 1) / (A + 1)
            ),
            "a division comes before a sum; put both sums in brackets": E + S / A + S,
            "what is above the line is divided by A alone; put the sum below it in "
            "brackets": (E + S) / A + S,
        }
        expect_no_slip(found, right, slips)
        expect(found == right or found != right // 1, "the result is made whole")
        expect_close(found, right, f"not right for {(E, A, S)}", atol=1e-4)
    return "It is right with and without shared experts."


# --- MOE.2 The weights as a matrix ---------------------------------------------------


def _spread(weights, chosen, E):
    """(N, A) to (N, E), 0 where nothing was chosen."""
    return torch.zeros(len(chosen), E, dtype=weights.dtype).scatter(1, chosen, weights)


@check("MOE.2")
def check_MOE_2(attempt):
    for N, E, A in ((5, 4, 2), (3, 6, 1), (4, 4, 4), (4, 5, 3)):
        logits = 2 * random_tensor(N, E, seed=N + E)
        given = logits.clone()
        found = as_tensor(call(attempt, given, A))
        expect(torch.equal(given, logits), "the logits that were given have changed")
        top, chosen = logits.topk(A, dim=1)
        if isinstance(found, torch.Tensor):
            message = "these are the weights alone; put each in its expert's column"
            expect(found.shape != (N, A) or E == A, message)
        expect_tensor(found, (N, E), "tokens, experts")
        right = _spread(torch.softmax(top, dim=1), chosen, E)
        shares = torch.softmax(logits, dim=1)
        down = logits.topk(min(A, N), dim=0).indices
        ones = torch.ones_like(top)
        slips = {
            "the rows do not add up to 1: divide by the sum of the chosen": (
                _spread(shares.gather(1, chosen), chosen, E)
            ),
            "what was not chosen gets a share as well": shares,
            "the others are set to 0 before the softmax, and 0 is a logit like any "
            "other": torch.softmax(_spread(top, chosen, E), dim=1),
            "the best tokens of each expert are taken; take the best experts of each "
            "token": torch.softmax(
                torch.full_like(logits, -torch.inf).scatter(
                    0, down, logits.gather(0, down)
                ),
                dim=1,
            ).nan_to_num(),
            "all chosen experts count the same": _spread(ones / A, chosen, E),
            "the logits themselves are the weights": _spread(top, chosen, E),
            "every chosen expert has the weight 1": _spread(ones, chosen, E),
            "the smallest logits are chosen": _spread(
                torch.softmax((-logits).topk(A, dim=1).values.neg(), dim=1),
                (-logits).topk(A, dim=1).indices,
                E,
            ),
        }
        expect_result(found, right, slips, f"not right for {A} of {E} experts")
    return "Each row has its largest logits and adds up to 1."


# --- MOE.3 Back to the tokens --------------------------------------------------------


@check("MOE.3")
def check_MOE_3(attempt):
    for N, A, E, D in ((5, 2, 3, 4), (4, 1, 4, 2), (3, 3, 5, 3), (6, 2, 2, 1)):
        draws = torch.rand(N, E, generator=seeded(N + A))
        order = draws.topk(A, dim=1).indices.flatten().argsort(stable=True)
        by_token = random_tensor(N * A, D, seed=D)
        outs = by_token[order]
        given = outs.clone(), order.clone()
        found = as_tensor(call(attempt, *given, A))
        expect(
            torch.equal(given[0], outs) and torch.equal(given[1], order),
            "what was given has changed; work on new tensors",
        )
        if isinstance(found, torch.Tensor):
            message = "the rows are in order again; now add up those of each token"
            expect(found.shape != (N * A, D) or A == 1, message)
            message = "the rows of a token stand beside each other; add them up"
            expect(found.shape != (N, A, D), message)
        expect_tensor(found, (N, D), "tokens, width")
        right = by_token.view(N, A, D).sum(dim=1)
        slips = {
            "`order` is applied a second time; it must be undone": (
                outs[order].view(N, A, D).sum(dim=1)
            ),
            "the rows are still in the order of the experts": (
                outs.view(N, A, D).sum(dim=1)
            ),
            "the pairs of a token are neighbours, so the first axis is that of the "
            "tokens": by_token.view(A, N, D).sum(dim=0),
            "this is the mean over a token's experts; their weights are in the rows": (
                right / A
            ),
            "of each token one row is left; the others were written over": (
                by_token.view(N, A, D)[:, -1]
            ),
            "of each token the first row is taken alone": by_token.view(N, A, D)[:, 0],
        }
        for e in range(A):
            message = "of each token one row is left; the others were written over"
            slips[f"{message}, or left out"] = by_token.view(N, A, D)[:, e]
        message = f"not right for {A} experts of a token"
        atol = tolerance(found, right.abs().max().item())
        expect_result(found, right, slips, message, atol)
    return "Every row finds its token, for one and for several experts."


# --- MOE.4 Who is dropped ------------------------------------------------------------


def _kept(chosen, capacity):
    """The plain way: one token after the other."""
    held, rows = {}, []
    for row in chosen.tolist():
        rows.append([])
        for expert in row:
            held[expert] = held.get(expert, 0) + 1
            rows[-1].append(held[expert] <= capacity)
    return torch.tensor(rows)


@check("MOE.4")
def check_MOE_4(attempt):
    for N, A, E, capacity in (
        (7, 2, 4, 2),  # first, since no two slips come out alike here
        (6, 1, 3, 1),
        (5, 2, 2, 3),
        (4, 3, 5, 9),
        (5, 2, 3, 0),
    ):
        draws = torch.rand(N, E, generator=seeded(N * A + E))
        chosen = draws.topk(A, dim=1).indices
        given = chosen.clone()
        found = as_tensor(call(attempt, given, capacity))
        expect(torch.equal(given, chosen), "the numbers that were given have changed")
        expect_tensor(found, (N, A), "tokens, experts of a token")
        right = _kept(chosen, capacity)
        turned = _kept(chosen.T, capacity).T
        each = torch.cat([_kept(column[:, None], capacity) for column in chosen.T], 1)
        slips = {
            "True and False have changed places": ~right,
            "one more than the capacity is kept": _kept(chosen, capacity + 1),
            "one less than the capacity is kept": _kept(chosen, capacity - 1),
            "the last tokens are kept and the first ones dropped": (
                _kept(chosen.flip(0), capacity).flip(0)
            ),
            "every place of the top-k is counted for itself; an expert has one "
            "capacity": each,
            "all first choices come before all second ones; a token's choices come "
            "before the next token": turned,
            "a token with one choice that is dropped loses all": (
                right.all(dim=1, keepdim=True).expand(N, A)
            ),
            "the capacity is that of all experts together; each has its own": (
                (torch.arange(N * A) < capacity).view(N, A)
            ),
            "all tokens of an expert that is full are dropped; the first ones stay": (
                F.one_hot(chosen, E).sum(dim=(0, 1))[chosen] <= capacity
            ),
        }
        slips = {message: kept.long() for message, kept in slips.items()}
        expect_no_slip(found.long(), right.long(), slips)
        expect(
            torch.equal(found.bool(), right),
            f"not right for {A} of {E} experts with a capacity of {capacity}",
        )
    return "The first tokens stay, none beyond the capacity of its expert."


# --- MOE.5 A dense layer, cut into experts -------------------------------------------


def _mean_of(experts, x):
    """The mean of what SwiGLU layers, as three matrices, make of x."""
    outs = [
        (F.silu(x @ gate.T) * (x @ up.T)) @ down.T
        for gate, up, down in (map(torch.Tensor.double, one) for one in experts)
    ]
    return torch.stack(outs).mean(dim=0)


@check("MOE.5")
def check_MOE_5(attempt):
    for D, width, E in ((3, 4, 2), (5, 6, 3), (2, 5, 1), (4, 8, 4)):
        gate, up = (random_tensor(width, D, seed=seed) for seed in (1, 2))
        down = random_tensor(D, width, seed=3)
        given = gate.clone(), up.clone(), down.clone()
        experts = as_list(call(attempt, *given, E))
        same = all(map(torch.equal, given, (gate, up, down)))
        expect(same, "the weights that were given have changed; work on new tensors")
        several = isinstance(experts, (list, tuple)) and len(experts) == E
        expect(several, f"the result is {describe(experts)}, not a list of {E} experts")
        part, names = width // E, ("gate", "up", "down")
        shapes = ((part, D), (part, D), (D, part))
        parts = []
        for expert in map(as_list, experts):
            triple = isinstance(expert, (list, tuple)) and len(expert) == 3
            expect(triple, f"an expert is {describe(expert)}, not three matrices")
            parts.append([as_tensor(matrix) for matrix in expert])
            for matrix, shape, name in zip(parts[-1], shapes, names, strict=True):
                expect_tensor(matrix, shape, f"{name} of one of {E} experts")
        x = random_tensor(7, D, seed=4)
        right = _mean_of([(gate, up, down)], x)
        chunks = [gate.chunk(E), up.chunk(E), down.chunk(E, dim=1)]
        cut = list(zip(*chunks, strict=True))
        rolled = list(zip(chunks[0], chunks[1], chunks[2][::-1], strict=True))
        slips = {
            "the mean of the experts is an E-th of the dense layer; one of the three "
            "matrices must make up for it": right / E,
            "the experts do not add up to more than the dense layer; the factor E is "
            "in two matrices": right * E,
            "gate is made larger; what comes out is not proportional to it": _mean_of(
                [(E * g, u, d) for g, u, d in cut], x
            ),
            "all experts are the same part": _mean_of(
                [(g, u, E * d) for g, u, d in cut[:1] * E], x
            ),
            "the columns of down do not belong to the rows of gate and up": _mean_of(
                [(g, u, E * d) for g, u, d in rolled], x
            ),
            "the factor is the root of E; down stands outside all that is not "
            "linear": right / E**0.5,
        }
        size = right.abs().max().item()
        atol = max(tolerance(part, size) for one in parts for part in one)
        found, message = _mean_of(parts, x), f"not right for {E} experts"
        expect_result(found, right, slips, message, atol)
    return "The mean of all experts is the dense layer."
