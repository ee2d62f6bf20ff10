"""Losses, baselines, the training loop and the script; checkpoints have their own file.

The models are tiny. What a mistake would change is asserted beside what must come out.
"""

import csv
import io
import itertools
import json
import math
import os
import random
import re
import string
import subprocess
import sys
import warnings
from collections import Counter

import matplotlib
import pytest
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import gpt_generate
import gpt_train
from bpe import BPETokenizer, save_tokenizer, train_tokenizer
from course.assets import fetch
from dataloader import (
    SimpleTokenizerV2,
    build_vocabulary,
    encode_text,
    split_into_tokens,
    split_text,
)
from gpt import GPTConfig, GPTModel, generate_text_simple, initialise_like_gpt2
from gpt_train import (
    IGNORE_INDEX,
    QUICK_CONFIG,
    bigram_loss,
    calc_loss_batch,
    calc_loss_loader,
    checkpoint_info,
    count_targets,
    evaluate_model,
    generate_and_print_sample,
    load_checkpoint,
    plot_losses,
    text_to_token_ids,
    token_ids_to_text,
    train_model_simple,
    uniform_loss,
)
from pretrained import load_pretrained

matplotlib.use("agg")
TINY = GPTConfig(
    vocab_size=23,
    context_length=10,
    emb_dim=12,
    n_heads=3,
    n_layers=2,
    drop_rate=0.0,
    qkv_bias=False,
)
some = settings(max_examples=30, deadline=None)


def make(seed=0, **changes):
    torch.manual_seed(seed)
    return GPTModel({**TINY, **changes})


def windows(count, seed=0, length=6, vocab_size=TINY.vocab_size):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocab_size, (count, length + 1), generator=generator)
    return TensorDataset(ids[:, :-1], ids[:, 1:])


def loader(count=7, batch_size=2, seed=0, shuffle=False):
    order = torch.Generator().manual_seed(seed)
    return DataLoader(windows(count, seed), batch_size, shuffle, generator=order)


def adamw(model, lr=0.01):
    return torch.optim.AdamW(model.parameters(), lr=lr)


def train(model, train_loader, optimizer=None, epochs=2, **options):
    plan = {"eval_freq": 2, "eval_iter": 2, "start_context": None, "tokenizer": None}
    options = {**plan, **options}
    optimizer = optimizer or adamw(model)
    val_loader = options.pop("val_loader", None) or loader(3, seed=9)
    return train_model_simple(
        model, train_loader, val_loader, optimizer, "cpu", epochs, **options
    )


# --- text and ids ---------------------------------------------------------------------


@some
@given(st.text(min_size=1, max_size=30))
def test_text_survives_the_round_trip(text):
    tokenizer = tiktoken.get_encoding("gpt2")
    ids = text_to_token_ids(text, tokenizer)
    assert ids.dtype == torch.int64
    assert ids.shape == (1, len(ids[0]))
    assert token_ids_to_text(ids, tokenizer) == text
    assert token_ids_to_text(ids[0], tokenizer) == text


def test_end_of_text_is_one_token_and_other_tokenizers_work():
    tokenizer = tiktoken.get_encoding("gpt2")
    assert text_to_token_ids("<|endoftext|>", tokenizer).tolist() == [[50256]]
    text = "a lamp, a ladder"
    own = SimpleTokenizerV2(build_vocabulary(split_into_tokens(text), ["<|unk|>"]))
    assert token_ids_to_text(text_to_token_ids(text, own), own) == text
    assert text_to_token_ids("", tokenizer).shape == (1, 0)


def test_two_sequences_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 3\): give the ids of one seq"):
        token_ids_to_text(torch.zeros(2, 3, dtype=int), tiktoken.get_encoding("gpt2"))


# --- the loss of a batch --------------------------------------------------------------


def test_the_loss_is_the_mean_over_targets_that_count():
    model = make().double()
    inputs, targets = windows(3).tensors
    targets = targets.clone()
    targets[0, 2:] = targets[2, 0] = IGNORE_INDEX
    probabilities = model(inputs).detach().softmax(dim=-1)
    terms = [
        -math.log(probabilities[b, t, targets[b, t]])
        for b in range(3)
        for t in range(6)
        if targets[b, t] != -100
    ]
    assert count_targets((inputs, targets)) == len(terms) == 13
    loss = calc_loss_batch(inputs, targets, model, "cpu")
    assert abs(loss.item() - sum(terms) / 13) < 1e-10
    assert loss.dtype == torch.float64


def test_ignored_targets_have_no_gradient():
    """What the model says where nothing is asked does not matter at all."""
    model = make()
    inputs, targets = windows(2).tensors
    targets = targets.clone()
    targets[1] = IGNORE_INDEX
    calc_loss_batch(inputs, targets, model, "cpu").backward()
    gradient = model.out_head.weight.grad.clone()
    model.zero_grad()
    calc_loss_batch(inputs[:1], targets[:1], model, "cpu").backward()
    assert torch.allclose(gradient, model.out_head.weight.grad, atol=1e-7)


def test_a_batch_without_targets_is_refused_instead_of_nan():
    inputs, targets = windows(2).tensors
    nothing = torch.full_like(targets, IGNORE_INDEX)
    assert F.cross_entropy(torch.zeros(12, 23), nothing.flatten()).isnan()
    with pytest.raises(ValueError, match="No target of this batch counts: leave such"):
        calc_loss_batch(inputs, nothing, make(), "cpu")


