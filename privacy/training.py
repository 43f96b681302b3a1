"""Local training of one round: the private loop, and the plain one for comparison.

One frozen `PrivacyPlan` builds the sampler, the clip, the noise *and* the release; nothing else can set any
of them. Order of one step = order in `train_private`: sample patients, make versions of their records (`augmentation`),
sum clipped gradients, add noise, divide by the public divisor, round to the public grid, add the proximal term (a
function of the weights alone), let the optimiser step (`descent`).

Guarantees:
    - What the optimiser sees of the data is the noised sum alone, so weights and optimiser state are
      post-processing.
    - `plan.steps` steps for any data: empty samples and non-finite gradients are steps too.
    - torch's global generator is neither used nor changed; with `SeededRandomness` results are equal in any
      process (with the engine `bookkeeping` up to rounding, unless its weights are small: it times kernels).

What it does not do: write down the cost. Call `Spending.reserve` before, `commit` after.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from privacy.accounting import Release
from privacy.augmentation import with_versions
from privacy.banded import BandedNoise
from privacy.clipping import Batch, GradientEngine, Gradients, build_engine, patient_chunks
from privacy.descent import Descent
from privacy.deviates import AheadStream, Deviates, DeviceStream, noised_on_device, release_into
from privacy.discrete import SCALE, DiscreteGaussian, Lattice, on_lattice
from privacy.errors import PlanError
from privacy.noise import KeyStream, Randomness, grid_spacing, round_to_grid
from privacy.optimiser import Augmentation, NoisedOptimiser, Precision
from privacy.plan import PrivacyPlan
from privacy.sampling import PoissonSampler
from privacy.unsafe import NoPrivacy, warn_unsafe

__all__ = [
    "NoisedOptimiser",
    "Observer",
    "OnStep",
    "Patients",
    "Training",
    "noised_mean",
    "train_private",
    "train_unsafe",
]

# Deviates of a step below which handing them over costs more than it hides.
_WORTH_A_THREAD = 2**15

NoiseSource = Deviates | DeviceStream

OnStep = Callable[[int, float], None]
"""Called with the step (from 0) and the mean loss of the sampled patients: private, for a local log."""

_NO_VERSIONS = Augmentation()

Observer = Callable[[Gradients], None]
"""Called with what a step releases, before the optimiser steps: the noised mean, post-processing of it is free."""


class Patients(Protocol):
    """What training needs of a cohort."""

    @property
    def num_patients(self) -> int:
        """Return n; private."""
        ...

    def batch(
        self,
        patients: npt.NDArray[np.int64],
        *,
        max_records: int | None = None,
        rng: np.random.Generator | None = None,
    ) -> Batch:
        """Return the records of some patients, at most `max_records` random ones of each."""
        ...


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a round of training was.

    Attributes:
        release: What it costs; None without privacy.
        steps_done: Steps; equal to the plan's.
        num_nonfinite: Patient gradients (without privacy: steps) that were not finite and left out; private.
    """

    release: Release | None
    steps_done: int
    num_nonfinite: int = field(repr=False)


