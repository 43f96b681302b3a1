"""What attacks on a run have shown, as facts of a report; `server.report.evidence` puts them into words.

An attack that finds nothing is no proof. What is shown here stands beside epsilon, never in its place.
"""

from __future__ import annotations

from dataclasses import dataclass

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """A bound on epsilon from below: made-up patients joined a training job by coin flips, and were guessed.

    Attributes:
        claimed_pld: What the audited steps were said to spend, by the privacy loss distribution.
        claimed_rdp: The same by Renyi accounting.
        delta: Of every epsilon here.
        lower_bound: Largest refuted epsilon, rigorous for any mechanism.
        lower_bound_fdp: Of the claimed mechanism with less noise; as a number it assumes that only the noise differs.
        confidence: Of both bounds.
        num_canaries: Coins flipped.
        auc: Chance that a canary that is in scores higher than one that is not.
        steps: Audited steps.
        seconds: Wall time.
        violated: Whether the claim is refuted.
        sees: What the guesses were made from.
    """

    claimed_pld: float
    claimed_rdp: float
    delta: float
    lower_bound: float
    lower_bound_fdp: float
    confidence: float
    num_canaries: int
    auc: float
    steps: int
    seconds: float
    violated: bool
    sees: str

    @property
    def shown(self) -> float:
        """Return the larger bound."""
        return max(self.lower_bound, self.lower_bound_fdp)


@dataclass(frozen=True, kw_only=True)
class MembershipFacts:
    """Who took part, guessed from the released model alone: by how well it reconstructs a patient.

    Attributes:
        auc: Chance that a patient who took part scores higher than one who did not.
        auc_ci95: Its interval.
        true_positive_rate: Members found where at most `fpr` of the others are accused.
        true_positive_rate_ci95: Its interval.
        fpr: Tolerated false-positive rate.
        is_resolved: Whether there are enough other patients to see that rate.
        num_members: Patients.
        num_non_members: Patients.
        num_references: Models without the patient that the scores were calibrated with; 0: not calibrated.
    """

    auc: float
    auc_ci95: Range
    true_positive_rate: float
    true_positive_rate_ci95: Range
    fpr: float
    is_resolved: bool
    num_members: int
    num_non_members: int
    num_references: int


@dataclass(frozen=True, kw_only=True)
class MemorisationFacts:
    """Whether generated samples lie nearer to training patients than to held-out ones.

    Attributes:
        share: Samples nearer to a training patient.
        expected: The share if the model knew nobody.
        range95: Central 95 % of shares if training and held-out patients were interchangeable.
        median_train: Median distance to the nearest training patient [units of the records].
        median_held_out: Median distance to the nearest held-out patient.
        num_samples: Generated samples.
    """

    share: float
    expected: float
    range95: Range
    median_train: float
    median_held_out: float
    num_samples: int


@dataclass(frozen=True, kw_only=True)
class AttackFacts:
    """Every attack that was made; what was not made is None, and the page says so."""

    gradient: Canaries | None = None
    control: Canaries | None = None
    black_box: Canaries | None = None
    membership: MembershipFacts | None = None
    memorisation: MemorisationFacts | None = None
