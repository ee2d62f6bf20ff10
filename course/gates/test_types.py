"""A type checker reads the course's own code and the modules of the chapters."""

import ast
import json
import subprocess
import sys
from pathlib import Path

from course import paths
from course.gates.tree import Tree
from course.testing.tiny_trees import miniature


def problems(root):
    """What basedpyright calls an error in the project at `root`, a line for each."""
    done = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--outputjson", "--level", "error"]
        + ["--pythonpath", sys.executable, "--project", str(root)],
        cwd=root,
        capture_output=True,
        encoding="utf-8",
    )
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] > 0, done.stderr
    return [
        f"{Path(one['file']).relative_to(root).as_posix()}:"
        f"{one['range']['start']['line'] + 1}: {one['message']}"
        for one in found["generalDiagnostics"]
    ]


def test_types_agree():
    found = problems(paths.ROOT)
    assert not found, "\n".join(found)


PLANTED = {
    "course/right.py": "def f(x: int) -> int:\n    return f(1)\n",
    "course/wrong.py": "def f(x: int) -> int:\n    return f('1')\n",
    "ch02/wrong.py": "import nowhere\n\n\ndef f(x: int) -> int:\n    return f(1, 2)\n",
    "ch02/test_left_alone.py": "import nowhere\n",
}


def test_mistakes_are_found(tmp_path):
    settings = (paths.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    settings = settings[settings.index("[tool.basedpyright]") :]
    for path, text in {**PLANTED, "pyproject.toml": settings}.items():
        file = tmp_path / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    found = {problem.partition(": ")[0] for problem in problems(tmp_path)}
    assert found == {"course/wrong.py:2", "ch02/wrong.py:1", "ch02/wrong.py:5"}


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


def test_public_functions_of_modules_have_annotations(tmp_path):
    planted = "class A:\n    def f(self, x: int): ...\n\n\ndef g(x) -> int: ...\n"
    tree = miniature(tmp_path, {"ch02/a.py": planted})
    assert list(unannotated(tree.modules["a"])) == ["ch02/a.py:5: g", "ch02/a.py:2: f"]
    left = [one for module in Tree().modules.values() for one in unannotated(module)]
    assert not left, "\n".join(left)
