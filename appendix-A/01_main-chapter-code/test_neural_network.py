"""The points, the network and its measure."""

import math

import pytest
import torch
from torch.utils.data import DataLoader

from neural_network import NeuralNetwork, ToyDataset, compute_accuracy, make_spirals


def test_spirals_are_the_same_for_a_seed_and_leave_torchs_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    points, arms = make_spirals(seed=4)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(points, make_spirals(seed=4)[0])
    assert not torch.equal(points, make_spirals(seed=5)[0])
    assert points.shape == (600, 2)
    assert arms.bincount().tolist() == [200, 200, 200]


def test_arms_are_turned_copies_of_one_another():
    points, _ = make_spirals(points_per_arm=50, num_arms=4, noise=0.0)
    first, second = points[:50], points[50:100]
    quarter = torch.stack([-first[:, 1], first[:, 0]], dim=1)
    assert torch.allclose(quarter, second, atol=1e-6)


@pytest.mark.parametrize(
    ("sizes", "count"), [((2, 2), 752), ((2, 3), 773), ((50, 3), 2213)]
)
def test_parameters(sizes, count):
    assert sum(p.numel() for p in NeuralNetwork(*sizes).parameters()) == count


def test_a_dataset_gives_one_example_or_several():
    data = ToyDataset(torch.eye(3), torch.arange(3))
    assert len(data) == 3
    assert data[1][1] == 1
    assert data[[0, 2]][0].shape == (2, 3)
    assert data[[]][0].shape == (0, 3)


def test_accuracy_counts_examples_not_batches():
    data = ToyDataset(torch.eye(3), torch.tensor([0, 1, 0]))
    model = torch.nn.Identity().train()
    assert compute_accuracy(model, DataLoader(data, batch_size=2)) == pytest.approx(
        2 / 3
    )
    assert not model.training
    assert math.isnan(compute_accuracy(model, []))


def test_without_hidden_layers_it_is_one_linear_layer():
    model = NeuralNetwork(4, 2, hidden=())
    x = torch.randn(5, 4)
    assert torch.equal(model(x), x @ model.layers[0].weight.T + model.layers[0].bias)
