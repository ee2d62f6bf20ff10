"""Near-duplicates in a file of instructions: report and cleaned copy (ch. 7, bonus).

    python find_near_duplicates.py --data my-entries.json --method tfidf

The file is a JSON array or JSON Lines; it is read entry by entry and never changed.
Each entry is compared with those above it that are kept. One that is as similar to one
of them as `--threshold` is reported, with its number in the file, and left out of the
copy.

* `tfidf` compares runs of letters: typing errors, one word more or less;
* `minhash` compares sets of runs of letters: the same, without weights;
* `meaning` compares what a sentence embedder makes of the texts: other words for the
  same. It computes far longer. So beyond `--most` texts it only looks at candidates,
  those to which another text is at least 0.6 similar by `tfidf`.

Two texts in which other numbers stand are never called alike, unless `--any-numbers` is
given. What is the same but for case and spaces is a duplicate to every method.

>>> from tempfile import TemporaryDirectory
>>> entries = [{"instruction": "Name the capital of Peru."}, {"instruction": ""}]
>>> entries.append({"instruction": "Please name the capital of Peru."})
>>> with TemporaryDirectory() as folder:
...     path = Path(folder, "entries.json")
...     _ = path.write_text(json.dumps(entries))
...     find_near_duplicates(path, "instruction", threshold=0.7)
[Match(field='instruction', row=3, similar_to=1, similarity=0.7863)]
"""

import argparse
import csv
import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from entry_stream import copy_without, read_entries, written_whole
from script_tools import add_again, file_to_write, parse, positive_int, run, runs_folder
from similar_texts import (
    LetterSets,
    LetterWeights,
    Meanings,
    nearest_before,
    with_neighbours,
)

THRESHOLDS = {"tfidf": 0.75, "minhash": 0.6, "meaning": 0.85}
CANDIDATES = 0.6  # the least TF-IDF similarity of what the embedder is to look at
SHOWN = 80  # characters of a text in the report
COLUMNS = ("field", "row", "similar_to", "similarity", "text", "similar_text")


class Match(NamedTuple):
    """A row of the file that is like a row above it, which is kept."""

    field: str
    row: int  # from 1
    similar_to: int
    similarity: float


def text_of(entry: dict, field: str) -> str:
    """What is compared of an entry, with single spaces and in lower case.

    Args:
        entry: of the file.
        field: the name of one of its fields; "question" is instruction and input,
            "entry" these and the output. A missing field is empty.

    Raises:
        ValueError: a field holds something else than a text.
    """
    parts = _PARTS.get(field, (field,)) if field not in entry else (field,)
    texts = [entry.get(part) or "" for part in parts]
    for part, text in zip(parts, texts):
        if not isinstance(text, str):
            raise ValueError(f"field {part!r} is {type(text).__name__}, not a text")
    text = " ".join(" ".join(texts).split()).lower()
    return text.encode("utf-8", "replace").decode()  # JSON can hold half a character


_PARTS = {
    "question": ("instruction", "input"),
    "entry": ("instruction", "input", "output"),
}


def find_near_duplicates(
    path: Path | str,
    field: str = "question",
    method: str = "tfidf",
    threshold: float | None = None,
    *,
    any_numbers: bool = False,
    most: int = 5000,
    skip: Iterable[int] = (),
    embed: Any = None,
) -> list[Match]:
    """The rows of a file that are nearly a row above them, which is kept.

    Args:
        path: a JSON array or JSON Lines; read as a stream, twice.
        field: as for `text_of`. Where it is empty, an entry is like no other.
        method: "tfidf", "minhash" or "meaning".
        threshold: the least similarity, 0 to 1; None takes the method's own.
        any_numbers: as for `nearest_before`.
        most: how many texts the embedder takes without a choice of candidates.
        skip: rows that are passed over, as they are left out already.
        embed: makes vectors of texts; None loads the embedder.

    Returns:
        The matches, in the order of the file.

    Raises:
        ValueError: the file is damaged, or nowhere has the field; there is no such
            method or threshold.
    """
    if method not in THRESHOLDS:
        known = ", ".join(map(repr, THRESHOLDS))
        raise ValueError(f"There is no method {method!r}: give one of {known}.")
    threshold = THRESHOLDS[method] if threshold is None else threshold
    if not 0 < threshold <= 1:
        raise ValueError(
            f"The threshold is {threshold}: it must be above 0 and at most 1."
        )
    texts = _Texts(path, field, frozenset(skip))
    finder = _finder(method, texts, threshold, any_numbers, most, embed)
    with tqdm(total=finder.count, unit="text", disable=None) as bar:
        found = nearest_before(
            finder,
            threshold,
            any_numbers=any_numbers,
            progress=lambda done: bar.update(done - bar.n),
        )
    near = {
        texts.rows[late]: (texts.rows[early], score)
        for late, early, score in zip(*found)
    }
    for row, first in texts.repeated:  # whose first one may itself be like another
        near[row] = near.get(first, (first, 1.0))
    return [
        Match(field, row, other, round(score, 4))
        for row, (other, score) in sorted(near.items())
    ]


