"""Faults happen where and when the plan says, repeat with the seed, and leave other messages alone."""

import json

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode

from client.contract import decode_reply, encode_weights
from deploy.simulation.faults import FaultPlan, FaultyGrid, SiteFault, content_bytes, falsify, fault_plan
from deploy.simulation.grid import InProcess, LocalGrid, make_contexts
from server.clock import VirtualClock
from tests.support.apps import make_echo
from tests.support.experiments import experiment
from tests.support.replies import ask, honest_reply, small_strategy, some_weights
from vae.weights import hash_weights

NODES = {"site-1": 2, "site-2": 3}


def _request(node, *, round_=1, kind=MessageType.TRAIN):
    content = RecordDict(
        {
            "request": ConfigRecord({"json": json.dumps({"round": round_})}),
            "values": ConfigRecord({"i": node}),
        }
    )
    content["weights"] = encode_weights({"a": np.ones((250,), np.float32)})
    return Message(content, node, kind)


def _grid(faults=None, *, dropout=0.0, clock=None, seed=0):
    inner = LocalGrid(NODES, InProcess(make_echo(), make_contexts(NODES)))
    plan = FaultPlan(sites=faults or {}, dropout=dropout, seed=seed)
    sites = {node: site for site, node in NODES.items()}
    return FaultyGrid(inner, plan, sites, VirtualClock() if clock is None else clock)


def _nodes(replies):
    return [reply.metadata.src_node_id for reply in replies]


def test_a_fault_is_limited_to_its_rounds_and_its_site():
    plan = FaultPlan(sites={"site-1": SiteFault(crash=True, rounds=frozenset({2}))})
    assert [plan.at("site-1", round_).crash for round_ in (1, 2, 3)] == [False, True, False]
    assert plan.at("site-2", 2) == SiteFault()


def test_a_plan_without_faults_is_false():
    assert not FaultPlan(sites={})
    assert FaultPlan(sites={}, dropout=0.1)
    assert FaultPlan(sites={"site-1": SiteFault(drop=True)})


def test_drop_outs_are_as_frequent_as_asked_and_repeat_with_the_seed():
    def gone(seed):
        plan = FaultPlan(sites={}, dropout=0.3, seed=seed)
        return [plan.at(f"site-{site}", round_).drop for site in range(20) for round_ in range(1, 101)]

    draws = gone(1)
    assert 0.26 < np.mean(draws) < 0.34  # binomial(2000, 0.3): standard deviation 0.0102
    assert draws == gone(1)
    agreement = np.mean(np.array(draws) == np.array(gone(2)))
    assert 0.54 < agreement < 0.62  # independent draws agree with 0.3^2 + 0.7^2 = 0.58


def test_the_plan_of_an_experiment():
    made = experiment(
        faults={"dropout": 0.1, "site-2": {"update": "nan", "rounds": [1]}, "site-3": {"delay_s": 5.0}},
        seed=9,
    )
    assert fault_plan(made) == FaultPlan(
        sites={
            "site-2": SiteFault(update="nan", rounds=frozenset({1})),
            "site-3": SiteFault(delay_s=5.0),
        },
        dropout=0.1,
        seed=9,
    )


def test_without_faults_everything_passes():
    grid = _grid()
    assert grid.get_node_ids() == [2, 3]
    assert _nodes(grid.send_and_receive([_request(3), _request(2)])) == [3, 2]
    assert grid.run.run_id == 1


def test_a_site_that_is_gone_never_answers_and_holds_up_nobody():
    clock = VirtualClock()
    grid = _grid({"site-1": SiteFault(drop=True)}, clock=clock)
    ids = grid.push_messages([_request(2), _request(3)])
    assert _nodes(grid.pull_messages(ids)) == [3]
    clock.sleep(1e6)
    assert grid.pull_messages(ids) == []


def test_a_crash_is_answered_with_an_error_once():
    grid = _grid({"site-1": SiteFault(crash=True)})
    ids = grid.push_messages([_request(2)])
    (reply,) = grid.pull_messages(ids)
    assert (reply.error.code, reply.metadata.src_node_id) == (ErrorCode.CLIENT_APP_CRASHED, 2)
    assert reply.metadata.reply_to_message_id == ids[0]
    assert grid.pull_messages(ids) == []


