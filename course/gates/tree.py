"""The project as the gates see it: every file read and parsed once.

A gate is a function ``check(tree) -> Iterator[Finding]``. It reads only what `Tree`
offers, so it is fast, can be run on any copy of the project and never needs git.

A place is ``README.md:12``, the line of a text file, or ``ch02.ipynb:cell 7``, where
cells of every kind are counted from 1, as ruff counts them.
"""

import ast
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from posixpath import join, normpath
from types import FunctionType, ModuleType
from typing import NewType
from urllib.parse import unquote

from course import CourseError, folders, paths
from course.markdown import Link, Page

SOLUTIONS = "exercise-solutions"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

#: One defect: its place, a colon, what is wrong and how to fix it.
Finding = NewType("Finding", str)


def short(text: str) -> str:
    """A text for a message, its end cut off where it is long."""
    return text if len(text) <= 60 else text[:57] + "..."


def gates(module: ModuleType) -> list[Callable]:
    """The gates of a module: its public functions that return findings."""
    return [
        one
        for name, one in vars(module).items()
        if isinstance(one, FunctionType) and one.__module__ == module.__name__
        if one.__annotations__.get("return") == Iterator[Finding]
        if not name.startswith("_")
    ]


@dataclass(frozen=True)
class Import:
    """One imported name: ``from module import name [as alias]``, or ``import module``.

    ``name`` is None for a plain ``import``. ``bound`` is the name that the importing
    file can use afterwards.
    """

    module: str
    name: str | None
    bound: str
    line: int

    @property
    def package(self) -> str:
        """The first part of the module's name: ``numpy`` for ``numpy.testing``."""
        return self.module.partition(".")[0]


def imports(nodes: Iterable[ast.AST]) -> Iterator[Import]:
    """Every absolute import among `nodes`."""
    for node in nodes:
        for alias in getattr(node, "names", ()):
            if isinstance(node, ast.Import):
                bound = alias.asname or alias.name.partition(".")[0]
                yield Import(alias.name, None, bound, node.lineno)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                bound = alias.asname or alias.name
                yield Import(node.module, alias.name, bound, node.lineno)


def definitions(tree: ast.Module) -> dict[str, ast.stmt]:
    """Functions, classes and UPPER_CASE constants at module level; the last one wins.

    A definition inside an ``if``, ``with``, ``for`` or ``try`` at module level counts;
    one inside a function or class does not.
    """
    found: dict[str, ast.stmt] = {}

    def visit(statements: Iterable[ast.stmt]) -> None:
        for node in statements:
            if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
                found[node.name] = node
                continue
            for name in _assigned(node):
                if name.lstrip("_").isupper():
                    found[name] = node
            for block in ("body", "orelse", "finalbody", "handlers"):
                visit(getattr(node, block, ()))

    visit(tree.body)
    return found


def _assigned(node: ast.stmt) -> Iterator[str]:
    """The plain names that one assignment statement binds."""
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        targets = [node.target]
    else:
        return
    for target in targets:
        for part in ast.walk(target):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                yield part.id


def parse(text: str) -> ast.Module | None:
    """The syntax tree of `text`, top-level ``await`` allowed; None if it has none."""
    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an odd escape in a string is ruff's business
        try:
            return compile(text, "<source>", "exec", flags, dont_inherit=True)
        except (SyntaxError, ValueError):
            return None


# Cell magics whose body runs as plain Python in the notebook's own namespace.
_PYTHON_MAGIC = re.compile(r"\A\s*%%(?:time|timeit|capture|prun)\b[^\n]*")


def parse_cell(text: str) -> ast.Module:
    """The syntax tree of a code cell; IPython's own syntax becomes plain calls.

    A cell that is not Python at all (``%%html``) gives a call of its magic, one that
    cannot be parsed an empty module: ruff reports syntax errors.
    """
    tree = parse(text)
    if tree is None:
        from IPython.core.inputtransformer2 import TransformerManager

        plain = _PYTHON_MAGIC.sub("", text)
        try:
            tree = parse(TransformerManager().transform_cell(plain))
        except SyntaxError:
            tree = None
    return tree or ast.Module(body=[], type_ignores=[])


_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # as terminals and tracebacks use it


