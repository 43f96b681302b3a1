"""Whatever bytes reach the agent's socket: it stays, trains for valid requests alone, and answers nothing but codes.

The agent, gRPC's server and the socket are real; the site behind them is not, and plants `MARKER` in every exception.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from flwr.app import ConfigRecord
from flwr.common.serde import recorddict_to_proto
from hypothesis import example, given, settings
from hypothesis import strategies as st

from client.agent import Agent, Limits
from client.agent_pb2 import AuditReply, Begin, DescribeReply, Part, StatusReply
from client.contract import (
    PROTOCOL_VERSION,
    ContractError,
    Description,
    Failure,
    FailureCode,
    decode_reply,
    decode_request,
    encode_request,
)
from client.errors import SiteError
from client.parts import PART_BYTES, from_parts, to_parts
from client.relay import SERVICE
from client.serving import UnixSocket, serve
from privacy.errors import RefusalCode, RefusedError, TamperedError
from tests.unit.client.test_contract import request, some_weights, update

MARKER = "patient_0815"
CONTENT = recorddict_to_proto(encode_request(request(), some_weights())).SerializeToString()
BODY = json.loads(encode_request(request(), some_weights())["request"]["json"])
GOOD = [part.SerializeToString() for part in to_parts(encode_request(request(), some_weights()))]
TIMEOUT_S = 10.0


class _TextlessError(RuntimeError):
    """An exception that cannot even be printed."""

    def __str__(self):
        raise ValueError(MARKER)


class _Panic(BaseException):
    """What a library in Rust raises when it panics: no Exception."""


ERRORS = (
    RuntimeError(MARKER),
    SiteError(FailureCode.BUDGET, MARKER),
    RefusedError(RefusalCode.POLICY_MODEL, MARKER),
    MemoryError(MARKER),
    ContractError(MARKER),
    ExceptionGroup(MARKER, [ValueError(MARKER)]),
    UnicodeDecodeError("utf-8", MARKER.encode(), 0, 1, MARKER),
    StopIteration(MARKER),
    grpc.RpcError(MARKER),
    _TextlessError(),
    _Panic(MARKER),
    SystemExit(MARKER),
)


class _Site:
    """Notes what it is asked, and raises or answers."""

    def __init__(self):
        self.asked, self.error, self.answer = [], ERRORS[0], None

    def describe(self):
        return Description(site="north")

    def train(self, request, weights, basis=None):
        self.asked.append(request)
        if self.answer is not None:
            return self.answer
        raise self.error


@dataclass(frozen=True)
class _Answer:
    """What came back of one call."""

    replies: list[bytes]
    code: grpc.StatusCode
    text: str


class Boundary:
    """A running agent, and a caller who sends it bytes."""

    def __init__(self, folder, **limits):
        self.site = _Site()
        agent = Agent(self.site, head=self._head, limits=Limits(**limits))
        self.served = serve(agent, UnixSocket(path=folder / "a"))
        self.channel = grpc.insecure_channel(self.served.target)

    def _head(self):
        raise TamperedError(3, MARKER)

    def stream(self, frames, method="Train"):
        """Begin a call; bytes go as they are."""
        return self.channel.stream_stream(f"/{SERVICE}/{method}")(iter(frames), timeout=TIMEOUT_S)

    def send(self, frames, method="Train"):
        """Return what comes back of one call."""
        return ended(self.stream(frames, method))

    def alive(self):
        """Fail unless the agent answers, and nobody waits or trains."""
        described, status = self.send([b""], "Describe"), self.send([b""], "Status")
        assert DescribeReply.FromString(described.replies[0]).site == "north"
        assert StatusReply.FromString(status.replies[0]) == StatusReply(version=PROTOCOL_VERSION)

    def trained_for(self, frames):
        """Return what comes back, having checked everything that holds of any frames whatever."""
        before = len(self.site.asked)
        answer = self.send(frames)
        asked, valid = self.site.asked[before:], _request_in(frames)
        assert asked == ([] if valid is None else [valid])
        _tells_nothing(answer)
        if answer.code is grpc.StatusCode.OK:
            reply = reply_of(answer)
            assert isinstance(reply, Failure)
            assert valid is not None or reply.code is FailureCode.BAD_REQUEST
        else:
            assert answer.code is grpc.StatusCode.INTERNAL, "gRPC itself refuses what is no message"
            assert valid is None
        self.alive()
        return answer

    def close(self):
        self.channel.close()
        self.served.stop(0)


def ended(call):
    """Return all of an answer, gRPC's own texts too."""
    replies = []
    with contextlib.suppress(grpc.RpcError):
        replies.extend(call)
    metadata = [*(call.initial_metadata() or ()), *(call.trailing_metadata() or ())]
    return _Answer(replies, call.code(), f"{call.details()} {metadata}")


