"""Searching hyperparameters with Optuna, and what to believe of the result.

* what is searched: `SPACE`, with chapter 5's own setting, `DEFAULT`, inside it;
* one trial: `train_setting` spends the same number of operations on every setting;
* the study: `Search` keeps it in a journal file, goes on after a kill, and lets several
  processes work on it;
* the verdict: `fresh_losses` on seeds that the search has not seen, `mean_interval`,
  `gain_interval`, and `expected_best`, which says what luck alone finds.

Left out: several goals at once, and trials on several machines.

Sources: Akiba and others, "Optuna", 2019 (arXiv:1907.10902); Bergstra and others, 2011
(NeurIPS 24), for TPE; Bergstra and Bengio, 2012 (JMLR 13), for random search; Dodge and
others, 2019 (arXiv:1909.03004), for the expected best.

>>> import tempfile
>>> journal = Path(tempfile.mkdtemp()) / "journal.log"
>>> def bowl(trial, seed):  # in place of a training run
...     return (trial.params["x"] - 2) ** 2
>>> space = {"x": FloatDistribution(-10, 10)}
>>> search = Search(journal, space=space, sampler="random")
>>> search.run(bowl, n_trials=3)
>>> search.run(bowl, n_trials=5)  # goes on: two more
>>> len(search.study.trials), search.study.best_value < 20
(5, True)

As a script it searches for a small GPT on the course's instructions. The same command
in a second terminal helps; after a kill it goes on.

    python3 -m course run ch05/05_bonus_hparam_tuning/hparam_search.py --trials 30
"""

import argparse
import contextlib
import io
import json
import math
import statistics
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import optuna
import torch
from filelock import FileLock, Timeout
from optuna.distributions import (
    BaseDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages.journal import (
    JournalFileBackend,
    JournalStorage,
)
from optuna.trial import TrialState
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

import script_tools
from bpe import train_tokenizer
from dataloader import GPTDatasetV1
from flops import training_flops
from gpt import GPT_CONFIG_124M, GPTConfig, GPTModel
from gpt_train import calc_loss_loader, train_model_simple
from training_loop import make_scheduler, warmup_cosine

_Setting = Mapping[str, Any]

# --- What is searched ----------------------------------------------------------------

SPACE: dict[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(3e-4, 3e-2, log=True),  # the peak
    "warmup": FloatDistribution(0.0, 0.4),  # share of the updates
    "lowest": FloatDistribution(0.0, 1.0),  # last rate as a share of the peak
    "weight_decay": FloatDistribution(1e-3, 1.0, log=True),
    "batch_size": IntDistribution(2, 16, log=True),  # windows
    "drop_rate": FloatDistribution(0.0, 0.3),
    "emb_dim": IntDistribution(32, 128, step=16),
    "n_layers": IntDistribution(1, 4),
}
# Chapter 5's script: the same rate, decay and tokens in a batch (2 x 128 there), no
# schedule, no dropout. The model is a quarter as wide and half as deep.
DEFAULT: dict[str, Any] = {
    "learning_rate": 3e-3,
    "warmup": 0.0,
    "lowest": 1.0,
    "weight_decay": 0.1,
    "batch_size": 4,
    "drop_rate": 0.0,
    "emb_dim": 64,
    "n_layers": 2,
}
WINDOW, VOCAB_SIZE, _HEAD_DIM = 64, 512, 16
BUDGET = 20e9  # operations of one trial
LOOKS = 5  # how often a trial is measured, the last time at its end
FRESH_SEED = 10_000  # the first of those on which a verdict is made

# --- One trial -----------------------------------------------------------------------


class SearchData(NamedTuple):
    """Windows to train on, and two held-out parts, each as one batch in a list."""

    train: GPTDatasetV1
    validation: list[tuple[Tensor, Tensor]]
    test: list[tuple[Tensor, Tensor]]


def load_data(path: Path | None = None, characters: int | None = None) -> SearchData:
    """The course's instructions as plain text, in 512 tokens, cut into windows.

    Args:
        path: a file of the same form; None takes the course's.
        characters: how many of each part are taken, None for all.
    """
    if path is None:
        from course.assets import fetch

        path = fetch("instructions")
    texts = {"train": "", "validation": "", "test": ""}
    for entry in json.loads(path.read_text(encoding="utf-8")):
        lines = (entry["instruction"], entry["input"], entry["output"])
        texts[entry["split"]] += "\n".join(filter(None, lines)) + "\n\n"
    texts = {name: text[:characters] for name, text in texts.items()}
    tokenizer = train_tokenizer(texts["train"], VOCAB_SIZE)
    train, validation, test = (
        GPTDatasetV1(text, tokenizer, WINDOW, WINDOW) for text in texts.values()
    )
    return SearchData(
        train,
        [(validation.input_ids, validation.target_ids)],
        [(test.input_ids, test.target_ids)],
    )


def gpt_config(setting: _Setting) -> GPTConfig:
    """The model of a setting: as wide and deep as it says, in heads of 16."""
    return GPTConfig.of(
        {
            **GPT_CONFIG_124M,
            "vocab_size": VOCAB_SIZE,
            "context_length": WINDOW,
            "emb_dim": setting["emb_dim"],
            "n_heads": setting["emb_dim"] // _HEAD_DIM,
            "n_layers": setting["n_layers"],
            "drop_rate": setting["drop_rate"],
        }
    )


def updates_for(setting: _Setting, budget: float) -> int:
    """How many updates of a setting cost `budget` operations, at least `LOOKS`."""
    return max(LOOKS, round(budget / _one_update(setting)))


def budget_share(setting: _Setting, budget: float) -> float:
    """What a trial spends, as a share of its budget.

    About 1, but more for a setting that makes the least number of updates.
    """
    return updates_for(setting, budget) * _one_update(setting) / budget


def _one_update(setting):
    return training_flops(gpt_config(setting), setting["batch_size"], WINDOW)


def train_setting(
    setting: _Setting,
    data: SearchData,
    seed: int,
    budget: float = BUDGET,
    look: Callable[[int, float], None] | None = None,
) -> tuple[GPTModel, list[float]]:
    """Train a model with a setting; return it with its validation losses on the way.

    Args:
        setting: a value for each name in `SPACE`.
        data: what `load_data` gives.
        seed: of the weights, of dropout and of the order of the windows.
        budget: operations, as `training_flops` counts them.
        look: called as `look(n, loss)` after each of the `LOOKS` measurements, n from
            1; an exception that it raises ends the run.
    """
    torch.manual_seed(seed)
    model = GPTModel(gpt_config(setting))
    updates = updates_for(setting, budget)
    order = torch.Generator().manual_seed(seed)
    windows = updates * setting["batch_size"]
    sampler = RandomSampler(data.train, num_samples=windows, generator=order)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=setting["learning_rate"],
        weight_decay=setting["weight_decay"],
        fused=True,
    )
    scheduler = make_scheduler(
        optimizer,
        warmup_cosine,
        num_steps=updates,
        warmup_steps=round(setting["warmup"] * updates),
        lowest=setting["lowest"],
    )
    losses = []

    def measure(step, *_):
        if step * LOOKS // updates > len(losses):
            losses.append(calc_loss_loader(data.validation, model, "cpu"))
            if look is not None:
                look(len(losses), losses[-1])

    with contextlib.redirect_stdout(io.StringIO()):  # its line on step 0
        train_model_simple(
            model,
            DataLoader(data.train, setting["batch_size"], sampler=sampler),
            [data.validation[0]],
            optimizer,
            "cpu",
            num_epochs=1,
            eval_freq=updates,
            eval_iter=1,
            start_context=None,
            tokenizer=None,
            scheduler=scheduler,
            after_step=measure,
        )
    return model, losses


