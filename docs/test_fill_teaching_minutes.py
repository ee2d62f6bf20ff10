"""Minutes for a class: the rule, and the tables that it fills."""

import fill_teaching_minutes as script
import pytest
from nbformat.v4 import new_markdown_cell, new_notebook

from course.running import ledger
from course.testing.tiny_trees import miniature, notebook


@pytest.mark.parametrize(
    ("words", "cells", "exercises", "planned"),
    [
        (0, 0, 0, 5),
        (650, 0, 0, 5),
        (651, 0, 0, 10),
        (650, 1, 0, 10),
        (0, 17, 0, 20),
        (900, 7, 12, 15),  # exercises name their own minutes
    ],
)
def test_the_rule(words, cells, exercises, planned):
    assert script.Section("A", words, cells, exercises).minutes == planned


def test_what_is_not_read_word_by_word_does_not_count():
    text = "## A\n<!-- not this -->[one](two.md) <b>three</b>\n\n| four | five |\n"
    (section,) = script.sections(new_notebook(cells=[new_markdown_cell(text)]))
    assert (section.title, section.words) == ("A", 3)


@pytest.fixture
def page(tmp_path):
    """A chapter with one measured notebook, and a page that asks for its minutes."""
    cells = ["# Chapter 9: Nine", "## 9.1 First", "x = 1", "## Sources"]
    main = "ch09/01_main-chapter-code/ch09.ipynb"
    asked = "A\n<!-- minutes: all -->\n<!-- /minutes -->\n"
    miniature(tmp_path, {main: notebook(*cells), "setup/teaching.md": asked})
    ledger.record(main, 7.6, 300, root=tmp_path)
    return tmp_path / "setup" / "teaching.md"


def test_a_page_gets_a_table_for_each_main_notebook(page):
    text = script.filled(page, page.parent.parent)
    assert text.startswith("A\n<!-- minutes: all -->\n\n**[`ch09.ipynb`]")
    link = "[`ch09.ipynb`](../ch09/01_main-chapter-code/ch09.ipynb)"
    assert f"**{link}**, Chapter 9: Nine\n" in text
    assert "| 9.1 First | 0 | 1 | 5 |\n| all | | | 0 h 5 min |\n" in text
    assert text.endswith(
        "Of this the machine needs 8 s to run all cells.\n\n<!-- /minutes -->\n"
    )


def test_what_every_class_reads_and_the_quizzes_count(page):
    root = page.parent.parent
    more = {
        "ch05/ch05.ipynb": notebook("# Five", "## 5.1 One"),
        "ch05/quiz.md": "**1.** A?\n\n<details>\n\n**2.** B?\n\n<details>\n",
        f"ch05/{script.ALSO['ch05']}": notebook("# Llama", "## L.1 One"),
    }
    miniature(root, more)
    text = script.filled(page, root)
    five, llama = text.index("**, Five\n"), text.index("**, Llama\n")
    assert five < text.index("Quiz of the folder: 2 questions, 2 minutes.") < llama
    assert text.count("Quiz of the folder") == 1


def test_the_page_says_what_the_notebooks_take():
    text = script.PAGE.read_text(encoding="utf-8")
    assert text == script.filled(), "run `python docs/fill_teaching_minutes.py`"
    places = [text.index(f"`{name}.ipynb`") for name in ("ch01", "ch07", "code-part1")]
    assert places == sorted(places)


def test_the_page_is_filled(page, monkeypatch):
    monkeypatch.setattr(script, "PAGE", page)
    monkeypatch.setattr(script, "filled", lambda: "new\n")
    script.main()
    assert page.read_text(encoding="utf-8") == "new\n"


def test_the_page_states_the_rule_as_it_is():
    text = " ".join(script.PAGE.read_text(encoding="utf-8").split())
    assert f"a minute for {script.WORDS} words, a minute for each code cell" in text
    assert script.CELL == 1.0
    assert f"rounded up to {script.STEP} minutes" in text
