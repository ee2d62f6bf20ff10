"""The shared checks: what they let through, and one sentence for what they do not."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from argument_checks import (
    cached_tokens,
    check_any_batch,
    check_attention_mask,
    check_divisible,
    check_ids,
    check_idx,
    check_input,
    check_length,
    check_prompt,
    check_sizes,
    check_start,
    check_tokens,
    check_vocabulary,
    check_whole_number,
    check_window_fits,
    check_windows,
)

CFG = {"vocab_size": 23, "context_length": 10, "n_layers": 2}


def ids(*shape):
    return torch.zeros(shape, dtype=torch.long)


def whole_cache(layers=2, length=0, **more):
    return SimpleNamespace(
        num_layers=layers, length=length, layer=lambda index: index, **more
    )


@pytest.mark.parametrize("value", [1, 7, np.int32(3), np.int64(2)])
def test_whole_numbers_of_any_library_pass(value):
    check_whole_number("stride", value)
    check_sizes(stride=value, width=value)


@pytest.mark.parametrize("value", [0, -4, 1.5, 2.0, "4", True, None, np.float32(3)])
def test_what_is_no_whole_number_from_1_up_is_named(value):
    with pytest.raises(ValueError, match="stride is .*: give a whole number from 1 up"):
        check_whole_number("stride", value)
    with pytest.raises(ValueError, match="stride is "):
        check_sizes(width=4, stride=value)


def test_a_count_may_start_at_0():
    check_whole_number("num_workers", 0, least=0)
    with pytest.raises(ValueError, match="num_workers is -1: .* from 0 up"):
        check_whole_number("num_workers", -1, least=0)
    with pytest.raises(ValueError, match="num_workers is False"):
        check_whole_number("num_workers", False, least=0)


def accepted():
    check_tokens(["a"], ("<|unk|>",))
    check_vocabulary({"a": 0, "b": 1})
    check_windows(4, 4)
    check_window_fits(5, 4)
    check_any_batch(4, 4)
    check_divisible(d_out=12, num_heads=4)
    check_input(torch.zeros(2, 5, 6), 6)
    check_length(10, 10, past=9)
    check_attention_mask(torch.tensor([[0, 1, 1]]), 1, 3, past=1)
    check_attention_mask(torch.zeros(1, 3, dtype=torch.bool), 1, 3, past=0)
    check_ids(torch.tensor([[0, 22]]), 23)
    check_idx(ids(2, 7), CFG, past=3)
    check_prompt(nn.Dropout(0.5).eval(), ids(2, 7), 0, 10)
    check_prompt(nn.Dropout(0.0).train(), ids(2, 7), 5, 10)
    check_prompt(nn.Linear(1, 1), ids(1, 4), 7, 10, whole_cache(window=6))
    for more in ({"window": 10}, {"window": 6, "masked": True}, {"window": None}):
        check_prompt(nn.Linear(1, 1), ids(1, 4), 8, 10, whole_cache(**more))
    check_start(ids(2, 3), torch.tensor([[0, 1, 1], [1, 1, 1]]), whole_cache())
    return True


def test_what_is_right_passes():
    assert accepted()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_vocabulary({"a": 1, "b": 1}), "share an id; give each its own"),
        (lambda: check_windows(4, 0), "stride is 0: give a whole number from 1 up"),
        (lambda: check_windows(0, 4), "max_length is 0: give a whole number"),
        (lambda: check_window_fits(4, 4), "has 4 tokens, but one window .* needs 5"),
        (
            lambda: check_any_batch(3, 4),
            "few windows, 3 for batch_size=4, and drop_last",
        ),
        (
            lambda: check_divisible(d_out=8, num_heads=3),
            "d_out=8 cannot be shared by num_heads=3 evenly: choose a multiple of it",
        ),
        (
            lambda: check_input(torch.zeros(5, 6), 6),
            r"shape \(5, 6\), which is 2 dimensions: give \(batch, .*unsqueeze",
        ),
        (
            lambda: check_input(torch.zeros(1, 2, 5, 6), 6),
            r"4 dimensions: give \(batch, tokens, width\)\.",
        ),
        (
            lambda: check_input(torch.zeros(2, 5, 8), 6),
            "tokens are 8 wide, but this layer was made for d_in=6",
        ),
        (lambda: check_input(torch.zeros(2, 0, 6), 6), "no token at all"),
        (lambda: check_length(13, 12), "has 13 tokens, but context_length is 12"),
        (lambda: check_length(13, 12, 4), r"13 tokens \(4 of them in the cache\), but"),
        (
            lambda: check_attention_mask(torch.ones(2, 4), 2, 5, 2),
            r"shape \(2, 4\), but must be \(2, 5\).* 2 cached and 3 new",
        ),
        (
            lambda: check_attention_mask(torch.ones(2, 5), 2, 5, 0),
            "holds torch.float32: give bool, or integers",
        ),
        (
            lambda: check_attention_mask(torch.full((2, 5), -1), 2, 5, 0),
            "integers other than 0 and 1.* does not hold token ids",
        ),
        (
            lambda: cached_tokens(whole_cache(3), CFG),
            "made for 3 layers, but this model has 2: make it with num_layers=2",
        ),
        (
            lambda: cached_tokens([], CFG),
            r"cache is list, which lacks layer\(index\).*KVCache\(num_layers=2\)",
        ),
        (
            lambda: check_ids(torch.tensor([[1, 23]]), 23),
            "token id 23, but this model knows the ids 0 to 22",
        ),
        (lambda: check_ids(torch.tensor([[-1, 2]]), 23), "token id -1, but"),
        (lambda: check_idx(torch.tensor([[23]]), CFG), "token id 23"),
        (lambda: check_idx(ids(5), CFG), r"\(5,\): give \(batch, tokens\).*unsqueeze"),
        (lambda: check_idx(ids(1, 2, 3), CFG), r"\(1, 2, 3\): give \(batch, tokens\)"),
        (lambda: check_idx(ids(0, 3), CFG), r"\(0, 3\), no token at all"),
        (
            lambda: check_idx(ids(1, 3), CFG, past=8),
            r"has 11 tokens \(8 of them in the cache\), but the model reads at most",
        ),
        (
            lambda: check_prompt(nn.Linear(1, 1), ids(1, 0), 3, 10),
            r"no token at all: .* can start from <\|endoftext\|>",
        ),
        (lambda: check_prompt(nn.Linear(1, 1), ids(4), 3, 10), r"\(4,\): give"),
        (
            lambda: check_prompt(nn.Linear(1, 1), ids(1, 4), -1, 10),
            "max_new_tokens is -1: give a whole number from 0 up",
        ),
        (
            lambda: check_prompt(nn.Linear(1, 1), ids(1, 4), 1, 0),
            "context_size is 0: give a whole number from 1 up",
        ),
        (
            lambda: check_prompt(
                nn.Linear(1, 1), ids(1, 4), 8, 10, whole_cache(window=6)
            ),
            r"4 tokens and 8 new ones go past context_size=10.* window of 6 cannot",
        ),
        (
            lambda: cached_tokens(whole_cache(window=6), CFG, torch.ones(1, 4)),
            "the columns of the mask do not roll",
        ),
        (
            lambda: check_prompt(nn.Dropout(0.5), ids(1, 4), 1, 10),
            r"matter of chance: call model\.eval\(\)",
        ),
        (
            lambda: check_start(ids(1, 3), torch.tensor([[1, 1, 0]]), None),
            "ends with padding.* on the left",
        ),
        (
            lambda: check_start(ids(1, 3), torch.ones(1, 2).long(), None),
            r"must be \(1, 3\)",
        ),
        (
            lambda: check_start(ids(1, 3), None, whole_cache(length=4)),
            r"holds 4 tokens already: call cache\.reset",
        ),
    ],
)
def test_what_is_wrong_gets_one_sentence_with_the_fix(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("lists", [("a text",), (["a"], "<|unk|>")])
def test_a_text_is_no_list_of_tokens(lists):
    with pytest.raises(TypeError, match=r"call split_into_tokens\(text\) first"):
        check_tokens(*lists)


def test_a_stride_above_the_window_warns():
    with pytest.warns(UserWarning, match="of every 6 tokens 2 are never an input"):
        check_windows(4, 6)


def test_a_cache_says_how_many_tokens_it_holds():
    assert cached_tokens(whole_cache(length=5), CFG) == 5
    assert cached_tokens(None, CFG) == 0


def test_ids_on_another_device_are_not_looked_through():
    """There the question would stop the device at each step."""
    far = torch.empty(1, 3, dtype=torch.long, device="meta")
    assert check_idx(far, CFG) is None
    with pytest.raises(ValueError, match="has 11 tokens"):
        check_idx(torch.empty(1, 11, dtype=torch.long, device="meta"), CFG)
