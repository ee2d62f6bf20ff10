"""What a process has taken, its children included."""

import os
import subprocess
import sys

import pytest

from course.running import kernels

COMPUTE = "import time\nwhile time.process_time() < 0.5:\n    pass\n"
CHILD = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {COMPUTE!r}])\n"


def taken(code):
    """Return what a process has taken that runs `code` and then waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        process.stdout.readline()
        return kernels.cpu_seconds(process.pid)


@pytest.mark.skipif(os.name == "nt", reason="Windows forgets a child that has ended")
def test_children_that_have_ended_count():
    assert taken(CHILD) >= 0.45


def test_children_that_live_count():
    start = "subprocess.Popen([sys.executable, '-c', CODE], stdout=subprocess.PIPE)"
    code = f"{COMPUTE}print(flush=True); import sys; sys.stdin.read()"
    parent = f"import subprocess, sys\nCODE = {code!r}\n{start}.stdout.readline()\n"
    assert taken(parent) >= 0.45


def test_a_process_that_is_gone_has_taken_nothing_more():
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    assert kernels.cpu_seconds(process.pid) == 0.0
    assert kernels.peak_memory_mb(process.pid) == 0.0
