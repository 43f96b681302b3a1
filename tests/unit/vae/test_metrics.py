"""Worked examples, and scikit-learn, SciPy and MONAI as independent references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import SSIMMetric
from scipy.stats import mannwhitneyu
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from vae import metrics


@pytest.fixture
def rng():
    return np.random.default_rng(20240713)


# --- one value a record ------------------------------------------------------------------------------------


def test_mse_worked_example():
    x = np.array([[[[1.0, 2.0], [3.0, 4.0]]], [[[0.0, 0.0], [0.0, 0.0]]]], np.float32)
    other = np.array([[[[1.0, 2.0], [3.0, 2.0]]], [[[1.0, 1.0], [1.0, 1.0]]]], np.float32)
    assert metrics.mse_per_record(x, other).tolist() == [1.0, 1.0]  # (0 + 0 + 0 + 4) / 4, (1 + 1 + 1 + 1) / 4
    lower = np.array([[False, False], [True, True]])
    assert metrics.mse_per_record(x, other, mask=lower).tolist() == [2.0, 1.0]  # (0 + 4) / 2, (1 + 1) / 2


def test_mse_of_a_table_and_masks_of_each_record():
    x, other = np.array([[1.0, 3.0], [2.0, 2.0]], np.float32), np.zeros((2, 2), np.float32)
    assert metrics.mse_per_record(x, other).tolist() == [5.0, 4.0]
    own = np.array([[True, False], [False, False]])
    assert np.array_equal(metrics.mse_per_record(x, other, mask=own), [1.0, np.nan], equal_nan=True)


def test_mask_of_space_covers_every_channel():
    values = np.arange(8.0).reshape(1, 2, 2, 2)
    corner = np.array([[True, False], [False, False]])
    assert metrics.masked_mean(values, corner).tolist() == [2.0]  # (0 + 4) / 2
    assert np.isnan(metrics.masked_mean(values, np.zeros((2, 2), bool))).all()
    assert metrics.masked_mean(values, corner[None, None]).tolist() == [2.0]


def test_mse_does_not_lose_small_errors_on_large_values():
    x = np.full((1, 1000), 1e4, np.float32)
    assert metrics.mse_per_record(x, x + np.float32(0.0009765625))[0] == pytest.approx(
        0.0009765625**2, rel=1e-9
    )


def test_psnr_worked_example():
    # 10 log10(1 / 0.01) = 20 dB; a range of 10 adds 20 dB
    assert metrics.psnr(np.array([0.01, 0.0])).tolist() == [20.0, np.inf]
    assert metrics.psnr(np.array([0.01]), data_range=10.0)[0] == pytest.approx(40.0)


@pytest.mark.parametrize("shape", [(3, 1, 24, 17), (2, 2, 13, 16, 12), (1, 1, 11, 11)])
@pytest.mark.parametrize("data_range", [1.0, 4.0])
def test_ssim_equals_monai(rng, shape, data_range):
    x = rng.random(shape, dtype=np.float32)
    noisy = np.clip(x + 0.2 * rng.standard_normal(shape), 0, 1).astype(np.float32)
    oracle = SSIMMetric(spatial_dims=len(shape) - 2, data_range=data_range)
    expected = oracle(torch.from_numpy(noisy), torch.from_numpy(x)).numpy().ravel()
    assert np.allclose(metrics.ssim_per_record(x, noisy, data_range=data_range), expected, atol=2e-5)
    assert 0.0 < expected.min() < 0.99  # the comparison is not one of ones


def test_ssim_limits(rng):
    x = rng.random((2, 1, 16, 16), dtype=np.float32)
    assert np.allclose(metrics.ssim_per_record(x, x), 1.0)
    assert np.all(metrics.ssim_per_record(x, 1 - x) < -0.5)


def test_ssim_map_places_the_difference(rng):
    x = rng.random((1, 1, 40, 40), dtype=np.float32)
    changed = x.copy()
    changed[..., 28:34, 28:34] = 0.0
    similarity = metrics.ssim_map(x, changed)[0, 0]
    assert np.isnan(similarity[:5]).all()
    assert np.isnan(similarity[:, -5:]).all()
    assert np.isfinite(similarity[5:-5, 5:-5]).all()
    assert np.allclose(similarity[5:20, 5:20], 1.0)  # out of the window's reach
    assert similarity[31, 31] < 0.2
    away = np.zeros((40, 40), bool)
    away[:20, :20] = True
    assert metrics.ssim_per_record(x, changed, mask=away)[0] == pytest.approx(1.0)
    assert metrics.ssim_per_record(x, changed, mask=~away)[0] < 0.97


def test_ssim_of_a_thin_slab_is_the_mean_of_its_slices(rng):
    x = rng.random((2, 1, 20, 18, 4), dtype=np.float32)
    y = np.clip(x + 0.1 * rng.standard_normal(x.shape), 0, 1).astype(np.float32)
    slices = [metrics.ssim_per_record(x[..., k], y[..., k]) for k in range(4)]
    assert np.allclose(metrics.ssim_per_record(x, y), np.mean(slices, axis=0))


@pytest.mark.parametrize("shape", [(1, 1, 10, 30), (1, 1, 10, 10, 30), (4, 30)])
def test_ssim_refuses_what_no_window_fits(shape):
    with pytest.raises(ValueError, match="two axes of at least 11 voxels"):
        metrics.ssim_per_record(np.zeros(shape), np.zeros(shape))


def test_dice_worked_example():
    prediction = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], bool)
    truth = np.array([[1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]], bool)
    # 2 * 1 / (2 + 3); 0 / 1; nothing to find and nothing found
    assert np.array_equal(metrics.dice(prediction, truth), [0.4, 0.0, np.nan], equal_nan=True)


# --- one value a data set ----------------------------------------------------------------------------------


def test_auroc_worked_example():
    # pairs (2 > 1), (2 = 2 counts half), (3 > 1), (3 > 2): 3.5 of 4
    assert metrics.auroc(np.array([1.0, 2.0, 2.0, 3.0]), [0, 0, 1, 1]) == 0.875


@pytest.mark.parametrize("levels", [3, 40, 10**9])
def test_detection_metrics_equal_scikit_learn(rng, levels):
    labels = rng.random(300) < 0.2
    scores = np.round((rng.standard_normal(300) + labels) * levels) / levels
    assert metrics.auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert metrics.average_precision(scores, labels) == pytest.approx(average_precision_score(labels, scores))
    pairs = labels.sum() * (~labels).sum()
    assert metrics.auroc(scores, labels) == pytest.approx(
        mannwhitneyu(scores[labels], scores[~labels])[0] / pairs
    )
    false_rate, true_rate, _ = roc_curve(labels, scores, drop_intermediate=False)
    for fpr in (0.0, 0.05, 0.5, 1.0):
        assert metrics.tpr_at_fpr(scores, labels, fpr=fpr) == pytest.approx(
            true_rate[false_rate <= fpr].max()
        )


@pytest.mark.parametrize("statistic", [metrics.auroc, metrics.average_precision])
def test_weights_count_records(rng, statistic):
    scores, labels = rng.integers(0, 9, 60).astype(float), rng.random(60) < 0.4
    weights = rng.integers(0, 4, size=(5, 60))
    copies = [statistic(np.repeat(scores, row), np.repeat(labels, row)) for row in weights]
    assert np.allclose(statistic(scores, labels, weights=weights), copies)
    assert np.isclose(metrics.mean(scores, weights=weights)[2], np.repeat(scores, weights[2]).mean())
    rates = metrics.tpr_at_fpr(scores, labels, fpr=0.2, weights=weights)
    by_copy = metrics.tpr_at_fpr(np.repeat(scores, weights[0]), np.repeat(labels, weights[0]), fpr=0.2)
    assert rates[0] == pytest.approx(float(by_copy))


def test_within_site_worked_example():
    # Site a wins 2 of 2 pairs, site b 0 of 1, site c has no positive; pooled, b's level wins pairs for it.
    scores = np.array([2.0, 1.0, 0.0, 10.0, 11.0, 5.0])
    labels = np.array([1, 0, 0, 1, 0, 0])
    strata = np.array(["a", "a", "a", "b", "b", "c"])
    assert metrics.auroc_within(scores, labels, strata) == pytest.approx(2 / 3)
    assert metrics.auroc(scores, labels) == pytest.approx((2 + 3) / 8)


def test_within_site_ignores_what_only_tells_sites_apart(rng):
    strata = np.repeat(np.arange(10), 200)
    labels = rng.random(2000) < np.linspace(0.02, 0.9, 10)[strata]
    scores = 3.0 * strata + rng.standard_normal(2000)  # knows the site, nothing of the patient
    assert metrics.auroc(scores, labels) > 0.8
    assert abs(metrics.auroc_within(scores, labels, strata) - 0.5) < 0.05


def test_within_one_site_is_the_plain_auroc_for_each_row_of_weights(rng):
    scores, labels = rng.standard_normal(80), rng.random(80) < 0.5
    weights = rng.integers(0, 3, size=(4, 80))
    within = metrics.auroc_within(scores, labels, np.zeros(80), weights=weights)
    assert np.allclose(within, metrics.auroc(scores, labels, weights=weights))


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1]])
def test_one_class_is_undefined_not_a_number_that_looks_fine(labels):
    scores = np.array([1.0, 2.0, 3.0])
    assert np.isnan(metrics.auroc(scores, labels))
    assert np.isnan(metrics.auroc_within(scores, labels, np.zeros(3)))
    assert np.isnan(metrics.tpr_at_fpr(scores, labels, fpr=0.1))
    assert np.isnan(metrics.average_precision(scores, labels)) == (sum(labels) == 0)


def test_mean_leaves_out_what_is_not_defined():
    assert metrics.mean(np.array([1.0, np.nan, 5.0])) == 3.0
    assert metrics.mean(np.array([1.0, np.nan, 5.0]), weights=np.array([3.0, 7.0, 1.0])) == 2.0
    assert np.isnan(metrics.mean(np.array([np.nan])))


# --- the bootstrap's mechanics (its coverage: tests/statistical/test_bootstrap.py) -------------------------


def test_all_records_of_a_patient_come_and_go_together():
    groups = np.array(["b", "a", "b", "c", "a", "b"])
    weights = metrics.resample(groups, num=200, seed=3)
    assert np.array_equal(weights[:, 0], weights[:, 2])
    assert np.array_equal(weights[:, 0], weights[:, 5])
    assert np.array_equal(weights[:, 1], weights[:, 4])
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()  # three patients drawn each time
    assert len(np.unique(weights, axis=0)) == 10  # multisets of 3 out of 3


def test_no_class_vanishes_when_patients_are_drawn_within_their_kind():
    groups = np.arange(12)
    strata = np.array([1] * 2 + [0] * 10)
    weights = metrics.resample(groups, num=500, seed=0, strata=strata)
    assert (weights[:, :2].sum(axis=1) == 2).all()
    assert (weights[:, 2:].sum(axis=1) == 10).all()
    assert (metrics.resample(groups, num=500, seed=0)[:, :2].sum(axis=1) == 0).any()  # without strata it does


def test_patient_with_both_kinds_of_record_is_a_kind_of_its_own():
    groups = np.array([0, 0, 1, 1, 2, 3])
    strata = np.array([0, 1, 0, 1, 0, 1])
    weights = metrics.resample(groups, num=100, seed=5, strata=strata)
    assert (weights[:, 0] + weights[:, 2] == 2).all()
    assert (weights[:, 4] == 1).all()
    assert (weights[:, 5] == 1).all()


def test_equal_seeds_give_equal_intervals_and_others_do_not(rng):
    values = rng.standard_normal(50)
    first = metrics.bootstrap_ci(metrics.mean, values, groups=np.arange(50), seed=1)
    assert first == metrics.bootstrap_ci(metrics.mean, values, groups=np.arange(50), seed=1)
    assert first != metrics.bootstrap_ci(metrics.mean, values, groups=np.arange(50), seed=2)
    assert first.value == pytest.approx(values.mean())
    assert first.low < first.value < first.high


def test_wider_level_wider_interval_and_shorter_arrays_are_refused(rng):
    values, groups = rng.standard_normal(50), np.arange(50)
    narrow = metrics.bootstrap_ci(metrics.mean, values, groups=groups, seed=1, level=0.5)
    wide = metrics.bootstrap_ci(metrics.mean, values, groups=groups, seed=1, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high
    with pytest.raises(ValueError, match="one entry for each of 50 records"):
        metrics.bootstrap_ci(metrics.mean, values[:-1], groups=groups, seed=1)
    with pytest.raises(ValueError, match=r"between 0 and 1, got 95"):
        metrics.bootstrap_ci(metrics.mean, values, groups=groups, seed=1, level=95)


def test_statistic_that_is_never_defined_has_no_interval():
    found = metrics.bootstrap_ci(metrics.auroc, np.arange(4.0), np.zeros(4), groups=np.arange(4), seed=1)
    assert np.isnan(found).all()
