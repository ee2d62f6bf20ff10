"""The table of exercises says what the notebooks say, and the list picks what fits.

The notebooks are read here in another way than by the script: word by word.
"""

import ast
import importlib.util
import re
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest

from course import paths
from course.running import statements

SCRIPT = Path(__file__).with_name("exercise_list.py")
README = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
CELL = re.compile(r"\[(?P<text>.*)\]\((?P<file>[^#]*)#(?P<anchor>\S*)\)")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("exercise_list_by_path", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def notebooks():
    """{path from the root: its markdown cells} of what may ask or solve exercises."""
    files = [path for path in paths.tree_files() if path.suffix == ".ipynb"]
    return {
        path.relative_to(paths.ROOT).as_posix(): [
            cell.source
            for cell in nbformat.read(path, as_version=4).cells
            if cell.cell_type == "markdown"
        ]
        for path in files
        if not paths.is_translation(path)
    }


@pytest.fixture(scope="module")
def asked(notebooks):
    """{number: (title, level, minutes, notebook)} as the cells say it."""
    found = {}
    for path, cells in notebooks.items():
        for cell in cells:
            _, *exercises = f"\n{cell}".split("\n### Exercise ")
            for head, _, rest in (one.partition("\n") for one in exercises):
                number, title = head.split(" - ", 1)
                words = rest.replace("*", " ").replace(",", " ").split()
                assert (words[0], words[3]) == ("Level", "minutes."), cell
                assert number not in found, f"{number} is asked twice"
                found[number] = (title, words[1], words[2], path)
    return found


def problems(page, asked, notebooks):
    """What in the table of a page differs from the notebooks."""
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if len(row) == 5]  # the table by chapter has four
    rows = {row[0].strip("| "): [cell.strip("| ") for cell in row] for row in rows}
    rows = {number: row for number, row in rows.items() if re.search(r"\d$", number)}
    for number in sorted(asked.keys() ^ rows.keys()):
        yield f"{number} is {'asked' if number in asked else 'listed'} only"
    for number in asked.keys() & rows.keys():
        title, level, minutes, path = asked[number]
        statement = CELL.fullmatch(rows[number][1])
        solution = CELL.fullmatch(rows[number][4])
        if rows[number][2:4] != [level, minutes]:
            yield f"{number} has level {level} and {minutes} minutes"
        if statement["text"] != title or statement["file"] != f"../{path}":
            yield f"{number} is {title!r} in {path}"
        for link, marks in ((statement, "###"), (solution, "##")):
            heading = f"{marks} {unquote(link['anchor'])}"
            cells = notebooks.get(link["file"].removeprefix("../"), ())
            lines = "\n".join(cells).replace(" ", "-").splitlines()
            if heading.replace(" ", "-") not in lines:
                yield f"{number}: there is no {link['anchor']} in {link['file']}"


def test_the_table_agrees_with_the_notebooks(asked, notebooks):
    assert list(problems(README, asked, notebooks)) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (r"\n\| 3\.2 \|.*", "", "3.2 is asked only"),
        (r"\| 3\.2 \|", "| 3.12 |", "3.12 is listed only"),
        (r"(\| 3\.2 \|.*\|) 5 \|", r"\1 6 |", "3.2 has level 1 and 5 minutes"),
        (r"(\| 3\.2 \|.*\|) 1 \|", r"\1 2 |", "3.2 has level 1 and 5 minutes"),
        (r"(\| 3\.2 \| \[)How", r"\1That", "3.2 is 'How wide is a head?' in ch03"),
        (r"ch03\.ipynb(#Exercise-3\.2)", r"ch02.ipynb\1", "3.2 is 'How wide is a h"),
        (r"(solutions\.ipynb#Exercise-)3\.2", r"\g<1>3.3", "3.2: there is no Exercise"),
    ],
)
def test_a_planted_mistake_is_found(old, new, problem, asked, notebooks):
    page, count = re.subn(old, new, README, count=1)
    assert count == 1
    assert problem in "\n".join(problems(page, asked, notebooks))


def test_every_check_has_its_row(asked):
    """An exercise without a statement of the usual form would be missed by both."""
    checked = set()
    for path in paths.tree_files():
        if path.name.endswith("_checks.py") and not path.name.startswith("test_"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                for mark in getattr(node, "decorator_list", ()):
                    if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "check":
                        checked.add(mark.args[0].value)
    assert checked == set(asked)


def test_everywhere_finds_them_in_the_order_of_reading(asked):
    found = statements.everywhere()
    assert {one.number for one in found} == set(asked)
    chapters = list(dict.fromkeys(one.number.partition(".")[0] for one in found))
    main = [name for name in chapters if name.isdigit()]
    assert main == sorted(main)
    assert chapters.index("5") < chapters.index("L") < chapters.index("6")


def test_picking(script):
    everything = statements.everywhere()
    third = script.fitting(everything, chapter="3")
    assert [one.number for one in third][:2] == ["3.1", "3.2"]
    assert script.fitting(everything, chapter="l")[0].number == "L.1"
    short = script.fitting(everything, level=1, minutes=10)
    assert short
    assert all(one.level == 1 and one.minutes <= 10 for one in short)
    assert len(script.fitting(everything)) == len(everything)


def test_what_it_prints(script, capsys):
    assert script.main(["--chapter", "3", "--minutes", "5"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "  3.2  1    5 min  How wide is a head?",
        " " * 16 + "ch03/01_main-chapter-code/ch03.ipynb",
        "1 exercise (1 of level 1), 5 minutes.",
    ]
    assert script.main(["--minutes", "1"]) == 1
    assert "No exercise fits" in capsys.readouterr().err
