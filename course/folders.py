"""What each folder says of itself, in `folder.toml` beside its README.

Contents tables, reading order, budgets, registries: whatever `course` has to know of a
chapter or bonus folder is read from there, so that a new folder edits nothing here.
CONTRIBUTING.md explains the fields, `Folder` below lists them.

Standard library only, and of `course` only what reads TOML: everything may ask.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from course import CourseError, toml_tables

FILE = "folder.toml"
ROOT_FOLDER = "."
MAIN_FOLDER = "01_main-chapter-code"
CHAPTER = re.compile(r"ch\d\d|appendix-[A-Z]")
_ADDRESS = re.compile(r"https://[^\s/]+(/[^\s/]+)+")
PLACE = rf"(?:{CHAPTER.pattern}|setup)(?:/[^/]+)?"


@dataclass(frozen=True)
class Run:
    """What a script makes for other notebooks, see `course.runs`.

    `script` is started with ``--out FOLDER`` and ``COURSE_PRESET``, and has to leave
    `files` in that folder. `about` says in words what they are, `minutes`
    how long the quick preset takes.
    """

    script: str
    about: str
    files: tuple[str, ...]
    minutes: float


@dataclass(frozen=True)
class ListedPage:
    """A further page or notebook that the list of bonus material names."""

    file: str
    title: str
    title_ja: str


@dataclass(frozen=True)
class Plan:
    """A folder that is not there yet: how the contents name it until then."""

    title: str
    title_ja: str
    order: float | None = None
    code: bool = True


@dataclass(frozen=True)
class Folder:
    """One `folder.toml`; `path` is its folder from the root, the rest are its fields.

    A file named without a folder lies in ``01_main-chapter-code`` where there is one,
    else beside `folder.toml`. `home` is that place.
    """

    path: str
    home: str
    title: str
    title_ja: str
    about: str = ""  # a bonus folder: what it holds, for its chapter's README
    order: float | None = None  # a chapter: its place in the reading order
    needs: tuple[str, ...] = ()  # folders that a reader has gone through before
    code: bool = True  # false: a chapter without any code
    contents: tuple[str, ...] = ()  # a chapter: the files of its row in the contents
    summaries: tuple[str, ...] = ()  # those among them that sum the others up
    pages: tuple[ListedPage, ...] = ()
    support: tuple[str, ...] = ()  # modules that are imported and not taught
    apps: tuple[str, ...] = ()  # web pages: scripts that nobody imports
    assets: tuple[str, ...] = ()  # files of course/assets.toml that its code uses
    packages: tuple[
        str, ...
    ] = ()  # of a bonus folder: beyond the base, for its modules
    models: tuple[str, ...] = ()  # values of COURSE_MODEL that it offers
    seconds: Mapping[str, float] = field(default_factory=dict)  # by notebook
    memory_mb: float | None = None
    makes: Mapping[str, Run] = field(default_factory=dict)
    planned: Mapping[str, Plan] = field(default_factory=dict)  # at the root: by folder
    address: str = ""  # at the root: where the course is kept, "https://..."

    def __post_init__(self) -> None:
        """Raise `ValueError` where the fields do not go with the kind of folder."""
        if self.is_chapter and self.code and self.order is None:
            raise ValueError(
                "the field 'order' is missing; give the chapter a number between those "
                "of the chapters that are read before and after it"
            )
        if self.is_bonus and self.parent != "setup" and not self.about:
            raise ValueError(
                "the field 'about' is missing; say in a few words what the folder holds"
            )
        for name in ("planned", "address"):
            if getattr(self, name) and self.path != ROOT_FOLDER:
                raise ValueError(
                    f"the field {name!r} belongs in the folder.toml at the root"
                )
        if self.address and not _ADDRESS.fullmatch(self.address):
            raise ValueError(
                f"the field 'address': {self.address!r} stands where an address such "
                "as https://github.com/OWNER/NAME, without a last slash, is expected"
            )
        if self.packages and not self.is_bonus:
            raise ValueError(
                "the field 'packages' belongs in the folder.toml of a bonus folder"
            )

    @property
    def is_chapter(self) -> bool:
        return CHAPTER.fullmatch(self.path) is not None

    @property
    def parent(self) -> str:
        """The chapter of a bonus folder, the root of a chapter."""
        return str(PurePosixPath(self.path).parent)

    @property
    def is_bonus(self) -> bool:
        return "/" in self.path

    def place(self, name: str) -> str:
        """The path from the root of a file that `folder.toml` names."""
        return name if self.home == ROOT_FOLDER else f"{self.home}/{name}"

    def place_of(self, name: str) -> str:
        """The path from the root of a file beside `folder.toml`."""
        return name if self.path == ROOT_FOLDER else f"{self.path}/{name}"


# --- Reading --------------------------------------------------------------------------


def read_all(root: Path) -> dict[str, Folder]:
    """Return every folder that describes itself, by path, the root first.

    Raises `CourseError` that names file, field and fix if one of them is malformed.
    """
    found = [*root.glob(FILE), *root.glob(f"*/{FILE}"), *root.glob(f"*/*/{FILE}")]
    places = {file.parent.relative_to(root).as_posix(): file for file in found}
    return {
        place: read(places[place], root)
        for place in sorted(places)
        if place == ROOT_FOLDER or re.fullmatch(PLACE, place)
    }


def read(file: Path, root: Path) -> Folder:
    """Return what one `folder.toml` of the tree `root` says."""
    path = file.parent.relative_to(root).as_posix()
    inner = f"{path}/{MAIN_FOLDER}"
    home = inner if (root / inner).is_dir() else path
    try:
        table = toml_tables.read(file)
        return toml_tables.record(Folder, table, path=path, home=home)
    except ValueError as problem:
        name = file.relative_to(root).as_posix()
        raise CourseError(f"{name}: {problem}. Correct it.") from None


# --- What others ask ------------------------------------------------------------------


def owner(path: str, known: Mapping[str, Folder]) -> Folder | None:
    """Return the innermost folder that describes itself and holds `path`, or None.

    The root holds everything, but it speaks for no file below a folder.
    """
    for parent in PurePosixPath(path).parents:
        place = parent.as_posix()
        if place in known and place != ROOT_FOLDER:
            return known[place]
    return None


def assets_for(path: str, known: Mapping[str, Folder]) -> frozenset[str]:
    """Return the assets that a file's folder lists, and those of its chapter."""
    one = owner(path, known)
    chapter = known.get(one.parent) if one and one.is_bonus else None
    return frozenset(name for at in (one, chapter) if at for name in at.assets)


