"""Modules around one layer, and how far a clipped sum is from the loop over patients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from privacy.bookkeeping import BookkeepingEngine
from privacy.clipping import ClippedSum
from tests.support.private_toys import flatten, latent_of, make_cohort, reference_gradients, reference_sum
from vae.data.cohort import Batch


class LayerLoss(nn.Module):
    """A loss of one layer's output that is not linear in it; `prepare` makes the layer's input of the records."""

    def __init__(self, layer: nn.Module, prepare: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.layer = layer
        self._prepare = prepare or (lambda values: values)

    def forward(self, values: Tensor, covariates: Tensor, latent_noise: Tensor, kl_weight: float) -> Tensor:
        output = self.layer(self._prepare(values)).flatten(1)
        return (torch.tanh(output) + 0.1 * output.square()).sum(1)


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Return a module with seeded weights, norms' and biases' included, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = make().double().train()
        for parameter in module.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        return module


def batch_of(shape: tuple[int, ...], records: Sequence[int], seed: int = 0) -> Batch:
    """Return records in float64."""
    batch = make_cohort(shape, records, seed=seed).everything()
    return Batch(
        values=batch.values.double(),
        covariates=batch.covariates.double(),
        patient=batch.patient,
        num_patients=batch.num_patients,
    )


def clip(engine: BookkeepingEngine, module: nn.Module, batch: Batch, bound: float) -> ClippedSum:
    """Return the clipped sum, latent noise and KL weight fixed."""
    return engine.clipped_sum(
        module, batch, latent_noise=latent_of(batch), kl_weight=0.7, max_grad_norm=bound
    )


def gradients_of(module: nn.Module, batch: Batch) -> Tensor:
    """Return [P, parameters] float64 by autograd, one patient at a time."""
    return reference_gradients(module, batch, latent_of(batch), 0.7)


def distance(clipped: ClippedSum, gradients: Tensor, bound: float) -> float:
    """Return the error of a clipped sum, given the patients' gradients.

    Relative to the sum, or to the longest clipped gradient where the patients' cancel.
    """
    expected = reference_sum(gradients, bound)
    norms = torch.linalg.vector_norm(gradients, dim=1)
    longest = norms[torch.isfinite(norms)].clamp(max=bound).max()
    scale = torch.maximum(torch.linalg.vector_norm(expected), longest).clamp(min=1e-300)
    return float(torch.linalg.vector_norm(flatten(clipped.sum) - expected) / scale)


def median_norm(gradients: Tensor) -> float:
    """Return a bound > 0 that clips some patients and not others, where there are some."""
    return max(1e-3, 0.9 * float(torch.linalg.vector_norm(gradients, dim=1).median()))
