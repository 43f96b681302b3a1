"""What a report holds: facts of one run as frozen values, filled by whoever ran it.

Everything here is known at the centre or, in a simulation, on the one machine that plays all sites.
`curves` and `latents` are the exception: they are data of the sites, so they are filled in simulation only
and the page says so.

What it does not do: compute metrics, privacy or intervals. It only refuses what does not fit together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from server.report.attacks import AttackFacts
from server.report.slices import Panels

PrivacyClaim = Literal["dp", "seeded", "none"]
Status = Literal["admitted", "failed", "rejected", "late", "silent", "unused"]
Better = Literal["higher", "lower", "neither"]
Interval = tuple[float, float]

MEAN = "predict-the-mean"
SITE_MEAN = "site-mean"
"""Every site's test records are predicted as the mean of that site's own training records."""
LINEAR = "linear"
LINEAR_DP = "linear-dp"
WARM_START = "warm-start"
"""The public weights that every arm starts from, as they are: what no hospital has added anything to."""
FEDERATED = "federated"
FEDERATED_DP = "federated-dp"
CENTRALISED = "centralised"
ALONE = "alone:"
OWN_PATIENTS = "own patients"
"""`alone(OWN_PATIENTS)` is the arm in which every site's own model is judged on that site's own patients."""

STATUSES: tuple[Status, ...] = ("admitted", "failed", "rejected", "late", "silent", "unused")
_HASH = re.compile(r"[0-9a-f]{64}")


def status_of(reason: str) -> tuple[Status, str]:
    """Return how a contribution that did not count is shown: its status, and a detail.

    Args:
        reason: As `server.admission.Rejection.reason` gives it: `no-reply`, `late`, `site-failed:CODE`,
            `round-lost` (admitted, but too few others were), or why the update was refused.
    """
    code, _, detail = reason.partition(":")
    others: dict[str, Status] = {
        "no-reply": "silent",
        "late": "late",
        "site-failed": "failed",
        "round-lost": "unused",
    }
    return (others[code], detail) if code in others else ("rejected", reason)


def alone(site: str) -> str:
    """Return the name of the arm in which `site` trains on its own."""
    return f"{ALONE}{site}"


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The trained model.

    Attributes:
        family: As in `vae.spec.ModelSpec`.
        parameters: Number of parameters, >= 0.
        latent_size: Z.
        input_shape: (C, *S), or (F,) for a table.
        sharing: Which parameters travel: `all`, `decoder`, `encoder` or `norm-local`.
    """

    family: str
    parameters: int
    latent_size: int
    input_shape: tuple[int, ...]
    sharing: str

    @property
    def is_image(self) -> bool:
        """Return whether the input has spatial axes."""
        return len(self.input_shape) > 1


@dataclass(frozen=True, kw_only=True)
class PlanFacts:
    """The public constants of the privacy plan.

    Attributes:
        sampling_probability: q, of a patient in a step.
        noise_multiplier: Standard deviation of the noise over `max_grad_norm` [dimensionless].
        max_grad_norm: Clip norm of a patient's gradient.
        divisor: Public constant that the noisy sum is divided by.
        max_records_per_patient: Cap on the records a patient contributes to a step; None: all.
        steps_per_round: Steps asked of a site in one round.
        bands: Of banded noise, which is charged as ceil(steps / bands) steps a round; None: independent noise.
    """

    sampling_probability: float
    noise_multiplier: float
    max_grad_norm: float
    divisor: float
    max_records_per_patient: int | None = None
    steps_per_round: int | None = None
    bands: int | None = None


@dataclass(frozen=True, kw_only=True)
class SitePrivacy:
    """What one site has spent in this run.

    Attributes:
        site: Name.
        epsilon_rdp: Upper bound by Renyi accounting; None or infinite where there is none.
        epsilon_pld: Upper bound by the privacy loss distribution; None or infinite where there is none.
        steps: Releases so far.
        claim: `dp`: noise from a secure source. `seeded`: noise that can be computed again, so no claim.
            `none`: no noise.
        cap: Epsilon that the site allows in all, as its ledger has it; None without a ledger.
    """

    site: str
    epsilon_rdp: float | None
    epsilon_pld: float | None
    steps: int
    claim: PrivacyClaim
    cap: float | None = None


@dataclass(frozen=True, kw_only=True)
class RoundEpsilon:
    """What a site had spent in all at the end of a round (1-based)."""

    round: int
    site: str
    epsilon_rdp: float
    epsilon_pld: float


@dataclass(frozen=True, kw_only=True)
class PrivacyFacts:
    """The privacy statement of the run.

    Attributes:
        unit: Whom epsilon protects: `patient` or `record`.
        delta: In (0, 1).
        per_site: One entry a site that took part.
        curve: Cumulative epsilon by round and site; may be empty.
        plan: Public constants; None where the sites' plans differ.
        not_covered: What the statement does not cover, one plain sentence each.
    """

    unit: Literal["patient", "record"]
    delta: float
    per_site: tuple[SitePrivacy, ...]
    curve: tuple[RoundEpsilon, ...] = ()
    plan: PlanFacts | None = None
    not_covered: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One metric of one arm on the common test set, with a 95 % bootstrap interval (None: not computed)."""

    arm: str
    task: str
    metric: str
    value: float
    ci95: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class DifferenceRow:
    """metric(arm_a) - metric(arm_b) on the same test scans, with a paired 95 % bootstrap interval."""

    arm_a: str
    arm_b: str
    task: str
    metric: str
    value: float
    ci95: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class MetricFacts:
    """How to read a metric that `server.report.measures` does not know.

    Attributes:
        name: As in `ResultRow.metric`.
        label: In words.
        better: Which way is better.
        chance: Value of a coin toss; None where that has no meaning.
        caution: A sentence printed wherever the metric is shown; may be empty.
    """

    name: str
    label: str
    better: Better
    chance: float | None = None
    caution: str = ""


@dataclass(frozen=True, kw_only=True)
class RejectedRow:
    """A contribution that did not count; `site` is the name it came under, enrolled or not.

    The page calls it refused only where `status_of(reason)` says so.
    """

    round: int
    site: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Attendance:
    """How one site fared in one round; `detail` is a failure code or the reason of a rejection."""

    round: int
    site: str
    status: Status
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds: wall clock in all, CPU in training, and what a round costs beside training."""

    wall_s: float
    train_cpu_s: float
    overhead_s_per_round: float


