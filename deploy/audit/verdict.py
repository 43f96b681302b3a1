"""The verdict in plain words, for somebody who answers for patients and not for mathematics.

Guarantees (tests/unit/deploy/audit/test_verdict.py):
    Seeded or missing noise is never said to protect anybody. A bound from above is rounded up, one from below down.
    Everything that is violated, missing or left to people has a sentence of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from deploy.audit.document import AuditReport, Check, SiteAccount, Status
from deploy.audit.evidence import down, shown_by
from server.report.promise import Finding
from server.report.words import count, listed, shortened, shown, small, up

MOST_SITES = 4

TITLES = {
    "checkpoint": "The server's last state",
    "ledger-chain": "Ledger entries",
    "second-verifier": "Second opinion on the ledger",
    "same-site": "Name in the ledger",
    "accountants": "Two accountants",
    "within-cap": "Cap",
    "epsilon-size": "Size of epsilon",
    "randomness": "Secret noise",
    "claim": "Claims kept by the server",
    "heads": "Heads kept by others",
    "policy": "Policy of the hospital",
    "cap-and-delta": "Cap and delta",
    "libraries": "Libraries",
    "cap-raised": "Caps that were raised",
    "incidents": "Incidents",
    "protection": "Protection",
    "attack-file": "The run's own attack",
    "attack": "Attack on every step",
    "control": "Control of the attack",
    "membership": "Attack on the model alone",
    "signature": "Signature of this report",
}
_ORDER: tuple[Status, ...] = ("violated", "attention", "not-provided", "ok")


def headline(report: AuditReport) -> Finding:
    """Return the verdict in one line, and why."""
    broken, open_ = report.count("violated"), report.count("attention", "not-provided")
    if broken:
        failed = [check for check in report.checks if check.status == "violated"]
        names = [title(name).lower() for name in dict.fromkeys(check.name for check in failed)]
        return Finding(
            tone="bad",
            text="Something is wrong. Do not rely on these figures.",
            details=(f"{count(broken, 'check')} failed: {listed(shortened(names))}.",),
        )
    if report.subject.claims == "none":
        return Finding(
            tone="bad",
            text="No privacy is promised to anybody.",
            details=("Training without calibrated noise: treat what left like patients' data.",),
        )
    if report.subject.claims == "seeded":
        return Finding(
            tone="caution",
            text="A simulation: its records are in order, and no privacy is claimed.",
            details=(
                "Its noise was seeded, so anybody can compute it again. The figures are what the same plan would spend "
                "with secret noise.",
            ),
        )
    if open_:
        points = f"{open_} of {count(len(report.checks), 'check')}"
        missing = f"{points} could not be made or {_need(open_)} a second look; each is named below."
        return Finding(
            tone="caution", text="Nothing wrong was found, and not all is known.", details=(missing,)
        )
    return Finding(
        tone="good",
        text="Everything that was checked is in order.",
        details=(f"{count(len(report.checks), 'check')}; what only people can answer is at the end.",),
    )


def findings(report: AuditReport) -> tuple[Finding, ...]:
    """Return what the report says in sentences, the worst first, then spending, meaning, records, attacks, people."""
    return (
        *_from_checks(report, "violated"),
        *spending(report),
        *_meaning(report),
        *_left(report),
        *_records(report),
        *_attacks(report),
        *_from_checks(report, "attention"),
        *_missing(report),
        *_people(report),
    )


def spending(report: AuditReport) -> tuple[Finding, ...]:
    """Return what each site has spent and refused; of many sites a summary."""
    if not report.sites:
        return (Finding(tone="caution", text="No spending could be read, so nothing can be said about it."),)
    if len(report.sites) <= MOST_SITES:
        return tuple(_spent(account) for account in report.sites)
    ranked = sorted(report.sites, key=lambda account: account.worst.counted)
    least, most = ranked[0], ranked[-1]
    refusing = sum(bool(account.refusals) for account in report.sites)
    text = (
        f"{len(ranked)} sites have spent between epsilon {up(least.worst.counted)} ({shown(least.site)}) and "
        f"{up(most.worst.counted)} ({shown(most.site)}){_if_secret(most)}; "
        f"{refusing or 'none'} of them refused work."
    )
    return (Finding(tone="plain", text=text), _spent(most))


def title(name: str) -> str:
    """Return what a check is called."""
    return TITLES.get(name, name.replace("-", " ").capitalize())


def grouped(checks: Sequence[Check]) -> list[tuple[str, Status, list[Check]]]:
    """Return name, worst status and members of each kind of check, as the report has them; the worst member first."""
    by_name: dict[str, list[Check]] = {}
    for check in checks:
        by_name.setdefault(check.name, []).append(check)
    made = []
    for name, members in by_name.items():
        members.sort(key=lambda check: _ORDER.index(check.status))
        made.append((name, members[0].status, members))
    return made


def _spent(account: SiteAccount) -> Finding:
    """Return what one site has spent, and whether it refused."""
    worst, cap, site = account.worst, account.cap, shown(account.site)
    for_whom = f"each {account.unit}"
    if account.claims == "none":
        return Finding(
            tone="bad", text=f"{site} sent updates without calibrated noise: nothing bounds what they tell."
        )
    of = (
        f"of the {cap:g} it allows for {for_whom}"
        if cap is not None
        else f"for {for_whom}, and has set no cap"
    )
    said = (
        f"{site} has spent epsilon {up(worst.counted)} {of}"
        if account.claims == "dp"
        else f"{site} would have spent epsilon {up(worst.counted)} {of}, had the noise been secret"
    )
    text = f"{said}{_and_refused(account)}"
    details = (
        f"delta = {small(account.delta)}. PLD {up(worst.pld)}, RDP {up(worst.rdp)}; {account.rule}.",
        *(
            [f"{count(len(account.cohorts), 'cohort')}; the most spent one is shown."]
            if len(account.cohorts) > 1
            else []
        ),
    )
    over = cap is not None and worst.counted > cap * (1 + 1e-9)
    return Finding(tone="caution" if cap is None or over else "plain", text=text, details=details)


def _and_refused(account: SiteAccount) -> str:
    """Return the end of a sentence: what was refused."""
    budget = [
        one
        for one in account.refusals
        if one.code in ("budget-exhausted", "run-budget-exhausted", "off-plan")
    ]
    if not budget:
        return (
            ". It refused nothing for want of budget." if not account.refusals else _other_refusals(account)
        )
    first = budget[0]
    if first.needed is not None and first.limit is not None:
        whose = "one study may spend" if first.code == "run-budget-exhausted" else "its cap is"
        return (
            f". Round {first.round} would have come to {up(first.needed)} ({whose} {first.limit:g}) and was refused: "
            "no data were opened for it."
        )
    return f". Round {first.round} was refused for want of budget: no data were opened for it."


def _other_refusals(account: SiteAccount) -> str:
    """Return the end of a sentence: refusals that were not about budget."""
    codes = listed(shortened(sorted({one.code for one in account.refusals})))
    return f". It refused {count(len(account.refusals), 'request')} by its policy ({codes})."


def _meaning(report: AuditReport) -> Iterator[Finding]:
    """Yield what the largest epsilon means for one person, at worst."""
    if report.subject.claims != "dp" or not report.sites:
        return
    most = max(report.sites, key=lambda account: account.worst.counted)
    epsilon, delta, one = most.worst.counted, most.delta, most.unit
    if epsilon <= 0:
        return
    share = right_at_most(epsilon, delta)
    if share > 0.995:
        text = (
            f"For one {one} this promises next to nothing: somebody who knows everything about everybody else might be "
            f"all but sure whether the {one} took part."
        )
        yield Finding(tone="caution", text=text, details=(_GUESS,))
        return
    text = (
        f"For one {one}, at the very worst: somebody who sees all that left {shown(most.site)}, and knows everything "
        f"about everybody else, can guess whether this {one} took part and be right {math.ceil(100 * share - 1e-9)} "
        "times in 100 instead of 50. That nobody can do better is proved; attacks known today do worse."
    )
    yield Finding(tone="plain", text=text, details=(_GUESS,))


_GUESS = (
    "(e^epsilon + delta) / (1 + e^epsilon), from a coin toss before (Kairouz et al. 2015); it rests on secret noise "
    "and on software that does what it says."
)


def right_at_most(epsilon: float, delta: float) -> float:
    """Return how often a guess can be right about whether somebody took part, where a coin decided that.

    (exp(epsilon) + delta) / (1 + exp(epsilon)).

    Args:
        epsilon: >= 0.
        delta: In [0, 1).

    References:
        Kairouz, Oh, Viswanath 2015, arXiv:1311.0776, theorem 2.1 (all tests of an (epsilon, delta) mechanism).
    """
    return (1.0 + delta * math.exp(-epsilon)) / (1.0 + math.exp(-epsilon))


def _left(report: AuditReport) -> Iterator[Finding]:
    """Yield what left, in a sentence: what epsilon counts, and what it does not cover."""
    counted = [row for row in report.departures if row.covered == "spent"]
    other = [row for row in report.departures if row.covered == "not-covered"]
    if not counted and not other:
        return
    said = [f"{_small_first(row.what)} ({row.times})" for row in counted]
    text = f"What left and is counted: {listed(shortened(said))}." if said else "No update has left."
    if other:
        text += (
            f" What epsilon does not cover: {listed(shortened([_small_first(row.what) for row in other]))}."
        )
    yield Finding(tone="plain", text=text)


def _small_first(text: str) -> str:
    """Return what comes before a colon, beginning small: for a list in a sentence."""
    short = text.split(":", maxsplit=1)[0]
    return f"{short[0].lower()}{short[1:]}"


def _records(report: AuditReport) -> Iterator[Finding]:
    """Yield one sentence about ledgers, claims and heads, where all of them that were checked hold."""
    parts = {
        "ledger-chain": "every ledger entry is as it was written",
        "claim": "what the server was told agrees with it",
        "heads": "nothing that others have seen is gone",
        "policy": "all work kept within the hospital's policy",
    }
    held = [
        words
        for name, words in parts.items()
        if (found := [check for check in report.checks if check.name == name])
        and all(check.status == "ok" for check in found)
    ]
    if held:
        text = listed(held)
        yield Finding(tone="good", text=f"{text[0].upper()}{text[1:]}.")


def _attacks(report: AuditReport) -> Iterator[Finding]:
    """Yield what an attack could show."""
    audit = report.evidence.audit
    if audit is None or any(check.name == "attack" and check.status == "violated" for check in report.checks):
        return
    text = (
        f"An attack that saw every single step could show epsilon {down(shown_by(audit))}, and "
        f"{up(audit['epsilon_pld'])} is proved for the same steps: the truth lies in between."
    )
    if report.subject.claims != "dp":
        text = f"{text} (The attack did not know the seed. Who knows it needs no attack.)"
    yield Finding(tone="plain", text=text, details=(report.evidence.origin,))


def _from_checks(report: AuditReport, status: Status) -> Iterator[Finding]:
    """Yield the sentence of each kind of check with a status; the headline has said that noise was seeded."""
    tone = "bad" if status == "violated" else "caution"
    for name, _, members in grouped(report.checks):
        found = [check for check in members if check.status == status]
        if not found or (name == "randomness" and report.subject.claims == "seeded"):
            continue
        others = len(found) - 1
        more = f" The same holds for {count(others, 'other site')}." if others else ""
        yield Finding(tone=tone, text=f"{found[0].text}{more}", details=found[0].details)  # type: ignore[arg-type] # one of the two


def _missing(report: AuditReport) -> Iterator[Finding]:
    """Yield what was not provided, in one sentence."""
    names = [title(name) for name, status, _ in grouped(report.checks) if status == "not-provided"]
    if names:
        text = f"Not provided: {listed(shortened([name[0].lower() + name[1:] for name in names]))}."
        yield Finding(tone="caution", text=text)


def _people(report: AuditReport) -> Iterator[Finding]:
    """Yield how much is left to people."""
    if report.gaps:
        text = (
            f"{count(len(report.gaps), 'question')} only a person can answer; they are at the end, in amber."
        )
        yield Finding(tone="caution", text=text)


def _if_secret(account: SiteAccount) -> str:
    """Return the reservation that a seeded figure needs."""
    return "" if account.claims == "dp" else ", had the noise been secret"


def _need(number: int) -> str:
    """Return the verb that goes with a number of points."""
    return "needs" if number == 1 else "need"
