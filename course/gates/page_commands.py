"""The commands that pages show, and why some of them are not run by a test.

`test_shown_commands.py` runs every fenced block of commands in every Markdown file, and
every ``python3 -m course ...`` in running text, in the form given. What cannot be run
says so in a comment, which the reader of the rendered page does not see. It stands
directly below the block, or anywhere in the page for a command in running text::

    <!-- not run: needs Docker -->
    <!-- not run `python3 -m course run FILE.ipynb`: FILE is a placeholder -->
    <!-- run in a fresh copy: this is the second machine -->

A block that is not run is still parsed, one for Windows as far as it is a command of
the course (`pages.commands_parse`). What is no command at all, such as what
a command prints, is marked as `text`.
"""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from course.gates.pages import course_commands
from course.gates.tree import Finding, Tree
from course.markdown import Page

POSIX = ("", "bash", "sh", "shell")
WINDOWS = ("powershell", "bat", "cmd")
PYTHON = ("python", "py")
NOTEBOOK = ("ipython",)  # shell commands after ! and %, as in a cell
_REASON = r"\s*:\s*(?P<reason>(?:(?!-->)[^`]){10,}?)\s*-->"
_BELOW = re.compile(
    r"[ \t>]*(?:`{3,}|~{3,})[ \t]*\n\s*(?P<note>"
    rf"<!--\s*(?P<kind>not run|run in a fresh copy){_REASON})"
)
_SPAN = re.compile(rf"<!--\s*not run `(?P<command>[^`]+)`{_REASON}")
_ANY = re.compile(r"<!--\s*(?:not run|run in a fresh copy)\b.*?-->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of commands; `reason` says why it is not run, or is empty."""

    path: str
    line: int
    language: str
    code: str
    reason: str = ""
    fresh: bool = False

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


def blocks(page: Page) -> Iterator[Block]:
    """The fenced blocks of commands of a page, with what the page says about each."""
    for offset, language, code in page.fences():
        if language not in (*POSIX, *WINDOWS, *PYTHON, *NOTEBOOK):
            continue
        note = _BELOW.match(page.text, offset + len(code))
        kind, reason = (note["kind"], note["reason"]) if note else ("", "")
        yield Block(
            path=page.path,
            line=int(page.where(offset)),
            language=language,
            code=_undented(code, "!%" if language in NOTEBOOK else ""),
            reason=reason if kind == "not run" else "",
            fresh=kind.startswith("run in"),
        )


def _undented(code: str, marks: str) -> str:
    """A block's code without its margin inside a list and the marks before a line."""
    lines = textwrap.dedent(code).split("\n")
    return "\n".join(line.lstrip(marks) if marks else line for line in lines)


def spans(page: Page) -> Iterator[tuple[int, list[str]]]:
    """(line, arguments) of each course command in running text that is to be run.

    Left out are those that the page excuses, and the bare name ``python3 -m course``.
    """
    excused = {_arguments(match["command"]) for match in _SPAN.finditer(page.text)}
    fenced = [(start, start + len(code)) for start, _, code in page.fences()]
    for offset, arguments in course_commands(page):
        inside = any(start <= offset <= end for start, end in fenced)
        if not inside and arguments and tuple(arguments) not in excused:
            yield int(page.where(offset)), arguments


def _arguments(command: str) -> tuple[str, ...]:
    page = Page("x.md", f"`{command}`")
    return next((tuple(words) for _, words in course_commands(page)), ())


def reasons_are_given(tree: Tree) -> Iterator[Finding]:
    """A comment about running a command belongs to one and gives a reason."""
    for page in tree.pages.values():
        fences = page.fences()
        below = [
            _BELOW.match(page.text, start + len(code)) for start, _, code in fences
        ]
        used = {note.start("note") for note in below if note}
        shown = {tuple(arguments) for _, arguments in course_commands(page)}
        for note in _SPAN.finditer(page.text):
            if _arguments(note["command"]) in shown:
                used.add(note.start())
        for note in _ANY.finditer(page.without_code):
            if note.start() not in used:
                yield Finding(
                    page.path,
                    page.where(note.start()),
                    "the comment on running a command stands below no block of "
                    "commands, names a command that the page lacks, or gives no "
                    "reason; correct it.",
                )
