"""Files from an address, from a tar archive at an address, and from the model hub."""

from __future__ import annotations

import contextlib
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from course import failures
from course.assets.entries import Source, Wanted
from course.assets.store import Failed, receive
from course.paths import cache_dir

CHUNK = 64 * 1024
ATTEMPTS = 3
PAUSE = 1.0  # seconds before the second attempt; doubled before the third
TIMEOUT = (10.0, 30.0)  # seconds to connect, seconds without a byte


class Temporary(Failed):
    """A source did not work, and another attempt may."""


def from_url(source: Source, wanted: Wanted, folder: Path) -> Path:
    """Download a file into `folder`, a bounded number of times."""
    path = folder / "file"

    def work() -> None:
        with _answer(source.url) as body:
            receive(pieces_of(body), wanted, path)

    _repeat(work)
    return path


def from_archive(source: Source, wanted: Wanted, folder: Path) -> Path:
    """Stream one file out of a tar archive, whatever its compression, into `folder`.

    The archive itself is never on the disk, and nothing else is taken out of it.
    """
    path = folder / "file"

    def work() -> None:
        with (
            _answer(source.url) as body,
            tarfile.open(fileobj=body, mode="r|*") as archive,
        ):
            for member in archive:
                file = archive.extractfile(member)
                if member.name == source.member and file is not None:
                    receive(pieces_of(file), wanted, path)
                    return
        raise Failed("the archive holds no such file")

    try:
        _repeat(work)
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise Failed(f"the archive is damaged: {error}") from error
    return path


def from_hub(source: Source, wanted: Wanted, folder: Path) -> Path:
    """Let the model hub's own client download a file into `folder`.

    It continues where a connection broke, follows ``HF_ENDPOINT``, and takes what the
    reader's own cache of the hub already holds.
    """
    import httpx2
    from huggingface_hub import hf_hub_download

    try:
        return Path(
            hf_hub_download(
                source.hub,
                source.file,
                revision=source.revision,
                local_dir=folder,
                token=False,  # what the course needs is public; an old token is not
            )
        )
    except (OSError, httpx2.HTTPError, ImportError, ValueError) as error:
        if isinstance(error, OSError) and error.errno:  # of this machine
            raise
        raise _in_words(error) from error


def pieces_of(file: IO[bytes]) -> Iterator[bytes]:
    """Read an open file piece by piece."""
    return iter(lambda: file.read(CHUNK), b"")


def _repeat(work: Callable[[], None]) -> None:
    """Call `work` until it brings the file; every attempt starts anew."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            work()
            return
        except Temporary as why:
            if attempt == ATTEMPTS:
                raise Failed(f"{why} ({ATTEMPTS} attempts)") from why
        time.sleep(PAUSE * 2 ** (attempt - 1))


@contextlib.contextmanager
def _answer(url: str) -> Iterator[IO[bytes]]:
    """Ask once; yield the body as a file that can be read once.

    Raises `Failed`, or `Temporary` where another attempt makes sense.
    """
    import requests
    import urllib3

    try:
        with requests.get(url, stream=True, timeout=TIMEOUT) as response:
            code = response.status_code
            if code != 200:
                again = code in (408, 425, 429) or code >= 500
                answer = f"the server answers {code} {response.reason or ''}".rstrip()
                raise (Temporary if again else Failed)(answer)
            response.raw.decode_content = True
            yield response.raw
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _in_words(error) from error


def _in_words(error: Exception) -> Failed:
    """Put an exception of a library for the network into one clause for the reader."""
    # The hub's client wraps what happened in advice of its own.
    inner = error.__cause__ if isinstance(error, FileNotFoundError) else None
    inner = inner or error
    response = getattr(inner, "response", None)
    if response is not None:
        phrase = getattr(response, "reason_phrase", "")
        return Failed(f"the server answers {response.status_code} {phrase}".rstrip())
    known = failures.cause(f"{type(inner).__name__}: {inner}", cache_dir())
    if known:
        return (Temporary if known.again else Failed)(known.says)
    return Failed(f"the request failed: {inner}".rstrip("."))
