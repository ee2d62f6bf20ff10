"""A pytest plugin that makes nbval's strict comparison practical.

Loaded by the root's conftest.py; acts when pytest is given `--nbval`. What it changes:

- decimals are compared with the tolerance of `course.running.comparison`; stderr and
  HTML are not compared, images only by their presence;
- a cell that was never run fails instead of being skipped silently;
- a kernel that dies is noticed within seconds, not at the cell's time limit;
- a cell tagged `raises-exception` must raise;
- `plt.plot(x);` prints nothing, as in JupyterLab;
- cells after one that failed to run are skipped: they could only repeat its failure;
- each notebook gets one more item, its budget of seconds and memory;
- what takes long comes first, so that at the end no process waits for another.

The classes are subclasses of nbval's. test_planted_defects.py plants each defect that
they find, so that an update of nbval which moves a name is noticed.
"""

from __future__ import annotations

import difflib
import functools
import subprocess
import tempfile
import textwrap
import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from queue import Empty

import pytest
from nbformat import NotebookNode
from nbval import kernel as nbval_kernel
from nbval import plugin as nbval_plugin

from course import paths, runs, settings
from course.running import budgets, comparison, kernels, targets

NOT_COMPARED = ("text/html", "application/vnd.jupyter.widget-view+json")
IMAGES = ("image/png", "image/jpeg", "image/svg+xml")
POLL_SECONDS = 1.0
START_SECONDS = 120
OUTPUT_SECONDS = 60.0  # for a cell's outputs after its end, and for an interruption
A_FILE_OF_TESTS = 60.0  # seconds, as which it counts when the order is made


class KernelDied(Exception):
    """The process of a kernel is gone; the text says how, as far as it is known."""


class Kernel(nbval_kernel.RunningKernel):
    """A kernel of the running Python, with the settings of the tests."""

    def __init__(self, folder: str) -> None:
        self.ipython_folder = tempfile.TemporaryDirectory(prefix="gpt-by-hand-")
        start = functools.partial(
            nbval_kernel.start_new_kernel,
            startup_timeout=START_SECONDS,
            kernel_name=nbval_kernel.CURRENT_ENV_KERNEL_NAME,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=settings.kernel_environment(self.ipython_folder.name),
        )
        try:
            self.km, self.kc = start()
        except RuntimeError:  # one of its ports was taken before it could listen there
            self.km, self.kc = start()
        self._ensure_iopub_up()

    def execute_cell_input(
        self, cell_input: str, allow_stdin: bool | None = None
    ) -> str:
        # nbval runs cells without history, and then IPython prints the value of `x;`.
        return self.kc.execute(
            cell_input, store_history=True, allow_stdin=allow_stdin, stop_on_error=False
        )

    def await_reply(self, msg_id: str, timeout: float | None = None) -> None:
        end = time.monotonic() + (timeout or float("inf"))
        while True:
            wait = max(0.0, min(POLL_SECONDS, end - time.monotonic()))
            try:
                return super().await_reply(msg_id, timeout=wait)
            except Empty:
                if not self.is_alive():
                    raise KernelDied(kernels.how_it_ended(self.km)) from None
                if time.monotonic() >= end:
                    raise

    def stop(self) -> None:
        if hasattr(self, "km"):  # nbval stops a kernel that does not answer itself
            super().stop()
        self.ipython_folder.cleanup()


