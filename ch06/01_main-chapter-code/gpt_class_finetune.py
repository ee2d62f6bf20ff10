"""Fine-tuning a language model to sort messages into classes (chapter 6).

* `read_messages`, `read_uci_messages`, `create_balanced_dataset`, `random_split`,
  `split_messages`: labelled texts and their three parts (section 6.2);
* `encode_message`, `SpamDataset`, `collate_messages`, `message_loader`: token ids,
  padding and its mask (6.3);
* `accuracy_interval`, `ask_in_words`: how sure a score is, and the language model asked
  before it is tuned (6.4);
* `add_classification_head`, `freeze_below`, `last_token_logits`, `calc_loss_batch`:
  what of the model learns, and which place of a message is asked (6.5);
* `cache_features`, `Recall`, `UpperModel`: frozen blocks are run once (6.6);
* `class_probabilities`, `calc_accuracy_loader`, `train_classifier_simple`,
  `plot_values`: training, and how well it goes (6.7, 6.8);
* `classify_review`, and `save_classifier` and `load_classifier`: what was learned, in a
  small file (6.9).

A head on the last token of a pretrained language model is Radford et al., "Improving
Language Understanding by Generative Pre-Training", 2018, section 3.2. The classifier
reads the last token that is *real*: the only one that has seen the whole message and
nothing else. So padding, which serves the batch and not the message, changes no answer.

Left out: pooling over all tokens, models that read in both directions, class weights.

>>> import torch
>>> logits = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]]])  # (B, T, C)
>>> last_token_logits(logits, torch.tensor([[True, True, False]]))  # (B, C)
tensor([[3., 4.]])

Run as a script it trains and evaluates a classifier of messages:
`python gpt_class_finetune.py --data my.csv`, columns text and label.

Shapes: B messages in a batch, T tokens, D model width, C classes.
"""

import argparse
import copy
import csv
import io
import itertools
import json
import os
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import script_tools
from checkpoints import put_learned, read_learned, save_learned
from gpt_train import (
    plot_losses,
    train_model_simple,
)
from pretrained import load_pretrained

LABELS = ("wanted", "spam")
_NOTES = "classifier"  # the entry of a file's metadata that describes it

# --- Labelled messages ---------------------------------------------------------------


def read_messages(path):
    """Labelled messages from a CSV file with the columns `text` and `label`.

    Args:
        path: a file in UTF-8 with a header line; other columns (`kind`, `family`,
            `split`) are kept.

    Returns:
        A `pandas.DataFrame` of strings, one row for each message, in file order.

    Raises:
        ValueError: the file is no such table; the message names row and column. Rows
            are counted as records, the header being row 1.
    """
    rows = _read_rows(path)
    header = rows[0] if rows else []
    for column in ("text", "label"):
        if column not in header:
            raise ValueError(
                f"{path}, row 1: there is no column {column!r} in the header "
                f"({', '.join(map(repr, header)) or 'it is empty'}): the first line "
                "must name the columns text and label."
            )
    for number, row in enumerate(rows[1:], start=2):
        _check_row(path, number, row, header)
    if len(rows) == 1:
        raise ValueError(f"{path} has a header and no message: add rows below it.")
    return pd.DataFrame(rows[1:], columns=header)


def read_uci_messages(path):
    """The messages of the UCI SMS Spam Collection, from its archive or the file in it.

    Its lines hold a label, `ham` or `spam`, a tabulator and the text. `ham` becomes
    `wanted`, so that every function of this chapter takes the result as it takes the
    course's own messages. The collection is Almeida, Hidalgo and Yamakami,
    "Contributions to the Study of SMS Spam Filtering", 2011; licence CC BY 4.0.

    Args:
        path: the downloaded .zip file, or `SMSSpamCollection` out of it.

    Returns:
        A data frame with the columns `text` and `label`.

    Raises:
        ValueError: the file is damaged or another; the message names the line.
    """
    rows = []
    for number, line in enumerate(_uci_lines(path), start=1):
        label, tabulator, text = line.partition("\t")
        if label not in _UCI_LABELS or not tabulator or not text.strip():
            raise ValueError(
                f"{path}, line {number}: it must hold ham or spam, a tabulator and a "
                "text; download the collection again."
            )
        rows.append((text, _UCI_LABELS[label]))
    if not rows:
        raise ValueError(f"{path} holds no message: download the collection again.")
    return pd.DataFrame(rows, columns=["text", "label"])


