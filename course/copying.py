"""The command `copy`: a summary module or a chapter, into a folder of the reader's own.

Standard library only, and no environment needed.
"""

import ast
import filecmp
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from course import CourseError, paths

#: Files to copy, each with its place in the reader's folder.
Plan = Sequence[tuple[Path, Path]]

_CHAPTER_NAME = re.compile(r"ch\d\d|appendix-[A-Za-z]")


def imported_names(path: Path) -> set[str]:
    """Return the top-level names of all modules that the file imports, wherever in it.

    Raises `CourseError` for a file that is no Python.
    """
    try:
        tree = ast.parse(Path(path).read_bytes(), filename=str(path))
    except SyntaxError as problem:
        raise CourseError(
            f"{path}, line {problem.lineno}, is not valid Python. "
            "Fix it, or take the file from a fresh copy of the course."
        ) from None
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def with_imports(name: str, root: Path = paths.ROOT) -> dict[str, Path]:
    """Return {name: file} of the summary module and of those that it needs."""
    modules = paths.summary_modules(root)
    found: dict[str, Path] = {}
    waiting = [name]
    while waiting:
        current = waiting.pop(0)
        if current in modules and current not in found:
            found[current] = modules[current]
            waiting += sorted(imported_names(modules[current]))
    return found


def _chapter(name: str, root: Path) -> Path | None:
    """Return the folder of the chapter that `name` means, None if it is none."""
    prefix, _, letter = name.partition("-")
    folder = root / (f"{prefix}-{letter.upper()}" if letter else name)
    return folder if _CHAPTER_NAME.fullmatch(name) and folder.is_dir() else None


def _plan(name: str, root: Path) -> Plan:
    """Return [(file, its place in the reader's folder)] for what `name` means."""
    if chapter := _chapter(name, root):
        files = [f for f in paths.tree_files(root) if chapter in f.parents]
        return [(file, file.relative_to(chapter)) for file in files]
    name = name.removesuffix(".py")
    files = with_imports(name, root)
    if not files:
        known = sorted(paths.summary_modules(root))
        chapters = sorted(
            p.name for p in root.iterdir() if _CHAPTER_NAME.fullmatch(p.name)
        )
        raise CourseError(
            f"There is no module or chapter named {name}. Modules: "
            f"{', '.join(known)}. Chapters: {', '.join(chapters)}."
        )
    return [(file, Path(file.name)) for file in files.values()]


def _refuse_bad_folder(folder: Path, root: Path) -> None:
    """Raise unless files may be put below `folder`."""
    real, tree = folder.resolve(), Path(root).resolve()
    runs = paths.runs_dir().resolve()
    inside = real == tree or tree in real.parents
    if inside and real != runs and runs not in real.parents:
        raise CourseError(
            f"{folder} lies inside the course, where a second file of the same name "
            f"would be mistaken for the first. Choose a folder outside, or in {runs}."
        )


def _copy_all(plan: Plan, folder: Path) -> None:
    """Copy the files and say so; a file that differs stops everything beforehand."""
    there = {place for _, place in plan if (folder / place).exists()}
    changed = [
        str(place)
        for source, place in plan
        if place in there and not filecmp.cmp(source, folder / place, shallow=False)
    ]
    if changed:
        raise CourseError(
            f"{folder} already has files of these names with other content: "
            f"{', '.join(changed)}. Nothing was copied. Move them away, or choose "
            "another folder."
        )
    for source, place in plan:
        target = folder / place
        if place not in there:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        print(f"{'as before' if place in there else 'copied'}: {target}")


def copy(name: str, folder: str | Path, root: Path = paths.ROOT) -> int:
    """Copy what `name` means into `folder` and say what to do next; return 0.

    `name` is a summary module (``dataloader``) or a chapter (``ch02``).  No file is
    ever overwritten: if one differs, nothing is copied.  Raises `CourseError`.
    """
    root, folder = Path(root), Path(folder).expanduser()
    plan = _plan(name, root)
    _refuse_bad_folder(folder, root)
    try:
        _copy_all(plan, folder)
    except OSError as problem:
        raise CourseError(
            f"The files could not be copied: {problem.strerror} "
            f"({problem.filename}). Choose a folder that you may write to."
        ) from None
    print(_next_steps(name, root, folder))
    return 0


def _next_steps(name: str, root: Path, folder: Path) -> str:
    if _chapter(name, root):
        return (
            "Next, in the course's folder:\n"
            f'  python3 -m course lab "{folder.absolute()}"\n'
            "The notebooks use the modules beside them, so change what you like."
        )
    name = name.removesuffix(".py")
    return (
        "Next, with a Python that has the packages of requirements.txt:\n"
        f'  cd "{folder.absolute()}"\n'
        f'  python -c "import {name}; help({name})"'
    )