def reply_of(answer):
    return decode_reply(from_parts(Part.FromString(reply) for reply in answer.replies))


def _tells_nothing(answer):
    """Fail where the text of an exception has left."""
    assert MARKER not in answer.text
    assert all(MARKER.encode() not in reply for reply in answer.replies)


def _request_in(frames):
    """Return the request that some frames hold, None if none."""
    try:
        return decode_request(from_parts([Part.FromString(frame) for frame in frames]))[0]
    except Exception:  # noqa: BLE001 - whatever is wrong with them
        return None


def framed(data, size=PART_BYTES):
    """Return frames that announce their bytes truthfully."""
    yield Part(begin=Begin(num_bytes=len(data), sha256=hashlib.sha256(data).digest())).SerializeToString()
    for start in range(0, len(data), size):
        yield Part(data=data[start : start + size]).SerializeToString()


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    """The site's own log and gRPC's tell of every refusal."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def boundary():
    with tempfile.TemporaryDirectory() as folder:
        made = Boundary(Path(folder), receive_s=0.3)
        yield made
        made.close()


@st.composite
def mutated(draw, original):
    """Return some bytes with a few of them flipped, inserted or deleted."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["flip", "insert", "delete"]))
        if kind == "flip" and data:
            data[at] ^= draw(st.integers(1, 255))
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=8))
        else:
            del data[at : at + draw(st.integers(1, 8))]
    return bytes(data)


