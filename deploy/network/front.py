"""nginx before the SuperLink: what hospitals reach of a centre.

It demands a certificate of the consortium, refuses those that were revoked, passes on Flower's Fleet API and the
health endpoint alone, and bounds what anybody can make the SuperLink hold: bytes of a request, connections, waiting.

    a study of flwr 1.41 without it      one POST of 2 GiB, not even authenticated, takes 3.9 GiB of memory;
                                         1,007 idle connections stop a server

What it does not do: it does not bind a certificate to the SuperNode that uses it. Who a SuperNode is, Flower tells by
the node's own key; the certificate only says that it comes from a member.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, Field

from deploy.ledger.failures import UsageError
from deploy.network.loopback import Pair
from deploy.network.probes import listens
from deploy.network.programs import Program, environment
from deploy.sections import STRICT, Location

_TEMPLATES = Path(__file__).parent / "templates"
_PLACES = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin"

MAX_BODY = "16m"
"""Largest request: Flower 1.41 sends objects in pieces of 5 MiB."""


class FrontSection(BaseModel):
    """How hospitals reach the centre.

    Attributes:
        host: Address to listen at; 0.0.0.0 for all.
        port: Port, the one that firewalls let through.
        certificate: The server's, PEM.
        key: Its key.
        authority: Root of the consortium: who has a certificate of it may connect.
        revoked: What was revoked (PEM), as `provision` writes it.
    """

    model_config = STRICT
    host: Annotated[str, Field(min_length=1)] = "0.0.0.0"  # noqa: S104 - hospitals come from outside
    port: Annotated[int, Field(ge=1, le=65535)] = 8443
    certificate: Location
    key: Location
    authority: Location
    revoked: Location


def front_program(front: FrontSection, link_port: int, pair: Pair, folder: Path) -> Program:
    """Return nginx before the SuperLink, its configuration written.

    Args:
        front: Where it listens, and its files.
        link_port: Of the SuperLink on loopback.
        pair: The SuperLink's.
        folder: nginx's own.

    Raises:
        UsageError: nginx is not installed.
    """
    text = render(
        "front.conf",
        folder=folder,
        front=front,
        link_port=link_port,
        pair=pair,
        max_body=MAX_BODY,
    )
    host = "127.0.0.1" if front.host in {"0.0.0.0", "::"} else front.host  # noqa: S104
    return nginx("front", text, folder, host=host, port=front.port)


def relay_program(
    *, server: str, port: int, link: Pair, authority: str | None, certificate: str, key: str, folder: Path
) -> Program:
    """Return nginx at a hospital, which shows the hospital's certificate in place of the SuperNode.

    Args:
        server: `host:port` of the centre.
        port: Where it listens on 127.0.0.1.
        link: Its own pair, for the SuperNode.
        authority: Root of the consortium; None: those that this machine trusts.
        certificate: The hospital's.
        key: Its key.
        folder: nginx's own.

    Raises:
        UsageError: nginx is not installed.
    """
    name = server.rpartition(":")[0].strip("[]")
    text = render(
        "relay.conf",
        folder=folder,
        server=server,
        server_name=name,
        port=port,
        link=link,
        authority=authority or "/etc/ssl/certs/ca-certificates.crt",
        certificate=certificate,
        key=key,
        max_body=MAX_BODY,
    )
    return nginx("relay", text, folder, host="127.0.0.1", port=port)


def nginx(name: str, text: str, folder: Path, *, host: str, port: int) -> Program:
    """Return an nginx of our own: no file of the system's is read or written.

    Raises:
        UsageError: it is not installed.
    """
    program = find_nginx()
    if program is None:
        raise UsageError(f"{name}: needs nginx, which is not installed; install it (Debian: nginx-light)")
    (folder / "temporary").mkdir(parents=True, exist_ok=True, mode=0o700)
    file = folder / "nginx.conf"
    file.write_text(text)
    return Program(
        name=name,
        argv=(program, "-e", "stderr", "-p", str(folder), "-c", str(file)),
        environment=environment(folder),
        ready=listens(host, port),
    )


def find_nginx() -> str | None:
    """Return the path of nginx, None where it is not installed."""
    return shutil.which("nginx", path=_PLACES)


def render(template: str, **values: object) -> str:
    """Return one of the configurations in `templates`, filled in."""
    engine = Environment(  # noqa: S701 - no HTML
        loader=FileSystemLoader(_TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return engine.get_template(template).render(**values) + "\n"
