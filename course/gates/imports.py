"""How the code of the chapters hangs together: who imports whom, and one home each."""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath

from course import folders
from course.gates.dependencies import covers, is_installed, pinned
from course.gates.drift import comparable, public_names, teaches
from course.gates.tree import (
    CodeFile,
    Finding,
    Import,
    Notebook,
    Tree,
    chapter,
    folder,
    in_main_folder,
)

#: From the ground up: a wing imports from itself and from those before it.
WINGS = ("", "installation", "running", "gates", "testing")
FRONT = ("__main__", "commands", "doctor", "lab")
MIN_COPY = 5  # lines: shorter definitions may agree by chance


def imports_look_back(tree: Tree) -> Iterator[Finding]:
    """A chapter imports from itself and earlier ones, their bonus folders included.

    Holds for modules, checks and notebooks of a chapter proper; a notebook may show
    what a later bonus folder makes of its subject. Bonus folders may import everything;
    so may ``experiments.py``, which compares.
    """
    for source in tree.chapter_code():
        if source.path.endswith("/experiments.py"):
            continue
        for one in source.imports:
            yield from _looks_ahead(tree, source.path, str(one.line), one)
    for notebook in tree.notebooks.values():
        for cell, one in notebook.imports:
            yield from _looks_ahead(tree, notebook.path, cell.where, one)


def _looks_ahead(tree: Tree, path: str, where: str, one: Import) -> Iterator[Finding]:
    module = tree.modules.get(one.package)
    if module is None or not in_main_folder(path):
        return
    if path.endswith(".ipynb") and not in_main_folder(module.path):
        return
    if tree.chapter_rank(module.path) > tree.chapter_rank(path):
        yield Finding(
            path,
            where,
            f"imports {one.package}, which belongs to {chapter(module.path)} and so "
            "comes later; move what is needed to this chapter's module, or this code "
            "to a bonus folder.",
        )


def no_cycles(tree: Tree) -> Iterator[Finding]:
    """No module or folder imports itself through others, also not inside functions."""
    graph = {
        name: sorted({i.package for i in module.imports} & set(tree.modules))
        for name, module in tree.modules.items()
    }
    folders: dict[str, list[str]] = {folder(m.path): [] for m in tree.modules.values()}
    doors = {}  # the first import that leads from one folder to another
    for name, module in tree.modules.items():
        for other in graph[name]:
            step = folder(module.path), folder(tree.modules[other].path)
            if step[0] != step[1] and step not in doors:
                doors[step] = name, other
                folders[step[0]].append(step[1])
    modules = [list(zip(cycle, [*cycle[1:], cycle[0]])) for cycle in _cycles(graph)]
    rooms = [
        [doors[step] for step in zip(cycle, [*cycle[1:], cycle[0]])]
        for cycle in _cycles(folders)
    ]
    for what, steps in [
        *(("modules", steps) for steps in modules),
        *(("folders", steps) for steps in rooms),
    ]:
        importer, imported = steps[0]
        first = tree.modules[importer]
        circle = ", ".join(f"{one} imports {other}" for one, other in steps)
        line = next(i.line for i in first.imports if i.package == imported)
        yield Finding(
            first.path,
            str(line),
            f"the {what} import one another in a circle ({circle}); move what they "
            "share into the earliest of them.",
        )


def _cycles(graph: dict[str, list[str]]) -> Iterator[tuple[str, ...]]:
    """Each circle that a walk along the arrows of a graph comes back to."""
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if name in trail:
            yield trail[trail.index(name) :]
        elif name not in done:
            for other in graph[name]:
                yield from walk(other, (*trail, name))
            done.add(name)

    for name in graph:
        yield from walk(name, ())


def modules_stand_alone(tree: Tree) -> Iterator[Finding]:
    """A summary module works in an empty folder beside the modules that it imports.

    It imports the standard library, packages of requirements.txt and other summary
    modules; `course` only inside the function that fetches a file.
    """
    base = pinned(tree, "requirements.txt")
    for module in tree.modules.values():
        for one in module.imports:
            if one.package == "course":
                if one.top_level:
                    yield Finding(
                        module.path,
                        str(one.line),
                        "imports course at the top, so a copy of the module would not "
                        "start elsewhere; import it inside the function that fetches "
                        "a file.",
                    )
            elif one.package not in tree.modules and not covers(base, one.package):
                yield Finding(
                    module.path,
                    str(one.line),
                    f"imports {one.package}, which is neither in requirements.txt nor "
                    "a summary module; a module must run with the base alone.",
                )


