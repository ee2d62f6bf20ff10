"""Running code that nobody has read: little time, little memory, one empty folder.

A child of a process that has imported everything goes into a folder of its own, gives
up the network, other programs and processes, and writing anywhere else, and calls a
function. Python's audit hooks say so in words; on Linux the kernel holds the same
(Landlock, a network of its own), whatever the code does to Python. The parent looks at
time and memory, and ends the whole group of processes. POSIX only.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from course import guard

LOOK = 0.02  # seconds between two looks
SHORT = 0.5  # seconds in which nobody looks for processes that a child has started
LARGEST_FILE = 100 * 10**6  # bytes
MEMORY = 2 * 10**9  # bytes beyond what a child has at first
PATIENCE = 3  # times as long as the processor may take, by the clock on the wall


_RUNNING: set[int] = set()  # children that have not ended

# Files outside that may be written: nothing, and what measures a process's own memory.
_OUTSIDE = (os.devnull, "/proc/self/clear_refs")


class NotWhileGrading(RuntimeError):
    """Code wanted to do what it may not do here."""


@dataclass
class Ended:
    """How a child ended: with what the function returned, or with `why` it did not."""

    result: Any = None
    why: str = ""


@dataclass
class Child:
    """A running child, and how many seconds of the processor it may take."""

    pid: int
    pipe: int
    folder: Path
    seconds: float
    at_first: int = 0  # bytes
    began: float = field(default_factory=time.monotonic)

    def poll(self) -> Ended | None:
        """Return how it ended, None while it runs; what takes too much is ended."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        why = "" if pid else self._too_much()
        if not (pid or why):
            return None
        self.kill()  # of its group, whatever is left
        if not pid:
            status = os.waitpid(self.pid, 0)[1]
        _RUNNING.discard(self.pid)
        _end_orphans()
        with os.fdopen(self.pipe, "rb") as file:
            said = file.read()
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(ValueError):
            if said and not why:
                return Ended(result=json.loads(said))
        return Ended(why=why or self._ending(os.waitstatus_to_exitcode(status)))

    def _too_much(self) -> str:
        taken = time.monotonic() - self.began
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            if taken > SHORT and process.children():
                return "refused: it starts other processes"
            used = process.memory_info().rss
            self.at_first = self.at_first or used
            if used > self.at_first + MEMORY:
                return f"out of memory: it takes more than {MEMORY / 1e9:.0f} GB"
        if taken > PATIENCE * self.seconds:
            return self._ending(-signal.SIGXCPU)
        return ""

    def _ending(self, code: int) -> str:
        if code == -signal.SIGXCPU:
            return f"out of time: it takes more than {self.seconds:.0f} s"
        if code == -signal.SIGKILL:
            return "out of memory or time: the system ended it"
        if code < 0:
            return f"crashed: {signal.Signals(-code).name}"
        return f"ended: the code ends the program itself (exit code {code})"

    def kill(self) -> None:
        """End the child with its group, and who has left the group."""
        with contextlib.suppress(psutil.Error):
            others = psutil.Process(self.pid).children(recursive=True)
            for one in others:
                one.kill()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def start(function: Callable[[], Any], seconds: float, place: Path) -> Child:
    """Call a function in a child process; what it returns has to be JSON.

    `place` is a folder for throw-away folders. The calling process must have one
    thread only.
    """
    folder = Path(tempfile.mkdtemp(dir=place))
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_ADOPT, 1, 0, 0, 0)
    pid = os.fork()
    if pid:
        _RUNNING.add(pid)
        os.close(writing)
        return Child(pid, reading, folder, seconds)
    try:
        os.setsid()
        os.close(reading)
        _enter(folder, seconds)
        os.write(writing, json.dumps(function()).encode())
    finally:
        os._exit(1)  # no handler of the parent's runs, no thread is waited for


def _end_orphans() -> None:
    """End what has outlived the child that started it.

    On Linux such a process becomes this one's child. It may have left its group, but
    not lost the mark that it may gain no privileges.
    """
    for one in psutil.Process().children():
        with contextlib.suppress(OSError, psutil.Error):
            status = Path(f"/proc/{one.pid}/status").read_text(encoding="ascii")
            if one.pid not in _RUNNING and "NoNewPrivs:\t1" in status:
                for each in (*one.children(recursive=True), one):
                    each.kill()
                os.waitpid(one.pid, 0)


# --- In the child ---------------------------------------------------------------------


