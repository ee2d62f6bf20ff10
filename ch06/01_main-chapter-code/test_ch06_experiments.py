"""The comparison of chapter 6 runs, and its statistics are what they are named."""

import csv
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch

from course.tables import read
from course.testing.experiment_scripts import other_columns
from gpt import GPT_CONFIG_124M, GPTModel, initialise_like_gpt2
from gpt_train import save_checkpoint

FOLDER = Path(__file__).parent
TINY = {
    **GPT_CONFIG_124M,
    "context_length": 128,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 3,
    "drop_rate": 0.0,
    "tie_weights": True,
}


@pytest.fixture(scope="module")
def tables(experiments, tmp_path_factory):
    """All methods on 44 messages made up here, with a tiny GPT for every base."""
    folder = tmp_path_factory.mktemp("tables")
    torch.manual_seed(0)
    base = folder / "base"
    model = initialise_like_gpt2(GPTModel(TINY))
    save_checkpoint(base, model, tokenizer=tiktoken.get_encoding("gpt2"))
    data = folder / "messages.csv"
    with data.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "kind", "split"])
        for i in range(22):
            split = "train" if i < 12 else "validation" if i < 16 else "test"
            writer.writerow([f"hello {i} at noon", "wanted", "family", split])
            writer.writerow([f"win {i} euros now", "spam", "prize", split])
    arguments = ["--data", data, "--model", base, "--small-gpt", base]
    arguments += ["--out", folder, "--seeds", "1", "2", "--epochs", "1"]
    assert experiments.main([str(argument) for argument in arguments]) == 0
    return folder


def test_every_method_gets_a_row_like_the_committed_ones(experiments, tables):
    rows = read(tables / "accuracy.csv")
    assert [row["method"] for row in rows] == list(experiments.METHODS)
    for row in rows:
        assert 0 <= float(row["low"]) <= float(row["accuracy"]) <= float(row["high"])
        assert row["messages"] == "12"
    seeds = {row["method"]: row["seeds"] for row in rows}
    assert seeds["larger class"] == seeds["everything"] == "1"
    assert seeds[experiments.DEFAULT] == seeds["padded position"] == "2"
    names = ("accuracy.csv", "seeds.csv", "mcnemar.csv", "mistakes.csv")
    assert other_columns(tables, FOLDER / "results", names) == []


def test_the_committed_tables_are_of_the_whole_test_part_and_five_seeds(experiments):
    from course import assets

    rows = {row["method"]: row for row in read(FOLDER / "results" / "accuracy.csv")}
    assert list(rows) == list(experiments.METHODS)
    sha256 = assets.sha256_of(assets.fetch("messages"))[:12]
    for name, row in rows.items():
        assert row["data_sha256"] == sha256, f"{name} was measured on other messages"
        assert int(row["messages"]) > 300
        if isinstance(experiments.METHODS[name], experiments.Trained):
            least = 1 if name == "everything" else 5
            assert int(row["seeds"]) >= least, name


def test_one_method_alone_leaves_the_other_rows(experiments, tables):
    before = read(tables / "accuracy.csv")
    arguments = ["--data", tables / "messages.csv", "--out", tables]
    arguments += ["--only", "larger class"]
    assert experiments.main([str(argument) for argument in arguments]) == 0
    after = read(tables / "accuracy.csv")
    assert [row["method"] for row in after] == [row["method"] for row in before]
    assert after[1:] == before[1:]


def test_seeds_change_the_head_and_nothing_leaks_from_one_to_the_next(
    experiments, tables
):
    """The second run starts from the base model, not from the first one's weights."""
    from message_data import read_messages, split_messages

    parts = split_messages(read_messages(tables / "messages.csv"))
    options = experiments.Options(model=str(tables / "base"), epochs=2, seeds=[1, 2])
    method = experiments.Trained("last block", 1)
    trained = []
    original = experiments.Trained.train

    class Watched(experiments.Trained):
        def train(self, model, data, seed, options):
            start = model.trf_blocks[-1].ff.layers[0].weight.clone()
            answers = original(self, model, data, seed, options)
            trained.append((start, model.out_head.weight.clone()))
            return answers

    Watched(method.name, 1)(parts, options)
    assert torch.equal(trained[0][0], trained[1][0])
    assert not torch.equal(trained[0][1], trained[1][1])


def test_mcnemar_counts_the_answers_in_which_only_one_is_right(experiments):
    theirs = np.array([[True] * 6 + [False] * 14])
    ours = np.array([[False] * 1 + [True] * 18 + [False] * 1])
    row = experiments.mcnemar(ours, theirs)
    assert (row["only_ours_right"], row["only_theirs_right"]) == (13, 1)
    # 2 * (C(14, 0) + C(14, 1)) / 2 ** 14
    assert float(row["pooled_p"]) == pytest.approx(2 * 15 / 2**14, rel=1e-2)
    assert row["pooled_p"] == row["message_p"]
    twice = experiments.mcnemar(np.repeat(ours, 2, axis=0), theirs)
    assert (twice["only_ours_right"], twice["messages_only_ours"]) == (26, 13)
