"""The command line: how it is started, what it says, and which Pythons it refuses."""

import json
import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

from course import command_line, commands, paths, python_problem
from course.installation import environment
from course.testing.programs import run

PACKAGE = paths.ROOT / "course"
COMMANDS = [
    *("setup", "lab", "test", "run", "refresh", "doctor", "copy", "read", "grade")
]

# Pythons that a reader may have; pyenv keeps them here on many machines.
_PYENV = (Path.home() / ".pyenv" / "versions").glob("[23].*/bin/python")
TOO_OLD = sorted(
    python
    for python in _PYENV
    if [int(n) for n in re.findall(r"\d+", python.parts[-3])] < [3, 11]
)


# --- Too old --------------------------------------------------------------------------


@pytest.mark.skipif(not TOO_OLD, reason="no Python older than 3.11 is here to try")
@pytest.mark.parametrize("python", TOO_OLD, ids=lambda path: path.parts[-3])
@pytest.mark.parametrize("how", ["folder", "name"])
def test_too_old_a_python_is_told_in_one_sentence(python, how):
    start = [PACKAGE] if how == "folder" else ["-m", "course"]
    done = run(python, "-B", *start, "lab", cwd=paths.ROOT)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("course: The course needs Python 3.11 to 3.14, and this is")
    assert "Install a Python of that range" in line


@pytest.mark.parametrize("version", [(3, 10, 99), (3, 15, 0)])
def test_the_sentence_comes_before_anything_else_is_imported(version):
    """On every machine: with the version number changed in this Python."""
    code = (
        f"import runpy, sys; sys.version_info = {version}\n"
        "sys.modules.pop('course', None)\n"
        f"sys.path[0] = {str(PACKAGE)!r}\n"
        f"try:\n    runpy.run_path({str(PACKAGE)!r}, run_name='__main__')\n"
        "finally:\n    print('course.commands' in sys.modules)"
    )
    done = run(sys.executable, "-c", code)
    assert done.returncode == 1
    assert done.stdout.strip() == "False"
    said = "course: The course needs Python 3.11 to 3.14, and this is Python 3.1"
    assert done.stderr.startswith(said)


def test_both_ends_of_the_range_are_accepted():
    assert {python_problem((3, 11, 0)), python_problem((3, 14, 9))} == {None}


# --- Help and mistakes ----------------------------------------------------------------


