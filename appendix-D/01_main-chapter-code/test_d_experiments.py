"""The comparison runs, and its committed tables are what the lesson says they are."""

import inspect
import statistics
from pathlib import Path

import nbformat
import pytest
import torch

from course.assets import fetch, sha256_of
from course.tables import read
from course.testing.experiment_scripts import other_columns
from training_loop import warmup_cosine

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
NAMES = ("rates", "runs", "curves", "summary", "norms", "stopping")
TABLES = [f"{name}.csv" for name in NAMES]


@pytest.fixture(scope="module")
def tiny(experiments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    options = ["--tiny", "--seeds", "1", "2", "--out", str(folder)]
    assert experiments.main(options) == 0
    return folder


def test_tiny_run_writes_tables_like_the_committed_ones(experiments, tiny, capsys):
    assert other_columns(tiny, RESULTS, TABLES) == []
    assert sorted(TABLES) == sorted(path.name for path in RESULTS.glob("*.csv"))
    assert [r["recipe"] for r in read(tiny / "summary.csv")] == [*experiments.RECIPES]
    for row in read(tiny / "curves.csv"):
        assert 3 < float(row["val_loss"]) < 7


def test_what_is_there_is_not_made_again(experiments, tiny, monkeypatch):
    before = {name: (tiny / name).read_text(encoding="utf-8") for name in TABLES}
    monkeypatch.setattr(experiments, "train_model_simple", None)
    assert experiments.main(["--tiny", "--seeds", "1", "2", "--out", str(tiny)]) == 0
    after = {name: (tiny / name).read_text(encoding="utf-8") for name in TABLES}
    assert after == before


def test_additions_that_only_compute_otherwise_learn_the_same(tiny):
    """Accumulation is the plain loop up to rounding; seeds differ by much more."""
    best = {(r["recipe"], r["seed"]): float(r["best"]) for r in read(tiny / "runs.csv")}
    for seed in "12":
        gap = best["accumulation", seed] - best["plain loop", seed]
        assert abs(gap) < 0.001
    assert abs(best["plain loop", "1"] - best["plain loop", "2"]) > 0.01


def test_every_recipe_has_the_same_batches_and_as_many(experiments, tmp_path):
    options = ["--tiny", "--out", str(tmp_path)]
    parser = experiments.tables.one_run(None, tmp_path)
    options = parser.parse_args(options)
    options.seeds = [1]
    bench = experiments.LoopBench(options)
    runs = [[batch[0] for batch in bench.loader(seed)] for seed in (1, 1, 2)]
    assert [len(run) for run in runs] == [bench.updates] * 3
    assert all(map(torch.equal, runs[0], runs[1]))
    assert not all(map(torch.equal, runs[0], runs[2]))


def test_the_committed_runs_are_of_these_data_and_sizes(experiments):
    runs = read(RESULTS / "runs.csv")
    sha256 = sha256_of(fetch("instructions"))[:12]
    assert {row["data_sha256"] for row in runs} == {sha256}
    made = list(dict.fromkeys(row["recipe"] for row in runs))
    assert sorted(made) == sorted(experiments.RECIPES)
    summary = [row["recipe"] for row in read(RESULTS / "summary.csv")]
    assert summary == [*experiments.RECIPES]
    for name in made:
        seeds = [row["seed"] for row in runs if row["recipe"] == name]
        assert seeds == ["1", "2", "3"], name
    rates = read(RESULTS / "rates.csv")
    assert {row["seed"] for row in rates}.isdisjoint({row["seed"] for row in runs})
    last = {row["update"] for row in read(RESULTS / "curves.csv")}
    assert str(experiments.UPDATES) in last
    for row in read(RESULTS / "norms.csv"):
        assert float(row["limit"]) == experiments.MAX_NORM
        assert int(row["updates"]) == experiments.UPDATES


def test_the_lesson_names_the_numbers_that_the_code_has(experiments):
    """Known mistake: one length of the warm-up in the text, another in the code."""
    cells = nbformat.read(FOLDER / "appendix-D.ipynb", as_version=4).cells
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    lesson = " ".join(" ".join(texts).split())
    lowest = experiments.SCHEDULES["cosine"].keywords["lowest"]
    for words in (
        f"{experiments.UPDATES} updates of two windows",
        f"a ramp of {experiments.WARMUP} updates",
        f"a cosine that ends at **{lowest:g}**",
        f"way down in the last {experiments.DECAY} updates",
        f"way down begins only after update {experiments.UPDATES - experiments.DECAY}",
        f"a limit of {experiments.MAX_NORM:g} for the length",
        f"the running average with d = {experiments.AVERAGE} is measured",
        f"the plain loop: {experiments.WEIGHT_DECAY} for all parameters",
        f"with a patience of {experiments.PATIENCE}:",
    ):
        assert words in lesson, words
    assert experiments.BATCH_SIZE == 2
    assert "(section D.2's ends at a tenth)" in lesson
    assert inspect.signature(warmup_cosine).parameters["lowest"].default == 0.1


def test_the_committed_rates_were_searched_on_both_sides():
    """The best rate of AdamW and of Muon lies inside of what was tried."""
    for name in ("plain loop", "Muon"):
        rows = [r for r in read(RESULTS / "rates.csv") if r["recipe"] == name]
        losses = [float(row["last"]) for row in rows]
        assert len(rows) >= 5
        assert min(losses) < losses[0], name
        assert min(losses) < losses[-1], name


def test_the_summary_follows_from_the_runs():
    runs = read(RESULTS / "runs.csv")
    plain = {r["seed"]: r for r in runs if r["recipe"] == "plain loop"}
    plain_time = statistics.median(float(r["ms_an_update"]) for r in plain.values())
    for row in read(RESULTS / "summary.csv"):
        mine = [run for run in runs if run["recipe"] == row["recipe"]]
        for what in ("best", "last"):
            losses = [float(run[what]) for run in mine]
            gains = [float(plain[r["seed"]][what]) - float(r[what]) for r in mine]
            for name, value in {
                what: statistics.mean(losses),
                f"{what}_spread": max(losses) - min(losses),
                f"{what}_gain": statistics.mean(gains),
                f"{what}_least_gain": min(gains),
            }.items():
                assert float(row[name]) == pytest.approx(value, abs=6e-4), name
        time = statistics.median(float(run["ms_an_update"]) for run in mine)
        assert float(row["ms_an_update"]) == pytest.approx(time, abs=0.51)
        ratio = time / plain_time
        assert float(row["times_as_long"]) == pytest.approx(ratio, abs=6e-3)


def test_the_runs_follow_from_the_curves():
    curves = {}
    for row in read(RESULTS / "curves.csv"):
        points = curves.setdefault((row["recipe"], row["seed"]), [])
        points.append((int(row["update"]), row["val_loss"]))
    runs = read(RESULTS / "runs.csv")
    assert [*curves] == [(run["recipe"], run["seed"]) for run in runs]
    for run in runs:
        points = curves[run["recipe"], run["seed"]]
        assert [at for at, _ in points] == list(range(20, 241, 20))
        best = min(points, key=lambda point: float(point[1]))
        assert (run["best_after"], run["best"]) == (str(best[0]), best[1])
        assert run["last"] == points[-1][1]


def test_the_lesson_shows_the_summary_with_both_losses_their_spreads_and_seconds():
    cells = nbformat.read(FOLDER / "appendix-D.ipynb", as_version=4).cells
    (cell,) = [cell for cell in cells if cell.id == "summary-table"]
    head, *lines = cell.outputs[0].text.splitlines()
    assert " ".join(head.split()) == (
        "recipe best spread last spread gain least sec. time"
    )
    rows = read(RESULTS / "summary.csv")
    assert len(lines) == len(rows)
    names = ("best", "best_spread", "last", "last_spread")
    names += ("best_gain", "best_least_gain")
    for line, row in zip(lines, rows):
        shown = [row[name] for name in names]
        shown.append(f"{float(row['ms_an_update']) / 1000:.3f}")
        shown.append(f"{float(row['times_as_long']):.1f}")
        assert line.split() == [*row["recipe"].split(), *shown]


def test_the_page_says_of_the_cosine_what_the_runs_say():
    runs = read(RESULTS / "runs.csv")
    best = {(row["recipe"], row["seed"]): float(row["best"]) for row in runs}
    for seed in "123":
        assert best["warm-up, cosine", seed] > best["warm-up", seed]
    assert any(best["combined, cosine", s] < best["plain loop", s] for s in "123")
    page = " ".join((FOLDER.parent / "README.md").read_text(encoding="utf-8").split())
    assert "a cosine to 0 ends above the same warm-up without it." in page


def test_the_committed_stopping_saves_and_loses_nothing():
    rows = read(RESULTS / "stopping.csv")
    assert len(rows) >= 3
    for row in rows:
        assert int(row["stopped_epochs"]) < int(row["whole_epochs"])
        assert float(row["stopped_best"]) == float(row["whole_best"])
        assert float(row["stopped_last"]) >= float(row["stopped_best"])
        assert float(row["stopped_seconds"]) < 0.6 * float(row["whole_seconds"])