def plans(known: Mapping[str, Folder]) -> dict[str, Plan]:
    """Return the plan of every folder that is not there yet, by path."""
    planned = known[ROOT_FOLDER].planned if ROOT_FOLDER in known else {}
    return {path: plan for path, plan in planned.items() if path not in known}


def reading_order(known: Mapping[str, Folder]) -> list[str]:
    """Return the chapters in the order in which they are read, planned ones included.

    A main module imports only from its own chapter and from those before it.
    """
    chapters = {
        p: f for p, f in {**known, **plans(known)}.items() if CHAPTER.fullmatch(p)
    }
    placed = [(one.order, path) for path, one in chapters.items() if one.order]
    return [path for _, path in sorted(placed)]


def in_reading_order(known: Mapping[str, Folder]) -> list[Folder]:
    """Return all folders, chapter by chapter as they are read, bonus folders after.

    What has no place in the order, the root and the set-up among it, comes last.
    """
    order = reading_order(known)

    def place(one: Folder) -> tuple[int, int]:
        chapter = one.path.partition("/")[0]
        rank = order.index(chapter) if chapter in order else len(order)
        return rank, one.path.count("/")

    return sorted(known.values(), key=place)


def files_of(known: Mapping[str, Folder], kind: str) -> frozenset[str]:
    """Return the paths from the root of all ``support`` modules, or all ``apps``."""
    return frozenset(
        one.place(f"{name}.py") for one in known.values() for name in getattr(one, kind)
    )


def runs(known: Mapping[str, Folder]) -> dict[str, Run]:
    """Return what the folders make for others, by name; scripts from the root."""
    return {
        name: replace(run, script=one.place(run.script))
        for one in known.values()
        for name, run in one.makes.items()
    }


def models(known: Mapping[str, Folder]) -> tuple[str, ...]:
    """Return the names that ``COURSE_MODEL`` may have, in the order of the folders."""
    return tuple(dict.fromkeys(name for one in known.values() for name in one.models))
