"""DICOM series: one folder of slices is one volume, one record.

Guarantees: every folder with a file in it is a planned record; a slice that cannot be read refuses the
whole series, and so do gaps between slices, so that a volume is never silently shortened. PatientID is
replaced at once by a keyed hash; other identifying elements are not parsed
(tests/unit/vae/test_dicom.py).
What it does not do: compressed transfer syntaxes, multi-frame objects, several stacks in one folder,
SUV.

References: DICOM PS3.3 C.7.6.2 (image plane), C.11.1 (modality LUT).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vae.data.cache import Cache, Facts
from vae.data.cohort import Cohort
from vae.data.intake import Columns, Kept, Planned, build_cohort, take_in
from vae.data.limits import DEFAULT_LIMITS, Limits, check_grid, check_size
from vae.data.paths import open_inside
from vae.data.prepare import Preparation, Volume
from vae.data.quarantine import Reason, RefusedFileError
from vae.data.readiness import Readiness
from vae.data.rows import read_rows, require_columns
from vae.data.slices import DAMAGED, DICOM_TAGS, DicomHeader, check_dicom_bytes, parse_dicom, read_slice
from vae.errors import DataError

SALT_NAME = "pseudonym.salt"
SALT_BYTES = 32
_IGNORED = frozenset({"DICOMDIR", "Thumbs.db", "desktop.ini"})
_MAX_SLICES = 4096
_GAP_TOLERANCE = 0.05  # of the slice distance
_DIRECTION_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class DicomSource:
    """Folders of DICOM slices, one series a folder.

    Attributes:
        root: Data root; nothing outside it is opened.
        table: CSV or TSV below the root with one row a patient, for covariates and labels; None for
            neither.
        patient_column: Column of the table that holds the PatientID.
        covariates: Numeric columns that condition the model.
        covariate_scale: Public (centre, scale) of each covariate.
        labels: Columns for evaluation only.
        preparation: Grid and intensity range of the study.
        quarantine_threshold: Largest share of series that may be refused, in [0, 1).
        limits: What a file may claim.
    """

    root: str
    table: str | None = None
    patient_column: str = "PatientID"
    covariates: tuple[str, ...] = ()
    covariate_scale: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    preparation: Preparation
    quarantine_threshold: float = 0.05
    limits: Limits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        if not 0 <= self.quarantine_threshold < 1:
            raise ValueError("quarantine_threshold must lie in [0, 1)")
        if self.table is None and (self.covariates or self.labels):
            raise ValueError("covariates and labels of a DICOM source come from a table")

    def survey(self, *, name: str, cache: Path, keep: bool = True) -> Readiness:
        """Look at every series without building a cohort; see `readiness.check`."""
        return _take_in(self, name, Cache(folder=cache, preparation=self.preparation, keep=keep))[1]


def open_dicom(source: DicomSource, *, name: str, cache: Path) -> tuple[Cohort, Readiness]:
    """Read, gate and prepare DICOM series.

    Args:
        source: Where they are and what the study fixed.
        name: Of the cohort.
        cache: Folder of prepared records and of the salt of the pseudonyms, outside the data root; mode
            0700.

    Returns:
        The cohort, its values a read-only memory map [R, 1, *S], its patient keys pseudonyms; and the
        readiness report.

    Raises:
        DataError: no such root, table or column; a covariate without public constants; a damaged salt.
        DataNotReadyError: nothing is usable, or more was refused than the threshold allows.
    """
    stored = Cache(folder=cache, preparation=source.preparation)
    kept, readiness = _take_in(source, name, stored)
    return build_cohort(name, kept, stored, _columns(source), readiness), readiness


def read_series(folder: str | Path, root: str | Path, limits: Limits = DEFAULT_LIMITS) -> Volume:
    """Return the volume of one folder of slices.

    Raises:
        RefusedFileError: with the reason.
    """
    return _stack(_read_folder(folder, root, limits), root, limits)


def pseudonym(patient: str, salt: bytes) -> str:
    """Return the key of a patient: HMAC-SHA-256 of the PatientID under the site's salt, 128 bits in hex."""
    return hmac.new(salt, patient.encode(), hashlib.sha256).hexdigest()[:32]


