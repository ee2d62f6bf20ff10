"""Chapter 6's module: the data, the head, frozen features, padding, saving, loading.

The models are tiny and their messages made up here.
"""

import json
import math
import re
import shutil
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import gpt_class_finetune as chapter
from checkpoints import read_learned
from frozen_features import (
    MeanOfTokens,
    UpperModel,
    cache_features,
    collate_messages,
    freeze_below,
    learning,
)
from gpt import GPT_CONFIG_124M, GPTModel, initialise_like_gpt2
from gpt_class_finetune import (
    SpamDataset,
    add_classification_head,
    ask_in_words,
    bootstrap_interval,
    calc_accuracy_loader,
    calc_loss_batch,
    class_probabilities,
    classify_review,
    encode_message,
    last_token_logits,
    load_classifier,
    message_loader,
    plot_values,
    save_classifier,
    train_classifier_simple,
)
from gpt_train import calc_loss_loader, save_checkpoint
from llama import SMOLLM2_135M, LlamaModel
from pretrained import Pretrained
from test_message_data import frame, write_csv

VOCAB = 64
GPT_TINY = {
    **GPT_CONFIG_124M,
    "vocab_size": VOCAB,
    "context_length": 24,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 3,
    "drop_rate": 0.0,
    "tie_weights": True,
}
LLAMA_TINY = {
    **SMOLLM2_135M,
    "vocab_size": VOCAB,
    "context_length": 24,
    "emb_dim": 16,
    "n_heads": 4,
    "n_kv_groups": 2,
    "head_dim": 6,
    "n_layers": 3,
    "hidden_dim": 20,
}
some = settings(max_examples=30, deadline=None)


class LetterTokenizer:
    """One id for each printable ASCII letter; other characters are dropped."""

    letters = string.ascii_letters + string.digits + " "
    n_vocab = VOCAB
    eot_token = VOCAB - 1

    def encode(self, text, allowed_special=frozenset(), disallowed_special=()):
        return [self.letters.index(c) for c in text if c in self.letters]

    def decode(self, ids):
        return "".join(self.letters[i] for i in ids)

    def decode_single_token_bytes(self, i):
        return self.letters[i : i + 1].encode()


TOKENIZER = LetterTokenizer()


def make_model(kind, seed=0, num_classes=2):
    """A tiny model with the head of a classifier, whose numbers are not near zero."""
    torch.manual_seed(seed)
    model = GPTModel(GPT_TINY) if kind == "gpt" else LlamaModel(LLAMA_TINY)
    add_classification_head(model, num_classes)
    nn.init.normal_(model.out_head.weight)
    return model.eval()


@pytest.fixture(params=["gpt", "llama"])
def model(request):
    return make_model(request.param)


# --- Data ----------------------------------------------------------------------------


def test_messages_become_ids_and_class_numbers():
    dataset = SpamDataset(frame(4), TOKENIZER, max_length=6)
    assert len(dataset) == 4
    ids, target = dataset[1]
    assert TOKENIZER.decode(ids.tolist()) == "WIN 0 "
    assert (target, dataset[0][1]) == (1, 0)
    named = SpamDataset(frame(4), TOKENIZER, labels=("spam", "wanted"))
    assert (named[1][1], named[0][1]) == (0, 1)
    with pytest.raises(ValueError, match="'wanted'.*'good', 'bad'"):
        SpamDataset(frame(4), TOKENIZER, labels=("good", "bad"))


def test_special_tokens_in_a_message_are_text():
    tokenizer = tiktoken.get_encoding("gpt2")
    ids = encode_message("hi <|endoftext|>", tokenizer)
    assert tokenizer.eot_token not in ids
    assert tokenizer.decode(ids) == "hi <|endoftext|>"


@pytest.mark.parametrize("text", ["", "\u200b\x00", "\u05e9"])
def test_a_message_without_a_token_is_refused_in_one_sentence(text):
    with pytest.raises(ValueError, match="has no token to read") as caught:
        encode_message(text, TOKENIZER)
    assert repr(text) in str(caught.value)


