"""The command `read`: the whole course as pages in the browser, without a kernel.

The pages are made by ``docs/build_site.py`` in an environment that has Sphinx, which is
small and knows nothing of PyTorch, and served to this machine only.  Standard library
only: what this module itself does needs no environment.
"""

import contextlib
import os
import subprocess
import threading
import webbrowser
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from course import CourseError, command_line, folders, lab, locks, paths, settings
from course.installation import reading_environment

BUILDER = paths.ROOT / "docs" / "build_site.py"
FIRST_PAGE = "README.html"
FIRST_PAGE_JA = "README.ja.html"
HOST = "127.0.0.1"  # nobody but this machine
PORT = 8890  # and the next ones, where others have it


class _Pages(SimpleHTTPRequestHandler):
    """The files of the site, without a line in the terminal for each."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a reader's terminal is no log."""

    def end_headers(self) -> None:
        """Let the browser ask again: pages change when the course does."""
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()


class _Server(ThreadingHTTPServer):
    allow_reuse_address = os.name != "nt"  # there it would share the port with others
    daemon_threads = True


def first_page(target: str | None) -> str:
    """Return the page to open for what was asked for: a chapter, or none."""
    if not target:
        return FIRST_PAGE_JA if lab.reads_japanese() else FIRST_PAGE
    known = folders.read_all(paths.ROOT)
    place = target.replace("\\", "/").removeprefix("./").rstrip("/")
    if place in known and (paths.ROOT / place / "README.md").is_file():
        one = known[place]
        main = next((n for n in one.contents if n.endswith(".ipynb")), None)
        if main and one.is_chapter:
            return str(Path(one.place(main)).with_suffix(".html").as_posix())
        return f"{place}/{FIRST_PAGE}"
    file = paths.ROOT / place
    if file.suffix in (".md", ".ipynb") and file in paths.tree_files():
        return Path(place).with_suffix(".html").as_posix()
    chapters = ", ".join(p for p in folders.reading_order(known) if p in known)
    raise CourseError(
        f"The course has no page {target}.{command_line.meant(place, known)} Name a "
        f"chapter ({chapters}), a folder such as ch04/03_kv-cache, or a notebook with "
        "its path; or nothing, for the start."
    )


def make_pages() -> Path:
    """Build the pages, or what has changed of them; return their folder."""
    out = paths.runs_dir() / "site"
    locks.try_writing(out, "COURSE_RUNS")
    python = reading_environment.ensure()
    done = subprocess.run(
        [str(python), str(BUILDER), "--out", str(out)],
        env=settings.own_environment(),
        check=False,
    )
    if done.returncode:
        raise CourseError(
            "The pages could not be made; the lines above say why. If you changed a "
            f"page or notebook, look there first. Deleting {out} starts afresh."
        )
    return out / "html"


def serve(pages: Path, port: int | None) -> _Server:
    """Return a server of the pages; without a `port`, at the first that is free."""
    handler = partial(_Pages, directory=str(pages))
    for number in [port] if port else range(PORT, PORT + 50):
        try:
            return _Server((HOST, number), handler)
        except (OSError, OverflowError) as problem:
            said = getattr(problem, "strerror", None) or str(problem)
    if port:
        raise CourseError(
            f"Port {port} cannot be used ({said}). Name another one after --port, or "
            "leave --port out: then a free one is found."
        )
    raise CourseError(f"No port from {PORT} on is free ({said}).")


@contextlib.contextmanager
def serving(pages: Path, port: int | None) -> Iterator[_Server]:
    """Serve the pages beside other work until the block ends."""
    with serve(pages, port) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def read(
    target: str | None = None, port: int | None = None, browser: bool = True
) -> int:
    """Make the pages, serve them until Ctrl-C, open the browser; return 0."""
    page = first_page(target)
    server = serve(make_pages(), port)
    address = f"http://{HOST}:{server.server_port}/{page}"
    print(f"ready: {address}  (Ctrl-C stops it)", flush=True)
    if browser and lab.has_display():
        webbrowser.open(address)
    with server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    print("\nStopped.")
    return 0
