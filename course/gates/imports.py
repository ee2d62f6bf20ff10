"""How the code of the chapters hangs together: who imports whom, and one home each."""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import PurePosixPath

from course import folders
from course.gates.drift import comparable, teaches
from course.gates.tree import (
    Code,
    CodeFile,
    Finding,
    Notebook,
    Tree,
    chapter,
    folder,
    in_main_folder,
)

#: From the ground up: a wing imports from itself and from those before it.
WINGS = ("", "installation", "running", "gates", "testing")
FRONT = ("__main__", "commands", "doctor", "first_aid", "lab", "reading")
MIN_COPY = 5  # lines: shorter definitions may agree by chance


def imports_look_back(tree: Tree) -> Iterator[Finding]:
    """A chapter imports from itself and earlier ones, their bonus folders included.

    Holds for modules, checks and notebooks of a chapter proper; a notebook may show
    what a later bonus folder makes of its subject. Bonus folders may import everything;
    so may tests, and ``experiments.py``, which compares.
    """
    for path, place, one in tree.imports():
        module = tree.modules.get(one.package)
        free = PurePosixPath(path).name.startswith(("test_", "experiments"))
        if module is None or free or not in_main_folder(path):
            continue
        if path.endswith(".ipynb") and not in_main_folder(module.path):
            continue
        if tree.chapter_rank(module.path) > tree.chapter_rank(path):
            yield Finding(
                f"{place}: imports {one.package}, which belongs to "
                f"{chapter(module.path)} and so comes later; move what is needed to "
                "this chapter's module, or this code to a bonus folder."
            )


def no_cycles(tree: Tree) -> Iterator[Finding]:
    """No module or folder imports itself through others, also not inside functions."""
    modules, rooms = defaultdict(set), defaultdict(set)
    for module in tree.modules.values():
        here = folder(module.path)
        for one in module.imports:
            if one.package in tree.modules:
                other = tree.modules[one.package].path
                modules[module.path].add(other)
                rooms[here] |= {folder(other)} - {here}
    for what, graph in {"modules": modules, "folders": rooms}.items():
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            circle = error.args[1]
            yield Finding(
                f"{circle[0]}:1: the {what} import one another in a circle "
                f"({' <- '.join(circle)}); move what they share into the earliest of "
                "them."
            )


def course_is_built_upwards(tree: Tree) -> Iterator[Finding]:
    """No import in `course` runs back up: shelf, installation, running, gates, testing.

    None goes to a chapter: `course` is support and works when every chapter is gone.
    What makes the environment runs before it is there, with Python's own library only.
    The shelf, the files that lie in `course` itself, imports no wing. The commands at
    its front may.
    """
    for source in tree.sources.values():
        here = _wing(source.path.removesuffix(".py").replace("/", "."))
        if here is None or source.is_test:
            continue
        front = not here and PurePosixPath(source.path).stem in FRONT
        for one in source.imports:
            there = _wing(f"{one.module}.{one.name or ''}")
            if one.package in tree.modules:
                problem = "a module of a chapter"
            elif there is None and here == "installation":
                if one.package in sys.stdlib_module_names:
                    continue
                problem = "a package, before any package is installed"
            elif there and WINGS.index(there) > WINGS.index(here):
                if front:
                    continue
                problem = f"which belongs to {there}, further up"
            else:
                continue
            yield Finding(
                f"{source.path}:{one.line}: imports {one.module}, {problem}; pass what "
                "is needed in, or move it."
            )


def _wing(module: str) -> str | None:
    """The wing of a module of `course`; "" for the shelf, None for other modules."""
    first, _, rest = module.partition(".")
    if first != "course":
        return None
    wing = rest.partition(".")[0]
    return wing if wing in WINGS else ""


