"""Every summary module can be imported from anywhere, in every kind of process.

What is tried: the tree itself, and a copy of it in a folder whose name has a space and
Japanese characters, which is where path files usually break.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from course import paths
from course.installation import environment
from course.testing import tree_copies
from course.testing.lent_environment import lend

MODULES = list(paths.summary_modules())

# Prints {module: place of its file}, without importing it, which would take seconds.
LOCATE = f"""
import importlib.util, json
names = {[*MODULES, "course"]!r}
print(json.dumps({{n: importlib.util.find_spec(n).origin for n in names}}))
"""

POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows has no such locale")


@pytest.fixture(scope="module")
def copy_elsewhere(tmp_path_factory):
    """A copy of the tree, with a lent environment, in a folder with a hard name."""
    folder = tmp_path_factory.mktemp("imports")
    return tree_copies.copy_tree(folder, "a \u30b3\u30fc\u30b9")


@pytest.fixture(params=["here", "elsewhere"])
def tree(request):
    """Root and interpreter of a tree."""
    if request.param == "here":
        return paths.ROOT, Path(sys.executable)
    root = request.getfixturevalue("copy_elsewhere")
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


def _run(command, cwd=os.sep, **variables):
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        cwd=cwd,
        env={**environ, **variables},
        timeout=120,
        check=False,
    )
    output = done.stdout.decode("utf-8")
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    return output


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
    _check(_run([python, "-c", LOCATE], **locale), root)


def test_in_a_script_and_in_its_subprocess(tree, tmp_path):
    root, python = tree
    script = tmp_path / "outer.py"
    script.write_text(
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-c', {LOCATE!r}], check=True)\n",
        encoding="utf-8",
    )
    _check(_run([python, script], cwd=tmp_path), root)
    script.write_text(LOCATE, encoding="utf-8")
    _check(_run([python, script], cwd=tmp_path), root)


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
    _check(_run([python, "-c", script], cwd=tmp_path, LC_ALL="C"), root)


def test_an_installed_package_of_the_same_name_does_not_win(copy_elsewhere, tmp_path):
    """Path files can only append, so without `course.startup` it would."""
    tree = tmp_path / "tree"
    shutil.copytree(copy_elsewhere, tree, ignore=shutil.ignore_patterns(".venv"))
    python = lend(tree)
    question = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site_packages = Path(_run([python, "-c", question]).strip())
    for name in MODULES:
        (site_packages / f"{name}.py").write_text("", encoding="utf-8")
    _check(_run([python, "-c", LOCATE]), tree)


def _resolve(folder, python):
    """Let basedpyright read a file in `folder`; return (rules broken, its words)."""
    script = folder / "mine.py"
    script.write_text(
        "from dataloader import create_dataloader_v1\n\nprint(create_dataloader_v1)\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--pythonpath", str(python)]
        + ["--outputjson", str(script)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        timeout=120,
        check=False,
    )
    found = json.loads(done.stdout)["generalDiagnostics"]
    return {entry.get("rule") for entry in found}, done.stdout


def test_editors_find_the_modules(tree, tmp_path):
    """Pyright, which VS Code uses, from a file that has nothing to do with the tree."""
    pytest.importorskip("basedpyright")
    broken, words = _resolve(tmp_path, tree[1])
    assert "reportMissingImports" not in broken, words
    assert "reportAttributeAccessIssue" not in broken, words


def test_editors_do_not_find_them_without_the_path_file(tmp_path):
    """The other half of the test above: what it looks for does fail."""
    pytest.importorskip("basedpyright")
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    broken, words = _resolve(tmp_path, environment.python_of(bare))
    assert "reportMissingImports" in broken, words