class NotebookFile(nbval_plugin.IPyNbFile):
    """A notebook: its code cells in order, in one kernel, then its budget."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.label = targets.shown(self.path)
        self.budget = budgets.budget(self.label)
        self.seconds = self.budget.seconds + 60 * runs.minutes(self.path)
        self.taken = kernels.Taken()
        self.broken = ""  # names the cell after which nothing can run

    def collect(self) -> Iterator[pytest.Item]:
        for cell in super().collect():
            yield NotebookCell.from_parent(
                self,
                name=cell.name,
                cell_num=cell.cell_num,
                cell=cell.cell,
                options=cell.options,
            )
        yield BudgetItem.from_parent(self, name="budget")

    def setup(self) -> None:
        runs.prepare(self.path)  # what a script makes is no part of the budget
        self.kernel = Kernel(str(self.path.parent))

    def skip_what_follows_a_failure(self) -> None:
        if self.broken:
            pytest.skip(f"{self.broken} failed before it")

    def teardown(self) -> None:
        if self.kernel is not None:  # a dead one too: it has left channels open
            self.kernel.stop()


class NotebookCell(nbval_plugin.IPyNbCell):
    """One code cell: executed, its outputs compared with the stored ones."""

    differs = False

    @property
    def label(self) -> str:
        number = self.cell.execution_count or self.cell_num + 1
        return f"{self.parent.label}, code cell {number} (id {self.cell.get('id')})"

    def setup(self) -> None:
        self.parent.skip_what_follows_a_failure()

    def runtest(self) -> None:
        if self.cell.source.strip() and self.cell.execution_count is None:
            self.parent.broken = self.label  # or a stripped notebook fails 50 times
            self.raise_cell_error(
                "was never run, so there is no output to compare with; run "
                f"`python3 -m course refresh {self.parent.label}`"
            )
        self.config.option.nbval_cell_timeout = self.parent.budget.cell_limit
        self.output_timeout = OUTPUT_SECONDS
        try:
            super().runtest()
        except KernelDied as death:
            self.parent.broken = self.label
            self.raise_cell_error(f"did not finish: {death}")
        except Exception:
            if not self.differs:
                self.parent.broken = self.label
            raise
        finally:
            self.parent.taken.note(self.parent.kernel.km)
        raised = any(out.output_type == "error" for out in self.test_outputs or ())
        if self.options["check_exception"] and not raised:
            self.raise_cell_error(
                "carries the tag raises-exception but did not fail; fix the cell or "
                "remove the tag"
            )

    def compare_outputs(
        self,
        test: Sequence[NotebookNode],
        ref: Sequence[NotebookNode],
        skip_compare: object = None,
    ) -> bool:
        """Compare new outputs with stored ones; say the difference in lines."""
        new, stored = _by_kind(test), _by_kind(ref)
        self.comparison_traceback = []
        for kind in [*stored, *(kind for kind in new if kind not in stored)]:
            self.comparison_traceback += _differences(
                kind, new.get(kind, []), stored.get(kind, [])
            )
        self.differs = bool(self.comparison_traceback)
        return not self.differs

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException]) -> str:
        """Say which cell failed and how; the first line is a whole sentence."""
        error = excinfo.value
        if not isinstance(error, nbval_plugin.NbCellError):
            return f"{self.label}: {error}\n\n{excinfo.getrepr(style='short')}"
        source = textwrap.indent(self.cell.source, "    ")
        said = self._sentence(error)
        details = textwrap.indent((error.inner_traceback or "").strip("\n"), "    ")
        return "\n\n".join(part for part in (said, source, details) if part.strip())

    def _sentence(self, error: BaseException) -> str:
        if self.differs:
            return (
                f"{self.label} does not print what is stored. If the new output is "
                f"right, run `python3 -m course refresh {self.parent.label}`."
            )
        if self.parent.timed_out:
            limit = f"{self.parent.budget.cell_limit:g} s"
            return f"{self.label} was stopped after {limit}. Make its sizes smaller."
        raised = [out for out in self.test_outputs or () if out.output_type == "error"]
        if raised and not self.options["check_exception"]:
            message = kernels.first_line(raised[-1].evalue)
            return f"{self.label} failed with {raised[-1].ename}: {message}"
        return f"{self.label} {error}."

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, self.label


class BudgetItem(pytest.Item):
    """Fails when its notebook took more than twice its seconds, or too much memory."""

    parent: NotebookFile

    def setup(self) -> None:
        self.parent.skip_what_follows_a_failure()

    def runtest(self) -> None:
        label, taken = self.parent.label, self.parent.taken
        allowed = self.parent.budget
        smaller = "Make its quick sizes smaller."
        if taken.seconds > allowed.most_seconds:
            pytest.fail(
                f"{label} took {taken.seconds:.1f} s of the processor; planned are "
                f"{allowed.seconds:g} s and at most {allowed.most_seconds:g} s are "
                f"allowed. {smaller}",
                pytrace=False,
            )
        if taken.peak_mb > allowed.memory_mb:
            pytest.fail(
                f"{label} took {taken.peak_mb:.0f} MB of memory; at most "
                f"{allowed.memory_mb:g} MB are allowed. {smaller}",
                pytrace=False,
            )

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"{self.parent.label}, budget"


def _by_kind(outputs: Sequence[NotebookNode]) -> dict[str, list[str]]:
    """Return the texts to compare by kind: stdout, text/plain, the name of an error.

    Of an image only the place is kept, of an error also its message.
    """
    found = defaultdict(list)
    for output in outputs:
        if output.output_type == "stream":
            if output.name != "stderr":
                found[output.name].append(output.text)
        elif output.output_type == "error":
            found["error"].append(f"{output.ename}: {output.evalue}")
        else:
            for kind, content in output.data.items():
                if kind not in NOT_COMPARED:
                    text = f"({kind})" if kind in IMAGES else str(content)
                    found[kind].append(text)
    return found


def _differences(kind: str, new: list[str], stored: list[str]) -> list[str]:
    """Return the lines in which outputs of one kind differ, none if they are equal."""
    if len(new) != len(stored):
        return [
            f"{kind}: {len(stored)} stored, {len(new)} now",
            *(f"- {text}" for text in stored),
            *(f"+ {text}" for text in new),
        ]
    lines = []
    for now, then in zip(new, stored):
        if not comparison.same_text(now, then):
            diff = difflib.ndiff(then.splitlines(), now.splitlines())
            lines += [f"{kind} (- stored, + now):", *(line.rstrip() for line in diff)]
    return lines


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(
    file_path: Path, parent: pytest.Collector
) -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Put this plugin's notebook in the place of nbval's; translations are not run."""
    collected = yield
    if paths.is_translation(file_path):
        return []
    return [
        NotebookFile.from_parent(parent, path=file_path)
        if type(found) is nbval_plugin.IPyNbFile
        else found
        for found in collected
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long notebooks, with what is made for them, first and short ones last."""
    items.sort(key=_seconds, reverse=True)


def _seconds(item: pytest.Item) -> float:
    notebook = item.getparent(NotebookFile)
    return notebook.seconds if notebook else A_FILE_OF_TESTS
