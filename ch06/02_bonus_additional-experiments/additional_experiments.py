"""All rows of the table from one command, or one row of your own: support.

    python3 -m course run ch06/02_bonus_additional-experiments/additional_experiments.py

Without a choice it trains every row of `ROWS` with each seed and writes three tables:

* `runs.csv`: one training each: what was chosen, seed, learning rate, parameters that
  learn, accuracy, CPU seconds without the frozen blocks, the data's SHA-256, machine,
  and in `said` for each test message, in order, whether it was called class 1;
* `accuracy.csv`: a row for each name, its mean over seeds with a 95% interval for which
  families of messages and seeds were drawn anew (from five seeds: too narrow);
* `differences.csv`: each row less the base, and what `PLANNED` adds, on the same
  messages with the same seeds: the mean difference, its interval, a p-value for which
  whole families change sides, and that value corrected by `holm` for their number.

With `--rates` it writes `rates.csv` instead: the learning rates that were tried for
each kind of training, with three seeds that train no row, on the validation part.

`results/` has what it wrote with five seeds: forty minutes of one core, with the rates.

What `runs.csv` has is not trained again: a run that was killed goes on, and loses at
most the training it was in. Any of the choices (`--help`) makes one row of your own.

>>> percent(7 / 8)
'87.50'
"""

import argparse
import dataclasses
import itertools
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from classifier_variants import holm
from experiment_bench import TRAINED_ON, VariantBench
from experiment_rows import (
    BASE,
    CAUSAL,
    LAYERS,
    OPT_IN,
    PADDINGS,
    PLANNED,
    POOLINGS,
    ROWS,
    STARTS,
    TOKENS,
    TRIED,
    Experiment,
    changed,
    in_words,
)
from family_statistics import p_value
from gpt_class_finetune import bootstrap_interval
from option_kinds import parse, positive_float, positive_int, seed
from script_tools import folder_to_write, model_name, run, runs_folder

SEEDS, RATE_SEEDS = (1, 2, 3, 4, 5), (0, 6, 7)
CHOICES = [field.name for field in dataclasses.fields(Experiment)]
COLUMNS = [
    "row",
    "seed",
    *CHOICES,
    "learning",
    "accuracy",
    "seconds",
    "trained_on",
    "asked",
    "data_sha256",
    "threads",
    "machine",
    "python",
    "torch",
    "said",
]

# --- Runs ----------------------------------------------------------------------------


def train_all(
    bench: VariantBench, rows: dict[str, Experiment], seeds: Sequence[int], out: Path
) -> None:
    """Train each row with each seed that `runs.csv` has not got yet."""
    path = out / "runs.csv"
    for name, experiment in rows.items():
        for number in seeds:
            made = read_runs(path)
            if any(is_run_of(row, bench, experiment, number) for row in made):
                print(f"{name}, seed {number}: is there already", flush=True)
                continue
            row = one_run(bench, name, experiment, number)
            _tables().write(path, [*made, row])
            print(f"{name}, seed {number}: {row['accuracy']} %", flush=True)


def one_run(
    bench: VariantBench, name: str, experiment: Experiment, number: int
) -> dict[str, str]:
    """Train once; a row of `runs.csv`."""
    found = bench.train(experiment, number)
    row = {
        "row": name,
        **_identity(bench, experiment, number),
        "learning": found["learning"],
        "accuracy": percent(found["right"].mean()),
        "seconds": f"{found['seconds']:.1f}",
        "asked": len(found["said"]),
        **_tables().facts(),
        "said": "".join(map(str, found["said"].astype(int))),
    }
    return {column: str(row[column]) for column in COLUMNS}


def is_run_of(
    row: dict[str, str], bench: VariantBench, experiment: Experiment, number: int
) -> bool:
    """Whether a row of `runs.csv` is this training, whatever it is called."""
    wanted = _identity(bench, experiment, number)
    return all(row[key] == str(value) for key, value in wanted.items())


