"""Each static gate finds its defect, planted into a copy of the real tree.

All defects go into one copy, the test command runs there once, and each test then looks
for its own finding: under the name of its gate, at the place of the defect. Places are
found by search, so that these tests survive every edit of the course.
"""

import ast
import contextlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from course.gates import pages, test_tree
from course.gates.tree import Tree, folder
from course.installation import environment
from course.testing import tree_copies

REMOTE = "https://example.org/planted.png"
PLANTS = {}


def plant(gate: str, message: str):
    """Register a planting function: the gate that must find it, and in what words.

    The function receives a `Copy` and returns the path of the expected finding.
    """

    def register(function):
        PLANTS[function.__name__] = (function, gate, message)
        return function

    return register


@dataclass
class Copy:
    """A copy of the tree, with ways to find places in it and to change them.

    `tree` is what the copy was before anything was planted: plants change and add, and
    move nothing, so that places found there stay where they are.
    """

    root: Path

    @cached_property
    def tree(self) -> Tree:
        return Tree(self.root)

    def notebook(self, role: str) -> str:
        """The first chapter notebook with a role that stands beside a module."""
        homes = {folder(module.path) for module in self.tree.modules.values()}
        return next(
            path
            for path, book in self.tree.notebooks.items()
            if book.role == role and folder(path) in homes
        )

    def module(self) -> tuple[str, str]:
        """(name, path) of a module that the first main notebook teaches."""
        here = folder(self.notebook("main"))
        return next(
            (name, module.path)
            for name, module in self.tree.modules.items()
            if folder(module.path) == here
        )

    def test_file(self) -> str:
        here = folder(self.notebook("main"))
        return next(test.path for test in self.tree.tests if folder(test.path) == here)

    def write(self, path: str, text: str) -> str:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8", newline="\n")
        return path

    def read(self, path: str) -> str:
        return (self.root / path).read_text(encoding="utf-8")

    def append(self, path: str, text: str) -> str:
        return self.write(path, f"{self.read(path)}\n{text}\n")

    @contextlib.contextmanager
    def cells(self, path: str):
        """The cells of a notebook, for changing them."""
        raw = json.loads(self.read(path))
        yield raw["cells"]
        self.write(path, json.dumps(raw, indent=1) + "\n")

    def edit_cell(self, path: str, kind: str, change) -> str:
        """Apply `change` to the second cell of a kind (the first may be special)."""
        with self.cells(path) as cells:
            change([c for c in cells if c["cell_type"] == kind and _text(c)][1])
        return path

    def add_code(self, path: str, source: str) -> str:
        """Append a code cell that looks as if it had been run."""
        with self.cells(path) as cells:
            ran = [c["execution_count"] or 0 for c in cells if c["cell_type"] == "code"]
            cells.append(
                {
                    "cell_type": "code",
                    "id": f"planted-{len(cells)}",
                    "metadata": {},
                    "source": source,
                    "outputs": [],
                    "execution_count": max(ran, default=0) + 1,
                }
            )
        return path

    def add_prose(self, path: str, text: str) -> str:
        """Append a paragraph to a markdown cell."""

        def change(cell):
            cell["source"] = f"{_text(cell)}\n\n{text}\n"

        return self.edit_cell(path, "markdown", change)

    def tag(self, path: str, tag: str) -> str:
        def change(cell):
            cell["metadata"].setdefault("tags", []).append(tag)

        return self.edit_cell(path, "code", change)


def _text(cell: dict) -> str:
    return "".join(cell["source"])


# ------------------------------------------------------------------------------- drift


@plant("drift-definitions_agree", "differs from its definition in")
def drifted_function(copy):
    path, (name, _) = copy.notebook("main"), copy.module()
    known = copy.tree.modules[name].definitions
    cell, node = next(
        (cell, node)
        for defined, (cell, node) in copy.tree.notebooks[path].definitions.items()
        if isinstance(known.get(defined), ast.FunctionDef)
    )
    lines = cell.source.split("\n")
    lines.insert(node.end_lineno, "    planted = 1")
    with copy.cells(path) as cells:
        cells[cell.number - 1]["source"] = "\n".join(lines)
    return path


