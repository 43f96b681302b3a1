"""The Rényi filter against an independent implementation and a greedy adversary; the schedule and its order."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy import filters
from privacy.accounting import PldAccountant, RdpAccountant, Release, epsilons
from privacy.errors import PlanError
from privacy.filters import MAX_ORDER, MIN_ORDER, FixedPlan, RenyiFilter, choose_order, renyi_divergence

DELTA = 1e-5


def release(
    steps: int = 10,
    q: float = 0.05,
    noise: float = 1.0,
    sampler: str = "poisson",
    neighbouring: str = "add_remove",
) -> Release:
    return Release(
        sampling_probability=q,
        noise_multiplier=noise,
        steps=steps,
        sampler=sampler,  # type: ignore[arg-type]
        neighbouring=neighbouring,  # type: ignore[arg-type]
    )


def one_step(q: float, noise: float, order: int) -> float:
    """Return the divergence of one sampled Gaussian release with the standard library alone."""
    if q == 1:
        return order / (2 * noise**2)
    logs = [
        math.log(math.comb(order, k))
        + (order - k) * math.log1p(-q)
        + k * math.log(q)
        + (k * k - k) / (2 * noise**2)
        for k in range(order + 1)
    ]
    most = max(logs)
    return (most + math.log(math.fsum(math.exp(log - most) for log in logs))) / (order - 1)


def independent(one: Release, order: int) -> float:
    """Return what `renyi_divergence` should, written anew."""
    q, noise, steps = one.sampling_probability, one.noise_multiplier, one.steps
    if one.sampler == "shuffled":
        q, steps = 1.0, -(-steps // round(1 / q))
    elif one.sampler == "unamplified":
        q = 1.0
    if one.neighbouring == "add_remove":
        return steps * one_step(q, noise, order)
    if q == 1:
        return steps * one_step(1.0, noise / 2, order)
    first, second = one_step(q, noise, 2 * order), one_step(q, noise, 2 * order - 1)
    return steps * ((order - 0.5) / (order - 1) * first + second)


# --- divergence -------------------------------------------------------------------------------------------


def test_the_divergence_of_a_gaussian_release_by_hand():
    # a T / (2 sigma^2) = 4 * 10 / (2 * 2^2) = 5; replacing one unit at sigma / 2 costs four times that.
    assert renyi_divergence(release(10, 1.0, 2.0), 4) == pytest.approx(5.0, rel=1e-12)
    replaced = release(10, 1.0, 2.0, neighbouring="replace_one")
    assert renyi_divergence(replaced, 4) == pytest.approx(20.0, rel=1e-12)


def test_no_steps_cost_nothing_even_where_one_is_beyond_computing():
    assert renyi_divergence(release(1, 1.0, 1e-160), 2) == math.inf
    assert renyi_divergence(release(0, 1.0, 1e-160), 2) == 0.0
    assert renyi_divergence(release(0), 2) == 0.0


def test_the_divergence_at_order_two_by_hand():
    # (1-q)^2 + 2 q (1-q) + q^2 e^(1/sigma^2), q = 1/2, sigma = 1: 1/4 + 1/2 + e/4 = 1.42957; log = 0.35738.
    assert renyi_divergence(release(1, 0.5, 1.0), 2) == pytest.approx(0.357374, abs=1e-6)


@pytest.mark.parametrize("neighbouring", ["add_remove", "replace_one"])
@pytest.mark.parametrize("sampler", ["poisson", "shuffled", "unamplified"])
@pytest.mark.parametrize("order", [2, 3, 17, 100, 512])
@pytest.mark.parametrize(("q", "noise"), [(0.04, 1.5), (0.001, 0.7), (0.5, 5.0), (1.0, 3.0)])
def test_the_divergence_is_that_of_the_standard_library(
    q: float, noise: float, order: int, sampler: str, neighbouring: str
):
    one = release(50, q, noise, sampler, neighbouring)
    expected = independent(one, order)
    assert renyi_divergence(one, order) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    wrong = independent(dataclasses.replace(one, noise_multiplier=noise * 1.001), order)
    assert renyi_divergence(one, order) != pytest.approx(wrong, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("order", [1023, 1024])
def test_the_highest_orders_are_computed_or_infinite(order: int):
    one = release(1, 0.01, 20.0)
    assert renyi_divergence(one, order) == pytest.approx(independent(one, order), rel=1e-9)
    # Opacus 1.6 overflows at 2 * order: a bound all the same, and never a NaN that compares as small.
    replaced = dataclasses.replace(one, neighbouring="replace_one")
    assert renyi_divergence(replaced, order) == math.inf
    assert not RenyiFilter(epsilon=1e6, delta=DELTA, order=order).allows([replaced])


def test_the_weak_triangle_bounds_the_exact_divergence_of_replacing():
    # The divergence of the pair (1-q) N(0) + q N(1) and (1-q) N(0) + q N(-1), by numeric integration.
    q, noise, order, width = 0.2, 1.3, 4, 1e-3

    def density(x: float, mean: float) -> float:
        return math.exp(-((x - mean) ** 2) / (2 * noise**2)) / math.sqrt(2 * math.pi * noise**2)

    total = 0.0
    for index in range(-20_000, 20_000):
        x = index * width
        plus, minus = ((1 - q) * density(x, 0) + q * density(x, mean) for mean in (1, -1))
        total += plus**order * minus ** (1 - order) * width
    exact = math.log(total) / (order - 1)
    bound = renyi_divergence(release(1, q, noise, neighbouring="replace_one"), order)
    assert renyi_divergence(release(1, q, noise), order) < exact < bound


@pytest.mark.parametrize("order", [1, 0, -2, 1025, 2.0, True, None])
def test_an_order_that_is_no_integer_in_range_is_refused(order: object):
    with pytest.raises(PlanError, match="order must be an integer from 2 to 1024, got"):
        renyi_divergence(release(), order)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="order must be an integer from 2 to 1024, got"):
        RenyiFilter(epsilon=1.0, delta=DELTA, order=order)  # type: ignore[arg-type]


# --- budget -----------------------------------------------------------------------------------------------


def test_the_budget_by_hand():
    # 8 + (ln 1e-5 + ln 4) / 3 - ln(3/4) = 8 + (-11.512925 + 1.386294) / 3 + 0.287682 = 4.912138
    assert RenyiFilter(epsilon=8.0, delta=1e-5, order=4).budget == pytest.approx(4.912138, abs=1e-6)


def test_a_budget_that_is_not_positive_allows_nothing():
    # 1 + (ln 1e-5 + ln 2) / 1 - ln(1/2) = 1 - 11.512925 + 0.693147 + 0.693147 = -9.126631
    narrow = RenyiFilter(epsilon=1.0, delta=1e-5, order=2)
    assert narrow.budget == pytest.approx(-9.126631, abs=1e-6)
    assert not narrow.allows([])
    assert narrow.max_steps([], release(10, noise=1e5)) == 0


def test_a_budget_of_exactly_nothing_allows_nothing():
    nothing = RenyiFilter(epsilon=filters._conversion(8, DELTA), delta=DELTA, order=8)
    assert nothing.budget == 0.0 == nothing.spent([])
    assert not nothing.allows([])


@pytest.mark.parametrize(
    ("epsilon", "delta", "named"),
    [(0.0, 1e-5, "epsilon"), (math.inf, 1e-5, "epsilon"), (1.0, 0.0, "delta"), (1.0, 1.0, "delta")],
)
def test_a_cap_out_of_range_is_refused(epsilon: float, delta: float, named: str):
    for make in (
        lambda: RenyiFilter(epsilon=epsilon, delta=delta, order=8),
        lambda: FixedPlan(schedule=(), epsilon=epsilon, delta=delta),
        lambda: choose_order(epsilon=epsilon, delta=delta),
    ):
        with pytest.raises(PlanError, match=f"{named} must be"):
            make()


def test_spent_is_the_sum_whatever_the_order_and_the_split():
    filter_ = RenyiFilter(epsilon=8.0, delta=DELTA, order=5)
    a, b = release(60), release(40, 0.2, 3.0)
    expected = independent(a, 5) + independent(b, 5)
    assert filter_.spent([a, b]) == pytest.approx(expected, rel=1e-9)
    assert filter_.spent([b, *[release(10)] * 6]) == filter_.spent([a, b])
    assert filter_.spent([]) == 0.0 == filter_.spent([release(0)])


def test_the_edge_has_a_margin_for_rounding():
    # Order 4, sigma 1, q 1: 2 nats a step. A budget of exactly 3 steps does not rest on the last digit.
    conversion = -(math.log(1e-5) + math.log(4)) / 3 + math.log(3 / 4)
    for nats, steps in [(6.0, 2), (6.0 * (1 + 1e-6), 3), (6.0 * (1 - 1e-6), 2)]:
        filter_ = RenyiFilter(epsilon=nats + conversion, delta=1e-5, order=4)
        assert filter_.max_steps([], release(10, 1.0, 1.0)) == steps


@pytest.mark.parametrize("sampler", ["poisson", "shuffled", "unamplified"])
@pytest.mark.parametrize("neighbouring", ["add_remove", "replace_one"])
def test_max_steps_is_the_exact_edge(sampler: str, neighbouring: str):
    past = [release(7, 0.1, 4.0, neighbouring=neighbouring)]
    wanted = release(100_000, 0.04, 3.0, sampler, neighbouring)
    filter_ = RenyiFilter(epsilon=8.0, delta=DELTA, order=4)
    steps = filter_.max_steps(past, wanted)
    assert 0 < steps < wanted.steps
    assert filter_.allows([*past, dataclasses.replace(wanted, steps=steps)])
    assert not filter_.allows([*past, dataclasses.replace(wanted, steps=steps + 1)])
    if sampler == "shuffled":
        assert steps % 25 == 0  # whole epochs of 25 batches


def test_max_steps_is_at_most_what_was_asked_and_zero_after_too_much():
    filter_ = RenyiFilter(epsilon=8.0, delta=DELTA, order=4)
    assert filter_.max_steps([], release(3)) == 3
    assert filter_.max_steps([], release(0)) == 0
    assert filter_.max_steps([release(100, 1.0, 1.0)], release(3)) == 0


def test_a_history_of_two_relations_is_refused():
    filter_ = RenyiFilter(epsilon=8.0, delta=DELTA, order=4)
    mixed = [release(), release(neighbouring="replace_one")]
    for ask in (filter_.spent, filter_.allows, filter_.epsilon_spent):
        with pytest.raises(PlanError, match="mixes add_remove and replace_one"):
            ask(mixed)
    with pytest.raises(PlanError, match="mixes"):
        filter_.max_steps(mixed[:1], mixed[1])


# --- adaptive adversaries ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_a_greedy_adversary_never_gets_more_than_the_budget(seed: int):
    # It chooses every parameter from what it has seen (here: from coins) and takes all that it is given.
    rng = random.Random(seed)
    filter_ = RenyiFilter(epsilon=rng.choice([1.0, 3.0, 8.0]), delta=DELTA, order=rng.choice([12, 30]))
    history: list[Release] = []
    refused = 0
    while refused < 20:
        wanted = release(
            rng.randint(1, 5000),
            rng.choice([0.004, 0.04, 0.5, 1.0]),
            rng.choice([0.8, 2.0, 10.0, 100.0]),
            rng.choice(["poisson", "shuffled", "unamplified"]),
        )
        steps = filter_.max_steps(history, wanted)
        refused += steps < wanted.steps
        if steps:
            history.append(dataclasses.replace(wanted, steps=steps))
    independent_sum = math.fsum(independent(one, filter_.order) for one in history)
    assert independent_sum <= filter_.budget * (1 + 1e-9)
    assert independent_sum > 0.9 * filter_.budget
    assert filter_.epsilon_spent(history) <= filter_.epsilon


def test_different_jobs_have_different_best_orders():
    # Why the order is part of the cap: had each path of an adaptive history its own, no order would hold for all.
    small, large = release(1, 0.05, 1.0), release(1, 1.0, 30.0)
    best = {}
    for one in (small, large):
        asked = dataclasses.replace(one, steps=100_000)
        steps = {
            order: RenyiFilter(epsilon=4.0, delta=DELTA, order=order).max_steps([], asked)
            for order in range(2, 64)
        }
        best[one] = choose_order(epsilon=4.0, delta=DELTA, release=one)
        assert steps[best[one]] == max(steps.values())
    assert best[small] != best[large]


# --- epsilon ----------------------------------------------------------------------------------------------


def test_epsilon_spent_by_hand_and_nothing_for_nothing():
    # 10 steps of q 1, sigma 2 at order 4: 5 nats; 5 + ln(3/4) + (11.512925 - 1.386294) / 3 = 8.087862
    filter_ = RenyiFilter(epsilon=9.0, delta=1e-5, order=4)
    assert filter_.epsilon_spent([release(10, 1.0, 2.0)]) == pytest.approx(8.087862, abs=1e-6)
    assert filter_.epsilon_spent([]) == 0.0 == filter_.epsilon_spent([release(0)])
    # At a large delta the conversion is negative: never below zero.
    assert RenyiFilter(epsilon=1.0, delta=0.9, order=2).epsilon_spent([release(1, noise=1e4)]) == 0.0


@pytest.mark.parametrize("neighbouring", ["add_remove", "replace_one"])
@pytest.mark.parametrize(
    "jobs",
    [[(1000, 0.032, 1.0)], [(5, 1.0, 3.0)], [(300, 0.032, 1.0), (400, 0.05, 2.0), (100, 0.01, 0.8)]],
)
def test_epsilon_spent_is_never_below_the_accountants(
    jobs: list[tuple[int, float, float]], neighbouring: str
):
    history = [release(*job, neighbouring=neighbouring) for job in jobs]
    pair = epsilons(history, DELTA, interval=1e-3)
    certified = [
        RenyiFilter(epsilon=8.0, delta=DELTA, order=order).epsilon_spent(history) for order in range(2, 65)
    ]
    assert min(certified) >= pair.pld
    # The grid of RDP has fractional orders too, so at the best integer one the filter is close to it.
    assert pair.rdp - 1e-9 <= min(certified) <= pair.rdp * 1.35


def test_epsilon_spent_is_rdp_at_that_order():
    from opacus.accountants.analysis import rdp

    (curve,) = rdp.compute_rdp(q=0.04, noise_multiplier=1.5, steps=2250, orders=[5])
    # Two useless orders around it, or Opacus warns that the best one is at the end.
    theirs, order = rdp.get_privacy_spent(orders=[4, 5, 6], rdp=[1e9, curve, 1e9], delta=DELTA)
    filter_ = RenyiFilter(epsilon=8.0, delta=DELTA, order=5)
    assert order == 5
    assert filter_.epsilon_spent([release(2250, 0.04, 1.5)]) == pytest.approx(theirs, rel=1e-9)


def test_what_is_allowed_is_what_epsilon_says():
    filter_ = RenyiFilter(epsilon=4.0, delta=DELTA, order=6)
    for steps in range(1, 400, 7):
        history = [release(steps)]
        assert filter_.allows(history) is (filter_.epsilon_spent(history) <= 4.0)


@given(
    q=st.sampled_from([0.001, 0.03, 0.4, 1.0]),
    noise=st.floats(0.5, 50.0),
    order=st.integers(2, 200),
    steps=st.integers(1, 1000),
    neighbouring=st.sampled_from(["add_remove", "replace_one"]),
)
def test_divergence_never_falls_with_steps_order_or_relation(
    q: float, noise: float, order: int, steps: int, neighbouring: str
):
    one = release(steps, q, noise, neighbouring=neighbouring)
    here = renyi_divergence(one, order)
    slack = 1e-9 * here + 1e-12 * steps
    assert renyi_divergence(dataclasses.replace(one, steps=steps + 1), order) >= here
    assert renyi_divergence(one, order + 1) >= here - slack
    assert renyi_divergence(dataclasses.replace(one, noise_multiplier=2 * noise), order) <= here + slack
    assert renyi_divergence(release(steps, q, noise), order) <= here


# --- the order --------------------------------------------------------------------------------------------


def test_the_order_without_a_release_by_hand():
    # 1 + 2 * 11.512925 / 8 = 3.878 -> 4; / 1 = 24.03 -> 24; clipped at both ends.
    assert choose_order(epsilon=8.0, delta=1e-5) == 4
    assert choose_order(epsilon=1.0, delta=1e-5) == 24
    assert choose_order(epsilon=1e6, delta=1e-5) == MIN_ORDER
    assert choose_order(epsilon=1e-3, delta=1e-5) == MAX_ORDER


@pytest.mark.parametrize("neighbouring", ["add_remove", "replace_one"])
@pytest.mark.parametrize("epsilon", [0.5, 2.0, 8.0])
@pytest.mark.parametrize(("q", "noise"), [(0.02, 1.0), (0.1, 4.0), (1.0, 20.0)])
def test_the_order_is_the_best_of_all(epsilon: float, q: float, noise: float, neighbouring: str):
    one = release(1, q, noise, neighbouring=neighbouring)

    def ratio(order: int) -> float:
        return RenyiFilter(epsilon=epsilon, delta=DELTA, order=order).budget / independent(one, order)

    chosen = choose_order(epsilon=epsilon, delta=DELTA, release=one)
    assert ratio(chosen) == pytest.approx(max(ratio(order) for order in range(2, 130)), rel=1e-9)
    assert choose_order(epsilon=epsilon, delta=DELTA, release=dataclasses.replace(one, steps=0)) == chosen


def test_the_order_where_nothing_can_be_allowed_is_still_an_order():
    assert choose_order(epsilon=1e-9, delta=1e-300, release=release()) == MAX_ORDER


def test_a_release_whose_cost_is_below_float64_takes_the_first_order_that_pays():
    # The conversion is 10.13 at order 2 and 4.80 at order 3.
    free = release(1, 0.01, 1e9)
    assert renyi_divergence(free, 3) == 0.0
    assert choose_order(epsilon=8.0, delta=DELTA, release=free) == 3


def test_what_a_filter_gives_up_for_adaptivity():
    # PRIVACY.md 3.2, n = 500, batch 32, sigma 1, epsilon 8: PLD 333, best-order RDP 272, a filter of a fractional
    # order near 3.9 249 steps. The rule of thumb gives order 4; with the job known order 3 is better.
    one = release(2000, 0.064, 1.0)
    steps = {}
    for known in (None, one):
        order = choose_order(epsilon=8.0, delta=DELTA, release=known)
        steps[order] = RenyiFilter(epsilon=8.0, delta=DELTA, order=order).max_steps([], one)
    assert steps == {4: 243, 3: 261}
    allowed = part(one, 261)
    assert PldAccountant().epsilon([allowed], DELTA) < RdpAccountant().epsilon([allowed], DELTA) < 8.0


# --- the fixed schedule -----------------------------------------------------------------------------------

A, B = release(10, 0.05, 2.0), release(5, 0.1, 3.0)


def plan(*schedule: Release, epsilon: float = 8.0) -> FixedPlan:
    return FixedPlan(schedule=schedule, epsilon=epsilon, delta=DELTA)


def part(one: Release, steps: int) -> Release:
    return dataclasses.replace(one, steps=steps)


def test_a_schedule_within_the_cap_has_no_problems_and_the_edge_is_exact():
    spent = PldAccountant().epsilon([A, B], DELTA)
    assert plan(A, B, epsilon=spent).problems() == []
    too_much = plan(A, B, epsilon=math.nextafter(spent, 0))
    assert len(too_much.problems()) == 1
    assert too_much.problems()[0].startswith(
        f"the schedule spends epsilon {spent:.4f} at delta 1e-05, the cap"
    )
    assert not too_much.accepts([], A)


def test_a_schedule_is_charged_by_the_tighter_accountant():
    job = release(1000, 0.032, 1.0)  # PLD 6.59, RDP 7.24, a filter 7.31
    assert plan(job, epsilon=6.6).problems() == []
    assert plan(job, epsilon=6.5).problems() != []


def test_a_schedule_of_two_relations_has_problems():
    mixed = plan(A, dataclasses.replace(B, neighbouring="replace_one"))
    assert "mixes add_remove and replace_one" in mixed.problems()[0]
    assert not mixed.accepts([], A)


@pytest.mark.parametrize("schedule", [[A], (A, 3), None])
def test_something_that_is_no_schedule_is_refused(schedule: object):
    with pytest.raises(PlanError, match="schedule must be a tuple of releases"):
        FixedPlan(schedule=schedule, epsilon=1.0, delta=DELTA)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "done",
    [
        [A],
        [A, B],
        [part(A, 3), part(A, 7), B],
        [part(A, 3), B],  # the rest of A was stopped
        [B],  # A was skipped
        [part(A, 10), part(B, 2), part(A, 4)],  # the schedule ends with A again
        [part(A, 20)],  # both A's, as a claim joins them
        [part(B, 5), part(A, 10)],
        [part(A, 0), A],
    ],
)
def test_a_history_in_the_order_of_the_schedule_is_accepted(done: list[Release]):
    assert plan(A, B, A).accepts(done[:-1], done[-1])


@pytest.mark.parametrize(
    "done",
    [
        [part(A, 11), B],  # the second A is behind B, and B comes no more
        [part(A, 21)],
        [part(A, 10), part(A, 10), part(A, 1)],
        [B, A, B],  # back
        [A, B, A, part(A, 1)],
        [part(B, 6)],
        [dataclasses.replace(A, noise_multiplier=2.0000001)],
        [dataclasses.replace(A, sampling_probability=0.04)],
        [dataclasses.replace(A, sampler="unamplified")],
        [dataclasses.replace(A, neighbouring="replace_one")],
    ],
)
def test_anything_else_is_not_accepted(done: list[Release]):
    assert not plan(A, B, A).accepts(done[:-1], done[-1])


def test_parts_of_a_shuffled_item_cannot_cost_more_than_the_item():
    # 100 steps of 25 batches: 4 epochs. Four parts of one step begin four epochs; a fifth would be one too many.
    item = release(100, 0.04, 5.0, "shuffled")
    one = part(item, 1)
    assert plan(item).accepts([one] * 3, one)
    assert not plan(item).accepts([one] * 4, one)


def test_a_parts_cost_is_never_above_the_schedules():
    whole = PldAccountant(interval=1e-3).epsilon([A, B, A], DELTA)
    rng = random.Random(1)
    for _ in range(30):
        history: list[Release] = []
        for _ in range(6):
            tried = part(rng.choice([A, B]), rng.randint(1, 12))
            if plan(A, B, A).accepts(history, tried):
                history.append(tried)
        assert PldAccountant(interval=1e-3).epsilon(history, DELTA) <= whole + 1e-9


@given(st.lists(st.tuples(st.sampled_from([A, B]), st.integers(0, 12)), max_size=7))
def test_accepting_is_being_a_subsequence_of_the_steps(events: list[tuple[Release, int]]):
    def steps_of(releases: list[Release]) -> list[float]:
        return [one.noise_multiplier for one in releases for _ in range(one.steps)]

    history = [part(one, steps) for one, steps in events] or [part(A, 0)]
    scheduled = iter(steps_of([A, B, A]))
    expected = all(step in scheduled for step in steps_of(history))
    assert plan(A, B, A).accepts(history[:-1], history[-1]) is expected
