"""Poisson sampling: rate of each patient, spread of batch sizes, independence. Other samplers fail the same tests."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from privacy.noise import SeededRandomness
from privacy.sampling import PoissonSampler

PATIENTS, RATE, STEPS = 80, 0.15, 4000
ALPHA = 1e-3

Draw = Callable[[int], Iterator[npt.NDArray[np.int64]]]


def poisson(rate: float = RATE, label: str = "a") -> Draw:
    sampler = PoissonSampler(
        num_patients=PATIENTS, sampling_probability=rate, stream=SeededRandomness(4, label).stream("sampling")
    )
    return sampler.samples


def shuffled(steps: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield epochs cut into batches of 12, as a usual data loader does: rate 0.15 exactly, in a way."""
    rng = np.random.default_rng(0)
    batches = (
        order[start : start + 12]
        for order in (rng.permutation(PATIENTS) for _ in itertools.count())
        for start in range(0, PATIENTS, 12)
        if start + 12 <= PATIENTS
    )
    return itertools.islice(batches, steps)


def fixed_size(steps: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield 12 distinct patients, anew each step."""
    rng = np.random.default_rng(0)
    return (rng.choice(PATIENTS, 12, replace=False) for _ in range(steps))


def in_pairs(steps: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield patients whose neighbours come along: right rate, dependent patients."""
    rng = np.random.default_rng(0)
    for _ in range(steps):
        even = np.flatnonzero(rng.random(PATIENTS // 2) < RATE) * 2
        yield np.sort(np.concatenate([even, even + 1]))


def sticky(steps: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield each Poisson sample twice: right rate, dependent steps."""
    for chosen in poisson(label="sticky")(steps // 2):
        yield chosen
        yield chosen


def inclusion(draw: Draw) -> npt.NDArray[np.bool_]:
    """Return [STEPS, PATIENTS]: who was in which step."""
    table = np.zeros((STEPS, PATIENTS), dtype=bool)
    for step, chosen in enumerate(draw(STEPS)):
        table[step, chosen] = True
    return table


def p_rate(table: npt.NDArray[np.bool_]) -> float:
    """Return the p-value of: every patient's count is Binomial(STEPS, RATE) (chi-squared over patients)."""
    counts = table.sum(0)
    statistic = ((counts - STEPS * RATE) ** 2 / (STEPS * RATE * (1 - RATE))).sum()
    return float(2 * min(stats.chi2.sf(statistic, PATIENTS), stats.chi2.cdf(statistic, PATIENTS)))


def p_batch_spread(table: npt.NDArray[np.bool_]) -> float:
    """Return the p-value of: batch sizes have the variance n q (1 - q)."""
    sizes = table.sum(1)
    statistic = ((sizes - PATIENTS * RATE) ** 2).sum() / (PATIENTS * RATE * (1 - RATE))
    z = (statistic - STEPS) / np.sqrt(2 * STEPS)  # chi-squared of many degrees is normal
    return float(2 * stats.norm.sf(abs(z)))


def p_correlation(one: npt.NDArray[np.bool_], two: npt.NDArray[np.bool_]) -> float:
    """Return the p-value of: the columns of two tables are uncorrelated, pooled."""
    centred = (one - RATE) * (two - RATE)
    z = centred.sum() / (RATE * (1 - RATE) * np.sqrt(centred.size))
    return float(2 * stats.norm.sf(abs(z)))


def p_neighbours(table: npt.NDArray[np.bool_]) -> float:
    """Return the p-value of: patients 2k and 2k + 1 are independent."""
    return p_correlation(table[:, ::2], table[:, 1::2])


def p_steps(table: npt.NDArray[np.bool_]) -> float:
    """Return the p-value of: consecutive steps are independent."""
    return p_correlation(table[:-1], table[1:])


TESTS = {"rate": p_rate, "spread": p_batch_spread, "neighbours": p_neighbours, "steps": p_steps}


@pytest.mark.parametrize("name", list(TESTS))
@pytest.mark.parametrize("label", ["a", "b"])
def test_the_sampler_is_poisson(name: str, label: str):
    assert TESTS[name](inclusion(poisson(label=label))) > ALPHA


@pytest.mark.parametrize(
    ("other", "caught_by"),
    [
        (shuffled, {"spread", "steps", "rate"}),
        (fixed_size, {"spread"}),
        (in_pairs, {"spread", "neighbours"}),
        (sticky, {"steps"}),
        (poisson(RATE * 1.05, "high"), {"rate", "spread"}),
        (poisson(RATE * 0.95, "low"), {"rate", "spread"}),
    ],
    ids=["shuffled", "fixed size", "in pairs", "sticky", "rate 5 % high", "rate 5 % low"],
)
def test_the_same_tests_reject_other_samplers(other: Draw, caught_by: set[str]):
    table = inclusion(other)
    rejected = {name for name, p_value in TESTS.items() if p_value(table) < ALPHA}
    assert rejected & caught_by, f"only {rejected} noticed"


def test_the_shuffled_loader_is_rejected_by_its_batch_sizes():
    assert p_batch_spread(inclusion(shuffled)) < 1e-12


def test_batch_sizes_follow_the_binomial_law():
    sizes = inclusion(poisson()).sum(1)
    observed = np.bincount(sizes, minlength=PATIENTS + 1)
    expected = STEPS * stats.binom.pmf(np.arange(PATIENTS + 1), PATIENTS, RATE)
    keep = expected > 8

    def p_value(counts: npt.NDArray[np.int64]) -> float:
        rest = counts[keep].sum() / expected[keep].sum()
        return float(stats.chisquare(counts[keep], expected[keep] * rest).pvalue)

    assert p_value(observed) > ALPHA
    assert p_value(np.bincount(sizes + 1, minlength=PATIENTS + 1)[: PATIENTS + 1]) < ALPHA


def test_empty_samples_have_their_share():
    # 20 patients at q = 0.1: P(empty) = 0.9^20 = 0.1216.
    sampler = PoissonSampler(
        num_patients=20, sampling_probability=0.1, stream=SeededRandomness(1).stream("sampling")
    )
    empty = sum(len(chosen) == 0 for chosen in sampler.samples(STEPS))
    low, high = stats.binom.interval(1 - ALPHA, STEPS, 0.9**20)
    assert low <= empty <= high
    assert not low <= 0 <= high
