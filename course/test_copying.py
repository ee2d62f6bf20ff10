"""The command `copy`, and that every summary module runs alone when copied."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from course import CourseError, copying, paths
from course.testing.tiny_trees import miniature

MODULES = paths.summary_modules()


@pytest.fixture
def tree(tmp_path):
    """A small tree: `gpt` needs `attention` and `dataloader`, one inside a function."""
    root = tmp_path / "tree"
    files = {
        "ch01/README.md": "# Chapter 1\n",
        "ch02/01_main/dataloader.py": "import torch\n\n\ndef load():\n    return 1\n",
        "ch02/01_main/ch02.ipynb": "{}",
        "ch02/README.md": "# Chapter 2\n",
        "ch02/01_main/__pycache__/dataloader.cpython-311.pyc": "",
        "ch03/01_main/attention.py": "import os.path\n\nWIDTH = 2\n",
        "ch04/01_main/gpt.py": "from attention import WIDTH\n\n\ndef main():\n"
        "    from dataloader import load\n    return load() + WIDTH\n",
        "appendix-D/01_main/circle.py": "import gpt\nimport circle\n",
    }
    return miniature(root, files).root


def _files(folder):
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
    )


def test_a_module_brings_the_modules_that_it_imports(tree, tmp_path, capsys):
    folder = tmp_path / "my \u8cc7\u6599" / "new"
    assert copying.copy("gpt", folder, root=tree) == 0
    assert _files(folder) == ["attention.py", "dataloader.py", "gpt.py"]
    out = capsys.readouterr().out
    assert f'cd "{folder}"' in out
    assert "import gpt" in out


def test_modules_that_import_each_other_end(tree, tmp_path):
    copying.copy("circle.py", tmp_path / "out", root=tree)
    assert "circle.py" in _files(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("ch02", ["01_main/ch02.ipynb", "01_main/dataloader.py", "README.md"]),
        ("appendix-d", ["01_main/circle.py"]),
        ("ch01", ["README.md"]),
    ],
)
def test_a_chapter_keeps_its_folders_and_is_opened(tree, tmp_path, capsys, name, files):
    copying.copy(name, tmp_path / "out", root=tree)
    assert _files(tmp_path / "out") == files
    assert f'course lab "{tmp_path / "out"}"' in capsys.readouterr().out


def test_a_second_time_changes_nothing(tree, tmp_path, capsys):
    out = tmp_path / "out"
    copying.copy("gpt", out, root=tree)
    os.utime(out / "gpt.py", (1, 1))
    copying.copy("gpt", out, root=tree)
    assert (out / "gpt.py").stat().st_mtime == 1
    assert f"as before: {out / 'gpt.py'}" in capsys.readouterr().out


def test_nothing_of_the_readers_is_overwritten(tree, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "dataloader.py").write_text("my work", encoding="utf-8")
    with pytest.raises(CourseError, match=r"other content: dataloader\.py"):
        copying.copy("gpt", out, root=tree)
    assert (out / "dataloader.py").read_text(encoding="utf-8") == "my work"
    assert _files(out) == ["dataloader.py"]  # and nothing was copied by halves


def test_unknown_names_get_the_known_ones(tree, tmp_path):
    with pytest.raises(CourseError, match=r"named nix\. Modules: .*gpt.* ch02, ch03"):
        copying.copy("nix", tmp_path / "out", root=tree)
    with pytest.raises(CourseError, match="named ch09"):
        copying.copy("ch09", tmp_path / "out", root=tree)
    assert not (tmp_path / "out").exists()


def test_the_tree_gets_no_second_file_of_a_name(tree, monkeypatch):
    for inside in (tree, tree / "ch03" / "mine"):
        with pytest.raises(CourseError, match="inside the course"):
            copying.copy("gpt", inside, root=tree)
    monkeypatch.setenv("COURSE_RUNS", str(tree / "runs"))
    copying.copy("gpt", tree / "runs" / "mine", root=tree)
    assert "gpt.py" in _files(tree / "runs" / "mine")


@pytest.mark.parametrize("below", [".", "below"])
def test_a_place_that_cannot_be_written_is_named(tree, tmp_path, below):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(CourseError, match=r"could not be copied: .*file.*\. Choose a"):
        copying.copy("gpt", tmp_path / "file" / below, root=tree)


def test_a_broken_module_is_named(tree, tmp_path):
    (tree / "ch03/01_main/attention.py").write_text("def (:\n", encoding="utf-8")
    with pytest.raises(CourseError, match=r"attention\.py, line 1, is not valid"):
        copying.copy("gpt", tmp_path / "out", root=tree)


# --- Every summary module of the tree, alone ------------------------------------------

# Without -S the path file would help; so the packages' folder is added by hand.  All of
# the module must come from the copy, and importing it must not need the course.
ALONE = """
import doctest, importlib, os, pathlib, runpy, sys, traceback
sys.path.append(sys.argv[1])
sys.dont_write_bytecode = True
import torch

