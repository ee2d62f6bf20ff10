"""Every exercise check takes the solution, knows the stub and names mistakes."""

import copy
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from course.exercises import verify
from flops import (
    forward_flops,
    forward_work,
    matmul_flops,
    needed_scores,
    sizes_of,
)
from flops_checks import check_F_1, check_F_2, check_F_3, check_F_4


def stub(*arguments, **keywords):
    """A function of which only the docstring is there."""
    return ...


def split(cfg, tokens):
    """Operations of attention and of everything else."""
    parts = forward_flops(cfg, 1, tokens)
    attention = parts["attention products"]
    return attention, sum(parts.values()) - attention


# --- F.1 -----------------------------------------------------------------------------


def takeover(cfg):
    attention, rest = split(cfg, 1)  # at T tokens: attention * T ** 2, rest * T
    return rest // attention + 1


def takeover_by_search(cfg, weigh=lambda attention, tokens: attention):
    tokens, step = 0, 2**20
    while step:
        attention, rest = split(cfg, tokens + step)
        if weigh(attention, tokens + step) <= rest:
            tokens += step
        step //= 2
    return np.int64(tokens + 1)


def against(*names):
    def attempt(cfg):
        parts = forward_flops(cfg, 1, 1)
        rest = sum(parts[name] for name in names)
        return rest // parts["attention products"] + 1

    return attempt


def half_the_scores(cfg):
    return takeover_by_search(
        cfg, lambda attention, T: attention * needed_scores(T) / T**2
    )


WRONG_F_1 = {
    "not less": (
        lambda cfg: math.ceil(split(cfg, 1)[1] / split(cfg, 1)[0]),
        "as much as the rest, not more",
    ),
    "feed-forward": (against("feed-forward"), "against feed-forward alone"),
    "no head": (against("projections", "feed-forward"), "the output head is missing"),
    "no projections": (against("head", "feed-forward"), "the projections are missing"),
    "mask": (half_the_scores, "the mask leaves"),
    "fraction": (lambda cfg: takeover(cfg) + 0.5, "not a whole number"),
    "no number": (lambda cfg: "6703", "not a number"),
    "something": (lambda cfg: 1, "does not take over at this length"),
}


def test_F_1():
    verify(check_F_1, takeover, stub, WRONG_F_1)


@pytest.mark.parametrize("kind", [float, Fraction])
def test_F_1_says_the_lengths_whatever_their_type(kind, capsys):
    check_F_1(lambda cfg: kind(takeover(cfg)))
    assert "6,703 tokens for GPT-2" in capsys.readouterr().out


def test_F_1_takes_a_search_and_refuses_the_length_before(capsys):
    check_F_1(takeover_by_search)
    assert "correct" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="last length"):
        check_F_1(lambda cfg: takeover(cfg) - 1)


# --- F.2 -----------------------------------------------------------------------------


def counted(module, *inputs):
    with FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops()


def on_meta(inputs):
    return [x.to("meta") for x in inputs]


def count_anywhere(module, *inputs):
    return counted(copy.deepcopy(module).to("meta"), *on_meta(inputs))


