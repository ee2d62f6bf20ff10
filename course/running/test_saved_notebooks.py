"""Which notebooks JupyterLab writes, and which it trusts."""

import asyncio

import nbformat
import pytest
from nbformat.sign import NotebookNotary

from course import paths
from course.running import ledger, saved_notebooks
from course.testing import tiny_trees

PLACE = "ch02/a.ipynb"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """JupyterLab's view of a tree with one notebook, which the ledger knows."""
    tiny_trees.write_notebook(
        tmp_path / PLACE,
        tiny_trees.markdown("# A"),
        tiny_trees.code("x = 1\nx", tiny_trees.html("<b>1</b>"), tags=["kept"]),
    )
    row = ledger.Row(PLACE, 1, 1.0, 1, "m", "3", "2")
    monkeypatch.setattr(ledger, "read", lambda: {"a": row})
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    manager = saved_notebooks.ReadersFiles(root_dir=str(tmp_path))
    manager.notary = NotebookNotary(db_file=":memory:")
    return manager


def opened(files, path=PLACE):
    return asyncio.run(files.get(path))["content"]


def saved(files, content, path=PLACE):
    """Save as JupyterLab does; tell whether the file changed."""
    file = paths.ROOT / path
    before = file.read_bytes() if file.exists() else b""
    model = {"type": "notebook", "format": "json", "content": content}
    answer = asyncio.run(files.save(model, path))
    assert answer["path"] == path
    return file.read_bytes() != before


def test_what_reading_changes_is_not_written(files):
    content = opened(files)
    content.metadata["language_info"] = {"name": "python", "version": "3.99"}
    content.metadata["kernelspec"] = {"name": "python3", "display_name": "Mine"}
    code = content.cells[1]
    code.metadata |= {"scrolled": True, "jupyter": {"source_hidden": False}}
    code.metadata["execution"] = {"iopub.status.busy": "now"}
    code.source = code.source.splitlines(keepends=True)  # as some programs send it
    assert not saved(files, content)


@pytest.mark.parametrize(
    "change",
    [
        lambda nb: nb.cells[0].update(source="# B"),
        lambda nb: nb.cells[1].update(source="x = 2\nx"),
        lambda nb: nb.cells[1].update(outputs=[]),
        lambda nb: nb.cells[1].update(execution_count=7),
        lambda nb: nb.cells[1].metadata.update(tags=["mine"]),
        lambda nb: nb.cells.pop(0),
        lambda nb: nb.metadata.update(title="Mine"),
    ],
)
def test_what_somebody_changes_is_written(files, change):
    content = opened(files)
    change(content)
    assert saved(files, content)


def test_new_and_damaged_files_are_written(files):
    content = opened(files)
    assert saved(files, content, "new.ipynb")
    (paths.ROOT / PLACE).write_text("{", encoding="utf-8")
    assert saved(files, content)


def test_other_kinds_of_files_are_left_to_jupyterlab(files):
    model = {"type": "file", "format": "text", "content": "x"}
    asyncio.run(files.save(model, "a.txt"))
    assert (paths.ROOT / "a.txt").read_text(encoding="utf-8") == "x"


def test_notebooks_of_the_course_are_trusted_and_others_ask(files, caplog):
    tiny_trees.write_notebook(
        paths.ROOT / "mine.ipynb",
        tiny_trees.code("y = 1\ny", tiny_trees.html("<script></script>")),
    )
    trusted = {path: opened(files, path) for path in (PLACE, "mine.ipynb")}
    assert files.notary.check_cells(trusted[PLACE])
    assert not files.notary.check_cells(trusted["mine.ipynb"])
    saved(files, nbformat.from_dict({**trusted["mine.ipynb"], "cells": []}), "b.ipynb")
    assert "not trusted" not in caplog.text
    # What a reader changes in a trusted one stays trusted.
    content = opened(files)
    content.cells[1].source = "x = 3"
    assert saved(files, content)
    there = nbformat.read(paths.ROOT / PLACE, as_version=4)
    assert files.notary.check_signature(there)
    # The same content elsewhere: a reader's copy.
    (paths.ROOT / "copy.ipynb").write_bytes((paths.ROOT / PLACE).read_bytes())
    assert files.notary.check_cells(opened(files, "copy.ipynb"))
