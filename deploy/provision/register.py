"""The register: every certificate that the authority has issued, and what was revoked, when and why.

JSON lines, and a line is never changed or taken away (tests/unit/provision/test_register.py). An `issued` line holds
the certificate itself, so the register alone says what there is; files beside it are copies.

    {"event": "issued", "kind": "site" or "server", "name", "serial", "not_before", "not_after", "certificate",
     "supernode": its SuperNode's key or null, "ledger": its ledger's key or null}
    {"event": "revoked", "serial", "at", "reason"}

What it does not do: find out that an old copy was put back, unless the list of what was revoked is newer
(`deploy.provision.authority`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from deploy.provision.certificates import is_issued_by
from deploy.provision.failures import AuthorityError
from deploy.provision.keys import key_hash
from privacy.errors import PlanError
from privacy.fields import parse_json, require_fields
from vae.data.durable import write_atomically

Kind = Literal["site", "server"]
Reason = Literal["key-compromise", "superseded", "cessation-of-operation", "privilege-withdrawn"]

REASONS: Mapping[str, x509.ReasonFlags] = {
    "key-compromise": x509.ReasonFlags.key_compromise,
    "superseded": x509.ReasonFlags.superseded,
    "cessation-of-operation": x509.ReasonFlags.cessation_of_operation,
    "privilege-withdrawn": x509.ReasonFlags.privilege_withdrawn,
}
NAME = "register.jsonl"

_ISSUED = (
    "event", "kind", "name", "serial", "not_before", "not_after", "certificate", "supernode", "ledger",
)  # fmt: skip
_REVOKED = ("event", "serial", "at", "reason")


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A certificate that was issued.

    Attributes:
        kind: Of what.
        name: Of the site, or the first host of a server.
        certificate: As it was given out.
        node_key: Of the site's SuperNode, as a line of OpenSSH.
        ledger_key: Of the site's ledger, as 64 hexadecimal digits.
        revoked_at: When it was revoked; None while it is not.
        reason: Why it was revoked.
    """

    kind: Kind
    name: str
    certificate: x509.Certificate
    node_key: str | None
    ledger_key: str | None
    revoked_at: datetime | None = None
    reason: Reason | None = None

    @property
    def serial(self) -> str:
        """Return the serial number, as 40 hexadecimal digits."""
        return f"{self.certificate.serial_number:040x}"

    @property
    def keys(self) -> tuple[str, str | None]:
        """Return what identifies the keys that it was issued to."""
        return key_hash(self.certificate.public_key()), self.node_key

    @property
    def pem(self) -> bytes:
        """Return the certificate as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)


@dataclass(frozen=True, kw_only=True)
class Register:
    """What was issued, in its order, each with its revocation.

    Attributes:
        path: The file.
        issued: All certificates.
    """

    path: Path
    issued: tuple[Issued, ...]

    def of(self, kind: Kind, name: str) -> tuple[Issued, ...]:
        """Return the certificates of a site or server, the newest last."""
        return tuple(one for one in self.issued if (one.kind, one.name) == (kind, name))

    @property
    def revoked(self) -> tuple[Issued, ...]:
        """Return the certificates that were revoked."""
        return tuple(one for one in self.issued if one.revoked_at is not None)


def read_register(path: Path, root: x509.Certificate) -> Register:
    """Return a register, every line checked.

    Raises:
        AuthorityError: a line is not what was written.
        OSError: it cannot be read.
    """
    found: dict[str, Issued] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            for one in _read_line(line, found, root):
                found[one.serial] = one
        except (PlanError, ValueError, x509.InvalidVersion) as error:
            raise AuthorityError(
                f"{path}: line {number}: {error}; keep the file as it is, and restore the newest copy"
            ) from error
    return Register(path=path, issued=tuple(found.values()))


def append_issued(register: Register, one: Issued) -> None:
    """Write down that a certificate was issued."""
    certificate = one.certificate
    fields = {
        "event": "issued",
        "kind": one.kind,
        "name": one.name,
        "serial": one.serial,
        "not_before": moment(certificate.not_valid_before_utc),
        "not_after": moment(certificate.not_valid_after_utc),
        "certificate": one.pem.decode(),
        "supernode": one.node_key,
        "ledger": one.ledger_key,
    }
    _append(register.path, [fields])


def append_revoked(register: Register, revoked: Sequence[Issued], at: datetime, reason: Reason) -> None:
    """Write down that certificates were revoked."""
    fixed = {"at": moment(at), "reason": reason}
    _append(register.path, [{"event": "revoked", "serial": one.serial, **fixed} for one in revoked])


def moment(when: datetime) -> str:
    """Return a time as it is written: `2026-11-27T16:00:00Z`."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _append(path: Path, lines: Sequence[Mapping[str, object]]) -> None:
    """Add lines to a file: all of them or none, whatever happens meanwhile. The authority's lock is held."""
    added = "".join(json.dumps(line, ensure_ascii=True) + "\n" for line in lines)
    write_atomically(path, path.read_bytes() + added.encode())


def _read_line(line: bytes, found: Mapping[str, Issued], root: x509.Certificate) -> Iterator[Issued]:
    """Yield the certificate that a line adds, or changes.

    Raises:
        PlanError: the line is no JSON, or with other keys.
        ValueError: what it says cannot be.
    """
    fields = parse_json(line, subject="line")
    is_revocation = isinstance(fields, Mapping) and fields.get("event") == "revoked"
    fields = require_fields(fields, subject="line", names=_REVOKED if is_revocation else _ISSUED)
    serial, text = fields["serial"], {key: value for key, value in fields.items() if isinstance(value, str)}
    if is_revocation:
        earlier = found.get(str(serial))
        if earlier is None or earlier.revoked_at is not None:
            raise ValueError("revokes a certificate that was not issued, or was revoked before")
        yield replace(earlier, revoked_at=_read_moment(text["at"]), reason=_read_reason(text["reason"]))
        return
    certificate = x509.load_pem_x509_certificate(text["certificate"].encode("ascii"))
    one = Issued(
        kind=_read_kind(text["kind"]),
        name=text["name"],
        certificate=certificate,
        node_key=text.get("supernode"),
        ledger_key=text.get("ledger"),
    )
    span = (moment(certificate.not_valid_before_utc), moment(certificate.not_valid_after_utc))
    if one.serial != serial or span != (text["not_before"], text["not_after"]) or serial in found:
        raise ValueError("serial number and validity must be those of the certificate, which is written once")
    if not is_issued_by(certificate, root):
        raise ValueError("the certificate must be signed by this authority")
    yield one


def _read_moment(text: str) -> datetime:
    """Return a time that `moment` has written."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def _read_reason(text: str) -> Reason:
    """Return a reason."""
    for reason in get_args(Reason):
        if reason == text:
            return reason  # type: ignore[no-any-return]
    raise ValueError(f"reason must be one of {', '.join(REASONS)}")


def _read_kind(text: str) -> Kind:
    """Return a kind."""
    for kind in get_args(Kind):
        if kind == text:
            return kind  # type: ignore[no-any-return]
    raise ValueError("kind must be site or server")
