"""Tables: public constants or none, rows refused by line, nothing guessed."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest

from vae.data.rows import read_rows
from vae.data.tabular import TableSource, open_table
from vae.errors import DataError, DataNotReadyError

CONSTANTS = {"snr": (10.0, 2.0), "cjv": (0.5, 0.1), "age": (50.0, 20.0)}


def table(tmp_path: Path, text: str, name: str = "t.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def source(path: Path, **fields: object) -> TableSource:
    return TableSource(**{"path": str(path), "features": ("snr", "cjv"), "constants": CONSTANTS, **fields})


GOOD = "participant_id,snr,cjv,age,rating\nb,12,0.5,50,ok\na,10,0.6,70,bad\nb,8,0.4,60,\n"


def test_rows_become_patients_standardised_with_public_constants(tmp_path):
    cohort, readiness = open_table(
        source(table(tmp_path, GOOD), covariates=("age",), labels=("rating",)), name="site-1"
    )
    assert cohort.patients == ("a", "b")
    # a: (10 - 10) / 2 = 0, (0.6 - 0.5) / 0.1 = 1; b: (12 - 10) / 2 = 1, 0; (8 - 10) / 2 = -1, -1
    assert np.allclose(cohort.values, [[0, 1], [1, 0], [-1, -1]], atol=1e-6)
    assert np.allclose(cohort.covariates[:, 0], [1.0, 0.0, 0.5])
    assert cohort.labels["rating"].tolist() == ["bad", "ok", ""]
    assert dict(readiness.missing) == {"rating": 1}
    assert (readiness.planned_patients, readiness.usable_records) == (2, 3)


def test_site_statistics_never_enter(tmp_path):
    # adding a patient with extreme values changes no other row
    few, _ = open_table(source(table(tmp_path, GOOD)), name="a")
    many, _ = open_table(source(table(tmp_path, GOOD + "c,1e6,-1e6,50,ok\n")), name="a")
    assert np.array_equal(few.values, many.values[:3])


def test_without_constants_it_refuses_and_says_how_to_give_them(tmp_path):
    with pytest.raises(DataError, match=r"'cjv' has no public constants; give \(centre, scale\).*never used"):
        open_table(source(table(tmp_path, GOOD), constants={"snr": (0.0, 1.0)}), name="a")


def test_without_standardisation_values_are_taken_as_they_are(tmp_path):
    cohort, _ = open_table(source(table(tmp_path, GOOD), constants={}, standardise="none"), name="a")
    assert np.allclose(cohort.values, [[10, 0.6], [12, 0.5], [8, 0.4]])


@pytest.mark.parametrize("pair", [(0.0, 0.0), (0.0, -1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_constants_must_be_usable(tmp_path, pair):
    with pytest.raises(DataError, match="'snr': the centre must be finite, the scale positive"):
        open_table(source(table(tmp_path, GOOD), constants={**CONSTANTS, "snr": pair}), name="a")


@pytest.mark.parametrize("cell", ["", "n/a", "NaN", "inf", "-inf", "1,5", "high", "1e999", "1_000", "0x10"])
def test_a_value_that_is_no_finite_number_refuses_its_row(tmp_path, cell):
    text = GOOD.replace(",", "\t") + f"c\t{cell}\t0.5\t50\tok\n"
    path = table(tmp_path, text, "t.tsv")
    with pytest.raises(DataNotReadyError, match=r"1 of 4 planned records .*value-missing-or-malformed 1"):
        open_table(source(path), name="a", cache=tmp_path / "c")
    assert (tmp_path / "c" / "quarantine.tsv").read_text() == "value-missing-or-malformed\tline 5\n"
    assert stat.S_IMODE((tmp_path / "c" / "quarantine.tsv").stat().st_mode) == 0o600
    cohort, readiness = open_table(source(path, quarantine_threshold=0.25), name="a")
    assert (cohort.num_records, readiness.planned_records) == (3, 4)


def test_rows_without_patient_covariate_or_cells_are_refused_by_reason(tmp_path):
    text = GOOD + ",9,0.5,50,ok\nn/a,9,0.5,50,ok\nd,9,0.5,,ok\ne,9,0.5\n\n"
    readiness = source(table(tmp_path, text), covariates=("age",)).survey(name="a", cache=tmp_path / "c")
    assert dict(readiness.refused) == {"covariate-missing": 1, "patient-unclear": 2, "row-malformed": 1}
    assert (readiness.planned_records, readiness.usable_records, readiness.planned_patients) == (7, 3, 3)


def test_copied_rows_are_counted(tmp_path):
    readiness = source(table(tmp_path, GOOD + "b,12,0.5,50,ok\nz,12,0.5,50,ok\n")).survey(
        name="a", cache=tmp_path / "c"
    )
    assert (readiness.duplicates, readiness.duplicates_across_patients) == (2, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line must name every column"),
        ("participant_id,snr,,cjv\n", "first line must name every column"),
        ("participant_id,snr,cjv,snr\n", "column 'snr' occurs twice"),
        ("participant_id,snr\na,1\n", r"no column 'cjv'; its columns are: participant_id, snr"),
        ("participant_id,snr,cjv\n", "no record was found"),
        ('participant_id,snr,cjv\na,"' + "x" * 200_000 + '",1\n', "line 2: field larger than field limit"),
    ],
)
def test_a_table_that_cannot_be_used_is_named_with_the_rule(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        open_table(source(table(tmp_path, text)), name="a")


def test_a_table_in_another_encoding_is_refused_not_garbled(tmp_path):
    (tmp_path / "t.csv").write_bytes("participant_id,snr,cjv\nJürgen,1,2\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"not UTF-8 \(byte 24\); save it as UTF-8"):
        open_table(source(tmp_path / "t.csv"), name="a")


def test_byte_order_mark_semicolons_and_windows_lines_are_read(tmp_path):
    (tmp_path / "t.csv").write_bytes(b'\xef\xbb\xbfparticipant_id;snr\r\na;1\r\n"b;c";2\r\n')
    rows = read_rows(tmp_path, "t.csv")
    assert rows.columns == ("participant_id", "snr")
    assert [(row.line, dict(row.cells)) for row in rows.rows] == [
        (2, {"participant_id": "a", "snr": "1"}),
        (3, {"participant_id": "b;c", "snr": "2"}),
    ]


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.csv: no such file"):
        open_table(source(tmp_path / "gone.csv"), name="a")
    with pytest.raises(DataError, match="there is no table"):
        open_table(source(tmp_path / "nowhere" / "t.csv"), name="a")


def test_rows_hide_their_cells(tmp_path):
    rows = read_rows(tmp_path, table(tmp_path, "participant_id,snr\nsecret,1\n").name)
    assert "secret" not in repr(rows)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"features": ()}, "at least one column"),
        ({"features": ("snr", "snr")}, "each once"),
        ({"features": ("participant_id",)}, "no feature"),
        ({"quarantine_threshold": -0.1}, r"\[0, 1\)"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        source(tmp_path / "t.csv", **fields)
