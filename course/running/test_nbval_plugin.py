"""What the plugin compares; what it finds is tested in test_planted_defects.py."""

from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_output

from course.running import nbval_plugin


def outputs(*texts, kind="text/plain"):
    return [new_output("display_data", data={kind: text}) for text in texts]


@pytest.mark.parametrize(
    ("new", "stored", "said"),
    [
        (outputs("1.500"), outputs("1.501"), []),
        (outputs("1.500"), outputs("1.700"), ["- 1.700", "+ 1.500"]),
        (outputs("a"), outputs("a", "b"), ["text/plain: 2 stored, 1 now"]),
        (outputs("a"), [], ["text/plain: 0 stored, 1 now"]),
        (outputs("AB==", kind="image/png"), outputs("CD==", kind="image/png"), []),
        ([], outputs("CD==", kind="image/png"), ["image/png: 1 stored, 0 now"]),
        (outputs("<p>", kind="text/html"), outputs("<b>", kind="text/html"), []),
        (outputs("x", kind="text/latex"), outputs("y", kind="text/latex"), ["+ x"]),
        ([new_output("stream", name="stderr", text="10%")], [], []),
        (
            [new_output("stream", name="stdout", text="a")],
            [
                new_output("stream", name="stderr", text="10%"),
                new_output("stream", name="stdout", text="b"),
            ],
            ["stdout (- stored, + now):", "- b", "+ a"],
        ),
        (
            [new_output("error", ename="ValueError", evalue="no")],
            [new_output("error", ename="TypeError", evalue="no")],
            ["- TypeError: no", "+ ValueError: no"],
        ),
    ],
)
def test_what_is_compared_and_how_a_difference_is_said(new, stored, said):
    cell = nbval_plugin.NotebookCell.__new__(nbval_plugin.NotebookCell)
    new, stored = nbformat.from_dict(new), nbformat.from_dict(stored)
    assert cell.compare_outputs(new, stored) is not bool(said)
    assert [line for line in said if line not in cell.comparison_traceback] == []


def test_long_notebooks_come_first_and_short_ones_last():
    def item(seconds):
        notebook = seconds and SimpleNamespace(seconds=seconds)
        return SimpleNamespace(getparent=lambda kind: notebook, seconds=seconds)

    items = [item(seconds) for seconds in (20, None, 240, None, 45)]
    nbval_plugin.pytest_collection_modifyitems(items)
    assert [item.seconds for item in items] == [240, None, None, 45, 20]
