"""Who a synthetic person is: everything about them that is drawn at random, and nothing that is computed.

A person is a pure function of (seed, site, index): the same on any number of processes, different for
another seed or site. Images are drawn from generators of their own, so that one channel's noise does not
depend on the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from vae.data.phantom import ageing
from vae.data.phantom.ageing import Trajectory
from vae.data.phantom.spec import PhantomSpec

Group = Literal["train", "reference", "test", "diseased"]
Array = npt.NDArray[np.float64]

SITE_MEAN_AGES = (66.0, 72.0, 75.0, 69.0)
AGE_RANGE = (55.0, 88.0)
MAX_AGE = 92.0

WARP_COARSE_MM = 3.5
WARP_FINE_MM = 1.5
"""Standard deviations of the velocity's control points, 48 and 19 mm apart."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Person:
    """A synthetic person.

    Attributes:
        label: BIDS label, e.g. `sub-001`.
        index: Position at the site, 0-based.
        group: What the person is for.
        sex: 0 female, 1 male.
        founder: Name of the founder the person descends from.
        ages: Age at each visit [years], ascending.
        trajectory: Course of the volumes.
        scale: Size of the head along x, y, z, relative to the founder.
        rotation: Rotation about x, y, z [radians].
        shift: Position of the head [mm].
        warp_coarse: Control points [3, 5, 5, 5] of the person's own velocity field [mm].
        warp_fine: Control points [3, 11, 11, 11] of the same [mm].
        contrast: Relative change of T1 and T2 intensity of cortex, white, deep grey and fluid, [2, 4].
        uptake: Control points [1, 6, 6, 6] of the person's own pattern of uptake [relative].
        detail: Control points [1, 20, 20, 20] of the person's own texture [relative to the full intensity].
        hypometabolism: Loss of uptake at severity 1 in the `ad` pattern [percent]; 0 in health.
    """

    label: str
    index: int
    group: Group
    sex: int
    founder: str
    ages: tuple[float, ...]
    trajectory: Trajectory
    scale: Array
    rotation: Array
    shift: Array
    warp_coarse: Array
    warp_fine: Array
    contrast: Array
    uptake: Array
    detail: Array
    hypometabolism: float


def groups(spec: PhantomSpec) -> tuple[Group, ...]:
    """Return the group of each person of a site, in order of their index."""
    counts: tuple[tuple[Group, int], ...] = (
        ("train", spec.patients_per_site),
        ("reference", spec.reference_patients_per_site),
        ("test", spec.test_patients_per_site),
        ("diseased", spec.diseased_patients_per_site),
    )
    return tuple(group for group, count in counts for _ in range(count))


def draw_person(
    spec: PhantomSpec, *, site: int, index: int, founders: tuple[tuple[str, ...], tuple[str, ...]]
) -> Person:
    """Draw one person.

    Args:
        spec: The cohort.
        site: Site, 0-based.
        index: Person, 0-based, below the length of `groups(spec)`.
        founders: Names to draw from: of training patients, of all others.
    """
    rng = generator(spec, site=site, index=index)
    group = groups(spec)[index]
    sex = int(rng.integers(2))
    names = founders[0] if group == "train" else founders[1]
    founder = names[int(rng.integers(len(names)))]
    ages = _ages(rng, spec, site)
    return Person(
        label=f"sub-{index + 1:0{max(3, len(str(len(groups(spec)))))}d}",
        index=index,
        group=group,
        sex=sex,
        founder=founder,
        ages=ages,
        trajectory=_trajectory(rng, ill=group == "diseased", first_age=ages[0]),
        scale=(1.0 + 0.015 * (2 * sex - 1))
        * (1.0 + 0.02 * rng.standard_normal() + 0.02 * rng.standard_normal(3)),
        rotation=0.04 * rng.standard_normal(3),
        shift=1.0 * rng.standard_normal(3),
        warp_coarse=WARP_COARSE_MM * rng.standard_normal((3, 5, 5, 5)),
        warp_fine=WARP_FINE_MM * rng.standard_normal((3, 11, 11, 11)),
        contrast=0.02 * rng.standard_normal((2, 4)),
        uptake=0.05 * rng.standard_normal((1, 6, 6, 6)),
        detail=0.02 * rng.standard_normal((1, 20, 20, 20)),
        hypometabolism=float(rng.uniform(35.0, 55.0)) if group == "diseased" else 0.0,
    )


def generator(
    spec: PhantomSpec, *, site: int, index: int, visit: int = 0, purpose: int = 0
) -> np.random.Generator:
    """Return a random stream of its own for (seed, site, person, visit, purpose)."""
    return np.random.default_rng([spec.seed, site, index, visit, purpose])


def _ages(rng: np.random.Generator, spec: PhantomSpec, site: int) -> tuple[float, ...]:
    """Draw the ages at each visit; visits are 0.8 to 2 years apart."""
    first = float(np.clip(rng.normal(SITE_MEAN_AGES[site % len(SITE_MEAN_AGES)], 6.5), *AGE_RANGE))
    count = int(rng.integers(spec.visits[0], spec.visits[1] + 1))
    gaps = np.concatenate([[0.0], rng.uniform(0.8, 2.0, size=count - 1)])
    ages = first + np.cumsum(gaps)
    # Many visits of an old person: closer together, never beyond the oldest age that is modelled.
    shrink = min(1.0, (MAX_AGE - first) / max(float(gaps.sum()), 1e-9))
    return tuple(round(float(first + shrink * (age - first)), 2) for age in ages)


def _trajectory(rng: np.random.Generator, *, ill: bool, first_age: float) -> Trajectory:
    """Draw the course of a person's volumes: published mean rates, with a spread between people."""
    offsets = rng.standard_normal(2)
    spread = np.clip(rng.standard_normal(4), -2.0, 2.0)
    years_before = float(rng.uniform(1.0, 5.0))
    return Trajectory(
        log_hippocampus=float(0.09 * np.clip(offsets[0], -2.5, 2.5)),
        log_ventricle=float(0.18 * np.clip(offsets[1], -2.0, 2.0)),
        hippocampus_per_year=ageing.HEALTHY_HIPPOCAMPUS_PER_YEAR + 0.003 * float(spread[0]),
        ventricle_per_year=ageing.HEALTHY_VENTRICLE_PER_YEAR + 0.008 * float(spread[1]),
        onset_age=first_age - years_before if ill else None,
        alzheimer_hippocampus_per_year=ageing.ALZHEIMER_HIPPOCAMPUS_PER_YEAR + 0.007 * float(spread[2]),
        alzheimer_ventricle_per_year=ageing.ALZHEIMER_VENTRICLE_PER_YEAR + 0.02 * float(spread[3]),
    )