def course_imports_no_chapter(tree: Tree) -> Iterator[Finding]:
    """`course` is support: it must work when every chapter is gone."""
    for source in tree.sources.values():
        if not source.path.startswith("course/") or source.is_test:
            continue
        for one in source.imports:
            if one.package in tree.modules:
                yield Finding(
                    source.path,
                    str(one.line),
                    f"imports the chapter module {one.package}; pass what is needed in "
                    "as an argument, or move this code to the chapter.",
                )


def course_is_built_upwards(tree: Tree) -> Iterator[Finding]:
    """No import in `course` runs back up: shelf, installation, running, gates, testing.

    The shelf, the files that lie in `course` itself, imports no wing. The commands at
    its front may, and only installation at the top, because the packages that the
    others need may not be there yet.
    """
    for source, here in _course_code(tree):
        front = not here and PurePosixPath(source.path).stem in FRONT
        for one in source.imports:
            there = _wing(f"{one.module}.{one.name or ''}")
            if there is None or WINGS.index(there) <= WINGS.index(here):
                continue
            if not front or (one.top_level and there != "installation"):
                yield Finding(
                    source.path,
                    str(one.line),
                    f"imports {one.module}, which belongs to {there}, further up than "
                    f"{here or 'the shelf'}; pass what is needed in, or move it down.",
                )


def installation_needs_no_package(tree: Tree) -> Iterator[Finding]:
    """What makes the environment runs before it is there: Python's own library only."""
    for source, here in _course_code(tree):
        for one in source.imports if here == "installation" else ():
            if one.package not in ("course", *sys.stdlib_module_names):
                yield Finding(
                    source.path,
                    str(one.line),
                    f"imports {one.package} before any package is installed; use the "
                    "standard library.",
                )


def _course_code(tree: Tree) -> Iterator[tuple[CodeFile, str]]:
    """(file, its wing) of `course`, tests aside."""
    for source in tree.sources.values():
        wing = _wing(source.path.removesuffix(".py").replace("/", "."))
        if wing is not None and not source.is_test:
            yield source, wing


def _wing(module: str) -> str | None:
    """The wing of a module of `course`; "" for the shelf, None for other modules."""
    first, _, rest = module.partition(".")
    if first != "course":
        return None
    wing = rest.partition(".")[0]
    return wing if wing in WINGS else ""


def file_names_are_unique(tree: Tree) -> Iterator[Finding]:
    """Modules and test files share one name space; an installed package wins over both.

    Summary modules, checks and tests are imported by bare name from anywhere.
    """
    homes = defaultdict(list)
    for path in tree.sources:
        stem = PurePosixPath(path).stem
        if stem in ("__init__", "__main__", "conftest"):
            continue
        if path in folders.files_of(tree.folders, "apps"):
            continue  # nobody imports a web app
        named = tree.modules.get(stem)
        if stem.startswith("test_") or stem.endswith("_checks") or named:
            homes[stem].append(path)
    for stem, places in homes.items():
        # `course.figures` and a module `figures` do not meet.
        bare = [p for p in places if stem.startswith("test_") or chapter(p)]
        for other in bare[1:]:
            yield Finding(
                other,
                "1",
                f"has the name of {bare[0]}, and both are imported by bare name; "
                "rename one of them.",
            )
        if stem in tree.modules and is_installed(stem):
            yield Finding(
                places[0],
                "1",
                f"is called like an installed package or a module of Python ({stem}), "
                "which would be imported instead; rename the file.",
            )


def class_names_are_unique(tree: Tree) -> Iterator[Finding]:
    """A class name means one thing in the whole tree.

    A notebook's definition of its own module's class is that one thing; what notebooks
    define against other modules is drift's business; tests may name classes freely.
    """
    homes: dict[str, list[tuple[str, str]]] = defaultdict(list)
    taken = set()
    for source in tree.sources.values():
        if source.is_test:
            continue
        for name, node in source.definitions.items():
            if isinstance(node, ast.ClassDef):
                homes[name].append((source.path, str(node.lineno)))
                if source in tree.modules.values():
                    taken.add(name)
    for notebook in tree.own_notebooks():
        for name, (cell, node) in notebook.definitions.items():
            if isinstance(node, ast.ClassDef) and name not in taken:
                homes[name].append((notebook.path, cell.where))
    for name, places in homes.items():
        for path, where in places[1:]:
            yield Finding(
                path,
                where,
                f"the class {name} exists in {places[0][0]} too; import that one, or "
                "give this one a name that says how it differs.",
            )


def nothing_is_copied(tree: Tree) -> Iterator[Finding]:
    """What an earlier chapter built is imported, never copied."""
    for path in tree.files:
        stem = PurePosixPath(path).stem.lower().replace("-", "_")
        if stem.startswith("previous_chapter"):
            yield Finding(
                path,
                "1",
                "is a copy of earlier chapters; delete it and import their modules.",
            )
    yield from _copied_definitions(tree)


