"""From trained weights to the rows of the report: every arm through the same tasks, on the same test patients."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from client.contract import Weights
from server.report import document
from server.report.document import DifferenceRow, LatentUse, ResultRow
from server.report.slices import Panels
from vae.data.cohort import FloatArray, SiteData
from vae.models import build
from vae.models.autoencoder import GaussianVae
from vae.objectives import active_units, kl_per_latent
from vae.spec import ModelSpec
from vae.tasks.anomaly import (
    DEFAULT_SETTINGS,
    Difference,
    Result,
    compare,
    everywhere,
    predict_mean,
    score,
    summarise,
)
from vae.tasks.panels import panels
from vae.tasks.score import AnomalySettings, Reconstruct, Scores
from vae.weights import load_into

OWN = document.alone(document.OWN_PATIENTS)
MAX_ALONE_ARMS = 6
_COMPARED = (document.FEDERATED_DP, document.FEDERATED, document.CENTRALISED)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A trained arm.

    Attributes:
        name: As in the report.
        weights: Site -> full weights of the model that judges its patients; the same object where it is one model.
    """

    name: str
    weights: Mapping[str, Weights]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Rows for the report."""

    results: tuple[ResultRow, ...]
    differences: tuple[DifferenceRow, ...]


def model_of(spec: ModelSpec, weights: Weights) -> GaussianVae:
    """Return a model with the given weights, ready to evaluate."""
    model = build(spec, seed=0)
    load_into(model, weights)
    return model.eval()


def reconstructor(model: GaussianVae) -> Reconstruct:
    """Return the model's pseudo-healthy reconstruction: the decoder's mean at the posterior's mean."""

    def reconstruct(values: FloatArray, covariates: FloatArray) -> FloatArray:
        with torch.no_grad():
            given = torch.from_numpy(np.array(covariates, np.float32))
            posterior = model.encode(torch.from_numpy(np.array(values, np.float32)), given)
            decoded: FloatArray = model.decode(posterior.mean, given).numpy()
            return decoded

    return reconstruct


def judge(
    arms: Sequence[Arm],
    spec: ModelSpec,
    sites: Mapping[str, SiteData],
    *,
    seed: int,
    num_bootstrap: int,
    with_mean: bool = True,
    settings: AnomalySettings = DEFAULT_SETTINGS,
) -> Judgement:
    """Return all arms' metrics with intervals, and the paired differences that the verdict needs.

    Args:
        arms: Trained arms.
        spec: Their model.
        sites: Test data of every site.
        seed: Of the bootstrap.
        num_bootstrap: Resamples.
        with_mean: Include the baselines that predict the mean training record: of all sites, and of each its own.
        settings: How scores are made from residuals.
    """
    scored: dict[str, Scores] = {}
    if with_mean:
        mean = everywhere(predict_mean([data.train for data in sites.values()]), sites)
        own = {site: predict_mean([data.train]) for site, data in sites.items()}
        for name, baseline in ((document.MEAN, mean), (document.SITE_MEAN, own)):
            scored[name] = score(name, baseline, sites, settings=settings)
    for arm in arms:
        scored[arm.name] = score(arm.name, _reconstructors(arm, spec), sites, settings=settings)
    results = [
        row for scores in scored.values() for row in summarise(scores, seed=seed, num_bootstrap=num_bootstrap)
    ]
    differences = [
        row
        for arm, other in _pairs(tuple(scored))
        for row in compare(scored[arm], scored[other], seed=seed, num_bootstrap=num_bootstrap)
    ]
    return Judgement(
        results=tuple(_result(row) for row in results),
        differences=tuple(_difference(row) for row in differences),
    )


def latent_use(spec: ModelSpec, weights: Weights, sites: Mapping[str, SiteData], round_: int) -> LatentUse:
    """Return how much each latent is used on the first test patients of every site."""
    model = model_of(spec, weights)
    batches = [data.test.batch(np.arange(min(16, data.test.num_patients))) for data in sites.values()]
    with torch.no_grad():
        posteriors = [model.encode(batch.values, batch.covariates) for batch in batches]
        kl = torch.cat([kl_per_latent(posterior) for posterior in posteriors]).mean(dim=0)
        means = torch.cat([posterior.mean for posterior in posteriors])
    return LatentUse(round=round_, kl_per_latent=tuple(kl.tolist()), active_units=active_units(means))


class LatentLog:
    """Use of latents after some rounds, in a file, so that a resumed run still shows the rounds before the kill."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, use: LatentUse) -> None:
        """Append one round."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(use)) + "\n")

    def read(self) -> tuple[LatentUse, ...]:
        """Return all rounds, sorted; a round that was run again counts once."""
        found: dict[int, LatentUse] = {}
        for line in self._path.read_text().splitlines() if self._path.exists() else ():
            try:
                fields = json.loads(line)
            except json.JSONDecodeError:
                continue  # torn by a kill; the round runs again
            found[fields["round"]] = LatentUse(**{**fields, "kl_per_latent": tuple(fields["kl_per_latent"])})
        return tuple(found[round_] for round_ in sorted(found))


