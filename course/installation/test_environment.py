"""Making, renewing and finding the environment, with the real pip.

A small tree asks for two tiny packages, named like the real ones, which the tests build
by hand.  Everything else is as a reader has it: commands in processes of their own, a
real virtual environment, interruptions by the operating system.
"""

import base64
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile

import pytest

from course import paths
from course.installation import environment
from course.testing import servers

BASE_PYTHON = getattr(sys, "_base_executable", None) or sys.executable
JAPANESE = "\u8cc7\u6599 \u96c6"  # with a space in it
WAIT = 90  # seconds, for what takes one or two on an idle machine

PINS = {"torch": "2.13.0", "tiny": "1.0"}
TEST_PINS = {"tinytest": "1.0"}

posix = pytest.mark.skipif(os.name == "nt", reason="needs the signals of POSIX")

# The real manifest needs packages that the small tree does not have.
ASSETS = "def manifest():\n    return {}\n"
DOCTOR = """
import importlib.metadata, json, os, sys

def main():
    found = {d.name: d.version for d in importlib.metadata.distributions()}
    names = [name for name in ("torch", "numpy", "tiny", "tinytest") if name in found]
    print(json.dumps({
        "prefix": sys.prefix,
        "packages": {name: found[name] for name in names},
        "cwd": os.getcwd(),
        "leaked": "COURSE_MOVED_IN" in os.environ,
    }))
"""


# --- The small tree and its packages --------------------------------------------------


def build_wheel(folder, name, version):
    """Write a wheel with one module, by hand."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\n"
        f"Name: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\n"
        "Root-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for place, text in files.items():
        digest = hashlib.sha256(text.encode()).digest()
        code = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        record += f"{place},sha256={code},{len(text.encode())}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for place, text in files.items():
            archive.writestr(place, text)


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
    (root / "course" / "assets.py").write_text(ASSETS, encoding="utf-8")
    (root / "course" / "doctor.py").write_text(DOCTOR, encoding="utf-8")
    write_pins(root, **PINS)
    write_pins(root, "requirements-test.txt", **TEST_PINS)
    chapter = root / "ch02" / "01_main-chapter-code"
    chapter.mkdir(parents=True)
    (chapter / "only_here.py").write_text("import tiny\n", encoding="utf-8")
    return root


def environ(links, **variables):
    """Return the variables of a reader whose pip knows `links` and nothing else."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PIP_", "COURSE_", "PYTHON", "VIRTUAL_ENV"))
    }
    pip = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_CACHE_DIR": "1",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(links),
        "PIP_RETRIES": "0",
        "PIP_TIMEOUT": str(WAIT),  # else pip gives up on a wheel that is held back
    }
    return {**kept, **pip, **variables}


def command(tree, *arguments, python=BASE_PYTHON):
    return [str(python), str(tree / "course"), *arguments]


def run(tree, *arguments, links, python=BASE_PYTHON, **variables):
    """Run a command of the small tree from the root of the disk; return the process."""
    return subprocess.run(
        command(tree, *arguments, python=python),
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="surrogateescape",
        env=environ(links, **variables),
        cwd=os.sep,
        timeout=WAIT * 2,
        check=False,
    )


