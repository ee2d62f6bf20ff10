"""Fine points of what counts as code, and what as a check or a message."""

import pytest

from course.gates import proportions
from course.gates.tree import CodeFile
from course.testing.tiny_trees import check_gate

PATH = "ch02/01_main-chapter-code/early.py"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1\n", {1}),
        ("# a comment\n\nx = 1  # why\n", {3}),
        ('"""Doc\nstring."""\n\nx = """two\nlines"""\n', {4, 5}),
        ('def f():\n    """Doc."""\n    return (\n        1\n    )\n', {1, 3, 4, 5}),
        ('class A:\n    """A\n\n    class."""\n', {1}),
    ],
)
def test_code_lines(text, code):
    assert proportions.code_lines(CodeFile(PATH, text)) == code


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("x = 1\n", set()),
        ("if a:\n    raise B\n", {1, 2}),
        ("if (\n    a\n):\n    c = 1\n    raise B(\n        c)\n", {1, 2, 3, 4, 5, 6}),
        ("if a:\n    raise B\nelse:\n    c = 1\n    d = 2\n", {1, 2}),
        ("if a:\n    raise B\nelif b:\n    raise C\nelse:\n    c = 1\n", {1, 2, 3, 4}),
        ("if a:\n    b = 1\nelse:\n    raise B\n", {4}),
        ("try:\n    a()\nexcept E:\n    raise B from None\n", {4}),
        ("def check_a(x):\n    y = 1\n    return y\n", {1, 2, 3}),
        ("@cache\ndef _check_a(x):\n    return x\n", {1, 2, 3}),
        ("check_sizes(\n    a=1,\n)\nb = check(2)\n", {1, 2, 3}),
        ("argument_checks.check_ids(x, 5)\n", {1}),
        ("import warnings\nwarnings.warn('a')\n", {2}),
        ("def f(x):\n    if x:\n        raise B\n    return x\n", {2, 3}),
        ("def checkpoint(x):\n    return x\n", set()),
    ],
)
def test_what_is_a_check(text, lines):
    found = proportions.check_lines(CodeFile(PATH, text))
    assert set().union(*found) == lines
    assert sum(map(len, found)) == len(lines), "none is counted twice"


def function(checks: int, others: int) -> str:
    lines = ["    check_a(x)"] * checks + ["    x += 1"] * (others - 1)
    return "\n".join(["def f(x):", *lines, ""])


@pytest.mark.parametrize(
    ("text", "support", "found"),
    [
        (function(3, 17), False, False),
        (function(4, 17), False, True),
        (function(4, 17), True, False),
        ("", False, False),
    ],
)
def test_a_summary_module_spends_15_percent_on_checks(tmp_path, text, support, found):
    files = {PATH: text}
    if support:
        about = 'title = "t"\ntitle_ja = "t"\norder = 2\nsupport = ["early"]\n'
        files["ch02/folder.toml"] = about
    words = "19% of its code on checks and messages (4 of 21 lines), at most 15%"
    check_gate(proportions.few_lines_are_checks, tmp_path, files, words if found else 0)


@pytest.mark.parametrize(
    ("path", "lines", "found"),
    [
        (PATH, 600, False),
        (PATH, 601, True),
        ("ch02/01_main-chapter-code/test_early.py", 601, False),
        ("ch02/01_main-chapter-code/ch02_checks.py", 601, True),
        ("course/a.py", 450, False),
        ("course/a.py", 451, True),
        ("course/test_a.py", 451, False),
        ("docs/a.py", 900, False),
    ],
)
def test_files_are_short(tmp_path, path, lines, found):
    files = {path: "x = 1\n" * lines}
    check_gate(proportions.files_are_short, tmp_path, files, int(found))
