"""Discrete Gaussian noise: clipped gradients on a lattice of integers, and noise that is sampled exactly.

Float64 noise on a float sum is what the proof of the Gaussian mechanism assumes, up to the rounding of floats; attacks
on such implementations live in those last bits (Mironov 2012; Haney et al. 2022). With `mechanism: discrete` there are
none:

1. Each patient is computed alone, so that no kernel mixes one patient's rounding into another's.
2. The clipped gradient of a patient is rounded to integers, in units of sigma C / S with S = 2^36 (`Lattice`), and
   clipped so much below C that its norm is at most S / sigma *after* rounding. Integers add without error: with and
   without a patient the sum differs by those integers, to the bit.
3. Every coordinate gets a discrete Gaussian integer of parameter S (`DiscreteGaussian`), sampled without floating-point
   error.

**What it is charged as**: the Gaussian mechanism of noise multiplier sigma, by which every accountant here already
counts. The discrete Gaussian is, up to a factor, post-processing of a continuous one. Let y ~ N(m, s^2), m an integer,
and round y at random: n with probability proportional to exp(-(n - y)^2 / 2 r^2). The normaliser is r sqrt(2 pi) times
a number in 1 +- e for every y, e = 2 sum_k exp(-2 pi^2 r^2 k^2), by Poisson summation (Peikert 2010, lemma 2.4). So n
has m's discrete Gaussian of variance s^2 + r^2 up to factors in 1 +- e each coordinate, and how n was made from y does
not depend on m. With r = 2, e < 2e-34: a billion coordinates change the privacy loss by less than 1e-24. The variance
that r takes, 4 of 2^72, is paid by the lattice's margin.

Guarantees:
    - The norm bound and the exact difference: tests/property/test_discrete_bound.py.
    - The law of the noise, against its probabilities, and the exact path: tests/statistical/test_discrete_noise.py.

What it does not do: hide how long sampling took (rejections do not depend on data), or save time: gradients of one
patient at a time and three words a trial cost more than `independent` (`make bench`, private_step).

References:
    Canonne, Kamath, Steinke 2020, arXiv:2004.00010 (the mechanism); Karney 2016, arXiv:1303.6257, algorithm D (the
    sampler's decomposition); Peikert 2010, Crypto (rounding); Mironov 2012, CCS.
"""

from __future__ import annotations

import bisect
import decimal
import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from privacy.noise import FloatArray, KeyStream

if TYPE_CHECKING:
    from torch import Tensor  # a plan is read where there is no torch

SCALE_BITS = 36
SCALE = 2.0**SCALE_BITS
"""S, the parameter of the noise in units of the lattice."""

_LEAST_NOISE, _MOST_NOISE = 2.0**-10, 2.0**12
_MARGIN = 2.0**-40
_FLOAT_ERROR = 2.0**-52

_MOST_WHOLE = 19  # whole parts from here on have probability below 1e-78, and less than the digits compared
_WORD_BITS, _DIGITS_BITS = 64, 192
_CHUNK_TRIALS = 1 << 14
# Float64 exp and the conversion of a word are right to a few 2^-53.
_DOUBT = 2.0**-44


def discrete_problems(noise_multiplier: float, grad_engine: str) -> list[str]:
    """Return what is wrong with a plan of the mechanism `discrete`.

    Below the range of the noise multiplier integers of many patients would not fit into 64 bits; above it rounding
    takes a good part of C.
    """
    problems = []
    if not _LEAST_NOISE <= noise_multiplier <= _MOST_NOISE:
        problems.append(
            f"noise_multiplier must be from {_LEAST_NOISE:g} to {_MOST_NOISE:g} with mechanism discrete, "
            f"got {noise_multiplier!r}; take mechanism independent"
        )
    if grad_engine == "bookkeeping":
        problems.append(
            "grad_engine must be vmap or opacus with mechanism discrete: bookkeeping sums before there is a patient's "
            "gradient to round"
        )
    return problems


