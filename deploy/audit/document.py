"""What an audit report holds, as frozen values; filled by `collect`, read by everything else.

Statuses, from best to worst: `ok`; `not-provided`, which is shown in amber and never left out; `attention`; `violated`.
What it does not do: open, compute or phrase anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from privacy.accounting import Release
from privacy.adversaries import AdversaryView
from server.report.attacks import AttackFacts

Status = Literal["ok", "not-provided", "attention", "violated"]
Claims = Literal["dp", "seeded", "none"]
Covered = Literal["spent", "not-covered", "not-used", "not-provided"]

STATUSES: tuple[Status, ...] = ("ok", "not-provided", "attention", "violated")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What was audited, when, and with what.

    Attributes:
        kind: `site`: a hospital's own ledger. `run`: a simulated federation.
        name: Of the hospital, or of the experiment.
        source: Name of the file or folder that was read.
        created: ISO 8601 date and time.
        claims: Weakest claim of any site: `seeded` and `none` promise nothing to anybody.
        synthetic: Whether the data are made up.
        data: Where the data come from, in a sentence or two.
        software: Package -> version that the audit ran with.
    """

    kind: Literal["site", "run"]
    name: str
    source: str
    created: str
    claims: Claims
    synthetic: bool
    data: str
    software: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: For programs: the same in every report.
        site: Whose; empty for the report as a whole.
        status: How it came out.
        text: For people, one sentence or two.
        details: The figures behind it.
    """

    name: str
    site: str
    status: Status
    text: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CohortAccount:
    """What was spent on the patients of a cohort: they joined the ledger together, so each has spent the same.

    Attributes:
        cohort: Name in the ledger.
        releases: Everything that counts, in order, neighbours of equal parameters joined.
        counted: Epsilon by the ledger's own rule, which decides; by PLD where there is no ledger.
        settled: The same without work that was reserved and never committed.
        rdp: By the RDP accountant at its best order.
        pld: By the PLD accountant.
    """

    cohort: str
    releases: tuple[Release, ...]
    counted: float
    settled: float
    rdp: float
    pld: float


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Work that a site refused.

    Attributes:
        run: Whose.
        round: Global round.
        code: From the closed set of `privacy.errors.RefusalCode`.
        needed: Epsilon that it would have come to, if it asked for what the run's last round had; None: unknown.
        limit: Epsilon that may not be exceeded: the cap of a patient, or of one run; None where it is not about that.
    """

    run: str
    round: int
    code: str
    needed: float | None
    limit: float | None


