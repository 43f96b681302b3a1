"""What every model offers; federation, privacy and tasks hang on `per_sample_loss` alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from vae.spec import ModelSpec, Sharing, Trainable

__all__ = ["DpSupport", "Loss", "Posterior", "Sharing", "Trainable", "Vae"]


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """The approximate posterior q(z | x) of each record: mean and log_variance, both [B, Z] float32."""

    mean: Tensor
    log_variance: Tensor


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The negative evidence lower bound of each record, and its parts.

    Attributes:
        total: [B] float32, nats. Row b depends on row b of the inputs only.
        parts: Named terms, each [B]: `reconstruction` (nats), `kl` (nats, before beta).
    """

    total: Tensor
    parts: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class DpSupport:
    """Whether a model may be trained with per-patient clipping, and if not, why not and what to use instead."""

    supported: bool
    reason: str = ""


@runtime_checkable
class Vae(Protocol):
    """A variational autoencoder; implementations are `torch.nn.Module`s built by `vae.models.build`."""

    spec: ModelSpec
    dp_support: DpSupport

    def encode(self, values: Tensor, covariates: Tensor) -> Posterior:
        """Return the posterior of each record. values [B, C, *S], covariates [B, K]."""
        ...

    def decode(self, latent: Tensor, covariates: Tensor) -> Tensor:
        """Return the decoder's mean [B, C, *S] of latent [B, Z]."""
        ...

    def per_sample_loss(
        self, values: Tensor, covariates: Tensor, *, latent_noise: Tensor, kl_weight: float
    ) -> Loss:
        """Return each record's loss.

        Args:
            values: [B, C, *S].
            covariates: [B, K].
            latent_noise: [B, Z] standard normal deviates of the reparameterisation: an argument, so that a loss is a
                pure function of its inputs (per-record gradients, replays and swap tests need that).
            kl_weight: beta times warm-up in this global round, >= 0.
        """
        ...

    def shared_names(self, sharing: Sharing) -> frozenset[str]:
        """Return the parameter names that leave a site under `sharing`; the rest stays."""
        ...

    def trainable_names(self, which: Trainable) -> frozenset[str]:
        """Return the parameter names that training moves; the rest is frozen."""
        ...
