"""What an experiment would cost each site, and what each site would answer: before anybody opens any data.

For every site the epsilon of one round and of all, by both accountants. For a site whose `site.yaml` is at hand also
what its policy would tighten, every reason to refuse, what its ledger says has been spent, and the round in
which the budget would end. The same policy and the same filters decide here as at the site; what is not known here
is the size of the cohorts.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploy.budget import CohortBudget, run_budget_objections, standing_of
from deploy.config import Experiment
from deploy.errors import ConfigError, Problem
from deploy.plans import noise_multiplier, privacy_plan
from deploy.problems import nearest
from deploy.site import SiteConfig
from privacy.accounting import EpsilonPair, epsilons
from privacy.errors import LedgerError, RefusalCode
from privacy.plan import PrivacyPlan
from privacy.policy import ANY_MODEL_WARNING, Ask, Objection
from privacy.unsafe import NoPrivacy, UnsafeWarning
from vae.spec import ModelSpec

File = tuple[str, SiteConfig]  # its name, and what it says


@dataclass(frozen=True, kw_only=True)
class Change:
    """One field of the plan that a policy would tighten, with what is asked and what would be done."""

    field: str
    asked: float | int | str
    allowed: float | int | str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a site would answer by its own file.

    Attributes:
        source: Name of that file.
        changes: What would be tightened.
        cohorts: The budget of each cohort.
        objections: Every reason to refuse; empty if the study may run to its end.
        notes: What a person should know all the same.
    """

    source: str
    changes: tuple[Change, ...]
    cohorts: tuple[CohortBudget, ...]
    objections: tuple[Objection, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SiteOutlook:
    """What the experiment means for a site.

    Attributes:
        site: Its name.
        plan: Of one round, tightened where the site's file is at hand; None without privacy.
        one_round: Epsilon of a single round; None without privacy, where there is no bound.
        all_rounds: Epsilon of the experiment.
        answer: By the site's own file; None if it is not at hand.
    """

    site: str
    plan: PrivacyPlan | None
    one_round: EpsilonPair | None
    all_rounds: EpsilonPair | None
    answer: Answer | None


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What an experiment would cost.

    Attributes:
        experiment: Its name.
        rounds: Global rounds.
        noise_multiplier: Of the plan that is asked for; None without privacy.
        target: Epsilon to which it was calibrated; None where it was given.
        model_hash: What a policy's `models` would have to list; None if the data would have to be opened.
        sites: In the order of the experiment.
    """

    experiment: str
    rounds: int
    noise_multiplier: float | None
    target: float | None
    model_hash: str | None
    sites: tuple[SiteOutlook, ...]

    @property
    def is_refused(self) -> bool:
        """Return whether any site would refuse."""
        return any(site.answer is not None and site.answer.objections for site in self.sites)

    def to_dict(self) -> dict[str, Any]:
        """Return the outlook as JSON values."""
        return {**dataclasses.asdict(self), "is_refused": self.is_refused}


def foresee(experiment: Experiment, files: Mapping[str, SiteConfig]) -> Outlook:
    """Return what an experiment would cost each site, and what those would answer whose files are given.

    Takes seconds where the noise has to be calibrated.

    Args:
        experiment: Asked for as a deployment asks: noise from the operating system.
        files: Name of the file -> what it says.

    Raises:
        ConfigError: a file is of a site that the experiment does not have, or of one that has another file; or the
            model cannot be known without opening data.
        ModelSpecError: model and data do not go together.
        PlanError: no noise reaches the target.
    """
    by_site = _match(experiment, files)
    spec = _model_spec(experiment)
    if files and spec is None:
        rule = (
            "is required here: a site compares the model's hash, and no data are opened to find its shape "
            "(for `cvae` state num_covariates, too)"
        )
        raise ConfigError(experiment.name, [Problem(path="model.input_shape", rule=rule)])
    model_hash = None if spec is None else spec.hash()
    sigma = None if experiment.privacy is None else noise_multiplier(experiment)
    return Outlook(
        experiment=experiment.name,
        rounds=experiment.federation.rounds,
        noise_multiplier=sigma,
        target=None if experiment.privacy is None else experiment.privacy.epsilon,
        model_hash=model_hash,
        sites=tuple(
            _site_outlook(experiment, site, sigma, model_hash or "", by_site.get(site))
            for site in experiment.site_names
        ),
    )


def _match(experiment: Experiment, files: Mapping[str, SiteConfig]) -> dict[str, File]:
    """Return site -> its file.

    Raises:
        ConfigError: names every file that does not fit.
    """
    matched: dict[str, File] = {}
    problems: list[Problem] = []
    names = experiment.site_names
    for source, config in files.items():
        name = config.site
        if name not in names:
            rule = f"{source}: the experiment has no such site; sites: {', '.join(names[:6])}"
            more = f", ... ({len(names)} in all)" if len(names) > 6 else ""
            problems.append(
                Problem(path="site", value=name, rule=rule + more, suggestion=nearest(name, names))
            )
        elif name in matched:
            rule = f"{source}: this site has another file, {matched[name][0]}; give one of them"
            problems.append(Problem(path="site", value=name, rule=rule))
        else:
            matched[name] = (source, config)
    if problems:
        raise ConfigError(experiment.name, problems)
    return matched


def _model_spec(experiment: Experiment) -> ModelSpec | None:
    """Return the model; None if only the data tell its shape."""
    data, model = experiment.data, experiment.model
    if model.input_shape is not None:
        return experiment.model_spec(model.input_shape, model.num_covariates)
    if data.kind == "toy":
        return experiment.model_spec((data.features,), data.covariates)
    if data.kind == "phantom" and model.family != "cvae":
        return experiment.model_spec((len(data.channels), *data.to_spec().image_shape))
    return None


def _site_outlook(
    experiment: Experiment, site: str, sigma: float | None, model_hash: str, file: File | None
) -> SiteOutlook:
    """Return what the experiment means for one site."""
    ask = Ask(
        plan=_plain(experiment) if sigma is None else privacy_plan(experiment, site, sigma, randomness="os"),
        model_hash=model_hash,
        num_sites=len(experiment.site_names),
    )
    plan = ask.plan if isinstance(ask.plan, PrivacyPlan) else None
    if plan is not None and file is not None:
        plan = file[1].to_policy().apply(plan)
    rounds = experiment.federation.rounds
    return SiteOutlook(
        site=site,
        plan=plan,
        one_round=None if plan is None else epsilons([plan.release()], plan.delta),
        all_rounds=None if plan is None else epsilons([plan.release()] * rounds, plan.delta),
        answer=None if file is None else _answer(ask, plan, rounds, file),
    )


def _answer(ask: Ask, plan: PrivacyPlan | None, rounds: int, file: File) -> Answer:
    """Return what a site would answer, to a plan that its policy has tightened already."""
    source, config = file
    policy = config.to_policy()
    objections = policy.objections(ask)
    changes: tuple[Change, ...] = ()
    cohorts: tuple[CohortBudget, ...] = ()
    if plan is not None:
        changes = _changes(ask.plan, plan)
        cohorts, more = _budget(config, plan, rounds)
        objections += more
    notes = (ANY_MODEL_WARNING,) if policy.models == "any" else ()
    return Answer(source=source, changes=changes, cohorts=cohorts, objections=objections, notes=notes)


def _budget(
    config: SiteConfig, plan: PrivacyPlan, rounds: int
) -> tuple[tuple[CohortBudget, ...], tuple[Objection, ...]]:
    """Return the budget of each cohort of a site, and every objection of its ledger to what the rounds would spend."""
    found = run_budget_objections(config.to_policy(), plan.release(), rounds)
    if plan.unit != "patient":
        sentence = (
            "the ledger counts for whole patients, the plan protects single records; ask with `unit: patient`"
        )
        found = (Objection(code=RefusalCode.UNIT, sentence=sentence), *found)
    try:
        standing = standing_of(config)
    except LedgerError as error:
        return (), (Objection(code=RefusalCode.LEDGER_UNAVAILABLE, sentence=str(error)), *found)
    cohorts = standing.budgets(plan.release(), rounds)
    return cohorts, (*standing.objections(cohorts, rounds), *found)


def _changes(asked: PrivacyPlan | NoPrivacy, allowed: PrivacyPlan) -> tuple[Change, ...]:
    """Return the fields in which two plans differ."""
    pairs = (
        (field.name, getattr(asked, field.name), getattr(allowed, field.name))
        for field in dataclasses.fields(PrivacyPlan)
    )
    return tuple(
        Change(field=name, asked=before, allowed=after) for name, before, after in pairs if before != after
    )


def _plain(experiment: Experiment) -> NoPrivacy:
    """Return the plan without privacy; nothing will run, so nobody need be warned of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsafeWarning)
        training = experiment.training
        return NoPrivacy(steps=training.local_steps, batch_patients=training.batch_patients)
