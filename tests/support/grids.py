"""A grid whose answers a test writes: by node, late, lost, or wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from client.contract import Description, encode_description
from deploy.simulation.grid import identify
from server.clock import Clock

Answer = Callable[[Message], Message | None]


def describe(site: str) -> Answer:
    """Return what answers every message with the name of a site."""
    return lambda message: Message(encode_description(Description(site=site)), reply_to=message)


def crash(message: Message) -> Message:
    """Answer as a process that ended."""
    return Message(Error(ErrorCode.CLIENT_APP_CRASHED, "gone"), reply_to=message)


@dataclass
class ScriptedGrid(Grid):
    """Answers each node's messages as the test says, a given time after they were sent.

    Attributes:
        clock: Tells when an answer has come.
        answers: Node id -> what it answers; None is nothing.
        delays: Node id -> seconds until the answer; 0 by default.
        pulled: Every id that was asked for, in order.
        sent: Node of every message, in order.
        appears: Node id -> when it joins; 0 by default.
    """

    clock: Clock
    answers: Mapping[int, Answer]
    delays: Mapping[int, float] = field(default_factory=dict)
    pulled: list[str] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    appears: Mapping[int, float] = field(default_factory=dict)
    _waiting: dict[str, tuple[float, Message]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        identify(1)

    def set_run(self, run: Run) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> Run:
        """Return an empty run."""
        return Run.create_empty(1)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return the nodes that have joined by now."""
        return [node for node in self.answers if self.appears.get(node, 0) <= self.clock.now()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take messages."""
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            ids.append(f"{node}/{len(self.sent)}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            self.sent.append(node)
            self._waiting[ids[-1]] = (self.clock.now() + self.delays.get(node, 0), message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return what has come by now."""
        replies = []
        for message_id in message_ids:
            self.pulled.append(message_id)
            ready, message = self._waiting.get(message_id, (float("inf"), None))
            if message is not None and ready <= self.clock.now():
                del self._waiting[message_id]
                replies.append(self.answers[message.metadata.dst_node_id](message))
        return [reply for reply in replies if reply is not None]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push and pull once."""
        return self.pull_messages(self.push_messages(messages))
