"""Models: `build(spec, seed=...)` makes one; `protocol.Vae` is what every model offers.

- here: the registry, from a `ModelSpec` to a module with reproducible weights
- `autoencoder`: the model (posterior, decoder scale, loss); the two networks are parts that it is given
- `convolutional`: encoder and decoder of 2D and 3D images (imports MONAI, only when one is built)
- `perceptron`: encoder and decoder of tables
- `initialisation`: initial weights from a generator of their own
- `naming`: which parameters leave a site, and which are trained
- `separability`: which layers rule out per-record gradients
- `protocol`: the interface
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch

from vae.models.autoencoder import GaussianVae, Networks
from vae.models.initialisation import initialise
from vae.spec import Family, ModelSpec
from vae.weights import Signature, state_signature


def _image_networks(spec: ModelSpec) -> Networks:
    # Imported here: MONAI costs about two seconds, which a table or a toy federation should not pay.
    from vae.models import convolutional

    return convolutional.networks(spec)


def _table_networks(spec: ModelSpec) -> Networks:
    from vae.models import perceptron

    return perceptron.networks(spec)


def _gaussian_vae(spec: ModelSpec) -> GaussianVae:
    return GaussianVae(spec, _image_networks(spec) if spec.is_image else _table_networks(spec))


# The three families differ in their specification (beta, covariates), not in their code.
REGISTRY: Mapping[Family, Callable[[ModelSpec], GaussianVae]] = {
    "vae": _gaussian_vae,
    "beta-vae": _gaussian_vae,
    "cvae": _gaussian_vae,
}


def build(spec: ModelSpec, *, seed: int) -> GaussianVae:
    """Return the model of `spec`, on the CPU in float32, with weights that `seed` alone decides.

    Args:
        spec: What to build.
        seed: Seed of the initial weights, 0..2**63 - 1. It is public: every site may know the start of a run.

    Raises:
        ModelSpecError: the specification cannot be built.

    Guarantees:
        The same bytes at every call, and no global random generator is read or moved
        (tests/unit/vae/test_models.py).
    """
    model = _skeleton(spec).to_empty(device="cpu")
    initialise(model, initial_scale=spec.initial_scale, generator=torch.Generator().manual_seed(seed))
    return model


@functools.lru_cache(maxsize=64)
def signature_of(spec: ModelSpec) -> Signature:
    """Return (name, shape, dtype) of each parameter, sorted by name, without allocating weights.

    Raises:
        ModelSpecError: the specification cannot be built.
    """
    return state_signature(_skeleton(spec))


def _skeleton(spec: ModelSpec) -> GaussianVae:
    """Return the model without memory for its weights; constructors then draw no random numbers either."""
    with torch.device("meta"):
        return REGISTRY[spec.family](spec).to(torch.float32)


__all__ = ["REGISTRY", "GaussianVae", "build", "signature_of"]
