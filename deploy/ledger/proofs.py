"""Proofs that travel: one entry and the head that contains it, checkable without the ledger.

A proof file is JSON: `entry` (body and inclusion proof), `head` (signed), `since` (an older head that somebody kept, or
null) and `consistency` (the proof that the ledger only grew since then).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.ledger.failures import UnmetError, UsageError
from deploy.ledger.opening import heads_of, ledger_of, read_book, read_json
from deploy.ledger.wording import describe, moment, short
from deploy.site import load_site
from privacy.entries import Entry
from privacy.errors import PlanError
from privacy.fields import require_fields
from privacy.heads import MAX_PROOF, Head, Proven, largest
from privacy.merkle import consistency_proof, inclusion_proof, verify_consistency
from privacy.witness import check_witnesses

FIELDS = ("entry", "head", "since", "consistency")


@dataclass(frozen=True, kw_only=True)
class Proof:
    """An entry with everything that shows it is in a ledger.

    Attributes:
        entry: With its inclusion proof.
        head: Of the ledger that contains it.
        since: A head that somebody kept; None without one.
        consistency: Proof from that head to `head`, hexadecimal hashes.
    """

    entry: Proven
    head: Head
    since: Head | None
    consistency: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "entry": {"body": self.entry.body, "proof": list(self.entry.proof)},
            "head": self.head.to_dict(),
            "since": None if self.since is None else self.since.to_dict(),
            "consistency": list(self.consistency),
        }

    @classmethod
    def from_dict(cls, payload: object) -> Proof:
        """Read what `to_dict` wrote.

        Raises:
            PlanError: names every problem.
        """
        fields = require_fields(payload, subject="proof", names=FIELDS)
        entry = require_fields(fields["entry"], subject="entry", names=("body", "proof"))
        body, since = entry["body"], fields["since"]
        if not isinstance(body, str):
            raise PlanError("entry", ["body must be text"])
        return cls(
            entry=Proven(body=body, proof=_hashes(entry["proof"])),
            head=Head.from_dict(fields["head"]),
            since=None if since is None else Head.from_dict(since),
            consistency=_hashes(fields["consistency"]),
        )


def prove(site: Path, seq: int, since: Path | None) -> Proof:
    """Return the proof of an entry of a hospital's ledger.

    Args:
        site: The hospital's file.
        seq: Number of the entry.
        since: File of heads that somebody kept; the largest of this ledger is used.

    Raises:
        UsageError: there is no such entry, or no head of this ledger in the file.
        UnmetError: a key that this ledger never had signed the kept head.
        RefusedError: the ledger does not contain what the kept head contained.
        PrivacyError: the ledger cannot be read.
    """
    book = read_book(ledger_of(load_site(site), site))
    state = book.state
    if not 0 <= seq < state.size:
        raise UsageError(f"there is no entry {seq}; entries are 0 to {state.size - 1}")
    oldest = None
    if since is not None:
        own, _ = heads_of(state.genesis.dataset, [since])
        check_witnesses(state, own)
        oldest = largest(own)
        if oldest is None or not state.contains(oldest):
            raise UnmetError(f"{since}: the head is not signed by a key of this ledger; give one that is")
    consistency = () if oldest is None else consistency_proof(state.leaves, oldest.size)
    return Proof(
        entry=Proven(
            body=book.rows[seq][0].decode(),
            proof=tuple(part.hex() for part in inclusion_proof(state.leaves, seq)),
        ),
        head=state.head(),
        since=oldest,
        consistency=tuple(part.hex() for part in consistency),
    )


def check_proof(file: Path, head: Path | None) -> Iterator[str]:
    """Yield what the proof in a file shows, for a person without the ledger.

    Args:
        file: From whomever.
        head: File of heads that the receiver has kept; the largest of the proof's ledger has to be the one that the
            proof was made for.

    Raises:
        UsageError: a file holds something else.
        UnmetError: the proof does not hold; says which part.
    """
    try:
        proof = Proof.from_dict(read_json(file))
    except PlanError as error:
        raise UsageError(f"{file}: {error}; a proof is what `ledger prove` writes") from None
    entry = _proven(proof)
    if head is not None:
        own, _ = heads_of(proof.head.dataset, [head])
        _require_made_for(proof, max(own, key=lambda one: one.size))
    yield from _lines(proof, entry, is_kept=head is not None)


def _proven(proof: Proof) -> Entry:
    """Return the entry of a proof that holds."""
    if not proof.head.is_signed():
        raise UnmetError("the proof's head is not signed by the key that it names; ask for the proof again")
    entry = proof.entry.entry_in(proof.head)
    if entry is None:
        raise UnmetError(
            "the proof's entry is not in the ledger of its head: it was changed, or is of another ledger; ask again"
        )
    since = proof.since
    if since is None:
        return entry
    if not since.is_signed() or since.dataset != proof.head.dataset:
        raise UnmetError(
            "the proof's older head is not a signed head of the same ledger; ask for the proof again"
        )
    parts = [bytes.fromhex(part) for part in proof.consistency]
    roots = bytes.fromhex(since.root), bytes.fromhex(proof.head.root)
    if not verify_consistency(since.size, roots[0], proof.head.size, roots[1], parts):
        raise UnmetError(
            f"the ledger of {proof.head.size} entries does not begin with the {since.size} of the older head: entries "
            "were changed or removed; keep both files and ask the hospital"
        )
    return entry


def _require_made_for(proof: Proof, kept: Head) -> None:
    """Refuse a proof that was not made for the head which the receiver has kept."""
    if proof.since is None or (proof.since.size, proof.since.root) != (kept.size, kept.root):
        raise UnmetError(
            f"the proof was not made for the head that you kept ({kept.size} entries); send that to the hospital, for "
            "`ledger prove --since`"
        )


def _lines(proof: Proof, entry: Entry, *, is_kept: bool) -> Iterator[str]:
    """Yield what a proof that holds shows, for a person."""
    head = proof.head
    yield f"The proof holds: entry {entry.seq} ({entry.kind}, {moment(entry.time)} UTC) is in this ledger."
    yield f"- It says: {describe(entry, {})}"
    yield f"- The ledger: dataset {short(head.dataset)}, {head.size} entries, up to {moment(head.time)} UTC."
    yield "- It is signed by this key. Compare it with the one that the hospital has told you:"
    yield f"    {head.key}"
    if proof.since is None:
        yield (
            "- NOT CHECKED: whether the ledger still contains what it did earlier. For that keep a head, and have the "
            "hospital prove with --since."
        )
        return
    own = "your kept head" if is_kept else "the older head in the proof"
    yield f"- Nothing that {own} contained ({proof.since.size} entries) is missing or changed."
    if not is_kept:
        yield "- NOT CHECKED: whether that is a head you know. Give yours with --head."


def _hashes(value: object) -> tuple[str, ...]:
    """Read a list of hashes."""
    digits = set("0123456789abcdef")
    if not isinstance(value, list) or len(value) > MAX_PROOF:
        raise PlanError("proof", [f"proofs must be lists of at most {MAX_PROOF} hashes"])
    if not all(isinstance(part, str) and len(part) == 64 and set(part) <= digits for part in value):
        raise PlanError("proof", ["a part of a proof must be 64 hexadecimal digits"])
    return tuple(value)
