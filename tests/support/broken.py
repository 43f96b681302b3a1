"""Training with planted bugs, and audits of it: what an audit has to refute, for tests and benchmarks alike.

Every run is the product's own training loop; what is broken is put in through its own seams: an engine, a plan other
than the claim, or another function of noise.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from privacy import training
from privacy.accounting import Release
from privacy.audit import AuditResult, audit_training
from privacy.canaries import GradientCanaries
from privacy.clipping import Batch, ClippedSum, GradientEngine, Gradients, VmapEngine
from privacy.noise import KeyStream, SeededRandomness
from privacy.plan import PrivacyPlan
from privacy.training import NoisedOptimiser
from tests.support.private_toys import RawGradient, make_cohort
from vae.data.cohort import Batch as Records

NoisedMean = Callable[[Mapping[str, Tensor], PrivacyPlan, KeyStream], Gradients]

DELTA = 1e-4
COHORT = make_cohort((6,), [1, 2, 3] * 4, covariates=0)

CLAIM = Release(sampling_probability=0.25, noise_multiplier=2.0, steps=20)
"""Epsilon 2.3 at delta 1e-4, by PLD: what 400 canaries can refute lies above that, which is not so of large claims."""

EVERYBODY = Release(sampling_probability=1.0, noise_multiplier=4.0, steps=10)
"""Epsilon 2.9."""

SELDOM = Release(sampling_probability=0.1, noise_multiplier=1.0, steps=20)
"""Epsilon 2.9."""


def audited(
    claimed: Release,
    seed: int,
    *,
    engine: GradientEngine | None = None,
    canaries: GradientCanaries | None = None,
    **changes: float,
) -> AuditResult:
    """Audit a run of a plan, that of the claim or one with `changes`, against the claim; 400 canaries by default."""
    fields = {
        "sampling_probability": claimed.sampling_probability,
        "noise_multiplier": claimed.noise_multiplier,
    } | changes
    return audit_training(
        RawGradient(6),
        COHORT,
        plan=PrivacyPlan(
            steps=claimed.steps,
            max_grad_norm=0.5,
            divisor=20.0,
            delta=DELTA,
            max_records_per_patient=4,
            randomness="seeded",
            **fields,
        ),
        claimed=claimed,
        optimiser=NoisedOptimiser(learning_rate=0.01),
        randomness=SeededRandomness(seed, "power"),
        kl_weight=0.0,
        latent_size=1,
        canaries=canaries or GradientCanaries(count=400, records=4),
        engine=engine,
    )


class Unclipped:
    """An engine that forgets the clip."""

    def clipped_sum(
        self, module: nn.Module, batch: Batch, *, latent_noise: Tensor, kl_weight: float, max_grad_norm: float
    ) -> ClippedSum:
        return VmapEngine().clipped_sum(
            module, batch, latent_noise=latent_noise, kl_weight=kl_weight, max_grad_norm=1e9
        )


class MeanFirst:
    """An engine that clips the mean gradient of the batch, and multiplies by the number of patients."""

    def clipped_sum(
        self, module: nn.Module, batch: Batch, *, latent_noise: Tensor, kl_weight: float, max_grad_norm: float
    ) -> ClippedSum:
        found = Unclipped().clipped_sum(
            module, batch, latent_noise=latent_noise, kl_weight=kl_weight, max_grad_norm=max_grad_norm
        )
        flat = torch.cat([tensor.flatten() for tensor in found.sum.values()])
        norm = float(torch.linalg.vector_norm(flat)) / max(1, batch.num_patients)
        factor = min(1.0, max_grad_norm / norm) if norm > 0 else 1.0
        return dataclasses.replace(found, sum={name: factor * tensor for name, tensor in found.sum.items()})


class RecordByRecord:
    """An engine that clips each record instead of each patient."""

    def clipped_sum(
        self, module: nn.Module, batch: Batch, *, latent_noise: Tensor, kl_weight: float, max_grad_norm: float
    ) -> ClippedSum:
        rows = batch.values.shape[0]
        apart = Records(
            values=batch.values, covariates=batch.covariates, patient=torch.arange(rows), num_patients=rows
        )
        return VmapEngine().clipped_sum(
            module, apart, latent_noise=latent_noise, kl_weight=kl_weight, max_grad_norm=max_grad_norm
        )


@contextlib.contextmanager
def noised_by(mean: NoisedMean) -> Iterator[None]:
    """Let training noise its sums in another way."""
    right = training.noised_mean
    training.noised_mean = mean
    try:
        yield
    finally:
        training.noised_mean = right


def no_noise(clipped: Mapping[str, Tensor], plan: PrivacyPlan, noise: KeyStream) -> Gradients:
    """Return the mean without noise."""
    return {name: tensor.to(torch.float64) / plan.divisor for name, tensor in clipped.items()}


def noise_of_the_mean(clipped: Mapping[str, Tensor], plan: PrivacyPlan, noise: KeyStream) -> Gradients:
    """Return the mean with noise that would be right for a mean, added to the sum."""
    scaled = dataclasses.replace(plan, noise_multiplier=plan.noise_multiplier / plan.divisor)
    return _RIGHT(clipped, scaled, noise)


def repeated_noise(clipped: Mapping[str, Tensor], plan: PrivacyPlan, noise: KeyStream) -> Gradients:
    """Return the mean with the noise of the first step in every step."""
    return _RIGHT(clipped, plan, KeyStream(bytes(32)))


_RIGHT = training.noised_mean


def _noised(mean: NoisedMean) -> Callable[[int], AuditResult]:
    def audit(seed: int) -> AuditResult:
        with noised_by(mean):
            return audited(CLAIM, seed)

    return audit


BROKEN: dict[str, Callable[[int], AuditResult]] = {
    "no noise": _noised(no_noise),
    "noise of a mean on the sum": _noised(noise_of_the_mean),
    "no clip": lambda seed: audited(CLAIM, seed, engine=Unclipped()),
    "batch averaged before the clip": lambda seed: audited(CLAIM, seed, engine=MeanFirst()),
    "each record clipped": lambda seed: audited(EVERYBODY, seed, engine=RecordByRecord()),
    "a quarter of the noise": lambda seed: audited(EVERYBODY, seed, noise_multiplier=1.0),
    "q eight times as large": lambda seed: audited(SELDOM, seed, sampling_probability=0.8),
    "everybody sampled": lambda seed: audited(SELDOM, seed, sampling_probability=1.0),
}
"""What is broken -> the audit of such a run, by its seed."""
