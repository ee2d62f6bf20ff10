"""Minutes for a class: the rule, and the tables that it fills."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from course import paths
from course.running import ledger, teaching_minutes
from course.running.teaching_minutes import Section


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
    assert Section("A", words, cells, exercises).minutes == planned


def test_what_is_not_read_word_by_word_does_not_count():
    text = "## A\n<!-- not this -->[one](two.md) <b>three</b>\n\n| four | five |\n"
    (section,) = teaching_minutes.sections(
        new_notebook(cells=[new_markdown_cell(text)])
    )
    assert (section.title, section.words) == ("A", 3)


@pytest.fixture
def tree(tmp_path):
    """A chapter with one measured notebook, and a page that asks for its minutes."""
    cells = [
        new_markdown_cell("# Chapter 9: Nine"),
        new_markdown_cell("## 9.1 First"),
        new_code_cell("x = 1"),
        new_markdown_cell("## Sources"),
    ]
    main = tmp_path / "ch09" / "01_main-chapter-code" / "ch09.ipynb"
    main.parent.mkdir(parents=True)
    nbformat.write(new_notebook(cells=cells), main)
    page = tmp_path / "setup" / "teaching.md"
    page.parent.mkdir()
    page.write_text("<!-- ledger: minutes -->\n<!-- /ledger -->\n", encoding="utf-8")
    ledger.record("ch09/01_main-chapter-code/ch09.ipynb", 7.6, 300, root=tmp_path)
    return tmp_path


def test_a_page_gets_a_table_for_each_main_notebook(tree):
    assert ledger.stale(tree) == ["setup/teaching.md"]
    ledger.fill(tree)
    text = (tree / "setup" / "teaching.md").read_text(encoding="utf-8")
    link = "[`ch09.ipynb`](../ch09/01_main-chapter-code/ch09.ipynb)"
    assert f"**{link}**, Chapter 9: Nine\n" in text
    assert "| 9.1 First | 0 | 1 | 5 |\n| all | | | 0 h 5 min |\n" in text
    assert "Of this the machine needs 8 s to run all cells." in text
    assert ledger.stale(tree) == []


def test_the_course_s_own_chapters_are_found():
    found = [path.name for path in teaching_minutes.main_notebooks()]
    assert found[:2] == ["ch01.ipynb", "ch02.ipynb"]


def test_the_page_states_the_rule_as_it_is():
    page = (paths.ROOT / "setup" / "teaching.md").read_text(encoding="utf-8")
    text = " ".join(page.split())
    assert (
        f"a minute for {teaching_minutes.WORDS} words, a minute for each code cell"
        in text
    )
    assert teaching_minutes.CELL == 1.0
    assert f"rounded up to {teaching_minutes.STEP} minutes" in text
