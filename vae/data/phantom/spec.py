"""What a virtual multi-hospital cohort is, as data.

It validates everything at once and decides nothing about how images are made.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

from vae.errors import DataError

CHANNELS = ("t1w", "t2w", "pet")
DISEASES = ("ad", "bvftd", "lvppa", "nfvppa", "pca", "svppa")
FIELD_OF_VIEW_MM = (176.0, 320.0)
"""Smallest and largest edge of the scanned cube: a smaller one would cut heads."""


@dataclass(frozen=True, kw_only=True)
class PhantomSpec:
    """Virtual hospitals: how many, whom they scan, on what, and which anomalies are simulated.

    Attributes:
        sites: Number of hospitals, >= 1. Site i (0-based) uses scanner `scanner_offset` + i.
        patients_per_site: Healthy patients to train on, >= 2.
        test_patients_per_site: Other healthy patients, scanned for evaluation, >= 1; as many again (two at
            least) form the reference for Z-maps.
        visits: Fewest and most visits of a patient.
        size: Edge of the image grid [voxels].
        voxel_mm: Edge of a voxel [mm]; `size * voxel_mm` must lie in 176..320 mm.
        channels: Image types, a subset of `t1w`, `t2w`, `pet` without repetition; order kept.
        slab: Number of axial slices kept around z = 22 mm (bodies of the ventricles, posterior cingulate,
            angular gyrus); 1 gives 2D images, None the whole volume.
        founders: Folder of FreeSurfer-style label maps to descend from; None for the MNI152 template.
        founder_subset: Names (file names without `.nii.gz`) of the founders to use; None for all.
        held_out_founders: Founders of the reference and test patients, disjoint from `founder_subset`; None
            to use the same founders for everybody.
        scanner_offset: Index of the first site's scanner, >= 0: another offset gives other scanners.
        degrees: Severities of the simulated anomaly [percent], each in 1..99: loss of uptake, or, without
            PET, share of the white matter turned into lesions (there 1..5 is realistic).
        hypometabolism: Patterns simulated on PET: `ad`, `bvftd`, `lvppa`, `nfvppa`, `pca`, `svppa`.
        diseased_patients_per_site: Patients with Alzheimer's disease written into the BIDS tree, >= 0; the
            cohorts of `open_phantom` leave them out.
        seed: Root of all randomness, >= 0.

    Raises:
        DataError: at construction, naming every problem at once.
    """

    sites: int = 4
    patients_per_site: int = 56
    test_patients_per_site: int = 10
    visits: tuple[int, int] = (1, 3)
    size: int = 48
    voxel_mm: float = 4.0
    channels: tuple[str, ...] = ("pet",)
    slab: int | None = None
    founders: str | None = None
    founder_subset: tuple[str, ...] | None = None
    held_out_founders: tuple[str, ...] | None = None
    scanner_offset: int = 0
    degrees: tuple[int, ...] = (10, 20, 30, 50)
    hypometabolism: tuple[str, ...] = ("ad",)
    diseased_patients_per_site: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [*_count_problems(self), *_image_problems(self), *_choice_problems(self)]
        if problems:
            raise DataError("phantom: " + "; ".join(problems))

    @property
    def reference_patients_per_site(self) -> int:
        """Return how many healthy patients a site holds out as the reference for Z-maps."""
        return max(2, self.test_patients_per_site)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Return the spatial shape S of a prepared record: (size, size), or three axes."""
        if self.slab == 1:
            return (self.size, self.size)
        return (self.size, self.size, self.size if self.slab is None else self.slab)


@functools.lru_cache(maxsize=16)
def site_names(spec: PhantomSpec) -> tuple[str, ...]:
    """Return the sites' names, `site-1` to `site-N`; position i is the `site=i` of the other functions."""
    return tuple(f"site-{index + 1}" for index in range(spec.sites))


def public_fields(spec: PhantomSpec) -> dict[str, object]:
    """Return what decides one site's images: all fields but the number of sites and the founders' folder."""
    fields = dataclasses.asdict(spec)
    del fields["sites"], fields["founders"]
    return fields


def _count_problems(spec: PhantomSpec) -> list[str]:
    """Return what is wrong with the numbers of sites, people and visits."""
    least = {
        "sites": 1,
        "patients_per_site": 2,
        "test_patients_per_site": 1,
        "scanner_offset": 0,
        "diseased_patients_per_site": 0,
        "seed": 0,
    }
    problems = [
        f"{name} is {getattr(spec, name)!r}, must be a whole number >= {bound}"
        for name, bound in least.items()
        if not _is_int(getattr(spec, name)) or getattr(spec, name) < bound
    ]
    visits = spec.visits
    if len(visits) != 2 or not all(map(_is_int, visits)) or not 1 <= visits[0] <= visits[1] <= 20:
        problems.append(f"visits is {visits!r}, must be (fewest, most) with 1 <= fewest <= most <= 20")
    return problems


def _image_problems(spec: PhantomSpec) -> list[str]:
    """Return what is wrong with the grid."""
    problems = []
    if not _is_int(spec.size) or not 8 <= spec.size <= 320:
        problems.append(f"size is {spec.size!r}, must be a whole number of voxels in 8..320")
    elif not FIELD_OF_VIEW_MM[0] <= spec.size * spec.voxel_mm <= FIELD_OF_VIEW_MM[1]:
        problems.append(
            f"size {spec.size} x voxel_mm {spec.voxel_mm:g} spans {spec.size * spec.voxel_mm:g} mm, "
            f"must lie in {FIELD_OF_VIEW_MM[0]:g}..{FIELD_OF_VIEW_MM[1]:g} mm; "
            f"try voxel_mm {round(192 / spec.size, 2):g}"
        )
    if spec.slab is not None and (not _is_int(spec.slab) or not 1 <= spec.slab <= spec.size // 2):
        problems.append(f"slab is {spec.slab!r}, must be null or in 1..{spec.size // 2} (half the size)")
    return problems


def _choice_problems(spec: PhantomSpec) -> list[str]:
    """Return what is wrong with the lists of names and degrees."""
    problems = [
        f"{name} holds {value!r}, must be one of {', '.join(allowed)}"
        for name, allowed in (("channels", CHANNELS), ("hypometabolism", DISEASES))
        for value in getattr(spec, name)
        if value not in allowed
    ]
    for name in ("channels", "hypometabolism", "degrees"):
        values = getattr(spec, name)
        if not values or len(set(values)) != len(values):
            problems.append(f"{name} is {values!r}, must be a list without repetition, not empty")
    problems += [
        f"degrees holds {d!r}, must be percent in 1..99"
        for d in spec.degrees
        if not _is_int(d) or not 1 <= d <= 99
    ]
    if spec.founders is None and (spec.founder_subset is not None or spec.held_out_founders is not None):
        problems.append("founder_subset and held_out_founders need founders: DIR")
    if spec.held_out_founders is not None:
        shared = set(spec.held_out_founders) & set(spec.founder_subset or ())
        if spec.founder_subset is None or shared or not spec.held_out_founders:
            problems.append(
                f"held_out_founders is {spec.held_out_founders!r}, must be a non-empty list "
                "beside founder_subset, without a founder in common"
            )
    return problems


def _is_int(value: object) -> bool:
    """Return whether `value` is a whole number and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)