def train_private(
    module: nn.Module,
    patients: Patients,
    *,
    plan: PrivacyPlan,
    optimiser: NoisedOptimiser,
    randomness: Randomness,
    kl_weight: float,
    latent_size: int,
    proximal_mu: float = 0.0,
    augmentation: Augmentation = _NO_VERSIONS,
    on_step: OnStep | None = None,
    observe: Observer | None = None,
    engine: GradientEngine | None = None,
    stop_at: float | None = None,
    max_physical_records: int = 256,
    precision: Precision = "float32",
) -> Training:
    """Train `module` in place with patient-level DP-SGD.

    w <- optimiser(w, round((sum_p clip(g_p, C) + N(0, (sigma C)^2)) / divisor) + mu (w - w_base))

    With `plan.mechanism` banded the noise is correlated between steps, and patients take turns (`banded`); with
    discrete sum and noise are integers (`discrete`).

    Args:
        module: `forward(values, covariates, latent_noise, kl_weight)` returns [B]; passed
            `compatible.check_model`.
        patients: The cohort of the site.
        plan: Sets sampling, clipping, noise and accounting.
        optimiser: Sees noised gradients only.
        randomness: A fresh object for each release; its kind has to be the plan's.
        kl_weight: Weight of the KL term, >= 0.
        latent_size: Z.
        proximal_mu: FedProx weight, >= 0; the base is the weights at the call.
        augmentation: Versions of each record that a patient's gradient is averaged over, before its clip.
        on_step: Local log; not called for an empty sample.
        observe: Sees every step's noised mean and nothing else (`audit`).
        engine: Replaces the engine that the plan names: for tests, which break it on purpose.
        stop_at: Deadline on the clock of `time.monotonic` [s], checked before each step.
        max_physical_records: Records computed at once, >= 1; bounds memory, not the batch.
        precision: Of activations; `bf16` computes them under autocast. Norms, clip, sum and noise are as ever.

    Returns:
        The release (`plan.release()`, emitted by the sampler that ran) and local facts.

    Raises:
        PlanError: the randomness is not of the plan's kind, or the optimiser corrects for noise that the plan does
            not have.
        TimeoutError: the deadline passed with steps left. The weights are half trained and must not be released; the
            budget stays reserved, because how far a site got in a given time can depend on its data.

    Guarantees:
        See the module docstring (tests/unit/privacy/test_training.py, tests/statistical/test_noise.py).

    References:
        Abadi et al. 2016, arXiv:1607.00133, algorithm 1; Li et al. 2020 (FedProx), arXiv:1812.06127.
    """
    if randomness.kind != plan.randomness:
        raise PlanError(
            "privacy plan", [f"randomness is {plan.randomness!r}, but {randomness.kind!r} was given"]
        )
    if plan.mechanism == "banded" and optimiser.kind == "adam-corrected":
        problem = "adam-corrected corrects for the same independent noise in every step, and banded has none; use adam"
        raise PlanError("optimiser", [problem])
    engine = engine or build_engine(
        plan.grad_engine,
        max_rows=max_physical_records,
        repeatable=plan.randomness == "seeded",
        lattice=_lattice(module, plan),
    )
    sampler = PoissonSampler(
        num_patients=patients.num_patients,
        sampling_probability=plan.sampling_probability,
        stream=randomness.stream("sampling"),
        bands=plan.bands,
    )
    banded = BandedNoise(steps=plan.steps, bands=plan.bands) if plan.mechanism == "banded" else None
    noise, record_rng, latent_rng = _streams(randomness)
    version_rng = randomness.stream("augmentation").generator()
    noise_std = plan.noise_multiplier * plan.max_grad_norm / plan.divisor
    descent = Descent(module, optimiser, proximal_mu, noise_std=noise_std)
    num_nonfinite = steps_done = 0
    with _train_mode(module), _noise_where(module, noise, plan) as source:
        for step, chosen in enumerate(sampler.samples(plan.steps)):
            _check_deadline(stop_at)
            batch = patients.batch(chosen, max_records=plan.max_records_per_patient, rng=record_rng)
            batch = with_versions(batch, augmentation, version_rng)
            with _activations_in(precision, module):
                clipped = engine.clipped_sum(
                    module,
                    batch,
                    latent_noise=_latent_noise(latent_rng, batch, latent_size),
                    kl_weight=kl_weight,
                    max_grad_norm=plan.max_grad_norm,
                )
            released = noised_mean(clipped.sum, plan, source, banded)
            if observe is not None:
                observe(released)
            descent.step(released)
            num_nonfinite += clipped.num_nonfinite
            steps_done += 1
            counted = len(chosen) - clipped.num_nonfinite
            if on_step is not None and counted > 0:
                on_step(step, clipped.loss_sum / counted)
    return Training(
        release=sampler.release(plan.noise_multiplier, steps_done, neighbouring=plan.neighbouring),
        steps_done=steps_done,
        num_nonfinite=num_nonfinite,
    )


