"""Training a GPT faster, one change at a time (chapter 5, bonus).

Each change leaves the loss and the gradients what they were, up to the rounding of the
number type, but for the larger batch:

* the model, in place and on the same weights: `forget_masks`, `fuse_norms_and_gelu`,
  `fuse_attention`, `join_projections`, `pad_vocabulary`, `compile_blocks`;
* the loss: `NextTokenLoss`, the model and its loss as one module, which with `rows`
  never holds more logits than a chunk has (`chunked_loss`);
* the step: `TrainingRun` adds bfloat16 and the fused AdamW, and `RECIPES` names all of
  them in order; `prefetched` brings batches to a graphics card while it computes;
* the way back: `plain_names` gives weights or gradients their names in `GPTModel`.

>>> import torch
>>> from gpt import GPT_CONFIG_124M
>>> cfg = {**GPT_CONFIG_124M, "vocab_size": 50, "context_length": 8, "emb_dim": 12,
...        "n_heads": 3, "n_layers": 2, "drop_rate": 0.0, "tie_weights": True}
>>> ids = torch.arange(36).view(4, 9)
>>> batch = ids[:, :-1], ids[:, 1:]
>>> plain, fast = (TrainingRun(cfg, RECIPES[name]) for name in ("plain", "chunks"))
>>> bool(abs(plain.step(*batch) - fast.step(*batch)) < 1e-5)
True
>>> bool(abs(plain.step(*batch) - fast.step(*batch)) < 1e-4)  # after an update
True
>>> fast.model.cfg["vocab_size"], fast.plain_model().cfg["vocab_size"]
(64, 50)

Sources: Dao and others, 2022 (arXiv:2205.14135) for fused attention; Micikevicius and
others, 2017 (arXiv:1710.03740) for the half precision, which is appendix D's
`in_bfloat16`; Hsu and others, 2024 (arXiv:2410.10989) for the loss in chunks; Ansel and
others, 2024 (DOI 10.1145/3620665.3640366) for `torch.compile`. Left out: 8-bit
numbers, kernels of one's own, several machines.

Shapes: B sequences, T tokens in each, N = B T, D model width, H heads, K head width,
V vocabulary.
"""

import dataclasses
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from fast_copies import FusedLayerNorm
from gpt import GELU, GPTModel, LayerNorm, initialise_like_gpt2
from gpt_train import IGNORE_INDEX, calc_loss_batch
from mha_implementations import MHAPyTorchScaledDotProduct
from multihead_attention import MultiHeadAttention
from resize import resize_vocabulary, zero_rows
from training_loop import in_bfloat16

# --- The parts of the model ----------------------------------------------------------


class LeanAttention(nn.Module):
    """Causal attention without a stored mask, on the weights of another layer.

    Args:
        source: chapter 3's; its projections and its dropout are used, not copied.
    """

    def __init__(self, source: MultiHeadAttention):
        super().__init__()
        self.num_heads, self.head_dim = source.num_heads, source.head_dim
        self.W_query, self.W_key = source.W_query, source.W_key
        self.W_value, self.out_proj = source.W_value, source.out_proj
        self.dropout = source.dropout

    def project(self, x: Tensor) -> list[Tensor]:
        """Queries, keys and values of each head: (B, T, D) to three (B, H, T, K)."""
        three = self.W_query(x), self.W_key(x), self.W_value(x)
        by_head = (self.num_heads, self.head_dim)
        return [part.unflatten(2, by_head).transpose(1, 2) for part in three]

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Causal attention of each head, three times (B, H, T, K) to one."""
        T = queries.shape[2]
        ones = torch.ones(T, T, dtype=torch.bool, device=queries.device)
        scores = queries @ keys.transpose(2, 3) / self.head_dim**0.5
        scores = scores.masked_fill(ones.triu(1), -torch.inf)  # (B, H, T, T)
        weights = torch.softmax(scores, dim=-1)
        return self.dropout(weights) @ values

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        """(B, T, D) to (B, T, D); `ValueError` for padding or a cache."""
        if attention_mask is not None or cache is not None:
            raise ValueError("This layer trains on whole sequences: see `plain_model`.")
        context = self.attend(*self.project(x))  # (B, H, T, K)
        return self.out_proj(context.transpose(1, 2).flatten(2))


class FusedCausalAttention(LeanAttention):
    """The same in PyTorch's fused function, told that it is causal."""

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As in `LeanAttention`, by the call of chapter 3's bonus."""
        return MHAPyTorchScaledDotProduct.attend(self, queries, keys, values)  # type: ignore[arg-type]


