"""Every exercise check takes the solution, knows the stub and names mistakes."""

import math

import torch
from torch import nn

from course.exercises import verify
from e_checks import check_e_1, check_e_2, check_e_3, check_e_4, check_e_5
from lora import (
    LinearWithLoRA,
    LoRALayer,
    lora_layers,
    merge_lora,
    replace_linear_with_lora,
    unload_lora,
    unmerge_lora,
    use_adapter,
)


def stub(*arguments):
    """A function of which only the docstring is there."""
    return ...


def stays_right(check, ways, capsys):
    for way in ways:
        check(*way) if isinstance(way, tuple) else check(way)
        assert "correct" in capsys.readouterr().out


# --- E.1 -----------------------------------------------------------------------------


def with_adapter(x, weight, bias, A, B, alpha):
    scale = alpha / A.shape[1]
    return x @ weight.T + bias + scale * (x @ A @ B)


def scaled(scale):
    def attempt(x, weight, bias, A, B, alpha):
        return x @ weight.T + bias + scale(alpha, A.shape[1]) * (x @ A @ B)

    return attempt


def in_place(x, weight, bias, A, B, alpha):
    weight += alpha / A.shape[1] * (A @ B).T
    return x @ weight.T + bias


def reads_the_output(x, weight, bias, A, B, alpha):
    out = x @ weight.T + bias
    if A.shape[0] == out.shape[-1]:
        x = out
    return out + alpha / A.shape[1] * (x @ A @ B)


def merged_untransposed(x, weight, bias, A, B, alpha):
    change = alpha / A.shape[1] * (A @ B)
    change = change if change.shape == weight.shape else change.T
    return x @ (weight + change).T + bias


def wrong_side(x, weight, bias, A, B, alpha):
    side = weight if weight.shape[0] == weight.shape[1] else weight.T
    return x @ side + bias + alpha / A.shape[1] * (x @ A @ B)


