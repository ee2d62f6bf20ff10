"""Making, renewing and finding the environment, with the real pip.

A small tree asks for two tiny packages, named like the real ones, made by the
tests.  Everything else is as a reader has it: commands in processes of their own, a
real virtual environment, interruptions by the operating system.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

import pytest

from course import paths
from course.installation import environment
from course.testing import programs, servers
from course.testing.programs import right
from course.testing.programs import run as execute

BASE_PYTHON = getattr(sys, "_base_executable", None) or sys.executable
JAPANESE = "\u8cc7\u6599 \u96c6"  # with a space in it
WAIT = 90  # seconds, for what takes one or two on an idle machine

PINS = {"torch": "2.13.0", "tiny": "1.0"}
NEWER = {"torch": "2.13.0", "tiny": "1.1"}
TEST_PINS = {"tinytest": "1.0"}

posix = pytest.mark.skipif(os.name == "nt", reason="needs the signals of POSIX")

# What stands in for modules that need more packages than the small tree has.
STAND_INS = {
    "assets": """
import os, types
from course import CourseError

def manifest():
    kinds = {"story": True, "large": False}
    return {name: types.SimpleNamespace(offline=kinds[name]) for name in kinds}

def fetch(name):
    if name == "large" or "NO_STORY" in os.environ:
        raise CourseError(f"{name} cannot be had.")
""",
    "running/notebooks": """
import importlib.metadata, json, os, sys

def run(target, arguments):
    found = {d.name: d.version for d in importlib.metadata.distributions()}
    names = [name for name in ("torch", "numpy", "tiny", "tinytest") if name in found]
    print(json.dumps({
        "prefix": sys.prefix,
        "packages": {name: found[name] for name in names},
        "cwd": os.getcwd(),
        "leaked": "COURSE_MOVED_IN" in os.environ,
    }))
""",
    "running/run_tests": """
def main(targets, notebooks):
    print("the tests run")
""",
}


# --- The small tree and its packages --------------------------------------------------


def build_wheel(folder, name, version):
    servers.wheel(folder, name, version, {f"{name}.py": ""}, needs="")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """A folder with all wheels that the small tree may ask for."""
    folder = tmp_path_factory.mktemp("wheels")
    for name, version in {**PINS, **TEST_PINS, "numpy": "2.4.6"}.items():
        build_wheel(folder, name, version)
    build_wheel(folder, "tiny", "1.1")
    build_wheel(folder, "tinytest", "1.1")
    return folder


def write_pins(root, name="requirements.txt", **pins):
    text = "".join(f"{package}=={pins[package]}\n" for package in pins)
    (root / name).write_text(text, encoding="utf-8")


def build_tree(root):
    """Put a tree at `root`: the real `course` package, tiny requirements, a module."""
    skipped = shutil.ignore_patterns(
        "__pycache__", ".*", "test_*", "gates", "running", "testing", "assets"
    )
    shutil.copytree(paths.ROOT / "course", root / "course", ignore=skipped)
    running = root / "course" / "running"
    running.mkdir()
    shutil.copy(paths.ROOT / "course" / "running" / "targets.py", running)
    for name, text in STAND_INS.items():
        (root / "course" / f"{name}.py").write_text(text, encoding="utf-8")
    write_pins(root, **PINS)
    write_pins(root, "requirements-test.txt", **TEST_PINS)
    chapter = root / "ch02" / "01_main-chapter-code"
    chapter.mkdir(parents=True)
    (chapter / "only_here.py").write_text("import tiny\n", encoding="utf-8")
    return root


def start(tree, links):
    """Start a set-up of the small tree, in a process group of its own."""
    return subprocess.Popen(
        [BASE_PYTHON, tree / "course", "setup"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=programs.variables(links),
        start_new_session=True,
    )


def run(tree, *arguments, python=BASE_PYTHON, **options):
    """Run a command of the small tree."""
    return execute(python, tree / "course", *arguments, **options)


def succeed(tree, *arguments, **options):
    return right(run(tree, *arguments, **options))


def report(tree, **options):
    """Return what the small tree's `run` sees inside the environment."""
    return json.loads(succeed(tree, "run", "ch02", **options).splitlines()[-1])


def fail(tree, *arguments, **options):
    """Run a command that must end with one message and no traceback; return it."""
    done = run(tree, *arguments, **options)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("course: ")
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def first_start(tmp_path_factory, wheels):
    """Tree and output of a set-up from nothing; nobody may change this tree."""
    tree = build_tree(tmp_path_factory.mktemp("first") / "tree")
    return tree, succeed(tree, "setup", links=wheels)


def _copy_or_link(source, target):
    """Packages are only ever replaced, never written into, so a second name will do."""
    link = "site-packages" in str(source)
    return os.link(source, target) if link else shutil.copy2(source, target)


