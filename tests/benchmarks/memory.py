"""Peak memory against the number of sites, each federation in a process of its own.

- `round loop`: a model of 50 MB through the real round loop (enrolment, messages, ClientApp, admission, aggregation,
  checkpoint), with sites that answer without training: what the server holds at a time.
- `virtual sites`: a smaller model with sites that train: what a simulation in one process holds at a time.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.benchmarks.federation import ROOT, Shape, run
from tests.benchmarks.figures import Figure, figure, peak_bytes

COLUMNS, CHANNELS = 2048, (1600, 1600)


def measure(*, quick: bool) -> list[Figure]:
    """Return peaks of few and many sites, and by how much they differ; quick: of the round loop alone."""
    megabytes, many = (10, 16) if quick else (50, 64)
    loops = {sites: round_loop(sites=sites, megabytes=megabytes) for sites in (4, many)}
    made = _figures(f"round loop, {megabytes} MB", loops, megabytes * 2**20)
    if quick:
        return made
    trained = {sites: run(Shape(sites=sites, rounds=2, channels=CHANNELS)).peak_bytes for sites in (4, 16)}
    size = 4 * 2 * math.prod(CHANNELS)  # of the two large layers, encoder's and decoder's
    return [*made, *_figures(f"virtual sites, {size / 1e6:.0f} MB", trained, size)]


def _figures(name: str, peaks: dict[int, int], model_bytes: float) -> list[Figure]:
    """Return the peaks, and the growth from the first to the last in models."""
    (few, low), (many, high) = peaks.items()
    return [
        *(figure(f"memory/{name}/{sites} sites", [peak / 1e6], "MB") for sites, peak in peaks.items()),
        figure(
            f"memory/{name}/growth", [(high - low) / model_bytes], "models", f"from {few} to {many} sites"
        ),
    ]


def round_loop(*, sites: int, megabytes: int) -> int:
    """Return the peak memory [bytes] of one round in a fresh process."""
    command = [sys.executable, "-m", "tests.benchmarks.memory", str(sites), str(megabytes)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return int(json.loads(done.stdout.splitlines()[-1]))


def federate_without_training(sites: int, megabytes: int, folder: Path, rounds: int = 1) -> int:
    """Run a federation whose sites do not train, and return this process's peak memory [bytes]."""
    from client.app import make_app
    from client.contract import Description, LearningPlan, TrainRequest, Update, Weights
    from deploy.simulation.grid import FIRST_NODE, InProcess, LocalGrid, make_contexts
    from privacy.claim import Claim
    from privacy.plan import PrivacyPlan
    from server.clock import VirtualClock
    from server.federation import FederationPlan, federate
    from server.settings import StrategySettings
    from vae.spec import ModelSpec
    from vae.weights import hash_weights

    plan = PrivacyPlan(
        sampling_probability=0.1, steps=1, noise_multiplier=1.0, max_grad_norm=1.0, divisor=1.0, delta=1e-5
    )

    class Idle:
        """A site that answers with an update of the right form, made anew for each request."""

        def __init__(self, name: str) -> None:
            self.name = name

        def describe(self) -> Description:
            return Description(site=self.name)

        def train(self, request: TrainRequest, weights: Weights) -> Update:
            delta = {name: np.full_like(value, 1e-5) for name, value in weights.items()}
            release = plan.release()
            return Update(
                site=self.name,
                run_id=request.run_id,
                round=request.round,
                base_hash=request.base_hash,
                update_hash=hash_weights(delta),
                claim=Claim(site=self.name, unit="patient", delta=1e-5, kind="dp", releases=(release,)),
                delta=delta,
            )

    names = [f"site-{index + 1}" for index in range(sites)]
    contexts = make_contexts({name: FIRST_NODE + index for index, name in enumerate(names)})
    app = make_app(lambda context: Idle(str(context.node_config["site"])))
    grid = LocalGrid(names, InProcess(app, contexts))
    width = megabytes * 2**20 // 4 // (2 * COLUMNS)
    federate(
        grid,
        FederationPlan(
            run_id="bench",
            config_hash="bench",
            site_weights=dict.fromkeys(names, 1.0),
            plans=dict.fromkeys(names, plan),
            model=ModelSpec(family="vae", input_shape=(COLUMNS,), latent_size=1, channels=(width,)),
            sharing="all",
            rounds=rounds,
            learning=LearningPlan(),
            kl_warmup_rounds=0,
            strategy=StrategySettings(name="fedavg"),
            quorum=sites,
        ),
        folder,
        VirtualClock(),
    )
    return peak_bytes()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        print(federate_without_training(int(sys.argv[1]), int(sys.argv[2]), Path(scratch)), flush=True)
