"""Preference tuning: masks, sums, the loss by its published formula, and the loop."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import tiktoken
import torch
from torch import nn
from torch.utils.data import DataLoader

import dpo
from dpo import (
    SIDES,
    VARIANTS,
    PreferenceDataset,
    answer_logits,
    answer_logprobs,
    cache_pair_features,
    cache_reference,
    compute_dpo_loss,
    compute_dpo_loss_batch,
    compute_dpo_loss_loader,
    compute_logprobs,
    custom_collate_fn,
    drift,
    evaluate_dpo_loss_loader,
    frozen_copy,
    pair_rewards,
    train_model_dpo_simple,
)
from frozen_features import UpperModel, freeze_below, learning
from gpt import GPTModel
from gpt_instruction_finetuning import FORMATS, encode_prompt, format_input

END = 256
LN2 = math.log(2)


class ByteTokenizer:
    """One token for each byte; its end token, 256, never comes out of a text."""

    eot_token = END

    def encode(self, text, disallowed_special=()):
        return list(text.encode())

    def decode(self, ids):
        return bytes(i for i in ids if i < END).decode(errors="replace")


PAIRS = [
    {"instruction": "Hi?", "input": "", "chosen": "Hello, you.", "rejected": "No."},
    {"instruction": "1+1", "input": "now", "chosen": "2", "rejected": "Go and count."},
    {"instruction": "Sun?", "input": "", "chosen": "It is up.", "rejected": "Up, fool"},
    {"instruction": "Tea?", "input": "", "chosen": "Yes, please.", "rejected": "Nah."},
    {"instruction": "Bus?", "input": "", "chosen": "At six.", "rejected": "Walk then."},
]
collate = partial(custom_collate_fn, pad_token_id=END)


@pytest.fixture(scope="module")
def data():
    return PreferenceDataset(PAIRS, ByteTokenizer(), "phi3")


def small_model(seed=0, **changes):
    torch.manual_seed(seed)
    cfg = {
        "vocab_size": 257,
        "context_length": 128,
        "emb_dim": 16,
        "n_heads": 2,
        "n_layers": 3,
        "drop_rate": 0.0,
        "qkv_bias": False,
    }
    return GPTModel({**cfg, **changes})


def loader_of(items, batch_size=2, seed=None):
    order = None if seed is None else torch.Generator().manual_seed(seed)
    return DataLoader(
        items, batch_size, seed is not None, generator=order, collate_fn=collate
    )


def all_pairs(items):
    return collate([items[i] for i in range(len(items))])


# --- Pairs as ids --------------------------------------------------------------------


def test_a_pair_is_the_prompt_an_answer_and_one_end_token(data):
    """A dump: prompt, answer, end; nothing more, nothing twice."""
    prompt = encode_prompt(PAIRS[0], ByteTokenizer(), "phi3")
    assert bytes(prompt).decode() == "<|user|>\nHi?<|end|>\n<|assistant|>\n"
    item = data[0]
    assert item["prompt"] == prompt
    assert item["chosen"] == [*prompt, *b"Hello, you.", END]
    assert item["rejected"] == [*prompt, *b"No.", END]


def test_masks_count_the_answer_and_its_end_and_nothing_else(data):
    batch = all_pairs(data)
    T = max(len(item[side]) for item in data for side in SIDES)
    for side in SIDES:
        assert batch[side].shape == batch[f"{side}_mask"].shape == (len(PAIRS), T)
        for row, pair in enumerate(PAIRS):
            counted = batch[side][row][batch[f"{side}_mask"][row]].tolist()
            assert counted == [*pair[side].encode(), END]
    assert [len(p) for p in batch["prompt"]] == [len(i["prompt"]) for i in data]


def test_the_end_token_inside_a_text_changes_no_mask():
    """By place, not by id: padding and end token are the same id."""
    item = {"prompt": [1, END, 2], "chosen": [1, END, 2, END, 5, END]}
    item["rejected"] = [1, END, 2, END]
    batch = collate([item])
    assert batch["chosen_mask"].tolist() == [[False] * 3 + [True] * 3]
    assert batch["rejected_mask"].tolist() == [[False] * 3 + [True] + [False] * 2]


def test_prompts_count_if_they_are_asked_for(data):
    batch = custom_collate_fn([data[1]], END, mask_prompt_tokens=False)
    assert int(batch["chosen_mask"].sum()) == len(data[1]["chosen"])


def test_what_is_cut_is_refused_only_if_nothing_is_left(data):
    prompt = len(data[0]["prompt"])
    batch = custom_collate_fn([data[0]], END, allowed_max_length=prompt + 2)
    assert batch["chosen"].shape == (1, prompt + 2)
    assert int(batch["chosen_mask"].sum()) == 2
    with pytest.raises(ValueError, match=f"allowed_max_length={prompt}: raise it"):
        custom_collate_fn([data[0]], END, allowed_max_length=prompt)


# --- How likely an answer is ---------------------------------------------------------


def by_hand(model, item, side):
    """The log-probability of an answer and its end, token by token, in float64."""
    ids, start = item[side], len(item["prompt"])
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0].double().numpy()
    total = 0.0
    for place in range(start, len(ids)):
        row = logits[place - 1]  # the token before it foretells it
        total += row[ids[place]] - np.logaddexp.reduce(row)
    return total


@pytest.mark.parametrize("side", SIDES)
def test_log_probabilities_are_the_sum_over_the_answer_and_its_end(data, side):
    model = small_model().eval()
    expected = [by_hand(model, item, side) for item in data]
    batch = all_pairs(data)
    with torch.no_grad():
        whole = compute_logprobs(model(batch[side]), batch[side], batch[f"{side}_mask"])
        short = answer_logprobs(model, batch, side)
    assert whole.tolist() == pytest.approx(expected, abs=1e-4)
    assert short.tolist() == pytest.approx(expected, abs=1e-4)
    alone = [answer_logprobs(model, collate([item]), side).item() for item in data]
    assert alone == pytest.approx(expected, abs=1e-4)  # padding changes nothing


def test_a_mask_one_place_off_would_be_seen(data):
    """The first token of an answer counts, the last one of the question does not."""
    model = small_model().eval()
    batch, expected = collate([data[0]]), by_hand(model, data[0], "chosen")
    with torch.no_grad():
        logits = model(batch["chosen"])
        for shift in (-1, 1):
            moved = batch["chosen_mask"].roll(shift, dims=1)
            found = compute_logprobs(logits, batch["chosen"], moved).item()
            assert abs(found - expected) > 0.1


def test_without_a_mask_all_tokens_but_the_first_count():
    logits, labels = torch.zeros(1, 4, 8), torch.tensor([[1, 2, 3, 4]])
    found = compute_logprobs(logits, labels)
    assert found.item() == pytest.approx(-3 * math.log(8), abs=1e-6)


def test_logits_are_made_for_the_tokens_of_answers_alone(data):
    model, batch = small_model().eval(), all_pairs(data)
    with torch.no_grad():
        logits = answer_logits(model, batch, "chosen")
    assert logits.shape == (int(batch["chosen_mask"].sum()), 257)
    assert not model.out_head._forward_pre_hooks


# --- The loss ------------------------------------------------------------------------


def published(mc, mr, rc, rr, beta, variant):
    """The three losses in NumPy, float64, with no trick for large numbers."""
    h = (mc - rc) - (mr - rr)
    if variant == "ipo":
        return ((h - 1 / (2 * beta)) ** 2).mean()
    return -np.log(1 / (1 + np.exp(-beta * h))).mean()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("beta", [0.05, 0.1, 2.0])
def test_the_loss_is_the_published_formula(variant, beta):
    draw = np.random.default_rng(1)
    four = [draw.normal(-20, 5, 16) for _ in range(4)]
    loss, chosen, rejected = compute_dpo_loss(
        *map(torch.tensor, four), beta=beta, variant=variant
    )
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(published(*four, beta, variant), rel=1e-12)
    rewards = beta * (four[0] - four[2]), beta * (four[1] - four[3])
    means = [reward.mean() for reward in rewards]
    assert [chosen.item(), rejected.item()] == pytest.approx(means, rel=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_first_loss_is_known_and_margins_are_zero(data, variant):
    model = small_model().eval()
    beta, batch = 0.1, all_pairs(data)
    loss, chosen, rejected = compute_dpo_loss_batch(
        batch, model, frozen_copy(model), beta, variant
    )
    expected = 1 / (4 * beta**2) if variant == "ipo" else LN2
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert chosen.item() == rejected.item() == 0


def test_another_reference_than_the_start_is_seen_in_the_first_loss(data):
    """As happens to whoever trains the base model against the tuned one."""
    loss, *_ = compute_dpo_loss_batch(
        all_pairs(data), small_model(0), small_model(1), 0.1
    )
    assert abs(loss.item() - LN2) > 0.01


def test_dividing_by_the_length_is_the_mean_of_the_tokens(data):
    model, reference = small_model(0).eval(), small_model(1).eval()
    batch = all_pairs(data)
    four = []
    for one in (model, reference):
        for side in SIDES:
            sums = [by_hand(one, item, side) for item in data]
            lengths = [len(i[side]) - len(i["prompt"]) for i in data]
            four.append(np.array(sums) / lengths)
    loss, *_ = compute_dpo_loss_batch(batch, model, reference, 2.0, "length")
    assert loss.item() == pytest.approx(published(*four, 2.0, "length"), abs=1e-5)
    summed, *_ = compute_dpo_loss_batch(batch, model, reference, 2.0)
    assert abs(summed.item() - loss.item()) > 0.01


@pytest.mark.parametrize("margin", [-1e4, 1e4])
def test_large_margins_give_finite_losses_and_gradients(margin):
    chosen = torch.tensor([margin], requires_grad=True)
    zero = torch.zeros(1)
    loss, *_ = compute_dpo_loss(chosen, zero, zero, zero, beta=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(max(0.0, -margin))
    assert chosen.grad.item() == pytest.approx(-1.0 if margin < 0 else 0.0)


def test_an_unknown_variant_is_told():
    zero = torch.zeros(1)
    with pytest.raises(ValueError, match="no variant 'kto': take one of"):
        compute_dpo_loss(zero, zero, zero, zero, variant="kto")


# --- Its gradient --------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_gradient_of_a_toy_is_the_closed_form(beta):
    """Four answers of one token each: only the two that were compared are moved."""
    logits = torch.tensor([0.3, -1.2, 0.8, 0.1], dtype=torch.float64)
    reference = torch.tensor([0.5, 0.0, -0.4, 0.2], dtype=torch.float64)
    logits.requires_grad_()
    p, r = logits.log_softmax(0), reference.log_softmax(0)
    loss, *_ = compute_dpo_loss(p[2:3], p[1:2], r[2:3], r[1:2], beta=beta)
    loss.backward()
    margin = beta * ((0.8 + 1.2) - (-0.4 - 0.0))
    push = beta / (1 + math.exp(margin))
    expected = [0.0, push, -push, 0.0]
    assert logits.grad.tolist() == pytest.approx(expected, abs=1e-12)


def test_the_gradient_of_a_model_is_that_of_the_paper(data):
    """-beta sigmoid(-margin) (grad log p(chosen) - grad log p(rejected)), one pair."""
    model, reference = small_model(0).double(), small_model(1).double()
    batch, beta = collate([data[0]]), 0.3
    logprobs = dpo.batch_logprobs(batch, model, reference)
    margin = beta * (logprobs[0] - logprobs[2] - logprobs[1] + logprobs[3]).item()
    weights = list(model.parameters())
    up, down = (
        torch.autograd.grad(value.sum(), weights, retain_graph=True)
        for value in logprobs[:2]
    )
    loss, *_ = compute_dpo_loss(*logprobs, beta=beta)
    for found, a, b in zip(torch.autograd.grad(loss, weights), up, down):
        expected = -beta / (1 + math.exp(margin)) * (a - b)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)
    assert not any(p.grad is not None for p in reference.parameters())


# --- The reference -------------------------------------------------------------------


def test_the_cached_reference_is_the_running_one(data):
    model, reference = small_model(0), small_model(1).eval()
    items = cache_reference(data, reference, collate, batch_size=2)
    assert "reference_chosen_logprobs" not in data[0]
    grads = []
    for batch, other in ((all_pairs(data), reference), (all_pairs(items), None)):
        model.zero_grad()
        loss, *rewards = compute_dpo_loss_batch(batch, model, other, 0.1)
        loss.backward()
        found = [loss, *rewards, *(p.grad.clone() for p in model.parameters())]
        grads.append([value.detach() for value in found])
    for one, two in zip(*grads):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)


def test_a_frozen_copy_shares_what_never_changes_and_keeps_the_rest(data):
    model = freeze_below(small_model(), 1)
    reference = frozen_copy(model)
    assert not reference.training
    assert not any(p.requires_grad for p in reference.parameters())
    for (name, p), q in zip(model.named_parameters(), reference.parameters()):
        assert (p is q) == (not p.requires_grad), name
    before = [q.clone() for q in reference.parameters()]
    train(model, reference, data, num_epochs=2)
    for q, value in zip(reference.parameters(), before):
        assert torch.equal(q, value)


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_features_give_the_loss_of_the_whole_model(data, blocks):
    model, reference = freeze_below(small_model(0), blocks), small_model(1).eval()
    items = cache_reference(data, reference, collate)
    whole, *_ = compute_dpo_loss_batch(all_pairs(items), model, None, 0.1)
    items = cache_pair_features(model, items, blocks, batch_size=3)
    upper = UpperModel(model, blocks)
    found, *_ = compute_dpo_loss_batch(all_pairs(items), upper, None, 0.1)
    assert found.item() == pytest.approx(whole.item(), abs=1e-6)
    short = partial(custom_collate_fn, allowed_max_length=40, pad_token_id=END)
    cut = short([item for item in items if len(item["prompt"]) < 40])
    assert cut["chosen_features"].shape[:2] == cut["chosen"].shape


# --- Means over a loader -------------------------------------------------------------


def test_means_are_over_pairs_whatever_the_batches(data):
    model, reference = small_model(0), small_model(1).eval()
    found = [
        compute_dpo_loss_loader(loader_of(data, size), model, reference, 0.1)
        for size in (1, 2, 5)
    ]
    for other in found[1:]:
        assert other == pytest.approx(found[0], abs=1e-5)
    assert model.training


def test_the_book_s_calls_work_as_printed():
    """Positional arguments, GPT-2's tokenizer, a model with its vocabulary."""
    tokenizer = tiktoken.get_encoding("gpt2")
    dataset = PreferenceDataset(PAIRS, tokenizer)
    text = format_input(PAIRS[0]) + FORMATS["alpaca"][1] + "Hello, you."
    assert tokenizer.decode(dataset[0]["chosen"]) == text + "<|endoftext|>"
    loader = DataLoader(dataset, batch_size=2, collate_fn=custom_collate_fn)
    policy = small_model(vocab_size=50257, n_layers=1)
    reference = copy.deepcopy(policy).eval()
    batch = next(iter(loader))
    logits = policy(batch["chosen"])
    found = compute_logprobs(
        logits=logits, labels=batch["chosen"], selection_mask=batch["chosen_mask"]
    )
    assert found.shape == (2,)
    loss = compute_dpo_loss_batch(batch, policy, reference, beta=0.1)
    assert loss[0].item() == pytest.approx(LN2, abs=1e-6)
    result = evaluate_dpo_loss_loader(
        policy_model=policy,
        reference_model=reference,
        train_loader=loader,
        val_loader=loader,
        beta=0.1,
        eval_iter=1,
    )
    assert list(result) == [
        f"{part}_{what}"
        for part in ("train", "val")
        for what in ("loss", "chosen_reward", "rejected_reward")
    ]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=5e-6, weight_decay=0.01)
    tracking = train_model_dpo_simple(
        policy, reference, loader, loader, optimizer, 1, 0.1, 5, 1, None, tokenizer
    )
    assert tracking["train_losses"][0] == pytest.approx(LN2, abs=1e-6)


