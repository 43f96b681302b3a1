"""What was revoked: an entry of the register, and the list that the proxy reads.

The register is written first, and the list is made of it alone: its number is 1 and one more for each certificate that
was revoked. Where a disk fails in between, the same command publishes what is missing.

Guarantees (tests/unit/provision/test_revoking.py): the list's number grows; no revocation is ever taken back;
nothing of another site is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from deploy.problems import nearest
from deploy.provision.authority import CRL_NAME, Authority, read_authority, writing
from deploy.provision.certificates import Issuer, revocation_list
from deploy.provision.failures import AuthorityError, InputError
from deploy.provision.register import REASONS, Issued, Kind, Reason, append_revoked
from vae.data.durable import READABLE, write_atomically


def revoke(
    folder: Path,
    name: str,
    reason: Reason,
    *,
    kind: Kind,
    keep_newest: bool,
    now: datetime,
    passphrase: bytes | None,
) -> tuple[Issued, ...]:
    """Revoke the certificates of a site or server, publish the list, and return what was revoked.

    Args:
        folder: Of the authority.
        name: Of the site, or first host of the server.
        reason: Why.
        kind: Which of both.
        keep_newest: Only those before the newest: after a renewal.
        now: The time, aware.
        passphrase: Of the authority's key.

    Raises:
        InputError: there is no such site or server.
        AuthorityError: there is nothing to revoke, or the authority is not what was written.
    """
    with writing(folder, passphrase) as (authority, issuer):
        found = _find(authority, name, kind)
        _require_sound_rest(found, reason, keep_newest=keep_newest)
        rest = tuple(one for one in (found[:-1] if keep_newest else found) if one.revoked_at is None)
        if rest:
            append_revoked(authority.register, rest, now, reason)
        elif authority.published == authority.revoked:
            raise AuthorityError(
                f"{name}: nothing is left to revoke; `provision list` shows what was, and when"
            )
        _publish(read_authority(folder), issuer, now)
        return rest


def _publish(authority: Authority, issuer: Issuer, now: datetime) -> None:
    """Write the list of everything that the register says was revoked."""
    entries = [
        (one.certificate.serial_number, one.revoked_at, REASONS[one.reason])
        for one in authority.register.revoked
        if one.revoked_at is not None and one.reason is not None
    ]
    crl = revocation_list(entries, 1 + len(entries), now, issuer)
    content = crl.public_bytes(serialization.Encoding.PEM)
    write_atomically(authority.folder / CRL_NAME, content, mode=READABLE)


def _find(authority: Authority, name: str, kind: Kind) -> tuple[Issued, ...]:
    """Return the certificates of a site or server.

    Raises:
        InputError: there is none.
    """
    found = authority.register.of(kind, name)
    if not found:
        near = nearest(name, {one.name for one in authority.register.issued if one.kind == kind})
        hint = f"; did you mean `{near}`?" if near else "; `provision list` shows all"
        raise InputError(f"{name}: there is no such {kind}{hint}")
    return found


def _require_sound_rest(found: Sequence[Issued], reason: Reason, *, keep_newest: bool) -> None:
    """Refuse to keep a certificate whose keys are said to be compromised.

    Raises:
        AuthorityError: that would be so.
    """
    newest = set(found[-1].keys) - {None}
    if keep_newest and reason == "key-compromise" and any(newest & set(one.keys) for one in found[:-1]):
        raise AuthorityError(
            f"{found[-1].name}: the newest certificate has the same keys; leave out --keep-newest, and the hospital "
            "makes new ones (`provision request`)"
        )
