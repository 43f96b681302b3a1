"""What goes wrong: uptake lost in the pattern of a disease, and lesions of the white matter.

Both are graded and nested: a higher degree changes what a lower one does, and more.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Array = npt.NDArray[np.float32]

HYPOMETABOLISM_SIGMA_MM = 5.0
"""ClinicaDL 1.6 smooths by 5 voxels of its 1 mm grid (Clinica's `pet-linear` output), which is 5 mm."""


def hypometabolic_weight(pattern: Array, *, spacing: float) -> Array:
    """Return the smoothed mask s of a disease; an image at degree d [percent] is x * (1 - s * d / 100).

    The mask is binary before it is smoothed, and smoothing is linear: this equals smoothing the weights
    1 - mask * d / 100, as ClinicaDL's `generate hypometabolic` does.

    Args:
        pattern: [V, X, Y, Z] membership in [0, 1]; a voxel belongs from 0.5 on.
        spacing: Edge of a voxel [mm].

    Returns:
        [V, X, Y, Z] float32 in [0, 1].

    References:
        Hassanaly et al. 2024, Machine Learning for Biomedical Imaging 2 (simulation of dementia on FDG PET).
    """
    sigma = HYPOMETABOLISM_SIGMA_MM / spacing
    binary = (pattern >= 0.5).astype(np.float32)
    return np.asarray(
        ndimage.gaussian_filter(binary, (0, sigma, sigma, sigma), mode="nearest"), dtype=np.float32
    )


def lesion_maps(
    prior: Array, white: Array, roughness: npt.NDArray[np.float64], loads: tuple[int, ...]
) -> tuple[Array, ...]:
    """Return soft masks of lesions that cover given shares of the white matter.

    Lesions appear where prior times (1 + roughness) is highest; the threshold is the quantile, weighted by
    white matter, that leaves the wanted load.

    Args:
        prior: [V, X, Y, Z] how readily lesions arise, >= 0.
        white: [V, X, Y, Z] fraction of white matter.
        roughness: [X, Y, Z] the person's own smooth noise, about standard normal.
        loads: Shares of the white matter [percent], each in 1..99.

    Returns:
        One [V, X, Y, Z] float32 in [0, 1] for each load; the sum of white x (mask > 0.5) is the load, to a
        voxel.
    """
    score = prior * np.exp(0.9 * roughness).astype(np.float32)
    return tuple(
        np.stack([_above_quantile(s, w, load) for s, w in zip(score, white, strict=True)]) for load in loads
    )


def _above_quantile(score: Array, white: Array, load: int) -> Array:
    """Return a soft step of `score` [X, Y, Z] at the threshold above which `load` percent of `white` lie."""
    order = np.argsort(-score, axis=None, kind="stable")
    cumulative = np.cumsum(white.ravel()[order].astype(np.float64))
    last = int(np.searchsorted(cumulative, cumulative[-1] * load / 100.0))
    threshold = score.ravel()[order[min(last, len(order) - 1)]]
    width = max(0.15 * float(threshold), 1e-6)
    step = 1.0 / (1.0 + np.exp(-np.clip((score - threshold) / width * 4.0, -30, 30)))
    return np.asarray(step * np.clip(2.0 * white, 0, 1), dtype=np.float32)
