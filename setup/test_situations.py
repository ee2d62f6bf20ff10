"""Situations from other people's reports, played on the real commands.

What a machine's owner has set, what a disk cannot do, what a reader has saved: in each
the course works, or says in a sentence what is wrong (troubleshooting.md has its row).
"""

import json
import os
import subprocess
import sys
import tempfile
import time

import nbformat
import pytest
import requests

from course import CourseError, commands, doctor, lab, paths, settings
from course.installation import environment, pip_runs, preflight
from course.running import notebooks
from course.testing import programs

WAIT = 90  # seconds, for what takes three on an idle machine
READY = "ready after "
BASE_PYTHON = getattr(sys, "_base_executable", None) or sys.executable
posix = pytest.mark.skipif(os.name == "nt", reason="needs a shell script")


def script(path, text):
    """Write a program for the shell; return its path."""
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def fixes(section):
    """Return what has to be fixed in a section of the doctor, by its line."""
    return {line.text: line.fix for line in doctor.SECTIONS[section]() if line.fix}


@pytest.fixture
def nowhere(tmp_path):
    """A place where no folder can be made: it lies below a file."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "below"


@pytest.fixture
def notebook(monkeypatch, tmp_path):
    """A notebook in a folder of the reader's own."""
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("6 * 7")])
    nbformat.write(made, tmp_path / "mine.ipynb")
    return tmp_path / "mine.ipynb"


# --- JupyterLab -----------------------------------------------------------------------


