"""Copies of a model that generate faster on a CPU (support for chapter 5).

`arrange_columns` keeps every number and lays the matrices out in the order in which
they are read. `quantise_int8` makes whole numbers of 8 bits of the weights, so a
quarter as many bytes are read. Both leave the model as it is and work for any model
that is made of linear layers; the notebook gpt-to-llama measures them.

>>> from llama import SMOLLM2_135M, LlamaModel
>>> cfg = {**SMOLLM2_135M, "vocab_size": 9, "n_layers": 1, "emb_dim": 36}
>>> model = LlamaModel(cfg).eval()
>>> idx = torch.tensor([[1, 2, 3]])
>>> with torch.no_grad():
...     torch.allclose(arrange_columns(model)(idx), model(idx), atol=1e-4)
True

What replaces which kind of layer is a table, `LLAMA_KINDS`, or `GPT_KINDS` for models
of chapter 4. Another family of models passes its own, `{**LLAMA_KINDS, ItsAttention:
replace}`, where `replace(layer, side_by_side)` gives the fast layer, and
`side_by_side(*layers)` makes one product of linear layers that read the same vectors.
Kinds that are not in the table are copied as they are, with the linear layers in them
replaced one by one; a subclass is a kind of its own, since it may compute something
else. Where rounding must not come in, as in a router, the layer has `exact = True` and
is copied with all that is in it. Left out: training, saving, other devices.

Source of the 8 bits: Dettmers et al., "LLM.int8()", 2022 (arXiv:2208.07339), section
2.1, with a scale for each row and each token vector; its outlier columns are left out.

Shapes: B batch, T tokens, M rows, N outputs and K inputs of a linear layer; in
attention H query heads, G key/value heads, K head width.
"""

import copy
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argument_checks import check_attention_mask, check_input, check_length
from gpt import GELU, LayerNorm, TiedHead
from gqa import GroupedQueryAttention
from llama import LlamaFeedForward, RMSNorm
from multihead_attention import MultiHeadAttention

SideBySide = Callable[..., nn.Module]
Kinds = Mapping[type[nn.Module], Callable[..., nn.Module]]

# --- The same weights, in the order in which they are read ---------------------------


