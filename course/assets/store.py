"""The cache folder: is a file the right one, is there room, and how one gets in."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from course import CourseError
from course.assets.entries import Asset, Wanted
from course.locks import reason
from course.paths import cache_dir

MEBIBYTE = 1024**2
SPACE_LEFT = 64 * MEBIBYTE  # what a download leaves free on the disk


class Failed(Exception):
    """A source did not work; the text says why, without a full stop."""


def workshop() -> Path:
    """Return the folder for unfinished files; on the same disk as the finished ones."""
    return cache_dir() / "unfinished"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- Is the file the right one? -------------------------------------------------------


def state(asset: Asset, place: Path) -> str:
    """Return "present", "missing" or "damaged" for the file at `place`.

    It is hashed each time, which takes a tenth of a second for 100 MB.
    """
    try:
        if place.stat().st_size != asset.size or sha256_of(place) != asset.sha256:
            return "damaged"
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError as error:
        raise CourseError(
            f"The file {place} cannot be read: {reason(error)}. Make it readable, or "
            "set COURSE_CACHE to another folder."
        ) from error
    return "present"


def tree_problem(path: Path, asset: Asset) -> str:
    """Return what is wrong with a file of the tree, and the fix; "" if nothing is."""
    fix = "Take it from a fresh copy of the course"
    try:
        data = path.read_bytes()
    except OSError as error:
        return f"cannot be read: {reason(error)}. {fix}."
    if hashlib.sha256(data).hexdigest() == asset.sha256 and len(data) == asset.size:
        return ""
    unix = data.replace(b"\r\n", b"\n")
    if unix != data and hashlib.sha256(unix).hexdigest() == asset.sha256:
        return (
            "has Windows line ends, so its SHA-256 is wrong. Run `git config "
            "core.autocrlf false` and check the file out again, or take it from an "
            "archive of the course."
        )
    return (
        f"is not the file that assets.toml describes for {asset.name!r}: it has "
        f"{len(data):,} bytes and SHA-256 {hashlib.sha256(data).hexdigest()}, expected "
        f"are {asset.size:,} bytes and {asset.sha256}. {fix}, or, if the edit is "
        f"meant, run `python -m course.assets hash {asset.name}`."
    )


# --- How a file gets in ---------------------------------------------------------------


def require_space(needed: int) -> None:
    """Raise `Failed` unless the cache's disk has room for `needed` bytes and more."""
    try:
        free = shutil.disk_usage(workshop()).free
    except OSError:  # a file system that does not tell; writing will show
        return
    if free < needed + SPACE_LEFT:
        raise Failed(
            f"it needs {readable_size(needed + SPACE_LEFT)} of free disk space in "
            f"{cache_dir()}, but only {readable_size(free)} are free; free some, or "
            "set COURSE_CACHE to a folder on another disk"
        )


def receive(pieces: Iterable[bytes], wanted: Wanted, path: Path) -> None:
    """Write the pieces as they come; refuse to grow beyond the expected size."""
    size = 0
    with path.open("wb") as file, progress(wanted) as bar:
        for piece in pieces:
            size += len(piece)
            if size > wanted.size:
                raise Failed(
                    "wrong content: it gives more than the expected "
                    f"{wanted.size:,} bytes"
                )
            write(file, piece)
            bar.update(len(piece))


def write(file: IO[bytes], piece: bytes) -> None:
    """Write one piece; a function of its own so that tests can fill the disk."""
    file.write(piece)


def verify(path: Path, wanted: Wanted) -> None:
    """Raise `Failed` unless size and hash are those of the manifest."""
    size, sha256 = path.stat().st_size, sha256_of(path)
    if size == wanted.size and sha256 == wanted.sha256:
        return
    if size != wanted.size:
        why = f"it gives {size:,} bytes, expected are {wanted.size:,}"
    else:
        why = f"its SHA-256 is {sha256}, expected is {wanted.sha256}"
    with path.open("rb") as file:
        if file.read(64).lstrip().lower().startswith((b"<!doctype", b"<html")):
            why += "; it is a web page, perhaps the log-in page of your network"
    raise Failed(f"wrong content: {why}")


def keep(partial: Path, place: Path) -> None:
    """Give the checked file its final name, in one step, so that it survives a cut."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, place)


# --- What the reader sees -------------------------------------------------------------


def progress(wanted: Wanted) -> Any:
    """Return a progress bar in bytes, silent when not on a terminal."""
    from tqdm import tqdm

    return tqdm(
        desc=wanted.name,
        total=wanted.size,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        disable=None,
    )


def say(text: str) -> None:
    """Print a line for the reader, beside the results."""
    print(f"course: {text}", file=sys.stderr)


def readable_size(count: int) -> str:
    """Return a size for people.

    >>> [readable_size(n) for n in (5, 456_318, 1_042_301, 98_362_432, 6_200_000_000)]
    ['5 bytes', '456 kB', '1.0 MB', '98.4 MB', '6.2 GB']
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            digits = 0 if count >= 100 * size else 1
            return f"{count / size:.{digits}f} {unit}"
    return f"{count} bytes"
