"""Which classifier is right how often? The tables of chapter 6.

    python3 -m course run ch06/01_main-chapter-code/experiments.py

Every method sees the same training messages and is judged on the same test messages,
those of `data/messages.csv`. What is trained is trained with five seeds, which set the
new head's weights and the order of the messages:

* the larger class, always; a logistic regression on words (both without chance);
* the language model asked in words, before any training;
* the reader's own small GPT of chapter 5, all of it trained;
* SmolLM2 with a new head: the head (and the last norm) only, one block more (the
  chapter's default), two blocks more, everything;
* the default read at another place: the first token, or the last position with the
  padding taken for text.

`results/accuracy.csv` gets a row for each method: the mean over the seeds, and a 95%
interval for which both the messages and the seeds were drawn anew (bootstrap).
`results/seeds.csv` has each run, `results/mistakes.csv` the test messages that the
default got wrong and how often, `results/mcnemar.csv` the comparison with the logistic
regression, answer by answer. Takes an hour and three quarters, 4 GB of memory.
`--only NAME` runs one method and keeps the other rows.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from course import assets, runs, tables
from frozen_features import UpperModel, cache_features, freeze_below, learning
from gpt_class_finetune import (
    SpamDataset,
    add_classification_head,
    ask_in_words,
    bootstrap_interval,
    calc_loss_batch,
    class_probabilities,
    message_loader,
)
from gpt_train import train_model_simple
from message_data import LABELS, read_messages, split_messages
from pretrained import load_pretrained

RESULTS = Path(__file__).parent / "results"
SEEDS = (1, 2, 3, 4, 5)
MAX_LENGTH = 120
PADDED_LENGTH = 64  # tokens of a row with its padding; few messages are longer
DEFAULT = "last block"
EPOCHS = {"head only": 10, "own small GPT": 3, "everything": 1}
USUAL_EPOCHS = 4
LEARNING_RATES = {"head only": 3e-3, "everything": 5e-5}
USUAL_RATE = 3e-4
BATCH_SIZE = 16


# --- Methods without chance ----------------------------------------------------------


def word_regression():
    """A logistic regression on the counts of words, scikit-learn's defaults."""
    return make_pipeline(CountVectorizer(), LogisticRegression(max_iter=1000))


def majority(parts, _):
    """The larger class of the training part, for every message."""
    return [("", np.full(len(parts[2]), numbers(parts[0]).mean() > 0.5, dtype=int))]


def logistic(parts, _):
    """Trained on the training part alone."""
    regression = word_regression().fit(parts[0]["text"], numbers(parts[0]))
    return [("", regression.predict(parts[2]["text"]))]


def in_words(parts, options):
    """SmolLM2 as it is, asked whether a message is spam."""
    model, tokenizer, _ = load_pretrained(options.model)
    answers = [
        ask_in_words(text, model, tokenizer, "cpu") > 0 for text in parts[2]["text"]
    ]
    return [("", np.array(answers, dtype=int))]


def numbers(part):
    """The classes of some messages as an array of numbers."""
    return np.array([LABELS.index(label) for label in part["label"]])


# --- Methods that are trained --------------------------------------------------------


class FromFeatures(UpperModel):
    """Upper blocks whose own features can be cached in turn."""

    @property
    def trf_blocks(self):
        return self.model.trf_blocks

    @property
    def final_norm(self):
        return self.model.final_norm