def clone(source, target):
    return shutil.copytree(source, target, symlinks=True, copy_function=_copy_or_link)


@pytest.fixture
def ready(first_start, tmp_path):
    """A copy of the complete tree, at another place, for one test."""
    return clone(first_start[0], tmp_path / "ready")


def python_of(tree):
    return environment.python_of(tree / ".venv")


def stamp_of(tree):
    return tree / ".venv" / environment.STAMP


def site_packages(tree):
    return next((tree / ".venv").rglob("site-packages"))


# --- The first start and the second ---------------------------------------------------


def test_the_first_start_numbers_its_steps_and_says_seconds(first_start):
    lines = first_start[1].splitlines()
    steps = [n for n, line in enumerate(lines) if line.startswith("[")]
    assert [lines[n][:5] for n in steps] == [f"[{n}/5]" for n in range(1, 6)]
    for n, following in zip(steps, [*steps[1:], len(lines)]):
        assert any(" s" in line and "done in" in line for line in lines[n:following])
    size = next((n for n in steps if "PyTorch" in lines[n]), None)
    if sys.platform.startswith("linux"):
        assert "200 MB" in lines[size + 1]
        assert "several GB" in lines[size + 2]
    assert "works offline now" in lines[-2]
    right(execute(python_of(first_start[0]), "-c", "import only_here, tiny"))


