"""Attacks made by the audit itself, on made-up patients, through the code that trains on real ones.

Three of them: canaries guessed from every step (a bound on epsilon from below), the same against a job whose noise is
nearly gone (the control: an attack that does not notice that shows nothing), and made-up patients guessed from the
trained model alone (what somebody with a download can do).

What it does not do: touch a patient's data, or prove that nothing is lost. No attack can.
"""

from __future__ import annotations

import bisect
import dataclasses
from typing import Any, get_args

from torch import nn

from deploy.audit.document import Evidence, Mechanism, SiteAccount
from privacy.accounting import CURVE_INTERVAL, PldAccountant, Release
from privacy.audit import AuditResult, audit_inputs, audit_training
from privacy.canaries import GradientCanaries
from privacy.noise import Randomness, SeededRandomness, SystemRandomness
from privacy.plan import GradEngine, PrivacyPlan
from privacy.training import NoisedOptimiser
from vae.data.cohort import Cohort
from vae.data.toy import ToySpec, open_toy
from vae.models import build
from vae.spec import ModelSpec

MAX_STEPS = 400
CANARIES = 1000

_GUESTS = 200
_LATENT = 3
_PATIENTS = 64
_CONTROL_NOISE = 0.02
_CONTROL_EPSILON = 3.0  # a thousand canaries can refute claims up to about 4


def measure(account: SiteAccount) -> Evidence:
    """Attack a training job of its own that has the parameters of a site's most spent cohort.

    The model is a small stand-in and the patients are made up; sampling, clipping, noise and accounting are the code
    that trains on real ones. Takes some ten seconds of one core.

    Args:
        account: Of a site that has spent something.
    """
    plan, release = _job(account)
    records = 1 if plan.unit == "record" else 3
    module, patients, guests = _stand_in(records)
    optimiser = NoisedOptimiser(learning_rate=1e-3)

    def randomness(purpose: str) -> Randomness:
        return SystemRandomness() if plan.randomness == "os" else SeededRandomness(0, "audit", purpose)

    def attack(purpose: str, what_runs: PrivacyPlan, claimed: Release) -> AuditResult:
        return audit_training(
            module,
            patients,
            plan=what_runs,
            claimed=claimed,
            optimiser=optimiser,
            randomness=randomness(purpose),
            kl_weight=1.0,
            latent_size=_LATENT,
            canaries=GradientCanaries(count=CANARIES, records=records),
        )

    audit = attack("audit", plan, release)
    few = dataclasses.replace(release, steps=_control_steps(release, plan.delta))
    bare = dataclasses.replace(plan, steps=few.steps, noise_multiplier=_CONTROL_NOISE * plan.noise_multiplier)
    control = attack("control", bare, few)
    membership = audit_inputs(
        module,
        patients,
        guests,
        plan=plan,
        claimed=release,
        optimiser=optimiser,
        randomness=randomness("membership"),
        kl_weight=1.0,
        latent_size=_LATENT,
    )
    return Evidence(
        audit=audit.to_dict(),
        control=control.to_dict(),
        membership=membership.to_dict(),
        origin=(
            f"Made by this audit, in a job of its own: {audit.steps:,} steps with the parameters of {account.site}, "
            "through the code that trains there; a small stand-in model and made-up patients, so it tests the "
            "software and the figures, not the very model that left."
        ),
    )


def can_measure(account: SiteAccount) -> bool:
    """Return whether the parameters of a site are such that `measure` can run them."""
    releases = account.worst.releases
    return bool(releases and account.mechanisms) and releases[-1].sampler == "poisson"


def is_banded(account: SiteAccount) -> bool:
    """Return whether the noise of a site's last job was banded: what `measure` runs would be another mechanism."""
    return "banded" in _mechanism_of(account)


def _mechanism_of(account: SiteAccount) -> str:
    """Return the name of the mechanism of a site's last job, as `plan.mechanism_name` gives it; empty if unnamed."""
    return str(_constants_of(account, account.worst.releases[-1]).get("name", ""))


def _job(account: SiteAccount) -> tuple[PrivacyPlan, Release]:
    """Return the plan of a job like a site's last one, and its release."""
    last = account.worst.releases[-1]
    release = dataclasses.replace(last, steps=min(last.steps, MAX_STEPS))
    constants = _constants_of(account, last)
    records = 1 if account.unit == "record" else int(constants.get("max_records_per_patient", 8))
    engines: tuple[GradEngine, ...] = get_args(GradEngine)
    named = constants.get("grad_engine")
    plan = PrivacyPlan(
        sampling_probability=release.sampling_probability,
        steps=release.steps,
        noise_multiplier=release.noise_multiplier,
        max_grad_norm=float(constants.get("max_grad_norm", 1.0)),
        divisor=float(constants.get("divisor", 1.0)),
        delta=account.delta,
        unit="record" if account.unit == "record" else "patient",
        max_records_per_patient=records,
        neighbouring=release.neighbouring,
        randomness="os" if account.claims == "dp" else "seeded",
        grad_engine=next((engine for engine in engines if engine == named), "bookkeeping"),
        mechanism="discrete" if "discrete" in _mechanism_of(account) else "independent",
    )
    return plan, release


def _constants_of(account: SiteAccount, release: Release) -> dict[str, Any]:
    """Return the constants that went with a release."""
    fitting: list[Mechanism] = [
        one for one in account.mechanisms if dataclasses.replace(one.release, steps=release.steps) == release
    ]
    return dict((fitting or account.mechanisms)[-1].constants)


def _control_steps(release: Release, delta: float) -> int:
    """Return how many steps of a release a thousand canaries could refute, at least one."""

    def is_too_much(steps: int) -> bool:
        part = [dataclasses.replace(release, steps=steps)]
        return PldAccountant(interval=CURVE_INTERVAL).epsilon(part, delta) > _CONTROL_EPSILON

    return max(1, bisect.bisect_left(range(1, release.steps + 1), True, key=is_too_much))


def _stand_in(most_records: int) -> tuple[nn.Module, Cohort, Cohort]:
    """Return a small model, made-up patients, and made-up guests."""
    spec = ModelSpec(family="vae", input_shape=(8,), latent_size=_LATENT, channels=(16,), initial_scale=0.3)
    made_up = ToySpec(sites=1, records=(1, most_records), features=8)
    patients = open_toy(dataclasses.replace(made_up, patients_per_site=_PATIENTS, seed=1), site=0).train
    guests = open_toy(dataclasses.replace(made_up, patients_per_site=_GUESTS, seed=2), site=0).train
    return build(spec, seed=1), patients, guests
