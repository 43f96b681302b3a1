"""Ledgers, exports and heads as files: what the verbs open, and how they write.

A hospital names its `site.yaml`; an auditor has a copy of the ledger or an export, and no key. Verbs that only read
take a `Book`: every entry checked, at one moment. Those that write hold the `Ledger` itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.ledger.failures import KEEP, DamagedError, UsageError
from deploy.site import SiteConfig, load_site
from privacy import roster, store
from privacy.entries import Entry, decode
from privacy.errors import LedgerError, PlanError, SigningError, TamperedError
from privacy.fields import parse_json
from privacy.heads import Head
from privacy.ledger import Ledger
from privacy.replay import State, replay
from privacy.signing import SigningKey, load_key

Row = tuple[bytes, bytes]

_MAGIC = b"SQLite format 3\0"
_NOT_DAMAGE = frozenset(
    (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    )
)
"""SQLite's codes for a file that cannot be read now; the others are of one that holds something else."""


@dataclass(frozen=True, kw_only=True)
class Copy:
    """What lies in a ledger or an export, unchecked.

    Attributes:
        path: The file.
        rows: Body and signature of each entry.
        roster: Hash of the table of patients; None in an export, which has none.
    """

    path: Path
    rows: Sequence[Row]
    roster: str | None

    @property
    def dataset(self) -> str | None:
        """Return the fingerprint of the dataset by entry 0, None if that is no GENESIS."""
        try:
            found = decode(self.rows[0][0], 0).fields.get("dataset")
        except (IndexError, TamperedError):
            return None
        return None if found is None else str(found)

    def has_other_patients(self, state: State) -> bool:
        """Return whether the table of patients is another than the one of the entries."""
        return self.roster is not None and self.roster != state.roster


@dataclass(frozen=True, kw_only=True)
class Book:
    """A ledger at one moment, every entry of it checked by `privacy.replay`.

    Attributes:
        path: The file it was read from.
        rows: Body and signature of each entry.
        state: Where it stands.
        entries: All its entries.
    """

    path: Path
    rows: Sequence[Row]
    state: State
    entries: tuple[Entry, ...]


def choose(file: Path | None, site: Path | None) -> tuple[Path, SiteConfig | None]:
    """Return the ledger that a person named, by `--site` or as a file, and what the hospital's file says.

    Raises:
        UsageError: neither or both were given, or there is no such file.
        ConfigError: of the site's file.
    """
    if file is not None and site is None:
        if not file.is_file():
            raise UsageError(f"{file}: there is no such file; give a ledger (SQLite) or an export of one")
        return file, None
    if site is None or file is not None:
        raise UsageError("which ledger? give either --site site.yaml, or the file of a ledger or an export")
    config = load_site(site)
    return ledger_of(config, site), config


def ledger_of(config: SiteConfig, site: Path) -> Path:
    """Return the ledger of a hospital's file.

    Raises:
        UsageError: there is none yet.
    """
    path = Path(config.ledger)
    if not path.is_file():
        raise UsageError(
            f"{path}: there is no ledger yet; begin one: python -m deploy ledger init --site {site}"
        )
    return path


def read_copy(path: Path) -> Copy:
    """Return what lies in a ledger or an export.

    Raises:
        UsageError: it is neither.
        DamagedError: SQLite cannot make sense of it.
        LedgerError: it cannot be read now.
    """
    if not _is_database(path):
        return Copy(path=path, rows=_read_export(path), roster=None)
    with (
        _damage_named(path),
        contextlib.closing(store.Store(path, writable=False)) as file,
        file.reading() as connection,
    ):
        rows = [(_bytes(body), _bytes(signature)) for body, signature in store.rows(connection)]
        return Copy(path=path, rows=rows, roster=roster.roster_hash(roster.read(connection)))


def read_book(path: Path) -> Book:
    """Return a ledger or an export, every entry of it checked.

    Raises:
        UsageError: it is neither.
        DamagedError: the file, or its table of patients, is not what was written.
        TamperedError: an entry is not what was written.
        LedgerError: it cannot be read now.
    """
    copy = read_copy(path)
    state = replay(copy.rows)
    if copy.has_other_patients(state):
        raise DamagedError(f"{path}: the table of patients is not the one that the entries hold: {KEEP}")
    entries = tuple(decode(body, seq) for seq, (body, _) in enumerate(copy.rows))
    return Book(path=path, rows=copy.rows, state=state, entries=entries)


@contextlib.contextmanager
def open_ledger(
    site: Path, *, writing: bool = False, salted: bool = False
) -> Iterator[tuple[SiteConfig, Ledger]]:
    """Open the ledger of a hospital's file.

    Args:
        site: Its `site.yaml`.
        writing: With the site's key.
        salted: With the salt: to find patients in it.

    Raises:
        ConfigError: of the site's file.
        UsageError: there is no ledger yet, or key or salt are not those of the ledger.
        PrivacyError: the ledger, the key or the salt cannot be used.
    """
    config = load_site(site)
    path = ledger_of(config, site)
    key = (
        read_key(Path(config.key), "restore the site's key, or name another in site.yaml")
        if writing
        else None
    )
    salt = read_salt(Path(config.salt)) if salted else None
    try:
        with _damage_named(path):
            ledger = Ledger.open(path, key=key, salt=salt)
    except SigningError as error:
        raise UsageError(f"key: {error}; set `key` in {site} to the one in force") from None
    with contextlib.closing(ledger):
        dataset = ledger.state().genesis.dataset
        if salt is not None and roster.fingerprint(salt, config.dataset) != dataset:
            raise UsageError(
                f"{site}: `salt` or `dataset` is another than when the ledger began, and nobody would be found in "
                "it: restore both; for other patients begin another ledger"
            )
        yield config, ledger


