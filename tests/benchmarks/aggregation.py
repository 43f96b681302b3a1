"""Aggregation in bytes a second, against a memory copy of the same size: one thread, CPU time, taking turns."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable

import numpy as np
from flwr.app import Message, MessageType, RecordDict

from client.contract import LearningPlan, TrainRequest, Update, Weights, encode_update, encode_weights
from deploy.simulation.grid import identify
from privacy.claim import Claim
from privacy.plan import PrivacyPlan
from server.admission import Admission, Expectation
from server.aggregate import WeightedMean
from tests.benchmarks.federation import ROOT
from tests.benchmarks.figures import Figure, figure, interleaved, peak_bytes, ratios
from vae.spec import ModelSpec
from vae.weights import hash_weights

TENSORS = 8
PLAN = PrivacyPlan(
    sampling_probability=0.1, steps=5, noise_multiplier=1.0, max_grad_norm=1.0, divisor=10.0, delta=1e-5
)


def measure(*, quick: bool) -> list[Figure]:
    """Return bytes a second of each stage, how many copies of memory it costs, and the peak of a whole round's mean."""
    megabytes, updates = (10, 8) if quick else (50, 64)
    figures = measure_size(megabytes=megabytes, repeats=5 if quick else 11)
    return [*figures, measure_peak(megabytes=megabytes, updates=updates)]


def measure_peak(*, megabytes: int, updates: int) -> Figure:
    """Return how far a fresh process grows from one update in memory to the mean of many, in models."""
    command = [sys.executable, "-m", "tests.benchmarks.aggregation", str(megabytes), str(updates)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    grown = int(done.stdout.split()[-1]) / (megabytes * 2**20)
    return figure(
        f"aggregation/{megabytes} MB/{updates} updates, peak", [grown], "models", "beside one update"
    )


def growth_bytes(megabytes: int, updates: int) -> int:
    """Return by how much this process grows while it takes the mean of some updates [bytes]."""
    delta = some_update(megabytes).delta
    mean = WeightedMean()
    mean.begin({name: value[:1] for name, value in delta.items()})  # loads what loads lazily
    before = peak_bytes()
    mean.begin(delta)
    for index in range(updates):
        mean.add(f"site-{index}", 1.0, delta)
    mean.finish()
    return peak_bytes() - before


def measure_size(*, megabytes: int, repeats: int) -> list[Figure]:
    """Return the figures of updates of one size."""
    update = some_update(megabytes)
    size = sum(array.nbytes for array in update.delta.values())
    parts = _parts(update)
    seconds = interleaved(parts, repeats=repeats)
    made = []
    for name in parts:
        speeds = [size / each / 1e9 for each in seconds[name]]
        made.append(figure(f"aggregation/{megabytes} MB/{name}", speeds, "GB/s"))
        if name != "memory copy":
            against = ratios(seconds[name], seconds["memory copy"])
            made.append(figure(f"aggregation/{megabytes} MB/{name}, time", against, "x memory copy"))
    return made


def some_update(megabytes: int) -> Update:
    """Return an honest update of made-up values."""
    rng = np.random.default_rng(0)
    size = megabytes * 2**20 // 4 // TENSORS
    delta: Weights = {f"layer{i}": 1e-4 * rng.standard_normal(size, dtype=np.float32) for i in range(TENSORS)}
    claim = Claim(site="site-1", unit="patient", delta=1e-5, kind="dp", releases=(PLAN.release(),))
    return Update(
        site="site-1",
        run_id="bench",
        round=1,
        base_hash="0" * 64,
        update_hash=hash_weights(delta),
        claim=claim,
        delta=delta,
    )


def _parts(update: Update) -> dict[str, Callable[[], object]]:
    """Return the stages that an update goes through at the server, and the copy that they are compared with."""
    source = np.concatenate(list(update.delta.values()))
    target = np.empty_like(source)
    admission, reply, expected = Admission(max_update_norm=100.0), *_reply(update)
    numbers = itertools.count()
    mean, both = WeightedMean(), WeightedMean()
    mean.begin(update.delta)
    both.begin(update.delta)

    def admit_and_add() -> None:
        both.add(f"site-{next(numbers)}", 1.0, admission.check(reply, expected).delta)

    return {
        "memory copy": lambda: np.copyto(target, source),
        "weighted mean": lambda: mean.add(f"site-{next(numbers)}", 1.0, update.delta),
        "hash (SHA-256)": lambda: hash_weights(update.delta),
        "admission": lambda: admission.check(reply, expected),
        "admission and weighted mean": admit_and_add,
        "encode an update": lambda: encode_weights(update.delta),
    }


def _reply(update: Update) -> tuple[Message, Expectation]:
    """Return the update as a message, and what the server expects."""
    identify(1)
    size = next(iter(update.delta.values())).size
    request = TrainRequest(
        run_id=update.run_id,
        round=update.round,
        base_hash=update.base_hash,
        model=ModelSpec(family="vae", input_shape=(size,), latent_size=1, channels=(1,)),
        sharing="all",
        plan=PLAN,
        learning=LearningPlan(),
    )
    asked = Message(RecordDict(), 2, MessageType.TRAIN)
    asked.metadata.__dict__["_message_id"] = "bench"
    return Message(encode_update(update), reply_to=asked), Expectation.of(update.site, request, update.delta)


if __name__ == "__main__":
    print(growth_bytes(int(sys.argv[1]), int(sys.argv[2])), flush=True)
