"""Membership attacks on a released model, judged: from scores of patients to rates with intervals.

Everything here starts from numbers, one a patient, and knows no model (`vae.tasks.attack` makes the numbers for a
VAE). A patient's score says how much the model seems to know them; members are patients it was trained on.

    calibrate             subtract what models without the patient make of them: easy patients score high in any model
    judge_membership      area under the curve, and the true-positive rate where false alarms are rare
    judge_memorisation    whether generated samples lie nearer to training patients than to held-out ones

What they do not do: prove privacy. An attack that fails is one attack; an AUC near 0.5 can hide single patients, which
is why the rate at 1 % false positives stands beside it. The figures are computed from raw data: they are for the site
or for public data, and would cost budget to release.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from privacy.bounds import FloatArray, upper_rate

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share, and the ends of its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Membership:
    """How well members are told from other patients.

    Attributes:
        auc: Chance that a member scores higher than a non-member, ties half; 0.5 for guessing.
        true_positive_rate: Members above the lowest threshold whose false-positive rate is at most `fpr`.
        fpr: Tolerated false-positive rate.
        is_resolved: Whether there are enough non-members to see `fpr`, at least 1 / fpr of them. If not, the
            threshold lies above all non-members and `fpr` is not what was measured.
        num_members: Patients.
        num_non_members: Patients.
        level: Confidence of both intervals.
    """

    auc: Share
    true_positive_rate: Share
    fpr: float
    is_resolved: bool
    num_members: int
    num_non_members: int
    level: float


@dataclass(frozen=True, kw_only=True)
class Memorisation:
    """Whose records generated samples are nearest to.

    Attributes:
        share: Samples nearer to a training patient than to any held-out one, ties half.
        expected: Training patients among all: the share if samples knew nobody. 0.5 for equally many.
        low: Lower end of the central `level` of shares if training and held-out patients were interchangeable.
        high: Upper end.
        p_value: Chance of such a share, or a larger one, if they were.
        median_train: Median distance to the nearest training patient [units of the records].
        median_held_out: Median distance to the nearest held-out patient.
        num_samples: Generated samples.
        level: See `low`.
    """

    share: float
    expected: float
    low: float
    high: float
    p_value: float
    median_train: float
    median_held_out: float
    num_samples: int
    level: float

    @property
    def is_suspicious(self) -> bool:
        """Return whether samples are nearer to training patients than interchangeable patients would be."""
        return self.share > self.high


def calibrate(scores: FloatArray, reference: FloatArray) -> FloatArray:
    """Return scores minus the mean score of the same patients in reference models.

    Args:
        scores: [n] of the attacked model.
        reference: [R, n] of R models trained on other patients; NaN where a model did see the patient.

    Returns:
        [n].

    Raises:
        ValueError: the shapes do not fit, or a patient has no reference.

    References:
        Watson et al. 2022, arXiv:2111.08440, eq. (3).
    """
    if reference.ndim != 2 or reference.shape[1] != len(scores):
        raise ValueError(f"reference scores must be [R, {len(scores)}], got {list(reference.shape)}")
    if np.isnan(reference).all(axis=0).any():
        raise ValueError(
            "a patient has no reference score; every patient needs a model that did not see them"
        )
    return np.asarray(scores - np.nanmean(reference, axis=0))


def judge_membership(
    members: FloatArray, non_members: FloatArray, *, fpr: float = 0.01, level: float = 0.95
) -> Membership:
    """Return how well scores tell members from non-members.

    Args:
        members: [n1] scores of patients that were trained on, one each; higher means more likely a member.
        non_members: [n0] of others, drawn like the members: else their difference is measured, not training.
        fpr: Tolerated false-positive rate, in (0, 1).
        level: Confidence of the intervals, in (0, 1).

    Returns:
        AUC with Newcombe's interval, true-positive rate with the exact one of Clopper and Pearson (at the
        threshold that was found).

    Raises:
        ValueError: a side is empty or not finite, or a rate is out of range.

    References:
        Carlini et al. 2022, arXiv:2112.03570 (low false-positive rates); Newcombe 2006, Stat Med 25:559-573,
        method 5 (the AUC's interval).
    """
    if not len(members) or not len(non_members):
        raise ValueError("membership needs members and non-members")
    if not (np.isfinite(members).all() and np.isfinite(non_members).all()):
        raise ValueError("scores must be finite")
    if not (0.0 < fpr < 1.0 and 0.0 < level < 1.0):
        raise ValueError(f"fpr and level must lie between 0 and 1, got {fpr} and {level}")
    won = stats.mannwhitneyu(members, non_members, method="asymptotic").statistic
    auc = float(won / (len(members) * len(non_members)))
    tolerated = math.floor(fpr * len(non_members) + 1e-9)
    threshold = np.sort(non_members)[::-1][tolerated]
    found = int((members > threshold).sum())
    return Membership(
        auc=auc_interval(auc, len(members), len(non_members), level=level),
        true_positive_rate=_exact_share(found, len(members), level),
        fpr=fpr,
        is_resolved=len(non_members) * fpr >= 1.0 - 1e-9,
        num_members=len(members),
        num_non_members=len(non_members),
        level=level,
    )


def auc_interval(auc: float, num_positive: int, num_negative: int, *, level: float = 0.95) -> Share:
    """Return an AUC with the A that satisfy |auc - A| <= z sqrt(V(A)); never empty, also for an AUC of 1.

    V(A) = A (1 - A) (1 + N (1 - A) / (2 - A) + N A / (1 + A)) / (n1 n0), N = (n1 + n0) / 2 - 1

    References:
        Newcombe 2006, Stat Med 25:559-573, method 5; Hanley, McNeil 1982, Radiology 143:29-36.
    """
    z = float(stats.norm.isf((1.0 - level) / 2))
    average = (num_positive + num_negative) / 2 - 1

    def lower_end(value: float) -> float:
        def excess(area: float) -> float:
            spread = 1.0 + average * (1.0 - area) / (2.0 - area) + average * area / (1.0 + area)
            variance = area * (1.0 - area) * spread / (num_positive * num_negative)
            return value - area - z * math.sqrt(variance)

        # An AUC of 1 has variance 0 and solves the equation itself; the end that is wanted lies below.
        return float(optimize.brentq(excess, 0.0, min(value, 1.0 - 1e-12))) if value > 0.0 else 0.0

    return Share(value=auc, low=lower_end(auc), high=1.0 - lower_end(1.0 - auc))


def judge_memorisation(
    train_distance: FloatArray,
    held_out_distance: FloatArray,
    *,
    train_patient: IntArray,
    held_out_patient: IntArray,
    num_train: int,
    num_held_out: int,
    seed: int,
    num_permutations: int = 2000,
    level: float = 0.95,
) -> Memorisation:
    """Return whether samples lie nearer to training patients than chance allows.

    A sample's nearest patient is a training patient with chance num_train / (num_train + num_held_out) if the
    model knows neither. Many samples can be nearest to one patient, so patients are permuted, not samples.

    Shapes: N samples.

    Args:
        train_distance: [N], to the nearest record of a training patient.
        held_out_distance: [N], to the nearest record of a held-out patient, drawn like the training ones.
        train_patient: [N], the patient of that record, 0..num_train-1.
        held_out_patient: [N], 0..num_held_out-1.
        num_train: Patients searched.
        num_held_out: Patients searched.
        seed: Of the permutations.
        num_permutations: >= 1.
        level: In (0, 1).

    References:
        Meehan, Chaudhuri, Dasgupta 2020, arXiv:2004.05675 (data copying as nearness to training data).
    """
    if not len(train_distance) or len(train_distance) != len(held_out_distance):
        raise ValueError("memorisation needs samples, with a distance to either side for each")
    nearer = 0.5 * (1.0 + np.sign(held_out_distance - train_distance))
    # How many samples are nearest to each patient: all that a permutation of patients needs.
    hits = np.concatenate(
        [
            np.bincount(train_patient, weights=nearer, minlength=num_train),
            np.bincount(held_out_patient, weights=1.0 - nearer, minlength=num_held_out),
        ]
    )
    rng = np.random.default_rng(seed)
    shares = np.array([rng.permutation(hits)[:num_train].sum() for _ in range(num_permutations)]) / len(
        nearer
    )
    share = float(nearer.mean())
    low, high = np.quantile(shares, [(1 - level) / 2, (1 + level) / 2])
    return Memorisation(
        share=share,
        expected=num_train / (num_train + num_held_out),
        low=float(low),
        high=float(high),
        p_value=float((1 + (shares >= share - 1e-12).sum()) / (1 + num_permutations)),
        median_train=float(np.median(train_distance)),
        median_held_out=float(np.median(held_out_distance)),
        num_samples=len(nearer),
        level=level,
    )


def _exact_share(events: int, trials: int, level: float) -> Share:
    """Return a share with its Clopper-Pearson interval."""
    tail = (1.0 - level) / 2
    return Share(
        value=events / trials,
        low=1.0 - upper_rate(trials - events, trials, tail),
        high=upper_rate(events, trials, tail),
    )
