"""The checks of the exercises in `appendix-E.ipynb`; see `course.exercises`.

What is right is computed as plainly as it can be said. What the known slips would give
is computed beside it.
"""

import types

import torch
from torch import nn

from course.exercises import (
    call,
    check,
    describe,
    expect,
    expect_close,
    expect_no_slip,
    expect_number,
    expect_tensor,
    random_tensor,
    seeded,
)
from lora import LinearWithLoRA, lora_layers, merge_lora, unmerge_lora

# --- E.1 A layer with an adapter ------------------------------------------------------


@check("E.1")
def check_e_1(attempt):
    for shape, d_out, rank, alpha in (
        ((2, 3, 4), 4, 2, 5.0),  # square, so that a wrong side shows
        ((5, 4), 6, 3, 6.0),
        ((1, 7), 2, 1, 0.5),
    ):
        d_in = shape[-1]
        x, bias = random_tensor(*shape), random_tensor(d_out, seed=1)
        weight = random_tensor(d_out, d_in, seed=2)
        A, B = random_tensor(d_in, rank, seed=3), random_tensor(rank, d_out, seed=4)
        given = x, weight, bias, A, B
        kept = [tensor.clone() for tensor in given]
        found = call(attempt, *given, alpha)
        for now, before in zip(given, kept):
            expect(
                torch.equal(now, before),
                "a tensor that you were given has changed; return a new one",
            )
        expect_tensor(found, (*shape[:-1], d_out), "outputs in the last place")
        plain, change = x @ weight.T + bias, x @ A @ B
        right = plain + alpha / rank * change
        slips = {
            "the change is multiplied by alpha alone, without the rank": (
                plain + alpha * change
            ),
            "alpha is divided by the root of the rank": (
                plain + alpha / rank**0.5 * change
            ),
            "the change is added as it is, without alpha": plain + change,
            "alpha is missing from the scale": plain + change / rank,
            "the rank divides where it is the number that is multiplied": (
                plain + rank / alpha * change
            ),
            "the bias of the layer is missing": right - bias,
            "what the frozen layer computes is missing": alpha / rank * change,
            "the change is missing": plain,
            "the scale multiplies the frozen layer as well": (
                alpha / rank * (plain + change)
            ),
            "the rank is read from a wide side of A or B": (
                plain + alpha / d_in * change
            ),
            "alpha / rank is rounded down": plain + alpha // rank * change,
        }
        if d_in == d_out:
            slips["the weight is multiplied from the wrong side"] = (
                x @ weight + bias + alpha / rank * change
            )
            slips["A B is added to the weight without being transposed"] = (
                plain + alpha / rank * (x @ (A @ B).T)
            )
            slips["the adapter reads the layer's output, not its input"] = (
                plain + alpha / rank * (plain @ A @ B)
            )
        expect_no_slip(found, right, slips, atol=1e-5)  # float32 will do
        expect_close(found, right, "the outputs are others", 1e-5)
    return "Ranks 1, 2 and 3, with dimensions before the last."


# --- E.2 Where A and B start ----------------------------------------------------------


def _pair(attempt, sizes, seed):
    """The two tensors that an attempt starts with."""
    found = call(attempt, *sizes, seeded(seed))
    pair = isinstance(found, (tuple, list)) and len(found) == 2
    expect(pair, f"the result is {describe(found)}, not the pair (A, B)")
    d_in, d_out, rank = sizes
    expect_tensor(found[0], (d_in, rank), "A, inputs and rank")
    expect_tensor(found[1], (rank, d_out), "B, rank and outputs")
    A, B = (tensor.detach().double() for tensor in found)
    finite = A.isfinite().all() and B.isfinite().all()
    expect(finite, "the start holds numbers that are not finite")
    return A, B


