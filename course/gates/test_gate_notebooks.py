"""Fine points of the gates on notebooks: their form, and claims."""

import base64
import json

import pytest

from course import CourseError, figures
from course.gates import claims, notebook_form
from course.running import notebooks
from course.testing.tiny_trees import (
    check_gate,
    code,
    error,
    figure,
    html,
    markdown,
    miniature,
    notebook,
    stream,
)

PATH = "ch02/01_main-chapter-code/ch02.ipynb"
ALT = "Two curves that cross near the middle"


def check(gate, folder, expected, *cells, path=PATH):
    check_gate(gate, folder, {path: notebook("# Title", *cells)}, expected)


# ------------------------------------------------------------------------ notebook form


#: What makes the normal form of a notebook another one.
CHANGES = {
    "none": lambda raw: None,
    "no id": lambda raw: raw["cells"][0].pop("id"),
    "one id twice": lambda raw: raw["cells"][1].update(id=raw["cells"][0]["id"]),
    "a time": lambda raw: raw["cells"][1]["metadata"].update(execution={"a": "2026"}),
    "widgets": lambda raw: raw["metadata"].update(widgets={}),
    "an empty cell": lambda raw: raw["cells"][1].update(source=[]),
    "an old format": lambda raw: raw.update(nbformat_minor=4),
    "never run": lambda raw: raw["cells"][1].update(execution_count=None),
    "another order": lambda raw: raw["cells"][1].update(execution_count=2),
}


@pytest.mark.parametrize("name", CHANGES)
def test_normal_form(tmp_path, name):
    raw = json.loads(notebooks.normal_text(notebook("# Title", "1")))
    CHANGES[name](raw)
    text = json.dumps(raw, indent=1) + "\n"
    expected = "" if name == "none" else f"course refresh {PATH}"
    check_gate(notebook_form.normal_form, tmp_path, {PATH: text}, expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not a note"),
        (b'{"cells": [1]}', "is not a"),
        (b"\xe9", "is not UTF-8"),
    ],
)
def test_a_broken_notebook_is_named(tmp_path, text, message):
    tree = miniature(tmp_path, {PATH: ""})
    (tmp_path / PATH).write_bytes(text)
    with pytest.raises(CourseError, match=f"{PATH} {message}"):
        next(notebook_form.normal_form(tree))


def dots(across, width):
    """A figure's output: the head of a PNG, and what the metadata say."""
    output = figure(ALT)
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + across.to_bytes(4, "big")
    output["data"]["image/png"] = base64.b64encode(head).decode()
    if width:
        output["metadata"]["image/png"]["width"] = width
    return output


def test_the_gate_counts_as_the_figures_are_drawn():
    assert notebook_form.SCALE == figures.SCALE


#: Cells with what each gate finds, in words or as a number.
CELLS = {
    notebook_form.images_are_local: [
        (markdown("![a](https://x.org/a.png)"), 1),
        (markdown("![a](//x.org/a.png)"), 1),
        (markdown('<img src="http://x.org/a.png" alt="a">'), 1),
        (markdown("[![a](https://x.org/a.svg)](https://x.org)"), 1),
        (markdown("![a](attachment:a.png)"), 1),
        (markdown("![a](data:image/png;base64,xx)"), 1),
        (markdown("x", attachments={"a.png": {"image/png": "xx"}}), 1),
        (code('Image(url="https://x.org/a.png")'), 1),
        (code("HTML(x)", html("<img src='https://x.org/a'>")), 1),
        (markdown("`![a](https://x.org/a.png)` and [a](https://x.org/a.png)"), 0),
        (markdown("```\n![a](https://x.org/a.png)\n```\n![a](figures/a.png)"), 0),
        (markdown("<!-- ![a](https://x.org/a.png) -->"), 0),
    ],
    notebook_form.images_have_alt_text: [
        (code("f()", figure()), 1),
        (code("f()", figure("")), 1),
        (code("f()", figure("a plot")), 1),
        (code("f()", figure(ALT)), 0),
        (code("f()", figure(ALT, "image/svg+xml")), 0),
        (code("f()", figure(mime="image/jpeg")), 1),
        (code("f()", figure(ALT), figure()), 1),
        (markdown("![](a.png)"), 1),
        (markdown("<img src='a.png'>"), 1),
        (markdown("<img src='a.png' alt='a tree'>![a hedge](b.png)"), 0),
    ],
    notebook_form.images_are_sharp: [
        (code("f()", dots(1760, 880)), 0),
        (code("f()", dots(1367, 683)), 0),
        (code("f()", dots(880, 880)), "880 dots for 880 pixels"),
        (code("f()", dots(1760, None)), "1760 dots for 0 pixels"),
        (code("f()", figure(ALT, "image/svg+xml")), 0),
    ],
    notebook_form.no_absolute_paths: [
        (code("1", stream("saved to /home/anna/x.pt")), 1),
        (code("open('/tmp/x')"), 1),
        (code(r"open('C:\\Users\\anna')"), 1),
        (code("1", stream(r"C:\Users\anna")), 1),
        (code("1", error() | {"traceback": ["File /root/x.py"]}), 1),
        (code("1", stream("/Users/anna/x")), 1),
        (code("1", error() | {"traceback": ["\x1b[32m/home/anna/x.py\x1b[0m"]}), 1),
        (code("'https://x.org/home/anna'; a / home; './tmp/x'; 'runs/tmp/x'"), 0),
        (code("Path('~/home')"), 0),
    ],
    notebook_form.size: [
        (code("1", stream("x")), 0),
        (code("1", stream("x" * notebook_form.MAX_BYTES)), "1.0 MB, more than 1 MB"),
    ],
    notebook_form.one_title: [
        (markdown("## B"), 0),
        (markdown("# B"), "cell 2: holds a second title"),
    ],
    claims.nothing_is_skipped: [
        (code("1", tags=["nbval-skip"]), "no test would ever run it"),
        (code("# NBVAL_SKIP\n1"), "no test would ever run it"),
    ],
}


