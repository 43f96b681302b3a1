"""What people at a hospital do with a ledger, and no server: who takes part, the cap, models that left, incidents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from privacy import roster
from privacy.accounting import Release
from privacy.errors import LedgerError
from privacy.ledger import Ledger
from privacy.records import cap_statement


def set_patients(ledger: Ledger, patients: Iterable[str]) -> bool:
    """Make exactly these patients take part from now on; return whether anything has changed.

    New ones form a new cohort that has spent nothing; missing ones count as withdrawn.

    Raises:
        SigningError: the ledger was opened without its key or salt.
    """
    present = {ledger.pseudonym(patient) for patient in patients}
    with ledger.writing() as transaction:
        places = roster.read(transaction.connection)
        opens = f"c{len(transaction.state.cohorts)}"
        changed = roster.changes(places, present, opens=opens, seq=transaction.state.size)
        if changed:
            roster.write(transaction.connection, changed)
            is_new = any(place.cohort == opens for place in changed.values())
            after = roster.roster_hash({**places, **changed})
            transaction.append("ROSTER", {"opens": opens if is_new else None, "roster": after})
    return bool(changed)


def spent_on(ledger: Ledger, patient: str) -> tuple[Release, ...]:
    """Return everything that was spent on one patient; for the site's own eyes.

    Raises:
        LedgerError: the ledger does not know the patient.
        SigningError: the ledger was opened without its salt.
    """
    with ledger.reading() as connection:
        place = roster.read(connection).get(ledger.pseudonym(patient))
    if place is None:
        raise LedgerError("no such patient in this ledger; patients are named as in the dataset")
    state = ledger.state()
    until = place.withdrawn or state.size
    return tuple(
        release
        for paid in state.reservations.values()
        if place.cohort in paid.cohorts and paid.seq < until
        for release in paid.cost
    )


def change_cap(ledger: Ledger, cap: float, approvals: Sequence[Mapping[str, str]] = ()) -> None:
    """Change the cap: lower it freely, raise it with two approvals of `cap_request`.

    Args:
        ledger: Open for writing.
        cap: New epsilon, >= 0; 0 ends all spending.
        approvals: `key` and `signature` of each approver.

    Raises:
        TamperedError: it would raise the cap without two of the approvers of GENESIS; nothing is written.
    """
    with ledger.writing() as transaction:
        fields = {"from": transaction.state.cap, "to": cap, "approvals": [dict(each) for each in approvals]}
        transaction.append("CAP_CHANGE", fields)


def cap_request(ledger: Ledger, cap: float) -> dict[str, Any]:
    """Return what approvers have to sign for the purpose `cap-change`; good until the next entry."""
    state = ledger.state()
    return cap_statement(state.genesis.dataset, state.cap, cap, state.tip)


def release_model(ledger: Ledger, *, run: str, round_: int, model: str, audience: str) -> None:
    """Write down that a model has left: it costs nothing more, and a data-protection officer wants to know.

    Args:
        ledger: Open for writing.
        run: Whose model it is.
        round_: After which round.
        model: SHA-256 of its weights.
        audience: `partners` or `public`.
    """
    with ledger.writing() as transaction:
        fields = {"run": run, "round": round_, "model": model, "audience": audience}
        transaction.append("MODEL_RELEASE", fields)


def note_incident(ledger: Ledger, code: str, reference: str = "") -> None:
    """Write down that something happened: a code, and the number of a ticket of the hospital's own."""
    with ledger.writing() as transaction:
        transaction.append("INCIDENT", {"code": code, "reference": reference})
