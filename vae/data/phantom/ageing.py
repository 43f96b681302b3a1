"""How volumes change with age and Alzheimer's disease, and how far to deform so that they do.

`Trajectory` says what a person's volumes should be at an age; `Calibration`, solved numerically for each
founder, says which strengths of two localised velocity fields (one shrinks the hippocampus, one widens the
ventricles) give those volumes. Both fields act on both volumes, so the two strengths are solved for together.

Rates of the hippocampus are published ones; the cortex follows Fjell 2009; those of the ventricles are
chosen to point the published way (Nestor 2008, Brain 131:2443) and are no published figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from scipy.interpolate import RectBivariateSpline
from torch import Tensor

from vae.data.phantom.deform import Lattice, displace, exponentiate, sample

HEALTHY_HIPPOCAMPUS_PER_YEAR = -0.0141
ALZHEIMER_HIPPOCAMPUS_PER_YEAR = -0.0466
"""Barnes et al. 2009, Neurobiology of Aging 30:1711 (meta-analysis): -1.41 and -4.66 % a year."""

HEALTHY_VENTRICLE_PER_YEAR = 0.03
ALZHEIMER_VENTRICLE_PER_YEAR = 0.09
HEALTHY_CORTEX_PER_YEAR = -0.005
"""Fjell et al. 2009, Journal of Neuroscience 29:15223: about half a percent a year after 60."""
ALZHEIMER_CORTEX_PER_YEAR = -0.02

REFERENCE_AGE = 70.0
"""Age at which a person's volumes are the founder's times the person's own factors [years]."""

LOG_HIPPOCAMPUS_RANGE = (-0.90, 0.45)
LOG_VENTRICLE_RANGE = (-0.60, 0.95)
"""Largest changes of log volume against the founder that are solved for; trajectories are held inside."""

