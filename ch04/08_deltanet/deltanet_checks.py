"""The checks of the exercises in `deltanet.ipynb`; see `course.exercises`."""

import math

import torch

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
    tolerance,
)
from deltanet import delta_corrections, short_convolution


def _unit(*shape, seed):
    x = random_tensor(*shape, seed=seed)
    return x / x.norm(dim=-1, keepdim=True)


def _expect_unchanged(given, kept):
    same = all(torch.equal(one, other) for one, other in zip(given, kept, strict=True))
    expect(same, "what was given has changed; work on new tensors")


# --- DN.1 From which length on? ------------------------------------------------------


@check("DN.1")
def check_DN_1(attempt):
    for H, K, M, G, P in (
        (3, 5, 7, 4, 9),  # first, since no two slips come out alike here
        (32, 128, 128, 2, 256),
        (16, 64, 32, 4, 64),
        (2, 4, 6, 3, 5),
    ):
        found = expect_number(call(attempt, H, K, M, G, P))
        right = 4 * H * K * M / (2 * 2 * G * P)
        slips = {
            "keys and values are both cached, so a token has twice as many numbers": (
                2 * right
            ),
            "a number of the state takes 4 bytes, one of the keys and values 2": (
                right / 2
            ),
            "the bytes of the two kinds of numbers are exchanged": right / 4,
            "a memory is a matrix, K times M numbers": 4 * H * (K + M) / (4 * G * P),
            "this is the state of one memory; there are H of them": right / H,
            "there are H memories, each with a matrix of its own, but their number "
            "counts once": right * H,
            "a token has a key and a value in each of the G groups": right * G,
            "a key in the cache has head_dim numbers; key_dim is for the memories": (
                4 * H * K * M / (4 * G * K)
            ),
            "a memory has a row for each number of a key, and a column for each number "
            "of a value": 4 * H * K * K / (4 * G * P),
            "this is one over the answer": 1 / right,
            "this is the bytes of the states; divide them by those of one token": (
                4 * H * K * M
            ),
            "the heads of queries need no keys of their own; count the G groups": (
                4 * H * K * M / (4 * H * P)
            ),
        }
        expect_no_slip(found, right, slips)
        whole = found in (math.floor(right), math.ceil(right)) and found != right
        expect(
            not whole, "the result is made a whole number, though it need not be one"
        )
        expect_close(found, right, f"not right for {(H, K, M, G, P)}", atol=1e-3)
    return "It is right for the sizes of Qwen3-Next and three others."


# --- DN.2 One token ------------------------------------------------------------------


@check("DN.2")
def check_DN_2(attempt):
    for K, M, alpha, beta in ((3, 2, 0.5, 1.0), (2, 4, 0.9, 0.3), (4, 4, 0.25, 0.8)):
        state = random_tensor(K, M, seed=K)
        key, value = _unit(K, seed=K + 1), random_tensor(M, seed=K + 2)
        given = state.clone(), key.clone(), value.clone()
        found = as_tensor(call(attempt, *given, alpha, beta))
        _expect_unchanged(given, (state, key, value))
        faded, held = alpha * state, alpha * key @ state
        right = faded + beta * torch.outer(key, value - held)
        if isinstance(found, torch.Tensor):
            expect(
                K == M or found.shape != (M, K),
                "the memory is turned: its rows belong to the key, (K, M)",
            )
        expect_tensor(found, (K, M), "width of a key, width of a value")
        slips = {
            "nothing is erased: this adds to what the key held": (
                faded + beta * torch.outer(key, value)
            ),
            "the key is read before the memory has faded": (
                faded + beta * torch.outer(key, value - key @ state)
            ),
            "what is written fades at once; the memory fades first": (
                alpha * (state + beta * torch.outer(key, value - key @ state))
            ),
            "the memory does not fade": (
                state + beta * torch.outer(key, value - key @ state)
            ),
            "everything that the key held is erased, though only the share beta is "
            "written": faded - torch.outer(key, held) + beta * torch.outer(key, value),
            "the share beta is erased, but all of the value is written": (
                faded + torch.outer(key, value - beta * held)
            ),
            "the whole difference is written, without beta": (
                faded + torch.outer(key, value - held)
            ),
            "the sign is turned: this moves away from the value": (
                faded - beta * torch.outer(key, value - held)
            ),
            "beta fades and alpha writes; the two are exchanged": (
                beta * state + alpha * torch.outer(key, value - beta * key @ state)
            ),
            "only what is new is given back; the memory that it is added to is "
            "missing": beta * torch.outer(key, value - held),
        }
        expect_result(found, right, slips, f"not right for alpha={alpha}, beta={beta}")
    return "It fades, reads, and writes what was missing."


