"""Scanners: how tissue becomes intensity at each hospital, and the noise on the way.

A scanner is a public constant of its index: the first four are set apart by hand, the others are drawn once
and for all. Intensities are in arbitrary units for T1w and T2w (gains differ) and in SUVR-like units for PET.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from vae.data.phantom.deform import smooth_field

Array = npt.NDArray[np.float32]

FULL_SCALE = 1000.0
"""Arbitrary units of an MR intensity of 1."""

MAX_FWHM_MM = 8.5
PET_GREY, PET_WHITE, PET_FLUID = 1.45, 0.60, 0.12
"""SUVR-like uptake before the partial volume effect."""


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """One scanner's habits.

    Attributes:
        name: E.g. `scanner-3`.
        t1: Relative intensity of cortex, white, deep grey, fluid on T1w.
        t2: The same on T2w.
        gamma: Exponent of the contrast curve of MR images.
        bias: Standard deviation of the log bias field.
        blur_mm: Full width at half maximum of the MR blur [mm].
        noise: Standard deviation of Rician noise, relative to full intensity.
        gain: Factor on MR intensities.
        pet_fwhm_mm: Resolution of PET [mm].
        pet_noise: Standard deviation of PET noise at SUVR 1.
        pet_gain: Factor on PET, what normalisation leaves over.
    """

    name: str
    t1: tuple[float, float, float, float]
    t2: tuple[float, float, float, float]
    gamma: float
    bias: float
    blur_mm: float
    noise: float
    gain: float
    pet_fwhm_mm: float
    pet_noise: float
    pet_gain: float


_HAND_MADE = (
    Scanner(
        name="scanner-1",
        t1=(0.56, 0.84, 0.64, 0.2),
        t2=(0.55, 0.38, 0.46, 0.92),
        gamma=1.0,
        bias=0.06,
        blur_mm=2.0,
        noise=0.015,
        gain=1.0,
        pet_fwhm_mm=6.0,
        pet_noise=0.03,
        pet_gain=1.0,
    ),
    Scanner(
        name="scanner-2",
        t1=(0.62, 0.78, 0.67, 0.28),
        t2=(0.6, 0.44, 0.51, 0.85),
        gamma=1.15,
        bias=0.12,
        blur_mm=5.0,
        noise=0.024,
        gain=0.82,
        pet_fwhm_mm=7.5,
        pet_noise=0.045,
        pet_gain=1.07,
    ),
    Scanner(
        name="scanner-3",
        t1=(0.5, 0.87, 0.61, 0.14),
        t2=(0.5, 0.3, 0.4, 0.97),
        gamma=0.85,
        bias=0.09,
        blur_mm=3.0,
        noise=0.018,
        gain=1.25,
        pet_fwhm_mm=5.0,
        pet_noise=0.035,
        pet_gain=0.94,
    ),
    Scanner(
        name="scanner-4",
        t1=(0.6, 0.79, 0.66, 0.26),
        t2=(0.6, 0.46, 0.52, 0.84),
        gamma=1.1,
        bias=0.11,
        blur_mm=6.0,
        noise=0.022,
        gain=0.93,
        pet_fwhm_mm=8.5,
        pet_noise=0.05,
        pet_gain=1.12,
    ),
)


def scanner(index: int) -> Scanner:
    """Return scanner `index` >= 0: always the same one."""
    if index < len(_HAND_MADE):
        return _HAND_MADE[index]
    rng = np.random.default_rng([20_240_501, index])
    contrast, t1_fluid, t2_contrast, t2_grey = (float(share) for share in rng.uniform(size=4))
    grey, white = 0.50 + 0.12 * contrast, 0.88 - 0.10 * contrast
    t2_white = 0.30 + 0.16 * t2_contrast
    return Scanner(
        name=f"scanner-{index + 1}",
        t1=(grey, white, 0.65 * grey + 0.35 * white, 0.14 + 0.14 * t1_fluid),
        t2=(t2_white + 0.15 + 0.05 * t2_grey, t2_white, t2_white + 0.08, 0.97 - 0.13 * t2_contrast),
        gamma=float(rng.uniform(0.85, 1.2)),
        bias=float(rng.uniform(0.05, 0.12)),
        blur_mm=float(rng.uniform(2.0, 6.0)),
        noise=float(rng.uniform(0.012, 0.024)),
        gain=float(rng.uniform(0.8, 1.25)),
        pet_fwhm_mm=float(rng.uniform(5.0, MAX_FWHM_MM)),
        pet_noise=float(rng.uniform(0.03, 0.05)),
        pet_gain=float(rng.uniform(0.93, 1.13)),
    )


def mri(
    machine: Scanner,
    weighting: str,
    *,
    maps: Mapping[str, Array],
    own: Mapping[str, Array],
    contrast: npt.NDArray[np.float64],
    streams: list[np.random.Generator],
    spacing: float,
    margin: int,
    lesion: Array | None = None,
) -> Array:
    """Scan all visits of a person.

    signal = bias(x) * blur(sum of tissue fraction * intensity + texture); the magnitude image is
    gain * sqrt((signal + n1)^2 + n2^2)^gamma.

    Shapes: V visits, grid X Y Z with `margin` extra slices at either end, cut away again.

    Args:
        machine: The scanner.
        weighting: `t1w` or `t2w`.
        maps: [V, X, Y, Z] tissues, `brain`, `texture`.
        own: `detail` [X, Y, Z], the person's texture.
        contrast: [4] relative changes of the person's intensities.
        streams: One random stream a visit.
        spacing: Edge of a voxel [mm].
        margin: Extra slices, for the blur.
        lesion: [V, X, Y, Z] soft mask of white-matter lesions, or None.

    Returns:
        [V, X, Y, Z - 2 margin] float32, arbitrary units, 0 outside the brain.
    """
    base = machine.t1 if weighting == "t1w" else machine.t2
    cortex, white, deep, fluid = (float(v) for v in np.asarray(base) * (1.0 + contrast))
    signal = cortex * (maps["cortex"] + maps["hippocampus"]) + white * maps["white"] + deep * maps["deep"]
    signal += fluid * (maps["csf"] + maps["ventricle"])
    signal += (0.6 if weighting == "t1w" else -0.4) * maps["texture"] + own["detail"] * maps["brain"]
    if lesion is not None:
        target = 0.45 * white + 0.55 * fluid if weighting == "t1w" else 0.2 * white + 0.8 * fluid
        signal += lesion * maps["white"] * np.float32(target - white)
    sigma = machine.blur_mm / 2.355 / spacing
    signal = ndimage.gaussian_filter(np.maximum(signal, 0), (0, sigma, sigma, sigma), truncate=3.0)
    keep = slice(margin, signal.shape[-1] - margin)
    signal, brain = signal[..., keep], maps["brain"][..., keep]
    out = np.empty_like(signal)
    for visit, rng in enumerate(streams):
        field = smooth_field(machine.bias * rng.standard_normal((1, 4, 4, 4)), signal.shape[1:])[0]
        biased = signal[visit] * np.exp(field).astype(np.float32)
        noise = machine.noise * rng.standard_normal((2, *biased.shape), dtype=np.float32)
        out[visit] = np.sqrt((biased + noise[0]) ** 2 + noise[1] ** 2)
    shaped = np.clip(out, 0, 2) ** np.float32(machine.gamma)
    return np.asarray(machine.gain * FULL_SCALE * shaped * (brain > 0.5), dtype=np.float32)


def pet(
    machine: Scanner,
    *,
    maps: Mapping[str, Array],
    own: Mapping[str, Array],
    streams: list[np.random.Generator],
    spacing: float,
    margin: int,
) -> Array:
    """Scan the FDG uptake of a person at all visits: blurred, noise grows with the root of the signal.

    Args:
        machine: The scanner.
        maps: [V, X, Y, Z] tissues and `uptake`.
        own: `uptake` [X, Y, Z], the person's own pattern.
        streams: One random stream a visit.
        spacing: Edge of a voxel [mm].
        margin: Extra slices at either end, cut away again.

    Returns:
        [V, X, Y, Z - 2 margin] float32, SUVR-like, >= 0.
    """
    grey = maps["cortex"] + maps["hippocampus"] + maps["deep"]
    activity = PET_GREY * (maps["uptake"] + own["uptake"]) * grey
    activity += PET_WHITE * maps["white"] + PET_FLUID * (maps["csf"] + maps["ventricle"])
    sigma = machine.pet_fwhm_mm / 2.355 / spacing
    blurred = ndimage.gaussian_filter(activity, (0, sigma, sigma, sigma), truncate=2.5)
    blurred = np.maximum(blurred[..., margin : blurred.shape[-1] - margin], 0)
    noise = np.stack(
        [_correlated(rng.standard_normal(blurred.shape[1:], dtype=np.float32)) for rng in streams]
    )
    observed = machine.pet_gain * blurred + machine.pet_noise * np.sqrt(blurred) * noise
    return np.asarray(np.maximum(observed, 0), dtype=np.float32)


def _correlated(noise: Array) -> Array:
    """Correlate the noise [X, Y, Z] of neighbours, as reconstruction does, and restore its variance of 1."""
    kernel = ndimage.gaussian_filter1d(np.eye(1, 9, 4)[0], 0.5)
    lost = float(np.sqrt((kernel**2).sum()))
    thick = sum(size > 1 for size in noise.shape)
    return np.asarray(ndimage.gaussian_filter(noise, 0.5) / np.float32(lost**thick), dtype=np.float32)
