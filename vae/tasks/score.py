"""Raw scores of each test record, and the residual statistics they rest on.

residual = x - reconstruction; Z-map = (residual - mean) / standard deviation, both over the healthy residuals
of a reference cohort through the same model. A patient's score from a Z-map is the mean of |z| over columns
for a table (Kumar et al. 2022) and the mean of the top 5 % of z in the brain for an image, where disease is
focal and the mean over the brain would drown it.

What it does not do: intervals and tables of results (`anomaly`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from vae import metrics
from vae.data.cohort import Cohort, FloatArray
from vae.metrics import Doubles

Reconstruct = Callable[[FloatArray, FloatArray], FloatArray]
"""reconstruct(values [B, C, *S], covariates [B, K]) -> [B, C, *S], all float32."""
Direction = Literal["auto", "low", "high", "both"]

BATCH_SIZE = 64
# A model that diverged may return inf or NaN: it must look as bad as it is, and not stop the whole report.
LARGEST = 1e6
# Weight, in records, of the average variance in the variance of each voxel (see `residual_norm`).
PRIOR_RECORDS = 4.0


@dataclass(frozen=True, kw_only=True)
class AnomalySettings:
    """How scores are made from residuals.

    Attributes:
        direction: What counts as anomalous: x below its reconstruction (`low`: hypometabolism, atrophy),
            above it (`high`: lesions bright on T2), or `both`. `auto` is `low` for images whose test labels
            have a degree of hypometabolism, and `both` otherwise.
        top_share: Share of the brain whose highest z make an image's score, in (0, 1].
        voxel_fpr: False-positive rate among the voxels of healthy test scans at which Dice is taken, in (0,
            1).
    """

    direction: Direction = "auto"
    top_share: float = 0.05
    voxel_fpr: float = 0.01

    def __post_init__(self) -> None:
        if not 0.0 < self.top_share <= 1.0:
            raise ValueError(f"top_share must lie in (0, 1], got {self.top_share}")
        if not 0.0 < self.voxel_fpr < 1.0:
            raise ValueError(f"voxel_fpr must lie between 0 and 1, got {self.voxel_fpr}")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What an arm makes of every test record; stays local (it names patients).

    Shapes: R test records of all sites, site by site in alphabetical order.

    Attributes:
        arm: Name of the arm.
        site: [R] site of each record.
        patient: [R] `site/patient`.
        anomaly: [R] bool.
        degree: [R] percent; 0 for healthy records and where the task has no degrees.
        values: Name -> [R] float64; NaN where a score does not apply to a record.
    """

    arm: str
    site: npt.NDArray[np.str_]
    patient: npt.NDArray[np.str_]
    anomaly: npt.NDArray[np.bool_]
    degree: Doubles
    values: Mapping[str, Doubles]


@dataclass(frozen=True, kw_only=True)
class ResidualNorm:
    """Mean and standard deviation of healthy residuals, each [C, *S] float32."""

    mean: FloatArray
    scale: FloatArray

    def zmap(self, residual: FloatArray) -> FloatArray:
        """Return residuals [R, C, *S] in standard deviations of healthy ones."""
        return (residual - self.mean) / self.scale


def reconstruct_all(reconstruct: Reconstruct, cohort: Cohort) -> FloatArray:
    """Return the reconstruction of every record [R, C, *S], batch by batch, finite and at most 1e6 in size.

    Raises:
        ValueError: the callable returns another shape.
    """
    out = np.empty(cohort.values.shape, np.float32)
    for start in range(0, cohort.num_records, BATCH_SIZE):
        rows = slice(start, start + BATCH_SIZE)
        values = np.asarray(cohort.values[rows])
        part = reconstruct(values, cohort.covariates[rows])
        if part.shape != values.shape:
            raise ValueError(f"reconstruct must return {values.shape}, got {part.shape}")
        out[rows] = np.clip(np.nan_to_num(part, nan=LARGEST), -LARGEST, LARGEST)
    return out


def residual_norm(reconstruct: Reconstruct, reference: Cohort) -> ResidualNorm:
    """Return mean and standard deviation of the reference's residuals, voxel by voxel.

    variance_v = (sum of squares_v + 4 average variance) / (records - 1 + 4): the average, as if seen in four
    more records, keeps a voxel that happens to agree in a handful of scans from dividing by almost nothing.
    """
    residual = np.asarray(reference.values) - reconstruct_all(reconstruct, reference)
    centre = residual.mean(axis=0, dtype=np.float64)
    squares = np.square(residual - centre.astype(np.float32)).sum(axis=0, dtype=np.float64)
    freedom = max(len(residual) - 1, 1)
    average = float(squares.mean()) / freedom
    variance = (squares + PRIOR_RECORDS * average) / (freedom + PRIOR_RECORDS)
    scale = np.sqrt(np.maximum(variance, np.finfo(np.float32).tiny))
    return ResidualNorm(mean=centre.astype(np.float32), scale=scale.astype(np.float32))


def score_table(residual: FloatArray, z: FloatArray | None) -> dict[str, Doubles]:
    """Return the scores of a table's rows.

    Args:
        residual: [R, C].
        z: [R, C] residuals in standard deviations of the reference, or None.

    Returns:
        `mse`; `residual`, the same number as a score of anomaly (it is the Gaussian reconstruction term of
        the evidence lower bound, up to constants); `zmap`, the mean of |z|. Each [R].
    """
    mse = metrics.masked_mean(np.square(residual, dtype=np.float64))
    scores = {"mse": mse, "residual": mse}
    if z is not None:
        scores["zmap"] = metrics.masked_mean(np.abs(z))
    return scores
