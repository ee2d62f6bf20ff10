"""Every exercise check on buffers takes the solution and names mistakes."""

import pytest
import torch
from torch import nn

from buffers_checks import check_BUF_1, check_BUF_2
from course.exercises import verify

# --- BUF.1 ----------------------------------------------------------------------------


class RunningMean(nn.Module):
    """The solution; the wrong answers below change one method each."""

    def __init__(self, width):
        super().__init__()
        self.hold(torch.zeros(width))

    def hold(self, mean):
        self.register_buffer("mean", mean)

    def batch_mean(self, x):
        return x.detach().mean(dim=0)

    def update(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * self.batch_mean(x)

    def forward(self, x):
        self.update(x)
        return x - self.mean


class InPlace(RunningMean):
    def update(self, x):
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(x.mean(dim=0), alpha=0.1)


class WithCounter(RunningMean):
    """More buffers than asked for are no mistake."""

    def hold(self, mean):
        self.running = nn.Buffer(mean)
        self.register_buffer("calls", torch.tensor(0))

    def update(self, x):
        if self.training:
            self.calls += 1
            self.running.lerp_(x.detach().mean(dim=0), 0.1)

    def forward(self, x):
        self.update(x)
        return x - self.running


class CounterFirst(WithCounter):
    """Known mistake: the check compared the mean with every entry of the state."""

    def hold(self, mean):
        self.register_buffer("calls", torch.tensor(0))
        self.running = nn.Buffer(mean)


class OtherShapeFirst(RunningMean):
    def hold(self, mean):
        self.register_buffer("bounds", torch.zeros(3))
        super().hold(mean)


class Stub(nn.Module):
    def __init__(self, width):
        super().__init__()

    def forward(self, x):
        return ...


class Plain(RunningMean):
    def hold(self, mean):
        self.mean = mean


class PlainInPlace(Plain):
    """It keeps its dtype: `.double()` does not know it."""

    def update(self, x):
        if self.training:
            self.mean.copy_(0.9 * self.mean + 0.1 * self.batch_mean(x))


class NotSaved(RunningMean):
    def hold(self, mean):
        self.register_buffer("mean", mean, persistent=False)


class AParameter(RunningMean):
    def hold(self, mean):
        self.mean = nn.Parameter(mean)

    def update(self, x):
        if self.training:
            self.mean.data = 0.9 * self.mean.data + 0.1 * self.batch_mean(x)


class AStillParameter(AParameter):
    def hold(self, mean):
        self.mean = nn.Parameter(mean, requires_grad=False)


class ARow(RunningMean):
    """Its mean is a buffer and moves; only its shape is another."""

    def hold(self, mean):
        super().hold(mean[None])


class KeptDimension(RunningMean):
    def batch_mean(self, x):
        return x.detach().mean(dim=0, keepdim=True)


class PlainBesideABuffer(Plain):
    def hold(self, mean):
        super().hold(mean)
        self.register_buffer("shadow", mean.clone())


class WithGraph(RunningMean):
    def batch_mean(self, x):
        return x.mean(dim=0)


class Always(RunningMean):
    def update(self, x):
        self.mean = 0.9 * self.mean + 0.1 * self.batch_mean(x)


class OnlyTraining(RunningMean):
    def forward(self, x):
        self.update(x)
        return x - self.mean if self.training else x


class TooLate(RunningMean):
    def forward(self, x):
        output = x - self.mean
        self.update(x)
        return output


class Swapped(RunningMean):
    def update(self, x):
        if self.training:
            self.mean = 0.1 * self.mean + 0.9 * self.batch_mean(x)


class AllNumbers(RunningMean):
    def batch_mean(self, x):
        return x.detach().mean()


class WholeOutputDetached(RunningMean):
    def forward(self, x):
        return super().forward(x).detach()


class Ones(RunningMean):
    def hold(self, mean):
        super().hold(mean + 1)


WRONG_1 = {
    "plain": (Plain, "does not move with it"),
    "not saved": (NotSaved, "nothing can compute it again"),
    "a parameter": (AParameter, "is a parameter: it is counted among"),
    "a row": (ARow, "have the shapes {'mean': (1, 2)}"),
    "plain beside a buffer": (PlainBesideABuffer, "no entry of the state is the mean"),
    "with its graph": (WithGraph, "which deepcopy refuses"),
    "always": (Always, "the mean is not zero at first"),
    "not in evaluation": (OnlyTraining, "the mean changes in evaluation mode"),
    "too late": (TooLate, "before the update"),
    "swapped": (Swapped, "wrong way round"),
    "all numbers": (AllNumbers, "not down the columns"),
    "output detached": (WholeOutputDetached, "only the mean shall be without one"),
}


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (AStillParameter, "trains it unless requires_grad is False"),
        (KeptDimension, "have the shapes {'mean': (1, 2)}"),
        (PlainInPlace, "has no buffer, so the mean does not move"),
    ],
)
def test_BUF_1_says_what_is_there(attempt, message):
    """Known mistake: it said of a buffer that it does not move."""
    with pytest.raises(AssertionError) as said:
        check_BUF_1(attempt)
    assert message in str(said.value)


