"""The manifest `assets.toml`: what there is, where it comes from, what it contains."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path, PurePosixPath

from course import CourseError, toml_tables
from course.paths import ROOT, cache_dir

MANIFEST = Path(__file__).parent.with_suffix(".toml")


_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# The fields that go together in a source.
_KINDS = (
    {"path"},
    {"url"},
    {"url", "member"},
    {"package", "version", "member"},
    {"hub", "revision", "file"},
    {"parts"},
)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a file must be, wherever it comes from."""

    name: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        """Raise `ValueError` for what could be no file at all."""
        _demand(_PLAIN.fullmatch(self.name), "its name has unusual characters")
        _demand(re.fullmatch("[0-9a-f]{64}", self.sha256), "sha256 is not a SHA-256")


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

    def __post_init__(self) -> None:
        """Raise `ValueError` unless the fields name one place, outside or inside."""
        fields = [field.name for field in dataclasses.fields(Source)]
        _demand(
            {name for name in fields if getattr(self, name)} in _KINDS,
            "a source has path, or url, or url and member, or package, version and "
            "member, or hub, revision and file, or parts",
        )
        for name in ("path", "member", "file"):
            _demand(_stays_inside(getattr(self, name)), f"{name} leaves its folder")
        for name in ("package", "version"):
            plain = _PLAIN.fullmatch(getattr(self, name) or "x")
            _demand(plain, f"{name} has unusual characters")
        _demand(_is_address(self.url), "url is not a web address")

    def __str__(self) -> str:
        if self.parts:
            return f"{len(self.parts)} parts: {self.parts[0]} and so on"
        if self.package:
            return f"package {self.package} {self.version} (its file {self.member})"
        if self.hub:
            return f"model hub, {self.hub} (its file {self.file})"
        if self.member:
            return f"archive {self.url} (its file {self.member})"
        return self.url or f"the file {self.path} of this course"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part(Source):
    """Where a piece of a file comes from and what it must be; joined in their order."""

    size: int
    sha256: str

    def __post_init__(self) -> None:
        """Raise `ValueError` unless it could be a file."""
        super().__post_init__()
        self.wanted("it", 1)

    def wanted(self, name: str, number: int) -> Wanted:
        """Return what the piece with that number of a file must be."""
        return Wanted(f"{name}.part{number}", self.size, self.sha256)


@dataclasses.dataclass(frozen=True)
class Asset(Wanted):
    """One entry of the manifest; see the top of `assets.toml` for its fields."""

    licence: str
    sources: tuple[Source, ...]
    file: str = ""
    offline: bool = False
    terms: str = ""

    def __post_init__(self) -> None:
        """Raise `ValueError` where the fields do not go together."""
        super().__post_init__()
        _demand(self.sources, "sources lists no source")
        _demand(self.in_tree or self.file, "the field 'file' is missing")
        alone = not self.in_tree or len(self.sources) == 1
        _demand(alone, "a file of the tree has other sources")
        _demand(_stays_inside(self.file), "file leaves the cache folder")
        _demand(_is_address(self.terms), "terms is not a web address")

    @property
    def in_tree(self) -> bool:
        """Whether the file comes with the course, so that nothing is downloaded."""
        return any(source.path for source in self.sources)

    def place(self) -> Path:
        """Return where the file lies, or will lie once it is fetched."""
        for source in self.sources:
            if source.path:
                return ROOT / source.path
        return cache_dir() / self.file


def manifest(path: Path | None = None) -> dict[str, Asset]:
    """Return all assets by name. `path` is another manifest, for tests.

    Raises `CourseError` that names the entry and the field if the file is malformed.
    """
    path, assets = path or MANIFEST, {}
    place = f"The list of assets {path}"
    try:
        for name, table in toml_tables.read(path).items():
            place = f"assets.toml, entry {name!r}"
            assets[name] = toml_tables.record(Asset, table, name=name)
    except ValueError as problem:
        raise CourseError(
            f"{place}: {problem}. Take the file from a fresh copy of the course."
        ) from None
    return assets


def find(name: str) -> Asset:
    """Return an asset; for an unknown name raise `CourseError` with close ones."""
    assets = manifest()
    if name in assets:
        return assets[name]
    raise CourseError(f"{toml_tables.unknown('asset', name, assets)}.")


# --- What a field may hold, empty where it may be left out ----------------------------


def _demand(condition: object, problem: str) -> None:
    if not condition:
        raise ValueError(problem)


def _is_address(text: str) -> bool:
    return not text or text.startswith(("https://", "http://"))


def _stays_inside(name: str) -> bool:
    """Whether a name is a relative path, with slashes, that never leads upwards."""
    parts = PurePosixPath(name).parts
    return not name.startswith("/") and ".." not in parts and not set(name) & set("\\:")
