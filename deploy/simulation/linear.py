"""The linear baselines of a comparison: probabilistic PCA of all patients, without privacy and with.

`linear` pools the records as they are. `linear-dp` costs each patient what the arm `federated-dp` does: every site
releases a noisy mean, the centre averages them, every site releases a noisy spread about that mean, the centre
diagonalises the average. Nothing but the releases leaves a site, so what the centre makes of them costs nothing.

With public data the coordinates are the public cohort's own directions, and the clip norms are taken from it; without,
they are smooth cosines (images) or the columns (tables), and the norms have to be given.

What it does not do: ask a policy or write a ledger. It exists in a simulation, where all sites are at hand, so that a
network that does not beat a straight line cannot hide it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deploy.config import Experiment
from deploy.sections import Linear, Privacy
from deploy.simulation.public import public_cohort
from privacy.linear import FloatArray, LinearPlan, calibrate_linear, release_mean, release_spread
from privacy.noise import SeededRandomness
from server.report import document
from vae.data.cohort import Cohort, SiteData
from vae.tasks.linear import LinearModel, cosine_basis, fit, from_moments
from vae.tasks.score import Reconstruct

PUBLIC_SHARE = 0.95
"""Of public records that a clip norm lets through untouched."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What is known before any site is asked: all of it public.

    Attributes:
        centre: [d].
        basis: [k0, d] with orthonormal rows; None for the records' own coordinates.
        mean_norm: Clip of a record's deviation from the centre, for the mean.
        spread_norm: Likewise, for the spread.
    """

    centre: FloatArray
    basis: FloatArray | None
    mean_norm: float
    spread_norm: float


def linear_baselines(
    experiment: Experiment, sites: Mapping[str, SiteData], cache: Path
) -> dict[str, Reconstruct]:
    """Return arm -> reconstruction of the linear arms that an experiment asks for.

    Args:
        experiment: What was run.
        sites: Every hospital's cohorts.
        cache: Prepared data.
    """
    made: dict[str, Reconstruct] = {}
    cohorts = {site: data.train for site, data in sites.items()}
    if document.LINEAR in experiment.arms:
        first = next(iter(cohorts.values()))
        size = min(experiment.linear.components, math.prod(first.record_shape))
        made[document.LINEAR] = fit(cohorts.values(), num_components=size).reconstruct
    if document.LINEAR_DP in experiment.arms:
        public = public_cohort(experiment, cache, workers=1) if experiment.public is not None else None
        made[document.LINEAR_DP] = private_model(experiment, cohorts, public).reconstruct
    return made


def private_model(
    experiment: Experiment, cohorts: Mapping[str, Cohort], public: Cohort | None
) -> LinearModel:
    """Return the linear model of what the sites release.

    Args:
        experiment: With `privacy.epsilon`.
        cohorts: Site -> training patients.
        public: A public cohort, or None.

    Raises:
        ValueError: the experiment has no target epsilon, or lacks clip norms without public data.
    """
    privacy = experiment.privacy
    if privacy is None or privacy.epsilon is None:
        raise ValueError("linear-dp needs `privacy.epsilon`")
    frame = frame_of(experiment, next(iter(cohorts.values())), public)
    mean_noise, spread_noise = calibrate_linear(
        epsilon=privacy.epsilon, delta=privacy.delta, mean_share=experiment.linear.mean_share
    )
    plans = {
        site: _plan(privacy, site, frame, mean_noise=mean_noise, spread_noise=spread_noise)
        for site in cohorts
    }
    streams = {site: SeededRandomness(experiment.seed, "linear", site) for site in cohorts}
    mean = np.mean(
        [
            release_mean(
                cohorts[site],
                plan=plan,
                centre=frame.centre,
                basis=frame.basis,
                randomness=streams[site],
            )
            for site, plan in plans.items()
        ],
        axis=0,
    )
    # About the mean that was just released: it is public from now on, and nearer to the records than any guess.
    middle = mean if frame.basis is None else frame.centre + (mean - frame.basis @ frame.centre) @ frame.basis
    spreads = [
        release_spread(cohorts[site], plan=plan, centre=middle, basis=frame.basis, randomness=streams[site])
        for site, plan in plans.items()
    ]
    noise = math.sqrt(sum(plan.spread_noise**2 for plan in plans.values())) / len(plans)
    size = min(experiment.linear.components, len(mean))
    found = from_moments(mean, np.mean(spreads, axis=0), num_components=size, noise=noise, basis=frame.basis)
    return replace(found, mean=middle)


def frame_of(experiment: Experiment, like: Cohort, public: Cohort | None) -> Frame:
    """Return what is public before any site is asked.

    Args:
        experiment: Says how many coordinates, and the norms where there are no public data.
        like: A cohort whose records have the shape of all.
        public: A public cohort, or None.

    Raises:
        ValueError: norms are missing.
    """
    linear, shape = experiment.linear, like.record_shape
    width = math.prod(shape)
    if public is not None:
        rows = np.asarray(public.values).reshape(public.num_records, -1).astype(np.float64)
        centre = rows.mean(axis=0)
        size = min(linear.coordinates, width, public.num_records)
        basis = None if size == width else fit([public], num_components=size).components
        return _with_norms(linear, centre, basis, rows)
    if linear.mean_norm is None or linear.spread_norm is None:
        raise ValueError("linear-dp needs `linear.mean_norm` and `linear.spread_norm` without public data")
    middle = 0.5 if experiment.model.output == "sigmoid" else 0.0
    size = min(linear.coordinates, width)
    return Frame(
        centre=np.full(width, middle),
        basis=cosine_basis(shape, size) if len(shape) > 1 and size < width else None,
        mean_norm=linear.mean_norm,
        spread_norm=linear.spread_norm,
    )


def _with_norms(linear: Linear, centre: FloatArray, basis: FloatArray | None, rows: FloatArray) -> Frame:
    """Return a frame whose norms let most public records through, where none are given."""
    apart = rows - centre if basis is None else (rows - centre) @ basis.T
    usual = float(np.quantile(np.linalg.norm(apart, axis=1), PUBLIC_SHARE))
    return Frame(
        centre=centre,
        basis=basis,
        mean_norm=linear.mean_norm or usual,
        spread_norm=linear.spread_norm or usual,
    )


def _plan(privacy: Privacy, site: str, frame: Frame, *, mean_noise: float, spread_noise: float) -> LinearPlan:
    """Return the public constants of a site's two releases."""
    return LinearPlan(
        mean_noise_multiplier=mean_noise,
        spread_noise_multiplier=spread_noise,
        mean_norm=frame.mean_norm,
        spread_norm=frame.spread_norm,
        num_patients=privacy.divisor_of(site) / privacy.sampling_probability,
        max_records_per_patient=privacy.max_records_per_patient,
        randomness="seeded",
    )
