"""One round at a site: base weights, cohort and plan in, change of the weights out. Joins `vae` with `privacy`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from client.contract import LearningPlan, Plan, Weights
from client.subspace import to_tensors
from privacy.accounting import Release
from privacy.noise import Randomness
from privacy.plan import PrivacyPlan
from privacy.subspace import within
from privacy.training import train_private, train_unsafe
from vae.data.cohort import Cohort
from vae.models.protocol import Vae
from vae.spec import Sharing, Trainable
from vae.weights import load_into, to_numpy

# Records that fit where one does with a gradient of its own.
_WITHOUT_GRADIENTS = 4


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one round of local training leaves behind, all of it at the site.

    Attributes:
        delta: Change of the shared parameters; the only part that may leave.
        local: Parameters that the sharing keeps at the site, after training.
        release: What the update cost, None without privacy.
        num_nonfinite: Patient gradients that counted as zero; never leaves.
    """

    delta: Weights
    local: Weights
    release: Release | None
    num_nonfinite: int


@contextlib.contextmanager
def training_only(model: nn.Module, which: Trainable) -> Iterator[None]:
    """Freeze all parameters but some for the time of the block: gradients, clip and noise are of those alone.

    Costs no privacy: which ones is a public constant. Afterwards every parameter is trainable or not as before.

    Args:
        model: A `Vae`.
        which: What may move.
    """
    names = cast(Vae, model).trainable_names(which)
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name in names)
        yield
    finally:
        for parameter, trainable in before:
            parameter.requires_grad_(trainable)


def train_round(
    model: nn.Module,
    cohort: Cohort,
    base: Weights,
    local: Weights,
    *,
    sharing: Sharing,
    plan: Plan,
    learning: LearningPlan,
    basis: Weights | None = None,
    randomness: Randomness,
    physical_records: int = 64,
    stop_at: float | None = None,
) -> Round:
    """Train from the base weights and return the change.

    Args:
        model: Built from the request's specification; its parameters are overwritten.
        cohort: The training patients.
        base: The shared weights of the request, exactly the names that `sharing` shares.
        local: This site's own values of all other parameters.
        sharing: Which parameters travel.
        plan: Privacy of the update; sets sampler, clip, noise and release together.
        learning: Optimiser and its constants.
        basis: Directions of `learning.subspace`, checked (`client.subspace`); None without.
        randomness: Sampling, noise and latent deviates all come from it.
        physical_records: Records whose gradients are in memory at a time, four times as many without privacy; does
            not change the result beyond rounding.
        stop_at: Private training ends with `TimeoutError` at this time of `time.monotonic` [s]; None: never.

    Raises:
        WeightsError: base and local together are not exactly the model's parameters.
        ValueError: the plan asks for a subspace and there is no basis, or the other way round.
    """
    if bool(learning.subspace) != bool(basis):
        raise ValueError("learning.subspace and basis go together")
    load_into(model, {**base, **local})
    optimiser = learning.to_optimiser()
    latent_size = cast(Vae, model).spec.latent_size
    patients = cohort.as_records() if isinstance(plan, PrivacyPlan) and plan.unit == "record" else cohort
    release: Release | None = None
    nonfinite = 0
    with training_only(model, learning.trainable), _moving_in(model, basis) as trained:
        if isinstance(plan, PrivacyPlan):
            done = train_private(
                trained,
                patients,
                plan=plan,
                optimiser=optimiser,
                randomness=randomness,
                kl_weight=learning.kl_weight,
                proximal_mu=learning.proximal_mu,
                augmentation=learning.to_augmentation(),
                latent_size=latent_size,
                max_physical_records=physical_records,
                stop_at=stop_at,
                precision=learning.precision,
            )
            release, nonfinite = done.release, done.num_nonfinite
        else:
            train_unsafe(
                trained,
                patients,
                plan=plan,
                optimiser=optimiser,
                randomness=randomness,
                kl_weight=learning.kl_weight,
                proximal_mu=learning.proximal_mu,
                augmentation=learning.to_augmentation(),
                latent_size=latent_size,
                max_physical_records=_WITHOUT_GRADIENTS * physical_records,
            )
    shared = cast(Vae, model).shared_names(sharing)
    after = to_numpy(model, sorted(name for name, _ in model.named_parameters()))
    return Round(
        delta={name: (after[name] - base[name]).astype(np.float32) for name in sorted(shared)},
        local={name: value for name, value in after.items() if name not in shared},
        release=release,
        num_nonfinite=nonfinite,
    )


def _moving_in(model: nn.Module, basis: Weights | None) -> contextlib.AbstractContextManager[nn.Module]:
    """Return what is trained: the model, or its place in a subspace."""
    return contextlib.nullcontext(model) if not basis else within(model, to_tensors(basis))


def device_of(model: nn.Module) -> torch.device:
    """Return where the parameters of a model lie."""
    return next(model.parameters()).device


def local_losses(
    model: nn.Module,
    cohort: Cohort,
    *,
    kl_weight: float,
    max_patients: int = 64,
    physical_records: int = 64,
) -> dict[str, float]:
    """Return mean loss parts over the first patients, for the site's own diary: never sent.

    Deterministic: the posterior mean is decoded (latent noise zero). `physical_records` bounds memory, as in
    `train_round`.
    """
    count = min(cohort.num_patients, max_patients)
    batch = cohort.batch(np.arange(count))
    vae = cast(Vae, model)
    device = device_of(model)
    size = _WITHOUT_GRADIENTS * physical_records
    losses: dict[str, list[Tensor]] = {}
    for start in range(0, max(1, batch.num_records), size):
        values, covariates = (
            each[start : start + size].to(device) for each in (batch.values, batch.covariates)
        )
        zeros = torch.zeros(len(values), vae.spec.latent_size, device=device)
        with torch.no_grad():
            loss = vae.per_sample_loss(values, covariates, latent_noise=zeros, kl_weight=kl_weight)
        for name, part in {"loss": loss.total, **loss.parts}.items():
            losses.setdefault(name, []).append(part)
    return {name: float(torch.cat(parts).mean()) for name, parts in losses.items()}
