"""Where founders come from: nilearn's MNI152 template, or a folder of FreeSurfer-style label maps.

Both become the same thing: tissue fractions on a 2 mm grid whose head is centred, and MNI coordinates of
every node. Label maps are placed in MNI space by turning the head until deep structures point the template's
way and matching the centre and the spread of the brain along each axis; good to about a centimetre, which is
enough for regions of that size and not for an atlas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from vae.data.phantom import regions
from vae.data.phantom.deform import Lattice
from vae.data.phantom.volume import UNREADABLE, nifti_shape, read_nifti
from vae.errors import DataError

SOURCE_MM = 2.0
MAX_AXIS = 512
Array = npt.NDArray[np.float32]

MNI_BRAIN_CENTRE_MM = (0.0, -22.0, 10.0)
MNI_BRAIN_SPREAD_MM = (33.3, 42.5, 33.5)
"""Mean and standard deviation of the positions of the template's brain voxels (measured, rounded)."""

TEMPLATE_SCALE = 0.93
"""Edge of the template against a person's head: it holds 2.0 L within the skull, people 1.6 L on average."""

LANDMARKS: Mapping[int, tuple[float, float, float]] = {
    53: (26, -21, -14),
    17: (-26, -21, -14),
    54: (24, -4, -19),
    18: (-24, -4, -19),
    49: (11, -19, 7),
    10: (-11, -19, 7),
    50: (13, 10, 10),
    11: (-13, 10, 10),
    51: (26, 1, 0),
    12: (-26, 1, 0),
    47: (25, -62, -36),
    8: (-25, -62, -36),
    42: (35, -22, 15),
    3: (-35, -22, 15),
}
"""Rough centres of FreeSurfer structures in MNI space [mm], to find which way a head looks."""

LABELS: Mapping[str, tuple[int, ...]] = {
    "cortex": (3, 42, 8, 47, 18, 54),
    "white": (2, 41, 7, 46, 16, 77, 85),
    "deep": (10, 49, 11, 50, 12, 51, 13, 52, 26, 58, 28, 60),
    "hippocampus": (17, 53),
    "ventricle": (4, 43, 5, 44, 14, 15, 31, 63),
}
"""FreeSurfer numbers of each tissue (amygdala and cerebellar cortex count as cortex, choroid plexus as
ventricle)."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Unsmoothed tissue fractions of one head.

    Attributes:
        name: Name of the founder.
        lattice: Grid, about 2 mm.
        tissues: [X, Y, Z] float32 in [0, 1] by tissue.
        texture: [X, Y, Z] float32: T1 intensity (white matter about 0.86) that the tissues do not explain.
        mni: [X, Y, Z, 3] float32, MNI coordinates of each node, mm.
    """

    name: str
    lattice: Lattice
    tissues: Mapping[str, Array]
    texture: Array
    mni: Array


def founder_sources(
    folder: str | None, subset: tuple[str, ...] | None, held_out: tuple[str, ...] | None
) -> dict[str, tuple[Path, ...]]:
    """Return the source files of each founder, by name, sorted.

    Raises:
        DataError: the folder holds no label map, or lacks one that was asked for.
    """
    if folder is None:
        return {"mni152": _template_paths()}
    found = {
        path.name.removesuffix(".gz").removesuffix(".nii"): path
        for path in sorted(Path(folder).glob("*.nii*"))
    }
    if not found:
        raise DataError(f"founders: {folder} holds no .nii or .nii.gz label map; name a folder that does")
    wanted = sorted({*(subset or ()), *(held_out or ())}) or sorted(found)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(f"founders: {folder} lacks {', '.join(missing)}; it has {', '.join(sorted(found))}")
    return {name: (found[name],) for name in wanted}


def read_source(name: str, paths: tuple[Path, ...]) -> Source:
    """Read one founder: three template files, or one label map.

    Raises:
        DataError: a label map is no 3D volume of whole numbers or lacks a tissue.
    """
    return _read_template(name, paths) if len(paths) == 3 else _read_labels(name, paths[0])


