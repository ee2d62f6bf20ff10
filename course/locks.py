"""One process at a time, nothing half-done, a sentence for what cannot be written."""

from __future__ import annotations

import contextlib
import errno
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from course import CourseError

NOTICE = 3.0  # seconds of waiting for another process before saying so


@contextlib.contextmanager
def one_at_a_time(lock: Path, work: str) -> Iterator[None]:
    """Let one process go on; the others wait, and say for what: `work`.

    `lock` is a file in a folder that is there. The operating system releases it when
    its process ends, however that happens.
    """
    from filelock import FileLock, Timeout

    held = FileLock(lock)
    try:
        until_done = held.acquire(timeout=NOTICE)
    except Timeout:
        text = f"course: waiting for another process that is {work} ..."
        print(text, file=sys.stderr, flush=True)
        until_done = held.acquire()
    with until_done:
        yield


@contextlib.contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """Make `folder` for what is not finished, empty; nothing stays under its name."""
    shutil.rmtree(folder, ignore_errors=True)  # from a process that was killed
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def writing(place: Path, variable: str, by_hand: str = "") -> Iterator[None]:
    """Put a folder that cannot be written, and a full disk, into words.

    `variable` is the setting that moves the folder; `by_hand` ends the message.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise CourseError(
            f"{place} cannot be written: {reason(error)}. "
            f"{'Free some space, or set' if full else 'Set'} {variable} to a folder "
            f"that you may write, and run the same again.{by_hand}"
        ) from error


def try_writing(folder: Path, variable: str) -> None:
    """Raise `CourseError` before some work if its results could not be written."""
    with writing(folder, variable):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"it can")


def reason(error: OSError) -> str:
    """Return what the operating system says, without number and file name."""
    return error.strerror or str(error)
