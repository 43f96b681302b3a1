"""From an experiment to the plan of each arm: what is asked of the sites, with all public constants filled in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from client.contract import LearningPlan, Plan
from deploy.config import Experiment
from deploy.sections import Faults
from privacy.accounting import calibrate_noise
from privacy.banded import charged_steps
from privacy.plan import PrivacyPlan, RandomnessKind
from privacy.unsafe import NoPrivacy
from server.federation import FederationPlan
from server.rounds import Timing
from server.settings import DEFAULT_MAX_UPDATE_NORM, StrategySettings
from vae.spec import ModelSpec

ALL_RECORDS = 2**31 - 1
_LEARNING = (
    "optimiser", "learning_rate", "momentum", "trainable", "schedule", "warmup_steps", "final_share",
    "augmentations", "max_shift", "flip", "max_gain",
)  # fmt: skip
"""What the sections `training` and `privacy` say alike."""


def noise_multiplier(experiment: Experiment) -> float:
    """Return the noise multiplier of the private arm: as given, or calibrated to its target epsilon.

    Raises:
        ValueError: the experiment has no privacy section.
    """
    privacy = experiment.privacy
    if privacy is None:
        raise ValueError("the experiment has no privacy section")
    if privacy.noise_multiplier is not None:
        return privacy.noise_multiplier
    if privacy.epsilon is None:
        raise ValueError("privacy: epsilon or noise_multiplier is needed")
    return calibrate_noise(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        sampling_probability=privacy.sampling_probability,
        steps=charged_steps(privacy.local_steps, privacy.bands) * experiment.federation.rounds,
    )


def privacy_plan(
    experiment: Experiment, site: str, sigma: float, *, randomness: RandomnessKind
) -> PrivacyPlan:
    """Return one round's privacy plan for a site.

    Args:
        experiment: With a privacy section.
        site: Whose divisor to take.
        sigma: Noise multiplier.
        randomness: `seeded` in a simulation, `os` where privacy is claimed.
    """
    privacy = experiment.privacy
    if privacy is None:
        raise ValueError("the experiment has no privacy section")
    return PrivacyPlan(
        sampling_probability=privacy.sampling_probability,
        steps=privacy.local_steps,
        noise_multiplier=sigma,
        max_grad_norm=privacy.max_grad_norm,
        divisor=privacy.divisor_of(site),
        delta=privacy.delta,
        unit=privacy.unit,
        max_records_per_patient=privacy.max_records_per_patient or ALL_RECORDS,
        randomness=randomness,
        grad_engine=privacy.grad_engine,
        mechanism=privacy.mechanism,
        bands=privacy.bands,
    )


def federation_plan(
    experiment: Experiment, spec: ModelSpec, *, private: bool, randomness: RandomnessKind
) -> FederationPlan:
    """Return the plan of a federation.

    Args:
        experiment: What to run.
        spec: Its model.
        private: Whether updates are differentially private, by the experiment's privacy section.
        randomness: Of private updates: `seeded` in a simulation, `os` where privacy is claimed.
    """
    sites = experiment.site_names
    federation, training = experiment.federation, experiment.training
    plans: dict[str, Plan]
    if private:
        sigma = noise_multiplier(experiment)
        plans = {site: privacy_plan(experiment, site, sigma, randomness=randomness) for site in sites}
    else:
        plain = NoPrivacy(steps=training.local_steps, batch_patients=training.batch_patients)
        plans = dict.fromkeys(sites, plain)
    arm = "federated-dp" if private else "federated"
    return FederationPlan(
        run_id=f"{identity(experiment)[:16]}-{arm}",
        config_hash=experiment.hash(),
        site_weights={site: federation.weights.get(site, 1.0) for site in sites},
        plans=plans,
        model=spec,
        sharing=federation.sharing,
        rounds=federation.rounds,
        learning=learning_plan(experiment, private=private),
        kl_warmup_rounds=training.kl_warmup_rounds,
        strategy=strategy_settings(experiment),
        quorum=federation.sites_needed(len(sites)),
        patience=federation.patience,
        initial_seed=experiment.seed,
        timing=Timing(deadline_s=federation.deadline_s),
    )


def learning_plan(experiment: Experiment, *, private: bool) -> LearningPlan:
    """Return how sites learn in an arm; what depends on the round is not filled in.

    Args:
        experiment: What to run.
        private: Whether the privacy section says how, or the training section.
    """
    training, privacy = experiment.training, experiment.privacy
    chosen = training if privacy is None or not private else privacy
    shared: dict[str, Any] = {name: getattr(chosen, name) for name in _LEARNING}
    if privacy is not None and private:
        shared |= {name: getattr(privacy, name) for name in ("moment_floor", "precision", "subspace")}
    return LearningPlan(proximal_mu=experiment.federation.proximal_mu or 0.0, **shared)


def identity(experiment: Experiment) -> str:
    """Return the hash without faults and budget: with and without them, sites draw the same numbers."""
    return experiment.model_copy(update={"faults": Faults(), "budget": None}).hash()


def isolated_plan(plan: FederationPlan, nodes: Iterable[str]) -> FederationPlan:
    """Return the plan of the arms without a federation: the same rounds and steps for each node, in a run of its own.

    Args:
        plan: The federation without privacy.
        nodes: Names of the nodes that train, each for itself.
    """
    plain = next(iter(plan.plans.values()))
    return replace(
        plan,
        run_id=plan.run_id.removesuffix("-federated") + "-isolated",
        plans=dict.fromkeys(nodes, plain),
        learning=replace(plan.learning, proximal_mu=0.0),
    )


def strategy_settings(experiment: Experiment) -> StrategySettings:
    """Return how updates become a model."""
    federation = experiment.federation
    return StrategySettings(
        name=federation.strategy,
        learning_rate=federation.server_learning_rate,
        trim=federation.trim,
        num_byzantine=federation.num_byzantine,
        max_update_norm=federation.max_update_norm or DEFAULT_MAX_UPDATE_NORM,
        weight_average=federation.weight_average,
    )
