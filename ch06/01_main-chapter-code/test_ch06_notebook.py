"""The chapter's notebook runs unchanged on other messages: only `DATA` changes."""

import csv
import zipfile
from pathlib import Path

import pytest

from course.testing.own_data import printed_on

NOTEBOOK = Path(__file__).with_name("ch06.ipynb")


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
    printed = printed_on(NOTEBOOK, path)
    assert "train " in printed["load"]
    assert "fine-tuned: " in printed["test"]
    assert "same logits after loading: True" in printed["save-run"]
