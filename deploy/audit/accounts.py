"""What was spent, recomputed from parameters: by the ledger's own rule, by RDP and by PLD.

The rule decides whether more may be spent, so it is what "spent of the cap" means here. With a Rényi filter it holds
for studies chosen after seeing earlier results; PLD and RDP at its best order hold for parameters fixed in advance, and
are the tighter and the looser check.

What it does not do: believe a stored figure. There is none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deploy.audit.document import (
    Check,
    Claims,
    CohortAccount,
    Mechanism,
    Refusal,
    RunAccount,
    SiteAccount,
)
from deploy.audit.ledgers import Reading
from privacy.accounting import (
    PldAccountant,
    RdpAccountant,
    Release,
    check_pair,
    epsilons,
    merge_releases,
)
from privacy.adversaries import AdversaryView, Federation, view_adversaries
from privacy.entries import releases_of
from privacy.errors import AccountingError, PlanError, RefusalCode
from privacy.filters import FixedPlan, RenyiFilter
from privacy.records import Reservation
from privacy.replay import State
from server.report.words import count, small, up

NO_RULE = "nobody counts: there is no ledger, and nothing is ever refused"
_SEEDED_ASSUMES = (
    "Seeded noise holds off nobody who knows the seed; with secret noise the plan would spend this."
)
LOOSE_EPSILON = 10.0
"""Above it a bound promises little, whatever else is in order."""


def account_for(reading: Reading, federations: Mapping[str, Federation]) -> SiteAccount | None:
    """Return what the ledger of a site says was spent, None if none of it holds.

    Args:
        reading: Of the ledger.
        federations: Run -> how it was done; of others nothing is assumed.
    """
    state = reading.state
    if state is None:
        return None
    genesis = state.genesis
    rule = rule_in_force(state)
    return SiteAccount(
        site=genesis.site,
        claims="dp" if genesis.claims == "dp" else "seeded",
        unit="patient",
        neighbouring="add_remove",
        delta=genesis.delta,
        cap=state.cap,
        rule=_rule_in_words(genesis.rule),
        cohorts=tuple(_cohort(name, _paid(state, name), rule, genesis.delta) for name in state.cohorts),
        runs=_runs(state, federations),
        refusals=_refusals(reading, rule),
        mechanisms=_mechanisms(state.reservations.values()),
    )


def account_of_releases(
    site: str,
    run: str,
    spent: Sequence[tuple[int, Release]],
    *,
    claims: Claims,
    unit: str,
    delta: float,
    federation: Federation,
    constants: Mapping[str, object],
    randomness: str,
) -> SiteAccount | None:
    """Return what a virtual site without a ledger says that it has spent, None if that is nothing.

    Args:
        site: Its name.
        run: The only run it knows of.
        spent: Round and cost of each reservation.
        claims: What its updates promise.
        unit: Whom epsilon protects.
        delta: Of the plan.
        federation: How the run was done.
        constants: Of the plan, beside the release.
        randomness: `os` or `seeded`.
    """
    releases = tuple(release for _, release in spent)
    merged = merge_releases(releases)
    if not merged:
        return None
    rdp, pld = _both(merged, delta)
    rounds = [round_ for round_, _ in spent]
    account = RunAccount(
        run=run,
        first_round=min(rounds),
        last_round=max(rounds),
        committed=len(spent),
        reserved=0,
        rdp=rdp,
        pld=pld,
        views=_views(merged, delta, federation, claims),
    )
    return SiteAccount(
        site=site,
        claims=claims,
        unit=unit,
        neighbouring=releases[0].neighbouring,
        delta=delta,
        cap=None,
        rule=NO_RULE,
        cohorts=(CohortAccount(cohort="all", releases=merged, counted=pld, settled=pld, rdp=rdp, pld=pld),),
        runs=(account,),
        mechanisms=tuple(
            Mechanism(
                release=release,
                rounds=sum(each == release for each in releases),
                constants=constants,
                randomness=randomness,
                models=(),
            )
            for release in dict.fromkeys(releases)
        ),
    )


def rule_in_force(state: State) -> RenyiFilter | FixedPlan:
    """Return the rule of a ledger with the cap in force; a cap of 0 leaves the one before, for figures alone."""
    rule = state.genesis.rule
    if isinstance(rule, RenyiFilter) and state.cap > 0:
        return dataclasses.replace(rule, epsilon=state.cap)
    return rule


def check_account(account: SiteAccount) -> tuple[Check, ...]:
    """Return what the figures of a site say about each other, and about its cap."""
    return (_accountants(account), _within_cap(account), _how_large(account), _how_random(account))


def _cohort(
    name: str, paid: Sequence[Reservation], rule: RenyiFilter | FixedPlan, delta: float
) -> CohortAccount:
    """Return what was spent on a cohort."""
    everything = merge_releases(release for one in paid for release in one.cost)
    done = merge_releases(release for one in paid if one.steps is not None for release in one.cost)
    rdp, pld = _both(everything, delta)
    return CohortAccount(
        cohort=name,
        releases=everything,
        counted=counted_by(rule, everything),
        settled=counted_by(rule, done),
        rdp=rdp,
        pld=pld,
    )


def counted_by(rule: RenyiFilter | FixedPlan, history: Sequence[Release]) -> float:
    """Return the epsilon that a rule counts; of a schedule that has begun all of it: stopping saves nothing."""
    if isinstance(rule, RenyiFilter):
        return rule.epsilon_spent(history)
    return PldAccountant().epsilon(rule.schedule, rule.delta) if history else 0.0


def _paid(state: State, cohort: str) -> list[Reservation]:
    """Return the reservations that charged a cohort."""
    return [one for one in state.reservations.values() if cohort in one.cohorts]


def _both(releases: Sequence[Release], delta: float) -> tuple[float, float]:
    """Return RDP and PLD, whether or not they agree: that is a check of its own."""
    return RdpAccountant().epsilon(releases, delta), PldAccountant().epsilon(releases, delta)


def _runs(state: State, federations: Mapping[str, Federation]) -> tuple[RunAccount, ...]:
    """Return what each run has spent."""
    by_run: dict[str, list[Reservation]] = {}
    for work, one in state.reservations.items():
        by_run.setdefault(work.run, []).append(one)
    found = []
    for run, paid in by_run.items():
        releases = merge_releases(release for one in paid for release in one.cost)
        delta = state.genesis.delta
        rdp, pld = _both(releases, delta)
        rounds = [one.work.round for one in paid]
        unknown = Federation(num_sites=1, local_steps=max(2, *(one.releases[0].steps for one in paid)))
        found.append(
            RunAccount(
                run=run,
                first_round=min(rounds),
                last_round=max(rounds),
                committed=sum(one.steps is not None for one in paid),
                reserved=sum(one.steps is None for one in paid),
                rdp=rdp,
                pld=pld,
                views=_views(
                    releases,
                    delta,
                    federations.get(run, unknown),
                    "dp" if state.genesis.claims == "dp" else "seeded",
                ),
            )
        )
    return tuple(found)


def _views(
    releases: Sequence[Release], delta: float, federation: Federation, claims: Claims
) -> tuple[AdversaryView, ...]:
    """Return each adversary's view; none where the accountants disagree."""
    try:
        views = view_adversaries(releases, delta, federation)
    except (AccountingError, PlanError):
        return ()
    if claims == "dp":
        return views
    return tuple(dataclasses.replace(view, assumption=_SEEDED_ASSUMES) for view in views)