@plant("drift-modules_are_taught", "planted_function is public, but")
def name_missing_in_the_notebook(copy):
    _, path = copy.module()
    return copy.append(path, '\ndef planted_function():\n    """Untaught."""')


@plant("drift-one_home", "write `from")
def summary_notebook_that_redefines_a_name(copy):
    name, _ = copy.module()
    known = copy.tree.modules[name].definitions
    public = next(n for n, d in known.items() if isinstance(d, ast.FunctionDef))
    return copy.add_code(copy.notebook("summary"), f"def {public}():\n    pass")


@plant("drift-imported_names_exist", "imports planted_name from")
def import_of_a_name_that_is_not_there(copy):
    name, _ = copy.module()
    return copy.append(copy.test_file(), f"from {name} import planted_name")


# ----------------------------------------------------------------------------- hygiene


@plant("drift-imported_names_exist", "imports planted_example from")
def example_in_a_page_that_imports_what_is_not_there(copy):
    name, _ = copy.module()
    example = f"```python\nfrom {name} import planted_example\n```"
    return copy.append("README.md", example)


@plant("hygiene-readable", "cannot be read as a notebook")
def damaged_notebook(copy):
    return copy.write(f"{folder(copy.notebook('main'))}/planted.ipynb", '{"cells": [')


@plant("hygiene-size", "more than 1 MB")
def oversized_notebook(copy):
    def change(cell):
        text = "planted " * 140_000
        output = {"output_type": "stream", "name": "stdout", "text": text}
        cell["outputs"].append(output)

    return copy.edit_cell(copy.notebook("solutions"), "code", change)


@plant("hygiene-cell_ids", "too; delete the id of the copy")
def duplicate_ids(copy):
    path = copy.notebook("main")
    with copy.cells(path) as cells:
        cells[2]["id"] = cells[1]["id"]
    return path


@plant("hygiene-cold_run", "no cell was ever run")
def stripped_notebook(copy):
    path = copy.notebook("summary")
    with copy.cells(path) as cells:
        for cell in cells:
            if cell["cell_type"] == "code":
                cell |= {"execution_count": None, "outputs": []}
    return path


@plant("hygiene-cold_run", "where a cold run from top to bottom gives [2]")
def wrong_execution_counts(copy):
    def change(cell):
        cell["execution_count"] = 77

    return copy.edit_cell(copy.notebook("solutions"), "code", change)


@plant("hygiene-no_run_traces", "keeps 'execution' in its metadata")
def time_stamps(copy):
    def change(cell):
        cell["metadata"]["execution"] = {"iopub.execute_input": "2026-01-01T00:00:00Z"}

    return copy.edit_cell(copy.notebook("main"), "code", change)


@plant("hygiene-errors_are_meant", "ends in PlantedError")
def untagged_error_output(copy):
    def change(cell):
        error = {"ename": "PlantedError", "evalue": "", "traceback": []}
        cell["outputs"].append({"output_type": "error", **error})

    return copy.edit_cell(copy.notebook("main"), "code", change)


@plant("hygiene-images_are_local", f"shows the remote image {REMOTE}")
def remote_image(copy):
    return copy.add_prose(copy.notebook("main"), f"![a planted image]({REMOTE})")


@plant("hygiene-images_are_local", "carries a pasted attachment")
def pasted_attachment(copy):
    def change(cell):
        cell["attachments"] = {"planted.png": {"image/png": ""}}

    return copy.edit_cell(copy.notebook("main"), "markdown", change)


@plant("hygiene-images_have_alt_text", "the image planted.png has no alt text")
def image_without_alt_text(copy):
    return copy.add_prose(copy.notebook("main"), "![](planted.png)")


@plant("hygiene-images_have_alt_text", "the figure has no alt text")
def figure_without_alt_text(copy):
    for path in copy.tree.notebooks:
        with copy.cells(path) as cells:
            outputs = (o for cell in cells for o in cell.get("outputs", ()))
            for output in outputs:
                if "image/png" in output.get("data", {}):
                    output["metadata"] = {}
                    return path
    raise AssertionError("no notebook of the tree has a figure")


