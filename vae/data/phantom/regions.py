"""Regions of the brain as simple shapes in MNI coordinates (mm; x > 0 is right, shapes are mirrored).

Ellipsoids and one tube: enough to place uptake and disease patterns, not an atlas.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

CENTRE_MM = (0.0, -16.0, 8.0)
"""Centre of the head, of every image grid and of every rotation."""

ELLIPSOIDS: Mapping[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "posterior_cingulate": ((6, -54, 28), (10, 18, 18)),
    "angular": ((46, -60, 32), (15, 16, 17)),
    "inferior_temporal": ((54, -34, -20), (11, 25, 10)),
    "medial_temporal": ((24, -18, -20), (9, 18, 10)),
    "temporal_pole": ((38, 14, -32), (12, 13, 13)),
    "medial_frontal": ((7, 46, 16), (10, 18, 26)),
    "dorsolateral_frontal": ((38, 34, 28), (15, 18, 17)),
    "occipital": ((12, -84, 8), (16, 16, 20)),
    "inferior_frontal": ((48, 20, 14), (11, 14, 14)),
    "superior_temporal": ((56, -28, 8), (10, 24, 9)),
    "insula": ((38, 6, 2), (6, 16, 12)),
    "cerebellum": ((22, -62, -36), (26, 24, 18)),
}
"""Centre and half axes of each region."""

PATTERNS: Mapping[str, tuple[str, ...]] = {
    "ad": ("posterior_cingulate", "angular", "inferior_temporal", "medial_temporal"),
    "bvftd": ("medial_frontal", "dorsolateral_frontal", "temporal_pole", "insula"),
    "lvppa": ("angular", "superior_temporal", "inferior_temporal"),
    "nfvppa": ("inferior_frontal", "insula"),
    "pca": ("occipital", "angular"),
    "svppa": ("temporal_pole", "inferior_temporal", "medial_temporal"),
}
"""Regions that lose uptake in each disease."""

UPTAKE: Mapping[str, float] = {
    "posterior_cingulate": 0.20,
    "occipital": 0.12,
    "medial_frontal": 0.06,
    "medial_temporal": -0.22,
    "temporal_pole": -0.12,
    "cerebellum": -0.18,
}
"""Uptake of FDG in grey matter, relative to its average, minus 1."""

HIPPOCAMPUS_TUBE = (
    ((20, -9, -21), 6.0),
    ((26, -16, -19), 6.5),
    ((30, -24, -14), 5.5),
    ((30, -31, -8), 5.0),
    ((25, -37, -2), 4.0),
    ((19, -39, 4), 3.0),
)
"""Centre line (mm) and radius (mm) of the hippocampus, head to tail."""


def ellipsoid(name: str, points: Array) -> Array:
    """Return the region `name` at MNI `points` [..., 3]: 1 inside, 0 outside, soft over about 3 mm."""
    centre, half_axes = ELLIPSOIDS[name]
    mirrored = _mirrored(points)
    radius = np.sqrt(
        (
            ((mirrored - np.asarray(centre, dtype=np.float32)) / np.asarray(half_axes, dtype=np.float32)) ** 2
        ).sum(-1)
    )
    return _soft((1.0 - radius) * min(half_axes))


def pattern(disease: str, points: Array) -> Array:
    """Return the union of the regions of `disease` at MNI `points` [..., 3], values in [0, 1]."""
    return np.asarray(
        np.max([ellipsoid(name, points) for name in PATTERNS[disease]], axis=0), dtype=np.float32
    )


def relative_uptake(points: Array) -> Array:
    """Return the uptake of grey matter at MNI `points` [..., 3], 1 on average."""
    total = np.ones(points.shape[:-1], dtype=np.float32)
    for name, change in UPTAKE.items():
        total += np.float32(change) * ellipsoid(name, points)
    return total


def hippocampus_tube(points: Array) -> Array:
    """Return the tube around the hippocampus' centre line at MNI `points` [..., 3], values in [0, 1]."""
    mirrored = _mirrored(points)
    depth = np.full(points.shape[:-1], -np.inf, dtype=np.float32)
    for (start, radius_0), (end, radius_1) in pairwise(HIPPOCAMPUS_TUBE):
        a, b = np.asarray(start, dtype=np.float32), np.asarray(end, dtype=np.float32)
        along = np.clip(((mirrored - a) * (b - a)).sum(-1) / ((b - a) ** 2).sum(), 0, 1)
        distance = np.sqrt(((mirrored - a - along[..., None] * (b - a)) ** 2).sum(-1))
        depth = np.maximum(depth, radius_0 + along * (radius_1 - radius_0) - distance)
    return _soft(depth)


def _mirrored(points: Array) -> Array:
    """Fold the left half onto the right one."""
    return np.concatenate([np.abs(points[..., :1]), points[..., 1:]], axis=-1).astype(np.float32)


def _soft(depth_mm: Array) -> Array:
    """Return 1 deep inside, 0 far outside, a half at depth 0."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(depth_mm, -20, 20) / 0.75)), dtype=np.float32)
