"""What a cell means, files that appear whole, and the whole way on real files that other projects ship."""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import stat
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vae.data.cache as cache_module
from tests.support.hostile_files import scan, write_nifti
from vae.data.dicom import read_series
from vae.data.durable import atomic_path, write_atomically
from vae.data.gate import check_dicom, check_nifti, inflated
from vae.data.intake import check_constants, label_array, number, scaled
from vae.data.limits import read_some
from vae.data.nifti import NiftiSource, open_nifti, read_nifti
from vae.data.prepare import Preparation
from vae.data.quarantine import Reason, RefusedFileError
from vae.errors import DataError, HostileFileError

NIBABEL_FILES = Path(nibabel.__file__).parent / "tests" / "data"
PYDICOM_FILES = Path(pydicom.__file__).parent / "data" / "test_files"


@settings(deadline=None)
@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_number_is_read_as_it_was_written(value):
    assert number(repr(value)) == value
    assert number(f"  {value!r} ") == value


@pytest.mark.parametrize(
    "cell", ["", " ", "n/a", "NA", "NaN", "None", "inf", "-Infinity", "1e400", "1_0", "1,0", "x"]
)
def test_no_number_is_made_up(cell):
    assert number(cell) is None


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_scaling_is_undone_by_its_constants(value, centre, scale):
    found = scaled({"age": repr(value)}, ("age",), {"age": (centre, scale)})
    assert found is not None
    assert found[0] * scale + centre == pytest.approx(value, abs=1e-6)


def test_a_record_without_one_of_its_values_has_none_of_them():
    constants = {"age": (0.0, 1.0), "weight": (0.0, 1.0)}
    assert scaled({"age": "3"}, ("age", "weight"), constants) is None
    assert scaled({"age": "3"}, (), {}) == ()


def test_labels_are_numbers_only_if_all_that_are_there_are():
    assert np.array_equal(label_array(["1", "n/a", "2.5"]), [1.0, np.nan, 2.5], equal_nan=True)
    assert label_array(["1", "left", "n/a"]).tolist() == ["1", "left", "n/a"]
    assert np.isnan(label_array(["", "n/a"])).all()


