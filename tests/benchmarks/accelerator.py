"""A private step on an accelerator against a plain one: volumes a second, ratio, peak memory; nothing without one.

The batch lies on the device already, so that steps are compared and not file formats. Private: gradient of each
patient, clip, noise of the key stream, grid, optimiser. Plain: the mean gradient and the optimiser. They take turns,
timed by the device's own events.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from privacy.clipping import build_engine
from privacy.deviates import DeviceStream
from privacy.noise import SeededRandomness
from privacy.plan import GradEngine, PrivacyPlan
from privacy.training import noised_mean
from tests.benchmarks.figures import Figure, figure, ratios
from vae.data.cohort import Batch
from vae.models import build
from vae.spec import ModelSpec

PLAN = PrivacyPlan(
    sampling_probability=1.0, steps=1, noise_multiplier=1.0, max_grad_norm=1.0, divisor=8.0, delta=1e-5
)
LATENT = 64


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model and batch.

    Attributes:
        name: For the table.
        shape: Of a record, [C, *S].
        channels: Of the model.
        patients: P, one record each.
    """

    name: str
    shape: tuple[int, ...]
    channels: tuple[int, ...]
    patients: int


CASES = (
    Case(name="image 64^2 B 256", shape=(1, 64, 64), channels=(32, 64, 128, 256), patients=256),
    Case(name="volume 64^3 B 16", shape=(1, 64, 64, 64), channels=(16, 32, 64, 128), patients=16),
    Case(name="volume 96^3 B 8", shape=(1, 96, 96, 96), channels=(16, 32, 64, 128), patients=8),
)
ENGINES: tuple[GradEngine, ...] = ("bookkeeping", "vmap", "opacus")


def measure(*, quick: bool) -> list[Figure]:
    """Return the figures of all cases in float32 and bfloat16; without an accelerator, that they were skipped."""
    if not torch.cuda.is_available():
        return [figure("gpu/skipped", [0.0], "", "torch sees no CUDA device")]
    cases = CASES[:1] if quick else CASES
    return [
        made
        for case in cases
        for precision in ("float32", "bfloat16")
        for made in measure_case(case, precision, repeats=3 if quick else 15)
    ]


def measure_case(case: Case, precision: str, *, repeats: int) -> list[Figure]:
    """Return the figures of one model in one precision."""
    parts: dict[str, Callable[[], None]] = {"plain": _step(case, precision, None)}
    parts |= {engine: _step(case, precision, engine) for engine in ENGINES}
    name = f"gpu/{case.name}, {precision}"
    seconds, peaks, failed = _interleaved(parts, repeats)
    device = torch.cuda.get_device_name()
    made = []
    for part, times in seconds.items():
        rates = [case.patients / each for each in times]
        made.append(figure(f"{name}, {part}", rates, "1/s", f"records a second; {device}"))
        made.append(figure(f"{name}, {part}, peak memory", [peaks[part] / 2**20], "MiB"))
        if part != "plain":
            made.append(figure(f"{name}, {part}, time", ratios(times, seconds["plain"]), "x plain"))
    return made + [figure(f"{name}, {part} fails", [1.0], "", why) for part, why in failed.items()]


def _step(case: Case, precision: str, engine_name: GradEngine | None) -> Callable[[], None]:
    """Return one whole step; `engine_name` None is the plain one."""
    device = torch.device("cuda")
    spec = ModelSpec(family="vae", input_shape=case.shape, latent_size=LATENT, channels=case.channels)
    module = build(spec, seed=1).to(device)
    assert isinstance(module, nn.Module)
    module.train()
    generator = torch.Generator(device).manual_seed(1)
    batch = Batch(
        values=torch.rand((case.patients, *case.shape), generator=generator, device=device),
        covariates=torch.zeros((case.patients, 0), device=device),
        patient=torch.arange(case.patients, device=device),
        num_patients=case.patients,
    )
    latent = torch.randn((case.patients, LATENT), generator=generator, device=device)
    optimiser = torch.optim.SGD(module.parameters(), lr=1e-6)
    noise = DeviceStream(SeededRandomness(1).stream("noise"), device)

    def cast() -> contextlib.AbstractContextManager[object]:
        if precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast("cuda", torch.bfloat16)

    def plain() -> None:
        with cast():
            loss = module(batch.values, batch.covariates, latent, 1.0).mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    if engine_name is None:
        return plain
    engine = build_engine(engine_name)

    def private() -> None:
        with cast():
            clipped = engine.clipped_sum(
                module, batch, latent_noise=latent, kl_weight=1.0, max_grad_norm=PLAN.max_grad_norm
            )
        released = noised_mean(clipped.sum, PLAN, noise)
        for name, parameter in module.named_parameters():
            parameter.grad = released[name].to(parameter)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return private


def _interleaved(
    parts: dict[str, Callable[[], None]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, int], dict[str, str]]:
    """Return seconds and peak bytes of each part, and why those that failed did; each part runs three times before."""
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}
    failed: dict[str, str] = {}
    for name, part in parts.items():
        try:
            for _ in range(3):
                part()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            part()
            torch.cuda.synchronize()
            peaks[name] = torch.cuda.max_memory_allocated() - before
            seconds[name] = []
        except Exception as error:  # noqa: BLE001 - a peer that cannot do it is a figure too
            failed[name] = f"{type(error).__name__}: {error}"[:200]
            torch.cuda.empty_cache()
    for _ in range(repeats):
        for name, times in seconds.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            parts[name]()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
    return seconds, peaks, failed
