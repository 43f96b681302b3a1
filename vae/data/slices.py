"""One DICOM slice: what its elements claim, checked before its pixels are decoded.

Guarantees: only uncompressed transfer syntaxes are parsed, deflated ones are refused before they are
inflated; a length claimed inside a file cannot ask for more than the file holds
(tests/unit/vae/test_gate.py).
What it does not do: put slices together (`dicom`).

References: DICOM PS3.5 sections 7 and 10, PS3.3 C.7.6.2.
"""

from __future__ import annotations

import io
import math
import os
import struct
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from vae.data.limits import Limits, check_grid, check_size, read_some
from vae.data.quarantine import Reason, RefusedFileError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag

DICOM_SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")  # implicit and explicit VR little endian
DICOM_TAGS = (
    "PatientID",
    "SeriesInstanceUID",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "RescaleSlope",
    "RescaleIntercept",
)  # nothing else of a header is parsed: names and birth dates stay unread
DAMAGED = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    EOFError,
    OSError,
    NotImplementedError,
    RecursionError,
    struct.error,
)  # what parsers raise on damaged input; MemoryError and the like are faults of the machine and pass


@dataclass(frozen=True, kw_only=True)
class DicomHeader:
    """What a DICOM slice that passed the gate declares.

    Attributes:
        patient: PatientID, private; hidden from `repr`.
        series: SeriesInstanceUID.
        rows: Height of the slice [pixels].
        columns: Width of the slice [pixels].
        dtype: Of the stored values.
        affine: Rows of the 4 x 4 matrix from (column, row, 0) to RAS mm; third column: the slice normal.
        slope: RescaleSlope.
        intercept: RescaleIntercept.
        inverted: Whether low values are bright (MONOCHROME1).
    """

    patient: str = field(repr=False)
    series: str
    rows: int
    columns: int
    dtype: str
    affine: tuple[tuple[float, ...], ...]
    slope: float
    intercept: float
    inverted: bool

    @property
    def num_bytes(self) -> int:
        """Return the size of the decoded slice [bytes]."""
        return self.rows * self.columns * np.dtype(self.dtype).itemsize


def read_slice(stream: BinaryIO, limits: Limits) -> bytes:
    """Return the whole of one DICOM file, at most `limits.max_slice_bytes`.

    Read at once so that a length claimed inside the file can never ask for more than the file holds.
    """
    if os.fstat(stream.fileno()).st_size > limits.max_slice_bytes:
        raise RefusedFileError(Reason.TOO_LARGE, f"a DICOM file over {limits.max_slice_bytes} bytes")
    try:
        return read_some(stream, limits.max_slice_bytes)
    except OSError as error:  # a bad sector or a lost mount: one file, not the whole run
        raise RefusedFileError(Reason.UNREADABLE, type(error).__name__) from None


def parse_dicom(content: bytes, tags: tuple[str, ...] = DICOM_TAGS) -> Dataset:
    """Parse some elements of an uncompressed DICOM file; the transfer syntax is looked at first.

    Raises:
        RefusedFileError: it is no DICOM file, its transfer syntax is not on the list, or it is damaged.
    """
    import pydicom
    from pydicom.config import disable_value_validation
    from pydicom.errors import BytesLengthException, InvalidDicomError
    from pydicom.filereader import read_dataset

    if content[128:132] != b"DICM":
        raise RefusedFileError(Reason.HEADER, "no DICM mark at byte 128")
    try:
        # pydicom's warnings and logs quote values, which may name a patient; what is used is checked below
        with warnings.catch_warnings(), disable_value_validation():
            warnings.simplefilter("ignore")
            meta = read_dataset(io.BytesIO(content[132:]), False, True, stop_when=_after_meta)
            syntax = str(meta.get("TransferSyntaxUID", ""))
            if syntax not in DICOM_SYNTAXES:
                raise RefusedFileError(Reason.CODEC, f"transfer syntax {syntax[:64]!r}")
            parsed = pydicom.dcmread(io.BytesIO(content), specific_tags=list(tags))
            for tag in tags:
                parsed.get(tag)  # values are converted when first read: do it under this guard
    except (*DAMAGED, BytesLengthException, InvalidDicomError):
        raise RefusedFileError(Reason.HEADER, "the DICOM elements cannot be parsed") from None
    return parsed


def check_dicom_bytes(content: bytes, limits: Limits) -> DicomHeader:
    """Check one DICOM slice that was read into memory; see `check_dicom`."""
    parsed = parse_dicom(content)
    try:
        header = _slice_header(parsed)
    except DAMAGED:
        raise RefusedFileError(Reason.HEADER, "an element is missing or has no valid value") from None
    check_size((header.rows, header.columns), np.dtype(header.dtype).itemsize, limits)
    if header.num_bytes > len(content):
        raise RefusedFileError(Reason.TRUNCATED, f"{len(content)} bytes stored, {header.num_bytes} declared")
    if not (math.isfinite(header.slope) and math.isfinite(header.intercept) and header.slope != 0):
        raise RefusedFileError(Reason.HEADER, "RescaleSlope and RescaleIntercept must be finite, slope not 0")
    check_grid(np.asarray(header.affine), limits)
    return header


def _after_meta(tag: BaseTag, vr: str | None, length: int) -> bool:
    """Stop after group 0002, the file's own meta information."""
    return int(tag) >> 16 != 0x0002


def _slice_header(parsed: Dataset) -> DicomHeader:
    """Return what the elements of one slice declare."""
    bits, signed = int(parsed.BitsAllocated), int(parsed.PixelRepresentation)
    if (bits, signed) not in {(8, 0), (16, 0), (16, 1), (32, 0), (32, 1)} or int(parsed.SamplesPerPixel) != 1:
        raise RefusedFileError(Reason.DTYPE, f"{bits} bits; grey values of 8, 16 or 32 bits are read")
    if str(parsed.PhotometricInterpretation) not in {"MONOCHROME1", "MONOCHROME2"}:
        raise RefusedFileError(Reason.DTYPE, "colour images are not read")
    rows, columns = int(parsed.Rows), int(parsed.Columns)
    if rows < 1 or columns < 1 or int(parsed.get("NumberOfFrames") or 1) != 1:
        raise RefusedFileError(Reason.DIMENSIONS, "one slice a file is read, of at least one pixel")
    patient = str(parsed.get("PatientID") or "").strip()
    if not patient:
        raise RefusedFileError(Reason.PATIENT, "PatientID is empty")
    along_row, along_column = np.asarray(parsed.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    row_mm, column_mm = (float(value) for value in parsed.PixelSpacing)  # between rows, between columns
    affine = np.eye(4)
    affine[:3, 0] = along_row * column_mm
    affine[:3, 1] = along_column * row_mm
    affine[:3, 2] = np.cross(along_row, along_column)
    affine[:3, 3] = np.asarray(parsed.ImagePositionPatient, dtype=np.float64)
    affine[:2] *= -1  # DICOM points to the left and back, NIfTI to the right and front
    return DicomHeader(
        patient=patient,
        series=str(parsed.get("SeriesInstanceUID") or ""),
        rows=rows,
        columns=columns,
        dtype=f"{'i' if signed else 'u'}{bits // 8}",
        affine=tuple(tuple(float(value) for value in row) for row in affine),
        slope=float(parsed.get("RescaleSlope", 1.0) or 0.0),
        intercept=float(parsed.get("RescaleIntercept", 0.0) or 0.0),
        inverted=str(parsed.PhotometricInterpretation) == "MONOCHROME1",
    )
