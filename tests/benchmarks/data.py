"""What data cost: decoding a hospital's volumes the first time, opening them again, and fetching a round's batches."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.benchmarks.figures import Figure, figure, ratios
from tests.support.hostile_files import write_nifti
from vae.data.cohort import Cohort
from vae.data.nifti import NiftiSource, open_nifti
from vae.data.prepare import Preparation

SIZE = 64
PATIENTS_A_STEP, STEPS_A_ROUND = 4, 5


def measure(*, quick: bool) -> list[Figure]:
    """Return the seconds of a first and of later rounds."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        return measure_volumes(Path(folder), volumes=4 if quick else 24, repeats=3 if quick else 7)


def measure_volumes(folder: Path, *, volumes: int, repeats: int) -> list[Figure]:
    """Return the figures of some NIfTI volumes of 64^3, brought to 32^3; each first time has a cache of its own."""
    root = folder / "data"
    rng = np.random.default_rng(0)
    for index in range(volumes):
        values = rng.random((SIZE, SIZE, SIZE), dtype=np.float32)
        write_nifti(root / f"sub-{index:03d}" / "anat" / f"sub-{index:03d}_T1w.nii", values)
    source = NiftiSource(
        root=str(root),
        suffixes=("T1w",),
        preparation=Preparation(shape=(32, 32, 32), spacing_mm=(2.0, 2.0, 2.0)),
    )
    first, again, later = [], [], []
    for turn in range(repeats):
        cache = folder / f"cache-{turn}"
        first.append(_seconds(partial(open_nifti, source, name="bench", cache=cache)))
        again.append(_seconds(partial(open_nifti, source, name="bench", cache=cache)))
        cohort, _ = open_nifti(source, name="bench", cache=cache)
        chosen = np.arange(min(PATIENTS_A_STEP, volumes), dtype=np.int64)
        later.append(_seconds(partial(_fetch, cohort, chosen)))
    name = f"data/{volumes} volumes {SIZE}^3"
    return [
        figure(f"{name}/decode and prepare, first time", first, "s"),
        figure(f"{name}/open again, from the cache", again, "s", "a new process would; hashes are compared"),
        figure(f"{name}/batches of a later round", later, "s", f"{STEPS_A_ROUND} steps, cohort stays open"),
        figure(f"{name}/later round, time", ratios(later, first), "x first time"),
    ]


def _fetch(cohort: Cohort, chosen: npt.NDArray[np.int64]) -> None:
    """Fetch the batches of a round."""
    for _ in range(STEPS_A_ROUND):
        cohort.batch(chosen)


def _seconds(work: Callable[[], object]) -> float:
    """Return the wall time of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