def noised_mean(
    clipped: Mapping[str, Tensor],
    plan: PrivacyPlan,
    noise: NoiseSource,
    banded: BandedNoise | None = None,
) -> Gradients:
    """Return (sum + N(0, (sigma C)^2)) / divisor on the plan's grid: the only view of the data to be used.

    Args:
        clipped: Sum of clipped gradients of each parameter.
        plan: Sets sigma, C, divisor and hence the grid.
        noise: One deviate a coordinate is taken, in the order of `clipped`.
        banded: Correlates the deviates with those of the steps before; given exactly if the plan is banded.

    Returns:
        Float64 tensors of the same names, shapes and devices.

    Raises:
        ValueError: `banded`, or the type of the sums, does not go with the plan.
    """
    if (banded is not None) != (plan.mechanism == "banded"):
        raise ValueError(f"the mechanism is {plan.mechanism}, which the noise is not")
    if plan.mechanism != "discrete" and not all(tensor.is_floating_point() for tensor in clipped.values()):
        raise ValueError(f"the mechanism is {plan.mechanism}, but the sums are in units of a lattice")
    spacing = grid_spacing(
        noise_multiplier=plan.noise_multiplier, max_grad_norm=plan.max_grad_norm, divisor=plan.divisor
    )
    scale = plan.noise_multiplier * plan.max_grad_norm
    on_device = any(tensor.is_cuda for tensor in clipped.values())
    if isinstance(noise, DeviceStream) or (on_device and isinstance(noise, KeyStream)):
        return noised_on_device(
            clipped, noise, scale=scale, divisor=plan.divisor, spacing=spacing, banded=banded
        )
    released = noise.normal(sum(tensor.numel() for tensor in clipped.values()))
    if banded is not None:
        released = banded.correlate(torch.from_numpy(released)).numpy()
    parts, first = {}, 0
    for name, tensor in clipped.items():
        own = released[first : first + tensor.numel()]
        total = tensor.detach().flatten().cpu()
        if plan.mechanism == "discrete":
            own[:] = round_to_grid(on_lattice(total, own) * (scale / SCALE) / plan.divisor, spacing)
        else:
            sums = total.to(torch.float64).numpy()
            release_into(own, sums, scale=scale, divisor=plan.divisor, spacing=spacing)
        parts[name] = torch.from_numpy(own).reshape(tensor.shape).to(tensor.device)
        first += tensor.numel()
    return parts


def train_unsafe(
    module: nn.Module,
    patients: Patients,
    *,
    plan: NoPrivacy,
    optimiser: NoisedOptimiser,
    randomness: Randomness,
    kl_weight: float,
    latent_size: int,
    proximal_mu: float = 0.0,
    augmentation: Augmentation = _NO_VERSIONS,
    on_step: OnStep | None = None,
    max_physical_records: int = 256,
) -> Training:
    """Train `module` in place without privacy: shuffled epochs over patients.

    The loss is the mean over patients of their mean losses. Same estimand, arguments and streams as
    `train_private`, so that the difference between the two arms is privacy. A step whose gradient is not
    finite is counted and left out. Warns with `UnsafeWarning`.

    Raises:
        ValueError: there is no patient.
    """
    warn_unsafe()
    if patients.num_patients < 1:
        raise ValueError("training without privacy needs at least one patient")
    order_rng = randomness.stream("sampling").generator()
    _, _, latent_rng = _streams(randomness)
    version_rng = randomness.stream("augmentation").generator()
    descent = Descent(module, optimiser, proximal_mu)
    num_nonfinite = 0
    batches = _shuffled(patients.num_patients, plan.batch_patients, order_rng)
    with _train_mode(module):
        for step in range(plan.steps):
            batch = with_versions(patients.batch(next(batches)), augmentation, version_rng)
            noise = _latent_noise(latent_rng, batch, latent_size)
            gradients, loss = _mean_gradient(module, batch, noise, kl_weight, max_physical_records)
            if all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values()):
                descent.step(gradients)
            else:
                descent.skip()
                num_nonfinite += 1
            if on_step is not None:
                on_step(step, loss)
    return Training(release=None, steps_done=plan.steps, num_nonfinite=num_nonfinite)


