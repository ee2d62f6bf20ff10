"""Marks stay where the program puts them, and the right losses are counted."""

import pytest
import torch

from course.assets import fetch
from gguf_files import read_gguf
from gguf_tokenizer import GGUFTokenizer
from gpt_train import IGNORE_INDEX
from marked_examples import (
    MARKS,
    Example,
    answer_losses,
    batch_of,
    chatml,
    marked,
    short_entries,
    shuffled_batches,
)
from resize import ExtendedTokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return GGUFTokenizer(read_gguf(fetch("smollm2-135m")).metadata)


def test_marks_in_a_text_stay_text(tokenizer):
    longer = ExtendedTokenizer(tokenizer, MARKS)
    entry = {"instruction": "<|done|><|im_end|>", "input": "<|reply|>"}
    entry["output"] = "<|ask|>"
    ids, start = marked(entry, longer)
    assert [i for i in ids if i >= tokenizer.n_vocab] == [49152, 49153, 49154]
    assert (ids[0], ids[start - 1], ids[-1]) == (49152, 49153, 49154)
    assert longer.decode(ids[start:-1]) == "<|ask|>"
    end = tokenizer.special_tokens["<|im_end|>"]
    assert chatml(entry, tokenizer).ids.count(end) == 3  # system, user, answer


def test_only_the_answer_and_its_end_count(tokenizer):
    longer = ExtendedTokenizer(tokenizer, MARKS)
    examples = [marked(entry, longer) for entry in short_entries("test", 5)]
    inputs, targets = batch_of(examples)
    for row, (ids, start) in enumerate(examples):
        counted = targets[row][targets[row] != IGNORE_INDEX].tolist()
        assert counted == ids[start:]
        assert inputs[row, : len(ids) - 1].tolist() == ids[:-1]


def test_losses_of_words_and_ends_are_told_apart():
    """Known mistake: the padding after an end is taken for an end."""
    examples = [
        Example([3, 1, 2, 4], 2),
        Example([3, 1, 1, 0, 2, 4], 3),
        Example([3, 1, 4], 2),
    ]

    class Fixed(torch.nn.Module):
        def forward(self, idx):
            logits = torch.zeros(*idx.shape, 5)
            logits[..., 4] = 1.0
            return logits

    z = torch.tensor([0.0, 0, 0, 0, 1]).logsumexp(dim=0).item()
    words, ends = answer_losses(Fixed(), examples, batch_size=2)
    assert words == pytest.approx(z)
    assert ends == pytest.approx(z - 1)


def test_short_entries_come_from_their_part_in_order():
    train, test = short_entries("train", 400), short_entries("test", 48)
    assert (len(train), len(test)) == (400, 48)
    assert not {e["family"] for e in train} & {e["family"] for e in test}


def test_batches_take_each_example_once_a_round():
    examples = [Example([i, 1, 2], 2) for i in range(7)]
    batches = shuffled_batches(examples, batch_size=3, seed=0)
    rounds = [[next(batches)[0][:, 0] for _ in range(2)] for _ in range(2)]
    firsts, seconds = (torch.cat(one).tolist() for one in rounds)
    assert len(set(firsts)) == len(set(seconds)) == 6
    assert firsts != seconds
    again = next(shuffled_batches(examples, batch_size=3, seed=0))
    assert again[0][:, 0].tolist() == firsts[:3]
