"""Server optimisers against worked examples and against the paper's algorithm in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest

from client.contract import Weights
from server.errors import CheckpointError, StrategyError
from server.optimise import Adaptive, Plain, ServerOptimiser
from tests.support.replies import some_weights

OPTIMISERS = [
    Plain(),
    Plain(learning_rate=0.5),
    Adaptive(second_moment="adam"),
    Adaptive(second_moment="yogi", learning_rate=0.1, beta_1=0.5, beta_2=0.9, tau=0.01),
]


def _fresh(optimiser: ServerOptimiser) -> ServerOptimiser:
    settings = {name: value for name, value in vars(optimiser).items() if not name.startswith("_")}
    return type(optimiser)(**settings)


def _run(optimiser: ServerOptimiser, steps: range, weights: Weights) -> Weights:
    for step in steps:
        weights = optimiser.step(weights, some_weights(step, scale=0.1))
    return weights


def _bytes(weights: Weights) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in weights.items()}


def _scalar(value: float) -> Weights:
    return {"w": np.array(value, np.float32)}


def test_plain_adds_the_change() -> None:
    assert Plain().step(_scalar(1.0), _scalar(0.25))["w"] == 1.25
    assert Plain(learning_rate=2.0).step(_scalar(1.0), _scalar(0.25))["w"] == 1.5


def test_the_first_step_of_adam() -> None:
    # m = 0.1 * 2 = 0.2; v = 0.99 * 0.001^2 + 0.01 * 4 = 0.04000099; step = 0.01 * 0.2 / (sqrt(v) + 0.001)
    adam = Adaptive(second_moment="adam")
    moved = adam.step(_scalar(1.0), _scalar(2.0))["w"]
    assert moved == pytest.approx(1 + 0.01 * 0.2 / (math.sqrt(0.04000099) + 0.001), rel=1e-6)
    assert adam.state()["mean/w"] == pytest.approx(0.2)
    assert adam.state()["square/w"] == pytest.approx(0.04000099)


def test_yogi_grows_its_second_moment_as_slowly_as_it_shrinks_it() -> None:
    # v = 1e-6; d^2 = 4 > v: v + 0.01 * 4 = 0.040001. Then d = 0: sign(v - 0) = 1, d^2 = 0: v stays.
    yogi = Adaptive(second_moment="yogi")
    yogi.step(_scalar(1.0), _scalar(2.0))
    assert yogi.state()["square/w"] == pytest.approx(0.040001)
    yogi.step(_scalar(1.0), _scalar(0.0))
    assert yogi.state()["square/w"] == pytest.approx(0.040001)
    adam = Adaptive(second_moment="adam")
    adam.step(_scalar(1.0), _scalar(2.0))
    adam.step(_scalar(1.0), _scalar(0.0))
    assert adam.state()["square/w"] == pytest.approx(0.99 * 0.04000099)  # adam forgets at once


@pytest.mark.parametrize("kind", ["adam", "yogi"])
def test_twenty_steps_follow_the_paper(kind: str) -> None:
    rate, beta_1, beta_2, tau = 0.05, 0.8, 0.9, 0.02
    optimiser = Adaptive(second_moment=kind, learning_rate=rate, beta_1=beta_1, beta_2=beta_2, tau=tau)  # type: ignore[arg-type]
    weights = _scalar(0.5)
    w, m, v = 0.5, 0.0, tau**2
    for step in range(20):
        d = math.sin(step) * 0.3
        weights = optimiser.step(weights, _scalar(d))
        m = beta_1 * m + (1 - beta_1) * d
        v = (
            beta_2 * v + (1 - beta_2) * d**2
            if kind == "adam"
            else v - (1 - beta_2) * d**2 * np.sign(v - d**2)
        )
        w += rate * m / (math.sqrt(v) + tau)
    assert float(weights["w"]) == pytest.approx(w, rel=1e-5)


@pytest.mark.parametrize("optimiser", OPTIMISERS, ids=str)
class TestEvery:
    def test_names_shapes_and_dtype_stay(self, optimiser: ServerOptimiser) -> None:
        result = _run(_fresh(optimiser), range(1, 3), some_weights(0))
        assert {n: (a.shape, a.dtype.name) for n, a in result.items()} == {
            n: (a.shape, "float32") for n, a in some_weights(0).items()
        }

    def test_the_arguments_are_left_alone(self, optimiser: ServerOptimiser) -> None:
        weights, delta = some_weights(0), some_weights(1)
        result = _fresh(optimiser).step(weights, delta)
        for name in result:
            result[name] += 1
        assert (_bytes(weights), _bytes(delta)) == (_bytes(some_weights(0)), _bytes(some_weights(1)))

    def test_it_moves_where_the_change_points(self, optimiser: ServerOptimiser) -> None:
        moved = _fresh(optimiser).step(_scalar(0.0), _scalar(0.1))["w"]
        assert moved > 0

    def test_a_restored_one_continues_bit_for_bit(self, optimiser: ServerOptimiser) -> None:
        whole, first, second = _fresh(optimiser), _fresh(optimiser), _fresh(optimiser)
        expected = _run(whole, range(1, 9), some_weights(0))
        middle = _run(first, range(1, 5), some_weights(0))
        second.restore(first.state(), weights=middle)
        assert _bytes(_run(second, range(5, 9), middle)) == _bytes(expected)
        assert _bytes(second.state()) == _bytes(whole.state())

    def test_the_empty_state_is_the_start(self, optimiser: ServerOptimiser) -> None:
        fresh = _fresh(optimiser)
        assert fresh.state() == {}
        used = _fresh(optimiser)
        start = _run(used, range(1, 3), some_weights(0))
        if not used.state():
            return  # plain: nothing to forget
        used.restore({}, weights=start)
        assert _bytes(_run(used, range(1, 3), some_weights(0))) == _bytes(
            _run(fresh, range(1, 3), some_weights(0))
        )

    def test_a_change_that_does_not_fit_is_a_mistake_and_changes_nothing(
        self, optimiser: ServerOptimiser
    ) -> None:
        fresh = _fresh(optimiser)
        delta = some_weights(1)
        delta["decoder.bias"] = np.zeros(4, np.float32)
        with pytest.raises(ValueError, match="names and shapes"):
            fresh.step(some_weights(0), delta)
        assert fresh.state() == {}


def test_the_state_of_another_model_is_refused() -> None:
    adam = Adaptive(second_moment="adam")
    adam.step(_scalar(0.0), _scalar(1.0))
    with pytest.raises(CheckpointError, match="not that of yogi for this model"):
        Adaptive(second_moment="yogi").restore(adam.state(), weights=some_weights(0))


def test_a_plain_optimiser_refuses_a_state() -> None:
    with pytest.raises(CheckpointError, match="a plain server has no state"):
        Plain().restore({"mean/w": np.zeros(1, np.float32)}, weights=_scalar(0.0))


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_the_learning_rate_is_positive_and_finite(rate: float) -> None:
    with pytest.raises(StrategyError, match=f"learning_rate is {rate}"):
        Plain(learning_rate=rate)
    with pytest.raises(StrategyError, match=f"learning_rate is {rate}"):
        Adaptive(second_moment="adam", learning_rate=rate)
