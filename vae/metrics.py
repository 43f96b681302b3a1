"""Numbers that judge a model: pure functions of numpy arrays, one value a record or one value a data set.

Every statistic of a data set takes `weights` [..., R], how often each record counts, and returns one value
for each leading index. The bootstrap rests on that: it draws *patients* with replacement and hands the
statistic all draws at once, so a thousand resamples cost one pass.

What it does not do: models, files, torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]
Masks = npt.NDArray[np.bool_]
Statistic = Callable[..., Doubles]
"""Called as `statistic(*arrays, weights=[N, R])`; returns [N] float64."""

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5


class Interval(NamedTuple):
    """A statistic of the data as they are, and the ends of its confidence interval."""

    value: float
    low: float
    high: float


def mse_per_record(x: Floats, reconstruction: Floats, *, mask: Masks | None = None) -> Doubles:
    """Return the mean squared error of each record.

    Shapes: B records, C channels, S space (any number of axes, none for tables).

    Args:
        x: [B, C, *S].
        reconstruction: [B, C, *S].
        mask: [*S], [C, *S] or [B, C, *S]: where to look; None for everywhere.

    Returns:
        [B] float64, squared units of x; NaN where the mask is empty.
    """
    squared = np.square(np.subtract(x, reconstruction, dtype=np.float64))
    return masked_mean(squared, mask)


def masked_mean(values: Floats, mask: Masks | None = None) -> Doubles:
    """Return the mean of each record [B, ...] within a mask that broadcasts to it; NaN where empty."""
    axes = tuple(range(1, values.ndim))
    if mask is None:
        return np.asarray(values.mean(axis=axes, dtype=np.float64))
    if mask.ndim < values.ndim:  # one mask for all records: gather instead of testing each value
        own = np.flatnonzero(np.broadcast_to(mask, values.shape[1:]))
        kept = np.take(values.reshape(len(values), -1), own, axis=1)
        return np.asarray(kept.mean(axis=1, dtype=np.float64)) if len(own) else np.full(len(values), np.nan)
    inside = np.broadcast_to(mask, values.shape)
    total = np.sum(values, axis=axes, where=inside, dtype=np.float64)
    return _divide(total, inside.sum(axis=axes).astype(np.float64))


def psnr(mse: Floats, *, data_range: float = 1.0) -> Doubles:
    """Return the peak signal-to-noise ratio 10 log10(range^2 / mse) in decibels; infinite where mse is 0."""
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(np.divide(data_range**2, np.asarray(mse, np.float64)))


def ssim_per_record(
    x: Floats, reconstruction: Floats, *, mask: Masks | None = None, data_range: float = 1.0
) -> Doubles:
    """Return the mean structural similarity of each record: the mean of `ssim_map` where it is defined.

    Args:
        x: [B, C, *S].
        reconstruction: [B, C, *S].
        mask: [*S], [C, *S] or [B, C, *S]: count only windows centred inside; None for all.
        data_range: See `ssim_map`.

    Returns:
        [B] float64 in [-1, 1].

    Raises:
        ValueError: see `ssim_map`.

    Guarantees:
        Equal to MONAI's SSIMMetric where there is no mask (tests/unit/vae/test_metrics.py).
    """
    similarity = ssim_map(x, reconstruction, data_range=data_range)
    known = np.isfinite(similarity)
    return masked_mean(similarity, known if mask is None else known & mask)


def ssim_map(x: Floats, reconstruction: Floats, *, data_range: float = 1.0) -> Doubles:
    """Return the structural similarity around each voxel, NaN where the window would leave the image.

    (2 mx my + c1)(2 sxy + c2) / ((mx^2 + my^2 + c1)(sx^2 + sy^2 + c2)), c1 = (0.01 L)^2, c2 = (0.03 L)^2:
    means m, variances s^2 and covariance sxy weighted by a Gaussian window of 11 voxels a side and sigma 1.5.
    An axis shorter than that is not filtered: a thin slab is judged slice by slice.

    Shapes: B records, C channels, S two or three axes of space, at least two of them 11 or longer.

    Args:
        x: [B, C, *S].
        reconstruction: [B, C, *S].
        data_range: L, the largest minus the smallest possible value, > 0.

    Returns:
        [B, C, *S] float64.

    Raises:
        ValueError: fewer than two axes are long enough.

    References:
        Wang et al. 2004, IEEE TIP 13(4):600-612, eq. (13).
    """
    long = [axis for axis in range(1, x.ndim - 1) if x.shape[axis + 1] >= SSIM_WINDOW]
    if len(long) < 2:
        raise ValueError(
            f"SSIM needs two axes of at least {SSIM_WINDOW} voxels, got an image of {x.shape[2:]}"
        )
    edge = SSIM_WINDOW // 2
    inner = tuple(slice(edge, -edge) if axis in long else slice(None) for axis in range(x.ndim - 1))
    similarity = np.full(x.shape, np.nan)
    for row in range(len(x)):  # record by record: the five maps of one record stay in the processor's cache
        one, other = x[row].astype(np.float64), reconstruction[row].astype(np.float64)
        similarity[row][inner] = _ssim_inner(one, other, long, data_range)
    return similarity


def _ssim_inner(x: Doubles, y: Doubles, axes: list[int], data_range: float) -> Doubles:
    """Return the similarity of one record [C, *S] wherever the window fits."""
    maps = np.stack([x, y, x * x, y * y, x * y])
    for axis in axes:
        maps = _blur(maps, axis + 1)
    mean_x, mean_y, xx, yy, xy = maps
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    covariance, variance = xy - mean_x * mean_y, xx - mean_x**2 + yy - mean_y**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return np.asarray(luminance * (2 * covariance + c2) / (variance + c2))


def _blur(maps: Doubles, axis: int) -> Doubles:
    """Filter along one axis, valid part only: a banded matrix product, faster here than a convolution."""
    offset = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    kernel = np.exp(-0.5 * np.square(offset / SSIM_SIGMA))
    band = np.zeros((maps.shape[axis], maps.shape[axis] - SSIM_WINDOW + 1))
    for tap, weight in enumerate(kernel / kernel.sum()):
        np.fill_diagonal(band[tap:], weight)
    return np.moveaxis(np.moveaxis(maps, axis, -1) @ band, -1, axis)


def mean(values: Floats, *, weights: Floats | None = None) -> Doubles:
    """Return the weighted mean of [R] values for each row of weights [..., R]; NaN values do not count."""
    weight, known = _weights(values, weights), np.isfinite(values)
    return _divide(weight[..., known] @ values[known].astype(np.float64), weight[..., known].sum(axis=-1))


def auroc(scores: Floats, labels: npt.ArrayLike, *, weights: Floats | None = None) -> Doubles:
    """Return the area under the ROC curve: the chance that a positive scores higher than a negative, ties
    half.

    Args:
        scores: [R], higher means more anomalous.
        labels: [R], true or 1 for positives.
        weights: [..., R] >= 0, how often each record counts; None for once.

    Returns:
        [...] float64 in [0, 1]; NaN where positives or negatives are missing.

    References:
        Mann & Whitney 1947; Hanley & McNeil 1982, Radiology 143:29-36.
    """
    positive, negative = _by_rank(scores, labels, weights)
    below = np.cumsum(negative, axis=-1) - 0.5 * negative
    return _divide(np.sum(positive * below, axis=-1), positive.sum(axis=-1) * negative.sum(axis=-1))


def auroc_within(
    scores: Floats, labels: npt.ArrayLike, strata: npt.NDArray[np.generic], *, weights: Floats | None = None
) -> Doubles:
    """Return the AUROC over pairs of the same stratum (site) only: a difference between sites earns nothing.

    Each stratum counts by its number of pairs; strata without positives or without negatives drop out.

    Args:
        scores: [R].
        labels: [R].
        strata: [R], the stratum of each record.
        weights: [..., R] >= 0.

    Returns:
        [...] float64 in [0, 1]; NaN where no stratum has a pair.
    """
    weight, truth = _weights(scores, weights), np.asarray(labels).astype(bool)
    won, pairs = np.zeros(weight.shape[:-1]), np.zeros(weight.shape[:-1])
    for stratum in np.unique(strata):
        own = strata == stratum
        inside = weight[..., own]
        here = inside[..., truth[own]].sum(axis=-1) * inside[..., ~truth[own]].sum(axis=-1)
        won += np.where(here > 0, np.nan_to_num(auroc(scores[own], truth[own], weights=inside)) * here, 0.0)
        pairs += here
    return _divide(won, pairs)


def average_precision(scores: Floats, labels: npt.ArrayLike, *, weights: Floats | None = None) -> Doubles:
    """Return the average precision, the sum over thresholds of (recall step) x precision; equal scores are
    one step.

    Args, shapes and NaN as in `auroc`. Depends on the share of positives: compare within one test set only.
    """
    positive, negative = (part[..., ::-1] for part in _by_rank(scores, labels, weights))
    found = np.cumsum(positive, axis=-1)
    precision = np.nan_to_num(_divide(found, found + np.cumsum(negative, axis=-1)))
    return _divide(np.sum(positive * precision, axis=-1), positive.sum(axis=-1))


def tpr_at_fpr(
    scores: Floats, labels: npt.ArrayLike, *, fpr: float, weights: Floats | None = None
) -> Doubles:
    """Return the largest true-positive rate of a threshold whose false-positive rate is at most `fpr`.

    Args:
        scores: [R].
        labels: [R].
        fpr: Highest tolerated false-positive rate, in [0, 1].
        weights: [..., R] >= 0.

    Returns:
        [...] float64 in [0, 1]; NaN where positives or negatives are missing.
    """
    positive, negative = (part[..., ::-1] for part in _by_rank(scores, labels, weights))
    false_rate = _divide(np.cumsum(negative, axis=-1), negative.sum(axis=-1)[..., None])
    true_rate = _divide(np.cumsum(positive, axis=-1), positive.sum(axis=-1)[..., None])
    best = np.max(np.where(false_rate <= fpr + 1e-12, true_rate, 0.0), axis=-1)
    return np.where(np.isnan(true_rate[..., -1]) | np.isnan(false_rate[..., -1]), np.nan, best)


def dice(prediction: Masks, truth: Masks) -> Doubles:
    """Return 2 |A and B| / (|A| + |B|) of each record's masks [B, ...]; NaN where both are empty."""
    axes = tuple(range(1, truth.ndim))
    both = 2.0 * np.sum(prediction & truth, axis=axes)
    return _divide(both, np.asarray(prediction.sum(axis=axes) + truth.sum(axis=axes), np.float64))


