"""Every exercise check takes the solution, knows the stub and names mistakes."""

import numpy as np
import pytest
import torch

from course.exercises import WrongAnswer, verify
from deltanet import short_convolution
from deltanet_checks import (
    check_DN_1,
    check_DN_2,
    check_DN_3,
    check_DN_4,
    check_DN_5,
)


def stub(*arguments, **keywords):
    return ...


# --- DN.1 ----------------------------------------------------------------------------


def break_even(num_heads, key_dim, value_dim, num_kv_groups, head_dim):
    return 4 * num_heads * key_dim * value_dim / (2 * 2 * num_kv_groups * head_dim)


WRONG_DN_1 = {
    "no values": (lambda H, K, M, G, P: 4 * H * K * M / (2 * G * P), "both cached"),
    "same bytes": (lambda H, K, M, G, P: H * K * M / (2 * G * P), "takes 4 bytes"),
    "bytes exchanged": (
        lambda H, K, M, G, P: 2 * H * K * M / (2 * 4 * G * P),
        "two kinds of numbers are exchanged",
    ),
    "a vector": (lambda H, K, M, G, P: 4 * H * (K + M) / (4 * G * P), "a matrix, K"),
    "one memory": (lambda H, K, M, G, P: K * M / (G * P), "of one memory; there"),
    "heads twice": (
        lambda H, K, M, G, P: H * H * K * M / (G * P),
        "their number counts once",
    ),
    "one group": (lambda H, K, M, G, P: H * K * M / P, "in each of the G groups"),
    "key_dim": (lambda H, K, M, G, P: H * K * M / (G * K), "is for the memories"),
    "square": (lambda H, K, M, G, P: H * K * K / (G * P), "for each number of a key"),
    "other way": (lambda H, K, M, G, P: G * P / (H * K * M), "one over the answer"),
    "bytes": (lambda H, K, M, G, P: 4 * H * K * M, "divide them by those of one"),
    "heads for groups": (lambda H, K, M, G, P: K * M / P, "count the G groups"),
    "cut": (lambda *of: int(break_even(*of)), "made a whole number"),
    "too much": (lambda *of: break_even(*of) + 1, "not right for"),
    "words": (lambda *of: "many", "not a number"),
}


def test_DN_1():
    verify(check_DN_1, break_even, stub, WRONG_DN_1)
    check_DN_1(lambda H, K, M, G, P: torch.tensor(H * K * M / (G * P)))
    check_DN_1(lambda H, K, M, G, P: np.float32(H * K * M) / np.float32(G * P))


# --- DN.2 ----------------------------------------------------------------------------


def delta_step(state, key, value, alpha, beta):
    state = alpha * state
    return state + beta * torch.outer(key, value - key @ state)


def in_place(state, key, value, alpha, beta):
    state *= alpha
    state += beta * torch.outer(key, value - key @ state)
    return state


def outer(key, value):
    return key[:, None] * value


WRONG_DN_2 = {
    "sum": (lambda S, k, v, a, b: a * S + b * outer(k, v), "nothing is erased"),
    "read first": (
        lambda S, k, v, a, b: a * S + b * outer(k, v - k @ S),
        "before the memory has faded",
    ),
    "fades last": (
        lambda S, k, v, a, b: a * delta_step(S, k, v, 1, b),
        "what is written fades at once",
    ),
    "no fading": (lambda S, k, v, a, b: delta_step(S, k, v, 1, b), "does not fade"),
    "all erased": (
        lambda S, k, v, a, b: a * S + outer(k, b * v - k @ (a * S)),
        "everything that the key held",
    ),
    "all written": (
        lambda S, k, v, a, b: a * S + outer(k, v - b * k @ (a * S)),
        "but all of the value",
    ),
    "no beta": (lambda S, k, v, a, b: delta_step(S, k, v, a, 1), "without beta"),
    "sign": (lambda S, k, v, a, b: delta_step(S, k, v, a, -b), "moves away"),
    "exchanged": (lambda S, k, v, a, b: delta_step(S, k, v, b, a), "alpha writes"),
    "new only": (
        lambda S, k, v, a, b: delta_step(S, k, v, a, b) - a * S,
        "the memory that it is added to",
    ),
    "turned": (lambda *of: delta_step(*of).T, "the memory is turned"),
    "changed": (in_place, "has changed"),
    "else": (lambda S, k, v, a, b: S, "not right for alpha"),
    "words": (lambda *of: "one", "where a tensor is asked for"),
}