def file_names_are_unique(tree: Tree) -> Iterator[Finding]:
    """Modules and checks are imported by bare name from anywhere, as packages are.

    Two test files of one name pytest refuses; web apps nobody imports.
    """
    homes: dict[str, str] = {}
    apps = folders.files_of(tree.folders, "apps")
    for source in tree.chapter_code():
        path, stem = source.path, PurePosixPath(source.path).stem
        by_name = stem in tree.modules or stem.endswith("_checks")
        if path in apps or not by_name:
            continue
        if homes.setdefault(stem, path) != path:
            yield Finding(
                f"{path}:1: has the name of {homes[stem]}, and both are imported by "
                "bare name; rename one of them."
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
                homes[name].append((source.path, f"{source.path}:{node.lineno}"))
                if source in tree.modules.values():
                    taken.add(name)
    for notebook in tree.own_notebooks():
        for name, (cell, node) in notebook.definitions.items():
            if isinstance(node, ast.ClassDef) and name not in taken:
                homes[name].append((notebook.path, cell.place))
    for name, ((first, _), *others) in homes.items():
        for _, place in others:
            yield Finding(
                f"{place}: the class {name} exists in {first} too; import that one, or "
                "give this one a name that says how it differs."
            )


def nothing_is_copied(tree: Tree) -> Iterator[Finding]:
    """The same function or class does not stand in two places under any name.

    A module and the notebook that teaches it agree; so may a folder's notebooks.
    """
    places = defaultdict(list)
    for owner, place, name, node in _all_definitions(tree):
        body = _body(node)
        if body:
            places[body].append((owner, place, name))
    for found in places.values():
        for number, (second, place, name) in enumerate(found):
            twins = [f for f, _, _ in found[:number] if not _may_agree(f, second)]
            if twins:
                yield Finding(
                    f"{place}: {name} is defined word for word in {twins[0].path} too; "
                    "keep one and import it (a notebook's helper belongs in a module "
                    "then)."
                )


def _all_definitions(
    tree: Tree,
) -> Iterator[tuple[CodeFile | Notebook, str, str, ast.stmt]]:
    """(owner, place, name, definition) in chapter code, then in notebooks."""
    for source in tree.chapter_code():
        for name, node in source.definitions.items():
            yield source, f"{source.path}:{node.lineno}", name, node
    for notebook in tree.own_notebooks():
        for name, (cell, node) in notebook.definitions.items():
            yield notebook, cell.place, name, node


def _body(node: ast.stmt) -> str:
    """The code of a function or class of some length, without its name, else ""."""
    short = (node.end_lineno or node.lineno) - node.lineno < MIN_COPY - 1
    if short or isinstance(node, (ast.Assign, ast.AnnAssign)):
        return ""
    lines = comparable(node)
    if len(lines) < MIN_COPY:
        return ""
    return re.sub(rf"\b{getattr(node, 'name', '')}\b", "_", "\n".join(lines))


def _may_agree(first: CodeFile | Notebook, second: CodeFile | Notebook) -> bool:
    if isinstance(second, Notebook) and isinstance(first, CodeFile):
        # Against another folder's module a definition of that name is drift's finding.
        return teaches(second, first)
    both = isinstance(first, Notebook) and isinstance(second, Notebook)
    return both and folder(first.path) == folder(second.path)


def exercises_are_wired(tree: Tree) -> Iterator[Finding]:
    """Each check is asked in the main notebook, met in the solutions, and tested."""
    for source in tree.chapter_code():
        if not source.path.endswith("_checks.py") or source.path in tree.support:
            continue
        here = folder(source.path)
        users: dict[str, list[Code]] = {
            "test beside it": [t for t in tree.tests if folder(t.path) == here]
        }
        for notebook in tree.notebooks.values():
            if folder(notebook.path) == here and notebook.role in ("main", "solutions"):
                users.setdefault(f"{notebook.role} notebook", []).extend(notebook.code)
        for name, line in _checks(source):
            for user, code in users.items():
                if not any(name in part.names for part in code):
                    yield Finding(
                        f"{source.path}:{line}: {name} is never called in the {user}; "
                        "add it there, or delete the check."
                    )


def _checks(source: CodeFile) -> Iterator[tuple[str, int]]:
    """Functions under ``@check("2.1")``."""
    for node in source.tree.body:
        if isinstance(node, ast.FunctionDef):
            for mark in node.decorator_list:
                if ast.unparse(mark).startswith("check("):
                    yield node.name, node.lineno
