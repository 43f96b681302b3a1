"""The noise of a subspace: sigma C / divisor in each of k coordinates of theta, and nothing outside the span."""

from __future__ import annotations

import functools

import numpy as np
import torch
from scipy import stats

from privacy.noise import SeededRandomness
from privacy.optimiser import NoisedOptimiser
from privacy.plan import PrivacyPlan
from privacy.subspace import within
from privacy.training import train_private
from tests.support.private_toys import RawGradient, make_cohort, weights_of
from tests.support.subspaces import directions_for, stacked

ALPHA = 1e-3
SIZE, K, RUNS = 60, 6, 700
PLAN = PrivacyPlan(
    sampling_probability=0.5,
    steps=1,
    noise_multiplier=1.3,
    max_grad_norm=0.7,
    divisor=12.0,
    delta=1e-5,
    randomness="seeded",
)
SCALE = 1.3 * 0.7 / 12.0


@functools.cache
def changes() -> tuple[np.ndarray, np.ndarray]:
    """Return [RUNS, SIZE] changes of the weights by one step of noise alone, and V [K, SIZE]."""
    module = RawGradient(SIZE).double()
    directions = directions_for(module, K)
    cohort = make_cohort((SIZE,), (1, 1), covariates=0)
    cohort.values[:] = 0.0  # gradients of zero
    rows, before = [], weights_of(module)
    for run in range(RUNS):
        with torch.no_grad():
            module.layer.weight.copy_(before[None])
        with within(module, directions) as space:
            train_private(
                space,
                cohort,
                plan=PLAN,
                optimiser=NoisedOptimiser(kind="sgd", learning_rate=1.0),
                randomness=SeededRandomness(11, run),
                kl_weight=0.0,
                latent_size=1,
            )
        rows.append((weights_of(module) - before).numpy())
    return np.stack(rows), stacked(directions).numpy()


def p_spread(sample: np.ndarray, scale: float) -> float:
    """Return the two-sided chi-squared p-value of the variance scale^2 at mean zero."""
    statistic = float((sample / scale) @ (sample / scale))
    return 2 * min(stats.chi2.sf(statistic, len(sample)), stats.chi2.cdf(statistic, len(sample)))


def test_noise_has_the_planned_law_within_the_span_and_is_not_outside():
    moved, matrix = changes()
    theta = moved @ matrix.T
    assert np.abs(moved - theta @ matrix).max() < 1e-12, "nothing outside"
    sample = theta.ravel()
    assert stats.kstest(sample / SCALE, "norm").pvalue > ALPHA
    assert p_spread(sample, SCALE) > ALPHA
    for wrong in (0.93, 1.07):
        assert p_spread(sample, wrong * SCALE) < ALPHA, "4,200 deviates tell 7 % of scale"
    # Coordinates of theta are independent: of 15 correlations of 700 runs none beyond the quantile of 1e-3 / 15.
    correlations = np.corrcoef(theta.T)[np.triu_indices(K, 1)]
    limit = stats.norm.isf(ALPHA / 15 / 2) / np.sqrt(RUNS)
    assert np.abs(correlations).max() < limit
    assert np.abs(np.corrcoef((theta + theta[:, [1, 0, 2, 3, 4, 5]] * 0.2).T)[0, 1]) > limit


def test_the_norm_of_the_noise_grows_with_the_root_of_k_not_of_the_weights():
    moved, _ = changes()
    squared = np.square(moved).sum(1) / SCALE**2
    assert stats.kstest(squared, stats.chi2(K).cdf).pvalue > ALPHA
    assert stats.kstest(squared, stats.chi2(SIZE).cdf).pvalue < ALPHA
    assert stats.kstest(squared, stats.chi2(K + 1).cdf).pvalue < ALPHA
