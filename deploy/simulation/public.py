"""The public start of a run: weights trained on a public cohort, before any site is asked for anything.

Made once and kept beside the prepared data, named by everything that decides them: runs that differ in epsilon, noise
or sites start from the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from client.contract import Weights
from deploy.config import Experiment
from deploy.public import Ds030Data, Public
from deploy.sections import Faults
from deploy.simulation.sites import prepare
from privacy.noise import SeededRandomness
from privacy.optimiser import NoisedOptimiser, Schedule
from privacy.training import train_unsafe
from privacy.unsafe import NoPrivacy, UnsafeWarning
from vae.data.cohort import Cohort, concatenate
from vae.errors import DataError
from vae.models import build, signature_of
from vae.models.initialisation import centre_output
from vae.spec import ModelSpec
from vae.weights import load, save, to_numpy

DS030 = "ds030"


def public_cohort(experiment: Experiment, cache: Path, *, workers: int) -> Cohort:
    """Return the public training patients, all in one cohort.

    Args:
        experiment: With a `public` section.
        cache: Prepared data.
        workers: Processes that make or decode what is not there yet.

    Raises:
        DataError: the data cannot be used, or descend from the same founders as a site's.
        FetchError: they cannot be obtained.
        ValueError: the experiment has no `public` section.
    """
    _require_other_founders(experiment)
    sites = public_sites(experiment, cache, workers=workers)
    return sites[DS030] if DS030 in sites else concatenate(sites.values(), name="public")


def public_sites(experiment: Experiment, cache: Path, *, workers: int) -> dict[str, Cohort]:
    """Return the public training patients by the hospital they are of; nothing of the experiment's sites is looked at.

    Args:
        experiment: With a `public` section.
        cache: Prepared data.
        workers: Processes that make or decode what is not there yet.

    Raises:
        DataError: the data cannot be used.
        FetchError: they cannot be obtained.
        ValueError: the experiment has no `public` section.
    """
    public = _section(experiment)
    if isinstance(public.data, Ds030Data):
        from vae.data.abide import AbideSpec, public_reference

        fields = public.data.model_dump(exclude={"kind"})
        return {DS030: public_reference(AbideSpec(**fields), cache=cache)}
    own = experiment.model_copy(
        update={"data": public.data, "public": None, "budget": None, "faults": Faults()}
    )
    return {site: data.train for site, data in prepare(own, cache, workers=workers).items()}


def warm_start(
    experiment: Experiment,
    spec: ModelSpec,
    cache: Path,
    *,
    workers: int = 1,
    note: Callable[[str], None] = lambda _: None,
) -> Weights:
    """Return the weights that every arm starts from: trained on the public cohort, or read back.

    The decoder's bias is set to the public mean first. The result is a function of the arguments alone.

    Args:
        experiment: With a `public` section.
        spec: The model.
        cache: Where prepared data and the weights lie.
        workers: As in `public_cohort`.
        note: Told what is being done, if it takes time.

    Raises:
        DataError: as `public_cohort`, or the records do not fit the model.
        ValueError: the experiment has no `public` section.
    """
    public = _section(experiment)
    note(f"public data: {public.data.kind}, {public.steps} steps before round 1")
    cohort = public_cohort(experiment, cache, workers=workers)
    return start_on(cohort, experiment, spec, cache)


def start_on(
    cohort: Cohort, experiment: Experiment, spec: ModelSpec, cache: Path, *, part: str = ""
) -> Weights:
    """Return weights trained on a public cohort as the `public` section says, or read back; see `warm_start`.

    Args:
        cohort: The public patients.
        experiment: With a `public` section.
        spec: The model.
        cache: Where the weights lie.
        part: Names the part of the public data, where it is not all of them.

    Raises:
        DataError: the records do not fit the model.
        ValueError: the experiment has no `public` section.
    """
    public = _section(experiment)
    decided_by = {
        "public": json.loads(public.model_dump_json()),
        "model": json.loads(spec.to_json()),
        "seed": experiment.seed,
        **({"part": part} if part else {}),
    }
    key = hashlib.sha256(json.dumps(decided_by, sort_keys=True).encode()).hexdigest()
    path = cache / "public" / f"{key[:32]}.safetensors"
    _require_fit(cohort, spec)
    identity = {"decided_by": key, "patients": cohort.fingerprint()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(
        path.with_suffix(".lock")
    ):  # runs of a study begin together: one trains, the others wait and read
        if path.exists():
            weights, facts = load(path, signature_of(spec))
            if facts == identity:
                return weights
        weights = _train(cohort, public, spec, seed=experiment.seed)
        save(path, weights, identity)
    return weights


def _section(experiment: Experiment) -> Public:
    """Return the section."""
    if experiment.public is None:
        raise ValueError("the experiment has no `public` section")
    return experiment.public


def _train(cohort: Cohort, public: Public, spec: ModelSpec, *, seed: int) -> Weights:
    """Return the weights after plain training."""
    model = build(spec, seed=seed)
    centre_output(model, _mean(cohort, spec))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsafeWarning)  # there is nothing to protect in public data
        train_unsafe(
            model,
            cohort,
            plan=NoPrivacy(steps=public.steps, batch_patients=public.batch_patients),
            optimiser=NoisedOptimiser(
                kind="adam",
                learning_rate=public.learning_rate,
                schedule=Schedule(kind=public.schedule, total_steps=max(1, public.steps)),
            ),
            randomness=SeededRandomness(seed, "public"),
            kl_weight=spec.beta,
            latent_size=spec.latent_size,
        )
    return to_numpy(model, [name for name, _, _ in signature_of(spec)])


def _mean(cohort: Cohort, spec: ModelSpec) -> torch.Tensor:
    """Return the mean of each channel, or column."""
    axes = (0, *range(2, 1 + len(spec.input_shape))) if spec.is_image else (0,)
    return torch.from_numpy(np.asarray(cohort.values).mean(axis=axes, dtype=np.float64)).float()


def _require_fit(cohort: Cohort, spec: ModelSpec) -> None:
    """Refuse public records that the sites' model cannot take."""
    if cohort.record_shape != spec.input_shape:
        raise DataError(
            f"public.data: its records have shape {list(cohort.record_shape)}, those of the sites "
            f"{list(spec.input_shape)}; prepare both alike (size, channels, slab, features)"
        )
    if spec.num_covariates not in (0, len(cohort.covariate_names)):
        raise DataError(
            f"public.data: has {len(cohort.covariate_names)} covariates, the sites {spec.num_covariates}; "
            "one model needs the same ones, in one order"
        )


def _require_other_founders(experiment: Experiment) -> None:
    """Refuse a public phantom that has a founder of a private one under another name or in another folder."""
    public, private = _section(experiment).data, experiment.data
    if public.kind != "phantom" or private.kind != "phantom":
        return
    from vae.data.phantom.founder import founder_digests

    theirs = {digest: name for name, digest in founder_digests(private.to_spec()).items()}
    for name, digest in founder_digests(public.to_spec()).items():
        if digest in theirs:
            raise DataError(
                f"public.data: founder {name} is the same brain as the sites' founder {theirs[digest]}; people of "
                "both would be relatives: use other founders"
            )
