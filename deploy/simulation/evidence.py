"""Attacks on a simulated run, made by the run itself and left in its folder for report and audit.

    audit.json             canaries among one site's patients, guessed from every step: a bound on epsilon from below
    audit-control.json     the same with the noise taken away, for few steps: would the attack notice?
    audit-membership.json  patients of pure noise among them, guessed from the trained model alone
    attack.json            who took part, guessed from the released model; whether its samples copy anybody

The first three are training jobs of their own, with the plan of the arm `federated-dp`, its model and the patients of
the first site. The last looks at the very model that the run would release. What has been made is not made again.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import nn

from client.contract import Weights
from deploy.config import Experiment
from deploy.plans import learning_plan, noise_multiplier, privacy_plan
from deploy.simulation.judge import Arm, model_of
from privacy.accounting import CURVE_INTERVAL, PldAccountant, Release
from privacy.audit import AuditResult, audit_inputs, audit_training
from privacy.bounds import FloatArray
from privacy.canaries import GradientCanaries
from privacy.membership import calibrate, judge_membership, judge_memorisation
from privacy.noise import SeededRandomness
from privacy.plan import PrivacyPlan
from server.report import document
from server.report.attacks import AttackFacts, Canaries, MembershipFacts, MemorisationFacts
from vae.data.cohort import Cohort, SiteData
from vae.models import build
from vae.models.protocol import Vae
from vae.spec import ModelSpec
from vae.tasks.attack import nearest_patients, patient_scores, sample_records
from vae.weights import load_into

GUESTS = 200
SAMPLES = 200
CONTROL_NOISE = 0.02
CONTROL_EPSILON = 3.0
"""The control audits so few steps that they claim about this: a thousand canaries refute claims up to about 4."""

FILES = {"gradient": "audit.json", "control": "audit-control.json", "black_box": "audit-membership.json"}
RELEASED_NAME = "attack.json"


def measure(
    experiment: Experiment,
    spec: ModelSpec,
    sites: Mapping[str, SiteData],
    arms: Mapping[str, Arm],
    folder: Path,
    *,
    initial: Weights | None = None,
) -> AttackFacts:
    """Return what attacks have shown, making those that are not in the folder yet.

    Args:
        experiment: With `audit` and `privacy` sections.
        spec: The model.
        sites: Every hospital's cohorts.
        arms: Trained arms by name.
        folder: Where the results are kept.
        initial: Public weights that the run started from; None for those of its seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    job = _Job(experiment, spec, sites, initial)
    facts = AttackFacts(
        gradient=canaries_of(_kept(folder / FILES["gradient"], lambda: job.gradient().to_dict())),
        control=canaries_of(_kept(folder / FILES["control"], lambda: job.control().to_dict())),
        black_box=canaries_of(_kept(folder / FILES["black_box"], lambda: job.black_box().to_dict())),
    )
    if document.FEDERATED_DP not in arms:
        return facts
    found = _kept(folder / RELEASED_NAME, lambda: _Released(experiment, spec, sites, arms).attack())
    member, copies = found["membership"], found["memorisation"]
    return dataclasses.replace(
        facts,
        membership=None if member is None else MembershipFacts(**_tuples(member)),
        memorisation=None if copies is None else MemorisationFacts(**_tuples(copies)),
    )


def canaries_of(found: Mapping[str, Any]) -> Canaries:
    """Return the facts of an `AuditResult` that was written as JSON."""
    names = {each.name for each in dataclasses.fields(Canaries)} - {"claimed_pld", "claimed_rdp"}
    return Canaries(
        claimed_pld=found["epsilon_pld"],
        claimed_rdp=found["epsilon_rdp"],
        **{name: found[name] for name in names},
    )


