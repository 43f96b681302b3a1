"""A step of private training against a plain one: same model, same patients, one thread, CPU time, taking turns.

Both are whole steps as a site takes them (draw patients, gather records, gradient, optimiser; private: clip each
patient, add noise, round to the grid). All patients are drawn in each step, so that both see equally many records.

CPU time counts the thread that makes noise ahead; the figure of wall time shows what is hidden where a second core is
idle. Private steps take randomness as a hospital's do, so that kernels are chosen by timing them once; those of seeded
training are chosen by shapes, and have a figure of their own.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from privacy.noise import SeededRandomness, SystemRandomness
from privacy.plan import GradEngine, Mechanism, PrivacyPlan
from privacy.training import NoisedOptimiser, train_private, train_unsafe
from privacy.unsafe import NoPrivacy, UnsafeWarning
from tests.benchmarks.figures import Figure, figure, interleaved, ratios
from vae.data.cohort import Cohort
from vae.models import build
from vae.spec import ModelSpec, Upsampling

ENGINES: tuple[GradEngine, ...] = ("vmap", "opacus", "bookkeeping")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model and batch.

    Attributes:
        name: For the table.
        spec: The model.
        patients: Patients of a step, one record each.
        steps: Steps timed at once.
        repeats: Turns.
    """

    name: str
    spec: ModelSpec
    patients: int
    steps: int
    repeats: int


def _spec(
    shape: tuple[int, ...],
    channels: tuple[int, ...],
    *,
    latent: int = 8,
    upsampling: Upsampling = "interpolate",
) -> ModelSpec:
    return ModelSpec(
        family="vae", input_shape=shape, latent_size=latent, channels=channels, upsampling=upsampling
    )


UPSAMPLINGS: tuple[Upsampling, ...] = ("transpose", "interpolate")
CASES = (
    Case(name="table 62-64-32-Z8, B 64", spec=_spec((62,), (64, 32)), patients=64, steps=20, repeats=15),
    Case(name="image 48^2, B 32", spec=_spec((1, 48, 48), (16, 32, 64)), patients=32, steps=1, repeats=9),
    Case(name="volume 32^3, B 8", spec=_spec((1, 32, 32, 32), (16, 32, 64)), patients=8, steps=1, repeats=5),
    *(
        Case(
            name=f"{name}, B {patients}, Z64, {upsampling}",
            spec=_spec(shape, channels, latent=64, upsampling=upsampling),
            patients=patients,
            steps=1,
            repeats=5,
        )
        for name, shape, channels, patients in (
            ("image 64^2", (1, 64, 64), (32, 64, 128, 256), 64),
            ("volume 32^3", (1, 32, 32, 32), (16, 32, 64), 16),
            ("volume 64^3", (1, 64, 64, 64), (16, 32, 64, 128), 4),
        )
        for upsampling in UPSAMPLINGS
    ),
)
QUICK = (
    Case(name=CASES[0].name, spec=CASES[0].spec, patients=64, steps=5, repeats=5),
    Case(name=CASES[1].name, spec=CASES[1].spec, patients=32, steps=1, repeats=3),
)


def measure(*, quick: bool) -> list[Figure]:
    """Return the ratios, and what a plain step takes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnsafeWarning)
            return [made for case in (QUICK if quick else CASES) for made in measure_case(case)]
    finally:
        torch.set_num_threads(threads)


def measure_case(case: Case) -> list[Figure]:
    """Return the figures of one model."""
    parts: dict[str, Callable[[], object]] = {"plain": plain_steps(case)}
    parts |= {engine: private_steps(case, engine) for engine in ENGINES}
    seeded, discrete = "bookkeeping, seeded", "vmap, discrete noise"
    parts[seeded] = private_steps(case, "bookkeeping", randomness="seeded")
    parts[discrete] = private_steps(case, "vmap", mechanism="discrete")
    seconds = interleaved(parts, repeats=case.repeats)
    a_step = [1e3 * each / case.steps for each in seconds["plain"]]
    return [
        figure(f"private_step/{case.name}/plain step", a_step, "ms CPU"),
        *(
            figure(
                f"private_step/{case.name}/{part}", ratios(seconds[part], seconds["plain"]), "x plain step"
            )
            for part in (*ENGINES, seeded, discrete)
        ),
        _wall_ratio(case, parts),
    ]


def _wall_ratio(case: Case, parts: Mapping[str, Callable[[], object]]) -> Figure:
    """Return the ratio of wall times, in turns: noise that is made ahead is hidden by as much as a core is idle."""
    seconds: dict[str, list[float]] = {"plain": [], "bookkeeping": []}
    for _ in range(case.repeats):
        for name, times in seconds.items():
            started = time.perf_counter()
            parts[name]()
            times.append(time.perf_counter() - started)
    return figure(
        f"private_step/{case.name}/bookkeeping, wall time",
        ratios(seconds["bookkeeping"], seconds["plain"]),
        "x plain step",
        f"plain {1e3 * statistics.median(seconds['plain']) / case.steps:.3g} ms",
    )


def _cohort(case: Case) -> Cohort:
    """Return made-up patients with one record each."""
    values = np.random.default_rng(0).random((case.patients, *case.spec.input_shape), dtype=np.float32)
    return Cohort.from_records(
        name="bench", patients=[f"{i:04d}" for i in range(case.patients)], values=values
    )


def plain_steps(case: Case) -> Callable[[], object]:
    """Return what takes the plain steps."""
    model, cohort = build(case.spec, seed=0), _cohort(case)
    plan = NoPrivacy(steps=case.steps, batch_patients=case.patients)
    return lambda: train_unsafe(model, cohort, plan=plan, **_common(case), randomness=_seeded(case))


def private_steps(
    case: Case,
    engine: GradEngine,
    *,
    randomness: Literal["os", "seeded"] = "os",
    mechanism: Mechanism = "independent",
) -> Callable[[], object]:
    """Return what takes the private steps."""
    model, cohort = build(case.spec, seed=0), _cohort(case)
    plan = PrivacyPlan(
        sampling_probability=1.0,
        steps=case.steps,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        divisor=float(case.patients),
        delta=1e-5,
        randomness=randomness,
        grad_engine=engine,
        mechanism=mechanism,
    )

    def steps() -> object:
        fresh = SystemRandomness() if randomness == "os" else _seeded(case)
        return train_private(model, cohort, plan=plan, **_common(case), randomness=fresh)

    return steps


def _seeded(case: Case) -> SeededRandomness:
    """Return the randomness of a case, from its beginning."""
    return SeededRandomness(0, "bench", case.name, 1)


def _common(case: Case) -> dict[str, object]:
    """Return what the private and the plain loop are given alike."""
    return {
        "optimiser": NoisedOptimiser(kind="adam", learning_rate=1e-3),
        "kl_weight": 1.0,
        "latent_size": case.spec.latent_size,
    }
