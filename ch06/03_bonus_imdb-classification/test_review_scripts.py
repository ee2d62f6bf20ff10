"""The three scripts learn from the same labels, and say what is wrong with a file."""

import json

import pandas as pd
import pytest
import tiktoken
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import train_bert_hf
import train_gpt
import train_sklearn_logreg
from gpt import GPT_CONFIG_124M, GPTModel, initialise_like_gpt2
from gpt_class_finetune import classify_review
from gpt_train import save_checkpoint
from review_bench import SmallGPT

WORDS = ("good", "bad", "lamp", "wick", "very", "film", "[", "]", "SEP")
MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
SMALL = (
    ("vocab_size", 50257),
    ("context_length", 32),
    ("emb_dim", 16),
    ("n_heads", 2),
    ("n_layers", 2),
    ("drop_rate", 0.1),
    ("qkv_bias", False),
)


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """Reviews that one word decides: 60 to learn from, 20 to watch, 40 for the test."""
    path = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    rows = []
    for i in range(120):
        split = "train" if i < 60 else "validation" if i < 80 else "test"
        word, label = ("good", "positive") if i % 2 else ("bad", "negative")
        text = f"very {word} " + ("film " if i % 3 else "lamp wick ") * (1 + i % 4)
        rows.append((text.strip(), label, f"film {i // 4}", split))
    columns = ["text", "label", "family", "split"]
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)
    return path


def options(reviews, out, *more):
    return ["--data", str(reviews), "--labels", "50", "--out", str(out), *more]


def result(out):
    return json.loads((out / "result.json").read_text(encoding="utf-8"))


# --- Words ----------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--letters"]])
def test_words_are_learned_and_named(reviews, tmp_path, capsys, more):
    assert train_sklearn_logreg.main(options(reviews, tmp_path, *more)) == 0
    said = capsys.readouterr().out
    assert "50 labels to learn from, 20 to watch, 40 for the test, of 10 other" in said
    assert "The larger class: 50.0%." in said
    assert "bad" in said.partition("Most negative: ")[2].partition("\n")[0]
    assert result(tmp_path)["accuracy"] == 1.0
    assert result(tmp_path)["test"] == 40


