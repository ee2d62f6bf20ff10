"""The command line of `gpt_class_finetune.py`: options and report (chapter 6).

Support: nothing here is taught.

>>> read_options(["--seed", "7"]).seed
7
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import script_tools

FILE = "classifier.safetensors"


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the script."""
    parser = argparse.ArgumentParser(
        prog="gpt_class_finetune.py",
        description="Fine-tune a pretrained language model to sort messages, and say "
        "how often it is right on messages that it has not seen.",
    )
    add, whole = parser.add_argument, script_tools.positive_int
    add(
        "--data",
        type=Path,
        help="CSV file with the columns text and label, and split if you have one, or "
        "the .zip file of the UCI SMS Spam Collection (the course's own messages)",
    )
    add(
        "--model",
        type=script_tools.model_name,
        default=os.environ.get("COURSE_MODEL", "").strip() or "smollm2-135m",
        help="a name for load_pretrained, or a checkpoint's folder (%(default)s)",
    )
    choice, rate = script_tools.preset, script_tools.positive_float
    add("--preset", type=choice, default="", help="quick or full (COURSE_PRESET)")
    add("--trainable-blocks", type=int, default=1, help="how many (%(default)s)")
    add("--blocks", type=whole, help="how many are kept, from below (three in five)")
    add("--epochs", type=whole, default=3, help="over the training part (%(default)s)")
    add("--lr", type=rate, default=1.5e-3, help="learning rate (%(default)s)")
    add("--batch-size", type=whole, default=16, help="messages (%(default)s)")
    add("--max-length", type=whole, default=120, help="tokens (%(default)s)")
    number = script_tools.seed
    add("--seed", type=number, default=123, help="for head and order (%(default)s)")
    add("--out", type=Path, help="folder for the classifier (runs/ch06-classifier)")
    script_tools.add_again(parser, "a classifier")
    options = script_tools.parse(parser, arguments)
    if options.out is None:
        options.out = script_tools.runs_folder() / "ch06-classifier"
    if options.trainable_blocks < 0:
        parser.error("--trainable-blocks is 0 or more.")
    return options


def blocks_kept(model: Any, options: argparse.Namespace) -> int:
    """How many of the model's blocks the classifier has; at least those that learn."""
    kept = options.blocks or max(2, 3 * len(model.trf_blocks) // 5)
    return max(kept, options.trainable_blocks)


def write_result(
    right: Any,
    interval: tuple[float, float],
    losses: Sequence[list],
    best: Any,
    options: argparse.Namespace,
    seconds: float,
) -> None:
    """Print and write how often the classifier is right on the test part.

    Args:
        right: (N,), for each message of the test part.
        interval: of its mean.
        losses: what `train_classifier_simple` returns.
        best: the `BestModel` of the run.
        options: as from `read_options`.
        seconds: of the whole run.
    """
    accuracy, (low, high) = right.float().mean().item(), interval
    print(
        f"Test: {accuracy:.1%} of {len(right)} right, "
        f"95% interval {low:.1%} to {high:.1%}. {seconds:.0f} s in all."
    )
    result = {
        "test_accuracy": accuracy,
        "interval": [low, high],
        "validation_loss": best.at_the_end(),
        "best_validation_loss": best.lowest,
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
    best.say()
