"""An environment that is lent: complete at once, and able to lend again."""

import subprocess

from course import paths
from course.installation import environment
from course.testing.tree_copies import copy_tree

QUESTION = """
import gpt, subprocess, sys
from course.installation import environment
from course.testing import tree_copies
assert environment.is_complete(environment.chosen_prefix(), testing=True)
print(gpt.__file__)
subprocess.run([sys.executable, "-m", "ruff", "--version"], check=True)
if sys.argv[1:]:
    tree_copies.copy_tree(sys.argv[1], "second")
"""


def answer(tree, *arguments, cwd):
    python = environment.python_of(tree / paths.ENV.name)
    return subprocess.run(
        [python, "-c", QUESTION, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=cwd,
        check=True,
    ).stdout


def test_it_is_complete_whatever_is_planted_and_can_be_lent_again(tmp_path):
    first = copy_tree(tmp_path, "first")
    (first / "requirements.txt").write_text("torch==0.0.1\n", encoding="utf-8")
    assert str(first) in answer(first, str(tmp_path), cwd=tmp_path)
    assert str(tmp_path / "second") in answer(tmp_path / "second", cwd=tmp_path)
