"""The command line of `gpt_instruction_finetuning.py`: options and files (chapter 7).

Support: nothing here is taught.

>>> read_options(["--seed", "7"], styles=["alpaca"]).seed
7
"""

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import script_tools
from answer_scores import score_by_category
from answer_scores_v2 import score_answer_v2
from instruction_data import SIZES, Entry, user_text

FILE = "tuned.safetensors"


def read_options(
    arguments: Sequence[str] | None, styles: Iterable[str]
) -> argparse.Namespace:
    """The options of the script, with what the preset says about those not given."""
    parser = argparse.ArgumentParser(
        prog="gpt_instruction_finetuning.py",
        description="Tune a pretrained language model on instructions and answers, and "
        "show what it answers before and after.",
    )
    add, whole = parser.add_argument, script_tools.positive_int
    data = parser.add_mutually_exclusive_group()
    data.add_argument(
        "--data",
        type=Path,
        help="JSON file of instructions, or one object a line (the course's own)",
    )
    data.add_argument("--alpaca", type=Path, help="the file of Stanford Alpaca instead")
    add(
        "--model",
        type=script_tools.model_name,
        default=os.environ.get("COURSE_MODEL", "").strip() or "smollm2-135m",
        help="a name for load_pretrained, or a checkpoint's folder (%(default)s)",
    )
    choice, rate = script_tools.preset, script_tools.positive_float
    add("--style", choices=styles, default="alpaca", help="format (%(default)s)")
    add("--preset", type=choice, default="", help="quick or full (COURSE_PRESET)")
    add("--epochs", type=whole, help="passes over the training part (by preset)")
    add("--trainable-blocks", type=whole, help="the upper ones (by preset)")
    add("--all-layers", action="store_true", help="let the whole model learn")
    add("--whole-text", action="store_true", help="learn the questions, too")
    add("--lr", type=rate, help="learning rate (5e-4; 5e-5 for all layers)")
    add("--batch-size", type=whole, default=8, help="entries (%(default)s)")
    add("--max-length", type=whole, default=256, help="tokens (%(default)s)")
    add("--max-new-tokens", type=whole, default=48, help="(%(default)s)")
    number = script_tools.seed
    add("--seed", type=number, default=123, help="for the order (%(default)s)")
    add("--out", type=Path, help="folder for the model (runs/ch07-instructions)")
    resume = "keep checkpoints, and go on from one"
    script_tools.add_again(parser, "a tuned model", resume)
    options = script_tools.parse(parser, arguments)
    sizes = SIZES[options.preset]
    options.epochs = options.epochs or sizes["epochs"]
    options.trainable_blocks = options.trainable_blocks or sizes["blocks"]
    if options.all_layers:
        options.trainable_blocks = None
    options.lr = options.lr or (5e-5 if options.all_layers else 5e-4)
    options.out = options.out or script_tools.runs_folder() / "ch07-instructions"
    return options


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What must be the same for a run to be gone on with, by the names of options."""
    names = ("model", "style", "whole_text", "lr", "batch_size", "max_length", "seed")
    return {f"--{name.replace('_', '-')}": getattr(options, name) for name in names}


def write_results(
    entries: list[Entry],
    before: list[str],
    after: list[str],
    losses: Sequence[list],
    best: Any,
    options: argparse.Namespace,
) -> None:
    """Print and write what was answered, and how much of it is right."""
    for entry, first, second in list(zip(entries, before, after))[:3]:
        print(f"\n{user_text(entry)}\n  before: {first}\n  after:  {second}")
    print()
    result = {"train_losses": losses[0], "val_losses": losses[1], "seed": options.seed}
    result["validation_loss"] = best.at_the_end()
    result["best_validation_loss"] = best.lowest
    result |= report(entries, {"before": before, "after": after})
    answered = [
        {**entry, "untuned_response": first, "model_response": second}
        for entry, first, second in zip(entries, before, after)
    ]
    for name, value in (("result", result), ("answers", answered)):
        text = json.dumps(value, indent=1, ensure_ascii=False)
        (options.out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(f"The model and its answers are in {options.out}.")
    best.say()


def report(entries: list[Entry], replies: dict[str, list[str]]) -> dict[str, list]:
    """Print how many replies are right, by a name for each model, and return tables.

    Version 2 of the rule decides. Only entries that list answers count; without any,
    nothing is scored.
    """
    result = {}
    for name, said in replies.items():
        scored = [(e, r) for e, r in zip(entries, said) if e.get("answers")]
        if not scored:
            print("No entry for the test lists answers, so nothing is scored.")
            break
        right = [score_answer_v2(entry, reply) for entry, reply in scored]
        table = score_by_category([entry for entry, _ in scored], right)
        total = table.iloc[-1]
        print(
            f"Right {name}: {total['share']:.1%} of {total['entries']}, "
            f"95% interval {total['low']:.1%} to {total['high']:.1%}."
        )
        result[name] = table.to_dict("records")
    return result
