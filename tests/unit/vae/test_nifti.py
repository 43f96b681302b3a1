"""A hospital's own NIfTI files: BIDS folder or table of paths; nothing is dropped without a trace."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest

import vae.data.nifti as nifti_module
from tests.support.hostile_files import claim_of_30000_cubed, scan, write_nifti
from vae.data.nifti import NiftiSource, open_nifti
from vae.data.prepare import Preparation
from vae.data.quarantine import Reason
from vae.errors import DataError, DataNotReadyError

STUDY = Preparation(shape=(12, 14, 10), window=(0.0, 1000.0))


def source(root: Path, **fields: object) -> NiftiSource:
    return NiftiSource(**{"root": str(root), "preparation": STUDY, **fields})


def bids(root: Path, patients: int = 3, sessions: int = 2) -> Path:
    """Write a BIDS folder; patient p, session s holds scan(10 p + s)."""
    for p in range(1, patients + 1):
        for s in range(1, sessions + 1):
            name = f"sub-{p:02d}_ses-{s}_T1w.nii.gz"
            write_nifti(root / f"sub-{p:02d}" / f"ses-{s}" / "anat" / name, scan(10 * p + s))
    return root


def participants(root: Path, text: str) -> None:
    (root / "participants.tsv").write_text(text)


def test_a_bids_folder_becomes_patients_with_their_visits(tmp_path):
    cohort, readiness = open_nifti(source(bids(tmp_path / "d")), name="site-1", cache=tmp_path / "c")
    assert cohort.patients == ("sub-01", "sub-02", "sub-03")
    assert cohort.offsets.tolist() == [0, 2, 4, 6]
    assert cohort.record_shape == (1, 12, 14, 10)
    expected = np.clip(scan(22) / 1000.0, 0, 1)
    assert np.allclose(cohort.values[3, 0], expected, atol=1e-6)
    assert (readiness.planned_records, readiness.usable_records, readiness.ready) == (6, 6, True)
    assert dict(readiness.shapes) == {"12 x 14 x 10": 6}
    assert dict(readiness.dtypes) == {"int16": 6}


def test_the_second_open_is_a_memory_map_and_decodes_nothing(tmp_path, monkeypatch):
    first, before = open_nifti(source(bids(tmp_path / "d")), name="a", cache=tmp_path / "c")

    def no_decoding(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(nifti_module, "_decode", no_decoding)
    again, after = open_nifti(source(tmp_path / "d"), name="a", cache=tmp_path / "c")
    assert isinstance(again.values, np.memmap)
    assert np.array_equal(again.values, first.values)
    assert after == before
    assert again.fingerprint() == first.fingerprint()


def test_one_new_scan_is_the_only_one_decoded(tmp_path, monkeypatch):
    open_nifti(source(bids(tmp_path / "d")), name="a", cache=tmp_path / "c")
    write_nifti(tmp_path / "d/sub-09/anat/sub-09_T1w.nii", scan(99))
    decode, count = nifti_module._decode, []
    monkeypatch.setattr(nifti_module, "_decode", lambda *a: (count.append(1), decode(*a))[1])
    cohort, _ = open_nifti(source(tmp_path / "d"), name="a", cache=tmp_path / "c")
    assert (cohort.num_records, len(count)) == (7, 1)


def test_scans_are_found_at_any_depth_and_derivatives_are_left_out(tmp_path):
    root = tmp_path / "d"
    write_nifti(root / "sub-01/anat/sub-01_T1w.nii.gz", scan(1))
    write_nifti(root / "raw/2024/sub-02/ses-x/anat/sub-02_ses-x_acq-mprage_run-1_T1w.nii", scan(2))
    write_nifti(root / "derivatives/fs/sub-01/anat/sub-01_T1w.nii.gz", scan(3))
    write_nifti(root / "sourcedata/sub-01/anat/sub-01_T1w.nii.gz", scan(4))
    write_nifti(root / ".git/sub-01/anat/sub-01_T1w.nii.gz", scan(5))
    write_nifti(root / "sub-01/anat/sub-01_FLAIR.nii.gz", scan(6))
    cohort, readiness = open_nifti(source(root), name="a", cache=tmp_path / "c")
    assert cohort.patients == ("sub-01", "sub-02")
    assert readiness.planned_records == 2


def test_channels_of_a_visit_are_paired_by_session_and_run(tmp_path):
    root = tmp_path / "d"
    for run in (1, 2):
        write_nifti(root / f"sub-01/ses-1/anat/sub-01_ses-1_run-{run}_T1w.nii.gz", scan(run))
        write_nifti(root / f"sub-01/ses-1/pet/sub-01_ses-1_trc-FDG_run-{run}_pet.nii.gz", scan(10 + run))
    cohort, _ = open_nifti(source(root, suffixes=("T1w", "pet")), name="a", cache=tmp_path / "c")
    assert cohort.values.shape == (2, 2, 12, 14, 10)
    for run in (1, 2):
        assert np.allclose(cohort.values[run - 1, 1], np.clip(scan(10 + run) / 1000, 0, 1), atol=1e-6)


def reasons(root: Path, tmp_path: Path, **fields: object) -> dict[str, int]:
    readiness = source(root, **fields).survey(name="a", cache=tmp_path / "c")
    assert readiness.planned_records == readiness.usable_records + sum(readiness.refused.values())
    return dict(readiness.refused)


def test_a_visit_without_one_channel_or_with_one_twice_is_refused_not_guessed(tmp_path):
    root = tmp_path / "d"
    write_nifti(root / "sub-01/anat/sub-01_T1w.nii.gz", scan(1))
    write_nifti(root / "sub-02/anat/sub-02_T1w.nii.gz", scan(2))
    write_nifti(root / "sub-02/anat/sub-02_acq-a_FLAIR.nii.gz", scan(3))
    write_nifti(root / "sub-02/anat/sub-02_acq-b_FLAIR.nii.gz", scan(4))
    assert reasons(root, tmp_path, suffixes=("T1w", "FLAIR")) == {
        "channel-missing": 1,
        "channel-ambiguous": 1,
    }


def test_the_same_name_stored_twice_is_ambiguous(tmp_path):
    write_nifti(tmp_path / "d/sub-01/anat/sub-01_T1w.nii.gz", scan(1))
    write_nifti(tmp_path / "d/sub-01/anat/sub-01_T1w.nii", scan(1))
    assert reasons(tmp_path / "d", tmp_path) == {"channel-ambiguous": 1}


@pytest.mark.parametrize(("shape", "shift"), [((12, 14, 11), 0.0), ((12, 14, 10), 0.5)])
def test_channels_on_different_grids_are_refused(tmp_path, shape, shift):
    moved = np.eye(4)
    moved[0, 3] = shift
    write_nifti(tmp_path / "d/sub-01/anat/sub-01_T1w.nii.gz", scan(1), np.eye(4))
    write_nifti(tmp_path / "d/sub-01/anat/sub-01_FLAIR.nii.gz", scan(2, shape), moved)
    assert reasons(tmp_path / "d", tmp_path, suffixes=("T1w", "FLAIR")) == {"channel-grids-differ": 1}


def test_a_name_that_contradicts_its_folder_is_refused(tmp_path):
    write_nifti(tmp_path / "d/sub-01/anat/sub-02_T1w.nii.gz", scan(1))
    write_nifti(tmp_path / "d/sub-0 1/anat/sub-0 1_T1w.nii.gz", scan(2))
    write_nifti(tmp_path / "d/loose_T1w.nii.gz", scan(3))
    assert reasons(tmp_path / "d", tmp_path) == {"patient-unclear": 3}


def test_what_could_hide_scans_is_refused_by_name_not_passed_over(tmp_path):
    root, outside = bids(tmp_path / "d"), tmp_path / "outside"
    write_nifti(outside / "sub-77/anat/sub-77_T1w.nii.gz", scan(1))
    (root / "sub-77").symlink_to(outside / "sub-77")
    (root / "sub-01/ses-1/anat/sub-01_ses-1_run-9_T1w.nii.gz").symlink_to(
        outside / "sub-77/anat/sub-77_T1w.nii.gz"
    )
    os.mkfifo(root / "sub-01/ses-1/anat/sub-01_ses-1_run-8_T1w.nii.gz")
    assert reasons(root, tmp_path) == {
        "linked-folder": 1,
        "not-a-regular-file": 1,
        "outside-data-root": 1,
    }


def test_a_link_inside_the_root_is_followed_as_data_managers_make_them(tmp_path):
    root = tmp_path / "d"
    store = write_nifti(root / ".store/abc", scan(1))
    link = root / "sub-01/anat/sub-01_T1w.nii"
    link.parent.mkdir(parents=True)
    link.symlink_to(os.path.relpath(store, link.parent))
    cohort, _ = open_nifti(source(root), name="a", cache=tmp_path / "c")
    assert cohort.patients == ("sub-01",)


def test_one_bad_file_in_thirty_is_put_aside_and_named_locally_only(tmp_path):
    root = bids(tmp_path / "d", patients=15)
    bad = claim_of_30000_cubed(root / "sub-04/ses-1/anat/sub-04_ses-1_T1w.nii.gz")
    cohort, readiness = open_nifti(source(root), name="a", cache=tmp_path / "c")
    assert (cohort.num_records, cohort.num_patients) == (29, 15)
    assert dict(readiness.refused) == {"too-large": 1}
    listing = tmp_path / "c" / "quarantine.tsv"
    assert listing.read_text() == f"too-large\t{bad.relative_to(root)}\n"
    assert stat.S_IMODE(listing.stat().st_mode) == 0o600
    assert "sub-04" not in repr(readiness)


def test_above_the_threshold_the_site_stops_and_says_where_to_look(tmp_path):
    root = bids(tmp_path / "d", patients=9)  # 18 records; 1 of 18 = 5.6 % > 5 %
    claim_of_30000_cubed(root / "sub-04/ses-1/anat/sub-04_ses-1_T1w.nii.gz")
    with pytest.raises(DataNotReadyError, match=r"1 of 18 planned.*too-large 1.*5\.0%.*data check") as caught:
        open_nifti(source(root), name="site-1", cache=tmp_path / "c")
    assert "sub-04" not in str(caught.value)
    assert "sub-04" in (tmp_path / "c" / "quarantine.tsv").read_text()
    assert not (tmp_path / "c" / "cohorts").exists()
    cohort, _ = open_nifti(source(root, quarantine_threshold=0.06), name="a", cache=tmp_path / "c")
    assert cohort.num_records == 17


def test_exactly_the_threshold_is_allowed(tmp_path):
    root = bids(tmp_path / "d", patients=10)  # 1 of 20 = 5 %
    claim_of_30000_cubed(root / "sub-04/ses-1/anat/sub-04_ses-1_T1w.nii.gz")
    _, readiness = open_nifti(source(root), name="a", cache=tmp_path / "c")
    assert readiness.ready


def test_an_empty_root_is_not_ready(tmp_path):
    (tmp_path / "d").mkdir()
    with pytest.raises(DataNotReadyError, match="no record was found"):
        open_nifti(source(tmp_path / "d"), name="a", cache=tmp_path / "c")


def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere' is no folder; check the path"):
        open_nifti(source(tmp_path / "nowhere"), name="a", cache=tmp_path / "c")


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every folder")
def test_a_folder_that_cannot_be_read_is_refused_by_name(tmp_path):
    root = bids(tmp_path / "d")
    (root / "sub-02").chmod(0)
    try:
        assert reasons(root, tmp_path) == {"unreadable": 1}
    finally:
        (root / "sub-02").chmod(0o700)


def test_covariates_and_labels_come_from_participants_and_sessions(tmp_path):
    root = bids(tmp_path / "d", patients=2)
    participants(root, "participant_id\tage\tgroup\nsub-01\t60\tcontrol\n02\t70\tn/a\n")
    (root / "sub-02/sub-02_sessions.tsv").write_text("session_id\tage\nses-1\t70\nses-2\t72\n")
    cohort, readiness = open_nifti(
        source(root, covariates=("age",), covariate_scale={"age": (50.0, 20.0)}, labels=("group",)),
        name="a",
        cache=tmp_path / "c",
    )
    assert np.allclose(cohort.covariates[:, 0], [0.5, 0.5, 1.0, 1.1])  # (60 - 50) / 20, ..., (72 - 50) / 20
    assert cohort.labels["group"].tolist() == ["control", "control", "n/a", "n/a"]
    assert dict(readiness.missing) == {"group": 2}


def test_numeric_labels_are_numbers_with_nan_where_missing(tmp_path):
    root = bids(tmp_path / "d", patients=2, sessions=1)
    participants(root, "participant_id\tanomaly\nsub-01\t1\nsub-02\tn/a\n")
    cohort, _ = open_nifti(source(root, labels=("anomaly",)), name="a", cache=tmp_path / "c")
    assert np.array_equal(cohort.labels["anomaly"], [1.0, np.nan], equal_nan=True)


def test_a_visit_without_its_covariate_is_refused_and_counted(tmp_path):
    root = bids(tmp_path / "d", patients=3, sessions=1)
    participants(root, "participant_id\tage\nsub-01\t60\nsub-02\tn/a\n")
    wanted = {"covariates": ("age",), "covariate_scale": {"age": (50.0, 20.0)}}
    readiness = source(root, **wanted).survey(name="a", cache=tmp_path / "c")
    assert dict(readiness.refused) == {"covariate-missing": 2}
    assert dict(readiness.missing) == {"age": 2}
    assert not readiness.ready


def test_a_covariate_needs_public_constants(tmp_path):
    root = bids(tmp_path / "d")
    participants(root, "participant_id\tage\nsub-01\t60\n")
    with pytest.raises(DataError, match=r"'age' has no public constants; give \(centre, scale\)"):
        open_nifti(source(root, covariates=("age",)), name="a", cache=tmp_path / "c")


def test_a_column_that_is_nowhere_is_named(tmp_path):
    root = bids(tmp_path / "d")
    participants(root, "participant_id\tage\nsub-01\t60\n")
    with pytest.raises(DataError, match=r"column 'sex' is neither in participants\.tsv nor"):
        open_nifti(source(root, labels=("sex",)), name="a", cache=tmp_path / "c")


def test_a_table_of_paths(tmp_path):
    root = tmp_path / "d"
    for index in range(4):
        write_nifti(root / f"scans/{index}.nii.gz", scan(index))
    (root / "list.csv").write_text(
        "mrn,path,age\nB,scans/0.nii.gz,60\nA,scans/1.nii.gz,61\nB,scans/2.nii.gz,62\nA,scans/3.nii.gz,63\n"
    )
    cohort, _ = open_nifti(
        source(
            root,
            table="list.csv",
            patient_column="mrn",
            covariates=("age",),
            covariate_scale={"age": (60.0, 1.0)},
        ),
        name="a",
        cache=tmp_path / "c",
    )
    assert cohort.patients == ("A", "B")
    assert cohort.covariates[:, 0].tolist() == [1.0, 3.0, 0.0, 2.0]
    assert np.allclose(cohort.values[2, 0], np.clip(scan(0) / 1000, 0, 1), atol=1e-6)


def test_every_row_of_a_table_is_used_or_refused(tmp_path):
    root = tmp_path / "d"
    write_nifti(root / "a.nii", scan(1))
    write_nifti(tmp_path / "outside.nii", scan(2))
    (root / "list.tsv").write_text(
        "participant_id\tT1w\tFLAIR\n"
        "p1\ta.nii\ta.nii\n"
        "p2\t../outside.nii\ta.nii\n"
        f"p3\t{tmp_path / 'outside.nii'}\ta.nii\n"
        "p4\tmissing.nii\ta.nii\n"
        "p5\t\ta.nii\n"
        "\ta.nii\ta.nii\n"
        "p7\ta.nii\n"
    )
    found = reasons(root, tmp_path, table="list.tsv", suffixes=("T1w", "FLAIR"))
    assert found == {
        "outside-data-root": 2,
        "file-missing": 1,
        "channel-missing": 1,
        "patient-unclear": 1,
        "row-malformed": 1,
    }


def test_copies_are_found_whatever_their_name_and_compression(tmp_path):
    root = tmp_path / "d"
    write_nifti(root / "sub-01/anat/sub-01_T1w.nii.gz", scan(1))
    write_nifti(root / "sub-02/anat/sub-02_T1w.nii", scan(1))
    write_nifti(root / "sub-02/anat/sub-02_run-2_T1w.nii", scan(1).astype(np.float32))
    write_nifti(root / "sub-03/anat/sub-03_T1w.nii", scan(3))
    _, readiness = open_nifti(source(root), name="a", cache=tmp_path / "c")
    assert (readiness.duplicates, readiness.duplicates_across_patients) == (2, 2)


def test_voxels_that_overflow_are_refused_not_clipped(tmp_path):
    root = tmp_path / "d"
    write_nifti(root / "sub-01/anat/sub-01_T1w.nii", np.full((4, 4, 4), 1e300))
    write_nifti(root / "sub-02/anat/sub-02_T1w.nii", scan(1), scl_slope=3e38)
    assert reasons(root, tmp_path) == {Reason.NON_FINITE.value: 2}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"suffixes": ()}, "at least one channel"),
        ({"suffixes": ("T1w", "T1w")}, "each once"),
        ({"quarantine_threshold": 1.0}, r"\[0, 1\)"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        source(tmp_path, **fields)
