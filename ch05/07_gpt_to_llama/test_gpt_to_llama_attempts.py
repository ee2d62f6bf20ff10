"""What readers may well write: right answers are taken, wrong ones get a fitting word.

`test_gpt_to_llama_checks.py` plants mistakes and wants a message of its own for each.
Here stand right answers written in other ways, and further wrong ones; several of those
may share a message.
"""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import gpt_to_llama_checks
from course.exercises import answer
from gguf_weights import Q4_1_BLOCK, dequantise_q4_1
from llama import LlamaConfig, RMSNorm, apply_rope, rope_cos_sin
from plain_cache import PlainCache

RIGHT, WRONG = {}, {}


# --- L.1 ------------------------------------------------------------------------------


def wide_enough(x):
    return x if x.dtype == torch.float64 else x.float()


def norm_by_power(x, scale, eps):
    wide = wide_enough(x)
    return (scale * wide * (wide.pow(2).mean(-1, True) + eps) ** -0.5).to(x.dtype)


def norm_by_division(x, scale, eps):
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    size = torch.sqrt((wide * wide).mean(dim=-1, keepdim=True) + eps)
    return (wide / size * scale).to(x.dtype)


def norm_by_length(x, scale, eps):
    wide = wide_enough(x)
    size = wide.norm(dim=-1, keepdim=True).square() / x.shape[-1]
    return (wide * (size + eps).rsqrt() * scale).type_as(x)