def test_DN_2():
    verify(check_DN_2, delta_step, stub, WRONG_DN_2)

    def by_matrix(state, key, value, alpha, beta):
        erase = torch.eye(len(key)) - beta * torch.outer(key, key)
        return alpha * erase @ state + beta * torch.outer(key, value)

    check_DN_2(by_matrix)
    check_DN_2(lambda *of: delta_step(*of).numpy())
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        check_DN_2(lambda *of, t=dtype: delta_step(*of).to(t))


# --- DN.3 ----------------------------------------------------------------------------


def read_error_gradient(state, key, value):
    return torch.outer(key, key @ state - value)


def by_autograd(state, key, value):
    state = state.clone().requires_grad_()
    with torch.enable_grad():
        loss = (key @ state - value).square().sum() / 2
    return torch.autograd.grad(loss, state)[0]


WRONG_DN_3 = {
    "downhill": (lambda S, k, v: outer(k, v - k @ S), "the gradient points uphill"),
    "twice": (lambda S, k, v: 2 * outer(k, k @ S - v), "takes away the 2"),
    "twice downhill": (
        lambda S, k, v: 2 * outer(k, v - k @ S),
        "downhill, and the loss has a factor",
    ),
    "no value": (lambda S, k, v: outer(k, k @ S), "the value is left out"),
    "no memory": (lambda S, k, v: -outer(k, v), "the memory is left out"),
    "mean": (lambda S, k, v: outer(k, k @ S - v) / len(v), "where the sum belongs"),
    "mean, twice": (
        lambda S, k, v: 2 * outer(k, k @ S - v) / len(v),
        "this is the gradient of a mean",
    ),
    "turned": (lambda *of: read_error_gradient(*of).T, "the gradient is turned"),
    "else": (lambda S, k, v: S, "not right for a memory"),
    "words": (lambda *of: "one", "where a tensor is asked for"),
}


def test_DN_3():
    verify(check_DN_3, read_error_gradient, stub, WRONG_DN_3)
    check_DN_3(by_autograd)
    check_DN_3(lambda *of: read_error_gradient(*of).float().numpy())
    with torch.no_grad():
        check_DN_3(by_autograd)


# --- DN.4 ----------------------------------------------------------------------------


def convolve_pieces(pieces, weight):
    tail, outputs = None, []
    for piece in pieces:
        out, tail = short_convolution(piece, weight, tail)
        outputs.append(out)
    return outputs


def whole_at_once(pieces, weight):
    W = weight.shape[1]
    x = torch.cat(pieces, dim=1).transpose(1, 2)
    padded = torch.nn.functional.pad(x, (W - 1, 0))
    mixed = torch.nn.functional.conv1d(padded, weight[:, None], groups=len(weight))
    return mixed.transpose(1, 2).split([piece.shape[1] for piece in pieces], dim=1)


def with_tail(tail_of, turn=False):
    """A loop in which the next tail is made wrongly."""

    def answer(pieces, weight):
        W = weight.shape[1]
        weight = weight.flip(1) if turn else weight
        tail, outputs = torch.zeros(2, W - 1, 3).double(), []
        for piece in pieces:
            outputs.append(short_convolution(piece, weight, tail)[0])
            made = tail_of(tail, piece, outputs[-1])
            made = made[:, max(0, made.shape[1] - W + 1) :]
            tail = torch.nn.functional.pad(made, (0, 0, W - 1 - made.shape[1], 0))
        return outputs

    return answer


def looking_ahead(pieces, weight):
    x, W = torch.cat(pieces, dim=1), weight.shape[1]
    padded = torch.nn.functional.pad(x, (0, 0, 0, W - 1))
    mixed = sum(padded[:, w : w + x.shape[1]] * weight[:, w] for w in range(W))
    return mixed.split([piece.shape[1] for piece in pieces], dim=1)


def scaled(pieces, weight):
    for piece in pieces:
        piece *= 2
    return convolve_pieces(pieces, weight)


