"""The checks of the exercises in the notebook on Olmo 3; see `course.exercises`."""

import copy
import math

from course.exercises import (
    call,
    check,
    describe,
    expect,
    expect_close,
    expect_no_slip,
    expect_number,
)
from olmo3 import OLMO2_7B, OLMO3_7B, OLMO3_32B

# --- 5.131 What the windows save -----------------------------------------------------


@check("5.131")
def check_5_131(attempt):
    odd = {**OLMO3_7B, "n_layers": 10, "window": 5, "full_every": 3}
    odd |= {"n_heads": 21, "n_kv_groups": 7, "head_dim": 6, "emb_dim": 100}
    cases = [
        (odd, 101),
        (OLMO3_7B, 65_536),
        (OLMO3_32B, 65_536),
        (OLMO3_7B, 1_001),
        (OLMO2_7B, 4_000),
        ({**odd, "full_every": None}, 101),
    ]
    for cfg, tokens in cases:
        found = expect_number(call(attempt, dict(cfg), tokens))
        L, window, every = (cfg[name] for name in ("n_layers", "window", "full_every"))
        full = L if window is None else L // every if every else 0
        window, rest = window or 0, L - full
        K, short = cfg["head_dim"], min(window, tokens)
        number = 4 * cfg["n_kv_groups"] * K  # bytes for each token and block
        rounded = math.ceil(L / every) if every else full
        right = number * (full * tokens + rest * short)
        slips = {
            "that is without windows": number * L * tokens,
            "this is half of it: a block keeps keys AND values, and a number takes two "
            "bytes": right / 2,
            "this counts keys alone, one byte each": right / 4,
            "a number takes two bytes, not four": 2 * right,
            "the query heads are not kept; count the key/value heads": (
                right // cfg["n_kv_groups"] * cfg["n_heads"]
            ),
            "a cache keeps heads, not token vectors": (
                right // (cfg["n_kv_groups"] * K) * cfg["emb_dim"]
            ),
            "the kinds are exchanged: one block of a round sees everything": (
                number * (full * short + rest * tokens)
            ),
            "a text that is shorter than a window fills only a part of it": (
                number * (full * tokens + rest * window)
            ),
            "the last block of a round sees everything; a round that is not finished "
            "has none": number * (rounded * tokens + (L - rounded) * short),
            "some blocks keep more than a window": number * L * short,
        }
        expect_no_slip(found, right, slips)
        expect_close(found, right, "not right for one of the models", atol=0)
    return "It is right for six caches, one of a text that is shorter than a window."


# --- 5.132 Not once round ------------------------------------------------------------


def _first(pairs, wavelength, context):
    """The first pair whose wavelength is larger than the context."""
    return next((i for i in range(pairs) if wavelength(i) > context), pairs)


@check("5.132")
def check_5_132(attempt):
    cases = [
        (64, 10_000.0, 90),
        (128, 500_000.0, 8_192),
        (128, 500_000.0, 65_536),
        (6, 10.0, 5),
        (16, 100.0, 10_000),
    ]
    for K, base, context in cases:
        found = expect_number(call(attempt, K, base, context))

        def wave(i, turn=2 * math.pi, K=K, base=base):
            return turn * base ** (2 * i / K)

        right = _first(K // 2, wave, context)
        slips = {
            "one radian is no turn: a turn has 2 pi of them": (
                _first(K // 2, lambda i: wave(i, 1.0), context)
            ),
            "that is half a turn": _first(K // 2, lambda i: wave(i, math.pi), context),
            "pair i turns by base ** (-2 i / K)": (
                _first(K // 2, lambda i: wave(i / 2), context)
            ),
            "that is the last pair that turns once; the next one does not": right - 1,
            "pairs are counted from 0": right + 1,
            "there are K / 2 pairs, each of two numbers": 2 * right,
        }
        if right < K // 2:
            slips["some pairs do not turn once"] = K // 2
            slips["this counts the pairs that do not turn once"] = K // 2 - right
        else:
            slips["if all pairs turn once the result is K / 2"] = 0
        expect_no_slip(found, right, slips)
        expect_close(found, right, f"not right for {(K, base, context)}", atol=0)
    return "It is right for five rotations, in one of which every pair turns."


# --- 5.133 The largest score ---------------------------------------------------------


@check("5.133")
def check_5_133(attempt):
    wide = {"n_heads": 3, "n_kv_groups": 1, "head_dim": 10}
    for cfg in (OLMO3_32B, {**OLMO3_7B, **wide}, OLMO3_7B):
        found = expect_number(call(attempt, dict(cfg)))
        H, G, K = (cfg[name] for name in ("n_heads", "n_kv_groups", "head_dim"))
        right = math.sqrt(H * G * K)
        slips = {
            "that is for a norm in each head; here one may have the length of all": (
                math.sqrt(K)
            ),
            "all keys of a token are G K numbers": H * math.sqrt(K),
            "all queries of a token are H K numbers": G * math.sqrt(K),
            "a score is divided by the square root of K": K * math.sqrt(H * G),
            "a mean square of 1 is a length of sqrt(H K), not of 1": 1 / math.sqrt(K),
            "that is its square": H * G * K,
        }
        expect_no_slip(found, right, slips, atol=1e-3)
        message = f"not right for H = {H}, G = {G}, K = {K}"
        expect_close(found, right, message, atol=4e-3 * right)  # bfloat16 is enough
    return "No score of a block with a window exceeds it."


# --- 5.134 A rotation for each kind --------------------------------------------------

_YARN = {
    "rope_type": "yarn",
    "factor": 8.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "attention_factor": 1.25,
    "original_max_position_embeddings": 8192,
}


@check("5.134")
def check_5_134(attempt):
    for base, scaling in ((500_000, _YARN), (1e4, None), (7.0, {**_YARN, "factor": 2})):
        settings = {"rope_theta": base, "rope_scaling": scaling, "hidden_size": 64}
        given = copy.deepcopy(settings)
        found = call(attempt, given)
        expect(given == settings, "the settings that were given are changed")
        expect(isinstance(found, dict), f"the result is {describe(found)}; give a dict")
        kinds = {"sliding_attention", "full_attention"}
        expect(
            found.keys() == kinds,
            "the kinds are called 'sliding_attention' and 'full_attention', as in "
            "layer_types, and nothing else is asked for",
        )
        plain = {"rope_type": "default", "rope_theta": base}
        full = {**plain, **(scaling or {})}
        windowed, wide = found["sliding_attention"], found["full_attention"]
        for rotation in (windowed, wide):
            expect(isinstance(rotation, dict), "a rotation is no dictionary")
            expect("rope_theta" in rotation, "a rotation lacks its base, 'rope_theta'")
            theta = rotation["rope_theta"]
            expect(theta == base, f"'rope_theta' is {theta!r}, and {base!r} was given")
        if scaling is not None:
            expect(
                windowed != full,
                "the rotation of blocks with a window is not stretched",
            )
            expect(wide != plain, "blocks that see everything are not stretched")
            expect(
                wide.get("rope_type") != "default",
                "the full blocks are of the type 'default'; what 'rope_scaling' says "
                "goes over that",
            )
        expect(
            windowed == plain,
            "a rotation that nobody stretches has the type 'default' and a base, and "
            "nothing else",
        )
        lacking = sorted(full.keys() - wide.keys())
        expect(not lacking, f"the full blocks lack {', '.join(map(repr, lacking))}")
        expect(wide == full, "the rotation of the full blocks has other entries")
    return (
        "It says for each kind of block how it turns, also where nothing is stretched."
    )
