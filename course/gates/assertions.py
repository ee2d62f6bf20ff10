"""Tests that can fail: each asserts something, and not that a thing equals itself.

What ruff finds by a rule is left to it: comparisons without ``assert``, constants,
tuples, and assertions whose failure is caught and passed over.
"""

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import PurePosixPath

from course.gates.tree import CodeFile, Finding, Tree, short

Function = ast.FunctionDef | ast.AsyncFunctionDef

# Calls that raise when what they are given is wrong, by the name that is called.
_ASSERTING = re.compile(
    r"(?:assert|check|expect|verify)(?:_\w+|[A-Z]\w*)?\Z"
    r"|(?:assert\w*|raises|warns|deprecated_call|fail|RaisesGroup)\Z"
)
_PYTEST = {"raises", "warns", "deprecated_call", "fail", "RaisesGroup"}
# Calls that compare, and those among them that raise: `torch.equal()` only answers.
_EQUALITY = re.compile(r"\w*([Ee]qual|close)\w*\Z")
_RAISING = re.compile(r"assert|expect")
_COPIES = {"clone", "copy", "detach", "contiguous", "tolist", "cpu"}


def called_name(node: ast.AST) -> str:
    """``f`` for a call of ``f(...)`` or ``a.b.f(...)``, else an empty string."""
    if not isinstance(node, ast.Call):
        return ""
    return getattr(node.func, "id", getattr(node.func, "attr", ""))


def asserts(node: ast.AST) -> bool:
    """Whether this node, by itself, raises when a claim is false.

    An ``assert`` whose outcome is known beforehand does not.
    """
    if isinstance(node, ast.Assert):
        constant = isinstance(node.test, ast.Constant)
        return not (constant or any(map(_compares_with_itself, ast.walk(node.test))))
    name = called_name(node)
    if name in _PYTEST:
        owner = getattr(getattr(node, "func", None), "value", None)
        return owner is None or getattr(owner, "id", "") == "pytest"
    if _EQUALITY.match(name) and not _RAISING.match(name):
        return False
    return bool(_ASSERTING.match(name)) and not _compares_with_itself(node)


def _bare(node: ast.expr) -> ast.expr:
    """Looks through ``approx(x)`` and copies such as ``x.clone()``."""
    while isinstance(node, ast.Call):
        if called_name(node) == "approx" and node.args:
            node = node.args[0]
        elif called_name(node) in _COPIES and isinstance(node.func, ast.Attribute):
            node = node.func.value
        else:
            break
    return node


def same(left: ast.expr, right: ast.expr) -> bool:
    """Whether two expressions are one and the same value.

    Two equal *calls* are not: ``encode(text) == encode(text)`` asks whether a function
    gives the same answer twice.
    """
    left, right = _bare(left), _bare(right)
    if any(isinstance(part, (ast.Call, ast.Await)) for part in ast.walk(left)):
        return False
    return ast.dump(left) == ast.dump(right)


def _compares_with_itself(node: ast.AST) -> bool:
    """``x == x``, ``assert_close(x, x)``, ``torch.equal(x, x)`` and their like.

    Not ``x != x``: it is how NaN is recognised, and can fail.
    """
    sides = []
    if isinstance(node, ast.Compare) and ast.NotEq not in map(type, node.ops):
        sides = [node.left, *node.comparators]
    elif isinstance(node, ast.Call) and _EQUALITY.match(called_name(node)):
        sides = node.args[:2]
    return any(same(one, other) for one, other in pairwise(sides))


def collected_tests(source: CodeFile) -> Iterator[Function]:
    """What pytest collects: ``test_*`` functions, and such methods of ``Test*``."""

    def collect(statements: list[ast.stmt]) -> Iterator[Function]:
        for node in statements:
            if isinstance(node, Function):
                if node.name.startswith("test"):
                    yield node
            elif not isinstance(node, ast.ClassDef) or node.name.startswith("Test"):
                for block in ("body", "orelse", "finalbody"):
                    yield from collect(getattr(node, block, []))

    yield from collect(source.tree.body)


class _Helpers:
    """Finds the functions that tests call, in their file or elsewhere in the tree."""

    def __init__(self, tree: Tree) -> None:
        self._functions = {
            (_module_name(source.path), node.name): (node, source)
            for source in tree.sources.values()
            for node in source.nodes
            if isinstance(node, Function)
        }

    def asserting(self, function: Function, source: CodeFile) -> bool:
        """Whether `function` asserts, itself or in a function that it calls."""
        waiting = [(function, source)]
        for function, source in waiting:  # which grows meanwhile
            nodes = list(ast.walk(function))
            if any(map(asserts, nodes)):
                return True
            called = filter(None, (self._called(node, source) for node in nodes))
            waiting += (found for found in called if found not in waiting)
        return False

    def _called(
        self, node: ast.AST, source: CodeFile
    ) -> tuple[Function, CodeFile] | None:
        """The function that a call of ``name()`` or ``owner.name()`` means here."""
        if not isinstance(node, ast.Call):
            return None
        *owners, name = ast.unparse(node.func).split(".")
        owner = ".".join(owners)
        homes = {"": _module_name(source.path), "self": _module_name(source.path)}
        for one in source.imports:
            if one.name and not owner and one.bound == name:
                return self._functions.get((one.module, one.name))
            homes[one.bound] = f"{one.module}.{one.name}" if one.name else one.module
        return self._functions.get((homes.get(owner, ""), name))


def _module_name(path: str) -> str:
    """The name under which a file is imported."""
    parts = PurePosixPath(path).with_suffix("").parts
    return ".".join(parts) if parts[0] == "course" else parts[-1]


def every_test_asserts(tree: Tree) -> Iterator[Finding]:
    """A test that asserts nothing, or never runs, passes whatever the code does."""
    helpers = _Helpers(tree)
    for source in tree.tests:
        for function in collected_tests(source):
            if _is_skipped(function) or not helpers.asserting(function, source):
                yield Finding(
                    f"{source.path}:{function.lineno}: {function.name} asserts nothing "
                    "that can fail, or is skipped everywhere; assert what the code "
                    "must do, give a skip its condition, or delete the test."
                )


def _is_skipped(function: Function) -> bool:
    """Whether a test is skipped without a condition, by a mark or by its first line."""
    marks = [ast.unparse(mark).partition("(")[0] for mark in function.decorator_list]
    first = function.body[ast.get_docstring(function) is not None :][0]
    called = called_name(getattr(first, "value", first))
    return "pytest.mark.skip" in marks or called == "skip"


def nothing_is_compared_with_itself(tree: Tree) -> Iterator[Finding]:
    """``assert x.y == x.y`` and ``assert True`` are no assertions."""
    for place, node in _asserting_code(tree):
        name = called_name(node)
        raising = _EQUALITY.match(name) and _RAISING.match(name)
        if (raising or isinstance(node, ast.Assert)) and not asserts(node):
            yield Finding(
                f"{place}: `{short(ast.unparse(node))}` holds whatever the code does, "
                "because it compares a thing with itself or asserts a constant; "
                "compare with an independent value."
            )


def _asserting_code(tree: Tree) -> Iterator[tuple[str, ast.AST]]:
    """(place, node) of code in test files and in notebooks, which assert too."""
    for source in tree.tests:
        for node in source.nodes:
            yield f"{source.path}:{getattr(node, 'lineno', 1)}", node
    for cell in tree.code_cells():
        for node in cell.nodes:
            yield cell.place, node
