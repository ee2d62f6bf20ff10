"""The places that a reader may name: a chapter, a folder, a file, as they type it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from course import CourseError, command_line, folders, paths


def find(target: str | Path) -> Path:
    """Return the file or folder that a target names, from here or from the root.

    Raises `CourseError` with the closest names that exist if there is none.
    """
    for base in (Path.cwd(), paths.ROOT):
        path = base / target
        if path.exists():
            return path.resolve()
    hint = _close_to(str(target))
    raise CourseError(
        f"There is no chapter, folder or file called {str(target)!r}.{hint} Name a "
        "chapter such as ch02, or a path as seen from here or from the course's folder."
    )


def _close_to(target: str) -> str:
    """Return " Close to it: ..." with what a reader may have meant, or "".

    A path may be misspelt anywhere, a bare name is compared with those of all files.
    What is named can be typed as it stands. What the course is made of is left out.
    """
    wanted = PurePosixPath(target.replace("\\", "/"))
    likeness = {}
    for path in _offered():
        if not wanted.suffix or path.suffix == wanted.suffix:
            own = path if len(wanted.parts) > 1 else PurePosixPath(path.name)
            one, other = (str(each.with_suffix("")).lower() for each in (wanted, own))
            alike = difflib.SequenceMatcher(None, one, other).ratio()
            if alike >= command_line.LIKE:
                likeness[path.as_posix()] = alike
    best = sorted(likeness, key=lambda name: (-likeness[name], name))[:3]
    return f" Close to it: {', '.join(best)}." if best else ""


def _offered() -> list[PurePosixPath]:
    """Return what readers run, test and open: chapters, folders and files in them."""
    offered = set()
    for file in paths.tree_files():
        inside = PurePosixPath(file.relative_to(paths.ROOT).as_posix())
        if not folders.CHAPTER.fullmatch(inside.parts[0]):
            continue
        offered |= {p for p in inside.parents if p.name}
        if inside.suffix in (".ipynb", ".py", ".md"):
            offered.add(inside)
    return sorted(offered)


def main_notebook(folder: Path) -> Path:
    """Return the notebook that stands for a chapter or folder."""
    code = folder / "01_main-chapter-code"
    code = code if code.is_dir() else folder
    named = code / f"{folder.name}.ipynb"
    if named.is_file():
        return named
    there = [
        path
        for path in sorted(code.glob("*.ipynb"))
        if path.stem != "exercise-solutions" and not paths.is_translation(path)
    ]
    if len(there) == 1:
        return there[0]
    if there:
        names = ", ".join(shown(p) for p in there)
        raise CourseError(f"{shown(folder)} has several notebooks; name one: {names}.")
    raise CourseError(f"{shown(folder)} has no notebook to run; name a file in it.")


def all_notebooks(targets: Sequence[str]) -> list[Path]:
    """Return the notebooks at or below the targets; there must be one."""
    places = [find(target) for target in targets] or [paths.ROOT]
    found = below(places)
    if not found:
        raise CourseError(
            f"There is no notebook in {', '.join(map(shown, places))}. Name a chapter "
            "such as ch02, or a file ending in .ipynb."
        )
    return found


def below(places: Sequence[Path]) -> list[Path]:
    """Return the notebooks at or below files and folders, each once, in order.

    A translation is left out: its code is run in the notebook that it translates.
    Raises `CourseError` for a place that is not there: nothing would be found in it.
    """
    places = [find(place) for place in places]  # the tree's own paths are absolute
    tree = paths.tree_files() if any(place.is_dir() for place in places) else []
    inside = [f for f in tree for place in places if f.is_relative_to(place)]
    files = {file for file in [*places, *inside] if file.suffix == ".ipynb"}
    return sorted(file for file in files if not paths.is_translation(file))


def shown(path: Path) -> str:
    """Return a path as a reader types it: relative to the course where it can be."""
    if path.is_absolute() and path.is_relative_to(paths.ROOT):
        return path.relative_to(paths.ROOT).as_posix()
    return str(path)