class Code:
    """What gates ask of code, be it in a file or in a cell; found once for all."""

    tree: ast.Module  # empty when there is a syntax error

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """Every node of the syntax tree."""
        return list(ast.walk(self.tree))

    @cached_property
    def names(self) -> frozenset:
        """The names that the code mentions: variables, and attributes of anything."""
        found = {getattr(n, "id", getattr(n, "attr", None)) for n in self.nodes}
        return frozenset(found - {None})

    @cached_property
    def imports(self) -> list[Import]:
        return list(imports(self.nodes))

    @cached_property
    def definitions(self) -> dict[str, ast.stmt]:
        return definitions(self.tree)


@dataclass
class Cell(Code):
    """One notebook cell at its place."""

    place: str
    kind: str
    source: str
    raw: dict = field(repr=False)

    @property
    def outputs(self) -> list[dict]:
        return self.raw.get("outputs", [])

    @property
    def tags(self) -> frozenset:
        """Tags, and nbval's comment markers written as the tag that means the same."""
        tags = set(self.raw.get("metadata", {}).get("tags", []))
        for marker in re.findall(r"^\s*#\s*(NBVAL_\w+)", self.source, re.MULTILINE):
            tags.add(marker.lower().replace("_", "-"))
        if "nbval-raises-exception" in tags:
            tags.add("raises-exception")
        return frozenset(tags)

    @cached_property
    def tree(self) -> ast.Module:
        return parse_cell(self.source)

    def texts(self) -> Iterator[tuple[str, str]]:
        """(kind, text) of every textual output, without the codes that colour it.

        The kind is ``stream``, ``error`` or the MIME type of displayed text.
        """
        for output in self.outputs:
            kind = output.get("output_type")
            if kind == "stream":
                yield "stream", _COLOUR.sub("", "".join(output.get("text", "")))
            elif kind == "error":
                parts = [output.get("evalue", ""), *output.get("traceback", [])]
                yield "error", _COLOUR.sub("", "\n".join(parts))
            for mime, data in output.get("data", {}).items():
                if mime.startswith("text/") or mime == "image/svg+xml":
                    yield mime, "".join(data)


@dataclass
class Notebook:
    """One parsed notebook."""

    path: str
    size: int
    cells: list[Cell] = field(repr=False, default_factory=list)

    @cached_property
    def code(self) -> list[Cell]:
        """The code cells that hold any code."""
        return [c for c in self.cells if c.kind == "code" and c.source.strip()]

    @cached_property
    def prose(self) -> list[Page]:
        """The text of each markdown cell as a page."""
        cells = (c for c in self.cells if c.kind == "markdown")
        return [Page(self.path, c.source, c.place) for c in cells]

    @property
    def role(self) -> str:
        """``main``, ``summary``, ``solutions``, ``bonus``, ``translation``."""
        if paths.is_translation(self.path):
            return "translation"
        stem = PurePosixPath(self.path).stem
        if stem == SOLUTIONS:
            return "solutions"
        if not in_main_folder(self.path):
            return "bonus"
        named_for_chapter = stem == chapter(self.path)
        return "main" if named_for_chapter or "code-part" in stem else "summary"

    @cached_property
    def definitions(self) -> dict[str, tuple[Cell, ast.stmt]]:
        """What the notebook's cells define at top level; the last definition wins."""
        return {
            name: (cell, node)
            for cell in self.code
            for name, node in cell.definitions.items()
        }

    @cached_property
    def imports(self) -> list[tuple[Cell, Import]]:
        return [(cell, one) for cell in self.code for one in cell.imports]


@dataclass
class CodeFile(Code):
    """One Python file."""

    path: str
    text: str = field(repr=False)

    @cached_property
    def tree(self) -> ast.Module:
        return parse(self.text) or ast.Module(body=[], type_ignores=[])

    @property
    def is_test(self) -> bool:
        name = PurePosixPath(self.path).name
        return name.startswith("test_") or name == "conftest.py"


def folder(path: str) -> str:
    """The folder of a path; the root's is ``"."``."""
    return str(PurePosixPath(path).parent)


def chapter(path: str) -> str | None:
    """``ch05`` or ``appendix-D`` when `path` lies in a chapter's folder."""
    first = path.partition("/")[0]
    return first if folders.CHAPTER.fullmatch(first) else None


def in_main_folder(path: str) -> bool:
    """Whether `path` belongs to a chapter proper, not to one of its bonus folders."""
    name = chapter(path)
    return name is not None and folder(path) in (name, f"{name}/{folders.MAIN_FOLDER}")


def resolved(page: Page, link: Link) -> tuple[str, str] | None:
    """(path from the root, anchor) of a link within the project; None for others."""
    if re.match(r"[a-zA-Z][\w+.-]+:|//", link.target):
        return None
    target, _, anchor = link.target.partition("#")
    target = unquote(target.partition("?")[0])
    path = normpath(join(folder(page.path), target)) if target else page.path
    return path, unquote(anchor)


