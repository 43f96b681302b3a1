"""Epsilon of a sequence of releases, by two independent accountants.

An accountant is a pure function of releases (`privacy.releases`, whose names can be imported from here). The
parameters are what is stored; epsilon is always recomputed from them.

- `RdpAccountant`: Renyi DP (Opacus), an upper bound 6-16 % above the other at usual parameters.
- `PldAccountant`: privacy loss distribution (dp-accounting), pessimistic, hence an upper bound as well, and
  tighter.

`epsilons` reports both and refuses if the tighter one is the larger. Both hold for parameters fixed in advance;
where they are chosen on the way, `privacy.filters` decides. Replacing one unit: PLD relies on dp-accounting's
worst case (two units at opposite ends of the clip ball); RDP relies on add/remove alone and is 1.1 to 4 times
larger there.

What it does not do: central limit (GDP) approximations (they under-report by up to 30 %), amplification by
shuffling, by aggregation (`privacy.adversaries` has the one case) or by client sampling.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from scipy import optimize

from privacy.backends import pld_epsilon, rdp_epsilon
from privacy.errors import AccountingError, PlanError
from privacy.fields import choice_problem, integer_problem, number_problem
from privacy.releases import (
    MAX_STEPS,
    NEIGHBOURINGS,
    Neighbouring,
    Release,
    Sampler,
    group_releases,
    merge_releases,
)

__all__ = [
    "CURVE_INTERVAL",
    "FINAL_INTERVAL",
    "MAX_STEPS",
    "NEIGHBOURINGS",
    "Accountant",
    "AccountantName",
    "EpsilonPair",
    "Neighbouring",
    "PldAccountant",
    "RdpAccountant",
    "Release",
    "Sampler",
    "calibrate_noise",
    "check_pair",
    "delta_is_sensible",
    "epsilons",
    "merge_releases",
]

AccountantName = Literal["rdp", "pld"]

FINAL_INTERVAL = 1e-4
"""Grid of the privacy loss for a figure that is reported or gates."""

CURVE_INTERVAL = 1e-3
"""Grid for curves of many points: about 10 times faster, epsilon about 1e-3 larger (never smaller)."""

_MOST_NOISE = 1e5
_PLD_TOLERANCE = 1e-2


class Accountant(Protocol):
    """A pure reader of releases."""

    @property
    def name(self) -> AccountantName:
        """Return the name under which the figure is reported."""
        ...

    def epsilon(self, releases: Sequence[Release], delta: float) -> float:
        """Return an upper bound on epsilon at `delta` of all `releases` together.

        Guarantees:
            0 for no steps; never smaller with more steps or less noise; independent of the order and of how
            equal releases are split (tests/contract/test_accountants.py).
        """
        ...


@dataclass(frozen=True, kw_only=True)
class RdpAccountant:
    """Renyi differential privacy by Opacus, over a fixed grid of orders from 1.01 to 1024.

    References:
        Mironov 2017, arXiv:1702.07476; Mironov, Talwar, Zhang 2019, arXiv:1908.10530.
    """

    @property
    def name(self) -> AccountantName:
        """Return `rdp`."""
        return "rdp"

    def epsilon(self, releases: Sequence[Release], delta: float) -> float:
        """Return an upper bound on epsilon at `delta`; see `Accountant`."""
        return rdp_epsilon(group_releases(releases), _checked_delta(delta))


@dataclass(frozen=True, kw_only=True)
class PldAccountant:
    """Privacy loss distribution by dp-accounting, pessimistic: an upper bound for every interval.

    Attributes:
        interval: Grid of the privacy loss, > 0. Widened to 1e-5 of the RDP bound where that is more, so that
            a careless plan (epsilon in the hundreds) costs seconds of nobody's time.

    References:
        Koskela, Jalko, Honkela 2020, arXiv:1906.03049; Doroshenko et al. 2022, arXiv:2207.04380 (connect the
        dots).
    """

    interval: float = FINAL_INTERVAL

    @property
    def name(self) -> AccountantName:
        """Return `pld`."""
        return "pld"

    def epsilon(self, releases: Sequence[Release], delta: float) -> float:
        """Return an upper bound on epsilon at `delta`; see `Accountant`."""
        return pld_epsilon(group_releases(releases), _checked_delta(delta), self.interval)


@dataclass(frozen=True, kw_only=True)
class EpsilonPair:
    """Both figures for one history: `rdp` (looser) and `pld` (tighter); both are upper bounds."""

    rdp: float
    pld: float


def epsilons(releases: Sequence[Release], delta: float, *, interval: float = FINAL_INTERVAL) -> EpsilonPair:
    """Return both epsilons of a history.

    Results are cached by the merged parameters, so that asking again each round costs nothing.

    Args:
        releases: The history, in any order.
        delta: In (0, 1).
        interval: Grid of the PLD; `CURVE_INTERVAL` for curves, `FINAL_INTERVAL` for what is reported.

    Raises:
        AccountingError: the tighter bound is larger than the looser one, so at least one accountant is wrong.
    """
    pair = EpsilonPair(
        rdp=RdpAccountant().epsilon(releases, delta),
        pld=PldAccountant(interval=interval).epsilon(releases, delta),
    )
    check_pair(pair)
    return pair


def check_pair(pair: EpsilonPair) -> None:
    """Refuse a pair whose PLD exceeds its RDP by more than the discretisation explains (1 % or 0.01).

    Raises:
        AccountingError: names both figures.
    """
    if not pair.pld <= pair.rdp + _PLD_TOLERANCE * max(1.0, pair.rdp):
        raise AccountingError(
            f"the accountants disagree: PLD {pair.pld:.4f} exceeds RDP {pair.rdp:.4f}, though it is "
            "the tighter bound; do not release anything, and check the versions of opacus and dp-accounting"
        )


def calibrate_noise(
    *,
    epsilon: float,
    delta: float,
    sampling_probability: float,
    steps: int,
    accountant: AccountantName = "pld",
    neighbouring: Neighbouring = "add_remove",
    tolerance: float = 1e-3,
) -> float:
    """Return the noise multiplier that spends a target epsilon, and not more.

    Args:
        epsilon: Target, > 0 and finite.
        delta: In (0, 1).
        sampling_probability: q in (0, 1].
        steps: Steps of all rounds together, 1 to MAX_STEPS.
        accountant: Which bound has to meet the target.
        neighbouring: Of which relation epsilon is; the sampler is Poisson.
        tolerance: How far below the target epsilon may be, relative, in (0, 0.5].

    Returns:
        sigma with (1 - tolerance) epsilon <= epsilon(sigma) <= epsilon on the fine grid.

    Raises:
        PlanError: an argument is out of range, or no noise multiplier below 1e5 reaches the target.
    """
    problems = [
        *number_problem("epsilon", epsilon, low=0.0, high=math.inf, rule="a finite number > 0"),
        *number_problem("tolerance", tolerance, low=0.0, high=0.5, rule="a number in (0, 0.5]"),
        *number_problem("delta", delta, low=0.0, high=1.0 - 1e-12, rule="a number in (0, 1)"),
        *integer_problem("steps", steps, low=1, high=MAX_STEPS),
        *choice_problem("accountant", accountant, choices=("rdp", "pld")),
        *choice_problem("neighbouring", neighbouring, choices=NEIGHBOURINGS),
    ]
    if problems:
        raise PlanError("calibration", problems)

    def spent(reader: Accountant, noise_multiplier: float) -> float:
        release = Release(
            sampling_probability=sampling_probability,
            noise_multiplier=noise_multiplier,
            steps=steps,
            neighbouring=neighbouring,
        )
        return reader.epsilon([release], delta)

    # RDP is cheap and looser, so it brackets the search. Then the coarse grid finds the place, and the fine
    # one decides; it searches itself only where the coarse one is not enough.
    aim = epsilon * (1 - tolerance)
    noise = _solve_noise(lambda noise: spent(RdpAccountant(), noise), 0.1, 10.0, (aim, epsilon))
    for reader in () if accountant == "rdp" else (PldAccountant(interval=CURVE_INTERVAL), PldAccountant()):
        if not aim <= spent(PldAccountant(), noise) <= epsilon:
            noise = _solve_noise(functools.partial(spent, reader), noise / 2, noise, (aim, epsilon))
    return noise


def delta_is_sensible(delta: float, num_patients_public: int) -> bool:
    """Return whether `delta` < 1 / n for a public number of patients n.

    At delta = 1 / n a mechanism may publish one patient in full and still count as private. n must be public:
    an upper bound agreed at enrolment ("at most 2000 patients"), never a count of the cohort. Compare at the
    site, once, when the roster is written: whether the true cohort fits the bound is the site's own business
    there. Never at a request: an answer that depends on the count of that day publishes it, bit by bit.

    Args:
        delta: In (0, 1).
        num_patients_public: Public upper bound on the number of patients, >= 1.
    """
    return delta > 0.0 and delta * num_patients_public < 1.0


def _checked_delta(delta: float) -> float:
    """Return `delta` if it is in (0, 1)."""
    if not 0.0 < delta < 1.0:
        raise PlanError("accounting", [f"delta must be a number in (0, 1), got {delta!r}"])
    return float(delta)


def _solve_noise(
    spent: Callable[[float], float], low: float, high: float, target: tuple[float, float]
) -> float:
    """Return a noise multiplier whose epsilon is in `target`, from a bracket that widens where it has to."""
    aim, most = target
    while spent(high) > most:
        if high > _MOST_NOISE:
            problem = (
                f"no noise multiplier up to {high:g} reaches the target; allow more epsilon or fewer steps"
            )
            raise PlanError("calibration", [problem])
        low, high = high, 2 * high
    while spent(low) <= most:
        low, high = low / 2, low
    if spent(high) >= aim:  # there is no sign to change above the middle of the target
        return high

    def excess(log_noise: float) -> float:
        return spent(math.exp(log_noise)) - (aim + most) / 2

    # Epsilon falls as some small power of the noise, so a tenth of the target's width in log noise is enough.
    width = 0.1 * math.log(most / aim)
    noise = math.exp(optimize.brentq(excess, math.log(low), math.log(high), xtol=width))
    while spent(noise) > most:
        noise *= 1 + width
    return noise
