"""What a hospital allows: caps and limits that can only tighten what a server asks for.

Two things are done with a policy. What can be made tighter is made so: `Policy.apply` raises the noise, lowers
sampling, steps, clip norm and delta, and never loosens anything. What cannot be made tighter is refused:
`Policy.objections` names everything at once, each with a code that may leave the site and a sentence that may not.

Policies form a lattice: `is_at_most` is its order, `tighten` its meet (a hospital's policy and a study's, say).

Guarantees (tests/property/test_policy_lattice.py): the meet is commutative, associative, idempotent, valid, and
the loosest policy that is at most both; a plan under it is the plan under one policy after the other, in
either order; no plan gets looser in any field.

What this module does not do: it counts no budget (`privacy.filters`, `privacy.ledger`) and reads no files. There
is no default policy: without one nothing runs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from privacy.errors import PlanError, RefusalCode
from privacy.fields import integer_problem, number_problem, require_fields
from privacy.limits import (
    CAPS,
    MAX_PATIENTS,
    Cap,
    cap_problems,
    make_floats,
    relation_problems,
    value_problems,
)
from privacy.plan import PrivacyPlan, RandomnessKind, Unit
from privacy.unsafe import NoPrivacy

__all__ = [
    "ANY_MODEL_WARNING",
    "MAX_PATIENTS",
    "Ask",
    "Cap",
    "Models",
    "Objection",
    "Policy",
    "is_at_most",
    "tighten",
]

ANY_MODEL_WARNING = "`models: any` lets the server choose what is trained; list hashes outside a simulation"

Models = frozenset[str] | Literal["any"]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What a server asks of a site, as far as a policy looks at it.

    Attributes:
        plan: Of one round, before the site tightens it.
        model_hash: `ModelSpec.hash()` of what would be trained.
        num_sites: Sites that take part in the run, >= 1.
        metrics: Name -> noise multiplier of each metric that would leave the site, >= 0.
    """

    plan: PrivacyPlan | NoPrivacy
    model_hash: str
    num_sites: int
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = integer_problem("num_sites", self.num_sites, low=1)
        for name, noise in self.metrics.items():
            below_zero = math.nextafter(0, -1)
            rule = "a finite number >= 0"
            problems += number_problem(f"metrics.{name:.60}", noise, low=below_zero, high=math.inf, rule=rule)
        if problems:
            raise PlanError("request", problems)


