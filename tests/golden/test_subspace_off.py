"""Without a subspace nothing has changed: hashes of configurations and a seeded update are those of before."""

import json

import numpy as np
import pytest

from client.contract import LearningPlan, TrainRequest, encode_request
from deploy.plans import federation_plan
from tests.support.experiments import experiment
from tests.unit.client.test_contract import request, some_weights
from tests.unit.client.test_train import round_of

CONFIG_HASH = "2ae0a4309719bb6d8ecae98ad8f274cbdb3d8c07ebb58776167c88578c7e21dd"
UPDATE = [0.2873634033021517, 0.09311970411698793, 0.0036346488632261753]
"""Sum, sum of squares and first value of the change of a round, recorded before the option came."""


def test_the_hash_of_a_configuration_is_that_of_before():
    engine = {"grad_engine": "vmap"}  # the default of then
    assert experiment(privacy=engine).hash() == CONFIG_HASH
    assert experiment(privacy={**engine, "subspace": 0}).hash() == CONFIG_HASH
    with_it = experiment(public={"data": {"kind": "toy", "seed": 9}}, privacy={"subspace": 2})
    without = experiment(public={"data": {"kind": "toy", "seed": 9}})
    assert with_it.hash() != without.hash()


def test_a_seeded_update_is_that_of_before():
    done, _, _ = round_of(LearningPlan(learning_rate=0.01, proximal_mu=0.1))
    flat = np.concatenate([done.delta[name].ravel() for name in sorted(done.delta)]).astype(np.float64)
    assert [flat.sum(), np.square(flat).sum(), flat[0]] == pytest.approx(UPDATE, rel=1e-4)


def test_a_request_brings_no_directions():
    content = encode_request(request(), some_weights())
    assert list(content.array_records) == ["weights"]
    body = json.loads(content.config_records["request"]["json"])
    assert (body["basis_hash"], body["learning"]["subspace"]) == ("", 0)
    plan = federation_plan(experiment(), experiment().model_spec((5,)), private=True, randomness="seeded")
    assert plan.basis is None
    assert isinstance(plan.request("site-1", 1, "ab"), TrainRequest)
