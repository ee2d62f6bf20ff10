"""One set-up of an environment at a time, whichever process began it.

Standard library only: this is needed before anything is installed.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from course import CourseError
from course.installation.pip_runs import Place, say

LOCK = "gpt-by-hand.lock"


def _try_lock(file: TextIO) -> bool:
    """Lock an open file for this process; False if another process holds it.

    The operating system drops the lock when its holder ends, however it ends, so a
    lock can never be left behind.
    """
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(1 << 20)  # beyond the text, which others must be able to read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system that knows no locks: go on without
        return True
    return True


def _open_lock(prefix: Place) -> TextIO:
    try:
        Path(prefix).mkdir(parents=True, exist_ok=True)
        return open(Path(prefix) / LOCK, "a+", encoding="utf-8")
    except FileExistsError:
        raise CourseError(
            f"{prefix} is a file, and the environment's folder must go there. "
            "Move the file away."
        ) from None
    except OSError as problem:
        raise CourseError(
            f"The environment cannot be made: {prefix} is not writable "
            f"({problem.strerror}). Put the course where you may write."
        ) from None


@contextlib.contextmanager
def held(prefix: Place) -> Iterator[TextIO]:
    """Hold the set-up lock of the environment at `prefix`; yield its file.

    On POSIX pip inherits the file and with it the lock: if only this process is killed,
    the next set-up waits until the orphaned pip has ended instead of disturbing it.
    """
    with _open_lock(prefix) as file:
        told = False
        while not _try_lock(file):
            if not told:
                file.seek(0)
                holder = f" (process {file.read(20)})"
                say(f"Another set-up of this course is running{holder}; waiting.")
                told = True
            time.sleep(0.3)
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield file
