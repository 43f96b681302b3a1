"""Who takes part and how long they are waited for: every site answers, or is named as missing."""

import gc
import weakref

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from client.contract import Failure, FailureCode, encode_failure, encode_weights
from server.clock import VirtualClock
from server.errors import EnrolmentError
from server.rounds import Collector, enrol
from tests.support.grids import ScriptedGrid, crash, describe

SITES = {2: "north", 3: "south", 4: "west"}


def _echo(message):
    return Message(message.content, reply_to=message)


def _nothing(message):
    return None


def _requests(nodes=SITES):
    return [
        Message(RecordDict({"i": ConfigRecord({"node": node})}), node, MessageType.TRAIN) for node in nodes
    ]


def _collector(delays=None, answers=None, deadline_s=60.0):
    clock = VirtualClock()
    grid = ScriptedGrid(
        clock=clock, answers={**dict.fromkeys(SITES, _echo), **(answers or {})}, delays=delays or {}
    )
    return Collector(grid, clock, deadline_s), grid, clock


def _nodes(replies):
    return [reply.metadata.src_node_id for reply in replies]


def test_replies_come_in_the_order_of_the_requests_whatever_the_order_of_arrival():
    collector, _, clock = _collector({2: 30.0, 3: 1.0, 4: 10.0})
    assert _nodes(collector.collect(_requests(), SITES)) == [2, 3, 4]
    assert collector.missing == []
    assert 30.0 <= clock.now() < 33.1  # polled every 3 s at most


def test_a_site_that_does_not_answer_is_missing_and_the_others_are_not_waited_for_again():
    collector, grid, clock = _collector({3: 1e9, 4: 2.0})
    assert _nodes(collector.collect(_requests(), SITES)) == [2, 4]
    assert collector.missing == ["south"]
    assert 60.0 <= clock.now() < 63.1
    assert len(grid.pulled) < 60, "waiting polls ever more slowly"


def test_an_answer_that_came_while_another_site_was_waited_for_counts():
    collector, _, _ = _collector({2: 1e9, 4: 59.0})
    assert _nodes(collector.collect(_requests(), SITES)) == [3, 4]
    assert collector.missing == ["north"]


def test_at_the_deadline_an_answer_still_counts_and_after_it_not():
    collector, _, _ = _collector({2: 60.0})
    assert _nodes(collector.collect(_requests(), SITES)) == [2, 3, 4]
    collector, _, _ = _collector({2: 60.1})
    assert _nodes(collector.collect(_requests(), SITES)) == [3, 4]


def test_a_late_answer_is_yielded_first_in_the_next_round_and_once():
    collector, grid, clock = _collector({3: 90.0})
    assert _nodes(collector.collect(_requests(), SITES)) == [2, 4]
    (late,) = [message_id for message_id in grid.pulled if message_id.startswith("3/")][:1]
    clock.sleep(40.0)
    grid.delays = {}
    replies = list(collector.collect(_requests(), SITES))
    assert _nodes(replies) == [3, 2, 3, 4]
    assert replies[0].metadata.reply_to_message_id == late
    assert collector.missing == []
    assert _nodes(collector.collect(_requests(), SITES)) == [2, 3, 4]


def test_an_answer_that_never_comes_keeps_nobody_waiting_twice():
    collector, _, clock = _collector(answers={3: _nothing})
    assert _nodes(collector.collect(_requests(), SITES)) == [2, 4]
    before = clock.now()
    assert _nodes(collector.collect(_requests({2: "north", 4: "west"}), SITES)) == [2, 4]
    assert clock.now() == before


def test_an_error_is_an_answer():
    collector, _, clock = _collector(answers={3: crash})
    replies = list(collector.collect(_requests(), SITES))
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert clock.now() == 0.0


def test_replies_are_pulled_one_at_a_time_and_let_go():
    made, alive = [], []

    def heavy(message):
        gc.collect()
        alive.append(sum(one() is not None for one in made))
        reply = Message(RecordDict({"w": encode_weights({"a": np.ones(1000, np.float32)})}), reply_to=message)
        made.append(weakref.ref(reply))
        return reply

    collector, grid, _ = _collector(answers=dict.fromkeys(SITES, heavy))
    pulled = []
    for reply in collector.collect(_requests(), SITES):  # enumerate() would keep the reply before
        pulled.append(len(grid.pulled))
        del reply
    assert pulled == [1, 2, 3], "the next one is not fetched before this one was dealt with"
    assert alive == [0, 0, 0], "when the next one comes the one before is gone"