def clean(
    path: Path | str,
    report: Path,
    cleaned: Path,
    fields: Iterable[str] = ("question",),
    method: str = "tfidf",
    threshold: float | None = None,
    **options: Any,
) -> tuple[list[Match], int]:
    """Write a report on a file and a copy without the rows in it; both or neither.

    Args:
        path: of the file, which stays as it is.
        report: where to write the rows that are left out, each with the kept one that
            it is like: a table (`.csv`) or a list of objects (`.json`).
        cleaned: where to write the copy, in the form of the file.
        fields: one after the other; each is searched in what those before it have kept.
        method, threshold, options: as for `find_near_duplicates`.

    Returns:
        The matches of all fields, and how many entries the copy has.

    Raises:
        ValueError: two of the three files are the same, or the first is damaged.
    """
    path, report, cleaned = Path(path), Path(report), Path(cleaned)
    check_places(path, report, cleaned)
    before = _state(path)
    matches: list[Match] = []
    for field in fields:
        skip = [match.row for match in matches]
        matches += find_near_duplicates(
            path, field, method, threshold, skip=skip, **options
        )
    with written_whole(report, cleaned) as (table, copy):
        kept = copy_without(path, {match.row for match in matches}, copy)
        _write_report(table, report.suffix, matches, _shown(path, matches))
        if _state(path) != before:
            raise ValueError(f"{path} was changed meanwhile: start again.")
    return matches, kept


def check_places(path: Path, report: Path, cleaned: Path) -> None:
    """Raise `ValueError` where a file would be written over another of the three."""
    places = {"--data": path, "--report": report, "--cleaned": cleaned}
    seen: dict[Path, str] = {}
    for name, place in places.items():
        other = seen.setdefault(place.resolve(), name)
        both = place.exists() and path.exists() and place.samefile(path)
        if other != name or (name != "--data" and both):
            other = other if other != name else "--data"
            raise ValueError(
                f"{other} and {name} are the same file, {place}: the data are never "
                "written over, so give another name."
            )
    if report.suffix.lower() not in (".csv", ".json"):
        raise ValueError(f"--report is {report}: give a name ending in .csv or .json.")


# --- Reading -------------------------------------------------------------------------


class _Texts:
    """The different texts of a field, read anew each time it is gone through.

    `rows` are their numbers in the file, whatever is empty before them; `repeated` are
    pairs of a row and the first one with the same text.
    """

    def __init__(self, path, field, skip):
        self.path, self.field, self.skip = path, field, skip
        self.rows, self.repeated = [], []

    def __iter__(self) -> Iterator[str]:
        self.rows.clear()
        self.repeated.clear()
        first_with, names = {}, {}
        for row, entry, _ in read_entries(self.path):
            try:
                text = text_of(entry, self.field)
            except ValueError as problem:
                raise ValueError(f"{self.path}, entry {row}: {problem}.") from None
            if len(names) < 20:
                names |= dict.fromkeys(list(entry)[:20])
            if not text or row in self.skip:
                continue
            key = hashlib.blake2b(text.encode(), digest_size=16)
            first = first_with.setdefault(key.digest(), row)
            if first == row:
                self.rows.append(row)
                yield text
            else:
                self.repeated.append((row, first))
        if not first_with and not self.skip:
            there = ", ".join(map(repr, names)) or "none"
            raise ValueError(
                f"{self.path}: no entry has a text in the field {self.field!r}; there "
                f"are the fields {there}."
            )

    def chosen(self, places: np.ndarray) -> Iterator[str]:
        """Only the texts at these places; `rows` are then theirs."""
        wanted, rows, place = set(places.tolist()), [], -1
        for place, text in enumerate(self):
            if place in wanted:
                rows.append(self.rows[place])
                yield text
        self.rows = rows