@check("E.2")
def check_e_2(attempt):
    for sizes in ((20, 30, 4), (9, 5, 3), (6, 8, 1)):
        A, B = _pair(attempt, sizes, 0)
        drawn = A if A.any() else B
        expect(
            A.any() or B.any(),
            "A and B are both zero: then neither gets a gradient, and nothing is ever "
            "learned",
        )
        change = (A @ B).abs().max().item()
        expect(
            not (A.any() and B.any() and change > 0),
            f"A B is not zero at first, up to {change:.1g}: training would not begin "
            "with the base model",
        )
        expect(not (A.any() and B.any()), "one of the two is to be all zeros")
        rank = min(sizes[2], *drawn.shape)
        here = int(torch.linalg.matrix_rank(drawn))
        expect(
            here == rank,
            f"what is drawn has rank {here}, not {rank}: some products can learn "
            "nothing of their own",
        )
        once_more, other = (_pair(attempt, sizes, seed) for seed in (0, 1))
        expect(
            torch.equal(once_more[0], A) and torch.equal(once_more[1], B),
            "the same generator gives other numbers: draw from the one that is given",
        )
        expect(
            not (torch.equal(other[0], A) and torch.equal(other[1], B)),
            "another generator gives the same numbers: draw from the one that is given",
        )
    return "The change is zero, each product of its own, and something can learn."


# --- E.3 In, and out again ------------------------------------------------------------


def _layer(d_in, d_out, seed):
    weight = random_tensor(d_out, d_in, seed=seed, dtype=torch.float32)
    A = random_tensor(d_in, 2, seed=seed + 1, dtype=torch.float32) / 3
    B = random_tensor(2, d_out, seed=seed + 2, dtype=torch.float32) / 3
    return types.SimpleNamespace(weight=weight, A=A, B=B, scale=1.7, kept=None)


@check("E.3")
def check_e_3(merge, unmerge):
    for d_in, d_out in ((4, 4), (3, 5)):
        layer = _layer(d_in, d_out, seed=d_out)
        base, change = layer.weight.clone(), layer.scale * (layer.A @ layer.B).T
        thin = layer.A.clone(), layer.B.clone()
        call(unmerge, layer)
        expect(
            layer.weight is not None,
            "unmerging before any merge leaves no weight: what was kept is None",
        )
        expect(
            torch.equal(layer.weight, base),
            "taking out what was never merged changes the weight",
        )
        call(merge, layer)
        expect_tensor(layer.weight, (d_out, d_in), "outputs and inputs")
        slips = {
            "merging leaves the weight as it was": base,
            "the change is added without its scale": base + change / layer.scale,
            "the change is subtracted": base - change,
        }
        if d_in == d_out:
            slips["the change is added without being transposed"] = base + change.T
        expect_no_slip(layer.weight, base + change, slips, atol=1e-5)
        expect_close(layer.weight, base + change, "the merged weight is another", 1e-5)
        call(merge, layer)
        expect_no_slip(
            layer.weight,
            base + change,
            {"merged twice, the change is in the weight twice": base + 2 * change},
            atol=1e-5,
        )
        expect_close(
            layer.weight, base + change, "merging twice is not merging once", 1e-5
        )
        call(unmerge, layer)
        stays = "the merged weight stays: what was kept is the tensor that was changed"
        expect_no_slip(layer.weight, base, {stays: base + change}, atol=1e-5)
        expect_close(layer.weight, base, "the weight that comes back is another", 1e-5)
        expect(
            torch.equal(layer.weight, base),
            "the weight comes back with a trace of rounding: subtracting does not undo "
            "a sum",
        )
        call(unmerge, layer)
        expect_close(layer.weight, base, "taken out twice, the weight changes", 1e-5)
        same = torch.equal(layer.A, thin[0]) and torch.equal(layer.B, thin[1])
        expect(same, "A or B has changed; only the weight may")
        layer.B = -2 * layer.B  # trained on
        call(merge, layer)
        expect_close(
            layer.weight,
            base - 2 * change,
            "merged again after more training, the weight is not the new one",
            1e-5,
        )
    return "Twice is once, and what comes back is the same to the bit."


# --- E.4 An adapter for every layer ---------------------------------------------------


class _Deep(nn.Module):
    """Linear layers at several depths, and what is none."""

    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(7, 4)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(4),
                    "ff": nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4)),
                }
            )
            for _ in range(2)
        )
        self.out_head = nn.Linear(4, 3)

    def forward(self, idx):
        x = self.emb(idx)
        for block in self.blocks:
            x = x + block["ff"](block["norm"](x))
        return self.out_head(x)