class JoinedAttention(FusedCausalAttention):
    """And one product makes queries, keys and values.

    Args:
        source: chapter 3's; its three matrices are copied into one.
    """

    def __init__(self, source: MultiHeadAttention):
        super().__init__(source)
        three = source.W_query, source.W_key, source.W_value
        D, has_bias = source.d_in, source.W_query.bias is not None
        self.qkv = nn.Linear(D, 3 * D, has_bias, device="meta")  # no numbers yet
        for name in ("weight", "bias") if has_bias else ("weight",):
            joined = torch.cat([getattr(part, name) for part in three]).detach()
            setattr(self.qkv, name, nn.Parameter(joined))
        del self.W_query, self.W_key, self.W_value

    def project(self, x: Tensor) -> list[Tensor]:
        """As in `LeanAttention`."""
        heads = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim))
        return list(heads.permute(2, 0, 3, 1, 4))  # (3, B, H, T, K)


class PaddedHead(nn.Module):
    """A head in which the rows behind the last token are never predicted.

    Their logits are minus infinity, by a bias of the product that is not learned. So
    their probability and their gradient are zero.

    Args:
        head: `nn.Linear` without bias or `TiedHead`, padded; it is used, not copied.
        n_vocab: how many of its rows have a token.
    """

    def __init__(self, head: nn.Module, n_vocab: int):
        super().__init__()
        self.head = head
        bias = torch.zeros(len(self.weight)).to(self.weight)
        bias[n_vocab:] = -math.inf
        self.register_buffer("bias", bias, persistent=False)

    @property
    def weight(self) -> Tensor:
        """The weights of the padded head, (V, D)."""
        return self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (..., D) to (..., V)."""
        return F.linear(x, self.weight, self.bias)


# --- One change at a time ------------------------------------------------------------


def replace_parts(model: nn.Module, kind: type, make: Callable) -> None:
    """Put `make(part)` in the place of every part of just this kind."""
    for module in list(model.modules()):
        for name, part in list(module.named_children()):
            if type(part) is kind:
                setattr(module, name, make(part))


def forget_masks(model: GPTModel) -> None:
    """Attention that makes its mask when it needs it, on the same weights."""
    replace_parts(model, MultiHeadAttention, LeanAttention)


def fuse_norms_and_gelu(model: GPTModel) -> None:
    """PyTorch's own layer norm and GELU, one call each, on the same weights."""
    replace_parts(model, LayerNorm, FusedLayerNorm)
    replace_parts(model, GELU, lambda _: nn.GELU(approximate="tanh"))


def fuse_attention(model: GPTModel) -> None:
    """Scores, mask, softmax and weighted sum in one call, on the same weights."""
    replace_parts(model, MultiHeadAttention, FusedCausalAttention)


def join_projections(model: GPTModel) -> None:
    """`fuse_attention`, and one matrix for queries, keys and values: new parameters."""
    replace_parts(model, MultiHeadAttention, JoinedAttention)


def pad_vocabulary(model: GPTModel, multiple: int) -> None:
    """Rows of zeros up to a multiple, never predicted: new parameters."""
    n_vocab = model.cfg["vocab_size"]
    resize_vocabulary(model, n_vocab, zero_rows, multiple=multiple)
    model.out_head = PaddedHead(model.out_head, n_vocab)


def why_not_compiled() -> str | None:
    """Why `torch.compile` cannot work here, in one sentence; None if it can."""
    names = (os.environ.get("CXX"), "g++", "clang++", "cl")
    if not any(name and shutil.which(name) for name in names):
        return "Not compiled: no C++ compiler is on the path (g++, clang++ or cl)."
    return None


def compile_blocks(model: GPTModel) -> None:
    """Compile every block in place; all have one shape, so the work is done once.

    Names in the state stay, because `block.compile()` wraps nothing.
    """
    for block in model.trf_blocks:
        block.compile()


# --- The loss ------------------------------------------------------------------------


