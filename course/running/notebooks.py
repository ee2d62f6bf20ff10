"""Executing notebooks without a browser: `run` for readers, `refresh` for authors.

`refresh` is the only way in which the outputs stored in this course are made: from
top to bottom in a fresh kernel, with the settings that the tests use, so that a test
which repeats the run can compare. A notebook in which a cell fails is never saved.
"""

from __future__ import annotations

import difflib
import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ipykernel.kernelspec
import nbformat
import psutil
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode

from course import CourseError, paths, runs, settings
from course.running import ledger

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
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Result:
    """An executed notebook with its outputs in its cells, and what running it took.

    `seconds` counts the kernel's start and all cells; `peak_mb` is the largest
    resident memory of the kernel in megabytes of 10**6 bytes.
    """

    notebook: NotebookNode
    seconds: float
    peak_mb: float


class ThisEnvironment(KernelSpecManager):
    """Kernels of the running Python, whatever else is registered on this machine."""

    def get_kernel_spec(self, kernel_name):
        return self.kernel_spec_class(
            resource_dir=ipykernel.kernelspec.RESOURCES,
            **ipykernel.kernelspec.get_kernel_dict(),
        )


class _Client(NotebookClient):
    """A client that passes outputs on while a cell runs, not only when it is done."""

    echo: Callable[[str], None] | None = None

    def process_message(self, msg, cell, cell_index):
        if self.echo:
            content = msg["content"]
            if msg["msg_type"] == "stream":
                self.echo(content["text"])
            elif msg["msg_type"] in ("display_data", "execute_result"):
                self.echo(content["data"].get("text/plain", "") + "\n")
        return super().process_message(msg, cell, cell_index)


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
    """Drop from a notebook, in place, what differs between equal runs; return it."""
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for cell in notebook.cells:
        kept = {k: v for k, v in cell.metadata.items() if k in KEPT_CELL_METADATA}
        cell.metadata = nbformat.from_dict(kept)
        if cell.cell_type == "code" and not cell.source.strip():
            cell.outputs, cell.execution_count = [], None
        for output in cell.get("outputs", ()):
            if output.output_type == "error":
                output.traceback = [_without_places(part) for part in output.traceback]
    return notebook


def _without_places(text: str) -> str:
    """Cut off in a traceback where the course and the packages lie on this machine."""
    folders = {*sysconfig.get_paths().values(), str(paths.ROOT)}
    for folder in sorted(folders, key=len, reverse=True):  # the inner ones first
        text = text.replace(folder + os.sep, "")
    return text


