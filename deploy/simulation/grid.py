"""A Flower `Grid` that runs sites in this process, or in worker processes: no network, no Ray, no files.

Each message is executed when it is pulled (one process) or as soon as its worker is free (several), so that at most
a few updates exist at a time, however many sites there are. The order of results never depends on the machine.

What it relies on of flwr 1.41 beyond the public interface: `TaskIdentity`, `Run.create_empty`, the message id in
`Metadata`, and `serde.message_to_proto`; tests/contract/test_flower_internals.py watches them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

SERVER_NODE = 1
FIRST_NODE = 2


class Executor(Protocol):
    """Runs messages for nodes."""

    def submit(self, message: Message) -> None:
        """Take a message; its id is set."""
        ...

    def result(self, message_id: str) -> Message | None:
        """Return the reply to a submitted message, computing it or waiting for it; None if it was never submitted."""
        ...

    def close(self) -> None:
        """End everything that was started."""
        ...


class LocalGrid(Grid):
    """Flower's grid over an executor.

    Args:
        sites: Names of the virtual sites; node ids follow their order.
        executor: Runs the ClientApp.
        run_id: Number of the run.
    """

    def __init__(self, sites: Iterable[str], executor: Executor, *, run_id: int = 1) -> None:
        identify(run_id)
        self.nodes: dict[str, int] = {site: FIRST_NODE + i for i, site in enumerate(sites)}
        self._executor = executor
        self._run = Run.create_empty(run_id)
        self._sent = 0

    def set_run(self, run: Run) -> None:
        """Set the run this grid works for."""
        self._run = run

    @property
    def run(self) -> Run:
        """Return the run this grid works for."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message (Flower's older way to make one)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return all node ids, in the order of the sites."""
        return list(self.nodes.values())

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take messages and return their ids, in order."""
        ids = []
        for message in messages:
            self._sent += 1
            message.metadata.__dict__["_message_id"] = f"m{self._sent}"
            self._executor.submit(message)
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to these messages, waiting for the work that they need."""
        replies = (self._executor.result(message_id) for message_id in message_ids)
        return [reply for reply in replies if reply is not None]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push, then pull all; nothing here takes longer than its work, so `timeout` is not needed."""
        return self.pull_messages(self.push_messages(messages))


class InProcess:
    """Runs each message in this process when its result is asked for.

    Args:
        app: The ClientApp.
        contexts: Node id -> context.
    """

    def __init__(self, app: ClientApp, contexts: Mapping[int, Context]) -> None:
        self._app = app
        self._contexts = contexts
        self._queued: dict[str, Message] = {}

    def submit(self, message: Message) -> None:
        """Keep the message until its result is asked for."""
        self._queued[message.metadata.message_id] = message

    def result(self, message_id: str) -> Message | None:
        """Run the message now."""
        message = self._queued.pop(message_id, None)
        return None if message is None else execute(self._app, self._contexts, message)

    def close(self) -> None:
        """Forget what was not run."""
        self._queued.clear()


def execute(app: ClientApp, contexts: Mapping[int, Context], message: Message) -> Message:
    """Return the ClientApp's reply; an exception becomes Flower's error reply with its type alone."""
    try:
        return app(message, contexts[message.metadata.dst_node_id])
    except Exception as error:  # noqa: BLE001 - as Flower does; the text stays out
        code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        return Message(Error(code, type(error).__name__), reply_to=message)


def make_contexts(sites: Mapping[str, int], run_id: int = 1) -> dict[int, Context]:
    """Return a Flower context for each virtual site; its node configuration names the site and nothing else."""
    return {
        node: Context(
            run_id=run_id, node_id=node, node_config={"site": site}, state=RecordDict(), run_config={}
        )
        for site, node in sites.items()
    }


def identify(run_id: int) -> None:
    """Say who this process is, which Flower needs before a message can be made."""
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SERVER_NODE
    TaskIdentity.task_id = 1
