"""The privacy statement in plain words, never more than the claims of the sites allow.

Guarantees (tests/unit/server/test_report_verdict.py):
    Seeded noise and missing noise are never called private; the weakest claim of any site decides.
    A rounded bound is still a bound: epsilons in sentences are rounded up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from server.report.document import PrivacyClaim, PrivacyFacts, Report
from server.report.words import shown, small, up

Tone = Literal["plain", "good", "caution", "bad"]

_EPSILON_TOO_LARGE = 10.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One sentence or two of the verdict, the figures behind them, and how to colour them."""

    tone: Tone
    text: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What one site has spent: epsilon by `accountant` (PLD, else RDP), and by RDP."""

    site: str
    epsilon: float
    accountant: Literal["PLD", "RDP"]
    rdp: float | None


def claim_of(report: Report) -> PrivacyClaim:
    """Return the weakest claim of any site that took part; `none` where nothing is claimed."""
    claims = {row.claim for row in report.privacy.per_site} if report.privacy else {"none"}
    if not claims or "none" in claims:
        return "none"
    return "seeded" if "seeded" in claims else "dp"


def banner(report: Report) -> Finding | None:
    """Return what must stand above everything else, or None where a privacy claim is made."""
    claim = claim_of(report)
    if claim == "none":
        return Finding(
            tone="bad",
            text="NO PRIVACY. This model was trained without differential privacy. "
            "Treat its weights like patient data.",
        )
    if claim == "seeded":
        return Finding(
            tone="caution",
            text="SEEDED SIMULATION: NO PRIVACY CLAIM. The noise can be computed again from the seed. "
            "The epsilons below are what the same plan would spend with secure noise.",
        )
    return None


def privacy_findings(report: Report) -> tuple[Finding, ...]:
    """Say what is promised to a patient."""
    claim = claim_of(report)
    if report.privacy is None or claim == "none":
        who = "every site" if report.privacy is None else "at least one site"
        text = f"No privacy is promised to anyone: {who} sent updates without calibrated noise."
        return (Finding(tone="bad", text=text),)
    if claim == "seeded":
        worst = most_spent(report)
        bound = (
            f"epsilon {up(worst.epsilon)} at most (delta = {small(report.privacy.delta)})" if worst else ""
        )
        spent = f" With secure noise the same plan would have spent {bound}." if worst else ""
        return (
            Finding(
                tone="caution",
                text=f"No privacy claim is made: this is a simulation with seeded noise.{spent}",
                details=(_accountants(worst),) if worst else (),
            ),
        )
    return _promise(report, report.privacy)


def _promise(report: Report, privacy: PrivacyFacts) -> tuple[Finding, ...]:
    """Say what epsilon means for one patient, and where the promise is weak."""
    worst = most_spent(report)
    if worst is None:
        return (Finding(tone="bad", text="Sites claim differential privacy, but report no finite epsilon."),)
    epsilon, one = worst.epsilon, privacy.unit
    factor = up(math.exp(epsilon)) if epsilon < 14 else "more than a million"
    found = [
        Finding(
            tone="plain" if epsilon <= _EPSILON_TOO_LARGE else "caution",
            text=f"Privacy: at every site, for every {one}, epsilon is at most {up(epsilon)} "
            f"(delta = {small(privacy.delta)}). In plain words: taking part changes the odds of any "
            f"conclusion about that {one} by a factor of at most {factor}, "
            f"except with a probability of 1 in {1 / privacy.delta:,.0f}.",
            details=(_accountants(worst), "The factor is e to the epsilon: a worst case, not a forecast."),
        )
    ]
    if epsilon > _EPSILON_TOO_LARGE:
        found.append(
            Finding(tone="caution", text="A bound this loose promises little: do not rely on it alone.")
        )
    if privacy.unit == "record":
        found.append(
            Finding(
                tone="caution",
                text="The unit of privacy is one record, not one patient: "
                "a patient with several scans is protected less.",
            )
        )
    pairs = [(row.epsilon_pld, row.epsilon_rdp) for row in privacy.per_site]
    if any(pld is not None and rdp is not None and pld > rdp * (1 + 1e-9) for pld, rdp in pairs):
        found.append(
            Finding(
                tone="bad",
                text="The two accountants disagree (PLD above RDP): have the accounting checked before use.",
            )
        )
    return tuple(found)


def most_spent(report: Report) -> Spent | None:
    """Return where most was spent, or None where any site has no finite epsilon to show."""
    rows = report.privacy.per_site if report.privacy else ()
    known = [
        Spent(
            site=row.site,
            epsilon=best,
            accountant="RDP" if row.epsilon_pld is None else "PLD",
            rdp=row.epsilon_rdp,
        )
        for row in rows
        if (best := row.epsilon_rdp if row.epsilon_pld is None else row.epsilon_pld) is not None
    ]
    if not known or len(known) < len(rows) or not all(math.isfinite(spent.epsilon) for spent in known):
        return None
    return max(known, key=lambda spent: spent.epsilon)


def _accountants(worst: Spent) -> str:
    """Return which accountant says what, and where most was spent."""
    coarser = worst.accountant == "PLD" and worst.rdp is not None
    rdp = f"; the coarser RDP accountant gives {up(worst.rdp)}" if coarser and worst.rdp is not None else ""
    return f"By the {worst.accountant} accountant{rdp}. Most was spent at {shown(worst.site)}."
