"""One toy federation in a process of its own, so that start-up and peak memory are its own: prints one line of JSON.

It is the real thing: the arm of `simulate.py` (plan, engine, sites, round loop, checkpoints, diary, display that shows
nothing), with clocks around three of its calls.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[2]
MARK = "measured: "


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What to run.

    Attributes:
        sites: Number of sites.
        rounds: Global rounds, >= 2.
        engine: `local` or `ray`.
        workers: Processes of the local engine.
        private: With differential privacy.
        channels: Hidden units of each layer.
        patients: Patients of a site.
    """

    sites: int = 8
    rounds: int = 30
    engine: str = "local"
    workers: int = 1
    private: bool = False
    channels: tuple[int, ...] = (16,)
    patients: int = 24


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a federation took.

    Attributes:
        startup_s: Wall time from the start of the process until every site has answered who it is.
        first_round_s: Round 1 beside training, more than the median of the others: what is loaded lazily.
        rounds_s: Wall time of the rounds from the second on.
        training_s: Of these, what the busiest process trained.
        save_s: Of these, what the checkpoint took.
        diary_s: Of these, what the sites' diaries took; 0 where they were written in another process.
        cpu_s: CPU time of the server's process in these rounds, less that of training in the same process.
        wall_s: From the start of the process to the end of the last round.
        peak_bytes: Peak resident memory of the process that plays the server.
        child_peak_bytes: Peak of the largest of its children, 0 if it has none.
    """

    startup_s: float
    first_round_s: float
    rounds_s: list[float]
    training_s: list[float]
    save_s: list[float]
    diary_s: list[float]
    cpu_s: list[float]
    wall_s: float
    peak_bytes: int
    child_peak_bytes: int

    @property
    def overhead_s(self) -> list[float]:
        """Return the wall time of each round beside training."""
        return [whole - busy for whole, busy in zip(self.rounds_s, self.training_s, strict=True)]


def run(shape: Shape, *, timeout_s: float = 900.0) -> Measured:
    """Run a federation in a fresh process and return what it took.

    Raises:
        RuntimeError: it failed; holds the end of what it said.
    """
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.federation",
        json.dumps(asdict(shape)),
        str(time.time()),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode != 0 or not lines:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return Measured(**json.loads(lines[-1].removeprefix(MARK)))


class Watch:
    """Clocks around the calls of a run, and the display that is told of each round."""

    def __init__(self) -> None:
        self.enrolled = 0.0
        self.save: list[float] = [0.0]
        self.diary: list[float] = [0.0]
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def timed(self, function: Callable[..., Any], into: list[float]) -> Callable[..., Any]:
        """Return the function, adding its wall time to the last entry."""

        def call(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                into[-1] += time.perf_counter() - started

        return call

    def after_enrolment(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, noting when it returned."""

        def call(*arguments: Any, **named: Any) -> Any:
            result = function(*arguments, **named)
            self.enrolled = time.time()
            return result

        return call

    def note(self, text: str) -> None:
        """Show nothing."""

    def update(self, view: object) -> None:
        """Note that a round has ended."""
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())
        self.save.append(0.0)
        self.diary.append(0.0)

    def close(self) -> None:
        """Do nothing."""


def simulate(shape: Shape, out: Path, *, started: float) -> Measured:
    """Run a federation in this process."""
    import client.site
    import server.federation
    from deploy.config import Experiment
    from deploy.simulation import diary
    from deploy.simulation.run import Setting, train
    from tests.benchmarks.figures import peak_bytes

    experiment = Experiment.model_validate_json(_experiment(shape))
    watch = Watch()
    setting = Setting(
        experiment=experiment,
        out=out,
        cache=out / "cache",
        engine=shape.engine,
        workers=shape.workers,
        progress=watch,
    )
    with (
        mock.patch.object(server.federation, "enrol", watch.after_enrolment(server.federation.enrol)),
        mock.patch.object(server.federation, "save", watch.timed(server.federation.save, watch.save)),
        mock.patch.object(
            client.site.Site, "_write_diary", watch.timed(client.site.Site._write_diary, watch.diary)
        ),
    ):
        begun = time.perf_counter()
        train(setting)
    entries = diary.read(out / "sites", experiment.site_names)
    busy, cpu = [0.0] * shape.rounds, [0.0] * shape.rounds
    for round_ in range(shape.rounds):
        own = [entry for entry in entries if entry.round == round_ + 1]
        busy[round_] = diary.busy_seconds(own)
        cpu[round_] = sum(entry.cpu_s for entry in own if entry.process == os.getpid())
    wall = [after - before for before, after in zip([begun, *watch.wall], watch.wall, strict=False)]
    used = [after - before for before, after in zip(watch.cpu, watch.cpu[1:], strict=False)]
    overhead = sorted(whole - trained for whole, trained in zip(wall[1:], busy[1:], strict=True))
    first = time.time() - (time.perf_counter() - watch.wall[0]) - watch.enrolled
    return Measured(
        startup_s=watch.enrolled - started,
        first_round_s=first - busy[0] - overhead[len(overhead) // 2],
        rounds_s=wall[1:],
        training_s=busy[1:],
        save_s=watch.save[1 : shape.rounds],
        diary_s=watch.diary[1 : shape.rounds],
        cpu_s=[whole - trained for whole, trained in zip(used, cpu[1:], strict=True)],
        wall_s=time.time() - started,
        peak_bytes=peak_bytes(),
        child_peak_bytes=resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
    )


def _experiment(shape: Shape) -> str:
    """Return the experiment as JSON."""
    learning = {"local_steps": 2, "learning_rate": 0.005}
    return json.dumps(
        {
            "name": "bench",
            "data": {"kind": "toy", "sites": shape.sites, "patients_per_site": shape.patients, "features": 8},
            "model": {"latent_size": 3, "channels": shape.channels, "initial_scale": 0.3},
            "federation": {"rounds": shape.rounds},
            "training": {**learning, "batch_patients": 8},
            "privacy": {
                **learning,
                "noise_multiplier": 1.0,
                "delta": 1e-3,
                "sampling_probability": 0.25,
                "divisor": 6.0,
            },
            "arms": ["federated-dp" if shape.private else "federated"],
        }
    )


def main() -> None:
    """Run the shape on the command line and print what it took."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.federation", description=__doc__)
    parser.add_argument("shape", help="a Shape as JSON")
    parser.add_argument("started", type=float, help="when this process was started [s since 1970]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        measured = simulate(Shape(**json.loads(options.shape)), Path(folder), started=options.started)
    print(MARK + json.dumps(asdict(measured)), flush=True)


if __name__ == "__main__":
    main()
