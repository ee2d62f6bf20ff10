"""A notebook's process: what it has taken, and how it ended.

Both engines that run notebooks use this: nbclient's for `run` and `refresh`
(`course.running.notebooks`), nbval's for the tests (`course.running.nbval_plugin`).
"""

from __future__ import annotations

import contextlib
import re
import signal
from dataclasses import dataclass
from pathlib import Path

import psutil
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager


class ThisEnvironment(KernelSpecManager):
    """Knows one kernel, that of the running Python, whatever else is registered."""

    def _kernel_dirs_default(self) -> list[str]:
        return []


@dataclass
class Taken:
    """What a kernel has taken so far: all that `note` has seen of it.

    `seconds` are those of the processor, for the kernel's start and all cells, so that
    a machine with other work to do says the same; `peak_mb` is the largest resident
    memory in megabytes of 10**6 bytes.
    """

    seconds: float = 0.0
    peak_mb: float = 0.0

    def note(self, manager: KernelManager) -> None:
        """Look at the kernel of a manager again; of a dead one the last note stays."""
        pid = getattr(manager.provisioner, "pid", 0)
        self.seconds = max(self.seconds, cpu_seconds(pid))
        self.peak_mb = max(self.peak_mb, peak_memory_mb(pid))


def how_it_ended(manager: KernelManager | None) -> str:
    """Say in words how a kernel's process ended, as far as the system tells.

    `manager` is a kernel manager whose kernel is dead.
    """
    process = getattr(manager and manager.provisioner, "process", None)
    code = process.poll() if process else None
    if code == -getattr(signal, "SIGKILL", 9):
        return "its kernel was killed, most often because memory ran out"
    if code is not None and code < 0:
        return f"its kernel crashed ({signal.Signals(-code).name})"
    return f"its kernel ended (exit code {'unknown' if code is None else code})"


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a live process and its children have taken.

    User and system time, so that neither waiting nor other work on the machine counts.
    Children that have ended count on POSIX, those that are alive everywhere.
    """
    total = 0.0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # gone: its parent has its time
                # User, system, and the same of children that have ended.
                total += sum(member.cpu_times()[:4])
    return total


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


def first_line(error: object) -> str:
    """Return the first line of a message, for use inside a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
