"""The checks of the exercises in `embeddings-and-linear-layers.ipynb`.

`course.exercises` says how a check answers. Expected values come from plain loops.
"""

import torch
from torch import nn

from course.exercises import (
    call,
    check,
    describe,
    expect,
    expect_close,
    expect_no_slip,
    expect_tensor,
    random_tensor,
    seeded,
)

# --- 2.31 The gradient of a table by hand ---------------------------------------------


@check("2.31")
def check_2_31(attempt):
    cases = [
        ((5,), 7, 3),
        ((2, 4), 6, 2),
        ((3, 5), 3, 3),
        ((1,), 4, 1),
        ((4, 9), 11, 5),
    ]
    for number, (shape, vocab_size, width) in enumerate(cases):
        ids = torch.randint(vocab_size - 1, shape, generator=seeded(number))
        ids.view(-1)[: 2 - number % 2] = 0  # id 0 is a token like the others
        for dtype in (torch.float64, torch.float32):
            upstream = random_tensor(*shape, width, seed=number).to(dtype)
            found = call(attempt, ids.clone(), upstream.clone(), vocab_size)
            _judge_gradient(found, ids, upstream, vocab_size)
    return f"{len(cases)} batches with repeated ids, in two number types."


def _judge_gradient(found, ids, upstream, vocab_size):
    width = upstream.shape[-1]
    about = "one row for each id there is, one column for each number of a vector"
    if isinstance(found, torch.Tensor) and found.is_sparse:
        found = found.to_dense()
    expect_tensor(found, (vocab_size, width), about, upstream.dtype)
    flat, rows = ids.flatten(), upstream.reshape(-1, width)
    right = torch.zeros(vocab_size, width, dtype=upstream.dtype)
    last, first, summed = right.clone(), right.clone(), right.clone()
    for i, row in zip(flat.tolist(), rows, strict=True):
        right[i] += row
        last[i] = row
        summed[i] += 1
        if not first[i].any():
            first[i] = row
    counts = torch.bincount(flat, minlength=vocab_size).clamp(min=1)[:, None]
    slips = {
        "an id that occurs several times gets one of its rows only; they must be added "
        "up, and neither gradient[ids] = ... nor gradient[ids] += ... does that": last,
        "an id that occurs several times gets its first row only": first,
        "the rows of an id are averaged; the gradient is their sum": right / counts,
        "the result counts how often each id occurs and leaves the upstream gradient "
        "out": summed,
        "id 0 gets nothing, but it is a token like any other": torch.cat(
            [torch.zeros_like(right[:1]), right[1:]]
        ),
    }
    atol = 1e-9 if upstream.dtype == torch.float64 else 1e-5
    expect_no_slip(found, right, slips, atol)
    message = (
        "row i must be the sum of the upstream rows of all places where id i stands"
    )
    expect_close(found, right, message, atol)


# --- 2.32 A table in place of a product -----------------------------------------------


@check("2.32")
def check_2_32(attempt):
    for size, width, bias in ((6, 4, False), (5, 5, True), (3, 7, True), (8, 8, False)):
        torch.manual_seed(size)
        linear = nn.Linear(size, width, bias=bias, dtype=torch.float64)
        before = {name: value.clone() for name, value in linear.state_dict().items()}
        learns = {name: p.requires_grad for name, p in linear.named_parameters()}
        embedding = call(attempt, linear)
        expect(
            isinstance(embedding, nn.Embedding),
            f"the result is {describe(embedding)}, where an nn.Embedding is asked for",
        )
        _judge_table(embedding, linear)
        changed = any(
            not torch.equal(value, before[name])
            for name, value in linear.state_dict().items()
        )
        expect(not changed, "the linear layer that was passed in is changed")
        still = {name: p.requires_grad for name, p in linear.named_parameters()}
        expect(
            still == learns,
            "the linear layer that was passed in can no longer be trained: its "
            "requires_grad is another than before",
        )
        with torch.no_grad():
            embedding.weight += 1.0
        untouched = torch.equal(linear.weight, before["weight"])
        expect(
            untouched,
            "the table and the linear layer share their numbers: a step on one would "
            "move the other; copy them",
        )
    return "Four layers, square ones and ones with a bias among them."


def _judge_table(embedding, linear):
    table = embedding.weight
    size, width = linear.in_features, linear.out_features
    expect(
        (embedding.num_embeddings, embedding.embedding_dim) == tuple(table.shape),
        "num_embeddings and embedding_dim say another shape than the table has",
    )
    about = "one row for each id, one column for each number of its vector"
    expect_tensor(table.data, (size, width), about, linear.weight.dtype)
    ids = torch.arange(size)
    with torch.no_grad():
        found, right = embedding(ids), linear(torch.eye(size, dtype=table.dtype))
        slips = {"the bias is left out; every row needs it": linear.weight.T.clone()}
        if size == width:
            bias = 0 if linear.bias is None else linear.bias
            on_its_side = (
                "the weight lies on its side in a linear layer; here it is square"
            )
            slips[f"{on_its_side}, so no error said so"] = linear.weight + bias
        expect_no_slip(found, right, slips, 1e-9)
    message = "some id gets another vector than its one-hot row gets from the layer"
    expect_close(found, right, message, 1e-9)
    expect(table.requires_grad, "the table cannot be trained: it asks for no gradient")
    expect(table.is_leaf, "the table is the result of a computation, not a parameter")
    _expect_full_gradient(embedding, size)


def _expect_full_gradient(embedding, size):
    """Every row learns, and one whose id occurs twice gets both gradients."""
    table, ids = embedding.weight, torch.tensor([*range(size), size - 1])
    table.grad = None
    embedding(ids).sum().backward()
    gradient, table.grad = table.grad.to_dense(), None
    counts = torch.bincount(ids, minlength=size).to(gradient.dtype)
    expect(
        gradient.any(dim=1).all(),
        "an id gets no gradient although it was looked up, so its row cannot be "
        "trained; is it taken for padding?",
    )
    expect(
        torch.allclose(gradient, counts[:, None].expand_as(gradient)),
        "the gradient of the table is not the sum over all places of an id",
    )
