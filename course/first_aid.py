"""What the doctor can say before the set-up, or where its environment does not start.

Whether this machine, this Python, the disk and the network will do for the set-up.
Nothing is made or changed. Standard library only.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from course import assets, doctor, failures, paths, settings
from course.doctor import Line, Section
from course.installation import environment, pip_runs, preflight

_PREFIX = "import json, sys; print(json.dumps(sys.prefix))"


def start_problem(prefix: Path) -> str:
    """Say why no command could go on in the environment at `prefix`; "" if one can.

    Nothing is made or changed, so the doctor can ask.
    """
    if environment.is_running(prefix):
        return ""
    if not environment.is_made(prefix):
        made = environment.python_of(prefix).parent.is_dir()
        state = "was never finished" if made else "has not been made yet"
        return f"The environment {prefix} {state}."
    python = environment.python_of(prefix)
    try:
        answer = subprocess.run(
            [str(python), "-I", "-c", _PREFIX],
            timeout=60,
            check=False,
            env=pip_runs.clean_environ(),
            **settings.ONE_TEXT,
        )
    except PermissionError:
        return environment.barred(prefix)
    except (OSError, subprocess.SubprocessError) as problem:
        reason = getattr(problem, "strerror", None) or type(problem).__name__
        return f"The environment's Python {python} does not start: {reason}."
    said = answer.stdout.strip().rpartition("\n")[2]
    try:
        place = json.loads(said)
    except ValueError:
        place = ""
    if answer.returncode or not place:
        return f"The environment's Python {python} does not start: {said}."
    if os.path.realpath(place) != os.path.realpath(prefix):
        return f"The environment {prefix} does not work: its Python looks elsewhere."
    return ""


def before_the_set_up(problem: str) -> int:
    """Report whether the set-up will do; return the exit code, which is 1.

    `problem` says why there is no environment in which all could be looked at.
    """

    def needed() -> Iterator[Line]:
        yield Line(problem, doctor.SETUP)

    return doctor.report({"Environment": needed, **SECTIONS})


def _python() -> Iterator[Line]:
    yield from doctor.python_version()
    problem = preflight.platform_problem()
    if problem:
        yield Line(problem, "do what that line says")
    if not preflight.can_make_environments():
        yield Line(preflight.no_ensurepip(), "do what that line says")


def _disk() -> Iterator[Line]:
    problem = preflight.disk_problem(paths.ENV)
    place = doctor.nearest(paths.ENV)
    free = shutil.disk_usage(place).free
    yield Line(f"disk for the environment: {free / 1e9:.1f} GB free in {paths.ENV}")
    if problem:
        yield Line(problem, "do what that line says")
    if not os.access(place, os.W_OK):
        yield Line(f"{place} cannot be written", "put the course where you may write")


def _network() -> Iterator[Line]:
    """Fetch the smallest package as the set-up would, into a folder that goes again."""
    if settings.offline():
        yield Line(
            "COURSE_OFFLINE is set, and the set-up needs the network",
            "unset COURSE_OFFLINE for the set-up",
        )
        return
    if not importlib.util.find_spec("pip"):
        yield Line("not tried: this Python has no pip (the set-up brings one)")
        return
    name, version = "tqdm", pip_runs.pins(pip_runs.BASE)["tqdm"]
    with tempfile.TemporaryDirectory(prefix="gpt-by-hand-") as folder:
        options = ["--no-deps", "--no-cache-dir", "--no-input", "--dest", folder]
        command = [sys.executable, "-m", "pip", "download", *options]
        done = subprocess.run(
            [*command, f"{name}=={version}"],
            env=pip_runs.clean_environ(),
            **settings.ONE_TEXT,
        )
        known = failures.cause(done.stdout, folder) if done.returncode else None
    if not done.returncode:
        yield Line(f"pip can fetch packages (tried with {name})")
    elif known:
        yield Line(f"pip cannot fetch packages: {known.says}", "do what that line says")
    else:
        said = pip_runs.last_lines(done.stdout, 2)
        yield Line(f"pip cannot fetch packages:\n{said}", "do what pip says there")


def _files() -> Iterator[Line]:
    states = [
        assets.status(name) for name, at in assets.manifest().items() if at.offline
    ]
    yield Line(
        f"{states.count('present')} of {len(states)} files for working offline are in "
        f"{paths.cache_dir()} or the tree; the set-up fetches the others"
    )


#: What is examined before the set-up.
SECTIONS: dict[str, Section] = {
    "Machine": doctor.hardware,
    "Python": _python,
    "Disk": _disk,
    "Network": _network,
    "Files": _files,
}
