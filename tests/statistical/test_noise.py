"""The noise that is added is the noise that is accounted: tests that accept the right law and reject near ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from privacy.noise import KeyStream, SeededRandomness
from privacy.plan import PrivacyPlan
from privacy.training import NoisedOptimiser, noised_mean, train_private
from tests.support.private_toys import RawGradient, make_cohort, weights_of

COUNT = 200_000
ALPHA = 1e-3


def stream(*labels: str | int) -> KeyStream:
    return SeededRandomness(2026, *labels).stream("noise")


def plan(noise: float = 1.3, bound: float = 0.7, divisor: float = 12.0, steps: int = 1) -> PrivacyPlan:
    return PrivacyPlan(
        sampling_probability=0.5,
        steps=steps,
        noise_multiplier=noise,
        max_grad_norm=bound,
        divisor=divisor,
        delta=1e-5,
        randomness="seeded",
    )


def p_value(sample: np.ndarray, scale: float) -> float:
    """Return the Kolmogorov-Smirnov p-value of N(0, scale^2)."""
    return float(stats.kstest(sample / scale, "norm").pvalue)


def p_spread(sample: np.ndarray, scale: float) -> float:
    """Return the two-sided chi-squared p-value of the variance scale^2: resolves 1 % of scale where KS needs 3 %."""
    statistic = float((sample / scale) @ (sample / scale))
    return 2 * min(stats.chi2.sf(statistic, len(sample)), stats.chi2.cdf(statistic, len(sample)))


def released(chosen: PrivacyPlan, count: int = COUNT) -> np.ndarray:
    """Return what a step releases when all gradients are zero: noise alone."""
    sums = {
        "a": torch.zeros(count // 2, dtype=torch.float64),
        "b": torch.zeros(2, count // 4, dtype=torch.float64),
    }
    out = noised_mean(sums, chosen, stream("released"))
    return np.concatenate([out["a"].numpy(), out["b"].numpy().ravel()])


def test_normal_deviates_are_normal():
    assert p_value(stream("normal").normal(COUNT), 1.0) > ALPHA
    assert p_spread(stream("normal").normal(COUNT), 1.0) > ALPHA


@pytest.mark.parametrize("scale", [0.97, 1.03, 0.5, 2.0])
def test_the_same_test_rejects_another_scale(scale: float):
    assert p_value(stream("normal").normal(COUNT), scale) < ALPHA


@pytest.mark.parametrize("scale", [0.99, 1.01])
def test_the_spread_rejects_one_percent(scale: float):
    assert p_spread(stream("normal").normal(COUNT), scale) < ALPHA


@pytest.mark.parametrize("shift", [-0.01, 0.01])
def test_the_same_test_rejects_another_mean(shift: float):
    assert p_value(stream("normal").normal(COUNT) + shift, 1.0) < ALPHA


def test_the_same_test_rejects_other_laws_of_unit_variance():
    sample = stream("laplace").uniform(COUNT) - 0.5
    laplace = -np.sign(sample) * np.log(1 - 2 * np.abs(sample)) / math.sqrt(2)
    clipped = np.clip(stream("clipped").normal(COUNT), -2.0, 2.0)
    rounded = np.rint(stream("rounded").normal(COUNT) * 50) / 50
    for other in (laplace, clipped, rounded):
        assert p_value(other, 1.0) < ALPHA


def test_uniform_deviates_are_uniform_and_a_bias_is_seen():
    sample = stream("uniform").uniform(COUNT)
    assert stats.kstest(sample, "uniform").pvalue > ALPHA
    assert stats.kstest(sample**1.01, "uniform").pvalue < ALPHA


def test_tails_have_their_weight():
    # P(|z| > 4) = 6.33e-5: 126.7 expected of two million, standard deviation 11.3.
    sample = stream("tails").normal(2_000_000)
    beyond = int((np.abs(sample) > 4).sum())
    low, high = stats.binom.interval(1 - ALPHA, 2_000_000, 2 * stats.norm.sf(4))
    assert low <= beyond <= high
    assert not low <= int((np.abs(np.clip(sample, -4, 4)) > 4).sum()) <= high


@pytest.mark.parametrize(
    ("noise", "bound", "divisor"), [(1.3, 0.7, 12.0), (0.5, 3.0, 1.0), (8.0, 0.01, 250.0)]
)
def test_what_is_released_of_zero_gradients_has_the_planned_scale(noise: float, bound: float, divisor: float):
    sample = released(plan(noise, bound, divisor))
    scale = noise * bound / divisor
    assert p_value(sample, scale) > ALPHA
    assert p_spread(sample, scale) > ALPHA
    for wrong in (0.97, 1.03):
        assert p_value(sample, scale * wrong) < ALPHA
    for wrong in (0.99, 1.01):
        assert p_spread(sample, scale * wrong) < ALPHA


@pytest.mark.parametrize("wrong", ["noise_multiplier", "max_grad_norm", "divisor"])
def test_each_part_of_the_plan_moves_the_scale(wrong: str):
    right = plan()
    fields = {name: getattr(right, name) for name in ("noise_multiplier", "max_grad_norm", "divisor")}
    fields[wrong] *= 1.02
    other = plan(fields["noise_multiplier"], fields["max_grad_norm"], fields["divisor"])
    assert p_spread(released(other), 1.3 * 0.7 / 12.0) < ALPHA


def test_noise_is_added_to_the_sum_not_instead_of_it():
    sums = {"a": torch.full((COUNT,), 24.0, dtype=torch.float64)}
    sample = noised_mean(sums, plan(), stream("released"))["a"].numpy()
    assert p_value(sample - 2.0, 1.3 * 0.7 / 12.0) > ALPHA  # 24 / 12
    assert p_value(sample, 1.3 * 0.7 / 12.0) < ALPHA


def test_coordinates_steps_rounds_and_sites_are_independent():
    first = stream("site-1", 1).normal(COUNT)
    others = {
        "next coordinate": (first[:-1], first[1:]),
        "half a step on": (first[: COUNT // 2], first[COUNT // 2 :]),
        "next round": (first, stream("site-1", 2).normal(COUNT)),
        "another site": (first, stream("site-2", 1).normal(COUNT)),
        "another purpose": (first, SeededRandomness(2026, "site-1", 1).stream("latent").normal(COUNT)),
    }
    for name, (one, two) in others.items():
        bound = stats.norm.isf(ALPHA / 2) / math.sqrt(len(one))
        assert abs(np.corrcoef(one, two)[0, 1]) < bound, name
    # What the test is for: noise drawn once and used twice.
    assert np.corrcoef(first, stream("site-1", 1).normal(COUNT))[0, 1] == pytest.approx(1.0)


def test_training_on_zero_gradients_is_a_random_walk_of_the_planned_size():
    # Zero records have zero gradients, so T steps of rate 1 move each weight by N(0, T (sigma C / divisor)^2).
    size, steps = 20_000, 9
    cohort = make_cohort((size,), [1] * 4, covariates=0)
    cohort.values[:] = 0.0
    module, chosen = RawGradient(size), plan(steps=steps)
    before = weights_of(module)
    train_private(
        module,
        cohort,
        plan=chosen,
        optimiser=NoisedOptimiser(learning_rate=1.0),
        randomness=SeededRandomness(11),
        kl_weight=0.0,
        latent_size=1,
    )
    moved = (weights_of(module) - before).numpy()
    scale = math.sqrt(steps) * 1.3 * 0.7 / 12.0
    assert p_value(moved, scale) > ALPHA
    assert p_spread(moved, scale) > ALPHA
    for noisy_steps in (steps - 1, steps + 1):  # a step without noise, or with noise twice
        assert p_spread(moved, math.sqrt(noisy_steps) * 1.3 * 0.7 / 12.0) < ALPHA
