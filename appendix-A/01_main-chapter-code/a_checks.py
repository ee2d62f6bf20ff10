"""The checks of appendix A's exercises; `course.exercises` says how a check answers.

The first five belong to part 1, the last two, about several processes, to part 2. No
check starts a process: what has to be right is who takes what, and what is averaged.
"""

import functools
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from course.exercises import (
    call,
    check,
    describe,
    expect,
    expect_close,
    expect_no_slip,
    expect_number,
    expect_tensor,
)
from neural_network import NeuralNetwork, ToyDataset

# --- A.1 How many numbers a network has -----------------------------------------------


@check("A.1")
def check_a_1(attempt):
    for inputs, hidden, outputs in (
        (2, (30, 20), 3),
        (50, (30, 20), 3),
        (7, (5,), 4),
        (6, (), 2),
        (3, (4, 9, 2, 8), 5),
    ):
        found = expect_number(call(attempt, inputs, hidden, outputs))
        widths = [inputs, *hidden, outputs]
        weights = sum(a * b for a, b in zip(widths, widths[1:]))
        expected = weights + sum(widths[1:])
        expect_no_slip(
            found,
            expected,
            {
                "the biases are missing: each layer has one for each of its outputs": (
                    weights
                ),
                "a bias belongs to an output of a layer, and here the inputs of the "
                "layers were counted": weights + sum(widths[:-1]),
                "the last layer's biases are missing": expected - outputs,
                "the last layer is missing": expected - (widths[-2] + 1) * outputs,
            },
        )
        expect_close(
            found,
            expected,
            f"the count for {inputs} inputs, hidden layers {hidden} and {outputs} "
            "outputs is not the number of parameters that PyTorch counts",
        )
    return "Five networks, one of them without a hidden layer, have as many parameters."


# --- A.2 A table of windows without a copy --------------------------------------------