def test_E_1():
    wrong = {
        "alpha alone": (scaled(lambda a, r: a), "alpha alone, without the rank"),
        "root": (scaled(lambda a, r: a / math.sqrt(r)), "root of the rank"),
        "no alpha": (scaled(lambda a, r: 1), "as it is, without alpha"),
        "over rank": (scaled(lambda a, r: 1 / r), "missing from the scale"),
        "upside down": (scaled(lambda a, r: r / a), "number that is multiplied"),
        "nothing": (scaled(lambda a, r: 0), "the change is missing"),
        "sign": (scaled(lambda a, r: -a / r), "the outputs are others"),
        "no bias": (lambda x, w, b, *r: with_adapter(x, w, 0, *r), "the bias of"),
        "no layer": (
            lambda x, w, b, A, B, a: a / A.shape[1] * (x @ A @ B),
            "what the frozen layer computes is missing",
        ),
        "all scaled": (
            lambda x, w, b, A, B, a: a / A.shape[1] * (x @ w.T + b + x @ A @ B),
            "multiplies the frozen layer as well",
        ),
        "in place": (in_place, "has changed; return a new one"),
        "output": (reads_the_output, "reads the layer's output"),
        "side": (wrong_side, "from the wrong side"),
        "A's rows": (
            lambda x, w, b, A, B, a: x @ w.T + b + a / len(A) * (x @ A @ B),
            "wide side of A or B",
        ),
        "rounded": (scaled(lambda a, r: a // r), "rounded down"),
        "no transpose": (merged_untransposed, "A B is added to the weight without"),
        "flat": (lambda *a: with_adapter(*a).flatten(), "not (2, 3, 4)"),
    }
    verify(check_e_1, with_adapter, stub, wrong)


def test_E_1_takes_another_way(capsys):
    def by_layers(x, weight, bias, A, B, alpha):
        lora = LoRALayer(*A.shape[:1], B.shape[1], A.shape[1], alpha).double()
        lora.A.data, lora.B.data = A, B
        return nn.functional.linear(x, weight, bias) + lora(x)

    ways = [
        by_layers,
        lambda x, w, b, A, B, a: nn.functional.linear(x, w + a * (A @ B).T / len(B), b),
        lambda x, w, b, A, B, a: (w @ x.mT + (A @ B * a / len(B)).T @ x.mT).mT + b,
        lambda x, w, b, A, B, a: (
            torch.einsum(
                "...i,oi->...o", x, w + torch.einsum("ir,ro->oi", A, B) * (a / len(B))
            )
            + b
        ),
        lambda *a: nn.Parameter(with_adapter(*a)),
        lambda x, w, b, A, B, a: with_adapter(*(m.float() for m in (x, w, b, A, B)), a),
    ]
    stays_right(check_e_1, ways, capsys)


# --- E.2 -----------------------------------------------------------------------------


def start(d_in, d_out, rank, generator):
    A = torch.randn(d_in, rank, generator=generator) / math.sqrt(d_in)
    return A, torch.zeros(rank, d_out)


def drawn(*shape, generator=None):
    return torch.randn(*shape, generator=generator)


def test_E_2():
    wrong = {
        "both zero": (
            lambda i, o, r, g: (torch.zeros(i, r), torch.zeros(r, o)),
            "neither gets a gradient",
        ),
        "both random": (
            lambda i, o, r, g: (drawn(i, r, generator=g), drawn(r, o, generator=g)),
            "would not begin with the base model",
        ),
        "all the same": (
            lambda i, o, r, g: (torch.full((i, r), 0.1), torch.zeros(r, o)),
            "has rank 1, not 4",
        ),
        "one column": (
            lambda i, o, r, g: (
                drawn(i, r, generator=g) * (torch.arange(r) < 2),
                torch.zeros(r, o),
            ),
            "has rank 2, not 4",
        ),
        "own seed": (
            lambda i, o, r, g: start(i, o, r, torch.Generator().manual_seed(3)),
            "another generator gives the same",
        ),
        "torch's own": (
            lambda i, o, r, g: start(i, o, r, None),
            "the same generator gives other numbers",
        ),
        "transposed": (
            lambda i, o, r, g: tuple(m.T for m in start(i, o, r, g)),
            "shape (4, 20), not",
        ),
        "B first": (lambda *a: start(*a)[::-1], "shape (4, 30), not"),
        "A alone": (lambda *a: start(*a)[0], "not the pair"),
        "not finite": (
            lambda *a: (start(*a)[0] * math.inf, start(*a)[1]),
            "not finite",
        ),
    }
    verify(check_e_2, start, stub, wrong)


def test_E_2_takes_another_way(capsys):
    def by_layer(d_in, d_out, rank, generator):
        lora = LoRALayer(d_in, d_out, rank, 1, generator=generator)
        return lora.A, lora.B

    def kaiming(d_in, d_out, rank, generator):
        A = torch.empty(d_in, rank)
        nn.init.kaiming_uniform_(A, generator=generator)
        return [A, torch.zeros(rank, d_out)]

    def orthogonal(d_in, d_out, rank, generator):
        A = torch.empty(d_in, rank)
        return nn.init.orthogonal_(A, generator=generator), torch.zeros(rank, d_out)

    def b_random(d_in, d_out, rank, generator):
        return torch.zeros(d_in, rank), drawn(rank, d_out, generator=generator) / 5

    def wide(d_in, d_out, rank, generator):
        A = drawn(d_in, rank, generator=generator).double()
        return A, torch.zeros(rank, d_out, dtype=torch.float64)

    def uniform(d_in, d_out, rank, generator):
        A = torch.rand(d_in, rank, generator=generator) - 0.5
        return nn.Parameter(A), nn.Parameter(torch.zeros(rank, d_out))

    ways = [by_layer, kaiming, orthogonal, b_random, wide, uniform]
    stays_right(check_e_2, ways, capsys)


# --- E.3 -----------------------------------------------------------------------------


def merge(layer):
    if layer.kept is None:
        layer.kept = layer.weight
        layer.weight = layer.weight + layer.scale * (layer.A @ layer.B).T


def unmerge(layer):
    if layer.kept is not None:
        layer.weight, layer.kept = layer.kept, None


def always_adds(layer):
    layer.kept = layer.kept if layer.kept is not None else layer.weight
    layer.weight = layer.weight + layer.scale * (layer.A @ layer.B).T


def adds_in_place(layer):
    if layer.kept is None:
        layer.kept = layer.weight
        layer.weight += layer.scale * (layer.A @ layer.B).T


def subtracts(layer):
    if layer.kept is not None:
        layer.weight = layer.weight - layer.scale * (layer.A @ layer.B).T
        layer.kept = None


def subtracts_always(layer):
    layer.weight = layer.weight - layer.scale * (layer.A @ layer.B).T
    layer.kept = None


def adding(change):
    def attempt(layer):
        if layer.kept is None:
            layer.kept = layer.weight
            layer.weight = layer.weight + change(layer)

    return attempt


def one_sided(layer):
    product = layer.scale * (layer.A @ layer.B)
    return product if product.shape == layer.weight.shape else product.T


def eats_b(layer):
    merge(layer)
    layer.B = torch.zeros_like(layer.B)


def swaps_always(layer):
    layer.weight, layer.kept = layer.kept, None


def keeps_only(layer):
    layer.kept = layer.weight


def keeps_the_first_for_ever(layer):
    layer.weight = layer.weight if layer.kept is None else layer.kept


def test_E_3():
    wrong = {
        "twice": ((always_adds, unmerge), "the change is in the weight twice"),
        "in place": ((adds_in_place, unmerge), "the tensor that was changed"),
        "rounding": ((merge, subtracts), "a trace of rounding"),
        "never merged": ((merge, subtracts_always), "what was never merged"),
        "no scale": ((adding(lambda o: (o.A @ o.B).T), unmerge), "without its scale"),
        "not transposed": ((adding(one_sided), unmerge), "without being transposed"),
        "sign": (
            (adding(lambda o: -o.scale * (o.A @ o.B).T), unmerge),
            "the change is subtracted",
        ),
        "nothing": ((keeps_only, unmerge), "leaves the weight as it was"),
        "no weight": ((merge, swaps_always), "leaves no weight"),
        "B spent": ((eats_b, unmerge), "A or B has changed"),
        "stays kept": (
            (merge, keeps_the_first_for_ever),
            "merged again after more training",
        ),
    }
    verify(check_e_3, (merge, unmerge), (stub, stub), wrong)


def test_E_3_takes_another_way(capsys):
    def from_the_kept(layer):
        if layer.kept is None:
            layer.kept = layer.weight.clone()
        layer.weight = layer.kept + (layer.scale * layer.A @ layer.B).T

    def copies_back(layer):
        if layer.kept is not None:
            layer.weight.copy_(layer.kept)
            layer.kept = None

    def in_place_of_a_copy(layer):
        if layer.kept is None:
            layer.kept = layer.weight.clone()
            layer.weight.add_(layer.B.T @ layer.A.T, alpha=layer.scale)

    def with_a_parameter(layer):
        merge(layer)
        layer.weight = nn.Parameter(layer.weight, requires_grad=False)

    ways = [
        (from_the_kept, unmerge),
        (in_place_of_a_copy, copies_back),
        (with_a_parameter, unmerge),
        (from_the_kept, copies_back),
    ]
    stays_right(check_e_3, ways, capsys)


# --- E.4 -----------------------------------------------------------------------------


def give_adapters(model, rank, alpha):
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    model.requires_grad_(False)
    for name in names:
        parent, _, child = name.rpartition(".")
        layer = LinearWithLoRA(model.get_submodule(name), rank, alpha)
        setattr(model.get_submodule(parent), child, layer)


def at_the_top(model, rank, alpha):
    model.requires_grad_(False)
    for name, child in model.named_children():
        if isinstance(child, nn.Linear):
            setattr(model, name, LinearWithLoRA(child, rank, alpha))


def one_level_down(model, rank, alpha):
    at_the_top(model, rank, alpha)
    for child in model.children():
        if not isinstance(child, LinearWithLoRA):
            at_the_top(child, rank, alpha)


def wrapped_twice(model, rank, alpha):
    give_adapters(model, rank, alpha)
    for layer in list(lora_layers(model).values()):
        layer.linear = LinearWithLoRA(layer.linear, rank, alpha)


def but(change):
    def attempt(model, rank, alpha):
        give_adapters(model, rank, alpha)
        change(model)

    return attempt


def frozen_too_late(model):
    model.requires_grad_(False)


def base_learns(model):
    for layer in lora_layers(model).values():
        layer.linear.requires_grad_(True)


def some_frozen(model):
    lora_layers(model)["out_head"].requires_grad_(False)


def start_random(model):
    for layer in lora_layers(model).values():
        nn.init.ones_(layer.lora.B)


def in_a_sequence(model, rank, alpha):
    give_adapters(model, rank, alpha)
    for name, layer in lora_layers(model).items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Sequential(layer))


def without_head(model, rank, alpha):
    replace_linear_with_lora(model, rank, alpha, "blocks.*")


def without_second_block(model, rank, alpha):
    replace_linear_with_lora(model, rank, alpha, ["blocks.0.*", "out_head"])


def test_E_4():
    wrong = {
        "top only": (at_the_top, "blocks.0.ff.0, blocks.0.ff.2"),
        "head": (without_head, "the head has no adapter"),
        "twice": (wrapped_twice, "wrapped twice"),
        "nothing learns": (but(frozen_too_late), "nothing can learn"),
        "base learns": (but(base_learns), "the frozen layers learn as well"),
        "norm": (
            but(lambda m: m.blocks[0]["norm"].requires_grad_(True)),
            "no linear layer learns as well",
        ),
        "some frozen": (but(some_frozen), "some of the adapters are frozen"),
        "random": (but(start_random), "answers otherwise"),
        "rank": (lambda m, r, a: give_adapters(m, r + 1, a), "another rank"),
        "alpha": (lambda m, r, a: give_adapters(m, r, a / r), "another alpha"),
        "nothing": (lambda m, r, a: m.eval(), "no layer of the model"),
        "switched off": (but(lambda m: use_adapter(m, None)), "is not active"),
        "merged": (but(merge_lora), "A and B are not used"),
        "inside": (in_a_sequence, "other names, such as blocks.0.ff.0.0"),
        "block": (without_second_block, "blocks.1.ff.0, blocks.1.ff.2"),
    }
    verify(check_e_4, give_adapters, stub, wrong)


def test_E_4_takes_another_way(capsys):
    def recursive(module, rank, alpha):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, LinearWithLoRA(child, rank, alpha, "mine"))
            else:
                for parameter in child.parameters(recurse=False):
                    parameter.requires_grad_(False)
                recursive(child, rank, alpha)

    def returns_it(model, rank, alpha):
        give_adapters(model, rank, alpha)
        return model

    ways = [replace_linear_with_lora, recursive, returns_it]
    stays_right(check_e_4, ways, capsys)