SOMETIMES_HUGE = st.one_of(st.integers(0, 5), st.integers(0, 2**64 - 1), st.just(len(CONTENT)))
ANNOUNCED = st.builds(
    lambda size, digest: Part(begin=Begin(num_bytes=size, sha256=digest)).SerializeToString(),
    SOMETIMES_HUGE,
    st.sampled_from([b"", b"x" * 32, hashlib.sha256(CONTENT).digest(), hashlib.sha256(b"").digest()]),
)
PIECE = st.one_of(
    st.just(GOOD[0]),
    st.just(GOOD[1]),
    st.just(b""),
    ANNOUNCED,
    st.binary(max_size=40).map(lambda data: Part(data=data).SerializeToString()),
    st.integers(1, len(CONTENT)).map(lambda end: Part(data=CONTENT[:end]).SerializeToString()),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from([*BODY, "kind", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=150)
@given(frames=st.lists(st.binary(max_size=60), max_size=5))
def test_arbitrary_bytes_are_no_request(boundary, frames):
    boundary.trained_for(frames)


@settings(max_examples=250)
@given(frames=st.lists(PIECE, max_size=5))
@example(frames=GOOD)
@example(frames=GOOD[::-1])
@example(frames=[GOOD[0], *GOOD])
@example(frames=[*GOOD, GOOD[1]])
@example(frames=[*GOOD, b""])
def test_parts_out_of_order_and_announcements_that_lie_are_no_request(boundary, frames):
    boundary.trained_for(frames)


@settings(max_examples=250)
@given(data=mutated(CONTENT), size=st.sampled_from([1 << 20, 300]))
def test_a_valid_request_with_bytes_changed_is_trained_for_only_if_it_still_is_one(boundary, data, size):
    boundary.trained_for(list(framed(data, size)))


@settings(max_examples=100)
@given(first=mutated(GOOD[0]), second=mutated(GOOD[1]), which=st.integers(0, 2))
def test_frames_with_bytes_changed_are_no_request_either(boundary, first, second, which):
    boundary.trained_for([(first, GOOD[1]), (GOOD[0], second), (first, second)][which])


@settings(max_examples=250)
@given(name=st.sampled_from(sorted(BODY)), value=JSON)
@example(name="round", value=[[[[]]]])
def test_a_request_with_a_field_of_anything_is_trained_for_only_if_it_is_valid(boundary, name, value):
    content = encode_request(request(), some_weights())
    content["request"] = ConfigRecord({"json": json.dumps({**BODY, name: value})})
    boundary.trained_for(list(framed(recorddict_to_proto(content).SerializeToString())))


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"round": ' + "9" * 5000 + "}", "NaN", "", '{"a": 1, "a": 2}'],
    ids=["deep", "long-number", "nan", "nothing", "twice"],
)
def test_text_that_json_chokes_on_is_a_bad_request(boundary, text):
    content = encode_request(request(), some_weights())
    content["request"] = ConfigRecord({"json": text})
    boundary.trained_for(list(framed(recorddict_to_proto(content).SerializeToString())))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_the_site_raises_is_a_code(boundary, error):
    boundary.site.error = error
    answer = boundary.send(GOOD)
    boundary.site.error = ERRORS[0]
    assert answer.code is grpc.StatusCode.OK
    assert isinstance(reply_of(answer), Failure)
    _tells_nothing(answer)
    boundary.alive()


def test_an_answer_that_cannot_be_sent_is_a_code(boundary, monkeypatch):
    def broken(content):
        if "weights" in content:
            raise ValueError(MARKER)
        return recorddict_to_proto(content)

    monkeypatch.setattr("client.parts.recorddict_to_proto", broken)
    monkeypatch.setattr(boundary.site, "answer", update())
    answer = boundary.send(GOOD)
    assert reply_of(answer) == Failure(site="north", code=FailureCode.INTERNAL)
    _tells_nothing(answer)


@settings(max_examples=60)
@given(message=st.binary(max_size=40), method=st.sampled_from(["Describe", "Status", "Audit"]))
def test_the_other_methods_bear_anything(boundary, message, method):
    answer = boundary.send([message], method)
    _tells_nothing(answer)
    if method == "Audit" and answer.code is grpc.StatusCode.OK:
        assert AuditReply.FromString(answer.replies[0]) == AuditReply(failure="ledger-not-ready")
    boundary.alive()


@settings(max_examples=40)
@given(method=st.text("aZ_/.0\x7f", min_size=1, max_size=20))
def test_unknown_methods_are_not_there(boundary, method):
    before = len(boundary.site.asked)
    answer = boundary.send(GOOD, method)
    assert answer.code is grpc.StatusCode.UNIMPLEMENTED
    assert len(boundary.site.asked) == before
    boundary.alive()


@settings(max_examples=8)
@given(frames=st.lists(PIECE, max_size=3).filter(lambda frames: _request_in(frames) is None))
@example(frames=[])
@example(frames=[GOOD[0]])
def test_streams_left_open_areended(boundary, frames):
    left = threading.Event()

    def open_end():
        yield from frames
        left.wait(TIMEOUT_S)

    answer = ended(boundary.stream(open_end()))
    left.set()
    assert answer.code in {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL}
    _tells_nothing(answer)
    boundary.alive()


@settings(max_examples=40)
@given(frames=st.lists(PIECE, max_size=4), after=st.integers(0, 3))
def test_callers_who_go_away_leave_nothing_behind(boundary, frames, after):
    before = len(boundary.site.asked)

    def cancelled():
        yield from frames[:after]
        call.cancel()

    call = boundary.stream(cancelled())
    _tells_nothing(ended(call))
    _until_idle(boundary)
    assert len(boundary.site.asked) - before <= 1
    assert all(asked == request() for asked in boundary.site.asked[before:])


def _until_idle(boundary):
    """Wait until the agent has noticed that a caller has gone."""
    idle = StatusReply(version=PROTOCOL_VERSION)
    until(lambda: StatusReply.FromString(boundary.send([b""], "Status").replies[0]) == idle)
    boundary.alive()


def until(holds):
    """Wait until something holds."""
    deadline = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline, "it never held"
        time.sleep(0.02)
