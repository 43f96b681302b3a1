"""Killed at any moment and run again, the final weights are those of a run that nobody disturbed."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from server.federation import initial_weights
from tests.support.experiments import experiment, run
from vae.weights import hash_weights

ROOT = Path(__file__).parents[2]
SHAPE = {
    "arms": ["federated-dp"],
    "federation": {"rounds": 6, "strategy": "fedadam"},
    "data": {"patients_per_site": 40},
}
CHILD = """
import sys
from pathlib import Path
from tests.support.experiments import experiment, run
run(experiment(**{shape!r}), Path(sys.argv[1]))
"""


def _final(trained):
    return hash_weights(trained.federated["federated-dp"].state.weights)


class _StopError(Exception):
    pass


class _StopAfter:
    """A display that raises when a round ends, which is after its checkpoint was saved."""

    def __init__(self, round_):
        self.round = round_

    def note(self, text):
        pass

    def update(self, view):
        if view.round == self.round:
            raise _StopError

    def close(self):
        pass


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return _final(run(experiment(**SHAPE), tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize("round_", [1, 3, 5])
def test_stopped_after_a_round_and_run_again(round_, undisturbed, tmp_path):
    with pytest.raises(_StopError):
        run(experiment(**SHAPE), tmp_path, progress=_StopAfter(round_))
    trained = run(experiment(**SHAPE), tmp_path)
    assert _final(trained) == undisturbed
    assert min(trained.rounds_now["federated-dp"]) == round_ + 1


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.05, 0.3, 0.8])
def test_killed_and_run_again(delay_s, undisturbed, tmp_path):
    out = tmp_path / "out"
    child = subprocess.Popen([sys.executable, "-c", CHILD.format(shape=SHAPE), str(out)], cwd=ROOT)
    for _ in range(1200):
        if (out / "checkpoints").exists() or child.poll() is not None:
            break
        time.sleep(0.05)
    time.sleep(delay_s)
    child.kill()
    child.wait()
    assert _final(run(experiment(**SHAPE), out)) == undisturbed


OPTIONS = {
    **SHAPE,
    "federation": {"rounds": 5, "weight_average": 0.7},
    "privacy": {
        "optimiser": "adam-corrected",
        "schedule": "cosine",
        "warmup_steps": 2,
        "trainable": "decoder",
    },
}


def test_options_of_learning_go_on_bit_for_bit(tmp_path):
    """The rate of a step, the average and what is frozen are functions of the round alone."""
    whole = run(experiment(**OPTIONS), tmp_path / "whole")
    with pytest.raises(_StopError):
        run(experiment(**OPTIONS), tmp_path / "parts", progress=_StopAfter(3))
    parts = run(experiment(**OPTIONS), tmp_path / "parts")
    assert _final(parts) == _final(whole)
    state, other = (each.federated["federated-dp"].state for each in (whole, parts))
    assert hash_weights(state.average) == hash_weights(other.average) != hash_weights(state.weights)
    (arm,) = parts.arms
    assert {hash_weights(each) for each in arm.weights.values()} == {hash_weights(state.average)}
    plain = run(experiment(**{**OPTIONS, "privacy": {}}), tmp_path / "plain")
    encoder = [name for name in state.weights if name.startswith("encoder.")]
    moved = plain.federated["federated-dp"].state.weights
    start = initial_weights(plain.spec, "all", 3)
    assert all((state.weights[name] == start[name]).all() for name in encoder)
    assert all((moved[name] != start[name]).any() for name in encoder)


def test_with_partial_sharing_the_average_is_of_what_is_shared(tmp_path):
    shape = {"rounds": 2, "weight_average": 0.5, "sharing": "decoder"}
    trained = run(experiment(arms=["federated"], federation=shape), tmp_path)
    state, (arm,) = trained.federated["federated"].state, trained.arms
    assert state.average
    for name, value in state.average.items():
        assert (arm.weights["site-1"][name] == value).all()
        assert (arm.weights["site-2"][name] == value).all()


def test_a_finished_run_is_not_trained_again(undisturbed, tmp_path):
    run(experiment(**SHAPE), tmp_path)
    again = run(experiment(**SHAPE), tmp_path)
    assert _final(again) == undisturbed
    assert again.rounds_now["federated-dp"] == frozenset()


def test_a_repeated_round_costs_nothing_more(tmp_path):
    with pytest.raises(_StopError):
        run(experiment(**SHAPE), tmp_path, progress=_StopAfter(2))
    newest = sorted((tmp_path / "checkpoints" / "federated-dp").glob("round-*"))[-1]
    for file in newest.iterdir():
        file.write_bytes(b"torn")  # as if the kill had come before the second round was saved
    trained = run(experiment(**SHAPE), tmp_path)
    from privacy.claim import Claim

    claims = trained.federated["federated-dp"].state.claims.values()
    assert {sum(r.steps for r in Claim.from_json(claim).releases) for claim in claims} == {6 * 2}
