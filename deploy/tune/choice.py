"""What a tuning found: trials, yardsticks, the choice; as JSON, and as the words and the fragment to use it with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.config import Experiment
from deploy.documents import dump_yaml
from deploy.tune.candidates import Candidate, Patients, filled, settings
from deploy.tune.standins import Deal

Scores = Mapping[float | None, tuple[float, ...]]
"""Weight average -> the error under each seed, infinite where training failed."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A candidate that was tried.

    Attributes:
        candidate: Its settings.
        noise_multiplier: Calibrated to the target.
        epsilon: What the whole run would spend, by the tighter accountant.
        scores: Error of each weight average, seed by seed.
    """

    candidate: Candidate
    noise_multiplier: float
    epsilon: float
    scores: Scores

    @property
    def weight_average(self) -> float | None:
        """Return the weight average with the least mean error."""
        return min(self.scores, key=lambda decay: _mean(self.scores[decay]))

    @property
    def seeds(self) -> tuple[float, ...]:
        """Return the error under each seed, with the best weight average."""
        return self.scores[self.weight_average]

    @property
    def score(self) -> float:
        """Return the mean error over seeds; infinite where training failed."""
        return _mean(self.seeds)

    def to_dict(self) -> dict[str, Any]:
        """Return the trial as JSON values; null for an error that is not finite."""
        return {
            **self.candidate.to_dict(),
            "weight_average": self.weight_average,
            "noise_multiplier": self.noise_multiplier,
            "epsilon": self.epsilon,
            "score": _finite(self.score),
            "interval": [_finite(min(self.seeds)), _finite(max(self.seeds))],
            "seeds": len(self.seeds),
        }


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A finished search.

    Attributes:
        experiment: As it was, with the rounds that were used.
        patients: Public number of patients of each site.
        deal: Who stood in for whom.
        trials: The choice first, then the other finalists, then all others; each by its error.
        start: Error of the public start alone.
        plain: Error of training the stand-ins without privacy, by the section `training`.
        noiseless: The same, with steps, rate, optimiser and part of the choice.
    """

    experiment: Experiment
    patients: Patients
    deal: Deal
    trials: tuple[Trial, ...]
    start: float
    plain: float
    noiseless: float

    @property
    def winner(self) -> Trial:
        """Return the choice."""
        return self.trials[0]

    @property
    def chosen(self) -> Experiment:
        """Return the experiment with the choice filled in."""
        return filled(
            self.experiment,
            self.winner.candidate,
            self.patients,
            weight_average=self.winner.weight_average,
        )

    @property
    def kept_gain(self) -> float | None:
        """Return which share of the gain of plain training over the public start is left; None if there is none."""
        gain = self.start - min(self.plain, self.noiseless)
        return (
            (self.start - self.winner.score) / gain if gain > 0 and math.isfinite(self.winner.score) else None
        )

    def overrides(self) -> tuple[str, ...]:
        """Return the choice as `--set` words for `simulate.py`."""
        return tuple(f"{key}={_word(value)}" for key, value in self._settings().items())

    def fragment(self) -> str:
        """Return the choice as YAML."""
        sections: dict[str, dict[str, object]] = {}
        for key, value in self._settings().items():
            section, _, field = key.partition(".")
            sections.setdefault(section, {})[field] = value
        return dump_yaml(sections)

    def notes(self) -> tuple[str, ...]:
        """Return what a person has to know of the choice, a sentence each."""
        return tuple(_notes(self))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        privacy = self.experiment.privacy
        return {
            "experiment": self.experiment.name,
            "epsilon": None if privacy is None else privacy.epsilon,
            "delta": None if privacy is None else privacy.delta,
            "rounds": self.experiment.federation.rounds,
            "patients": dict(self.patients.per_site),
            "patients_origin": self.patients.origin,
            "public": {
                "start": _counts(self.deal.start),
                "standins": {
                    site: {"host": one.host, "patients": len(one.patients)}
                    for site, one in self.deal.standins.items()
                },
                "scored": _counts(self.deal.scored),
            },
            "public_start": _finite(self.start),
            "plain_training": _finite(self.plain),
            "plain_training_as_chosen": _finite(self.noiseless),
            "kept_gain": self.kept_gain,
            "choice": self._settings(),
            "overrides": list(self.overrides()),
            "notes": list(self.notes()),
            "trials": [trial.to_dict() for trial in self.trials],
        }

    def _settings(self) -> dict[str, object]:
        """Return what is chosen, by dotted key; the rounds with it, since the noise is calibrated to them."""
        return {
            "federation.rounds": self.experiment.federation.rounds,
            **settings(self.experiment, self.chosen),
        }


def ranked(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Return trials with those of most seeds first, each group by its error: the first is the choice."""
    return tuple(sorted(trials, key=lambda trial: (-len(trial.seeds), trial.score)))


def _notes(tuning: Tuning) -> list[str]:
    """Return the sentences."""
    deal = tuning.deal
    notes = [
        "This costs no privacy: no site's data were opened, everything was tried on the public cohort.",
        "The choice is as good as the public data resemble the sites'.",
        f"Patients a site: {_range(list(tuning.patients.per_site.values()))}, {tuning.patients.origin}.",
    ]
    sizes = _range([float(len(one.patients)) for one in deal.standins.values()])
    hosts, others = ", ".join(deal.scored), ", ".join(deal.start)
    if deal.is_apart:
        notes.append(
            f"Stand-ins of {sizes} patients a site are of public hospitals {hosts}, pre-training was on {others}."
        )
    else:
        notes.append(
            f"Stand-ins of {sizes} patients a site are of the same public hospital as those pre-trained on: what the "
            "sites' own hospitals would add is not seen here."
        )
    if not deal.is_full:
        notes.append(
            "The public cohort is too small to play the sites in full: stand-ins took as many patients a step as the "
            "sites would (all, where they have fewer), with the sites' noise on the mean update; they had fewer to "
            "learn from."
        )
    if min(tuning.plain, tuning.noiseless) >= tuning.start:
        notes.append(
            "Training the stand-ins without privacy gains nothing over the public start, so these public data can "
            "hardly tell one setting from another."
        )
    if not tuning.winner.score < tuning.start:
        notes.append("No setting beats the public start: at this budget, do not train on the sites at all.")
    return notes


def _range(values: list[float]) -> str:
    """Return one number, or the least and the largest."""
    low, high = (f"{round(value, 1):g}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _counts(parts: Mapping[str, Any]) -> dict[str, int]:
    """Return how many patients each part has."""
    return {name: len(patients) for name, patients in parts.items()}


def _mean(values: Sequence[float]) -> float:
    """Return the mean."""
    return math.fsum(values) / len(values)


def _finite(value: float) -> float | None:
    """Return a value that JSON can hold."""
    return value if math.isfinite(value) else None


def _word(value: object) -> str:
    """Return a value as `--set` reads it: YAML on one line."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_word(each)}" for key, each in value.items()) + "}"
    return dump_yaml(value).split("\n")[0]
