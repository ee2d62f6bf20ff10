"""The checks of the exercises in the two notebooks on Qwen3; see `course.exercises`."""

import itertools
import math
import unicodedata

import torch

from course.exercises import (
    as_tensor,
    call,
    check,
    expect,
    expect_close,
    expect_no_slip,
    expect_number,
    expect_result,
    random_tensor,
)
from llama import LLAMA32_1B
from qwen3 import QWEN3_0_6B, QWEN3_8B, QWEN3_30B_A3B

# --- 5.111 How many tokens fit? ------------------------------------------------------


@check("5.111")
def check_5_111(attempt):
    odd = {**QWEN3_0_6B, "n_layers": 3, "n_kv_groups": 5, "head_dim": 6, "n_heads": 15}
    cases = [
        (odd, 7_001),
        (QWEN3_0_6B, 8 * 2**30),
        (QWEN3_8B, 10**9),
        (QWEN3_30B_A3B, 123_456_789),
        (LLAMA32_1B, 10**9),
        (QWEN3_8B, 1000),
    ]
    for cfg, num_bytes in cases:
        found = expect_number(call(attempt, cfg, num_bytes))
        L, H, D = cfg["n_layers"], cfg["n_heads"], cfg["emb_dim"]
        G, K = cfg["n_kv_groups"], cfg["head_dim"]
        right = num_bytes // (4 * L * G * K)
        slips = {
            "a factor of 2 is missing: keys and values, two bytes for each number": (
                num_bytes // (2 * L * G * K)
            ),
            "a factor of 4 is missing: keys and values, two bytes for each number": (
                num_bytes // (L * G * K)
            ),
            "the query heads are not kept; count the key/value heads": (
                num_bytes // (4 * L * H * K)
            ),
            "every block has a cache of its own": num_bytes // (4 * G * K),
            "the width of a head is a size of its own, not D / H": (
                num_bytes // (4 * L * G * (D // H))
            ),
            "a cache keeps heads, not token vectors": num_bytes // (4 * L * D),
            "a token that only fits in part does not fit: round down": (
                math.ceil(num_bytes / (4 * L * G * K))
            ),
        }
        expect_no_slip(found, right, slips)
        expect(found == int(found), "the result is no whole number")
        expect_close(found, right, "not right for one of the models", atol=0)
    return "It is right for six caches, one of which has room for no token."


# --- 5.112 The largest score ---------------------------------------------------------


@check("5.112")
def check_5_112(attempt):
    for seed, K in enumerate((2, 6, 16, 64)):
        ours, theirs = random_tensor(K, seed=seed), random_tensor(K, seed=9 + seed)
        if seed == 1:  # all products below zero
            ours, theirs = ours.abs(), -theirs.abs()
        found = expect_number(call(attempt, ours.clone(), theirs.clone()))
        both = (ours * theirs).abs()
        right = K**0.5 * both.max().item()
        slips = {
            "a query's number and a key's may have unlike signs, so a factor below "
            "zero counts by its size": K**0.5 * (ours * theirs).max().item(),
            "the largest factor of the queries and that of the keys stand in different "
            "places": K**0.5 * (ours.abs().max() * theirs.abs().max()).item(),
            "the score is divided by the square root of K": K * both.max().item(),
            "the division by the square root of K leaves more than this: both vectors "
            "have the length sqrt(K)": both.max().item(),
            "the length can stand in one place; a sum over all places is smaller": (
                both.sum().item() / K**0.5
            ),
            "these are the lengths of the factors; put all of a query into one place": (
                (ours.norm() * theirs.norm()).item() / K**0.5
            ),
        }
        expect_no_slip(found, right, slips)
        expect_close(found, right, f"not right for K = {K}", atol=1e-4 * (1 + right))
    return "No query and no key exceeds it, and one pair reaches it."


# --- 5.113 Normal form, piece by piece -----------------------------------------------

_END, _LONGER = "<|a|>", "<|a|>e"
_STROKE, _ACUTE = "\u0338", "\u0301"
_CASES = [
    (f"caf\u00e9 au lait, cafe{_ACUTE}", [_END], "caf\u00e9 au lait, caf\u00e9"),
    (f"{_END}{_STROKE}", [_END], f"{_END}{_STROKE}"),
    (f"e{_ACUTE}{_END}e{_ACUTE}{_END}", [_END], f"\u00e9{_END}\u00e9{_END}"),
    (f"x{_LONGER}{_ACUTE}", [_END, _LONGER], f"x{_LONGER}{_ACUTE}"),
    (f"{_END}{_STROKE} e{_ACUTE}", [], "<|a|\u226f \u00e9"),
    ("", [_END], ""),
    (f"{_END}x{_END}{_STROKE}", [_END], f"{_END}x{_END}{_STROKE}"),
    (f"a{_ACUTE} <{_STROKE}", [_END], "\u00e1 \u226e"),
    (f" \u00c9 E{_ACUTE}\n", [_END], " \u00c9 \u00c9\n"),
    ("\u1112\u1161\u11ab a|b", ["<s>", _END], "\ud55c a|b"),
    ("\ufb01 \u2460", [_END], "\ufb01 \u2460"),
]


