"""Each change is the change that it is named for, and nothing else."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from classifier_variants import (
    AskedAt,
    ask_at,
    holm,
    ignoring,
    let_learn,
    read_padding,
    see_both_ways,
    start_anew,
    without_padding,
)
from frozen_features import MeanOfTokens, collate_messages
from gpt import GPT_CONFIG_124M, GPTModel, initialise_like_gpt2
from gpt_class_finetune import (
    add_classification_head,
    calc_loss_batch,
    last_token_logits,
)
from llama import SMOLLM2_135M, LlamaModel
from lora import lora_layers, lora_parameters
from training_loop import in_micro_batches
from variants import draw_weights

GPT_TINY = {
    **GPT_CONFIG_124M,
    "vocab_size": 60,
    "context_length": 32,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 3,
    "drop_rate": 0.0,
}
LLAMA_TINY = {
    **SMOLLM2_135M,
    "vocab_size": 60,
    "context_length": 32,
    "emb_dim": 12,
    "n_heads": 4,
    "n_kv_groups": 2,
    "head_dim": 4,
    "n_layers": 3,
    "hidden_dim": 20,
}


def gpt():
    return initialise_like_gpt2(GPTModel(GPT_TINY), torch.Generator().manual_seed(1))


def llama():
    return draw_weights(LlamaModel(LLAMA_TINY), 1, std=0.2)


@pytest.fixture(params=[gpt, llama])
def model(request):
    model = add_classification_head(request.param(), 2)
    torch.nn.init.normal_(model.out_head.weight, generator=torch.manual_seed(2))
    return model.eval()


def messages(*lengths, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randint(60, (length,), generator=generator), number % 2)
        for number, length in enumerate(lengths)
    ]


@pytest.fixture
def batch():
    return collate_messages(messages(3, 7, 1, 5))


# --- Which token is asked ------------------------------------------------------------


@torch.no_grad()
def test_the_first_and_the_highest_are_those_of_real_tokens(model, batch):
    ids, mask, _ = batch
    logits = model(ids, attention_mask=mask)
    first = AskedAt(model, "first")(ids, mask)
    highest = AskedAt(model, "highest")(ids, mask)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        assert torch.equal(first[row, 4], logits[row, 0])
        real = logits[row, :length]
        assert torch.equal(highest[row, 0], real.max(dim=0).values)
    assert first.shape == highest.shape == logits.shape


@torch.no_grad()
@pytest.mark.parametrize(
    ("token", "pooling"),
    [("last", "mean"), ("first", "mean"), ("all", "mean"), ("all", "max")],
)
def test_padding_on_either_side_changes_no_answer(model, token, pooling):
    asked = ask_at(model, token, pooling)
    ids = messages(5)[0][0]
    alone = last_token_logits(asked(ids[None]))
    for left in (True, False):
        padded = torch.full((1, 9), 59)
        mask = torch.zeros(1, 9, dtype=torch.bool)
        place = slice(4, 9) if left else slice(0, 5)
        padded[0, place], mask[0, place] = ids, True
        found = last_token_logits(asked(padded, attention_mask=mask), mask)
        assert torch.allclose(found, alone, atol=1e-5), (token, left)


def test_ask_at_gives_what_it_is_asked_for(model):
    assert ask_at(model, "last") is model
    assert isinstance(ask_at(model, "all"), MeanOfTokens)
    assert ask_at(model, "first").place == "first"
    assert ask_at(model, "all", "max").place == "highest"


@torch.no_grad()
def test_padding_that_is_read_changes_the_answer(model):
    items = messages(4, 12)
    filled = read_padding(items, 9, pad_token_id=7)
    assert [len(ids) for ids, _ in filled] == [9, 9]
    assert filled[0][0][:4].equal(items[0][0])
    assert filled[0][0][4:].tolist() == [7] * 5
    assert filled[1][0].equal(items[1][0][:9])
    assert [c for _, c in filled] == [0, 1]
    real = model(items[0][0][None])[:, -1]
    ids, mask, _ = collate_messages(filled)
    assert mask.all()
    read = last_token_logits(model(ids, attention_mask=mask), mask)[:1]
    assert (real - read).abs().max() > 1e-3


# --- The model -----------------------------------------------------------------------


@torch.no_grad()
def test_without_the_mask_the_first_token_hears_of_the_last(model):
    ids = messages(6)[0][0][None]
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % 60
    assert torch.equal(model(ids)[0, 0], model(other)[0, 0])
    both = see_both_ways(copy.deepcopy(model))
    assert (both(ids)[0, 0] - both(other)[0, 0]).abs().max() > 1e-4
    above = see_both_ways(copy.deepcopy(model), 1)
    caught = []
    above.trf_blocks[2].register_forward_pre_hook(lambda _, x: caught.append(x[0]))
    assert (above(ids)[0, 0] - above(other)[0, 0]).abs().max() > 1e-4
    assert torch.equal(caught[0][0, 0], caught[1][0, 0])  # frozen blocks keep it


@torch.no_grad()
def test_without_the_mask_padding_stays_hidden(model, batch):
    ids, mask, _ = batch
    both = see_both_ways(model)
    found = last_token_logits(both(ids, attention_mask=mask), mask)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        alone = both(ids[row : row + 1, :length])[:, -1]
        assert torch.allclose(found[row], alone[0], atol=1e-5)


@torch.no_grad()
def test_without_the_mask_every_token_sees_all_by_a_plain_softmax():
    """The attention of one block against a softmax over all keys."""
    block = llama().trf_blocks[0]
    x = torch.randn(2, 5, 12, generator=torch.manual_seed(4))
    queries, keys, values = block.att.project(x)
    keys, values = (t.repeat_interleave(2, dim=1) for t in (keys, values))
    weights = (queries @ keys.transpose(2, 3) / 4**0.5).softmax(dim=-1)
    plain = block.att.out_proj((weights @ values).transpose(1, 2).flatten(2))
    holder = torch.nn.Module()
    holder.trf_blocks = torch.nn.ModuleList([block])
    see_both_ways(holder)
    assert torch.allclose(block.att(x), plain, atol=1e-6)


def test_a_new_start_has_the_size_and_none_of_the_weights(model):
    model.trf_blocks = model.trf_blocks[:2]
    new = start_anew(model, 1)
    assert type(new) is type(model)
    assert len(new.trf_blocks) == 2
    known = dict(model.named_parameters())
    drawn = {
        name: weight
        for name, weight in new.named_parameters()
        if weight.ndim == 2 and name != "out_head.weight"
    }
    assert drawn
    for name, weight in drawn.items():
        if "pos_emb" in name:
            continue
        assert weight.shape == known[name].shape
        assert not torch.allclose(weight, known[name])
        assert weight.std().item() == pytest.approx(0.02, rel=0.5)
    again, other = start_anew(model, 1), start_anew(model, 2)
    first = new.trf_blocks[0].att.W_query.weight
    assert torch.equal(first, again.trf_blocks[0].att.W_query.weight)
    assert not torch.equal(first, other.trf_blocks[0].att.W_query.weight)


def learns(model):
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("blocks", [0, 1, 2, None])
def test_with_adapters_norm_and_head_learn_and_the_base_stays(model, batch, blocks):
    if blocks == 0:
        assert {n.partition(".")[0] for n in learns(let_learn(model, 0))} == {
            "final_norm",
            "out_head",
        }
        return
    ids, mask, _ = batch
    with torch.no_grad():
        before = model(ids, attention_mask=mask)
        let_learn(model, blocks, rank=2, alpha=4)
        assert torch.equal(model(ids, attention_mask=mask), before)
    first = 0 if blocks is None else 3 - blocks
    adapted = {name.split(".")[1] for name in lora_layers(model)}
    assert adapted == {str(number) for number in range(first, 3)}
    beside = {"final_norm", "out_head"}
    assert {n for n in learns(model) if n.partition(".")[0] not in beside} == {
        n for n in learns(model) if ".adapters." in n
    }
    assert beside <= {n.partition(".")[0] for n in learns(model)}
    assert all(weight.requires_grad for weight in lora_parameters(model))


# --- The loss ------------------------------------------------------------------------


def gradient(model, loss, batch):
    model.zero_grad()
    loss(*batch, model, "cpu").backward()  # with parts, nothing is left to do
    return torch.cat(
        [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    )


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_parts_without_padding_have_the_gradient_of_the_whole_batch(model, batch, rows):
    """Known mistake: the mean of parts of unequal size."""
    whole = gradient(model, calc_loss_batch, batch)
    parts = in_micro_batches(without_padding(calc_loss_batch), rows)
    assert torch.allclose(gradient(model, parts, batch), whole, atol=1e-5)


def test_one_message_by_itself_is_run_without_padding(model):
    seen = []

    def watched(inputs, mask, targets, *others):
        seen.append((tuple(inputs.shape), bool(mask.all())))
        return calc_loss_batch(inputs, mask, targets, *others)

    batch = collate_messages(messages(3, 7, 1))
    gradient(model, in_micro_batches(without_padding(watched), 1), batch)
    assert seen == [((1, 3), True), ((1, 7), True), ((1, 1), True)]


def test_an_ignored_class_has_no_part_in_the_loss(model, batch):
    ids, mask, targets = batch
    assert targets.tolist() == [0, 1, 0, 1]
    some = ignoring(calc_loss_batch, 1)(*batch, model, "cpu")
    others = calc_loss_batch(ids[::2], mask[::2], targets[::2], model, "cpu")
    assert torch.equal(some, others)
    none = ignoring(calc_loss_batch, -1)(*batch, model, "cpu")
    assert torch.equal(none, calc_loss_batch(*batch, model, "cpu"))


# --- What to believe -----------------------------------------------------------------


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([0.04]) == [0.04]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_keeps_the_order_and_lies_between_no_correction_and_bonferroni(p_values):
    found = holm(p_values)
    for p, corrected in zip(p_values, found):
        assert p <= corrected <= min(1.0, len(p_values) * p) + 1e-12
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(found)[order]) >= 0).all()


def test_with_nothing_to_find_holm_finds_something_in_one_of_twenty_tables():
    draw = np.random.default_rng(0)
    tables = draw.uniform(size=(2000, 10))
    plain = np.mean([(table < 0.05).any() for table in tables])
    corrected = np.mean([min(holm(table)) < 0.05 for table in tables.tolist()])
    assert plain == pytest.approx(1 - 0.95**10, abs=0.04)
    assert corrected == pytest.approx(0.05, abs=0.02)
