"""Where an agent can be reached: a Unix socket that its group may open, or TCP with certificates at both ends.

Guarantees (tests/unit/client/test_serving.py): the socket has its mode from its first moment on; an address that
another agent answers at is never taken over; TCP without a client's certificate is refused; there is no reflection.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from client import agent_pb2
from client.parts import PART_BYTES

if TYPE_CHECKING:
    from client.agent import Agent

SERVICE = agent_pb2.DESCRIPTOR.services_by_name["Agent"].full_name
MAX_SOCKET_PATH = 107
"""Bytes of a Unix socket's path on Linux."""
_MAX_CALLS = 16
_OVERHEAD = 1 << 16  # of a part's frame, and of every other message


class ServingError(Exception):
    """An agent cannot be reached at the address that it was given; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class UnixSocket:
    """A socket in the file system.

    Attributes:
        path: Its folder must exist, and nobody but its owner and group may write to it.
        group: Group that may connect besides this user, by name; None for nobody.
    """

    path: Path
    group: str | None = None


@dataclass(frozen=True, kw_only=True)
class MutualTls:
    """TCP between two machines of the hospital, such as one in a demilitarised zone.

    Attributes:
        host: Address to listen at.
        port: Port, 0 to 65535; 0 takes a free one.
        key: PEM private key.
        certificate: PEM chain.
        authority: PEM certificates of those who may issue clients' certificates.
    """

    host: str
    port: int
    key: bytes
    certificate: bytes
    authority: bytes


class Served:
    """A running agent.

    Attributes:
        target: What a client connects to, as gRPC writes addresses.
    """

    def __init__(self, server: grpc.Server, checks: health.HealthServicer, target: str) -> None:
        self._server, self._checks = server, checks
        self.target = target

    def wait(self) -> None:
        """Block until the server has stopped."""
        self._server.wait_for_termination()

    def stop(self, grace_s: float = 5.0) -> None:
        """Take no new calls, let those under way end for some time, and return."""
        self._checks.enter_graceful_shutdown()
        self._server.stop(grace_s).wait()


def serve(agent: Agent, at: UnixSocket | MutualTls) -> Served:
    """Start to answer.

    Raises:
        ServingError: the address cannot be used, or somebody answers there.
    """
    server = grpc.server(
        ThreadPoolExecutor(_MAX_CALLS, thread_name_prefix="agent"),
        maximum_concurrent_rpcs=_MAX_CALLS,
        options=[
            ("grpc.max_receive_message_length", PART_BYTES + _OVERHEAD),
            ("grpc.so_reuseport", 0),
        ],
    )
    server.add_generic_rpc_handlers((_handlers(agent),))
    checks = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    target = _bind_socket(server, at) if isinstance(at, UnixSocket) else _bind_tls(server, at)
    server.start()
    for name in ("", SERVICE):
        checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    return Served(server, checks, target)


def _handlers(agent: Agent) -> grpc.GenericRpcHandler:
    """Return the methods of the service, as `client/agent.proto` declares them."""

    def unary(answer: Any, name: str) -> grpc.RpcMethodHandler:  # noqa: ANN401 - a bound method
        return grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=getattr(agent_pb2, f"{name}Request").FromString,
            response_serializer=getattr(agent_pb2, f"{name}Reply").SerializeToString,
        )

    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "Describe": unary(agent.describe, "Describe"),
            "Status": unary(agent.status, "Status"),
            "Audit": unary(agent.audit, "Audit"),
            "Train": grpc.stream_stream_rpc_method_handler(
                agent.train,
                request_deserializer=agent_pb2.Part.FromString,
                response_serializer=agent_pb2.Part.SerializeToString,
            ),
        },
    )


def _bind_socket(server: grpc.Server, at: UnixSocket) -> str:
    """Listen at a socket that nobody else may open, not even for a moment."""
    path = at.path.absolute()
    _require_usable(path)
    target = f"unix:{path}"
    before = os.umask(0o117 if at.group else 0o177)
    try:
        server.add_insecure_port(target)
        if at.group:
            shutil.chown(path, group=at.group)
    except (RuntimeError, OSError, LookupError) as error:
        raise ServingError(f"{path}: cannot listen there ({error}); choose another `agent.socket`") from error
    finally:
        os.umask(before)
    return target


def _require_usable(path: Path) -> None:
    """Refuse a path that cannot be a socket of ours alone; remove a socket that nobody listens at any more."""
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise ServingError(f"{path}: a socket's path has at most {MAX_SOCKET_PATH} bytes; take a shorter one")
    folder = path.parent
    if not folder.is_dir():
        raise ServingError(f"{folder}: there is no such folder; make it, with mode 0700 or 0750")
    if folder.stat().st_mode & stat.S_IWOTH:
        raise ServingError(
            f"{folder}: anybody may write there and put a socket in our place; chmod o-w {folder}"
        )
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise ServingError(f"{path}: is there already, and is no socket; choose another `agent.socket`")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            raise ServingError(f"{path}: cannot be looked at ({error.strerror}); remove it") from error
    raise ServingError(f"{path}: another agent answers there; stop it first")


def _bind_tls(server: grpc.Server, at: MutualTls) -> str:
    """Listen at a TCP port, to clients with a certificate."""
    credentials = grpc.ssl_server_credentials(
        [(at.key, at.certificate)], root_certificates=at.authority, require_client_auth=True
    )
    try:
        port = server.add_secure_port(f"{at.host}:{at.port}", credentials)
    except RuntimeError as error:
        raise ServingError(
            f"{at.host}:{at.port}: cannot listen there; is the port free, and are key and certificate a pair?"
        ) from error
    return f"{at.host}:{port}"
