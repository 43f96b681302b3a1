"""An audit of a training run: what it changes, repeats and refuses; what it finds is in tests/statistical."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from privacy.accounting import PldAccountant
from privacy.audit import audit_inputs, audit_training, patient_losses
from privacy.canaries import CANARY_WEIGHTS, GradientCanaries
from privacy.clipping import VmapEngine
from privacy.errors import PlanError
from privacy.findings import SEES_MODEL, SEES_STEPS, AuditResult
from privacy.noise import SeededRandomness, SystemRandomness
from privacy.plan import PrivacyPlan
from privacy.training import NoisedOptimiser
from tests.support.private_toys import LATENT, make_cohort, make_module, weights_of

PLAN = PrivacyPlan(
    sampling_probability=0.5,
    steps=4,
    noise_multiplier=1.5,
    max_grad_norm=0.5,
    divisor=5.0,
    delta=1e-4,
    max_records_per_patient=3,
    randomness="seeded",
)
COHORT = make_cohort((6,), [1, 2, 4, 1])


def audited(seed: int = 1, **changes: Any) -> AuditResult:
    given: dict[str, Any] = {
        "plan": PLAN,
        "claimed": PLAN.release(),
        "optimiser": NoisedOptimiser(learning_rate=0.1),
        "randomness": SeededRandomness(seed),
        "kl_weight": 1.0,
        "latent_size": LATENT,
        "canaries": GradientCanaries(count=100),
    }
    return audit_training(make_module("table"), COHORT, **(given | changes))


class Watched:
    """An engine that remembers what it was asked."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int]] = []
        self.names: set[str] = set()
        self.norms: set[float] = set()

    def clipped_sum(self, module: Any, batch: Any, **arguments: Any) -> Any:
        self.batches.append((batch.num_patients, int(torch.bincount(batch.patient).max())))
        self.names |= dict(module.named_parameters()).keys()
        self.norms.add(module.norm)
        return VmapEngine().clipped_sum(module, batch, **arguments)


def test_the_run_that_is_audited_is_one_of_the_plan_with_canaries_among_its_patients():
    engine = Watched()
    found = audited(engine=engine)
    assert len(engine.batches) == found.steps == 4
    assert all(most == 3 for _, most in engine.batches), "the plan's cap on records holds for canaries"
    drawn = np.mean([patients for patients, _ in engine.batches])
    assert 15 < drawn < 40  # half of 4 patients and of about 50 canaries
    assert engine.norms == {GradientCanaries().norm * 0.5}
    assert CANARY_WEIGHTS in engine.names
    assert "module.encoder.0.weight" in engine.names
    assert (found.num_canaries, found.claimed, found.delta, found.sees) == (
        100,
        (PLAN.release(),),
        1e-4,
        SEES_STEPS,
    )
    assert found.epsilon_pld == pytest.approx(PldAccountant().epsilon([PLAN.release()], 1e-4))


def test_neither_module_nor_global_generator_are_changed():
    module = make_module("table").eval()
    weights, state = weights_of(module), torch.random.get_rng_state()
    audit_training(
        module,
        COHORT,
        plan=PLAN,
        claimed=PLAN.release(),
        optimiser=NoisedOptimiser(learning_rate=0.1),
        randomness=SeededRandomness(1),
        kl_weight=1.0,
        latent_size=LATENT,
        canaries=GradientCanaries(count=50),
    )
    assert torch.equal(weights_of(module), weights)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not module.training


def test_the_same_seed_gives_the_same_findings_and_another_gives_others():
    assert audited(1) == audited(1)
    assert audited(1).auc != audited(2).auc


def test_only_the_first_steps_are_audited_against_what_is_claimed_of_them():
    first = dataclasses.replace(PLAN.release(), steps=1)
    rest = dataclasses.replace(PLAN.release(), steps=3)
    found = audited(claimed=[first, rest], max_steps=2)
    assert found.steps == 2
    assert [release.steps for release in found.claimed] == [1, 1]
    assert found.epsilon_pld < audited(claimed=[first, rest]).epsilon_pld
    assert audited(claimed=[first, rest], max_steps=99).steps == 4


@pytest.mark.parametrize("steps", [0, -1])
def test_no_step_cannot_be_audited(steps: int):
    with pytest.raises(ValueError, match="max_steps must be >= 1"):
        audited(max_steps=steps)


def test_a_claim_of_nothing_is_refused_before_anything_is_trained():
    engine = Watched()
    for nothing in ([], [dataclasses.replace(PLAN.release(), steps=0)]):
        with pytest.raises(ValueError, match="at least one step"):
            audited(claimed=nothing, engine=engine)
    assert not engine.batches


def test_randomness_of_another_kind_than_the_plans_is_refused():
    with pytest.raises(PlanError, match="randomness"):
        audited(randomness=SystemRandomness())


# --- black box --------------------------------------------------------------------------------------------


def inputs(seed: int = 1, **changes: Any) -> AuditResult:
    guests = make_cohort((6,), [1, 2] * 20, seed=5)
    given: dict[str, Any] = {
        "plan": PLAN,
        "claimed": PLAN.release(),
        "optimiser": NoisedOptimiser(learning_rate=0.1),
        "randomness": SeededRandomness(seed),
        "kl_weight": 1.0,
        "latent_size": LATENT,
        "num_draws": 2,
    }
    return audit_inputs(make_module("table"), COHORT, guests, **(given | changes))


def test_guests_are_guessed_from_their_losses_alone():
    found = inputs()
    assert found.num_canaries == 40
    assert (found.clopper_pearson, found.gaussian_estimate, found.sees) == (None, None, SEES_MODEL)
    assert not found.violated
    assert inputs() == found


def test_a_module_is_not_changed_by_guests_either():
    module = make_module("table")
    weights = weights_of(module)
    audit_inputs(
        module,
        COHORT,
        make_cohort((6,), [1] * 10),
        plan=PLAN,
        claimed=PLAN.release(),
        optimiser=NoisedOptimiser(learning_rate=0.1),
        randomness=SeededRandomness(1),
        kl_weight=1.0,
        latent_size=LATENT,
    )
    assert torch.equal(weights_of(module), weights)


def test_guests_that_a_model_without_noise_has_learned_by_heart_are_found():
    by_heart = dataclasses.replace(
        PLAN, noise_multiplier=1e-4, steps=150, sampling_probability=1.0, max_grad_norm=50.0, divisor=20.0
    )
    optimiser = NoisedOptimiser(kind="adam", learning_rate=0.02)
    found = inputs(plan=by_heart, optimiser=optimiser)
    assert found.auc > inputs().auc + 0.2
    assert found.auc > 0.75


def test_the_loss_of_a_patient_is_the_mean_over_records_and_draws():
    module = make_module("table")
    found = patient_losses(
        module,
        COHORT,
        stream=SeededRandomness(3).stream("audit-latent"),
        kl_weight=0.5,
        latent_size=LATENT,
        num_draws=3,
        max_rows=2,
    )
    stream = SeededRandomness(3).stream("audit-latent")
    batch = COHORT.batch(np.arange(4))
    draws = []
    for _ in range(3):
        noise = torch.from_numpy(stream.normal(8 * LATENT)).reshape(8, LATENT).float()
        with torch.no_grad():
            draws.append(module(batch.values, batch.covariates, noise, 0.5).double().numpy())
    rows = np.mean(draws, axis=0)
    expected = [rows[0], rows[1:3].mean(), rows[3:7].mean(), rows[7]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
