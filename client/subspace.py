"""Directions that came with a request: used only if they are what the request says, and can be used.

Directions are public and privacy does not hang on them (`privacy.subspace`); what is checked here is that every site
moves in the same ones, and that clip and noise have the size in them that they have without.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from client.contract import ContractError, TrainRequest, Weights
from privacy.subspace import ORTHONORMAL_WITHIN, distance_from_orthonormal
from vae.models.protocol import Vae
from vae.weights import hash_weights


def check_basis(request: TrainRequest, model: nn.Module, basis: Mapping[str, np.ndarray]) -> None:
    """Refuse directions that are not the request's or not orthonormal, before anything is spent.

    Args:
        request: Says how many there are, of which parameters, and their hash.
        model: Of the request.
        basis: Parameter name -> [k, *shape] float32; empty without a subspace.

    Raises:
        ContractError: names what is wrong, never a value.

    Guarantees:
        Nothing of the model changes (tests/unit/client/test_subspace.py).
    """
    k = request.learning.subspace
    if not k and not basis:
        return
    names = cast(Vae, model).trainable_names(request.learning.trainable) if k else frozenset()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if name in names}
    if set(basis) != set(shapes):
        raise ContractError("basis: needs directions of exactly the parameters that are trained")
    if any(basis[name].shape != (k, *shape) for name, shape in shapes.items()):
        raise ContractError("basis: every array must be [subspace, *shape of its parameter]")
    if k > sum(math.prod(shape) for shape in shapes.values()):
        raise ContractError("subspace: more directions than trained parameters")
    if hash_weights(basis) != request.basis_hash:
        raise ContractError("basis: the directions are not those of basis_hash")
    if not all(np.isfinite(each).all() for each in basis.values()):
        raise ContractError("basis: every direction must be finite")
    matrix = np.concatenate([basis[name].reshape(k, -1) for name in shapes], axis=1)
    if not distance_from_orthonormal(matrix) <= ORTHONORMAL_WITHIN:
        raise ContractError(f"basis: directions must be orthonormal to {ORTHONORMAL_WITHIN}")


def to_tensors(basis: Weights) -> dict[str, Tensor]:
    """Return copies of the directions as tensors: received arrays cannot be written to, which torch warns of."""
    return {name: torch.from_numpy(np.array(each)) for name, each in basis.items()}
