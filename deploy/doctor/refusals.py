"""From what the operating system and OpenSSL say of a connection to a sentence and a way out.

Nothing of an exception's text is passed on: reasons come from its class and its codes.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from datetime import UTC, datetime

from deploy.connection import Address, ConnectionSection

_DEMANDED = ("CERTIFICATE_REQUIRED", "HANDSHAKE_FAILURE")
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE")
_NO_NAME = frozenset((socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)))
_EXPIRED = 10
_NOT_YET = 9
_UNKNOWN_ISSUER = frozenset((18, 19, 20, 21))
_OTHER_NAME = frozenset((62, 64))
"""Codes of OpenSSL's verification (x509_vfy.h): name mismatch, IP address mismatch."""


class Trouble(Exception):  # noqa: N818 - it never leaves this package
    """Something on the line does not work.

    Attributes:
        found: What, one sentence.
        fix: The way out, one sentence.
    """

    def __init__(self, found: str, fix: str) -> None:
        super().__init__(found)
        self.found = found
        self.fix = fix


def of_lookup(hop: Address, error: Exception, connection: ConnectionSection) -> Trouble:
    """Return the trouble of a name that is not found."""
    what = f"the proxy's name {hop.host}" if connection.proxy else f"the server's name {hop.host}"
    setting = "connection.proxy" if connection.proxy else "connection.server"
    way = "" if connection.proxy else ", or set `connection.proxy` where only a proxy may look it up"
    return Trouble(
        f"{what} cannot be looked up ({_code(error)})",
        f"check the spelling of `{setting}` and the DNS servers of this machine{way}",
    )


def of_connect(hop: Address, error: OSError, connection: ConnectionSection) -> Trouble:
    """Return the trouble of a TCP connection that was not made."""
    who = "the proxy" if connection.proxy else "the server"
    if isinstance(error, ConnectionRefusedError):
        return Trouble(
            f"{who} {hop} refuses the connection: nothing listens on that port",
            f"check the port in `connection.{'proxy' if connection.proxy else 'server'}`, and whether it is running",
        )
    if isinstance(error, TimeoutError):
        return Trouble(
            f"{who} {hop} does not answer at all, as when a firewall drops what is sent",
            f"have outbound TCP to {hop} allowed, or set `connection.proxy` if the way out leads through one",
        )
    return Trouble(
        f"no connection to {hop} ({_code(error)})",
        f"check route and firewall of this machine to {hop}, and `connection` in the site's file",
    )


def of_proxy(connection: ConnectionSection, problem: OSError | str) -> Trouble:
    """Return the trouble of a proxy that does not open the way; a text is its HTTP status."""
    server, proxy = connection.address, connection.proxy_address
    if problem == "407":
        return Trouble(
            f"the proxy {proxy} demands a name and password, which Flower cannot give",
            f"have the proxy let this machine through to {server} without a login",
        )
    if isinstance(problem, str):
        said = f"answers {problem}" if problem else "does not answer as an HTTP proxy does"
        return Trouble(
            f"the proxy {proxy} {said} when asked for {server}",
            f"have the proxy allow CONNECT to {server}, or correct `connection.proxy`",
        )
    what = "says nothing" if isinstance(problem, TimeoutError) else f"breaks off ({_code(problem)})"
    return Trouble(
        f"the proxy {proxy} {what} when asked for {server}",
        f"check that `connection.proxy` names an HTTP proxy that allows CONNECT to {server}",
    )


def of_context(setting: str, path: str | None, error: Exception) -> Trouble:
    """Return the trouble of a file of certificates that cannot be used."""
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
        return Trouble(
            f"`connection.{setting}` cannot be read ({_code(error)})",
            f"put the file at {path}, readable by this user",
        )
    if setting == "ca":
        return Trouble(
            "`connection.ca` holds no certificate in PEM",
            f"get the consortium's root certificate from the coordinating centre, and put it at {path}",
        )
    return Trouble(
        "`connection.certificate` and `connection.key` do not go together, or are not PEM without a password",
        f"see tls.client-pair, and replace {path} and its key by a pair that was issued together",
    )


