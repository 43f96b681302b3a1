"""The consortium's authority: a folder at the centre, its lock, and who may sign with its key.

    FOLDER/ca.key           the root's private key (mode 0600, with a passphrase if one was given)
    FOLDER/ca.pem           the root, for everybody
    FOLDER/crl.pem          what was revoked, for the proxy in front of the server
    FOLDER/register.jsonl   what was issued (`deploy.provision.register`)
    FOLDER/sites/NAME/      a site's newest certificate and SuperNode key: copies
    FOLDER/.lock            held by each verb that writes

Guarantees (tests/unit/provision/test_authority.py): the folder appears whole or not at all and is never made over
another; two verbs that write take turns; a key that is not the root's, and a register older than the list of what was
revoked, are refused before anything is written.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from filelock import FileLock, Timeout

from deploy.provision.certificates import Issuer, Span, revocation_list, root_certificate, span_of
from deploy.provision.failures import AuthorityError, InputError
from deploy.provision.files import new_folder, require_free
from deploy.provision.keys import create_tls_key, load_tls_key, private_pem
from deploy.provision.register import NAME as REGISTER_NAME
from deploy.provision.register import Register, read_register
from vae.data.durable import READABLE, write_atomically

KEY_NAME, ROOT_NAME, CRL_NAME, LOCK_NAME = "ca.key", "ca.pem", "crl.pem", ".lock"
LOCK_TIMEOUT_S = 60.0

_AUTHORITY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 _.-]{0,62}[A-Za-z0-9_.-])?")


@dataclass(frozen=True, kw_only=True)
class Authority:
    """An authority as it was when its folder was read.

    Attributes:
        folder: Where it lies.
        root: Its certificate.
        register: What it has issued.
        crl: What it has published as revoked.
    """

    folder: Path
    root: x509.Certificate
    register: Register
    crl: x509.CertificateRevocationList

    @property
    def name(self) -> str:
        """Return the name that it was made with."""
        return str(self.root.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)

    @property
    def published(self) -> set[str]:
        """Return the serial numbers that are published as revoked."""
        return {f"{entry.serial_number:040x}" for entry in self.crl}

    @property
    def revoked(self) -> set[str]:
        """Return the serial numbers that were revoked by the register."""
        return {one.serial for one in self.register.revoked}


def create(
    folder: Path, name: str, *, days: int, passphrase: bytes | None, now: datetime
) -> x509.Certificate:
    """Make an authority and return its root.

    Args:
        folder: Where; nothing may lie there.
        name: Of the consortium.
        days: How long the root is good.
        passphrase: Of its key.
        now: The time, aware.

    Raises:
        InputError: something lies there already, or the name cannot be used.
    """
    if _AUTHORITY.fullmatch(name) is None:
        raise InputError(
            f"--name {name}: must be 1 to 64 letters, digits, spaces, `_`, `.` or `-`; it is in every certificate"
        )
    require_free(folder)
    key = create_tls_key()
    root = root_certificate(key, name, span_of(now, days))
    crl = revocation_list((), 1, now, Issuer(certificate=root, key=key))
    with new_folder(folder) as partial:
        write_atomically(partial / KEY_NAME, private_pem(key, passphrase))
        for file in (REGISTER_NAME, LOCK_NAME):
            write_atomically(partial / file, b"")
        for file, made in ((ROOT_NAME, root), (CRL_NAME, crl)):
            write_atomically(partial / file, made.public_bytes(serialization.Encoding.PEM), mode=READABLE)
    return root


def read_authority(folder: Path) -> Authority:
    """Return an authority without its key.

    Raises:
        InputError: there is none in the folder.
        AuthorityError: a file of it is not what was written.
    """
    if not (folder / ROOT_NAME).is_file():
        raise InputError(
            f"{folder}: there is no authority; make one: python -m deploy provision authority {folder}"
        )
    try:
        root = x509.load_pem_x509_certificate((folder / ROOT_NAME).read_bytes())
        crl = x509.load_pem_x509_crl((folder / CRL_NAME).read_bytes())
    except (ValueError, x509.InvalidVersion) as error:
        raise AuthorityError(
            f"{folder}: {ROOT_NAME} or {CRL_NAME} is damaged; restore both from the newest copy"
        ) from error
    public = root.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey) or not crl.is_signature_valid(public):
        raise AuthorityError(
            f"{folder / CRL_NAME}: is not of this authority; restore it from the newest copy"
        )
    register = read_register(folder / REGISTER_NAME, root)
    authority = Authority(folder=folder, root=root, register=register, crl=crl)
    if missing := authority.published - authority.revoked:
        raise AuthorityError(
            f"{register.path}: does not hold that {min(missing)} was revoked, and {CRL_NAME} does: an older copy was "
            "put back; restore the newest one"
        )
    return authority


@contextlib.contextmanager
def writing(folder: Path, passphrase: bytes | None) -> Iterator[tuple[Authority, Issuer]]:
    """Hold an authority's lock, and yield what it is now, with its key.

    Raises:
        InputError: there is none in the folder, or its passphrase is another.
        AuthorityError: it is not what was written, or another program holds it too long.
        SigningError: the key cannot be read, or others can read it.
    """
    if not (folder / ROOT_NAME).is_file():
        read_authority(folder)
    lock = FileLock(folder / LOCK_NAME, timeout=LOCK_TIMEOUT_S, mode=0o600)
    try:
        lock.acquire()
    except Timeout:
        raise AuthorityError(
            f"{folder}: another `provision` has been writing for {LOCK_TIMEOUT_S:.0f} s; wait until it has ended"
        ) from None
    try:
        authority = read_authority(folder)
        key = load_tls_key(folder / KEY_NAME, passphrase)
        if key.public_key() != authority.root.public_key():
            raise AuthorityError(
                f"{folder / KEY_NAME}: is not the key of {ROOT_NAME}; restore it from the safe"
            )
        yield authority, Issuer(certificate=authority.root, key=key)
    finally:
        lock.release()


def span_within(root: x509.Certificate, days: int, now: datetime) -> Span:
    """Return a validity of some days that ends before the root does.

    Raises:
        InputError: it would not.
    """
    span = span_of(now, days)
    if span.not_after > root.not_valid_after_utc:
        left = max(0, (root.not_valid_after_utc - now.replace(microsecond=0)).days)
        raise InputError(
            f"--days {days}: the root itself is good for {left} more days; give fewer, or make a new authority"
        )
    return span
