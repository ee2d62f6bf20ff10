"""Trials spend what they may, a killed study goes on, luck is told from gain."""

import itertools
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy
import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import TrialState

import hparam_search
from course.testing.programs import variables
from flops import count_flops
from hparam_search import (
    BUDGET,
    DEFAULT,
    LOOKS,
    SPACE,
    WINDOW,
    Search,
    budget_share,
    expected_best,
    fresh_losses,
    gain_interval,
    gpt_config,
    load_data,
    main,
    make_objective,
    mean_interval,
    train_setting,
    updates_for,
)
from training_loop import warmup_cosine

TINY = 2e8  # operations: a handful of updates
LINE = {"x": FloatDistribution(-10, 10)}
SMALL = {**DEFAULT, "emb_dim": 32, "n_layers": 1}


@pytest.fixture(scope="module")
def data():
    return load_data(characters=4000)


def bowl(trial, seed):
    return (trial.params["x"] - 2) ** 2


def tried(search):
    """What a study tried and found, by index, lost trials left out."""
    return {
        trial.user_attrs["index"]: (trial.params, trial.state.name, trial.value)
        for trial in search.study.get_trials()
        if trial.state != TrialState.FAIL
    }


# --- One trial ------------------------------------------------------------------------


def random_setting(seed):
    sampler = optuna.samplers.RandomSampler(seed=seed)
    return optuna.create_study(sampler=sampler).ask(SPACE).params


def test_the_default_lies_in_the_space():
    assert list(DEFAULT) == list(SPACE)
    for name, values in SPACE.items():
        assert values._contains(values.to_internal_repr(DEFAULT[name])), name


@pytest.mark.parametrize("seed", range(4))
def test_every_setting_costs_the_same_operations(seed):
    setting = random_setting(seed)
    forward, backward = count_flops(gpt_config(setting), setting["batch_size"], WINDOW)
    updates = updates_for(setting, hparam_search.BUDGET)
    spent = updates * (forward + backward)
    assert abs(spent - hparam_search.BUDGET) <= (forward + backward) / 2
    assert updates > LOOKS


def test_a_run_is_repeatable_and_another_seed_is_another_run(data):
    runs = [train_setting(SMALL, data, seed, TINY)[1] for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert len(runs[0]) == LOOKS
    assert runs[0][-1] < runs[0][0] < math.log(hparam_search.VOCAB_SIZE) + 0.5


def test_the_rates_of_a_run_are_those_of_its_setting(data, monkeypatch):
    """Known mistake: a peak that is never passed on, so that a default counts."""
    rates, decays, step = [], set(), torch.optim.AdamW.step

    def noted(self, *arguments, **options):
        rates.append(self.param_groups[0]["lr"])
        decays.add(self.param_groups[0]["weight_decay"])
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    changes = {"learning_rate": 0.02, "warmup": 0.25, "lowest": 0.5}
    setting = {**SMALL, **changes, "weight_decay": 0.7}
    train_setting(setting, data, 1, TINY)
    updates = updates_for(setting, TINY)
    ramp = round(0.25 * updates)
    assert len(rates) == updates
    assert rates[0] == pytest.approx(0.02 / ramp)
    assert max(rates) == rates[ramp - 1] == pytest.approx(0.02)
    last = warmup_cosine(updates - 1, updates, ramp, lowest=0.5)
    assert rates[-1] == pytest.approx(0.02 * last)
    assert 0.5 < last < 0.7
    assert decays == {0.7}
    rates.clear()
    train_setting(SMALL, data, 1, TINY)
    assert set(rates) == {DEFAULT["learning_rate"]}


def test_dropout_batch_and_size_of_a_setting_count(data):
    setting = {**SMALL, "drop_rate": 0.2, "n_layers": 2, "emb_dim": 48}
    model, _ = train_setting(setting, data, 1, TINY)
    assert (len(model.trf_blocks), model.cfg["emb_dim"]) == (2, 48)
    assert model.cfg["n_heads"] == 3
    first = train_setting({**SMALL, "drop_rate": 0.2}, data, 1, TINY)[1]
    assert first != train_setting(SMALL, data, 1, TINY)[1]
    small, large = (updates_for({**SMALL, "batch_size": b}, 1e10) for b in (2, 8))
    assert small == pytest.approx(4 * large, rel=0.05)


def test_the_parts_of_the_data_share_no_window(data):
    parts = [
        {tuple(row.tolist()) for row in ids}
        for ids in (data.train.input_ids, data.validation[0][0], data.test[0][0])
    ]
    assert all(parts)
    assert not any(a & b for a, b in itertools.combinations(parts, 2))


def test_a_run_that_diverges_is_pruned_and_a_mistake_is_raised(data, tmp_path):
    search = Search(tmp_path / "j.log", space={"learning_rate": SPACE["learning_rate"]})
    trial = search.study.ask(search.space)

    def attempt(message):
        def fail(*arguments):
            raise ValueError(message)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hparam_search, "train_setting", fail)
            make_objective(data, TINY)(trial, 1)

    with pytest.raises(optuna.TrialPruned):
        attempt("The loss of step 3 is nan: the model has diverged, and ...")
    with pytest.raises(ValueError, match="something else"):
        attempt("something else")