def make_objective(
    data: SearchData, budget: float = BUDGET
) -> Callable[[optuna.Trial, int], float]:
    """What a search minimises: the last validation loss of a trial's setting.

    What the space of the search leaves out is as in `DEFAULT`.
    """

    def objective(trial: optuna.Trial, seed: int) -> float:
        def look(n, loss):
            trial.report(loss, step=n)
            if trial.should_prune() or not math.isfinite(loss):
                raise optuna.TrialPruned

        try:
            setting = {**DEFAULT, **trial.params}
            return train_setting(setting, data, seed, budget, look)[1][-1]
        except ValueError as error:
            if "diverged" in str(error):  # chapter 5's loop: a loss that is not finite
                raise optuna.TrialPruned from error
            raise

    return objective


# --- The study -----------------------------------------------------------------------

SAMPLERS: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
}
PRUNERS: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
    "none": optuna.pruners.NopPruner,
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=10),
    "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(
        min_resource=1, reduction_factor=3
    ),
}


def cut_torn_line(journal: Path) -> None:
    """Take off the end of a journal that a full disk or a power cut left unfinished.

    Optuna would write the next entry behind it, and could read neither.
    """
    content = journal.read_bytes()
    if content and not content.endswith(b"\n"):
        with journal.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


class _JournalLock:
    """Who holds it writes into a journal, behind a whole line.

    Optuna's own lock is a file that a killed process leaves behind, for half a minute.
    This one is the operating system's, which takes it from a process that ends.
    """

    def __init__(self, journal: Path):
        self.journal, self.lock = journal, FileLock(f"{journal}.writing")

    def acquire(self) -> bool:
        """Wait for the lock, and cut off what the last holder left unfinished."""
        self.lock.acquire()
        cut_torn_line(self.journal)
        return True

    def release(self) -> None:
        """Let others write."""
        self.lock.release()


