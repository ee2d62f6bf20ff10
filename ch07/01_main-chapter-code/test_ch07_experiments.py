"""The comparison of chapter 7 runs, and its statistics are what they are named."""

import json
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch

from course.assets import fetch, sha256_of
from course.tables import read
from course.testing.experiment_scripts import other_columns
from gpt import GPT_CONFIG_124M, GPTModel, initialise_like_gpt2
from gpt_train import save_checkpoint

FOLDER = Path(__file__).parent
TABLES = ("scores.csv", "seeds.csv", "categories.csv", "gains.csv", "replies.csv")
RULES = ("share", "share_v2")
TINY = {
    **GPT_CONFIG_124M,
    "context_length": 128,
    "emb_dim": 12,
    "n_heads": 2,
    "n_layers": 3,
    "drop_rate": 0.0,
    "tie_weights": True,
}


@pytest.fixture(scope="module")
def tables(experiments, tmp_path_factory):
    """All methods on 24 entries made up here, with a tiny GPT as the model."""
    folder = tmp_path_factory.mktemp("tables")
    torch.manual_seed(0)
    model = initialise_like_gpt2(GPTModel(TINY))
    save_checkpoint(folder / "base", model, tokenizer=tiktoken.get_encoding("gpt2"))
    made = [
        {
            "instruction": f"Say yes {i}.",
            "input": "",
            "output": "Yes.",
            "category": ("facts", "lists")[i % 2],
            "family": f"f{i // 2}",
            "split": ("train", "train", "validation", "test")[i // 2 % 4],
        }
        for i in range(24)
    ]
    for entry in made[:-1]:  # one entry of the test part lists no answers
        entry["answers"] = ["yes"]
    data = folder / "data.json"
    data.write_text(json.dumps(made), encoding="utf-8")
    arguments = ["--data", data, "--model", folder / "base", "--out", folder]
    arguments += ["--seeds", "1", "2", "--epochs", "1", "--max-new-tokens", "2"]
    assert experiments.main([str(argument) for argument in arguments]) == 0
    return folder


def test_every_method_gets_its_rows(experiments, tables):
    rows = read(tables / "scores.csv")
    assert [row["method"] for row in rows] == list(experiments.METHODS)
    for row in rows:
        for rule in RULES:
            low, share, high = (
                float(row[key]) for key in (f"{rule}_low", rule, f"{rule}_high")
            )
            assert 0 <= low <= share <= high <= 100
        assert row["entries"] == "5"
        assert float(row["answer_loss"]) == pytest.approx(10.8, abs=0.3)
        untuned = row["method"] in experiments.UNTUNED
        assert row["seeds"] == ("1" if untuned else "2")
    assert len(read(tables / "seeds.csv")) == 2 + 4 * 2
    assert len(read(tables / "replies.csv")) == 5 * (2 + 4 * 2)
    gains = read(tables / "gains.csv")
    assert len(gains) == 4 * 2
    assert {row["before"] for row in gains} == set(experiments.UNTUNED)
    seeds = read(tables / "seeds.csv")
    tuned = [row for row in seeds if row["seed"]]
    assert all(float(row["validation_loss"]) > 5 for row in tuned)
    assert {row["epochs"] for row in tuned} == {"1"}
    categories = read(tables / "categories.csv")
    assert [row["category"] for row in categories[:3]] == ["facts", "lists", "all"]


def test_the_learning_rate_is_the_best_on_the_validation_part(experiments, tables):
    """One for each number of blocks, taken by all its methods and seeds."""
    rows = read(tables / "rates.csv")
    assert [row["method"] for row in rows] == [
        name for name in ("12 blocks", "everything") for _ in range(2)
    ]
    chosen = {}
    for name in ("12 blocks", "everything"):
        tried = [row for row in rows if row["method"] == name]
        best = min(tried, key=lambda row: float(row["validation_loss"]))
        assert best["chosen"] == "1"
        assert sum(row["chosen"] == "1" for row in tried) == 1
        assert {row["seed"] for row in tried} == {"1"}
        chosen[experiments.METHODS[name].blocks] = best
    for row in read(tables / "seeds.csv"):
        if row["seed"]:
            best = chosen[experiments.METHODS[row["method"]].blocks]
            assert row["rate"] == best["rate"]
            if (row["method"], row["seed"]) == (best["method"], "1"):
                loss = float(row["validation_loss"])
                assert loss == pytest.approx(float(best["validation_loss"]), abs=1e-3)


def test_the_committed_tables_are_of_these_methods_and_these_data(experiments):
    folder = FOLDER / "results"
    rows = {row["method"]: row for row in read(folder / "scores.csv")}
    assert list(rows) == list(experiments.METHODS)
    path = fetch(experiments.DATA)
    _, _, test = experiments.split_instructions(experiments.read_instructions(path))
    scored = [entry for entry in test if entry.get("answers")]
    for name, row in rows.items():
        assert row["data_sha256"] == sha256_of(path)[:12], name
        assert row["entries"] == str(len(scored))
    assert len(scored) >= 500
    assert len({entry["family"] for entry in scored}) >= 300
    for name, row in rows.items():
        assert int(row["seeds"]) >= (1 if name in experiments.UNTUNED else 3), name


def test_the_committed_verdicts_are_those_of_the_rules(experiments):
    by_question = {
        experiments.user_text(entry): entry
        for entry in experiments.read_instructions(fetch(experiments.DATA))
    }
    for row in read(FOLDER / "results" / "replies.csv"):
        entry, reply = by_question[row["question"]], json.loads(row["reply"])
        found = experiments.verdicts(entry, reply)
        assert {key: row[key] for key in found} == {
            key: str(value) for key, value in found.items()
        }


def test_the_tables_have_the_columns_of_the_committed_ones(tables):
    assert other_columns(tables, FOLDER / "results", TABLES) == []


def run_again(experiments, tables, out, *more):
    arguments = ["--data", tables / "data.json", "--model", tables / "base"]
    arguments += ["--out", out, "--epochs", "1", "--max-new-tokens", "2", *more]
    return experiments.main([str(argument) for argument in arguments])


def test_a_run_that_is_in_the_tables_is_not_made_again(
    experiments, tables, monkeypatch, capsys
):
    def never(*_):
        raise AssertionError("nothing is to be computed")

    monkeypatch.setattr(experiments.Method, "__call__", never)
    monkeypatch.setattr(experiments, "tabulate", lambda *_: None)
    before = {name: (tables / name).read_bytes() for name in TABLES}
    assert run_again(experiments, tables, tables, "--seeds", "1", "2") == 0
    assert capsys.readouterr().out.count("as measured before") == 6
    assert {name: (tables / name).read_bytes() for name in TABLES} == before


def test_a_further_seed_is_added_at_the_known_rate(
    experiments, tables, tmp_path, monkeypatch
):
    monkeypatch.setattr(experiments, "tabulate", lambda *_: None)
    for name in ("seeds", "replies", "rates"):
        shutil.copy(tables / f"{name}.csv", tmp_path)
    more = ("--only", "12 blocks, chat template", "--seeds", "1", "2", "5")
    assert run_again(experiments, tables, tmp_path, *more) == 0
    before, after = (read(one / "seeds.csv") for one in (tables, tmp_path))
    (new,) = [row for row in after if row not in before]
    assert [row for row in after if row != new] == before
    assert (new["method"], new["seed"]) == ("12 blocks, chat template", "5")
    assert after.index(new) == before.index(
        next(row for row in before if row["method"] == "everything")
    )
    assert read(tmp_path / "rates.csv") == read(tables / "rates.csv")


def test_runs_on_other_data_are_not_mixed(experiments, tables, tmp_path):
    shutil.copy(tables / "seeds.csv", tmp_path)
    (tmp_path / "other.json").write_text(
        (tables / "data.json").read_text(encoding="utf-8") + "\n", encoding="utf-8"
    )
    with pytest.raises(ValueError, match="has runs on other data"):
        run_again(experiments, tables, tmp_path, "--data", str(tmp_path / "other.json"))


def test_data_are_taken_by_name(experiments, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        experiments, "run", lambda name, parts, options: seen.append((parts, options))
    )
    monkeypatch.setattr(experiments, "tabulate", lambda *_: None)
    more = ["--data", "instructions-2", "--only", "12 blocks, chat template"]
    more += ["--out", str(tmp_path)]
    assert experiments.main(more) == 0
    assert len(seen) == 3  # both ways of asking the untuned model come first
    parts, options = seen[-1]
    assert options.sha256 == sha256_of(fetch("instructions-2"))
    assert len(parts[2]) >= 500
    assert len({entry["family"] for entry in parts[2]}) >= 300
    assert all(entry["answers"] for entry in parts[2])


def test_replies_are_judged_anew(experiments, tables, tmp_path, monkeypatch):
    for name in ("seeds", "replies"):
        shutil.copy(tables / f"{name}.csv", tmp_path)
    monkeypatch.setattr(experiments, "score_answer_v2", lambda *_: True)
    monkeypatch.setattr(experiments, "tabulate", lambda *_: None)
    assert run_again(experiments, tables, tmp_path, "--rescore") == 0
    name = "seeds.csv"
    for old, new in zip(read(tables / name), read(tmp_path / name), strict=True):
        assert {**new, "share_v2": old["share_v2"]} == old
        assert new["share_v2"] == "100.0"


def test_each_seed_starts_from_the_untuned_model(experiments, tables, monkeypatch):
    from instruction_data import read_instructions, split_instructions

    starts, ends = [], []
    train = experiments.Method.train

    def watched(self, learner, untuned, *rest):
        experiments.put_back(learner, untuned)
        starts.append(experiments.copies(learner))
        loss = train(self, learner, untuned, *rest)
        ends.append(experiments.copies(learner))
        return loss

    monkeypatch.setattr(experiments.Method, "train", watched)
    monkeypatch.setitem(experiments.RATES, 1, (1e-3,))
    options = Namespace(
        model=str(tables / "base"),
        device="cpu",
        dtype=torch.float32,
        seeds=[1, 2],
        epochs=2,
        max_new_tokens=1,
    )
    parts = split_instructions(read_instructions(tables / "data.json"))
    method = experiments.Method("phi3", 1)
    assert len(list(method(parts, options, [1, 2], {}))) == 2
    assert len(starts) == 2
    assert all(map(torch.equal, *starts))
    assert not all(map(torch.equal, starts[0], ends[0]))
    assert not all(map(torch.equal, *ends))


def test_the_mixed_loss_is_the_loss_with_fewer_digits(experiments):
    torch.manual_seed(0)
    model = GPTModel(TINY)
    inputs = torch.randint(50257, (2, 9))
    targets = inputs.roll(-1, dims=1)
    exact, same, mixed = (
        loss(inputs, targets, model, "cpu", **more).item()
        for loss, more in (
            (experiments.calc_loss_answers, {}),
            (experiments.mixed_loss, {"dtype": torch.float32}),
            (experiments.mixed_loss, {"dtype": torch.bfloat16}),
        )
    )
    assert exact == same != mixed
    assert mixed == pytest.approx(exact, rel=0.02)


def test_the_committed_intervals_follow_from_the_committed_replies(experiments):
    """Those of shares and gains, with one run and with several."""
    folder = FOLDER / "results"
    replies = read(folder / "replies.csv")
    entries = {
        experiments.user_text(entry): entry
        for entry in experiments.read_instructions(fetch(experiments.DATA))
    }
    families = [entries[row["question"]]["family"] for row in replies]
    for rule in ("", "_v2"):
        right = {}
        for row in replies:
            runs = right.setdefault(row["method"], {})
            runs.setdefault(row["seed"], []).append(int(row[f"right{rule}"]))
        right = {name: np.array(list(runs.values())) for name, runs in right.items()}
        assert len(right[experiments.DEFAULT]) > 1
        of_one = families[: right[experiments.DEFAULT].shape[1]]
        for row in read(folder / "scores.csv"):
            hits = right[row["method"]]
            bounds = experiments.bootstrap_interval(hits, of_one)
            found = experiments.percent(f"share{rule}", hits.mean(), bounds)
            assert found == {name: row[name] for name in found}, row["method"]
        for row in read(folder / "gains.csv"):
            gains = right[row["method"]] - right[row["before"]].astype(float)
            bounds = experiments.bootstrap_interval(gains, of_one)
            found = experiments.percent(f"gain{rule}", gains.mean(), bounds)
            assert found == {name: row[name] for name in found}, row["method"]


def test_a_gain_is_counted_entry_by_entry(experiments):
    families = np.array([f"f{i}" for i in range(10)])
    before = np.array([[True] * 2 + [False] * 8])
    after = np.array([[True] * 6 + [False] * 4, [True] * 8 + [False] * 2])
    can_first = np.array([[True] * 5 + [False] * 5])
    outcomes = {
        experiments.UNTUNED[0]: (before, ~before, can_first),
        experiments.DEFAULT: (after, after, np.ones_like(after)),
    }
    (row,) = experiments.compare(outcomes, families)
    assert (row["gain"], row["both_readable"]) == ("50.0", 5)
    assert (row["gain_v2"], row["gain_readable"]) == ("-10.0", "60.0")
    assert float(row["gain_low"]) < 50 < float(row["gain_high"])
