"""Names and settings of strategies, as a configuration gives them, and the parts they stand for.

Every setting that is given has an effect: one that the named strategy does not know is refused, not ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from server.aggregate import Aggregator, WeightedMean
from server.average import require_decay
from server.errors import StrategyError
from server.optimise import Adaptive, Plain, ServerOptimiser
from server.robust import CoordinateMedian, Krum, Rule, Spooled, TrimmedMean

StrategyName = Literal["fedavg", "fedprox", "fedadam", "fedyogi", "median", "trimmed-mean", "krum"]

DEFAULT_MAX_UPDATE_NORM = 1000.0
"""L2 norm [parameter units] far above any honest update and far below what would ruin a sum."""

_ADAPTIVE = ("learning_rate", "beta_1", "beta_2", "tau")
_KNOWN: Mapping[str, tuple[str, ...]] = {
    "fedavg": ("learning_rate",),
    "fedprox": ("learning_rate",),
    "fedadam": _ADAPTIVE,
    "fedyogi": _ADAPTIVE,
    "median": ("learning_rate",),
    "trimmed-mean": ("learning_rate", "trim"),
    "krum": ("learning_rate", "num_byzantine", "num_selected"),
}


@dataclass(frozen=True, kw_only=True)
class StrategySettings:
    """A strategy by name, with what its name allows; None stands for the default.

    `fedprox` is `fedavg` at the server: its pull is `proximal_mu` of the learning plan, which must be > 0.

    Attributes:
        name: Which strategy.
        max_update_norm: Largest L2 norm of an update that is admitted [parameter units], > 0.
        learning_rate: Of the server, > 0; default 1, and 0.01 for `fedadam` and `fedyogi`.
        beta_1: Of `fedadam` and `fedyogi`, in [0, 1); default 0.9.
        beta_2: Of `fedadam` and `fedyogi`, in [0, 1); default 0.99.
        tau: Of `fedadam` and `fedyogi`, > 0; default 0.001.
        trim: Of `trimmed-mean`: values cut at each end, >= 1; default 1.
        num_byzantine: Of `krum`: hostile updates to withstand, >= 1; default 1.
        num_selected: Of `krum`: updates averaged, >= 1; default 1, more is Multi-Krum.
        weight_average: Of every strategy: decay of the average of the weights over rounds, in (0, 1); None for none.
    """

    name: StrategyName
    max_update_norm: float = DEFAULT_MAX_UPDATE_NORM
    learning_rate: float | None = None
    beta_1: float | None = None
    beta_2: float | None = None
    tau: float | None = None
    trim: int | None = None
    num_byzantine: int | None = None
    num_selected: int | None = None
    weight_average: float | None = None

    def __post_init__(self) -> None:
        if self.name not in _KNOWN:
            raise StrategyError(f"strategy {self.name!r} is unknown; there are {', '.join(_KNOWN)}")
        foreign = sorted(set(self._given()) - {*_KNOWN[self.name], "weight_average"})
        if foreign:
            known = ", ".join(_KNOWN[self.name])
            raise StrategyError(
                f"strategy {self.name}: {', '.join(foreign)} would do nothing; it knows {known}"
            )
        require_decay(self.weight_average)
        self.make_optimiser()  # checks ranges
        if self.name in ("trimmed-mean", "krum"):
            self._rule()

    def make_optimiser(self) -> ServerOptimiser:
        """Return the server's optimiser.

        Raises:
            StrategyError: a value is out of range.
        """
        given = {name: value for name, value in self._given().items() if name in _ADAPTIVE}
        if self.name in ("fedadam", "fedyogi"):
            return Adaptive(second_moment="adam" if self.name == "fedadam" else "yogi", **given)
        return Plain(**given)

    def make_aggregator(self, scratch: Path) -> Aggregator:
        """Return the rule of aggregation; `scratch` is where robust rules put updates while they work."""
        if self.name in ("median", "trimmed-mean", "krum"):
            return Spooled(rule=self._rule(), scratch=scratch)
        return WeightedMean(max_abs=self.max_update_norm)

    def _rule(self) -> Rule:
        """Return the robust rule of that name."""
        if self.name == "krum":
            return Krum(
                num_byzantine=1 if self.num_byzantine is None else self.num_byzantine,
                num_selected=1 if self.num_selected is None else self.num_selected,
            )
        if self.name == "trimmed-mean":
            return TrimmedMean(trim=1 if self.trim is None else self.trim)
        return CoordinateMedian()

    def _given(self) -> dict[str, float]:
        """Return the optional settings that are set."""
        optional = (field.name for field in dataclasses.fields(self) if field.default is None)
        return {name: getattr(self, name) for name in optional if getattr(self, name) is not None}
