"""Errors of `privacy`.

    PrivacyError
    ├── PlanError               a plan, release or claim is invalid; names every problem at once
    ├── IncompatibleModelError  a model cannot be trained privately; carries every reason and the way out
    ├── AccountingError         the spent budget cannot be computed or read with confidence
    ├── SigningError            a signing key cannot be used
    ├── LedgerError             the ledger cannot be read or written: a full disk, another program, a wrong file
    │   └── TamperedError       the ledger is not what was written; says at which entry, and which rule
    └── RefusedError            work is refused; carries a code from a closed set, never data

Our own code called wrongly raises `ValueError` or `RuntimeError`, never one of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum


class PrivacyError(Exception):
    """Base of every domain error of this package; the message names the thing, the rule and the way out."""


class PlanError(PrivacyError):
    """A plan, release or claim is invalid.

    Attributes:
        problems: One sentence for each problem found; never empty.
    """

    def __init__(self, subject: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(f"{subject}: " + "; ".join(self.problems))


class IncompatibleModelError(PrivacyError):
    """A model cannot be trained with per-patient clipping.

    Attributes:
        reasons: One sentence for each reason, with the way out; never empty.
    """

    def __init__(self, reasons: Sequence[str]) -> None:
        self.reasons = tuple(reasons)
        super().__init__("this model cannot be trained privately: " + "; ".join(self.reasons))


class AccountingError(PrivacyError):
    """The spent budget cannot be computed or read with confidence; nothing may be released until it can."""


class SigningError(PrivacyError):
    """A signing key cannot be used: missing, open to others, or not what it should be."""


class LedgerError(PrivacyError):
    """The ledger cannot be read or written; nothing may run until it can."""


class TamperedError(LedgerError):
    """The ledger is not what was written.

    Attributes:
        entry: Number of the first entry that breaks a rule.
        problem: The rule, and what was found.
    """

    def __init__(self, entry: int, problem: str) -> None:
        self.entry, self.problem = entry, problem
        super().__init__(f"ledger, entry {entry}: {problem}")


class RefusalCode(StrEnum):
    """Why work is refused: the only part of a refusal that may leave a site, and what a `REFUSE` entry holds."""

    KEY_REUSED = "key-reused"
    NOT_RESERVED = "not-reserved"
    ALREADY_COMMITTED = "already-committed"
    STEPS_EXCEED_RESERVATION = "steps-exceed-reservation"
    BUDGET_EXHAUSTED = "budget-exhausted"
    RUN_BUDGET_EXHAUSTED = "run-budget-exhausted"
    OFF_PLAN = "off-plan"
    ROLLED_BACK = "ledger-rolled-back"
    FORKED = "ledger-forked"
    LEDGER_UNAVAILABLE = "ledger-unavailable"
    UPDATE_LOST = "update-lost"
    SEEDED = "seeded-noise"
    UNIT = "unit-not-patient"
    POLICY_NO_PRIVACY = "no-privacy"
    POLICY_MODEL = "model-not-allowed"
    POLICY_SITES = "too-few-sites"
    POLICY_METRIC = "metric-not-allowed"
    COHORT_TOO_SMALL = "cohort-too-small"


class RefusedError(PrivacyError):
    """Work is refused.

    Attributes:
        code: Reason, from a closed set; safe to send.
    """

    def __init__(self, code: RefusalCode, explanation: str = "") -> None:
        self.code = code
        super().__init__(f"{code.value}: {explanation}" if explanation else code.value)
