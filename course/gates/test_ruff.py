"""What ruff is to find, it finds with the configuration of this project."""

import json
import subprocess
import sys

import pytest

from course import paths
from course.testing.tiny_trees import notebook

TEST = "ch02/01_main-chapter-code/test_early.py"
MODULE = "ch02/01_main-chapter-code/early.py"
NOTEBOOK = "ch02/01_main-chapter-code/ch02.ipynb"
OTHER_DOOR = "import urllib.request\n"
FAILS_IN_VAIN = "def f(g):\n    try:\n        assert g()\n    except {}:\n        {}\n"

#: What is planted, by the rule that has to find it.
PLANTS = {
    "B015": (TEST, "def f(x):\n    x == 2\n"),
    "PLR0124": (TEST, "def f(x):\n    assert x == x\n"),
    "PLR0133": (TEST, "assert 1 == 1\n"),
    "F631": (TEST, "def f(x):\n    assert (x == 2, 'message')\n"),
    "SIM222": (TEST, "def f(x):\n    assert x or True\n"),
    "PLW0129": (TEST, "assert 'text'\n"),
    "SIM105": (TEST, FAILS_IN_VAIN.format("(KeyError, AssertionError)", "pass")),
    "S110": (TEST, FAILS_IN_VAIN.format("Exception", "pass")),
    "E722": (TEST, FAILS_IN_VAIN.format("", "return")),
    "BLE001": (TEST, FAILS_IN_VAIN.format("Exception", "return")),
    "D103": (MODULE, "def f():\n    return 1\n"),
    "D101": (MODULE, "class A:\n    x = 1\n"),
    "TID251 in a module": (MODULE, OTHER_DOOR),
    "TID251 by name": (MODULE, "import torch\n\ntorch.hub.load('a', 'b')\n"),
    "TID251 of threads": (
        NOTEBOOK,
        notebook("# T", "import torch", "torch.set_num_threads(1)"),
    ),
    "PLC2401": (NOTEBOOK, notebook("# T", "\u03b1 = 1")),
    "TID251 in a function": (MODULE, "def f():\n    from requests import get\n"),
    "TID251 in a notebook": (NOTEBOOK, notebook("# T", OTHER_DOOR)),
}
#: Where the same is allowed.
ALLOWED = {
    "in the course itself": ("course/settings.py", OTHER_DOOR),
    "in a test": (TEST, OTHER_DOOR),
    "where a local server is the subject": (
        MODULE,
        f"# ruff: noqa: TID251\n{OTHER_DOOR}",
    ),
    "a failure that is told": (MODULE, FAILS_IN_VAIN.format("Exception", "return")),
}


def broken_rules(path, text):
    """The rules that ruff finds broken in a file of this project."""
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=json"]
        + ["--stdin-filename", path, "-"],
        input=text,
        cwd=paths.ROOT,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode in (0, 1), done.stderr
    return {problem["code"] for problem in json.loads(done.stdout)}


@pytest.mark.parametrize("plant", PLANTS)
def test_ruff_finds(plant):
    assert plant.partition(" ")[0] in broken_rules(*PLANTS[plant])


@pytest.mark.parametrize("case", ALLOWED)
def test_ruff_allows(case):
    assert broken_rules(*ALLOWED[case]).isdisjoint({"TID251", "BLE001", "RUF100"})
