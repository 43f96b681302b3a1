"""Aggregation against independent references, over generated updates."""

from __future__ import annotations

import math
import random
import tempfile
from fractions import Fraction
from pathlib import Path

import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats

from server.aggregate import Aggregator, WeightedMean
from server.errors import AggregationError
from server.robust import CoordinateMedian, Krum, Rule, Spooled, TrimmedMean

COORDINATES = 6
EXAMPLES = settings(max_examples=60, deadline=None, derandomize=True, print_blob=True)
values = st.floats(-1000, 1000, width=32, allow_subnormal=True)
weights = st.floats(2**-10, 1.0)


def stacks(low: int, high: int) -> st.SearchStrategy[np.ndarray]:
    """Return [n, COORDINATES] float32 matrices: one row an update."""
    shapes = st.tuples(st.integers(low, high), st.just(COORDINATES))
    return shapes.flatmap(lambda shape: npst.arrays(np.float32, shape, elements=values))


def aggregate(rule: Aggregator, stack: np.ndarray, shares: list[float], order: list[int]) -> np.ndarray:
    """Return the aggregate of rows that arrive in the given order."""
    rule.begin({"w": np.zeros(stack.shape[1], np.float32)})
    for index in order:
        rule.add(f"site-{index:03d}", shares[index], {"w": stack[index]})
    return rule.finish()["w"]


def robust(rule: Rule, stack: np.ndarray, order: list[int] | None = None) -> np.ndarray:
    """Return a robust rule's aggregate."""
    with tempfile.TemporaryDirectory() as scratch:
        return aggregate(
            Spooled(rule=rule, scratch=Path(scratch)),
            stack,
            [1.0] * len(stack),
            order or list(range(len(stack))),
        )


@EXAMPLES
@given(stack=stacks(1, 9), data=st.data())
def test_weighted_mean_is_within_its_stated_error_of_the_exact_one(
    stack: np.ndarray, data: st.DataObject
) -> None:
    shares = data.draw(st.lists(weights, min_size=len(stack), max_size=len(stack)))
    rule = WeightedMean(max_abs=1000.0)
    result = aggregate(rule, stack, shares, list(range(len(stack))))
    total = sum(Fraction(share) for share in shares)
    for column in range(COORDINATES):
        terms = (
            Fraction(share) * Fraction(float(x)) for share, x in zip(shares, stack[:, column], strict=True)
        )
        exact = sum(terms, Fraction(0)) / total
        # The grid's bound as documented; the products and the division in float64; one rounding to float32.
        bound = len(stack) * rule.unit / (2 * float(total)) + 1e-12 * abs(float(exact)) + 1e-15
        assert abs(float(result[column]) - float(exact)) <= bound + abs(float(exact)) * 2**-24 + 2**-149


@EXAMPLES
@given(stack=stacks(1, 9), data=st.data())
def test_weighted_mean_does_not_depend_on_the_order(stack: np.ndarray, data: st.DataObject) -> None:
    shares = data.draw(st.lists(weights, min_size=len(stack), max_size=len(stack)))
    order = data.draw(st.permutations(range(len(stack))))
    one = aggregate(WeightedMean(max_abs=1000.0), stack, shares, list(range(len(stack))))
    other = aggregate(WeightedMean(max_abs=1000.0), stack, shares, list(order))
    assert one.tobytes() == other.tobytes()


def test_a_plain_running_sum_does_depend_on_the_order() -> None:
    # What the fixed grid is for: the same test must fail for the obvious implementation.
    stack = np.random.default_rng(0).standard_normal((9, 200)).astype(np.float32)
    sums = set()
    for seed in range(20):
        order = random.Random(seed).sample(range(9), 9)
        total = np.zeros(200, np.float32)
        for index in order:
            total += stack[index]
        sums.add(total.tobytes())
    assert len(sums) > 1


@EXAMPLES
@given(stack=stacks(2, 7), scale=st.sampled_from([2.0, 0.5, 0.25, -1.0, 3.0]))
def test_weighted_mean_is_linear(stack: np.ndarray, scale: float) -> None:
    shares, order = [1.0] * len(stack), list(range(len(stack)))
    rule = WeightedMean(max_abs=4000.0)
    scaled = aggregate(rule, (stack * np.float32(scale)).astype(np.float32), shares, order)
    np.testing.assert_allclose(scaled, scale * aggregate(rule, stack, shares, order), rtol=1e-6, atol=1e-9)
    summed = aggregate(rule, stack + stack[::-1], shares, order)
    np.testing.assert_allclose(summed, 2 * aggregate(rule, stack, shares, order), rtol=1e-6, atol=1e-3)


@EXAMPLES
@given(stack=stacks(3, 9), data=st.data())
def test_median_is_numpys(stack: np.ndarray, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(stack))))
    expected = np.median(stack.astype(np.float64), axis=0).astype(np.float32)
    np.testing.assert_array_equal(robust(CoordinateMedian(), stack, list(order)), expected)