def in_wide(numbers: Tensor) -> Tensor:
    """Half precision as float32; other numbers as they are."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


class ChunkedLoss(torch.autograd.Function):
    """The head and the cross-entropy, forward and backward, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        rows: int,
    ) -> Tensor:
        """Arguments as `chunked_loss`; every target counts."""
        N, kind = len(x), x.device.type
        short = x.dtype
        if torch.is_autocast_enabled(kind):
            short = torch.get_autocast_dtype(kind)
        with torch.autocast(kind, enabled=False):
            head = weight.to(short)
            bias = None if bias is None else bias.to(short)
            grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
            total = in_wide(x.new_zeros(()))
            for i in range(0, N, rows):
                part = x[i : i + rows].to(short)
                wanted = targets[i : i + rows, None]
                logits = in_wide(F.linear(part, head, bias))  # (rows, V)
                log_probabilities = torch.log_softmax(logits, dim=-1)
                total -= log_probabilities.gather(1, wanted).sum()
                # What is left of the logits: how far each probability is too high.
                excess = log_probabilities.exp_().scatter_add_(
                    1, wanted, -torch.ones_like(wanted, dtype=total.dtype)
                )
                excess = (excess / N).to(short)
                grad_x[i : i + rows] = excess @ head
                if short == weight.dtype:
                    grad_weight.addmm_(excess.T, part)  # product and sum in one pass
                else:
                    grad_weight += excess.T @ part  # the sum keeps all its digits
        ctx.save_for_backward(grad_x, grad_weight)
        return total / N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        """The gradients are there already; the loss may have been scaled since."""
        grad_x, grad_weight = ctx.saved_tensors
        return grad * grad_x, grad * grad_weight, None, None, None


def chunked_loss(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, rows: int
) -> Tensor:
    """Mean cross-entropy of a head, without ever holding all logits.

    The gradients are made with the loss, in the forward pass: the logits of a chunk are
    needed for both, and are forgotten then. Only targets that count get logits. Not for
    float16 with a scaled loss: the scale comes after the gradients have been rounded.

    Args:
        x: vectors, (N, D).
        weight: of the head, (V, D).
        bias: of the head, (V,), not learned; or None.
        targets: (N,), or `IGNORE_INDEX`.
        rows: of x in a chunk.
    """
    if bias is not None and bias.requires_grad:
        raise ValueError("A bias that learns would get no gradient here.")
    counts = targets != IGNORE_INDEX
    if not counts.all():
        x, targets = x[counts], targets[counts]
    if not len(x):
        raise ValueError("No target of this batch counts: leave such batches out.")
    if torch.is_grad_enabled():
        return ChunkedLoss.apply(x, weight, bias, targets, rows)
    parts = zip(x.split(rows), targets.split(rows), strict=True)
    sums = [
        F.cross_entropy(in_wide(F.linear(part, weight, bias)), wanted, reduction="sum")
        for part, wanted in parts
    ]
    return torch.stack(sums).sum() / len(x)


