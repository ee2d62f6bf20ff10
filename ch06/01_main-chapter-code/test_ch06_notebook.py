"""The chapter's notebook runs unchanged on other messages: `DATA` is all that changes.

The pretrained model is a tiny one with random weights, so that a run takes seconds;
with it the chapter's claims about SmolLM2 and its own messages are not at stake, and
the others are.
"""

import csv
import zipfile
from pathlib import Path

import pytest

from course import notebooks
from course.checking.planting import code_cell

NOTEBOOK = Path(__file__).with_name("ch06.ipynb")
TINY_MODEL = """
import pretrained
import tiktoken
import torch
from gpt import GPT_CONFIG_124M, GPTModel, initialise_like_gpt2

CONFIG = {
    **GPT_CONFIG_124M, "context_length": 160, "emb_dim": 48, "n_heads": 4,
    "n_layers": 3, "drop_rate": 0.0, "tie_weights": True,
}


def load_tiny(name):
    torch.manual_seed(0)
    model = initialise_like_gpt2(GPTModel(CONFIG)).eval()
    return pretrained.Pretrained(model, tiktoken.get_encoding("gpt2"), model.cfg)


pretrained.load_pretrained = load_tiny
"""


def uci_archive(path):
    """The archive of the UCI collection in small: more ham than spam."""
    lines = [
        f"ham\tsee you at {i}, bring the {i % 5} cakes \u00a3{i}" for i in range(40)
    ]
    lines += [f"spam\tWIN {i} euros now, reply {i % 7}!" for i in range(24)]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "about")
        archive.writestr("SMSSpamCollection", "\n".join(lines) + "\n")
    return path


def three_classes(path):
    """A reader's own file, with other labels, three of them, and no split."""
    rows = [(f"{word} number" + i * " more", word) for i in range(20) for word in "abc"]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


@pytest.mark.parametrize(
    ("make", "name"), [(uci_archive, "sms.zip"), (three_classes, "my.csv")]
)
def test_the_notebook_runs_on_other_messages(tmp_path, make, name):
    path = make(tmp_path / name)
    notebook = notebooks.read(NOTEBOOK)
    setup = next(cell for cell in notebook.cells if cell.id == "setup")
    assert setup.source.count("DATA = None") == 1
    setup.source = setup.source.replace("DATA = None", f"DATA = {str(path)!r}")
    exercises = next(c for c in notebook.cells if c.id == "exercises")
    del notebook.cells[notebook.cells.index(exercises) :]
    notebook.cells.insert(0, code_cell(TINY_MODEL))
    result = notebooks.execute(NOTEBOOK, notebook)
    printed = {
        cell.id: "".join(out.get("text", "") for out in cell.outputs)
        for cell in result.notebook.cells
        if cell.cell_type == "code"
    }
    assert "train " in printed["load"]
    assert "fine-tuned: " in printed["test"]
    assert "same logits after loading: True" in printed["save-run"]
