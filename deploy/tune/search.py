"""The search: from a few good starts, one kind of setting at a time, in coarse steps and then in finer ones.

Pure: what a candidate is worth comes from a function that is given. The order of trials depends on their scores alone,
so that equal scores give equal searches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from deploy.sections import TrainableNames
from deploy.tune.candidates import Candidate
from privacy.accounting import MAX_STEPS
from privacy.optimiser import OptimiserName

Score = Callable[[Candidate], float]
"""Error of a candidate, lower is better; infinite where it cannot be trained."""

Noise = Callable[[Candidate], float]
"""Noise in each coordinate of the mean gradient, sigma C / (patients in a step), sigma calibrated to the target."""

COARSE = {"learning_rate": 3.0, "local_steps": 2.0, "sampling_probability": 2.0, "max_grad_norm": 3.0}
FINE = {"learning_rate": 1.7, "local_steps": 1.4, "sampling_probability": 1.4, "max_grad_norm": 1.7}
SATURATED = 0.95
"""A larger sampling probability is tried as long as it leaves less than this share of the noise on the mean."""

TOLERANCE = 2e-3
"""A step is gone on from if it lowers the error by this share: less is noise, and longer runs cost time."""

_OPTIMISERS: tuple[OptimiserName, ...] = ("adam-corrected", "sgd", "adam")
_PARTS: tuple[TrainableNames, ...] = ("decoder", "biases", "last", "all")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a candidate must keep to; all of it public.

    Attributes:
        rounds: Global rounds, which are not tuned.
        warmup_steps: Of the learning rate: a run has to be longer.
        patients: The smallest site's; at least one is expected in a step.
        bands: Of `privacy.bands`: a step takes from one of so many parts, each part comes up in a round, and
            `adam-corrected` is for noise without them.
    """

    rounds: int
    warmup_steps: int
    patients: float
    bands: int = 1

    def allow(self, candidate: Candidate) -> bool:
        """Return whether a candidate makes a valid experiment that takes at least one patient a step."""
        steps = candidate.local_steps * self.rounds
        share = candidate.sampling_probability
        fits = max(self.warmup_steps, 0) < steps <= MAX_STEPS and candidate.local_steps >= self.bands
        corrected = candidate.optimiser == "adam-corrected" and self.bands > 1
        return fits and not corrected and share * self.patients >= self.bands and share <= 1


def good_default(limits: Limits) -> Candidate:
    """Return where to begin, whatever the experiment says: q where its returns end, but with a few patients a step."""
    share = min(1.0, max(0.1, tidy(8 * limits.bands / limits.patients)))
    return Candidate(
        sampling_probability=share,
        local_steps=max(8, limits.bands, math.ceil((limits.warmup_steps + 1) / limits.rounds)),
        max_grad_norm=1.0,
        learning_rate=1e-3,
        optimiser="adam",
        trainable="all",
    )


def explore(
    starts: Sequence[Candidate], score: Score, noise: Noise, limits: Limits, *, trials: int
) -> dict[Candidate, float]:
    """Return every candidate that was tried with its score, in the order of the trials.

    First the starts, then from the best of them one kind of setting after another (learning rate, steps, sampling
    probability, optimiser, what is trained, clip), in either direction as long as it helps; then the same in finer
    steps, until nothing helps or the trials are used up.

    Args:
        starts: At least one; tried whatever `limits` says.
        score: Called once for each candidate.
        noise: Of a candidate.
        limits: What other candidates keep to.
        trials: Most candidates to try, >= 1.

    Guarantees:
        Never more than `trials` calls; the minimum of a smooth bowl is found up to the fine steps
        (tests/unit/deploy/tune/test_search.py).

    References:
        Coordinate search: Hooke & Jeeves 1961, doi:10.1145/321062.321069.
    """
    found: dict[Candidate, float] = {}
    for start in dict.fromkeys(starts):
        if len(found) < trials:
            found[start] = score(start)
    (base,) = best_of(found)
    for factors in (COARSE, FINE, FINE):
        for step in _moves(factors, noise):
            base = _walk(found, base, step, score, limits=limits, trials=trials)
    return found


