"""Defects planted in a copy of the tree, all found by one run of the test command.

Those that only a run shows, and one for each module of gates: what each single gate
finds, the tests named test_gate_* show on trees of a few files.
"""

import re

import pytest

from course.gates import test_tree
from course.running import notebooks
from course.testing import tree_copies
from course.testing.tiny_trees import code, figure, stream, write_notebook

FOLDER = "ch02/planted"
# In the copy, budgets small enough to be missed without waiting, and a run that takes
# more than all that the notebook which asks for it may take.
FOLDER_FILE = """
title = "planted defects"
title_ja = "planted defects"
about = "planted defects"

[seconds]
"slow.ipynb" = 1.5
"asleep.ipynb" = 1.5
"prepared.ipynb" = 1.5
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
COMPUTE = "import time\n\nwhile time.process_time() < 3.5:\n    pass"
#: The code cells of each notebook, with what they are said to have printed.
NOTEBOOKS = {
    "prepared": [
        code(
            "from course import runs\n\nprint(runs.get('ch02-slow').name)",
            stream("ch02-slow-quick\n"),
        ),
        code("print('made before')", stream("made before\n")),
    ],
    "number": [
        code(
            "loss = 2.5\nprint(f'loss {loss:.3f}, 8 batches')", stream("loss 2.4, 8\n")
        )
    ],
    "dead": [
        code(
            "import os\n\nprint('before', flush=True)\nos._exit(9)", stream("before\n")
        ),
        code("print('after')", stream("after\n")),
    ],
    "tagged": [code("print('fine')", stream("fine\n"), tags=["raises-exception"])],
    "stripped": [
        code("import random", execution_count=None),
        code("print(random.random())", execution_count=None),
    ],
    "network": [
        code(
            "import urllib.request\n\n"
            'urllib.request.urlopen("http://example.com", timeout=5)'
        ),
        code("print(undefined)", stream("1\n")),
    ],
    "slow": [COMPUTE],
    "asleep": ["import time\n\ntime.sleep(3.2)"],
    "endless": ["while True:\n    pass"],
    "picture": [code("print('no picture')", stream("no picture\n"), figure())],
    "leaves": [
        "from pathlib import Path\n\n"
        'Path("left-behind.txt").write_text("x", encoding="utf-8");'
    ],
    "layout": [code("x = {  'a':1 }\nprint(x)", stream("{'a': 1}\n"))],
    "drift": ["def planted(x):\n    return 2 * x", code("1", tags=["nbval-skip"])],
}
FILES = {
    "folder.toml": FOLDER_FILE,
    "slow_run.py": f'''
"""A training script that only takes time."""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    {COMPUTE.replace(chr(10), chr(10) + "    ")}
    Path(sys.argv[-1], "done").touch()
''',
    "planted_doctest.py": '"""A module whose example is wrong.\n\n>>> 1 + 1\n3\n"""\n',
    "planted_lint.py": '"""A module."""\n\nimport os\n',
    "planted_layout.py": '"""A module."""\n\nx = {  "a":1 }\n',
    "planted_drift.py": "def planted(x):\n    return 3 * x\n",
    "planted_support.py": "def check_planted():\n    return 1\n",
    "test_planted.py": "def test_planted():\n    print(1)\n",
    "README.md": (
        "# It takes 87,654.321 planted seconds\n\n[planted](nowhere.md)\n"
        "<!-- not run: needs another machine -->\n\n"
        "All is 2.5 times as slow. <!-- number 2.5: 7.2 / 3.1 planted -->\n"
    ),
    "../../data/planted.txt": "Planted.\n",
    "../../course/planted.py": "import dataloader\n",
    "../../ch98/folder.toml": LARGE_FILE,
}
#: What the output has to say.
SAID = {
    "wrong number": r"number\.ipynb, code cell 1 \(id cell-0\) does not print what "
    r"is stored\. If the new output is right, run `python3 -m course refresh ",
    "both outputs are shown": r"- loss 2\.4, 8\n.*\n?.*\+ loss 2\.500, 8 batches",
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
#: What a gate has to say, for one gate of each module.
GATES = {
    "drift-definitions_agree": r"drift\.ipynb:cell 1: planted differs from its d",
    "notebook_form-one_title": r"dead\.ipynb:cell 1: the notebook does not begin",
    "claims-nothing_is_skipped": r"drift\.ipynb:cell 2: is tagged nbval-skip",
    "numbers-numbers_in_pages": r"README\.md:1: the number 87,654\.321 is in no",
    "accounts-accounts_of_numbers": r"README\.md:6: the comment on the number 2\.5 ",
    "assertions-every_test_asserts": r"test_planted\.py:1: test_planted asserts ",
    "imports-course_is_built_upwards": r"course/planted\.py:1: .* a module of a ",
    "proportions-few_lines_are_checks": r"planted_support\.py:1: spends 100% of ",
    "contents-made_parts_are_up_to_date": r"^README\.md:1: differs from what ",
    "pages-links_lead_somewhere": r"README\.md:3: the link nowhere\.md leads no",
    "page_commands-reasons_are_given": r"README\.md:4: the comment on running a ",
    "dependencies-assets_match": r"^data/planted\.txt:1: is data that course",
}
SAID |= GATES


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the tree with a folder of defects."""
    tree = tree_copies.copy_tree(tmp_path_factory.mktemp("planted"))
    with open(tree / "course/running/budgets.py", "a", encoding="utf-8") as file:
        file.write(SHORT_CELLS)
    for name, cells in NOTEBOOKS.items():
        write_notebook(tree / FOLDER / f"{name}.ipynb", *cells)
    write_notebook(tree / "ch98/large.ipynb", "x = 1")
    for name, text in FILES.items():
        (tree / FOLDER / name).write_text(text.lstrip("\n"), encoding="utf-8")
    return tree


@pytest.fixture(scope="module")
def said(tree):
    """What one run over all of them says; one that hangs is cut off and fails."""
    done = tree_copies.run_course(tree, "test", FOLDER, "ch98")
    assert done.returncode == 1
    return done.stdout


@pytest.mark.parametrize("defect", SAID)
def test_the_test_command_finds(said, defect):
    assert re.search(SAID[defect], said, re.MULTILINE), said


def test_every_gate_module_has_its_defect_under_the_name_of_the_gate(said):
    modules = {parameter.id.partition("-")[0] for parameter in test_tree.GATES}
    assert modules == {gate.partition("-")[0] for gate in GATES}
    failed = re.findall(r"^FAILED .*::test_tree\[(.*?)\]", said, re.MULTILINE)
    assert set(GATES) <= set(failed)


def test_each_defect_is_told_once_and_its_followers_are_skipped(said, tree):
    """A dead kernel, a stripped notebook, a first cell that fails: one failure each.

    Two slow notebooks pass: sleeping costs nothing, and the run that one asks for is
    made before it, and its budget knows nothing of that.
    """
    assert (tree / "runs/ch02-slow-quick/done").is_file()
    failed = re.findall(r"^FAILED ch\S+/(\w+)\.(?:ipynb|py)::", said, re.MULTILINE)
    passing = {"leaves", "prepared", "asleep", "layout", "drift"}
    expected = {*NOTEBOOKS, "large", "planted_doctest"}
    assert sorted(failed) == sorted(expected - passing)


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
    write_notebook(path, *GOOD, code("int('lamp')", tags=["raises-exception"]))
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
