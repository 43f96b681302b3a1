"""Lower bounds on epsilon from guesses: statistics of an audit, without models or training.

An audit inserts canaries by coin flips, trains, and guesses the coins from what training released. Good guesses are
evidence against a claim of privacy; a bound is the largest epsilon that they refute at confidence 1 - `failure`.

    one_run_bound         any mechanism that is (epsilon, delta)-DP, any dependence between canaries
    fdp_rejects           the same for a trade-off curve: refutes one claim as a whole (`Profile`), no other assumption
    fdp_bound             largest epsilon of a *family* of curves; as a number it assumes that family
    clopper_pearson_bound assumes that scores of different canaries are independent
    gaussian_estimate     assumes that as well, and a Gaussian trade-off curve: an estimate

Which guesses to use must not be chosen by looking: every candidate pays its part of `failure` (`best_bound`). What
they do not do: bound epsilon from above. No audit can; a bound of 0 says only that nothing was found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats
from scipy.special import expit, log_ndtr, ndtr, ndtri

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

Curve = Callable[[float], float]
"""A trade-off curve f, as y -> x with 1 - f(x) = y: an event of probability y in one world has at least probability
x in the neighbouring one. Increasing, convex, at most y."""
Family = Callable[[float], Curve]
"""epsilon -> the curve of that member of a family; larger epsilon, smaller values."""

GUESS_SHARES = (0.1, 0.2, 0.5)
"""Shares of canaries that are guessed at, fixed in advance: the surest ones first."""

THRESHOLDS = (0.0, 1.0, 2.0, 4.0)
"""Log-likelihood ratios above which a canary counts as included, fixed in advance."""

_TOLERANCE = 1e-3
_LARGEST = 1e3
_Evidence = TypeVar("_Evidence")


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """How well coins were guessed.

    Attributes:
        num_canaries: m, canaries flipped for by a fair coin each; abstentions count here.
        num_guesses: r, guesses made, 0 to m.
        num_correct: v, correct ones, 0 to r.
    """

    num_canaries: int
    num_guesses: int
    num_correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.num_correct <= self.num_guesses <= self.num_canaries:
            raise ValueError(
                "guesses need 0 <= num_correct <= num_guesses <= num_canaries, got "
                f"{self.num_correct}, {self.num_guesses}, {self.num_canaries}"
            )


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Errors of one threshold: included canaries below it, and others at or above it.

    Attributes:
        num_included: Canaries whose coin said yes.
        num_excluded: Canaries whose coin said no.
        num_missed: Included ones below the threshold.
        num_false: Excluded ones at or above it.
    """

    num_included: int
    num_excluded: int
    num_missed: int
    num_false: int


def make_guesses(
    scores: FloatArray, included: BoolArray, *, shares: Sequence[float] = GUESS_SHARES
) -> tuple[Guesses, ...]:
    """Guess the sign of each score, the largest magnitudes first, and count what is right.

    Args:
        scores: [m], > 0 for included; log-likelihood ratios are the best there is. Not finite is no evidence.
        included: [m], the coins.
        shares: Share of canaries guessed at in each candidate, in (0, 1].

    Returns:
        One candidate a share; hand all of them to `best_bound`.
    """
    known = np.nan_to_num(np.asarray(scores, np.float64), nan=0.0)
    # Ties go by the canary's number, which knows nothing of its coin.
    surest = np.argsort(-np.abs(known), kind="stable")
    correct = ((known > 0) == included)[surest]
    counts = [max(1, round(share * len(known))) for share in shares]
    return tuple(
        Guesses(num_canaries=len(known), num_guesses=count, num_correct=int(correct[:count].sum()))
        for count in counts
    )


def count_errors(
    scores: FloatArray, included: BoolArray, *, thresholds: Sequence[float] = THRESHOLDS
) -> tuple[Errors, ...]:
    """Return the errors of each threshold, fixed in advance; scores and coins are [m]."""
    above = [np.nan_to_num(scores, nan=0.0) >= threshold for threshold in thresholds]
    return tuple(
        Errors(
            num_included=int(included.sum()),
            num_excluded=int((~included).sum()),
            num_missed=int((included & ~yes).sum()),
            num_false=int((~included & yes).sum()),
        )
        for yes in above
    )


def best_bound(
    candidates: Sequence[_Evidence], bound: Callable[[_Evidence, float], float], *, failure: float
) -> float:
    """Return the largest bound of candidates fixed in advance, each at its part of `failure` (Bonferroni)."""
    return max(bound(candidate, failure / len(candidates)) for candidate in candidates)


# --- one run, any dependence -------------------------------------------------------------------------------