@dataclass(frozen=True, kw_only=True)
class Lattice:
    """Integers that stand for gradients of D coordinates: one unit is sigma C / S.

    Attributes:
        noise_multiplier: sigma.
        max_grad_norm: C.
        num_coordinates: D >= 1, trainable numbers of the model.
    """

    noise_multiplier: float
    max_grad_norm: float
    num_coordinates: int

    def __post_init__(self) -> None:
        if self.num_coordinates < 1:
            raise ValueError(f"a lattice has at least one coordinate, got {self.num_coordinates}")
        if self.clip_units < 0.5 * self.bound_units:
            raise ValueError(
                f"rounding {self.num_coordinates} coordinates at noise multiplier {self.noise_multiplier:g} would take "
                "half of max_grad_norm; take mechanism independent"
            )

    @property
    def unit(self) -> float:
        """Return what one unit is in the gradient's own scale."""
        return self.noise_multiplier * self.max_grad_norm / SCALE

    @property
    def bound_units(self) -> float:
        """Return the largest norm of a patient's integers: S / sigma, less the margin that pays r^2."""
        return SCALE / self.noise_multiplier * (1.0 - _MARGIN)

    @property
    def clip_units(self) -> float:
        """Return the norm that gradients are clipped to before they are rounded.

        Rounding moves each coordinate by at most 1/2, so the norm by at most sqrt(D) / 2. The rest is for the float64
        norm of D squares, whatever the order of summation.
        """
        before = self.bound_units - 0.5 * math.sqrt(self.num_coordinates)
        return before * (1.0 - (self.num_coordinates + 8) * _FLOAT_ERROR)

    def round_clipped(self, gradients: Tensor, factors: Tensor) -> Tensor:
        """Return [D'] int64: the sum over patients of their scaled gradients, each rounded before the sum.

        Args:
            gradients: [P, D'] of part of the coordinates, finite.
            factors: [P] float64, each patient's clip factor (<= 1) for norms of `clip_norm`.
        """
        units = gradients.double() * (factors / self.unit)[:, None]
        return units.round_().long().sum(dim=0)

    @property
    def clip_norm(self) -> float:
        """Return `clip_units` in the gradient's own scale: a little below C."""
        return self.clip_units * self.unit


