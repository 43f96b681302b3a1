"""The header gate: what a file claims is checked before anything is decoded or allocated.

Guarantees: no path leaves the data root (`..`, absolute names, links); no more is allocated than the
header declares, and the header may not declare more than `Limits`; compressed data are inflated in a
stream that stops there (tests/unit/vae/test_gate.py).
What it does not do: look at voxel values (`intake`), or protect from a bug in numpy, nibabel's header
parser or pydicom's element parser.

References: NIfTI-1.1 standard (nifti1.h); DICOM PS3.5 sections 7 and 10, PS3.3 C.7.6.2.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import numpy as np
import numpy.typing as npt

from vae.data.limits import DEFAULT_LIMITS, Limits, check_grid, check_size, read_some
from vae.data.paths import open_inside, resolve_inside
from vae.data.quarantine import Reason, RefusedFileError
from vae.data.slices import DicomHeader, check_dicom_bytes, read_slice

__all__ = [
    "DEFAULT_LIMITS",
    "DicomHeader",
    "Limits",
    "NiftiHeader",
    "check_dicom",
    "check_nifti",
    "resolve_inside",
]

NIFTI_DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64")
GZIP_MAGIC = b"\x1f\x8b"
_NIFTI1_BYTES, _NIFTI2_BYTES = 348, 540
_MAX_HEADER_BYTES = 1 << 20  # header and extensions before the voxels


@dataclass(frozen=True, kw_only=True)
class NiftiHeader:
    """What a NIfTI header that passed the gate declares.

    Attributes:
        shape: Three sizes (trailing axes of size 1 dropped).
        dtype: Of the stored values, numpy string with byte order.
        offset: First byte of the voxels in the (inflated) file.
        slope: Stored values times slope plus intercept are the intensities.
        intercept: See slope.
        affine: Rows of the 4 x 4 matrix from voxel index to RAS mm.
        voxel_mm: Voxel sizes [mm].
        compressed: Whether the file is gzip.
    """

    shape: tuple[int, int, int]
    dtype: str
    offset: int
    slope: float
    intercept: float
    affine: tuple[tuple[float, ...], ...]
    voxel_mm: tuple[float, float, float]
    compressed: bool

    @property
    def num_bytes(self) -> int:
        """Return the size of the decoded voxels [bytes]."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def check_nifti(path: str | Path, root: str | Path, limits: Limits = DEFAULT_LIMITS) -> NiftiHeader:
    """Check a NIfTI file's header against its size and the limits; nothing is decoded.

    Raises:
        RefusedFileError: with the reason.

    Guarantees:
        Only the first block of a gzip stream is inflated, some kilobytes (test_gate.py).
    """
    with open_inside(root, path) as stream:
        return check_nifti_stream(stream, limits)


def check_dicom(path: str | Path, root: str | Path, limits: Limits = DEFAULT_LIMITS) -> DicomHeader:
    """Check one DICOM slice: transfer syntax first, then size, type and geometry. Pixels are not
    decoded.

    Raises:
        RefusedFileError: with the reason; any compressed transfer syntax is refused, deflated ones
        before
            they are inflated.
    """
    with open_inside(root, path) as stream:
        return check_dicom_bytes(read_slice(stream, limits), limits)


def check_nifti_stream(stream: BinaryIO, limits: Limits) -> NiftiHeader:
    """Check the header of an open NIfTI file; see `check_nifti`."""
    stored = os.fstat(stream.fileno()).st_size
    if stored > limits.max_bytes + _MAX_HEADER_BYTES + limits.slack_bytes:
        raise RefusedFileError(Reason.TOO_LARGE, f"{stored} bytes stored")
    compressed = stream.read(2) == GZIP_MAGIC
    with inflated(stream, compressed=compressed) as content:
        header = _parse(read_some(content, _NIFTI2_BYTES), limits, compressed=compressed)
    declared = header.offset + header.num_bytes
    if not compressed and stored < declared:
        raise RefusedFileError(Reason.TRUNCATED, f"{stored} bytes stored, {declared} declared")
    if not compressed and stored > declared + limits.slack_bytes:
        raise RefusedFileError(Reason.TRAILING_DATA, f"{stored} bytes stored, {declared} declared")
    if compressed and declared > limits.max_ratio * stored:
        raise RefusedFileError(Reason.RATIO, f"{stored} bytes stored, {declared} declared")
    # gzip adds at most 0.1 % to what it cannot compress; more is padding that only costs time to read
    if compressed and stored > 1.01 * declared + limits.slack_bytes:
        raise RefusedFileError(Reason.TRAILING_DATA, f"{stored} bytes stored, {declared} declared")
    return header


