"""A linear model beside the VAE: probabilistic PCA, a mean and a few directions.

    x -> mean + V diag(gain) V^T (x - mean),    gain_i = (variance_i - residual) / variance_i

It comes from moments (`from_moments`, which are private where the moments are) or from records as they are (`fit`).
What a network gains over it is what non-linearity is worth; one that does not beat it has earned nothing.

References:
    Tipping & Bishop 1999, J. R. Stat. Soc. B 61, 611-622, eqs. (7), (8) and the posterior mean below (9).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vae.data.cohort import Cohort, FloatArray
from vae.metrics import Doubles


@dataclass(frozen=True, kw_only=True)
class LinearModel:
    """Probabilistic PCA.

    Shapes: d values of a record, k components (fewer than asked for where noise hides the rest).

    Attributes:
        mean: [d].
        components: [k, d], orthonormal rows, of falling variance.
        variances: [k] along the components, > residual or equal.
        residual: Variance along every other direction, >= 0.
    """

    mean: Doubles
    components: Doubles
    variances: Doubles
    residual: float

    @property
    def gains(self) -> Doubles:
        """Return [k] in [0, 1]: how much of a deviation along each component is kept."""
        above = np.maximum(self.variances - self.residual, 0.0)
        return np.asarray(above / np.maximum(self.variances, np.finfo(np.float64).tiny))

    def reconstruct(self, values: FloatArray, covariates: FloatArray) -> FloatArray:
        """Return the posterior mean of each record [B, C, *S] (a `vae.tasks.score.Reconstruct`); no covariates."""
        apart = values.reshape(len(values), -1).astype(np.float64) - self.mean
        found = self.mean + ((apart @ self.components.T) * self.gains) @ self.components
        return np.asarray(found.reshape(values.shape), np.float32)


def from_moments(
    mean: Doubles,
    covariance: Doubles,
    *,
    num_components: int,
    noise: float = 0.0,
    basis: Doubles | None = None,
) -> LinearModel:
    """Return the model with the given moments.

    A component is kept if its variance exceeds what noise alone would give, 2 noise sqrt(k0): the edge of the
    semicircle of the noise's eigenvalues. The residual is the mean of all eigenvalues that are not kept.

    Shapes: k0 coordinates, d values of a record; without a basis k0 = d.

    Args:
        mean: [k0] coordinates of the mean.
        covariance: [k0, k0], symmetric.
        num_components: Most components kept, 1 to k0.
        noise: Standard deviation of the noise off the diagonal of `covariance`; 0 for none.
        basis: [k0, d], orthonormal rows.

    Raises:
        ValueError: `num_components` is out of range.

    References:
        Wigner 1958 (the semicircle); Peche 2006 (an eigenvalue leaves it only where there is a signal).
    """
    size = len(covariance)
    if not 1 <= num_components <= size:
        raise ValueError(f"num_components must be in 1..{size}, got {num_components}")
    rising, vectors = np.linalg.eigh(covariance)
    variances, vectors = rising[::-1], vectors[:, ::-1]
    kept = int(np.count_nonzero(variances[:num_components] > 2.0 * noise * math.sqrt(size)))
    rest = variances[kept:]
    components = vectors[:, :kept].T
    return LinearModel(
        mean=mean if basis is None else mean @ basis,
        components=components if basis is None else components @ basis,
        variances=variances[:kept],
        residual=max(float(rest.mean()), 0.0) if len(rest) else 0.0,
    )


def fit(train: Iterable[Cohort], *, num_components: int) -> LinearModel:
    """Return the model of pooled records as they are: the best of its kind, without any privacy.

    Every patient counts once, each of their records equally; a record with a value that is not finite is left out.

    Args:
        train: Training cohorts of equal record shape, at least one.
        num_components: k, >= 1; at most the number of values of a record.

    Raises:
        ValueError: there is no record, or `num_components` is out of range.
    """
    parts = [_weighted(cohort) for cohort in train]
    values = np.concatenate([rows for rows, _ in parts])
    if not len(values):
        raise ValueError("fit needs at least one finite training record")
    weights = np.concatenate([each for _, each in parts])
    weights /= weights.sum()
    width = values.shape[1]
    if not 1 <= num_components <= width:
        raise ValueError(f"num_components must be in 1..{width}, got {num_components}")
    mean = weights @ values
    _, lengths, vectors = np.linalg.svd((values - mean) * np.sqrt(weights)[:, None], full_matrices=False)
    variances = np.square(lengths)
    kept = min(num_components, len(variances))
    return LinearModel(
        mean=mean,
        components=vectors[:kept],
        variances=variances[:kept],
        residual=float(variances[kept:].sum()) / max(width - kept, 1),
    )


def cosine_basis(record_shape: Sequence[int], size: int) -> Doubles:
    """Return the smoothest cosines on the grid of an image: a public basis, made without looking at any data.

    Args:
        record_shape: (C, *S), at least one spatial axis; channels share the functions equally, as far as they go.
        size: k0, 1 to the number of values of a record.

    Returns:
        [k0, d] float64, orthonormal rows, by rising frequency.

    Raises:
        ValueError: no spatial axis, or `size` is out of range.

    References:
        Ahmed, Natarajan, Rao 1974 (the discrete cosine transform).
    """
    channels, *space = record_shape
    if not space or not 1 <= size <= math.prod(record_shape):
        raise ValueError(
            f"a basis of {size} cosines does not exist for records of shape {list(record_shape)}"
        )
    waves = np.indices(space).reshape(len(space), -1)
    # Cycles a voxel decide, so that axes of different lengths are smoothed alike; ties are broken by place.
    frequency = (np.square(waves) / np.square(np.array(space))[:, None]).sum(axis=0)
    order = np.argsort(frequency, kind="stable")[: math.ceil(size / channels)]
    tables = [_cosines(length) for length in space]
    rows = np.zeros((len(order) * channels, channels, math.prod(space)))
    for place, wave in enumerate(waves[:, order].T):
        function = np.ones(1)
        for table, index in zip(tables, wave, strict=True):
            function = np.multiply.outer(function, table[index])
        for channel in range(channels):
            rows[place * channels + channel, channel] = function.ravel()
    return rows.reshape(len(rows), -1)[:size]


def _cosines(length: int) -> Doubles:
    """Return the orthonormal cosine transform [length, length], a function a row."""
    places = (np.arange(length) + 0.5) / length
    table = np.cos(np.pi * np.arange(length)[:, None] * places) * math.sqrt(2 / length)
    table[0] /= math.sqrt(2)
    return np.asarray(table, np.float64)


def _weighted(cohort: Cohort) -> tuple[Doubles, Doubles]:
    """Return the finite records of a cohort as rows, and their weights: 1 a patient."""
    rows = np.asarray(cohort.values).reshape(cohort.num_records, -1).astype(np.float64)
    owner = np.repeat(np.arange(cohort.num_patients), np.diff(cohort.offsets))
    finite = np.isfinite(rows).all(axis=1)
    count = np.bincount(owner[finite], minlength=cohort.num_patients)
    return rows[finite], 1.0 / count[owner[finite]]