@dataclass(frozen=True, kw_only=True)
class Objection:
    """One reason why a site refuses.

    Attributes:
        code: From a closed set; may leave the site.
        sentence: The thing, the rule and the way out, for the people at the site; never sent.
    """

    code: RefusalCode
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A hospital's rules; every field is a public constant, none is derived from its data.

    Attributes:
        lifetime: Cap for one patient over everything ever run on the data set.
        per_run: Cap for one patient in one run.
        min_noise_multiplier: Least noise [in clip norms], > 0.
        max_sampling_probability: Most likely that a patient is part of a step, in (0, 1].
        max_steps_per_round: 1 to `accounting.MAX_STEPS`.
        max_grad_norm: Largest clip norm, > 0.
        max_records_per_patient: Most records of a patient in a step, >= 1.
        unit: Weakest unit of privacy allowed: `patient`, or `record` (then both are).
        randomness: Weakest source of noise allowed: `os`, or `seeded` (then both are; no privacy is claimed).
        min_patients: Least patients in a cohort, 1 to `patients_bound`; checked where the cohort is.
        patients_bound: Public upper bound on the patients, from enrolment, 1 to `MAX_PATIENTS`. Both deltas
            are below one over it: at 1 / n a mechanism may publish one patient in full and still keep its word.
        models: Hashes of the model specifications allowed, or `any` (see `ANY_MODEL_WARNING`).
        metrics: Name -> least noise multiplier of each metric that may leave; none leaves that is not named.
        min_sites: Least sites in a run, >= 1: with one site the "aggregate" is its own update.
        max_runtime_s: Most wall time of one round [s], > 0.
    """

    lifetime: Cap
    per_run: Cap
    min_noise_multiplier: float
    max_sampling_probability: float
    max_steps_per_round: int
    max_grad_norm: float
    max_records_per_patient: int
    unit: Unit
    randomness: RandomnessKind
    min_patients: int
    patients_bound: int
    models: Models
    metrics: Mapping[str, float] = field(hash=False)
    min_sites: int
    max_runtime_s: float

    def __post_init__(self) -> None:
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        if problems := [*cap_problems(values), *value_problems(values), *relation_problems(values)]:
            raise PlanError("policy", problems)
        make_floats(
            self, "min_noise_multiplier", "max_sampling_probability", "max_grad_norm", "max_runtime_s"
        )
        metrics = {name: float(noise) for name, noise in sorted(self.metrics.items())}
        object.__setattr__(self, "metrics", MappingProxyType(metrics))

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and travel to worker processes by way of `to_dict`; a read-only mapping alone cannot."""
        return Policy.from_dict, (self.to_dict(),)

    def to_dict(self) -> dict[str, object]:
        """Return the fields as JSON values: caps as mappings, models as a sorted list or `any`."""
        return {
            **{entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)},
            "lifetime": self.lifetime.to_dict(),
            "per_run": self.per_run.to_dict(),
            "models": "any" if self.models == "any" else sorted(self.models),
            "metrics": dict(self.metrics),
        }

    @classmethod
    def from_dict(cls, payload: object) -> Policy:
        """Read what `to_dict` wrote; every field has to be there.

        Raises:
            PlanError: names every problem.
        """
        names = tuple(entry.name for entry in dataclasses.fields(cls))
        values: dict[str, Any] = dict(require_fields(payload, subject="policy", names=names))
        problems: list[str] = []
        for name in CAPS:
            try:
                values[name] = Cap.from_dict(values[name])
            except PlanError as error:
                problems += [f"{name}.{problem}" for problem in error.problems]
        if isinstance(values["models"], list) and all(isinstance(each, str) for each in values["models"]):
            values["models"] = frozenset(values["models"])
        if problems:
            raise PlanError("policy", [*problems, *value_problems(values), *relation_problems(values)])
        return cls(**values)

    def hash(self) -> str:
        """Return the SHA-256 of the canonical JSON (sorted keys, no spaces); recorded with what it allowed."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def apply(self, plan: PrivacyPlan) -> PrivacyPlan:
        """Return the plan made as tight as this policy demands, in no field looser than it was.

        Why each direction is the tighter one:

        - `noise_multiplier` up, `sampling_probability` and `steps` down: each lowers epsilon.
        - `max_grad_norm` down: epsilon stays, since the noise is in clip norms; what one patient can move the
          update by becomes smaller.
        - `max_records_per_patient` down: epsilon stays, a patient is clipped as a whole; fewer scans are read.
        - `delta` down to the smallest of plan and caps: the promise fails less often.
        - `unit` from record to patient: all records of a person are protected together. Such a plan takes one
          record of a patient in a step, and keeps that.
        - `randomness` from seeded to os: noise that nobody can draw again and subtract.

        The divisor is a public constant that costs no privacy, and stays; so does how gradients are computed.

        Guarantees:
            Idempotent; `tighten(a, b).apply(plan) == a.apply(b.apply(plan))`
            (tests/property/test_policy_lattice.py).
        """
        return dataclasses.replace(
            plan,
            noise_multiplier=max(plan.noise_multiplier, self.min_noise_multiplier),
            sampling_probability=min(plan.sampling_probability, self.max_sampling_probability),
            steps=min(plan.steps, self.max_steps_per_round),
            max_grad_norm=min(plan.max_grad_norm, self.max_grad_norm),
            max_records_per_patient=min(plan.max_records_per_patient, self.max_records_per_patient),
            delta=min(plan.delta, self.lifetime.delta, self.per_run.delta),
            unit="patient" if self.unit == "patient" else plan.unit,
            randomness="os" if self.randomness == "os" else plan.randomness,
        )

    def objections(self, ask: Ask) -> tuple[Objection, ...]:
        """Return everything in a request that tightening cannot mend; nothing if the site may go on.

        Not looked at here: the size of the cohort (`cohort_objection`, where the data are) and the budget.
        """
        sentences: list[tuple[RefusalCode, str]] = []
        if not isinstance(ask.plan, PrivacyPlan):
            sentence = (
                "plain training has no privacy, and no policy allows it; ask with a `privacy` section, or use "
                "public data without a site agent"
            )
            sentences.append((RefusalCode.POLICY_NO_PRIVACY, sentence))
        if self.models != "any" and ask.model_hash not in self.models:
            sentence = (
                f"the model {ask.model_hash:.64} is not among the {len(self.models)} of models; have the hospital "
                "review it and add its hash, or ask for one of those"
            )
            sentences.append((RefusalCode.POLICY_MODEL, sentence))
        if ask.num_sites < self.min_sites:
            sentence = f"the run has {ask.num_sites} sites, min_sites is {self.min_sites}; enrol more"
            sentences.append((RefusalCode.POLICY_SITES, sentence))
        for name, noise in sorted(ask.metrics.items()):
            if sentence := self._metric_sentence(name, noise):
                sentences.append((RefusalCode.POLICY_METRIC, sentence))
        return tuple(Objection(code=code, sentence=sentence) for code, sentence in sentences)

    def cohort_objection(self, num_patients: int) -> Objection | None:
        """Return the objection to a cohort of fewer than `min_patients`, if it is one.

        The sentence holds no count, so that whoever reads it does not learn how many patients there are.

        Args:
            num_patients: Of the cohort that would be trained on; private, so only an argument.
        """
        if num_patients >= self.min_patients:
            return None
        sentence = f"the cohort has fewer patients than the {self.min_patients} of min_patients; enrol more"
        return Objection(code=RefusalCode.COHORT_TOO_SMALL, sentence=sentence)

    def _metric_sentence(self, name: str, noise: float) -> str:
        """Return why a metric may not leave, or an empty text."""
        least = self.metrics.get(name)
        if least is None:
            allowed = ", ".join(self.metrics) or "none"
            return (
                f"the metric {name!r:.70} may not leave; metrics of this policy: {allowed}; ask without it, "
                "or have the hospital list it"
            )
        if not noise >= least:
            return (
                f"the metric {name!r} would leave with noise multiplier {noise:g}, and this policy needs "
                f"{least:g} or more; ask for it with more noise"
            )
        return ""


def tighten(a: Policy, b: Policy) -> Policy:
    """Return the loosest policy that is at most both: the meet in every field.

    The smaller of caps and maxima, the larger of minima, models and metrics that both allow (a metric with the
    larger noise), `patient` and `os` where either demands them. The larger `patients_bound` is the tighter one,
    since it allows the smaller deltas only; the smaller delta of both is below one over either bound.
    """
    return Policy(
        lifetime=_smaller_cap(a.lifetime, b.lifetime),
        per_run=_smaller_cap(a.per_run, b.per_run),
        min_noise_multiplier=max(a.min_noise_multiplier, b.min_noise_multiplier),
        max_sampling_probability=min(a.max_sampling_probability, b.max_sampling_probability),
        max_steps_per_round=min(a.max_steps_per_round, b.max_steps_per_round),
        max_grad_norm=min(a.max_grad_norm, b.max_grad_norm),
        max_records_per_patient=min(a.max_records_per_patient, b.max_records_per_patient),
        unit="patient" if "patient" in (a.unit, b.unit) else "record",
        randomness="os" if "os" in (a.randomness, b.randomness) else "seeded",
        min_patients=max(a.min_patients, b.min_patients),
        patients_bound=max(a.patients_bound, b.patients_bound),
        models=_common_models(a.models, b.models),
        metrics={name: max(noise, b.metrics[name]) for name, noise in a.metrics.items() if name in b.metrics},
        min_sites=max(a.min_sites, b.min_sites),
        max_runtime_s=min(a.max_runtime_s, b.max_runtime_s),
    )


def is_at_most(a: Policy, b: Policy) -> bool:
    """Return whether `a` is nowhere looser than `b`: whatever `a` lets through, `b` does too.

    Guarantees:
        A partial order, and `is_at_most(a, b) == (tighten(a, b) == a)` (tests/property/test_policy_lattice.py).
    """
    return all(
        (
            _is_cap_at_most(a.lifetime, b.lifetime),
            _is_cap_at_most(a.per_run, b.per_run),
            a.min_noise_multiplier >= b.min_noise_multiplier,
            a.max_sampling_probability <= b.max_sampling_probability,
            a.max_steps_per_round <= b.max_steps_per_round,
            a.max_grad_norm <= b.max_grad_norm,
            a.max_records_per_patient <= b.max_records_per_patient,
            a.unit in (b.unit, "patient"),
            a.randomness in (b.randomness, "os"),
            a.min_patients >= b.min_patients,
            a.patients_bound >= b.patients_bound,
            b.models == "any" or (a.models != "any" and a.models <= b.models),
            all(name in b.metrics and noise >= b.metrics[name] for name, noise in a.metrics.items()),
            a.min_sites >= b.min_sites,
            a.max_runtime_s <= b.max_runtime_s,
        )
    )


def _smaller_cap(a: Cap, b: Cap) -> Cap:
    """Return the cap that keeps within both."""
    return Cap(epsilon=min(a.epsilon, b.epsilon), delta=min(a.delta, b.delta))


def _is_cap_at_most(a: Cap, b: Cap) -> bool:
    """Return whether a cap is nowhere looser than another."""
    return a.epsilon <= b.epsilon and a.delta <= b.delta


def _common_models(a: Models, b: Models) -> Models:
    """Return the models that both allow."""
    if a == "any":
        return b
    return a if b == "any" else a & b
