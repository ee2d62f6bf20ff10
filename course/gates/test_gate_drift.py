"""Fine points of the drift gates: what may differ, what counts as taught."""

import ast

import pytest

from course.gates import drift
from course.testing.tiny_trees import check_gate, every_gate, miniature, notebook

MODULE = '''"""A module.

>>> double(2)
4
"""
FACTOR = 2


def double(x: int) -> int:
    """Twice `x`."""
    scale: int = FACTOR
    return scale * x
'''
MAIN = "ch02/01_main-chapter-code"
TITLE = "# Chapter 2"


def check(gate, folder, cells, expected, module=MODULE, path=f"{MAIN}/ch02.ipynb"):
    files = {f"{MAIN}/doubling.py": module, path: notebook(TITLE, *cells)}
    check_gate(gate, folder, files, expected)


SAME = """FACTOR = 2


def double(x):
    scale = FACTOR  # another comment
    return scale * x"""


@pytest.mark.parametrize(
    "cells",
    [
        [SAME],
        ["def double(x):\n    return x + x", SAME],
        [f"%matplotlib inline\n{SAME}"],
        [f"%%time\n{SAME}"],
        [f"!ls\n{SAME}"],
        [SAME.replace("def double", "async def other(): await x\n\n\ndef double")],
        ["await something()", SAME],
        ["FACTOR = 2\nif True:\n    def double(x):\n        scale = FACTOR\n"
         "        return scale * x"],
    ],
    ids=["plain", "grown", "magic", "timed", "shell", "async", "await", "in a block"],
)  # fmt: skip
def test_what_may_differ(tmp_path, cells):
    """Docstrings, annotations, comments, earlier versions and magics are no drift."""
    check(drift.definitions_agree, tmp_path, cells, 0)
    check(drift.modules_are_taught, tmp_path, cells, 0)


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        ("scale * x", "x * scale", "here `return x * scale`, there `return scale * x`"),
        ("FACTOR = 2\n", "FACTOR = 3\n", "cell 2: FACTOR differs"),
        ("double(x)", "double(x, y=1)", "there `def double(x):`"),
        ("    return scale * x", "    pass", "here `pass`"),
        ("    scale = FACTOR  # another comment\n", "", "here `return scale * x`"),
    ],
)
def test_drift_is_found(tmp_path, old, new, shown):
    check(drift.definitions_agree, tmp_path, [SAME.replace(old, new)], shown)


def test_the_last_definition_counts(tmp_path):
    cells = [SAME, "def double(x):\n    return 3 * x"]
    check(drift.definitions_agree, tmp_path, cells, ":cell 3:")


def test_a_field_of_a_dataclass_stays_a_field():
    field, attribute = (
        ast.parse(f"class A:\n    {line}").body[0] for line in ("x: int = 1", "x = 1")
    )
    other_type = ast.parse("class A:\n    x: float = 1").body[0]
    assert drift.comparable(field) != drift.comparable(attribute)
    assert drift.comparable(field) == drift.comparable(other_type)


PRIVATE = "def _check(x):\n    pass\n\n\ndef main():\n    pass\n"


@pytest.mark.parametrize(
    ("cells", "module", "message"),
    [
        (["from doubling import FACTOR, double\ndouble(FACTOR)"], MODULE, ""),
        (["import doubling as d", "d.double(d.FACTOR)"], MODULE, ""),
        (["from doubling import FACTOR as two, double", "double(two)"], MODULE, ""),
        (
            ["from doubling import FACTOR, double", "FACTOR"],
            MODULE,
            "py:9: double is pub",
        ),
        (["1"], PRIVATE, ""),
        (["1"], MODULE, "FACTOR is public"),
        (["FACTOR = 2"], MODULE + '\n__all__ = ["FACTOR"]\n', ""),
    ],
)
def test_what_teaches(tmp_path, cells, module, message):
    """To define, or to import and use; what is private or not in `__all__` may miss."""
    check(drift.modules_are_taught, tmp_path, cells, message, module)


def test_a_module_may_wait_for_its_notebook(tmp_path):
    other = "ch03/01_main-chapter-code/ch03.ipynb"
    check(drift.modules_are_taught, tmp_path, ["1"], 0, path=other)


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (f"{MAIN}/doubling.ipynb", True),
        (f"{MAIN}/exercise-solutions.ipynb", True),
        ("ch02/02_bonus_more/more.ipynb", True),
        ("ch03/01_main-chapter-code/ch03.ipynb", True),
        ("ch01/ch01.ipynb", False),  # an earlier chapter: the name moves home later
        (f"{MAIN}/ch02.ipynb", False),
    ],
)
def test_only_the_own_notebook_defines(tmp_path, path, wrong):
    words = "from doubling import" if wrong else ""
    check(drift.one_home, tmp_path, [SAME], words, path=path)


def test_a_bonus_notebook_teaches_the_module_beside_it(tmp_path):
    files = {
        "ch04/03_kv-cache/kv_cache.py": MODULE,
        "ch04/03_kv-cache/kv-cache.ipynb": notebook(TITLE, SAME),
    }
    tree = miniature(tmp_path, files)
    assert not list(drift.one_home(tree))
    assert not list(drift.modules_are_taught(tree))


# ----------------------------------------------------------------------------- roles

SUPPORT = 'title = "D"\ntitle_ja = "D"\norder = 2\nsupport = ["doubling"]\n'
UNTAUGHT = notebook(TITLE, "x = 1")


def test_a_support_module_is_not_taught_and_is_what_the_advice_names(tmp_path):
    files = {f"{MAIN}/doubling.py": MODULE, f"{MAIN}/ch02.ipynb": UNTAUGHT}
    found = list(drift.modules_are_taught(miniature(tmp_path, files)))
    assert "listed as support in folder.toml" in found[0]
    tree = miniature(tmp_path, {"ch02/folder.toml": SUPPORT})
    assert tree.support == {f"{MAIN}/doubling.py"}
    assert not list(drift.modules_are_taught(tree))


def test_short_names_of_support_are_free_and_its_classes_are_not(tmp_path):
    cells = notebook(TITLE, "def double(x):\n    return x", "class Twice:\n    pass")
    files = {
        "ch02/folder.toml": SUPPORT,
        f"{MAIN}/doubling.py": MODULE + "\n\nclass Twice:\n    pass\n",
        "ch03/01_main-chapter-code/ch03.ipynb": cells,
    }
    (found,) = drift.one_home(miniature(tmp_path, files))
    assert "defines Twice, whose home is" in found


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([SAME, "double(2)"], ""),
        ([SAME], "1: differs from the code cells of"),
        ([SAME, "double(3)"], "cell 3: differs from the code cells of"),
    ],
)
def test_translations(tmp_path, cells, message):
    files = {
        f"{MAIN}/doubling.py": MODULE,
        f"{MAIN}/ch02.ipynb": notebook(TITLE, SAME, "double(2)"),
        f"{MAIN}/ch02.ja.ipynb": notebook("# \u7ae0", *cells),
    }
    check_gate(every_gate(drift), tmp_path, files, message)


def test_a_translation_of_nothing(tmp_path):
    files = {f"{MAIN}/ch02.ja.ipynb": notebook(TITLE, SAME)}
    check_gate(drift.translations_follow, tmp_path, files, 1)