def _template_paths() -> tuple[Path, ...]:
    """Return the T1, grey and white matter maps that ship inside nilearn."""
    from nilearn import datasets

    data = Path(datasets.__file__).parent / "data"
    return tuple(
        data / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz" for kind in ("t1", "gm", "wm")
    )


def _read_template(name: str, paths: tuple[Path, ...]) -> Source:
    """Turn the MNI152 maps into tissues: fluid is what neither grey nor white matter explains."""
    (t1, affine), (grey, _), (white, _) = (read_nifti(path) for path in paths)
    step = round(SOURCE_MM)
    t1, grey, white = (
        ndimage.gaussian_filter(a / a.max(), 0.5 * step)[::step, ::step, ::step] for a in (t1, grey, white)
    )
    lattice = Lattice(
        origin=(float(affine[0, 3]), float(affine[1, 3]), float(affine[2, 3])),
        spacing=SOURCE_MM,
        shape=t1.shape,
    )
    mni = lattice.nodes().numpy()
    brain = ndimage.binary_fill_holes(ndimage.binary_closing(t1 > 0.08, iterations=2))
    fluid = np.clip(brain - grey - white, 0, 1)
    ventricle = _ventricles(fluid, brain)
    hippocampus = grey * regions.hippocampus_tube(mni)
    deep = (grey - hippocampus) * _deep_region(mni)
    tissues = {
        "cortex": grey - hippocampus - deep,
        "white": white,
        "deep": deep,
        "hippocampus": hippocampus,
        "csf": np.clip(fluid - ventricle, 0, 1),
        "ventricle": ventricle,
    }
    # Scaled so that white matter is 0.86: the contrast the residual is a detail of.
    scaled = t1 * np.float32(0.86 / np.median(t1[white > 0.95]))
    texture = np.clip(scaled - (0.62 * grey + 0.86 * white + 0.25 * fluid), -0.25, 0.25) * brain
    return _cropped(Source(name=name, lattice=_shrunk(lattice), tissues=tissues, texture=texture, mni=mni))


def _shrunk(lattice: Lattice) -> Lattice:
    """Return the template's lattice at the size of a person's head, about the head's centre."""
    centre = np.asarray(regions.CENTRE_MM)
    origin = centre + (np.asarray(lattice.origin) - centre) * TEMPLATE_SCALE
    return Lattice(
        origin=(origin[0], origin[1], origin[2]),
        spacing=lattice.spacing * TEMPLATE_SCALE,
        shape=lattice.shape,
    )


def _ventricles(fluid: Array, brain: npt.NDArray[np.bool_]) -> Array:
    """Return the fluid deep inside the brain: its large connected pieces, grown back to their soft edge."""
    depth = ndimage.distance_transform_edt(brain, sampling=SOURCE_MM)
    pieces, count = ndimage.label((fluid > 0.5) & (depth > 16.0))
    sizes = ndimage.sum_labels(np.ones_like(fluid), pieces, np.arange(1, count + 1)) * SOURCE_MM**3
    core = np.isin(pieces, 1 + np.flatnonzero(sizes > 150.0))
    return np.asarray(fluid * ndimage.binary_dilation(core, iterations=1), dtype=np.float32)


def _deep_region(mni: Array) -> Array:
    """Return where grey matter is thalamus or basal ganglia: a box-like blob around the ventricles, soft."""
    x, y, z = np.abs(mni[..., 0]), mni[..., 1], mni[..., 2]
    radius = (x / 34.0) ** 4 + ((y + 6.0) / 28.0) ** 4 + ((z - 5.0) / 18.0) ** 4
    return np.asarray(1.0 / (1.0 + np.exp(np.clip((radius - 1.0) * 6.0, -30, 30))), dtype=np.float32)