def test_BUF_1(capsys):
    verify(check_BUF_1, RunningMean, Stub, WRONG_1)
    for right in (InPlace, WithCounter, CounterFirst, OtherShapeFirst):
        check_BUF_1(right)
        assert "correct" in capsys.readouterr().out


# --- BUF.2 ----------------------------------------------------------------------------


def load_old(module, state):
    unsaved = {name for name, _ in module.named_buffers()} - set(module.state_dict())
    module.load_state_dict({k: v for k, v in state.items() if k not in unsaved})


def load_by_report(module, state):
    """Another right way: load loosely, then judge what PyTorch reports."""
    missing, surplus = module.load_state_dict(state, strict=False)
    if missing or set(surplus) - {name for name, _ in module.named_buffers()}:
        raise RuntimeError("does not fit")


def stub(module, state):
    return ...


def load_loosely(module, state):
    module.load_state_dict(state, strict=False)


def drop_masks_by_name(module, state):
    kept = {k: v for k, v in state.items() if "mask" not in k and k != "positions"}
    module.load_state_dict(kept | {k: v for k, v in state.items() if "scale" in k})


def drop_all_buffers(module, state):
    buffers = dict(module.named_buffers())
    kept = {k: v for k, v in state.items() if k not in buffers}
    module.load_state_dict(kept, strict=False)


def drop_from_the_state(module, state):
    for name, _ in module.named_buffers():
        if name not in module.state_dict():
            state.pop(name, None)
    module.load_state_dict(state)


def load_the_masks_too(module, state):
    load_old(module, state)
    for name, buffer in module.named_buffers():
        if name in state:
            buffer.copy_(state[name])


def empty_the_masks(module, state):
    load_old(module, state)
    for name, buffer in module.named_buffers():
        if name not in module.state_dict():
            buffer.zero_()


def empty_the_state(module, state):
    load_old(module, state)
    for tensor in state.values():
        tensor.zero_()


def pop_before_loading(module, state):
    """Another right way: a copy of the dictionary loses the names."""
    state = dict(state)
    for name, _ in module.named_buffers():
        if name not in module.state_dict():
            state.pop(name, None)
    return module.load_state_dict(state)


def drop_strangers(module, state):
    module.load_state_dict({k: state[k] for k in module.state_dict()})


WRONG_2 = {
    "strict=False": (load_loosely, "nothing in the module could replace it"),
    "by name": (drop_masks_by_name, "the module has no third block"),
    "all buffers": (drop_all_buffers, "saved buffer blocks.0.mean was not loaded"),
    "from the state itself": (drop_from_the_state, "has lost or gained entries"),
    "masks loaded": (load_the_masks_too, "its entry is to be passed over"),
    "state emptied": (
        empty_the_state,
        "has other numbers in the state that was passed in",
    ),
    "nothing": (
        lambda module, state: module.eval(),
        "parameter blocks.0.mask_scale was not",
    ),
    "as it is": (
        lambda module, state: module.load_state_dict(state),
        "Unexpected key(s)",
    ),
}


def test_BUF_2(capsys):
    verify(check_BUF_2, load_old, stub, WRONG_2)
    for right in (load_by_report, pop_before_loading):
        check_BUF_2(right)
        assert "correct" in capsys.readouterr().out


def test_BUF_2_sees_masks_that_are_changed_without_the_state():
    with pytest.raises(AssertionError, match="the buffer positions, which is not"):
        check_BUF_2(empty_the_masks)


def test_strangers_that_are_dropped_unread_are_named():
    """Its message is that of the name filter; so it is not among the planted ones."""
    said = ""
    try:
        check_BUF_2(drop_strangers)
    except AssertionError as error:
        said = str(error)
    assert "the module has no third block" in said
