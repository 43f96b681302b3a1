"""Worker processes: each holds some sites for good, and answers their messages one after another.

A site always goes to the same worker, so that data and models stay resident. A worker has one message at a time: with
a second one in its pipe, both ends could wait for the other to read. At most `WINDOW` of its replies wait to be
fetched, which bounds memory. A worker that dies is replaced; its message gets an error reply and the run goes on,
unless workers die before they have even started.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage

from client.device import gpu_of_worker
from deploy.errors import EngineError
from deploy.simulation.grid import execute, identify, make_contexts

WINDOW = 2
_STARTED = b""  # what a worker says first; no message is empty
_MOST_STILLBORN = 3

MakeApp = Callable[[], ClientApp]


class Workers:
    """An executor over `num_workers` processes.

    Args:
        make_app: Builds the ClientApp in the worker; it is sent there, so it must be a picklable value.
        sites: Site -> node id.
        num_workers: >= 1.
        threads: Threads that PyTorch may use in each worker.
        gpus: GPUs of this machine to share out among the workers; 0 leaves all of them alone.
    """

    def __init__(
        self,
        make_app: MakeApp,
        sites: Mapping[str, int],
        *,
        num_workers: int,
        threads: int = 1,
        gpus: int = 0,
    ) -> None:
        self._arguments = (make_app, dict(sites), threads)
        self._gpus = gpus
        self._num_workers = min(num_workers, max(1, len(sites)))
        self._workers: list[_Worker] = []  # started with the first message: a finished run needs none
        self._home = {node: i % self._num_workers for i, node in enumerate(sites.values())}
        self._of: dict[str, int] = {}

    def submit(self, message: Message) -> None:
        """Queue the message at its site's worker."""
        if not self._workers:
            self._workers = [
                _Worker(*self._arguments, gpu_of_worker(number, self._gpus))
                for number in range(self._num_workers)
            ]
        home = self._home[message.metadata.dst_node_id]
        self._of[message.metadata.message_id] = home
        self._workers[home].queue.append(message)
        self._workers[home].feed()

    def result(self, message_id: str) -> Message | None:
        """Wait for the reply to one message, keeping all workers busy meanwhile.

        Raises:
            EngineError: worker processes do not start.
        """
        home = self._of.pop(message_id, None)
        if home is None:
            return None
        worker = self._workers[home]
        while message_id not in worker.done:
            worker.feed(urgent=True)
            if worker.is_busy:  # it is not where it has just been replaced
                wait([each.pipe for each in self._workers if each.is_busy])
            for each in self._workers:
                each.drain()
        reply = worker.done.pop(message_id)
        worker.feed()
        return reply

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.close()


class _Worker:
    """One process, its pipe, and what it has been given."""

    def __init__(self, make_app: MakeApp, sites: dict[str, int], threads: int, gpu: int | None) -> None:
        self._arguments = (make_app, sites, threads, gpu)
        self.queue: deque[Message] = deque()
        self.done: dict[str, Message] = {}
        self._under_way: Message | None = None
        self._stillborn = 0
        self._process, self.pipe = _start(*self._arguments)

    @property
    def is_busy(self) -> bool:
        """Return whether the process has a message that it has not answered."""
        return self._under_way is not None

    def feed(self, *, urgent: bool = False) -> None:
        """Send the next message if the worker is free and its finished replies are few.

        Args:
            urgent: Send it however many wait: replies that nobody fetches must not hold up those behind them.
        """
        if self._under_way is None and self.queue and (urgent or len(self.done) < WINDOW):
            self._under_way = self.queue.popleft()
            try:
                self.pipe.send_bytes(message_to_proto(self._under_way).SerializeToString())
            except OSError:
                self._replace()

    def drain(self) -> None:
        """Take a finished reply, if there is one, and send the next message."""
        try:
            if self._under_way is not None and self.pipe.poll():
                received = self.pipe.recv_bytes()
                self._stillborn = 0
                if received != _STARTED:
                    reply = message_from_proto(ProtoMessage.FromString(received))
                    self.done[self._under_way.metadata.message_id] = reply
                    self._under_way = None
        except (EOFError, OSError):
            self._replace()
        self.feed()

    def _replace(self) -> None:
        """Answer for a dead worker and start another."""
        self._stillborn += 1  # unless it is heard of
        if self._stillborn > _MOST_STILLBORN:
            raise EngineError(
                f"{_MOST_STILLBORN} worker processes in a row ended before they had started: look above for why; a "
                'program that starts workers needs `if __name__ == "__main__":`, and engine.workers=1 needs none'
            )
        if self._under_way is not None:
            error = Error(ErrorCode.CLIENT_APP_CRASHED, "the worker process ended")
            self.done[self._under_way.metadata.message_id] = Message(error, reply_to=self._under_way)
            self._under_way = None
        self.close()
        self._process, self.pipe = _start(*self._arguments)

    def close(self) -> None:
        """End the process."""
        self.pipe.close()
        self._process.join(timeout=2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


@contextlib.contextmanager
def interrupts_kept() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach, from their first moment on: this one ends them."""
    resource_tracker.ensure_running()  # started with the first process otherwise, and that unblocks the signal
    before = signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGINT}
    )  # a new process inherits what is blocked
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(
    make_app: MakeApp, sites: dict[str, int], threads: int, gpu: int | None
) -> tuple[SpawnProcess, Connection]:
    """Start one worker process (spawned: a forked one inherits locks of threads that it does not have)."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, make_app, sites, threads, gpu), daemon=True)
    with interrupts_kept():
        process.start()
    theirs.close()
    return process, ours


def _serve(pipe: Connection, make_app: MakeApp, sites: dict[str, int], threads: int, gpu: int | None) -> None:
    """Answer messages until the other end closes, with one GPU as the current one if there are any."""
    import torch

    torch.set_num_threads(threads)
    if gpu is not None:
        torch.cuda.set_device(gpu)
    identify(1)
    app, contexts = make_app(), make_contexts(sites)
    with contextlib.suppress(OSError):
        pipe.send_bytes(_STARTED)
    while True:
        try:
            message = message_from_proto(ProtoMessage.FromString(pipe.recv_bytes()))
            pipe.send_bytes(message_to_proto(_answer(app, contexts, message)).SerializeToString())
        except (EOFError, OSError):
            return  # the other end has gone


def _answer(app: ClientApp, contexts: Mapping[int, Context], message: Message) -> Message:
    """Return the reply; its id must be set for Flower's serialisation."""
    reply = execute(app, contexts, message)
    reply.metadata.__dict__["_message_id"] = f"r-{message.metadata.message_id}"
    return reply