def _identity(bench, experiment, number):
    """The columns that say which training it was."""
    chosen = dataclasses.asdict(experiment) | {"lr": f"{experiment.rate:g}"}
    return {
        "seed": number,
        **{key: "" if value is None else value for key, value in chosen.items()},
        "trained_on": len(bench.parts["train"]),
        "data_sha256": bench.sha256[:12],
    }


def read_runs(path: Path) -> list[dict[str, str]]:
    """The rows of `runs.csv`, or none; `ValueError` for a file that is another one."""
    if not path.exists():
        return []
    try:
        rows = _tables().read(path)
    except (OSError, UnicodeDecodeError) as problem:
        raise ValueError(f"{path} cannot be read ({problem}): {_AWAY}") from None
    for number, row in enumerate(rows, start=2):
        if list(row) != COLUMNS or None in row.values():
            raise ValueError(
                f"{path}, line {number}: the columns are not those of a table of runs: "
                f"{_AWAY}"
            )
        said = row["said"]
        if set(said) - {"0", "1"} or str(len(said)) != row["asked"]:
            raise ValueError(
                f"{path}, line {number}: said must hold {row['asked']} times 0 or 1 "
                f"and has {len(said)} signs: delete the line, and it is trained again."
            )
    return rows


_AWAY = "move it away, or give another --out."

# --- Tables that follow from the runs -------------------------------------------------


def rights(
    bench: VariantBench, rows: list[dict[str, str]]
) -> dict[str, dict[str, np.ndarray]]:
    """Which test messages are right, (N,) for each seed, by the name of the row."""
    targets = bench.targets[bench.parts["test"]]
    found: dict[str, dict[str, np.ndarray]] = {}
    for row in rows:
        if row["data_sha256"] == bench.sha256[:12]:
            said = np.array([*row["said"]], dtype=int)
            found.setdefault(row["row"], {})[row["seed"]] = said == targets
    return found


def write_tables(bench: VariantBench, out: Path) -> None:
    """`accuracy.csv` and `differences.csv`, from `runs.csv`."""
    rows = read_runs(out / "runs.csv")
    right = rights(bench, rows)
    families = bench.families[bench.parts["test"]]
    order = [name for name in (*ROWS, *OPT_IN, *right) if name in right]
    accuracy = []
    for name in dict.fromkeys(order):
        mine = [row for row in rows if row["row"] == name]
        shares = np.array([*right[name].values()])  # (S, N)
        low, high = bootstrap_interval(shares, families)
        accuracy.append(
            {
                "row": name,
                "seeds": len(shares),
                "accuracy": percent(shares.mean()),
                "low": percent(low),
                "high": percent(high),
                "lowest_seed": percent(shares.mean(axis=1).min()),
                "highest_seed": percent(shares.mean(axis=1).max()),
                "learning": mine[0]["learning"],
                "lr": mine[0]["lr"],
                "seconds": f"{statistics.mean(float(r['seconds']) for r in mine):.1f}",
                "messages": shares.shape[1],
                "families": len(set(families)),
            }
        )
    _tables().write(out / "accuracy.csv", accuracy)
    compared = differences(right, families)
    if compared:
        _tables().write(out / "differences.csv", compared)


def differences(
    right: dict[str, dict[str, np.ndarray]], families: Any
) -> list[dict[str, object]]:
    """Rows of `differences.csv`: each row less the base, then what `PLANNED` adds."""
    questions = {pair: question for question, pair in PLANNED.items()}
    pairs = [(name, BASE) for name in (*ROWS, *OPT_IN) if name != BASE]
    pairs += [pair for pair in questions if pair not in pairs]
    found: list[dict[str, Any]] = []
    for pair in pairs:
        sides = [right.get(name, {}) for name in pair]
        seeds = [one for one in sides[0] if one in sides[1]]
        if seeds:
            ours, theirs = (np.array([s[one] for one in seeds]) for s in sides)
            row = {"planned": questions.get(pair, ""), "ours": pair[0]}
            row |= {"theirs": pair[1], "seeds": len(seeds)}
            found.append(row | beside(ours, theirs, families))
    corrected = holm([row["p_value"] for row in found])
    for row, p in zip(found, corrected):
        clear = p < 0.05 and (row["low"] > 0 or row["high"] < 0)
        row["p_holm"] = f"{p:.3g}"
        row["p_value"] = f"{row['p_value']:.3g}"
        sign = "higher" if row["difference"] > 0 else "lower"
        row["verdict"] = sign if clear else "within noise"
        row |= {key: f"{row[key]:.2f}" for key in ("difference", "low", "high")}
    return found


