"""A reader's own GPT, made as the book makes it, goes through the whole course.

It keeps no config and takes token ids alone, its blocks are an `nn.Sequential`, and the
causal mask is saved with the weights. Where a call of the book cannot be taken as it is
printed, one sentence says what to write instead.
"""

import functools
import importlib
import inspect
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiktoken
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import gpt_class_finetune as chapter_6
import previous_chapters
from argument_checks import check_prompt
from dataloader import SimpleTokenizerV1, create_dataloader_v1
from frozen_features import UpperModel, cache_features, collate_messages
from gpt import GPT_CONFIG_124M, GPTModel, generate_text_simple
from gpt_class_finetune import (
    SpamDataset,
    add_classification_head,
    calc_accuracy_loader,
    class_probabilities,
    classify_review,
    create_balanced_dataset,
    message_loader,
    plot_values,
    random_split,
    train_classifier_simple,
)
from gpt_download import download_and_load_gpt2, load_gpt2_params
from gpt_generate import (
    generate,
    load_weights_into_gpt,
    pad_left,
    text_to_token_ids,
    token_ids_to_text,
)
from gpt_instruction_finetuning import (
    InstructionDataset,
    custom_collate_fn,
    format_input,
    generate_answers,
)
from gpt_train import calc_loss_loader, plot_losses, train_model_simple
from kv_cache import KVCache
from ollama_evaluate import check_if_running
from resumable import resumable
from safetensors_files import assign

TOKENIZER = tiktoken.get_encoding("gpt2")
CONFIG = GPT_CONFIG_124M.copy()  # a dictionary, as in the book
CONFIG.update({"context_length": 48, "emb_dim": 16, "n_heads": 2, "n_layers": 2})
CONFIG.update({"drop_rate": 0.1, "qkv_bias": True})


# --- the reader's model ---------------------------------------------------------------


class OwnAttention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        width, length = cfg["emb_dim"], cfg["context_length"]
        self.num_heads = cfg["n_heads"]
        for name in ("W_query", "W_key", "W_value"):
            self.add_module(name, nn.Linear(width, width, bias=cfg["qkv_bias"]))
        self.out_proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(cfg["drop_rate"])
        self.register_buffer("mask", torch.ones(length, length).triu(1))  # saved

    def forward(self, x):
        B, T, D = x.shape
        layers = (self.W_query, self.W_key, self.W_value)
        split = (B, T, self.num_heads, D // self.num_heads)
        queries, keys, values = (one(x).view(split).transpose(1, 2) for one in layers)
        scores = queries @ keys.mT / queries.shape[-1] ** 0.5
        scores = scores.masked_fill(self.mask[:T, :T].bool(), -torch.inf)
        mixed = self.dropout(scores.softmax(dim=-1)) @ values
        return self.out_proj(mixed.transpose(1, 2).reshape(B, T, D))


class OwnNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:], self.scale, self.shift)


class OwnFeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * width, width),
        )

    def forward(self, x):
        return self.layers(x)


class OwnBlock(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.att, self.ff = OwnAttention(cfg), OwnFeedForward(cfg["emb_dim"])
        self.norm1, self.norm2 = (OwnNorm(cfg["emb_dim"]) for _ in "12")
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])

    def forward(self, x):
        x = x + self.drop_shortcut(self.att(self.norm1(x)))
        return x + self.drop_shortcut(self.ff(self.norm2(x)))


class OwnGPT(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        blocks = [OwnBlock(cfg) for _ in range(cfg["n_layers"])]
        self.trf_blocks = nn.Sequential(*blocks)
        self.final_norm = OwnNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, in_idx):
        positions = torch.arange(in_idx.shape[1], device=in_idx.device)
        x = self.drop_emb(self.tok_emb(in_idx) + self.pos_emb(positions))
        return self.out_head(self.final_norm(self.trf_blocks(x)))


@pytest.fixture
def own():
    torch.manual_seed(123)
    return OwnGPT(CONFIG)


def twin(model, path):
    """The course's model with the weights that the reader saved, in the book's way."""
    torch.save(model.state_dict(), path)
    ours = GPTModel(CONFIG)
    if model.out_head.weight.shape[0] == 2:
        ours.out_head = nn.Linear(CONFIG["emb_dim"], 2)
    ours.load_state_dict(torch.load(path, map_location="cpu"))
    return ours


