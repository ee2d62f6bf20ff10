"""What ruff is to find, it finds with the configuration of this project."""

import json
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from course import paths
from course.testing.tiny_trees import notebook

TEST = "ch02/{}/test_early.py"
MODULE = "ch02/{}/early.py"
NOTEBOOK = "ch02/{}/ch02.ipynb"
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
    "in the course itself": ("course/{}.py", OTHER_DOOR),
    "in a test": (TEST, OTHER_DOOR),
    "where a local server is the subject": (
        MODULE,
        f"# ruff: noqa: TID251\n{OTHER_DOOR}",
    ),
    "a failure that is told": (MODULE, FAILS_IN_VAIN.format("Exception", "return")),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """The rules that ruff finds broken, by case, in a tree with this configuration."""
    root = tmp_path_factory.mktemp("ruff")
    shutil.copy(paths.ROOT / "pyproject.toml", root)
    files, rules = {}, defaultdict(set)
    for number, (case, (path, text)) in enumerate((PLANTS | ALLOWED).items()):
        files[case] = root / path.format(number)
        files[case].parent.mkdir(parents=True, exist_ok=True)
        files[case].write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "ruff", "check", "--no-cache"]
    done = subprocess.run(
        [*command, "--output-format=json"], cwd=root, capture_output=True, check=False
    )
    for problem in json.loads(done.stdout):
        rules[Path(problem["filename"])].add(problem["code"])
    return {case: rules[file] for case, file in files.items()}


@pytest.mark.parametrize("plant", PLANTS)
def test_ruff_finds(plant, broken):
    assert plant.partition(" ")[0] in broken[plant]


@pytest.mark.parametrize("case", ALLOWED)
def test_ruff_allows(case, broken):
    assert broken[case].isdisjoint({"TID251", "BLE001", "RUF100"})
