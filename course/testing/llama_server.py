"""The real llama.cpp (package xllamacpp) with SmolLM2, for tests of clients."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from course.assets import fetch

SERVER = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_parallel, params.cpuparams.n_threads = 1024, 1, 1
params.warmup, params.port, params.n_predict, params.verbosity = False, 0, 24, -1
if len(sys.argv) > 2:
    params.chat_template, params.use_jinja = sys.argv[2], False
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def llama_cpp(*template: str) -> Iterator[str]:
    """The address of llama.cpp with SmolLM2, perhaps with another chat template.

    In a process of its own: several in one process may wait for one another at the end.
    """
    pytest.importorskip("xllamacpp")
    command = [sys.executable, "-c", SERVER, str(fetch("smollm2-135m")), *template]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, encoding="utf-8"
    ) as process:
        try:
            said = process.stdout or ()
            address = next((line for line in said if line.startswith("http")), "")
            assert address, "the server did not start"
            yield address.strip()
        finally:
            process.kill()
