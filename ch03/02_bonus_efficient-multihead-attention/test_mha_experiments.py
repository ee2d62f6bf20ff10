"""The benchmark runs, and its committed tables are of the form that it writes."""

from pathlib import Path

import pytest

from attention_costs import FLEX, SOURCE, WAYS
from course.tables import read
from course.testing.experiment_scripts import other_columns

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
NAMES = ("speed.csv", "memory.csv", "differences.csv")


@pytest.fixture(scope="module")
def tiny(experiments, tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    arguments = ["--tiny", "--rounds", "2", "--no-compile", "--out", str(out)]
    assert experiments.main(arguments) == 0
    return out


def test_tiny_run_writes_tables_like_the_committed_ones(tiny):
    assert other_columns(tiny, RESULTS, NAMES) == []
    for name in NAMES:
        assert {row["way"] for row in read(tiny / name)} == set(WAYS)
    for row in read(tiny / "speed.csv"):
        assert float(row["least_ms"]) > 0
        assert row["rounds"] == ("1" if row["way"] == "loops" else "2")


def test_another_device_gets_rows_beside_those_of_this_one(experiments, tiny):
    path = tiny / "differences.csv"
    before = read(path)
    elsewhere = [{**row, "device": "elsewhere"} for row in before]
    experiments.tables.replace(path, elsewhere, key="device")
    assert len(read(path)) == 2 * len(before)


def test_no_row_is_made_up_for_what_a_cpu_lacks(tiny):
    tasks = [row["task"] for row in read(tiny / "speed.csv") if row["way"] == FLEX]
    assert tasks == ["forward"]
    row = next(row for row in read(tiny / "differences.csv") if row["way"] == FLEX)
    assert row["gradient_difference"] == ""


def test_committed_tables_are_of_the_full_size_and_equal_forward_and_backward():
    for name in NAMES:
        for row in read(RESULTS / name):
            sizes = (row["batch"], row["tokens"], row["width"], row["heads"])
            assert sizes == ("8", "1024", "768", "12"), name
    for row in read(RESULTS / "differences.csv"):
        assert float(row["forward_difference"]) < 1e-5
        assert row["way"] == FLEX or float(row["gradient_difference"]) < 1e-4
        assert row["way"] == SOURCE or row["forward_difference"] != ""


def test_committed_memory_is_linear_for_tiles_as_for_the_fused_function():
    kept = {
        row["way"]: row["kept_for_backward_mb"] for row in read(RESULTS / "memory.csv")
    }
    assert kept["tiles"] == kept["SDPA, causal"]
    table = 8 * 12 * 1024**2 * 4 / 1e6  # one table of scores, in MB
    assert float(kept["tiles"]) < table < float(kept[SOURCE])


def test_a_ratio_is_the_least_time_over_the_least_of_chapter_3(experiments):
    made = experiments.AttentionContestant
    times = {
        made("tiles", None, experiments.FORWARD): [3.0, 1.0, 9.0],
        made(SOURCE, None, experiments.FORWARD): [8.0, 4.0, 2.0],
        made(SOURCE, None, experiments.BOTH): [6.0],
    }
    rows = list(experiments.speed_rows(times, {"device": "cpu"}))
    assert [row["over_chapter_3"] for row in rows] == ["0.5", "1", "1"]
    assert rows[0]["median_ms"] == "3000"
    assert rows[0]["least_ms"] == "1000"


def test_committed_ratios_are_those_of_the_least_times():
    rows = read(RESULTS / "speed.csv")
    base = {r["task"]: float(r["least_ms"]) for r in rows if r["way"] == SOURCE}
    for row in rows:
        task = row["task"].removesuffix(", compiled")
        ratio = float(row["least_ms"]) / base[task]
        assert float(row["over_chapter_3"]) == pytest.approx(ratio, rel=0.01)


def test_committed_times_are_cpu_time_and_their_orders_hold_for_the_median_too():
    rows = read(RESULTS / "speed.csv")
    assert {row["clock"] for row in rows} == {"CPU time"}
    assert {row["rounds"] for row in rows if row["way"] != "loops"} == {"5"}
    assert all(float(r["median_ms"]) < 1.3 * float(r["least_ms"]) for r in rows)
    both = {r["way"]: r for r in rows if r["task"] == "forward and backward"}
    for column in ("median_ms", "least_ms"):
        time = {way: float(row[column]) for way, row in both.items()}
        for way in ("list of heads", SOURCE, "combined QKV", "einsum"):
            assert time["tiles"] < 0.9 * time[way]
        assert time["SDPA, causal"] < 0.8 * time[SOURCE]
        lean, rich = "nn.MultiheadAttention, no weights", "nn.MultiheadAttention"
        assert time[lean] < 0.9 * time[rich]


def test_published_times_name_their_source_and_fit_our_ways():
    rows = read(RESULTS / "published.csv")
    assert len(rows) == 9
    assert {row["way"] for row in rows} < set(WAYS)
    assert all(row["source"] for row in rows)


def test_a_compiler_is_looked_for_by_its_name(experiments, monkeypatch):
    monkeypatch.setenv("CXX", "a-compiler-that-nobody-has")
    monkeypatch.setenv("PATH", "")
    assert experiments.compiler() is None
