"""Anomaly detection: arms side by side on the same test patients, with intervals, and paired differences.

    scores = score(arm, reconstruct, sites)          what an arm makes of each test record (local)
    results = summarise(scores, seed=...)            rows of the table, with 95 % intervals over patients
    differences = compare(scores, baseline, ...)     is an arm better than another on the same patients?

`evaluate` is the first two in one. An arm is a mapping site -> `Reconstruct`, because a personalised model
differs between sites and a hospital that trains alone is judged on its own patients; `everywhere` makes one
of a single model.

What the numbers do not show: an interval covers the choice of test patients, not that of the seed, of the
training patients or of the hyper-parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vae import metrics
from vae.data.cohort import Cohort, FloatArray, SiteData
from vae.metrics import Doubles, Interval
from vae.tasks.image import score_image
from vae.tasks.measure import draw, measures
from vae.tasks.score import (
    AnomalySettings,
    Reconstruct,
    Scores,
    reconstruct_all,
    residual_norm,
    score_table,
)

LEVEL = 0.95
DEFAULT_SETTINGS = AnomalySettings()


@dataclass(frozen=True, kw_only=True)
class Result:
    """One row of the table.

    Attributes:
        arm: What was judged: a training regime or a baseline.
        task: `reconstruction` (healthy test records), `pseudo-healthy` or `anomaly`.
        metric: Name; `_30` at the end means at degree 30 %.
        value: The statistic of the test records as they are.
        ci95: Ends of its bootstrap interval over patients, or None where it is undefined.
        num_patients: Test patients it rests on.
        num_records: Test records it rests on.
    """

    arm: str
    task: str
    metric: str
    value: float
    ci95: tuple[float, float] | None
    num_patients: int
    num_records: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An arm's metric minus a baseline's on the same test patients.

    Attributes:
        arm: Minuend.
        baseline: Subtrahend.
        task: As in `Result`.
        metric: As in `Result`.
        value: Difference, in the metric's unit.
        ci95: Ends of its paired bootstrap interval, or None where it is undefined.
    """

    arm: str
    baseline: str
    task: str
    metric: str
    value: float
    ci95: tuple[float, float] | None

    @property
    def is_clear(self) -> bool:
        """Return whether the interval leaves zero out."""
        return self.ci95 is not None and (self.ci95[0] > 0 or self.ci95[1] < 0)


def everywhere(reconstruct: Reconstruct, sites: Iterable[str]) -> dict[str, Reconstruct]:
    """Return one model for every site."""
    return dict.fromkeys(sites, reconstruct)


def predict_mean(train: Iterable[Cohort]) -> Reconstruct:
    """Return the baseline that ignores its input: every record is reconstructed as the mean training record.

    Given the cohort of one site it is that site's own mean, the stronger baseline where scanners differ.
    It is not private: the records are pooled as they are.

    Args:
        train: Training cohorts of equal record shape, at least one.
    """
    total: Doubles | None = None
    count = 0
    for cohort in train:
        part = np.asarray(cohort.values).sum(axis=0, dtype=np.float64)
        total = part if total is None else total + part
        count += cohort.num_records
    if total is None:
        raise ValueError("predict_mean needs at least one training cohort")
    average = (total / count).astype(np.float32)

    def reconstruct(values: FloatArray, covariates: FloatArray) -> FloatArray:
        return np.broadcast_to(average, values.shape)

    return reconstruct


def score(
    arm: str,
    reconstruct: Mapping[str, Reconstruct],
    sites: Mapping[str, SiteData],
    *,
    settings: AnomalySettings = DEFAULT_SETTINGS,
) -> Scores:
    """Return what an arm makes of every test record.

    Z-maps use each site's own reference cohort through the site's own model; without a reference a site has
    none.

    Args:
        arm: Name of the arm.
        reconstruct: The model of each site in `sites`.
        sites: Test, reference and training records.
        settings: How scores are made.

    Raises:
        ValueError: a site has no model, or a model returns another shape.
    """
    missing = sorted(set(sites) - set(reconstruct))
    if missing or not sites:
        raise ValueError(
            f"arm {arm}: no model for {', '.join(missing)}" if missing else f"arm {arm}: no site"
        )
    names = sorted(sites)
    tests = [sites[name].test for name in names]
    parts = [_score_site(reconstruct[name], sites[name], settings) for name in names]
    counts = [test.num_records for test in tests]
    keys = [
        f"{name}/{key}" for name, test in zip(names, tests, strict=True) for key in _record_patients(test)
    ]
    return Scores(
        arm=arm,
        site=np.repeat(names, counts),
        patient=np.array(keys),
        anomaly=np.concatenate([np.asarray(test.labels["anomaly"]) == 1 for test in tests]),
        degree=np.concatenate([_degree(test) for test in tests]),
        values={name: _joined(parts, name, counts) for name in sorted(set[str]().union(*parts))},
    )