def best_of(found: dict[Candidate, float], count: int = 1) -> list[Candidate]:
    """Return the `count` best candidates; of equal ones the earlier trial."""
    return sorted(found, key=found.__getitem__)[:count]


def with_optimiser(best: Candidate, name: OptimiserName, noise: Noise) -> Candidate:
    """Return another optimiser, with steps of about the same length.

    Adam divides by the size of the noised gradient, which is little but noise: that of `noise` in each coordinate.

    Args:
        best: Any candidate.
        name: The optimiser.
        noise: Of a candidate.
    """
    size = {(False, True): 1 / noise(best), (True, False): noise(best)}
    by = size.get((best.optimiser == "sgd", name == "sgd"), 1.0)
    return replace(best, optimiser=name, learning_rate=tidy(best.learning_rate * by))


Step = Callable[[Candidate], Candidate]


def _walk(
    found: dict[Candidate, float], base: Candidate, step: Step, score: Score, *, limits: Limits, trials: int
) -> Candidate:
    """Take a step from a candidate, and again as long as it helps by more than noise; return where that ended."""
    while len(found) < trials:
        tried = step(base)
        if tried in found or not limits.allow(tried):
            break
        found[tried] = score(tried)
        if not found[tried] < (1 - TOLERANCE) * found[base]:
            break
        base = tried
    return base


def _moves(factors: Mapping[str, float], noise: Noise) -> Iterator[Step]:
    """Yield the steps of one pass, in their order; other optimisers and parts are no matter of fineness."""
    rate, clip = factors["learning_rate"], factors["max_grad_norm"]
    yield from (partial(_rate, by=by) for by in (rate, 1 / rate))
    yield from (partial(_steps, by=by) for by in (factors["local_steps"], 1 / factors["local_steps"]))
    yield partial(_larger_share, by=factors["sampling_probability"], noise=noise)
    yield partial(_smaller_share, by=factors["sampling_probability"])
    if factors is COARSE:
        yield from (partial(with_optimiser, name=name, noise=noise) for name in _OPTIMISERS)
        yield from (partial(_part, name=name) for name in _PARTS)
    yield from (partial(_clip, by=by) for by in (1 / clip, clip))


def _rate(best: Candidate, by: float) -> Candidate:
    """Return another learning rate."""
    return replace(best, learning_rate=tidy(best.learning_rate * by))


def _steps(best: Candidate, by: float) -> Candidate:
    """Return more or fewer steps a round."""
    steps = best.local_steps * by
    return replace(best, local_steps=math.ceil(steps) if by > 1 else max(1, math.floor(steps)))


def _larger_share(best: Candidate, by: float, noise: Noise) -> Candidate:
    """Return a larger sampling probability, or the same where it would hardly lower the noise: it costs time alone."""
    more = replace(best, sampling_probability=min(1.0, tidy(best.sampling_probability * by)))
    return more if noise(more) < SATURATED * noise(best) else best


def _smaller_share(best: Candidate, by: float) -> Candidate:
    """Return a smaller sampling probability."""
    return replace(best, sampling_probability=tidy(best.sampling_probability / by))


def _part(best: Candidate, name: TrainableNames) -> Candidate:
    """Return another choice of what is trained."""
    return replace(best, trainable=name)


def _clip(best: Candidate, by: float) -> Candidate:
    """Return another clip; SGD's rate moves against it, since its steps are as long as the clip."""
    rate = best.learning_rate / by if best.optimiser == "sgd" else best.learning_rate
    return replace(best, max_grad_norm=tidy(best.max_grad_norm * by), learning_rate=tidy(rate))


def tidy(value: float) -> float:
    """Return a number of two digits."""
    return float(f"{value:.2g}")
