"""A federation from its first round to its last: saved after each, resumed where it stopped, whatever went wrong."""

import dataclasses

import numpy as np
import pytest

from client.contract import BASIS, ContractError, LearningPlan, decode_arrays, decode_request
from server.checkpoint import latest
from server.clock import VirtualClock
from server.errors import CheckpointError, EnrolmentError, QuorumLostError, StrategyError
from server.federation import FederationPlan, Progress, federate, initial_weights
from server.rounds import Timing
from server.settings import StrategySettings
from tests.support.grids import ScriptedGrid, describe
from tests.support.replies import PLAN, honest_reply
from vae.spec import ModelSpec
from vae.weights import hash_weights

SITES = {2: "north", 3: "south", 4: "west"}
MODEL = ModelSpec(family="vae", input_shape=(4,), latent_size=2, channels=(3,))
FEDERATION = FederationPlan(
    run_id="run-1",
    config_hash="c" * 64,
    site_weights=dict.fromkeys(SITES.values(), 1.0),
    plans=dict.fromkeys(SITES.values(), PLAN),
    model=MODEL,
    sharing="all",
    rounds=4,
    learning=LearningPlan(),
    kl_warmup_rounds=2,
    strategy=StrategySettings(name="fedavg"),
    quorum=2,
    timing=Timing(deadline_s=60.0, enrol_s=100.0),
)


class _Hospital:
    """Answers as a site would; its update is a constant times the round."""

    def __init__(self, site, asked, gone=()):
        self.site, self.asked, self.gone = site, asked, gone

    def __call__(self, message):
        if message.metadata.message_type != "train":
            return describe(self.site)(message)
        request, weights = decode_request(message.content)
        self.asked.append((self.site, request))
        if request.round in self.gone:
            return None
        delta = {name: np.full_like(value, 0.01 * request.round) for name, value in weights.items()}
        return honest_reply(message, self.site, request.round, weights, delta)


@pytest.fixture
def world():
    """Return what makes a grid of three hospitals, and what they were asked."""
    asked = []

    def make(gone=None, answers=None):
        nodes = {node: _Hospital(site, asked, (gone or {}).get(site, ())) for node, site in SITES.items()}
        return ScriptedGrid(clock=VirtualClock(), answers={**nodes, **(answers or {})})

    return make, asked


def _run(grid, folder, plan=FEDERATION, observe=None):
    return federate(grid, plan, folder, grid.clock, observe=observe)


def test_all_rounds_are_run_saved_and_shown(world, tmp_path):
    make, asked = world
    seen = []
    ended = _run(make(), tmp_path, observe=seen.append)
    assert [progress.round for progress in seen] == [1, 2, 3, 4]
    assert ended.round == 4
    assert ended.status == dict.fromkeys(SITES.values(), "admitted")
    assert [(site, request.round) for site, request in asked] == [
        (site, round_) for round_ in (1, 2, 3, 4) for site in ("north", "south", "west")
    ]
    assert latest(tmp_path).round == 4
    assert hash_weights(latest(tmp_path).weights) == hash_weights(ended.state.weights)


def test_the_model_is_the_initial_one_plus_the_mean_updates(world, tmp_path):
    make, _ = world
    ended = _run(make(), tmp_path)
    initial = initial_weights(MODEL, "all", 0)
    for name, value in ended.state.weights.items():
        np.testing.assert_allclose(value, initial[name] + 0.01 * (1 + 2 + 3 + 4), rtol=1e-5, atol=1e-6)


def test_each_round_is_asked_for_with_the_weights_before_it(world, tmp_path):
    make, asked = world
    states = []
    _run(make(), tmp_path, observe=lambda progress: states.append(hash_weights(progress.state.weights)))
    bases = {request.round: request.base_hash for _, request in asked}
    assert bases[1] == hash_weights(initial_weights(MODEL, "all", 0))
    assert [bases[round_] for round_ in (2, 3, 4)] == states[:3]


def test_the_weight_of_the_kl_term_grows_by_global_rounds(world, tmp_path):
    make, asked = world
    _run(make(), tmp_path)
    by_round = {request.round: request.learning.kl_weight for _, request in asked}
    assert by_round[1] < by_round[3] == by_round[4] == 1.0
    assert FEDERATION.request("north", 4, "x").learning.kl_weight == 1.0
    assert (
        dataclasses.replace(FEDERATION, kl_warmup_rounds=0).request("north", 1, "x").learning.kl_weight == 1.0
    )


def test_the_global_step_of_each_round_is_filled_in(world, tmp_path):
    make, asked = world
    _run(make(), tmp_path)
    steps = PLAN.steps
    assert steps > 1
    filled = {
        (request.round, request.learning.first_step, request.learning.total_steps) for _, request in asked
    }
    assert filled == {
        (1, 0, 4 * steps),
        (2, steps, 4 * steps),
        (3, 2 * steps, 4 * steps),
        (4, 3 * steps, 4 * steps),
    }


