"""Banded noise and its parts: the covariance between steps, the law of parts, who takes part how often."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from privacy.banded import BandedNoise, strategy
from privacy.noise import SeededRandomness
from privacy.plan import PrivacyPlan
from privacy.sampling import PoissonSampler
from privacy.training import noised_mean

COUNT, STEPS, BANDS = 100_000, 7, 3
ALPHA = 1e-3
PATIENTS, RATE, ROUNDS = 40, 0.3, 3000


def noise_of_round() -> np.ndarray:
    """Return [T, N]: what a round releases of zero gradients, times the divisor."""
    plan = PrivacyPlan(
        sampling_probability=0.5, steps=STEPS, noise_multiplier=1.3, max_grad_norm=0.7, divisor=12.0, delta=1e-5,
        randomness="seeded", mechanism="banded", bands=BANDS,
    )  # fmt: skip
    stream, banded = SeededRandomness(2026, "banded").stream("noise"), BandedNoise(steps=STEPS, bands=BANDS)
    zero = {"a": torch.zeros(COUNT, dtype=torch.float64)}
    return 12.0 * np.stack([noised_mean(zero, plan, stream, banded)["a"].numpy() for _ in range(STEPS)])


def p_covariance(sample: np.ndarray, covariance: np.ndarray) -> float:
    """Return the p-value of N(0, covariance) by the second moments of the whitened sample, all at once."""
    white = np.linalg.solve(np.linalg.cholesky(covariance), sample)
    moments = white @ white.T / COUNT
    off = np.tril_indices(len(covariance), -1)
    # Of N draws: variance 1 / N of a product of two coordinates, 2 / N of a square less one.
    statistic = COUNT * (moments[off] ** 2).sum() + COUNT * ((np.diag(moments) - 1) ** 2).sum() / 2
    return float(stats.chi2.sf(statistic, len(off[0]) + len(covariance)))


def test_noise_has_the_covariance_of_the_inverse_and_no_other():
    sample, scale = noise_of_round(), (1.3 * 0.7) ** 2

    def covariance(steps: int, bands: int) -> np.ndarray:
        matrix = strategy(steps, bands)
        return scale * np.linalg.inv(matrix.T @ matrix)

    assert p_covariance(sample, covariance(STEPS, BANDS)) > ALPHA
    for wrong in (
        covariance(STEPS, BANDS - 1),
        covariance(STEPS, BANDS + 1),
        scale * np.eye(STEPS),
        1.02 * covariance(STEPS, BANDS),
        covariance(STEPS + 1, BANDS)[:-1, :-1],  # the last columns as if the round went on
    ):
        assert p_covariance(sample, wrong) < ALPHA


def rounds(bands: int = BANDS, rate: float = RATE) -> np.ndarray:
    """Return [rounds, T, n]: who was in which step of many rounds."""
    taken = np.zeros((ROUNDS, STEPS, PATIENTS), dtype=bool)
    for number in range(ROUNDS):
        stream = SeededRandomness(7, "parts", number).stream("sampling")
        sampler = PoissonSampler(num_patients=PATIENTS, sampling_probability=rate, stream=stream, bands=bands)
        for step, chosen in enumerate(sampler.samples(STEPS)):
            taken[number, step, chosen] = True
    return taken


def p_parts(part: np.ndarray) -> float:
    """Return the p-value of independent uniform parts [rounds, n]: each patient's, and pairs of neighbours'."""
    counts = [np.bincount(column, minlength=BANDS) for column in part.T]
    pairs = np.bincount((part[:, 0::2] * BANDS + part[:, 1::2]).ravel(), minlength=BANDS**2)
    each = min(float(stats.chisquare(count).pvalue) for count in counts) * len(counts)
    return min(1.0, 2 * each, 2 * float(stats.chisquare(pairs).pvalue))


def test_parts_are_uniform_and_independent_between_patients():
    # With q = 1 the first b steps show every patient's part.
    part = rounds(rate=1.0)[:, :BANDS].argmax(axis=1)
    assert p_parts(part) > ALPHA
    together = part.copy()
    together[:, 1::2] = together[:, 0::2]
    uneven = np.where(np.random.default_rng(0).random(part.shape) < 0.05, 0, part)
    dealt = np.broadcast_to(np.arange(PATIENTS) % BANDS, part.shape)
    for wrong in (together, uneven, dealt):
        assert p_parts(wrong) < ALPHA


@pytest.mark.parametrize(("rate", "stands"), [(RATE, True), (RATE * 1.03, False)])
def test_every_step_takes_a_patient_with_probability_q_over_b(rate: float, stands: bool):
    taken = rounds()
    expected, trials = rate / BANDS, ROUNDS * PATIENTS
    counts = taken.sum(axis=(0, 2))
    statistic = ((counts - trials * expected) ** 2 / (trials * expected * (1 - expected))).sum()
    assert bool(stats.chi2.sf(statistic, STEPS) > ALPHA) is stands


def test_how_often_a_patient_takes_part_in_a_round_is_binomial_in_its_turns():
    # Steps 0, 3, 6 are of part 0: three turns; the other parts have two. P(k) is the mixture over parts.
    times = np.bincount(rounds().sum(axis=1).ravel(), minlength=4)
    turns = [len(range(part, STEPS, BANDS)) for part in range(BANDS)]
    expected = np.mean([stats.binom.pmf(np.arange(4), count, RATE) for count in turns], axis=0)
    assert len(times) == 4  # never more than ceil(7 / 3): what is charged
    assert stats.chisquare(times, times.sum() * expected).pvalue > ALPHA
    apart = stats.binom.pmf(np.arange(4), STEPS, RATE / BANDS)  # the same rate, without parts
    assert stats.chisquare(times, times.sum() * apart / apart.sum()).pvalue < ALPHA