@pytest.mark.parametrize("inside", [False, True])
def test_a_complete_environment_costs_nothing(ready, inside):
    """Every command goes through it: outside the environment and again inside."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from course.installation import environment\n"
        "sys.addaudithook(lambda event, _: event == 'subprocess.Popen' and 1 / 0)\n"
        "environment.ensure()"
    )
    right(execute(python_of(ready) if inside else BASE_PYTHON, "-c", code, ready))


def test_a_second_start_in_a_moved_tree_with_a_hard_name_installs_nothing(
    ready, tmp_path
):
    tree = ready.rename(tmp_path / JAPANESE)
    output = succeed(tree, "setup", LC_ALL="C")
    assert "[1/5]" not in output
    assert "works offline now" in output
    found = report(tree, cwd=tmp_path, LC_ALL="C")
    assert found["packages"] == PINS
    assert os.path.samefile(found["prefix"], tree / ".venv")
    assert os.path.samefile(found["cwd"], tmp_path), "the reader's folder is kept"
    assert not found["leaked"]
    right(execute(BASE_PYTHON, "-m", "course", "run", "ch02", cwd=tree, LC_ALL="C"))
    right(execute(python_of(tree), "-c", "import only_here, tiny", LC_ALL="C"))


@pytest.mark.parametrize("name", ["setup", "lab"])
def test_only_lab_goes_on_without_the_files_for_working_offline(ready, wheels, name):
    """In the small tree it does not get far either: there is no JupyterLab."""
    message = fail(ready, name, links=wheels, NO_STORY="1")
    assert "story cannot be had" in message
    assert ("JupyterLab cannot be imported" in message) is (name == "lab")
    assert ("course setup" in message) is (name == "lab")


# --- Changes and repairs --------------------------------------------------------------


def test_the_tests_packages_come_when_asked_and_then_stay_in_step(ready, wheels):
    assert "tinytest" not in report(ready)["packages"]
    output = succeed(ready, "test", links=wheels)
    assert output.endswith("1 in place, done in 0 s\nthe tests run\n")
    assert report(ready)["packages"] == PINS | TEST_PINS
    write_pins(ready, **NEWER)
    write_pins(ready, "requirements-test.txt", tinytest="1.1")
    found = report(ready, links=wheels)["packages"]
    assert (found["tiny"], found["tinytest"]) == ("1.1", "1.1")
    assert succeed(ready, "test") == "the tests run\n"


def test_a_broken_environment_is_made_again(ready, wheels):
    """Its interpreter was uninstalled, or the folder was copied to another machine."""
    for path in python_of(ready).parent.glob("python*"):
        path.unlink()
        if os.name != "nt":
            path.symlink_to("/no/such/python")
    (site_packages(ready) / "tiny.py").unlink()
    output = succeed(ready, "run", "ch02", links=wheels)
    assert "making one with Python" in output
    assert json.loads(output.splitlines()[-1])["packages"] == PINS
    assert (site_packages(ready) / "tiny.py").is_file()


def test_an_installation_that_pip_refuses_leaves_what_was_complete(ready):
    """Asked for the packages of the tests without a network, the rest goes on."""
    assert "pip finds no tinytest==1.0" in fail(ready, "test")
    assert report(ready)["packages"] == PINS
    write_pins(ready, **NEWER)
    fail(ready, "setup")
    assert "[1/5]" in run(ready, "setup").stdout, "not forgotten"


def test_setup_puts_another_version_right(ready, wheels):
    pip = [python_of(ready), "-m", "pip", "install", "tiny==1.1"]
    right(execute(*pip, links=wheels))
    output = succeed(ready, "setup", links=wheels)
    assert "making one" not in output
    assert output.count("[1/5]") == 1
    assert report(ready)["packages"] == PINS


def test_setup_brings_back_files_that_a_package_has_lost(ready, wheels):
    """pip alone finds the version right and does nothing."""
    lost = site_packages(ready) / "tiny.py"
    lost.unlink()
    output = succeed(ready, "setup", links=wheels)
    assert "files are missing, so again: tiny\n" in output
    assert lost.is_file()
    assert "[1/5]" not in succeed(ready, "setup", links=wheels)


def _another_user():
    """Return a Python that anybody may start, and who is to start it.

    The superuser may enter every folder, so another account has to ask.
    """
    if os.geteuid():
        return BASE_PYTHON, {}
    version = "{}.{}".format(*sys.version_info)
    found = shutil.which(f"python{version}", path="/usr/bin:/usr/local/bin")
    return found, {"user": 65534, "group": 65534}


@posix
def test_an_environment_whose_python_one_may_not_start(ready):
    """An administrator made it with a Python in a folder of his own."""
    python, who = _another_user()
    if not python:
        pytest.skip("the superuser has no Python that others may start")
    closed = ready / "closed"
    closed.mkdir()
    (closed / "python").symlink_to(os.path.realpath(BASE_PYTHON))
    for path in python_of(ready).parent.glob("python*"):
        path.unlink()
        path.symlink_to(closed / "python")
    for place in ready.parents:  # pytest keeps its folders to itself
        if place.is_relative_to(tempfile.gettempdir()):
            place.chmod(place.stat().st_mode | 0o055)
    closed.chmod(0)
    try:
        for command, where in {"run ch02": "stderr", "doctor": "stdout"}.items():
            done = subprocess.run(
                [python, "-B", ready / "course", *command.split()],
                capture_output=True,
                encoding="utf-8",
                env=programs.variables(),
                cwd=os.sep,
                **who,
            )
            assert done.returncode == 1
            assert "which you may not start" in getattr(done, where)
            assert "Traceback" not in done.stderr
    finally:
        closed.chmod(0o755)


# --- Interruptions --------------------------------------------------------------------


@pytest.fixture
def slow_wheels(wheels):
    """A server from which the new `tiny` does not arrive until it is let go."""
    with servers.Server() as server:
        links = ""
        for path in wheels.iterdir():
            server.put(path.name, path)
            links += f'<a href="{path.name}">{path.name}</a>'
        server.put("", f"<!DOCTYPE html><body>{links}</body>".encode())
        server.waiting, server.let_go = threading.Event(), threading.Event()

        def hold(request):
            server.waiting.set()
            server.let_go.wait(WAIT)
            servers.give(request)

        server.always["/tiny-1.1-py3-none-any.whl"] = hold
        yield server
        server.let_go.set()


@pytest.fixture
def working(ready, slow_wheels):
    """A set-up that is in the middle of it: its pip waits for `tiny`."""
    write_pins(ready, **NEWER)
    process = start(ready, slow_wheels.address)
    assert slow_wheels.waiting.wait(WAIT), process.communicate(timeout=5)
    return process


@posix
def test_a_killed_set_up_is_started_anew(ready, slow_wheels, working):
    os.killpg(working.pid, signal.SIGKILL)  # with its pip, as at a power cut
    working.communicate(timeout=WAIT)
    assert not stamp_of(ready).exists()
    slow_wheels.let_go.set()
    output = succeed(ready, "setup", links=slow_wheels.address)
    assert "making one with Python" in output
    assert report(ready)["packages"] == NEWER


@posix
@pytest.mark.parametrize("orphaned", [False, True])
def test_a_second_set_up_waits_for_the_first(ready, slow_wheels, working, orphaned):
    """Also for its pip alone, which goes on writing files when the set-up is killed."""
    if orphaned:
        working.kill()
        working.wait(WAIT)
    second = start(ready, slow_wheels.address)
    said = f"Another set-up of this course is running (process {working.pid}); wait"
    assert said in second.stdout.readline()
    assert second.poll() is None
    slow_wheels.let_go.set()
    output, errors = second.communicate(timeout=WAIT)
    working.communicate(timeout=WAIT)
    assert second.returncode == 0, errors
    assert ("Installing PyTorch" in output) is orphaned, "the work is done once"
    assert report(ready)["packages"] == NEWER


@posix
def test_ctrl_c_ends_it_with_one_line(ready, working):
    working.send_signal(signal.SIGINT)  # to it alone: it has to stop its pip itself
    _, errors = working.communicate(timeout=WAIT / 2)
    assert working.returncode == 130
    assert errors.strip() == "course: stopped by Ctrl-C."
    with pytest.raises(ProcessLookupError):
        os.killpg(working.pid, 0)  # nobody of its group is left
    assert not stamp_of(ready).exists()


# --- Where it cannot be done ----------------------------------------------------------


def test_without_network_the_cause_is_named(ready):
    write_pins(ready, torch="2.13.1")
    index = {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": f"{servers.nobody()}/simple"}
    message = fail(ready, "setup", **index, PIP_RETRIES="1")
    assert "the connection is refused. Then start again" in message
    assert "No matching distribution found for torch==2.13.1" in message
    with servers.Server() as server:
        index["PIP_INDEX_URL"] = server.address
        message = fail(ready, "lab", COURSE_OFFLINE="true", **index)
    assert "torch==2.13.1 is not installed, and COURSE_OFFLINE forbids" in message
    assert server.paths == [], "nothing is tried where it is forbidden"
    message = fail(ready, "setup", **index, HTTP_PROXY="socks5://127.0.0.1:9")
    assert "give HTTPS_PROXY an address that begins with http://" in message


def test_a_machine_that_lacks_something_is_told_before_anything_is_made(tmp_path):
    tree = build_tree(tmp_path / "tree")
    code = (
        "import runpy, sys; sys.modules['ensurepip'] = None\n"
        f"sys.argv = ['course', 'lab']; sys.path[0] = {str(tree / 'course')!r}\n"
        f"runpy.run_path({str(tree / 'course')!r}, run_name='__main__')"
    )
    done = execute(BASE_PYTHON, "-c", code)
    assert done.returncode == 1
    assert (
        "`sudo apt install python{}.{}-venv`".format(*sys.version_info) in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert not stamp_of(tree).exists()


def file_for_environment(tree):
    shutil.rmtree(tree / ".venv")
    (tree / ".venv").write_text("", encoding="utf-8")


@pytest.mark.parametrize(
    ("plant", "command", "words"),
    [
        (file_for_environment, "setup", r"\.venv is a file"),
        (
            lambda tree: (tree / "requirements.txt").unlink(),
            "setup",
            r"requirements\.txt is missing",
        ),
        (
            lambda tree: (site_packages(tree) / "course.py").touch(),
            "run ch02",
            "another package named course .* pip uninstall course",
        ),
    ],
)
def test_what_is_in_the_way_is_named(ready, plant, command, words):
    plant(ready)
    assert re.search(words, fail(ready, *command.split()))


def test_an_environment_that_leads_elsewhere_does_not_loop(ready):
    message = fail(ready, "run", "ch02", COURSE_MOVED_IN="0.0 0")
    assert "Delete that folder and start again" in message


# --- Which environment ----------------------------------------------------------------


def test_the_environment_of_another_copy_is_not_taken_for_ones_own(ready):
    """Active in a terminal, while the reader calls the command of this copy."""
    python = python_of(clone(ready, ready.parent / "other"))
    for how in ([ready / "course"], ["-m", "course"]):
        found = json.loads(right(execute(python, *how, "run", "ch02", cwd=ready)))
        assert os.path.samefile(found["prefix"], ready / ".venv")
    message = fail(ready, "setup", "--here", python=python)
    assert "belongs to another copy" in message


def test_here_leaves_torch_and_numpy_of_a_readers_own_environment(
    first_start, ready, tmp_path, wheels
):
    prefix = clone(first_start[0] / ".venv", tmp_path / "someone's env")
    (prefix / environment.STAMP).unlink()
    next(prefix.rglob(paths.PATH_FILE)).unlink()
    older = tmp_path / "older"
    older.mkdir()
    build_wheel(older, "torch", "2.9.0+cu126")
    build_wheel(older, "numpy", "1.26.4")
    python = environment.python_of(prefix)
    packages = ["torch==2.9.0+cu126", "numpy"]
    right(execute(python, "-m", "pip", "install", *packages, links=older))
    # Without --here, and so without a stamp, it is left alone.
    assert os.path.samefile(report(ready, python=python)["prefix"], ready / ".venv")
    assert not (prefix / environment.STAMP).exists()
    tree = build_tree(tmp_path / JAPANESE)
    write_pins(tree, numpy="2.4.6", **NEWER)
    output = succeed(tree, "setup", "--here", links=wheels, python=python)
    assert "kept: torch 2.9.0+cu126" in output
    found = report(tree, python=python)
    kept = {"torch": "2.9.0+cu126", "numpy": "1.26.4", "tiny": "1.1"}
    assert found["packages"] == kept
    assert os.path.samefile(found["prefix"], prefix)
    assert not (tree / ".venv").exists()
    # The tree lies elsewhere and its name is not ASCII: the path file copes.
    right(execute(python, "-c", "import only_here", LC_ALL="C"))