class Trained:
    """A pretrained model with a new head, trained once for each seed.

    Args:
        name: the row's name.
        blocks: how many blocks learn besides the head; None for everything.
        place: "last" real token, "first" token, or the last "padded" position.
        base: a function that gives what `load_pretrained` takes, for the options.
    """

    def __init__(self, name, blocks, place="last", base=lambda options: options.model):
        self.name, self.blocks, self.place, self.base = name, blocks, place, base

    def __call__(self, parts, options):
        model, tokenizer, _ = load_pretrained(self.base(options))
        add_classification_head(model, len(LABELS))
        freeze_below(model, self.blocks)
        data = [self.read(part, tokenizer) for part in parts]
        if self.blocks is not None:
            data = self.features(model, data, options)
        if self.place == "first":  # it has seen nothing but itself
            data = [[(row[:1], target) for row, target in one] for one in data]
        start = [p.detach().clone() for p in learning(model)]
        found = []
        for seed in options.seeds_of(self):
            with torch.no_grad():
                for parameter, first in zip(learning(model), start):
                    parameter.copy_(first)
            found.append((seed, self.train(model, data, seed, options)))
        return found

    def features(self, model, data, options):
        """What the frozen blocks make of all messages.

        The features below the two upper blocks serve all methods that read the same
        tokens: those that freeze more blocks go on from there.
        """
        if self.place == "padded":
            return [cache_features(model, one, self.blocks, "cpu") for one in data]
        if options.features is None:
            options.features = [cache_features(model, one, 2, "cpu") for one in data]
        if self.blocks == 2:
            return options.features
        upper = FromFeatures(model, 2)
        return [
            cache_features(upper, one, self.blocks, "cpu") for one in options.features
        ]

    def read(self, part, tokenizer):
        """Pairs of ids and class; padded as text where the padding is to be read."""
        dataset = SpamDataset(part, tokenizer, MAX_LENGTH)
        if self.place != "padded":
            return dataset
        pad = torch.full((PADDED_LENGTH,), tokenizer.eot_token)
        return [
            (torch.cat((ids, pad))[:PADDED_LENGTH], target) for ids, target in dataset
        ]

    def train(self, model, data, seed, options):
        """Train from the base model's weights; return the classes of the test part."""
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        add_classification_head(model, len(LABELS), generator)
        freeze_below(model, self.blocks)
        if self.blocks is not None:
            model = UpperModel(model, self.blocks)
        loaders = [
            message_loader(one, BATCH_SIZE, shuffle, generator)
            for one, shuffle in zip(data, (True, False, False))
        ]
        rate = LEARNING_RATES.get(self.name, USUAL_RATE)
        optimizer = torch.optim.AdamW(learning(model), lr=rate, weight_decay=0.1)
        train_model_simple(
            model,
            loaders[0],
            loaders[1],
            optimizer,
            "cpu",
            num_epochs=options.epochs or EPOCHS.get(self.name, USUAL_EPOCHS),
            eval_freq=len(loaders[0]),
            eval_iter=4,
            start_context=None,
            tokenizer=None,
            loss=calc_loss_batch,
        )
        probabilities, _ = class_probabilities(loaders[2], model, "cpu")
        return probabilities.argmax(dim=1).numpy()


def small_gpt(options):
    """The reader's own GPT of chapter 5, made if it is missing."""
    return options.small_gpt or runs.get("ch05-gpt")


METHODS = {
    "larger class": majority,
    "words, logistic regression": logistic,
    "asked in words": in_words,
    "own small GPT": Trained("own small GPT", None, base=small_gpt),
    "head only": Trained("head only", 0),
    DEFAULT: Trained(DEFAULT, 1),
    "two blocks": Trained("two blocks", 2),
    "first token": Trained("first token", 1, "first"),
    "padded position": Trained("padded position", 1, "padded"),
    "everything": Trained("everything", None),
}


# --- Tables --------------------------------------------------------------------------


def mcnemar(ours, theirs):
    """Of the answers in which only one is right: how many, and the exact p-value.

    Args:
        ours: (seeds, N) bool, right or not.
        theirs: (1, N) bool; the same for every seed.

    Source: McNemar, "Note on the sampling error of the difference between correlated
    proportions or percentages", 1947; pooled over seeds, whose answers depend on one
    another, so it is a description more than a test. `message_p` therefore asks of
    each message once, by the majority of the seeds.
    """
    theirs = np.broadcast_to(theirs, ours.shape)
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    most = ours.mean(axis=0) > 0.5
    ones = int((most & ~theirs[0]).sum()), int((theirs[0] & ~most).sum())
    return {
        "only_ours_right": only_ours,
        "only_theirs_right": only_theirs,
        "pooled_p": f"{p_value(only_ours, only_theirs):.3g}",
        "messages_only_ours": ones[0],
        "messages_only_theirs": ones[1],
        "message_p": f"{p_value(*ones):.3g}",
    }


