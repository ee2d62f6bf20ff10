"""Run pip in the environment, with sentences for its failures.

Standard library only.  pip's own settings (index, proxy, certificate) are respected, so
nothing here names an index.
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TextIO

from course import CourseError, failures, paths, settings
from course.installation import preflight

BASE = "requirements.txt"
TESTING = "requirements-test.txt"
READING = "docs/requirements.txt"

# With `setup --here` these stay as the owner of the environment installed them.
KEPT_WITH_HERE = ("torch", "numpy")

Place = str | os.PathLike[str]
Packages = dict[str, str]  # name: version

#: A line of a requirements file: NAME==VERSION, and nothing else that would count.
PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)==(\d[\w.+!]*)\s*(?:\s#.*)?$", re.MULTILINE)


def say(text: str) -> None:
    """Print a line of progress at once, also into a pipe."""
    print(text, flush=True)


def clean_environ() -> dict[str, str]:
    """Return the environment variables for a child, without what leads it astray."""
    environ = settings.own_environment()
    # What a reader's settings say about the place is meant for other environments.
    for name in ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT"):
        environ.pop(name, None)
    environ |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), tempfile.gettempdir())
    environ["PIP_USER"] = "0"
    environ["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    if settings.offline():
        environ["PIP_NO_INDEX"] = "1"
    return environ


def pins(name: str) -> Packages:
    """Return {package: version} of a requirements file at the root."""
    text = (paths.ROOT / name).read_text(encoding="utf-8")
    return dict(PIN.findall(text))


def kept_packages() -> Packages:
    """Return {package: version} of what `setup --here` must leave as it is."""
    found = {}
    for name in KEPT_WITH_HERE:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


# --- What is installed ----------------------------------------------------------------


def installed(names: Iterable[str], site_packages: Place | None = None) -> Packages:
    """Return {package: installed version}, with "" for what is not installed.

    Looks into `site_packages`, or where the running Python looks.  The build that an
    index chose is no part of the version: torch 2.13.0+cpu is 2.13.0.
    """
    folders = sys.path if site_packages is None else [str(site_packages)]
    found = {}
    for name in names:
        first = next(iter(metadata.distributions(name=name, path=folders)), None)
        found[name] = _version(first).partition("+")[0] if first else ""
    return found


def _version(package: metadata.Distribution) -> str:
    """Return a package's version, "" where what pip wrote down about it is damaged."""
    try:
        return package.version or ""
    except (OSError, KeyError, metadata.PackageNotFoundError):
        return ""


def incomplete(
    names: Iterable[str], site_packages: Place | None = None
) -> dict[str, list[str]]:
    """Return {package: files that it lacks} of those that pip has not left whole.

    An antivirus program, a full disk, a synchronised folder or a reader removes files;
    the package's version stays. What Python compiles for itself does not count.
    """
    folders = sys.path if site_packages is None else [str(site_packages)]
    damaged = {}
    for name in names:
        package = next(iter(metadata.distributions(name=name, path=folders)), None)
        files = (package.files if package else None) or []
        lost = [
            str(file)
            for file in files
            if "__pycache__" not in file.parts and not os.path.exists(file.locate())
        ]
        if lost:
            damaged[name] = lost
    return damaged


def not_as_pinned(name: str, site_packages: Place | None = None) -> Packages:
    """Return what is installed instead of the pinned versions of a requirements file.

    The one answer for the set-up, the doctor and the check in ``setup/``.
    """
    wanted = pins(name)
    have = installed(wanted, site_packages)
    return {
        package: have[package] for package in wanted if have[package] != wanted[package]
    }


# --- Installing -----------------------------------------------------------------------


def reinstall(python: Place, wanted: Packages, lock: TextIO) -> None:
    """Install packages again that lack files, which pip itself does not notice."""
    if wanted:
        say(f"      files are missing, so again: {', '.join(wanted)}")
        with _pin_file(wanted) as request:
            again = ["--force-reinstall", "--no-deps"]
            _pip(python, [*again, "-r", str(request)], lock)