class NextTokenLoss(nn.Module):
    """A GPT and its loss as one module: ids and targets in, one number out.

    Several processes exchange gradients for what happens inside of a module, so the
    loss has to be inside if it does the work of the head. The ids are not checked.

    Args:
        model: a `GPTModel`, changed or not.
        rows: of a chunk of `chunked_loss`; None makes all logits at once.
    """

    def __init__(self, model: GPTModel, rows: int | None = None):
        super().__init__()
        self.model, self.rows = model, rows

    def forward(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats, (B, T) and (B, T) to a scalar."""
        model, head = self.model, self.model.out_head
        positions = torch.arange(idx.shape[1], device=idx.device)
        x = model.tok_emb(idx) + model.pos_emb(positions)  # (B, T, D)
        x = model.drop_emb(x)
        for block in model.trf_blocks:
            x = block(x)
        x = model.final_norm(x).flatten(0, 1)  # (N, D)
        targets = targets.flatten()
        if self.rows is not None:
            bias = getattr(head, "bias", None)
            return chunked_loss(x, head.weight, bias, targets, self.rows)
        logits = in_wide(head(x))  # (N, V)
        return F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX)


# --- The step ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Which changes a `TrainingRun` makes; as it stands, chapter 5's plain loop.

    Args:
        attention: "plain", "lean" (no mask is kept), "fused" or "joined".
        fused_parts: PyTorch's layer norm and GELU.
        fused_adamw: an update in one pass over the weights.
        multiple: the rows of the vocabulary become a multiple of it.
        rows: of a chunk of the loss; None: all logits at once.
        bfloat16: matrix products in it.
        compiled: the blocks; `RuntimeError` where there is no compiler.
        batch_size: sequences in a batch, for whoever makes the batches.
    """

    attention: str = "plain"
    fused_parts: bool = False
    fused_adamw: bool = False
    multiple: int = 1
    rows: int | None = None
    bfloat16: bool = False
    compiled: bool = False
    batch_size: int = 2


ATTENTION = {
    "plain": lambda model: None,
    "lean": forget_masks,
    "fused": fuse_attention,
    "joined": join_projections,
}


def cumulative(**changes: dict[str, Any]) -> dict[str, Recipe]:
    """Recipes by name, each with one change more than the one before."""
    recipe, recipes = Recipe(), {"plain": Recipe()}
    for name, change in changes.items():
        recipe = dataclasses.replace(recipe, **change)
        recipes[name] = recipe
    return recipes


RECIPES = cumulative(
    no_mask={"attention": "lean"},
    fused_parts={"fused_parts": True},
    sdpa={"attention": "fused"},
    one_projection={"attention": "joined"},
    fused_adamw={"fused_adamw": True},
    padded={"multiple": 64},
    chunks={"rows": 128},
    bfloat16={"bfloat16": True},
    compiled={"compiled": True},
    large_batch={"batch_size": 8},
)


class TrainingRun:
    """A model, its loss and its optimizer, made by a recipe.

    Args:
        cfg: of a `GPTModel`, before padding.
        recipe: what is changed.
        device: of the model.
        seed: of the weights, which are GPT-2's start; the same for every recipe.
        learning_rate: of AdamW.
    """

    def __init__(
        self,
        cfg: Mapping[str, Any],
        recipe: Recipe,
        device: torch.device | str = "cpu",
        seed: int = 123,
        learning_rate: float = 4e-4,
    ):
        self.cfg, self.device, self.recipe = cfg, torch.device(device), recipe
        torch.manual_seed(seed)
        model = initialise_like_gpt2(GPTModel(cfg))
        ATTENTION[recipe.attention](model)
        if recipe.fused_parts:
            fuse_norms_and_gelu(model)
        if recipe.multiple > 1:
            pad_vocabulary(model, recipe.multiple)
        self.model = model.to(self.device)
        if recipe.compiled:
            reason = why_not_compiled()
            if reason:
                raise RuntimeError(reason)
            compile_blocks(model)
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=learning_rate,
            weight_decay=0.1,
            fused=recipe.fused_adamw,
        )
        self.loss_module: nn.Module | None = None
        if recipe != Recipe():
            self.loss_module = NextTokenLoss(model, recipe.rows)

    def in_parallel(self) -> None:
        """From here on, gradients are the mean over all processes of the group."""
        module = self.loss_module or NextTokenLoss(self.model, self.recipe.rows)
        self.loss_module = DistributedDataParallel(module)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch, which is on the run's device."""

        def calc_loss(inputs, targets, model, device):
            if self.loss_module is None:
                return calc_loss_batch(inputs, targets, model, device)
            return self.loss_module(inputs, targets)

        if self.recipe.bfloat16:
            calc_loss = in_bfloat16(calc_loss)
        return calc_loss(inputs, targets, self.model, self.device)

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """One update; returns the loss before it, a scalar on the device."""
        self.optimizer.zero_grad()
        loss = self.loss(inputs, targets)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def gradients(self) -> dict[str, Tensor]:
        """The gradients under the names of `GPTModel`."""
        named = self.model.named_parameters()
        return plain_names({n: p.grad for n, p in named}, self.cfg["vocab_size"])

    def plain_model(self) -> GPTModel:
        """A `GPTModel` with the weights so far: it can pad, cache and be saved."""
        state = plain_names(self.model.state_dict(), self.cfg["vocab_size"])
        model = GPTModel(self.cfg).to(self.device)
        model.load_state_dict(state)
        return model


def plain_names(tensors: Mapping[str, Tensor], n_vocab: int) -> dict[str, Tensor]:
    """Weights or gradients of a changed model under the names of `GPTModel`.

    Joined matrices are cut into three, and what belongs to padding falls away.
    """
    plain = {}
    for name, tensor in tensors.items():
        name = name.replace("out_head.head.", "out_head.")
        if ".qkv." in name:
            for part, third in zip(("query", "key", "value"), tensor.chunk(3)):
                plain[name.replace("qkv", f"W_{part}")] = third
        elif name in ("tok_emb.weight", "out_head.weight"):
            plain[name] = tensor[:n_vocab]
        else:
            plain[name] = tensor
    return plain


def prefetched(
    batches: Iterable[tuple[Tensor, ...]], device: torch.device | str
) -> Iterator[tuple[Tensor, ...]]:
    """The same batches on a device; a graphics card gets each one ahead of its turn.

    From pinned memory, which the system may not move, a card fetches a batch by
    itself, on a queue of its own, while it computes with the one before. On a CPU there
    is nothing to fetch.
    """
    device = torch.device(device)
    if device.type != "cuda":
        for batch in batches:
            yield tuple(tensor.to(device) for tensor in batch)
        return
    queue, ready = torch.cuda.Stream(device), None
    for batch in batches:
        with torch.cuda.stream(queue):
            coming = tuple(
                tensor.pin_memory().to(device, non_blocking=True) for tensor in batch
            )
        if ready is not None:
            yield ready
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(queue)
        for tensor in coming:
            tensor.record_stream(computing)  # its memory is not reused before
        ready = coming
    if ready is not None:
        yield ready