def alone(folder):
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    name = folder.name
    module = importlib.import_module(name)
    for part in folder.glob("*.py"):
        loaded = sys.modules.get(part.stem)
        assert loaded is None or pathlib.Path(loaded.__file__) == part, loaded
    assert "course" not in sys.modules, "importing the module imports course"
    failed, tried = doctest.testmod(module)
    assert tried, "the module has no example"
    assert not failed, "an example fails"
    print("then, as a script:", flush=True)
    sys.argv = [name + ".py", "--help"]
    runpy.run_path(f"{name}.py", run_name="__main__")

for folder in map(pathlib.Path, sys.argv[2:]):
    # A fork has torch already, which another process would read for seconds.
    if hasattr(os, "fork") and os.fork():
        os.wait()
        continue
    with open(f"{folder}.txt", "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            alone(folder)
        except BaseException as problem:
            if not isinstance(problem, SystemExit) or problem.code:
                traceback.print_exc()
        sys.stdout.flush()
        os._exit(0)
"""
EXAMPLE = '"""Doc.\n\n>>> 1 + 1\n2\n"""\n'
#: Modules that cannot stand alone, by what is said of them.
PLANTED = {
    "importing the module imports course": EXAMPLE + "import course\n",
    "No module named 'stranger'": EXAMPLE + "import stranger\n",
    "an example fails": EXAMPLE.replace("2", "3"),
    "the module has no example": "X = 1\n",
    "AssertionError: <module 'doctest'": EXAMPLE,
}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What each module says, copied into a folder of its name, to a bare Python."""
    root = tmp_path_factory.mktemp("alone")
    folders = {name: root / name for name in MODULES}
    for name, folder in folders.items():
        copying.copy(name, folder)
    for number, (sign, text) in enumerate(PLANTED.items()):
        folders[sign] = root / str(number) / "planted"
        # Importable, as the course is for a reader who has the environment.
        (folders[sign] / "course").mkdir(parents=True)
        (folders[sign] / "course" / "__init__.py").touch()
        (folders[sign] / "planted.py").write_text(text, encoding="utf-8")
        if "doctest" in sign:  # as if the copy came second on the path
            (folders[sign] / "doctest.py").touch()
    jobs = [[folder] for folder in folders.values()]
    if hasattr(os, "fork"):
        jobs = [list(folders.values())]
    packages = sysconfig.get_path("purelib")
    for job in jobs:
        command = [sys.executable, "-I", "-S", "-c", ALONE, packages, *map(str, job)]
        subprocess.run(command, timeout=300, check=True)
    return {
        name: Path(f"{folder}.txt").read_text(encoding="utf-8")
        for name, folder in folders.items()
    }


@pytest.mark.parametrize("name", MODULES)
def test_a_copied_module_runs_alone(name, said):
    """It imports, its examples run, and where it is a script it explains itself."""
    assert "Traceback" not in said[name], said[name]
    _, reached, help_text = said[name].partition("then, as a script:\n")
    assert reached
    # What is no script does nothing when it is run.
    is_script = '\nif __name__ == "__main__":' in MODULES[name].read_text("utf-8")
    assert help_text[: len("usage:")] == ("usage:" if is_script else "")


@pytest.mark.parametrize("sign", PLANTED)
def test_a_module_that_cannot_stand_alone_is_found(sign, said):
    assert sign in said[sign]
