"""The command `copy`, and that every summary module runs alone when copied."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import urllib.parse
from pathlib import Path

import pytest

from course import CourseError, copying, folders, paths
from course.markdown import Page
from course.testing.tiny_trees import miniature

MODULES = paths.summary_modules()


@pytest.fixture
def tree(tmp_path):
    """A small tree: `gpt` needs `attention` and `dataloader`, one inside a function."""
    root = tmp_path / "tree"
    bonus = 'title = "T"\ntitle_ja = "T"\nabout = "A"\n'
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}
    notebook["cells"] = [
        {"cell_type": "markdown", "source": ["To [4](../../ch04/README.md#A-b), or\n"]},
        {"cell_type": "code", "source": ["'[no](../../ch04/README.md)'"]},
    ]
    files = {
        "ch01/README.md": "# Chapter 1\n",
        "ch02/01_main/dataloader.py": "import torch\n\n\ndef load():\n    return 1\n",
        "ch02/01_main/ch02.ipynb": json.dumps(notebook),
        "ch02/01_main/ch02_checks.py": "",
        "ch02/01_main/exercise-solutions.ipynb": json.dumps(notebook),
        "ch02/01_main/exercise-solutions.ja.ipynb": json.dumps(notebook),
        "ch02/01_main/test_ch02_checks.py": "",
        "ch02/README.md": "# Chapter 2\n"
        "[mine](01_main/ch02.ipynb#x), [solved](01_main/exercise-solutions.ipynb#y),\n"
        "[other](../ch04/my%20file.md), [web](https://example.org/../a), [here](#x),\n"
        "`[code](../ch04/README.md)`, [folder](../ch04), [bonus](02_bonus/README.md)\n",
        "ch02/02_bonus/folder.toml": bonus,
        "ch02/02_bonus/README.md": "[up](../README.md)\n",
        "ch04/my file.md": "",
        "ch02/01_main/__pycache__/dataloader.cpython-311.pyc": "",
        "ch03/01_main/attention.py": "import os.path\n\nWIDTH = 2\n",
        "ch04/01_main/gpt.py": "from attention import WIDTH\n\n\ndef main():\n"
        "    from dataloader import load\n    return load() + WIDTH\n",
        "ch04/README.md": "",
        "appendix-D/01_main/circle.py": "import gpt\nimport circle\n",
    }
    return miniature(root, files).root


def _files(folder):
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
    )


def _texts(folder):
    """Yield each page of a folder with its text, and the prose of each notebook."""
    for file in sorted(folder.rglob("*")):
        if file.suffix == ".md":
            yield file, file.read_text(encoding="utf-8")
        elif file.suffix == ".ipynb":
            cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
            prose = (c["source"] for c in cells if c["cell_type"] == "markdown")
            yield file, "\n\n".join("".join(source) for source in prose)


def _dead(folder):
    """Return the links in a folder that lead to no file."""
    dead = []
    for file, text in _texts(folder):
        for link in Page("", text).links:
            parts = urllib.parse.urlsplit(link.target)
            if not parts.scheme and parts.path:
                target = file.parent / urllib.parse.unquote(parts.path)
                dead += [] if target.exists() else [(file, link.target)]
    return dead


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
    ("name", "made", "count"),
    [
        ("ch02", "ch02", 9),
        ("ch02/", "ch02", 9),
        ("../any/CH02", "ch02", 9),
        ("appendix-d", "appendix-D", 1),
        ("ch01", "ch01", 1),
        ("ch02/02_bonus", "ch02/02_bonus", 2),
        ("02_bonus", "ch02/02_bonus", 2),
    ],
)
def test_a_chapter_keeps_its_folders_and_is_opened(
    tree, tmp_path, capsys, name, made, count
):
    out = tmp_path / "out"
    copying.copy(name, out, root=tree)
    theirs = [f for f in _files(tree / made) if "__pycache__" not in f]
    assert _files(out) == [f"{made}/{file}" for file in theirs]
    assert len(theirs) == count
    assert f'course lab "{out / made}"' in capsys.readouterr().out


def test_a_path_of_the_file_system_means_the_same(tree, tmp_path):
    copying.copy(str(tree / "ch01"), tmp_path / "out", root=tree)
    assert _files(tmp_path / "out") == ["ch01/README.md"]


def test_chapters_and_bonus_folders_share_a_folder(tree, tmp_path):
    for name in ("ch01", "ch02/02_bonus", "ch02", "ch04", "ch02/02_bonus", "ch02"):
        copying.copy(name, tmp_path / "out", root=tree)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"ch01", "ch02", "ch04"}


def test_links_lead_on_from_a_copy(tree, tmp_path):
    """Inside they stay; out of it they lead to the course; code is left alone."""
    out = tmp_path / "out"
    copying.copy("ch02", out, root=tree)
    page = (out / "ch02/README.md").read_text(encoding="utf-8")
    for kept in ("(01_main/ch02.ipynb#x)", "(https://example.org/../a)", "(#x)"):
        assert kept in page
    assert "`[code](../ch04/README.md)`" in page
    assert "[other](../../tree/ch04/my%20file.md), " in page
    assert "[folder](../../tree/ch04), " in page
    notebook = (out / "ch02/01_main/ch02.ipynb").read_text(encoding="utf-8")
    assert "To [4](../../../tree/ch04/README.md#A-b), or" in notebook
    assert "'[no](../../ch04/README.md)'" in notebook
    copying.copy("02_bonus", tmp_path / "alone", root=tree)
    assert _dead(out) == _dead(tmp_path / "alone") == []


def test_a_class_gets_no_answers(tree, tmp_path):
    out = tmp_path / "out"
    copying.copy("ch02", out, root=tree, for_class=True)
    there = {Path(file).name for file in _files(out)}
    assert there == {
        *("README.md", "ch02.ipynb", "ch02_checks.py", "dataloader.py", "folder.toml")
    }
    assert " solved,\n" in (out / "ch02/README.md").read_text(encoding="utf-8")
    assert _dead(out) == []


def test_other_links_are_no_other_content(tree, tmp_path):
    """A bonus folder alone, and a course that was moved, lead elsewhere."""
    out = tmp_path / "out"
    copying.copy("ch02", out, root=tree)
    page = out / "ch02" / "README.md"
    before = page.read_text(encoding="utf-8").replace("/tree/", "/moved/")
    page.write_text(before, encoding="utf-8")
    copying.copy("ch02", out, root=tree)
    assert page.read_text(encoding="utf-8") == before
    page.write_text(before.replace("Chapter 2", "My notes"), encoding="utf-8")
    with pytest.raises(CourseError, match="content: ch02/README.md. Nothing was"):
        copying.copy("ch02", out, root=tree)


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


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nix", "named nix. Chapters: appendix-D, ch01, ch02, ch03, ch04. Modules"),
        ("ch2", "Did you mean ch02"),
        ("ch09", "Did you mean ch0"),
        ("datalaoder", "Did you mean dataloader?"),
        ("ch02/2_bonus", "Did you mean ch02 or ch02/02_bonus?"),
        ("bonus", "Did you mean ch02/02_bonus?"),
        ("ch02/01_main/ch02.ipynb", "Did you mean ch02?"),
        ("course", "There is no module"),
        (".", "There is no module"),
    ],
)
def test_near_misses_get_what_was_meant(tree, tmp_path, name, said):
    with pytest.raises(CourseError, match=re.escape(said)):
        copying.copy(name, tmp_path / "out", root=tree)
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


# --- Every chapter and bonus folder of the tree ---------------------------------------


@pytest.mark.parametrize("for_class", [False, True])
def test_every_copy_leads_on(tmp_path, capsys, for_class):
    """What is printed as the next step opens a page, and no link is dead."""
    out = tmp_path / "my work"
    places = [one for one in folders.read_all(paths.ROOT).values() if one.path != "."]
    places = [one for one in places if not one.path.startswith("setup")]
    assert len(places) > 30
    for one in places:
        copying.copy(one.path, out, for_class=for_class)
        step = re.search(r'course lab "(.+)"', capsys.readouterr().out)
        assert (Path(step[1]) / "README.md").is_file()
        assert Path(step[1]) == out / one.path
    assert _dead(out) == []
    if for_class:
        for file, text in _texts(out):
            assert "](exercise-solutions" not in text, file
        assert not [f for f in _files(out) if "solutions" in f or "/test_" in f]
        assert list(out.rglob("*_checks.py"))


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
