"""What JupyterLab writes for `lab`: a notebook that was only read stays as it was.

Opening one makes JupyterLab note its own version of Python in it, and its autosave
would store that. A course that somebody has only read would differ from the one that
was fetched, and the next update would conflict with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager
from nbformat import NotebookNode

from course import paths
from course.running import ledger

#: Metadata that reading changes: whether a cell is folded, when it ran, who is trusted.
OF_READING = {
    "cell": {"collapsed", "execution", "jupyter", "scrolled", "trusted"},
    "notebook": {"kernelspec", "language_info"},
}


def essence(notebook: NotebookNode) -> dict[str, Any]:
    """Return what somebody has changed if it differs: text, code, outputs, tags.

    >>> cell = nbformat.v4.new_code_cell("1 + 1", id="a", metadata={"scrolled": True})
    >>> ran = {"language_info": {"name": "python"}}
    >>> one = nbformat.v4.new_notebook(cells=[cell], metadata=ran)
    >>> del cell.metadata["scrolled"]
    >>> essence(one) == essence(nbformat.v4.new_notebook(cells=[cell]))
    True
    """
    cells = []
    for cell in notebook.cells:
        kept = {k: v for k, v in cell.metadata.items() if k not in OF_READING["cell"]}
        cells.append({**cell, "metadata": kept})
    about = notebook.metadata.items()
    kept = {k: v for k, v in about if k not in OF_READING["notebook"]}
    return {"cells": cells, "metadata": kept}


class ReadersFiles(AsyncLargeFileManager):
    """JupyterLab's files, of which it writes no notebook that nobody changed.

    Notebooks of the course are trusted, as the course's own code is. Whether another
    one is, JupyterLab shows beside it; the terminal need not say so.
    """

    async def save(self, model: dict[str, Any], path: str = "") -> dict[str, Any]:
        """Write a file unless it is a notebook that says what is there already."""
        if model.get("type") == "notebook" and self._says_nothing_new(model, path):
            return await self.get(path, content=False)
        return await super().save(model, path)

    def _says_nothing_new(self, model: dict[str, Any], path: str) -> bool:
        try:
            text = Path(self._get_os_path(path)).read_text(encoding="utf-8")
            there, new = (
                essence(nbformat.reads(each, as_version=4))
                for each in (text, json.dumps(model["content"]))
            )
        except (OSError, ValueError, KeyError, AttributeError):
            return False  # a new file, or one to which JupyterLab has an answer
        return there == new

    def mark_trusted_cells(self, nb: NotebookNode, path: str = "") -> None:
        """Trust a notebook that was signed, and sign those of the course."""
        trusted = self.notary.check_signature(nb)
        if not trusted and self._is_the_courses(path):
            self.notary.sign(nb)
            trusted = True
        self.notary.mark_cells(nb, trusted)

    def check_and_sign(self, nb: NotebookNode, path: str = "", **again: bool) -> None:
        """Sign what is saved if all its cells are trusted."""
        if self.notary.check_cells(nb):
            self.notary.mark_cells(nb, True)  # asking has taken the marks away
            super().check_and_sign(nb, path, **again)

    def _is_the_courses(self, path: str) -> bool:
        file = Path(self._get_os_path(path)).resolve()
        if not file.is_relative_to(paths.ROOT):
            return False
        inside = file.relative_to(paths.ROOT).as_posix()
        return any(row.notebook == inside for row in ledger.read().values())
