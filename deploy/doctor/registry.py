"""Every check, in the order in which they run. A new one goes into this tuple, after those that it needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deploy.doctor import book, keys, machine, network, records, rules, server, tls
from deploy.doctor.checks import Check
from deploy.errors import ConfigError, Problem
from deploy.problems import nearest

CHECKS: tuple[Check, ...] = (
    network.dns,
    network.tcp,
    network.proxy,
    tls.chain,
    tls.days_left,
    tls.client_pair,
    server.health,
    server.clock,
    keys.mode,
    keys.supernode_key,
    machine.free,
    machine.fsync,
    machine.files,
    machine.gpu,
    machine.packages,
    machine.switches,
    records.ready,
    rules.policy,
    book.verified,
    book.head,
)


def choose(names: Sequence[str]) -> tuple[Check, ...]:
    """Return the checks of some names, in the order in which they run; all of them for no names.

    Args:
        names: Of checks (`net.dns`), or of groups (`net`).

    Raises:
        ConfigError: there is no such check; names every wrong one.
    """
    known = {check.id: check for check in CHECKS}
    groups = {name.partition(".")[0] for name in known}
    wrong = [name for name in names if name not in known and name not in groups]
    if wrong:
        rule = f"there is no such check; checks: {', '.join(known)}"
        raise ConfigError(
            "--only", [Problem(path=name, rule=rule, suggestion=nearest(name, known)) for name in wrong]
        )
    if not names:
        return CHECKS
    return tuple(each for each in CHECKS if each.id in names or each.id.partition(".")[0] in names)


def table(checks: Sequence[Check] = CHECKS) -> Iterator[str]:
    """Yield the table of the documentation (deploy/docs/doctor.md), which a test compares with it."""
    yield "| check | what it looks at | at worst | way out |"
    yield "|---|---|---|---|"
    for each in checks:
        yield f"| `{each.id}` | {each.asks} | {each.worst.value} | {each.way_out} |"
