"""Who has a certificate, until when, and what was revoked: for people and for programs. Needs no key."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from deploy.provision.authority import Authority, read_authority
from deploy.provision.register import Issued, moment

SOON = 30
"""Days before its end from which a certificate is said to end soon."""


def overview(folder: Path, now: datetime) -> dict[str, Any]:
    """Return what an authority has issued, as JSON takes it.

    Args:
        folder: Of the authority.
        now: The time, aware.

    Raises:
        InputError: there is none.
        AuthorityError: it is not what was written.
    """
    authority = read_authority(folder)
    issued = sorted(
        authority.register.issued, key=lambda one: (one.kind, one.name, one.certificate.not_valid_before_utc)
    )
    return {
        "authority": authority.name,
        "not_after": moment(authority.root.not_valid_after_utc),
        "days_left": (authority.root.not_valid_after_utc - now).days,
        "crl_number": _crl_number(authority),
        "crl_is_complete": authority.published == authority.revoked,
        "certificates": [_row(one, now) for one in issued],
    }


def render(found: dict[str, Any]) -> str:
    """Return an overview as a table."""
    lines = [
        f"{found['authority']}: good until {found['not_after']}, {found['days_left']} days; "
        f"list of what was revoked: number {found['crl_number']}"
    ]
    if not found["crl_is_complete"]:
        lines.append(
            "NOTE: that list lacks certificates which were revoked; `provision revoke` again publishes them"
        )
    if not found["certificates"]:
        return f"{lines[0]}\nnothing was issued yet\n"
    header = ("kind", "name", "state", "until", "days left", "serial")
    rows = [header, *(_cells(row) for row in found["certificates"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines += [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join(lines) + "\n"


def _row(one: Issued, now: datetime) -> dict[str, Any]:
    """Return a certificate as JSON takes it."""
    certificate = one.certificate
    return {
        "kind": one.kind,
        "name": one.name,
        "serial": one.serial,
        "not_before": moment(certificate.not_valid_before_utc),
        "not_after": moment(certificate.not_valid_after_utc),
        "days_left": (certificate.not_valid_after_utc - now).days,
        "state": _state(one, now),
        "revoked_at": None if one.revoked_at is None else moment(one.revoked_at),
        "reason": one.reason,
    }


def _state(one: Issued, now: datetime) -> str:
    """Return whether a certificate is good now."""
    if one.revoked_at is not None:
        return "revoked"
    if now > one.certificate.not_valid_after_utc:
        return "expired"
    return "valid" if now >= one.certificate.not_valid_before_utc else "not yet valid"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return a line of the table."""
    state, days = row["state"], row["days_left"]
    if state == "revoked":
        state = f"revoked {row['revoked_at'][:10]}, {row['reason']}"
    elif state == "valid" and days < SOON:
        state = "ends soon"
    left = "" if row["state"] in {"revoked", "expired"} else str(days)
    return row["kind"], row["name"], state, row["not_after"][:10], left, row["serial"]


def _crl_number(authority: Authority) -> int:
    """Return the number of the list of what was revoked."""
    return authority.crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
