"""Noise that is correlated between the steps of one round, so that what one step adds the next ones take back.

A round of T steps releases x_t + w_t for t = 0 .. T - 1, with x_t the sum of clipped gradients of step t and
w = C^{-1} z, z independent normal. C is a lower-triangular T x T matrix with b bands whose columns have L2 norm 1. Sums
over steps, which is what an optimiser follows, then hold less noise than with independent noise of the same sigma.

Who takes part: at the beginning of a round each patient is put into one of b parts, at random and independently of
everybody else. Step t samples part t mod b alone, each of its patients with probability q.

What a round costs: at most `ceil(T / b)` Poisson-sampled Gaussian steps with probability q and noise multiplier sigma,
which is the release that is accounted (`charged_steps`). Why this holds for what is implemented:

1. x + C^{-1} z and y = C x + z are functions of each other, row by row: C is lower triangular with a positive diagonal.
   So releasing one is releasing the other. Rounding, division, the optimiser, the proximal term are post-processing.
2. Fix a patient p, its part j, and all randomness of the others: parts, samples, subsets of records, augmentation.
   Its law does not depend on p, since draws are independent. A bound for every fixed value is a bound.
3. With or without p, x differs in steps j, j + b, j + 2b, ... alone, there by B_i g_i: B_i is a coin of probability q,
   |g_i| <= clip. Hence y differs by sum_i C[:, j + i b] B_i g_i. Column t of C is zero outside rows t .. t + b - 1,
   so these columns have disjoint rows: row block i sees p through column j + i b alone, rows before j not at all.
4. g_i may depend on everything released before step j + i b, and so may the others' gradients within the block on rows
   of the block itself. Given what was released before a row, the others' part of that row is known, and subtracting it
   loses nothing. What is left of block i is B_i c g_i + z with |c| = 1: its part along c is a Gaussian step with
   sensitivity clip and sampling probability q, and all directions across c are noise that is independent of it.
5. The coins B_i are independent, so blocks compose adaptively like steps of DP-SGD. There are at most ceil(T / b).
6. Part j is random, and without p the law of the rest is the same for every j. Hockey-stick divergence is jointly
   convex, so a mixture over j is no easier to tell from it than the worst j, in both orders of the pair: one dominating
   pair serves for all parts, and rounds compose. Hence that parts are secret is not what the bound rests on.

Both neighbouring relations are covered: with `replace_one` the two patients share part and coins, and block i is a
sampled Gaussian step of that relation.

What it does not do: correlate noise between rounds, or sites. What is lost: a step sees q n / b patients on average
instead of q n. Whether correlation pays depends on q, T and epsilon (deploy/decisions/0012-mechanisms.md).

References:
    Choquette-Choo et al. 2023, "(Amplified) Banded Matrix Factorization", arXiv:2306.08153, theorem 4 and algorithm 2.
    Denisov et al. 2022, arXiv:2202.08312 (adaptive streams). Kalinin, Lampert 2024, arXiv:2405.13763 (square roots).
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from privacy.fields import integer_problem

if TYPE_CHECKING:
    from torch import Tensor  # a plan is read where there is no torch

FloatArray = npt.NDArray[np.float64]

MAX_BANDS = 1024
"""Most bands: each costs the memory of one more gradient, which a hostile document could ask for."""


def charged_steps(steps: int, bands: int) -> int:
    """Return in how many steps of a round one patient can take part: ceil(steps / bands).

    Args:
        steps: T >= 0.
        bands: b >= 1; 1 is independent noise.
    """
    return -(-steps // bands)


def coefficients(bands: int) -> FloatArray:
    """Return the first coefficients of the square root of the prefix-sum matrix, binomial(2k, k) / 4^k.

    They are those of (1 - x)^(-1/2); all of them together square to the matrix of ones below the diagonal.

    Args:
        bands: b >= 1.

    Returns:
        [b] float64, from 1 downwards.
    """
    ratios = ((2 * k - 1) / (2 * k) for k in range(1, bands))
    return np.array(list(itertools.accumulate(ratios, lambda c, r: c * r, initial=1.0)))


def column_norms(steps: int, bands: int) -> FloatArray:
    """Return what each column is divided by to have norm 1: the last ones are cut short by the end of the round.

    Returns:
        [T] float64.
    """
    lengths = np.minimum(bands, steps - np.arange(steps))
    norms: FloatArray = np.sqrt(np.cumsum(coefficients(bands) ** 2))[lengths - 1]
    return norms


def strategy(steps: int, bands: int) -> FloatArray:
    """Return C, for tests and tables; training never makes it.

        C[t + k, t] = c_k / |(c_0, .., c_{min(b, T - t) - 1})|,  0 <= k < b

    Args:
        steps: T >= 1.
        bands: b >= 1; 1 gives the identity.

    Returns:
        [T, T] float64.

    Guarantees:
        Columns have norm 1, and columns b or more apart are orthogonal (tests/unit/privacy/test_banded.py).
    """
    matrix = np.zeros((steps, steps))
    norms = column_norms(steps, bands)
    for k, coefficient in enumerate(coefficients(bands)[:steps]):
        later = np.arange(k, steps)
        matrix[later, later - k] = coefficient / norms[later - k]
    return matrix


def prefix_error(steps: int, bands: int) -> float:
    """Return the mean squared error of prefix sums over the round, for noise of standard deviation 1.

        |A C^{-1}|_F^2 / T,  A the T x T matrix of ones on and below the diagonal

    Args:
        steps: T >= 1.
        bands: b >= 1; 1 gives (T + 1) / 2.
    """
    sums = np.cumsum(np.linalg.inv(strategy(steps, bands)), axis=0)
    return float((sums**2).sum() / steps)


class BandedNoise:
    """Turns independent normal vectors, one a step, into rows of C^{-1} z; keeps the last b - 1 rows.

    w_t = (z_t - sum_{0 < k < b} C[t, t - k] w_{t - k}) / C[t, t]

    One object serves one round.

    Args:
        steps: T >= 0 of the round.
        bands: b >= 2.

    Guarantees:
        Covariance between steps is (C^T C)^{-1}, coordinates are independent
        (tests/unit/privacy/test_banded.py, tests/statistical/test_banded.py).
    """

    def __init__(self, *, steps: int, bands: int) -> None:
        if bands < 2:
            raise ValueError(f"bands must be >= 2, got {bands}; independent noise needs no object")
        self._steps = steps
        self._coefficients = coefficients(bands)
        self._norms = column_norms(steps, bands)
        self._past: deque[Tensor] = deque(maxlen=bands - 1)
        self._step = 0

    def correlate(self, deviates: Tensor) -> Tensor:
        """Return the noise of the next step.

        Args:
            deviates: [N] float64 independent standard normal, N the same at each step; not changed.

        Returns:
            [N] float64 on the same device.

        Raises:
            RuntimeError: the round has no further step: its noise would not be what was accounted.
        """
        if self._step >= self._steps:
            raise RuntimeError(f"the noise of a round of {self._steps} steps is used up")
        noise = deviates.clone()
        for k, past in enumerate(reversed(self._past), start=1):
            noise.sub_(past, alpha=float(self._coefficients[k] / self._norms[self._step - k]))
        noise.mul_(float(self._norms[self._step]))
        self._past.append(noise)
        self._step += 1
        # A copy: whoever gets the noise may write into it, and the past must stay.
        return noise.clone()


def bands_problem(mechanism: str, bands: object) -> list[str]:
    """Return a problem unless the number of bands goes with the mechanism."""
    if mechanism == "banded":
        return integer_problem("bands with mechanism banded", bands, low=2, high=MAX_BANDS)
    # The type is looked at as well: True equals 1.
    if type(bands) is int and bands == 1:
        return []
    return [f"bands goes with mechanism banded alone, got {bands!r:.60}; leave it out, or ask for banded"]
