"""Losses of seeded private training must not drift, whichever engine computes the gradients.

Engines agree to rounding, and rounding moves a released value by a step of its grid now and then: 1e-6 of a loss, where
the smallest change of the mechanism below makes 1e-4. The values were recorded with the engine `vmap`, when it was the
default. A change of one means that a seeded simulation no longer repeats what was published: bump, do not adjust.
"""

from __future__ import annotations

import dataclasses
import statistics
from typing import get_args

import numpy as np
import pytest

from privacy.noise import SeededRandomness
from privacy.plan import GradEngine, PrivacyPlan
from privacy.training import NoisedOptimiser, train_private
from vae.data.cohort import Cohort
from vae.models import build
from vae.spec import ModelSpec

ROUNDS = 4
PLAN = PrivacyPlan(
    sampling_probability=0.6,
    steps=3,
    noise_multiplier=0.7,
    max_grad_norm=2.0,
    divisor=4.0,
    delta=1e-3,
    max_records_per_patient=2,
    randomness="seeded",
)
RECORDS = (1, 3, 2, 1, 4, 2, 1, 1)
TABLE = ModelSpec(
    family="cvae", input_shape=(6,), latent_size=2, channels=(5, 4), num_covariates=1, decoder_scale="learned"
)
IMAGE = ModelSpec(family="vae", input_shape=(1, 12, 12), latent_size=3, channels=(8, 16))
VOLUME = ModelSpec(
    family="vae", input_shape=(2, 8, 8, 8), latent_size=3, channels=(4, 8), upsampling="transpose"
)
RECORDED: dict[str, tuple[ModelSpec, list[float]]] = {
    "table": (TABLE, [197.77016, 100.37244, 50.94496, 40.01189]),
    "image": (IMAGE, [4260.1376, 2066.9879, 1547.1601, 1302.6502]),
    "volume": (VOLUME, [30415.803, 23991.547, 17566.025, 14147.716]),
}


def cohort_of(spec: ModelSpec) -> Cohort:
    """Return patients whose values no random generator has to reproduce."""
    rows = sum(RECORDS)
    waves = [
        (0.5 + 0.5 * np.sin(1.7 * np.arange(rows * size))).astype(np.float32)
        for size in (int(np.prod(spec.input_shape)), spec.num_covariates)
    ]
    return Cohort.from_records(
        name="golden",
        patients=[f"{patient:02d}" for patient, count in enumerate(RECORDS) for _ in range(count)],
        values=waves[0].reshape(rows, *spec.input_shape),
        covariates=waves[1].reshape(rows, spec.num_covariates),
        covariate_names=tuple(f"c{index}" for index in range(spec.num_covariates)),
    )


def losses_of_rounds(spec: ModelSpec, plan: PrivacyPlan) -> list[float]:
    """Return the mean loss of each of a few private rounds."""
    model, cohort, rounds = build(spec, seed=11), cohort_of(spec), []
    for number in range(ROUNDS):
        losses: list[float] = []
        train_private(
            model,
            cohort,
            plan=plan,
            optimiser=NoisedOptimiser(kind="sgd", learning_rate=0.03),
            randomness=SeededRandomness(7, "golden", number),
            kl_weight=1.0,
            latent_size=spec.latent_size,
            on_step=lambda step, loss, into=losses: into.append(loss),  # type: ignore[misc]
        )
        assert len(losses) == plan.steps  # no sample was empty
        rounds.append(statistics.fmean(losses))
    return rounds


@pytest.mark.parametrize("engine", get_args(GradEngine))
@pytest.mark.parametrize("name", RECORDED)
def test_private_rounds_follow_their_recorded_losses_with_every_engine(name: str, engine: GradEngine):
    spec, expected = RECORDED[name]
    plan = dataclasses.replace(PLAN, grad_engine=engine)
    assert losses_of_rounds(spec, plan) == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize(
    "changed", [{"max_grad_norm": 2.002}, {"noise_multiplier": 0.702}, {"max_records_per_patient": 1}]
)
def test_a_slightly_other_mechanism_is_noticed(name: str, changed: dict[str, float]):
    spec, expected = RECORDED[name]
    found = losses_of_rounds(spec, dataclasses.replace(PLAN, **changed))  # type: ignore[arg-type]
    assert found != pytest.approx(expected, rel=2e-5)
