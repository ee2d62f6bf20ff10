"""Notebook and summary module say the same, both ways.

What the notebook teaches and what later chapters import are one piece of code in two
places. These gates keep them equal, and keep every other notebook from making a third.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice, zip_longest

from course.folders import FILE as FOLDER_FILE
from course.gates.tree import FUNCTIONS, CodeFile, Finding, Notebook, Tree, folder

# A script's command line is not taught: nothing is gained from retyping it.
NOT_TAUGHT = {"main"}


def comparable(node: ast.stmt) -> list[str]:
    """The lines of a definition without docstrings, annotations, comments and layout.

    Two definitions are equal when these lines are. A class-level ``name: type = value``
    keeps its form, because in a dataclass it is a field and ``name = value`` is not.
    """
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        return [ast.unparse(node.value)] if node.value else []
    again = ast.parse(ast.unparse(node))  # which may be changed
    for part in ast.walk(again):
        described = isinstance(part, (*FUNCTIONS, ast.ClassDef))
        if described and ast.get_docstring(part, clean=False) is not None:
            part.body = part.body[1:] or [ast.Pass()]
        if isinstance(part, FUNCTIONS):
            part.returns = None
            part.body = [_plain_assignment(statement) for statement in part.body]
        elif isinstance(part, ast.arg):
            part.annotation = None
        elif isinstance(part, ast.AnnAssign):
            part.annotation = ast.Constant(None)
    return ast.unparse(ast.fix_missing_locations(again)).split("\n")


def _plain_assignment(node: ast.stmt) -> ast.stmt:
    """Inside a function ``x: int = 3`` is ``x = 3``."""
    if isinstance(node, ast.AnnAssign) and node.value is not None:
        return ast.Assign([node.target], node.value, lineno=node.lineno)
    return node


def first_difference(ours: list[str], theirs: list[str]) -> tuple[str, str]:
    """The first line that differs, in both; an end of the code reads ``(nothing)``."""
    pairs = zip_longest(ours, theirs, fillvalue="(nothing)")
    return next((a.strip(), b.strip()) for a, b in pairs if a != b)


def public_names(module: CodeFile) -> list[str]:
    """What a module offers: ``__all__``, or else every name without ``_``."""
    for node in module.tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "__all__"
            for target in node.targets
        ):
            return list(ast.literal_eval(node.value))
    return [name for name in module.definitions if not name.startswith("_")]


def teaches(notebook: Notebook, module: CodeFile) -> bool:
    """Whether `notebook` is where `module` is taught: same folder, and not a digest."""
    same_folder = folder(notebook.path) == folder(module.path)
    return same_folder and notebook.role in ("main", "bonus")


def definitions_agree(tree: Tree) -> Iterator[Finding]:
    """A name that a teaching notebook defines and its module has is equal in both."""
    for module in tree.modules.values():
        for notebook in tree.notebooks.values():
            if not teaches(notebook, module):
                continue
            for name, (cell, node) in notebook.definitions.items():
                if name not in module.definitions:
                    continue
                here = comparable(node)
                there = comparable(module.definitions[name])
                if here == there:
                    continue
                ours, theirs = first_difference(here, there)
                yield Finding(
                    f"{cell.place}: {name} differs from its definition in "
                    f"{module.path}: here `{ours}`, there `{theirs}`; decide which is "
                    "right and copy it to the other file."
                )


def modules_are_taught(tree: Tree) -> Iterator[Finding]:
    """A module's public names are defined in its notebook, or imported and used there.

    A folder without a notebook is fine: the module may be needed before it is taught.
    Support modules are imported and not taught.
    """
    for name, module in tree.modules.items():
        books = [n for n in tree.notebooks.values() if teaches(n, module)]
        if not books or module.path in tree.support:
            continue
        met = [(book, _reads(book)) for book in books]
        for public in public_names(module):
            if public in NOT_TAUGHT or any(
                _meets(b, name, public, reads) for b, reads in met
            ):
                continue
            line = getattr(module.definitions.get(public), "lineno", 1)
            where = " or ".join(book.path for book in books)
            yield Finding(
                f"{module.path}:{line}: {public} is public, but {where} neither "
                "defines it nor imports and uses it; teach it there, import and use it "
                "there, or move it to a module that is listed as support in "
                f"{FOLDER_FILE}."
            )


def _meets(notebook: Notebook, module: str, name: str, reads: set[str]) -> bool:
    """Whether `notebook` defines `name`, or imports it from `module` and uses it."""
    used = {
        one.bound if one.name else f"{one.bound}.{name}"
        for _, one in notebook.imports
        if one.module == module and one.name in (name, None)
    }
    return name in notebook.definitions or not used.isdisjoint(reads)


def _reads(notebook: Notebook) -> set[str]:
    """The names, and attributes of names, that the cells of a notebook read."""
    return {
        ast.unparse(node)
        for cell in notebook.code
        for node in cell.nodes
        if isinstance(getattr(node, "ctx", None), ast.Load)
        if isinstance(getattr(node, "value", node), ast.Name)
    }


def one_home(tree: Tree) -> Iterator[Finding]:
    """No notebook but the module's own defines a name that a module has.

    A main notebook may define a function that a *later* chapter takes over under the
    same name; a class name is used once in the whole tree. What a support module calls
    `run` or `device` takes that name from nobody.
    """
    rank = tree.chapter_rank
    homes = defaultdict(list)
    for module_name, module in tree.modules.items():
        for public, made in module.definitions.items():
            if module.path in tree.support and not isinstance(made, ast.ClassDef):
                continue
            if not public.startswith("_") and public not in NOT_TAUGHT:
                homes[public].append((module_name, module))
    for notebook in tree.own_notebooks():
        for name, (cell, node) in notebook.definitions.items():
            if any(teaches(notebook, module) for _, module in homes[name]):
                continue
            if not homes[name]:
                continue
            home, module = min(homes[name], key=lambda at: rank(at[1].path))
            later = rank(module.path) > rank(notebook.path)
            if notebook.role == "main" and later and not isinstance(node, ast.ClassDef):
                continue
            yield Finding(
                f"{cell.place}: defines {name}, whose home is {module.path}; write "
                f"`from {home} import {name}`, or choose another name for another "
                "thing."
            )


def translations_follow(tree: Tree) -> Iterator[Finding]:
    """A translated notebook has the code and the outputs of the one it translates."""
    for path, notebook in tree.notebooks.items():
        if notebook.role != "translation":
            continue
        original = path.removesuffix(".ja.ipynb") + ".ipynb"
        model = tree.notebooks.get(original)
        theirs = [c for c in model.cells if c.kind == "code"] if model else []
        ours = [c for c in notebook.cells if c.kind == "code"]
        pairs = zip_longest(ours, theirs)
        differ = (
            a
            for a, b in pairs
            if not (a and b) or (a.source, a.outputs) != (b.source, b.outputs)
        )
        for cell in islice(differ, 1):
            yield Finding(
                f"{cell.place if cell else f'{path}:1'}: differs from the code cells "
                f"of {original}, which it translates; take code and outputs from there."
            )
