"""What a valid policy is: its caps, the range of every field, and the rules between fields.

Every function returns problems, one sentence each that begins with the name of the field, and none stops at the
first. `privacy.policy` says what the fields mean and what follows from them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from privacy.accounting import delta_is_sensible
from privacy.errors import PlanError
from privacy.fields import choice_problem, integer_problem, number_problem, require_fields
from privacy.releases import MAX_STEPS

MAX_PATIENTS = 10**10
"""Above every number of patients; keeps products with it finite."""

CAPS = ("lifetime", "per_run")

_POSITIVE = "a finite number > 0"
_HASH = re.compile(r"[0-9a-f]{64}")
_METRIC_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Cap:
    """Most that may be spent on one patient.

    Attributes:
        epsilon: [nats], > 0 and finite.
        delta: In (0, 1).
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        problems = [
            *number_problem("epsilon", self.epsilon, low=0, high=math.inf, rule=_POSITIVE),
            *number_problem("delta", self.delta, low=0, high=math.nextafter(1, 0), rule="a number in (0, 1)"),
        ]
        if problems:
            raise PlanError("cap", problems)
        make_floats(self, "epsilon", "delta")

    def to_dict(self) -> dict[str, float]:
        """Return the fields as JSON values."""
        return {"epsilon": self.epsilon, "delta": self.delta}

    @classmethod
    def from_dict(cls, payload: object) -> Cap:
        """Read what `to_dict` wrote.

        Raises:
            PlanError: names every problem.
        """
        fields: dict[str, Any] = dict(require_fields(payload, subject="cap", names=("epsilon", "delta")))
        return cls(**fields)


def make_floats(target: object, *names: str) -> None:
    """Make numbers floats, so that equal values have one JSON and one hash: 3 and 3.0."""
    for name in names:
        object.__setattr__(target, name, float(getattr(target, name)))


def cap_problems(values: Mapping[str, Any]) -> list[str]:
    """Return a problem for each cap that is none."""
    return [
        f"{name} must be a Cap, got {values[name]!r:.60}"
        for name in CAPS
        if not isinstance(values[name], Cap)
    ]


def value_problems(values: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with single fields, but the caps."""

    def positive(name: str) -> list[str]:
        return number_problem(name, values[name], low=0, high=math.inf, rule=_POSITIVE)

    def count(name: str, high: int | None = None) -> list[str]:
        return integer_problem(name, values[name], low=1, high=high)

    q = values["max_sampling_probability"]
    return [
        *positive("min_noise_multiplier"),
        *number_problem("max_sampling_probability", q, low=0, high=1, rule="a number in (0, 1]"),
        *count("max_steps_per_round", MAX_STEPS),
        *positive("max_grad_norm"),
        *count("max_records_per_patient"),
        *choice_problem("unit", values["unit"], choices=("patient", "record")),
        *choice_problem("randomness", values["randomness"], choices=("os", "seeded")),
        *count("min_patients", MAX_PATIENTS),
        *count("patients_bound", MAX_PATIENTS),
        *_model_problems(values["models"]),
        *_metric_problems(values["metrics"]),
        *count("min_sites"),
        *positive("max_runtime_s"),
    ]


def _model_problems(models: object) -> list[str]:
    """Return a problem for each model that is no hash."""
    if isinstance(models, str) and models == "any":
        return []
    if not isinstance(models, frozenset):
        return [f"models must be a set of hashes, or any; got {models!r:.60}"]
    wrong = sorted(repr(each) for each in models if not isinstance(each, str) or not _HASH.fullmatch(each))
    return [
        f"models must be SHA-256 hashes (64 hexadecimal digits, lower case), got {each:.60}" for each in wrong
    ]


def _metric_problems(metrics: object) -> list[str]:
    """Return a problem for each metric whose name or noise cannot be."""
    if not isinstance(metrics, Mapping):
        return [f"metrics must be a mapping from name to least noise multiplier, got {metrics!r:.60}"]
    problems = []
    for name, noise in metrics.items():
        if not isinstance(name, str) or not _METRIC_NAME.fullmatch(name):
            problems.append(f"metrics must have names of letters, digits, `.`, `_`, `-`; got {name!r:.60}")
        else:
            problems += number_problem(f"metrics.{name}", noise, low=0, high=math.inf, rule=_POSITIVE)
    return problems


def relation_problems(values: Mapping[str, Any]) -> list[str]:
    """Return what is wrong between fields that are right by themselves."""
    bound, least = values["patients_bound"], values["min_patients"]
    if integer_problem("patients_bound", bound, low=1, high=MAX_PATIENTS):
        return []
    problems = [
        f"{name}.delta must be below 1 / patients_bound = {1 / bound:g}, got {values[name].delta:g}: at 1 / n a "
        "mechanism may publish one patient in full"
        for name in CAPS
        if isinstance(values[name], Cap) and not delta_is_sensible(values[name].delta, bound)
    ]
    if not integer_problem("min_patients", least, low=1) and least > bound:
        problems.append(f"min_patients must be at most patients_bound = {bound}, got {least}")
    return problems
