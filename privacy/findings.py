"""What an audit found: bounds from the scores of canaries, and whether a claim stands.

`judge` turns scores and coins into an `AuditResult`. The claim is refuted by either of two tests that share the
failure probability: the one-run bound exceeds the claimed epsilon, or the trade-off curve of the claimed mechanism as
a whole is rejected. Neither assumes anything about the mechanism that ran.

What it does not do: train or make scores (`audit`, `canaries`).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from privacy import bounds
from privacy.accounting import CURVE_INTERVAL, PldAccountant, Release, epsilons
from privacy.bounds import BoolArray, Errors, FloatArray, Guesses, Profile

SEES_STEPS = "every step's noised mean gradient (white box), which is more than a server sees of a round"
SEES_MODEL = "the trained model's losses of the canaries (black box)"
ASSUMES = (
    "lower_bound: nothing (one run, any dependence; Steinke et al. 2023)",
    "lower_bound_fdp: as a refutation of the claim nothing; as a number, that only the noise differs from "
    "the claim (one run, trade-off curves; Mahloujifar et al. 2024)",
    "lower_bound_gaussian: a Gaussian trade-off curve, which subsampling only approximates",
    "clopper_pearson: independent scores of canaries",
    "gaussian_estimate: independent scores and a Gaussian curve; an estimate",
)
CANNOT_SEE = (
    "shuffled instead of Poisson sampling (tests/statistical/test_sampling.py does)",
    "noise that repeats from step to step (tests/statistical/test_noise.py does)",
    "seeds known to an attacker, floating-point side channels, and what leaves a site besides the update",
    "a loss of privacy that only real patients suffer, or smaller than the gap between bound and claim",
)

_PROFILE_DELTAS = tuple(float(delta) for delta in np.logspace(-4.5, math.log10(0.4), 10))
_RARER = 10.0
_NOISE_STEP = 1.3
_FINEST = 1 / 16
_LEAST_POWER = -60.0
_MOST_LOG_NOISE = math.log(1e6)
_NO_EPSILON = 0.02
_MOST_EPSILON = 50.0


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """What an audit found; computed from noised values and coins alone, so it may be published.

    Attributes:
        claimed: What was claimed of the audited steps.
        delta: At which every epsilon here holds.
        epsilon_rdp: Of the claim, by RDP.
        epsilon_pld: Of the claim, by PLD; the tighter one, and the one that is tested.
        lower_bound: Largest refuted epsilon, rigorous for any mechanism. Its theorem allows a disaster of probability
            delta to each canary, so that with three scores it is 0 whatever was guessed where delta is above about
            (1 - confidence) / 120.
        lower_bound_fdp: Epsilon of the claimed mechanism with as much noise as is still refuted.
        lower_bound_gaussian: Largest refuted epsilon of the Gaussian family.
        clopper_pearson: From error rates; None where scores of canaries are not independent.
        gaussian_estimate: From error rates; None as above.
        confidence: Probability, at least, that `lower_bound` and `lower_bound_fdp` both hold, and that a true
            claim is not refuted; each of the other bounds holds with it under its assumption.
        num_canaries: Coins flipped.
        num_included: Canaries that got in.
        auc: Chance that a canary that is in scores higher than one that is not; 0.5 for guessing.
        steps: Audited steps.
        seconds: Wall time.
        violated: Whether the claim is refuted.
        sees: What the guesses were made from.
    """

    claimed: tuple[Release, ...]
    delta: float
    epsilon_rdp: float
    epsilon_pld: float
    lower_bound: float
    lower_bound_fdp: float
    lower_bound_gaussian: float
    clopper_pearson: float | None
    gaussian_estimate: float | None
    confidence: float
    num_canaries: int
    num_included: int
    auc: float
    steps: int
    seconds: float = field(compare=False)
    violated: bool
    sees: str

    @property
    def claimed_epsilon(self) -> float:
        """Return the epsilon that is tested: the tighter figure of the claim."""
        return self.epsilon_pld

    def to_dict(self) -> dict[str, object]:
        """Return the fields as JSON values, with what each bound assumes and what no audit sees."""
        return {
            **{item.name: getattr(self, item.name) for item in dataclasses.fields(self)},
            "claimed": [release.to_dict() for release in self.claimed],
            "claimed_epsilon": self.claimed_epsilon,
            "assumes": list(ASSUMES),
            "cannot_see": list(CANNOT_SEE),
        }


def judge(
    scores: FloatArray,
    included: BoolArray,
    *,
    claimed: tuple[Release, ...],
    delta: float,
    steps: int,
    confidence: float,
    sees_steps: bool,
    started: float,
) -> AuditResult:
    """Return every bound, and whether the claim is refuted.

    Args:
        scores: [S, m], S ways to score fixed in advance, > 0 for included; `auc` is of the first.
        included: [m], the coins.
        claimed: What was claimed of the audited steps.
        delta: In (0, 1).
        steps: Audited steps.
        confidence: In (0, 1).
        sees_steps: Whether scores are sums over steps of log-likelihood ratios of independent canaries; else
            they come from one model, and no rates are given.
        started: Of the clock of `time.monotonic` [s].

    Raises:
        ValueError: no step is claimed, or an argument is out of range.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    if not any(release.steps for release in claimed):
        raise ValueError("an audit needs a claim of at least one step")
    failure = 1.0 - confidence
    guesses = [guess for row in scores for guess in bounds.make_guesses(row, included)]
    errors = [error for row in scores for error in bounds.count_errors(row, included)] if sees_steps else None
    pair = epsilons(claimed, delta)
    # The two that decide share the failure probability, so that a true claim is refuted at most that often.
    one_run, fdp, refuted = _deciding_bounds(guesses, claimed, delta, failure / 2)
    gaussian = bounds.gaussian_family(delta)
    return AuditResult(
        claimed=claimed,
        delta=delta,
        epsilon_rdp=pair.rdp,
        epsilon_pld=pair.pld,
        lower_bound=one_run,
        lower_bound_fdp=fdp,
        lower_bound_gaussian=bounds.best_bound(
            guesses, lambda guess, part: bounds.fdp_bound(guess, gaussian, failure=part), failure=failure
        ),
        clopper_pearson=_from_rates(bounds.clopper_pearson_bound, errors, delta, failure),
        gaussian_estimate=_from_rates(bounds.gaussian_estimate, errors, delta, failure),
        confidence=confidence,
        num_canaries=len(included),
        num_included=int(included.sum()),
        auc=_auc(scores[0], included),
        steps=steps,
        seconds=time.monotonic() - started,
        violated=refuted or one_run > pair.pld,
        sees=SEES_STEPS if sees_steps else SEES_MODEL,
    )


