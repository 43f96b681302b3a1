"""A cohort: patients, each with one or more records (scans, visits, table rows).

The patient is the unit of privacy, so records are never handed out without the patient they belong to: the only
way to read values is a `Batch`, whose rows carry the index of their patient.

What it does not do: read files (`nifti`, `tabular`, ...), sample patients (`privacy.sampling`), or shuffle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vae.errors import DataError

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Records of some patients, patient by patient.

    Shapes: B records, P patients, C channels, S space (two or three axes; none for tables, where C is the number of
    columns), K covariates.

    Attributes:
        values: [B, C, *S] float32.
        covariates: [B, K] float32; K may be 0.
        patient: [B] int64 in 0..P-1, ascending: rows of one patient are neighbours.
        num_patients: P. A patient without rows is impossible.
    """

    values: Tensor
    covariates: Tensor
    patient: Tensor
    num_patients: int

    @property
    def num_records(self) -> int:
        """Return B."""
        return int(self.values.shape[0])

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch on `device`."""
        return Batch(
            values=self.values.to(device, non_blocking=True),
            covariates=self.covariates.to(device, non_blocking=True),
            patient=self.patient.to(device, non_blocking=True),
            num_patients=self.num_patients,
        )


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Patients and their prepared records.

    Shapes: R records in all, P patients.

    Attributes:
        name: Name of the site or data set; appears in local messages only.
        values: [R, C, *S] float32, an array or a read-only memory map; rows of one patient are neighbours.
        offsets: [P + 1] int64: patient p owns rows offsets[p] to offsets[p + 1] - 1, at least one.
        patients: P distinct keys. They stay at the site: never logged, sent or written into a report.
        covariates: [R, K] float32.
        covariate_names: K names.
        labels: Evaluation-only arrays, first axis R (ratings, disease, masks, true factors); never trained on.
    """

    name: str
    values: FloatArray
    offsets: IntArray
    patients: tuple[str, ...]
    covariates: FloatArray
    covariate_names: tuple[str, ...] = ()
    labels: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = self.values.shape[0]
        if self.values.dtype != np.float32 or self.covariates.dtype != np.float32:
            raise ValueError(f"cohort {self.name}: values and covariates must be float32")
        if (
            len(self.offsets) != len(self.patients) + 1
            or int(self.offsets[0]) != 0
            or int(self.offsets[-1]) != rows
        ):
            raise ValueError(
                f"cohort {self.name}: offsets must run from 0 to {rows} over {len(self.patients)} patients"
            )
        if np.any(np.diff(self.offsets) < 1):
            raise ValueError(f"cohort {self.name}: every patient needs at least one record")
        if len(set(self.patients)) != len(self.patients):
            raise ValueError(f"cohort {self.name}: a patient occurs twice")
        if self.covariates.shape != (rows, len(self.covariate_names)):
            raise ValueError(f"cohort {self.name}: covariates must be [{rows}, {len(self.covariate_names)}]")
        for key, label in self.labels.items():
            if label.shape[:1] != (rows,):
                raise ValueError(
                    f"cohort {self.name}: label {key} needs one entry for each of {rows} records"
                )

    @classmethod
    def from_records(
        cls,
        *,
        name: str,
        patients: Sequence[str],
        values: FloatArray,
        covariates: FloatArray | None = None,
        covariate_names: tuple[str, ...] = (),
        labels: Mapping[str, npt.NDArray[np.generic]] | None = None,
    ) -> Cohort:
        """Group rows by their patient key (rows keep their order within a patient; patients are sorted).

        Args:
            name: Name of the cohort.
            patients: R patient keys, one a record.
            values: [R, C, *S] float32.
            covariates: [R, K] float32, or None for K = 0.
            covariate_names: K names.
            labels: Arrays with first axis R.

        Raises:
            DataError: there is no record.
        """
        if len(patients) == 0:
            raise DataError(f"cohort {name} has no records; check the data folder and the quarantine list")
        keys = np.asarray(patients, dtype=object).astype(str)
        order = np.argsort(keys, kind="stable")
        unique, starts = np.unique(keys[order], return_index=True)
        given = np.zeros((len(keys), 0), np.float32) if covariates is None else covariates
        return cls(
            name=name,
            values=np.ascontiguousarray(values[order]),
            offsets=np.append(starts, len(keys)).astype(np.int64),
            patients=tuple(str(key) for key in unique),
            covariates=np.ascontiguousarray(given[order]),
            covariate_names=covariate_names,
            labels={key: label[order] for key, label in (labels or {}).items()},
        )

    @property
    def num_patients(self) -> int:
        """Return P: private, never leaves the site."""
        return len(self.patients)

    @property
    def num_records(self) -> int:
        """Return R: private, never leaves the site."""
        return int(self.values.shape[0])

    @property
    def record_shape(self) -> tuple[int, ...]:
        """Return (C, *S)."""
        return tuple(int(size) for size in self.values.shape[1:])

    def batch(
        self,
        patients: Sequence[int] | IntArray,
        *,
        max_records: int | None = None,
        rng: np.random.Generator | None = None,
    ) -> Batch:
        """Return all records of the given patients, or a random subset of at most `max_records` of each.

        Args:
            patients: Indices in 0..num_patients-1, distinct, in any order; may be empty.
            max_records: Public cap on records per patient, >= 1; None keeps all.
            rng: Chooses the subset where a patient has more; needed only then.

        Raises:
            ValueError: a cap without `rng` where a patient has more records than the cap.
        """
        rows: list[IntArray] = []
        group: list[IntArray] = []
        for position, patient in enumerate(patients):
            own = np.arange(self.offsets[patient], self.offsets[patient + 1], dtype=np.int64)
            if max_records is not None and len(own) > max_records:
                if rng is None:
                    raise ValueError("a cap on records per patient needs a random generator to choose them")
                own = np.sort(rng.choice(own, size=max_records, replace=False))
            rows.append(own)
            group.append(np.full(len(own), position, dtype=np.int64))
        index = np.concatenate(rows) if rows else np.zeros(0, np.int64)
        return Batch(
            values=torch.from_numpy(np.array(self.values[index], dtype=np.float32)),
            covariates=torch.from_numpy(np.array(self.covariates[index], dtype=np.float32)),
            patient=torch.from_numpy(np.concatenate(group) if group else np.zeros(0, np.int64)),
            num_patients=len(rows),
        )

    def everything(self) -> Batch:
        """Return all records of all patients as one batch (evaluation)."""
        return self.batch(np.arange(self.num_patients, dtype=np.int64))

    def select(self, patients: Sequence[int] | IntArray, *, name: str | None = None) -> Cohort:
        """Return the cohort of some patients, with all their records."""
        chosen = np.asarray(patients, dtype=np.int64)
        index = (
            np.concatenate([np.arange(self.offsets[p], self.offsets[p + 1]) for p in chosen])
            if len(chosen)
            else np.zeros(0, np.int64)
        )
        return Cohort.from_records(
            name=name or self.name,
            patients=[
                self.patients[p] for p in chosen for _ in range(int(self.offsets[p + 1] - self.offsets[p]))
            ],
            values=np.asarray(self.values[index]),
            covariates=self.covariates[index],
            covariate_names=self.covariate_names,
            labels={key: label[index] for key, label in self.labels.items()},
        )

    def where(self, keep: npt.NDArray[np.bool_], *, name: str | None = None) -> Cohort:
        """Return the records for which `keep` [R] is true; patients left without records are dropped."""
        owner = np.repeat(np.arange(self.num_patients), np.diff(self.offsets))
        index = np.flatnonzero(keep)
        return Cohort.from_records(
            name=name or self.name,
            patients=[self.patients[p] for p in owner[index]],
            values=np.asarray(self.values[index]),
            covariates=self.covariates[index],
            covariate_names=self.covariate_names,
            labels={key: label[index] for key, label in self.labels.items()},
        )

    def as_records(self) -> Cohort:
        """Return the same records, each as its own patient: the weaker unit `record`, named for what it is."""
        owner = np.repeat(np.arange(self.num_patients), np.diff(self.offsets))
        return Cohort(
            name=self.name,
            values=self.values,
            offsets=np.arange(self.num_records + 1, dtype=np.int64),
            patients=tuple(f"{self.patients[p]}#{row}" for row, p in enumerate(owner)),
            covariates=self.covariates,
            covariate_names=self.covariate_names,
            labels=self.labels,
        )

    def split(self, held_out: float, *, salt: str) -> tuple[Cohort, Cohort]:
        """Split by patient into (kept, held out), by a salted hash of the key: stable when patients are added.

        Args:
            held_out: Expected share of patients held out, in (0, 1).
            salt: Names the purpose of the split; another salt gives another split.

        Raises:
            DataError: one side would be empty.
        """
        draws = [
            int.from_bytes(hashlib.sha256(f"{salt}\0{key}".encode()).digest()[:8], "big")
            for key in self.patients
        ]
        out = np.array([draw / 2**64 < held_out for draw in draws])
        if out.all() or not out.any():
            raise DataError(
                f"cohort {self.name}: {self.num_patients} patients are too few to hold out a share of {held_out}; "
                "give more patients or another share"
            )
        return self.select(np.flatnonzero(~out)), self.select(np.flatnonzero(out))

    def fingerprint(self) -> str:
        """Return the SHA-256 of values, grouping and covariates: identifies the data set at its site."""
        digest = hashlib.sha256()
        digest.update(repr((self.values.shape, self.covariate_names)).encode())
        for array in (self.offsets, self.covariates):
            digest.update(np.ascontiguousarray(array).tobytes())
        for row in self.values:
            digest.update(np.ascontiguousarray(row).tobytes())
        return digest.hexdigest()


