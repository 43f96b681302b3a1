"""Heads of ledgers and receipts: what travels with an update, and what others keep to witness a ledger.

A `Head` is a site's signed statement of everything in its ledger. A `Receipt` shows that an update was paid for: the
RESERVE and COMMIT entries of its work, with proofs that they are in the ledger of the head, and that this
ledger still contains all that an older, kept head contained.

Guarantees (tests/unit/privacy/test_heads.py): whatever is changed in a receipt, `fault` names it; nothing in
either could name or count patients (deploy/docs/ledger.md lists every field).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from privacy.entries import Entry, decode, releases_of
from privacy.errors import PlanError, TamperedError
from privacy.fields import require_fields
from privacy.merkle import leaf_hash, verify_consistency, verify_inclusion
from privacy.signing import verify

MAX_PROOF = 64
_HEX_DIGITS = frozenset("0123456789abcdef")


@dataclass(frozen=True, kw_only=True)
class Head:
    """A ledger at one moment, signed by its site.

    Attributes:
        dataset: Fingerprint of the dataset.
        root: Merkle root of all entries.
        size: Number of entries, >= 1.
        time: Of the last entry [s since 1970].
        tip: SHA-256 of the last body.
        key: Public key that signs.
        signature: By that key; empty while it is not signed.
    """

    dataset: str
    root: str
    size: int
    time: int
    tip: str
    key: str
    signature: str = ""

    def __post_init__(self) -> None:
        texts = {"dataset": self.dataset, "root": self.root, "tip": self.tip, "key": self.key}
        problems = [
            f"{name} must be 64 hexadecimal digits" for name, text in texts.items() if not _hex(text, 64)
        ]
        problems += [
            f"{name} must be a whole number >= {least}"
            for name, value, least in (("size", self.size, 1), ("time", self.time, 0))
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**53
        ]
        if self.signature and not _hex(self.signature, 128):
            problems.append("signature must be 128 hexadecimal digits")
        if problems:
            raise PlanError("ledger head", problems)

    def statement(self) -> dict[str, Any]:
        """Return what is signed."""
        return {
            "dataset": self.dataset, "root": self.root, "size": self.size, "time": self.time, "tip": self.tip,
        }  # fmt: skip

    def is_signed(self) -> bool:
        """Return whether the signature is that of `key`."""
        return verify(self.key, self.signature, "ledger-head", self.statement())

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, payload: object) -> Head:
        """Read what `to_dict` wrote.

        Raises:
            PlanError: names every problem.
        """
        names = tuple(each.name for each in dataclasses.fields(cls))
        fields: dict[str, Any] = dict(require_fields(payload, subject="ledger head", names=names))
        return cls(**fields)


class Fault(StrEnum):
    """What is wrong with a receipt: a closed set."""

    INVALID = "receipt-invalid"
    OTHER_WORK = "receipt-of-other-work"
    ROLLED_BACK = "ledger-rolled-back"
    FORKED = "ledger-forked"


@dataclass(frozen=True, kw_only=True)
class Proven:
    """An entry, and the proof that it is in the ledger of a head.

    Attributes:
        body: Canonical JSON of the entry.
        proof: Inclusion proof, hexadecimal hashes.
    """

    body: str
    proof: tuple[str, ...]

    def entry_in(self, head: Head) -> Entry | None:
        """Return the entry if it is in the ledger of `head`, else None."""
        try:
            body = self.body.encode()
            entry = decode(body, 0)  # the number is in the body; it need not be 0
            proof = [bytes.fromhex(part) for part in self.proof]
        except (TamperedError, UnicodeEncodeError):
            return None
        proven = verify_inclusion(leaf_hash(body), entry.seq, head.size, proof, bytes.fromhex(head.root))
        return entry if proven else None


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """Shows that an update was paid for.

    Attributes:
        head: Of the site's ledger, which contains both entries.
        reserve: The reservation.
        commit: What was done.
        since: Size of the head that the receiver kept, 0 if none was shown.
        consistency: Proof from that size to this one.
    """

    head: Head
    reserve: Proven
    commit: Proven
    since: int = 0
    consistency: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parts = (*self.reserve.proof, *self.commit.proof, *self.consistency)
        longest = max(len(self.reserve.proof), len(self.commit.proof), len(self.consistency))
        if longest > MAX_PROOF or not all(_hex(part, 64) for part in parts):
            raise PlanError("receipt", [f"proofs must be lists of at most {MAX_PROOF} hashes"])
        if not isinstance(self.since, int) or isinstance(self.since, bool) or self.since < 0:
            raise PlanError("receipt", ["since must be a whole number >= 0"])

    def fault(self, *, run: str, round_: int, base: str, update: str, known: Head | None) -> Fault | None:
        """Return what is wrong with this receipt, None if nothing is.

        Args:
            run: What the update was asked for.
            round_: Its round.
            base: The weights it starts from.
            update: SHA-256 of the update that came with it.
            known: The largest head of this ledger that the receiver has kept.
        """
        if not self.head.is_signed():
            return Fault.INVALID
        reserve, commit = self.reserve.entry_in(self.head), self.commit.entry_in(self.head)
        if reserve is None or commit is None or (reserve.kind, commit.kind) != ("RESERVE", "COMMIT"):
            return Fault.INVALID
        wanted = {"run": run, "round": round_, "base": base}
        if (
            any(reserve.fields[name] != value for name, value in wanted.items())
            or commit.fields["reserve"] != reserve.seq
            or commit.fields["update"] != update
        ):
            return Fault.OTHER_WORK
        return None if known is None else self.break_with(known)

    def break_with(self, known: Head) -> Fault | None:
        """Return how this ledger breaks with an older head of it, None if it only grew."""
        if self.head.dataset != known.dataset:
            return Fault.FORKED
        if self.head.size < known.size:
            return Fault.ROLLED_BACK
        if self.since not in (known.size, 0):
            return Fault.FORKED
        proof = [bytes.fromhex(part) for part in self.consistency]
        grown = verify_consistency(
            known.size, bytes.fromhex(known.root), self.head.size, bytes.fromhex(self.head.root), proof
        )
        return None if grown else Fault.FORKED

    def releases(self) -> tuple[Any, ...]:
        """Return the releases of the reservation; call only where `fault` found none."""
        return releases_of(decode(self.reserve.body.encode(), 0).fields["releases"])

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, payload: object) -> Receipt:
        """Read what `to_dict` wrote.

        Raises:
            PlanError: names every problem.
        """
        names = tuple(each.name for each in dataclasses.fields(cls))
        fields = require_fields(payload, subject="receipt", names=names)
        since: Any = fields["since"]
        return cls(
            head=Head.from_dict(fields["head"]),
            reserve=_proven(fields["reserve"]),
            commit=_proven(fields["commit"]),
            since=since,
            consistency=_texts(fields["consistency"]),
        )


def largest(heads: Sequence[Head]) -> Head | None:
    """Return the head of the most entries, None of none."""
    return max(heads, key=lambda head: head.size, default=None)


def conflict(kept: Head, other: Head) -> Literal["ledger-forked"] | None:
    """Return whether two signed heads of one ledger contradict each other: the same size, another content."""
    same = (kept.dataset, kept.size) == (other.dataset, other.size)
    return "ledger-forked" if same and kept.root != other.root else None


def _proven(payload: object) -> Proven:
    """Read an entry with its proof."""
    fields = require_fields(payload, subject="receipt", names=("body", "proof"))
    body = fields["body"]
    if not isinstance(body, str):
        raise PlanError("receipt", ["body must be text"])
    return Proven(body=body, proof=_texts(fields["proof"]))


def _texts(value: object) -> tuple[str, ...]:
    """Read a list of texts."""
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise PlanError("receipt", ["proofs must be lists of text"])
    return tuple(value)


def _hex(text: object, digits: int) -> bool:
    """Return whether a value is so many lower-case hexadecimal digits."""
    return isinstance(text, str) and len(text) == digits and set(text) <= _HEX_DIGITS
