"""Trees of a few files, for the tests of the gates.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     tree = miniature(folder, {"ch02/a.ipynb": notebook("# A", "x = 1")})
...     [cell.kind for cell in tree.notebooks["ch02/a.ipynb"].cells]
['markdown', 'code']
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from course.gates.tree import Tree, gates

# The chapters as a plan: it is enough for their order.
_ORDER = (
    *("ch01", "ch02", "appendix-A", "ch03", "ch04", "ch05"),
    *("appendix-D", "ch06", "appendix-E", "ch07"),
)
ROOT_FOLDER = 'title = "A tree"\ntitle_ja = "A tree"\n' + "".join(
    f'[planned.{chapter}]\ntitle = "A"\ntitle_ja = "A"\norder = {place}\n'
    for place, chapter in enumerate(_ORDER, start=1)
)
REQUIREMENTS = "torch==2.13.0\nnumpy==2.4.6\nmatplotlib==3.11.2\n"


def code(source: str, *outputs: dict, tags: Sequence[str] = (), **more: Any) -> dict:
    """A code cell; its count and id are given by `notebook` unless `more` has them."""
    return {
        "cell_type": "code",
        "metadata": {"tags": list(tags)} if tags else {},
        "source": source.splitlines(keepends=True),
        "outputs": list(outputs),
        **more,
    }


def markdown(source: str, **more: Any) -> dict:
    lines = source.splitlines(keepends=True)
    return {"cell_type": "markdown", "metadata": {}, "source": lines, **more}


def stream(text: str) -> dict:
    """An output that was printed."""
    return {"output_type": "stream", "name": "stdout", "text": text}


def html(text: str) -> dict:
    """An output that a browser shows."""
    data = {"text/html": text}
    return {"output_type": "display_data", "data": data, "metadata": {}}


def figure(alt: str | None = None, mime: str = "image/png") -> dict:
    """An output with an image, described by `alt` unless that is None."""
    metadata = {} if alt is None else {mime: {"alt": alt}}
    return {"output_type": "display_data", "data": {mime: ""}, "metadata": metadata}


def error(name: str = "ValueError") -> dict:
    return {"output_type": "error", "ename": name, "evalue": "no", "traceback": []}


def notebook(*cells: dict | str) -> str:
    """A notebook as one cold run leaves it.

    A string is a cell too: markdown if it begins with ``#`` and a space or with
    ``md:``, which is cut off, else code.
    """
    made, count = [], 0
    for number, cell in enumerate(cells):
        if isinstance(cell, str):
            is_text = cell.startswith(("# ", "## ", "md:"))
            cell = markdown(cell.removeprefix("md:")) if is_text else code(cell)
        cell = {"id": f"cell-{number}"} | cell
        if cell["cell_type"] == "code":
            count += 1
            cell = {"execution_count": count} | cell
        made.append(cell)
    raw = {"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(raw, indent=1)


def write_notebook(path: Path, *cells: dict | str) -> Path:
    """Write a notebook as `notebook` makes it, with its folder; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(notebook(*cells), encoding="utf-8", newline="\n")
    return path


def miniature(root: Path | str, files: Mapping[str, str]) -> Tree:
    """Write `files` (path to text) below `root`, and what every tree has."""
    defaults = {
        "folder.toml": ROOT_FOLDER,
        "requirements.txt": REQUIREMENTS,
        "requirements-test.txt": "pytest==9.2.0\n",
    }
    for path, text in (defaults | dict(files)).items():
        target = Path(root, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8", newline="\n")
    return Tree(Path(root))


def every_gate(module: ModuleType) -> Callable:
    """All gates of a module as one."""
    return lambda tree: [found for gate in gates(module) for found in gate(tree)]


def check_gate(
    gate: Callable, root: Path, files: Mapping[str, str], expected: str | int
) -> None:
    """Assert that a gate finds so much, or a thing of which it says these words."""
    found = list(gate(miniature(root, files)))
    if isinstance(expected, int):
        assert len(found) == expected, found
    else:
        assert bool(found) == bool(expected), found
        assert expected in "\n".join(found)