def test_padding_is_on_the_right_and_marked():
    batch = [(torch.tensor([4, 5, 6]), 1), (torch.tensor([7]), 0)]
    ids, mask, targets = collate_messages(batch, pad_token_id=9)
    assert ids.tolist() == [[4, 5, 6], [7, 9, 9]]
    assert mask.tolist() == [[True, True, True], [True, False, False]]
    assert targets.tolist() == [1, 0]
    longer, mask, _ = collate_messages(batch, length=5)
    assert longer.shape == mask.shape == (2, 5)
    assert mask.sum() == 4


def test_features_are_padded_like_ids():
    batch = [(torch.ones(3, 2), 1), (torch.ones(1, 2), 0)]
    features, mask, _ = collate_messages(batch)
    assert features.sum(dim=-1).tolist() == [[2, 2, 2], [2, 0, 0]]
    assert mask.sum(dim=1).tolist() == [3, 1]


# --- The head, and who is asked ------------------------------------------------------


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), left=st.booleans())
@some
def test_the_last_real_token_is_asked_on_either_side_of_padding(lengths, left):
    T = max(lengths) + 2
    logits = torch.zeros(len(lengths), T, 2)
    mask = torch.zeros(len(lengths), T, dtype=torch.bool)
    for row, length in enumerate(lengths):
        start = T - length if left else 0
        mask[row, start : start + length] = True
        logits[row, start + length - 1] = float(row + 1)
    expected = torch.arange(1.0, len(lengths) + 1)
    assert torch.equal(last_token_logits(logits, mask)[:, 0], expected)


