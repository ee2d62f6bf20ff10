"""Fine points of the drift gates: what may differ, what counts as taught."""

import ast

import pytest

from course.gates import drift
from course.gates.tree import gates
from course.testing.tiny_trees import miniature, notebook

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


def findings(gate, folder, cells, module=MODULE, path=f"{MAIN}/ch02.ipynb"):
    files = {f"{MAIN}/doubling.py": module, path: notebook(TITLE, *cells)}
    return [str(finding) for finding in gate(miniature(folder, files))]


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
    assert findings(drift.definitions_agree, tmp_path, cells) == []
    assert findings(drift.modules_are_taught, tmp_path, cells) == []


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        ("scale * x", "x * scale", "here `return x * scale`, there `return scale * x`"),
        ("FACTOR = 2\n", "FACTOR = 3\n", "FACTOR differs"),
        ("double(x)", "double(x, y=1)", "there `def double(x):`"),
        ("    return scale * x", "    pass", "here `pass`"),
        ("    scale = FACTOR  # another comment\n", "", "here `return scale * x`"),
    ],
)
def test_drift_is_found(tmp_path, old, new, shown):
    found = findings(drift.definitions_agree, tmp_path, [SAME.replace(old, new)])
    assert len(found) == 1
    assert "cell 2" in found[0]
    assert shown in found[0]


def test_the_last_definition_counts(tmp_path):
    cells = [SAME, "def double(x):\n    return 3 * x"]
    (found,) = findings(drift.definitions_agree, tmp_path, cells)
    assert ":cell 3:" in found


def test_a_field_of_a_dataclass_stays_a_field():
    field, attribute = (
        ast.parse(f"class A:\n    {line}").body[0] for line in ("x: int = 1", "x = 1")
    )
    other_type = ast.parse("class A:\n    x: float = 1").body[0]
    assert drift.comparable(field) != drift.comparable(attribute)
    assert drift.comparable(field) == drift.comparable(other_type)


@pytest.mark.parametrize(
    "cells",
    [
        ["from doubling import FACTOR, double\ndouble(FACTOR)"],
        ["import doubling as d", "d.double(d.FACTOR)"],
        ["from doubling import FACTOR as two, double", "double(two)"],
    ],
)
def test_importing_and_using_teaches_too(tmp_path, cells):
    assert findings(drift.modules_are_taught, tmp_path, cells) == []


def test_importing_alone_does_not(tmp_path):
    cells = ["from doubling import FACTOR, double", "FACTOR"]
    (found,) = findings(drift.modules_are_taught, tmp_path, cells)
    assert found.startswith(f"{MAIN}/doubling.py:9: double is public")


def test_private_names_and_main_need_not_be_taught(tmp_path):
    module = "def _check(x):\n    pass\n\n\ndef main():\n    pass\n"
    assert findings(drift.modules_are_taught, tmp_path, ["1"], module) == []


def test_all_decides_what_is_public(tmp_path):
    module = MODULE + '\n__all__ = ["double"]\n'
    (found,) = findings(drift.modules_are_taught, tmp_path, ["1"], module)
    assert "double is public" in found


def test_a_module_may_wait_for_its_notebook(tmp_path):
    other = "ch03/01_main-chapter-code/ch03.ipynb"
    assert findings(drift.modules_are_taught, tmp_path, ["1"], path=other) == []


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
    found = findings(drift.one_home, tmp_path, [SAME], path=path)
    assert bool(found) == wrong
    assert all("from doubling import" in text for text in found)


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
    found = [str(one) for one in drift.modules_are_taught(miniature(tmp_path, files))]
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
    assert "defines Twice, whose home is" in found.message


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
    tree = miniature(tmp_path, files)
    found = "\n".join(str(one) for gate in gates(drift) for one in gate(tree))
    assert bool(found) == bool(message)
    assert message in found


def test_a_translation_of_nothing(tmp_path):
    tree = miniature(tmp_path, {f"{MAIN}/ch02.ja.ipynb": notebook(TITLE, SAME)})
    assert len(list(drift.translations_follow(tree))) == 1