def test_every_command_explains_itself_without_an_environment(tmp_path):
    """Help must not start an installation: this copy has no environment to use."""
    shutil.copytree(PACKAGE, tmp_path / "course")
    base = getattr(sys, "_base_executable", None) or sys.executable
    overview = run(base, tmp_path / "course", "--help").stdout
    assert "py -m course" in overview
    assert "python3 PATH/course" in overview
    for name in COMMANDS:
        assert re.search(rf"^    {name} ", overview, re.MULTILINE), name
        done = run(base, tmp_path / "course", name, "--help")
        assert (done.returncode, done.stderr) == (0, ""), name
        assert len(done.stdout.split()) > 15, name
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--open"], "the following arguments are required: COMMAND"),
        (["open"], "no command 'open'. There are setup, lab, read, test, "),
        (["labb"], "no command 'labb'. Did you mean lab? "),
        (["docter"], "no command 'docter'. Did you mean doctor? "),
        (
            ["lab", "--nobrowser"],
            "`lab` does not know --nobrowser. Did you mean --no-b",
        ),
        (["run"], "`run` needs to know what: a chapter (ch02), a notebook, a script."),
        (["test", "--no-notebook"], "Did you mean --no-notebooks?"),
        (["test", "--fast"], "`test` does not know --fast"),
        (["setup", "now"], "`setup` does not know now"),
        (["test", "--no-note"], "`test` does not know --no-note"),
        (["copy", "gpt"], "required: FOLDER"),
        (["lab", "--preset", "huge"], "invalid choice: 'huge'"),
    ],
)
def test_mistakes_get_one_line(arguments, fragment, capsys):
    with pytest.raises(SystemExit, match="2"):
        command_line.parse(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("course: ")
    assert fragment in line
    assert "--help" in line


def test_the_version_is_that_of_the_project(capsys):
    with pytest.raises(SystemExit, match="0"):
        command_line.parse(["--version"])
    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text("utf-8"))
    version = project["project"]["version"]
    said = capsys.readouterr().out
    assert said.startswith(f"GPT by Hand, version {version}, on Python 3.")
    cited = (paths.ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\nversion: {version}\n" in cited


def test_nothing_at_all_shows_the_overview_and_is_no_mistake():
    done = run(sys.executable, PACKAGE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == run(sys.executable, PACKAGE, "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("test ch99", "called 'ch99'. Name a chapter"),
        ("test cho2", "called 'cho2'. Close to it: ch02"),
        ("run nonexistent.ipynb", "called 'nonexistent.ipynb'. Name a chapter"),
        ("run dataloder.ipynb", "Close to it: ch02/01_main-chapter-code/dataloader."),
        ("refresh ch3", "Close to it: ch03"),
        ("lab nosuchfolder", "called 'nosuchfolder'. Name a chapter"),
        ("lab --port 9 nosuch", "called 'nosuch'. Name a chapter"),
    ],
)
def test_a_name_that_is_none_is_told_before_anything_is_installed(
    monkeypatch, capsys, arguments, words
):
    monkeypatch.setattr(environment, "ensure", None)
    assert commands.main(arguments.split()) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    # What the course is made of was not meant.
    assert "course/" not in line


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (PermissionError(13, "Permission denied", "/a/runs"), "/a/runs cannot be writ"),
        (OSError(30, "Read-only file system", "/a/x"), "/a/x cannot be written"),
        (OSError(28, "No space left on device", "/a/x"), "no room is left in /a/x"),
        (FileNotFoundError(2, "No such file or directory", "/a"), "/a: No such file"),
        (OSError("so it is"), "Something that the command needs: so it is."),
    ],
)
def test_what_the_system_refuses_is_a_sentence(monkeypatch, capsys, problem, words):
    def refuse(argv):
        raise problem

    monkeypatch.setattr(commands, "_dispatch", refuse)
    assert commands.main(["lab"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("course: The command could not go on: ")
    assert words in line
    assert "`python3 -m course doctor`" in line


def test_who_stops_listening_gets_no_traceback(monkeypatch, tmp_path):
    """As with `python3 -m course doctor | head -3`."""
    code = (
        f"import sys; sys.path.insert(0, {str(paths.ROOT)!r})\n"
        "import os; from course import commands\n"
        "reading, writing = os.pipe(); os.dup2(writing, 1); os.close(reading)\n"
        "os.close(writing)\n"
        "commands._dispatch = lambda argv: print('x', flush=True)\n"
        "sys.exit(commands.main(['doctor']))"
    )
    done = run(sys.executable, "-c", code)
    assert (done.returncode, done.stderr) == (1, "")


def test_arguments_reach_scripts_and_jupyterlab_as_they_are():
    options = command_line.parse(["run", "x.py", "--epochs", "3", "--help"])
    assert (options.target, options.arguments) == ("x.py", ["--epochs", "3", "--help"])
    options = command_line.parse(["lab", "--port", "9", "--no-browser", "folder"])
    assert options.no_browser
    assert options.extra == ["--port", "9", "folder"]
    options = command_line.parse(["test", "ch02", "--no-notebooks"])
    assert (options.targets, options.no_notebooks) == (["ch02"], True)


# --- Going where the work is done -----------------------------------------------------


def test_copy_needs_no_environment(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "ensure", None)
    assert commands.main(["copy", "dataloader", str(tmp_path)]) == 0
    assert (tmp_path / "dataloader.py").is_file()


def test_names_that_the_console_cannot_show_do_not_end_a_command(tmp_path):
    folder = tmp_path / "\u8cc7\u6599"
    arguments = [PACKAGE, "copy", "dataloader", folder]
    done = run(sys.executable, *arguments, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "\\u8cc7" in done.stdout
    assert (folder / "dataloader.py").is_file()


def test_the_folder_itself_is_not_left_on_the_path():
    """There its modules would be found under names like `runs` and `settings`."""
    code = (
        "import json, runpy, sys\n"
        f"sys.argv = ['course', 'copy', '--help']; sys.path[0] = {str(PACKAGE)!r}\n"
        f"try:\n    runpy.run_path({str(PACKAGE)!r}, run_name='__main__')\n"
        "except SystemExit:\n    print(json.dumps(sys.path))"
    )
    done = run(sys.executable, "-c", code)
    path = json.loads(done.stdout.splitlines()[-1])
    assert str(PACKAGE) not in path
    assert path[0] == str(paths.ROOT)
