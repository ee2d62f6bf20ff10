"""Instructions with their answers (chapter 7, section 7.2): support, read and divided.

An entry is a dictionary with an instruction, perhaps an input, and the output to learn
from. A file that is damaged, or another, is told by entry and field.

>>> entry = {"instruction": "Name the opposite.", "input": "deep", "output": "Shallow."}
>>> user_text(entry)
'Name the opposite.\\n\\ndeep'
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from argument_checks import check_runs
from text_files import read_text_file

Entry = dict

REWRITES = (  # of a sentence; there a small model learns much from little
    "active_voice",
    "comparison",
    "negation",
    "passive_voice",
    "punctuation",
    "questions",
    "tense",
)
SIZES = {  # by preset; `categories`: of the course's own instructions, None for all
    "quick": {
        "parts": (152, 23, 60),
        "epochs": 2,
        "blocks": 12,
        "categories": REWRITES,
    },
    "full": {
        "parts": (None, None, None),
        "epochs": 1,
        "blocks": 12,
        "categories": None,
    },
}

_NO_INPUT = {"<noinput>", "noinput", "<no input>", "no input"}
_TEXTS = ("instruction", "output", "input", "category", "family", "split")
_PARTS = ("train", "validation", "test")
_HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair, which JSON can hold


def read_instructions(path: Path | str) -> list[Entry]:
    """Entries from a JSON file: a list of objects with texts as their fields.

    A file with one object in each line (JSON Lines) is read as well.

    Args:
        path: a file in UTF-8. Each entry needs `instruction` and `output`, and may have
            `input`, `category`, `family`, `split` ("train", "validation" or "test"),
            and `answers`, a list of texts that count as right.

    Returns:
        A list of dictionaries in file order, `input` being "" where there is none.

    Raises:
        ValueError: the file is no such list; the message names entry and field.
    """
    entries = _read_list(path)
    return [_checked(entry, path, i) for i, entry in enumerate(entries, start=1)]


def read_alpaca(path: Path | str) -> list[Entry]:
    """Entries from the file of Stanford Alpaca (`alpaca_data.json`, 52,002 entries).

    It has the fields `instruction`, `input` and `output`. A few entries have no output
    and are left out; an input that only says that there is none becomes "". The data
    are Taori et al., 2023, licence CC BY-NC 4.0.

    Args:
        path: the downloaded file; this file and no other is read.

    Returns and raises: as `read_instructions`.
    """
    entries = []
    for i, entry in enumerate(_read_list(path), start=1):
        if isinstance(entry, dict) and entry.get("output") == "":
            continue
        entry = _checked(entry, path, i)
        if entry["input"].strip().lower() in _NO_INPUT:
            entry["input"] = ""
        entries.append(entry)
    return entries


def course_instructions(name: str = "instructions-2") -> Path:
    """The file of the course's own instructions, in its second version or the first."""
    try:
        from course.assets import fetch
    except ImportError:
        raise ValueError(
            "The course's instructions are not here: give a file with --data FILE."
        ) from None
    return fetch(name)


def load_parts(
    data: Path | None, alpaca: Path | None, sizes: dict[str, Any]
) -> list[list[Entry]]:
    """The entries of the three parts, as many as the preset takes.

    Args:
        data: a file for `read_instructions`; None takes the course's own.
        alpaca: the file of Stanford Alpaca, in place of it.
        sizes: one of `SIZES`.
    """
    if alpaca is not None:
        entries = read_alpaca(alpaca)
    else:
        entries = read_instructions(data or course_instructions())
        if data is None and sizes["categories"]:
            entries = [e for e in entries if e["category"] in sizes["categories"]]
    parts = split_instructions(entries)
    return [part[:most] for part, most in zip(parts, sizes["parts"])]


def user_text(entry: Entry) -> str:
    """What a person would type: the instruction, and the input below it if any."""
    return "\n\n".join(part for part in (entry["instruction"], entry["input"]) if part)