def execute(
    path: Path,
    notebook: NotebookNode | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    on_cell: Callable[[int, int, float], None] | None = None,
    echo: Callable[[str], None] | None = None,
) -> Result:
    """Run all cells of a notebook in a fresh kernel, in the notebook's own folder.

    `notebook` takes the place of the file's content; `environment` is that of the
    kernel, by default the one of the tests. `on_cell(number, of, seconds)` is called
    after each code cell, `echo(text)` with everything that is printed. The file is
    not written. Raises `CourseError` for a cell that fails without the tag
    `raises-exception`, for one that carries the tag and does not fail, and for a
    kernel that dies.
    """
    notebook = read(path) if notebook is None else notebook
    cells = [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
    manager = AsyncKernelManager(kernel_spec_manager=ThisEnvironment())
    client = _Client(notebook, manager, timeout=None, coalesce_streams=True)
    client.echo = echo
    started, peak = time.perf_counter(), 0.0
    with tempfile.TemporaryDirectory(prefix="gpt-by-hand-") as folder:
        if environment is None:
            environment = settings.kernel_environment(ipython_folder=folder)
        here = {"cwd": str(Path(path).resolve().parent), "env": dict(environment)}
        with client.setup_kernel(cleanup_kc=True, stderr=subprocess.DEVNULL, **here):
            for number, cell in enumerate(cells, 1):
                cell_started = time.perf_counter()
                try:
                    _execute_cell(client, notebook, cell, number)
                except CourseError as error:
                    where = f"{shown(path)}, code cell {number} (id {cell.get('id')})"
                    raise CourseError(f"{where} {error}") from None
                peak = max(peak, peak_memory_mb(manager.provisioner.pid))
                if on_cell:
                    on_cell(number, len(cells), time.perf_counter() - cell_started)
    return Result(notebook, time.perf_counter() - started, peak)


def _execute_cell(client, notebook, cell, number) -> None:
    """Run one cell; the `CourseError` of a failure goes on after the cell's name."""
    source = textwrap.indent(cell.source, "    ")
    try:
        client.execute_cell(cell, notebook.cells.index(cell), execution_count=number)
    except CellExecutionError as error:
        raise CourseError(
            f"failed with {error.ename}: {first_line(error.evalue)}\n\n{source}\n\n"
            f"{textwrap.indent(_traceback(cell), '    ')}\n\n"
            f"Mend the cell, or give it the tag {MAY_FAIL} if it is meant to fail."
        ) from None
    except DeadKernelError:
        raise CourseError(
            f"did not finish: {how_it_ended(client.km)}.\n\n{source}\n\n"
            "Close other programs or choose smaller sizes, and run it again."
        ) from None
    tagged = MAY_FAIL in cell.metadata.get("tags", [])
    if tagged and not any(out.output_type == "error" for out in cell.outputs):
        raise CourseError(
            f"carries the tag {MAY_FAIL} but did not fail.\n\n{source}\n\n"
            "Mend the cell, or remove the tag."
        )


def how_it_ended(manager) -> str:
    """Say in words how a kernel's process ended, as far as the system tells.

    `manager` is a kernel manager whose kernel is dead.
    """
    process = getattr(manager.provisioner, "process", None)
    code = process.poll() if process else None
    if code == -getattr(signal, "SIGKILL", 9):
        return "its kernel was killed, most often because memory ran out"
    if code is not None and code < 0:
        return f"its kernel crashed ({signal.Signals(-code).name})"
    return f"its kernel ended (exit code {'unknown' if code is None else code})"


def _traceback(cell) -> str:
    """Return what IPython shows for a cell's error, without its colours."""
    lines = [out.traceback for out in cell.outputs if out.output_type == "error"]
    return COLOUR.sub("", "\n".join(lines[-1])) if lines else ""


def peak_memory_mb(pid: int) -> float:
    """Return the largest resident memory of a live process so far, in 10**6 bytes.

    Linux and Windows keep the peak; elsewhere it is the memory of this moment, so
    that asking after each cell gives a lower bound.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        kibibytes = re.search(r"VmHWM:\s+(\d+) kB", status)
        if kibibytes:
            return int(kibibytes[1]) * 1024 / 1e6
    except OSError:
        pass
    try:
        memory = psutil.Process(pid).memory_info()
    except psutil.Error:
        return 0.0
    return getattr(memory, "peak_wset", memory.rss) / 1e6


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
    for path in _notebooks(targets):
        print(f"{shown(path)}", flush=True)
        try:
            measured |= _refresh_one(path)
        except CourseError as error:
            failures.append(shown(path))
            print(f"course: {error}\nNot saved: {shown(path)}", file=sys.stderr)
    for page in ledger.fill() if measured else ():
        print(f"{shown(page)}: table filled from the ledger", flush=True)
    if failures:
        raise CourseError(
            f"{', '.join(failures)}: not saved, for the reason given above."
        )
    return 0


def _refresh_one(path: Path) -> bool:
    """Execute and save one notebook; tell whether it went into the ledger."""
    notebook = normalise(formatted(read(path)))
    runs.prepare(path, settings.environment_of_tests())
    result = execute(path, notebook, on_cell=_progress)
    write(path, normalise(notebook))
    inside = ledger.inside(path)
    if inside:
        ledger.record(inside, result.seconds, result.peak_mb)
    print(
        f"  saved: {result.seconds:.1f} s, {result.peak_mb:.0f} MB at the most",
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
    if path.suffix == ".py":
        return wait_for([sys.executable, str(path), *arguments])
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
    reader = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
    echo = _Echo()

    def on_cell(number: int, of: int, seconds: float) -> None:
        echo.end_line()
        print(f"[{shown(path)}: cell {number}/{of}, {seconds:.1f} s]", flush=True)

    result = execute(path, environment=reader, on_cell=on_cell, echo=echo)
    inside = ledger.inside(path) or path.name
    copy = paths.runs_dir() / "executed" / inside
    copy.parent.mkdir(parents=True, exist_ok=True)
    write(copy, normalise(result.notebook))
    print(
        f"{shown(path)} ran in {result.seconds:.0f} s and took "
        f"{result.peak_mb:.0f} MB at the most. With its outputs it lies in {copy}"
    )
    return 0


class _Echo:
    """Prints what cells print and knows whether a line is still open."""

    def __init__(self) -> None:
        self.open = False

    def __call__(self, text: str) -> None:
        if text:
            print(text, end="", flush=True)
            self.open = not text.endswith("\n")

    def end_line(self) -> None:
        if self.open:
            print()
        self.open = False


def find(target: str) -> Path:
    """Return the file or folder that a target names, from here or from the root.

    Raises `CourseError` with the closest names that exist if there is none.
    """
    for base in (Path.cwd(), paths.ROOT):
        path = base / target
        if path.exists():
            return path.resolve()
    close = difflib.get_close_matches(str(target), _known_targets(), 3, cutoff=0.5)
    hint = f" Close to it: {', '.join(close)}." if close else ""
    raise CourseError(
        f"There is no chapter, folder or file called {target!r}.{hint} Name a chapter "
        "such as ch02, or a path as seen from here or from the course's folder."
    )


def _known_targets() -> list[str]:
    """Return what may be named: folders and files, by path and by bare name."""
    known = set()
    for file in paths.tree_files():
        inside = file.relative_to(paths.ROOT)
        known |= {p.as_posix() for p in (inside, *inside.parents)} | {inside.name}
    return sorted(known - {"."})


def main_notebook(folder: Path) -> Path:
    """Return the notebook that stands for a chapter or folder."""
    code = folder / "01_main-chapter-code"
    code = code if code.is_dir() else folder
    named = code / f"{folder.name}.ipynb"
    if named.is_file():
        return named
    there = sorted(p for p in code.glob("*.ipynb") if p.stem != "exercise-solutions")
    if len(there) == 1:
        return there[0]
    if there:
        names = ", ".join(shown(p) for p in there)
        raise CourseError(f"{shown(folder)} has several notebooks; name one: {names}.")
    raise CourseError(f"{shown(folder)} has no notebook to run; name a file in it.")


def _notebooks(targets: Sequence[str]) -> list[Path]:
    """Return the notebooks at or below the targets; there must be one."""
    places = [find(target) for target in targets] or [paths.ROOT]
    found = below(places)
    if not found:
        raise CourseError(
            f"There is no notebook in {', '.join(map(shown, places))}. Name a chapter "
            "such as ch02, or a file ending in .ipynb."
        )
    return found


def below(places: Sequence[Path]) -> list[Path]:
    """Return the notebooks at or below files and folders, each once, in order."""
    tree = paths.tree_files() if any(place.is_dir() for place in places) else []
    inside = [f for f in tree for place in places if f.is_relative_to(place)]
    files = {file for file in [*places, *inside] if file.suffix == ".ipynb"}
    return sorted(files)


def shown(path: Path) -> str:
    """Return a path as a reader types it: relative to the course where it can be."""
    path = Path(path)
    if path.is_absolute() and path.is_relative_to(paths.ROOT):
        return path.relative_to(paths.ROOT).as_posix()
    return str(path)


def first_line(error: object) -> str:
    """Return the first line of a message, for use inside a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
