"""The agent behind its socket: one training at a time, nothing but codes, and no caller can make it do more."""

import json
import logging
import threading
import time

import grpc
import numpy as np
import pytest

from client import agent_pb2
from client.agent import Agent, Limits
from client.agent_pb2 import AuditReply, AuditRequest, Part, StatusReply, StatusRequest
from client.contract import (
    Description,
    Failure,
    FailureCode,
    decode_reply,
    encode_description,
    encode_request,
)
from client.errors import SiteError
from client.parts import from_parts, to_parts
from client.relay import SERVICE, AgentService
from client.serving import UnixSocket, serve
from privacy.errors import TamperedError
from tests.unit.client.test_contract import request, request_in_a_subspace, some_weights, update

PLANTED = "/data/patient_0815/scan.nii"


class _Site:
    """Answers with an update after `held` is let go, or raises."""

    def __init__(self, error=None):
        self.error = error
        self.asked = []
        self.held = threading.Event()
        self.held.set()
        self.begun = threading.Semaphore(0)
        self.at_once = self.most_at_once = 0

    def describe(self):
        return Description(site="north")

    def train(self, request, weights, basis=None):
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.asked.append((request, weights, basis))
        self.begun.release()
        assert self.held.wait(20)
        self.at_once -= 1
        if self.error is not None:
            raise self.error
        return update()


@pytest.fixture
def served(tmp_path):
    """Return a function that serves an agent, and where it listens."""
    made = []

    def start(site, **options):
        agent = Agent(site, head=options.pop("head", lambda: None), **options)
        folder = tmp_path / str(len(made))
        folder.mkdir(mode=0o700)
        made.append(serve(agent, UnixSocket(path=folder / "a")))
        return made[-1].target

    yield start
    for each in made:
        each.stop(0)


@pytest.fixture
def call():
    """Return a function that makes a callable of one method at a target."""
    channels = []

    def method(target, name):
        channels.append(grpc.insecure_channel(target))
        if name == "Train":
            return channels[-1].stream_stream(
                f"/{SERVICE}/Train",
                request_serializer=Part.SerializeToString,
                response_deserializer=Part.FromString,
            )
        return channels[-1].unary_unary(
            f"/{SERVICE}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=getattr(agent_pb2, f"{name}Reply").FromString,
        )

    yield method
    for channel in channels:
        channel.close()


def _parts():
    return list(to_parts(encode_request(request(), some_weights())))


def _answer(parts):
    return decode_reply(from_parts(parts))


def test_the_relay_gets_what_the_site_answers(served):
    site = _Site()
    service = AgentService(served(site))
    assert service.describe() == Description(site="north")
    answer = service.train(request(), some_weights())
    service.close()
    (asked, weights, basis), *_ = site.asked
    assert asked == request()
    assert basis is None
    for name, value in some_weights().items():
        np.testing.assert_array_equal(weights[name], value)
    assert answer.update_hash == update().update_hash
    assert answer.claim == update().claim
    for name, value in update().delta.items():
        np.testing.assert_array_equal(answer.delta[name], value)


def test_the_directions_of_a_subspace_travel_too(served):
    asked, _ = request_in_a_subspace()
    site = _Site()
    service = AgentService(served(site))
    service.train(asked, some_weights(), {"a": np.ones((2, 3), np.float32)})
    service.close()
    np.testing.assert_array_equal(site.asked[0][2]["a"], np.ones((2, 3), np.float32))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError(f"boom {PLANTED}"), FailureCode.INTERNAL),
        (SiteError(FailureCode.BUDGET, PLANTED), FailureCode.BUDGET),
        (MemoryError(PLANTED), FailureCode.OUT_OF_MEMORY),
    ],
)
def test_no_text_of_an_exception_leaves(served, call, error, code, caplog):
    with caplog.at_level(logging.CRITICAL):
        parts = list(call(served(_Site(error)), "Train")(iter(_parts())))
    assert _answer(parts) == Failure(site="north", code=code)
    assert all(PLANTED.encode() not in part.SerializeToString() for part in parts)


def test_the_relay_raises_the_code_of_the_agent(served, caplog):
    service = AgentService(served(_Site(SiteError(FailureCode.BUDGET, PLANTED))))
    with caplog.at_level(logging.CRITICAL), pytest.raises(SiteError) as raised:
        service.train(request(), some_weights())
    service.close()
    assert raised.value.code is FailureCode.BUDGET
    assert PLANTED not in str(raised.value)


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [Part(data=b"x")],
        _parts()[:1],
        [*_parts(), Part(data=b"x")],
        list(to_parts(encode_description(Description(site="north")))),
    ],
    ids=["nothing", "data-first", "half", "too-much", "another-message"],
)
def test_a_malformed_request_is_answered_with_a_code_and_asks_nobody(served, call, parts, caplog):
    site = _Site()
    train = call(served(site), "Train")
    with caplog.at_level(logging.CRITICAL):
        answer = _answer(train(iter(parts)))
    assert answer == Failure(site="north", code=FailureCode.BAD_REQUEST)
    assert not site.asked
    assert _answer(train(iter(_parts()))).site == update().site  # it is still there