def site_salt(cache: Path) -> bytes:
    """Return the salt of this cache, made at the first call; mode 0600.

    Raises:
        DataError: the file is there but has another size or can be read by others.
    """
    path = cache / SALT_NAME
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        salt = path.read_bytes()
        if len(salt) != SALT_BYTES or path.stat().st_mode & 0o077:
            raise DataError(
                f"{path} must hold {SALT_BYTES} bytes with mode 0600; restore it from a backup: with another "
                "salt the same patients get other keys"
            ) from None
        return salt
    salt = secrets.token_bytes(SALT_BYTES)
    with os.fdopen(handle, "wb") as stream:
        stream.write(salt)
        stream.flush()
        os.fsync(stream.fileno())
    return salt


@dataclass(frozen=True, kw_only=True)
class _Slice:
    """One slice that passed the gate: its path, what it declares, and the hash of its bytes."""

    path: str = field(repr=False)
    header: DicomHeader
    content: str


def _columns(source: DicomSource) -> Columns:
    """Return the columns that a source uses."""
    return Columns(covariates=source.covariates, scale=source.covariate_scale, labels=source.labels)


def _take_in(source: DicomSource, name: str, cache: Cache) -> tuple[list[Kept], Readiness]:
    """Plan and fetch every series."""
    columns = _columns(source)
    if not Path(source.root).is_dir():
        raise DataError(f"{name}: data root {source.root!r} is no folder; check the path and the mount")
    # Pseudonyms that are not kept need a salt that is not kept either.
    salt = site_salt(cache.folder) if cache.keep else secrets.token_bytes(SALT_BYTES)

    def fetch(folder: str, stored: Cache) -> tuple[str, Facts]:
        slices = _read_folder(folder, source.root, source.limits)
        content = hashlib.sha256("".join(sorted(s.content for s in slices)).encode()).hexdigest()
        return content, stored.fetch(
            content, lambda: _stack(slices, source.root, source.limits), limits=source.limits
        )

    return take_in(
        _plan(source, salt),
        fetch,
        name=name,
        cache=cache,
        columns=columns,
        threshold=source.quarantine_threshold,
    )


def _plan(source: DicomSource, salt: bytes) -> list[Planned]:
    """Return one planned record a folder that holds files."""
    people = _people(source)
    planned: list[Planned] = []
    table = os.path.normpath(source.table) if source.table is not None else None

    def unreadable(error: OSError) -> None:
        where = os.path.relpath(error.filename or source.root, source.root)
        planned.append(Planned(record=where, reason=Reason.UNREADABLE))

    for folder, folders, files in os.walk(source.root, onerror=unreadable, followlinks=False):
        inside = os.path.relpath(folder, source.root)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        linked = [name for name in folders if (Path(folder) / name).is_symlink()]
        planned += [
            Planned(record=os.path.normpath(f"{inside}/{name}"), reason=Reason.LINKED_FOLDER)
            for name in linked
        ]
        folders[:] = [name for name in folders if name not in linked]
        slices = [name for name in _slice_names(files) if os.path.normpath(f"{inside}/{name}") != table]
        if slices:
            planned.append(_plan_series(source, inside, min(slices), people, salt))
    return planned


def _plan_series(
    source: DicomSource, folder: str, first: str, people: Mapping[str, Mapping[str, str]], salt: bytes
) -> Planned:
    """Return the planned record of one folder; its patient is that of its first file."""
    try:
        with open_inside(source.root, os.path.normpath(f"{folder}/{first}")) as stream:
            header = check_dicom_bytes(read_slice(stream, source.limits), source.limits)
    except RefusedFileError as error:
        return Planned(record=folder, reason=error.reason)
    return Planned(
        record=folder,
        patient=pseudonym(header.patient, salt),
        channels=(folder,),
        columns=people.get(header.patient, {}),
    )


def _people(source: DicomSource) -> dict[str, Mapping[str, str]]:
    """Return the rows of the table by PatientID."""
    if source.table is None:
        return {}
    rows = read_rows(source.root, source.table)
    require_columns(rows, (source.patient_column, *source.covariates, *source.labels), source.table)
    return {row.cells[source.patient_column].strip(): row.cells for row in rows.rows if row.reason is None}


def _slice_names(files: Sequence[str]) -> list[str]:
    """Return the files of a folder that must be slices."""
    return sorted(name for name in files if name not in _IGNORED and not name.startswith("."))