class ColumnLinear(nn.Module):
    """A linear layer that keeps its matrix for one token at a time, by columns mostly.

    A single token's product reads every weight once, so it takes as long as the
    reading. PyTorch reads a matrix faster along its longer side: by columns, where
    there are more outputs than inputs. And it leaves such a product to one thread;
    several products at once it spreads over its threads. So the inputs are divided,
    each part has a product of its own, and these are added up. No number changes but by
    rounding. For generating only.

    Args:
        weight: (N, K), floating point.
        bias: (N,), or None.
        parts: how many; the next smaller number that divides K is taken.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, parts: int = 1):
        super().__init__()
        N, K = self.out_features, self.in_features = weight.shape
        self.parts = next(p for p in range(parts, 0, -1) if K % p == 0)
        rows = torch.contiguous_format
        if K / self.parts > N:
            columns = weight.clone(memory_format=rows).t()
        else:
            columns = weight.t().clone(memory_format=rows)
        self.weight = nn.Parameter(columns)  # (K, N)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N)."""
        if self.parts == 1 or x.numel() != self.in_features:
            out = x @ self.weight
        else:
            rows = x.reshape(self.parts, 1, -1)  # (parts, 1, K / parts)
            out = torch.bmm(rows, self.weight.unflatten(0, (self.parts, -1)))
            out = out.sum(dim=0).view(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias

    def _save_to_state_dict(self, *_):
        raise ValueError(
            "An arranged model cannot be saved: save the model it was made from, and "
            "call arrange_columns again after loading that."
        )


def arrange_columns(
    model: nn.Module, parts: int | None = None, kinds: Kinds | None = None
) -> nn.Module:
    """A copy of the model for generating on the CPU, its linear layers `ColumnLinear`.

    It computes the same, up to the order of sums. Layers that read the same vectors
    become one together, the output head is one as well, a tied one included. The copy
    shares no memory with the model, takes no gradients and cannot be saved.

    Args:
        model: a model of this course on the CPU; it is left as it was.
        parts: into which a single token's product is divided; by default as many as
            PyTorch has threads.
        kinds: what replaces which kind of layer; `LLAMA_KINDS` by default.

    Returns:
        The copy, in evaluation mode.

    Raises:
        ValueError: the model is on another device or a fast copy already, or `parts` is
            below 1.
    """
    parts = torch.get_num_threads() if parts is None else parts
    if parts < 1:
        raise ValueError(f"parts is {parts}: give 1 or more.")
    return fused_copy(model, functools.partial(ColumnLinear, parts=parts), kinds)


# --- Eight bits for a weight ---------------------------------------------------------


class Int8Linear(nn.Module):
    """A linear layer whose weights are 8-bit integers, a quarter of float32's memory.

    Each row of the matrix has a scale, and an integer from -127 to 127 for each weight.
    Products are done in integers: each token vector is rounded to a grid of its own as
    well, which depends on no other token ("dynamic quantisation"). For generating only.

    Args:
        weight: (N, K), floating point, on the CPU.
        bias: (N,), or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        scales = weight.float().abs().amax(dim=1) / 127  # (N,)
        scales = scales.clamp(min=1e-30)  # a row of zeros
        integers = (weight.float() / scales[:, None]).round().to(torch.int8)  # (N, K)
        self.out_features, self.in_features = weight.shape
        self.packed = pack_int8(integers, scales)
        self.row_sums = integers.sum(dim=1) * scales  # (N,)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N), of the same dtype."""
        check_int8_input(x, self.in_features)
        if x.ndim > 1 and x.numel() == self.in_features:  # a single row, a single grid
            out = int8_product(x.float(), self.packed)
        else:
            out = self.each_row(x.float())
        return (out if self.bias is None else out + self.bias).to(x.dtype)

    def each_row(self, x: Tensor) -> Tensor:
        """The product without the bias, (..., K) to (..., N), with a grid for each row.

        PyTorch makes one grid for all rows, on which the largest would flatten the
        others. So they are brought to integers here, and it finds a step of 1.
        """
        rows = x.reshape(-1, self.in_features)  # (M, K)
        top = 127 if sums_overflow() else 255
        low = rows.amin(dim=1, keepdim=True).clamp(max=0.0)
        high = rows.amax(dim=1, keepdim=True).clamp(min=0.0)
        step = ((high - low) / top).clamp(min=1e-30)  # (M, 1)
        zero = (-low / step).round()  # the integer that stands for 0
        grid = ((rows / step).round() + zero).clamp(0, top)
        both_ends = torch.cat((grid, rows.new_full((1, self.in_features), top)))
        out = int8_product(both_ends, self.packed)[:-1]  # (M, N)
        out = (out - zero * self.row_sums) * step
        return out.view(*x.shape[:-1], self.out_features)

    def _save_to_state_dict(self, *_):
        raise ValueError(
            "A quantised model cannot be saved: save the model it was made from, and "
            "call quantise_int8 again after loading that."
        )


def quantise_int8(model: nn.Module, kinds: Kinds | None = None) -> nn.Module:
    """A copy of the model for generating on the CPU, its linear layers `Int8Linear`.

    The output head becomes one as well, a tied one included. Layers that read the same
    vectors (queries, keys and values; gate and up) become one together, since each call
    costs time of its own. Embeddings stay as they are, and norms compute the same. The
    copy shares no memory with the model, takes no gradients and cannot be saved:
    quantising again takes seconds.

    Args:
        model: a model of this course on the CPU; it is left as it was.
        kinds: what replaces which kind of layer; `LLAMA_KINDS` by default.

    Returns:
        The copy, in evaluation mode.

    Raises:
        ValueError: the model is on another device, or a fast copy already.
    """
    return fused_copy(model, Int8Linear, kinds)


def check_int8_input(x: Tensor, in_features: int) -> None:
    """Raise unless x can be multiplied by 8-bit weights."""
    if x.shape[-1] != in_features:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, so its tokens are {x.shape[-1]} wide, but "
            f"this layer takes {in_features}."
        )
    if x.device.type != "cpu":
        raise ValueError(
            f"x is on {x.device}, but 8-bit weights are for the CPU: leave the model "
            "there, or use the one it was made from."
        )
    if x.requires_grad:
        raise ValueError(
            "A quantised layer passes no gradients: train the model that it was made "
            "from, and quantise that afterwards."
        )