def test_without_a_mask_the_last_position_is_asked():
    logits = torch.arange(12.0).view(2, 3, 2)
    assert last_token_logits(logits).tolist() == [[4.0, 5.0], [10.0, 11.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_the_head_follows_the_model_and_starts_near_ln_c(kind, dtype):
    """A float32 head on a bfloat16 body crashed elsewhere."""
    torch.manual_seed(0)
    model = GPTModel(GPT_TINY) if kind == "gpt" else LlamaModel(LLAMA_TINY)
    model = model.to(dtype)
    add_classification_head(model, 3, torch.Generator().manual_seed(1))
    assert model.out_head.weight.dtype == dtype
    ids, mask, _ = collate_messages([(torch.arange(5), 0), (torch.arange(9), 1)])
    loss = calc_loss_batch(ids, mask, torch.tensor([0, 2]), model.eval(), "cpu")
    assert abs(loss.item() - math.log(3)) < 0.05


@pytest.mark.parametrize(("blocks", "learning"), [(0, 0), (1, 1), (3, 3)])
def test_only_the_upper_blocks_norm_and_head_learn(model, blocks, learning):
    freeze_below(model, blocks)
    free = [all(p.requires_grad for p in b.parameters()) for b in model.trf_blocks]
    assert free == [False] * (3 - learning) + [True] * learning
    assert not model.tok_emb.weight.requires_grad
    for module in (model.final_norm, model.out_head):
        assert all(p.requires_grad for p in module.parameters())
    freeze_below(model, None)
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="has 3 blocks"):
        freeze_below(model, 4)


@given(
    text=st.text(TOKENIZER.letters, min_size=1, max_size=12),
    pad=st.integers(0, VOCAB - 1),
    extra=st.integers(0, 11),
    mates=st.lists(st.text(TOKENIZER.letters, min_size=1, max_size=12), max_size=3),
    kind=st.sampled_from(["gpt", "llama"]),
)
@some
def test_an_answer_depends_on_the_message_alone(text, pad, extra, mates, kind):
    """Not on padding, its kind and amount, nor on the other messages of the batch."""
    model = make_model(kind)
    alone = last_token_logits(model(torch.tensor([TOKENIZER.encode(text)])))
    batch = [(torch.tensor(TOKENIZER.encode(t)), 0) for t in (*mates, text)]
    longest = max(len(ids) for ids, _ in batch)
    ids, mask, _ = collate_messages(batch, pad, length=longest + extra)
    with torch.no_grad():
        together = last_token_logits(model(ids, mask), mask)[-1:]
    assert torch.allclose(alone, together, atol=1e-5)


def test_the_padded_position_is_another_question(model):
    """What the module does not do: the last position moves with the padding."""
    message = [(torch.tensor(TOKENIZER.encode("hello")), 0)]
    answers = []
    for length in (6, 12):
        ids, _, _ = collate_messages(message, length=length)
        answers.append(last_token_logits(model(ids)))
    assert (answers[0] - answers[1]).abs().max() > 1e-3


# --- Metrics -------------------------------------------------------------------------


def test_accuracy_is_weighed_by_messages_and_falls_on_shuffled_answers(model):
    """A metric that compares labels with labels would be right on shuffled ones too."""
    dataset = SpamDataset(frame(30), TOKENIZER)
    probabilities, targets = class_probabilities(
        message_loader(dataset, 30), model, "cpu"
    )
    assert probabilities.shape == (30, 2)
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(30))
    guesses = probabilities.argmax(dim=1).tolist()
    perfect = [(dataset[i][0], guess) for i, guess in enumerate(guesses)]
    for batch_size in (1, 7, 30):
        loader = message_loader(perfect, batch_size)
        assert calc_accuracy_loader(loader, model, "cpu") == 1.0
    flipped = [(ids, 1 - guess) for ids, guess in perfect]
    mixed = perfect[:12] + flipped[12:]
    for batch_size in (1, 7, 30):
        loader = message_loader(mixed, batch_size)
        assert calc_accuracy_loader(loader, model, "cpu") == pytest.approx(0.4)
    loader = message_loader(mixed, 4)
    assert calc_accuracy_loader(loader, model, "cpu", num_batches=3) == 1.0
    assert calc_accuracy_loader(message_loader(flipped, 7), model, "cpu") == 0.0
    assert targets.tolist() == [0, 1] * 15


def test_an_empty_loader_is_told(model):
    with pytest.raises(ValueError, match="loader is empty"):
        calc_accuracy_loader([], model, "cpu")


def test_looking_keeps_the_mode(model):
    loader = message_loader(SpamDataset(frame(6), TOKENIZER), 3)
    for training in (True, False):
        model.train(training)
        calc_accuracy_loader(loader, model, "cpu")
        assert model.training is training


