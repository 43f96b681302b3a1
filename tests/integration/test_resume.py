"""Killed at any moment and run again, the final weights are those of a run that nobody disturbed."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

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