MEASURE_MM = 3.0
"""Spacing of the lattice volumes are integrated on: within 1 % of the volumes on 1 mm (tested)."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """A person's course: log volumes relative to the founder, as lines in age that bend once, at onset.

    Attributes:
        log_hippocampus: Log factor at `REFERENCE_AGE` in health.
        log_ventricle: The same of the ventricles.
        hippocampus_per_year: Relative change a year in health, e.g. -0.0141.
        ventricle_per_year: The same of the ventricles.
        onset_age: Age at which Alzheimer's disease begins [years]; None in health.
        alzheimer_hippocampus_per_year: Relative change a year after onset.
        alzheimer_ventricle_per_year: The same of the ventricles.
    """

    log_hippocampus: float
    log_ventricle: float
    hippocampus_per_year: float
    ventricle_per_year: float
    onset_age: float | None
    alzheimer_hippocampus_per_year: float
    alzheimer_ventricle_per_year: float

    def years_ill(self, age: float) -> float:
        """Return the years since onset at `age`, 0 in health."""
        return 0.0 if self.onset_age is None else max(0.0, age - self.onset_age)

    def severity(self, age: float) -> float:
        """Return the severity of the disease in [0, 1]: 1 after ten years."""
        return min(1.0, self.years_ill(age) / 10.0)

    def log_volumes(self, age: float) -> tuple[float, float]:
        """Return the log volumes of hippocampus and ventricles against the founder at `age`."""
        ill = self.years_ill(age)
        well = age - ill - REFERENCE_AGE
        hippocampus = self.log_hippocampus + well * np.log1p(self.hippocampus_per_year)
        hippocampus += ill * np.log1p(self.alzheimer_hippocampus_per_year)
        ventricle = self.log_ventricle + well * np.log1p(self.ventricle_per_year)
        ventricle += ill * np.log1p(self.alzheimer_ventricle_per_year)
        return float(np.clip(hippocampus, *LOG_HIPPOCAMPUS_RANGE)), float(
            np.clip(ventricle, *LOG_VENTRICLE_RANGE)
        )

    def cortex_fraction(self, age: float) -> float:
        """Return the share of the cortex kept at `age`, against a healthy 50-year-old; at most 1."""
        ill = self.years_ill(age)
        well = max(0.0, age - ill - 50.0)
        return float((1.0 + HEALTHY_CORTEX_PER_YEAR) ** well * (1.0 + ALZHEIMER_CORTEX_PER_YEAR) ** ill)


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """What one founder needs to deform by: fields and the solved relation of strengths to volumes.

    Attributes:
        lattice: Grid of the fields, 4 mm; they vanish at its edge.
        fields: [2, 3, X, Y, Z] float32, mm: shrink the hippocampus; widen the ventricles. Largest length 1.
        strengths: [M] strengths tabulated for each field.
        log_volumes: [2, M, M] log volumes of hippocampus and ventricles against the founder, by the two
            strengths.
        thinning_capacity: Share of the cortex lost per unit of thinning [dimensionless].
    """

    lattice: Lattice
    fields: Tensor
    strengths: tuple[Array, Array]
    log_volumes: Array
    thinning_capacity: float

    def solve(self, log_hippocampus: float, log_ventricle: float) -> tuple[float, float]:
        """Return the two strengths that give these log volumes (Newton on the tabulated relation).

        Raises:
            RuntimeError: the target lies outside the table; trajectories never ask for that.
        """
        target = np.array([log_hippocampus, log_ventricle])
        # Splines, not straight lines between knots: a rate is a slope, and a chord has the wrong one.
        surfaces = [RectBivariateSpline(*self.strengths, table) for table in self.log_volumes]
        low, high = (np.array([axis[end] for axis in self.strengths]) for end in (0, -1))
        point, missing = np.zeros(2), target
        for _ in range(40):
            missing = target - np.array([float(surface.ev(*point)) for surface in surfaces])
            if float(np.abs(missing).max()) < 1e-9:
                break
            slopes = [[float(surface.ev(*point, dx=dx, dy=1 - dx)) for dx in (1, 0)] for surface in surfaces]
            point = np.clip(point + np.linalg.solve(np.array(slopes), missing), low, high)
        if float(np.abs(missing).max()) > 1e-6:
            raise RuntimeError(f"log volumes {target.tolist()} are outside the calibrated range")
        return float(point[0]), float(point[1])

    def displacements(self, strengths: list[tuple[float, float]]) -> Tensor:
        """Return the displacement fields [N, 3, X, Y, Z] (mm) of N pairs of strengths."""
        weights = torch.tensor(strengths, dtype=torch.float32)[:, :, None, None, None, None]
        return exponentiate((weights * self.fields).sum(1), self.lattice)

    def thinning(self, cortex_fraction: float) -> float:
        """Return the thinning that leaves `cortex_fraction` of the cortex."""
        return (1.0 - cortex_fraction) / self.thinning_capacity

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return everything as arrays, for an npz."""
        grid = np.array([*self.lattice.origin, self.lattice.spacing, *self.lattice.shape])
        capacity = np.array(self.thinning_capacity)
        return {
            "grid": grid,
            "fields": self.fields.numpy(),
            "strengths_hippocampus": self.strengths[0],
            "strengths_ventricle": self.strengths[1],
            "log_volumes": self.log_volumes,
            "capacity": capacity,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> Calibration:
        """Return the calibration that `arrays` came from."""
        grid = [float(v) for v in arrays["grid"].astype(np.float64)]
        lattice = Lattice(
            origin=(grid[0], grid[1], grid[2]),
            spacing=grid[3],
            shape=(int(grid[4]), int(grid[5]), int(grid[6])),
        )
        return cls(
            lattice=lattice,
            fields=torch.from_numpy(arrays["fields"].astype(np.float32)),
            strengths=(
                arrays["strengths_hippocampus"].astype(np.float64),
                arrays["strengths_ventricle"].astype(np.float64),
            ),
            log_volumes=arrays["log_volumes"].astype(np.float64),
            thinning_capacity=float(arrays["capacity"].astype(np.float64)),
        )


def calibrate(maps: Mapping[str, Tensor], lattice: Lattice) -> Calibration:
    """Solve one founder: build the two fields and tabulate what they do to the two volumes.

    Args:
        maps: The founder's smooth maps [X, Y, Z]: `hippocampus`, `ventricle`, `cortex`, `sulcal`.
        lattice: Grid of the maps.

    Returns:
        The calibration; about 2 s of one core.
    """
    grid = Lattice.spanning((-60.0, -90.0, -56.0), (60.0, 60.0, 60.0), 4.0)
    nodes = grid.nodes()[None]
    sampled = sample(torch.stack([maps["hippocampus"], maps["ventricle"]])[None], lattice, nodes)[0].numpy()
    taper = _taper(grid)
    # A pull-back that points out of a structure shrinks it; one that points into it widens it.
    shrink = _unit(-_gradient(ndimage.gaussian_filter(sampled[0], 1.0)) * taper)
    widen = _unit(_gradient(ndimage.gaussian_filter(sampled[1], 1.5)) * taper)
    fields = torch.from_numpy(np.stack([shrink, widen]).astype(np.float32))
    strengths = (np.linspace(-4.0, 8.0, 7), np.linspace(-6.0, 16.0, 9))
    table = _tabulate(maps, lattice, grid, fields, strengths)
    cortex, sulcal = maps["cortex"].double().numpy(), maps["sulcal"].double().numpy()
    capacity = float((cortex * sulcal).sum() / cortex.sum())
    return Calibration(
        lattice=grid, fields=fields, strengths=strengths, log_volumes=table, thinning_capacity=capacity
    )


def _tabulate(
    maps: Mapping[str, Tensor],
    lattice: Lattice,
    grid: Lattice,
    fields: Tensor,
    strengths: tuple[Array, Array],
) -> Array:
    """Return log volumes [2, M, M] against the founder for every pair of strengths."""
    stacked = torch.stack([maps["hippocampus"], maps["ventricle"]])[None]
    points = deep_lattice().nodes()[None]
    rows = []
    for first in strengths[0]:
        weights = torch.tensor([[first, second] for second in strengths[1]], dtype=torch.float32)
        flow = exponentiate((weights[:, :, None, None, None, None] * fields).sum(1), grid)
        for one in flow:
            moved = displace(points, one[None], grid)
            rows.append(sample(stacked, lattice, moved)[0].double().numpy().sum(axis=(1, 2, 3)))
    base = sample(stacked, lattice, points)[0].double().numpy().sum(axis=(1, 2, 3))
    table = np.log(np.asarray(rows) / base).reshape(len(strengths[0]), len(strengths[1]), 2)
    return np.moveaxis(table, -1, 0)


def deep_lattice(*, margin_mm: float = 0.0) -> Lattice:
    """Return the lattice over hippocampi and ventricles that volumes are integrated on, grown by a margin."""
    m = margin_mm
    return Lattice.spanning((-57.0 - m, -90.0 - m, -60.0 - m), (57.0 + m, 60.0 + m, 60.0 + m), MEASURE_MM)


def _gradient(volume: npt.NDArray[np.float32]) -> Array:
    """Return the gradient [3, X, Y, Z]."""
    return np.stack([np.gradient(volume.astype(np.float64), axis=axis) for axis in range(3)])


def _unit(field: Array) -> Array:
    """Scale a field so that its longest vector has length 1."""
    return np.asarray(field / np.sqrt((field**2).sum(axis=0)).max())


def _taper(lattice: Lattice) -> Array:
    """Return weights [X, Y, Z] that fall to 0 at the faces of the lattice over four nodes."""
    axes = []
    for count in lattice.shape:
        edge = np.minimum(np.arange(count), np.arange(count)[::-1]) / 4.0
        axes.append(np.sin(np.clip(edge, 0, 1) * np.pi / 2) ** 2)
    return np.asarray(axes[0][:, None, None] * axes[1][None, :, None] * axes[2][None, None, :])
