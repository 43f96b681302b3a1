"""The Gaussian variational autoencoder: what all families share, whatever networks they are made of.

An encoder gives the posterior, a decoder the mean of a Gaussian whose single standard deviation is explicit:
fixed, or one learned scalar. Every loss is a pure function of its arguments, row by row, so that per-record
gradients exist for `torch.func` (`functional_call` with `vmap(grad)`), for hooks on modules (Opacus) and for
book-keeping engines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vae.models.naming import shared_names, trainable_names
from vae.models.protocol import DpSupport, Loss, Posterior, Sharing, Trainable
from vae.models.separability import dp_support
from vae.objectives import gaussian_nll_per_record, kl_per_latent, sample_latent
from vae.spec import ModelSpec

# exp(20) is far beyond any useful posterior; without bounds one outlier makes the KL term infinite.
_LOG_VARIANCE_RANGE = (-30.0, 20.0)


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The two halves of a model.

    Attributes:
        encoder: (values [B, C, *S], covariates [B, K]) -> [B, 2 Z]: mean, then log variance.
        decoder: (latent [B, Z], covariates [B, K]) -> [B, C, *S].
    """

    encoder: nn.Module
    decoder: nn.Module


class GaussianVae(nn.Module):
    """A variational autoencoder with a diagonal Gaussian posterior and a Gaussian decoder of one scale.

    Implements `vae.models.protocol.Vae`; make one with `vae.models.build`.

    Shapes: B records, C channels or columns, S space (none for tables), K covariates, Z latent.
    """

    def __init__(self, spec: ModelSpec, networks: Networks) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = networks.encoder
        self.decoder = networks.decoder
        # The learned log scale is the weight of a 1 x 1 linear layer fed with ones, not a bare parameter:
        # engines that find per-record gradients by hooking modules (Opacus 1.6) know Linear, and see no bare
        # parameters.
        self.log_scale = nn.Linear(1, 1, bias=False) if spec.decoder_scale == "learned" else None
        self.dp_support: DpSupport = dp_support(self)

    def encode(self, values: Tensor, covariates: Tensor) -> Posterior:
        """Return the posterior of each record.

        Args:
            values: [B, C, *S].
            covariates: [B, K]; any K for a model without covariates, which does not look at them.

        Raises:
            ValueError: a shape does not fit the specification.
        """
        self._check(values, self.spec.input_shape, "values")
        mean, log_variance = self.encoder(values, self._used(covariates)).chunk(2, dim=1)
        return Posterior(mean=mean, log_variance=log_variance.clamp(*_LOG_VARIANCE_RANGE))

    def decode(self, latent: Tensor, covariates: Tensor) -> Tensor:
        """Return the decoder's mean, [B, C, *S].

        Args:
            latent: [B, Z].
            covariates: [B, K].

        Raises:
            ValueError: a shape does not fit the specification.
        """
        self._check(latent, (self.spec.latent_size,), "latent")
        mean: Tensor = self.decoder(latent, self._used(covariates))
        return torch.sigmoid(mean) if self.spec.output == "sigmoid" else mean

    def decoder_log_scale(self, latent: Tensor) -> Tensor:
        """Return the log of the decoder's standard deviation: one value, repeated for each record, [B]."""
        ones = latent.new_ones((latent.shape[0], 1))
        if self.log_scale is None:
            return ones[:, 0] * math.log(self.spec.initial_scale)
        scale: Tensor = self.log_scale(ones)
        return scale[:, 0]

    def per_sample_loss(
        self, values: Tensor, covariates: Tensor, *, latent_noise: Tensor, kl_weight: float
    ) -> Loss:
        """Return the negative evidence lower bound of each record, with one draw of the latent.

        total = -log N(x; decoder(z), s^2) + kl_weight * KL(q(z | x) || N(0, I))
        z = mean + standard deviation * latent_noise

        Args:
            values: [B, C, *S].
            covariates: [B, K].
            latent_noise: [B, Z], standard normal.
            kl_weight: Weight of the KL term in this global round, >= 0 (`vae.objectives.kl_warmup`).

        Returns:
            Total and the parts `reconstruction` and `kl` (before the weight), each [B] in nats.

        Raises:
            ValueError: a shape does not fit the specification.

        Guarantees:
            Row b depends on row b of the inputs only, and nothing is stored in the module
            (tests/property/test_per_record_independence.py).

        References:
            Kingma & Welling 2014, arXiv:1312.6114, eq. (10); Higgins et al. 2017 (the weight).
        """
        posterior = self.encode(values, covariates)
        latent = sample_latent(posterior, latent_noise)
        reconstruction = gaussian_nll_per_record(
            values, self.decode(latent, covariates), self.decoder_log_scale(latent)
        )
        kl = kl_per_latent(posterior).sum(1)
        return Loss(total=reconstruction + kl_weight * kl, parts={"reconstruction": reconstruction, "kl": kl})

    def forward(self, values: Tensor, covariates: Tensor, latent_noise: Tensor, kl_weight: float) -> Tensor:
        """Return the total of `per_sample_loss`, [B]: Opacus' GradSampleModule sees module calls only."""
        return self.per_sample_loss(values, covariates, latent_noise=latent_noise, kl_weight=kl_weight).total

    def shared_names(self, sharing: Sharing) -> frozenset[str]:
        """Return the parameter names that leave a site under `sharing`; the rest stays there."""
        return shared_names(self, sharing)

    def trainable_names(self, which: Trainable) -> frozenset[str]:
        """Return the parameter names that training moves; the rest is frozen."""
        return trainable_names(self, which)

    def _used(self, covariates: Tensor) -> Tensor:
        """Return the covariates that the networks get: none of them for a model without."""
        if self.spec.num_covariates == 0:
            return covariates[:, :0]
        self._check(covariates, (self.spec.num_covariates,), "covariates")
        return covariates

    @staticmethod
    def _check(tensor: Tensor, row_shape: tuple[int, ...], name: str) -> None:
        """Refuse rows of another shape before a network fails on them less clearly, or broadcasts them."""
        if tuple(tensor.shape[1:]) != row_shape:
            expected = ", ".join(("B", *map(str, row_shape)))
            raise ValueError(f"{name} must be [{expected}], got {list(tensor.shape)}")
