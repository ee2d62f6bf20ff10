"""What the commands of this folder's page come to: the table `results/story.csv`.

    python3 -m course run ch05/04_learning_rate_schedulers/experiments.py

Chapter 5's script trains its quick model on the short story with each schedule and its
default options, the seed included. The lowest loss on the whole validation part is that
of the model which the script keeps, the last one that of the model at the end. Takes
about five minutes in one thread. One seed shows what to expect and judges no schedule.
"""

import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

import train_with_schedule
from course import tables
from course.assets import fetch
from pretraining_script import BEST

RESULTS = Path(__file__).parent / "results"
TINY = ["--epochs", "2", "--window", "16"]
TINY += ["--set", "emb_dim=16", "--set", "n_layers=1", "--set", "n_heads=2"]


def train(schedule, seed, tiny):
    """Train once with the script; the losses of the best and of the last model."""
    with tempfile.TemporaryDirectory() as folder:
        out, start = Path(folder) / "model", time.process_time()
        options = ["--schedule", schedule, "--seed", str(seed), "--out", str(out)]
        more = []
        if tiny:
            text = Path(folder) / "text.txt"
            story = fetch("short-story").read_text(encoding="utf-8")
            text.write_text(story[:3000], encoding="utf-8")
            more = [*TINY, "--data", str(text)]
        with contextlib.redirect_stdout(io.StringIO()):
            code = train_with_schedule.main([*options, *more])
        if code != 0:
            raise RuntimeError(f"The script ended with code {code}.")
        seconds = time.process_time() - start
        note = (out / BEST / "validation.json").read_text(encoding="utf-8")
        last = tables.read(out / "losses.csv")[-1]
    return {
        "schedule": schedule,
        "seed": seed,
        "best": f"{json.loads(note)['validation_loss']:.4f}",
        "last": last["val_loss"],
        "last_train": last["train_loss"],
        "updates": int(last["step"]) + 1,
        "seconds": f"{seconds:.1f}",
    }


def main(arguments=None):
    """Make the table anew; return the exit code."""
    parser = tables.one_run(__doc__, RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for schedule in train_with_schedule.SCHEDULES:
        found = train(schedule, options.seed, options.tiny)
        print(found, flush=True)
        rows.append(found | tables.facts())
    tables.write(options.out / "story.csv", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