def _enter(folder: Path, seconds: float) -> None:
    os.chdir(folder)
    places = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "MPLCONFIGDIR")
    os.environ |= dict.fromkeys(places, str(folder))
    tempfile.tempdir = None
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    _limit(resource.RLIMIT_CPU, int(seconds) + 1, int(seconds) + 2)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, LARGEST_FILE)
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        data = next(line for line in status.splitlines() if line.startswith("VmData"))
        _limit(resource.RLIMIT_DATA, int(data.split()[1]) * 1024 + MEMORY)
        _shut_in(folder)
    guard.install()
    sys.addaudithook(_Hook(folder))


def _limit(kind: int, size: int, hard: int | None = None) -> None:
    """Set what the process is told of first, and what ends it."""
    most = resource.getrlimit(kind)[1]
    sizes = [size, size if hard is None else hard]
    if most != resource.RLIM_INFINITY:
        sizes = [min(one, most) for one in sizes]
    resource.setrlimit(kind, (sizes[0], sizes[1]))


# Landlock's names for ways of changing files, by the version that brought them.
_WRITES = {1: 0b1111111110010, 2: 1 << 13, 3: 1 << 14}
_RUN, _ON_A_FILE, _SIGNALS = 1, 0b10 | 1 << 14, 0b10
_CREATE, _ADD, _RESTRICT = 444, 445, 446  # system calls, the same on all machines
_ADOPT = 36  # processes whose parent has ended
_NO_NEW_PRIVILEGES, _NEW_USER, _NEW_NET = 38, 0x10000000, 0x40000000


def _shut_in(folder: Path) -> None:
    """Let the kernel forbid the network, programs, and writing outside of a folder.

    What a kernel cannot do is left to the hooks.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_NET):  # only the administrator may, or who is one to himself
        libc.unshare(_NEW_USER | _NEW_NET)
    version = libc.syscall(_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return
    writes = sum(bits for since, bits in _WRITES.items() if since <= version)
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = struct.pack("=QQQ", writes | _RUN, 0, _SIGNALS)[:size]
    ruleset = libc.syscall(_CREATE, rules, ctypes.c_size_t(size), 0)
    for place in (folder, *_OUTSIDE):
        allowed = writes & _ON_A_FILE if place in _OUTSIDE else writes
        opened = os.open(place, os.O_PATH)
        libc.syscall(_ADD, ruleset, 1, struct.pack("=Qi", allowed, opened), 0)
        os.close(opened)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    libc.syscall(_RESTRICT, ruleset, 0)
    os.close(ruleset)


class _Hook:
    """The audit hook: raises `NotWhileGrading` for what the code may not do."""

    # Events of the interpreter, with the places of the paths among their arguments.
    FIRST = (
        *("os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.chown"),
        *("os.utime", "os.setxattr", "os.removexattr", "shutil.rmtree"),
        *("os.rename", "os.link", "shutil.move"),
    )
    SECOND = ("os.rename", "os.link", "shutil.move", "os.symlink")
    NEVER = (
        *("os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn"),
        *("os.system", "subprocess.Popen", "os.kill", "os.killpg"),
    )
    CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def __init__(self, folder: Path) -> None:
        self.inside = os.path.join(os.path.realpath(folder), "")

    def __call__(self, event: str, arguments: Sequence[Any]) -> None:
        if event in self.NEVER:
            raise NotWhileGrading(f"{event} is not allowed while an exercise is graded")
        if event in self.FIRST or (event == "open" and self._changes(arguments[2])):
            self._refuse(arguments[0], arguments)
        if event in self.SECOND:
            self._refuse(arguments[1], arguments)

    def _changes(self, flags: Any) -> bool:
        return isinstance(flags, int) and bool(flags & self.CHANGES)

    def _refuse(self, place: Any, arguments: Sequence[Any]) -> None:
        if isinstance(place, int) or place is None:  # a file that is open already
            return
        path = os.fsdecode(place)
        opened = [n for n in arguments[1:] if isinstance(n, int) and n > 2]
        if opened and not os.path.isabs(path):  # seen from a folder that is open
            with contextlib.suppress(OSError):
                path = os.path.join(os.readlink(f"/proc/self/fd/{opened[-1]}"), path)
        real = os.path.realpath(path)
        if path not in _OUTSIDE and not real.startswith(self.inside):
            raise NotWhileGrading(
                f"writing or deleting {path} is not allowed while an exercise is graded"
            )
