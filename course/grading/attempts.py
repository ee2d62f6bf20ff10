"""What a student's notebook says to each exercise: the cell, and what it needs.

An exercise is a call of a check in a notebook of the course. A student's cell is the
last one that calls the same check. Of the cells above, only those statements are kept
that give the cell's names a value: nobody waits for a training run that no exercise
asks for.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import symtable
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from course import CourseError, paths

_CHECK = re.compile(r'^@check\("([^"]+)"\)\ndef (\w+)\(', re.MULTILINE)
_MAGIC = re.compile(r"^(\s*)[%!].*$", re.MULTILINE)
_IMPORTS = (ast.Import, ast.ImportFrom)
_COMPOUND = (ast.For, ast.While, ast.If, ast.Try)


@dataclass(frozen=True)
class Exercise:
    """An exercise as the course asks it.

    `check` is the name of its check in the module `checks`, `stub` the cell as it is
    handed out, and `notebook` the path of its notebook from the root.
    """

    number: str
    check: str
    checks: str
    cell_id: str
    stub: str
    notebook: str


@dataclass(frozen=True)
class Attempt:
    """What a student wrote: the cell, and the statements above that it needs."""

    exercise: Exercise
    cell: str
    before: tuple[str, ...]


def exercises(root: Path = paths.ROOT) -> dict[str, Exercise]:
    """Return all exercises of the course by the names of their checks, in order."""
    files = paths.tree_files(root)
    checks = {
        name: (file.stem, number)
        for file in files
        if file.name.endswith("_checks.py") and not file.name.startswith("test_")
        for number, name in _CHECK.findall(file.read_text(encoding="utf-8"))
    }
    found: dict[str, Exercise] = {}
    for file in files:
        if file.suffix != ".ipynb" or _is_solution(file) or paths.is_translation(file):
            continue
        for cell_id, source in code_cells(file):
            for name in re.findall(r"^(\w+)\(", source, re.MULTILINE):
                if name in checks:
                    module, number = checks[name]
                    inside = file.relative_to(root).as_posix()
                    asked = Exercise(number, name, module, cell_id, source, inside)
                    found.setdefault(name, asked)
    return found


def code_cells(notebook: Path) -> list[tuple[str, str]]:
    """Return [(id, source)] of a notebook's code cells; `CourseError` if it is none."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        return [
            (str(cell.get("id", "")), "".join(cell["source"]))
            for cell in cells
            if cell["cell_type"] == "code"
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise CourseError(f"{notebook.name} is not a readable notebook") from None


def handed_in(folder: Path) -> dict[str, list[Path]]:
    """Return the notebooks in a folder by student.

    A student is a notebook that lies in the folder itself, or a folder in it.
    """
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*.ipynb")):
        inside = file.relative_to(folder)
        if ".ipynb_checkpoints" not in inside.parts and not _is_solution(file):
            student = file.stem if len(inside.parts) == 1 else inside.parts[0]
            found.setdefault(student, []).append(file)
    return found


def of_notebook(
    cells: Sequence[tuple[str, str]], known: Mapping[str, Exercise]
) -> Iterator[tuple[Exercise, Attempt | None]]:
    """Yield every exercise that a notebook belongs to, with the attempt if there is.

    The cells are those of `code_cells`. Where one notebook of the course asks an
    exercise, all its exercises count: a cell that was deleted is not started.
    """
    text = "\n".join(source for _, source in cells)
    used = {known[name].notebook for name in known if re.search(rf"\b{name}\b", text)}
    parsed = [_parsed(source) for _, source in cells]
    for exercise in (one for one in known.values() if one.notebook in used):
        calls = re.compile(rf"\b{exercise.check}\s*\(")
        mine = [i for i, (_, source) in enumerate(cells) if calls.search(source)]
        mine = mine or [
            i for i, (name, _) in enumerate(cells) if name == exercise.cell_id
        ]
        stub = [one.text for one in _parsed(exercise.stub)]
        mine = [i for i in mine if [one.text for one in parsed[i]] != stub]
        if not mine:
            yield exercise, None
            continue
        last = mine[-1]
        above = [one for cell in parsed[:last] for one in cell]
        before = tuple(one.text for one in needed(above, parsed[last]))
        yield exercise, Attempt(exercise, cells[last][1], before)


