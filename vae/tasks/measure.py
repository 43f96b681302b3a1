"""Which statistics are taken of an arm's scores, and over which records: the rows of the table of arms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from vae import metrics
from vae.metrics import Doubles, Floats, Masks
from vae.tasks.score import Scores

Statistic = Literal["mean", "auroc", "auroc_within_site"]

_FIDELITY = ("mse", "mse_brain", "ssim", "ssim_brain")
_HEALTHINESS = ("healthiness_truth", "healthiness_simulated", "healthiness_reconstruction")
_DETECTORS = ("residual", "zmap")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One statistic of one score.

    Attributes:
        task: `reconstruction`, `pseudo-healthy` or `anomaly`.
        metric: Name of the row.
        score: Key of `Scores.values`.
        rows: [R] which records count.
        statistic: What is taken of them.
    """

    task: str
    metric: str
    score: str
    rows: Masks
    statistic: Statistic


def measures(scores: Scores) -> list[Measure]:
    """Return every measure that is defined for these scores, in the order of the table.

    Fidelity counts healthy records only; healthiness those of the highest degree. Detection has one AUROC
    over all records, one over pairs within a site (telling hospitals apart earns nothing) and one a degree.
    """
    found = [_mean("reconstruction", name, name, scores, ~scores.anomaly) for name in _FIDELITY]
    found += [_mean("pseudo-healthy", name, name, scores, scores.anomaly) for name in _HEALTHINESS]
    degrees = [float(degree) for degree in np.unique(scores.degree[scores.anomaly]) if degree > 0]
    for name in _DETECTORS:
        everyone = np.ones(len(scores.anomaly), bool)
        found.append(_detection(f"auroc_{name}", name, scores, everyone, "auroc"))
        if len(np.unique(scores.site)) > 1:
            found.append(_detection(f"auroc_{name}_within_site", name, scores, everyone, "auroc_within_site"))
        for degree in degrees:
            rows = ~scores.anomaly | (scores.degree == degree)
            found.append(_detection(f"auroc_{name}_{degree:g}", name, scores, rows, "auroc"))
    for degree in degrees:
        found.append(_mean("anomaly", f"dice_{degree:g}", "dice", scores, scores.degree == degree))
    return [measure for measure in found if measure is not None]


def draw(measure: Measure, scores: Scores, weights: Floats) -> Doubles:
    """Return a measure for each row of weights [N, R], how often each record counts; [N] float64."""
    rows = measure.rows
    values, weight = scores.values[measure.score][rows], weights[..., rows]
    if measure.statistic == "mean":
        return metrics.mean(values, weights=weight)
    if measure.statistic == "auroc":
        return metrics.auroc(values, scores.anomaly[rows], weights=weight)
    return metrics.auroc_within(values, scores.anomaly[rows], scores.site[rows], weights=weight)


def _mean(task: str, metric: str, name: str, scores: Scores, rows: Masks) -> Measure | None:
    """Return the mean of a score over some records, None where it is undefined."""
    if name not in scores.values:
        return None
    known = rows & np.isfinite(scores.values[name])
    if not known.any():
        return None
    return Measure(task=task, metric=metric, score=name, rows=known, statistic="mean")


def _detection(metric: str, name: str, scores: Scores, rows: Masks, statistic: Statistic) -> Measure | None:
    """Return an AUROC over some records, None where a class is missing."""
    if name not in scores.values:
        return None
    known = rows & np.isfinite(scores.values[name])
    measure = Measure(task="anomaly", metric=metric, score=name, rows=known, statistic=statistic)
    return measure if np.isfinite(draw(measure, scores, np.ones(len(known)))) else None
