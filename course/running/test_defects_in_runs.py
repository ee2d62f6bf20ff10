"""Defects that only a run shows, planted in a copy and found by the test command.

Those that a look at the files shows are planted beside the gates that look for them.
"""

import re
import time

import pytest
from nbformat.v4 import new_output

from course.running import notebooks
from course.testing import tree_copies
from course.testing.tree_copies import code_cell

FOLDER = "ch02/planted"
# In the copy, budgets small enough to be missed without waiting, and a run that takes
# longer than all that the notebook which asks for it may take.
FOLDER_FILE = """
title = "planted defects"
title_ja = "planted defects"
about = "planted defects"

[seconds]
"slow.ipynb" = 1.5
"asleep.ipynb" = 1.5
"prepared.ipynb" = 5
"endless.ipynb" = 0.1

[makes.ch02-slow]
script = "slow_run.py"
about = "slow"
files = ["done"]
minutes = 1
"""
LARGE_FILE = """
title = "a large notebook"
title_ja = "a large notebook"
order = 98
memory_mb = 10
"""
SHORT_CELLS = "SHORTEST_CELL_LIMIT = 1.0\n"
NOTEBOOKS = {
    "prepared": [
        code_cell(
            "from course import runs\n\nprint(runs.get('ch02-slow').name)",
            "ch02-slow-quick\n",
        ),
        code_cell("print('made before')", "made before\n", count=2),
    ],
    "number": [
        code_cell("loss = 2.5\nprint(f'loss {loss:.3f}, 8 batches')", "loss 2.400, 8\n")
    ],
    "dead": [
        code_cell("import os\n\nprint('before', flush=True)\nos._exit(9)", "before\n"),
        code_cell("print('after')", "after\n", count=2),
    ],
    "tagged": [code_cell("print('fine')", "fine\n", tags=["raises-exception"])],
    "stripped": [
        code_cell("import random", count=None),
        code_cell("print(random.random())", count=None),
    ],
    "network": [
        code_cell(
            "import urllib.request\n\n"
            'urllib.request.urlopen("http://example.com", timeout=5)'
        ),
        code_cell("print(undefined)", "1\n", count=2),
    ],
    "slow": [
        code_cell("import time\n\nwhile time.process_time() < 4:\n    pass"),
    ],
    "asleep": [code_cell("import time\n\ntime.sleep(4)")],
    "endless": [code_cell("while True:\n    pass")],
    "picture": [
        code_cell(
            "print('no picture')",
            "no picture\n",
            outputs=[new_output("display_data", data={"image/png": "iVBORw0KGgo="})],
        )
    ],
    "leaves": [
        code_cell(
            "from pathlib import Path\n\n"
            'Path("left-behind.txt").write_text("x", encoding="utf-8");'
        )
    ],
}
FILES = {
    "folder.toml": FOLDER_FILE,
    "slow_run.py": '''
"""A training script that only takes time."""

if __name__ == "__main__":
    import sys
    import time
    from pathlib import Path

    time.sleep(11)
    Path(sys.argv[-1], "done").touch()
''',
    "planted_doctest.py": '''
"""A module whose example is wrong.

>>> 1 + 1
3
"""
''',
    "planted_lint.py": '"""A module."""\n\nimport os\n',
    "planted_layout.py": '"""A module."""\n\nx = {  "a":1 }\n',
}
#: What the output has to say.
SAID = {
    "wrong number": r"number\.ipynb, code cell 1 \(id planted-1\) does not print what "
    r"is stored\. If the new output is right, run `python3 -m course refresh ",
    "both outputs are shown": r"- loss 2\.400, 8\n.*\n?.*\+ loss 2\.500, 8 batches",
    "dead kernel": r"dead\.ipynb, code cell 1 .* did not finish: its kernel ended "
    r"\(exit code 9\)",
    "tag without exception": r"tagged\.ipynb, code cell 1 .* carries the tag "
    r"raises-exception but did not fail",
    "never run": r"stripped\.ipynb, code cell 1 .* was never run, so there is no ",
    "network in a cell": r"network\.ipynb, code cell 1 .* failed with "
    r"NetworkForbidden: .*example\.com is forbidden",
    "too slow": r"slow\.ipynb took \d+\.\d s of the processor; planned are 1\.5 s and ",
    "too much memory": r"ch98/large\.ipynb took \d+ MB of memory; at most 10 MB",
    "endless": r"endless\.ipynb, code cell 1 .* was stopped after 1 s",
    "picture is gone": r"image/png: 1 stored, 0 now",
    "doctest": r"Expected:\n    3\nGot:\n    2",
    "ruff's rules": r"planted_lint\.py:3:8",
    "layout of a module": r"planted_layout\.py",
    "layout of a cell": r"layout\.ipynb",
    "a file left behind": r"the tree changed: new ch02/planted/left-behind\.txt\. ",
    "what to run again": r"To run only what failed again: python3 -m course test \S+",
    "total time": r"course: style and tests took \d+ s in all",
    "closing line": r"\ncourse: The style check failed, .* All took \d+ s\.\s*\Z",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the tree with a folder of defects."""
    tree = tree_copies.copy_tree(tmp_path_factory.mktemp("planted"))
    with open(tree / "course/running/budgets.py", "a", encoding="utf-8") as file:
        file.write(SHORT_CELLS)
    for name, cells in NOTEBOOKS.items():
        tree_copies.write_notebook(tree / FOLDER / f"{name}.ipynb", *cells)
    tree_copies.write_notebook(
        tree / FOLDER / "layout.ipynb",
        code_cell("x = {  'a':1 }\nprint(x)", "{'a': 1}\n"),
    )
    tree_copies.write_notebook(tree / "ch98/large.ipynb", code_cell("x = 1"))
    (tree / "ch98/folder.toml").write_text(LARGE_FILE, encoding="utf-8")
    for name, text in FILES.items():
        (tree / FOLDER / name).write_text(text.lstrip("\n"), encoding="utf-8")
    return tree


@pytest.fixture(scope="module")
def defective(tree):
    """One run over all of them: (process, seconds)."""
    targets = [f"{FOLDER}/{path.name}" for path in sorted((tree / FOLDER).iterdir())]
    started = time.monotonic()
    done = tree_copies.run_course(tree, "test", *targets, "ch98/large.ipynb")
    return done, time.monotonic() - started


@pytest.mark.parametrize("defect", SAID)
def test_the_test_command_finds(defective, defect):
    done, _ = defective
    assert re.search(SAID[defect], done.stdout), done.stdout
    assert done.returncode == 1


def test_each_defect_is_told_once_and_its_followers_are_skipped(defective, tree):
    """A dead kernel, a stripped notebook, a first cell that fails: one failure each.

    Two slow notebooks pass: sleeping costs nothing, and the run that one asks for is
    made before it, in 11 s of which its budget of 5 s knows nothing.
    """
    assert (tree / "runs/ch02-slow-quick/done").is_file()
    output = defective[0].stdout
    failed = re.findall(r"^FAILED \S+/(\w+)\.(?:ipynb|py)::", output, re.MULTILINE)
    expected = {*NOTEBOOKS, "large", "planted_doctest"}
    assert sorted(failed) == sorted(expected - {"leaves", "prepared", "asleep"})
    assert re.search(rf"\b{len(failed)} failed, \d+ passed, \d+ skipped in ", output)


def test_defects_that_could_hang_a_run_do_not(defective):
    assert defective[1] < 120


# 85 columns fit into a module but not into a cell, which has a style of its own.
WIDE = f"total = sum([{', '.join([str(10**9)] * 6)}])"
GOOD = [
    "import matplotlib.pyplot as plt\n\nplt.plot([1, 2]);",
    "print(f'loss {10.8471:.3f}, {8} batches')\nobject()",
    WIDE,
]


@pytest.fixture(scope="module")
def refreshed(tree):
    """A good notebook, refreshed in the copy: (process, path)."""
    path = tree / "ch02/good/good.ipynb"
    cells = [code_cell(source, count=None) for source in GOOD]
    cells.append(code_cell("int('lamp')", count=None, tags=["raises-exception"]))
    tree_copies.write_notebook(path, *cells)
    page = tree / "ch02/good/README.md"
    marks = "<!-- ledger: ch02/good -->\n<!-- /ledger -->\n"
    page.write_text(f"# Good\n\n{marks}", encoding="utf-8")
    return tree_copies.run_course(tree, "refresh", "ch02/good"), path


def test_refresh_measures_and_fills_the_tables(tree, refreshed):
    done, path = refreshed
    assert done.returncode == 0, done.stdout
    assert "  cell 4/4  " in done.stdout
    assert "ch02/good/README.md: filled from the ledger and the folders" in done.stdout
    ledger = (tree / "ledger.csv").read_text(encoding="utf-8")
    (row,) = [line for line in ledger.splitlines() if line.startswith("ch02/good/")]
    assert row.startswith("ch02/good/good.ipynb,1,")
    page = path.with_name("README.md").read_text(encoding="utf-8")
    assert re.search(r"\| \[`good.ipynb`\]\(good.ipynb\) \| \d+ s \| \d+ MB \|", page)


def test_a_notebook_within_the_tolerance_passes(tree, refreshed):
    """What no two runs have in common: last digits, addresses and pictures."""
    _, path = refreshed
    notebook = notebooks.read(path)
    drawn, loss, *_ = notebook.cells
    assert [out.output_type for out in drawn.outputs] == ["display_data"]
    drawn.outputs[0].data["image/png"] = "AAAA"
    printed, value = loss.outputs
    printed.text = printed.text.replace("10.847", "10.848")
    value.data["text/plain"] = "<object at 0x7f00deadbeef>"
    notebooks.write(path, notebook)
    assert WIDE not in [cell.source for cell in notebook.cells], "refresh splits it"
    done = tree_copies.run_course(tree, "test", "ch02/good/good.ipynb")
    assert done.returncode == 0, done.stdout
    assert re.search(r"=+ 5 passed in [\d.]+s", done.stdout.splitlines()[-1])
