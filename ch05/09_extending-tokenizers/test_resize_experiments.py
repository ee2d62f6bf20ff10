"""The experiment runs, its committed tables are what it writes, its parts are right."""

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

    script.load_pretrained, script.STORY_TOKENS, script.ENTRIES = load, 16, 16
    return script


def test_a_tiny_run_writes_tables_like_the_committed_ones(
    experiments, tmp_path, capsys
):
    options = ["--tiny", "--rounds", "2", "--steps", "2", "--entries", "3"]
    assert experiments.main([*options, "--seeds", "1", "--out", str(tmp_path)]) == 0
    assert "pieces, new rows" in capsys.readouterr().out
    names = ["training.csv", "padding.csv"]
    assert other_columns(tmp_path, FOLDER / "results", names) == []
    rows = read(tmp_path / "training.csv")
    assert len(rows) == 1 + 2 * len(experiments.METHODS)
    first = {row["method"]: row for row in rows if row["steps"] == "0"}
    last = {row["method"]: row for row in rows if row["steps"] == "2"}
    for method, row in last.items():
        assert row["end_loss"] != first[method]["end_loss"]
        assert row["old_loss"] == first[method]["old_loss"]
    padded = read(tmp_path / "padding.csv")
    assert len(padded) == 2 * len(experiments.TINY_ROWS)
    assert padded[0]["ratio"] == "1.000"


def test_the_committed_tables_are_of_the_full_size(experiments):
    rows = read(FOLDER / "results" / "training.csv")
    wanted = {(experiments.OWN, "", "0")}
    for method in experiments.METHODS:
        for seed in experiments.SEEDS:
            wanted |= {(method, str(seed), str(n)) for n in experiments.MEASURED}
    assert {(row["method"], row["seed"], row["steps"]) for row in rows} == wanted
    assert len(rows) == len(wanted)
    padded = read(FOLDER / "results" / "padding.csv")
    found = [(row["dtype"], int(row["rows"])) for row in padded]
    assert found == [(d, n) for d in ("float32", "bfloat16") for n in experiments.ROWS]


def test_the_rows_of_pieces_are_those_of_the_old_vocabulary(experiments, tokenizer):
    table = torch.randn(tokenizer.n_vocab, 4)
    rows = experiments.start_of("pieces", tokenizer, 1)(table, 3)
    end = tokenizer.special_tokens["<|im_end|>"]
    assert torch.equal(rows[2], table[end])
    ids = tokenizer.encode("Question:")
    assert len(ids) > 1
    assert torch.allclose(rows[0], table[ids].mean(dim=0), atol=1e-6)