# --- DN.3 The same step, from another side -------------------------------------------


@check("DN.3")
def check_DN_3(attempt):
    for K, M in ((3, 2), (2, 5), (4, 4)):
        state, key = random_tensor(K, M, seed=K), 1.5 * _unit(K, seed=K + 1)
        value = random_tensor(M, seed=K + 2)
        given = state.clone(), key.clone(), value.clone()
        found = as_tensor(call(attempt, *given))
        _expect_unchanged(given, (state, key, value))
        right = torch.outer(key, key @ state - value)
        if isinstance(found, torch.Tensor):
            found = found.detach()
            expect(
                K == M or found.shape != (M, K),
                "the gradient is turned: it has the shape of the memory, (K, M)",
            )
        expect_tensor(found, (K, M), "the shape of the memory")
        slips = {
            "this is downhill; the gradient points uphill": -right,
            "the loss has a factor 1/2, which takes away the 2 of the square": (
                2 * right
            ),
            "this is downhill, and the loss has a factor 1/2": -2 * right,
            "the value is left out": torch.outer(key, key @ state),
            "the memory is left out: what the key reads belongs to the error": (
                -torch.outer(key, value)
            ),
            "the mean over the numbers of the value is taken, where the sum belongs": (
                right / M
            ),
            "the loss has a factor 1/2 and a sum, this is the gradient of a mean": (
                2 * right / M
            ),
        }
        expect_result(found, right, slips, f"not right for a memory of {K} x {M}")
    return "A step against it, of length beta, is what the delta rule writes."


# --- DN.4 A convolution in pieces ----------------------------------------------------


@check("DN.4")
def check_DN_4(attempt):
    cases = (
        ([5, 4, 6], 3),
        ([1, 1, 1, 1, 1, 1], 4),  # pieces shorter than what the filter sees
        ([4, 1, 2, 5], 4),
        ([3, 2], 1),
    )
    for lengths, W in cases:
        x = random_tensor(2, sum(lengths), 3, seed=W)
        weight = random_tensor(3, W, seed=W + 1)
        pieces = list(x.split(lengths, dim=1))
        given = [piece.clone() for piece in pieces]
        found = call(attempt, given, weight.clone())
        _expect_unchanged(given, pieces)
        found = as_list(as_tensor(found))
        joined = isinstance(found, torch.Tensor) and found.ndim == 3
        if joined and found.shape[1] == sum(lengths):  # just as good
            found = list(found.split(lengths, dim=1))
        many = isinstance(found, (list, tuple)) and len(found) == len(lengths)
        expect(many, f"the result is {describe(found)}, not one output for each piece")
        found = [as_tensor(part) for part in found]
        for part, piece in zip(found, pieces, strict=True):
            expect_tensor(part, tuple(piece.shape), "as many tokens as the piece")
        atol = max(tolerance(part) for part in found)
        found = torch.cat([part.to(torch.float64) for part in found], dim=1)
        _expect_no_slip_of_DN_4(found, pieces, weight, atol)
    return "Pieces of any length give what the whole text gives."


def _in_pieces(pieces, weight, tail_of, flipped=False):
    """The convolution where the tail after a piece is `tail_of(seen, piece, out)`."""
    W = weight.shape[1]
    weight = weight.flip(1) if flipped else weight
    tail, outputs = pieces[0].new_zeros(pieces[0].shape[0], W - 1, weight.shape[0]), []
    for piece in pieces:
        out, _ = short_convolution(piece, weight, tail)
        outputs.append(out)
        kept = tail_of(torch.cat((tail, piece), dim=1), piece, out)
        kept = kept[:, max(0, kept.shape[1] - (W - 1)) :]
        tail = torch.nn.functional.pad(kept, (0, 0, W - 1 - kept.shape[1], 0))
    return torch.cat(outputs, dim=1)


