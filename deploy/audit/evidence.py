"""What attacks have shown: read from beside a run, checked, and put beside what was claimed.

A file is not believed where its figures can be recomputed. What it does not do: attack (`attacks`), or take an attack
that found nothing for a proof.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deploy.audit.document import Check, Evidence, SiteAccount, Status
from privacy.accounting import RdpAccountant, Release, epsilons
from privacy.errors import PlanError, PrivacyError
from server.report.attacks import AttackFacts, MembershipFacts, MemorisationFacts
from server.report.evidence import attack_rows
from server.report.words import small, up

FILES = {"audit": "audit.json", "control": "audit-control.json", "membership": "audit-membership.json"}

RELEASED = "attack.json"

_NUMBERS = (
    "delta",
    "epsilon_rdp",
    "epsilon_pld",
    "lower_bound",
    "confidence",
    "num_canaries",
    "steps",
    "auc",
)


def found_beside(folder: Path) -> Evidence | None:
    """Return the audits that a run has left in a folder, None if it left none.

    Raises:
        PlanError: a file is there and is no audit.
    """
    found = {name: _read(folder / file) for name, file in FILES.items() if (folder / file).is_file()}
    if "audit" not in found:
        return None
    released = folder / RELEASED
    return Evidence(
        **found,
        released=_read_released(released) if released.is_file() else None,
        origin=f"Made by the run itself ({folder.name}/{FILES['audit']}).",
    )


def demonstrated_for(account: SiteAccount, evidence: Evidence) -> float | None:
    """Return the epsilon that an attack has shown for what a site did, None if it was made for something else.

    It holds for a site whose history contains the audited releases: more releases lose no less.
    """
    audit = evidence.audit
    if audit is None or account.delta > audit["delta"] * (1 + 1e-9):
        return None
    said = Release.from_dict(audit["claimed"][0])
    for cohort in account.cohorts:
        for release in cohort.releases:
            if dataclasses.replace(release, steps=said.steps) == said and release.steps >= said.steps:
                return shown_by(audit)
    return None


def check_evidence(evidence: Evidence) -> tuple[Check, ...]:
    """Return what the attacks say about the claim; what was not made is said, too."""
    return (
        _audit_check(evidence.audit),
        _control_check(evidence.control),
        _membership_check(evidence.membership),
        *_released_checks(evidence.released),
    )


def _audit_check(audit: Mapping[str, Any] | None) -> Check:
    """Return what the attack on every step says."""
    if audit is None:
        text = "No attack was made on the training itself: epsilon is proved on paper and not tested."
        return Check(name="attack", site="", status="not-provided", text=text)
    claim, bound = _claimed_epsilon(audit), shown_by(audit)
    details = (
        f"{audit['num_canaries']:,} planted made-up patients, {audit['steps']:,} steps, confidence "
        f"{100 * audit['confidence']:g} %, delta {small(audit['delta'])}",
    )
    if abs(claim - audit["epsilon_pld"]) > 1e-3 * max(1.0, claim):
        said = audit["epsilon_pld"]
        text = (
            f"The file of the attack says that epsilon {said:.4f} was claimed; recomputed it is {claim:.4f}."
        )
        return Check(name="attack", site="", status="violated", text=text, details=details)
    if audit["violated"] or bound > claim:
        text = (
            f"An attack has refuted the claim: epsilon {claim:.2f} was claimed for the audited steps, and with at "
            f"least {100 * audit['confidence']:g} % confidence more than that was lost. Do not release anything."
        )
        return Check(name="attack", site="", status="violated", text=text, details=details)
    text = (
        f"An attack that saw every single step could show a loss of epsilon {down(bound)}; proved is that the same "
        f"steps lose {up(claim)} at most. The truth lies in between (with {100 * audit['confidence']:g} % confidence), "
        "and the claim stands."
    )
    return Check(name="attack", site="", status="ok", text=text, details=details)


def _control_check(control: Mapping[str, Any] | None) -> Check:
    """Return whether the attack would have noticed missing noise."""
    if control is None:
        text = "It was not tested whether the attack would have noticed missing noise."
        return Check(name="control", site="", status="not-provided", text=text)
    if control["violated"]:
        text = "The same attack on a job whose noise was taken away found that out: it has teeth."
        return Check(name="control", site="", status="ok", text=text)
    text = (
        "The same attack did not notice that the noise of a job was taken away, so that it shows nothing here. "
        "Too few steps, or too large a claim."
    )
    return Check(name="control", site="", status="attention", text=text)


def _membership_check(membership: Mapping[str, Any] | None) -> Check:
    """Return what somebody learns who holds the model alone."""
    if membership is None:
        text = "No attack was made on the trained model alone (did this patient take part?)."
        return Check(name="membership", site="", status="not-provided", text=text)
    auc, inside = membership["auc"], membership["num_included"]
    outside = membership["num_canaries"] - inside
    chance = 200 * math.sqrt(
        (inside + outside + 1) / (12 * max(1, inside * outside))
    )  # 2 standard errors [%]
    status: Status = "violated" if membership["violated"] else "ok"
    text = (
        "Somebody who holds only a trained model, shown one who took part and one who did not, told them apart "
        f"{100 * max(auc, 1 - auc):.0f} times in 100. A coin does so 50 times, give or take {chance:.0f}."
    )
    more = "This refutes the claim." if membership["violated"] else "A weaker attack than the one above."
    details = (f"{membership['num_canaries']:,} made-up patients; {membership['sees']}",)
    return Check(name="membership", site="", status=status, text=f"{text} {more}", details=details)


def _released_checks(released: AttackFacts | None) -> Iterator[Check]:
    """Yield what attacks on the released model itself say."""
    names = {"Did this patient take part?": "took-part", "Does the model draw people it has seen?": "copies"}
    marks: dict[str, Status] = {"plain": "ok", "good": "ok", "caution": "attention", "bad": "violated"}
    for row in attack_rows(released or AttackFacts()):
        if row.name in names:
            status = "not-provided" if row.result == "not provided" else marks[row.tone]
            text = f"Of the released model: {row.name} {row.result[0].upper()}{row.result[1:]}. {row.reading}"
            yield Check(name=names[row.name], site="", status=status, text=text)


def _claimed_epsilon(audit: Mapping[str, Any]) -> float:
    """Return the epsilon of what was claimed, recomputed: what a file says of it is not believed."""
    return epsilons([Release.from_dict(item) for item in audit["claimed"]], audit["delta"]).pld


def shown_by(audit: Mapping[str, Any]) -> float:
    """Return the larger of the two bounds from below that hold together, with the confidence of the audit.

    One assumes nothing. The other assumes, as a number, that nothing but the amount of noise differs from the claim.
    """
    return float(max(audit["lower_bound"], audit.get("lower_bound_fdp", 0.0)))


def down(bound: float) -> str:
    """Return a lower bound, rounded down: a rounded bound must still be one."""
    return f"{math.floor(round(bound * 100, 6)) / 100:.2f}"


def _read_released(path: Path) -> AttackFacts:
    """Return the attacks on a released model that lie in a file.

    Raises:
        PlanError: it holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        member, copies = found["membership"], found["memorisation"]
        return AttackFacts(
            membership=None if member is None else MembershipFacts(**_with_tuples(member)),
            memorisation=None if copies is None else MemorisationFacts(**_with_tuples(copies)),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise PlanError(path.name, [f"is no attack on a model: {error}"]) from error


def _with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON fields with lists as tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _read(path: Path) -> dict[str, Any]:
    """Return an audit that lies in a file.

    Raises:
        PlanError: it is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        claimed = [Release.from_dict(item) for item in found["claimed"]]
        numbers = [found[name] for name in _NUMBERS]
        valid = (
            bool(claimed)
            and all(isinstance(one, int | float) and math.isfinite(one) for one in numbers)
            and isinstance(found["violated"], bool)
            and isinstance(found["sees"], str)
        )
        if valid:
            RdpAccountant().epsilon(claimed, found["delta"])
            return dict(found)
    except (ValueError, KeyError, TypeError, PrivacyError) as error:
        raise PlanError(path.name, [f"is no audit: {error}"]) from error
    raise PlanError(path.name, ["is no audit: a figure is missing or not finite"])