def resample(
    groups: npt.NDArray[np.generic],
    *,
    num: int,
    seed: int,
    strata: npt.NDArray[np.generic] | None = None,
) -> npt.NDArray[np.float32]:
    """Draw patients with replacement and return how often each record counts.

    Shapes: R records, N resamples.

    Args:
        groups: [R], the patient of each record; all records of a patient come and go together.
        num: N >= 1.
        seed: Of the draw; equal arguments give equal draws, so that two arms can be compared on the same
            ones.
        strata: [R]: patients are drawn within the strata their records touch (a patient with a healthy and an
            anomalous record is of a third kind), as many as there are, so that no class can vanish. None for
            one.

    Returns:
        [N, R] float32 whole numbers.
    """
    names, group = np.unique(groups, return_inverse=True)
    kind = _kinds(group, len(names), strata)
    rng = np.random.default_rng(seed)
    counts = np.zeros((num, len(names)), np.float32)
    for one in np.unique(kind):
        members = np.flatnonzero(kind == one)
        drawn = rng.integers(len(members), size=(num, len(members)))
        flat = np.bincount(
            (drawn + len(members) * np.arange(num)[:, None]).ravel(), minlength=num * len(members)
        )
        counts[:, members] = flat.reshape(num, len(members))
    return counts[:, group]


