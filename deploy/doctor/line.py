"""The line to the server, one step after another: look up, connect (through a proxy), TLS, one GET of /health.

Every step has what is left of one time budget, and what goes wrong is a `Trouble` with a sentence and a way out. The
server's certificate is verified against the consortium's root and the host name before anything is sent; `peek` alone
takes any certificate, in order to read its dates, and sends nothing.

What it does not do: retry, or log in at a proxy.
"""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from deploy.connection import Address, ConnectionSection
from deploy.doctor.refusals import (
    Trouble,
    of_connect,
    of_context,
    of_http,
    of_lookup,
    of_proxy,
    of_tls,
    still_waiting,
)

_LONGEST_HEAD = 16_384
_LONGEST_BODY = 4096
_VERDICT_S = 1.0
"""How long a server may take to say what it thinks of a client's certificate, before it is asked anything [s]."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the server answered to GET /health.

    Attributes:
        status: HTTP status.
        date: Its `Date` header, empty without one.
        body: Beginning of the body.
        asked_at: This machine's time when the request was sent [s since 1970].
        answered_at: And when the answer had come.
    """

    status: int
    date: str
    body: str
    asked_at: float
    answered_at: float


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One visit to the server.

    Attributes:
        version: Of TLS, None where it did not come to that.
        certificate: The server's, verified (DER).
        tls_trouble: Why there was no TLS connection that both sides accept.
        is_refused: Whether the server spoke TLS, and one of both sides did not accept the other.
        answer: To GET /health.
        http_trouble: Why there was none, on a connection that stood.
    """

    version: str | None = None
    certificate: bytes | None = None
    tls_trouble: Trouble | None = None
    is_refused: bool = False
    answer: Answer | None = None
    http_trouble: Trouble | None = None


@dataclass(frozen=True, kw_only=True)
class Line:
    """The line to a server.

    Attributes:
        connection: How it is reached.
        budget_s: Time for a visit, all steps together [s].
        now: Returns this machine's time [s since 1970].
    """

    connection: ConnectionSection
    budget_s: float
    now: Callable[[], float]
    _known: list[Exchange] = field(default_factory=list, repr=False)

    @property
    def first_hop(self) -> Address:
        """Return what this machine itself connects to: the proxy, or the server."""
        return self.connection.proxy_address or self.connection.address

    def look_up(self) -> list[str]:
        """Return the IP addresses of the first hop.

        Raises:
            Trouble: there are none.
        """
        try:
            found = socket.getaddrinfo(self.first_hop.host, self.first_hop.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise of_lookup(self.first_hop, error, self.connection) from error
        return sorted({str(address[0]) for *_, address in found})

    def connect(self, ends: float | None = None) -> socket.socket:
        """Return a TCP connection to the server, through the proxy if there is one.

        Args:
            ends: When to give up, by `time.monotonic`; default: the budget from now.

        Raises:
            Trouble: there is none.
        """
        ends = ends or time.monotonic() + self.budget_s
        try:
            made = socket.create_connection(self.first_hop, timeout=_left(ends))
        except OSError as error:
            raise of_connect(self.first_hop, error, self.connection) from error
        if self.connection.proxy is None:
            return made
        try:
            self._ask_proxy(made, ends)
        except BaseException:
            made.close()
            raise
        return made

    @property
    def exchange(self) -> Exchange:
        """Return what came of one visit: TLS, and GET /health on it; made at the first call alone."""
        if not self._known:
            # What others see who ask while the first one waits: `cached_property` would have them wait as well.
            self._known.append(Exchange(tls_trouble=still_waiting(self.connection)))
            self._known.append(self._visit())
        return self._known[-1]

    def _visit(self) -> Exchange:
        """Return what comes of a visit."""
        ends = time.monotonic() + self.budget_s
        try:
            context = self._context()
            with self.connect(ends) as plain:
                plain.settimeout(_left(ends))
                with context.wrap_socket(plain, server_hostname=self.connection.address.host) as secure:
                    return self._ask(secure, ends)
        except Trouble as trouble:
            return Exchange(tls_trouble=trouble)
        except OSError as error:  # ssl.SSLError is one
            why = of_tls(error, self.connection, self.now())
            return Exchange(tls_trouble=why, is_refused=isinstance(error, ssl.SSLError))

    def peek(self) -> bytes | None:
        """Return the server's certificate (DER) whoever made it, None if it shows none. Nothing is sent to it."""
        ends = time.monotonic() + self.budget_s
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        try:
            with self.connect(ends) as plain:
                plain.settimeout(_left(ends))
                with context.wrap_socket(plain, server_hostname=self.connection.address.host) as secure:
                    return secure.getpeercert(binary_form=True)
        except (Trouble, OSError):
            return None

    def _context(self) -> ssl.SSLContext:
        """Return what is demanded of the server, and shown to it.

        Raises:
            Trouble: a file of `connection` cannot be used.
        """
        connection = self.connection
        try:
            context = ssl.create_default_context(cafile=connection.ca)
        except (OSError, ValueError) as error:
            raise of_context("ca", connection.ca, error) from error
        if connection.certificate is not None:
            try:
                # An empty password, or OpenSSL would ask for one at the terminal.
                context.load_cert_chain(connection.certificate, connection.key, password="")
            except (OSError, ValueError) as error:
                raise of_context("certificate", connection.certificate, error) from error
        return context

    def _ask_proxy(self, made: socket.socket, ends: float) -> None:
        """Have the proxy open the way to the server (CONNECT).

        Raises:
            Trouble: it does not.
        """
        server = self.connection.address
        try:
            made.settimeout(_left(ends))
            made.sendall(f"CONNECT {server} HTTP/1.1\r\nHost: {server}\r\n\r\n".encode())
            head = b""
            while b"\r\n\r\n" not in head and len(head) < _LONGEST_HEAD:
                made.settimeout(_left(ends))
                byte = made.recv(1)  # not one more than the head: what follows belongs to TLS
                if not byte:
                    break
                head += byte
        except OSError as error:
            raise of_proxy(self.connection, error) from error
        status = head.split(b" ", 2)[1:2]
        if not head.startswith(b"HTTP/1.") or status != [b"200"]:
            code = status[0].decode("latin-1") if status else ""
            raise of_proxy(self.connection, code if code.isdigit() else "")

    def _ask(self, secure: ssl.SSLSocket, ends: float) -> Exchange:
        """Return what came of GET /health on a TLS connection that stands."""
        version, certificate = secure.version(), secure.getpeercert(binary_form=True)
        request = http.client.HTTPConnection(*self.connection.address)
        request.sock = secure
        asked_at = self.now()
        try:
            _hear(secure, min(_VERDICT_S, _left(ends) / 2))
            secure.settimeout(_left(ends))
            request.request("GET", "/health", headers={"Connection": "close"})
            reply = request.getresponse()
            body = reply.read(_LONGEST_BODY).decode("utf-8", "replace")
        except ssl.SSLError as error:  # with TLS 1.3 a client's certificate is refused only now
            return Exchange(
                version=version, certificate=certificate, tls_trouble=of_tls(error, self.connection)
            )
        except (OSError, http.client.HTTPException) as error:
            trouble = of_http(error, self.connection)
            return Exchange(version=version, certificate=certificate, http_trouble=trouble)
        answer = Answer(
            status=reply.status,
            date=reply.getheader("Date") or "",
            body=body,
            asked_at=asked_at,
            answered_at=self.now(),
        )
        return Exchange(version=version, certificate=certificate, answer=answer)


def _hear(secure: ssl.SSLSocket, longest_s: float) -> None:
    """Wait for what the server says once the handshake is over, on its own account.

    With TLS 1.3 (RFC 8446, 4.4.2.4 and 4.6.1) the client is done before the server has looked at its certificate: what
    comes next is a session ticket, or the alert that says why the certificate is refused. Who writes before has
    nothing of the alert, for the server has closed by then and the write itself fails.

    Args:
        secure: A connection whose handshake is over; it never blocks from here on until a timeout is set.
        longest_s: How long to wait for a server that says nothing, as one that gives no tickets [s].

    Raises:
        ssl.SSLError: the alert.
    """
    if secure.version() != "TLSv1.3":
        return
    select.select([secure], [], [], longest_s)
    secure.settimeout(0)
    with contextlib.suppress(ssl.SSLWantReadError, BlockingIOError):
        secure.recv(1)  # handles tickets; a byte of an answer there cannot be, before a question


def _left(ends: float) -> float:
    """Return the time that is left, a little at least: 0 would mean not to wait at all."""
    return max(0.01, ends - time.monotonic())