def one_run_p_value(guesses: Guesses, *, epsilon: float, delta: float) -> float:
    """Return the probability of so many correct guesses, at most, if training is (epsilon, delta)-DP.

    p = P[W >= v] + 2 m delta max_i (P[v - i <= W < v] / i), W ~ Binomial(r, 1 / (1 + exp(-epsilon)))

    Args:
        guesses: m, r, v.
        epsilon: >= 0.
        delta: In [0, 1).

    Returns:
        In [0, 1].

    Guarantees:
        Holds for any dependence between canaries and any mechanism, under add or remove of one patient
        (coverage: tests/unit/privacy/test_bounds.py).

    References:
        Steinke, Nasr, Jagielski 2023, arXiv:2305.08846, theorem 5.2 and appendix D.
    """
    correct = guesses.num_correct
    accuracy = float(expit(epsilon))
    tail = float(stats.binom.sf(correct - 1, guesses.num_guesses, accuracy))
    if correct == 0 or delta == 0.0:
        return min(1.0, tail)
    fewer = np.arange(1, correct + 1)
    between = stats.binom.sf(correct - fewer - 1, guesses.num_guesses, accuracy) - tail
    slack = max(0.0, float(np.max(between / fewer)))
    return min(1.0, tail + 2.0 * guesses.num_canaries * delta * slack)


def one_run_bound(guesses: Guesses, *, delta: float, failure: float) -> float:
    """Return the largest epsilon whose (epsilon, delta)-DP the guesses refute; 0 if none.

    Args:
        guesses: m, r, v.
        delta: In [0, 1).
        failure: Probability that the bound is wrong, in (0, 1).
    """

    def rejects(epsilon: float) -> bool:
        return one_run_p_value(guesses, epsilon=epsilon, delta=delta) < failure

    return _largest_rejected(rejects)


