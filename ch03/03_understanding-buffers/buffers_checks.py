"""The checks of the exercises on buffers; `course.exercises` says how a check answers.

What a module registers is asked of the module itself, and what it computes is compared
with a mean worked out here.
"""

import copy

import torch
from torch import nn

from course.exercises import (
    call,
    check,
    describe,
    expect,
    expect_close,
    expect_tensor,
    random_tensor,
)

# --- BUF.1 A mean that runs along -----------------------------------------------------


@check("BUF.1")
def check_BUF_1(attempt):
    _expect_kind(_trained(attempt, 2), 2)  # first: a plain mean has a dtype of its own
    for width, rows in ((3, 5), (4, 4), (1, 7)):
        module = _made(attempt, width)
        batches = [random_tensor(rows, width, seed=s) + 5 for s in (1, 2)]
        _expect_running_mean(module, batches, width)
    _expect_no_graph(_made(attempt, 2))
    _expect_saved(attempt)
    return "The mean follows the batches, rests in evaluation, moves and is saved."


def _made(attempt, width):
    module = call(attempt, width)
    expect(
        isinstance(module, nn.Module),
        f"RunningMean({width}) is {describe(module)}, not a module",
    )
    return module.double().train()


def _trained(attempt, width):
    module = _made(attempt, width)
    call(module, random_tensor(5, width) + 5)
    return module


def _expect_running_mean(module, batches, width):
    module.eval()
    untouched = call(module, batches[0])
    expect_tensor(untouched, tuple(batches[0].shape), "as x has it", torch.float64)
    expect_close(untouched, batches[0], "the mean is not zero at first", atol=1e-9)
    module.train()
    mean = torch.zeros(width, dtype=torch.float64)
    for batch in batches:
        before, mean = mean, 0.9 * mean + 0.1 * batch.mean(dim=0)
        found = call(module, batch)
        for message, other in {
            "in training mode the mean before the update is subtracted, "
            "not the one after it": before,
            "the parts are the wrong way round: nine tenths of the old mean stay": 0.1
            * before
            + 0.9 * batch.mean(dim=0),
            "the mean is taken over all numbers, or along each row, not down the "
            "columns": 0.9 * before + 0.1 * batch.mean(),
        }.items():
            slip = torch.allclose(found, batch - other, rtol=0, atol=1e-9)
            expect(not slip or torch.allclose(other, mean), message)
        expect_close(
            found, batch - mean, "the mean does not follow the batches", atol=1e-9
        )
    module.eval()
    for _ in range(2):
        rested = call(module, batches[0])
    expect_close(
        rested, batches[0] - mean, "the mean changes in evaluation mode", atol=1e-9
    )


def _expect_kind(module, width):
    parameters = [name for name, _ in module.named_parameters()]
    expect(
        not parameters,
        f"{', '.join(parameters)} is a parameter: it is counted among the parameters, "
        "and an optimizer trains it unless requires_grad is False",
    )
    shapes = {name: tuple(buffer.shape) for name, buffer in module.named_buffers()}
    expect(
        shapes,
        "after training the module has no buffer, so the mean does not move with it",
    )
    fitting = [name for name, shape in shapes.items() if shape == (width,)]
    expect(
        fitting,
        f"after training the buffers of RunningMean({width}) have the shapes {shapes}; "
        f"the mean is to have shape ({width},)",
    )
    expect(
        set(fitting) & set(module.state_dict()),
        f"the buffer {fitting[0]} is not saved, and nothing can compute it again",
    )


def _expect_no_graph(module):
    """Inputs come from a layer that learns, twice, with a backward pass each time."""
    layer = nn.Linear(2, 2).double()
    for seed in (3, 4):
        output = call(module, layer(random_tensor(5, 2, seed=seed)))
        expect(
            output.requires_grad,
            "the output has lost its graph: only the mean shall be without one",
        )
        held = [name for name, buffer in module.named_buffers() if buffer.requires_grad]
        expect(
            not held,
            f"{', '.join(held)} holds the graph of its computation, which grows with "
            "each batch and which deepcopy refuses",
        )
        output.sum().backward()
    copy.deepcopy(module)


