"""Can this machine and this Python have the environment?  Sentences for where not.

Standard library only: this is asked before anything is installed.
"""

import contextlib
import importlib.util
import os
import platform
import re
import shutil
import sys
import sysconfig
from pathlib import Path

from course import CourseError, paths, python_problem

# Measured for the CPU build: 1.9 GB in the environment and 0.4 GB while downloading;
# and the fetched files, 0.1 GB and three times that meanwhile, mostly on the same disk.
NEEDED_BYTES = 3_000_000_000
# Measured: what makes the pages for reading has 255 MB, and is downloaded in 60 MB.
NEEDED_BYTES_READING = 400_000_000
# The wheels of PyTorch for Linux are called manylinux_2_28.
OLDEST_GLIBC = (2, 28)
# The CUDA build brings about 3 GB of wheels that unpack to 7 GB.
NEEDED_BYTES_CUDA = 10_000_000_000


def platform_problem() -> str | None:
    """Return what to say about a machine or Python without PyTorch builds, or None."""
    if sys.maxsize < 2**32:
        return (
            "This is a 32-bit Python, and PyTorch exists only for 64-bit ones. Install "
            "a 64-bit Python; on a 32-bit operating system the course cannot run."
        )
    if sys.platform == "darwin" and platform.machine() == "x86_64":
        return (
            "This is a Python for Intel Macs, for which PyTorch is no longer built. On "
            "a Mac with an Apple chip install the Python for Apple silicon; on an "
            "Intel Mac use a Linux machine or container, or a notebook service."
        )
    if sys.implementation.name != "cpython":
        return (
            f"This is {sys.implementation.name}, and PyTorch needs CPython. Install it "
            "from https://www.python.org/downloads/."
        )
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return (
            "This is a free-threaded Python, for which several packages are not built. "
            "Use the ordinary build of the same version."
        )
    if sys.platform != "linux" or importlib.util.find_spec("torch"):  # it is there
        return None
    return _c_library_problem()


def _c_library_problem() -> str | None:
    """Return what to say about a Linux whose C library PyTorch is not built for."""
    try:
        found = os.confstr("CS_GNU_LIBC_VERSION") or "another one"
    except (ValueError, OSError):  # musl knows no such name
        found = "another one"
    if tuple(map(int, re.findall(r"\d+", found))) >= OLDEST_GLIBC:
        return None
    needed = "{}.{}".format(*OLDEST_GLIBC)
    return (
        f"PyTorch is built for Linux with the C library glibc {needed} or newer, and "
        f"this system has {found}. Use a newer system (Debian 10, Ubuntu 20.04, RHEL 8 "
        "or later; not Alpine), or a container: setup/03_optional-docker-environment."
    )


def disk_problem(
    folder: str | os.PathLike[str], whole: int = NEEDED_BYTES
) -> str | None:
    """Return what to say when too little space is left for `folder`, or None.

    `whole` is what the finished environment and the way to it need.
    """
    folder = Path(folder)
    # An interrupted set-up has part of it already; what is there needs no more space.
    needed = max(whole - _size_below(folder), whole / 10)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return None
    return (
        f"The environment needs {needed / 1e9:.1f} GB of disk space, and only "
        f"{free / 1e9:.1f} GB are free at {folder}. Free some space there, or put the "
        "course on another disk."
    )


def _size_below(folder: Path) -> int:
    """Return the bytes of all files below `folder`, of links only the link itself."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def here_problem() -> str | None:
    """Return why the running environment cannot be the course's, or None."""
    if sys.prefix == sys.base_prefix:
        marker = Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED"
        if marker.is_file():
            return (
                "This Python belongs to the operating system, which does not want "
                "packages added. Run the command without --here, or in an environment "
                "of your own."
            )
    for place in (sysconfig.get_path("purelib"), sys.prefix):
        if not os.access(place, os.W_OK):
            return (
                f"The running environment cannot be changed: {place} is not writable. "
                "Run the command without --here, or in an environment of your own."
            )
    if importlib.util.find_spec("pip") is None:
        return (
            f"The running environment {sys.prefix} has no pip. Add it, for example "
            "with `python -m ensurepip` or `uv pip install pip`, and start again."
        )
    return None


def can_make_environments() -> bool:
    """Tell whether this Python has what a new environment is made with."""
    return all(map(importlib.util.find_spec, ("ensurepip", "venv")))


def no_ensurepip() -> str:
    """Return the sentence for a Python without ensurepip, as Debian packages it."""
    package = "python{}.{}-venv".format(*sys.version_info)
    return (
        "This Python lacks ensurepip, which gives a new environment its pip. On Debian "
        f"and Ubuntu install it with `sudo apt install {package}`; elsewhere install "
        "Python from https://www.python.org/downloads/."
    )


def preflight(here: bool = False) -> None:
    """Raise `CourseError` if the environment cannot be made or filled on this machine.

    With `here` it is the running environment that would be filled.
    """
    problem = python_problem(sys.version_info) or platform_problem()
    if not problem and here:
        problem = here_problem()
    problem = problem or disk_problem(sys.prefix if here else paths.ENV)
    if problem:
        raise CourseError(problem)
