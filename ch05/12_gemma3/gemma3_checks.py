"""The checks of the exercises in the notebook on Gemma 3; see `course.exercises`."""

import math

import torch

from course.exercises import (
    as_list,
    as_tensor,
    call,
    check,
    expect,
    expect_close,
    expect_no_slip,
    expect_number,
    expect_result,
    expect_tensor,
    random_tensor,
)
from gemma3 import (
    GEMMA3_1B,
    GEMMA3_27B,
    GEMMA3_270M,
    Gemma3Config,
    gemma3_windows,
)

# --- 5.116 Bytes of a cache ----------------------------------------------------------


@check("5.116")
def check_5_116(attempt):
    odd = {**GEMMA3_270M, "n_layers": 7, "full_every": 3, "window": 3, "head_dim": 6}
    odd = Gemma3Config.of({**odd, "n_heads": 15, "n_kv_groups": 5})
    all_local = Gemma3Config.of({**odd, "full_every": 9})
    sizes = [odd, all_local, GEMMA3_270M, GEMMA3_1B, GEMMA3_27B]
    for cfg, tokens in [(cfg, n) for cfg in sizes for n in (2, 7, 600, 32_768)]:
        found = expect_number(call(attempt, cfg, tokens))
        L, G, K, W = (
            cfg[name] for name in ("n_layers", "n_kv_groups", "head_dim", "window")
        )
        far = gemma3_windows(cfg).count(None)
        near, every = L - far, cfg["full_every"]
        kept, up = min(tokens, W), -(-L // every)

        def of(near_tokens, far_tokens, width=4 * G * K, near=near, far=far):
            return width * (near * near_tokens + far * far_tokens)

        right = of(kept, tokens)
        slips = {
            "local layers keep no more than a window": of(tokens, tokens),
            "a text shorter than the window fills only a part of it": of(W, tokens),
            "global layers keep every token": of(kept, kept),
            "local and global layers are exchanged": of(tokens, kept),
            "every layer keeps keys AND values": right / 2,
            "a number takes two bytes": right / 2,
            "the query heads are not kept; count the key/value heads": (
                of(kept, tokens, 4 * cfg["n_heads"] * K)
            ),
            "the width of a head is a size of its own, not D / H": (
                of(kept, tokens, 4 * G * (cfg["emb_dim"] // cfg["n_heads"]))
            ),
            "of L layers, L / full_every are global, rounded down": (
                of(kept, tokens, near=L - L / every, far=L / every)
            ),
            "of L layers, L / full_every are global, and this rounds up": (
                of(kept, tokens, near=L - up, far=up)
            ),
        }
        expect_no_slip(found, right, slips)
        name = f"{tokens} tokens with {near} local and {far} global layers"
        expect_close(found, right, f"not right for {name}", atol=0)
    return "It is right for short and long texts, with all kinds of plans."


# --- 5.117 How far back ---------------------------------------------------------------


@check("5.117")
def check_5_117(attempt):
    plans = [
        ([4, 4, 4], 100),
        ([3], 50),
        ([1, 1], 9),
        ([5, 2, 7], 30),
        ([4, None, 4], 100),
        ([512] * 5, 100_000),
        ([4, 4, 4], 6),
        ([], 5),
    ]
    for windows, tokens in plans:
        found = expect_number(call(attempt, list(windows), tokens))
        whole = None in windows
        steps = [tokens if w is None else w for w in windows]
        right = tokens if whole else min(tokens, 1 + sum(w - 1 for w in steps))
        slips = {
            "a window counts the token itself, so it reaches W - 1 places back": (
                min(tokens, 1 + sum(steps))
            ),
            "every window has the token itself, which is counted once": (
                min(tokens, sum(steps))
            ),
            "the token itself is one of those that it depends on": right - 1,
            "each layer reaches further back, from what the layer below has reached": (
                min(tokens, max(steps, default=1))
            ),
            "windows add up, they do not multiply": min(tokens, math.prod(steps)),
            "there are no tokens before the first": 1 + sum(w - 1 for w in steps),
            "one global layer is enough to reach the first token": (
                min(tokens, 1 + sum((w or 1) - 1 for w in windows))
            ),
        }
        expect_no_slip(found, right, slips)
        expect_close(found, right, f"not right for {windows} and {tokens}", atol=0)
    return "Windows add up, and one global layer sees all."


# --- 5.118 Stored as 1 + w ------------------------------------------------------------


@check("5.118")
def check_5_118(attempt):
    for dtype in (torch.bfloat16, torch.float32):
        for seed in (0, 1):
            stored = 1 + (random_tensor(64, seed=seed) * 0.02).float()  # as in a file
            found = as_tensor(call(attempt, stored.clone(), dtype))
            expect_tensor(found, (64,), "the factors", dtype)
            right = (stored.double() - 1).to(dtype).double()
            slips = {
                "round after 1 is taken away; before it, most digits are lost": (
                    (stored.to(dtype) - 1).double()
                ),
                "the model adds 1 itself; take it away": stored.to(dtype).double(),
                "1 is taken away, not added": (stored + 1).to(dtype).double(),
                "this is 1 - stored; the sign is turned": -right,
                "rounded to bfloat16, whatever the dtype": (
                    (stored.double() - 1).to(torch.bfloat16).double()
                ),
            }
            atol = 1e-7
            expect_result(found, right, slips, f"not right in {dtype}", atol)
    return "Factors come back as they were learned, in both dtypes."


# --- 5.119 Merging by score -----------------------------------------------------------

_SCORES = {"a": -9.0, "b": -9.1, "c": -9.2, "ab": -1.0, "bc": -2.0, "abc": -3.0}
_SCORES |= {
    "xy": -5.5,
    "xyx": -4.5,
    "cabca": -8.0,
    "aa": -4.0,
    "aaa": -5.0,
    "ca": -0.5,
    "\u2581": -9.3,
    "\u2581a": -6.0,
}
_TEXTS = [
    "",
    "a",
    "abc",
    "bca",
    "aaaaa",
    "abcabc",
    "\u2581a\u2581ab",
    "cabca",
    "xyxy",
    "xyx",
]


def _merged(pieces, scores, pick):
    """Merge as long as a pair makes a token; `pick` chooses among places."""
    pieces = list(pieces)
    while True:
        places = [
            i for i in range(len(pieces) - 1) if pieces[i] + pieces[i + 1] in scores
        ]
        if not places:
            return pieces
        i = pick(places, lambda i: scores[pieces[i] + pieces[i + 1]])
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


def _once(text, scores):
    """One pass over the tokens, the best first; none is looked at a second time."""
    pieces = list(text)
    for token in sorted(scores, key=scores.__getitem__, reverse=True):
        while token in (joined := [a + b for a, b in zip(pieces, pieces[1:])]):
            place = joined.index(token)
            pieces[place : place + 2] = [token]
    return pieces


def _everywhere(text, scores):
    """The best token at all its places at once, from left to right."""
    pieces = list(text)
    while True:
        pairs = {a + b for a, b in zip(pieces, pieces[1:])} & scores.keys()
        if not pairs:
            return pieces
        token, found = max(pairs, key=scores.__getitem__), []
        for piece in pieces:
            if found and found[-1] + piece == token and found[-1] != token:
                found[-1] = token
            else:
                found.append(piece)
        pieces = found


def _longest(text, scores):
    """Not merging at all: the longest token at each place."""
    found = []
    while text:
        ends = range(len(text), 0, -1)
        end = next((n for n in ends if text[:n] in scores), 1)
        found.append(text[:end])
        text = text[end:]
    return found


@check("5.119")
def check_5_119(attempt):
    results = {}
    for text in _TEXTS:
        found = as_list(call(attempt, text, dict(_SCORES)))
        expect(isinstance(found, (list, tuple)), "the result is no list of pieces")
        joined = "".join(map(str, found))
        expect(joined == text, f"the pieces of {text!a} do not join to it again")
        results[text] = list(found)

    def by(pick):
        return {text: _merged(text, _SCORES, pick) for text in _TEXTS}

    right = by(lambda places, score: max(places, key=score))
    slips = {
        "scores are below zero: the highest is the nearest to zero": (
            by(lambda places, score: min(places, key=score))
        ),
        "pairs are merged by score, wherever they stand, not from left to right": (
            by(lambda places, _: places[0])
        ),
        "after each merge, look at all pairs again, also for better tokens": (
            {text: _once(text, _SCORES) for text in _TEXTS}
        ),
        "one place is merged, then all pairs are looked at again": (
            {text: _everywhere(text, _SCORES) for text in _TEXTS}
        ),
        "of equal pairs the leftmost is merged first": (
            by(lambda places, score: max(reversed(places), key=score))
        ),
        "the longest token at each place is another rule": (
            {text: _longest(text, _SCORES) for text in _TEXTS}
        ),
    }
    for message, outcome in slips.items():
        expect(results != outcome, message)
    for text, found in results.items():
        expect(found == right[text], f"not right for {text!a}: {found!a}")
    return "The pair with the highest score goes first, wherever it stands."


# --- 5.120 Angles that are new --------------------------------------------------------


@check("5.120")
def check_5_120(attempt):
    cases = [
        (256, 1e6, 32_768, 1.0),
        (256, 1e6, 131_072, 8.0),
        (256, 1e4, 32_768, 1.0),
        (8, 100.0, 50, 1.0),
        (8, 100.0, 50, 8.0),
        (2, 10.0, 3, 1.0),
        (2, 10.0, 7, 1.0),  # six steps are less than a turn, seven are more
        (2, 10.0, 51, 8.0),
    ]
    for head_dim, base, tokens, f in cases:
        found = expect_number(call(attempt, head_dim, base, tokens, f))

        def slow(turns, pairs=head_dim // 2):
            return sum(turns(i) < 2 * math.pi for i in range(pairs))

        def angle(i, n=tokens, f=f, base=base, K=head_dim):
            return (n - 1) * base ** (-2 * i / K) / f

        right = slow(angle)
        slips = {
            "from the first of so many tokens to the last there is a step less": (
                slow(lambda i, n=tokens + 1: angle(i, n=n))
            ),
            "the factor divides the frequencies": slow(lambda i: angle(i, f=1.0)),
            "divided, not multiplied": slow(lambda i, f=f: angle(i, f=1 / f)),
            "these are the pairs that do make a whole turn": head_dim // 2 - right,
            "a whole turn is 2 pi": sum(angle(i) < 1 for i in range(head_dim // 2)),
            "pair i turns by base ** (-2 i / K)": (slow(lambda i: angle(i / 2))),
            "half as many pairs as numbers in a head": 2 * right,
        }
        expect_no_slip(found, right, slips)
        case = (head_dim, base, tokens, f)
        expect_close(found, right, f"not right for {case}", atol=0)
    return "It counts the pairs without a whole turn, with and without a factor."
