"""TLS between two programs of one machine: Flower authenticates SuperNodes over TLS alone, on loopback too.

The pair certifies 127.0.0.1 and nothing else, and its root's key is thrown away once it has signed it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from deploy.provision.certificates import Issuer, root_certificate, server_certificate, span_of
from deploy.provision.files import new_folder

HOST = "127.0.0.1"
_DAYS = 825
_RENEWED_BEFORE = timedelta(days=30)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Files of a certificate for 127.0.0.1.

    Attributes:
        authority: Its root.
        certificate: The certificate.
        key: Its key, mode 0600.
    """

    authority: Path
    certificate: Path
    key: Path


def loopback_pair(folder: Path) -> Pair:
    """Return the pair in a folder, made if there is none or it ends soon.

    Args:
        folder: Of the pair alone; its parent exists.
    """
    pair = Pair(authority=folder / "ca.pem", certificate=folder / "certificate.pem", key=folder / "key.pem")
    now = datetime.now(UTC)
    if pair.certificate.is_file():
        found = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
        if now < found.not_valid_after_utc - _RENEWED_BEFORE:
            return pair
        for file in (pair.certificate, pair.key, pair.authority):
            file.unlink(missing_ok=True)
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    span = span_of(now, _DAYS)
    root = root_certificate(root_key, "loopback", span)
    leaf = server_certificate(
        key.public_key(), [HOST, "localhost"], span, Issuer(certificate=root, key=root_key)
    )
    with new_folder(folder) as partial:
        secret = partial / pair.key.name
        secret.touch(mode=0o600)
        secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        (partial / pair.certificate.name).write_bytes(leaf.public_bytes(Encoding.PEM))
        (partial / pair.authority.name).write_bytes(root.public_bytes(Encoding.PEM))
    return pair
