"""Training with planted bugs, and audits of it: what an audit has to refute, for tests and benchmarks alike.

Every run is the product's own training loop; what is broken is put in through its own seams: an engine, a plan other
than the claim, another function of noise, or another sampler.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from privacy import training
from privacy.accounting import Release
from privacy.audit import AuditResult, audit_training
from privacy.banded import BandedNoise
from privacy.canaries import GradientCanaries
from privacy.clipping import Batch, ClippedSum, GradientEngine, Gradients, VmapEngine
from privacy.noise import KeyStream, SeededRandomness
from privacy.plan import PrivacyPlan
from privacy.sampling import PoissonSampler
from privacy.training import NoisedOptimiser, Patients
from tests.support.private_toys import RawGradient, make_cohort
from vae.data.cohort import Batch as Records
from vae.data.toy import ToySpec, open_toy
from vae.models import build
from vae.spec import ModelSpec

Audit = Callable[..., AuditResult]
"""Called with a seed, and with options of `audited`."""

NoisedMean = Callable[[Mapping[str, Tensor], PrivacyPlan, KeyStream, BandedNoise | None], Gradients]

DELTA = 1e-4
COHORT = make_cohort((6,), [1, 2, 3] * 4, covariates=0)
TABLE = ModelSpec(family="vae", input_shape=(8,), latent_size=3, channels=(16,), initial_scale=0.3)
"""The model of deploy/configs/simulate/smoke.yaml."""

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
    model: Literal["raw", "vae"] = "raw",
    confidence: float = 0.95,
    **changes: float,
) -> AuditResult:
    """Audit a run of a plan, that of the claim or one with `changes`, against the claim.

    Args:
        claimed: What is said to run.
        seed: Of everything.
        engine: None for the product's.
        canaries: None for 400 of 4 records.
        model: `raw` has gradients that are its records; `vae` is a real one on the made-up patients of a site.
        confidence: Of the audit.
        changes: Of the plan that runs.
    """
    fields = {
        "sampling_probability": claimed.sampling_probability,
        "noise_multiplier": claimed.noise_multiplier,
    } | changes
    module, patients, latent_size = _raw() if model == "raw" else _vae()
    return audit_training(
        module,
        patients,
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
        kl_weight=0.0 if model == "raw" else TABLE.beta,
        latent_size=latent_size,
        canaries=canaries or GradientCanaries(count=400, records=4),
        confidence=confidence,
        engine=engine,
    )


def _raw() -> tuple[nn.Module, Patients, int]:
    """Return a model whose gradients are its records, 12 patients, and the size of the latent that it ignores."""
    return RawGradient(6), COHORT, 1


def _vae() -> tuple[nn.Module, Patients, int]:
    """Return the smallest real model, 24 patients of one site, and the size of its latent."""
    site = ToySpec(sites=1, patients_per_site=24, records=(1, 3), features=8, seed=1)
    return build(TABLE, seed=1), open_toy(site, site=0).train, TABLE.latent_size


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
    with mock.patch.object(training, "noised_mean", mean):
        yield


@contextlib.contextmanager
def sampled_by(sampler: type[Everybody] | type[Shuffled]) -> Iterator[None]:
    """Let training choose patients in another way; what it says of its sampling stays the same."""
    with mock.patch.object(training, "PoissonSampler", sampler):
        yield


class Everybody:
    """A sampler that takes everybody and says that it samples."""

    def __init__(
        self, *, num_patients: int, sampling_probability: float, stream: KeyStream, bands: int = 1
    ) -> None:
        self._num_patients = num_patients
        self.release = PoissonSampler(
            num_patients=num_patients, sampling_probability=sampling_probability, stream=stream, bands=bands
        ).release

    def samples(self, steps: int) -> Iterator[npt.NDArray[np.int64]]:
        for _ in range(steps):
            yield np.arange(self._num_patients)


class Shuffled:
    """A sampler that shuffles, deals batches of n q patients, and says that it samples."""

    def __init__(
        self, *, num_patients: int, sampling_probability: float, stream: KeyStream, bands: int = 1
    ) -> None:
        self._batches = round(1.0 / sampling_probability)
        self._num_patients = num_patients
        self._rng = stream.generator()
        self.release = PoissonSampler(
            num_patients=num_patients, sampling_probability=sampling_probability, stream=stream, bands=bands
        ).release

    def samples(self, steps: int) -> Iterator[npt.NDArray[np.int64]]:
        for step in range(steps):
            if step % self._batches == 0:
                order = self._rng.permutation(self._num_patients)
            yield np.sort(order[step % self._batches :: self._batches])


def no_noise(
    clipped: Mapping[str, Tensor], plan: PrivacyPlan, noise: KeyStream, banded: BandedNoise | None = None
) -> Gradients:
    """Return the mean without noise."""
    return {name: tensor.to(torch.float64) / plan.divisor for name, tensor in clipped.items()}


def noise_of_the_mean(
    clipped: Mapping[str, Tensor], plan: PrivacyPlan, noise: KeyStream, banded: BandedNoise | None = None
) -> Gradients:
    """Return the mean with noise that would be right for a mean, added to the sum."""
    scaled = dataclasses.replace(plan, noise_multiplier=plan.noise_multiplier / plan.divisor)
    return _RIGHT(clipped, scaled, noise, banded)


def repeated_noise(
    clipped: Mapping[str, Tensor], plan: PrivacyPlan, noise: KeyStream, banded: BandedNoise | None = None
) -> Gradients:
    """Return the mean with the noise of the first step in every step."""
    return _RIGHT(clipped, plan, KeyStream(bytes(32)), banded)


_RIGHT = training.noised_mean


def _noised(mean: NoisedMean, claimed: Release = CLAIM) -> Audit:
    """Return the audit of a claim whose run is noised in another way."""

    def audit(seed: int, **options: Any) -> AuditResult:
        with noised_by(mean):
            return audited(claimed, seed, **options)

    return audit


def _sampled(sampler: type[Everybody] | type[Shuffled], claimed: Release) -> Audit:
    """Return the audit of a claim whose run samples in another way."""

    def audit(seed: int, **options: Any) -> AuditResult:
        with sampled_by(sampler):
            return audited(claimed, seed, **options)

    return audit


def _with(claimed: Release, **given: Any) -> Audit:
    """Return the audit of a claim whose run has another engine or plan."""
    return lambda seed, **options: audited(claimed, seed, **(given | options))


MANY = GradientCanaries(count=5000, records=1)
"""What it takes to tell half of the noise from all of it, in 99 of 100 seeds."""

BROKEN: dict[str, Audit] = {
    "no noise": _noised(no_noise),
    "noise of a mean on the sum": _noised(noise_of_the_mean),
    "no clip": _with(CLAIM, engine=Unclipped()),
    "batch averaged before the clip": _with(CLAIM, engine=MeanFirst()),
    "each record clipped": _with(EVERYBODY, engine=RecordByRecord()),
    "a quarter of the noise": _with(EVERYBODY, noise_multiplier=1.0),
    "half the noise": _with(EVERYBODY, noise_multiplier=2.0, canaries=MANY),
    "q eight times as large": _with(SELDOM, sampling_probability=0.8),
    "everybody sampled": _sampled(Everybody, SELDOM),
}
"""What is broken -> the audit of such a run, by its seed."""

UNSEEN: dict[str, Audit] = {
    "noise that repeats": _noised(repeated_noise),
    "shuffled instead of sampled": _sampled(Shuffled, CLAIM),
}
"""What is broken and what an audit does not see -> the audit of such a run, by its seed."""
