"""The plan of one round of private training: sampling, clipping, noise and accounting in one frozen object.

Nothing else may set any of the four, so that what is accounted is what runs. Every value is a public
constant: none is derived from the number of patients at a site (q = batch / n would publish n).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from privacy.accounting import MAX_STEPS, NEIGHBOURINGS, Neighbouring, Release
from privacy.banded import bands_problem, charged_steps
from privacy.discrete import discrete_problems
from privacy.errors import PlanError
from privacy.fields import choice_problem, integer_problem, number_problem, require_fields
from privacy.unsafe import NoPrivacy

Unit = Literal["patient", "record"]
RandomnessKind = Literal["os", "seeded"]
GradEngine = Literal["bookkeeping", "opacus", "vmap"]
Mechanism = Literal["independent", "banded", "discrete"]

KIND = "patient-dp"

_ADDED = {"mechanism": "independent", "bands": 1}
"""Fields that came later: left out at these values, so that documents of before keep their form and their hash."""


@dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """Poisson-subsampled DP-SGD of one round.

    Attributes:
        sampling_probability: q, probability of each patient in each step, in (0, 1]; with bands, in each step of
            its part.
        steps: Steps of one round, 0 to `accounting.MAX_STEPS`. Constant: an empty sample is a step.
        noise_multiplier: sigma [in units of max_grad_norm], > 0.
        max_grad_norm: C, the bound on the L2 norm of one patient's gradient, > 0 and finite.
        divisor: What the noisy sum is divided by, > 0; typically q times a public number of
            patients; with bands q / b times it, since a step samples one of b parts.
        delta: In (0, 1); below 1 / n for a public n (`accounting.delta_is_sensible`).
        unit: `patient`, or `record`: then the cohort has to be grouped by record (one record a "patient"),
            the cap is 1, and a person with several records is *not* protected as a whole.
        max_records_per_patient: Cap on the records that a sampled patient contributes, >= 1; a random subset
            of that size is drawn anew each time. It bounds the work, not the privacy: a patient is clipped as
            a whole.
        neighbouring: Of which relation epsilon is: `add_remove` one unit, or `replace_one`. The run is the same.
        randomness: `os`, or `seeded` for tests and simulation: then no privacy is claimed.
        grad_engine: How gradients of each patient are computed; results agree up to rounding.
        mechanism: Noise of the steps of a round: `independent`, or correlated by a `banded` matrix (`banded`), or
            independent and of integers, `discrete` (`discrete`).
        bands: b, of `banded`: 2 to `banded.MAX_BANDS`; 1 otherwise.
    """

    sampling_probability: float
    steps: int
    noise_multiplier: float
    max_grad_norm: float
    divisor: float
    delta: float
    unit: Unit = "patient"
    max_records_per_patient: int = 8
    neighbouring: Neighbouring = "add_remove"
    randomness: RandomnessKind = "os"
    grad_engine: GradEngine = "bookkeeping"
    mechanism: Mechanism = "independent"
    bands: int = 1

    def __post_init__(self) -> None:
        positive = "a finite number > 0"
        problems = [
            *number_problem(
                "sampling_probability", self.sampling_probability, low=0, high=1, rule="a number in (0, 1]"
            ),
            *integer_problem("steps", self.steps, low=0, high=MAX_STEPS),
            *number_problem("noise_multiplier", self.noise_multiplier, low=0, high=math.inf, rule=positive),
            *number_problem("max_grad_norm", self.max_grad_norm, low=0, high=math.inf, rule=positive),
            *number_problem("divisor", self.divisor, low=0, high=math.inf, rule=positive),
            *number_problem("delta", self.delta, low=0, high=math.nextafter(1, 0), rule="a number in (0, 1)"),
            *choice_problem("unit", self.unit, choices=("patient", "record")),
            *integer_problem("max_records_per_patient", self.max_records_per_patient, low=1),
            *choice_problem("neighbouring", self.neighbouring, choices=NEIGHBOURINGS),
            *choice_problem("randomness", self.randomness, choices=("os", "seeded")),
            *choice_problem("grad_engine", self.grad_engine, choices=get_args(GradEngine)),
            *choice_problem("mechanism", self.mechanism, choices=get_args(Mechanism)),
            *bands_problem(self.mechanism, self.bands),
        ]
        if not problems and self.mechanism == "discrete":
            problems += discrete_problems(self.noise_multiplier, self.grad_engine)
        if self.unit == "record" and self.max_records_per_patient != 1:
            problems.append("unit record needs max_records_per_patient = 1 and a cohort grouped by record")
        if problems:
            raise PlanError("privacy plan", problems)

    def release(self) -> Release:
        """Return the event of one round, for reserving budget before anything runs.

        With bands it has ceil(steps / b) steps: in more no patient can be.
        """
        return Release(
            sampling_probability=self.sampling_probability,
            noise_multiplier=self.noise_multiplier,
            steps=charged_steps(self.steps, self.bands),
            neighbouring=self.neighbouring,
        )

    def to_dict(self) -> dict[str, object]:
        """Return the fields as JSON values, tagged `kind: patient-dp`; `mechanism` and `bands` only where named."""
        fields = {"kind": KIND, **dataclasses.asdict(self)}
        return {name: value for name, value in fields.items() if name not in _ADDED or value != _ADDED[name]}

    @classmethod
    def from_dict(cls, payload: object) -> PrivacyPlan:
        """Read what `to_dict` wrote; every field has to be there, but for `mechanism` and `bands`.

        Raises:
            PlanError: names every problem.
        """
        names = ("kind", *(field.name for field in dataclasses.fields(cls)))
        complete = {**_ADDED, **payload} if isinstance(payload, Mapping) else payload
        fields: dict[str, Any] = dict(require_fields(complete, subject="privacy plan", names=names))
        if fields.pop("kind") != KIND:
            raise PlanError("privacy plan", [f"kind must be {KIND!r}"])
        return cls(**fields)


def mechanism_name(plan: PrivacyPlan) -> str:
    """Return what runs, in words, as a ledger holds it; what its release does not say of bands is part of it."""
    if plan.mechanism == "banded":
        return f"patient-level DP-SGD, banded Gaussian noise ({plan.bands} bands, {plan.steps} steps)"
    if plan.mechanism == "discrete":
        return "patient-level DP-SGD, discrete Gaussian noise"
    return "patient-level DP-SGD, Gaussian noise"


def plan_from_dict(payload: object) -> PrivacyPlan | NoPrivacy:
    """Read a plan of either kind by its tag: `patient-dp`, or `none` (which warns).

    Raises:
        PlanError: names every problem.
    """
    kind = payload.get("kind") if isinstance(payload, Mapping) else None
    if kind == KIND:
        return PrivacyPlan.from_dict(payload)
    if kind == "none":
        return NoPrivacy.from_dict(payload)
    raise PlanError("plan", [f"kind must be {KIND!r} or 'none', got {kind!r}"])
