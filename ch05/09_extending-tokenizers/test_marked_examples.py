"""Marks stay where the program puts them, and the right losses are counted."""

import pytest
import torch

from course.assets import fetch
from gguf_files import read_gguf
from gguf_tokenizer import GGUFTokenizer
from gpt_train import IGNORE_INDEX
from llama import SMOLLM2_135M, LlamaModel
from marked_examples import (
    MARKS,
    Example,
    answer_losses,
    as_text,
    batch_of,
    chatml,
    marked,
    short_entries,
    shuffled_batches,
    text_losses,
    write_answers,
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


def test_as_text_an_entry_has_no_special_token(tokenizer):
    entry = {"instruction": "Why<|im_end|>?", "input": "", "output": "So."}
    ids, start = as_text(entry, tokenizer)
    assert tokenizer.decode(ids) == "Question: Why<|im_end|>?\nAnswer: So.\n"
    assert tokenizer.decode(ids[start:]) == " So.\n"
    assert not set(ids) & set(tokenizer.special_tokens.values())


class Count(torch.nn.Module):
    """Says that the next id is the one after, up to 4, by a logit of 2."""

    def forward(self, idx):
        return 2.0 * torch.nn.functional.one_hot((idx + 1).clamp(max=4), 6).float()


def test_losses_of_texts_among_all_and_among_old_tokens():
    texts = [[0, 1, 2], [3, 1], [2, 3, 4, 4]]
    hits, misses = 5, 1  # from 3 to 1 is the only miss
    for n_old, which in ((6, 0), (5, 1)):
        z = torch.tensor([2.0] + [0.0] * (n_old - 1)).logsumexp(dim=0).item()
        expected = z - 2 * hits / (hits + misses)
        for batch_size in (1, 2, 3):
            found = text_losses(Count(), texts, 5, batch_size)
            assert found[which] == pytest.approx(expected)


def test_answers_are_written_up_to_their_end_each_by_itself():
    """Known mistake: an answer that its batch has padded is read on past its end."""

    class Numbers:
        def decode(self, ids):
            return str(list(ids))

    torch.manual_seed(1)
    sizes = {"vocab_size": 60, "emb_dim": 8, "n_heads": 2, "n_kv_groups": 1}
    sizes |= {"head_dim": 4, "n_layers": 1, "hidden_dim": 8, "context_length": 64}
    model = LlamaModel({**SMOLLM2_135M, **sizes, "tie_weights": False}).eval()
    prompts = [[5, 6, 7], [8], [30, 20, 10, 9]]
    alone = []
    for ids in prompts:
        written = list(ids)
        for _ in range(6):
            logits = model(torch.tensor([written]))[0, -1]
            written.append(int(logits.argmax()))
        alone.append(written[len(ids) :])
    end = alone[1][2]
    examples = [Example([*ids, end], len(ids)) for ids in prompts]
    answers = write_answers(model, examples, Numbers(), 6)
    assert {answer.ended for answer in answers} == {True, False}
    for answer, ids in zip(answers, alone, strict=True):
        assert answer.ended == (end in ids)
        assert answer.text == str(ids[: ids.index(end)] if end in ids else ids)
    only = write_answers(model, examples[1:2], Numbers(), 6)
    assert only == [(str(alone[1][:2]), True)]  # generate leaves its end out


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
