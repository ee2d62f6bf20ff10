"""What a comment on a number in prose names and is in reach is looked up.

A number that nothing beside it produces says in a comment where it comes from (see
`course.gates.numbers`). Three kinds of source are in reach:

* a file of the course, ``<!-- number 93.2: the highest accuracy in seeds.csv -->``: it
  must hold the number, or the value that it rounds to;
* a formula, ``<!-- number 131,000: 32 * 4,095 -->``: its value must round to the
  number, and a file that is named beside it, ``5.386 / 3.2, speed.csv``, must hold what
  the formula is made of. A number with zeros at its end may be rounded there;
* ``read here by test_messages.py``: a test that takes the number from the page and
  compares. That test must be there.

Papers, versions, and examples that the text invents are out of reach.
"""

import ast
import math
import operator
import re
from collections.abc import Iterator
from functools import cache

from course.gates import numbers
from course.gates.tree import Finding, Tree, chapter, folder
from course.markdown import Page

_FILE = re.compile(r"(?<![\w./-])[\w./-]+\.(?:csv|json|md|toml|txt|py|ipynb)\b")
_FORMULA = re.compile(r"(?<![\w.])[\d(](?:[\d\s.,_()]|\*\*|[-+*/])*[\d)](?![\w.])")
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def value_of(formula: str) -> float:
    """What plain arithmetic comes to; `ValueError` for anything else.

    >>> value_of("32 * 4,095"), value_of("2 ** 16 - 1")
    (131040.0, 65535.0)
    """
    try:
        tree = ast.parse(re.sub(r"(?<=\d)[,_](?=\d{3})", "", formula), mode="eval")
        return float(_value(tree.body))
    except (SyntaxError, ZeroDivisionError, OverflowError, TypeError) as error:
        raise ValueError(f"{formula} is no formula") from error


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner)
        case ast.BinOp(left=left, op=kind, right=right) if type(kind) in _OPERATORS:
            return _OPERATORS[type(kind)](_value(left), _value(right))
    raise ValueError(f"{ast.dump(node)} is no arithmetic")


def rounds_to(value: float, written: str) -> bool:
    """Whether a value is what is written, to the last place that counts.

    >>> rounds_to(0.786, "0.8"), rounds_to(131_040.0, "131,000"), rounds_to(2.4, "2.5")
    (True, True, False)
    """
    plain = written.replace(",", "")
    whole, _, decimals = plain.partition(".")
    zeros = 0 if decimals else len(whole) - len(whole.rstrip("0"))
    place = 10.0 ** (-len(decimals) if decimals else zeros)
    return math.isclose(value, float(plain), abs_tol=place / 2 + 1e-9 * abs(value))


def accounts_of_numbers(tree: Tree) -> Iterator[Finding]:
    """A comment on a number names a file that holds it or a formula that gives it."""
    for page in [
        *tree.pages.values(),
        *(page for notebook in tree.notebooks.values() for page in notebook.prose),
    ]:
        for match in numbers.ACCOUNT.finditer(page.without_code):
            reason = " ".join(match["reason"].split())
            problem = _problem(tree, page, match["number"], reason)
            if problem:
                yield Finding(f"{page.place(match.start())}: {problem}")


def _problem(tree: Tree, page: Page, number: str, reason: str) -> str:
    """What is wrong with an account, in a sentence; nothing if nothing is."""
    said = f"the comment on the number {number} says '{reason}', "
    formulas = _formulas(_FILE.sub(" ", reason))
    values = [value for _, value in formulas]
    if formulas and not any(rounds_to(value, number) for value in values):
        return f"{said}and that is {values[0]:,.6g}; mend one of the two."
    for name in _FILE.findall(reason):
        path = _nearest(tree, page, name)
        if path is None:
            return f"{said}and no file {name} is near; name one that is."
        if reason.startswith("read here by ") and _is_test(path):
            continue
        held = sorted(numbers.values(tree, path))
        for wanted in [p for text, _ in formulas for p in _operands(text)] or [number]:
            if not _holds(held, wanted):
                return f"{said}and {path} does not hold {wanted}; mend one of the two."
    return ""


def _is_test(path: str) -> bool:
    return path.rpartition("/")[2].startswith("test_") and path.endswith(".py")


def _operands(formula: str) -> list[str]:
    """The numbers of a formula that were measured: no small counts, no powers of ten.

    >>> _operands("100 * 5.386 / 2 / 1000")
    ['5.386']
    """
    found = re.findall(r"\d[\d,]*(?:\.\d+)?", formula)
    return [n for n in found if "." in n or not re.fullmatch(r"\d{1,2}|10+", n)]


def _formulas(reason: str) -> list[tuple[str, float]]:
    found = []
    for text in _FORMULA.findall(reason):
        if re.search(r"\d\)?\s*[-+*/]", text):
            try:
                found.append((text, value_of(text)))
            except ValueError:
                continue
    return found


def _holds(held: list[float], written: str) -> bool:
    plain = float(written.replace(",", ""))
    digits = len(re.sub(r"\D", "", written).lstrip("0"))
    decimals = len(written.partition(".")[2])
    exact = numbers.Quoted(written, plain, 10.0**-decimals, max(digits, 2), 0)
    share = numbers.Quoted(written, plain / 100, exact.place / 100, exact.digits, 0)
    return numbers.holds(held, exact) or numbers.holds(held, share)


@cache
def _nearest(tree: Tree, page: Page, name: str) -> str | None:
    """The file of that name that is nearest to a page: beside it, then further out."""
    here = folder(page.path)
    ends = [path for path in tree.files if f"/{path}".endswith(f"/{name}")]
    for parent in (here, chapter(page.path), "."):
        inside = [
            p for p in ends if parent in (None, ".") or p.startswith(f"{parent}/")
        ]
        if inside:
            return min(inside, key=lambda p: (p.count("/"), p))
    return None