def test_chapter_5_says_diverged_of_a_run_that_does(data):
    with pytest.raises(ValueError, match="diverged"):
        train_setting({**SMALL, "learning_rate": 1e30}, data, 1, TINY)


# --- The study ------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_an_interrupted_study_tries_what_a_whole_one_tries(tmp_path, sampler):
    """Known mistake: a sampler that is made anew repeats its first draws."""
    whole = Search(tmp_path / "whole.log", sampler, space=LINE)
    whole.run(bowl, 14)
    for n_trials in (3, 12, 14):
        parts = Search(tmp_path / "parts.log", sampler, space=LINE)
        parts.run(bowl, n_trials)
    assert tried(parts) == tried(whole)
    drawn = [params["x"] for params, _, _ in tried(whole).values()]
    assert len(set(drawn)) == len(drawn) == 14


def test_a_study_goes_on_with_the_same_plan_only(tmp_path):
    Search(tmp_path / "j.log", space=LINE, plan={"budget": 1.0})
    Search(tmp_path / "j.log", space=LINE, plan={"budget": 1.0})
    with pytest.raises(ValueError, match="another budget: go on"):
        Search(tmp_path / "j.log", space=LINE, plan={"budget": 2.0})
    with pytest.raises(ValueError, match="another sampler, seed: go on"):
        Search(tmp_path / "j.log", "random", seed=1, space=LINE, plan={"budget": 1.0})
    wider = {"x": FloatDistribution(-10, 11)}
    with pytest.raises(ValueError, match="another space: go on"):
        Search(tmp_path / "j.log", space=wider, plan={"budget": 1.0})


def test_a_mistake_in_the_objective_is_raised_and_takes_no_place(tmp_path):
    search = Search(tmp_path / "j.log", space=LINE)
    with pytest.raises(ZeroDivisionError):
        search.run(lambda trial, seed: 1 / 0, 2)
    assert [t.state for t in search.study.trials] == [TrialState.FAIL]
    search.run(bowl, 2)
    assert list(tried(search)) == [0, 1]


def test_trials_far_behind_are_pruned(tmp_path):
    def curve(trial, seed):
        for n in range(1, 6):
            trial.report(abs(trial.params["x"]), n)
            if trial.should_prune():
                raise optuna.TrialPruned
        return abs(trial.params["x"])

    states = {}
    for pruner in ("none", "median", "halving"):
        search = Search(tmp_path / f"{pruner}.log", "random", pruner, space=LINE)
        search.run(curve, 30)
        states[pruner] = [state for _, state, _ in tried(search).values()]
    assert set(states["none"]) == {"COMPLETE"}
    assert "PRUNED" in states["halving"]
    assert set(states["median"][:10]) == {"COMPLETE"}  # nobody to be compared with
    assert 5 < states["median"].count("PRUNED") < 20
    pruned = [t for t in search.study.trials if t.state == TrialState.PRUNED]
    assert all(abs(t.params["x"]) > search.study.best_value for t in pruned)


def test_a_torn_last_line_is_cut_off(tmp_path):
    """A full disk: Optuna alone writes on behind the half line, and reads no more."""
    journal = tmp_path / "j.log"
    Search(journal, space=LINE).run(bowl, 3)
    torn = journal.read_bytes() + b'{"op_code": 4, "work'
    journal.write_bytes(torn)
    search = Search(journal, space=LINE)
    search.run(bowl, 5)
    assert list(tried(search)) == list(range(5))
    assert list(tried(Search(journal, space=LINE))) == list(range(5))
    journal.write_bytes(torn)
    storage = JournalStorage(JournalFileBackend(str(journal)))
    study = optuna.load_study(study_name="search", storage=storage)
    with pytest.raises((AttributeError, ValueError)):
        study.optimize(lambda trial: trial.suggest_float("x", -10, 10), n_trials=3)