def test_a_stream_left_half_open_is_ended(served, call):
    """It does not hold the agent: who comes after it is served."""
    train = call(served(_Site(), limits=Limits(receive_s=0.3)), "Train")
    release = threading.Event()

    def half():
        yield _parts()[0]
        release.wait(20)

    stuck = train(half())
    answer = _answer(train(iter(_parts()), timeout=15))
    release.set()
    assert answer.site == update().site
    with pytest.raises(grpc.RpcError) as ended:
        list(stuck)
    assert ended.value.code() is grpc.StatusCode.CANCELLED


def test_one_trains_at_a_time_a_few_wait_and_the_rest_are_told(served, call, caplog):
    site = _Site()
    site.held.clear()
    target = served(site, limits=Limits(max_waiting=2))
    train, status = call(target, "Train"), call(target, "Status")
    answers = [train(iter(_parts()))]
    assert site.begun.acquire(timeout=10)
    answers += [train(iter(_parts())) for _ in range(2)]
    _until(lambda: status(StatusRequest()).waiting == 2)
    assert status(StatusRequest()).training
    with caplog.at_level(logging.CRITICAL):
        assert _answer(train(iter(_parts()))) == Failure(site="north", code=FailureCode.BUSY)
    site.held.set()
    assert [_answer(each).site for each in answers] == [update().site] * 3
    assert site.most_at_once == 1
    _until(lambda: status(StatusRequest()) == StatusReply(version=5))


def test_training_goes_on_when_its_caller_goes_away(served, call):
    site = _Site()
    site.held.clear()
    train = call(served(site), "Train")
    gone = train(iter(_parts()))
    assert site.begun.acquire(timeout=10)
    gone.cancel()
    after = train(iter(_parts()))
    time.sleep(0.5)
    assert len(site.asked) == 1  # the first still trains
    site.held.set()
    assert _answer(after).site == update().site
    assert len(site.asked) == 2


def test_who_goes_away_before_its_turn_is_not_trained_for(served, call, caplog):
    site = _Site()
    site.held.clear()
    target = served(site)
    train, status = call(target, "Train"), call(target, "Status")
    first = train(iter(_parts()))
    assert site.begun.acquire(timeout=10)
    waits = train(iter(_parts()))
    _until(lambda: status(StatusRequest()).waiting == 1)
    waits.cancel()
    with caplog.at_level(logging.CRITICAL):
        _until(lambda: status(StatusRequest()).waiting == 0)
    site.held.set()
    assert _answer(first).site == update().site
    assert len(site.asked) == 1


def test_the_watchdog_ends_what_runs_far_too_long(served, call, caplog):
    ended = []
    site = _Site()
    site.held.clear()
    target = served(site, limits=Limits(max_training_s=0.2), end=ended.append)
    with caplog.at_level(logging.CRITICAL):
        answer = call(target, "Train")(iter(_parts()))
        _until(lambda: ended == [70])
    assert "stays spent" in caplog.text
    site.held.set()
    assert _answer(answer).site == update().site


def test_the_watchdog_lets_go_of_what_ends_in_time(served, call):
    ended = []
    train = call(served(_Site(), limits=Limits(max_training_s=0.2), end=ended.append), "Train")
    assert _answer(train(iter(_parts()))).site == update().site
    time.sleep(0.5)
    assert not ended


def test_a_ledger_that_cannot_be_read_is_a_code(served, call, caplog):
    def broken():
        raise TamperedError(3, PLANTED)

    audit = call(served(_Site(), head=broken), "Audit")
    with caplog.at_level(logging.CRITICAL):
        assert audit(AuditRequest()) == AuditReply(failure="ledger-not-ready")


def test_the_audit_is_the_signed_head(served, call, tmp_path):
    from privacy.heads import Head
    from tests.support.site_ledgers import open_ledger

    ledger = open_ledger(tmp_path / "site", ["p1", "p2"])
    answer = call(served(_Site(), head=ledger.head), "Audit")(AuditRequest())
    head = Head.from_dict(json.loads(answer.head))
    assert head.is_signed()
    assert head == ledger.head()
    ledger.close()


def test_an_agent_that_comes_back_is_waited_for(tmp_path):
    (tmp_path / "s").mkdir(mode=0o700)
    path = tmp_path / "s" / "a"
    service = AgentService(f"unix:{path}", patience_s=20)
    found = []
    asking = threading.Thread(target=lambda: found.append(service.describe()))
    asking.start()
    time.sleep(0.3)
    agent = serve(Agent(_Site(), head=lambda: None), UnixSocket(path=path))
    asking.join(20)
    service.close()
    agent.stop(0)
    assert found == [Description(site="north")]


def test_without_an_agent_the_relay_gives_up_with_a_code(tmp_path):
    service = AgentService(f"unix:{tmp_path}/none", patience_s=0.2)
    with pytest.raises(SiteError, match="is it running") as raised:
        service.describe()
    service.close()
    assert raised.value.code is FailureCode.UNREACHABLE


def test_an_agent_of_another_release_is_refused(served, monkeypatch):
    import client.agent

    monkeypatch.setattr(client.agent, "PROTOCOL_VERSION", 4)
    service = AgentService(served(_Site()))
    with pytest.raises(SiteError) as raised:
        service.describe()
    service.close()
    assert raised.value.code is FailureCode.VERSION


def _until(holds, limit_s=10.0):
    """Wait until something holds."""
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "it never held"
        time.sleep(0.02)
