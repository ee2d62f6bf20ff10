"""What `prepare_dataset.py` knows of each book, in a small database (chapter 5, bonus).

Support: nothing here is taught.

>>> import tempfile
>>> work = ShelfState(Path(tempfile.mkdtemp()), {"vocab": "300"})
>>> with work.transaction():
...     work.set_note("train", "12")
>>> work.note("train"), work.one("COUNT(*) FROM book")
('12', 0)
>>> work.db.close()
"""

import contextlib
import errno
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STATE = "state.sqlite"  # gone when the work is done
_COLUMNS = (
    "place INTEGER PRIMARY KEY, name TEXT, size INTEGER, status TEXT, reason TEXT, "
    "encoding TEXT, rules TEXT, language TEXT, split TEXT, digest TEXT, "
    "signature BLOB, bytes INTEGER, tokens INTEGER"
)


class ShelfState:
    """What is known of each book, on disk; a transaction each, whole or not at all.

    Args:
        out: the folder of the data set.
        settings: what decides about the result; a run goes on with the same only.
    """

    def __init__(self, out: Path, settings: dict[str, Any]):
        self.db = sqlite3.connect(out / STATE, timeout=1, isolation_level=None)
        # Two runs would take the same books: the first one keeps the file to itself.
        self.db.execute("PRAGMA locking_mode = EXCLUSIVE")
        # A killed process loses nothing either way; this also survives a power cut.
        self.db.execute("PRAGMA synchronous = FULL")
        self.db.executescript(
            f"CREATE TABLE IF NOT EXISTS book ({_COLUMNS});"
            "CREATE TABLE IF NOT EXISTS band (key BLOB, place INTEGER);"
            "CREATE INDEX IF NOT EXISTS keys ON band (key);"
            "CREATE INDEX IF NOT EXISTS digests ON book (digest);"
            "CREATE TABLE IF NOT EXISTS note (name TEXT PRIMARY KEY, value TEXT);"
        )
        before = self.note("settings")
        if before is not None and json.loads(before) != settings:
            self.db.close()
            raise ValueError(
                f"{out} holds unfinished work with other options or other books: give "
                "the same ones to go on, --overwrite to start over, or another --out."
            )
        with self.transaction():
            self.set_note("settings", json.dumps(settings))

    def transaction(self) -> "StateTransaction":
        """Everything inside the `with` block becomes true at once, or not at all."""
        return StateTransaction(self.db)

    def note(self, name: str, default: str | None = None) -> str | None:
        """A note by its name."""
        row = self.db.execute(
            "SELECT value FROM note WHERE name = ?", [name]
        ).fetchone()
        return row[0] if row else default

    def set_note(self, name: str, value: str) -> None:
        """Set a note."""
        self.db.execute("INSERT OR REPLACE INTO note VALUES (?, ?)", [name, value])

    def rows(self, what: str, *values: Any) -> Iterator[sqlite3.Row]:
        """The rows of a query on the books, in order, one at a time."""
        cursor = self.db.cursor()
        cursor.row_factory = sqlite3.Row
        yield from cursor.execute(f"SELECT * FROM book {what} ORDER BY place", values)

    def one(self, what: str, *values: Any) -> Any:
        """The single value of a query."""
        return self.db.execute(f"SELECT {what}", values).fetchone()[0]


def is_full(problem: BaseException) -> bool:
    """Whether an error says that the disk, or the share of this user, is full."""
    return getattr(problem, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def told_in_a_sentence(out: Path) -> Iterator[None]:
    """Turn errors of the database or the disk into a sentence that says what to do.

    Raises:
        ValueError: the database is damaged.
        RuntimeError: another run uses it, the disk is full, or it failed otherwise.
    """
    state, again = out / STATE, "the same command then goes on from here"
    try:
        yield
    except sqlite3.Error as problem:
        code = getattr(problem, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise ValueError(
                f"{state} is damaged ({problem}): --overwrite starts over."
            ) from None
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise RuntimeError(
                f"{state} is in use: another run prepares a data set in {out}. Wait "
                "until it has ended, or choose another --out."
            ) from None
        if code == sqlite3.SQLITE_FULL:
            raise RuntimeError(f"No space for {state}: make some; {again}.") from None
        raise RuntimeError(
            f"{state} cannot be used ({problem}): see to its disk; {again}."
        ) from None
    except OSError as problem:
        if not is_full(problem):
            raise
        raise RuntimeError(f"No space left for {out}: make some; {again}.") from None


class StateTransaction:
    """A transaction of a database: its end makes it true, an exception undoes it."""

    def __init__(self, db):
        self.db = db

    def __enter__(self):
        self.db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind, *_):
        if self.db.in_transaction:  # a full disk has rolled it back already
            self.db.execute("ROLLBACK" if kind else "COMMIT")