def pack_int8(integers: Tensor, scales: Tensor) -> torch.ScriptObject:
    """The matrix in the order in which the processor's integer products read it.

    PyTorch's builds differ in the engines for such products; those for macOS have one,
    but choose none. Then the best there is is chosen here.

    PyTorch has announced that this interface will be replaced one day. It is used in
    these two functions only, and the announcement would tell a reader nothing.

    Args:
        integers: (N, K), int8.
        scales: (N,), what a 1 of each row stands for.

    Raises:
        ValueError: this build of PyTorch has no engine for them.
    """
    engines = torch.backends.quantized
    if engines.engine in _NO_ENGINE:
        there = [name for name in _ENGINES if name in engines.supported_engines]
        if not there:
            raise ValueError(
                "This build of PyTorch has no engine for products of 8-bit numbers: "
                "use the model as it is, or arrange_columns (--arrange)."
            )
        engines.engine = there[0]
    zeros = torch.zeros(len(scales), dtype=torch.long)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*quantized tensor", module="torch")
        warnings.filterwarnings("ignore", message=".*quantize_per_channel")
        make = torch._make_per_channel_quantized_tensor  # pyright: ignore
        matrix = make(integers, scales.double() / _LIFT, zeros, 0)
        return torch.ops.quantized.linear_prepack(matrix, None)


_ENGINES = ("x86", "fbgemm", "onednn", "qnnpack")  # the fastest first
_NO_ENGINE = ("none", "no_qengine")

# PyTorch makes no grid with a step below 6e-5, too coarse for vectors of small numbers.
# So they are multiplied by this, and the scales of the weights divided.
_LIFT = 1024.0


def int8_product(rows: Tensor, packed: torch.ScriptObject) -> Tensor:
    """Rows, (M, K) float32, rounded to 8 bits with one grid, times a packed matrix."""
    return torch.ops.quantized.linear_dynamic(rows * _LIFT, packed, sums_overflow())


@functools.cache
def sums_overflow() -> bool:
    """Whether this processor adds pairs of products in 16 bits, which overflow.

    Old ones do. With a grid of 7 bits for the rows, coarser but safe, they do not.
    """
    full = torch.full((4, 64), 127, dtype=torch.int8)
    packed = pack_int8(full, torch.ones(4))
    ones = torch.full((1, 64), _LIFT)
    sums = torch.ops.quantized.linear_dynamic(ones, packed, False)
    return bool((sums / (64 * 127) - 1).abs().max() > 0.01)


# --- Layers exchanged in a copy ------------------------------------------------------


@torch.no_grad()
def fused_copy(
    model: nn.Module,
    make: Callable[[Tensor, Tensor | None], nn.Module],
    kinds: Kinds | None = None,
) -> nn.Module:
    """A copy of the model in which each kind of layer in the table is replaced.

    Args:
        model: on the CPU, and no fast copy itself; it is left as it was.
        make: a fast layer from a weight, (N, K), and a bias, (N,) or None.
        kinds: what replaces which kind of layer; `LLAMA_KINDS` by default. A layer is
            looked up by its very class, and what is inside a replaced one is done.

    Returns:
        The copy, in evaluation mode and without gradients.

    Raises:
        ValueError: the model is on another device, or a fast copy already.
    """
    check_original(model)
    kinds = LLAMA_KINDS if kinds is None else kinds

    def side_by_side(*layers):
        weights = [layer.weight for layer in layers]
        biases = [
            layer.bias for layer in layers if getattr(layer, "bias", None) is not None
        ]
        weight = torch.cat(weights) if len(weights) > 1 else weights[0]
        return make(weight, torch.cat(biases) if biases else None)

    memo, done = {}, set()
    for layer in model.modules():  # each before the layers in it
        if id(layer) in done:
            continue
        if getattr(layer, "exact", False):
            memo[id(layer)] = copy.deepcopy(layer)
        elif type(layer) in kinds:
            memo[id(layer)] = kinds[type(layer)](layer, side_by_side)
        else:
            continue
        done.update(id(part) for part in layer.modules())
    return copy.deepcopy(model, memo).eval().requires_grad_(False)


def check_original(model: nn.Module) -> None:
    """Raise unless the model is on the CPU, and no fast copy itself."""
    for kind, done in ((Int8Linear, "quantised"), (ColumnLinear, "arranged")):
        if any(isinstance(layer, kind) for layer in model.modules()):
            raise ValueError(
                f"This model is {done} already: use it as it is, or start from the one "
                "it was made from."
            )
    devices = {parameter.device.type for parameter in model.parameters()}
    if devices != {"cpu"}:
        raise ValueError(
            f"The model is on {', '.join(sorted(devices)) or 'no device'}, but fast "
            'copies are for the CPU: move it with model.to("cpu") first.'
        )


