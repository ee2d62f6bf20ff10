"""Every exercise check takes the solution, knows the stub and names mistakes."""

import math

import numpy as np
import torch

from course.exercises import answer, verify
from gemma3 import gemma3_windows
from gemma3_checks import (
    check_5_116,
    check_5_117,
    check_5_118,
    check_5_119,
    check_5_120,
)


def stub(*arguments):
    return ...


# --- 5.116 ----------------------------------------------------------------------------


def cache_bytes(cfg, tokens):
    width = 4 * cfg["n_kv_groups"] * cfg["head_dim"]
    return sum(width * min(tokens, w or tokens) for w in gemma3_windows(cfg))


def test_exercise_5_116_bytes_of_a_cache():
    def changed(**changes):
        return lambda cfg, n: cache_bytes(
            {
                **cfg,
                **{k: cfg[v] if isinstance(v, str) else v for k, v in changes.items()},
            },
            n,
        )

    def with_windows(kept):
        def attempt(cfg, n):
            width = 4 * cfg["n_kv_groups"] * cfg["head_dim"]
            return sum(width * kept(w, n, cfg["window"]) for w in gemma3_windows(cfg))

        return attempt

    def rounded_up(cfg, n):
        far = math.ceil(cfg["n_layers"] / cfg["full_every"])
        width = 4 * cfg["n_kv_groups"] * cfg["head_dim"]
        return width * ((cfg["n_layers"] - far) * min(n, cfg["window"]) + far * n)

    def by_share(cfg, n):
        far = cfg["n_layers"] / cfg["full_every"]
        near = cfg["n_layers"] - far
        width = 4 * cfg["n_kv_groups"] * cfg["head_dim"]
        return width * (near * min(n, cfg["window"]) + far * n)

    wrong = {
        "all global": (changed(full_every=1), "no more than a window"),
        "always W": (with_windows(lambda w, n, W: w or n), "fills only a part"),
        "all local": (with_windows(lambda w, n, W: min(n, W)), "keep every token"),
        "exchanged": (
            with_windows(lambda w, n, W: n if w else min(n, W)),
            "are exchanged",
        ),
        "keys": (lambda cfg, n: cache_bytes(cfg, n) // 2, "keys AND values"),
        "heads": (changed(n_kv_groups="n_heads"), "the query heads are not kept"),
        "share": (by_share, "are global, rounded down"),
        "up": (rounded_up, "and this rounds up"),
        "numbers": (lambda cfg, n: cache_bytes(cfg, n) / 4, "not right for 2 tokens"),
    }
    wrong["D / H"] = (
        lambda cfg, n: cache_bytes(
            {**cfg, "head_dim": cfg["emb_dim"] // cfg["n_heads"]}, n
        ),
        "not D / H",
    )
    verify(check_5_116, cache_bytes, stub, wrong)
    for right in (
        lambda cfg, n: float(cache_bytes(cfg, n)),
        lambda cfg, n: np.int64(cache_bytes(cfg, n)),
        lambda cfg, n: (
            4
            * cfg.n_kv_groups
            * cfg.head_dim
            * sum(min(n, w or n) for w in gemma3_windows(cfg))
        ),
        lambda cfg, n: torch.tensor(cache_bytes(cfg, n)),
    ):
        assert "correct" in answer(check_5_116, right)


# --- 5.117 ----------------------------------------------------------------------------


def tokens_reached(windows, tokens):
    if None in windows:
        return tokens
    return min(tokens, 1 + sum(window - 1 for window in windows))


def test_exercise_5_117_how_far_back():
    def walk(windows, tokens):
        """Another way: follow the earliest token from layer to layer."""
        earliest = tokens - 1
        for window in windows:
            step = tokens if window is None else window - 1
            earliest = max(0, earliest - step)
        return tokens - earliest

    def each(windows):
        return [w or 10**9 for w in windows]

    wrong = {
        "windows": (
            lambda w, n: min(n, 1 + sum(each(w))),
            "reaches W - 1 places back",
        ),
        "sum": (lambda w, n: min(n, sum(each(w))), "which is counted once"),
        "without itself": (
            lambda w, n: tokens_reached(w, n) - 1,
            "the token itself is",
        ),
        "largest": (
            lambda w, n: min(n, max(each(w), default=1)),
            "each layer reaches further",
        ),
        "product": (lambda w, n: min(n, math.prod(each(w))), "they do not multiply"),
        "no start": (
            lambda w, n: n if None in w else 1 + sum(x - 1 for x in w),
            "no tokens before the first",
        ),
        "none": (
            lambda w, n: min(n, 1 + sum((x or 1) - 1 for x in w)),
            "one global layer is enough",
        ),
        "all": (lambda w, n: n, "not right for"),
    }
    verify(check_5_117, tokens_reached, stub, wrong)
    assert "correct" in answer(check_5_117, walk)


# --- 5.118 ----------------------------------------------------------------------------


def norm_from_gguf(stored, dtype):
    return (stored - 1).to(dtype)


def test_exercise_5_118_stored_as_1_plus_w():
    wrong = {
        "rounded first": (lambda s, d: s.to(d) - 1, "round after 1 is taken away"),
        "as it is": (lambda s, d: s.to(d), "the model adds 1 itself"),
        "added": (lambda s, d: (s + 1).to(d), "is taken away, not added"),
        "sign": (lambda s, d: (1 - s).to(d), "the sign is turned"),
        "float32": (lambda s, d: s - 1, "torch.bfloat16"),
        "always rounded": (
            lambda s, d: (s - 1).bfloat16().to(d),
            "whatever the dtype",
        ),
    }
    verify(check_5_118, norm_from_gguf, stub, wrong)
    for right in (
        lambda s, d: (s.double() - 1).to(d),
        lambda s, d: s.sub(1).type(d),
        lambda s, d: torch.tensor([x - 1 for x in s.tolist()], dtype=d),
    ):
        assert "correct" in answer(check_5_118, right)


# --- 5.119 ----------------------------------------------------------------------------


def merge(text, scores):
    pieces = list(text)
    while True:
        joined = [a + b for a, b in zip(pieces, pieces[1:], strict=False)]
        places = [i for i, token in enumerate(joined) if token in scores]
        if not places:
            return pieces
        best = max(places, key=lambda i: scores[joined[i]])
        pieces[best : best + 2] = [joined[best]]


def by_list_of_pairs(text, scores):
    """Another way: token by token in the order of the scores, and again."""
    pieces = list(text)
    while True:
        for token in sorted(scores, key=scores.__getitem__, reverse=True):
            pairs = [a + b for a, b in zip(pieces, pieces[1:], strict=False)]
            if token in pairs:
                place = pairs.index(token)
                pieces[place : place + 2] = [token]
                break
        else:
            return pieces


def test_exercise_5_119_merge_by_score():
    def picking(pick):
        def attempt(text, scores):
            pieces = list(text)
            while True:
                joined = [a + b for a, b in zip(pieces, pieces[1:], strict=False)]
                places = [i for i, token in enumerate(joined) if token in scores]
                if not places:
                    return pieces
                i = pick(places, lambda i, all=joined: scores[all[i]])
                pieces[i : i + 2] = [joined[i]]

        return attempt

    def once(text, scores):
        pieces = list(text)
        for token in sorted(scores, key=scores.__getitem__, reverse=True):
            i = 0
            while i < len(pieces) - 1:
                if pieces[i] + pieces[i + 1] == token:
                    pieces[i : i + 2] = [token]
                else:
                    i += 1
        return pieces

    def everywhere(text, scores):
        pieces = list(text)
        while True:
            pairs = {a + b for a, b in zip(pieces, pieces[1:], strict=False)}
            if not pairs & scores.keys():
                return pieces
            best, i = max(pairs & scores.keys(), key=scores.__getitem__), 0
            while i < len(pieces) - 1:
                if pieces[i] + pieces[i + 1] == best:
                    pieces[i : i + 2] = [best]
                i += 1

    def longest(text, scores):
        found = []
        while text:
            n = next((n for n in range(len(text), 0, -1) if text[:n] in scores), 1)
            found, text = [*found, text[:n]], text[n:]
        return found

    wrong = {
        "lowest": (
            picking(lambda places, score: min(places, key=score)),
            "the highest is the nearest to zero",
        ),
        "first place": (
            picking(lambda places, score: places[0]),
            "not from left to right",
        ),
        "rightmost": (
            picking(lambda places, score: max(reversed(places), key=score)),
            "the leftmost is merged first",
        ),
        "once": (once, "also for better tokens"),
        "everywhere": (everywhere, "one place is merged"),
        "longest": (longest, "the longest token at each place is another rule"),
        "characters": (lambda text, scores: list(text), "not right for"),
        "a text": (lambda text, scores: text, "no list of pieces"),
        "lost": (lambda text, scores: merge(text, scores)[:1], "do not join to it"),
    }
    verify(check_5_119, merge, stub, wrong)
    assert "correct" in answer(check_5_119, by_list_of_pairs)
    assert "correct" in answer(check_5_119, lambda t, s: tuple(merge(t, s)))


# --- 5.120 ----------------------------------------------------------------------------


def slow_pairs(head_dim, base, tokens, factor):
    angles = [
        (tokens - 1) * base ** (-2 * i / head_dim) / factor
        for i in range(head_dim // 2)
    ]
    return sum(angle < 2 * math.pi for angle in angles)


def test_exercise_5_120_angles_that_are_new():
    def by_logarithm(head_dim, base, tokens, factor):
        turns = (tokens - 1) / factor / (2 * math.pi)
        if turns < 1:
            return head_dim // 2
        first = math.floor(head_dim / 2 * math.log(turns, base)) + 1
        return max(0, head_dim // 2 - first)

    def radian(head_dim, base, tokens, factor):
        return sum(
            (tokens - 1) * base ** (-2 * i / head_dim) / factor < 1
            for i in range(head_dim // 2)
        )

    wrong = {
        "no factor": (lambda k, b, n, f: slow_pairs(k, b, n, 1), "the factor divides"),
        "multiplied": (
            lambda k, b, n, f: slow_pairs(k, b, n, 1 / f),
            "divided, not multiplied",
        ),
        "fast": (
            lambda k, b, n, f: k // 2 - slow_pairs(k, b, n, f),
            "do make a whole turn",
        ),
        "no step less": (
            lambda k, b, n, f: slow_pairs(k, b, n + 1, f),
            "there is a step less",
        ),
        "radian": (radian, "a whole turn is 2 pi"),
        "half exponent": (
            lambda k, b, n, f: slow_pairs(k, b**0.5, n, f),
            "pair i turns by base",
        ),
        "numbers": (
            lambda k, b, n, f: 2 * slow_pairs(k, b, n, f),
            "half as many pairs",
        ),
        "none": (lambda k, b, n, f: -1, "not right for"),
    }
    verify(check_5_120, slow_pairs, stub, wrong)
    assert "correct" in answer(check_5_120, by_logarithm)
    assert "correct" in answer(check_5_120, lambda *s: np.int64(slow_pairs(*s)))