def read_key(path: Path, way_out: str) -> SigningKey:
    """Return a private key.

    Raises:
        UsageError: there is no such file.
        SigningError: it cannot be used.
    """
    if not path.exists():
        raise UsageError(f"{path}: there is no such key; {way_out}")
    return load_key(path)


def read_salt(path: Path) -> bytes:
    """Return a site's salt.

    Raises:
        UsageError: there is no such file.
        SigningError: it cannot be used.
    """
    if not path.exists():
        raise UsageError(
            f"{path}: there is no such salt; restore it: without it nobody can be found in the ledger"
        )
    return roster.load_salt(path)


def last_entry(ledger: Ledger) -> Entry:
    """Return the entry that was written last."""
    rows = ledger.entries()
    return decode(rows[-1][0], len(rows) - 1)


def read_heads(paths: Iterable[Path]) -> list[Head]:
    """Return the heads in some files: each holds one, or a list of them.

    Raises:
        UsageError: a file cannot be read, holds something else, or a head that nobody signed.
    """
    heads: list[Head] = []
    for path in paths:
        found = read_json(path)
        try:
            heads += [Head.from_dict(each) for each in (found if isinstance(found, list) else [found])]
        except PlanError as error:
            raise UsageError(f"{path}: {error}; a head is what `ledger head` writes") from None
        if not all(head.is_signed() for head in heads):
            raise UsageError(
                f"{path}: a head in it is not signed by the key that it names; anybody may have made it"
            )
    return heads


def heads_of(dataset: str, paths: Sequence[Path]) -> tuple[list[Head], int]:
    """Return the heads of one ledger in some files, and how many more are of other ledgers.

    Raises:
        UsageError: a file cannot be used, or none holds a head of this ledger.
    """
    heads = read_heads(paths)
    own = [head for head in heads if head.dataset == dataset]
    if paths and not own:
        raise UsageError(
            f"{paths[0]}: no head of this ledger (dataset {dataset[:10]}…) in it; give one that is"
        )
    return own, len(heads) - len(own)


def read_json(path: Path) -> Any:  # noqa: ANN401 - JSON
    """Return what a small JSON file holds.

    Raises:
        UsageError: it cannot be read, or is no JSON.
    """
    try:
        return parse_json(path.read_bytes(), subject=str(path))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; check the path") from None
    except PlanError as error:
        raise UsageError(str(error)) from None


def write_new(path: Path, text: str) -> None:
    """Write a file that is not there yet: nothing is overwritten, least of all a ledger or a key.

    Raises:
        UsageError: something lies there already, or nothing can be written there.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise UsageError(f"{path}: exists already, and nothing is overwritten; give another name") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; give a path that can be written") from None


def as_json(value: Mapping[str, Any]) -> str:
    """Return JSON for people and programs: indented, ending with a line feed."""
    return json.dumps(value, indent=2) + "\n"


def export_lines(rows: Iterable[Row]) -> str:
    """Return the export of some entries, a line each (deploy/docs/ledger.md)."""
    return "".join(
        json.dumps({"body": body.decode(), "signature": signature.hex()}, ensure_ascii=False) + "\n"
        for body, signature in rows
    )


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Tell a file that SQLite cannot make sense of from one that it cannot read now.

    Raises:
        DamagedError: the former.
    """
    try:
        yield
    except TamperedError:
        raise
    except LedgerError as error:
        code = getattr(error.__cause__, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
        if code & 0xFF in _NOT_DAMAGE:
            raise
        problem = str(error.__cause__ or error)
        raise DamagedError(f"{path}: the file is damaged, or no ledger ({problem}): {KEEP}") from error


def _is_database(path: Path) -> bool:
    """Return whether a file is SQLite, by its first bytes."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def _bytes(cell: object) -> bytes:
    """Return a cell of a table; in a damaged file it can hold anything, and what is not bytes is no entry."""
    return cell if isinstance(cell, bytes) else b""


def _read_export(path: Path) -> list[Row]:
    """Return body and signature of each entry of an export; of a line that is none, the line itself.

    Raises:
        UsageError: its first line is no entry: it is another kind of file.
    """
    lines = path.read_bytes().splitlines()
    rows = [_row(line) for line in lines]
    if not rows or rows[0] is None:
        raise UsageError(f"{path}: neither a ledger (SQLite) nor an export of one (JSON lines)")
    return [row or (line, b"") for row, line in zip(rows, lines, strict=True)]


def _row(line: bytes) -> Row | None:
    """Return body and signature of a line of an export, None if it is no such line."""
    try:
        fields = parse_json(line, subject="line")
        if isinstance(fields, dict) and fields.keys() == {"body", "signature"}:
            body, signature = fields["body"].encode(), bytes.fromhex(fields["signature"])
            return (body, signature) if signature.hex() == fields["signature"] else None
    except (PlanError, AttributeError, ValueError, TypeError):
        return None
    return None