def of_tls(error: OSError, connection: ConnectionSection, now: float | None = None) -> Trouble:
    """Return the trouble of a TLS connection that one of both sides did not accept."""
    server = connection.address
    if isinstance(error, ssl.SSLCertVerificationError):
        return _unverified(error, connection, now)
    reason = getattr(error, "reason", None) or ""
    if isinstance(error, ssl.SSLError) and "ALERT" in reason:
        return _refused(reason, connection)
    if isinstance(error, ssl.SSLError) and reason in _NO_TLS:
        return Trouble(
            f"what listens at {server} does not speak TLS",
            "check the port in `connection.server`; the connection has to be HTTPS",
        )
    if isinstance(error, TimeoutError):
        return Trouble(
            f"{server} accepts the connection and then says nothing",
            "ask the coordinating centre whether the server is well, and whether something between inspects TLS",
        )
    return Trouble(
        f"the TLS connection to {server} breaks off ({_code(error)})",
        "ask the coordinating centre what its server logs, and whether something between inspects TLS",
    )


def of_http(error: Exception, connection: ConnectionSection) -> Trouble:
    """Return the trouble of a request that got no answer, on a TLS connection that stands."""
    server = connection.address
    if isinstance(error, TimeoutError):
        return Trouble(
            f"{server} accepts TLS and does not answer GET /health",
            "ask the coordinating centre whether its server is overloaded or stuck",
        )
    return Trouble(
        f"{server} accepts TLS and breaks off without an answer to GET /health ({_code(error)})",
        "ask the coordinating centre what its server logs; some break off where they miss a client certificate",
    )


def still_waiting(connection: ConnectionSection) -> Trouble:
    """Return the trouble of a server that an earlier check still waits for."""
    return Trouble(
        f"{connection.address} has begun an answer and does not end it",
        "ask the coordinating centre whether its server is overloaded or stuck",
    )


def no_client_certificate(connection: ConnectionSection) -> Trouble:
    """Return the trouble of a server that demands a certificate of this hospital."""
    return Trouble(
        f"{connection.address} demands a client certificate, and the site's file names none",
        "get one from the coordinating centre, and set `connection.certificate` and `connection.key`",
    )


def client_certificate_refused(connection: ConnectionSection, why: str) -> Trouble:
    """Return the trouble of a server that does not accept this hospital's certificate."""
    return Trouble(
        f"{connection.address} refuses this hospital's client certificate ({why})",
        "have the coordinating centre issue a new one for `connection.certificate`; see tls.days-left for its dates",
    )


def _refused(reason: str, connection: ConnectionSection) -> Trouble:
    """Return the trouble of an alert that the server sent."""
    words = reason.rpartition("ALERT_")[2].lower().replace("_", " ")
    if connection.certificate is not None:
        return client_certificate_refused(connection, words)
    if reason.endswith(_DEMANDED):
        return no_client_certificate(connection)
    return Trouble(
        f"{connection.address} refuses the TLS connection ({words})",
        "ask the coordinating centre which TLS versions and certificates its server accepts",
    )


def _unverified(
    error: ssl.SSLCertVerificationError, connection: ConnectionSection, now: float | None
) -> Trouble:
    """Return the trouble of a server whose certificate does not hold."""
    host, code = connection.address.host, error.verify_code
    if code in (_EXPIRED, _NOT_YET):
        what = "has expired" if code == _EXPIRED else "is not valid yet"
        clock = "" if now is None else f", which reads {datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M} UTC"
        return Trouble(
            f"a certificate of {connection.address} {what}",
            f"check this machine's clock{clock}; if it is right, the coordinating centre has to renew the certificate",
        )
    if code in _UNKNOWN_ISSUER:
        root = (
            "`connection.ca`"
            if connection.ca
            else "a root that this machine trusts (`connection.ca` is not set)"
        )
        return Trouble(
            f"the certificate of {connection.address} does not come from {root}: another CA has signed it",
            "get the consortium's root certificate from the coordinating centre for `connection.ca`; if a proxy "
            "inspects TLS, have this server exempted",
        )
    if code in _OTHER_NAME:
        return Trouble(
            f"the certificate at {connection.address} is not made out for {host}",
            "set `connection.server` to the name that the coordinating centre gave, or have it renew the certificate",
        )
    return Trouble(
        f"the certificate of {connection.address} does not hold (OpenSSL code {code})",
        "have the coordinating centre check its certificate chain against the root in `connection.ca`",
    )


def _code(error: BaseException) -> str:
    """Return what kind of failure it is, without its text."""
    if isinstance(error, socket.gaierror):
        return "there is no such name" if error.errno in _NO_NAME else "no DNS server answers"
    number = getattr(error, "errno", None)
    if not isinstance(error, ssl.SSLError) and isinstance(number, int) and number in errno.errorcode:
        return os.strerror(number)
    return getattr(error, "reason", None) or type(error).__name__
