"""Film reviews by a language model that reads from left to right (chapter 6, bonus).

`--model small` is chapter 4's GPT with random weights; `--model smollm2-135m` or
another name for `load_pretrained` is a pretrained one, without its upper two fifths, as
in chapter 6. Of that `--learn` says what is trained: the new head alone, the last
block, LoRA beside all matrices, or everything.

>>> main(["--learn", "nothing"])
Traceback (most recent call last):
SystemExit: 2
"""

import sys
from typing import Any

import script_tools
from frozen_features import MeanOfTokens, freeze_below
from gpt_class_finetune import add_classification_head
from pretrained import load_pretrained
from review_bench import LORA, SmallGPT, WholeModel, small_tokenizer
from review_script import (
    add_training,
    read_options,
    read_parts,
    script_parser,
    train_and_report,
)

RATES = {"head": 3e-3, "last-block": 1.5e-3, "lora": 1.5e-3, "all": 1e-4}
SMALL_RATE = 1.5e-3


def prepare(name: str, learn: str, seed: int) -> tuple[Any, Any]:
    """A classifier in which the chosen part learns, and its tokenizer.

    Args:
        name: "small", or what `load_pretrained` takes.
        learn: one of `RATES`; the small model learns with all its weights.
        seed: for what is drawn.
    """
    if name == "small":
        return MeanOfTokens(SmallGPT(()).start(seed)), small_tokenizer()
    model, tokenizer, _ = load_pretrained(name)
    model.trf_blocks = model.trf_blocks[: max(2, 3 * len(model.trf_blocks) // 5)]
    if learn in ("head", "last-block"):
        add_classification_head(model, 2)
        freeze_below(model, 0 if learn == "head" else 1)
    else:
        rank = tuple(LORA.values()) if learn == "lora" else None
        WholeModel((), rank).prepared(model, seed)
    return MeanOfTokens(model), tokenizer


def main(arguments: list[str] | None = None) -> int:
    """Train a classifier and report; return the exit code."""
    parser = script_parser(
        "train_gpt.py",
        "Sort film reviews with a GPT of your own, or with a pretrained model.",
        "ch06-reviews-gpt",
    )
    name = "small, or a name or folder for load_pretrained (%(default)s)"
    kind = script_tools.model_name
    parser.add_argument("--model", type=kind, default="small", help=name)
    what = "what of a pretrained model learns (%(default)s)"
    parser.add_argument("--learn", choices=RATES, default="last-block", help=what)
    add_training(parser, epochs=3)
    options = read_options(parser, arguments)
    if options.lr is None:
        small = options.model == "small"
        options.lr = SMALL_RATE if small else RATES[options.learn]
    return script_tools.run(_train, options)


def _train(options):
    parts = read_parts(options)
    model, tokenizer = prepare(options.model, options.learn, options.seed)
    train_and_report(model, tokenizer, options, parts)


if __name__ == "__main__":
    sys.exit(main())
