"""A run's view of a ledger, under a policy: what a site asks before it trains, and writes after it has.

`Spending` is what a site needs; `LedgerSpending` is it for a hospital. A simulation without budgets has one of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Protocol

from privacy.accounting import Release
from privacy.errors import RefusalCode
from privacy.filters import FixedPlan, RenyiFilter, choose_order
from privacy.heads import Head, Receipt
from privacy.ledger import Ledger
from privacy.plan import PrivacyPlan
from privacy.policy import Policy
from privacy.records import Work
from privacy.replay import State
from privacy.witness import check_witnesses


class Spending(Protocol):
    """Where budget is written down: reserve first, then train, then commit."""

    def check(self, heads: Iterable[Head]) -> None:
        """Hold the record of spending against heads that others have kept.

        Raises:
            RefusedError: it is older than, or another than, one that somebody has seen.
        """
        ...

    def reserve(self, work: Work, plan: PrivacyPlan, *, model: str) -> str | None:
        """Write the full cost durably before any data are opened.

        Args:
            work: What for; the same work twice is one cost.
            plan: What will run.
            model: Hash of the model's specification.

        Returns:
            SHA-256 of the update that was committed for this work before; None if none was.

        Raises:
            RefusedError: nothing may run.
        """
        ...

    def commit(self, work: Work, steps: int, update: str) -> None:
        """Write what was done, before the update with that SHA-256 leaves; else the reservation counts in full."""
        ...

    def refuse(self, work: Work, code: RefusalCode) -> None:
        """Write down that work was refused."""
        ...

    def may_sample(self, work: Work, patients: Sequence[str]) -> Sequence[bool]:
        """Return for each patient whether this reserved work may use their records."""
        ...

    def history(self, run: str) -> tuple[Release, ...]:
        """Return everything that a run has spent, in order."""
        ...

    def receipt(self, work: Work, heads: Sequence[Head]) -> Receipt | None:
        """Return the proof that committed work was paid for, for who keeps `heads`; None without a ledger."""
        ...

    def witness(self, heads: Iterable[Head]) -> tuple[Head, ...]:
        """Keep heads of other sites' ledgers, and return all that are kept."""
        ...


class LedgerSpending:
    """Spending from a hospital's ledger, under its policy.

    Args:
        ledger: Open for writing.
        policy: The hospital's.
    """

    def __init__(self, ledger: Ledger, policy: Policy) -> None:
        self._ledger, self._policy = ledger, policy

    def check(self, heads: Iterable[Head]) -> None:
        """Hold the ledger against heads that others have kept; see `Spending`."""
        check_witnesses(self._ledger.state(), heads)

    def reserve(self, work: Work, plan: PrivacyPlan, *, model: str) -> str | None:
        """Write the full cost; see `Spending`."""
        paid = self._ledger.reserve(
            work,
            plan,
            model=model,
            policy=self._policy.hash(),
            run_cap=run_filter(self._policy),
            lifetime=lifetime_rule(self._policy, self._ledger.state()),
            min_patients=self._policy.min_patients,
        )
        return paid.update

    def commit(self, work: Work, steps: int, update: str) -> None:
        """Write what was done; see `Spending`."""
        self._ledger.commit(work, [steps], update)

    def refuse(self, work: Work, code: RefusalCode) -> None:
        """Write down a refusal."""
        self._ledger.refuse(work, code)

    def may_sample(self, work: Work, patients: Sequence[str]) -> Sequence[bool]:
        """Return for each patient whether this work may use their records."""
        return self._ledger.may_sample(patients, self._ledger.state().reservations[work].cohorts)

    def history(self, run: str) -> tuple[Release, ...]:
        """Return everything that a run has spent."""
        return self._ledger.state().releases_of_run(run)

    def receipt(self, work: Work, heads: Sequence[Head]) -> Receipt | None:
        """Return the proof that committed work was paid for, for who keeps the first head of this ledger.

        The server's own comes first. A later one may be larger and come from another site, which the server cannot
        check growth from; one that this site did not sign is no head of this ledger, whoever says so.
        """
        state = self._ledger.state()
        own = (head for head in heads if head.dataset == state.genesis.dataset and head.key in state.keys)
        return self._ledger.receipt(work, next(own, None))

    def witness(self, heads: Iterable[Head]) -> tuple[Head, ...]:
        """Keep heads of other sites' ledgers."""
        self._ledger.keep(heads)
        return self._ledger.witnessed()


def lifetime_rule(policy: Policy, state: State) -> RenyiFilter | FixedPlan | None:
    """Return the rule of a ledger with the cap of a policy; None where the ledger's own cap is as small.

    The order stays the one of GENESIS, fixed before anything was spent, so a smaller cap is sound at any time.
    """
    cap, genesis = policy.lifetime, state.genesis
    if cap.epsilon >= state.cap and cap.delta >= genesis.delta:
        return None
    return dataclasses.replace(genesis.rule, epsilon=cap.epsilon, delta=cap.delta)


def run_filter(policy: Policy) -> RenyiFilter:
    """Return what one run may spend under a policy, as a filter at an order that depends on its figures alone.

    The order is the best one for a run that uses all that the policy allows a step.
    """
    cap = policy.per_run
    hungriest = Release(
        sampling_probability=policy.max_sampling_probability,
        noise_multiplier=policy.min_noise_multiplier,
        steps=1,
    )
    order = choose_order(epsilon=cap.epsilon, delta=cap.delta, release=hungriest)
    return RenyiFilter(epsilon=cap.epsilon, delta=cap.delta, order=order)
