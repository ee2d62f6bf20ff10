"""What the path file does at each start of the environment's Python."""

import os
import re
import sys
from pathlib import Path

import pytest

from course import commands, paths, startup
from course.testing.lent_environment import lend
from course.testing.programs import right, run


@pytest.mark.parametrize(("own", "guard"), [(None, "1"), ("mine", "0")])
def test_it_does_what_the_readers_variables_say(tmp_path, own, guard):
    """tiktoken finds its files in the cache, and the guard starts only when asked."""
    code = (
        "import os, sys; print(os.environ['TIKTOKEN_CACHE_DIR'])\n"
        "print('course.guard' in sys.modules)"
    )
    cache = dict(COURSE_CACHE=str(tmp_path))
    cache |= dict(TIKTOKEN_CACHE_DIR=own) if own else {}
    said = right(run(sys.executable, "-c", code, **cache, COURSE_GUARD=guard))
    place = Path(os.sep, own).absolute() if own else tmp_path / "tiktoken"
    assert said.split() == [str(place), str(guard == "1")]


def test_it_imports_nothing_else():
    """Every start of Python pays for it, so it must cost next to nothing."""
    # With -S, Python has read no path file; `site` is what it imports otherwise.
    code = (
        f"import site, sys; sys.path.insert(0, {str(paths.ROOT)!r})\n"
        "before = set(sys.modules)\n"
        "import course.startup; print(sorted(set(sys.modules) - before))"
    )
    said = right(run(sys.executable, "-I", "-S", "-c", code))
    assert eval(said) == ["course", "course.startup"]


def test_a_failure_is_told_and_python_starts_all_the_same(tmp_path):
    (tmp_path / "course").mkdir()
    (tmp_path / "course" / "__init__.py").write_text("", encoding="utf-8")
    source = Path(startup.__file__).read_text(encoding="utf-8")
    (tmp_path / "course" / "startup.py").write_text(source, encoding="utf-8")
    (tmp_path / "course" / "guard.py").write_text("1 / 0", encoding="utf-8")
    done = run(lend(tmp_path), "-c", "print('fine')", COURSE_GUARD="1")
    assert right(done) == "fine\n"
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.skipif(os.sep != "/", reason="written with POSIX paths")
@pytest.mark.parametrize(
    ("path", "ordered"),
    [
        ("/lib /e/site-packages /tree /tree/x", "/lib /tree /tree/x /e/site-packages"),
        # The environment's own packages do not count as the tree.
        ("/lib /tree/e/site-packages /tree/x", "/lib /tree/x /tree/e/site-packages"),
        ("/tree /lib", "/lib /tree"),
    ],
)
def test_modules_of_the_tree_come_before_installed_ones(path, ordered):
    found = startup.prefer_tree(path.split(), tree="/tree")
    assert found == ordered.split()
    assert startup.prefer_tree(found, tree="/tree") == found


@pytest.mark.parametrize(
    ("platform", "environ", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/gpt-by-hand"),
        ("linux", {}, "~/.cache/gpt-by-hand"),
        ("darwin", {"XDG_CACHE_HOME": "/x"}, "~/Library/Caches/gpt-by-hand"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/gpt-by-hand"),
        ("win32", {}, "~/AppData/Local/gpt-by-hand"),
        ("linux", {"COURSE_CACHE": "~/mine", "XDG_CACHE_HOME": "/x"}, "~/mine"),
        ("linux", {"COURSE_CACHE": " ~/mine "}, "~/mine"),
        ("linux", {"COURSE_CACHE": " ", "XDG_CACHE_HOME": "/x"}, "/x/gpt-by-hand"),
    ],
)
def test_the_cache_lies_where_the_platform_keeps_caches(platform, environ, expected):
    found = startup.cache_folder(environ, platform)
    assert found == os.path.abspath(os.path.expanduser(expected))


# --- Relative places ------------------------------------------------------------------


def test_what_starts_in_another_folder_sees_the_same_places(tmp_path):
    """As a notebook does, which runs in the folder of its file."""
    inner = tmp_path / "chapter"
    inner.mkdir()
    code = (
        "import os, subprocess, sys\n"
        f"os.chdir({str(inner)!r})\n"
        "shown = 'from course import paths; print(paths.cache_dir(), paths.runs_dir())'"
        "\nsubprocess.run([sys.executable, '-c', shown], check=True)"
    )
    places = {"COURSE_CACHE": "../cache", "COURSE_RUNS": "mine"}
    said = right(run(sys.executable, "-c", code, cwd=tmp_path, **places))
    cache = os.path.realpath(tmp_path.parent / "cache")
    assert [os.path.realpath(place) for place in said.split()] == [
        cache,
        os.path.realpath(tmp_path / "mine"),
    ]


def test_a_command_settles_them_in_its_own_folder_before_all_else(
    monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    chosen = {name: f"my {name}" for name in startup.PLACES}
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HOME", " ")
    monkeypatch.setattr(commands, "_dispatch", lambda argv: seen.update(os.environ))
    seen = {}
    assert commands.main([]) == 0
    assert seen["HF_HOME"] == " "
    for name in chosen.keys() - {"HF_HOME"}:
        assert seen[name] == str(tmp_path / chosen[name])


#: Where a variable of the course is read, and who else may: modules that also work
#: without the course (chapter 4's tools, two scripts) and what the tests hand on.
_READ = re.compile(r"""(environ\.get\(|environ\[|getenv\()["'](COURSE_\w+)["']\]?""")
_HOMES = {
    "course/startup.py": {"COURSE_GUARD"},
    "ch04/01_main-chapter-code/script_tools.py": {"COURSE_RUNS"},
    "ch06/01_main-chapter-code/classifier_script.py": {"COURSE_MODEL"},
    "ch07/01_main-chapter-code/tuning_script.py": {"COURSE_MODEL"},
    "course/lab.py": {"COURSE_PRESET"},  # which it sets
}


def test_each_variable_is_read_in_one_place():
    found = {}
    for file in paths.tree_files():
        if file.suffix in (".py", ".ipynb") and not file.name.startswith("test_"):
            names = {read[2] for read in _READ.finditer(file.read_text("utf-8"))}
            if names:
                found[file.relative_to(paths.ROOT).as_posix()] = names
    assert found == _HOMES
