"""`python3 -m course test`: style, tests, doctests, gates and notebooks, in one run.

Everything below runs offline, guarded, on one thread a process and with the quick
preset. Afterwards the tree must be what it was before. While the tests run, this
module is also a pytest plugin: it adds a few lines to the end of pytest's report.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil
from _pytest.terminal import TerminalReporter

from course import CourseError, paths, settings, this_machine
from course.running import notebooks
from course.running.targets import below, find, shown

GATES = paths.ROOT / "course" / "gates" / "test_tree.py"
MEMORY_PER_PROCESS = 6e9
STARTED = "COURSE_TEST_STARTED"
PROCESSES = "COURSE_PROCESSES"  # how many test processes, instead of counting cores
NOTHING_COLLECTED = 5  # pytest's exit code
MOST_NAMED = 8


def main(targets: Sequence[str] = (), notebooks: bool = True) -> int:
    """Run everything, or what belongs to the targets; return the exit code.

    A target is a chapter (ch02), a folder or a file. Raises `CourseError` for an
    unknown one, and when something other than a test failed.
    """
    started = time.time()
    places = _places(targets)
    before = snapshot()
    style = check_style(places)
    code = _pytest(places, notebooks, started)
    problems = [style] if style else []
    if code == NOTHING_COLLECTED:
        problems.append(_nothing(places, notebooks))
    elif code not in (0, 1):
        problems.append(f"pytest stopped early with exit code {code}; see above.")
    difference = changes(before, snapshot())
    if difference:
        problems.append(
            f"While the tests ran, the tree changed: {difference}. Notebooks and tests "
            "write only below runs/ or into temporary folders."
        )
    if problems:
        seconds = time.time() - started
        raise CourseError(" ".join([*problems, f"All took {seconds:.0f} s."]))
    return code


def _places(targets: Sequence[str]) -> list[Path]:
    """Return what to test: files and folders of this tree."""
    places = [find(target) for target in targets] or [paths.ROOT]
    for place in places:
        if not place.is_relative_to(paths.ROOT):
            raise CourseError(
                f"{place} lies outside the course's folder {paths.ROOT}, so it is not "
                "tested. Name a chapter, or a folder or file of the course."
            )
    return list(dict.fromkeys(places))


def _nothing(places: Sequence[Path], with_notebooks: bool) -> str:
    names = ", ".join(shown(place) or "." for place in places)
    without = "" if with_notebooks else " without its notebooks"
    return f"There is nothing to test in {names}{without}; name something else."


def snapshot(root: Path = paths.ROOT) -> dict[str, str]:
    """Return a digest of every file of the tree by its path from the root."""
    return {
        file.relative_to(root).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in paths.tree_files(root)
    }


def changes(before: dict[str, str], after: dict[str, str]) -> str:
    """Say in words how two snapshots differ; "" if they do not.

    >>> changes({"a": "1", "b": "2"}, {"b": "3", "c": "4"})
    'new c; changed b; gone a'
    """
    kinds = {
        "new": after.keys() - before.keys(),
        "changed": {k for k in after.keys() & before.keys() if after[k] != before[k]},
        "gone": before.keys() - after.keys(),
    }
    return "; ".join(f"{kind} {_some(names)}" for kind, names in kinds.items() if names)


def _some(names: Iterable[str]) -> str:
    """Return names as a list for a sentence, the first few of many."""
    names = sorted(names)
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def check_style(places: Sequence[Path]) -> str:
    """Run ruff over code and notebooks; return what was wrong in a sentence, or "".

    Raises `CourseError` for a place that is not there.
    """
    places = [find(place) for place in places]
    code = [p for p in places if p.is_dir() or p.suffix in (".py", ".ipynb")]
    if not code:
        return ""
    print("course: checking the style of code and notebooks (ruff)", flush=True)
    ruff = [sys.executable, "-m", "ruff"]
    names = [str(place) for place in code]
    # Without --force-exclude a notebook that is named would count as a module.
    calls = [["check", *names], ["format", "--check", "--force-exclude", *names]]
    cells = [*notebooks.FORMAT_OPTIONS, *map(str, below(code))]
    if below(code):
        calls += [["format", "--check", *cells], ["check", "--select", "E501", *cells]]
    codes = [
        notebooks.wait_for([*ruff, *call, "--quiet"], cwd=paths.ROOT) for call in calls
    ]
    if not any(codes):
        return ""
    call = " ".join(shown(Path(part)) for part in ruff)
    return (
        "The style check failed, for the reasons shown before the tests. "
        f"`{call} check --fix` and `{call} format` fix most of it in modules, "
        "`python3 -m course refresh` in notebooks."
    )


def processes(files: int) -> int:
    """Return how many test processes to start for a number of files.

    The reader's choice in COURSE_PROCESSES counts first; otherwise as many as there
    are cores and room for in memory.
    """
    chosen = settings.value_of(PROCESSES)
    if chosen:
        if not chosen.isdecimal() or int(chosen) < 1:
            raise CourseError(
                f"{PROCESSES} is {chosen!r}; set it to a whole number above 0, or "
                "remove it."
            )
        return int(chosen)
    room = int(psutil.virtual_memory().total / MEMORY_PER_PROCESS)
    return max(1, min(this_machine.cores(), room, files))


def _pytest(places: Sequence[Path], with_notebooks: bool, started: float) -> int:
    tested = _tested(places, with_notebooks)
    single = all(place.is_file() for place in tested)
    count = processes(len(tested) if single else 99)
    if not tested:
        return NOTHING_COLLECTED
    command = [sys.executable, "-m", "pytest", "-p", "course.running.run_tests"]
    command += ["-p", "no:cacheprovider", *map(str, tested)]
    if with_notebooks:
        command += ["--nbval", "--nbval-current-env"]
    if count > 1:
        command += ["-n", str(count), "--dist", "loadscope", "--no-loadscope-reorder"]
    with_s = "es" if count > 1 else ""
    print(f"course: running the tests in {count} process{with_s} (pytest)", flush=True)
    environment = settings.environment_of_tests() | {STARTED: str(started)}
    return notebooks.wait_for(command, cwd=paths.ROOT, env=environment)


def _tested(places: Sequence[Path], with_notebooks: bool) -> list[Path]:
    """Return what pytest gets: modules with their tests, folders with the gates."""
    kinds = (".py", ".ipynb") if with_notebooks else (".py",)
    tested = [place for place in places if place.is_dir() or place.suffix in kinds]
    for place in places:
        beside = place.with_name(f"test_{place.name}")
        if place.suffix == ".py" and beside.is_file():
            tested.append(beside)
        if place.is_dir() and GATES.is_file() and not GATES.is_relative_to(place):
            tested.append(GATES)
    return list(dict.fromkeys(tested))


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Close pytest's report with what to do next and how long everything took."""
    failed = dict.fromkeys(
        report.nodeid.partition("::")[0]
        for kind in ("failed", "error")
        for report in terminalreporter.getreports(kind)
        if report.nodeid
    )
    terminalreporter.ensure_newline()
    if failed:
        again = " ".join(list(failed)[:MOST_NAMED])
        terminalreporter.line(
            "course: each failure is explained above under its name. To run only what "
            f"failed again: python3 -m course test {again}"
        )
    seconds = time.time() - float(os.environ.get(STARTED, time.time()))
    terminalreporter.line(f"course: style and tests took {seconds:.0f} s in all")
