"""The experiment runs, and its committed tables are what its script would write."""

import re
import statistics
from pathlib import Path

import pytest

from course.tables import read
from course.testing.experiment_scripts import other_columns, script_in
from hparam_search import FRESH_SEED, LOOKS, SPACE, gain_interval

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
TABLES = ["seeds.csv", "trials.csv", "studies.csv", "again.csv", "fresh.csv"]


@pytest.fixture(scope="module")
def experiments():
    return script_in(FOLDER)


def test_a_tiny_run_writes_tables_like_the_committed_ones(
    experiments, tmp_path, capsys
):
    options = ["--tiny", "--out", str(tmp_path), "--journals", str(tmp_path)]
    assert experiments.main(options) == 0
    assert other_columns(tmp_path, RESULTS, TABLES) == []
    made = {name: read(tmp_path / name) for name in TABLES}
    capsys.readouterr()
    assert experiments.main(options) == 0  # all of it is there: nothing is trained
    assert {name: read(tmp_path / name) for name in TABLES} == made
    (alone,) = (row for row in made["studies.csv"] if row["study"] == "rate only")
    assert (alone["batch_size"], alone["warmup"]) == ("4", "0")
    for row in made["trials.csv"]:
        assert len(row["losses"].split()) == LOOKS


def test_the_committed_tables_are_of_the_full_size(experiments):
    trials = read(RESULTS / "trials.csv")
    counts = experiments.TRIALS
    for name, count in counts.items():
        rows = [row for row in trials if row["study"] == name]
        assert [int(row["index"]) for row in rows] == list(range(count))
    assert len(trials) == sum(counts.values())
    seeds = [int(row["seed"]) for row in read(RESULTS / "seeds.csv")]
    assert seeds == list(range(FRESH_SEED, FRESH_SEED + experiments.SEEDS))
    fresh = read(RESULTS / "fresh.csv")
    assert len(fresh) == len(experiments.STUDIES) * experiments.FRESH
    again = read(RESULTS / "again.csv")
    assert [int(row["index"]) for row in again] == list(range(experiments.AGAIN))


def test_the_best_of_a_study_is_the_best_of_its_trials():
    trials = read(RESULTS / "trials.csv")
    for study in read(RESULTS / "studies.csv"):
        mine = [row for row in trials if row["study"] == study["study"]]
        whole = [row for row in mine if row["state"] == "complete"]
        assert len(whole) == int(study["finished"])
        best = min(whole, key=lambda row: float(row["losses"].split()[-1]))
        assert best["index"] == study["best_index"]
        assert best["losses"].split()[-1] == study["best"]
        assert {name: best[name] for name in SPACE} == {
            name: study[name] for name in SPACE
        }


def test_trials_were_pruned_only_behind_the_median_rule_of_their_study():
    trials = read(RESULTS / "trials.csv")
    tpe = [row for row in trials if row["study"] == "TPE"]
    finished = []
    for row in tpe:  # in the order in which they were tried, by one process
        losses = [float(x) for x in row["losses"].split()]
        place = len(losses) - 1
        if row["state"] == "pruned":
            others = [curve[place] for curve in finished]
            assert len(others) >= 10
            assert min(losses) > statistics.median(others) - 1e-4
        else:
            assert len(losses) == LOOKS
            finished.append(losses)


def test_the_page_says_what_the_tables_say():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    default = [float(row["test"]) for row in read(RESULTS / "seeds.csv")]
    fresh = read(RESULTS / "fresh.csv")
    studies = {row["study"]: row for row in read(RESULTS / "studies.csv")}
    for name, study in studies.items():
        test = [float(row["test"]) for row in fresh if row["study"] == name]
        gain, error = gain_interval(default, test)
        best = f"{float(study['best']):.3f}"
        row = rf"\| {name} \| .*\| {best} \|.*\| {gain:.3f} \xb1 {error:.3f} \|"
        assert re.search(row, page), row
