"""A type checker reads the course's own code and the modules of the chapters."""

import ast
import json
import sys
from pathlib import Path

import pytest

from course.gates.tree import Tree
from course.testing.programs import run
from course.testing.tree_copies import copy_tree

PLANTED = {
    "course/right.py": "def f(x: int) -> int:\n    return f(1)\n",
    "course/wrong.py": "def f(x: int) -> int:\n    return f('1')\n",
    "ch02/wrong.py": "import nowhere\n\n\ndef f(x: int) -> int:\n    return f(1, 2)\n",
    "ch02/test_left_alone.py": "import nowhere\n",
    "ch02/bare.py": "class A:\n    def f(self, x: int): ...\n\ndef g(x) -> int: ...\n",
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A copy of the tree with mistakes in it: what is found must be these alone."""
    root = copy_tree(tmp_path_factory.mktemp("types"))
    for path, text in PLANTED.items():
        (root / path).write_text(text, encoding="utf-8")
    return root


def test_types_agree_but_for_what_is_planted(planted):
    pyright = [sys.executable, "-m", "basedpyright", "--outputjson", "--level", "error"]
    pyright += ["--pythonpath", sys.executable, "--project", planted]
    done = run(*pyright, cwd=planted)
    found = {
        f"{Path(one['file']).relative_to(planted).as_posix()}:"
        f"{one['range']['start']['line'] + 1}": one["message"]
        for one in json.loads(done.stdout)["generalDiagnostics"]
    }
    expected = {"course/wrong.py:2", "ch02/wrong.py:1", "ch02/wrong.py:5"}
    assert found.keys() == expected, "\n".join(map(": ".join, found.items()))


def unannotated(source):
    """Public functions, and methods of public classes, that leave a type out."""
    classes = [n for n in source.tree.body if isinstance(n, ast.ClassDef)]
    homes = [source.tree, *(c for c in classes if not c.name.startswith("_"))]
    for node in (node for home in homes for node in home.body):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            types = [a.annotation for a in given if a.arg not in ("self", "cls")]
            if None in (*types, node.returns):
                yield f"{source.path}:{node.lineno}: {node.name}"


def test_public_functions_of_modules_have_annotations_but_for_what_is_planted(planted):
    modules = Tree(planted).modules.values()
    found = [one for module in modules for one in unannotated(module)]
    assert found == ["ch02/bare.py:4: g", "ch02/bare.py:2: f"], "\n".join(found)
