"""Every exercise check takes the solution, knows the stub and names mistakes."""

import math
import re
import unicodedata

import numpy as np
import torch

from course.exercises import answer, verify
from qwen3_checks import (
    check_5_111,
    check_5_112,
    check_5_113,
    check_5_114,
    check_5_115,
)


def stub(*arguments):
    return ...


# --- 5.111 ----------------------------------------------------------------------------


def tokens_that_fit(cfg, num_bytes):
    numbers = 2 * cfg["n_layers"] * cfg["n_kv_groups"] * cfg["head_dim"]
    return num_bytes // (2 * numbers)


def test_exercise_5_111_tokens_that_fit():
    def without(name):
        return lambda cfg, n: tokens_that_fit({**cfg, name: 1}, n)

    def query_heads(cfg, n):
        return tokens_that_fit({**cfg, "n_kv_groups": cfg["n_heads"]}, n)

    def divided(cfg, n):
        width = cfg["emb_dim"] // cfg["n_heads"]
        return tokens_that_fit({**cfg, "head_dim": width}, n)

    def vectors(cfg, n):
        return n // (4 * cfg["n_layers"] * cfg["emb_dim"])

    wrong = {
        "keys alone": (lambda cfg, n: tokens_that_fit(cfg, 2 * n), "a factor of 2"),
        "one byte, keys": (lambda cfg, n: tokens_that_fit(cfg, 4 * n), "a factor of 4"),
        "query heads": (query_heads, "the query heads are not kept"),
        "one block": (without("n_layers"), "every block has a cache"),
        "D / H": (divided, "not D / H"),
        "vectors": (vectors, "not token vectors"),
    }
    wrong["up"] = (
        lambda cfg, n: math.ceil(
            n / (4 * cfg["n_layers"] * cfg["n_kv_groups"] * cfg["head_dim"])
        ),
        "round down",
    )
    wrong["not whole"] = (
        lambda cfg, n: n / (4 * cfg["n_layers"] * cfg["n_kv_groups"] * cfg["head_dim"]),
        "no whole number",
    )
    verify(check_5_111, tokens_that_fit, stub, wrong)
    for right in (
        lambda cfg, n: float(tokens_that_fit(cfg, n)),
        lambda cfg, n: np.int64(tokens_that_fit(cfg, n)),
        lambda cfg, n: torch.tensor(tokens_that_fit(cfg, n)),
    ):
        assert "correct" in answer(check_5_111, right)


# --- 5.112 ----------------------------------------------------------------------------


def largest_score(query_factors, key_factors):
    both = (query_factors * key_factors).abs()
    return len(both) ** 0.5 * both.max()


def test_exercise_5_112_the_largest_score():
    def root(q):
        return len(q) ** 0.5

    wrong = {
        "signs": (lambda q, k: root(q) * (q * k).max(), "may have unlike signs"),
        "each alone": (
            lambda q, k: root(q) * q.abs().max() * k.abs().max(),
            "stand in different places",
        ),
        "no division": (lambda q, k: len(q) * (q * k).abs().max(), "is divided by"),
        "length one": (lambda q, k: (q * k).abs().max(), "have the length sqrt(K)"),
        "spread": (lambda q, k: (q * k).abs().sum() / root(q), "a sum over all places"),
        "lengths": (lambda q, k: q.norm() * k.norm() / root(q), "these are the len"),
        "no factors": (lambda q, k: root(q), "not right for K = 2"),
    }
    verify(check_5_112, largest_score, stub, wrong)
    for right in (
        lambda q, k: float(largest_score(q.float(), k.float())),
        lambda q, k: math.sqrt(len(q)) * max(abs(x) for x in (q * k).tolist()),
        lambda q, k: np.sqrt(len(q)) * np.abs(q.numpy() * k.numpy()).max(),
    ):
        assert "correct" in answer(check_5_112, right)


