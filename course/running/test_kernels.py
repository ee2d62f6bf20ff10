"""What a process has taken, its children included."""

import os
import subprocess
import sys
from unittest.mock import Mock

import pytest

from course.running import kernels, nbval_plugin

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


def test_a_kernel_that_dies_at_its_start_gets_a_second_one(monkeypatch):
    start = Mock(side_effect=[RuntimeError, ("manager", "client")])
    monkeypatch.setattr(nbval_plugin.nbval_kernel, "start_new_kernel", start)
    monkeypatch.setattr(nbval_plugin.Kernel, "_ensure_iopub_up", lambda self: None)
    assert nbval_plugin.Kernel(".").kc == "client"
