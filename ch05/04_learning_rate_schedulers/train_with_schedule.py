"""Chapter 5's training script, with a learning rate that changes on the way.

    python3 -m course run ch05/04_learning_rate_schedulers/train_with_schedule.py \\
        --schedule cosine --learning-rate 0.004

All other options are those of `gpt_train.py`; `--learning-rate` is the peak.

>>> share = plan_of("stable", num_steps=100, warmup=0.1, decay=0.2)
>>> [round(share(step), 2) for step in (0, 9, 50, 80, 90, 99)]
[0.1, 1.0, 1.0, 1.0, 0.5, 0.05]
"""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence

import gpt_train
from training_loop import make_scheduler, warmup_cosine, warmup_stable_decay

SCHEDULES = ("constant", "warmup", "cosine", "stable")  # the last three are plans


def plan_of(
    schedule: str, num_steps: int, warmup: float, decay: float
) -> Callable[[int], float]:
    """The share of the peak rate that an update has, counted from 0.

    Args:
        schedule: "warmup", "cosine" or "stable".
        num_steps: updates of the run.
        warmup: share of them on the way up.
        decay: share of them on the way down, for "stable".
    """
    plan = {"num_steps": num_steps, "warmup_steps": round(warmup * num_steps)}
    if schedule == "cosine":
        return functools.partial(warmup_cosine, **plan)
    if schedule == "stable":
        left = num_steps - plan["warmup_steps"]
        plan["decay_steps"] = min(round(decay * num_steps), left)
    return functools.partial(warmup_stable_decay, **plan)


def _share(text):
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError("must be from 0 to below 1")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as `gpt_train.py`, with a schedule; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="train_with_schedule.py",
        description="Train as gpt_train.py, whose options it takes too, with a "
        "learning rate that changes.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--schedule", choices=SCHEDULES, default="cosine", help="(%(default)s)")
    add("--warmup", type=_share, default=0.1, help="share of the updates (%(default)s)")
    add("--decay", type=_share, default=0.3, help="the same, for stable (%(default)s)")
    options, others = parser.parse_known_args(arguments)
    if options.schedule == "stable" and options.warmup + options.decay > 1:
        parser.error("--warmup and --decay are more than the whole run together")

    def scheduler(optimizer, num_steps):
        share = plan_of(options.schedule, num_steps, options.warmup, options.decay)
        return make_scheduler(optimizer, share)

    if options.schedule == "constant":  # the script's own
        return gpt_train.main(others)
    name = f"{options.schedule}, warm-up {options.warmup}, decay {options.decay}"
    return gpt_train.main(others, scheduler, name)


if __name__ == "__main__":
    sys.exit(main())
