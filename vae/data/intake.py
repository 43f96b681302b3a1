"""From planned records to a cohort: fetch each one, put aside what is refused, stop if that is too much.

Guarantees: every planned record is either in the cohort or in the quarantine, with its reason; nothing
is dropped silently. The names of refused records are written to a local file (mode 0600) before
anything stops.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vae.data.cache import Cache, Facts
from vae.data.cohort import Cohort
from vae.data.quarantine import Entry, Quarantine, Reason, RefusedFileError
from vae.data.readiness import Readiness, duplicates, require_ready, spread, tally
from vae.errors import DataError

Fetch = Callable[[str, Cache], tuple[str, Facts]]
MISSING = frozenset({"", "n/a", "na", "nan", "none", "null"})  # BIDS writes n/a
QUARANTINE_NAME = "quarantine.tsv"


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A record that the folder or table promises; private, hence hidden from `repr`.

    Attributes:
        record: Local name, for the quarantine.
        patient: Patient key; empty where it is unclear.
        channels: One path an image channel, below the data root.
        columns: Covariates and labels as text, by name.
        reason: Set where the plan itself refuses the record.
    """

    record: str = field(repr=False)
    patient: str = field(repr=False, default="")
    channels: tuple[str, ...] = field(repr=False, default=())
    columns: Mapping[str, str] = field(repr=False, default_factory=dict)
    reason: Reason | None = None


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of a table are used, and the public constants that bring covariates to one scale.

    Attributes:
        covariates: Names of numeric columns.
        scale: (centre, scale) of each covariate: public constants, never statistics of the site.
        labels: Names of columns used for evaluation only.
    """

    covariates: tuple[str, ...] = ()
    scale: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_constants(self.covariates, self.scale)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A usable record: where its channels lie in the cache, its facts and its covariates."""

    planned: Planned = field(repr=False)
    hashes: tuple[str, ...]
    facts: tuple[Facts, ...]
    covariates: tuple[float, ...] = field(repr=False)


def check_constants(names: Iterable[str], constants: Mapping[str, tuple[float, float]]) -> None:
    """Refuse a column without a usable public (centre, scale).

    Raises:
        DataError: naming the column and how to give constants.
    """
    for name in names:
        if name not in constants:
            raise DataError(
                f"column {name!r} has no public constants; give (centre, scale) from published norms, "
                "for example age: (50, 20), or (0, 1) to leave it as it is. Statistics of the site are never "
                "used: they would cost privacy"
            )
        centre, scale = constants[name]
        if not (math.isfinite(centre) and math.isfinite(scale) and scale > 0):
            raise DataError(
                f"column {name!r}: the centre must be finite, the scale positive; not {centre}, {scale}"
            )


def number(text: str) -> float | None:
    """Return the finite number that a cell holds, or None."""
    if cell_is_missing(text):
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in text else None


def cell_is_missing(cell: str) -> bool:
    """Return whether a cell is empty or says that its value is missing."""
    return cell.strip().lower() in MISSING


def label_array(cells: Sequence[str]) -> npt.NDArray[np.generic]:
    """Return labels as float32 (NaN where missing) if all others are numbers, as text otherwise."""
    numbers = [number(cell) for cell in cells]
    if all(v is not None or cell_is_missing(c) for v, c in zip(numbers, cells, strict=True)):
        return np.array([math.nan if v is None else v for v in numbers], dtype=np.float32)
    return np.array([cell.strip() for cell in cells], dtype=np.str_)


def scaled(
    columns: Mapping[str, str], names: Sequence[str], constants: Mapping[str, tuple[float, float]]
) -> tuple[float, ...] | None:
    """Return (value - centre) / scale for each name, or None where one is missing."""
    values: list[float] = []
    for name in names:
        value = number(columns.get(name, ""))
        if value is None:
            return None
        centre, scale = constants[name]
        values.append((value - centre) / scale)
    return tuple(values)


def take_in(
    planned: Sequence[Planned],
    fetch: Fetch,
    *,
    name: str,
    cache: Cache,
    columns: Columns,
    threshold: float,
) -> tuple[list[Kept], Readiness]:
    """Fetch every planned record and put aside what is refused.

    Returns:
        Usable records sorted by patient, then by local name; and the readiness report.

    Guarantees:
        usable + refused = planned (test_nifti.py).
    """
    kept: list[Kept] = []
    entries: list[Entry] = []
    for record in sorted(planned, key=lambda item: (item.patient, item.record)):
        try:
            kept.append(_keep(record, fetch, cache, columns))
        except RefusedFileError as error:
            entries.append(Entry(record=record.record, reason=error.reason))
    quarantine = Quarantine(entries=tuple(entries))
    quarantine_path = cache.folder / QUARANTINE_NAME if cache.keep else None
    if quarantine_path is not None:
        quarantine.write(quarantine_path)
    return kept, _report(
        name,
        planned,
        kept,
        columns,
        threshold=threshold,
        quarantine=quarantine,
        quarantine_path=quarantine_path,
    )