def _copied_definitions(tree: Tree) -> Iterator[Finding]:
    """The same function or class in two places that do not teach each other's code."""
    places = defaultdict(list)
    for owner, where, name, node in _all_definitions(tree):
        body = _body(node)
        if body is not None:
            places[body].append((owner, where, name))
    for found in places.values():
        for place, (second, where, name) in enumerate(found):
            twins = [f for f, _, _ in found[:place] if not _may_agree(f, second)]
            if twins:
                yield Finding(
                    second.path,
                    where,
                    f"{name} is defined word for word in {twins[0].path} too; keep one "
                    "and import it (a notebook's helper belongs in a module then).",
                )


def _all_definitions(
    tree: Tree,
) -> Iterator[tuple[CodeFile | Notebook, str, str, ast.stmt]]:
    """(owner, place, name, definition) in chapter code, then in notebooks."""
    for source in tree.chapter_code():
        for name, node in source.definitions.items():
            yield source, str(node.lineno), name, node
    for notebook in tree.own_notebooks():
        for name, (cell, node) in notebook.definitions.items():
            yield notebook, cell.where, name, node


def _body(node: ast.stmt) -> str | None:
    """The code of a function or class of some length, without its name, else None."""
    short = (node.end_lineno or node.lineno) - node.lineno < MIN_COPY - 1
    if short or isinstance(node, (ast.Assign, ast.AnnAssign)):
        return None
    lines = comparable(node)
    if len(lines) < MIN_COPY:
        return None
    name = getattr(node, "name", "")
    return re.sub(rf"\b{name}\b", "_", "\n".join(lines))


def _may_agree(first: CodeFile | Notebook, second: CodeFile | Notebook) -> bool:
    """A module and the notebook that teaches it agree; so may a folder's notebooks."""
    if isinstance(second, Notebook) and isinstance(first, CodeFile):
        # Against another folder's module a definition of that name is drift's finding.
        return teaches(second, first)
    both = isinstance(first, Notebook) and isinstance(second, Notebook)
    return both and folder(first.path) == folder(second.path)


def modules_are_documented(tree: Tree) -> Iterator[Finding]:
    """A module says what it holds and shows its use; so do its public names."""
    for module in tree.modules.values():
        docstring = ast.get_docstring(module.tree) or ""
        if module.path not in tree.support and ">>>" not in docstring:
            yield Finding(
                module.path,
                "1",
                "the module's docstring shows no usage example; add one with >>> (it "
                "runs as a test).",
            )
        for name in public_names(module):
            node = module.definitions.get(name)
            documentable = isinstance(node, (ast.FunctionDef, ast.ClassDef))
            if documentable and not ast.get_docstring(node):
                yield Finding(
                    module.path,
                    str(node.lineno),
                    f"{name} has no docstring; say what it does, with shapes, units "
                    "and errors.",
                )


def exercises_are_wired(tree: Tree) -> Iterator[Finding]:
    """Each check is asked in the main notebook, met in the solutions, and tested."""
    for source in tree.chapter_code():
        if not source.path.endswith("_checks.py") or source.path in tree.support:
            continue
        here = folder(source.path)
        books = [n for n in tree.notebooks.values() if folder(n.path) == here]
        tests = [t for t in tree.tests if folder(t.path) == here]
        for name, line in _checks(source):
            for role in ("main", "solutions"):
                owners = [n for n in books if n.role == role]
                if owners and not any(name in c.names for n in owners for c in n.code):
                    yield Finding(
                        source.path,
                        str(line),
                        f"{name} is never called in {owners[0].path}; add its exercise "
                        "there, or delete the check.",
                    )
            if not any(name in t.names for t in tests):
                yield Finding(
                    source.path,
                    str(line),
                    f"{name} is in no test beside it; pass it a solution, the stub and "
                    "three wrong answers with verify(...).",
                )


def _checks(source: CodeFile) -> Iterator[tuple[str, int]]:
    """Functions under ``@check("2.1")``."""
    for node in source.tree.body:
        if isinstance(node, ast.FunctionDef):
            for mark in node.decorator_list:
                if (
                    isinstance(mark, ast.Call)
                    and getattr(mark.func, "id", "") == "check"
                ):
                    yield node.name, node.lineno


GATES = (
    imports_look_back,
    no_cycles,
    modules_stand_alone,
    course_imports_no_chapter,
    course_is_built_upwards,
    installation_needs_no_package,
    file_names_are_unique,
    class_names_are_unique,
    nothing_is_copied,
    modules_are_documented,
    exercises_are_wired,
)