def profile_of(releases: Sequence[Release], *, failure: float = 1.0) -> Profile:
    """Return the trade-off curve of releases: some points of their privacy profile, each an upper bound.

    Args:
        releases: At least one step.
        failure: Of the test that the curve is for, in (0, 1]: a curve without a point far below it says nothing of
            events that rare, and such a test could not reject anything.
    """
    accountant = PldAccountant(interval=CURVE_INTERVAL)
    deltas = _PROFILE_DELTAS
    while deltas[0] > failure / _RARER:
        deltas = (deltas[0] / 3.0, *deltas)
    return Profile(
        epsilons=tuple(accountant.epsilon(releases, delta) for delta in deltas),
        deltas=deltas,
    )


def _deciding_bounds(
    guesses: Sequence[Guesses], claimed: tuple[Release, ...], delta: float, failure: float
) -> tuple[float, float, bool]:
    """Return the one-run bound, the f-DP bound, and whether the curve of the claim is rejected."""
    one_run = bounds.best_bound(
        guesses, lambda guess, part: bounds.one_run_bound(guess, delta=delta, failure=part), failure=failure
    )

    def scaled(power: float) -> list[Release]:
        log_factor = power * math.log(_NOISE_STEP)
        noises = [
            math.exp(min(math.log(one.noise_multiplier) + log_factor, _MOST_LOG_NOISE)) for one in claimed
        ]
        return [
            dataclasses.replace(one, noise_multiplier=noise)
            for one, noise in zip(claimed, noises, strict=True)
        ]

    def epsilon(power: float) -> float:
        return PldAccountant(interval=CURVE_INTERVAL).epsilon(scaled(power), delta)

    def rejects(power: float) -> bool:
        part = failure / len(guesses)
        profile = profile_of(scaled(power), failure=part)
        return any(bounds.fdp_rejects(one, profile, failure=part) for one in guesses)

    power = _least_refuted_power(rejects, epsilon)
    return one_run, 0.0 if power is None else epsilon(power), rejects(0.0)


def _least_refuted_power(rejects: Callable[[float], bool], epsilon: Callable[[float], float]) -> float | None:
    """Return the least power of 1.3 on the claimed noise that is refuted, to a sixteenth: less noise is harder to
    refute. None where even noise that leaves no epsilon stands.
    """
    # Steps double, because a careless claim can lie hundreds of powers away from what is refuted.
    stands, refuted, step = 0.0, 0.0, 2.0
    if rejects(0.0):
        while epsilon(stands := refuted - step) < _MOST_EPSILON and rejects(stands):
            refuted, step = stands, 2 * step
            if refuted < _LEAST_POWER:  # so rare a sample that its epsilon is small without any noise
                return refuted
    else:
        while not rejects(refuted := stands + step):
            if epsilon(refuted) < _NO_EPSILON:
                return None
            stands, step = refuted, 2 * step
    while refuted - stands > _FINEST:
        middle = (stands + refuted) / 2
        stands, refuted = (stands, middle) if rejects(middle) else (middle, refuted)
    return refuted


def _from_rates(
    bound: Callable[..., float], errors: Sequence[Errors] | None, delta: float, failure: float
) -> float | None:
    """Return the best bound from error rates, None where there are none."""
    if errors is None:
        return None
    return bounds.best_bound(errors, lambda one, part: bound(one, delta=delta, failure=part), failure=failure)


def _auc(scores: FloatArray, included: BoolArray) -> float:
    """Return the area under the ROC curve of the coins, ties half; 0.5 where one side is empty."""
    known = np.nan_to_num(scores, nan=0.0)
    inside, outside = known[included], known[~included]
    if not len(inside) or not len(outside):
        return 0.5
    won = stats.mannwhitneyu(inside, outside, method="asymptotic").statistic
    return float(won / (len(inside) * len(outside)))