class Search:
    """A study in a journal file: goes on after a kill, shared by several processes.

    Each trial has an index, from which the draw of its setting and its seed follow. So
    a study that was interrupted tries what one that ran through would have tried.

    Args:
        journal: the file; made if it is not there. Lock files lie beside it.
        sampler, pruner: names in `SAMPLERS` and `PRUNERS`.
        seed: of the draws.
        space: what is searched.
        plan: anything that a study must have in common with an earlier part of it, such
            as the budget. `ValueError` where it has not.
    """

    def __init__(
        self,
        journal: Path,
        sampler: str = "tpe",
        pruner: str = "median",
        seed: int = 0,
        space: Mapping[str, BaseDistribution] = SPACE,
        plan: _Setting | None = None,
    ):
        self.journal, self.sampler, self.seed = Path(journal), sampler, seed
        self.space = dict(space)
        self.journal.parent.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(f"{self.journal}.turn")  # who holds it gives out trials
        self.worker = uuid.uuid4().hex[:8]
        lock: Any = _JournalLock(self.journal)
        with self.lock:
            backend = JournalFileBackend(str(self.journal), lock)
            self.study = optuna.create_study(
                storage=JournalStorage(backend),
                study_name="search",
                pruner=PRUNERS[pruner](),
                load_if_exists=True,
            )
            told = {"sampler": sampler, "pruner": pruner, "seed": seed}
            told["space"] = {name: str(values) for name, values in space.items()}
            self._same_plan(told | dict(plan or {}))

    def _same_plan(self, plan):
        plan = json.loads(json.dumps(plan))  # as it comes back from the journal
        old = self.study.user_attrs.get("plan")
        if old is None:
            self.study.set_user_attr("plan", plan)
        elif old != plan:
            other = [k for k in old | plan if old.get(k) != plan.get(k)]
            raise ValueError(
                f"{self.journal} holds a study with another {', '.join(other)}: go on "
                "with the same, or take another file."
            )

    def _seeds(self, index):
        """Of the draw of a setting, and of the training run."""
        numbers = numpy.random.SeedSequence([self.seed, index]).generate_state(2)
        return numbers.tolist()

    def _worker_lock(self, worker):
        return FileLock(f"{self.journal}.worker-{worker}")

    def _is_alive(self, worker):
        """Whether a process holds this worker's lock; none does after its end."""
        lock = self._worker_lock(worker)
        if not Path(lock.lock_file).exists():
            return False
        try:
            with lock.acquire(timeout=0):
                return False
        except Timeout:
            return True

    def retry_lost(self) -> None:
        """Mark trials whose process has ended as failed, and queue each once more."""
        for trial in self.study.get_trials(states=[TrialState.RUNNING]):
            worker = trial.user_attrs.get("worker", "")
            if self._is_alive(worker):
                continue
            self.study.tell(trial.number, state=TrialState.FAIL)
            Path(self._worker_lock(worker).lock_file).unlink(missing_ok=True)
            if "index" in trial.user_attrs:
                again = {"index": trial.user_attrs["index"], "retry_of": trial.number}
                self.study.enqueue_trial(trial.params, user_attrs=again)

    def next_trial(self, n_trials: int) -> optuna.Trial | None:
        """Begin a trial, or return None if `n_trials` have been begun already."""
        with self.lock:
            self.retry_lost()
            trials = self.study.get_trials(deepcopy=False)
            there = [t for t in trials if t.state != TrialState.FAIL]
            begun = [t for t in there if t.state != TrialState.WAITING]
            if len(begun) >= n_trials:
                return None
            index = len(there)
            # A sampler made once would begin its draws anew after each interruption.
            self.study.sampler = SAMPLERS[self.sampler](seed=self._seeds(index)[0])
            trial = self.study.ask(self.space)
            if "index" not in trial.user_attrs:
                trial.set_user_attr("index", index)
            trial.set_user_attr("worker", self.worker)
            return trial

    def run(
        self, objective: Callable[[optuna.Trial, int], float], n_trials: int
    ) -> None:
        """Work until the study has `n_trials`, together with others who work on it.

        Args:
            objective: called as `objective(trial, seed)`, returns what is minimised,
                or raises `optuna.TrialPruned`.
            n_trials: trials of the whole study; those lost in a kill do not count.
        """
        own = self._worker_lock(self.worker)
        with own:
            while (trial := self.next_trial(n_trials)) is not None:
                seed = self._seeds(trial.user_attrs["index"])[1]
                try:
                    loss = objective(trial, seed)
                except optuna.TrialPruned:
                    self.study.tell(trial, state=TrialState.PRUNED)
                except Exception:
                    self.study.tell(trial, state=TrialState.FAIL)
                    raise
                else:
                    self.study.tell(trial, loss)
        Path(own.lock_file).unlink(missing_ok=True)