@pytest.mark.parametrize(
    ("gate", "cell", "expected"),
    [(gate, *case) for gate, cases in CELLS.items() for case in cases],
)
def test_cells(tmp_path, gate, cell, expected):
    check(gate, tmp_path, expected, cell)


def test_modules_are_ascii_and_a_cell_may_quote_other_scripts(tmp_path):
    check(notebook_form.ascii_code, tmp_path, 0, "text = '\u732b'")
    files = {"ch02/a.py": "x = 1\ny = '\u732b'\n"}
    words = "ch02/a.py:2: holds the character '\u732b'; write it as an escape ('\\u732b"
    check_gate(notebook_form.ascii_code, tmp_path / "b", files, words)


# ------------------------------------------------------------------------------ claims


def ignored(source):
    return code(source, tags=("nbval-ignore-output",))


VERSIONS, TIMING = ignored("print(torch.__version__)"), ignored("print(seconds)")
CLAIM = code("assert seconds < 3")


@pytest.mark.parametrize(
    ("cells", "unclaimed"),
    [
        ([VERSIONS, "1"], ""),
        ([VERSIONS, TIMING, CLAIM], ""),
        ([VERSIONS, TIMING, "1", CLAIM], ""),
        ([VERSIONS, TIMING, "1"], ":cell 3:"),
        ([VERSIONS, TIMING, TIMING, CLAIM], ":cell 3:"),
        ([VERSIONS, CLAIM, TIMING], ":cell 4:"),
        ([TIMING, CLAIM, VERSIONS], ":cell 4:"),  # versions come first or not at all
        ([TIMING, "torch.testing.assert_close(a, b)"], ""),
        ([TIMING, "np.testing.assert_allclose(a, b)"], ""),
        ([TIMING, "assert True"], ":cell 2:"),
        ([TIMING, "check_2_1(mine)"], ":cell 2:"),  # passes on the untouched stub
        ([TIMING, "check_shapes(a)"], ""),
        ([code("# NBVAL_IGNORE_OUTPUT\nx")], ":cell 2:"),
        # No version cells:
        ([ignored("print(torch.__version__); time.perf_counter()")], ":cell 2:"),
        ([ignored("def f(): print(torch.__version__)")], ":cell 2:"),
        ([ignored("print('version')")], ":cell 2:"),
        ([ignored("x = torch.__version__")], ":cell 2:"),
    ],
)
def test_claims(tmp_path, cells, unclaimed):
    check(claims.ignored_outputs_are_claimed, tmp_path, unclaimed, *cells)


def test_the_check_of_an_exercise_claims_in_the_solutions(tmp_path):
    path = PATH.replace("ch02.ipynb", "exercise-solutions.ipynb")
    gate = claims.ignored_outputs_are_claimed
    check(gate, tmp_path, 0, TIMING, "check_2_1(mine)", path=path)


@pytest.mark.parametrize(("compared", "count"), [(4, 0), (3, 1)])
def test_a_fifth_may_be_ignored(tmp_path, compared, count):
    check(claims.few_outputs_are_ignored, tmp_path, count, TIMING, *["1"] * compared)
