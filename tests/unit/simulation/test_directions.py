"""Directions from a public cohort fit what a federation's plan takes, at the weights it starts from."""

import dataclasses

import numpy as np
import pytest

from client.subspace import check_basis
from deploy.simulation.directions import directions_from
from server.federation import initial_weights
from tests.support.private_toys import make_cohort
from tests.unit.server.test_federation import FEDERATION
from vae.errors import WeightsError
from vae.models import build
from vae.spec import ModelSpec
from vae.weights import hash_weights

SPEC = ModelSpec(family="vae", input_shape=(4,), latent_size=2, channels=(3,))
COHORT = make_cohort((4,), (1, 2, 1, 3, 1, 1, 2, 1), covariates=0)


@pytest.mark.parametrize("which", ["all", "decoder"])
def test_they_pass_the_checks_of_a_site(which):
    weights = initial_weights(SPEC, "all", 5)
    basis = directions_from(SPEC, weights, COHORT, 4, trainable=which)
    learning = dataclasses.replace(FEDERATION.learning, subspace=4, trainable=which)
    plan = dataclasses.replace(FEDERATION, model=SPEC, learning=learning, basis=basis)
    check_basis(plan.request("north", 1, "ab"), build(SPEC, seed=0), basis)


def test_they_are_a_function_of_weights_cohort_and_number():
    weights = initial_weights(SPEC, "all", 5)
    first = directions_from(SPEC, weights, COHORT, 4)
    assert hash_weights(first) == hash_weights(directions_from(SPEC, weights, COHORT, 4))
    fewer = directions_from(SPEC, weights, COHORT, 2)
    for name, each in fewer.items():
        np.testing.assert_allclose(each, first[name][:2], atol=1e-5)
    elsewhere = directions_from(SPEC, initial_weights(SPEC, "all", 6), COHORT, 4)
    assert hash_weights(elsewhere) != hash_weights(first)


def test_too_few_patients_and_other_weights_are_refused():
    weights = initial_weights(SPEC, "all", 5)
    with pytest.raises(ValueError, match="9 are asked for"):
        directions_from(SPEC, weights, COHORT, 9)
    with pytest.raises(WeightsError, match="missing"):
        directions_from(SPEC, {}, COHORT, 2)