class _InterruptedError(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_stopped_after_a_round_it_goes_on_with_the_next(stop, world, tmp_path):
    make, asked = world
    whole = _run(make(), tmp_path / "whole")
    asked.clear()

    def interrupt(progress):
        if progress.round == stop:
            raise _InterruptedError

    with pytest.raises(_InterruptedError):
        _run(make(), tmp_path / "parts", observe=interrupt)
    ended = _run(make(), tmp_path / "parts")
    assert hash_weights(ended.state.weights) == hash_weights(whole.state.weights)
    assert ended.state.claims == whole.state.claims
    assert ended.state.participation == whole.state.participation
    assert [request.round for site, request in asked if site == "north"] == [1, 2, 3, 4]


AVERAGED = dataclasses.replace(
    FEDERATION, strategy=StrategySettings(name="fedavg", weight_average=0.8), rounds=5
)


def test_the_final_model_is_the_average_and_rounds_go_on_from_the_weights(world, tmp_path):
    make, _ = world
    seen = []
    ended = _run(
        make(), tmp_path / "a", AVERAGED, observe=lambda progress: seen.append(progress.state.weights)
    )
    plain = _run(make(), tmp_path / "b", dataclasses.replace(FEDERATION, rounds=5))
    assert hash_weights(ended.state.weights) == hash_weights(plain.state.weights)
    assert plain.state.final is plain.state.weights
    shares = 0.8 ** np.arange(4, -1, -1.0)
    for name, value in ended.state.final.items():
        expected = sum(share * each[name] for share, each in zip(shares, seen, strict=True)) / shares.sum()
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
        assert (value != ended.state.weights[name]).any()


def test_an_average_goes_on_bit_for_bit_and_does_not_count_lost_rounds(world, tmp_path):
    make, _ = world
    gone = {"north": (3,), "west": (3,)}
    plan = dataclasses.replace(AVERAGED, patience=2)
    whole = _run(make(gone), tmp_path / "whole", plan)

    def interrupt(progress):
        if progress.round in (1, 3, 4):
            raise _InterruptedError

    for _ in range(3):
        with pytest.raises(_InterruptedError):
            _run(make(gone), tmp_path / "parts", plan, observe=interrupt)
    ended = _run(make(gone), tmp_path / "parts", plan)
    assert ended.rounds_applied == 4
    assert hash_weights(ended.state.average) == hash_weights(whole.state.average)
    assert hash_weights(latest(tmp_path / "parts").average) == hash_weights(whole.state.average)
    seen = []
    _run(make(gone), tmp_path / "seen", plan, observe=lambda progress: seen.append(progress.state.weights))
    shares = np.array([0.8**3, 0.8**2, 0.8, 1.0])
    for name, value in whole.state.average.items():
        applied = [seen[round_][name] for round_ in (0, 1, 3, 4)]
        expected = sum(share * each for share, each in zip(shares, applied, strict=True)) / shares.sum()
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def test_a_finished_federation_asks_nobody(world, tmp_path):
    make, asked = world
    ended = _run(make(), tmp_path)
    asked.clear()
    nobody = ScriptedGrid(clock=VirtualClock(), answers={})
    again = _run(nobody, tmp_path)
    assert (again.round, hash_weights(again.state.weights)) == (4, hash_weights(ended.state.weights))
    assert again.state.participation == ended.state.participation
    assert asked == nobody.sent == []


def test_another_configuration_is_refused_before_anybody_is_asked(world, tmp_path):
    make, asked = world
    _run(make(), tmp_path)
    asked.clear()
    grid = make()
    with pytest.raises(
        CheckpointError, match=r"made with configuration cccccccccccc, this one is dddddddddddd"
    ):
        _run(grid, tmp_path, dataclasses.replace(FEDERATION, config_hash="d" * 64))
    assert grid.sent == []


def test_a_lost_quorum_keeps_the_rounds_before_and_says_what_became_of_this_one(world, tmp_path):
    make, _ = world
    gone = {"north": (3,), "west": (3,)}
    with pytest.raises(QuorumLostError, match=r"round 3: 1 updates admitted \(south\), quorum is 2") as lost:
        _run(make(gone), tmp_path)
    assert latest(tmp_path).round == 2
    state = lost.value.state
    assert hash_weights(state.weights) == hash_weights(latest(tmp_path).weights)
    assert len(state.participation) == 3
    assert state.participation[2] == {"north": "no-reply", "south": "round-lost", "west": "no-reply"}
    assert [(row.round, row.site) for row in state.rejections] == [(3, "north"), (3, "west"), (3, "south")]


def test_after_a_lost_quorum_it_goes_on_when_the_sites_are_back(world, tmp_path):
    make, _ = world
    with pytest.raises(QuorumLostError):
        _run(make({"north": (3,), "west": (3,)}), tmp_path / "a")
    assert hash_weights(_run(make(), tmp_path / "a").state.weights) == hash_weights(
        _run(make(), tmp_path / "b").state.weights
    )


def test_a_missing_site_is_named_before_the_first_round(world, tmp_path):
    make, asked = world
    grid = make(answers={4: lambda message: None})
    with pytest.raises(EnrolmentError, match="no answer from west within 100 s"):
        _run(grid, tmp_path)
    assert asked == []
    assert latest(tmp_path) is None


def test_a_late_site_is_named_and_its_old_update_is_not_used(world, tmp_path):
    make, _ = world
    grid = make()
    slow = {"rounds": 0}

    class _Slow(ScriptedGrid):
        def push_messages(self, messages):
            ids = []
            for message in messages:
                train = message.metadata.message_type == "train"
                first = train and message.metadata.dst_node_id == 4 and not slow["rounds"]
                slow["rounds"] += first
                self.delays = {4: 61.0} if first else {}
                ids += super().push_messages([message])
            return ids

    late = _Slow(clock=grid.clock, answers=grid.answers)

    def wait(progress):
        late.clock.sleep(5.0)

    ended = _run(late, tmp_path, observe=wait)
    assert ended.state.participation[0]["west"] == "no-reply"
    assert ended.state.participation[1] == dict.fromkeys(SITES.values(), "admitted")
    assert [(row.round, row.site, row.reason) for row in ended.state.rejections] == [
        (1, "west", "no-reply"),
        (2, "west", "late"),
    ]


def test_settings_that_contradict_each_other_are_refused_before_training(world, tmp_path):
    make, asked = world
    with pytest.raises(StrategyError, match="quorum is 4"):
        _run(make(), tmp_path, dataclasses.replace(FEDERATION, quorum=4))
    assert asked == []


def test_initial_weights_are_public_and_those_that_are_shared():
    whole, decoder = initial_weights(MODEL, "all", 7), initial_weights(MODEL, "decoder", 7)
    assert hash_weights(whole) == hash_weights(initial_weights(MODEL, "all", 7))
    assert hash_weights(whole) != hash_weights(initial_weights(MODEL, "all", 8))
    assert set(decoder) < set(whole)
    assert all((decoder[name] == whole[name]).all() for name in decoder)


def test_progress_without_a_round_has_no_status():
    from server.strategy import StrategyState

    state = StrategyState(weights={}, optimiser={}, rejections=(), claims={}, participation=())
    assert Progress(round=0, state=state).status == {}


def test_directions_go_with_every_request_and_are_named_by_their_hash(world, tmp_path):
    make, asked = world
    seen = []
    initial = initial_weights(MODEL, "all", 0)
    basis = {name: np.full((2, *value.shape), 0.25, np.float32) for name, value in initial.items()}
    learning = LearningPlan(subspace=2)
    plan = dataclasses.replace(FEDERATION, rounds=2, learning=learning, basis=basis)

    class Watching(_Hospital):
        def __call__(self, message):
            if message.metadata.message_type == "train":
                seen.append((decode_arrays(message.content, BASIS), message.content[BASIS]))
            return super().__call__(message)

    grid = make(answers={node: Watching(site, asked) for node, site in SITES.items()})
    _run(grid, tmp_path, plan)
    assert len(seen) == len(asked) == 2 * 3
    for arrays, _ in seen:
        assert {name: value.tobytes() for name, value in arrays.items()} == {
            name: value.tobytes() for name, value in basis.items()
        }
    assert len({id(record) for _, record in seen}) == 6, "no record is shared between sites"
    assert {request.basis_hash for _, request in asked} == {hash_weights(basis)}


def test_a_subspace_without_directions_is_refused_before_anybody_is_asked(world, tmp_path):
    make, asked = world
    lacking = dataclasses.replace(FEDERATION, learning=LearningPlan(subspace=2))
    with pytest.raises(StrategyError, match="subspace: 2 directions are asked for, and the plan has none"):
        _run(make(), tmp_path, lacking)
    with pytest.raises(StrategyError, match="subspace: 0 directions are asked for, and the plan has some"):
        _run(make(), tmp_path, dataclasses.replace(FEDERATION, basis={}))
    assert asked == []


def test_a_plan_without_directions_asks_for_no_subspace():
    assert FEDERATION.request("north", 1, "x").basis_hash == ""
    lacking = dataclasses.replace(FEDERATION, learning=LearningPlan(subspace=2))
    with pytest.raises(ContractError, match="basis_hash: is given with a subspace"):
        lacking.request("north", 1, "x")