@plant("hygiene-no_absolute_paths", "its output holds the absolute path")
def absolute_path(copy):
    def change(cell):
        text = "saved below /home/planted/runs\n"
        output = {"output_type": "stream", "name": "stdout", "text": text}
        cell["outputs"].append(output)

    return copy.edit_cell(copy.notebook("main"), "code", change)


@plant("hygiene-line_length", "columns, more than 80")
def long_line(copy):
    return copy.add_code(copy.notebook("main"), f"planted = '{'x' * 80}'")


@plant("hygiene-ascii_code", "holds the character")
def foreign_character(copy):
    return copy.append(copy.module()[1], '# "planted" \u732b')


@plant("hygiene-threads_are_left_alone", "sets the number of threads")
def number_of_threads(copy):
    return copy.add_code(copy.notebook("main"), "torch.set_num_threads(2)")


@plant("hygiene-one_title", "holds a second title")
def second_title(copy):
    return copy.add_prose(copy.notebook("main"), "# Planted title")


# ------------------------------------------------------------------------------ claims


@plant("claims-nothing_is_skipped", "no test would ever run it")
def skipped_cell(copy):
    return copy.tag(copy.notebook("main"), "nbval-skip")


@plant("claims-few_outputs_are_ignored", "more than a fifth")
def too_many_ignored_cells(copy):
    path = copy.notebook("solutions")
    with copy.cells(path) as cells:
        for cell in cells:
            if cell["cell_type"] == "code":
                tags = cell["metadata"].setdefault("tags", [])
                tags.append("nbval-ignore-output")
    return path


@plant("claims-ignored_outputs_are_claimed", "asserts anything; add a cell")
def ignored_cell_without_a_claim(copy):
    path = copy.add_code(copy.notebook("main"), "print(1)")
    with copy.cells(path) as cells:
        cells[-1]["metadata"]["tags"] = ["nbval-ignore-output"]
    return path


# ----------------------------------------------------------------------------- numbers


@plant("numbers-numbers_in_notebooks", "the number 98,765.4321 is in no code cell")
def number_in_a_cell_that_nothing_produces(copy):
    return copy.add_prose(copy.notebook("main"), "It takes 98,765.4321 planted steps.")


@plant("numbers-numbers_in_pages", "the number 87,654.321 is in no notebook")
def number_in_a_page_that_nothing_produces(copy):
    return copy.append("README.md", "It takes 87,654.321 planted seconds.")


# ------------------------------------------------------------------------------ honest


def _add_test(copy, name, body):
    return copy.append(copy.test_file(), f"\ndef test_planted_{name}():\n    {body}")


@plant("honest-every_test_asserts", "test_planted_idle asserts nothing")
def idle_test(copy):
    return _add_test(copy, "idle", "print(1)")


@plant("honest-nothing_is_compared_with_itself", "`assert planted == planted`")
def comparison_with_itself(copy):
    return _add_test(copy, "self", "planted = 1\n    assert planted == planted")


@plant("honest-nothing_is_compared_with_itself", "`assert True` is true whatever")
def assertion_of_a_constant(copy):
    return _add_test(copy, "constant", "assert True")


@plant("honest-no_bare_comparison", "`planted == 2` is computed and thrown away")
def bare_comparison(copy):
    return _add_test(copy, "bare", "planted = 1\n    planted == 2")


@plant("honest-no_assertion_is_swallowed", "is caught and passed over")
def swallowed_assertion(copy):
    body = "try:\n        assert planted\n    except Exception:\n        pass"
    return _add_test(copy, "swallowed", body)


@plant("honest-no_test_is_always_skipped", "test_planted_skipped is skipped everywhere")
def skipped_test(copy):
    return _add_test(copy, "skipped", 'pytest.skip("planted")\n    assert planted')


# ------------------------------------------------------------------------------- house


@plant("house-imports_look_back", "imports planted_later, which belongs to ch07")
def import_from_a_later_chapter(copy):
    copy.write("ch07/01_main-chapter-code/planted_later.py", '"""Later."""\n')
    return copy.append(copy.module()[1], "import planted_later")


