"""Run checks, one after another, each with a deadline.

Guarantees (tests/unit/doctor/test_running.py): whatever a check does, all others run; one that raises is an error with
the name of the exception and nothing of its text, which may tell of patients; one that does not come back in time is an
error too, and is left behind in a thread that does not hold up the end of the process.
"""

from __future__ import annotations

import os
import queue
import threading
import traceback
from collections.abc import Iterable

from deploy.doctor.checks import Check, Visit
from deploy.doctor.findings import Finding, Severity
from deploy.ledger.failures import TRACEBACK_VARIABLE

_BLOCKING = frozenset((Severity.ERROR, Severity.SKIPPED))


def examine(visit: Visit, checks: Iterable[Check]) -> tuple[Finding, ...]:
    """Return what all checks found, in their order.

    A check is skipped where one that it needs has failed, or was skipped, among those that were to run.
    """
    found: list[Finding] = []
    failed: set[str] = set()
    for check in checks:
        said = _answer(check, visit, failed)
        found += said
        if said and all(one.severity in _BLOCKING for one in said):
            failed.add(check.id)
    return tuple(found)


def _answer(check: Check, visit: Visit, failed: set[str]) -> tuple[Finding, ...]:
    """Return what a check found, or why it was not run."""
    if check.on_line and visit.site.connection is None:
        return (_skip(check, f"{visit.file.name} has no section `connection`"),)
    missing = next((need for need in check.needs if need in failed), None)
    if missing is not None:
        return (_skip(check, f"needs {missing}"),)
    return _within(max(visit.timeout_s, check.at_least_s), check, visit)


def _within(seconds: float, check: Check, visit: Visit) -> tuple[Finding, ...]:
    """Return what a check found, if it comes back in time."""
    answers: queue.SimpleQueue[tuple[Finding, ...]] = queue.SimpleQueue()
    thread = threading.Thread(target=lambda: answers.put(_safely(check, visit)), name=check.id, daemon=True)
    thread.start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        sentence = f"this check did not come to an end within {seconds:g} s"
        fix = f"try it alone with more time: --only {check.id} --timeout {max(60, 4 * round(seconds))}"
        return (Finding(id=check.id, severity=Severity.ERROR, found=sentence, fix=fix),)


def _safely(check: Check, visit: Visit) -> tuple[Finding, ...]:
    """Return what a check found; that it raised is a finding too."""
    try:
        return check.findings(visit)
    except Exception as problem:  # noqa: BLE001 - whatever it is, the other checks have to run
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exc()
        sentence = f"this check broke off with {type(problem).__name__}"
        fix = f"report it with what {TRACEBACK_VARIABLE}=1 and --only {check.id} show, after a look for names in it"
        return (Finding(id=check.id, severity=Severity.ERROR, found=sentence, fix=fix),)


def _skip(check: Check, why: str) -> Finding:
    """Return that a check was not run."""
    return Finding(id=check.id, severity=Severity.SKIPPED, found=why)
