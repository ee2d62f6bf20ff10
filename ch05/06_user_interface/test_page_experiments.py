"""A short load on a real server, and committed tables that keep what is promised."""

from pathlib import Path

import pytest

from course.tables import read
from course.testing.experiment_scripts import other_columns

RESULTS = Path(__file__).parent / "results"


@pytest.fixture(scope="module")
def made(experiments, tmp_path_factory):
    """The tables of twenty clients that ask for two seconds."""
    folder = tmp_path_factory.mktemp("results")
    options = ["--tiny", "--seconds", "2", "--rounds", "2", "--out", str(folder)]
    assert experiments.main(options) == 0
    return folder


def test_a_short_run_writes_tables_like_the_committed_ones(made):
    names = ["load.csv", "memory.csv", "steps.csv"]
    assert other_columns(made, RESULTS, names) == []
    assert sorted(names) == sorted(path.name for path in RESULTS.glob("*.csv"))


def test_twenty_at_once_are_served_told_their_place_and_stopped_in_time(made):
    (row,) = read(made / "load.csv")
    found = {key: int(row[key]) for key in ("asked", "answered", "stopped", "lost")}
    assert found["lost"] == 0
    left = int(row["left_the_line"])
    assert found["asked"] == found["answered"] + found["stopped"] + left
    assert found["answered"] > 10
    assert found["stopped"] > 0
    assert left > 0
    assert int(row["told_a_place"]) > 10
    assert 10 < int(row["most_before"]) < 25  # who closed may ask again at once
    assert row["places_that_rose"] == "0"
    assert int(row["most_steps_after_closing"]) <= 1


def test_a_server_that_goes_on_would_be_seen(experiments):
    """Steps that begin after the line was closed are counted, by the question."""

    class Goes:
        def __init__(self):
            self.tokenizer = self

        def decode(self, ids):
            return f"Question {ids[0]}"

        def start(self, ids, length):
            return (number for number in range(length))

    writer = Goes()
    begun = experiments.watch(writer)
    assert list(writer.start([7], 2)) == [0, 1]
    next(writer.start([8], 2))
    assert [len(begun[f"Question {n}"]) for n in (7, 8)] == [3, 1]


def test_committed_load_lost_nobody_and_held_its_memory():
    rows = read(RESULTS / "load.csv")
    assert [row["model"] for row in rows] == [
        "SmolLM2",
        "SmolLM2 in 8 bits",
        "a small one, random",
    ]
    for row in rows:
        assert (row["clients"], row["asked_for_seconds"]) == ("20", "240")
        assert (row["lost"], row["places_that_rose"]) == ("0", "0")
        assert int(row["most_before"]) >= 19
        assert int(row["most_steps_after_closing"]) <= 1
        assert abs(float(row["megabytes_a_minute"])) < 2


def test_committed_steps_share_the_reading_of_the_weights():
    rows = {row["texts"]: row for row in read(RESULTS / "steps.csv")}
    assert list(rows) == ["1", "2", "4", "8"]
    assert float(rows["8"]["over_one_text"]) < 2
    assert float(rows["8"]["tokens_over_one_text"]) > 4
