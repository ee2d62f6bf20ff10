"""The exercises that the notebooks ask: number, title, level, minutes, and where.

An exercise begins with its heading and its level, as STATEMENT reads them. Its solution
stands under a heading of the same words in the notebook of solutions beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from course import folders, paths
from course.folders import Folder
from course.markdown import jupyter_anchor

SOLUTIONS = "exercise-solutions.ipynb"
STATEMENT = re.compile(
    r"### (?P<heading>Exercise (?P<number>\S+) - (?P<title>.+))\n+"
    r"\*Level (?P<level>\d), (?P<minutes>\d+) minutes\.\*"
)


@dataclass(frozen=True)
class Statement:
    """An exercise as its notebook states it; both places are paths from the root."""

    folder: str
    number: str
    title: str
    level: int
    minutes: int
    place: str
    solution: str | None


def of(one: Folder, root: Path = paths.ROOT) -> Iterator[Statement]:
    """Yield the exercises of a folder's notebooks, in the order of the notebooks.

    A bonus folder may have notebooks one level deeper, with checks and solutions there.
    """
    found = sorted((root / one.home).glob("*.ipynb"))
    if one.is_bonus:
        found += sorted((root / one.home).glob("*/*.ipynb"))
    for file in found:
        if file.name == SOLUTIONS or paths.is_translation(file):
            continue
        beside = file.with_name(SOLUTIONS)
        for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
            for match in STATEMENT.finditer("".join(cell["source"])):
                anchor = quote(jupyter_anchor(match["heading"]), safe=",;:?!'&=+@$/~")
                yield Statement(
                    folder=one.path,
                    number=match["number"],
                    title=match["title"],
                    level=int(match["level"]),
                    minutes=int(match["minutes"]),
                    place=f"{file.relative_to(root).as_posix()}#{anchor}",
                    solution=f"{beside.relative_to(root).as_posix()}#{anchor}"
                    if beside.is_file()
                    else None,
                )


def everywhere(root: Path = paths.ROOT) -> list[Statement]:
    """Return all exercises, in the order in which the folders are read."""
    known = folders.in_reading_order(folders.read_all(root))
    return [statement for one in known for statement in of(one, root)]