def concatenate(cohorts: Iterable[Cohort], *, name: str) -> Cohort:
    """Pool cohorts with equal columns into one; patient keys are prefixed by their cohort's name."""
    parts = list(cohorts)
    if not parts:
        raise ValueError("nothing to concatenate")
    shared = set(parts[0].labels).intersection(*(part.labels for part in parts))
    keys = [
        f"{part.name}/{part.patients[p]}"
        for part in parts
        for p in range(part.num_patients)
        for _ in range(int(part.offsets[p + 1] - part.offsets[p]))
    ]
    return Cohort.from_records(
        name=name,
        patients=keys,
        values=np.concatenate([np.asarray(part.values) for part in parts]),
        covariates=np.concatenate([part.covariates for part in parts]),
        covariate_names=parts[0].covariate_names,
        labels={key: np.concatenate([part.labels[key] for part in parts]) for key in sorted(shared)},
    )


@dataclass(frozen=True, kw_only=True)
class SiteData:
    """What one site brings: the cohort it trains on and the held-out one it is judged on.

    Attributes:
        train: Patients to train on (the task's normal population).
        test: Other patients, with labels. `labels["anomaly"]` [R] float32 in {0, 1}; `labels["degree"]` [R] float32
            (percent) and `labels["lesion"]` [R, *S] where a task has them.
        reference: Held-out normal patients for Z-map statistics, disjoint from both; None where the task has none.
    """

    train: Cohort
    test: Cohort
    reference: Cohort | None = None
