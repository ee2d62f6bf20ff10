"""How many minutes a class should plan for each section, by a rule anyone can check.

The rule: reading takes a minute for every `WORDS` words, each code cell takes `CELL`
minutes more (its question, its run, its output), and the sum is rounded up to `STEP`
minutes. Exercises take the minutes that they name themselves, a question of a quiz
takes one. The time that a machine needs is measured, and comes from ``ledger.csv``.

The tables stand in ``setup/teaching.md`` between two marks, which this script fills:

    python docs/fill_teaching_minutes.py
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from course import folders, paths
from course.markdown import table
from course.running import ledger, made_parts

PAGE = paths.ROOT / "setup" / "teaching.md"
KIND = "minutes"  # of the marks
WORDS = 130  # a minute of reading a technical text
CELL = 1.0
STEP = 5
HEAD = ("section", "words, about", "code cells", "minutes")
SOURCES = "Sources"  # nobody reads those aloud
#: What a class reads besides the notebook of a chapter's name.
ALSO = {
    "ch05": "07_gpt_to_llama/gpt-to-llama.ipynb",
    "appendix-A": "01_main-chapter-code/code-part1.ipynb",
}

_CHAPTER = re.compile(r"(?:ch\d\d|appendix-[A-Z])")
_SECTION = re.compile(r"^## +(.+?)\s*$", re.MULTILINE)
_EXERCISE = re.compile(r"\*Level \d, (\d+) minutes?\.\*")
# What a reader does not read word by word.
_UNREAD = re.compile(r"<!--.*?-->|<[^>]+>|\]\([^)]*\)|^\s*\|.*$", re.DOTALL | re.M)


@dataclass
class Section:
    """One section of a notebook: its words, code cells and exercises' minutes."""

    title: str
    words: int = 0
    cells: int = 0
    exercises: int = 0

    @property
    def minutes(self) -> int:
        """Minutes to plan for the section, a multiple of `STEP`."""
        exact = self.exercises or self.words / WORDS + self.cells * CELL
        return max(STEP, STEP * -int(-exact // STEP))


def sections(notebook: NotebookNode) -> list[Section]:
    """Return a notebook's sections; what comes before the first belongs to it.

    >>> cells = [
    ...     nbformat.v4.new_markdown_cell("# A" + " word" * 258),
    ...     nbformat.v4.new_markdown_cell("## Why"),
    ...     nbformat.v4.new_code_cell("x = 1"),
    ...     nbformat.v4.new_markdown_cell("## Exercises"),
    ...     nbformat.v4.new_markdown_cell("*Level 1, 10 minutes.* Do it."),
    ... ]
    >>> for section in sections(nbformat.v4.new_notebook(cells=cells)):
    ...     print(section.title, section.words, section.cells, section.minutes)
    Why 260 1 5
    Exercises 7 0 10
    """
    found, waiting = [], Section("")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            current = found[-1] if found else waiting
            current.cells += bool(cell.source.strip())
            continue
        title = _SECTION.search(cell.source)
        if title:
            found.append(Section(title[1].replace("|", "\\|")))
        current = found[-1] if found else waiting
        current.words += len(re.findall(r"\w+", _UNREAD.sub(" ", cell.source)))
        current.exercises += sum(map(int, _EXERCISE.findall(cell.source)))
    if found:
        found[0].words += waiting.words
        found[0].cells += waiting.cells
        return found
    return [waiting]


def main_notebooks(root: Path = paths.ROOT) -> list[Path]:
    """Return the main notebooks and `ALSO`, the chapters before the appendices."""
    found = []
    for folder in sorted(root.glob("ch*")) + sorted(root.glob("appendix-*")):
        if _CHAPTER.fullmatch(folder.name):
            places = (folder / "01_main-chapter-code", folder)
            named = [place / f"{folder.name}.ipynb" for place in places]
            found += [path for path in named if path.is_file()][:1]
            also = folder / ALSO.get(folder.name, "none")
            found += [also] if also.is_file() else []
    return found


def filled(page: Path = PAGE, root: Path = paths.ROOT) -> str:
    """Return the page's text with a table for each main notebook between its marks."""
    text = page.read_text(encoding="utf-8")
    lines = "\n".join(["", *tables(page, root), "", ""])
    return made_parts.replaced(text, KIND, lambda name: lines)


def tables(page: Path, root: Path) -> Iterator[str]:
    """Yield the lines of a page's tables, one for each main notebook."""
    measured = ledger.read(root)
    for path in main_notebooks(root):
        notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
        inside = path.relative_to(root).as_posix()
        link = Path("/".join([".."] * len(page.relative_to(root).parent.parts)), inside)
        found = [s for s in sections(notebook) if s.title != SOURCES]
        total = sum(section.minutes for section in found)
        yield from ("", f"**[`{path.name}`]({link.as_posix()})**, {_title(notebook)}")
        # Words are rounded, so that not every edited sentence changes the table.
        rows = [
            [one.title, 50 * round(one.words / 50), one.cells, one.minutes]
            for one in found
        ]
        yield from ("", *table(HEAD, rows))
        yield f"| all | | | {total // 60} h {total % 60} min |"
        if inside in measured:
            machine = ledger.duration(measured[inside].seconds)
            yield from ("", f"Of this the machine needs {machine} to run all cells.")
        main = path.parent.name == folders.MAIN_FOLDER
        quiz = (path.parent.parent if main else path.parent) / "quiz.md"
        if quiz.is_file():
            text = quiz.read_text(encoding="utf-8")
            questions = text.count("<details>")  # each question has a folded answer
            count = f"{questions} questions, {questions} minutes"
            yield from ("", f"Quiz of the folder: {count}.")


def _title(notebook: NotebookNode) -> str:
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    found = re.search(r"^# +(.+?)\s*$", text, re.MULTILINE)
    return found[1] if found else "without a title"


def main() -> None:
    """Fill the page."""
    paths.write_text_atomically(PAGE, filled())
    print(f"{PAGE.name}: up to date")


if __name__ == "__main__":
    main()