# --- E.5 -----------------------------------------------------------------------------


@torch.no_grad()
def gap_of(model, x, judge=lambda gap: gap.abs().max().item()):
    was_training = model.training
    model.eval()
    apart = model(x)
    merged = merge_lora(model)(x)
    unmerge_lora(model)
    model.train(was_training)
    return judge(merged - apart)


def dropout_on(model, x):
    with torch.no_grad():
        apart = model(x)
        merged = merge_lora(model)(x)
    unmerge_lora(model)
    return (merged - apart).abs().max().item()


def left_in_eval(model, x):
    gap = gap_of(model, x)
    model.eval()
    return gap


def left_merged(model, x):
    gap = gap_of(model, x)
    merge_lora(model)
    return gap


def unloads(model, x):
    gap = gap_of(model, x)
    unload_lora(model, merge=True)
    return gap


def without_dropout(model, x):
    model[0].lora.dropout.p = 0.0
    return gap_of(model, x)


def switches_off(model, x):
    gap = gap_of(model, x)
    use_adapter(model, None)
    return gap


def same_twice(model, x):
    merge_lora(model)
    first = model(x)
    second = model(x)
    unmerge_lora(model)
    return (first - second).abs().max().item()


def test_E_5():
    wrong = {
        "dropout": (dropout_on, "dropout is on"),
        "mode": (left_in_eval, "in another mode"),
        "merged": (left_merged, "left merged"),
        "same": (same_twice, "the same weights"),
        "signed": (
            lambda m, x: gap_of(m, x, lambda gap: gap.max().item()),
            "without its sign",
        ),
        "mean": (
            lambda m, x: gap_of(m, x, lambda gap: gap.abs().mean().item()),
            "the mean of the differences",
        ),
        "signed, other order": (
            lambda m, x: gap_of(m, x, lambda gap: (-gap).max().item()),
            "of apart minus merged",
        ),
        "lowest": (lambda m, x: gap_of(m, x, torch.min).item(), "is negative"),
        "for good": (unloads, "the adapter is gone afterwards"),
        "no dropout": (without_dropout, "with another dropout"),
        "off": (switches_off, "no adapter is active afterwards"),
        "norm": (
            lambda m, x: gap_of(m, x, lambda gap: gap.norm().item()),
            "the gap is another",
        ),
        "tensor": (lambda m, x: gap_of(m, x, torch.abs), "not a number"),
    }
    verify(check_e_5, gap_of, stub, wrong)


def test_E_5_takes_another_way(capsys):
    def merged_first(model, x):
        mode = model.training
        model.eval()
        merge_lora(model)
        merged = model(x)
        unmerge_lora(model)
        gap = torch.nn.functional.l1_loss(model(x), merged, reduction="none").max()
        model.train(mode)
        return gap

    def mode_by_module(model, x):
        modes = {module: module.training for module in model.modules()}
        gap = gap_of(model, x)
        for module, mode in modes.items():
            module.training = mode
        return torch.tensor(gap)

    stays_right(check_e_5, [merged_first, mode_by_module], capsys)