def build_cohort(
    name: str, kept: Sequence[Kept], cache: Cache, columns: Columns, readiness: Readiness
) -> Cohort:
    """Return the cohort of usable records; its values are a read-only memory map.

    Raises:
        DataNotReadyError: nothing is usable, or more was refused than the threshold allows.
    """
    require_ready(readiness)
    patients = [record.planned.patient for record in kept]
    starts = [row for row, key in enumerate(patients) if row == 0 or key != patients[row - 1]]
    return Cohort(
        name=name,
        values=cache.assemble([record.hashes for record in kept]),
        offsets=np.array([*starts, len(kept)], dtype=np.int64),
        patients=tuple(patients[row] for row in starts),
        covariates=np.array([record.covariates for record in kept], dtype=np.float32).reshape(len(kept), -1),
        covariate_names=columns.covariates,
        labels={
            label: label_array([r.planned.columns.get(label, "") for r in kept]) for label in columns.labels
        },
    )


def _keep(record: Planned, fetch: Fetch, cache: Cache, columns: Columns) -> Kept:
    """Return a usable record, or raise the reason why it is not."""
    if record.reason is not None:
        raise RefusedFileError(record.reason, record.record)
    if not record.patient:
        raise RefusedFileError(Reason.PATIENT, record.record)
    covariates = scaled(record.columns, columns.covariates, columns.scale)
    if covariates is None:
        raise RefusedFileError(Reason.COVARIATE, record.record)
    fetched = [fetch(channel, cache) for channel in record.channels]
    facts = tuple(fact for _, fact in fetched)
    if any(fact.shape != facts[0].shape or not _same_place(fact, facts[0]) for fact in facts):
        raise RefusedFileError(Reason.CHANNEL_GRID, record.record)
    return Kept(
        planned=record, hashes=tuple(content for content, _ in fetched), facts=facts, covariates=covariates
    )


def _same_place(one: Facts, other: Facts, *, tolerance_mm: float = 0.01) -> bool:
    """Return whether two grids agree, first voxel and steps, to a hundredth of a millimetre."""
    return bool(np.allclose(one.affine, other.affine, rtol=0.0, atol=tolerance_mm))


def _report(
    name: str,
    planned: Sequence[Planned],
    kept: Sequence[Kept],
    columns: Columns,
    *,
    threshold: float,
    quarantine: Quarantine,
    quarantine_path: Path | None,
) -> Readiness:
    """Summarise what was found."""
    facts = [fact for record in kept for fact in record.facts]
    again, across = duplicates(
        [("".join(fact.voxels_hash for fact in record.facts), record.planned.patient) for record in kept]
    )
    readable = [record for record in planned if record.reason is None]
    missing = {
        column: count
        for column in (*columns.covariates, *columns.labels)
        if (count := sum(_is_missing(r, column, numeric=column in columns.covariates) for r in readable))
    }
    return Readiness(
        name=name,
        planned_records=len(planned),
        usable_records=len(kept),
        planned_patients=len({record.patient for record in planned if record.patient}),
        usable_patients=len({record.planned.patient for record in kept}),
        threshold=threshold,
        refused=quarantine.counts(),
        missing=missing,
        shapes=tally(" x ".join(str(size) for size in fact.shape) for fact in facts),
        dtypes=tally(fact.dtype for fact in facts),
        voxel_mm=tuple(spread(f.voxel_mm[axis] for f in facts) for axis in range(3)) if facts else (),
        intensity=tuple(spread(f.intensity[i] for f in facts) for i in range(3)) if facts else (),
        duplicates=again,
        duplicates_across_patients=across,
        quarantine=quarantine,
        quarantine_path=quarantine_path,
    )


def _is_missing(record: Planned, column: str, *, numeric: bool) -> bool:
    """Return whether a cell is empty, or no number where one is needed."""
    cell = record.columns.get(column, "")
    return number(cell) is None if numeric else cell_is_missing(cell)
