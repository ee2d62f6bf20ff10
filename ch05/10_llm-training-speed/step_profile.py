"""Where the time of one update goes, by kind of work (chapter 5, bonus).

Support: nothing here is taught. Operators are sorted by their names; norms and GELU are
known by their modules, so that what a written-out one does in `mul` and `add` is found,
forward and backward.

>>> kind_of("aten::addmm"), kind_of("aten::_softmax"), kind_of("aten::add")
('products', 'attention', 'other')
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from speed import TrainingRun

KINDS = {
    "attention": ("scaled_dot", "_softmax", "masked_fill", "bmm"),
    "loss": ("log_softmax", "nll_loss", "gather", "scatter"),
    "products": ("mm", "linear"),
    "norms and GELU": ("norm", "gelu", "tanh", "pow", "rsqrt", "mean"),
    "copies and zeros": ("copy_", "fill_", "zero_", "clone", "cat"),
}


def kind_of(name: str) -> str:
    """To which part of an update the own time of an operator belongs."""
    if name.startswith("aten::_log_softmax") or name.startswith("aten::log_softmax"):
        return "loss"
    for kind, parts in KINDS.items():
        if any(part in name for part in parts):
            return kind
    return "other"


IN_A_NORM = "norms and GELU"  # also the name of a region in the profile
BACKWARD = "autograd::engine::evaluate_function"  # a step of the backward pass


@contextlib.contextmanager
def norms_named(model: nn.Module) -> Iterator[None]:
    """While this lasts, each norm and GELU is a region in the profile.

    Not where blocks are compiled: what runs there has no modules.
    """
    hooks, regions = [], []

    def begin(*_):
        regions.append(record_function(IN_A_NORM))
        regions[-1].__enter__()

    def end(*_):
        regions.pop().__exit__(None, None, None)

    compiled = any(part._compiled_call_impl for part in model.modules())
    for part in () if compiled else model.modules():
        kind = type(part).__name__
        if not any(part.children()) and ("Norm" in kind or "GELU" in kind):
            hooks.append(part.register_forward_pre_hook(begin))
            hooks.append(part.register_forward_hook(end))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def parts_of_events(events: Iterable[Any]) -> Iterator[tuple[Any, str]]:
    """A pair (event, kind of work) for each event of a profile.

    A step of the backward pass has the number of the operator that it belongs to: the
    last one that begins with this number.
    """
    above = {}  # for each event, those around it

    def around(event):
        if event.id not in above:
            parent = event.cpu_parent
            above[event.id] = [event, *(around(parent) if parent else [])]
        return above[event.id]

    last = {}
    for event in events:
        number, begin = event.sequence_nr, event.time_range.start
        backward = any(e.name.startswith(BACKWARD) for e in around(event))
        if number >= 0 and not backward and begin >= last.get(number, (begin,))[0]:
            last[number] = begin, any(e.name == IN_A_NORM for e in around(event))
    norms = {number for number, (_, inside) in last.items() if inside}
    for event in events:
        kind, names = kind_of(event.name), [e.name for e in around(event)]
        steps = [e for e in around(event) if e.name.startswith(BACKWARD)]
        if IN_A_NORM in names or any(e.sequence_nr in norms for e in steps):
            kind = IN_A_NORM
        if any(name.startswith("Optimizer.step") for name in names):
            kind = "AdamW"
        yield event, kind


def seconds_by_part(
    run: TrainingRun, batch: tuple[Tensor, Tensor], device: str
) -> dict[str, float]:
    """The seconds of one update by kind of work, everything AdamW does as one."""
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with norms_named(run.model), profile(activities=activities) as recorded:
        run.step(*batch).item()
    parts = {}
    for event, kind in parts_of_events(recorded.events()):
        spent = event.self_cpu_time_total
        if device == "cuda":
            spent = event.self_device_time_total
        parts[kind] = parts.get(kind, 0) + spent / 1e6
    return parts