# --- Real processes -------------------------------------------------------------------

WORKER = """
import os, sys, time
from pathlib import Path
import hparam_search as h
from optuna.distributions import FloatDistribution

journal, n_trials, pause, stop = Path(sys.argv[1]), *map(float, sys.argv[2:])

def bowl(trial, seed):
    time.sleep(3600 if trial.user_attrs["index"] == stop else pause)
    return (trial.params["x"] - 2) ** 2

space = {"x": FloatDistribution(-10, 10)}
h.Search(journal, space=space).run(bowl, int(n_trials))
"""


def worker(journal, n_trials, pause=0.0, stop=-1):
    """Start a process that works on a study; it hangs in the trial `stop`."""
    command = [sys.executable, "-c", WORKER, journal, n_trials, pause, stop]
    return subprocess.Popen(list(map(str, command)), env=variables(OMP_NUM_THREADS="1"))


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGKILL")
def test_a_kill_between_giving_out_a_trial_and_noting_who_has_it(tmp_path):
    """Nobody notes anything while the lock is held, so whoever gets it sees a loss."""
    search = Search(tmp_path / "j.log", space=LINE)
    search.run(bowl, 2)
    search.study.ask(LINE)  # as far as a process comes that is killed just then
    search.run(bowl, 4)
    assert [t.state.name for t in search.study.trials].count("FAIL") == 1
    whole = Search(tmp_path / "whole.log", space=LINE)
    whole.run(bowl, 4)
    assert tried(search) == tried(whole)


def states_in(journal):
    """The states of the trials of a study, looked at from outside."""
    if not journal.exists():
        return []
    storage = JournalStorage(JournalFileBackend(str(journal)))
    try:
        study = optuna.load_study(study_name="search", storage=storage)
    except KeyError:  # not yet
        return []
    return [trial.state.name for trial in study.get_trials()]


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("at", [0, 3, 12])
def test_after_a_kill_finished_trials_stay_and_the_running_one_is_retried(tmp_path, at):
    journal = tmp_path / "j.log"
    process = worker(journal, 14, stop=at)
    try:
        wait_until(lambda: states_in(journal) == [*["COMPLETE"] * at, "RUNNING"])
        wait_until(lambda: journal.read_text().count('"worker"') == at + 1)
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    before = [line for line in journal.read_text().splitlines() if line]
    search = Search(journal, space=LINE)
    search.run(bowl, 14)
    after = journal.read_text().splitlines()
    assert after[: len(before)] == before  # what was written stays as it was
    trials = search.study.get_trials()
    assert [t.number for t in trials if t.state == TrialState.FAIL] == [at]
    assert [t.state.name for t in trials].count("COMPLETE") == 14
    (retry,) = (t for t in trials if "retry_of" in t.user_attrs)
    assert retry.user_attrs["retry_of"] == at
    assert retry.params == trials[at].params
    whole = Search(tmp_path / "whole.log", space=LINE)
    whole.run(bowl, 14)
    assert tried(search) == tried(whole)
    assert not list(tmp_path.glob("*.worker-*"))