def split_instructions(entries: list[Entry]) -> list[list[Entry]]:
    """Training, validation and test part, as the field `split` says.

    An entry without that field goes where a hash of its family sends it, or of its
    question if it has no family: 82, 6 and 12 per cent of them, whatever the order of
    the entries. So the same question never stands in two parts.

    Args:
        entries: as from `read_instructions`.

    Returns:
        Three lists, in the order of the entries.

    Raises:
        ValueError: a part is empty.
    """
    parts = {"train": [], "validation": [], "test": []}
    for entry in entries:
        group = entry.get("family") or user_text(entry)
        number = int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) / 2**32
        side = "test" if number < 0.12 else "validation" if number < 0.18 else "train"
        parts[entry.get("split") or side].append(entry)
    for name, part in parts.items():
        if not part:
            raise ValueError(
                f"No entry is for the part {name!r} ({len(entries)} entries in all): "
                "give more entries, or a field split in each of them."
            )
    return list(parts.values())


def _read_list(path):
    """The list in a JSON file."""
    text = read_text_file(path)
    if not text.strip():
        raise ValueError(f"{path} is empty: give a file with entries.")
    lines = _json_lines(text)
    if lines:
        return [_parsed(line, path, number) for number, line in lines]
    found = _parsed(text, path)
    if isinstance(found, dict) and _TEXTS[0] in found:
        return [found]
    if not isinstance(found, list) or not found:
        an_object = isinstance(found, dict)
        fields = f" but an object with {_names(found)}" if an_object else ""
        raise ValueError(
            f"{path} holds no list of entries{fields}: it must begin with [ and have "
            'at least one {"instruction": "...", "output": "..."} in it, or one such '
            "object in each line."
        )
    return found


def _json_lines(text):
    """The numbered lines of a file in the form JSON Lines; none of other files.

    That form is an object in each line, as many data sets are published.
    """
    lines = [
        (number, line)
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    if len(lines) < 2 or not lines[0][1].lstrip().startswith("{"):
        return []
    try:
        json.loads(lines[0][1])
    except (ValueError, RecursionError):
        return []
    return lines


def _parsed(text, path, line=None):
    """The value of a text in JSON; `line` is its number if it is one of many."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as problem:
        raise ValueError(
            f"{path}, line {line or problem.lineno}, column {problem.colno}: this is "
            f"no JSON ({problem.msg}); fix it there."
        ) from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply to be read.") from None
    except ValueError as problem:  # a field twice, or a number of thousands of digits
        where = f", line {line}" if line else ""
        raise ValueError(f"{path}{where}: {problem}") from None


def _object(pairs):
    """A dictionary of an object's fields, none of them twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the field {twice!r} twice: remove one.")
    return found


def _names(entry):
    """The fields of an object, the first five, for a message."""
    names = [repr(name) for name in entry][:5]
    return f"the field{'s' * (len(names) > 1)} {', '.join(names)}" if names else "none"


def _checked(entry, path, number):
    """An entry of a file as it is used, or a `ValueError` that says what is wrong."""

    def wrong(field, what):
        return ValueError(f"{path}, entry {number}, field {field!r}: {what}.")

    if not isinstance(entry, dict):
        raise ValueError(
            f"{path}, entry {number}: it is {type(entry).__name__}, not an object; "
            'write {"instruction": "...", "output": "..."}.'
        )
    for field in _TEXTS[:2]:
        if field not in entry:
            there = _names(entry)
            raise wrong(
                field, f"it is missing; the entry has {there}: rename or add it"
            )
    for field in _TEXTS:
        value = entry.get(field, "")
        if not isinstance(value, str):
            raise wrong(field, f"it is {type(value).__name__}; write a text in quotes")
        if field in _TEXTS[:2] and not value.strip():
            raise wrong(field, "it is empty; fill it, or delete the entry")
        check_runs(value, f"{path}, entry {number}, field {field!r}: the text")
        half = _HALF.search(value)
        if half:
            raise wrong(
                field,
                f"it holds half a character, \\u{ord(half[0]):04x}, after "
                f"{value[: half.start()][-20:]!r}; write the whole one, or remove it",
            )
    if entry.get("split", "train") not in _PARTS:
        raise wrong("split", f"it is {entry['split']!r}; write {', '.join(_PARTS)}")
    answers = entry.get("answers", ["x"])
    texts = isinstance(answers, list) and all(isinstance(a, str) for a in answers)
    if not texts or not answers or not all(answer.strip() for answer in answers):
        raise wrong("answers", "it must be a list of texts, none of them empty")
    return {**entry, "input": entry.get("input", "")}
