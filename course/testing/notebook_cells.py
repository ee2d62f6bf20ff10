"""Cells of a notebook, run in the test's own process, in the notebook's folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import nbformat
import pytest


def run_cells(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ids: Sequence[str] | None = None,
    changed: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run the code cells of a notebook, or those of some ids; return their names.

    Args:
        path: of the notebook.
        monkeypatch: takes the working folder back after the test.
        ids: of the cells to run, in this order.
        changed: other sources, by the ids of the cells in whose place they run.
    """
    sources = code_cells(path) | dict(changed or {})
    monkeypatch.chdir(path.parent)
    matplotlib.use("Agg")
    names: dict[str, Any] = {}
    for one in sources if ids is None else ids:
        exec(compile(sources[one], f"{path.name}:{one}", "exec"), names)
    return names


def code_cells(path: Path) -> dict[str, str]:
    """The sources of a notebook's code cells, by their ids."""
    notebook = nbformat.read(path, as_version=4)
    return {c.id: c.source for c in notebook.cells if c.cell_type == "code"}