def create_balanced_dataset(df, seed=123):
    """As many rows of each label as the rarest one has, drawn at random.

    Args:
        df: messages with a `label` column.
        seed: for the drawing; the rows keep their order.

    Returns:
        The chosen rows, renumbered from 0.
    """
    fewest = df["label"].value_counts().min()
    chosen = df.groupby("label").sample(n=fewest, random_state=seed)
    return chosen.sort_index().reset_index(drop=True)


def random_split(df, train_frac, validation_frac, seed=123):
    """The rows in random order, cut into training, validation and test part.

    Fit for data without families; related messages belong on one side, and where a
    file says so in a column `split`, that is to be used.

    Args:
        df: messages.
        train_frac, validation_frac: shares, both above 0, their sum below 1.
        seed: for the order.

    Returns:
        Three data frames, renumbered from 0.

    Raises:
        ValueError: the shares, or too few rows, leave nothing for a part.
    """
    if not (
        train_frac > 0 and validation_frac > 0 and train_frac + validation_frac < 1
    ):
        raise ValueError(
            f"train_frac={train_frac} and validation_frac={validation_frac} leave a "
            "part empty: give shares such as 0.7 and 0.1, so that the rest is the test."
        )
    shuffled = df.sample(frac=1, random_state=seed).reset_index(drop=True)
    first = int(len(df) * train_frac)
    second = first + int(len(df) * validation_frac)
    parts = shuffled[:first], shuffled[first:second], shuffled[second:]
    if not all(map(len, parts)):
        raise ValueError(
            f"{len(df)} messages are too few for three parts: give at least 10."
        )
    return tuple(part.reset_index(drop=True) for part in parts)


def split_messages(df):
    """Training, validation and test part, as the column `split` says.

    Without that column the rows are drawn by `random_split`, 70, 10 and 20 per cent.

    Raises:
        ValueError: a part is empty, or `split` holds another word.
    """
    if "split" not in df.columns:
        return random_split(df, 0.7, 0.1)
    names = ("train", "validation", "test")
    parts = [df[df["split"] == name].reset_index(drop=True) for name in names]
    if sum(map(len, parts)) != len(df) or not all(map(len, parts)):
        raise ValueError(
            f"The column split holds {', '.join(sorted(df['split'].unique()))}: every "
            "row needs one of train, validation and test, and each must occur."
        )
    return tuple(parts)


class SpamDataset(Dataset):
    """Messages as token ids, each with the number of its class.

    Args:
        messages: a path for `read_messages`, or its data frame.
        tokenizer: with `encode`; the text is never read for special tokens.
        max_length: tokens above which a message is cut at its end; None to keep all.
        labels: the classes, in the order of the model's outputs.

    Raises:
        ValueError: a message has no token, or a label that is not in `labels`.
    """

    def __init__(self, messages, tokenizer, max_length=None, labels=LABELS):
        if not isinstance(messages, pd.DataFrame):
            messages = read_messages(messages)
        self.labels = tuple(labels)
        self.texts = messages["text"].tolist()
        self.encoded = [encode_message(t, tokenizer, max_length) for t in self.texts]
        self.targets = [_class_number(name, labels) for name in messages["label"]]

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        return torch.tensor(self.encoded[index]), self.targets[index]


def encode_message(text, tokenizer, max_length=None):
    """Token ids of a message, at most `max_length` of them, counted from its start.

    Raises:
        ValueError: nothing is left to read: the text is empty, or holds only
            characters that the tokenizer does not know.
    """
    ids = tokenizer.encode(text, allowed_special=set(), disallowed_special=())
    if not ids:
        raise ValueError(
            f"The message {text!r} has no token to read: give a text with at "
            "least one character that can be seen."
        )
    return ids[:max_length]


def collate_messages(batch, pad_token_id=0, length=None):
    """A batch of messages, padded on the right, with the mask of what is real.

    Args:
        batch: pairs of a message, (T,) ids or (T, D) features, and its class.
        pad_token_id: what fills the gaps; any id will do, as no answer depends on it.
        length: tokens of every row; None takes the longest message of the batch.

    Returns:
        `(inputs, attention_mask, targets)`: (B, T) or (B, T, D); (B, T) bool, True for
        a real token; (B,).
    """
    messages, targets = zip(*batch)
    lengths = torch.tensor([len(message) for message in messages])
    T = int(lengths.max()) if length is None else length
    inputs = messages[0].new_full((len(batch), T, *messages[0].shape[1:]), pad_token_id)
    for row, message in zip(inputs, messages):
        row[: len(message)] = message
    attention_mask = torch.arange(T) < lengths[:, None]  # (B, T)
    return inputs, attention_mask, torch.tensor(targets)


