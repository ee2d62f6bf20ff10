"""What this machine is, in the words that tables of measurements use."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import sys
from pathlib import Path


def machine() -> str:
    """Return this machine in words, such as "2 cores, AMD EPYC, 24 GB, Linux"."""
    count, (total, _) = cores(), memory()
    parts = [
        f"{count} core{'s' if count > 1 else ''}",
        _processor(),
        f"{total / 2**30:.0f} GB" if total else "",
        platform.system().replace("Darwin", "macOS"),
    ]
    return ", ".join(part for part in parts if part)


def memory() -> tuple[int, int]:
    """Return how many bytes of memory there are, and how many of them are free.

    Before the set-up only POSIX tells, and elsewhere both are 0.
    """
    try:
        import psutil
    except ImportError:
        return _memory_of_posix("SC_PHYS_PAGES"), _memory_of_posix("SC_AVPHYS_PAGES")
    found = psutil.virtual_memory()
    return found.total, found.available


def _memory_of_posix(pages: str) -> int:
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    return 0


def cores() -> int:
    """Return how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    """Return the processor's name without what every name has; "" if it has none."""
    name = platform.processor()
    if sys.platform == "linux":
        try:
            text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
        name = model[1] if model else name or platform.machine()
    elif sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        name = done.stdout or name
    name = re.sub(r"\((R|TM|tm|r)\)|@.*$|\b\d+-Core\b|\b(CPU|Processor)\b", " ", name)
    return " ".join(name.replace(",", " ").split())