def _refusals(reading: Reading, rule: RenyiFilter | FixedPlan) -> tuple[Refusal, ...]:
    """Return what was refused, and what it would have come to had it asked for what the run's round before had."""
    last: dict[str, Mapping[str, Any]] = {}
    by_cohort: dict[str, tuple[Release, ...]] = {}
    by_run: dict[str, tuple[Release, ...]] = {}
    cap, found = 0.0, []
    for entry in reading.entries:
        fields = entry.fields
        if entry.kind in ("GENESIS", "CAP_CHANGE"):
            cap = fields["cap"] if entry.kind == "GENESIS" else fields["to"]
        elif entry.kind == "RESERVE":
            last[fields["run"]] = fields
            releases = releases_of(fields["releases"])
            by_run[fields["run"]] = merge_releases((*by_run.get(fields["run"], ()), *releases))
            for cohort in fields["cohorts"]:
                by_cohort[cohort] = merge_releases((*by_cohort.get(cohort, ()), *releases))
        elif entry.kind == "REFUSE":
            run, code, needed, limit = fields["run"], fields["code"], None, None
            before = last.get(run)
            if before is not None and code == RefusalCode.BUDGET_EXHAUSTED:
                again, limit = releases_of(before["releases"]), cap
                # It is refused only where no cohort can pay, so the cheapest one is what it would have taken.
                needed = min(counted_by(rule, (*by_cohort[name], *again)) for name in before["cohorts"])
            elif before is not None and code == RefusalCode.RUN_BUDGET_EXHAUSTED and before["run_cap"]:
                of_run = RenyiFilter(**before["run_cap"])
                again, limit = releases_of(before["releases"]), of_run.epsilon
                needed = of_run.epsilon_spent((*by_run[run], *again))
            found.append(Refusal(run=run, round=fields["round"], code=code, needed=needed, limit=limit))
    return tuple(found)