def beside(ours: np.ndarray, theirs: np.ndarray, families: Any) -> dict[str, Any]:
    """Two rows on the same messages with the same seeds, (S, N) each, in points.

    Seeds are drawn in pairs, as the two trainings with one seed share the order of the
    messages and the first head.
    """
    paired = ours.astype(float) - theirs  # (S, N)
    low, high = bootstrap_interval(paired, families)
    most = [runs.mean(axis=0) > 0.5 for runs in (ours, theirs)]
    return {
        "difference": 100 * paired.mean(),
        "low": 100 * low,
        "high": 100 * high,
        "only_ours_right": int((most[0] & ~most[1]).sum()),
        "only_theirs_right": int((most[1] & ~most[0]).sum()),
        "p_value": p_value(paired.mean(axis=0), families),
    }


def percent(share: float) -> str:
    """A share as a figure of a table."""
    return f"{100 * share:.2f}"


# --- Learning rates ------------------------------------------------------------------


def try_rates(bench: VariantBench, model: str, epochs: int, out: Path) -> None:
    """`rates.csv`: the rates of `TRIED` with their own seeds, judged on validation."""
    path = out / "rates.csv"
    rows = _tables().read(path) if path.exists() else []
    for (layers, adapters), rates in TRIED.items():
        for rate, number in itertools.product(rates, RATE_SEEDS):
            experiment = Experiment(
                model=model,
                layers=layers,
                lora_rank=16 if adapters else 0,
                epochs=epochs,
                lr=rate,
            )
            key = {
                "layers": layers,
                "lora": "yes" if adapters else "no",
                "lr": f"{rate:g}",
                "epochs": str(experiment.epochs),
                "data_sha256": bench.sha256[:12],
                "seed": str(number),
            }
            if any(key.items() <= row.items() for row in rows):
                continue
            found = bench.train(experiment, number, "validation")
            row = {**key, "seconds": f"{found['seconds']:.1f}"}
            row |= {"validation": percent(found["right"].mean())} | _tables().facts()
            rows.append({name: str(value) for name, value in row.items()})
            _tables().write(path, rows)
            print(layers, key["lora"], rate, number, row["validation"], flush=True)