def _read_folder(folder: str | Path, root: str | Path, limits: Limits) -> list[_Slice]:
    """Gate every slice of a folder and check that they belong together."""
    base = Path(root)
    names = _slice_names([entry.name for entry in (base / folder).iterdir() if not entry.is_dir()])
    if len(names) > _MAX_SLICES:
        raise RefusedFileError(Reason.TOO_LARGE, f"{folder}: more than {_MAX_SLICES} slices")
    slices = []
    for name in names:
        path = os.path.normpath(f"{folder}/{name}")
        with open_inside(root, path) as stream:
            content = read_slice(stream, limits)
        header = check_dicom_bytes(content, limits)
        slices.append(_Slice(path=path, header=header, content=hashlib.sha256(content).hexdigest()))
    _check_series(slices, limits)
    return slices


def _check_series(slices: Sequence[_Slice], limits: Limits) -> None:
    """Refuse slices of different patients, series, sizes, types or orientations."""
    if len(slices) < 2:
        raise RefusedFileError(Reason.SLICES, "a volume needs at least two slices")
    first = slices[0].header
    for item in slices[1:]:
        header = item.header
        if header.patient != first.patient:
            raise RefusedFileError(Reason.PATIENT, f"{item.path}: another patient than in the slice before")
        alike = (header.series, header.rows, header.columns, header.dtype, header.inverted)
        turned = np.abs(np.asarray(header.affine)[:3, :3] - np.asarray(first.affine)[:3, :3]).max()
        if alike != (first.series, first.rows, first.columns, first.dtype, first.inverted) or not (
            turned <= _DIRECTION_TOLERANCE
        ):
            raise RefusedFileError(Reason.SERIES, f"{item.path}: another series, size, type or orientation")
    check_size((first.columns, first.rows, len(slices)), 4, limits)


def _stack(slices: Sequence[_Slice], root: str | Path, limits: Limits) -> Volume:
    """Decode the slices, ordered along their normal, into one volume [columns, rows, slices]."""
    affines = np.array([item.header.affine for item in slices])
    normal = affines[0, :3, 2]
    heights = affines[:, :3, 3] @ normal
    order = np.argsort(heights, kind="stable")
    steps = np.diff(heights[order])
    typical = float(np.median(steps))
    if not typical > 0 or float(np.abs(steps - typical).max()) > _GAP_TOLERANCE * typical:
        raise RefusedFileError(Reason.SLICES, "slices are doubled, missing or unevenly spaced")
    first, last = affines[order[0]], affines[order[-1]]
    affine = first.copy()
    affine[:3, 2] = (last[:3, 3] - first[:3, 3]) / (len(slices) - 1)
    voxel_mm = check_grid(affine, limits)
    header = slices[0].header
    values = np.empty((header.columns, header.rows, len(slices)), dtype=np.float32)
    for layer, index in enumerate(order):
        values[:, :, layer] = _decode(slices[int(index)], root, limits).T
    if header.inverted:
        values = values.max() + values.min() - values
    return Volume(values=values, affine=affine, dtype=np.dtype(header.dtype).name, voxel_mm=voxel_mm)


def _decode(item: _Slice, root: str | Path, limits: Limits) -> npt.NDArray[np.float32]:
    """Decode one slice [rows, columns] with pydicom's reader for uncompressed pixels."""
    with open_inside(root, item.path) as stream:
        content = read_slice(stream, limits)
    if hashlib.sha256(content).hexdigest() != item.content:
        raise RefusedFileError(Reason.SERIES, f"{item.path} changed while it was read")
    parsed = parse_dicom(content, (*DICOM_TAGS, "PixelData"))
    header = item.header
    stored = len(parsed.get("PixelData") or b"")
    if not header.num_bytes <= stored <= header.num_bytes + limits.slack_bytes:
        raise RefusedFileError(
            Reason.TRUNCATED, f"{item.path}: {stored} pixel bytes, {header.num_bytes} declared"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom quotes element values, which may name a patient
            pixels = np.asarray(parsed.pixel_array)
    except DAMAGED:
        raise RefusedFileError(Reason.DECODING, f"{item.path}: pixels cannot be decoded") from None
    if pixels.shape != (header.rows, header.columns):
        raise RefusedFileError(Reason.DECODING, f"{item.path}: pixels of another size than declared")
    return (pixels * header.slope + header.intercept).astype(np.float32)
