"""Messages larger than a pipe's buffer, more of them than workers: nobody may wait for somebody who waits for them."""

from tests.support.experiments import experiment, run
from vae.weights import hash_weights


def test_updates_larger_than_a_pipe_pass_through_two_workers(tmp_path):
    shape = {
        "arms": ["federated"],
        "data": {"sites": 6, "patients_per_site": 3, "features": 64},
        "model": {"channels": [600, 300], "latent_size": 4},  # about 0.9 MB a message; a pipe holds 64 KiB
        "training": {"local_steps": 1},
        "federation": {"rounds": 2},
    }
    finals = [
        hash_weights(
            run(experiment(**shape), tmp_path / str(workers), workers=workers)
            .federated["federated"]
            .state.weights
        )
        for workers in (1, 2)
    ]
    assert finals[0] == finals[1]
