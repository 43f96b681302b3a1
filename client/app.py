"""The Flower ClientApp: a relay between Flower and a site. It holds no data, no key and no ledger.

`make_app` builds it around any way of reaching a site; `app` at the bottom is what Flower's SuperNode loads at a
hospital, where the only site that counts is the one behind the hospital's own agent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.contract import (
    BASIS,
    Failure,
    FailureCode,
    decode_arrays,
    decode_request,
    encode_description,
    encode_failure,
    encode_update,
)
from client.errors import SiteError
from client.failure import code_of

if TYPE_CHECKING:
    from grpc import ChannelCredentials

    from client.site import SiteService

_log = logging.getLogger(__name__)

Connect = Callable[[Context], "SiteService"]


def make_app(connect: Connect) -> ClientApp:
    """Return a ClientApp that answers `query.describe` and `train` through the site that `connect` reaches.

    Guarantees:
        Every exception becomes a `FailureCode`; its text is logged here and never sent
        (tests/unit/client/test_app.py).
    """
    made = ClientApp()

    def describe(message: Message, context: Context) -> Message:
        """Answer who is behind this node."""
        try:
            return Message(encode_description(connect(context).describe()), reply_to=message)
        except Exception as error:  # noqa: BLE001 - nothing but a code may leave
            return _failure(error, message, context)

    def train(message: Message, context: Context) -> Message:
        """Answer with the site's update."""
        try:
            request, weights = decode_request(message.content)
            site = connect(context)
            if request.learning.subspace:
                update = site.train(request, weights, decode_arrays(message.content, BASIS))
            else:
                update = site.train(request, weights)
            return Message(encode_update(update), reply_to=message)
        except Exception as error:  # noqa: BLE001 - nothing but a code may leave
            return _failure(error, message, context)

    made.query("describe")(describe)
    made.train()(train)
    return made


def connect_agent(context: Context) -> SiteService:
    """Reach the hospital's agent, where the node's own configuration says; without one nothing runs here.

    Node configuration (`flower-supernode --node-config`, which the server never sees):
        agent: Path of the agent's socket, or HOST:PORT of an agent on another machine.
        agent-ca, agent-certificate, agent-key: For HOST:PORT: PEM files of the agent's authority, and of this relay.

    Raises:
        SiteError: this node has no agent to ask.
    """
    address = str(context.node_config.get("agent") or "")
    if not address:
        raise SiteError(
            FailureCode.UNREACHABLE,
            f"node {context.node_id} has no site agent: this relay never opens data itself; start the hospital's "
            "agent and give --node-config 'agent=\"/PATH/agent.sock\"', or use simulate.py on one machine",
        )
    from client.relay import AgentService, target_of  # here: gRPC, which a simulation does without

    return AgentService(target_of(address), credentials=_credentials(context, address))


def _credentials(context: Context, address: str) -> ChannelCredentials | None:
    """Return the certificates for an agent on another machine, None for a socket.

    Raises:
        SiteError: one is missing: nothing is ever sent in the clear to another machine.
    """
    if address.startswith(("/", "unix:")):
        return None
    import grpc

    files = [
        str(context.node_config.get(name) or "") for name in ("agent-ca", "agent-key", "agent-certificate")
    ]
    if not all(files):
        raise SiteError(
            FailureCode.UNREACHABLE,
            "an agent at HOST:PORT needs agent-ca, agent-certificate and agent-key in --node-config",
        )
    authority, key, certificate = (Path(file).read_bytes() for file in files)
    return grpc.ssl_channel_credentials(authority, key, certificate)


def _failure(error: Exception, message: Message, context: Context) -> Message:
    """Return the code of an exception as the reply; its text goes to the local log."""
    code = code_of(error)
    # A refusal is an answer, not a defect: only what nobody foresaw needs to show where it came from.
    _log.error("request failed: %s", error, exc_info=error if code is FailureCode.INTERNAL else None)
    site = str(context.node_config.get("site", "unknown"))
    return Message(encode_failure(Failure(site=site, code=code)), reply_to=message)


app = make_app(connect_agent)
