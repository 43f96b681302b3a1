"""Why work was refused, in a sentence for a data-protection officer: one for every code there is."""

from __future__ import annotations

from collections.abc import Mapping

from privacy.errors import RefusalCode

REFUSALS: Mapping[RefusalCode, str] = {
    RefusalCode.KEY_REUSED: "The server asked for the same piece of work again with other settings; it was paid for "
    "once, and anything else would have been unpaid.",
    RefusalCode.NOT_RESERVED: "A result was about to leave whose cost had not been written down beforehand.",
    RefusalCode.ALREADY_COMMITTED: "A second, different result was about to leave for work that is paid for once.",
    RefusalCode.STEPS_EXCEED_RESERVATION: "More training steps had been done than were paid for.",
    RefusalCode.BUDGET_EXHAUSTED: "It would have taken what is spent on a patient over the cap. Nothing was trained.",
    RefusalCode.RUN_BUDGET_EXHAUSTED: "It would have taken this study over what the policy allows one study. Nothing "
    "was trained.",
    RefusalCode.OFF_PLAN: "It was not the next part of the schedule that was fixed when the ledger began, or the "
    "schedule had been ended by lowering the cap.",
    RefusalCode.ROLLED_BACK: "Somebody has seen a newer state of this ledger: an older copy had been put back, so what "
    "was spent since was missing from it.",
    RefusalCode.FORKED: "Somebody has seen other entries in this ledger: it had been written anew.",
    RefusalCode.LEDGER_UNAVAILABLE: "The ledger could not be read or written (disk, rights, another program), and "
    "without it nothing runs.",
    RefusalCode.UPDATE_LOST: "The result of paid work was asked for again and is no longer there; making it anew would "
    "have been a second, unpaid result.",
    RefusalCode.SEEDED: "The noise would have come from a seed that others know, and could have been subtracted.",
    RefusalCode.UNIT: "The study protects single scans; a patient with several would have been protected less than "
    "this ledger promises.",
    RefusalCode.POLICY_NO_PRIVACY: "The study asked for plain training, without any noise.",
    RefusalCode.POLICY_MODEL: "The model is not among those that the hospital has reviewed and listed in its policy.",
    RefusalCode.POLICY_SITES: "Fewer hospitals took part than the policy asks for, so that this one would have stood "
    "out.",
    RefusalCode.POLICY_METRIC: "A figure was asked for that the policy does not let out, or with less noise than it "
    "demands.",
    RefusalCode.COHORT_TOO_SMALL: "Fewer patients could take part than the policy's min_patients.",
}

UNKNOWN = "This version of the software does not know the code; ask who wrote the entry."


def explain_refusal(code: str) -> str:
    """Return what a code of a REFUSE entry means."""
    return REFUSALS[RefusalCode(code)] if code in set(RefusalCode) else UNKNOWN
