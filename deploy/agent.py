"""`python -m deploy agent`: a hospital's file -> its running agent, the process that data, GPU and ledger belong to.

Order: read the file, open the ledger with its key and hold its entries against each other, then listen. What cannot
run ends before anybody can connect. One agent has a folder: a second one of the same folder is refused.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.ledger.failures import UsageError, reported
from deploy.locking import held

if TYPE_CHECKING:
    from client.contract import TrainRequest
    from client.serving import MutualTls, UnixSocket
    from client.site import Site
    from deploy.site import AgentSection, SiteConfig
    from privacy.ledger import Ledger
    from privacy.noise import Randomness

OVERRUN = 2.0
"""The watchdog ends an agent whose training takes this many times `policy.max_runtime_s`, and a minute."""


def add_to(app: typer.Typer) -> None:
    """Add the verb to a command line."""
    app.command("agent")(reported()(run_agent))


def run_agent(
    site: Annotated[Path, typer.Option("--site", help="The hospital's site.yaml.")],
    cache: Annotated[Path | None, typer.Option(help="Folder of prepared records; the agent's own.")] = None,
) -> None:
    """Run the hospital's agent until it is told to stop (SIGTERM, Ctrl-C)."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with running(site, cache) as target:
        typer.echo(f"agent: listening at {target}")
        stop.wait()
        typer.echo("agent: stopping", err=True)


@contextlib.contextmanager
def running(site: Path, cache: Path | None = None) -> Iterator[str]:
    """Run the agent of a hospital's file for the time of the block, and return where it listens.

    Args:
        site: Its `site.yaml`.
        cache: Folder of prepared records; by default in the agent's folder.

    Raises:
        ConfigError: of the file.
        UsageError: it has no `agent` section, there is no ledger, or another agent runs.
        PrivacyError: ledger, key or salt cannot be used.
    """
    from client.agent import Agent, Limits
    from client.serving import ServingError, serve
    from deploy.ledger.opening import open_ledger

    with contextlib.ExitStack() as stack:
        config, ledger = stack.enter_context(open_ledger(site, writing=True, salted=True))
        section = config.agent
        if section is None:
            raise UsageError(f"{site}: has no `agent` section, which says where the agent listens; add one")
        if config.is_rehearsal and ledger.state().genesis.claims == "dp":
            raise UsageError(
                f"{site}: `agent.seed` is for rehearsals, and the ledger promises privacy; remove it, or begin "
                "a ledger for the rehearsal in another folder"
            )
        folder = Path(section.folder)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        busy = UsageError(f"{folder}: another agent runs in this folder; stop it first")
        stack.enter_context(held(folder / "agent.lock", busy))
        policy = config.to_policy()
        agent = Agent(
            make_site(config, section, ledger, cache or folder / "cache"),
            head=ledger.head,
            limits=Limits(max_training_s=OVERRUN * policy.max_runtime_s + 60.0),
        )
        try:
            served = serve(agent, _address(section))
        except (ServingError, OSError) as error:
            raise UsageError(str(error)) from error
        stack.callback(served.stop)
        yield served.target


def make_site(config: SiteConfig, section: AgentSection, ledger: Ledger, cache: Path) -> Site:
    """Return the site of a hospital's file.

    Args:
        config: The file.
        section: Its `agent` section.
        ledger: Open for writing.
        cache: Folder of prepared records.
    """
    from client.decide import decide_by
    from client.site import Models, Site
    from deploy.ledger.beginning import open_data
    from privacy.budget import LedgerSpending
    from privacy.noise import SeededRandomness, SystemRandomness

    policy = config.to_policy()
    spending = LedgerSpending(ledger, policy)

    def randomness(request: TrainRequest) -> Randomness:
        if section.seed is None:
            return SystemRandomness()
        return SeededRandomness(section.seed, request.run_id, config.site, request.round)

    return Site(
        config.site,
        open_data=lambda: open_data(config, cache),
        folder=Path(section.folder),
        decide=decide_by(policy),
        randomness=randomness,
        spending=lambda run: spending,
        models=Models(section.device),
        max_runtime_s=policy.max_runtime_s,
    )


def _address(section: AgentSection) -> UnixSocket | MutualTls:
    """Return where to listen."""
    from client.serving import MutualTls, UnixSocket

    if section.tcp is None:
        if section.socket is None:
            raise ValueError("a section has a socket or a port")
        return UnixSocket(path=Path(section.socket), group=section.group)
    tcp = section.tcp
    return MutualTls(
        host=tcp.host,
        port=tcp.port,
        key=Path(tcp.key).read_bytes(),
        certificate=Path(tcp.certificate).read_bytes(),
        authority=Path(tcp.authority).read_bytes(),
    )
