"""What this machine is, in the words that tables of measurements use."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import psutil


def machine() -> str:
    """Return this machine in words, such as "2 cores, AMD EPYC, 24 GB, Linux"."""
    count = cores()
    memory = round(psutil.virtual_memory().total / 2**30)
    parts = [
        f"{count} core{'s' if count > 1 else ''}",
        _processor(),
        f"{memory} GB",
        platform.system().replace("Darwin", "macOS"),
    ]
    return ", ".join(part for part in parts if part)


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
