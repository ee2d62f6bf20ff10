"""One defect for each gate module, planted into a copy of the real tree.

All go into one copy, the test command runs there once, and each test then looks for its
own finding: under the name of its gate, at the place of the defect. Places are found by
search, so that these tests survive every edit of the course. What each single gate
finds, the tests named test_gate_* show on trees of a few files.
"""

import ast
import json
import re
from pathlib import Path

import pytest

from course.gates import test_tree
from course.gates.tree import Tree, folder
from course.testing import tree_copies


class Copy:
    """A copy of the tree, the places for defects in it, and ways to plant them."""

    def __init__(self, root: Path):
        self.root, self.tree = root, Tree(root)
        self.module, self.notebook = next(
            (module, notebook)
            for module in self.tree.modules.values()
            for notebook in self.tree.notebooks.values()
            if notebook.role == "main" and folder(notebook.path) == folder(module.path)
            if module.path not in self.tree.support
        )
        self.test = f"{folder(self.module.path)}/test_{Path(self.module.path).name}"

    def append(self, path: str, text: str) -> str:
        with (self.root / path).open("a", encoding="utf-8", newline="\n") as file:
            file.write(f"\n{text}\n")
        return path

    def edit_cell(self, number: int, change) -> str:
        """Apply `change` to a cell of the notebook, counted from 1."""
        file = self.root / self.notebook.path
        raw = json.loads(file.read_text(encoding="utf-8"))
        change(raw["cells"][number - 1])
        file.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
        return self.notebook.path


def drifted_function(copy):
    cell, node = next(
        (cell, node)
        for name, (cell, node) in copy.notebook.definitions.items()
        if isinstance(copy.module.definitions.get(name), ast.FunctionDef)
    )
    lines = cell.source.split("\n")
    lines.insert(node.end_lineno, "    planted = 1")
    return copy.edit_cell(cell.number, lambda raw: raw.update(source="\n".join(lines)))


def second_title(copy):
    cell, _ = copy.notebook.prose[1]
    text = f"{cell.source}\n\n# Planted title\n"
    return copy.edit_cell(cell.number, lambda raw: raw.update(source=text))


def skipped_cell(copy):
    tagged = {"metadata": {"tags": ["nbval-skip"]}}
    return copy.edit_cell(copy.notebook.code[0].number, lambda raw: raw.update(tagged))


def unaccounted_number(copy):
    return copy.append("README.md", "It takes 87,654.321 planted seconds.")


def idle_test(copy):
    return copy.append(copy.test, "\ndef test_planted():\n    print(1)")


def chapter_in_course(copy):
    unused = "course/testing/own_data.py"
    return copy.append(unused, f"import {Path(copy.module.path).stem}")


def checks_without_end(copy):
    return copy.append(copy.module.path, "def check_planted():\n" + "    pass\n" * 200)


def dead_link(copy):
    return copy.append("CONTRIBUTING.md", "[planted](planted/nowhere.md)")


def reason_for_no_command(copy):
    return copy.append("data/README.md", "<!-- not run: needs another machine -->")


def data_that_the_manifest_does_not_name(copy):
    (copy.root / "data/planted.txt").write_text("Planted.\n", encoding="utf-8")
    return "data/planted.txt"


def row_typed_by_hand(copy):
    page = copy.root / "README.md"
    text = page.read_text(encoding="utf-8").replace("Setup recommendations", "Planted")
    page.write_text(text, encoding="utf-8")
    return "README.md"


#: Planting functions, which return the path of the finding: gate and words of it.
PLANTS = {
    drifted_function: ("drift-definitions_agree", "differs from its definition in"),
    second_title: ("notebook_form-one_title", "holds a second title"),
    skipped_cell: ("claims-nothing_is_skipped", "no test would ever run it"),
    unaccounted_number: ("numbers-numbers_in_pages", "the number 87,654.321 is in no"),
    idle_test: ("assertions-every_test_asserts", "test_planted asserts nothing"),
    chapter_in_course: ("imports-course_is_built_upwards", "a module of a chapter"),
    checks_without_end: ("proportions-few_lines_are_checks", "checks and messages"),
    row_typed_by_hand: (
        "contents-made_parts_are_up_to_date",
        "differs from what ledger.csv and the folder.toml of the folders say",
    ),
    dead_link: ("pages-links_lead_somewhere", "planted/nowhere.md leads nowhere"),
    reason_for_no_command: (
        "page_commands-reasons_are_given",
        "stands below no block of commands",
    ),
    data_that_the_manifest_does_not_name: (
        "dependencies-assets_match",
        "is data that course/assets.toml does not name",
    ),
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """(expected path of each plant, report of each gate, exit code) of one run."""
    root = tree_copies.copy_tree(tmp_path_factory.mktemp("planted"))
    copy = Copy(root)
    expected = {plant: plant(copy) for plant in PLANTS}
    done = tree_copies.run_course(root, "test", "course/gates/test_tree.py")
    titles = re.split(r"^_+ test_tree\[([\w-]+)\] _+$", done.stdout, flags=re.MULTILINE)
    reports = dict(zip(titles[1::2], titles[2::2]))
    assert reports, f"the test command found nothing at all:\n{done.stdout}"
    return expected, reports, done.returncode


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_planted(plant, planted):
    expected, reports, _ = planted
    gate, message = PLANTS[plant]
    lines = reports.get(gate, "").splitlines()
    found = [line for line in lines if line.startswith(f"{expected[plant]}:")]
    assert any(message in line for line in found), "\n".join(lines) or "no report"


def test_the_command_fails(planted):
    assert planted[2] == 1


def test_every_gate_module_has_a_plant():
    modules = {parameter.id.partition("-")[0] for parameter in test_tree.GATES}
    assert modules == {gate.partition("-")[0] for gate, _ in PLANTS.values()}
