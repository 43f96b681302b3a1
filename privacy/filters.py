"""Whether more may be spent, before it is spent: a filter for adaptive plans, a schedule for fixed ones.

An epsilon of composition needs to know what was decided when.

- *Fixed in advance* (`FixedPlan`): every parameter of every job is written down before the first output. PLD and
  RDP at its best order hold for the whole schedule. They hold for what was really run too, if that is part of
  the schedule in its order, whoever stopped or skipped and for whatever reason: releasing nothing is dominated
  by every release, so stopping early costs at most the figure of the whole schedule. It does not cost less:
  the figure of the shorter history is valid only if the stop was fixed in advance as well.
- *Chosen on the way* (`RenyiFilter`): noise, q or the number of steps of a later job depend on earlier outputs.
  Then each path through the outputs has parameters, a PLD and a best order of its own, and that each of them
  stays below epsilon says nothing of their mixture: the bound may hold on each path at a different order.
  Renyi divergence at *one* order a, fixed before anything is spent, survives that: with P and Q the outputs with
  and without a unit, (P/Q)^a exp(-(a-1) sum of divergences so far) is a supermartingale under Q whatever is
  chosen from the past. If the sum never exceeds the budget on any path, the whole interaction has Renyi
  divergence at most the budget, hence (epsilon, delta).

What it does not do: write anything down (that is the ledger), or choose an order by looking at data or history.

References:
    Feldman & Zrnic 2021, arXiv:2008.11193 (Renyi filter); Lecuyer 2021, arXiv:2103.01379; Rogers et al. 2016,
    arXiv:1605.08294 (why composition theorems do not simply become filters); Balle et al. 2020, arXiv:1905.09982,
    theorem 21 (from Renyi to epsilon and delta); Zhu, Dong, Wang 2022, arXiv:2106.08567 (dominating pairs).
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from privacy.accounting import PldAccountant
from privacy.backends import renyi_of_one_step
from privacy.errors import PlanError
from privacy.fields import integer_problem, number_problem
from privacy.releases import Release, charged_as, group_releases, merge_releases, same_parameters

MIN_ORDER = 2
MAX_ORDER = 1024

_SAFETY = 1e-9  # of the budget: more than rounding can add up to


def renyi_divergence(release: Release, order: int) -> float:
    """Return the Renyi divergence of all steps of a release at one order.

    With q and T what the release is charged as (`releases.charged_as`), for add/remove:

        T / (a - 1) log sum_{k=0}^{a} C(a, k) (1 - q)^(a - k) q^k exp((k^2 - k) / (2 sigma^2))

    and T a / (2 sigma^2) where q = 1. For replace one, with D that of one step:
    T ((a - 1/2) / (a - 1) D(2 a) + D(2 a - 1)), or add/remove at sigma / 2 where q = 1.

    Args:
        release: Its parameters are public.
        order: a, an integer of 2 to 1024, so that the standard library is enough to check the figure.

    Returns:
        Nats, >= 0; infinite where it cannot be computed (`backends.renyi_of_one_step`).

    Guarantees:
        Equal to the sum above computed apart from Opacus (tests/unit/privacy/test_filters.py).

    References:
        Mironov, Talwar, Zhang 2019, arXiv:1908.10530, section 3.3; Mironov 2017, arXiv:1702.07476, prop. 11.
    """
    _check([*integer_problem("order", order, low=MIN_ORDER, high=MAX_ORDER)])
    probability, noise, steps, neighbouring = charged_as(release)
    return steps * renyi_of_one_step(probability, noise, order, neighbouring) if steps else 0.0


@dataclass(frozen=True, kw_only=True)
class RenyiFilter:
    """Says whether a history stays within (epsilon, delta) even if every release was chosen from earlier outputs.

    Attributes:
        epsilon: The cap, > 0 and finite.
        delta: In (0, 1).
        order: Integer of 2 to 1024, fixed before anything is spent (`choose_order`) and never changed: the
            proof is of one order.

    Guarantees:
        Releases that were each allowed before they ran are (epsilon, delta) together
        (tests/unit/privacy/test_filters.py plays an adversary that spends as fast as it can).
    """

    epsilon: float
    delta: float
    order: int

    def __post_init__(self) -> None:
        _check(
            [
                *_cap_problems(self.epsilon, self.delta),
                *integer_problem("order", self.order, low=MIN_ORDER, high=MAX_ORDER),
            ]
        )

    @property
    def budget(self) -> float:
        """Return the Renyi divergence that epsilon and delta pay for [nats].

        epsilon + (log delta + log a) / (a - 1) - log((a - 1) / a); not positive where the order is too small
        for delta: then nothing is ever allowed.
        """
        return self.epsilon - _conversion(self.order, self.delta)

    def spent(self, releases: Sequence[Release]) -> float:
        """Return the divergence of a history at the order of the filter [nats], >= 0.

        Raises:
            PlanError: the history mixes neighbouring relations.
        """
        costs = [
            group.steps
            * renyi_of_one_step(
                group.sampling_probability, group.noise_multiplier, self.order, group.neighbouring
            )
            for group in group_releases(releases)
        ]
        try:
            return math.fsum(costs)
        except OverflowError:  # finite costs whose sum is beyond float64
            return math.inf

    def allows(self, releases: Sequence[Release]) -> bool:
        """Return whether a history, the release about to be made included, is within the budget."""
        return self.budget > 0 and self.spent(releases) <= self.budget * (1 - _SAFETY)

    def max_steps(self, history: Sequence[Release], release: Release) -> int:
        """Return how many steps with the parameters of `release` still fit after `history`.

        Returns:
            0 to `release.steps`: the largest number that `allows`.
        """
        past = merge_releases(history)

        def is_too_much(steps: int) -> bool:
            return not self.allows([*past, dataclasses.replace(release, steps=steps)])

        # Divergence never falls with steps, so the answers are False ... False, True ... True.
        return max(0, bisect.bisect_left(range(release.steps + 1), True, key=is_too_much) - 1)

    def epsilon_spent(self, releases: Sequence[Release]) -> float:
        """Return the epsilon that the order of the filter certifies for a history at delta.

        max(0, spent + log((a - 1) / a) - (log delta + log a) / (a - 1)); 0 for no steps. The conversion alone
        costs something, so the first step costs more than the others.
        """
        if not group_releases(releases):
            return 0.0
        return max(0.0, self.spent(releases) + _conversion(self.order, self.delta))


def choose_order(*, epsilon: float, delta: float, release: Release | None = None) -> int:
    """Return the order for a filter, from public figures alone and before anything is spent.

    Args:
        epsilon: The cap, > 0 and finite.
        delta: In (0, 1).
        release: The kind of release that is expected most; its steps do not matter. Others are allowed all the
            same, only fewer of them.

    Returns:
        The integer of 2 to 1024 that allows most steps of `release`; without one round(1 + 2 ln(1 / delta) /
        epsilon), the best order of a Gaussian release that spends all.
    """
    _check(_cap_problems(epsilon, delta))
    if release is None:
        return min(MAX_ORDER, max(MIN_ORDER, round(1 + 2 * math.log(1 / delta) / epsilon)))
    probability, noise, _, neighbouring = charged_as(release)

    def steps_allowed(order: int) -> float:
        cost = renyi_of_one_step(probability, noise, order, neighbouring)
        budget = epsilon - _conversion(order, delta)
        return budget / cost if cost > 0 else math.inf

    def is_past_the_best(order: int) -> bool:
        pays = epsilon > _conversion(order, delta)  # the budget rises with the order
        return pays and steps_allowed(order + 1) <= steps_allowed(order)

    # (a - 1) budget is concave in a and (a - 1) divergence convex, so their ratio rises and then falls.
    orders = range(MIN_ORDER, MAX_ORDER)
    return MIN_ORDER + bisect.bisect_left(orders, True, key=is_past_the_best)


@dataclass(frozen=True, kw_only=True)
class FixedPlan:
    """A schedule of releases fixed in advance, which buys the tighter accountant: PLD.

    Attributes:
        schedule: Everything that may be released, in order.
        epsilon: The cap, > 0 and finite.
        delta: In (0, 1).
    """

    schedule: tuple[Release, ...]
    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        problems = _cap_problems(self.epsilon, self.delta)
        if not isinstance(self.schedule, tuple) or not all(
            isinstance(item, Release) for item in self.schedule
        ):
            problems.append("schedule must be a tuple of releases")
        _check(problems)

    def problems(self) -> list[str]:
        """Return why nothing of the schedule may run: mixed relations, or too much for the cap; empty if it may."""
        try:
            spent = PldAccountant().epsilon(self.schedule, self.delta)
        except PlanError as error:
            return list(error.problems)
        if spent <= self.epsilon:
            return []
        return [
            f"the schedule spends epsilon {spent:.4f} at delta {self.delta:g}, the cap is {self.epsilon:g}"
        ]

    def accepts(self, history: Sequence[Release], release: Release) -> bool:
        """Return whether `history`, followed by `release`, is drawn from the schedule in order.

        Items may be used partly or skipped, never gone back to: a slot that releases nothing is dominated by
        the slot. A later slot first and an earlier one afterwards would be another composition (concurrent),
        which is not claimed here. Steps count as they are charged, so that parts of a shuffled item, each
        with an epoch of its own, cannot cost more than the item.

        Returns:
            False too if the schedule has `problems`.
        """
        if self.problems():
            return False
        left = _Slots(self.schedule)
        return all(left.take(event) for event in (*history, release))


class _Slots:
    """What is left of a schedule; only ever moves forward."""

    def __init__(self, schedule: Sequence[Release]) -> None:
        self._items: Iterator[Release] = iter(schedule)
        self._item: Release | None = next(self._items, None)
        self._used = 0

    def take(self, event: Release) -> bool:
        """Use the first slots that fit for all steps of `event`; return whether there were enough."""
        wanted = charged_as(event).steps
        while wanted > 0 and self._item is not None:
            free = charged_as(self._item).steps - self._used if same_parameters(self._item, event) else 0
            taken = min(free, wanted)
            wanted -= taken
            self._used += taken
            if wanted > 0:
                self._item, self._used = next(self._items, None), 0
        return wanted == 0


def _conversion(order: int, delta: float) -> float:
    """Return what turns a Renyi divergence at `order` into epsilon at `delta`, by addition."""
    return math.log((order - 1) / order) - (math.log(delta) + math.log(order)) / (order - 1)


def _cap_problems(epsilon: float, delta: float) -> list[str]:
    """Return what is wrong with a cap."""
    return [
        *number_problem("epsilon", epsilon, low=0.0, high=math.inf, rule="a finite number > 0"),
        *number_problem("delta", delta, low=0.0, high=math.nextafter(1, 0), rule="a number in (0, 1)"),
    ]


def _check(problems: Sequence[str]) -> None:
    """Raise a `PlanError` if there are problems."""
    if problems:
        raise PlanError("filter", problems)