def _expect_saved(attempt):
    source, fresh = _trained(attempt, 2), _made(attempt, 2)
    fresh.load_state_dict(source.state_dict())
    x = random_tensor(4, 2, seed=6)
    wanted = call(source.eval(), x)
    mean = (x - wanted)[0].detach()
    held = any(
        saved.shape == mean.shape and torch.allclose(mean, saved.to(mean))
        for saved in source.state_dict().values()
    )
    expect_close(
        call(fresh.eval(), x),
        wanted,
        "a module that loads the state of another gives other answers"
        + ("" if held else ": no entry of the state is the mean that is subtracted"),
        atol=1e-9,
    )
    source.to("meta")
    try:
        moved = source(x.to("meta")).device.type == "meta"  # `call` would print x
    except RuntimeError:
        moved = False
    expect(moved, "on another device the module fails: a tensor of it stayed behind")


# --- BUF.2 The file with the old masks ------------------------------------------------


class _Block(nn.Module):
    """A part with buffers of both kinds, and a parameter whose name sounds like one."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.mask_scale = nn.Parameter(torch.ones(1))
        self.register_buffer("mask", torch.ones(2, 2), persistent=False)
        self.register_buffer("mean", torch.zeros(2))


class _Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([_Block(), _Block()])
        self.register_buffer("positions", torch.arange(3), persistent=False)


def _filled(seed):
    """A model with numbers of its own, and the old kind of state that belongs to it.

    Its masks are not those that a model makes for itself, so that loading them shows.
    """
    model = _Model()
    for number, tensor in enumerate(model.state_dict().values()):
        numbers = random_tensor(*tensor.shape, seed=100 * seed + number)
        tensor.copy_(numbers)
    unsaved = {name: torch.full_like(b, 9) for name, b in model.named_buffers()}
    return model, unsaved | model.state_dict()


@check("BUF.2")
def check_BUF_2(attempt):
    source, old = _filled(seed=1)
    for state in (source.state_dict(), old):
        model = _Model()
        before = {name: tensor.clone() for name, tensor in state.items()}
        call(attempt, model, state)
        expect(
            list(state) == list(before),
            "the state that was passed in has lost or gained entries",
        )
        for name, tensor in state.items():
            kept = torch.equal(tensor, before[name])
            expect(kept, f"{name} has other numbers in the state that was passed in")
        _expect_loaded(model, source)
    _expect_refusal(
        attempt,
        {k: v for k, v in old.items() if k != "blocks.1.linear.weight"},
        "a state without blocks.1.linear.weight is accepted, although nothing in the "
        "module could replace it",
    )
    _expect_refusal(
        attempt,
        {k: v for k, v in old.items() if k != "blocks.0.mean"},
        "a state without the saved buffer blocks.0.mean is accepted",
    )
    _expect_refusal(
        attempt,
        {**old, "blocks.2.mask": torch.ones(2, 2)},
        "blocks.2.mask is accepted, although the module has no third block",
    )
    _expect_refusal(
        attempt,
        {**old, "head.weight": torch.ones(2, 2)},
        "head.weight is accepted, although the module has no such part",
    )
    return "Old masks are passed over; what is missing or too much is still refused."


def _expect_loaded(model, source):
    loaded, wanted = model.state_dict(), source.state_dict()
    for name in wanted:
        same = torch.equal(loaded[name], wanted[name])
        kind = "parameter" if name in dict(model.named_parameters()) else "saved buffer"
        expect(same, f"the {kind} {name} was not loaded")
    for name, buffer in _Model().named_buffers():
        expect(
            name in wanted or torch.equal(model.get_buffer(name), buffer),
            f"the buffer {name}, which is not saved, has other numbers than before; "
            "its entry is to be passed over",
        )


def _expect_refusal(attempt, state, message):
    """Whatever the attempt raises counts as a refusal; `call` would blame it."""
    try:
        attempt(_Model(), state)
    except Exception:
        return
    expect(False, message)
