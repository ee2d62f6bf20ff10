"""Text in figures is at least 9 points high, and no grey in them is too pale to read.

A notebook page shows a point as it is on paper, and 9 is what a footnote has.
"""

import ast

import pytest

from course.gates.tree import Tree

LEAST = 9  # points
#: Lighter than `course.figures.GREY`, which text on white may just have.
PALE = {"#999999", "#a9a9a9", "#bbbbbb", "#cccccc", "grey", "gray", "lightgrey"}


def small(code):
    """Sizes below the least, and pale colours of text, that a cell's code asks for."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Dict):  # keywords of a call further on
            pairs = list(zip(node.keys, node.values))
        elif isinstance(node, ast.Call):
            pairs = [(ast.Constant(word.arg), word.value) for word in node.keywords]
        else:
            continue
        named = {
            key.value: value.value
            for key, value in pairs
            if isinstance(key, ast.Constant) and isinstance(value, ast.Constant)
        }
        size = named.get("fontsize", LEAST)
        if isinstance(size, (int, float)) and size < LEAST:
            yield size
        writes = isinstance(getattr(node, "func", None), ast.Attribute)
        if writes and node.func.attr == "text" and named.get("color") in PALE:
            yield named["color"]


def drawings():
    for notebook in Tree().notebooks.values():
        for cell in notebook.code:
            found = list(small(cell.source))
            if found:
                yield f"{notebook.path} {cell.raw['id']}"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("ax.text(0, 0, 'a', fontsize=8)", [8]),
        ("look = dict(rotation=60, fontsize=7.5)", [7.5]),
        ("look = {'width': 4, 'fontsize': 8, **more}", [8]),
        ("figures.token_row(ax, row, fontsize=9)", []),
        ("ax.legend(fontsize='small')", []),
        ("ax.text(0, 0, 'a', color='#999999')", ["#999999"]),
        ("ax.axhline(0, color='#a9a9a9')", []),
    ],
)
def test_small_and_pale_text_is_found(code, found):
    assert list(small(code)) == found


def test_no_drawing_has_small_text():
    assert list(drawings()) == []
