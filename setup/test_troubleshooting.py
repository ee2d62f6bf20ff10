"""The page of messages keeps in step with the messages in the code, both ways."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from course import paths
from course.gates.markdown import Page

PAGE = Page(
    "setup/troubleshooting.md",
    Path(__file__).with_name("troubleshooting.md").read_text(encoding="utf-8"),
)
MODULES = (
    "__init__.py",
    "assets.py",
    "commands.py",
    "copying.py",
    "installation/environment.py",
    "guard.py",
    "installation/pip_runs.py",
    "lab.py",
    "running/ledger.py",
    "installation/preflight.py",
    "running/notebooks.py",
    "runs.py",
    "settings.py",
    "running/test_command.py",
)
# What a reader is told, as the argument of one of these ...
RAISED = ("CourseError", "_Failed", "_Temporary", "_WrongContent", "NetworkForbidden")
# ... or as what one of these functions returns; and see `spoken` for two tables.
SAYING = re.compile(
    r"\w*problem|no_ensurepip|check_style|_nothing|_nothing_worked|_unreachable"
    r"|_pip_failure|_refuse_bad_answer"
)
# Only authors of tests can get this one.
NO_ENTRY = ("No environment could be lent",)
GAP = "\0"  # stands where a message has a value


def text_of(node):
    """The text of a string expression with a gap for each value; "" for others."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or GAP for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (text_of(node.left) or GAP) + (text_of(node.right) or GAP)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in ("format", "rstrip"):
            return re.sub(r"\{\w*\}", GAP, text_of(node.func.value))
        if node.func.attr == "join" and isinstance(node.args[0], (ast.List, ast.Tuple)):
            return GAP.join(text_of(part) for part in node.args[0].elts)
    if isinstance(node, ast.IfExp):
        return text_of(node.body)
    return ""


def is_mend(node):
    """Whether a statement names the second half of a message, which has no entry."""
    return any(ast.unparse(t) == "mend" for t in getattr(node, "targets", ()))


def spoken(tree):
    """(line, text) of every message in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in RAISED and node.args:
                yield node.lineno, text_of(node.args[0])
            if name == "append" and "problems" in ast.unparse(node.func):
                yield node.lineno, text_of(node.args[0])
        elif isinstance(node, ast.FunctionDef) and SAYING.fullmatch(node.name):
            for inner in ast.walk(node):
                if isinstance(inner, (ast.Return, ast.Assign)) and not is_mend(inner):
                    yield inner.lineno, text_of(inner.value)
        elif isinstance(node, ast.Assign) and node.targets[0].__class__ is ast.Name:
            if node.targets[0].id == "_OFFLINE":
                yield node.lineno, re.sub(r"\{\w*\}", GAP, text_of(node.value))
            elif node.targets[0].id == "_FAILURES":
                for row in node.value.elts:
                    yield row.lineno, re.sub(r"\{\w*\}", GAP, text_of(row.elts[1]))


def all_messages():
    """{message: place} of everything that somebody could look up."""
    found = {}
    for name in MODULES:
        tree = ast.parse((paths.ROOT / "course" / name).read_text(encoding="utf-8"))
        for line, text in spoken(tree):
            is_long = len(re.findall(r"[A-Za-z]{2,}", text)) >= 3
            if is_long and not text.startswith(NO_ENTRY):
                found.setdefault(" ".join(text.split()), f"course/{name}:{line}")
    return found


def entries():
    """The quoted fragments: code in the first column of tables."""
    for table in PAGE.tables:
        for row in table.rows[1:]:
            yield from re.findall(r"`([^`]+)`", row[0])
    yield "The file ... is not in the cache, and no source of it worked"


MESSAGES = all_messages()
ENTRIES = list(entries())


def matches(fragment, message):
    """Whether the fragment's words stand in the message, in order, `...` for values."""
    pieces = [re.escape(piece.strip()) for piece in fragment.split("...")]
    pattern = ".*?".join(piece for piece in pieces if piece)
    return bool(pattern) and re.search(pattern, message) is not None


# Messages of other programs, and where an installed one has them.
ELSEWHERE = {
    "The port ... is already in use": "jupyter_server/serverapp.py",
    "No such kernel named ...": "jupyter_client/kernelspec.py",
    "Invalid credentials": "jupyter_server/auth/login.py",
    "Another set-up of this course is running": "course/installation/environment.py",
    "JupyterLab does not answer at": "course/lab.py",
    "the server answers": "course/assets.py",
    "it is a web page, perhaps the log-in page of your network": "course/assets.py",
    "CERTIFICATE_VERIFY_FAILED": "course/installation/pip_runs.py",
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
    "ModuleNotFoundError: No module named ...": "Python",
    "The kernel appears to have died": "JupyterLab",
    "Kernel Restarting": "JupyterLab",
    "Exercise ...": "the checks of the chapters",
    "AssertionError": "Python",
    "damaged": "a state that course.assets names",
    "put a copy there by hand": "the second half of a message",
    "The file ... is missing": "a state that course.assets names",
    "wrong content: ...": "the beginning of several messages",
}


@pytest.mark.parametrize("message", MESSAGES, ids=list(MESSAGES.values()))
def test_every_message_has_an_entry(message):
    found = [entry for entry in ENTRIES if matches(entry, message)]
    assert found, f"add to setup/troubleshooting.md: {message.replace(GAP, '...')}"


@pytest.mark.parametrize("entry", sorted({*ENTRIES} - {*UNCHECKED}))
def test_every_entry_is_said_by_the_code(entry):
    if entry in ELSEWHERE:
        place = ELSEWHERE[entry]
        package, _, inside = place.partition("/")
        text = (Path(find_spec(package).origin).parent / inside).read_text("utf-8")
        text = re.sub(r'"\s*\n\s*f?"', "", text)  # a string over several lines
        assert matches(entry, re.sub(r"\{\w+\}|%[is]", GAP, text))
    else:
        assert any(matches(entry, message) for message in MESSAGES)


def test_what_cannot_be_checked_is_still_on_the_page():
    assert {*UNCHECKED, *ELSEWHERE} <= {*ENTRIES}


def test_the_messages_of_every_part_are_found():
    """So that a change of style in the code does not empty the other tests."""
    places = {place.partition(":")[0] for place in MESSAGES.values()}
    assert places >= {f"course/{name}" for name in MODULES if name != "guard.py"}
    assert len(MESSAGES) > 70
