"""What each notebook takes, measured, and the tables that say so.

`ledger.csv` at the root holds one row for each notebook and preset, written by
`refresh`. READMEs and notebooks show it between two marks, which `refresh` fills:

    <!-- ledger: ch02 -->
    <!-- /ledger -->

In a README the mark names a folder, or `all`, and the table has a row for each
notebook below it. In a notebook the table is the notebook's own budget, for both
presets.
"""

from __future__ import annotations

import csv
import io
import os
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path

import nbformat
import psutil

from course import CourseError, paths
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
#: Megabytes (10**6 bytes) that a notebook leaves below `runs/`, where it leaves any.
RUNS_MB: Mapping[str, int] = {}
SAME = "quick and full (no difference)"
UNKNOWN = "not measured yet"
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


@dataclass(frozen=True)
class Row:
    """One measurement: a notebook, executed once from top to bottom."""

    notebook: str
    preset: str
    threads: int
    seconds: float
    peak_mb: int
    machine: str
    python: str
    torch: str


def read(root: Path = paths.ROOT) -> dict[tuple[str, str], Row]:
    """Return the ledger's rows by (notebook, preset); an empty one if there is none."""
    try:
        text = (root / FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    rows = {}
    for number, values in enumerate(csv.DictReader(io.StringIO(text)), start=2):
        try:
            row = Row(**values)
            numbers = int(row.threads), float(row.seconds), int(row.peak_mb)
        except (TypeError, ValueError):
            names = ",".join(field.name for field in fields(Row))
            raise CourseError(
                f"Line {number} of {FILE} is damaged. Its columns are {names}; delete "
                "the line and run `python3 -m course refresh` for its notebook."
            ) from None
        values |= dict(zip(("threads", "seconds", "peak_mb"), numbers))
        rows[row.notebook, row.preset] = Row(**values)
    return rows


def record(
    notebook: str, seconds: float, peak_mb: float, *, root: Path = paths.ROOT
) -> Row:
    """Write one measurement of the quick preset into the ledger and return its row.

    `notebook` is the path from the root with forward slashes, `seconds` and `peak_mb`
    are what `notebooks.execute` measured. Rows of notebooks that are gone go.
    """
    row = Row(
        notebook=notebook,
        preset="quick",
        threads=1,
        seconds=round(seconds, 1),
        peak_mb=round(peak_mb),
        machine=machine(),
        python=platform.python_version(),
        torch=metadata.version("torch").partition("+")[0],
    )
    rows = read(root) | {(row.notebook, row.preset): row}
    there = {key: value for key, value in rows.items() if (root / key[0]).is_file()}
    text = io.StringIO()
    names = [field.name for field in fields(Row)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(there[key]) for key in sorted(there))
    paths.write_text_atomically(root / FILE, text.getvalue())
    return row


def inside(path: Path, root: Path = paths.ROOT) -> str:
    """Return a path from the root with forward slashes; "" for a file elsewhere."""
    path = Path(path).resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else ""


def machine() -> str:
    """Return this machine in words, such as "2 cores, AMD EPYC, 24 GB, Linux"."""
    count = cores()
    memory = round(psutil.virtual_memory().total / 2**30)
    parts = [
        f"{count} core{'s' if count > 1 else ''}",
        _processor(),
        f"{memory} GB",
        platform.system().replace("Darwin", "macOS"),
    ]
    return ", ".join(part for part in parts if part)


def cores() -> int:
    """Return how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    """Return the processor's name without what every name has; "" if it has none."""
    name = platform.processor()
    if sys.platform == "linux":
        try:
            text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
        name = model[1] if model else name or platform.machine()
    elif sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        name = done.stdout or name
    name = re.sub(r"\((R|TM|tm|r)\)|@.*$|\b\d+-Core\b|\b(CPU|Processor)\b", " ", name)
    return " ".join(name.replace(",", " ").split())


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
    # A preset is visible where it is used, so a notebook without it has one size.
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    has_presets = any("choose(" in source for source in code)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _replace(cell.source, path, root, has_presets)
    same = before == [cell.source for cell in notebook.cells]
    return None if same else nbformat.writes(notebook) + "\n"


def _replace(text: str, path: Path, root: Path, has_presets: bool = False) -> str:
    def table(match: re.Match) -> str:
        if path.suffix == ".ipynb":
            lines = _budget(path, root, has_presets)
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
    quick = [row for (_, preset), row in read(root).items() if preset == "quick"]
    below = [r for r in quick if name == "all" or r.notebook.startswith(f"{name}/")]
    if not below:
        return ["", words["none"], ""]
    lines = [f"| {' | '.join(words['head'])} |", "| --- | --- | --- |"]
    for row in below:
        label = row.notebook if name == "all" else Path(row.notebook).name
        link = Path(os.path.relpath(root / row.notebook, page.parent)).as_posix()
        time, memory = duration(row.seconds), size(row.peak_mb)
        lines.append(f"| [`{label}`]({link}) | {time} | {memory} |")
    return ["", *lines, "", _measured(below, words["measured"]), ""]


def _budget(path: Path, root: Path, has_presets: bool) -> list[str]:
    """The table of a notebook: what it takes in each preset."""
    name, rows = inside(path, root), read(root)
    presets = {"quick": "quick", "full": "full"} if has_presets else {SAME: "quick"}
    lines = [
        "| preset | time | memory | disk | downloads |",
        "| --- | --- | --- | --- | --- |",
    ]
    downloads, known = _downloads(name.partition("/")[0], root), []
    disk = size(round(downloads) + RUNS_MB.get(name, 0))
    for label, preset in presets.items():
        row = rows.get((name, preset))
        if row:
            known.append(row)
        time, memory = (
            (duration(row.seconds), size(row.peak_mb)) if row else (UNKNOWN, UNKNOWN)
        )
        lines.append(
            f"| {label} | {time} | {memory} | {disk} | {size(round(downloads))} |"
        )
    return ["", *lines, "", *([_measured(known), ""] if known else [])]


def _downloads(chapter: str, root: Path) -> float:
    """Return the megabytes that a chapter needs and that do not lie in the tree.

    Files that a reader has to ask for, such as another model's weights, do not count.
    """
    text = (root / "course" / "assets.toml").read_text(encoding="utf-8")
    return sum(
        asset["size"] / 1e6
        for asset in tomllib.loads(text).values()
        if chapter in asset["needed_by"]
        and asset.get("offline")
        and not any("path" in source for source in asset["sources"])
    )


def _measured(rows: list[Row], label: str = ENGLISH["measured"]) -> str:
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
    """Return an amount of memory or disk in words.

    >>> size(0), size(2), size(512), size(3900)
    ('none', '2 MB', '512 MB', '3900 MB')
    """
    return f"{round(megabytes)} MB" if round(megabytes) else "none"