class DiscreteGaussian:
    """Integers n with probability proportional to exp(-n^2 / 2 S^2), S a power of two, from a key stream.

    |n| = k S + j with 0 <= j < S. Trials draw k >= 0 with probability proportional to exp(-k^2 / 2), a sign, and j
    uniformly, and are accepted with probability exp(-x (2 k + x) / 2), x = j / S: together exp(-(k + x)^2 / 2). Of the
    two zeros one is refused. About 0.71 of all trials are accepted.

    Both choices compare a uniform number with an irrational one. They do so in floats where the answer cannot be wrong,
    and else, about once in 1e13 trials, with 192 bits of both: the distance to the exact law is below 1e-55 a trial.

    Attributes:
        scale_bits: log2 of S, 0 to 52.
    """

    def __init__(self, stream: KeyStream, *, scale_bits: int = SCALE_BITS, doubt: float = _DOUBT) -> None:
        """Args: stream: read by nobody else. doubt: where floats are not trusted; tests widen it."""
        if not 0 <= scale_bits <= 52:
            raise ValueError(f"scale_bits must be from 0 to 52, got {scale_bits}")
        self.scale_bits = scale_bits
        self._stream = stream
        self._doubt = doubt
        self._thresholds = np.array(
            [edge >> (_DIGITS_BITS - _WORD_BITS) for edge in _whole_thresholds()], dtype=np.uint64
        )

    def normal(self, count: int) -> FloatArray:
        """Return [count] integers as float64, which holds them exactly."""
        out = np.empty(count, np.float64)
        done = 0
        while done < count:
            trials = min(_CHUNK_TRIALS, int((count - done) * 1.5) + 16)
            made = self._accepted(trials)[: count - done]
            out[done : done + len(made)] = made
            done += len(made)
        return out

    def _accepted(self, trials: int) -> FloatArray:
        """Return the accepted ones of some trials, in their order."""
        first, second, third = self._stream.words(3 * trials).reshape(3, trials)
        whole = self._whole(first)
        negative = (second & np.uint64(1)).astype(bool)
        part = ((second >> np.uint64(1)) & np.uint64((1 << self.scale_bits) - 1)).astype(np.float64)
        accepted = self._accept(third, whole, part)
        accepted &= ~(negative & (whole == 0) & (part == 0))
        size = whole * 2.0**self.scale_bits + part
        made: FloatArray = np.where(negative, -size, size)[accepted]
        return made

    def _whole(self, words: npt.NDArray[np.uint64]) -> FloatArray:
        """Return k of each trial: how many thresholds its uniform number has passed."""
        whole = np.searchsorted(self._thresholds, words, side="right").astype(np.float64)
        # Equal to the first 64 digits of a threshold: the others decide.
        for index in np.flatnonzero(np.isin(words, self._thresholds)):
            whole[index] = bisect.bisect_right(_whole_thresholds(), self._extended(int(words[index])))
        return whole

    def _accept(
        self, words: npt.NDArray[np.uint64], whole: FloatArray, part: FloatArray
    ) -> npt.NDArray[np.bool_]:
        """Return whether each trial's uniform number is below exp(-x (2 k + x) / 2)."""
        x = part * 2.0**-self.scale_bits
        below = np.exp(-0.5 * x * (2.0 * whole + x)) - words.astype(np.float64) * 2.0**-_WORD_BITS
        accepted: npt.NDArray[np.bool_] = below > 0
        for index in np.flatnonzero(np.abs(below) <= self._doubt):
            edge = _acceptance(int(whole[index]), int(part[index]), self.scale_bits)
            accepted[index] = self._extended(int(words[index])) < edge
        return accepted

    def _extended(self, word: int) -> int:
        """Return a uniform number's first 192 digits: 64 that are known, and 128 from the stream."""
        for more in self._stream.words(2).tolist():
            word = word << _WORD_BITS | more
        return word


def on_lattice(total: Tensor, noise: FloatArray) -> FloatArray:
    """Return [N] float64: a sum of integers plus noise, added without error; from 2^53 on rounded afterwards.

    Args:
        total: [N] int64, in units.
        noise: [N] integers.

    Raises:
        ValueError: one of the two is not of integers: an engine without a lattice, or noise of another mechanism.
    """
    whole, summed = noise.astype(np.int64), total.numpy()
    if summed.dtype != np.int64 or not np.array_equal(whole, noise):
        raise ValueError(
            "mechanism discrete adds integers to sums of integers, and one of the two has others"
        )
    return (summed + whole).astype(np.float64)


@cache
def _whole_thresholds() -> tuple[int, ...]:
    """Return the cumulative probabilities of k = 0, 1, ..., with k ~ exp(-k^2 / 2), as integers of 192 digits."""
    with decimal.localcontext(prec=80):
        weights = [(decimal.Decimal(-k * k) / 2).exp() for k in range(_MOST_WHOLE)]
        total = sum(weights)
        edges, passed = [], decimal.Decimal(0)
        for weight in weights[:-1]:
            passed += weight
            edges.append(int(passed / total * (1 << _DIGITS_BITS)))
    return tuple(edges)


def _acceptance(whole: int, part: int, scale_bits: int) -> int:
    """Return exp(-x (2 k + x) / 2) as an integer of 192 digits; 2^192 for x = 0."""
    with decimal.localcontext(prec=80):
        x = decimal.Decimal(part) / (1 << scale_bits)
        return int((-x * (2 * whole + x) / 2).exp() * (1 << _DIGITS_BITS))
