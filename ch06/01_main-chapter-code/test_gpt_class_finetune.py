"""Chapter 6's module: the data, the head, frozen features, padding, saving, loading.

The models are tiny and their messages made up here; the course's own data set has its
tests in `data/test_messages.py`.
"""

import csv
import math
import re
import string
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import gpt_class_finetune as chapter
from checkpoints import read_learned
from gpt import GPT_CONFIG_124M, GPTModel, initialise_like_gpt2
from gpt_class_finetune import (
    SpamDataset,
    UpperModel,
    accuracy_interval,
    add_classification_head,
    ask_in_words,
    cache_features,
    calc_accuracy_loader,
    calc_loss_batch,
    class_probabilities,
    classify_review,
    collate_messages,
    create_balanced_dataset,
    encode_message,
    freeze_below,
    last_token_logits,
    load_classifier,
    message_loader,
    plot_values,
    random_split,
    read_messages,
    read_uci_messages,
    save_classifier,
    split_messages,
    train_classifier_simple,
)
from gpt_train import calc_loss_loader, save_checkpoint
from llama import SMOLLM2_135M, LlamaModel
from pretrained import Pretrained

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


def frame(number=40):
    """Messages that a glance tells apart: spam shouts WIN, the others say hello."""
    rows = []
    for i in range(number // 2):
        rows.append((f"hello {i} see you at {i % 7}", "wanted"))
        rows.append((f"WIN {i} euros NOW {i % 5}", "spam"))
    return pd.DataFrame(rows, columns=["text", "label"])


def write_csv(path, rows, header=("text", "label")):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


# --- Data ----------------------------------------------------------------------------


def test_commas_quotes_line_breaks_and_other_scripts_survive(tmp_path):
    texts = [
        'say "hi", now',
        "two\nlines",
        "\u0645\u0631\u062d\u0628\u0627",
        "\U0001f389",
    ]
    path = write_csv(tmp_path / "m.csv", [(text, "spam") for text in texts])
    assert read_messages(path)["text"].tolist() == texts


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("text,label\nhi,spam\n", encoding="utf-8-sig")
    assert list(read_messages(path).columns) == ["text", "label"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "row 1: there is no column 'text'"),
        (b"message,label\nhi,spam\n", "no column 'text'"),
        (b"text,class\nhi,spam\n", "no column 'label'"),
        (b"text,label\n", "no message"),
        (b"text,label\nhi,spam\nwell, well,spam\n", "row 3: 3 columns"),
        (b"text,label\nhi\n", "row 2: 1 columns where the header has 2 (look at col"),
        (b"text,label\nhi,spam\n  ,spam\n", "row 3, column text: it is empty"),
        (b"text,label\nhi,\n", "row 2, column label: it is empty"),
        (b'text,label\n"never closed,spam\n', "row 2, which ends in line 2"),
        (b'text,label\n"a"b,spam\n', "row 2"),
        (b"text,label\n\xff\xfe,spam\n", "no UTF-8 text (byte 11)"),
    ],
)
def test_a_malformed_table_names_row_and_column(tmp_path, content, named):
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(named)) as caught:
        read_messages(path)
    assert "bad.csv" in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_balanced_means_as_many_of_each_and_nothing_invented():
    df = frame(40).iloc[list(range(40)) + []]
    df = pd.concat([df, df[df["label"] == "wanted"]]).reset_index(drop=True)
    balanced = create_balanced_dataset(df)
    assert balanced["label"].value_counts().to_dict() == {"wanted": 20, "spam": 20}
    assert set(balanced["text"]) <= set(df["text"])
    assert balanced.index.tolist() == list(range(40))
    assert not balanced.equals(create_balanced_dataset(df, seed=5))


def test_the_three_parts_share_no_row_and_lose_none():
    """A wrong split gave a NaN loss elsewhere: parts are non-empty and disjoint."""
    df = frame(50)
    parts = random_split(df, 0.7, 0.1)
    assert [len(part) for part in parts] == [35, 5, 10]
    together = pd.concat(parts)["text"]
    assert sorted(together) == sorted(df["text"])
    assert together.is_unique
    assert parts[0]["label"].tolist() != df["label"].tolist()[:35]  # shuffled
    with pytest.raises(ValueError, match="leave a part empty"):
        random_split(df, 0.7, 0.3)
    with pytest.raises(ValueError, match="6 messages are too few"):
        random_split(frame(6), 0.7, 0.1)


def test_a_split_in_the_file_is_obeyed_and_a_wrong_one_told():
    df = frame(12).assign(split=["train"] * 8 + ["validation"] * 2 + ["test"] * 2)
    parts = split_messages(df)
    assert [len(part) for part in parts] == [8, 2, 2]
    assert parts[2]["text"].tolist() == df["text"].tolist()[10:]
    for wrong in (["train"] * 12, ["train"] * 10 + ["test", "dev"]):
        with pytest.raises(ValueError, match="one of train, validation and test"):
            split_messages(df.assign(split=wrong))


UCI_LINES = (
    "ham\tSee you at \u00a35 lunch\tthen\n"
    "spam\tCall \x94 09 now!\x85 Really\r\n"
    "ham\tok\n"
)


