"""Every exercise check takes the solution, knows the stub and names mistakes."""

import math

import numpy as np
import torch

from course.exercises import answer, verify
from llama import rope_frequencies
from olmo3 import olmo3_windows
from olmo3_checks import check_5_131, check_5_132, check_5_133, check_5_134


def stub(*arguments):
    return ...


# --- 5.131 ----------------------------------------------------------------------------


def cache_bytes(cfg, tokens):
    kept = sum(min(tokens, window or tokens) for window in olmo3_windows(cfg))
    return 4 * kept * cfg["n_kv_groups"] * cfg["head_dim"]


def test_exercise_5_131_what_the_windows_save():
    def counted(full, rest):
        """Tokens of all blocks, by how a full one and another one count them."""

        def attempt(cfg, tokens):
            kept = sum(
                full(tokens, cfg) if window is None else rest(tokens, cfg)
                for window in olmo3_windows(cfg)
            )
            return 4 * kept * cfg["n_kv_groups"] * cfg["head_dim"]

        return attempt

    def shorter(tokens, cfg):
        return min(tokens, cfg["window"] or 0)

    def whole(tokens, cfg):
        return tokens

    def query_heads(cfg, tokens):
        return cache_bytes({**cfg, "n_kv_groups": cfg["n_heads"]}, tokens)

    def vectors(cfg, tokens):
        sizes = {"n_kv_groups": 1, "head_dim": cfg["emb_dim"]}
        return cache_bytes({**cfg, **sizes}, tokens)

    def rounded_up(cfg, tokens):
        if not cfg["full_every"]:
            return cache_bytes(cfg, tokens)
        full = math.ceil(cfg["n_layers"] / cfg["full_every"])
        kept = full * tokens + (cfg["n_layers"] - full) * shorter(tokens, cfg)
        return 4 * kept * cfg["n_kv_groups"] * cfg["head_dim"]

    wrong = {
        "no windows": (counted(whole, whole), "that is without windows"),
        "keys alone": (lambda cfg, n: cache_bytes(cfg, n) / 2, "keys AND values"),
        "a quarter": (lambda cfg, n: cache_bytes(cfg, n) / 4, "keys alone, one byte"),
        "float32": (lambda cfg, n: 2 * cache_bytes(cfg, n), "two bytes, not four"),
        "query heads": (query_heads, "the query heads are not kept"),
        "vectors": (vectors, "not token vectors"),
        "exchanged": (counted(shorter, whole), "the kinds are exchanged"),
        "never shorter": (
            counted(whole, lambda n, cfg: cfg["window"]),
            "fills only a part of it",
        ),
        "rounded up": (rounded_up, "a round that is not finished"),
        "windows alone": (counted(shorter, shorter), "some blocks keep more"),
        "one more": (
            counted(whole, lambda n, cfg: shorter(n, cfg) + 1),
            "not right for one of the models",
        ),
    }
    verify(check_5_131, cache_bytes, stub, wrong)
    for right in (
        lambda cfg, n: float(cache_bytes(cfg, n)),
        lambda cfg, n: np.int64(cache_bytes(cfg, n)),
        lambda cfg, n: torch.tensor(cache_bytes(cfg, n)),
    ):
        assert "correct" in answer(check_5_131, right)


# --- 5.132 ----------------------------------------------------------------------------


def first_slow_pair(head_dim, base, context):
    turns = context * rope_frequencies(head_dim, base, None) / (2 * math.pi)
    return int((turns >= 1).sum())


