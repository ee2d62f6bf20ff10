"""Cells of a notebook, run in the test's own process, in the notebook's folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import nbformat
import pytest


def run_cells(
    path: Path, monkeypatch: pytest.MonkeyPatch, ids: Sequence[str] | None = None
) -> dict[str, Any]:
    """Run the code cells of a notebook, or those of some ids; return their names."""
    notebook = nbformat.read(path, as_version=4)
    sources = {cell.id: cell.source for cell in notebook.cells if _is_code(cell)}
    monkeypatch.chdir(path.parent)
    matplotlib.use("Agg")
    names: dict[str, Any] = {}
    for one in sources if ids is None else ids:
        exec(compile(sources[one], f"{path.name}:{one}", "exec"), names)
    return names


def _is_code(cell: Any) -> bool:
    return cell.cell_type == "code"
