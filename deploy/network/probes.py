"""Whether a program answers, as the one who started it may ask: HTTP(S) on loopback, or a TCP connection."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

_TIMEOUT_S = 2.0
_OK = 200


def http_health(port: int, authority: Path | None = None) -> Callable[[], bool]:
    """Return what asks GET /health of 127.0.0.1.

    Args:
        port: Port.
        authority: Root that certifies it; None: no TLS.
    """

    def ready() -> bool:
        try:
            if authority is None:
                line = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
            else:
                trusted = ssl.create_default_context(cafile=str(authority))
                line = http.client.HTTPSConnection("127.0.0.1", port, timeout=_TIMEOUT_S, context=trusted)
            with contextlib.closing(line):
                line.request("GET", "/health")
                return line.getresponse().status == _OK
        except (OSError, http.client.HTTPException):
            return False

    return ready


def listens(host: str, port: int) -> Callable[[], bool]:
    """Return what opens a TCP connection."""

    def ready() -> bool:
        try:
            with socket.create_connection((host, port), timeout=_TIMEOUT_S):
                return True
        except OSError:
            return False

    return ready


def answers(socket_path: Path) -> Callable[[], bool]:
    """Return what connects to a Unix socket."""

    def ready() -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(_TIMEOUT_S)
                line.connect(str(socket_path))
                return True
        except OSError:
            return False

    return ready
