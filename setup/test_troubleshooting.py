"""Each text that the page quotes is said by the code, so that readers find it."""

import ast
import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from course import paths
from course.markdown import Page

PAGE = Page(
    "setup/troubleshooting.md",
    Path(__file__).with_name("troubleshooting.md").read_text(encoding="utf-8"),
)
# Where other programs have theirs, and those that no file here can show.
OTHERS = {
    "The port ... is already in use": "jupyter_server/serverapp.py",
    "No such kernel named ...": "jupyter_client/kernelspec.py",
    "Invalid credentials": "jupyter_server/auth/login.py",
    "Kernel is running over TCP without encryption": "ipykernel/kernelapp.py",
    "Notebook ... is not trusted": "jupyter_server/services/contents/manager.py",
}
UNCHECKED = {
    "python3: command not found": "the shell",
    "Python was not found; run without arguments to install": "Windows",
    "'py' is not recognized": "Windows",
    "No module named course": "Python",
    "running scripts is disabled on this system": "PowerShell",
    "The filename or extension is too long": "Windows",
    "path too long": "Windows",
    "FileNotFoundError": "Python",
    "nvidia-...": "pip, naming packages",
    "DLL load failed": "Windows",
    "WinError 126": "Windows",
    "tiktoken": "its address, openaipublic",
    "openaipublic": "tiktoken",
    "403": "JupyterLab",
    "Access to the file was denied": "the browser",
    "partially initialized module ... (most likely due to a circular import)": "Python",
    "ModuleNotFoundError: No module named ...": "Python",
    "The kernel appears to have died": "JupyterLab",
    "Kernel Restarting": "JupyterLab",
    "Exercise ...": "the checks of the chapters",
    "AssertionError": "Python",
}
GAP = "\0"  # stands where a message has a value


def text_of(node):
    """The text of a string expression with a gap for each value."""
    if isinstance(node, ast.Constant):
        text = node.value if isinstance(node.value, str) else GAP
        return re.sub(r"\{\w*\}|%[is]", GAP, text)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    return GAP


def texts(source):
    """Every string of a module, one line each; longer ones contain their parts."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp)):
            yield " ".join(text_of(node).split())


def entries():
    """The quoted fragments: code in the first column of tables."""
    for row in re.findall(r"^\|(?:[^|`]|`[^`]*`)*", PAGE.without_fences, re.MULTILINE):
        yield from re.findall(r"`([^`]+)`", row)
    yield "The file ... is not in the cache, and no source of it worked"


def is_said(fragment, said):
    """Whether its words stand in one of the texts, in order, `...` for values."""
    pieces = [re.escape(piece.strip()) for piece in fragment.split("...")]
    pattern = re.compile(".*?".join(piece for piece in pieces if piece))
    return any(pattern.search(text) for text in said)


ENTRIES = sorted(set(entries()))


@pytest.fixture(scope="module")
def messages():
    sources = [p.read_text("utf-8") for p in (paths.ROOT / "course").rglob("*.py")]
    spoken = [source for source in sources if "\ndef test_" not in source]
    table = (paths.ROOT / "course" / "failures.toml").read_text("utf-8")
    known = [f["pattern"] for f in tomllib.loads(table)["failures"]]
    known += [
        re.sub(r"\{\w+\}", GAP, f["says"]) for f in tomllib.loads(table)["failures"]
    ]
    return {text for source in spoken for text in texts(source)} | {*known}


@pytest.mark.parametrize("entry", sorted({*ENTRIES} - {*OTHERS, *UNCHECKED}))
def test_every_entry_is_said_by_the_code(entry, messages):
    assert is_said(entry, messages), f"nothing says {entry!r} any more"


@pytest.mark.parametrize("entry", OTHERS)
def test_every_entry_of_another_program_is_said_by_it(entry):
    package, _, inside = OTHERS[entry].partition("/")
    place = Path(find_spec(package).origin).parent / inside
    assert is_said(entry, texts(place.read_text("utf-8")))


def test_what_is_listed_here_is_still_on_the_page():
    assert {*UNCHECKED, *OTHERS} <= {*ENTRIES}
    assert len(ENTRIES) > 90


def test_an_entry_that_nothing_says_is_noticed(messages):
    assert not is_said("no rooms are left in ...; free some", messages)
    assert not is_said("free some on that disk ... no room is left in", messages)
