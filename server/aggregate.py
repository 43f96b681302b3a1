"""Aggregation rules: many updates in, one aggregated change out, in memory that does not grow with the sites.

`WeightedMean` streams: it keeps one running sum. The robust rules (`server.robust`) need all updates at once,
so they spool them to a scratch file and work through it in blocks of coordinates.

Guarantees (tests/property/test_aggregation.py, tests/contract/test_aggregators.py):
    The result does not depend on the order of arrival, bit for bit. Peak memory does not depend on the number
    of sites.

It does not judge updates: names, shapes, dtypes, finiteness and norm are `server.admission`'s business. No
rule here is private by itself, and a robust rule bounds what a minority of sites can do, not what it can
learn.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from server.errors import AggregationError, StrategyError

Weights = dict[str, np.ndarray[Any, np.dtype[Any]]]
_Block = npt.NDArray[np.float32]

_CHUNK = 1 << 17  # coordinates summed at a time: the float64 working copy (1 MiB) stays in a core's cache
_TERM_BITS = (
    51  # a term is a whole number of grid units below 2**51, so that one float64 addition rounds it exactly
)
MAX_UPDATES = 2 ** (63 - _TERM_BITS) - 1  # int64 cannot overflow with so many terms


class Aggregator(Protocol):
    """One round's aggregation: `begin`, `add` once per admitted site, `finish`."""

    @property
    def minimum_updates(self) -> int:
        """Return the fewest updates that the rule can work with."""
        ...

    @property
    def uses_weights(self) -> bool:
        """Return whether weights of sites matter; a rule that ignores them must be given equal ones."""
        ...

    def begin(self, base: Weights) -> None:
        """Start a round; `base` gives names and shapes, and forgets what an unfinished round left."""
        ...

    def add(self, site: str, weight: float, delta: Weights) -> None:
        """Take one update.

        Args:
            site: Name; each at most once a round.
            weight: Public constant of the site, in (0, 1].
            delta: Change of every parameter, float32, as announced by `base`; not kept.

        Raises:
            AggregationError: the update is out of the rule's range; the round is then void.
            ValueError: no round was begun, the site came twice, or the update does not match `base`.
        """
        ...

    def refuse(self, site: str) -> None:
        """Note that admission refused an update of this site: a rule need not withstand it any more."""
        ...

    def finish(self) -> Weights:
        """Return the aggregated change, float32, and end the round.

        Raises:
            AggregationError: too few updates for the rule; the message names it.
        """
        ...


