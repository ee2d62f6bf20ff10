"""The checks of the exercises in `mla.ipynb`; see `course.exercises`."""

import math

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
    expect_tensor,
    random_tensor,
)

# --- MLA.1 As much as how many groups? -----------------------------------------------


@check("MLA.1")
def check_MLA_1(attempt):
    for C, P, K in ((7, 4, 3), (512, 64, 128), (256, 32, 64), (256, 64, 64), (6, 3, 8)):
        answer = call(attempt, C, P, K)
        atol = _bound(answer)
        found = expect_number(answer)
        right = (C + P) / (2 * K)
        slips = {
            "a group keeps a key and a value; count both": (C + P) / K,
            "the rotary key is cached as well": C / (2 * K),
            "one rotary key serves keys alone, so it counts once, not twice": (
                (C + 2 * P) / (2 * K)
            ),
            "one latent serves keys and values; it counts once": (
                (2 * C + P) / (2 * K)
            ),
            "latent and rotary key are each counted twice, for keys and for values": (
                (2 * C + 2 * P) / (2 * K)
            ),
            "a key of a group has no rotary part beside its own numbers": (
                (C + P) / (2 * K + P)
            ),
            "this is one over the answer": 2 * K / (C + P),
            "this counts the numbers of latent attention; divide them by those of one "
            "group": C + P,
            "no rotary numbers belong to a group, neither to its key nor to its "
            "value": (C + P) / (2 * (K + P)),
            "a group keeps a key and a value, K numbers each, and no rotary part": (
                (C + P) / (K + P)
            ),
            "it may be less than one group": max(1, right),
        }
        expect_no_slip(found, right, slips, atol=atol)
        whole = found in (math.floor(right), math.ceil(right)) and found != right
        expect(
            not whole, "the result is made a whole number, though it need not be one"
        )
        expect_close(found, right, f"not right for {(C, P, K)}", atol=atol)
    return "It is right for large and small latents, and for less than one group."


# --- MLA.2 The whole way out ---------------------------------------------------------


@check("MLA.2")
def check_MLA_2(attempt):
    for H, K, C, D in ((3, 2, 5, 4), (2, 3, 3, 3), (1, 4, 2, 6), (4, 4, 4, 4)):
        W_value = random_tensor(H * K, C, seed=1)
        W_out = random_tensor(D, H * K, seed=2)
        given = W_value.clone(), W_out.clone()
        found = call(attempt, *given, H)
        expect(
            torch.equal(given[0], W_value) and torch.equal(given[1], W_out),
            "the weights that were given have changed; work on new tensors",
        )
        values, outs = W_value.view(H, K, C), W_out.view(D, H, K)
        right = torch.einsum("dhk,hkc->hdc", outs, values)
        found = _tensor(found)
        if isinstance(found, torch.Tensor):
            _expect_no_slip_of_MLA_2(found, W_value, W_out, right)
        expect_tensor(found, (H, D, C), "heads, width of a token, width of a latent")
        atol, found = _bound(found), found.to(torch.float64)
        expect_close(found, right, f"not right for {H} heads, {K} wide", atol=atol)
        mixtures = random_tensor(2, H, C, seed=3)  # of latents, for two tokens
        contexts = torch.einsum("hkc,thc->thk", values, mixtures).flatten(1)
        shares = torch.einsum("hdc,thc->td", found, mixtures)
        expect_close(
            shares, contexts @ W_out.T, "the shares do not add up", atol=10 * atol
        )
    return "The shares of all heads add up to what out_proj gives."


def _expect_no_slip_of_MLA_2(found, W_value, W_out, right):
    H, D, C = right.shape
    K = W_value.shape[0] // H
    message = (
        "this is one matrix for all heads together; each head mixes latents with "
        "weights of its own, so each needs its own"
    )
    if H > 1:
        expect(found.shape != (D, C), message)
    expect(
        found.shape != (H * D, C) or found.ndim == right.ndim,
        "the heads stand one below the other; give them an axis of their own",
    )
    square = D == C
    turned = right.transpose(1, 2)
    expect(
        found.shape != turned.shape or (square and not _close(found, turned)),
        "each matrix is turned: the latent goes in, (H, D, C)",
    )
    expect(
        found.shape != (D, H, C) or (D, H, C) == (H, D, C),
        "the axis of the heads stands in the middle; it comes first",
    )
    values, outs = W_value.view(H, K, C), W_out.view(D, H, K)
    slips = {
        "the columns of W_out are dealt to the heads in turn; head h owns K that stand "
        "side by side": torch.einsum(
            "dkh,hkc->hdc", W_out.unflatten(1, (K, H)), values
        ),
        "the rows of W_value are dealt to the heads in turn; head h owns K that stand "
        "one below the other": torch.einsum(
            "dhk,khc->hdc", outs, W_value.unflatten(0, (K, H))
        ),
        "both weights are dealt to the heads in turn; head h owns K that stand side by "
        "side": torch.einsum(
            "dkh,khc->hdc", W_out.unflatten(1, (K, H)), W_value.unflatten(0, (K, H))
        ),
        "the heads of the two weights do not belong together: one of them stands in "
        "the opposite order": torch.einsum("dhk,hkc->hdc", outs.flip(1), values),
        "the product of the whole matrices stands for every head": (
            (W_out @ W_value).expand(H, D, C)
        ),
        "the mean over the numbers of a head is taken, where the sum belongs": right
        / K,
        "W_out is cut by its rows; a head owns *columns* of it": torch.einsum(
            "hdk,hkc->hdc", W_out.reshape(H, D, K), values
        ),
        "this is one head's matrix, repeated": right[:1].expand(H, D, C),
        "this is the mean over the heads, for each of them": right.mean(
            dim=0, keepdim=True
        ).expand(H, D, C),
    }
    if found.shape == right.shape:
        atol = _bound(found)
        expect_no_slip(found.to(torch.float64), right, slips, atol=atol)


