"""From a virtual hospital's BIDS tree to arrays: read once, kept as `.npy`, opened as memory maps.

Reads the files of the tree as anybody would: `participants.tsv`, `sessions.tsv`, NIfTI through nibabel.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vae.data.cohort import Cohort, SiteData
from vae.data.phantom import bids
from vae.data.phantom.scan import anomaly_names
from vae.data.phantom.spec import PhantomSpec
from vae.data.phantom.volume import read_nifti

PET_FULL_SCALE = 1.6
"""SUVR that becomes 1: a public constant, so that nothing is learned from anybody's scan."""

MRI_PERCENTILE = 99.5
"""Percentile of a scan's own non-zero voxels that becomes 1 on T1w and T2w: one record alone decides."""

COVARIATES = ("age", "sex")
Array = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One record to read: a visit as it is, or with a simulated anomaly."""

    patient: str
    visit: int
    age: float
    sex: int
    disease: int
    degree: int
    original: int


def prepare(spec: PhantomSpec, tree: Path, folder: Path) -> None:
    """Read a tree into `folder`; a part of an interrupted call is thrown away.

    Args:
        spec: What the tree was made from.
        tree: A complete tree.
        folder: Where the arrays go; `complete` in it is written last.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    participants = bids.read_table((tree / "participants.tsv").read_text())
    for group in ("train", "reference", "test"):
        rows = _rows(spec, tree, [p for p in participants if p["group"] == group], simulate=group == "test")
        _write_group(spec, tree, folder / group, rows, masks=group == "test")
    (folder / "complete").write_bytes(b"")


def load_prepared(folder: Path, name: str) -> SiteData:
    """Open the arrays of a prepared tree as the cohorts of site `name`."""
    train, reference, test = (_load_group(folder / group, name) for group in ("train", "reference", "test"))
    return SiteData(train=train, reference=reference, test=test)


def scale_image(channel: str, values: Array) -> Array:
    """Return intensities in [0, 1] float32: PET by a public constant, MR by the scan's own percentile."""
    if channel == "pet":
        return np.asarray(np.clip(values / np.float32(PET_FULL_SCALE), 0, 1), dtype=np.float32)
    inside = values[values > 0]
    top = float(np.percentile(inside, MRI_PERCENTILE)) if inside.size else 1.0
    return np.asarray(np.clip(values / np.float32(top), 0, 1), dtype=np.float32)


def _rows(
    spec: PhantomSpec, tree: Path, participants: Sequence[dict[str, str]], *, simulate: bool
) -> list[_Row]:
    """List the records of some people, in order: each visit as it is, then its simulated versions."""
    rows: list[_Row] = []
    names = anomaly_names(spec) if simulate else ()
    for person in participants:
        label = person["participant_id"]
        sessions = bids.read_table((tree / label / f"{label}_sessions.tsv").read_text())
        for visit, session in enumerate(sessions):
            original = len(rows)
            versions = [(0, 0)] + [(d + 1, degree) for d in range(len(names)) for degree in spec.degrees]
            rows += [
                _Row(
                    patient=label,
                    visit=visit,
                    age=float(session["age"]),
                    sex="FM".index(person["sex"]),
                    disease=disease,
                    degree=degree,
                    original=original,
                )
                for disease, degree in versions
            ]
    return rows


def _write_group(spec: PhantomSpec, tree: Path, folder: Path, rows: Sequence[_Row], *, masks: bool) -> None:
    """Write values, grouping, covariates and labels of one cohort."""
    folder.mkdir()
    shape = spec.image_shape
    values = _memory_map(folder / "values.npy", (len(rows), len(spec.channels), *shape))
    for index, row in enumerate(rows):
        for channel_index, channel in enumerate(spec.channels):
            image = read_nifti(_scan_file(spec, tree, row, channel))[0].reshape(shape)
            values[index, channel_index] = scale_image(channel, image)
    values.flush()
    labels: dict[str, npt.NDArray[np.generic]] = {
        "visit": np.array([row.visit for row in rows], dtype=np.int64)
    }
    if masks:
        labels |= _test_labels(rows)
        for name, files in _mask_files(spec, tree, rows).items():
            target = _memory_map(folder / f"label_{name}.npy", (len(rows), *shape))
            for index, file in enumerate(files):
                target[index] = 0.0 if file is None else read_nifti(file)[0].reshape(shape)
            target.flush()
    for name, label in labels.items():
        np.save(folder / f"label_{name}.npy", label)
    covariates = np.array([[(row.age - 70.0) / 15.0, row.sex] for row in rows], dtype=np.float32)
    np.save(folder / "covariates.npy", covariates)
    patients = [row.patient for row in rows]
    unique, starts = np.unique(np.array(patients), return_index=True)
    np.save(folder / "offsets.npy", np.append(starts, len(rows)).astype(np.int64))
    (folder / "patients.json").write_text(json.dumps([str(key) for key in unique]))


def _test_labels(rows: Sequence[_Row]) -> dict[str, npt.NDArray[np.generic]]:
    """Return the labels that need no file."""
    return {
        "anomaly": np.array([row.disease > 0 for row in rows], dtype=np.float32),
        "degree": np.array([row.degree for row in rows], dtype=np.float32),
        "disease": np.array([row.disease for row in rows], dtype=np.int64),
        "subject_scan": np.array([row.original for row in rows], dtype=np.int64),
    }


def _mask_files(spec: PhantomSpec, tree: Path, rows: Sequence[_Row]) -> dict[str, Iterable[Path | None]]:
    """Return the files of the two masks of each record; None where there is no lesion."""
    derived = tree / bids.DERIVATIVES
    return {
        "brain": [derived / bids.mask_path(row.patient, row.visit, "brain") for row in rows],
        "lesion": [
            derived / bids.mask_path(row.patient, row.visit, _desc(spec, row)) if row.disease else None
            for row in rows
        ],
    }


def _scan_file(spec: PhantomSpec, tree: Path, row: _Row, channel: str) -> Path:
    """Return the file of one channel: the simulated one where the anomaly shows, else the original."""
    simulated = row.disease > 0 and ("pet" not in spec.channels or channel == "pet")
    if not simulated:
        return tree / bids.image_path(channel, row.patient, row.visit)
    return tree / bids.DERIVATIVES / bids.image_path(channel, row.patient, row.visit, desc=_desc(spec, row))


def _desc(spec: PhantomSpec, row: _Row) -> str:
    """Return the name of a simulated version."""
    return f"{anomaly_names(spec)[row.disease - 1]}{row.degree:02d}"


def _memory_map(path: Path, shape: tuple[int, ...]) -> np.memmap[tuple[int, ...], np.dtype[np.float32]]:
    """Make a float32 `.npy` of zeros that is written in place."""
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)


def _load_group(folder: Path, name: str) -> Cohort:
    """Open one cohort."""
    labels = {
        path.stem.removeprefix("label_"): np.load(path, mmap_mode="r", allow_pickle=False)
        for path in sorted(folder.glob("label_*.npy"))
    }
    return Cohort(
        name=name,
        values=np.load(folder / "values.npy", mmap_mode="r", allow_pickle=False),
        offsets=np.load(folder / "offsets.npy", allow_pickle=False),
        patients=tuple(json.loads((folder / "patients.json").read_text())),
        covariates=np.load(folder / "covariates.npy", allow_pickle=False),
        covariate_names=COVARIATES,
        labels=labels,
    )
