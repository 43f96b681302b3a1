"""Many virtual sites on this machine: wall time and peak memory of a whole federation of a toy model."""

from __future__ import annotations

import os
import statistics

from tests.benchmarks.federation import Measured, Shape, run
from tests.benchmarks.figures import Figure, figure


def measure(*, quick: bool) -> list[Figure]:
    """Return the figures of 1,000 and 10,000 sites (quick: 100), and how seconds and memory grow between them."""
    workers = min(2, os.cpu_count() or 1)
    runs = {
        sites: run(Shape(sites=sites, rounds=3, workers=workers, private=True), timeout_s=3600.0)
        for sites in ((100,) if quick else (1000, 10_000))
    }
    made = [each for sites, measured in runs.items() for each in _figures(sites, workers, measured)]
    return made if quick else [*made, *_growth(runs)]


def _figures(sites: int, workers: int, measured: Measured) -> list[Figure]:
    """Return the figures of one federation."""
    name = f"many_sites/{sites} sites x 3 rounds, {workers} workers, private"
    return [
        figure(f"{name}/wall", [measured.wall_s], "s", "start-up included"),
        figure(f"{name}/round", measured.rounds_s, "s a round"),
        figure(f"{name}/overhead", [1e3 * each / sites for each in measured.overhead_s], "ms a site a round"),
        figure(
            f"{name}/peak memory",
            [_peak(workers, measured) / 1e6],
            "MB",
            "the server's process and its workers; libraries are most of it",
        ),
    ]


def _growth(runs: dict[int, Measured]) -> list[Figure]:
    """Return what ten times the sites cost: 1 is linear in seconds, and memory tells bytes of a site."""
    (few, low), (many, high) = runs.items()
    workers = min(2, os.cpu_count() or 1)
    name = f"many_sites/{few} to {many} sites"
    seconds = statistics.median(high.rounds_s) / many / (statistics.median(low.rounds_s) / few)
    memory = (_peak(workers, high) - _peak(workers, low)) / (many - few)
    return [
        figure(f"{name}/seconds a site", [seconds], "x"),
        figure(f"{name}/memory", [memory / 1e3], "kB a site more"),
    ]


def _peak(workers: int, measured: Measured) -> float:
    """Return the bytes of all processes."""
    return measured.peak_bytes + workers * measured.child_peak_bytes
