"""Every exercise check takes the solution, knows the stub and names mistakes."""

import math

import numpy as np
import torch
from torch.nn import functional as F

from course.exercises import verify
from gguf_weights import Q4_1_BLOCK
from gpt_to_llama_checks import (
    check_L_1,
    check_L_2,
    check_L_3,
    check_L_4,
    check_L_5,
    check_L_6,
    check_L_7,
)


def stub(*arguments, **keywords):
    """A function of which only the docstring is there."""
    return ...


# --- L.1 -----------------------------------------------------------------------------


def rms_norm(x, scale, eps):
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean_square = wide.square().mean(dim=-1, keepdim=True)
    return (scale * wide * torch.rsqrt(mean_square + eps)).to(x.dtype)


def of_layer_norm(x, scale, eps):
    return scale * F.layer_norm(x, x.shape[-1:], eps=eps)


def eps_outside(x, scale, eps):
    return scale * x / (x.square().mean(dim=-1, keepdim=True).sqrt() + eps)


def no_eps(x, scale, eps):
    return scale * x / x.square().mean(dim=-1, keepdim=True).sqrt()


def no_scale(x, scale, eps):
    return rms_norm(x, torch.ones_like(scale), eps)


def of_the_sum(x, scale, eps):
    return scale * x / (x.square().sum(dim=-1, keepdim=True) + eps).sqrt()


def no_root(x, scale, eps):
    return scale * x / (x.square().mean(dim=-1, keepdim=True) + eps)


def over_everything(x, scale, eps):
    return scale * x / (x.square().mean() + eps).sqrt()


def always_float32(x, scale, eps):
    return rms_norm(x.float(), scale.float(), eps)


def in_its_own_dtype(x, scale, eps):
    return scale * x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)


WRONG_L_1 = {
    "mean subtracted": (of_layer_norm, "as in layer normalisation"),
    "eps outside": (eps_outside, "after the root"),
    "no eps": (no_eps, "eps is missing"),
    "no scale": (no_scale, "the scale is missing"),
    "sum": (of_the_sum, "a mean is asked for"),
    "no root": (no_root, "the root is missing"),
    "over everything": (over_everything, "other dimensions"),
    "float32": (always_float32, "not torch.float64 as x is"),
    "bfloat16": (in_its_own_dtype, "of the bfloat16 numbers only"),
}


def test_L_1():
    verify(check_L_1, rms_norm, stub, WRONG_L_1)


# --- L.2 -----------------------------------------------------------------------------


def score(q, k, distance, frequencies):
    angles = distance * frequencies
    a, b = q.chunk(2)
    first = a * angles.cos() - b * angles.sin()
    second = b * angles.cos() + a * angles.sin()
    return torch.cat((first, second)) @ k


def neighbours(q, k, distance, frequencies):
    order = torch.arange(len(q)).unflatten(0, (-1, 2)).T.flatten()
    return score(q[order], k[order], distance, frequencies)


WRONG_L_2 = {
    "backwards": (lambda q, k, d, f: score(q, k, -d, f), "the other way round"),
    "neighbours": (neighbours, "halves are asked for"),
    "not at all": (lambda q, k, d, f: q @ k, "which is no distance"),
    "one step": (lambda q, k, d, f: score(q, k, 1, f), "one token's angle"),
    "scaled": (
        lambda q, k, d, f: score(q, k, d, f) / math.sqrt(len(q)),
        "divided by the root of K",
    ),
}


def test_L_2():
    verify(check_L_2, score, stub, WRONG_L_2)


def test_L_2_takes_the_other_way_too():
    """Turning the key back is turning the query on."""
    check_L_2(lambda q, k, d, f: score(k, q, -d, f))


# --- L.3 -----------------------------------------------------------------------------


def cache_bytes(cfg, tokens, bytes_per_number):
    numbers = 2 * cfg["n_layers"] * cfg["n_kv_groups"] * cfg["head_dim"]
    return numbers * tokens * bytes_per_number


def times(how):
    return lambda cfg, tokens, size: how(
        cfg, tokens, size, cache_bytes(cfg, tokens, size)
    )


