"""A person's tissue maps at each visit: the founder, seen through three maps of space.

    image x --pose--> y --own warp--> z --age and disease--> founder

Every map is invertible and the own warp is the same at all visits, so two visits differ by age and disease
alone. All visits are sampled at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vae.data.phantom import regions
from vae.data.phantom.ageing import deep_lattice
from vae.data.phantom.deform import Lattice, displace, exponentiate, sample, smooth_field
from vae.data.phantom.founder import TISSUES, Founder, stack
from vae.data.phantom.person import Person
from vae.data.phantom.spec import PhantomSpec

SLAB_CENTRE_MM = 22.0
"""Height of a slab's middle (z): bodies of the ventricles, posterior cingulate, angular gyrus."""

WARP = Lattice(origin=(-96.0, -114.0, -88.0), spacing=8.0, shape=(25, 25, 25))
COARSE = Lattice(origin=(-99.0, -117.0, -91.0), spacing=6.0, shape=(34, 34, 34))
"""Grids of the own warp and of the volumes of the whole brain."""

MAX_THINNING = 0.9


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A person at all visits, on one grid.

    Attributes:
        lattice: The grid.
        maps: [V, X, Y, Z] float32 by name: tissues, `brain`, and whatever else was asked for.
        own: Texture and uptake of the person, [X, Y, Z] float32, relative; the same at every visit.
    """

    lattice: Lattice
    maps: dict[str, Tensor]
    own: dict[str, Tensor]


def image_lattice(spec: PhantomSpec) -> Lattice:
    """Return the grid of the images, in mm: the cube around the head, or its slab."""
    half = (spec.size - 1) / 2 * spec.voxel_mm
    low = [c - half for c in regions.CENTRE_MM]
    slices = spec.size
    if spec.slab is not None:
        slices = spec.slab
        middle = (SLAB_CENTRE_MM - low[2]) / spec.voxel_mm
        low[2] += spec.voxel_mm * int(np.floor(middle - (slices - 1) / 2 + 0.5))
    return Lattice(
        origin=(low[0], low[1], low[2]), spacing=spec.voxel_mm, shape=(spec.size, spec.size, slices)
    )


def pad_slices(lattice: Lattice, margin: int) -> Lattice:
    """Return the lattice with `margin` more slices below and above."""
    x, y, z = lattice.origin
    a, b, c = lattice.shape
    return Lattice(
        origin=(x, y, z - margin * lattice.spacing), spacing=lattice.spacing, shape=(a, b, c + 2 * margin)
    )


class Body:
    """A person's deformations, computed once and used on any grid."""

    def __init__(self, person: Person, founder: Founder) -> None:
        self.person = person
        self.founder = founder
        velocity = smooth_field(person.warp_coarse, WARP.shape) + smooth_field(person.warp_fine, WARP.shape)
        warp = torch.from_numpy(velocity.astype(np.float32))[None]
        self._warp = exponentiate(warp, WARP, outside="border")
        volumes = [person.trajectory.log_volumes(age) for age in person.ages]
        strengths = [founder.calibration.solve(*pair) for pair in volumes]
        self._ageing = founder.calibration.displacements(strengths)
        fractions = [person.trajectory.cortex_fraction(age) for age in person.ages]
        self._thinning = [founder.calibration.thinning(fraction) for fraction in fractions]
        self._own = {
            "detail": torch.from_numpy(smooth_field(person.detail, (40, 40, 40)).astype(np.float32))[None],
            "uptake": torch.from_numpy(smooth_field(person.uptake, (25, 25, 25)).astype(np.float32))[None],
        }

    def points(self, lattice: Lattice) -> Tensor:
        """Return where each node of `lattice` lies in the founder at each visit, [V, X, Y, Z, 3], mm."""
        return self._aged(self._own_points(lattice))

    def scene(self, lattice: Lattice, extra: tuple[str, ...] = ()) -> Scene:
        """Return the person's maps on a grid: tissues, brain, and the founder's maps named in `extra`."""
        own_points = self._own_points(lattice)
        maps = self._sampled(own_points, (*TISSUES, "brain", "sulcal", *extra))
        self._thin(maps)
        own = {}
        for name, field in self._own.items():
            spacing = 192.0 / (field.shape[-1] - 1)
            grid = Lattice(origin=WARP.origin, spacing=spacing, shape=(field.shape[2],) * 3)
            own[name] = sample(field, grid, own_points, outside="border")[0, 0]
        return Scene(lattice=lattice, maps=maps, own=own)

    def volumes(self) -> list[dict[str, float]]:
        """Return the true volumes at each visit [mL], integrated over the person's own space.

        Hippocampus, ventricles and deep grey on a 3 mm lattice, the rest on a 6 mm one.
        """
        deep = deep_lattice(margin_mm=9.0)
        fine = self._sampled(self._own_points(deep), ("hippocampus", "ventricle", "deep"))
        coarse = self._sampled(self._own_points(COARSE), ("cortex", "csf", "white", "brain", "sulcal"))
        self._thin(coarse)
        measured = {
            "hippocampus_ml": (fine["hippocampus"], deep),
            "ventricle_ml": (fine["ventricle"], deep),
            "deep_grey_ml": (fine["deep"], deep),
            "cortex_ml": (coarse["cortex"], COARSE),
            "white_ml": (coarse["white"], COARSE),
            "intracranial_ml": (coarse["brain"], COARSE),
        }
        return [
            {name: _millilitres(value[visit], lattice) for name, (value, lattice) in measured.items()}
            for visit in range(len(self.person.ages))
        ]

    def _sampled(self, own_points: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Return the founder's maps [V, X, Y, Z] at points after pose and own warp [1, X, Y, Z, 3]."""
        points = self._aged(own_points)
        visits, *shape = points.shape[:-1]
        # One sampling for all visits and maps: visits are laid along the first spatial axis.
        flat = points.reshape(1, visits * shape[0], *shape[1:], 3)
        sampled = sample(stack(self.founder, names), self.founder.lattice, flat)[0]
        return {name: value.reshape(visits, *shape) for name, value in zip(names, sampled, strict=True)}

    def _aged(self, own_points: Tensor) -> Tensor:
        """Return points through age and disease, [V, X, Y, Z, 3]."""
        everyone = own_points.expand(len(self.person.ages), *own_points.shape[1:])
        return displace(everyone, self._ageing, self.founder.calibration.lattice)

    def _own_points(self, lattice: Lattice) -> Tensor:
        """Return the nodes through pose and own warp, [1, X, Y, Z, 3]."""
        posed = _pose(self.person, lattice.nodes().numpy().astype(np.float64))
        return displace(torch.from_numpy(posed.astype(np.float32))[None], self._warp, WARP, outside="border")

    def _thin(self, maps: dict[str, Tensor]) -> None:
        """Turn cortex near fluid into fluid."""
        thinning = torch.tensor(self._thinning, dtype=torch.float32)[:, None, None, None]
        lost = maps["cortex"] * (thinning * maps.pop("sulcal")).clamp(0.0, MAX_THINNING)
        maps["cortex"] = maps["cortex"] - lost
        maps["csf"] = maps["csf"] + lost


def _millilitres(fractions: Tensor, lattice: Lattice) -> float:
    """Return a volume [mL]; summed by NumPy in float64: the number of threads must not matter."""
    return round(float(fractions.double().numpy().sum()) * lattice.spacing**3 / 1000.0, 4)


def _pose(person: Person, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return scanner positions [..., 3] in the upright, founder-sized head."""
    matrix = np.eye(3)
    for axis, angle in enumerate(person.rotation):
        turn = np.eye(3)
        i, j = [other for other in range(3) if other != axis]
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = np.einsum("ij,jk->ik", turn, matrix)
    matrix = matrix / person.scale[:, None]
    centred = points - np.asarray(regions.CENTRE_MM) - person.shift
    # Written out: a BLAS product may round differently on another number of threads.
    turned = [sum(matrix[row, k] * centred[..., k] for k in range(3)) for row in range(3)]
    return np.asarray(np.stack(turned, axis=-1) + np.asarray(regions.CENTRE_MM))
