"""The readiness report: planned against usable, reasons with remedies, and no names unless asked for."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.support.hostile_files import claim_of_30000_cubed, scan, write_nifti, write_series
from vae.data.dicom import DicomSource
from vae.data.nifti import NiftiSource
from vae.data.prepare import Preparation
from vae.data.quarantine import REMEDIES, Entry, Quarantine, Reason
from vae.data.readiness import LOCAL_MARK, Readiness, check, duplicates, render, require_ready, spread, tally
from vae.data.tabular import TableSource
from vae.errors import DataNotReadyError


def made(planned: int = 20, usable: int = 19, **fields: object) -> Readiness:
    return Readiness(
        **{
            "name": "site-1",
            "planned_records": planned,
            "usable_records": usable,
            "planned_patients": 10,
            "usable_patients": 9,
            "threshold": 0.05,
            "refused": {"truncated": planned - usable},
            "quarantine": Quarantine(entries=(Entry(record="sub-secret/a.nii", reason=Reason.TRUNCATED),)),
            **fields,
        }
    )


@pytest.mark.parametrize(
    ("planned", "usable", "ready"),
    [
        (20, 19, True),
        (20, 18, False),
        (19, 18, False),
        (1910, 1862, True),
        (1, 0, False),
        (0, 0, False),
        (5, 5, True),
    ],
)
def test_ready_means_something_usable_and_no_more_refused_than_allowed(planned, usable, ready):
    assert made(planned, usable).ready is ready


def test_rounding_does_not_move_the_threshold():
    assert 0.29 * 100 < 29
    assert made(100, 71, threshold=0.29).ready
    assert not made(100, 70, threshold=0.29).ready


def test_stopping_says_how_many_why_and_where_to_look():
    require_ready(made())
    with pytest.raises(DataNotReadyError, match=r"site-1: 2 of 20 .*\(truncated 2\).*5\.0%.*--details"):
        require_ready(made(20, 18))
    with pytest.raises(DataNotReadyError, match="no record was found"):
        require_ready(made(0, 0))


def test_the_default_report_has_no_names_and_the_detailed_one_is_marked_local():
    plain, detailed = render(made()), render(made(), details=True)
    assert "sub-secret" not in plain
    assert "sub-secret" not in json.dumps(made().to_dict())
    assert "sub-secret" not in repr(made())
    assert detailed.count(LOCAL_MARK) == 2
    assert "truncated\tsub-secret/a.nii" in detailed


def test_the_report_in_full(tmp_path):
    for index in range(1, 4):
        write_nifti(tmp_path / f"d/sub-{index}/anat/sub-{index}_T1w.nii", scan(index))
    claim_of_30000_cubed(tmp_path / "d/sub-1/anat/sub-1_run-2_T1w.nii")
    source = NiftiSource(root=str(tmp_path / "d"), preparation=Preparation(shape=(12, 14, 10)))
    text = render(check(source, name="site-1", cache=tmp_path / "c"))
    assert text.splitlines()[:10] == [
        "data set         site-1",
        "verdict          NOT READY",
        "patients         3 usable of 3 planned",
        "records          3 usable of 4 planned",
        "refused          1 (25.0%; at most 5.0% allowed)",
        "duplicates       0 (0 across patients)",
        "shapes           12 x 14 x 10 (3)",
        "dtypes           int16 (3)",
        "voxel i [mm]     1 .. 1 .. 1",
        "voxel j [mm]     1 .. 1 .. 1",
    ]
    assert f"       1  too-large: {REMEDIES[Reason.TOO_LARGE]}" in text
    assert "sub-" not in text


def test_a_report_is_plain_data():
    report = json.loads(json.dumps(made(voxel_mm=(spread([2.0, 1.0, 3.0]),)).to_dict()))
    assert report["planned"] == {"records": 20, "patients": 10}
    assert report["voxel_mm"] == [[1.0, 2.0, 3.0]]
    assert report["ready"] is True


def test_duplicates_are_counted_once_for_each_copy():
    # x: a, a, b -> 2 copies, 1 of them under another patient; y: once
    assert duplicates([("x", "a"), ("x", "a"), ("x", "b"), ("y", "c")]) == (2, 1)
    assert duplicates([]) == (0, 0)


def test_tally_is_sorted_by_count_then_name():
    assert list(tally(["b", "a", "b", "c"]).items()) == [("b", 2), ("a", 1), ("c", 1)]


def test_every_reason_has_a_remedy():
    assert set(REMEDIES) == set(Reason)


def test_a_name_cannot_forge_a_line_of_the_quarantine(tmp_path):
    hostile = "a.nii\ntruncated\tsub-99/innocent.nii\x1b[2J"
    quarantine = Quarantine(entries=(Entry(record=hostile, reason=Reason.HEADER),))
    quarantine.write(tmp_path / "q" / "quarantine.tsv")
    text = (tmp_path / "q" / "quarantine.tsv").read_text()
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert "\x1b" not in render(made(quarantine=quarantine), details=True)


def tree(folder):
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def hospitals(folder):
    """A source of each kind, each with one record that is refused."""
    for index in range(1, 4):
        write_nifti(folder / f"n/sub-{index}/anat/sub-{index}_T1w.nii", scan(index))
        write_series(
            folder / f"d/{index}", scan(index, (5, 4, 6)), patient=f"MRN-{index}", series=f"1.{index}"
        )
    write_nifti(folder / "n/sub-4/anat/sub-4_T1w.nii", np.zeros((12, 14, 10)))
    (folder / "d/3/IM099.dcm").write_text("not a slice")
    (folder / "t.csv").write_text("participant_id,a\np1,1\np2,x\n")
    return (
        NiftiSource(root=str(folder / "n"), preparation=Preparation(shape=(12, 14, 10))),
        DicomSource(root=str(folder / "d"), preparation=Preparation(shape=(8, 8, 5))),
        TableSource(path=str(folder / "t.csv"), features=("a",), standardise="none"),
    )


@pytest.mark.parametrize("kind", range(3))
def test_a_look_that_keeps_nothing_writes_nothing_and_says_the_same(tmp_path, kind):
    source = hospitals(tmp_path)[kind]
    before = tree(tmp_path)
    looked = check(source, name="site-1", cache=tmp_path / "c", keep=False)
    assert tree(tmp_path) == before
    assert looked.quarantine_path is None
    kept = check(source, name="site-1", cache=tmp_path / "c")
    assert tree(tmp_path) != before
    assert looked.to_dict() == kept.to_dict()
    assert sum(looked.refused.values()) == 1
    filled = tree(tmp_path)
    assert check(source, name="site-1", cache=tmp_path / "c", keep=False).to_dict() == kept.to_dict()
    assert tree(tmp_path) == filled
