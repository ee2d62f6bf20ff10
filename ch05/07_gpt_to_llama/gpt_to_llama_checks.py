"""The checks of the exercises in `gpt-to-llama.ipynb`; see `course.exercises`.

Slips in these formulas give numbers that look right. So a check computes what the known
slips would give, and says which one the answer agrees with.
"""

import functools
import math
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from course.assets import fetch
from course.exercises import call, check, describe, expect, expect_close
from gguf_files import GGUFFile, GGUFTensor, read_gguf
from gguf_tokenizer import GGUFTokenizer
from gguf_weights import Q4_1_BLOCK, dequantise_q4_1
from llama import (
    LLAMA31_8B,
    LLAMA32_1B,
    SMOLLM2_135M,
    LlamaConfig,
    rope_frequencies,
)


def _name_slip(found, right, slips, atol=1e-6):
    """Raise with the message of the first slip that gives these numbers."""
    for message, wrong in slips.items():
        same = torch.allclose(_double(found), _double(wrong), rtol=0, atol=atol)
        other = not torch.allclose(_double(right), _double(wrong), rtol=0, atol=atol)
        expect(not (same and other), message)


def _double(value):
    return torch.as_tensor(value).double()


def _expect_tensor(found, shape, dtype):
    is_tensor = isinstance(found, torch.Tensor)
    expect(is_tensor, f"the result is {describe(found)}, where a tensor is asked for")
    here = tuple(found.shape)
    expect(here == shape, f"the result has shape {here}, not {shape}")
    expect(found.dtype == dtype, f"the result is {found.dtype}, not {dtype} as x is")


