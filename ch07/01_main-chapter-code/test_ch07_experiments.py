"""The comparison of chapter 7 runs, and its statistics are what they are named."""

import json
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
        low, share, high = (
            float(row[key]) for key in ("share_low", "share", "share_high")
        )
        assert 0 <= low <= share <= high <= 100
        assert row["entries"] == "5"
        assert float(row["answer_loss"]) == pytest.approx(10.8, abs=0.3)
        untuned = row["method"] in experiments.UNTUNED
        assert row["seeds"] == ("1" if untuned else "2")
    assert len(read(tables / "seeds.csv")) == 2 + 6 * 2
    assert len(read(tables / "replies.csv")) == 5 * (2 + 6 * 2)
    gains = read(tables / "gains.csv")
    assert len(gains) == 6 * 2
    assert {row["before"] for row in gains} == set(experiments.UNTUNED)
    categories = read(tables / "categories.csv")
    assert [row["category"] for row in categories[:3]] == ["facts", "lists", "all"]


def test_the_committed_tables_are_of_these_methods_and_these_data(experiments):
    folder = FOLDER / "results"
    rows = {row["method"]: row for row in read(folder / "scores.csv")}
    assert list(rows) == list(experiments.METHODS)
    sha256 = sha256_of(fetch("instructions"))[:12]
    for name, row in rows.items():
        assert row["data_sha256"] == sha256, f"{name} was measured on other entries"
        assert row["entries"] == "170"
    assert int(rows[experiments.DEFAULT]["seeds"]) >= 3


def test_the_tables_have_the_columns_of_the_committed_ones(tables):
    assert other_columns(tables, FOLDER / "results", TABLES) == []


def test_one_method_alone_leaves_the_other_rows(experiments, tables):
    before = read(tables / "seeds.csv")
    arguments = ["--data", tables / "data.json", "--model", tables / "base"]
    arguments += ["--out", tables, "--epochs", "1", "--max-new-tokens", "2"]
    arguments += ["--only", "4 blocks", "--seeds", "5"]
    assert experiments.main([str(argument) for argument in arguments]) == 0
    after = read(tables / "seeds.csv")
    others = [row for row in before if row["method"] != "4 blocks"]
    assert [row for row in after if row["method"] != "4 blocks"] == others
    assert [row["seed"] for row in after if row["method"] == "4 blocks"] == ["5"]
    order = [row["method"] for row in after]
    assert order == sorted(order, key=list(experiments.METHODS).index)


def test_a_method_alone_is_compared_with_the_kept_replies(
    experiments, tables, monkeypatch
):
    """The untuned model is asked anew only where its replies are to other questions."""
    asked = []

    def ask(self, model, tokenizer, entries, options, seed):
        asked.append((self.style, self.blocks))
        return {"seed": seed, "replies": ["no"] * len(entries), "loss": 1.0}

    monkeypatch.setattr(experiments.Method, "ask", ask)
    monkeypatch.setattr(experiments.Method, "train", lambda *_: None)
    arguments = ["--data", tables / "data.json", "--model", tables / "base"]
    arguments += ["--only", "4 blocks", "--seeds", "5", "--out"]
    assert experiments.main([str(a) for a in [*arguments, tables]]) == 0
    assert asked == [("alpaca", 4)]
    rows = [row for row in read(tables / "gains.csv") if row["method"] == "4 blocks"]
    shares = {row["method"]: float(row["share"]) for row in read(tables / "scores.csv")}
    for row in rows:
        expected = shares["4 blocks"] - shares[row["before"]]
        assert float(row["gain"]) == pytest.approx(expected, abs=0.11)
    assert len(rows) == 2
    asked.clear()
    assert experiments.main([str(a) for a in [*arguments, tables / "empty"]]) == 0
    assert asked == [("chatml", 0), ("alpaca", 0), ("alpaca", 4)]


def test_each_seed_starts_from_the_untuned_model(experiments, tables, monkeypatch):
    from instruction_data import read_instructions, split_instructions

    starts, ends = [], []
    train = experiments.Method.train

    def watched(self, learner, *rest):
        starts.append([p.clone() for p in experiments.learning(learner)])
        train(self, learner, *rest)
        ends.append([p.clone() for p in experiments.learning(learner)])

    monkeypatch.setattr(experiments.Method, "train", watched)
    options = Namespace(
        model=str(tables / "base"),
        device="cpu",
        dtype=torch.float32,
        seeds=[1, 2],
        epochs=2,
        max_new_tokens=1,
    )
    parts = split_instructions(read_instructions(tables / "data.json"))
    experiments.Method("phi3", 1)(parts, options)
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
        for entry in experiments.read_instructions(fetch("instructions"))
    }
    right = {}
    for row in replies:
        runs = right.setdefault(row["method"], {})
        runs.setdefault(row["seed"], []).append(int(row["right"]))
    right = {name: np.array(list(runs.values())) for name, runs in right.items()}
    count = right[experiments.DEFAULT].shape[1]
    families = [entries[row["question"]]["family"] for row in replies[:count]]
    assert len(right[experiments.DEFAULT]) > 1
    for row in read(folder / "scores.csv"):
        hits = right[row["method"]]
        bounds = experiments.bootstrap_interval(hits, families)
        found = experiments.percent("share", hits.mean(), bounds)
        assert found == {name: row[name] for name in found}, row["method"]
    for row in read(folder / "gains.csv"):
        gains = right[row["method"]] - right[row["before"]].astype(float)
        bounds = experiments.bootstrap_interval(gains, families)
        found = experiments.percent("gain", gains.mean(), bounds)
        assert found == {name: row[name] for name in found}, row["method"]


def test_a_gain_is_counted_entry_by_entry(experiments, tmp_path):
    entries = [{"family": f"f{i}"} for i in range(10)]
    before = np.array([[True] * 2 + [False] * 8])
    after = np.array([[True] * 6 + [False] * 4, [True] * 8 + [False] * 2])
    can_first = np.array([[True] * 5 + [False] * 5])
    outcomes = {
        experiments.UNTUNED[0]: (before, can_first),
        experiments.DEFAULT: (after, np.ones_like(after)),
    }
    options = Namespace(out=tmp_path)
    experiments.compare(outcomes, entries, options)
    (row,) = read(tmp_path / "gains.csv")
    assert (row["gain"], row["both_readable"]) == ("50.0", "5")
    assert row["gain_readable"] == "60.0"
    assert float(row["gain_low"]) < 50 < float(row["gain_high"])
