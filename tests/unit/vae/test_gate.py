"""The header gate refuses what a scan cannot be, before it is decoded, and lets honest scans pass."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom.uid import JPEG2000Lossless, RLELossless

from tests.support.hostile_files import (
    MIB,
    claim_of_30000_cubed,
    deflated_bomb,
    dicom_slice,
    gzip_bomb,
    late_gzip_bomb,
    nifti_bytes,
    scan,
    write_dicom,
    write_nifti,
)
from vae.data.gate import Limits, check_dicom, check_nifti, resolve_inside
from vae.data.nifti import read_nifti
from vae.data.quarantine import Reason, RefusedFileError

REPOSITORY = Path(__file__).resolve().parents[3]
LABEL_MAP = REPOSITORY.parent / "shared" / "data" / "labelmaps" / "founder_01.nii.gz"


def refused(path: Path, root: Path, limits: Limits | None = None) -> Reason:
    with pytest.raises(RefusedFileError) as caught:
        check_nifti(path, root, limits or Limits())
    return caught.value.reason


@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
def test_an_honest_scan_passes(tmp_path, extension):
    affine = np.array([[-2.0, 0, 0, 10], [0, 1.5, 0, 20], [0, 0, 3.0, 30], [0, 0, 0, 1]])
    path = write_nifti(tmp_path / f"a{extension}", scan(1), affine, scl_slope=2.0, scl_inter=-5.0)
    header = check_nifti(path, tmp_path)
    assert header.shape == (12, 14, 10)
    assert header.num_bytes == 12 * 14 * 10 * 2
    assert header.voxel_mm == (2.0, 1.5, 3.0)
    assert np.array_equal(header.affine, affine)
    assert (header.slope, header.intercept) == (2.0, -5.0)
    assert header.compressed == extension.endswith(".gz")


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_what_nibabel_writes_passes_and_reads_as_nibabel_reads_it(tmp_path, kind):
    affine = np.array([[0, -2.0, 0, 10], [1.5, 0, 0, 20], [0, 0.5, 3.0, 30], [0, 0, 0, 1]])
    nib.save(kind(scan(2).astype(np.float32) / 7, affine), tmp_path / "a.nii.gz")
    volume = read_nifti("a.nii.gz", tmp_path)
    independent = nib.load(tmp_path / "a.nii.gz")
    assert np.array_equal(volume.values, independent.get_fdata(dtype=np.float32))
    assert np.allclose(volume.affine, independent.affine)


@pytest.mark.skipif(not LABEL_MAP.exists(), reason="the shared label maps are not beside this checkout")
def test_a_real_label_map_passes():
    header = check_nifti(LABEL_MAP.name, LABEL_MAP.parent)
    assert header.shape == nib.load(LABEL_MAP).shape


def test_big_endian_and_trailing_unit_axes_are_read(tmp_path):
    array = scan(3).astype(">i2")[..., None, None]
    header = nib.Nifti1Header(endianness=">")
    header.set_data_shape(array.shape)
    header.set_data_dtype(np.int16)
    header["vox_offset"] = 352
    (tmp_path / "a.nii").write_bytes(header.binaryblock + b"\0" * 4 + array.tobytes(order="F"))
    assert np.array_equal(read_nifti("a.nii", tmp_path).values, scan(3))


def test_1352_bytes_cannot_claim_30000_cubed_voxels(tmp_path):
    path = claim_of_30000_cubed(tmp_path / "lie.nii")
    assert path.stat().st_size == 1352
    assert refused(path, tmp_path) is Reason.TOO_LARGE


def test_a_claim_below_the_cap_is_held_against_the_file_size(tmp_path):
    # 64^3 x 4 bytes = 1 MiB declared, 4 bytes stored
    content = nifti_bytes(np.zeros((1, 1, 1), np.float32), dim=[3, 64, 64, 64, 1, 1, 1, 1])
    (tmp_path / "a.nii").write_bytes(content)
    assert refused(tmp_path / "a.nii", tmp_path) is Reason.TRUNCATED


def test_the_ratio_cap_refuses_a_gzip_of_zeros_before_it_is_inflated(tmp_path):
    path = gzip_bomb(tmp_path / "bomb.nii.gz", mebibytes=64, shape=(256, 256, 256))
    assert path.stat().st_size < 70_000
    assert refused(path, tmp_path) is Reason.RATIO
    # the same file passes where the cap is above its ratio: it is the cap that refuses
    assert check_nifti(path, tmp_path, Limits(max_ratio=2000.0)).shape == (256, 256, 256)


def test_a_stream_that_goes_on_after_its_image_is_refused(tmp_path):
    late_gzip_bomb(tmp_path / "late.nii.gz", scan(4), mebibytes=1)
    check_nifti("late.nii.gz", tmp_path)  # the header is honest
    with pytest.raises(RefusedFileError) as caught:
        read_nifti("late.nii.gz", tmp_path)
    assert caught.value.reason is Reason.TRAILING_DATA


def test_gzip_padding_before_and_after_costs_no_time(tmp_path):
    empty = gzip.compress(b"", mtime=0)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(nifti_bytes(scan(1)), mtime=0) + empty * 1000)
    assert refused(tmp_path / "a.nii.gz", tmp_path) is Reason.TRAILING_DATA


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_cut_gzip_stream_is_truncated(tmp_path, cut):
    content = gzip.compress(nifti_bytes(scan(5)), mtime=0)
    (tmp_path / "a.nii.gz").write_bytes(content[:-cut])
    with pytest.raises(RefusedFileError) as caught:
        read_nifti("a.nii.gz", tmp_path)
    assert caught.value.reason is Reason.TRUNCATED


def test_a_damaged_gzip_checksum_is_found(tmp_path):
    content = bytearray(gzip.compress(nifti_bytes(scan(6)), mtime=0))
    content[-8] ^= 1
    (tmp_path / "a.nii.gz").write_bytes(bytes(content))
    with pytest.raises(RefusedFileError) as caught:
        read_nifti("a.nii.gz", tmp_path)
    assert caught.value.reason is Reason.DECODING


BAD_FIELDS = [
    ({"dim": [3, 0, 4, 4, 1, 1, 1, 1]}, Reason.DIMENSIONS),
    ({"dim": [3, -4, 4, 4, 1, 1, 1, 1]}, Reason.DIMENSIONS),
    ({"dim": [2, 4, 16, 1, 1, 1, 1, 1]}, Reason.DIMENSIONS),
    ({"dim": [9, 4, 4, 4, 1, 1, 1, 1]}, Reason.HEADER),  # no byte order makes sense of it
    ({"dim": [-1, 4, 4, 4, 1, 1, 1, 1]}, Reason.HEADER),
    ({"dim": [4, 2, 4, 4, 2, 1, 1, 1]}, Reason.DIMENSIONS),
    ({"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, Reason.TOO_LARGE),
    ({"datatype": 32, "bitpix": 64}, Reason.DTYPE),  # complex64
    ({"datatype": 128, "bitpix": 24}, Reason.DTYPE),  # RGB
    ({"datatype": 1, "bitpix": 1}, Reason.DTYPE),  # binary
    ({"datatype": 7777}, Reason.DTYPE),
    ({"bitpix": 64}, Reason.DTYPE),
    ({"pixdim": [1, np.nan, 1, 1, 0, 0, 0, 0]}, Reason.VOXEL_SIZE),
    ({"pixdim": [1, -1, 1, 1, 0, 0, 0, 0]}, Reason.VOXEL_SIZE),
    ({"pixdim": [1, 0, 1, 1, 0, 0, 0, 0]}, Reason.VOXEL_SIZE),
    ({"pixdim": [1, np.inf, 1, 1, 0, 0, 0, 0]}, Reason.VOXEL_SIZE),
    ({"srow_x": [1e6, 0, 0, 0]}, Reason.VOXEL_SIZE),
    ({"srow_x": [np.nan, 0, 0, 0]}, Reason.AFFINE),
    ({"srow_x": [0, 1, 0, 0]}, Reason.VOXEL_SIZE),  # first column zero: no extent along the first axis
    ({"srow_x": [1, 1, 0, 0], "srow_y": [0, 0.05, 0, 0]}, Reason.AFFINE),  # two axes nearly parallel
    ({"sform_code": 0, "qform_code": 1, "quatern_b": 5.0}, Reason.AFFINE),
    ({"vox_offset": 0}, Reason.HEADER),
    ({"vox_offset": np.nan}, Reason.HEADER),
    ({"vox_offset": -352}, Reason.HEADER),
    ({"vox_offset": 1e12}, Reason.HEADER),
    ({"vox_offset": 400}, Reason.TRUNCATED),
    ({"scl_slope": 1.0, "scl_inter": np.inf}, Reason.HEADER),
    ({"magic": b"ni1"}, Reason.HEADER),
    ({"sizeof_hdr": 349}, Reason.HEADER),
]


@pytest.mark.parametrize(("fields", "reason"), BAD_FIELDS, ids=lambda value: str(value)[:40])
def test_each_lie_of_a_header_has_its_reason(tmp_path, fields, reason):
    path = write_nifti(tmp_path / "a.nii", np.zeros((4, 4, 4), np.float32), **fields)
    assert refused(path, tmp_path) is reason


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"n+1\0", b"\0" * 348, b"PK\x03\x04" * 200])
def test_no_nifti_at_all(tmp_path, content):
    (tmp_path / "a.nii").write_bytes(content)
    assert refused(tmp_path / "a.nii", tmp_path) in {Reason.HEADER, Reason.TRUNCATED}


def test_data_after_an_uncompressed_image_is_refused(tmp_path):
    path = write_nifti(tmp_path / "a.nii", scan(1))
    path.write_bytes(path.read_bytes() + b"\0" * 5000)
    assert refused(path, tmp_path) is Reason.TRAILING_DATA


MEASURE = """
    import json, sys
    from pathlib import Path
    from vae.data.gate import Limits
    from vae.data.nifti import read_nifti
    from vae.data.dicom import read_series
    from vae.data.quarantine import RefusedFileError
    import nibabel, pydicom, pydicom.filereader, numpy as np

    def peak_kib():
        text = Path("/proc/self/status").read_text()
        return int(text.split("VmHWM:")[1].split()[0])

    kind, path, root, ratio = sys.argv[1:5]
    np.percentile(np.zeros(10), 50)
    before = peak_kib()
    try:
        if kind == "nifti":
            read_nifti(path, root, Limits(max_ratio=float(ratio)))
        else:
            read_series(path, root)
        reason = "none"
    except RefusedFileError as error:
        reason = error.reason.value
    print(json.dumps({"reason": reason, "growth": (peak_kib() - before) * 1024}))
