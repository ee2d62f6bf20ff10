"""What a search finds, and how much of it is luck: the tables of this folder.

    python3 -m course run ch05/05_bonus_hparam_tuning/experiments.py

A small GPT learns the course's instructions as plain text. Each run has 2e10 operations
to spend; a larger model gets fewer updates for them.

* `seeds.csv`: chapter 5's setting with 100 seeds, validation and test loss;
* `trials.csv`: every trial of three studies: random search without pruning, TPE with
  the median rule, and one that searches the learning rate alone. The losses are those
  on the validation part after each fifth of the run, until it ended;
* `studies.csv`: for each study the trials that were finished, what was spent, and the
  best of them;
* `again.csv`: the first settings of the random study, each with another seed;
* `fresh.csv`: the best of each study with ten seeds that no search has seen.

Seconds are CPU seconds in one thread. Runs that are in the tables are not made again,
and a study goes on where it was stopped; `--fresh` begins anew. Takes about ten
minutes and 1 GB.
"""

import sys
import time
from pathlib import Path

import optuna
import torch
from optuna.trial import TrialState

from course import tables
from hparam_search import (
    BUDGET,
    DEFAULT,
    FRESH_SEED,
    SPACE,
    Search,
    fresh_losses,
    load_data,
    make_objective,
)
from script_tools import runs_folder

RESULTS = Path(__file__).parent / "results"
SEEDS, AGAIN, FRESH = 100, 12, 10
RATE_ONLY = {"learning_rate": SPACE["learning_rate"]}
STUDIES = {
    "random": {"sampler": "random", "pruner": "none", "seed": 1},
    "TPE": {"sampler": "tpe", "pruner": "median", "seed": 1},
    "rate only": {
        "sampler": "random",
        "pruner": "none",
        "seed": 4,
        "space": RATE_ONLY,
    },
}
TRIALS = {"random": 60, "TPE": 40, "rate only": 8}
TINY_BUDGET = 2e8


class SearchBench:
    """The data, how many of everything, and where the tables are."""

    def __init__(self, options):
        self.out, self.journals = options.out, options.journals
        self.seeds, self.trials = SEEDS, TRIALS
        self.again, self.fresh, self.budget = AGAIN, FRESH, BUDGET
        if options.tiny:
            self.seeds, self.trials = 3, dict.fromkeys(TRIALS, 3)
            self.again, self.fresh, self.budget = 2, 2, TINY_BUDGET
        self.data = load_data(characters=6000 if options.tiny else None)

    def add(self, name, row):
        """A row below those that a table has."""
        path = self.out / name
        print(*list(row.values())[:4], flush=True)
        tables.write(path, [*self.rows(name), row])

    def rows(self, name):
        path = self.out / name
        return tables.read(path) if path.exists() else []

    def losses(self, setting, seed):
        """The columns of one training run."""
        start = time.process_time()
        ((validation, test),) = fresh_losses(setting, self.data, [seed], self.budget)
        return {
            "validation": f"{validation:.4f}",
            "test": f"{test:.4f}",
            "seconds": f"{time.process_time() - start:.2f}",
        }


def same_setting(bench):
    """Chapter 5's setting with many seeds."""
    for seed in range(FRESH_SEED, FRESH_SEED + bench.seeds)[
        len(bench.rows("seeds.csv")) :
    ]:
        row = {"seed": seed, **bench.losses(DEFAULT, seed), **tables.facts()}
        bench.add("seeds.csv", row)


def study(bench, name):
    """One study to its end, and its trials as rows."""
    plan = {"budget": bench.budget, "windows": len(bench.data.train)}
    journal = bench.journals / f"{name.replace(' ', '-')}.log"
    search = Search(journal, plan=plan, **STUDIES[name])
    objective = make_objective(bench.data, bench.budget)

    def timed(trial, seed):
        start = time.process_time()
        try:
            return objective(trial, seed)
        finally:
            trial.set_user_attr("seconds", round(time.process_time() - start, 2))

    search.run(timed, bench.trials[name])
    rows = []
    trials = search.study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED])
    for trial in sorted(trials, key=lambda trial: trial.user_attrs["index"]):
        setting = {**DEFAULT, **trial.params}
        setting = {key: f"{setting[key]:.6g}" for key in SPACE}
        losses = [
            f"{loss:.4f}" for _, loss in sorted(trial.intermediate_values.items())
        ]
        row = {"study": name, "index": trial.user_attrs["index"]}
        row |= {"state": trial.state.name.lower(), "losses": " ".join(losses)}
        rows.append(row | {"seconds": trial.user_attrs["seconds"]} | setting)
    tables.replace(bench.out / "trials.csv", rows, key="study", order=list(STUDIES))
    best = search.study.best_trial
    row = {"study": name, **{k: STUDIES[name][k] for k in ("sampler", "pruner")}}
    row |= {
        "trials": len(rows),
        "finished": sum(r["state"] == "complete" for r in rows),
    }
    row |= {"seconds": f"{sum(r['seconds'] for r in rows):.1f}"}
    row |= {"best_index": best.user_attrs["index"], "best": f"{best.value:.4f}"}
    row |= {key: rows[best.user_attrs["index"]][key] for key in SPACE}
    print(row, flush=True)
    row |= tables.facts(budget=f"{bench.budget:.3g}")
    tables.replace(bench.out / "studies.csv", [row], key="study", order=list(STUDIES))


def setting_of(row):
    """The setting in a row of a table."""
    whole = ("batch_size", "emb_dim", "n_layers")
    return {
        name: int(row[name]) if name in whole else float(row[name]) for name in SPACE
    }


def another_seed(bench):
    """The first settings of a random study once more."""
    rows = [row for row in bench.rows("trials.csv") if row["study"] == "random"]
    for row in rows[: bench.again][len(bench.rows("again.csv")) :]:
        found = {"index": row["index"], "seed": FRESH_SEED + int(row["index"])}
        found |= {"first": row["losses"].split()[-1]}
        found |= bench.losses(setting_of(row), found["seed"])
        bench.add("again.csv", found | tables.facts())


def fresh_seeds(bench):
    """The best setting of each study with seeds that none has seen."""
    done = {(row["study"], row["seed"]) for row in bench.rows("fresh.csv")}
    for best in bench.rows("studies.csv"):
        for seed in range(FRESH_SEED, FRESH_SEED + bench.fresh):
            if (best["study"], str(seed)) not in done:
                row = {"study": best["study"], "seed": seed}
                row |= bench.losses(setting_of(best), seed)
                bench.add("fresh.csv", row | tables.facts())


def main(arguments=None):
    """Make what is missing in the tables; return the exit code."""
    parser = tables.one_run(__doc__, RESULTS)
    journals = runs_folder() / "hparam-experiments"
    parser.add_argument("--journals", type=Path, default=journals)
    parser.add_argument("--fresh", action="store_true", help="begin anew")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.fresh:
        for path in [*options.out.glob("*.csv"), *options.journals.glob("*.log*")]:
            path.unlink()
    bench = SearchBench(options)
    same_setting(bench)
    for name in STUDIES:
        study(bench, name)
    fresh_seeds(bench)
    another_seed(bench)
    return 0


if __name__ == "__main__":
    sys.exit(main())
