"""The same seed gives the same bits, whatever runs the sites."""

import importlib.util

import pytest

from tests.support.experiments import experiment, run
from vae.weights import hash_weights

ARMS = ["local", "federated", "federated-dp", "centralised"]


def _hashes(trained):
    return {arm.name: tuple(hash_weights(w) for w in arm.weights.values()) for arm in trained.arms}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return _hashes(run(experiment(arms=ARMS), tmp_path_factory.mktemp("one")))


def test_two_workers_equal_one_bit_for_bit(reference, tmp_path):
    assert _hashes(run(experiment(arms=ARMS), tmp_path, workers=2)) == reference


@pytest.mark.slow
def test_ray_equals_local_bit_for_bit(reference, tmp_path):
    if importlib.util.find_spec("ray") is None:
        pytest.skip("the dependency group ray is not installed")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # Ray and Flower's engine leave sockets and processes to the interpreter
        assert _hashes(run(experiment(arms=ARMS), tmp_path, engine="ray")) == reference


def test_another_seed_gives_other_bits(reference, tmp_path):
    assert (
        _hashes(run(experiment(arms=["federated-dp"], seed=4), tmp_path))["federated-dp"]
        != reference["federated-dp"]
    )


def test_arms_do_not_depend_on_which_others_are_trained(reference, tmp_path):
    alone = _hashes(run(experiment(arms=["federated-dp"]), tmp_path))
    assert alone["federated-dp"] == reference["federated-dp"]


@pytest.mark.parametrize("sharing", ["decoder", "encoder"])
def test_partial_sharing_keeps_the_rest_at_each_site(sharing, tmp_path):
    trained = run(experiment(arms=["federated"], federation={"rounds": 2, "sharing": sharing}), tmp_path)
    (arm,) = trained.arms
    first, second = arm.weights["site-1"], arm.weights["site-2"]
    shared = set(trained.federated["federated"].state.weights)
    assert shared
    assert shared != set(first)
    assert all((first[name] == second[name]).all() for name in shared)
    own = set(first) - shared
    assert any((first[name] != second[name]).any() for name in own)
    assert all(name.split(".")[0] == sharing or "scale" in name or sharing == "decoder" for name in shared)
    again = run(
        experiment(arms=["federated"], federation={"rounds": 2, "sharing": sharing}),
        tmp_path / "w",
        workers=2,
    )
    assert _hashes(again) == _hashes(trained)
