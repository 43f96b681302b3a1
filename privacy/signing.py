"""Ed25519 keys of a site and of those who approve at it, and signed envelopes (DSSE).

A private key rests as PEM (PKCS 8) that its owner alone can read; a public key is written as 64 hexadecimal digits.
Everything that is signed starts with the name of what it is, so that a signature of one kind is none of another.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rfc8785
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privacy.errors import PlanError, SigningError
from privacy.fields import parse_json, require_fields

AUDIT_TYPE = "application/vnd.federated-vae.audit+json"


class SigningKey:
    """A private Ed25519 key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes_raw().hex()

    def __repr__(self) -> str:
        """Return a text that holds the public part alone."""
        return f"SigningKey({self.public[:16]}...)"

    def sign(self, purpose: str, document: Mapping[str, Any]) -> str:
        """Return the signature of a document for a purpose, as 128 hexadecimal digits."""
        return self._key.sign(message(purpose, document)).hex()

    def sign_bytes(self, text: bytes) -> bytes:
        """Return the raw signature of some bytes."""
        return self._key.sign(text)


def generate_key() -> SigningKey:
    """Return a fresh key."""
    return SigningKey(Ed25519PrivateKey.generate())


def create_key(path: Path) -> SigningKey:
    """Make a key and write it to `path`, readable by its owner alone.

    Raises:
        SigningError: something lies there already; a key is never overwritten.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_secret(path, pem)
    return SigningKey(key)


def load_key(path: Path) -> SigningKey:
    """Read a key.

    Raises:
        SigningError: there is no file, others can read it, or it holds no Ed25519 key.
    """
    try:
        key = serialization.load_pem_private_key(read_secret(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SigningError(f"{path}: not a private key in PEM without a password") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningError(f"{path}: holds another kind of key; an Ed25519 key is needed")
    return SigningKey(key)


def write_secret(path: Path, content: bytes) -> None:
    """Write a secret to a new file that only its owner can read, and flush it to disk.

    Raises:
        SigningError: something lies there already.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise SigningError(
            f"{path}: exists already, and a secret is never overwritten; move it away"
        ) from None
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def read_secret(path: Path) -> bytes:
    """Return what a secret file holds.

    Raises:
        SigningError: there is none, or others than its owner can read it.
    """
    try:
        mode = path.stat().st_mode
        content = path.read_bytes()
    except OSError as error:
        raise SigningError(f"{path}: {error.strerror or 'cannot be read'}") from error
    if mode & 0o077:
        raise SigningError(f"{path}: others can read it (mode {mode & 0o777:o}); chmod 600 {path}")
    return content


def message(purpose: str, document: Mapping[str, Any]) -> bytes:
    """Return the bytes that are signed: `federated-vae/PURPOSE/1`, a line feed, canonical JSON (RFC 8785)."""
    return f"federated-vae/{purpose}/1\n".encode() + rfc8785.dumps(dict(document))


def verify(public: str, signature: str, purpose: str, document: Mapping[str, Any]) -> bool:
    """Return whether `signature` is that of `document` for `purpose` by the key `public`; never raises."""
    try:
        return _verify(public, bytes.fromhex(signature), message(purpose, document))
    except (ValueError, TypeError, rfc8785.CanonicalizationError):
        return False


def seal(payload: bytes, key: SigningKey, *, payload_type: str = AUDIT_TYPE) -> dict[str, Any]:
    """Return a DSSE envelope of a payload.

    References:
        Dead Simple Signing Envelope, version 1.0.2 (protocol.md).
    """
    signature = key.sign_bytes(_pre_authentication(payload_type, payload))
    return {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [{"keyid": key.public, "sig": base64.b64encode(signature).decode()}],
    }


def unseal(envelope: bytes | str, public: str, *, payload_type: str = AUDIT_TYPE) -> bytes:
    """Return the payload of an envelope of a type that the key `public` has signed.

    Raises:
        SigningError: it is no envelope, of another type, or not signed by that key.
    """
    try:
        fields = require_fields(
            parse_json(envelope, subject="envelope"),
            subject="envelope",
            names=("payload", "payloadType", "signatures"),
        )
        payload = base64.b64decode(str(fields["payload"]), validate=True)
        signatures = fields["signatures"]
        listed = (
            [item for item in signatures if isinstance(item, dict)] if isinstance(signatures, list) else []
        )
        raw = [base64.b64decode(str(item.get("sig")), validate=True) for item in listed]
    except (PlanError, binascii.Error, ValueError) as error:
        raise SigningError(f"not a signed envelope: {error}") from error
    if fields["payloadType"] != payload_type:
        raise SigningError(f"the envelope holds {fields['payloadType']!r:.80}, not {payload_type}")
    signed = _pre_authentication(payload_type, payload)
    if not any(_verify(public, one, signed) for one in raw):
        raise SigningError(f"the envelope is not signed by {public}")
    return payload


def _verify(public: str, signature: bytes, signed: bytes) -> bool:
    """Return whether a raw signature is right."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(signature, signed)
    except (InvalidSignature, ValueError):
        return False
    return True


def _pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """Return what DSSE signs: lengths are part of it, so that no other split of the bytes gives the same."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
