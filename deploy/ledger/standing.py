"""What was spent, cohort by cohort, and whether the ledger's cap is the one that the hospital's policy wants now.

The ledger's own rule decides, so that is what "spent" means; both accountants stand beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.audit.accounts import counted_by
from deploy.ledger.wording import command, exact
from deploy.site import SiteConfig
from privacy.accounting import Release, epsilons
from privacy.filters import FixedPlan
from privacy.records import Genesis
from privacy.replay import State
from server.report.words import small


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What some releases cost one patient, at the ledger's delta.

    Attributes:
        counted: Epsilon by the ledger's rule: what is held against the cap.
        pld: By privacy loss distribution; valid where everything was fixed in advance.
        rdp: By Rényi divergence at its best order; likewise.
    """

    counted: float
    pld: float
    rdp: float


def spent(genesis: Genesis, releases: Sequence[Release]) -> Spent:
    """Return what some releases cost.

    Raises:
        AccountingError: the accountants disagree.
    """
    pair = epsilons(releases, genesis.delta)
    return Spent(counted=counted_by(genesis.rule, releases), pld=pair.pld, rdp=pair.rdp)


def spent_by_cohort(state: State) -> dict[str, Spent]:
    """Return what was spent on the patients of each cohort.

    Raises:
        AccountingError: the accountants disagree.
    """
    return {cohort: spent(state.genesis, state.releases(cohort)) for cohort in state.cohorts}


def left(state: State, counted: float) -> float:
    """Return the epsilon that may still be spent where so much is."""
    return 0.0 if state.is_ended else max(0.0, state.cap - counted)


def policy_notes(config: SiteConfig, site: Path, state: State) -> Iterator[str]:
    """Yield what to do where the hospital's file allows less, in the lifetime of a patient, than its ledger does.

    Both are enforced, but who reads the ledger alone sees its own cap.

    Args:
        config: The hospital's file.
        site: Where it lies.
        state: Of the ledger.
    """
    wanted, genesis = config.to_policy().lifetime, state.genesis
    if wanted.epsilon < state.cap:
        ends = isinstance(genesis.rule, FixedPlan)
        yield (
            f"NOTE: policy.lifetime in {site} allows epsilon {exact(wanted.epsilon)}, and the cap of the ledger is "
            f"{exact(state.cap)}. The smaller one holds for all work, but who reads the ledger alone cannot see it. If "
            f"the ledger is right, change the policy; if the policy is, lower the ledger's cap"
            f"{' (which ends its schedule for good)' if ends else ''}:"
        )
        yield command("cap", "--site", str(site), "--to", exact(wanted.epsilon), *(["--yes"] if ends else []))
    if wanted.delta < genesis.delta:
        yield (
            f"NOTE: policy.lifetime in {site} has delta {small(wanted.delta)}, and this ledger counts at "
            f"{small(genesis.delta)} for good. Work is held to both; only a ledger of other patients can begin with a "
            "smaller one."
        )
