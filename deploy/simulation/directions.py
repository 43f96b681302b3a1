"""Directions of a subspace from a public cohort: from `privacy.subspace` to what `FederationPlan.basis` takes."""

from __future__ import annotations

from client.contract import Weights
from client.train import training_only
from privacy.subspace import public_directions
from vae.data.cohort import Cohort
from vae.models import build
from vae.spec import ModelSpec, Trainable
from vae.weights import load_into


def directions_from(
    spec: ModelSpec, weights: Weights, cohort: Cohort, k: int, *, trainable: Trainable = "all"
) -> Weights:
    """Return k orthonormal directions that hold most of the gradients of a public cohort, at public weights.

    For `FederationPlan.basis` of the private arm (`deploy.simulation.run`). Directions are the same for every round and
    site; a run that goes on makes them anew.

    Args:
        spec: The model.
        weights: All of its parameters: where the federation starts.
        cohort: Public patients. Nothing protects them.
        k: `privacy.subspace`, >= 1.
        trainable: `privacy.trainable`: directions are of these parameters alone.

    Returns:
        Parameter name -> [k, *shape] float32.

    Raises:
        ValueError: the cohort's gradients span fewer than k directions.
        WeightsError: the weights are not those of the model.

    Guarantees:
        Equal input gives equal directions on one machine (tests/unit/simulation/test_directions.py).
    """
    model = build(spec, seed=0)
    load_into(model, weights)
    with training_only(model, trainable):
        found = public_directions(model, cohort, k, latent_size=spec.latent_size, kl_weight=spec.beta)
    return {name: value.numpy() for name, value in sorted(found.items())}