def by_functional_call(module, *inputs):
    """Without a copy: the parameters are lent."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    lent = {name: tensor.to("meta") for name, tensor in tensors.items()}
    with FlopCounterMode(display=False) as counter:
        torch.func.functional_call(module, lent, tuple(on_meta(inputs)))
    return counter.get_total_flops()


def by_swapped_data(module, *inputs):
    return torch.tensor(float(count_anywhere(module, *inputs)))


def harmful(module, *inputs):
    return counted(module.to("meta"), *on_meta(inputs))


def zeroed(module, *inputs):
    result = count_anywhere(module, *inputs)
    for parameter in module.parameters():
        parameter.data.zero_()
    return result


def step_counted(module, *inputs):
    twin = copy.deepcopy(module).to("meta")
    with FlopCounterMode(display=False) as counter:
        twin(*on_meta(inputs)).sum().backward()
    return counter.get_total_flops()


def in_float64(module, *inputs):
    result = count_anywhere(module, *inputs)
    module.double()
    return result


WRONG_F_2 = {
    "on the CPU": (counted, "attention is missing"),
    "harmful": (harmful, "has been moved and has lost its numbers"),
    "zeroed": (zeroed, "parameters have changed"),
    "attention": (
        lambda module, *inputs: (
            count_anywhere(module, *inputs) - counted(module, *inputs)
        ),
        "only attention is counted",
    ),
    "half": (
        lambda module, *inputs: count_anywhere(module, *inputs) // 2,
        "is two operations",
    ),
    "step": (step_counted, "a training step is counted"),
    "backward": (
        lambda module, *inputs: (
            step_counted(module, *inputs) - count_anywhere(module, *inputs)
        ),
        "the backward pass is counted",
    ),
    "three times": (
        lambda module, *inputs: 3 * count_anywhere(module, *inputs),
        "three times a forward pass",
    ),
    "float64": (in_float64, "left with another dtype"),
    "of one sequence": (
        lambda module, *inputs: count_anywhere(module, *inputs) // inputs[0].shape[0],
        "the count is not right (your result is 10416)",
    ),
    "eval mode": (
        lambda module, *inputs: (module.eval(), count_anywhere(module, *inputs))[1],
        "left in another mode",
    ),
    "frozen": (
        lambda module, *inputs: count_anywhere(module.requires_grad_(False), *inputs),
        "left with another requires_grad",
    ),
    "nothing": (lambda module, *inputs: 0, "your result is 0)"),
    "no number": (lambda module, *inputs: "many", "not a number"),
}


def test_F_2():
    verify(check_F_2, count_anywhere, stub, WRONG_F_2)


@pytest.mark.parametrize("attempt", [by_functional_call, by_swapped_data])
def test_F_2_takes_other_ways(attempt, capsys):
    check_F_2(attempt)
    assert "correct" in capsys.readouterr().out


# --- F.3 -----------------------------------------------------------------------------


def backward_of_last(cfg, batch, tokens, trained):
    parts = forward_flops(cfg, batch, tokens)
    head = parts.pop("head")
    return 2 * head + 2 * sum(parts.values()) * trained // cfg["n_layers"]


def by_smaller_config(cfg, batch, tokens, trained):
    """A model of the trained blocks alone; 0 blocks are no model."""
    head = forward_flops(cfg, batch, tokens)["head"]
    if trained == 0:
        return 2 * head
    fewer = {**cfg, "n_layers": trained}
    return 2.0 * sum(forward_flops(fewer, batch, tokens).values())


def with_frozen(cfg, batch, tokens, trained):
    whole = sum(forward_flops(cfg, batch, tokens).values())
    head = forward_flops(cfg, batch, tokens)["head"]
    frozen = (whole - head) * (cfg["n_layers"] - trained) // cfg["n_layers"]
    return backward_of_last(cfg, batch, tokens, trained) + frozen


def by_share(cfg, batch, tokens, trained):
    whole = sum(forward_flops(cfg, batch, tokens).values())
    return 2 * whole * trained // cfg["n_layers"]


def first_projections(cfg, rows):
    """Operations of the products that make a block's queries, keys and values."""
    _, D, H, G, K, _, _, _ = sizes_of(cfg)
    return matmul_flops(rows, D, (H + 2 * G) * K)


def attention_of_last(cfg, batch, tokens, trained):
    attention = forward_flops(cfg, batch, tokens)["attention products"]
    return attention * trained // cfg["n_layers"]


WRONG_F_3 = {
    "no head": (
        lambda cfg, b, t, n: (
            backward_of_last(cfg, b, t, n) - 2 * forward_flops(cfg, b, t)["head"]
        ),
        "the output head is missing",
    ),
    "through frozen": (with_frozen, "frozen blocks are gone through"),
    "whole": (
        lambda cfg, b, t, n: 2 * sum(forward_flops(cfg, b, t).values()),
        "nothing is saved",
    ),
    "forward too": (
        lambda cfg, b, t, n: (
            backward_of_last(cfg, b, t, n) + sum(forward_flops(cfg, b, t).values())
        ),
        "the forward pass is counted",
    ),
    "one gradient": (
        lambda cfg, b, t, n: backward_of_last(cfg, b, t, n) // 2,
        "two gradients, and one of them is counted",
    ),
    "one gradient of blocks": (
        lambda cfg, b, t, n: (
            (backward_of_last(cfg, b, t, n) + backward_of_last(cfg, b, t, 0)) // 2
        ),
        "for the blocks one of them",
    ),
    "one gradient of the head": (
        lambda cfg, b, t, n: (
            backward_of_last(cfg, b, t, n) - forward_flops(cfg, b, t)["head"]
        ),
        "for the head one of them",
    ),
    "no batch": (
        lambda cfg, b, t, n: backward_of_last(cfg, 1, t, n),
        "the batch is missing",
    ),
    "share": (by_share, "for the head as well"),
    "first blocks": (
        lambda cfg, b, t, n: backward_of_last(cfg, b, t, cfg["n_layers"] - n),
        "as many blocks are counted as are frozen",
    ),
    "one gradient of the first projections": (
        lambda cfg, b, t, n: (
            backward_of_last(cfg, b, t, n) - (n > 0) * first_projections(cfg, b * t)
        ),
        "a norm that learns stands before them",
    ),
    "one gradient of attention": (
        lambda cfg, b, t, n: (
            backward_of_last(cfg, b, t, n) - attention_of_last(cfg, b, t, n)
        ),
        "for attention products one gradient",
    ),
    "no attention": (
        lambda cfg, b, t, n: (
            backward_of_last(cfg, b, t, n) - 2 * attention_of_last(cfg, b, t, n)
        ),
        "the attention products are missing",
    ),
    "head alone": (
        lambda cfg, b, t, n: 2 * forward_flops(cfg, b, t)["head"],
        "with 1 trained block: the count is not right",
    ),
}