def test_the_loss_of_a_bfloat16_model_has_float32_digits():
    model = make().bfloat16()
    inputs, targets = windows(4).tensors
    loss = calc_loss_batch(inputs, targets, model, "cpu")
    exact = F.cross_entropy(model(inputs).double().flatten(0, 1), targets.flatten())
    assert loss.dtype == torch.float32
    assert abs(loss.item() - exact.item()) < 1e-6  # bfloat16 itself would err by 1e-2


# --- the loss of a loader -------------------------------------------------------------


class Ragged(torch.utils.data.Dataset):
    """Windows with different numbers of targets that count, one with none."""

    def __init__(self, count=15):
        self.inputs, self.targets = (
            tensor.clone() for tensor in windows(count).tensors
        )
        for i, row in enumerate(self.targets):
            row[i % 7 :] = IGNORE_INDEX

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, i):
        return self.inputs[i], self.targets[i]


@pytest.mark.parametrize("data", [windows(15), Ragged()], ids=["plain", "ragged"])
def test_R27_the_loss_does_not_depend_on_the_batch_size(data):
    model = make().double()
    inputs, targets = (torch.stack(part) for part in zip(*data))
    whole = calc_loss_batch(inputs, targets, model, "cpu").item()
    for batch_size in (1, 2, 7, 15):
        batches = DataLoader(data, batch_size)
        assert abs(calc_loss_loader(batches, model, "cpu") - whole) < 1e-10, batch_size
    # Planted: the mean of means weighs the last, smaller batch too heavily.
    asked = [b for b in DataLoader(data, 4) if count_targets(b)]
    means = [calc_loss_batch(*b, model, "cpu").item() for b in asked]
    assert abs(sum(means) / len(means) - whole) > 1e-4


def test_a_loader_is_read_as_far_as_asked():
    model, batches = make(), list(loader(7))
    losses = [calc_loss_batch(*b, model, "cpu").item() for b in batches]
    weights = [count_targets(b) for b in batches]
    for n, stop in ((1, 1), (3, 3), (4, 4), (99, 4), (None, 4)):
        expected = sum(map(math.prod, zip(losses[:stop], weights)))
        loss = calc_loss_loader(batches, model, "cpu", n)
        assert abs(loss - expected / sum(weights[:stop])) < 1e-6


def test_a_loader_without_targets_is_refused():
    inputs, targets = windows(2).tensors
    ignored = [(inputs, torch.full_like(targets, IGNORE_INDEX))]
    for batches in ([], ignored):
        with pytest.raises(ValueError, match="The loader gave no target that counts"):
            calc_loss_loader(batches, make(), "cpu")


def test_looking_changes_nothing():
    """Mode, gradients, random states and the order of the next epoch stay."""
    model = make(drop_rate=0.5)
    shuffled = loader(7, shuffle=True)
    unseeded = DataLoader(windows(7), 2, shuffle=True)
    own, torchs = shuffled.generator.get_state(), torch.get_rng_state()
    first, _ = evaluate_model(model, shuffled, unseeded, "cpu", None)
    assert all(module.training for module in model.modules())
    assert torch.equal(shuffled.generator.get_state(), own)
    assert torch.equal(torch.get_rng_state(), torchs)
    assert all(p.grad is None for p in model.parameters())
    # Dropout is off, so the same comes out again.
    assert calc_loss_loader(shuffled, model, "cpu") == first
    model.eval()
    assert calc_loss_loader(shuffled, model, "cpu") == first
    assert not any(module.training for module in model.modules())


def test_another_loss_and_longer_batches():
    """Chapter 6's way: three tensors in a batch, the labels last."""
    seen = []

    def loss(ids, mask, labels, model, device):
        seen.append((mask.shape, model.training, torch.is_grad_enabled()))
        return labels.double().mean()

    batch = (torch.ones(2, 3), torch.ones(2, 3), torch.tensor([1, 2]))
    last = (torch.ones(1, 3), torch.ones(1, 3), torch.tensor([6]))
    assert calc_loss_loader([batch, last], make(), "cpu", loss=loss) == 3.0
    assert seen[0] == ((2, 3), False, False)
    pair = evaluate_model(make(), [batch], [last], "cpu", 1, loss=loss)
    assert pair == (1.5, 6.0)


# --- what a model has to beat ---------------------------------------------------------


def test_R24_an_untrained_model_knows_as_little_as_chance():
    """Exactly so without weights, nearly so with GPT-2's start or PyTorch's."""
    cfg = {**QUICK_CONFIG, "vocab_size": 5000, "n_layers": 2}
    torch.manual_seed(0)
    model, chance = GPTModel(cfg), uniform_loss(5000)
    data = DataLoader(windows(4, length=64, vocab_size=5000), 4)
    assert abs(calc_loss_loader(data, model, "cpu") - chance) < 0.3
    initialise_like_gpt2(model)
    assert abs(calc_loss_loader(data, model, "cpu") - chance) < 0.1
    nn.init.zeros_(model.out_head.weight)
    assert abs(calc_loss_loader(data, model, "cpu") - chance) < 1e-5
    assert abs(chance - 8.517193191416238) < 1e-12
    assert abs(uniform_loss(50257) - 10.8249) < 1e-4


def counted(train_ids, eval_ids, vocab_size, add, prior):
    """`bigram_loss` as a plain loop over pairs."""
    singles, pairs = Counter(train_ids), Counter(zip(train_ids, train_ids[1:]))
    firsts = Counter(train_ids[:-1])
    total = 0.0
    for v, w in zip(eval_ids, eval_ids[1:]):
        share = (singles[w] + add) / (len(train_ids) + add * vocab_size)
        total -= math.log((pairs[v, w] + prior * share) / (firsts[v] + prior))
    return total / (len(eval_ids) - 1)


