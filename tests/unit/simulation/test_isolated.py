"""Nodes that train without a federation: each on its own, restarted where a process dies, read back when finished."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from client.contract import Failure, FailureCode, encode_failure
from deploy.errors import EngineError
from deploy.plans import federation_plan, isolated_plan
from deploy.simulation.grid import InProcess, LocalGrid, make_contexts
from deploy.simulation.isolated import train_isolated
from deploy.simulation.sites import POOLED, VirtualSites
from server.clock import VirtualClock
from server.errors import EnrolmentError
from server.federation import initial_weights
from tests.support.experiments import experiment
from vae.errors import WeightsError
from vae.weights import hash_weights

pytestmark = pytest.mark.filterwarnings("ignore::privacy.unsafe.UnsafeWarning")  # these arms have no privacy

NAMES = ("site-1", "site-2", "site-3", POOLED)


class _Grid(LocalGrid):
    """A grid that may tamper with replies, and counts requests to train."""

    def __init__(self, names, executor, tamper=None):
        super().__init__(names, executor)
        self.tamper = tamper
        self.trained = 0

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        trained = [reply for reply in replies if reply.metadata.message_type == "train"]
        self.trained += len(trained)
        return [self.tamper(reply) if self.tamper and reply in trained else reply for reply in replies]


@pytest.fixture
def make_grid(tmp_path):
    made = []

    def make(tamper=None, names=NAMES, **sections):
        sites = VirtualSites(
            experiment=experiment(**sections).model_dump_json(),
            sites=names,
            folder=tmp_path / "sites",
            cache=tmp_path / "cache",
        )
        made.append(sites)
        nodes = {name: node for node, name in enumerate(names, start=2)}
        return _Grid(names, InProcess(sites.app(), make_contexts(nodes)), tamper)

    yield make
    for sites in made:
        sites.close()


@pytest.fixture
def plan():
    made = experiment()
    spec = made.model_spec((5,))
    return isolated_plan(federation_plan(made, spec, private=False, randomness="seeded"), NAMES)


def _train(grid, plan, folder, *, names=NAMES, seen=None):
    def observe(round_, status):
        if seen is not None:
            seen.append((round_, dict(status)))

    return train_isolated(grid, names, plan, folder, VirtualClock(), observe=observe)


def _hashes(weights):
    return {name: hash_weights(own) for name, own in weights.items()}


def test_every_node_trains_its_own_model_for_all_rounds(make_grid, plan, tmp_path):
    seen = []
    weights = _train(make_grid(), plan, tmp_path / "arms", seen=seen)
    assert set(weights) == set(NAMES)
    assert len(set(_hashes(weights).values())) == 4
    initial = initial_weights(plan.model, "all", plan.initial_seed)
    for own in weights.values():
        assert {name: value.shape for name, value in own.items()} == {n: v.shape for n, v in initial.items()}
        assert any((own[name] != initial[name]).any() for name in own)
    assert seen == [(round_, dict.fromkeys(NAMES, "admitted")) for round_ in (1, 2)]


def test_a_node_does_not_depend_on_the_others(make_grid, plan, tmp_path):
    together = _train(make_grid(), plan, tmp_path / "a")
    alone = _train(make_grid(names=("site-2",)), plan, tmp_path / "b", names=("site-2",))
    assert _hashes(alone)["site-2"] == _hashes(together)["site-2"]


def test_a_finished_arm_is_read_back_and_nobody_is_asked(make_grid, plan, tmp_path):
    first = _train(make_grid(), plan, tmp_path / "arms")
    grid, seen = make_grid(), []
    assert _hashes(_train(grid, plan, tmp_path / "arms", seen=seen)) == _hashes(first)
    assert grid.trained == 0
    assert seen == []


def test_a_missing_node_or_another_configuration_is_trained_again(make_grid, plan, tmp_path):
    _train(make_grid(), plan, tmp_path / "arms")
    (tmp_path / "arms" / "site-3.safetensors").unlink()
    grid = make_grid()
    _train(grid, plan, tmp_path / "arms")
    assert grid.trained == 8
    grid = make_grid()
    _train(grid, replace(plan, config_hash="f" * 64), tmp_path / "arms")
    assert grid.trained == 8


def test_a_torn_file_of_weights_is_refused(make_grid, plan, tmp_path):
    _train(make_grid(), plan, tmp_path / "arms")
    path = tmp_path / "arms" / "site-3.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WeightsError):
        _train(make_grid(), plan, tmp_path / "arms")


def test_what_partial_sharing_would_keep_at_a_site_is_trained_too(make_grid, plan, tmp_path):
    whole = _train(make_grid(), plan, tmp_path / "a")
    partial = _train(make_grid(), replace(plan, sharing="decoder"), tmp_path / "b")
    assert _hashes(partial) == _hashes(whole)


def _crash(times, node=3):
    """Return what makes a node's process end so many times."""
    left = [times]

    def tamper(reply):
        if reply.metadata.src_node_id != node or not left[0]:
            return reply
        left[0] -= 1
        crashed = Message(
            Error(ErrorCode.CLIENT_APP_CRASHED, "the worker process ended"), reply_to=_asked(reply)
        )
        crashed.metadata.__dict__["_src_node_id"] = node
        return crashed

    return tamper


def _asked(reply):
    from tests.support.apps import question

    asked = question(reply.metadata.src_node_id)
    asked.metadata.__dict__["_message_id"] = reply.metadata.reply_to_message_id
    return asked


def test_a_node_whose_process_ended_is_asked_again(make_grid, plan, tmp_path):
    undisturbed = _train(make_grid(), plan, tmp_path / "a")
    disturbed = _train(make_grid(_crash(1)), plan, tmp_path / "b")
    assert _hashes(disturbed) == _hashes(undisturbed)


def test_a_node_whose_process_ends_again_and_again_ends_the_arm_and_is_named(make_grid, plan, tmp_path):
    with pytest.raises(EngineError, match=r"round 1: no answer from site-2, asked 2 times"):
        _train(make_grid(_crash(9)), plan, tmp_path / "arms")
    assert not (tmp_path / "arms").exists()


def test_a_site_that_cannot_train_ends_the_arm_and_is_named_with_its_code(make_grid, plan, tmp_path):
    def refuse(reply):
        if reply.metadata.src_node_id != 4:
            return reply
        failure = Failure(site="site-3", code=FailureCode.OUT_OF_MEMORY)
        return Message(encode_failure(failure), reply_to=_asked(reply))

    with pytest.raises(EngineError, match="site-3: out-of-memory"):
        _train(make_grid(refuse), plan, tmp_path / "arms")


def test_a_node_that_is_not_there_is_named(make_grid, plan, tmp_path):
    with pytest.raises(EnrolmentError, match="site-9"):
        _train(make_grid(), plan, tmp_path / "arms", names=(*NAMES, "site-9"))


def test_the_sum_of_the_updates_is_the_change(make_grid, plan, tmp_path):
    one = _train(make_grid(), replace(plan, rounds=1), tmp_path / "a")
    two = _train(make_grid(), replace(plan, rounds=2), tmp_path / "b")
    assert any((one["site-1"][name] != two["site-1"][name]).any() for name in one["site-1"])
    assert all(np.isfinite(value).all() for own in two.values() for value in own.values())