def _mechanisms(paid: Iterable[Reservation]) -> tuple[Mechanism, ...]:
    """Return the public constants of some reservations, equal ones once."""
    grouped: dict[tuple[Release, tuple[tuple[str, object], ...], str], list[Reservation]] = {}
    for one in paid:
        constants = tuple(sorted(one.fields["mechanism"].items()))
        for release in one.releases:
            grouped.setdefault((release, constants, one.fields["randomness"]), []).append(one)
    return tuple(
        Mechanism(
            release=release,
            rounds=len(members),
            constants=dict(constants),
            randomness=randomness,
            models=tuple(dict.fromkeys(one.fields["model"] for one in members)),
        )
        for (release, constants, randomness), members in grouped.items()
    )


def _rule_in_words(rule: RenyiFilter | FixedPlan) -> str:
    """Return how costs add up, in a phrase."""
    if isinstance(rule, RenyiFilter):
        return f"Rényi filter of order {rule.order}: studies may be chosen after seeing earlier results"
    parts = count(len(rule.schedule), "part")
    return f"a schedule of {parts}, fixed before anything was spent, by privacy loss distribution"


def _accountants(account: SiteAccount) -> Check:
    """Hold the two accountants against each other."""
    worst = account.worst
    figures = (f"PLD {up(worst.pld)}, RDP {up(worst.rdp)}, the ledger's own rule {up(worst.counted)}",)
    try:
        for cohort in account.cohorts:
            check_pair(epsilons(cohort.releases, account.delta))
    except AccountingError as error:
        text = f"The two accountants contradict each other about {account.site}: {error}"
        return Check(name="accountants", site=account.site, status="violated", text=text, details=figures)
    text = (
        f"Two independent accountants recomputed what {account.site} has spent from the parameters alone, and the "
        "tighter one is not above the looser one."
    )
    return Check(name="accountants", site=account.site, status="ok", text=text, details=figures)


def _within_cap(account: SiteAccount) -> Check:
    """Hold what was spent against the cap."""
    site, worst, cap = account.site, account.worst, account.cap
    if cap is None:
        text = f"{site} has set no cap: nothing would ever have been refused there."
        return Check(name="within-cap", site=site, status="not-provided", text=text)
    details = (f"counted {up(worst.counted)} of {cap:g} at delta {small(account.delta)}; {account.rule}",)
    if worst.counted <= cap * (1 + 1e-9):
        text = f"{site} has kept within its cap on every patient."
        return Check(name="within-cap", site=site, status="ok", text=text, details=details)
    text = (
        f"{site} has spent epsilon {up(worst.counted)} on some patients and its cap is now {cap:g}. If the cap was "
        "lowered after they were spent, nothing more can be; if not, this is a breach."
    )
    return Check(name="within-cap", site=site, status="attention", text=text, details=details)


def _how_large(account: SiteAccount) -> Check:
    """Say where a bound is so loose that it promises little."""
    site, epsilon = account.site, account.worst.counted
    if epsilon <= LOOSE_EPSILON:
        text = (
            f"What {site} has spent is not so large that the bound would mean nothing (epsilon 10 or less)."
        )
        return Check(name="epsilon-size", site=site, status="ok", text=text)
    text = (
        f"At {site} epsilon is {up(epsilon)}. A bound this loose promises very little by itself: do not rely on it "
        "alone."
    )
    return Check(name="epsilon-size", site=site, status="attention", text=text)


def _how_random(account: SiteAccount) -> Check:
    """Say where the noise can be drawn again."""
    site = account.site
    if account.claims == "dp":
        text = (
            f"All noise at {site} came from the operating system's secure source: nobody can draw it again."
        )
        return Check(name="randomness", site=site, status="ok", text=text)
    text = (
        f"The noise of {site} was seeded: whoever knows the seed can draw it again and subtract it. Its figures "
        "describe a plan, and protect nobody."
    )
    return Check(name="randomness", site=site, status="attention", text=text)