# --- The verdict ---------------------------------------------------------------------


def fresh_losses(
    setting: _Setting, data: SearchData, seeds: Iterable[int], budget: float = BUDGET
) -> list[tuple[float, float]]:
    """Validation and test loss of a setting, trained anew with each seed."""
    losses = []
    for seed in seeds:
        model, curve = train_setting(setting, data, seed, budget)
        losses.append((curve[-1], calc_loss_loader(data.test, model, "cpu")))
    return losses


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and two standard errors.

    The standard error is the standard deviation over the root of the number of values.
    About 95 % of such intervals hold the true mean where the values are many; with ten
    values about 92 %, with five about 88 %.
    """
    return statistics.mean(values), 2 * statistics.stdev(values) / len(values) ** 0.5


def gain_interval(
    before: Sequence[float], after: Sequence[float]
) -> tuple[float, float]:
    """By how much the mean falls, and two standard errors of that difference."""
    (old, old_error), (new, new_error) = mean_interval(before), mean_interval(after)
    return old - new, math.hypot(old_error, new_error)


def expected_best(losses: Sequence[float], n: int) -> float:
    """The mean of the lowest of n losses, drawn with replacement from those given.

    Source: Dodge and others, 2019 (arXiv:1909.03004, section 3.1).
    """
    N = len(losses)
    return sum(
        loss * ((1 - i / N) ** n - (1 - (i + 1) / N) ** n)
        for i, loss in enumerate(sorted(losses))
    )


# --- As a script ---------------------------------------------------------------------


def setting_in_words(setting: _Setting) -> str:
    """A setting in one line."""
    return ", ".join(f"{name} {value:.3g}" for name, value in setting.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Search, then judge on fresh seeds; return the exit code."""
    parser = argparse.ArgumentParser(
        description="Search hyperparameters of a small GPT. The same command goes on "
        "with a study that was stopped, and helps with one that is running."
    )
    add = parser.add_argument
    add("--journal", type=Path, help="where the study is (runs/hparam-search)")
    add("--trials", type=script_tools.positive_int, default=100, help="(%(default)s)")
    add("--sampler", choices=SAMPLERS, default="tpe", help="(%(default)s)")
    add("--pruner", choices=PRUNERS, default="median", help="(%(default)s)")
    add("--seed", type=script_tools.seed, default=1, help="of the draws (%(default)s)")
    add("--budget", type=script_tools.positive_float, default=BUDGET)
    add("--fresh", type=int, default=5, help="seeds for the verdict (%(default)s)")
    add("--data", type=Path, help="another file in place of the instructions")
    options = parser.parse_args(arguments)
    stopped = "stopped; the same command goes on."
    return script_tools.run(_search, options, stopped=stopped)


def _search(options):
    """Everything after the options are read."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = options.journal
    if journal is None:
        journal = script_tools.runs_folder() / "hparam-search" / "journal.log"
    data, budget = load_data(options.data), options.budget
    least = LOOKS * _one_update(DEFAULT)
    if budget < least:
        raise ValueError(
            f"--budget is at least {math.ceil(least / 1e8) * 1e8:g}, with which the "
            f"default makes the {LOOKS} updates after which it is measured: take more."
        )
    plan = {"budget": budget, "windows": len(data.train)}
    search = Search(journal, options.sampler, options.pruner, options.seed, plan=plan)
    objective = make_objective(data, budget)

    def said(trial, seed):
        index = trial.user_attrs["index"]
        try:
            loss = objective(trial, seed)
        except optuna.TrialPruned:
            print(f"trial {index}: pruned", flush=True)
            raise
        print(f"trial {index}: {loss:.3f}, {setting_in_words(trial.params)}", end="")
        spent = budget_share({**DEFAULT, **trial.params}, budget)
        print(f" (spent {spent:.1f} budgets)" if spent > 1.1 else "", flush=True)
        return loss

    search.run(said, options.trials)
    best = search.study.best_trial
    print(f"The best of the study: {best.value:.3f}, {setting_in_words(best.params)}")
    if options.fresh < 2:
        return
    seeds = range(FRESH_SEED, FRESH_SEED + options.fresh)
    test = {}
    for name, setting in (("default", DEFAULT), ("found", best.params)):
        losses = fresh_losses(setting, data, seeds, budget)
        validation, test[name] = zip(*losses, strict=True)
        for part, values in (("validation", validation), ("test", test[name])):
            mean, error = mean_interval(values)
            print(f"{name}, fresh seeds, {part}: {mean:.3f} +- {error:.3f}")
    gain, error = gain_interval(test["default"], test["found"])
    print(f"The gain on the test part: {gain:.3f} +- {error:.3f}")


if __name__ == "__main__":
    sys.exit(main())
