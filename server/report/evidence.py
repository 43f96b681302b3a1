"""What attacks have shown, in plain words.

Guarantees (tests/unit/server/test_report_evidence.py): what was not made is said; a bound from below is rounded
down and one from above up; a refuted claim is red.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from server.report.attacks import AttackFacts, Canaries, MembershipFacts, MemorisationFacts
from server.report.words import number, up


@dataclass(frozen=True, kw_only=True)
class AttackRow:
    """One attack in words: name, result, how to read it, and how to colour it."""

    name: str
    result: str
    reading: str
    tone: str


def attack_rows(attacks: AttackFacts) -> tuple[AttackRow, ...]:
    """Return every attack in words; one that was not made is amber."""
    return tuple(_rows(attacks))


def _rows(attacks: AttackFacts) -> Iterator[AttackRow]:
    """Yield the rows of `attack_rows`."""
    gradient, membership, memory = attacks.gradient, attacks.membership, attacks.memorisation
    yield _missing("Made-up patients, every step seen") if gradient is None else _gradient(gradient)
    if attacks.control is not None:
        found = attacks.control.violated
        yield AttackRow(
            name="The same attack with the noise taken away",
            result="found out" if found else "not noticed",
            reading="The attack has teeth."
            if found
            else "The attack above shows little: it misses even this.",
            tone="good" if found else "caution",
        )
    if attacks.black_box is not None:
        box = attacks.black_box
        yield AttackRow(
            name="Made-up patients, trained model alone",
            result=f"AUC {number(box.auc, places=2)}, epsilon ≥ {_down(box.shown)}",
            reading=f"{box.num_canaries:,} patients of noise; a coin toss has AUC 0.50.",
            tone="bad" if box.violated else "plain",
        )
    yield _missing("Did this patient take part?") if membership is None else _membership(membership)
    yield _missing("Does the model draw people it has seen?") if memory is None else _memorisation(memory)


def _gradient(found: Canaries) -> AttackRow:
    """Return the attack on the training itself in words."""
    percent = f"{100 * found.confidence:g} %"
    reading = (
        f"Refuted with {percent} confidence: the software or the figures are wrong. Release nothing."
        if found.violated
        else f"With {percent} confidence the truth lies between what was shown and what is proved."
    )
    return AttackRow(
        name="Made-up patients, every step seen",
        result=f"epsilon ≥ {_down(found.shown)} shown, ≤ {up(found.claimed_pld)} proved (RDP {up(found.claimed_rdp)})",
        reading=f"{reading} {found.num_canaries:,} canaries, {found.steps:,} steps, {found.seconds:.0f} s.",
        tone="bad" if found.violated else "good",
    )


def _membership(found: MembershipFacts) -> AttackRow:
    """Return the membership attack in words."""
    low, high = found.auc_ci95
    rate_low, rate_high = found.true_positive_rate_ci95
    few = "" if found.is_resolved else f" {found.num_non_members} others are too few to see {found.fpr:.0%}."
    how = f"calibrated with {found.num_references} other models" if found.num_references else "not calibrated"
    return AttackRow(
        name="Did this patient take part?",
        result=f"AUC {number(found.auc, places=2)} ({number(low, places=2)} to {number(high, places=2)}), "
        f"found at {found.fpr:.0%} false alarms: {found.true_positive_rate:.0%} "
        f"({rate_low:.0%} to {rate_high:.0%})",
        reading=f"{found.num_members} took part, {found.num_non_members} did not; {how}.{few}",
        tone="caution" if low > 0.5 else "plain",
    )


def _memorisation(found: MemorisationFacts) -> AttackRow:
    """Return the nearest-neighbour test in words."""
    low, high = found.range95
    more = found.share > high
    return AttackRow(
        name="Does the model draw people it has seen?",
        result=f"{found.share:.0%} of {found.num_samples} samples are nearest to a training patient; "
        f"by chance {found.expected:.0%} ({low:.0%} to {high:.0%})",
        reading="More than chance allows: look at these samples before they are shown to anybody."
        if more
        else "No more than chance allows.",
        tone="caution" if more else "plain",
    )


def _missing(name: str) -> AttackRow:
    """Return the row of an attack that was not made."""
    return AttackRow(name=name, result="not provided", reading="This attack was not made.", tone="caution")


def _down(bound: float) -> str:
    """Return a lower bound, rounded down: a rounded bound must still be one."""
    return number(math.floor(round(bound * 100, 6)) / 100, places=2)
