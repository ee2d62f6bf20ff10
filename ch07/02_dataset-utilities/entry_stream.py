"""Entries of a JSON file one at a time, however large the file is (chapter 7, bonus).

Support: nothing here is taught. `read_entries` walks through a JSON array or through
JSON Lines and holds one entry and a piece of the file at a time; `copy_without` writes
the file again without some entries, each of the others as it stood, letter by letter.

>>> from tempfile import TemporaryDirectory
>>> with TemporaryDirectory() as folder:
...     path = Path(folder, "entries.json")
...     _ = path.write_text('[{"output": "Yes."},\\n {"output": ""}]')
...     for found in read_entries(path):
...         print(found.row, found.entry, found.raw)
1 {'output': 'Yes.'} {"output": "Yes."}
2 {'output': ''} {"output": ""}
"""

import contextlib
import json
import os
import re
from collections.abc import Collection, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import NamedTuple

PIECE = 1 << 16  # characters read at once
LONGEST = 1 << 24  # of an entry, in characters; longer ones are taken for broken
# Where the longest thing that may be cut at the end of a piece, \ud83d\ude00, begins.
_NEAR_THE_END = 16
_SPACE = re.compile(r"[ \t\r\n]*")


class Found(NamedTuple):
    """An entry, its number in the file from 1, and the text that it was read from."""

    row: int
    entry: dict
    raw: str


def read_entries(path: Path | str) -> Iterator[Found]:
    """Each entry of a file, in order: a JSON array of objects, or JSON Lines.

    The form is known by the first character. Memory does not grow with the file.

    Args:
        path: a file in UTF-8.

    Raises:
        ValueError: the file cannot be read, is empty or no list of objects, or breaks
            off; the message names the line or the entry.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _entries(_Reader(path, file))
    except OSError as problem:
        raise ValueError(
            f"{path} cannot be read ({problem.strerror}): check the path."
        ) from None


def copy_without(path: Path | str, rows: Collection[int], out: TextIOWrapper) -> int:
    """Write the entries of a file whose numbers are not in `rows`; return how many.

    An array stays an array, JSON Lines stay JSON Lines.
    """
    kept, array = 0, is_array(path)
    for found in read_entries(path):
        if found.row not in rows:
            out.write((",\n" if kept else "[\n") if array else "")
            out.write(found.raw + ("" if array else "\n"))
            kept += 1
    if array:
        out.write("\n]\n" if kept else "[]\n")
    return kept


def is_array(path: Path | str) -> bool:
    """Whether the first character of a file that is no space is a bracket."""
    with Path(path).open(encoding="utf-8-sig") as file:
        return next(c for c in iter(lambda: file.read(1), "") if not c.isspace()) == "["


@contextlib.contextmanager
def written_whole(*paths: Path) -> Iterator[list[TextIOWrapper]]:
    """Files to write into, which get their names when all of them are whole.

    After an error, or Ctrl-C, there is none of them, and what had their names before
    is as it was.
    """
    parts = [path.with_name(f"{path.name}.{os.getpid()}.part") for path in paths]
    try:
        with contextlib.ExitStack() as stack:
            yield [
                stack.enter_context(part.open("w", encoding="utf-8", newline=""))
                for part in parts
            ]
        for part, path in zip(parts, paths):
            os.replace(part, path)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


# --- The walk through a file ---------------------------------------------------------


class _Reader:
    """A window on a file, which moves on: `text` from `place`, below line `line`."""

    def __init__(self, path, file):
        self.path, self.file = path, file
        self.text, self.place, self.line, self.ended = "", 0, 1, False

    def more(self):
        """Read on, twice as much as is held; what is behind is let go."""
        self.line += self.text.count("\n", 0, self.place)
        self.text = self.text[self.place :]
        self.place = 0
        try:
            new = self.file.read(max(PIECE, len(self.text)))
        except UnicodeDecodeError:
            line = self.line + self.text.count("\n")
            raise ValueError(
                f"{self.path} is not text in UTF-8 (at line {line} or below): save it "
                "as such."
            ) from None
        self.text += new
        self.ended = not new

    def next(self):
        """The next character that is no space, "" at the end."""
        while True:
            spaces = _SPACE.match(self.text, self.place)  # perhaps none
            self.place = spaces.end() if spaces else self.place
            if self.place < len(self.text) or self.ended:
                return self.text[self.place : self.place + 1]
            self.more()

    def wrong(self, what, place=None):
        """An error that names the line."""
        place = self.place if place is None else place
        line = self.line + self.text.count("\n", 0, place)
        return ValueError(f"{self.path}, line {line}: {what}.")

    def value(self, row):
        """The object that begins here, and its text."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.place)
            except json.JSONDecodeError as problem:
                size = len(self.text)
                cut = problem.pos > size - _NEAR_THE_END or (
                    problem.msg.startswith("Unterminated string")
                )
                if not cut or self.ended or size - self.place > LONGEST:
                    raise self._broken(problem, row) from None
                self.more()
            except RecursionError:
                raise self.wrong(f"entry {row} is nested too deeply") from None
            else:
                raw = self.text[self.place : end]
                self.place = end
                return value, raw

    def _broken(self, problem, row):
        cut = problem.msg.startswith("Unterminated string")
        if self.ended and (cut or problem.pos > len(self.text) - _NEAR_THE_END):
            return self.wrong(f"the file ends in the middle of entry {row}")
        place = problem.pos
        if problem.msg.startswith("Expecting ',' delimiter"):  # it belongs above
            place = len(self.text[:place].rstrip())
        what = f"entry {row} is no JSON ({problem.msg}); fix it there"
        return self.wrong(what, place)


_DECODER = json.JSONDecoder()
_FORM = (
    "it must hold objects in brackets, [{...}, {...}], or one object in each line, "
    "{...}"
)


def _entries(reader):
    first = reader.next()
    if not first:
        raise ValueError(f"{reader.path} is empty: give a file with entries.")
    if first not in "[{":
        raise reader.wrong(f"{first!r} begins no list of entries; {_FORM}")
    array = first == "["
    reader.place += array
    row = 0
    while True:
        sign = reader.next()
        if array and sign == "]" and row == 0:
            raise ValueError(f"{reader.path} holds no entries: its list is empty.")
        if not array and not sign:
            return
        row += 1
        if sign != "{":
            end = "the file ends where" if not sign else f"{sign!r} stands where"
            raise reader.wrong(f"{end} entry {row} should be, an object: {{...}}")
        entry, raw = reader.value(row)
        yield Found(row, entry, raw)
        if array:
            sign = reader.next()
            if sign == "]":
                break
            if sign != ",":
                end = "the file ends" if not sign else f"{sign!r} stands"
                raise reader.wrong(f"{end} after entry {row}, in place of , or ]")
            reader.place += 1
    reader.place += 1
    if reader.next():
        raise reader.wrong(f"{reader.next()!r} stands behind the end of the list")
