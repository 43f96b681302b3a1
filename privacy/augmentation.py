"""Random versions of records, over which a patient's gradient is averaged before it is clipped.

A patient's gradient is then the mean over their records and over every version of each. It is clipped once, as before:
one patient moves the sum by at most C, so that nothing changes in what a release costs. Versions are made of the record
alone, with public constants and a stream of randomness of their own; no label is looked at.

References:
    De et al. 2022, arXiv:2204.13650 (augmentation multiplicity).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from privacy.clipping import Batch
from privacy.errors import PlanError
from privacy.optimiser import Augmentation


@dataclass(frozen=True, kw_only=True)
class Versions:
    """A batch with every version of its records; a `privacy.clipping.Batch`.

    Shapes: B records, V versions of each.

    Attributes:
        values: [B V, C, *S]: the record itself, then its other versions, record by record.
        covariates: [B V, K].
        patient: [B V] int64.
        num_patients: As of the batch.
    """

    values: Tensor
    covariates: Tensor
    patient: Tensor
    num_patients: int


def with_versions(batch: Batch, settings: Augmentation, rng: np.random.Generator) -> Batch:
    """Return the batch with `settings.versions` random versions after each record; the batch itself if there are none.

    Args:
        batch: Records [B, C, *S], two or three axes S.
        settings: What versions differ in.
        rng: Draws shifts, then flips, then gains, for all versions of the batch at once.

    Raises:
        PlanError: records are no images.

    Guarantees:
        Rows of patient p depend on the records of p and on `rng` alone (tests/unit/privacy/test_augmentation.py).
    """
    if settings.versions == 0:
        return batch
    if batch.values.ndim < 4:
        raise PlanError("augmentation", ["records are no images; set versions to 0"])
    count = settings.versions
    made = batch.values.repeat_interleave(count, dim=0)
    rows, axes = made.shape[0], made.ndim - 2
    shifts = rng.integers(-settings.max_shift, settings.max_shift + 1, size=(rows, axes))
    flips = rng.random(rows) < 0.5
    gains = rng.uniform(1 - settings.max_gain, 1 + settings.max_gain, rows)
    if settings.max_shift:
        made = _shifted(made, torch.from_numpy(shifts).to(made.device))
    if settings.flip:
        flipped = torch.from_numpy(flips).to(made.device).reshape(-1, *(1 for _ in made.shape[1:]))
        made = torch.where(flipped, made.flip(2), made)
    if settings.max_gain:
        made = made * torch.from_numpy(gains).to(made).reshape(-1, *(1 for _ in made.shape[1:]))
    # [B, V, ...]: the record itself first.
    every = torch.cat([batch.values[:, None], made.reshape(-1, count, *made.shape[1:])], dim=1)
    return Versions(
        values=every.flatten(0, 1),
        covariates=batch.covariates.repeat_interleave(count + 1, dim=0),
        patient=batch.patient.repeat_interleave(count + 1, dim=0),
        num_patients=batch.num_patients,
    )


def _shifted(values: Tensor, shifts: Tensor) -> Tensor:
    """Return [N, C, *S] moved by whole voxels, [N, axes]; what comes in at an edge repeats it."""
    for axis in range(shifts.shape[1]):
        size = values.shape[axis + 2]
        source = (torch.arange(size, device=values.device) - shifts[:, axis, None]).clamp(0, size - 1)
        shape = [1] * values.ndim
        shape[0], shape[axis + 2] = source.shape
        values = torch.take_along_dim(values, source.reshape(shape), dim=axis + 2)
    return values