class _Job:
    """Training jobs like a site's part of the run, all rounds in one, with strangers among its patients."""

    def __init__(
        self,
        experiment: Experiment,
        spec: ModelSpec,
        sites: Mapping[str, SiteData],
        initial: Weights | None,
    ) -> None:
        privacy, audit = experiment.privacy, experiment.audit
        if privacy is None or audit is None:
            raise ValueError("attacks need `audit` and `privacy` sections")
        self._site, data = next(iter(sites.items()))
        self._initial = initial
        self._experiment, self._audit, self._spec, self._cohort = experiment, audit, spec, data.train
        steps = min(audit.max_steps, privacy.local_steps * experiment.federation.rounds)
        asked = privacy_plan(experiment, self._site, noise_multiplier(experiment), randomness="seeded")
        self._plan = dataclasses.replace(asked, steps=steps)
        self._learning = dataclasses.replace(learning_plan(experiment, private=True), total_steps=steps)

    def gradient(self) -> AuditResult:
        """Guess canaries from every step."""
        return self._guess("gradient", self._plan, self._plan.release())

    def control(self) -> AuditResult:
        """Do the same where next to no noise was drawn, for so few steps that the claim could be refuted."""
        claimed = few_steps(self._plan.release(), self._plan.delta)
        noise = CONTROL_NOISE * self._plan.noise_multiplier
        bare = dataclasses.replace(self._plan, steps=claimed.steps, noise_multiplier=noise)
        return self._guess("control", bare, claimed)

    def black_box(self) -> AuditResult:
        """Guess patients of noise from the trained model alone."""
        return audit_inputs(
            self._model(),
            self._cohort,
            _strangers(self._cohort, seed=self._experiment.seed),
            plan=self._plan,
            claimed=self._plan.release(),
            randomness=self._randomness("black-box"),
            confidence=self._audit.confidence,
            **self._training(),
        )

    def _guess(self, purpose: str, plan: PrivacyPlan, claimed: Release) -> AuditResult:
        """Guess gradient canaries of one job."""
        records = min(4, plan.max_records_per_patient)
        return audit_training(
            self._model(),
            self._cohort.as_records() if plan.unit == "record" else self._cohort,
            plan=plan,
            claimed=claimed,
            randomness=self._randomness(purpose),
            canaries=GradientCanaries(count=self._audit.canaries, records=records),
            confidence=self._audit.confidence,
            **self._training(),
        )

    def _model(self) -> nn.Module:
        """Return a fresh model, of which that is trained which the arm trains."""
        model = build(self._spec, seed=self._experiment.seed)
        if self._initial is not None:
            load_into(model, self._initial)
        names = model.trainable_names(self._learning.trainable)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        return model

    def _training(self) -> dict[str, Any]:
        """Return how the arm trains."""
        return {
            "optimiser": self._learning.to_optimiser(),
            "kl_weight": self._spec.beta,
            "latent_size": self._spec.latent_size,
            "max_physical_records": 64,
        }

    def _randomness(self, purpose: str) -> SeededRandomness:
        """Return streams of this job's own."""
        return SeededRandomness(self._experiment.seed, "attack", purpose)


def few_steps(release: Release, delta: float) -> Release:
    """Return so many first steps of a release that canaries could refute what they are said to spend; at least one."""

    def is_too_much(steps: int) -> bool:
        part = [dataclasses.replace(release, steps=steps)]
        return PldAccountant(interval=CURVE_INTERVAL).epsilon(part, delta) > CONTROL_EPSILON

    steps = max(1, bisect.bisect_left(range(1, release.steps + 1), True, key=is_too_much))
    return dataclasses.replace(release, steps=steps)


