"""What a site's ledger would still allow, read without a key and without changing anything.

A study that has begun already is looked at as if it began anew, which asks for more than is left of it.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.site import SiteConfig
from privacy.accounting import PldAccountant, Release
from privacy.budget import run_filter
from privacy.errors import RefusalCode
from privacy.filters import FixedPlan, RenyiFilter
from privacy.ledger import Ledger
from privacy.policy import Objection, Policy
from privacy.records import FIRST_COHORT
from privacy.replay import State


@dataclass(frozen=True, kw_only=True)
class CohortBudget:
    """What the budget of a cohort holds.

    Attributes:
        cohort: Its name in the ledger; `c0`, in which all patients begin, where there is no ledger yet.
        spent: Epsilon that the ledger's rule counts as spent.
        cap: Epsilon that no patient may exceed.
        delta: Of both.
        refused_in: First round that would be refused; None if all rounds fit.
    """

    cohort: str
    spent: float
    cap: float
    delta: float
    refused_in: int | None


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a site's ledger stands, or would begin.

    Attributes:
        rule: How costs add up, with the cap in force.
        histories: Cohort -> everything spent on its patients, in order.
        is_ended: Whether nothing may be spent any more, since the cap was lowered.
    """

    rule: RenyiFilter | FixedPlan
    histories: Mapping[str, tuple[Release, ...]]
    is_ended: bool = False

    def budgets(self, release: Release, rounds: int) -> tuple[CohortBudget, ...]:
        """Return what each cohort has spent, and whether the rounds of a study fit.

        Args:
            release: What one round reserves.
            rounds: How many of them.
        """
        return tuple(
            CohortBudget(
                cohort=cohort,
                spent=self._spent(history),
                cap=self.rule.epsilon,
                delta=self.rule.delta,
                refused_in=1 if self.is_ended else _first_refused(self.rule, history, release, rounds),
            )
            for cohort, history in self.histories.items()
        )

    def objections(self, budgets: Sequence[CohortBudget], rounds: int) -> tuple[Objection, ...]:
        """Return the objection where no cohort can afford a round; while one can, the study goes on with it."""
        ends = [budget.refused_in for budget in budgets]
        reached = [end for end in ends if end is not None]
        if not reached or len(reached) < len(ends):
            return ()
        where = f"round {max(reached)} of {rounds} would be refused: "
        if isinstance(self.rule, FixedPlan):
            why = "; ".join(self.rule.problems()) or "it is not the next part of the schedule of the ledger"
            sentence = f"{where}{why}; have the study follow the schedule"
            return (Objection(code=RefusalCode.OFF_PLAN, sentence=sentence),)
        why = f"no cohort can pay for it within epsilon {self.rule.epsilon:g} at delta {self.rule.delta:g}"
        return (Objection(code=RefusalCode.BUDGET_EXHAUSTED, sentence=f"{where}{why}; {_LESS}"),)

    def _spent(self, history: Sequence[Release]) -> float:
        """Return the epsilon of a history; of a schedule that has begun, all of it: stopping saves nothing."""
        if isinstance(self.rule, RenyiFilter):
            return self.rule.epsilon_spent(history)
        return PldAccountant().epsilon(self.rule.schedule, self.rule.delta) if history else 0.0


_LESS = "ask for fewer rounds or steps, a smaller sampling_probability, or more noise"


def standing_of(site: SiteConfig) -> Standing:
    """Return where a site's ledger stands, every entry of it checked; or where it would begin if there is none.

    Raises:
        LedgerError: it cannot be read, or is not what was written.
    """
    state = _state(site)
    if state is None:
        return Standing(rule=site.to_filter(), histories={FIRST_COHORT: ()})
    rule, is_ended = state.genesis.rule, state.is_ended
    if isinstance(rule, RenyiFilter) and state.cap > 0:
        rule = dataclasses.replace(rule, epsilon=state.cap)
    return Standing(rule=rule, histories=_histories(state), is_ended=is_ended or state.cap <= 0)


def spent_so_far(site: SiteConfig) -> Mapping[str, tuple[Release, ...]]:
    """Return cohort -> everything that was spent on its patients, by the site's ledger; empty where there is none yet.

    Raises:
        LedgerError: it cannot be read, or is not what was written.
    """
    state = _state(site)
    return {} if state is None else _histories(state)


def run_budget_objections(policy: Policy, release: Release, rounds: int) -> tuple[Objection, ...]:
    """Return the objection to a study that costs more than one may.

    Args:
        policy: The hospital's.
        release: What one round reserves.
        rounds: How many of them.
    """
    rule = run_filter(policy)
    end = _first_refused(rule, (), release, rounds)
    if end is None:
        return ()
    total = rule.epsilon_spent([release] * rounds)
    sentence = (
        f"round {end} of {rounds} would be refused: one run may spend epsilon {rule.epsilon:g} at delta "
        f"{rule.delta:g}, and {rounds} rounds would make it {total:.3g} (Rényi filter of order {rule.order}); {_LESS}"
    )
    return (Objection(code=RefusalCode.RUN_BUDGET_EXHAUSTED, sentence=sentence),)


def _state(site: SiteConfig) -> State | None:
    """Return the state of a site's ledger; None where there is no file."""
    path = Path(site.ledger)
    if not path.exists():
        return None
    with contextlib.closing(Ledger.open(path)) as ledger:
        return ledger.state()


def _histories(state: State) -> dict[str, tuple[Release, ...]]:
    """Return everything spent, by cohort."""
    return {cohort: state.releases(cohort) for cohort in state.cohorts}


def _first_refused(
    rule: RenyiFilter | FixedPlan, history: Sequence[Release], release: Release, rounds: int
) -> int | None:
    """Return the first of some equal rounds that a rule refuses after a history; None if it allows all."""

    def is_refused(round_: int) -> bool:
        before = [*history, *[release] * (round_ - 1)]
        if isinstance(rule, RenyiFilter):
            return not rule.allows([*before, release])
        return not rule.accepts(before, release)

    # What is refused in one round is refused in every later one: costs only grow, a schedule only moves on.
    found = bisect.bisect_left(range(1, rounds + 1), True, key=is_refused) + 1
    return found if found <= rounds else None
