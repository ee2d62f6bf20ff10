"""The experiment runs, and its committed tables are what its script would write."""

import json
from collections import Counter
from pathlib import Path

import pytest

from answer_scores_v2 import score_answer_v2
from course.tables import read, write
from course.testing.experiment_scripts import other_columns, script_in
from generate_instructions import judged_pairs, yield_table
from instruction_data import user_text
from read_by_hand import reply_id
from revise_instructions import read_revision, revision_counts

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
TABLES = ["pairs.csv", "yield.csv", "cost.csv", "revisions.csv", "revised.csv"]
READ = ["by_hand.csv", "filters.csv"]


@pytest.fixture(scope="module")
def experiments():
    return script_in(FOLDER)


@pytest.fixture(scope="module")
def pairs():
    return read(RESULTS / "pairs.csv")


def pair_of(row):
    """A pair of the journal from a row of pairs.csv."""
    return {
        "number": int(row["number"]),
        "question": json.loads(row["question"]),
        "question_ended": row["question_ended"] == "1",
        "answer": json.loads(row["answer"]),
        "answer_ended": row["answer_ended"] == "1",
    }


def test_a_tiny_run_writes_tables_like_the_committed_ones(
    experiments, tmp_path, capsys
):
    options = ["--tiny", "--out", str(tmp_path), "--journals", str(tmp_path / "j")]
    assert experiments.main(options) == 0
    sheet = tmp_path / "sheet.csv"
    assert experiments.main([*options, "--sheet", str(sheet)]) == 0
    lines = [{**line, "verdict": str(i % 2)} for i, line in enumerate(read(sheet))]
    assert set(lines[0]) == {"id", "question", "reply", "verdict"}
    write(sheet, lines)
    before = (tmp_path / "pairs.csv").read_bytes()
    capsys.readouterr()
    if all(experiments.groups_of(read(tmp_path / "pairs.csv"))):
        for reader in ("me", "you"):
            assert experiments.main([*options, "--verdicts", str(sheet), reader]) == 0
        assert other_columns(tmp_path, RESULTS, [*READ, "readers.csv"]) == []
    assert "right before" not in capsys.readouterr().out  # nothing was made again
    assert (tmp_path / "pairs.csv").read_bytes() == before
    assert other_columns(tmp_path, RESULTS, TABLES) == []


def test_the_committed_pairs_have_the_faults_that_the_filters_find(experiments, pairs):
    known = experiments.known_questions()
    yields = read(RESULTS / "yield.csv")
    for way in experiments.WAYS:
        rows = [row for row in pairs if row["way"] == way]
        assert [int(row["number"]) for row in rows] == list(range(experiments.PAIRS))
        judged = judged_pairs(map(pair_of, rows), known)
        assert ["; ".join(pair["faults"]) for pair in judged] == [
            row["faults"] for row in rows
        ]
        found = [{k: str(v) for k, v in row.items()} for row in yield_table(judged)]
        assert [{**row, "way": way} for row in found] == [
            row for row in yields if row["way"] == way
        ]


def test_the_quality_of_the_filters_follows_from_the_verdicts(experiments, pairs):
    by_hand = read(RESULTS / "by_hand.csv")
    found = experiments.filter_table(pairs, by_hand)
    assert [{k: str(v) for k, v in row.items()} for row in found] == read(
        RESULTS / "filters.csv"
    )
    ids = [
        reply_id(json.loads(row["question"]), json.loads(row["answer"]))
        for row in pairs
    ]
    assert {row["reply_id"] for row in by_hand} <= set(ids)
    read_by = Counter(row["reader"] for row in by_hand)
    number = experiments.READ_KEPT + experiments.READ_REMOVED
    assert list(read_by.values()) == [number, number]
    found = experiments.readers_table(by_hand)
    assert [{k: str(v) for k, v in row.items()} for row in found] == read(
        RESULTS / "readers.csv"
    )


def test_readers_are_compared_on_what_both_have_read(experiments):
    verdicts = {"A": "110x", "B": "1001", "C": "x0xx"}
    by_hand = [
        {"reader": reader, "reply_id": str(i), "verdict": verdict}
        for reader, given in verdicts.items()
        for i, verdict in enumerate(given)
        if verdict != "x"
    ]
    found = [tuple(row.values()) for row in experiments.readers_table(by_hand)]
    assert found == [
        ("A", "B", 3, 1, 1, 0, 1),
        ("A", "C", 1, 0, 1, 0, 0),
        ("B", "C", 1, 0, 0, 0, 1),
    ]
    assert experiments.readers_table(by_hand[:3]) == []


def test_recall_counts_each_group_as_large_as_it_is(experiments):
    assert experiments.recall_of_groups([100, 300], [0.4, 0.05]) == pytest.approx(
        40 / 55
    )
    assert experiments.recall_of_groups([10, 20], [0.0, 0.0]) == 0
    assert experiments.precision_of_groups([100, 300], [0.4, 0.05]) == 0.4


def test_the_committed_revisions_have_the_verdicts_of_the_rule(experiments):
    rows = read(RESULTS / "revisions.csv")
    entries = {user_text(e): e for e in experiments.decidable(experiments.REVISED)}
    totals = {row["method"]: row for row in read(RESULTS / "revised.csv")}
    for method in experiments.METHODS:
        mine = [row for row in rows if row["method"] == method]
        assert len(mine) == experiments.REVISED
        before, after = [], []
        for row in mine:
            entry = entries[json.loads(row["question"])]
            answer = json.loads(row["answer"])
            new, kind = read_revision(json.loads(row["reply"]))
            assert kind == row["kind"]
            before.append(score_answer_v2(entry, answer))
            after.append(score_answer_v2(entry, new or answer))
            assert (int(row["before"]), int(row["after"])) == (before[-1], after[-1])
        counts = revision_counts(before, after)
        assert {k: str(v) for k, v in counts.items()}.items() <= totals[method].items()
