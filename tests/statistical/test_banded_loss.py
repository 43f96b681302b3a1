"""What a banded round itself loses, by simulation, against what is charged for it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from scipy.special import logsumexp

from privacy.banded import charged_steps, strategy

Q, NOISE, EPSILON = 0.6, 0.9, 1.0


def lost(matrix: np.ndarray, *, parts: int, draws: int = 40_000) -> tuple[float, float]:
    """Return delta at EPSILON of a round of unit gradients, with its standard error.

    With the patient C x + z is a mixture, over parts and coins, of normal laws around sums of columns; without, z.
    """
    rng = np.random.default_rng(5)
    steps = len(matrix)
    y = NOISE * rng.standard_normal((draws, steps))
    part = rng.integers(0, parts, draws)
    y += ((rng.random((draws, steps)) < Q) & (np.arange(steps) % parts == part[:, None])) @ matrix.T
    logs = []
    for own in range(parts):
        members = list(range(own, steps, parts))
        for coins in np.ndindex(*(2 for _ in members)):
            mean = matrix[:, members] @ np.array(coins, float)
            weight = sum(math.log(Q if coin else 1 - Q) for coin in coins) - math.log(parts)
            logs.append(weight + (y @ mean - mean @ mean / 2) / NOISE**2)
    terms = np.clip(-np.expm1(EPSILON - logsumexp(logs, axis=0)), 0, None)
    return float(terms.mean()), float(terms.std() / math.sqrt(draws))


def charged(steps: int) -> float:
    """Return delta at EPSILON of so many Poisson-sampled Gaussian steps, by dp-accounting."""
    one = pld.from_gaussian_mechanism(NOISE, sampling_prob=Q, value_discretization_interval=1e-3)
    return float(one.self_compose(steps).get_delta_for_epsilon(EPSILON))


@pytest.mark.parametrize(("steps", "bands"), [(4, 2), (6, 3), (7, 3)])
def test_a_round_loses_at_most_what_is_charged(steps, bands):
    found, error = lost(strategy(steps, bands), parts=bands)
    assert found < charged(charged_steps(steps, bands)) + 4 * error


@pytest.mark.parametrize(("steps", "bands"), [(4, 2), (6, 3)])
def test_the_charge_is_not_far_too_high_and_one_step_fewer_would_be_too_low(steps, bands):
    found, error = lost(strategy(steps, bands), parts=bands)
    assert found > 0.4 * charged(charged_steps(steps, bands))
    assert found > charged(charged_steps(steps, bands) - 1) + 4 * error


@pytest.mark.parametrize(("steps", "bands"), [(4, 2), (6, 3)])
def test_columns_that_are_too_long_or_patients_without_turns_would_be_found(steps, bands):
    bound = charged(charged_steps(steps, bands))
    longer, error = lost(1.6 * strategy(steps, bands), parts=bands)
    assert longer > bound + 4 * error
    everybody, error = lost(strategy(steps, bands), parts=1)
    assert everybody > bound + 4 * error