def test_exercise_5_132_not_once_round():
    def with_turn(radians):
        def attempt(head_dim, base, context):
            turns = context * rope_frequencies(head_dim, base, None) / radians
            return (turns >= 1).sum()

        return attempt

    def every_number(head_dim, base, context):
        waves = [2 * math.pi * base ** (i / head_dim) for i in range(head_dim // 2)]
        return sum(wave <= context for wave in waves)

    def last(head_dim, base, context):
        return first_slow_pair(head_dim, base, context) - 1

    def from_one(head_dim, base, context):
        return first_slow_pair(head_dim, base, context) + 1

    def numbers(head_dim, base, context):
        return 2 * first_slow_pair(head_dim, base, context)

    def others(head_dim, base, context):
        return head_dim // 2 - first_slow_pair(head_dim, base, context)

    def none_found(head_dim, base, context):
        waves = 2 * math.pi / rope_frequencies(head_dim, base, None).numpy()
        return np.argmax(waves > context)

    wrong = {
        "radian": (with_turn(1.0), "one radian is no turn"),
        "half": (with_turn(math.pi), "that is half a turn"),
        "i / K": (every_number, "turns by base ** (-2 i / K)"),
        "last": (last, "the last pair that turns once"),
        "from one": (from_one, "are counted from 0"),
        "numbers": (numbers, "each of two numbers"),
        "others": (others, "pairs that do not turn once"),
        "all": (lambda K, base, context: K // 2, "some pairs do not"),
        "none found": (none_found, "if all pairs turn once"),
        "a tenth": (
            lambda K, base, context: first_slow_pair(K, base, context / 10),
            "not right for",
        ),
    }
    verify(check_5_132, first_slow_pair, stub, wrong)

    def by_logarithm(K, base, context):
        turning = K * math.log(context / (2 * math.pi)) / (2 * math.log(base))
        return min(max(math.floor(turning) + 1, 0), K // 2)

    assert "correct" in answer(check_5_132, by_logarithm)
    assert first_slow_pair(128, 500_000.0, 8_192) == 35


# --- 5.133 ----------------------------------------------------------------------------


def largest_score(cfg):
    return (cfg["n_heads"] * cfg["n_kv_groups"] * cfg["head_dim"]) ** 0.5


def test_exercise_5_133_the_largest_score():
    def of(formula):
        return lambda cfg: formula(cfg["n_heads"], cfg["n_kv_groups"], cfg["head_dim"])

    wrong = {
        "each head": (of(lambda H, G, K: K**0.5), "a norm in each head"),
        "no groups": (of(lambda H, G, K: H * K**0.5), "keys of a token are G K"),
        "groups": (of(lambda H, G, K: G * K**0.5), "queries of a token are H K"),
        "no division": (of(lambda H, G, K: K * (H * G) ** 0.5), "is divided by"),
        "length one": (of(lambda H, G, K: K**-0.5), "a mean square of 1 is a length"),
        "square": (of(lambda H, G, K: H * G * K), "that is its square"),
        "nearly": (of(lambda H, G, K: 1.01 * (H * G * K) ** 0.5), "not right for H"),
    }
    verify(check_5_133, largest_score, stub, wrong)
    for right in (
        of(lambda H, G, K: torch.tensor(float(H * G * K)).sqrt()),
        of(lambda H, G, K: np.sqrt(np.float32(H * G * K))),
        of(lambda H, G, K: torch.tensor(float(H * G * K)).sqrt().bfloat16()),
        of(lambda H, G, K: torch.tensor(float(H * G * K)).sqrt().half()),
    ):
        assert "correct" in answer(check_5_133, right)


def test_the_largest_score_is_reached_and_not_exceeded():
    torch.manual_seed(0)
    H, G, K = 6, 2, 4
    bound = largest_score({"n_heads": H, "n_kv_groups": G, "head_dim": K})
    queries, keys = torch.randn(5000, H, K), torch.randn(5000, G, K)
    queries[::2, 1:] *= 0.01  # nearly all in one head
    keys[::2, 1:] *= 0.01
    for all_heads in (queries, keys):
        all_heads /= all_heads.square().mean(dim=(1, 2), keepdim=True).sqrt()
    scores = (queries[:, 0] * keys[:, 0]).sum(dim=-1) / K**0.5
    assert 0.9 * bound < scores.abs().max() <= bound * 1.001


# --- 5.134 ----------------------------------------------------------------------------


def for_each_kind(settings):
    plain = {"rope_type": "default", "rope_theta": settings["rope_theta"]}
    return {
        "sliding_attention": plain,
        "full_attention": {**plain, **(settings["rope_scaling"] or {})},
    }


def test_exercise_5_134_a_rotation_for_each_kind():
    def everywhere(settings):
        full = for_each_kind(settings)["full_attention"]
        return {"sliding_attention": full, "full_attention": full}

    def nowhere(settings):
        return for_each_kind({**settings, "rope_scaling": None})

    def exchanged(settings):
        found = for_each_kind(settings)
        return dict(zip(found, reversed(found.values()), strict=True))

    def without_base(settings):
        found = for_each_kind(settings)
        found["full_attention"].pop("rope_theta")
        return found

    def without_type(settings):
        found = for_each_kind(settings)
        found["sliding_attention"].pop("rope_type")
        return found

    def without_beta(settings):
        found = for_each_kind(settings)
        found["full_attention"].pop("beta_slow", None)
        return found

    def in_place(settings):
        found = for_each_kind(settings)
        settings["rope_parameters"] = found
        return found

    def slowed(settings):
        return for_each_kind({**settings, "rope_theta": settings["rope_theta"] / 8})

    def other_order(settings):
        found = for_each_kind(settings)
        found["full_attention"]["rope_type"] = "default"
        return found

    def half_stretched(settings):
        found = for_each_kind(settings)
        found["sliding_attention"]["factor"] = 1.0
        return found

    wrong = {
        "slowed": (slowed, "was given"),
        "other order": (other_order, "are of the type 'default'"),
        "half": (half_stretched, "a rotation that nobody stretches"),
        "everywhere": (everywhere, "of blocks with a window is not stretched"),
        "nowhere": (nowhere, "everything are not stretched"),
        "no base": (without_base, "lacks its base"),
        "no beta": (without_beta, "the full blocks lack 'beta_slow'"),
        "in place": (in_place, "that were given are changed"),
        "other names": (
            lambda settings: {"local": {}, "global": {}},
            "the kinds are called",
        ),
        "a list": (lambda s: list(for_each_kind(s).values()), "give a dict"),
    }
    verify(check_5_134, for_each_kind, stub, wrong)
    assert "window is not stretched" in answer(check_5_134, exchanged)
    assert "has the type 'default'" in answer(check_5_134, without_type)
    assert "correct" in answer(
        check_5_134,
        lambda s: {
            "full_attention": {"rope_type": "default"}
            | {"rope_theta": s["rope_theta"]}
            | (s["rope_scaling"] or {}),
            "sliding_attention": dict(rope_theta=s["rope_theta"], rope_type="default"),
        },
    )
