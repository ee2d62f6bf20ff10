"""The lesson stays in sight: short modules, and few of their lines checks and messages.

A *code line* is a line with code on it: not blank, no comment, no part of a docstring.
Of these, *checks and messages* are

- ``raise`` statements, and an ``if`` whose block ends in one, with its condition;
- functions called ``check_...`` or ``_check_...``, and statements that call one;
- statements that call ``warnings.warn``.
"""

import ast
import io
import tokenize
from collections.abc import Iterator

from course.gates.tree import CodeFile, Finding, Tree, chapter

MODULE_LINES = 600  # of any file in a chapter; about 500 is what a sitting takes
COURSE_LINES = 450
CHECKS = 0.15  # of the code lines of a summary module


def _lines(node: ast.stmt | ast.expr, last: ast.stmt | None = None) -> set[int]:
    """The lines from the start of a node to its end, or to the end of `last`."""
    decorators = getattr(node, "decorator_list", ())
    first = min([node.lineno, *(mark.lineno for mark in decorators)])
    end = (last or node).end_lineno or first
    return set(range(first, end + 1))


def code_lines(source: CodeFile) -> set[int]:
    """The numbers of the lines that hold code."""
    tokens = tokenize.generate_tokens(io.StringIO(source.text).readline)
    lines = set()
    for token in tokens:
        if token.string.strip() and token.type != tokenize.COMMENT:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in source.nodes:
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, documented) and ast.get_docstring(node, clean=False):
            lines -= _lines(node.body[0])
    return lines


def check_lines(source: CodeFile) -> list[set[int]]:
    """The lines of each check or message, the outermost ones only."""
    found: list[set[int]] = []

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt) and _is_check(child):
                found.append(_lines(child))
            elif isinstance(child, ast.If) and isinstance(child.body[-1], ast.Raise):
                found.append(_lines(child, child.body[-1]))
                for other in child.orelse:
                    visit(ast.Module([other], []))
            else:
                visit(child)

    visit(source.tree)
    return found


def _is_check(node: ast.stmt) -> bool:
    if isinstance(node, ast.Raise):
        return True
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return node.name.lstrip("_").startswith("check_")
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        called = ast.unparse(node.value.func)
        name = called.rpartition(".")[2].lstrip("_")
        return name.startswith("check_") or called == "warnings.warn"
    return False


def few_lines_are_checks(tree: Tree) -> Iterator[Finding]:
    """At most 15 % of a summary module's code lines are checks and messages."""
    for module in tree.modules.values():
        if module.path in tree.support:
            continue
        code = code_lines(module)
        checks = [lines & code for lines in check_lines(module)]
        spent = len(set().union(*checks))
        if not code or spent <= CHECKS * len(code):
            continue
        longest = min(max(checks, key=len))
        yield Finding(
            f"{module.path}:{longest}: spends {spent / len(code):.0%} of its code on "
            f"checks and messages ({spent} of {len(code)} lines), at most "
            f"{CHECKS:.0%}; the longest begins here. Delete what Python or PyTorch say "
            "well enough, or move checks to a support module."
        )


def files_are_short(tree: Tree) -> Iterator[Finding]:
    """A module can be read in a sitting: 600 lines in a chapter, 450 in `course`."""
    for source in tree.sources.values():
        in_course = source.path.startswith("course/")
        if source.is_test or not (in_course or chapter(source.path)):
            continue
        most = COURSE_LINES if in_course else MODULE_LINES
        lines = source.text.count("\n")
        if lines > most:
            yield Finding(
                f"{source.path}:{most}: has {lines} lines, at most {most}; move what "
                "belongs together into a module of its own."
            )
