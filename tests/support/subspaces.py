"""Public directions for tests: orthonormal, of any trainable parameters."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


def orthonormal(k: int, size: int, seed: int = 0) -> np.ndarray:
    """Return [k, size] float64 with orthonormal rows."""
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, k)))[0].T


def directions_for(module: nn.Module, k: int, seed: int = 0) -> dict[str, Tensor]:
    """Return k random orthonormal directions of the trainable parameters, in their type."""
    moving = {name: tensor for name, tensor in module.named_parameters() if tensor.requires_grad}
    flat = torch.from_numpy(orthonormal(k, sum(tensor.numel() for tensor in moving.values()), seed))
    parts = torch.split(flat, [tensor.numel() for tensor in moving.values()], dim=1)
    return {
        name: part.reshape(k, *tensor.shape).to(tensor.dtype)
        for (name, tensor), part in zip(moving.items(), parts, strict=True)
    }


def stacked(directions: dict[str, Tensor]) -> Tensor:
    """Return V as one matrix [k, P], float64."""
    return torch.cat([each.flatten(1).to(torch.float64) for each in directions.values()], dim=1)