def _finder(method, texts, threshold, any_numbers, most, embed):
    """The texts, made ready for a method."""
    if method == "tfidf":
        return LetterWeights(texts, threshold)
    if method == "minhash":
        return LetterSets(texts)
    if sum(1 for _ in texts) > most:
        loose = LetterWeights(texts, CANDIDATES)
        wanted = with_neighbours(loose, CANDIDATES, any_numbers=any_numbers)
        print(f"Meaning: {len(wanted):,} of {loose.count:,} texts are candidates.")
        texts_to_read = texts.chosen(wanted)
    else:
        texts_to_read = texts
    if embed is None:
        from sentence_vectors import load_embedder

        embed = load_embedder()
    return Meanings(texts_to_read, embed)


def _state(path):
    try:
        found = path.stat()
    except OSError as problem:
        raise ValueError(
            f"{path} cannot be read ({problem.strerror}): check the path."
        ) from None
    return found.st_size, found.st_mtime_ns


# --- Writing -------------------------------------------------------------------------


def _shown(path, matches):
    """The beginnings of the texts that a report names, by field and row."""
    wanted: dict[int, set[str]] = {}
    for match in matches:
        for row in (match.row, match.similar_to):
            wanted.setdefault(row, set()).add(match.field)
    return {
        (field, row): text_of(entry, field)[:SHOWN]
        for row, entry, _ in read_entries(path)
        for field in wanted.get(row, ())
    }


def _write_report(file, suffix, matches, shown):
    rows = (
        {
            **match._asdict(),
            "text": shown[match.field, match.row],
            "similar_text": shown[match.field, match.similar_to],
        }
        for match in matches
    )
    if suffix.lower() == ".json":
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        file.write("[\n" + ",\n".join(lines) + "\n]\n" if matches else "[]\n")
        return
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


# --- The script ----------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Read the options, search, write; return the exit code."""
    return run(_search, _options(arguments), stopped="stopped; nothing is written.")


def _options(arguments):
    lines = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog=Path(__file__).name, description=__doc__, formatter_class=lines
    )
    add = parser.add_argument
    add("--data", type=Path, help="the file (default: the course's instructions)")
    add("--method", choices=list(THRESHOLDS), default="tfidf", help="(%(default)s)")
    default = ", ".join(f"{name} {value}" for name, value in THRESHOLDS.items())
    add("--threshold", type=_share, help=f"least similarity (default: {default})")
    add(
        "--field",
        action="append",
        help="what is compared, may be given several times: a field's name, question "
        "(instruction and input, the default) or entry (these and the output)",
    )
    add("--any-numbers", action="store_true", help="numbers may differ, too")
    add("--most", type=positive_int, default=5000, help="texts to embed (%(default)s)")
    add("--report", type=Path, help="a table, .csv or .json (default: in runs)")
    add("--cleaned", type=Path, help="the copy (default: beside the report)")
    add_again(parser, "a report or a copy")
    return parse(parser, arguments)


def _share(text):
    """A kind of option: a similarity."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid float value: {text!r}") from None
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError("must be above 0 and at most 1")
    return value


def _search(options):
    data = options.data
    if data is None:
        from instruction_data import course_instructions

        data = course_instructions()
    stem = data.stem
    folder = runs_folder() / "ch07-near-duplicates"
    report = options.report or folder / f"{stem}-near-duplicates.csv"
    cleaned = options.cleaned or report.with_name(f"{stem}-cleaned{data.suffix}")
    check_places(data, report, cleaned)
    for place in (report, cleaned):
        if place.exists() and not options.overwrite:
            raise ValueError(
                f"{place} is there already: --overwrite writes it anew, or give "
                "another name."
            )
        file_to_write(place)
    start = time.monotonic()
    fields = options.field or ["question"]
    matches, kept = clean(
        data,
        report,
        cleaned,
        fields,
        options.method,
        options.threshold,
        any_numbers=options.any_numbers,
        most=options.most,
    )
    seconds = time.monotonic() - start
    for field in fields:
        count = sum(match.field == field for match in matches)
        print(f"{field}: {count:,} entries are like one above them.")
    print(f"Kept {kept:,} of {kept + len(matches):,} entries, in {seconds:.0f} s.")
    print(f"Report: {report}\nCopy: {cleaned}\n{data} is as it was.")


if __name__ == "__main__":
    raise SystemExit(main())
