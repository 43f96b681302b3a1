"""Smooth invertible deformations: stationary velocity fields, integrated by scaling and squaring.

All maps are pull-backs in millimetres: a deformed image at x shows the source at x + u(x). `exponentiate`
gives the flow of a velocity field, which is invertible; that no sampled voxel folds is measured
(`jacobian_determinant`) and tested. Nothing here depends on the number of threads: sums that a BLAS library
may split are avoided.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Lattice:
    """A regular grid of points in space, axes along x (right), y (anterior), z (superior).

    Attributes:
        origin: Position of node (0, 0, 0) [mm].
        spacing: Distance of neighbours [mm], the same along every axis.
        shape: Number of nodes along x, y, z.
    """

    origin: tuple[float, float, float]
    spacing: float
    shape: tuple[int, int, int]

    def nodes(self) -> Tensor:
        """Return the nodes' positions, [X, Y, Z, 3] float32, mm."""
        axes = [o + self.spacing * np.arange(n) for o, n in zip(self.origin, self.shape, strict=True)]
        return torch.from_numpy(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).astype(np.float32))

    def affine(self) -> Array:
        """Return the 4 x 4 matrix from index to mm, as NIfTI stores it."""
        matrix = np.diag([self.spacing, self.spacing, self.spacing, 1.0])
        matrix[:3, 3] = self.origin
        return matrix

    @classmethod
    def spanning(
        cls, low: tuple[float, float, float], high: tuple[float, float, float], spacing: float
    ) -> Lattice:
        """Return the lattice from `low` that reaches at least `high` [mm]."""
        counts = [int(np.ceil((end - start) / spacing)) + 1 for start, end in zip(low, high, strict=True)]
        return cls(origin=low, spacing=spacing, shape=(counts[0], counts[1], counts[2]))


def sample(volume: Tensor, lattice: Lattice, points: Tensor, *, outside: str = "zeros") -> Tensor:
    """Return `volume` at `points`, trilinearly.

    Shapes: N maps, C channels, lattice [X, Y, Z], any shape P of points.

    Args:
        volume: [N, C, X, Y, Z] float32.
        lattice: Where the values of `volume` lie.
        points: [N, *P, 3] float32, mm.
        outside: `zeros`, or `border` to continue the edge.

    Returns:
        [N, C, *P] float32.
    """
    low = torch.tensor(lattice.origin, dtype=torch.float32)
    span = torch.tensor([lattice.spacing * (n - 1) for n in lattice.shape], dtype=torch.float32)
    unit = ((points - low) * (2.0 / span) - 1.0).flip(-1)
    count, inner = points.shape[0], points.shape[1:-1]
    grid = unit.reshape(count, 1, 1, -1, 3)
    out = functional.grid_sample(volume, grid, mode="bilinear", padding_mode=outside, align_corners=True)
    return out.reshape(count, volume.shape[1], *inner)


def displace(points: Tensor, displacement: Tensor, lattice: Lattice, *, outside: str = "zeros") -> Tensor:
    """Return points + u(points) for N displacements [N, 3, X, Y, Z] (mm) and points [N, *P, 3]."""
    return points + sample(displacement, lattice, points, outside=outside).movedim(1, -1)


def exponentiate(velocity: Tensor, lattice: Lattice, *, steps: int = 6, outside: str = "zeros") -> Tensor:
    """Return the displacement of the flow of a stationary velocity field at time 1.

    exp(v) = (exp(v / 2^n))^(2^n): start from u = v / 2^n and compose n times, u <- u + u o (id + u).

    Args:
        velocity: [N, 3, X, Y, Z] float32, mm per unit time.
        lattice: Where the velocity is known.
        steps: Number of squarings n.
        outside: `zeros` for fields that vanish at the edge, `border` otherwise.

    Returns:
        [N, 3, X, Y, Z] float32, mm.

    References:
        Arsigny et al. 2006, MICCAI, LNCS 4190:924-931.
    """
    nodes = lattice.nodes()[None]
    displacement = velocity / 2.0**steps
    for _ in range(steps):
        moved = nodes + displacement.movedim(1, -1)
        displacement = displacement + sample(displacement, lattice, moved, outside=outside)
    return displacement


def jacobian_determinant(points: Tensor, spacing: float) -> Tensor:
    """Return the determinant of the map whose values at neighbouring lattice nodes are `points`.

    Forward differences, so every cell of the sampled grid is looked at: a folded one has a value <= 0.

    Args:
        points: [X, Y, Z, 3] images of the nodes, mm.
        spacing: Distance of the nodes, mm.

    Returns:
        [X - 1, Y - 1, Z - 1] float32, dimensionless; 1 for the identity.
    """
    corner = points[:-1, :-1, :-1]
    a = (points[1:, :-1, :-1] - corner) / spacing
    b = (points[:-1, 1:, :-1] - corner) / spacing
    c = (points[:-1, :-1, 1:] - corner) / spacing
    volume: Tensor = (a * torch.linalg.cross(b, c)).sum(-1)
    return volume


def smooth_field(control: Array, shape: tuple[int, int, int]) -> Array:
    """Interpolate control values [C, a, b, c] over a box to [C, *shape], by cubic splines along each axis."""
    out = control
    for axis in (1, 2, 3):
        matrix = _spline_matrix(out.shape[axis], shape[axis - 1])
        moved = np.moveaxis(out, axis, -1)
        out = np.moveaxis((moved[..., None, :] * matrix).sum(-1), -1, axis)
    return out


def _spline_matrix(coarse: int, fine: int) -> Array:
    """Return the [fine, coarse] matrix of natural cubic interpolation on equally spaced nodes."""
    from scipy.interpolate import CubicSpline

    spline = CubicSpline(np.arange(coarse), np.eye(coarse), bc_type="natural")
    return np.asarray(spline(np.linspace(0, coarse - 1, fine)), dtype=np.float64)
