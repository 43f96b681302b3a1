"""The neighbouring relation of a plan reaches the release that training emits, and nothing else of the run."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from privacy.accounting import NEIGHBOURINGS, Neighbouring
from privacy.noise import SeededRandomness
from privacy.plan import PrivacyPlan
from privacy.training import NoisedOptimiser, Training, train_private
from tests.support.private_toys import LATENT, SHAPES, make_cohort, make_module, weights_of

PLAN = PrivacyPlan(
    sampling_probability=0.4,
    steps=3,
    noise_multiplier=0.8,
    max_grad_norm=1.5,
    divisor=3.0,
    delta=1e-3,
    randomness="seeded",
)
NAME = next(iter(SHAPES))


def run(plan: PrivacyPlan) -> tuple[Training, torch.Tensor]:
    module = make_module(NAME)
    done = train_private(
        module,
        make_cohort(SHAPES[NAME], (1, 3, 2, 1)),
        plan=plan,
        optimiser=NoisedOptimiser(learning_rate=0.05),
        randomness=SeededRandomness(5, "site-1", 1),
        kl_weight=0.6,
        latent_size=LATENT,
    )
    return done, weights_of(module)


@pytest.mark.parametrize("neighbouring", NEIGHBOURINGS)
def test_training_emits_the_event_of_its_plan(neighbouring: Neighbouring):
    plan = dataclasses.replace(PLAN, neighbouring=neighbouring)
    done, _ = run(plan)
    assert done.release == plan.release()
    assert done.release is not None
    assert done.release.neighbouring == neighbouring


def test_the_relation_changes_what_is_claimed_and_not_what_runs():
    one, other = (run(dataclasses.replace(PLAN, neighbouring=relation)) for relation in NEIGHBOURINGS)
    assert torch.equal(one[1], other[1])
    assert one[0].release != other[0].release