def test_the_loss_does_not_depend_on_the_batch_size(model):
    dataset = SpamDataset(frame(20), TOKENIZER)
    losses = [
        calc_loss_loader(
            message_loader(dataset, size), model, "cpu", loss=calc_loss_batch
        )
        for size in (1, 7)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_the_interval_holds_the_share_and_narrows_with_more_messages():
    few = bootstrap_interval([True] * 45 + [False] * 5)
    many = bootstrap_interval([True] * 900 + [False] * 100)
    for low, high in (few, many):
        assert low < 0.9 < high
    assert many[1] - many[0] < (few[1] - few[0]) / 3
    # The normal approximation of a share of 0.9 among 1000: plus and minus 0.0186.
    assert many[0] == pytest.approx(0.8814, abs=0.003)
    assert many[1] == pytest.approx(0.9186, abs=0.003)
    assert bootstrap_interval([True] * 9) == (1.0, 1.0)


def test_the_interval_is_that_of_the_drawn_means():
    """The plain way, all draws at once, gives the same bounds."""
    right = np.arange(70) % 10 > 1
    draws = np.random.default_rng(3).integers(70, size=(500, 70))
    plain = np.quantile(right[draws].mean(axis=1), [0.05, 0.95])
    found = bootstrap_interval(right, confidence=0.9, resamples=500, seed=3)
    assert found == pytest.approx(plain, abs=1e-12)


def test_the_interval_covers_runs_and_messages():
    assert bootstrap_interval(np.ones((5, 100), dtype=bool)) == (1, 1)
    messages = np.random.default_rng(0).random((1, 400)) < 0.9
    low, high = bootstrap_interval(np.repeat(messages, 5, axis=0))
    assert low < messages.mean() < high
    # 2 * 1.96 * sqrt(0.9 * 0.1 / 400) is 0.059.
    assert 0.04 < high - low < 0.08
    seeds = np.array([[True] * 50, [True] * 50, [False] * 50])
    low, high = bootstrap_interval(seeds)
    assert low < 0.4
    assert high == 1


def test_families_are_drawn_as_one():
    """The same answers in families of ten say less, whatever their names and order."""
    entries = (np.random.default_rng(0).random(400) < 0.6).astype(float)
    low, high = bootstrap_interval(entries, range(400))
    assert high - low == pytest.approx(2 * 1.96 * (0.24 / 400) ** 0.5, rel=0.15)
    assert (low, high) == bootstrap_interval(entries)
    tens, families = np.repeat(entries[:40], 10), np.repeat(np.arange(40), 10)
    together = bootstrap_interval(tens, families)
    assert together[1] - together[0] > 2 * (high - low)
    mixed = np.random.default_rng(1).permutation(400)
    assert bootstrap_interval(tens[mixed], families[mixed]) == together
    seeds = np.array([[1.0] * 50, [1.0] * 50, [0.0] * 50])
    low, high = bootstrap_interval(seeds, range(50))
    assert low < 0.4
    assert high == 1


# --- Frozen features -----------------------------------------------------------------


@pytest.mark.parametrize("blocks", [0, 1, 2, 3])
def test_cached_features_give_the_logits_of_the_whole_model(model, blocks):
    dataset = SpamDataset(frame(11), TOKENIZER)
    features = cache_features(model, dataset, blocks, "cpu", batch_size=4)
    assert [len(f) for f, _ in features] == [len(ids) for ids, _ in dataset]
    assert [target for _, target in features] == dataset.targets
    upper = UpperModel(model, blocks)
    whole = collate_messages([dataset[i] for i in range(len(dataset))])
    cached = collate_messages(features)
    with torch.no_grad():
        expected = model(*whole[:2])
        found = upper(*cached[:2])
    real = whole[1]
    assert torch.allclose(found[real], expected[real], atol=1e-5)


def test_what_trains_above_the_features_trains_the_model(model):
    freeze_below(model, 1)
    dataset = SpamDataset(frame(24), TOKENIZER)
    features = cache_features(model, dataset, 1, "cpu")
    upper = UpperModel(model, 1)
    assert len(model.trf_blocks) == 3  # the model itself is whole
    before = {name: p.clone() for name, p in model.named_parameters()}
    loader = message_loader(features, 8, True, torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(learning(upper), lr=0.01)
    losses = train_classifier_simple(
        upper, loader, loader, optimizer, "cpu", 12, 3, None
    )
    assert losses[0][-1] < 0.1
    assert losses[2][-1] == 1.0
    plain = message_loader(dataset, 5)
    assert calc_accuracy_loader(plain, model, "cpu") == 1.0
    for name, parameter in model.named_parameters():
        changed = not torch.equal(parameter, before[name])
        assert changed == parameter.requires_grad, name


def test_training_gives_a_number_for_each_epoch_and_evaluation(model, capsys):
    loader = message_loader(SpamDataset(frame(12), TOKENIZER), 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    result = train_classifier_simple(
        model, loader, loader, optimizer, "cpu", 2, 2, None
    )
    train_losses, val_losses, train_accs, val_accs, examples_seen = result
    assert len(train_losses) == len(val_losses) == 3
    assert examples_seen == 20  # up to the last evaluation, of the fifth batch
    assert len(train_accs) == len(val_accs) == 2
    assert train_accs == val_accs  # the same messages, and nothing learned
    assert capsys.readouterr().out.count("accuracy: train") == 2
    fig = plot_values([0, 1, 2], [4, 12, 20], train_losses, val_losses, "loss")
    assert fig.axes[0].get_ylabel() == "loss"
    assert fig.axes[1].get_xlabel() == "messages seen"


# --- Using, saving, loading ----------------------------------------------------------


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A base model by name, made anew in the same way each time it is asked for."""

    def load(name):
        assert name == "tiny"
        torch.manual_seed(11)
        model = initialise_like_gpt2(GPTModel(GPT_TINY)).eval()
        return Pretrained(model, TOKENIZER, model.cfg)

    monkeypatch.setattr(chapter, "load_pretrained", load)
    model = add_classification_head(load("tiny").model, 2)
    freeze_below(model, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    return model.eval(), tmp_path / "made" / "classifier.safetensors"


def test_a_saved_classifier_answers_as_before_and_is_small(base):
    model, path = base
    save_classifier(path, model, "tiny", max_length=7)
    loaded, tokenizer, labels, max_length = load_classifier(path)
    assert (labels, max_length) == (("wanted", "spam"), 7)
    for name, parameter in model.named_parameters():
        again = dict(loaded.named_parameters())[name]
        assert torch.equal(parameter, again), name
        assert parameter.requires_grad == again.requires_grad
    assert set(load_file(path)) == {
        name for name, p in model.named_parameters() if p.requires_grad
    }
    assert not list(path.parent.glob("*.partial"))
    assert not loaded.training
    for text in ("hello", "WIN", "a b c d e f g h"):
        answers = {
            classify_review(text, m, tokenizer, "cpu", max_length, labels)
            for m in (model, loaded)
        }
        assert len(answers) == 1
    # Cut in training, cut when asked: what follows the seventh token is not read.
    assert torch.equal(
        loaded(torch.tensor([encode_message("a b c d WIN", tokenizer, max_length)])),
        loaded(torch.tensor([encode_message("a b c d zzz", tokenizer, max_length)])),
    )


def test_a_cut_classifier_that_is_asked_at_all_tokens_comes_back_as_it_was(base):
    model, path = base
    model.trf_blocks = model.trf_blocks[:1]
    freeze_below(model, 1)
    whole = MeanOfTokens(model)
    save_classifier(path, whole, "tiny")
    loaded = load_classifier(path)[0]
    assert len(loaded.model.trf_blocks) == 1
    ids = torch.tensor([encode_message("a b c d", TOKENIZER)])
    assert torch.equal(loaded(ids), whole(ids))
    assert not torch.equal(loaded(ids), model(ids))


def test_the_mean_of_tokens_hears_no_padding_and_reads_features_too(model):
    """On either side; and its answer is the mean of what each token says."""
    add_classification_head(model, 2).eval()
    texts = ["a", "b c d", "WIN a lot now"]
    pairs = [(torch.tensor(encode_message(text, TOKENIZER)), 0) for text in texts]
    whole = MeanOfTokens(model)
    with torch.no_grad():
        each = [model(ids[None])[0].mean(dim=0) for ids, _ in pairs]
        ids, mask, _ = collate_messages(pairs, length=20)
        right = last_token_logits(whole(ids, mask), mask)
        shift = ids.roll(3, dims=1), mask.roll(3, dims=1)
        left = last_token_logits(whole(*shift), shift[1])
        features = cache_features(model, pairs, 1, "cpu")
        inputs, mask, _ = collate_messages(features)
        upper = last_token_logits(
            MeanOfTokens(UpperModel(model, 1))(inputs, mask), mask
        )
        alone = whole(pairs[1][0][None])[0, -1]
    for found in (right, left, upper):
        assert torch.allclose(found, torch.stack(each), atol=1e-5)
    assert torch.allclose(alone, each[1], atol=1e-5)


def test_a_classifier_file_that_does_not_fit_is_told(base):
    model, path = base
    with pytest.raises(ValueError, match="train a classifier first"):
        load_classifier(path)
    save_classifier(path, model, "tiny")
    notes, good = read_learned(path, "classifier")[1], load_file(path)

    def rewritten(tensors):
        save_file(tensors, path, {"classifier": json.dumps(notes)})
        return path

    wrong = {**good, "final_norm.scale": torch.ones(5)}
    with pytest.raises(ValueError, match=r"final_norm.scale of shape \(5,\).*\(16,\)"):
        load_classifier(rewritten(wrong))
    with pytest.raises(ValueError, match="nothing of that name"):
        load_classifier(rewritten({**good, "extra": torch.ones(1)}))
    del good["out_head.bias"]
    with pytest.raises(ValueError, match="lacks the head's weights"):
        load_classifier(rewritten(good))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="damaged"):
        load_classifier(path)
    save_file(good, path)  # no notes
    with pytest.raises(ValueError, match="damaged, or no classifier"):
        load_classifier(path)


def test_a_message_longer_than_the_context_is_refused_or_cut(model):
    long = "word " * 10
    with pytest.raises(ValueError, match="reads at most context_length=24"):
        classify_review(long, model, TOKENIZER, "cpu")
    assert classify_review(long, model, TOKENIZER, "cpu", 24) in ("wanted", "spam")


def test_asking_in_words_compares_yes_with_no():
    class Chatty(LetterTokenizer):
        def render_chat(self, messages):
            assert messages[0]["role"] == "user"
            assert messages[0]["content"].endswith("Message: hi")
            return [1, 2, 3]

    class Fixed(nn.Module):
        def forward(self, idx):
            logits = torch.zeros(1, idx.shape[1], VOCAB)
            logits[0, -1, TOKENIZER.encode("Y")[0]] = 3.0
            logits[0, -1, TOKENIZER.encode("N")[0]] = 1.0
            return logits

    assert ask_in_words("hi", Fixed(), Chatty(), "cpu") == 2.0


# --- The script ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_base(tmp_path_factory):
    """A checkpoint of a tiny GPT for GPT-2's tokenizer, as chapter 5 leaves it."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    cfg = {**GPT_TINY, "vocab_size": 50257, "context_length": 64}
    model = initialise_like_gpt2(GPTModel(cfg))
    save_checkpoint(folder, model, tokenizer=tiktoken.get_encoding("gpt2"))
    return folder


def run(arguments, folder):
    return subprocess.run(
        [sys.executable, chapter.__file__, *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def test_the_script_trains_and_its_classifier_answers_alike_elsewhere(
    small_base, tmp_path
):
    """The saved classifier gives identical outputs in a fresh process."""
    df = frame(60)
    data = write_csv(tmp_path / "m.csv", df.itertuples(index=False))
    out = tmp_path / "my classifier"
    done = run(
        ["--data", data, "--model", small_base, "--out", out, "--epochs", 3],
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "accuracy: train" in done.stdout
    assert "95% interval" in done.stdout
    saved = out / "classifier.safetensors"
    model, tokenizer, labels, max_length = load_classifier(saved)
    ids = torch.tensor([encode_message("WIN 9 euros", tokenizer, max_length)])
    expected = model(ids)[0, -1].tolist()
    program = (
        "import sys, torch\n"
        "from gpt_class_finetune import encode_message, load_classifier\n"
        "model, tokenizer, labels, most = load_classifier(sys.argv[1])\n"
        "ids = torch.tensor([encode_message('WIN 9 euros', tokenizer, most)])\n"
        "print(model(ids)[0, -1].tolist())\n"
    )
    fresh = subprocess.run(
        [sys.executable, "-c", program, str(saved)],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert eval(fresh.stdout) == expected


@pytest.mark.parametrize(
    ("content", "named"),
    [("text,label\nhi,spam,x\n", "row 2"), ("text,label\nhi,a\nho,a\n", "nothing to")],
)
def test_the_script_tells_bad_data_in_one_line(tmp_path, content, named, capsys):
    data = tmp_path / "m.csv"
    data.write_text(content, encoding="utf-8")
    out = tmp_path / "out"
    assert chapter.main(["--data", str(data), "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert named in message
    assert message.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("bad", [["--epochs", "0"], ["--preset", "huge"]])
def test_the_script_refuses_bad_options(bad, capsys):
    with pytest.raises(SystemExit) as caught:
        chapter.main(bad)
    assert caught.value.code == 2
    assert bad[0] in capsys.readouterr().err


def test_an_unknown_preset_of_the_environment_is_no_full_one(monkeypatch, capsys):
    monkeypatch.setenv("COURSE_PRESET", "Full")
    assert chapter.script.read_options([]).preset == "full"
    monkeypatch.setenv("COURSE_PRESET", "huge")
    with pytest.raises(SystemExit):
        chapter.script.read_options([])
    assert "COURSE_PRESET is 'huge': set it to quick or full" in capsys.readouterr().err


def test_without_out_the_classifier_goes_where_the_course_keeps_its_runs(
    tmp_path, monkeypatch
):
    """Wherever the reader stands, and not into that folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COURSE_RUNS", raising=False)
    root = Path(chapter.__file__).parents[2]
    assert chapter.script.read_options([]).out == root / "runs" / "ch06-classifier"
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "mine"))
    assert chapter.script.read_options([]).out == tmp_path / "mine" / "ch06-classifier"


def test_the_script_keeps_the_best_and_overwrites_nothing(small_base, tmp_path, capsys):
    """And what it says of the end is measured there, on the whole part."""
    data = write_csv(tmp_path / "m.csv", frame(60).itertuples(index=False))
    base = shutil.copytree(small_base, tmp_path / "base")
    out = tmp_path / "out"
    arguments = ["--data", data, "--model", base, "--out", out, "--epochs", 3]
    arguments = [str(word) for word in arguments]
    assert chapter.main(arguments) == 0
    shown = capsys.readouterr().out
    losses = [float(x) for x in re.findall(r"whole validation part: ([\d.]+)", shown)]
    assert len(losses) == 3
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert result["validation_loss"] == pytest.approx(losses[-1], abs=1e-3)
    assert result["best_validation_loss"] == pytest.approx(min(losses), abs=1e-3)
    load_classifier(out / "best" / "classifier.safetensors")

    before = (out / "classifier.safetensors").read_bytes()
    assert chapter.main(arguments) == 2
    said = capsys.readouterr().err
    assert "holds a trained model, classifier.safetensors: --overwrite starts" in said
    assert (out / "classifier.safetensors").read_bytes() == before
    assert chapter.main([*arguments, "--overwrite", "--lr", "0.05"]) == 0
    assert (out / "classifier.safetensors").read_bytes() != before

    # The base is trained again: of the same sizes, and another model.
    torch.manual_seed(1)
    cfg = {**GPT_TINY, "vocab_size": 50257, "context_length": 64}
    other = initialise_like_gpt2(GPTModel(cfg))
    save_checkpoint(base, other, tokenizer=tiktoken.get_encoding("gpt2"))
    with pytest.raises(ValueError, match="trained on another base model of the same"):
        load_classifier(out / "classifier.safetensors")


@pytest.mark.parametrize(
    "bad",
    [["--lr", "nan"], ["--lr", "0"], ["--trainable-blocks", "-1"]],
)
def test_the_script_refuses_numbers_that_teach_nothing(bad, capsys):
    with pytest.raises(SystemExit):
        chapter.main(bad)
    assert bad[0] in capsys.readouterr().err
