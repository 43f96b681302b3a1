"""X.509 as this federation uses it: one root, below it certificates of servers and of sites, and what was revoked.

    root    BasicConstraints CA, path length 0; signs certificates and revocations, nothing else
    server  serverAuth, with the names and addresses that it is reached by
    site    clientAuth, CN = the site's name, SAN URI urn:federated-vae:site:NAME

Everything is signed by ECDSA P-256 with SHA-256. Validity starts five minutes before now, for clocks that are behind.
Guarantees (tests/unit/provision/test_tls.py, by Python's `ssl`): a site's certificate is accepted as a client's alone,
a server's as a server's alone, no certificate can sign another, and a serial number is random.
What it does not do: intermediate authorities, OCSP. The list of what was revoked never runs out before the root does:
who puts it on the proxy owns the proxy, and a list that runs out would lock every hospital out at once.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy.provision.failures import InputError

SKEW = timedelta(minutes=5)
SITE_URN = "urn:federated-vae:site:"

_SHA256 = hashes.SHA256()
_LONGEST_COMMON_NAME = 64  # X.520: ub-common-name
_LABEL = r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)"
_HOST = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")


@dataclass(frozen=True, kw_only=True)
class Issuer:
    """Who signs: the root and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


@dataclass(frozen=True, kw_only=True)
class Span:
    """From when to when a certificate is good, aware, UTC, whole seconds."""

    not_before: datetime
    not_after: datetime


def span_of(now: datetime, days: int) -> Span:
    """Return a validity of some days from now."""
    now = now.replace(microsecond=0)
    return Span(not_before=now - SKEW, not_after=now + timedelta(days=days))


def root_certificate(key: ec.EllipticCurvePrivateKey, name: str, span: Span) -> x509.Certificate:
    """Return the consortium's root, signed by its own key."""
    builder = _builder(name, key.public_key(), span).issuer_name(_name(name))
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, _SHA256)
    )


def server_certificate(
    public: ec.EllipticCurvePublicKey, hosts: Sequence[str], span: Span, issuer: Issuer
) -> x509.Certificate:
    """Return a server's certificate.

    Args:
        public: The server's key.
        hosts: Names and addresses, each as `host_name` takes it; at least one.
        span: Its validity.
        issuer: Who signs.
    """
    common = hosts[0] if len(hosts[0]) <= _LONGEST_COMMON_NAME else "server"
    names = x509.SubjectAlternativeName([host_name(host) for host in hosts])
    return _leaf(_builder(common, public, span), names, ExtendedKeyUsageOID.SERVER_AUTH, issuer)


def site_certificate(
    public: ec.EllipticCurvePublicKey, site: str, span: Span, issuer: Issuer
) -> x509.Certificate:
    """Return a site's certificate: it can open connections, nothing else."""
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(SITE_URN + site)])
    return _leaf(_builder(site, public, span), names, ExtendedKeyUsageOID.CLIENT_AUTH, issuer)


def revocation_list(
    revoked: Iterable[tuple[int, datetime, x509.ReasonFlags]], number: int, now: datetime, issuer: Issuer
) -> x509.CertificateRevocationList:
    """Return the list of what was revoked.

    Args:
        revoked: Serial number, when and why, of each.
        number: Of the list; has to grow.
        now: When it is made.
        issuer: Who signs.
    """
    root = issuer.certificate
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(root.subject)
        .last_update(now.replace(microsecond=0) - SKEW)
        .next_update(root.not_valid_after_utc)
        .add_extension(_authority_key(root), critical=False)
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    for serial, at, reason in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at)
        builder = builder.add_revoked_certificate(
            entry.add_extension(x509.CRLReason(reason), critical=False).build()
        )
    return builder.sign(issuer.key, _SHA256)


def host_name(host: str) -> x509.GeneralName:
    """Return a DNS name or an IP address as certificates hold it.

    Raises:
        InputError: it is neither.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    # 10.0.0.300 is a mistyped address: no name ends in digits alone.
    if _HOST.fullmatch(host) is None or host.rpartition(".")[2].isdigit():
        raise InputError(
            f"HOST {host}: must be a DNS name (letters, digits, hyphens, dots; no wildcard) or an IP address"
        )
    return x509.DNSName(host.lower())


def is_issued_by(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    """Return whether the root has signed a certificate."""
    try:
        certificate.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _builder(common_name: str, public: ec.EllipticCurvePublicKey, span: Span) -> x509.CertificateBuilder:
    """Return what every certificate has: subject, key, random serial number, validity, identifier of its key."""
    return (
        x509.CertificateBuilder()
        .subject_name(_name(common_name))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(span.not_before)
        .not_valid_after(span.not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _leaf(
    builder: x509.CertificateBuilder,
    names: x509.SubjectAlternativeName,
    purpose: x509.ObjectIdentifier,
    issuer: Issuer,
) -> x509.Certificate:
    """Return a certificate that signs no other, for one purpose."""
    return (
        builder.issuer_name(issuer.certificate.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(names, critical=False)
        .add_extension(_authority_key(issuer.certificate), critical=False)
        .sign(issuer.key, _SHA256)
    )


def _authority_key(root: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """Return the identifier of the root's key, as what it signs holds it."""
    own = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """Return what a key may do: sign certificates and revocations, or connections."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    """Return a subject that is a common name alone."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
