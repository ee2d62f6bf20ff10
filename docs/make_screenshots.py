"""Make the screenshot of the running JupyterLab: one command, a real browser.

    python3 -m course run docs/make_screenshots.py

Starts the course in a copy of the tree as a reader does, opens the address that it
prints in headless chromium, follows the first chapter's link, runs a few cells, and
saves `lab-chapter.png` beside this script. A test takes the same walk wherever there
is a browser.

Needs a chromium or Chrome on this machine, and the package playwright, which
`python3 -m course test` installs.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from course import paths
from course.installation import environment
from course.testing.tree_copies import copy_tree
from real_browser import WAIT, page, problem

HERE = Path(__file__).resolve().parent
PICTURE = "lab-chapter.png"
READY = "ready after"


def _free_port():
    """A port of its own, since the usual one may be a reader's or another test's."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def lab(tree: Path, home: Path) -> Iterator[str]:
    """Start `python -m course lab --no-browser` in `tree`; yield its address."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("JUPYTER")}
    for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"):
        variables[f"JUPYTER_{name}"] = str(home / name.lower())
    python = environment.python_of(tree / paths.ENV.name)
    process = subprocess.Popen(
        [python, "-m", "course", "lab", "--no-browser", "--port", str(_free_port())],
        cwd=tree,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    said = []
    try:
        watchdog = threading.Timer(WAIT / 1000, process.kill)
        watchdog.start()
        for line in process.stdout:
            said.append(line)
            if line.startswith(READY):
                break
        watchdog.cancel()
        if not said or not said[-1].startswith(READY):
            raise RuntimeError(f"JupyterLab did not start:\n{''.join(said)}")
        # Its later lines must not fill the pipe, or it would stop there.
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield next(word for word in said[-1].split() if word.startswith("http"))
    finally:
        process.send_signal(signal.SIGINT if os.name != "nt" else signal.SIGTERM)
        process.wait(timeout=WAIT / 1000)


class Reader:
    """Somebody who sits in front of JupyterLab and clicks."""

    def __init__(self, opened: Any):
        self.page = opened

    def readme(self) -> str:
        """Wait for the rendered README; return its title."""
        title = self.page.locator(".jp-MarkdownViewer h1").first
        title.wait_for()
        self.page.locator(".jp-MarkdownViewer table").first.wait_for()
        return title.inner_text().strip("\u00b6 \n")

    def open_first_chapter(self) -> str:
        """Click the first notebook in the table of contents; return its address."""
        contents = self.page.locator(".jp-MarkdownViewer table:has-text('Ch 1:')").first
        link = contents.locator("a[href*='.ipynb']").first
        link.scroll_into_view_if_needed()
        link.click()
        self.page.locator(".jp-NotebookPanel .jp-Notebook").first.wait_for()
        # Until the kernel is there, keys would be lost.
        self.page.locator(
            ".jp-NotebookPanel .jp-Notebook-ExecutionIndicator[data-status='idle']"
        ).wait_for()
        return self.page.url.partition("?")[0]

    def cells(self) -> Any:
        """Return the code cells of the open notebook."""
        return self.page.locator(".jp-NotebookPanel .jp-CodeCell")

    def run_cells(self, count: int) -> list[str]:
        """Run the first cells with Shift+Enter until `count` code cells are done.

        Returns the prompts beside them, such as "[1]:".
        """
        notebook = self.page.locator(".jp-NotebookPanel .jp-Notebook").first
        notebook.locator(".jp-Cell").first.click()
        done = 0
        while done < count:
            done += self.run_active_cell()
        prompts = [f"[{number}]:" for number in range(1, count + 1)]
        for prompt in prompts:
            self.page.locator(f".jp-NotebookPanel >> text='{prompt}'").first.wait_for()
        return prompts

    def run_active_cell(self) -> bool:
        """Press Shift+Enter once; tell whether that ran code.

        It waits until the next cell is the active one: a slow page must not be given
        keys for cells that it has not reached. Keys that a page lost while it was
        still being built are pressed again.
        """
        from playwright.sync_api import TimeoutError as TooLate

        selector = ".jp-NotebookPanel .jp-Cell.jp-mod-active"
        active = self.page.locator(selector).first
        place = active.get_attribute("data-windowed-list-index")
        is_code = "jp-CodeCell" in (active.get_attribute("class") or "")
        wait_for_next = partial(
            self.page.wait_for_function,
            "([selector, place]) => { const cell = document.querySelector(selector);"
            " return cell && cell.dataset.windowedListIndex !== place; }",
            arg=[selector, place],
        )
        self.page.keyboard.press("Shift+Enter")
        try:
            wait_for_next(timeout=WAIT / 4)
        except TooLate:
            self.page.keyboard.press("Shift+Enter")
            wait_for_next()
        return is_code

    def errors(self, count: int) -> list[str]:
        """Return the errors that the first code cells show (a later one is meant)."""
        kind = "[data-mime-type='application/vnd.jupyter.{}']"
        kinds = [kind.format(name) for name in ("error", "stderr")]
        cells = [self.cells().nth(number) for number in range(count)]
        found = [cell.locator(",".join(kinds)).all_inner_texts() for cell in cells]
        return [text for texts in found for text in texts]

    def show_figure(self) -> Any:
        """Scroll to the first figure of the open notebook."""
        notebook = self.page.locator(".jp-NotebookPanel .jp-WindowedPanel-outer").first
        figure = self.page.locator(".jp-NotebookPanel .jp-OutputArea-output img").first
        for _ in range(40):
            if figure.count():
                break
            notebook.evaluate("element => element.scrollBy(0, 600)")
            self.page.wait_for_timeout(150)
        figure.scroll_into_view_if_needed()
        figure.evaluate("element => element.scrollIntoView({block: 'center'})")
        self.page.wait_for_timeout(500)
        return figure


def shoot(folder: Path) -> Path:
    """Walk through JupyterLab and save the picture in `folder`; return its path."""
    with tempfile.TemporaryDirectory() as place:
        tree = copy_tree(Path(place))
        with lab(tree, Path(place)) as address, page(address) as opened:
            reader = Reader(opened)
            reader.readme()
            reader.open_first_chapter()
            reader.run_cells(1)
            reader.show_figure()
            opened.screenshot(path=folder / PICTURE)
    return folder / PICTURE


def main(arguments: list[str] | None = None) -> int:
    """Make the picture; return 0, or 1 with a sentence where that is impossible."""
    parser = argparse.ArgumentParser(description="Make screenshots of JupyterLab.")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for it")
    options = parser.parse_args(arguments)
    reason = problem()
    if reason:
        print(f"course: {reason}", file=sys.stderr)
        return 1
    picture = shoot(options.out)
    print(f"{picture.name}: {picture.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
