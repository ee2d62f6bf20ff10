"""Fine-tuning with LoRA: a small trained matrix beside a large frozen one (appendix E).

* `low_rank_factors`: the best approximation of a matrix as a product of thin ones
  (section E.1);
* `LoRALayer` and `LinearWithLoRA`: such a product that learns, and a linear layer with
  one or more of them beside it (E.2, E.3);
* `linear_layers`, `chosen_names`, `replace_linear_with_lora`, `lora_layers`,
  `lora_parameters`: all layers of a model whose names fit get one (E.4);
* `merge_lora`, `unmerge_lora`, `unload_lora`: into the weights and out again (E.6);
* `use_adapter`, `adapter_names`: several on one base model (E.8).

`lora_files` beside it keeps an adapter in a file, also for the library `peft`.

A linear layer computes W x. Fine-tuning would make it (W + C) x. LoRA learns a change C
that is the product of two thin matrices, and leaves W as it was: Hu et al., 2021
(arXiv:2106.09685), section 4.1. Two things differ from the book that this course goes
with: in its printed form the product is multiplied by alpha, here by alpha / rank as in
the paper, so give `alpha * rank` for the same numbers; and A is drawn by the number of
its inputs, as in the authors' code, not by the rank. Left out: layers that are trained
whole beside the adapter, embeddings, convolutions, a base model in four bits.

>>> from torch import nn
>>> _ = torch.manual_seed(0)
>>> model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
>>> x = torch.randn(5, 6)
>>> before = model(x)
>>> _ = replace_linear_with_lora(model, rank=2, alpha=4)
>>> torch.equal(model(x), before)
True
>>> sum(p.numel() for p in lora_parameters(model))  # 2 * (6 + 8) + 2 * (8 + 3)
50
>>> optimizer = torch.optim.AdamW(lora_parameters(model), lr=0.1)
>>> model(x).square().mean().backward()
>>> optimizer.step()
>>> trained = model(x)
>>> torch.allclose(merge_lora(model)(x), trained, atol=1e-5)
True
>>> torch.equal(unload_lora(model)(x), before)
True

Shapes: (..., in_dim) into a linear layer and (..., out_dim) out of it, whatever stands
before the last dimension.
"""

import copy
import fnmatch
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

Names = str | Sequence[str] | Callable[[str], bool]


def low_rank_factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Two thin matrices whose product is nearest to a matrix, by the sum of squares.

    Args:
        matrix: (N, M), such as the change that fine-tuning made to a weight.
        rank: how many columns the first has, and rows the second.

    Returns:
        `(A, B)`, (N, rank) and (rank, M).

    Source: Eckart and Young, "The approximation of one matrix by another of lower
    rank", 1936: the largest singular values and what belongs to them.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank] * values[:rank], right[:rank]


# --- The layers ----------------------------------------------------------------------


class LoRALayer(nn.Module):
    """A change of a linear layer: x A B, times alpha / rank.

    A is drawn as PyTorch draws the weight of a linear layer with as many inputs, B is
    zero. So the change is zero at first, and only B has a gradient. With both at zero
    neither would, ever.

    Args:
        in_dim, out_dim: those of the linear layer.
        rank: width of the way through; the change has this rank at most.
        alpha: the product is multiplied by alpha / rank, so that its size depends less
            on the rank.
        dropout: share of the inputs set to 0 in training, at least 0 and below 1.
        generator: for A, on the CPU; None takes torch's own.

    Raises:
        ValueError: a rank below 1, or an alpha that is not finite.

    Source: Hu et al., 2021 (arXiv:2106.09685), section 4.1, where A is Gaussian.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        generator: Generator | None = None,
    ):
        super().__init__()
        if rank < 1 or not math.isfinite(alpha):
            raise ValueError(f"No rank and alpha of a LoRALayer: {rank}, {alpha}.")
        self.rank, self.alpha, self.scale = rank, alpha, alpha / rank
        self.A = nn.Parameter(torch.empty(in_dim, rank))
        self.B = nn.Parameter(torch.zeros(rank, out_dim))
        self.dropout = nn.Dropout(dropout)
        bound = in_dim**-0.5
        nn.init.uniform_(self.A, -bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dim) to (..., out_dim): what is added to the linear layer's output.

        From the left, x A first: the large product A B is never made.
        """
        return self.scale * (self.dropout(x) @ self.A @ self.B)

    def change(self) -> Tensor:
        """What is added to the weight when merged, (out_dim, in_dim)."""
        return self.scale * (self.A @ self.B).T


