"""Anomalies are what they are said to be, and graded."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from vae.data.phantom import regions
from vae.data.phantom.disease import HYPOMETABOLISM_SIGMA_MM, hypometabolic_weight, lesion_maps
from vae.data.phantom.spec import DISEASES

RNG = np.random.default_rng(0)


def blob(shape=(2, 20, 20, 20)):
    pattern = np.zeros(shape, dtype=np.float32)
    pattern[:, 6:14, 6:14, 6:14] = 0.8
    pattern[:, 4:6] = 0.3
    return pattern


@pytest.mark.parametrize("degree", [5, 30, 70])
def test_hypometabolism_is_the_published_formula(degree):
    # ClinicaDL: weights 1 - mask * degree / 100, Gaussian of 5 voxels of 1 mm, times the image.
    pattern, spacing = blob(), 4.0
    image = RNG.uniform(0.5, 1.5, pattern.shape[1:]).astype(np.float32)
    mask = (pattern[0] >= 0.5).astype(float)
    expected = image * ndimage.gaussian_filter(1 - mask * degree / 100, 5.0 / spacing, mode="nearest")
    ours = image * (1 - hypometabolic_weight(pattern, spacing=spacing)[0] * degree / 100)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    # A filter of half the width is not the published one, and the comparison sees it.
    wrong = image * ndimage.gaussian_filter(1 - mask * degree / 100, 2.5 / spacing, mode="nearest")
    assert np.abs(ours - wrong).max() > 0.005


def test_the_filter_is_five_millimetres_on_any_grid():
    assert HYPOMETABOLISM_SIGMA_MM == 5.0
    edge = np.zeros((1, 400, 3, 3), dtype=np.float32)
    edge[:, 200:] = 1
    profile = hypometabolic_weight(edge, spacing=0.5)[0, :, 1, 1]
    # The edge of a step, smoothed, is a normal distribution function: 16 % to 84 % is two sigma = 10 mm = 20 voxels.
    width = np.searchsorted(profile, 0.841) - np.searchsorted(profile, 0.159)
    assert width == pytest.approx(20, abs=1)


def test_visits_do_not_mix():
    pattern = blob()
    pattern[1] = 0
    assert hypometabolic_weight(pattern, spacing=4.0)[1].max() == 0.0


@pytest.mark.parametrize("load", [1, 5, 20])
def test_lesions_cover_the_load_they_are_given(load):
    white = RNG.uniform(0.6, 1, (2, 24, 24, 24)).astype(np.float32)
    prior = ndimage.gaussian_filter(RNG.uniform(size=white.shape), (0, 2, 2, 2)).astype(np.float32)
    rough = ndimage.gaussian_filter(RNG.standard_normal(white.shape[1:]), 2)
    (mask,) = lesion_maps(prior, white, rough / rough.std(), (load,))
    assert mask.min() >= 0
    assert mask.max() <= 1
    for visit in range(2):
        share = 100 * white[visit][mask[visit] > 0.5].sum() / white[visit].sum()
        assert share == pytest.approx(load, rel=0.05)


def test_a_higher_load_keeps_the_lesions_of_a_lower_one():
    white = np.ones((1, 24, 24, 24), dtype=np.float32)
    prior = ndimage.gaussian_filter(RNG.uniform(size=white.shape), (0, 2, 2, 2)).astype(np.float32)
    low, high = lesion_maps(prior, white, np.zeros(white.shape[1:]), (2, 10))
    assert np.all((high > 0.5) >= (low > 0.5))
    assert (high > 0.5).sum() > 3 * (low > 0.5).sum()


def test_there_are_no_lesions_outside_white_matter():
    white = np.zeros((1, 16, 16, 16), dtype=np.float32)
    white[:, :8] = 1
    (mask,) = lesion_maps(np.ones_like(white), white, RNG.standard_normal(white.shape[1:]), (20,))
    assert mask[:, 8:].max() == 0.0


@pytest.mark.parametrize("disease", DISEASES)
def test_every_pattern_is_there_on_both_sides(disease):
    axes = np.meshgrid(*[np.arange(-90, 91, 4.0)] * 3, indexing="ij")
    points = np.stack(axes, axis=-1).astype(np.float32)
    pattern = regions.pattern(disease, points)
    assert 10 < (pattern > 0.5).sum() * 0.064 < 400, "between 10 and 400 mL"
    np.testing.assert_allclose(pattern, pattern[::-1], atol=1e-6)


def test_patterns_lie_where_they_are_named_for():
    inside = {"ad": (6, -54, 28), "pca": (12, -84, 8), "bvftd": (7, 46, 16), "svppa": (-38, 14, -32)}
    for disease, point in inside.items():
        assert regions.pattern(disease, np.array([point], dtype=np.float32))[0] > 0.9
    assert regions.pattern("ad", np.array([inside["bvftd"]], dtype=np.float32))[0] < 0.01
    assert regions.relative_uptake(np.array([[6, -54, 28]], dtype=np.float32))[0] == pytest.approx(
        1.2, abs=0.01
    )
    assert regions.hippocampus_tube(np.array([[-28, -20, -16], [28, 40, -16]], dtype=np.float32)).round(
        1
    ).tolist() == [1, 0]