# --- Training ------------------------------------------------------------------------


def train(model, reference, items, seed=0, eval_freq=100, **more):
    settings = {"num_epochs": 1, "beta": 0.1, "eval_iter": None, "lr": 1e-3} | more
    optimizer = torch.optim.AdamW(learning(model), lr=settings.pop("lr"))
    return train_model_dpo_simple(
        model,
        reference,
        loader_of(items, 2, seed),
        loader_of(items, 2),
        optimizer,
        eval_freq=eval_freq,
        **settings,
    )


def weights_after(data, **settings):
    model = small_model()
    train(model, frozen_copy(model), data, **settings)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_widens_the_margins(data, variant, capsys):
    model = small_model()
    reference = frozen_copy(model)
    beta = 2.0 if variant == "length" else 0.1
    found = train(
        model, reference, data, num_epochs=20, beta=beta, variant=variant, lr=2e-3
    )
    assert found["steps"] == [0, 60]
    first = 1 / (4 * beta**2) if variant == "ipo" else LN2
    assert found["val_losses"][0] == pytest.approx(first, abs=1e-5)
    assert found["val_losses"][-1] < 0.5 * first
    rewards = pair_rewards(loader_of(data), model, reference, beta, variant)
    assert rewards.shape == (len(PAIRS), 2)
    assert (rewards[:, 0] > rewards[:, 1]).all()
    margin = found["val_chosen_rewards"][-1] - found["val_rejected_rewards"][-1]
    gap = (rewards[:, 0] - rewards[:, 1]).mean().item()
    assert margin == pytest.approx(gap, abs=1e-4)
    assert "step 60: loss" in capsys.readouterr().out
    tokens = sum(len(pair[side]) + 1 for pair in PAIRS for side in SIDES)
    assert found["tokens_seen"] == [0, 20 * tokens]


