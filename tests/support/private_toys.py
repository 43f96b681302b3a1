"""Small modules and cohorts with known gradients, and the slow but obvious reference for clipped sums."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from vae.data.cohort import Batch, Cohort

LATENT = 3


class RawGradient(nn.Module):
    """A loss that is linear in the weights, so that a record's gradient is the record itself: hostile at will."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size, 1, bias=False)

    def forward(self, values: Tensor, covariates: Tensor, latent_noise: Tensor, kl_weight: float) -> Tensor:
        return self.layer(values)[:, 0]


class TableVae(nn.Module):
    """A conditional VAE of a table row; linear layers only."""

    def __init__(self, columns: int = 6, covariates: int = 2) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(columns + covariates, 8), nn.SiLU(), nn.Linear(8, 2 * LATENT))
        self.decoder = nn.Sequential(nn.Linear(LATENT + covariates, 8), nn.SiLU(), nn.Linear(8, columns))

    def forward(self, values: Tensor, covariates: Tensor, latent_noise: Tensor, kl_weight: float) -> Tensor:
        mean, log_variance = self.encoder(torch.cat([values, covariates], 1)).chunk(2, 1)
        latent = mean + latent_noise * torch.exp(0.5 * log_variance)
        decoded = self.decoder(torch.cat([latent, covariates], 1))
        return elbo(values, decoded, mean, log_variance, kl_weight)


class ImageVae(nn.Module):
    """A VAE of an 8 x 8 image with GroupNorm and both ways of upsampling; `norm` replaces one layer."""

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 4, 3, 2, 1),
            norm or nn.GroupNorm(2, 4),
            nn.SiLU(),
            nn.Conv2d(4, 4, 3, 2, 1),
            nn.Flatten(),
        )
        self.posterior = nn.Linear(16, 2 * LATENT)
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, 16),
            nn.Unflatten(1, (4, 2, 2)),
            nn.ConvTranspose2d(4, 4, 4, 2, 1),
            nn.GroupNorm(2, 4),
            nn.SiLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(4, 1, 3, 1, 1),
        )

    def forward(self, values: Tensor, covariates: Tensor, latent_noise: Tensor, kl_weight: float) -> Tensor:
        mean, log_variance = self.posterior(self.encoder(values)).chunk(2, 1)
        decoded = self.decoder(mean + latent_noise * torch.exp(0.5 * log_variance))
        return elbo(values, decoded, mean, log_variance, kl_weight)


class VolumeVae(nn.Module):
    """A VAE of a 4 x 4 x 4 volume."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv3d(1, 2, 3, 2, 1), nn.GroupNorm(1, 2), nn.SiLU(), nn.Flatten())
        self.posterior = nn.Linear(16, 2 * LATENT)
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, 16), nn.Unflatten(1, (2, 2, 2, 2)), nn.ConvTranspose3d(2, 1, 4, 2, 1)
        )

    def forward(self, values: Tensor, covariates: Tensor, latent_noise: Tensor, kl_weight: float) -> Tensor:
        mean, log_variance = self.posterior(self.encoder(values)).chunk(2, 1)
        decoded = self.decoder(mean + latent_noise * torch.exp(0.5 * log_variance))
        return elbo(values, decoded, mean, log_variance, kl_weight)


def elbo(values: Tensor, decoded: Tensor, mean: Tensor, log_variance: Tensor, kl_weight: float) -> Tensor:
    """Return [B]: squared error plus weighted KL."""
    error = (values - decoded).square().flatten(1).sum(1)
    return error + kl_weight * 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


SHAPES: dict[str, tuple[int, ...]] = {"table": (6,), "image": (1, 8, 8), "volume": (1, 4, 4, 4)}


def make_module(name: str, seed: int = 0) -> nn.Module:
    """Return a toy module with seeded weights; torch's generator is left as found."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {"table": TableVae, "image": ImageVae, "volume": VolumeVae}[name]()


def make_cohort(
    shape: tuple[int, ...], records: Sequence[int], *, seed: int = 0, covariates: int = 2
) -> Cohort:
    """Return a cohort whose patient p has records[p] records of standard normal values."""
    rng = np.random.default_rng(seed)
    total = sum(records)
    return Cohort.from_records(
        name="toy",
        patients=[f"{index:04d}" for index, count in enumerate(records) for _ in range(count)],
        values=rng.normal(size=(total, *shape)).astype(np.float32),
        covariates=rng.normal(size=(total, covariates)).astype(np.float32),
        covariate_names=tuple(f"c{index}" for index in range(covariates)),
    )


def raw_batch(
    rows: Sequence[Sequence[float]], patient: Sequence[int], dtype: torch.dtype = torch.float64
) -> Batch:
    """Return a batch for `RawGradient`: row b is the gradient of record b."""
    return Batch(
        values=torch.tensor(rows, dtype=dtype),
        covariates=torch.zeros(len(rows), 0, dtype=dtype),
        patient=torch.tensor(patient, dtype=torch.int64),
        num_patients=max(patient, default=-1) + 1,
    )


def latent_of(batch: Batch, seed: int = 0) -> Tensor:
    """Return latent noise [B, LATENT]."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(batch.num_records, LATENT)))


def reference_gradients(module: nn.Module, batch: Batch, latent_noise: Tensor, kl_weight: float) -> Tensor:
    """Return [P, parameters] float64: autograd, one patient at a time, flattened."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    rows = []
    for patient in range(batch.num_patients):
        own = batch.patient == patient
        like = parameters[0]
        losses = module(
            batch.values[own].to(like), batch.covariates[own].to(like), latent_noise[own].to(like), kl_weight
        )
        gradients = torch.autograd.grad(losses.mean(), parameters, allow_unused=True)
        filled = (
            torch.zeros_like(p) if gradient is None else gradient
            for p, gradient in zip(parameters, gradients, strict=True)
        )
        rows.append(torch.cat([gradient.detach().flatten() for gradient in filled]).to(torch.float64))
    return torch.stack(rows)


def reference_sum(gradients: Tensor, max_grad_norm: float) -> Tensor:
    """Return [parameters]: the sum over patients of gradients clipped to `max_grad_norm`; non-finite ones are zero."""
    total = torch.zeros(gradients.shape[1], dtype=torch.float64)
    for gradient in gradients:
        norm = float(torch.linalg.vector_norm(gradient))
        if np.isfinite(norm):
            total += gradient * min(1.0, max_grad_norm / norm if norm > 0 else 1.0)
    return total


def flatten(gradients: dict[str, Tensor]) -> Tensor:
    """Return one vector of all tensors, in their order."""
    return torch.cat([tensor.detach().flatten() for tensor in gradients.values()])


def weights_of(module: nn.Module) -> Tensor:
    """Return one float64 vector of all parameters."""
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()]).to(torch.float64)