def summarise(scores: Scores, *, seed: int, num_bootstrap: int = 1000) -> tuple[Result, ...]:
    """Return the rows of an arm: every metric that is defined, with its interval.

    Patients are resampled within kinds (which degrees a patient's records have), so that neither class
    vanishes. Sites are no strata: most have zero to five rejected scans, and resampling inside strata that
    small understates the variance.

    Args:
        scores: From `score`.
        seed: Of the bootstrap; equal for all arms of a table.
        num_bootstrap: Number of resamples.
    """
    weights = _draws(scores, seed=seed, num=num_bootstrap)
    results = []
    for measure in measures(scores):
        value = float(draw(measure, scores, np.ones(len(scores.patient))))
        results.append(
            Result(
                arm=scores.arm,
                task=measure.task,
                metric=measure.metric,
                value=value,
                ci95=_ends(metrics.interval(value, draw(measure, scores, weights), level=LEVEL)),
                num_patients=len(np.unique(scores.patient[measure.rows])),
                num_records=int(measure.rows.sum()),
            )
        )
    return tuple(results)


def evaluate(
    arm: str,
    reconstruct: Mapping[str, Reconstruct],
    sites: Mapping[str, SiteData],
    *,
    seed: int,
    num_bootstrap: int = 1000,
    settings: AnomalySettings = DEFAULT_SETTINGS,
) -> tuple[Result, ...]:
    """Return the rows of an arm: `score`, then `summarise`."""
    scores = score(arm, reconstruct, sites, settings=settings)
    return summarise(scores, seed=seed, num_bootstrap=num_bootstrap)


def compare(
    scores: Scores, baseline: Scores, *, seed: int, num_bootstrap: int = 1000
) -> tuple[Difference, ...]:
    """Return an arm minus a baseline, for each metric that both have, on the same resamples of the patients.

    Raises:
        ValueError: the two were not scored on the same records.
    """
    pairs = ((scores.patient, baseline.patient), (scores.degree, baseline.degree))
    if not all(np.array_equal(mine, theirs) for mine, theirs in pairs):
        raise ValueError(f"{scores.arm} and {baseline.arm} were scored on different test records")
    weights = _draws(scores, seed=seed, num=num_bootstrap)
    once = np.ones(len(scores.patient))
    others = {(measure.task, measure.metric): measure for measure in measures(baseline)}
    differences = []
    for measure in measures(scores):
        other = others.get((measure.task, measure.metric))
        if other is None:
            continue
        both = dataclasses.replace(measure, rows=measure.rows & other.rows)
        value = float(draw(both, scores, once) - draw(both, baseline, once))
        draws = draw(both, scores, weights) - draw(both, baseline, weights)
        differences.append(
            Difference(
                arm=scores.arm,
                baseline=baseline.arm,
                task=measure.task,
                metric=measure.metric,
                value=value,
                ci95=_ends(metrics.interval(value, draws, level=LEVEL)),
            )
        )
    return tuple(differences)


def _score_site(reconstruct: Reconstruct, data: SiteData, settings: AnomalySettings) -> dict[str, Doubles]:
    """Return the scores of one site's test records."""
    reconstruction = reconstruct_all(reconstruct, data.test)
    residual = np.asarray(data.test.values) - reconstruction
    z = None if data.reference is None else residual_norm(reconstruct, data.reference).zmap(residual)
    return score_table(residual, z) if residual.ndim == 2 else score_image(data, reconstruction, z, settings)


def _joined(parts: list[dict[str, Doubles]], name: str, counts: list[int]) -> Doubles:
    """Return one score of all sites, NaN where a site does not have it."""
    return np.concatenate([part.get(name, np.full(n, np.nan)) for part, n in zip(parts, counts, strict=True)])


def _record_patients(test: Cohort) -> list[str]:
    """Return the patient of each record."""
    return [key for p, key in enumerate(test.patients) for _ in range(test.offsets[p], test.offsets[p + 1])]


def _degree(test: Cohort) -> Doubles:
    """Return the degree of each record, 0 for healthy ones and where there is no such label."""
    return np.nan_to_num(np.asarray(test.labels.get("degree", np.zeros(test.num_records)), np.float64))


def _draws(scores: Scores, *, seed: int, num: int) -> npt.NDArray[np.float32]:
    """Return how often each record counts in each resample; the same for every arm on the same records."""
    kind = np.where(scores.anomaly, 1.0 + scores.degree, 0.0)
    return metrics.resample(scores.patient, num=num, seed=seed, strata=kind)


def _ends(found: Interval) -> tuple[float, float] | None:
    """Return the ends of an interval, None where it is undefined."""
    return (found.low, found.high) if np.isfinite(found.low) else None
