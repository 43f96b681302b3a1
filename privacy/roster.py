"""Who is in a dataset, by salted pseudonym: the table that ties patients to the cohorts which a ledger charges.

Patients that joined together have one history, so they form a cohort: a patient who joins later is in a later
cohort and has spent nothing; one who withdraws keeps what was spent and is not sampled any more; one who comes
back is charged as if they had never been away (rounded up, never down). The table never leaves the site: the
ledger holds its hash.

What it does not do: hide from who has both the table and the salt whether a given person is in it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from privacy.errors import LedgerError
from privacy.signing import read_secret, write_secret

SALT_BYTES = 32
Pseudonym = bytes


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a patient stands: their cohort, and the entry at which they withdrew (0: they take part)."""

    cohort: str
    withdrawn: int = 0


def create_salt(path: Path) -> bytes:
    """Make the secret salt of a site and write it to a file of its owner's alone.

    Raises:
        SigningError: something lies there already.
    """
    salt = os.urandom(SALT_BYTES)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_secret(path, salt)
    return salt


def load_salt(path: Path) -> bytes:
    """Return the salt of a site.

    Raises:
        SigningError: there is no file, or others can read it.
    """
    return read_secret(path)


def pseudonym(salt: bytes, patient: str) -> Pseudonym:
    """Return HMAC-SHA256 of a patient's key: equal for the same patient at one site, unlinkable without the salt."""
    return hmac.digest(salt, b"patient\x00" + patient.encode(), "sha256")


def fingerprint(salt: bytes, dataset: str) -> str:
    """Return the fingerprint of a dataset: stands for it outside the site, where its name means nothing."""
    return hmac.digest(salt, b"dataset\x00" + dataset.encode(), "sha256").hex()


def read(connection: sqlite3.Connection) -> dict[Pseudonym, Place]:
    """Return the whole table.

    Raises:
        LedgerError: a row is damaged.
    """
    found = list(connection.execute("SELECT pseudonym, cohort, withdrawn FROM patients"))
    if not all(isinstance(name, bytes) for name, _, _ in found):
        raise LedgerError("the table of patients is damaged: a pseudonym is not bytes")
    return {name: Place(cohort=cohort, withdrawn=withdrawn) for name, cohort, withdrawn in found}


def write(connection: sqlite3.Connection, places: Mapping[Pseudonym, Place]) -> None:
    """Write places of patients, new or changed."""
    connection.executemany(
        "INSERT INTO patients VALUES (?, ?, ?) ON CONFLICT (pseudonym) DO UPDATE SET"
        " cohort = excluded.cohort, withdrawn = excluded.withdrawn",
        [(name, place.cohort, place.withdrawn) for name, place in places.items()],
    )


def roster_hash(places: Mapping[Pseudonym, Place]) -> str:
    """Return the hash of the table that the ledger holds: it changes with every place of every patient."""
    digest = hashlib.sha256()
    for name, place in sorted(places.items()):
        digest.update(name + f"{place.cohort}\0{place.withdrawn}\0".encode())
    return digest.hexdigest()


def changes(
    places: Mapping[Pseudonym, Place], present: Iterable[Pseudonym], *, opens: str, seq: int
) -> dict[Pseudonym, Place]:
    """Return what changes when exactly `present` take part from entry `seq` on.

    Args:
        places: The table.
        present: Who takes part from now on.
        opens: The cohort of those who are new.
        seq: Number of the entry that will write this down, >= 1.
    """
    now = set(present)
    changed = {name: Place(cohort=opens) for name in now - set(places)}
    for name, place in places.items():
        if name in now and place.withdrawn:
            changed[name] = Place(cohort=place.cohort)
        elif name not in now and not place.withdrawn:
            changed[name] = Place(cohort=place.cohort, withdrawn=seq)
    return changed


def taking_part(places: Mapping[Pseudonym, Place], cohorts: Sequence[str]) -> frozenset[Pseudonym]:
    """Return who of some cohorts takes part."""
    return frozenset(
        name for name, place in places.items() if not place.withdrawn and place.cohort in cohorts
    )
