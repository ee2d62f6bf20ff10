"""What the three training scripts share: options, parts, a run, its report (chapter 6).

Support: nothing here is taught. `train_gpt.py` and `train_bert_hf.py` hand a model to
`train_and_report`, and `train_sklearn_logreg.py` its answers to `report`; so all of
them learn from the same labels and are asked about the same reviews.

>>> parser = script_parser("train.py", "Train.", "reviews")
>>> read_options(parser, ["--labels", "100"]).labels
100
"""

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import script_tools
from download_prepare_dataset import LABELS, load_reviews, some
from frozen_features import learning
from gpt_class_finetune import (
    SpamDataset,
    bootstrap_interval,
    class_probabilities,
    message_loader,
    train_classifier_simple,
)
from message_data import class_number, read_messages, split_messages

FILE = "result.json"


def script_parser(name: str, about: str, out: str) -> argparse.ArgumentParser:
    """A parser with the options of all three; `out` is the folder below runs."""
    parser = argparse.ArgumentParser(prog=name, description=about)
    add, whole = parser.add_argument, script_tools.positive_int
    reviews = "CSV file with text, label, family and split (the course's snippets)"
    add("--data", type=Path, help=reviews)
    add("--labels", type=whole, default=1000, help="to learn from (%(default)s)")
    add("--most-test", type=whole, default=1000, help="reviews asked (%(default)s)")
    add("--seed", type=script_tools.seed, default=123, help="(%(default)s)")
    add("--out", type=Path, help=f"folder for the result (runs/{out})")
    script_tools.add_again(parser, "a result")
    parser.set_defaults(below=out)
    return parser


def add_training(
    parser: argparse.ArgumentParser, epochs: int, max_length: int = 120
) -> None:
    """The options of those that train."""
    add, whole = parser.add_argument, script_tools.positive_int
    add("--epochs", type=whole, default=epochs, help="(%(default)s)")
    add("--lr", type=script_tools.positive_float, help="learning rate (by --learn)")
    add("--batch-size", type=whole, default=16, help="reviews (%(default)s)")
    length = "tokens above which a review is cut at its end (%(default)s)"
    add("--max-length", type=whole, default=max_length, help=length)


def read_options(
    parser: argparse.ArgumentParser, arguments: list[str] | None
) -> argparse.Namespace:
    """The options, with the folder that is meant."""
    options = script_tools.parse(parser, arguments)
    if options.out is None:
        options.out = script_tools.runs_folder() / options.below
    return options


def read_parts(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Training, validation and test part, cut at random to what is asked for.

    Raises:
        ValueError: the file is no table of reviews, or one label is missing.
    """
    reviews = load_reviews() if options.data is None else read_messages(options.data)
    for label in reviews["label"]:
        class_number(label, LABELS)
    parts = split_messages(reviews)
    script_tools.folder_to_write(options.out)
    script_tools.place_for(options.out, FILE, options)
    most = (options.labels, max(options.most_test // 2, 1), options.most_test)
    few = [some(part, n, options.seed) for part, n in zip(parts, most)]
    few = [part.reset_index(drop=True) for part in few]
    if few[0]["label"].nunique() < 2:
        raise ValueError(
            f"All {len(few[0])} labels are {few[0]['label'].iloc[0]!r}: give more "
            "--labels, or another --seed."
        )
    print(
        f"{len(few[0])} labels to learn from, {len(few[1])} to watch, {len(few[2])} "
        f"for the test, of {len(set(films_of(few[2])))} other films."
    )
    return few[0], few[1], few[2]


def films_of(part: Any) -> Any:
    """The film of each review; without the column each is one of its own."""
    return part["family"] if "family" in part else part.index.astype(str)


def train_and_report(
    model: torch.nn.Module,
    tokenizer: Any,
    options: argparse.Namespace,
    parts: tuple[Any, Any, Any],
) -> None:
    """Train what learns of a classifier, ask it about the test part, write the result.

    Args:
        model: gives (B, T, C) logits from ids and mask, the same at each place.
        tokenizer: with tiktoken's `encode`.
        options: as of `script_parser` and `add_training`.
        parts: as of `read_parts`.
    """
    start, where = time.perf_counter(), script_tools.device()
    model.to(where)
    cut, generator = 0, torch.Generator().manual_seed(options.seed)
    torch.manual_seed(options.seed)  # dropout
    loaders = []
    for part, shuffle in zip(parts, (True, False, False)):
        data = SpamDataset(part, tokenizer, options.max_length, LABELS)
        cut += sum(len(ids) == options.max_length for ids in data.encoded)
        loaders.append(message_loader(data, options.batch_size, shuffle, generator))
    if cut:
        print(f"{cut} reviews reach --max-length {options.max_length}, and end there.")
    parameters = learning(model)
    size = sum(one.numel() for one in parameters)
    print(f"{size:,} of {sum(p.numel() for p in model.parameters()):,} weights learn.")
    optimizer = torch.optim.AdamW(parameters, lr=options.lr, weight_decay=0.1)
    steps = len(loaders[0])
    with script_tools.progress_bar(optimizer, steps * options.epochs):
        train_classifier_simple(
            *(model, loaders[0], loaders[1], optimizer, where),
            num_epochs=options.epochs,
            eval_freq=max(1, steps // 2),
            eval_iter=5,
        )
    shares, targets = class_probabilities(loaders[2], model, where)
    right = (shares.argmax(dim=-1) == targets).numpy()
    report(right, films_of(parts[2]), options, time.perf_counter() - start, size)


def report(
    right: Iterable[bool],
    films: Iterable[str],
    options: argparse.Namespace,
    seconds: float,
    learned: int,
) -> None:
    """Print and write how often a classifier is right.

    Args:
        right: for each review of the test part.
        films: which films are drawn anew for the interval.
        options: as of `script_parser`.
        seconds: of training and test.
        learned: how many numbers were learned.
    """
    right = np.asarray(right)
    low, high = bootstrap_interval(right, films)
    print(
        f"Test: {right.mean():.1%} of {len(right)} right, 95% interval {low:.1%} to "
        f"{high:.1%} (films drawn). {seconds:.0f} s."
    )
    result = {
        "accuracy": float(right.mean()),
        "interval": [low, high],
        "test": len(right),
        "learned": learned,
        "seconds": round(seconds, 1),
        "options": {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(options).items()
        },
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / FILE
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"The result is in {path}.")
