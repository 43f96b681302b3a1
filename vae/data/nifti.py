"""NIfTI scans of a hospital: a BIDS folder, or a table of file paths with a patient column.

Guarantees: every file with a chosen suffix below a `sub-*` folder is planned, whatever its depth, and
every planned record ends in the cohort or in the quarantine; voxels are read by a bounded reader of
ours after the header gate, so no more memory is taken than the header declares
(tests/unit/vae/test_nifti.py).
What it does not do: derivatives (`derivatives/`, `sourcedata/` and hidden folders are not entered),
time series, registration of channels.

References: BIDS 1.10, "Magnetic Resonance Imaging data"; NIfTI-1.1.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vae.data.bids import plan_bids
from vae.data.cache import Cache, Facts
from vae.data.cohort import Cohort
from vae.data.gate import NiftiHeader, check_nifti_stream, inflated
from vae.data.intake import Columns, Kept, Planned, build_cohort, take_in
from vae.data.limits import DEFAULT_LIMITS, Limits, read_some
from vae.data.paths import open_inside
from vae.data.prepare import Preparation, Volume
from vae.data.quarantine import Reason, RefusedFileError
from vae.data.readiness import Readiness
from vae.data.rows import Row, read_rows, require_columns
from vae.errors import DataError

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class NiftiSource:
    """A hospital's own scans.

    Attributes:
        root: Data root; nothing outside it is opened.
        suffixes: One image channel each: BIDS suffixes (`T1w`, `FLAIR`, `pet`), or with `table` the
            names of its path columns (with one suffix also `path`).
        table: CSV or TSV below the root, one record a row; None reads the folder as BIDS with
            `participants.tsv` and `sub-*_sessions.tsv`.
        patient_column: Column that identifies the patient.
        covariates: Numeric columns that condition the model.
        covariate_scale: Public (centre, scale) of each covariate.
        labels: Columns for evaluation only.
        preparation: Grid and intensity range of the study.
        quarantine_threshold: Largest share of records that may be refused, in [0, 1).
        limits: What a file may claim.
    """

    root: str
    suffixes: tuple[str, ...] = ("T1w",)
    table: str | None = None
    patient_column: str = "participant_id"
    covariates: tuple[str, ...] = ()
    covariate_scale: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    preparation: Preparation
    quarantine_threshold: float = 0.05
    limits: Limits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        if not self.suffixes or len(set(self.suffixes)) != len(self.suffixes):
            raise ValueError("suffixes must name at least one channel, each once")
        if not 0 <= self.quarantine_threshold < 1:
            raise ValueError("quarantine_threshold must lie in [0, 1)")

    def survey(self, *, name: str, cache: Path, keep: bool = True) -> Readiness:
        """Look at every record without building a cohort; see `readiness.check`."""
        return _take_in(self, name, Cache(folder=cache, preparation=self.preparation, keep=keep))[1]


def open_nifti(source: NiftiSource, *, name: str, cache: Path) -> tuple[Cohort, Readiness]:
    """Read, gate and prepare a hospital's scans.

    Args:
        source: Where they are and what the study fixed.
        name: Of the cohort.
        cache: Folder of prepared records, outside the data root; patient data, mode 0700.

    Returns:
        The cohort, its values a read-only memory map [R, C, *S]; and the readiness report.

    Raises:
        DataError: no such root, table or column; a covariate without public constants.
        DataNotReadyError: nothing is usable, or more was refused than the threshold allows. The names
        of refused
            files are in `quarantine.tsv` in the cache folder.
    """
    stored = Cache(folder=cache, preparation=source.preparation)
    kept, readiness = _take_in(source, name, stored)
    return build_cohort(name, kept, stored, _columns(source), readiness), readiness


def read_nifti(path: str | Path, root: str | Path, limits: Limits = DEFAULT_LIMITS) -> Volume:
    """Return one decoded scan after the header gate.

    Raises:
        RefusedFileError: with the reason.
    """
    with open_inside(root, path) as stream:
        return _decode(stream, check_nifti_stream(stream, limits), limits)


def _columns(source: NiftiSource) -> Columns:
    """Return the columns that a source uses."""
    return Columns(covariates=source.covariates, scale=source.covariate_scale, labels=source.labels)


def _take_in(source: NiftiSource, name: str, cache: Cache) -> tuple[list[Kept], Readiness]:
    """Plan and fetch every record."""
    columns = _columns(source)
    if not Path(source.root).is_dir():
        raise DataError(f"{name}: data root {source.root!r} is no folder; check the path and the mount")
    planned = _plan(source)

    def fetch(path: str, stored: Cache) -> tuple[str, Facts]:
        with open_inside(source.root, path) as stream:
            header = check_nifti_stream(stream, source.limits)
            content = _digest(stream)
            load = lambda: _decode(stream, header, source.limits)  # noqa: E731
            return content, stored.fetch(content, load, limits=source.limits)

    return take_in(
        planned, fetch, name=name, cache=cache, columns=columns, threshold=source.quarantine_threshold
    )


def _digest(stream: io.BufferedReader) -> str:
    """Return the SHA-256 of the file as stored."""
    with inflated(stream, compressed=False):
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _decode(stream: BinaryIO, header: NiftiHeader, limits: Limits) -> Volume:
    """Read exactly the voxels that the header declares, in chunks, into memory of that size."""
    buffer = np.empty(header.num_bytes, dtype=np.uint8)  # pages are taken as they are filled
    view = buffer.data
    with inflated(stream, compressed=header.compressed) as content:
        read_some(content, header.offset)
        filled = 0
        while filled < len(view) and (chunk := content.read(min(CHUNK_BYTES, len(view) - filled))):
            view[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
        if filled < len(view):
            raise RefusedFileError(Reason.TRUNCATED, f"{filled} of {len(view)} declared bytes are there")
        # reading on to the end also checks the checksum of a gzip file
        if len(read_some(content, limits.slack_bytes + 1)) > limits.slack_bytes:
            raise RefusedFileError(Reason.TRAILING_DATA, f"more than the {len(view)} declared bytes")
    stored = buffer.view(header.dtype).reshape(header.shape, order="F")
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found as non-finite and refused
        values = np.ascontiguousarray(stored, dtype=np.float32)
        if (header.slope, header.intercept) != (1.0, 0.0):
            values = (values * header.slope + header.intercept).astype(np.float32)
    return Volume(
        values=values,
        affine=np.asarray(header.affine, dtype=np.float64),
        dtype=np.dtype(header.dtype).name,
        voxel_mm=header.voxel_mm,
    )


def _plan(source: NiftiSource) -> list[Planned]:
    """Return the planned records of the table, or of the BIDS folder."""
    if source.table is not None:
        return _plan_table(source, source.table)
    wanted = (*source.covariates, *source.labels)
    return plan_bids(Path(source.root), source.suffixes, patient_column=source.patient_column, wanted=wanted)


def _plan_table(source: NiftiSource, table: str) -> list[Planned]:
    """Return one planned record a row of a table of paths."""
    rows = read_rows(source.root, table)
    names = source.suffixes
    if len(names) == 1 and names[0] not in rows.columns and "path" in rows.columns:
        names = ("path",)
    require_columns(rows, (source.patient_column, *names, *source.covariates, *source.labels), table)
    return [_plan_row(row, source.patient_column, names) for row in rows.rows]


def _plan_row(row: Row, patient_column: str, names: Sequence[str]) -> Planned:
    """Return the planned record of one row."""
    paths = tuple(row.cells.get(name, "").strip() for name in names)
    reason = row.reason or (None if all(paths) else Reason.CHANNEL_MISSING)
    return Planned(
        record=f"line {row.line}: {', '.join(paths)}",
        patient=row.cells.get(patient_column, "").strip(),
        channels=paths,
        columns=row.cells,
        reason=reason,
    )
