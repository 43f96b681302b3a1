"""What every aggregation rule promises, whichever it is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from server.aggregate import Aggregator, WeightedMean, Weights
from server.errors import AggregationError
from server.robust import CoordinateMedian, Krum, Spooled, TrimmedMean

Factory = Callable[[Path], Aggregator]
RULES: dict[str, Factory] = {
    "weighted-mean": lambda scratch: WeightedMean(),
    "median": lambda scratch: Spooled(rule=CoordinateMedian(), scratch=scratch),
    "trimmed-mean": lambda scratch: Spooled(rule=TrimmedMean(trim=1), scratch=scratch),
    "krum": lambda scratch: Spooled(rule=Krum(num_byzantine=1), scratch=scratch),
    "multi-krum": lambda scratch: Spooled(rule=Krum(num_byzantine=1, num_selected=2), scratch=scratch),
}
SHAPES = {"b": (), "a": (3, 5), "c": (7,), "empty": (0, 2)}


@pytest.fixture(params=list(RULES))
def rule(request: pytest.FixtureRequest, tmp_path: Path) -> Aggregator:
    return RULES[request.param](tmp_path)


def _update(seed: int) -> Weights:
    generator = np.random.default_rng(seed)
    return {name: np.asarray(generator.standard_normal(shape), np.float32) for name, shape in SHAPES.items()}


UPDATES = {f"site-{index}": _update(index) for index in range(6)}


def _aggregate(rule: Aggregator, updates: list[tuple[str, Weights]]) -> Weights:
    rule.begin(_update(99))
    for site, delta in updates:
        rule.add(site, 1.0, delta)
    return rule.finish()


def _bytes(weights: Weights) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in weights.items()}


def test_the_result_has_the_names_shapes_and_dtype_of_the_base(rule: Aggregator) -> None:
    result = _aggregate(rule, list(UPDATES.items()))
    assert {name: array.shape for name, array in result.items()} == SHAPES
    assert {array.dtype for array in result.values()} == {np.dtype(np.float32)}


def test_the_order_of_arrival_changes_no_bit(rule: Aggregator) -> None:
    results = {
        tuple(sorted(_bytes(_aggregate(rule, list(order))).items()))
        for order in itertools.islice(itertools.permutations(UPDATES.items()), 0, 720, 37)
    }
    assert len(results) == 1


def test_equal_updates_come_back_unchanged(rule: Aggregator) -> None:
    # 2**-20 steps are on the grid of the mean, and exact in every sum.
    same = {
        name: np.asarray(np.round(array * 2**20) / 2**20, np.float32) for name, array in _update(3).items()
    }
    result = _aggregate(rule, [(site, same) for site in UPDATES])
    for name in SHAPES:
        np.testing.assert_array_equal(result[name], same[name])


def test_each_coordinate_lies_between_the_smallest_and_the_largest(rule: Aggregator) -> None:
    result = _aggregate(rule, list(UPDATES.items()))
    for name in SHAPES:
        stack = np.stack([update[name] for update in UPDATES.values()])
        assert (result[name] >= stack.min(axis=0) - 1e-6).all()
        assert (result[name] <= stack.max(axis=0) + 1e-6).all()


def test_the_arguments_are_left_alone(rule: Aggregator) -> None:
    before = {site: _bytes(update) for site, update in UPDATES.items()}
    result = _aggregate(rule, list(UPDATES.items()))
    for name in result:
        result[name] += 1
    assert {site: _bytes(update) for site, update in UPDATES.items()} == before


def test_a_second_round_knows_nothing_of_the_first(rule: Aggregator) -> None:
    first = _aggregate(rule, list(UPDATES.items()))
    rule.begin(_update(99))
    rule.add("left over", 1.0, _update(50))  # a round that is never finished
    assert _bytes(_aggregate(rule, list(UPDATES.items()))) == _bytes(first)


def test_memory_order_does_not_matter(rule: Aggregator) -> None:
    turned = {
        site: {n: np.array(a, order="F") for n, a in update.items()} for site, update in UPDATES.items()
    }
    assert _bytes(_aggregate(rule, list(turned.items()))) == _bytes(_aggregate(rule, list(UPDATES.items())))


def test_too_few_updates_are_refused_by_name(rule: Aggregator) -> None:
    rule.begin(_update(99))
    for site in list(UPDATES)[: rule.minimum_updates - 1]:
        rule.add(site, 1.0, UPDATES[site])
    with pytest.raises(
        AggregationError, match=f"{rule.minimum_updates - 1} updates, needs {rule.minimum_updates}"
    ):
        rule.finish()


def test_just_enough_updates_are_enough(rule: Aggregator) -> None:
    _aggregate(rule, list(UPDATES.items())[: rule.minimum_updates])


def test_a_site_counts_once(rule: Aggregator) -> None:
    rule.begin(_update(99))
    rule.add("site-1", 1.0, _update(1))
    with pytest.raises(ValueError, match="site-1: a second update"):
        rule.add("site-1", 1.0, _update(2))


@pytest.mark.parametrize("weight", [0.0, -1.0, 1.5, float("nan"), float("inf")])
def test_a_weight_is_in_0_to_1(rule: Aggregator, weight: float) -> None:
    rule.begin(_update(99))
    with pytest.raises(ValueError, match="is not in"):
        rule.add("site-1", weight, _update(1))


@pytest.mark.parametrize(
    "change",
    [
        lambda update: update.pop("a"),
        lambda update: update.update(d=np.zeros(1, np.float32)),
        lambda update: update.update(c=np.zeros(8, np.float32)),
        lambda update: update.update(c=np.zeros(7, np.float64)),
    ],
    ids=["missing", "unexpected", "shape", "dtype"],
)
def test_an_update_that_does_not_fit_the_base_is_a_mistake(
    rule: Aggregator, change: Callable[[Weights], object]
) -> None:
    update = _update(1)
    change(update)
    rule.begin(_update(99))
    with pytest.raises(ValueError, match="site-1: names, shapes or dtypes"):
        rule.add("site-1", 1.0, update)


def test_a_refusal_makes_no_rule_need_more_and_is_forgotten_after_the_round(rule: Aggregator) -> None:
    rule.begin(_update(99))
    rule.refuse("site-9")
    for site in list(UPDATES)[: rule.minimum_updates]:
        rule.add(site, 1.0, UPDATES[site])
    rule.finish()
    rule.begin(_update(99))
    for site in list(UPDATES)[: rule.minimum_updates - 1]:
        rule.add(site, 1.0, UPDATES[site])
    with pytest.raises(AggregationError, match="needs"):
        rule.finish()


@pytest.mark.parametrize(("num_refused", "needed"), [(0, 7), (1, 5), (2, 3), (3, 3)])
def test_krum_need_not_withstand_again_what_was_refused(
    num_refused: int, needed: int, tmp_path: Path
) -> None:
    # f = 2: 2 f + 3 = 7; each refusal by name leaves one hostile update fewer among those admitted, never less than 0.
    krum = Spooled(rule=Krum(num_byzantine=2), scratch=tmp_path)
    for count in (needed, needed - 1):
        krum.begin(_update(99))
        for index in range(num_refused):
            krum.refuse(f"hostile-{index}")
        for index in range(count):
            krum.add(f"site-{index}", 1.0, _update(index))
        if count == needed:
            krum.finish()
        else:
            with pytest.raises(AggregationError, match=f"{count} updates, needs {needed}"):
                krum.finish()


def test_nothing_works_before_begin_or_after_finish(rule: Aggregator) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="call begin"):
            rule.add("site-1", 1.0, _update(1))
        with pytest.raises(ValueError, match="call begin"):
            rule.finish()
        _aggregate(rule, list(UPDATES.items()))
