"""The beginning of a ledger: what is fixed before anything is spent, and never changes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from privacy import roster, store
from privacy.entries import NO_HASH, encode
from privacy.errors import LedgerError
from privacy.filters import FixedPlan, RenyiFilter
from privacy.ledger import Ledger
from privacy.records import FIRST_COHORT
from privacy.replay import State
from privacy.signing import SigningKey

_LIBRARIES = ("opacus", "dp-accounting", "torch", "cryptography")


def begin(
    path: Path,
    *,
    site: str,
    dataset: str,
    rule: RenyiFilter | FixedPlan,
    patients: Iterable[str],
    key: SigningKey,
    salt: bytes,
    approvers: Sequence[str] = (),
    seeded: bool = False,
) -> Ledger:
    """Begin the ledger of a dataset, and return it open for writing.

    Args:
        path: The file; nothing may lie there.
        site: Name of the hospital.
        dataset: Its own name for the dataset; only a keyed hash of it is written.
        rule: Cap, delta and how costs add up.
        patients: Keys of all patients; only salted pseudonyms are written.
        key: The site's key.
        salt: The site's secret salt.
        approvers: Public keys of those who may raise the cap, two at a time.
        seeded: A simulation: seeded noise is allowed, nothing is claimed, and entries are not flushed to disk.

    Raises:
        LedgerError: the file is there already, cannot be written, or some of these patients already have a ledger in
            this folder: what is spent on them would not add up.
        TamperedError: a schedule costs more than its cap; nothing was written.
    """
    present = sorted({roster.pseudonym(salt, patient) for patient in patients})
    _refuse_overlap(path, present)
    places = {name: roster.Place(cohort=FIRST_COHORT) for name in present}
    fields = {
        "site": site,
        "dataset": roster.fingerprint(salt, dataset),
        "unit": "patient",
        "neighbouring": "add_remove",
        "delta": rule.delta,
        "cap": rule.epsilon,
        "rule": _rule_fields(rule),
        "key": key.public,
        "approvers": sorted(set(approvers)),
        "claims": "seeded" if seeded else "dp",
        "cohort": FIRST_COHORT,
        "roster": roster.roster_hash(places),
        "libraries": {name: version(name) for name in _LIBRARIES},
    }
    first = encode(seq=0, prev=NO_HASH, time=int(time.time()), kind="GENESIS", fields=fields)
    signature = key.sign("ledger-head", State().head_of(first).statement())
    State().apply(first, signature)  # before anything is written
    file = store.Store.create(path, durable=not seeded)
    try:
        with file.transaction() as connection:
            roster.write(connection, places)
            store.append(connection, 0, first.body, bytes.fromhex(signature))
    except LedgerError:
        path.unlink(missing_ok=True)  # tables without GENESIS would be a ledger that nobody can open
        raise
    file.close()
    return Ledger.open(path, key=key, salt=salt)


def _rule_fields(rule: RenyiFilter | FixedPlan) -> Mapping[str, Any]:
    """Return a rule as it stands in GENESIS."""
    if isinstance(rule, RenyiFilter):
        return {"name": "renyi-filter", "order": rule.order}
    return {"name": "fixed-plan", "schedule": [release.to_dict() for release in rule.schedule]}


def _refuse_overlap(path: Path, present: Sequence[bytes]) -> None:
    """Refuse patients who are in another ledger of the same folder.

    Raises:
        LedgerError: names the other ledger.
    """
    for other in sorted(path.parent.glob(f"*{path.suffix}")):
        if other == path or not other.is_file():
            continue
        with store.Store(other, writable=False).reading() as connection:
            shared = len(roster.read(connection).keys() & set(present))
        if shared:
            raise LedgerError(
                f"{other.name} already holds {shared} of these patients, and what is spent on a patient must add up in "
                "one place: put these records into that dataset, or leave those patients out"
            )
