"""Measured numbers that pages quote, taken from the tables in which they are stored.

A page shows one between marks of the kind ``result`` (`course.running.made_parts`). The
mark names the file, the column, and the row by a value that only one row has:

    <!-- result: ch06/01_main-chapter-code/results/accuracy.csv, accuracy, words -->

So a new measurement changes the page, and nobody retypes a number.
"""

from __future__ import annotations

from pathlib import Path

from course import CourseError, tables


def part(name: str, page: Path, root: Path) -> str:
    """Return the number that a mark names, a measured one with one decimal."""
    place = page.relative_to(root).as_posix()
    file, column, value = (name.split(", ", 2) + ["", ""])[:3]
    if not (root / file).is_file():
        raise CourseError(
            f"{place} has a mark `result: {name}`, but there is no {file}. "
            "Write the path of a table from the root, a column, and a value of the row."
        )
    found = [row for row in tables.read(root / file) if value in row.values()]
    if len(found) != 1 or column not in found[0]:
        raise CourseError(
            f"{place} has a mark `result: {name}`: {file} has {len(found)} rows with "
            f"{value!r}, and needs one, with the column {column!r}. Correct the mark."
        )
    number = found[0][column]
    return f"{float(number):.1f}" if "." in number else number