def parse(source: str) -> ast.Module | None:
    """Return the tree of a cell, lines for IPython alone left out; None if it has none.

    >>> ast.unparse(parse("%time x = 1\\ny = 2"))
    'pass\\ny = 2'
    """
    for text in (source, _MAGIC.sub(r"\1pass", source)):
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return None


@dataclass(frozen=True)
class CellStatement:
    """A statement, and global names: it gives a value to some, changes others inside.

    It uses names now, and others later, when a function that it defines is called.
    """

    text: str
    given: frozenset[str]
    changed: frozenset[str]
    used: frozenset[str]
    later: frozenset[str]
    certain: bool  # it gives those values whatever happens
    imports: bool


def needed(
    above: Sequence[CellStatement], cell: Sequence[CellStatement]
) -> list[CellStatement]:
    """Return those statements that give a value to what the cell uses, in order.

    >>> lines = _parsed("a = 1; c = train(a); b = 1; b = [a]; d = [c]")
    >>> [one.text for one in needed(lines, _parsed("print(b)"))]
    ['a = 1', 'b = [a]']
    """
    modules = {name for one in above if one.imports for name in one.given}
    own = {name for one in cell if one.certain for name in one.given}
    wanted, late = set(), {name for one in cell for name in one.later} - own
    for one in reversed(cell):
        wanted -= one.given if one.certain else set()
        wanted |= one.used
    while True:
        kept, missing, later = [], wanted | late, set()
        for one in reversed(above):
            if (one.given | (one.changed - modules)) & missing:
                missing -= one.given if one.certain else set()
                missing |= one.used
                later |= one.later - own
                kept.append(one)
        if later <= late:
            return kept[::-1]
        late |= later  # functions look their names up when they are called


@functools.lru_cache(maxsize=4096)  # most cells of a class are those of the course
def _parsed(source: str) -> tuple[CellStatement, ...]:
    tree = parse(source)
    return tuple(map(_statement, tree.body)) if tree else ()


def _statement(node: ast.stmt) -> CellStatement:
    text = ast.unparse(node)
    table = symtable.symtable(text, "cell", "exec")
    given, used, later = set(), set(), set()
    for symbol in table.get_symbols():
        if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace():
            given.add(symbol.get_name())
        if symbol.is_referenced():
            used.add(symbol.get_name())
    waiting = list(table.get_children())
    while waiting:
        inner = waiting.pop()
        waiting += inner.get_children()
        for symbol in inner.get_symbols():
            if symbol.is_global() and symbol.is_referenced():
                later.add(symbol.get_name())
            if symbol.is_declared_global() and symbol.is_assigned():
                given.add(symbol.get_name())
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        used |= later  # bodies of classes, and comprehensions, run at once
    sets = map(frozenset, (given, _changed(node), used, later))
    certain, imports = not isinstance(node, _COMPOUND), isinstance(node, _IMPORTS)
    return CellStatement(text, *sets, certain=certain, imports=imports)


def _changed(node: ast.AST) -> Iterator[str]:
    """Yield names whose objects a statement changes: `x[0] = 1`, `x.append(2)`."""
    for part in ast.walk(node):
        targets: list[ast.expr] = []
        if isinstance(part, (ast.Assign, ast.Delete)):
            targets = list(part.targets)
        elif isinstance(part, (ast.AugAssign, ast.AnnAssign)):
            targets = [part.target]
        elif isinstance(part, ast.Expr) and isinstance(part.value, ast.Call):
            targets = [part.value.func]
        for target in targets:
            if isinstance(target, (ast.Attribute, ast.Subscript)):
                while isinstance(target, (ast.Attribute, ast.Subscript)):
                    target = target.value
                if isinstance(target, ast.Name):
                    yield target.id


def _is_solution(file: Path) -> bool:
    return file.name.startswith("exercise-solutions")
