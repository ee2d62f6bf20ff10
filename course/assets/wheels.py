"""A file out of a package of the Python package index, which is never installed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import IO

from course import failures, settings
from course.assets.downloads import pieces_of
from course.assets.entries import Source, Wanted
from course.assets.store import Failed, receive
from course.paths import cache_dir


def from_package(source: Source, wanted: Wanted, folder: Path) -> Path:
    """Take one file out of a wheel into `folder`."""
    wheel, path = _download_wheel(source, folder), folder / "file"
    try:
        with zipfile.ZipFile(wheel) as archive:
            if source.member not in archive.namelist():
                raise Failed(f"the wheel {wheel.name} holds no such file")
            with archive.open(source.member) as file:
                receive(pieces_of(file), wanted, path)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
    ) as error:
        raise Failed(f"the wheel {wheel.name} is damaged: {error}") from error
    return path


def _download_wheel(source: Source, folder: Path) -> Path:
    """Run `pip download` with the user's own settings; return the wheel."""
    scratch = folder / "tmp"
    scratch.mkdir()
    # -P: a file named like a standard module in the current folder must not be used.
    command = [sys.executable, "-P", "-m", "pip", "download"]
    command += ["--no-deps", "--no-cache-dir"]
    # A source package would run its own code, and pip must not wait for a password.
    command += ["--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    command += ["--dest", str(folder), f"{source.package}=={source.version}"]
    # On the same disk, so that the space asked for above is the space that is used.
    environment = settings.own_environment() | {"PYTHONUTF8": "1"}
    environment |= {"TMPDIR": str(scratch), "TEMP": str(scratch)}
    log = folder / "pip.log"
    with log.open("wb") as output:
        code = run_pip(command, environment, output)
    wheels = sorted(folder.glob("*.whl"))
    if code != 0 or len(wheels) != 1:
        raise Failed(pip_failure(log.read_text(encoding="utf-8", errors="replace")))
    return wheels[0]


def run_pip(command: list[str], environment: dict[str, str], log: IO[bytes]) -> int:
    """Run pip to its end; on a terminal it shows what it does, its errors go to `log`.

    A function of its own so that tests can do without pip.
    """
    shown = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=shown,
        stderr=log,
        check=False,
    )
    return done.returncode


def pip_failure(log: str) -> str:
    """Return why pip failed, in the course's words, or else pip's own line on it."""
    if "No module named pip" in log:
        return "this Python has no pip; run `python3 -m course setup`"
    if known := failures.cause(log, cache_dir()):
        return known.says
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return f"pip failed: {' '.join((errors or lines)[:1])}".rstrip(".")