def message_loader(dataset, batch_size, shuffle=False, generator=None):
    """Batches of `collate_messages` from pairs of ids, or features, and class.

    Args:
        dataset: a `SpamDataset`, or what `cache_features` returns.
        batch_size: messages in a batch, B.
        shuffle: whether each pass takes them in another order.
        generator: a `torch.Generator` for the order; None takes torch's own.
    """
    return DataLoader(
        dataset,
        batch_size,
        shuffle,
        generator=generator,
        collate_fn=collate_messages,
    )


# --- The model -----------------------------------------------------------------------


def add_classification_head(model, num_classes, generator=None):
    """Put a head of C outputs in place of that over the vocabulary; return the model.

    The new head has the dtype and device of the model, and starts small, so that the
    first loss is near ln C.

    Args:
        model: a model with the interface of `GPTModel`; it changes.
        num_classes: C, 2 or more.
        generator: a `torch.Generator` for the new weights; None takes torch's own.
    """
    like = model.tok_emb.weight
    head = nn.Linear(like.shape[1], num_classes, dtype=like.dtype, device=like.device)
    nn.init.normal_(head.weight, std=0.02 / like.shape[1] ** 0.5, generator=generator)
    nn.init.zeros_(head.bias)
    model.out_head = head
    return model


def freeze_below(model, trainable_blocks):
    """Let only the last blocks, the last norm and the head learn; return the model.

    Args:
        model: a model with the interface of `GPTModel`; it changes.
        trainable_blocks: how many, 0 to L; None lets everything learn.
    """
    L = len(model.trf_blocks)
    if trainable_blocks is not None and not 0 <= trainable_blocks <= L:
        raise ValueError(
            f"trainable_blocks is {trainable_blocks}, but the model has {L} "
            f"blocks: give a number from 0 to {L}, or None for the whole model."
        )
    model.requires_grad_(trainable_blocks is None)
    if trainable_blocks is not None:
        learning = [*model.trf_blocks[L - trainable_blocks :]]
        for module in (*learning, model.final_norm, model.out_head):
            module.requires_grad_(True)
    return model


def last_token_logits(logits, attention_mask=None):
    """The logits at the last real token of each message.

    Args:
        logits: (B, T, C).
        attention_mask: (B, T), True for a real token; padding may be on either side.
            None takes the last position, whatever it is.

    Returns:
        (B, C).
    """
    if attention_mask is None:
        return logits[:, -1]
    places = torch.arange(logits.shape[1], device=logits.device)
    last = (places * attention_mask).argmax(dim=1)  # (B,)
    return logits[torch.arange(len(logits), device=logits.device), last]


# --- Loss and accuracy ---------------------------------------------------------------


def calc_loss_batch(input_batch, attention_mask, target_batch, model, device):
    """Mean cross-entropy of the classes of a batch, in nats.

    Args:
        input_batch: what the model reads, (B, T) ids or, for an `UpperModel`,
            (B, T, D) features.
        attention_mask: (B, T), True for a real token.
        target_batch: (B,), class numbers.
        model: with a head of C classes.
        device: where the batch is moved.
    """
    mask = attention_mask.to(device)
    logits = last_token_logits(model(input_batch.to(device), mask), mask)  # (B, C)
    return F.cross_entropy(logits.float(), target_batch.to(device))


@torch.no_grad()
def class_probabilities(data_loader, model, device, num_batches=None):
    """What the model thinks of each message, and what is right.

    Args:
        data_loader: batches as of `collate_messages`.
        model: with a head of C classes; in evaluation mode meanwhile.
        device: where the batches are moved.
        num_batches: how many of them at most; None for all.

    Returns:
        `(probabilities, targets)`, (N, C) float32 and (N,), in the loader's order.

    Raises:
        ValueError: there is no message.
    """
    was_training = model.training
    model.eval()
    logits, targets = [], []
    for inputs, mask, classes in itertools.islice(data_loader, num_batches):
        mask = mask.to(device)
        logits.append(last_token_logits(model(inputs.to(device), mask), mask).cpu())
        targets.append(classes)
    model.train(was_training)
    if not targets:
        raise ValueError("There is no message to classify: the loader is empty.")
    return torch.cat(logits).float().softmax(dim=-1), torch.cat(targets)


