"""All ways to compute attention as one table of layers, and what each of them costs.

Made for the notebook, the tests and `experiments.py`: the layers with the weights of
one source, how far they are from it, and the memory they take.

>>> layers = make_layers(width=8, context_length=6, num_heads=2, seed=0)
>>> len(layers), next(iter(layers))
(11, 'loops')
>>> x = torch.randn(2, 6, 8)
>>> forward, backward = differences(layers["einsum"], layers[SOURCE], x)
>>> forward < 1e-6, backward < 1e-5
(True, True)
>>> backward_is_missing("FlexAttention", x.device)
True
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from mha_implementations import (
    MHAEinsum,
    MHAListOfHeads,
    MHALoops,
    MHAPyTorchClass,
    MHAPyTorchFlexAttention,
    MHAPyTorchScaledDotProduct,
    MHAPyTorchSDPAWithoutFlash,
    MHATiled,
    MultiHeadAttentionCombinedQKV,
    give_weights,
    translated,
)
from multihead_attention import MultiHeadAttention

SOURCE = "MultiHeadAttention"
FLEX = "FlexAttention"
WAYS: dict[str, Callable[..., nn.Module]] = {
    "loops": MHALoops,
    "list of heads": MHAListOfHeads,
    SOURCE: MultiHeadAttention,
    "combined QKV": MultiHeadAttentionCombinedQKV,
    "einsum": MHAEinsum,
    "SDPA, causal": MHAPyTorchScaledDotProduct,
    "SDPA, mask": MHAPyTorchSDPAWithoutFlash,
    "nn.MultiheadAttention": MHAPyTorchClass,
    "nn.MultiheadAttention, no weights": lambda *sizes: MHAPyTorchClass(
        *sizes, need_weights=False
    ),
    FLEX: MHAPyTorchFlexAttention,
    "tiles": MHATiled,
}


def make_layers(
    width: int, context_length: int, num_heads: int, seed: int, tile: int = 128
) -> dict[str, nn.Module]:
    """All layers, with the same weights and without dropout.

    Args:
        width: of the tokens that go in and of those that come out.
        context_length: the most tokens of a sequence.
        num_heads: a divisor of `width`.
        seed: of the weights.
        tile: queries and keys in a tile of the tiled layer.
    """
    torch.manual_seed(seed)
    sizes = (width, width, context_length, 0.0, num_heads)
    source = MultiHeadAttention(*sizes)
    layers: dict[str, nn.Module] = {}
    for name, make in WAYS.items():
        layer = source if name == SOURCE else make(*sizes)
        if isinstance(layer, MHATiled):
            layer.tile = tile
        if layer is not source:
            give_weights(source, layer)
        layers[name] = layer
    return layers


def backward_is_missing(name: str, device: torch.device) -> bool:
    """Whether PyTorch has no backward pass for this way on this device."""
    return name == FLEX and device.type == "cpu"


def gradients(layer: nn.Module, x: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Gradients of all trained weights, and of x as "x", for one output gradient."""
    x = x.detach().requires_grad_()
    generator = torch.Generator().manual_seed(seed)
    output = layer(x)
    pull = torch.randn(output.shape, generator=generator, dtype=output.dtype)
    named = {k: p for k, p in layer.named_parameters() if p.requires_grad} | {"x": x}
    found = torch.autograd.grad(output, list(named.values()), pull.to(x.device))
    return dict(zip(named, found, strict=True))


def differences(
    layer: nn.Module, source: nn.Module, x: Tensor, backward: bool = True
) -> tuple[float, float | None]:
    """How far a layer is from its source: the largest difference forward and backward.

    Args:
        layer: any layer of `make_layers`.
        source: the `MultiHeadAttention` whose weights it has.
        x: (B, T, D).
        backward: without it the second figure is None.

    Returns:
        Of the outputs, absolute; of the gradients, relative, the worst of all weights
        and of x. Each is divided by the largest entry of the source's gradient, or,
        where that is next to nothing (a bias of the keys), a thousandth of the largest.
    """
    with torch.no_grad():
        forward = (layer(x) - source(x)).abs().max().item()
    if not backward:
        return forward, None
    found, reference = gradients(layer, x), gradients(source, x)
    expected = translated(
        {name: grad for name, grad in reference.items() if name != "x"}, layer
    )
    expected["x"] = reference["x"]
    scales = {name: grad.abs().max().item() for name, grad in expected.items()}
    least = max(scales.values()) / 1000
    worst = max(
        (grad - expected[name]).abs().max().item() / max(scales[name], least)
        for name, grad in found.items()
    )
    return forward, worst


def kept_bytes(layer: nn.Module, x: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, beside weights and x.

    Memory that several kept tensors share counts once.
    """
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # itself would keep itself alive

    x = x.detach().requires_grad_()
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output = layer(x)
    known = [x, *layer.parameters(), *layer.buffers()]
    for tensor in known:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    del output
    return sum(kept.values())


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes that PyTorch held at once during a call, beside those before it.

    On a CPU the profiler's list of all reservations and releases is added up; on a
    graphics card PyTorch keeps count itself.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or each use prints two lines
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    profiler: Any = recorded.profiler
    events = profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes):
        held += change
        peak = max(peak, held)
    return peak
