"""The ledger and the tables that show it."""

import json

import pytest

from course import CourseError, paths, this_machine
from course.running import ledger, made_parts
from course.testing.servers import entry
from course.testing.tiny_trees import miniature, notebook

MARKS = "<!-- ledger: {} -->\n<!-- /ledger -->\n"
MAIN = "ch02/01_main-chapter-code/ch02.ipynb"
URL, OFFLINE = '{url = "https://example.com/a"}', "offline = true"
ASSETS = [
    entry("vocabulary", b"1" * 1_500_000, URL, file="a", more=OFFLINE),
    entry("story", b"2" * 4_000_000, '{path = "a"}', file="", more=OFFLINE),
    entry("weights", b"3" * 5_000_000, URL, file="c", more=OFFLINE),
    entry("other-weights", b"4" * 6_000_000, URL, file="d"),
]
FOLDER = """
title = "t"
title_ja = "t"
order = 20
assets = ["vocabulary", "story", "other-weights"]
"""
FILES = {
    MAIN: notebook(f"md:{MARKS.format('ch02')}", "print(1)"),
    "course/assets.toml": "".join(ASSETS),
    "ch02/folder.toml": FOLDER,
}


@pytest.fixture
def tree(tmp_path):
    """A small tree with one notebook and a manifest of assets."""
    return miniature(tmp_path, FILES).root


def page(tree, name, text):
    miniature(tree, {name: text})
    return tree / name


def test_a_measurement_is_read_back_as_it_was_recorded(tree):
    assert ledger.read(tree) == {}
    row = ledger.record(MAIN, 12.34, 512.4, root=tree)
    assert ledger.read(tree) == {MAIN: row}
    assert (row.seconds, row.peak_mb, row.threads) == (12.3, 512, 1)
    header = (tree / "ledger.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == "notebook,threads,seconds,peak_mb,machine,python,torch"


def test_a_second_measurement_replaces_the_first_and_gone_notebooks_go(tree):
    page(tree, "ch02/old.ipynb", "{}")
    ledger.record("ch02/old.ipynb", 1, 1, root=tree)
    ledger.record(MAIN, 12, 500, root=tree)
    (tree / "ch02/old.ipynb").unlink()
    ledger.record(MAIN, 15, 600, root=tree)
    assert [row.seconds for row in ledger.read(tree).values()] == [15.0]


@pytest.mark.parametrize("line", ["a,1,fast,500,m,3.11,2.13", "a,1"])
def test_a_damaged_line_is_named(tree, line):
    ledger.record(MAIN, 12, 500, root=tree)
    with open(tree / "ledger.csv", "a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(CourseError, match="Line 3 of ledger.csv is damaged"):
        ledger.read(tree)


def test_a_new_measurement_or_an_edit_makes_tables_stale(tree):
    ledger.record(MAIN, 12.3, 512, root=tree)
    readme = page(tree, "ch02/README.md", f"Before\n\n{MARKS.format('ch02')}\nAfter\n")
    assert made_parts.fill(tree) == [tree / MAIN, readme]
    text = readme.read_text(encoding="utf-8")
    assert "| [`ch02.ipynb`](01_main-chapter-code/ch02.ipynb) | 12 s | 512 MB |" in text
    assert f"Measured on: {this_machine.machine()}, 1 thread, Python 3." in text
    assert text.startswith("Before\n\n<!-- ledger: ch02 -->\n")
    assert text.endswith("<!-- /ledger -->\n\nAfter\n")
    assert made_parts.fill(tree) == []
    page(tree, "ch02/README.md", text.replace("12 s", "1 s"))
    assert made_parts.fill(tree) == [readme]
    ledger.record(MAIN, 40, 512, root=tree)
    assert made_parts.fill(tree) == [tree / MAIN, readme]


def test_a_notebook_shows_its_own_budget_and_what_it_downloads(tree):
    def cells():
        return json.loads((tree / MAIN).read_text(encoding="utf-8"))["cells"]

    before = cells()
    made_parts.fill(tree)
    unknown = f"| {ledger.UNKNOWN} | {ledger.UNKNOWN} | 2 MB |"
    assert unknown in "".join(cells()[0]["source"])
    ledger.record(MAIN, 12.3, 512, root=tree)
    made_parts.fill(tree)
    table = "".join(cells()[0]["source"])
    assert "| 12 s | 512 MB | 2 MB |" in table
    assert "Measured with the quick preset on: " in table
    assert cells()[0]["id"] == before[0]["id"]
    assert cells()[1] == before[1]


def test_a_table_for_a_folder_that_is_not_there_is_an_error(tree):
    page(tree, "README.md", MARKS.format("ch99"))
    with pytest.raises(
        CourseError, match="table for ch99, but there is no such folder"
    ):
        made_parts.fill(tree)


def test_every_notebook_of_the_course_has_been_measured():
    notebooks = {
        ledger.inside(file) for file in paths.tree_files() if file.suffix == ".ipynb"
    }
    assert set(ledger.read()) == notebooks, (
        "run `python3 -m course refresh` for what differs"
    )