def test_the_seed_decides_the_order_and_nothing_else_does(data):
    first = weights_after(data, seed=1)
    assert torch.equal(first, weights_after(data, seed=1))
    assert not torch.equal(first, weights_after(data, seed=2))


def test_looking_changes_nothing(data):
    often = weights_after(data, seed=1, eval_freq=1, num_epochs=2)
    assert torch.equal(often, weights_after(data, seed=1, num_epochs=2))


def test_a_loss_that_is_not_finite_stops_the_run(data):
    model = small_model()
    with torch.no_grad():
        next(iter(model.trf_blocks[0].parameters())).fill_(math.nan)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="nan"):
        train(model, small_model(), data)
    for p, value in zip(model.parameters(), before):
        assert torch.equal(p.nan_to_num(7), value.nan_to_num(7))


def test_a_text_is_continued_after_each_epoch(data, capsys):
    model = small_model()
    train(
        model,
        frozen_copy(model),
        data,
        num_epochs=2,
        start_context="Hi",
        tokenizer=ByteTokenizer(),
    )
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("Hi") for line in lines) == 2


# --- Drift ---------------------------------------------------------------------------


def test_drift_is_the_mean_kl_divergence_over_the_answers(data):
    model, reference = small_model(0).eval(), small_model(1).eval()
    assert drift(loader_of(data), model, model) == 0
    total, tokens = 0.0, 0
    for item in data:
        ids = torch.tensor([item["chosen"]])
        with torch.no_grad():
            p, r = (m(ids)[0].double().softmax(-1).numpy() for m in (model, reference))
        for place in range(len(item["prompt"]) - 1, ids.shape[1] - 1):
            total += (p[place] * np.log(p[place] / r[place])).sum()
            tokens += 1
    found = drift(loader_of(data), model, reference)
    assert found == pytest.approx(total / tokens, rel=1e-4)
    assert found > 0


class Headless(nn.Module):
    """A model that has no head cannot be run only where it counts."""


def test_a_model_without_a_head_is_told_by_python(data):
    with pytest.raises(AttributeError, match="out_head"):
        answer_logits(Headless(), all_pairs(data), "chosen")