def succeed(tree, *arguments, **options):
    done = run(tree, *arguments, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def report(tree, **options):
    """Return what the small tree's doctor says from inside the environment."""
    return json.loads(succeed(tree, "doctor", **options).splitlines()[-1])


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


def site_packages(tree):
    return next((tree / ".venv").rglob("site-packages"))


@pytest.fixture
def unfilled(ready):
    """A tree without an environment."""
    shutil.rmtree(ready / ".venv")
    return ready


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


def test_the_stamp_says_what_is_installed(first_start):
    tree, _ = first_start
    stamp = json.loads((tree / ".venv" / environment.STAMP).read_text(encoding="utf-8"))
    digest = hashlib.sha256((tree / "requirements.txt").read_bytes()).hexdigest()
    assert stamp["requirements"] == digest
    assert stamp["kind"] == "own"
    assert "requirements-test" not in stamp
    assert not list((tree / ".venv").glob("*.part"))


def test_modules_can_be_imported_at_once(first_start):
    tree, _ = first_start
    done = subprocess.run(
        [environment.python_of(tree / ".venv"), "-c", "import only_here, tiny"],
        capture_output=True,
        cwd=os.sep,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_second_start_installs_nothing(ready, tmp_path):
    output = succeed(ready, "setup", links=tmp_path / "no wheels")
    assert "[1/5]" not in output
    assert "works offline now" in output
    assert report(ready, links=tmp_path)["packages"] == PINS


def test_a_complete_environment_costs_nothing(ready, wheels):
    """Every command goes through it: outside the environment and again inside."""
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from course.installation import environment\n"
        "began = time.perf_counter(); environment.ensure()\n"
        "print(time.perf_counter() - began)"
    )
    for python in (BASE_PYTHON, environment.python_of(ready / ".venv")):
        seconds = min(
            float(
                subprocess.run(
                    [str(python), "-c", code, str(ready)],
                    capture_output=True,
                    text=True,
                    encoding="utf-8",
                    env=environ(wheels),
                    check=True,
                ).stdout
            )
            for _ in range(3)
        )
        assert seconds < 0.2


def test_commands_keep_the_readers_folder_and_leak_nothing(ready, wheels, tmp_path):
    done = subprocess.run(
        command(ready, "doctor"),
        capture_output=True,
        env=environ(wheels),
        cwd=tmp_path,
        check=True,
    )
    found = json.loads(done.stdout)
    assert os.path.samefile(found["cwd"], tmp_path)
    assert os.path.samefile(found["prefix"], ready / ".venv")
    assert not found["leaked"]


@pytest.mark.parametrize("how", ["folder", "name"])
def test_a_moved_tree_with_a_hard_name_goes_on_working(ready, tmp_path, how, wheels):
    tree = ready.rename(tmp_path / JAPANESE)
    done = subprocess.run(
        command(tree, "doctor")
        if how == "folder"
        else [BASE_PYTHON, "-m", "course", "doctor"],
        capture_output=True,
        env=environ(wheels / "nothing", LC_ALL="C"),
        cwd=os.sep if how == "folder" else tree,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert os.path.samefile(json.loads(done.stdout)["prefix"], tree / ".venv")


# --- Changes and repairs --------------------------------------------------------------


def test_changed_requirements_are_installed_at_the_next_start(ready, wheels):
    write_pins(ready, torch="2.13.0", tiny="1.1")
    assert report(ready, links=wheels)["packages"]["tiny"] == "1.1"


def test_the_tests_packages_come_when_asked_and_then_stay_in_step(ready, wheels):
    ensure = "import sys; sys.path.insert(0, sys.argv[1])\n"
    ensure += "from course.installation import environment\n"
    ensure += "environment.ensure(testing=True)"
    call = [BASE_PYTHON, "-c", ensure, str(ready)]
    assert "tinytest" not in report(ready, links=wheels)["packages"]
    subprocess.run(call, check=True, env=environ(wheels), capture_output=True)
    assert report(ready, links=wheels)["packages"]["tinytest"] == "1.0"
    write_pins(ready, torch="2.13.0", tiny="1.1")
    write_pins(ready, "requirements-test.txt", tinytest="1.1")
    found = report(ready, links=wheels)["packages"]
    assert (found["tiny"], found["tinytest"]) == ("1.1", "1.1")
    nothing = environ(wheels / "nothing")  # so this call cannot install anything
    subprocess.run(call, check=True, env=nothing, capture_output=True)


@pytest.mark.parametrize("damage", ["no interpreter", "no stamp", "an empty folder"])
def test_a_broken_environment_is_made_again(ready, wheels, damage):
    prefix = ready / ".venv"
    if damage == "no interpreter":  # uninstalled, or the folder was copied elsewhere
        for path in environment.python_of(prefix).parent.glob("python*"):
            path.unlink()
            if os.name != "nt":
                path.symlink_to("/no/such/python")
    elif damage == "no stamp":  # cut off; nobody knows which files are whole
        (prefix / environment.STAMP).unlink()
        (site_packages(ready) / "tiny.py").unlink()
    else:
        shutil.rmtree(prefix)
        prefix.mkdir()
    output = succeed(ready, "doctor", links=wheels)
    assert "making one with Python" in output
    assert json.loads(output.splitlines()[-1])["packages"] == PINS
    assert (site_packages(ready) / "tiny.py").is_file()


def test_an_installation_that_pip_refuses_leaves_what_was_complete(ready, tmp_path):
    """Asked for the packages of the tests without a network, the rest goes on."""
    ensure = "import sys; sys.path.insert(0, sys.argv[1])\n"
    ensure += "from course.installation import environment\n"
    ensure += "environment.ensure(testing=True)"
    call = [BASE_PYTHON, "-c", ensure, str(ready)]
    nothing = environ(tmp_path)
    done = subprocess.run(call, capture_output=True, env=nothing, check=False)
    assert b"pip finds no tinytest==1.0" in done.stderr
    assert report(ready, links=tmp_path)["packages"] == PINS
    write_pins(ready, torch="2.13.0", tiny="1.1")
    fail(ready, "setup", links=tmp_path)
    assert "[1/5]" in run(ready, "setup", links=tmp_path).stdout, "not forgotten"


def test_setup_puts_another_version_right(ready, wheels):
    pip = [environment.python_of(ready / ".venv"), "-m", "pip", "install", "tiny==1.1"]
    subprocess.run(pip, check=True, env=environ(wheels), capture_output=True)
    output = succeed(ready, "setup", links=wheels)
    assert "making one" not in output
    assert output.count("[1/5]") == 1
    assert report(ready, links=wheels)["packages"] == PINS


# --- Interruptions --------------------------------------------------------------------


@pytest.fixture
def slow_wheels(wheels):
    """A server from which the wheel of `tiny` does not arrive until it is let go."""
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

        server.always["/tiny-1.0-py3-none-any.whl"] = hold
        yield server
        server.let_go.set()


def start(tree, server):
    """Start a set-up in a process group of its own; return when it waits for `tiny`."""
    process = subprocess.Popen(
        command(tree, "setup"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environ(server.address),
        start_new_session=True,
        cwd=os.sep,
    )
    assert server.waiting.wait(WAIT), process.communicate(timeout=5)
    return process


@posix
def test_a_killed_set_up_is_started_anew(unfilled, slow_wheels):
    process = start(unfilled, slow_wheels)
    os.killpg(process.pid, signal.SIGKILL)  # with its pip, as at a power cut
    process.communicate(timeout=WAIT)
    assert not (unfilled / ".venv" / environment.STAMP).exists()
    slow_wheels.let_go.set()
    output = succeed(unfilled, "setup", links=slow_wheels.address)
    assert f"An earlier set-up (process {process.pid}) was cut off" in output
    assert report(unfilled, links=slow_wheels.address)["packages"] == PINS
    assert "making one with Python" in output


@posix
def test_an_orphaned_pip_is_waited_for(unfilled, slow_wheels):
    """Killed alone, the set-up leaves a pip behind that goes on writing files."""
    process = start(unfilled, slow_wheels)
    process.kill()
    process.wait(WAIT)
    second = subprocess.Popen(
        command(unfilled, "setup"),
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=environ(slow_wheels.address),
        cwd=os.sep,
    )
    first_line = second.stdout.readline()
    assert "Another set-up of this course is running" in first_line
    assert second.poll() is None
    slow_wheels.let_go.set()
    output, _ = second.communicate(timeout=WAIT)
    process.communicate(timeout=WAIT)
    assert second.returncode == 0, output
    assert report(unfilled, links=slow_wheels.address)["packages"] == PINS


@posix
def test_two_set_ups_at_once_do_the_work_once(unfilled, slow_wheels):
    first = start(unfilled, slow_wheels)
    second = subprocess.Popen(
        command(unfilled, "setup"),
        stdout=subprocess.PIPE,
        env=environ(slow_wheels.address),
        cwd=os.sep,
    )
    assert b"is running" in second.stdout.readline()
    slow_wheels.let_go.set()
    outputs = [p.communicate(timeout=WAIT)[0] for p in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    assert [b"Installing PyTorch" in output for output in outputs] == [True, False]
    assert report(unfilled, links=slow_wheels.address)["packages"] == PINS


@posix
def test_ctrl_c_ends_it_with_one_line(unfilled, slow_wheels):
    process = start(unfilled, slow_wheels)
    process.send_signal(signal.SIGINT)  # to it alone: it has to stop its pip itself
    _, errors = process.communicate(timeout=WAIT / 2)
    assert process.returncode == 130
    assert errors.decode().strip() == "course: stopped by Ctrl-C."
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody of its group is left
    slow_wheels.let_go.set()
    output = succeed(unfilled, "setup", links=slow_wheels.address)
    assert "was cut off" not in output  # it said itself that it ended
    assert report(unfilled, links=slow_wheels.address)["packages"] == PINS


# --- Where it cannot be done ----------------------------------------------------------


def test_without_network_the_cause_is_named(unfilled, tmp_path):
    index = {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": f"{servers.nobody()}/simple"}
    index["PIP_RETRIES"] = "1"
    message = fail(unfilled, "setup", links=tmp_path, **index)
    assert "there is no network" in message
    assert "No matching distribution found for torch==2.13.0" in message
    assert not (unfilled / ".venv" / environment.STAMP).exists()


def test_with_the_network_forbidden_nothing_is_tried(unfilled, tmp_path, slow_wheels):
    index = {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": slow_wheels.address}
    message = fail(unfilled, "lab", links=tmp_path, COURSE_OFFLINE="true", **index)
    assert "COURSE_OFFLINE forbids the network" in message
    assert slow_wheels.paths == []


@pytest.mark.parametrize(
    ("lack", "fragment"),
    [
        ("sys.modules['ensurepip'] = None", "-venv`"),
        (
            "import shutil, types; shutil.disk_usage = "
            "lambda place: types.SimpleNamespace(free=10**8)",
            "needs 3.0 GB of disk space",
        ),
        ("sys.maxsize = 2**31 - 1", "32-bit"),
        (
            "import platform, sysconfig; sysconfig.get_config_vars(); "
            "sys.platform = 'darwin'; platform.machine = lambda: 'x86_64'",
            "Intel Macs",
        ),
    ],
)
def test_machines_that_lack_something_are_told(tmp_path, wheels, lack, fragment):
    tree = build_tree(tmp_path / "tree")
    code = (
        f"import runpy, sys; {lack}\n"
        f"sys.argv = ['course', 'lab']; sys.path[0] = {str(tree / 'course')!r}\n"
        f"runpy.run_path({str(tree / 'course')!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [BASE_PYTHON, "-c", code],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=environ(wheels),
        cwd=os.sep,
        check=False,
    )
    assert done.returncode == 1
    assert fragment in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tree / ".venv" / environment.STAMP).exists()


def test_a_file_in_the_way_of_the_environment_is_named(tmp_path, wheels):
    tree = build_tree(tmp_path / "tree")
    (tree / ".venv").write_text("", encoding="utf-8")
    assert ".venv is a file" in fail(tree, "setup", links=wheels)


def test_missing_requirements_are_named(ready, wheels):
    (ready / "requirements.txt").unlink()
    assert "requirements.txt is missing" in fail(ready, "setup", links=wheels)


def test_a_package_named_course_is_refused(ready, wheels):
    (site_packages(ready) / "course.py").write_text("", encoding="utf-8")
    message = fail(ready, "doctor", links=wheels)
    assert "another package named course" in message
    assert "pip uninstall course" in message


# --- Which environment ----------------------------------------------------------------


def test_the_environment_of_another_copy_is_not_taken_for_ones_own(ready, wheels):
    """Active in a terminal, while the reader calls the command of this copy."""
    other = clone(ready, ready.parent / "other")
    python = environment.python_of(other / ".venv")
    for how in ([str(ready / "course")], ["-m", "course"]):
        done = subprocess.run(
            [str(python), *how, "doctor"],
            capture_output=True,
            env=environ(wheels / "nothing"),
            cwd=ready,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert os.path.samefile(json.loads(done.stdout)["prefix"], ready / ".venv")
    message = fail(ready, "setup", "--here", links=wheels, python=python)
    assert "belongs to another copy" in message


@pytest.fixture
def someones(first_start, tmp_path, wheels):
    """An environment of the reader's own, with another torch and numpy in it."""
    prefix = tmp_path / "someone's env"
    clone(first_start[0] / ".venv", prefix)
    (prefix / environment.STAMP).unlink()
    (prefix / environment.LOCK).unlink()
    mine = next(prefix.rglob("site-packages"))
    (mine / paths.PATH_FILE).unlink()
    for path in [*mine.glob("torch*"), *mine.glob("tiny*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    extra = tmp_path / "older"
    extra.mkdir()
    build_wheel(extra, "torch", "2.9.0+cu126")
    build_wheel(extra, "numpy", "1.26.4")
    pip = [str(environment.python_of(prefix)), "-m", "pip", "install", "torch", "numpy"]
    subprocess.run(pip, check=True, env=environ(extra), capture_output=True)
    return prefix


def test_here_leaves_torch_and_numpy_alone(someones, tmp_path, wheels):
    tree = build_tree(tmp_path / JAPANESE)
    write_pins(tree, torch="2.13.0", numpy="2.4.6", tiny="1.0")
    python = environment.python_of(someones)
    output = succeed(tree, "setup", "--here", links=wheels, python=python)
    assert "kept: torch 2.9.0+cu126" in output
    kept = {"torch": "2.9.0+cu126", "numpy": "1.26.4", "tiny": "1.0"}
    found = report(tree, links=wheels / "nothing", python=python)
    assert found["packages"] == kept
    assert os.path.samefile(found["prefix"], someones)
    assert not (tree / ".venv").exists()
    # The tree lies elsewhere and its name is not ASCII: the path file copes.
    done = subprocess.run(
        [str(python), "-c", "import only_here; print(ascii(only_here.__file__))"],
        capture_output=True,
        env=environ(wheels, LC_ALL="C"),
        cwd=os.sep,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert os.path.samefile(
        eval(done.stdout), tree / "ch02/01_main-chapter-code/only_here.py"
    )


def test_here_without_a_stamp_the_running_environment_is_left_alone(
    someones, ready, wheels
):
    python = environment.python_of(someones)
    found = report(ready, links=wheels / "nothing", python=python)
    assert os.path.samefile(found["prefix"], ready / ".venv")
    assert not (someones / environment.STAMP).exists()
