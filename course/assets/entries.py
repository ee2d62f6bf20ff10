"""The manifest `assets.toml`: what there is, where it comes from, what it contains."""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from pathlib import Path, PurePosixPath
from typing import Any

from course import CourseError
from course.paths import ROOT, cache_dir

MANIFEST = Path(__file__).parent.with_suffix(".toml")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a file must be, wherever it comes from."""

    name: str
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Source:
    """One place to get a file from; the fields that are set say of which kind it is."""

    path: str = ""
    url: str = ""
    member: str = ""
    package: str = ""
    version: str = ""
    hub: str = ""
    revision: str = ""
    file: str = ""
    parts: tuple[Part, ...] = ()

    def __str__(self) -> str:
        if self.parts:
            return f"{len(self.parts)} parts: {self.parts[0].source} and so on"
        if self.package:
            return f"package {self.package} {self.version} (its file {self.member})"
        if self.hub:
            return f"model hub, {self.hub} (its file {self.file})"
        if self.member:
            return f"archive {self.url} (its file {self.member})"
        return self.url or f"the file {self.path} of this course"


@dataclasses.dataclass(frozen=True)
class Part(Wanted):
    """A piece of a file that comes in several packages, joined in their order."""

    source: Source


@dataclasses.dataclass(frozen=True)
class Asset(Wanted):
    """One entry of the manifest; see the top of `assets.toml` for its fields."""

    licence: str
    sources: tuple[Source, ...]
    file: str = ""
    offline: bool = False
    terms: str = ""

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
    return {name: _asset(name, table) for name, table in tables.items()}


def find(name: str) -> Asset:
    """Return an asset; for an unknown name raise `CourseError` with close ones."""
    assets = manifest()
    if name in assets:
        return assets[name]
    close = difflib.get_close_matches(str(name), assets, n=3, cutoff=0.5)
    meant = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
    raise CourseError(
        f"There is no asset {name!r}. {meant}Known names are: {', '.join(assets)}."
    )


# --- Reading an entry, every field checked --------------------------------------------

_KINDS = (
    {"path"},
    {"url"},
    {"url", "member"},
    {"package", "version", "member"},
    {"hub", "revision", "file"},
)
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _asset(name: str, table: Any) -> Asset:
    try:
        _demand(_PLAIN.fullmatch(name), "its name is not plain")
        _demand(isinstance(table, dict), "it is not a table")
        _check_fields(table)
        sources = tuple(_source(name, source) for source in table["sources"])
    except ValueError as problem:
        raise CourseError(f"assets.toml, entry {name!r}: {problem}.") from None
    return Asset(**table | dict(name=name, sources=sources))


def _demand(condition: object, problem: str) -> None:
    if not condition:
        raise ValueError(problem)


def _check_fields(table: dict[str, Any]) -> None:
    known = {field.name for field in dataclasses.fields(Asset)} - {"name"}
    for key in table:
        _demand(key in known, f"the field {key!r} is unknown")
    for key in ("size", "sha256", "licence", "sources"):
        _demand(key in table, f"the field {key!r} is missing")
    _check_content(table)
    sources = table["sources"]
    _demand(_is_text(table["licence"]), "licence is no text")
    _demand(_is_address(table.get("terms", "https://")), "terms is no web address")
    _demand(type(table.get("offline", False)) is bool, "offline is not true or false")
    _demand(isinstance(sources, list) and sources, "sources lists no source")
    in_tree = any(isinstance(s, dict) and "path" in s for s in sources)
    _demand(in_tree or "file" in table, "the field 'file' is missing")
    _demand(not in_tree or len(sources) == 1, "a file of the tree has other sources")
    _demand(_stays_inside(table.get("file", "x")), "file leaves the cache folder")


def _check_content(table: dict[str, Any]) -> None:
    size, sha256 = table.get("size"), table.get("sha256")
    _demand(type(size) is int and size > 0, "size is no number of bytes")
    _demand(re.fullmatch("[0-9a-f]{64}", str(sha256)), "sha256 is no SHA-256")


def _source(name: str, table: Any) -> Source:
    if isinstance(table, dict) and set(table) == {"parts"}:
        parts = table["parts"]
        _demand(isinstance(parts, list) and parts, "parts lists no part")
        return Source(parts=tuple(_part(name, n, p) for n, p in enumerate(parts, 1)))
    _demand(
        isinstance(table, dict)
        and set(table) in _KINDS
        and all(map(_is_text, table.values())),
        "a source has the texts path, or url, or url and member, or package, version "
        "and member, or hub, revision and file, or parts",
    )
    for key in ("path", "member", "file"):
        _demand(_stays_inside(table.get(key, "x")), f"{key} leaves its folder")
    for key in ("package", "version"):
        _demand(_PLAIN.fullmatch(table.get(key, "x")), f"{key} is not plain")
    _demand(_is_address(table.get("url", "https://")), "url is no web address")
    return Source(**table)


def _part(name: str, number: int, table: Any) -> Part:
    _demand(isinstance(table, dict), "a part is not a table")
    _check_content(table)
    rest = {k: v for k, v in table.items() if k not in ("size", "sha256")}
    source = _source(name, rest)
    return Part(f"{name}.part{number}", table["size"], table["sha256"], source)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_address(value: object) -> bool:
    return isinstance(value, str) and value.startswith(("https://", "http://"))


def _stays_inside(name: Any) -> bool:
    """Whether a name is a relative path, with slashes, that never leads upwards."""
    return (
        _is_text(name)
        and not name.startswith("/")
        and ".." not in PurePosixPath(name).parts
        and not set(name) & {"\\", ":"}
    )
