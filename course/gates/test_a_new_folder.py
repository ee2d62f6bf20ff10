"""A bonus folder is added as CONTRIBUTING.md says, and no other file is touched."""

import filecmp
import re

import pytest

from course import paths
from course.testing import tree_copies
from course.testing.tiny_trees import write_notebook

FOLDER = "ch07/07_judge-page"
MODULE = '''"""Keys and values kept as one small code.

>>> code_width(8, 4)
2
"""

from argument_checks import check_whole_number


def code_width(d_model: int, shrink: int) -> int:
    """Return how many numbers of a token are kept, a whole part of its width."""
    check_whole_number("shrink", shrink)
    keys, values = d_model, d_model
    both = keys + values
    code = both // (2 * shrink)
    return code
'''
TEST = '''"""The width of the code."""

from judge_page import code_width


def test_a_code_is_smaller():
    assert code_width(8, 4) == 2
'''
APP = '''"""A page that would show the code.

Its tests import it by path.
"""

# ruff: noqa: TID251
import socket

NAME = socket.gethostname
'''
PAGE = f"""# Fairer judges

Keys and values as one code.

<!-- ledger: {FOLDER} -->
<!-- /ledger -->
"""
#: What the commands may write outside the new folder.
MADE = {
    "README.md",
    "README.ja.md",
    "ch07/README.md",
    "ledger.csv",
    "setup/costs.md",
}


def example() -> tuple[str, list[str]]:
    """(`folder.toml`, commands) as the page shows them."""
    text = (paths.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("## Add a bonus folder")[2].partition("\n## ")[0]
    toml = re.search(r"```toml\n(.*?)```", section, re.DOTALL)
    assert toml, "the page shows no folder.toml"
    commands = re.findall(r"^\s*python3 -m course (.+)$", section, re.MULTILINE)
    return re.sub(r"^ +", "", toml[1], flags=re.MULTILINE), commands


@pytest.fixture(scope="module")
def added(tmp_path_factory):
    """(copy of the tree with the new folder, results of the page's commands)."""
    root = tree_copies.copy_tree(tmp_path_factory.mktemp("added"))
    toml, commands = example()
    texts = {"judge_page.py": MODULE, "test_judge_page.py": TEST, "README.md": PAGE}
    texts |= {"app.py": APP, "folder.toml": toml + 'apps = ["app"]\n'}
    (root / FOLDER).mkdir()
    for name, text in texts.items():
        (root / FOLDER / name).write_text(text, encoding="utf-8")
    cells = ["# A code", "from judge_page import code_width", "print(code_width(8, 4))"]
    write_notebook(root / FOLDER / "judge-page.ipynb", *cells)
    done = [tree_copies.run_course(root, *line.split()) for line in commands]
    return root, done


def test_the_commands_of_the_page_succeed(added):
    """The second is `test` for the folder, to which all gates belong."""
    assert len(added[1]) == 2
    for done in added[1]:
        assert done.returncode == 0, done.stdout


def test_no_file_outside_the_folder_is_edited_by_hand(added):
    root, _ = added
    before = {p.relative_to(paths.ROOT).as_posix() for p in paths.tree_files()}
    after = {p.relative_to(root).as_posix() for p in paths.tree_files(root)}
    assert {p for p in before ^ after if not p.startswith(f"{FOLDER}/")} == set()
    same = {p for p in before if filecmp.cmp(paths.ROOT / p, root / p, shallow=False)}
    assert before - same == MADE


def test_the_pages_link_the_folder_in_both_languages(added):
    root, _ = added
    for name in ("README.md", "README.ja.md"):
        assert f"({FOLDER}/README.md)" in (root / name).read_text(encoding="utf-8")
