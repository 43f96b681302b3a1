"""Private keys: the authority's, the server's, and the two that a hospital makes for itself.

TLS keys are ECDSA P-256 in PEM. A SuperNode's key is ECDSA P-384 in OpenSSH format without a passphrase: what Flower
1.41 reads with `--auth-supernode-private-key` (tests/unit/provision/test_keys.py loads one with Flower's own loader).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from deploy.provision.failures import AuthorityError, InputError
from privacy.signing import read_secret

SHORTEST_PASSPHRASE = 12

_NODE_HASH = hashes.SHA384()


def create_tls_key() -> ec.EllipticCurvePrivateKey:
    """Return a fresh key for certificates."""
    return ec.generate_private_key(ec.SECP256R1())


def create_node_key() -> ec.EllipticCurvePrivateKey:
    """Return a fresh key by which Flower knows a SuperNode."""
    return ec.generate_private_key(ec.SECP384R1())


def private_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    """Return a key as PEM (PKCS 8), encrypted if there is a passphrase."""
    protection = (
        serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    )
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)


def private_openssh(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a key as OpenSSH keeps it, without a passphrase."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def public_openssh(key: ec.EllipticCurvePublicKey) -> str:
    """Return a public key as a line of OpenSSH, without a comment."""
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def load_node_key(line: str) -> ec.EllipticCurvePublicKey:
    """Return the public key of a SuperNode.

    Raises:
        ValueError: the line is not exactly what `public_openssh` gives for a key on P-384.
    """
    try:
        key = serialization.load_ssh_public_key(line.encode("ascii"))
    except Exception as error:  # a foreign parser, which has errors of many kinds for hostile bytes
        raise ValueError("must be a public key of OpenSSH, `ecdsa-sha2-nistp384 ...`") from error
    if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)):
        raise ValueError(f"must be an ECDSA key on P-384, not {kind_of(key)}")
    if public_openssh(key) != line:
        raise ValueError("must be the key alone, without a comment or anything else")
    return key


def sign_as_node(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """Return the signature of a SuperNode's key."""
    return key.sign(message, ec.ECDSA(_NODE_HASH))


def is_signed_by_node(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    """Return whether a signature is that of a SuperNode's key."""
    try:
        key.verify(signature, message, ec.ECDSA(_NODE_HASH))
    except InvalidSignature:
        return False
    return True


def kind_of(key: object) -> str:
    """Return what a public key is, in a few words."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"one on {key.curve.name}"
    return f"a key of another kind ({type(key).__name__.removesuffix('PublicKey').lstrip('_')})"


def key_hash(key: PublicKeyTypes) -> str:
    """Return the SHA-256 of a public key (SubjectPublicKeyInfo, DER), as 64 hexadecimal digits."""
    return hashlib.sha256(
        key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    ).hexdigest()


def read_passphrase(path: Path | None) -> bytes | None:
    """Return the passphrase in a file: its first line; None without a file.

    Raises:
        InputError: it is too short.
        SigningError: there is no such file, or others than its owner can read it.
    """
    if path is None:
        return None
    passphrase = (read_secret(path).splitlines() or [b""])[0]
    if len(passphrase) < SHORTEST_PASSPHRASE:
        raise InputError(
            f"{path}: a passphrase has at least {SHORTEST_PASSPHRASE} characters, in the first line; take a longer one"
        )
    return passphrase


def load_tls_key(path: Path, passphrase: bytes | None) -> ec.EllipticCurvePrivateKey:
    """Read a private key.

    Raises:
        InputError: the passphrase is missing or wrong.
        AuthorityError: it is no such key.
        SigningError: there is no file, or others than its owner can read it.
    """
    content = read_secret(path)
    if passphrase is None and b"ENCRYPTED" in content:
        raise InputError(f"{path}: needs its passphrase; give --passphrase-file")
    try:
        key = serialization.load_pem_private_key(content, passphrase)
    except TypeError:
        raise InputError(f"{path}: has no passphrase; leave out --passphrase-file") from None
    except (ValueError, UnsupportedAlgorithm):
        if passphrase is not None:
            raise InputError(f"{path}: this is not its passphrase, or the file is damaged") from None
        raise AuthorityError(f"{path}: not a private key in PEM; restore it from the safe") from None
    if not (isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1)):
        raise AuthorityError(f"{path}: holds another kind of key than P-256; restore it from the safe")
    return key
