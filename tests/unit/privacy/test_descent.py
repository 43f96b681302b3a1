"""Steps of the optimisers, replayed by hand in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from privacy.descent import Descent
from privacy.errors import PlanError
from privacy.optimiser import NoisedOptimiser, OptimiserName, Schedule
from tests.support.private_toys import RawGradient, weights_of

STD = 0.3
RATE = 0.05


def gradients(steps: int = 12, size: int = 6, seed: int = 0) -> npt.NDArray[np.float64]:
    """Return [steps, size]: a signal of its own in each coordinate, from none to strong, and noise of STD."""
    signal = np.linspace(0.0, 2.0, size)
    return signal + STD * np.random.default_rng(seed).normal(size=(steps, size))


def moved_by(
    optimiser: NoisedOptimiser, given: npt.NDArray[np.float64], noise_std: float = STD
) -> torch.Tensor:
    """Return where a module that began at zero is after the gradients."""
    module = RawGradient(given.shape[1]).double()
    torch.nn.init.zeros_(module.layer.weight)
    descent = Descent(module, optimiser, 0.0, noise_std=noise_std)
    for gradient in given:
        descent.step({"layer.weight": torch.from_numpy(gradient)[None]})
    return weights_of(module)


def corrected_adam(
    given: npt.NDArray[np.float64], *, std: float, floor: float, rates: list[float]
) -> npt.NDArray[np.float64]:
    """Return the same by DP-AdamBC, written out."""
    first, second, moved = (np.zeros(given.shape[1]) for _ in range(3))
    for step, (gradient, rate) in enumerate(zip(given, rates, strict=True), start=1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        unbiased = second / (1 - 0.999**step) - std**2
        moved = moved - rate * first / (1 - 0.9**step) / np.sqrt(np.maximum(unbiased, floor * std**2))
    return moved


@pytest.mark.parametrize("floor", [0.01, 0.1, 1.0])
def test_corrected_adam_is_the_paper_s(floor: float):
    given = gradients()
    optimiser = NoisedOptimiser(kind="adam-corrected", learning_rate=RATE, moment_floor=floor)
    expected = corrected_adam(given, std=STD, floor=floor, rates=[RATE] * len(given))
    np.testing.assert_allclose(moved_by(optimiser, given).numpy(), expected, rtol=1e-9)
    plain = moved_by(NoisedOptimiser(kind="adam", learning_rate=RATE), given).numpy()
    assert np.abs(plain - expected).max() > 0.1 * np.abs(plain).max(), "the correction is no rounding error"
    other = corrected_adam(given, std=2 * STD, floor=floor, rates=[RATE] * len(given))
    assert np.abs(other - expected).max() > 1e-3, "the replay tells a wrong deviation"


def test_corrected_adam_finds_the_second_moment_of_the_signal_and_plain_adam_that_of_both():
    """1000 steps of gradients 1 + N(0, 3^2): steps of nearly rate * 1 / 1, not of rate * 1 / sqrt(10)."""
    given = 1.0 + 3.0 * np.random.default_rng(1).normal(size=(2000, 400))
    corrected = moved_by(
        NoisedOptimiser(kind="adam-corrected", learning_rate=1e-3, moment_floor=0.01), given, 3.0
    )
    plain = moved_by(NoisedOptimiser(kind="adam", learning_rate=1e-3), given, 3.0)
    assert -float(plain.mean()) == pytest.approx(2.0 / np.sqrt(10.0), rel=0.05)
    assert -float(corrected.mean()) > 1.7 * -float(plain.mean())


def test_corrected_adam_without_noise_is_refused():
    with pytest.raises(PlanError, match="adam-corrected needs noise to correct for; use adam"):
        Descent(RawGradient(2), NoisedOptimiser(kind="adam-corrected", learning_rate=0.1), 0.0)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adam-corrected"])
def test_every_optimiser_follows_the_schedule(kind: OptimiserName):
    """At a constant rate 1 its steps are known; with a schedule each is that step times the rate."""
    given = gradients(steps=6)
    schedule = Schedule(kind="linear", warmup_steps=2, final_share=0.5, first_step=3, total_steps=9)
    unit = [
        moved_by(NoisedOptimiser(kind=kind, learning_rate=1.0), given[: count + 1])
        - moved_by(NoisedOptimiser(kind=kind, learning_rate=1.0), given[:count])
        for count in range(6)
    ]
    expected = sum(RATE * schedule.share(step) * part for step, part in enumerate(unit))
    optimiser = NoisedOptimiser(kind=kind, learning_rate=RATE, schedule=schedule)
    torch.testing.assert_close(moved_by(optimiser, given), expected, rtol=1e-6, atol=1e-9)


def test_a_step_that_is_passed_over_takes_its_rate_with_it():
    schedule = Schedule(kind="linear", final_share=0.5, total_steps=3)
    module = RawGradient(1).double()
    torch.nn.init.zeros_(module.layer.weight)
    descent = Descent(module, NoisedOptimiser(learning_rate=1.0, schedule=schedule), 0.0)
    descent.skip()
    descent.step({"layer.weight": torch.ones(1, 1)})
    assert float(weights_of(module)) == pytest.approx(-0.75)


def test_frozen_parameters_are_not_touched():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    module[0].requires_grad_(False)
    before = [parameter.detach().clone() for parameter in module[0].parameters()]
    descent = Descent(module, NoisedOptimiser(kind="adam-corrected", learning_rate=0.1), 0.5, noise_std=1.0)
    descent.step({"1.weight": torch.ones(1, 2), "1.bias": torch.ones(1)})
    assert all(torch.equal(was, now) for was, now in zip(before, module[0].parameters(), strict=True))
    assert all(parameter.grad is None for parameter in module.parameters())