@pytest.mark.parametrize("packed", [True, False])
def test_the_uci_collection_is_read_from_archive_and_file(tmp_path, packed):
    """A small file in the real format: tabs in texts, odd separators, line ends."""
    path = tmp_path / ("sms.zip" if packed else "SMSSpamCollection")
    if packed:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme", "about")
            archive.writestr("SMSSpamCollection", UCI_LINES.encode())
    else:
        path.write_bytes(UCI_LINES.encode())
    df = read_uci_messages(path)
    assert df["label"].tolist() == ["wanted", "spam", "wanted"]
    assert df["text"].tolist() == [
        "See you at \u00a35 lunch\tthen",
        "Call \x94 09 now!\x85 Really",
        "ok",
    ]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "no message"),
        (b"ham\tok\nhan\tok\n", "line 2"),
        (b"ham\t\n", "line 1"),
        (b"ham ok\n", "line 1"),
        (b"ham\t\xff\xff\n", "not the SMS Spam Collection"),
        (b"PK\x05\x06" + b"\0" * 18, "not the SMS Spam Collection"),
    ],
)
def test_a_damaged_collection_is_told(tmp_path, content, named):
    path = tmp_path / "sms.zip"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=named):
        read_uci_messages(path)


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
    few = accuracy_interval([True] * 45 + [False] * 5)
    many = accuracy_interval([True] * 900 + [False] * 100)
    for low, high in (few, many):
        assert low < 0.9 < high
    assert many[1] - many[0] < (few[1] - few[0]) / 3
    # The normal approximation of a share of 0.9 among 1000: plus and minus 0.0186.
    assert many[0] == pytest.approx(0.8814, abs=0.003)
    assert many[1] == pytest.approx(0.9186, abs=0.003)
    assert accuracy_interval([True] * 9) == (1.0, 1.0)


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
    learning = [p for p in upper.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.01)
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
    assert examples_seen == [4, 12, 20]
    assert len(train_accs) == len(val_accs) == 2
    assert train_accs == val_accs  # the same messages, and nothing learned
    assert capsys.readouterr().out.count("accuracy: train") == 2
    fig = plot_values([0, 1, 2], examples_seen, train_losses, val_losses, "loss")
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


def test_a_classifier_file_that_does_not_fit_is_told(base):
    model, path = base
    with pytest.raises(ValueError, match="train a classifier first"):
        load_classifier(path)
    save_classifier(path, model, "tiny")
    notes, good = read_learned(path, "classifier")[1], load_file(path)

    def rewritten(tensors):
        save_file(tensors, path, {"classifier": chapter.json.dumps(notes)})
        return path

    wrong = {**good, "final_norm.scale": torch.ones(5)}
    with pytest.raises(ValueError, match=r"final_norm.scale of shape \(5,\).*\(16,\)"):
        load_classifier(rewritten(wrong))
    with pytest.raises(ValueError, match="nothing of that name"):
        load_classifier(rewritten({**good, "extra": torch.ones(1)}))
    del good["out_head.bias"]
    with pytest.raises(ValueError, match="lacks out_head.bias"):
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
    assert chapter.main(["--data", str(data), "--out", str(out)]) == 1
    message = capsys.readouterr().err
    assert named in message
    assert message.count("\n") == 1
    assert not out.exists()


def test_the_uci_archive_is_balanced_and_a_table_is_taken_as_it_is(tmp_path):
    lines = [f"ham\thello {i}" for i in range(6)] + ["spam\tWIN", "spam\tNOW"]
    with zipfile.ZipFile(tmp_path / "sms.zip", "w") as archive:
        archive.writestr("SMSSpamCollection", "\n".join(lines) + "\n")
    df = chapter._load_messages(tmp_path / "sms.zip")
    assert df["label"].value_counts().to_dict() == {"wanted": 2, "spam": 2}
    table = write_csv(tmp_path / "m.csv", [("a", "spam"), ("b", "spam"), ("c", "x")])
    assert len(chapter._load_messages(table)) == 3


@pytest.mark.parametrize("bad", [["--epochs", "0"], ["--preset", "huge"]])
def test_the_script_refuses_bad_options(bad, capsys):
    with pytest.raises(SystemExit) as caught:
        chapter.main(bad)
    assert caught.value.code == 2
    assert bad[0] in capsys.readouterr().err


def test_an_unknown_preset_of_the_environment_is_no_full_one(monkeypatch, capsys):
    monkeypatch.setenv("COURSE_PRESET", "Full")
    assert chapter._options([]).preset == "full"
    monkeypatch.setenv("COURSE_PRESET", "huge")
    with pytest.raises(SystemExit):
        chapter._options([])
    assert "COURSE_PRESET is 'huge': set it to quick or full" in capsys.readouterr().err


def test_without_out_the_classifier_goes_where_the_course_keeps_its_runs(
    tmp_path, monkeypatch
):
    """Wherever the reader stands, and not into that folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COURSE_RUNS", raising=False)
    root = Path(chapter.__file__).parents[2]
    assert chapter._options([]).out == root / "runs" / "ch06-classifier"
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "mine"))
    assert chapter._options([]).out == tmp_path / "mine" / "ch06-classifier"