def _random(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


# --- L.1 The short norm from memory --------------------------------------------------


@check("L.1")
def check_L_1(attempt):
    x, scale, eps = _random(2, 3, 6) + 1, _random(6, seed=1), 0.1
    given = x.clone(), scale.clone()
    found = call(attempt, *given, eps)
    same = torch.equal(given[0], x) and torch.equal(given[1], scale)
    expect(same, "x or scale was changed itself; the result is to be a new tensor")
    _expect_tensor(found, (2, 3, 6), torch.float64)
    mean_square = x.square().mean(dim=-1, keepdim=True)
    right = scale * x / (mean_square + eps).sqrt()
    slips = {
        "the mean is subtracted, as in layer normalisation; this norm does not": (
            scale * F.layer_norm(x, (6,), eps=eps)
        ),
        "eps is added after the root, not under it": (
            scale * x / (mean_square.sqrt() + eps)
        ),
        "eps is missing": scale * x / mean_square.sqrt(),
        "the scale is missing": x / (mean_square + eps).sqrt(),
        "the squares are added up, but a mean is asked for": (
            scale * x / (6 * mean_square + eps).sqrt()
        ),
        "the root is missing": scale * x / (mean_square + eps),
        "the mean runs over other dimensions than the last": (
            scale * x / (x.square().mean() + eps).sqrt()
        ),
    }
    _name_slip(found, right, slips)
    expect_close(found, right, "a number is not right")
    exactly = torch.allclose(found, right, rtol=0, atol=1e-12)
    expect(exactly, "float64 numbers lose digits on the way; were they made float32?")
    expect_close(call(attempt, x * 0, scale, eps), x * 0, "zeros do not stay zeros")
    narrow = _random(4, 64, seed=2).bfloat16() * 100
    found = call(attempt, narrow, torch.ones(64, dtype=torch.bfloat16), 1e-5)
    _expect_tensor(found, (4, 64), torch.bfloat16)
    wide = narrow.float()
    exact = wide / (wide.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    # The last of the few digits may be rounded otherwise now and then.
    same = (found == exact.bfloat16()).float().mean().item()
    digits = f"of the bfloat16 numbers only {same:.0%} are right to their last digit; "
    expect(same > 0.95, f"{digits}is all of it computed in float32?")
    return "It scales float64 and bfloat16, and leaves zeros alone."


# --- L.2 Distance is all -------------------------------------------------------------


def _turn(x, angles, quarter=None):
    """The pairs (i, i + K / 2) of (K,), turned by angles (K / 2,)."""
    a, b = x.chunk(2)
    return torch.cat(
        (a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin())
    )


def _turn_neighbours(x, angles):
    halves = torch.cat((x[0::2], x[1::2]))
    a, b = _turn(halves, angles).chunk(2)
    return torch.stack((a, b), dim=1).flatten()


@check("L.2")
def check_L_2(attempt):
    for K, distance in ((8, 3), (6, 0), (64, 117)):
        q, k = _random(K, seed=K), _random(K, seed=K + 1)
        frequencies = rope_frequencies(K, 100.0, None).double()
        found = call(attempt, q, k, distance, frequencies)
        _expect_tensor(found, (), torch.float64)
        angles = distance * frequencies
        right = _turn(q, angles) @ k
        slips = {
            "the query is turned the other way round": _turn(q, -angles) @ k,
            "neighbours (0, 1), (2, 3) are paired, but halves are asked for": (
                _turn_neighbours(q, angles) @ k
            ),
            "nothing is turned, or both by the same angle, which is no distance": q @ k,
            "the query is turned by one token's angle, whatever the distance": (
                _turn(q, frequencies) @ k
            ),
            "the product is divided by the root of K, which attention does later": (
                right / math.sqrt(K)
            ),
        }
        _name_slip(found, right, slips)
        expect_close(found, right, f"the product for a head of {K} is not right")
    return "Three widths and distances; one turn is as good as two."


# --- L.3 How large is the cache? -----------------------------------------------------


@check("L.3")
def check_L_3(attempt):
    heads = {"n_heads": 10, "n_kv_groups": 5, "head_dim": 30}
    odd = LlamaConfig.of({**SMOLLM2_135M, **heads})
    for cfg, tokens, size in ((odd, 7, 4), (SMOLLM2_135M, 100, 4), (LLAMA32_1B, 1, 2)):
        found = call(attempt, cfg, tokens, size)
        L, G, K = cfg["n_layers"], cfg["n_kv_groups"], cfg["head_dim"]
        right = 2 * L * G * K * tokens * size
        by_width = cfg["emb_dim"] // cfg["n_heads"]
        slips = {
            "it counts a head for each query; only keys and values are kept": (
                right // G * cfg["n_heads"]
            ),
            "it counts keys or values, not both": right // 2,
            "it counts one block of many": right // L,
            "it takes D / H for the width of a head, which need not be": (
                2 * L * G * by_width * tokens * size
            ),
            "it counts numbers, not bytes": right // size,
            "it counts one token": right // tokens,
        }
        _name_slip(found, right, slips, atol=0)
        message = f"{tokens} tokens of {size} bytes a number are not right"
        expect_close(found, right, message, atol=0.1)
    gigabytes = call(attempt, LLAMA31_8B, 131_072, 2) / 1e9
    return f"Three models; the 8B one has {gigabytes:.1f} GB, more than its weights."


# --- L.4 Write a block ---------------------------------------------------------------


def _blocks(numbers, order=None, shift=0.5, top=15):
    """The reference's blocks, or those of a slip."""
    blocks = np.zeros(len(numbers), Q4_1_BLOCK)
    low, high = numbers.min(axis=1), numbers.max(axis=1)
    blocks["minimum"], blocks["scale"] = low, (high - low) / top
    step = np.where(high > low, (high - low) / top, 1)[:, None]
    levels = (
        np.floor((numbers - low[:, None]) / step + shift).clip(0, 15).astype(np.uint8)
    )
    first, second = (levels[:, :16], levels[:, 16:])
    if order == "neighbours":
        first, second = levels[:, 0::2], levels[:, 1::2]
    if order == "swapped":
        first, second = second, first
    blocks["levels"] = first | second << 4
    return blocks.view(np.uint8).reshape(-1, 20)


@check("L.4")
def check_L_4(attempt):
    numbers = _random(50, 32, seed=3).float().numpy()
    found = call(attempt, numbers)
    is_array = isinstance(found, np.ndarray) and found.dtype == np.uint8
    expect(is_array, f"the result is {describe(found)}, where uint8 is asked for")
    expect(found.shape == (50, 20), f"the result has shape {found.shape}, not (50, 20)")
    back = dequantise_q4_1(np.ascontiguousarray(found))
    slips = {
        "a byte holds two neighbours; it must hold numbers i and i + 16": (
            dequantise_q4_1(_blocks(numbers, "neighbours"))
        ),
        "the two halves of a byte are exchanged": (
            dequantise_q4_1(_blocks(numbers, "swapped"))
        ),
        "marks are cut off, not rounded to the nearest": (
            dequantise_q4_1(_blocks(numbers, shift=0))
        ),
        "there are 16 marks, so 15 steps between the lowest and the highest": (
            dequantise_q4_1(_blocks(numbers, top=16))
        ),
    }
    right = dequantise_q4_1(_blocks(numbers))
    _name_slip(back, right, slips, atol=1e-3)
    steps = (numbers.max(axis=1) - numbers.min(axis=1))[:, None] / 15
    worst = (np.abs(back - numbers) / steps).max()
    expect(worst < 0.52, f"a number is off by {worst:.2f} steps, more than half a step")
    low, high = found[:, 4:] & 15, found[:, 4:] >> 4
    both = np.concatenate((low, high), axis=1)
    ends = (both.min(axis=1) == 0).all() and (both.max(axis=1) == 15).all()
    expect(ends, "in some block no number has mark 0, or none has mark 15")
    equal = np.full((1, 32), 0.25, np.float32)
    found = call(attempt, equal)
    expect_close(dequantise_q4_1(found), equal, "32 equal numbers do not come back")
    return "50 blocks come back within half a step, and one of equal numbers."


# --- L.5 What is in a file? ----------------------------------------------------------


@functools.cache
def _file():
    return read_gguf(fetch("smollm2-135m"))


@functools.cache
def _tokenizer():
    return GGUFTokenizer(_file().metadata)


def _file_of(**sizes):
    """A file that is only its table."""
    table = {}
    for name, (form, shape, nbytes) in sizes.items():
        table[name] = GGUFTensor(Path("x.gguf"), name, form, shape, 0, nbytes)
    return GGUFFile({}, table)


@check("L.5")
def check_L_5(attempt):
    small = _file_of(
        a=("Q4_1", (4, 64), 160), b=("F32", (10,), 40), c=("Q8_0", (2, 32), 68)
    )
    real = _file()
    for file in (small, real):
        found = call(attempt, file)
        parts = [(math.prod(t.shape), t.nbytes) for t in file.tensors.values()]
        weights, size = (sum(part) for part in zip(*parts, strict=True))
        right = 8 * size / weights
        slips = {
            "it is in bytes, not in bits": right / 8,
            "it is the mean over the tensors; a large one must count for more": (
                sum(8 * b / w for w, b in parts) / len(parts)
            ),
            "it counts rows, not weights": (
                8 * size / sum(t.shape[0] for t in file.tensors.values())
            ),
        }
        _name_slip(found, right, slips)
        expect_close(found, right, "the mean is not right")
    return f"The file of this notebook has {right:.2f} bits for each weight."


# --- L.6 Many heads become few -------------------------------------------------------


@check("L.6")
def check_L_6(attempt):
    for H, G, K, D in ((6, 2, 4, 5), (8, 1, 2, 3), (4, 4, 2, 3)):
        weight = _random(H * K, D, seed=H)
        found = call(attempt, weight, H, G)
        _expect_tensor(found, (G * K, D), torch.float64)
        heads = weight.view(G, H // G, K, D)
        right = heads.mean(dim=1).flatten(0, 1)
        slips = {
            "the heads of a group are added, not averaged": right * (H // G),
            "the first head of each group is kept, and the others are lost": (
                heads[:, 0].flatten(0, 1)
            ),
            "a group takes every so many heads; it must take neighbours": (
                weight.view(H // G, G, K, D).mean(dim=0).flatten(0, 1)
            ),
            "rows are averaged with their neighbours, within a head": (
                weight.view(G * K, H // G, D).mean(dim=1)
            ),
        }
        _name_slip(found, right, slips)
        expect_close(found, right, f"{H} heads in {G} groups are not right")
    return "Groups of three, of eight and of one head."


# --- L.7 And then? -------------------------------------------------------------------


@check("L.7")
def check_L_7(attempt):
    tokenizer = _tokenizer()
    end = tokenizer.special_tokens["<|im_end|>"]
    first = {"role": "user", "content": "Hello"}
    for said, question in (("Hi there!", "Why?"), ("No.", " a<|im_end|>b\n")):
        ids, answer = tokenizer.render_chat([first]), tokenizer.encode(said)
        right = tokenizer.render_chat(
            [
                first,
                {"role": "assistant", "content": said},
                {"role": "user", "content": question},
            ]
        )
        for written in ([*answer, end], answer):
            given = list(ids), list(written)
            found = call(attempt, tokenizer, ids, written, question)
            expect((ids, written) == given, "the lists that it was given have changed")
            is_list = isinstance(found, list)
            expect(is_list, f"the result is {describe(found)}, not a list of ids")
            _name_turn(tokenizer, found, right, question, end)
            expect(found == right, "the ids differ from those of the template")
    return "Two conversations, with and without the end token; one of them an attack."


def _name_turn(tokenizer, found, right, question, end):
    """Say what is wrong with the ids of a conversation."""
    start = tokenizer.special_tokens["<|im_start|>"]
    text = tokenizer.decode(found)
    expect(question in text, "the question is not in the conversation")
    specials = [i for i in found if i in (start, end)]
    wanted = [i for i in right if i in (start, end)]
    ends = specials.count(end) - wanted.count(end)
    attacked = "<|im_end|>" in question
    expect(
        not (attacked and ends > 0),
        "the user's text made a special token; it must stay text",
    )
    expect(ends <= 0, "an answer that has its end token gets a second one")
    expect(ends >= 0, "an answer that was cut off, or the question, gets no end token")
    expect(
        specials == wanted,
        "the next answer is not opened with <|im_start|>, or another start is missing",
    )
    whole = tokenizer.decode(right)
    expect(
        text.replace("\n", "") != whole.replace("\n", "") or text == whole,
        "a line break is missing or too many; one follows each end token and each role",
    )
    expect(
        text != whole or found == right,
        "the text is right and the ids are not: role, line break and content must be "
        "encoded in one piece",
    )
