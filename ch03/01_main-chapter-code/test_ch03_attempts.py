"""Right and wrong answers as readers write them: what the checks of chapter 3 say.

`test_ch03_checks.py` plants one mistake for each message. Here is what came back from
asking for many answers: right ones written in other ways, which a check must take, and
plausible wrong ones, each with what it must say.
"""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ch03_checks
from course.exercises import answer
from multihead_attention import (
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
)

NAMES = ("W_query", "W_key", "W_value")


def future(T):
    return torch.ones(T, T, dtype=torch.bool).triu(1)


# --- 3.1 ------------------------------------------------------------------------------


def matrices(v2):
    return {name: getattr(v2, name).weight.T for name in NAMES}


def copy_into(v1, v2):
    with torch.no_grad():
        for name in NAMES:
            getattr(v1, name).copy_(getattr(v2, name).weight.T)


def copy_named(v1, v2, change=lambda stored: stored.detach().T.clone()):
    for name in NAMES:
        setattr(v1, name, nn.Parameter(change(getattr(v2, name).weight)))


def copy_data(v1, v2, change=lambda stored: stored.data.T.clone()):
    for name in NAMES:
        getattr(v1, name).data = change(getattr(v2, name).weight)


def copy_by_index(v1, v2):
    with torch.no_grad():
        for name in NAMES:
            stored = getattr(v2, name).weight
            for i in range(stored.shape[1]):
                for j in range(stored.shape[0]):
                    getattr(v1, name)[i, j] = stored[j, i]


def copy_deep(v1, v2):
    twin = copy.deepcopy(v2)
    for name in NAMES:
        setattr(v1, name, nn.Parameter(getattr(twin, name).weight.detach().T))


def copy_parameters(v1, v2):
    with torch.no_grad():
        for ours, theirs in zip(v1.parameters(), v2.parameters()):
            ours[:] = theirs.T


def copy_applied(v1, v2):
    """A linear layer without bias, applied to the unit matrix, is its matrix."""
    with torch.no_grad():
        for name in NAMES:
            weight = getattr(v1, name)
            weight.copy_(getattr(v2, name)(torch.eye(len(weight))))


RIGHT_3_1 = {
    "copy_": copy_into,
    "load_state_dict": lambda v1, v2: v1.load_state_dict(matrices(v2)),
    "load_state_dict from the other": lambda v1, v2: v1.load_state_dict(
        {n.removesuffix(".weight"): w.T for n, w in v2.state_dict().items()}
    ),
    "new parameters": copy_named,
    "data": copy_data,
    "one by one": copy_by_index,
    "a deep copy": copy_deep,
    "parameters": copy_parameters,
    "applied to the unit matrix": copy_applied,
    "numpy": lambda v1, v2: copy_data(
        v1, v2, lambda w: torch.from_numpy(w.detach().numpy().T.copy())
    ),
    "lists": lambda v1, v2: copy_data(v1, v2, lambda w: torch.tensor(w.T.tolist())),
    "permute": lambda v1, v2: copy_data(
        v1, v2, lambda w: w.detach().permute(1, 0).contiguous().clone()
    ),
}


def copy_the_layers(v1, v2):
    for name in NAMES:
        delattr(v1, name)
        setattr(v1, name, getattr(v2, name))


WRONG_3_1 = {
    "returns a dictionary": (lambda v1, v2: matrices(v2), "still has its old weights"),
    "data without a copy": (
        lambda v1, v2: copy_data(v1, v2, lambda w: w.data.T),
        "share their memory",
    ),
    "state as it is": (
        lambda v1, v2: v1.load_state_dict(
            {n.removesuffix(".weight"): w for n, w in v2.state_dict().items()}
        ),
        "size mismatch",
    ),
    "names as they are": (
        lambda v1, v2: v1.load_state_dict(v2.state_dict()),
        "raises RuntimeError",
    ),
    "without no_grad": (
        lambda v1, v2: v1.W_query.copy_(v2.W_query.weight.T),
        "raises RuntimeError",
    ),
    "flipped": (
        lambda v1, v2: copy_named(v1, v2, lambda w: w.detach().T.flip(0).clone()),
        "answer differently",
    ),
    "rounded": (
        lambda v1, v2: copy_named(v1, v2, lambda w: w.detach().T.round(decimals=1)),
        "answer differently",
    ),
    "v1 from scratch": (lambda v1, v2: v1.__init__(3, 2), "answer differently"),
    "no gradient": (
        lambda v1, v2: [
            p.requires_grad_(False) for p in (copy_into(v1, v2), v1)[1].parameters()
        ],
        "no longer learns",
    ),
    "whole layers": (copy_the_layers, "has no attribute 'shape'"),
    "zeros": (
        lambda v1, v2: copy_named(v1, v2, lambda w: torch.zeros_like(w.T)),
        "answer differently",
    ),
}


