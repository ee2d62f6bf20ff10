"""Executing notebooks without a browser: `run` for readers, `refresh` for authors.

`refresh` is the only way in which the outputs stored in this course are made: from
top to bottom in a fresh kernel, with the settings that the tests use, so that a test
which repeats the run can compare. A notebook in which a cell fails is never saved.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode

from course import CourseError, locks, paths, runs, settings
from course.installation import pip_runs
from course.running import ledger, made_parts
from course.running.kernels import Taken, ThisEnvironment, first_line, how_it_ended
from course.running.targets import all_notebooks, find, main_notebook, shown

CELL_COLUMNS = "80"
#: ruff's options for notebooks, whose cells are narrower than modules.
FORMAT_OPTIONS = (
    "--isolated",
    "--target-version",
    "py311",
    "--line-length",
    CELL_COLUMNS,
)
MAY_FAIL = "raises-exception"
KEPT_CELL_METADATA = ("tags", "jupyter")
#: The same in every notebook; a version here would change with every machine.
METADATA = {
    "kernelspec": {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    },
    "language_info": {
        "codemirror_mode": {"name": "ipython", "version": 3},
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
    },
}
#: What to do about a cell that fails: for who changes the course, and who reads it.
FOR_AUTHORS = f"Fix the cell, or give it the tag {MAY_FAIL} if it is meant to fail."
FOR_READERS = (
    "Correct the cell if it is yours, and run it again. If you have changed nothing, "
    "`python3 -m course doctor` looks for the cause."
)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class _Client(NotebookClient):
    """A client that can show what a cell prints while it runs, not only afterwards."""

    show = False
    line_is_open = False

    def process_message(
        self, msg: dict[str, Any], cell: NotebookNode, cell_index: int
    ) -> NotebookNode | None:
        """Show what a message holds, then let nbclient keep it."""
        if self.show:
            content = msg["content"]
            if msg["msg_type"] == "stream":
                self.print(content["text"])
            elif msg["msg_type"] in ("display_data", "execute_result"):
                self.print(content["data"].get("text/plain", "") + "\n")
        return super().process_message(msg, cell, cell_index)

    def print(self, text: str) -> None:
        print(text, end="", flush=True)
        self.line_is_open = not text.endswith("\n")

    def end_line(self) -> None:
        if self.line_is_open:
            self.print("\n")


def read(path: Path) -> NotebookNode:
    """Return the notebook in a file; a damaged one is a `CourseError`."""
    try:
        return nbformat.reads(Path(path).read_text(encoding="utf-8"), as_version=4)
    except (ValueError, KeyError, AttributeError, nbformat.ValidationError) as error:
        raise CourseError(
            f"{shown(path)} is not a readable notebook ({first_line(error)}). "
            "Restore it from the archive or repository that it came from."
        ) from None


def write(path: Path, notebook: NotebookNode) -> None:
    """Save a notebook so that a reader sees the old file or the new one, whole."""
    paths.write_text_atomically(path, nbformat.writes(notebook) + "\n")


def normalise(notebook: NotebookNode) -> NotebookNode:
    """Drop from a notebook, in place, what differs between equal runs; return it.

    Empty code cells go too: they would never be run. The others count from 1.
    """
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.cells = [
        cell
        for cell in notebook.cells
        if cell.cell_type != "code" or cell.source.strip()
    ]
    code = (cell for cell in notebook.cells if cell.cell_type == "code")
    for number, cell in enumerate(code, 1):
        for counted in (cell, *cell.outputs):
            if "execution_count" in counted:
                counted.execution_count = number
    for cell in notebook.cells:
        kept = {k: v for k, v in cell.metadata.items() if k in KEPT_CELL_METADATA}
        cell.metadata = nbformat.from_dict(kept)
        for output in cell.get("outputs", ()):
            if output.output_type == "error":
                output.traceback = [_without_places(part) for part in output.traceback]
    return notebook


def normal_text(text: str) -> str:
    """Return the text of a notebook's file as `refresh` stores it, cells not run."""
    return nbformat.writes(normalise(nbformat.reads(text, as_version=4))) + "\n"


