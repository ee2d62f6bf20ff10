"""Parts of pages and notebooks that are made from other files, not written by hand.

Such a part stands between two marks, and ``python3 -m course refresh`` fills it in:

    <!-- ledger: ch02 -->
    <!-- /ledger -->

The first word is the kind of part, here a table of measurements; what follows names one
of that kind. A gate compares what stands there with what would be made now.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nbformat

from course import paths
from course.running import addresses, contents, ledger, results

#: part(name, page, root) returns the text between the marks of one kind.
KINDS = {
    "address": addresses.part,
    "folders": contents.part,
    "ledger": ledger.part,
    "result": results.part,
}


def fill(root: Path = paths.ROOT) -> list[Path]:
    """Bring every made part up to date; return the files that changed."""
    changed = []
    for path in paths.tree_files(root):
        new = filled(path, root)
        if new is not None:
            paths.write_text_atomically(path, new)
            changed.append(path)
    return changed


def filled(path: Path, root: Path = paths.ROOT) -> str | None:
    """Return a file's new text, or None if all that is made in it is up to date.

    Raises `CourseError` for a mark that names something unknown.
    """
    if path.suffix not in (".md", ".ipynb"):
        return None
    text = path.read_text(encoding="utf-8")
    if not any(f"<!-- {kind}:" in text for kind in KINDS):
        return None

    def made(source: str) -> str:
        for kind, part in KINDS.items():
            source = replaced(source, kind, partial(part, page=path, root=root))
        return source

    if path.suffix == ".md":
        new = made(text)
        return new if new != text else None
    notebook = nbformat.reads(text, as_version=4)
    before = [cell.source for cell in notebook.cells]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = made(cell.source)
    same = before == [cell.source for cell in notebook.cells]
    return None if same else nbformat.writes(notebook) + "\n"


def replaced(text: str, kind: str, part: Callable[[str], str]) -> str:
    """Return a text with `part(name)` between the marks of a kind.

    >>> replaced("<!-- sum: 2 3 -->?<!-- /sum -->", "sum", lambda name: f" {name} ")
    '<!-- sum: 2 3 --> 2 3 <!-- /sum -->'
    """
    return _marks(kind).sub(lambda mark: mark[1] + part(mark[2]) + mark[3], text)


def names(text: str, kind: str) -> list[str]:
    """Return the names of the parts of a kind that a text has marks for."""
    return [mark[2] for mark in _marks(kind).finditer(text)]


def _marks(kind: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {kind}: ([^>\n]+?) -->).*?(<!-- /{kind} -->)", re.DOTALL)