@check("5.113")
def check_5_113(attempt):
    for text, special, right in _CASES:
        found = call(attempt, text, list(special))
        expect(isinstance(found, str), "the result is no text; join the pieces")
        at_once, compatible, apart = (
            unicodedata.normalize(form, text) for form in ("NFC", "NFKC", "NFD")
        )
        slips = [
            (
                at_once,
                "of two special tokens that begin alike, the longer must be cut out "
                "first"
                if len(special) > 1
                else "a special token has become part of another character; cut it "
                "out before the normal form",
            ),
            (text, "the text comes back as it was, accents on their own"),
            (compatible, "this is NFKC, which also replaces signs that look related"),
            (apart, "this is NFD, which takes letters apart"),
        ]
        for outcome, message in slips:
            expect(found != outcome or found == right, message)
        kept = all(found.count(token) >= right.count(token) for token in special)
        expect(kept, "a special token is lost; join the pieces with what lay between")
        expect(found == right, f"not right for {text!a}")
    return "Special tokens stay, also where one begins like another."


# --- 5.114 Bytes of a step -----------------------------------------------------------


@check("5.114")
def check_5_114(attempt):
    cases = [
        ([0.5, 0.3, 0.9, 0.2, 0.1], 7, 3),
        ([0.25, 0.75], 9_437_184, 32),
        ([1.0, 0.0, 0.6, 0.4], 5, 4),
        ([8 / 128] * 128, 3, 20),
    ]
    for chances, size, N in cases:
        found = expect_number(call(attempt, list(chances), size, N))
        E, A = len(chances), sum(chances)
        unused = [(1 - chance) ** N for chance in chances]
        right = size * (E - sum(unused))
        slips = {
            "the chances differ, and a favourite is in use soon: give each expert its "
            "own": E * size * (1 - (1 - A / E) ** N),
            "tokens share experts, and a shared one is read once": N * A * size,
            "this is what is NOT read": size * sum(unused),
            "these are experts; multiply by their bytes": right / size,
            "this is the mean of the experts; add them up": right / E,
            "every expert would be read": E * size,
            "that is what one token reads": A * size,
            "this asks whether any expert is in use; add up what each one reads": (
                size * (1 - math.prod(unused))
            ),
        }
        expect_no_slip(found, right, slips, atol=1e-9 * right)
        message = f"not right for {E} experts and {N} tokens"
        expect_close(found, right, message, atol=1e-6 * right)
    return "A favourite is read once, however many tokens it has."


# --- 5.115 Experts taken apart -------------------------------------------------------


@check("5.115")
def check_5_115(attempt):
    for E, F, D in ((3, 2, 5), (1, 4, 4), (4, 3, 6)):
        both = random_tensor(E, 2 * F, D, seed=E)
        down = random_tensor(E, D, F, seed=9 + E)
        found = call(attempt, both.clone(), down.clone())
        expect(isinstance(found, dict), "the result is no dictionary of names")
        names = {
            f"experts.{e}.{part}_proj.weight"
            for e, part in itertools.product(range(E), ("gate", "up", "down"))
        }
        strange = sorted(str(name) for name in set(found) - names)
        shown = strange[0] if strange else ""
        expect(not strange, f"there is no tensor of the name {shown!r}")
        expect(len(found) == len(names), f"{len(found)} names for {E} experts")
        for e in range(E):
            right = {
                "gate": both[e, :F],
                "up": both[e, F:],
                "down": down[e],
            }
            for part, expected in right.items():
                _judge_part(found, e, part, expected, right, both[e])
    return "Three tensors for each expert, under the names of the files."


def _judge_part(found, e, part, expected, right, both):
    tensor = as_tensor(found[f"experts.{e}.{part}_proj.weight"])
    expect(isinstance(tensor, torch.Tensor), f"the {part} of an expert is no tensor")
    turned = tensor.shape == expected.T.shape and torch.allclose(
        tensor.double(), expected.T, atol=1e-3
    )
    expect(not turned, f"the {part} is transposed; take it as it stands")
    expect(
        tensor.shape == expected.shape,
        f"the {part} of an expert has shape {tuple(tensor.shape)}: cut the rows of the "
        "joined tensor in two halves",
    )
    name = "up" if part == "gate" else "gate"
    other, theirs = right[name], as_tensor(found[f"experts.{e}.{name}_proj.weight"])
    both_ways = (
        isinstance(theirs, torch.Tensor)
        and theirs.shape == expected.shape
        and torch.allclose(theirs.double(), expected, atol=1e-3)
    )
    slips = {
        "gate and up are exchanged: each gate stands above its up"
        if both_ways
        else f"the {part} of an expert is its {name}": other,
        "gate and up do not take turns row by row": both[int(part == "up") :: 2],
    }
    if part == "down":
        slips = {}
    expect_result(tensor, expected, slips, f"the {part} of an expert is another")
