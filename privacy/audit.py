"""An audit: how much privacy a training run demonstrably loses, against how much it claims to.

    result = audit_training(module, patients, plan=plan, claimed=plan.release(), ...)
    result.lower_bound <= true epsilon <= result.epsilon_pld            with probability >= result.confidence

Canaries join the cohort by coin flips, the very `train_private` runs on it, and the coins are guessed from what it
released. The claim is an argument of its own, apart from the plan that runs: an audit exists for the case that they
differ. `violated` means that the claim is refuted, not that a number looks high.

Coins test adding or removing a patient. A claim about replacing one covers that too (by one without a gradient), so it
can be tested as well, and has more room.

What it does not do: show that training is private. A bound far below the claim is the normal result. An audited run
holds canaries, so run it as a job of its own, on made-up or public data, and do not release its weights.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from privacy.accounting import Release
from privacy.bounds import FloatArray
from privacy.canaries import (
    CanaryModule,
    CanaryObserver,
    CanaryPatients,
    GradientCanaries,
    InsertedPatients,
    check_canaries,
    flip_coins,
)
from privacy.clipping import GradientEngine, patient_chunks
from privacy.errors import PlanError
from privacy.findings import AuditResult, judge
from privacy.noise import KeyStream, Randomness
from privacy.plan import PrivacyPlan
from privacy.training import NoisedOptimiser, Patients, train_private

__all__ = ["AuditResult", "audit_inputs", "audit_training", "patient_losses"]


def audit_training(
    module: nn.Module,
    patients: Patients,
    *,
    plan: PrivacyPlan,
    claimed: Release | Sequence[Release],
    optimiser: NoisedOptimiser,
    randomness: Randomness,
    kl_weight: float,
    latent_size: int,
    canaries: GradientCanaries | None = None,
    confidence: float = 0.95,
    max_steps: int | None = None,
    engine: GradientEngine | None = None,
    max_physical_records: int = 256,
) -> AuditResult:
    """Train a copy of `module` with gradient-space canaries among the patients, and test the claim.

    Args:
        module: As in `train_private`; not changed.
        patients: The cohort; canaries are added to it.
        plan: What runs.
        claimed: What is said to run; tested at the plan's delta. At least one step.
        optimiser: As in `train_private`.
        randomness: Of the plan's kind; a fresh object, for coins, sampling and noise.
        kl_weight: As in `train_private`.
        latent_size: Z.
        canaries: None for 1,000 of 4 records.
        confidence: In (0, 1).
        max_steps: Audit that many first steps, >= 1, against what is claimed of those; None for all.
        engine: As in `train_private`.
        max_physical_records: As in `train_private`.

    Returns:
        The bounds, and whether the claim is refuted.

    Raises:
        ValueError: no step is claimed, or an argument is out of range.
        PlanError: the randomness is not of the plan's kind.
        IncompatibleModelError: the module would silence its canaries.

    Guarantees:
        A true claim is refuted with probability at most 1 - confidence; planted bugs (no noise, no clip, the
        batch averaged before the clip, a clip of each record, another q) are found
        (tests/statistical/test_audit_power.py).

    References:
        Steinke, Nasr, Jagielski 2023, arXiv:2305.08846 (Dirac canaries: section 6); Nasr et al. 2023,
        arXiv:2302.07956.
    """
    started = time.monotonic()
    settings = canaries or GradientCanaries()
    plan, said = _first_steps(plan, claimed, max_steps)
    observer = CanaryObserver(
        said, count=settings.count, max_grad_norm=plan.max_grad_norm, divisor=plan.divisor
    )
    included = flip_coins(randomness.stream("canary-coins"), settings.count)
    probe = CanaryModule(copy.deepcopy(module), count=settings.count, norm=settings.norm * plan.max_grad_norm)
    check_canaries(probe, patients, latent_size=latent_size, kl_weight=kl_weight)
    train_private(
        probe,
        CanaryPatients(real=patients, included=included, records=settings.records),
        plan=plan,
        optimiser=optimiser,
        randomness=randomness,
        kl_weight=kl_weight,
        latent_size=latent_size,
        observe=observer,
        engine=engine,
        max_physical_records=max_physical_records,
    )
    return judge(
        observer.scores,
        included,
        claimed=said,
        delta=plan.delta,
        steps=plan.steps,
        confidence=confidence,
        sees_steps=True,
        started=started,
    )


def audit_inputs(
    module: nn.Module,
    patients: Patients,
    guests: Patients,
    *,
    plan: PrivacyPlan,
    claimed: Release | Sequence[Release],
    optimiser: NoisedOptimiser,
    randomness: Randomness,
    kl_weight: float,
    latent_size: int,
    num_draws: int = 8,
    confidence: float = 0.95,
    max_physical_records: int = 256,
) -> AuditResult:
    """Train a copy of `module` with some guests among the patients, and guess them from their losses.

    The black-box row of a report: what an attacker gets who holds the model alone. It finds far less than
    `audit_training`; at a few hundred guests usually nothing.

    Args:
        module: As in `train_private`; not changed.
        patients: The cohort.
        guests: m patients of made-up records (noise images); a coin lets each one in.
        plan: What runs.
        claimed: What is said to run.
        optimiser: As in `train_private`.
        randomness: As in `audit_training`.
        kl_weight: As in `train_private`.
        latent_size: Z.
        num_draws: Draws of the latent that each loss is averaged over, >= 1.
        confidence: In (0, 1).
        max_physical_records: As in `train_private`.

    Returns:
        As `audit_training`; no `clopper_pearson` and `gaussian_estimate`, because one model scores all guests.
    """
    started = time.monotonic()
    plan, said = _first_steps(plan, claimed, None)
    included = flip_coins(randomness.stream("canary-coins"), guests.num_patients)
    trained = copy.deepcopy(module)
    train_private(
        trained,
        InsertedPatients(real=patients, guests=guests, included=included),
        plan=plan,
        optimiser=optimiser,
        randomness=randomness,
        kl_weight=kl_weight,
        latent_size=latent_size,
        max_physical_records=max_physical_records,
    )
    losses = patient_losses(
        trained,
        guests,
        stream=randomness.stream("audit-latent"),
        kl_weight=kl_weight,
        latent_size=latent_size,
        num_draws=num_draws,
        max_rows=max_physical_records,
    )
    # Half of the guests are in, so the median loss separates as well as anything that is known in advance.
    scores = (np.median(losses) - losses)[None]
    return judge(
        scores,
        included,
        claimed=said,
        delta=plan.delta,
        steps=plan.steps,
        confidence=confidence,
        sees_steps=False,
        started=started,
    )


def patient_losses(
    module: nn.Module,
    patients: Patients,
    *,
    stream: KeyStream,
    kl_weight: float,
    latent_size: int,
    num_draws: int = 8,
    max_rows: int = 256,
) -> FloatArray:
    """Return the mean loss of each patient over records and draws of the latent, [n] float64; private.

    Args:
        module: As in `train_private`; run in the mode it is in.
        patients: n patients.
        stream: Of the latent noise.
        kl_weight: Weight of the KL term.
        latent_size: Z.
        num_draws: >= 1.
        max_rows: Records computed at once.
    """
    like = next(module.parameters())
    batch = patients.batch(np.arange(patients.num_patients, dtype=np.int64))
    total = np.zeros(patients.num_patients)
    for _ in range(num_draws):
        noise = torch.from_numpy(stream.normal(batch.values.shape[0] * latent_size)).reshape(-1, latent_size)
        parts = []
        with torch.no_grad():
            for rows in patient_chunks(batch, noise, max_rows, like=like):
                losses = rows.weight * module(rows.values, rows.covariates, rows.noise, kl_weight)
                parts.append(rows.per_patient(losses).to("cpu", torch.float64).numpy())
        total += np.concatenate(parts)
    return total / num_draws


def _first_steps(
    plan: PrivacyPlan, claimed: Release | Sequence[Release], max_steps: int | None
) -> tuple[PrivacyPlan, tuple[Release, ...]]:
    """Return plan and claim of the first `max_steps` steps.

    Raises:
        PlanError: the noise is banded: what the canaries score assumes steps that are independent.
    """
    if plan.mechanism == "banded":
        raise PlanError(
            "audit", ["banded noise cannot be audited: attacks take steps for independent; none runs"]
        )
    said = (claimed,) if isinstance(claimed, Release) else tuple(claimed)
    if max_steps is None:
        return plan, said
    if max_steps < 1:
        raise ValueError(f"max_steps must be >= 1, got {max_steps}")
    left, kept = max_steps, []
    for release in said:
        kept.append(dataclasses.replace(release, steps=min(release.steps, left)))
        left -= kept[-1].steps
    return dataclasses.replace(plan, steps=min(plan.steps, max_steps)), tuple(kept)
