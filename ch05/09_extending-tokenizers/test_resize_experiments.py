"""The experiment runs, its committed tables are what it writes, its parts are right."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from course.assets import fetch
from course.tables import read
from course.testing.experiment_scripts import other_columns, script_in
from gguf_files import read_gguf
from gguf_tokenizer import GGUFTokenizer
from llama import SMOLLM2_135M, LlamaModel
from pretrained import Pretrained

FOLDER = Path(__file__).parent


@pytest.fixture(scope="module")
def tokenizer():
    return GGUFTokenizer(read_gguf(fetch("smollm2-135m")).metadata)


@pytest.fixture(scope="module")
def experiments(tokenizer):
    """The script, with a tiny model that has SmolLM2's vocabulary."""
    script = script_in(FOLDER)
    sizes = {"emb_dim": 8, "n_heads": 2, "n_kv_groups": 1, "head_dim": 4}
    cfg = {**SMOLLM2_135M, **sizes, "n_layers": 1, "hidden_dim": 8}

    def load(_name):
        torch.manual_seed(0)
        model = LlamaModel({**cfg, "context_length": 128}).eval()
        return Pretrained(model, tokenizer, model.cfg)

    script.load_pretrained, script.PART, script.ENTRIES = load, 17, 16
    return script


def test_a_tiny_run_writes_tables_like_the_committed_ones(
    experiments, tmp_path, capsys
):
    options = ["--tiny", "--rounds", "2", "--steps", "2", "--entries", "3"]
    assert experiments.main([*options, "--seeds", "1", "--out", str(tmp_path)]) == 0
    assert "random, new rows" in capsys.readouterr().out
    names = ["training.csv", "padding.csv"]
    assert other_columns(tmp_path, FOLDER / "results", names) == []
    rows = {row["method"]: row for row in read(tmp_path / "training.csv")}
    assert list(rows) == [*experiments.UNTRAINED, *experiments.METHODS]
    own = rows.pop("its own marks")
    assert own["story_loss"] == own["story_old"] == rows.pop("text")["story_loss"]
    for method, row in rows.items():
        only_rows = experiments.METHODS[method][1]
        assert (row["story_old"] == own["story_old"]) == only_rows
        assert (row["chat_old"] == own["chat_old"]) == only_rows
    padded = read(tmp_path / "padding.csv")
    assert len(padded) == 2 * len(experiments.TINY_ROWS)
    assert padded[0]["ratio"] == "1.000"


def test_the_committed_tables_are_of_the_full_size(experiments):
    rows = read(FOLDER / "results" / "training.csv")
    wanted = [(method, "", "0") for method in experiments.UNTRAINED]
    for method in experiments.METHODS:
        for seed in experiments.SEEDS:
            wanted.append((method, str(seed), str(experiments.STEPS)))
    assert [(row["method"], row["seed"], row["steps"]) for row in rows] == wanted
    own = rows[0]
    for row in rows:
        assert row["entries"] == str(experiments.TEST_ENTRIES)
        untouched = experiments.METHODS.get(row["method"], ("", True))[1]
        assert (row["story_old"] == own["story_old"]) == untouched
        assert (row["chat_old"] == own["chat_old"]) == untouched
        assert 0 <= int(row["right"]) <= int(row["scored"]) == 23
        assert 0 <= int(row["ended"]) <= experiments.TEST_ENTRIES
    padded = read(FOLDER / "results" / "padding.csv")
    found = [(row["dtype"], int(row["rows"])) for row in padded]
    assert found == [(d, n) for d in ("float32", "bfloat16") for n in experiments.ROWS]
    for row in padded:
        assert row["rounds"] == str(experiments.ROUNDS)
        assert float(row["lower_quartile"]) <= float(row["ratio"])
        assert float(row["ratio"]) <= float(row["upper_quartile"])


def test_entries_of_another_file_are_taken(experiments, tokenizer, tmp_path):
    """Known mistake: an option that is accepted and does nothing."""
    path = tmp_path / "mine.json"
    entry = {"instruction": "2 + 2?", "output": "4", "answers": ["4"], "split": "test"}
    path.write_text(json.dumps([entry]), encoding="utf-8")
    options = argparse.Namespace(entries=5, data=path)
    measure = experiments.Measure(tokenizer, tokenizer, experiments.chatml, options)
    assert [entry["instruction"] for entry in measure.entries] == ["2 + 2?"]
