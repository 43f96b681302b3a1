"""Checks of the way to the server: name, connection, proxy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from deploy.connection import parse_proxy
from deploy.doctor.checks import Visit, check
from deploy.doctor.findings import Said, Severity, error, ok, warning
from deploy.doctor.refusals import Trouble

_VARIABLES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


@check(
    "net.dns",
    asks="The name of the server, or of the proxy where there is one, can be looked up.",
    worst=Severity.ERROR,
    way_out="Correct `connection.server`, or the DNS servers of this machine.",
    on_line=True,
)
def dns(visit: Visit) -> Iterator[Said]:
    """Look up what this machine itself connects to; behind a proxy, the server's name is the proxy's business."""
    try:
        addresses = visit.line.look_up()
    except Trouble as trouble:
        yield error(trouble.found, trouble.fix)
    else:
        yield ok(f"{visit.line.first_hop.host} is {', '.join(addresses[:4])}")


@check(
    "net.tcp",
    asks="The server accepts a connection, through the proxy (CONNECT) where there is one.",
    worst=Severity.ERROR,
    way_out="Have outbound TCP to `connection.server` allowed, or set `connection.proxy`.",
    needs=("net.dns",),
    on_line=True,
)
def tcp(visit: Visit) -> Iterator[Said]:
    """Connect, and hang up."""
    try:
        visit.line.connect().close()
    except Trouble as trouble:
        yield error(trouble.found, trouble.fix)
    else:
        through = f" through the proxy {visit.line.first_hop}" if visit.connection.proxy else ""
        yield ok(f"{visit.connection.address} accepts connections{through}")


@check(
    "net.proxy",
    asks="`HTTPS_PROXY` and `NO_PROXY`, which Flower goes by, say the same as `connection.proxy`.",
    worst=Severity.WARNING,
    way_out="Set both variables where the SuperNode is started, or correct `connection.proxy`.",
    on_line=True,
)
def proxy(visit: Visit) -> Iterator[Said]:
    """Compare the file with the environment: Flower reads the latter alone."""
    wanted, server = visit.connection.proxy_address, visit.connection.address
    name, text = _variable(visit.environment)
    if text and _is_bypassed(visit.environment, server.host):
        name, text = "NO_PROXY", ""
    if wanted is None and not text:
        yield ok("no proxy, neither in the file nor in the environment")
    elif wanted is None:
        yield warning(
            f"{name} sends Flower through a proxy, and `connection.proxy` names none",
            f"set `connection.proxy` to the same, or add {server.host} to NO_PROXY",
        )
    elif not text:
        why = f"NO_PROXY excepts {server.host}" if name == "NO_PROXY" else "HTTPS_PROXY is not set"
        yield warning(
            f"`connection.proxy` is set, but Flower would go past it: {why}",
            f"set HTTPS_PROXY=http://{wanted} where the SuperNode is started, and take {server.host} out of NO_PROXY",
        )
    elif not _is_same(text, str(wanted)):
        yield warning(
            f"{name} names another proxy than `connection.proxy`",
            f"set {name}=http://{wanted} where the SuperNode is started, or correct `connection.proxy`",
        )
    else:
        yield ok(f"{name} and `connection.proxy` name the same proxy")


def _variable(environment: Mapping[str, str]) -> tuple[str, str]:
    """Return the variable that names a proxy for HTTPS, and what it says; both empty if none does."""
    return next(((name, environment[name]) for name in _VARIABLES if environment.get(name)), ("", ""))


def _is_bypassed(environment: Mapping[str, str], host: str) -> bool:
    """Return whether a host is to be reached without the proxy."""
    excepted = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    names = [name.strip().lower().lstrip("*.") or "*" for name in excepted.split(",") if name.strip()]
    here = host.lower()
    return any(name in ("*", here) or here.endswith(f".{name}") for name in names)


def _is_same(text: str, wanted: str) -> bool:
    """Return whether a variable names a proxy."""
    try:
        return str(parse_proxy(text if "://" in text else f"http://{text}")).lower() == wanted.lower()
    except ValueError:
        return False
