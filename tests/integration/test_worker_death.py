"""A worker process that dies in mid-run costs its sites a round, by name, and nothing else."""

import multiprocessing
import os
import signal

import pytest

from deploy.simulation.progress import Silent
from tests.support.experiments import experiment, run

SHAPE = {
    "data": {"sites": 4, "patients_per_site": 6},
    "federation": {"rounds": 4, "quorum": 1},
    "training": {"local_steps": 1},
}


class _KillAfter(Silent):
    """A display that kills the first worker when a round of an arm ends."""

    def __init__(self, arm, round_):
        self.when = (arm, round_)
        self.killed = []

    def update(self, view):
        if (view.arm, view.round) == self.when and not self.killed:
            workers = sorted(multiprocessing.active_children(), key=lambda child: child.pid)
            os.kill(workers[0].pid, signal.SIGKILL)
            workers[0].join()
            self.killed.append(workers[0].pid)


def test_its_message_is_an_error_reply_and_the_run_goes_on(tmp_path):
    killer = _KillAfter("federated", 2)
    trained = run(experiment(arms=["federated"], **SHAPE), tmp_path, workers=2, progress=killer)
    assert killer.killed
    ended = trained.federated["federated"]
    assert ended.round == 4
    third = ended.state.participation[2]
    lost = [site for site, status in third.items() if status != "admitted"]
    assert len(lost) == 1, "a worker has one message at a time"
    assert third[lost[0]] == "site-failed:internal-error"
    assert [(row.round, row.site) for row in ended.state.rejections] == [(3, lost[0])]
    assert set(ended.state.participation[3].values()) == {"admitted"}


def test_in_the_arms_without_a_federation_the_site_is_asked_again(tmp_path):
    from vae.weights import hash_weights

    def hashes(trained):
        return {arm.name: [hash_weights(weights) for weights in arm.weights.values()] for arm in trained.arms}

    made = experiment(arms=["local", "centralised"], **SHAPE)
    killer = _KillAfter("each site alone, and pooled", 2)
    disturbed = run(made, tmp_path / "a", workers=2, progress=killer)
    assert killer.killed
    assert hashes(disturbed) == hashes(run(made, tmp_path / "b"))


@pytest.mark.parametrize("workers", [1, 2])
def test_no_process_is_left_behind(workers, tmp_path):
    run(experiment(arms=["federated"], **SHAPE), tmp_path, workers=workers)
    assert multiprocessing.active_children() == []
