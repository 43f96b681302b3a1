"""The SQLite file under a ledger: rows in order, whole transactions, nothing interpreted.

Rollback journal and `synchronous=EXTRA`: when a transaction has ended, its pages and the removal of its journal
have been flushed, so that what is acknowledged survives a loss of power. Several processes may use one file: a
transaction takes the write lock at its beginning, before anything is read that it decides by.

Guarantees (tests/integration/test_ledger_faults.py): killed, refused a system call or out of space at any
point, the file holds all acknowledged rows and no part of another.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from privacy.errors import LedgerError, PlanError
from privacy.fields import parse_json
from privacy.heads import Head

BUSY_S = 30.0
MAX_WITNESSED = 4096
_FAILURES = (
    sqlite3.Error,
    UnicodeDecodeError,
)  # the second where SQLite quotes a damaged file in its message
_SCHEMA = (
    "CREATE TABLE entries (seq INTEGER PRIMARY KEY, body BLOB NOT NULL, signature BLOB NOT NULL) STRICT",
    "CREATE TABLE patients (pseudonym BLOB PRIMARY KEY, cohort TEXT NOT NULL, withdrawn INTEGER NOT NULL)"
    " STRICT, WITHOUT ROWID",
    "CREATE TABLE witnessed (dataset TEXT NOT NULL, key TEXT NOT NULL, size INTEGER NOT NULL, head TEXT NOT NULL,"
    " PRIMARY KEY (dataset, key)) STRICT, WITHOUT ROWID",
)


class Store:
    """An open ledger file.

    Args:
        path: The file; it has to exist.
        writable: Whether entries will be appended.
        durable: Flush each transaction to disk; only a simulation may do without.
    """

    def __init__(self, path: Path, *, writable: bool, durable: bool = True) -> None:
        self.path = path
        self._writable = writable
        self._durable = durable
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None

    @classmethod
    def create(cls, path: Path, *, durable: bool = True) -> Store:
        """Make the file, readable by its owner alone, with empty tables.

        Raises:
            LedgerError: something lies there already, or the folder cannot be written.
        """
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            raise LedgerError(
                f"{path}: exists already; a ledger is made once for a dataset and then goes on for good"
            ) from None
        except OSError as error:
            raise LedgerError(f"{path}: {error.strerror}; give a folder that can be written") from error
        store = cls(path, writable=True, durable=durable)
        try:
            with store.transaction() as connection:
                for statement in _SCHEMA:
                    connection.execute(statement)
        except LedgerError:
            path.unlink(missing_ok=True)
            raise
        return store

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the write lock; what the block wrote is on disk when it ends, or not there at all if it raises.

        Raises:
            LedgerError: the file cannot be read, locked or written. Whether the last write got through is then
                unknown; it was not acknowledged, and the next transaction sees what is there.
        """
        connection = self._open()
        try:
            connection.execute("BEGIN IMMEDIATE")
        except _FAILURES as error:
            self.close()
            raise self._failed(error) from error
        try:
            yield connection
            connection.execute("COMMIT")
        except _FAILURES as error:
            self.close()  # rolls back; after an I/O error the connection is not to be trusted
            raise self._failed(error) from error
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Read at one moment.

        Raises:
            LedgerError: the file cannot be read, or is no ledger.
        """
        connection = self._open()
        try:
            connection.execute("BEGIN")
            yield connection
            connection.execute("COMMIT")
        except _FAILURES as error:
            self.close()
            raise self._failed(error) from error
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Let go of the file; the next use opens it again."""
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        """Return the connection, opening it where there is none."""
        if self._connection is not None and self._file == _identity(self.path):
            return self._connection
        self.close()  # another file was put in place: what is written to the old one would be lost with it
        # What a killed writer left half done is rolled back by whoever opens next, so a reader must be able to as well.
        is_torn = self.path.with_name(f"{self.path.name}-journal").exists()
        mode = "rw" if self._writable or (is_torn and os.access(self.path, os.W_OK)) else "ro"
        connection: sqlite3.Connection | None = None
        try:
            connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode={mode}",
                uri=True,
                timeout=BUSY_S,
                isolation_level=None,
                check_same_thread=False,
            )
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            if self._writable:
                connection.execute("PRAGMA journal_mode = DELETE")
                connection.execute(f"PRAGMA synchronous = {'EXTRA' if self._durable else 'OFF'}")
        except _FAILURES as error:
            if connection is not None:
                connection.close()
            raise self._failed(error) from error
        self._connection, self._file = connection, _identity(self.path)
        return connection

    def _failed(self, error: Exception) -> LedgerError:
        """Return what to tell of a failure; SQLite's own words say which: full, read-only, locked, not a database."""
        return LedgerError(
            f"{self.path}: {error}; nothing runs until the ledger can be read and written: check the disk, its "
            "space and who may write there"
        )


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells the file at a path from one that replaces it; None if nothing lies there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def append(connection: sqlite3.Connection, seq: int, body: bytes, signature: bytes) -> None:
    """Add an entry within a transaction."""
    connection.execute("INSERT INTO entries VALUES (?, ?, ?)", (seq, body, signature))


def rows(connection: sqlite3.Connection, first: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """Yield body and signature of the entries from `first` on, in order of their numbers."""
    yield from connection.execute("SELECT body, signature FROM entries WHERE seq >= ? ORDER BY seq", (first,))


def last(connection: sqlite3.Connection) -> tuple[int, bytes] | None:
    """Return number and body of the last entry."""
    found: tuple[int, bytes] | None = connection.execute(
        "SELECT seq, body FROM entries ORDER BY seq DESC LIMIT 1"
    ).fetchone()
    return found


def body(connection: sqlite3.Connection, seq: int) -> bytes:
    """Return the body of an entry that is there."""
    found: tuple[bytes] | None = connection.execute(
        "SELECT body FROM entries WHERE seq = ?", (seq,)
    ).fetchone()
    if found is None or not isinstance(found[0], bytes):
        raise LedgerError(f"entry {seq} is missing or damaged")
    return found[0]


def keep_heads(connection: sqlite3.Connection, heads: Iterable[Head]) -> None:
    """Keep the largest head of each ledger and key, within a transaction; of no more than MAX_WITNESSED ledgers."""
    for head in heads:
        connection.execute(
            "INSERT INTO witnessed SELECT ?, ?, ?, ? WHERE (SELECT count(*) FROM witnessed) < ? OR EXISTS"
            " (SELECT 1 FROM witnessed WHERE dataset = ? AND key = ?)"
            " ON CONFLICT (dataset, key) DO UPDATE SET size = excluded.size, head = excluded.head"
            " WHERE excluded.size > size",
            (
                head.dataset,
                head.key,
                head.size,
                json.dumps(head.to_dict()),
                MAX_WITNESSED,
                head.dataset,
                head.key,
            ),
        )


def kept_heads(connection: sqlite3.Connection) -> tuple[Head, ...]:
    """Return the heads of other ledgers that were kept; a row that was spoiled is left out."""
    found: list[Head] = []
    for (text,) in connection.execute("SELECT head FROM witnessed ORDER BY dataset, key"):
        with contextlib.suppress(PlanError):
            found.append(Head.from_dict(parse_json(str(text), subject="kept head")))
    return tuple(found)