@dataclass(kw_only=True)
class WeightedMean:
    """FedAvg: sum_k w_k delta_k / sum_k w_k over the admitted sites k, one update at a time.

    Floating-point sums depend on their order, so each product w_k * delta_k is rounded to a fixed grid of
    step `unit = 2**(e - 51)`, where 2**e >= max_abs, and summed as a 64-bit integer: integer addition is
    associative, and with at most 4,095 terms below 2**51 units it cannot overflow. Adding 1.5 * 2**52 * unit
    to a float64 rounds it to the grid and leaves the integer in the low bits of its mantissa, which makes the
    sum three vector operations.

    Args:
        max_abs: Largest |w * delta| of a coordinate, a public constant; a bound on the norm of updates
            serves.

    Guarantees:
        Bit-for-bit the same for every order of arrival. Differs from the exact mean by at most
        n * unit / (2 * sum w) plus one float32 rounding. Holds two models (the int64 sum), whatever the
        number of sites.

    References:
        McMahan et al. 2017, arXiv:1602.05629, algorithm 1. The grid is the pre-rounding of Demmel & Nguyen
        2013, "Fast reproducible floating-point summation".
    """

    max_abs: float = 1024.0
    _sums: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict, init=False, repr=False)
    _weights: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    _shapes: dict[str, tuple[int, ...]] = field(default_factory=dict, init=False, repr=False)
    _void: bool = field(default=True, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.max_abs < 2.0**100:
            raise StrategyError(
                f"max_abs is {self.max_abs}; the bound of a coordinate must be positive and finite"
            )

    @property
    def minimum_updates(self) -> int:
        """Return 1."""
        return 1

    @property
    def uses_weights(self) -> bool:
        """Return True."""
        return True

    @property
    def unit(self) -> float:
        """Return the step of the grid [parameter units], a power of two."""
        return math.ldexp(1.0, math.ceil(math.log2(self.max_abs)) - _TERM_BITS)

    def begin(self, base: Weights) -> None:
        """Start a round of the names and shapes of `base`."""
        self._shapes = shapes_of(base)
        self._sums = {name: np.zeros(math.prod(shape), np.int64) for name, shape in self._shapes.items()}
        self._weights, self._void = {}, False

    def add(self, site: str, weight: float, delta: Weights) -> None:
        """Add one update to the running sum."""
        if self._void:
            raise ValueError("no round was begun, or an update broke it: call begin")
        require_update(site, weight, delta, seen=self._weights, shapes=self._shapes)
        if len(self._weights) == MAX_UPDATES:
            raise AggregationError(f"weighted mean: more than {MAX_UPDATES} updates in a round")
        self._void = True  # until every coordinate is in: half an update is not an update
        shift = 1.5 * 2.0**52 * self.unit
        buffer = np.empty(_CHUNK, np.float64)
        for name, total in self._sums.items():
            values = np.ascontiguousarray(delta[name]).reshape(-1)
            for start in range(0, total.size, _CHUNK):
                chunk = values[start : start + _CHUNK]
                self._require_range(site, name, chunk, weight)
                terms = buffer[: chunk.size]
                terms[...] = chunk
                if weight != 1.0:
                    terms *= weight
                terms += shift
                total[start : start + _CHUNK] += terms.view(np.int64)
        self._weights[site] = weight
        self._void = False

    def refuse(self, site: str) -> None:
        """Nothing to note: the mean is over what was admitted."""

    def finish(self) -> Weights:
        """Return the weighted mean of the updates."""
        if self._void:
            raise ValueError("no round was begun, or an update broke it: call begin")
        require_minimum("weighted mean", len(self._weights), self.minimum_updates)
        # Each term carries the bit pattern of the shift; modulo 2**64 that many of them are taken off again.
        pattern = int(np.float64(1.5 * 2.0**52 * self.unit).view(np.int64))
        excess = np.uint64(len(self._weights) * pattern % 2**64).astype(np.int64)
        scale = self.unit / math.fsum(self._weights[site] for site in sorted(self._weights))
        result: Weights = {}
        for name, shape in self._shapes.items():
            total = self._sums.pop(name)  # freed as we go: the result never adds a third model
            result[name] = np.empty(shape, np.float32)
            flat = result[name].reshape(-1)
            for start in range(0, total.size, _CHUNK):
                flat[start : start + _CHUNK] = (total[start : start + _CHUNK] - excess) * scale
        self._void = True
        return result

    def _require_range(self, site: str, name: str, chunk: _Block, weight: float) -> None:
        """Check that no product leaves the grid; the sum of squares is a cheap bound for the usual case."""
        with np.errstate(over="ignore"):
            if float(np.dot(chunk, chunk)) * weight**2 <= (0.9 * self.max_abs) ** 2:
                return
        largest = max(-float(chunk.min()), float(chunk.max()))
        if not largest * weight <= self.max_abs:
            raise AggregationError(
                f"weighted mean: {site}: a coordinate of {name} is beyond {self.max_abs}, or not a number"
            )


def require_update(
    site: str, weight: float, delta: Weights, *, seen: Container[str], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Check that an update fits the round; admission has done so before, so a failure is our own mistake.

    Raises:
        ValueError: the site came twice, the weight is not in (0, 1], or names, shapes or dtypes differ.
    """
    if site in seen:
        raise ValueError(f"{site}: a second update in one round")
    if not 0 < weight <= 1:
        raise ValueError(f"{site}: weight {weight} is not in (0, 1]")
    if shapes_of(delta) != shapes or any(array.dtype != np.float32 for array in delta.values()):
        raise ValueError(f"{site}: names, shapes or dtypes are not those of the round's base")


def require_minimum(rule: str, num_updates: int, minimum: int) -> None:
    """Check that a rule has enough updates.

    Raises:
        AggregationError: it has not.
    """
    if num_updates < minimum:
        raise AggregationError(f"{rule}: {num_updates} updates, needs {minimum}; the round is not applied")


def shapes_of(weights: Mapping[str, np.ndarray[Any, np.dtype[Any]]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes by name, sorted by name."""
    return {name: tuple(weights[name].shape) for name in sorted(weights)}
