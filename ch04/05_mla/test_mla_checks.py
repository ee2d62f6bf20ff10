"""Every exercise check takes the solution, knows the stub and names mistakes."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from course.exercises import WrongAnswer, verify
from mla_checks import check_MLA_1, check_MLA_2, check_MLA_3


def stub(*arguments, **keywords):
    return ...


# --- MLA.1 ---------------------------------------------------------------------------


def equal_groups(latent_dim, rope_dim, head_dim):
    return (latent_dim + rope_dim) / (2 * head_dim)


WRONG_MLA_1 = {
    "no values": (lambda C, P, K: (C + P) / K, "a key and a value; count both"),
    "no rotary key": (lambda C, P, K: C / (2 * K), "rotary key is cached as well"),
    "rotary twice": (lambda C, P, K: (C + 2 * P) / (2 * K), "serves keys alone"),
    "latent twice": (lambda C, P, K: (2 * C + P) / (2 * K), "one latent serves"),
    "rotary in groups": (
        lambda C, P, K: (C + P) / (2 * K + P),
        "beside its own numbers",
    ),
    "other way": (lambda C, P, K: 2 * K / (C + P), "one over the answer"),
    "not divided": (lambda C, P, K: C + P, "divide them by those of one group"),
    "rotary in both": (lambda C, P, K: (C + P) / (2 * (K + P)), "neither to its key"),
    "rotary, no values": (lambda C, P, K: (C + P) / (K + P), "K numbers each, and"),
    "at least one": (lambda C, P, K: max(1, (C + P) / (2 * K)), "less than one group"),
    "cut": (lambda C, P, K: (C + P) // (2 * K), "made a whole number"),
    "too much": (lambda C, P, K: (C + P) / (2 * K) + 0.1, "not right for"),
    "words": (lambda C, P, K: "two", "not a number"),
}


def test_MLA_1():
    verify(check_MLA_1, equal_groups, stub, WRONG_MLA_1)
    with pytest.raises(WrongAnswer, match="made a whole number"):
        check_MLA_1(lambda C, P, K: round((C + P) / (2 * K)))
    check_MLA_1(lambda C, P, K: torch.tensor((C + P) / K / 2))
    check_MLA_1(lambda C, P, K: np.float32(C + P) / np.float32(2 * K))
    check_MLA_1(lambda C, P, K: Fraction(C + P, 2 * K))
    for kind in (torch.float16, torch.bfloat16):
        check_MLA_1(lambda C, P, K, kind=kind: torch.tensor((C + P) / (2 * K)).to(kind))
    check_MLA_1(lambda C, P, K: np.float16((C + P) / (2 * K)))
    with pytest.raises(WrongAnswer, match="not right for"):
        check_MLA_1(lambda C, P, K: torch.tensor((C + P) / K / 2 + 0.3).bfloat16())


# --- MLA.2 ---------------------------------------------------------------------------


def absorb_output(W_value, W_out, num_heads):
    values = W_value.unflatten(0, (num_heads, -1))  # (H, K, C)
    outs = W_out.unflatten(1, (num_heads, -1)).transpose(0, 1)  # (H, D, K)
    return outs @ values


def by_loop(W_value, W_out, num_heads):
    K = W_value.shape[0] // num_heads
    own = [slice(h * K, (h + 1) * K) for h in range(num_heads)]
    return torch.stack([W_out[:, rows] @ W_value[rows] for rows in own])


def dealt(W_value, W_out, H, value=True, out=True):
    K = W_value.shape[0] // H
    rows = torch.arange(H * K).view(K, H).T.flatten()
    return absorb_output(
        W_value[rows] if value else W_value, W_out[:, rows] if out else W_out, H
    )


def in_place(W_value, W_out, num_heads):
    answer = absorb_output(W_value, W_out, num_heads)
    W_value *= 2
    return answer


WRONG_MLA_2 = {
    "one matrix": (lambda v, o, H: o @ v, "one matrix for all heads together"),
    "turned": (
        lambda v, o, H: absorb_output(v, o, H).transpose(1, 2),
        "each matrix is turned",
    ),
    "heads in the middle": (
        lambda v, o, H: absorb_output(v, o, H).transpose(0, 1),
        "stands in the middle",
    ),
    "columns in turn": (
        lambda v, o, H: dealt(v, o, H, value=False),
        "columns of W_out are dealt",
    ),
    "rows in turn": (lambda v, o, H: dealt(v, o, H, out=False), "rows of W_value are"),
    "both in turn": (dealt, "both weights are dealt"),
    "opposite order": (
        lambda v, o, H: absorb_output(v, o.unflatten(1, (H, -1)).flip(1).flatten(1), H),
        "do not belong together",
    ),
    "whole product": (
        lambda v, o, H: (o @ v).expand(H, -1, -1),
        "stands for every head",
    ),
    "mean": (
        lambda v, o, H: absorb_output(v, o, H) * H / len(v),
        "the mean over the numbers",
    ),
    "rows of W_out": (
        lambda v, o, H: o.reshape(H, len(o), -1) @ v.unflatten(0, (H, -1)),
        "cut by its rows",
    ),
    "heads below": (
        lambda v, o, H: absorb_output(v, o, H).flatten(0, 1),
        "an axis of their own",
    ),
    "one head": (
        lambda v, o, H: absorb_output(v, o, H)[:1].expand(H, -1, -1),
        "one head's matrix, repeated",
    ),
    "mean of heads": (
        lambda v, o, H: absorb_output(v, o, H).mean(0).expand(H, -1, -1),
        "the mean over the heads",
    ),
    "changed": (in_place, "have changed"),
    "words": (lambda v, o, H: "three", "where a tensor is asked for"),
}


def test_MLA_2():
    verify(check_MLA_2, absorb_output, stub, WRONG_MLA_2)
    check_MLA_2(by_loop)
    check_MLA_2(lambda v, o, H: absorb_output(v, o, H).numpy())
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        check_MLA_2(lambda v, o, H, t=dtype: absorb_output(v.to(t), o.to(t), H))
    check_MLA_2(
        lambda v, o, H: torch.einsum(
            "dhk,hkc->hdc", o.view(len(o), H, -1), v.view(H, -1, v.shape[1])
        )
    )


# --- MLA.3 ---------------------------------------------------------------------------


def factorise(W_key, W_value, latent_dim):
    both = torch.cat((W_key, W_value))
    left, sizes, right = torch.linalg.svd(both, full_matrices=False)
    key_up, value_up = (left * sizes)[:, :latent_dim].split(len(W_key))
    return right[:latent_dim], key_up, value_up


def by_eigenvectors(W_key, W_value, latent_dim):
    """Another way: where the rows of both reach furthest; a list, float32."""
    both = torch.cat((W_key, W_value))
    down = torch.linalg.eigh(both.T @ both).eigenvectors[:, -latent_dim:].T
    up = both @ down.T
    return [part.float() for part in (down, *up.split(len(W_key)))]


def mixed(W_key, W_value, latent_dim):
    """The same latent in other coordinates: any invertible matrix may stand between."""
    down, *ups = factorise(W_key, W_value, latent_dim)
    mix = torch.eye(latent_dim).double() + 0.1
    return torch.linalg.inv(mix) @ down, *(up @ mix for up in ups)


def with_sizes(power):
    def answer(W_key, W_value, latent_dim):
        both = torch.cat((W_key, W_value))
        left, sizes, right = torch.linalg.svd(both, full_matrices=False)
        key_up, value_up = (left * sizes**power)[:, :latent_dim].split(len(W_key))
        return right[:latent_dim], key_up, value_up

    return answer


def smallest(W_key, W_value, latent_dim):
    both = torch.cat((W_key, W_value))
    left, sizes, right = torch.linalg.svd(both, full_matrices=False)
    key_up, value_up = (left * sizes)[:, -latent_dim:].split(len(W_key))
    return right[-latent_dim:], key_up, value_up


def best_for(which):
    def answer(W_key, W_value, latent_dim):
        chosen = (W_key, W_value)[which]
        down = torch.linalg.svd(chosen, full_matrices=False)[2][:latent_dim]
        down = torch.nn.functional.pad(down, (0, 0, 0, latent_dim - len(down)))
        return down, W_key @ down.T, W_value @ down.T

    return answer


def halves(W_key, W_value, latent_dim):
    half = max(1, latent_dim // 2)
    own = latent_dim - half

    def best(matrix, rank):
        left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
        return (left * sizes)[:, :rank], right[:rank]

    def padded(part, before, after):
        return torch.nn.functional.pad(part, (before, after))

    (key_up, key_down), (value_up, value_down) = best(W_key, own), best(W_value, half)
    down = torch.cat((key_down, value_down))
    return down, padded(key_up, 0, half), padded(value_up, own, 0)


def exchanged(W_key, W_value, latent_dim):
    down, key_up, value_up = factorise(W_key, W_value, latent_dim)
    return down, value_up, key_up


def first_rows(W_key, W_value, latent_dim):
    down = torch.eye(W_key.shape[1]).double()[:latent_dim]
    return down, W_key @ down.T, W_value @ down.T


def turned(W_key, W_value, latent_dim):
    down, *ups = factorise(W_key, W_value, latent_dim)
    return down.T, *ups


def columns(W_key, W_value, latent_dim):
    """Vh taken for V."""
    both = torch.cat((W_key, W_value))
    left, sizes, right = torch.linalg.svd(both, full_matrices=False)
    up = (left * sizes)[:, :latent_dim]
    return right[:, :latent_dim].T, *up.split(len(W_key))


WRONG_MLA_3 = {
    "columns": (columns, "its *rows* belong"),
    "no sizes": (with_sizes(0), "singular values are left out"),
    "sizes twice": (with_sizes(2), "they count twice"),
    "smallest": (smallest, "the smallest singular values"),
    "for keys": (best_for(0), "the best one for the keys alone"),
    "for values": (best_for(1), "the best one for the values alone"),
    "halves": (halves, "a half of the latent"),
    "exchanged": (exchanged, "in one another's place"),
    "first rows": (first_rows, "the squared differences add up to"),
    "turned": (turned, "W_latent for latent_dim=2"),
    "two": (lambda *of: factorise(*of)[:2], "not three matrices"),
}


def test_MLA_3():
    verify(check_MLA_3, factorise, stub, WRONG_MLA_3)
    check_MLA_3(by_eigenvectors)
    check_MLA_3(mixed)
    check_MLA_3(lambda *of: [part.numpy() for part in factorise(*of)])
    check_MLA_3(lambda *of: [part.bfloat16() for part in factorise(*of)])
