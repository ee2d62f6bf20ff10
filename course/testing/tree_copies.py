"""Copies of the tree in which tests plant defects, and runs of the commands there.

A gate is worth what it finds: every one has a test that plants a defect in a copy of
the real tree and looks for it in the output of the test command.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from course import paths, settings
from course.installation import environment
from course.testing import programs
from course.testing.lent_environment import lend

PATIENCE = 600.0  # seconds; a busy machine takes many times as long as an idle one


def copy_tree(folder: Path, name: str = "tree") -> Path:
    """Copy the tree into a new folder in `folder`; return it, able to run commands."""
    tree = Path(folder).resolve() / name
    for file in paths.tree_files():
        copy = tree / file.relative_to(paths.ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, copy)
    lend(tree)
    return tree


def run_course(tree: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run `python -m course ARGUMENTS` in a copy; all it says is in `stdout`."""
    return subprocess.run(
        [environment.python_of(tree / ".venv"), "-m", "course", *arguments],
        cwd=tree,
        env=programs.variables(),
        timeout=PATIENCE,
        **settings.ONE_TEXT,
    )
