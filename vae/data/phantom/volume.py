"""Volumes as NIfTI files: bytes that depend on the content alone, and back."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from vae.data.phantom.deform import Lattice

_nib: Any = nibabel  # nibabel 5.4 is typed in parts only

UNREADABLE = (nibabel.filebasedimages.ImageFileError, OSError, EOFError)
"""What reading a file that is no NIfTI image raises."""


def encode_nifti(values: npt.NDArray[np.generic], lattice: Lattice) -> bytes:
    """Return a gzipped NIfTI-1 file: float images as scaled int16, masks as uint8.

    Args:
        values: [X, Y, Z] float32 >= 0, or bool.
        lattice: Its grid; the file is in RAS orientation.

    Guarantees:
        Equal values give equal bytes: no time stamp is stored.
    """
    if values.dtype == np.bool_:
        image = _nib.Nifti1Image(values.astype(np.uint8), lattice.affine())
    else:
        floats = values.astype(np.float64)
        slope = max(float(floats.max()), 1e-6) / 32_000.0
        image = _nib.Nifti1Image(np.rint(floats / slope).astype(np.int16), lattice.affine())
        image.header.set_slope_inter(slope, 0.0)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"synthetic"
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


def read_nifti(path: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Return the values [X, Y, Z] and the 4 x 4 matrix from index to mm of a file this package trusts."""
    image = _nib.load(path)
    return np.asarray(image.dataobj, dtype=np.float32), np.asarray(image.affine, dtype=np.float64)


def nifti_shape(path: Path) -> tuple[int, ...]:
    """Return the shape that a file's header claims, without reading its values."""
    return tuple(int(size) for size in _nib.load(path).shape)
