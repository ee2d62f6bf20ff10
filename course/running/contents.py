"""The tables of contents, made from what the folders say of themselves.

READMEs show them between marks of the kind ``folders`` (`course.running.made_parts`),
which `refresh` fills, and `refresh --pages` alone. The names are
``contents``, the table of chapters; ``bonus``, the list of bonus material, and in a
chapter's own README that chapter's table; ``exercises``, how many there are and where;
``exercise-list``, every single one; within a sentence ``order``, the order in which
chapters are read, and how many there are: ``notebooks``, ``exercise-count``. A page
whose name ends in ``.ja.md`` gets them in Japanese.
"""

from __future__ import annotations

import os
import re
import textwrap
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from course import CourseError, folders, paths
from course.folders import Folder, Plan
from course.markdown import table
from course.running import statements

_WORDS = tomllib.loads(
    Path(__file__).with_name("words.toml").read_text(encoding="utf-8")
)
WIDTH = 110  # of the lines in pages whose language breaks them at blanks
QUIZ = "quiz.md"


def part(name: str, page: Path, root: Path) -> str:
    """Return the text for a mark of that name on a page."""
    return _Shelf(page, root).part(name)


def words_for(page: Path) -> dict[str, Any]:
    """Return the words for a page: Japanese where its name says so, else English."""
    return _WORDS["ja" if page.name.endswith(".ja.md") else "en"]