def test_the_largest_score_is_reached_and_not_exceeded():
    torch.manual_seed(0)
    K = 6
    ours, theirs = torch.randn(2, K, dtype=torch.float64)
    bound = largest_score(ours, theirs)
    vectors = torch.randn(2, 2000, K, dtype=torch.float64)
    vectors = vectors / vectors.square().mean(dim=-1, keepdim=True).sqrt()
    scores = (vectors[0] * ours) @ (vectors[1] * theirs).T / K**0.5
    assert scores.max() < bound
    place = torch.zeros(K, dtype=torch.float64)
    place[(ours * theirs).abs().argmax()] = K**0.5
    assert torch.isclose(((place * ours) @ (place * theirs)).abs() / K**0.5, bound)


# --- 5.113 ----------------------------------------------------------------------------


def normal_form(text, special):
    longest = sorted(special, key=len, reverse=True)
    pieces = [text]
    if special:
        pieces = re.split(f"({'|'.join(map(re.escape, longest))})", text)
    return "".join(unicodedata.normalize("NFC", piece) for piece in pieces)


def by_hand(text, special):
    out, plain = "", ""
    while text:
        token = max((t for t in special if text.startswith(t)), key=len, default="")
        if token:
            out, plain = out + unicodedata.normalize("NFC", plain) + token, ""
            text = text[len(token) :]
        else:
            plain, text = plain + text[0], text[1:]
    return out + unicodedata.normalize("NFC", plain)


def test_exercise_5_113_normal_form():
    def form(name):
        """In the order of the list, the shorter of two first."""

        def attempt(text, special):
            pattern = "|".join(map(re.escape, special or ["@"]))
            pieces = re.split(f"({pattern})", text)
            return "".join(unicodedata.normalize(name, piece) for piece in pieces)

        return attempt

    def longest_first(name):
        return lambda text, special: form(name)(text, sorted(special, key=len)[::-1])

    def unescaped(text, special):
        return "".join(
            unicodedata.normalize("NFC", piece or "")
            for piece in re.split(f"({'|'.join(special or ['@'])})", text)
        )

    def unescaped_longest(text, special):
        return unescaped(text, sorted(special, key=len, reverse=True))

    def once(text, special):
        longest = sorted(special or ["@"], key=len, reverse=True)
        pattern = f"({'|'.join(map(re.escape, longest))})"
        pieces = re.split(pattern, text, maxsplit=1)
        return "".join(unicodedata.normalize("NFC", piece) for piece in pieces)

    def dropped(text, special):
        pieces = re.split("|".join(map(re.escape, special or ["@"])), text)
        return "".join(unicodedata.normalize("NFC", piece) for piece in pieces)

    wrong = {
        "whole": (
            lambda text, special: unicodedata.normalize("NFC", text),
            "has become part of another character",
        ),
        "nothing": (lambda text, special: text, "comes back as it was"),
        "NFKC": (longest_first("NFKC"), "this is NFKC"),
        "NFD": (longest_first("NFD"), "this is NFD"),
        "short first": (form("NFC"), "the longer must be cut out first"),
        "dropped": (dropped, "a special token is lost"),
        "a list": (lambda text, special: [text], "is no text; join"),
    }
    verify(check_5_113, normal_form, stub, wrong)
    assert "correct" in answer(check_5_113, by_hand)
    for slip in (
        unescaped,
        unescaped_longest,
        once,
        lambda text, special: normal_form(text, special).strip(),
        lambda text, special: normal_form(text, special).lower(),
    ):
        assert "correct" not in answer(check_5_113, slip)


# --- 5.114 ----------------------------------------------------------------------------


def bytes_read(chances, bytes_of_expert, num_tokens):
    in_use = sum(1 - (1 - chance) ** num_tokens for chance in chances)
    return bytes_of_expert * in_use