texts = st.lists(st.integers(0, 11), min_size=2, max_size=40)
positive = st.floats(1e-3, 100)


@some
@given(texts, texts, positive, positive)
def test_the_bigram_loss_is_that_of_a_plain_loop(train_ids, eval_ids, add, prior):
    loss = bigram_loss(train_ids, eval_ids, 12, add, prior)
    assert math.isclose(loss, counted(train_ids, eval_ids, 12, add, prior))
    as_tensors = bigram_loss(torch.tensor(train_ids), torch.tensor(eval_ids), 12)
    assert as_tensors == bigram_loss(train_ids, eval_ids, 12)


def test_the_bigram_is_a_probability_and_beats_chance_where_it_can():
    ids = [0, 1, 2, 0, 1, 2, 0, 1, 3]
    for v in range(5):
        chances = [math.exp(-bigram_loss(ids, [v, w], 5)) for w in range(5)]
        assert abs(sum(chances) - 1) < 1e-12
    cycle = [0, 1, 2] * 50
    assert bigram_loss(cycle, cycle, 50) < 0.4 < uniform_loss(50)


def test_the_constants_of_the_bigram_do_best_on_the_training_part_alone():
    """Each tenth of it is judged by the other nine; ten times more or less is worse."""
    training, _ = split_text(fetch("short-story").read_text(encoding="utf-8"))
    ids = encode_text(training, tiktoken.get_encoding("gpt2"))
    ends = [len(ids) * i // 10 for i in range(11)]
    found = {}
    for add, prior in itertools.product((0.002, 0.02, 0.2), (2.0, 20.0, 200.0)):
        found[add, prior] = 0.0
        for start, end in itertools.pairwise(ends):
            rest = ids[:start] + ids[end:]
            loss = bigram_loss(rest, ids[start:end], 50257, add, prior)
            found[add, prior] += loss * (end - start - 1)
    assert min(found, key=found.__getitem__) == (0.02, 20.0)


def test_the_bigram_loss_refuses_what_it_cannot_judge():
    for arguments, message in [
        (([1, 2], [1], 5), "nothing to foretell: give at least two ids"),
        (([1, 5], [1, 2], 5), "id 5"),
        (([1, 2], [-1, 2], 5), "id -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            bigram_loss(*arguments)


# --- the training loop ----------------------------------------------------------------


def plain_training(model, batches, optimizer, epochs, scheduler=None):
    """The loop without anything around it."""
    for _ in range(epochs):
        model.train()
        for inputs, targets in batches:
            optimizer.zero_grad()
            logits = model(inputs).flatten(0, 1)
            F.cross_entropy(logits, targets.flatten()).backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()


@pytest.mark.parametrize("eval_freq", [1, 3, 100])
@pytest.mark.parametrize("seeded", [True, False])
def test_evaluating_and_sampling_never_change_what_is_learned(
    eval_freq, seeded, capsys
):
    """As if nothing but the updates had happened, dropout and shuffling included."""

    def shuffled():
        own = torch.Generator().manual_seed(3) if seeded else None
        return DataLoader(windows(7), 2, shuffle=True, generator=own)

    expected = make(drop_rate=0.2)
    plain_training(expected, shuffled(), adamw(expected), epochs=3)
    model = make(drop_rate=0.2)
    words = SimpleTokenizerV2({"<|unk|>": 0, **{str(i): i for i in range(1, 23)}})
    tokenizer = {"tokenizer": words, "start_context": "7 8"}
    train(model, shuffled(), epochs=3, eval_freq=eval_freq, **tokenizer)
    for name, weight in expected.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


def test_the_losses_are_those_of_the_moment(capsys):
    """After step 0, 2, 4 ...: each evaluation fits the model as it then was."""
    expected, plain = make(), []
    optimizer, data, held = adamw(expected), loader(7), loader(3, seed=9)
    for step, batch in enumerate([*data, *data]):
        optimizer.zero_grad()
        calc_loss_batch(*batch, expected, "cpu").backward()
        optimizer.step()
        if step % 2 == 0:
            plain.append(evaluate_model(expected, data, held, "cpu", 2))
    losses = train(make(), loader(7))
    assert list(zip(*losses[:2])) == plain
    # Batches of 2, 2, 2 and 1 windows of 6 tokens.
    assert losses[2] == [12, 36, 54, 78]
    assert capsys.readouterr().out.splitlines()[1] == (
        f"epoch 1, step 2: train {plain[1][0]:.3f}, validation {plain[1][1]:.3f}"
    )


def test_R24_the_first_loss_is_near_chance_and_one_batch_is_learned_by_heart(capsys):
    """Overfitting one batch: whatever cannot do that has a mistake in it."""
    model = initialise_like_gpt2(make(emb_dim=48))
    batch = [next(iter(loader(4, batch_size=4)))]
    assert abs(calc_loss_loader(batch, model, "cpu") - uniform_loss(23)) < 0.1
    train_losses, val_losses, _ = train(
        model, batch, adamw(model, 0.01), 60, eval_freq=59, eval_iter=None
    )
    assert train_losses[-1] < 0.05
    assert val_losses[-1] > uniform_loss(23)  # noise cannot be foretold


def test_one_batch_is_learned_with_wrong_targets_as_well(capsys):
    """So who passes that test looks at the targets, too."""
    inputs, _ = next(iter(loader(4, batch_size=4)))
    train_losses, _, _ = train(
        make(emb_dim=48), [(inputs, inputs)], epochs=60, eval_freq=59, eval_iter=None
    )
    assert train_losses[-1] < 0.05


def test_the_model_trains_in_training_mode_from_a_clean_gradient(capsys):
    seen = []

    def loss(*batch):
        model = batch[-2]
        if torch.is_grad_enabled():
            gradients = [p.grad for p in model.parameters()]
            clean = all(g is None or not g.any() for g in gradients)
            seen.append((model.training, clean))
        return calc_loss_batch(*batch)

    model = make().eval()
    for p in model.parameters():
        p.grad = torch.ones_like(p)  # left over from something else
    train(model, loader(), loss=loss, eval_freq=1)
    assert seen == [(True, True)] * 8


def test_peak_learning_rate_is_the_one_asked_for(capsys):
    """Warm-up and decay: first, highest and last rate, and one step for each update."""
    rates = []
    model = make()
    optimizer = adamw(model, lr=0.004)

    def plan(step):
        return (step + 1) / 3 if step < 3 else 1 - (step - 2) / 6

    optimizer.register_step_pre_hook(
        lambda opt, *_: rates.append(opt.param_groups[0]["lr"])
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, plan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch warns of a scheduler that steps first
        train(model, loader(7), optimizer, scheduler=scheduler)
    assert rates == [0.004 * plan(step) for step in range(8)]
    assert max(rates) == 0.004
    rates.clear()
    train(make(), loader(7), optimizer)
    assert len(set(rates)) == 1, "without a scheduler nobody touches the rate"


def test_the_sample_is_the_likeliest_text_on_one_line(capsys):
    tokenizer = tiktoken.get_encoding("gpt2")
    cfg = {**TINY, "vocab_size": 50257, "context_length": 64, "drop_rate": 0.3}
    torch.manual_seed(1)
    model = GPTModel(cfg)
    with torch.no_grad():
        model.out_head.weight[198] += 10 * model.final_norm.shift + 3  # a line break
    generate_and_print_sample(model, tokenizer, "cpu", "Two words")
    out = capsys.readouterr().out
    assert model.training
    ids = tokenizer.encode("Two words")
    model.eval()
    expected = generate_text_simple(model, torch.tensor([ids]), 50, 64)
    text = tokenizer.decode(expected[0].tolist())
    assert out == text.replace("\n", " ") + "\n"
    assert out.count("\n") == 1


def test_a_function_is_called_after_each_epoch(capsys):
    calls = []
    train(make(), loader(7), epochs=3, after_epoch=lambda: calls.append("epoch"))
    assert calls == ["epoch"] * 3


def test_training_ends_after_the_epoch_whose_hook_says_so(capsys):
    answers = iter([None, False, True, None])
    ended, plain = make(), make()
    optimizer = adamw(ended)
    losses = train(
        ended, loader(7), optimizer, epochs=9, after_epoch=lambda: next(answers)
    )
    assert losses == train(plain, loader(7), epochs=3)
    assert next(answers) is None, "the hook was asked three times"
    assert all(map(torch.equal, ended.parameters(), plain.parameters()))


def test_a_hook_is_called_after_each_step_with_what_is_known_then(capsys):
    calls = []

    def note(step, tokens_seen, losses):
        calls.append((step, tokens_seen, [len(curve) for curve in losses]))

    train(make(), loader(7), epochs=1, after_step=note)
    lengths = [[1] * 3, [1] * 3, [2] * 3, [2] * 3]
    assert calls == list(zip([1, 2, 3, 4], [12, 24, 36, 42], lengths))


def test_a_run_can_count_on_from_an_earlier_part(capsys):
    """What `resumable` builds on: the same evaluations, numbered on."""
    parts = [make(), loader(7)]
    optimizer = adamw(parts[0])
    whole = train(make(), loader(7), epochs=3, eval_freq=3)
    first = train(*parts, optimizer, epochs=1, eval_freq=3)
    rest = train(*parts, optimizer, epochs=3, eval_freq=3, start=(1, 4, 42))
    assert tuple(map(list.__add__, first, rest)) == whole
    assert "epoch 2, step 6: train" in capsys.readouterr().out


@pytest.mark.parametrize("batches", [[], DataLoader(windows(1), 2, drop_last=True)])
def test_nothing_to_train_on_is_refused(batches):
    with pytest.raises(ValueError, match="No batch to train on: give more"):
        train(make(), batches)


def test_no_epochs_are_refused():
    with pytest.raises(ValueError, match="No batch to train on: .*epochs"):
        train(make(), loader(), epochs=0)


def test_the_curves_are_drawn_with_both_axes():
    fig = plot_losses([0, 1, 2], [10, 20, 30], [3.0, 2.0, 1.0], [3.0, 2.5, 2.6])
    below, above = fig.axes
    assert [list(line.get_ydata()) for line in below.get_lines()] == [
        [3.0, 2.0, 1.0],
        [3.0, 2.5, 2.6],
    ]
    styles = {line.get_linestyle() for line in below.get_lines()}
    assert len(styles) == 2, "in grey print only the line tells them apart"
    assert [text.get_text() for text in below.get_legend().get_texts()] == [
        "training",
        "validation",
    ]
    assert above.get_xlabel() == "tokens seen"
    # A point lies at its epoch and at its tokens.
    assert below.get_xlim()[1] / 2 == pytest.approx(1.05)
    assert above.get_xlim() == pytest.approx((9, 31))


# --- the script -----------------------------------------------------------------------

SMALL = {**QUICK_CONFIG, "emb_dim": 8, "n_heads": 2, "n_layers": 1}
OF_THE_SCRIPT = {**SMALL, "context_length": 8}  # as long as a window
TEXT = "The lamp was lit and the lamp went out. " * 40
RUN = """
import json, sys
import gpt_train
changes = json.loads(sys.argv[1])
changes["cfg"] = gpt_train.GPTConfig(**changes["cfg"])
gpt_train._PRESETS["quick"].update(changes)
sys.exit(gpt_train.main(sys.argv[2:]))
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    """`main` on a tiny model and a text of 400 tokens; returns the folder too."""
    changes = {"cfg": GPTConfig.of(SMALL), "window": 8, "epochs": 2, "batch_size": 4}
    changes["eval_freq"] = 5
    monkeypatch.setitem(
        gpt_train._PRESETS, "quick", {**gpt_train._PRESETS["quick"], **changes}
    )
    monkeypatch.delenv("COURSE_PRESET", raising=False)
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def test_the_script_trains_saves_and_reports(script, capsys):
    arguments = ["--data", str(script / "text.txt"), "--seed", "5"]
    assert gpt_train.main(arguments) == 0
    shown = capsys.readouterr()
    out = script / "runs" / "ch05-gpt"
    assert shown.err == "", "the bar is silent off a terminal"
    assert shown.out.startswith("text.txt: 22 steps, ")
    assert "Chance alone has a loss of 10.825." in shown.out
    assert "epoch 1, step 5: train " in shown.out
    assert f"Next: gpt_generate.py --model {out}" in shown.out
    with (out / "losses.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "5", "10", "15", "20", "21"]
    assert [row["tokens"] for row in rows][:2] == ["32", "192"]
    assert abs(float(rows[0]["val_loss"]) - uniform_loss(50257)) < 0.3

    info = checkpoint_info(out)
    model = GPTModel(info["config"])
    progress = load_checkpoint(out, model, tokenizer=tiktoken.get_encoding("gpt2"))
    assert progress["step"] == 22
    assert progress["tokens_seen"] == 22 * 32
    assert float(rows[-2]["val_loss"]) == round(progress["val_losses"][-1], 4)
    # The rate that was used is the one of the preset, not the optimizer's default.
    assert info["parts"]["optimizer"]["its kind"] == "AdamW"
    saved = torch.load(out / "checkpoint.pt", weights_only=True)
    assert saved["optimizer"]["param_groups"][0]["lr"] == 3e-3
    assert saved["optimizer"]["param_groups"][0]["weight_decay"] == 0.1


def test_the_presets_are_what_the_chapter_says():
    quick, full = gpt_train._PRESETS["quick"], gpt_train._PRESETS["full"]
    assert quick.keys() == full.keys()
    for plan in (quick, full):  # a place behind the window would never be trained
        assert plan["cfg"]["context_length"] == plan["window"]
    assert (QUICK_CONFIG.n_layers, QUICK_CONFIG.emb_dim) == (4, 256)
    assert full["cfg"] == {**gpt_train.GPT_CONFIG_124M, "context_length": 256}
    assert (full["learning_rate"], full["epochs"]) == (4e-4, 10)
    assert (full["batch_size"], full["window"]) == (2, 256)
    assert gpt_train._WEIGHT_DECAY == 0.1


def test_the_same_seed_gives_the_same_model_another_one_another(script, capsys):
    def weights(name, *more):
        out = script / name
        data = ["--data", str(script / "text.txt"), "--epochs", "1"]
        assert gpt_train.main([*data, "--out", str(out), *more]) == 0
        model = GPTModel(OF_THE_SCRIPT)
        load_checkpoint(out, model)
        return model.out_head.weight

    first = weights("a")
    assert torch.equal(first, weights("b"))
    assert not torch.equal(first, weights("c", "--seed", "6"))


def test_a_longer_run_goes_on_from_a_shorter_one(script, capsys):
    data = ["--data", str(script / "text.txt")]
    out = ["--out", str(script / "two")]
    assert gpt_train.main([*data, "--epochs", "1", *out]) == 0
    assert gpt_train.main([*data, *out, "--resume"]) == 0
    assert "Going on after 11 steps, in epoch 2." in capsys.readouterr().out
    assert gpt_train.main([*data, "--out", str(script / "one"), "--resume"]) == 0
    assert "yet: starting afresh." in capsys.readouterr().out
    first, second = GPTModel(OF_THE_SCRIPT), GPTModel(OF_THE_SCRIPT)
    load_checkpoint(script / "one", first)
    load_checkpoint(script / "two", second)
    assert torch.equal(first.tok_emb.weight, second.tok_emb.weight)
    one, two = (script / name / "losses.csv" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_a_tokenizer_of_ones_own_goes_with_the_model(script, capsys):
    """The checkpoint holds it, so that generating reads and writes its tokens."""
    tokenizer = train_tokenizer(TEXT, 270)
    save_tokenizer(tokenizer, script / "words.json")
    out = ["--data", str(script / "text.txt"), "--out", str(script / "own")]
    own = ["--tokenizer", str(script / "words.json")]
    assert gpt_train.main([*out, *own]) == 0
    said = f"Chance alone has a loss of {uniform_loss(270):.3f}."
    assert said in capsys.readouterr().out
    (script / "words.json").unlink()
    model, loaded, config = load_pretrained(script / "own")
    assert config["vocab_size"] == model.out_head.out_features == 270
    assert loaded.to_json() == tokenizer.to_json()
    arguments = ["--model", str(script / "own"), "--max-new-tokens", "9"]
    assert gpt_generate.main([*arguments, "--prompt", "The lamp", "--seed", "1"]) == 0
    shown = capsys.readouterr().out
    assert "The lamp" in shown
    assert f"[{len(tokenizer.encode('The lamp'))} tokens read, 9 written" in shown


@pytest.mark.parametrize("other", ["two.json", "three.json", "more.json"])
def test_a_run_never_goes_on_with_another_tokenizer(script, capsys, other):
    """With other merges, with the same tokens cut in another way, with more of them.

    More of them give fewer batches; the sentence names the cause all the same.
    """
    first = train_tokenizer(TEXT, 270)
    merges = list(first.new_ids)
    files = {
        "one.json": first,
        "two.json": BPETokenizer([*merges[:-1], (0, 1)]),
        "three.json": BPETokenizer(merges, pattern=r"\S+|\s+"),
        "more.json": train_tokenizer(TEXT, 300),
    }
    for name, tokenizer in files.items():
        save_tokenizer(tokenizer, script / name)
    counts = {len(tokenizer.encode(TEXT)) for tokenizer in files.values()}
    assert len(counts) > 1
    out = ["--data", str(script / "text.txt"), "--out", str(script / "own")]
    one = ["--tokenizer", str(script / "one.json")]
    assert gpt_train.main([*out, "--epochs", "1", *one]) == 0
    before = (script / "own" / "checkpoint.pt").read_bytes()
    others = ["--tokenizer", str(script / other)]
    assert gpt_train.main([*out, "--resume", *others]) == 2
    shown = capsys.readouterr().err
    assert "has another tokenizer: the hash of all of it" in shown
    assert shown.count("\n") == 1
    assert (script / "own" / "checkpoint.pt").read_bytes() == before


def test_a_run_goes_on_with_the_tokenizer_in_its_checkpoint(script, capsys):
    """Its file may be given again, or be lost; without a checkpoint it is needed."""
    path = script / "words.json"
    save_tokenizer(train_tokenizer(TEXT, 270), path)
    out = ["--data", str(script / "text.txt"), "--out", str(script / "own")]
    own = ["--tokenizer", str(path)]
    assert gpt_train.main([*out, *own, "--epochs", "1", "--resume"]) == 0
    assert gpt_train.main([*out, *own, "--epochs", "2", "--resume"]) == 0
    path.unlink()
    capsys.readouterr()
    assert gpt_train.main([*out, "--epochs", "3", "--resume"]) == 0
    assert "in epoch 3." in capsys.readouterr().out
    assert load_pretrained(script / "own").config["vocab_size"] == 270


def test_a_run_with_the_tokenizer_of_gpt2_goes_on_with_no_other(script, capsys):
    path = script / "words.json"
    save_tokenizer(train_tokenizer(TEXT, 270), path)
    out = ["--data", str(script / "text.txt"), "--out", str(script / "plain")]
    assert gpt_train.main([*out, "--epochs", "1"]) == 0
    assert gpt_train.main([*out, "--resume", "--tokenizer", str(path)]) == 2
    shown = capsys.readouterr().err
    assert "has another tokenizer: the hash of all" in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "words.json cannot be read (No such file or directory)"),
        ("{}", "words.json is not a whole tokenizer of this module (KeyError)"),
    ],
)
def test_what_is_no_tokenizer_gets_one_sentence(script, capsys, content, message):
    path = script / "words.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    arguments = ["--data", str(script / "text.txt"), "--tokenizer", str(path)]
    assert gpt_train.main(arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("gpt_train.py: ")
    assert message in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "short.txt"], "short.txt is too short: a tenth of it, kept for "),
        (["--data", "none.txt"], "none.txt cannot be read (No such file or directory)"),
        (["--data", "."], "cannot be read (Is a directory)"),
        (["--data", "latin.txt"], "latin.txt is not text in UTF-8 (byte 3, line 1): "),
        (["--data", "empty.txt"], "empty.txt is empty: give a text with --data"),
        (["--data", "word.txt"], "word.txt: The text cannot be cut in two"),
        (
            ["--data", "text.txt", "--out", "text.txt"],
            "text.txt cannot be written",
        ),
    ],
)
def test_what_cannot_be_trained_on_gets_one_sentence(
    script, arguments, message, capsys, monkeypatch
):
    monkeypatch.chdir(script)
    (script / "short.txt").write_text("The lamp was lit. " * 8, encoding="utf-8")
    (script / "latin.txt").write_bytes("caf\xe9 ".encode("latin-1") * 300)
    (script / "empty.txt").write_text("\n", encoding="utf-8")
    (script / "word.txt").write_text("lamp", encoding="utf-8")
    assert gpt_train.main(arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("gpt_train.py: ")
    assert message in shown
    assert shown.count("\n") == 1
    assert not (script / "runs" / "ch05-gpt" / "losses.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs: must be 1 or more"),
        (["--window", "300"], "--window is at most 128: for more, give --set context"),
        (["--learning-rate", "0"], "--learning-rate: must be a number above 0"),
        (["--learning-rate", "nan"], "--learning-rate: must be a number above 0"),
        (["--learning-rate", "fast"], "--learning-rate: invalid float value: 'fast'"),
        (["--batch-size", "0"], "--batch-size: must be 1 or more"),
        (["--set", "emb_dim=9"], "emb_dim=9"),
        (["--set", "emb_dim=wide"], "--set emb_dim=wide: 'wide' is not a value for e"),
        (["--set", "width=8"], "--set width=8: the sizes are called vocab_size, "),
        (["--resume", "--overwrite"], "not allowed with argument"),
        (["--preset", "huge"], "invalid choice: 'huge'"),
        (["--seed", "no"], "--seed: invalid int value: 'no'"),
        (["--nonsense"], "unrecognized arguments"),
    ],
)
def test_wrong_options_are_named(script, arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        gpt_train.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_the_environment_chooses_the_preset(script, monkeypatch, capsys):
    def options(*arguments):
        return gpt_train.script.read_options(arguments, gpt_train._PRESETS)

    assert options().preset == "quick"
    monkeypatch.setenv("COURSE_PRESET", "full")
    assert options().epochs == 10
    assert options("--preset", "quick").epochs == 2


def test_sizes_and_rate_are_options(script):
    arguments = "--set emb_dim=16 --set drop_rate=0.1 --set qkv_bias=true --window 6"
    arguments = [*arguments.split(), "--learning-rate", "1e-3", "--batch-size", "3"]
    options = gpt_train.script.read_options(arguments, gpt_train._PRESETS)
    changes = {"emb_dim": 16, "drop_rate": 0.1, "qkv_bias": True, "context_length": 6}
    assert options.cfg == {**SMALL, **changes}
    assert (options.learning_rate, options.batch_size) == (1e-3, 3)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_any_script_and_any_terminal(script, encoding, monkeypatch):
    """A text without spaces, and a terminal that cannot show it."""
    text = "\u5eb7\u5fb7\u306e\u68af\u5b50\U0001f600" * 60
    (script / "text.txt").write_text(text + "\n" + text, encoding="utf-8")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    assert gpt_train.main(["--data", str(script / "text.txt"), "--epochs", "1"]) == 0
    terminal.flush()
    shown = terminal.buffer.getvalue().decode(encoding)
    assert "\\u5eb7\\u5fb7" in shown
    assert max(map(len, shown.splitlines())) < 1500, "it begins with a few characters"


def test_an_interruption_says_how_to_go_on(script, monkeypatch, capsys):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(gpt_train, "train_model_simple", interrupted)
    assert gpt_train.main(["--data", str(script / "text.txt")]) == 130
    assert "with --resume it goes on from the last" in capsys.readouterr().err


def test_it_works_from_any_directory(script):
    """A process of its own, in a folder that is not the course's."""
    elsewhere = script / "else where"
    elsewhere.mkdir()
    changes = json.dumps({"cfg": dict(SMALL), "window": 8, "epochs": 1})
    done = subprocess.run(
        [sys.executable, "-c", RUN, changes, "--data", "../text.txt", "--out", "mine"],
        cwd=elsewhere,
        env={**os.environ, "PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    names = {path.name for path in (elsewhere / "mine").iterdir()}
    assert names == {"best", "checkpoint.pt", "losses.csv"}


# --- What a run says, keeps and refuses -----------------------------------------------


def run_script(script, *more, text=TEXT):
    path = script / "own.txt"
    path.write_text(text, encoding="utf-8")
    return gpt_train.main(["--data", str(path), "--out", str(script / "o"), *more])


def test_losses_at_the_end_are_measured_at_the_end(script, capsys):
    """Known mistake: what is reported was measured after the first update."""
    assert run_script(script, "--epochs", "3", "--learning-rate", "0.03") == 0
    shown = capsys.readouterr().out
    model = GPTModel(OF_THE_SCRIPT)
    load_checkpoint(script / "o", model)
    arguments = ["--seed", "123"]
    options = gpt_train.script.read_options(arguments, gpt_train._PRESETS)
    tokenizer = tiktoken.get_encoding("gpt2")
    _, val_loader = gpt_train.script.make_loaders(TEXT, "own", tokenizer, options)
    at_the_end = calc_loss_loader(val_loader, model, "cpu")
    with (script / "o" / "losses.csv").open(encoding="utf-8") as file:
        *_, before, last = csv.DictReader(file)
    assert last["step"] == "32"
    assert float(last["val_loss"]) == pytest.approx(at_the_end, abs=1e-4)
    assert float(before["val_loss"]) != pytest.approx(at_the_end, abs=1e-3)
    assert f"after step 32, training is at {float(last['train_loss']):.3f}" in shown
    assert f"validation at {at_the_end:.3f}" in shown


def test_the_best_model_is_kept_and_the_last_too(script, capsys):
    """In words in random order there is nothing to learn but the words."""
    text = " ".join(random.Random(0).choices(string.ascii_lowercase, k=400))
    fast = ["--epochs", "4", "--learning-rate", "0.3"]
    assert run_script(script, *fast, text=text) == 0
    shown = capsys.readouterr().out
    losses = [float(x) for x in re.findall(r"whole validation part: ([\d.]+)", shown)]
    assert len(losses) == 4
    note = script / "o" / "best" / "validation.json"
    best = json.loads(note.read_text(encoding="utf-8"))["validation_loss"]
    assert best == pytest.approx(min(losses), abs=1e-3)
    assert min(losses) < losses[-1]
    assert f"Validation was best after an earlier epoch, {best:.3f}" in shown
    assert run_script(script, "--resume", *fast, text=text) == 0
    shown = capsys.readouterr().out
    assert "All 4 epochs are done, 44 steps in all." in shown
    assert json.loads(note.read_text(encoding="utf-8"))["validation_loss"] == best
    model = GPTModel(OF_THE_SCRIPT)
    load_checkpoint(script / "o" / "best", model)
    options = gpt_train.script.read_options([], gpt_train._PRESETS)
    tokenizer = tiktoken.get_encoding("gpt2")
    _, val_loader = gpt_train.script.make_loaders(text, "own", tokenizer, options)
    assert calc_loss_loader(val_loader, model, "cpu") == pytest.approx(best, abs=1e-5)


def test_a_trained_model_is_not_overwritten_without_a_word(script, capsys):
    assert run_script(script) == 0
    before = (script / "o" / "checkpoint.pt").read_bytes()
    capsys.readouterr()
    assert run_script(script) == 2
    said = capsys.readouterr().err
    assert "holds a model of 22 steps: --resume goes on with it, --overwrite" in said
    assert (script / "o" / "checkpoint.pt").read_bytes() == before
    assert run_script(script, "--overwrite", "--seed", "9") == 0
    assert (script / "o" / "checkpoint.pt").read_bytes() != before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["--seed", "9"], "--seed (123 there, 9 here)"),
        (["--learning-rate", "0.1"], "--learning-rate (0.003 there, 0.1 here)"),
        (["--batch-size", "2"], "--batch-size (4 there, 2 here)"),
        (["--window", "9"], "--window (8 there, 9 here), --set context_length (8"),
        (["--set", "drop_rate=0.5"], "--set drop_rate (0.0 there, 0.5 here)"),
        ([], "--data ("),
    ],
)
def test_a_run_does_not_go_on_as_another(script, changes, named, capsys):
    """Known mistake: another text of as many batches is taken, and signs the losses."""
    assert run_script(script, "--epochs", "1") == 0
    before = (script / "o" / "checkpoint.pt").read_bytes()
    text = TEXT if changes else TEXT.replace("lamp", "lady")
    assert run_script(script, "--resume", *changes, text=text) == 2
    assert named in capsys.readouterr().err
    assert (script / "o" / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("variable", "value"),
    [("COURSE_DEVICE", "cuda"), ("COURSE_DEVICE", "banana")],
)
def test_a_device_that_is_not_there_is_told(
    script, variable, value, monkeypatch, capsys
):
    if value == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has one")
    monkeypatch.setenv(variable, value)
    assert run_script(script) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert value in said


# --- What would go wrong in silence ---------------------------------------------------


def train_on(train_loader, val_loader, optimizer=None, **options):
    model = make()
    optimizer = optimizer(model) if optimizer else adamw(model, 0.01)
    train_model_simple(
        model,
        train_loader,
        val_loader,
        optimizer,
        "cpu",
        num_epochs=2,
        eval_freq=4,
        eval_iter=2,
        start_context=None,
        tokenizer=None,
        **options,
    )
    return model


def test_a_loader_that_is_one_iterator_is_refused():
    """Known mistake: looking at the losses began the epoch anew, again and again."""
    good = DataLoader(windows(20), 2)
    context = "fork" if sys.platform == "linux" else None
    kept = DataLoader(
        windows(20),
        2,
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context=context,
    )
    for pair, name in (((kept, good), "train_loader"), ((good, kept), "val_loader")):
        with pytest.raises(ValueError, match=f"{name} keeps its workers.*=False"):
            train_on(*pair)
    for pair, name in (
        ((iter([*good]), good), "train_loader"),
        ((good, (batch for batch in good)), "val_loader"),
    ):
        with pytest.raises(ValueError, match=f"{name} is an iterator"):
            train_on(*pair)


@pytest.mark.parametrize("workers", [0, 1])
def test_each_batch_is_trained_once_whoever_loads_it(workers):
    context = "fork" if workers and sys.platform == "linux" else None
    loader = DataLoader(
        windows(20), 2, num_workers=workers, multiprocessing_context=context
    )
    seen = []

    def loss(inputs, targets, model, device):
        if torch.is_grad_enabled():
            seen.append(inputs)
        return calc_loss_batch(inputs, targets, model, device)

    train_on(loader, loader, loss=loss)
    expected = [inputs for inputs, _ in DataLoader(windows(20), 2)] * 2
    assert len(seen) == 20
    assert all(map(torch.equal, seen, expected))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_before_the_update(number):
    """Known mistake: training goes on to the end with weights that are all NaN."""
    steps = []

    def loss(inputs, targets, model, device):
        value = calc_loss_batch(inputs, targets, model, device)
        if torch.is_grad_enabled():
            steps.append({k: v.clone() for k, v in model.state_dict().items()})
            if len(steps) == 7:
                return value * number
        return value

    found = []
    with pytest.raises(ValueError, match=rf"loss of step 6 is {number}.*lower"):
        train_on(
            DataLoader(windows(20), 2),
            DataLoader(windows(4), 2),
            lambda model: found.append(model) or adamw(model, 0.01),
            loss=loss,
        )
    assert len(steps) == 7
    assert all(torch.equal(v, steps[-1][k]) for k, v in found[0].state_dict().items())


def test_a_scheduler_that_needs_a_loss_is_refused_at_the_start():
    model = make()
    optimizer = adamw(model, 0.01)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    with pytest.raises(ValueError, match="ReduceLROnPlateau needs a loss"):
        train_on(
            DataLoader(windows(4), 2), DataLoader(windows(4), 2), scheduler=scheduler
        )
    assert not optimizer.state
