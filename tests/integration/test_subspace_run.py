"""A whole simulation in a subspace: the private model differs from its public start by public directions alone."""

import numpy as np

from deploy.simulation.directions import directions_from
from deploy.simulation.public import public_cohort
from server.report.document import FEDERATED_DP
from tests.support.experiments import experiment, run

K = 3
MADE = experiment(
    public={
        "data": {"kind": "toy", "sites": 1, "patients_per_site": 20, "features": 5, "seed": 9},
        "steps": 5,
    },
    privacy={"subspace": K, "grad_engine": "vmap"},
    arms=["federated", "federated-dp"],
)


def test_the_private_model_lies_in_the_span(tmp_path):
    done = run(MADE, tmp_path)
    final = done.federated[FEDERATED_DP].state.weights
    basis = directions_from(done.spec, done.initial, public_cohort(MADE, tmp_path / "cache", workers=1), K)
    moved = np.concatenate([(final[name] - done.initial[name]).ravel() for name in basis]).astype(np.float64)
    matrix = np.concatenate([each.reshape(K, -1) for each in basis.values()], axis=1).astype(np.float64)
    assert np.linalg.norm(moved) > 1e-2
    assert np.linalg.norm(moved - moved @ matrix.T @ matrix) < 1e-5 * np.linalg.norm(moved) + 1e-6
    assert set(done.federated[FEDERATED_DP].status.values()) == {"admitted"}
    plain = done.federated["federated"].state.weights
    outside = np.concatenate([(plain[name] - done.initial[name]).ravel() for name in basis])
    assert np.linalg.norm(outside - outside @ matrix.T @ matrix) > 1e-2, (
        "the arm without privacy moves freely"
    )