def _expect_no_slip_of_DN_4(found, pieces, weight, atol):
    whole = torch.cat(pieces, dim=1)
    right, _ = short_convolution(whole, weight)
    W = weight.shape[1]
    ahead = torch.nn.functional.pad(whole, (0, 0, 0, W - 1))
    ahead = sum(ahead[:, w : w + whole.shape[1]] * weight[:, w] for w in range(W))
    slips = {
        "each piece begins with zeros; it goes on where the one before has ended": (
            _in_pieces(pieces, weight, lambda seen, piece, out: 0 * seen)
        ),
        "a piece shorter than W - 1 loses what came before it; keep the last W - 1 "
        "tokens of all that was read": (
            _in_pieces(pieces, weight, lambda seen, piece, out: piece)
        ),
        "what was mixed is kept for the next piece; keep what came in": (
            _in_pieces(
                pieces,
                weight,
                lambda seen, piece, out: torch.cat((seen[:, : W - 1], out), 1),
            )
        ),
        "the first tokens are kept for the next piece, not the last ones": (
            _in_pieces(pieces, weight, lambda seen, piece, out: piece[:, : W - 1])
        ),
        "one token too few is kept for the next piece": (
            _in_pieces(
                pieces,
                weight,
                lambda seen, piece, out: seen[:, seen.shape[1] - max(0, W - 2) :],
            )
        ),
        "the filter is turned: its last weight belongs to the newest token": (
            _in_pieces(pieces, weight, lambda seen, piece, out: seen, flipped=True)
        ),
        "the filter looks ahead; a token may see itself and earlier ones": ahead,
    }
    expect_no_slip(found, right, slips, atol=atol)
    lengths = [piece.shape[1] for piece in pieces]
    expect_close(found, right, f"not right for pieces of {lengths}, W = {W}", atol)


# --- DN.5 Before the state is known --------------------------------------------------


@check("DN.5")
def check_DN_5(attempt):
    for C, K, M in ((2, 3, 2), (4, 3, 5), (6, 4, 4), (1, 2, 3)):
        keys, values = _unit(C, K, seed=C), random_tensor(C, M, seed=C + 1)
        beta = random_tensor(C, seed=C + 2).sigmoid()
        given = keys.clone(), values.clone(), beta.clone()
        found = as_list(call(attempt, *given))
        _expect_unchanged(given, (keys, values, beta))
        pair = isinstance(found, (tuple, list)) and len(found) == 2
        expect(pair, f"the result is {describe(found)}, not two matrices")
        U, R = (as_tensor(part) for part in found)
        if C > 1 and isinstance(U, torch.Tensor) and isinstance(R, torch.Tensor):
            turned = U.shape == (C, K) and R.shape == (C, M) and K != M
            expect(not turned, "the two are exchanged: first the part of the values")
        expect_tensor(U, (C, M), "tokens, width of a value")
        expect_tensor(R, (C, K), "tokens, width of a key")
        atol = max(tolerance(part) for part in (U, R))
        U, R = U.to(torch.float64), R.to(torch.float64)
        _expect_no_slip_of_DN_5(U, R, keys, values, beta, atol)
        state = random_tensor(K, M, seed=C + 3)
        fade = torch.zeros(1, 1, C, dtype=torch.float64)
        parts = (part[None, None] for part in (keys, values))
        right = delta_corrections(*parts, fade, beta[None, None], state[None, None])
        message = f"not right for {C} tokens and a memory of {K} x {M}"
        expect_close(U - R @ state, right[0, 0], message, atol)
    return "What is written is U - R S, whatever stands in S."


def _expect_no_slip_of_DN_5(U, R, keys, values, beta, atol):
    C = len(keys)
    eye = torch.eye(C, dtype=torch.float64)
    alike = keys @ keys.T

    def solved(system, strength=beta[:, None]):
        system = torch.linalg.inv(system)
        return torch.cat((system @ (strength * values), system @ (strength * keys)), 1)

    lower = (beta[:, None] * alike).tril(-1)
    right, found = solved(eye + lower), torch.cat((U, R), dim=1)
    M = values.shape[1]
    signs = torch.cat((torch.ones(M), -torch.ones(R.shape[1]))).double()
    slips = {
        "the tokens of the chunk do not know of each other: each writes as if it came "
        "first": solved(eye),
        "beta stands at the columns of the system; it belongs to the token that "
        "writes, its row": solved(eye + (alike * beta).tril(-1)),
        "beta is missing in the system": solved(eye + alike.tril(-1)),
        "beta is missing on the right-hand side": solved(eye + lower, 1.0),
        "later tokens change earlier ones: the system is upper triangular": (
            solved(eye + (beta[:, None] * alike).triu(1))
        ),
        "the system is full; a token knows the earlier ones only": (
            solved(eye + beta[:, None] * (alike - alike.diag().diag()))
        ),
        "the diagonal of the products is added to the ones": (
            solved(eye + (beta[:, None] * alike).tril())
        ),
        "what earlier tokens wrote is added, where it is to be taken off": (
            solved(eye - lower)
        ),
        "one round of corrections only: what was taken off changes in its turn what "
        "later tokens take off": (eye - lower)
        @ torch.cat((beta[:, None] * values, beta[:, None] * keys), dim=1),
        "the sign of the second matrix is turned: it is subtracted, U - R S": (
            right * signs
        ),
    }
    expect_no_slip(found, right, slips, atol=atol)
