"""The commands that pages show, and why some of them are not run by a test.

`test_shown_commands.py` runs every fenced block of commands in every Markdown file, in
the form given. What cannot be run says so in a comment directly below the block, which
the reader of the rendered page does not see::

    <!-- not run: needs Docker -->
    <!-- run in a fresh copy: this is the second machine -->

A block that is not run is still parsed; one for Windows and a command in running text
are, as far as they are commands of the course (`pages.commands_parse`). What is no
command at all, such as what a command prints, is marked as `text`.
"""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from course.gates.tree import Finding, Tree
from course.markdown import Page

POSIX = ("", "bash", "sh", "shell")
WINDOWS = ("powershell", "bat", "cmd")
PYTHON = ("python", "py")
NOTEBOOK = ("ipython",)  # shell commands after ! and %, as in a cell
_MARKS = re.compile(r"^[!%]+", re.MULTILINE)
_REASON = r"\s*:\s*(?P<reason>(?:(?!-->)[^`]){10,}?)\s*-->"
_BELOW = re.compile(
    r"[ \t>]*(?:`{3,}|~{3,})[ \t]*\n\s*(?P<note>"
    rf"<!--\s*(?P<kind>not run|run in a fresh copy){_REASON})"
)
_ANY = re.compile(r"<!--\s*(?:not run|run in a fresh copy)\b.*?-->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of commands; `reason` says why it is not run, or is empty."""

    place: str
    language: str
    code: str
    reason: str = ""
    fresh: bool = False

    def __str__(self) -> str:
        return self.place


def blocks(page: Page) -> Iterator[Block]:
    """The fenced blocks of commands of a page, with what the page says about each."""
    for offset, language, text in page.fences():
        code = textwrap.dedent(text)
        if language not in (*POSIX, *WINDOWS, *PYTHON, *NOTEBOOK):
            continue
        note = _BELOW.match(page.text, offset + len(text))
        kind, reason = (note["kind"], note["reason"]) if note else ("", "")
        yield Block(
            place=page.place(offset),
            language=language,
            code=_MARKS.sub("", code) if language in NOTEBOOK else code,
            reason=reason if kind == "not run" else "",
            fresh=kind.startswith("run in"),
        )


def reasons_are_given(tree: Tree) -> Iterator[Finding]:
    """A comment about running commands stands below them and gives a reason."""
    for page in tree.pages.values():
        ends = [start + len(code) for start, _, code in page.fences()]
        below = filter(None, (_BELOW.match(page.text, end) for end in ends))
        used = {note.start("note") for note in below}
        for note in _ANY.finditer(page.without_code):
            if note.start() not in used:
                yield Finding(
                    f"{page.place(note.start())}: the comment on running a command "
                    "stands below no block of commands, or gives no reason; correct it."
                )