# --- As a script ---------------------------------------------------------------------


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options; `--trainable_layers` is `--trainable-layers`."""
    parser = argparse.ArgumentParser(
        prog=Path(__file__).name,
        description="Classifiers with one thing changed at a time: all rows of the "
        "table, or one row of your own.",
    )
    add = parser.add_argument
    add("--rows", nargs="+", metavar="ROW", help="some rows by name; see --list")
    add("--list", action="store_true", help="the names of all rows, and no training")
    add("--rates", action="store_true", help="try the learning rates instead")
    add("--seeds", type=seed, nargs="+", default=list(SEEDS), help="(%(default)s)")
    add("--data", type=Path, help="a CSV file of messages in place of the course's")
    add("--trained-on", type=positive_int, default=TRAINED_ON, help="(%(default)s)")
    here = runs_folder() / "additional-experiments"
    add("--out", type=Path, default=here, help="where the tables are (%(default)s)")
    add("--cache", type=Path, default=here / "features", help="(%(default)s)")
    add("--model", type=model_name, help="for all rows, a name or a folder")
    add(
        "--epochs",
        "--num-epochs",
        type=positive_int,
        help=f"for all rows ({Experiment.epochs})",
    )
    own = parser.add_argument_group("choices, for one row of your own")
    add = own.add_argument
    add("--blocks", type=positive_int, help="blocks that are kept (6)")
    add("--trainable-layers", choices=LAYERS, dest="layers", help="(last_block)")
    add("--lora-rank", type=int, help="adapters of this rank in place of weights (0)")
    add("--lora-alpha", type=positive_float, help="(16)")
    add("--token", choices=TOKENS, help="which one is asked (all)")
    add("--pooling", choices=POOLINGS, help="of all tokens (mean)")
    add("--context-length", type=positive_int, help="tokens that are read (120)")
    add("--padding", choices=PADDINGS, help="to what, and whether it is read (batch)")
    add("--batch-size", type=positive_int, help="(16)")
    add("--accumulation-steps", type=positive_int, dest="accumulation", help="(1)")
    add("--causal-mask", choices=CAUSAL, help="(on)")
    add("--start", choices=STARTS, help="of the weights (pretrained)")
    add("--ignore-index", type=int, help="a class that counts nothing (-100)")
    add("--lr", type=positive_float, help="learning rate (that of the table)")
    if arguments is None:
        arguments = sys.argv[1:] if Path(sys.argv[0]).name == parser.prog else []
    words = [re.sub(r"^--\w+", lambda m: m[0].replace("_", "-"), a) for a in arguments]
    return parse(parser, words)


def chosen_rows(options: argparse.Namespace) -> dict[str, Experiment]:
    """The rows that are to be trained, by name; `ValueError` if they make no sense."""
    common = {"model": options.model, "epochs": options.epochs}
    common = {key: value for key, value in common.items() if value is not None}
    given = {key: getattr(options, key) for key in CHOICES if key not in common}
    given = {key: value for key, value in given.items() if value is not None}
    if given and (options.rows or options.rates):
        raise ValueError(
            f"--{'rows' if options.rows else 'rates'} and a choice such as --"
            f"{next(iter(given)).replace('_', '-')} are both given: name rows of the "
            "table, or make one of your own."
        )
    if given:
        experiment = Experiment(**given, **common)
        return {in_words(experiment): experiment}
    known = ROWS | OPT_IN
    unknown = [name for name in options.rows or () if name not in known]
    if unknown:
        raise ValueError(
            f"There is no row {unknown[0]!r}: --list shows their names; put a name "
            "with blanks into quotes."
        )
    names = options.rows or ROWS
    return {name: changed(known[name], **common) for name in names}


def main(arguments: list[str] | None = None) -> int:
    """Train what is missing, write the tables; return the exit code."""
    stopped = "stopped; the same command goes on with what is missing."
    return run(_experiments, read_options(arguments), stopped=stopped)


def _experiments(options):
    rows = chosen_rows(options)
    if options.list:
        for name, experiment in (ROWS | OPT_IN).items():
            print(f"{name:28} {in_words(experiment)}")
        return
    out = folder_to_write(options.out)
    out.mkdir(parents=True, exist_ok=True)
    read_runs(out / "runs.csv")  # better now than after the frozen blocks
    bench = VariantBench(options.data, options.cache, options.trained_on)
    lock = FileLock(options.cache / "one-at-a-time.lock")
    options.cache.mkdir(parents=True, exist_ok=True)
    try:
        with lock.acquire(timeout=1):
            if options.rates:
                epochs = options.epochs or Experiment.epochs
                try_rates(bench, options.model or Experiment.model, epochs, out)
                return
            train_all(bench, rows, options.seeds, out)
            write_tables(bench, out)
    except Timeout:
        raise ValueError(
            f"Another process is training with {options.cache}: wait for it, or give "
            "another --cache and --out."
        ) from None
    print(f"The tables are in {out}.")


def _tables():
    """`course.tables`, imported where it is needed: a copy of this file can be read."""
    from course import tables

    return tables


if __name__ == "__main__":
    sys.exit(main())
