"""Prepared records on disk, keyed by content and by preparation: a second run decodes nothing.

Layout, below a folder that only its owner can enter:

    <preparation hash>/<content hash>.npy    one prepared channel
    <preparation hash>/<content hash>.json   facts for the readiness report, or why it is refused
    cohorts/<hash of its records>.npy        [R, C, *S], opened as a read-only memory map

Guarantees: files appear whole or not at all; a file of another shape or dtype is made again, never
used; no file or name tells a patient.
What it does not do: delete what is no longer used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vae.data.durable import atomic_path, write_atomically
from vae.data.limits import DEFAULT_LIMITS, Limits
from vae.data.prepare import FloatArray, Preparation, Volume, prepare_volume
from vae.data.quarantine import Reason, RefusedFileError

_LASTING = (
    Reason.NON_FINITE,
    Reason.CONSTANT,
)  # depend on content and preparation alone, and cost a decoding


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the readiness report needs to know of one scan; private to the site.

    Attributes:
        voxels_hash: SHA-256 of the decoded voxels: equal for a copy under another name or compression.
        shape: As stored.
        voxel_mm: As stored [mm].
        dtype: As stored.
        intensity: 1st, 50th and 99th percentile, as stored.
        affine: Rows of the first three rows of the affine, rounded to 1e-3 mm.
    """

    voxels_hash: str
    shape: tuple[int, ...]
    voxel_mm: tuple[float, ...]
    dtype: str
    intensity: tuple[float, float, float]
    affine: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Where prepared records of one preparation lie.

    Attributes:
        folder: Created when first written to, mode 0700.
        preparation: Part of every key.
        keep: Whether what is prepared is written; without it only what is there already is used.
    """

    folder: Path
    preparation: Preparation
    keep: bool = True

    def path(self, content_hash: str) -> Path:
        """Return where the prepared channel of a scan lies."""
        return self.folder / self.preparation.hash()[:32] / f"{content_hash}.npy"

    def fetch(
        self, content_hash: str, load: Callable[[], Volume], *, limits: Limits = DEFAULT_LIMITS
    ) -> Facts:
        """Return the facts about a scan; decode and prepare it unless that has been done.

        Raises:
            RefusedFileError: the scan is refused, now or in an earlier run.

        Guarantees:
            `load` is not called a second time for the same content and preparation (test_prepare.py).
        """
        path = self.path(content_hash)
        known = _read_facts(path.with_suffix(".json"))
        if isinstance(known, Reason):
            raise RefusedFileError(known, "refused before, and the file has not changed")
        if known is not None and _is_whole(path, self.preparation.shape):
            return known
        try:
            volume = load()
            prepared = prepare_volume(volume, self.preparation, limits=limits)
        except RefusedFileError as error:
            if error.reason in _LASTING and self.keep:
                refusal = json.dumps({"refused": error.reason.value})
                write_atomically(path.with_suffix(".json"), refusal.encode())
            raise
        facts = facts_about(volume)
        if not self.keep:
            return facts
        with atomic_path(path) as partial, partial.open("wb") as stream:
            np.save(stream, prepared, allow_pickle=False)
        write_atomically(path.with_suffix(".json"), json.dumps(dataclasses.asdict(facts)).encode())
        return facts

    def assemble(self, records: Sequence[Sequence[str]]) -> FloatArray:
        """Return prepared records as one read-only memory map, writing it first where it does not exist.

        Args:
            records: Content hashes, [R][C], all fetched before.

        Returns:
            [R, C, *S] float32.
        """
        shape = (len(records), len(records[0]), *self.preparation.shape)
        digest = hashlib.sha256(json.dumps([self.preparation.hash(), [list(r) for r in records]]).encode())
        target = self.folder / "cohorts" / f"{digest.hexdigest()}.npy"
        if not _is_whole(target, shape):
            with atomic_path(target) as partial:
                joined = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
                for row, channels in enumerate(records):
                    for channel, content_hash in enumerate(channels):
                        joined[row, channel] = np.load(self.path(content_hash), allow_pickle=False)
                joined.flush()
                del joined
        mapped: FloatArray = np.load(target, mmap_mode="r", allow_pickle=False)
        return mapped


def facts_about(volume: Volume) -> Facts:
    """Return the facts about a decoded scan."""
    low, middle, high = (float(value) for value in np.percentile(volume.values, (1, 50, 99)))
    digest = hashlib.sha256(repr(volume.values.shape).encode())
    digest.update(np.ascontiguousarray(volume.values).data)
    return Facts(
        voxels_hash=digest.hexdigest(),
        shape=tuple(volume.values.shape),
        voxel_mm=tuple(round(size, 4) for size in volume.voxel_mm),
        dtype=volume.dtype,
        intensity=(low, middle, high),
        affine=_rows(volume.affine),
    )


def _rows(affine: npt.NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    """Return the first three rows, rounded."""
    return tuple(tuple(round(float(value), 3) for value in row) for row in affine[:3])


def _read_facts(path: Path) -> Facts | Reason | None:
    """Return what an earlier run found, or None where there is nothing that can be read."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        stored = json.loads(path.read_bytes())
        if "refused" in stored:
            return Reason(stored["refused"])
        return Facts(
            voxels_hash=str(stored["voxels_hash"]),
            shape=tuple(stored["shape"]),
            voxel_mm=tuple(stored["voxel_mm"]),
            dtype=str(stored["dtype"]),
            intensity=tuple(stored["intensity"]),
            affine=tuple(tuple(row) for row in stored["affine"]),
        )
    return None


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    """Return whether a prepared file is there with the expected shape and dtype."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return bool(found.shape == shape and found.dtype == np.float32)