@dataclass(frozen=True, kw_only=True)
class SiteCurve:
    """Training loss of a site in a round [nats a record]; simulation only, else it stays at the site."""

    site: str
    round: int
    reconstruction: float
    kl: float


@dataclass(frozen=True, kw_only=True)
class LatentUse:
    """KL of each latent dimension [nats, Z values] after a round, and how many count as active."""

    round: int
    kl_per_latent: tuple[float, ...]
    active_units: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """One federated run, simulated or real.

    Attributes:
        name: Of the run.
        created: ISO date or date and time.
        seed: Of the simulation.
        engine: `local`, `ray` or `deployment`.
        simulated: Whether one machine played all sites.
        rounds_planned: Rounds asked for.
        rounds_completed: Rounds that reached their quorum.
        sites: Enrolled sites.
        model: The model.
        privacy: The privacy statement; None: trained without privacy.
        results: All arms, all metrics.
        differences: Paired comparisons of arms.
        metrics: How to read metrics of the caller's own; known ones need no entry.
        primary: (task, metric) that the verdict is about; None: the first detection metric, else the first.
        rejected: Updates that admission refused.
        participation: How each site fared in each round; a missing pair means "not asked".
        faults: The faults that were injected, as configured (JSON values only).
        timings: Seconds.
        weights_sha256: Hash of the final weights; None if there are none.
        curves: Losses of the sites; simulation only.
        latents: Use of the latent dimensions; simulation only.
        panels: Images; None for tables.
        attacks: What attacks have shown; None: none was made.
        synthetic: Whether the data are made up: then every figure says so.
        data_note: Where the data come from, their licence and citation.
        environment: Names and versions.
        config: The resolved configuration, as YAML text.
    """

    name: str
    created: str
    seed: int
    engine: str
    rounds_planned: int
    rounds_completed: int
    sites: tuple[str, ...]
    model: ModelFacts
    privacy: PrivacyFacts | None
    results: tuple[ResultRow, ...]
    timings: Timings
    synthetic: bool
    data_note: str
    weights_sha256: str | None
    simulated: bool = True
    differences: tuple[DifferenceRow, ...] = ()
    metrics: tuple[MetricFacts, ...] = ()
    primary: tuple[str, str] | None = None
    rejected: tuple[RejectedRow, ...] = ()
    participation: tuple[Attendance, ...] = ()
    faults: Mapping[str, object] = field(default_factory=dict)
    curves: tuple[SiteCurve, ...] = ()
    latents: tuple[LatentUse, ...] = ()
    panels: Panels | None = None
    attacks: AttackFacts | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    config: str = ""

    def __post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            raise ValueError(f"report {self.name!r}: " + "; ".join(problems))

    @property
    def arms(self) -> tuple[str, ...]:
        """Return all arms: baselines, sites alone, federated, federated with privacy, centralised, others."""
        seen = dict.fromkeys(row.arm for row in self.results)
        baselines = (MEAN, SITE_MEAN, LINEAR, LINEAR_DP, WARM_START)
        order = dict(zip((*baselines, ALONE, FEDERATED, FEDERATED_DP, CENTRALISED), range(9), strict=True))
        return tuple(sorted(seen, key=lambda arm: order.get(ALONE if arm.startswith(ALONE) else arm, 9)))

    @property
    def subject(self) -> str:
        """Return the arm that the report is about: federated with privacy if there is one, else federated."""
        return FEDERATED_DP if any(row.arm == FEDERATED_DP for row in self.results) else FEDERATED


def _problems(report: Report) -> list[str]:
    """Return what does not fit together."""
    known = set(report.sites)
    rows: list[tuple[str, set[str]]] = [
        ("participation", {row.site for row in report.participation}),
        ("curves", {row.site for row in report.curves}),
    ]
    if report.privacy is not None:
        rows.append(("privacy.per_site", {row.site for row in report.privacy.per_site}))
        rows.append(("privacy.curve", {row.site for row in report.privacy.curve}))
    problems = [
        f"{where} names unknown sites {sorted(sites - known)}; enrol them in sites"
        for where, sites in rows
        if not sites <= known
    ]
    if len(known) != len(report.sites):
        problems.append("a site occurs twice in sites")
    if not 0 <= report.rounds_completed <= report.rounds_planned:
        problems.append(
            f"rounds_completed must be in 0..{report.rounds_planned}, not {report.rounds_completed}"
        )
    if report.privacy is not None and not 0 < report.privacy.delta < 1:
        problems.append(f"privacy.delta must be in (0, 1), not {report.privacy.delta}")
    if report.weights_sha256 is not None and not _HASH.fullmatch(report.weights_sha256):
        problems.append("weights_sha256 must be 64 hexadecimal digits")
    if not report.simulated and (report.curves or report.latents):
        problems.append(
            "curves and latents are data of the sites and belong in a report of a simulation only"
        )
    cells = [(row.round, row.site) for row in report.participation]
    if len(set(cells)) != len(cells):
        problems.append("participation names a site twice in one round")
    return problems
