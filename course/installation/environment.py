"""Make, renew and find the environment in which every command runs.

The environment is ``.venv`` at the root of the tree, or one that its owner made the
course's with ``setup --here``.  It counts as complete from the moment when its stamp
file is there, which is written last and in one step.  Everything before that can be
interrupted: a ``.venv`` without a stamp is made anew.  Standard library only: nothing
else exists yet.
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
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from course import PYTHON_NEWEST, PYTHON_OLDEST, CourseError, locks, paths, settings
from course.installation import pip_runs, preflight, set_up_lock
from course.installation.pip_runs import Place, say

STAMP = "gpt-by-hand.json"
SCRATCH = "gpt-by-hand.tmp"
STEPS = 5  # four are printed here, the fifth (files for working offline) by `setup`


# --- Which environment, and is it complete? -------------------------------------------


def python_of(prefix: Place) -> Path:
    """Return the interpreter of the virtual environment at `prefix`."""
    if os.name == "nt":
        return Path(prefix) / "Scripts" / "python.exe"
    return Path(prefix) / "bin" / "python"


def _same_place(one: Place, other: Place) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def barred(prefix: Place) -> str:
    """Return the sentences for an environment whose Python this user may not start."""
    python = python_of(prefix)
    return (
        f"{python} leads to {os.path.realpath(python)}, which you may not start, so "
        f"the environment {prefix} works only for whoever made it. Have it made again "
        "with a Python that everybody may start: delete that folder, then `python3 -m "
        "course setup`."
    )


def is_made(prefix: Place) -> bool:
    """Tell whether an environment was once finished at `prefix`."""
    return read_stamp(prefix) is not None


def is_running(prefix: Place) -> bool:
    """Tell whether this process runs in the environment at `prefix`."""
    return _same_place(sys.prefix, prefix)


def _is_own(prefix: Place) -> bool:
    """Tell whether this is the tree's own ``.venv`` (it need not exist yet)."""
    return Path(prefix) == paths.ENV or _same_place(prefix, paths.ENV)


def _is_other_trees(prefix: Path) -> bool:
    """Tell whether `prefix` is the ``.venv`` of another copy of this course."""
    return (
        prefix.name == paths.ENV.name
        and (prefix.parent / "course" / "startup.py").is_file()
        and not _same_place(prefix.parent, paths.ROOT)
    )


def chosen_prefix(here: bool = False) -> Path:
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
    if here or (read_stamp(running) is not None and not other):
        return running
    return paths.ENV


