"""What an attacker makes of a trained VAE: scores of patients, and how near its samples come to their records.

    patient_scores(model, cohort, ...)     [P], higher where the model reconstructs a patient better
    sample_records(model, covariates, ...) [N, C, *S], generated from the prior
    nearest_patients(samples, cohort)      distance of each sample to the nearest record, and whose record it is

The patient is the unit throughout: an attacker who wants to know whether somebody took part has all their records.
What is made of the numbers (rates, intervals) is `privacy.membership`, which knows no model.

What it does not do: train reference models (score the same cohort with each and stack), or protect anything: scores
and distances are computed from raw records and stay where those are.

References:
    Hilprecht, Haerterich, Bernau 2019, arXiv:1906.03006 (reconstruction attack on VAEs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import nn

from vae.data.cohort import Cohort, FloatArray, IntArray
from vae.metrics import Doubles
from vae.models.protocol import Vae

Part = Literal["elbo", "reconstruction"]

BATCH_SIZE = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Nearest:
    """The nearest record of a cohort to each of N samples; private.

    Attributes:
        distance: [N] float64, Euclidean over all values of a record [units of the records].
        patient: [N] int64, whose record it is: an index of the cohort.
    """

    distance: Doubles
    patient: IntArray


def patient_scores(
    model: Vae,
    cohort: Cohort,
    *,
    seed: int,
    num_draws: int = 8,
    kl_weight: float = 1.0,
    part: Part = "elbo",
) -> Doubles:
    """Return each patient's mean evidence lower bound, over their records and over draws of the latent.

    score_p = -mean_{records r of p} mean_{draws z ~ q(z | x_r)} loss(x_r, z)

    Args:
        model: In evaluation mode or not: it must not depend on it.
        cohort: P patients.
        seed: Of the latent noise; equal seeds give models the same draws, which calibration profits from.
        num_draws: >= 1.
        kl_weight: Weight of the KL term, >= 0; of no effect on `reconstruction`.
        part: `elbo`, or `reconstruction`: the log likelihood under the decoder alone, without the KL term.

    Returns:
        [P] float64 nats; higher means better known.
    """
    if num_draws < 1:
        raise ValueError(f"num_draws must be >= 1, got {num_draws}")
    rng = np.random.default_rng(seed)
    losses = np.zeros(cohort.num_records)
    for start in range(0, cohort.num_records, BATCH_SIZE):
        rows = slice(start, start + BATCH_SIZE)
        losses[rows] = _losses(
            model, cohort, rows, rng=rng, num_draws=num_draws, kl_weight=kl_weight, part=part
        )
    counts = np.diff(cohort.offsets)
    return np.asarray(-np.add.reduceat(losses, cohort.offsets[:-1]) / counts)


def sample_records(model: Vae, covariates: FloatArray, *, seed: int) -> FloatArray:
    """Return the decoder's mean for latents from the prior: what anybody who holds the model can generate.

    Args:
        model: As above.
        covariates: [N, K] of the samples; public ones, or of held-out patients. K may be 0.
        seed: Of the latents.

    Returns:
        [N, C, *S] float32.
    """
    rng = np.random.default_rng(seed)
    device = _device(model)
    parts = []
    for start in range(0, len(covariates), BATCH_SIZE):
        given = torch.from_numpy(np.array(covariates[start : start + BATCH_SIZE], np.float32)).to(device)
        shape = (len(given), model.spec.latent_size)
        latent = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(device)
        with torch.no_grad():
            parts.append(model.decode(latent, given).cpu().numpy())
    return np.concatenate(parts) if parts else np.zeros((0, *model.spec.input_shape), np.float32)


def nearest_patients(samples: FloatArray, cohort: Cohort) -> Nearest:
    """Return the nearest patient of each sample: the one with the nearest record.

    More records come nearer by chance alone, so compare cohorts of equally many, drawn alike.

    Args:
        samples: [N, C, *S].
        cohort: P patients with records of that shape.

    Raises:
        ValueError: the shapes differ.
    """
    if samples.shape[1:] != cohort.record_shape:
        raise ValueError(f"samples must be [N, *{cohort.record_shape}], got {list(samples.shape)}")
    flat = samples.reshape(len(samples), -1)
    distance, record = np.full(len(samples), np.inf), np.zeros(len(samples), np.int64)
    for start in range(0, cohort.num_records, BATCH_SIZE):
        values = np.asarray(cohort.values[start : start + BATCH_SIZE])
        # Differences, not expanded squares: a copy must have distance 0 and not the rounding of its norm.
        between = cdist(flat, values.reshape(len(values), -1))
        closest = between.argmin(axis=1)
        here = between[np.arange(len(flat)), closest]
        record = np.where(here < distance, start + closest, record)
        distance = np.minimum(here, distance)
    owner = np.repeat(np.arange(cohort.num_patients, dtype=np.int64), np.diff(cohort.offsets))
    return Nearest(distance=distance, patient=owner[record])


def _losses(
    model: Vae,
    cohort: Cohort,
    rows: slice,
    *,
    rng: np.random.Generator,
    num_draws: int,
    kl_weight: float,
    part: Part,
) -> Doubles:
    """Return the mean loss over draws of some records."""
    device = _device(model)
    values, covariates = (
        torch.from_numpy(np.array(array[rows], np.float32)).to(device)
        for array in (cohort.values, cohort.covariates)
    )
    total = np.zeros(len(values))
    for _ in range(num_draws):
        shape = (len(values), model.spec.latent_size)
        noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(device)
        with torch.no_grad():
            loss = model.per_sample_loss(values, covariates, latent_noise=noise, kl_weight=kl_weight)
        chosen = loss.total if part == "elbo" else loss.parts["reconstruction"]
        total += chosen.cpu().numpy().astype(np.float64)
    return total / num_draws


def _device(model: Vae) -> torch.device:
    """Return where the model lives; the CPU for one without parameters."""
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    first = next(parameters, None)
    return torch.device("cpu") if first is None else first.device