def test_a_round_with_nobody():
    collector, _, _ = _collector()
    assert list(collector.collect([], SITES)) == []


def _enrol(answers, wanted=("north", "south"), *, timeout_s=100.0, names=None, **options):
    clock = VirtualClock()
    grid = ScriptedGrid(clock=clock, answers=answers, **options)
    found = enrol(grid, wanted, clock, timeout_s=timeout_s, names=names and (lambda _: names))
    return found, grid, clock


BOTH = {7: describe("south"), 8: describe("north")}


def test_sites_are_found_by_their_own_names_sorted_and_asked_once():
    found, grid, clock = _enrol(BOTH)
    assert list(found.items()) == [("north", 8), ("south", 7)]
    assert grid.sent == [7, 8]
    assert clock.now() == 0.0


def test_a_site_that_joins_later_is_waited_for():
    found, _, clock = _enrol(BOTH, appears={8: 40.0})
    assert found == {"north": 8, "south": 7}
    assert 40.0 <= clock.now() < 43.1


def test_a_slow_description_is_waited_for_and_not_asked_again():
    found, grid, _ = _enrol(BOTH, delays={7: 50.0})
    assert found == {"north": 8, "south": 7}
    assert grid.sent == [7, 8]


def test_missing_sites_are_named_after_the_timeout():
    with pytest.raises(EnrolmentError, match="no answer from north, west within 100 s; start them"):
        _enrol({7: describe("south")}, ("north", "south", "west"))


def test_others_are_ignored_and_two_nodes_of_one_name_are_one_site():
    found, _, _ = _enrol({**BOTH, 5: describe("stranger"), 9: describe("north")})
    assert found == {"north": 8, "south": 7}


def test_who_says_to_be_somebody_else_is_no_site(caplog):
    """Nodes 5 and 9 have keys of their own, and say to be north, which is node 8."""
    answers = {5: describe("north"), **BOTH, 9: describe("north")}
    found, _, _ = _enrol(answers, names={5: "south-2", 7: "south", 8: "north"})
    assert found == {"north": 8, "south": 7}
    assert "node 5 says to be 'north', and its key is not registered as such" in caplog.text


def test_a_site_whose_node_has_no_registered_name_is_missing():
    with pytest.raises(EnrolmentError, match="no answer from north within"):
        _enrol(BOTH, names={7: "south"})


def test_nobody_is_wanted():
    assert _enrol({}, ())[0] == {}


def _ready_after(site, times, first):
    """Return what answers badly a few times, as a node does whose agent has not started yet."""
    left = [times]

    def answer(message):
        if left[0]:
            left[0] -= 1
            return first(message)
        return describe(site)(message)

    return answer


def _unreachable(message):
    return Message(encode_failure(Failure(site="north", code=FailureCode.UNREACHABLE)), reply_to=message)


def _nonsense(message):
    return Message(RecordDict({"reply": ConfigRecord({"json": "[" * 20_000})}), reply_to=message)


@pytest.mark.parametrize("first", [_unreachable, crash, _nonsense], ids=["unreachable", "crash", "nonsense"])
def test_a_node_that_was_not_ready_is_asked_again(first):
    found, grid, _ = _enrol({7: describe("south"), 8: _ready_after("north", 3, first)})
    assert found == {"north": 8, "south": 7}
    assert grid.sent == [7, 8, 8, 8, 8]


@pytest.mark.parametrize("answer", [_unreachable, crash, _nonsense], ids=["unreachable", "crash", "nonsense"])
def test_a_node_that_never_gets_ready_is_missing_and_not_pestered(answer):
    clock = VirtualClock()
    grid = ScriptedGrid(clock=clock, answers={7: describe("south"), 8: answer})
    with pytest.raises(EnrolmentError, match="no answer from north within 100 s"):
        enrol(grid, ("north", "south"), clock, timeout_s=100.0)
    assert len(grid.sent) < 60
