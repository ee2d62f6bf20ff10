"""The command line of `gpt_train.py`: options, loaders, files and report (chapter 5).

Support: nothing here is taught.

>>> sizes = with_sizes({"emb_dim": 256, "n_heads": 4}, ["emb_dim=384"])
>>> sizes == {"emb_dim": 384, "n_heads": 4}
True
"""

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

import script_tools
from bpe import tokenizer_from_json
from checkpoints import CHECKPOINT, check_parts, checkpoint_info
from dataloader import create_dataloader_v1, encode_text, split_text
from gpt import GPTConfig

BEST = "best"  # the folder in which the best model is kept


def read_options(
    arguments: Sequence[str] | None, presets: Mapping[str, Mapping[str, Any]]
) -> argparse.Namespace:
    """The options, with what the preset says about those that are not given.

    Among them `cfg`, the config of the model: it reads as many tokens as a window has,
    so that each of its positions is trained.
    """
    parser = argparse.ArgumentParser(
        prog="gpt_train.py",
        description="Train a GPT on a text and save it, with its losses. The last "
        "tenth of the text is kept to measure what the model makes of new text.",
    )
    add, whole = parser.add_argument, script_tools.positive_int
    add("--data", type=Path, help="text file in UTF-8 (the short story of the course)")
    add("--tokenizer", type=Path, help="saved by bpe.py (GPT-2's, or the checkpoint's)")
    add("--preset", type=script_tools.preset, default="", help="quick or full")
    add("--epochs", type=whole, help="passes over the text (as the preset says)")
    add("--window", type=whole, help="tokens read at once (as the preset says)")
    add("--batch-size", type=whole, help="windows in a step (as the preset says)")
    rate = script_tools.positive_float
    add("--learning-rate", type=rate, help="of AdamW (as the preset says)")
    add(
        "--set",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="a size of the model, such as --set emb_dim=384 --set n_layers=6",
    )
    add("--seed", type=script_tools.seed, default=123, help="(%(default)s)")
    add("--out", type=Path, help="folder for the model (runs/ch05-gpt)")
    resume = "go on from the checkpoint in --out"
    script_tools.add_again(parser, "a model", resume)
    options = script_tools.parse(parser, arguments)
    preset = presets[options.preset]
    for name in ("epochs", "window", "batch_size", "learning_rate"):
        setattr(options, name, getattr(options, name) or preset[name])
    try:
        cfg = GPTConfig.of(with_sizes(preset["cfg"], options.set))
        if options.window > cfg.context_length:
            raise ValueError(
                f"--window is at most {cfg.context_length}: for more, give "
                "--set context_length=NUMBER as well."
            )
        options.cfg = GPTConfig.of({**cfg, "context_length": options.window})
    except (ValueError, TypeError) as problem:
        parser.error(str(problem))
    if options.out is None:
        options.out = script_tools.runs_folder() / "ch05-gpt"
    return options


def with_sizes(cfg: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """A config with some of its sizes changed, each written as NAME=NUMBER."""
    changed = dict(cfg)
    for change in changes:
        name, _, value = change.partition("=")
        if name not in changed:
            known = ", ".join(changed)
            raise ValueError(f"--set {change}: the sizes are called {known}.")
        try:
            kind = type(changed[name])
            truths = {"true": True, "false": False}
            changed[name] = truths[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError):
            raise ValueError(
                f"--set {change}: {value!r} is not a value for {name}, which is "
                f"{cfg[name]!r}."
            ) from None
    return changed


def choose_tokenizer(options: argparse.Namespace) -> Any:
    """The tokenizer of a run; a run that goes on has that of its checkpoint.

    Raises `ValueError` if the option names another one than the checkpoint.
    """
    if not options.resume or not (options.out / CHECKPOINT).exists():
        return script_tools.tokenizer(options.tokenizer)
    info = checkpoint_info(options.out)
    saved = info.get("tokenizer")
    if options.tokenizer is None and saved is not None:
        return tokenizer_from_json(saved, options.out)
    tokenizer = script_tools.tokenizer(options.tokenizer)
    check_parts(options.out, info["parts"], tokenizer=tokenizer)
    return tokenizer


def check_place(out: Path, options: argparse.Namespace) -> None:
    """Raise unless the folder can be written and no trained model would be lost."""
    script_tools.folder_to_write(out)
    if not (out / CHECKPOINT).exists() or options.resume or options.overwrite:
        return
    try:
        step = checkpoint_info(out)["progress"].get("step")
        model = f"a model of {step} steps" if step else "a model"
    except ValueError:
        model = "a checkpoint"
    raise ValueError(
        f"{out} holds {model}: --resume goes on with it, --overwrite starts over, or "
        "choose another --out."
    )


def settings_of(options: argparse.Namespace, text: str) -> dict[str, Any]:
    """What must be the same for a run to be gone on with, by the names of options."""
    return {
        "--data": hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12],
        "--window": options.window,
        "--batch-size": options.batch_size,
        "--learning-rate": options.learning_rate,
        "--seed": options.seed,
        **{f"--set {name}": value for name, value in options.cfg.items()},
    }


def make_loaders(
    text: str, name: str, tokenizer: Any, options: argparse.Namespace
) -> tuple[DataLoader, DataLoader]:
    """Shuffled windows of the first nine tenths, and the windows of the rest."""
    if not text.strip():
        raise ValueError(f"{name} is empty: give a text with --data.")
    try:
        parts = split_text(text, train_ratio=0.9)
    except ValueError as problem:
        raise ValueError(f"{name}: {problem}") from None
    length = min(len(encode_text(part, tokenizer)) for part in parts)
    if length <= options.window:
        raise ValueError(
            f"{name} is too short: a tenth of it, kept for validation, has {length} "
            f"tokens, but one window with its target needs {options.window + 1}; use a "
            "longer text or a smaller --window."
        )
    shared = {
        "batch_size": options.batch_size,
        "max_length": options.window,
        "stride": options.window,
        "tokenizer": tokenizer,
    }
    training = create_dataloader_v1(parts[0], seed=options.seed, **shared)
    whole = {"shuffle": False, "drop_last": False}
    return training, create_dataloader_v1(parts[1], **whole, **shared)


def write_losses(path: Path, rows: Sequence[tuple]) -> None:
    """Write `losses.csv`: rows of step, tokens seen, training and validation loss."""
    lines = ["step,tokens,train_loss,val_loss"]
    lines += ["{},{},{:.4f},{:.4f}".format(*row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def report(out: Path, last: tuple, best: Any, seconds: float) -> None:
    """Say what came out and what to do with it.

    Args:
        out: the folder of the run.
        last: the last row of `write_losses`, measured when training was over.
        best: the `BestModel` of the run.
        seconds: that training took.
    """
    step, _, train_loss, val_loss = last
    print(
        f"{seconds:.0f} s. At the end, after step {step}, training is at "
        f"{train_loss:.3f}, validation at {val_loss:.3f}, all of it measured."
    )
    print(f"Model and losses are in {out}. Next: gpt_generate.py --model {out}")
    best.say()