def test_exercise_5_114_bytes_of_a_step():
    def by_the_mean(chances, size, N):
        return bytes_read([sum(chances) / len(chances)] * len(chances), size, N)

    wrong = {
        "the mean": (by_the_mean, "the chances differ"),
        "never shared": (lambda p, s, N: N * sum(p) * s, "a shared one is read once"),
        "left out": (lambda p, s, N: sum(s * (1 - x) ** N for x in p), "is NOT read"),
        "experts": (lambda p, s, N: bytes_read(p, 1, N), "multiply by their b"),
        "share": (lambda p, s, N: bytes_read(p, s, N) / len(p), "this is the mean of"),
        "all": (lambda p, s, N: len(p) * s, "every expert would be read"),
        "one token": (lambda p, s, N: sum(p) * s, "what one token reads"),
        "any": (
            lambda p, s, N: s * (1 - math.prod((1 - x) ** N for x in p)),
            "whether any expert",
        ),
    }
    wrong["nearly"] = (lambda *sizes: 1.001 * bytes_read(*sizes), "not right for")
    verify(check_5_114, bytes_read, stub, wrong)

    def in_tensors(chances, size, N):
        return size * (1 - (1 - torch.tensor(chances).double()) ** N).sum()

    def one_by_one(chances, size, N):
        left = torch.ones(len(chances), dtype=torch.float64)
        for _ in range(N):
            left *= 1 - torch.tensor(chances, dtype=torch.float64)
        return float((1 - left).sum() * size)

    assert "correct" in answer(check_5_114, in_tensors)
    assert "correct" in answer(check_5_114, one_by_one)


# --- 5.115 ----------------------------------------------------------------------------


def take_apart(gate_up, down):
    found = {}
    for e, both in enumerate(gate_up):
        gate, up = both.chunk(2)
        parts = {"gate": gate, "up": up, "down": down[e]}
        for part, tensor in parts.items():
            found[f"experts.{e}.{part}_proj.weight"] = tensor
    return found


def test_exercise_5_115_experts_taken_apart():
    def changed(change):
        def attempt(gate_up, down):
            found = take_apart(gate_up, down)
            return {n: change(n, tensor, found) for n, tensor in found.items()}

        return attempt

    def exchanged(name, tensor, found):
        other = {"gate": "up", "up": "gate", "down": "down"}
        return found[re.sub("gate|up|down", lambda m: other[m[0]], name)]

    def row_by_row(gate_up, down):
        found = take_apart(gate_up, down)
        for e, both in enumerate(gate_up):
            found[f"experts.{e}.gate_proj.weight"] = both[::2]
            found[f"experts.{e}.up_proj.weight"] = both[1::2]
        return found

    def columns(gate_up, down):
        found = take_apart(gate_up, down)
        for e, both in enumerate(gate_up):
            gate, up = both.tensor_split(2, dim=1)
            found[f"experts.{e}.gate_proj.weight"] = gate
            found[f"experts.{e}.up_proj.weight"] = up
        return found

    def our_names(gate_up, down):
        found = take_apart(gate_up, down)
        return {name.replace("_proj", ""): tensor for name, tensor in found.items()}

    wrong = {
        "exchanged": (changed(exchanged), "are exchanged: each gate"),
        "gate twice": (
            changed(lambda n, t, f: f[n.replace("up", "gate")]),
            "the up of an expert is its gate",
        ),
        "turns": (row_by_row, "take turns row by row"),
        "transposed": (changed(lambda n, t, f: t.T), "is transposed; take it"),
        "columns": (columns, "cut the rows of the joined"),
        "our names": (our_names, "there is no tensor of the name"),
        "first expert": (
            lambda g, d: take_apart(g[:1], d[:1]),
            "names for 3 experts",
        ),
        "a list": (lambda g, d: list(take_apart(g, d).values()), "no dictionary"),
        "same down": (
            lambda g, d: take_apart(g, d[:1].expand(len(d), -1, -1)),
            "the down of an expert is another",
        ),
    }
    verify(check_5_115, take_apart, stub, wrong)
    assert "correct" in answer(check_5_115, changed(lambda n, t, f: t.numpy()))
    assert "correct" in answer(check_5_115, changed(lambda n, t, f: t.float()))
