"""Server optimisers: what the aggregated change of a round does to the global model.

The aggregated change is taken as a gradient that points uphill (a pseudo-gradient), as in Reddi et al. 2021,
arXiv:2003.00295, algorithm 2. All arithmetic is element-wise float32 in a fixed order, so a resumed run
continues bit for bit. It does not know where the change came from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from server.aggregate import Weights, shapes_of
from server.errors import CheckpointError, StrategyError

_Array = npt.NDArray[np.float32]


class ServerOptimiser(Protocol):
    """Turns weights and an aggregated change into new weights."""

    def step(self, weights: Weights, delta: Weights) -> Weights:
        """Return the new weights; the arguments are left as they are.

        Args:
            weights: name -> float32.
            delta: Aggregated change, same names and shapes.

        Raises:
            ValueError: names or shapes differ.
        """
        ...

    def state(self) -> Weights:
        """Return what a checkpoint must keep, as float32 arrays; empty before the first step."""
        ...

    def restore(self, state: Weights, *, weights: Weights) -> None:
        """Continue from a state that belongs to `weights`.

        Raises:
            CheckpointError: the state is not one of this optimiser for these weights.
        """
        ...


@dataclass(kw_only=True)
class Plain:
    """w + learning_rate * delta; with 1, the mean of the sites' models (McMahan et al. 2017)."""

    learning_rate: float = 1.0

    def __post_init__(self) -> None:
        _require_positive(learning_rate=self.learning_rate)

    def step(self, weights: Weights, delta: Weights) -> Weights:
        """Return the new weights."""
        _require_same(weights, delta)
        rate = np.float32(self.learning_rate)
        return {name: _float32(weights[name] + rate * delta[name]) for name in sorted(weights)}

    def state(self) -> Weights:
        """Return nothing: there is no state."""
        return {}

    def restore(self, state: Weights, *, weights: Weights) -> None:
        """Accept the empty state."""
        if state:
            raise CheckpointError(
                "optimiser: a plain server has no state, the checkpoint has one; use --fresh"
            )


@dataclass(kw_only=True)
class Adaptive:
    """FedAdam and FedYogi: a step of its own length for each coordinate.

        m = beta_1 m + (1 - beta_1) d
        v = beta_2 v + (1 - beta_2) d^2                  (adam)
        v = v - (1 - beta_2) d^2 sign(v - d^2)           (yogi)
        w = w + learning_rate * m / (sqrt(v) + tau)

    with d the aggregated change, m = 0 and v = tau^2 at the start, and no bias correction (as in the paper).

    Attributes:
        second_moment: `adam` or `yogi`.
        learning_rate: eta > 0 [parameter units].
        beta_1: In [0, 1).
        beta_2: In [0, 1).
        tau: Degree of adaptivity > 0 [parameter units]; smaller adapts more.

    References:
        Reddi et al. 2021, arXiv:2003.00295, algorithm 2.
    """

    second_moment: Literal["adam", "yogi"]
    learning_rate: float = 1e-2
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3
    _mean: Weights = field(default_factory=dict, init=False, repr=False)
    _square: Weights = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        _require_positive(learning_rate=self.learning_rate, tau=self.tau)
        for name, value in (("beta_1", self.beta_1), ("beta_2", self.beta_2)):
            if not 0 <= value < 1:
                raise StrategyError(f"{name} is {value}; it must be in [0, 1)")

    def step(self, weights: Weights, delta: Weights) -> Weights:
        """Return the new weights and remember the moments."""
        _require_same(weights, delta)
        moments = {name: self._moments(name, _float32(delta[name])) for name in sorted(weights)}
        rate, tau = np.float32(self.learning_rate), np.float32(self.tau)
        result = {
            name: _float32(weights[name] + rate * mean / (np.sqrt(square) + tau))
            for name, (mean, square) in moments.items()
        }
        self._mean = {name: mean for name, (mean, _) in moments.items()}
        self._square = {name: square for name, (_, square) in moments.items()}
        return result

    def state(self) -> Weights:
        """Return both moments: `mean/NAME` and `square/NAME`."""
        return {
            f"{kind}/{name}": array
            for kind, moment in (("mean", self._mean), ("square", self._square))
            for name, array in moment.items()
        }

    def restore(self, state: Weights, *, weights: Weights) -> None:
        """Continue from both moments, or from the start if the state is empty."""
        expected = {
            f"{kind}/{name}": shape
            for kind in ("mean", "square")
            for name, shape in shapes_of(weights).items()
        }
        if state and shapes_of(state) != dict(sorted(expected.items())):
            raise CheckpointError(
                f"optimiser: the checkpoint's state is not that of {self.second_moment} for this model; use --fresh"
            )
        self._mean = {name: _float32(state[f"mean/{name}"]) for name in sorted(weights)} if state else {}
        self._square = {name: _float32(state[f"square/{name}"]) for name in sorted(weights)} if state else {}

    def _moments(self, name: str, change: _Array) -> tuple[_Array, _Array]:
        """Return the new first and second moment of one parameter."""
        tau, beta_1, beta_2 = np.float32(self.tau), np.float32(self.beta_1), np.float32(self.beta_2)
        rest_1, rest_2 = np.float32(1 - self.beta_1), np.float32(1 - self.beta_2)
        mean = self._mean.get(name, np.zeros_like(change))
        square = self._square.get(name, np.full_like(change, tau * tau))
        squared = change * change
        if self.second_moment == "adam":
            square = beta_2 * square + rest_2 * squared
        else:
            square = square - rest_2 * squared * np.sign(square - squared)
        return _float32(beta_1 * mean + rest_1 * change), _float32(square)


def _float32(values: npt.NDArray[Any]) -> _Array:
    """Return an array (NumPy makes scalars of arrays without axes) of float32."""
    return np.asarray(values, dtype=np.float32)


def _require_positive(**settings: float) -> None:
    """Check settings that must be > 0 and finite."""
    for name, value in settings.items():
        if not 0 < value < math.inf:
            raise StrategyError(f"{name} is {value}; it must be positive and finite")


def _require_same(weights: Weights, delta: Weights) -> None:
    """Check that the change fits the weights."""
    if shapes_of(weights) != shapes_of(delta):
        raise ValueError("the aggregated change does not have the names and shapes of the weights")
