"""What is tuned: settings of the private arm as one value, and the experiment with them filled in.

Everything here is arithmetic on public constants. The number of patients of a site is one of them: as agreed, never
as counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from deploy.config import Experiment
from deploy.errors import ConfigError, Problem
from deploy.sections import Privacy, TrainableNames, Training
from privacy.optimiser import OptimiserName

DECAYS: tuple[float | None, ...] = (None, 0.5, 0.8, 0.9)
"""Weight averages that every trial is scored with: they are only watched, so one run serves all."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Settings of one trial; fields as in `deploy.sections.Privacy`. The noise follows from epsilon and these."""

    sampling_probability: float
    local_steps: int
    max_grad_norm: float
    learning_rate: float
    optimiser: OptimiserName
    trainable: TrainableNames

    @classmethod
    def of(cls, privacy: Privacy) -> Candidate:
        """Return what an experiment asks for."""
        return cls(**{field.name: getattr(privacy, field.name) for field in dataclasses.fields(cls)})

    def to_dict(self) -> dict[str, float | int | str]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Patients:
    """The public number of patients of each site.

    Attributes:
        per_site: Site -> n, > 0; need not be whole where it is a quotient.
        origin: Where the numbers are from, as a phrase.
    """

    per_site: Mapping[str, float]
    origin: str

    @property
    def fewest(self) -> float:
        """Return the smallest n."""
        return min(self.per_site.values())


def require_tunable(experiment: Experiment) -> Privacy:
    """Return the privacy section of an experiment that can be tuned.

    Raises:
        ConfigError: names everything that is missing.
    """
    privacy = experiment.privacy
    problems = []
    if experiment.public is None:
        rule = "is required by --tune: settings are tried on public data, since no site's data may be opened for it"
        problems.append(Problem(path="public", rule=rule))
    if privacy is None or privacy.epsilon is None:
        rule = "is required by --tune, in place of noise_multiplier: the noise of every setting is calibrated to it"
        problems.append(Problem(path="privacy.epsilon", rule=rule))
    if privacy is not None and privacy.unit != "patient":
        rule = "must be `patient` for --tune: the number of patients is public, that of their records is not known"
        problems.append(Problem(path="privacy.unit", value=privacy.unit, rule=rule))
    if privacy is not None and privacy.subspace:
        rule = "must be 0 for --tune: it makes no public directions for its trials; tune without, then set it"
        problems.append(Problem(path="privacy.subspace", value=str(privacy.subspace), rule=rule))
    if problems or privacy is None:
        raise ConfigError(experiment.name, problems)
    return privacy


def patients_of(experiment: Experiment, given: int | None) -> Patients:
    """Return the public number of patients of each site: as given, or as the divisor implies, n = b divisor / q.

    Args:
        experiment: With a `privacy` section.
        given: The same for every site, >= 2; None to take the divisor's.

    Raises:
        ConfigError: there would be fewer than two patients.
    """
    privacy = experiment.privacy
    if privacy is None:
        raise ValueError("the experiment has no privacy section")
    if given is not None:
        made = Patients(per_site=dict.fromkeys(experiment.site_names, float(given)), origin="by --patients")
    else:
        share = privacy.sampling_probability / privacy.bands
        origin = "by privacy.divisor / privacy.sampling_probability"
        made = Patients(
            per_site={site: privacy.divisor_of(site) / share for site in experiment.site_names},
            origin=origin if privacy.bands == 1 else f"{origin} x privacy.bands",
        )
    if made.fewest < 2:
        rule = "must be 2 or more at every site; give --patients, a public number, as agreed at enrolment"
        raise ConfigError(
            experiment.name, [Problem(path=f"patients {made.origin}", value=f"{made.fewest:g}", rule=rule)]
        )
    return made


def filled(
    experiment: Experiment, candidate: Candidate, patients: Patients, *, weight_average: float | None = None
) -> Experiment:
    """Return the experiment with a candidate in its privacy section, and the divisor q n / b of every site.

    Options that go with another optimiser alone are set back to their default. Nothing else differs.

    Args:
        experiment: With a `privacy` section.
        candidate: What to fill in.
        patients: n of each site.
        weight_average: Of the section `federation`.

    Guarantees:
        The result is a valid experiment whenever `is_valid` (tests/unit/deploy/tune/test_candidates.py).
    """
    privacy = experiment.privacy
    if privacy is None:
        raise ValueError("the experiment has no privacy section")
    in_a_step = candidate.sampling_probability / privacy.bands
    divisors = {site: in_a_step * n for site, n in patients.per_site.items()}
    alike = len(set(divisors.values())) == 1
    tuned = {
        **candidate.to_dict(),
        "divisor": next(iter(divisors.values())) if alike else None,
        "site_divisors": {} if alike else divisors,
    }
    if candidate.optimiser != "sgd":
        tuned["momentum"] = 0.0
    if candidate.optimiser != "adam-corrected":
        tuned["moment_floor"] = Privacy.model_fields["moment_floor"].default
    federation = experiment.federation.model_copy(update={"weight_average": weight_average})
    return experiment.model_copy(
        update={"privacy": privacy.model_copy(update=tuned), "federation": federation}
    )


def without_privacy(experiment: Experiment, candidate: Candidate, patients: Patients) -> Experiment:
    """Return the experiment whose section `training` trains as a candidate does, but for sampling, clip and noise.

    Args:
        experiment: With a `privacy` section.
        candidate: Whose steps, rate, optimiser and part are taken; as many patients are in a batch as in its steps.
        patients: n of each site; the smallest counts.
    """
    privacy = require_tunable(filled(experiment, candidate, patients))
    alike: dict[str, object] = {
        name: getattr(privacy, name) for name in Training.model_fields if name in Privacy.model_fields
    }
    if candidate.optimiser == "adam-corrected":
        alike["optimiser"] = "adam"  # without noise there is nothing to correct
    in_a_step = candidate.sampling_probability * patients.fewest / privacy.bands
    alike["batch_patients"] = max(1, round(in_a_step))
    return experiment.model_copy(update={"training": experiment.training.model_copy(update=alike)})


def settings(before: Experiment, after: Experiment) -> dict[str, object]:
    """Return dotted key -> value of what tuning decides: every tuned field, and whatever else it had to change."""
    always = {
        *(f"privacy.{field.name}" for field in dataclasses.fields(Candidate)),
        "privacy.divisor",
        "federation.weight_average",
    }
    found: dict[str, object] = {}
    for section in ("privacy", "federation"):
        old, new = (
            getattr(before, section).model_dump(mode="json"),
            getattr(after, section).model_dump(mode="json"),
        )
        for field, value in new.items():
            key = f"{section}.{field}"
            if key in always or old[field] != value:
                found[key] = value
    return found