def _tensor(found):
    """NumPy's arrays as tensors; anything else as it is."""
    return torch.from_numpy(found) if isinstance(found, np.ndarray) else found


def _bound(found):
    """How near a right answer of this number type comes, for numbers up to ten."""
    kind = str(getattr(found, "dtype", "")).removeprefix("torch.")  # NumPy's, too
    return {"bfloat16": 0.1, "float16": 0.01}.get(kind, 1e-4)


def _close(one, other):
    """Whether two tensors of one shape agree, whatever their number type."""
    return one.shape == other.shape and torch.allclose(
        one.double(), other.double(), atol=1e-4
    )


# --- MLA.3 A latent for a layer that has none ----------------------------------------


@check("MLA.3")
def check_MLA_3(attempt):
    for rows, D, C, loud in (
        (6, 5, 2, 1.0),
        (4, 7, 3, 3.0),
        (3, 4, 4, 0.2),
        (5, 6, 1, 1),
    ):
        W_key = random_tensor(rows, D, seed=rows)
        W_value = loud * random_tensor(rows, D, seed=rows + 1)
        given = W_key.clone(), W_value.clone()
        found = call(attempt, *given, C)
        expect(
            torch.equal(given[0], W_key) and torch.equal(given[1], W_value),
            "the weights that were given have changed; work on new tensors",
        )
        triple = isinstance(found, (tuple, list)) and len(found) == 3
        expect(triple, f"the result is {describe(found)}, not three matrices")
        shapes = ((C, D), (rows, C), (rows, C))
        names = ("W_latent", "key_up", "value_up")
        found = [_tensor(part) for part in found]
        for part, shape, name in zip(found, shapes, names, strict=True):
            expect_tensor(part, shape, f"{name} for latent_dim={C}")
        down, *ups = (part.to(torch.float64) for part in found)
        made = torch.cat(ups) @ down
        _expect_best(made, W_key, W_value, C, max(_bound(part) for part in found))
    return "No latent of so many numbers comes nearer to both."


def _truncated(matrix, rank, smallest=False):
    """The part of a matrix that its largest singular values make."""
    left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = slice(len(sizes) - rank, None) if smallest else slice(rank)
    return left[:, kept] * sizes[kept] @ right[kept]


def _expect_best(made, W_key, W_value, C, atol):
    both = torch.cat((W_key, W_value))
    right = _truncated(both, C)
    left, sizes, turned = torch.linalg.svd(both, full_matrices=False)
    of_keys, of_values = (
        torch.linalg.svd(part, full_matrices=False)[2][:C] for part in (W_key, W_value)
    )
    half = max(1, C // 2)
    # The roots of the singular values belong to both sides, or all to one.
    slips = {
        "columns of the right-hand matrix are taken; torch.linalg.svd gives it turned, "
        "so its *rows* belong to the singular values": (
            left[:, :C] * sizes[:C] @ turned.T[:C]
        ),
        "the singular values are left out": left[:, :C] @ turned[:C],
        "the singular values are in both factors, so they count twice": (
            left[:, :C] * sizes[:C] ** 2 @ turned[:C]
        ),
        "the smallest singular values are kept; keep the largest": (
            _truncated(both, C, smallest=True)
        ),
        "the latent is the best one for the keys alone": both @ of_keys.T @ of_keys,
        "the latent is the best one for the values alone": (
            both @ of_values.T @ of_values
        ),
        "keys and values each have a half of the latent; let them share all of it": (
            torch.cat((_truncated(W_key, C - half), _truncated(W_value, half)))
        ),
        "this is the best latent for keys and values in one another's place": (
            torch.cat(right.chunk(2)[::-1])
        ),
        "keys and values are each pressed by themselves, so there are two latents, of "
        "which one is given": torch.cat(
            (_truncated(W_key, C), W_value @ of_keys.T @ of_keys)
        ),
    }
    expect_no_slip(made, right, slips, atol=atol)
    error, least = (made - both).square().sum(), (right - both).square().sum()
    expect(
        error <= least + atol * both.square().sum(),
        f"the squared differences add up to {error:.4g}, where a latent of {C} numbers "
        f"allows {least:.4g}",
    )