@contextlib.contextmanager
def inflated(stream: BinaryIO, *, compressed: bool) -> Iterator[BinaryIO]:
    """Rewind `stream` and yield its content, inflated while it is read; bad gzip becomes a refusal."""
    stream.seek(0)
    try:
        if compressed:
            with gzip.GzipFile(fileobj=stream, mode="rb") as content:
                yield cast(BinaryIO, content)
        else:
            yield stream
    except EOFError:
        raise RefusedFileError(Reason.TRUNCATED, "the gzip stream ends early") from None
    except (gzip.BadGzipFile, zlib.error):
        raise RefusedFileError(Reason.DECODING, "the gzip stream is damaged") from None
    except OSError as error:  # a bad sector or a lost mount: one file, not the whole run
        raise RefusedFileError(Reason.UNREADABLE, type(error).__name__) from None


class _Fields(Protocol):
    """What is used of nibabel's header objects, which carry no types."""

    def __getitem__(self, name: str, /) -> npt.NDArray[np.generic]: ...
    def get_data_dtype(self) -> npt.DTypeLike: ...
    def get_best_affine(self) -> npt.NDArray[np.float64]: ...


def _parse(head: bytes, limits: Limits, *, compressed: bool) -> NiftiHeader:
    """Parse and check the fixed part of a NIfTI-1 or NIfTI-2 header."""
    import nibabel as nib

    kinds: dict[int, Callable[..., _Fields]] = {
        _NIFTI1_BYTES: nib.Nifti1Header,
        _NIFTI2_BYTES: nib.Nifti2Header,
    }
    if head[344:348] == b"n+1\0" and len(head) >= _NIFTI1_BYTES:
        size = _NIFTI1_BYTES
    elif head[4:8] == b"n+2\0" and len(head) == _NIFTI2_BYTES:
        size = _NIFTI2_BYTES
    else:
        raise RefusedFileError(Reason.HEADER, "no single-file NIfTI header")
    fields = kinds[size](head[:size], check=False)
    if int(fields["sizeof_hdr"]) != size:
        raise RefusedFileError(Reason.HEADER, f"sizeof_hdr is not {size}")
    shape = _shape([int(dim) for dim in fields["dim"]])
    dtype = _dtype(fields)
    check_size(shape, dtype.itemsize, limits)
    if not all(math.isfinite(p) and p > 0 for p in (float(value) for value in fields["pixdim"][1:4])):
        raise RefusedFileError(Reason.VOXEL_SIZE, "pixdim must be finite and positive")
    offset = float(fields["vox_offset"])
    if not (size + 4 <= offset <= _MAX_HEADER_BYTES and offset.is_integer()):
        raise RefusedFileError(Reason.HEADER, f"vox_offset must lie in {size + 4} to {_MAX_HEADER_BYTES}")
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0 or not math.isfinite(slope):  # the standard says 0 for none, nibabel 5.4 NaN
        slope, intercept = 1.0, 0.0
    if not math.isfinite(intercept):
        raise RefusedFileError(Reason.HEADER, "scl_inter is not finite")
    affine = _affine(fields)
    return NiftiHeader(
        shape=shape,
        dtype=dtype.str,
        offset=int(offset),
        slope=slope,
        intercept=intercept,
        affine=tuple(tuple(float(value) for value in row) for row in affine),
        voxel_mm=check_grid(affine, limits),
        compressed=compressed,
    )


def _shape(dim: list[int]) -> tuple[int, int, int]:
    """Return the three sizes that `dim` declares."""
    if not 3 <= dim[0] <= 7 or any(size < 1 for size in dim[1 : dim[0] + 1]):
        raise RefusedFileError(Reason.DIMENSIONS, "dim must declare 3 to 7 axes of at least one voxel")
    if any(size != 1 for size in dim[4 : dim[0] + 1]):
        raise RefusedFileError(Reason.DIMENSIONS, "a fourth or later axis has more than one entry")
    return (dim[1], dim[2], dim[3])


def _dtype(fields: _Fields) -> np.dtype[np.generic]:
    """Return the declared dtype if it is on the list and agrees with bitpix."""
    from nibabel.spatialimages import HeaderDataError

    try:
        dtype = np.dtype(fields.get_data_dtype())
    except (HeaderDataError, KeyError, TypeError, ValueError):
        raise RefusedFileError(Reason.DTYPE, "unknown datatype code") from None
    if dtype.newbyteorder("=").name not in NIFTI_DTYPES:
        raise RefusedFileError(Reason.DTYPE, f"dtype {dtype} is not one of {', '.join(NIFTI_DTYPES)}")
    if int(fields["bitpix"]) != 8 * dtype.itemsize:
        raise RefusedFileError(Reason.DTYPE, f"bitpix does not belong to dtype {dtype}")
    return np.dtype(dtype)


def _affine(fields: _Fields) -> npt.NDArray[np.float64]:
    """Return the header's best affine (sform, qform, or voxel sizes)."""
    from nibabel.spatialimages import HeaderDataError

    try:
        with np.errstate(all="ignore"):  # hostile numbers; the result is checked for being finite
            best = fields.get_best_affine()
            return np.asarray(best, dtype=np.float64)
    except (HeaderDataError, ValueError, ArithmeticError):
        raise RefusedFileError(Reason.AFFINE, "the header has no valid orientation") from None
