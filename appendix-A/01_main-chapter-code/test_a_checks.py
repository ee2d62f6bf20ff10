"""Every exercise check takes right answers, knows the stub and names mistakes."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import a_checks
from course.exercises import verify
from neural_network import NeuralNetwork
from several_processes import EveryExampleOnce

# --- A.1 ------------------------------------------------------------------------------


def count_by_formula(inputs, hidden, outputs):
    widths = [inputs, *hidden, outputs]
    return sum((a + 1) * b for a, b in zip(widths, widths[1:]))


def count_by_building(inputs, hidden, outputs):
    model = NeuralNetwork(inputs, outputs, hidden)
    return np.int64(sum(p.numel() for p in model.parameters()))


def count_weights(inputs, hidden, outputs):
    widths = [inputs, *hidden, outputs]
    return sum(a * b for a, b in zip(widths, widths[1:]))


def count_input_biases(inputs, hidden, outputs):
    return count_weights(inputs, hidden, outputs) + sum([inputs, *hidden])


def count_without_the_last(inputs, hidden, outputs):
    return count_by_formula(inputs, hidden[:-1], hidden[-1]) if hidden else 0


RIGHT_1 = {
    "by building": count_by_building,
    "a float": lambda *sizes: float(count_by_formula(*sizes)),
    "a tensor": lambda *sizes: torch.tensor(count_by_formula(*sizes)),
}
WRONG_1 = {
    "no biases": (count_weights, "the biases are missing"),
    "biases of inputs": (count_input_biases, "inputs of the layers were counted"),
    "no last layer": (count_without_the_last, "the last layer is missing"),
    "no last biases": (
        lambda i, h, o: count_by_formula(i, h, o) - o,
        "the last layer's biases",
    ),
    "a constant": (lambda i, h, o: 773, "is not the number"),
    "text": (lambda i, h, o: "773", "not a number"),
}

# --- A.2 ------------------------------------------------------------------------------


def windows(numbers, size):
    return numbers.unfold(0, size, 1)


def windows_by_strides(numbers, size):
    (step,) = numbers.stride()
    shape = len(numbers) - size + 1, size
    return numbers.as_strided(shape, (step, step), numbers.storage_offset())


RIGHT_2 = {"by strides": windows_by_strides}
WRONG_2 = {
    "a copy": (
        lambda n, size: torch.stack(
            [n[i : i + size] for i in range(len(n) - size + 1)]
        ),
        "they are a copy",
    ),
    "no overlap": (lambda n, size: n.unfold(0, size, size), "do not overlap"),
    "turned": (lambda n, size: windows(n, size).T, "rows and columns"),
    "stride of one": (
        lambda n, size: n.as_strided((len(n) - size + 1, size), (1, 1)),
        "its own stride counts",
    ),
    "start of zero": (
        lambda n, size: n.as_strided(
            (len(n) - size + 1, size), n.stride() * 2, storage_offset=0
        ),
        "beginning of the memory",
    ),
    "a copy of a view": (
        lambda n, size: n.contiguous().unfold(0, size, 1),
        "does not show in it",
    ),
    "backwards": (
        lambda n, size: windows(n, size)[torch.arange(len(n) - size, -1, -1)],
        "is no window",
    ),
    "a list": (lambda n, size: windows(n, size).tolist(), "where a tensor"),
}

# --- A.3 ------------------------------------------------------------------------------


def slopes(f, x, factor=1.0):
    x = x.clone()
    found = torch.zeros_like(x)
    for place in np.ndindex(x.shape):
        old = x[place].item()
        x[place] = old + 1e-5
        above = f(x).item()
        x[place] = old - 1e-5
        below = f(x).item()
        x[place] = old
        found[place] = factor * (above - below) / 2e-5
    return found


def slopes_by_basis(f, x):
    steps = 1e-5 * torch.eye(x.numel(), dtype=x.dtype).view(x.numel(), *x.shape)
    found = [(f(x + step) - f(x - step)) / 2e-5 for step in steps]
    return torch.stack(found).view(x.shape)


def slopes_that_leave_a_trace(f, x):
    found = slopes(f, x)
    x += 1e-5
    return found


def one_slope_for_all(f, x):
    return ((f(x + 1e-5) - f(x - 1e-5)) / 2e-5).expand(x.shape)


RIGHT_3 = {"along a basis": slopes_by_basis}
WRONG_3 = {
    "one step, not two": (lambda f, x: slopes(f, x, 2.0), "twice too large"),
    "half": (lambda f, x: slopes(f, x, 0.5), "half of what"),
    "sign": (lambda f, x: slopes(f, x, -1.0), "wrong sign"),
    "all at once": (one_slope_for_all, "one number at a time"),
    "x changed": (slopes_that_leave_a_trace, "x is not what it was"),
    "a value": (lambda f, x: f(x).expand(x.shape), "not a slope"),
    "flat": (lambda f, x: slopes(f, x).flatten()[None], "one slope for each number"),
    "coarse": (
        lambda f, x: slopes(f, x) + 0.01,
        "too far from the exact ones",
    ),
}

# --- A.4 ------------------------------------------------------------------------------


def train_step(model, optimizer, features, labels, zero=True, step=True):
    if zero:
        optimizer.zero_grad()
    loss = F.cross_entropy(model(features), labels)
    loss.backward()
    if step:
        optimizer.step()
    return loss.item()


def train_step_by_module(model, optimizer, features, labels):
    loss = torch.nn.CrossEntropyLoss()(model(features), labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach().numpy()


def zero_too_late(model, optimizer, features, labels):
    loss = F.cross_entropy(model(features), labels)
    loss.backward()
    optimizer.zero_grad()
    optimizer.step()
    return loss.item()


def step_early(model, optimizer, features, labels):
    loss = F.cross_entropy(model(features), labels)
    optimizer.zero_grad()
    F.cross_entropy(model(features), labels).backward()
    optimizer.step()
    loss.backward()
    return loss.item()


def step_on_softmax(model, optimizer, features, labels):
    optimizer.zero_grad()
    F.cross_entropy(model(features).softmax(dim=1), labels).backward()
    optimizer.step()
    return 1.0


def step_by_hand(model, optimizer, features, labels):
    model.zero_grad()
    loss = F.cross_entropy(model(features), labels)
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.3 * parameter.grad
    return loss.item()


def loss_after(model, optimizer, features, labels):
    train_step(model, optimizer, features, labels)
    return F.cross_entropy(model(features), labels).item()


def loss_with_graph(model, optimizer, features, labels):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(features), labels)
    loss.backward()
    optimizer.step()
    return loss


RIGHT_4 = {"by a module": train_step_by_module}
WRONG_4 = {
    "no zero_grad": (
        lambda *a: train_step(*a, zero=False),
        "never removed",
    ),
    "no step": (lambda *a: train_step(*a, step=False), "no step was taken"),
    "early": (step_early, "modified by an inplace operation"),
    "softmax twice": (step_on_softmax, "softmax itself"),
    "loss after": (loss_after, "before the step"),
    "graph": (loss_with_graph, "carries its graph"),
    "no optimizer": (step_by_hand, "after three steps the weights are others"),
    "left in eval": (
        lambda m, *rest: (train_step(m, *rest), m.eval())[0],
        "no longer in it",
    ),
}

# --- A.5 ------------------------------------------------------------------------------


def measure(model, loader, evaluate=True, restore=True):
    was_training = model.training
    if evaluate:
        model.eval()
    loss = right = total = 0
    with torch.no_grad():
        for features, labels in loader:
            logits = model(features)
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            right += (logits.argmax(dim=1) == labels).sum().item()
            total += len(labels)
    if restore:
        model.train(was_training)
    return loss / total, right / total


def measure_all_at_once(model, loader):
    batches = list(loader)
    features = torch.cat([batch[0] for batch in batches])
    labels = torch.cat([batch[1] for batch in batches])
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        logits = model(features)
    model.train(was_training)
    right = (logits.argmax(dim=1) == labels).float().mean()
    return [F.cross_entropy(logits, labels), right]


def measure_batches(model, loader, divide=True):
    rows = [measure(model, [batch]) for batch in loader]
    count = len(rows) if divide else 1
    return tuple(sum(row[i] for row in rows) / count for i in (0, 1))


def measure_noted(model, loader):
    was_training = model.training
    model.eval()
    batches = list(loader)
    loss = sum(F.cross_entropy(model(x), y, reduction="sum") for x, y in batches)
    total = sum(len(y) for _, y in batches)
    right = sum((model(x).argmax(dim=1) == y).sum().item() for x, y in batches)
    model.train(was_training)
    return loss.item() / total, right / total


def measure_left_training(model, loader):
    found = measure(model, loader)
    model.train()
    return found


def measure_without_notes(model, loader):
    torch.set_grad_enabled(False)
    return measure(model, loader)


def measure_softmax(model, loader):
    softened = torch.nn.Sequential(model, torch.nn.Softmax(dim=1))
    softened.training = model.training
    found = measure(softened, loader)
    return found


def measure_by_dataset(model, loader):
    loss, right = measure(model, loader)
    count = len(loader.dataset)
    return torch.tensor([loss * count, right * count]) / count


RIGHT_5 = {"all at once": measure_all_at_once, "by the data set": measure_by_dataset}
WRONG_5 = {
    "means of batches": (measure_batches, "the mean of the batches' means"),
    "sums": (lambda m, b: measure_batches(m, b, divide=False), "the sum over"),
    "last batch": (lambda m, b: measure(m, list(b)[-1:]), "only the last batch"),
    "exchanged": (lambda m, b: measure(m, b)[::-1], "are exchanged"),
    "percent": (
        lambda m, b: (measure(m, b)[0], 100 * measure(m, b)[1]),
        "in percent",
    ),
    "dropout on": (
        lambda m, b: measure(m, b, evaluate=False),
        "two calls give two losses",
    ),
    "frozen": (
        lambda m, b: measure(m.requires_grad_(False), b),
        "can no longer learn",
    ),
    "notes off for good": (measure_without_notes, "takes no notes any more"),
    "last batch dropped": (
        lambda m, b: measure(m, list(b)[:-1]),
        "the last batch is missing",
    ),
    "softmax twice": (measure_softmax, "without a softmax"),
    "left in eval": (
        lambda m, b: measure(m, b, restore=False),
        "left in evaluation mode",
    ),
    "left in train": (measure_left_training, "left in training mode"),
    "noted": (measure_noted, "took notes"),
    "one number": (lambda m, b: measure(m, b)[0], "not a pair"),
}

# --- A.6 ------------------------------------------------------------------------------


def deal(num_examples, batch_size, rank, world_size):
    return [
        list(range(start + rank, min(start + batch_size, num_examples), world_size))
        for start in range(0, num_examples, batch_size)
    ]


def deal_by_class(num_examples, batch_size, rank, world_size):
    data = range(num_examples)
    return list(EveryExampleOnce(data, batch_size, rank, world_size, shuffle=False))


def deal_in_blocks(num_examples, batch_size, rank, world_size):
    found = []
    for start in range(0, num_examples, batch_size):
        size = min(batch_size, num_examples - start)
        bounds = [start + size * r // world_size for r in range(world_size + 1)]
        found.append(torch.arange(bounds[rank], bounds[rank + 1]))
    return found


def deal_halves(num_examples, batch_size, rank, world_size):
    mine = range(rank, num_examples, world_size)
    share = batch_size // world_size
    return [list(mine[i : i + share]) for i in range(0, len(mine), share)]


def deal_contiguous(num_examples, batch_size, rank, world_size):
    each = -(-num_examples // world_size)
    mine = list(range(num_examples))[rank * each : (rank + 1) * each]
    share = batch_size // world_size
    count = -(-num_examples // batch_size)
    return [mine[i * share : (i + 1) * share] for i in range(count)]


def deal_repeating(num_examples, batch_size, rank, world_size):
    return [
        [i % num_examples for i in range(start + rank, start + batch_size, world_size)]
        for start in range(0, num_examples, batch_size)
    ]


def deal_dropping(num_examples, batch_size, rank, world_size):
    whole = deal(num_examples, batch_size, rank, world_size)
    return whole[: num_examples // batch_size]


def deal_to_the_first(num_examples, batch_size, rank, world_size):
    share = batch_size // world_size
    return [
        list(
            range(
                min(start + rank * share, num_examples),
                min(start + (rank + 1) * share, num_examples),
            )
        )
        for start in range(0, num_examples, batch_size)
    ]


RIGHT_6 = {"the course's class": deal_by_class, "in blocks": deal_in_blocks}
WRONG_6 = {
    "batches of one's own": (deal_halves, "different numbers of batches"),
    "contiguous halves": (deal_contiguous, "steps would be others"),
    "repeats": (deal_repeating, "dealt twice"),
    "drops": (deal_dropping, "never dealt"),
    "the first gets most": (deal_to_the_first, "by more than one"),
    "an empty batch more": (
        lambda *a: [*deal(*a), []],
        "more or fewer batches",
    ),
    "backwards": (
        lambda *a: [batch[::-1] for batch in deal(*a)],
        "not in the order of the data",
    ),
    "flat": (lambda *a: sum(deal(*a), []), "flat list"),
    "halves": (
        lambda *a: [[i + 0.5 for i in batch] for batch in deal(*a)],
        "no whole number",
    ),
    "from one": (
        lambda *a: [[i + 1 for i in batch] for batch in deal(*a)],
        "not between",
    ),
}

# --- A.7 ------------------------------------------------------------------------------


def average(gradients, sizes):
    total = sum(g * n for g, n in zip(gradients, sizes) if n)
    return total / sum(sizes)


def average_by_stack(gradients, sizes):
    weights = torch.tensor(sizes, dtype=torch.float64)[:, None] / sum(sizes)
    return (torch.stack(gradients) * weights).sum(dim=0)


def average_in_place(gradients, sizes):
    for gradient, n in zip(gradients, sizes):
        gradient.mul_(n / sum(sizes))
    return sum(gradients)


RIGHT_7 = {
    "stacked": average_by_stack,
    "by NumPy": lambda g, n: np.average(torch.stack(g).numpy(), axis=0, weights=n),
}
WRONG_7 = {
    "mean of means": (
        lambda g, n: torch.stack(g).mean(dim=0),
        "plain average",
    ),
    "sum": (lambda g, n: average(g, n) * sum(n), "divide by their number"),
    "sum of means": (
        lambda g, n: torch.stack(g).sum(dim=0),
        "sum of the means",
    ),
    "in place": (average_in_place, "have changed"),
    "first only": (lambda g, n: g[0], "is not the gradient of the mean"),
}


def test_a_gradient_removed_before_the_step_is_noticed():
    with pytest.raises(AssertionError, match="between backward and the step"):
        a_checks.check_a_4(zero_too_late)


EXERCISES = {
    1: (a_checks.check_a_1, count_by_formula, RIGHT_1, WRONG_1),
    2: (a_checks.check_a_2, windows, RIGHT_2, WRONG_2),
    3: (a_checks.check_a_3, slopes, RIGHT_3, WRONG_3),
    4: (a_checks.check_a_4, train_step, RIGHT_4, WRONG_4),
    5: (a_checks.check_a_5, measure, RIGHT_5, WRONG_5),
    6: (a_checks.check_a_6, deal, RIGHT_6, WRONG_6),
    7: (a_checks.check_a_7, average, RIGHT_7, WRONG_7),
}


@pytest.mark.parametrize("number", EXERCISES)
def test_each_check_takes_right_answers_and_names_mistakes(number, capsys):
    check, solution, right, wrong = EXERCISES[number]
    verify(check, solution, lambda *arguments: ..., wrong)
    for attempt in right.values():
        check(attempt)
        assert "correct" in capsys.readouterr().out
