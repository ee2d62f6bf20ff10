"""Every block of commands is run in the form given, or says why not and parses.

Commands that differ only in the chapter, or in a place below it, are run once. That the
others name what exists is a gate's business (`pages.commands_parse`), and the chapters
themselves are run by their own tests.
"""

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import replace

import pytest

from course.gates import page_commands, pages
from course.gates.tree import Tree, chapter
from course.markdown import Page
from course.testing.command_stage import Stage
from course.testing.tiny_trees import check_gate

posix = pytest.mark.skipif(
    os.name == "nt" or not shutil.which("bash"), reason="needs the shell bash"
)

TREE = Tree()
BLOCKS = [block for page in TREE.pages.values() for block in page_commands.blocks(page)]


def shape(code):
    return re.sub(r"\b(?:ch\d\d|appendix-[A-Z])(?:/\S*)?", "chNN", code.strip())


# Lines that leave nothing behind on which a later line of their block depends.
ALONE = re.compile(r"python3 -m course (?:test|run|refresh|doctor)\b")


def once(found):
    """Each block, without what an earlier one has shown; empty ones are left out."""
    kept, seen = [], set()
    for block in found:
        lines = block.code.strip().splitlines()
        parts = lines if all(map(ALONE.match, lines)) else [block.code]
        new = {shape(part): part for part in parts if shape(part) not in seen}
        seen |= set(new)
        if new:
            kept.append(replace(block, code="\n".join(new.values())))
    return kept


def commands_in(block):
    page = Page("x.md", f"```\n{block.code}\n```\n")
    return [tuple(arguments) for _, arguments in pages.course_commands(page)]


IN_PYTHON, IN_WINDOWS = page_commands.PYTHON, page_commands.WINDOWS
RUN = once([b for b in BLOCKS if not b.reason and b.language not in IN_PYTHON])
PYTHON = once([b for b in BLOCKS if not b.reason and b.language in IN_PYTHON])
NOT_RUN = once([b for b in BLOCKS if b.reason and b.language not in IN_WINDOWS])


def needed_notebooks():
    """The notebooks that commands name, be it by their chapter."""
    words = {word for block in RUN for found in commands_in(block) for word in found}
    for path in TREE.notebooks:
        name, stem = chapter(path), path.rpartition("/")[2].removesuffix(".ipynb")
        if path in words or (name in words and stem == name):
            yield path


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return Stage(tmp_path_factory.mktemp("stage"), needed_notebooks())


def must_run(stage, code, place, tree=None):
    exit_code, said = stage.run(code, tree)
    assert exit_code == 0, f"{place}:\n{code}\nended with {exit_code}:\n{said}"
    assert "Traceback (most recent call last)" not in said
    return said


# ------------------------------------------------------------------- what pages show


@posix
@pytest.mark.parametrize("block", RUN, ids=str)
def test_a_block_runs_as_it_stands(block, stage):
    """In the order of the pages, each from the course's folder."""
    said = must_run(stage, block.code, block, stage.fresh() if block.fresh else None)
    starts_lab = any(arguments[:1] == ("lab",) for arguments in commands_in(block))
    assert ("ready after" in said) == starts_lab


@posix
@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_a_block_of_python_runs_in_the_environment(block, stage):
    code = f"python3 -m course setup >&2\n.venv/bin/python -c {shlex.quote(block.code)}"
    assert "complete" in must_run(stage, code, block)


@posix
@pytest.mark.parametrize("block", NOT_RUN, ids=str)
def test_a_block_that_is_not_run_parses(block):
    if block.language in page_commands.PYTHON:
        assert compile(block.code, str(block), "exec")
    else:
        done = subprocess.run(
            ["bash", "-n", "-c", block.code], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")


# ---------------------------------------------------------------- what is looked for

PAGE = """\
# A
```
python3 -m course test
```
<!-- not run: takes an hour everywhere -->

1. Then

   ```powershell
   py -m course lab
   ```

   <!-- not run: needs Windows, as it says -->

```text
ready
```
```bash
python3 -m course lab
```
<!-- run in a fresh copy: nothing may be there -->
"""


def test_blocks_carry_what_stands_below_them():
    found = list(page_commands.blocks(Page("a.md", PAGE)))
    assert [str(block) for block in found] == ["a.md:3", "a.md:10", "a.md:19"]
    assert found[0].reason == "takes an hour everywhere"
    assert found[1].code == "py -m course lab\n"
    assert (found[2].reason, found[2].fresh) == ("", True)


@pytest.mark.parametrize(
    ("old", "new", "count"),
    [
        ("", "", 0),
        (": takes an hour everywhere", ": long", 1),
        ("```\n<!-- not run: t", "```\ntext\n<!-- not run: t", 1),
    ],
)
def test_comments_on_commands(tmp_path, old, new, count):
    files = {"README.md": PAGE.replace(old, new, 1)}
    check_gate(page_commands.reasons_are_given, tmp_path, files, count)
