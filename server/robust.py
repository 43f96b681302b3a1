"""Robust rules: aggregates that a minority of hostile updates cannot move beyond the honest ones.

A rule is a frozen value; `Spooled` makes it an `Aggregator`. All rules ignore the weights of sites: a
weighted median would let one large site decide alone.

They bound what updates of admissible size can do. With three to five hospitals that is little: `trim=1` of
four leaves two, and Krum needs five sites to withstand one, of which none may drop out. A site whose update
admission refused by name is one that need not be withstood any more; one that failed or is silent still is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from server.aggregate import Weights, require_minimum, require_update, shapes_of
from server.errors import StrategyError
from server.spool import Block, Spool

Row = npt.NDArray[np.floating[Any]]


class Rule(Protocol):
    """How the rows of a spool become one row."""

    @property
    def name(self) -> str:
        """Return name and settings, for messages."""
        ...

    @property
    def minimum_updates(self) -> int:
        """Return the fewest updates that the rule can work with."""
        ...

    def after_refusals(self, num_refused: int) -> Rule:
        """Return the rule for a round in which admission refused `num_refused` updates."""
        ...

    def reduction(self, spool: Spool) -> Callable[[Block], Row]:
        """Return the map from a block [n, b] of coordinates to their aggregate [b]."""
        ...


@dataclass(frozen=True, kw_only=True)
class CoordinateMedian:
    """The median of each coordinate; of an even number, the mean of the middle two.

    Guarantees:
        Each coordinate lies between two honest ones as long as fewer than half of the updates are hostile.

    References:
        Yin et al. 2018, arXiv:1803.01498, definition 1.
    """

    @property
    def name(self) -> str:
        """Return the name."""
        return "median"

    @property
    def minimum_updates(self) -> int:
        """Return 3: below, the median is the mean."""
        return 3

    def after_refusals(self, num_refused: int) -> CoordinateMedian:
        """Return the same rule: it works on what was admitted."""
        return self

    def reduction(self, spool: Spool) -> Callable[[Block], Row]:
        """Return the median over the rows."""
        first, last = (len(spool) - 1) // 2, len(spool) // 2
        return lambda block: _mean_of_sorted(block, first, last + 1)


@dataclass(frozen=True, kw_only=True)
class TrimmedMean:
    """The mean of each coordinate without its `trim` smallest and `trim` largest values.

    Attributes:
        trim: How many values go at each end, >= 1: the number of hostile updates to withstand.

    Guarantees:
        Each coordinate lies between two honest ones as long as at most `trim` updates are hostile.

    References:
        Yin et al. 2018, arXiv:1803.01498, definition 2: there a fraction of n, here a count, which cannot
        round down to nobody.
    """

    trim: int

    def __post_init__(self) -> None:
        if self.trim < 1:
            raise StrategyError(f"trim is {self.trim}: it would trim nobody; give 1 or more, or use fedavg")

    @property
    def name(self) -> str:
        """Return the name and the setting."""
        return f"trimmed-mean with trim {self.trim}"

    @property
    def minimum_updates(self) -> int:
        """Return 2 * trim + 1: one value must be left."""
        return 2 * self.trim + 1

    def after_refusals(self, num_refused: int) -> TrimmedMean:
        """Return the same rule: it works on what was admitted."""
        return self

    def reduction(self, spool: Spool) -> Callable[[Block], Row]:
        """Return the trimmed mean over the rows."""
        kept = len(spool) - self.trim
        return lambda block: _mean_of_sorted(block, self.trim, kept)


@dataclass(frozen=True, kw_only=True)
class Krum:
    """The update closest to its n - f - 2 nearest neighbours, or the mean of the m closest (Multi-Krum).

    The score of update i is the sum of its n - f - 2 smallest ||delta_i - delta_j||^2; ties go to the first
    name. The distances cost n (n - 1) / 2 passes over the model.

    Attributes:
        num_byzantine: f, how many hostile updates to withstand, >= 1.
        num_selected: m, how many are averaged, >= 1: 1 is Krum, more is Multi-Krum.
        num_refused: How many of the f admission has already refused by name: they need not be withstood again, so f
            counts as f - num_refused below, and at least 0.

    Guarantees:
        With n >= 2 f + 3 updates of which at most f are hostile, Krum is (alpha, f)-Byzantine resilient.

    References:
        Blanchard et al. 2017, arXiv:1703.02757, section 4 and proposition 1; m <= n - f - 2 for Multi-Krum:
        El Mhamdi et al. 2018, arXiv:1802.07927.
    """

    num_byzantine: int
    num_selected: int = 1
    num_refused: int = 0

    def __post_init__(self) -> None:
        if self.num_byzantine < 1:
            raise StrategyError(
                f"num_byzantine is {self.num_byzantine}: krum withstands 1 or more; or use fedavg"
            )
        if self.num_selected < 1:
            raise StrategyError(f"num_selected is {self.num_selected}: krum selects 1 or more")

    @property
    def name(self) -> str:
        """Return the name and the settings."""
        return f"krum with num_byzantine {self.num_byzantine} and num_selected {self.num_selected}"

    @property
    def minimum_updates(self) -> int:
        """Return max(2 f + 3, m + f + 2)."""
        return max(2 * self._hostile + 3, self.num_selected + self._hostile + 2)

    @property
    def _hostile(self) -> int:
        """Return how many hostile updates may still be among those admitted."""
        return max(0, self.num_byzantine - self.num_refused)

    def after_refusals(self, num_refused: int) -> Krum:
        """Return the rule for a round in which admission refused some updates."""
        return dataclasses.replace(self, num_refused=num_refused)

    def reduction(self, spool: Spool) -> Callable[[Block], Row]:
        """Return the mean over the selected rows."""
        others = np.sort(_squared_distances(spool), axis=1)[:, 1:]  # without the zero of a row to itself
        scores = others[:, : len(spool) - self._hostile - 2].sum(axis=1)
        selected = np.sort(np.argsort(scores, kind="stable")[: self.num_selected])
        return lambda block: block[selected].mean(axis=0, dtype=np.float64)


@dataclass(kw_only=True)
class Spooled:
    """A robust rule as an `Aggregator`: updates go to a scratch file, blocks of coordinates come back.

    Attributes:
        rule: What to do with them.
        scratch: Existing folder with room for one model a site [float32].

    Guarantees:
        Rows are sorted by site, so the order of arrival does not matter. Memory: one model (the result) and
        blocks of constant size, whatever the number of sites.
    """

    rule: Rule
    scratch: Path
    _shapes: dict[str, tuple[int, ...]] = field(default_factory=dict, init=False, repr=False)
    _spool: Spool | None = field(default=None, init=False, repr=False)
    _refused: int = field(default=0, init=False, repr=False)

    @property
    def minimum_updates(self) -> int:
        """Return the rule's."""
        return self.rule.minimum_updates

    @property
    def uses_weights(self) -> bool:
        """Return False: every site counts the same."""
        return False

    def begin(self, base: Weights) -> None:
        """Forget an unfinished round and start one of the names and shapes of `base`."""
        self._close()
        self._refused = 0
        self._shapes = shapes_of(base)
        self._spool = Spool(self.scratch, width=sum(math.prod(shape) for shape in self._shapes.values()))

    def add(self, site: str, weight: float, delta: Weights) -> None:
        """Write one update to the scratch file."""
        spool = self._require_spool()
        require_update(site, weight, delta, seen=spool.sites, shapes=self._shapes)
        spool.append(site, (delta[name] for name in self._shapes))

    def refuse(self, site: str) -> None:
        """Note that a site's update was refused."""
        self._refused += 1

    def finish(self) -> Weights:
        """Return what the rule makes of the updates, and give the disk space back."""
        spool = self._require_spool()
        rule = self.rule.after_refusals(self._refused)
        try:
            require_minimum(rule.name, len(spool), rule.minimum_updates)
            reduce = rule.reduction(spool)
            flat = np.empty(sum(math.prod(shape) for shape in self._shapes.values()), np.float32)
            for start, block in spool.blocks():
                flat[start : start + block.shape[1]] = reduce(block)
        finally:
            self._close()
        return _split(flat, self._shapes)

    def _require_spool(self) -> Spool:
        """Return the open spool."""
        if self._spool is None:
            raise ValueError("no round was begun: call begin")
        return self._spool

    def _close(self) -> None:
        """Close the spool, if one is open."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None


def _mean_of_sorted(block: Block, first: int, last: int) -> Row:
    """Return the mean of the order statistics first <= k < last of each column of [n, b]."""
    ordered = np.ascontiguousarray(block.T)  # n neighbours in memory sort several times faster than a column
    ordered.sort(axis=1)
    mean: Row = ordered[:, first:last].mean(axis=1, dtype=np.float64)
    return mean


def _squared_distances(spool: Spool) -> npt.NDArray[np.float64]:
    """Return ||delta_i - delta_j||^2 of all rows, [n, n], summed in float64 in a fixed order."""
    distances = np.zeros((len(spool), len(spool)))
    for _, block in spool.blocks():
        rows = block.astype(np.float64)
        for index in range(len(rows) - 1):
            difference = rows[index + 1 :] - rows[index]
            distances[index, index + 1 :] += np.einsum("ij,ij->i", difference, difference)
    return distances + distances.T


def _split(flat: npt.NDArray[np.float32], shapes: dict[str, tuple[int, ...]]) -> Weights:
    """Return views of a flat update by name."""
    result: Weights = {}
    start = 0
    for name, shape in shapes.items():
        result[name] = flat[start : (start := start + math.prod(shape))].reshape(shape)
    return result