class _Released:
    """Attacks on the model of the arm with noise, as anybody could make them who holds it."""

    def __init__(
        self,
        experiment: Experiment,
        spec: ModelSpec,
        sites: Mapping[str, SiteData],
        arms: Mapping[str, Arm],
    ) -> None:
        self._seed, self._spec, self._sites, self._arms = experiment.seed, spec, sites, arms
        normal = {site: _normal(data.test) for site, data in sites.items()}
        self._held_out = {site: cohort for site, cohort in normal.items() if cohort is not None}

    def attack(self) -> dict[str, Any]:
        """Return both attacks as JSON values, null where nobody was held out."""
        if not self._held_out:
            return {"membership": None, "memorisation": None}
        return {
            "membership": dataclasses.asdict(self._membership()),
            "memorisation": dataclasses.asdict(self._memorisation()),
        }

    def _membership(self) -> MembershipFacts:
        """Guess who took part from how well they are reconstructed, less what models of other sites make of them."""
        alone = {site: self._arms.get(document.alone(site)) for site in self._sites}
        inside: list[FloatArray] = []
        outside: list[FloatArray] = []
        for site, cohort in self._held_out.items():
            others = [arm for name, arm in alone.items() if name != site and arm is not None]
            inside.append(self._scores(site, self._sites[site].train, others))
            outside.append(self._scores(site, cohort, others))
        found = judge_membership(np.concatenate(inside), np.concatenate(outside))
        rate = found.true_positive_rate
        return MembershipFacts(
            auc=found.auc.value,
            auc_ci95=(found.auc.low, found.auc.high),
            true_positive_rate=rate.value,
            true_positive_rate_ci95=(rate.low, rate.high),
            fpr=found.fpr,
            is_resolved=found.is_resolved,
            num_members=found.num_members,
            num_non_members=found.num_non_members,
            num_references=max(0, sum(arm is not None for arm in alone.values()) - 1),
        )

    def _scores(self, site: str, patients: Cohort, references: Sequence[Arm]) -> FloatArray:
        """Return how much better the released model reconstructs each patient than models without them do."""

        def score(arm: Arm) -> FloatArray:
            model = cast(Vae, model_of(self._spec, arm.weights[site]))
            return patient_scores(model, patients, seed=self._seed, part="reconstruction")

        own = score(self._arms[document.FEDERATED_DP])
        return calibrate(own, np.stack([score(arm) for arm in references])) if references else own

    def _memorisation(self) -> MemorisationFacts:
        """Say whether samples lie nearer to the first site's training patients than to as many held-out ones."""
        site, others = next(iter(self._held_out.items()))
        rng = np.random.default_rng(self._seed)
        train = self._sites[site].train
        count = min(train.num_patients, others.num_patients)  # more records come nearer by chance alone
        train, others = _some(train, count, rng), _some(others, count, rng)
        covariates = others.covariates[rng.integers(0, others.num_records, SAMPLES)]
        model = cast(Vae, model_of(self._spec, self._arms[document.FEDERATED_DP].weights[site]))
        samples = sample_records(model, covariates, seed=self._seed)
        near, far = nearest_patients(samples, train), nearest_patients(samples, others)
        found = judge_memorisation(
            near.distance,
            far.distance,
            train_patient=near.patient,
            held_out_patient=far.patient,
            num_train=count,
            num_held_out=count,
            seed=self._seed,
        )
        return MemorisationFacts(
            share=found.share,
            expected=found.expected,
            range95=(found.low, found.high),
            median_train=found.median_train,
            median_held_out=found.median_held_out,
            num_samples=found.num_samples,
        )


def _some(cohort: Cohort, count: int, rng: np.random.Generator) -> Cohort:
    """Return some of the patients."""
    return cohort.select(np.sort(rng.choice(cohort.num_patients, count, replace=False)))


def _normal(cohort: Cohort) -> Cohort | None:
    """Return the normal records of a test cohort: the others differ from those trained on by more than membership."""
    if "anomaly" not in cohort.labels:
        return cohort
    normal = cohort.labels["anomaly"] == 0
    return cohort.where(normal) if normal.any() else None


def _strangers(cohort: Cohort, *, seed: int) -> Cohort:
    """Return made-up patients, one record of noise each, in the range of the cohort's values."""
    rng = np.random.default_rng(seed)
    low, high = float(np.min(cohort.values)), float(np.max(cohort.values))
    shape = (GUESTS, *cohort.record_shape)
    return Cohort.from_records(
        name="strangers",
        patients=[f"{index:04d}" for index in range(GUESTS)],
        values=rng.uniform(low, high, shape).astype(np.float32),
        covariates=cohort.covariates[rng.integers(0, cohort.num_records, GUESTS)],
        covariate_names=cohort.covariate_names,
    )


def _kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what lies in a file, making it where there is none."""
    if not path.exists():
        text = json.dumps(make(), indent=1, allow_nan=False)
        partly = path.with_name(f".{path.name}")
        partly.write_text(text)
        partly.replace(path)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON fields with lists as tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