def same(one, other):
    """Logits of two models are equal, up to rounding."""
    idx = torch.randint(50257, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return torch.allclose(one.eval()(idx), other.eval()(idx), atol=1e-5)


# --- chapters 4 and 5 -----------------------------------------------------------------


def loaders():
    text = "The lamp was lit, the lamp went out, and nobody said a word. " * 30
    both = {"batch_size": 2, "max_length": 16, "stride": 16, "num_workers": 0}
    return (
        create_dataloader_v1(text[:1500], drop_last=True, shuffle=True, **both),
        create_dataloader_v1(text[1500:], drop_last=False, shuffle=False, **both),
    )


def test_it_is_pretrained_and_shows_a_sample(own, capsys):
    optimizer = torch.optim.AdamW(own.parameters(), lr=0.01, weight_decay=0.1)
    train_losses, val_losses, tokens_seen = train_model_simple(
        own,
        *loaders(),
        optimizer,
        "cpu",
        num_epochs=2,
        eval_freq=5,
        eval_iter=5,
        start_context="The lamp",
        tokenizer=TOKENIZER,
    )
    assert val_losses[-1] < val_losses[0] - 1
    assert capsys.readouterr().out.count("\nThe lamp") == 2
    epochs_seen = torch.linspace(0, 2, len(train_losses))
    assert plot_losses(epochs_seen, tokens_seen, train_losses, val_losses).axes


def test_its_training_is_saved_and_goes_on(own, tmp_path):
    """Without a config the checkpoint belongs to the class that the reader wrote."""
    optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
    plan = ("cpu", 1, 100, 1, None, None)
    resumable(train_model_simple, tmp_path)(own, *loaders(), optimizer, *plan)
    again = OwnGPT(CONFIG)
    optimizer = torch.optim.SGD(again.parameters(), lr=0.1)
    train = resumable(train_model_simple, tmp_path, resume=True)
    train(again, *loaders(), optimizer, *plan)
    assert same(own, again)
    from pretrained import load_pretrained

    with pytest.raises(ValueError, match="load_checkpoint\\(folder, model\\)"):
        load_pretrained(tmp_path)


class Strange(nn.Module):
    """A model of which nobody can tell how much it reads."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50257, 50257, device="meta")


def test_a_model_without_sizes_is_told_before_it_is_trained():
    model = Strange()
    with pytest.raises(ValueError, match="Strange cannot be found .* self.cfg"):
        train_model_simple(
            model, [()], [()], None, "cpu", 1, 1, 1, "The lamp", TOKENIZER
        )


def test_it_writes_as_ours_does_with_its_saved_weights(own, tmp_path):
    ours = twin(own, tmp_path / "model.pth")
    assert same(own, ours)
    start = {"idx": text_to_token_ids("The lamp", TOKENIZER), "context_size": 48}
    greedy = generate_text_simple(model=own, max_new_tokens=60, **start)
    assert torch.equal(greedy, generate_text_simple(ours, max_new_tokens=60, **start))
    drawn = []
    for model in (own, ours):
        torch.manual_seed(7)
        sampled = generate(model, max_new_tokens=9, top_k=25, temperature=1.4, **start)
        drawn.append(token_ids_to_text(sampled, TOKENIZER))
    assert drawn[0] == drawn[1]
    own.train()
    with pytest.raises(ValueError, match="Dropout is on"):
        generate(own, max_new_tokens=1, **start)


def test_the_end_token_is_no_part_of_the_text(own):
    own.eval()
    idx = torch.tensor([[1, 2]])
    written = generate(own, idx, 6, 48)[0].tolist()
    end = written[-1]
    until = generate(own, idx, 6, 48, eos_id=end)[0].tolist()
    assert until == written[: written.index(end, 2)]


def test_padding_on_the_left_and_a_cache_are_refused_with_the_fix(own):
    own.eval()
    idx, real = pad_left([[5], [6, 7]], 0)
    with pytest.raises(ValueError, match="takes no attention_mask: .* of one length"):
        generate(own, idx, 2, 48, attention_mask=real)
    assert generate(own, idx, 2, 48, attention_mask=real | True).shape == (2, 4)
    with pytest.raises(ValueError, match="takes no cache"):
        generate_text_simple(own, idx, 2, 48, cache=KVCache(2))
    with pytest.raises(ValueError, match="reads at most context_length=48"):
        check_prompt(own, torch.ones(1, 60, dtype=torch.long), 2, 1024)


@pytest.mark.parametrize("tied", [False, True])
def test_gpt2s_weights_are_loaded(own, tmp_path, tied):
    D, V = CONFIG["emb_dim"], CONFIG["vocab_size"]
    shapes = {"wte.weight": (V, D), "wpe.weight": (48, D)}
    for layer in ("ln_f", *(f"h.{i}.ln_{j}" for i in (0, 1) for j in (1, 2))):
        shapes |= {f"{layer}.weight": (D,), f"{layer}.bias": (D,)}
    widths = {"attn.c_attn": (D, 3 * D), "attn.c_proj": (D, D)}
    widths |= {"mlp.c_fc": (D, 4 * D), "mlp.c_proj": (4 * D, D)}
    for i in (0, 1):
        for layer, shape in widths.items():
            shapes |= {f"h.{i}.{layer}.weight": shape}
            shapes |= {f"h.{i}.{layer}.bias": shape[1:]}
    file = tmp_path / "model.safetensors"
    save_file({name: torch.randn(shape) / 3 for name, shape in shapes.items()}, file)
    if tied:
        own.out_head.weight = own.tok_emb.weight
    mask = own.trf_blocks[0].att.mask.clone()
    load_weights_into_gpt(own, load_gpt2_params(file))
    assert same(own, load_weights_into_gpt(GPTModel(CONFIG), load_gpt2_params(file)))
    assert torch.equal(own.trf_blocks[0].att.mask, mask)
    assert (own.out_head.weight is own.tok_emb.weight) == tied


# --- chapter 6 ------------------------------------------------------------------------


@pytest.fixture
def csv_file(tmp_path):
    """Messages in the columns and with the classes that the book writes."""
    words = (["see you at the pond", "home soon"], ["win a prize now", "free, free"])
    table = [
        (kind, words[kind][i % 2] + " x" * (i % 5)) for kind in (0, 1) for i in range(9)
    ]
    df = pd.DataFrame([*table, (0, "one more")], columns=["Label", "Text"])
    balanced = create_balanced_dataset(df)
    assert balanced["Label"].value_counts().to_dict() == {0: 9, 1: 9}
    train, validation, test = random_split(balanced, 0.7, 0.1)
    assert [len(part) for part in (train, validation, test)] == [12, 1, 5]
    train.to_csv(tmp_path / "train.csv", index=None)
    return tmp_path / "train.csv"


def classifier(model):
    for parameter in model.parameters():
        parameter.requires_grad = False
    torch.manual_seed(123)
    model.out_head = nn.Linear(in_features=CONFIG["emb_dim"], out_features=2)
    for module in (model.trf_blocks[-1], model.final_norm):
        for parameter in module.parameters():
            parameter.requires_grad = True
    return model


def test_it_learns_to_classify(own, csv_file, tmp_path):
    model = classifier(own)
    dataset = SpamDataset(csv_file=csv_file, max_length=None, tokenizer=TOKENIZER)
    assert dataset.max_length == max(map(len, dataset.encoded))
    loader = message_loader(dataset, 4, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    train_losses, val_losses, train_accs, val_accs, examples_seen = (
        train_classifier_simple(
            model,
            loader,
            loader,
            optimizer,
            "cpu",
            num_epochs=8,
            eval_freq=3,
            eval_iter=5,
        )
    )
    assert train_losses[-1] < train_losses[0] / 2
    assert train_accs[-1] == val_accs[-1] == 1.0
    examples = torch.linspace(0, examples_seen, len(train_losses))
    epochs = torch.linspace(0, 8, len(train_losses))
    assert plot_values(epochs, examples, train_losses, val_losses).axes
    assert calc_accuracy_loader(loader, model, "cpu", num_batches=10) == 1.0

    model.train()  # and dropout is on: an answer by chance, if it were asked like that
    asked = ("free, free", model, TOKENIZER, "cpu", dataset.max_length)
    assert {classify_review(*asked) for _ in range(20)} == {"spam"}
    assert model.training

    # Padded or alone, with our masks or without: the same answers.
    ours = twin(model, tmp_path / "review_classifier.pth")
    ordered = message_loader(dataset, 5)
    theirs, right = class_probabilities(ordered, model, "cpu")
    assert torch.allclose(
        class_probabilities(ordered, ours, "cpu")[0], theirs, atol=1e-6
    )
    features = cache_features(model, dataset, 1, "cpu")
    upper = UpperModel(model, 1)
    found, _ = class_probabilities(message_loader(features, 5), upper, "cpu")
    assert torch.allclose(found, theirs, atol=1e-6)
    assert right.tolist() == dataset.targets


def test_add_classification_head_takes_it_too(own):
    assert add_classification_head(own, 3)(torch.ones(1, 4).long()).shape == (1, 4, 3)


# --- chapter 7 ------------------------------------------------------------------------


def test_it_is_tuned_on_instructions_and_answers(own, tmp_path, capsys):
    pairs = (("Name a colour.", "", "Red."), ("Repeat.", "hop", "hop"))
    names = ("instruction", "input", "output")
    data = [dict(zip(names, pair)) for pair in pairs] * 4
    collate = functools.partial(custom_collate_fn, device="cpu", allowed_max_length=48)
    dataset = InstructionDataset(data, TOKENIZER)
    settings = {"batch_size": 8, "collate_fn": collate, "num_workers": 0}
    train_loader = DataLoader(dataset, shuffle=True, drop_last=True, **settings)
    val_loader = DataLoader(dataset, shuffle=False, drop_last=False, **settings)
    before = calc_loss_loader(train_loader, own, "cpu", num_batches=5)
    train_losses, _, _ = train_model_simple(
        own,
        train_loader,
        val_loader,
        torch.optim.AdamW(own.parameters(), lr=0.01, weight_decay=0.1),
        "cpu",
        num_epochs=6,
        eval_freq=5,
        eval_iter=5,
        start_context=format_input(data[0]),
        tokenizer=TOKENIZER,
    )
    assert train_losses[-1] < before - 1
    assert capsys.readouterr().out.count("### Instruction") >= 6

    own.eval()
    token_ids = generate(
        model=own,
        idx=text_to_token_ids(format_input(data[0]), TOKENIZER),
        max_new_tokens=35,
        context_size=CONFIG["context_length"],
        eos_id=50256,
    )
    assert "<|endoftext|>" not in token_ids_to_text(token_ids, TOKENIZER)
    ours = twin(own, tmp_path / "sft.pth").eval()
    answers = generate_answers(data[:3], own.train(), TOKENIZER, max_new_tokens=6)
    assert answers == generate_answers(data[:3], ours, TOKENIZER, max_new_tokens=6)
    assert own.training


# --- what to write instead ------------------------------------------------------------


def pairs_of_the_book(own, where):
    return [(torch.ones(2, 4).long(), torch.tensor([0, 1]))]


def params_of_the_book(own, where):
    return {"blocks": [{"attn": {}}], "wte": np.zeros((3, 2))}


INSTEAD = {
    "a loader of pairs": (
        lambda own, _: train_classifier_simple(
            own,
            pairs_of_the_book(own, _),
            [()],
            torch.optim.SGD(own.parameters(), 0.1),
            "cpu",
            1,
            1,
            1,
        ),
        "make the loader with message_loader",
    ),
    "the accuracy of pairs": (
        lambda own, _: calc_accuracy_loader(pairs_of_the_book(own, _), own, "cpu"),
        "make the loader with message_loader",
    ),
    "the loss of a pair": (
        lambda own, _: chapter_6.calc_loss_batch(
            *pairs_of_the_book(own, _)[0], own, "cpu"
        ),
        "make the loader with message_loader",
    ),
    "chapter 5's loss for messages": (
        lambda own, _: calc_loss_loader(
            [collate_messages([(torch.tensor([1, 2]), 0)])], own, "cpu", num_batches=5
        ),
        "loss=calc_loss_batch, imported from gpt_class_finetune",
    ),
    "columns of other names": (
        lambda own, _: create_balanced_dataset(
            pd.DataFrame({"v1": ["a"], "v2": ["b"]})
        ),
        "There is no column 'label' among 'v1', 'v2'",
    ),
    "params of TensorFlow files": (
        lambda own, _: load_weights_into_gpt(own, params_of_the_book(own, _)),
        "params['blocks'] is list, no tensor, as in the params that the book makes",
    ),
    "a folder to download to": (
        lambda own, where: download_and_load_gpt2(model_size="124M", models_dir=where),
        "or leave the folder out, and the file is fetched",
    ),
    "the name of a process": (
        lambda own, _: check_if_running("ollama"),
        "or none for Ollama on this machine",
    ),
    "a vocabulary of another cut": (
        lambda own, _: SimpleTokenizerV1({"It": 0, "'": 1, "s": 2}).encode("It's"),
        '"It\'s" is not in the vocabulary: make it with split_into_tokens',
    ),
}


@pytest.mark.parametrize("case", INSTEAD)
def test_what_differs_on_purpose_says_what_to_write(own, case, tmp_path):
    call, sentence = INSTEAD[case]
    with pytest.raises((ValueError, TypeError, KeyError)) as problem:
        call(own.eval(), tmp_path)
    assert sentence in str(problem.value.args[0])


def test_arrays_are_assigned_as_tensors_are():
    left = nn.Parameter(torch.zeros(2, 3))
    assert torch.equal(assign(left, np.ones((2, 3))), torch.ones(2, 3))


def test_names_are_found_where_the_book_has_them():
    for name in previous_chapters.__all__:
        assert inspect.getmodule(getattr(previous_chapters, name)) is not None
        assert getattr(previous_chapters, name).__module__ != "previous_chapters"


PAGES = [Path(__file__).parents[2] / f"ch0{n}" / "README.md" for n in range(2, 8)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_table_for_readers_with_the_book_names_what_is_there(page):
    """In the right column, `module.name` and `from module import name` exist."""
    text = page.read_text(encoding="utf-8")
    table = text.split("**With the book at hand**")[1].split("\n\n")[1]
    rows = [row.split(" | ")[1] for row in table.splitlines()[2:]]
    assert len(rows) >= 2
    for cell in rows:
        for module, names in re.findall(r"`from (\w+) import ([\w, ]+)`", cell):
            for name in names.split(", "):
                assert hasattr(importlib.import_module(module), name), (module, name)
