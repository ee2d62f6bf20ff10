"""Make, repair, find and lend the environment in which every command runs.

The environment is ``.venv`` at the root of the tree, or one that its owner made the
course's with ``setup --here``.  It counts as complete from the moment when its stamp
file is there, which is written last and in one step; everything before that can be
interrupted and started again.  Standard library only: nothing else exists yet.
"""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from course import PYTHON_NEWEST, PYTHON_OLDEST, CourseError, paths
from course.installation import pip_runs, preflight
from course.installation.pip_runs import say

STAMP = "gpt-by-hand.json"
LOCK = "gpt-by-hand.lock"
STEPS = 5  # four are printed here, the fifth (files for working offline) by `setup`

_LENT = "lent-packages.pth"


# --- Which environment, and is it complete? -------------------------------------------


def python_of(prefix):
    """Return the interpreter of the virtual environment at `prefix`."""
    if os.name == "nt":
        return Path(prefix) / "Scripts" / "python.exe"
    return Path(prefix) / "bin" / "python"


def _same_place(one, other):
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def is_running(prefix):
    """Tell whether this process runs in the environment at `prefix`."""
    return _same_place(sys.prefix, prefix)


def _is_own(prefix):
    """Tell whether this is the tree's own ``.venv`` (it need not exist yet)."""
    return Path(prefix) == paths.ENV or _same_place(prefix, paths.ENV)


def _is_other_trees(prefix):
    """Tell whether `prefix` is the ``.venv`` of another copy of this course."""
    prefix = Path(prefix)
    return (
        prefix.name == paths.ENV.name
        and (prefix.parent / "course" / "startup.py").is_file()
        and not _same_place(prefix.parent, paths.ROOT)
    )


def chosen_prefix(here=False):
    """Return where the environment of this tree is, or will be.

    It is the running one if that has a stamp (or `here` is asked for) and does not
    belong to another copy of the course; otherwise ``.venv`` at the root.
    """
    running = Path(sys.prefix)
    if is_running(paths.ENV):
        return paths.ENV
    other = _is_other_trees(running)
    if here and other:
        raise CourseError(
            f"The running environment {running} belongs to another copy of the course. "
            "Leave it (deactivate), or run the command without --here."
        )
    if here or (_read_stamp(running) is not None and not other):
        return running
    return paths.ENV


