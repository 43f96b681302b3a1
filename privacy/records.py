"""What a ledger's entries say, as values: the beginning, a piece of work, what was paid for it, what people sign."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from privacy.accounting import Release
from privacy.entries import MAX_INTEGER, MAX_RUN, releases_of
from privacy.errors import PlanError
from privacy.fields import integer_problem
from privacy.filters import FixedPlan, RenyiFilter

FIRST_COHORT = "c0"
_HEX64 = re.compile(r"[0-9a-f]{64}")
Steps = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a request is for; the same work is done and paid for once.

    Attributes:
        run: Names the run.
        round: Global round, >= 0.
        base: SHA-256 of the weights that training starts from.

    Raises:
        PlanError: a field breaks the form of an entry; nothing was asked of the ledger yet.
    """

    run: str
    round: int
    base: str

    def __post_init__(self) -> None:
        problems = integer_problem("round", self.round, low=0, high=MAX_INTEGER)
        if not isinstance(self.run, str) or not 1 <= len(self.run) <= MAX_RUN:
            problems.append(f"run must be a text of 1 to {MAX_RUN} characters, got {self.run!r:.60}")
        elif any("\ud800" <= letter <= "\udfff" for letter in self.run):
            problems.append(f"run must be text that UTF-8 can hold, got {self.run!r:.60}")
        if not isinstance(self.base, str) or _HEX64.fullmatch(self.base) is None:
            problems.append(f"base must be 64 hexadecimal digits, got {self.base!r:.60}")
        if problems:
            raise PlanError("work", problems)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as they stand in an entry."""
        return {"run": self.run, "round": self.round, "base": self.base}


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """Work that was paid for.

    Attributes:
        seq: Number of its entry.
        work: What for.
        releases: What it may do at most.
        cohorts: Whose patients it charges.
        fields: Its whole entry.
        steps: What it did, None until committed: then all counts.
        update: SHA-256 of what left, None until committed.
        committed: Number of the COMMIT entry.
    """

    seq: int
    work: Work
    releases: tuple[Release, ...]
    cohorts: tuple[str, ...]
    fields: Mapping[str, Any]
    steps: Steps | None = None
    update: str | None = None
    committed: int | None = None

    @property
    def cost(self) -> tuple[Release, ...]:
        """Return what counts as spent."""
        if self.steps is None:
            return self.releases
        return tuple(
            dataclasses.replace(release, steps=steps)
            for release, steps in zip(self.releases, self.steps, strict=True)
        )


@dataclass(frozen=True, kw_only=True)
class Genesis:
    """What was fixed before anything was spent.

    Attributes:
        site: Name of the hospital.
        dataset: Fingerprint of the dataset.
        delta: Of every epsilon of this ledger.
        cap: Epsilon that no patient may exceed, as first agreed.
        rule: How costs add up: a filter at one Rényi order, or a schedule.
        key: Public key of the site.
        approvers: Public keys of those who may raise the cap, two at a time.
        claims: `dp`, or `seeded`: a simulation, whose figures are no privacy.
        libraries: Versions of what the mechanism rests on.
    """

    site: str
    dataset: str
    delta: float
    cap: float
    rule: RenyiFilter | FixedPlan
    key: str
    approvers: tuple[str, ...]
    claims: str
    libraries: Mapping[str, str]

    @property
    def order(self) -> int | None:
        """Return the order of the Rényi filter; None with a schedule."""
        return self.rule.order if isinstance(self.rule, RenyiFilter) else None


def cap_statement(dataset: str, current: float, new: float, prev: str) -> dict[str, Any]:
    """Return what an approver signs: this change, after this entry, of this ledger."""
    return {"dataset": dataset, "from": current, "prev": prev, "to": new}


def rotation_statement(dataset: str, key: str, prev: str) -> dict[str, Any]:
    """Return what a new key signs."""
    return {"dataset": dataset, "key": key, "prev": prev}


def rule_of(fields: Mapping[str, Any]) -> RenyiFilter | FixedPlan:
    """Return the rule of a GENESIS entry.

    Raises:
        PlanError: the schedule costs more than the cap.
    """
    rule, epsilon, delta = fields["rule"], fields["cap"], fields["delta"]
    if rule["name"] == "renyi-filter":
        return RenyiFilter(epsilon=epsilon, delta=delta, order=rule["order"])
    plan = FixedPlan(schedule=releases_of(rule["schedule"]), epsilon=epsilon, delta=delta)
    if problems := plan.problems():
        raise PlanError("schedule", problems)
    return plan