def test_a_result_is_not_lost_by_mistake(reviews, tmp_path, capsys):
    arguments = options(reviews, tmp_path)
    assert train_sklearn_logreg.main(arguments) == 0
    assert train_sklearn_logreg.main(arguments) == 2
    assert "--overwrite starts over" in capsys.readouterr().err
    assert train_sklearn_logreg.main([*arguments, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("text,label\n,positive\n", "row 2"),
        ("text,label\ngood,wonderful\n", "'wonderful', but the classes are"),
        ("review,label\ngood,positive\n", "no column 'text'"),
        (
            "text,label,split\na,positive,train\nb,positive,validation\nc,negative,test\n",
            "All 1 labels are 'positive'",
        ),
    ],
)
def test_a_file_that_is_wrong_gets_one_sentence(tmp_path, capsys, content, words):
    path = tmp_path / "mine.csv"
    path.write_text(content, encoding="utf-8")
    assert train_sklearn_logreg.main(options(path, tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1


# --- A GPT ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny random GPT of five blocks, saved as a base model."""
    torch.manual_seed(0)
    tied = {"n_layers": 5, "drop_rate": 0.0, "tie_weights": True}
    config = GPT_CONFIG_124M | dict(SMALL) | tied
    folder = tmp_path_factory.mktemp("base")
    model = initialise_like_gpt2(GPTModel(config))
    save_checkpoint(folder / "base", model, tokenizer=tiktoken.get_encoding("gpt2"))
    return folder / "base"


def test_the_small_gpt_learns_the_deciding_word(reviews, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_gpt, "SmallGPT", lambda rates: SmallGPT(rates, SMALL))
    more = ("--epochs", "6", "--lr", "0.01", "--max-length", "6")
    assert train_gpt.main(options(reviews, tmp_path, *more)) == 0
    assert result(tmp_path)["accuracy"] == 1.0
    said = capsys.readouterr().out
    assert "reviews reach --max-length 6, and end there." in said


LEARNED = {
    "head": 2 * 16 + 2 + 2 * 16,  # head and last norm
    "last-block": 2 * 16
    + 2
    + 2 * 16
    + (4 * 16 * 16 + 16 + 8 * 16 * 16 + 5 * 16 + 4 * 16),
    "lora": 2 * 16 + 2 + 3 * 8 * (4 * 32 + 2 * (16 + 64)),
}


@pytest.mark.parametrize("learn", LEARNED)
def test_what_learns_is_what_was_chosen(reviews, base, tmp_path, learn):
    more = ("--model", str(base), "--learn", learn, "--epochs", "1")
    assert train_gpt.main(options(reviews, tmp_path, *more)) == 0
    assert result(tmp_path)["learned"] == LEARNED[learn]
    assert result(tmp_path)["options"]["lr"] == train_gpt.RATES[learn]


def test_everything_learns_and_the_upper_blocks_are_cut_off(base):
    model, _ = train_gpt.prepare(str(base), "all", 1)
    assert len(model.model.trf_blocks) == 3
    assert all(one.requires_grad for one in model.parameters())


TEXTS = [
    "Long " * 100_000,
    "Good.<br /><br />Really.",
    "\u6620\u753b\u306f\u9577\u3044",
    "\u0641\u064a\u0644\u0645 \U0001f3ac",
    "<|endoftext|>",
]


@pytest.mark.parametrize("text", TEXTS)
def test_any_review_is_read(base, text):
    model, tokenizer = train_gpt.prepare(str(base), "head", 1)
    labels = ("negative", "positive")
    found = classify_review(text, model, tokenizer, "cpu", 30, labels)
    assert found in labels


@pytest.mark.parametrize("text", ["", "   "[:0]])
def test_an_empty_review_gets_one_sentence(base, text):
    model, tokenizer = train_gpt.prepare(str(base), "head", 1)
    with pytest.raises(ValueError, match="has no token to read"):
        classify_review(text, model, tokenizer, "cpu", 30)


# --- Encoders -------------------------------------------------------------------------

KINDS = {
    "bert": (BertForSequenceClassification, BertConfig, {}),
    "roberta": (
        RobertaForSequenceClassification,
        RobertaConfig,
        {"max_position_embeddings": 66, "pad_token_id": 0},
    ),
    "distilbert": (
        DistilBertForSequenceClassification,
        DistilBertConfig,
        {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2},
    ),
}


def save_encoder(folder, kind):
    """A tiny random encoder and its tokenizer, as `save_pretrained` writes them."""
    model, config, more = KINDS[kind]
    sizes = dict(
        vocab_size=len(MARKS) + len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    model(config(**(sizes | more))).save_pretrained(folder)
    ids = {word: number for number, word in enumerate((*MARKS, *WORDS))}
    plain = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def encoder(request, tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp(request.param), request.param)


def test_an_encoder_from_a_folder_learns_the_deciding_word(encoder, reviews, tmp_path):
    more = ("--model", str(encoder), "--epochs", "8", "--lr", "0.01")
    arguments = options(reviews, tmp_path, *more, "--max-length", "20")
    assert train_bert_hf.main(arguments) == 0
    assert result(tmp_path)["accuracy"] == 1.0


def test_logits_are_those_of_transformers_and_padding_changes_none(encoder):
    model, tokens = train_bert_hf.load_encoder(encoder, 20)
    model.eval()
    ids = torch.tensor([tokens.encode("very good film")])
    padded = torch.cat([ids, torch.zeros(1, 3, dtype=torch.long)], dim=1)
    with torch.no_grad():
        expected = model.model(input_ids=ids).logits
        plain, with_padding = model(ids), model(padded, padded > 0)
    assert torch.allclose(plain[:, 0], expected, atol=1e-6)
    assert torch.allclose(with_padding[:, -1], expected, atol=1e-5)


def test_a_long_review_keeps_its_last_mark_and_typed_marks_are_text(encoder):
    _, tokens = train_bert_hf.load_encoder(encoder, 8)
    assert tokens.encode("film " * 100_000) == [2, *[9] * 6, 3]
    typed = tokens.encode("bad [SEP] good")
    assert typed.count(3) == 1
    assert typed[-1] == 3
    assert tokens.encode("") == [2, 3]


@pytest.mark.parametrize("learn", train_bert_hf.RATES)
def test_what_of_an_encoder_learns(encoder, learn):
    model, _ = train_bert_hf.load_encoder(encoder, 20)
    train_bert_hf.learn_only(model, learn)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert any("classifier" in name for name in names)
    assert any("layer.1." in name for name in names) == (learn != "head")
    assert any("layer.0." in name for name in names) == (learn == "all")


def test_a_folder_that_is_no_encoder_gets_one_sentence(reviews, tmp_path, capsys):
    arguments = ("--model", str(tmp_path / "nowhere"))
    assert train_bert_hf.main(options(reviews, tmp_path / "out", *arguments)) == 2
    assert "is not a folder with a config.json" in capsys.readouterr().err
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="broken cannot be loaded: "):
        train_bert_hf.load_encoder(broken, 20)


def test_more_tokens_than_the_encoder_can_read_are_refused(encoder):
    with pytest.raises(ValueError, match="--max-length is 500, and the model"):
        train_bert_hf.load_encoder(encoder, 500)
