"""An environment that is lent: complete at once, and able to lend again."""

import subprocess

import pytest

from course import paths
from course.installation import environment
from course.testing.lent_environment import lend
from course.testing.tree_copies import copy_tree

QUESTION = """
import gpt, pytest, subprocess, sys
print(gpt.__file__)
subprocess.run([sys.executable, "-m", "ruff", "--version"], check=True)
"""


def run(python, *arguments, cwd):
    return subprocess.run(
        [python, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=cwd,
        check=True,
    ).stdout


@pytest.fixture(scope="module")
def lent(tmp_path_factory):
    return copy_tree(tmp_path_factory.mktemp("lent"))


def test_it_is_complete_whatever_is_planted_in_the_requirements(lent):
    complete = "from course.installation import environment as e\n"
    complete += "print(e.is_complete(e.chosen_prefix(), testing=True))"
    (lent / "requirements.txt").write_text("torch==0.0.1\n", encoding="utf-8")
    python = environment.python_of(lent / paths.ENV.name)
    assert run(python, "-c", complete, cwd=lent) == "True\n"


def test_what_is_lent_can_be_lent_again(lent, tmp_path):
    second = copy_tree(tmp_path, name="second")
    code = "import sys; from course.testing.lent_environment import lend\n"
    python = environment.python_of(lent / paths.ENV.name)
    (second / paths.ENV.name).rename(tmp_path / "unused")
    run(python, "-c", f"{code}lend(sys.argv[1])", str(second), cwd=tmp_path)
    python = environment.python_of(second / paths.ENV.name)
    assert str(second) in run(python, "-c", QUESTION, cwd=tmp_path)


def test_an_impossible_place_ends_the_test(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(subprocess.CalledProcessError):
        lend(tmp_path / "file")
