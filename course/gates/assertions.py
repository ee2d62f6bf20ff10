"""Tests that can fail: each asserts something, and not that a thing equals itself.

What ruff finds by a rule is left to it: comparisons without ``assert``, constants,
tuples, and assertions whose failure is caught and passed over.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from course.gates.tree import CodeFile, Finding, Tree

Function = ast.FunctionDef | ast.AsyncFunctionDef

# Calls that raise when what they are given is wrong, by the name that is called.
_ASSERTING = re.compile(
    r"(?:assert|check|expect|verify)(?:_\w+|[A-Z]\w*)?\Z"
    r"|(?:assert\w*|raises|warns|deprecated_call|fail|RaisesGroup)\Z"
)
_PYTEST = {"raises", "warns", "deprecated_call", "fail", "RaisesGroup"}
_EQUALITY = {
    "assert_close",
    "assert_equal",
    "assert_allclose",
    "assert_array_equal",
    "assert_almost_equal",
    "assertEqual",
    "equal",
    "allclose",
    "array_equal",
    "isclose",
    "expect_equal",
    "expect_close",
}
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
        return not constant and not _self_comparison(node.test)
    name = called_name(node)
    if name in _PYTEST:
        owner = getattr(getattr(node, "func", None), "value", None)
        return owner is None or getattr(owner, "id", "") == "pytest"
    if name in _EQUALITY and not name.startswith(("assert", "expect")):
        return False  # torch.equal() answers, it does not raise
    return bool(_ASSERTING.match(name)) and not _compares_with_itself(node)


def _bare(node: ast.expr) -> ast.expr:
    """Looks through ``approx(x)`` and copies such as ``x.clone()``."""
    while isinstance(node, ast.Call):
        if called_name(node) == "approx" and node.args:
            node = node.args[0]
        elif called_name(node) in _COPIES and not node.args:
            if not isinstance(node.func, ast.Attribute):
                break
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


def _self_comparison(node: ast.AST) -> bool:
    """Whether a comparison, or any part of a condition, has one thing on both sides."""
    for part in ast.walk(node):
        if isinstance(part, ast.Compare):
            sides = [part.left, *part.comparators]
            if any(same(a, b) for a, b in zip(sides, sides[1:])):
                # ``x != x`` is how NaN is recognised; it can fail.
                return not any(isinstance(op, ast.NotEq) for op in part.ops)
        elif _compares_with_itself(part):
            return True
    return False


def _compares_with_itself(node: ast.AST) -> bool:
    """``assert_close(x, x)``, ``torch.equal(x, x)`` and their like."""
    return (
        isinstance(node, ast.Call)
        and called_name(node) in _EQUALITY
        and len(node.args) >= 2
        and same(node.args[0], node.args[1])
    )


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
        self._files = {_module_name(tree, s): s for s in tree.sources.values()}
        self._functions: dict[str, dict[str, Function]] = {}

    def asserting(
        self, function: Function, source: CodeFile, seen: tuple[Function, ...] = ()
    ) -> bool:
        """Whether `function` asserts, itself or in a function that it calls."""
        if any(asserts(node) for node in ast.walk(function)):
            return True
        for name, owner in _calls(function):
            found = self._find(name, owner, source)
            if found is None or found[0] in (*seen, function):
                continue
            if self.asserting(*found, seen=(*seen, function)):
                return True
        return False

    def _find(
        self, name: str, owner: str | None, source: CodeFile
    ) -> tuple[Function, CodeFile] | None:
        """The function that ``name()`` or ``owner.name()`` means in this file."""
        if owner in (None, "self", "cls"):
            own = self._of(source).get(name)
            if own:
                return own, source
        for one in source.imports:
            if owner is None and one.bound == name and one.name:
                module, wanted = one.module, one.name
            elif owner is not None and one.bound == owner:
                module = f"{one.module}.{one.name}" if one.name else one.module
                wanted = name
            else:
                continue
            home = self._files.get(module)
            if home and wanted in self._of(home):
                return self._of(home)[wanted], home
        return None

    def _of(self, source: CodeFile) -> dict[str, Function]:
        if source.path not in self._functions:
            self._functions[source.path] = {
                node.name: node
                for node in ast.walk(source.tree)
                if isinstance(node, Function)
            }
        return self._functions[source.path]


def _module_name(tree: Tree, source: CodeFile) -> str:
    """The name under which a file is imported."""
    parts = PurePosixPath(source.path).with_suffix("").parts
    return ".".join(parts) if parts[0] == "course" else parts[-1]


def _calls(function: Function) -> Iterator[tuple[str, str | None]]:
    """(name, owner) of every call: ``f()`` and ``owner.f()``."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield node.func.id, None
            elif isinstance(node.func, ast.Attribute):
                owner = node.func.value
                if isinstance(owner, ast.Name):
                    yield node.func.attr, owner.id


