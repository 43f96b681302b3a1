"""Many virtual sites on this machine: wall time and peak memory of a whole federation of a toy model."""

from __future__ import annotations

import os

from tests.benchmarks.federation import Shape, run
from tests.benchmarks.figures import Figure, figure


def measure(*, quick: bool) -> list[Figure]:
    """Return the figures of 1,000 sites (quick: 100)."""
    workers = min(2, os.cpu_count() or 1)
    shape = Shape(sites=100 if quick else 1000, rounds=3, workers=workers, private=True)
    measured = run(shape)
    name = f"many_sites/{shape.sites} sites x {shape.rounds} rounds, {workers} workers, private"
    peak = (measured.peak_bytes + workers * measured.child_peak_bytes) / 1e6
    return [
        figure(f"{name}/wall", [measured.wall_s], "s", "start-up included"),
        figure(f"{name}/round", measured.rounds_s, "s a round"),
        figure(
            f"{name}/overhead",
            [1e3 * each / shape.sites for each in measured.overhead_s],
            "ms a site a round",
        ),
        figure(
            f"{name}/peak memory",
            [peak],
            "MB",
            "the server's process and its workers; libraries are most of it",
        ),
    ]
