"""The command `copy`: a module, a chapter or a bonus folder, into the reader's own.

A module lands in the folder itself, with the modules that it imports. A chapter keeps
its name and its folders, so that several fit into one folder. Links between its pages
stay as they are; those that lead out of it lead to the course's own files from there.

Standard library only, and no environment needed.
"""

import ast
import difflib
import json
import os
import posixpath
import re
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath

from course import CourseError, folders, markdown, paths

#: By place in the reader's folder: the file of the course, and what it is to hold.
Plan = Mapping[Path, tuple[Path, bytes]]

# What gives answers away: solved exercises, and tests, which hold right and wrong ones.
_ANSWERS = re.compile(r"exercise-solutions\..*|test_.*\.py|conftest\.py")


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


# --- What a name means ----------------------------------------------------------------


def _typed(name: str, root: Path) -> str:
    """Return what was typed as a path from the root, in small letters.

    ``ch02/``, ``./ch02`` and ``/home/me/course/ch02`` are all ``ch02``.
    """
    path = Path(name).expanduser()
    if path.is_absolute() and path.resolve().is_relative_to(root.resolve()):
        path = path.resolve().relative_to(root.resolve())
    return posixpath.normpath(path.as_posix()).lower()


def _places(root: Path) -> dict[str, Path]:
    """Return the chapters and bonus folders by their paths in small letters."""
    known = [root / place for place in folders.read_all(root)]
    return {
        place.relative_to(root).as_posix().lower(): place
        for place in [*known, *root.iterdir()]
        if place.is_dir() and folders.CHAPTER.match(place.relative_to(root).as_posix())
    }


def _meant(name: str, root: Path) -> Path | str:
    """Return the folder that `name` means, or the name of a module."""
    typed, places = _typed(name, root), _places(root)
    if typed in places:
        return places[typed]
    modules = paths.summary_modules(root)
    stem = PurePosixPath(typed).name.removesuffix(".py")
    for module in modules:
        if module.lower() == stem:
            return module
    last = {posixpath.basename(place): place for place in places}
    if stem in last:  # a bonus folder by its own name
        return places[last[stem]]
    # "kv-cache" is near "03_kv-cache", whatever their lengths.
    near = {re.sub(r"^\d\d_(bonus_)?", "", key): place for key, place in last.items()}
    near |= {module.lower(): module for module in modules} | last
    close = [str(p) for p in PurePosixPath(typed).parents if str(p) in places]
    for word in (stem, stem.replace("_", "-")):
        close += [near[key] for key in difflib.get_close_matches(word, near, 3, 0.6)]
    if close:
        hint = f"Did you mean {' or '.join(list(dict.fromkeys(close))[:3])}?"
    else:
        chapters = ", ".join(p.name for k, p in sorted(places.items()) if "/" not in k)
        hint = f"Chapters: {chapters}. Modules are the files in them, such as gpt.py."
    raise CourseError(
        f"There is no module, chapter or bonus folder named {name}. {hint}"
    )


# --- What the copy holds --------------------------------------------------------------


def _plan(what: Path | str, root: Path, folder: Path, for_class: bool) -> Plan:
    """Return what is to be copied into `folder`, by its place there."""
    if isinstance(what, str):
        files = with_imports(what, root).values()
        return {Path(file.name): (file, file.read_bytes()) for file in files}
    files = [
        file
        for file in paths.tree_files(root)
        if what in file.parents and not (for_class and _ANSWERS.fullmatch(file.name))
    ]
    copied = {file.relative_to(root).as_posix() for file in files}
    return {
        file.relative_to(root): (file, _content(file, root, folder, copied, for_class))
        for file in files
    }


