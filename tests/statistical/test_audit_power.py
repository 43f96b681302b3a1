"""The audit is audited: it refutes what is broken, in every seed, and leaves alone what is right.

Every run here is the product's own training loop (`privacy.training.train_private`); what is broken is put in through
its own seams: an engine, a plan other than the claim, or another function of noise.

By its proofs a true claim is refuted in at most 5 % of runs (`confidence`), so that of 12 such runs all may stand with
probability 0.54 even if that were the rate; `tests/unit/privacy/test_bounds.py` measures the rate itself over thousands
of simulated runs. Here it matters that the bound is a good part of what is true, and that nothing broken escapes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import pytest
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

CANARIES = GradientCanaries(count=400, records=4)
DELTA = 1e-4
SEEDS = (1, 2, 3)
COHORT = make_cohort((6,), [1, 2, 3] * 4, covariates=0)


def plan_of(claimed: Release, **changes: float) -> PrivacyPlan:
    """Return the plan of a claim, or another one."""
    fields = {
        "sampling_probability": claimed.sampling_probability,
        "noise_multiplier": claimed.noise_multiplier,
    } | changes
    return PrivacyPlan(
        steps=claimed.steps,
        max_grad_norm=0.5,
        divisor=20.0,
        delta=DELTA,
        max_records_per_patient=4,
        randomness="seeded",
        **fields,
    )


CLAIM = Release(sampling_probability=0.25, noise_multiplier=2.0, steps=20)
"""Epsilon 2.3 at delta 1e-4, by PLD: what 400 canaries can refute lies above that, which is not so of large claims."""

EVERYBODY = Release(sampling_probability=1.0, noise_multiplier=4.0, steps=10)
"""Epsilon 2.9."""

SELDOM = Release(sampling_probability=0.1, noise_multiplier=1.0, steps=20)
"""Epsilon 2.9."""


def audited(
    claimed: Release, seed: int, *, engine: GradientEngine | None = None, **changes: float
) -> AuditResult:
    """Audit a run of a plan, that of the claim or another, against the claim."""
    return audit_training(
        RawGradient(6),
        COHORT,
        plan=plan_of(claimed, **changes),
        claimed=claimed,
        optimiser=NoisedOptimiser(learning_rate=0.01),
        randomness=SeededRandomness(seed, "power"),
        kl_weight=0.0,
        latent_size=1,
        canaries=CANARIES,
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


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "claimed",
    [
        CLAIM,
        EVERYBODY,
        Release(sampling_probability=0.5, noise_multiplier=0.7, steps=3),
        Release(sampling_probability=0.05, noise_multiplier=0.6, steps=60),
    ],
    ids=["q .25", "q 1", "few steps", "little noise"],
)
def test_a_true_claim_stands(claimed: Release, seed: int):
    found = audited(claimed, seed)
    assert not found.violated
    assert max(found.lower_bound, found.lower_bound_fdp) <= found.epsilon_pld <= found.epsilon_rdp


@pytest.mark.parametrize("seed", SEEDS)
def test_what_it_finds_in_a_true_claim_is_no_small_part_of_it(seed: int):
    found = audited(EVERYBODY, seed)
    assert found.lower_bound_fdp > 0.2 * found.epsilon_pld
    assert found.auc > 0.7


Breaker = Callable[[pytest.MonkeyPatch, int], AuditResult]


def without_noise(patched: pytest.MonkeyPatch, seed: int) -> AuditResult:
    def mean(clipped: Mapping[str, Tensor], plan: PrivacyPlan, noise: KeyStream) -> Gradients:
        return {name: tensor.to(torch.float64) / plan.divisor for name, tensor in clipped.items()}

    patched.setattr(training, "noised_mean", mean)
    return audited(CLAIM, seed)


def with_noise_that_is_not_scaled(patched: pytest.MonkeyPatch, seed: int) -> AuditResult:
    right = training.noised_mean

    def mean(clipped: Mapping[str, Tensor], plan: PrivacyPlan, noise: KeyStream) -> Gradients:
        scaled = dataclasses.replace(plan, noise_multiplier=plan.noise_multiplier / plan.divisor)
        return right(clipped, scaled, noise)

    patched.setattr(training, "noised_mean", mean)
    return audited(CLAIM, seed)


BROKEN: dict[str, Breaker] = {
    "no noise": without_noise,
    "noise for the mean added to the sum": with_noise_that_is_not_scaled,
    "no clip": lambda _, seed: audited(CLAIM, seed, engine=Unclipped()),
    "the batch averaged before the clip": lambda _, seed: audited(CLAIM, seed, engine=MeanFirst()),
    "each record clipped": lambda _, seed: audited(EVERYBODY, seed, engine=RecordByRecord()),
    "a quarter of the noise": lambda _, seed: audited(EVERYBODY, seed, noise_multiplier=1.0),
    "q eight times as large": lambda _, seed: audited(SELDOM, seed, sampling_probability=0.8),
    "everybody sampled": lambda _, seed: audited(SELDOM, seed, sampling_probability=1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_implementation_is_refuted_in_every_seed(
    broken: str, seed: int, monkeypatch: pytest.MonkeyPatch
):
    found = BROKEN[broken](monkeypatch, seed)
    assert found.violated, f"{broken}: {found.lower_bound_fdp:.2f} of {found.epsilon_pld:.2f}"
    assert max(found.lower_bound, found.lower_bound_fdp) > found.epsilon_pld


@pytest.mark.parametrize("records", [1, 4])
def test_a_clip_of_each_record_is_seen_by_canaries_of_several_records_alone(records: int):
    canaries = GradientCanaries(count=400, records=records)
    found = audit_training(
        RawGradient(6),
        COHORT,
        plan=plan_of(EVERYBODY),
        claimed=EVERYBODY,
        optimiser=NoisedOptimiser(learning_rate=0.01),
        randomness=SeededRandomness(1, "power"),
        kl_weight=0.0,
        latent_size=1,
        canaries=canaries,
        engine=RecordByRecord(),
    )
    assert found.violated == (records > 1)


def test_noise_that_repeats_is_not_seen_and_the_report_says_so(monkeypatch: pytest.MonkeyPatch):
    right = training.noised_mean

    def mean(clipped: Mapping[str, Tensor], plan: PrivacyPlan, noise: KeyStream) -> Gradients:
        return right(clipped, plan, KeyStream(bytes(32)))

    monkeypatch.setattr(training, "noised_mean", mean)
    found = audited(CLAIM, 1)
    assert not found.violated
    assert any("repeat" in blind for blind in found.to_dict()["cannot_see"])
