"""Is this data set ready? Planned against usable, what was refused and why, and what the scans look
like.

Guarantees: `Readiness` in its default rendering and in `to_dict` holds no file name and no patient key
(test_readiness.py). Counts are private to the site all the same: show them there, never send them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vae.data.quarantine import REMEDIES, Quarantine, Reason
from vae.errors import DataNotReadyError

LOCAL_MARK = "local: do not share"


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Smallest, median and largest of a quantity."""

    low: float
    median: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """What a data set holds and whether a site may train on it. Local to the site.

    Attributes:
        name: Of the data set.
        planned_records: Records that the folder or table promises.
        usable_records: Records left after the gate, the decoding and the covariates.
        planned_patients: Patients of the planned records, as far as they are known.
        usable_patients: Patients with at least one usable record.
        threshold: Largest share of records that may be refused, in [0, 1).
        refused: Records refused by reason code.
        missing: Records without a value, by covariate, feature or label.
        shapes: Stored grids, with the number of scans.
        dtypes: Stored types, with the number of scans.
        voxel_mm: Stored voxel size along each axis [mm].
        intensity: Spread over scans of their 1st, 50th and 99th percentile.
        duplicates: Usable records whose content occurs in an earlier record.
        duplicates_across_patients: Those of them that belong to another patient than the first one.
        quarantine: The refused records by name; local, hidden from `repr`.
        quarantine_path: Where those names were written, mode 0600; hidden from `repr`.
    """

    name: str
    planned_records: int
    usable_records: int
    planned_patients: int
    usable_patients: int
    threshold: float
    refused: Mapping[str, int]
    missing: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, int] = field(default_factory=dict)
    dtypes: Mapping[str, int] = field(default_factory=dict)
    voxel_mm: tuple[Spread, ...] = ()
    intensity: tuple[Spread, ...] = ()
    duplicates: int = 0
    duplicates_across_patients: int = 0
    quarantine: Quarantine = field(default_factory=Quarantine, repr=False)
    quarantine_path: Path | None = field(default=None, repr=False)

    @property
    def refused_share(self) -> float:
        """Return the share of planned records that were refused, in [0, 1]."""
        return 1.0 - self.usable_records / self.planned_records if self.planned_records else 0.0

    @property
    def ready(self) -> bool:
        """Return whether a site may train: something is usable and no more than `threshold` was refused."""
        refused = self.planned_records - self.usable_records
        allowed = self.threshold * self.planned_records + 1e-9  # 0.29 * 100 is a little less than 29
        return self.usable_records > 0 and refused <= allowed

    def to_dict(self) -> dict[str, object]:
        """Return the aggregated report: plain types, no names, no keys."""
        return {
            "name": self.name,
            "ready": self.ready,
            "planned": {"records": self.planned_records, "patients": self.planned_patients},
            "usable": {"records": self.usable_records, "patients": self.usable_patients},
            "threshold": self.threshold,
            "refused": dict(self.refused),
            "missing": dict(self.missing),
            "shapes": dict(self.shapes),
            "dtypes": dict(self.dtypes),
            "voxel_mm": [[spread.low, spread.median, spread.high] for spread in self.voxel_mm],
            "intensity": [[spread.low, spread.median, spread.high] for spread in self.intensity],
            "duplicates": self.duplicates,
            "duplicates_across_patients": self.duplicates_across_patients,
        }


class Source(Protocol):
    """A data set that can say how ready it is: `NiftiSource`, `DicomSource`, `TableSource`."""

    def survey(self, *, name: str, cache: Path, keep: bool = True) -> Readiness:
        """Look at every record without building a cohort."""
        ...


def check(source: Source, *, name: str, cache: Path, keep: bool = True) -> Readiness:
    """Look at every record of a data set and say what is usable; never stops at the threshold.

    Args:
        source: The data set.
        name: Of the data set, for the report.
        cache: Folder of prepared records; filled, so that the first round finds them.
        keep: Write what was prepared, and the names of what was refused. False writes nothing at all.

    Raises:
        DataError: the source itself is unusable (no such folder, a column that does not exist).

    Guarantees:
        Without `keep` nothing on disk changes, and the answer is the same (test_readiness.py).
    """
    return source.survey(name=name, cache=cache, keep=keep)