def test_a_late_answer_comes_when_its_time_has_come():
    clock = VirtualClock()
    grid = _grid({"site-1": SiteFault(delay_s=30.0)}, clock=clock)
    ids = grid.push_messages([_request(2)])
    assert grid.pull_messages(ids) == []
    clock.sleep(29.9)
    assert grid.pull_messages(ids) == []
    clock.sleep(0.1)
    assert _nodes(grid.pull_messages(ids)) == [2]
    assert grid.pull_messages(ids) == []


def test_a_slow_link_takes_size_over_bandwidth():
    clock = VirtualClock()
    grid = _grid({"site-1": SiteFault(bandwidth_mbit=0.001)}, clock=clock)
    ids = grid.push_messages([_request(2)])
    size = content_bytes(_request(2))
    assert 1000 < size < 1200  # 250 float32 and a header
    assert grid.pull_messages(ids) == []
    clock.sleep(8 * size / 1000 - 0.01)
    assert grid.pull_messages(ids) == []
    clock.sleep(0.02)
    assert _nodes(grid.pull_messages(ids)) == [2]


def test_only_training_is_at_fault():
    grid = _grid({"site-1": SiteFault(drop=True)}, dropout=0.99)
    replies = grid.send_and_receive([_request(2, kind=MessageType.QUERY)])
    assert len(replies) == 1  # the app knows no query, so its answer is an error, but it comes


def _reply(tmp_path):
    from server.settings import StrategySettings

    strategy = small_strategy(StrategySettings(name="fedavg"), tmp_path, sites=["site-1"])
    return honest_reply(ask(strategy)["site-1"], "site-1", 1, strategy.weights, some_weights(1))


@pytest.mark.parametrize(
    ("how", "found"),
    [
        ("nan", lambda delta: np.isnan(delta["decoder.bias"]).sum() == 1),
        ("inf", lambda delta: np.isinf(delta["decoder.bias"]).sum() == 1),
        ("huge", lambda delta: delta["decoder.bias"].max() == np.float32(1e30)),
        ("wrong-shape", lambda delta: delta["decoder.bias"].shape == (1, 3)),
        ("renamed", lambda delta: "../decoder.bias" in delta and "decoder.bias" not in delta),
        ("corrupt", lambda delta: hash_weights(delta) != hash_weights(some_weights(1))),
        ("stale", lambda delta: hash_weights(delta) == hash_weights(some_weights(1))),
    ],
)
def test_an_update_is_falsified_as_named(how, found, tmp_path):
    reply = _reply(tmp_path)
    honest = decode_reply(reply.content)
    assert next(iter(honest.delta)) == "decoder.weight"
    reply.content["weights"] = encode_weights(dict(sorted(honest.delta.items())))  # the bias comes first
    falsify(reply, how)
    update = decode_reply(reply.content)
    assert found(update.delta)
    assert (update.base_hash == "0" * 64) == (how == "stale")


@pytest.mark.parametrize("how", ["nan", "inf", "huge", "wrong-shape", "renamed", "corrupt", "stale"])
def test_a_tensor_without_axes_can_be_falsified(how, tmp_path):
    reply = _reply(tmp_path)
    before = {"log_scale": np.float32(0.5).reshape(())}
    reply.content["weights"] = encode_weights(before)
    falsify(reply, how)
    after = decode_reply(reply.content).delta
    assert how == "stale" or hash_weights(after) != hash_weights(before)


def test_a_failure_has_no_update_to_falsify():
    reply = Message(RecordDict({"reply": ConfigRecord({"json": "{}"})}), 2, MessageType.TRAIN)
    falsify(reply, "nan")
    assert list(reply.content.array_records) == []


def test_a_fault_falsifies_the_update_of_its_round():
    grid = _grid({"site-1": SiteFault(update="nan", rounds=frozenset({2}))})
    values = []
    for round_ in (1, 2):
        (reply,) = grid.send_and_receive([_request(2, round_=round_)])
        values.append(reply.content.array_records["weights"]["a"].numpy())
    assert np.isfinite(values[0]).all()
    assert np.isnan(values[1]).sum() == 1