@plant("house-no_cycles", "in a circle")
def import_cycle(copy):
    name, path = copy.module()
    bonus = f"{path.partition('/')[0]}/02_planted/planted_cycle.py"
    copy.write(bonus, f'"""A circle."""\n\nimport {name}\n')
    return copy.append(path, "import planted_cycle")


@plant("house-modules_stand_alone", "imports course at the top")
def module_that_imports_course_at_the_top(copy):
    return copy.append(copy.module()[1], "import course")


@plant("house-modules_stand_alone", "imports pytest, which is neither in requirements")
def module_that_imports_a_test_package(copy):
    return copy.append(copy.module()[1], "import pytest")


@plant("house-course_imports_no_chapter", "imports the chapter module")
def course_that_imports_a_chapter(copy):
    return copy.append("course/settings.py", f"import {copy.module()[0]}")


@plant("house-file_names_are_unique", "and both are imported by bare name")
def two_test_files_of_one_name(copy):
    name = copy.test_file().rpartition("/")[2]
    return copy.write(f"ch07/01_main-chapter-code/{name}", '"""Again."""\n')


@plant("house-class_names_are_unique", "exists in")
def second_class_of_one_name(copy):
    name, _ = copy.module()
    known = copy.tree.modules[name].definitions
    taken = next(n for n, d in known.items() if isinstance(d, ast.ClassDef))
    path = "ch07/01_main-chapter-code/planted_class.py"
    return copy.write(path, f'"""Again."""\n\n\nclass {taken}:\n    """Twice."""\n')


@plant("house-nothing_is_copied", "is a copy of earlier chapters")
def previous_chapters(copy):
    _, path = copy.module()
    copied = "ch07/01_main-chapter-code/previous_chapters.py"
    return copy.write(copied, copy.read(path))


@plant("house-nothing_is_copied", "is defined word for word in")
def copied_function(copy):
    _, path = copy.module()
    return copy.write("ch07/02_planted/planted_copy.py", copy.read(path))


@plant("house-modules_are_documented", "planted_silent has no docstring")
def function_without_docstring(copy):
    return copy.append(copy.module()[1], "\ndef planted_silent():\n    pass")


@plant("house-exercises_are_wired", "check_99_9 is in no test beside it")
def check_without_a_test(copy):
    here = folder(copy.notebook("main"))
    path = next(
        p for p in copy.tree.sources if folder(p) == here and p.endswith("_checks.py")
    )
    return copy.append(path, '\n@check("99.9")\ndef check_99_9(attempt):\n    pass')


# ------------------------------------------------------------------------------- pages


@plant("pages-links_lead_somewhere", "the link planted/nowhere.md leads nowhere")
def dead_link(copy):
    return copy.append("README.md", "[planted](planted/nowhere.md)")


@plant("pages-anchors_exist", "no heading with the anchor #planted-anchor")
def dead_anchor(copy):
    return copy.append("README.ja.md", "[planted](#planted-anchor)")


@plant("pages-commands_parse", "invalid choice: 'tset'")
def command_that_does_not_parse(copy):
    return copy.append("CONTRIBUTING.md", "```\npython3 -m course tset\n```")


@plant("shown-reasons_are_given", "stands below no block of commands")
def reason_for_no_command(copy):
    return copy.append("data/README.md", "<!-- not run: needs another machine -->")


@plant("pages-settings_exist", "names COURSE_PLANTED")
def setting_that_nothing_reads(copy):
    return copy.append("README.md", "Set `COURSE_PLANTED`.")


@plant("pages-tables_follow_the_ledger", "holds a table that differs from ledger.csv")
def stale_ledger_table(copy):
    chapter = copy.notebook("main").partition("/")[0]
    marks = f"<!-- ledger: {chapter} -->\n| planted |\n<!-- /ledger -->"
    return copy.append("CONTRIBUTING.md", marks)


@plant("pages-contents_are_complete", "; add the link")
def chapter_that_the_contents_do_not_link(copy):
    copy.write("appendix-A/README.md", "# Planted chapter\n")
    return "README.md"


@plant("pages-contents_are_complete", "does not link ch07/02_planted")
def bonus_folder_that_the_contents_do_not_link(copy):
    copy.write("ch07/02_planted/README.md", "# Planted bonus\n")
    return "README.ja.md"