class _Shelf:
    """The folders as one page shows them: in its language, linked from its place."""

    def __init__(self, page: Path, root: Path) -> None:
        self.page, self.root = page, root
        self.known = folders.read_all(root)
        self.words = words_for(page)

    def part(self, name: str) -> str:
        """Return the text between the marks of that name."""
        here = self.page.parent.relative_to(self.root).as_posix()
        if name == "order":
            return ", ".join(_short(path) for path in folders.reading_order(self.known))
        if name == "notebooks":
            files = (f for f in paths.tree_files(self.root) if f.suffix == ".ipynb")
            return str(sum(not paths.is_translation(file) for file in files))
        if name == "exercise-count":
            return str(sum(1 for _ in statements.everywhere(self.root)))
        if name == "bonus":
            lines = self.bonus() if here == "." else self.bonus_of(here)
        elif name in ("contents", "exercises", "exercise-list"):
            lines = getattr(self, name.replace("-", "_"))()
        else:
            place = self.page.relative_to(self.root).as_posix()
            raise CourseError(
                f"{place} has a mark `folders: {name}`; the names are contents, bonus, "
                "exercises, exercise-list, exercise-count, notebooks and order."
            )
        return "\n".join(["", "", *lines, "", ""])

    def title(self, one: Folder | Plan | folders.ListedPage) -> str:
        return getattr(one, self.words["title"])

    def link(self, path: str, text: str) -> str:
        """Return a link to a path from the root, relative to the page."""
        target = os.path.relpath(self.root / path, self.page.parent)
        return f"[{text}]({Path(target).as_posix()})"

    def label(self, path: str) -> str:
        """Return "Ch 2" or "Appendix A"."""
        kind = "appendix" if path.startswith("appendix") else "chapter"
        return self.words[kind].format(_short(path))

    # -- contents

    def contents(self) -> list[str]:
        everything = self.known | folders.plans(self.known)
        tops = [path for path in everything if "/" not in path and path != "."]
        rows = [self.row(p, everything[p]) for p in sorted(tops, key=_place)]
        return table(self.words["contents"], rows)

    def row(self, path: str, one: Folder | Plan) -> list[str]:
        title = self.title(one)
        if path != "setup":
            title = f"{self.label(path)}{self.words['colon']}{title}"
        planned = self.words["planned"]
        without = "-" if path == "setup" else self.words["no_code"]
        if isinstance(one, Plan):
            return [title, planned, "-"] if one.code else [title, without, planned]
        code = ", ".join(self.files(one)) or (planned if one.code else without)
        return [title, code, self.link(f"{path}/README.md", f"`{path}/`")]

    def files(self, one: Folder) -> Iterator[str]:
        """The linked files of a row; the last of several summaries says so for all."""
        there = [n for n in one.contents if (self.root / one.place(n)).is_file()]
        sums = [name for name in there if name in one.summaries]
        for name in there:
            word = "summaries" if sums[1:] else "summary"
            ending = self.words[word] if name in sums[-1:] else ""
            yield self.link(one.place(name), f"`{name}`") + ending

    # -- bonus material

    def bonus(self) -> list[str]:
        chapters = {one.path.partition("/")[0] for one in self.known.values()}
        lines = []
        for chapter in sorted(chapters - {folders.ROOT_FOLDER}, key=_place):
            label = self.words["setup"] if chapter == "setup" else self.label(chapter)
            lines += self.item(label, self.items(chapter))
        plans = folders.plans(self.known)
        waiting = (
            self.words["of_chapter"].format(self.title(plan), self.label(path))
            for path, plan in sorted(plans.items())
            if "/" in path
        )
        return lines + self.item(self.words["planned_items"], waiting)

    def item(self, label: str, named: Iterable[str]) -> list[str]:
        """Return an item of the list, in lines of one width, or nothing."""
        line = self.words["separator"].join(named)
        if not line:
            return []
        line = f"- **{label}**: {line}"
        return [_wrapped(line) if self.words["breaks_at_blanks"] else line]

    def items(self, chapter: str) -> Iterator[str]:
        """What the list names for one chapter: folders, each with its pages."""
        for path, one in sorted(self.known.items()):
            if path.startswith(f"{chapter}/"):
                yield self.link(f"{path}/README.md", self.title(one))
                yield from self.pages(one)
        if chapter in self.known:
            yield from self.pages(self.known[chapter])

    def pages(self, one: Folder) -> Iterator[str]:
        for page in one.pages:
            yield self.link(one.place(page.file), self.title(page))

    def bonus_of(self, chapter: str) -> list[str]:
        below = [one for one in self.known.values() if one.parent == chapter]
        if not below:
            return [self.words["no_bonus"]]
        rows = []
        for one in below:
            name = PurePosixPath(one.path).name
            rows.append([self.link(f"{one.path}/README.md", f"`{name}`"), one.about])
        return table(self.words["bonus"], rows)

    # -- exercises

    def exercises(self) -> list[str]:
        rows = []
        asked = Counter(one.folder for one in statements.everywhere(self.root))
        for path, count in asked.items():
            one = self.known[path]
            label = _short(one.path)
            if one.is_bonus:
                label += f"{self.words['comma']}{self.title(one)}"
            quiz = "-"
            if (self.root / one.path / QUIZ).is_file():
                text = (self.root / one.path / QUIZ).read_text(encoding="utf-8")
                questions = self.words["questions"].format(text.count("<details>"))
                quiz = self.link(f"{one.path}/{QUIZ}", questions)
            rows.append([label, str(count), self.solutions(one), quiz])
        return table(self.words["exercises"], rows)

    def solutions(self, one: Folder) -> str:
        path = one.place(statements.SOLUTIONS)
        there = (self.root / path).is_file()
        return self.link(path, self.words["solutions"]) if there else "-"

    def exercise_list(self) -> list[str]:
        rows = []
        for asked in statements.everywhere(self.root):
            statement = self.link(asked.place, asked.title)
            word = self.words["list"][-1]
            solution = self.link(asked.solution, word) if asked.solution else "-"
            level, minutes = str(asked.level), str(asked.minutes)
            rows.append([asked.number, statement, level, minutes, solution])
        return table(self.words["list"], rows)


def _wrapped(item: str) -> str:
    """Return an item of a list in lines of one width; a link's text stays whole."""
    whole = re.sub(r"\[[^\]]*\]", lambda m: m[0].replace(" ", "\0"), item)
    made = textwrap.wrap(
        whole,
        WIDTH,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(made).replace("\0", " ")


def _place(path: str) -> tuple[bool, bool, str]:
    """Return the key that sorts set-up first, then chapters, then appendices."""
    return path != "setup", not path.startswith("ch"), path


def _short(path: str) -> str:
    """Return 2 for ch02/05_x and A for appendix-A."""
    chapter = path.partition("/")[0]
    return chapter.removeprefix("appendix-").removeprefix("ch").lstrip("0")
