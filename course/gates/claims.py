"""What is printed but not compared is backed by an assertion that is.

Timings and versions differ from machine to machine, so their cells carry the tag
``nbval-ignore-output``. These gates keep that door narrow.
"""

import ast
import re
from collections.abc import Iterator

from course.gates.assertions import asserts
from course.gates.tree import FUNCTIONS, Cell, Finding, Notebook, Tree

IGNORE = "nbval-ignore-output"
SKIP = "nbval-skip"
MAX_SHARE = 5  # at most one code cell in five


def version_cell(notebook: Notebook) -> Cell | None:
    """The cell that prints the versions: it states no claim, so nothing need follow it.

    It is the first code cell, or the second, and prints ``something.__version__`` or
    calls ``version``; it defines nothing and measures nothing.
    """
    for cell in notebook.code[:2]:
        if _prints_versions(cell):
            return cell
    return None


def _prints_versions(cell: Cell) -> bool:
    clocks = {"perf_counter", "monotonic", "process_time", "timeit", "time"}
    defines = any(isinstance(node, (*FUNCTIONS, ast.ClassDef)) for node in cell.nodes)
    versions = cell.names & {"__version__", "version", "python_version"}
    return (
        bool(versions)
        and "print" in cell.names
        and not defines
        and cell.names.isdisjoint(clocks)
    )


def nothing_is_skipped(tree: Tree) -> Iterator[Finding]:
    """Every cell runs under test."""
    for cell in tree.code_cells():
        if SKIP in cell.tags:
            yield Finding(
                f"{cell.place}: is tagged {SKIP}, so no test would ever run it; remove "
                f"the tag (or use {IGNORE} and assert the claim in a later cell)."
            )


def few_outputs_are_ignored(tree: Tree) -> Iterator[Finding]:
    """At most a fifth of the code cells go uncompared, the version cell aside."""
    for notebook in tree.notebooks.values():
        excepted = version_cell(notebook)
        ignored = [c for c in notebook.code if IGNORE in c.tags and c is not excepted]
        if len(ignored) * MAX_SHARE > len(notebook.code):
            yield Finding(
                f"{ignored[0].place}: {len(ignored)} of {len(notebook.code)} code "
                f"cells are tagged {IGNORE}, more than a fifth; print claims that hold "
                "everywhere instead of raw timings."
            )


def ignored_outputs_are_claimed(tree: Tree) -> Iterator[Finding]:
    """After a cell whose output is not compared comes one that asserts its point."""
    for notebook in tree.notebooks.values():
        pending = None
        excepted = version_cell(notebook)
        for cell in notebook.code:
            if IGNORE in cell.tags:
                if pending:
                    yield _unclaimed(pending)
                pending = cell if cell is not excepted else None
            elif pending and _claims(notebook, cell):
                pending = None
        if pending:
            yield _unclaimed(pending)


def _unclaimed(cell: Cell) -> Finding:
    return Finding(
        f"{cell.place}: is tagged {IGNORE}, and no code cell after it (before the next "
        "such) asserts anything; add a cell that asserts what its output shows."
    )


def _claims(notebook: Notebook, cell: Cell) -> bool:
    """Whether a cell asserts something.

    The check of an exercise passes on the untouched stub, so it claims something only
    in a notebook of solutions.
    """
    exercise = re.compile(r"check_\d+_\d+\Z|check_[A-Z]_\d+\Z")
    return any(
        asserts(node)
        and (
            notebook.role == "solutions"
            or not exercise.match(getattr(getattr(node, "func", None), "id", ""))
        )
        for node in cell.nodes
    )
