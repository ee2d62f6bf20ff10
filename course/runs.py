"""What a chapter's training script made, for the notebooks that build on it.

`get("ch06-classifier")` returns the folder with the trained model. If it is not there,
it says so and makes it with that chapter's script, once, whatever the number of
processes that ask. Results lie below ``runs/`` at the root of the tree (``COURSE_RUNS``
moves it), one folder for each name and preset, so that a quick model is never taken for
a full one.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from course import CourseError, folders, locks, settings, toml_tables
from course.folders import Run
from course.paths import ROOT, runs_dir

TAIL = 15  # lines of a failed script that its message shows


def registry() -> dict[str, Run]:
    """Return what the folders make for others, by name, as their `folder.toml` says.

    `test` and `refresh` make what a notebook asks for before they start its clock.
    """
    return folders.runs(folders.read_all(ROOT))


def get(
    name: str,
    preset: str | None = None,
    *,
    environment: Mapping[str, str] | None = None,
) -> Path:
    """Return the folder of a finished run; make it first if it is missing.

    `preset` is "quick" or "full", by default the reader's own choice; `environment`
    are the variables of the script, by default those of this process. Safe to call
    from several processes at once. A run that fails or is interrupted leaves nothing
    behind. Raises `CourseError` for an unknown name or preset, a failing script, a
    folder that is not complete, and a place that cannot be written.
    """
    known = registry()
    if name not in known:
        raise CourseError(f"{toml_tables.unknown('run', name, known)}.")
    run = known[name]
    preset = settings.preset() if preset is None else preset
    if preset not in settings.PRESETS:
        raise CourseError(
            f"There is no preset {preset!r}. Use 'quick' or 'full', or leave it out to "
            "follow COURSE_PRESET."
        )
    folder = runs_dir() / f"{name}-{preset}"
    if folder.exists():
        return _complete(folder, run)
    with locks.writing(folder, "COURSE_RUNS"):
        runs_dir().mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f".{folder.name}.lock")
        with locks.one_at_a_time(lock, f"making {folder.name}"):
            if not folder.exists():  # or another process made it meanwhile
                _make(run, preset, folder, environment or os.environ)
    return _complete(folder, run)


def prepare(notebook: Path, environment: Mapping[str, str] | None = None) -> None:
    """Make the runs that a notebook asks for with `runs.get("...")`, if missing.

    So a notebook that is tested or refreshed neither pays for them with its own time
    nor prints how they are made. In the quick preset, as tests and outputs are.
    """
    for name in asked_for(notebook):
        get(name, "quick", environment=environment)


def minutes(notebook: Path) -> float:
    """Return how many minutes it takes to make all that a notebook asks for."""
    names = asked_for(notebook)
    known = registry() if names else {}
    return sum(known[name].minutes for name in names if name in known)


def asked_for(notebook: Path) -> list[str]:
    """Return the names in the calls `runs.get("...")` of a notebook's code, in order.

    A cell that is no Python, or a file that is no notebook, asks for nothing here: it
    fails by itself, with a better message.
    """
    try:
        cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
        sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    found = []
    for source in sources:
        with contextlib.suppress(SyntaxError):
            found += [
                call.args[0].value
                for call in ast.walk(ast.parse(source))
                if isinstance(call, ast.Call)
                and ast.unparse(call.func) == "runs.get"
                and call.args
                and isinstance(call.args[0], ast.Constant)
            ]
    return list(dict.fromkeys(found))


def _complete(folder: Path, run: Run) -> Path:
    """Return the folder if it holds all that it should."""
    lacking = _lacking(folder, run)
    if lacking:
        raise CourseError(
            f"{folder} should hold {run.about}, but {lacking} is not in it. "
            "Delete or rename that folder, and it will be made anew."
        )
    return folder


def _lacking(folder: Path, run: Run) -> str:
    return ", ".join(file for file in run.files if not (folder / file).is_file())


def _make(run: Run, preset: str, folder: Path, environment: Mapping[str, str]) -> None:
    """Run the script into a folder beside `folder`; rename that when it is complete."""
    script = ROOT / run.script
    if not script.is_file():
        raise CourseError(
            f"{folder} with {run.about} is missing, and so is the script that makes "
            f"it, {run.script}. Take that from a fresh copy of the course."
        )
    length = f"about {run.minutes:g} min" if preset == "quick" else "this takes long"
    print(f"{folder.name} is missing.")
    print(f"Making {run.about} with {run.script}, preset {preset} ({length}).")
    started = time.perf_counter()
    beside = folder.with_name(f".{folder.name}.unfinished")
    with locks.unfinished(beside) as unfinished:
        _run_script(run, preset, unfinished, environment)
        lacking = _lacking(unfinished, run)
        if lacking:
            raise CourseError(
                f"{run.script} ended well but did not write {lacking}. Take the script "
                "from a fresh copy of the course; if that does not help, report it."
            )
        os.replace(unfinished, folder)
    seconds = time.perf_counter() - started
    print(f"Made {run.about} in {seconds:.0f} s: {folder.name}")


def _run_script(
    run: Run, preset: str, out: Path, environment: Mapping[str, str]
) -> None:
    """Run the script to its end, passing its output on line by line."""
    script = ROOT / run.script
    tail: deque[str] = deque(maxlen=TAIL)
    with subprocess.Popen(
        [sys.executable, str(script), "--out", str(out)],
        env=dict(environment)
        | {"COURSE_PRESET": preset, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"},
        **settings.ONE_TEXT,
    ) as process:
        try:
            # In a notebook a child's output goes nowhere unless it is printed.
            for line in process.stdout or ():
                print(line, end="")
                tail.append("  " + line.rstrip())
        except BaseException:  # interrupted
            process.kill()
            raise
    if process.returncode != 0:
        raise CourseError(
            f"{run.script} could not make {run.about}: it ended with exit code "
            f"{process.returncode}. Fix what its last lines say, then run the same "
            "again:\n" + "\n".join(tail)
        )