def test_F_3():
    verify(check_F_3, backward_of_last, stub, WRONG_F_3)


def test_F_3_says_for_how_many_blocks_it_goes_wrong():
    def by_slice(cfg, batch, tokens, trained):
        blocks = list(range(cfg["n_layers"]))[-trained:]  # [-0:] is all of them
        return backward_of_last(cfg, batch, tokens, len(blocks))

    with pytest.raises(AssertionError, match="with 0 trained blocks: nothing is saved"):
        check_F_3(by_slice)


def test_F_3_takes_a_smaller_model(capsys):
    check_F_3(by_smaller_config)
    assert "correct" in capsys.readouterr().out


# --- F.4 -----------------------------------------------------------------------------


def batch_at_ridge(cfg, past, ridge):
    one, two = (forward_work(cfg, batch, 1, past) for batch in (1, 2))
    own = two.bytes - one.bytes
    shared = one.bytes - own
    spare = one.flops - ridge * own
    return max(1, math.ceil(ridge * shared / spare)) if spare > 0 else None


def by_bisection(cfg, past, ridge):
    high = 1
    while forward_work(cfg, high, 1, past).intensity < ridge:
        high *= 2
        if high > 10**12:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        enough = forward_work(cfg, middle, 1, past).intensity >= ridge
        low, high = (low, middle) if enough else (middle, high)
    return high


def one_cache(cfg, past, ridge):
    """The cache of one sequence for all of them."""
    one = forward_work(cfg, 1, 1, past)
    found = math.ceil(ridge * one.bytes / one.flops)
    right = batch_at_ridge(cfg, past, ridge)
    return None if right is None else max(1, found)


def never_none(cfg, past, ridge):
    return batch_at_ridge(cfg, past, ridge) or 10**9


def half_bytes(cfg, past, ridge):
    one, two = (forward_work(cfg, batch, 1, past, size=2) for batch in (1, 2))
    own = two.bytes - one.bytes
    spare = one.flops - ridge * own
    needed = ridge * (one.bytes - own)
    return max(1, math.ceil(needed / spare)) if spare > 0 else None


def no_logits(cfg, past, ridge):
    """The logits left out of the bytes of a sequence."""
    one, two = (forward_work(cfg, batch, 1, past) for batch in (1, 2))
    own = two.bytes - one.bytes - 4 * cfg["vocab_size"]
    spare = one.flops - ridge * own
    shared = one.bytes - (two.bytes - one.bytes)
    return max(1, math.ceil(ridge * shared / spare)) if spare > 0 else None


def one_more(cfg, past, ridge):
    """One too many where the quotient is a whole number."""
    one, two = (forward_work(cfg, batch, 1, past) for batch in (1, 2))
    own = two.bytes - one.bytes
    spare = one.flops - ridge * own
    return int(ridge * (one.bytes - own) // spare) + 1 if spare > 0 else None


def changed(function):
    def attempt(cfg, past, ridge):
        found = batch_at_ridge(cfg, past, ridge)
        return None if found is None else function(found)

    return attempt


WRONG_F_4 = {
    "one cache": (one_cache, "the cache is counted once"),
    "never none": (never_none, "no batch is enough"),
    "always none": (changed(lambda n: None), "a ridge at 5 there is such a batch"),
    "half bytes": (half_bytes, "float32 has four"),
    "rounded down": (
        changed(lambda n: n - 1 if n > 1 else n),
        "one more is enough",
    ),
    "search that stops": (
        lambda cfg, past, ridge: next(
            (
                n
                for n in range(1, 101)
                if forward_work(cfg, n, 1, past).intensity >= ridge
            ),
            None,
        ),
        "a ridge at 7.15 there is such a batch",
    ),
    "one more": (one_more, "a ridge at 2.10938 a smaller batch"),
    "too large": (changed(lambda n: 2 * n), "a ridge at 5 a smaller batch"),
    "too small": (changed(lambda n: 1), "a batch of 1 reaches"),
    "zero": (changed(lambda n: 0), "it is at least 1"),
    "fraction": (changed(lambda n: n - 0.5), "not a whole number"),
}


def test_F_4():
    verify(check_F_4, batch_at_ridge, stub, WRONG_F_4)


def test_F_4_says_what_it_saw_and_guesses_no_rounding():
    with pytest.raises(AssertionError, match="a batch of 26 reaches 4.9881 only"):
        check_F_4(no_logits)


def test_F_4_takes_a_search(capsys):
    check_F_4(by_bisection)
    assert "correct" in capsys.readouterr().out