def bootstrap_ci(
    statistic: Statistic,
    *arrays: npt.NDArray[np.generic],
    groups: npt.NDArray[np.generic],
    num: int = 1000,
    seed: int,
    level: float = 0.95,
    strata: npt.NDArray[np.generic] | None = None,
) -> Interval:
    """Return a statistic and its percentile interval under resampling of whole patients (cluster bootstrap).

    Args:
        statistic: One of this module, or anything with its `weights` argument (see `Statistic`).
        arrays: What it is computed from, each with first axis R.
        groups: [R], the patient of each record.
        num: Number of resamples.
        seed: Of the resampling.
        level: Coverage aimed at, in (0, 1).
        strata: [R] or None, see `resample`.

    Returns:
        (value, low, high); NaN ends where no resample defines the statistic.

    Raises:
        ValueError: the arrays differ in length, or `level` is not in (0, 1).

    Guarantees:
        Covers at about its level for records that cluster in patients, where resampling records does not
        (tests/statistical/test_bootstrap.py).

    References:
        Efron & Tibshirani 1993, ch. 13; Field & Welsh 2007, JRSS B 69:369-390 (clusters).
    """
    if any(len(array) != len(groups) for array in arrays):
        raise ValueError(f"bootstrap: every array needs one entry for each of {len(groups)} records")
    draws = statistic(*arrays, weights=resample(groups, num=num, seed=seed, strata=strata))
    return interval(float(statistic(*arrays, weights=np.ones(len(groups)))), draws, level=level)