@EXAMPLES
@given(stack=stacks(5, 9), trim=st.integers(1, 2))
def test_trimmed_mean_is_scipys(stack: np.ndarray, trim: int) -> None:
    expected = stats.trim_mean(stack.astype(np.float64), (trim + 0.5) / len(stack), axis=0)
    np.testing.assert_allclose(robust(TrimmedMean(trim=trim), stack), expected, rtol=1e-6, atol=1e-12)


def naive_krum(stack: np.ndarray, f: int, m: int) -> np.ndarray:
    """Blanchard et al. 2017, word for word, with exact arithmetic."""
    rows = [[Fraction(float(x)) for x in row] for row in stack]
    scores = []
    for i, row in enumerate(rows):
        distances = sorted(
            sum((a - b) ** 2 for a, b in zip(row, other, strict=True))
            for j, other in enumerate(rows)
            if j != i
        )
        scores.append((sum(distances[: len(rows) - f - 2]), i))
    chosen = [i for _, i in sorted(scores)[:m]]
    return np.mean(stack[sorted(chosen)].astype(np.float64), axis=0)


@EXAMPLES
@given(seed=st.integers(0, 10**6), n=st.integers(5, 9), m=st.integers(1, 2))
def test_krum_is_the_papers(seed: int, n: int, m: int) -> None:
    stack = np.random.default_rng(seed).standard_normal((n, COORDINATES)).astype(np.float32)
    result = robust(Krum(num_byzantine=1, num_selected=m), stack)
    np.testing.assert_allclose(result, naive_krum(stack, 1, m), rtol=1e-6)


@EXAMPLES
@given(stack=stacks(6, 6), attack=st.floats(-1e6, 1e6, width=32), data=st.data())
@pytest.mark.parametrize(
    "rule", [CoordinateMedian(), TrimmedMean(trim=1), Krum(num_byzantine=1)], ids=lambda r: r.name
)
def test_one_hostile_update_moves_no_coordinate_beyond_the_honest_ones(
    rule: Rule, stack: np.ndarray, attack: float, data: st.DataObject
) -> None:
    hostile = data.draw(st.integers(0, 5))
    honest = np.delete(stack, hostile, axis=0)
    attacked = stack.copy()
    attacked[hostile] = attack
    result = robust(rule, attacked)
    if isinstance(rule, Krum):
        # The winner's three nearest are honest, and its score is at most that of an honest update, 3 D^2 with the
        # honest diameter D: it is within sqrt(3) D of an honest one, so within (1 + sqrt(3)) D of their mean.
        rows = honest.astype(np.float64)
        diameter = max(np.linalg.norm(a - b) for a in rows for b in rows)
        distance = np.linalg.norm(result - rows.mean(axis=0))
        assert distance <= (1 + math.sqrt(3)) * diameter * (1 + 1e-6) + 1e-9
    else:
        assert (result >= honest.min(axis=0)).all()
        assert (result <= honest.max(axis=0)).all()


def test_one_hostile_update_does_move_the_mean() -> None:
    stack = np.zeros((6, COORDINATES), np.float32)
    stack[2] = 600.0
    assert aggregate(WeightedMean(), stack, [1.0] * 6, list(range(6))) == pytest.approx([100.0] * COORDINATES)


@EXAMPLES
@given(max_abs=st.floats(1e-6, 1e9), factor=st.floats(1.0001, 1e6))
def test_weighted_mean_refuses_what_its_grid_cannot_hold(max_abs: float, factor: float) -> None:
    rule = WeightedMean(max_abs=max_abs)
    limit = np.nextafter(np.float32(max_abs), np.float32(0))
    aggregate(rule, np.full((3, 2), limit, np.float32), [1.0] * 3, [0, 1, 2])
    too_much = np.full((1, 2), max_abs * factor * 1.0001, np.float32)
    with pytest.raises(AggregationError, match="site-000: a coordinate of w is beyond"):
        aggregate(rule, too_much, [1.0], [0])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weighted_mean_refuses_what_is_not_a_number_and_stays_void(value: float) -> None:
    rule = WeightedMean()
    rule.begin({"w": np.zeros(3, np.float32)})
    rule.add("honest", 1.0, {"w": np.ones(3, np.float32)})
    with pytest.raises(AggregationError, match="hostile: a coordinate of w"):
        rule.add("hostile", 1.0, {"w": np.array([0, value, 0], np.float32)})
    with pytest.raises(ValueError, match="call begin"):  # half of it may be in the sum
        rule.finish()


def test_the_sum_of_as_many_updates_as_are_allowed_does_not_overflow() -> None:
    rule = WeightedMean(max_abs=1024.0)
    rule.begin({"w": np.zeros(2, np.float32)})
    for index in range(4095):
        rule.add(str(index), 1.0, {"w": np.array([1024.0, -1024.0], np.float32)})
    with pytest.raises(AggregationError, match="more than 4095"):
        rule.add("one more", 1.0, {"w": np.zeros(2, np.float32)})
    assert rule.finish()["w"].tolist() == [1024.0, -1024.0]