def _without_places(text: str) -> str:
    """Cut off in a traceback where the course and the packages lie on this machine."""
    folders = {*sysconfig.get_paths().values(), str(paths.ROOT)}
    for folder in sorted(folders, key=len, reverse=True):  # the inner ones first
        text = text.replace(folder + os.sep, "")
    return text


def execute(
    path: Path,
    notebook: NotebookNode,
    *,
    environment: Callable[[str], dict[str, str]] = settings.kernel_environment,
    on_cell: Callable[[int, int, float], None] | None = None,
    show: bool = False,
    advice: str = FOR_AUTHORS,
) -> Taken:
    """Run all cells of a notebook in a fresh kernel, in the folder of its file.

    The outputs go into the cells; the file is neither read nor written. `environment`
    makes that of the kernel, by default the one of the tests, from an empty folder for
    IPython. `on_cell(number, of, seconds)` is called after each code cell; `show`
    prints all that cells print, as they print it; `advice` ends the message about a
    cell that fails. Raises `CourseError` for one that fails without the tag
    `raises-exception`, for one that carries the tag and does not fail, and for a kernel
    that does not start or dies.
    """
    cells = [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
    manager = AsyncKernelManager(kernel_spec_manager=ThisEnvironment())
    client = _Client(notebook, manager, timeout=None, coalesce_streams=True)
    client.show = show
    taken = Taken()
    with tempfile.TemporaryDirectory(prefix="gpt-by-hand-") as folder:
        here = {"cwd": str(Path(path).resolve().parent), "env": environment(folder)}
        log = Path(folder, "log")
        try:
            with log.open("wb") as stderr:
                client.start_new_kernel(stderr=stderr, **here)
            client.start_new_kernel_client()
        except RuntimeError:
            said = log.read_text(encoding="utf-8", errors="replace")
            raise CourseError(
                f"{shown(path)} cannot be run: its kernel does not start. Its last "
                f"lines say why:\n{pip_runs.last_lines(said)}"
            ) from None
        with client.setup_kernel(cleanup_kc=True):
            for number, cell in enumerate(cells, 1):
                cell_started = time.perf_counter()
                try:
                    _execute_cell(client, notebook, cell, number, advice)
                except CourseError as error:
                    where = f"{shown(path)}, code cell {number} (id {cell.get('id')})"
                    raise CourseError(f"{where} {error}") from None
                taken.note(manager)
                client.end_line()
                if on_cell:
                    on_cell(number, len(cells), time.perf_counter() - cell_started)
    return taken


def _execute_cell(
    client: NotebookClient,
    notebook: NotebookNode,
    cell: NotebookNode,
    number: int,
    advice: str,
) -> None:
    """Run one cell; the `CourseError` of a failure goes on after the cell's name."""
    source = textwrap.indent(cell.source, "    ")
    try:
        client.execute_cell(cell, notebook.cells.index(cell), execution_count=number)
    except CellExecutionError as error:
        raise CourseError(
            f"failed with {error.ename}: {first_line(error.evalue)}\n\n{source}\n\n"
            f"{textwrap.indent(COLOUR.sub('', error.traceback), '    ')}\n\n"
            f"{advice}"
        ) from None
    except DeadKernelError:
        raise CourseError(
            f"did not finish: {how_it_ended(client.km)}.\n\n{source}\n\n"
            "Close other programs or choose smaller sizes, and run it again."
        ) from None
    tagged = MAY_FAIL in cell.metadata.get("tags", [])
    by_author = advice == FOR_AUTHORS  # a reader may have corrected it
    if (
        by_author
        and tagged
        and not any(out.output_type == "error" for out in cell.outputs)
    ):
        raise CourseError(
            f"carries the tag {MAY_FAIL} but did not fail.\n\n{source}\n\n"
            "Fix the cell, or remove the tag."
        )


def formatted(notebook: NotebookNode) -> NotebookNode:
    """Return the notebook with its code cells formatted by ruff, where it is there."""
    command = [sys.executable, "-m", "ruff", "format", *FORMAT_OPTIONS]
    done = subprocess.run(
        [*command, "--stdin-filename", "notebook.ipynb", "-"],
        input=nbformat.writes(notebook),
        capture_output=True,
        encoding="utf-8",
    )
    if done.returncode == 0 and done.stdout:
        return nbformat.reads(done.stdout, as_version=4)
    return notebook  # not installed, or the code does not parse: the run will tell


def refresh(targets: Sequence[str] = ()) -> int:
    """Execute notebooks and save them with their outputs; return an exit code.

    `targets` are chapters, folders or files; none means every notebook. Cells are
    formatted, metadata normalised, cell ids kept; time and memory go into the ledger
    and into the marked tables. A notebook in which something fails stays as it was.
    """
    failures, measured = [], False
    for path in all_notebooks(targets):
        print(f"{shown(path)}", flush=True)
        try:
            measured |= _refresh_one(path)
        except CourseError as error:
            failures.append(shown(path))
            print(f"course: {error}\nNot saved: {shown(path)}", file=sys.stderr)
    if measured:
        fill_pages()
    if failures:
        raise CourseError(
            f"{', '.join(failures)}: not saved, for the reason given above."
        )
    return 0


def fill_pages() -> int:
    """Fill in what pages show of the ledger and the folders; return an exit code."""
    for page in made_parts.fill():
        print(f"{shown(page)}: filled from the ledger and the folders", flush=True)
    print("The pages are up to date.", flush=True)
    return 0


def _refresh_one(path: Path) -> bool:
    """Execute and save one notebook; tell whether it went into the ledger."""
    notebook = normalise(formatted(read(path)))
    runs.prepare(path, settings.environment_of_tests())
    taken = execute(path, notebook, on_cell=_progress)
    write(path, normalise(notebook))
    inside = ledger.inside(path)
    if inside:
        ledger.record(inside, taken.seconds, taken.peak_mb)
    print(
        f"  saved: {taken.seconds:.1f} s of the processor, "
        f"{taken.peak_mb:.0f} MB at the most",
        flush=True,
    )
    return bool(inside)


def _progress(number: int, of: int, seconds: float) -> None:
    print(f"  cell {number}/{of}  {seconds:.1f} s", flush=True)


def run(target: str, arguments: Sequence[str] = ()) -> int:
    """Execute a chapter's main notebook, a notebook or a script; return an exit code.

    A notebook runs with the reader's own settings; what it prints is shown as it is
    printed, and a copy with all outputs and figures is saved below `runs/`. A script
    gets the arguments, and its exit code is passed on.
    """
    path = find(target)
    if path.is_dir():
        path = main_notebook(path)
    for file in paths.namesakes(path.parent):
        text = f"{file} hides a package or a module of Python of that name; rename it."
        print(f"course: {text}", file=sys.stderr)
    if path.suffix == ".py":
        command = [sys.executable, str(path), *arguments]
        return wait_for(command, env=settings.environment_of_readers())
    if path.suffix != ".ipynb":
        raise CourseError(
            f"{shown(path)} is neither a notebook nor a script: name a chapter, a file "
            "ending in .ipynb or one ending in .py."
        )
    if arguments:
        raise CourseError(
            f"{shown(path)} is a notebook and takes no arguments: set COURSE_PRESET or "
            "COURSE_DEVICE to change how it runs."
        )
    return _run_notebook(path)


def wait_for(command: Sequence[str], **options) -> int:
    """Run a command to its end and return its exit code, also when Ctrl-C is pressed.

    Ctrl-C reaches the command too; it gets the time to end in its own way. Keywords
    are those of `subprocess.Popen`.
    """
    process = subprocess.Popen(command, **options)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise


def _run_notebook(path: Path) -> int:
    inside = ledger.inside(path) or path.name
    copy = paths.runs_dir() / "executed" / inside
    locks.try_writing(copy.parent, "COURSE_RUNS")

    def on_cell(number: int, of: int, seconds: float) -> None:
        print(f"[{shown(path)}: cell {number}/{of}, {seconds:.1f} s]", flush=True)

    started, notebook = time.perf_counter(), read(path)
    reader = settings.environment_of_readers
    taken = execute(
        path,
        notebook,
        environment=reader,
        on_cell=on_cell,
        show=True,
        advice=FOR_READERS,
    )
    seconds = time.perf_counter() - started
    write(copy, normalise(notebook))
    print(
        f"{shown(path)} ran in {seconds:.0f} s and took "
        f"{taken.peak_mb:.0f} MB at the most. With its outputs it lies in {copy}"
    )
    return 0