"""


def measure(kind: str, path: str, root: Path, *, ratio: float = 200.0) -> tuple[str, int]:
    """Return (reason, growth of peak memory in bytes) of reading a file in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE), kind, path, str(root), str(ratio)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = json.loads(result.stdout)
    return str(found["reason"]), int(found["growth"])


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="peak memory is read from /proc"
)


@needs_proc
def test_memory_a_bomb_of_one_gibibyte_is_never_inflated(tmp_path):
    path = gzip_bomb(tmp_path / "bomb.nii.gz", mebibytes=1024, shape=(512, 512, 512))
    assert path.stat().st_size < 1.1 * MIB
    reason, growth = measure("nifti", "bomb.nii.gz", tmp_path)
    assert (reason, growth < 64 * MIB) == ("compression-ratio", True), f"{growth / MIB:.0f} MiB"


@needs_proc
def test_memory_a_stream_is_inflated_to_what_its_header_declares_and_no_further(tmp_path):
    # the header declares 16^3 float32 = 16 KiB, the stream holds 256 MiB, the ratio cap is out of the way
    gzip_bomb(tmp_path / "late.nii.gz", mebibytes=256, shape=(16, 16, 16))
    reason, growth = measure("nifti", "late.nii.gz", tmp_path, ratio=1e9)
    # stored bytes exceed what 16 KiB could need, so the size check already refuses it
    assert reason == "trailing-data"
    assert growth < 64 * MIB, f"{growth / MIB:.0f} MiB"


