"""The experiment runs, and its committed tables are what its script would write."""

import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from answer_scores_v2 import score_answer_v2
from course import assets
from course.tables import read
from course.testing.experiment_scripts import other_columns, script_in
from instruction_data import read_instructions, user_text
from preference_pairs import is_brief, sounds_polite, tone_rule

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
TABLES = [
    f"{name}.csv"
    for name in ("runs", "curves", "pairs", "replies", "scores", "brevity")
]


@pytest.fixture(scope="module")
def experiments():
    return script_in(FOLDER)


@pytest.fixture(scope="module")
def tables_made():
    return {name: read(RESULTS / name) for name in TABLES}


@pytest.fixture(scope="module")
def pairs():
    return json.loads(assets.fetch("preferences-2").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def instructions():
    return read_instructions(assets.fetch("instructions-2"))


def test_a_tiny_run_writes_tables_like_the_committed_ones(
    experiments, tmp_path, capsys
):
    options = ["--tiny", "--out", str(tmp_path), "--cache", str(tmp_path / "cache")]
    options += ["--seeds", "1", "--only", "beta 0.1"]
    assert experiments.main(options) == 0
    assert other_columns(tmp_path, RESULTS, TABLES) == []
    made = {name: read(tmp_path / name) for name in TABLES}
    assert [row["run"] for row in made["runs.csv"]] == ["untuned", "beta 0.1, seed 1"]
    first, *_, last = made["curves.csv"]
    assert float(first["val_losses"]) == pytest.approx(math.log(2), abs=2e-3)
    assert float(last["train_losses"]) < float(first["train_losses"])
    capsys.readouterr()
    assert experiments.main(options) == 0  # all of it is there: nothing is trained
    assert {name: read(tmp_path / name) for name in TABLES} == made
    assert "prepared" not in capsys.readouterr().out


def test_no_question_of_the_test_was_trained_on(experiments, pairs, instructions):
    questions = experiments.questions_to_ask(
        [p for p in pairs if p["split"] == "test"], instructions, experiments.QUESTIONS
    )
    ruled = [q for q in questions if "answers" in q["entry"]]
    assert len(ruled) == experiments.QUESTIONS
    seen = {user_text(p) for p in pairs if p["split"] != "test"}
    families = {p["family"] for p in pairs if p["split"] != "test"}
    for question in questions:
        assert user_text(question["entry"]) not in seen
        assert question["entry"]["family"] not in families


def test_the_committed_tables_are_of_all_methods(experiments, tables_made):
    runs = tables_made["runs.csv"]
    seeds = {name: [] for name in experiments.METHODS}
    for row in runs:
        seeds[row["method"]].append(row["seed"])
    assert seeds.pop("untuned") == [""]
    assert seeds.pop("beta 0.1") == ["1", "2", "3"]
    for found in seeds.values():
        assert found == ["1", "2", "3"][: len(found)]
    digest = assets.sha256_of(assets.fetch("preferences-2"))[:12]
    assert {row["data_sha256"] for row in runs} == {digest}
    for name in ("pairs.csv", "replies.csv"):
        counts = Counter(row["run"] for row in tables_made[name])
        judged = [
            row["run"] for row in runs if name == "pairs.csv" or row["polite"] != ""
        ]
        assert list(counts) == judged
        assert len(set(counts.values())) == 1


def test_the_verdicts_are_those_of_the_rules(pairs, instructions, tables_made):
    rule = tone_rule(p for p in pairs if p["split"] == "train")
    known = {user_text(entry): entry for entry in instructions}
    chosen = {user_text(p): p["chosen"] for p in pairs}
    rows = tables_made["replies.csv"][::7]
    for row in rows:
        text, question = json.loads(row["reply"]), row["question"]
        if row["polite"]:
            assert sounds_polite(rule, [text]) == [row["polite"] == "1"]
        else:
            answer = chosen.get(question) or known[question]["output"]
            assert is_brief(text, answer) == (row["brief"] == "1")
        if row["right_v2"]:
            right = score_answer_v2(known[question], text)
            assert right == (row["right_v2"] == "1")
    assert {row["polite"] for row in rows} == {"", "0", "1"}


def test_what_says_nothing_was_learned_from_no_pair(pairs, tables_made):
    """Tuned replies without a letter or digit; the notebook and the page count them."""
    assert all(any(map(str.isalnum, pair["chosen"])) for pair in pairs)
    silent = Counter(
        row["run"]
        for row in tables_made["replies.csv"]
        if not any(map(str.isalnum, json.loads(row["reply"])))
    )
    assert sorted(silent.values()) == [6, 7, 8]
    assert "untuned" not in silent


def test_the_scores_are_those_of_the_runs(experiments, tables_made, tmp_path):
    *runs, scores, brevity = TABLES
    for name in runs:
        (tmp_path / name).write_bytes((RESULTS / name).read_bytes())
    experiments.tabulate(SimpleNamespace(out=tmp_path))
    for name in (scores, brevity):
        assert read(tmp_path / name) == tables_made[name]


def test_a_cut_reply_has_as_many_words_as_the_other_one(experiments):
    assert experiments.cut_to("One  two\nthree four.", "Just two.") == "One two"
    assert experiments.cut_to("One.", "Many more words") == "One."
    assert experiments.cut_to("One two", "") == ""


def test_brevity_is_compared_question_by_question(experiments, pairs):
    """A tuned model that only stops earlier gains nothing beyond what cutting gains."""
    some = [
        p for p in pairs if p["split"] == "test" and p["flaw"] in ("impolite", "wrong")
    ]
    questions = [
        {"entry": {**p, "output": p["chosen"]}, "flaw": p["flaw"]} for p in some
    ]
    rule = tone_rule(p for p in pairs if p["split"] == "train")
    long = [f"{p['chosen']} {p['rejected']}" for p in some]
    before = experiments.judged(questions, long, rule)
    shorter = [experiments.cut_to(text, "one two three") for text in long]
    said = [*shorter[:-1], "\N{GLOWING STAR}"]  # the last one says nothing
    stopped, silent = (experiments.judged(questions, t, rule) for t in (shorter, said))
    rows = experiments.against_brevity(before, [stopped])
    found = {row["verdict"]: row for row in rows}
    assert {row["beyond"] for row in rows} == {"0.0"}
    assert float(found["polite"]["by_cut"]) != 0
    assert found["letters"]["tuned"] == "100.0"
    rows = experiments.against_brevity(before, [stopped, silent])
    found = {row["verdict"]: row for row in rows}
    lost = 100 / (2 * len(some))
    assert float(found["letters"]["beyond"]) == pytest.approx(-lost, abs=0.06)
    assert found["polite"]["seeds"] == 2


def test_the_page_says_what_the_tables_say(tables_made):
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    scores = {row["method"]: row for row in tables_made["scores.csv"]}
    before, after = scores["untuned"], scores["beta 0.1"]
    for what, name in {
        "brief": "brief",
        "polite": "polite",
        "right": "right, rule 1",
        "right_v2": "right, rule 2",
    }.items():
        gain, low, high = (
            float(after[f"{what}_gain{end}"]) for end in ("", "_low", "_high")
        )
        row = (
            f"| {name} | {before[what]} % | {after[what]} % | {gain:+.1f} "
            f"({low:+.1f} to {high:+.1f}) |"
        )
        assert row in page
    brevity = {row["verdict"]: row for row in tables_made["brevity.csv"]}
    for what, name in {
        "polite": "polite",
        "polite_letters": "polite, with a letter or digit",
        "brief": "brief",
        "right_v2": "right, rule 2",
    }.items():
        row = brevity[what]
        beyond, low, high = (
            float(row[f"beyond{end}"]) for end in ("", "_low", "_high")
        )
        row = (
            f"| {name} | {row['untuned']} | {row['cut']} | {row['tuned']} | "
            f"{beyond:+.1f} ({low:+.1f} to {high:+.1f}) |"
        )
        assert row in page


def test_what_was_aimed_at_is_reached_by_the_stricter_rule(tables_made):
    """15 points more of what the pairs prefer, at most 3 points lost of right ones."""
    scores = {row["method"]: row for row in tables_made["scores.csv"]}
    after = scores["beta 0.1"]
    assert after["seeds"] == "3"
    assert float(after["brief_gain_low"]) >= 15
    assert float(after["right_v2_gain"]) >= -3


def test_rounded_weights_follow_the_training(experiments):
    """PyTorch would keep those of the first product for the whole block."""
    layer, x = torch.nn.Linear(4, 4), torch.ones(1, 4)
    with experiments.autocast():
        before = layer(x).detach().clone()
        with torch.no_grad():
            layer.weight.add_(1)
        assert before.dtype == torch.bfloat16
        assert not torch.equal(layer(x), before)
