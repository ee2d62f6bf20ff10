"""Every summary module can be imported from anywhere, in every kind of process.

What is tried is a copy of the tree in a folder whose name has a space and Japanese
characters, which is where path files usually break.
"""

import json
import os
import sys
from pathlib import Path

import nbformat
import pytest

from course import paths
from course.installation import environment
from course.testing import tree_copies
from course.testing.programs import right, run

MODULES = list(paths.summary_modules())

# Prints {module: place of its file}, without importing it, which would take seconds.
LOCATE = f"""
import importlib.util, json
names = {[*MODULES, "course"]!r}
print(json.dumps({{n: importlib.util.find_spec(n).origin for n in names}}))
"""

POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows has no such locale")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Root and interpreter of a copy, with a lent environment."""
    folder = tmp_path_factory.mktemp("imports")
    root = tree_copies.copy_tree(folder, "a \u30b3\u30fc\u30b9")
    return root, environment.python_of(root / ".venv")


def _check(output, root):
    """Assert that every module came from the tree at `root`."""
    found = json.loads(output.strip().splitlines()[-1])
    # Under an ASCII locale Python has the bytes of the name, as surrogates.
    places = {n: p.encode("utf-8", "surrogateescape") for n, p in found.items()}
    expected = {name: str(p) for name, p in paths.summary_modules(root).items()}
    expected["course"] = str(root / "course" / "__init__.py")
    assert {name: os.path.realpath(place) for name, place in places.items()} == {
        name: os.path.realpath(place.encode()) for name, place in expected.items()
    }
    assert "dataloader" in found


LOCALES = [
    {},
    pytest.param({"LC_ALL": "C"}, marks=POSIX),
    # Python would quietly use UTF-8 in the C locale; this is the locale for real.
    pytest.param(
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, marks=POSIX
    ),
]


@pytest.mark.parametrize("locale", LOCALES, ids=["default", "C", "ASCII"])
def test_from_the_root_of_the_disk(tree, locale):
    root, python = tree
    _check(right(run(python, "-c", LOCATE, **locale)), root)


def test_in_a_notebook(tree, tmp_path):
    """In a kernel of the environment, as JupyterLab and editors start it."""
    root, python = tree
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(LOCATE)])
    nbformat.write(notebook, tmp_path / "try.ipynb")
    script = (
        "import nbclient, nbformat\n"
        "notebook = nbformat.read('try.ipynb', 4)\n"
        "nbclient.NotebookClient(notebook, kernel_name='python3').execute()\n"
        "print(notebook.cells[0].outputs[0].text)\n"
    )
    done = run(python, "-c", script, cwd=tmp_path, LC_ALL="C")
    _check(right(done), root)


def test_editors_find_the_modules_and_miss_what_is_not_there(tree, tmp_path):
    """Pyright, which VS Code uses, from a file that has nothing to do with the tree."""
    pytest.importorskip("basedpyright")
    script = tmp_path / "mine.py"
    lines = "from dataloader import create_dataloader_v1\nfrom nowhere import x\n"
    script.write_text(lines, encoding="utf-8")
    pyright = [sys.executable, "-m", "basedpyright", "--outputjson"]
    done = run(*pyright, "--pythonpath", tree[1], script, cwd=tmp_path)
    found = json.loads(done.stdout)["generalDiagnostics"]
    missing = [one["message"] for one in found if one["severity"] == "error"]
    assert missing == ['Import "nowhere" could not be resolved'], done.stdout


def test_an_installed_package_of_the_same_name_does_not_win(tree):
    """Path files can only append, so without `course.startup` it would."""
    root, python = tree
    question = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site_packages = Path(right(run(python, "-c", question)).strip())
    for name in MODULES:
        (site_packages / f"{name}.py").write_text("", encoding="utf-8")
    _check(right(run(python, "-c", LOCATE)), root)
