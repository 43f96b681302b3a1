"""The average over rounds: the closed form by hand, and what a checkpoint may restore."""

import numpy as np
import pytest

from server.average import averaged, restored
from server.errors import CheckpointError, StrategyError
from server.settings import StrategySettings


def sequence(rounds=6, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {"b": rng.normal(size=(2, 3)).astype(np.float32), "a": rng.normal(size=()).astype(np.float32)}
        for _ in range(rounds)
    ]


def average_of(weights, decay):
    found = {}
    for applied, each in enumerate(weights, start=1):
        found = averaged(found, each, decay=decay, applied=applied)
    return found


@pytest.mark.parametrize("decay", [0.1, 0.8, 0.999])
def test_it_is_the_weighted_sum_with_weights_that_add_up_to_one(decay):
    weights = sequence()
    shares = np.array([decay ** (6 - s) for s in range(1, 7)])
    shares /= shares.sum()
    found = average_of(weights, decay)
    for name in ("a", "b"):
        expected = sum(
            share * each[name].astype(np.float64) for share, each in zip(shares, weights, strict=True)
        )
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)
        assert found[name].dtype == np.float32
        uncorrected = sum(
            (1 - decay) * decay ** (6 - s) * each[name].astype(np.float64)
            for s, each in enumerate(weights, start=1)
        )
        assert np.abs(found[name] - uncorrected).max() > 1e-6, "the test tells a missing correction"


def test_worked_example():
    # d = 0.5: round 1 gives 4. Round 2: (0.5 x 4 + 1 x 10) / 1.5 = 8. Round 3: (1 + 5 + 1 x 1) / 1.75 ... = 4.
    weights = [{"w": np.float32([value])} for value in (4.0, 10.0, 1.0)]
    assert average_of(weights[:1], 0.5)["w"] == 4.0
    assert average_of(weights[:2], 0.5)["w"] == pytest.approx(8.0)
    assert average_of(weights, 0.5)["w"] == pytest.approx((0.25 * 4 + 0.5 * 10 + 1) / 1.75)


def test_the_first_average_is_a_copy():
    weights = sequence(1)[0]
    found = averaged({}, weights, decay=0.5, applied=1)
    found["b"][:] = 0
    assert weights["b"].any()


def test_weights_of_another_model_are_refused():
    with pytest.raises(ValueError, match="names and shapes"):
        averaged({}, sequence(1)[0], decay=0.5, applied=2)


@pytest.mark.parametrize(
    ("average", "decay", "applied", "match"),
    [
        ({}, 0.5, 2, "not one of this model"),
        ({"b": np.zeros(3, np.float32)}, 0.5, 2, "not one of this model"),
        ({"b": np.zeros(3, np.float32)}, None, 2, "the run keeps none"),
    ],
    ids=["none kept", "other shapes", "none wanted"],
)
def test_an_average_that_does_not_fit_is_refused(average, decay, applied, match):
    with pytest.raises(CheckpointError, match=match):
        restored(average, sequence(1)[0], decay=decay, applied=applied)


def test_before_the_first_applied_round_there_is_none():
    assert restored({}, sequence(1)[0], decay=0.5, applied=0) == {}


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(StrategyError, match=r"weight_average is .*must be in \(0, 1\)"):
        StrategySettings(name="median", weight_average=decay)


@pytest.mark.parametrize("name", ["fedavg", "fedyogi", "krum", "trimmed-mean", "median"])
def test_every_strategy_may_keep_an_average(name):
    assert StrategySettings(name=name, weight_average=0.9).weight_average == 0.9