def _content(
    file: Path, root: Path, folder: Path, copied: Iterable[str], for_class: bool
) -> bytes:
    """Return what the copy of a file holds: its links lead on from the new place."""
    content = file.read_bytes()
    place = file.relative_to(root)
    there = (folder / place).resolve().parent

    def leads(target: str) -> str | None:
        """The target in the copy; None where the class must not follow the link."""
        parts = urllib.parse.urlsplit(target)
        if parts.scheme or parts.netloc or not parts.path:
            return target
        path = posixpath.normpath(
            posixpath.join(place.parent.as_posix(), urllib.parse.unquote(parts.path))
        )
        if for_class and _ANSWERS.fullmatch(posixpath.basename(path)):
            return None
        if any(one == path or one.startswith(f"{path}/") for one in copied):
            return target
        try:
            lies = Path(os.path.relpath((root / path).resolve(), there)).as_posix()
        except ValueError:  # Windows: another drive
            return (root / path).resolve().as_uri()
        return urllib.parse.urlunsplit(
            ("", "", urllib.parse.quote(lies), "", parts.fragment)
        )

    if file.suffix == ".md":
        return _with_links(content.decode("utf-8"), leads).encode("utf-8")
    if file.suffix == ".ipynb":
        notebook = json.loads(content)
        changed = False
        for cell in notebook.get("cells", ()):
            text = "".join(cell["source"])
            if cell["cell_type"] == "markdown" and _with_links(text, leads) != text:
                lines = _with_links(text, leads).splitlines(keepends=True)
                cell["source"], changed = lines, True
        if changed:
            text = json.dumps(notebook, ensure_ascii=False, indent=1)
            return f"{text}\n".encode()
    return content


def _with_links(text: str, leads: Callable[[str], str | None]) -> str:
    """Return Markdown with the targets of its links as `leads` gives them."""
    for link in reversed(markdown.Page("", text).links):
        written = f"[{link.text}]({link.target})"
        target, end = leads(link.target), link.offset + len(written)
        if text[link.offset : end] == written and target != link.target:
            new = link.text if target is None else f"[{link.text}]({target})"
            text = text[: link.offset] + new + text[end:]
    return text


# --- Copying --------------------------------------------------------------------------


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


def _alike(one: bytes, other: bytes, suffix: str) -> bool:
    """Whether two files are equal; where links of pages lead does not count."""
    if suffix in (".md", ".ipynb"):
        one, other = (re.sub(rb"\]\([^()\s]*\)", b"]", text) for text in (one, other))
    return one == other


def _copy_all(plan: Plan, folder: Path) -> None:
    """Write the files and say so; a file that differs stops everything beforehand."""
    there = {place for place in plan if (folder / place).exists()}
    changed = [
        place.as_posix()
        for place in sorted(there)
        if not _alike((folder / place).read_bytes(), plan[place][1], place.suffix)
    ]
    if changed:
        raise CourseError(
            f"{folder} already has files of these names with other content: "
            f"{', '.join(changed)}. Nothing was copied. Move them away, or choose "
            "another folder."
        )
    for place, (_, content) in plan.items():
        target = folder / place
        if place not in there:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        print(f"{'as before' if place in there else 'copied'}: {target}")


def copy(
    name: str, folder: str | Path, root: Path = paths.ROOT, for_class: bool = False
) -> int:
    """Copy what `name` means into `folder` and say what to do next; return 0.

    `name` is a summary module (``dataloader``), a chapter (``ch02``) or a bonus folder
    (``ch04/03_kv-cache``).  With `for_class` solved exercises and tests are left out.
    No file is ever overwritten: if one differs, nothing is copied.  Raises
    `CourseError`.
    """
    root, folder = Path(root), Path(folder).expanduser()
    what = _meant(name, root)
    _refuse_bad_folder(folder, root)
    try:
        plan = _plan(what, root, folder, for_class)
        _copy_all(plan, folder)
    except OSError as problem:
        raise CourseError(
            f"The files could not be copied: {problem.strerror} "
            f"({problem.filename}). Choose a folder that you may write to."
        ) from None
    print(_next_steps(what, root, folder))
    return 0


def _next_steps(what: Path | str, root: Path, folder: Path) -> str:
    if isinstance(what, Path):
        return (
            "Next, in the course's folder:\n"
            f'  python3 -m course lab "{folder.absolute() / what.relative_to(root)}"\n'
            "Change what you like: the course's own files stay as they are."
        )
    return (
        "Next, with a Python that has the packages of requirements.txt:\n"
        f'  cd "{folder.absolute()}"\n'
        f'  python -c "import {what}; help({what})"'
    )
