"""`audit.html`: one self-contained page whose first printed sheet a data-protection officer can act on.

Guarantees (tests/unit/deploy/audit/test_page.py, tests/docs/test_audit_renders.py):
    It fetches nothing and runs nothing, and text from outside is escaped (`server.report.rendering`).
    What is not provided is shown in amber; no section is left out because it is empty.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.audit import bars
from deploy.audit.document import AuditReport, Check, SiteAccount, Status
from deploy.audit.evidence import down, shown_by
from deploy.audit.verdict import findings, grouped, headline, title
from server.report.attacks import AttackFacts
from server.report.evidence import attack_rows
from server.report.rendering import STYLE, render_page, svg_uri
from server.report.words import count, number, shown, small, up

_TEMPLATES = Path(__file__).parent / "templates"

ROOM_FOR = 6
"""More sites than this get lower bars, so that the verdict stays on one sheet."""

MAX_ASSUMPTIONS = 4
MAX_TOLD = 12
"""More checks of one kind than this are not told one by one."""

LABELS: Mapping[Status, str] = {
    "ok": "in order",
    "attention": "look at this",
    "not-provided": "not provided",
    "violated": "violated",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """The bar of a site, and the words beside it."""

    site: str
    uri: str
    alt: str
    figure: str
    of: str
    note: str
    tone: str


@dataclass(frozen=True, kw_only=True)
class Group:
    """Checks of one kind: the worst status, those that are told in full, and a note on the others."""

    title: str
    status: Status
    told: tuple[Check, ...]
    note: str


def render(report: AuditReport) -> str:
    """Return the page. The same report gives the same bytes."""
    return render_page(
        _TEMPLATES / "audit.html.j2",
        [STYLE, _TEMPLATES / "audit.css"],
        report=report,
        number=number,
        count=count,
        shown=shown,
        small=small,
        up=up,
        down=down,
        labels=LABELS,
        **_view(report),
    )


def _view(report: AuditReport) -> dict[str, Any]:
    """Return what the template shows, computed."""
    sites = _drawn(report.sites)
    dense = len(sites) > ROOM_FOR
    axis = bars.axis_of(sites)
    audit = report.evidence.audit
    return {
        "headline": headline(report),
        "findings": findings(report),
        "tally": [(status, report.count(status)) for status in LABELS],
        "dense": dense,
        "rows": [_row(account, axis, bars.DENSE if dense else bars.ROOMY) for account in sites],
        "scale": svg_uri(bars.scale(axis)),
        "legend": [(svg_uri(picture), words) for picture, words in bars.legend(sites)] if sites else [],
        "left_out": len(report.sites) - len(sites),
        "groups": [_group(*found) for found in grouped(report.checks)],
        "shown_by_attack": shown_by(audit) if audit is not None else None,
        "attacks": [
            ("Guessing planted patients from every step (white box)", report.evidence.audit),
            ("The same, with the noise taken away (control: must be found)", report.evidence.control),
            ("Guessing who took part from the model alone (black box)", report.evidence.membership),
        ],
        "released": attack_rows(report.evidence.released or AttackFacts())[-2:],
        "claims": report.subject.claims,
        "assumptions": _assumptions(sites),
        "deltas": sorted({account.delta for account in sites}),
        "heads": [(proof, json.dumps(proof.head, sort_keys=True)) for proof in report.proofs],
        "measures": list(dict.fromkeys(row.measure for row in report.utility.rows)) if report.utility else [],
        "arms": list(dict.fromkeys(row.arm for row in report.utility.rows)) if report.utility else [],
        "cells": {(row.arm, row.measure): row for row in report.utility.rows} if report.utility else {},
    }


def _group(name: str, status: Status, members: Sequence[Check]) -> Group:
    """Return checks of one kind as the page shows them: whatever is not in order in full, of the others one."""
    open_ = [check for check in members if check.status != "ok"]
    fine = len(members) - len(open_)
    told = open_[:MAX_TOLD] or members[:1]
    notes = []
    if len(open_) > len(told):
        notes.append(f"{len(open_) - len(told)} more in audit.json.")
    if not open_ and fine > 1:
        notes.append(f"The same holds for {count(fine - 1, 'other site')}.")
    elif open_ and fine:
        notes.append(f"In order at {count(fine, 'site')}.")
    return Group(title=title(name), status=status, told=tuple(told), note=" ".join(notes))


def _assumptions(sites: Sequence[SiteAccount]) -> list[str]:
    """Return what the figures against each adversary rest on, each text once."""
    texts = [view.assumption for one in sites for run in one.runs for view in run.views]
    return list(dict.fromkeys(texts))[:MAX_ASSUMPTIONS]


def _drawn(sites: Sequence[SiteAccount]) -> Sequence[SiteAccount]:
    """Return the sites whose bars are drawn: all of them, or those that spent most, in the order of the report."""
    if len(sites) <= bars.MAX_SITES:
        return sites
    most = sorted(sites, key=lambda account: -account.worst.counted)[: bars.MAX_SITES]
    return [account for account in sites if account in most]


def _row(account: SiteAccount, axis: bars.Axis, shape: bars.Shape) -> Row:
    """Return the bar of a site and its words."""
    worst, cap = account.worst, account.cap
    over = cap is not None and worst.counted > cap * (1 + 1e-9)
    refused = len(account.refusals)
    note = f"{count(refused, 'request')} refused" if refused else "nothing refused"
    if cap is None:
        note = "no budget is kept"
    elif over:
        note = "over its cap"
    return Row(
        site=shown(account.site, 28),
        uri=svg_uri(bars.bar(account, axis, shape)),
        alt=bars.in_words(account),
        figure=up(worst.counted),
        of="no cap" if cap is None else f"of {cap:g}",
        note=note,
        tone="bad" if over else "gap" if cap is None else "",
    )