WRONG_DN_4 = {
    "zeros": (with_tail(lambda t, x, out: 0 * t), "each piece begins with zeros"),
    "short": (with_tail(lambda t, x, out: x), "shorter than W - 1 loses"),
    "mixed": (
        with_tail(lambda t, x, out: torch.cat((t, out), 1)),
        "what was mixed is kept",
    ),
    "first": (
        with_tail(lambda t, x, out: x[:, : t.shape[1]]),
        "the first tokens are kept",
    ),
    "one less": (
        with_tail(
            lambda t, x, out: torch.cat((t, x), 1)[:, x.shape[1] + min(1, t.shape[1]) :]
        ),
        "one token too few",
    ),
    "turned": (
        with_tail(lambda t, x, out: torch.cat((t, x), 1), turn=True),
        "the filter is turned",
    ),
    "ahead": (looking_ahead, "looks ahead"),
    "double": (
        lambda pieces, weight: [2 * out for out in convolve_pieces(pieces, weight)],
        "not right for pieces of",
    ),
    "one": (lambda *of: convolve_pieces(*of)[:1], "not one output for each piece"),
    "longer": (
        lambda *of: [torch.cat((o, o), 1) for o in convolve_pieces(*of)],
        "as many tokens as the piece",
    ),
    "changed": (scaled, "has changed"),
}


def test_DN_4():
    verify(check_DN_4, convolve_pieces, stub, WRONG_DN_4)
    check_DN_4(whole_at_once)
    check_DN_4(lambda *of: torch.cat(convolve_pieces(*of), dim=1))
    check_DN_4(lambda *of: [part.float().numpy() for part in convolve_pieces(*of)])

    def lazily(pieces, weight):
        yield from convolve_pieces(pieces, weight)

    check_DN_4(lazily)


# --- DN.5 ----------------------------------------------------------------------------


def solve_ahead(keys, values, beta):
    system = torch.eye(len(keys)).to(keys) + (beta[:, None] * keys @ keys.T).tril(-1)
    inverse = torch.linalg.inv(system) * beta  # beta on the columns: from the right
    return inverse @ values, inverse @ keys


def row_by_row(keys, values, beta):
    """Forward substitution, as lists."""
    U, R = [], []
    for i in range(len(keys)):
        u, r = values[i], keys[i]
        for j in range(i):
            u = u - keys[i] @ keys[j] * U[j]
            r = r - keys[i] @ keys[j] * R[j]
        U.append(beta[i] * u)
        R.append(beta[i] * r)
    return [torch.stack(U), torch.stack(R)]


def with_system(made, strength=lambda beta: beta):
    def answer(keys, values, beta):
        inverse = torch.linalg.inv(made(keys @ keys.T, beta[:, None]))
        inverse = inverse * strength(beta)
        return inverse @ values, inverse @ keys

    return answer


def eye(alike):
    return torch.eye(len(alike)).to(alike)


def one_round(keys, values, beta):
    lower = (beta[:, None] * keys @ keys.T).tril(-1)
    system = (eye(lower) - lower) * beta
    return system @ values, system @ keys


def negative(keys, values, beta):
    U, R = solve_ahead(keys, values, beta)
    return U, -R


WRONG_DN_5 = {
    "alone": (with_system(lambda a, b: eye(a)), "do not know of each other"),
    "columns": (
        with_system(lambda a, b: eye(a) + (a * b.T).tril(-1)),
        "beta stands at the columns",
    ),
    "no beta": (
        with_system(lambda a, b: eye(a) + a.tril(-1)),
        "missing in the system",
    ),
    "no beta right": (
        with_system(lambda a, b: eye(a) + (b * a).tril(-1), lambda beta: 1),
        "missing on the right-hand side",
    ),
    "upper": (
        with_system(lambda a, b: eye(a) + (b * a).triu(1)),
        "upper triangular",
    ),
    "full": (
        with_system(lambda a, b: eye(a) + b * (a - a.diag().diag())),
        "the system is full",
    ),
    "diagonal": (
        with_system(lambda a, b: eye(a) + (b * a).tril()),
        "added to the ones",
    ),
    "added": (
        with_system(lambda a, b: eye(a) - (b * a).tril(-1)),
        "is added, where",
    ),
    "one round": (one_round, "one round of corrections only"),
    "sign": (negative, "sign of the second matrix"),
    "exchanged": (lambda *of: solve_ahead(*of)[::-1], "the two are exchanged"),
    "else": (
        lambda *of: [2 * part for part in solve_ahead(*of)],
        "and a memory of",
    ),
    "one": (lambda *of: solve_ahead(*of)[:1], "not two matrices"),
}


def test_DN_5():
    verify(check_DN_5, solve_ahead, stub, WRONG_DN_5)
    check_DN_5(row_by_row)
    check_DN_5(lambda *of: (part.float().numpy() for part in solve_ahead(*of)))
    with pytest.raises(WrongAnswer, match="a tensor is asked for"):
        check_DN_5(lambda *of: ("one", "two"))