@check("E.4")
def check_e_4(attempt):
    for seed, rank, alpha in ((0, 2, 6), (1, 3, 3)):
        torch.manual_seed(seed)
        model, idx = _Deep().eval(), torch.arange(7)
        expected = model(idx)
        linear = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        call(attempt, model, rank, alpha)
        layers = {name: layer for name, layer in lora_layers(model).items() if name}
        expect(
            not any(isinstance(one.linear, LinearWithLoRA) for one in layers.values()),
            "a layer is wrapped twice: the linear layer inside of an adapter got one "
            "as well",
        )
        missing = sorted(linear - set(layers))
        expect(layers, "no layer of the model has an adapter afterwards")
        expect(
            len(missing) < len(linear),
            f"the adapters have other names, such as {next(iter(layers), '')}: put "
            "each in the place of its layer, not into something more",
        )
        expect(
            not all("." in name for name in missing) or not missing,
            f"layers deeper in the model have no adapter: {', '.join(missing[:2])}",
        )
        expect(
            missing != ["out_head"],
            "the head has no adapter: it stays as it was drawn",
        )
        expect(not missing, f"{', '.join(missing[:2])} has no adapter")
        for name, layer in layers.items():
            expect(layer.lora is not None, f"the adapter of {name} is not active")
            expect(
                layer.merged is None, f"{name} is merged, so that A and B are not used"
            )
            expect(layer.lora.rank == rank, f"{name} has another rank than {rank}")
            expect(layer.lora.alpha == alpha, f"{name} has another alpha than {alpha}")
        learning = {n for n, p in model.named_parameters() if p.requires_grad}
        adapters = {n for n, _ in model.named_parameters() if ".adapters." in n}
        expect(learning, "nothing can learn: the adapters are frozen as well")
        more = sorted(learning - adapters)
        frozen = [name for name in more if ".linear." in name]
        expect(not frozen, f"the frozen layers learn as well: {', '.join(frozen[:2])}")
        expect(
            not more, f"what is no linear layer learns as well: {', '.join(more[:2])}"
        )
        expect(adapters <= learning, "some of the adapters are frozen")
        expect_close(
            model(idx), expected, "with untrained adapters the model answers otherwise"
        )
    return "Every linear layer at any depth, and nothing else learns."


# --- E.5 Merged against unmerged ------------------------------------------------------


class _WronglyMerged(LinearWithLoRA):
    """Its merged weight has the change doubled, so that there is a gap to find."""

    @torch.no_grad()
    def plain(self):
        linear = super().plain()
        linear.weight += self.lora.change()
        return linear


def _gappy(kind, seed, dropout):
    torch.manual_seed(seed)
    adapted = kind(nn.Linear(6, 5), 2, 4, dropout=dropout)
    nn.init.normal_(adapted.lora.B)
    return nn.Sequential(adapted, nn.Tanh(), nn.Linear(5, 3))


@check("E.5")
def check_e_5(attempt):
    for kind, seed, training in (
        (_WronglyMerged, 1, False),  # its largest difference is negative,
        (_WronglyMerged, 5, True),  # and that of this one positive
        (LinearWithLoRA, 2, True),
    ):
        model = _gappy(kind, seed, dropout=0.5).train(training)
        x = torch.randn(16, 6, generator=seeded(seed))
        with torch.no_grad():
            apart = model.eval()(x)
            merged = merge_lora(model)(x)
        unmerge_lora(model).train(training)
        gap = merged - apart
        found = expect_number(call(attempt, model, x))
        expect(found >= 0, "the gap is negative: the size of a difference is not")
        expect(
            isinstance(model[0], LinearWithLoRA),
            "the adapter is gone afterwards: merge it for a while, not for good",
        )
        expect(model[0].lora is not None, "no adapter is active afterwards")
        expect(
            model[0].lora.dropout.p == 0.5,
            "the model is left with another dropout than it came in",
        )
        expect(
            model[0].merged is None, "the model is left merged: nothing can learn there"
        )
        expect(
            model.training == training and model[0].lora.dropout.training == training,
            "the model is left in another mode than it came in",
        )
        slips = {
            "no gap is found: both answers come from the same weights": 0.0,
            "the largest difference is taken without its sign being dropped": (
                gap.max().item()
            ),
            "the largest of apart minus merged is taken with its sign": (
                -gap.min().item()
            ),
            "the mean of the differences is returned, not the largest": (
                gap.abs().mean().item()
            ),
        }
        expect_no_slip(found, gap.abs().max().item(), slips, atol=1e-5)
        expect(
            not training or found < gap.abs().max().item() + 1e-4,
            "the gap is too large: dropout is on, which drops inputs of the adapter "
            "and none of the merged weight's",
        )
        expect_close(found, gap.abs().max().item(), "the gap is another", 1e-4)
    return "A merge that is right, and one that is wrong, in both modes."