class LinearWithLoRA(nn.Module):
    """A linear layer, frozen, with the change of its active adapter added.

    Args:
        linear: the layer; it is kept, and its numbers never change.
        rank, alpha: of the first adapter, as in `LoRALayer`. It has the dtype and
            device of the layer. In bfloat16 small steps are rounded away, so that much
            of A may never move: train on a float32 base (peft keeps A and B in it).
        adapter: its name, without points, and not that of a method of `ModuleDict`.
        more: dropout and generator, as in `LoRALayer`.

    Attributes:
        linear: the frozen layer.
        adapters: its `LoRALayer`s by name.
        active: the name of the one that is added; None for none.
        merged: while an adapter is merged, the weight with it; otherwise None. It is in
            no state dict, and loading one takes it out.
    """

    def __init__(
        self,
        linear: nn.Linear,
        rank: int,
        alpha: float,
        adapter: str = "default",
        **more: Any,
    ):
        super().__init__()
        self.linear, self.adapters, self.active = linear, nn.ModuleDict(), None
        self.register_buffer("merged", None, persistent=False)
        self.add(rank, alpha, adapter, **more)
        linear.requires_grad_(False)

    def add(
        self, rank: int, alpha: float, adapter: str, **more: Any
    ) -> "LinearWithLoRA":
        """Put one more adapter beside the layer, the active one; return the layer."""
        if not adapter or "." in adapter or hasattr(self.adapters, adapter):
            raise ValueError(f"{adapter!r} is taken, or is no name.")
        sizes = self.linear.in_features, self.linear.out_features
        lora = LoRALayer(*sizes, rank, alpha, **more)
        self.adapters[adapter] = lora.to(self.linear.weight)
        self.train(self.linear.training)
        self.use(adapter)
        return self

    @property
    def lora(self) -> Any:
        """The active `LoRALayer`, or None."""
        return None if self.active is None else self.adapters[self.active]

    def use(self, adapter: str | None) -> None:
        """Add this adapter from now on, or none; only its parameters learn."""
        self.merged = None
        self.active = adapter if adapter in [*self.adapters] else None
        for name, lora in self.adapters.items():
            lora.requires_grad_(name == self.active)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dim) to (..., out_dim)."""
        if self.merged is not None:
            return nn.functional.linear(x, self.merged, self.linear.bias)
        out = self.linear(x)
        return out if self.lora is None else out + self.lora(x)

    @torch.no_grad()
    def plain(self) -> nn.Linear:
        """A new linear layer that computes what this one computes without dropout."""
        linear = copy.deepcopy(self.linear).requires_grad_(False)
        if self.lora is not None:
            linear.weight += self.lora.change()
        return linear

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self.merged = None  # made of what is now replaced
        super()._load_from_state_dict(*arguments)


# --- All layers of a model -----------------------------------------------------------


def linear_layers(model: nn.Module) -> dict[str, nn.Linear | LinearWithLoRA]:
    """The linear layers of a model by name, at any depth, with an adapter or without.

    A layer that has two names, because two places share it, is there twice.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    return {
        name: module
        for name, module in modules.items()
        if isinstance(module, (nn.Linear, LinearWithLoRA))
        and name
        and not isinstance(modules[name.rpartition(".")[0]], LinearWithLoRA)
    }


def lora_layers(model: nn.Module) -> dict[str, LinearWithLoRA]:
    """The layers with an adapter, by name; the model may be one itself, called ""."""
    modules = model.named_modules(remove_duplicate=False)
    return {name: m for name, m in modules if isinstance(m, LinearWithLoRA)}


def chosen_names(layers: Iterable[str], names: Names) -> list[str]:
    """The names of layers that a pattern, some patterns or a function choose, in order.

    Raises `ValueError` for a pattern that chooses none: nothing would learn.
    """
    layers, chosen = list(layers), set()
    several = not (isinstance(names, str) or callable(names))
    for one in names if several and names else [names]:
        found = {
            name
            for name in layers
            if (one(name) if callable(one) else fnmatch.fnmatchcase(name, str(one)))
        }
        if not found:
            raise ValueError(
                f"No linear layer is chosen by {one!r}: the model has "
                f"{', '.join(layers[:8]) or 'none inside'}."
            )
        chosen |= found
    return [name for name in layers if name in chosen]


