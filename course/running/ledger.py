"""What each notebook takes, measured, and the tables that say so.

`ledger.csv` at the root holds one row for each notebook, written by `refresh`, which
runs with the quick preset: the largest memory of the kernel, and the seconds that it
kept a processor busy, its children included. Waiting does not count, nor what else the
machine had to do. READMEs and notebooks show this between two marks, which `refresh`
fills:

    <!-- ledger: ch02 -->
    <!-- /ledger -->

In a README the mark names a folder, or `all`, and the table has a row for each
notebook below it. In a notebook the table is the notebook's own budget.
"""

from __future__ import annotations

import csv
import io
import os
import platform
import re
import tomllib
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path

import nbformat

from course import CourseError, folders, paths, this_machine
from course.running import teaching_minutes

FILE = "ledger.csv"
MARKS = re.compile(
    r"(?P<opening><!-- ledger: (?P<name>[^>\n]+?) -->)(?P<table>.*?)"
    r"(?P<closing><!-- /ledger -->)",
    re.DOTALL,
)
OPENING = "<!-- ledger:"
#: In place of a folder: what a class should plan for each section, see `minutes`.
MINUTES = "minutes"
UNKNOWN = "not measured yet"
MEASURED_QUICK = "Measured with the quick preset on"
ENGLISH = {
    "head": ("notebook", "time", "memory"),
    "measured": "Measured on",
    "none": "No notebook has been measured yet.",
}
#: For pages whose name ends in .ja.md; figures and machine stay as they are.
JAPANESE = {
    "head": (
        "\u30ce\u30fc\u30c8\u30d6\u30c3\u30af",
        "\u6642\u9593",
        "\u30e1\u30e2\u30ea",
    ),
    "measured": "\u6e2c\u5b9a\u74b0\u5883",
    "none": "\u307e\u3060\u6e2c\u5b9a\u3055\u308c\u3066\u3044\u307e\u305b\u3093\u3002",
}


TEXTS = ("notebook", "machine", "python", "torch")


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
    try:
        text = (root / FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    rows = {}
    for number, values in enumerate(csv.DictReader(io.StringIO(text)), start=2):
        try:
            row = Row(
                **{name: values[name] for name in TEXTS},
                threads=int(values["threads"]),
                seconds=float(values["seconds"]),
                peak_mb=int(values["peak_mb"]),
            )
        except (KeyError, TypeError, ValueError):
            names = ",".join(field.name for field in fields(Row))
            raise CourseError(
                f"Line {number} of {FILE} is damaged. Its columns are {names}; delete "
                "the line and run `python3 -m course refresh` for its notebook."
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
    text = io.StringIO()
    names = [field.name for field in fields(Row)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(there[name]) for name in sorted(there))
    paths.write_text_atomically(root / FILE, text.getvalue())
    return row


def inside(path: Path, root: Path = paths.ROOT) -> str:
    """Return a path from the root with forward slashes; "" for a file elsewhere."""
    path = Path(path).resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else ""


def fill(root: Path = paths.ROOT) -> list[Path]:
    """Bring every marked table up to date; return the files that changed."""
    changed = []
    for path in paths.tree_files(root):
        new = filled(path, root)
        if new is not None:
            paths.write_text_atomically(path, new)
            changed.append(path)
    return changed


def stale(root: Path = paths.ROOT) -> list[str]:
    """Return the files, from the root, whose tables are not what the ledger says."""
    files = paths.tree_files(root)
    return [inside(file, root) for file in files if filled(file, root) is not None]


def filled(path: Path, root: Path = paths.ROOT) -> str | None:
    """Return a page's or notebook's new text, or None if its tables are up to date."""
    if path.suffix not in (".md", ".ipynb"):
        return None
    text = path.read_text(encoding="utf-8")
    if OPENING not in text:
        return None
    if path.suffix == ".md":
        new = _replace(text, path, root)
        return new if new != text else None
    notebook = nbformat.reads(text, as_version=4)
    before = [cell.source for cell in notebook.cells]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _replace(cell.source, path, root)
    same = before == [cell.source for cell in notebook.cells]
    return None if same else nbformat.writes(notebook) + "\n"


def _replace(text: str, path: Path, root: Path) -> str:
    def table(match: re.Match[str]) -> str:
        if path.suffix == ".ipynb":
            lines = _budget(path, root)
        else:
            lines = _overview(match["name"], path, root)
        return "\n".join([match["opening"], *lines, match["closing"]])

    return MARKS.sub(table, text)


def _overview(name: str, page: Path, root: Path) -> list[str]:
    """The table of a README: one row for each measured notebook below a folder."""
    if name == MINUTES:
        times = {row.notebook: duration(row.seconds) for row in read(root).values()}
        return [*teaching_minutes.tables(page, root, times), ""]
    if name != "all" and not (root / name).is_dir():
        raise CourseError(
            f"{inside(page, root)} has a ledger table for {name}, but there is no such "
            "folder. Name a folder as seen from the root, such as ch02, or all."
        )
    words = JAPANESE if page.name.endswith(".ja.md") else ENGLISH
    rows = read(root).values()
    below = [r for r in rows if name == "all" or r.notebook.startswith(f"{name}/")]
    if not below:
        return ["", words["none"], ""]
    lines = [f"| {' | '.join(words['head'])} |", "| --- | --- | --- |"]
    for row in below:
        label = row.notebook if name == "all" else Path(row.notebook).name
        link = Path(os.path.relpath(root / row.notebook, page.parent)).as_posix()
        time, memory = duration(row.seconds), size(row.peak_mb)
        lines.append(f"| [`{label}`]({link}) | {time} | {memory} |")
    return ["", *lines, "", _measured(below, words["measured"]), ""]


def _budget(path: Path, root: Path) -> list[str]:
    """The table of a notebook: what it takes with the quick preset."""
    name = inside(path, root)
    row = read(root).get(name)
    time, memory, measured = UNKNOWN, UNKNOWN, []
    if row:
        time, memory = duration(row.seconds), size(row.peak_mb)
        measured = [_measured([row], MEASURED_QUICK), ""]
    downloads = size(_downloads(name, root))
    return [
        "",
        "| time | memory | downloads |",
        "| --- | --- | --- |",
        f"| {time} | {memory} | {downloads} |",
        "",
        *measured,
    ]


def _downloads(notebook: str, root: Path) -> float:
    """Return the megabytes that a notebook's folders need and that no tree holds.

    Files that a reader has to ask for, such as another model's weights, do not count.
    """
    text = (root / "course" / "assets.toml").read_text(encoding="utf-8")
    needed = folders.assets_for(notebook, folders.read_all(root))
    return sum(
        asset["size"] / 1e6
        for name, asset in tomllib.loads(text).items()
        if name in needed
        and asset.get("offline")
        and not any("path" in source for source in asset["sources"])
    )


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
