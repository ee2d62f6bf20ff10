"""Programs as a reader starts them: with nothing set for the course, from anywhere."""

from __future__ import annotations

import os
import subprocess

from course import paths

_SET_BY_OTHERS = (
    *("COURSE_", "PYTEST_", "PYTHON", "PIP_", "JUPYTER", "TIKTOKEN_", "VIRTUAL_ENV"),
    *("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"),
)
Place = str | os.PathLike[str]


def variables(links: Place = "", **more: str) -> dict[str, str]:
    """Return the environment of somebody who has set nothing for the course.

    Only the cache is that of the run in which the test takes place, and of processes
    there is one, because others run beside it. pip finds what lies at `links`, a folder
    or an address, and nothing else.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_SET_BY_OTHERS)}
    own = {
        "COURSE_CACHE": str(paths.cache_dir()),
        "COURSE_PROCESSES": "1",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_CACHE_DIR": "1",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": os.fspath(links),
        "PIP_RETRIES": "0",
        "PIP_TIMEOUT": "90",  # or it would give up on a file that a test holds back
    }
    return kept | own | more


def run(
    *command: Place, cwd: Place = os.sep, links: Place = "", **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, from the root of the disk, and keep what it says."""
    return subprocess.run(
        [os.fspath(part) for part in command],
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        cwd=cwd,
        env=variables(links, **more),
        timeout=180,
        check=False,
    )


def right(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a program printed that has to end well."""
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
