"""Scores of images: fidelity to healthy scans, pseudo-healthy reconstruction, and residuals as detectors.

Healthiness of a scan is its mean inside a lesion divided by its mean in the rest of the brain. A
reconstruction that brings it back to the value before the lesion looks healed, and so does the average image
of all patients, which ignores its input: never read it without the mean squared error and that baseline
beside it.

References:
    Hassanaly et al. 2024, arXiv:2401.16363 (healthiness; simulated hypometabolism).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vae import metrics
from vae.data.cohort import Cohort, FloatArray, SiteData
from vae.metrics import Doubles
from vae.tasks.score import AnomalySettings, Direction

Masks = npt.NDArray[np.bool_]


def score_image(
    data: SiteData, reconstruction: FloatArray, z: FloatArray | None, settings: AnomalySettings
) -> dict[str, Doubles]:
    """Return the scores of a site's test images; NaN where a score does not apply to a record.

    Shapes: R test records, C channels, S space.

    Args:
        data: Test records with labels; training records for the brain mask.
        reconstruction: [R, C, *S].
        z: [R, C, *S] residuals in standard deviations of the reference, or None: then no `zmap` and no
            `dice`.
        settings: How scores are made.

    Returns:
        `mse`, `mse_brain`; `ssim`, `ssim_brain` of healthy records; `residual`, mean |residual| in the brain;
        `zmap`, mean of the highest `top_share` of z in the brain. With lesion masks also `dice` (z against
        the mask) and `healthiness_truth`, `_simulated`, `_reconstruction` of the records of the highest
        degree. Each [R].
    """
    x, brain = np.asarray(data.test.values), brain_mask(data)
    residual = np.abs(x - reconstruction)
    squared = np.square(residual)
    scores = {
        "mse": metrics.masked_mean(squared),
        "mse_brain": metrics.masked_mean(squared, brain),
        "residual": metrics.masked_mean(residual, brain),
    }
    scores |= _similarity(x, reconstruction, brain, healthy=data.test.labels["anomaly"] == 0)
    lesion = np.asarray(data.test.labels["lesion"]) > 0.5 if "lesion" in data.test.labels else None
    if lesion is not None:
        scores |= _healthiness(data.test, reconstruction, brain, lesion)
    if z is not None:
        inside = z.reshape(*z.shape[:2], -1)[:, :, np.flatnonzero(brain)]
        signed = _signed(inside, settings.direction, has_degree="degree" in data.test.labels)
        scores["zmap"] = _top_mean(signed.reshape(len(x), -1), settings.top_share)
        if lesion is not None:
            scores["dice"] = _dice(signed.mean(axis=1), lesion[:, brain], data.test, settings.voxel_fpr)
    return scores


def brain_mask(data: SiteData) -> Masks:
    """Return where the brain is, [*S].

    The union of the test label `brain` [R, *S] if there is one; else where the average training scan exceeds
    a tenth of its own 99th percentile in any channel.
    """
    if "brain" in data.test.labels:
        return np.asarray((np.asarray(data.test.labels["brain"]) > 0.5).any(axis=0))
    average = np.asarray(data.train.values).mean(axis=0)
    peak = np.percentile(average.reshape(len(average), -1), 99, axis=1)
    return np.asarray((average > 0.1 * peak.reshape(-1, *[1] * (average.ndim - 1))).any(axis=0))


def _similarity(
    x: FloatArray, reconstruction: FloatArray, brain: Masks, *, healthy: Masks
) -> dict[str, Doubles]:
    """Return SSIM over the image and over the brain, of healthy records; nothing if images are too small."""
    if sum(size >= metrics.SSIM_WINDOW for size in x.shape[2:]) < 2:
        return {}
    scores = {name: np.full(len(x), np.nan) for name in ("ssim", "ssim_brain")}
    similarity = metrics.ssim_map(x[healthy], reconstruction[healthy])
    known = np.isfinite(similarity)
    scores["ssim"][healthy] = metrics.masked_mean(similarity, known)
    scores["ssim_brain"][healthy] = metrics.masked_mean(similarity, known & brain)
    return scores


def _healthiness(test: Cohort, reconstruction: FloatArray, brain: Masks, lesion: Masks) -> dict[str, Doubles]:
    """Return healthiness of the scan before the lesion, with it, and of its reconstruction."""
    x = np.asarray(test.values)
    scores = {
        f"healthiness_{name}": np.full(len(x), np.nan) for name in ("truth", "simulated", "reconstruction")
    }
    for row, healthy in _pairs(test):
        rest = brain & ~lesion[row]
        for name, image in (
            ("truth", x[healthy]),
            ("simulated", x[row]),
            ("reconstruction", reconstruction[row]),
        ):
            if lesion[row].any() and rest.any():
                inside, outside = (
                    image[:, lesion[row]].mean(dtype=np.float64),
                    image[:, rest].mean(dtype=np.float64),
                )
                scores[f"healthiness_{name}"][row] = inside / outside if outside > 0 else np.nan
    return scores


def _pairs(test: Cohort) -> list[tuple[int, int]]:
    """Return (record of the highest degree, healthy record of the same patient and visit) by row.

    The visit is the one with the nearest covariates (age tells visits apart).
    """
    anomaly = np.asarray(test.labels["anomaly"]) == 1
    degree = np.asarray(test.labels.get("degree", anomaly), np.float64)
    chosen = anomaly & (degree == degree[anomaly].max(initial=0.0))
    owner = np.repeat(np.arange(test.num_patients), np.diff(test.offsets))
    pairs = []
    for row in np.flatnonzero(chosen):
        healthy = np.flatnonzero((owner == owner[row]) & ~anomaly)
        if len(healthy):
            distance = np.linalg.norm(test.covariates[healthy] - test.covariates[row], axis=1)
            pairs.append((int(row), int(healthy[np.argmin(distance)])))
    return pairs


def _signed(z: FloatArray, direction: Direction, *, has_degree: bool) -> FloatArray:
    """Return z such that larger is more anomalous."""
    chosen = ("low" if has_degree else "both") if direction == "auto" else direction
    if chosen == "both":
        return np.asarray(np.abs(z))
    return -z if chosen == "low" else z


def _top_mean(z: FloatArray, share: float) -> Doubles:
    """Return the mean of the largest `share` of each row of z [R, V]."""
    kept = max(1, round(share * z.shape[1]))
    highest = np.partition(z, z.shape[1] - kept, axis=1)[:, -kept:]
    return np.asarray(highest.mean(axis=1, dtype=np.float64))


def _dice(signed: FloatArray, lesion: Masks, test: Cohort, fpr: float) -> Doubles:
    """Return Dice of brain voxels [R, V] above the threshold that `fpr` of healthy test voxels exceed."""
    anomaly = np.asarray(test.labels["anomaly"]) == 1
    scores = np.full(len(signed), np.nan)
    if anomaly.any() and not anomaly.all():
        threshold = np.quantile(signed[~anomaly], 1.0 - fpr)
        scores[anomaly] = metrics.dice(signed[anomaly] > threshold, lesion[anomaly])
    return scores
