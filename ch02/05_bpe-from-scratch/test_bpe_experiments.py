"""The experiments run, and their committed tables say what the pages say."""

import re
from pathlib import Path

import pytest

from course.tables import read
from course.testing.experiment_scripts import other_columns, script_in

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
EXPERIMENTS = script_in(FOLDER)
NAMES = [f"{name}.csv" for name in EXPERIMENTS.TABLES]


def test_a_tiny_run_writes_tables_like_the_committed_ones(tmp_path, capsys):
    assert EXPERIMENTS.main(["--tiny", "--out", str(tmp_path)]) == 0
    assert "s in all" in capsys.readouterr().out
    assert other_columns(tmp_path, RESULTS, NAMES) == []
    for name in ("training.csv", "encoding.csv"):
        made, stored = read(tmp_path / name), read(RESULTS / name)
        assert [row["contestant"] for row in made] == [r["contestant"] for r in stored]
        assert [row["text"] for row in made] == [row["text"] for row in stored]


def by_contestant(name, text):
    rows = read(RESULTS / f"{name}.csv")
    return {row["contestant"]: row for row in rows if row["text"] == text}


def test_the_fast_trainer_is_fast():
    """At full size, 5 MB and 4,096 entries, 50 times as fast as the naive one.

    It is also if all merges of the naive one took only as long as its last ones.
    """
    rows = by_contestant("training", EXPERIMENTS.LARGE)
    assert {row["threads"] for row in rows.values()} == {"1"}
    ours = rows[EXPERIMENTS.INCREMENTAL]
    assert int(ours["characters"]) > 5_000_000
    assert ours["merges"] == "3839"
    seconds = {name: float(row["seconds"]) for name, row in rows.items()}
    mine = seconds[EXPERIMENTS.INCREMENTAL]
    assert seconds[EXPERIMENTS.ALL] > 50 * mine
    assert 3839 / 20 * seconds[EXPERIMENTS.LAST] > 50 * mine
    assert mine < 2 * seconds[EXPERIMENTS.RUST]
    assert rows[EXPERIMENTS.FIRST]["merges"] == "200"
    assert rows[EXPERIMENTS.LAST]["merges"] == "20"


def test_the_seconds_of_all_naive_merges_are_interpolated_by_the_ids():
    """Known mistake: the dearest merges, the first ones, multiplied."""
    rows = by_contestant("training", EXPERIMENTS.LARGE)
    parts = EXPERIMENTS.FIRST, EXPERIMENTS.ALL, EXPERIMENTS.LAST
    most, mean, least = (int(rows[part]["ids_of_a_merge"]) for part in parts)
    assert most > mean > least
    first, last = (float(rows[part]["seconds"]) for part in (parts[0], parts[2]))
    weight = (mean - least) / (most - least)
    seconds = 3839 * (weight * first / 200 + (1 - weight) * last / 20)
    total = float(rows[EXPERIMENTS.ALL]["seconds"])
    assert total == pytest.approx(seconds, rel=1e-3)
    assert 3839 / 20 * last < total < 3839 / 200 * first


@pytest.mark.parametrize("num_merges", [0, 1, 30, 300])
def test_the_ids_before_each_merge_are_those_that_the_naive_trainer_sees(num_merges):
    chunks = EXPERIMENTS.count_in_files(["abab ab aaa aaaa bab abab banana bandana"])
    merges = EXPERIMENTS.train_naive(chunks, num_merges)
    ended, seen = list(chunks), [sum(map(len, chunks))]
    for new_id, pair in enumerate(merges, start=256):
        ended = [EXPERIMENTS.replace_pair(ids, pair, new_id) for ids in ended]
        seen.append(sum(map(len, ended)))
    assert EXPERIMENTS.ids_before_each_merge(ended, merges) == seen


def test_encoding_is_near_that_of_tiktoken_once_chunks_are_known():
    for text in (EXPERIMENTS.LARGE, EXPERIMENTS.SMALL):
        rows = by_contestant("encoding", text)
        times = {k: float(r["times_as_long_as_tiktoken"]) for k, r in rows.items()}
        assert times["tiktoken"] == 1
        assert times["ours, again"] < 2 < times["ours, empty cache"] < 20


def test_the_page_shows_the_seconds_of_the_table():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = by_contestant("training", EXPERIMENTS.LARGE)
    shown = re.findall(r"^\| .* \| ([\d.]+) \|$", page, re.MULTILINE)
    names = (EXPERIMENTS.ALL, EXPERIMENTS.INCREMENTAL, EXPERIMENTS.RUST)
    assert shown == [rows[name]["seconds"] for name in names]


def test_the_small_text_has_the_size_of_a_well_known_one():
    """742 merges on 20 kB, as others have measured it."""
    rows = by_contestant("training", EXPERIMENTS.SMALL)
    assert {row["merges"] for row in rows.values()} == {"742"}
    assert {row["characters"] for row in rows.values()} == {"20479"}
    assert float(rows[EXPERIMENTS.INCREMENTAL]["seconds"]) < 0.5


def test_many_random_strings_have_the_ids_of_tiktoken():
    (row,) = read(RESULTS / "parity.csv")
    assert int(row["strings"]) >= 100_000
    assert row["different"] == row["not_given_back"] == "0"


def test_a_larger_vocabulary_needs_fewer_tokens():
    rows = read(RESULTS / "growth.csv")
    sizes = [int(row["vocabulary"]) for row in rows]
    costs = [float(row["tokens_per_character"]) for row in rows]
    assert sizes == sorted(sizes)
    assert sizes[0] == 256
    assert sizes[-1] == 2**14
    assert costs == sorted(costs, reverse=True)
    assert costs[0] >= 1.0


def test_each_doubling_of_the_vocabulary_buys_less():
    rows = read(RESULTS / "growth.csv")
    costs = {int(r["vocabulary"]): float(r["tokens_per_character"]) for r in rows}
    saved = [costs[2**n] - costs[2 ** (n + 1)] for n in range(8, 14)]
    assert saved == sorted(saved, reverse=True)
    assert saved[-1] > 0
