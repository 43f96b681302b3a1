"""From a scan as stored to a record as trained: orientation, spacing, intensity, size (MONAI
transforms).

The order is fixed: axes to right-anterior-superior, resampling, intensities to [0, 1], optionally the
middle axial slice, centre crop or padding with 0. Every step looks at one scan only: no statistic
crosses patients, so nothing here costs privacy.
What it does not do: read files, register scans to one another or to a template, strip skulls.

References: MONAI 1.6, `monai.transforms`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt

from vae.data.limits import DEFAULT_LIMITS, Limits, check_size
from vae.data.quarantine import Reason, RefusedFileError

FloatArray = npt.NDArray[np.float32]

FORMAT = 1  # raise when the meaning of a prepared record changes: old cache files are then left alone
_LIBRARIES = ("monai", "nibabel", "numpy", "pydicom", "torch")


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How every scan of a study is brought to one grid and one intensity range. Public: part of the
    study.

    Attributes:
        shape: Sizes (X, Y, Z) towards right, anterior, superior; (X, Y) with `slab`.
        spacing_mm: Voxel size after resampling [mm], or None to keep each scan's own.
        slab: Keep the middle axial slice only.
        window: Intensities that become 0 and 1, a public constant (CT, quantitative maps, SUV). None
            takes `percentiles` of each scan by itself.
        percentiles: Lower and upper percentile of one scan that become 0 and 1; used without `window`.
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, float, float] | None = None
    slab: bool = False
    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] = (0.5, 99.5)

    def __post_init__(self) -> None:
        axes = 2 if self.slab else 3
        low, high = self.percentiles
        problems = [
            text
            for broken, text in (
                (len(self.shape) != axes, f"shape needs {axes} entries with slab={self.slab}"),
                (any(size < 1 for size in self.shape), "shape must be positive"),
                (any(not 0 < mm < math.inf for mm in self.spacing_mm or ()), "spacing_mm must be positive"),
                (self.spacing_mm is not None and len(self.spacing_mm) != 3, "spacing_mm needs 3 entries"),
                (
                    self.window is not None and not _ascending(self.window),
                    "window must be (low, high), low < high",
                ),
                (not 0 <= low < high <= 100, "percentiles must be ascending in [0, 100]"),
            )
            if broken
        ]
        if problems:
            raise ValueError("preparation: " + "; ".join(problems))

    def hash(self) -> str:
        """Return the SHA-256 over this preparation, the versions of its libraries, and `FORMAT`."""
        text = json.dumps([FORMAT, dataclasses.asdict(self), _versions()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Volume:
    """One decoded scan.

    Attributes:
        values: [I, J, K] float32, intensities as the scanner meant them (slope and intercept applied).
        affine: [4, 4] float64, from voxel index to RAS mm.
        dtype: Of the stored values, for the readiness report.
        voxel_mm: Voxel sizes [mm].
    """

    values: FloatArray
    affine: npt.NDArray[np.float64]
    dtype: str
    voxel_mm: tuple[float, float, float]


def prepare_volume(
    volume: Volume, preparation: Preparation, *, limits: Limits = DEFAULT_LIMITS
) -> FloatArray:
    """Bring one scan to the grid and intensity range of the study.

    Args:
        volume: The decoded scan.
        preparation: What the study fixed.
        limits: Cap on the resampled size, checked before memory is taken.

    Returns:
        [*preparation.shape] float32 in [0, 1]; outside the scan 0.

    Raises:
        RefusedFileError: non-finite voxels, a constant image, a resampled grid over the limit, or an
            orientation that the transforms cannot handle.

    Guarantees:
        A function of the scan and the preparation only (test_prepare.py).
    """
    window = intensity_range(volume.values, preparation)
    try:
        prepared = _transform(volume, preparation, window, limits)
    except (ValueError, RuntimeError):  # one odd scan must not stop the others
        raise RefusedFileError(Reason.PREPARATION, f"a scan of {volume.values.shape} voxels") from None
    return np.ascontiguousarray(prepared, dtype=np.float32)


def intensity_range(values: FloatArray, preparation: Preparation) -> tuple[float, float]:
    """Return the intensities that become 0 and 1: the public window, or this scan's own percentiles.

    Raises:
        RefusedFileError: non-finite voxels, or nothing between the two.
    """
    if not np.isfinite(values).all():
        raise RefusedFileError(Reason.NON_FINITE, "the image holds NaN or infinity")
    least, most = float(values.min()), float(values.max())
    if preparation.window is not None:
        low, high = preparation.window
        if least == most or most <= low or least >= high:
            raise RefusedFileError(Reason.CONSTANT, f"no voxel inside the window {low} to {high}")
        return low, high
    low, high = (float(bound) for bound in np.percentile(values, preparation.percentiles))
    if not high > low:
        raise RefusedFileError(Reason.CONSTANT, "both percentiles are the same value")
    return low, high


def _transform(
    volume: Volume, preparation: Preparation, window: tuple[float, float], limits: Limits
) -> npt.NDArray[np.generic]:
    """Run the chain of MONAI transforms (imported here: the import takes seconds)."""
    import torch
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms.croppad.array import ResizeWithPadOrCrop
    from monai.transforms.intensity.array import ScaleIntensityRange
    from monai.transforms.spatial.array import Orientation, Spacing

    image: Any = MetaTensor(torch.from_numpy(volume.values)[None], affine=torch.from_numpy(volume.affine))
    image = Orientation(axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S")))(image)
    if preparation.spacing_mm is not None:
        resample = Spacing(pixdim=preparation.spacing_mm, mode="bilinear", padding_mode="border")
        # ask for the size before taking the memory: thick or sheared voxels make much of a small file
        planned: Any = resample(image, lazy=True)
        check_size(tuple(planned.peek_pending_shape()), image.element_size(), limits)
        image = resample(image)
    image = ScaleIntensityRange(a_min=window[0], a_max=window[1], b_min=0.0, b_max=1.0, clip=True)(image)
    if preparation.slab:
        middle = int(image.shape[-1]) // 2
        image = image[..., middle : middle + 1]
    target = (*preparation.shape, 1) if preparation.slab else preparation.shape
    image = ResizeWithPadOrCrop(target)(image)
    prepared: npt.NDArray[np.generic] = image.as_tensor()[0].numpy()
    return prepared[..., 0] if preparation.slab else prepared


@functools.cache
def _versions() -> dict[str, str]:
    """Return the versions of the libraries whose code shapes a prepared record."""
    return {name: metadata.version(name) for name in _LIBRARIES}


def _ascending(pair: tuple[float, float]) -> bool:
    """Return whether a pair is finite and strictly ascending."""
    return math.isfinite(pair[0]) and math.isfinite(pair[1]) and pair[0] < pair[1]
