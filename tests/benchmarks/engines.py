"""What a round costs beside training, and starting up, for each engine and 4 to 100 sites of a toy model.

The overhead of a round is its wall time less what the busiest process trained. The checkpoint (fsync) is in it and is
also told by itself. Reference points on two cores: Flower's Ray engine 0.10 s a round after about 30 s of start-up, the
in-process engine of another framework 0.021 s a round.
"""

from __future__ import annotations

import importlib.util

from tests.benchmarks.federation import Measured, Shape, run
from tests.benchmarks.figures import Figure, figure

SITES = 8
MANY = (4, 32, 100)


def measure(*, quick: bool) -> list[Figure]:
    """Return the figures of each engine; Ray's only in the full run, and if it is installed."""
    rounds = 12 if quick else 40
    shapes = {
        "local, in process": Shape(sites=SITES, rounds=rounds),
        "local, in process, private": Shape(sites=SITES, rounds=rounds, private=True),
        "local, 2 workers": Shape(sites=SITES, rounds=rounds, workers=2),
    }
    if not quick:
        shapes |= {f"local, in process, {sites} sites": Shape(sites=sites, rounds=rounds) for sites in MANY}
    if not quick and importlib.util.find_spec("ray") is not None:
        shapes["ray"] = Shape(sites=SITES, rounds=rounds, engine="ray")
    return [made for name, shape in shapes.items() for made in _figures(name, shape, run(shape))]


def _rest(measured: Measured) -> list[float]:
    """Return the overhead of each round without its checkpoint, which reference engines do not write."""
    return [whole - save for whole, save in zip(measured.overhead_s, measured.save_s, strict=True)]


def _figures(name: str, shape: Shape, measured: Measured) -> list[Figure]:
    """Return the figures of one run."""
    made = [
        figure(f"engines/{name}/overhead", measured.overhead_s, "s a round"),
        figure(f"engines/{name}/of it checkpoint", measured.save_s, "s a round", "fsync included"),
        figure(f"engines/{name}/overhead without checkpoint", _rest(measured), "s a round"),
    ]
    if shape.engine == "local" and shape.workers == 1:
        made += [
            figure(f"engines/{name}/of it diaries", measured.diary_s, "s a round", "a loss of each site"),
            figure(
                f"engines/{name}/overhead, CPU time", measured.cpu_s, "s a round", "no waiting for the disk"
            ),
        ]
    return [
        *made,
        figure(f"engines/{name}/training", measured.training_s, "s a round", "of the busiest process"),
        figure(
            f"engines/{name}/start-up", [measured.startup_s], "s", "process start until all sites answered"
        ),
        figure(
            f"engines/{name}/first round more", [measured.first_round_s], "s", "libraries that load lazily"
        ),
    ]