class FusedAttention(GroupedQueryAttention):
    """The same attention; queries, keys and values are one product."""

    def __init__(self, source: GroupedQueryAttention, side_by_side: SideBySide):
        nn.Module.__init__(self)
        for size in ("d_in", "num_heads", "num_kv_groups", "head_dim"):
            setattr(self, size, getattr(source, size))
        self.W_query = side_by_side(source.W_query, source.W_key, source.W_value)
        self.out_proj = side_by_side(source.out_proj)

    def project(
        self, x: Tensor, rotate: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        heads = self.split_heads(self.W_query(x))  # (B, H + 2 G, T, K)
        H, G = self.num_heads, self.num_kv_groups
        turned, values = heads.split((H + G, G), dim=1)
        if rotate is not None:
            turned = rotate(turned)
        return *turned.split((H, G), dim=1), values

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None
    ) -> Tensor:
        if hidden is not None:
            return super().attend(queries, keys, values, hidden)
        return F.scaled_dot_product_attention(queries, keys, values, enable_gqa=True)


class FusedFeedForward(nn.Module):
    """The same feed-forward part with one product for gate and up."""

    def __init__(self, source: LlamaFeedForward, side_by_side: SideBySide):
        super().__init__()
        self.up = side_by_side(source.gate, source.up)
        self.down = side_by_side(source.down)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.up(x).chunk(2, dim=-1)  # (B, T, F) each
        return self.down(F.silu(gate) * up)


class FusedNorm(RMSNorm):
    """The same normalisation in four calls instead of six.

    x / sqrt(|x|^2 / D + eps) is sqrt(D) x / sqrt(|x|^2 + D eps), and the last root is
    the hypotenuse over |x| and sqrt(D eps).
    """

    least: Tensor

    def __init__(self, source: RMSNorm):
        nn.Module.__init__(self)
        D = len(source.scale)
        wide = torch.promote_types(source.scale.dtype, torch.float32)
        self.scale = nn.Parameter(source.scale.to(wide) * D**0.5)
        self.register_buffer("least", torch.tensor((D * source.eps) ** 0.5, dtype=wide))

    def forward(self, x: Tensor) -> Tensor:
        dtype = self.scale.dtype
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
        return (x / torch.hypot(length, self.least) * self.scale).to(x.dtype)


class FusedHeads(MultiHeadAttention):
    """Chapter 3's attention with one product for queries, keys and values."""

    mask: Tensor

    def __init__(self, source: MultiHeadAttention, side_by_side: SideBySide):
        nn.Module.__init__(self)
        for size in ("d_in", "d_out", "num_heads", "head_dim"):
            setattr(self, size, getattr(source, size))
        self.W_query = side_by_side(source.W_query, source.W_key, source.W_value)
        self.out_proj = side_by_side(source.out_proj)
        mask = source.get_buffer("mask").clone()
        self.register_buffer("mask", mask, persistent=False)

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        check_input(x, self.d_in)
        past = 0 if cache is None else cache.length
        B, T, _ = x.shape
        S = past + T
        check_length(S, self.mask.shape[0], past)
        seen = None if T == 1 else ~self.mask[past:S, :S]  # (T, S)
        if attention_mask is not None:
            check_attention_mask(attention_mask, B, S, past)
            real = attention_mask.bool()[:, None, None, :]  # (B, 1, 1, S)
            seen = real if seen is None else seen & real

        heads = self.W_query(x).view(B, T, 3, self.num_heads, self.head_dim)
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)  # (B, H, T, K) each
        if cache is not None:
            keys, values = cache.append(keys, values)
        context = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen)
        return self.out_proj(context.transpose(1, 2).flatten(2))


class FusedLayerNorm(nn.Module):
    """Chapter 4's normalisation in a single call."""

    def __init__(self, source: LayerNorm):
        super().__init__()
        self.scale, self.shift, self.eps = source.scale, source.shift, source.eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.scale.shape, self.scale, self.shift, self.eps)


def one_layer(layer: nn.Module, side_by_side: SideBySide) -> nn.Module:
    """A single linear layer, or a head that has its weight, as a fast one."""
    return side_by_side(layer)


LLAMA_KINDS: Kinds = {
    GroupedQueryAttention: FusedAttention,
    LlamaFeedForward: FusedFeedForward,
    RMSNorm: lambda norm, side_by_side: FusedNorm(norm),
    nn.Linear: one_layer,
    TiedHead: one_layer,
}
GPT_KINDS: Kinds = {
    **LLAMA_KINDS,
    MultiHeadAttention: FusedHeads,
    LayerNorm: lambda norm, side_by_side: FusedLayerNorm(norm),
    GELU: lambda gelu, side_by_side: nn.GELU(approximate="tanh"),
}