# --- one run, trade-off curves -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The curve of a mechanism that is (epsilon_i, delta_i)-DP for every i; itself a `Curve`.

    x = max_i max(0, (y - delta_i) exp(-epsilon_i), 1 - delta_i - exp(epsilon_i) (1 - y))

    Attributes:
        epsilons: Each >= 0; upper bounds of an accountant.
        deltas: Each in [0, 1].

    References:
        Dong, Roth, Su 2022, arXiv:1905.02383, proposition 2.5 (for one pair).
    """

    epsilons: tuple[float, ...]
    deltas: tuple[float, ...]

    def __call__(self, y: float) -> float:
        """Return the least probability x in the neighbouring world of an event of probability y."""
        best = 0.0
        for epsilon, delta in zip(self.epsilons, self.deltas, strict=True):
            shrunk = math.exp(-epsilon)
            best = max(best, (y - delta) * shrunk, 1.0 - delta - (1.0 - y) / shrunk if shrunk > 0.0 else 0.0)
        return best


def gaussian_curve(mu: float) -> Curve:
    """Return the curve of mu-Gaussian DP, x = Phi(Phi^-1(y) - mu); Dong, Roth, Su 2022, definition 2.6."""

    def curve(y: float) -> float:
        return float(ndtr(ndtri(min(y, 1.0)) - mu))

    return curve


def fdp_rejects(guesses: Guesses, curve: Curve, *, failure: float) -> bool:
    """Return whether so many correct guesses have probability < `failure` under every mechanism of a curve.

    With R_i and H_i the chance that a random canary is guessed rightly, or wrongly, while at least i guesses are
    right: H_i >= curve(R_{i+1}) and R_i - R_{i+1} = i / (r - i) (H_i - H_{i+1}). Started from
    P[at least v right] = `failure`, the least possible R_0 + H_0 exceeds r / m: a contradiction.

    Args:
        guesses: m, r, v.
        curve: Symmetric under swapping worlds, as all curves here are.
        failure: In (0, 1).

    Guarantees:
        As `one_run_p_value`; never accepts less with more correct guesses.

    References:
        Mahloujifar, Melis, Chaudhuri 2024, arXiv:2410.22235, algorithm 3 (alphabet of two).
    """
    canaries, made, correct = guesses.num_canaries, guesses.num_guesses, guesses.num_correct
    if correct == 0:
        return False
    limit = made / canaries
    right, wrong = failure * correct / canaries, failure * (made - correct) / canaries
    for count in range(correct - 1, -1, -1):
        raised = max(wrong, curve(right))
        if raised == wrong or right + wrong > limit:
            break  # neither changes below
        right, wrong = min(1.0, right + count / (made - count) * (raised - wrong)), raised
    return right + wrong > limit


def fdp_bound(guesses: Guesses, family: Family, *, failure: float) -> float:
    """Return the largest epsilon whose curve in `family` the guesses refute; 0 if none.

    As a number it assumes that the mechanism belongs to the family: `approximate_family` is every mechanism,
    `gaussian_family` those with a Gaussian curve.
    """
    return _largest_rejected(lambda epsilon: fdp_rejects(guesses, family(epsilon), failure=failure))


def approximate_family(delta: float) -> Family:
    """Return epsilon -> the curve of (epsilon, delta)-DP: no assumption on the mechanism."""
    return lambda epsilon: Profile(epsilons=(epsilon,), deltas=(delta,))


def gaussian_family(delta: float) -> Family:
    """Return epsilon -> the Gaussian curve through (epsilon, delta), delta > 0: an assumption on the mechanism."""
    return lambda epsilon: gaussian_curve(mu_of_epsilon(epsilon, delta=delta))


def epsilon_of_mu(mu: float, *, delta: float) -> float:
    """Return the epsilon at `delta` of mu-Gaussian DP, mu >= 0.

    Solves Phi(mu / 2 - epsilon / mu) - exp(epsilon) Phi(-mu / 2 - epsilon / mu) = delta.

    References:
        Balle, Wang 2018, arXiv:1805.06530, theorem 8.
    """
    if mu <= 0.0 or _gaussian_delta(0.0, mu) <= delta:
        return 0.0
    high = 1.0
    while _gaussian_delta(high, mu) > delta:
        high *= 2.0
    return float(optimize.brentq(lambda epsilon: _gaussian_delta(epsilon, mu) - delta, 0.0, high))


def mu_of_epsilon(epsilon: float, *, delta: float) -> float:
    """Return the largest mu whose epsilon at `delta` > 0 is at most `epsilon` >= 0: the inverse of `epsilon_of_mu`."""
    high = 1.0
    while _gaussian_delta(epsilon, high) < delta:
        high *= 2.0
    # Low enough: at epsilon 0, where delta is largest, it is 2 Phi(mu / 2) - 1 < mu / 2.
    return float(optimize.brentq(lambda mu: _gaussian_delta(epsilon, mu) - delta, 1e-3 * delta, high))


# --- independent canaries ----------------------------------------------------------------------------------


def clopper_pearson_bound(errors: Errors, *, delta: float, failure: float) -> float:
    """Return max(0, log((1 - FNR - delta) / FPR), log((1 - FPR - delta) / FNR)) at the rates' upper ends.

    Assumes independent scores of different canaries: true of Dirac canaries, whose coordinates have noise of their
    own; not of inputs scored by one model.

    Args:
        errors: Of a threshold fixed in advance.
        delta: In [0, 1).
        failure: In (0, 1); half of it for each of the two rates.

    References:
        Nasr et al. 2021, arXiv:2101.04535, section IV; Clopper, Pearson 1934.
    """
    missed, false = _upper_rates(errors, failure)
    ratios = ((1.0 - missed - delta, false), (1.0 - false - delta, missed))
    return max([0.0, *(math.log(above / below) for above, below in ratios if above > 0.0 and below > 0.0)])


def gaussian_estimate(errors: Errors, *, delta: float, failure: float) -> float:
    """Return the epsilon of mu = Phi^-1(1 - FPR) - Phi^-1(FNR) at the rates' upper ends: an estimate.

    Assumes independent canaries *and* a Gaussian curve, which subsampling only approximates.

    References:
        Nasr et al. 2023, arXiv:2302.07956, section 4.2.
    """
    missed, false = _upper_rates(errors, failure)
    if missed >= 1.0 or false >= 1.0:
        return 0.0
    return epsilon_of_mu(float(-ndtri(false) - ndtri(missed)), delta=delta)


def upper_rate(events: int, trials: int, failure: float) -> float:
    """Return the exact upper confidence end of a rate (Clopper-Pearson), 1 for no trials."""
    return 1.0 if events >= trials else float(stats.beta.ppf(1.0 - failure, events + 1, trials - events))


def _upper_rates(errors: Errors, failure: float) -> tuple[float, float]:
    """Return upper ends of the rates of misses and false alarms, together at `failure`."""
    return (
        upper_rate(errors.num_missed, errors.num_included, failure / 2),
        upper_rate(errors.num_false, errors.num_excluded, failure / 2),
    )


def _gaussian_delta(epsilon: float, mu: float) -> float:
    """Return the delta at `epsilon` of mu-Gaussian DP."""
    return float(ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu)))


def _largest_rejected(rejects: Callable[[float], bool]) -> float:
    """Return the largest rejected epsilon, to 1e-3 from below; rejection is monotone."""
    if not rejects(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while rejects(high):
        low, high = high, 2.0 * high
        if high > _LARGEST:
            return low
    while high - low > _TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if rejects(middle) else (low, middle)
    return low
