"""How a hospital reaches the coordinating centre: the section `connection` of its `site.yaml`.

Read as strictly as the rest of that file (tests/unit/deploy/test_connection.py). Whether the server answers and the
files hold what they should is for `python -m deploy doctor` to say: nothing is opened here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, Field

from deploy.documents import Document
from deploy.errors import Problem
from deploy.problems import at
from deploy.sections import STRICT, Location

_HOST_AND_PORT = r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?):[0-9]{1,5}"
_ADDRESS = re.compile(_HOST_AND_PORT)
_PROXY = re.compile(rf"http://({_HOST_AND_PORT})/?")


class Address(NamedTuple):
    """Where something listens."""

    host: str
    port: int

    def __str__(self) -> str:
        """Return `host:port`, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Return the address that `host:port` names.

    Raises:
        ValueError: it names none.
    """
    host, _, port = text.rpartition(":")
    if not _ADDRESS.fullmatch(text) or not 1 <= int(port) <= 65535:
        raise ValueError("must be host:port, such as link.example.org:443")
    return Address(host.strip("[]"), int(port))


def parse_proxy(text: str) -> Address:
    """Return the address of a proxy that `http://host:port` names.

    Raises:
        ValueError: it names none.
    """
    found = _PROXY.fullmatch(text)
    if found is None:
        raise ValueError("must be http://host:port, without a name or password")
    return parse_address(found[1])


def _require_address(text: str) -> str:
    """Return a text that is an address."""
    parse_address(text)
    return text


def _require_proxy(text: str) -> str:
    """Return a text that names a proxy."""
    parse_proxy(text)
    return text


Server = Annotated[
    str,
    AfterValidator(_require_address),
    Field(json_schema_extra={"pattern": f"^{_ADDRESS.pattern}$"}),
]
Proxy = Annotated[
    str, AfterValidator(_require_proxy), Field(json_schema_extra={"pattern": f"^{_PROXY.pattern}$"})
]


class ConnectionSection(BaseModel):
    """How this hospital reaches the coordinating centre.

    Attributes:
        server: Its `host:port`, HTTPS.
        ca: Root certificate of the consortium (PEM); null trusts whom this machine trusts.
        certificate: TLS client certificate (PEM), where the centre demands one.
        key: Its private key (PEM, without a password).
        supernode_key: ECDSA private key (OpenSSH, without a password) by which Flower knows this hospital.
        proxy: `http://host:port` of the way out, by CONNECT; null where there is none.
    """

    model_config = STRICT
    server: Server
    ca: Location | None = None
    certificate: Location | None = None
    key: Location | None = None
    supernode_key: Location | None = None
    proxy: Proxy | None = None

    @property
    def address(self) -> Address:
        """Return where the server listens."""
        return parse_address(self.server)

    @property
    def proxy_address(self) -> Address | None:
        """Return where the proxy listens, None without one."""
        return None if self.proxy is None else parse_proxy(self.proxy)


def connection_problems(sections: Mapping[str, Any], document: Document) -> Iterator[Problem]:
    """Yield what is wrong between fields: half a client certificate, one file for two secrets."""
    connection = sections.get("connection")
    if connection is None:
        return
    if (connection.certificate is None) != (connection.key is None):
        there, missing = ("key", "certificate") if connection.certificate is None else ("certificate", "key")
        yield at(document, ("connection", there), f"goes with `connection.{missing}`; give both or neither")
    seen = {sections[name]: name for name in ("ledger", "salt", "key") if sections.get(name) is not None}
    for name in ("key", "supernode_key"):
        path = getattr(connection, name)
        if path in seen:
            rule = f"is the same file as `{seen[path]}`; give it one of its own"
            yield at(document, ("connection", name), rule)
        elif path is not None:
            seen[path] = f"connection.{name}"