@plant("pages-languages_agree", "differs from README.md: it lacks ch")
def contents_of_the_languages_apart(copy):
    rows = pages._content_rows(copy.tree.pages["README.ja.md"])
    linked = next(cell for _, row in rows for cell in row if "](ch" in cell)
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", linked)
    text = copy.read("README.ja.md")
    return copy.write("README.ja.md", text.replace(linked, plain))


# ---------------------------------------------------------------------------- supplies


@plant("supplies-requirements_are_exact", "names no exact version")
def unpinned_requirement(copy):
    text = copy.read("requirements.txt")
    return copy.write("requirements.txt", text.replace("==", ">=", 1))


@plant("supplies-imports_are_required", "imports planted_package, which is not in")
def import_that_no_requirement_covers(copy):
    return copy.append(copy.test_file(), "import planted_package")


@plant("supplies-assets_match", "is not the file that assets.toml describes for")
def wrong_hash(copy):
    """In an entry of its own: the command fetches the real ones before it starts."""
    data = next(f for f in copy.tree.files if re.match(r"data/.*\.txt", f))
    lines = [
        '["planted-story"]',
        f"size = {(copy.root / data).stat().st_size}",
        f'sha256 = "{"0" * 64}"',
        'licence = "CC0-1.0"',
        'needed_by = ["ch02"]',
        f'sources = [{{path = "{data}"}}]',
    ]
    copy.append("course/assets.toml", "\n".join(lines))
    return data


@plant("supplies-assets_match", "is data that course/assets.toml does not name")
def data_that_the_manifest_does_not_name(copy):
    return copy.write("data/planted.txt", "Planted.\n")


@plant("supplies-one_door", "uses urllib.request")
def urlopen_in_a_notebook(copy):
    source = f"from urllib.request import urlopen\n\nurlopen('{REMOTE}')"
    return copy.add_code(copy.notebook("solutions"), source)


@plant("supplies-one_door", "uses requests")
def network_in_a_module(copy):
    source = "\ndef _planted():\n    import requests"
    return copy.append(copy.module()[1], source)


@plant("supplies-nothing_is_installed", "calls pip")
def pip_in_a_notebook(copy):
    return copy.add_code(copy.notebook("summary"), "!pip install planted")


# ------------------------------------------------------------------------------- tests


def _attempt(function, copy):
    """What the planting function returns; the error of one that finds no place."""
    try:
        return function(copy)
    except (AssertionError, IndexError, StopIteration, OSError) as error:
        return error


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """(expected path of each plant, report of each gate, exit code) of one run."""
    root = tree_copies.copy_tree(tmp_path_factory.mktemp("planted"))
    copy = Copy(root)
    # Stripping comes last: other plants number their cells after the last count.
    order = sorted(PLANTS, key=lambda name: name == "stripped_notebook")
    expected = {name: _attempt(PLANTS[name][0], copy) for name in order}
    environment.lend(root)  # its stamp holds the requirements, which have changed
    done = tree_copies.run_course(root, "test", "course/gates/test_tree.py")
    titles = re.split(r"^_+ test_tree\[([\w-]+)\] _+$", done.stdout, flags=re.MULTILINE)
    reports = dict(zip(titles[1::2], titles[2::2]))
    assert reports, f"the test command found nothing at all:\n{done.stdout}"
    return expected, reports, done.returncode


@pytest.mark.parametrize("name", PLANTS)
def test_planted(name, planted):
    expected, reports, _ = planted
    _, gate, message = PLANTS[name]
    assert isinstance(expected[name], str), f"nothing planted: {expected[name]!r}"
    lines = reports.get(gate, "").splitlines()
    found = [line for line in lines if line.startswith(f"{expected[name]}:")]
    assert any(message in line for line in found), "\n".join(lines) or "no report"


def test_the_command_fails(planted):
    assert planted[2] == 1


def test_every_gate_has_a_plant():
    gates = {parameter.id for parameter in test_tree.GATES}
    assert gates == {gate for _, gate, _ in PLANTS.values()}
