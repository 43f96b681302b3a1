"""What was released, as value objects of parameters, and what each of them is charged as.

A `Release` is emitted by the sampler that ran. The parameters are what is stored; what they cost is always
computed again from them, here for the sampler and the neighbouring relation, in `privacy.backends` for the
noise. It does not know epsilon: that is `privacy.accounting`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from privacy.backends import Group
from privacy.errors import PlanError
from privacy.fields import choice_problem, integer_problem, number_problem, require_fields

Sampler = Literal["poisson", "shuffled", "unamplified"]
Neighbouring = Literal["add_remove", "replace_one"]

SAMPLERS: tuple[Sampler, ...] = ("poisson", "shuffled", "unamplified")
NEIGHBOURINGS: tuple[Neighbouring, ...] = ("add_remove", "replace_one")

MAX_STEPS = 1_000_000
"""Most steps of one release: beyond it the accountants cost minutes, which a hostile document could ask for."""

_LARGEST_DENOMINATOR = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Release:
    """The event that a sampler and its noise produced: `steps` sampled Gaussian sums.

    Attributes:
        sampling_probability: q, probability of each patient in each step, in (0, 1]; a public constant. For
            `shuffled` it is 1 / (batches of an epoch).
        noise_multiplier: sigma, standard deviation of the noise over the clip bound [dimensionless], > 0.
        steps: Number of steps, 0 to MAX_STEPS.
        sampler: Who is in a step. `poisson`: everybody with probability q, independently; the only one with
            amplification by sampling. `shuffled`: everybody in at most one batch of each epoch, and the
            release begins with an epoch; charged as one release of everybody for each epoch begun. Under
            `add_remove` that needs batches in which a missing patient leaves a gap and moves nobody else.
            `unamplified`: anything else; charged as if everybody were in every step.
        neighbouring: What the guarantee hides of one unit: `add_remove`, whether it took part; `replace_one`,
            which of two values it had (the larger epsilon, for a number of patients that is public).

    References:
        Chua et al. 2024, arXiv:2403.17673: lower bounds show that shuffling does not amplify like Poisson.
    """

    sampling_probability: float
    noise_multiplier: float
    steps: int
    sampler: Sampler = "poisson"
    neighbouring: Neighbouring = "add_remove"

    def __post_init__(self) -> None:
        problems = [
            *number_problem(
                "sampling_probability",
                self.sampling_probability,
                low=0.0,
                high=1.0,
                rule="a number in (0, 1]",
            ),
            *number_problem(
                "noise_multiplier", self.noise_multiplier, low=0.0, high=math.inf, rule="a finite number > 0"
            ),
            *integer_problem("steps", self.steps, low=0, high=MAX_STEPS),
            *choice_problem("sampler", self.sampler, choices=SAMPLERS),
            *choice_problem("neighbouring", self.neighbouring, choices=NEIGHBOURINGS),
        ]
        if problems:
            raise PlanError("release", problems)

    def to_dict(self) -> dict[str, object]:
        """Return the fields as JSON values."""
        return {
            "sampling_probability": self.sampling_probability,
            "noise_multiplier": self.noise_multiplier,
            "steps": self.steps,
            "sampler": self.sampler,
            "neighbouring": self.neighbouring,
        }

    @classmethod
    def from_dict(cls, payload: object) -> Release:
        """Read what `to_dict` wrote; unknown, missing or invalid fields are refused together.

        Raises:
            PlanError: names every problem.
        """
        names = ("sampling_probability", "noise_multiplier", "steps", "sampler", "neighbouring")
        fields: dict[str, Any] = dict(require_fields(payload, subject="release", names=names))
        return cls(**fields)


def merge_releases(releases: Iterable[Release]) -> tuple[Release, ...]:
    """Return the history with neighbours of equal parameters joined and empty ones dropped, in its order.

    Shuffled releases are never joined: each began an epoch of its own, and the sum would hide that.

    Guarantees:
        Costs what the history costs (tests/unit/privacy/test_accounting.py).
    """
    merged: list[Release] = []
    for release in releases:
        if release.steps == 0:
            continue
        if merged and _can_join(merged[-1], release):
            merged[-1] = dataclasses.replace(release, steps=merged[-1].steps + release.steps)
        else:
            merged.append(release)
    return tuple(merged)


def charged_as(release: Release) -> Group:
    """Return the Poisson-sampled Gaussian steps that a release is charged as.

    `poisson`: itself. `unamplified`: q = 1 for all steps. `shuffled`: q = 1 for ceil(steps q) steps, one for
    each epoch begun.
    """
    probability, steps = 1.0, release.steps
    if release.sampler == "poisson":
        probability = float(release.sampling_probability)
    elif release.sampler == "shuffled":
        steps = _epochs_begun(release.steps, release.sampling_probability)
    return Group(probability, float(release.noise_multiplier), steps, release.neighbouring)


def group_releases(releases: Iterable[Release]) -> tuple[Group, ...]:
    """Return what a history is charged as, sorted: composition of fixed parameters does not know an order.

    Raises:
        PlanError: the history mixes neighbouring relations; there is no epsilon of both together.
    """
    steps: dict[tuple[float, float, Neighbouring], int] = {}
    for release in releases:
        probability, noise, count, _ = charged_as(release)
        if count > 0:
            key = (probability, noise, release.neighbouring)
            steps[key] = steps.get(key, 0) + count
    if len(relations := {relation for _, _, relation in steps}) > 1:
        names = " and ".join(sorted(relations))
        raise PlanError(
            "accounting",
            [f"a history has one neighbouring relation, this one mixes {names}; keep them apart"],
        )
    return tuple(Group(q, noise, count, relation) for (q, noise, relation), count in sorted(steps.items()))


def same_parameters(one: Release, other: Release) -> bool:
    """Return whether two releases differ in their steps at most."""
    return dataclasses.replace(one, steps=other.steps) == other


def _can_join(one: Release, other: Release) -> bool:
    """Return whether one release of the sum of steps stands for both."""
    return same_parameters(one, other) and one.sampler != "shuffled" and one.steps + other.steps <= MAX_STEPS


def _epochs_begun(steps: int, sampling_probability: float) -> int:
    """Return ceil(steps q) without the error of a float product (100 * 0.07 is 7.000000000000001).

    q is read as the simplest fraction that is this very float, or else exactly.
    """
    exact = Fraction(sampling_probability)
    simple = exact.limit_denominator(_LARGEST_DENOMINATOR)
    return math.ceil(steps * (simple if float(simple) == float(sampling_probability) else exact))
