"""The way to the agent: a `SiteService` that asks the hospital's agent through its socket. Needs no torch.

Flower starts a process for each message, so this one connects, asks once and ends. An agent that is being started again
is waited for: the same request is sent anew, which never trains or pays twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import grpc
import tenacity

from client import agent_pb2
from client.agent_pb2 import DescribeReply, DescribeRequest, Part
from client.arrays import encode_weights
from client.contract import (
    BASIS,
    PROTOCOL_VERSION,
    Description,
    Failure,
    FailureCode,
    TrainRequest,
    Update,
    Weights,
    decode_reply,
    encode_request,
)
from client.errors import SiteError
from client.parts import PART_BYTES, from_parts, to_parts

SERVICE = agent_pb2.DESCRIPTOR.services_by_name["Agent"].full_name
_OVERHEAD = 1 << 16
T = TypeVar("T")
_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)


class AgentService:
    """A site behind a socket; see `client.site.SiteService`.

    Args:
        target: Where the agent listens, as gRPC writes addresses: `unix:/PATH` or `HOST:PORT`.
        credentials: For TCP: the relay's certificate and the agent's authority; None for a socket.
        patience_s: How long an agent that does not answer is waited for [s].
        timeout_s: How long one training may take before the relay gives up [s]; the agent goes on.
    """

    def __init__(
        self,
        target: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        patience_s: float = 120.0,
        timeout_s: float = 6 * 3600.0,
    ) -> None:
        options = [("grpc.max_receive_message_length", PART_BYTES + _OVERHEAD)]
        self._channel = (
            grpc.insecure_channel(target, options)
            if credentials is None
            else grpc.secure_channel(target, credentials, options)
        )
        self._target, self._patience_s, self._timeout_s = target, patience_s, timeout_s

    def describe(self) -> Description:
        """Return who answers.

        Raises:
            SiteError: nobody does, or an agent of another release.
        """
        ask = self._channel.unary_unary(
            f"/{SERVICE}/Describe",
            request_serializer=DescribeRequest.SerializeToString,
            response_deserializer=DescribeReply.FromString,
        )
        reply = self._patiently(lambda: ask(DescribeRequest(), timeout=self._patience_s))
        if reply.version != PROTOCOL_VERSION:
            raise SiteError(
                FailureCode.VERSION,
                f"the agent speaks version {reply.version}, this relay {PROTOCOL_VERSION}; install one release",
            )
        return Description(site=reply.site, version=reply.version)

    def train(self, request: TrainRequest, weights: Weights, basis: Weights | None = None) -> Update:
        """Return the site's update.

        Raises:
            SiteError: with the agent's code, or since it does not answer.
            ContractError: it answers something else.
        """
        content = encode_request(request, weights)
        if basis is not None:
            content[BASIS] = encode_weights(basis)
        ask = self._channel.stream_stream(
            f"/{SERVICE}/Train",
            request_serializer=Part.SerializeToString,
            response_deserializer=Part.FromString,
        )
        reply = self._patiently(
            lambda: decode_reply(from_parts(ask(to_parts(content), timeout=self._timeout_s)))
        )
        if isinstance(reply, Failure):
            raise SiteError(reply.code, f"the agent answers {reply.code.value}; its log says why")
        if not isinstance(reply, Update):
            raise SiteError(FailureCode.INTERNAL, "the agent answers something else than an update")
        return reply

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Ask, again and again while nobody answers, for as long as patience lasts.

        Raises:
            SiteError: nobody answered, or the call failed in another way.
        """
        tries = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: _code(error) in _AGAIN),
            wait=tenacity.wait_exponential(multiplier=0.1, max=5.0),
            stop=tenacity.stop_after_delay(self._patience_s),
            reraise=True,
        )
        try:
            return tries(ask)
        except grpc.RpcError as error:
            late = _code(error) is grpc.StatusCode.DEADLINE_EXCEEDED
            raise SiteError(
                FailureCode.TIMED_OUT if late else FailureCode.UNREACHABLE,
                f"{self._target}: the agent does not answer ({_code(error)}); is it running? "
                "start it: python -m deploy agent --site site.yaml",
            ) from error


def _code(error: BaseException) -> grpc.StatusCode | None:
    """Return gRPC's code of a failed call, None for another exception."""
    return error.code() if isinstance(error, grpc.RpcError) and isinstance(error, grpc.Call) else None


def target_of(address: str) -> str:
    """Return an address as gRPC writes it: an absolute path is a Unix socket, anything else HOST:PORT."""
    return f"unix:{address}" if address.startswith("/") else address
