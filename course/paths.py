"""Where things lie: the tree, its summary modules, the cache, the path file.

Standard library only: the set-up uses this before the environment exists.
"""

from __future__ import annotations

import keyword
import os
import re
import sys
from collections.abc import Iterator
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path

from course import CourseError, folders

ROOT = Path(__file__).resolve().parent.parent
ENV = ROOT / ".venv"

PATH_FILE = "gpt-by-hand.pth"
PACKAGE_FOLDERS = ("site-packages", "dist-packages")

# Python files in chapters that are about the course and not for import by readers,
# unless their folder.toml calls them support.
_NO_SUMMARY = re.compile(r"test_.*|.*_checks|experiments|conftest|__.*__")
# Folders that tools make; `runs` is only skipped at the root.
_SKIPPED_FOLDERS = {
    ".git",
    ".venv",
    "__pycache__",
    ".ipynb_checkpoints",
    ".virtual_documents",
    ".pytest_cache",
    ".ruff_cache",
    ".mypy_cache",
    ".hypothesis",
    "node_modules",
}
_SKIPPED_FILES = {".DS_Store", "Thumbs.db", "desktop.ini"}


def _is_module(path: Path, known: dict[str, folders.Folder]) -> bool:
    """Tell whether `path` from the root, in a chapter, is a file that a reader imports.

    Not a test, not the exercise checks, not ``experiments.py``, and not what a
    `folder.toml` calls a web app. Support modules count, whatever their name.
    """
    name, place = path.stem, path.as_posix()
    importable = name.isidentifier() and not keyword.iskeyword(name)
    if path.suffix != ".py" or not importable:
        return False
    if place in folders.files_of(known, "apps"):
        return False
    supports = place in folders.files_of(known, "support")
    return supports or _NO_SUMMARY.fullmatch(name) is None


def is_translation(notebook: Path | str) -> bool:
    """Tell whether a notebook is another one in Japanese, such as ``ch02.ja.ipynb``.

    Its code and outputs are the English one's, so it is never run itself.
    """
    return Path(notebook).name.endswith(".ja.ipynb")


def _below(folder: Path) -> Iterator[Path]:
    """Every project file below `folder`, in no useful order."""
    for place, subfolders, files in os.walk(folder):
        here = Path(place)
        subfolders[:] = [
            name
            for name in subfolders
            # Whatever its name, a folder with this file is somebody's environment.
            if name not in _SKIPPED_FOLDERS
            and not (here / name / "pyvenv.cfg").is_file()
        ]
        for name in files:
            if name not in _SKIPPED_FILES and not name.endswith((".pyc", ".pyo")):
                yield here / name


def tree_files(root: Path = ROOT) -> list[Path]:
    """List all files of the project, sorted, without asking git.

    Left out is what tools and readers produce: ``.git``, environments, ``runs`` at the
    root, caches, checkpoints.  An unpacked archive and a clone give the same list.
    Raises `CourseError` where there is no such folder: an empty list would pass every
    test of the tree.
    """
    if not root.is_dir():
        raise CourseError(f"{root} is not a folder, so it has no files to list.")
    runs = root / "runs"
    return sorted(path for path in _below(root) if runs not in path.parents)


def summary_modules(root: Path = ROOT) -> dict[str, Path]:
    """Map the name of every module to its file, in the order of the folders.

    Where two files have one name the first counts; a test of the tree refuses the pair.
    """
    known, modules = folders.read_all(root), {}
    for chapter in sorted(root.iterdir()):
        if folders.CHAPTER.fullmatch(chapter.name) and chapter.is_dir():
            for path in sorted(_below(chapter)):
                if _is_module(path.relative_to(root), known):
                    modules.setdefault(path.stem, path)
    return modules


def namesakes(folder: Path) -> Iterator[Path]:
    """Yield what in a folder hides a module of Python or an installed package.

    ``tiktoken.py`` beside a notebook or script is what ``import tiktoken`` finds there.
    """
    packages = [e for e in sys.path if os.path.basename(e) in PACKAGE_FOLDERS]
    for file in sorted(folder.glob("*")):
        name = file.stem if file.suffix == ".py" else file.name
        if file.suffix != ".py" and not (file / "__init__.py").is_file():
            continue
        # These are found before any file is looked for.
        if BuiltinImporter.find_spec(name) or FrozenImporter.find_spec(name):
            continue
        spec = PathFinder.find_spec(name, packages)
        if name in sys.stdlib_module_names or (spec and spec.origin):
            yield file


def cache_dir() -> Path:
    """Return the folder for downloaded files (``COURSE_CACHE`` moves it)."""
    from course import startup

    return Path(startup.cache_folder())


def runs_dir() -> Path:
    """Return where notebooks and scripts write (``COURSE_RUNS`` moves it)."""
    from course import startup

    return Path(startup.place_of("COURSE_RUNS") or ROOT / "runs")


def path_line(site_packages: Path | str, folder: Path | str) -> str:
    """Return the line of a path file that adds `folder` to ``sys.path``.

    The line is relative, so that tree and environment can be moved together, and it is
    ASCII, because Python 3.11 and 3.12 decode path files with the locale's encoding.
    Where no such line exists, a statement with an escaped literal does the same at run
    time; only editors cannot follow it.
    """
    try:
        line = os.path.relpath(folder, site_packages)
    except ValueError:  # Windows: another drive
        line = os.path.abspath(folder)
    if line.isascii():
        return line
    name = ascii(os.path.abspath(folder))
    return f"import sys; {name} in sys.path or sys.path.append({name})"


def path_file_text(site_packages: Path | str, root: Path = ROOT) -> str:
    """Return what the path file in `site_packages` has to say about the tree `root`."""
    modules = [path.parent for path in summary_modules(root).values()]
    places = dict.fromkeys([root, *modules])
    lines = [path_line(site_packages, place) for place in places]
    # Python runs this at each start of the environment.  Should the tree be gone one
    # day, the environment must go on working without a word.
    attempt = r"try:\n import course.startup\nexcept ImportError:\n pass"
    return "\n".join([*lines, f'import sys; exec("{attempt}")', ""])


def write_text_atomically(path: Path, text: str) -> None:
    """Write a small file: a reader sees the old one or the new one, never half."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_path_file(site_packages: Path | str, root: Path = ROOT) -> Path:
    """Make the summary modules of `root` importable in the environment.

    `site_packages` is the environment's folder of that name.  The file is touched only
    if it has to change, so it is cheap to call this at every start.  Returns its path.
    """
    path = Path(site_packages) / PATH_FILE
    text = path_file_text(site_packages, root)
    try:
        current = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        current = None
    if current != text:
        write_text_atomically(path, text)
    return path