def _read_stamp(prefix):
    try:
        stamp = json.loads((Path(prefix) / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) else None


def _write_stamp(prefix, kind, version, requirements):
    """Declare the environment complete; `requirements` maps file names to digests."""
    stamp = {"kind": kind, "python": "{}.{}".format(*version)}
    for name, digest in requirements.items():
        stamp[name.removesuffix(".txt")] = digest
    text = json.dumps(stamp, indent=1) + "\n"
    paths.write_text_atomically(Path(prefix) / STAMP, text)


def _digests(testing, root=paths.ROOT):
    """Return the SHA-256 of the requirements files that count, by name."""
    names = [pip_runs.BASE, pip_runs.TESTING][: 2 if testing else 1]
    digests = {}
    for name in names:
        try:
            # Git may have changed the line ends on Windows; the packages are the same.
            content = (Path(root) / name).read_bytes().replace(b"\r\n", b"\n")
        except FileNotFoundError:
            raise CourseError(
                f"{name} is missing in {root}. Unpack or clone the course again."
            ) from None
        digests[name] = hashlib.sha256(content).hexdigest()
    return digests


def is_complete(prefix, testing=False):
    """Tell whether the environment was made, for the requirements as they are now."""
    stamp = _read_stamp(prefix)
    if stamp is None:
        return False
    if not is_running(prefix):
        # Also false for a link to an interpreter that has been uninstalled since.
        if not python_of(prefix).exists():
            return False
    elif stamp.get("python") != "{}.{}".format(*sys.version_info):
        return False  # the Python below the environment was replaced by another one
    if stamp.get("kind") == "lent":
        return True
    return all(
        stamp.get(name.removesuffix(".txt")) == digest
        for name, digest in _digests(testing).items()
    )


def _is_intact(prefix):
    """Tell whether everything installed at `prefix` is whole and as pinned.

    Only of the tree's own environment: what is right elsewhere, its owner knows.
    """
    stamp = _read_stamp(prefix) or {}
    if stamp.get("kind") != "own":
        return True
    state = _probe(prefix)
    if state is None:
        return False
    pins = pip_runs.pins(pip_runs.BASE)
    if pip_runs.TESTING.removesuffix(".txt") in stamp:
        pins |= pip_runs.pins(pip_runs.TESTING)
    folder = state["purelib"]
    return pip_runs.has_pins(folder, pins) and all(
        whole for _, whole in pip_runs.distributions(folder)
    )


def ensure(testing=False, here=False, verify=False):
    """Return the environment's interpreter; make, finish or repair it where needed.

    `testing` asks for the packages of the tests as well, `here` turns the running
    environment into the course's, `verify` also looks at every installed file, which
    takes a second; otherwise a complete environment costs milliseconds.
    Raises `CourseError`.
    """
    prefix = chosen_prefix(here)
    if not is_complete(prefix, testing) or (verify and not _is_intact(prefix)):
        preflight.preflight(here=not _is_own(prefix))
        with _lock(prefix) as lock:
            # Another process may have done everything while this one waited.
            if not is_complete(prefix, testing) or not _is_intact(prefix):
                _make(prefix, testing, lock)
    if is_running(prefix):
        site_packages = sysconfig.get_path("purelib")
        _refuse_namesake(site_packages)
        paths.write_path_file(site_packages)
        return Path(sys.executable)
    return python_of(prefix)


def _refuse_namesake(site_packages):
    """Raise if an installed package would be imported as `course` instead of ours.

    Of all modules only this one cannot win by itself: it is what puts the others first
    (`course.startup.prefer_tree`).
    """
    for name in ("course", "course.py"):
        place = Path(site_packages, name)
        if place.exists():
            raise CourseError(
                f"The environment contains another package named course ({place}), "
                "which hides the one of this course. Remove it: "
                f"{sys.executable} -m pip uninstall course."
            )


# --- One set-up at a time -------------------------------------------------------------


def _try_lock(file):
    """Lock an open file for this process; False if another process holds it.

    The operating system drops the lock when its holder ends, however it ends, so a
    lock can never be left behind.
    """
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(1 << 20)  # beyond the text, which others must be able to read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system that knows no locks: go on without
        return True
    return True


def _open_lock(prefix):
    try:
        Path(prefix).mkdir(parents=True, exist_ok=True)
        return open(Path(prefix) / LOCK, "a+", encoding="utf-8")
    except FileExistsError:
        raise CourseError(
            f"{prefix} is a file, and the environment's folder must go there. "
            "Move the file away."
        ) from None
    except OSError as problem:
        raise CourseError(
            f"The environment cannot be made: {prefix} is not writable "
            f"({problem.strerror}). Put the course where you may write."
        ) from None


@contextlib.contextmanager
def _lock(prefix):
    """Hold the set-up lock of the environment at `prefix`; yield its file.

    On POSIX pip inherits the file and with it the lock: if only this process is killed,
    the next set-up waits until the orphaned pip has ended instead of disturbing it.
    """
    with _open_lock(prefix) as file:
        told = False
        while not _try_lock(file):
            if not told:
                holder = _holder(file)
                say(f"Another set-up of this course is running{holder}; waiting.")
                told = True
            time.sleep(0.3)
        if holder := _holder(file):
            say(f"An earlier set-up{holder} was cut off; going on where it stopped.")
        _note_holder(file, str(os.getpid()))
        try:
            yield file
        finally:
            _note_holder(file, "")


def _holder(file):
    file.seek(0)
    number = file.read(20).strip()
    return f" (process {number})" if number.isdigit() else ""


def _note_holder(file, text):
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()


# --- Making and repairing -------------------------------------------------------------


@contextlib.contextmanager
def _step(number, title):
    """Announce a numbered step and say how long it took."""
    say(f"[{number}/{STEPS}] {title}")
    began = time.monotonic()
    yield
    say(f"      done in {time.monotonic() - began:.0f} s")


def _make(prefix, testing, lock):
    """Bring the environment at `prefix` to what the requirements say, then stamp it."""
    own = _is_own(prefix)
    # What was there for the tests is kept in step with the rest.
    testing = testing or "requirements-test" in (_read_stamp(prefix) or {})
    (Path(prefix) / STAMP).unlink(missing_ok=True)  # incomplete from here on
    kept = {} if own else pip_runs.kept_packages()
    say(f"Setting up {prefix}: once, a few minutes.")
    with _step(1, "Looking for an environment to go on with"):
        python, site_packages, version = _place(prefix, own)
    with _step(2, "Installing PyTorch"):
        pip_runs.install_torch(python, site_packages, kept, lock)
    tests = ", and those for the tests" if testing else ""
    with _step(3, f"Installing the other packages{tests}"):
        pip_runs.install_others(python, kept, testing, lock)
    with _step(4, "Making the course's modules importable"):
        paths.write_path_file(site_packages)
        _write_stamp(prefix, "own" if own else "here", version, _digests(testing))


def _place(prefix, own):
    """Return interpreter, site-packages and version; make the environment if needed."""
    if not own:
        site_packages = Path(sysconfig.get_path("purelib"))
        return Path(sys.executable), site_packages, sys.version_info
    state = _probe(prefix) or _create(prefix)
    site_packages = Path(state["purelib"])
    for name in pip_runs.drop_half_installed(site_packages):
        say(f"      {name} was installed by halves; it will be installed again")
    return python_of(prefix), site_packages, state["version"]


_QUESTION = """
import importlib.util, json, sys, sysconfig
pip = importlib.util.find_spec("pip") and importlib.util.find_spec("pip.__main__")
answer = {
    "version": sys.version_info[:2],
    "prefix": sys.prefix,
    "purelib": sysconfig.get_path("purelib"),
    "pip": pip is not None,
}
print(json.dumps(answer))
"""


def _probe(prefix):
    """Ask the environment about itself; None unless pip can fill it."""
    try:
        answer = subprocess.run(
            [str(python_of(prefix)), "-I", "-c", _QUESTION],
            capture_output=True,
            timeout=60,
            check=True,
            env=pip_runs.clean_environ(),
        )
        state = json.loads(answer.stdout.splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None
    in_range = PYTHON_OLDEST <= tuple(state["version"]) <= PYTHON_NEWEST
    usable = in_range and state["pip"] and _same_place(state["prefix"], prefix)
    return state if usable else None


def _create(prefix):
    """Make a new virtual environment at `prefix`, in place of whatever was there."""
    problem = preflight.ensurepip_problem()
    if problem:
        raise CourseError(problem)
    _clear(prefix)
    say(f"      making one with Python {platform.python_version()}")
    # Inside a virtual environment this is the Python that it was made from.
    base = getattr(sys, "_base_executable", None) or sys.executable
    failure = _run_venv([str(base), "-m", "venv", str(prefix)])
    state = _probe(prefix)
    if failure is None and state is not None:
        return state
    failure = failure or "The new environment's Python does not start, or has no pip."
    if "ensurepip" in failure and "-venv" in failure:  # so Debian's venv says it
        raise CourseError(preflight.no_ensurepip())
    raise CourseError(
        "Python could not make the environment: `python -m venv` failed. Its last "
        f"lines say why:\n{pip_runs.last_lines(failure)}"
    )


def _run_venv(command):
    """Run ``python -m venv``; return its output if it failed, else None."""
    made = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=pip_runs.clean_environ(),
        check=False,
    )
    return made.stdout if made.returncode else None


def _clear(prefix):
    """Empty the environment's folder, all but the lock that this process holds."""
    for entry in Path(prefix).iterdir():
        if entry.name == LOCK:
            continue
        try:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        except OSError as problem:
            raise CourseError(
                f"The broken environment cannot be replaced: {entry} cannot be deleted "
                f"({problem.strerror}). Close programs that use it, or delete {prefix} "
                "yourself, and start again."
            ) from None


# --- Lending --------------------------------------------------------------------------


def lend(tree, base_python=sys.executable):
    """Give the copy of the course at `tree` a light ``.venv``; return its interpreter.

    It has no packages of its own but a path file that leads to those of the running
    environment, so it is made in a tenth of a second.  Tests use it to run commands in
    a copy.  `base_python` must be of the same version as the running one.
    """
    tree = Path(tree).absolute()
    prefix = tree / paths.ENV.name
    failure = _run_venv([str(base_python), "-m", "venv", "--without-pip", str(prefix)])
    if failure is not None:
        raise CourseError(
            f"No environment could be lent to {tree}:\n{pip_runs.last_lines(failure)}"
        )
    where = {"base": str(prefix), "platbase": str(prefix)}
    site_packages = Path(sysconfig.get_path("purelib", vars=where))
    lines = [paths.path_line(site_packages, folder) for folder in _packages()]
    (site_packages / _LENT).write_text("\n".join([*lines, ""]), encoding="utf-8")
    _link_extras(prefix)
    paths.write_path_file(site_packages, tree)
    _write_stamp(prefix, "lent", sys.version_info, _digests(True, tree))
    return python_of(prefix)


def _packages():
    """Return the folders that hold the running environment's packages, its own first.

    There are several if it lives on a loan itself.
    """
    own = sysconfig.get_path("purelib")
    lent = [
        entry
        for entry in sys.path
        if os.path.basename(entry) in ("site-packages", "dist-packages")
        and not _same_place(entry, own)
    ]
    return [own, *lent]


def _link_extras(prefix):
    """Link what packages keep outside site-packages: Jupyter's pages, compiled tools.

    Scripts are left out: they would start in the lender's environment.
    """
    for name in ("share", "etc"):
        source, target = Path(sys.prefix, name), prefix / name
        if source.is_dir() and not target.exists():
            with contextlib.suppress(OSError):  # Windows without the right to link
                target.symlink_to(source.resolve(), target_is_directory=True)
    programs = python_of(prefix).parent
    for source in python_of(sys.prefix).parent.iterdir():
        target = programs / source.name
        if target.exists() or source.name.startswith("python") or not source.is_file():
            continue
        with open(source, "rb") as file:
            is_script = file.read(2) == b"#!"
        if not is_script and not source.name.lower().startswith("activate"):
            with contextlib.suppress(OSError):
                target.symlink_to(source.resolve())
