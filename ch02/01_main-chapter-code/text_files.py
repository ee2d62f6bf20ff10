"""Texts from the reader's own files, read as they were meant or refused.

Support: nothing here is taught. Scripts and readers of data sets open every file
through `read_text_file`, so that none of them takes the wrong encoding to the letter.

>>> from tempfile import TemporaryDirectory
>>> with TemporaryDirectory() as folder:
...     path = Path(folder, "story.txt")
...     _ = path.write_bytes(b"\\xef\\xbb\\xbfThe lamp\\r\\nwas lit.")
...     read_text_file(path)
'The lamp\\nwas lit.'
"""

import os
from pathlib import Path

# What programs write before a text to say how it is encoded.
_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def read_text_file(path: str | os.PathLike, fix: str = "check the path") -> str:
    """The text in a file: UTF-8, its lines ended by a line feed each.

    A byte order mark belongs to the encoding and not to the text, also where files with
    such marks were put one behind the other.

    Args:
        path: of the file.
        fix: what to do if there is none, for the message.

    Raises:
        ValueError: the file cannot be read, is in another encoding, or is no text; the
            message names the file, the place and the fix.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise ValueError(
            f"{path} cannot be read ({problem.strerror}): {fix}."
        ) from None
    problem = _other_encoding(content)
    if problem:
        raise ValueError(f"{path} is not text in UTF-8{problem}")
    text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    return text.removeprefix("\ufeff").replace("\n\ufeff", "\n")


def _other_encoding(content):
    """What to say of bytes that are no UTF-8, "" if they are."""
    for mark, name in _MARKS.items():
        if content.startswith(mark):
            return f" but in {name}: save it as UTF-8."
    place = content.find(0)
    if place >= 0:
        # Without a mark: every other byte of European text in UTF-16 is 0.
        start = content[:1000]
        if start.count(0) > len(start) // 5:
            return ", it seems to be in UTF-16: save it as UTF-8."
        return f": it holds the character NUL, {_place(content, place)}; remove it."
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as problem:
        return f" ({_place(content, problem.start)}): save it as such."
    return ""


def _place(content, byte):
    return f"byte {byte:,}, line {content[:byte].count(10) + 1:,}"