def every_test_asserts(tree: Tree) -> Iterator[Finding]:
    """A test that asserts nothing passes whatever the code does."""
    helpers = _Helpers(tree)
    for source in tree.tests:
        for function in collected_tests(source):
            if not helpers.asserting(function, source):
                yield Finding(
                    source.path,
                    str(function.lineno),
                    f"{function.name} asserts nothing that can fail; assert what the "
                    "code must do, or delete the test.",
                )


def nothing_is_compared_with_itself(tree: Tree) -> Iterator[Finding]:
    """``assert x.y == x.y`` and ``assert True`` are no assertions."""
    for path, where, node in _asserting_code(tree):
        equality = called_name(node) in _EQUALITY and _raises_by_name(node)
        if (equality or isinstance(node, ast.Assert)) and not asserts(node):
            shown = ast.unparse(node)
            shown = shown if len(shown) <= 60 else shown[:57] + "..."
            yield Finding(
                path,
                where,
                f"`{shown}` holds whatever the code does, because it compares a thing "
                "with itself or asserts a constant; compare with an independent value.",
            )


def _asserting_code(tree: Tree) -> Iterator[tuple[str, str, ast.AST]]:
    """(path, place, node) of code in test files and in notebooks, which assert too."""
    for source in tree.tests:
        for node in source.nodes:
            yield source.path, str(getattr(node, "lineno", 1)), node
    for notebook, cell in tree.code_cells():
        for node in cell.nodes:
            yield notebook.path, cell.where, node


def _raises_by_name(node: ast.AST) -> bool:
    return called_name(node).startswith(("assert", "expect"))


def no_answer_is_thrown_away(tree: Tree) -> Iterator[Finding]:
    """``torch.equal(a, b)`` as a statement is a forgotten ``assert``."""
    for source in tree.tests:
        for node in source.nodes:
            if not isinstance(node, ast.Expr) or _raises_by_name(node.value):
                continue
            if called_name(node.value) in _EQUALITY:
                yield Finding(
                    source.path,
                    str(node.lineno),
                    f"`{ast.unparse(node)}` is computed and thrown away; write "
                    "`assert` before it.",
                )


def no_test_is_always_skipped(tree: Tree) -> Iterator[Finding]:
    """A test may be skipped where it cannot run, with a condition; not everywhere."""
    for source in tree.tests:
        for function in collected_tests(source):
            marks = [ast.unparse(mark) for mark in function.decorator_list]
            always = any(re.match(r"pytest\.mark\.skip\b(?!if)", m) for m in marks)
            first = [s for s in function.body if not _is_docstring(s)][:1]
            always |= any(
                isinstance(s, ast.Expr) and called_name(s.value) == "skip"
                for s in first
            )
            if always:
                yield Finding(
                    source.path,
                    str(function.lineno),
                    f"{function.name} is skipped everywhere; make it run, give the "
                    "skip a condition, or delete the test.",
                )


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


GATES = (
    every_test_asserts,
    nothing_is_compared_with_itself,
    no_answer_is_thrown_away,
    no_test_is_always_skipped,
)
