"""Tables with a patient column: CSV or TSV, one record a row.

Guarantees: features are standardised with public constants of the study or not at all, never with
statistics of the site; a row without patient or with a missing value is refused by line number, not
filled in.
What it does not do: categories (code them as numbers, one column each), dates, decimal commas.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from vae.data.cohort import Cohort
from vae.data.intake import QUARANTINE_NAME, cell_is_missing, check_constants, label_array, number, scaled
from vae.data.quarantine import Entry, Quarantine, Reason, RefusedFileError
from vae.data.readiness import Readiness, duplicates, require_ready
from vae.data.rows import Row, Rows, read_rows, require_columns
from vae.errors import DataError


@dataclass(frozen=True, kw_only=True)
class TableSource:
    """A hospital's own table.

    Attributes:
        path: CSV or TSV.
        patient_column: Column that identifies the patient.
        features: Numeric columns to learn, F of them.
        covariates: Numeric columns that condition the model.
        labels: Columns for evaluation only.
        constants: Public (centre, scale) of each feature and covariate: value -> (value - centre) /
            scale.
        standardise: `constants`, or `none` to take the values as they are.
        quarantine_threshold: Largest share of rows that may be refused, in [0, 1).
    """

    path: str
    patient_column: str = "participant_id"
    features: tuple[str, ...]
    covariates: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    constants: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    standardise: Literal["constants", "none"] = "constants"
    quarantine_threshold: float = 0.05

    def __post_init__(self) -> None:
        if not self.features or len(set(self.features)) != len(self.features):
            raise ValueError("features must name at least one column, each once")
        if self.patient_column in (*self.features, *self.covariates):
            raise ValueError("the patient column is no feature and no covariate")
        if not 0 <= self.quarantine_threshold < 1:
            raise ValueError("quarantine_threshold must lie in [0, 1)")

    def survey(self, *, name: str, cache: Path, keep: bool = True) -> Readiness:
        """Look at every row without building a cohort; see `readiness.check`."""
        return _take_in(self, name, cache if keep else None)[1]


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """A usable row."""

    patient: str = field(repr=False)
    features: tuple[float, ...] = field(repr=False)
    covariates: tuple[float, ...] = field(repr=False)
    cells: Mapping[str, str] = field(repr=False)


def open_table(source: TableSource, *, name: str, cache: Path | None = None) -> tuple[Cohort, Readiness]:
    """Read a table into a cohort.

    Args:
        source: Where it is and what its columns mean.
        name: Of the cohort.
        cache: Folder for `quarantine.tsv`, the line numbers of refused rows; None writes none.

    Returns:
        The cohort, values [R, F] float32; and the readiness report.

    Raises:
        DataError: no such table or column; a feature or covariate without public constants.
        DataNotReadyError: no row is usable, or more were refused than the threshold allows.
    """
    kept, readiness = _take_in(source, name, cache)
    require_ready(readiness)
    cohort = Cohort.from_records(
        name=name,
        patients=[row.patient for row in kept],
        values=np.array([row.features for row in kept], dtype=np.float32),
        covariates=np.array([row.covariates for row in kept], dtype=np.float32).reshape(len(kept), -1),
        covariate_names=source.covariates,
        labels={label: label_array([row.cells[label] for row in kept]) for label in source.labels},
    )
    return cohort, readiness


def _take_in(source: TableSource, name: str, cache: Path | None) -> tuple[list[_Kept], Readiness]:
    """Read every row and put aside what is refused."""
    constants = _constants(source)
    table = Path(source.path)
    if not table.parent.is_dir():
        raise DataError(f"{name}: there is no table {source.path!r}; check the path and the mount")
    rows = read_rows(table.parent, table.name)
    require_columns(
        rows, (source.patient_column, *source.features, *source.covariates, *source.labels), table.name
    )
    kept: list[_Kept] = []
    entries: list[Entry] = []
    for row in rows.rows:
        try:
            kept.append(_keep(row, source, constants))
        except RefusedFileError as error:
            entries.append(Entry(record=f"line {row.line}", reason=error.reason))
    quarantine = Quarantine(entries=tuple(entries))
    quarantine_path = cache / QUARANTINE_NAME if cache is not None else None
    if quarantine_path is not None:
        quarantine.write(quarantine_path)
    return kept, _report(source, name, rows, kept, quarantine=quarantine, quarantine_path=quarantine_path)


def _constants(source: TableSource) -> Mapping[str, tuple[float, float]]:
    """Return (centre, scale) for every numeric column; refuse a column without them."""
    names = (*source.features, *source.covariates)
    if source.standardise == "none":
        return dict.fromkeys(names, (0.0, 1.0))
    check_constants(names, source.constants)
    return source.constants


def _keep(row: Row, source: TableSource, constants: Mapping[str, tuple[float, float]]) -> _Kept:
    """Return a usable row, or raise the reason why it is not."""
    where = f"line {row.line}"
    if row.reason is not None:
        raise RefusedFileError(row.reason, where)
    patient = row.cells[source.patient_column].strip()
    if cell_is_missing(patient):
        raise RefusedFileError(Reason.PATIENT, where)
    features = scaled(row.cells, source.features, constants)
    if features is None:
        raise RefusedFileError(Reason.VALUE, where)
    covariates = scaled(row.cells, source.covariates, constants)
    if covariates is None:
        raise RefusedFileError(Reason.COVARIATE, where)
    return _Kept(patient=patient, features=features, covariates=covariates, cells=row.cells)


def _report(
    source: TableSource,
    name: str,
    rows: Rows,
    kept: Sequence[_Kept],
    *,
    quarantine: Quarantine,
    quarantine_path: Path | None,
) -> Readiness:
    """Summarise what was found."""
    whole = [row.cells for row in rows.rows if row.reason is None]
    numeric = {*source.features, *source.covariates}
    missing = {
        column: count
        for column in (*source.features, *source.covariates, *source.labels)
        if (
            count := sum(
                number(cells[column]) is None if column in numeric else cell_is_missing(cells[column])
                for cells in whole
            )
        )
    }
    contents = [(hashlib.sha256(repr(row.features).encode()).hexdigest(), row.patient) for row in kept]
    again, across = duplicates(contents)
    patients = {cells[source.patient_column].strip() for cells in whole}
    return Readiness(
        name=name,
        planned_records=len(rows.rows),
        usable_records=len(kept),
        planned_patients=sum(not cell_is_missing(patient) for patient in patients),
        usable_patients=len({row.patient for row in kept}),
        threshold=source.quarantine_threshold,
        refused=quarantine.counts(),
        missing=missing,
        duplicates=again,
        duplicates_across_patients=across,
        quarantine=quarantine,
        quarantine_path=quarantine_path,
    )
