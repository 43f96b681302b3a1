"""A content of any size in pieces, between the relay and the agent: `Begin`, then data until all bytes have come.

Guarantees (tests/unit/client/test_parts.py): nothing is kept beyond what `Begin` announced and the limit allows; a
stream that is short, long, out of order or altered is refused, whatever its bytes are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from client.agent_pb2 import Begin, Part
from client.learning import ContractError

PART_BYTES = 1 << 20
"""Most bytes in one part."""
MAX_CONTENT_BYTES = 1 << 30
"""Most bytes of a content, 1 GiB: a model of 260 million weights; a parser of protocol buffers stops at 2 GiB."""


def to_parts(content: RecordDict) -> Iterator[Part]:
    """Yield a content in pieces.

    Raises:
        ContractError: it is larger than `MAX_CONTENT_BYTES`.
    """
    data = memoryview(recorddict_to_proto(content).SerializeToString())
    if len(data) > MAX_CONTENT_BYTES:
        raise ContractError(
            f"content: {len(data)} bytes, at most {MAX_CONTENT_BYTES} travel; share fewer weights"
        )
    yield Part(begin=Begin(num_bytes=len(data), sha256=hashlib.sha256(data).digest()))
    for start in range(0, len(data), PART_BYTES):
        yield Part(data=bytes(data[start : start + PART_BYTES]))


def from_parts(parts: Iterable[Part], *, max_bytes: int = MAX_CONTENT_BYTES) -> RecordDict:
    """Return the content that some pieces make.

    Args:
        parts: As they come.
        max_bytes: Most bytes of the content.

    Raises:
        ContractError: they are not `Begin` and then exactly the bytes that it announced.
    """
    received = iter(parts)
    begin = _begin(received, max_bytes)
    data = bytearray()
    for part in received:
        if part.WhichOneof("what") != "data" or not part.data:
            raise ContractError("parts: after the first, each must hold data")
        if len(data) + len(part.data) > begin.num_bytes:
            raise ContractError("parts: more bytes than were announced")
        data += part.data
    if len(data) != begin.num_bytes:
        raise ContractError("parts: fewer bytes than were announced")
    if hashlib.sha256(data).digest() != begin.sha256:
        raise ContractError("parts: the bytes are not those that were announced")
    try:
        return recorddict_from_proto(ProtoRecordDict.FromString(bytes(data)))
    except Exception as error:  # whatever a parser of foreign bytes may raise
        raise ContractError("parts: the bytes are no content of Flower") from error


def _begin(parts: Iterator[Part], max_bytes: int) -> Begin:
    """Return what the first part announces."""
    first = next(parts, None)
    if first is None or first.WhichOneof("what") != "begin":
        raise ContractError("parts: the first must announce how many bytes follow")
    if not 1 <= first.begin.num_bytes <= max_bytes:
        raise ContractError(f"parts: 1 to {max_bytes} bytes may be announced")
    return first.begin
