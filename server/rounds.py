"""The round loop: who takes part, how long they are waited for, and what is saved.

Our own loop over Flower's push and pull, since `Strategy.start` of flwr 1.41 counts nodes before it waits for them,
drops late sites silently, holds all replies in memory and loses everything at an exception.

Replies are pulled one at a time, in the order of the sites' names: the order of arrival changes nothing, and no more
than one update lies in memory. What has arrived early waits in the grid (in a deployment: the SuperLink's database).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from client.contract import ContractError, Description, decode_reply
from server.clock import Clock
from server.errors import EnrolmentError

_log = logging.getLogger(__name__)
_FIRST_POLL_S, _LAST_POLL_S = 0.001, 3.0


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long a round may take.

    Attributes:
        deadline_s: A site whose update has not come this long after the request is left out of the round.
        enrol_s: How long to wait for all sites before the first round.
    """

    deadline_s: float = 3600.0
    enrol_s: float = 600.0


@dataclass
class Collector:
    """Sends requests and yields replies, site by site, until each has answered or the deadline has passed.

    Attributes:
        grid: Flower's grid.
        clock: What deadlines are measured with.
        deadline_s: See `Timing`.
        missing: Sites that had not answered in the round collected last.
    """

    grid: Grid
    clock: Clock
    deadline_s: float
    missing: list[str] = field(default_factory=list)
    _outstanding: list[str] = field(default_factory=list)

    def collect(self, messages: Iterable[Message], sites: Mapping[int, str]) -> Iterator[Message]:
        """Send `messages` and yield the replies in the order in which they were sent.

        Answers to earlier rounds that have come by now are yielded first: whoever takes them must know them by the
        message they answer, and can only note that they are late.

        Args:
            messages: One a site, sorted by site.
            sites: Node id -> site.
        """
        yield from self._late()
        self.missing = []
        requests = list(messages)
        waiting = dict(
            zip(self.grid.push_messages(requests), (m.metadata.dst_node_id for m in requests), strict=True)
        )
        deadline = self.clock.now() + self.deadline_s
        for message_id, node in waiting.items():
            reply = self._await(message_id, deadline)
            if reply is None:
                self.missing.append(sites[node])
                self._outstanding.append(message_id)
            else:
                yield reply
            del reply  # before the next one is awaited, or two updates would be in memory

    def _await(self, message_id: str, deadline: float) -> Message | None:
        """Return the reply to one message, or None once the deadline has passed."""
        pause = _FIRST_POLL_S
        while True:
            for reply in self.grid.pull_messages([message_id]):
                return reply
            left = deadline - self.clock.now()
            if left <= 0:
                return None
            self.clock.sleep(min(pause, left))
            pause = min(2 * pause, _LAST_POLL_S)

    def _late(self) -> Iterator[Message]:
        """Yield what has come in for earlier rounds."""
        for message_id in tuple(self._outstanding):
            for reply in self.grid.pull_messages([message_id]):
                self._outstanding.remove(message_id)
                yield reply


def enrol(
    grid: Grid,
    sites: Iterable[str],
    clock: Clock,
    *,
    timeout_s: float,
    names: Callable[[Grid], Mapping[int, str]] | None = None,
) -> dict[str, int]:
    """Wait until every site has described itself, and return site -> node id.

    Args:
        grid: Flower's grid.
        sites: Names that must be there; others are ignored.
        clock: What the timeout is measured with.
        timeout_s: How long to wait.
        names: Returns node id -> the name that a node has proved to have: a node that says to be somebody else is
            no site. None: nodes are believed.

    Raises:
        EnrolmentError: sites are missing after `timeout_s`; the message names them.
    """
    wanted, found = set(sites), dict[str, int]()
    asked: set[int] = set()
    deadline, pause = clock.now() + timeout_s, _FIRST_POLL_S
    pending: dict[str, int] = {}
    while wanted - set(found):
        fresh = [node for node in grid.get_node_ids() if node not in asked]
        asked.update(fresh)
        questions = [
            Message(RecordDict({"ask": ConfigRecord()}), node, f"{MessageType.QUERY}.describe")
            for node in fresh
        ]
        pending.update(zip(grid.push_messages(questions), fresh, strict=True))
        proven = None if names is None else names(grid)
        for message_id in list(pending):
            for reply in grid.pull_messages([message_id]):
                node = pending.pop(message_id)
                name = _described(reply)
                if name is None:
                    asked.discard(node)  # not ready yet, as an agent that starts after its node: asked again
                elif proven is not None and proven.get(node) != name:
                    _log.warning(
                        "node %d says to be %.80r, and its key is not registered as such", node, name
                    )
                elif name in wanted and name not in found:
                    found[name] = node
        if wanted - set(found):
            if clock.now() >= deadline:
                missing = ", ".join(sorted(wanted - set(found)))
                raise EnrolmentError(
                    f"no answer from {missing} within {timeout_s:.0f} s; start them, or take them off"
                )
            clock.sleep(pause)
            pause = min(2 * pause, _LAST_POLL_S)
    return dict(sorted(found.items()))


def _described(reply: Message) -> str | None:
    """Return the site that a reply names, None if it is no description."""
    if reply.has_error():
        return None
    try:
        answer = decode_reply(reply.content)
    except (ContractError, ValueError, RecursionError):  # the last two: JSON made to hurt its reader
        return None
    return answer.site if isinstance(answer, Description) else None
