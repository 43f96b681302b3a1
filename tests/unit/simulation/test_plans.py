"""From an experiment to the plan of each arm: public constants alone, and noise that keeps within the target."""

import dataclasses
import warnings

import pytest

from deploy.plans import (
    federation_plan,
    identity,
    isolated_plan,
    noise_multiplier,
    privacy_plan,
    strategy_settings,
)
from privacy.accounting import PldAccountant, Release
from privacy.errors import PlanError
from privacy.plan import PrivacyPlan
from privacy.unsafe import NoPrivacy, UnsafeWarning
from server.settings import DEFAULT_MAX_UPDATE_NORM
from tests.support.experiments import experiment

quiet = pytest.mark.filterwarnings("ignore::privacy.unsafe.UnsafeWarning")


def _plan(made, *, private=False, randomness="seeded"):
    return federation_plan(made, made.model_spec((5,)), private=private, randomness=randomness)


def test_noise_is_as_given_or_spends_the_target_and_not_more():
    assert noise_multiplier(experiment()) == 1.0
    privacy = {"noise_multiplier": None, "epsilon": 3.0}
    made = experiment(privacy=privacy, federation={"rounds": 4})
    sigma = noise_multiplier(made)
    spent = PldAccountant().epsilon(
        [Release(sampling_probability=0.4, noise_multiplier=sigma, steps=4 * 2)], 1e-3
    )
    assert 2.99 < spent <= 3.0
    again = Release(sampling_probability=0.4, noise_multiplier=sigma, steps=8 * 2)
    assert PldAccountant().epsilon([again], 1e-3) > 3.0, "twice the rounds would need more noise"


def test_a_target_out_of_reach_is_refused():
    made = experiment(privacy={"noise_multiplier": None, "epsilon": 1e-3, "delta": 1e-12})
    with pytest.raises(PlanError, match="no noise multiplier"):
        noise_multiplier(made)


def test_without_a_privacy_section_there_is_no_private_plan():
    made = experiment(privacy=None)
    for call in (
        lambda: noise_multiplier(made),
        lambda: privacy_plan(made, "site-1", 1.0, randomness="seeded"),
    ):
        with pytest.raises(ValueError, match="no privacy section"):
            call()


def test_the_private_plan_of_a_round_says_what_the_configuration_says():
    made = experiment(
        privacy={"site_divisors": {"site-2": 7.0}, "max_records_per_patient": 2, "unit": "patient"}
    )
    assert privacy_plan(made, "site-1", 1.3, randomness="seeded") == PrivacyPlan(
        sampling_probability=0.4,
        steps=2,
        noise_multiplier=1.3,
        max_grad_norm=1.0,
        divisor=5.0,
        delta=1e-3,
        unit="patient",
        max_records_per_patient=2,
        randomness="seeded",
        grad_engine="bookkeeping",
    )
    assert privacy_plan(made, "site-2", 1.3, randomness="os").divisor == 7.0
    assert privacy_plan(made, "site-2", 1.3, randomness="os").randomness == "os"


def test_a_private_federation_asks_every_site_for_privacy_and_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = _plan(experiment(), private=True)
    assert set(plan.plans) == {"site-1", "site-2", "site-3"}
    assert all(isinstance(one, PrivacyPlan) for one in plan.plans.values())
    assert plan.run_id.endswith("-federated-dp")


def test_a_federation_without_privacy_warns_of_it():
    with pytest.warns(UnsafeWarning):
        plan = _plan(experiment())
    assert all(isinstance(one, NoPrivacy) for one in plan.plans.values())


@quiet
def test_each_arm_learns_as_its_own_section_says():
    made = experiment(
        training={"learning_rate": 0.1}, privacy={"learning_rate": 0.2, "optimiser": "sgd", "momentum": 0.5}
    )
    assert _plan(made).learning.learning_rate == 0.1
    private = _plan(made, private=True).learning
    assert (private.learning_rate, private.optimiser, private.momentum) == (0.2, "sgd", 0.5)


@quiet
def test_site_weights_quorum_deadline_and_strategy_are_those_of_the_configuration():
    made = experiment(
        federation={
            "rounds": 3,
            "quorum": 0.5,
            "deadline_s": 12.0,
            "weights": {"site-1": 1.0, "site-2": 2.0, "site-3": 3.0},
        }
    )
    plan = _plan(made)
    assert plan.site_weights == {"site-1": 1.0, "site-2": 2.0, "site-3": 3.0}
    assert (plan.quorum, plan.rounds, plan.timing.deadline_s) == (2, 3, 12.0)
    assert set(_plan(experiment()).site_weights.values()) == {1.0}
    settings = strategy_settings(experiment(federation={"strategy": "trimmed-mean", "trim": 1}))
    assert (settings.name, settings.trim, settings.max_update_norm) == (
        "trimmed-mean",
        1,
        DEFAULT_MAX_UPDATE_NORM,
    )
    assert strategy_settings(experiment(federation={"max_update_norm": 5.0})).max_update_norm == 5.0


@quiet
def test_faults_change_no_random_number_but_are_another_run():
    plain, faulty = experiment(), experiment(faults={"dropout": 0.5})
    assert identity(plain) == identity(faulty)
    assert _plan(plain).run_id == _plan(faulty).run_id
    assert _plan(plain).config_hash != _plan(faulty).config_hash
    assert identity(plain) != identity(experiment(seed=4))


@quiet
def test_the_isolated_arms_have_a_run_of_their_own_and_no_pull():
    plan = _plan(experiment(federation={"strategy": "fedprox", "proximal_mu": 0.1}))
    alone = isolated_plan(plan, ("site-1", "x"))
    assert plan.learning.proximal_mu == 0.1
    assert alone.learning == dataclasses.replace(plan.learning, proximal_mu=0.0)
    assert alone.run_id == plan.run_id.removesuffix("-federated") + "-isolated"
    assert set(alone.plans) == {"site-1", "x"}
    assert alone.rounds == plan.rounds


LEARNING = {
    "trainable": "decoder",
    "schedule": "cosine",
    "warmup_steps": 2,
    "final_share": 0.3,
    "augmentations": 2,
    "max_shift": 1,
    "flip": True,
    "max_gain": 0.2,
}


@quiet
@pytest.mark.parametrize("private", [True, False])
def test_every_option_of_learning_reaches_its_own_arm(private):
    noisy = {"optimiser": "adam-corrected", "moment_floor": 0.5, "precision": "bf16"} if private else {}
    section = "privacy" if private else "training"
    made = experiment(**{section: {**LEARNING, **noisy}})
    learning = dataclasses.asdict(_plan(made, private=private).learning)
    assert {name: learning[name] for name in (*LEARNING, *noisy)} == {**LEARNING, **noisy}
    plain = dataclasses.asdict(_plan(experiment(), private=private).learning)
    other = dataclasses.asdict(_plan(made, private=not private).learning)
    names = [name for name in LEARNING if plain[name] == other[name]]
    assert names == list(LEARNING), "the other arm learns as by default"


@quiet
def test_the_average_reaches_the_strategy():
    assert strategy_settings(experiment(federation={"weight_average": 0.7})).weight_average == 0.7
    assert strategy_settings(experiment()).weight_average is None
