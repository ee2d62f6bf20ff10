"""Any cell of a lesson can be run again: its names mean the same at the end.

A reader changes a number and runs a cell a second time, after others further down. That
cell must not find another value under a name that it reads, and must not go on from its
own result. This is read from the code, so it takes no time; what a method changes
inside an object is not seen.
"""

import ast
from collections.abc import Sequence

import nbformat
import pytest

from course import paths

NOTEBOOKS = [
    "ch01/ch01.ipynb",
    "ch02/01_main-chapter-code/ch02.ipynb",
    "ch03/01_main-chapter-code/ch03.ipynb",
    "ch04/01_main-chapter-code/ch04.ipynb",
    "ch05/01_main-chapter-code/ch05.ipynb",
    "ch05/07_gpt_to_llama/gpt-to-llama.ipynb",
    "ch06/01_main-chapter-code/ch06.ipynb",
    "ch07/01_main-chapter-code/ch07.ipynb",
]
SCOPES = (ast.FunctionDef, ast.Lambda, ast.ClassDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class Names(ast.NodeVisitor):
    """What a cell reads from other cells, what it binds, what it changes in place."""

    def __init__(self, source: str) -> None:
        self.reads: set[str] = set()
        self.binds: set[str] = set()
        self.changes: set[str] = set()
        self._later: set[str] = set()  # read by a function when it is called
        for statement in ast.parse(source).body:
            self.visit(statement)
        self.reads |= self._later - self.binds

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self.reads |= {node.id} - self.binds
        else:
            self.binds.add(node.id)

    def visit_Assign(self, node: ast.Assign) -> None:
        for part in (node.value, *node.targets):
            self.visit(part)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.visit(node.value)
        goal = node.target
        while not isinstance(goal, ast.Name):
            goal = goal.value if hasattr(goal, "value") else ast.Name("_")
        if goal.id not in self.binds:
            self.changes.add(goal.id)
        self.visit(node.target)

    def visit_For(self, node: ast.For) -> None:
        for part in (node.iter, node.target, *node.body, *node.orelse):
            self.visit(part)

    def visit_alias(self, node: ast.alias) -> None:
        self.binds.add((node.asname or node.name).partition(".")[0])

    def _inner(self, node: ast.AST) -> set[str]:
        """Names that a scope of its own reads from outside."""
        names = [part for part in ast.walk(node) if isinstance(part, ast.Name)]
        own = {name.id for name in names if not isinstance(name.ctx, ast.Load)}
        own |= {part.arg for part in ast.walk(node) if isinstance(part, ast.arg)}
        own |= {part.name for part in ast.walk(node) if isinstance(part, SCOPES[::2])}
        return {name.id for name in names if isinstance(name.ctx, ast.Load)} - own

    def generic_visit(self, node: ast.AST) -> None:
        if isinstance(node, COMPREHENSIONS):
            self.reads |= self._inner(node) - self.binds
        elif isinstance(node, SCOPES):
            self._later |= self._inner(node)
            if not isinstance(node, ast.Lambda):
                self.binds.add(node.name)
        else:
            super().generic_visit(node)


def surprises(cells: Sequence[tuple[str, str]]) -> list[str]:
    """Say, for cells (id, source), where a name has changed its meaning."""
    found = [(name, Names(source)) for name, source in cells]
    said = []
    for place, (cell, names) in enumerate(found):
        earlier = set().union(*(other.binds for _, other in found[:place]))
        for name in sorted(names.reads & earlier):
            if name in names.binds:
                said.append(f"{cell} makes {name} from {name}: run twice, it goes on")
            for other, later in found[place + 1 :]:
                if name in later.binds:
                    said.append(f"{cell} reads {name}, and {other} gives it anew")
        for name in sorted(names.changes & earlier):
            said.append(f"{cell} changes {name}, which an earlier cell has made")
    return said


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_every_cell_of_a_lesson_can_be_run_again(path):
    notebook = nbformat.read(paths.ROOT / path, as_version=4)
    cells = [(c.id, c.source) for c in notebook.cells if c.cell_type == "code"]
    assert surprises(cells) == []


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["x = 1", "y = x", "x = 2"], "c1 reads x, and c2 gives it anew"),
        (["x = 1", "x = x + 1"], "c1 makes x from x: run twice, it goes on"),
        (["x = 1", "x += 1"], "c1 changes x, which an earlier cell has made"),
        (["x = [1]", "x[0] += 1"], "c1 changes x, which an earlier cell has made"),
        (["n = 1", "f = lambda y: n", "n = 2"], "c1 reads n, and c2 gives it anew"),
        (["n = 1", "print([n for _ in x])", "for n in x: pass"], "c1 reads n, and c2"),
        (
            ["n = 1", "class A:\n    def f(self):\n        return n", "n = 2"],
            "c1 reads n",
        ),
    ],
)
def test_a_name_that_changes_its_meaning_is_found(cells, message):
    (said,) = surprises([(f"c{i}", source) for i, source in enumerate(cells)])[:1]
    assert message in said


@pytest.mark.parametrize(
    "cells",
    [
        ["x = 1", "x = 2\ny = x", "x = 3\nz = x"],
        ["for i in range(3):\n    print(i)", "for i in range(4):\n    print(i)"],
        ["x = 1", "def f(x):\n    y = x\n    return y", "y = 2\nx2 = f(y)"],
        ["n = 1", "print([n for n in range(3)])", "n = 2"],
        ["total = 0\ntotal += 1", "print(total)"],
    ],
)
def test_names_of_a_cell_of_its_own_are_no_surprise(cells):
    assert surprises([(f"c{i}", source) for i, source in enumerate(cells)]) == []
