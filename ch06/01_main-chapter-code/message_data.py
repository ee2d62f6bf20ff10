"""Labelled messages (chapter 6, section 6.2): support, read and divided into parts.

* `load_messages`: the course's messages or a file's, with `read_messages` for a CSV
  file and `read_uci_messages` for the SMS Spam Collection; a damaged file is told by
  row and column;
* `labels_of`, `class_number`: the classes and their numbers;
* `create_balanced_dataset`, `random_split`, `split_messages`, `some_of_each`: which
  messages are learned from, and which are for the test.

>>> messages = pd.DataFrame({"text": ["hi", "WIN", "ho"], "label": ["a", "b", "a"]})
>>> labels_of(messages)
('a', 'b')
>>> len(create_balanced_dataset(messages))
2
"""

import csv
import io
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from argument_checks import check_runs
from text_files import read_text_file

Messages = Any  # a pandas.DataFrame with the columns text and label

LABELS = ("wanted", "spam")
MESSAGES = "messages-2"  # the asset; version 1 is "messages"
_UCI_LABELS = {"ham": "wanted", "spam": "spam"}
_UCI_FILE = "SMSSpamCollection"


def load_messages(path: Path | None = None) -> Messages:
    """The messages of a file, or the course's own; the UCI collection's balanced.

    Version 1 of the course's messages is the file `course.assets.fetch("messages")`.
    """
    if path is None:
        from course.assets import fetch

        path = fetch(MESSAGES)
    elif zipfile.is_zipfile(path):
        return create_balanced_dataset(read_uci_messages(path))
    return read_messages(path)


def read_messages(path: Path | str) -> Messages:
    """Labelled messages from a CSV file with the columns `text` and `label`.

    Args:
        path: a file in UTF-8 with a header line; other columns (`kind`, `family`,
            `split`) are kept.

    Returns:
        A `pandas.DataFrame` of strings, one row for each message, in file order.

    Raises:
        ValueError: the file is no such table; the message names row and column. Rows
            are counted as records, the header being row 1.
    """
    rows = _read_rows(path)
    header = rows[0] if rows else []
    header = [name if _lower(name) in header else _lower(name) for name in header]
    for column in ("text", "label"):
        if column not in header:
            other = len(header) == 1 and re.search(r"[;\t|]", header[0])
            raise ValueError(
                f"{path}, row 1: there is no column {column!r} in the header "
                f"({', '.join(map(repr, header)) or 'it is empty'}): the first line "
                "must name the columns text and label"
                f"{', separated by a comma and nothing else' if other else ''}."
            )
    for number, row in enumerate(rows[1:], start=2):
        _check_row(path, number, row, header)
    if len(rows) == 1:
        raise ValueError(f"{path} has a header and no message: add rows below it.")
    messages = pd.DataFrame(rows[1:], columns=header)
    # A blank that nobody sees would make a class of its own.
    for column in {"label", "split"} & set(header):
        messages[column] = messages[column].str.strip()
    _check_spelling(path, messages["label"])
    return messages


def read_uci_messages(path: Path | str) -> Messages:
    """The messages of the UCI SMS Spam Collection, from its archive or the file in it.

    Its lines hold a label, `ham` or `spam`, a tabulator and the text. `ham` becomes
    `wanted`, so that every function of this chapter takes the result as it takes the
    course's own messages. The collection is Almeida, Hidalgo and Yamakami,
    "Contributions to the Study of SMS Spam Filtering", 2011; licence CC BY 4.0.

    Args:
        path: the downloaded .zip file, or `SMSSpamCollection` out of it.

    Returns:
        A data frame with the columns `text` and `label`.

    Raises:
        ValueError: the file is damaged or another; the message names the line.
    """
    rows = []
    for number, line in enumerate(_uci_lines(path), start=1):
        label, tabulator, text = line.partition("\t")
        if label not in _UCI_LABELS or not tabulator or not text.strip():
            raise ValueError(
                f"{path}, line {number}: it must hold ham or spam, a tabulator and a "
                "text; download the collection again."
            )
        rows.append((text, _UCI_LABELS[label]))
    if not rows:
        raise ValueError(f"{path} holds no message: download the collection again.")
    return pd.DataFrame(rows, columns=["text", "label"])


def labels_of(messages: Messages) -> tuple[str, ...]:
    """The classes: the course's in their order, otherwise alphabetically."""
    found = sorted(messages["label"].unique())
    if len(found) < 2:
        raise ValueError(
            f"All messages have the label {found[0]!r}: there is nothing to tell apart."
        )
    return LABELS if set(found) == set(LABELS) else tuple(found)


def column_called(name: str, df: Messages) -> Any:
    """The column of that name, which may begin with a capital; `ValueError` without."""
    for column in df.columns:
        if _lower(column) == name:
            return column
    raise ValueError(
        f"There is no column {name!r} among {', '.join(map(repr, df.columns))}: rename "
        "yours, as messages need the columns text and label."
    )


def _lower(name):
    """A column's name in small letters, if it is one that means something here."""
    small = str(name).lower()
    return small if small in ("text", "label", "split", "family", "kind") else name


