"""Every exercise check takes the solution, knows the stub and names mistakes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from course.exercises import verify
from embedding_checks import check_2_31, check_2_32


def stub(*arguments):
    return ...


# --- 2.31 -----------------------------------------------------------------------------


def table_gradient(ids, upstream, vocab_size):
    width = upstream.shape[-1]
    gradient = torch.zeros(vocab_size, width, dtype=upstream.dtype)
    return gradient.index_add_(0, ids.flatten(), upstream.reshape(-1, width))


def by_product(ids, upstream, vocab_size):
    rows = F.one_hot(ids.flatten(), vocab_size).to(upstream.dtype)
    return rows.T @ upstream.flatten(0, -2)


def by_autograd(ids, upstream, vocab_size):
    table = torch.zeros(
        vocab_size, upstream.shape[-1], dtype=upstream.dtype, requires_grad=True
    )
    F.embedding(ids, table, sparse=True).backward(upstream)
    return table.grad


def by_loop(ids, upstream, vocab_size):
    rows = upstream.reshape(ids.numel(), -1)
    gradient = rows.new_zeros(vocab_size, rows.shape[1])
    for place, i in enumerate(ids.flatten()):
        gradient[i] = gradient[i] + rows[place]
    return gradient


def assigned(ids, upstream, vocab_size):
    gradient = torch.zeros(vocab_size, upstream.shape[-1], dtype=upstream.dtype)
    gradient[ids] += upstream
    return gradient


def first_only(ids, upstream, vocab_size):
    gradient = torch.zeros(vocab_size, upstream.shape[-1], dtype=upstream.dtype)
    rows = upstream.reshape(ids.numel(), -1).flip(0)
    for i, row in zip(ids.flatten().flip(0), rows, strict=True):
        gradient[i] = row
    return gradient


def averaged(ids, upstream, vocab_size):
    counts = torch.bincount(ids.flatten(), minlength=vocab_size).clamp(min=1)
    return table_gradient(ids, upstream, vocab_size) / counts[:, None]


def counted(ids, upstream, vocab_size):
    return table_gradient(ids, torch.ones_like(upstream), vocab_size)


def padding_zero(ids, upstream, vocab_size):
    gradient = table_gradient(ids, upstream, vocab_size)
    gradient[0] = 0
    return gradient


def rows_used(ids, upstream, vocab_size):
    return table_gradient(ids, upstream, vocab_size)[: ids.max() + 1]


def test_exercise_2_31_gradient_of_a_table():
    wrong = {
        "assigned": (assigned, "gets one of its rows only"),
        "first": (first_only, "gets its first row only"),
        "averaged": (averaged, "are averaged"),
        "counted": (counted, "counts how often each id occurs"),
        "id 0 as padding": (padding_zero, "id 0 gets nothing"),
        "too few rows": (rows_used, "one row for each id there is"),
        "twice": (
            lambda *a: 2 * table_gradient(*a),
            "the sum of the upstream rows of all places",
        ),
    }
    verify(check_2_31, table_gradient, stub, wrong)


@pytest.mark.parametrize("other", [by_product, by_autograd, by_loop])
def test_exercise_2_31_takes_other_right_answers(other, capsys):
    check_2_31(other)
    assert "correct" in capsys.readouterr().out


# --- 2.32 -----------------------------------------------------------------------------


def to_embedding(linear):
    table = linear.weight.detach().T
    if linear.bias is not None:
        table = table + linear.bias.detach()
    return nn.Embedding.from_pretrained(table.clone(), freeze=False)


def by_one_hot(linear):
    embedding = nn.Embedding(linear.in_features, linear.out_features)
    embedding.to(linear.weight.dtype)
    with torch.no_grad():
        embedding.weight.copy_(linear(torch.eye(linear.in_features).to(linear.weight)))
    return embedding


def without_bias(linear):
    return nn.Embedding.from_pretrained(linear.weight.detach().T.clone(), freeze=False)


def on_its_side(linear):
    bias = 0 if linear.bias is None else linear.bias.detach()
    size, width = linear.in_features, linear.out_features
    table = linear.weight.detach()
    table = table + bias if size == width else table.T + bias
    return nn.Embedding.from_pretrained(table.clone(), freeze=False)


def never_turned(linear):
    return nn.Embedding.from_pretrained(linear.weight.detach().clone(), freeze=False)


def shared(linear):
    table = linear.weight.data.T
    if linear.bias is not None:
        table = table + linear.bias.data
    return nn.Embedding.from_pretrained(table, freeze=False)


def frozen(linear):
    return nn.Embedding.from_pretrained(to_embedding(linear).weight.data)


def with_padding(linear):
    table = to_embedding(linear).weight.data
    return nn.Embedding.from_pretrained(table, freeze=False, padding_idx=0)


def padding_at_the_end(linear):
    table = to_embedding(linear).weight.data
    return nn.Embedding.from_pretrained(table, freeze=False, padding_idx=-1)


def scaled(linear):
    table = to_embedding(linear).weight.data
    return nn.Embedding.from_pretrained(table, freeze=False, scale_grad_by_freq=True)


def freezing_the_layer(linear):
    linear.requires_grad_(False)
    return to_embedding(linear)


def sparse(linear):
    table = to_embedding(linear).weight.data
    return nn.Embedding.from_pretrained(table, freeze=False, sparse=True)


def exchanged(linear):
    embedding = nn.Embedding(1, 1)
    embedding.weight = to_embedding(linear).weight
    return embedding


def changing(linear):
    embedding = to_embedding(linear)
    nn.init.zeros_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    linear.weight.data += embedding.weight.data.T
    linear.weight.data[0, 0] += 0 if linear.bias is None else 1
    embedding.weight.data[0, 0] = linear.weight.data[0, 0]
    return embedding


def test_exercise_2_32_a_table_in_place_of_a_product():
    wrong = {
        "no bias": (without_bias, "the bias is left out"),
        "not turned, where it is square": (on_its_side, "here it is square"),
        "not turned": (never_turned, "one row for each id, one column"),
        "shared": (shared, "share their numbers"),
        "frozen": (frozen, "asks for no gradient"),
        "random": (
            lambda linear: nn.Embedding(
                linear.in_features, linear.out_features, dtype=torch.float64
            ),
            "some id gets another vector",
        ),
        "padding": (with_padding, "is it taken for padding?"),
        "scaled": (scaled, "the sum over all places of an id"),
        "layer frozen": (freezing_the_layer, "can no longer be trained"),
        "sizes": (exchanged, "say another shape"),
        "the input": (changing, "that was passed in is changed"),
        "a tensor": (lambda linear: linear.weight.T, "where an nn.Embedding is asked"),
    }
    verify(check_2_32, to_embedding, stub, wrong)


def test_exercise_2_32_takes_the_last_id_for_a_token_too():
    with pytest.raises(AssertionError, match="is it taken for padding"):
        check_2_32(padding_at_the_end)


@pytest.mark.parametrize("other", [by_one_hot, sparse])
def test_exercise_2_32_takes_other_right_answers(other, capsys):
    check_2_32(other)
    assert "correct" in capsys.readouterr().out
