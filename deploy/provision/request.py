"""What a hospital sends to be admitted: one file, made where its private keys stay.

    {"csr": PEM, "kind": "federated-vae site request 1", "ledger": hex or null, "signature": hex, "site": NAME,
     "supernode": "ecdsa-sha2-nistp384 ..."}

Canonical JSON (RFC 8785) and a line feed. The CSR is signed by the TLS key and names the site and the SHA-256 of the
SuperNode's key; the SuperNode's key signs everything but the signature itself. So each key vouches for the other, and
nobody can put a key of theirs beside another site's CSR. Possession of the ledger's key is not shown, only claimed.

Guarantees (tests/unit/provision/test_request.py): a file is accepted only if it is byte for byte what `make_request`
writes; one flipped bit anywhere is refused; no private key is in it. Whether the site is who it says is for two people
to settle: both compare the SHA-256 of the file over the phone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

import rfc8785
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from deploy.provision.certificates import SITE_URN
from deploy.provision.failures import InputError, RequestError
from deploy.provision.keys import (
    is_signed_by_node,
    key_hash,
    kind_of,
    load_node_key,
    public_openssh,
    sign_as_node,
)
from privacy.errors import PlanError
from privacy.fields import parse_json, require_fields
from privacy.signing import message

LARGEST = 8192
"""Bytes of a request; a real one has about 1,300."""
KIND = "federated-vae site request 1"
NODE_URN = "urn:federated-vae:supernode:"
FIELDS = ("csr", "kind", "ledger", "signature", "site", "supernode")

_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SITE_RULE = "must be 1 to 64 letters, digits, `_`, `.` or `-`, beginning with a letter or digit"
_LEDGER_KEY = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = re.compile(r"(?:[0-9a-f]{2}){8,104}")
_PURPOSE = "site-request"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a site asks for; public throughout.

    Attributes:
        site: Its name in the federation.
        tls_key: Of its certificate.
        node_key: Of its SuperNode, as a line of OpenSSH.
        ledger_key: Of its ledger (Ed25519, 64 hexadecimal digits), if it was given.
        fingerprint: SHA-256 of the file, as `sha256sum` prints it.
    """

    site: str
    tls_key: ec.EllipticCurvePublicKey
    node_key: str
    ledger_key: str | None
    fingerprint: str


def require_site(site: str) -> str:
    """Return the name of a site.

    Raises:
        InputError: no site can have it.
    """
    if _SITE.fullmatch(site) is None:
        raise InputError(f"--site {site}: {_SITE_RULE}")
    return site


def make_request(
    site: str,
    *,
    tls_key: ec.EllipticCurvePrivateKey,
    node_key: ec.EllipticCurvePrivateKey,
    ledger_key: str | None,
) -> bytes:
    """Return a request as the file that is sent.

    Args:
        site: Its name.
        tls_key: Of its certificate.
        node_key: Of its SuperNode.
        ledger_key: Public part of the key of its ledger.
    """
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_subject(site))
        .add_extension(_names(site, node_key.public_key()), critical=False)
        .sign(tls_key, hashes.SHA256())
    )
    fields = {
        "csr": csr.public_bytes(serialization.Encoding.PEM).decode(),
        "kind": KIND,
        "ledger": ledger_key,
        "site": site,
        "supernode": public_openssh(node_key.public_key()),
    }
    return _file({**fields, "signature": sign_as_node(node_key, message(_PURPOSE, fields)).hex()})


def parse_request(content: bytes, *, subject: str) -> Request:
    """Return what a file asks for, everything in it checked.

    Args:
        content: What the file holds.
        subject: Its name, for errors.

    Raises:
        RequestError: it is not what `make_request` gives; names the field and the rule.
    """
    try:
        if len(content) > LARGEST:
            raise ValueError(f"is larger than {LARGEST} bytes, and no request is")
        return _parse(content)
    except (ValueError, PlanError) as error:
        problem = str(error).removeprefix("request: ")
        raise RequestError(
            f"{subject}: {problem}; nothing was signed: ask the hospital to send the file again, as an attachment, and "
            "if that does not help to make a new one (`provision request`)"
        ) from error


def fingerprint(content: bytes) -> str:
    """Return the SHA-256 of a file, as `sha256sum` prints it."""
    return hashlib.sha256(content).hexdigest()


def spoken(digits: str) -> str:
    """Return a fingerprint as it is read aloud: four digits at a time."""
    return " ".join(digits[start : start + 4] for start in range(0, len(digits), 4))


