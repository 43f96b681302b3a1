"""Which records a BIDS folder promises: scans by patient, session and suffix, with their rows of the
tables.

Guarantees: every file with a chosen suffix is planned, at any depth, and so is everything that could
hide one (a link to a folder, a folder that cannot be read), with the reason why it cannot be used.
What it does not do: open a scan; enter `derivatives/`, `sourcedata/`, `code/` or hidden folders. The
same `sub-*` label in two places below the root is one patient.

References: BIDS 1.10, "Common principles", "Magnetic Resonance Imaging data", "Sessions file".
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vae.data.intake import Planned
from vae.data.quarantine import Reason
from vae.data.rows import read_rows, require_columns
from vae.errors import DataError

SKIPPED_FOLDERS = frozenset({"derivatives", "sourcedata", "code"})
_ENTITIES = re.compile(r"(sub-[A-Za-z0-9]+)(?:_(ses-[A-Za-z0-9]+))?((?:_[a-z]+-[A-Za-z0-9]+)*)")
_EXTENSIONS = (".nii", ".nii.gz")


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A scan found below the root: its path, what its name says, and why it is refused if it is."""

    path: str
    patient: str = ""
    session: str = ""
    rest: str = ""
    suffix: str = ""
    reason: Reason | None = None


def plan_bids(
    root: Path, suffixes: Sequence[str], *, patient_column: str, wanted: Sequence[str]
) -> list[Planned]:
    """Return the planned records of a BIDS folder, one a visit (with one suffix: one a file).

    Args:
        root: Data root.
        suffixes: One a channel.
        patient_column: Of `participants.tsv`.
        wanted: Covariates and labels; looked for in `participants.tsv` and in the sessions tables.

    Raises:
        DataError: a wanted column is nowhere.
    """
    found, tables = _walk(root, suffixes)
    people = _read_phenotypes(root, tables, patient_column, wanted) if wanted else _Phenotypes()
    groups: defaultdict[tuple[str, str, str], list[_Found]] = defaultdict(list)
    planned = []
    for item in found:
        if item.reason is not None:
            planned.append(Planned(record=item.path, patient=item.patient, reason=item.reason))
        else:
            groups[item.patient, item.session, _visit(item.rest, len(suffixes))].append(item)
    for (patient, session, _), items in groups.items():
        by_suffix = [[item for item in items if item.suffix == suffix] for suffix in suffixes]
        sizes = {len(candidates) for candidates in by_suffix}
        reason = Reason.CHANNEL_MISSING if 0 in sizes else Reason.CHANNEL_AMBIGUOUS if sizes != {1} else None
        planned.append(
            Planned(
                record=", ".join(item.path for item in items),
                patient=patient,
                channels=() if reason else tuple(candidates[0].path for candidates in by_suffix),
                columns=people.lookup(patient, session),
                reason=reason,
            )
        )
    return planned


def _visit(entities: str, num_channels: int) -> str:
    """Return what tells records of a session apart: all entities; the run where channels are paired."""
    if num_channels == 1:
        return entities
    run = re.search(r"_run-([A-Za-z0-9]+)", entities)
    return run.group(1) if run else ""


def _walk(root: Path, suffixes: Sequence[str]) -> tuple[list[_Found], list[str]]:
    """Return every scan with one of the suffixes, and every sessions table, below the root."""
    found: list[_Found] = []
    tables: list[str] = []

    def unreadable(error: OSError) -> None:
        where = os.path.relpath(error.filename or root, root)
        found.append(_Found(path=where, patient=_folder(where), reason=Reason.UNREADABLE))

    for folder, folders, files in os.walk(root, onerror=unreadable, followlinks=False):
        inside = os.path.relpath(folder, root)
        folders[:] = sorted(f for f in folders if f not in SKIPPED_FOLDERS and not f.startswith("."))
        for name in [f for f in folders if (Path(folder) / f).is_symlink()]:
            folders.remove(name)
            where = os.path.normpath(f"{inside}/{name}")
            found.append(_Found(path=where, patient=_folder(where), reason=Reason.LINKED_FOLDER))
        for name in sorted(files):
            where = os.path.normpath(f"{inside}/{name}")
            if name.startswith("sub-") and name.endswith("_sessions.tsv"):
                tables.append(where)
            found.extend(_scan(where, name, suffixes))
    return found, tables


def _scan(where: str, name: str, suffixes: Sequence[str]) -> Iterator[_Found]:
    """Yield what a file name says if it has one of the suffixes."""
    for suffix in suffixes:
        for extension in _EXTENSIONS:
            ending = f"_{suffix}{extension}"
            if not name.endswith(ending) or name.startswith("."):
                continue
            entities = _ENTITIES.fullmatch(name[: -len(ending)])
            if entities is None or entities.group(1) != _folder(where):
                yield _Found(path=where, reason=Reason.PATIENT)
                continue
            patient, session, rest = entities.group(1), entities.group(2) or "", entities.group(3)
            yield _Found(path=where, patient=patient, session=session, rest=rest, suffix=suffix)


def _folder(where: str) -> str:
    """Return the innermost `sub-*` folder on a path, or an empty string."""
    return next((part for part in reversed(Path(where).parts) if re.fullmatch(r"sub-[A-Za-z0-9]+", part)), "")


@dataclass(frozen=True, kw_only=True)
class _Phenotypes:
    """Rows of `participants.tsv` by patient, and of `sub-*_sessions.tsv` by patient and session."""

    people: Mapping[str, Mapping[str, str]] = field(repr=False, default_factory=dict)
    visits: Mapping[tuple[str, str], Mapping[str, str]] = field(repr=False, default_factory=dict)

    def lookup(self, patient: str, session: str) -> Mapping[str, str]:
        """Return the cells of a visit; the sessions table wins over `participants.tsv`."""
        return {**self.people.get(patient, {}), **self.visits.get((patient, session), {})}


def _read_phenotypes(
    root: Path, tables: Sequence[str], patient_column: str, wanted: Sequence[str]
) -> _Phenotypes:
    """Read all tables and check that every wanted column is in one of them."""
    people: dict[str, Mapping[str, str]] = {}
    visits: dict[tuple[str, str], Mapping[str, str]] = {}
    if not (root / "participants.tsv").exists():
        raise DataError("covariates and labels come from participants.tsv in the data root; add the file")
    rows = read_rows(root, "participants.tsv")
    require_columns(rows, (patient_column,), "participants.tsv")
    known = set(rows.columns)
    for row in rows.rows:
        patient = _labelled("sub-", row.cells.get(patient_column, ""))
        session = row.cells.get("session_id", "").strip()
        if session:  # some sites list visits here, one row each
            visits[patient, _labelled("ses-", session)] = row.cells
        people.setdefault(patient, {} if session else row.cells)
    for table in tables:
        sessions = read_rows(root, table)
        require_columns(sessions, ("session_id",), table)
        known.update(sessions.columns)
        for row in sessions.rows:
            visits[_folder(table), _labelled("ses-", row.cells.get("session_id", ""))] = row.cells
    for column in wanted:
        if column not in known:
            raise DataError(f"column {column!r} is neither in participants.tsv nor in a sessions table")
    return _Phenotypes(people=people, visits=visits)


def _labelled(prefix: str, text: str) -> str:
    """Return a BIDS label with its prefix."""
    label = text.strip()
    return label if not label or label.startswith(prefix) else prefix + label
