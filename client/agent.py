"""The site agent: a hospital's own long-lived process, which Flower's ClientApp asks through a socket.

It is the trust boundary. Whoever can reach the socket may send any bytes, in any order and number; what comes back is
an update that the hospital's own `client.site.Site` decided on and paid for, or a code. No text of an exception leaves,
neither in a reply nor in gRPC's own status.

    relay (client/relay.py) --- Unix socket, or TCP with mutual TLS ---> Agent ---> SiteService (client/site.py)

One request at a time: others wait for their turn before a byte of them is read, a few of them, and the rest are told
that the agent is busy; so memory holds one request, whoever sends how many. Training that has begun goes on when its
caller goes away: it is paid for, its update is stored, and the same request asked again gets it. A watchdog ends the
process when one training takes far longer than the hospital allows, since code that hangs cannot be ended otherwise;
whatever starts the agent starts it again, and what was reserved stays spent.

Guarantees: tests/unit/client/test_agent.py; of any bytes whatever tests/property/test_agent_boundary.py and
test_agent_load.py; of a whole hospital tests/integration/test_agent_site.py.
What it does not do: it reads no configuration (`deploy.agent` does), and it does not judge a request (`Site` does).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from client.agent_pb2 import (
    AuditReply,
    AuditRequest,
    DescribeReply,
    DescribeRequest,
    Part,
    StatusReply,
    StatusRequest,
)
from client.arrays import decode_arrays
from client.contract import (
    BASIS,
    PROTOCOL_VERSION,
    Failure,
    FailureCode,
    decode_request,
    encode_failure,
    encode_update,
)
from client.errors import SiteError
from client.failure import code_of
from client.parts import MAX_CONTENT_BYTES, from_parts, to_parts

if TYPE_CHECKING:
    import grpc
    from flwr.app import RecordDict

    from client.site import SiteService
    from privacy.heads import Head

_log = logging.getLogger(__name__)
_POLL_S = 0.2
_HUNG = 70  # exit status of a process that the watchdog ended: EX_SOFTWARE of sysexits.h


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What callers may make the agent hold or wait for.

    Attributes:
        max_bytes: Of one request.
        receive_s: For all parts of a request to come, once it is its turn.
        send_s: For all parts of an answer to be taken.
        max_waiting: Requests that may wait for their turn.
        max_training_s: One training; beyond it the process is ended. None: never.
    """

    max_bytes: int = MAX_CONTENT_BYTES
    receive_s: float = 120.0
    send_s: float = 600.0
    max_waiting: int = 4
    max_training_s: float | None = None


class Agent:
    """Answers the calls of `client/agent.proto` for one site.

    Args:
        site: Who trains.
        head: Returns the signed head of the site's ledger, None where there is none.
        limits: Of callers.
        end: Ends this process; called by the watchdog with an exit status.
    """

    def __init__(
        self,
        site: SiteService,
        *,
        head: Callable[[], Head | None],
        limits: Limits | None = None,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._site = site
        self._name = site.describe().site
        self._head = head
        self._limits = limits or Limits()
        self._end = end
        self._training = threading.Lock()
        self._counting = threading.Lock()
        self._waiting = 0

    def describe(self, request: DescribeRequest, context: grpc.ServicerContext) -> DescribeReply:
        """Return who answers."""
        del request, context
        return DescribeReply(site=self._name, version=PROTOCOL_VERSION)

    def status(self, request: StatusRequest, context: grpc.ServicerContext) -> StatusReply:
        """Return whether the agent is at work."""
        del request, context
        return StatusReply(version=PROTOCOL_VERSION, training=self._training.locked(), waiting=self._waiting)

    def audit(self, request: AuditRequest, context: grpc.ServicerContext) -> AuditReply:
        """Return where the ledger stands."""
        del request, context
        try:
            head = self._head()
            return AuditReply(head="" if head is None else json.dumps(head.to_dict()))
        except BaseException as error:  # noqa: BLE001 - nothing but a code may leave
            return AuditReply(failure=self._code(error).value)

    def train(self, parts: Iterator[Part], context: grpc.ServicerContext) -> Iterator[Part]:
        """Yield the parts of an update, or of a failure."""
        first, rest = self._begun(parts, context)
        with self._cancelled_after(self._limits.send_s, context):
            yield first
            yield from rest

    def _begun(self, parts: Iterator[Part], context: grpc.ServicerContext) -> tuple[Part, Iterator[Part]]:
        """Return the first part of the answer and the others; no exception leaves, since gRPC would send its text.

        Not even those that are no `Exception`, such as a panic of a library in Rust, or its `SystemExit`: this thread
        is one of a pool, which would keep them to itself, and the caller would wait for ever.
        """
        try:
            answer = to_parts(self._answer(parts, context))
            return next(answer), answer
        except BaseException as error:  # noqa: BLE001 - nothing but a code may leave
            answer = to_parts(encode_failure(Failure(site=self._name, code=self._code(error))))
            return next(answer), answer

    def _answer(self, parts: Iterator[Part], context: grpc.ServicerContext) -> RecordDict:
        """Return the site's update for a request, as a content."""
        with self._turn(context):
            with self._cancelled_after(self._limits.receive_s, context):
                content = from_parts(parts, max_bytes=self._limits.max_bytes)
            request, weights = decode_request(content)
            basis = decode_arrays(content, BASIS) if request.learning.subspace else None
            with self._watched():
                return encode_update(self._site.train(request, weights, basis))

    @contextlib.contextmanager
    def _cancelled_after(self, seconds: float, context: grpc.ServicerContext) -> Iterator[None]:
        """Cancel a call whose request does not come, or whose answer nobody takes: no thread is held for good."""
        alarm = threading.Timer(seconds, context.cancel)
        alarm.daemon = True
        alarm.start()
        try:
            yield
        finally:
            alarm.cancel()

    @contextlib.contextmanager
    def _turn(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Wait until nobody else trains, unless too many wait already or the caller has gone."""
        with self._counting:
            if self._waiting >= self._limits.max_waiting:
                raise SiteError(FailureCode.BUSY, "too many requests wait for their turn")
            self._waiting += 1
        try:
            while not self._training.acquire(timeout=_POLL_S):
                if not context.is_active():
                    raise SiteError(FailureCode.TIMED_OUT, "the caller has gone before it was its turn")
        finally:
            with self._counting:
                self._waiting -= 1
        try:
            if not context.is_active():
                raise SiteError(FailureCode.TIMED_OUT, "the caller has gone before it was its turn")
            yield
        finally:
            self._training.release()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """End the process if the block takes too long."""
        if self._limits.max_training_s is None:
            yield
            return
        alarm = threading.Timer(self._limits.max_training_s, self._overrun)
        alarm.daemon = True
        alarm.start()
        try:
            yield
        finally:
            alarm.cancel()

    def _overrun(self) -> None:
        """End the process: what runs too long cannot be ended from outside."""
        _log.critical(
            "training took more than %.0f s and does not end: the agent ends itself, to be started again; what was "
            "reserved for it stays spent",
            self._limits.max_training_s,
        )
        logging.shutdown()
        self._end(_HUNG)

    def _code(self, error: BaseException) -> FailureCode:
        """Return the code of an exception; its text goes to the site's own log."""
        code = code_of(error)
        _log.error("request failed: %s", error, exc_info=error if code is FailureCode.INTERNAL else None)
        return code