def pictures(spec: ModelSpec, arm: Arm, sites: Mapping[str, SiteData], *, num: int) -> Panels | None:
    """Return what there is to look at: test scans, latent traversals, samples; None for tables or `num` 0."""
    if not spec.is_image or num < 1:
        return None
    names = sorted(sites)[:num]
    found = [
        panels(reconstructor(model_of(spec, arm.weights[name])), sites[name], num=max(1, num // len(names)))
        for name in names
    ]
    model = model_of(spec, arm.weights[names[0]])
    covariates = torch.from_numpy(np.array(sites[names[0]].test.covariates[:1], np.float32))
    latents = latent_use(spec, arm.weights[names[0]], sites, 0)
    busiest = np.argsort(latents.kl_per_latent)[::-1][:4]
    steps = np.linspace(-3, 3, 7)
    return Panels(
        original=_upright([one.original for one in found]),
        reconstruction=_upright([one.reconstruction for one in found]),
        residual=_upright([one.residual for one in found]),
        zmap=_upright_or_none([one.zmap for one in found]),
        truth=_upright_or_none([one.lesion for one in found]),
        labels=tuple(
            f"{name}, {f'change {degree:g} %' if degree else 'healthy'}"
            for name, one in zip(names, found, strict=True)
            for degree in one.degree
        ),
        traversals=_upright([[_traversal(model, int(unit), steps, covariates) for unit in busiest]]),
        traversal_labels=tuple(f"latent {unit + 1}" for unit in busiest),
        traversal_values=tuple(float(step) for step in steps),
        samples=_upright([_samples(model, covariates)]),
    )


def _upright(parts: Sequence[npt.ArrayLike]) -> npt.NDArray[Any]:
    """Return images [..., X, Y] of cohorts, joined, as a page draws them: the front of the head on top."""
    return np.ascontiguousarray(np.rot90(np.concatenate([np.asarray(part) for part in parts]), axes=(-2, -1)))


def _upright_or_none(parts: Sequence[npt.ArrayLike | None]) -> npt.NDArray[Any] | None:
    """Return `_upright` of the images; None unless every part has some."""
    known = [part for part in parts if part is not None]
    return _upright(known) if len(known) == len(parts) else None


def _reconstructors(arm: Arm, spec: ModelSpec) -> dict[str, Reconstruct]:
    """Return each site's reconstruction; sites that share weights share a model."""
    built: dict[int, Reconstruct] = {}
    for weights in arm.weights.values():
        if id(weights) not in built:
            built[id(weights)] = reconstructor(model_of(spec, weights))
    return {site: built[id(weights)] for site, weights in arm.weights.items()}


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return which arm is compared with which."""
    means = [mean for mean in (document.MEAN, document.SITE_MEAN) if mean in names]
    pairs = [(arm, mean) for mean in means for arm in _COMPARED if arm in names]
    for arm, baseline in (
        (document.FEDERATED_DP, document.WARM_START),
        (document.FEDERATED, document.WARM_START),
        (document.FEDERATED_DP, document.FEDERATED),
        (document.FEDERATED, OWN),
        (document.FEDERATED_DP, OWN),
        (document.CENTRALISED, document.FEDERATED),
    ):
        if arm in names and baseline in names:
            pairs.append((arm, baseline))
    return pairs


def _result(row: Result) -> ResultRow:
    return ResultRow(arm=row.arm, task=row.task, metric=row.metric, value=row.value, ci95=row.ci95)


def _difference(row: Difference) -> DifferenceRow:
    return DifferenceRow(
        arm_a=row.arm, arm_b=row.baseline, task=row.task, metric=row.metric, value=row.value, ci95=row.ci95
    )


def _decode(model: GaussianVae, latent: torch.Tensor, covariates: torch.Tensor) -> FloatArray:
    """Return [N, H, W]: decoded latents, first channel, middle slice of a volume."""
    with torch.no_grad():
        images: FloatArray = model.decode(latent, covariates.expand(len(latent), -1)).numpy()[:, 0]
    return images if images.ndim == 3 else images[..., images.shape[-1] // 2]


def _traversal(
    model: GaussianVae,
    unit: int,
    steps: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    covariates: torch.Tensor,
) -> FloatArray:
    """Return [T, H, W]: one latent moved through the prior, the others at zero."""
    latent = torch.zeros(len(steps), model.spec.latent_size)
    latent[:, unit] = torch.from_numpy(steps).float()
    return _decode(model, latent, covariates)


def _samples(model: GaussianVae, covariates: torch.Tensor) -> FloatArray:
    """Return [8, H, W] decoded from the prior, always the same draws."""
    generator = torch.Generator().manual_seed(0)
    return _decode(model, torch.randn(8, model.spec.latent_size, generator=generator), covariates)
