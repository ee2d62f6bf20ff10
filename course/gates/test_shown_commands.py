"""Every command on every page is run in the form given, or says why not and parses.

Commands that differ only in the chapter, or in a place below it, are run once. That the
others name what exists is a gate's business (`pages.commands_parse`), and the chapters
themselves are run by their own tests.
"""

import dataclasses
import os
import re
import shlex
import shutil
import subprocess

import pytest

from course.gates import page_commands, pages
from course.gates.tree import Tree, chapter
from course.markdown import Page
from course.testing.command_stage import Stage
from course.testing.tiny_trees import miniature

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
    """Each block, without what an earlier one has shown; empty ones are left out.

    The same commands stand on pages in several languages.
    """
    kept, seen = [], set()
    for block in found:
        lines = block.code.strip().splitlines()
        if all(ALONE.match(line) for line in lines):
            new = {shape(line): line for line in reversed(lines)}
            lines = [line for form, line in reversed(new.items()) if form not in seen]
            seen |= set(new)
        else:
            lines = [] if shape(block.code) in seen else lines
            seen.add(shape(block.code))
        if lines:
            kept.append(dataclasses.replace(block, code="\n".join(lines)))
    return kept


def commands_in(block):
    page = Page("x.md", f"```\n{block.code}\n```\n")
    return [tuple(arguments) for _, arguments in pages.course_commands(page)]


RUN = once(
    [b for b in BLOCKS if not b.reason and b.language not in page_commands.PYTHON]
)
PYTHON = once(
    [b for b in BLOCKS if not b.reason and b.language in page_commands.PYTHON]
)
NOT_RUN = once(
    [b for b in BLOCKS if b.reason and b.language not in page_commands.WINDOWS]
)
RUN_ANYWAY = {arguments for block in RUN for arguments in commands_in(block)}
SHAPES = {shape(" ".join(arguments)) for arguments in RUN_ANYWAY}


def commands_in_text():
    """{arguments: place} of course commands that stand in running text alone."""
    found, shapes = {}, set(SHAPES)
    for page in TREE.pages.values():
        for line, arguments in page_commands.spans(page):
            form = shape(" ".join(arguments))
            if form not in shapes:
                found[tuple(arguments)] = f"{page.path}:{line}"
            shapes.add(form)
    return found


SPANS = commands_in_text()


def needed_notebooks():
    """The notebooks that commands name, be it by their chapter."""
    words = {word for arguments in [*RUN_ANYWAY, *SPANS] for word in arguments}
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
@pytest.mark.parametrize(("arguments", "place"), SPANS.items(), ids=str)
def test_a_command_in_running_text_runs(arguments, place, stage):
    code = f"python3 -m course {shlex.join(arguments)}"
    assert must_run(stage, code, place)


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
Run `python3 -m course doctor`, or `python3 -m course run FILE.py`.
<!-- not run `python3 -m course run FILE.py`: FILE is a placeholder -->
```bash
python3 -m course lab
```
<!-- run in a fresh copy: nothing may be there -->
"""


def test_blocks_carry_what_stands_below_them():
    found = list(page_commands.blocks(Page("a.md", PAGE)))
    assert [block.line for block in found] == [3, 10, 21]
    assert found[0].reason == "takes an hour everywhere"
    assert found[1].code == "py -m course lab\n"
    assert (found[2].reason, found[2].fresh) == ("", True)


def test_commands_in_text_are_found_and_excused():
    found = list(page_commands.spans(Page("a.md", PAGE)))
    assert found == [(18, ["doctor"])]


@pytest.mark.parametrize(
    ("old", "new", "count"),
    [
        ("", "", 0),
        (": takes an hour everywhere", ": long", 1),
        ("```\n<!-- not run: t", "```\ntext\n<!-- not run: t", 1),
        ("or `python3 -m course run FILE.py`", "or so", 1),
    ],
)
def test_comments_on_commands(tmp_path, old, new, count):
    tree = miniature(tmp_path, {"README.md": PAGE.replace(old, new, 1)})
    assert len(list(page_commands.reasons_are_given(tree))) == count
