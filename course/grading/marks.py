"""The command `grade`: the exercises of a whole class, in one table.

Nothing that a student wrote is called by its own name for a check: the check that
decides is the course's, imported before any code of theirs runs.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import gc
import importlib
import io
import linecache
import os
import sys
import tempfile
import time
import types
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from course import CourseError, locks, paths, settings, this_machine
from course.grading import attempts
from course.grading.attempts import Attempt, Exercise

NOT_STARTED = "not started"
SECONDS = 20.0  # of the processor, for one exercise
_OWN = ("course.exercises", "course.differences")
LONGEST = 500  # characters of a sentence in the table
#: What is said first, by what an error says.
_WORDS = {
    "MemoryError": "out of memory",
    "can't allocate memory": "out of memory",
    "NotWhileGrading": "refused",
    "NetworkForbidden": "refused",
}


def main(folder: str, to: str | None = None, seconds: str | None = None) -> int:
    """Grade all notebooks in a folder and write the table; return an exit code."""
    place = Path(folder).expanduser()
    if os.name == "nt":
        raise CourseError(
            "`grade` shuts students' code in with means that Windows lacks. Use it in "
            "WSL, on Linux or on macOS."
        )
    if not place.is_dir():
        raise CourseError(
            f"There is no folder {place}. Name the one with your students' notebooks."
        )
    try:
        limit = float(seconds or SECONDS)
    except ValueError:
        raise CourseError(f"--seconds needs a number, not {seconds!r}.") from None
    table = _table(place, to)
    known = attempts.exercises()
    rows, jobs = _rows(place, known)
    os.environ |= {"COURSE_CACHE": str(paths.cache_dir())}  # children have another home
    os.environ |= settings.FIXED  # before torch is imported
    checks = _prepare({job.exercise for _, job in jobs}, known)
    began = time.monotonic()
    _grade(rows, jobs, checks, limit)
    with (
        locks.writing(table, "COURSE_RUNS"),
        table.open("x", encoding="utf-8-sig", newline="") as file,
    ):
        csv.writer(file).writerows(_lines(rows, known))
    print(f"{len(rows)} rows in {time.monotonic() - began:.0f} s, in {table}")
    return 0


def _table(folder: Path, to: str | None) -> Path:
    """Return the file to write, which is not there yet."""
    if to:
        table = Path(to).expanduser()
        if table.exists():
            raise CourseError(f"{table} is there already. Choose another name.")
        locks.try_writing(table.absolute().parent, "--to")
        return table
    place = paths.runs_dir() / "marks"
    locks.try_writing(place, "COURSE_RUNS")
    name = folder.resolve().name
    names = (f"{name}{f'-{n}' if n > 1 else ''}.csv" for n in range(1, 10**6))
    return next(place / one for one in names if not (place / one).exists())


class StudentRow:
    """A student: what each exercise came to, and what there is to say besides."""

    def __init__(self, student: str) -> None:
        self.student, self.waiting = student, 0
        self.notebooks: list[str] = []
        self.verdicts: dict[str, str] = {}
        self.remarks: list[str] = []

    def add(self, number: str, verdict: str) -> None:
        """Note a verdict; of an exercise in two notebooks the better one counts."""
        order = ("", NOT_STARTED, "correct")
        before = self.verdicts.get(number, "")
        if before == "correct" or (before not in order and verdict == NOT_STARTED):
            return
        self.verdicts[number] = verdict

    def summary(self) -> str:
        right = list(self.verdicts.values()).count("correct")
        return f"{self.student}: {right} of {len(self.verdicts)} correct"


def _rows(
    folder: Path, known: Mapping[str, Exercise]
) -> tuple[list[StudentRow], list[tuple[StudentRow, Attempt]]]:
    """Return a row for each student, and what there is to run for it."""
    rows, jobs = [], []
    for student, notebooks in attempts.handed_in(folder).items():
        rows.append(row := StudentRow(student))
        for notebook in notebooks:
            try:
                found = list(attempts.of_notebook(attempts.code_cells(notebook), known))
            except CourseError as problem:
                row.remarks.append(str(problem))
                continue
            if found:
                row.notebooks.append(notebook.relative_to(folder).as_posix())
            for exercise, attempt in found:
                row.add(exercise.number, NOT_STARTED)
                if attempt:
                    jobs.append((row, attempt))
                    row.waiting += 1
        if not row.notebooks and not row.remarks:
            row.remarks.append("no exercise of the course in it")
    if not rows:
        raise CourseError(
            f"There is no notebook in {folder}: put one for each student into it, or "
            "a folder for each."
        )
    return rows, jobs


def _prepare(
    asked: set[Exercise], known: Mapping[str, Exercise]
) -> dict[str, Callable[..., None]]:
    """Import what the course's notebooks import; return the checks by name.

    Children have it all from the start.
    """
    print("Importing what the notebooks need ...", flush=True)
    sys.path += {str((paths.ROOT / one.notebook).parent) for one in asked}
    modules = {one.checks: importlib.import_module(one.checks) for one in asked}
    for notebook in {one.notebook for one in asked}:
        for _, source in attempts.code_cells(paths.ROOT / notebook):
            tree = attempts.parse(source)
            for node in tree.body if tree else ():
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    with contextlib.suppress(ImportError):
                        exec(compile(ast.Module([node], []), notebook, "exec"), {})
    if "tiktoken" in sys.modules:
        sys.modules["tiktoken"].get_encoding("gpt2")
    gc.freeze()  # children would copy what they only count
    return {one.check: getattr(modules[one.checks], one.check) for one in asked}


def _grade(
    rows: Sequence[StudentRow],
    jobs: Sequence[tuple[StudentRow, Attempt]],
    checks: Mapping[str, Callable[..., None]],
    seconds: float,
) -> None:
    from course.grading import contained

    waiting, running = list(jobs)[::-1], {}
    for row in rows:
        if not row.waiting:
            print(row.summary(), flush=True)
    with tempfile.TemporaryDirectory(
        prefix="gpt-by-hand-", ignore_cleanup_errors=True
    ) as place:
        at_once = this_machine.cores()
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    row, attempt = waiting.pop()
                    judge = _Judge(attempt, checks[attempt.exercise.check])
                    child = contained.start(judge, seconds, Path(place))
                    running[child.pid] = child, row, attempt
                for pid, (child, row, attempt) in list(running.items()):
                    if ended := child.poll():
                        del running[pid]
                        row.add(attempt.exercise.number, ended.why or str(ended.result))
                        row.waiting -= 1
                        if not row.waiting:
                            print(row.summary(), flush=True)
                time.sleep(contained.LOOK)
        finally:
            for child, _, _ in running.values():
                child.kill()


def _lines(
    rows: Sequence[StudentRow], known: Mapping[str, Exercise]
) -> list[list[Any]]:
    seen = {number for row in rows for number in row.verdicts}
    numbers = [one.number for one in known.values() if one.number in seen]
    head = ["student", "notebooks", "correct", "of", *numbers, "remarks"]
    lines = [head]
    for row in rows:
        right = list(row.verdicts.values()).count("correct")
        line = [row.student, ", ".join(row.notebooks), right, len(row.verdicts)]
        line += [row.verdicts.get(number, "") for number in numbers]
        lines.append([*line, "; ".join(row.remarks)])
    return [[_harmless(field) for field in line] for line in lines]


def _harmless(field: Any) -> Any:
    """A text that no spreadsheet takes for a formula."""
    if isinstance(field, str) and field.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{field}"
    return field


# --- In the child ---------------------------------------------------------------------


class _End(io.TextIOBase):
    """Where prints go: only the end is kept, however much there is."""

    kept = ""

    def write(self, text: str) -> int:
        self.kept = (self.kept + text[-LONGEST:])[-2 * LONGEST :]
        return len(text)


class _Judge:
    """Runs one attempt and asks the course's check; calling it returns the verdict."""

    def __init__(self, attempt: Attempt, check: Callable[..., None]) -> None:
        self.attempt, self.check = attempt, check
        self.name = f"check_{uuid.uuid4().hex}"  # what no cell calls itself
        self.verdict = self.error = ""
        checks = sys.modules[attempt.exercise.checks]
        self.own = [
            (one, dict(vars(one)))
            for one in (checks, *map(sys.modules.get, _OWN))
            if one
        ]

    def __call__(self) -> str:
        sys.stdout = sys.stderr = _End()
        exercise, module = self.attempt.exercise, types.ModuleType("__main__")
        sys.modules["__main__"] = module
        names = vars(module)
        names[self.name] = self.ask
        for text in self.attempt.before:
            self.run(text, ast.parse(text).body, names)
        self.error = ""  # what fails above shows in the cell, if it matters
        tree = attempts.parse(self.attempt.cell)
        if tree is None:
            return self.unreadable()
        self.run(self.attempt.cell, self.with_own_check(tree).body, names)
        if not self.verdict:  # the cell does not ask, or not by name
            asked = ast.parse(exercise.stub).body[-1:]
            self.run("", self.with_own_check(ast.Module(asked, [])).body, names)
        return self.verdict or _worded(self.error)

    def with_own_check(self, tree: ast.Module) -> ast.Module:
        """The tree with calls of the check going to `ask`, whatever its name means."""
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name == self.attempt.exercise.check:
                    node.func = ast.Name(self.name, ast.Load())
        return ast.fix_missing_locations(tree)

    def run(self, text: str, body: Sequence[ast.stmt], names: dict[str, Any]) -> None:
        """Run statement by statement, going on after one that fails."""
        place = f"<exercise {self.attempt.exercise.number}, {len(linecache.cache)}>"
        lines = text.splitlines(keepends=True)
        linecache.cache[place] = (len(text), None, lines, place)
        for node in body:
            try:
                exec(compile(ast.Module([node], []), place, "exec"), names)
            except BaseException as error:
                said = f"{type(error).__name__}: {error}".split("\n")[0]
                line = lines[node.lineno - 1].strip() if lines else ""
                where = f", in the line `{line}`" if line else ""
                self.error = self.error or f"the cell raises {said}{where}"[:LONGEST]

    def ask(self, *tries: Any) -> None:
        """Stand in for the check: note what it says."""
        said = _said(self.check, tries)
        text = said.removeprefix(f"Exercise {self.attempt.exercise.number}: ")
        if any(vars(one) != was for one, was in self.own):
            text = "the check itself was changed"
        known = text.startswith(("correct", NOT_STARTED)) and text != said
        self.verdict = text.partition(".")[0] if known else _worded(text)

    def unreadable(self) -> str:
        try:
            ast.parse(self.attempt.cell)
        except Exception as error:
            line = getattr(error, "lineno", None)
            return f"wrong: the cell is not valid Python ({error.args[0]}, line {line})"
        return "wrong: the cell cannot be read"


def _worded(text: str) -> str:
    kinds = (kind for sign, kind in _WORDS.items() if sign in text)
    text = text.partition(": the tests run without")[0]  # the guard, to contributors
    return f"{next(kinds, 'wrong')}: {text[:LONGEST]}"


def _said(check: Callable[..., None], tries: Sequence[Any]) -> str:
    """Return the last line that a check prints, or what it refuses with."""
    heard = _End()
    try:
        with contextlib.redirect_stdout(heard):
            check(*tries)
    except BaseException as error:
        return str(error) or type(error).__name__
    return heard.kept.rstrip("\n").rpartition("\n")[2]
