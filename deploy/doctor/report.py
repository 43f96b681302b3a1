"""Findings as text for a terminal and as JSON, worst first."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from deploy.doctor.checks import Visit
from deploy.doctor.findings import Finding, Severity
from deploy.ledger.wording import width
from server.report.words import count, shown

FORMAT = 1
"""Of the JSON; raised when the meaning of a field changes."""

_LONGEST = 600
_ORDER = {severity: place for place, severity in enumerate(Severity)}
_NOUNS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "note"}


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """Return findings by severity, those of one severity in the order of the checks."""
    return sorted(findings, key=lambda finding: _ORDER[finding.severity])


def has_error(findings: Sequence[Finding]) -> bool:
    """Return whether something does not work."""
    return any(finding.severity is Severity.ERROR for finding in findings)


def render(visit: Visit, findings: Sequence[Finding]) -> str:
    """Return findings as lines for a person, as wide as the terminal."""
    ids = max((len(finding.id) for finding in findings), default=0)
    lines = [line for finding in worst_first(findings) for line in _lines(finding, ids)]
    return "\n".join([*lines, "", f"{visit.site.site}: {_verdict(findings)}"]) + "\n"


def to_dict(visit: Visit, findings: Sequence[Finding]) -> dict[str, Any]:
    """Return findings as JSON values."""
    severities = Counter(finding.severity for finding in findings)
    return {
        "format": FORMAT,
        "site": visit.site.site,
        "ready": not has_error(findings),
        "totals": {severity.value: severities[severity] for severity in Severity},
        "findings": [finding.to_dict() for finding in worst_first(findings)],
    }


def _lines(finding: Finding, ids: int) -> Iterator[str]:
    """Yield a finding, and its way out under it."""
    head = f"{finding.severity.value:<8} {finding.id:<{ids}}  "
    indent = " " * len(head)
    yield from _wrapped(finding.found, head, indent)
    if finding.fix:
        yield from _wrapped(finding.fix, f"{indent}-> ", f"{indent}   ")


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    """Return a sentence in lines; paths and commands are not broken."""
    return textwrap.wrap(
        shown(text, _LONGEST),
        width(),
        initial_indent=first,
        subsequent_indent=rest,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _verdict(findings: Sequence[Finding]) -> str:
    """Return the last line."""
    severities = Counter(finding.severity for finding in findings)
    told = [count(severities[severity], noun) for severity, noun in _NOUNS.items() if severities[severity]]
    told += [f"{severities[Severity.SKIPPED]} skipped"] if severities[Severity.SKIPPED] else []
    told += [f"{severities[Severity.OK]} ok"]
    return f"{'NOT READY' if has_error(findings) else 'no errors'} ({', '.join(told)})"