def _parse(content: bytes) -> Request:
    """Check all of a request.

    Raises:
        PlanError: it is no JSON, a key occurs twice, is missing or unknown.
        ValueError: a field is wrong.
    """
    fields = require_fields(parse_json(content, subject="request"), subject="request", names=FIELDS)
    site, ledger = fields["site"], fields["ledger"]
    if fields["kind"] != KIND:
        raise ValueError(f"kind: must be `{KIND}`; site and centre need the same version of this software")
    if not isinstance(site, str) or _SITE.fullmatch(site) is None:
        raise ValueError(f"site {site!r:.80}: {_SITE_RULE}")
    if ledger is not None and not (isinstance(ledger, str) and _LEDGER_KEY.fullmatch(ledger)):
        raise ValueError("ledger: must be an Ed25519 key as 64 hexadecimal digits, or null")
    line = _text(fields, "supernode")
    try:
        node_key = load_node_key(line)
    except ValueError as error:
        raise ValueError(f"supernode: {error}") from error
    tls_key = _check_csr(_text(fields, "csr"), site, node_key)
    _check_signature(fields, node_key)
    if _file(fields) != content:
        raise ValueError(
            "is not written as `provision request` writes it (RFC 8785); it was changed on the way"
        )
    return Request(
        site=site, tls_key=tls_key, node_key=line, ledger_key=ledger, fingerprint=fingerprint(content)
    )


def _check_csr(text: str, site: str, node_key: ec.EllipticCurvePublicKey) -> ec.EllipticCurvePublicKey:
    """Return the key of a CSR that is signed by it, for that site and that SuperNode, and holds nothing else.

    Raises:
        ValueError: it is another.
    """
    try:
        csr = x509.load_pem_x509_csr(text.encode("ascii"))
        key = csr.public_key()
        names = [extension.value for extension in csr.extensions]
    except Exception as error:  # a foreign parser, which has errors of many kinds for hostile bytes
        raise ValueError("csr: must be a certificate signing request in PEM") from error
    if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)):
        raise ValueError(f"csr: must be for an ECDSA key on P-256, not {kind_of(key)}")
    if not (_is_sha256(csr) and csr.is_signature_valid):
        raise ValueError("csr: must be signed by its own key, with SHA-256")
    if csr.subject != _subject(site):
        raise ValueError(f"csr: is for {csr.subject.rfc4514_string()!r:.80}, not for the site {site!r}")
    if names != [_names(site, node_key)]:
        raise ValueError("csr: must name this site and the SuperNode's key beside it, and nothing else")
    if csr.public_bytes(serialization.Encoding.PEM).decode() != text:
        raise ValueError("csr: must be one PEM block and nothing else")
    return key


def _check_signature(fields: Mapping[str, object], node_key: ec.EllipticCurvePublicKey) -> None:
    """Check that the SuperNode's key has signed the rest.

    Raises:
        ValueError: it has not.
    """
    signature = _text(fields, "signature")
    signed = message(_PURPOSE, {name: fields[name] for name in FIELDS if name != "signature"})
    well_formed = _SIGNATURE.fullmatch(signature) is not None
    if not (well_formed and is_signed_by_node(node_key, bytes.fromhex(signature), signed)):
        raise ValueError("signature: must be that of the SuperNode's key over the other fields")


def _text(fields: Mapping[str, object], name: str) -> str:
    """Return a field that has to be text.

    Raises:
        ValueError: it is not.
    """
    value = fields[name]
    if not isinstance(value, str):
        raise ValueError(f"{name}: must be text")
    return value


def _file(fields: Mapping[str, object]) -> bytes:
    """Return fields as the bytes of a file."""
    return rfc8785.dumps(dict(fields)) + b"\n"  # type: ignore[arg-type]


def _is_sha256(csr: x509.CertificateSigningRequest) -> bool:
    """Return whether a CSR is signed over SHA-256."""
    try:
        return isinstance(csr.signature_hash_algorithm, hashes.SHA256)
    except UnsupportedAlgorithm:
        return False


def _subject(site: str) -> x509.Name:
    """Return the subject of a site's CSR."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])


def _names(site: str, node_key: ec.EllipticCurvePublicKey) -> x509.SubjectAlternativeName:
    """Return what a site's CSR names: the site, and the SuperNode's key."""
    names = (SITE_URN + site, NODE_URN + key_hash(node_key))
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name) for name in names])
