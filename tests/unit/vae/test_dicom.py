"""DICOM series: geometry against the standard's formula, gaps refused, names of patients never kept."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import JPEG2000Lossless

from tests.support.hostile_files import dicom_slice, write_dicom, write_series
from vae.data.dicom import DicomSource, open_dicom, pseudonym, read_series, site_salt
from vae.data.gate import Limits
from vae.data.prepare import Preparation
from vae.data.quarantine import Reason, RefusedFileError
from vae.errors import DataError, DataNotReadyError

STUDY = Preparation(shape=(8, 8, 5), window=(-100.0, 2000.0))


def pixels(seed: int = 0, shape: tuple[int, int, int] = (5, 4, 6)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1000, size=shape).astype(np.int16)


def source(root: Path, **fields: object) -> DicomSource:
    return DicomSource(**{"root": str(root), "preparation": STUDY, **fields})


def refused(folder: Path) -> Reason:
    with pytest.raises(RefusedFileError) as caught:
        read_series(folder.name, folder.parent)
    return caught.value.reason


def test_slices_are_ordered_by_position_and_rescaled(tmp_path):
    stored = pixels()
    write_series(tmp_path / "s", stored)
    volume = read_series("s", tmp_path)
    assert volume.values.shape == (6, 4, 5)  # columns, rows, slices
    assert np.array_equal(volume.values, stored.transpose(2, 1, 0) * 2.0 - 100.0)
    assert volume.voxel_mm == (1.5, 2.0, 3.0)


def test_every_voxel_lies_where_the_standard_puts_it(tmp_path):
    # PS3.3 C.7.6.2.1.1: position = origin + row direction * column spacing * column + column direction * row
    # spacing * row, in left-posterior-superior mm; here for an oblique series
    along_row, along_column = np.array([0.8, 0.6, 0.0]), np.array([-0.6, 0.8, 0.0])
    normal = np.cross(along_row, along_column)
    for layer, image in enumerate(pixels()):
        origin = np.array([-10.0, 5.0, 7.0]) + 2.5 * layer * normal
        orientation = [float(v) for v in (*along_row, *along_column)]
        item = dicom_slice(
            image,
            ImagePositionPatient=[float(v) for v in origin],
            ImageOrientationPatient=orientation,
            PixelSpacing=[2.0, 1.5],
        )
        write_dicom(tmp_path / "s" / f"{layer}.dcm", item)
    affine = read_series("s", tmp_path).affine
    for column, row, layer in [(0, 0, 0), (5, 0, 0), (0, 3, 0), (2, 1, 4)]:
        left_posterior = (
            np.array([-10.0, 5.0, 7.0])
            + along_row * 1.5 * column
            + along_column * 2.0 * row
            + 2.5 * layer * normal
        )
        expected = left_posterior * [-1, -1, 1]
        assert np.allclose((affine @ [column, row, layer, 1])[:3], expected, atol=1e-5)


def test_low_is_bright_is_turned_round(tmp_path):
    write_series(tmp_path / "a", pixels())
    write_series(tmp_path / "b", pixels(), PhotometricInterpretation="MONOCHROME1")
    plain, inverted = read_series("a", tmp_path).values, read_series("b", tmp_path).values
    assert np.allclose(plain + inverted, plain.max() + plain.min())


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_gap_is_refused_not_closed(tmp_path, missing):
    folder = write_series(tmp_path / "s", pixels())
    (folder / f"IM{(missing * 7) % 5:03d}.dcm").unlink()
    assert refused(folder) is Reason.SLICES


def test_a_doubled_slice_and_a_single_slice_are_refused(tmp_path):
    folder = write_series(tmp_path / "s", pixels())
    write_dicom(folder / "again.dcm", dicom_slice(pixels()[0], position=0.0))
    assert refused(folder) is Reason.SLICES
    write_dicom(tmp_path / "one" / "a.dcm", dicom_slice(pixels()[0]))
    assert refused(tmp_path / "one") is Reason.SLICES


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"patient": "P2"}, Reason.PATIENT),
        ({"series": "9.9"}, Reason.SERIES),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, 1]}, Reason.SERIES),
        ({"PixelSpacing": [2.0, 1.6]}, Reason.SERIES),
        ({"Rows": 3}, Reason.SERIES),
        ({"Rows": 60000, "Columns": 60000}, Reason.TOO_LARGE),
        ({"PixelData": b"\0" * 20}, Reason.TRUNCATED),
        ({"PixelData": b"\0" * 9000}, Reason.TRUNCATED),
    ],
    ids=str,
)
def test_one_bad_slice_refuses_its_series(tmp_path, elements, reason):
    folder = write_series(tmp_path / "s", pixels())
    write_dicom(folder / "IM000.dcm", dicom_slice(pixels()[0], **elements))
    assert refused(folder) is reason


def test_a_file_that_is_no_dicom_refuses_its_series(tmp_path):
    folder = write_series(tmp_path / "s", pixels())
    (folder / "IM099.dcm").write_text("not a slice")
    assert refused(folder) is Reason.HEADER


def test_a_series_over_the_limit_is_refused_before_it_is_decoded(tmp_path):
    write_series(tmp_path / "s", pixels())
    with pytest.raises(RefusedFileError, match="too-large"):
        read_series("s", tmp_path, Limits(max_voxels=119))
    assert read_series("s", tmp_path, Limits(max_voxels=120)).values.size == 120


def test_a_cohort_of_pseudonyms(tmp_path):
    root = tmp_path / "d"
    for index, patient in enumerate(["MRN-1", "MRN-2", "MRN-1"]):
        write_series(root / f"study{index}" / "ax", pixels(index), patient=patient, series=f"1.{index}")
    (root / "study0" / "DICOMDIR").write_bytes(b"index")
    cohort, readiness = open_dicom(source(root), name="a", cache=tmp_path / "c")
    salt = site_salt(tmp_path / "c")
    assert sorted(cohort.patients) == sorted([pseudonym("MRN-1", salt), pseudonym("MRN-2", salt)])
    assert sorted(np.diff(cohort.offsets)) == [1, 2]
    assert cohort.record_shape == (1, 8, 8, 5)
    assert (readiness.planned_patients, readiness.usable_records) == (2, 3)
    for path in (tmp_path / "c").rglob("*"):
        assert path.is_dir() or b"MRN" not in path.read_bytes()


def test_the_same_patient_keeps_the_key_and_another_site_gives_another(tmp_path):
    root = tmp_path / "d"
    write_series(root / "s", pixels(), patient="MRN-1")
    first, _ = open_dicom(source(root), name="a", cache=tmp_path / "c")
    again, _ = open_dicom(source(root), name="a", cache=tmp_path / "c")
    other, _ = open_dicom(source(root), name="a", cache=tmp_path / "other")
    assert first.patients == again.patients != other.patients
    assert isinstance(again.values, np.memmap)


def test_the_salt_is_private_and_a_damaged_one_is_not_replaced(tmp_path):
    salt = site_salt(tmp_path / "c")
    path = tmp_path / "c" / "pseudonym.salt"
    assert (len(salt), stat.S_IMODE(path.stat().st_mode)) == (32, 0o600)
    assert site_salt(tmp_path / "c") == salt
    path.chmod(0o644)
    with pytest.raises(DataError, match="mode 0600; restore it from a backup"):
        site_salt(tmp_path / "c")
    path.chmod(0o600)
    path.write_bytes(salt[:31])
    with pytest.raises(DataError, match="32 bytes"):
        site_salt(tmp_path / "c")
    assert path.read_bytes() == salt[:31]


def test_a_salt_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "pseudonym.salt").symlink_to(tmp_path / "elsewhere")
    with pytest.raises((DataError, OSError)):
        site_salt(tmp_path / "c")
    assert not (tmp_path / "elsewhere").exists()


def test_covariates_and_labels_come_from_a_table_by_patient_id(tmp_path):
    root = tmp_path / "d"
    write_series(root / "s1", pixels(1), patient="MRN-1")
    write_series(root / "s2", pixels(2), patient="MRN-2")
    (root / "people.csv").write_text("PatientID;age;rating\nMRN-1;60;1\nMRN-2;65;0\n")
    cohort, _ = open_dicom(
        source(
            root,
            table="./people.csv",
            covariates=("age",),
            covariate_scale={"age": (60.0, 5.0)},
            labels=("rating",),
        ),
        name="a",
        cache=tmp_path / "c",
    )
    ratings = dict(zip(cohort.covariates[:, 0].tolist(), cohort.labels["rating"].tolist(), strict=True))
    assert ratings == {0.0: 1.0, 1.0: 0.0}


def test_compressed_series_are_put_aside_and_linked_folders_too(tmp_path):
    root = tmp_path / "d"
    write_series(root / "good", pixels())
    folder = write_series(root / "jpeg", pixels())
    for path in folder.iterdir():
        old = b"1.2.840.10008.1.2.1\0"
        path.write_bytes(
            path.read_bytes().replace(old, JPEG2000Lossless[: len(old)].encode().ljust(len(old), b"\0"))
        )
    (root / "linked").symlink_to(tmp_path)
    readiness = source(root).survey(name="a", cache=tmp_path / "c")
    assert dict(readiness.refused) == {"codec": 1, "linked-folder": 1}
    with pytest.raises(DataNotReadyError, match="2 of 3 planned"):
        open_dicom(source(root), name="a", cache=tmp_path / "c")


def test_covariates_need_a_table(tmp_path):
    with pytest.raises(ValueError, match="come from a table"):
        source(tmp_path, labels=("rating",))


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_a_file_without_permission_is_refused_by_name(tmp_path):
    folder = write_series(tmp_path / "s", pixels())
    (folder / "IM000.dcm").chmod(0)
    assert refused(folder) is Reason.UNREADABLE