# --- 3.2 ------------------------------------------------------------------------------


def wrapper(d_in, d_out, num_heads, context_length=16, dropout=0.0):
    return MultiHeadAttentionWrapper(d_in, d_out, context_length, dropout, num_heads)


class Named(MultiHeadAttentionWrapper):
    """A wrapper with a name of its own."""


def wrapper_of_heads(d_in, width, num_heads):
    found = wrapper(d_in, 1, 1)
    heads = [
        CausalAttention(d_in, width // num_heads, 16, 0.0) for _ in range(num_heads)
    ]
    found.heads = nn.ModuleList(heads)
    return found


RIGHT_3_2 = {
    "//": lambda d, w, h: wrapper(d, w // h, h),
    "int": lambda d, w, h: wrapper(d, int(w / h), h),
    "divmod": lambda d, w, h: wrapper(d, divmod(w, h)[0], h),
    "a longer context": lambda d, w, h: wrapper(d, w // h, h, context_length=32),
    "biases": lambda d, w, h: MultiHeadAttentionWrapper(d, w // h, 16, 0.0, h, True),
    "keywords": lambda d, w, h: MultiHeadAttentionWrapper(
        d_in=d, d_out=w // h, context_length=16, dropout=0, num_heads=h
    ),
    "evaluated": lambda d, w, h: wrapper(d, w // h, h).eval(),
    "numpy": lambda d, w, h: wrapper(d, np.int64(w) // h, h),
    "subclass": lambda d, w, h: Named(d, w // h, 16, 0.0, h),
    "heads made apart": wrapper_of_heads,
    "round": lambda d, w, h: wrapper(d, round(w / h), h),
}
WRONG_3_2 = {
    "heads for widths": (lambda d, w, h: wrapper(d, h, w // h), "head(s)"),
    "width times heads": (lambda d, w, h: wrapper(d, w * h, h), "wide"),
    "as wide as the input": (lambda d, w, h: wrapper(d, d, h), "the output is"),
    "two heads always": (lambda d, w, h: wrapper(d, w // 2, 2), "has 2 head(s)"),
    "output cut": (
        lambda d, w, h: lambda x: wrapper(d, w, h)(x)[..., :w],
        "not a MultiHeadAttentionWrapper",
    ),
    "a list of heads": (
        lambda d, w, h: list(wrapper(d, w // h, h).heads),
        "a list of 2, not a MultiHeadAttentionWrapper",
    ),
    "the class": (lambda d, w, h: MultiHeadAttentionWrapper, "itself, not a"),
    "context as wide": (
        lambda d, w, h: wrapper(d, w // h, h, context_length=w),
        "takes 2 tokens at most",
    ),
    "half dropped": (
        lambda d, w, h: wrapper(d, w // h, h, dropout=0.5),
        "uses dropout",
    ),
    "a whole head less": (lambda d, w, h: wrapper(d, w // h, max(h - 1, 1)), "head(s)"),
    "text": (lambda d, w, h: str(wrapper(d, w // h, h)), "is the text"),
}


# --- 3.3 ------------------------------------------------------------------------------


def gpt2(count=None, **changes):
    sizes = {"d_in": 768, "d_out": 768, "context_length": 1024, "dropout": 0.1}
    layer = MultiHeadAttention(**(sizes | {"num_heads": 12} | changes))
    return layer, sum(p.numel() for p in layer.parameters()) if count is None else count


def by_state(layer):
    return sum(value.numel() for value in layer.state_dict().values())


RIGHT_3_3 = {
    "parameters": gpt2,
    "places": lambda: (
        MultiHeadAttention(768, 768, 1024, 0.1, 12),
        4 * 768**2 + 768,
    ),
    "a list": lambda: list(gpt2()),
    "named": lambda: (
        gpt2()[0],
        sum(p.numel() for _, p in gpt2()[0].named_parameters()),
    ),
    "state": lambda: (gpt2()[0], by_state(gpt2()[0])),
    "shapes": lambda: (
        gpt2()[0],
        sum(math.prod(p.shape) for p in gpt2()[0].parameters()),
    ),
    "numpy": lambda: gpt2(count=np.int64(4 * 768**2 + 768)),
    "a tensor": lambda: gpt2(
        count=torch.tensor([p.numel() for p in gpt2()[0].parameters()]).sum()
    ),
    "np.prod": lambda: gpt2(
        count=sum(np.prod(p.shape) for p in gpt2()[0].parameters())
    ),
    "evaluated": lambda: (gpt2()[0].eval(), gpt2()[1]),
    "one vector": lambda: gpt2(
        count=nn.utils.parameters_to_vector(gpt2()[0].parameters()).numel()
    ),
    "by hand": lambda: gpt2(count=3 * 768 * 768 + 768 * 768 + 768),
}
WRONG_3_3 = {
    "layer alone": (lambda: gpt2()[0], "not the two things"),
    "swapped": (lambda: gpt2()[::-1], "the layer is the number"),
    "head width": (lambda: gpt2(d_out=64, num_heads=1), "vectors 64 wide"),
    "heads as width": (lambda: gpt2(num_heads=64), "num_heads=64"),
    "twelve layers": (lambda: gpt2(count=12 * gpt2()[1]), "is not that of"),
    "tensors": (
        lambda: gpt2(count=len(list(gpt2()[0].parameters()))),
        "is not that of",
    ),
    "half dropped": (lambda: gpt2(dropout=0.5), "dropout is 0.5"),
    "longer": (lambda: gpt2(context_length=2048), "up to 2048 tokens"),
    "as text": (lambda: gpt2(count=f"{gpt2()[1]:,}"), "text"),
    "all biases": (lambda: gpt2(count=4 * 768**2 + 4 * 768), "is not that of"),
    "PyTorch's": (
        lambda: (nn.MultiheadAttention(768, 12, 0.1), 4 * 768**2 + 768),
        "not a MultiHeadAttention",
    ),
    "larger": (lambda: gpt2(d_in=1024, d_out=1024, num_heads=16), "vectors 1024 wide"),
}


# --- 3.4 ------------------------------------------------------------------------------


def attend(q, k, v, scale=None, hide=None):
    scores = q @ k.T / (scale or k.shape[1] ** 0.5)
    scores = (
        scores.masked_fill(future(len(q)), -torch.inf) if hide is None else hide(scores)
    )
    return torch.softmax(scores, dim=-1) @ v


def attend_by_loops(q, k, v):
    T, K = q.shape
    weights, context = torch.zeros(T, T), torch.zeros(T, v.shape[1])
    for i in range(T):
        scores = torch.zeros(i + 1)
        for j in range(i + 1):
            scores[j] = q[i].dot(k[j]) / math.sqrt(K)
        weights[i, : i + 1] = torch.softmax(scores, dim=0)
        for j in range(i + 1):
            context[i] += weights[i, j] * v[j]
    return context


def attend_filled(q, k, v):
    T = len(q)
    weights = torch.zeros(T, T)
    for i in range(T):
        weights[i, : i + 1] = torch.softmax(q[i] @ k[: i + 1].T / k.shape[1] ** 0.5, 0)
    return weights @ v


def attend_by_powers(q, k, v):
    scores = q @ k.T / k.shape[1] ** 0.5
    scores = scores.masked_fill(future(len(q)), -torch.inf)
    powers = torch.exp(scores - scores.max(dim=-1, keepdim=True).values)
    return powers / powers.sum(dim=-1, keepdim=True) @ v


def attend_in_numpy(q, k, v):
    scores = q.numpy() @ k.numpy().T / np.sqrt(k.shape[1])
    scores = np.where(np.tri(len(q), dtype=bool), scores, -np.inf)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return torch.from_numpy(powers / powers.sum(axis=1, keepdims=True) @ v.numpy())


RIGHT_3_4 = {
    "masked_fill": attend,
    "root of a tensor": lambda q, k, v: attend(
        q, k, v, torch.sqrt(torch.tensor(k.shape[1]))
    ),
    "sqrt of a float tensor": lambda q, k, v: attend(
        q, k, v, torch.tensor(float(k.shape[1])).sqrt()
    ),
    "loops": attend_by_loops,
    "row by row": attend_filled,
    "powers": attend_by_powers,
    "numpy": attend_in_numpy,
    "PyTorch": lambda q, k, v: F.scaled_dot_product_attention(
        q[None], k[None], v[None], is_causal=True
    )[0],
    "PyTorch with a mask": lambda q, k, v: F.scaled_dot_product_attention(
        q, k, v, attn_mask=~future(len(q))
    ),
    "float": lambda q, k, v: attend(q.float(), k.float(), v.float()),
    "double": lambda q, k, v: attend(q.double(), k.double(), v.double()),
    "a billion": lambda q, k, v: attend(
        q, k, v, hide=lambda s: s.masked_fill(future(len(s)), -1e9)
    ),
    "added": lambda q, k, v: attend(
        q, k, v, hide=lambda s: s + torch.full_like(s, -torch.inf).triu(1)
    ),
    "where": lambda q, k, v: attend(
        q,
        k,
        v,
        hide=lambda s: torch.where(torch.ones_like(s).tril() == 1, s, -torch.inf),
    ),
    "lowest": lambda q, k, v: attend(
        q, k, v, hide=lambda s: s.masked_fill(future(len(s)), torch.finfo(s.dtype).min)
    ),
    "queries scaled": lambda q, k, v: attend(q / k.shape[1] ** 0.5, k, v, scale=1.0),
    "einsum": lambda q, k, v: torch.einsum(
        "ij,jd->id",
        torch.softmax(
            torch.einsum("id,jd->ij", q, k)
            .div(math.sqrt(k.shape[-1]))
            .masked_fill(future(len(q)), float("-inf")),
            dim=1,
        ),
        v,
    ),
}


def hide_with(value):
    return lambda s: s.masked_fill(future(len(s)), value)


WRONG_3_4 = {
    "keys for values": (lambda q, k, v: attend(q, k, k), "average the keys"),
    "queries for values": (lambda q, k, v: attend(q, k, q), "average the queries"),
    "exchanged": (lambda q, k, v: attend(k, q, v), "have changed places"),
    "a hundred": (
        lambda q, k, v: attend(q, k, v, hide=hide_with(-100.0)),
        "not low enough",
    ),
    "the weights": (
        lambda q, k, v: attend(q, k, torch.eye(len(q))),
        "is the table of weights",
    ),
    "root of T": (
        lambda q, k, v: attend(q, k, v, scale=len(q) ** 0.5),
        "the root of T",
    ),
    "filled with zeros": (
        lambda q, k, v: attend(q, k, v, hide=hide_with(0.0)),
        "ones and zeros",
    ),
    "filled with minus one": (
        lambda q, k, v: attend(q, k, v, hide=hide_with(-1.0)),
        "future tokens are not hidden",
    ),
    "no softmax": (
        lambda q, k, v: (q @ k.T / k.shape[1] ** 0.5).tril() @ v,
        "a query's sum to",
    ),
    "divided by the sum": (
        lambda q, k, v: (
            (lambda s: s / s.sum(dim=1, keepdim=True))((q @ k.T).tril()) @ v
        ),
        "the weights are not those of attention",
    ),
    "powers of two": (
        lambda q, k, v: attend(q, k, v, scale=k.shape[1] ** 0.5 / math.log(2)),
        "the weights are not those of attention",
    ),
    "distance": (
        lambda q, k, v: (
            torch.softmax(
                (-torch.cdist(q, k)).masked_fill(future(len(q)), -torch.inf), dim=-1
            )
            @ v
        ),
        "the weights are not those of attention",
    ),
    "past only": (
        lambda q, k, v: attend(
            q, k, v, hide=lambda s: s.masked_fill(future(len(s)).T, -torch.inf)
        ),
        "the wrong way round",
    ),
    "a batch": (
        lambda q, k, v: attend(q, k, v)[None],
        "has shape (1, 6, 6), not (6, 6)",
    ),
    "numpy": (lambda q, k, v: attend(q, k, v).numpy(), "where a tensor is asked for"),
    "square only": (
        lambda q, k, v: attend(q, k, v) if q.shape[0] == q.shape[1] else v,
        "the result is not right",
    ),
}


# --- 3.5 ------------------------------------------------------------------------------


def head_of(layer, **changes):
    sizes = {"d_in": layer.d_in, "d_out": layer.head_dim, "dropout": 0.0}
    sizes |= {"context_length": len(layer.mask)}
    sizes |= {"qkv_bias": layer.W_query.bias is not None}
    return CausalAttention(**(sizes | changes))


def parts(layer, head, change=lambda part: part):
    K = layer.head_dim
    return {
        name: change(value[head * K : (head + 1) * K])
        for name, value in layer.state_dict().items()
        if name.startswith("W_")
    }


def extract(layer, head, **changes):
    found = head_of(layer, **changes)
    found.load_state_dict(parts(layer, head))
    return found


def extract_by_copy(layer, head):
    found = head_of(layer)
    rows = slice(head * layer.head_dim, (head + 1) * layer.head_dim)
    with torch.no_grad():
        for name in NAMES:
            getattr(found, name).weight.copy_(getattr(layer, name).weight[rows])
            if layer.W_query.bias is not None:
                getattr(found, name).bias.copy_(getattr(layer, name).bias[rows])
    return found


def extract_parameters(layer, head, change=lambda part: part.detach().clone()):
    found = head_of(layer)
    for name in NAMES:
        wide, part = getattr(layer, name), getattr(found, name)
        rows = slice(head * layer.head_dim, (head + 1) * layer.head_dim)
        part.weight = nn.Parameter(change(wide.weight[rows]))
        if wide.bias is not None:
            part.bias = nn.Parameter(change(wide.bias[rows]))
    return found


def extract_by_view(layer, head):
    found = head_of(layer)
    H, K = layer.num_heads, layer.head_dim
    with torch.no_grad():
        for name in NAMES:
            wide, part = getattr(layer, name), getattr(found, name)
            part.weight.copy_(wide.weight.view(H, K, layer.d_in)[head])
            if wide.bias is not None:
                part.bias.copy_(wide.bias.view(H, K)[head])
    return found


def extract_by_chunk(layer, head):
    found = head_of(layer)
    with torch.no_grad():
        for name in NAMES:
            for place in ("weight", "bias"):
                wide = getattr(getattr(layer, name), place)
                if wide is not None:
                    part = wide.chunk(layer.num_heads)[head]
                    getattr(getattr(found, name), place).copy_(part)
    return found


def extract_data(layer, head):
    found, start = head_of(layer), head * layer.head_dim
    for name, value in layer.named_parameters():
        if name.startswith("W_"):
            place, kind = name.split(".")
            part = value.data[start : start + layer.head_dim].clone()
            getattr(getattr(found, place), kind).data = part
    return found


def extract_layers(layer, head):
    """Three linear layers made anew."""
    found = head_of(layer)
    for name in NAMES:
        wide = getattr(layer, name)
        part = nn.Linear(layer.d_in, layer.head_dim, bias=wide.bias is not None)
        start = head * layer.head_dim
        part.load_state_dict(
            {k: v[start : start + layer.head_dim] for k, v in wide.state_dict().items()}
        )
        setattr(found, name, part)
    return found


def extract_by_index(layer, head):
    rows = torch.arange(layer.head_dim) + head * layer.head_dim
    found = head_of(layer)
    found.load_state_dict(
        {n: v[rows] for n, v in layer.state_dict().items() if n.startswith("W_")}
    )
    return found


RIGHT_3_5 = {
    "state": extract,
    "copy_": extract_by_copy,
    "new parameters": extract_parameters,
    "view": extract_by_view,
    "chunk": extract_by_chunk,
    "data": extract_data,
    "new layers": extract_layers,
    "index": extract_by_index,
    "evaluated": lambda layer, head: extract(layer, head).eval(),
    "a deep copy": lambda layer, head: copy.deepcopy(extract(layer, head)),
    "zero biases otherwise": lambda layer, head: (
        extract(layer, head)
        if layer.W_query.bias is not None
        else zero_biases(layer, head)
    ),
}


def zero_biases(layer, head):
    found = head_of(layer, qkv_bias=True)
    zeros = {f"{name}.bias": torch.zeros(layer.head_dim) for name in NAMES}
    found.load_state_dict(parts(layer, head) | zeros)
    return found


WRONG_3_5 = {
    "shared": (
        lambda layer, head: extract_parameters(layer, head, lambda p: p.detach()),
        "both share their memory",
    ),
    "one further": (
        lambda layer, head: extract(layer, (head + 1) % layer.num_heads),
        "was asked for",
    ),
    "from behind": (
        lambda layer, head: extract(layer, layer.num_heads - 1 - head),
        "was asked for",
    ),
    "dropout": (lambda layer, head: extract(layer, head, dropout=0.1), "uses dropout"),
    "short context": (
        lambda layer, head: extract(layer, head, context_length=4),
        "takes 4 tokens",
    ),
    "random": (lambda layer, head: head_of(layer), "is no part of the layer's"),
    "query for all": (
        lambda layer, head: (
            lambda p, found: (
                found.load_state_dict(
                    {name: p[f"W_query.{name.split('.')[1]}"] for name in p}
                ),
                found,
            )[1]
        )(parts(layer, head), head_of(layer)),
        "W_key.weight of the head is no part",
    ),
    "the outputs": (lambda layer, head: layer(torch.zeros(1, 7, 6)), "not a CausalAtt"),
    "the rows": (lambda layer, head: parts(layer, head), "not a CausalAttention"),
    "one wide": (lambda layer, head: head_of(layer, d_out=1), "the head is 1 wide"),
    "scaled": (
        lambda layer, head: extract_parameters(layer, head, lambda p: 2 * p.detach()),
        "is no part of the layer's",
    ),
    "one head of many": (
        lambda layer, head: MultiHeadAttention(6, 2, 7, 0.0, 1),
        "not a CausalAttention",
    ),
}


# --- 3.6 ------------------------------------------------------------------------------


def hidden_by_loops(real):
    B, T = real.shape
    found = torch.zeros(B, T, T, dtype=torch.bool)
    for b in range(B):
        for i in range(T):
            for j in range(T):
                found[b, i, j] = j > i or not real[b, j]
    return found


RIGHT_3_6 = {
    "or": lambda real: future(real.shape[1]) | ~real[:, None, :],
    "loops": hidden_by_loops,
    "unsqueeze": lambda real: future(real.shape[1]).unsqueeze(0) | ~real.unsqueeze(1),
    "logical_or": lambda real: torch.logical_or(
        future(real.shape[1]), torch.logical_not(real[:, None])
    ),
    "not and": lambda real: ~(~future(real.shape[1]) & real[:, None]),
    "arange": lambda real: (
        (torch.arange(real.shape[1])[None, :] > torch.arange(real.shape[1])[:, None])
        | ~real[:, None]
    ),
    "stack": lambda real: torch.stack([future(len(row)) | ~row for row in real]),
    "expand": lambda real: (
        future(real.shape[1]).expand(len(real), -1, -1)
        | (~real)[:, None].expand(-1, real.shape[1], -1)
    ),
    "sum": lambda real: future(real.shape[1]).int() + (1 - real[:, None].int()) > 0,
    "repeat": lambda real: (
        future(real.shape[1]).repeat(len(real), 1, 1)
        | ~real.repeat_interleave(real.shape[1], dim=0).view(
            len(real), -1, real.shape[1]
        )
    ),
    "where": lambda real: torch.where(
        real[:, None], future(real.shape[1]), torch.tensor(True)
    ),
    "numpy": lambda real: torch.from_numpy(
        ~np.tri(real.shape[1], dtype=bool) | ~real.numpy()[:, None, :]
    ),
}
#: What a mask whose two sides differ ends in, when B stands where T should.
OBLONG = "(a tensor of shape (2, 5)) raises RuntimeError"
WRONG_3_6 = {
    "as many tokens as sequences": (
        lambda real: future(len(real)) | ~real[:, None],
        OBLONG,
    ),
    "a triangle for each, of the batch": (
        lambda real: future(real.shape[0]).expand(len(real), -1, -1) | ~real[:, None],
        OBLONG,
    ),
    "reshaped by tokens": (
        lambda real: future(real.shape[1]) | ~real.reshape(real.shape[1], 1, -1),
        OBLONG,
    ),
    "four tokens": (lambda real: future(4) | ~real[:, None], OBLONG),
    "four sequences": (
        lambda real: future(real.shape[1]) | ~real.reshape(4, 1, -1),
        OBLONG,
    ),
    "squeezed": (
        lambda real: (future(real.shape[1]) | ~real[:, None]).squeeze(),
        "has shape (3,), not (3, 1, 1)",
    ),
    "tokens for fillers": (
        lambda real: future(real.shape[1]) | real[:, None],
        "hides the wrong keys",
    ),
    "xor": (
        lambda real: future(real.shape[1]) ^ ~real[:, None],
        "hides the wrong keys",
    ),
    "four axes": (
        lambda real: (future(real.shape[1]) | ~real[:, None])[:, None],
        "has shape (4, 1, 4, 4)",
    ),
    "one sequence": (
        lambda real: (future(real.shape[1]) | ~real[:, None])[0],
        "has shape (4, 4)",
    ),
    "minus infinity": (
        lambda real: torch.zeros(4, 4, 4).masked_fill(future(4) | ~real[:, None], -1e9),
        "not truth values",
    ),
    "integers": (
        lambda real: (future(real.shape[1]) | ~real[:, None]).int(),
        "not truth values",
    ),
    "visible": (lambda real: ~future(4) & real[:, None], "True marks what may be seen"),
    "itself always seen": (
        lambda real: (future(4) | ~real[:, None]) & ~torch.eye(4, dtype=torch.bool),
        "hides the wrong keys",
    ),
    "nothing": (lambda real: torch.zeros(4, 4, 4, dtype=torch.bool), "hides the wrong"),
    "everything": (
        lambda real: torch.ones(4, 4, 4, dtype=torch.bool),
        "hides the wrong keys",
    ),
    "batch and queries mixed": (
        lambda real: future(4) | ~real,
        "has shape (4, 4), not (4, 4, 4)",
    ),
    "a list": (
        lambda real: (future(4) | ~real[:, None]).tolist(),
        "where a tensor is asked for",
    ),
}


# --- 3.7 ------------------------------------------------------------------------------


def chunk_by_loops(past, new):
    found = torch.zeros(new, past + new, dtype=torch.bool)
    for i in range(new):
        for j in range(past + new):
            found[i, j] = j > past + i
    return found


def ones(past, new):
    return torch.ones(new, past + new, dtype=torch.bool)


RIGHT_3_7 = {
    "rows": lambda past, new: future(past + new)[past:],
    "last rows": lambda past, new: future(past + new)[-new:],
    "diagonal": lambda past, new: ones(past, new).triu(past + 1),
    "loops": chunk_by_loops,
    "arange": lambda past, new: (
        torch.arange(past + new)[None, :] > (past + torch.arange(new))[:, None]
    ),
    "cat": lambda past, new: torch.cat(
        [torch.zeros(new, past, dtype=torch.bool), future(new)], dim=1
    ),
    "pad": lambda past, new: F.pad(future(new), (past, 0), value=False),
    "not tril": lambda past, new: ~ones(past, new).tril(past),
    "numpy": lambda past, new: torch.from_numpy(
        ~np.tri(new, past + new, past, dtype=bool)
    ),
    "bool()": lambda past, new: torch.ones(new, past + new).triu(past + 1).bool(),
    "a mask's rows": lambda past, new: MultiHeadAttention(
        1, 1, past + new, 0.0, 1
    ).mask[past : past + new],
}
WRONG_3_7 = {
    "all rows": (lambda past, new: future(past + new), "new tokens by all tokens"),
    "first rows": (lambda past, new: future(past + new)[:new], "in the wrong corner"),
    "columns": (lambda past, new: future(past + new)[:, past:], "new tokens by all"),
    "turned": (lambda past, new: future(past + new)[past:].T, "new tokens by all"),
    "flipped": (
        lambda past, new: future(past + new)[past:].flip(0),
        "hides the wrong keys",
    ),
    "new for past": (
        lambda past, new: ones(past, new).triu(new),
        "hides the wrong keys",
    ),
    "new plus one": (
        lambda past, new: ones(past, new).triu(new + 1),
        "one place late",
    ),
    "scores": (
        lambda past, new: torch.zeros(new, past + new).masked_fill(
            future(past + new)[past:], -torch.inf
        ),
        "not truth values",
    ),
    "past at the end": (
        lambda past, new: torch.cat(
            [future(new), torch.zeros(new, past, dtype=torch.bool)], dim=1
        ),
        "hides the wrong keys",
    ),
    "square when nothing is past": (
        lambda past, new: future(new) if past == 0 else ones(past, new).triu(past),
        "one place early",
    ),
    "everything": (lambda past, new: ones(past, new), "hides the wrong keys"),
    "a list": (
        lambda past, new: future(past + new)[past:].tolist(),
        "where a tensor is asked for",
    ),
}


# --- 3.8 ------------------------------------------------------------------------------


def fused(x, qkv, out, H, cut=None, divide=None, join=None):
    B, T, D = x.shape
    q, k, v = (cut or cut_in_three)(qkv(x), H)
    scores = q @ k.transpose(-2, -1) / (divide or (D // H) ** 0.5)
    scores = scores.masked_fill(future(T), -torch.inf)
    context = torch.softmax(scores, dim=-1) @ v
    return out(join(context) if join else context.transpose(1, 2).reshape(B, T, D))


def heads(part, H):
    B, T, D = part.shape
    return part.view(B, T, H, D // H).transpose(1, 2)


def cut_in_three(wide, H):
    return [heads(part, H) for part in wide.chunk(3, dim=-1)]


def cut_by_view(wide, H):
    B, T, D3 = wide.shape
    return wide.view(B, T, 3, H, D3 // 3 // H).permute(2, 0, 3, 1, 4)


def fused_by_layer(x, qkv, out, H):
    B, T, D = x.shape
    layer = MultiHeadAttention(D, D, T, 0.0, H, qkv_bias=True)
    for place in ("weight", "bias"):
        thirds = getattr(qkv, place).chunk(3)
        for name, third in zip(NAMES, thirds):
            setattr(getattr(layer, name), place, nn.Parameter(third.detach().clone()))
    layer.out_proj.load_state_dict(out.state_dict())
    return layer(x)


def fused_by_pytorch(x, qkv, out, H):
    q, k, v = cut_in_three(qkv(x), H)
    context = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out(context.transpose(1, 2).flatten(2))


def fused_by_pytorchs_layer(x, qkv, out, H):
    layer = nn.MultiheadAttention(x.shape[-1], H, batch_first=True)
    layer.in_proj_weight.data, layer.in_proj_bias.data = qkv.weight.data, qkv.bias.data
    layer.out_proj.load_state_dict(out.state_dict())
    return layer(x, x, x, attn_mask=future(x.shape[1]))[0]


def fused_by_loops(x, qkv, out, H):
    B, T, D = x.shape
    q, k, v = qkv(x).split(D, dim=-1)
    rows = torch.zeros(B, T, D)
    for b in range(B):
        for h in range(H):
            part = slice(h * D // H, (h + 1) * D // H)
            for t in range(T):
                scores = q[b, t, part] @ k[b, : t + 1, part].T / math.sqrt(D // H)
                rows[b, t, part] = torch.softmax(scores, dim=0) @ v[b, : t + 1, part]
    return out(rows)


RIGHT_3_8 = {
    "chunk": fused,
    "view in five": lambda *a: fused(*a, cut=cut_by_view),
    "root of a tensor": lambda x, qkv, out, H: fused(
        x, qkv, out, H, divide=torch.sqrt(torch.tensor(x.shape[-1] // H))
    ),
    "the chapter's layer": fused_by_layer,
    "PyTorch's function": fused_by_pytorch,
    "PyTorch's layer": fused_by_pytorchs_layer,
    "loops": fused_by_loops,
    "flatten": lambda *a: fused(*a, join=lambda c: c.transpose(1, 2).flatten(2)),
    "cat": lambda *a: fused(*a, join=lambda c: torch.cat(c.unbind(1), dim=-1)),
    "split": lambda *a: fused(
        *a,
        cut=lambda wide, H: [
            heads(part, H) for part in wide.split(wide.shape[-1] // 3, dim=-1)
        ],
    ),
    "einsum": lambda *a: fused(
        *a, join=lambda c: torch.einsum("bhtk->bthk", c).flatten(-2)
    ),
}


def fused_weights_alone(x, qkv, out, H):
    """The biases forgotten."""
    bare = lambda t: t @ qkv.weight.T  # noqa: E731
    return fused(x, bare, out, H)


WRONG_3_8 = {
    "exchanged": (
        lambda *a: fused(
            *a, cut=lambda w, H: [cut_in_three(w, H)[i] for i in (1, 0, 2)]
        ),
        "queries and keys have changed places",
    ),
    "biases forgotten": (fused_weights_alone, "the numbers are not those"),
    "past hidden": (
        lambda x, qkv, out, H: out(
            (
                torch.softmax(
                    (
                        (parts := cut_in_three(qkv(x), H))[0]
                        @ parts[1].transpose(2, 3)
                        / (x.shape[-1] // H) ** 0.5
                    ).masked_fill(future(x.shape[1]).T, -torch.inf),
                    dim=-1,
                )
                @ parts[2]
            )
            .transpose(1, 2)
            .flatten(2)
        ),
        "the past is hidden",
    ),
    "out_proj twice": (
        lambda x, qkv, out, H: out(fused(x, qkv, out, H)),
        "are not those",
    ),
    "one head": (lambda x, qkv, out, H: fused(x, qkv, out, 1), "are not those"),
    "divided by K": (
        lambda x, qkv, out, H: fused(x, qkv, out, H, divide=x.shape[-1] // H),
        "are not those",
    ),
    "heads summed": (
        lambda x, qkv, out, H: out(
            F.scaled_dot_product_attention(
                *cut_in_three(qkv(x), H), is_causal=True
            ).sum(dim=1)
        ),
        "raises RuntimeError",
    ),
    "values from keys": (
        lambda *a: fused(
            *a, cut=lambda w, H: [cut_in_three(w, H)[i] for i in (0, 1, 1)]
        ),
        "are not those",
    ),
    "x for values": (
        lambda x, qkv, out, H: fused(
            x, qkv, out, H, cut=lambda w, H: [*cut_in_three(w, H)[:2], heads(x, H)]
        ),
        "are not those",
    ),
    "heads left apart": (
        lambda x, qkv, out, H: F.scaled_dot_product_attention(
            *cut_in_three(qkv(x), H), is_causal=True
        ),
        "for x of shape",
    ),
    "not causal": (
        lambda x, qkv, out, H: out(
            F.scaled_dot_product_attention(*cut_in_three(qkv(x), H))
            .transpose(1, 2)
            .flatten(2)
        ),
        "sees the later ones",
    ),
}


ATTEMPTS = {
    "3.1": (RIGHT_3_1, WRONG_3_1),
    "3.2": (RIGHT_3_2, WRONG_3_2),
    "3.3": (RIGHT_3_3, WRONG_3_3),
    "3.4": (RIGHT_3_4, WRONG_3_4),
    "3.5": (RIGHT_3_5, WRONG_3_5),
    "3.6": (RIGHT_3_6, WRONG_3_6),
    "3.7": (RIGHT_3_7, WRONG_3_7),
    "3.8": (RIGHT_3_8, WRONG_3_8),
}


def check_of(number):
    return getattr(ch03_checks, f"check_{number.replace('.', '_')}")


@pytest.mark.parametrize("number", ATTEMPTS)
def test_each_exercise_has_ten_attempts_of_each_kind(number):
    assert min(map(len, ATTEMPTS[number])) >= 10


@pytest.mark.parametrize(
    ("number", "name"),
    [(n, name) for n, (right, _) in ATTEMPTS.items() for name in right],
)
def test_a_right_answer_passes_however_it_is_written(number, name):
    said = answer(check_of(number), ATTEMPTS[number][0][name])
    assert said.startswith(f"Exercise {number}: correct."), said


@pytest.mark.parametrize(
    ("number", "name"),
    [(n, name) for n, (_, wrong) in ATTEMPTS.items() for name in wrong],
)
def test_a_wrong_answer_is_told_what_is_wrong(number, name):
    attempt, fragment = ATTEMPTS[number][1][name]
    said = answer(check_of(number), attempt)
    assert said.startswith(f"Exercise {number}: "), said
    assert "correct." not in said
    assert fragment in said
