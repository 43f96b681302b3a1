"""A hospital's programs, from its `site.yaml`.

agent      data, GPU, policy, ledger, keys; the rest holds none of these
relay      nginx that shows the hospital's client certificate, where the centre demands one
supernode  Flower's client of the centre; every connection goes out from here
superexec  starts the ClientApp of a message, which asks the agent through its socket
"""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path

from deploy.connection import ConnectionSection
from deploy.ledger.failures import UsageError
from deploy.network.bundle import bundle_folder
from deploy.network.front import relay_program
from deploy.network.loopback import HOST, loopback_pair
from deploy.network.probes import answers, http_health
from deploy.network.programs import Program, environment, flower, secret_file
from deploy.site import NodeSection, SiteConfig

_ACTIVATED = "SuperNode ID: "
"""What Flower 1.41's SuperNode logs once the centre has accepted its key; before, its health endpoint is well too."""


def hospital_programs(config: SiteConfig, file: Path) -> list[Program]:
    """Return a hospital's programs, in the order in which they start; folders and secrets are made.

    Args:
        config: Of the hospital.
        file: Where it was read from.

    Raises:
        UsageError: a section is missing, or the programs cannot run together on one machine.
    """
    node, connection = sections_of(config, file)
    folder = Path(node.folder)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    socket = _socket(config, file)
    agent = Program(
        name="agent",
        argv=(sys.executable, "-m", "deploy", "agent", "--site", str(file.absolute())),
        environment=environment(folder / "agent", PYTHONPATH=str(bundle_folder())),
        ready=answers(socket),
    )
    programs = [agent]
    server, root = connection.server, connection.ca
    if connection.certificate is not None and connection.key is not None:
        pair = loopback_pair(folder / "loopback")
        relay = relay_program(
            server=connection.server,
            port=node.relay_port,
            link=pair,
            authority=connection.ca,
            certificate=connection.certificate,
            key=connection.key,
            folder=folder / "relay",
        )
        programs.append(relay)
        server, root = f"{HOST}:{node.relay_port}", str(pair.authority)
    secret = secret_file(folder / "superexec.secret")
    programs.append(
        Program(
            name="supernode",
            argv=(
                flower("flower-supernode"),
                *(("--root-certificates", root) if root is not None else ()),
                *("--superlink", server),
                *("--auth-supernode-private-key", str(connection.supernode_key)),
                *("--node-config", f'site="{config.site}" agent="{socket}"'),
                *("--host", HOST, "--port", str(node.port)),
                *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
            ),
            environment=environment(folder / "supernode", **_proxy(connection)),
            ready=http_health(node.port),
            says=_ACTIVATED,
        )
    )
    programs.append(
        Program(
            name="superexec",
            argv=(
                flower("flower-superexec"),
                *("--insecure", "--runtime-api-address", f"{HOST}:{node.port}"),
                *("--superexec-auth-secret-file", str(secret)),
            ),
            environment=environment(folder / "superexec"),
        )
    )
    return programs


def sections_of(config: SiteConfig, file: Path) -> tuple[NodeSection, ConnectionSection]:
    """Return what says how a hospital joins.

    Raises:
        UsageError: a section is missing.
    """
    node, connection = config.node, config.connection
    if node is None or connection is None:
        missing = "node" if node is None else "connection"
        raise UsageError(f"{file}: has no `{missing}` section, which joining needs; add one")
    if connection.supernode_key is None:
        raise UsageError(
            f"{file}: `connection.supernode_key` is not set, by which the centre knows this hospital; make it with "
            "`python -m deploy provision request`"
        )
    if connection.proxy is not None and connection.certificate is not None:
        raise UsageError(
            f"{file}: `connection.proxy` and `connection.certificate` do not go together in `join`: nginx cannot "
            f"speak through a proxy; have {connection.server} opened in the firewall instead"
        )
    if connection.certificate is not None and _is_ip(connection.address.host):
        raise UsageError(
            f"{file}: `connection.server` is an IP address, and nginx compares a certificate with names alone; give "
            "the name of the centre"
        )
    return node, connection


def _is_ip(host: str) -> bool:
    """Return whether a host is an address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _socket(config: SiteConfig, file: Path) -> Path:
    """Return the agent's socket.

    Raises:
        UsageError: the agent is on another machine, or listens nowhere.
    """
    if config.agent is None or config.agent.socket is None:
        raise UsageError(
            f"{file}: `join` starts agent and SuperNode on one machine, and needs `agent.socket`; with `agent.tcp`, "
            "start each where it belongs"
        )
    return Path(config.agent.socket)


def _proxy(connection: ConnectionSection) -> dict[str, str]:
    """Return how a program is told of the proxy."""
    return {} if connection.proxy is None else {"HTTPS_PROXY": connection.proxy}
