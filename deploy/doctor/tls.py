"""Checks of TLS: the server's chain, days left of every certificate, the client's pair."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from deploy.doctor.checks import Visit, check
from deploy.doctor.findings import Said, Severity, error, note, ok, skipped, warning
from deploy.doctor.refusals import client_certificate_refused, no_client_certificate

DAYS_LEFT = 30
"""A certificate with fewer days left is warned of: that is how long a renewal may take at a hospital."""

_FORGOTTEN = "No required SSL certificate was sent"
_REFUSED = "The SSL certificate error"
"""What nginx answers, with status 400, to a client without a certificate, and to one whose certificate is not good."""


@check(
    "tls.chain",
    asks="The server's certificate comes from `connection.ca`, for its host name, and it accepts ours.",
    worst=Severity.ERROR,
    way_out="What it names: expired, another CA, another host, client certificate demanded or refused.",
    needs=("net.tcp",),
    on_line=True,
)
def chain(visit: Visit) -> Iterator[Said]:
    """Verify the server, and be accepted by it."""
    done = visit.line.exchange
    trouble = done.tls_trouble
    if done.answer is not None and done.answer.status == 400:
        if _FORGOTTEN in done.answer.body:
            trouble = no_client_certificate(visit.connection)
        elif _REFUSED in done.answer.body:
            trouble = client_certificate_refused(visit.connection, "not issued by its CA, or expired")
    if trouble is not None:
        yield error(trouble.found, trouble.fix)
    else:
        root = "the consortium's root" if visit.connection.ca else "a root that this machine trusts"
        yield ok(f"{done.version} with {visit.connection.address}, certified by {root}")


@check(
    "tls.days-left",
    asks="Days left of the certificates of server, client and CA (fewer than 30: warning; none: error).",
    worst=Severity.ERROR,
    way_out="Have the coordinating centre renew it: the server's there, `connection.certificate` or `.ca` here.",
    on_line=True,
)
def days_left(visit: Visit) -> Iterator[Said]:
    """Tell how long each certificate lasts."""
    connection, now = visit.connection, visit.now()
    # The dates of a server's certificate are of interest most where it does not hold, so it is read either way.
    done = visit.line.exchange
    seen = visit.line.peek() if done.is_refused else done.certificate
    if seen is None:
        yield skipped("the server showed no certificate")
    else:
        found = x509.load_der_x509_certificate(seen)
        yield _lifetime("the server's certificate", found, now, "have the coordinating centre renew it")
    if connection.certificate is not None:
        renew = f"have the coordinating centre issue a new one for {connection.certificate}"
        yield _lifetime_of_file("certificate", connection.certificate, now, renew)
    if connection.ca is not None:
        renew = f"get the new root certificate from the coordinating centre for {connection.ca}"
        yield _lifetime_of_file("ca", connection.ca, now, renew)


@check(
    "tls.client-pair",
    asks="`connection.key` fits `connection.certificate`, which is made out for clients.",
    worst=Severity.ERROR,
    way_out="Have the coordinating centre issue a pair for TLS clients (extended key usage clientAuth).",
    on_line=True,
)
def client_pair(visit: Visit) -> Iterator[Said]:
    """Hold the client's key against its certificate."""
    connection = visit.connection
    if connection.certificate is None or connection.key is None:
        yield skipped("`connection.certificate` is not set")
        return
    certificate = _read_certificates(connection.certificate)
    if not certificate:
        yield error(
            "`connection.certificate` cannot be read, or holds no certificate in PEM",
            f"have the coordinating centre issue one, and put it at {connection.certificate}",
        )
        return
    try:
        key = load_pem_private_key(Path(connection.key).read_bytes(), password=None)
    except (OSError, ValueError, TypeError):
        yield error(
            "`connection.key` cannot be read, or is no private key in PEM without a password",
            f"put the key that was made with the certificate at {connection.key}",
        )
        return
    if certificate[0].public_key() != key.public_key():
        yield error(
            "`connection.key` is not the key of `connection.certificate`",
            f"put the key that was made with the certificate at {connection.key}, or have a new pair issued",
        )
    elif not _is_for_clients(certificate[0]):
        yield error(
            "`connection.certificate` is not made out for TLS clients (no extended key usage clientAuth)",
            f"have the coordinating centre issue one with clientAuth for {connection.certificate}",
        )
    else:
        yield ok("`connection.key` fits `connection.certificate`, which is made out for clients")


def _lifetime_of_file(setting: str, path: str, now: float, renew: str) -> Said:
    """Return how long the first certificate to expire in a file lasts."""
    found = _read_certificates(path)
    if not found:
        return error(f"`connection.{setting}` cannot be read, or holds no certificate in PEM", renew)
    return _lifetime(
        f"`connection.{setting}`", min(found, key=lambda one: one.not_valid_after_utc), now, renew
    )


def _lifetime(what: str, certificate: x509.Certificate, now: float, renew: str) -> Said:
    """Return how long a certificate lasts."""
    ends = certificate.not_valid_after_utc
    days = (ends - datetime.fromtimestamp(now, UTC)).total_seconds() / 86_400
    if days < 0:
        return error(f"{what} expired on {ends:%Y-%m-%d}", renew)
    if certificate.not_valid_before_utc.timestamp() > now:
        return note(f"{what} is valid from {certificate.not_valid_before_utc:%Y-%m-%d} only")
    sentence = f"{what} lasts until {ends:%Y-%m-%d}, {int(days)} days"
    return warning(sentence, renew) if days < DAYS_LEFT else ok(sentence)


def _read_certificates(path: str) -> list[x509.Certificate]:
    """Return the certificates in a PEM file, none if it cannot be read."""
    try:
        return x509.load_pem_x509_certificates(Path(path).read_bytes())
    except (OSError, ValueError):
        return []


def _is_for_clients(certificate: x509.Certificate) -> bool:
    """Return whether a certificate may be used by a TLS client: it says so, or sets no limits."""
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return ExtendedKeyUsageOID.CLIENT_AUTH in usage or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usage
