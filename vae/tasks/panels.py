"""Pictures of a few test records: a slice of the original, reconstruction, residual and Z-map of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vae.data.cohort import Cohort, FloatArray, SiteData
from vae.tasks.image import Masks
from vae.tasks.score import Reconstruct, residual_norm


@dataclass(frozen=True, kw_only=True)
class Panels:
    """Slices of N test records; for local reports (they show patients).

    Attributes:
        original: [N, H, W] float32.
        reconstruction: [N, H, W] float32.
        residual: [N, H, W] float32, original - reconstruction.
        zmap: [N, H, W] float32, residual in standard deviations of the reference; None without a reference.
        lesion: [N, H, W] bool; None where the task has no masks.
        degree: [N] percent; 0 where the task has no degrees.
    """

    original: FloatArray
    reconstruction: FloatArray
    residual: FloatArray
    zmap: FloatArray | None
    lesion: Masks | None
    degree: tuple[float, ...]


def panels(reconstruct: Reconstruct, data: SiteData, *, num: int = 4, channel: int = 0) -> Panels:
    """Return pictures of a site's test records of the highest degree (of healthy ones where none is
    anomalous).

    The choice depends on labels and order alone, never on how well a model does: patients spread evenly over
    the sorted keys. Volumes are cut along their last axis, through the most of the lesion, or else the
    middle.

    Args:
        reconstruct: The site's model.
        data: Images.
        num: Largest number of records, >= 1.
        channel: Which channel to show.

    Raises:
        ValueError: the records are no images.
    """
    if data.test.values.ndim < 4:
        raise ValueError("panels show images; these records are rows of a table")
    rows = _choose(data.test, num)
    x, covariates = np.asarray(data.test.values[rows]), data.test.covariates[rows]
    reconstruction = np.asarray(reconstruct(x, covariates), np.float32)
    residual = x - reconstruction
    norm = None if data.reference is None else residual_norm(reconstruct, data.reference)
    lesion = np.asarray(data.test.labels["lesion"])[rows] > 0.5 if "lesion" in data.test.labels else None
    places = _places(x, lesion)
    degree = data.test.labels.get("degree", np.zeros(data.test.num_records))
    return Panels(
        original=_cut(x[:, channel], places),
        reconstruction=_cut(reconstruction[:, channel], places),
        residual=_cut(residual[:, channel], places),
        zmap=None if norm is None else _cut(norm.zmap(residual)[:, channel], places),
        lesion=None if lesion is None else _cut(lesion.astype(np.float32), places) > 0.5,
        degree=tuple(float(degree[row]) for row in rows),
    )


def _choose(test: Cohort, num: int) -> list[int]:
    """Return rows of the highest degree, one a patient, spread evenly over the sorted patients."""
    anomaly = np.asarray(test.labels["anomaly"], np.float64)
    severity = np.where(
        anomaly == 1, 1.0 + np.asarray(test.labels.get("degree", 0.0 * anomaly), np.float64), 0.0
    )
    owner = np.repeat(np.arange(test.num_patients), np.diff(test.offsets))
    rows = np.flatnonzero(severity == severity.max())
    first = rows[np.unique(owner[rows], return_index=True)[1]]
    spread = np.unique(np.linspace(0, len(first) - 1, num=min(num, len(first))).round().astype(int))
    return [int(row) for row in first[spread]]


def _places(x: FloatArray, lesion: Masks | None) -> list[int] | None:
    """Return the slice of each volume to show; None for images that are slices already."""
    if x.ndim == 4:
        return None
    middle = x.shape[-1] // 2
    if lesion is None:
        return [middle] * len(x)
    area = lesion.sum(axis=tuple(range(1, lesion.ndim - 1)))
    return [int(np.argmax(one)) if one.any() else middle for one in area]


def _cut(images: FloatArray, places: list[int] | None) -> FloatArray:
    """Return [N, H, W] of images [N, H, W] or volumes [N, D, H, W]."""
    if places is None:
        return images
    return np.stack([image[..., place] for image, place in zip(images, places, strict=True)])
