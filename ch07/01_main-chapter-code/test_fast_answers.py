"""Answers in little time are the same answers, and so is the loss."""

from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader

from course.assets import fetch
from fast_answers import answers_and_loss, shared_prefix, write_answers
from gpt_instruction_finetuning import (
    InstructionDataset,
    calc_loss_answers,
    custom_collate_fn,
    generate_answers,
)
from gpt_train import calc_loss_loader
from instruction_data import read_instructions, split_instructions
from pretrained import load_pretrained
from test_gpt_instruction_finetuning import BYTES, END, entries, make_model


def loss_by_batches(asked, model, tokenizer, style):
    data = InstructionDataset(asked, tokenizer, style, mask_prompt=True)
    collate = partial(custom_collate_fn, pad_token_id=tokenizer.eot_token)
    loader = DataLoader(data, 3, collate_fn=collate)
    return calc_loss_loader(loader, model, "cpu", loss=calc_loss_answers)


@pytest.mark.parametrize("kind", ["gpt", "llama"])
@pytest.mark.parametrize("style", ["alpaca", "phi3"])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_answers_and_loss_are_those_of_one_at_a_time(kind, style, batch_size):
    model = make_model(kind).train()
    with torch.no_grad():  # so that what stands before decides
        for parameter in model.trf_blocks.parameters():
            parameter.mul_(4 if parameter.ndim == 2 else 1)
    asked = entries(9)
    fast = partial(answers_and_loss, asked, model, BYTES, style=style)
    replies, loss = fast(max_new_tokens=9, batch_size=batch_size)
    assert model.training
    alone = [generate_answers([one], model, BYTES, style, 9)[0] for one in asked]
    assert replies == alone
    assert len(set(replies)) > 1
    model.eval()
    assert loss == pytest.approx(loss_by_batches(asked, model, BYTES, style), abs=1e-5)


def test_a_text_that_has_ended_is_taken_out_of_the_batch():
    """A model that says its row's letter as often as the first number asks."""
    sizes = []

    class Counter(torch.nn.Module):
        cfg = {"context_length": 900, "n_layers": 1}

        def forward(self, idx, attention_mask=None, cache=None):
            sizes.append(len(idx))
            left = idx[:, -1] - 1
            logits = torch.zeros(len(idx), 1, 300)
            return logits.scatter(2, torch.where(left > 0, left, END)[:, None, None], 1)

    logits = torch.zeros(4, 300)
    logits[range(4), [2, 8, 2, 3]] = 1
    real = torch.ones(4, 1, dtype=torch.bool)

    class Cache:
        def select(self, rows):
            return self

    written = write_answers(Counter(), (logits, real, Cache()), END, 6)
    assert written == [[2, 1], [8, 7, 6, 5, 4, 3], [2, 1], [3, 2, 1]]
    assert sizes == [4, 4, 2, 1, 1]


def test_what_all_begin_with_leaves_something_of_each():
    assert shared_prefix([[1, 2, 3], [1, 2, 3]]) == 2
    assert shared_prefix([[1], [1, 2]]) == 0
    assert shared_prefix([[1, 2], [3, 2]]) == 0


def test_what_is_longer_than_the_context_is_refused():
    asked = entries(2)
    with pytest.raises(ValueError, match="use generate_answers"):
        answers_and_loss(asked, make_model("gpt"), BYTES, max_new_tokens=400)


def test_real_weights_say_the_same_in_batches():
    model, tokenizer, _ = load_pretrained("smollm2-135m")
    _, _, test = split_instructions(read_instructions(fetch("instructions")))
    asked = test[:8]
    together, loss = answers_and_loss(asked, model, tokenizer, max_new_tokens=6)
    alone = [generate_answers([e], model, tokenizer, "alpaca", 6)[0] for e in asked]
    assert together == alone
    assert loss == pytest.approx(
        loss_by_batches(asked, model, tokenizer, "alpaca"), abs=1e-4
    )