WRONG_L_3 = {
    "all heads": (
        times(lambda c, t, s, right: right // c["n_kv_groups"] * c["n_heads"]),
        "a head for each query",
    ),
    "keys alone": (
        times(lambda c, t, s, right: right // 2),
        "keys or values, not both",
    ),
    "one block": (times(lambda c, t, s, right: right // c["n_layers"]), "one block"),
    "width": (
        times(
            lambda c, t, s, right: (
                right // c["head_dim"] * (c["emb_dim"] // c["n_heads"])
            )
        ),
        "D / H",
    ),
    "numbers": (times(lambda c, t, s, right: right // s), "numbers, not bytes"),
    "one token": (times(lambda c, t, s, right: right // t), "counts one token"),
}


def test_L_3():
    verify(check_L_3, cache_bytes, stub, WRONG_L_3)


# --- L.4 -----------------------------------------------------------------------------


def marks_of(numbers, top=15, rounded=np.round):
    low, high = numbers.min(axis=1, keepdims=True), numbers.max(axis=1, keepdims=True)
    scale = (high - low) / top
    levels = rounded((numbers - low) / np.where(scale > 0, scale, 1))
    return low[:, 0], scale[:, 0], levels.clip(0, 15).astype(np.uint8)


def packed(minimum, scale, low, high):
    blocks = np.zeros(len(minimum), Q4_1_BLOCK)
    blocks["minimum"], blocks["scale"], blocks["levels"] = (
        minimum,
        scale,
        low | high << 4,
    )
    return blocks.view(np.uint8).reshape(-1, 20)


def quantise_q4_1(numbers, **how):
    minimum, scale, levels = marks_of(numbers, **how)
    return packed(minimum, scale, levels[:, :16], levels[:, 16:])


def in_pairs(numbers):
    minimum, scale, levels = marks_of(numbers)
    return packed(minimum, scale, levels[:, 0::2], levels[:, 1::2])


def exchanged(numbers):
    minimum, scale, levels = marks_of(numbers)
    return packed(minimum, scale, levels[:, 16:], levels[:, :16])


def zero_to_fourteen(numbers):
    minimum, scale, levels = marks_of(numbers)
    return packed(minimum, scale, *np.split(levels.clip(0, 14), 2, axis=1))


def not_a_number(numbers):
    with np.errstate(invalid="ignore"):
        low = numbers.min(axis=1, keepdims=True)
        scale = (numbers.max(axis=1, keepdims=True) - low) / 15
        levels = np.nan_to_num(np.round((numbers - low) / scale), nan=7).astype(
            np.uint8
        )
        scale = np.where(scale == 0, 1, scale)
    return packed(low[:, 0], scale[:, 0], levels[:, :16], levels[:, 16:])


WRONG_L_4 = {
    "neighbours": (in_pairs, "i and i + 16"),
    "exchanged": (exchanged, "halves of a byte are exchanged"),
    "cut off": (lambda n: quantise_q4_1(n, rounded=np.floor), "cut off"),
    "16 steps": (lambda n: quantise_q4_1(n, top=16), "15 steps"),
    "top mark unused": (zero_to_fourteen, "more than half a step"),
    "records": (lambda n: quantise_q4_1(n).view(Q4_1_BLOCK), "uint8 is asked for"),
    "flat": (lambda n: quantise_q4_1(n).ravel(), r"not (50, 20)"),
    "equal numbers": (not_a_number, "equal numbers do not come back"),
}


def test_L_4():
    verify(check_L_4, quantise_q4_1, stub, WRONG_L_4)


# --- L.5 -----------------------------------------------------------------------------


def bits_per_weight(file):
    weights = sum(math.prod(tensor.shape) for tensor in file.tensors.values())
    return 8 * sum(tensor.nbytes for tensor in file.tensors.values()) / weights


def over_tensors(file):
    each = [8 * t.nbytes / math.prod(t.shape) for t in file.tensors.values()]
    return sum(each) / len(each)


def over_rows(file):
    rows = sum(t.shape[0] for t in file.tensors.values())
    return 8 * sum(t.nbytes for t in file.tensors.values()) / rows


WRONG_L_5 = {
    "bytes": (lambda file: bits_per_weight(file) / 8, "in bytes"),
    "over tensors": (over_tensors, "mean over the tensors"),
    "over rows": (over_rows, "counts rows"),
}


def test_L_5():
    verify(check_L_5, bits_per_weight, stub, WRONG_L_5)


# --- L.6 -----------------------------------------------------------------------------


def merge_heads(weight, num_heads, num_kv_groups):
    groups = weight.view(num_kv_groups, num_heads // num_kv_groups, -1, weight.shape[1])
    return groups.mean(dim=1).flatten(0, 1)


def added(weight, num_heads, num_kv_groups):
    return merge_heads(weight, num_heads, num_kv_groups) * (num_heads // num_kv_groups)


def first_kept(weight, num_heads, num_kv_groups):
    groups = weight.view(num_kv_groups, num_heads // num_kv_groups, -1, weight.shape[1])
    return groups[:, 0].flatten(0, 1)


def every_so_many(weight, num_heads, num_kv_groups):
    groups = weight.view(num_heads // num_kv_groups, num_kv_groups, -1, weight.shape[1])
    return groups.mean(dim=0).flatten(0, 1)


def within_heads(weight, num_heads, num_kv_groups):
    return weight.view(-1, num_heads // num_kv_groups, weight.shape[1]).mean(dim=1)


WRONG_L_6 = {
    "added": (added, "added, not averaged"),
    "first kept": (first_kept, "the first head"),
    "every so many": (every_so_many, "must take neighbours"),
    "within heads": (within_heads, "within a head"),
    "still apart": (
        lambda w, H, G: merge_heads(w, H, G).view(G, -1, w.shape[1]),
        "shape",
    ),
}


def test_L_6():
    verify(check_L_6, merge_heads, stub, WRONG_L_6)


# --- L.7 -----------------------------------------------------------------------------


def follow_up(tokenizer, ids, answer, question):
    start = tokenizer.special_tokens["<|im_start|>"]
    end = tokenizer.special_tokens["<|im_end|>"]
    if not answer or answer[-1] != end:
        answer = [*answer, end]
    user = tokenizer.encode_ordinary(f"user\n{question}")
    line, opened = (
        tokenizer.encode_ordinary("\n"),
        tokenizer.encode_ordinary("assistant\n"),
    )
    return [*ids, *answer, *line, start, *user, end, *line, start, *opened]


def always_end(tokenizer, ids, answer, question):
    """A second end token where there is one already."""
    whole = follow_up(tokenizer, ids, answer, question)
    return whole[: len(ids) + len(answer)] + [2] + whole[len(ids) + len(answer) :]


def never_end(tokenizer, ids, answer, question):
    whole = follow_up(tokenizer, ids, answer, question)
    if answer[-1] == 2:
        return whole
    del whole[len(ids) + len(answer)]
    return whole


def parsed(tokenizer, ids, answer, question):
    whole = follow_up(tokenizer, ids, answer, "\0")
    at = [i for i, token in enumerate(whole) if token == 1][-2]
    user = tokenizer.encode(f"user\n{question}", allowed_special="all")
    tail = whole[whole.index(2, at) :]
    return [*whole[: at + 1], *user, *tail]


def no_line(tokenizer, ids, answer, question):
    whole = follow_up(tokenizer, ids, answer, question)
    line = tokenizer.encode_ordinary("\n")[0]
    last = len(whole) - 1 - whole[::-1].index(2)
    assert whole[last + 1] == line
    return whole[: last + 1] + whole[last + 2 :]


def not_opened(tokenizer, ids, answer, question):
    whole = follow_up(tokenizer, ids, answer, question)
    return whole[: len(whole) - 1 - whole[::-1].index(1)]


def in_pieces(tokenizer, ids, answer, question):
    whole = follow_up(tokenizer, ids, answer, "")
    at = len(whole) - 1 - whole[::-1].index(2)
    letters = [i for letter in question for i in tokenizer.encode_ordinary(letter)]
    return [*whole[:at], *letters, *whole[at:]]


def changes_its_arguments(tokenizer, ids, answer, question):
    whole = follow_up(tokenizer, ids, answer, question)
    answer.append(2)
    return whole


WRONG_L_7 = {
    "second end": (always_end, "a second one"),
    "no end": (never_end, "cut off"),
    "parsed": (parsed, "must stay text"),
    "no line": (no_line, "a line break is missing"),
    "not opened": (not_opened, "not opened"),
    "in pieces": (in_pieces, "in one piece"),
    "arguments": (changes_its_arguments, "have changed"),
    "no question": (
        lambda tokenizer, ids, answer, question: [*ids, *answer],
        "the question is not in",
    ),
}


def test_L_7():
    verify(check_L_7, follow_up, stub, WRONG_L_7)
