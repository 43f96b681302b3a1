"""A federation in bad weather: it ends, the report's numbers say what was lost, and hostile sites change nothing."""

import numpy as np
import pytest

from server.errors import QuorumLostError
from tests.support.experiments import experiment, run
from vae.weights import hash_weights

FIVE = {"sites": 5, "patients_per_site": 6}


def _federated(tmp_path, **sections):
    trained = run(experiment(**{"arms": ["federated"], **sections}), tmp_path)
    return trained.federated["federated"]


def test_fifty_rounds_with_thirty_percent_dropout_complete(tmp_path):
    ended = _federated(
        tmp_path,
        data=FIVE,
        federation={"rounds": 50, "quorum": 1},
        training={"local_steps": 1},
        faults={"dropout": 0.3},
    )
    statuses = [status for round_ in ended.state.participation for status in round_.values()]
    lost = statuses.count("no-reply")
    assert ended.round == 50
    assert len(statuses) == 250
    assert 50 < lost < 100  # binomial(250, 0.3): mean 75, standard deviation 7.2
    assert lost == len(ended.state.rejections)
    assert all(np.isfinite(value).all() for value in ended.state.weights.values())


def test_dropout_repeats_with_the_seed_and_differs_without(tmp_path):
    shape = {"data": FIVE, "federation": {"rounds": 6, "quorum": 1}, "faults": {"dropout": 0.4}}
    first, again = _federated(tmp_path / "a", **shape), _federated(tmp_path / "b", **shape)
    other = _federated(tmp_path / "c", **shape, seed=8)
    assert first.state.participation == again.state.participation
    assert hash_weights(first.state.weights) == hash_weights(again.state.weights)
    assert first.state.participation != other.state.participation


REASONS = {
    "nan": "not-finite",
    "inf": "not-finite",
    "huge": "norm-too-large",
    "wrong-shape": "wrong-shape",
    "renamed": "missing-tensor",
    "stale": "stale-base",
    "corrupt": "hash-mismatch",
}
STRATEGIES = {
    "fedavg": {},
    "fedprox": {"proximal_mu": 0.1},
    "fedadam": {},
    "fedyogi": {},
    "median": {},
    "trimmed-mean": {"trim": 1},
    "krum": {"num_byzantine": 1},
}


@pytest.mark.parametrize(("strategy", "settings"), STRATEGIES.items(), ids=STRATEGIES)
def test_a_hostile_site_never_changes_the_model_and_is_named(strategy, settings, tmp_path):
    federation = {"rounds": 1, "quorum": 1, "strategy": strategy, **settings}
    # Krum counts an update that admission refused among the hostile ones it withstands, but not one that is missing.
    absent = {"update": "nan"} if strategy == "krum" else {"drop": True}
    honest = _federated(
        tmp_path / "absent", data=FIVE, federation=federation, faults={"site-3": absent}, seed=5
    )
    for update, reason in REASONS.items():
        hostile = _federated(
            tmp_path / update, data=FIVE, federation=federation, faults={"site-3": {"update": update}}, seed=5
        )
        assert [(row.site, row.reason) for row in hostile.state.rejections] == [("site-3", reason)]
        for name, value in honest.state.weights.items():
            assert (hostile.state.weights[name] == value).all(), (update, name)


def test_a_crash_and_a_late_site_are_named(tmp_path):
    ended = _federated(
        tmp_path,
        data=FIVE,
        federation={"rounds": 3, "deadline_s": 60.0},
        faults={
            "site-1": {"crash": True, "rounds": [1]},
            "site-2": {"delay_s": 90.0, "rounds": [1]},
            "site-4": {"bandwidth_mbit": 1e-6, "rounds": [2]},
        },
    )
    by_round = ended.state.participation
    assert by_round[0]["site-1"] == "site-failed:internal-error"
    assert by_round[0]["site-2"] == "no-reply"
    assert by_round[1]["site-2"] == "admitted"
    assert by_round[1]["site-4"] == "no-reply"
    late = [row for row in ended.state.rejections if row.reason == "late"]
    assert [row.site for row in late] == ["site-2"], "what came after its round is seen, named and not used"


def test_a_late_but_timely_site_is_admitted(tmp_path):
    federation = {"rounds": 1, "deadline_s": 60.0}
    ended = _federated(tmp_path, federation=federation, faults={"site-1": {"delay_s": 30.0}})
    assert ended.status == {"site-1": "admitted", "site-2": "admitted", "site-3": "admitted"}


def test_without_quorum_the_run_stops_and_keeps_what_it_had(tmp_path):
    shape = {
        "federation": {"rounds": 3, "quorum": 3},
        "faults": {"site-2": {"drop": True, "rounds": [2]}},
    }
    trained = run(experiment(**{"arms": ["federated"], **shape}), tmp_path)
    with pytest.raises(QuorumLostError, match=r"2 updates admitted \(site-1, site-3\), quorum is 3"):
        raise trained.stopped
    assert trained.federated["federated"].round == 1
    assert [path.name for path in (tmp_path / "checkpoints" / "federated").iterdir()] == ["round-000001"]


def test_a_lost_round_is_reported_and_the_run_goes_on(tmp_path):
    shape = {
        "federation": {"rounds": 4, "quorum": 3, "patience": 2},
        "faults": {"site-2": {"drop": True, "rounds": [2]}},
    }
    ended = _federated(tmp_path / "lossy", **shape)
    assert ended.round == 4
    assert ended.rounds_applied == 3
    assert ended.state.participation[1] == {
        "site-1": "round-lost",
        "site-2": "no-reply",
        "site-3": "round-lost",
    }
    assert {(row.round, row.reason) for row in ended.state.rejections} == {(2, "round-lost"), (2, "no-reply")}


def test_patience_ends_with_rounds_lost_in_a_row_also_across_a_restart(tmp_path):
    shape = {
        "federation": {"rounds": 6, "quorum": 3, "patience": 3},
        "faults": {"site-2": {"drop": True, "rounds": [2, 3, 4, 5]}},
    }
    for _ in range(2):
        with pytest.raises(QuorumLostError, match="round 4"):
            _stopped(tmp_path, **shape)


def _stopped(tmp_path, **sections):
    stopped = run(experiment(**{"arms": ["federated"], **sections}), tmp_path).stopped
    if stopped is not None:
        raise stopped
