"""Builds scans that are honest and scans that lie, in temporary folders: no bomb is ever committed."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    generate_uid,
)

MIB = 1 << 20


def nifti_bytes(array: np.ndarray, affine: np.ndarray | None = None, **fields: object) -> bytes:
    """Return a NIfTI-1 file; `fields` overwrite header fields after everything else was set."""
    header = nib.Nifti1Header()
    header.set_data_shape(array.shape)
    header.set_data_dtype(array.dtype)
    header.set_sform(np.eye(4) if affine is None else affine, code=1)
    header["pixdim"][1:4] = 1.0 if affine is None else np.linalg.norm(affine[:3, :3], axis=0)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + b"\0" * 4 + array.tobytes(order="F")


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None, **fields: object) -> Path:
    """Write a NIfTI file, gzip if the name ends with .gz."""
    content = nifti_bytes(array, affine, **fields)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, 1, mtime=0) if path.name.endswith(".gz") else content)
    return path


def scan(seed: int, shape: tuple[int, int, int] = (12, 14, 10)) -> np.ndarray:
    """Return int16 noise with a bright box, different for each seed."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 100, size=shape).astype(np.int16)
    values[shape[0] // 4 : shape[0] // 2] += 500
    return values


def claim_of_30000_cubed(path: Path) -> Path:
    """Write 1,352 bytes whose header declares 30000^3 float32 voxels (98 TiB)."""
    header = nifti_bytes(np.zeros((1, 1, 1), np.float32), dim=[3, 30000, 30000, 30000, 1, 1, 1, 1])[:352]
    path.write_bytes(header + b"\0" * 1000)
    return path


def gzip_bomb(path: Path, *, mebibytes: int, shape: tuple[int, int, int]) -> Path:
    """Write a gzip NIfTI of `mebibytes` zeros whose header declares float32 voxels of `shape`."""
    head = nifti_bytes(np.zeros((1, 1, 1), np.float32), dim=[3, *shape, 1, 1, 1, 1])[:352]
    with gzip.GzipFile(path, "wb", compresslevel=9, mtime=0) as stream:
        stream.write(head)
        for _ in range(mebibytes):
            stream.write(b"\0" * MIB)
    return path


def late_gzip_bomb(path: Path, array: np.ndarray, *, mebibytes: int) -> Path:
    """Write an honest gzip NIfTI that goes on with `mebibytes` of zeros after its voxels."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    with path.open("wb") as stream:
        stream.write(packer.compress(nifti_bytes(array)))
        for _ in range(mebibytes):
            stream.write(packer.compress(b"\0" * MIB))
        stream.write(packer.flush())
    return path


def dicom_slice(
    pixels: np.ndarray,
    *,
    patient: str = "P1",
    series: str = "1.2.3",
    position: float = 0.0,
    **elements: object,
) -> Dataset:
    """Return an axial CT slice; `elements` overwrite what is set here, None deletes."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[series, str(position)])
    item = Dataset()
    item.file_meta = meta
    item.SOPClassUID, item.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    item.PatientID, item.PatientName, item.SeriesInstanceUID = patient, "Secret^Name", series
    item.Rows, item.Columns = pixels.shape
    item.BitsAllocated = item.BitsStored = 8 * pixels.dtype.itemsize
    item.HighBit = item.BitsStored - 1
    item.PixelRepresentation = int(pixels.dtype.kind == "i")
    item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
    item.PixelSpacing, item.ImageOrientationPatient = [2.0, 1.5], [1, 0, 0, 0, 1, 0]
    item.ImagePositionPatient = [-10.0, -20.0, position]
    item.RescaleSlope, item.RescaleIntercept = 2.0, -100.0
    item.add_new("PixelData", "OW" if pixels.dtype.itemsize > 1 else "OB", pixels.tobytes())
    for name, value in elements.items():
        if value is None:
            delattr(item, name)
        else:
            setattr(item, name, value)
    return item


def write_dicom(path: Path, item: Dataset) -> Path:
    """Write one slice as a DICOM file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, item, enforce_file_format=True)
    return path


def write_series(folder: Path, volume: np.ndarray, **elements: object) -> Path:
    """Write [slices, rows, columns] as a series, 3 mm apart, in an order that is not that of the names."""
    for layer, pixels in enumerate(volume):
        item = dicom_slice(pixels, position=3.0 * layer, **elements)
        write_dicom(folder / f"IM{(layer * 7) % len(volume):03d}.dcm", item)
    return folder


def deflated_bomb(path: Path, *, mebibytes: int) -> Path:
    """Write a DICOM file in the deflated transfer syntax that inflates to `mebibytes` of zeros."""
    item = dicom_slice(np.zeros((2, 2), np.uint8), PixelData=b"\0" * (mebibytes * MIB))
    item.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return write_dicom(path, item)
