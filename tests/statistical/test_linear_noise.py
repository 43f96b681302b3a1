"""The noise of both linear releases has the deviation that is paid for; the check rejects one that is 3 % off."""

import dataclasses

import numpy as np
import pytest

from privacy.linear import LinearPlan, release_mean, release_spread
from privacy.noise import SeededRandomness
from vae.data.cohort import Cohort

SIZE = 300
PLAN = LinearPlan(
    mean_noise_multiplier=3.0,
    spread_noise_multiplier=2.0,
    mean_norm=1.5,
    spread_norm=0.5,
    num_patients=10.0,
    randomness="seeded",
)
NOBODY = Cohort.from_records(name="x", patients=["a"], values=np.zeros((1, SIZE), np.float32))


def _released(plan, seeds):
    """Return the noise of both releases: the only patient lies at the centre and adds nothing."""
    options = {"plan": plan, "centre": np.zeros(SIZE), "basis": None}
    means = [release_mean(NOBODY, randomness=SeededRandomness(s, "m"), **options) for s in seeds]
    spreads = [release_spread(NOBODY, randomness=SeededRandomness(s, "s"), **options) for s in seeds[:2]]
    upper = np.triu_indices(SIZE, 1)
    return {
        "mean": np.concatenate(means),
        "diagonal": np.concatenate([np.diag(spread) for spread in spreads]),
        "rest": np.concatenate([spread[upper] for spread in spreads]),
    }


EXPECTED = {"mean": 3.0 * 1.5 / 10, "diagonal": 2.0 * 0.25 / 10, "rest": 2.0 * 0.25 / 10 / np.sqrt(2)}


def _is_off(noise, expected):
    """Return whether the deviation differs from the expected one beyond four standard errors."""
    error = expected / np.sqrt(2 * len(noise))
    return abs(noise.std() - expected) > 4 * error


@pytest.mark.parametrize("part", list(EXPECTED))
def test_the_deviation_is_the_one_that_is_paid_for(part):
    assert not _is_off(_released(PLAN, range(20))[part], EXPECTED[part])


def test_the_plan_says_what_the_noise_off_the_diagonal_is():
    assert PLAN.spread_noise == pytest.approx(EXPECTED["rest"])


def test_a_deviation_that_is_three_percent_off_is_found():
    quiet = dataclasses.replace(PLAN, spread_noise_multiplier=2.0 * 0.97)
    assert _is_off(_released(quiet, range(2))["rest"], EXPECTED["rest"])
    calm = dataclasses.replace(PLAN, mean_noise_multiplier=3.0 * 0.94)
    assert _is_off(_released(calm, range(20))["mean"], EXPECTED["mean"])


def test_a_spread_is_symmetric_and_two_releases_are_not_alike():
    found = release_spread(NOBODY, plan=PLAN, centre=np.zeros(SIZE), randomness=SeededRandomness(0, "s"))
    assert np.array_equal(found, found.T)
    noise = _released(PLAN, range(2))
    half = len(noise["rest"]) // 2
    correlation = np.corrcoef(noise["rest"][:half], noise["rest"][half:])[0, 1]
    assert abs(correlation) < 4 / np.sqrt(half)
