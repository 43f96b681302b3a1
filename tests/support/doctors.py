"""A coordinating centre on 127.0.0.1 for tests of the doctor: real sockets, real certificates, faults on purpose."""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import trustme

from deploy.doctor.checks import Check, Visit
from deploy.doctor.findings import Finding, Severity
from deploy.site import load_site
from tests.support.audits import SITE_YAML, SPEC

HOST = "127.0.0.1"
ORDER = list(Severity)
Talk = Callable[[socket.socket], None]


@functools.cache
def authority(name: str = "consortium") -> trustme.CA:
    """Return a certificate authority; the same one for the same name."""
    return trustme.CA(organization_name=name)


class Listener:
    """Something that listens on a port of 127.0.0.1, and talks to each who connects in a thread of its own."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._socket = socket.create_server((HOST, 0))
        self._ended = threading.Event()
        self._visitors = 0
        self.address = f"{HOST}:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while not self._ended.is_set():
            try:
                made, _ = self._socket.accept()
            except OSError:
                return
            self._visitors += 1
            threading.Thread(target=self._serve, args=(made,), daemon=True).start()

    def _serve(self, made: socket.socket) -> None:
        with made, contextlib.suppress(OSError):
            made.settimeout(10)
            self._talk(made)

    def had(self, visitors: int) -> bool:
        """Return whether so many came; a connection stands before the one who listens knows of it."""
        ends = time.monotonic() + 2
        while self._visitors < visitors and time.monotonic() < ends:
            time.sleep(0.01)
        return self._visitors == visitors

    def close(self) -> None:
        self._ended.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@contextlib.contextmanager
def listening(talk: Talk) -> Iterator[Listener]:
    """Let something listen while the block runs."""
    made = Listener(talk)
    try:
        yield made
    finally:
        made.close()


def centre(
    *,
    certificate: trustme.LeafCert | None = None,
    clients: trustme.CA | None = None,
    answer: Callable[[], bytes | Iterator[bytes]] | None = None,
    tls: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> Talk:
    """Return a server that speaks TLS and answers one request.

    Args:
        certificate: Its own; default: by the consortium, for 127.0.0.1.
        clients: Demand a certificate of this authority.
        answer: Returns what it answers, perhaps in parts; default: as a healthy SuperLink.
        tls: Newest version.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = tls
    (certificate or authority().issue_cert(HOST)).configure_cert(context)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        clients.configure_trust(context)

    def talk(made: socket.socket) -> None:
        with context.wrap_socket(made, server_side=True) as secure:
            head = b""
            while b"\r\n\r\n" not in head:
                part = secure.recv(4096)
                if not part:
                    return
                head += part
            said = (answer or http)()
            for part in [said] if isinstance(said, bytes) else said:
                secure.sendall(part)

    return talk


def http(status: str = "200 OK", *, body: str = '{"status": "ok"}', ahead: float | None = 0.0) -> bytes:
    """Return an HTTP answer whose Date is so many seconds ahead of now; None leaves it out."""
    date = "" if ahead is None else f"Date: {formatdate(time.time() + ahead, usegmt=True)}\r\n"
    return f"HTTP/1.1 {status}\r\n{date}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def connect_proxy(status: str = "200 Connection established") -> Talk:
    """Return a proxy that opens the way to wherever it is asked for, or answers another status."""

    def talk(made: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += made.recv(4096)
        verb, target, _ = head.decode().split(" ", 2)
        made.sendall(f"HTTP/1.1 {status}\r\nVia: test\r\n\r\n".encode())
        if verb != "CONNECT" or not status.startswith("200"):
            return
        host, _, port = target.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as onward:
            back = threading.Thread(target=_pump, args=(onward, made), daemon=True)
            back.start()
            _pump(made, onward)
            back.join(10)

    return talk


def _pump(one: socket.socket, other: socket.socket) -> None:
    """Pass on everything that comes from one side."""
    with contextlib.suppress(OSError):
        while part := one.recv(65536):
            other.sendall(part)
        other.shutdown(socket.SHUT_WR)


def silent(made: socket.socket) -> None:
    """Accept, and never speak."""
    with contextlib.suppress(OSError):
        while made.recv(4096):
            pass


def free_address() -> str:
    """Return an address of 127.0.0.1 where nothing listens."""
    with socket.create_server((HOST, 0)) as made:
        return f"{HOST}:{made.getsockname()[1]}"


def connection(
    folder: Path, server: str, *, client: trustme.LeafCert | None = None, **more: Any
) -> dict[str, Any]:
    """Return a `connection` section, its files written: the consortium's root, perhaps a client's pair."""
    folder.mkdir(parents=True, exist_ok=True)
    authority().cert_pem.write_to_path(str(folder / "ca.pem"))
    section: dict[str, Any] = {"server": server, "ca": "ca.pem", **more}
    if client is not None:
        client.private_key_pem.write_to_path(str(folder / "client-key.pem"))
        client.cert_chain_pems[0].write_to_path(str(folder / "client.pem"))
        (folder / "client-key.pem").chmod(0o600)
        section |= {"certificate": "client.pem", "key": "client-key.pem"}
    return section


def visit(
    folder: Path, section: dict[str, Any] | None = None, *, timeout_s: float = 5.0, **changes: Any
) -> Visit:
    """Return a visit at a hospital, with a site's file as `tests.support.audits` writes it and a `connection`.

    Args:
        folder: Of the file.
        section: Its `connection`.
        timeout_s: Deadline of a check [s].
        changes: Old text -> new text of the file, if a value is text; else fields of the visit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = SITE_YAML.format(cap=3.0, model=SPEC.hash())
    for old, new in [(old, new) for old, new in changes.items() if isinstance(new, str)]:
        assert old in text
        text = text.replace(old, new)
    if section is not None:
        text += f"connection: {json.dumps(section)}\n"
    file = folder / "site.yaml"
    file.write_text(text)
    fields = {name: value for name, value in changes.items() if not isinstance(value, str)}
    made = {"cache": folder / "cache", "environment": {}, **fields}
    return Visit(site=load_site(file), file=file, timeout_s=timeout_s, **made)


def look(check: Check, visit: Visit) -> list[Finding]:
    """Return what a check finds; no worse than the documentation says, and never without a way out."""
    found = list(check.findings(visit))
    assert found
    for each in found:
        assert each.id == check.id
        assert ORDER.index(each.severity) >= ORDER.index(check.worst)
        assert bool(each.fix) or each.severity in ("ok", "note", "skipped")
        assert "\n" not in each.found + each.fix
    return found


def only(check: Check, visit: Visit) -> Finding:
    """Return the one thing that a check finds."""
    (found,) = look(check, visit)
    return found
