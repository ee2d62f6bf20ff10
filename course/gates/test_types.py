"""A type checker reads the course's own code and the modules of the chapters."""

import json
import subprocess
import sys
from pathlib import Path

from course import paths


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