def class_number(label: Any, labels: Sequence[str]) -> int:
    """The place of a label among the classes; `ValueError` if it is not one of them.

    A number is a class's number, if no class is called so.
    """
    if label not in labels and str(label) in map(str, range(len(labels))):
        return int(label)
    if label not in labels:
        raise ValueError(
            f"There is a label {label!r}, but the classes are "
            f"{', '.join(map(repr, labels))}: correct the label, or give labels=."
        )
    return labels.index(label)


def create_balanced_dataset(df: Messages, seed: int = 123) -> Messages:
    """As many rows of each label as the rarest one has, drawn at random.

    Args:
        df: messages with a `label` column.
        seed: for the drawing; the rows keep their order.

    Returns:
        The chosen rows, renumbered from 0.
    """
    label = column_called("label", df)
    fewest = df[label].value_counts().min()
    chosen = df.groupby(label).sample(n=fewest, random_state=seed)
    return chosen.sort_index().reset_index(drop=True)


def random_split(
    df: Messages, train_frac: float, validation_frac: float, seed: int = 123
) -> tuple[Messages, Messages, Messages]:
    """The rows in random order, cut into training, validation and test part.

    Fit for data without families; related messages belong on one side, and where a
    file says so in a column `split`, that is to be used.

    Args:
        df: messages.
        train_frac, validation_frac: shares, both above 0, their sum below 1.
        seed: for the order.

    Returns:
        Three data frames, renumbered from 0.

    Raises:
        ValueError: the shares, or too few rows, leave nothing for a part.
    """
    shuffled = df.sample(frac=1, random_state=seed).reset_index(drop=True)
    first = int(len(df) * train_frac)
    second = first + int(len(df) * validation_frac)
    parts = shuffled[:first], shuffled[first:second], shuffled[second:]
    if not all(map(len, parts)):
        raise ValueError(
            f"train_frac={train_frac} and validation_frac={validation_frac} of "
            f"{len(df)} messages leave a part empty: give shares such as 0.7 and 0.1, "
            "and at least 10 messages."
        )
    return tuple(part.reset_index(drop=True) for part in parts)


def split_messages(
    df: Messages,
) -> tuple[Messages, Messages, Messages]:
    """Training, validation and test part, as the column `split` says.

    Without that column the rows are drawn by `random_split`, 70, 10 and 20 per cent.

    Raises:
        ValueError: a part is empty, or `split` holds another word.
    """
    if "split" not in df.columns:
        return random_split(df, 0.7, 0.1)
    names = ("train", "validation", "test")
    parts = [df[df["split"] == name].reset_index(drop=True) for name in names]
    if sum(map(len, parts)) != len(df) or not all(map(len, parts)):
        raise ValueError(
            f"The column split holds {', '.join(sorted(df['split'].unique()))}: every "
            "row needs one of train, validation and test, and each must occur."
        )
    return tuple(parts)


def some_of_each(part: Messages, most: int) -> Messages:
    """At most so many rows, as many of each label, the first ones of the file."""
    each = most // part["label"].nunique()
    return part.groupby("label").head(each).reset_index(drop=True)


def _uci_lines(path):
    """The lines of the collection, without what ends them."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                text = archive.read(_UCI_FILE).decode("utf-8")
        else:
            text = Path(path).read_text(encoding="utf-8")
    except (KeyError, UnicodeDecodeError, zipfile.BadZipFile, zlib.error):
        raise ValueError(
            f"{path} is not the SMS Spam Collection, or damaged: it must be its .zip "
            f"file, or {_UCI_FILE} out of it; download it again."
        ) from None
    # Only line feeds end a line: some messages hold characters that also could.
    return [line.removesuffix("\r") for line in text.split("\n") if line.strip()]


def _read_rows(path):
    """The records of a CSV file, the header first; blank lines are left out."""
    text = read_text_file(path)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows = []
    # Python's own limit, for all readers at once; no field is longer than the file.
    limit = csv.field_size_limit(len(text) + 1)
    try:
        rows.extend(row for row in reader if row)
    except csv.Error as problem:
        raise ValueError(
            f"{path}, row {len(rows) + 1}, which ends in line {reader.line_num}: "
            f"{problem}; put a text with commas, quotes or line breaks into double "
            'quotes, and write a quote inside it twice ("").'
        ) from None
    finally:
        csv.field_size_limit(limit)
    return rows


def _check_spelling(path, labels):
    """Raise if two labels differ in capitals only: they are meant to be one."""
    spelled = {}
    for label in labels.unique():
        other = spelled.setdefault(label.casefold(), label)
        if other != label:
            row = labels.eq(label).idxmax() + 2
            raise ValueError(
                f"{path}, row {row}, column label: {label!r} is {other!r} in other "
                "rows; spell it in one way."
            )


def _check_row(path, number, row, header):
    """Raise unless a row fits the header, and the two needed columns are filled."""
    if len(row) != len(header):
        column = header[len(row)] if len(row) < len(header) else f"{len(header) + 1}"
        raise ValueError(
            f"{path}, row {number}: {len(row)} columns where the header has "
            f"{len(header)} (look at column {column}); put a text with commas into "
            "double quotes."
        )
    for column in ("text", "label"):
        if not row[header.index(column)].strip():
            raise ValueError(
                f"{path}, row {number}, column {column}: it is empty; fill it, or "
                "delete the row."
            )
    check_runs(row[header.index("text")], f"{path}, row {number}: the text")
