"""Check of the data: ready or not, reasons by code, and never a name or a count of theirs."""

import pytest

from deploy.doctor import records
from tests.support.doctors import only, visit
from tests.support.hostile_files import scan, write_nifti

TOY = "{kind: toy, sites: 3, patients_per_site: 60, features: 6}"
TABLE = "{kind: table, source: {path: mueller-anna.csv, features: [a], standardise: none}}"
NIFTI = "{kind: nifti, source: {root: scans-of-wards, preparation: {shape: [12, 14, 10]}}}"


def table(folder, *values):
    rows = "".join(f"MRN-{77000 + number},{value}\n" for number, value in enumerate(values))
    (folder / "mueller-anna.csv").write_text(f"participant_id,a\n{rows}")


def ready(folder, data=TABLE):
    found = only(records.ready, visit(folder, **{TOY: data}))
    for secret in ("mueller", "MRN", "77000", "wards", "sub-"):
        assert secret not in f"{found.found} {found.fix}".replace(str(folder), "")
    return found


def test_made_up_data_are_skipped(tmp_path):
    found = only(records.ready, visit(tmp_path))
    assert (found.severity, found.found) == ("skipped", "toy data are made up")


def test_data_that_are_ready(tmp_path):
    table(tmp_path, *range(43))
    found = ready(tmp_path)
    assert (found.severity, found.found) == ("ok", "ready")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mueller-anna.csv", "site.yaml"]


def test_data_that_are_ready_but_for_a_few(tmp_path):
    table(tmp_path, *range(43), "x")
    found = ready(tmp_path)
    assert found.severity == "note"
    assert found.found == "ready; some records are put aside (value-missing-or-malformed)"
    assert "43" not in found.found + found.fix


def test_data_that_are_not_ready(tmp_path):
    table(tmp_path, *range(43), *"abcde")
    found = ready(tmp_path)
    assert found.severity == "error"
    assert found.found == "not ready: too many records cannot be used (value-missing-or-malformed)"
    assert "data check --details" in found.fix


@pytest.mark.parametrize(
    ("data", "code"),
    [(TABLE, "file-missing"), (NIFTI, "DataError"), (TABLE.replace("[a]", "[nowhere]"), "DataError")],
)
def test_data_that_cannot_be_opened(tmp_path, data, code):
    if "nowhere" in data:
        table(tmp_path, 1)
    found = ready(tmp_path, data)
    assert found.severity == "error"
    assert found.found == f"the data cannot be opened ({code})"
    assert "nowhere" not in found.fix


def test_scans(tmp_path):
    write_nifti(tmp_path / "scans-of-wards/sub-1/anat/sub-1_T1w.nii", scan(1))
    assert ready(tmp_path, NIFTI).severity == "ok"
    before = set(tmp_path.rglob("*"))
    (tmp_path / "scans-of-wards/sub-1/anat/sub-1_T1w.nii").write_text("no scan")
    assert ready(tmp_path, NIFTI).severity == "error"
    assert set(tmp_path.rglob("*")) == before, "nothing was prepared or written"


def test_an_empty_folder(tmp_path):
    (tmp_path / "scans-of-wards").mkdir()
    assert ready(tmp_path, NIFTI).found == "not ready: no record was found"