@contextlib.contextmanager
def _train_mode(module: nn.Module) -> Iterator[None]:
    """Put every submodule in train mode for the time of the block."""
    before = [(part, part.training) for part in module.modules()]
    module.train()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


def _lattice(module: nn.Module, plan: PrivacyPlan) -> Lattice | None:
    """Return the lattice of a discrete plan."""
    if plan.mechanism != "discrete":
        return None
    return Lattice(
        noise_multiplier=plan.noise_multiplier,
        max_grad_norm=plan.max_grad_norm,
        num_coordinates=sum(tensor.numel() for tensor in module.parameters() if tensor.requires_grad),
    )


def _noise_where(
    module: nn.Module, noise: KeyStream, plan: PrivacyPlan
) -> contextlib.AbstractContextManager[NoiseSource]:
    """Return the stream's deviates, made ahead where the module is on an accelerator or large."""
    trainable = [tensor for tensor in module.parameters() if tensor.requires_grad]
    if plan.mechanism != "discrete" and trainable and trainable[0].device.type == "cuda":
        return DeviceStream(noise, trainable[0].device)
    count = sum(tensor.numel() for tensor in trainable)
    deviates: Deviates = DiscreteGaussian(noise) if plan.mechanism == "discrete" else noise
    if count < _WORTH_A_THREAD:
        return contextlib.nullcontext(deviates)
    return AheadStream(deviates, count=count, steps=plan.steps)


def _activations_in(precision: Precision, module: nn.Module) -> contextlib.AbstractContextManager[object]:
    """Return autocast for one step: what it keeps of the weights must not outlive them."""
    if precision == "float32":
        return contextlib.nullcontext()
    device = next(module.parameters()).device
    return torch.autocast(device.type, dtype=torch.bfloat16)


def _check_deadline(stop_at: float | None) -> None:
    """Refuse to start another step after the deadline; the message tells nothing of the data or the progress."""
    if stop_at is not None and time.monotonic() >= stop_at:
        raise TimeoutError("the maximum run time is over before all steps are done; nothing may be released")


def _streams(randomness: Randomness) -> tuple[KeyStream, np.random.Generator, np.random.Generator]:
    """Return the streams of noise, of record subsets and of latent noise."""
    return (
        randomness.stream("noise"),
        randomness.stream("records").generator(),
        randomness.stream("latent").generator(),
    )


def _latent_noise(rng: np.random.Generator, batch: Batch, latent_size: int) -> Tensor:
    """Return [B, Z] standard normal deviates."""
    return torch.from_numpy(rng.standard_normal((batch.values.shape[0], latent_size), dtype=np.float32))


def _shuffled(num_patients: int, size: int, rng: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    """Yield batches of patients, epoch after epoch; the last of an epoch may be short."""
    while True:
        order = rng.permutation(num_patients).astype(np.int64)
        for start in range(0, num_patients, size):
            yield order[start : start + size]


def _mean_gradient(
    module: nn.Module, batch: Batch, latent_noise: Tensor, kl_weight: float, max_rows: int
) -> tuple[Gradients, float]:
    """Return gradient and value of the mean over patients of their mean losses."""
    trainable = {name: tensor for name, tensor in module.named_parameters() if tensor.requires_grad}
    total = 0.0
    for tensor in trainable.values():
        tensor.grad = None
    for rows in patient_chunks(batch, latent_noise, max_rows, like=next(iter(trainable.values()))):
        losses = rows.weight * module(rows.values, rows.covariates, rows.noise, kl_weight)
        loss = losses.sum() / batch.num_patients
        loss.backward()
        total += float(loss.detach())
    return {
        name: torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        for name, tensor in trainable.items()
    }, total