@check("A.2")
def check_a_2(attempt):
    for length, size in ((10, 3), (6, 1), (5, 5), (9, 4)):
        numbers = torch.arange(length) * 10
        table = call(attempt, numbers, size)
        rows = length - size + 1
        shape = tuple(getattr(table, "shape", ()))
        expect(
            shape != (size, rows) or rows == size,
            "rows and columns are exchanged: a row is a window",
        )
        expect(
            shape != (length // size, size) or shape == (rows, size),
            "the windows do not overlap: each starts one element after the one before",
        )
        expect_tensor(table, (rows, size), "one row for each window")
        expected = torch.stack([numbers[i : i + size] for i in range(rows)])
        expect_close(
            table, expected, f"a row of the table for size {size} is no window"
        )
        expect(
            table.untyped_storage().data_ptr() == numbers.untyped_storage().data_ptr(),
            "the numbers are right, but they are a copy: a write into the vector does "
            "not show in the table",
        )
    odd = torch.arange(21)[1::2]  # a view: it starts at 1, with a stride of 2
    table = call(attempt, odd, 3)
    expect(
        table[0][0] == odd[0],
        "for a vector that is a view itself, numbers[1::2], the table starts at the "
        "beginning of the memory and not where the vector starts",
    )
    expect_close(
        table,
        torch.stack([odd[i : i + 3] for i in range(8)]),
        "for a vector that is a view itself, numbers[1::2], the windows are wrong: its "
        "elements do not lie side by side, so its own stride counts",
    )
    odd[4] = -1
    expect(
        table[4, 0] == -1,
        "for a vector that is a view itself the table is a copy: a write into the "
        "vector does not show in it",
    )
    return "Windows of four vectors are views, also of a vector that is one itself."


# --- A.3 Slopes of everything by trying -----------------------------------------------


@check("A.3")
def check_a_3(attempt):
    generator = torch.Generator().manual_seed(3)
    for shape in ((), (4,), (2, 3), (2, 1, 3)):
        x = torch.randn(shape[::-1], generator=generator, dtype=torch.float64)
        x = x.permute(tuple(range(len(shape)))[::-1])  # not contiguous, where it can be
        weights = torch.randn(shape, generator=generator, dtype=torch.float64)

        def f(value, weights=weights):
            return (weights * value**3).sum() + value.sum() ** 2

        before = x.clone()
        found = call(attempt, f, x)
        expect_tensor(found, shape, "one slope for each number of x")
        expect(
            torch.equal(x, before),
            "x is not what it was before: put each number back exactly, or work on a "
            "copy",
        )
        exact = 3 * weights * x**2 + 2 * x.sum()
        expect_no_slip(
            found,
            exact,
            {
                "the slopes are twice too large: the two places are two steps apart": (
                    2 * exact
                ),
                "the slopes are half of what they should be": exact / 2,
                "the slopes have the wrong sign": -exact,
                "one slope is used for all numbers: move one number at a time": (
                    exact.sum().expand(shape)
                ),
                "that is the function's value, not a slope": f(x).expand(shape),
            },
            atol=1e-4,
        )
        expect_close(
            found,
            exact,
            "the slopes are too far from the exact ones; compare f a little above "
            "and a little below each number, in float64 with a small step",
            atol=1e-4,
        )
    return "Slopes of a number, a vector, a matrix and a table of three axes are right."


# --- A.4 One step ---------------------------------------------------------------------


def _trained(step, steps=3):
    """A small network after some steps, and what the steps returned."""
    torch.manual_seed(4)
    model = NeuralNetwork(2, 3, hidden=(8,)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5)
    features = torch.randn(12, 2, dtype=torch.float64)
    labels = torch.arange(12) % 3
    found = [step(model, optimizer, features, labels) for _ in range(steps)]
    return model, found


def _weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _step(model, optimizer, features, labels, zero=True, softmax=False, step=True):
    """One step of training; the options each plant one mistake."""
    if zero:
        optimizer.zero_grad()
    scores = model(features)
    loss = F.cross_entropy(scores.softmax(dim=1) if softmax else scores, labels)
    loss.backward()
    if step:
        optimizer.step()
    return loss.item()


def _weights_with(**slip):
    return _weights(_trained(functools.partial(_step, **slip))[0])


@check("A.4")
def check_a_4(attempt):
    model, found = _trained(lambda *arguments: call(attempt, *arguments))
    expected_model, expected = _trained(_step)
    expect(
        not any(getattr(loss, "requires_grad", False) for loss in found),
        "the loss that you return still carries its graph, and a list of such losses "
        "would keep all graphs in memory: return loss.item()",
    )
    losses = [expect_number(loss) for loss in found]
    expect(model.training, "the model came in training mode and is no longer in it")
    weights = _weights(model)
    twice = _weights_with(softmax=True)
    expect_no_slip(
        weights,
        _weights(expected_model),
        {
            "old gradients are never removed, so each step goes along the sum of all "
            "gradients so far": _weights_with(zero=False),
            "cross_entropy applies the softmax itself: here it is there twice": twice,
            "no weight has changed: no step was taken, or the gradient was removed "
            "between backward and the step": _weights_with(step=False),
        },
    )
    expect_close(
        weights, _weights(expected_model), "after three steps the weights are others"
    )
    expect_close(
        losses,
        expected,
        "the weights are right, but the loss returned is not the mean cross-entropy of "
        "the batch before the step",
    )
    return "Three steps lead to the right weights, and the losses are plain numbers."


# --- A.5 Measuring a model ------------------------------------------------------------


class _WithDropout(nn.Module):
    """A network that answers otherwise while it trains, and counts its calls."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Dropout(0.5), nn.Linear(16, 3))
        self.noted = False

    def forward(self, x):
        logits = self.net(x)
        self.noted |= logits.requires_grad
        return logits


def _loader() -> DataLoader:
    """17 examples in batches of 8, 8 and 1."""
    generator = torch.Generator().manual_seed(6)
    data = ToyDataset(torch.randn(17, 2, generator=generator), torch.arange(17) % 3)
    return DataLoader(data, batch_size=8)


def _measured(model, batches) -> Iterable[tuple[float, float, int]]:
    """(mean loss, share right, examples) of each batch, in the model's mode."""
    with torch.no_grad():
        for features, labels in batches:
            logits = model(features)
            loss = F.cross_entropy(logits, labels).item()
            right = (logits.argmax(dim=1) == labels).double().mean().item()
            yield loss, right, len(labels)


@check("A.5")
def check_a_5(attempt):
    batches = _loader()
    model = _WithDropout().train()
    noting = torch.is_grad_enabled()
    try:
        found = call(attempt, model, batches)
        still_noting = torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(noting)
    expect(
        not isinstance(found, (str, dict)) and hasattr(found, "__len__"),
        f"the result is {describe(found)}, not a pair of loss and accuracy",
    )
    expect(len(found) == 2, f"there are {len(found)} results, not loss and accuracy")
    loss, accuracy = (expect_number(value) for value in found)
    expect(
        still_noting == noting,
        "after the call autograd takes no notes any more: use with torch.no_grad(), "
        "which ends by itself",
    )
    expect(
        all(p.requires_grad for p in model.parameters()),
        "after the call the model can no longer learn: leave requires_grad alone",
    )
    was_training, noted = model.training, model.noted
    again = call(attempt, model.train(), batches)
    rows = list(_measured(model.eval(), batches))
    total = sum(n for _, _, n in rows)
    expected = (
        sum(mean * n for mean, _, n in rows) / total,
        sum(right * n for _, right, n in rows) / total,
    )
    plain = [sum(row[i] for row in rows) / len(rows) for i in (0, 1)]
    expect_no_slip(
        (loss, accuracy),
        expected,
        {
            "loss and accuracy are exchanged": expected[::-1],
            "the mean of the batches' means: the last batch has one example, and it "
            "weighs as much as the eight of the others": tuple(plain),
            "the sum over the batches, not a mean over the examples": tuple(
                value * len(rows) for value in plain
            ),
            "only the last batch was measured": rows[-1][:2],
            "the last batch is missing": tuple(
                sum(row[i] * row[2] for row in rows[:-1]) / 16 for i in (0, 1)
            ),
            "the accuracy is in percent: give a share from 0 to 1": (
                expected[0],
                100 * expected[1],
            ),
        },
    )
    expect(
        abs(float(again[0]) - loss) < 1e-5,
        "two calls give two losses: the model has a dropout layer, and it was not in "
        "evaluation mode",
    )
    expect(
        abs(loss - expected[0]) < 1e-5,
        "the loss is not the mean cross-entropy over all examples; "
        "F.cross_entropy takes logits, without a softmax before it",
    )
    expect_close(accuracy, expected[1], "the accuracy is not the share of right ones")
    expect(
        not noted,
        "the numbers are right, but autograd took notes all the time: measure inside "
        "torch.no_grad()",
    )
    expect(
        was_training,
        "the model came in training mode and left in evaluation mode: whoever goes on "
        "training now trains without dropout",
    )
    still = _WithDropout().eval()
    call(attempt, still, batches)
    expect(
        not still.training,
        "the model came in evaluation mode and left in training mode: restore the mode "
        "that it had",
    )
    return "Loss and accuracy are means over examples, and the model keeps its mode."


# --- A.6 Dealing out a data set -------------------------------------------------------


@check("A.6")
def check_a_6(attempt):
    for N, batch_size, world_size in (
        (11, 4, 2),
        (12, 4, 2),
        (9, 8, 4),
        (10, 8, 4),
        (5, 6, 3),
        (7, 3, 1),
    ):
        hands = []
        for rank in range(world_size):
            hand = call(attempt, N, batch_size, rank, world_size)
            expect(
                all(hasattr(batch, "__len__") for batch in hand),
                "the result is a flat list: give a list of batches, each a list",
            )
            whole = all(int(i) == i for batch in hand for i in batch)
            expect(whole, "an index is no whole number")
            hand = [[int(i) for i in batch] for batch in hand]
            hands.append(hand)
        case = f"{N} examples, batches of {batch_size}, {world_size} worker(s)"
        dealt = [i for hand in hands for batch in hand for i in batch]
        expect(
            max(dealt, default=0) < N and min(dealt, default=0) >= 0,
            f"an index is not between 0 and {N - 1} ({case})",
        )
        expect(
            set(dealt) == set(range(N)),
            f"an example is never dealt ({case})",
        )
        expect(
            len(dealt) == N,
            f"an example is dealt twice ({case})",
        )
        expect(
            all(share == sorted(share) for hand in hands for share in hand),
            "a share is not in the order of the data",
        )
        counts = {len(hand) for hand in hands}
        expect(
            len(counts) == 1,
            f"the workers have different numbers of batches ({case}), so that one of "
            "them would wait for the others for ever; a batch may be empty",
        )
        expect(
            counts == {-(-N // batch_size)},
            f"there are more or fewer batches than one process would have ({case})",
        )
        for number, batch in enumerate(zip(*hands)):
            together = sorted(i for share in batch for i in share)
            start = number * batch_size
            expect(
                together == list(range(start, min(start + batch_size, N))),
                f"together the workers do not have the examples of a single process "
                f"in batch {number} ({case}): the steps would be others",
            )
            sizes = [len(share) for share in batch]
            expect(
                max(sizes) - min(sizes) <= 1,
                f"the shares of one batch differ by more than one example ({case})",
            )
    return "Six data sets, five of them ragged, are dealt out once and in step."


# --- A.7 An average that is exact -----------------------------------------------------


@check("A.7")
def check_a_7(attempt):
    torch.manual_seed(7)
    model = NeuralNetwork(2, 3, hidden=(6,)).double()
    features = torch.randn(14, 2, dtype=torch.float64)
    labels = torch.arange(14) % 3

    def gradient(rows, reduction="mean"):
        model.zero_grad()
        loss = F.cross_entropy(model(features[rows]), labels[rows], reduction=reduction)
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    for sizes in ((4, 4), (4, 3), (1, 6, 2), (5, 0), (0, 2, 3)):
        bounds = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
        shares = [slice(a, b) for a, b in zip(bounds, bounds[1:])]
        means = [gradient(share) for share in shares]
        whole = gradient(slice(0, sum(sizes)))
        kept = [gradient.clone() for gradient in means]
        found = torch.as_tensor(call(attempt, means, list(sizes)))
        expect_tensor(found, tuple(whole.shape), "one number for each parameter")
        expect(
            all(map(torch.equal, means, kept)),
            "the gradients that you were given have changed: work on copies",
        )
        expect_no_slip(
            found,
            whole,
            {
                f"with shares of {sizes} examples this is the plain average of the "
                "means, in which the examples of a small share weigh more": (
                    sum(means) / len(means)
                ),
                "that is the sum of all examples' gradients: divide by their number": (
                    sum(mean * n for mean, n in zip(means, sizes))
                ),
                "that is the sum of the means: weigh each by its share": sum(means),
            },
        )
        expect_close(
            found,
            whole,
            f"with shares of {sizes} examples this is not the gradient of the mean "
            "over all of them",
        )
    return "Five divisions, two with an empty share, give the gradient of the whole."