class Tree:
    """All files of the project at `root`; everything is read on first use and kept."""

    def __init__(self, root: Path = paths.ROOT) -> None:
        self.root = Path(root)
        self._texts: dict[str, str] = {}

    @cached_property
    def files(self) -> list[str]:
        """Paths relative to the root, with forward slashes, sorted."""
        found = (p.relative_to(self.root) for p in paths.tree_files(self.root))
        return sorted(p.as_posix() for p in found)

    @cached_property
    def entries(self) -> frozenset:
        """Files and the folders that hold them; exact in case on every system."""
        parents = {str(p) for f in self.files for p in PurePosixPath(f).parents}
        return frozenset(self.files) | parents

    def text(self, path: str) -> str:
        if path not in self._texts:
            try:
                self._texts[path] = (self.root / path).read_text(encoding="utf-8")
            except UnicodeDecodeError as problem:
                raise CourseError(f"{path} is not UTF-8: {problem}.") from None
        return self._texts[path]

    @cached_property
    def notebooks(self) -> dict[str, Notebook]:
        found = [f for f in self.files if f.endswith(".ipynb")]
        return {path: self._notebook(path) for path in found}

    def _notebook(self, path: str) -> Notebook:
        try:
            cells = [
                Cell(
                    f"{path}:cell {number}",
                    cell["cell_type"],
                    "".join(cell.get("source", "")),
                    cell,
                )
                for number, cell in enumerate(json.loads(self.text(path))["cells"], 1)
            ]
        except (ValueError, KeyError, TypeError) as problem:
            raise CourseError(f"{path} is not a notebook: {problem!r}.") from None
        return Notebook(path, (self.root / path).stat().st_size, cells)

    def code_cells(self) -> Iterator[Cell]:
        """The code cells of all notebooks that hold any code."""
        for notebook in self.notebooks.values():
            yield from notebook.code

    @cached_property
    def sources(self) -> dict[str, CodeFile]:
        found = [f for f in self.files if f.endswith(".py")]
        return {path: CodeFile(path, self.text(path)) for path in found}

    @cached_property
    def folders(self) -> dict[str, folders.Folder]:
        """What the folders say of themselves, by path."""
        return folders.read_all(self.root)

    @cached_property
    def _reading_order(self) -> list[str]:
        return folders.reading_order(self.folders)

    def chapter_rank(self, path: str) -> int:
        """The place of the path's chapter in the order in which chapters are read."""
        name, order = chapter(path), self._reading_order
        return order.index(name) if name in order else len(order)

    @cached_property
    def support(self) -> frozenset[str]:
        """The paths of support modules: public, imported, not taught."""
        return folders.files_of(self.folders, "support")

    @cached_property
    def modules(self) -> dict[str, CodeFile]:
        """The modules of the chapters by name, support modules included."""
        named = paths.summary_modules(self.root)
        relative = {n: p.relative_to(self.root).as_posix() for n, p in named.items()}
        return {n: self.sources[p] for n, p in relative.items() if p in self.sources}

    @cached_property
    def tests(self) -> list[CodeFile]:
        return [s for s in self.sources.values() if s.is_test]

    @cached_property
    def pages(self) -> dict[str, Page]:
        """The Markdown files."""
        found = [f for f in self.files if f.endswith(".md")]
        return {path: Page(path, self.text(path)) for path in found}

    def own_notebooks(self) -> Iterator[Notebook]:
        """The notebooks that are no translations of others."""
        return (n for n in self.notebooks.values() if n.role != "translation")

    def chapter_code(self) -> Iterator[CodeFile]:
        """The Python files of the chapters, tests aside."""
        for source in self.sources.values():
            if chapter(source.path) and not source.is_test:
                yield source

    def imports(self) -> Iterator[tuple[str, str, Import]]:
        """(path, place, import) of every import in files and notebooks."""
        for source in self.sources.values():
            for one in source.imports:
                yield source.path, f"{source.path}:{one.line}", one
        for notebook in self.notebooks.values():
            for cell, one in notebook.imports:
                yield notebook.path, cell.place, one

    def all_pages(self) -> Iterator[Page]:
        """Every piece of Markdown: the files, then the markdown cells of notebooks."""
        yield from self.pages.values()
        for notebook in self.notebooks.values():
            yield from notebook.prose