def norm_always_double(x, scale, eps):
    wide = x.double()
    size = (wide.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return (scale.double() * wide / size).to(x.dtype)


def norm_by_the_class(x, scale, eps):
    layer = RMSNorm(x.shape[-1], eps).to(x.dtype)
    with torch.no_grad():
        layer.scale.copy_(scale)
        return layer(x)


def norm_by_rows(x, scale, eps):
    rows = wide_enough(x).reshape(-1, x.shape[-1])
    out = [row / ((row @ row) / len(row) + eps).sqrt() * scale for row in rows]
    return torch.stack(out).reshape(x.shape).to(x.dtype)


def norm_in_numpy(x, scale, eps):
    wide = x.double().numpy()
    size = np.sqrt((wide**2).mean(axis=-1, keepdims=True) + eps)
    return torch.from_numpy(wide / size * scale.double().numpy()).to(x.dtype)


def norm_by_einsum(x, scale, eps):
    wide = wide_enough(x)
    squares = torch.einsum("...d,...d->...", wide, wide)[..., None] / x.size(-1)
    return (wide / (squares + eps).sqrt() * scale).to(x.dtype)


def norm_scaled_in_float(x, scale, eps):
    wide = wide_enough(x)
    out = wide / (wide.square().mean(-1)[..., None] + eps).sqrt()
    return (out * scale.to(wide.dtype)).to(x.dtype)


RIGHT["1"] = {
    "power": norm_by_power,
    "division": norm_by_division,
    "length": norm_by_length,
    "double": norm_always_double,
    "the class": norm_by_the_class,
    "rows": norm_by_rows,
    "numpy": norm_in_numpy,
    "einsum": norm_by_einsum,
    "scaled in float": norm_scaled_in_float,
    "no gradients": torch.no_grad()(norm_by_power),
    "by PyTorch": lambda x, scale, eps: F.rms_norm(
        wide_enough(x), x.shape[-1:], scale.to(wide_enough(x)), eps
    ).to(x.dtype),
}


def norm_through_float(x, scale, eps):
    return norm_by_power(x.float(), scale.float(), eps).to(x.dtype)


def norm_by_mean_size(x, scale, eps):
    return scale * x / (x.abs().mean(-1, keepdim=True) + eps)


def norm_in_place(x, scale, eps):
    x /= (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return x * scale


WRONG["1"] = {
    "in place": (norm_in_place, "x or scale was changed itself"),
    "through float32": (norm_through_float, "float64 numbers lose digits"),
    "mean size": (norm_by_mean_size, "a number is not right"),
    "largest": (
        lambda x, scale, eps: scale * x / (x.abs().amax(-1, True) + eps),
        "a number is not right",
    ),
    "length": (
        lambda x, scale, eps: scale * F.normalize(x, dim=-1),
        "a number is not right",
    ),
    "first dimension": (
        lambda x, scale, eps: scale * x / (x.square().mean(0, True) + eps).sqrt(),
        "a number is not right",
    ),
    "scale added": (
        lambda x, scale, eps: norm_by_power(x, torch.ones(6), eps) + scale,
        "a number is not right",
    ),
    "float32 out": (
        lambda x, scale, eps: norm_by_power(x, scale, eps).float(),
        "torch.float32, not torch.float64",
    ),
    "half precision": (
        lambda x, scale, eps: x * (x.square().mean(-1, True) + eps).rsqrt() * scale,
        "of the bfloat16 numbers only",
    ),
    "a list": (lambda *given: norm_by_power(*given).tolist(), "a tensor is asked for"),
    "eps of its own": (
        lambda x, scale, eps: norm_by_power(x, scale, 1e-5),
        "a number is not right",
    ),
}


# --- L.2 ------------------------------------------------------------------------------


def score_by_halves(q, k, distance, frequencies):
    half = len(q) // 2
    cos, sin = (distance * frequencies).cos(), (distance * frequencies).sin()
    a, b, c, d = q[:half], q[half:], k[:half], k[half:]
    return ((a * cos - b * sin) * c + (a * sin + b * cos) * d).sum()


def score_by_complex(q, k, distance, frequencies):
    ones = torch.ones_like(frequencies)
    query = torch.complex(*q.chunk(2)) * torch.polar(ones, distance * frequencies)
    return (query * torch.complex(*k.chunk(2)).conj()).sum().real


def score_by_module(q, k, distance, frequencies):
    cos, sin = rope_cos_sin(torch.tensor([distance]), frequencies)
    return (apply_rope(q[None], cos, sin) @ k)[0]


def score_turning_both(q, k, distance, frequencies):
    places = torch.tensor([distance + 5, 5])
    cos, sin = rope_cos_sin(places, frequencies)
    query, key = apply_rope(torch.stack((q, k)), cos, sin)
    return query @ key


def score_by_loop(q, k, distance, frequencies):
    total, half = torch.zeros((), dtype=q.dtype), len(q) // 2
    for i in range(half):
        angle = distance * frequencies[i].item()
        turned = q[i] * math.cos(angle) - q[i + half] * math.sin(angle)
        quarter = q[i] * math.sin(angle) + q[i + half] * math.cos(angle)
        total = total + turned * k[i] + quarter * k[i + half]
    return total


def score_by_matrices(q, k, distance, frequencies):
    cos, sin = torch.cos(frequencies * distance), torch.sin(frequencies * distance)
    rotation = torch.cat(
        (
            torch.cat((cos.diag(), -sin.diag()), dim=1),
            torch.cat((sin.diag(), cos.diag()), dim=1),
        )
    )
    return k @ (rotation @ q)


def score_by_quarter_turn(q, k, distance, frequencies):
    angles = (distance * frequencies).repeat(2)
    first, second = q.chunk(2)
    quarter = torch.cat((-second, first))
    return torch.dot(q * angles.cos() + quarter * angles.sin(), k)


def score_along_and_across(q, k, distance, frequencies):
    (a, b), (c, d) = q.chunk(2), k.chunk(2)
    angles = distance * frequencies
    return (a * c + b * d) @ angles.cos() + (a * d - b * c) @ angles.sin()


def score_by_einsum(q, k, distance, frequencies):
    cos, sin = (distance * frequencies).cos(), (distance * frequencies).sin()
    turns = torch.stack((torch.stack((cos, -sin)), torch.stack((sin, cos))))
    return torch.einsum("abi,bi,ai->", turns, q.view(2, -1), k.view(2, -1))


RIGHT["2"] = {
    "halves": score_by_halves,
    "complex": score_by_complex,
    "module": score_by_module,
    "both": score_turning_both,
    "loop": score_by_loop,
    "matrices": score_by_matrices,
    "quarter turn": score_by_quarter_turn,
    "along and across": score_along_and_across,
    "einsum": score_by_einsum,
    "no gradients": torch.no_grad()(score_by_complex),
}
WRONG["2"] = {
    "float32": (
        lambda *given: score_by_halves(*given).float(),
        "torch.float32, not torch.float64",
    ),
    "a number": (
        lambda *given: score_by_halves(*given).item(),
        "a tensor is asked for",
    ),
    "all pairs": (
        lambda q, k, d, f: q[:, None] * k[None],
        "not ()",
    ),
    "one pair": (
        lambda q, k, d, f: score_by_halves(
            q[[0, len(q) // 2]], k[[0, len(q) // 2]], d, f[:1]
        ),
        "is not right",
    ),
    "degrees": (
        lambda q, k, d, f: score_by_halves(q, k, math.degrees(d), f),
        "is not right",
    ),
    "twice": (lambda q, k, d, f: score_by_halves(q, k, 2 * d, f), "is not right"),
    "cosine of the sum": (
        lambda q, k, d, f: (q @ k) * (d * f).cos().sum(),
        "is not right",
    ),
    "key turned as well": (
        lambda q, k, d, f: score_by_halves(q, k, 0, f),
        "which is no distance",
    ),
    "key alone, forwards": (
        lambda q, k, d, f: score_by_halves(k, q, d, f),
        "the other way round",
    ),
    "reversed speeds": (
        lambda q, k, d, f: score_by_halves(q, k, d, f.flip(0)),
        "is not right",
    ),
}


# --- L.3 ------------------------------------------------------------------------------


def cache_by_factors(cfg, tokens, bytes_per_number):
    factors = (2, cfg["n_layers"], cfg["n_kv_groups"], cfg["head_dim"])
    return math.prod(factors) * tokens * bytes_per_number


def cache_by_attributes(cfg, tokens, bytes_per_number):
    cfg = LlamaConfig.of(cfg)
    one_token = cfg.n_kv_groups * cfg.head_dim * 2
    return cfg.n_layers * one_token * tokens * bytes_per_number


def cache_by_tensors(cfg, tokens, bytes_per_number):
    shape = (1, cfg["n_kv_groups"], tokens, cfg["head_dim"])
    keys = torch.empty(shape, device="meta")
    return 2 * keys.numel() * bytes_per_number * cfg["n_layers"]


def cache_by_loops(cfg, tokens, bytes_per_number):
    total = 0
    for _ in range(cfg["n_layers"]):
        for _ in ("keys", "values"):
            total += cfg["n_kv_groups"] * cfg["head_dim"] * tokens * bytes_per_number
    return total


def cache_by_filling(cfg, tokens, bytes_per_number):
    cache = PlainCache(cfg["n_layers"])
    new = torch.empty(1, cfg["n_kv_groups"], tokens, cfg["head_dim"], device="meta")
    for i in range(cfg["n_layers"]):
        cache.layer(i).append(new, new)
    numbers = sum(part.keys.numel() + part.values.numel() for part in cache.layers)
    return numbers * bytes_per_number


RIGHT["3"] = {
    "factors": cache_by_factors,
    "fields": lambda cfg, tokens, size: (
        2 * cfg.n_layers * cfg.n_kv_groups * cfg.head_dim * tokens * size
    ),
    "attributes": cache_by_attributes,
    "tensors": cache_by_tensors,
    "loops": cache_by_loops,
    "filled": cache_by_filling,
    "numpy": lambda *given: np.int64(cache_by_factors(*given)),
    "float": lambda *given: float(cache_by_factors(*given)),
    "numpy float": lambda *given: np.float64(cache_by_factors(*given)),
    "bits": lambda cfg, t, b: cache_by_factors(cfg, t, 8 * b) / 8,
    "by heads": lambda cfg, t, b: (
        cfg["n_heads"]
        * cfg["head_dim"]
        * 2
        * t
        * b
        * cfg["n_layers"]
        // (cfg["n_heads"] // cfg["n_kv_groups"])
    ),
}
WRONG["3"] = {
    "gigabytes": (lambda *given: cache_by_factors(*given) / 1e9, "are not right"),
    "kibibytes": (lambda *given: cache_by_factors(*given) / 1024, "are not right"),
    "bits": (lambda c, t, b: 8 * cache_by_factors(c, t, b), "are not right"),
    "token vectors": (
        lambda c, t, b: 2 * c["n_layers"] * c["emb_dim"] * t * b,
        "are not right",
    ),
    "one token more": (
        lambda c, t, b: cache_by_factors(c, t + 1, b),
        "are not right",
    ),
    "scores": (lambda c, t, b: c["n_layers"] * c["n_heads"] * t * t * b, "not right"),
    "always float32": (lambda c, t, b: cache_by_factors(c, t, 4), "are not right"),
    "of the queries, too": (
        lambda c, t, b: (
            cache_by_factors(c, t, b)
            + c["n_layers"] * c["n_heads"] * c["head_dim"] * t * b
        ),
        "a head for each query",
    ),
    "one head": (
        lambda c, t, b: cache_by_factors(c, t, b) // c["n_kv_groups"],
        "are not right",
    ),
    "a text": (lambda *given: f"{cache_by_factors(*given)} bytes", "cannot use"),
}


# --- L.4 ------------------------------------------------------------------------------


def blocks_by_fields(numbers):
    blocks = np.zeros(len(numbers), Q4_1_BLOCK)
    low, high = numbers.min(axis=1), numbers.max(axis=1)
    blocks["minimum"], blocks["scale"] = low, (high - low) / 15
    step = np.where(high > low, (high - low) / 15, 1)[:, None]
    marks = np.rint((numbers - low[:, None]) / step).astype(np.uint8)
    blocks["levels"] = marks[:, :16] + 16 * marks[:, 16:]
    return blocks.view(np.uint8).reshape(-1, 20)


def blocks_by_loop(numbers):
    out = np.zeros((len(numbers), 20), np.uint8)
    for i, row in enumerate(numbers):
        low, scale = np.float16(row.min()), np.float16((row.max() - row.min()) / 15)
        out[i, :2] = np.frombuffer(scale.tobytes(), np.uint8)
        out[i, 2:4] = np.frombuffer(low.tobytes(), np.uint8)
        for j in range(16):
            two = []
            for number in (row[j], row[j + 16]):
                mark = round(float((number - row.min()) / scale)) if scale else 0
                two.append(min(max(mark, 0), 15))
            out[i, 4 + j] = two[0] | two[1] << 4
    return out


def blocks_with_rounded_scale(numbers):
    """Marks from the scale and minimum as float16 keeps them."""
    low = numbers.min(axis=1, keepdims=True).astype(np.float16)
    scale = ((numbers.max(axis=1, keepdims=True) - low) / 15).astype(np.float16)
    step = np.where(scale == 0, 1, scale).astype(np.float32)
    marks = ((numbers - low) / step).round().clip(0, 15).astype(np.uint8)
    packed = marks[:, :16] | marks[:, 16:] << 4
    return np.hstack((scale.view(np.uint8), low.view(np.uint8), packed))


def blocks_in_torch(numbers):
    x = torch.from_numpy(numbers)
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    step = (high - low) / 15
    marks = ((x - low) / step).nan_to_num(0).round().to(torch.uint8)
    levels = marks[:, :16] | marks[:, 16:] << 4
    halves = torch.cat((step, low), dim=1).half()
    return torch.cat((halves.view(torch.uint8), levels), dim=1).numpy()


def blocks_by_errstate(numbers):
    low, high = numbers.min(1, keepdims=True), numbers.max(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        marks = np.nan_to_num((numbers - low) * 15 / (high - low), nan=0)
    marks = np.floor(marks + 0.5).astype(np.uint8)
    blocks = np.zeros(len(numbers), Q4_1_BLOCK)
    blocks["scale"] = ((high - low) / 15)[:, 0]
    blocks["minimum"] = low[:, 0]
    blocks["levels"] = np.bitwise_or(marks[:, :16], np.left_shift(marks[:, 16:], 4))
    return np.frombuffer(blocks.tobytes(), np.uint8).reshape(len(numbers), 20)


def blocks_by_nearest(numbers):
    """Each number to the nearest of the 16 marks."""
    low, high = numbers.min(1, keepdims=True), numbers.max(1, keepdims=True)
    ruler = np.linspace(low[:, 0], high[:, 0], 16, axis=1)  # (N, 16)
    marks = np.abs(numbers[:, :, None] - ruler[:, None]).argmin(axis=2)
    blocks = np.zeros(len(numbers), Q4_1_BLOCK)
    blocks["minimum"], blocks["scale"] = low[:, 0], ((high - low) / 15)[:, 0]
    blocks["levels"] = marks[:, :16] | marks[:, 16:] << 4
    return blocks.view(np.uint8).reshape(-1, 20)


def blocks_one_by_one(numbers):
    return np.concatenate([blocks_by_fields(row[None]) for row in numbers])


def blocks_in_double(numbers):
    return blocks_by_fields(numbers.astype(np.float64))


def blocks_by_reshaping(numbers):
    halves = numbers.reshape(-1, 2, 16)
    low, high = numbers.min(axis=1), numbers.max(axis=1)
    step = np.maximum((high - low) / 15, 1e-12)[:, None, None]
    marks = np.around((halves - low[:, None, None]) / step).astype(np.uint8)
    blocks = np.empty(len(numbers), Q4_1_BLOCK)
    blocks["scale"], blocks["minimum"] = (high - low) / 15, low
    blocks["levels"] = (marks * np.array([1, 16], np.uint8)[:, None]).sum(axis=1)
    return blocks.view(np.uint8).reshape(-1, 20)


RIGHT["4"] = {
    "fields": blocks_by_fields,
    "loop": blocks_by_loop,
    "rounded scale": blocks_with_rounded_scale,
    "torch": blocks_in_torch,
    "errstate": blocks_by_errstate,
    "nearest": blocks_by_nearest,
    "one by one": blocks_one_by_one,
    "double": blocks_in_double,
    "reshaped": blocks_by_reshaping,
    "not contiguous": lambda numbers: np.asfortranarray(blocks_by_fields(numbers)),
}


def changed_fields(change):
    def attempt(numbers):
        blocks = blocks_by_fields(numbers).copy().view(Q4_1_BLOCK)[:, 0]
        change(blocks)
        return blocks.view(np.uint8).reshape(-1, 20)

    return attempt


def scale_and_minimum_exchanged(blocks):
    blocks["scale"], blocks["minimum"] = (
        blocks["minimum"].copy(),
        blocks["scale"].copy(),
    )


def minimum_forgotten(blocks):
    blocks["minimum"] = 0


def scale_of_all(blocks):
    blocks["scale"] = blocks["scale"].mean()


def last_mark_cut(blocks):
    blocks["levels"] &= 0x7F


WRONG["4"] = {
    "exchanged": (changed_fields(scale_and_minimum_exchanged), "is off by"),
    "no minimum": (changed_fields(minimum_forgotten), "is off by"),
    "one scale": (changed_fields(scale_of_all), "is off by"),
    "top bit lost": (changed_fields(last_mark_cut), "is off by"),
    "int8": (lambda n: blocks_by_fields(n).view(np.int8), "where uint8 is asked for"),
    "a tensor": (
        lambda n: torch.from_numpy(blocks_by_fields(n).copy()),
        "where uint8 is asked for",
    ),
    "numbers back": (
        lambda n: dequantise_q4_1(blocks_by_fields(n)),
        "where uint8 is asked for",
    ),
    "one block short": (lambda n: blocks_by_fields(n)[:-1], "shape (49, 20)"),
    "all marks zero": (
        changed_fields(lambda blocks: blocks["levels"].fill(0)),
        "is off by",
    ),
    "half the range": (
        lambda n: blocks_by_fields(n.clip(-1, 1)),
        "more than half a step",
    ),
}


# --- L.5 ------------------------------------------------------------------------------


def bits_by_loop(file):
    bits = weights = 0
    for tensor in file.tensors.values():
        count = 1
        for side in tensor.shape:
            count *= side
        weights, bits = weights + count, bits + 8 * tensor.nbytes
    return bits / weights


def bits_weighted(file):
    """The mean of the tensors' means, each counted as often as it has weights."""
    tensors = file.tensors.values()
    counts = [math.prod(t.shape) for t in tensors]
    means = [8 * t.nbytes / n for t, n in zip(tensors, counts, strict=True)]
    return float(np.average(means, weights=counts))


def bits_by_format(file):
    sizes = {"Q4_1": 5.0, "Q8_0": 8.5, "F32": 32.0}
    pairs = [(math.prod(t.shape), sizes[t.format]) for t in file.tensors.values()]
    return sum(n * bits for n, bits in pairs) / sum(n for n, _ in pairs)


def bits_in_numpy(file):
    sizes = np.array([t.nbytes for t in file.tensors.values()])
    weights = np.array([np.prod(t.shape) for t in file.tensors.values()])
    return 8 * sizes.sum() / weights.sum()


RIGHT["5"] = {
    "loop": bits_by_loop,
    "weighted": bits_weighted,
    "format": bits_by_format,
    "numpy": bits_in_numpy,
    "float32": lambda file: np.float32(bits_by_loop(file)),
    "tensor": lambda file: torch.tensor(bits_by_loop(file)).item(),
    "names": lambda file: (
        8
        * sum(file.tensors[name].nbytes for name in file.tensors)
        / sum(math.prod(file.tensors[name].shape) for name in file.tensors)
    ),
    "meta": lambda file: (
        sum(t.nbytes for t in file.tensors.values())
        * 8
        / sum(
            torch.empty(t.shape, device="meta").numel() for t in file.tensors.values()
        )
    ),
    "bits first": lambda file: (
        sum(t.nbytes << 3 for t in file.tensors.values())
        / sum(int(np.prod(t.shape)) for t in file.tensors.values())
    ),
    "inverted": lambda file: 1 / (1 / bits_by_loop(file)),
}
WRONG["5"] = {
    "the formats": (lambda file: (5 + 8.5 + 32) / 3, "mean over the tensors"),
    "columns": (
        lambda file: (
            8
            * sum(t.nbytes for t in file.tensors.values())
            / sum(t.shape[-1] for t in file.tensors.values())
        ),
        "the mean is not right",
    ),
    "four bits": (lambda file: 4, "the mean is not right"),
    "first tensor": (
        lambda file: bits_by_loop(type(file)({}, dict(list(file.tensors.items())[:1]))),
        "the mean is not right",
    ),
    "matrices alone": (
        lambda file: bits_by_loop(
            type(file)({}, {n: t for n, t in file.tensors.items() if len(t.shape) > 1})
        ),
        "the mean is not right",
    ),
    "weights per bit": (lambda file: 1 / bits_by_loop(file), "the mean is not right"),
    "rounded": (lambda file: round(bits_by_loop(file)), "the mean is not right"),
    "tensors": (
        lambda file: (
            8 * sum(t.nbytes for t in file.tensors.values()) / len(file.tensors)
        ),
        "the mean is not right",
    ),
    "median": (
        lambda file: float(
            np.median(
                [8 * t.nbytes / math.prod(t.shape) for t in file.tensors.values()]
            )
        ),
        "the mean is not right",
    ),
    "bits of ten": (lambda file: 10 * bits_by_loop(file) / 8, "the mean is not right"),
}


# --- L.6 ------------------------------------------------------------------------------


def merged_by_loop(weight, num_heads, num_kv_groups):
    K, size = len(weight) // num_heads, num_heads // num_kv_groups
    groups = []
    for group in range(num_kv_groups):
        heads = [weight[(group * size + i) * K :][:K] for i in range(size)]
        groups.append(sum(heads) / size)
    return torch.cat(groups)


def merged_by_unflatten(weight, num_heads, num_kv_groups):
    size = num_heads // num_kv_groups
    parts = weight.unflatten(0, (num_kv_groups, size, -1))
    return parts.mean(dim=1).flatten(end_dim=1)


def merged_by_matrix(weight, num_heads, num_kv_groups):
    """A product with a matrix of averages."""
    size = num_heads // num_kv_groups
    averages = torch.eye(num_kv_groups).repeat_interleave(size, dim=1) / size
    K = len(weight) // num_heads
    return torch.kron(averages, torch.eye(K)).to(weight) @ weight


def merged_by_split(weight, num_heads, num_kv_groups):
    heads = weight.chunk(num_heads)
    size = num_heads // num_kv_groups
    groups = [heads[i : i + size] for i in range(0, num_heads, size)]
    return torch.cat([torch.stack(group).mean(dim=0) for group in groups])


def merged_by_einsum(weight, num_heads, num_kv_groups):
    size = num_heads // num_kv_groups
    parts = weight.reshape(num_kv_groups, size, -1, weight.shape[-1])
    return torch.einsum("grkd->gkd", parts).reshape(-1, weight.shape[-1]) / size


def merged_by_index(weight, num_heads, num_kv_groups):
    K = len(weight) // num_heads
    size = num_heads // num_kv_groups
    row = torch.arange(len(weight))
    target = row // (K * size) * K + row % K
    out = torch.zeros(num_kv_groups * K, weight.shape[1]).to(weight)
    return out.index_add(0, target, weight) / size


def merged_in_numpy(weight, num_heads, num_kv_groups):
    D = weight.shape[1]
    parts = weight.numpy().reshape(num_kv_groups, num_heads // num_kv_groups, -1, D)
    return torch.from_numpy(parts.mean(axis=1).reshape(-1, D))


def merged_by_sum(weight, num_heads, num_kv_groups):
    size = num_heads // num_kv_groups
    parts = weight.view(num_kv_groups, size, -1, weight.shape[1])
    return (parts.sum(1) / size).view(-1, weight.shape[1])


RIGHT["6"] = {
    "loop": merged_by_loop,
    "unflatten": merged_by_unflatten,
    "matrix": merged_by_matrix,
    "split": merged_by_split,
    "einsum": merged_by_einsum,
    "index": merged_by_index,
    "numpy": merged_in_numpy,
    "sum": merged_by_sum,
    "no gradients": torch.no_grad()(merged_by_sum),
    "a parameter": lambda w, H, G: merged_by_sum(torch.nn.Parameter(w), H, G).detach(),
}
WRONG["6"] = {
    "middle": (
        lambda w, H, G: (
            w.view(G, H // G, -1, w.shape[1]).median(1).values.flatten(0, 1)
        ),
        "are not right",
    ),
    "last kept": (
        lambda w, H, G: w.view(G, H // G, -1, w.shape[1])[:, -1].flatten(0, 1),
        "are not right",
    ),
    "largest": (
        lambda w, H, G: w.view(G, H // G, -1, w.shape[1]).amax(1).flatten(0, 1),
        "are not right",
    ),
    "one mean for all": (
        lambda w, H, G: w.view(H, -1, w.shape[1]).mean(0).repeat(G, 1),
        "are not right",
    ),
    "float32": (
        lambda w, H, G: merged_by_sum(w, H, G).float(),
        "torch.float32, not torch.float64",
    ),
    "repeated": (
        lambda w, H, G: merged_by_sum(w, H, G).repeat_interleave(H // G, dim=0),
        "shape",
    ),
    "transposed": (lambda w, H, G: merged_by_sum(w, H, G).T, "shape"),
    "halved": (lambda w, H, G: merged_by_sum(w, H, G) / 2, "are not right"),
    "groups exchanged": (
        lambda w, H, G: (
            merged_by_sum(w, H, G).view(G, -1, w.shape[1]).flip(0).flatten(0, 1)
        ),
        "are not right",
    ),
    "columns": (
        lambda w, H, G: w.view(*w.shape[:-1], 1, -1).mean(-1),
        "shape",
    ),
}


# --- L.7 ------------------------------------------------------------------------------

START, END = 1, 2  # <|im_start|> and <|im_end|> of SmolLM2


def follow_by_pieces(tokenizer, ids, answer, question):
    whole = list(ids)
    whole.extend(answer)
    if whole[-1] != END:
        whole.append(END)
    whole += tokenizer.encode_ordinary("\n")
    whole.append(START)
    whole += tokenizer.encode_ordinary("user\n" + question)
    whole.append(END)
    whole += tokenizer.encode_ordinary("\n")
    whole.append(START)
    return whole + tokenizer.encode_ordinary("assistant\n")


def follow_by_turns(tokenizer, ids, answer, question):
    def turn(role, text):
        opened = [START, *tokenizer.encode_ordinary(f"{role}\n{text}")]
        return opened if role == "assistant" else [*opened, END, *line]

    line = tokenizer.encode_ordinary("\n")
    done = [token for token in answer if token != END]
    return [*ids, *done, END, *line, *turn("user", question), *turn("assistant", "")]


def follow_by_rendering(tokenizer, ids, answer, question):
    """Render a conversation that begins with this question, and take its end."""
    alone = tokenizer.render_chat([{"role": "user", "content": question}])
    body = alone[len(alone) - 1 - alone[::-1].index(START) :]
    last_user = [i for i, token in enumerate(alone) if token == START][-2]
    said = answer if answer and answer[-1] == END else answer + [END]
    line = tokenizer.encode_ordinary("\n")
    assert alone[-len(body) :] == body
    return ids + said + line + alone[last_user:]


def follow_by_messages(tokenizer, ids, answer, question):
    """Read the first message back, and render all three."""
    text = tokenizer.decode(ids)
    first = text.split("<|im_start|>user\n")[-1].split("<|im_end|>")[0]
    said = tokenizer.decode([token for token in answer if token != END])
    messages = [("user", first), ("assistant", said), ("user", question)]
    return tokenizer.render_chat([{"role": r, "content": c} for r, c in messages])


def follow_by_sum(tokenizer, ids, answer, question):
    encode = tokenizer.encode_ordinary
    closing = [] if answer[-1:] == [END] else [END]
    parts = (
        ids,
        answer,
        closing,
        encode("\n"),
        [START],
        encode(f"user\n{question}"),
        [END],
        encode("\n"),
        [START],
        encode("assistant\n"),
    )
    return sum(parts, [])


def follow_by_names(tokenizer, ids, answer, question):
    start, end = (tokenizer.special_tokens[f"<|im_{x}|>"] for x in ("start", "end"))
    ids, answer = ids.copy(), answer.copy()
    if end not in answer:
        answer.append(end)
    newline = tokenizer.encode_ordinary("\n")
    user = tokenizer.encode_ordinary("user\n" + question)
    tail = [start, *tokenizer.encode_ordinary("assistant\n")]
    return ids + answer + newline + [start] + user + [end] + newline + tail


def follow_by_eot(tokenizer, ids, answer, question):
    end = tokenizer.eot_token
    if answer and answer[-1] == end:
        answer = answer[:-1]
    return follow_by_pieces(tokenizer, ids, answer, question)


def follow_by_template_tail(tokenizer, ids, answer, question):
    """What is behind an empty answer is behind every answer."""
    three = [("user", ""), ("assistant", ""), ("user", question)]
    whole = tokenizer.render_chat([{"role": r, "content": c} for r, c in three])
    first_end = [i for i, token in enumerate(whole) if token == END][-2]
    said = [token for token in answer if token != END]
    return [*ids, *said, *whole[first_end:]]


RIGHT["7"] = {
    "pieces": follow_by_pieces,
    "turns": follow_by_turns,
    "rendering": follow_by_rendering,
    "messages": follow_by_messages,
    "sum": follow_by_sum,
    "names": follow_by_names,
    "eot": follow_by_eot,
    "tail": follow_by_template_tail,
    "numpy": lambda *given: np.array(follow_by_sum(*given)).tolist(),
    "tensor": lambda *given: torch.tensor(follow_by_names(*given)).tolist(),
}


def follow_with(change):
    def attempt(tokenizer, ids, answer, question):
        return change(tokenizer, follow_by_pieces(tokenizer, ids, answer, question))

    return attempt


def without_the_system_message(tokenizer, whole):
    return whole[whole.index(END) + 2 :]


def answered_by_the_user(tokenizer, whole):
    tail = tokenizer.encode_ordinary("assistant\n")
    return whole[: -len(tail)] + tokenizer.encode_ordinary("user\n")


WRONG["7"] = {
    "a tuple": (lambda *given: tuple(follow_by_pieces(*given)), "not a list of ids"),
    "a tensor": (
        lambda *given: torch.tensor(follow_by_pieces(*given)),
        "not a list of ids",
    ),
    "a text": (
        lambda tokenizer, *rest: tokenizer.decode(follow_by_pieces(tokenizer, *rest)),
        "not a list of ids",
    ),
    "question alone": (
        lambda tokenizer, ids, answer, question: tokenizer.render_chat(
            [{"role": "user", "content": question}]
        ),
        "gets no end token",
    ),
    "no system": (follow_with(without_the_system_message), "gets no end token"),
    "user again": (follow_with(answered_by_the_user), "differ from those of"),
    "no answer": (
        lambda tokenizer, ids, answer, question: follow_by_pieces(
            tokenizer, ids, [END], question
        ),
        "differ from those of",
    ),
    "upper case": (
        lambda tokenizer, ids, answer, question: follow_by_pieces(
            tokenizer, ids, answer, question.upper()
        ),
        "the question is not in the conversation",
    ),
    "stripped": (
        lambda tokenizer, ids, answer, question: follow_by_pieces(
            tokenizer, ids, answer, question.strip()
        ),
        "the question is not in the conversation",
    ),
    "ids in place": (
        lambda tokenizer, ids, answer, question: (
            ids.extend(follow_by_pieces(tokenizer, [], answer, question)) or ids
        ),
        "have changed",
    ),
}


# --- the table ------------------------------------------------------------------------


def each(table):
    return [(number, name) for number, rows in table.items() for name in rows]


@pytest.mark.parametrize(("number", "name"), each(RIGHT))
def test_a_right_answer_is_taken(number, name):
    check = getattr(gpt_to_llama_checks, f"check_L_{number}")
    said = answer(check, RIGHT[number][name])
    assert ": correct. " in said, said


@pytest.mark.parametrize(("number", "name"), each(WRONG))
def test_a_wrong_answer_is_refused_for_its_reason(number, name):
    attempt, fragment = WRONG[number][name]
    said = answer(getattr(gpt_to_llama_checks, f"check_L_{number}"), attempt)
    assert ": correct" not in said
    assert fragment in said, said


def test_ten_of_each():
    for table in (RIGHT, WRONG):
        assert [number for number, rows in table.items() if len(rows) < 10] == []
        assert len(table) == 7