def read_stamp(prefix: Place) -> dict[str, str] | None:
    try:
        stamp = json.loads((Path(prefix) / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) else None


def write_stamp(prefix: Place, stamp: dict[str, str]) -> None:
    """Declare the environment complete, or say again what was in it before."""
    text = json.dumps(stamp, indent=1) + "\n"
    paths.write_text_atomically(Path(prefix) / STAMP, text)


def _digests(testing: bool) -> dict[str, str]:
    """Return the SHA-256 of the requirements files that count, by name in the stamp."""
    names = (pip_runs.BASE, pip_runs.TESTING)[: 2 if testing else 1]
    return {name.removesuffix(".txt"): digest(name) for name in names}


def digest(name: str) -> str:
    try:
        # Git may have changed the line ends on Windows; the packages are the same.
        content = (paths.ROOT / name).read_bytes().replace(b"\r\n", b"\n")
    except FileNotFoundError:
        raise CourseError(
            f"{name} is missing in {paths.ROOT}. Unpack or clone the course again."
        ) from None
    return hashlib.sha256(content).hexdigest()


def is_complete(prefix: Place, testing: bool = False) -> bool:
    """Tell whether the environment was made, for the requirements as they are now."""
    stamp = read_stamp(prefix)
    if stamp is None:
        return False
    if not is_running(prefix):
        try:
            # Also false for a link to an interpreter that has been uninstalled since.
            if not python_of(prefix).exists():
                return False
        except PermissionError:
            raise CourseError(barred(prefix)) from None
    elif stamp.get("python") != "{}.{}".format(*sys.version_info):
        return False  # the Python below the environment was replaced by another one
    if stamp.get("kind") == "lent":  # by `course.testing`, as it is
        return True
    return _digests(testing).items() <= stamp.items()


def ensure(testing: bool = False, here: bool = False, verify: bool = False) -> Path:
    """Return the environment's interpreter; make or renew it where needed.

    `testing` asks for the packages of the tests as well, `here` turns the running
    environment into the course's, `verify` also looks at the versions and files of all
    packages in ``.venv``; otherwise a complete environment costs milliseconds.
    Raises `CourseError`.
    """
    prefix = chosen_prefix(here)
    changed = verify and not _is_as_pinned(prefix)
    if changed or not is_complete(prefix, testing):
        preflight.preflight(here=not _is_own(prefix))
        with set_up_lock.held(prefix) as lock:
            # Another process may have done everything while this one waited.
            if changed or not is_complete(prefix, testing):
                with unpacking_in(prefix):
                    _make(prefix, testing, lock)
    if is_running(prefix):
        site_packages = sysconfig.get_path("purelib")
        refuse_namesake(site_packages)
        paths.write_path_file(site_packages)
        return Path(sys.executable)
    return python_of(prefix)


def _is_as_pinned(prefix: Path) -> bool:
    """Tell whether a complete environment of the course's own has all that is pinned.

    What is right in an environment of somebody else's, its owner knows.
    """
    stamp = read_stamp(prefix) or {}
    state = probe(prefix) if stamp.get("kind") == "own" else None
    if state is None:
        return True
    place = state["purelib"]
    files = [name for name in (pip_runs.BASE, pip_runs.TESTING) if name[:-4] in stamp]
    return not any(
        pip_runs.not_as_pinned(name, place)
        or pip_runs.incomplete(pip_runs.pins(name), place)
        for name in files
    )


def refuse_namesake(site_packages: Place) -> None:
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


# --- Making and renewing --------------------------------------------------------------


@contextlib.contextmanager
def _step(number: int, title: str) -> Iterator[None]:
    """Announce a numbered step and say how long it took."""
    say(f"[{number}/{STEPS}] {title}")
    began = time.monotonic()
    yield
    say(f"      done in {time.monotonic() - began:.0f} s")


@contextlib.contextmanager
def unpacking_in(prefix: Path) -> Iterator[Path]:
    """Let this process and pip unpack in `prefix`, on the disk whose room was measured.

    The system's own folder for temporary files is often a small disk in memory.
    """
    before = tempfile.tempdir
    with locks.unfinished(prefix / SCRATCH) as folder:
        tempfile.tempdir = str(folder)
        try:
            yield folder
        finally:
            tempfile.tempdir = before


def _make(prefix: Path, testing: bool, lock: TextIO) -> None:
    """Bring the environment at `prefix` to what the requirements say, then stamp it."""
    own, before = _is_own(prefix), read_stamp(prefix)
    # What was there for the tests is kept in step with the rest.
    testing = testing or "requirements-test" in (before or {})
    say(f"Setting up {prefix}: once, a few minutes.")
    (prefix / STAMP).unlink(missing_ok=True)  # incomplete from here on
    python, purelib = Path(sys.executable), sysconfig.get_path("purelib")
    version = sys.version_info[:2]
    with _step(1, "Looking for an environment to go on with"):
        if own:
            state = probe(prefix) if before else None
            if state is None:  # never finished, or broken since
                before, state = None, create(prefix)
            python, purelib = python_of(prefix), state["purelib"]
            version = state["version"]
    kept = {} if own else pip_runs.kept_packages()
    try:
        with _step(2, "Installing PyTorch"):
            if own:
                _repair(python, purelib, testing, lock)
            pip_runs.install_torch(python, purelib, kept, lock)
        tests = ", and those for the tests" if testing else ""
        with _step(3, f"Installing the other packages{tests}"):
            pip_runs.install_others(python, kept, testing, lock)
    except CourseError:  # pip ended in order: what was complete before still is
        if before:
            write_stamp(prefix, before)
        raise
    with _step(4, "Making the course's modules importable"):
        paths.write_path_file(purelib)
        stamp = {"kind": "own" if own else "here", "python": "{}.{}".format(*version)}
        write_stamp(prefix, stamp | _digests(testing))


def _repair(python: Path, purelib: Place, testing: bool, lock: TextIO) -> None:
    """Install again what has the pinned version and is not whole."""
    wanted = pip_runs.pins(pip_runs.BASE)
    if testing:
        wanted |= pip_runs.pins(pip_runs.TESTING)
    lacking = pip_runs.incomplete(wanted, purelib)
    pip_runs.reinstall(python, {name: wanted[name] for name in lacking}, lock)


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


def probe(prefix: Place) -> dict[str, Any] | None:
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


def create(prefix: Path) -> dict[str, Any]:
    """Make a new virtual environment at `prefix`, in place of whatever was there."""
    if not preflight.can_make_environments():
        raise CourseError(preflight.no_ensurepip())
    _clear(prefix)
    say(f"      making one with Python {platform.python_version()}")
    made = run_venv(prefix)
    state = None if made.returncode else probe(prefix)
    if state is not None:
        return state
    said = made.stdout or "The new environment's Python does not start, or has no pip."
    raise CourseError(
        "Python could not make the environment: `python -m venv` failed. Its last "
        f"lines say why:\n{pip_runs.last_lines(said)}"
    )


def run_venv(prefix: Path) -> subprocess.CompletedProcess[str]:
    """Run Python's `venv`, also on a disk that keeps no symbolic links."""
    if sys.platform == "linux":
        # It copies where it cannot link, and insists on a link for this name alone.
        try:
            (prefix / "lib64").symlink_to("lib")
        except OSError:
            (prefix / "lib64").mkdir()
    # Inside a virtual environment this is the Python that it was made from.
    base = getattr(sys, "_base_executable", None) or sys.executable
    return subprocess.run(
        [str(base), "-m", "venv", str(prefix)],
        env=pip_runs.clean_environ(),
        check=False,
        **settings.ONE_TEXT,
    )


def _clear(prefix: Path) -> None:
    """Empty the environment's folder, all but what this process uses there."""
    for entry in Path(prefix).iterdir():
        if entry.name in (set_up_lock.LOCK, SCRATCH):
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