def test_two_processes_share_a_study(tmp_path):
    """Each index once, exactly as many as asked for, and no living trial is taken."""
    journal = tmp_path / "j.log"
    both = [worker(journal, 24, pause=0.1) for _ in range(2)]
    try:
        assert [process.wait(timeout=150) for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()
    search = Search(journal, space=LINE)
    trials = search.study.get_trials()
    assert [t.state.name for t in trials] == ["COMPLETE"] * 24
    assert sorted(t.user_attrs["index"] for t in trials) == list(range(24))
    shares = [t.user_attrs["worker"] for t in trials]
    counts = sorted(shares.count(name) for name in set(shares))
    assert len(counts) == 2
    assert counts[0] > 0
    drawn = {t.params["x"] for t in trials}
    assert len(drawn) == 24


def test_a_trial_of_a_living_process_is_left_alone(tmp_path):
    journal = tmp_path / "j.log"
    other = worker(journal, 3, stop=1)
    try:
        wait_until(lambda: states_in(journal) == ["COMPLETE", "RUNNING"])
        search = Search(journal, space=LINE)
        search.run(bowl, 3)  # the other one has the place of index 1
        assert states_in(journal) == ["COMPLETE", "RUNNING", "COMPLETE"]
    finally:
        other.kill()
        other.wait()
    search.run(bowl, 3)
    assert [s for _, s, _ in tried(search).values()] == ["COMPLETE"] * 3


def test_the_script_searches_goes_on_and_judges(tmp_path, capsys, data):
    journal = tmp_path / "j.log"
    options = ["--journal", str(journal), "--budget", "1.2e9"]
    assert main([*options, "--trials", "2", "--fresh", "0"]) == 0
    first = capsys.readouterr().out
    assert "trial 0: " in first
    assert "trial 1: " in first
    assert main([*options, "--trials", "3", "--fresh", "2"]) == 0
    said = capsys.readouterr().out
    assert "trial 1: " not in said
    assert "trial 2: " in said
    for name in ("default", "found"):
        assert f"{name}, fresh seeds, test: " in said
    assert "The gain on the test part: " in said
    assert main(["--journal", str(journal), "--budget", "2e9", "--trials", "3"]) == 2
    assert "another budget" in capsys.readouterr().err


def test_a_trial_that_spends_too_much_is_said_and_a_small_budget_refused(
    tmp_path, capsys, monkeypatch
):
    large = {**DEFAULT, "emb_dim": 128, "n_layers": 4, "batch_size": 16}
    budget = 1.2e9
    one = hparam_search.training_flops(hparam_search.gpt_config(large), 16, 64)
    assert budget_share(large, budget) == pytest.approx(LOOKS * one / budget)
    assert budget_share(large, budget) > 20
    assert budget_share(DEFAULT, BUDGET) == pytest.approx(1, abs=0.01)
    params = iter([{"emb_dim": 128, "n_layers": 4, "batch_size": 16}, {}])

    def objective(*_):
        return lambda trial, seed: 4.0

    monkeypatch.setattr(hparam_search, "make_objective", objective)
    real = Search.next_trial

    def chosen(search, n_trials):
        trial = real(search, n_trials)
        if trial is not None:
            monkeypatch.setattr(type(trial), "params", next(params))
        return trial

    monkeypatch.setattr(Search, "next_trial", chosen)
    words = ["--journal", str(tmp_path / "j.log"), "--trials", "2", "--fresh", "0"]
    assert main([*words, "--budget", f"{budget}"]) == 0
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first.endswith(f"(spent {budget_share(large, budget):.1f} budgets)")
    assert "spent" not in second
    assert main([*words, "--budget", "2e8"]) == 2
    said = capsys.readouterr().err
    assert "--budget is at least" in said
    # What it says is enough.
    least = float(said.partition("at least ")[2].partition(",")[0])
    assert budget_share(DEFAULT, least) <= 1


# --- The verdict ----------------------------------------------------------------------


def test_fresh_losses_are_those_of_the_two_parts(data):
    ((validation, test),) = fresh_losses(SMALL, data, [5], TINY)
    model, curve = train_setting(SMALL, data, 5, TINY)
    assert validation == curve[-1]
    with torch.no_grad():
        logits = model.eval()(data.test[0][0])
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), data.test[0][1].flatten()
    )
    assert test == pytest.approx(loss.item(), abs=1e-5)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    random = numpy.random.default_rng(0)
    held = 0
    for values in random.normal(3.0, 0.5, size=(2000, 20)):
        mean, error = mean_interval(values.tolist())
        held += abs(mean - 3.0) <= error
    assert 0.92 < held / 2000 < 0.965
    before, after = random.normal(3.0, 0.5, 20), random.normal(2.0, 0.1, 30)
    gain, error = gain_interval(before.tolist(), after.tolist())
    assert gain == pytest.approx(before.mean() - after.mean())
    variance = before.var(ddof=1) / 20 + after.var(ddof=1) / 30
    assert error == pytest.approx(2 * variance**0.5)


@pytest.mark.parametrize("losses", [[3.0, 1.0, 2.0], [2.0, 2.0, 5.0, 1.5], [4.0]])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_expected_best_is_the_mean_over_all_draws(losses, n):
    draws = itertools.product(losses, repeat=n)
    right = statistics.mean(min(draw) for draw in draws)
    assert expected_best(losses, n) == pytest.approx(right)


def test_a_missing_file_of_data_is_one_line(capsys):
    assert main(["--data", str(Path("no") / "such.json")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
