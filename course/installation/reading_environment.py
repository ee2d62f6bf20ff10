"""The small environment in which the course is made into pages, without PyTorch.

It is ``.venv-read`` at the root of the tree, and only made where the course's own
environment lacks the packages. Standard library only.
"""

import time
from pathlib import Path

from course import CourseError, paths
from course.installation import environment, pip_runs, preflight, set_up_lock
from course.installation.pip_runs import say

READING_ENV = paths.ROOT / ".venv-read"


def ensure() -> Path:
    """Return a Python that has the packages of ``docs/requirements.txt``.

    That of the course's environment, if it has them, as it has after the tests;
    otherwise that of a small environment for reading, which is made here if need be.
    Raises `CourseError`.
    """
    if _has_packages(environment.chosen_prefix()):
        return environment.python_of(environment.chosen_prefix())
    python = environment.python_of(READING_ENV)
    wanted = environment.digest(pip_runs.READING)

    def is_there() -> bool:
        stamp = environment.read_stamp(READING_ENV) or {}
        return stamp.get("reading") == wanted and python.exists()

    if is_there():
        return python
    problem = preflight.disk_problem(READING_ENV, preflight.NEEDED_BYTES_READING)
    if problem:
        raise CourseError(problem)
    with set_up_lock.held(READING_ENV) as lock, environment.unpacking_in(READING_ENV):
        if is_there():  # another process has made it while this one waited
            return python
        began = time.monotonic()
        say(f"Setting up {READING_ENV} for reading: once, about a minute.")
        # What was there before may be broken, and is made again as quickly.
        (READING_ENV / environment.STAMP).unlink(missing_ok=True)
        environment.create(READING_ENV)
        pip_runs.install_reading(python, lock)
        environment.write_stamp(READING_ENV, {"kind": "reading", "reading": wanted})
        say(f"      done in {time.monotonic() - began:.0f} s")
    return python


def _has_packages(prefix: Path) -> bool:
    """Tell whether a complete environment happens to have the packages for reading."""
    stamp = environment.read_stamp(prefix)
    state = environment.probe(prefix) if stamp else None
    if state is None:
        return False
    folder = None if environment.is_running(prefix) else state["purelib"]
    return not pip_runs.not_as_pinned(pip_runs.READING, folder)