class _BadSector(io.BytesIO):
    """A stream on a disk that fails after its first bytes."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > 0:
            raise OSError(errno.EIO, "Input/output error")
        return super().read(1)


def test_a_disk_error_refuses_one_file_and_a_full_cache_disk_does_not(tmp_path, monkeypatch):
    with (
        pytest.raises(RefusedFileError, match="unreadable"),
        inflated(_BadSector(b"abc"), compressed=False) as s,
    ):
        read_some(s, 3)
    for index in (1, 2):
        write_nifti(tmp_path / f"d/sub-{index}/anat/sub-{index}_T1w.nii", scan(index))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):  # the site's fault, never blamed on a scan
        _open(str(tmp_path / "d"), str(tmp_path / "c"))


def test_constants_are_checked_by_name():
    check_constants(("age",), {"age": (50.0, 20.0)})
    with pytest.raises(DataError, match=r"'weight' has no public constants.*\(0, 1\) to leave it"):
        check_constants(("age", "weight"), {"age": (50.0, 20.0)})


def test_a_refusal_is_a_hostile_file_error_with_a_code():
    error = RefusedFileError(Reason.RATIO, "a.nii.gz: 10 bytes stored")
    assert isinstance(error, HostileFileError)
    assert error.reason is Reason.RATIO
    assert str(error).startswith("a.nii.gz: 10 bytes stored [compression-ratio]; compressed far more")


def test_a_failed_write_keeps_the_old_content_and_leaves_no_part(tmp_path):
    target = tmp_path / "new" / "file"
    write_atomically(target, b"old")

    def fail() -> None:
        with atomic_path(target) as partial:
            partial.write_bytes(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_bytes() == b"old"
    assert os.listdir(target.parent) == ["file"]  # noqa: PTH208
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert stat.S_IMODE(target.parent.stat().st_mode) == 0o700


def _open(root: str, cache: str) -> str:
    source = NiftiSource(root=root, preparation=Preparation(shape=(8, 8, 8)))
    return open_nifti(source, name="a", cache=Path(cache))[0].fingerprint()


@pytest.mark.slow
def test_two_processes_may_fill_one_cache_at_once(tmp_path):
    for index in range(6):
        write_nifti(tmp_path / f"d/sub-{index}/anat/sub-{index}_T1w.nii.gz", scan(index))
    job = (str(tmp_path / "d"), str(tmp_path / "c"))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        other = pool.apply_async(_open, job)
        own = [_open(*job) for _ in range(3)]
        assert {other.get(timeout=300), *own} == {_open(*job)}
    assert not list((tmp_path / "c").rglob(".partial-*"))


def test_a_scan_that_changes_is_prepared_anew(tmp_path):
    root, cache = tmp_path / "d", tmp_path / "c"
    write_nifti(root / "sub-1/anat/sub-1_T1w.nii", scan(1))
    first = _open(str(root), str(cache))
    write_nifti(root / "sub-1/anat/sub-1_T1w.nii", scan(2))
    second = _open(str(root), str(cache))
    write_nifti(root / "sub-1/anat/sub-1_T1w.nii", scan(1))
    assert first != second
    assert _open(str(root), str(cache)) == first


def test_a_cohort_batch_holds_the_prepared_scans(tmp_path):
    for index in (1, 2):
        write_nifti(tmp_path / f"d/sub-{index}/anat/sub-{index}_T1w.nii", scan(index))
    study = Preparation(shape=(12, 14, 10), window=(0.0, 1000.0))
    cohort, _ = open_nifti(
        NiftiSource(root=str(tmp_path / "d"), preparation=study), name="a", cache=tmp_path / "c"
    )
    batch = cohort.batch([1, 0])
    assert batch.values.shape == (2, 1, 12, 14, 10)
    for row, seed in enumerate((2, 1)):
        assert np.allclose(batch.values[row, 0].numpy(), np.clip(scan(seed) / 1000, 0, 1), atol=1e-6)


@pytest.mark.skipif(not NIBABEL_FILES.is_dir(), reason="this nibabel was installed without its test files")
def test_real_nifti_files_are_read_as_nibabel_reads_them_or_refused_for_a_reason():
    read, refused = [], {}
    for path in sorted([*NIBABEL_FILES.glob("*.nii"), *NIBABEL_FILES.glob("*.nii.gz")]):
        try:
            check_nifti(path.name, NIBABEL_FILES)
            volume = read_nifti(path.name, NIBABEL_FILES)
        except RefusedFileError as error:
            refused[path.name] = error.reason
            continue
        image = nibabel.load(path)
        assert np.allclose(volume.values, image.get_fdata().reshape(volume.values.shape), equal_nan=True), (
            path.name
        )
        assert np.allclose(volume.affine, image.affine), path.name
        read.append(path.name)
    assert "anatomical.nii" in read
    assert refused["example4d.nii.gz"] is Reason.DIMENSIONS


@pytest.mark.skipif(not PYDICOM_FILES.is_dir(), reason="this pydicom was installed without its test files")
def test_real_dicom_files_pass_or_are_refused_for_a_reason_and_nothing_else_is_raised():
    passed, reasons = [], set()
    for path in sorted(PYDICOM_FILES.rglob("*")):
        if path.is_dir():
            continue
        try:
            check_dicom(path.relative_to(PYDICOM_FILES), PYDICOM_FILES)
            passed.append(path.name)
        except RefusedFileError as error:
            reasons.add(error.reason)
    assert {"CT_small.dcm", "MR_small.dcm"} <= set(passed)
    assert {Reason.CODEC, Reason.HEADER, Reason.DTYPE} <= reasons


@pytest.mark.skipif(not PYDICOM_FILES.is_dir(), reason="this pydicom was installed without its test files")
def test_a_series_made_of_a_real_slice_has_the_pixels_that_pydicom_reads(tmp_path):
    stored = pydicom.dcmread(PYDICOM_FILES / "MR_small.dcm")
    normal = np.cross(stored.ImageOrientationPatient[:3], stored.ImageOrientationPatient[3:])
    origin = np.asarray(stored.ImagePositionPatient, dtype=float)
    (tmp_path / "s").mkdir()
    for layer in range(3):
        stored.ImagePositionPatient = [round(float(v), 6) for v in origin + 4.0 * layer * normal]
        stored.save_as(tmp_path / "s" / f"{2 - layer}.dcm")
    volume = read_series("s", tmp_path)
    pixels = stored.pixel_array.T * float(stored.get("RescaleSlope", 1)) + float(
        stored.get("RescaleIntercept", 0)
    )
    assert all(np.array_equal(volume.values[:, :, layer], pixels) for layer in range(3))
    assert volume.voxel_mm[2] == pytest.approx(4.0, abs=1e-4)
