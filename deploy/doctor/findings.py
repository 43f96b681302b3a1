"""What a check says: how bad it is, what was found, and the way out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad a finding is, worst first; part of the interface of `--json`.

    A check is skipped where it does not apply, or where another one that it rests on has failed.
    """

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"
    SKIPPED = "skipped"
    OK = "ok"


@dataclass(frozen=True, kw_only=True)
class Said:
    """One thing that a check says, before it carries the check's name.

    Attributes:
        severity: How bad it is.
        found: What was found, one sentence.
        fix: The way out, one sentence that names a file or setting; empty where nothing is to be done.
    """

    severity: Severity
    found: str
    fix: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a check found.

    Attributes:
        id: Of the check, stable, such as `net.dns`.
        severity: How bad it is.
        found: What was found, one sentence.
        fix: The way out, one sentence that names a file or setting; empty where nothing is to be done.
    """

    id: str
    severity: Severity
    found: str
    fix: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return the fields as JSON values."""
        return {"id": self.id, "severity": self.severity.value, "found": self.found, "fix": self.fix}


def ok(found: str) -> Said:
    """Say that something is as it should be."""
    return Said(severity=Severity.OK, found=found)


def note(found: str, fix: str = "") -> Said:
    """Say something that is good to know, and nothing to worry about."""
    return Said(severity=Severity.NOTE, found=found, fix=fix)


def warning(found: str, fix: str) -> Said:
    """Say that something works, and should be different."""
    return Said(severity=Severity.WARNING, found=found, fix=fix)


def error(found: str, fix: str) -> Said:
    """Say that something does not work."""
    return Said(severity=Severity.ERROR, found=found, fix=fix)


def skipped(found: str) -> Said:
    """Say why there was nothing to check."""
    return Said(severity=Severity.SKIPPED, found=found)
