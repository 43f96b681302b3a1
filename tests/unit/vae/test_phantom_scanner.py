"""Scanners: contrast, noise, blur and gain are the numbers they are declared to be."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.stats import kstest, rice

from vae.data.phantom.scanner import FULL_SCALE, MAX_FWHM_MM, mri, pet, scanner

SHAPE = (1, 40, 40, 40)
PLAIN = dataclasses.replace(scanner(0), bias=0.0, blur_mm=0.01, noise=0.0, gamma=1.0, gain=1.0, pet_noise=0.0)


def head(**tissues):
    names = ("cortex", "white", "deep", "hippocampus", "csf", "ventricle", "texture")
    maps = {name: np.full(SHAPE, tissues.get(name, 0.0), dtype=np.float32) for name in names}
    return maps | {"brain": np.ones(SHAPE, dtype=np.float32), "uptake": np.ones(SHAPE, dtype=np.float32)}


def own():
    return {name: np.zeros(SHAPE[1:], dtype=np.float32) for name in ("detail", "uptake")}


def streams(seed=0):
    return [np.random.default_rng(seed)]


def scan(machine, weighting="t1w", contrast=None, **tissues):
    change = np.zeros(4) if contrast is None else contrast
    return mri(
        machine,
        weighting,
        maps=head(**tissues),
        own=own(),
        contrast=change,
        streams=streams(),
        spacing=4.0,
        margin=0,
    )


def scan_pet(machine, maps):
    return pet(machine, maps=maps, own=own(), streams=streams(), spacing=4.0, margin=0)


def test_a_scanner_is_a_constant_and_no_two_are_alike():
    assert scanner(7) == scanner(7)
    assert len({dataclasses.replace(scanner(i), name="") for i in range(20)}) == 20
    assert scanner(5).name == "scanner-6"
    for i in range(40):
        assert scanner(i).pet_fwhm_mm <= MAX_FWHM_MM, "slabs are padded for no more"
        assert scanner(i).t1[1] > scanner(i).t1[2] > scanner(i).t1[0] > scanner(i).t1[3], (
            "white > deep > grey > fluid"
        )
        assert scanner(i).t2[3] > scanner(i).t2[0] > scanner(i).t2[1], "fluid > grey > white"


@pytest.mark.parametrize(("tissue", "position"), [("cortex", 0), ("white", 1), ("deep", 2), ("ventricle", 3)])
def test_pure_tissue_has_its_declared_intensity(tissue, position):
    image = scan(PLAIN, **{tissue: 1.0})
    np.testing.assert_allclose(image, PLAIN.t1[position] * FULL_SCALE, rtol=1e-5)


def test_gain_and_gamma_act_last():
    machine = dataclasses.replace(PLAIN, gain=0.5, gamma=2.0)
    np.testing.assert_allclose(scan(machine, white=1.0), 0.5 * 0.84**2 * FULL_SCALE, rtol=1e-5)


def test_a_person_brings_their_own_contrast():
    change = np.array([0.0, 0.1, 0.0, 0.0])
    np.testing.assert_allclose(scan(PLAIN, contrast=change, white=1.0), 0.84 * 1.1 * FULL_SCALE, rtol=1e-5)


def test_noise_is_rician_and_not_gaussian():
    # |s + n1 + i n2| with s = 0.05, sigma = 0.05 follows Rice(b = s / sigma = 1, scale = sigma).
    machine = dataclasses.replace(PLAIN, noise=0.05, t1=(0.05, 0.05, 0.05, 0.05))
    values = scan(machine, white=1.0).ravel()[::7] / FULL_SCALE
    assert kstest(values, rice(b=1.0, scale=0.05).cdf).pvalue > 0.01
    assert kstest(values, rice(b=1.0, scale=0.055).cdf).pvalue < 1e-6, "10 % more noise is seen"
    assert kstest(values, rice(b=20.0, scale=0.05, loc=-0.95).cdf).pvalue < 1e-6, "as good as Gaussian: seen"


def test_the_bias_field_is_smooth_and_of_its_declared_size():
    machine = dataclasses.replace(PLAIN, bias=0.1)
    change = np.log(
        np.concatenate(
            [
                mri(
                    machine,
                    "t1w",
                    maps=head(white=1.0),
                    own=own(),
                    contrast=np.zeros(4),
                    streams=streams(seed),
                    spacing=4.0,
                    margin=0,
                )
                for seed in range(12)
            ]
        )
        / (0.84 * FULL_SCALE)
    )
    corners = change[:, [0, 0, -1, -1], [0, -1, 0, -1], 0]
    assert corners.std() == pytest.approx(0.1, rel=0.35), "control points of standard deviation 0.1"
    assert np.abs(np.diff(change, axis=1)).max() < 0.05


def test_fields_differ_between_visits():
    two = {name: np.repeat(value, 2, axis=0) for name, value in head(white=1.0).items()}
    image = mri(
        scanner(0),
        "t1w",
        maps=two,
        own=own(),
        contrast=np.zeros(4),
        streams=[*streams(0), *streams(1)],
        spacing=4.0,
        margin=0,
    )
    assert np.abs(image[0] - image[1]).max() > 10


def test_nothing_is_seen_outside_the_brain():
    maps = head(white=1.0)
    maps["brain"][:, :20] = 0
    image = mri(
        scanner(1),
        "t2w",
        maps=maps,
        own=own(),
        contrast=np.zeros(4),
        streams=streams(),
        spacing=4.0,
        margin=0,
    )
    assert image[:, :20].max() == 0
    assert image[:, 20:].min() >= 0


@pytest.mark.parametrize(("weighting", "brighter"), [("t1w", False), ("t2w", True)])
def test_lesions_darken_t1_and_brighten_t2(weighting, brighter):
    lesion = np.zeros(SHAPE, dtype=np.float32)
    lesion[:, 10:20, 10:20, 10:20] = 1
    arguments = {
        "maps": head(white=1.0),
        "own": own(),
        "contrast": np.zeros(4),
        "spacing": 4.0,
        "margin": 0,
    }
    healthy = mri(PLAIN, weighting, streams=streams(), **arguments)
    ill = mri(PLAIN, weighting, streams=streams(), lesion=lesion, **arguments)
    change = (ill - healthy)[lesion > 0]
    assert np.all(change > 50) if brighter else np.all(change < -50)
    assert np.array_equal(ill[lesion == 0], healthy[lesion == 0])


def test_pet_is_blurred_to_its_resolution():
    maps = head()
    maps["cortex"][:, 20, 20, 20] = 1.0
    machine = dataclasses.replace(PLAIN, pet_fwhm_mm=12.0, pet_gain=1.0)
    profile = scan_pet(machine, maps)[0, :, 20, 20]
    position = (np.arange(40) - 20) * 4.0
    sigma = np.sqrt((profile * position**2).sum() / profile.sum())
    # A filter cut at 2.5 sigma keeps 96 % of the standard deviation of a Gaussian of 12 / 2.355 = 5.1 mm.
    assert sigma == pytest.approx(12.0 / 2.355, rel=0.08)
    assert abs(sigma - 8.0 / 2.355) > 1.0


def test_pet_gain_and_noise_are_as_declared():
    machine = dataclasses.replace(PLAIN, pet_gain=1.1, pet_noise=0.04)
    image = scan_pet(machine, head(cortex=1.0))
    inner = image[0, 5:-5, 5:-5, 5:-5]
    assert inner.mean() == pytest.approx(1.1 * 1.45, rel=0.005)
    expected = 0.04 * np.sqrt(1.45)
    assert inner.std() == pytest.approx(expected, rel=0.1)
    assert inner.std() != pytest.approx(2 * expected, rel=0.1)


def test_extra_slices_are_cut_away():
    image = pet(scanner(0), maps=head(cortex=1.0), own=own(), streams=streams(), spacing=4.0, margin=3)
    assert image.shape == (1, 40, 40, 34)