def install_torch(
    python: Place, site_packages: Place, kept: Packages, lock: TextIO
) -> None:
    """Install PyTorch alone, so that its size can be told and its time be seen."""
    if "torch" in kept:
        say(f"      kept: torch {kept['torch']}, as it was installed")
        return
    others = pins(BASE)
    version = others.pop("torch", None)
    if version is None:
        return
    if installed(["torch"], site_packages)["torch"] != version:
        _announce_torch()
    # What torch needs must come in the versions that the next step wants.  Naming torch
    # here as well would make pip report a conflict when it only finds no torch.
    with _pin_file({**others, **kept}) as limits:
        _pip(python, [f"torch=={version}", "-c", str(limits)], lock)


def install_others(python: Place, kept: Packages, testing: bool, lock: TextIO) -> None:
    """Install everything else, with `testing` also what the tests need.

    `kept` {package: version} is neither asked for nor changed by what is.
    """
    wanted = pins(BASE)
    if testing:
        wanted |= pins(TESTING)
    wanted = {name: wanted[name] for name in wanted if name not in kept}
    with _pin_file(wanted) as request, _pin_file(kept) as limits:
        _pip(python, ["-r", str(request), "-c", str(limits)], lock)


def install_reading(python: Place, lock: TextIO) -> None:
    """Install what turns the course into pages, quietly: it is soon done."""
    with _pin_file(pins(READING)) as request:
        _pip(python, ["--quiet", "-r", str(request)], lock)


@contextlib.contextmanager
def _pin_file(wanted: Mapping[str, str]) -> Iterator[Path]:
    """Yield a requirements file for {package: version}, which pip reads."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "requirements.txt")
        lines = [f"{name}=={version}\n" for name, version in wanted.items()]
        path.write_text("".join(lines), encoding="utf-8")
        yield path


def _announce_torch() -> None:
    """Say before the download how large PyTorch is; only for Linux are there two."""
    if not sys.platform.startswith("linux"):
        return
    guide = Path("setup", "02_installing-python-libraries", "README.md")
    space = f"{preflight.NEEDED_BYTES_CUDA / 1e9:.0f} GB"
    say(
        "      The CPU build is about 200 MB. Where pip's index offers only the CUDA\n"
        f"      build, several GB are downloaded and {space} of disk space used; for\n"
        f"      the CPU build stop here (Ctrl-C) and see\n      {guide}"
    )


def _pip(python: Place, arguments: Sequence[str], lock: TextIO) -> None:
    """Run ``pip install``, which shows its own progress, and explain it if it fails."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            [str(python), "-m", "pip", "install", "--no-input", *arguments],
            stdin=subprocess.DEVNULL,
            stderr=said,
            env=clean_environ(),
            pass_fds=() if os.name == "nt" else (lock.fileno(),),
        )
        try:
            failed = process.wait()
        except BaseException:  # Ctrl-C: do not leave pip working behind our back
            process.terminate()
            process.wait()
            raise
        if failed:
            said.seek(0)
            place = Path(lock.name).parent
            raise CourseError(explain_failure(said.read(), place))


# --- Failures -------------------------------------------------------------------------


def explain_failure(output: str, place: Place) -> str:
    """Turn the output of a failed ``pip install`` into sentences and its last lines.

    `place` is the environment that pip was to fill.
    """
    cpu, cuda = preflight.NEEDED_BYTES / 1e9, preflight.NEEDED_BYTES_CUDA / 1e9
    needs = f" ({cpu:.0f} GB are needed with the CPU build of PyTorch, {cuda:.0f} GB"
    known = failures.cause(output, place, f"{needs} with the CUDA build)")
    text = "pip could not install the packages; its last lines say why."
    if known and known.package and settings.offline():
        text = (
            f"{known.package} is not installed, and COURSE_OFFLINE forbids the "
            "network. Run the set-up once without it."
        )
    elif known:
        text = f"The packages could not be installed: {known.says}."
    if known and known.again:
        text += " Then start again: pip keeps what it has downloaded."
    return f"{text} pip said:\n{last_lines(output)}"


def last_lines(output: str, count: int = 6) -> str:
    """Return the last lines of a program's output that are not blank, indented."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    return "\n".join(f"    {line}" for line in lines[-count:])