def calc_accuracy_loader(data_loader, model, device, num_batches=None):
    """The share of messages, 0 to 1, whose likeliest class is the right one.

    Arguments and errors are those of `class_probabilities`.
    """
    probabilities, targets = class_probabilities(
        data_loader, model, device, num_batches
    )
    return (probabilities.argmax(dim=-1) == targets).float().mean().item()


def accuracy_interval(right, level=0.95, rounds=2000, seed=0):
    """Between which accuracies the truth may well lie: a bootstrap interval.

    The messages are drawn again with replacement, as many as there are; the interval
    holds the middle 95 per cent of the accuracies found.

    Args:
        right: (N,) bool, whether each answer was right.
        level: share of the draws in the interval.
        rounds: how many draws.
        seed: for the draws.

    Returns:
        `(low, high)`, shares from 0 to 1.

    Source: Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979.
    """
    right = np.asarray(right, dtype=float)
    draws = np.random.default_rng(seed).integers(len(right), size=(rounds, len(right)))
    tail = (1 - level) / 2
    low, high = np.quantile(right[draws].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


# --- Frozen blocks run once ----------------------------------------------------------


@torch.no_grad()
def cache_features(model, dataset, trainable_blocks, device, batch_size=16):
    """What the frozen blocks make of each message, computed once.

    Args:
        model: a model with the interface of `GPTModel`, its head already small; in
            evaluation mode meanwhile, so without dropout.
        dataset: pairs of ids and class, such as a `SpamDataset`.
        trainable_blocks: how many blocks stand above the features.
        device: where the model is.
        batch_size: messages of about the same length that are run together.

    Returns:
        A list in the order of the dataset: pairs of (T, D) features and the class.
    """
    watched = [*model.trf_blocks, model.final_norm][
        len(model.trf_blocks) - trainable_blocks
    ]
    caught = []
    handle = watched.register_forward_pre_hook(
        lambda module, inputs: caught.append(inputs[0])
    )
    was_training = model.training
    model.eval()
    items = [dataset[index] for index in range(len(dataset))]
    order = sorted(range(len(items)), key=lambda index: len(items[index][0]))
    found = {}
    try:
        for start in tqdm(range(0, len(order), batch_size), "features", disable=None):
            chosen = order[start : start + batch_size]
            ids, mask, targets = collate_messages([items[index] for index in chosen])
            model(ids.to(device), mask.to(device))
            for index, row, length in zip(chosen, caught.pop(), mask.sum(dim=1)):
                found[index] = row[:length].cpu().clone(), items[index][1]
    finally:
        handle.remove()
        model.train(was_training)
    return [found[index] for index in range(len(items))]


class Recall(nn.Module):
    """Stands where the frozen blocks stood, and gives back what they once computed."""

    def __init__(self):
        super().__init__()
        self.features = None  # (B, T, D), set before each call

    def forward(self, x, *arguments):
        """(B, T, D): the stored features, whatever comes in."""
        return self.features


class UpperModel(nn.Module):
    """The upper blocks, norm and head of a model, reading features of the lower part.

    They are the model's own, not copies: what trains here trains there.

    Args:
        model: a model with the interface of `GPTModel`.
        trainable_blocks: how many blocks are left to run, 0 to L.
    """

    def __init__(self, model, trainable_blocks):
        super().__init__()
        self.recall = Recall()
        upper = model.trf_blocks[len(model.trf_blocks) - trainable_blocks :]
        self.model = copy.copy(model)
        self.model._modules = dict(model._modules)
        self.model.trf_blocks = nn.ModuleList([self.recall, *upper])

    def forward(self, features, attention_mask=None):
        """Logits, (B, T, D) to (B, T, C): those of the whole model for the same ids.

        The ids are not needed any more. Zeros stand in for them, and what the model
        makes of those is thrown away by `Recall`.
        """
        self.recall.features = features
        ids = torch.zeros(features.shape[:2], dtype=torch.long, device=features.device)
        return self.model(ids, attention_mask)


# --- Training ------------------------------------------------------------------------


def train_classifier_simple(
    model,
    train_loader,
    val_loader,
    optimizer,
    device,
    num_epochs,
    eval_freq,
    eval_iter,
    **options,
):
    """Chapter 5's training loop with the loss of classes, and accuracy each epoch.

    Args:
        model, train_loader, val_loader, optimizer, device, num_epochs, eval_freq,
            eval_iter: as in `train_model_simple`.
        options: passed on to it: `scheduler`, `after_step` and so on.

    Returns:
        `(train_losses, val_losses, train_accs, val_accs, examples_seen)`: losses and
        messages seen, one number for each evaluation, and the accuracy after each
        epoch, on all messages of a loader if `eval_iter` is None, otherwise on that
        many batches.
    """
    train_accs, val_accs = [], []

    def note_accuracy():
        for loader, accs in ((train_loader, train_accs), (val_loader, val_accs)):
            accs.append(calc_accuracy_loader(loader, model, device, eval_iter))
        train, val = train_accs[-1], val_accs[-1]
        print(f"accuracy: train {train:.1%}, validation {val:.1%}")

    train_losses, val_losses, examples_seen = train_model_simple(
        model,
        train_loader,
        val_loader,
        optimizer,
        device,
        num_epochs,
        eval_freq,
        eval_iter,
        start_context=None,
        tokenizer=None,
        loss=calc_loss_batch,
        after_epoch=note_accuracy,
        **options,
    )
    return train_losses, val_losses, train_accs, val_accs, examples_seen


def plot_values(epochs_seen, examples_seen, train_values, val_values, label="loss"):
    """Draw training and validation values over epochs, messages seen on top.

    All four are sequences of the same length. Returns the matplotlib figure.
    """
    fig = plot_losses(epochs_seen, examples_seen, train_values, val_values)
    below, above = fig.axes
    below.set_ylabel(label)
    above.set_xlabel("messages seen")
    return fig


# --- Using, saving and loading -------------------------------------------------------


@torch.no_grad()
def classify_review(text, model, tokenizer, device, max_length=None, labels=LABELS):
    """The label of one message.

    Args:
        text: the message; special tokens in it are text.
        model: a classifier, in evaluation mode.
        tokenizer: the model's.
        device: where the model is.
        max_length: tokens above which the message is cut at its end, as in training;
            None reads it whole.
        labels: the classes, in the order of the model's outputs.

    Raises:
        ValueError: the message has no token, or more than the model can read.
    """
    ids = torch.tensor([encode_message(text, tokenizer, max_length)], device=device)
    logits = last_token_logits(model(ids))  # (1, C): nothing is padded
    return labels[logits.argmax().item()]


def save_classifier(path, model, base, labels=LABELS, max_length=None):
    """Write what was learned, and what it belongs to, to one safetensors file.

    Only the parameters that could learn are written; `load_classifier` takes the
    others from the base model. The file appears whole or not at all.

    Args:
        path: the file to write; its folder is made if needed.
        model: the classifier, from `add_classification_head` and `freeze_below`.
        base: the name under which `load_pretrained` gave the model, or the folder of a
            checkpoint of chapter 5.
        labels, max_length: those of `classify_review`.
    """
    notes = {"base": str(base), "labels": list(labels), "max_length": max_length}
    save_learned(path, model, _NOTES, notes)


def load_classifier(path, device="cpu"):
    """A saved classifier: `(model, tokenizer, labels, max_length)`.

    Args:
        path: a file that `save_classifier` wrote.
        device: where to put the model.

    Returns:
        The model in evaluation mode, and what `classify_review` takes besides.

    Raises:
        ValueError: the file is damaged, or does not belong to its base model.
    """
    learned, notes = read_learned(path, _NOTES)
    _check_head(path, learned)
    model, tokenizer, _ = load_pretrained(notes["base"])
    add_classification_head(model, len(notes["labels"]))
    put_learned(path, learned, model)
    model = model.to(device).eval()
    return model, tokenizer, tuple(notes["labels"]), notes["max_length"]


# --- The language model asked in words -----------------------------------------------

_QUESTION = (
    "Is the following message spam, that is, advertising or an attempt to deceive? "
    "Answer with one word, Yes or No.\n\nMessage: {text}"
)


@torch.no_grad()
def ask_in_words(text, model, tokenizer, device):
    """How much likelier "Yes" is than "No" as the answer to: is this spam?

    Args:
        text: the message.
        model: a language model, with the head that it was pretrained with.
        tokenizer: the model's; one that can chat puts the question as a user's.
        device: where the model is.

    Returns:
        The difference of the two logits, above 0 for yes.
    """
    question = _QUESTION.format(text=text)
    if hasattr(tokenizer, "render_chat"):
        ids = tokenizer.render_chat([{"role": "user", "content": question}])
        answers = ("Yes", "No")
    else:
        ids = tokenizer.encode(question + "\n\nAnswer:", disallowed_special=())
        answers = (" Yes", " No")
    yes, no = (tokenizer.encode(answer)[0] for answer in answers)
    logits = model(torch.tensor([ids], device=device))[0, -1]  # (V,)
    return (logits[yes] - logits[no]).item()


# --- What callers get wrong, and files -----------------------------------------------


_UCI_LABELS = {"ham": "wanted", "spam": "spam"}
_UCI_FILE = "SMSSpamCollection"


def _uci_lines(path):
    """The lines of the collection, without what ends them."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                text = archive.read(_UCI_FILE).decode("utf-8")
        else:
            text = Path(path).read_text(encoding="utf-8")
    except (KeyError, UnicodeDecodeError, zipfile.BadZipFile, zlib.error):
        raise ValueError(
            f"{path} is not the SMS Spam Collection, or damaged: it must be its .zip "
            f"file, or {_UCI_FILE} out of it; download it again."
        ) from None
    # Only line feeds end a line: some messages hold characters that also could.
    return [line.removesuffix("\r") for line in text.split("\n") if line.strip()]


def _read_rows(path):
    """The records of a CSV file, the header first; blank lines are left out."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as problem:
        raise ValueError(
            f"{path} is no UTF-8 text (byte {problem.start}): save it as UTF-8."
        ) from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        rows.extend(row for row in reader if row)
    except csv.Error as problem:
        raise ValueError(
            f"{path}, row {len(rows) + 1}, which ends in line {reader.line_num}: "
            f"{problem}; put a text with commas, quotes or line breaks into double "
            'quotes, and write a quote inside it twice ("").'
        ) from None
    return rows


def _check_row(path, number, row, header):
    """Raise unless a row fits the header, and the two needed columns are filled."""
    if len(row) != len(header):
        column = header[len(row)] if len(row) < len(header) else f"{len(header) + 1}"
        raise ValueError(
            f"{path}, row {number}: {len(row)} columns where the header has "
            f"{len(header)} (look at column {column}); put a text with commas into "
            "double quotes."
        )
    for column in ("text", "label"):
        if not row[header.index(column)].strip():
            raise ValueError(
                f"{path}, row {number}, column {column}: it is empty; fill it, or "
                "delete the row."
            )


def _class_number(label, labels):
    """The place of a label among the classes."""
    if label not in labels:
        raise ValueError(
            f"There is a label {label!r}, but the classes are "
            f"{', '.join(map(repr, labels))}: correct the label, or give labels=."
        )
    return labels.index(label)


def _check_head(path, learned):
    """Raise unless a classifier's file holds its head."""
    lacking = [f"out_head.{part}" for part in ("weight", "bias")]
    lacking = [name for name in lacking if name not in learned]
    if lacking:
        raise ValueError(f"{path} lacks {' and '.join(lacking)}: train it again.")


# --- As a script ---------------------------------------------------------------------


def main(arguments=None):
    """Train a classifier of messages, evaluate and save it; return the exit code.

    Args:
        arguments: the words after the program's name; None takes them from `sys.argv`.
    """
    options = _options(arguments)
    try:
        return _train_and_report(options)
    except (ValueError, OSError, RuntimeError, ImportError) as problem:
        print(f"gpt_class_finetune.py: {problem}", file=sys.stderr)
        return 1


def _options(arguments):
    """The script's options."""
    parser = argparse.ArgumentParser(
        prog="gpt_class_finetune.py",
        description="Fine-tune a pretrained language model to sort messages, and say "
        "how often it is right on messages that it has not seen.",
    )
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        help="CSV file with the columns text and label, and split if you have one, or "
        "the .zip file of the UCI SMS Spam Collection (the course's own messages)",
    )
    add(
        "--model",
        default=os.environ.get("COURSE_MODEL", "").strip() or "smollm2-135m",
        help="a name for load_pretrained, or a checkpoint's folder (%(default)s)",
    )
    add("--preset", type=script_tools.preset, default="", help="quick or full")
    add("--trainable-blocks", type=int, default=1, help="how many (%(default)s)")
    add("--epochs", type=int, help="passes over the training part (by preset)")
    add("--lr", type=float, default=5e-4, help="learning rate (%(default)s)")
    add("--batch-size", type=int, default=16, help="messages (%(default)s)")
    add("--max-length", type=int, default=120, help="cut above (%(default)s tokens)")
    add(
        "--seed",
        type=script_tools.seed,
        default=123,
        help="for head and order (%(default)s)",
    )
    add("--out", type=Path, help="folder for the classifier (runs/ch06-classifier)")
    options = parser.parse_args(arguments)
    for name in ("epochs", "batch_size", "max_length"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more.")
    if options.out is None:
        options.out = script_tools.runs_folder() / "ch06-classifier"
    return options


def _train_and_report(options):
    start = time.perf_counter()
    messages = _load_messages(options.data)
    labels = _labels_of(messages)
    parts = split_messages(messages)
    if options.preset == "quick":
        parts = [_some_of_each(part, most) for part, most in zip(parts, _QUICK)]
    print(
        f"{len(parts[0])} messages to learn from, {len(parts[1])} to watch, "
        f"{len(parts[2])} for the test; classes: {', '.join(labels)}.",
        flush=True,
    )
    model, tokenizer, _ = load_pretrained(options.model)
    generator = torch.Generator().manual_seed(options.seed)
    add_classification_head(model, len(labels), generator)
    freeze_below(model, options.trainable_blocks)
    print(f"Running the frozen blocks of {options.model} once ...", flush=True)
    loaders = []
    for part, shuffle in zip(parts, (True, False, False)):
        dataset = SpamDataset(part, tokenizer, options.max_length, labels)
        features = cache_features(model, dataset, options.trainable_blocks, "cpu")
        loaders.append(message_loader(features, options.batch_size, shuffle, generator))
    upper = UpperModel(model, options.trainable_blocks)
    losses = _train(upper, loaders, options)
    save_classifier(
        options.out / "classifier.safetensors",
        model,
        options.model,
        labels,
        options.max_length,
    )
    _report(upper, loaders[2], losses, options, time.perf_counter() - start)
    return 0


def _train(model, loaders, options):
    """Train on the first loader, watch the second; return losses and accuracies."""
    epochs = options.epochs or (4 if options.preset == "quick" else 6)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=options.lr, weight_decay=0.1)
    return train_classifier_simple(
        model,
        *loaders[:2],
        optimizer,
        "cpu",
        num_epochs=epochs,
        eval_freq=max(1, len(loaders[0]) // 2),
        eval_iter=5,
    )


def _report(model, test_loader, losses, options, seconds):
    """Print and write how often the classifier is right on the test part."""
    probabilities, targets = class_probabilities(test_loader, model, "cpu")
    right = probabilities.argmax(dim=-1) == targets
    low, high = accuracy_interval(right)
    accuracy = right.float().mean().item()
    print(
        f"Test: {accuracy:.1%} of {len(right)} right, "
        f"95% interval {low:.1%} to {high:.1%}. {seconds:.0f} s in all."
    )
    result = {
        "test_accuracy": accuracy,
        "interval": [low, high],
        "train_losses": losses[0],
        "val_losses": losses[1],
        "train_accuracies": losses[2],
        "val_accuracies": losses[3],
        "seed": options.seed,
        "seconds": round(seconds, 1),
    }
    path = options.out / "result.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"The classifier is in {options.out}. Chapter 6 says how to use it.")


_QUICK = (400, 80, 200)  # messages of each part, half of each class


def _some_of_each(part, most):
    """At most so many rows, as many of each label, the first ones of the file."""
    each = most // part["label"].nunique()
    return part.groupby("label").head(each).reset_index(drop=True)


def _labels_of(messages):
    """The classes: the course's in their order, otherwise alphabetically."""
    found = sorted(messages["label"].unique())
    if len(found) < 2:
        raise ValueError(
            f"All messages have the label {found[0]!r}: there is nothing to tell apart."
        )
    return LABELS if set(found) == set(LABELS) else tuple(found)


def _load_messages(path):
    """The messages of a file, or the course's own; the UCI collection's balanced."""
    if path is None:
        from course.assets import fetch

        path = fetch("messages")
    elif zipfile.is_zipfile(path):
        return create_balanced_dataset(read_uci_messages(path))
    return read_messages(path)


if __name__ == "__main__":
    sys.exit(main())
