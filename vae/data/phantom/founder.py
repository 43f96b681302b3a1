"""Founders: the anatomies that synthetic people descend from.

A founder is a stack of smooth tissue maps on a 2 mm grid, made once from the MNI152 template or from a label
map and kept in a cache keyed by the content of its source files, so that a changed file or a new version of
this code is never mistaken for the old one. `atlas` and `labelmap` read the sources; this module finishes,
keeps and loads.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from vae.data.phantom import regions
from vae.data.phantom.ageing import Calibration, calibrate
from vae.data.phantom.deform import Lattice
from vae.data.phantom.sources import Source, founder_sources, read_source
from vae.data.phantom.spec import DISEASES, PhantomSpec
from vae.data.phantom.version import code_version

TISSUES = ("cortex", "white", "deep", "hippocampus", "csf", "ventricle")
Array = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Founder:
    """An anatomy, at about 70 years of age and in health.

    Attributes:
        name: File name of its source without `.nii.gz`, or `mni152`.
        lattice: Grid of the maps [mm], head centred at `regions.CENTRE_MM`.
        maps: Float32 maps [X, Y, Z] by name: the `TISSUES` (fractions that sum to `brain`), `brain`,
            `sulcal` (where cortex thins), `texture` (T1 detail that tissue fractions do not explain),
            `uptake` (relative FDG uptake of grey matter), `lesion_prior` (where white matter lesions arise),
            and `pattern_<disease>`.
        calibration: How far to deform for a given change of volume.
    """

    name: str
    lattice: Lattice
    maps: Mapping[str, Tensor]
    calibration: Calibration


@lru_cache(maxsize=12)
def stack(founder: Founder, names: tuple[str, ...]) -> Tensor:
    """Return the maps `names` of a founder as one tensor [1, C, X, Y, Z]."""
    return torch.stack([founder.maps[name] for name in names])[None]


def founder_names(spec: PhantomSpec) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the founders of the training patients and those of the held-out patients.

    Raises:
        DataError: the folder is missing, or lacks a founder that the spec names.
    """
    everything = tuple(founder_sources(spec.founders, spec.founder_subset, spec.held_out_founders))
    train = everything if spec.founder_subset is None else spec.founder_subset
    return train, train if spec.held_out_founders is None else spec.held_out_founders


def sources_digest(spec: PhantomSpec) -> str:
    """Return the SHA-256 over the content of every source file the spec can use."""
    digest = hashlib.sha256()
    for name, content in founder_digests(spec).items():
        digest.update(f"{name}\0{content}\0".encode())
    return digest.hexdigest()


def founder_digests(spec: PhantomSpec) -> dict[str, str]:
    """Return each founder that the spec can use -> SHA-256 of its source files: which brain it is, by any name.

    Raises:
        DataError: the folder is missing, or lacks a founder that the spec names.
    """
    sources = founder_sources(spec.founders, spec.founder_subset, spec.held_out_founders)
    return {name: _content(paths) for name, paths in sources.items()}


def load_founder(spec: PhantomSpec, name: str, *, cache: Path) -> Founder:
    """Return a founder, from `cache` or made and cached now (about 4 s).

    Args:
        spec: Says where the founders lie, and the voxel size that the maps are smoothed for.
        name: One of `founder_names`.
        cache: Folder for prepared founders; made if missing.

    Raises:
        DataError: the source is missing or unusable.

    Guarantees:
        The same source content gives the same founder, whether it came from the cache or not
        (tests/unit/vae/test_phantom_founder.py).
    """
    paths = founder_sources(spec.founders, spec.founder_subset, spec.held_out_founders)[name]
    key = hashlib.sha256(
        f"{code_version()}\0{name}\0{spec.voxel_mm:g}\0{_content(paths)}".encode()
    ).hexdigest()[:24]
    path = cache / "founders" / f"{name}-{key}.npz"
    if not path.exists():
        _store(path, _prepare(read_source(name, paths), smoothing_mm=0.35 * spec.voxel_mm))
    return _load(str(path), name)


@lru_cache(maxsize=4)
def _load(path: str, name: str) -> Founder:
    """Read a prepared founder."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    facts = json.loads(str(arrays.pop("facts")))
    lattice = Lattice(
        origin=tuple(facts["lattice"]["origin"]),
        spacing=facts["lattice"]["spacing"],
        shape=tuple(facts["lattice"]["shape"]),
    )
    maps = {k[4:]: torch.from_numpy(v.astype(np.float32)) for k, v in arrays.items() if k.startswith("map_")}
    calibration = Calibration.from_arrays({k[4:]: v for k, v in arrays.items() if k.startswith("cal_")})
    return Founder(name=name, lattice=lattice, maps=maps, calibration=calibration)


def _store(path: Path, founder: Founder) -> None:
    """Write a founder as one npz, in place at once; half precision halves the file and loses under 0.1 %."""
    lattice = {
        "origin": founder.lattice.origin,
        "spacing": founder.lattice.spacing,
        "shape": founder.lattice.shape,
    }
    arrays: dict[str, npt.NDArray[np.generic]] = {"facts": np.array(json.dumps({"lattice": lattice}))}
    arrays |= {f"map_{key}": value.numpy().astype(np.float16) for key, value in founder.maps.items()}
    arrays |= {f"cal_{key}": value for key, value in founder.calibration.arrays().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    with os.fdopen(handle, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes **kwds for allow_pickle too
    Path(temporary).replace(path)


@lru_cache(maxsize=32)
def _content(paths: tuple[Path, ...]) -> str:
    """Return the SHA-256 over the bytes of some files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _prepare(source: Source, *, smoothing_mm: float) -> Founder:
    """Smooth the tissues, add the derived maps, and calibrate the deformations."""
    sigma = smoothing_mm / source.lattice.spacing
    maps = {name: ndimage.gaussian_filter(source.tissues[name], sigma) for name in TISSUES}
    # Half precision is what the cache keeps: calibrate on exactly what will be loaded.
    maps = {name: value.astype(np.float16).astype(np.float32) for name, value in maps.items()}
    brain = np.clip(sum(maps.values()), 0, 1)
    texture = ndimage.gaussian_filter(source.texture, sigma) * brain
    maps |= {"brain": brain, "texture": texture, **_derived(maps, source)}
    tensors = {
        name: torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32)) for name, value in maps.items()
    }
    calibration = calibrate(tensors, source.lattice)
    return Founder(name=source.name, lattice=source.lattice, maps=tensors, calibration=calibration)


def _derived(maps: Mapping[str, Array], source: Source) -> dict[str, Array]:
    """Return the maps that follow from tissues and MNI coordinates."""
    spacing = source.lattice.spacing
    near_sulcus = ndimage.gaussian_filter(maps["csf"], 3.0 / spacing)
    near_ventricle = ndimage.gaussian_filter(maps["ventricle"], 7.0 / spacing)
    grey = np.clip(maps["cortex"] + maps["hippocampus"], 0, 1)
    derived = {
        # The square root spreads the loss: fluid is far from most of the cortex of a full brain.
        "sulcal": np.sqrt(near_sulcus / near_sulcus.max()),
        "uptake": regions.relative_uptake(source.mni),
        "lesion_prior": maps["white"] * near_ventricle / near_ventricle.max(),
    }
    for disease in DISEASES:
        # Uptake is lost in grey matter and the white matter close to it, not in the fluid between.
        tissue = np.clip(2.0 * ndimage.gaussian_filter(grey, 3.0 / spacing), 0, 1)
        derived[f"pattern_{disease}"] = regions.pattern(disease, source.mni) * tissue
    return derived