@dataclass(frozen=True, kw_only=True)
class RunAccount:
    """What one run has spent at a site.

    Attributes:
        run: Its name.
        first_round: Of those that were reserved.
        last_round: As above.
        committed: Updates that were made and left.
        reserved: Reservations without one; counted in full.
        rdp: Epsilon of this run by RDP.
        pld: By PLD.
        views: What each adversary sees of the run, and the epsilon against it.
    """

    run: str
    first_round: int
    last_round: int
    committed: int
    reserved: int
    rdp: float
    pld: float
    views: tuple[AdversaryView, ...]


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """Public constants under which updates were made; equal ones are one entry.

    Attributes:
        release: Parameters of one round.
        rounds: How many rounds had them.
        constants: Clip norm, divisor, cap on records and the like, as the ledger has them.
        randomness: `os` or `seeded`.
        models: Hashes of the models.
    """

    release: Release
    rounds: int
    constants: Mapping[str, object]
    randomness: str
    models: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SiteAccount:
    """Everything about the spending of one site.

    Attributes:
        site: Its name.
        claims: What its ledger, or else its last claim, promises.
        unit: Whom epsilon protects.
        neighbouring: What the guarantee hides of one unit.
        delta: Of every epsilon here.
        cap: Epsilon that no patient may exceed, now in force; None: nobody counts.
        rule: How costs add up, in a phrase.
        cohorts: In the order of the ledger; at least one.
        runs: In the order of the ledger.
        refusals: In the order of the ledger.
        mechanisms: In the order of the ledger.
        demonstrated: Epsilon that an attack has shown for these parameters; None: not measured for them.
    """

    site: str
    claims: Claims
    unit: str
    neighbouring: str
    delta: float
    cap: float | None
    rule: str
    cohorts: tuple[CohortAccount, ...]
    runs: tuple[RunAccount, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    mechanisms: tuple[Mechanism, ...] = ()
    demonstrated: float | None = None

    @property
    def worst(self) -> CohortAccount:
        """Return the cohort on which most was spent."""
        return max(self.cohorts, key=lambda cohort: (cohort.counted, cohort.pld))


@dataclass(frozen=True, kw_only=True)
class Departure:
    """Something that leaves, or never leaves, a hospital.

    Attributes:
        what: In plain words.
        times: How often, in words.
        to: Who gets it.
        covered: `spent`: part of epsilon. `not-used`: it does not leave. Else as in `Coverage`.
        note: A sentence on its protection.
    """

    what: str
    times: str
    to: str
    covered: Covered
    note: str


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Whether epsilon covers a quantity (`privacy.coverage.Quantity`), with a sentence for everybody."""

    quantity: str
    status: Covered
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What attacks showed; the first three are `privacy.audit.AuditResult.to_dict()`; None was not made.

    Attributes:
        audit: Canaries guessed from every step (white box).
        control: The same on a job with nearly no noise: an attack that misses that shows nothing.
        membership: Made-up patients guessed from the trained model alone (black box).
        released: Who took part, and whose copies its samples are, guessed from the very model that was released.
        origin: Where they come from, in a sentence.
    """

    audit: Mapping[str, Any] | None = None
    control: Mapping[str, Any] | None = None
    membership: Mapping[str, Any] | None = None
    released: AttackFacts | None = None
    origin: str = ""


@dataclass(frozen=True, kw_only=True)
class UtilityRow:
    """One measure of one arm of a run, with its 95 % interval."""

    arm: str
    measure: str
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What noise costs in one measure: with it minus without it, on the same test patients."""

    measure: str
    value: float
    low: float | None
    high: float | None
    outcome: Literal["better", "worse", "unclear", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Utility:
    """How well the model does with and without noise; empty rows never: then there is no `Utility`."""

    rows: tuple[UtilityRow, ...]
    costs: tuple[Cost, ...]


@dataclass(frozen=True, kw_only=True)
class Proof:
    """A ledger at the moment of the audit, for whoever wants to check it.

    Attributes:
        site: Whose.
        size: Entries that hold.
        counts: Kind -> number of entries of that kind.
        root: Merkle root of them.
        tip: Hash of the last.
        key: Public key that signed the last.
        first: ISO time of the first entry.
        last: Of the last.
        head: The signed head, as JSON: keep it, and the ledger can later be held against it.
        command: How to check it without our software.
    """

    site: str
    size: int
    counts: Mapping[str, int]
    root: str
    tip: str
    key: str
    first: str
    last: str
    head: Mapping[str, Any]
    command: str


@dataclass(frozen=True, kw_only=True)
class Disclosure:
    """One item of NIST SP 800-226, its answer and where that comes from; None: not provided."""

    item: str
    answer: str | None
    source: str


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A question that only a person can answer.

    Attributes:
        name: For programs.
        question: What has to be filled in.
        why: Who asks for it.
        registry: Field of the registry entry that waits for it, or empty.
    """

    name: str
    question: str
    why: str
    registry: str = ""


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """An audit of a site or a run.

    Attributes:
        subject: What was audited.
        sites: Spending, a site each; empty where nothing could be read or nothing has privacy.
        checks: Everything that was checked, in the order of the report.
        departures: What left.
        coverage: What epsilon covers; every quantity is here.
        evidence: What attacks showed.
        utility: None: not provided.
        proofs: Ledgers.
        disclosures: NIST SP 800-226.
        gaps: What a person must fill in.
        signed_by: Public key that signs the report; None: nobody does.
    """

    subject: Subject
    sites: tuple[SiteAccount, ...]
    checks: tuple[Check, ...]
    departures: tuple[Departure, ...]
    coverage: tuple[Coverage, ...]
    evidence: Evidence
    utility: Utility | None
    proofs: tuple[Proof, ...]
    disclosures: tuple[Disclosure, ...] = ()
    gaps: tuple[Gap, ...] = field(default=())
    signed_by: str | None = None

    @property
    def status(self) -> Status:
        """Return the worst status of all checks."""
        return worst(check.status for check in self.checks)

    def count(self, *statuses: Status) -> int:
        """Return how many checks came out as one of these."""
        return sum(check.status in statuses for check in self.checks)


def worst(statuses: Iterable[Status]) -> Status:
    """Return the worst of some statuses, `ok` of none."""
    return max(statuses, key=STATUSES.index, default="ok")


def to_dict(value: Any) -> Any:  # noqa: ANN401 - any value of this module
    """Return a value as plain dictionaries, lists, text and numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_dict(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_dict(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_dict(item) for item in value]
    return value