def replace_linear_with_lora(
    model: nn.Module,
    rank: int,
    alpha: float,
    names: Names = "*",
    adapter: str = "default",
    **more: Any,
) -> nn.Module:
    """Put an adapter beside linear layers of a model, and freeze everything else.

    Called again with another name for `adapter` it adds one to the same base model;
    with the same name and other layers it adds those to it.

    Args:
        model: any model that calls its `nn.Linear`s; it changes. PyTorch's own
            `nn.MultiheadAttention` does not: it reads their weights, and will fail. The
            `Conv1D` of GPT-2 in the `transformers` library is none, and gets nothing.
        rank, alpha: as in `LoRALayer`.
        names: which layers: a pattern such as "trf_blocks.29.*" or "*.W_query", where
            `*` stands for any text, points included; several patterns; or a function of
            the name. The output head is a layer like others, unless it is tied to the
            token embedding.
        adapter: its name; it becomes the active one.
        more: dropout and generator, as in `LoRALayer`.

    Returns:
        The model.

    Raises:
        ValueError: a pattern fits no linear layer; a layer has such an adapter; or an
            argument is none. The model is unchanged.
    """
    layers = linear_layers(model)
    chosen = chosen_names(layers, names)
    for name in chosen:  # all are asked before one is changed
        if adapter in getattr(layers[name], "adapters", ()):
            raise ValueError(f"{name} has an adapter {adapter!r} already.")
    new = {}  # a layer that two places share stays shared
    for name in chosen:
        layer = layers[name]
        if layer not in new and isinstance(layer, LinearWithLoRA):
            new[layer] = layer.add(rank, alpha, adapter, **more)
        elif layer not in new:
            new[layer] = LinearWithLoRA(layer, rank, alpha, adapter, **more)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new[layer])
    model.requires_grad_(False)
    use_adapter(model, adapter)
    return model


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What learns: A and B of the active adapter in all layers, for an optimizer."""
    layers = dict.fromkeys(lora_layers(model).values())
    loras = [layer.lora for layer in layers if layer.lora is not None]
    return [parameter for lora in loras for parameter in lora.parameters()]


# --- Several adapters ----------------------------------------------------------------


def adapter_names(model: nn.Module) -> list[str]:
    """The names of all adapters of a model."""
    layers = lora_layers(model).values()
    return list(dict.fromkeys(name for layer in layers for name in layer.adapters))


def use_adapter(model: nn.Module, adapter: str | None) -> nn.Module:
    """Switch to another adapter; None leaves the base model. Return the model.

    What was merged is taken out. Only the adapter's own parameters learn: an optimizer
    is made anew. A layer without an adapter of that name computes as the base does.

    Raises:
        ValueError: no layer has such an adapter.
    """
    there = adapter_names(model)
    if adapter is not None and adapter not in there:
        raise ValueError(f"There is no adapter {adapter!r}, only {there}.")
    for layer in lora_layers(model).values():
        layer.use(adapter)
    return model


# --- Into the weights, and out again -------------------------------------------------


def merge_lora(model: nn.Module) -> nn.Module:
    """Add the active adapter into the weights, where it takes no time.

    Each layer gets a second weight, W + C, beside its own, which stays as it is. So
    merging twice is merging once, and what is taken out leaves no trace of rounding.
    Merged, nothing can learn. Returns the model.
    """
    for layer in lora_layers(model).values():
        layer.merged = None
        if layer.lora is not None:
            layer.merged = layer.plain().weight.detach()
    return model


def unmerge_lora(model: nn.Module) -> nn.Module:
    """Take the merged weights out again; return the model."""
    for layer in lora_layers(model).values():
        layer.merged = None
    return model


def unload_lora(model: nn.Module, merge: bool = False) -> Any:
    """Put plain linear layers back, those of before or merged ones; return the model.

    Args:
        model: it changes, and its layers are `nn.Linear` again, still frozen. A single
            `LinearWithLoRA` is not changed; what it was made from is returned.
        merge: whether the active adapter is added into the weights first, for good. The
            others are gone in any case.
    """
    plain = {}  # shared stays shared
    for name, layer in lora_layers(model).items():
        if layer not in plain:
            plain[layer] = layer.plain() if merge else layer.linear
        if not name:
            return plain[layer]
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, plain[layer])
    return model