def p_value(more, less):
    """How often a fair coin falls at least so unevenly, either way (exact)."""
    n = more + less
    tail = sum(math.comb(n, k) for k in range(min(more, less) + 1)) / 2**n
    return min(1.0, 2 * tail) if n else math.nan


def replaced(path, rows):
    """Write rows in place of those of the same methods, in the order of `METHODS`."""
    tables.replace(path, rows, "method", list(METHODS))


def record(name, found, parts, seconds, options):
    """Write what a method answered; return which answers were right."""
    targets = numbers(parts[2])
    right = np.stack([answers == targets for _, answers in found])
    low, high = bootstrap_interval(right)
    row = {
        "method": name,
        "seeds": len(found),
        "messages": len(targets),
        "accuracy": f"{100 * right.mean():.2f}",
        "low": f"{100 * low:.2f}",
        "high": f"{100 * high:.2f}",
        "seconds": f"{seconds:.0f}",
        "machine": tables.facts()["machine"],
        "data_sha256": options.sha256[:12],
    }
    each = [
        {"method": name, "seed": seed, "accuracy": f"{100 * one.mean():.2f}"}
        for (seed, _), one in zip(found, right)
    ]
    replaced(options.out / "accuracy.csv", [row])
    replaced(options.out / "seeds.csv", each)
    print(
        f"{name}: {row['accuracy']} % ({row['low']} to {row['high']}), "
        f"{len(found)} runs, {seconds:.0f} s",
        flush=True,
    )
    return right


def compare(right, parts, options):
    """The default beside the logistic regression, and its mistakes."""
    test = parts[2]
    regression = logistic(parts, options)[0][1] == numbers(test)
    tables.write(
        options.out / "mcnemar.csv",
        [
            {
                "ours": DEFAULT,
                "theirs": "words, logistic regression",
                **mcnemar(right, regression[None]),
            }
        ],
    )
    wrong = (~right).sum(axis=0)
    mistakes = [
        {
            "wrong_of_seeds": f"{wrong[i]} of {len(right)}",
            "label": test["label"][i],
            "kind": test["kind"][i],
            "regression": "right" if regression[i] else "wrong",
            "text": test["text"][i],
        }
        for i in np.argsort(-wrong, kind="stable")
        if wrong[i] > 0
    ]
    none = [
        dict.fromkeys(("wrong_of_seeds", "label", "kind", "regression", "text"), "")
    ]
    tables.write(options.out / "mistakes.csv", mistakes or none)


# --- As a script ---------------------------------------------------------------------


class Options(argparse.Namespace):
    """The script's options."""

    features = None  # of all messages, below the two upper blocks

    def seeds_of(self, method):
        """Everything is trained with fewer seeds: each takes minutes."""
        return self.seeds[:1] if method.name == "everything" else self.seeds


def main(arguments=None):
    """Compute the tables; return the exit code."""
    parser = tables.each_method(__doc__, RESULTS, METHODS, SEEDS)
    parser.add_argument("--epochs", type=int, help="for every trained method")
    parser.add_argument("--small-gpt", help="checkpoint of a GPT (that of chapter 5)")
    options = parser.parse_args(arguments, Options())
    path = options.data or assets.fetch("messages")
    options.sha256 = assets.sha256_of(path)
    options.out.mkdir(parents=True, exist_ok=True)
    parts = split_messages(read_messages(path))
    for name in options.only or METHODS:
        start = time.perf_counter()
        found = METHODS[name](parts, options)
        seconds = time.perf_counter() - start
        right = record(name, found, parts, seconds, options)
        if name == DEFAULT:
            compare(right, parts, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