def _read_labels(name: str, path: Path) -> Source:
    """Resample a label map to the 2 mm grid and split it into tissues."""
    labels, affine = _load_labels(name, path)
    turn = _rotation(labels, affine)
    brain_labels = [value for values in LABELS.values() for value in values]
    where = np.argwhere(np.isin(labels, brain_labels))
    position = (where @ affine[:3, :3].T + affine[:3, 3]) @ turn.T
    centre, spread = position.mean(axis=0), position.std(axis=0)
    lattice = _lattice_around(position - centre + MNI_BRAIN_CENTRE_MM)
    nodes = lattice.nodes().numpy()
    scanner_mm = (nodes - MNI_BRAIN_CENTRE_MM + centre) @ turn
    index = (scanner_mm - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    sampled = ndimage.map_coordinates(labels, np.moveaxis(index, -1, 0), order=0, mode="constant", cval=0)
    tissues = {key: np.isin(sampled, values).astype(np.float32) for key, values in LABELS.items()}
    solid = sum(tissues.values()) > 0
    inside = ndimage.binary_fill_holes(
        ndimage.binary_closing(np.pad(solid, 8), iterations=6)[8:-8, 8:-8, 8:-8]
    )
    tissues["csf"] = (inside & ~solid).astype(np.float32)
    mni = (nodes - MNI_BRAIN_CENTRE_MM) * (np.asarray(MNI_BRAIN_SPREAD_MM) / spread) + MNI_BRAIN_CENTRE_MM
    texture = np.zeros(lattice.shape, dtype=np.float32)
    return Source(name=name, lattice=lattice, tissues=tissues, texture=texture, mni=mni.astype(np.float32))


def _rotation(labels: npt.NDArray[np.int32], affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the rotation that makes a head look the template's way (Kabsch, over the landmarks it has)."""
    present = [number for number in LANDMARKS if np.any(labels == number)]
    seen = np.array([np.argwhere(labels == number).mean(axis=0) for number in present])
    seen = seen @ affine[:3, :3].T
    wanted = np.array([LANDMARKS[number] for number in present], dtype=np.float64)
    left, _, right = np.linalg.svd((seen - seen.mean(axis=0)).T @ (wanted - wanted.mean(axis=0)))
    sign = np.diag([1.0, 1.0, np.sign(np.linalg.det(right.T @ left.T))])
    return np.asarray(right.T @ sign @ left.T)


def _load_labels(name: str, path: Path) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """Read and check a label map; returns labels [X, Y, Z] and the matrix from index to mm."""
    try:
        shape = nifti_shape(path)
        if len(shape) != 3 or max(shape) > MAX_AXIS:
            raise DataError(f"founder {name}: shape {shape}, must be three axes of at most {MAX_AXIS}")
        values, affine = read_nifti(path)
    except UNREADABLE as error:
        raise DataError(
            f"founder {name}: not a readable NIfTI file ({type(error).__name__}); replace it"
        ) from error
    labels = values.astype(np.int32)
    if not np.array_equal(labels, values):
        raise DataError(f"founder {name}: values are no whole numbers; a label map is needed, not an image")
    empty = [tissue for tissue, numbers in LABELS.items() if not np.isin(labels, numbers).any()]
    if empty:
        raise DataError(
            f"founder {name}: no voxel of {', '.join(empty)}; FreeSurfer label numbers are needed"
        )
    return labels, affine


def _lattice_around(position: npt.NDArray[np.floating]) -> Lattice:
    """Return the 2 mm lattice around some positions [N, 3] with a margin of 8 mm."""
    low, high = position.min(axis=0) - 8.0, position.max(axis=0) + 8.0
    low = np.floor(low / SOURCE_MM) * SOURCE_MM
    return Lattice.spanning((low[0], low[1], low[2]), (high[0], high[1], high[2]), SOURCE_MM)


def _cropped(source: Source) -> Source:
    """Cut the empty margin around the head."""
    brain = sum(source.tissues.values()) > 0.02
    where = np.argwhere(brain)
    low, high = np.maximum(where.min(axis=0) - 4, 0), where.max(axis=0) + 5
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    origin = np.asarray(source.lattice.origin) + low * source.lattice.spacing
    shape = source.mni[box].shape
    lattice = Lattice(
        origin=(origin[0], origin[1], origin[2]),
        spacing=source.lattice.spacing,
        shape=(shape[0], shape[1], shape[2]),
    )
    tissues = {key: value[box] for key, value in source.tissues.items()}
    return Source(
        name=source.name, lattice=lattice, tissues=tissues, texture=source.texture[box], mni=source.mni[box]
    )