@pytest.fixture
def started(tmp_path):
    """JupyterLab where a kernel of another program is registered as `python3`.

    Its address, and the file into which a browser has written what it was given.
    """
    foreign = tmp_path / "foreign" / "kernels" / "python3" / "kernel.json"
    foreign.parent.mkdir(parents=True)
    spec = {"argv": ["false"], "display_name": "Foreign", "language": "python"}
    foreign.write_text(json.dumps(spec), encoding="utf-8")
    opened = tmp_path / "opened"
    environ = programs.variables(
        BROWSER=script(tmp_path / "browser", f'echo "$1" > "{opened}"'),
        JUPYTER_PATH=str(tmp_path / "foreign"),
        JUPYTER_TOKEN="t",
        HOME=str(tmp_path),
        COURSE_OFFLINE="1",
    )
    process = subprocess.Popen(
        [sys.executable, paths.ROOT / "course", "lab", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        env=environ,
    )
    line = next((line for line in process.stdout if line.startswith(READY)), "")
    yield line.partition(" s: ")[2].partition(" ")[0], opened
    process.kill()
    process.communicate()


@posix
def test_lab_gives_the_browser_an_address_and_knows_its_own_kernel_alone(started):
    """A browser in a box of its own (snap, WSL) may not read Jupyter's files."""
    address, opened = started
    end = time.monotonic() + WAIT
    while not (opened.exists() and opened.read_text("utf-8")):
        assert time.monotonic() < end, "no browser was started"
        time.sleep(0.05)
    assert opened.read_text("utf-8").strip() == address
    assert address.startswith("http://")
    with requests.Session() as session:
        session.trust_env = False  # the server is this machine: no proxy
        place = f"{address.partition('/lab')[0]}/api/kernelspecs?token=t"
        [spec] = session.get(place, timeout=WAIT).json()["kernelspecs"].values()
    assert spec["spec"]["argv"][0] == sys.executable


def test_a_home_that_cannot_be_written_is_told_before_anything_starts(
    monkeypatch, nowhere
):
    monkeypatch.setattr(
        os, "environ", dict(os.environ, JUPYTER_RUNTIME_DIR=str(nowhere))
    )
    with pytest.raises(CourseError, match=r"written: .* or JUPYTER_RUNTIME_DIR to a "):
        lab.open_lab()


# --- What is set on this machine ------------------------------------------------------


@posix
def test_variables_for_other_pythons_are_left_behind(monkeypatch):
    """Also by a Python of the environment, which has looked there already."""

    def execve(program, command, environ):
        seen.append(environ)
        raise KeyboardInterrupt  # here this process would end

    seen = []
    for name in settings.FOREIGN:
        monkeypatch.setenv(name, "ros")
    monkeypatch.setattr(os, "execve", execve)
    assert commands.main(["doctor"]) == 130
    assert not {*settings.FOREIGN} & {*seen[0]}
    assert seen[0][settings.LEFT_OUT] == "ros"


def test_notebooks_and_scripts_get_what_the_reader_set_but_no_start_up_files(
    monkeypatch,
):
    for name in ("PYTHONSTARTUP", "MPLBACKEND", "IPYTHONDIR", *settings.UNLESS_SET):
        monkeypatch.setenv(name, "mine")
    found = settings.environment_of_readers("empty")
    assert found["IPYTHONDIR"] == "empty"
    assert not {"PYTHONSTARTUP", "MPLBACKEND"} & {*found}
    assert {found[name] for name in settings.UNLESS_SET} == {"mine"}
    assert settings.environment_of_readers()["MPLBACKEND"] == "mine"
    monkeypatch.delenv("JUPYTER_PREFER_ENV_PATH")
    assert settings.environment_of_readers()["JUPYTER_PREFER_ENV_PATH"] == "1"


def test_a_reader_who_says_how_threads_wait_is_not_overruled(monkeypatch):
    name = "GOMP_SPINCOUNT"
    monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert settings.environment_of_readers()[name] == settings.UNLESS_SET[name]
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert name not in settings.environment_of_readers()
    monkeypatch.setenv(name, "7")
    assert settings.environment_of_readers()[name] == "7"


def test_packages_of_another_python_are_found_by_the_doctor(monkeypatch, tmp_path):
    """PYTHONPATH, as robots' software and clusters set it."""
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text("1 / 0", encoding="utf-8")
    monkeypatch.setenv(settings.LEFT_OUT, str(tmp_path))
    assert fixes("Modules") == {
        f"numpy in {tmp_path}: imported instead of what is installed": (
            "unset PYTHONPATH, which is meant for another Python"
        )
    }
    lines = [line.text for line in doctor.SECTIONS["Modules"]()]
    assert f"imported from {tmp_path}: numpy" in lines


def test_a_socks_proxy_is_named_by_every_way_of_fetching(tmp_path):
    """The model hub's client and requests; pip's case is with its other failures."""
    proxies = dict.fromkeys(("ALL_PROXY", "HTTPS_PROXY"), "socks5://127.0.0.1:9")
    here = {"COURSE_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "0", **proxies}
    fetch = ["-m", "course.assets", "fetch", "gpt2-small-124M"]
    done = programs.run(sys.executable, *fetch, **here)
    assert done.returncode == 1
    fix = "does; give HTTPS_PROXY an address that begins with http://, and unset ALL_"
    assert done.stderr.count(fix) == 2
    assert "Traceback" not in done.stderr


# --- What a reader has saved ----------------------------------------------------------


def test_a_first_try_called_like_a_package_is_found_by_the_doctor(
    monkeypatch, tmp_path
):
    (tmp_path / "tiktoken.py").write_text("import tiktoken\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    what = f"tiktoken.py in {tmp_path}"
    assert fixes("Modules") == {
        f"{what}: imported instead of what is installed": f"rename {what}"
    }


def test_a_kernel_that_a_readers_file_stops_is_told_with_the_file(notebook, capsys):
    """Beside the notebook Python looks before it looks anywhere else."""
    hiding = notebook.with_name("ipykernel_launcher.py")
    hiding.write_text("import no_such_thing\n", encoding="utf-8")
    with pytest.raises(CourseError, match=r"(?s)does not start.*why:.*no_such_thing"):
        notebooks.run(str(notebook))
    assert f"course: {hiding} hides a package or a module of" in capsys.readouterr().err


# --- Disks and systems ----------------------------------------------------------------


def test_where_nothing_can_be_saved_nothing_is_run(monkeypatch, notebook, nowhere):
    monkeypatch.setenv("COURSE_RUNS", str(nowhere))
    monkeypatch.setattr(notebooks, "execute", None)
    with pytest.raises(CourseError, match="written: .* Set COURSE_RUNS to a folder"):
        notebooks.run(str(notebook))


@pytest.mark.parametrize("name", ["COURSE_RUNS", "JUPYTER_RUNTIME_DIR"])
def test_the_doctor_tries_to_write(monkeypatch, nowhere, name):
    monkeypatch.setenv(name, str(nowhere))
    [text] = [line for line, fix in fixes("Machine").items() if f"{name} as" in fix]
    assert "file cannot be written: File exists. Set " in text
    assert f"{name} to a folder that you may write" in text


def test_pip_and_venv_unpack_on_the_disk_whose_room_was_measured(tmp_path):
    """`/tmp` may be a small disk in memory."""
    before = tempfile.gettempdir()
    with environment.unpacking_in(tmp_path) as folder:
        assert folder.parent == tmp_path
        assert tempfile.gettempdir() == str(folder)
        assert pip_runs.clean_environ()["TMPDIR"] == str(folder)
    assert tempfile.gettempdir() == before
    assert not folder.exists()


@posix
def test_a_disk_without_symbolic_links_will_do(monkeypatch, tmp_path):
    """A stick, or a folder that is shared with a virtual machine."""

    def symlink(*names, **more):
        raise PermissionError(1, "Operation not permitted")

    code = (
        "import os, runpy, sys\n"
        "def symlink(*names, **more): raise PermissionError(1, 'not permitted')\n"
        "os.symlink, sys.argv[1:] = symlink, [*sys.argv[3:], '--without-pip']\n"
        "runpy.run_module('venv', run_name='__main__')"
    )
    base = script(tmp_path / "base", f'exec "{BASE_PYTHON}" -c "{code}" "$@"')
    prefix = tmp_path / ".venv"
    prefix.mkdir()
    monkeypatch.setattr(os, "symlink", symlink)
    monkeypatch.setattr(sys, "_base_executable", base)
    environment.run_venv(prefix)
    assert (prefix / "lib64").is_dir()
    assert not (prefix / "lib64").is_symlink()
    programs.right(programs.run(environment.python_of(prefix), "-c", "import json"))


@pytest.mark.parametrize(
    ("found", "too_old"),
    [("glibc 2.17", True), ("glibc 2.28", False), ("glibc 3.0", False), ("", True)],
)
def test_a_linux_with_an_old_c_library_or_another_one(monkeypatch, found, too_old):
    def confstr(name):
        if not found:
            raise ValueError("musl knows no such name")
        return found

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(os, "confstr", confstr, raising=False)
    problem = preflight.platform_problem() or ""
    assert ("glibc 2.28 or newer, and this system has" in problem) is too_old