@needs_proc
def test_memory_a_late_bomb_stops_at_the_slack(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(-30000, 30000, size=(128, 128, 64)).astype(np.int16)  # 2 MiB that do not compress
    late_gzip_bomb(tmp_path / "late.nii.gz", noise, mebibytes=300)
    reason, growth = measure("nifti", "late.nii.gz", tmp_path)
    assert reason == "trailing-data"
    assert growth < 64 * MIB, f"{growth / MIB:.0f} MiB"


@needs_proc
def test_memory_this_measurement_sees_an_honest_file_of_256_mebibytes(tmp_path):
    # the control: what is really there is allowed, and the measurement does see it
    gzip_bomb(tmp_path / "big.nii.gz", mebibytes=256, shape=(512, 512, 256))
    reason, growth = measure("nifti", "big.nii.gz", tmp_path, ratio=2000.0)
    assert reason == "none"
    assert growth > 200 * MIB


@needs_proc
def test_memory_a_deflated_dicom_is_refused_before_it_is_inflated(tmp_path):
    folder = tmp_path / "series"
    folder.mkdir()
    for layer in range(2):
        deflated_bomb(folder / f"{layer}.dcm", mebibytes=256)
    reason, growth = measure("dicom", "series", tmp_path)
    assert reason == "codec"
    assert growth < 64 * MIB, f"{growth / MIB:.0f} MiB"


def refused_dicom(tmp_path: Path, **elements: object) -> Reason:
    write_dicom(tmp_path / "a.dcm", dicom_slice(np.zeros((4, 6), np.int16), **elements))
    with pytest.raises(RefusedFileError) as caught:
        check_dicom("a.dcm", tmp_path)
    return caught.value.reason


def test_an_honest_slice_passes(tmp_path):
    write_dicom(tmp_path / "a.dcm", dicom_slice(np.zeros((4, 6), np.int16), position=30.0))
    header = check_dicom("a.dcm", tmp_path)
    assert (header.rows, header.columns, header.dtype, header.num_bytes) == (4, 6, "i2", 48)
    assert (header.slope, header.intercept) == (2.0, -100.0)
    # columns lie 1.5 mm apart along the patient's left (RAS: -x), rows 2 mm along the back (RAS: -y)
    assert np.array_equal(header.affine, [[-1.5, 0, 0, 10], [0, -2.0, 0, 20], [0, 0, 1, 30.0], [0, 0, 0, 1]])
    assert "P1" not in repr(header)


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"Rows": 60000, "Columns": 60000}, Reason.TOO_LARGE),
        ({"Rows": 4000, "Columns": 4000}, Reason.TRUNCATED),
        ({"Rows": 0}, Reason.DIMENSIONS),
        ({"NumberOfFrames": 2}, Reason.DIMENSIONS),
        ({"BitsAllocated": 1}, Reason.DTYPE),
        ({"SamplesPerPixel": 3}, Reason.DTYPE),
        ({"PhotometricInterpretation": "RGB"}, Reason.DTYPE),
        ({"PixelSpacing": [0.0, 1.0]}, Reason.VOXEL_SIZE),
        ({"PixelSpacing": None}, Reason.HEADER),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, Reason.VOXEL_SIZE),
        ({"ImageOrientationPatient": [1, 0, 0]}, Reason.HEADER),
        ({"RescaleSlope": 0.0}, Reason.HEADER),
        ({"PatientID": "  "}, Reason.PATIENT),
        ({"PatientID": None}, Reason.PATIENT),
    ],
    ids=str,
)
def test_each_lie_of_a_slice_has_its_reason(tmp_path, elements, reason):
    assert refused_dicom(tmp_path, **elements) is reason


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless, "1.2.3.4", ""])
def test_only_uncompressed_transfer_syntaxes_pass(tmp_path, syntax):
    path = write_dicom(tmp_path / "a.dcm", dicom_slice(np.zeros((4, 6), np.int16)))
    content = path.read_bytes()
    old = b"1.2.840.10008.1.2.1\0"
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, str(syntax).encode().ljust(len(old), b"\0")[: len(old)]))
    with pytest.raises(RefusedFileError) as caught:
        check_dicom("a.dcm", tmp_path)
    assert caught.value.reason is Reason.CODEC