def interval(value: float, draws: Doubles, *, level: float = 0.95) -> Interval:
    """Return a value with the central `level` of its bootstrap draws [N], moved by their bias.

    Where patients have records of both classes, a resample compares patients with themselves about twice as often as
    the data do. That moves the draws of a rank statistic by about 1 / patients, up to leaving the value itself out;
    so the draws are moved back by mean(draws) - value. Statistics of one class have no such bias: nothing moves.

    Args:
        value: The statistic of the data as they are.
        draws: [N] of resamples; undefined ones do not count.
        level: In (0, 1).

    References:
        Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 10 (bias).
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    known = draws[np.isfinite(draws)]
    if not len(known):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2]) + (value - known.mean())
    if known.min() >= 0 and known.max() <= 1:  # a share stays one
        low, high = max(low, 0.0), min(high, 1.0)
    return Interval(value, float(low), float(high))


def _kinds(
    group: npt.NDArray[np.intp], num_groups: int, strata: npt.NDArray[np.generic] | None
) -> npt.NDArray[np.intp]:
    """Return the kind of each patient: the set of strata that its records touch."""
    if strata is None:
        return np.zeros(num_groups, np.intp)
    stratum = np.unique(strata, return_inverse=True)[1]
    touched = np.zeros((num_groups, int(stratum.max(initial=0)) + 1), bool)
    touched[group, stratum] = True
    return np.unique(touched, axis=0, return_inverse=True)[1].reshape(-1)


def _by_rank(scores: Floats, labels: npt.ArrayLike, weights: Floats | None) -> tuple[Doubles, Doubles]:
    """Return the weight of positives and of negatives at each distinct score, ascending: both [..., T]."""
    weight, truth = _weights(scores, weights), np.asarray(labels).astype(bool)
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(scores[order]) > 0))
    ranked = weight[..., order]
    positive = np.add.reduceat(ranked * truth[order], starts, axis=-1)
    return positive, np.add.reduceat(ranked * ~truth[order], starts, axis=-1)


def _weights(values: npt.NDArray[np.generic], weights: Floats | None) -> Doubles:
    """Return the weights in double precision, or ones."""
    return np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)


def _divide(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> Doubles:
    """Return the quotient, NaN where the denominator is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(np.asarray(denominator) > 0, np.divide(numerator, denominator), np.nan))
