"""JupyterLab as a reader starts it, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import requests

from course import paths, settings
from course.installation import environment
from course.testing import programs

WAIT = 90  # seconds, for what takes three on an idle machine
READY = re.compile(r"^ready after ([\d.]+) s: (http://\S+)")


class Lab:
    """A running `lab` command and what it has printed."""

    def __init__(
        self, home: Path, *arguments: str, tree: Path = paths.ROOT, **variables: str
    ) -> None:
        environ = programs.variables(COURSE_GUARD="1", COURSE_OFFLINE="1")
        # A reader's settings and workspaces are none of a test's business.
        for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"):
            environ[f"JUPYTER_{name}"] = str(home / name.lower())
        inside = environment.python_of(tree / paths.ENV.name)
        python = sys.executable if tree == paths.ROOT else inside
        self.process = subprocess.Popen(
            [python, tree / "course", "lab", *arguments],
            env={**environ, **variables},
            cwd=os.sep,
            **settings.ONE_TEXT,
        )
        self.lines: list[str] = []
        self.seconds, self.url = 0.0, ""
        watchdog = threading.Timer(WAIT, self.process.kill)
        watchdog.start()
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line)
            if ready := READY.match(line):
                self.seconds, self.url = float(ready[1]), ready[2]
                break
        watchdog.cancel()
        assert self.url, "".join(self.lines)

    def get(self, place: str, token: bool = True) -> requests.Response:
        """Return what the server answers at `place`, with the token."""
        base, _, secret = self.url.partition("/lab/tree/README.md?token=")
        headers = {"Authorization": f"token {secret}"} if token else {}
        with requests.Session() as session:  # a new one: no cookie tells who asks
            session.trust_env = False  # the server is this machine: no proxy
            return session.get(base + place, headers=headers, timeout=WAIT)

    def stop(self, number: int) -> str:
        """Send it a signal, on which it has to end well; return what it said then."""
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=WAIT / 3)
        assert self.process.returncode == 0, rest
        return rest
