"""Tables of results: what an `experiments.py` writes and what is read from it.

A table is a CSV file with the names of its columns in the first line. Everything in it
is text when it is read, so that a figure stays as it was written. The scripts share
their options, too: `one_run` for those that measure, `each_method` for those that
compare.

>>> import tempfile
>>> path = write(Path(tempfile.mkdtemp()) / "speed.csv", [{"model": "a", "seconds": 2}])
>>> _ = replace(path, [{"model": "b", "seconds": 1}], key="model")
>>> read(path)
[{'model': 'a', 'seconds': '2'}, {'model': 'b', 'seconds': '1'}]
"""

from __future__ import annotations

import argparse
import csv
import io
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from course import paths
from course.this_machine import machine

Rows = Iterable[Mapping[str, object]]


def one_run(doc: str | None, results: Path) -> argparse.ArgumentParser:
    """Return the parser of a script that measures one thing: --seed, --tiny, --out."""
    parser = _parser(doc, results)
    parser.add_argument("--seed", type=int, default=123, help="(%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, for a test")
    return parser


def each_method(
    doc: str | None, results: Path, methods: Iterable[str], seeds: Iterable[int]
) -> argparse.ArgumentParser:
    """Return the parser of a script that compares methods: --only, --seeds and so on.

    `--only` may be given several times; without it the script shall take all methods.
    """
    parser = _parser(doc, results)
    add = parser.add_argument
    add("--only", choices=list(methods), action="append", help="methods (all)")
    add("--seeds", type=int, nargs="+", default=list(seeds), help="%(default)s")
    add("--model", default="smollm2-135m", help="%(default)s")
    add("--data", type=Path, help="another file in place of the course's")
    return parser


def _parser(doc: str | None, results: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=results, help="(%(default)s)")
    return parser


def facts(**more: object) -> dict[str, object]:
    """Return the columns that say where a figure comes from: `more` first, then ours.

    A date is not among them: the same run would then write another file each day.
    """
    import torch  # here, because whoever only reads tables waits for nothing

    return {
        **more,
        "threads": torch.get_num_threads(),
        "machine": machine(),
        "python": platform.python_version(),
        "torch": torch.__version__.partition("+")[0],
    }


def write(path: Path, rows: Rows) -> Path:
    """Write a table, whole or not at all, and return its path.

    Raises:
        ValueError: a row has other columns than the first one.
    """
    rows = list(rows)
    columns = list(rows[0])
    for row in rows:
        if list(row) != columns:
            raise ValueError(
                f"A row for {path.name} has the columns {', '.join(row)} instead of "
                f"{', '.join(columns)}."
            )
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    paths.write_text_atomically(path, text.getvalue())
    return path


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table, as dictionaries of texts."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def replace(path: Path, rows: Rows, key: str, order: Sequence[str] = ()) -> Path:
    """Write rows in place of those with the same keys, keep the others.

    Args:
        path: the table; made if it is not there.
        rows: the new rows; several may have the same key.
        key: the column that says which old rows a new one replaces.
        order: keys in the order that the table shall have; others come after them.
    """
    rows = [dict(row) for row in rows]
    new = {str(row[key]) for row in rows}
    old = read(path) if path.exists() else []
    merged = [*(row for row in old if row[key] not in new), *rows]
    places = {name: place for place, name in enumerate(order)}
    merged.sort(key=lambda row: places.get(str(row[key]), len(places)))
    return write(path, merged)