def test_a_claimed_element_length_cannot_ask_for_more_than_the_file_holds(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", dicom_slice(np.zeros((4, 6), np.int16), PatientID="PATIENTX"))
    content = path.read_bytes()
    # explicit VR: tag, "LO", 2-byte length; turn the PatientID into UN with a 4-byte length of nearly 4 GiB
    start = content.index(b"\x10\x00\x20\x00LO")
    hostile = content[: start + 4] + b"UN\0\0\xf0\xff\xff\xff" + content[start + 8 :]
    path.write_bytes(hostile)
    with pytest.raises(RefusedFileError) as caught:
        check_dicom("a.dcm", tmp_path)
    assert caught.value.reason is Reason.HEADER


def test_a_dicom_file_over_its_cap_is_not_read(tmp_path):
    write_dicom(tmp_path / "a.dcm", dicom_slice(np.zeros((4, 6), np.int16)))
    with pytest.raises(RefusedFileError, match="too-large"):
        check_dicom("a.dcm", tmp_path, Limits(max_slice_bytes=100))


def test_a_message_names_the_rule_and_the_way_out(tmp_path):
    claim_of_30000_cubed(tmp_path / "lie.nii")
    with pytest.raises(RefusedFileError, match=r"30000.*over the limit \[too-large\]; more voxels.*crop"):
        check_nifti("lie.nii", tmp_path)


def test_resolve_inside_is_exported_from_the_gate(tmp_path):
    write_nifti(tmp_path / "a.nii", scan(1))
    assert resolve_inside(tmp_path, "a.nii") == (tmp_path / "a.nii").resolve()
