"""What a scan may claim: limits, and the checks of size and geometry that every format shares.

Guarantees: sizes are multiplied as Python integers, which do not overflow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from vae.data.quarantine import Reason, RefusedFileError

_MIN_DETERMINANT = 0.1  # of the direction cosines: 1 for a rotation, 0 for a singular matrix


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a scan may claim.

    Attributes:
        max_voxels: Of one volume, before and after resampling.
        max_bytes: Of one decoded volume.
        max_ratio: Decoded over stored bytes of a gzip file: about 2 for a scan, 10 for a label map,
            1,030 for zeros.
        max_slice_bytes: Of one DICOM file.
        voxel_mm: Smallest and largest voxel size [mm].
        slack_bytes: May follow the image in its file.
    """

    max_voxels: int = 512**3
    max_bytes: int = 4 * 1024**3
    max_ratio: float = 200.0
    max_slice_bytes: int = 128 * 1024**2
    voxel_mm: tuple[float, float] = (0.01, 100.0)
    slack_bytes: int = 4096


DEFAULT_LIMITS = Limits()


def read_some(content: BinaryIO, size: int) -> bytes:
    """Return up to `size` bytes; fewer only at the end of the file."""
    chunks = bytearray()
    while len(chunks) < size and (chunk := content.read(size - len(chunks))):
        chunks += chunk
    return bytes(chunks)


def check_grid(affine: npt.NDArray[np.float64], limits: Limits) -> tuple[float, float, float]:
    """Return the voxel sizes [mm] of an affine after checking that it is finite, plausible and not
    singular.

    Raises:
        RefusedFileError: it is not.
    """
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise RefusedFileError(Reason.AFFINE, "the affine is not finite")
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    low, high = limits.voxel_mm
    if not ((sizes >= low) & (sizes <= high)).all():
        raise RefusedFileError(Reason.VOXEL_SIZE, f"voxel sizes outside {low} to {high} mm")
    if abs(float(np.linalg.det(affine[:3, :3] / sizes))) < _MIN_DETERMINANT:
        raise RefusedFileError(Reason.AFFINE, "the axes of the affine are nearly parallel")
    return (float(sizes[0]), float(sizes[1]), float(sizes[2]))


def check_size(shape: tuple[int, ...], itemsize: int, limits: Limits) -> None:
    """Refuse a volume of more voxels or bytes than the limits (Python integers: no overflow)."""
    voxels = math.prod(shape)
    if voxels > limits.max_voxels or voxels * itemsize > limits.max_bytes:
        raise RefusedFileError(Reason.TOO_LARGE, f"{shape} voxels of {itemsize} bytes are over the limit")
