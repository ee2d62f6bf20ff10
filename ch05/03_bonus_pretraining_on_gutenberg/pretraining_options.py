"""The command line of `pretraining.py`: options, settings, its folder.

Support: nothing here is taught.

>>> options = read_options(["--set", "emb_dim=64", "--window", "32"])
>>> options.cfg.emb_dim, options.cfg.context_length, options.schedule
(64, 32, 'cosine')
"""

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import prepare_dataset
import script_tools
from checkpoints import CHECKPOINT
from gpt import GPT_CONFIG_124M, GPTConfig
from pretraining_script import with_sizes
from several_processes import start_problem
from train_with_schedule import SCHEDULES

LOG, RESULT, SETTINGS, MODEL = "log.csv", "result.json", "settings.json", "model"
CHECKPOINTS = "checkpoints"
PRESETS = {
    "quick": {
        "sizes": {"emb_dim": 256, "n_heads": 4, "n_layers": 4},
        "window": 256,
        "batch_size": 8,
        "learning_rate": 2e-3,
    },
    "full": {"sizes": {}, "window": 1024, "batch_size": 512, "learning_rate": 6e-4},
}


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="pretraining.py",
        description="Pretrain a GPT on prepared shards, or on a folder of texts.",
    )
    add, whole = parser.add_argument, script_tools.positive_int
    rate = script_tools.positive_float
    add("--data", type=Path, help="data set, or folder of texts (runs/ch05-shards)")
    add("--out", type=Path, help="folder for the run (runs/ch05-pretrained)")
    add("--preset", type=script_tools.preset, default="", help="quick or full")
    size = "a size of the model, such as --set emb_dim=384"
    add("--set", action="append", default=[], metavar="NAME=NUMBER", help=size)
    add("--window", type=whole, help="tokens read at once (as the preset says)")
    add("--batch-size", type=whole, help="windows in an update (as the preset says)")
    add("--rows", type=whole, default=8, help="of them in a forward pass (%(default)s)")
    add("--learning-rate", type=rate, help="the peak (as the preset says)")
    add("--schedule", choices=SCHEDULES, default="cosine", help="(%(default)s)")
    add("--warmup", type=float, default=0.02, help="share of the run (%(default)s)")
    add("--decay", type=float, default=0.2, help="the same, for stable (%(default)s)")
    long = parser.add_mutually_exclusive_group()
    long.add_argument("--epochs", type=whole, default=1, help="(%(default)s)")
    long.add_argument("--steps", type=whole, help="updates, instead of --epochs")
    add("--eval-every", type=whole, default=100, help="updates (%(default)s)")
    add("--eval-windows", type=whole, default=32, help="(%(default)s); at the end all")
    add("--save-every", type=whole, default=200, help="updates (%(default)s)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    text = "attention, norms and GELU in one call each: the same model, faster"
    add("--fused", action="store_true", help=text)
    add("--device", choices=("cpu", "cuda"), default="cpu", help="(%(default)s)")
    add("--processes", type=whole, default=1, help="on this machine (%(default)s)")
    add("--fsdp", action="store_true", help="each process holds a part of the model")
    add("--seed", type=script_tools.seed, default=123, help="(%(default)s)")
    resume = "go on from the last checkpoint in --out"
    script_tools.add_again(parser, "a run", resume)
    return parser


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with what the preset says about those that are not given."""
    parser = make_parser()
    options = script_tools.parse(parser, arguments)
    preset = PRESETS[options.preset]
    for name in ("window", "batch_size", "learning_rate"):
        setattr(options, name, getattr(options, name) or preset[name])
    for name, place in (("data", "ch05-shards"), ("out", "ch05-pretrained")):
        if getattr(options, name) is None:
            setattr(options, name, script_tools.runs_folder() / place)
    if not (options.warmup >= 0 and options.decay >= 0):
        parser.error("--warmup and --decay are shares of the run")
    if options.warmup + options.decay * (options.schedule == "stable") > 1:
        parser.error("--warmup and --decay are more than the whole run together")
    fixed = {"context_length": options.window, "drop_rate": 0.0, "tie_weights": True}
    try:
        sizes = {**GPT_CONFIG_124M, **fixed, **preset["sizes"]}
        options.cfg = GPTConfig.of(with_sizes(sizes, options.set))
    except (ValueError, TypeError) as problem:
        parser.error(str(problem))
    if options.cfg.context_length < options.window:
        parser.error(f"--window is at most {options.cfg.context_length}")
    problem = start_problem(options.device, None)
    if problem:
        parser.error(problem)
    return options


def settings_of(options: argparse.Namespace, data: Path) -> dict[str, Any]:
    """What must be the same for a run to be gone on with, by the names of options."""
    text = (data / prepare_dataset.MANIFEST).read_bytes()
    names = ["window", "batch_size", "learning_rate", "schedule", "warmup", "decay"]
    names += ["seed", "dtype", "steps", "epochs", "fused"]
    return {
        "data": hashlib.sha256(text).hexdigest()[:12],
        **{name: getattr(options, name) for name in names},
        **{f"set {name}": value for name, value in options.cfg.items()},
    }


def check_free(options: argparse.Namespace) -> None:
    """Raise if a run would be lost in the folder, before any work is done for it."""
    if (options.out / SETTINGS).exists() and not (options.resume or options.overwrite):
        raise ValueError(
            f"{options.out} holds a run: --resume goes on with it, --overwrite starts "
            "over, or choose another --out."
        )


def check_place(options: argparse.Namespace, data: Path) -> None:
    """Raise unless the folder can be written and no run would be lost; then claim it.

    A run that goes on has to have the settings that it began with.
    """
    out, place = options.out, options.out / SETTINGS
    script_tools.folder_to_write(out)
    settings = settings_of(options, data)
    check_free(options)
    if options.overwrite:
        model = out / MODEL / CHECKPOINT
        for path in (out / LOG, out / RESULT, place, model):
            path.unlink(missing_ok=True)
        for folder in (out / CHECKPOINTS).glob("step-*"):
            shutil.rmtree(folder)
    if place.exists():
        before = {"fused": False}  # of a run that was begun before there was a choice
        before |= json.loads(place.read_text(encoding="utf-8"))
        differ = [
            f"{name} ({before.get(name)} there, {settings[name]} here)"
            for name in settings
            if before.get(name) != settings[name]
        ]
        if differ:
            raise ValueError(
                f"The run in {out} was begun with other settings: {', '.join(differ)}. "
                "Give those, or choose another --out; --overwrite starts over."
            )
    for torn in (out / CHECKPOINTS).glob("*.part"):  # of a run that was killed
        shutil.rmtree(torn)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(settings, indent=1) + "\n"
    place.with_suffix(".part").write_text(text, encoding="utf-8")
    os.replace(place.with_suffix(".part"), place)
