"""What each notebook takes, measured, and the tables that say so.

`ledger.csv` at the root holds one row for each notebook, written by `refresh`, which
runs with the quick preset: the largest memory of the kernel, and the seconds that it
kept a processor busy, its children included. Waiting does not count, nor what else the
machine had to do. READMEs and notebooks show this between marks of the kind ``ledger``
(`course.running.made_parts`). In a README the mark names a folder, or ``all``, and the
table has a row for each notebook below it. In a notebook the table is its own budget.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import get_type_hints

from course import CourseError, assets, folders, paths, tables, this_machine
from course.markdown import table
from course.running.contents import words_for

FILE = "ledger.csv"
UNKNOWN = "not measured yet"
MEASURED_QUICK = "Measured with the quick preset on"


@dataclass(frozen=True)
class Row:
    """One measurement: a notebook, executed once from top to bottom."""

    notebook: str
    threads: int
    seconds: float
    peak_mb: int
    machine: str
    python: str
    torch: str


def read(root: Path = paths.ROOT) -> dict[str, Row]:
    """Return the ledger's rows by notebook, none if there is no ledger yet."""
    file, rows, kinds = root / FILE, {}, get_type_hints(Row)
    for number, values in enumerate(tables.read(file) if file.exists() else (), 2):
        try:
            row = Row(**{name: kind(values[name]) for name, kind in kinds.items()})
        except (KeyError, TypeError, ValueError):
            raise CourseError(
                f"Line {number} of {FILE} is damaged. Its columns are "
                f"{','.join(kinds)}; delete the line and run `python3 -m course "
                "refresh` for its notebook."
            ) from None
        rows[row.notebook] = row
    return rows


def record(
    notebook: str, seconds: float, peak_mb: float, *, root: Path = paths.ROOT
) -> Row:
    """Write one measurement into the ledger and return its row.

    `notebook` is the path from the root with forward slashes, `seconds` and `peak_mb`
    are what `notebooks.execute` measured. Rows of notebooks that are gone go.
    """
    row = Row(
        notebook=notebook,
        threads=1,
        seconds=round(seconds, 1),
        peak_mb=round(peak_mb),
        machine=this_machine.machine(),
        python=platform.python_version(),
        torch=metadata.version("torch").partition("+")[0],
    )
    rows = read(root) | {row.notebook: row}
    there = {name: value for name, value in rows.items() if (root / name).is_file()}
    tables.write(root / FILE, [asdict(there[name]) for name in sorted(there)])
    return row


def inside(path: Path, root: Path = paths.ROOT) -> str:
    """Return a path from the root with forward slashes; "" for a file elsewhere."""
    path = Path(path).resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else ""


def part(name: str, page: Path, root: Path) -> str:
    """Return the table for a mark of that name on a page or in a notebook."""
    notebook = page.suffix == ".ipynb"
    lines = _budget(page, root) if notebook else _overview(name, page, root)
    return "\n".join(["", *lines, ""])


def _overview(name: str, page: Path, root: Path) -> list[str]:
    """The table of a README: one row for each measured notebook below a folder."""
    if name != "all" and not (root / name).is_dir():
        raise CourseError(
            f"{inside(page, root)} has a ledger table for {name}, but there is no such "
            "folder. Name a folder as seen from the root, such as ch02, or all."
        )
    words = words_for(page)
    rows = read(root).values()
    below = [r for r in rows if name == "all" or r.notebook.startswith(f"{name}/")]
    if not below:
        return ["", words["not_measured"], ""]
    lines = []
    for row in below:
        label = row.notebook if name == "all" else Path(row.notebook).name
        link = Path(os.path.relpath(root / row.notebook, page.parent)).as_posix()
        lines.append([f"[`{label}`]({link})", duration(row.seconds), size(row.peak_mb)])
    made = table(words["ledger"], lines)
    return ["", *made, "", _measured(below, words["measured"]), ""]


def _budget(path: Path, root: Path) -> list[str]:
    """The table of a notebook: what it takes with the quick preset."""
    name = inside(path, root)
    row = read(root).get(name)
    time, memory, measured = UNKNOWN, UNKNOWN, []
    if row:
        time, memory = duration(row.seconds), size(row.peak_mb)
        measured = [_measured([row], MEASURED_QUICK), ""]
    values = [time, memory, size(_downloads(name, root))]
    return ["", *table(["time", "memory", "downloads"], [values]), "", *measured]


def _downloads(notebook: str, root: Path) -> float:
    """Return the megabytes that a notebook's folders need and that no tree holds.

    Files that a reader has to ask for, such as another model's weights, do not count.
    """
    needed = folders.assets_for(notebook, folders.read_all(root))
    known = assets.manifest(root / "course" / "assets.toml")
    files = [known[name] for name in known if name in needed]
    return sum(f.size / 1e6 for f in files if f.offline and not f.in_tree)


def _measured(rows: list[Row], label: str) -> str:
    """Return the line below a table: on which machine, with what."""
    on = sorted({(row.machine, row.python, row.torch, row.threads) for row in rows})
    said = [
        f"{machine}, {threads} thread{'s' if threads > 1 else ''}, "
        f"Python {python}, PyTorch {torch}"
        for machine, python, torch, threads in on
    ]
    return f"{label}: {'; '.join(said)}."


def duration(seconds: float) -> str:
    """Return a time as a reader plans with it: whole seconds, or minutes.

    >>> duration(7.6), duration(89), duration(150), duration(7300)
    ('8 s', '89 s', '3 min', '122 min')
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{-int(-seconds // 60)} min"


def size(megabytes: float) -> str:
    """Return an amount of memory or of downloads in words.

    >>> size(0), size(2), size(512), size(3900)
    ('none', '2 MB', '512 MB', '3900 MB')
    """
    return f"{round(megabytes)} MB" if round(megabytes) else "none"