def require_ready(readiness: Readiness) -> None:
    """Stop unless the data set is ready.

    Raises:
        DataNotReadyError: nothing is usable, or more was refused than the threshold allows.
    """
    if readiness.ready:
        return
    if readiness.planned_records == 0:
        raise DataNotReadyError(
            f"{readiness.name}: no record was found; check the data root, the suffixes and the table"
        )
    codes = ", ".join(f"{reason} {count}" for reason, count in readiness.refused.items())
    raise DataNotReadyError(
        f"{readiness.name}: {readiness.planned_records - readiness.usable_records} of "
        f"{readiness.planned_records} planned records cannot be used ({codes}), over the threshold of "
        f"{readiness.threshold:.1%}; names and remedies: python -m deploy data check --details"
    )


def render(readiness: Readiness, *, details: bool = False) -> str:
    """Return the report as plain text.

    Args:
        readiness: What `check` found.
        details: Add the names of refused files; that part is marked as local.
    """
    refused = readiness.planned_records - readiness.usable_records
    rows = [
        ("data set", readiness.name),
        ("verdict", "ready" if readiness.ready else "NOT READY"),
        ("patients", f"{readiness.usable_patients} usable of {readiness.planned_patients} planned"),
        ("records", f"{readiness.usable_records} usable of {readiness.planned_records} planned"),
        ("refused", f"{refused} ({readiness.refused_share:.1%}; at most {readiness.threshold:.1%} allowed)"),
        ("duplicates", f"{readiness.duplicates} ({readiness.duplicates_across_patients} across patients)"),
        ("shapes", _counts(readiness.shapes)),
        ("dtypes", _counts(readiness.dtypes)),
        *((f"voxel {axis} [mm]", _spread(s)) for axis, s in zip("ijk", readiness.voxel_mm, strict=False)),
        *((f"intensity {p}", _spread(s)) for p, s in zip(_PERCENTILES, readiness.intensity, strict=False)),
        ("missing", _counts(readiness.missing)),
    ]
    lines = [f"{label:<16} {text}" for label, text in rows if text]
    lines += [f"  {count:>6}  {code}: {REMEDIES[Reason(code)]}" for code, count in readiness.refused.items()]
    if details:
        lines += ["", f"--- {LOCAL_MARK} ---", *readiness.quarantine.lines(), f"--- {LOCAL_MARK} ---"]
    return "\n".join(lines) + "\n"


def spread(values: Iterable[float]) -> Spread:
    """Return smallest, median (upper of two) and largest of at least one value."""
    ordered = sorted(values)
    return Spread(low=ordered[0], median=ordered[len(ordered) // 2], high=ordered[-1])


def duplicates(records: Sequence[tuple[str, str]]) -> tuple[int, int]:
    """Return (records seen before, those of them under another patient) for (content hash, patient) pairs."""
    first: dict[str, str] = {}
    again = across = 0
    for content, patient in records:
        owner = first.setdefault(content, patient)
        again += 1
        across += owner != patient
    return again - len(first), across


def tally(values: Iterable[str]) -> dict[str, int]:
    """Return how often each value occurs, commonest first, then by name."""
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


_PERCENTILES = ("1 %", "50 %", "99 %")


def _counts(counts: Mapping[str, int]) -> str:
    """Return counts in one line, at most six of them."""
    shown = [f"{key} ({count})" for key, count in list(counts.items())[:6]]
    return ", ".join(shown) + (f", and {len(counts) - 6} more" if len(counts) > 6 else "")


def _spread(values: Spread) -> str:
    """Return a spread in one line."""
    return f"{values.low:.4g} .. {values.median:.4g} .. {values.high:.4g}"
