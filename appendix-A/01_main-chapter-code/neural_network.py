"""A small network and something for it to learn (appendix A, first part).

* `make_spirals`: a few hundred points in the plane, in arms that wind about each other;
* `ToyDataset`: such points as a PyTorch data set;
* `NeuralNetwork`: two hidden layers, the network of the whole appendix;
* `compute_accuracy`: the share of examples that a model gets right.

Everything else in the first part (graphs, gradients, the training loop) is PyTorch
itself. Left out: anything about text, which begins in chapter 2.

>>> points, arms = make_spirals(points_per_arm=4)
>>> points.shape, arms.tolist()
(torch.Size([12, 2]), [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
>>> model = NeuralNetwork(num_inputs=2, num_outputs=3)
>>> model(points).shape
torch.Size([12, 3])
>>> sum(p.numel() for p in NeuralNetwork(50, 3).parameters())
2213

Shapes: N examples, I inputs of each, C classes.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.utils.data import Dataset


def make_spirals(
    points_per_arm: int = 200, num_arms: int = 3, noise: float = 0.06, seed: int = 123
) -> tuple[torch.Tensor, torch.Tensor]:
    """Points on spiral arms that start in the middle; no straight line parts them.

    Args:
        points_per_arm: how many points each arm gets, evenly along its length.
        num_arms: how many arms; arm a is turned by a / num_arms of a full circle.
        noise: standard deviation of what each coordinate is off its arm. The arms
            reach a radius of 1.
        seed: of the noise.

    Returns:
        The points, (N, 2), float32, and the arm of each, (N,), int64, arm by arm.
    """
    generator = torch.Generator().manual_seed(seed)
    radius = torch.linspace(0.1, 1.0, points_per_arm)  # (points_per_arm,)
    arms = []
    for arm in range(num_arms):
        angle = 4.0 * radius + 2 * math.pi * arm / num_arms
        on_arm = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
        off_arm = noise * torch.randn(on_arm.shape, generator=generator)
        arms.append(on_arm + off_arm)
    labels = torch.arange(num_arms).repeat_interleave(points_per_arm)  # (N,)
    return torch.cat(arms), labels  # (N, 2), (N,)


class ToyDataset(Dataset):
    """Examples and their labels, one pair for each index.

    Args:
        X: the examples, (N, I).
        y: their labels, (N,).
    """

    def __init__(self, X: torch.Tensor, y: torch.Tensor):
        self.features = X
        self.labels = y

    def __getitem__(self, index) -> tuple[torch.Tensor, torch.Tensor]:
        """One example, (I,), and its label, (); with a list, several at once."""
        return self.features[index], self.labels[index]

    def __len__(self) -> int:
        return len(self.labels)


class NeuralNetwork(nn.Module):
    """Linear layers with a ReLU after each but the last.

    Args:
        num_inputs: I, numbers of an example.
        num_outputs: C, one score for each class.
        hidden: widths of the layers in between.
    """

    def __init__(
        self, num_inputs: int, num_outputs: int, hidden: Sequence[int] = (30, 20)
    ):
        super().__init__()
        layers, width = [], num_inputs
        for next_width in hidden:
            layers += [nn.Linear(width, next_width), nn.ReLU()]
            width = next_width
        self.layers = nn.Sequential(*layers, nn.Linear(width, num_outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores (logits) of the classes, (N, C), for examples (N, I)."""
        return self.layers(x)


def compute_accuracy(
    model: nn.Module,
    dataloader: Iterable[tuple[torch.Tensor, torch.Tensor]],
    device: torch.device | str = "cpu",
) -> float:
    """The share of a loader's examples whose largest score is the right class's.

    The model is left in evaluation mode. An empty loader has no accuracy: the result
    is nan.

    Args:
        model: on `device`; gives scores, (N, C).
        dataloader: yields examples, (N, I), and labels, (N,).
        device: where the batches are moved.
    """
    model.eval()
    correct, total = 0, 0
    with torch.no_grad():
        for features, labels in dataloader:
            logits = model(features.to(device))  # (N, C)
            correct += (logits.argmax(dim=1) == labels.to(device)).sum().item()
            total += len(labels)
    return correct / total if total else math.nan
